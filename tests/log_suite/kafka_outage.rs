//! Brokers that are absent, killed, frozen and stopped: what was acknowledged is there, in order,
//! once; what can be had is given meanwhile; and all goes on by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corecast::base::{Partition, Position, Topic};
use corecast::ingest::kafka::KafkaOptions;
use corecast::ports::{Log, LogError, Want};
use harness::kafka::{Kafka, Version, are_to_be_had};

use crate::brokers::{open, options};
use crate::{LONG, all_from_start, fetch_all, patient, record, run, shape_of, take, text};

/// The longest that any call may take with no broker there: connecting to all, or a produce.
const CALL: Duration = Duration::from_secs(30);
/// A fetch that is waiting while its broker is killed.
const IN_THE_MIDDLE: Duration = Duration::from_secs(5);

#[test]
fn a_broker_that_is_absent_is_waited_for() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut kafka = Kafka::start(Version::V4_3, 1);
        let options = options(&kafka);
        kafka.kill(0);
        let log = open(&options);
        let partition = Partition { topic: Topic::Group, index: 0 };
        let wants = [Want { partition, offset: 0 }];
        // Absent from the start: every call says so, names the broker, and ends.
        let began = Instant::now();
        for said in [
            log.shape().await.map(drop),
            log.bounds(partition).await.map(drop),
            log.append(vec![record(Topic::Group, "k", "too early")]).await.map(drop),
            log.fetch(&wants, 1 << 20, Duration::from_millis(100)).await.map(drop),
        ] {
            let Err(LogError::Away(said)) = said else { panic!("{said:?}") };
            assert!(said.contains(&options.brokers[0]), "{said}");
        }
        assert!(began.elapsed() < CALL);
        kafka.restart(0);
        shape_of(&*log).await;
        let first = log.append(vec![record(Topic::Group, "k", "first")]).await.expect("appends");
        assert_eq!(first[0].offset, 0);

        // Lost later, in the middle of a fetch.
        let ahead = all_from_start(&shape_of(&*log).await);
        let fetching = {
            let log = log.clone();
            let mut ahead = ahead.clone();
            for want in &mut ahead {
                want.offset = u64::from(want.partition == first[0].partition);
            }
            tokio::spawn(async move { log.fetch(&ahead, 1 << 20, IN_THE_MIDDLE).await })
        };
        kafka.kill(0);
        let said = fetching.await.expect("no panic");
        assert!(matches!(said, Err(LogError::Away(_))), "{said:?}");
        let said = log.append(vec![record(Topic::Group, "k", "lost")]).await;
        assert!(matches!(said, Err(LogError::Away(_))), "{said:?}");
        kafka.restart(0);
        patient("it takes records again", async || {
            log.append(vec![record(Topic::Group, "k", "second")]).await
        })
        .await;
        let found = fetch_all(&*log, 2).await;
        let found: Vec<_> = found.iter().map(|(_, one)| text(one.value.as_ref())).collect();
        assert_eq!((found.first(), found.last()), (Some(&"first".into()), Some(&"second".into())));
    });
}

/// Writes to all partitions and remembers what was acknowledged where; reads all of them.
struct Traffic {
    log: Arc<dyn Log>,
    is_over: AtomicBool,
    written: AtomicUsize,
    read: AtomicUsize,
}

const PACE: Duration = Duration::from_millis(10);
const RETRY: Duration = Duration::from_millis(20);
const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

