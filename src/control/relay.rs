//! The relay: publishes what stands in the outbox and nobody is publishing, because a node crashed
//! in the middle of it, or a backend was away.
//!
//! Publishing again what is published does no harm while its records are recognised as repeats,
//! which is so far back and no further. So the relay publishes as parked records are published
//! again (`ports::Rooms`): while there is room above the checkpoint, with that as `after`, and
//! nothing that a user's row says to be there. Of many targets the latest records tell how far
//! publishing had come. Beside that it errs to publishing again, but leaves alone what may well be
//! under way: its own node's creates, and rows so young that another node may be at them, unless
//! this node knows that nobody is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::create::{CreateError, Creator, addressees};
use crate::base::{BroadcastId, EventType, Status, Topic, UserId};
use crate::domain::Broadcast;
use crate::limits::admin::PUBLISH_RECORDS_MAX;
use crate::limits::log::{FETCH_BYTES_MAX, FETCH_WAIT, REPEAT_RECORDS};
use crate::limits::relay as limits;
use crate::ports::{
    Backoff, Bounds, Inbox, Log, LogError, OutboxRow, Ownership, Rooms, StoreError, Want,
};
use crate::wire::record::event_id;

/// Publishes what others have left.
pub struct Relay {
    pub creator: Arc<Creator>,
    pub ownership: Arc<dyn Ownership>,
    pub inbox: Arc<dyn Inbox>,
    /// No other node uses this store, so nobody else can be at a row, whatever its time.
    pub is_alone: bool,
}

/// What a look at all rows has come to.
#[derive(Default)]
struct Pass {
    broadcasts: usize,
    records: usize,
    /// A partition was full.
    is_held_up: bool,
    /// Those that can't be published, and the first of them.
    failures: usize,
    failed: Option<(BroadcastId, CreateError)>,
}

