//! What a shard waits with: taken as configured, and done without where it is not to be had.

use std::path::Path;
use std::process::Command;

use harness::http::{self, PATIENCE};
use harness::node::{Node, command};
use harness::on_each_runtime;
use harness::process::Process;
use harness::refusal;
use harness::runtime::Runtime;
use harness::sse::Item;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");

on_each_runtime!(
    every_shard_has_the_runtime_that_was_asked_for,
    a_shard_outlives_that_the_process_has_no_descriptor_left,
);

/// A way in which a system refuses glommio, a node that meets it, and words of the reason given.
type Refusal = (&'static str, fn() -> Command, &'static [&'static str]);

const REFUSALS: [Refusal; 2] = [
    ("no io_uring", without_io_uring, &["Operation not permitted", "seccomp", "io_uring_disabled"]),
    ("no locked memory", without_memory, &["65536 bytes", "524288", "ulimit -l"]),
];

fn without_io_uring() -> Command {
    let mut command = command(Path::new(PROGRAM));
    refusal::without_io_uring(&mut command);
    command
}

fn without_memory() -> Command {
    let mut command = command(Path::new("/bin/sh"));
    command.args(["-c", "ulimit -l 64; exec \"$0\" \"$@\"", PROGRAM]);
    command
}

/// Starts the command as a node of two shards in this directory.
fn start(mut command: Command, folder: &Path, runtime: &str) -> Process {
    let data_dir = format!("node.data_dir={}", folder.join("data").display());
    let runtime = format!("node.runtime={runtime}");
    let listen = ["public.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0"];
    for set in listen.into_iter().chain(["node.shards=2", &data_dir, &runtime]) {
        command.args(["--set", set]);
    }
    Process::start("corecast", command).expect("the program can be run")
}

/// The series of the metric, in order of the shards.
fn of_shards(runtime: &str) -> Vec<String> {
    let of_shard = |shard| format!("corecast_runtime{{shard=\"{shard}\",runtime=\"{runtime}\"}} 1");
    (0..2).map(of_shard).collect()
}

fn series(metrics: &str) -> Vec<&str> {
    metrics.lines().filter(|line| line.starts_with("corecast_runtime{")).collect()
}

#[test]
fn auto_goes_without_glommio_where_it_is_refused_and_says_why() {
    for (what, command, reasons) in REFUSALS {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let process = start(command(), folder.path(), "auto");
        process.wait_for_line(PATIENCE, |line| (line == "ready").then_some(()));
        let admin = process.wait_for_line(PATIENCE, |line| {
            line.strip_prefix("admin listener on http://")?.parse().ok()
        });
        let metrics = http::call(admin, "GET", "/metrics", &[], None).text();
        assert_eq!(series(&metrics), of_shards("epoll"), "{what}");
        let text = process.text();
        let said: Vec<&str> = text.lines().filter(|line| line.contains("glommio")).collect();
        let [line] = said[..] else { panic!("{what}: it is said once: {said:?}") };
        for word in ["WARN", "epoll"].iter().chain(reasons) {
            assert!(line.contains(word), "{what}: {word:?} is not in {line}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn glommio_that_is_refused_ends_the_start_and_says_what_to_do() {
    for (what, command, reasons) in REFUSALS {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut process = start(command(), folder.path(), "glommio");
        let status = process.wait_for_end(PATIENCE);
        assert_eq!(status.code(), Some(1), "{what}");
        let text = process.text();
        let line = text.lines().last().unwrap_or_default();
        for word in ["corecast: node.runtime = \"glommio\"", "\"auto\""].iter().chain(reasons) {
            assert!(line.contains(word), "{what}: {word:?} is not in {text}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn auto_takes_glommio_where_it_is_to_be_had() {
    if Runtime::Glommio.is_here(PROGRAM) {
        let node = Node::start(PROGRAM, &["node.runtime=auto"]);
        assert_eq!(series(&node.get("/metrics").text()), of_shards("glommio"));
        assert!(!node.process.text().contains("glommio"), "nothing is worth a word");
    }
}

fn every_shard_has_the_runtime_that_was_asked_for(runtime: Runtime) {
    let node = Node::start(PROGRAM, &[runtime.set()]);
    let name = match runtime {
        Runtime::Glommio => "glommio",
        Runtime::Epoll => "epoll",
    };
    assert_eq!(series(&node.get("/metrics").text()), of_shards(name));
}

fn a_shard_outlives_that_the_process_has_no_descriptor_left(runtime: Runtime) {
    let mut node = Node::start(PROGRAM, &[runtime.set(), "stream.heartbeat_s=1"]);
    // Users of both shards.
    let mut streams: Vec<_> = (0..8).map(|user| node.stream(&format!("userId=u{user}"))).collect();
    let id = i32::try_from(node.process.id()).ok().and_then(Pid::from_raw);
    let least = Rlimit { current: Some(3), maximum: Some(20_000) };
    let before = prlimit(id, Resource::Nofile, least).expect("a process of ours");
    for stream in &mut streams {
        for _ in 0..3 {
            assert_eq!(stream.next_item(), Item::Comment(String::new()), "a heartbeat");
        }
    }
    prlimit(id, Resource::Nofile, before).expect("a process of ours");
    node.say("there are descriptors again");
    for stream in &mut streams {
        assert_eq!(stream.message().content(), "there are descriptors again");
    }
    assert!(node.process.is_running());
}
