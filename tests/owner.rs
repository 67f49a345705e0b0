//! The owner by itself: it commits what is durable and nothing else, and one that can't go on
//! leaves its partitions to others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use corecast::base::{BroadcastId, LogIdentity, LogShape, Partition, Position, Topic, UserId};
use corecast::owner::{LogNames, Owner, OwnerCounters, leaving};
use corecast::ports::{
    Batch, Bounds, Content, GroupRow, Header, Inbox, InboxRow, InboxWrite, Log, LogError,
    MovedRecord, NewRecord, Owned, Ownership, StoreError, SystemClock, Want,
};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(30);

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gate {
    Holds,
    LetsThrough,
    Panics,
}

/// A store that holds writes back, or can't take them.
struct Gated {
    gate: watch::Receiver<Gate>,
    asked: watch::Sender<usize>,
}

#[async_trait]
impl Inbox for Gated {
    async fn write_inbox(&self, writes: &[InboxWrite]) -> Result<(), StoreError> {
        self.asked.send_modify(|asked| *asked += writes.len());
        let mut gate = self.gate.clone();
        let open = *gate.wait_for(|gate| *gate != Gate::Holds).await.expect("a test");
        assert_ne!(open, Gate::Panics, "as it is meant to");
        Ok(())
    }

    async fn inbox(
        &self,
        _: &UserId,
        _: Option<BroadcastId>,
        _: usize,
    ) -> Result<Vec<InboxRow>, StoreError> {
        unreachable!("an owner reads no rows")
    }

    async fn write_group(&self, _: &[GroupRow]) -> Result<(), StoreError> {
        unreachable!("the record is for one user")
    }

    async fn group(
        &self,
        _: LogIdentity,
        _: u16,
        _: u64,
        _: usize,
    ) -> Result<Vec<GroupRow>, StoreError> {
        unreachable!("an owner reads no rows")
    }

    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError> {
        Ok(vec![None; ids.len()])
    }

    async fn write_cursor(
        &self,
        _: &UserId,
        _: LogIdentity,
        _: &[(Partition, u64)],
    ) -> Result<(), StoreError> {
        unreachable!("an owner knows no streams")
    }

    async fn cursor(
        &self,
        _: &UserId,
        _: LogIdentity,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        unreachable!("an owner knows no streams")
    }
}

/// A log that holds dead letters back.
struct GatedLog {
    log: Arc<dyn Log>,
    gate: watch::Receiver<Gate>,
    asked: watch::Sender<usize>,
}

#[async_trait]
impl Log for GatedLog {
    async fn shape(&self) -> Result<LogShape, LogError> {
        self.log.shape().await
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, LogError> {
        self.log.bounds(partition).await
    }

    async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        unreachable!("an owner publishes nothing here")
    }

    async fn append_moved(&self, records: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        self.asked.send_modify(|asked| *asked += records.len());
        let mut gate = self.gate.clone();
        gate.wait_for(|gate| *gate != Gate::Holds).await.expect("a test");
        self.log.append_moved(records).await
    }

    async fn fetch(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait_max: Duration,
    ) -> Result<Vec<Batch>, LogError> {
        self.log.fetch(wants, bytes_max, wait_max).await
    }
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
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 3 };
        let clock = Arc::new(SystemClock);
        let embedded = Embedded::open(&options, clock.clone()).expect("opens");
        let (log, ownership) = (embedded.log(), embedded.ownership(true));
        let value = r#"{"broadcastId":1,"userId":"ann","eventType":"CREATED","message":"hi"}"#;
        let record = NewRecord {
            topic: Topic::Selected,
            key: Bytes::from_static(b"ann"),
            value: Bytes::from_static(value.as_bytes()),
            headers: Vec::new(),
        };
        let place = log.append(vec![record]).await.expect("appended")[0];
        let (gate, gated) = watch::channel(Gate::Holds);
        let (ask, asked) = watch::channel(0);
        let owner = Owner {
            log,
            ownership: ownership.clone(),
            store: embedded.store(),
            inbox: Arc::new(Gated { gate: gated, asked: ask }),
            parking: embedded.parking(),
            dead_letters: embedded.dead_letters(),
            clock,
            names: LogNames::default(),
            retention: Duration::from_secs(3_600),
            is_testing: false,
            unknown_is_for_all: false,
            counters: Arc::default(),
        };
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
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 3 };
    let clock = Arc::new(SystemClock);
    let embedded = Embedded::open(&options, clock.clone()).expect("opens");
    let ownership = embedded.ownership(true);
    let bad = NewRecord {
        topic: Topic::Group,
        key: Bytes::from_static(b"7"),
        value: Bytes::from_static(b"not JSON"),
        headers: vec![Header { name: Bytes::from_static(b"h"), value: None }],
    };
    let place = embedded.log().append(vec![bad.clone()]).await.expect("appended")[0];
    let (gate, gated) = watch::channel(Gate::Holds);
    let (ask, mut asked) = watch::channel(0);
    let counters = Arc::<OwnerCounters>::default();
    let owner = Owner {
        log: Arc::new(GatedLog { log: embedded.log(), gate: gated, asked: ask }),
        ownership: ownership.clone(),
        store: embedded.store(),
        inbox: embedded.inbox(),
        dead_letters: embedded.dead_letters(),
        clock,
        names: LogNames::default(),
        retention: Duration::from_secs(3_600),
        parking: embedded.parking(),
        is_testing: false,
        unknown_is_for_all: false,
        counters: counters.clone(),
    };
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
