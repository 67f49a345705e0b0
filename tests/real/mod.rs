//! What the tests on a real Kafka and a real CQL database share: nodes with topics and a keyspace
//! of their own. Cassandra stands in for ScyllaDB.
#![allow(dead_code)] // each of the test files uses a part of it

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use harness::cable::Cables;
use harness::cassandra::Cassandra;
use harness::http::Response;
use harness::kafka::{Kafka, Version};
use harness::node::Node;
use harness::wait;
use serde_json::{Value, json};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");
/// Of each topic.
pub const PARTITIONS: u16 = 3;
/// JVMs that start on a busy machine, and the waits between tries that follow.
pub const LONG: Duration = Duration::from_secs(90);

/// Whether brokers and databases can't be run here; says so.
pub fn is_missing() -> bool {
    let missing = harness::maven::missing();
    if let Some(program) = missing {
        harness::skip(program, "install a JDK 17 and Maven");
    }
    missing.is_some()
}

/// Whether nodes can't be cut off here; says so.
pub fn is_without_cables() -> bool {
    let missing = Cables::missing();
    if let Some(reason) = missing {
        harness::skip(reason, "run the tests as root, and install iproute2");
    }
    missing.is_some()
}

/// Backends that tests share.
pub struct World {
    pub kafka: Kafka,
    pub cassandra: Cassandra,
}

impl World {
    /// Starts so many brokers and database nodes.
    pub fn start(brokers: usize, databases: usize) -> Self {
        let cassandra = std::thread::spawn(move || Cassandra::start(databases));
        let kafka = Kafka::start(Version::V4_3, brokers);
        Self { kafka, cassandra: cassandra.join().expect("it starts") }
    }
}

/// One broker and one database, which nobody stops.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| World::start(1, 1))
}

/// A place in that world.
pub fn place() -> Place {
    Place::new(&world().kafka, &world().cassandra)
}

/// A node that is ready.
pub fn node(place: &Place) -> Node {
    node_with(place, &[])
}

pub fn node_with(place: &Place, sets: &[&str]) -> Node {
    let node = Node::launch(PROGRAM, &[&place.sets(), sets].concat());
    node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
    node
}

/// How many partitions of both topics it owns.
pub fn owned(node: &Node) -> f64 {
    node.metric("corecast_owned_partitions").unwrap_or(0.0)
}

/// Waits until these nodes own all partitions of both topics between them; how long it took.
pub fn wait_until_owned(nodes: &[&Node], what: &str) -> Duration {
    let began = Instant::now();
    let all = f64::from(2 * PARTITIONS);
    wait::until_true(what, LONG, || {
        let each: Vec<f64> = nodes.iter().map(|node| owned(node)).collect();
        each.iter().sum::<f64>() == all && each.iter().all(|owned| *owned > 0.0)
    });
    println!("{what}: after {:?}", began.elapsed());
    began.elapsed()
}

/// Topics and a keyspace that no other test has.
#[derive(Clone)]
pub struct Place {
    pub selected: String,
    pub group: String,
    pub control: String,
    pub keyspace: String,
    sets: Vec<String>,
}

impl Place {
    pub fn new(kafka: &Kafka, cassandra: &Cassandra) -> Self {
        static DRAWN: AtomicU32 = AtomicU32::new(0);
        let number = DRAWN.fetch_add(1, Ordering::Relaxed);
        let keyspace = format!("real_{}_{number}", std::process::id());
        let (selected, group, control) = Default::default();
        let mut place = Self { selected, group, control, keyspace, sets: vec![] };
        place.move_to_new_topics(kafka, cassandra);
        place
    }

