//! The relay of the outbox: what a crash or an outage left between store and log is published, once
//! for each user, and only where it is found near enough to be recognised.

mod fakes;

use std::future::ready;
use std::sync::Arc;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use corecast::base::{LogShape, Partition, Topic, UserId};
use corecast::control::{Creator, Relay, Unfinished};
use corecast::domain::{Broadcast, Draft};
use corecast::limits::log::AGAIN_RECORDS;
use corecast::owner::{Leaver, Owner, leaving};
use corecast::ports::{Clock, Log, LogError, LogNames, MovedRecord, OutboxRow, SystemClock, Want};
use corecast::store::embedded::{Embedded, EmbeddedOptions, LoneControl};
use corecast::wire::control::NodeStart;
use fakes::Gated;
use serde_json::{Value, json};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(90);
const HOUR: Duration = Duration::from_secs(3_600);

/// Embedded parts, an owner that may come later, and a relay.
struct Bench {
    embedded: Embedded,
    log: Arc<dyn Log>,
    shape: LogShape,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 4 };
        let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("opens");
        let log: Arc<dyn Log> = embedded.log();
        let shape = log.shape().await.expect("it is embedded");
        Self { embedded, log, shape, _folder: folder }
    }

    /// Keeps what the log holds, from now on.
    fn start_owner(&self) -> Leaver {
        let ownership = self.embedded.ownership(true);
        let owner = Owner {
            log: self.log.clone(),
            ownership: ownership.clone(),
            inbox: self.embedded.inbox(),
            parking: self.embedded.parking(),
            endings: self.embedded.stores(),
            control: Arc::new(LoneControl::default()),
            node: NodeStart { node: "n".to_owned(), start: Uuid::nil() },
            dead_letters: self.embedded.dead_letters(),
            clock: Arc::new(SystemClock),
            names: LogNames::default(),
            retention: HOUR,
            is_testing: false,
            unknown_is_for_all: false,
            counters: Arc::default(),
        };
        tokio::spawn(async move { ownership.run(&|_| ()).await });
        let (leaver, leaving) = leaving();
        tokio::spawn(owner.run(leaving));
        leaver
    }

    /// As in a process that starts behind a crash.
    fn start_relay(&self) {
        let relay = Relay {
            creator: self.creator(self.log.clone()),
            ownership: self.embedded.ownership(false),
            inbox: self.embedded.inbox(),
            is_alone: true,
        };
        tokio::spawn(relay.run());
    }

    fn creator(&self, log: Arc<dyn Log>) -> Arc<Creator> {
        Arc::new(Creator {
            log,
            store: self.embedded.store(),
            clock: Arc::new(SystemClock),
            node: "node".to_owned(),
            retention: HOUR,
            unfinished: Unfinished::default(),
            fail_next: AtomicBool::new(false),
        })
    }

    async fn create(&self, body: Value) -> Broadcast {
        let draft = Draft::check(body, SystemClock.wall()).expect("valid");
        self.creator(self.log.clone()).create(draft).await.expect("created").broadcast
    }

    /// Creates with a log that is away after so many appends.
    async fn create_half(&self, body: Value, appends: usize) -> Broadcast {
        let before = self.outbox().await;
        let left = AtomicUsize::new(appends);
        let cut = Gated::new(self.log.clone(), move |_| {
            let lost = |_| LogError::Away("the test has cut it off".to_owned());
            let taken =
                left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            ready(taken.map(drop).map_err(lost))
        });
        let draft = Draft::check(body, SystemClock.wall()).expect("valid");
        self.creator(cut).create(draft).await.expect_err("cut off");
        let rows = self.outbox().await;
        let row = rows.iter().find(|row| !before.contains(row)).expect("it is owed");
        let stored = self.embedded.store().broadcast(row.id).await.expect("it is embedded");
        stored.expect("it exists").broadcast
    }

    async fn outbox(&self) -> Vec<OutboxRow> {
        self.embedded.store().outbox(10).await.expect("it is embedded")
    }

    /// Appends records of no consequence.
    async fn fill(&self, to: Partition, many: u64) {
        let record = json!({"broadcastId": 1, "userId": "zed", "eventType": "FAILED"});
        let filler = MovedRecord {
            to,
            key: None,
            value: Some(Bytes::from(record.to_string())),
            headers: Vec::new(),
        };
        let fillers = (0..many).map(|_| filler.clone()).collect();
        self.log.append_moved(fillers).await.expect("appended");
    }

    async fn wait_for(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("{what} in time"));
    }

    async fn wait_until_finished(&self) {
        self.wait_for("an empty outbox", async || self.outbox().await.is_empty()).await;
    }

    async fn wait_until_kept(&self, partition: Partition, next: u64) {
        let ownership = self.embedded.ownership(false);
        self.wait_for("the checkpoint", async || {
            let checkpoints = ownership.checkpoints().await.expect("it is embedded");
            checkpoints.get(&partition).is_some_and(|at| *at >= next)
        })
        .await;
    }

    async fn end(&self, partition: Partition) -> u64 {
        self.log.bounds(partition).await.expect("it is embedded").end
    }

    /// Records of the selected topic.
    async fn records(&self) -> u64 {
        let mut all = 0;
        for partition in self.shape.all_partitions().filter(|it| it.topic == Topic::Selected) {
            all += self.end(partition).await;
        }
        all
    }

    async fn record(&self, partition: Partition, offset: u64) -> Value {
        let want = Want { partition, offset };
        let batches = self.log.fetch(&[want], 1 << 20, LONG).await.expect("fetched");
        let record = &batches[0].records[0];
        serde_json::from_slice(record.value.as_deref().expect("a value")).expect("JSON")
    }
}

