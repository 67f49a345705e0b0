//! What every log must do. Each check is given an empty log of its own.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corecast::base::{Partition, Topic, partition_of_key};
use corecast::limits::{kafka, log as limits};
use corecast::ports::{Bounds, Log, LogError, MovedRecord, NewRecord, Want};

use crate::{
    LONG, PARTITIONS, all_from_start, bytes, fetch_all, fetch_until, header, record, shape_of, text,
};

type Check = for<'a> fn(&'a Arc<dyn Log>) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

const CHECKS: &[(&str, Check)] = &[
    ("its shape is the configured one and stays", |log| Box::pin(shape_stays(log))),
    ("an empty log waits and gives nothing", |log| Box::pin(empty(log))),
    ("a place follows from the key", |log| Box::pin(places(log))),
    ("records come back as they were", |log| Box::pin(content(log))),
    ("a fetch ends with the first record", |log| Box::pin(wakes(log))),
    ("a fetch goes on in the middle", |log| Box::pin(middle(log))),
    ("a fetch brings about what it may", |log| Box::pin(bytes_max(log))),
    ("no partition starves another", |log| Box::pin(starves_none(log))),
    ("an offset behind the end is said", |log| Box::pin(out_of_range(log))),
    ("appends side by side mix nothing up", |log| Box::pin(side_by_side(log))),
    ("a large append is kept whole", |log| Box::pin(large_append(log))),
    ("a record that is too large is refused", |log| Box::pin(too_large(log))),
    ("what is moved comes back as it was", |log| Box::pin(moved(log))),
    ("dead letters are apart from what is served", |log| Box::pin(dead_apart(log))),
    ("a dead letter that is too large is refused, for its size", |log| Box::pin(dead_large(log))),
];

/// Runs all of them; `make` gives a log and what has to live as long.
pub async fn check<L>(make: impl AsyncFn() -> (Arc<dyn Log>, L)) {
    for (name, check) in CHECKS {
        println!("{name}");
        let (log, _alive) = make().await;
        shape_of(&*log).await;
        check(&log).await;
    }
}

async fn shape_stays(log: &Arc<dyn Log>) {
    let shape = shape_of(&**log).await;
    assert_eq!((shape.selected_partitions, shape.group_partitions), (PARTITIONS, PARTITIONS));
    assert_eq!(log.shape().await.expect("still there"), shape);
    assert_eq!(log.append(Vec::new()).await.expect("nothing is no error"), []);
}

async fn empty(log: &Arc<dyn Log>) {
    let shape = shape_of(&**log).await;
    for partition in shape.all_partitions() {
        let bounds = log.bounds(partition).await.expect("bounds");
        assert_eq!(bounds, Bounds { start: 0, end: 0 });
    }
    for wait in [Duration::ZERO, Duration::from_millis(300)] {
        let began = Instant::now();
        let batches = log.fetch(&all_from_start(&shape), 1 << 20, wait).await.expect("a fetch");
        assert_eq!(batches, []);
        assert!(began.elapsed() >= wait, "waited {:?} of {wait:?}", began.elapsed());
    }
}

async fn places(log: &Arc<dyn Log>) {
    let shape = shape_of(&**log).await;
    let keys: Vec<String> = (0..12).map(|number| format!("key-{number}")).collect();
    let mut ends = std::collections::HashMap::new();
    for round in 0..2 {
        let records = keys
            .iter()
            .flat_map(|key| Topic::ALL.map(|topic| record(topic, key, &format!("{round}"))));
        let records: Vec<NewRecord> = records.collect();
        let places = log.append(records.clone()).await.expect("appends");
        assert_eq!(places.len(), records.len());
        for (place, record) in places.iter().zip(&records) {
            let index = partition_of_key(&record.key, PARTITIONS);
            assert_eq!(place.partition, Partition { topic: record.topic, index });
            let end = ends.entry(place.partition).or_insert(0);
            assert_eq!(place.offset, *end, "in the order of the append");
            *end += 1;
        }
    }
    assert!(ends.len() > usize::from(PARTITIONS), "the keys meet several partitions");
    for partition in shape.all_partitions() {
        let end = ends.get(&partition).copied().unwrap_or(0);
        assert_eq!(log.bounds(partition).await.expect("bounds"), Bounds { start: 0, end });
    }
}

