//! What other producers write into the topics: transactions, packed batches, nulls, headers; and
//! what happens to the topics themselves. None of it stops a partition.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use corecast::base::{Partition, Topic};
use corecast::ingest::kafka::KafkaOptions;
use corecast::ports::{Bounds, Log, LogError, MovedRecord, Want};
use harness::kafka::{JavaProducer, are_to_be_had, shared};

use crate::brokers::{open, options};
use crate::{
    LONG, PARTITIONS, bytes, failure, fetch_until, header, patient, record, run, shape_of, text,
};

/// One Java program for all tests here.
fn java() -> MutexGuard<'static, JavaProducer> {
    static JAVA: OnceLock<Mutex<JavaProducer>> = OnceLock::new();
    let java = JAVA.get_or_init(|| Mutex::new(shared().java_producer()));
    java.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log with topics of its own, and the place that the tests write to.
struct Fixture {
    options: KafkaOptions,
    log: Arc<dyn Log>,
    topic: String,
    want: Want,
}

async fn fixture() -> Fixture {
    let options = options(shared());
    let log = open(&options);
    shape_of(&*log).await;
    let partition = Partition { topic: Topic::Group, index: 1 };
    let topic = options.topic_group.clone();
    Fixture { options, log, topic, want: Want { partition, offset: 0 } }
}

impl Fixture {
    /// Opens a producer that no other test has.
    fn producer(&self, config: &[&str]) -> String {
        let name = format!("producer of {}", self.topic);
        java().say(&[&["open", &name], config].concat());
        name
    }

    fn send(&self, producer: &str, key: &str, value: &str, headers: &[&str]) -> u64 {
        java().send(&[&[producer, &self.topic, "1", key, value], headers].concat())
    }

    /// Fetches on until a record with this value has come; all values, each with its offset.
    async fn fetch_to(&mut self, last: &str) -> Vec<(u64, String)> {
        let is_last = |value: Option<&bytes::Bytes>| text(value) == last;
        let mut wants = [self.want];
        let found = fetch_until(&*self.log, &mut wants, 1 << 20, |all| {
            all.iter().any(|(_, record)| is_last(record.value.as_ref()))
        });
        let found = found.await;
        self.want = wants[0];
        found.iter().map(|(_, record)| (record.offset, text(record.value.as_ref()))).collect()
    }
}

fn pairs(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(offset, value)| (*offset, (*value).to_owned())).collect()
}

#[test]
fn only_committed_records_are_given() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut f = fixture().await;
        let id = format!("transactional.id={}", f.topic);
        let producer = f.producer(&[&id]);
        for (value, end) in [("kept", "commit"), ("gone", "abort"), ("kept too", "commit")] {
            java().say(&["begin", &producer]);
            f.send(&producer, "k", value, &[]);
            java().say(&[end, &producer]);
        }
        // Each transaction is its record and a marker.
        assert_eq!(f.fetch_to("kept too").await, pairs(&[(0, "kept"), (4, "kept too")]));
        let bounds = patient("bounds", async || f.log.bounds(f.want.partition).await).await;
        assert_eq!(bounds, Bounds { start: 0, end: 6 });
    });
}

