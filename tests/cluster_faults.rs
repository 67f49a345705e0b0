//! A node on three brokers and three database nodes, of which some, or all of a kind, are killed
//! and frozen while records flow and broadcasts are created: its streams get each of them once, in
//! the order of its partition, and all goes on by itself.
//!
//! Cassandra stands in for ScyllaDB.

mod real;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corecast::base::partition_of_key;
use corecast::limits::kafka::REQUEST_TIME;
use corecast::limits::log::FETCH_WAIT;
use harness::cassandra::{Cassandra, Setup};
use harness::kafka::{JavaProducer, Kafka, Version};
use harness::node::{Node, try_create};
use harness::sse::{Item, Stream};
use harness::wait;
use real::{
    LONG, PARTITIONS, PROGRAM, Place, assert_put_off, is_missing, line, wait_until_missing,
};
use serde_json::json;

/// From a fault of one broker until records of every partition come again: the node gives up a
/// request after 5.5 s, the brokers give their fellow up after 3 s and choose new leaders, and the
/// node's next try is at most 5 s away. Twice that, for a machine that is busy.
const FLOW_AGAIN: Duration = Duration::from_secs(30);
/// From a fault, or its end, until readiness says so: time-outs, and the longest wait between two
/// tries, and what the clusters themselves take to find together.
const READINESS: Duration = Duration::from_secs(40);
/// The longest that a create may take, whatever is away.
const ANSWER: Duration = Duration::from_secs(18);

/// Three brokers, three databases and one place on them, for all tests here, which take turns.
struct World {
    kafka: Kafka,
    cassandra: Cassandra,
    place: Place,
    java: Option<JavaProducer>,
    killed_brokers: [bool; 3],
    killed_databases: [bool; 3],
    /// Some partitions are led by another broker than the one that is to lead them.
    leaders_moved: bool,
}

fn world() -> MutexGuard<'static, Option<World>> {
    static WORLD: Mutex<Option<World>> = Mutex::new(None);
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    world.get_or_insert_with(World::start).heal();
    world
}

impl World {
    fn start() -> Self {
        let durable = Setup { durable_tables: true, ..Setup::default() };
        let began = Instant::now();
        let cassandra = std::thread::spawn(move || Cassandra::start_with(3, durable));
        let kafka = Kafka::start(Version::V4_3, 3);
        let cassandra = cassandra.join().expect("it starts");
        let place = Place::new(&kafka, &cassandra);
        println!("the clusters run after {:?}", began.elapsed());
        let (killed_brokers, killed_databases) = ([false; 3], [false; 3]);
        Self {
            kafka,
            cassandra,
            place,
            java: None,
            killed_brokers,
            killed_databases,
            leaders_moved: false,
        }
    }

    /// Undoes what the last test left, if it failed.
    fn heal(&mut self) {
        for index in 0..3 {
            match std::mem::take(&mut self.killed_brokers[index]) {
                true => self.kafka.restart(index),
                false => self.kafka.thaw(index),
            }
            match std::mem::take(&mut self.killed_databases[index]) {
                true => self.cassandra.start_again(index),
                false => self.cassandra.thaw(index),
            }
        }
    }

    fn kill_broker(&mut self, index: usize) {
        self.kafka.kill(index);
        self.killed_brokers[index] = true;
        self.leaders_moved = true;
    }

    fn freeze_broker(&mut self, index: usize) {
        self.kafka.freeze(index);
        self.leaders_moved = true;
    }

    fn restart_broker(&mut self, index: usize) {
        self.kafka.restart(index);
        self.killed_brokers[index] = false;
    }

    fn kill_database(&mut self, index: usize) {
        self.cassandra.kill(index);
        self.killed_databases[index] = true;
    }

    fn restart_database(&mut self, index: usize) {
        self.cassandra.start_again(index);
        self.killed_databases[index] = false;
    }

    /// A node, and what flows through it.
    fn node(&mut self) -> (Node, Traffic) {
        // What earlier tests have left would come to everybody who has no cursor.
        self.place.move_to_new_topics(&self.kafka, &self.cassandra);
        let mut sets = self.place.sets();
        sets.extend(["log.replication=3", "store.replication=3"]);
        let node = Node::launch(PROGRAM, &sets);
        if std::mem::take(&mut self.leaders_moved) {
            self.kafka.wait_until_in_step();
            self.kafka.give_back_leaders();
        }
        node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
        let java = self.java.take().unwrap_or_else(|| open_java(&self.kafka));
        let traffic = Traffic::start(&node, &self.place, java);
        traffic.goes_on("all are there");
        (node, traffic)
    }

