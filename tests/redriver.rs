//! Sending dead letters again, beside an owner on the embedded log and store: what is published,
//! what is not published twice, whatever breaks off in between, and what stays a dead letter and
//! why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use corecast::base::{
    BroadcastId, EpochMillis, LogShape, Partition, Priority, Status, TargetType, UserId,
};
use corecast::control::{Bulk, RedriveError, Redriven, Redriver};
use corecast::domain::{Broadcast, Target};
use corecast::limits::log::{AGAIN_RECORDS, RECORD_VALUE_BYTES_MAX, REPEAT_RECORDS};
use corecast::owner::{Leaver, Owner, leaving};
use corecast::ports::{
    Clock as _, DeadLetterId, DeadLetterPlace, DeadLetterRow, DeadLetterRows, Delivery, Header,
    InboxWrite, LogNames, MovedRecord, Ownership, Progress, Record, StoreError, SystemClock,
    TimedBy, Want,
};
use corecast::store::embedded::{Embedded, EmbeddedOptions, LoneControl};
use corecast::wire::control::NodeStart;
use corecast::wire::dead_letter::{
    CUT, EXCEPTION_MESSAGE, ORIGINAL_OFFSET, ORIGINAL_PARTITION, ORIGINAL_TOPIC,
};
use serde_json::{Value, json};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);
const PARTITIONS: u16 = 5;
const SELECTED: &str = "broadcast-user-service-selected";
const GROUP: &str = "broadcast-user-service-group";

/// Rows that can't be taken out of the list while it says so.
struct Rows {
    rows: Arc<dyn DeadLetterRows>,
    is_away: AtomicBool,
}

#[async_trait]
impl DeadLetterRows for Rows {
    async fn write_dead_letters(&self, rows: &[DeadLetterRow]) -> Result<(), StoreError> {
        self.rows.write_dead_letters(rows).await
    }

    async fn dead_letters(
        &self,
        after: Option<DeadLetterPlace>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        self.rows.dead_letters(after, limit, bytes_max).await
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetterRow>, StoreError> {
        self.rows.dead_letter(id).await
    }

    async fn purge_dead_letter(&self, id: &DeadLetterId) -> Result<bool, StoreError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(StoreError::Away("as it is meant to be".to_owned()));
        }
        self.rows.purge_dead_letter(id).await
    }
}

