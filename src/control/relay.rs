//! The relay: publishes what stands in the outbox and nobody is publishing, because a node crashed
//! in the middle of it, or a backend was away.
//!
//! Publishing again what is published does no harm while its records are recognised as repeats,
//! which is so far back and no further. Of many targets the first ones may be beyond that, so the
//! relay looks how far publishing had come. Beside that it errs to publishing again, but leaves
//! alone what may well be under way: its own node's creates, and rows so young that another node
//! may be at them, unless this node knows that nobody is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use uuid::Uuid;

use super::create::{CreateError, Creator};
use crate::base::{EventType, Status, TargetType, Topic};
use crate::domain::Broadcast;
use crate::limits::admin::PUBLISH_RECORDS_MAX;
use crate::limits::log::{FETCH_BYTES_MAX, FETCH_WAIT, REPEAT_RECORDS};
use crate::limits::relay as limits;
use crate::ports::{Backoff, Bounds, Log, LogError, OutboxRow, StoreError, Want};
use crate::wire::record::event_id;

/// Runs until the process ends. `is_alone`: no other node uses this store, so nobody else can be at
/// a row.
pub async fn run_relay(creator: Arc<Creator>, is_alone: bool) {
    let grace = if is_alone { Duration::ZERO } else { limits::GRACE };
    let mut backoff = Backoff::new(limits::RETRY_WAIT, limits::LOOK);
    loop {
        match pass(&creator, grace).await {
            Ok(published) => {
                if published > 0 {
                    tracing::info!(broadcasts = published, "published from the outbox");
                }
                backoff.reset();
                creator.unfinished.wait_for(limits::LOOK).await;
            }
            Err(error) => {
                let wait = backoff.wait();
                let wait_ms = wait.as_millis() as u64;
                tracing::warn!(%error, wait_ms, "the outbox has to wait");
                // Whatever calls for a look: creates that are refused meanwhile do so all the time.
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Looks at every row of the outbox once; returns how many broadcasts were published.
async fn pass(creator: &Creator, grace: Duration) -> Result<usize, CreateError> {
    let (mut published, mut left) = (0, 0);
    loop {
        // Rows that are left stand before the others, so more of them are asked for.
        let limit = left + limits::ROWS_MAX;
        let rows = creator.store.outbox(limit).await?;
        let is_all = rows.len() < limit;
        left = 0;
        let now = creator.clock.wall();
        for row in rows {
            let unfinished = &creator.unfinished;
            let is_young = row.created_at.plus(grace) > now && !unfinished.is_owed(row.id);
            if unfinished.is_under_way(row.id) || is_young {
                left += 1;
                continue;
            }
            let id = row.id.get();
            match finish(creator, row).await {
                Ok(is_published) => published += usize::from(is_published),
                Err(error) if is_passing(&error) => return Err(error),
                // One that never can be must not hold up those behind it.
                Err(error) => {
                    tracing::error!(broadcast = id, %error, "can't be published");
                    left += 1;
                }
            }
        }
        if is_all {
            return Ok(published);
        }
    }
}

/// Publishes one broadcast, if it exists and is to be; whether it was.
async fn finish(creator: &Creator, row: OutboxRow) -> Result<bool, CreateError> {
    let broadcast = creator.store.broadcast(row.id).await?;
    let active = broadcast.filter(|broadcast| broadcast.status == Status::Active);
    if let Some(row) = &active {
        let first = published(creator, &row.broadcast).await?;
        creator.publish(&row.broadcast, first).await?;
    }
    creator.store.remove_outbox(&row).await?;
    creator.unfinished.forget(row.id);
    Ok(active.is_some())
}

/// How many targets have their record. They get them in order and a part at a time, so what stands
/// before a part of which the latest records of the log hold one is in the log as well. That part
/// is published again, and recognised.
async fn published(creator: &Creator, broadcast: &Broadcast) -> Result<usize, CreateError> {
    let ids = &broadcast.target.ids;
    if broadcast.target.r#type != TargetType::Selected || ids.len() <= PUBLISH_RECORDS_MAX {
        return Ok(0);
    }
    let latest = latest_events(&*creator.log).await?;
    let is_there =
        |user: &String| latest.contains(&event_id(broadcast.id, Some(user), EventType::Created));
    let last = ids.iter().rposition(is_there);
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
