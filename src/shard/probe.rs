//! What a shard shows of itself: plain numbers that it alone writes and anybody reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{CloseReason, StreamCounters};
use crate::edge::DoorCounters;

macro_rules! probe {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// One shard's numbers. Published at the end of a turn.
        #[derive(Debug, Default)]
        pub struct Probe {
            $($(#[$doc])* pub $name: AtomicU64,)+
            /// Closed streams by reason, in the order of `CloseReason::ALL`.
            pub closed: [AtomicU64; CloseReason::ALL.len()],
            /// Time from the append of an event to the end of its fan-out to all that keep up.
            pub fanout: Histogram,
            /// Length of the turns.
            pub turns: Histogram,
        }
    };
}

probe! {
    streams, users, opened, resumed, deliveries, bytes, writes, joined, blocked, heartbeats, gaps,
    ended_skips, ring_frames, ring_bytes, events, bad_records, unserved_records, repeats,
    passed_waiting, streams_handed,
    notes_dropped, unconfirmed_dropped, farewells_refused, replays, reread,
    cursors_refused,
    accepted, heads_refused, heads_evicted, descriptors_exhausted, requests_refused, long_turns,
    /// 1 once the shard serves streams.
    serving,
}

impl Probe {
    pub fn publish(&self, streams: &StreamCounters, door: &DoorCounters) {
        for (cell, value) in [
            (&self.opened, streams.opened),
            (&self.resumed, streams.resumed),
            (&self.deliveries, streams.deliveries),
            (&self.bytes, streams.bytes),
            (&self.writes, streams.writes),
            (&self.joined, streams.joined),
            (&self.blocked, streams.blocked),
            (&self.heartbeats, streams.heartbeats),
            (&self.gaps, streams.gaps),
            (&self.ended_skips, streams.ended_skips),
            (&self.unconfirmed_dropped, streams.unconfirmed_dropped),
            (&self.replays, streams.replays),
            (&self.reread, streams.reread),
            (&self.accepted, door.accepted),
            (&self.heads_refused, door.refused),
            (&self.heads_evicted, door.evicted),
            (&self.descriptors_exhausted, door.exhausted),
        ] {
            set(cell, value);
        }
        for (cell, value) in self.closed.iter().zip(streams.closed) {
            set(cell, value);
        }
    }
}

/// Sets a number that only this thread writes.
pub fn set(cell: &AtomicU64, value: u64) {
    cell.store(value, Ordering::Relaxed);
}

/// Raises a number that only this thread writes: no locked instruction.
pub fn add(cell: &AtomicU64, more: u64) {
    cell.store(cell.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// Upper bounds of the buckets, in microseconds, without the last one, which has none.
pub const BUCKETS_MICROS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// A histogram that one thread writes.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_MICROS.partition_point(|bound| *bound < micros);
        add(&self.buckets[bucket], 1);
        add(&self.sum_micros, micros);
    }

    /// Counts of the buckets, and the sum of all in seconds.
    pub fn read(&self) -> ([u64; BUCKETS_MICROS.len() + 1], f64) {
        let counts = std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed));
        (counts, self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6)
    }
}