async fn content(log: &Arc<dyn Log>) {
    let before = now_millis();
    let with_headers = NewRecord {
        headers: vec![
            header("z", Some("1")),
            header("a", None),
            header("z", Some("")),
            header("a", Some("\u{e4}")),
        ],
        ..record(Topic::Group, "k", "with headers")
    };
    let records = vec![
        record(Topic::Group, "k", "first"),
        with_headers.clone(),
        record(Topic::Group, "k", ""),
        NewRecord { value: bytes::Bytes::from_static(&[0, 255, 10]), ..with_headers },
    ];
    let places = log.append(records.clone()).await.expect("appends");
    let found = fetch_all(&**log, records.len()).await;
    for ((place, sent), (partition, found)) in places.iter().zip(&records).zip(&found) {
        assert_eq!((place.partition, place.offset), (*partition, found.offset));
        assert_eq!(found.key.as_ref(), Some(&sent.key));
        assert_eq!(found.value.as_ref(), Some(&sent.value));
        assert_eq!(found.headers, sent.headers);
        // Brokers and tests read the same clock here.
        let window = before - 1..=now_millis() + 1;
        assert!(window.contains(&found.appended_at.0), "{:?}", found.appended_at);
    }
}

fn now_millis() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("before the year 584556019")
}

async fn wakes(log: &Arc<dyn Log>) {
    let shape = shape_of(&**log).await;
    let wants = all_from_start(&shape);
    for number in 0..3 {
        // Both at once: the fetch is waiting, or about to, when the record comes.
        let mut ahead = wants.clone();
        for want in &mut ahead {
            want.offset = log.bounds(want.partition).await.expect("bounds").end;
        }
        let value = number.to_string();
        let began = Instant::now();
        let (batches, places) = tokio::join!(
            log.fetch(&ahead, 1 << 20, LONG),
            log.append(vec![record(Topic::Selected, "k", &value)])
        );
        let (batches, places) = (batches.expect("a fetch"), places.expect("appends"));
        assert!(began.elapsed() < LONG / 2, "waited although there was a record");
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].partition, places[0].partition);
        assert_eq!(text(batches[0].records[0].value.as_ref()), value);
        assert_eq!(batches[0].next, places[0].offset + 1);
        assert_eq!(batches[0].end, batches[0].next);
    }
}

async fn middle(log: &Arc<dyn Log>) {
    let records = (0..10).map(|number| record(Topic::Group, "k", &number.to_string())).collect();
    let places = log.append(records).await.expect("appends");
    let partition = places[0].partition;
    for from in 0..10 {
        let mut wants = [Want { partition, offset: from }];
        let is_enough = |all: &[_]| all.len() >= 10 - from as usize;
        let found = fetch_until(&**log, &mut wants, 1 << 20, is_enough).await;
        let found: Vec<u64> = found.iter().map(|(_, record)| record.offset).collect();
        assert_eq!(found, (from..10).collect::<Vec<_>>());
        assert_eq!(wants[0].offset, 10);
    }
}

async fn bytes_max(log: &Arc<dyn Log>) {
    const RECORDS: usize = 12;
    const SIZE: usize = 10_000;
    let large = "x".repeat(SIZE);
    let mut wants = Vec::new();
    for _ in 0..RECORDS {
        // One append a record: a log may give what was appended together as a whole.
        let places = log.append(vec![record(Topic::Group, "k", &large)]).await.expect("appends");
        wants = vec![Want { partition: places[0].partition, offset: 0 }];
    }
    for (bytes_max, records_max) in [(1, 1), (25_000, 3)] {
        let mut wants = wants.clone();
        let mut all = Vec::new();
        while all.len() < RECORDS {
            let batches = log.fetch(&wants, bytes_max, LONG).await.expect("a fetch");
            let count: usize = batches.iter().map(|batch| batch.records.len()).sum();
            assert!((1..=records_max).contains(&count), "{count} records for {bytes_max} bytes");
            for batch in batches {
                crate::take(&mut wants, batch, &mut all);
            }
        }
        let offsets: Vec<u64> = all.iter().map(|(_, record)| record.offset).collect();
        assert_eq!(offsets, (0..RECORDS as u64).collect::<Vec<_>>());
    }
}

async fn starves_none(log: &Arc<dyn Log>) {
    let keys = ["key-0", "key-1", "key-2", "key-3", "key-4", "key-5", "key-6", "key-7"];
    let partitions: HashSet<u16> =
        keys.iter().map(|key| partition_of_key(key.as_bytes(), PARTITIONS)).collect();
    assert_eq!(partitions.len(), usize::from(PARTITIONS));
    let large = "x".repeat(5_000);
    for _ in 0..8 {
        for topic in Topic::ALL {
            for key in keys {
                log.append(vec![record(topic, key, &large)]).await.expect("appends");
            }
        }
    }
    // A reader that goes on with the first partition as long as that has something would see the
    // others late; one that takes turns has met all after a few fetches.
    let shape = shape_of(&**log).await;
    let mut wants = all_from_start(&shape);
    let mut all = Vec::new();
    for _ in 0..3 * wants.len() {
        for batch in log.fetch(&wants, 1, LONG).await.expect("a fetch") {
            crate::take(&mut wants, batch, &mut all);
        }
    }
    let met: HashSet<Partition> = all.iter().map(|(partition, _)| *partition).collect();
    assert_eq!(met.len(), wants.len(), "met {met:?} of {wants:?}");
}

