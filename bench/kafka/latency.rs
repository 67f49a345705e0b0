//! From the moment at which a record is due until the last of its clients has its bytes, beside
//! the moment at which the Java consumer's poll returns with it.
//!
//! Both read the same topics of the same broker at the same time, so every record gives two times
//! by one clock. A record is sent when it is due, whether or not those before it have arrived, and
//! its time counts from then: a stall is not hidden by what was not sent meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corecast::base::{Partition, Position, Topic};
use corecast::ingest::kafka::KafkaLog;
use corecast::ports::Log as _;
use harness::kafka::{JavaConsumer, Kafka};
use harness::node::Node;
use harness::sse::Stream;
use harness::wait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::figures::{Figures, Goal, percentile};
use super::records::{self, For};
use super::{PARTITIONS, open_log};

/// One stream each.
const USERS: [&str; 4] = ["user-0", "user-1", "user-2", "user-3"];
const STREAMS: usize = USERS.len();
const ROUNDS: usize = 5;
/// Two records in three are for one user each, one is for all.
const RECORDS: usize = 6_000;
/// For the compilers of both JVMs, and connections and caches of everybody.
const WARM_UP_RECORDS: usize = 3_000;
const PACE: Duration = Duration::from_millis(5);
/// From telling everybody to read until the first record is due.
const LEAD: Duration = Duration::from_millis(500);
/// Without any byte on any stream.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much later than the consumer's the node's 99th percentile may be.
const GOAL_US: f64 = 1_000.0;

/// Times of one round's records, microseconds from when each was due.
struct Round {
    /// Until the last of its clients had it.
    node: Vec<f64>,
    consumer: Vec<f64>,
}

pub fn measure(kafka: &Kafka, figures: &mut Figures) {
    println!("latency: {ROUNDS} rounds of {RECORDS} records, one every {} ms", PACE.as_millis());
    let prefix = "latency";
    let brokers = serde_json::json!(kafka.addresses());
    let sets = [
        "log.kind=kafka".to_owned(),
        format!("log.brokers={brokers}"),
        format!("log.topic_selected={prefix}-selected"),
        format!("log.topic_group={prefix}-group"),
        format!("log.partitions={PARTITIONS}"),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let node = Node::start(harness::shipped::program(), &sets);
    let mut consumer = kafka.java_consumer();
    consumer.follow(&[&format!("{prefix}-selected"), &format!("{prefix}-group")]);
    let mut bench = Bench {
        log: open_log(kafka, prefix),
        runtime: super::new_runtime(),
        streams: USERS.iter().map(|user| node.stream(&format!("userId={user}"))).collect(),
        consumer,
        next: 0,
    };
    bench.run(WARM_UP_RECORDS);
    let rounds: Vec<Round> = (0..ROUNDS).map(|_| bench.run(RECORDS)).collect();

    let of = |share: f64, side: fn(&Round) -> &Vec<f64>| -> Vec<f64> {
        rounds.iter().map(|round| percentile(side(round), share)).collect()
    };
    for (name, share, goal) in [
        ("append to client, p50", 0.5, Goal::None),
        ("append to client, p99", 0.99, Goal::OverAtMost(GOAL_US)),
        ("append to client, p99.9", 0.999, Goal::None),
    ] {
        let consumer = of(share, |round| &round.consumer);
        let baseline = ("Java consumer", &consumer[..]);
        figures.add((name, "us"), &of(share, |round| &round.node), baseline, goal);
    }
    let later: Vec<f64> = rounds
        .iter()
        .flat_map(|round| round.node.iter().zip(&round.consumer))
        .map(|(node, consumer)| node - consumer)
        .collect();
    figures.note(format!(
        "latency: of {} records, each for one or all of {STREAMS} streams, the last client had one \
         later than the Java consumer by {:.0} us (p50), {:.0} us (p99), earlier in {:.0} % of \
         them",
        later.len(),
        percentile(&later, 0.5),
        percentile(&later, 0.99),
        later.iter().filter(|by| **by < 0.0).count() as f64 * 100.0 / later.len() as f64,
    ));
}

struct Bench {
    log: Arc<KafkaLog>,
    runtime: tokio::runtime::Runtime,
    streams: Vec<Stream>,
    consumer: JavaConsumer,
    /// Number of the next record.
    next: usize,
}

impl Bench {
    /// Sends so many records on time and waits until everybody has them.
    fn run(&mut self, count: usize) -> Round {
        let first = self.next;
        self.next += count;
        self.consumer.take(count);
        let begin = Instant::now() + LEAD;
        let begin_at = now() + LEAD.as_nanos() as u64;
        let due_at = |number: usize| begin_at + PACE.as_nanos() as u64 * (number - first) as u64;
        let (log, handle) = (self.log.clone(), self.runtime.handle().clone());
        let sender = std::thread::spawn(move || send(&log, &handle, first..first + count, begin));
        let seen = read_streams(&mut self.streams, first..first + count);
        let places = sender.join().expect("all records are taken");
        let taken: HashMap<Position, u64> = self
            .consumer
            .taken()
            .into_iter()
            .map(|one| {
                let topic = Topic::ALL[one.topic];
                let partition = Partition { topic, index: one.partition };
                (Position { partition, offset: one.offset }, one.at)
            })
            .collect();
        let mut round = Round { node: Vec::new(), consumer: Vec::new() };
        for ((number, place), node_at) in (first..).zip(places).zip(seen) {
            let since = |at: u64| (at as f64 - due_at(number) as f64) / 1_000.0;
            round.node.push(since(node_at));
            round.consumer.push(since(taken[&place]));
        }
        round
    }
}

/// Appends each record when it is due; returns their places.
fn send(
    log: &Arc<KafkaLog>,
    handle: &tokio::runtime::Handle,
    numbers: std::ops::Range<usize>,
    begin: Instant,
) -> Vec<Position> {
    let first = numbers.start;
    let mut appends = Vec::new();
    for number in numbers {
        let record = records::record(number, audience(number));
        let due = begin + PACE * (number - first) as u32;
        wait::until_due(due);
        let log = log.clone();
        appends.push(handle.spawn(async move { log.append(vec![record]).await }));
    }
    let mut places = Vec::new();
    for append in appends {
        let appended = handle.block_on(append).expect("no append panics");
        places.extend(appended.expect("the broker takes it"));
    }
    places
}

/// For whom a record is.
fn audience(number: usize) -> For<'static> {
    if number.is_multiple_of(3) { For::All } else { For::User(USERS[number % STREAMS]) }
}

