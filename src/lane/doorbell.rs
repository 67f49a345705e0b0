//! The doorbell of a receiving thread: an eventfd that is rung only while the thread sleeps.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::sleep::Sleep;

#[derive(Debug)]
pub struct Doorbell {
    event: OwnedFd,
    sleep: Sleep,
}

impl Doorbell {
    /// Fails when the process has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, sleep: Sleep::new() })
    }

    /// For senders, once their item is in the lane: wakes the owner if it sleeps.
    pub fn ring_if_asleep(&self) {
        if self.sleep.must_wake() {
            self.ring();
        }
    }

    /// Rings in any case. A bell that rings already stays so.
    pub fn ring(&self) {
        // The counter can only be full after 2^64 - 2 rings that nobody heard.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// For the owner: says that it sleeps, and whether it may: only if its lanes are empty after
    /// that.
    pub fn may_sleep(&self, lanes_are_empty: impl FnOnce() -> bool) -> bool {
        self.sleep.may_sleep(lanes_are_empty)
    }

    /// For the owner, once it is awake for whatever reason: stops the ringing.
    pub fn awake(&self) {
        self.sleep.awake();
    }

    /// For the owner, when the descriptor is readable.
    pub fn silence(&self) {
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
    }

    /// Waits for a ring without any other descriptor. Whether it came in time.
    pub fn wait(&self, at_most: Duration) -> bool {
        let timeout = Timespec::try_from(at_most).ok();
        let rung =
            poll(&mut [PollFd::new(&self.event, PollFlags::IN)], timeout.as_ref()).unwrap_or(0) > 0;
        self.awake();
        self.silence();
        rung
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
