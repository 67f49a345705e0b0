//! P5, a bad record stops nothing: between good records of both topics stand bad ones of every
//! kind. The good ones come at once. Each bad one is in the dead-letter topic with its bytes and
//! the reason, and one row of the store, also when an owner is killed while it writes them. (The
//! topic may have it twice: who does not know whether a dead letter was taken writes it again.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use corecast::base::partition_of_key;
use corecast::ports::{DeadLetterRow, DeadLetterRows as _};
use corecast::store::scylla::{Progress, ScyllaOptions, ScyllaStore};
use harness::kafka::Stored;
use harness::node::Node;
use harness::sse::Stream;
use harness::wait;
use serde_json::{Value, json};

use crate::real::{LONG, PARTITIONS, PROGRAM, Place, is_missing, value, wait_until_owned};
use crate::store::{Running, block_on};
use crate::traffic::draw_broadcast;
use crate::users::lock;
use crate::world::{self, World};

/// From when Kafka has taken all of them until the good ones are everywhere, on a machine that is
/// busy.
const AT_ONCE: Duration = Duration::from_secs(10);
/// Names each bad record, whatever else is in it.
const NUMBER: &str = "number";
/// Its headers, whose names repeat and of which one has no value, are to be kept as they are.
const HEADERS: [&str; 3] = ["a=1", "a", "a=2"];
/// A broadcast that nobody has created; each of its events is of another one.
const UNKNOWN: u64 = 900_000_000_000;
/// In which bad ones are written after an owner was killed.
const ROUNDS: usize = 20;

/// A kind of bad record: a value as the producer is told of it, and words of the reason.
struct Kind {
    value: String,
    key: &'static str,
    says: &'static str,
    /// In the selected topic as well.
    in_both: bool,
}

/// A bad record that was written.
struct Bad {
    topic: String,
    partition: u16,
    value: String,
    kind: usize,
}

struct Story<'a> {
    world: &'a World,
    place: Place,
    kinds: Vec<Kind>,
    bad: Vec<Bad>,
    /// Contents of the good ones, by the user whom they are for; `None`: everybody.
    good: BTreeMap<Option<String>, Vec<String>>,
    /// One a partition of the selected topic.
    users: Vec<String>,
}

fn kinds() -> Vec<Kind> {
    let kind = |value: &str, says| Kind { value: value.to_owned(), key: "k", says, in_both: true };
    let malformed = "not a MessageDeliveryEvent";
    let whole = value(Some("ann"), 1, "cut", &json!({}));
    vec![
        kind("no JSON", malformed),
        kind(&whole[..whole.len() - 1], malformed),
        kind("0xfffe00c328", malformed),
        kind(&"[".repeat(20_000), malformed),
        kind("{\"eventType\":\"CREATED\",\"message\":\"m\"}", "broadcastId"),
        kind("{\"broadcastId\":\"x\",\"eventType\":\"CREATED\"}", malformed),
        kind("{\"broadcastId\":1,\"eventType\":\"UNKNOWN\"}", malformed),
        kind("{\"broadcastId\":1,\"userId\":\"u\",\"eventType\":\"CREATED\"}", "without a message"),
        kind(&"x".repeat((1 << 20) + 1), "is over"),
        Kind { key: "~", ..kind("~", "no value") },
        Kind { key: "0xff00", ..kind("", "no value") },
        // A group's event by an older producer, of what nobody has created: known only after the
        // store was asked three times.
        Kind { in_both: false, ..kind(&value(None, UNKNOWN, "lost", &json!({})), "does not know") },
    ]
}

