//! Dead letters on real parts: what can't be processed is in the topic beside its own, with its
//! bytes and the reason, as Kafka's own tools read it; it is one row of the store, whoever is
//! killed in between; and the next record is served.
//!
//! Cassandra stands in for ScyllaDB.

mod real;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use corecast::base::{Partition, Topic};
use corecast::ingest::kafka::{KafkaLog, KafkaOptions};
use corecast::ports::{Bounds, DeadLetterRow, DeadLetterRows, Log, LogError, NewRecord};
use corecast::store::scylla::ScyllaOptions;
use harness::cassandra::Cassandra;
use harness::kafka::{JavaProducer, Kafka, Version};
use harness::node::Node;
use harness::wait;
use real::{LONG, PARTITIONS, PROGRAM, Place, is_missing, line};
use serde_json::json;
use store::{Running, block_on};

struct World {
    kafka: Kafka,
    cassandra: Cassandra,
    java: Mutex<JavaProducer>,
}

/// One broker, one database and one Java program, which nobody stops.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let cassandra = std::thread::spawn(|| Cassandra::start(1));
        let kafka = Kafka::start(Version::V4_3, 1);
        let mut java = kafka.java_producer();
        java.say(&["open", "p"]);
        World { kafka, cassandra: cassandra.join().expect("it starts"), java: Mutex::new(java) }
    })
}

fn java() -> MutexGuard<'static, JavaProducer> {
    world().java.lock().unwrap_or_else(PoisonError::into_inner)
}

fn node(place: &Place) -> Node {
    let node = Node::launch(PROGRAM, &place.sets());
    node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
    node
}

/// The log and the rows of a place, looked at from outside of any node.
struct Sight {
    log: KafkaLog,
    rows: Arc<dyn DeadLetterRows>,
}

impl Sight {
    /// Of a place whose nodes have made what it holds.
    fn of(place: &Place) -> Self {
        let options = KafkaOptions {
            brokers: world().kafka.addresses(),
            topic_selected: place.selected.clone(),
            topic_group: place.group.clone(),
            topic_control: format!("{}-control", place.group),
            partitions: PARTITIONS,
            replication: 1,
            retention: Duration::from_secs(3_600),
            dead_retention: Duration::from_secs(3_600),
            fetch_pace: Duration::ZERO,
            client_id: "test".to_owned(),
            tls: None,
            sasl: None,
        };
        let nodes = ScyllaOptions::new(world().cassandra.addresses());
        let running = Running::start(ScyllaOptions { keyspace: place.keyspace.clone(), ..nodes });
        running.wait_until(|said| *said == corecast::store::scylla::Progress::Serving);
        Self { log: KafkaLog::new(options).expect("no files"), rows: running.store }
    }

