//! Publishes parked records again, where they are served.
//!
//! Design section 6: before that it reads the checkpoint of the destination, then whether the event
//! stands there already. It publishes only while there is room above that checkpoint
//! (`ports::Rooms`), and the record carries it as `after`. So an event that is published twice is
//! either found out here, by what its owner has made durable, or by every node, as a repeat.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::BackendError;
use super::counters::{OwnerCounters, add};
use super::dead::{DeadClass, DeadLetter, DeadLetters, DeadReason};
use super::keep::placeless;
use crate::base::{BroadcastId, Partition, Position, Status, TargetType, UserId};
use crate::domain::{Assessor, Effect, Rules, Unserved};
use crate::limits::log::{ATTEMPT_WAIT, ATTEMPTS};
use crate::limits::parking as limits;
use crate::ports::{
    Backoff, Bucket, Clock, Delivery, Inbox, InboxWrite, Log, LogError, MovedRecord, Ownership,
    Parked, Parking, Rooms, StoreError, stands,
};
use crate::wire::again::{Again, again};

/// What makes parked records served ones.
pub struct Republisher {
    pub log: Arc<dyn Log>,
    pub ownership: Arc<dyn Ownership>,
    pub inbox: Arc<dyn Inbox>,
    pub parking: Arc<dyn Parking>,
    pub clock: Arc<dyn Clock>,
    pub rules: Rules,
    pub retention: Duration,
    pub dead: DeadLetters,
    pub counters: Arc<OwnerCounters>,
    /// An older producer's group event of a broadcast that the store does not know is for all.
    pub unknown_is_for_all: bool,
}

/// What a parked record has come to.
enum Fate {
    /// For nobody any more, or served already.
    Done,
    Publish {
        to: Partition,
        key: Bytes,
        audience: Option<(TargetType, Vec<String>)>,
        /// What the user's inbox says if the log does not take it.
        failed: Option<InboxWrite>,
    },
    /// Its broadcast is not known, or not yet.
    Unknown,
}

/// A record on its way.
struct Moved {
    record: MovedRecord,
    row: Parked,
    failed: Option<InboxWrite>,
}

