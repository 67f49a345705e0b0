//! Endings of broadcasts inside a process: whose affair it is to tell the users, how many are told
//! at a time, and what is left for the relay.

mod fakes;

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use corecast::base::{BroadcastId, End, EpochMillis, Status, Topic};
use corecast::control::{
    ControlCounters, ControlDesk, Creator, EndError, EndRelay, Ender, Expiry, FollowerParts,
    InboxDesk, KeptParts, KeptStore, Removals, Unfinished, control_topic, inboxes,
};
use corecast::domain::Draft;
use corecast::lane::{Doorbell, Order, lane};
use corecast::ports::{Clock, ControlRead, ControlTopic, Ending, Log, LogError, SystemClock};
use corecast::store::embedded::{Embedded, EmbeddedOptions, LoneControl};
use corecast::wire::control::{ControlRecord, ControlSays, NodeStart};
use fakes::{Call, Gated};
use serde_json::{Value, json};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(90);
const HOUR: Duration = Duration::from_secs(3_600);

/// Embedded parts, a log that asks the test, and who ends broadcasts.
struct Bench {
    embedded: Embedded,
    ender: Arc<Ender>,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// Asks before the log takes that many records.
    fn new<F>(ask: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), LogError>> + Send + 'static,
    {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 1 };
        let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("opens");
        let log: Arc<dyn Log> = embedded.log();
        let gated = Gated::new(log, move |call| match call {
            Call::Append(records) => ask(records),
            other => panic!("{other:?}"),
        });
        let creator = Arc::new(Creator {
            log: gated,
            store: embedded.store(),
            clock: Arc::new(SystemClock),
            node: "node".to_owned(),
            retention: HOUR,
            unfinished: Unfinished::default(),
            fail_next: AtomicBool::new(false),
        });
        let ender = Arc::new(Ender {
            creator,
            endings: embedded.stores(),
            inbox: embedded.inbox(),
            desk: follow(&embedded, Arc::<LoneControl>::default(), Arc::default()),
            unfinished: Unfinished::default(),
            removals: Removals::default(),
        });
        Self { embedded, ender, _folder: folder }
    }

    async fn create(&self, body: Value) -> BroadcastId {
        let draft = Draft::check(body, SystemClock.wall()).expect("valid");
        self.ender.creator.create(draft).await.expect("created").broadcast.id
    }

    async fn cancel(&self, id: BroadcastId) -> Result<(), EndError> {
        self.ender.clone().cancel(id).await
    }

    async fn open(&self) -> Vec<Ending> {
        self.ender.endings.open_endings(10_000).await.expect("it is embedded")
    }

    async fn status(&self, id: BroadcastId) -> Status {
        let row = self.ender.creator.store.broadcast(id).await.expect("it is embedded");
        row.expect("it exists").status
    }

    async fn noted(&self) -> usize {
        let noted = self.ender.endings.endings(EpochMillis(0), None, 10_000).await;
        noted.expect("it is embedded").len()
    }

    /// Records of the group topic: creations, and removals.
    async fn group_records(&self) -> u64 {
        let log = self.embedded.log();
        let shape = log.shape().await.expect("it is embedded");
        let mut all = 0;
        for partition in shape.all_partitions().filter(|it| it.topic == Topic::Group) {
            all += log.bounds(partition).await.expect("it is embedded").end;
        }
        all
    }

    fn start_relay(&self) {
        tokio::spawn(EndRelay { ender: self.ender.clone(), is_alone: true }.run());
    }

    fn start_expiry(&self) {
        let ownership = self.embedded.ownership(true);
        let owning = ownership.clone();
        tokio::spawn(async move { owning.run(&|_| ()).await });
        let (ender, log) = (self.ender.clone(), self.ender.creator.log.clone());
        tokio::spawn(Expiry { ender, ownership, log }.run());
    }
}

