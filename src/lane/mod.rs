//! Floor 2: lanes, the only doors between threads.
//!
//! A lane is a bounded lock-free queue with any number of senders and one receiver. A thread that
//! receives has one `Doorbell` for all its lanes; it is rung only while its owner has said that it
//! sleeps. A refusal is a value: the item comes back to the sender, who knows what it means.

mod doorbell;
mod messages;
mod sleep;
mod sync;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

pub use doorbell::Doorbell;
pub use messages::{Ask, FromShard, Order, ToShard};

/// Why a lane did not take an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RefusalReason {
    /// Recoverable, by the sender: the receiver works and has no room. Wait, or say no.
    #[error("full")]
    Full,
    /// Terminal: the receiver is gone, and with it its thread. The process is ending.
    #[error("closed")]
    Closed,
}

/// An item that comes back.
#[derive(Debug)]
pub struct Refusal<T> {
    pub item: T,
    pub reason: RefusalReason,
}

/// Items that came back to the senders of one lane since the start, by reason.
#[derive(Debug, Default)]
pub struct Refusals {
    full: AtomicU64,
    closed: AtomicU64,
}

#[derive(Debug)]
struct Shared<T> {
    name: &'static str,
    queue: ArrayQueue<T>,
    closed: AtomicBool,
    refusals: Arc<Refusals>,
    bell: Arc<Doorbell>,
}

/// The sending end; cloned for each sender.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving end. Dropping it closes the lane.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// A lane of this capacity to the owner of the doorbell. The name is that of metrics.
pub fn lane<T>(
    name: &'static str,
    capacity: usize,
    bell: Arc<Doorbell>,
) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        name,
        queue: ArrayQueue::new(capacity),
        closed: AtomicBool::new(false),
        refusals: Arc::default(),
        bell,
    });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

impl RefusalReason {
    pub const ALL: [Self; 2] = [Self::Full, Self::Closed];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Closed => "closed",
        }
    }
}

impl Refusals {
    pub fn of(&self, reason: RefusalReason) -> &AtomicU64 {
        match reason {
            RefusalReason::Full => &self.full,
            RefusalReason::Closed => &self.closed,
        }
    }
}

impl<T> Shared<T> {
    fn refuse(&self, item: T, reason: RefusalReason) -> Refusal<T> {
        self.refusals.of(reason).fetch_add(1, Ordering::Relaxed);
        Refusal { item, reason }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> Sender<T> {
    /// Never waits. Items of one sender arrive in the order in which they were taken.
    pub fn try_send(&self, item: T) -> Result<(), Refusal<T>> {
        let shared = &*self.shared;
        if shared.closed.load(Ordering::Acquire) {
            return Err(shared.refuse(item, RefusalReason::Closed));
        }
        match shared.queue.push(item) {
            Ok(()) => {
                shared.bell.ring_if_asleep();
                Ok(())
            }
            Err(item) => Err(shared.refuse(item, RefusalReason::Full)),
        }
    }

    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Items that wait now.
    pub fn depth(&self) -> usize {
        self.shared.queue.len()
    }

    /// For metrics: outlives the lane.
    pub fn refusals(&self) -> Arc<Refusals> {
        self.shared.refusals.clone()
    }
}

impl<T> Receiver<T> {
    pub fn try_recv(&self) -> Option<T> {
        self.shared.queue.pop()
    }

    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    pub fn bell(&self) -> &Arc<Doorbell> {
        &self.shared.bell
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        while self.shared.queue.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_lane_and_a_closed_one_give_the_item_back() {
        let bell = Arc::new(Doorbell::new().expect("an eventfd"));
        let (sender, receiver) = lane("test", 2, bell);
        assert!(sender.try_send(1).is_ok() && sender.try_send(2).is_ok());
        let refusal = sender.try_send(3).expect_err("no room");
        assert_eq!((refusal.item, refusal.reason), (3, RefusalReason::Full));
        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Some(1), Some(2)));
        drop(receiver);
        let refusal = sender.try_send(4).expect_err("nobody there");
        assert_eq!((refusal.item, refusal.reason), (4, RefusalReason::Closed));
        let refused = |reason| sender.refusals().of(reason).load(Ordering::Relaxed);
        assert_eq!(RefusalReason::ALL.map(refused), [1, 1]);
    }

    #[test]
    fn nothing_is_left_in_the_lane_while_the_receiver_sleeps() {
        const ITEMS: u64 = 20_000;
        let bell = Arc::new(Doorbell::new().expect("an eventfd"));
        let (sender, receiver) = lane("test", 8, bell.clone());
        let sending = std::thread::spawn(move || {
            for mut item in 0..ITEMS {
                while let Err(refusal) = sender.try_send(item) {
                    assert_eq!(refusal.reason, RefusalReason::Full);
                    item = refusal.item;
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < ITEMS {
            while let Some(item) = receiver.try_recv() {
                assert_eq!(item, next);
                next += 1;
            }
            if next < ITEMS && bell.may_sleep(|| receiver.is_empty()) {
                assert!(bell.wait(std::time::Duration::from_secs(10)), "woken before the deadline");
            }
        }
        sending.join().expect("the sender ends");
    }
}
