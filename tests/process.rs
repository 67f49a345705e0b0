//! The process: command line, configuration, start, and what it says when it can't go on.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use harness::http::{self, PATIENCE};
use harness::node::{Node, command};
use harness::process::Process;
use harness::sse::{Item, Stream};
use harness::thread::Held;
use harness::wait;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");

fn start(sets: &[&str]) -> Node {
    Node::start(PROGRAM, sets)
}

/// Runs the program to its end; only for what ends by itself.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = command(Path::new(PROGRAM));
    command.args(arguments).envs(environment.iter().copied());
    command.output().expect("the program can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Starts a node that must not come up; its exit status, and what it said.
fn refused(sets: &[&str]) -> (Option<i32>, String) {
    let mut command = command(Path::new(PROGRAM));
    for set in ["public.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0"].iter().chain(sets) {
        command.args(["--set", set]);
    }
    let mut process = Process::start("corecast", command).expect("the program can be run");
    let status = process.wait_for_end(PATIENCE);
    (status.code(), process.text())
}

#[test]
fn help_and_version_are_on_stdout() {
    for (arguments, parts) in [
        (&["--help"][..], &["serve", "check-config", "--config", "--set", "Exit status"][..]),
        (&["help", "serve"], &["--set"]),
        (&["--version"], &["corecast ", env!("CARGO_PKG_VERSION")]),
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let said = text(&output.stdout);
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
    }
    for wrong in [&["--sett", "a=b"][..], &["surve"], &["serve", "now"], &["--config"]] {
        let output = run(wrong, &[]);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(text(&output.stderr).contains("--help"), "{wrong:?}");
    }
}

#[test]
fn check_config_prints_what_is_in_effect() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("corecast.toml");
    std::fs::write(
        &file,
        "[stream]\nheartbeat_s = 5\n[drain]\nwindow_s = 5\n[log]\npartitions = 5\n",
    )
    .expect("a file");
    let file = file.to_str().expect("UTF-8");
    let environment = [
        ("CORECAST_DRAIN__WINDOW_S", "6"),
        ("CORECAST_LOG__PARTITIONS", "6"),
        ("OTHER_LOG__PARTITIONS", "9"),
    ];
    let output =
        run(&["--config", file, "check-config", "--set", "log.partitions=7"], &environment);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let effective: toml::Table = printed.parse().expect("TOML");
    for (section, key, value) in [
        ("stream", "heartbeat_s", toml::Value::from(5)),
        ("drain", "window_s", toml::Value::from(6)),
        ("log", "partitions", toml::Value::from(7)),
        ("public", "listen", toml::Value::from("127.0.0.1:8080")),
        ("admin", "listen", toml::Value::from("127.0.0.1:8081")),
        ("node", "data_dir", toml::Value::from("./corecast-data")),
        ("auth", "mode", toml::Value::from("none")),
        ("log", "kind", toml::Value::from("embedded")),
        ("store", "kind", toml::Value::from("embedded")),
    ] {
        assert_eq!(effective[section][key], value, "{section}.{key}");
    }
    // What it prints is a configuration itself.
    let again = folder.path().join("again.toml");
    std::fs::write(&again, &printed).expect("a file");
    let output = run(&["check-config", "--config", again.to_str().expect("UTF-8")], &[]);
    assert_eq!(text(&output.stdout), printed);
    assert!(!Path::new("corecast-data").exists(), "checking makes nothing");
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, "[steam]\nheartbeat_s = 5\n[node]\nshard = 1\n").expect("a file");
    let file = file.to_str().expect("UTF-8");
    let arguments = [
        "--config",
        file,
        "--set",
        "public.lisen=127.0.0.1:1",
        "--set",
        "stream.heartbeat_s=0",
        "--set",
        "log.partitions=many",
        "--set",
        "admin.listen=here",
        "--set",
        "nonsense",
        "--set",
        "public.listen=0.0.0.0:80",
        "--set",
        "log.kind=paper",
    ];
    let environment = [("CORECAST_NODE__DATADIR", "/tmp"), ("CORECAST_NODE_ID", "a")];
    for command in ["check-config", "serve"] {
        let output = run(&[&arguments[..], &[command]].concat(), &environment);
        assert_eq!(output.status.code(), Some(2), "{command}");
        assert_eq!(text(&output.stdout), "");
        let said = text(&output.stderr);
        for parts in [
            &[file, "steam.heartbeat_s", "did you mean stream.heartbeat_s?"][..],
            &[file, "node.shard;", "did you mean node.shards?"],
            &["--set public.lisen=127.0.0.1:1", "did you mean public.listen?"],
            &["CORECAST_NODE__DATADIR", "node.datadir", "did you mean node.data_dir?"],
            &["CORECAST_NODE_ID", "did you mean node.id?"],
            &["stream.heartbeat_s = 0", "1 to 120"],
            &["log.partitions = \"many\"", "--set log.partitions=many", "a whole number"],
            &["admin.listen = \"here\"", "ADDRESS:PORT"],
            &["nonsense", "SECTION.KEY=VALUE"],
            &["public.listen = \"0.0.0.0:80\"", "auth.allow_anonymous"],
            &["log.kind = \"paper\"", "must be one of", "embedded"],
        ] {
            let has = said.lines().any(|line| parts.iter().all(|part| line.contains(part)));
            assert!(has, "no line has all of {parts:?}:\n{said}");
        }
    }
    for (arguments, part) in [
        (["--config", "/nowhere/corecast.toml"], "/nowhere/corecast.toml"),
        (["--set", "auth.mode=jwt"], "auth.mode"),
        (["--set", "node.shards=0"], "node.shards"),
        (["--set", "node.shards=257"], "node.shards"),
        (["--set", "node.shards=some"], "CPUs such as"),
        (["--set", "node.shards=3-1"], "CPUs such as"),
        (["--set", "node.shards=0-5000"], "CPUs such as"),
        (["--set", "node.shards=[]"], "names no CPU"),
        (["--set", "node.shards=0-2,1"], "names CPU 1 twice"),
        (["--set", "stream.heartbeat_s=1.5"], "must be a whole number"),
        (["--set", "stream.heartbeat_s=\"5\""], "must be a whole number"),
        (["--set", "node.owner=yes"], "must be true or false"),
        (["--set", "node.owner=false"], "no other owner than this node"),
        (["--set", "log.brokers=a:9092"], "must be a list"),
        (["--set", "log.partitions=-1"], "must not be negative"),
        (["--set", "log.partitions=70000"], "too large"),
        (["--set", "=5"], "SECTION.KEY=VALUE"),
        (["--set", "node.shards=[5000]"], "0 to 1023"),
        (["--set", "log.partitions=30"], "log.partitions"),
        (["--set", "limits.streams_max=250001"], "limits.streams_max"),
        (["--set", "stream.max_age_s=9"], "must be 10 to 2592000, or 0 for no bound"),
        (["--set", "stream.max_age_s=2592001"], "must be 10 to 2592000, or 0 for no bound"),
    ] {
        let output = run(&[&arguments[..], &["check-config"]].concat(), &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(part), "{}", text(&output.stderr));
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let data = format!("node.data_dir={}", folder.path().display());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    for key in ["public.listen", "admin.listen"] {
        let (status, said) = refused(&[&data, &format!("{key}={address}")]);
        assert_eq!(status, Some(1));
        assert!(said.contains(&format!("{key} = {address}")), "{said}");
        assert!(said.contains("another port"), "{said}");
    }
    let node = start(&[]);
    let (status, said) = refused(&[&data, &format!("public.listen={}", node.public)]);
    assert_eq!(status, Some(1), "two nodes never share a port: {said}");
}

