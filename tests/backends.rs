//! Kafka and database that are absent at the node's start, or lost later: the node says what is
//! missing, holds its streams, goes on with what is there, and recovers by itself.

mod real;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use corecast::limits::shard::ASK_TIME;
use harness::cassandra::{Cassandra, Setup};
use harness::http::Response;
use harness::kafka::{Kafka, Version};
use harness::node::{Node, ask};
use harness::sse::{Item, Stream};
use real::{LONG, PROGRAM, Place, assert_put_off, is_missing, line, wait_until_missing};
use serde_json::json;

const ANN: &str = "userId=ann";

/// One broker and one database for all tests here, which take turns.
struct World {
    kafka: Kafka,
    cassandra: Cassandra,
    broker_runs: bool,
    database_runs: bool,
}

fn world() -> MutexGuard<'static, Option<World>> {
    static WORLD: Mutex<Option<World>> = Mutex::new(None);
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    world.get_or_insert_with(|| World {
        kafka: Kafka::prepare(Version::V4_3, 1),
        cassandra: Cassandra::prepare(1, Setup { durable_tables: true, ..Setup::default() }),
        broker_runs: false,
        database_runs: false,
    });
    world
}

impl World {
    /// Starts what does not run.
    fn start(&mut self) {
        let (kafka, cassandra) = (&mut self.kafka, &mut self.cassandra);
        std::thread::scope(|scope| {
            if !self.database_runs {
                scope.spawn(|| cassandra.start_again(0));
            }
            if !self.broker_runs {
                kafka.restart(0);
            }
        });
        (self.broker_runs, self.database_runs) = (true, true);
    }

    fn kill_broker(&mut self) {
        if std::mem::take(&mut self.broker_runs) {
            self.kafka.kill(0);
        }
    }

    fn kill_database(&mut self) {
        if std::mem::take(&mut self.database_runs) {
            self.cassandra.kill(0);
        }
    }

    fn place(&self) -> Place {
        Place::new(&self.kafka, &self.cassandra)
    }
}

fn create(node: &Node, content: &str, users: &[&str]) -> Response {
    let body = if users.is_empty() {
        json!({"content": content, "targetType": "ALL"})
    } else {
        json!({"content": content, "targetType": "SELECTED", "targetIds": users})
    };
    node.try_create(&body).expect("an answer")
}

/// The next items of an open stream are heartbeats.
fn assert_beats(stream: &mut Stream) {
    let mut beats = 0;
    while beats < 3 {
        match stream.next_item() {
            Item::Comment(_) => beats += 1,
            Item::Id(_) => {}
            other => panic!("a heartbeat was to come, not {other:?}"),
        }
    }
}

/// The contents of so many messages, in the order of the alphabet: partitions have none among
/// them.
fn sorted(stream: &mut Stream, count: usize) -> Vec<String> {
    let mut contents: Vec<String> =
        (0..count).map(|_| stream.message().content().to_owned()).collect();
    contents.sort_unstable();
    contents
}

#[test]
fn a_node_starts_without_its_backends_and_serves_once_they_come() {
    if is_missing() {
        return;
    }
    let mut guard = world();
    let world = guard.as_mut().expect("made");
    world.kill_broker();
    world.kill_database();
    let node = Node::launch(PROGRAM, &world.place().sets());
    wait_until_missing(&node, &["log", "store"]);
    assert_eq!(node.get("/health/live").status, 200);
    let mut put_off = Stream::open(node.public, &ask(ANN, &[]));
    assert!(matches!(put_off.next_item(), Item::Retry(1..)));
    assert!(matches!(put_off.next_item(), Item::End(_)));
    assert_put_off(&create(&node, "too early", &[]), "store");
    assert!(!node.process.text().lines().any(|line| line == "ready"));

    world.start();
    node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
    wait_until_missing(&node, &[]);
    let mut stream = node.stream(ANN);
    node.say("at last");
    assert_eq!(stream.message().content(), "at last");
}

