//! Broadcasts of which no message may begin any more, though it is in the ring or in the log:
//! cancelled ones, and those that were ended before their time.
//!
//! What has passed its `expiresAt` is not here: frames carry that time themselves. How long one is
//! remembered goes by the monotonic clock: a calendar that is set ahead makes nobody forget.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::base::{BroadcastId, Moment};
use crate::limits::control::ENDED_MAX;

/// The ended broadcasts of a shard. Bounded by whoever ends them: not without room.
#[derive(Debug, Default)]
pub struct Ended {
    /// Each with the time from which on nothing can bring its messages any more.
    until: HashMap<BroadcastId, Moment, RandomState>,
    soonest: BinaryHeap<Reverse<(Moment, BroadcastId)>>,
    now: Moment,
}

impl Ended {
    pub fn contains(&self, id: BroadcastId) -> bool {
        !self.until.is_empty() && self.until.contains_key(&id)
    }

    pub fn len(&self) -> usize {
        self.until.len()
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// Whether one more may be ended.
    pub fn has_room(&self) -> bool {
        self.len() < ENDED_MAX
    }

    /// The time that it was told last.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Remembers one until then; of several times the latest counts.
    pub fn insert(&mut self, id: BroadcastId, until: Moment) {
        let known = self.until.entry(id).or_insert(Moment(0));
        if *known < until {
            *known = until;
            self.soonest.push(Reverse((until, id)));
        }
    }

    /// Forgets those of which nothing can come any more.
    pub fn forget(&mut self, now: Moment) {
        self.now = now;
        while let Some(Reverse((until, id))) = self.soonest.peek().copied()
            && until <= now
        {
            self.soonest.pop();
            // One that was ended again has a later entry.
            if self.until.get(&id) == Some(&until) {
                self.until.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_forgotten_at_the_latest_of_its_times() {
        let id = |number| BroadcastId::new(number).expect("small");
        let mut ended = Ended::default();
        assert!(!ended.contains(id(1)));
        ended.insert(id(1), Moment(10));
        ended.insert(id(2), Moment(20));
        ended.insert(id(1), Moment(30));
        ended.insert(id(1), Moment(5));
        ended.forget(Moment(20));
        assert!(ended.contains(id(1)) && !ended.contains(id(2)));
        ended.forget(Moment(29));
        assert_eq!(ended.len(), 1);
        ended.forget(Moment(30));
        assert!(ended.is_empty() && ended.soonest.is_empty());
    }

    #[test]
    fn as_many_as_may_be_leave_no_room_until_one_is_forgotten() {
        let mut ended = Ended::default();
        for number in 0..ENDED_MAX as u64 {
            assert!(ended.has_room(), "{number}");
            let until = Moment(10 + number.min(1));
            ended.insert(BroadcastId::new(number).expect("small"), until);
        }
        assert!(!ended.has_room());
        ended.forget(Moment(10));
        assert!(ended.has_room());
    }
}
