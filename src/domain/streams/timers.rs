//! The timers of the streams, on one wheel: heartbeats, the end of streams whose socket takes
//! nothing, and of those that have to go. Which ones are due together, and how they are spread,
//! follows from the seed alone.

use std::time::Duration;

use super::{BEHIND, BLOCKED, CUT_OFF, CloseReason, QUEUED, SERIAL_MASK, Stream, Streams, enqueue};
use crate::base::{EpochMillis, Moment};
use crate::limits::shard as limits;
use crate::wire::frame;

const TICK_MS: u64 = limits::WHEEL_TICK.as_millis() as u64;

impl<S> Streams<S> {
    /// Everything that is due: heartbeats, streams that have to go, those whose socket has taken
    /// nothing for too long.
    pub fn handle_timers(&mut self, now: Moment, wall: EpochMillis) {
        self.ended.forget(now);
        while let Some(index) = self.wheel.pop_due(now) {
            self.see_off(index, now, wall);
            let Some(stream) = self.slab.get(index) else { continue };
            let due = self.due_of(stream);
            let serial = stream.serial;
            let next = match (stream.is(BLOCKED), due <= now) {
                (true, true) => {
                    self.close(index, CloseReason::Slow);
                    continue;
                }
                (false, true) if !stream.is(QUEUED) => {
                    self.beat(index, wall);
                    self.beat_at(now, serial ^ ticks(now))
                }
                _ => due,
            };
            self.look_again(index, next, now);
        }
    }

    /// When a stream has a heartbeat, or has been blocked for too long.
    pub(super) fn due_of(&self, stream: &Stream<S>) -> Moment {
        let touched = Moment(u64::from(stream.touched) * TICK_MS);
        if stream.is(BLOCKED) {
            return touched.plus(self.options.write_progress);
        }
        self.beat_at(touched, stream.serial ^ stream.touched)
    }

    /// When `handle_timers` has to be called next. `None`: nothing will be due.
    pub fn poll_timeout(&self) -> Option<Moment> {
        [self.wheel.next_deadline(), self.replay.poll_timeout()].into_iter().flatten().min()
    }

    /// A `retry:` for a stream that is put off; differs from call to call.
    pub fn retry_after(&mut self) -> Duration {
        self.serials = self.serials.wrapping_add(1) & SERIAL_MASK;
        if self.is_draining() {
            // It is to find another node soon.
            return self.return_after(self.serials);
        }
        self.jittered(limits::RETRY, self.serials, 50)
    }

    /// Says that the stream lives; with every tenth, where it stands.
    fn beat(&mut self, index: u32, wall: EpochMillis) {
        let Some(stream) = self.slab.get_mut(index) else { return };
        stream.heartbeats = stream.heartbeats.saturating_add(1);
        let has_backlog = stream.private.as_ref().is_some_and(|private| private.backlog.is_some());
        // Who has not come to the ring has not been served what has been read here.
        let is_at_ring = !has_backlog && !stream.is(CUT_OFF | BEHIND);
        if stream.heartbeats >= limits::HEARTBEATS_PER_ID && is_at_ring {
            stream.heartbeats = 0;
            self.write_place(index, wall);
        } else {
            frame::write_heartbeat(&mut stream.private().lead);
        }
        self.counters.heartbeats += 1;
        if let Some(stream) = self.slab.get_mut(index) {
            enqueue(stream, index, &mut self.queue);
        }
    }

    /// When a stream that was written to then gets a heartbeat: after the configured time less up
    /// to a fifth, and together with others. Many at a time cost half as much each, because the
    /// caches know what to do from the second one on.
    pub(super) fn beat_at(&self, touched: Moment, salt: u32) -> Moment {
        let heartbeat = self.options.heartbeat;
        let beats_per_tick = self.slab.len() as u64 * TICK_MS / heartbeat.as_millis() as u64;
        let ticks_together = (limits::HEARTBEATS_TOGETHER / beats_per_tick.max(1)).max(1);
        let together = (limits::WHEEL_TICK * ticks_together as u32)
            .min(limits::HEARTBEATS_WITHIN)
            .min(heartbeat / 10);
        let earliest = heartbeat - heartbeat / 5;
        let spread = spread(self.options.seed, salt, heartbeat / 5 - together);
        let millis = (together.as_millis() as u64).max(1);
        let at = touched.plus(earliest + spread).0;
        Moment(at.next_multiple_of(millis))
    }

    /// `base`, and up to `percent` of it on top.
    pub(super) fn jittered(&self, base: Duration, salt: u32, percent: u32) -> Duration {
        base + spread(self.options.seed, salt, base * percent / 100)
    }
}

pub(super) fn ticks(now: Moment) -> u32 {
    u32::try_from(now.0 / TICK_MS).unwrap_or(u32::MAX)
}

/// A length below `window` that follows from seed and salt alone.
///
/// Source: the finaliser of SplitMix64 (G. Steele, D. Lea, C. Flood, 2014).
pub(super) fn spread(seed: u64, salt: u32, window: Duration) -> Duration {
    let mut bits = seed.wrapping_add(u64::from(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    Duration::from_millis(bits % (window.as_millis() as u64).max(1))
}