async fn out_of_range(log: &Arc<dyn Log>) {
    let places = log.append(vec![record(Topic::Selected, "k", "v")]).await.expect("appends");
    let partition = places[0].partition;
    let wanted = Want { partition, offset: 2 };
    match log.fetch(&[wanted], 1 << 20, LONG).await {
        Err(LogError::OutOfRange { wanted: said, bounds }) => {
            assert_eq!((said, bounds), (wanted, Bounds { start: 0, end: 1 }));
        }
        other => panic!("{other:?}"),
    }
    // Exactly the end is where to wait.
    let at_end = [Want { partition, offset: 1 }];
    assert_eq!(log.fetch(&at_end, 1 << 20, Duration::ZERO).await.expect("a fetch"), []);
}

async fn side_by_side(log: &Arc<dyn Log>) {
    const WRITERS: usize = 20;
    const ROUNDS: usize = 10;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut all = Vec::new();
                for round in 0..ROUNDS {
                    let value = format!("{writer}/{round}");
                    let records = ["a", "b"].map(|key| record(Topic::Selected, key, &value));
                    let places = log.append(records.to_vec()).await.expect("appends");
                    all.extend(places.into_iter().map(|place| (place, value.clone())));
                }
                all
            })
        })
        .collect();
    let mut told = HashSet::new();
    for writer in writers {
        for (place, value) in writer.await.expect("a writer") {
            assert!(told.insert((place.partition, place.offset, value)), "a place given twice");
        }
    }
    let found: HashSet<_> = fetch_all(&**log, WRITERS * ROUNDS * 2)
        .await
        .into_iter()
        .map(|(partition, record)| (partition, record.offset, text(record.value.as_ref())))
        .collect();
    assert_eq!(found, told);
}

async fn large_append(log: &Arc<dyn Log>) {
    let record = |number: usize| record(Topic::Group, "k", &format!("{number:>4000}"));
    let places = log.append((0..1_000).map(record).collect()).await.expect("appends");
    let offsets: Vec<u64> = places.iter().map(|place| place.offset).collect();
    assert_eq!(offsets, (0..1_000).collect::<Vec<_>>());
    let found = fetch_all(&**log, 1_000).await;
    for (number, (_, record)) in found.iter().enumerate() {
        let value = text(record.value.as_ref());
        assert_eq!((record.offset, value.trim()), (number as u64, number.to_string().as_str()));
    }
}

async fn too_large(log: &Arc<dyn Log>) {
    let of_size =
        |size: usize| NewRecord { value: vec![b'x'; size].into(), ..record(Topic::Group, "k", "") };
    let most = limits::RECORD_VALUE_BYTES_MAX;
    match log.append(vec![of_size(1), of_size(most + 1)]).await {
        Err(LogError::TooLarge { bytes, limit }) => assert_eq!((bytes, limit), (most + 1, most)),
        other => panic!("{other:?}"),
    }
    log.append(vec![of_size(most)]).await.expect("the largest that there may be");
    let found = fetch_all(&**log, 1).await;
    let lengths: Vec<_> =
        found.iter().map(|(_, record)| record.value.as_ref().map(bytes::Bytes::len)).collect();
    assert_eq!(lengths, [Some(most)], "what came with a refused record is not there");
    assert_eq!(found[0].1.key, Some(bytes("k")));
}

/// One of each topic; not where a key would have it.
fn destinations() -> [Partition; 4] {
    Topic::EVERY.map(|topic| {
        let index = if topic.is_dead() { 0 } else { PARTITIONS - 1 };
        Partition { topic, index }
    })
}

