//! How cells of the inbox merge: by write timestamps that are ranks, so that of several writes of
//! one cell the right one stays, in whatever order they come.
//!
//! A rank is counted from when the broadcast was made, which all writers know: its id says it. An
//! expired cell is forgotten once nothing older stands beside it, so ranks that all counted from
//! one date would keep what has expired for years.

use std::time::Duration;

use crate::base::{BroadcastId, EpochMillis};
use crate::limits::{cursor, inbox as limits};
use crate::ports::{Delivery, Progress};

/// Microseconds of `BroadcastId::EPOCH_MS`.
const EPOCH: i64 = BroadcastId::EPOCH_MS.cast_signed() * 1_000;
/// Of stored cursors, so that no rank is in the future.
const CURSOR_BASE: i64 = EPOCH - cursor::OFFSET_MAX.cast_signed();
/// Deliveries of an attempt have ranks below this.
const DELIVERIES: i64 = 4;

const _: () = assert!(CURSOR_BASE > 0);
const _: () = assert!(EPOCH > cursor::OFFSET_MAX.cast_signed() + EpochMillis::MAX.0.cast_signed());
/// All attempts together span less than five hours.
const _: () = assert!((u32::MAX as i64 + 1) * DELIVERIES <= 5 * 3_600 * 1_000_000);

/// Ranks of the cells of one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ranks {
    base: i64,
}

impl Ranks {
    /// An id that is ahead of the clock says no time, and ScyllaDB would refuse it. Ids of one row
    /// are judged alike unless they were made up to lie just there.
    pub fn of(id: BroadcastId, now: EpochMillis) -> Self {
        let drawn = id.drawn_at();
        let is_time = drawn <= now.plus(limits::ID_AHEAD_MAX);
        Self { base: if is_time { drawn.0.cast_signed() * 1_000 } else { EPOCH } }
    }

    /// The largest attempt stays, and of one attempt what is furthest.
    pub fn progress(self, progress: Progress) -> i64 {
        let delivery = i64::from(delivery_column(progress.delivery));
        self.base + i64::from(progress.attempt) * DELIVERIES + delivery
    }

    /// The smallest offset stays.
    pub fn place(self, offset: u64) -> i64 {
        self.base - offset.min(cursor::OFFSET_MAX).cast_signed()
    }

    /// The earliest stays.
    pub fn delivered(self, at: EpochMillis) -> i64 {
        self.base - at.0.min(EpochMillis::MAX.0).cast_signed()
    }
}

/// The largest offset stays.
pub(super) fn cursor_rank(next: u64) -> i64 {
    CURSOR_BASE + next.min(cursor::OFFSET_MAX).cast_signed()
}

/// The smallest offset stays. No rank is as late as a purge.
pub(super) fn dead_letter_rank(offset: u64) -> i64 {
    EPOCH - offset.min(cursor::OFFSET_MAX).cast_signed()
}

/// As it is stored, in rising order.
pub(super) const fn delivery_column(delivery: Delivery) -> i8 {
    match delivery {
        Delivery::Pending => 0,
        Delivery::Failed => 1,
        Delivery::Delivered => 2,
    }
}

/// How long from now a row is kept, within what databases take. Its end is at most a second late.
pub(super) fn keep_time(keep_until: EpochMillis, now: EpochMillis) -> Duration {
    let end = keep_until.0.div_ceil(1_000).min(limits::END_S_MAX);
    let left = Duration::from_secs(end.saturating_sub(now.0 / 1_000));
    left.clamp(limits::KEEP_MIN, limits::KEEP_MAX)
}

/// Seconds, as `USING TTL` takes them.
pub(super) fn ttl_column(time: Duration) -> i32 {
    i32::try_from(time.as_secs()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: EpochMillis = EpochMillis(1_795_514_400_000);

    fn ranks(id: u64) -> Ranks {
        Ranks::of(BroadcastId::new(id).expect("an id"), NOW)
    }

    #[test]
    fn progress_rises_by_attempt_then_delivery() {
        let ranks = ranks(42);
        let mut last = i64::MIN;
        for attempt in [0, 1, 2, u32::MAX - 1, u32::MAX] {
            for delivery in [Delivery::Pending, Delivery::Failed, Delivery::Delivered] {
                let rank = ranks.progress(Progress { attempt, delivery });
                assert!(rank > last, "{attempt} {delivery:?}");
                last = rank;
            }
        }
    }

    #[test]
    fn places_and_times_fall() {
        let ranks = ranks(42);
        assert!(ranks.place(0) > ranks.place(1));
        assert!(ranks.place(1 << 47) > ranks.place(cursor::OFFSET_MAX));
        assert!(ranks.delivered(NOW) > ranks.delivered(EpochMillis(NOW.0 + 1)));
        assert!(cursor_rank(0) < cursor_rank(1));
        assert!(cursor_rank(1 << 47) < cursor_rank(cursor::OFFSET_MAX));
    }

    /// Whatever an id, an offset or a time says: positive, and not three days ahead.
    #[test]
    fn every_rank_is_taken_by_every_database() {
        let now_us = NOW.0.cast_signed() * 1_000;
        let drawn = |at: u64| (at - BroadcastId::EPOCH_MS) << BroadcastId::RANDOM_BITS;
        let day = 24 * 3_600_000;
        for id in [0, 42, drawn(NOW.0), drawn(NOW.0 + 2 * day), drawn(NOW.0 + 3 * day)]
            .into_iter()
            .chain([BroadcastId::MAX])
        {
            let ranks = ranks(id);
            let furthest = Progress { attempt: u32::MAX, delivery: Delivery::Delivered };
            assert!(ranks.progress(furthest) < now_us + 3 * day.cast_signed() * 1_000);
            assert!(ranks.place(u64::MAX) > 0);
            assert!(ranks.delivered(EpochMillis(u64::MAX)) > 0);
        }
        assert!(cursor_rank(u64::MAX) <= EPOCH);
        assert!(dead_letter_rank(0) > dead_letter_rank(1));
        assert!(dead_letter_rank(u64::MAX) > 0 && dead_letter_rank(0) < now_us);
    }

    #[test]
    fn rows_are_kept_as_long_as_databases_can() {
        let seconds = |keep_until: u64| keep_time(EpochMillis(keep_until), NOW).as_secs();
        assert_eq!(seconds(NOW.0 + 86_400_000), 86_400);
        assert_eq!(seconds(NOW.0 + 86_399_001), 86_400);
        assert_eq!(seconds(0), limits::KEEP_MIN.as_secs());
        assert_eq!(seconds(EpochMillis::MAX.0), limits::KEEP_MAX.as_secs());
        let late = EpochMillis(limits::END_S_MAX * 1_000 - 7_200_000);
        assert_eq!(keep_time(EpochMillis::MAX, late).as_secs(), 7_200);
    }
}