impl Republisher {
    /// Publishes what becomes due of these shares, until nobody tells of shares any more.
    pub async fn run(self, mut shares: watch::Receiver<Vec<Bucket>>) {
        let mut backoff = Backoff::new(limits::LOOK, limits::RETRY_WAIT_MAX);
        loop {
            let own = shares.borrow_and_update().clone();
            let wait = match self.pass(&own).await {
                Ok(more) => {
                    backoff.reset();
                    if more { Duration::ZERO } else { limits::LOOK }
                }
                Err(error) => {
                    let wait = backoff.wait();
                    let wait_ms = wait.as_millis() as u64;
                    tracing::debug!(%error, wait_ms, "parked records have to wait");
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = shares.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Looks at what is due of these shares once; whether there may be more.
    pub async fn pass(&self, shares: &[Bucket]) -> Result<bool, BackendError> {
        let (mut is_more, mut rows) = (false, Vec::new());
        for share in shares {
            let due = self.parking.parked(*share, self.clock.wall(), limits::ROWS_MAX).await?;
            is_more |= due.len() == limits::ROWS_MAX;
            rows.extend(due);
        }
        if rows.is_empty() {
            return Ok(false);
        }
        let mut rooms = Rooms::look(&*self.ownership).await?;
        let mut moved = Vec::new();
        let mut is_held_up = false;
        for row in rows {
            match self.fate_of(&row).await? {
                Fate::Done => self.parking.unpark(&row).await?,
                Fate::Unknown => self.look_again(&row).await?,
                Fate::Publish { to, key, audience, failed } => {
                    let Some(after) = rooms.take(&*self.log, to).await? else {
                        is_held_up = true;
                        continue;
                    };
                    let audience = audience.as_ref().map(|(kind, names)| (*kind, &names[..]));
                    let attempt = row.attempt.saturating_add(1);
                    let changed = Again { attempt, after, audience, is_mended: false };
                    let record = record(&row, to, key, &changed)?;
                    moved.push(Moved { record, row, failed });
                }
            }
        }
        self.publish(moved).await?;
        Ok(is_more && !is_held_up)
    }

    async fn publish(&self, moved: Vec<Moved>) -> Result<(), BackendError> {
        if moved.is_empty() {
            return Ok(());
        }
        let records = moved.iter().map(|moved| moved.record.clone()).collect();
        let is_refused = match self.log.append_moved(records).await {
            Ok(_) => false,
            Err(LogError::TooLarge { .. } | LogError::Oversized { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        for Moved { record, row, failed } in moved {
            if is_refused {
                self.publish_alone(record, &row, failed).await?;
            }
            add(&self.counters.published_again, 1);
            self.parking.unpark(&row).await?;
        }
        Ok(())
    }

    /// Of records that are refused together, one at a time may be taken. One that has grown beyond
    /// what the broker takes is a dead letter.
    async fn publish_alone(
        &self,
        record: MovedRecord,
        row: &Parked,
        failed: Option<InboxWrite>,
    ) -> Result<(), BackendError> {
        match self.log.append_moved(vec![record]).await {
            Ok(_) => Ok(()),
            Err(error @ (LogError::TooLarge { .. } | LogError::Oversized { .. })) => {
                self.inbox.write_inbox(failed.as_slice()).await?;
                self.bury(row, DeadClass::BadRecord, error.to_string()).await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn bury(
        &self,
        row: &Parked,
        class: DeadClass,
        message: String,
    ) -> Result<(), BackendError> {
        let reason = DeadReason { class, message };
        let letter = DeadLetter { partition: row.partition, record: row.record.clone(), reason };
        Ok(self.dead.append(&[letter]).await?)
    }

    /// What is to become of a row. What is said of it follows from the record, as when it was
    /// parked.
    async fn fate_of(&self, row: &Parked) -> Result<Fate, BackendError> {
        let rules = Rules { is_testing: true, ..self.rules };
        let position = Position { partition: row.partition, offset: row.record.offset };
        let value = row.record.value.as_deref();
        let mut assessor = Assessor::new(rules, self.retention);
        let found = assessor.assess(position, row.record.appended_at, value);
        let Ok(Effect::Parked { why, aside }) = found else {
            tracing::error!(event = %row.event, "a parked record that need not be parked");
            return Ok(Fate::Done);
        };
        if aside.kept.ends_at <= self.clock.wall() {
            return Ok(Fate::Done);
        }
        if stands(&*self.inbox, &*self.parking, &aside).await? {
            return Ok(Fate::Done);
        }
        let id = aside.kept.broadcast;
        let audience = match why {
            Unserved::NoAudience => match self.audience_of(id, aside.is_removal).await? {
                Audience::Known(audience) => Some(audience),
                Audience::Ended => return Ok(Fate::Done),
                Audience::Unknown => return Ok(Fate::Unknown),
            },
            _ => None,
        };
        let (to, key) = self.destination(id, aside.user.as_ref());
        let failed = placeless(&aside, &row.record, Delivery::Failed);
        Ok(Fate::Publish { to, key, audience, failed })
    }

    fn destination(&self, id: BroadcastId, user: Option<&UserId>) -> (Partition, Bytes) {
        let user = user.map(UserId::as_str);
        let key = user.map_or_else(|| id.to_string(), str::to_owned);
        (self.rules.shape.partition_of_event(id, user), Bytes::from(key))
    }

    /// Whom an older producer's group event is for: a message, or word that it is no more.
    async fn audience_of(&self, id: BroadcastId, is_removal: bool) -> Result<Audience, StoreError> {
        let for_all = (TargetType::All, Vec::new());
        let found = self.inbox.contents(&[id]).await?.into_iter().next().flatten();
        let Some(content) = found else {
            let is_for_all = self.unknown_is_for_all;
            return Ok(if is_for_all { Audience::Known(for_all) } else { Audience::Unknown });
        };
        let is_over = matches!(content.status, Some(Status::Cancelled | Status::Expired));
        let ends_at = content.broadcast.expires_at;
        if !is_removal && (is_over || ends_at.is_some_and(|at| at <= self.clock.wall())) {
            return Ok(Audience::Ended);
        }
        let target = content.broadcast.target;
        Ok(match target.r#type {
            // Its users have records of their own; that it has ended is for the nodes.
            TargetType::Selected if !is_removal => Audience::Unknown,
            kind => Audience::Known((kind, target.ids)),
        })
    }

    /// Its broadcast may still come; in the end it is a dead letter.
    async fn look_again(&self, row: &Parked) -> Result<(), BackendError> {
        let tries = row.tries.saturating_add(1);
        if tries < ATTEMPTS {
            let due_at = self.clock.wall().plus(ATTEMPT_WAIT);
            self.parking.park(&Parked { due_at, tries, ..row.clone() }).await?;
        } else {
            let message = "a group event without an audience, of a broadcast that the store does \
                           not know"
                .to_owned();
            self.bury(row, DeadClass::UnknownBroadcast, message).await?;
        }
        Ok(self.parking.unpark(row).await?)
    }
}

enum Audience {
    Known((TargetType, Vec<String>)),
    Unknown,
    Ended,
}

fn record(
    row: &Parked,
    to: Partition,
    key: Bytes,
    changed: &Again<'_>,
) -> Result<MovedRecord, LogError> {
    let value = row.record.value.as_deref().unwrap_or_default();
    let value = again(value, changed)
        .map_err(|error| LogError::Failed(format!("parked record of {}: {error}", row.event)))?;
    let headers = row.record.headers.clone();
    Ok(MovedRecord { to, key: Some(key), value: Some(Bytes::from(value)), headers })
}
