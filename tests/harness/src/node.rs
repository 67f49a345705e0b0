//! A node of Corecast: the real binary, on ports of its own, with a data directory that goes with
//! the test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::cable::{Cables, Side};
use crate::http::{self, Response};
use crate::process::Process;
use crate::sse::{Ask, Stream};
use crate::wait;

/// A debug build that opens its database on a busy disk.
const START_TIME: Duration = Duration::from_secs(30);
const CREATE: &str = "/api/admin/broadcasts";

/// A node that is ready. Dropping it kills it.
pub struct Node {
    program: PathBuf,
    sets: Vec<String>,
    data_dir: PathBuf,
    pub process: Process,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    cables: Option<Cables>,
    /// Removed behind the process.
    _folder: Option<TempDir>,
}

impl Node {
    /// Starts the program, with these `SECTION.KEY=VALUE` over ports and data directory of its own.
    pub fn start(program: &str, sets: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut node = Self::start_in(program, folder.path(), sets);
        node._folder = Some(folder);
        node
    }

    /// The same with a data directory that stays.
    pub fn start_in(program: &str, data_dir: &Path, sets: &[&str]) -> Self {
        let node = Self::launch_in(program, data_dir, sets);
        node.wait_until_ready();
        node
    }

    /// One that may open 256 files and sockets, with all that it needs in this folder.
    pub fn start_narrow(program: &str, folder: &Path) -> Self {
        let narrow = folder.join("corecast");
        crate::write_program(
            &narrow,
            &format!("#!/bin/sh\nulimit -n 256\nexec {program} \"$@\"\n"),
        );
        Self::start_in(narrow.to_str().expect("UTF-8"), &folder.join("data"), &[])
    }

    /// Starts the program and waits for its listeners only: what it needs may be away.
    pub fn launch(program: &str, sets: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut node = Self::launch_in(program, folder.path(), sets);
        node._folder = Some(folder);
        node
    }

    /// The same behind cables, which can be pulled out.
    pub fn launch_behind(cables: Cables, sets: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let program = cables.program();
        let program = program.to_str().expect("UTF-8");
        let mut node = Self::launch_at(cables.address(), program, folder.path(), sets);
        (node.cables, node._folder) = (Some(cables), Some(folder));
        node
    }

    fn launch_in(program: &str, data_dir: &Path, sets: &[&str]) -> Self {
        Self::launch_at(Ipv4Addr::LOCALHOST.into(), program, data_dir, sets)
    }

    fn launch_at(address: IpAddr, program: &str, data_dir: &Path, sets: &[&str]) -> Self {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let any = SocketAddr::new(address, 0);
        let process = run(program.as_ref(), data_dir, (any, any), &sets);
        let (public, admin) = wait_for_listeners(&process);
        let (program, data_dir) = (program.into(), data_dir.to_owned());
        Self { program, sets, data_dir, process, public, admin, cables: None, _folder: None }
    }

    /// Starts it again on the same ports and data. It must have ended.
    pub fn start_again(&mut self) {
        self.launch_again();
        self.wait_until_ready();
    }

    /// The same, and waits for its listeners only.
    pub fn launch_again(&mut self) {
        assert!(!self.process.is_running(), "one that runs is not started again");
        let addresses = (self.public, self.admin);
        self.process = run(&self.program, &self.data_dir, addresses, &self.sets);
        assert_eq!(wait_for_listeners(&self.process), addresses);
    }

    /// Waits until it has said `ready`.
    pub fn wait_until_ready(&self) {
        self.process.wait_for_line(START_TIME, |line| (line == "ready").then_some(()));
    }

    /// `kill -9`, and starts it again.
    pub fn crash(&mut self) {
        self.process.kill();
        self.start_again();
    }

    /// Cuts it off from this side, in silence. It must have been launched behind cables.
    pub fn pull(&self, side: Side) {
        self.cables.as_ref().expect("it has cables").pull(side, self.process.id());
    }

    pub fn plug_in(&self, side: Side) {
        self.cables.as_ref().expect("it has cables").plug_in(side, self.process.id());
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait_for_end(START_TIME)
    }

    /// A GET on the admin listener.
    pub fn get(&self, target: &str) -> Response {
        http::call(self.admin, "GET", target, &[], None)
    }

    /// A POST of JSON on the admin listener.
    pub fn post(&self, target: &str, body: &Value) -> Response {
        let fields = [("content-type", "application/json")];
        http::call(self.admin, "POST", target, &fields, Some(body.to_string().as_bytes()))
    }

