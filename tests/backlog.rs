//! What the store is asked for a client, and how much work that may be, however old its cursor is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use corecast::base::{
    BroadcastId, EpochMillis, LogIdentity, LogShape, Partition, Position, Priority, Status,
    TargetType, Topic, UserId,
};
use corecast::control::{KeptParts, KeptStore};
use corecast::domain::{Backlog, Broadcast, SINCE_EVER, Served, Target};
use corecast::lane::Ask;
use corecast::limits::keeping as limits;
use corecast::ports::{
    Batch, Bounds, Commit, Content, Delivery, GroupRow, Inbox, InboxRow, InboxWrite, Log, LogError,
    Mark, MovedRecord, NewRecord, Owned, Ownership, Place, Progress, Standing, StoreError,
    SystemClock, Want,
};
use corecast::wire::frame::GapReason;

const SHAPE: LogShape =
    LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 1, group_partitions: 1 };
const CHECKPOINT: u64 = 1 << 30;

/// A log and owners that have kept all of it, and an inbox with a row for every offset.
#[derive(Default)]
struct Stub {
    /// Rows of the inbox.
    rows: u64,
    content_bytes: usize,
    /// How far the row of this offset has come, and how its broadcast stands.
    stands: BTreeMap<u64, (Delivery, Status)>,
    is_away: bool,
    rows_read: AtomicUsize,
    contents_read: AtomicUsize,
    delivered: Mutex<Vec<u64>>,
}

impl Stub {
    fn stands(&self, offset: u64) -> (Delivery, Status) {
        self.stands.get(&offset).copied().unwrap_or((Delivery::Delivered, Status::Active))
    }
}

fn unused<T>() -> Result<T, LogError> {
    Err(LogError::Failed("nobody here asks for it".to_owned()))
}

#[async_trait]
impl Log for Stub {
    async fn shape(&self) -> Result<LogShape, LogError> {
        Ok(SHAPE)
    }

    async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
        unused()
    }

    async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        unused()
    }

    async fn append_moved(&self, _: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        unused()
    }

    async fn fetch(&self, _: &[Want], _: usize, _: Duration) -> Result<Vec<Batch>, LogError> {
        unused()
    }
}

#[async_trait]
impl Ownership for Stub {
    async fn run(&self, _: &(dyn Fn(Standing) + Sync)) -> LogError {
        std::future::pending().await
    }

    async fn owned(&self, _: &Owned) -> Owned {
        std::future::pending().await
    }

    async fn checkpoints(&self) -> Result<BTreeMap<Partition, u64>, LogError> {
        Ok(SHAPE.all_partitions().map(|partition| (partition, CHECKPOINT)).collect())
    }

    async fn commit(&self, _: &[Mark]) -> Result<Vec<Commit>, LogError> {
        unused()
    }

    async fn leave(&self) {}
}

#[async_trait]
impl Inbox for Stub {
    async fn write_inbox(&self, writes: &[InboxWrite]) -> Result<(), StoreError> {
        let delivered = writes.iter().map(|write| write.broadcast.get());
        self.delivered.lock().expect("nobody panicked").extend(delivered);
        Ok(())
    }

