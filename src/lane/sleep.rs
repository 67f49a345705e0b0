//! The sleep-and-ring protocol, apart from what rings.
//!
//! It is Dekker's: the receiver says that it sleeps, then looks at its lanes once more; a sender
//! puts its item in, then looks whether the receiver sleeps. With a full fence between each one's
//! two steps, at least one of them sees the other. `tests/lane_model.rs` runs this very file under
//! a checker that tries every interleaving.

use super::sync::{AtomicBool, Ordering, fence};

/// Whether the receiver sleeps.
#[derive(Debug)]
pub struct Sleep {
    asleep: AtomicBool,
}

impl Sleep {
    pub fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }

    /// For senders, once the item is in: whether the receiver has to be woken, by this sender.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }

    /// For the receiver: says that it sleeps, and whether it may: only if its lanes are empty after
    /// that.
    pub fn may_sleep(&self, lanes_are_empty: impl FnOnce() -> bool) -> bool {
        // A store would do, but the model knows the order of swaps only.
        self.asleep.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if lanes_are_empty() {
            return true;
        }
        self.awake();
        false
    }

    /// For the receiver, once it is awake for whatever reason.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}
