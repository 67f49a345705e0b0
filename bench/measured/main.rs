//! `cargo bench`: what a stream costs in memory, a delivery in CPU and a record in time, each
//! beside a baseline that is measured in the same run.
//!
//! The node is the real program, and so is what it is compared with (`bench/bareloop`). Both hold
//! the same number of streams and send the same bytes in turn, pinned to one core, while their
//! clients are pinned to another. Ratios count: they are medians over rounds in which both were
//! measured shortly after each other; the spread shows how busy the machine was.
//!
//! Environment: `BENCH_JSON=FILE` writes the figures there too. `BENCH_STREAMS`
//! lowers the 15,000 streams. A word on the command line runs only `streams` or `events`.

mod audience;
mod events;
mod figures;
mod peers;
mod streams;

use std::process::ExitCode;

use figures::Figures;

/// As in the program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The first core is the server's, and that of what runs in this process.
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;

fn main() -> ExitCode {
    // This program is its own clients and its own baseline: processes of their own.
    match std::env::var(peers::ROLE).as_deref() {
        Ok(peers::BARE) => return ended(bareloop::run(Some(SERVER_CORE))),
        Ok(peers::AUDIENCE) => return ended(audience::run(CLIENT_CORE)),
        _ => {}
    }
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    let mut figures = Figures::default();
    if wants("events") {
        events::measure(&mut figures);
    }
    if wants("streams") {
        streams::measure(&mut figures);
    }
    figures.print();
    if let Some(path) = std::env::var_os("BENCH_JSON") {
        std::fs::write(&path, figures.to_json()).expect("the file for the figures can be written");
    }
    ExitCode::SUCCESS
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
