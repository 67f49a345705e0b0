//! Makes durable what one batch leaves behind.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Owner;
use super::counters::{OwnerCounters, add};
use super::dead::{DeadLetter, DeadLetters};
use crate::base::{BroadcastId, LogShape, Position};
use crate::domain::{Assessor, Broadcast, Effect};
use crate::limits::owner as limits;
use crate::ports::{
    Backoff, Batch, Clock, Delivery, GroupRow, Inbox, InboxWrite, Place, Progress, Record, Store,
    StoreError,
};

/// Shared by the work on all partitions. `assess` and `write` are one try, without a clock to wait
/// by; `keep` is all tries.
pub struct Keeper {
    shape: LogShape,
    store: Arc<dyn Store>,
    inbox: Arc<dyn Inbox>,
    clock: Arc<dyn Clock>,
    counters: Arc<OwnerCounters>,
    dead: DeadLetters,
    /// One for each batch in work, at most; they keep their buffers.
    assessors: Mutex<Vec<Assessor>>,
    retention: std::time::Duration,
    /// Broadcasts whose content is in the store.
    known: Mutex<HashSet<BroadcastId>>,
}

/// What a batch leaves behind.
#[derive(Debug, Default)]
pub struct Rows {
    contents: Vec<Broadcast>,
    messages: Vec<InboxWrite>,
    groups: Vec<GroupRow>,
    dead: Vec<DeadLetter>,
}

impl Keeper {
    pub fn new(owner: &Owner, shape: LogShape) -> Self {
        Self {
            shape,
            store: owner.store.clone(),
            inbox: owner.inbox.clone(),
            clock: owner.clock.clone(),
            counters: owner.counters.clone(),
            dead: DeadLetters::new(owner.log.clone(), owner.names.clone(), owner.counters.clone()),
            assessors: Mutex::default(),
            retention: owner.retention,
            known: Mutex::default(),
        }
    }

    /// Returns once all of it is durable, however long the store is away. What no waiting mends an
    /// operator has to, and until then the checkpoint stays where it is.
    pub async fn keep(&self, batch: Batch) {
        let rows = self.assess(&batch);
        drop(batch); // Its bytes may be many, and the store away.
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        while let Err(error) = self.write(&rows).await {
            add(&self.counters.retries, 1);
            match &error {
                StoreError::Away(reason) => tracing::debug!(reason, "rows have to wait"),
                StoreError::Failed(_) => tracing::error!(%error, "rows can't be written"),
            }
            tokio::time::sleep(backoff.wait()).await;
        }
        add(&self.counters.rows, (rows.messages.len() + rows.groups.len()) as u64);
        self.dead.keep(&rows.dead).await;
    }

    /// All of it, once more if it must be.
    pub async fn write(&self, rows: &Rows) -> Result<(), StoreError> {
        // A row says nothing without its content. Most have one: Corecast's own.
        let ids: Vec<BroadcastId> = rows.contents.iter().map(|content| content.id).collect();
        let found = if ids.is_empty() { Vec::new() } else { self.inbox.contents(&ids).await? };
        for (content, found) in rows.contents.iter().zip(found) {
            if found.is_none() {
                self.store.claim_broadcast(content).await?;
            }
            self.note(content.id);
        }
        if !rows.messages.is_empty() {
            self.inbox.write_inbox(&rows.messages).await?;
        }
        if !rows.groups.is_empty() {
            self.inbox.write_group(&rows.groups).await?;
        }
        Ok(())
    }

    /// What is to be written of a batch.
    pub fn assess(&self, batch: &Batch) -> Rows {
        let assessor = lock(&self.assessors).pop();
        let mut assessor = assessor.unwrap_or_else(|| Assessor::new(self.shape, self.retention));
        let now = self.clock.wall();
        let mut rows = Rows::default();
        let mut met = HashSet::new();
        let mut is_new = |id| !lock(&self.known).contains(&id) && met.insert(id);
        for record in &batch.records {
            let position = Position { partition: batch.partition, offset: record.offset };
            let value = record.value.as_deref();
            // What is bad, or not served, the shards have told of.
            let effect = match assessor.assess(position, record.appended_at, value) {
                Ok(effect) => effect,
                Err(bad) => {
                    let (partition, record) = (batch.partition, record.clone());
                    rows.dead.push(DeadLetter { partition, record, reason: bad.into() });
                    continue;
                }
            };
            let place = self.place(position, record);
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
                    rows.groups.push(GroupRow { broadcast, place, keep_until });
                }
                // What has ended is for nobody any more.
                Effect::Message { .. }
                | Effect::Group { .. }
                | Effect::Nothing
                | Effect::Unserved(_) => {}
            }
        }
        lock(&self.assessors).push(assessor);
        rows
    }

    fn place(&self, position: Position, record: &Record) -> Place {
        Place { log: self.shape.identity, position, appended_at: record.appended_at }
    }

    fn note(&self, id: BroadcastId) {
        let mut known = lock(&self.known);
        if known.len() >= limits::CONTENTS_KNOWN_MAX {
            known.clear();
        }
        known.insert(id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Buffers and a set of ids: whole whoever panicked while holding them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