impl Story<'_> {
    fn start(world: &World) -> Story<'_> {
        // Its records may be larger than they are by default.
        lock(&world.java).say(&["open", "large", "max.request.size=4194304"]);
        let of = |partition: u16| {
            let mut names = (0..).map(|number| format!("p5-{partition}-{number}"));
            names.find(|name| partition_of_key(name.as_bytes(), PARTITIONS) == partition)
        };
        let users = (0..PARTITIONS).map(|partition| of(partition).expect("one of many")).collect();
        let (bad, good) = Default::default();
        Story { world, place: world.place(), kinds: kinds(), bad, good, users }
    }

    /// One of this kind in each partition of both topics, and a good one behind each.
    fn write(&mut self, kind: usize) {
        for partition in 0..PARTITIONS {
            let Kind { value, key, in_both, .. } = &self.kinds[kind];
            let topics = [Some(&self.place.group), in_both.then_some(&self.place.selected)];
            for topic in topics.into_iter().flatten() {
                let number = self.bad.len();
                let broadcast = UNKNOWN + u64::try_from(number).expect("few");
                let value = value.replace(&UNKNOWN.to_string(), &broadcast.to_string());
                let number = format!("{NUMBER}={number}");
                let to = ["post", "large", topic, &partition.to_string(), key, &value, &number];
                lock(&self.world.java).say(&[&to[..], &HEADERS].concat());
                self.bad.push(Bad { topic: topic.clone(), partition, value, kind });
            }
            self.write_good(partition);
        }
    }

    /// In this partition of both topics.
    fn write_good(&mut self, partition: u16) {
        let (group, selected) = (self.place.group.clone(), self.place.selected.clone());
        self.post_good(&group, partition, None, &json!({"targetType": "ALL"}));
        let user = self.users[usize::from(partition)].clone();
        self.post_good(&selected, partition, Some(user), &json!({}));
    }

    fn post_good(&mut self, topic: &str, partition: u16, user: Option<String>, more: &Value) {
        let number = self.good.values().map(Vec::len).sum::<usize>();
        let content = format!("good {number}");
        let record = value(user.as_deref(), draw_broadcast(), &content, more);
        let to = ["post", "large", topic, &partition.to_string(), "k", &record];
        lock(&self.world.java).say(&to);
        self.good.entry(user).or_default().push(content);
    }

    fn settle(&self) {
        lock(&self.world.java).say(&["settle"]);
    }

    /// The contents that a user is to get.
    fn good_for(&self, user: &str) -> BTreeSet<String> {
        let own = self.good.get(&Some(user.to_owned()));
        self.good.get(&None).into_iter().chain(own).flatten().cloned().collect()
    }

    /// What both dead-letter topics hold, by the number of each bad record. Each is as it was, and
    /// says why it is here and where it stood.
    fn letters(&self) -> BTreeMap<usize, Vec<Stored>> {
        let mut letters: BTreeMap<usize, Vec<Stored>> = BTreeMap::new();
        for topic in [&self.place.selected, &self.place.group] {
            for letter in lock(&self.world.java).records(&format!("{topic}-dlt")) {
                let number = letter.header(NUMBER).and_then(|text| std::str::from_utf8(text).ok());
                let number: usize = number.and_then(|text| text.parse().ok()).expect("a number");
                assert_eq!(self.bad[number].topic, *topic);
                self.assert_is_whole(number, &letter);
                letters.entry(number).or_default().push(letter);
            }
        }
        letters
    }

    /// Each bad record is in the dead-letter topics, and one row of the store.
    fn assert_kept(&self, store: &ScyllaStore) {
        let many = self.bad.len();
        let letters = wait::until("all are dead letters", LONG, || {
            Some(self.letters()).filter(|letters| letters.len() == many)
        });
        let repeated = letters.iter().filter(|(_, letters)| letters.len() > 1);
        let repeated: Vec<_> = repeated.map(|(number, all)| (number, all.len())).collect();
        println!("{many} bad records, more than once dead letters, and how often: {repeated:?}");
        for letters in letters.values() {
            let offset =
                |letter: &Stored| letter.header("kafka_dlt-original-offset").map(<[u8]>::to_vec);
            let offsets: BTreeSet<_> = letters.iter().map(offset).collect();
            assert_eq!(offsets.len(), 1, "a repeat says that it is one: {letters:?}");
        }
        let rows = wait::until("all are rows", LONG, || {
            Some(self.rows(store)).filter(|rows| rows.len() >= many)
        });
        assert!(rows.iter().copied().eq(0..many), "each is one row: {rows:?}");
    }

    fn assert_is_whole(&self, number: usize, letter: &Stored) {
        let Bad { topic, partition, value, kind } = &self.bad[number];
        let Kind { key, says, .. } = &self.kinds[*kind];
        assert!(letter.value == bytes(value) && letter.key == bytes(key), "{number}: {value:.40}");
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let number_kept = (NUMBER.to_owned(), text(&number.to_string()));
        let repeated = [text("1"), None, text("2")].map(|value| ("a".to_owned(), value));
        assert_eq!(letter.headers[..4], [&[number_kept], &repeated[..]].concat()[..], "{number}");
        let origin = ["topic", "partition"]
            .map(|name| letter.header(&format!("kafka_dlt-original-{name}")).unwrap_or_default());
        assert_eq!(origin, [topic.as_bytes(), &i32::from(*partition).to_be_bytes()], "{number}");
        let reason = letter.header("kafka_dlt-exception-message").unwrap_or_default();
        let reason = String::from_utf8_lossy(reason);
        assert!(reason.contains(says), "{number}: {reason}");
    }

    /// The store of which the nodes have made the tables.
    fn open_store(&self) -> Running {
        let nodes = ScyllaOptions::new(self.world.cassandra.addresses());
        let keyspace = self.place.keyspace.clone();
        let running = Running::start(ScyllaOptions { keyspace, ..nodes });
        running.wait_until(|said| *said == Progress::Serving);
        running
    }

    /// The numbers of those bad records that are rows of the store.
    fn rows(&self, store: &ScyllaStore) -> Vec<usize> {
        let rows = block_on(store.dead_letters(None, 10_000, 1 << 30));
        let topics = [&self.place.selected, &self.place.group].map(|topic| format!("{topic}-dlt"));
        let rows = rows.expect("a database that runs").into_iter();
        let own = rows.filter(|row| topics.contains(&row.topic));
        let number = |row: DeadLetterRow| {
            let mut headers = row.record.headers.iter();
            let header = headers.find(|header| header.name[..] == *NUMBER.as_bytes())?;
            std::str::from_utf8(header.value.as_deref()?).ok()?.parse().ok()
        };
        let mut numbers: Vec<usize> = own.map(|row| number(row).expect("a number")).collect();
        numbers.sort_unstable();
        numbers
    }
}