impl Traffic {
    async fn write(self: Arc<Self>) -> BTreeMap<(Partition, u64), String> {
        let mut told = BTreeMap::new();
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            // The other tests' brokers run on the same cores.
            tokio::time::sleep(PACE).await;
            for topic in Topic::ALL {
                let value = format!("{number}");
                let records = KEYS.map(|key| record(topic, key, &value));
                let places = loop {
                    match self.log.append(records.to_vec()).await {
                        Ok(places) => break places,
                        Err(LogError::Away(_)) => tokio::time::sleep(RETRY).await,
                        Err(error) => panic!("{error}"),
                    }
                };
                for Position { partition, offset } in places {
                    told.insert((partition, offset), value.clone());
                }
                self.written.fetch_add(KEYS.len(), Ordering::Relaxed);
            }
        }
        told
    }

    /// Reads until everything that was told has come.
    async fn read(
        self: Arc<Self>,
        mut wants: Vec<Want>,
        ends: Arc<tokio::sync::Mutex<Option<Ends>>>,
    ) -> Vec<Read> {
        let mut all = Vec::new();
        loop {
            let wait = Duration::from_millis(300);
            match self.log.fetch(&wants, 4 << 20, wait).await {
                Ok(batches) => {
                    for batch in batches {
                        take(&mut wants, batch, &mut all);
                    }
                }
                Err(LogError::Away(_)) => tokio::time::sleep(RETRY).await,
                Err(error) => panic!("{error}"),
            }
            self.read.store(all.len(), Ordering::Relaxed);
            if let Some(ends) = &*ends.lock().await {
                let is_there =
                    |want: &Want| ends.get(&want.partition).is_none_or(|end| want.offset >= *end);
                if wants.iter().all(is_there) {
                    let found = all.into_iter();
                    return found
                        .map(|(partition, one)| (partition, one.offset, text(one.value.as_ref())))
                        .collect();
                }
            }
        }
    }

    /// Waits until reading and writing have both gone on well beyond where they were.
    async fn goes_on(&self, what: &str) {
        let (written, read) =
            (self.written.load(Ordering::Relaxed), self.read.load(Ordering::Relaxed));
        let began = Instant::now();
        while self.written.load(Ordering::Relaxed) < written + 200
            || self.read.load(Ordering::Relaxed) < read + 200
        {
            assert!(began.elapsed() < LONG, "nothing goes on: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("{what}: went on in {:?}", began.elapsed());
    }
}

type Ends = BTreeMap<Partition, u64>;
type Read = (Partition, u64, String);

#[test]
fn one_of_three_brokers_may_be_killed_frozen_or_stopped() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut kafka = Kafka::start(Version::V4_3, 3);
        let options = KafkaOptions { replication: 3, ..options(&kafka) };
        let log = open(&options);
        let wants = all_from_start(&shape_of(&*log).await);
        let traffic = Arc::new(Traffic {
            log,
            is_over: AtomicBool::new(false),
            written: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
        });
        let ends = Arc::new(tokio::sync::Mutex::new(None));
        let writing = tokio::spawn(traffic.clone().write());
        let reading = tokio::spawn(traffic.clone().read(wants, ends.clone()));
        traffic.goes_on("all are there").await;
        kafka.kill(0);
        traffic.goes_on("the first was killed").await;
        kafka.restart(0);
        traffic.goes_on("the first is back").await;
        kafka.freeze(1);
        traffic.goes_on("the second is frozen").await;
        kafka.thaw(1);
        traffic.goes_on("the second is thawed").await;
        kafka.stop(2);
        traffic.goes_on("the third was stopped").await;
        kafka.restart(2);
        traffic.goes_on("the third is back").await;
        traffic.is_over.store(true, Ordering::Relaxed);
        let told = writing.await.expect("the writer");
        let mut last = Ends::new();
        for (partition, offset) in told.keys() {
            last.insert(*partition, offset + 1);
        }
        *ends.lock().await = Some(last);
        let found = reading.await.expect("the reader");
        let mut next = Ends::new();
        for (partition, offset, value) in &found {
            let next = next.entry(*partition).or_insert(0);
            assert_eq!(offset, next, "in order, each once: {partition:?}");
            *next += 1;
            if let Some(told) = told.get(&(*partition, *offset)) {
                assert_eq!(told, value, "{partition:?} {offset}");
            }
        }
        for (partition, offset) in told.keys() {
            assert!(
                next[partition] > *offset,
                "{partition:?} {offset} was acknowledged and is lost"
            );
        }
    });
}