#[test]
fn an_open_transaction_holds_back_what_follows_until_it_ends() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut f = fixture().await;
        let id = format!("transactional.id={}", f.topic);
        let producer = f.producer(&[&id]);
        let plain = {
            let name = format!("plain {}", f.topic);
            java().say(&["open", &name]);
            name
        };
        f.send(&plain, "k", "before", &[]);
        java().say(&["begin", &producer]);
        assert_eq!(f.send(&producer, "k", "open", &[]), 1);
        assert_eq!(f.send(&plain, "k", "behind", &[]), 2);
        assert_eq!(f.fetch_to("before").await, pairs(&[(0, "before")]));
        // The end is where the open transaction begins, so that who reads up to it gets there.
        let bounds = f.log.bounds(f.want.partition).await.expect("bounds");
        assert_eq!(bounds, Bounds { start: 0, end: 1 });
        let waiting = f.log.fetch(std::slice::from_ref(&f.want), 1 << 20, Duration::ZERO);
        assert_eq!(waiting.await.expect("a fetch"), []);
        // In the middle of a fetch that waits for it.
        let (log, wants) = (f.log.clone(), [f.want]);
        let fetching = tokio::spawn(async move { log.fetch(&wants, 1 << 20, LONG).await });
        java().say(&["abort", &producer]);
        let batches = fetching.await.expect("no panic").expect("a fetch");
        assert!(batches.iter().all(|batch| batch.next > 1), "{batches:?}");
        f.send(&plain, "k", "after", &[]);
        let found = f.fetch_to("after").await;
        // That fetch may have brought "behind" already: it is asked for once more.
        assert_eq!(found, pairs(&[(2, "behind"), (4, "after")]));
    });
}

#[test]
fn a_transaction_over_many_batches_and_partitions_is_passed() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut f = fixture().await;
        let id = format!("transactional.id={}", f.topic);
        let producer = f.producer(&[&id, "batch.size=2000"]);
        java().say(&["begin", &producer]);
        for partition in ["0", "1", "2"] {
            java().say(&["fill", &producer, &f.topic, partition, "300", "500"]);
        }
        java().say(&["abort", &producer]);
        java().say(&["begin", &producer]);
        f.send(&producer, "k", "last", &[]);
        java().say(&["commit", &producer]);
        // 300 records and a marker before it; a small fetch meets batches without any record.
        let mut wants = [f.want];
        let found = fetch_until(&*f.log, &mut wants, 1, |all| !all.is_empty()).await;
        let found: Vec<_> =
            found.iter().map(|(_, one)| (one.offset, text(one.value.as_ref()))).collect();
        assert_eq!(found, pairs(&[(301, "last")]));
        f.want = wants[0];
    });
}

#[test]
fn every_codec_is_read() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
            let mut f = fixture().await;
            let config = format!("compression.type={codec}");
            // Batches of many records, of 100 KB unpacked.
            let producer = f.producer(&[&config, "batch.size=200000", "linger.ms=100"]);
            java().say(&["fill", &producer, &f.topic, "1", "500", "1000"]);
            let last = f.send(&producer, "k", "last", &["h=1", "h"]);
            assert_eq!(last, 500);
            let found = f.fetch_to("last").await;
            assert_eq!(found.len(), 501, "{codec}");
            for (number, (offset, value)) in found.iter().take(500).enumerate() {
                let letter = char::from(b'a' + (number % 26) as u8);
                assert_eq!(*offset, number as u64, "{codec}");
                assert!(value.len() == 1_000 && value.chars().all(|one| one == letter), "{codec}");
            }
        }
    });
}

#[test]
fn nulls_and_equal_header_names_are_kept() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let f = fixture().await;
        let producer = f.producer(&[]);
        f.send(&producer, "~", "~", &[]);
        f.send(&producer, "", "", &["=empty name", "twice=1", "null", "twice=2", "twice"]);
        let long = "n".repeat(3_000);
        f.send(&producer, "k", "v", &[&format!("{long}={long}")]);
        let mut wants = [f.want];
        let found = fetch_until(&*f.log, &mut wants, 1 << 20, |all| all.len() >= 3).await;
        let [first, second, third] = &found[..] else { panic!("{found:?}") };
        assert_eq!((&first.1.key, &first.1.value, first.1.headers.len()), (&None, &None, 0));
        assert_eq!(second.1.key.as_deref(), Some(&b""[..]));
        assert_eq!(second.1.value.as_deref(), Some(&b""[..]));
        let expected = [
            header("", Some("empty name")),
            header("twice", Some("1")),
            header("null", None),
            header("twice", Some("2")),
            header("twice", None),
        ];
        assert_eq!(second.1.headers, expected);
        assert_eq!(third.1.headers, [header(&long, Some(&long))]);
    });
}

