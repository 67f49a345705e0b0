//! What all shards of a node need of the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corecast::base::{Partition, Topic};
use corecast::control::rereads;
use corecast::domain::Reread;
use corecast::lane::{Doorbell, ToShard, lane};
use corecast::limits;
use corecast::ports::{MovedRecord, SystemClock};
use corecast::store::embedded::{Embedded, EmbeddedOptions};

/// Each shard has its own pass. They are not always equally far, but not far apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_shards_need_is_read_once_a_node() {
    const RECORDS: u64 = 6_000;
    const BYTES: usize = 1_000;
    /// Records that one may be ahead of the others.
    const LEAD: u64 = 4_000;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 2 };
    let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("opens");
    let partition = |index| Partition { topic: Topic::Group, index };
    for index in 0..2 {
        let record = |number: u64| {
            let value = Some(vec![number as u8; BYTES].into());
            MovedRecord { to: partition(index), key: None, value, headers: Vec::new() }
        };
        let records: Vec<_> = (0..RECORDS).map(record).collect();
        for records in records.chunks(1_000) {
            embedded.log().append_moved(records.to_vec()).await.expect("embedded");
        }
    }
    let bell = Arc::new(Doorbell::new().expect("a doorbell"));
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..4).map(|_| lane("control_to_shard", 8, bell.clone())).unzip();
    let records = Arc::<AtomicU64>::default();
    let (desk, rereads) = rereads(embedded.log(), senders, records.clone());
    let running = tokio::spawn(rereads.run());
    let far: Arc<[AtomicU64]> = receivers.iter().map(|_| AtomicU64::new(0)).collect();
    let shards = (0..).zip(receivers).map(|(shard, receiver)| {
        let (desk, far) = (desk.clone(), far.clone());
        tokio::spawn(async move {
            let mut read = BTreeMap::from([(partition(0), 0), (partition(1), 0)]);
            loop {
                let left = read.iter().filter(|(_, next)| **next < RECORDS);
                let from: Vec<_> = left.map(|(partition, next)| (*partition, *next)).collect();
                if from.is_empty() {
                    far[usize::from(shard)].store(u64::MAX - LEAD, Ordering::Relaxed);
                    return;
                }
                let own = read.values().sum::<u64>();
                far[usize::from(shard)].store(own, Ordering::Relaxed);
                let is_near = || far.iter().all(|far| own <= far.load(Ordering::Relaxed) + LEAD);
                while !is_near() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                desk.take(shard, Reread { pass: 7, from });
                let batches = loop {
                    match receiver.try_recv() {
                        Some(ToShard::Reread { pass: 7, batches }) => break batches,
                        Some(other) => panic!("{other:?}"),
                        None => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                };
                let mut bytes = 0;
                for batch in batches.expect("the log has them") {
                    let next = read.get_mut(&batch.partition).expect("it was asked for");
                    for record in batch.records {
                        assert_eq!(record.offset, *next, "nothing is missing or doubled");
                        *next += 1;
                        bytes += record.value.map_or(0, |value| value.len());
                    }
                    assert_eq!(*next, batch.next);
                }
                assert!(bytes <= 3 * limits::rereads::BYTES, "{bytes} bytes in one part");
            }
        })
    });
    for shard in shards.collect::<Vec<_>>() {
        tokio::time::timeout(Duration::from_secs(30), shard).await.expect("in time").expect("done");
    }
    drop(desk);
    running.await.expect("it ends with its desk");
    let read = records.load(Ordering::Relaxed);
    assert!((2 * RECORDS..2 * RECORDS + RECORDS / 10).contains(&read), "{read} records were read");
}
