//! P6, a slow reader costs only itself: on one node of a fleet some readers stand still under large
//! messages. The others get theirs as soon as without them, the node's memory is bounded, and
//! whoever stood still for too long is closed, comes back with his cursor, and misses nothing. What
//! one node does of it is in `tests/slow_reader.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use harness::http::Connection;
use harness::node::{Node, ask};
use harness::sse::{Event, Item, Stream};
use harness::wait;
use serde_json::json;

use crate::real::{LONG, PARTITIONS, PROGRAM, Place, is_missing, value};
use crate::traffic::draw_broadcast;
use crate::users::lock;
use crate::world::{self, World};

const QUICK: usize = 8;
const SLOW: usize = 16;
const CONTENT_BYTES: usize = 60 * 1024;
/// Messages while nobody stands still, and as many while some do. Kept for each of those who do,
/// they would be 59 MB.
const TIMED: usize = 60;
const PACE: Duration = Duration::from_millis(80);
/// Longer than the second half of them takes.
const PROGRESS: Duration = Duration::from_secs(8);
const PROGRESS_SET: &str = "limits.write_progress_s=8";
/// What the node may grow by meanwhile: it has a message once in its ring, and in what Kafka has
/// answered lately.
const MEMORY_BYTES_MAX: usize = 40 << 20;
/// What those who stand still may cost the others: the share of a turn that is theirs, and what
/// other tests do to this machine meanwhile.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// What was written, and when.
struct Writer<'a> {
    world: &'a World,
    place: &'a Place,
    at: Vec<Instant>,
}

/// A message has come to one of the quick ones.
struct Heard {
    number: usize,
    at: Instant,
}

impl Writer<'_> {
    /// To everybody, to the partitions in turn.
    fn write(&mut self) {
        let number = self.at.len();
        let content = format!("{number} {}", "x".repeat(CONTENT_BYTES));
        let record = value(None, draw_broadcast(), &content, &json!({"targetType": "ALL"}));
        let mut java = lock(&self.world.java);
        self.at.push(Instant::now());
        let partition = lane_of(number).to_string();
        java.say(&["post", "flow", &self.place.group, &partition, "k", &record]);
    }

    /// So many, at a pace, and waits until they are everywhere where they are read: how long each
    /// took, the longest last.
    fn time(&mut self, messages: usize, heard: &Receiver<Heard>) -> Vec<Duration> {
        let began = Instant::now();
        for number in 0..messages {
            wait::until_due(began + PACE * u32::try_from(number).expect("few"));
            self.write();
        }
        let took = (0..messages * QUICK).map(|_| {
            let Heard { number, at } = heard.recv_timeout(LONG).expect("it comes");
            at.saturating_duration_since(self.at[number])
        });
        let mut took: Vec<Duration> = took.collect();
        took.sort_unstable();
        took
    }
}