/// Reads all streams until every record has come to all for whom it is; returns when the last of
/// them had each.
fn read_streams(streams: &mut [Stream], numbers: std::ops::Range<usize>) -> Vec<u64> {
    let first = numbers.start;
    let mut missing: usize =
        numbers.clone().map(|number| if audience(number) == For::All { STREAMS } else { 1 }).sum();
    let mut last = vec![0; numbers.len()];
    let mut rests = vec![Vec::new(); streams.len()];
    let mut buffer = vec![0; 64 * 1024];
    while missing > 0 {
        for ready in wait_for_any(streams) {
            let socket = streams[ready].connection().socket();
            let read = rustix::io::read(socket, &mut buffer[..]).expect("the stream goes on");
            let at = now();
            assert_ne!(read, 0, "the stream ended");
            let rest = &mut rests[ready];
            rest.extend_from_slice(&buffer[..read]);
            while let Some(end) = rest.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = rest.drain(..end + 2).collect();
                // What is no MESSAGE is a heartbeat.
                let Some(number) = records::number_of(&block) else { continue };
                last[number - first] = at.max(last[number - first]);
                missing -= 1;
            }
        }
    }
    last
}

/// Numbers of the streams on which there is something to read.
fn wait_for_any(streams: &mut [Stream]) -> Vec<usize> {
    let sockets = streams.iter_mut().map(|stream| stream.connection().socket());
    let mut waits: Vec<PollFd<'_>> =
        sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(PATIENCE).expect("it fits");
    let ready = poll(&mut waits, Some(&timeout)).expect("sockets can be waited for");
    assert_ne!(ready, 0, "nothing has come for {PATIENCE:?}");
    (0..waits.len()).filter(|number| !waits[*number].revents().is_empty()).collect()
}

/// Nanoseconds since 1970, by the clock that the Java consumer reads.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2554")
}