#[test]
fn good_records_come_at_once_and_bad_ones_are_kept_with_the_reason() {
    if is_missing() {
        return;
    }
    // What is parked is any fleet's that shares the store: another story's nodes would write its
    // dead letters into their topics.
    let world = world::alone();
    let mut story = Story::start(&world);
    let sets = [&story.place.sets()[..], &["log.replication=3", "store.replication=3"]].concat();
    let mut nodes: [Node; 2] = std::array::from_fn(|_| Node::launch(PROGRAM, &sets));
    nodes.iter().for_each(wait_until_ready);
    wait_until_owned(&nodes.each_ref(), "both own partitions");
    let store = story.open_store().store;
    let users = story.users.clone();
    let mut streams: Vec<(String, Stream)> = Vec::new();
    for (user, node) in users.iter().flat_map(|user| nodes.iter().map(move |node| (user, node))) {
        streams.push((user.clone(), node.stream(&format!("userId={user}"))));
    }
    (0..story.kinds.len()).for_each(|kind| story.write(kind));
    story.settle();
    let settled = Instant::now();
    streams.iter_mut().for_each(|(user, stream)| assert_gets(stream, &story.good_for(user)));
    let (took, many) = (settled.elapsed(), story.bad.len());
    println!("{many} bad records: the good ones behind them are everywhere after {took:?}");
    assert!(took < AT_ONCE, "{took:?}");
    story.assert_kept(&store);

    // From here on an owner is killed while it writes them; the other one's streams go on.
    let before = written(&nodes[..1]);
    story.good.clear();
    let mut streams: Vec<_> = streams.into_iter().skip(1).step_by(2).collect();
    let mut rounds = 0..;
    wait::until_true("it is in the middle of them", LONG, || {
        story.write(rounds.next().unwrap_or(0) % 4);
        written(&nodes[..1]) > before
            && nodes[0].metric("corecast_owned_lag_records").is_some_and(|lag| lag > 0.0)
    });
    nodes[0].process.kill();
    println!("it is killed when {} were written", story.bad.len());
    for round in 0..ROUNDS {
        story.write(round % 4);
    }
    story.settle();
    streams.iter_mut().for_each(|(user, stream)| assert_gets(stream, &story.good_for(user)));
    nodes[0].launch_again();
    wait_until_ready(&nodes[0]);
    story.place.wait_for_no_lag(&world.kafka, 2);
    story.assert_kept(&store);
    assert!(nodes.iter().all(|node| !node.process.text().contains("panicked")));
}

/// Reads all of these, and nothing else.
fn assert_gets(stream: &mut Stream, good: &BTreeSet<String>) {
    let got: Vec<String> = good.iter().map(|_| stream.message().content().to_owned()).collect();
    let distinct: BTreeSet<String> = got.iter().cloned().collect();
    assert_eq!(distinct, *good, "{} messages", got.len());
}

/// As the producer reads what it is told.
fn bytes(word: &str) -> Option<Vec<u8>> {
    match word.strip_prefix("0x") {
        _ if word == "~" => None,
        Some("fffe00c328") => Some(vec![0xff, 0xfe, 0, 0xc3, 0x28]),
        Some("ff00") => Some(vec![0xff, 0]),
        _ => Some(word.as_bytes().to_vec()),
    }
}

/// Dead letters that these nodes have written since they started.
fn written(nodes: &[Node]) -> f64 {
    nodes.iter().map(|node| node.metric("corecast_dead_letters_total").unwrap_or(0.0)).sum()
}

fn wait_until_ready(node: &Node) {
    node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
}
