//! Takes what the shards report: log lines, readiness, and requests that are no stream.
#![allow(unsafe_code)] // One block: tokio watches the doorbell's descriptor.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::lane::{Doorbell, FromShard, Receiver};

/// What becomes of a request that the edge handed over, and of a shard that serves.
pub trait Handover: Send + Sync {
    /// A connection with the bytes that were read from it.
    fn handle_request(&self, socket: OwnedFd, bytes: Bytes);
    fn handle_serving(&self, shard: u16);
}

/// Runs until the process ends. The doorbell is that of the lane.
pub async fn run_reports(
    reports: Receiver<FromShard>,
    bell: Arc<Doorbell>,
    handover: Arc<dyn Handover>,
) -> std::io::Result<()> {
    // SAFETY: the doorbell owns its eventfd, never replaces it, and lives in `rings` by its Arc.
    let rings = unsafe { AsyncFd::register_with_interest(bell.clone(), Interest::READABLE)? };
    loop {
        while let Some(report) = reports.try_recv() {
            take(report, &*handover);
        }
        if bell.may_sleep(|| reports.is_empty()) {
            let mut ring = rings.readable().await?;
            bell.awake();
            bell.silence();
            ring.clear_ready();
        }
    }
}

fn take(report: FromShard, handover: &dyn Handover) {
    match report {
        FromShard::Request { socket, bytes } => handover.handle_request(socket, bytes),
        FromShard::Serving { shard } => {
            tracing::info!(shard, "serving");
            handover.handle_serving(shard);
        }
        FromShard::BadRecord { position, reason } => tracing::warn!(
            topic = position.partition.topic.name(),
            partition = position.partition.index,
            offset = position.offset,
            reason,
            "bad record, the next one is served"
        ),
        FromShard::Unserved { position, reason } => tracing::debug!(
            topic = position.partition.topic.name(),
            partition = position.partition.index,
            offset = position.offset,
            reason,
            "record is not served by this release"
        ),
        FromShard::LongTurn { shard, took } => {
            tracing::warn!(shard, took_ms = took.as_millis() as u64, "long turn");
        }
    }
}
