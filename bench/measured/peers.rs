//! The processes that are measured and those that measure with us, and what the kernel says of
//! them.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use corecast::shard::RuntimeKind;
use harness::http;
use harness::process::Process;
use harness::wait;

/// Environment variable by which this program knows that it is a part of itself.
pub const ROLE: &str = "BENCH_ROLE";
pub const BARE: &str = "bareloop";
pub const AUDIENCE: &str = "audience";

/// Longest wait for anything: more than any step takes on a machine that others use too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A part of this program that takes commands on stdin and answers by lines. It ends with its
/// stdin, so also when we are killed; dropping it kills it.
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Peer {
    pub fn start(role: &str) -> Self {
        let program = std::env::current_exe().expect("a benchmark is a program");
        let mut command = Command::new(program);
        command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program can be started again");
        let stdin = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&mut self, command: &[u8]) {
        self.stdin.write_all(command).expect("the peer takes commands");
    }

    /// The next line, without `start`.
    pub fn answer(&self, start: &str) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for: {start}"));
        let rest = line.strip_prefix(start);
        rest.unwrap_or_else(|| panic!("waited for {start:?}, got {line:?}")).trim().to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node of Corecast: the program as it is shipped.
pub struct Node {
    process: Process,
    pub public: String,
    pub admin: SocketAddr,
    _data: tempfile::TempDir,
}

impl Node {
    /// Starts one with these values of `node.shards` and `node.runtime`.
    pub fn start(shards: &str, runtime: &str) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(harness::shipped::program());
        for set in [
            format!("node.shards={shards}"),
            format!("node.runtime={runtime}"),
            format!("node.data_dir={}", data.path().display()),
            "public.listen=127.0.0.1:0".to_owned(),
            "admin.listen=127.0.0.1:0".to_owned(),
        ] {
            command.arg("--set").arg(set);
        }
        // What configures somebody's node is not meant for this one.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CORECAST_") {
                command.env_remove(name);
            }
        }
        let process = Process::start("corecast", command).expect("the node starts");
        let listener = |name: &'static str| {
            let start = format!("{name} listener on http://");
            process.wait_for_line(PATIENCE, |line| line.strip_prefix(&start).map(str::to_owned))
        };
        let (public, admin) = (listener("public"), listener("admin"));
        process.wait_for_line(PATIENCE, |line| (line == "ready").then_some(()));
        let admin = admin.parse().expect("an address");
        Self { process, public, admin, _data: data }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Publishes a message to everybody.
    pub fn publish(&self, content: &str) {
        let draft =
            serde_json::json!({ "content": content, "targetType": "ALL", "senderName": "Ops" });
        create(self.admin, &draft);
    }

    /// What its shards wait with.
    pub fn runtime(&self) -> &'static str {
        let metrics = self.metrics();
        let has = |kind: &RuntimeKind| metrics.contains(&format!("runtime=\"{}\"", kind.name()));
        RuntimeKind::ALL.into_iter().find(has).expect("it says so").name()
    }

    /// The counter, of all shards together.
    pub fn counted(&self, name: &str) -> u64 {
        let metrics = self.metrics();
        let series = metrics.lines().filter(|line| line.starts_with(name));
        let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum()
    }

    fn metrics(&self) -> String {
        let answer = http::call(self.admin, "GET", "/metrics", &[], None);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text()
    }
}

/// Has a node create a broadcast; returns once it has said that it did.
pub fn create(admin: SocketAddr, draft: &serde_json::Value) {
    let body = draft.to_string();
    let fields = [("content-type", "application/json")];
    let answer = http::call(admin, "POST", "/api/admin/broadcasts", &fields, Some(body.as_bytes()));
    answer.expect_json();
}

/// Bytes of memory of a process, exact: the kernel walks its page tables.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: f64,
    pub private: f64,
}

pub fn memory(process: u32) -> Memory {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = std::fs::read_to_string(path).expect("our process is there");
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        number.unwrap_or_else(|| panic!("no {name} in {text}")) * 1_024.0
    };
    Memory { resident: kib("Rss:"), private: kib("Private_Clean:") + kib("Private_Dirty:") }
}

/// Bytes that the kernel itself holds for its objects, sockets of all processes among them.
pub fn kernel_memory() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("every Linux has it");
    let slab = text.lines().find_map(|line| line.strip_prefix("Slab:"));
    let kib = slab.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.expect("a number of kB") * 1_024.0
}

/// CPU time so far, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Of the threads that were asked for.
    pub threads: f64,
    pub process: f64,
}

/// CPU of a process and of its threads whose names begin so, read while these sleep, because the
/// kernel books a thread's time when it stops.
pub fn cpu(process: u32, threads: &str) -> Cpu {
    wait::until("the threads sleep", PATIENCE, || {
        let mut cpu = Cpu { threads: 0.0, process: 0.0 };
        let mut is_there = false;
        for task in std::fs::read_dir(format!("/proc/{process}/task")).ok()? {
            let task = task.ok()?.path();
            // A thread may end meanwhile.
            let Ok(schedstat) = std::fs::read_to_string(task.join("schedstat")) else { continue };
            let nanos: f64 = schedstat.split(' ').next()?.parse().ok()?;
            cpu.process += nanos;
            if std::fs::read_to_string(task.join("comm")).ok()?.starts_with(threads) {
                let stat = std::fs::read_to_string(task.join("stat")).ok()?;
                let state = stat.rsplit(") ").next()?.chars().next()?;
                if state != 'S' {
                    return None;
                }
                cpu.threads += nanos;
                is_there = true;
            }
        }
        assert!(is_there, "process {process} has no thread {threads}");
        Some(cpu)
    })
}

/// CPU of the thread of that name so far, nanoseconds, without what it has used since the kernel
/// last booked it: a few milliseconds.
pub fn cpu_of_running(process: u32, thread: &str) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let nanos = tasks.filter_map(Result::ok).find_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let schedstat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        if name.trim() == thread { schedstat.split(' ').next()?.parse().ok() } else { None }
    });
    nanos.unwrap_or_else(|| panic!("process {process} has no thread {thread}"))
}
