//! Records a second from a topic that was filled before, from its beginning: fetched over the
//! node's own connections and decoded on a thread of their own, as in the node, and fetched alone;
//! beside the Java consumer, which takes the values' bytes and looks into none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use corecast::base::{LogShape, Partition, Position};
use corecast::control::Threads;
use corecast::domain::{Decoder, Finding, Rules};
use corecast::ingest::Ingest;
use corecast::ingest::kafka::KafkaLog;
use corecast::lane::{Doorbell, ToShard, lane};
use corecast::limits;
use corecast::ports::{Batch, Bounds, Log, LogError, MovedRecord, NewRecord, Want};
use harness::kafka::Kafka;

use super::figures::{Figures, Goal, Spread};
use super::open_log;
use super::records::{self, For};

const ROUNDS: usize = 5;
const RECORDS: u64 = 400_000;
const USERS: usize = 15_000;
/// About 25 records a partition and batch: what a Java producer's 16 KiB hold.
const APPEND: usize = 250;
const APPENDS_AT_ONCE: usize = 8;
/// As the node has.
const CONTROL_THREADS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);

const PREFIX: &str = "throughput";

/// What one pass over the topic came to.
#[derive(Clone, Copy)]
struct Pass {
    records: u64,
    /// Of the values.
    bytes: u64,
    took: Duration,
}

pub fn measure(kafka: &Kafka, figures: &mut Figures) {
    println!("throughput: {ROUNDS} rounds of {RECORDS} records");
    let filled = fill(kafka);
    let topic = format!("{PREFIX}-selected");
    let mut consumer = kafka.java_consumer();
    let (mut both, mut fetched, mut consumed) = (Vec::new(), Vec::new(), Vec::new());
    // The first pass compiles the consumer and is not counted.
    for round in 0..=ROUNDS {
        let drained = consumer.drain(&topic, RECORDS);
        let consumer_pass =
            Pass { records: drained.records, bytes: drained.bytes, took: drained.took };
        let passes = [fetch_and_decode(kafka), fetch_alone(kafka), consumer_pass];
        for pass in passes {
            assert_eq!((pass.records, pass.bytes), (RECORDS, filled), "all see the same records");
        }
        if round > 0 {
            both.push(passes[0]);
            fetched.push(passes[1]);
            consumed.push(passes[2]);
        }
    }
    let rates = |passes: &[Pass]| -> Vec<f64> {
        passes.iter().map(|pass| pass.records as f64 / pass.took.as_secs_f64()).collect()
    };
    let consumed = rates(&consumed);
    let baseline = ("Java consumer", &consumed[..]);
    figures.add(("fetch and decode", "records/s"), &rates(&both), baseline, Goal::None);
    figures.add(("fetch alone", "records/s"), &rates(&fetched), baseline, Goal::None);
    let megabytes =
        |rates: &[f64]| Spread::of(rates).median * (filled as f64 / RECORDS as f64) / 1_000_000.0;
    figures.note(format!(
        "throughput: values of {} bytes; MB/s of values: fetch and decode {:.0}, fetch alone \
         {:.0}, Java consumer {:.0}",
        filled / RECORDS,
        megabytes(&rates(&both)),
        megabytes(&rates(&fetched)),
        megabytes(&consumed),
    ));
}

/// Fills the topic; returns the bytes of the values.
fn fill(kafka: &Kafka) -> u64 {
    let runtime = super::new_runtime();
    let log = open_log(kafka, PREFIX);
    let mut bytes = 0;
    let mut appends = VecDeque::new();
    for first in (0..RECORDS as usize).step_by(APPEND) {
        let batch: Vec<NewRecord> = (first..first + APPEND)
            .map(|number| {
                let user = format!("user-{:011}", number * 7_919 % USERS);
                records::record(number, For::User(&user))
            })
            .collect();
        bytes += batch.iter().map(|record| record.value.len() as u64).sum::<u64>();
        let log = log.clone();
        appends.push_back(runtime.spawn(async move { log.append(batch).await }));
        let is_last = first + APPEND == RECORDS as usize;
        while appends.len() > if is_last { 0 } else { APPENDS_AT_ONCE } {
            let oldest = appends.pop_front().expect("more than none");
            let appended = runtime.block_on(oldest).expect("no append panics");
            appended.expect("the broker takes them");
        }
    }
    bytes
}