#[test]
fn a_data_directory_that_can_not_be_used_is_named() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    let mut cases = vec![
        (file.join("data"), "can't be written"),
        (file, "can't be written"),
        (PathBuf::from("/proc/corecast"), "can't be written"),
    ];
    let read_only = Mount::tmpfs("size=1m,ro");
    match &read_only {
        Some(mount) => cases.push((mount.path().join("data"), "can't be written")),
        None => harness::skip("nothing can be mounted", "run as root for a read-only directory"),
    }
    for (path, part) in cases {
        let (status, said) = refused(&[&format!("node.data_dir={}", path.display())]);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(&*path.to_string_lossy()) && said.contains(part), "{said}");
        assert!(said.contains("another node.data_dir"), "it says what to do: {said}");
    }
    let mut node = start(&["log.partitions=4"]);
    let data = format!("node.data_dir={}", node.data_dir().display());
    let (status, said) = refused(&[&data, "log.partitions=4"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("in use by another node"), "{said}");
    assert_eq!(node.terminate().code(), Some(0));
    let (status, said) = refused(&[&data, "log.partitions=5"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("log.partitions = 4") && said.contains("says 5"), "{said}");
    node.start_again();
    // What was acknowledged and can't be read any more is never passed over.
    node.say("to be damaged");
    node.process.kill();
    let journal = node.data_dir().join("0.jnl");
    let mut bytes = std::fs::read(&journal).expect("the journal");
    let at = bytes.windows(13).position(|part| part == b"to be damaged").expect("it is there");
    bytes[at] ^= 0xff;
    std::fs::write(&journal, bytes).expect("a file of ours");
    let (status, said) = refused(&[&data, "log.partitions=4"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("can't be opened") && said.contains("from a copy"), "{said}");
}

#[test]
fn a_cpu_that_is_not_there_is_told_of() {
    for set in ["node.shards=[1023]", "node.shards=0,1023"] {
        let output = run(&["--set", set], &[]);
        assert_eq!(output.status.code(), Some(2), "{set}");
        let said = text(&output.stderr);
        assert!(said.contains("may not run on CPU 1023, only on 0"), "{said}");
    }
}

#[test]
fn log_lines_have_no_colours_where_no_terminal_is() {
    let mut node = start(&[]);
    node.terminate();
    let said = node.process.text();
    assert!(said.contains("draining"), "there are log lines: {said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let mut node = start(&["output.format=json"]);
    node.terminate();
    let said = node.process.text();
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with('{')).collect();
    assert!(lines.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{said}");
    assert!(lines.iter().any(|line| line.contains("draining")), "{said}");
}

/// A file system of our own. Unmounted when dropped.
struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    /// `None` where nothing can be mounted.
    fn tmpfs(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "corecast-test"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self { folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn resize(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(self.path());
        assert!(mount.status().expect("it was run before").success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_costs_creates_and_nothing_else() {
    let Some(disk) = Mount::tmpfs("size=16m") else {
        return harness::skip("nothing can be mounted", "run as root for a small disk");
    };
    let data: PathBuf = disk.path().join("data");
    let mut node = Node::start_in(PROGRAM, &data, &["stream.heartbeat_s=1"]);
    let mut stream = node.stream("userId=full");
    let start_cursor = stream.last_id.clone().expect("CONNECTED carries one");
    let mut acknowledged = BTreeSet::new();
    let refusal = loop {
        let content = incompressible(50_000);
        let answer = node.try_create(&json!({"content": content, "targetType": "ALL"}));
        let answer = answer.expect("an answer");
        if answer.status != 200 {
            break answer;
        }
        acknowledged.insert(content);
        assert!(acknowledged.len() < 1_000, "the disk is full some time");
    };
    refusal.error(503);
    assert!(refusal.field("retry-after").is_some());
    assert!(acknowledged.len() > 10, "{} were taken before", acknowledged.len());
    // Order is that of each partition, so what came is compared as a whole.
    let read = |stream: &mut Stream| -> BTreeSet<String> {
        (0..acknowledged.len()).map(|_| stream.message().content().to_owned()).collect()
    };
    assert!(read(&mut stream) == acknowledged, "what was taken is served");
    let message = wait::until("readiness goes off", PATIENCE, || {
        let answer = node.get("/health/ready");
        (answer.status != 200).then(|| answer.error(503))
    });
    assert!(message.contains("store"), "it says what is missing: {message}");
    node.get("/health/live").expect_json();
    // Creates stay refused, each for the same reason, reading goes on, and streams stay and are
    // replayed.
    for _ in 0..20 {
        let answer = node.try_create(&json!({"content": "x", "targetType": "ALL"}));
        let reason = answer.expect("an answer").error(503);
        assert!(reason.contains("o space left"), "{reason}");
    }
    let rows = node.get("/api/admin/broadcasts?limit=5").expect_json();
    assert_eq!(rows.as_array().map(Vec::len), Some(5));
    assert_eq!(stream.next_item(), Item::Comment(String::new()), "the open stream lives");
    let fields = [("last-event-id", start_cursor.as_str())];
    let mut again = node.stream_with("userId=full", &fields);
    assert!(read(&mut again) == acknowledged, "and replayed");

    node.process.kill();
    disk.resize("size=256m");
    node.start_again();
    let mut back = node.stream_with("userId=full", &fields);
    // What was refused may have been half done: it is whole now, or was never.
    let mut came = BTreeSet::new();
    for _ in 0..2 {
        // The second is said when the first is here, so it is behind all partitions.
        let last = node.say("after");
        loop {
            let message = back.message();
            if message.data["broadcastId"] == last["id"] {
                break;
            }
            let path = format!("/api/admin/broadcasts/{}", message.data["broadcastId"]);
            node.get(&path).expect_json();
            assert!(came.insert(message.content().to_owned()), "nothing twice");
        }
    }
    assert!(acknowledged.is_subset(&came), "nothing acknowledged is lost");
    assert!(came.len() <= acknowledged.len() + 2, "what was refused may have come");
}

/// Text that no compression makes smaller than half of it.
fn incompressible(bytes: usize) -> String {
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(&uuid::Uuid::new_v4().simple().to_string());
    }
    text
}

#[test]
fn a_disk_that_is_full_at_the_start_is_named() {
    let Some(disk) = Mount::tmpfs("size=1m") else {
        return harness::skip("nothing can be mounted", "run as root for a small disk");
    };
    let mut filler = std::fs::File::create(disk.path().join("filler")).expect("a file");
    while filler.write_all(&[0; 4_096]).is_ok() {}
    let data = disk.path().join("data");
    let (status, said) = refused(&[&format!("node.data_dir={}", data.display())]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("full") && said.contains(&*data.to_string_lossy()), "{said}");
}

#[test]
fn a_disk_that_hangs_costs_its_creates_time_but_not_for_ever() {
    let node = start(&[]);
    let mut stream = node.stream("userId=hanging");
    node.say("before");
    assert_eq!(stream.message().content(), "before");
    let Some(held) = Held::hold(&node.process, "embedded-commit") else {
        return harness::skip(
            "ptrace is not allowed",
            "allow it: kernel.yama.ptrace_scope, seccomp",
        );
    };
    let body = json!({"content": "held up", "targetType": "ALL"}).to_string();
    let fields = [("content-type", "application/json")];
    let target = "/api/admin/broadcasts";
    let request = http::request(node.admin, "POST", target, &fields, Some(body.as_bytes()));
    let mut connection = http::Connection::open(node.admin);
    connection.send(&request).expect("taken");
    // Longer than the node may take, on a machine that is busy.
    let answer = connection.read_response(2 * PATIENCE).expect("an answer");
    let message = answer.error(503);
    assert!(message.contains("may still happen"), "{message}");
    assert!(answer.field("retry-after").is_some());
    // What needs no write goes on meanwhile.
    let rows = node.get(target).expect_json();
    assert_eq!(rows.as_array().map(Vec::len), Some(1));
    drop(held);
    // Whole, though its caller was told that it is late.
    assert_eq!(stream.message().content(), "held up");
    let rows = node.get(target).expect_json();
    assert_eq!(rows.as_array().map(Vec::len), Some(2));
}

#[test]
fn connections_that_say_nothing_keep_nobody_from_the_admin_listener() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start_narrow(PROGRAM, folder.path());
    let began = Instant::now();
    let mut silent = Vec::new();
    for number in 0..10 {
        for _ in 0..10 {
            let mut connection = http::Connection::open(node.admin);
            if number % 2 == 0 {
                connection.send(b"GET /health/live HT").expect("taken");
            }
            silent.push(connection);
        }
        node.get("/health/live").expect_json();
    }
    // Well before the first of them have had their time.
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    drop(silent);
}

#[test]
fn clients_never_take_the_descriptors_that_the_store_needs() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start_narrow(PROGRAM, folder.path());
    let said = node.process.wait_for_line(PATIENCE, |line| {
        line.contains("room for 68 streams a shard").then(|| line.to_owned())
    });
    assert!(said.contains("ulimit"), "it says what to do: {said}");
    let mut witness = node.stream("userId=witness");
    // More of everything than there are descriptors: streams, heads that do not end, calls.
    let mut open = Vec::new();
    let stream = "GET /api/user/sse/connect?userId=flood HTTP/1.1\r\nHost: localhost\r\n";
    for head in [&format!("{stream}\r\n"), stream, "POST /nothing HTTP/1.1\r\n"] {
        for _ in 0..300 {
            let mut connection = http::Connection::open(node.public);
            let _ = connection.send(head.as_bytes());
            open.push(connection);
        }
    }
    // Enough for the store to begin new files.
    for number in 0..40 {
        let content = format!("{number} {}", incompressible(60_000));
        node.create(
            &json!({"content": content, "targetType": "SELECTED", "targetIds": ["witness"]}),
        );
        assert_eq!(witness.message().content(), content);
    }
    assert_eq!(node.metric("corecast_descriptors_exhausted_total"), Some(0.0));
    drop(open);
    wait::until_true("there is room again", PATIENCE, || {
        node.metric("corecast_streams").is_some_and(|streams| streams <= 1.0)
    });
    node.stream("userId=after");
}