    async fn inbox(
        &self,
        _: &UserId,
        after: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<InboxRow>, StoreError> {
        if self.is_away {
            return Err(StoreError::Away("as told".to_owned()));
        }
        let first = after.map_or(0, |after| after.get() + 1);
        let row = |offset| InboxRow {
            broadcast: BroadcastId::new(offset).expect("small"),
            place: Some(Place {
                log: SHAPE.identity,
                position: Position { partition: own(), offset },
                appended_at: EpochMillis(offset),
            }),
            progress: Progress { attempt: 0, delivery: self.stands(offset).0 },
            delivered_at: None,
        };
        let rows: Vec<_> = (first..self.rows).take(limit).map(row).collect();
        self.rows_read.fetch_add(rows.len(), Ordering::Relaxed);
        Ok(rows)
    }

    async fn write_group(&self, _: &[GroupRow]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn group(
        &self,
        _: LogIdentity,
        _: u16,
        _: u64,
        _: usize,
    ) -> Result<Vec<GroupRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn write_contents(&self, _: &[Broadcast]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError> {
        self.contents_read.fetch_add(ids.len(), Ordering::Relaxed);
        let content = |id: &BroadcastId| {
            let broadcast = Broadcast {
                id: *id,
                correlation_id: String::new(),
                sender_id: None,
                sender_name: None,
                content: "x".repeat(self.content_bytes),
                target: Target { r#type: TargetType::Selected, ids: Vec::new() },
                priority: Priority::Normal,
                category: None,
                created_at: EpochMillis(0),
                scheduled_at: None,
                expires_at: None,
                fire_and_forget: false,
            };
            Some(Content { broadcast, status: Some(self.stands(id.get()).1) })
        };
        Ok(ids.iter().map(content).collect())
    }

    async fn write_cursor(
        &self,
        _: &UserId,
        _: LogIdentity,
        _: &[(Partition, u64)],
    ) -> Result<(), StoreError> {
        Ok(())
    }

    async fn cursor(
        &self,
        _: &UserId,
        _: LogIdentity,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        Ok(Vec::new())
    }
}

fn own() -> Partition {
    Partition { topic: Topic::Selected, index: 0 }
}

/// What a client gets that presents a cursor at this offset, or none.
fn ask(stub: &Arc<Stub>, cursor: Option<u64>) -> Option<Backlog> {
    let kept = KeptStore::new(KeptParts {
        log: stub.clone(),
        ownership: stub.clone(),
        inbox: stub.clone(),
        clock: Arc::new(SystemClock),
        retention: Duration::from_secs(3_600),
        messages_max: limits::BACKLOG_MESSAGES_MAX,
    });
    let served = |own| Served { own_partition: 0, own, group: [0].into() };
    let ask = Ask {
        shard: 0,
        key: 0,
        user: UserId::new("somebody").expect("a user id"),
        members: Vec::new(),
        progress: cursor.map(|own| (served(own), SINCE_EVER)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(kept.backlog(&ask)).ok()
}

fn offsets(backlog: &Backlog) -> Vec<u64> {
    let messages = backlog.messages.iter();
    messages.filter_map(|message| Some(message.candidate.position?.offset)).collect()
}

#[test]
fn behind_a_cursor_rows_come_in_any_state_but_superseded() {
    use Delivery::{Delivered, Failed, Pending};
    let stands = [
        (0, (Pending, Status::Active)),
        (1, (Delivered, Status::Active)),
        (2, (Pending, Status::Active)),
        (3, (Delivered, Status::Active)),
        (4, (Failed, Status::Active)),
        (5, (Pending, Status::Cancelled)),
        (6, (Delivered, Status::Expired)),
        (7, (Pending, Status::Active)),
    ];
    for (cursor, expected, delivered) in [
        (None, &[0, 2, 7][..], &[][..]),
        (Some(0), &[0, 1, 2, 3, 4, 7], &[]),
        (Some(2), &[2, 3, 4, 7], &[0]),
        (Some(7), &[7], &[0, 2, 5]),
        (Some(CHECKPOINT + 9), &[], &[0, 2, 5, 7]),
    ] {
        let stub = Arc::new(Stub { rows: 8, stands: stands.into(), ..Stub::default() });
        let backlog = ask(&stub, cursor).expect("the store is there");
        assert_eq!(offsets(&backlog), expected, "from {cursor:?}");
        assert_eq!((backlog.is_cut, backlog.gap), (false, None));
        assert_eq!(backlog.checkpoint.own, CHECKPOINT.max(cursor.unwrap_or(0)));
        let noted = stub.delivered.lock().expect("nobody panicked");
        assert_eq!(*noted, delivered, "what {cursor:?} covers has reached the user");
    }
}

#[test]
fn the_oldest_cursor_costs_bounded_work() {
    for (rows, content_bytes, stands) in [
        (1 << 40, 10, BTreeMap::new()),
        (1 << 40, 60_000, BTreeMap::new()),
        // None of them is to be served.
        (
            1 << 40,
            10,
            (0..200_000).map(|offset| (offset, (Delivery::Pending, Status::Cancelled))).collect(),
        ),
    ] {
        let is_for_nobody = !stands.is_empty();
        let stub = Arc::new(Stub { rows, content_bytes, stands, ..Stub::default() });
        let backlog = ask(&stub, Some(0)).expect("the store is there");
        assert!(stub.rows_read.load(Ordering::Relaxed) <= limits::INBOX_ROWS_MAX);
        assert!(stub.contents_read.load(Ordering::Relaxed) <= limits::INBOX_ROWS_MAX);
        let messages = backlog.messages.len();
        assert!(messages <= limits::BACKLOG_MESSAGES_MAX, "{messages} in one piece");
        let bytes: usize = backlog.messages.iter().map(|message| message.body.len()).sum();
        assert!(bytes < limits::BACKLOG_BYTES_MAX + content_bytes + 1_000, "{bytes} in one piece");
        assert_eq!((backlog.is_cut, messages == 0), (!is_for_nobody, is_for_nobody));
        // What was not looked at is not passed over in silence.
        let gap = backlog.gap.expect("there is more than is looked at");
        assert_eq!((gap.reason, gap.from), (GapReason::Limit, EpochMillis(99_999)));
    }
}

#[test]
fn with_the_store_away_nothing_is_said() {
    let stub = Arc::new(Stub { rows: 8, is_away: true, ..Stub::default() });
    assert_eq!(ask(&stub, Some(0)), None);
}