#[test]
fn what_is_moved_with_headers_is_read_by_javas_consumer() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let f = fixture().await;
        let mut moved = record(Topic::Group, "key", "value");
        moved.headers = vec![header("b", Some("1")), header("a", None), header("b", Some("2"))];
        let plain = record(Topic::Group, "key", "plain");
        f.log.append(vec![moved, plain]).await.expect("appends");
        let lines = shared().console_consume(&f.topic, 2);
        assert_eq!(lines, ["b:1,a:null,b:2\tkey\tvalue", "NO_HEADERS\tkey\tplain"]);
        let dead = MovedRecord {
            to: Partition { topic: Topic::GroupDead, index: 0 },
            key: None,
            value: None,
            headers: vec![header("b", Some("1")), header("b", None), header("b", Some(""))],
        };
        let plain = MovedRecord { headers: Vec::new(), value: Some(bytes("v")), ..dead.clone() };
        f.log.append_moved(vec![dead, plain]).await.expect("appends");
        let lines = shared().console_consume(&format!("{}-dlt", f.topic), 2);
        assert_eq!(lines, ["b:1,b:null,b:\tnull\tnull", "NO_HEADERS\tnull\tv"]);
    });
}

#[test]
fn small_fetches_of_large_batches_lose_and_repeat_nothing() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let f = fixture().await;
        let producer = f.producer(&["batch.size=40000", "linger.ms=20"]);
        for partition in ["0", "1", "2"] {
            java().say(&["fill", &producer, &f.topic, partition, "400", "1000"]);
        }
        // Room for one whole batch and a part of another: the answer ends in a cut one.
        let partitions = (0..PARTITIONS).map(|index| Partition { topic: Topic::Group, index });
        let mut wants: Vec<Want> =
            partitions.map(|partition| Want { partition, offset: 0 }).collect();
        let found = fetch_until(&*f.log, &mut wants, 60_000, |all| all.len() >= 1_200).await;
        for index in 0..PARTITIONS {
            let of_partition = found.iter().filter(|(partition, _)| partition.index == index);
            let offsets: Vec<u64> = of_partition.map(|(_, record)| record.offset).collect();
            assert_eq!(offsets, (0..400).collect::<Vec<_>>(), "partition {index}");
        }
    });
}

#[test]
fn what_was_trimmed_is_said_with_the_bounds() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut f = fixture().await;
        let producer = f.producer(&[]);
        for number in 0..5 {
            f.send(&producer, "k", &number.to_string(), &[]);
        }
        java().say(&["trim", &f.topic, "1", "3"]);
        match f.log.fetch(&[f.want], 1 << 20, LONG).await {
            Err(LogError::OutOfRange { wanted, bounds }) => {
                assert_eq!((wanted, bounds), (f.want, Bounds { start: 3, end: 5 }));
            }
            other => panic!("{other:?}"),
        }
        // The others go on, and so does this one from where the log begins.
        f.want.offset = 3;
        assert_eq!(f.fetch_to("4").await, pairs(&[(3, "3"), (4, "4")]));
    });
}

#[test]
fn topics_are_made_as_configured() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let f = fixture().await;
        let text = shared().topics(&["--describe", "--topic", &f.topic]);
        for expected in [
            "PartitionCount: 3",
            "ReplicationFactor: 1",
            "retention.ms=3600000",
            "max.message.bytes",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let text = shared().topics(&["--describe", "--topic", &format!("{}-dlt", f.topic)]);
        for expected in ["PartitionCount: 1", "ReplicationFactor: 1", "retention.ms=7200000"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        // Two nodes that start together, and one that comes later, see the same log.
        let options = options(shared());
        let logs = [open(&options), open(&options)];
        let (first, second) = tokio::join!(shape_of(&*logs[0]), shape_of(&*logs[1]));
        assert_eq!(first, second);
        assert_eq!(shape_of(&*open(&options)).await, first);
        assert_ne!(shape_of(&*f.log).await.identity, first.identity);
    });
}