    /// The broker that leads the first partition of the group topic.
    fn leader(&self) -> usize {
        self.kafka.leader(&self.place.group, 0).expect("a leader")
    }
}

/// A producer that gives a frozen broker up soon, so that it is the node's time that is measured.
fn open_java(kafka: &Kafka) -> JavaProducer {
    let mut java = kafka.java_producer();
    let soon = ["request.timeout.ms=2000", "socket.connection.setup.timeout.ms=1000"];
    java.say(&[&["open", "flow", "reconnect.backoff.max.ms=200"], &soon[..]].concat());
    java
}

/// Places that records are written straight to: each partition of the group topic, and ann's of
/// the selected one. The stream must get each one's records in order.
const LANES: usize = PARTITIONS as usize + 1;
/// Between two records of each.
const PACE: Duration = Duration::from_millis(20);
/// Between two broadcasts.
const CREATE_PACE: Duration = Duration::from_millis(100);

/// Records that are written, broadcasts that are created, and a stream that gets both.
struct Traffic {
    shared: Arc<Shared>,
    /// Opened before the first record, and read at the end.
    first: Stream,
    writing: Job<(JavaProducer, [u64; LANES])>,
    creating: Job<()>,
    reading: JoinHandle<Heard>,
}

/// A thread that works until this is told to end.
struct Job<T> {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<T>,
}

struct Shared {
    /// Begins the content of every broadcast of this traffic, and of every record that is written
    /// for it: what earlier ones have left still comes to who has no cursor.
    name: String,
    flow: String,
    user: String,
    written: [AtomicU64; LANES],
    heard: [AtomicU64; LANES],
    beats: AtomicUsize,
    made: Mutex<Made>,
    /// How many records each lane had in the end.
    ends: Mutex<Option<[u64; LANES]>>,
    /// Broadcasts that came.
    came: Mutex<HashSet<String>>,
}

/// How creates were answered.
#[derive(Clone, Default)]
struct Made {
    acknowledged: Vec<String>,
    refused: Vec<Refused>,
    slowest: Duration,
}

#[derive(Clone, Debug)]
struct Refused {
    content: String,
    message: String,
}

/// What came on a stream: of each lane how many records, each broadcast how often.
#[derive(Default)]
struct Heard {
    lanes: [u64; LANES],
    broadcasts: HashMap<String, usize>,
}