#[test]
fn a_lost_broker_costs_no_stream_and_no_event() {
    if is_missing() {
        return;
    }
    let mut guard = world();
    let world = guard.as_mut().expect("made");
    world.start();
    let node = Node::launch(PROGRAM, &world.place().sets());
    node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
    let (mut open, first) = (node.stream(ANN), node.stream(ANN));
    create(&node, "before", &["ann"]).expect_json();
    assert_eq!(open.message().content(), "before");
    let gone = node.resume(ANN, &open);

    world.kill_broker();
    wait_until_missing(&node, &["log"]);
    assert_beats(&mut open);
    // Its status is written before Kafka is asked, so it exists and is owed.
    let owed = create(&node, "owed", &["ann", "ben"]);
    assert_put_off(&owed, "log");
    assert!(owed.error(503).contains("do not create it again"), "{owed:?}");
    let list = node.get("/api/admin/broadcasts?filter=all").expect_json();
    assert_eq!((&list[0]["content"], &list[0]["status"]), (&json!("owed"), &json!("ACTIVE")));
    assert_beats(&mut open);

    world.start();
    wait_until_missing(&node, &[]);
    assert_eq!(open.message().content(), "owed", "published by the relay");
    for number in 0..9 {
        let users: &[&str] = if number % 2 == 0 { &[] } else { &["ben", "ann"] };
        create(&node, &format!("later {number}"), users).expect_json();
    }
    let later: Vec<String> = (0..9).map(|number| format!("later {number}")).collect();
    assert_eq!(sorted(&mut open, later.len()), later);
    node.say("end");
    assert_eq!(open.message().content(), "end", "nothing twice");
    let owed = ["end", "owed"].map(str::to_owned);
    let mut expected: Vec<String> = later.into_iter().chain(owed).collect();
    expected.sort_unstable();
    let mut back = node.resume(ANN, &gone);
    assert_eq!(sorted(&mut back, expected.len()), expected);
    let mut again = node.resume(ANN, &first);
    expected.insert(0, "before".to_owned());
    assert_eq!(sorted(&mut again, expected.len()), expected);
    node.say("last");
    for stream in [&mut open, &mut back, &mut again] {
        assert_eq!(stream.message().content(), "last", "nothing twice");
    }
}

#[test]
fn a_lost_database_stops_creates_only() {
    if is_missing() {
        return;
    }
    let mut guard = world();
    let world = guard.as_mut().expect("made");
    world.start();
    let place = world.place();
    // A shard remembers little.
    let sets = [place.sets(), vec!["limits.ring_frames_max=4"]].concat();
    let node = Node::launch(PROGRAM, &sets);
    node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
    let mut open = node.stream(ANN);
    let first = node.stream(ANN);
    node.say("before");
    assert_eq!(open.message().content(), "before");

    world.kill_database();
    wait_until_missing(&node, &["store"]);
    assert_put_off(&create(&node, "refused", &[]), "store");
    let record = line("ann", Some("ann"), 1, "live", &json!({}));
    world.kafka.console_produce(&place.selected, &[], &record);
    assert_eq!(open.message().content(), "live");
    assert_beats(&mut open);
    // What the ring has lost comes from the log.
    let more: Vec<String> = (10..30).map(|number| format!("live {number}")).collect();
    let lines = (10..).zip(&more).map(|(id, said)| line("ann", Some("ann"), id, said, &json!({})));
    world.kafka.console_produce(&place.selected, &[], &lines.collect::<String>());
    let seen = ["before", "live"].map(str::to_owned).into_iter().chain(more);
    let seen: Vec<String> = seen.collect();
    open = node.resume(ANN, &first);
    assert_eq!(sorted(&mut open, seen.len()), seen);
    assert!(node.metric("corecast_replays_total") > Some(0.0));

    world.start();
    wait_until_missing(&node, &[]);
    node.say("after");
    assert_eq!(open.message().content(), "after", "what was refused is not published");
    let mut back = node.resume(ANN, &first);
    let all: Vec<String> = std::iter::once("after".to_owned()).chain(seen).collect();
    assert_eq!(sorted(&mut back, all.len()), all);

    // It may also answer nothing: who has a cursor that the log reaches does not wait for that.
    world.cassandra.freeze(0);
    let began = Instant::now();
    let mut late = node.resume(ANN, &first);
    let told = sorted(&mut late, all.len());
    let took = began.elapsed();
    world.cassandra.thaw(0);
    assert_eq!(told, all);
    assert!(took < ASK_TIME, "{took:?}");
}
