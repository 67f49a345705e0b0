//! What every implementation of `ports::Log` must do (`suite.rs`), run against each of them, and
//! what only the one in Kafka has to do besides.

mod brokers;
mod embedded;
mod kafka_outage;
mod kafka_records;
mod kafka_secured;
mod suite;

use std::time::Duration;

use corecast::base::{LogShape, Partition, Topic};
use corecast::ports::{Batch, Header, Log, LogError, NewRecord, Record, Want};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// Partitions of each topic.
const PARTITIONS: u16 = 3;

/// Runs a test's future as a node's control threads would.
fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime").block_on(test);
}

fn bytes(text: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

fn header(name: &str, value: Option<&str>) -> Header {
    Header { name: bytes(name), value: value.map(bytes) }
}

fn record(topic: Topic, key: &str, value: &str) -> NewRecord {
    NewRecord { topic, key: bytes(key), value: bytes(value), headers: Vec::new() }
}

/// Every partition from its beginning.
fn all_from_start(shape: &LogShape) -> Vec<Want> {
    shape.all_partitions().map(|partition| Want { partition, offset: 0 }).collect()
}

/// Waits until the log has answered.
async fn shape_of(log: &dyn Log) -> LogShape {
    patient("the log answers", async || log.shape().await).await
}

/// Tries again while the log is away, as everybody who uses one does.
async fn patient<T>(what: &str, call: impl AsyncFn() -> Result<T, LogError>) -> T {
    let began = std::time::Instant::now();
    loop {
        match call().await {
            Ok(done) => return done,
            Err(LogError::Away(reason)) => {
                assert!(began.elapsed() < LONG, "waited {LONG:?} in vain: {what}: {reason}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

/// Asks until it is refused for a reason that waiting does not mend; returns that reason.
async fn failure<T>(what: &str, call: impl AsyncFn() -> Result<T, LogError>) -> String {
    let began = std::time::Instant::now();
    loop {
        match call().await {
            Err(LogError::Failed(said)) => return said,
            Err(LogError::Away(_)) | Ok(_) => {}
            Err(error) => panic!("{what}: {error}"),
        }
        assert!(began.elapsed() < LONG, "waited {LONG:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Fetches from these places on until `is_enough`; checks what holds for every batch.
async fn fetch_until(
    log: &dyn Log,
    wants: &mut [Want],
    bytes_max: usize,
    is_enough: impl Fn(&[(Partition, Record)]) -> bool,
) -> Vec<(Partition, Record)> {
    let began = std::time::Instant::now();
    let mut all = Vec::new();
    while !is_enough(&all) {
        assert!(began.elapsed() < LONG, "waited {LONG:?} in vain for records; have {all:?}");
        let wait = Duration::from_millis(500);
        let batches =
            patient("records can be fetched", async || log.fetch(wants, bytes_max, wait).await);
        for batch in batches.await {
            take(wants, batch, &mut all);
        }
    }
    all
}

fn take(wants: &mut [Want], batch: Batch, all: &mut Vec<(Partition, Record)>) {
    let want = wants.iter_mut().find(|want| want.partition == batch.partition);
    let want = want.expect("a partition that was wanted");
    assert!(batch.next > want.offset, "an empty batch: {batch:?}");
    assert!(batch.end >= batch.next, "the end lies behind: {batch:?}");
    for record in batch.records {
        assert!((want.offset..batch.next).contains(&record.offset), "{record:?} of {want:?}");
        want.offset = record.offset + 1;
        all.push((batch.partition, record));
    }
    want.offset = batch.next;
}

/// So many records of all partitions, from the beginning.
async fn fetch_all(log: &dyn Log, count: usize) -> Vec<(Partition, Record)> {
    let mut wants = all_from_start(&shape_of(log).await);
    fetch_until(log, &mut wants, 4 << 20, |all| all.len() >= count).await
}

fn text(bytes: Option<&bytes::Bytes>) -> String {
    bytes.map_or("~".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}