    /// The same keyspace, and topics that hold nothing yet: another log.
    pub fn move_to_new_topics(&mut self, kafka: &Kafka, cassandra: &Cassandra) {
        static DRAWN: AtomicU32 = AtomicU32::new(0);
        let number = DRAWN.fetch_add(1, Ordering::Relaxed);
        let (selected, group) = (format!("selected-{number}"), format!("group-{number}"));
        let control = format!("control-{number}");
        self.sets = vec![
            "log.kind=kafka".to_owned(),
            format!("log.brokers={}", json!(kafka.addresses())),
            format!("log.topic_selected={selected}"),
            format!("log.topic_group={group}"),
            format!("log.topic_control={control}"),
            format!("log.consumer_group_selected=owners-of-{selected}"),
            format!("log.consumer_group_group=owners-of-{group}"),
            format!("log.consumer_group_dead_letters=readers-of-{selected}"),
            format!("log.partitions={PARTITIONS}"),
            "store.kind=scylla".to_owned(),
            format!("store.nodes={}", json!(cassandra.addresses())),
            format!("store.keyspace={}", self.keyspace),
            "stream.heartbeat_s=1".to_owned(),
        ];
        (self.selected, self.group, self.control) = (selected, group, control);
    }

    /// Whose members own the partitions.
    pub fn consumer_groups(&self) -> [String; 2] {
        [&self.selected, &self.group].map(|topic| format!("owners-of-{topic}"))
    }

    /// Waits until all that is in the log has been kept, and so many nodes own its partitions, as
    /// Kafka's own tool sees it.
    pub fn wait_for_no_lag(&self, kafka: &Kafka, members: usize) {
        let groups = self.consumer_groups();
        wait::until_true("no lag", LONG, || {
            let rows = kafka.groups(&groups.each_ref().map(String::as_str));
            [&self.selected, &self.group].into_iter().all(|topic| {
                let rows = || rows.iter().filter(|row| row.topic == *topic);
                let owners: BTreeSet<&str> = rows().map(|row| row.member.as_str()).collect();
                // A partition that never held a record has nothing to commit.
                rows().count() == usize::from(PARTITIONS)
                    && owners.len() == members
                    && rows().all(|row| row.lag.unwrap_or(0) == 0 && row.member != "-")
            })
        });
    }

    /// Whose members read the dead letters back.
    pub fn dead_letter_group(&self) -> String {
        format!("readers-of-{}", self.selected)
    }

    /// For `--set`.
    pub fn sets(&self) -> Vec<&str> {
        self.sets.iter().map(String::as_str).collect()
    }
}

/// A line of the console producer: a record with the fields that every producer writes.
pub fn line(key: &str, user: Option<&str>, id: u64, content: &str, more: &Value) -> String {
    format!("__TypeId__:MessageDeliveryEvent\t{key}\t{}\n", value(user, id, content, more))
}

/// The value of such a record.
pub fn value(user: Option<&str>, id: u64, content: &str, more: &Value) -> String {
    let mut record = json!({
        "eventId": format!("00000000-0000-4000-8000-{id:012}"),
        "broadcastId": id,
        "userId": user,
        "eventType": "CREATED",
        "podId": "console",
        "timestamp": "2026-01-02T03:04:05.678Z",
        "message": content,
    });
    let fields = record.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    record.to_string()
}

/// Waits until readiness names exactly these parts; none: it is ready.
pub fn wait_until_missing(node: &Node, parts: &[&str]) {
    wait::until_true(&format!("missing: {parts:?}"), LONG, || {
        let answer = node.get("/health/ready");
        if parts.is_empty() {
            return answer.status == 200;
        }
        let text = answer.text();
        let names = |part: &&str| text.contains(&format!("{part}: "));
        answer.status == 503
            && ["log", "store"].iter().all(|part| parts.contains(part) == names(part))
    });
}

/// It is refused for now.
pub fn assert_put_off(answer: &Response, part: &str) {
    let message = answer.error(503);
    assert!(message.contains(part), "{message}");
    let wait = answer.field("retry-after").and_then(|wait| wait.parse::<u64>().ok());
    assert!(wait.is_some_and(|wait| wait > 0), "{answer:?}");
}
