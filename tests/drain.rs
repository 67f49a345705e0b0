//! The drain of one node, and the age of its streams: it spreads the reconnects of its clients over
//! its window, each is back soon, and every client resumes exactly. Three nodes under load are in
//! `tests/promises`.

use std::os::unix::process::ExitStatusExt as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corecast::ports::{Clock as _, SystemClock};
use harness::browser::{self, Page};
use harness::http::{self, Connection, End, PATIENCE};
use harness::node::{self, Node};
use harness::on_each_runtime;
use harness::process::Process;
use harness::runtime::Runtime;
use harness::sse::{Item, Stream};
use harness::wait;
use rustix::process::Signal;
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");
const STREAMS: usize = 200;
/// Whose records take a debug build a while to write.
const MANY_USERS: usize = 40_000;
/// No client is away for longer.
const AWAY_MAX: Duration = Duration::from_secs(2);

// How a shard ends, which its runtime must let it.
on_each_runtime!(
    a_drain_is_spread_over_its_window_and_every_client_resumes,
    a_node_without_streams_ends_at_once,
    a_node_whose_last_stream_is_gone_stays_for_a_moment,
);

fn start(sets: &[&str]) -> Node {
    Node::start(PROGRAM, sets)
}

/// What a stream brought until its end.
struct Lived {
    stream: Stream,
    contents: Vec<String>,
    ended_at: Instant,
    /// What it was told at last.
    back_after: Duration,
}

/// Reads a stream to its end, whose last words must be `retry:` and SERVER_SHUTDOWN.
fn read_to_end(mut stream: Stream) -> JoinHandle<Lived> {
    std::thread::spawn(move || {
        let mut contents = Vec::new();
        let retry = loop {
            match stream.next_item() {
                Item::Event(event) if event.name == "MESSAGE" => {
                    contents.push(event.content().to_owned());
                }
                Item::Retry(retry) => break retry,
                Item::Comment(_) | Item::Id(_) => {}
                other => panic!("the end came untold: {other:?}"),
            }
        };
        let Item::Event(event) = stream.next_item() else { panic!("behind retry it is told why") };
        assert_eq!((event.name.as_str(), &event.id), ("SERVER_SHUTDOWN", &None));
        assert_eq!(event.data, json!({"reconnectAfterMs": retry}));
        assert_eq!(stream.next_item(), Item::End(End::Closed));
        let back_after = Duration::from_millis(retry);
        Lived { stream, contents, ended_at: Instant::now(), back_after }
    })
}

fn open_and_read(node: &Node) -> Vec<JoinHandle<Lived>> {
    let query = |number| format!("userId=drained-{number}");
    let streams: Vec<Stream> = (0..STREAMS).map(|number| node.stream(&query(number))).collect();
    streams.into_iter().map(read_to_end).collect()
}

fn all(readers: Vec<JoinHandle<Lived>>) -> Vec<Lived> {
    readers.into_iter().map(|reader| reader.join().expect("it was told")).collect()
}

/// Waits for readiness to go off, which it does at once, and says why.
fn wait_until_draining(node: &Node) {
    let message = wait::until("readiness goes off", PATIENCE, || {
        let answer = node.get("/health/ready");
        (answer.status != 200).then(|| answer.error(503))
    });
    assert!(message.contains("draining"), "{message}");
    node.get("/health/live").expect_json();
}

