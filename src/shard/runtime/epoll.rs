//! The runtime that needs nothing but epoll: the thread sleeps in `epoll_wait`.

use rustix::event::Timespec;

use super::{Next, Pump, collect};
use crate::limits::shard as limits;
use crate::ports::Clock;

/// Turns the pump until it stops. Fails only if the kernel can't wait any more.
pub fn run(pump: &mut impl Pump, clock: &impl Clock) -> std::io::Result<()> {
    let mut ready = Vec::with_capacity(limits::READY_PER_TURN_MAX);
    loop {
        let at_most = match pump.turn(&ready) {
            Next::Stop => return Ok(()),
            Next::Turn => Some(Timespec::default()),
            Next::Wait(None) => None,
            Next::Wait(Some(deadline)) => {
                let rest = deadline.since(clock.moment());
                Timespec::try_from(rest).ok()
            }
        };
        collect(pump.set(), &mut ready, at_most.as_ref())?;
    }
}