/// The desk of a node that is alone, with a shard that applies what it is told.
fn follow(
    embedded: &Embedded,
    topic: Arc<dyn ControlTopic>,
    counters: Arc<ControlCounters>,
) -> ControlDesk {
    let (orders, told) =
        lane::<Order>("orders", 1_024, Arc::new(Doorbell::new().expect("a doorbell")));
    let (desk, follower) = control_topic(FollowerParts {
        topic,
        endings: embedded.stores(),
        inbox: embedded.inbox(),
        clock: Arc::new(SystemClock),
        node: NodeStart { node: "n".to_owned(), start: Uuid::nil() },
        orders: vec![orders],
        desk: inbox_desk(embedded),
        ended_kept: HOUR,
        counters,
    });
    tokio::spawn(follower.run(|_| ()));
    let shard = desk.clone();
    tokio::spawn(async move {
        loop {
            while let Some(order) = told.try_recv() {
                shard.take_applied(0, order.applied);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    desk
}

fn inbox_desk(embedded: &Embedded) -> InboxDesk {
    let kept = KeptStore::new(KeptParts {
        log: embedded.log(),
        ownership: embedded.ownership(false),
        inbox: embedded.inbox(),
        clock: Arc::new(SystemClock),
        retention: HOUR,
        messages_max: 10,
    });
    inboxes(kept, Vec::new(), Arc::default()).0
}

async fn wait_for(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("{what} in time"));
}

fn to_all() -> Value {
    json!({"content": "x", "targetType": "ALL"})
}

#[tokio::test]
async fn only_the_cancel_that_changes_the_status_tells_the_users() {
    let bench = Bench::new(|_| ready(Ok(())));
    let id = bench.create(to_all()).await;
    // The others look before it is cancelled, or after.
    let calls = (0..8).map(|_| bench.cancel(id));
    for done in corecast::ports::join_all(calls).await {
        done.expect("it is cancelled");
    }
    wait_for("its users are told", async || bench.open().await.is_empty()).await;
    assert_eq!(bench.group_records().await, 2, "created, and taken away");
    let noted = bench.noted().await;
    for _ in 0..3 {
        bench.cancel(id).await.expect("it is cancelled");
    }
    assert_eq!(bench.noted().await, noted, "they write nothing");
    let other = bench.create(to_all()).await;
    bench.cancel(other).await.expect("cancelled");
    wait_for("the other's users are told", async || bench.open().await.is_empty()).await;
    assert_eq!(bench.group_records().await, 4);
}

#[tokio::test]
async fn what_a_cancel_has_left_the_relay_completes_whoever_cancels_again() {
    let bench = Bench::new(|_| ready(Ok(())));
    let id = bench.create(to_all()).await;
    // As if the answer of the change had been lost, before a start with a clock that is behind.
    let at = SystemClock.wall().plus(HOUR);
    let ending = Ending { id, at, how: End::Cancelled };
    bench.ender.endings.put_ending(&ending).await.expect("it is embedded");
    bench.ender.endings.change_status(id, Status::Cancelled).await.expect("it is embedded");
    bench.cancel(id).await.expect("it is cancelled");
    assert_eq!((bench.open().await, bench.group_records().await), (vec![ending], 1));
    bench.start_relay();
    wait_for("its users are told", async || bench.open().await.is_empty()).await;
    assert_eq!(bench.group_records().await, 2);
}

#[tokio::test]
async fn few_large_audiences_are_told_at_a_time_and_hold_up_neither_cancels_nor_small_ones() {
    let begun = Arc::new(AtomicUsize::new(0));
    let (held, gate) = (begun.clone(), Arc::new(tokio::sync::Semaphore::new(0)));
    let open = gate.clone();
    // A creation appends to a thousand and one to one; a removal begins with one for all.
    let bench = Bench::new(move |records| {
        let (held, gate) = (held.clone(), gate.clone());
        async move {
            if records == 777 {
                held.fetch_add(1, Ordering::Relaxed);
                let _place = gate.acquire().await;
            }
            Ok(())
        }
    });
    let ids: Vec<String> = (0..1_777).map(|number| format!("user-{number}")).collect();
    let large = json!({"content": "x", "targetType": "SELECTED", "targetIds": ids});
    let mut created = Vec::new();
    open.add_permits(1);
    for _ in 0..5 {
        created.push(bench.create(large.clone()).await);
    }
    open.acquire().await.expect("it is open").forget();
    begun.store(0, Ordering::Relaxed);
    for id in &created {
        bench.cancel(*id).await.expect("the answer does not wait");
    }
    let small = bench.create(to_all()).await;
    bench.cancel(small).await.expect("cancelled");
    let is_told = async || bench.open().await.iter().all(|ending| ending.id != small);
    wait_for("the small one's users are told", is_told).await;
    wait_for("two large ones", async || begun.load(Ordering::Relaxed) == 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((begun.load(Ordering::Relaxed), bench.open().await.len()), (2, 5));
    open.add_permits(1);
    wait_for("the others' users are told", async || bench.open().await.is_empty()).await;
}

fn ending_in(wait: Duration) -> Value {
    let at = SystemClock.wall().plus(wait).to_iso();
    let mut body = to_all();
    body["expiresAt"] = json!(std::str::from_utf8(&at).expect("ASCII"));
    body
}

/// Users are told of one each 50 ms, so there is always one that has just been.
#[tokio::test]
async fn a_crowd_that_expires_holds_up_no_other() {
    const CROWD: usize = 300;
    let is_slow = Arc::new(AtomicBool::new(false));
    let (slow, turn) = (is_slow.clone(), Arc::new(tokio::sync::Mutex::new(())));
    let bench = Bench::new(move |_| {
        let (slow, turn) = (slow.clone(), turn.clone());
        async move {
            if slow.load(Ordering::Relaxed) {
                let _turn = turn.lock().await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        }
    });
    let mut bodies = Vec::new();
    for _ in 0..CROWD {
        bodies.push(bench.create(ending_in(Duration::from_secs(4))));
    }
    let crowd = corecast::ports::join_all(bodies).await;
    let lone = bench.create(ending_in(Duration::from_secs(6))).await;
    is_slow.store(true, Ordering::Relaxed);
    bench.start_expiry();
    wait_for("the crowd", async || {
        let statuses = corecast::ports::join_all(crowd.iter().map(|id| bench.status(*id))).await;
        statuses.iter().all(|status| *status == Status::Expired)
    })
    .await;
    wait_for("the lone one", async || bench.status(lone).await == Status::Expired).await;
    assert!(bench.open().await.len() > CROWD / 4, "its users are told meanwhile");
    is_slow.store(false, Ordering::Relaxed);
    wait_for("its users are told", async || bench.open().await.is_empty()).await;
    assert_eq!(bench.group_records().await, 2 * (CROWD as u64 + 1));
}

/// A topic that is frozen once it has been read to its end once.
struct Frozen {
    topic: LoneControl,
    is_frozen: AtomicBool,
}

#[async_trait]
impl ControlTopic for Frozen {
    async fn end(&self) -> Result<u64, LogError> {
        Ok(0)
    }

    async fn append(&self, value: Bytes) -> Result<u64, LogError> {
        match self.is_frozen.load(Ordering::Relaxed) {
            true => std::future::pending().await,
            false => self.topic.append(value).await,
        }
    }

    async fn read(&self, from: u64, wait_max: Duration) -> Result<ControlRead, LogError> {
        if self.is_frozen.swap(true, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.topic.read(from, wait_max).await
    }
}

#[tokio::test]
async fn nodes_that_are_silent_are_not_counted_though_nothing_is_read() {
    let bench = Bench::new(|_| ready(Ok(())));
    let topic = LoneControl::default();
    let from = NodeStart { node: "other".to_owned(), start: Uuid::nil() };
    let beat = ControlRecord { from, seq: 1, says: ControlSays::Beat { applied: 0 } };
    topic.append(beat.to_json().into()).await.expect("it is here");
    let counters = Arc::<ControlCounters>::default();
    let topic = Arc::new(Frozen { topic, is_frozen: AtomicBool::new(false) });
    follow(&bench.embedded, topic, counters.clone());
    let nodes = |count| {
        let counters = &counters;
        async move || counters.nodes.load(Ordering::Relaxed) == count
    };
    wait_for("the other node", nodes(1)).await;
    wait_for("its silence", nodes(0)).await;
}
