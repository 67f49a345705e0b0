//! What a run of many seeds says of itself: which code it ran, how far it is, what it came to.

use std::process::Command;
use std::time::Instant;

/// Between two lines of progress.
const STEP: u64 = 500;

pub struct Report {
    seeds: u64,
    began: Instant,
}

impl Report {
    pub fn begin(seeds: u64) -> Self {
        println!("{seeds} seeds of {}", commit());
        Self { seeds, began: Instant::now() }
    }

    /// So many have begun.
    pub fn progress(&self, begun: u64) {
        if begun > 0 && begun.is_multiple_of(STEP) {
            println!("{begun} of {} seeds after {:.0?}", self.seeds, self.began.elapsed());
        }
    }

    /// All of them held.
    pub fn end(&self) {
        println!("{} seeds of {} are clean, {:.0?}", self.seeds, commit(), self.began.elapsed());
    }
}

/// The seed that is being run: whatever panics, it is named.
pub struct Running(pub u64);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("that was SIMULATION_SEED={}", self.0);
        }
    }
}

/// The commit that is checked out, and whether something was changed since.
fn commit() -> String {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let (commit, changes) = (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain"]));
    match (commit, changes) {
        (Some(commit), Some(changes)) if changes.is_empty() => format!("commit {commit}"),
        (Some(commit), _) => format!("commit {commit} and changes"),
        (None, _) => "a checkout that git does not know".to_owned(),
    }
}