#[tokio::test]
async fn what_was_left_is_published_with_the_checkpoint() {
    let to_all = json!({"content": "x", "targetType": "ALL"});
    let to_ann = json!({"content": "x", "targetType": "SELECTED", "targetIds": ["ann"]});
    for (body, user) in [(to_all, None), (to_ann, Some("ann"))] {
        let bench = Bench::new().await;
        let _leaver = bench.start_owner();
        let broadcast = bench.create_half(body, 0).await;
        let partition = bench.shape.partition_of_event(broadcast.id, user);
        bench.fill(partition, 5).await;
        bench.wait_until_kept(partition, 5).await;
        bench.start_relay();
        bench.wait_until_finished().await;
        assert_eq!(bench.end(partition).await, 6);
        let record = bench.record(partition, 5).await;
        assert_eq!((&record["after"], &record["attempt"]), (&json!(5), &Value::Null), "{record}");
    }
}

/// As behind a start with a clock that has been set back.
#[tokio::test]
async fn a_node_that_is_alone_publishes_what_seems_to_be_of_the_future() {
    let bench = Bench::new().await;
    let _leaver = bench.start_owner();
    let to_ann = json!({"content": "x", "targetType": "SELECTED", "targetIds": ["ann"]});
    let broadcast = bench.create_half(to_ann, 0).await;
    let rows = bench.outbox().await;
    let later = OutboxRow { id: broadcast.id, created_at: broadcast.created_at.plus(HOUR) };
    for row in rows {
        bench.embedded.store().remove_outbox(&row).await.expect("it is embedded");
    }
    bench.embedded.store().put_outbox(&later).await.expect("it is embedded");
    assert_eq!(bench.outbox().await, [later]);
    bench.start_relay();
    bench.wait_until_finished().await;
    assert_eq!(bench.records().await, 1);
}

#[tokio::test]
async fn it_waits_for_an_owner_who_is_far_behind_and_publishes_the_rest() {
    let bench = Bench::new().await;
    let to_all = json!({"content": "x", "targetType": "ALL"});
    let to_ann = json!({"content": "x", "targetType": "SELECTED", "targetIds": ["ann"]});
    let held_up = bench.create_half(to_all, 0).await;
    let other = bench.create_half(to_ann.clone(), 0).await;
    let full = bench.shape.partition_of_event(held_up.id, None);
    let with_room = bench.shape.partition_of_event(other.id, Some("ann"));
    bench.fill(full, AGAIN_RECORDS).await;
    bench.fill(with_room, AGAIN_RECORDS - 2).await;
    bench.start_relay();
    for left in [1, 0] {
        bench.wait_for("the other one", async || bench.outbox().await.len() == 1).await;
        assert_eq!(bench.outbox().await[0].id, held_up.id);
        assert_eq!(bench.end(with_room).await, AGAIN_RECORDS - left);
        if left > 0 {
            // Both are looked at once more.
            bench.create_half(to_ann.clone(), 0).await;
        }
    }
    assert_eq!(bench.end(full).await, AGAIN_RECORDS, "it would be found too late");
    let _leaver = bench.start_owner();
    bench.wait_until_finished().await;
    assert_eq!(bench.end(full).await, AGAIN_RECORDS + 1);
    let after = bench.record(full, AGAIN_RECORDS).await["after"].as_u64().expect("a checkpoint");
    assert!((1..=AGAIN_RECORDS).contains(&after), "{after}");
}

#[tokio::test]
async fn what_a_users_row_says_to_be_there_is_not_published_again() {
    let bench = Bench::new().await;
    let _leaver = bench.start_owner();
    let users = ["ann", "ben"];
    let body = json!({"content": "x", "targetType": "SELECTED", "targetIds": users});
    let broadcast = bench.create(body).await;
    let inbox = bench.embedded.inbox();
    for user in users.map(|user| UserId::new(user).expect("a user id")) {
        bench
            .wait_for("the row", async || {
                let row = inbox.row(&user, broadcast.id).await.expect("it is embedded");
                row.is_some_and(|row| row.place.is_some())
            })
            .await;
    }
    // As if the node had crashed before it removed the row.
    let row = OutboxRow { id: broadcast.id, created_at: broadcast.created_at };
    bench.embedded.store().put_outbox(&row).await.expect("it is embedded");
    bench.start_relay();
    bench.wait_until_finished().await;
    assert_eq!(bench.records().await, 2);
}

/// More targets than repeats are known in: what the relay publishes again must be little.
#[tokio::test]
async fn a_large_audience_that_was_half_published_is_finished_and_not_begun_anew() {
    const TARGETS: u64 = 80_000;
    const APPENDED: usize = 60;
    let bench = Bench::new().await;
    let _leaver = bench.start_owner();
    let ids: Vec<String> = (0..TARGETS).map(|number| format!("user-{number}")).collect();
    let body = json!({"content": "x", "targetType": "SELECTED", "targetIds": ids});
    bench.create_half(body, APPENDED).await;
    assert!(bench.records().await > 10 * TARGETS / 16, "most of it was published");
    bench.start_relay();
    bench.wait_until_finished().await;
    let all = bench.records().await;
    assert!((TARGETS..=TARGETS + 1_000).contains(&all), "{all} records for {TARGETS} targets");
}