#[test]
fn a_topic_with_other_partitions_is_refused_and_says_what_to_do() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let options = options(shared());
        shared().create_topic(&options.topic_group, PARTITIONS + 1, 1, &[]);
        let said = failure("it is refused", async || open(&options).shape().await).await;
        for expected in [&*options.topic_group, "has 4 partitions", "log.partitions = 3"] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
    });
}

#[test]
fn a_topic_of_dead_letters_with_several_partitions_is_refused() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let options = options(shared());
        let name = format!("{}-dlt", options.topic_group);
        shared().create_topic(&name, 2, 1, &[]);
        let said = failure("it is refused", async || open(&options).shape().await).await;
        for expected in [&*name, "has 2 partitions", "has one"] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
    });
}

#[test]
fn a_topic_of_dead_letters_that_was_removed_is_made_again() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let f = fixture().await;
        let to = Partition { topic: Topic::GroupDead, index: 0 };
        let letter = |value: &str| MovedRecord {
            to,
            key: None,
            value: Some(bytes(value)),
            headers: Vec::new(),
        };
        let append = async |value: &str| {
            patient(value, async || f.log.append_moved(vec![letter(value)]).await).await
        };
        append("old").await;
        shared().topics(&["--delete", "--topic", &format!("{}-dlt", f.topic)]);
        let places = append("new").await;
        assert_eq!(places[0].offset, 0, "in a topic that is new");
        let mut wants = [Want { partition: to, offset: 0 }];
        let found = fetch_until(&*f.log, &mut wants, 1 << 20, |all| !all.is_empty()).await;
        assert_eq!(text(found[0].1.value.as_ref()), "new");
        // What is served has not heard of it.
        f.log.append(vec![record(Topic::Group, "k", "served")]).await.expect("appends");
    });
}

#[test]
fn a_topic_that_was_replaced_is_seen_and_never_read_as_the_old_one() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let f = fixture().await;
        let old = shape_of(&*f.log).await;
        f.log.append(vec![record(Topic::Group, "k", "old")]).await.expect("appends");
        shared().topics(&["--delete", "--topic", &f.topic]);
        // Gone is not replaced: it might be a broker that does not know it yet.
        let wants = [f.want];
        let wait = Duration::from_millis(200);
        let began = Instant::now();
        while !matches!(f.log.fetch(&wants, 1 << 20, wait).await, Err(LogError::Away(_))) {
            assert!(began.elapsed() < LONG, "that the topic is gone is not seen");
        }
        shared().create_topic(&f.topic, PARTITIONS, 1, &[]);
        let said = failure("it is seen", async || {
            let batches = f.log.fetch(&wants, 1 << 20, wait).await?;
            assert_eq!(batches, [], "records of another log");
            Ok(())
        });
        let said = said.await;
        assert!(said.contains(&f.topic) && said.contains("was replaced"), "{said}");
        let said_again = f.log.append(vec![record(Topic::Group, "k", "new")]).await;
        assert!(matches!(said_again, Err(LogError::Failed(_))), "{said_again:?}");
        // A node that starts now serves the new one, under another identity.
        let new = shape_of(&*open(&f.options)).await;
        assert_ne!(new.identity, old.identity);
    });
}

#[test]
fn fetches_keep_the_pace() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let pace = Duration::from_millis(200);
        let options = KafkaOptions { fetch_pace: pace, ..options(shared()) };
        let log = open(&options);
        shape_of(&*log).await;
        let partition = Partition { topic: Topic::Group, index: 0 };
        let wants = [Want { partition, offset: 0 }];
        patient("the new topic has a leader", async || log.bounds(partition).await).await;
        let began = Instant::now();
        for _ in 0..4 {
            log.fetch(&wants, 1 << 20, Duration::ZERO).await.expect("a fetch");
        }
        assert!(began.elapsed() >= pace * 3, "{:?}", began.elapsed());
    });
}