    /// Creates a broadcast, which must succeed.
    pub fn create(&self, body: &Value) -> Value {
        self.post(CREATE, body).expect_json()
    }

    /// Creates a broadcast, where the node may go away or refuse. `None` without an answer.
    pub fn try_create(&self, body: &Value) -> Option<Response> {
        try_create(self.admin, body)
    }

    /// Says this to everybody.
    pub fn say(&self, content: &str) -> Value {
        self.create(&serde_json::json!({"content": content, "targetType": "ALL"}))
    }

    /// Opens a stream with this query and reads past CONNECTED.
    pub fn stream(&self, query: &str) -> Stream {
        self.stream_with(query, &[])
    }

    /// The same with fields of the head.
    pub fn stream_with(&self, query: &str, fields: &[(&str, &str)]) -> Stream {
        let mut stream = Stream::open(self.public, &ask(query, fields));
        stream.connected();
        stream
    }

    /// Opens the stream again from where the last one ended.
    pub fn resume(&self, query: &str, last: &Stream) -> Stream {
        let cursor = last.last_id.clone().expect("an id has come");
        self.stream_with(query, &[("last-event-id", &cursor)])
    }

    /// Memory of the process that is in RAM.
    pub fn resident_bytes(&self) -> usize {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).expect("a process of ours");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
        kilobytes.and_then(|number| number.parse::<usize>().ok()).expect("a number") * 1_024
    }

    /// Waits until what is in the log has been kept: a user without a stream finds it in the store.
    pub fn wait_until_kept(&self) {
        let rows = || self.metric("corecast_rows_total").expect("it is counted");
        let before = rows();
        let body = serde_json::json!({"content": "the last one", "targetType": "SELECTED",
            "targetIds": ["nobody"]});
        self.create(&body);
        wait::until_true("what was sent is kept", START_TIME, || {
            rows() > before && self.metric("corecast_owned_lag_records") == Some(0.0)
        });
    }

    /// The value of a metric, all its series added up; `None` if there is no such name.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metric_of(name, "")
    }

    /// The same of those series whose labels hold this.
    pub fn metric_of(&self, name: &str, label: &str) -> Option<f64> {
        let text = self.get("/metrics").text();
        let values: Vec<f64> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(label))
            .map(|(_, value)| value.parse().expect("a number"))
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

/// Creates a broadcast by the node with this admin listener, which may go away or refuse.
pub fn try_create(admin: SocketAddr, body: &Value) -> Option<Response> {
    let fields = [("content-type", "application/json")];
    http::try_call(admin, "POST", CREATE, &fields, Some(body.to_string().as_bytes()))
}

/// Asks for a stream of the path that the contract names first.
pub fn ask<'a>(query: &'a str, fields: &'a [(&'a str, &'a str)]) -> Ask<'a> {
    Ask { path: "/api/user/sse/connect", query, fields }
}

/// A command that runs the program with nothing of the test's own environment configured.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CORECAST_") {
            command.env_remove(name);
        }
    }
    command
}

/// One node for all tests of a file that run at the same time; it ends with the last of them.
pub struct Shared {
    node: Mutex<Weak<Node>>,
}

impl Shared {
    #[expect(clippy::new_without_default, reason = "a static needs a const constructor")]
    pub const fn new() -> Self {
        Self { node: Mutex::new(Weak::new()) }
    }

    pub fn get(&self, start: impl FnOnce() -> Node) -> Arc<Node> {
        let mut shared = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let node = Arc::new(start());
            *shared = Arc::downgrade(&node);
            node
        })
    }
}

fn run(
    program: &Path,
    data_dir: &Path,
    (public, admin): (SocketAddr, SocketAddr),
    sets: &[String],
) -> Process {
    let mut command = command(program);
    let own = [
        format!("node.data_dir={}", data_dir.display()),
        format!("public.listen={public}"),
        format!("admin.listen={admin}"),
        // Whatever the machine has; what a test sets later wins.
        "node.shards=2".to_owned(),
        // One that is to end is not waited for.
        "drain.window_s=0".to_owned(),
    ];
    for set in own.iter().chain(sets) {
        command.args(["--set", set]);
    }
    Process::start("corecast", command).expect("the program can be run")
}

/// Waits for one line a listener.
fn wait_for_listeners(process: &Process) -> (SocketAddr, SocketAddr) {
    let address = |name: &str| {
        process.wait_for_line(START_TIME, |line| {
            let rest = line.strip_prefix(name)?.strip_prefix(" listener on http://")?;
            rest.parse().ok()
        })
    };
    (address("public"), address("admin"))
}
