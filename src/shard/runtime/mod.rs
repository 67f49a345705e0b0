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

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::sync::{Arc, mpsc};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};

    use super::*;
    use crate::lane::Doorbell;
    use crate::ports::SystemClock;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A pump that does what a closure says, which hears whether the doorbell has rung.
    struct Scripted<F> {
        set: OwnedFd,
        bell: Arc<Doorbell>,
        script: F,
    }

    impl<F: FnMut(bool) -> Next> Pump for Scripted<F> {
        fn set(&self) -> BorrowedFd<'_> {
            self.set.as_fd()
        }

        fn turn(&mut self, ready: &[Event]) -> Next {
            let has_rung = !ready.is_empty();
            if has_rung {
                self.bell.silence();
            }
            (self.script)(has_rung)
        }
    }

    /// Runs the script on a thread of its own.
    fn run(
        kind: RuntimeKind,
        bell: &Arc<Doorbell>,
        script: impl FnMut(bool) -> Next + Send + 'static,
    ) -> JoinHandle<()> {
        let bell = bell.clone();
        std::thread::spawn(move || {
            let (runtime, _) = Runtime::make(RuntimeWanted::Only(kind)).expect("it is to be had");
            let set = create(CreateFlags::CLOEXEC).expect("a set");
            add(&set, &*bell, EventData::new_u64(0), EventFlags::IN).expect("it is watched");
            let mut pump = Scripted { set, bell, script };
            runtime.run(&mut pump, &SystemClock).expect("the kernel can wait");
        })
    }

    /// Both, unless this machine has only one.
    fn each(test: impl Fn(RuntimeKind, Arc<Doorbell>)) {
        for kind in RuntimeKind::ALL {
            let made = std::thread::spawn(move || {
                Runtime::make(RuntimeWanted::Only(kind))
                    .map(drop)
                    .map_err(|error| error.to_string())
            });
            match made.join().expect("it says so without a panic") {
                Ok(()) => test(kind, Arc::new(Doorbell::new().expect("a doorbell"))),
                Err(reason) => harness::skip("no glommio", &reason),
            }
        }
    }

    #[test]
    fn each_ring_ends_a_wait() {
        each(|kind, bell| {
            const RINGS: usize = 500;
            let (heard, hears) = mpsc::channel();
            let mut rings = 0;
            let mut turns = 0;
            let thread = run(kind, &bell, move |has_rung| {
                turns += 1;
                assert!(turns < 4 * RINGS, "it sleeps between the rings");
                if has_rung {
                    rings += 1;
                    heard.send(rings).expect("somebody counts");
                }
                if rings == RINGS { Next::Stop } else { Next::Wait(None) }
            });
            for expected in 1..=RINGS {
                bell.ring();
                assert_eq!(hears.recv_timeout(PATIENCE), Ok(expected), "{kind:?}");
            }
            thread.join().expect("it stops");
        });
    }

    #[test]
    fn a_deadline_ends_a_wait_and_a_ring_the_next_one() {
        each(|kind, bell| {
            const WAITS: usize = 5;
            const WAIT: Duration = Duration::from_millis(25);
            let (passed, passes) = mpsc::channel();
            let mut deadline: Option<Moment> = None;
            let mut waits = 0;
            let mut turns = 0;
            let thread = run(kind, &bell, move |has_rung| {
                turns += 1;
                assert!(turns < 100, "it sleeps between the turns");
                if has_rung {
                    return Next::Stop;
                }
                let now = SystemClock.moment();
                if deadline.is_some_and(|deadline| deadline <= now) {
                    deadline = None;
                    waits += 1;
                }
                if waits == WAITS {
                    passed.send(()).expect("somebody listens");
                    return Next::Wait(None);
                }
                Next::Wait(Some(*deadline.get_or_insert(now.plus(WAIT))))
            });
            let began = Instant::now();
            assert_eq!(passes.recv_timeout(PATIENCE), Ok(()), "{kind:?}");
            assert!(began.elapsed() >= WAIT * (WAITS as u32 - 1), "{kind:?} waits its time");
            bell.ring();
            thread.join().expect("a set that did not fire before does now");
        });
    }

    #[test]
    fn a_busy_pump_hears_what_is_ready_and_does_not_sleep() {
        each(|kind, bell| {
            const TURNS: usize = 20_000;
            let (says, hears) = mpsc::channel();
            let mut turns = 0;
            let mut has_heard = false;
            let thread = run(kind, &bell, move |has_rung| {
                turns += 1;
                has_heard |= has_rung;
                let is_done = turns >= TURNS && has_heard;
                if turns == 1 || is_done {
                    says.send(()).expect("somebody listens");
                }
                if is_done { Next::Stop } else { Next::Turn }
            });
            assert_eq!(hears.recv_timeout(PATIENCE), Ok(()), "{kind:?} begins");
            bell.ring();
            assert_eq!(hears.recv_timeout(PATIENCE), Ok(()), "{kind:?} does not sleep");
            thread.join().expect("it stops");
        });
    }

    #[test]
    fn a_pump_that_panics_ends_its_thread() {
        each(|kind, bell| {
            let mut turns = 0;
            let thread = run(kind, &bell, move |_| {
                turns += 1;
                assert!(turns < 3, "as was told");
                Next::Wait(Some(SystemClock.moment().plus(Duration::from_millis(1))))
            });
            assert!(thread.join().is_err(), "{kind:?}");
        });
    }
}
