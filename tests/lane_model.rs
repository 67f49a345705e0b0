//! The sleep-and-ring protocol of lanes under every interleaving, weak memory included.
//!
//! The protocol's own source is compiled here with the atomics of the loom crate, which runs it
//! once for each order that the memory model allows. A wake-up is lost if at the end the receiver
//! sleeps, an item is in the lane, and the bell was not rung. One round is enough: a receiver that
//! was woken starts from where it started here.

/// In place of the lane's own.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../src/lane/sleep.rs"]
mod sleep;

use std::sync::atomic::{AtomicU64 as Count, Ordering as CountOrdering};

use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use sleep::Sleep;
use sync::{AtomicBool, Ordering};

/// Items are a count, as the protocol sees of a lane only whether it is empty.
struct Model {
    sleep: Sleep,
    items: AtomicUsize,
    rung: AtomicBool,
}

impl Model {
    fn send(&self) {
        self.items.fetch_add(1, Ordering::Release);
        if self.sleep.must_wake() {
            self.rung.store(true, Ordering::Release);
        }
    }

    /// Takes items until it has so many or may sleep. Whether it sleeps. `looks_again`: at the
    /// lanes, once it has said that it sleeps.
    fn receive(&self, wanted: usize, looks_again: bool) -> bool {
        let mut taken = 0;
        loop {
            taken += self.items.swap(0, Ordering::Acquire);
            if taken == wanted {
                return false;
            }
            let is_empty = || !looks_again || self.items.load(Ordering::Relaxed) == 0;
            if self.sleep.may_sleep(is_empty) {
                return true;
            }
        }
    }
}

/// Runs of the model, and those in which a wake-up was lost.
fn run(senders: usize, looks_again: bool) -> (u64, u64) {
    static RUNS: [Count; 2] = [Count::new(0), Count::new(0)];
    static LOST: [Count; 2] = [Count::new(0), Count::new(0)];
    let place = usize::from(looks_again);
    let mut builder = loom::model::Builder::new();
    // With more than one sender the orders of all steps are millions.
    builder.preemption_bound = (senders > 1).then_some(3);
    builder.check(move || {
        let sleep = Sleep::new();
        let (items, rung) = (AtomicUsize::new(0), AtomicBool::new(false));
        let model = Arc::new(Model { sleep, items, rung });
        let sending: Vec<_> = (0..senders)
            .map(|_| {
                let model = model.clone();
                thread::spawn(move || model.send())
            })
            .collect();
        let sleeps = model.receive(senders, looks_again);
        sending.into_iter().for_each(|sender| sender.join().expect("no panic"));
        let has_items = model.items.load(Ordering::Acquire) > 0;
        RUNS[place].fetch_add(1, CountOrdering::Relaxed);
        if sleeps && has_items && !model.rung.load(Ordering::Acquire) {
            LOST[place].fetch_add(1, CountOrdering::Relaxed);
        }
    });
    (RUNS[place].load(CountOrdering::Relaxed), LOST[place].load(CountOrdering::Relaxed))
}

#[test]
fn no_item_is_left_to_a_receiver_that_sleeps() {
    for senders in [1, 2] {
        let (runs, lost) = run(senders, true);
        assert!(runs > 10, "{runs}");
        assert_eq!(lost, 0, "of {runs}");
    }
}

/// The model can fail.
#[test]
fn without_the_second_look_a_wake_up_is_lost() {
    let (runs, lost) = run(1, false);
    assert!(lost > 0, "in {runs} runs");
}
