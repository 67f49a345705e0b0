//! Makes durable what one batch leaves behind.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Owner;
use super::counters::{OwnerCounters, add};
use super::dead::{DeadClass, DeadLetter, DeadLetters, DeadReason};
use crate::base::{BroadcastId, End, LogShape, Partition, Position, Status};
use crate::domain::{Aside, Assessor, Broadcast, Effect, Kept, Rules, Unserved};
use crate::limits::log::{ATTEMPT_WAIT, ATTEMPTS};
use crate::limits::{owner as limits, parking};
use crate::ports::{
    Backoff, Batch, Claim, Clock, ControlTopic, Delivery, Ending, Endings, GroupRow, GroupWhat,
    Hole, Inbox, InboxWrite, Parked, Parking, Place, Progress, Record, Removal, StoreError,
    join_all, stands,
};
use crate::wire::control::{ControlRecord, ControlSays, NodeStart};

/// Shared by the work on all partitions. `assess` and `write` are one try, without a clock to wait
/// by; `keep` is all tries.
pub struct Keeper {
    rules: Rules,
    inbox: Arc<dyn Inbox>,
    endings: Arc<dyn Endings>,
    control: Arc<dyn ControlTopic>,
    node: NodeStart,
    parking: Arc<dyn Parking>,
    dead: DeadLetters,
    clock: Arc<dyn Clock>,
    counters: Arc<OwnerCounters>,
    /// One for each batch in work, at most; they keep their buffers.
    assessors: Mutex<Vec<Assessor>>,
    retention: Duration,
    /// Broadcasts whose content is in the store.
    known: Mutex<HashSet<BroadcastId>>,
    /// Of the parts that are written now, whatever partition they are of.
    turns: Semaphore,
}

/// What a batch leaves behind, as far as it is not durable yet.
#[derive(Debug, Default)]
pub struct Rows {
    contents: Vec<Broadcast>,
    messages: Vec<InboxWrite>,
    groups: Vec<GroupRow>,
    removals: Vec<Removal>,
    /// Broadcasts that have ended, as their records say.
    ends: Vec<(BroadcastId, End)>,
    /// Events without an inbox row that were published again.
    served: Vec<Uuid>,
    holes: Vec<Hole>,
    parked: Vec<Parked>,
    /// To be parked again, unless they stand where they are served.
    late: Vec<(Aside, Parked)>,
    dead: Vec<DeadLetter>,
}

impl Keeper {
    pub fn new(owner: &Owner, shape: LogShape) -> Self {
        Self {
            rules: Rules { shape, is_testing: owner.is_testing },
            inbox: owner.inbox.clone(),
            endings: owner.endings.clone(),
            control: owner.control.clone(),
            node: owner.node.clone(),
            parking: owner.parking.clone(),
            dead: owner.dead_letters(),
            clock: owner.clock.clone(),
            counters: owner.counters.clone(),
            assessors: Mutex::default(),
            retention: owner.retention,
            known: Mutex::default(),
            turns: Semaphore::new(limits::PARTS_AT_ONCE),
        }
    }

    /// Returns once all of it is durable, however long the store is away. What no waiting mends an
    /// operator has to, and until then the checkpoint stays where it is.
    pub async fn keep(&self, batch: Batch) {
        let mut rows = self.assess(&batch);
        drop(batch); // Its bytes may be many, and the store away.
        let (kept, parked) = (rows.messages.len() + rows.groups.len(), rows.parked.len());
        self.write_all(&mut rows).await;
        add(&self.counters.rows, kept as u64);
        add(&self.counters.parked, parked as u64);
        self.dead.keep(&rows.dead).await;
    }

    /// Notes what the log has lost. Returns once that is durable.
    pub async fn keep_hole(&self, partition: Partition, (from, to): (u64, u64)) {
        self.write_all(&mut self.hole(partition, (from, to))).await;
    }

    /// What is to be written of a hole.
    pub fn hole(&self, partition: Partition, (from, to): (u64, u64)) -> Rows {
        let noted_at = self.clock.wall();
        Rows { holes: vec![Hole { partition, from, to, noted_at }], ..Rows::default() }
    }

