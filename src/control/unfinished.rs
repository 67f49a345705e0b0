//! What this process is at, and what it has given up in the middle: a relay must leave the one
//! alone and need not wait for the other.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::base::{BroadcastId, EpochMillis};
use crate::limits::relay;

/// Work on broadcasts of which a row tells whoever completes what a crash left. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Unfinished(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    sets: Mutex<Sets>,
    look: Notify,
    /// The time of the last row, in milliseconds.
    last_at: AtomicU64,
}

#[derive(Debug, Default)]
struct Sets {
    /// How many are at each.
    under_way: HashMap<BroadcastId, usize>,
    owed: HashSet<BroadcastId>,
}

impl Sets {
    fn begin(&mut self, id: BroadcastId) {
        *self.under_way.entry(id).or_default() += 1;
    }

    fn end(&mut self, id: BroadcastId) {
        if let Some(count) = self.under_way.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&id);
            }
        }
    }
}

impl Unfinished {
    /// This process begins to work on it.
    pub(super) fn begin(&self, id: BroadcastId) -> UnderWay {
        self.lock().begin(id);
        UnderWay { unfinished: self.clone(), id, is_owed: false, is_done: false }
    }

    /// Whether this process is at it.
    pub(super) fn is_under_way(&self, id: BroadcastId) -> bool {
        self.lock().under_way.contains_key(&id)
    }

    /// Whether this process has given it up in the middle: nobody is at it any more, and no write
    /// that is still on its way can change what a relay makes of it.
    pub(super) fn is_owed(&self, id: BroadcastId) -> bool {
        self.lock().owed.contains(&id)
    }

    /// The time of a row that is written now. Two of one broadcast at one time are one row, which
    /// whoever was slower would settle for both.
    pub(super) fn time_of_row(&self, now: EpochMillis) -> EpochMillis {
        let next = |last: u64| now.0.max(last.saturating_add(1));
        EpochMillis(next(self.0.last_at.update(Ordering::Relaxed, Ordering::Relaxed, next)))
    }

    /// Its row is gone.
    pub(super) fn forget(&self, id: BroadcastId) {
        self.lock().owed.remove(&id);
    }

    /// Waits until some work has ended that may have left a row, but not longer than this.
    pub(super) async fn wait_for(&self, at_most: std::time::Duration) {
        let _ = tokio::time::timeout(at_most, self.0.look.notified()).await;
    }

    fn lock(&self) -> MutexGuard<'_, Sets> {
        // Sets of numbers are whole whoever panicked while holding them.
        self.0.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work that is under way; over when this is dropped, whatever ended it.
pub(super) struct UnderWay {
    unfinished: Unfinished,
    id: BroadcastId,
    /// A row says so, and not all that follows from it is done.
    pub is_owed: bool,
    /// It has left nothing for others.
    pub is_done: bool,
}

impl UnderWay {
    /// It goes on under another id; a row of the old one is not its own.
    pub fn move_to(&mut self, id: BroadcastId) {
        let mut sets = self.unfinished.lock();
        sets.end(self.id);
        sets.begin(id);
        drop(sets);
        self.id = id;
    }

    /// Nothing is left to do.
    pub fn finish(mut self) {
        (self.is_owed, self.is_done) = (false, true);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut sets = self.unfinished.lock();
        sets.end(self.id);
        if self.is_owed && sets.owed.len() < relay::OWED_MAX {
            sets.owed.insert(self.id);
        }
        drop(sets);
        if !self.is_done {
            self.unfinished.0.look.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_are_at_is_under_way_until_both_are_done_and_then_owed_if_one_says_so() {
        let (unfinished, id) = (Unfinished::default(), BroadcastId::new(7).expect("small"));
        let (mut first, second) = (unfinished.begin(id), unfinished.begin(id));
        first.is_owed = true;
        second.finish();
        assert!(unfinished.is_under_way(id) && !unfinished.is_owed(id));
        drop(first);
        assert!(!unfinished.is_under_way(id) && unfinished.is_owed(id));
    }
}
