//! Publishes dead letters again, where they are served, and takes them out of the list.
//!
//! Design section 6, as for what is parked: before that it reads the checkpoint of the destination,
//! then whether the event stands there already, and it publishes only while there is room above
//! that checkpoint, which the record carries as `after`. So a dead letter that is published twice,
//! by two nodes at once, or because a node died before it took it out of the list, is either found
//! out here, by what its owner has made durable, or by every node, as a repeat.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::time::Instant;

use super::{NotRedriven, RedriveError, Redriven, Redriver};
use crate::base::{BroadcastId, LogShape, Status, TargetType, Topic};
use crate::domain::{BadRecord, NotRedrivable, Redrive, Rules};
use crate::limits::dead_letters as limits;
use crate::limits::log::RECORD_VALUE_BYTES_MAX;
use crate::ports::{
    Change, Content, DeadLetterId, DeadLetterRow, GroupWhat, Header, LogError, MovedRecord, Rooms,
    StoreError, join_all, stands,
};
use crate::wire::again::{Again, again};
use crate::wire::dead_letter::{CUT, HEADERS_BEGIN, Origin};

/// One that can be published.
struct Letter {
    id: DeadLetterId,
    row: DeadLetterRow,
    /// Where it says that its record stood.
    origin: Option<Origin>,
    redrive: Redrive,
    audience: Option<(TargetType, Vec<String>)>,
}

impl Redriver {
    /// Publishes those that can be, and takes them out of the list. An error leaves the others as
    /// they were, whatever of them the log has.
    pub(super) async fn publish_all(
        &self,
        rows: Vec<DeadLetterRow>,
        done: &mut Redriven,
    ) -> Result<(), RedriveError> {
        let shape = self.log.shape().await?;
        let mut left = self.judge(rows, &shape, done).await?;
        let mut progress_at = Instant::now();
        while !left.is_empty() {
            let before = left.len();
            left = self.publish_some(left, &shape, done).await?;
            if left.len() < before {
                progress_at = Instant::now();
            } else if progress_at.elapsed() >= limits::ROOM_TIME {
                return Err(RedriveError::Full);
            }
            if !left.is_empty() {
                tokio::time::sleep(limits::ROOM_LOOK).await;
            }
        }
        Ok(())
    }

    /// Which of them can be published: their bytes, then their broadcasts.
    async fn judge(
        &self,
        rows: Vec<DeadLetterRow>,
        shape: &LogShape,
        done: &mut Redriven,
    ) -> Result<Vec<Letter>, RedriveError> {
        let mut letters = Vec::new();
        for row in rows {
            let id = row.id();
            match self.read(row, shape) {
                Ok(letter) => letters.push(letter),
                Err(reason) => done.take(id, Err(reason)),
            }
        }
        let named = letters.iter().filter(|letter| letter.asks_for_its_broadcast());
        let ids: BTreeSet<BroadcastId> = named.map(Letter::broadcast).collect();
        let ids: Vec<BroadcastId> = ids.into_iter().collect();
        let contents = self.inbox.contents(&ids).await?;
        let contents: BTreeMap<_, _> = ids.into_iter().zip(contents).collect();
        let mut judged = Vec::new();
        for mut letter in letters {
            if letter.asks_for_its_broadcast() {
                let content = contents.get(&letter.broadcast()).and_then(Option::as_ref);
                if let Err(reason) = self.look_up(&mut letter, content).await? {
                    done.take(letter.id, Err(reason));
                    continue;
                }
            }
            judged.push(letter);
        }
        Ok(judged)
    }

    fn read(&self, row: DeadLetterRow, shape: &LogShape) -> Result<Letter, NotRedriven> {
        let id = row.id();
        let origin = row.shown().origin;
        let topic = self.topic_of(&row, origin.as_ref())?;
        let rules = Rules { shape: *shape, is_testing: self.is_testing };
        let value = row.record.value.as_deref();
        let redrive = Redrive::of(&rules, topic, value, self.clock.wall());
        let redrive = redrive.map_err(|reason| explain(reason, &row.record.headers))?;
        Ok(Letter { id, row, origin, redrive, audience: None })
    }

    /// What it died in: as it says itself, else beside which it stands.
    fn topic_of(&self, row: &DeadLetterRow, origin: Option<&Origin>) -> Result<Topic, NotRedriven> {
        let is_its = |topic: &Topic| match origin {
            Some(origin) => origin.topic == self.names.topic(*topic),
            None => row.topic == self.names.topic(topic.dead()),
        };
        let name = origin.map_or(&row.topic, |origin| &origin.topic);
        let found = Topic::ALL.into_iter().find(is_its);
        found.ok_or_else(|| NotRedriven::NoTopic(name.clone()))
    }

    /// What its broadcast says of it.
    async fn look_up(
        &self,
        letter: &mut Letter,
        content: Option<&Content>,
    ) -> Result<Result<(), NotRedriven>, StoreError> {
        let id = letter.broadcast();
        if letter.redrive.is_message {
            match content.and_then(|content| content.status) {
                None | Some(Status::Active) => {}
                // Something of it can be published after all.
                Some(Status::Failed) => {
                    let change = self.endings.change_status(id, Status::Active).await?;
                    if let Change::Refused(status) = change {
                        return Ok(Err(NotRedriven::Ended(id, status)));
                    }
                }
                Some(status) => return Ok(Err(NotRedriven::Ended(id, status))),
            }
            let ends_at = content.and_then(|content| content.broadcast.expires_at);
            if let Some(at) = ends_at.filter(|at| *at <= self.clock.wall()) {
                return Ok(Err(NotRedrivable::Ended(at).into()));
            }
        }
        if letter.redrive.lacks_audience {
            letter.audience = Some(match content {
                None if self.unknown_is_for_all => (TargetType::All, Vec::new()),
                None => return Ok(Err(NotRedriven::Unknown(id))),
                Some(content) => {
                    let target = &content.broadcast.target;
                    if target.r#type == TargetType::Selected && letter.redrive.is_message {
                        return Ok(Err(NotRedriven::Selected(id)));
                    }
                    (target.r#type, target.ids.clone())
                }
            });
        }
        Ok(Ok(()))
    }

