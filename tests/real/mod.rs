//! What the tests on a real Kafka and a real CQL database share: nodes with topics and a keyspace
//! of their own. Cassandra stands in for ScyllaDB.
#![allow(dead_code)] // each of the test files uses a part of it

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use harness::cassandra::Cassandra;
use harness::http::Response;
use harness::kafka::Kafka;
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

/// Topics and a keyspace that no other test has.
pub struct Place {
    pub selected: String,
    pub group: String,
    pub keyspace: String,
    sets: Vec<String>,
}

impl Place {
    pub fn new(kafka: &Kafka, cassandra: &Cassandra) -> Self {
        static DRAWN: AtomicU32 = AtomicU32::new(0);
        let number = DRAWN.fetch_add(1, Ordering::Relaxed);
        let keyspace = format!("real_{}_{number}", std::process::id());
        let mut place =
            Self { selected: String::new(), group: String::new(), keyspace, sets: vec![] };
        place.move_to_new_topics(kafka, cassandra);
        place
    }

    /// The same keyspace, and topics that hold nothing yet: another log.
    pub fn move_to_new_topics(&mut self, kafka: &Kafka, cassandra: &Cassandra) {
        static DRAWN: AtomicU32 = AtomicU32::new(0);
        let number = DRAWN.fetch_add(1, Ordering::Relaxed);
        let (selected, group) = (format!("selected-{number}"), format!("group-{number}"));
        self.sets = vec![
            "log.kind=kafka".to_owned(),
            format!("log.brokers={}", json!(kafka.addresses())),
            format!("log.topic_selected={selected}"),
            format!("log.topic_group={group}"),
            format!("log.consumer_group_selected=owners-of-{selected}"),
            format!("log.consumer_group_group=owners-of-{group}"),
            format!("log.consumer_group_dead_letters=readers-of-{selected}"),
            format!("log.partitions={PARTITIONS}"),
            "store.kind=scylla".to_owned(),
            format!("store.nodes={}", json!(cassandra.addresses())),
            format!("store.keyspace={}", self.keyspace),
            "stream.heartbeat_s=1".to_owned(),
        ];
        (self.selected, self.group) = (selected, group);
    }

    /// Whose members own the partitions.
    pub fn consumer_groups(&self) -> [String; 2] {
        [&self.selected, &self.group].map(|topic| format!("owners-of-{topic}"))
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
    format!("__TypeId__:MessageDeliveryEvent\t{key}\t{record}\n")
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
