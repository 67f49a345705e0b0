//! What the tests start and stop: nodes of Corecast, brokers, databases, browsers.
//!
//! Everything here listens on 127.0.0.0/8 only, on ports that were free, and ends with the test
//! process, however that ends. It shares no code with the gateway.

pub mod browser;
pub mod cable;
pub mod cassandra;
pub mod http;
pub mod kafka;
pub mod maven;
pub mod node;
pub mod ports;
pub mod process;
pub mod refusal;
pub mod runtime;
pub mod shipped;
pub mod sse;
pub mod thread;
pub mod wait;
pub mod wrong;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The build's target folder, in which downloads are kept between runs.
pub fn target_dir() -> PathBuf {
    let program = std::env::current_exe().expect("a test is a program");
    let tagged = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    tagged.expect("tests are built by cargo, which tags its target folder").to_owned()
}

/// A script that can be run.
fn write_program(path: &Path, script: &str) {
    std::fs::write(path, script).expect("a file");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("a file of ours");
}

/// Whether the run must not skip what this machine can't do: continuous integration sets `CI`.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

/// Says loudly that a test can't be run here; in continuous integration that is a failure.
///
/// Use: `let Some(thing) = find() else { return harness::skip("no thing", "install it") };`
pub fn skip(what: &str, how: &str) {
    assert!(!is_ci(), "{what}: {how}");
    // Past the capture of the test runner, so that a green run shows it.
    let line = format!("\nSKIPPED: {what}: {how}\n");
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/stderr")
        .and_then(|mut stderr| std::io::Write::write_all(&mut stderr, line.as_bytes()));
}
