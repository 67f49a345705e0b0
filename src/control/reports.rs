//! Takes what the shards report: log lines, readiness, and requests that are no stream.
#![allow(unsafe_code)] // One block: tokio watches the doorbell's descriptor.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::inboxes::InboxDesk;
use super::rereads::RereadDesk;
use super::topic::ControlDesk;
use crate::lane::{Doorbell, FromShard, Receiver};
use crate::limits::shard as limits;

/// What becomes of a request that the edge handed over, and of a shard that serves or has drained.
pub trait Handover: Send + Sync {
    /// A connection with the bytes that were read from it.
    fn handle_request(&self, socket: OwnedFd, bytes: Bytes);
    fn handle_serving(&self, shard: u16);
    fn handle_drained(&self, shard: u16);
}

/// Who takes what the shards ask and tell.
pub struct Desks {
    pub inboxes: InboxDesk,
    pub rereads: RereadDesk,
    pub control: ControlDesk,
}

/// Runs until the process ends. The doorbell is that of the lane.
pub async fn run_reports(
    reports: Receiver<FromShard>,
    bell: Arc<Doorbell>,
    handover: Arc<dyn Handover>,
    Desks { inboxes, rereads, control }: Desks,
) -> std::io::Result<()> {
    // SAFETY: the doorbell owns its eventfd, never replaces it, and lives in `rings` by its Arc.
    let rings = unsafe { AsyncFd::register_with_interest(bell.clone(), Interest::READABLE)? };
    let mut turns = LongTurns::default();
    loop {
        while let Some(report) = reports.try_recv() {
            match report {
                FromShard::LongTurn { shard, took } => turns.take(shard, took, Instant::now()),
                FromShard::Ask(ask) => inboxes.take_ask(*ask),
                FromShard::Reread { shard, reread } => rereads.take(shard, reread),
                FromShard::Notes(notes) => inboxes.take_notes(notes),
                FromShard::Applied { shard, applied } => control.take_applied(shard, applied),
                report => take(report, &*handover),
            }
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
        FromShard::Drained { shard } => handover.handle_drained(shard),
        FromShard::BadRecord { position, reason, others } => tracing::warn!(
            topic = position.partition.topic.name(),
            partition = position.partition.index,
            offset = position.offset,
            reason,
            others,
            "bad record, the next one is served"
        ),
        FromShard::Unserved { position, reason, others } => tracing::debug!(
            topic = position.partition.topic.name(),
            partition = position.partition.index,
            offset = position.offset,
            reason,
            others,
            "record is not served by this release"
        ),
        // They were taken before.
        FromShard::LongTurn { .. }
        | FromShard::Ask(_)
        | FromShard::Reread { .. }
        | FromShard::Applied { .. }
        | FromShard::Notes(_) => {}
    }
}

/// Long turns come in hundreds when the machine is busy; their number is in the metrics. The log
/// gets the first, and then the longest once in a while.
#[derive(Debug, Default)]
struct LongTurns {
    said_at: Option<Instant>,
    longest: Duration,
    unsaid: u32,
}

impl LongTurns {
    fn take(&mut self, shard: u16, took: Duration, now: Instant) {
        self.longest = self.longest.max(took);
        if self.said_at.is_some_and(|at| now.duration_since(at) < limits::LONG_TURN_LINES) {
            self.unsaid += 1;
            return;
        }
        let (longest_ms, others) = (self.longest.as_millis() as u64, self.unsaid);
        tracing::warn!(shard, longest_ms, others, "long turn");
        *self = Self { said_at: Some(now), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_turns_are_a_line_once_in_a_while() {
        let began = Instant::now();
        let mut turns = LongTurns::default();
        let mut take = |after_s, took_ms| {
            let now = began + Duration::from_secs(after_s);
            turns.take(0, Duration::from_millis(took_ms), now);
            (turns.unsaid, turns.longest.as_millis())
        };
        // What is said is forgotten.
        assert_eq!(take(0, 60), (0, 0));
        assert_eq!(take(1, 70), (1, 70));
        assert_eq!(take(9, 65), (2, 70));
        assert_eq!(take(10, 60), (0, 0));
        assert_eq!(take(11, 60), (1, 60));
    }
}
