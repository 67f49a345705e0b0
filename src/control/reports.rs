//! Takes what the shards report: log lines, readiness, and requests that are no stream.
#![allow(unsafe_code)] // One block: tokio watches the doorbell's descriptor.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::base::Position;
use crate::lane::{Doorbell, FromShard, Receiver};
use crate::limits::shard as limits;

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
    let mut turns = LongTurns::default();
    let mut bad = BadRecords::default();
    loop {
        while let Some(report) = reports.try_recv() {
            match report {
                FromShard::LongTurn { shard, took } => turns.take(shard, took, Instant::now()),
                FromShard::BadRecord { position, reason } => {
                    if bad.takes(Instant::now()) {
                        say_bad(position, &reason);
                    }
                }
                report => take(report, &*handover),
            }
        }
        if bell.may_sleep(|| reports.is_empty()) {
            let rung = tokio::time::timeout(limits::BAD_RECORD_LINES_TIME, rings.readable()).await;
            bell.awake();
            match rung {
                Ok(ring) => {
                    bell.silence();
                    ring?.clear_ready();
                }
                Err(_) => bad.say_unsaid(Instant::now()),
            }
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
        FromShard::Unserved { position, reason } => tracing::debug!(
            topic = position.partition.topic.name(),
            partition = position.partition.index,
            offset = position.offset,
            reason,
            "record is not served by this release"
        ),
        // They were taken where their number is known.
        FromShard::LongTurn { .. } | FromShard::BadRecord { .. } => {}
    }
}

fn say_bad(position: Position, reason: &str) {
    tracing::warn!(
        topic = position.partition.topic.name(),
        partition = position.partition.index,
        offset = position.offset,
        reason,
        "bad record, the next one is served"
    );
}

/// A producer gone wrong writes millions of bad records. The first of a while get a line each, the
/// others one together.
#[derive(Debug, Default)]
struct BadRecords {
    began_at: Option<Instant>,
    said: u32,
    unsaid: u64,
}

impl BadRecords {
    /// Whether this one gets a line.
    fn takes(&mut self, now: Instant) -> bool {
        self.say_unsaid(now);
        self.began_at.get_or_insert(now);
        if self.said < limits::BAD_RECORD_LINES_MAX {
            self.said += 1;
            return true;
        }
        self.unsaid += 1;
        false
    }

    /// Says how many had no line, once their time is over.
    fn say_unsaid(&mut self, now: Instant) {
        let is_over = |at| now.duration_since(at) >= limits::BAD_RECORD_LINES_TIME;
        if self.began_at.is_some_and(is_over) {
            if self.unsaid > 0 {
                tracing::warn!(records = self.unsaid, "more bad records than lines");
            }
            *self = Self::default();
        }
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
    fn the_first_bad_records_of_a_while_get_a_line_each() {
        let began = Instant::now();
        let mut bad = BadRecords::default();
        let mut take = |after_s: u64, count: u32| {
            let now = began + Duration::from_secs(after_s);
            let said = (0..count).filter(|_| bad.takes(now)).count();
            (said as u32, bad.unsaid)
        };
        const MAX: u32 = limits::BAD_RECORD_LINES_MAX;
        assert_eq!(take(0, MAX - 1), (MAX - 1, 0));
        assert_eq!(take(9, 3), (1, 2));
        assert_eq!(take(10, MAX + 5), (MAX, 5));
        assert_eq!(take(19, 1), (0, 6));
        assert_eq!(take(40, 1), (1, 0));
    }

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