fn a_drain_is_spread_over_its_window_and_every_client_resumes(runtime: Runtime) {
    const WINDOW: Duration = Duration::from_secs(3);
    let mut node = start(&[runtime.set(), "drain.window_s=3"]);
    let readers = open_and_read(&node);
    node.say("before");
    let began = Instant::now();
    node.process.signal(Signal::TERM);
    wait_until_draining(&node);
    // Who comes late is told to come back, in a way that it understands.
    let late = node::ask("userId=late", &[]);
    let mut refused = Stream::open(node.public, &late);
    let Item::Retry(retry) = refused.next_item() else { panic!("it is told when to come back") };
    assert!(Duration::from_millis(retry) < AWAY_MAX, "{retry}");
    assert_eq!(refused.next_item(), Item::End(End::Closed));
    let answer = http::call(node.public, "GET", "/api/user/sse/connect?userId=late", &[], None);
    answer.error(503);
    assert!(answer.field("retry-after").is_some());
    // Other calls are served, and so are those streams that are not told yet.
    http::call(node.public, "GET", "/api/user/nothing", &[], None).error(404);
    let mut said = vec!["before".to_owned()];
    // For half of the window, so that a machine that is slow is not too slow.
    for number in 0..12_u32 {
        wait::until_due(began + number * WINDOW / 25);
        let content = format!("during {number}");
        node.say(&content);
        said.push(content);
    }
    let mut lived = all(readers);
    for quarter in 0..4 {
        let quarter = began + quarter * WINDOW / 4..began + (quarter + 1) * WINDOW / 4;
        let many = lived.iter().filter(|lived| quarter.contains(&lived.ended_at)).count();
        assert!((20..=90).contains(&many), "{many} of {STREAMS} in a quarter of the window");
    }
    assert!(lived.iter().all(|lived| lived.back_after < AWAY_MAX));
    let early = lived.iter().filter(|lived| lived.back_after < Duration::from_millis(500)).count();
    assert!((50..=150).contains(&early), "{early} of {STREAMS} come back in half of the time");
    let some = |lived: &&Lived| (2..=12).contains(&lived.contents.len());
    assert!(lived.iter().filter(some).count() > 50, "they got what came meanwhile");
    let status = node.process.wait_for_end(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", node.process.text());
    assert!(began.elapsed() >= WINDOW / 2, "it waits for its streams");

    node.start_again();
    said.push("after".to_owned());
    said.sort_unstable();
    let mut back: Vec<Stream> = Vec::new();
    for (number, lived) in lived.iter().enumerate() {
        back.push(node.resume(&format!("userId=drained-{number}"), &lived.stream));
    }
    node.say("after");
    for (stream, lived) in back.iter_mut().zip(&mut lived) {
        lived.contents.extend(stream.contents_until("after"));
        lived.contents.push("after".to_owned());
        lived.contents.sort_unstable();
        assert_eq!(lived.contents, said, "nothing is lost, nothing comes twice");
    }
}

fn a_node_without_streams_ends_at_once(runtime: Runtime) {
    let mut node = start(&[runtime.set(), "drain.window_s=3600"]);
    let began = Instant::now();
    assert_eq!(node.terminate().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

fn a_node_whose_last_stream_is_gone_stays_for_a_moment(runtime: Runtime) {
    let mut node = start(&[runtime.set(), "drain.window_s=3600"]);
    let mut stream = node.stream("userId=last");
    let began = Instant::now();
    node.process.signal(Signal::TERM);
    wait_until_draining(&node);
    // Of all partitions, which both shards decode, though one of them has no stream.
    for number in 0..20 {
        node.say(&number.to_string());
    }
    let mut contents: Vec<u32> =
        (0..20).map(|_| stream.message().content().parse().expect("a number")).collect();
    contents.sort_unstable();
    assert!(contents.into_iter().eq(0..20));
    drop(stream);
    let status = node.process.wait_for_end(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", node.process.text());
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(950), "{took:?}: a check of readiness may miss that");
    assert!(took < Duration::from_secs(15), "{took:?}: nobody is left to wait for");
}

/// On both runtimes at one time, since it takes a while until a stream is old.
#[test]
fn old_streams_are_told_and_come_back() {
    let runtimes = [Runtime::Glommio, Runtime::Epoll].into_iter();
    let nodes = runtimes
        .filter(|runtime| runtime.is_here(PROGRAM))
        .map(|runtime| start(&[runtime.set(), "stream.max_age_s=10"]));
    let nodes: Vec<Node> = nodes.collect();
    let began = Instant::now();
    let readers: Vec<_> = nodes.iter().map(open_and_read).collect();
    for (node, readers) in nodes.iter().zip(readers) {
        let lived = all(readers);
        let rotated = || node.metric_of("corecast_stream_closes_total", "reason=\"rotated\"");
        wait::until_true("they are counted", PATIENCE, || rotated() == Some(STREAMS as f64));
        let first = lived.iter().map(|lived| lived.ended_at).min().expect("some");
        assert!(first >= began + Duration::from_millis(8_900), "{:?}", first - began);
        assert!(lived.iter().all(|lived| lived.back_after < AWAY_MAX));
        let mut back = node.resume("userId=drained-0", &lived[0].stream);
        node.say("after");
        assert_eq!(back.message().content(), "after", "nothing twice");
    }
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let mut node = start(&["drain.window_s=3600"]);
        let _stream = node.stream("userId=cut-off");
        if second == Signal::TERM {
            node.process.signal(Signal::TERM);
            wait_until_draining(&node);
        } else {
            // Both at the same time, for a process that was frozen: neither may be missed.
            node.process.freeze();
            node.process.signal(Signal::TERM);
        }
        node.process.signal(second);
        node.process.thaw();
        let status = node.process.wait_for_end(PATIENCE);
        assert_eq!((status.code(), status.signal()), (Some(1), None));
        assert!(node.process.text().contains("second signal"), "{}", node.process.text());
    }
}

/// Nobody else would.
#[test]
fn a_node_that_is_alone_ends_broadcasts_while_it_drains() {
    let node = start(&["drain.window_s=8"]);
    let mut streams: Vec<Stream> =
        (0..STREAMS).map(|number| node.stream(&format!("userId=u{number}"))).collect();
    node.process.signal(Signal::TERM);
    wait_until_draining(&node);
    let ends_at = SystemClock.wall().plus(Duration::from_secs(1)).to_iso();
    let ends_at = std::str::from_utf8(&ends_at).expect("ASCII");
    let made = node.create(&json!({"content": "short", "targetType": "ALL", "expiresAt": ends_at}));
    let id = &made["id"];
    wait::until_true("it expires", Duration::from_secs(6), || {
        let shown = node.get(&format!("/api/admin/broadcasts/{id}")).expect_json();
        shown["status"] == "EXPIRED"
    });
    // Some of the streams are still there, and are told.
    let is_told = streams.iter_mut().any(|stream| {
        loop {
            match stream.next_item() {
                Item::Event(event) if event.name == "MESSAGE_REMOVED" => break true,
                Item::End(_) => break false,
                _ => {}
            }
        }
    });
    assert!(is_told);
}

#[test]
fn creates_that_are_under_way_are_answered_before_the_end() {
    let mut node = start(&[]);
    let users: Vec<String> = (0..MANY_USERS).map(|number| format!("u{number}")).collect();
    let body = json!({"content": "many", "targetType": "SELECTED", "targetIds": users});
    let admin = node.admin;
    let create = std::thread::spawn(move || node::try_create(admin, &body));
    wait::until_true("it has begun", PATIENCE, || {
        let list = node.get("/api/admin/broadcasts?filter=all").expect_json();
        list.as_array().is_some_and(|rows| !rows.is_empty())
    });
    node.process.signal(Signal::TERM);
    let answer = create.join().expect("it ends").expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(node.process.wait_for_end(PATIENCE).code(), Some(0));
}

#[test]
fn a_signal_while_the_store_is_being_opened_is_heard() {
    const TERM_IS_CAUGHT: u64 = 1 << 14;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut command = node::command(PROGRAM.as_ref());
    let data = format!("node.data_dir={}", folder.path().display());
    command.args(["--set", &data, "--set", "public.listen=127.0.0.1:0"]);
    command.args(["--set", "admin.listen=127.0.0.1:0"]);
    let mut process = Process::start("corecast", command).expect("the program can be run");
    wait::until_true("it hears signals", PATIENCE, || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()));
        let status = status.unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
        caught.is_some_and(|caught| caught & TERM_IS_CAUGHT != 0)
    });
    process.signal(Signal::TERM);
    assert!(!process.text().contains("listener on"), "it came too late to show anything");
    assert_eq!(process.wait_for_end(PATIENCE).code(), Some(0));
}

