//! `cargo bench --bench resume`: what it takes until streams that come back are where the others
//! are.
//!
//! - `storm`: 15,000 streams come back at once with cursors that are 100 events old, in the ring of
//!   the node and beyond it, beside 15,000 that have missed nothing.
//! - `flood`: 1,000 streams replay 100,000 events, while others are served live; beside the same
//!   node without them.
//!
//! Every byte that a client gets is compared with what a client got that was never away.
//!
//! One broker of Apache Kafka, one node of Apache Cassandra, the node as it is shipped, and the
//! clients in this process, all on the same cores and none pinned by us. The database, which would
//! have a machine of its own and notes what clients present, gives way to the others. Needs Java
//! and Maven.
//!
//! Environment: `BENCH_JSON=FILE` writes the figures there too. A word on the command line runs
//! only `storm` or `flood`.

mod crowd;
#[path = "../common/figures.rs"]
mod figures;
mod flood;
#[path = "../common/records.rs"]
mod records;
mod storm;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corecast::base::partition_of_key;
use corecast::ingest::kafka::{KafkaLog, KafkaOptions};
use corecast::ports::{Descriptors, Log as _};
use figures::Figures;
use harness::cassandra::Cassandra;
use harness::kafka::{Kafka, Version};
use harness::node::Node;
use harness::wait;
use records::For;
use serde_json::json;

/// As in the program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of each topic, as the node's default is.
const PARTITIONS: u16 = 10;
/// Of the node, as the harness starts one.
const SHARDS: usize = 2;
/// Records that are appended at once.
const APPENDED: usize = 500;
const LONG: Duration = Duration::from_secs(60);
/// Between two looks at the memory of the node.
const LOOK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    if let Some(program) = harness::kafka::missing() {
        harness::skip(&format!("no {program}"), "install a JDK 17 and Maven");
        return ExitCode::SUCCESS;
    }
    // Each client is a socket here.
    let _ = Descriptors::take_all();
    let wants = figures::wanted();
    let cassandra = std::thread::spawn(|| Cassandra::start(1));
    let kafka = Kafka::start(Version::V4_3, 1);
    let cassandra = cassandra.join().expect("it starts");
    cassandra.give_way();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
    let world = World { kafka, cassandra, runtime };
    let mut figures = Figures::default();
    if wants("storm") {
        storm::measure(&world, &mut figures);
    }
    if wants("flood") {
        flood::measure(&world, &mut figures);
    }
    figures.tell();
    ExitCode::SUCCESS
}

struct World {
    kafka: Kafka,
    cassandra: Cassandra,
    /// For what this process does itself.
    runtime: tokio::runtime::Runtime,
}

/// A node with topics and a keyspace of its own, and its log.
struct Site {
    node: Node,
    log: Arc<KafkaLog>,
    /// Number of the next record.
    next: usize,
}

impl World {
    fn site(&self, name: &str, sets: &[&str]) -> Site {
        let (selected, group) = (format!("{name}-selected"), format!("{name}-group"));
        let own = [
            "log.kind=kafka".to_owned(),
            format!("log.brokers={}", json!(self.kafka.addresses())),
            format!("log.topic_selected={selected}"),
            format!("log.topic_group={group}"),
            format!("log.consumer_group_selected=owners-of-{selected}"),
            format!("log.consumer_group_group=owners-of-{group}"),
            format!("log.consumer_group_dead_letters=readers-of-{selected}"),
            format!("log.partitions={PARTITIONS}"),
            "store.kind=scylla".to_owned(),
            format!("store.nodes={}", json!(self.cassandra.addresses())),
            format!("store.keyspace={name}"),
        ];
        let mut all: Vec<&str> = own.iter().map(String::as_str).collect();
        all.extend(sets);
        let node = Node::start(harness::shipped::program(), &all);
        let options = KafkaOptions {
            brokers: self.kafka.addresses(),
            topic_selected: selected,
            topic_control: format!("{group}-control"),
            topic_group: group,
            partitions: PARTITIONS,
            replication: 1,
            retention: Duration::from_secs(24 * 3_600),
            dead_retention: Duration::from_secs(24 * 3_600),
            fetch_pace: Duration::ZERO,
            client_id: "corecast-bench".to_owned(),
            tls: None,
            sasl: None,
        };
        let log = Arc::new(KafkaLog::new(options).expect("no files are named"));
        Site { node, log, next: 0 }
    }

    /// Appends so many records, for these in turn.
    fn append(&self, site: &mut Site, count: usize, audiences: &[For<'_>]) {
        let records: Vec<_> = (site.next..site.next + count)
            .map(|number| records::record(number, audiences[number % audiences.len()]))
            .collect();
        site.next += count;
        for records in records.chunks(APPENDED) {
            let appended = self.runtime.block_on(site.log.append(records.to_vec()));
            appended.expect("the broker takes them");
        }
    }
}

impl Site {
    fn counted(&self, name: &str) -> f64 {
        self.node.metric(name).unwrap_or(0.0)
    }

    /// Waits until nobody but so many is here, and all is kept.
    fn settle(&self, streams: f64) {
        wait::until_true("all else have gone", LONG, || {
            self.counted("corecast_streams") == streams
                && self.node.metric("corecast_owned_lag_records") == Some(0.0)
        });
    }

    /// Does this; the most memory that the node had meanwhile.
    fn watch<T>(&self, what: impl FnOnce() -> T) -> (T, usize) {
        let (most, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let done = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    most.fetch_max(self.node.resident_bytes(), Ordering::Relaxed);
                    wait::until_due(Instant::now() + LOOK);
                }
            });
            let _over = Over(&is_over);
            what()
        });
        (done, most.into_inner())
    }
}

/// Says so when it is dropped: also when a thread panics for which others wait.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Users, as many of each shard: their hash alone is not even enough for all to find room.
fn users(count: usize) -> Vec<String> {
    let mut room = [count / SHARDS; SHARDS];
    let names = (0..).map(|number| format!("user-{number:011}"));
    let has_room = |name: &String| {
        let shard = partition_of_key(name.as_bytes(), SHARDS as u16);
        let room = &mut room[usize::from(shard)];
        let is_free = *room > 0;
        *room -= usize::from(is_free);
        is_free
    };
    names.filter(has_room).take(count).collect()
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
