//! How long a sleeping thread takes from the ring of its doorbell until its pump has its turn: the
//! runtime seam alone, on glommio and with epoll.
//!
//! The pump sleeps on the server's core, as a shard does that holds streams: with a deadline. Who
//! rings is on the clients' core, and lets it sleep for a while of no fixed length before.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corecast::lane::Doorbell;
use corecast::limits::shard::WHEEL_TICK;
use corecast::ports::{Clock as _, SystemClock};
use corecast::shard::{Next, Pump, Runtime, RuntimeKind, RuntimeWanted, pin};
use rustix::event::epoll::{CreateFlags, Event, EventData, EventFlags, add, create};
use rustix::thread::sched_getaffinity;

use super::figures::{Figures, Goal, percentile};
use super::peers::PATIENCE;
use super::{CLIENT_CORE, SERVER_CORE, cpu_time};

const ROUNDS: usize = 9;
const RINGS: u64 = 600;
/// Sleep before a ring: more than a turn takes, and not in step with anything.
const SLEEP_MIN: Duration = Duration::from_micros(900);
const SLEEP_SPREAD_US: u64 = 1_900;

/// A pump that does nothing but say when it was woken.
struct Sleeper {
    set: OwnedFd,
    bell: Arc<Doorbell>,
    began: Instant,
    /// Nanoseconds since it began; 0 until it is woken.
    woken: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
}

impl Pump for Sleeper {
    fn set(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }

    fn turn(&mut self, ready: &[Event]) -> Next {
        if !ready.is_empty() {
            self.bell.silence();
            let at = self.began.elapsed().as_nanos() as u64;
            self.woken.store(at, Ordering::Release);
        }
        if self.ends.load(Ordering::Acquire) {
            return Next::Stop;
        }
        Next::Wait(Some(SystemClock.moment().plus(WHEEL_TICK)))
    }
}

/// One round of one runtime.
struct Round {
    /// Nanoseconds from ring to turn.
    wakes: Vec<f64>,
    /// Of the woken thread, nanoseconds a ring.
    cpu: f64,
}

pub fn measure(figures: &mut Figures) {
    println!("wakes: {ROUNDS} rounds of {RINGS} rings of each runtime");
    let cores = sched_getaffinity(None).expect("Linux");
    pin(&[CLIENT_CORE]);
    let both = || RuntimeKind::ALL.map(run);
    both();
    let rounds: Vec<[Round; 2]> = (0..ROUNDS).map(|_| both()).collect();
    rustix::thread::sched_setaffinity(None, &cores).expect("as it was");
    let of = |of: &dyn Fn(&Round) -> f64| {
        [0, 1].map(|kind| rounds.iter().map(|round| of(&round[kind])).collect::<Vec<f64>>())
    };
    let mut add = |name, [glommio, epoll]: [Vec<f64>; 2]| {
        figures.add((name, "ns"), &glommio, ("epoll", &epoll), Goal::None);
    };
    add("ring to turn on glommio, p50", of(&|round| percentile(&round.wakes, 0.5)));
    add("ring to turn on glommio, p99", of(&|round| percentile(&round.wakes, 0.99)));
    add("CPU a wake on glommio", of(&|round| round.cpu));
    figures.note(format!(
        "wakes: a pump that sleeps on core {SERVER_CORE} with a deadline of {} ms, rung from core \
         {CLIENT_CORE} after {:.1} to {:.1} ms; CPU of the woken thread, glommio's ticker included",
        WHEEL_TICK.as_millis(),
        SLEEP_MIN.as_secs_f64() * 1e3,
        SLEEP_MIN.as_secs_f64() * 1e3 + SLEEP_SPREAD_US as f64 / 1e3,
    ));
}

fn run(kind: RuntimeKind) -> Round {
    let bell = Arc::new(Doorbell::new().expect("a doorbell"));
    let woken = Arc::new(AtomicU64::new(0));
    let ends = Arc::new(AtomicBool::new(false));
    let set = create(CreateFlags::CLOEXEC).expect("a set");
    add(&set, &*bell, EventData::new_u64(0), EventFlags::IN).expect("it is watched");
    let began = Instant::now();
    let mut sleeper =
        Sleeper { set, bell: bell.clone(), began, woken: woken.clone(), ends: ends.clone() };
    let thread = std::thread::spawn(move || {
        pin(&[SERVER_CORE]);
        let (runtime, _) = Runtime::make(RuntimeWanted::Only(kind)).expect("it is to be had");
        let before = cpu_time();
        runtime.run(&mut sleeper, &SystemClock).expect("the kernel can wait");
        cpu_time() - before
    });
    let ring = || {
        woken.store(0, Ordering::Relaxed);
        let rung = began.elapsed();
        bell.ring();
        loop {
            match woken.load(Ordering::Acquire) {
                0 => assert!(began.elapsed() - rung < PATIENCE, "it does not wake"),
                at => return at as f64 - rung.as_nanos() as f64,
            }
        }
    };
    // It runs now, whatever it took to start.
    ring();
    let mut chance = 1_u64;
    let wakes = (0..RINGS).map(|_| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let more = Duration::from_micros((chance >> 33) % SLEEP_SPREAD_US);
        harness::wait::until_due(Instant::now() + SLEEP_MIN + more);
        ring()
    });
    let wakes: Vec<f64> = wakes.collect();
    ends.store(true, Ordering::Release);
    ring();
    let cpu = thread.join().expect("it ends").as_nanos() as f64 / RINGS as f64;
    Round { wakes, cpu }
}
