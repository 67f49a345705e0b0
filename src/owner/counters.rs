//! What the owner counts; read by the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::dead::DeadClass;

/// Written on the control threads, read by anybody.
#[derive(Debug, Default)]
pub struct OwnerCounters {
    /// Partitions owned now.
    pub partitions: AtomicU64,
    /// Records of them that are not durable yet.
    pub lag: AtomicU64,
    /// Rows of inboxes and of group messages written.
    pub rows: AtomicU64,
    /// Records that were parked, and that were published again.
    pub parked: AtomicU64,
    pub published_again: AtomicU64,
    /// Tries of the store that failed.
    pub retries: AtomicU64,
    /// Commits refused because the partition had gone to another node.
    pub commits_lost: AtomicU64,
    /// Offsets that the log had lost before they were kept.
    pub skipped_records: AtomicU64,
    /// Dead letters written, in the order of `DeadClass::ALL`.
    pub dead_letters: [AtomicU64; DeadClass::ALL.len()],
    /// Those that were read back, whoever wrote them.
    pub dead_letter_rows: AtomicU64,
    /// Records of their topics that are not read back yet.
    pub dead_letter_lag: AtomicU64,
    /// Tries to write some that failed.
    pub dead_letter_retries: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

pub(super) fn set(gauge: &AtomicU64, to: u64) {
    gauge.store(to, Ordering::Relaxed);
}