/// The node's way: ingest on the control threads, a lane, and a thread that decodes.
fn fetch_and_decode(kafka: &Kafka) -> Pass {
    let bell = Arc::new(Doorbell::new().expect("an eventfd"));
    let (shard, inputs) = lane("bench", limits::lane::INGEST_TO_SHARD, bell.clone());
    let ingest = Ingest {
        log: Arc::new(FromTheStart(open_log(kafka, PREFIX))),
        shards: vec![shard],
        progress: Box::new(|_| ()),
        lag: Arc::default(),
    };
    let threads = Threads::start(CONTROL_THREADS, || ()).expect("threads");
    threads.spawn(async move {
        // It ends with the threads.
        let _ = ingest.run().await;
    });
    let mut decoder = None;
    let mut began = Instant::now();
    let mut pass = Pass { records: 0, bytes: 0, took: Duration::ZERO };
    while pass.records < RECORDS {
        match inputs.try_recv() {
            None => {
                if bell.may_sleep(|| inputs.is_empty()) {
                    assert!(bell.wait(PATIENCE), "records come");
                }
            }
            // Everybody's time begins when the partitions are known.
            Some(ToShard::Identity(identity)) => {
                let (selected_partitions, group_partitions) =
                    (super::PARTITIONS, super::PARTITIONS);
                let shape = LogShape { identity, selected_partitions, group_partitions };
                decoder = Some(Decoder::new(Rules { shape, is_testing: false }));
                began = Instant::now();
            }
            Some(ToShard::Batch(batch)) => {
                let decoder = decoder.as_mut().expect("the identity comes first");
                for record in &batch.records {
                    let position = Position { partition: batch.partition, offset: record.offset };
                    let value = record.value.as_deref();
                    let finding = decoder.decode_caught(position, record.appended_at, value);
                    assert!(matches!(finding, Finding::Serve(_)), "{finding:?}");
                    std::hint::black_box(&finding);
                }
                count(&mut pass, &batch);
            }
            Some(_) => {}
        }
    }
    pass.took = began.elapsed();
    drop(inputs);
    threads.stop(PATIENCE);
    pass
}

/// The log's own part of it.
fn fetch_alone(kafka: &Kafka) -> Pass {
    let threads = Threads::start(CONTROL_THREADS, || ()).expect("threads");
    let log = open_log(kafka, PREFIX);
    let (result, pass) = std::sync::mpsc::channel();
    threads.spawn(async move {
        let shape = log.shape().await.expect("the topics are there");
        let began = Instant::now();
        let mut wants: Vec<Want> =
            shape.all_partitions().map(|partition| Want { partition, offset: 0 }).collect();
        let mut pass = Pass { records: 0, bytes: 0, took: Duration::ZERO };
        while pass.records < RECORDS {
            let fetched = log.fetch(&wants, limits::log::FETCH_BYTES_MAX, limits::log::FETCH_WAIT);
            for batch in fetched.await.expect("the broker is there") {
                let want = wants.iter_mut().find(|want| want.partition == batch.partition);
                want.expect("it was asked for").offset = batch.next;
                count(&mut pass, &batch);
            }
        }
        pass.took = began.elapsed();
        let _ = result.send(pass);
    });
    let pass = pass.recv_timeout(PATIENCE).expect("records come");
    threads.stop(PATIENCE);
    pass
}

fn count(pass: &mut Pass, batch: &Batch) {
    pass.records += batch.records.len() as u64;
    let lengths = batch.records.iter().map(|record| record.value.as_ref().map_or(0, |v| v.len()));
    pass.bytes += lengths.sum::<usize>() as u64;
}

/// A log of which ingest reads everything: it believes that all of it has come since the start.
struct FromTheStart(Arc<KafkaLog>);

#[async_trait]
impl Log for FromTheStart {
    async fn shape(&self) -> Result<LogShape, LogError> {
        self.0.shape().await
    }

    async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
        Ok(Bounds { start: 0, end: 0 })
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        self.0.append(records).await
    }

    async fn append_moved(&self, records: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        self.0.append_moved(records).await
    }

    async fn fetch(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait_max: Duration,
    ) -> Result<Vec<Batch>, LogError> {
        self.0.fetch(wants, bytes_max, wait_max).await
    }
}