#[test]
fn a_reader_who_stands_still_does_not_hold_a_drain_up() {
    let mut node = start(&["drain.window_s=1"]);
    let ask = node::ask("userId=still", &[]);
    let mut still = Stream::over(Connection::narrow(node.public), node.public, &ask);
    still.as_mut().expect("an answer").connected();
    let content = "x".repeat(60_000);
    wait::until_true("its socket is full", PATIENCE, || {
        node.say(&content);
        node.metric("corecast_writes_blocked_total").is_some_and(|blocked| blocked > 0.0)
    });
    let began = Instant::now();
    assert_eq!(node.terminate().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn an_event_source_is_back_soon_and_misses_nothing() {
    let Some(program) = browser::find() else {
        return harness::skip("no Chromium", "install the package chromium");
    };
    let mut node = start(&["drain.window_s=1"]);
    let page = Page::open(program, node.public);
    page.wait_for_connected();
    node.say("before");
    page.expect_message("before");
    node.process.signal(Signal::TERM);
    let (what, data) = page.next();
    assert_eq!(what, "SERVER_SHUTDOWN");
    assert!(data["reconnectAfterMs"].as_u64().is_some_and(|after| after < 2_000), "{data}");
    let away = wait::until("it comes back by itself", PATIENCE, || page.was_away());
    assert!(away < AWAY_MAX, "{away:?}");
    assert_eq!(node.process.wait_for_end(PATIENCE).code(), Some(0));
    node.start_again();
    node.say("meanwhile");
    page.wait_for_connected();
    page.expect_message("meanwhile");
}
