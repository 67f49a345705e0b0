//! What this process is at, and what it has given up in the middle: a relay must leave the one
//! alone and need not wait for the other.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::base::BroadcastId;
use crate::limits::relay;

/// Work on broadcasts of which a row tells whoever completes what a crash left.
#[derive(Debug, Default)]
pub struct Unfinished {
    sets: Mutex<Sets>,
    look: Notify,
}

#[derive(Debug, Default)]
struct Sets {
    under_way: HashSet<BroadcastId>,
    owed: HashSet<BroadcastId>,
}

impl Unfinished {
    /// This process begins to work on it.
    pub(super) fn begin(&self, id: BroadcastId) -> UnderWay<'_> {
        self.lock().under_way.insert(id);
        UnderWay { unfinished: self, id, is_owed: false, is_done: false }
    }

    /// Whether this process is at it.
    pub(super) fn is_under_way(&self, id: BroadcastId) -> bool {
        self.lock().under_way.contains(&id)
    }

    /// Whether this process has given it up in the middle: nobody is at it any more, and no write
    /// of its status is still on its way.
    pub(super) fn is_owed(&self, id: BroadcastId) -> bool {
        self.lock().owed.contains(&id)
    }

    /// Its row is gone.
    pub(super) fn forget(&self, id: BroadcastId) {
        self.lock().owed.remove(&id);
    }

    /// Waits until some work has ended that may have left a row, but not longer than this.
    pub(super) async fn wait_for(&self, at_most: std::time::Duration) {
        let _ = tokio::time::timeout(at_most, self.look.notified()).await;
    }

    fn lock(&self) -> MutexGuard<'_, Sets> {
        // Sets of numbers are whole whoever panicked while holding them.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work that is under way; over when this is dropped, whatever ended it.
pub(super) struct UnderWay<'a> {
    unfinished: &'a Unfinished,
    id: BroadcastId,
    /// Its status is written, and not all that follows from it is done.
    pub is_owed: bool,
    /// It has left nothing for others.
    pub is_done: bool,
}

impl UnderWay<'_> {
    /// It goes on under another id; a row of the old one is not its own.
    pub fn move_to(&mut self, id: BroadcastId) {
        let mut sets = self.unfinished.lock();
        sets.under_way.remove(&self.id);
        sets.under_way.insert(id);
        self.id = id;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut sets = self.unfinished.lock();
        sets.under_way.remove(&self.id);
        if self.is_owed && sets.owed.len() < relay::OWED_MAX {
            sets.owed.insert(self.id);
        }
        drop(sets);
        if !self.is_done {
            self.unfinished.look.notify_one();
        }
    }
}
