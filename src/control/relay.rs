//! The relay: publishes what stands in the outbox and nobody is publishing, because a node crashed
//! in the middle of it, or a backend was away.
//!
//! Publishing again what is published does no harm: its records are recognised as repeats. So the
//! relay errs to that side, but leaves alone what may well be under way: its own node's creates,
//! and rows so young that another node may be at them, unless this node knows that nobody is.

use std::sync::Arc;
use std::time::Duration;

use super::create::{CreateError, Creator};
use crate::base::Status;
use crate::limits::relay as limits;
use crate::ports::{Backoff, LogError, OutboxRow, StoreError};

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
    if let Some(broadcast) = &active {
        creator.publish(&broadcast.broadcast).await?;
    }
    creator.store.remove_outbox(&row).await?;
    creator.unfinished.forget(row.id);
    Ok(active.is_some())
}

fn is_passing(error: &CreateError) -> bool {
    matches!(error, CreateError::Store(StoreError::Away(_)) | CreateError::Log(LogError::Away(_)))
}
