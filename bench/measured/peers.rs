//! The processes that are measured and those that measure with us, and what the kernel says of
//! them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

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
    admin: String,
    _data: tempfile::TempDir,
}

impl Node {
    pub fn start(core: usize) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_corecast"));
        for set in [
            format!("node.shards=[{core}]"),
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
        Self { process, public, admin, _data: data }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Publishes a message to everybody.
    pub fn publish(&self, content: &str) {
        let draft =
            serde_json::json!({ "content": content, "targetType": "ALL", "senderName": "Ops" });
        let body = draft.to_string();
        let fields = [("content-type", "application/json")];
        let admin = self.admin.parse().expect("an address");
        let answer =
            http::call(admin, "POST", "/api/admin/broadcasts", &fields, Some(body.as_bytes()));
        answer.expect_json();
    }
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
    pub thread: f64,
    pub process: f64,
}

/// CPU of a process and of its thread of that name, read while that thread sleeps, because the
/// kernel books a thread's time when it stops.
pub fn cpu(process: u32, thread: &str) -> Cpu {
    wait::until("the thread sleeps", PATIENCE, || {
        let mut cpu = Cpu { thread: f64::NAN, process: 0.0 };
        for task in std::fs::read_dir(format!("/proc/{process}/task")).ok()? {
            let task = task.ok()?.path();
            // A thread may end meanwhile.
            let Ok(schedstat) = std::fs::read_to_string(task.join("schedstat")) else { continue };
            let nanos: f64 = schedstat.split(' ').next()?.parse().ok()?;
            cpu.process += nanos;
            if std::fs::read_to_string(task.join("comm")).ok()?.trim() == thread {
                let stat = std::fs::read_to_string(task.join("stat")).ok()?;
                let state = stat.rsplit(") ").next()?.chars().next()?;
                if state != 'S' {
                    return None;
                }
                cpu.thread = nanos;
            }
        }
        assert!(!cpu.thread.is_nan(), "process {process} has no thread {thread}");
        Some(cpu)
    })
}