async fn moved(log: &Arc<dyn Log>) {
    let some = |text: &str| Some(bytes(text));
    let headers = vec![
        header("z", Some("1")),
        header("a", None),
        header("z", Some("")),
        header("", Some("\u{e4}")),
        header("z", None),
        header("a", None),
    ];
    let odd = Some(bytes::Bytes::from_static(&[0, 255, 10]));
    let contents = [
        (some("k"), some("v"), headers.clone()),
        (None, some("without a key"), Vec::new()),
        (some("without a value"), None, headers.clone()),
        (None, None, Vec::new()),
        (some(""), some(""), vec![header("", None)]),
        (odd.clone(), odd, headers),
    ];
    // Round and round, so that neighbours go to different partitions.
    let records: Vec<MovedRecord> = contents
        .iter()
        .flat_map(|(key, value, headers)| {
            destinations().map(|to| MovedRecord {
                to,
                key: key.clone(),
                value: value.clone(),
                headers: headers.clone(),
            })
        })
        .collect();
    let places = log.append_moved(records.clone()).await.expect("appends");
    assert_eq!(places.len(), records.len());
    let mut wants = destinations().map(|partition| Want { partition, offset: 0 });
    let is_enough = |all: &[_]| all.len() >= records.len();
    let found = fetch_until(&**log, &mut wants, 1 << 20, is_enough).await;
    assert_eq!(found.len(), records.len());
    for (number, (place, sent)) in places.iter().zip(&records).enumerate() {
        assert_eq!((place.partition, place.offset), (sent.to, number as u64 / 4));
        let is_it = |(partition, record): &&(Partition, _)| {
            let record: &corecast::ports::Record = record;
            (*partition, record.offset) == (place.partition, place.offset)
        };
        let (_, record) = found.iter().find(is_it).expect("where it was said to be");
        let sent = (&sent.key, &sent.value, &sent.headers);
        assert_eq!((&record.key, &record.value, &record.headers), sent);
    }
    assert_eq!(log.append_moved(Vec::new()).await.expect("nothing is no error"), []);
}

async fn dead_apart(log: &Arc<dyn Log>) {
    let shape = shape_of(&**log).await;
    let dead: Vec<Partition> = shape.dead_partitions().collect();
    let letter = |to, value: &str| MovedRecord {
        to,
        key: None,
        value: Some(bytes(value)),
        headers: Vec::new(),
    };
    for (number, to) in dead.iter().enumerate() {
        assert_eq!(log.bounds(*to).await.expect("bounds"), Bounds { start: 0, end: 0 });
        let letters = vec![letter(*to, "dead"); number + 1];
        log.append_moved(letters).await.expect("appends");
    }
    for (number, partition) in dead.iter().enumerate() {
        let end = number as u64 + 1;
        assert_eq!(log.bounds(*partition).await.expect("bounds"), Bounds { start: 0, end });
    }
    for partition in shape.all_partitions() {
        let bounds = log.bounds(partition).await.expect("bounds");
        assert_eq!(bounds, Bounds { start: 0, end: 0 });
    }
    // Both kinds in one fetch.
    let served = log.append(vec![record(Topic::Selected, "k", "served")]).await.expect("appends");
    let all = dead.iter().copied().chain([served[0].partition]);
    let mut wants: Vec<Want> = all.map(|partition| Want { partition, offset: 0 }).collect();
    let found = fetch_until(&**log, &mut wants, 1 << 20, |all| all.len() >= 4).await;
    for (partition, record) in found {
        let expected = if partition.topic.is_dead() { "dead" } else { "served" };
        assert_eq!(text(record.value.as_ref()), expected);
    }
}

async fn dead_large(log: &Arc<dyn Log>) {
    let to = Partition { topic: Topic::SelectedDead, index: 0 };
    let of_size = |size: usize| MovedRecord {
        to,
        key: Some(bytes("k")),
        value: Some(vec![b'x'; size].into()),
        headers: vec![header("h", Some("v"))],
    };
    let most = limits::DEAD_RECORD_BYTES_MAX;
    match log.append_moved(vec![of_size(most)]).await {
        Err(LogError::Oversized { bytes, .. }) => assert!(bytes > most, "{bytes}"),
        other => panic!("{other:?}"),
    }
    // More than a record that is served may have, and all that a batch that can't be read may.
    for size in [limits::RECORD_VALUE_BYTES_MAX + 1, kafka::MESSAGE_BYTES_MAX, most - 1_000] {
        log.append_moved(vec![of_size(size)]).await.expect("it is taken");
    }
    let mut wants = [Want { partition: to, offset: 0 }];
    let found = fetch_until(&**log, &mut wants, 1 << 20, |all| all.len() >= 3).await;
    let lengths: Vec<_> =
        found.iter().map(|(_, one)| one.value.as_ref().map(|v| v.len())).collect();
    assert_eq!(lengths[0], Some(limits::RECORD_VALUE_BYTES_MAX + 1));
    assert_eq!(lengths.len(), 3, "what was refused is not there");
}
