//! The simulator: the real ring, cursors, streams, and the passing between shards, on virtual time,
//! with sockets that are slow, die and come back, and shards that turn in any order. Same seed,
//! same trace.
//!
//! A safety phase injects faults and checks every byte that a client gets; a liveness phase then
//! stops them, and everybody must have everything. The seed is in every panic:
//! `SIMULATION_SEED=N cargo test --test simulation` runs that one again, `SIMULATION_SEEDS=N` as
//! many as you like.

mod client;
mod node;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Faults, World};

const SEEDS: u64 = 200;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("SIMULATION_SEED"), number("SIMULATION_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(SEEDS),
    }
}

/// Runs every seed, on all cores; which core runs which changes nothing.
fn run_all(seeds: std::ops::Range<u64>) -> world::Seen {
    let total = Mutex::new(world::Seen::default());
    let next = AtomicU64::new(seeds.start);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let mut world = World::new(seed, Faults::ALL);
                    world.run_safety(600);
                    world.run_liveness();
                    total.lock().expect("no worker failed").add(&world.seen());
                }
            });
        }
    });
    total.into_inner().expect("no worker failed")
}

#[test]
fn nothing_is_lost_doubled_or_out_of_order() {
    let total = run_all(seeds());
    println!("simulated: {total:?}");
    if seeds().count() as u64 >= SEEDS {
        // A simulation in which these do not happen shows nothing.
        for (what, count) in [
            ("deliveries", total.deliveries),
            ("resumes", total.resumes),
            ("gaps", total.gaps),
            ("partial writes", total.partial_writes),
            ("heartbeats", total.heartbeats),
            ("slow closes", total.slow_closes),
            ("deaths", total.deaths),
            ("clients ahead of the node", total.ahead),
            ("expired frames", total.expired),
            ("events for other shards", total.passed),
            ("full lanes", total.full_lanes),
            ("shards that stand still", total.stalls),
            ("connects to nodes that start", total.put_off),
            ("new clients", total.newcomers),
            ("repeats", total.repeats),
        ] {
            assert!(count > 0, "no {what} in {SEEDS} seeds");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut world = World::new(seed, Faults::ALL);
        world.run_safety(300);
        world.run_liveness();
        world.trace()
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}
