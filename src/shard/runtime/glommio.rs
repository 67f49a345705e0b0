//! The runtime on glommio: the thread sleeps in an executor on io_uring.
//!
//! glommio 0.9 knows no readiness of descriptors that it did not open, but a stream that is made
//! from any descriptor arms a poll on it at once, and its first read returns when that has fired,
//! here with ENOTSOCK. So a wait is: make such a stream of a duplicate of the epoll set, and read.
//!
//! What keeps it sound: a task's waker never leaves this thread (the doorbell is a descriptor in
//! the set); a task ends by returning and is never cancelled; an executor is made once. A parked
//! executor may have missed that a task can run, so a ticker wakes it. The ticker is a task too, so
//! what keeps all tasks from running is ruled out: the preempt timer never fires.
#![allow(unsafe_code)] // Two blocks: a descriptor given away, and a ring asked for and not used.

use std::cell::Cell;
use std::ffi::CString;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::os::fd::{BorrowedFd, FromRawFd as _, IntoRawFd as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use futures_io::AsyncRead as _;
use glommio::net::TcpStream;
use glommio::timer::Timer;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};
use rustix::event::Timespec;
use rustix::io_uring::{io_uring_params, io_uring_setup};
use rustix::process::{Resource, getrlimit};
use rustix::thread::set_name;

use super::{Next, NoGlommio, Pump, collect};
use crate::limits::{glommio as own_limits, shard as limits};
use crate::ports::Clock;

/// An executor of this thread.
pub struct Executor(LocalExecutor);

impl Executor {
    /// Fails where glommio is not to be had.
    pub fn make() -> Result<Self, NoGlommio> {
        look_at_kernel()?;
        // The executor starts a thread for blocking calls, of which a shard has none. It gets the
        // name that this one has.
        let _ = set_name(c"glommio-helper");
        // Without io_uring it panics in places; what was looked at before is why it should not.
        let made = catch_unwind(AssertUnwindSafe(|| {
            // The thread is pinned already, and what the executor starts inherits that.
            LocalExecutorBuilder::new(Placement::Unbound)
                .io_memory(own_limits::IO_MEMORY)
                .preempt_timer(own_limits::PREEMPT_TIMER)
                .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
                .make()
        }));
        let own = std::thread::current().name().and_then(|name| CString::new(name).ok());
        let _ = set_name(&own.unwrap_or_default());
        match made {
            Ok(Ok(executor)) => Ok(Self(executor)),
            Ok(Err(error)) => Err(NoGlommio::Executor(error.to_string())),
            Err(_) => Err(NoGlommio::Executor("it panicked".to_owned())),
        }
    }

    /// Turns the pump until it stops. Fails only if the kernel can't wait any more.
    pub fn run(self, pump: &mut impl Pump, clock: &impl Clock) -> std::io::Result<()> {
        self.0.run(async {
            let is_done = Rc::new(Cell::new(false));
            let ticker = glommio::spawn_local(tick(is_done.clone()));
            let ended = turn_until_stop(pump, clock).await;
            is_done.set(true);
            ticker.await;
            ended
        })
    }
}

/// Whether the kernel has what an executor needs. glommio finds out by ending the process.
fn look_at_kernel() -> Result<(), NoGlommio> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if version(&release).is_some_and(|version| version < own_limits::KERNEL_MIN) {
        return Err(NoGlommio::Kernel { release });
    }
    let mut params = io_uring_params::default();
    // SAFETY: no flag is set that would name a descriptor; the ring is closed unused.
    let ring = unsafe { io_uring_setup(1, &mut params) };
    ring.map_err(|error| NoGlommio::Refused { error: error.into() })?;
    let least = own_limits::MEMLOCK_MIN;
    match getrlimit(Resource::Memlock).current {
        Some(bytes) if bytes < least => Err(NoGlommio::Memlock { bytes, least }),
        _ => Ok(()),
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Wakes the executor now and then.
async fn tick(is_done: Rc<Cell<bool>>) {
    while !is_done.get() {
        Timer::new(own_limits::GUARD_TICK).await;
    }
}

async fn turn_until_stop(pump: &mut impl Pump, clock: &impl Clock) -> std::io::Result<()> {
    let mut ready = Vec::with_capacity(limits::READY_PER_TURN_MAX);
    let mut armed = None;
    loop {
        let next = pump.turn(&ready);
        if next == Next::Stop {
            return Ok(());
        }
        collect(pump.set(), &mut ready, Some(&Timespec::default()))?;
        let Next::Wait(deadline) = next else { continue };
        // What is ready already is had without going to sleep, at a fifth of the price.
        if ready.is_empty() {
            let rest = deadline.map(|deadline| deadline.since(clock.moment()));
            wait(pump.set(), &mut armed, rest).await;
            collect(pump.set(), &mut ready, Some(&Timespec::default()))?;
        }
    }
}

/// Waits until the set is ready or the time has passed, `None`: never; sometimes it ends earlier.
/// A stream that did not fire is kept in `armed` for the next wait. While the process has no
/// descriptor left for one, a wait is a short sleep.
async fn wait(set: BorrowedFd<'_>, armed: &mut Option<TcpStream>, at_most: Option<Duration>) {
    if at_most.is_some_and(|at_most| at_most.is_zero()) {
        return;
    }
    let Some(mut stream) = armed.take().or_else(|| arm(set).ok()) else {
        Timer::new(own_limits::UNARMED_WAIT).await;
        return;
    };
    // Refused is only a time of zero.
    let _ = stream.set_read_timeout(at_most);
    let mut nothing = [0];
    let read = poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut nothing)).await;
    if read.is_err_and(|error| error.kind() == ErrorKind::TimedOut) {
        *armed = Some(stream);
    }
}

/// A stream that is none: its first read returns when the set is ready.
fn arm(set: BorrowedFd<'_>) -> std::io::Result<TcpStream> {
    let duplicate = set.try_clone_to_owned()?;
    // SAFETY: the stream is the only owner of the duplicate, and closes it.
    Ok(unsafe { TcpStream::from_raw_fd(duplicate.into_raw_fd()) })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// What `PREEMPT_TIMER` is so long for. If this fails, glommio has been mended.
    #[test]
    fn an_executor_whose_preempt_timer_fires_before_its_tasks_run_sleeps_without_them() {
        if let Err(reason) = look_at_kernel() {
            return harness::skip("no glommio", &reason.to_string());
        }
        let has_run = |timer: Duration, patience: Duration| {
            let (sender, receiver) = mpsc::channel();
            // One that sleeps is left behind.
            std::thread::spawn(move || {
                let builder = LocalExecutorBuilder::new(Placement::Unbound).preempt_timer(timer);
                builder.make().expect("it is to be had").run(async {
                    for _ in 0..1_000 {
                        glommio::executor().yield_now().await;
                    }
                    let _ = sender.send(());
                });
            });
            receiver.recv_timeout(patience).is_ok()
        };
        assert!(has_run(own_limits::PREEMPT_TIMER, Duration::from_secs(20)));
        assert!(!has_run(Duration::from_nanos(1), Duration::from_secs(2)));
    }

    #[test]
    fn a_release_has_its_version_in_front() {
        for (release, expected) in [
            ("6.18.44-fc", Some((6, 18))),
            ("5.8.0", Some((5, 8))),
            ("5.15-rc1", Some((5, 15))),
            ("6", None),
            ("next", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
