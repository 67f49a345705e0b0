//! The owner by itself: it commits what is durable and nothing else, and one that can't go on
//! leaves its partitions to others.

mod fakes;

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use corecast::base::{
    BroadcastId, End, EpochMillis, LogShape, Partition, Position, Status, Topic, UserId,
};
use corecast::limits::owner as limits;
use corecast::owner::{Keeper, Owner, leaving};
use corecast::ports::{
    Batch, Bounds, Clock, ControlTopic, Endings, Header, Hole, Log, LogError, LogNames, Mark,
    MovedRecord, NewRecord, Owned, Ownership, Record, StoreError, SystemClock, TimedBy, Want,
    join_all,
};
use corecast::store::embedded::{Embedded, EmbeddedOptions, LoneControl};
use corecast::wire::control::{ControlRecord, ControlSays, NodeStart};
use fakes::{Call, Gated};
use tokio::sync::{Barrier, watch};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(30);

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gate {
    Holds,
    LetsThrough,
    Panics,
}

/// An owner of all that is embedded.
fn owner(embedded: &Embedded) -> Owner {
    Owner {
        log: embedded.log(),
        ownership: embedded.ownership(true),
        inbox: embedded.inbox(),
        parking: embedded.parking(),
        endings: embedded.stores(),
        control: Arc::new(LoneControl::default()),
        node: NodeStart { node: "n".to_owned(), start: Uuid::nil() },
        dead_letters: embedded.dead_letters(),
        clock: Arc::new(SystemClock),
        names: LogNames::default(),
        retention: Duration::from_secs(3_600),
        is_testing: false,
        unknown_is_for_all: false,
        counters: Arc::default(),
    }
}

/// For ann, as an older producer says it: the store does not know its broadcast.
fn message(broadcast: usize) -> Bytes {
    let value = format!(
        r#"{{"broadcastId":{broadcast},"userId":"ann","eventType":"CREATED","message":"hi"}}"#
    );
    value.into()
}

/// The record of such a message.
fn record() -> NewRecord {
    NewRecord {
        topic: Topic::Selected,
        key: Bytes::from_static(b"ann"),
        value: message(1),
        headers: Vec::new(),
    }
}

fn embedded() -> (Embedded, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 3 };
    (Embedded::open(&options, Arc::new(SystemClock)).expect("opens"), folder)
}

/// An owner of a log with one message for ann, whose write meets the gate.
struct Bench {
    ownership: Arc<dyn Ownership>,
    place: Position,
    gate: watch::Sender<Gate>,
    asked: watch::Receiver<usize>,
    owner: tokio::task::JoinHandle<Result<(), LogError>>,
    _leaver: corecast::owner::Leaver,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let (embedded, folder) = embedded();
        let place = embedded.log().append(vec![record()]).await.expect("appended")[0];
        let (gate, gated) = watch::channel(Gate::Holds);
        let (ask, asked) = watch::channel(0);
        let inbox = Gated::new(embedded.inbox(), move |call| {
            let (mut gate, ask) = (gated.clone(), ask.clone());
            async move {
                match call {
                    Call::WriteContents(_) => return Ok(()),
                    Call::WriteInbox(count) => ask.send_modify(|asked| *asked += count),
                    other => unreachable!("nothing here needs {other:?}"),
                }
                let open = *gate.wait_for(|gate| *gate != Gate::Holds).await.expect("a test");
                assert_ne!(open, Gate::Panics, "as it is meant to");
                Ok(())
            }
        });
        let owner = Owner { inbox, ..owner(&embedded) };
        let ownership = owner.ownership.clone();
        let taking_part = ownership.clone();
        tokio::spawn(async move { taking_part.run(&|_| ()).await });
        let (leaver, leaving) = leaving();
        let owner = tokio::spawn(owner.run(leaving));
        Self { ownership, place, gate, asked, owner, _leaver: leaver, _folder: folder }
    }

    /// Waits until the write has met the gate.
    async fn wait_until_asked(&mut self) {
        let asked = tokio::time::timeout(LONG, self.asked.wait_for(|asked| *asked > 0)).await;
        asked.expect("in time").expect("an owner");
    }

    async fn checkpoint(&self) -> Option<u64> {
        let checkpoints: BTreeMap<Partition, u64> =
            self.ownership.checkpoints().await.expect("it is embedded");
        checkpoints.get(&self.place.partition).copied()
    }
}

