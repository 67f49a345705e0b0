//! Records that can't be served where they stand: parked by the owner, acknowledged, and published
//! again where they are served; or dead letters in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corecast::base::{
    BroadcastId, EpochMillis, LogShape, Partition, Position, Status, TargetType, Topic, UserId,
};
use corecast::domain::{Broadcast, Target};
use corecast::limits::log::{DEAD_RECORD_BYTES_MAX, REPEAT_RECORDS};
use corecast::owner::{Leaver, Owner, leaving};
use corecast::ports::{
    Clock, Delivery, Header, Inbox, InboxRow, Log, LogNames, MovedRecord, Ownership, Progress,
    Record, Store, SystemClock, Want,
};
use corecast::store::embedded::{Embedded, EmbeddedOptions, LoneControl};
use corecast::wire::control::NodeStart;
use serde_json::{Value, json};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(30);
const PARTITIONS: u16 = 5;

/// An owner of an embedded log, in test mode.
struct Bench {
    log: Arc<dyn Log>,
    ownership: Arc<dyn Ownership>,
    store: Arc<dyn Store>,
    inbox: Arc<dyn Inbox>,
    shape: LogShape,
    _leaver: Leaver,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start(unknown_is_for_all: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options =
            EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: PARTITIONS };
        let clock = Arc::new(SystemClock);
        let embedded = Embedded::open(&options, clock.clone()).expect("opens");
        let ownership = embedded.ownership(true);
        let owner = Owner {
            log: embedded.log(),
            ownership: ownership.clone(),
            inbox: embedded.inbox(),
            parking: embedded.parking(),
            endings: embedded.stores(),
            control: Arc::new(LoneControl::default()),
            node: NodeStart { node: "n".to_owned(), start: Uuid::nil() },
            dead_letters: embedded.dead_letters(),
            clock,
            names: LogNames::default(),
            retention: Duration::from_secs(3_600),
            is_testing: true,
            unknown_is_for_all,
            counters: Arc::default(),
        };
        let taking_part = ownership.clone();
        tokio::spawn(async move { taking_part.run(&|_| ()).await });
        let (leaver, leaving) = leaving();
        tokio::spawn(owner.run(leaving));
        let log = embedded.log();
        let shape = log.shape().await.expect("it is embedded");
        let (store, inbox) = (embedded.store(), embedded.inbox());
        Self { log, ownership, store, inbox, shape, _leaver: leaver, _folder: folder }
    }

    /// Appends a record of an older producer, wherever that puts it.
    async fn append(&self, to: Partition, record: &Value) -> Position {
        let moved = MovedRecord {
            to,
            key: Some(Bytes::from_static(b"a key")),
            value: Some(Bytes::from(record.to_string())),
            headers: Vec::new(),
        };
        self.log.append_moved(vec![moved]).await.expect("appended")[0]
    }

    async fn records(&self, partition: Partition) -> Vec<Record> {
        let end = self.log.bounds(partition).await.expect("it is embedded").end;
        let mut found = Vec::new();
        let mut offset = 0;
        while offset < end {
            let want = Want { partition, offset };
            let batches = self.log.fetch(&[want], 1 << 20, LONG).await.expect("fetched");
            offset = batches[0].next;
            found.extend(batches.into_iter().flat_map(|batch| batch.records));
        }
        found
    }

    /// Waits until the partition holds so many records.
    async fn wait_for_records(&self, partition: Partition, many: usize) -> Vec<Record> {
        self.wait("records", async || {
            let records = self.records(partition).await;
            (records.len() >= many).then_some(records)
        })
        .await
    }

    async fn wait_until_kept(&self, position: Position) {
        self.wait("the checkpoint", async || {
            let checkpoints: BTreeMap<Partition, u64> =
                self.ownership.checkpoints().await.expect("it is embedded");
            let next = checkpoints.get(&position.partition).copied().unwrap_or(0);
            (next > position.offset).then_some(())
        })
        .await;
    }

    async fn wait_for_row(&self, user: &str, is_so: impl Fn(&InboxRow) -> bool) -> InboxRow {
        let user = UserId::new(user).expect("a name");
        self.wait("the row", async || {
            let rows = self.inbox.inbox(&user, None, 10).await.expect("it is embedded");
            rows.into_iter().find(|row| is_so(row))
        })
        .await
    }

    async fn wait<T>(&self, what: &str, found: impl AsyncFn() -> Option<T>) -> T {
        let waited = tokio::time::timeout(LONG, async {
            loop {
                if let Some(found) = found().await {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what} did not come"))
    }

    fn own(&self, user: &str) -> Partition {
        Partition { topic: Topic::Selected, index: self.shape.partition_of_user(user) }
    }

    /// Any but the user's.
    fn foreign(&self, user: &str) -> Partition {
        let own = self.own(user);
        Partition { index: (own.index + 1) % PARTITIONS, ..own }
    }

    fn group(&self, broadcast: u64) -> Partition {
        let key = broadcast.to_string();
        let index = corecast::base::partition_of_key(key.as_bytes(), PARTITIONS);
        Partition { topic: Topic::Group, index }
    }

    fn dead(&self, topic: Topic) -> Partition {
        Partition { topic: topic.dead(), index: 0 }
    }
}

fn json_of(record: &Record) -> Value {
    serde_json::from_slice(record.value.as_deref().expect("a value")).expect("JSON")
}

fn message(broadcast: u64, user: Option<&str>) -> Value {
    json!({"broadcastId": broadcast, "userId": user, "eventType": "CREATED", "message": "hi"})
}

#[tokio::test]
async fn a_record_in_a_foreign_partition_is_published_again_in_its_own() {
    let bench = Bench::start(false).await;
    let mut record = message(7, Some("ann"));
    record["unknown"] = json!({"kept": [1, null]});
    let place = bench.append(bench.foreign("ann"), &record).await;
    bench.wait_until_kept(place).await;
    let again = bench.wait_for_records(bench.own("ann"), 1).await;
    assert_eq!(again[0].key.as_deref(), Some(&b"ann"[..]));
    let mut expected = record.clone();
    expected["attempt"] = json!(1);
    expected["after"] = json!(0);
    assert_eq!(json_of(&again[0]), expected);
    let row = bench.wait_for_row("ann", |row| row.place.is_some()).await;
    let position = Position { partition: bench.own("ann"), offset: 0 };
    assert_eq!(row.place.map(|place| place.position), Some(position));
    assert_eq!((row.progress.attempt, row.progress.delivery), (1, Delivery::Pending));
    // The same again: it stands where it is served, so it is not published a second time.
    let again = bench.append(bench.foreign("ann"), &record).await;
    bench.wait_until_kept(again).await;
    let other = bench.append(bench.foreign("ann"), &message(8, Some("ann"))).await;
    bench.wait_until_kept(other).await;
    let all = bench.wait_for_records(bench.own("ann"), 2).await;
    let ids: Vec<Value> = all.iter().map(|record| json_of(record)["broadcastId"].clone()).collect();
    assert_eq!(ids, [json!(7), json!(8)]);
}

#[tokio::test]
async fn a_receipt_in_a_foreign_partition_comes_too() {
    let bench = Bench::start(false).await;
    let record = json!({"broadcastId": 7, "userId": "ann", "eventType": "READ"});
    bench.append(bench.foreign("ann"), &record).await;
    let again = bench.wait_for_records(bench.own("ann"), 1).await;
    assert_eq!(json_of(&again[0])["eventType"], "READ");
    let place = Position { partition: bench.own("ann"), offset: 0 };
    bench.wait_until_kept(place).await;
    // Its place is known without a row, so a repeat of it is not published again.
    let repeat = bench.append(bench.foreign("ann"), &record).await;
    bench.wait_until_kept(repeat).await;
    bench.append(bench.foreign("ann"), &message(8, Some("ann"))).await;
    let all = bench.wait_for_records(bench.own("ann"), 2).await;
    assert_eq!(json_of(&all[1])["broadcastId"], 8);
}

#[tokio::test]
async fn an_older_group_event_gets_its_audience_from_the_store() {
    let bench = Bench::start(false).await;
    let broadcast = Broadcast {
        id: BroadcastId::new(7).expect("small"),
        correlation_id: "c".to_owned(),
        sender_id: None,
        sender_name: None,
        content: "hi".to_owned(),
        target: Target { r#type: TargetType::Role, ids: vec!["ops".to_owned()] },
        priority: corecast::base::Priority::Normal,
        category: None,
        created_at: SystemClock.wall(),
        scheduled_at: None,
        expires_at: None,
        fire_and_forget: false,
    };
    bench.store.claim_broadcast(&broadcast).await.expect("it is embedded");
    bench.store.create_status(broadcast.id, Status::Active).await.expect("it is embedded");
    let position = bench.append(bench.group(7), &message(7, None)).await;
    bench.wait_until_kept(position).await;
    let all = bench.wait_for_records(bench.group(7), 2).await;
    let again = json_of(&all[1]);
    assert_eq!((&again["targetType"], &again["targetIds"]), (&json!("ROLE"), &json!(["ops"])));
    assert_eq!(again["attempt"], 1);
    // It is parked before the checkpoint is behind it, and may be published in between.
    assert!(again["after"].as_u64().is_some_and(|after| after <= 1), "{again}");
    assert_eq!(all[1].key.as_deref(), Some(&b"7"[..]));
    let place = Position { partition: bench.group(7), offset: 1 };
    bench.wait_until_kept(place).await;
    let rows = bench.inbox.group(bench.shape.identity, place.partition.index, 0, 10).await;
    let rows = rows.expect("it is embedded");
    assert_eq!(rows.iter().map(|row| row.place.position.offset).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn an_older_group_event_of_an_unknown_broadcast_is_a_dead_letter() {
    let bench = Bench::start(false).await;
    let began = std::time::Instant::now();
    bench.append(bench.group(7), &message(7, None)).await;
    // The partition goes on meanwhile.
    let mut next = message(8, None);
    next["targetType"] = json!("ALL");
    let next = bench.append(bench.group(7), &next).await;
    bench.wait_until_kept(next).await;
    assert!(bench.records(bench.dead(Topic::Group)).await.is_empty());
    let letters = bench.wait_for_records(bench.dead(Topic::Group), 1).await;
    assert_eq!(json_of(&letters[0]), message(7, None));
    // Looked for three times, a second apart.
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(bench.records(bench.group(7)).await.len(), 2);
}

#[tokio::test]
async fn an_older_group_event_is_for_all_where_that_is_configured() {
    let bench = Bench::start(true).await;
    bench.append(bench.group(7), &message(7, None)).await;
    let all = bench.wait_for_records(bench.group(7), 2).await;
    assert_eq!(json_of(&all[1])["targetType"], "ALL");
}

#[tokio::test]
async fn a_record_that_fails_three_times_is_a_dead_letter() {
    let bench = Bench::start(false).await;
    let mut record = message(7, Some("ann"));
    record["simulateFailure"] = json!(true);
    let began = std::time::Instant::now();
    bench.append(bench.own("ann"), &record).await;
    let next = bench.append(bench.own("ann"), &message(8, Some("ann"))).await;
    bench.wait_until_kept(next).await;
    let row = bench.wait_for_row("ann", |row| row.broadcast.get() == 8).await;
    assert_eq!(row.place.map(|place| place.position), Some(next));
    let letters = bench.wait_for_records(bench.dead(Topic::Selected), 1).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(json_of(&letters[0])["attempt"], 2);
    let row = bench.wait_for_row("ann", |row| row.progress.delivery == Delivery::Failed).await;
    assert_eq!((row.broadcast.get(), row.progress.attempt, row.place), (7, 2, None));
    let attempts: Vec<Value> = bench.records(bench.own("ann")).await.iter().map(json_of).collect();
    let attempts: Vec<&Value> = attempts.iter().map(|record| &record["attempt"]).collect();
    assert_eq!(attempts, [&Value::Null, &Value::Null, &json!(1), &json!(2)]);
}

#[tokio::test]
async fn a_record_that_is_found_late_is_published_again_unless_it_stands_already() {
    let bench = Bench::start(false).await;
    // It claims to have been published when the partition was empty.
    let mut late = message(7, Some("ann"));
    late["attempt"] = json!(1);
    late["after"] = json!(0);
    let filler: Vec<MovedRecord> = (0..REPEAT_RECORDS)
        .map(|_| MovedRecord {
            to: bench.own("ann"),
            key: None,
            value: Some(Bytes::from_static(br#"{"broadcastId":1,"eventType":"EXPIRED"}"#)),
            headers: Vec::new(),
        })
        .collect();
    bench.log.append_moved(filler).await.expect("appended");
    let place = bench.append(bench.own("ann"), &late).await;
    bench.wait_until_kept(place).await;
    let all = bench.wait_for_records(bench.own("ann"), REPEAT_RECORDS as usize + 2).await;
    let again = json_of(&all[REPEAT_RECORDS as usize + 1]);
    assert_eq!((&again["attempt"], &again["broadcastId"]), (&json!(2), &json!(7)));
    let row = bench.wait_for_row("ann", |row| row.place.is_some()).await;
    let own = row.place.map(|place| place.position.offset);
    assert_eq!(own, Some(REPEAT_RECORDS + 1));
    // Once more, and now it stands.
    let place = bench.append(bench.own("ann"), &late).await;
    bench.wait_until_kept(place).await;
    let next = bench.append(bench.foreign("ann"), &message(8, Some("ann"))).await;
    bench.wait_until_kept(next).await;
    let all = bench.wait_for_records(bench.own("ann"), REPEAT_RECORDS as usize + 4).await;
    assert_eq!(json_of(&all[REPEAT_RECORDS as usize + 3])["broadcastId"], 8);
}

#[tokio::test]
async fn a_record_that_outgrows_the_log_is_a_dead_letter_and_its_row_says_so() {
    let bench = Bench::start(false).await;
    let value = message(7, Some("ann")).to_string();
    // Little less than the most: what says that it was published again has no room.
    let padding = DEAD_RECORD_BYTES_MAX - value.len() - 40;
    let record = MovedRecord {
        to: bench.foreign("ann"),
        key: Some(Bytes::from_static(b"ann")),
        value: Some(Bytes::from(value)),
        headers: vec![Header {
            name: Bytes::from_static(b"h"),
            value: Some(vec![0; padding].into()),
        }],
    };
    bench.log.append_moved(vec![record]).await.expect("it still fits");
    bench.append(bench.foreign("ann"), &message(8, Some("ann"))).await;
    let letters = bench.wait_for_records(bench.dead(Topic::Selected), 1).await;
    assert_eq!(letters[0].key.as_deref(), Some(&b"ann"[..]));
    let row = bench.wait_for_row("ann", |row| row.broadcast.get() == 7).await;
    let Progress { attempt, delivery } = row.progress;
    assert_eq!((attempt, delivery, row.place), (0, Delivery::Failed, None));
    let published = bench.wait_for_records(bench.own("ann"), 1).await;
    assert_eq!(json_of(&published[0])["broadcastId"], 8, "the others are published");
}

#[tokio::test]
async fn what_has_ended_is_not_published_again() {
    let bench = Bench::start(false).await;
    let mut ended = message(7, Some("ann"));
    ended["expiresAt"] = json!(EpochMillis(SystemClock.wall().0 - 1).to_string());
    let place = bench.append(bench.foreign("ann"), &ended).await;
    bench.wait_until_kept(place).await;
    bench.append(bench.foreign("ann"), &message(8, Some("ann"))).await;
    let all = bench.wait_for_records(bench.own("ann"), 1).await;
    assert_eq!(json_of(&all[0])["broadcastId"], 8);
}
