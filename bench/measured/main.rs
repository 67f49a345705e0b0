//! `cargo bench`: what a stream costs in memory, a delivery in CPU and a record in time, each
//! beside a baseline that is measured in the same run.
//!
//! The node is the real program, and so is what it is compared with (`bench/bareloop`). Both hold
//! the same number of streams and send the same bytes in turn, pinned to one core, while their
//! clients are pinned to another. Ratios count: they are medians over rounds in which both were
//! measured shortly after each other; the spread shows how busy the machine was.
//!
//! Environment: `BENCH_JSON=FILE` writes the figures there too. `BENCH_STREAMS`
//! lowers the 15,000 streams. A word on the command line runs only `events`, `streams` or `shards`,
//! or of the last only `wakes`, `counts` or `skew`.

mod audience;
mod events;
#[path = "../common/figures.rs"]
mod figures;
mod peers;
mod shards;
mod sides;
mod skew;
mod streams;
mod wakes;

use std::process::ExitCode;
use std::time::Duration;

use figures::Figures;
use rustix::time::{ClockId, clock_gettime};

/// As in the program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The first core is the server's, and that of what runs in this process.
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;

const STREAMS_MANY: u32 = 15_000;
/// Of a message.
const CONTENT_BYTES: usize = 200;

fn main() -> ExitCode {
    // This program is its own clients and its own baseline: processes of their own.
    match std::env::var(peers::ROLE).as_deref() {
        Ok(peers::BARE) => return ended(bareloop::run(Some(SERVER_CORE))),
        Ok(peers::AUDIENCE) => return ended(audience::run(CLIENT_CORE)),
        _ => {}
    }
    let wants = figures::wanted();
    let mut figures = Figures::default();
    if wants("events") {
        events::measure(&mut figures);
    }
    if wants("streams") {
        streams::measure(&mut figures);
    }
    let shards = wants("shards");
    if shards || wants("wakes") {
        wakes::measure(&mut figures);
    }
    if shards || wants("counts") {
        shards::measure(&mut figures);
    }
    if shards || wants("skew") {
        skew::measure(&mut figures);
    }
    figures.tell();
    ExitCode::SUCCESS
}

/// Streams of each server where many are wanted.
fn streams_many() -> u32 {
    let many = std::env::var("BENCH_STREAMS").ok().and_then(|count| count.parse().ok());
    many.unwrap_or(STREAMS_MANY).max(streams::STREAMS_FEW + 1)
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn ended(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("measured: {error}");
            ExitCode::FAILURE
        }
    }
}