#[tokio::test]
async fn an_offset_is_committed_only_once_its_row_is_durable() {
    let mut bench = Bench::start().await;
    bench.wait_until_asked().await;
    // Many times what it takes to commit.
    let is_committed = async {
        while bench.checkpoint().await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    let early = tokio::time::timeout(Duration::from_secs(2), is_committed).await;
    assert!(early.is_err(), "committed before its row was written");
    bench.gate.send_replace(Gate::LetsThrough);
    let next = bench.place.offset + 1;
    let committed = tokio::time::timeout(LONG, async {
        while bench.checkpoint().await != Some(next) {
            tokio::task::yield_now().await;
        }
    });
    committed.await.expect("committed in time");
}

#[tokio::test]
async fn an_owner_that_panics_says_so_and_leaves() {
    let mut bench = Bench::start().await;
    bench.wait_until_asked().await;
    bench.gate.send_replace(Gate::Panics);
    let ended = tokio::time::timeout(LONG, &mut bench.owner).await.expect("it ends in time");
    let ended = ended.expect("its own task goes on");
    assert!(
        matches!(&ended, Err(LogError::Failed(said)) if said.contains("panicked")),
        "{ended:?}"
    );
    assert_eq!(bench.checkpoint().await, None, "nothing is committed");
    // Others may own what it had.
    let mut known = Owned::new();
    let left = tokio::time::timeout(Duration::from_secs(2), async {
        loop {
            known = bench.ownership.owned(&known).await;
        }
    });
    assert!(left.await.is_err() && known.is_empty(), "{known:?}");
}

#[tokio::test]
async fn a_bad_record_is_committed_only_once_it_is_a_dead_letter_which_becomes_a_row() {
    let (embedded, _folder) = embedded();
    let bad = NewRecord {
        topic: Topic::Group,
        key: Bytes::from_static(b"7"),
        value: Bytes::from_static(b"not JSON"),
        headers: vec![Header { name: Bytes::from_static(b"h"), value: None }],
    };
    let place = embedded.log().append(vec![bad.clone()]).await.expect("appended")[0];
    let (gate, gated) = watch::channel(Gate::Holds);
    let (ask, mut asked) = watch::channel(0);
    let log = Gated::new(embedded.log(), move |call| {
        let Call::AppendMoved(count) = call else { unreachable!("nothing here needs {call:?}") };
        ask.send_modify(|asked| *asked += count);
        let mut gate = gated.clone();
        async move {
            gate.wait_for(|gate| *gate != Gate::Holds).await.expect("a test");
            Ok(())
        }
    });
    let owner = Owner { log, ..owner(&embedded) };
    let (ownership, counters) = (owner.ownership.clone(), owner.counters.clone());
    let (_leaver, leaving) = leaving();
    tokio::spawn(owner.run(leaving));
    let held = tokio::time::timeout(LONG, asked.wait_for(|asked| *asked > 0)).await;
    held.expect("in time").expect("an owner");
    let checkpoint = async |partition: Partition| {
        ownership.checkpoints().await.expect("it is embedded").get(&partition).copied()
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(checkpoint(place.partition).await, None, "committed before it was written");
    gate.send_replace(Gate::LetsThrough);
    let dead = Partition { topic: Topic::GroupDead, index: 0 };
    let committed = tokio::time::timeout(LONG, async {
        while checkpoint(place.partition).await != Some(1) || checkpoint(dead).await != Some(1) {
            tokio::task::yield_now().await;
        }
    });
    committed.await.expect("both committed in time");
    let rows = embedded.dead_letters().dead_letters(None, 10, 1 << 20).await.expect("rows");
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(row.id().to_string(), "broadcast-user-service-group-dlt-0-0");
    assert_eq!(
        (row.record.key.as_ref(), row.record.value.as_ref()),
        (Some(&bad.key), Some(&bad.value))
    );
    assert_eq!(row.record.headers[0], bad.headers[0]);
    let origin = row.shown().origin.expect("it says where it stood");
    assert_eq!(origin.topic, "broadcast-user-service-group");
    assert_eq!((origin.partition, origin.offset), (i32::from(place.partition.index), 0));
    let [bad_records, others @ ..] =
        counters.dead_letters.each_ref().map(|count| count.load(Ordering::Relaxed));
    assert_eq!((bad_records, others.iter().sum::<u64>()), (1, 0));
}

/// So many messages for ann, in her own partition or all in another one.
fn messages(shape: &LogShape, count: usize, are_own: bool) -> Batch {
    let record = |number: usize| Record {
        offset: number as u64,
        appended_at: SystemClock.wall(),
        timed_by: TimedBy::Log,
        key: None,
        value: Some(message(number + 1)),
        headers: Vec::new(),
    };
    let own = shape.partition_of_user("ann");
    let index = if are_own { own } else { (own + 1) % shape.selected_partitions };
    let (partition, end) = (Partition { topic: Topic::Selected, index }, count as u64);
    Batch { partition, records: (0..count).map(record).collect(), next: end, end }
}

/// Has them kept by this owner, and sees that all of them are there.
async fn keep(embedded: &Embedded, owner: Owner, count: usize, are_own: bool) {
    let shape = embedded.log().shape().await.expect("embedded");
    let batch = messages(&shape, count, are_own);
    let kept = tokio::time::timeout(LONG, Keeper::new(&owner, shape).keep(batch)).await;
    kept.expect("durable in time");
    let ann = UserId::new("ann").expect("a user id");
    let rows = embedded.inbox().inbox(&ann, None, count + 1).await.expect("embedded");
    assert_eq!(rows.len(), count);
    assert!(rows.iter().all(|row| row.place.is_some() == are_own));
    let ids: Vec<_> = rows.iter().map(|row| row.broadcast).collect();
    let contents = embedded.inbox().contents(&ids).await.expect("embedded");
    assert_eq!(contents.iter().flatten().count(), if are_own { count } else { 0 });
}

#[tokio::test]
async fn a_store_that_fails_now_and_then_is_asked_for_what_is_left() {
    const MESSAGES: usize = 1_000;
    /// Of the statements, one: fewer than a whole batch has, so that no try does all of it.
    const FAILS: usize = 200;
    const { assert!(FAILS < MESSAGES && FAILS > limits::ROWS_AT_ONCE) };
    for are_own in [true, false] {
        let (embedded, _folder) = embedded();
        let [asked, done] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let ask = {
            let (asked, done) = (asked.clone(), done.clone());
            move |call| {
                let count = match call {
                    Call::WriteContents(count) | Call::WriteInbox(count) => count,
                    Call::Park => 1,
                    other => unreachable!("nothing here needs {other:?}"),
                };
                let before = asked.fetch_add(count, Ordering::Relaxed);
                if before / FAILS != (before + count) / FAILS {
                    return ready(Err(StoreError::Away("as it is meant to".to_owned())));
                }
                done.fetch_add(count, Ordering::Relaxed);
                ready(Ok(()))
            }
        };
        let inbox = Gated::new(embedded.inbox(), ask.clone());
        let parking = Gated::new(embedded.parking(), ask);
        let owner = Owner { inbox, parking, ..owner(&embedded) };
        let counters = owner.counters.clone();
        keep(&embedded, owner, MESSAGES, are_own).await;
        let [asked, done] = [asked, done].map(|count| count.load(Ordering::Relaxed));
        let retries = counters.retries.load(Ordering::Relaxed) as usize;
        println!("own: {are_own}, {asked} statements, {retries} tries failed");
        assert!(retries > 1, "it did not fail");
        // Content and row, or row and what is parked.
        assert_eq!(done, 2 * MESSAGES, "what is done is not done again");
        assert!(asked - done <= retries * limits::ROWS_AT_ONCE);
    }
}

#[tokio::test]
async fn records_are_parked_many_at_a_time() {
    let (embedded, _folder) = embedded();
    // Nobody passes before so many have come.
    let barrier = Arc::new(Barrier::new(limits::PARKED_AT_ONCE));
    let running = Arc::new(AtomicUsize::new(0));
    let parking = Gated::new(embedded.parking(), move |_| {
        let (barrier, running) = (barrier.clone(), running.clone());
        async move {
            let others = running.fetch_add(1, Ordering::Relaxed);
            assert!(others < limits::PARKED_AT_ONCE, "{others} others");
            barrier.wait().await;
            running.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        }
    });
    let owner = Owner { parking, ..owner(&embedded) };
    keep(&embedded, owner, 4 * limits::PARKED_AT_ONCE, false).await;
}

#[tokio::test]
async fn a_few_parts_are_written_at_a_time_whatever_is_owned() {
    let (embedded, _folder) = embedded();
    let [running, most] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let inbox = Gated::new(embedded.inbox(), move |_| {
        let (running, most) = (running.clone(), most.clone());
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            // Whoever may come in meanwhile does.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            running.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        }
    });
    let owner = Owner { inbox, ..owner(&embedded) };
    let shape = embedded.log().shape().await.expect("embedded");
    let keeper = Keeper::new(&owner, shape);
    let batches = (0..8).map(|_| messages(&shape, 3 * limits::ROWS_AT_ONCE, true));
    let kept = join_all(batches.map(|batch| keeper.keep(batch)));
    tokio::time::timeout(LONG, kept).await.expect("durable in time");
    assert_eq!(seen.load(Ordering::Relaxed), limits::PARTS_AT_ONCE);
}

/// A log that begins at offset 9 of each partition, and has nothing behind that.
struct Trimmed(Arc<dyn Log>);

#[async_trait]
impl Log for Trimmed {
    async fn shape(&self) -> Result<LogShape, LogError> {
        self.0.shape().await
    }

    async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
        Ok(Bounds { start: 9, end: 9 })
    }

    async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        unreachable!("nothing is created")
    }

    async fn append_moved(&self, _: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        unreachable!("nothing is parked")
    }

    async fn fetch(&self, wants: &[Want], _: usize, _: Duration) -> Result<Vec<Batch>, LogError> {
        match wants.iter().find(|want| want.offset < 9) {
            Some(want) => {
                let bounds = Bounds { start: 9, end: 9 };
                Err(LogError::OutOfRange { wanted: *want, bounds })
            }
            None => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn what_the_log_has_lost_is_noted_before_an_offset_beyond_it_is_committed() {
    let (embedded, _folder) = embedded();
    let (gate, gated) = watch::channel(false);
    let inbox = Gated::new(embedded.inbox(), move |call| {
        let mut gate = gated.clone();
        async move {
            assert_eq!(call, Call::WriteHoles);
            gate.wait_for(|is_open| *is_open).await.expect("a test");
            Ok(())
        }
    });
    let owner = Owner { log: Arc::new(Trimmed(embedded.log())), inbox, ..owner(&embedded) };
    let ownership = owner.ownership.clone();
    let taking_part = ownership.clone();
    tokio::spawn(async move { taking_part.run(&|_| ()).await });
    let owned = ownership.owned(&Owned::new()).await;
    let selected = Partition { topic: Topic::Selected, index: 1 };
    let group = Partition { topic: Topic::Group, index: 0 };
    let mark = Mark { partition: selected, tenure: owned[&selected], next: 4 };
    ownership.commit(&[mark]).await.expect("embedded");
    let (_leaver, leaving) = leaving();
    tokio::spawn(owner.run(leaving));
    let committed = async |partition| {
        let checkpoints = ownership.checkpoints().await.expect("embedded");
        checkpoints.get(&partition).copied()
    };
    tokio::time::sleep(4 * limits::COMMIT_PACE).await;
    assert_eq!((committed(selected).await, committed(group).await), (Some(4), None));
    gate.send_replace(true);
    let is_noted = async {
        while committed(selected).await != Some(9) || committed(group).await != Some(9) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, is_noted).await.expect("it goes on");
    let log = embedded.log().shape().await.expect("embedded").identity;
    let holes = embedded.inbox().holes(log).await.expect("embedded");
    let said = |hole: &Hole| (hole.partition, hole.from, hole.to);
    assert_eq!(holes.len(), 6, "of three partitions of either topic: {holes:?}");
    assert!(holes.iter().any(|hole| said(hole) == (selected, 4, 9)), "{holes:?}");
    assert!(holes.iter().any(|hole| said(hole) == (group, 0, 9)), "{holes:?}");
}

#[tokio::test]
async fn an_offset_from_ahead_of_the_log_is_nobodys() {
    let (embedded, _folder) = embedded();
    let place = embedded.log().append(vec![record()]).await.expect("appended")[0];
    let owner = owner(&embedded);
    let (ownership, counters) = (owner.ownership.clone(), owner.counters.clone());
    let taking_part = ownership.clone();
    tokio::spawn(async move { taking_part.run(&|_| ()).await });
    let owned = ownership.owned(&Owned::new()).await;
    // Whoever it was that committed it.
    let tenure = owned[&place.partition];
    let ahead = Mark { partition: place.partition, tenure, next: 50 };
    ownership.commit(&[ahead]).await.expect("embedded");
    let (_leaver, leaving) = leaving();
    tokio::spawn(owner.run(leaving));
    let is_kept = async {
        loop {
            let checkpoints = ownership.checkpoints().await.expect("embedded");
            if checkpoints.get(&place.partition) == Some(&(place.offset + 1)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, is_kept).await.expect("it is committed how far all is durable");
    let user = UserId::new("ann").expect("a user id");
    let rows = embedded.inbox().inbox(&user, None, 10).await.expect("embedded");
    assert_eq!(rows.len(), 1, "what stood below that offset is kept");
    assert_eq!(counters.skipped_records.load(Ordering::Relaxed), 0);
}

/// Another producer's broadcast counts as active until its record says that it has ended; then
/// every node is told, and who starts later finds it noted.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_another_producers_broadcast_is_noted_and_told() {
    let (embedded, _folder) = embedded();
    let control = Arc::new(LoneControl::default());
    let owner = Owner { control: control.clone(), ..owner(&embedded) };
    let (leaver, leaving) = leaving();
    let owning = tokio::spawn(owner.run(leaving));
    let group = |value: &str| NewRecord {
        topic: Topic::Group,
        key: Bytes::from_static(b"1"),
        value: Bytes::from(value.to_owned()),
        headers: Vec::new(),
    };
    let ended =
        r#"{"broadcastId":1,"userId":null,"eventType":"CANCELLED","targetType":"SELECTED"}"#;
    let unknown = r#"{"broadcastId":2,"userId":null,"eventType":"EXPIRED","targetType":"ALL"}"#;
    embedded.log().append(vec![record()]).await.expect("appended");
    let id = BroadcastId::new(1).expect("small");
    let status = async || embedded.inbox().contents(&[id]).await.expect("read")[0].clone();
    while status().await.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(status().await.and_then(|content| content.status), None);
    embedded
        .log()
        .append(vec![group(unknown), group(ended), group(ended)])
        .await
        .expect("appended");
    while status().await.and_then(|content| content.status) != Some(Status::Cancelled) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let endings = embedded.stores();
    let noted = async || endings.endings(EpochMillis(0), None, 10).await.expect("read");
    while !noted().await.iter().all(|noted| noted.is_settled) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let noted = noted().await;
    assert_eq!(noted.len(), 1, "one that nobody knows has nothing to end: {noted:?}");
    assert_eq!((noted[0].ending.id, noted[0].ending.how), (id, End::Cancelled));
    let told = control.read(0, Duration::ZERO).await.expect("there");
    let told: Vec<_> = told.records.iter().map(|(_, value)| ControlRecord::read(value)).collect();
    let [Ok(ControlRecord { says, .. })] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*says, ControlSays::Ended { broadcast_id: id, status: End::Cancelled });
    leaver.leave();
    owning.await.expect("no panic").expect("it leaves");
}