impl Relay {
    /// Runs until the process ends.
    pub async fn run(self) {
        let mut backoff = Backoff::new(limits::RETRY_WAIT, limits::LOOK);
        loop {
            match self.pass().await {
                Ok(Pass { failed: Some((id, error)), failures, .. }) => {
                    let (broadcast, others) = (id.get(), failures - 1);
                    tracing::error!(broadcast, others, %error, "can't be published");
                    tokio::time::sleep(backoff.wait()).await;
                }
                Ok(Pass { broadcasts, records, is_held_up, .. }) => {
                    if broadcasts > 0 {
                        tracing::info!(broadcasts, "published from the outbox");
                    }
                    if records > 0 || !is_held_up {
                        backoff.reset();
                    }
                    let wait = if is_held_up { backoff.wait() } else { limits::LOOK };
                    self.creator.unfinished.wait_for(wait).await;
                }
                Err(error) => {
                    let wait = backoff.wait();
                    let wait_ms = wait.as_millis() as u64;
                    tracing::warn!(%error, wait_ms, "the outbox has to wait");
                    // Whatever calls for a look: creates that are refused meanwhile do so all the
                    // time.
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Looks at every row of the outbox once.
    async fn pass(&self) -> Result<Pass, CreateError> {
        let Creator { store, clock, unfinished, .. } = &*self.creator;
        let (mut pass, mut left) = (Pass::default(), 0);
        loop {
            // Rows that are left stand before the others, so more of them are asked for.
            let limit = left + limits::ROWS_MAX;
            let rows = store.outbox(limit).await?;
            let is_all = rows.len() < limit;
            left = 0;
            let now = clock.wall();
            for row in rows {
                let is_young = !self.is_alone && row.created_at.plus(limits::GRACE) > now;
                let is_young = is_young && !unfinished.is_owed(row.id);
                if unfinished.is_under_way(row.id) || is_young {
                    left += 1;
                    continue;
                }
                let id = row.id;
                match self.finish(row, &mut pass).await {
                    Ok(is_gone) => left += usize::from(!is_gone),
                    Err(error) if is_passing(&error) => return Err(error),
                    // One that never can be must not hold up those behind it.
                    Err(error) => {
                        pass.failures += 1;
                        pass.failed.get_or_insert((id, error));
                        left += 1;
                    }
                }
            }
            if is_all {
                return Ok(pass);
            }
        }
    }

    /// Publishes one broadcast, if it exists and is to be; whether its row is gone.
    async fn finish(&self, row: OutboxRow, pass: &mut Pass) -> Result<bool, CreateError> {
        let creator = &*self.creator;
        let broadcast = creator.store.broadcast(row.id).await?;
        let active = broadcast.filter(|broadcast| broadcast.status == Status::Active);
        if let Some(row) = &active {
            let users = addressees(&row.broadcast);
            let first = published(creator, &row.broadcast, &users).await?;
            for part in users[first..].chunks(PUBLISH_RECORDS_MAX) {
                let (records, is_all) = self.publish(&row.broadcast, part).await?;
                pass.records += records;
                if !is_all {
                    pass.is_held_up = true;
                    return Ok(false);
                }
            }
            pass.broadcasts += 1;
        }
        creator.store.remove_outbox(&row).await?;
        creator.unfinished.forget(row.id);
        Ok(true)
    }

    /// Publishes what is not there and finds room: how many records, and whether that was all.
    async fn publish(
        &self,
        broadcast: &Broadcast,
        users: &[Option<&str>],
    ) -> Result<(usize, bool), CreateError> {
        let log = &*self.creator.log;
        let shape = log.shape().await?;
        let mut rooms = Rooms::look(&*self.ownership).await?;
        let there = self.kept(broadcast, users).await?;
        let (mut records, mut is_all) = (Vec::new(), true);
        for user in users.iter().filter(|user| user.is_none_or(|user| !there.contains(user))) {
            let to = shape.partition_of_event(broadcast.id, *user);
            match rooms.take(log, to).await? {
                Some(after) => records.push(self.creator.record(broadcast, *user, Some(after))),
                None => is_all = false,
            }
        }
        let count = records.len();
        if count > 0 {
            log.append(records).await?;
        }
        Ok((count, is_all))
    }

    /// The users whose row says where their record is.
    async fn kept(
        &self,
        broadcast: &Broadcast,
        users: &[Option<&str>],
    ) -> Result<HashSet<String>, StoreError> {
        let mut looks = JoinSet::new();
        for user in users.iter().flatten().filter(|_| !broadcast.fire_and_forget) {
            // What is no user's id the owner has made a dead letter of.
            let Ok(user) = UserId::new(user) else { continue };
            looks.spawn(is_kept(self.inbox.clone(), user, broadcast.id));
        }
        let mut kept = HashSet::new();
        while let Some(look) = looks.join_next().await {
            let ended = |error| StoreError::Failed(format!("a look at an inbox ended: {error}"));
            kept.extend(look.map_err(ended)??);
        }
        Ok(kept)
    }
}

/// The user, if his inbox says where the broadcast's record is.
async fn is_kept(
    inbox: Arc<dyn Inbox>,
    user: UserId,
    broadcast: BroadcastId,
) -> Result<Option<String>, StoreError> {
    let row = inbox.row(&user, broadcast).await?;
    Ok(row.is_some_and(|row| row.place.is_some()).then(|| user.as_str().to_owned()))
}

/// How many targets have their record. They get them in order and a part at a time, so what stands
/// before a part of which the latest records of the log hold one is in the log as well. That part
/// is published again, and recognised.
async fn published(
    creator: &Creator,
    broadcast: &Broadcast,
    users: &[Option<&str>],
) -> Result<usize, CreateError> {
    if users.len() <= PUBLISH_RECORDS_MAX {
        return Ok(0);
    }
    let latest = latest_events(&*creator.log).await?;
    let is_there =
        |user: &Option<&str>| latest.contains(&event_id(broadcast.id, *user, EventType::Created));
    let last = users.iter().rposition(is_there);
    Ok(last.map_or(0, |last| last - last % PUBLISH_RECORDS_MAX))
}

/// Ids of the events in the latest records of the selected topic: as many as repeats are known in.
async fn latest_events(log: &dyn Log) -> Result<HashSet<Uuid>, LogError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Event {
        event_id: Uuid,
    }
    let mut wants = HashMap::new();
    for partition in log.shape().await?.all_partitions() {
        let Bounds { start, end } = log.bounds(partition).await?;
        let offset = end.saturating_sub(REPEAT_RECORDS).max(start);
        if partition.topic == Topic::Selected && offset < end {
            wants.insert(partition, offset..end);
        }
    }
    let mut events = HashSet::new();
    while !wants.is_empty() {
        let asked: Vec<Want> = wants
            .iter()
            .map(|(partition, rest)| Want { partition: *partition, offset: rest.start })
            .collect();
        let batches = log.fetch(&asked, FETCH_BYTES_MAX, FETCH_WAIT).await?;
        let mut is_further = false;
        for batch in batches {
            let records = batch.records.iter().filter_map(|record| record.value.as_deref());
            // A record of somebody else may be anything.
            let ids = records.filter_map(|value| serde_json::from_slice::<Event>(value).ok());
            events.extend(ids.map(|event| event.event_id));
            if let Some(rest) = wants.get_mut(&batch.partition) {
                is_further |= batch.next > rest.start;
                rest.start = batch.next;
            }
        }
        wants.retain(|_, rest| !rest.is_empty());
        // What is not to be had now is not waited for: without it, more is published again.
        if !is_further {
            break;
        }
    }
    Ok(events)
}

fn is_passing(error: &CreateError) -> bool {
    matches!(error, CreateError::Store(StoreError::Away(_)) | CreateError::Log(LogError::Away(_)))
}
