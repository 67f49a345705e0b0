//! The runtime seam: "wait until the set is ready, or until a deadline".
//!
//! A shard is a synchronous state machine, the `Pump`; what waits for it is exchangeable. Here is
//! the plain `epoll_wait`. Lives on the shard's pinned thread.

use std::os::fd::BorrowedFd;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use rustix::io::Errno;

use crate::base::Moment;
use crate::limits::shard as limits;
use crate::ports::Clock;

/// When a pump wants its next turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// At once: it has more to do.
    Turn,
    /// When a descriptor is ready, or at this moment. It has told its senders that it sleeps.
    Wait(Option<Moment>),
    /// Never.
    Stop,
}

pub trait Pump {
    /// The epoll set, which holds all that can wake it.
    fn set(&self) -> BorrowedFd<'_>;
    /// One bounded turn; `ready` is what the set reported.
    fn turn(&mut self, ready: &[Event]) -> Next;
}

/// Turns the pump until it stops. Fails only if the kernel can't wait any more.
pub fn run_epoll(pump: &mut impl Pump, clock: &impl Clock) -> std::io::Result<()> {
    let mut ready = Vec::with_capacity(limits::READY_PER_TURN_MAX);
    loop {
        let timeout = match pump.turn(&ready) {
            Next::Stop => return Ok(()),
            Next::Turn => Some(Timespec::default()),
            Next::Wait(None) => None,
            Next::Wait(Some(deadline)) => {
                let rest = deadline.since(clock.moment());
                Timespec::try_from(rest).ok()
            }
        };
        ready.clear();
        match epoll::wait(pump.set(), spare_capacity(&mut ready), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