    /// Publishes as many as there is room for; those that are left.
    async fn publish_some(
        &self,
        letters: Vec<Letter>,
        shape: &LogShape,
        done: &mut Redriven,
    ) -> Result<Vec<Letter>, RedriveError> {
        let mut rooms = Rooms::look(&*self.ownership).await?;
        let (mut standing, mut going, mut held) = (Vec::new(), Vec::new(), Vec::new());
        let there = self.standing(&letters, shape).await?;
        for (letter, is_there) in letters.into_iter().zip(there) {
            if is_there {
                standing.push(letter.id);
            } else if let Some(after) = rooms.take(&*self.log, letter.redrive.to).await? {
                match letter.record(after) {
                    Ok(record) => going.push((letter.id, record)),
                    Err(reason) => done.take(letter.id, Err(reason)),
                }
            } else {
                held.push(letter);
            }
        }
        for id in self.append(going, done).await? {
            standing.push(id);
        }
        let counter = &self.counters.redriven;
        self.mark(&standing, counter, |id| done.take(id.clone(), Ok(()))).await?;
        Ok(held)
    }

    /// Of each, whether its event stands where it is served.
    async fn standing(
        &self,
        letters: &[Letter],
        shape: &LogShape,
    ) -> Result<Vec<bool>, StoreError> {
        let mut found = Vec::with_capacity(letters.len());
        for part in letters.chunks(crate::limits::store::IN_FLIGHT_MAX) {
            let looks = part.iter().map(|letter| self.stands(letter, shape));
            for is_there in join_all(looks).await {
                found.push(is_there?);
            }
        }
        Ok(found)
    }

    /// A group message may stand where it stood at first, because only others could not process
    /// it.
    async fn stands(&self, letter: &Letter, shape: &LogShape) -> Result<bool, StoreError> {
        if stands(&*self.inbox, &*self.parking, &letter.redrive.aside).await? {
            return Ok(true);
        }
        let is_group = letter.redrive.is_message && letter.redrive.to.topic == Topic::Group;
        let Some(origin) = letter.origin.as_ref().filter(|_| is_group) else { return Ok(false) };
        let (Ok(partition), Ok(offset)) =
            (u16::try_from(origin.partition), u64::try_from(origin.offset))
        else {
            return Ok(false);
        };
        let rows = self.inbox.group(shape.identity, partition, offset, 1).await?;
        Ok(rows.first().is_some_and(|row| {
            row.broadcast == letter.broadcast()
                && row.what == GroupWhat::Created
                && row.place.position.offset == offset
        }))
    }

    /// Appends them; those that the log has. Of records that are refused together, one at a time
    /// may be taken.
    async fn append(
        &self,
        going: Vec<(DeadLetterId, MovedRecord)>,
        done: &mut Redriven,
    ) -> Result<Vec<DeadLetterId>, RedriveError> {
        if going.is_empty() {
            return Ok(Vec::new());
        }
        let records = going.iter().map(|(_, record)| record.clone()).collect();
        match self.log.append_moved(records).await {
            Ok(_) => return Ok(going.into_iter().map(|(id, _)| id).collect()),
            Err(LogError::TooLarge { .. } | LogError::Oversized { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let mut taken = Vec::new();
        for (id, record) in going {
            match self.log.append_moved(vec![record]).await {
                Ok(_) => taken.push(id),
                Err(error @ (LogError::TooLarge { .. } | LogError::Oversized { .. })) => {
                    done.take(id, Err(NotRedriven::TooLarge(error)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(taken)
    }
}

impl Letter {
    fn broadcast(&self) -> BroadcastId {
        self.redrive.aside.kept.broadcast
    }

    fn asks_for_its_broadcast(&self) -> bool {
        self.redrive.is_message || self.redrive.lacks_audience
    }

    /// As it was before it died, in the next attempt.
    fn record(&self, after: u64) -> Result<MovedRecord, NotRedriven> {
        let audience = self.audience.as_ref().map(|(kind, names)| (*kind, &names[..]));
        let attempt = self.redrive.aside.kept.attempt;
        let changed = Again { attempt, after, audience, is_mended: true };
        let value = self.row.record.value.as_deref().unwrap_or_default();
        let value = again(value, &changed).map_err(|error| NotRedriven::Odd(error.to_string()))?;
        // With what is added it may be too large for everybody who reads it.
        if value.len() > RECORD_VALUE_BYTES_MAX {
            let bad = BadRecord::TooLarge { bytes: value.len() };
            return Err(NotRedrivable::from(bad).into());
        }
        let headers = self.row.record.headers.iter().filter(|header| !is_of_its_death(header));
        Ok(MovedRecord {
            to: self.redrive.to,
            key: Some(Bytes::from(self.redrive.key.clone())),
            value: Some(Bytes::from(value)),
            headers: headers.cloned().collect(),
        })
    }
}

fn is_of_its_death(header: &Header) -> bool {
    header.name.starts_with(HEADERS_BEGIN.as_bytes()) || header.name == CUT
}

fn explain(reason: NotRedrivable, headers: &[Header]) -> NotRedriven {
    let cut = headers.iter().rev().find(|header| header.name == CUT);
    match cut.and_then(|header| header.value.as_deref()) {
        Some(cut) => NotRedriven::Cut(reason, String::from_utf8_lossy(cut).into_owned()),
        None => reason.into(),
    }
}
