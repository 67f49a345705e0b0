//! Whose turn it is to be written to: those that replay, from ring, log or store, are a share of
//! all, so that what is live does not wait for what is late.

use super::{BEHIND, CLOSING, CUT_OFF, Stream, Streams};
use crate::limits::shard as limits;

impl<S> Streams<S> {
    /// A turn begins, in which those that replay have their share.
    pub fn handle_turn(&mut self) {
        (self.plan.looked_at, self.plan.replayed) = (0, 0);
    }

    /// The next stream that has something to write; `None` also when only those are left that
    /// replay, and they have had their share of this turn.
    pub(super) fn next_queued(&mut self) -> Option<u32> {
        self.plan.is_late = false;
        self.turns = self.turns.wrapping_add(1);
        let may_replay = self.plan.looked_at < limits::REPLAY_EVENTS_PER_TURN_MAX
            && self.plan.replayed < limits::REPLAY_WRITES_PER_TURN_MAX;
        if may_replay && self.turns.is_multiple_of(limits::REPLAY_SHARE) {
            let late = self.next_that_replays();
            if late.is_some() {
                return late;
            }
        }
        while let Some(index) = self.queue.pop_front() {
            if !self.slab.get(index).is_some_and(replays) {
                return Some(index);
            }
            self.replay_queue.push_back(index);
        }
        if may_replay { self.next_that_replays() } else { None }
    }

    fn next_that_replays(&mut self) -> Option<u32> {
        let late = self.replay_queue.pop_front();
        self.plan.is_late = late.is_some();
        late
    }
}

/// Whether what comes next of the stream is not live: it is in its backlog or in the log, or much
/// of the ring lies between it and the last event that is for it.
fn replays<S>(stream: &Stream<S>) -> bool {
    let has_backlog = stream.private.as_deref().is_some_and(|private| private.backlog.is_some());
    let is_far = stream.is(BEHIND) && stream.until.saturating_sub(stream.at) > limits::LIVE_FRAMES;
    !stream.is(CLOSING) && (has_backlog || stream.is(CUT_OFF) || is_far)
}
