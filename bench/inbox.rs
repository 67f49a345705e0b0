//! `cargo bench --bench inbox`: how long a user who was away waits for his messages when he comes,
//! and how long the owner needs for a burst.
//!
//! One broker of Apache Kafka, one node of Apache Cassandra, the node as it is shipped, and the
//! clients in this process, all on the same cores and none pinned by us. Needs Java and Maven.
//!
//! Environment: `BENCH_JSON=FILE` writes the figures there too. A word on the command line runs
//! only `connect` or `burst`.

#[path = "common/figures.rs"]
mod figures;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use figures::{Figures, Goal, percentile};
use harness::cassandra::Cassandra;
use harness::kafka::{Kafka, Version};
use harness::node::{Node, ask};
use harness::sse::Stream;
use harness::wait;
use serde_json::{Value, json};

/// As in the program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
/// Users of a round, and what waits for each.
const USERS: usize = 100;
const WAITING: usize = 20;
/// Between two of them who connect.
const CONNECT_PACE: Duration = Duration::from_millis(50);
/// Targeted events a second while they do: broadcasts of so many targets, so often.
const FLOW_TARGETS: usize = 100;
const FLOW_PACE: Duration = Duration::from_millis(100);
/// p99, of the issue that asked for it.
const CONNECT_GOAL_MS: f64 = 100.0;
/// Targets of the burst.
const BURST: usize = 100_000;
const LONG: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    if let Some(program) = harness::kafka::missing() {
        harness::skip(&format!("no {program}"), "install a JDK 17 and Maven");
        return ExitCode::SUCCESS;
    }
    let wants = figures::wanted();
    let program = harness::shipped::program();
    let cassandra = std::thread::spawn(|| Cassandra::start(1));
    let kafka = Kafka::start(Version::V4_3, 1);
    let cassandra = cassandra.join().expect("it starts");
    let sets = [
        "log.kind=kafka".to_owned(),
        format!("log.brokers={}", json!(kafka.addresses())),
        "store.kind=scylla".to_owned(),
        format!("store.nodes={}", json!(cassandra.addresses())),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let node = Arc::new(Node::start(program, &sets));
    let mut figures = Figures::default();
    if wants("connect") {
        measure_connects(&node, &mut figures);
    }
    if wants("burst") {
        measure_burst(&node, &mut figures);
    }
    figures.tell();
    ExitCode::SUCCESS
}

fn select(content: &str, users: &[String]) -> Value {
    json!({"content": content, "targetType": "SELECTED", "targetIds": users})
}

fn wait_for_no_lag(node: &Node) -> Duration {
    let began = Instant::now();
    wait::until_true("the owner has kept everything", LONG, || {
        node.metric("corecast_owned_lag_records") == Some(0.0)
            && node.metric("corecast_log_lag_records") == Some(0.0)
    });
    began.elapsed()
}

/// From the connect to the last message that waited, while other events flow; beside users for
/// whom nothing waits, until CONNECTED.
fn measure_connects(node: &Arc<Node>, figures: &mut Figures) {
    println!(
        "connect: {ROUNDS} rounds of {USERS} users with {WAITING} messages each, one every {} ms, \
         while {} targeted events a second flow",
        CONNECT_PACE.as_millis(),
        FLOW_TARGETS as u128 * 1_000 / FLOW_PACE.as_millis(),
    );
    let users = |round: usize| -> Vec<String> {
        (0..USERS).map(|user| format!("away-{round}-{user}")).collect()
    };
    let text = "x".repeat(200);
    for round in 0..ROUNDS {
        for _ in 0..WAITING {
            node.create(&select(&text, &users(round)));
        }
    }
    wait_for_no_lag(node);
    let is_over = Arc::new(AtomicBool::new(false));
    let flow = std::thread::spawn({
        let (node, is_over) = (node.clone(), is_over.clone());
        move || {
            let targets: Vec<String> =
                (0..FLOW_TARGETS).map(|user| format!("flow-{user}")).collect();
            let mut due = Instant::now();
            while !is_over.load(Ordering::Relaxed) {
                node.create(&select("flows", &targets));
                due += FLOW_PACE;
                wait::until_due(due);
            }
        }
    });
    let (mut medians, mut tails, mut bare_medians, mut bare_tails) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (mut whole, mut bare) = (Vec::new(), Vec::new());
        for (number, user) in users(round).iter().enumerate() {
            let began = Instant::now();
            whole.push(connect(node, user, WAITING));
            bare.push(connect(node, &format!("new-{round}-{number}"), 0));
            wait::until_due(began + CONNECT_PACE);
        }
        for (all, into, share) in [
            (&whole, &mut medians, 0.5),
            (&whole, &mut tails, 0.99),
            (&bare, &mut bare_medians, 0.5),
            (&bare, &mut bare_tails, 0.99),
        ] {
            into.push(percentile(all, share));
        }
    }
    is_over.store(true, Ordering::Relaxed);
    flow.join().expect("it flows");
    for (name, measured, bare, goal) in [
        ("connect with an inbox of 20, p50", &medians, &bare_medians, Goal::None),
        ("connect with an inbox of 20, p99", &tails, &bare_tails, Goal::AtMost(CONNECT_GOAL_MS)),
    ] {
        figures.add((name, "ms"), measured, ("empty inbox", bare), goal);
    }
}

/// Milliseconds until so many messages are here.
fn connect(node: &Node, user: &str, messages: usize) -> f64 {
    let query = format!("userId={user}");
    let began = Instant::now();
    let mut stream = Stream::open(node.public, &ask(&query, &[]));
    stream.connected();
    for _ in 0..messages {
        stream.message();
    }
    began.elapsed().as_secs_f64() * 1e3
}

/// One broadcast of many targets: until the owner has kept the last of them, beside the time until
/// the log has them.
fn measure_burst(node: &Node, figures: &mut Figures) {
    println!("burst: {BURST} targeted events at once");
    let targets: Vec<String> = (0..BURST).map(|user| format!("burst-{user}")).collect();
    let began = Instant::now();
    node.create(&select("a burst", &targets));
    let created = began.elapsed();
    wait_for_no_lag(node);
    let kept = began.elapsed();
    let (created, kept) = (created.as_secs_f64(), kept.as_secs_f64());
    let baseline = ("its create", &[created][..]);
    figures.add(("lag back to 0 after 100,000 events", "s"), &[kept], baseline, Goal::None);
    figures.note(format!("burst: {:.0} rows a second kept", BURST as f64 / kept));
}
