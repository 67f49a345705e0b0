//! The runtime seam: "wait until the set is ready, or until a deadline".
//!
//! A shard is a synchronous state machine, the `Pump`; what waits for it is exchangeable: a glommio
//! executor, or a plain `epoll_wait` where io_uring is not to be had. Both live on the shard's
//! pinned thread, and a pump can't tell which of them turns it.

mod epoll;
mod glommio;

use std::os::fd::BorrowedFd;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{Event, wait};
use rustix::io::Errno;

use self::glommio::Executor;
use crate::base::Moment;
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

/// Which runtime a shard is to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuntimeWanted {
    /// glommio where it is to be had, else epoll.
    Auto,
    Only(RuntimeKind),
}

/// A runtime by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuntimeKind {
    Glommio,
    Epoll,
}

impl RuntimeKind {
    pub const ALL: [Self; 2] = [Self::Glommio, Self::Epoll];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Glommio => "glommio",
            Self::Epoll => "epoll",
        }
    }
}

/// Why glommio is not to be had here, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum NoGlommio {
    #[error("this kernel, {release}, is older than 5.8; run a newer one")]
    Kernel { release: String },
    #[error(
        "the kernel refuses io_uring ({error}); allow io_uring_setup, io_uring_enter and \
         io_uring_register in the container's seccomp profile, and set the sysctl \
         kernel.io_uring_disabled to 0"
    )]
    Refused { error: std::io::Error },
    #[error(
        "this process may lock {bytes} bytes of memory, and {least} are needed; raise the limit \
         (ulimit -l, LimitMEMLOCK of systemd, --ulimit memlock of a container)"
    )]
    Memlock { bytes: u64, least: u64 },
    #[error("its executor can't be made: {0}")]
    Executor(String),
}

/// What waits for one shard. Made once, on the thread that it is for.
pub enum Runtime {
    Glommio(Executor),
    Epoll,
}

impl Runtime {
    /// Makes the one that is wanted. With `Auto`, the second value says why it is epoll.
    pub fn make(wanted: RuntimeWanted) -> Result<(Self, Option<NoGlommio>), NoGlommio> {
        match wanted {
            RuntimeWanted::Only(RuntimeKind::Epoll) => Ok((Self::Epoll, None)),
            RuntimeWanted::Only(RuntimeKind::Glommio) => {
                Executor::make().map(|executor| (Self::Glommio(executor), None))
            }
            RuntimeWanted::Auto => match Executor::make() {
                Ok(executor) => Ok((Self::Glommio(executor), None)),
                Err(reason) => Ok((Self::Epoll, Some(reason))),
            },
        }
    }

    pub const fn kind(&self) -> RuntimeKind {
        match self {
            Self::Glommio(_) => RuntimeKind::Glommio,
            Self::Epoll => RuntimeKind::Epoll,
        }
    }

    /// Turns the pump until it stops. Fails only if the kernel can't wait any more.
    pub fn run(self, pump: &mut impl Pump, clock: &impl Clock) -> std::io::Result<()> {
        match self {
            Self::Glommio(executor) => executor.run(pump, clock),
            Self::Epoll => epoll::run(pump, clock),
        }
    }
}

/// Puts into `ready` what the set reports, as much as fits; waits at most so long for the first of
/// it, `None`: for ever. A signal ends the wait.
fn collect(
    set: BorrowedFd<'_>,
    ready: &mut Vec<Event>,
    at_most: Option<&Timespec>,
) -> std::io::Result<()> {
    ready.clear();
    match wait(set, spare_capacity(ready), at_most) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