    fn bounds(&self, topic: Topic) -> Bounds {
        let partition = Partition { topic, index: 0 };
        block_on(async {
            loop {
                match self.log.bounds(partition).await {
                    Ok(bounds) => return bounds,
                    Err(LogError::Away(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    }

    /// How many dead letters both topics hold.
    fn dead_letters(&self) -> u64 {
        Topic::DEAD.map(|topic| self.bounds(topic).end).into_iter().sum()
    }

    fn rows(&self) -> Vec<DeadLetterRow> {
        block_on(self.rows.dead_letters(None, 10_000, 1 << 30)).expect("a database that runs")
    }

    /// Waits for so many rows, and no more.
    fn wait_for_rows(&self, count: usize) -> Vec<DeadLetterRow> {
        wait::until_true(&format!("{count} rows"), LONG, || self.rows().len() >= count);
        let rows = self.rows();
        assert_eq!(rows.len(), count, "{:?}", rows.iter().map(payload).collect::<Vec<_>>());
        rows
    }
}

fn payload(row: &DeadLetterRow) -> String {
    row.shown().payload.unwrap_or_else(|| "~".to_owned())
}

/// Waits until all of the three groups have been read to the end, as Kafka's own tool sees it.
fn wait_for_no_lag(place: &Place) {
    let [selected, group] = place.consumer_groups();
    let dead = place.dead_letter_group();
    for (group, count) in [(selected, PARTITIONS), (group, PARTITIONS), (dead, 2)] {
        wait::until_true(&format!("no lag of {group}"), LONG, || {
            let rows = world().kafka.group(&group);
            rows.len() == usize::from(count)
                && rows.iter().all(|row| row.lag.unwrap_or(0) == 0 && row.member != "-")
        });
    }
}

/// What a user sees next once this is in the log.
fn say_to(place: &Place, user: &str, id: u64, content: &str) {
    let line = line(user, Some(user), id, content, &json!({}));
    world().kafka.console_produce(&place.selected, &[], &line);
}

#[test]
fn a_poison_record_is_a_dead_letter_and_the_next_one_is_served() {
    if is_missing() {
        return;
    }
    let place = Place::new(&world().kafka, &world().cassandra);
    let node = node(&place);
    let sight = Sight::of(&place);
    let mut stream = node.stream("userId=ann");
    // By the console producer, the Java client, and one whose bytes are no text.
    let selected = place.selected.as_str();
    world().kafka.console_produce(selected, &[], "h:1,__TypeId__:x\tann\tnot JSON\n");
    let offset = java().send(&["p", selected, "2", "~", "{}", "a=1", "a", "a=2"]);
    java().send(&["p", &place.group, "1", "key", "~", "b"]);
    let bytes = NewRecord {
        topic: Topic::Selected,
        key: "ann".into(),
        value: bytes::Bytes::from_static(&[0xff, 0, 10, 0xfe]),
        headers: Vec::new(),
    };
    block_on(sight.log.append(vec![bytes])).expect("appends");
    say_to(&place, "ann", 7, "behind all of them");
    assert_eq!(stream.message().content(), "behind all of them");

    let rows = sight.wait_for_rows(4);
    wait_for_no_lag(&place);
    assert_eq!(node.metric("corecast_dead_letters_total"), Some(4.0));
    assert_eq!(node.metric("corecast_dead_letter_rows_total"), Some(4.0));
    let by_payload: BTreeMap<String, &DeadLetterRow> =
        rows.iter().map(|row| (payload(row), row)).collect();
    let empty = by_payload["{}"];
    assert_eq!(empty.topic, format!("{selected}-dlt"));
    let shown = empty.shown();
    let origin = shown.origin.expect("it says where it stood");
    let place_of_origin = (origin.topic.as_str(), origin.partition, origin.offset);
    assert_eq!(place_of_origin, (selected, 2, offset.cast_signed()));
    let said = shown.exception_message.expect("it says why");
    assert!(said.contains("broadcastId"), "{said}");
    assert_eq!((shown.original_key, shown.broadcast), (None, None));
    assert_eq!(empty.id().to_string(), format!("{selected}-dlt-0-{}", empty.record.offset));
    assert_eq!(by_payload["~"].topic, format!("{}-dlt", place.group));
    let odd = rows.iter().find(|row| row.record.value.as_deref() == Some(&[0xff, 0, 10, 0xfe]));
    assert_eq!(odd.expect("its bytes as they were").record.key.as_deref(), Some(&b"ann"[..]));

    // As any other program reads it.
    let text = world().kafka.console_consume(&format!("{selected}-dlt"), 3).join("\n");
    for expected in [
        "h:1,__TypeId__:x,kafka_dlt-original-topic:",
        "a:1,a:null,a:2,kafka_dlt-original-topic:",
        &format!("kafka_dlt-original-topic:{selected},kafka_dlt-original-partition:"),
        "kafka_dlt-original-timestamp-type:CreateTime,",
        &format!("kafka_dlt-original-consumer-group:owners-of-{selected},"),
        "kafka_dlt-exception-fqcn:corecast.NotProcessed,",
        "kafka_dlt-exception-cause-fqcn:corecast.BadRecord,",
        "kafka_dlt-exception-message:not a MessageDeliveryEvent",
        "\tann\tnot JSON",
        "\tnull\t{}",
    ] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
    let text = world().kafka.console_consume(&format!("{}-dlt", place.group), 1).join("\n");
    assert!(text.contains("b:null,kafka_dlt-") && text.ends_with("\tkey\tnull"), "{text}");
    println!("4 bad records, 4 rows, the next message served");
}

#[test]
fn a_crash_between_dead_letter_and_commit_makes_no_second_row() {
    if is_missing() {
        return;
    }
    let place = Place::new(&world().kafka, &world().cassandra);
    let mut node = node(&place);
    let sight = Sight::of(&place);
    let mut sent = BTreeSet::new();
    for round in 0..20 {
        let before = sight.dead_letters();
        for partition in ["0", "1", "2"] {
            let value = format!("poison {round} of {partition}");
            java().say(&["post", "p", &place.selected, partition, "k", &value]);
            java().say(&["post", "p", &place.group, partition, "k", &value]);
            sent.extend([format!("selected {value}"), format!("group {value}")]);
        }
        java().say(&["settle"]);
        wait::until_true("a dead letter", LONG, || sight.dead_letters() > before);
        node.crash();
        wait_for_no_lag(&place);
        let written = sight.dead_letters();
        println!("round {round}: {} bad records, {written} dead letters", sent.len());
        // Some have been done twice: that is what this is about.
        if round >= 2 && written > sent.len() as u64 {
            break;
        }
    }
    assert!(sight.dead_letters() > sent.len() as u64, "no crash came in between");
    let rows = sight.wait_for_rows(sent.len());
    let kind =
        |row: &DeadLetterRow| if row.topic.starts_with("group") { "group" } else { "selected" };
    let found: BTreeSet<String> =
        rows.iter().map(|row| format!("{} {}", kind(row), payload(row))).collect();
    assert_eq!(found, sent, "each once");
    let (written, count) = (sight.dead_letters(), rows.len());
    println!("{written} dead letters of {count} records: {count} rows, 0 missing, 0 twice");
}

#[test]
fn a_poison_record_of_every_partition_fells_no_node() {
    if is_missing() {
        return;
    }
    let place = Place::new(&world().kafka, &world().cassandra);
    let nodes = [node(&place), node(&place)];
    let sight = Sight::of(&place);
    let mut streams = nodes.each_ref().map(|node| node.stream("userId=ann"));
    let poison = [
        "not JSON",
        "{",
        "[]",
        "null",
        "\"\"",
        "{\"broadcastId\":1,\"eventType\":\"UNKNOWN\"}",
        "{\"broadcastId\":1e400,\"eventType\":\"CREATED\"}",
        "~",
    ];
    let mut count = 0;
    for topic in [&place.selected, &place.group] {
        for partition in ["0", "1", "2"] {
            for value in poison.iter().chain([&"[".repeat(100_000).as_str()]) {
                java().say(&["post", "p", topic, partition, "ann", value]);
                count += 1;
            }
        }
    }
    java().say(&["settle"]);
    say_to(&place, "ann", 7, "behind all of them");
    for stream in &mut streams {
        assert_eq!(stream.message().content(), "behind all of them");
    }
    sight.wait_for_rows(count);
    wait_for_no_lag(&place);
    let written: f64 =
        nodes.iter().filter_map(|node| node.metric("corecast_dead_letters_total")).sum();
    assert_eq!(written, count as f64);
    assert!(nodes.iter().all(|node| node.get("/health/ready").status == 200));
    println!("{count} bad records on two nodes: both serve");
}

#[test]
fn dead_letters_that_others_wrote_are_read_back() {
    if is_missing() {
        return;
    }
    let place = Place::new(&world().kafka, &world().cassandra);
    let node = node(&place);
    let sight = Sight::of(&place);
    let dead = format!("{}-dlt", place.selected);
    // With Spring's headers, with some that are malformed, without any, and without a value.
    let spring = [
        "kafka_dlt-original-topic=elsewhere",
        "kafka_dlt-original-partition=\0\0\0\u{5}",
        "kafka_dlt-original-offset=\0\0\0\0\0\0\0\u{6}",
        "kafka_dlt-exception-message=first",
        "kafka_dlt-exception-message=Listener failed",
        "kafka_dlt-exception-stacktrace=java.lang.IllegalStateException",
    ];
    let value = "{\"broadcastId\":42,\"eventType\":\"CREATED\"}";
    let all = [&["p", &dead, "0", "ann", value][..], &spring].concat();
    java().send(&all);
    java().send(&all);
    java().send(&["p", &dead, "0", "~", "bare"]);
    java().send(&["p", &dead, "0", "ann", "~", "kafka_dlt-original-offset=6"]);
    let rows = sight.wait_for_rows(3);
    wait_for_no_lag(&place);
    let first = rows.iter().find(|row| payload(row) == value).expect("one row of both");
    let shown = first.shown();
    assert_eq!(first.record.offset, 0, "the first of them");
    assert_eq!(shown.broadcast.map(|id| id.get()), Some(42));
    assert_eq!(shown.exception_message.as_deref(), Some("Listener failed"));
    let origin = shown.origin.expect("complete");
    assert_eq!((origin.topic.as_str(), origin.partition, origin.offset), ("elsewhere", 5, 6));
    let others: Vec<_> = rows.iter().filter(|row| payload(row) != value).collect();
    assert!(others.iter().all(|row| row.shown().origin.is_none()), "{others:?}");
    // Purged, it stays away, also from a node that reads everything again.
    assert!(block_on(sight.rows.purge_dead_letter(&first.id())).expect("a database that runs"));
    drop(node);
    let [group] = [place.dead_letter_group()];
    let arguments = ["--bootstrap-server", &world().kafka.addresses()[0], "--group", &group];
    let reset = ["--reset-offsets", "--all-topics", "--to-earliest", "--execute"];
    let tool = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    // The brokers miss a killed member only after its session.
    wait::until_true("the group is empty", LONG, || {
        world().kafka.group(&group).iter().all(|row| row.member == "-")
    });
    world().kafka.tool(tool, &[&arguments[..], &reset].concat(), "");
    let again = self::node(&place);
    wait_for_no_lag(&place);
    assert_eq!(again.metric("corecast_dead_letter_rows_total"), Some(4.0), "all was read again");
    assert_eq!(sight.wait_for_rows(2).len(), 2);
}