struct Bench {
    embedded: Embedded,
    ownership: Arc<dyn Ownership>,
    rows: Arc<Rows>,
    redriver: Redriver,
    shape: LogShape,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data_dir = folder.path().to_owned();
        let options = EmbeddedOptions { data_dir, partitions: PARTITIONS };
        let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("opens");
        let ownership = embedded.ownership(true);
        let rows =
            Arc::new(Rows { rows: embedded.dead_letters(), is_away: AtomicBool::new(false) });
        let redriver = Redriver {
            log: embedded.log(),
            ownership: ownership.clone(),
            inbox: embedded.inbox(),
            parking: embedded.parking(),
            endings: embedded.endings(),
            rows: rows.clone(),
            audit: embedded.audit(),
            clock: Arc::new(SystemClock),
            names: LogNames::default(),
            node: "n".to_owned(),
            is_testing: true,
            unknown_is_for_all: false,
            bulk: Bulk::default(),
            counters: Arc::default(),
        };
        let shape = embedded.log().shape().await.expect("it is embedded");
        Self { embedded, ownership, rows, redriver, shape, _folder: folder }
    }

    /// Starts to keep what stands in the log.
    fn own(&self) -> Leaver {
        let embedded = &self.embedded;
        let owner = Owner {
            log: embedded.log(),
            ownership: self.ownership.clone(),
            inbox: embedded.inbox(),
            parking: embedded.parking(),
            endings: embedded.endings(),
            control: Arc::new(LoneControl::default()),
            node: NodeStart { node: "n".to_owned(), start: Uuid::nil() },
            dead_letters: embedded.dead_letters(),
            clock: Arc::new(SystemClock),
            names: LogNames::default(),
            retention: Duration::from_secs(3_600),
            is_testing: true,
            unknown_is_for_all: false,
            counters: Arc::default(),
        };
        let taking_part = self.ownership.clone();
        tokio::spawn(async move { taking_part.run(&|_| ()).await });
        let (leaver, leaving) = leaving();
        tokio::spawn(owner.run(leaving));
        leaver
    }

    /// A dead letter of this value, whose record stood there.
    async fn bury(&self, offset: u64, topic: &str, value: &str, more: &[Header]) -> DeadLetterId {
        let dead = if topic == SELECTED { SELECTED } else { GROUP };
        let mut headers = vec![header("__TypeId__", b"x")];
        headers.push(header(ORIGINAL_TOPIC, topic.as_bytes()));
        headers.push(header(ORIGINAL_PARTITION, &0_i32.to_be_bytes()));
        headers.push(header(ORIGINAL_OFFSET, &offset.cast_signed().to_be_bytes()));
        headers.push(header(EXCEPTION_MESSAGE, b"why"));
        headers.extend_from_slice(more);
        let record = Record {
            offset,
            appended_at: SystemClock.wall(),
            timed_by: TimedBy::Log,
            key: Some(Bytes::from_static(b"any")),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            headers,
        };
        let row = DeadLetterRow { topic: format!("{dead}-dlt"), partition: 0, record };
        self.rows.write_dead_letters(std::slice::from_ref(&row)).await.expect("written");
        row.id()
    }

    fn partition_of(&self, value: &Value) -> Partition {
        let id = value["broadcastId"].as_u64().and_then(BroadcastId::new).expect("an id");
        self.shape.partition_of_event(id, value["userId"].as_str())
    }

    async fn records(&self, partition: Partition) -> Vec<Record> {
        let log = self.embedded.log();
        let end = log.bounds(partition).await.expect("it is embedded").end;
        let (mut found, mut offset) = (Vec::new(), 0);
        while offset < end {
            let want = Want { partition, offset };
            let batches = log.fetch(&[want], 4 << 20, LONG).await.expect("fetched");
            offset = batches[0].next;
            found.extend(batches.into_iter().flat_map(|batch| batch.records));
        }
        found
    }

    /// Records about this broadcast.
    async fn records_of(&self, value: &Value) -> Vec<Record> {
        let mut records = self.records(self.partition_of(value)).await;
        records.retain(|record| json_of(record)["broadcastId"] == value["broadcastId"]);
        records
    }

    /// So many records of others.
    async fn fill(&self, to: Partition, count: u64) {
        let value = json!({"broadcastId": 1, "userId": "nobody", "eventType": "FAILED"});
        let value = Some(Bytes::from(value.to_string()));
        let one = MovedRecord { to, key: None, value, headers: Vec::new() };
        for _ in 0..count / 512 + 1 {
            self.embedded.log().append_moved(vec![one.clone(); 512]).await.expect("appended");
        }
    }

    /// Waits until the owner has kept all of it.
    async fn wait_until_kept(&self, partition: Partition) {
        let end = self.embedded.log().bounds(partition).await.expect("it is embedded").end;
        let waited = tokio::time::timeout(LONG, async {
            loop {
                let checkpoints = self.ownership.checkpoints().await.expect("it is embedded");
                if checkpoints.get(&partition).is_some_and(|next| *next >= end) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        waited.await.expect("it is kept");
    }

    async fn redrive_all(&self) -> Redriven {
        self.redriver.redrive_all().await.expect("everything is here")
    }

    async fn letters(&self) -> usize {
        self.rows.dead_letters(None, 1_000, usize::MAX).await.expect("rows").len()
    }

    async fn refused(&self, id: &DeadLetterId) -> String {
        match self.redriver.redrive(id).await {
            Err(RedriveError::Refused(_, reason)) => reason.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

fn header(name: &'static str, value: &[u8]) -> Header {
    Header { name: Bytes::from(name), value: Some(Bytes::copy_from_slice(value)) }
}

fn json_of(record: &Record) -> Value {
    serde_json::from_slice(record.value.as_deref().expect("a value")).expect("JSON")
}

fn to_ann(broadcast: u64, kind: &str) -> Value {
    json!({"broadcastId": broadcast, "userId": "ann", "eventType": kind, "message": "m"})
}

fn broadcast(id: u64, kind: TargetType, ids: &[&str]) -> Broadcast {
    Broadcast {
        id: BroadcastId::new(id).expect("small"),
        correlation_id: String::new(),
        sender_id: None,
        sender_name: None,
        content: "m".to_owned(),
        target: Target { r#type: kind, ids: ids.iter().map(|id| (*id).to_owned()).collect() },
        priority: Priority::Normal,
        category: None,
        created_at: SystemClock.wall(),
        scheduled_at: None,
        expires_at: Some(EpochMillis(SystemClock.wall().0 + 3_600_000)),
        fire_and_forget: false,
    }
}

#[tokio::test]
async fn a_letter_is_published_as_it_was_in_the_next_attempt() {
    let bench = Bench::start().await;
    let mut value = to_ann(7, "CREATED");
    value["attempt"] = json!(2);
    value["simulateFailure"] = json!(true);
    value["unknown"] = json!([1, null]);
    let id = bench.bury(9, SELECTED, &value.to_string(), &[]).await;
    bench.redriver.redrive(&id).await.expect("it is sent again");
    let [record] = &bench.records_of(&value).await[..] else { panic!("one record") };
    assert_eq!(record.key.as_deref(), Some(&b"ann"[..]));
    assert_eq!(record.headers, [header("__TypeId__", b"x")], "its own");
    value["attempt"] = json!(3);
    value["after"] = json!(0);
    value["simulateFailure"] = json!(false);
    assert_eq!(json_of(record), value);
    assert_eq!(bench.letters().await, 0);
    assert!(matches!(bench.redriver.redrive(&id).await, Err(RedriveError::Missing(_))));
}

#[tokio::test]
async fn a_row_that_failed_waits_again_in_the_next_attempt() {
    let bench = Bench::start().await;
    let _leaver = bench.own();
    let (inbox, user) = (bench.embedded.inbox(), UserId::new("ann").expect("a name"));
    let (now, mut value) = (SystemClock.wall(), to_ann(7, "CREATED"));
    value["attempt"] = json!(2);
    let broadcast = BroadcastId::new(7).expect("small");
    let written = |attempt: u32, delivery: Delivery| InboxWrite {
        user: user.clone(),
        broadcast,
        place: None,
        progress: Progress { attempt, delivery },
        at: now,
        keep_until: EpochMillis(now.0 + 3_600_000),
    };
    inbox.write_inbox(&[written(2, Delivery::Failed)]).await.expect("written");
    let id = bench.bury(0, SELECTED, &value.to_string(), &[]).await;
    bench.redriver.redrive(&id).await.expect("it is sent again");
    bench.wait_until_kept(bench.partition_of(&value)).await;
    let row = inbox.row(&user, broadcast).await.expect("rows").expect("one row");
    let pending = Progress { attempt: 3, delivery: Delivery::Pending };
    assert_eq!((row.progress, row.place.is_some()), (pending, true));
    // Word of the earlier attempt that comes late moves nothing back.
    inbox.write_inbox(&[written(3, Delivery::Delivered)]).await.expect("written");
    inbox.write_inbox(&[written(2, Delivery::Failed)]).await.expect("written");
    let rows = inbox.inbox(&user, None, 10).await.expect("rows");
    assert_eq!(rows.len(), 1, "{rows:?}");
    let delivered = Progress { attempt: 3, delivery: Delivery::Delivered };
    assert_eq!(rows[0].progress, delivered);
}

#[tokio::test]
async fn what_is_published_and_still_listed_is_not_published_again() {
    let bench = Bench::start().await;
    let _leaver = bench.own();
    let mut passing = to_ann(8, "CREATED");
    passing["fireAndForget"] = json!(true);
    let everybody =
        json!({"broadcastId": 9, "eventType": "CREATED", "message": "m", "targetType": "ALL"});
    let values = [to_ann(7, "CREATED"), passing, to_ann(10, "READ"), everybody];
    for (offset, value) in (0..).zip(&values) {
        let topic = if value["userId"].is_null() { GROUP } else { SELECTED };
        bench.bury(offset, topic, &value.to_string(), &[]).await;
    }
    // As if the node had died in between: published, and not taken out of the list.
    bench.rows.is_away.store(true, Ordering::Relaxed);
    let broken = bench.redriver.redrive_all().await.expect_err("the store is away");
    assert!(matches!(broken, RedriveError::BrokenOff { done: 0, .. }), "{broken}");
    bench.rows.is_away.store(false, Ordering::Relaxed);
    assert_eq!(bench.letters().await, values.len());
    // So far on that a second one would not be known for a repeat.
    for value in &values {
        let partition = bench.partition_of(value);
        bench.fill(partition, 2 * REPEAT_RECORDS).await;
        bench.wait_until_kept(partition).await;
    }
    let done = bench.redrive_all().await;
    assert_eq!((done.succeeded, done.failed), (values.len() as u64, 0), "{:?}", done.failures);
    for value in &values {
        assert_eq!(bench.records_of(value).await.len(), 1, "{value}");
    }
    assert_eq!(bench.letters().await, 0);
    let lines = bench.redriver.audit.audit(None, 10).await.expect("lines");
    let counts: Vec<_> =
        lines.iter().map(|line| line.counts.map(|counts| counts.succeeded)).collect();
    assert_eq!(counts, [Some(values.len() as u64), None], "one broke off");
}

#[tokio::test]
async fn two_at_once_publish_near_enough_to_be_known_for_repeats() {
    let bench = Bench::start().await;
    let _leaver = bench.own();
    let value = to_ann(7, "CREATED");
    let id = bench.bury(0, SELECTED, &value.to_string(), &[]).await;
    let other = Redriver {
        log: bench.embedded.log(),
        ownership: bench.ownership.clone(),
        inbox: bench.embedded.inbox(),
        parking: bench.embedded.parking(),
        endings: bench.embedded.endings(),
        rows: bench.rows.clone(),
        audit: bench.embedded.audit(),
        clock: Arc::new(SystemClock),
        names: LogNames::default(),
        node: "other".to_owned(),
        is_testing: true,
        unknown_is_for_all: false,
        bulk: Bulk::default(),
        counters: Arc::default(),
    };
    let (one, two) = tokio::join!(bench.redriver.redrive(&id), other.redrive(&id));
    for outcome in [one, two] {
        // The slower one may find that it is gone.
        assert!(matches!(outcome, Ok(()) | Err(RedriveError::Missing(_))), "{outcome:?}");
    }
    let records = bench.records_of(&value).await;
    let offsets: Vec<u64> = records.iter().map(|record| record.offset).collect();
    assert!((1..=2).contains(&offsets.len()), "{offsets:?}");
    assert!(offsets[offsets.len() - 1] - offsets[0] < REPEAT_RECORDS, "{offsets:?}");
}

#[tokio::test]
async fn a_partition_without_room_is_waited_for() {
    let bench = Bench::start().await;
    let value = to_ann(7, "CREATED");
    let id = bench.bury(0, SELECTED, &value.to_string(), &[]).await;
    bench.fill(bench.partition_of(&value), AGAIN_RECORDS).await;
    let redriving = bench.redriver.redrive(&id);
    tokio::pin!(redriving);
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut redriving).await;
    assert!(waited.is_err(), "nobody has kept what stands there: {waited:?}");
    assert_eq!(bench.records_of(&value).await.len(), 0);
    let _leaver = bench.own();
    redriving.await.expect("there is room once it is kept");
    assert_eq!(bench.records_of(&value).await.len(), 1);
}

#[tokio::test]
async fn a_broadcast_that_failed_is_active_again() {
    let bench = Bench::start().await;
    let (store, endings) = (bench.embedded.store(), bench.embedded.endings());
    let row = broadcast(7, TargetType::Selected, &["ann"]);
    store.claim_broadcast(&row).await.expect("claimed");
    store.create_status(row.id, Status::Active).await.expect("created");
    endings.change_status(row.id, Status::Failed).await.expect("it failed");
    let value = to_ann(7, "CREATED");
    let id = bench.bury(0, SELECTED, &value.to_string(), &[]).await;
    bench.redriver.redrive(&id).await.expect("it is sent again");
    let found = store.broadcast(row.id).await.expect("a row").expect("it exists");
    assert_eq!(found.status, Status::Active);
    // What has ended does not come back, and word of its end does.
    endings.change_status(row.id, Status::Expired).await.expect("it expires");
    let id = bench.bury(1, SELECTED, &value.to_string(), &[]).await;
    assert_eq!(bench.refused(&id).await, "broadcast 7 is EXPIRED");
    let end = bench.bury(2, SELECTED, &to_ann(7, "EXPIRED").to_string(), &[]).await;
    bench.redriver.redrive(&end).await.expect("word of an end");
}

#[tokio::test]
async fn an_older_producers_group_event_gets_its_audience_once_it_is_known() {
    let bench = Bench::start().await;
    let value = json!({"broadcastId": 7, "eventType": "CREATED", "message": "m"});
    let id = bench.bury(0, GROUP, &value.to_string(), &[]).await;
    let said = bench.refused(&id).await;
    assert!(said.contains("broadcast 7 is not known to the store"), "{said}");
    assert_eq!(bench.letters().await, 1, "it can be tried again");
    let row = broadcast(7, TargetType::Role, &["chef"]);
    bench.embedded.inbox().write_contents(&[row]).await.expect("written");
    bench.redriver.redrive(&id).await.expect("it is known");
    let [record] = &bench.records_of(&value).await[..] else { panic!("one record") };
    let sent = json_of(record);
    assert_eq!((&sent["targetType"], &sent["targetIds"]), (&json!("ROLE"), &json!(["chef"])));
    let selected = broadcast(8, TargetType::Selected, &[]);
    bench.embedded.inbox().write_contents(&[selected]).await.expect("written");
    let value = json!({"broadcastId": 8, "eventType": "CREATED", "message": "m"});
    let id = bench.bury(1, GROUP, &value.to_string(), &[]).await;
    assert!(bench.refused(&id).await.contains("selected users"));
}

#[tokio::test]
async fn a_group_message_that_others_could_not_process_stands_where_it_stood() {
    let bench = Bench::start().await;
    let _leaver = bench.own();
    let value =
        json!({"broadcastId": 7, "eventType": "CREATED", "message": "m", "targetType": "ALL"});
    let to = bench.partition_of(&value);
    let moved = MovedRecord {
        to,
        key: None,
        value: Some(Bytes::from(value.to_string())),
        headers: Vec::new(),
    };
    let place = bench.embedded.log().append_moved(vec![moved]).await.expect("appended")[0];
    bench.fill(to, 2 * REPEAT_RECORDS).await;
    bench.wait_until_kept(to).await;
    let more = [header(ORIGINAL_PARTITION, &i32::from(to.index).to_be_bytes())];
    let id = bench.bury(place.offset, GROUP, &value.to_string(), &more).await;
    bench.redriver.redrive(&id).await.expect("there is nothing to do");
    assert_eq!(bench.records_of(&value).await.len(), 1, "it is not published again");
    // One that stood elsewhere is.
    let id = bench.bury(place.offset + 1, GROUP, &value.to_string(), &more).await;
    bench.redriver.redrive(&id).await.expect("it is sent again");
    assert_eq!(bench.records_of(&value).await.len(), 2);
}

#[tokio::test]
async fn what_stays_a_dead_letter_says_why_and_holds_up_nothing() {
    let bench = Bench::start().await;
    let good = to_ann(7, "CREATED");
    bench.bury(0, SELECTED, "no JSON", &[]).await;
    bench.bury(1, "elsewhere", &good.to_string(), &[]).await;
    let cut = [header(CUT, b"value of 2700000 bytes")];
    bench.bury(2, SELECTED, "{\"broadcastId\":", &cut).await;
    bench.bury(3, SELECTED, &good.to_string(), &[]).await;
    // So large that `attempt` and `after` are too much.
    let mut large = to_ann(8, "CREATED");
    let rest = RECORD_VALUE_BYTES_MAX - large.to_string().len();
    large["message"] = json!("m".repeat(rest + 1));
    assert_eq!(large.to_string().len(), RECORD_VALUE_BYTES_MAX);
    bench.bury(4, SELECTED, &large.to_string(), &[]).await;
    let done = bench.redrive_all().await;
    assert_eq!((done.succeeded, done.failed), (1, 4));
    let said: Vec<String> =
        done.failures.iter().map(|(id, why)| format!("{}: {why}", id.offset)).collect();
    let has = |text: &str| said.iter().any(|said| said.contains(text));
    assert!(has("0: it can't be served: not a MessageDeliveryEvent"), "{said:?}");
    assert!(has("1: it comes from elsewhere, which is no topic of this configuration"), "{said:?}");
    assert!(has("the dead letter was cut: value of 2700000 bytes"), "{said:?}");
    assert!(has("4: it can't be served: value of"), "{said:?}");
    assert_eq!(bench.letters().await, 4);
    assert_eq!(bench.redriver.purge_all().await.ok(), Some(()));
    assert_eq!(bench.letters().await, 0);
}

#[tokio::test]
async fn one_call_at_a_time_is_at_all_of_them() {
    let bench = Bench::start().await;
    let value = to_ann(7, "CREATED");
    bench.bury(0, SELECTED, &value.to_string(), &[]).await;
    bench.fill(bench.partition_of(&value), AGAIN_RECORDS).await;
    let first = bench.redriver.redrive_all();
    tokio::pin!(first);
    let waiting = tokio::time::timeout(Duration::from_millis(300), &mut first).await;
    assert!(waiting.is_err(), "it waits for room");
    let second = bench.redriver.purge_all().await;
    assert!(matches!(second, Err(RedriveError::Busy)), "{second:?}");
    let _leaver = bench.own();
    assert_eq!(first.await.expect("there is room").succeeded, 1);
    bench.redriver.purge_all().await.expect("nobody is at them");
}