impl Traffic {
    fn start(node: &Node, place: &Place, java: JavaProducer) -> Self {
        static DRAWN: AtomicUsize = AtomicUsize::new(0);
        let number = DRAWN.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            name: format!("made {number}"),
            flow: format!("flow {number}"),
            user: format!("ann-{number}"),
            written: Default::default(),
            heard: Default::default(),
            beats: AtomicUsize::new(0),
            made: Mutex::default(),
            ends: Mutex::default(),
            came: Mutex::default(),
        });
        let query = shared.query();
        let (stream, first) = (node.stream(&query), node.stream(&query));
        let reading = std::thread::spawn({
            let shared = shared.clone();
            move || read(stream, &shared)
        });
        let writing = {
            let (shared, topics) = (shared.clone(), [place.group.clone(), place.selected.clone()]);
            Job::start(move |stop| write(java, &topics, &shared, &stop))
        };
        let creating = {
            let (shared, admin) = (shared.clone(), node.admin);
            Job::start(move |stop| create(admin, &shared, &stop))
        };
        Self { shared, first, writing, creating, reading }
    }

    /// Waits until records of every lane come that are written from now on; how long that took.
    fn goes_on(&self, what: &str) -> Duration {
        let began = Instant::now();
        let until: Vec<u64> = self.shared.written.iter().map(|count| load(count) + 10).collect();
        wait::until_true(&format!("records flow: {what}"), LONG, || {
            self.check();
            self.shared.heard.iter().zip(&until).all(|(heard, until)| load(heard) >= *until)
        });
        println!("{what}: records flow after {:?}", began.elapsed());
        began.elapsed()
    }

    /// Waits until that many more creates are acknowledged.
    fn creates_go_on(&self, what: &str) {
        let began = Instant::now();
        let until = self.made().acknowledged.len() + 10;
        wait::until_true(&format!("broadcasts are created: {what}"), LONG, || {
            self.check();
            self.made().acknowledged.len() >= until
        });
        let made = self.made();
        println!(
            "{what}: creates go on after {:?}, {} refused, the slowest took {:?} so far",
            began.elapsed(),
            made.refused.len(),
            made.slowest
        );
    }

    /// Waits until so many creates that are sent from now on are refused, each by what is away.
    fn wait_for_refusals(&self, count: usize, away: &str) {
        // One may be under way.
        let from = self.made().refused.len() + 1;
        let refused = wait::until("creates are refused", LONG, || {
            self.check();
            let refused = self.made().refused;
            (refused.len() >= from + count).then_some(refused)
        });
        for Refused { content, message } in &refused[from..] {
            assert!(message.starts_with(&format!("{away} is away")), "{content}: {message}");
        }
    }

    /// Waits until the open stream has got so many heartbeats more.
    fn beats(&self) {
        let until = self.shared.beats.load(Ordering::Relaxed) + 3;
        wait::until_true("the stream is held", LONG, || {
            self.check();
            self.shared.beats.load(Ordering::Relaxed) >= until
        });
    }

    fn made(&self) -> Made {
        lock(&self.shared.made).clone()
    }

    /// Ends at once what would otherwise wait for a thread that has panicked.
    fn check(&self) {
        let ended = self.reading.is_finished()
            || self.writing.thread.is_finished()
            || self.creating.thread.is_finished();
        assert!(!ended, "the traffic has ended, see above");
    }

    /// Ends it once everything is there, and looks at what came: each record and each acknowledged
    /// broadcast once, on the stream that was open and on one that comes back.
    fn end(self, world: &mut World, node: &Node) -> Made {
        self.creating.end();
        let made = lock(&self.shared.made).clone();
        self.shared.check_list(node, &made);
        let (java, ends) = self.writing.end();
        world.java = Some(java);
        *lock(&self.shared.ends) = Some(ends);
        let live = self.reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let again = read(node.resume(&self.shared.query(), &self.first), &self.shared);
        for (which, heard) in [("open", live), ("back", again)] {
            assert_eq!(heard.lanes, ends, "{which}");
            for content in &made.acknowledged {
                assert_eq!(heard.broadcasts.get(content), Some(&1), "{which}: {content}");
            }
            for Refused { content, message } in &made.refused {
                let times = heard.broadcasts.get(content).copied().unwrap_or(0);
                assert!(times <= 1, "{which}: {content} {times} times, refused: {message}");
            }
            let known = made.acknowledged.len() + made.refused.len();
            assert!(heard.broadcasts.len() <= known, "{which}: {:?}", heard.broadcasts);
        }
        made
    }
}