    async fn write_all(&self, rows: &mut Rows) {
        let mut left = rows.left();
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        while let Err(error) = self.write(rows).await {
            add(&self.counters.retries, 1);
            match &error {
                StoreError::Away(reason) => tracing::debug!(reason, "rows have to wait"),
                StoreError::Failed(_) => tracing::error!(%error, "rows can't be written"),
            }
            // Waits grow for a store that takes nothing.
            if rows.left() < left {
                left = rows.left();
                backoff.reset();
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// All of it that goes into the store. After an error, `rows` are what is left.
    pub async fn write(&self, rows: &mut Rows) -> Result<(), StoreError> {
        let Rows {
            contents,
            messages,
            groups,
            removals,
            ends,
            served,
            holes,
            parked,
            late,
            dead: _,
        } = rows;
        if !holes.is_empty() {
            self.inbox.write_holes(self.rules.shape.identity, holes).await?;
            holes.clear();
        }
        // A row says nothing without its content.
        while !contents.is_empty() {
            let _turn = self.turns.acquire().await;
            let from = part_of(contents);
            self.inbox.write_contents(&contents[from..]).await?;
            contents.drain(from..).for_each(|content| self.note(content.id));
        }
        while !messages.is_empty() {
            let _turn = self.turns.acquire().await;
            let from = part_of(messages);
            self.inbox.write_inbox(&messages[from..]).await?;
            messages.truncate(from);
        }
        while !groups.is_empty() {
            let _turn = self.turns.acquire().await;
            let from = part_of(groups);
            self.inbox.write_group(&groups[from..]).await?;
            groups.truncate(from);
        }
        while !removals.is_empty() {
            let _turn = self.turns.acquire().await;
            let from = part_of(removals);
            self.inbox.write_removals(&removals[from..]).await?;
            removals.truncate(from);
        }
        each(ends, |(id, how)| async move { ((id, how), self.end(id, how).await) }).await?;
        each(served, |event| async move { (event, self.parking.note_served(event).await) }).await?;
        each(parked, |row| async move {
            let done = self.park(&row).await;
            (row, done)
        })
        .await?;
        each(late, |late| async move {
            let done = self.park_late(&late).await;
            (late, done)
        })
        .await
    }

    /// What our own nodes end they have noted before its record. Another producer's end is noted
    /// here, and told to all nodes.
    async fn end(&self, id: BroadcastId, how: End) -> Result<(), StoreError> {
        let content = self.inbox.contents(&[id]).await?.into_iter().next().flatten();
        let Some(content) = content else { return Ok(()) };
        if content.status.is_some_and(Status::is_final) {
            return Ok(());
        }
        let ending = Ending { id, at: self.clock.wall(), how };
        self.endings.put_ending(&ending).await?;
        // Without a status it counts as active until now.
        let is_unknown = content.status.is_none();
        if !is_unknown || self.endings.create_ended(id, how).await? == Claim::Taken {
            self.endings.change_status(id, how.status()).await?;
        }
        // What the nodes remember of it says that it is active.
        let says = ControlSays::Ended { broadcast_id: id, status: how };
        let record = ControlRecord { from: self.node.clone(), seq: 0, says };
        let told = self.control.append(record.to_json().into()).await;
        told.map_err(|error| StoreError::Away(error.to_string()))?;
        self.endings.settle_ending(&ending).await
    }

    /// Unless it stands where it is served.
    async fn park_late(&self, (aside, row): &(Aside, Parked)) -> Result<(), StoreError> {
        if stands(&*self.inbox, &*self.parking, aside).await? {
            return Ok(());
        }
        self.park(row).await
    }

    /// Where readers of the store still look. The same place, if it is done again soon.
    async fn park(&self, row: &Parked) -> Result<(), StoreError> {
        let now = self.clock.wall();
        let is_old = row.due_at.plus(parking::DUE_AGE) < now;
        let due_at = if is_old { now } else { row.due_at };
        self.parking.park(&Parked { due_at, ..row.clone() }).await
    }

    /// What is to be written of a batch.
    pub fn assess(&self, batch: &Batch) -> Rows {
        let assessor = lock(&self.assessors).pop();
        let mut assessor = assessor.unwrap_or_else(|| Assessor::new(self.rules, self.retention));
        let now = self.clock.wall();
        let mut rows = Rows::default();
        let mut met = HashSet::new();
        let mut is_new = |id| !lock(&self.known).contains(&id) && met.insert(id);
        for record in &batch.records {
            let position = Position { partition: batch.partition, offset: record.offset };
            let value = record.value.as_deref();
            let place = self.place(position, record);
            let dead =
                |reason| DeadLetter { partition: batch.partition, record: record.clone(), reason };
            let effect = match assessor.assess(position, record.appended_at, value) {
                Ok(effect) => effect,
                Err(bad) => {
                    rows.dead.push(dead(bad.into()));
                    continue;
                }
            };
            match effect {
                Effect::Message { user, kept, content } if kept.ends_at > now => {
                    let content = content.filter(|content| is_new(content.id));
                    rows.contents.extend(content.map(|content| *content));
                    let attempt = kept.attempt;
                    rows.messages.push(InboxWrite {
                        user,
                        broadcast: kept.broadcast,
                        place: Some(place),
                        progress: Progress { attempt, delivery: Delivery::Pending },
                        at: record.appended_at,
                        keep_until: kept.ends_at,
                    });
                }
                Effect::Group { kept, content } if kept.ends_at > now => {
                    let content = Some(content).filter(|content| is_new(content.id));
                    rows.contents.extend(content.map(|content| *content));
                    let (broadcast, keep_until) = (kept.broadcast, kept.ends_at);
                    let what = GroupWhat::Created;
                    rows.groups.push(GroupRow { broadcast, what, place, keep_until });
                    rows.served.extend(again(&kept));
                }
                Effect::Passing(kept) => rows.served.extend(again(&kept)),
                Effect::Parked { why, aside } if aside.kept.ends_at > now => {
                    rows.messages.extend(placeless(&aside, record, Delivery::Pending));
                    let parked = parked(why, &aside.kept, batch.partition, record);
                    match why {
                        Unserved::Late => rows.late.push((aside, parked)),
                        _ => rows.parked.push(parked),
                    }
                }
                Effect::Dead(aside) if aside.kept.ends_at > now => {
                    rows.messages.extend(placeless(&aside, record, Delivery::Failed));
                    rows.dead.push(dead(failed(&aside.kept)));
                }
                Effect::Removed { how, kept, user, is_for_group } if kept.ends_at > now => {
                    let (broadcast, keep_until) = (kept.broadcast, kept.ends_at);
                    rows.served.extend(again(&kept));
                    match user {
                        Some(user) => {
                            rows.removals.push(Removal { user, broadcast, place, keep_until });
                        }
                        None if rows.ends.contains(&(broadcast, how)) => {}
                        None => rows.ends.push((broadcast, how)),
                    }
                    if is_for_group {
                        let what = GroupWhat::Removed;
                        rows.groups.push(GroupRow { broadcast, what, place, keep_until });
                    }
                }
                // What has ended is for nobody any more.
                Effect::Message { .. }
                | Effect::Group { .. }
                | Effect::Parked { .. }
                | Effect::Dead(_)
                | Effect::Removed { .. }
                | Effect::Unserved(_) => {}
            }
        }
        lock(&self.assessors).push(assessor);
        rows
    }

    fn place(&self, position: Position, record: &Record) -> Place {
        Place { log: self.rules.shape.identity, position, appended_at: record.appended_at }
    }

    fn note(&self, id: BroadcastId) {
        let mut known = lock(&self.known);
        if known.len() >= limits::CONTENTS_KNOWN_MAX {
            known.clear();
        }
        known.insert(id);
    }
}

impl Rows {
    /// How much the store does not have yet.
    fn left(&self) -> usize {
        let Self { contents, messages, groups, removals, ends, served, .. } = self;
        let rows = contents.len() + messages.len() + groups.len() + removals.len() + ends.len();
        let Self { holes, parked, late, .. } = self;
        rows + served.len() + holes.len() + parked.len() + late.len()
    }
}

/// Where the part begins that is written next: the last rows, so that what is done is cut off.
fn part_of<T>(left: &[T]) -> usize {
    left.len().saturating_sub(limits::ROWS_AT_ONCE)
}

/// Writes all, one by one, some at a time, and takes out what is done. Ends with an error once
/// those that were under way have ended.
async fn each<T, F: Future<Output = (T, Result<(), StoreError>)>>(
    left: &mut Vec<T>,
    write: impl Fn(T) -> F,
) -> Result<(), StoreError> {
    while !left.is_empty() {
        let from = left.len().saturating_sub(limits::PARKED_AT_ONCE);
        let part = left.split_off(from);
        let mut failed = Ok(());
        for (row, done) in join_all(part.into_iter().map(&write)).await {
            if done.is_err() {
                left.push(row);
                failed = done;
            }
        }
        failed?;
    }
    Ok(())
}

fn failed(kept: &Kept) -> DeadReason {
    let attempts = kept.attempt.saturating_add(1);
    let message = format!("its failure was simulated, attempt {attempts} of {ATTEMPTS}");
    DeadReason { class: DeadClass::SimulatedFailure, message }
}

/// The event, if it was published again.
fn again(kept: &Kept) -> Option<Uuid> {
    (kept.attempt > 0).then_some(kept.event)
}

/// What the inbox says of an event that is not served where it stands.
pub fn placeless(aside: &Aside, record: &Record, delivery: Delivery) -> Option<InboxWrite> {
    let user = aside.user.clone().filter(|_| aside.has_row)?;
    Some(InboxWrite {
        user,
        broadcast: aside.kept.broadcast,
        place: None,
        progress: Progress { attempt: aside.kept.attempt, delivery },
        at: record.appended_at,
        keep_until: aside.kept.ends_at,
    })
}

fn parked(why: Unserved, kept: &Kept, partition: Partition, record: &Record) -> Parked {
    let wait = if why == Unserved::Failing { ATTEMPT_WAIT } else { Duration::ZERO };
    Parked {
        due_at: record.appended_at.plus(wait),
        event: kept.event,
        attempt: kept.attempt,
        tries: 0,
        partition,
        record: record.clone(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Buffers and a set of ids: whole whoever panicked while holding them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