#[test]
fn others_get_theirs_as_soon_as_without_those_who_stand_still() {
    if is_missing() {
        return;
    }
    let world = world::shared();
    let place = world.place();
    let sets =
        [&place.sets()[..], &["log.replication=3", "store.replication=3", PROGRESS_SET]].concat();
    let nodes: [Node; 2] = std::array::from_fn(|_| Node::launch(PROGRAM, &sets));
    for node in &nodes {
        node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
    }
    let node = &nodes[0];
    let (hears, heard) = mpsc::channel();
    for number in 0..QUICK {
        let (stream, hears) = (node.stream(&format!("userId=quick-{number}")), hears.clone());
        std::thread::spawn(move || read(stream, &hears));
    }
    // They were here before anything was written, and come back to stand still.
    let cursors: Vec<_> = (0..SLOW).map(|slow| open(node.public, slow, None).1).collect();
    let mut writer = Writer { world: &world, place: &place, at: Vec::new() };
    writer.time(10, &heard);
    let alone = writer.time(TIMED, &heard);

    let opened = Instant::now();
    let still = cursors.iter().enumerate();
    let still: Vec<Stream> =
        still.map(|(slow, cursor)| open(node.public, slow, cursor.as_deref()).0).collect();
    wait::until_true("those who stand still are full", LONG, || {
        node.metric("corecast_writes_blocked_total").is_some_and(|many| many >= SLOW as f64)
    });
    let before = node.resident_bytes();
    let beside = writer.time(TIMED, &heard);
    let closed = || node.metric_of("corecast_stream_closes_total", "reason=\"slow\"");
    let grown = node.resident_bytes().saturating_sub(before);
    println!("p50, p99, longest: {} alone, {} beside {SLOW}", told(&alone), told(&beside));
    let closed_early = closed().unwrap_or(0.0);
    println!("the node grew by {} KiB; {closed_early} are closed", grown >> 10);
    assert!(percent(&beside, 99) < percent(&alone, 99) * 2 + DELAY_MAX, "see above");
    assert!(grown < MEMORY_BYTES_MAX, "{grown} bytes");
    assert!(closed_early == 0.0 || opened.elapsed() > PROGRESS, "they have their time");

    wait::until_true("they are closed", LONG, || closed() == Some(SLOW as f64));
    assert_eq!(node.metric("corecast_streams"), Some(QUICK as f64), "the others stay");
    println!("they are closed after {:?}", opened.elapsed());
    let (end, other) = (writer.at.len(), nodes[1].public);
    std::thread::scope(|threads| {
        for (slow, stream) in still.into_iter().enumerate() {
            threads.spawn(move || come_back(stream, other, slow, end));
        }
    });
    println!("and have all after {:?}", opened.elapsed());
}

/// Reads what is left of a stream that was closed, comes back with its cursor to another node, and
/// has then got all messages, in the order of each partition, and nothing else.
fn come_back(mut still: Stream, other: SocketAddr, slow: usize, messages: usize) {
    let mut got = Vec::new();
    loop {
        match still.next_item() {
            Item::Event(event) => got.push(number_of(&event)),
            Item::End(_) => break,
            Item::Comment(_) | Item::Id(_) => {}
            Item::Retry(_) => panic!("retry in the middle of a stream"),
        }
    }
    assert!(got.len() < messages, "it was closed before it had all");
    let mut again = open(other, slow, still.last_id.as_deref()).0;
    while got.len() < messages {
        got.push(number_of(&again.message()));
    }
    let mut lanes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    got.iter().for_each(|number| lanes.entry(lane_of(*number)).or_default().push(*number));
    assert!(lanes.values().all(|lane| lane.is_sorted()), "late: {lanes:?}");
    got.sort_unstable();
    assert!(got.iter().copied().eq(0..messages), "missed or twice: {got:?}");
}

/// Until the node is gone.
fn read(mut stream: Stream, hears: &Sender<Heard>) {
    while let Some(event) = stream.next_event() {
        let _ = hears.send(Heard { number: number_of(&event), at: Instant::now() });
    }
}

/// A stream of somebody who stands still, with a small buffer of its own; and where it begins.
fn open(address: SocketAddr, slow: usize, cursor: Option<&str>) -> (Stream, Option<String>) {
    let query = format!("userId=slow-{slow}");
    let fields: Vec<(&str, &str)> =
        cursor.map(|cursor| ("last-event-id", cursor)).into_iter().collect();
    let connection = Connection::narrow(address);
    let mut stream = Stream::over(connection, address, &ask(&query, &fields)).expect("an answer");
    let (_, connected) = stream.connected();
    (stream, connected.id)
}

fn number_of(event: &Event) -> usize {
    let number = event.content().split(' ').next().and_then(|number| number.parse().ok());
    number.expect("a number in front")
}

fn lane_of(number: usize) -> usize {
    number % usize::from(PARTITIONS)
}

fn percent(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn told(took: &[Duration]) -> String {
    format!("{:?}", [50, 99, 100].map(|one| percent(took, one)))
}
