//! The simulator: the real ring, cursors, streams, the passing between shards, owners and backlogs
//! of several nodes, on virtual time. Sockets are slow, die and come back; shards turn in any
//! order; nodes crash, drain, stand still and are cut off, and their calendars step; the store and
//! the coordinator of the groups behave as badly as they may. Same seed, same trace.
//!
//! A safety phase injects faults and checks every byte that a client gets; a liveness phase then
//! stops them, and everybody must have everything. The seed is in every panic:
//! `SIMULATION_SEED=N cargo test --test simulation` runs that one again, `SIMULATION_SEEDS=N` as
//! many as you like; with `-- --nocapture` it tells how far it is, and which commit that was.

mod calendars;
mod client;
mod control;
mod desk;
mod groups;
mod node;
mod oracle;
mod outage;
mod owner;
mod parking;
mod random;
mod records;
mod report;
mod serving;
mod sky;
mod sockets;
mod store;
mod traffic;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use random::Seen;
use report::{Report, Running};
use world::{Faults, World};

const SEEDS: u64 = 200;

const MUST_HAPPEN: &[&str] = &[
    "deliveries",
    "resumes",
    "partial writes",
    "heartbeats",
    "slow closes",
    "deaths",
    "clients ahead of the node",
    "resumes of clients that are ahead",
    "cursors from ahead of the log",
    "bounds that could not be had",
    "ended messages",
    "events for other shards",
    "full lanes",
    "shards that stand still",
    "connects to nodes that start",
    "clients that begin anew",
    "repeats",
    "records that nobody serves",
    "trims",
    "trims of what was not kept",
    "gaps where the log had lost something",
    "logs that were replaced",
    "resumes in a log that is no more",
    "messages of a log that is no more",
    "gaps",
    "nodes that fell behind the log's start",
    "checkpoints below the log",
    // Streams that the node ends.
    "nodes that drained",
    "connects to nodes that drain",
    "streams on nodes that drain",
    "streams that drained",
    "streams that rotated",
    "streams that were told to go",
    // Owners.
    "batches",
    "node crashes",
    "crashes in the middle of a write",
    "batches cut by a crash",
    "frozen nodes",
    "nodes cut off from the coordinator",
    "sessions that ended",
    "rebalances",
    "partitions that moved",
    "refused commits",
    "commits lost on their way",
    "late commits",
    "checkpoints that fell",
    "writes tried again",
    "writes done though they were away",
    "late writes",
    // What is published again.
    "records parked",
    "older records without an audience",
    "records published again",
    "records published twice",
    "records that came late",
    "records published though the log was away",
    "publishing tried again",
    "rows that were parked again",
    // Calendars.
    "calendars that stepped ahead",
    "calendars that stepped back",
    "calendars that were set far back",
    // Outages.
    "outages of the store",
    "outages of the log",
    "outages of log and store",
    "outages of the control topic",
    "outages of the coordinator",
    "outages of the log for nodes alone",
    "deliveries without the store",
    "starts in an outage",
    "drains in an outage",
    "notes lost in a drain",
    // Bounds.
    "clients that found no room",
    "streams that ended with a word",
    // What is cancelled.
    "cancels",
    "cancels that were answered",
    "cancels that a crash left",
    "cancels of other producers",
    "cancels by a node that has just joined",
    "lost beats",
    "nodes that are deaf to the control topic",
    "fenced shards",
    "removals",
    "removals that were told",
    // Users who come and go.
    "backlogs",
    "messages of backlogs",
    "flagged resumes",
    "cut backlogs",
    "resumes from before the ring",
    "resumes in the middle of what the ring had lost",
    "streams that went on from the store",
    "streams that replayed",
    "clients that the log served without the store",
    "clients of a crowd that the log served",
    "events read again",
    "replays that were refused",
    "replays of what the log has trimmed",
    "rereads that found a full lane",
    "backlogs that could not be had",
    "asks that took too long",
    "messages that arrived and were not read",
    "messages to a second device",
    "repeats to who began anew",
    "notes",
    "notes told again",
    "lost notes",
    "notes lost in a crash",
];

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("SIMULATION_SEED"), number("SIMULATION_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(SEEDS),
    }
}

/// Runs every seed, on all cores; which core runs which changes nothing.
fn run_all(seeds: std::ops::Range<u64>) -> Seen {
    let total = Mutex::new(Seen::default());
    let next = AtomicU64::new(seeds.start);
    let report = Report::begin(seeds.end - seeds.start);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    report.progress(seed - seeds.start);
                    let _running = Running(seed);
                    let mut world = World::new(seed, Faults::ALL);
                    world.run_safety(350);
                    world.run_outage();
                    if seed.is_multiple_of(2) {
                        world.replace_log();
                    }
                    world.run_safety(250);
                    world.run_liveness();
                    total.lock().expect("no worker failed").add(&world.seen());
                }
            });
        }
    });
    report.end();
    total.into_inner().expect("no worker failed")
}

#[test]
fn nothing_is_lost_doubled_or_out_of_order() {
    let total = run_all(seeds());
    println!("simulated: {total:?}");
    if seeds().count() as u64 >= SEEDS {
        // A simulation in which these do not happen shows nothing.
        for what in MUST_HAPPEN {
            assert!(total.of(what) > 0, "no {what} in {SEEDS} seeds");
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