impl<T: Send + 'static> Job<T> {
    fn start(work: impl FnOnce(mpsc::Receiver<()>) -> T + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        Self { stop, thread: std::thread::spawn(move || work(stopped)) }
    }

    fn end(self) -> T {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Whether the job goes on; after its pace.
fn goes_on(stop: &mpsc::Receiver<()>, pace: Duration) -> bool {
    matches!(stop.recv_timeout(pace), Err(RecvTimeoutError::Timeout))
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// Writes to every lane in turn; one more round once it is to end, behind everything else.
fn write(
    mut java: JavaProducer,
    [group, selected]: &[String; 2],
    shared: &Shared,
    stop: &mpsc::Receiver<()>,
) -> (JavaProducer, [u64; LANES]) {
    static IDS: AtomicU64 = AtomicU64::new(1);
    let user = shared.user.as_str();
    let own = partition_of_key(user.as_bytes(), PARTITIONS);
    loop {
        let is_over = !goes_on(stop, PACE);
        for (lane, written) in shared.written.iter().enumerate() {
            let content = format!("{} {lane} {}", shared.flow, load(written));
            let id = IDS.fetch_add(1, Ordering::Relaxed);
            let (topic, partition, line) = match u16::try_from(lane).expect("few") {
                PARTITIONS => (selected, own, line(user, Some(user), id, &content, &json!({}))),
                lane => {
                    let role = json!({"targetType": "ROLE", "targetIds": [shared.flow]});
                    (group, lane, line("k", None, id, &content, &role))
                }
            };
            let value = line.trim_end().rsplit('\t').next().expect("a value");
            java.say(&["post", "flow", topic, &partition.to_string(), "k", value]);
            written.fetch_add(1, Ordering::Relaxed);
        }
        if is_over {
            break;
        }
    }
    java.say(&["settle"]);
    let ends = shared.written.each_ref().map(load);
    (java, ends)
}

/// Creates broadcasts to the role and to the user of the traffic in turn. Whatever is refused must
/// be so for now, and soon.
fn create(admin: SocketAddr, shared: &Shared, stop: &mpsc::Receiver<()>) {
    let mut number = 0;
    while goes_on(stop, CREATE_PACE) {
        number += 1;
        let content = format!("{} {number}", shared.name);
        let (kind, id) =
            if number % 2 == 0 { ("ROLE", &shared.flow) } else { ("SELECTED", &shared.user) };
        let body = json!({"content": content, "targetType": kind, "targetIds": [id]});
        let began = Instant::now();
        let answer = try_create(admin, &body).expect("an answer");
        let took = began.elapsed();
        assert!(took < ANSWER, "{took:?}: {answer:?}");
        let mut made = lock(&shared.made);
        made.slowest = made.slowest.max(took);
        if answer.status == 200 {
            made.acknowledged.push(content);
        } else {
            assert_put_off(&answer, "away");
            if made.refused.len() < 5 {
                println!("refused after {took:?}: {}", answer.text());
            }
            made.refused.push(Refused { content, message: answer.error(503) });
        }
    }
}

/// Reads until everything that was written has come.
fn read(mut stream: Stream, shared: &Shared) -> Heard {
    let mut heard = Heard::default();
    while *lock(&shared.ends) != Some(heard.lanes) {
        match stream.next_item() {
            Item::Comment(_) => drop(shared.beats.fetch_add(1, Ordering::Relaxed)),
            Item::Id(_) => {}
            Item::Event(event) if event.name == "MESSAGE" => heard.take(event.content(), shared),
            other => panic!("a message was to come, not {other:?}"),
        }
    }
    heard
}

impl Heard {
    fn take(&mut self, content: &str, shared: &Shared) {
        if content.starts_with("made ") {
            // What an earlier test has left may still come.
            if content.starts_with(&format!("{} ", shared.name)) {
                *self.broadcasts.entry(content.to_owned()).or_default() += 1;
                lock(&shared.came).insert(content.to_owned());
            }
            return;
        }
        let Some(rest) = content.strip_prefix(&format!("{} ", shared.flow)) else {
            assert!(content.starts_with("flow "), "{content}");
            return;
        };
        let words = rest.split_once(' ').expect("a lane and a number");
        let (lane, number): (usize, u64) =
            (words.0.parse().expect("a lane"), words.1.parse().expect("a number"));
        assert_eq!(number, self.lanes[lane], "in order, each once, in lane {lane}");
        self.lanes[lane] += 1;
        shared.heard[lane].store(self.lanes[lane], Ordering::Relaxed);
    }
}

impl Shared {
    /// Asks for a stream of what this traffic writes, and of nothing that earlier ones did.
    fn query(&self) -> String {
        format!("userId={}&roles={}", self.user, self.flow.replace(' ', "%20"))
    }

    /// Whatever was acknowledged exists; whatever exists and is owed, because the log was away,
    /// comes.
    fn check_list(&self, node: &Node, made: &Made) {
        let list = node.get("/api/admin/broadcasts?filter=all&limit=1000").expect_json();
        let list = list.as_array().expect("an array").iter();
        let listed: HashSet<&str> = list.filter_map(|one| one["content"].as_str()).collect();
        for content in &made.acknowledged {
            assert!(listed.contains(content.as_str()), "{content} was acknowledged and is lost");
        }
        for Refused { content, .. } in made.refused.iter().filter(|one| one.is_owed()) {
            assert!(listed.contains(content.as_str()), "{content} is owed and is lost");
            wait::until_true(content, LONG, || lock(&self.came).contains(content));
        }
    }
}

impl Made {
    fn assert_none_refused(&self) {
        let first = self.refused.first().map(|one| &one.message);
        assert_eq!(first, None, "two of three are enough");
    }
}

impl Refused {
    fn is_owed(&self) -> bool {
        self.message.starts_with("log")
    }
}

/// Waits until readiness names exactly these parts; says how long that took.
fn wait_for_readiness(node: &Node, missing: &[&str], what: &str) {
    let began = Instant::now();
    wait_until_missing(node, missing);
    println!("{what}: readiness says {missing:?} after {:?}", began.elapsed());
    assert!(began.elapsed() < READINESS, "{what}: {:?}", began.elapsed());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_broker_that_is_killed_costs_no_stream_and_no_event() {
    if is_missing() {
        return;
    }
    let mut guard = world();
    let world = guard.as_mut().expect("made");
    let (node, traffic) = world.node();
    let broker = world.leader();
    world.kill_broker(broker);
    let took = traffic.goes_on("a broker is killed");
    assert!(took < FLOW_AGAIN, "{took:?}");
    traffic.creates_go_on("a broker is killed");
    wait_until_missing(&node, &[]);

    world.restart_broker(broker);
    world.kafka.wait_until_in_step();
    world.kafka.give_back_leaders();
    let took = traffic.goes_on("it leads again");
    assert!(took < FLOW_AGAIN, "{took:?}");
    assert_eq!(world.leader(), broker, "it came back");
    traffic.creates_go_on("it leads again");
    wait_until_missing(&node, &[]);
    traffic.end(world, &node).assert_none_refused();
}

#[test]
fn a_broker_that_is_frozen_costs_no_stream_and_no_event() {
    if is_missing() {
        return;
    }
    let mut guard = world();
    let world = guard.as_mut().expect("made");
    let (node, traffic) = world.node();
    let broker = world.leader();
    world.freeze_broker(broker);
    let frozen = Instant::now();
    let took = traffic.goes_on("a broker is frozen");
    assert!(took < FLOW_AGAIN, "{took:?}");
    traffic.creates_go_on("a broker is frozen");
    wait_until_missing(&node, &[]);
    // Until whatever the node asked of it has run out of time.
    let times_out = REQUEST_TIME + FETCH_WAIT * 2;
    wait::until_true("requests time out", LONG, || frozen.elapsed() > times_out);

    world.kafka.thaw(broker);
    world.kafka.wait_until_in_step();
    traffic.goes_on("it is thawed");
    traffic.creates_go_on("it is thawed");
    traffic.end(world, &node).assert_none_refused();
}

#[test]
fn a_database_node_that_is_killed_or_frozen_costs_no_broadcast() {
    if is_missing() {
        return;
    }
    let mut guard = world();
    let world = guard.as_mut().expect("made");
    let (node, traffic) = world.node();
    traffic.creates_go_on("all are there");
    world.kill_database(1);
    traffic.creates_go_on("a database node is killed");
    world.restart_database(1);
    traffic.creates_go_on("it is back");
    world.cassandra.freeze(2);
    traffic.creates_go_on("a database node is frozen");
    world.cassandra.thaw(2);
    traffic.creates_go_on("it is thawed");
    wait_until_missing(&node, &[]);
    traffic.end(world, &node).assert_none_refused();
}

#[test]
fn frozen_databases_stop_creates_only() {
    if is_missing() {
        return;
    }
    let mut guard = world();
    let world = guard.as_mut().expect("made");
    let (node, traffic) = world.node();
    traffic.creates_go_on("all are there");
    (0..3).for_each(|index| world.cassandra.freeze(index));
    wait_for_readiness(&node, &["store"], "the databases are frozen");
    let printed = node.process.lines();
    traffic.wait_for_refusals(25, "store");
    let text = node.process.text();
    let looks = text.lines().skip(printed).filter(|line| line.contains("the outbox has to wait"));
    let looks = looks.count();
    assert!(looks <= 8, "the relay backs off, whatever is refused: it looked {looks} times");
    traffic.goes_on("the databases are frozen");
    (0..3).for_each(|index| world.cassandra.thaw(index));
    wait_for_readiness(&node, &[], "the databases are thawed");
    traffic.creates_go_on("they are thawed");
    traffic.end(world, &node);
}

#[test]
fn frozen_brokers_cost_no_stream_and_no_event() {
    if is_missing() {
        return;
    }
    let mut guard = world();
    let world = guard.as_mut().expect("made");
    let (node, traffic) = world.node();
    traffic.creates_go_on("all are there");
    (0..3).for_each(|index| world.freeze_broker(index));
    wait_for_readiness(&node, &["log"], "the brokers are frozen");
    traffic.beats();
    traffic.wait_for_refusals(1, "log");
    traffic.beats();
    (0..3).for_each(|index| world.kafka.thaw(index));
    wait_for_readiness(&node, &[], "the brokers are thawed");
    traffic.goes_on("they are thawed");
    traffic.creates_go_on("they are thawed");
    traffic.end(world, &node);
}
