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
use corecast::domain::{
    Backlog, Broadcast, Ended, KeptMessage, Membership, Presented, SINCE_EVER, Served, Target, What,
};
use corecast::lane::Ask;
use corecast::limits::keeping as limits;
use corecast::ports::{
    Batch, Bounds, Commit, Content, Delivery, GroupRow, GroupWhat, Hole, Inbox, InboxRow,
    InboxWrite, Log, LogError, Mark, MovedRecord, NewRecord, Owned, Ownership, Place, Progress,
    Removal, Standing, StoreError, SystemClock, Want,
};
use corecast::wire::archive::MemberKind;
use corecast::wire::frame::GapReason;

const SHAPE: LogShape =
    LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 1, group_partitions: 1 };
const OLD: LogShape =
    LogShape { identity: LogIdentity([7, 7, 7]), selected_partitions: 1, group_partitions: 1 };
const CHECKPOINT: u64 = 1 << 30;
/// The node has read the log up to here, and this is where it ends.
const READ: u64 = CHECKPOINT + 100;
const END: u64 = READ + 100;
const PRESENTED_AT: EpochMillis = EpochMillis(3_600_077);
/// The ids of group broadcasts begin here.
const GROUP_FIRST: u64 = 1 << 50;

/// A log and owners that have kept all of it, and an inbox with a row for every offset.
#[derive(Default)]
struct Stub {
    /// Rows of the inbox.
    rows: u64,
    /// Group rows, each for the role that its offset names.
    groups: u64,
    /// Offsets of the group rows that took their broadcast away.
    removals: Vec<u64>,
    /// Rows below this stand in a log that is no more, and as many group rows that are for all.
    old_rows: u64,
    /// Offsets of the rows whose messages are no more.
    removed: Vec<u64>,
    /// Rows below this stand in a partition that was the user's before there were more of them.
    moved_rows: u64,
    content_bytes: usize,
    /// How far the row of this offset has come, and how its broadcast stands.
    stands: BTreeMap<u64, (Delivery, Status)>,
    is_away: bool,
    is_log_away: bool,
    checkpoint: Option<u64>,
    bounds_asked: AtomicUsize,
    /// The cursor that is stored, of the group partition.
    stored: Option<u64>,
    holes: Vec<Hole>,
    rows_read: AtomicUsize,
    contents_read: AtomicUsize,
    delivered: Mutex<Vec<u64>>,
}

impl Stub {
    fn stands(&self, offset: u64) -> (Delivery, Status) {
        let stands = self.stands.get(&offset).copied();
        let (delivery, status) = stands.unwrap_or((Delivery::Delivered, Status::Active));
        let is_noted = self.delivered.lock().expect("nobody panicked").contains(&offset);
        (if is_noted { Delivery::Delivered } else { delivery }, status)
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
        self.bounds_asked.fetch_add(1, Ordering::Relaxed);
        if self.is_log_away {
            return Err(LogError::Away("as told".to_owned()));
        }
        Ok(Bounds { start: 0, end: END })
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
        let checkpoint = self.checkpoint.unwrap_or(CHECKPOINT);
        Ok(SHAPE.all_partitions().map(|partition| (partition, checkpoint)).collect())
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
        let place = |offset| Place {
            log: if offset < self.old_rows { OLD.identity } else { SHAPE.identity },
            position: Position {
                partition: Partition { index: u16::from(offset < self.moved_rows), ..own() },
                offset,
            },
            appended_at: EpochMillis(offset),
        };
        let row = |offset| InboxRow {
            broadcast: BroadcastId::new(offset).expect("small"),
            place: Some(place(offset)),
            progress: Progress { attempt: 0, delivery: self.stands(offset).0 },
            delivered_at: Some(EpochMillis(offset)),
            removed: self.removed.contains(&offset).then(|| place(offset)),
        };
        let rows: Vec<_> = (first..self.rows).take(limit).map(row).collect();
        self.rows_read.fetch_add(rows.len(), Ordering::Relaxed);
        Ok(rows)
    }

    async fn write_removals(&self, _: &[Removal]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn write_group(&self, _: &[GroupRow]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn group(
        &self,
        log: LogIdentity,
        index: u16,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GroupRow>, StoreError> {
        let partition = Partition { topic: Topic::Group, index };
        let row = |offset| GroupRow {
            broadcast: BroadcastId::new(GROUP_FIRST + offset).expect("small"),
            what: match self.removals.contains(&offset) {
                true => GroupWhat::Removed,
                false => GroupWhat::Created,
            },
            place: Place {
                log,
                position: Position { partition, offset },
                appended_at: EpochMillis(offset),
            },
            keep_until: EpochMillis::MAX,
        };
        let end = if log == OLD.identity { self.old_rows } else { self.groups };
        Ok((from..end).take(limit).map(row).collect())
    }

    async fn write_holes(&self, _: LogIdentity, _: &[Hole]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn holes(&self, log: LogIdentity) -> Result<Vec<Hole>, StoreError> {
        Ok(if log == SHAPE.identity { self.holes.clone() } else { Vec::new() })
    }

    async fn write_contents(&self, _: &[Broadcast]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError> {
        self.contents_read.fetch_add(ids.len(), Ordering::Relaxed);
        // Whoever asks beside this one comes between.
        tokio::task::yield_now().await;
        let content = |id: &BroadcastId| {
            let target = match id.get().checked_sub(GROUP_FIRST) {
                None => Target { r#type: TargetType::Selected, ids: Vec::new() },
                Some(_) if self.groups == 0 => Target { r#type: TargetType::All, ids: Vec::new() },
                Some(role) => Target { r#type: TargetType::Role, ids: vec![role.to_string()] },
            };
            let broadcast = Broadcast {
                id: *id,
                correlation_id: String::new(),
                sender_id: None,
                sender_name: None,
                content: "x".repeat(self.content_bytes),
                target,
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
        Ok(self.stored.map(|next| (group(), next)).into_iter().collect())
    }
}

fn group() -> Partition {
    Partition { topic: Topic::Group, index: 0 }
}

fn own() -> Partition {
    Partition { topic: Topic::Selected, index: 0 }
}

fn kept(stub: &Arc<Stub>) -> KeptStore {
    kept_in_pieces(stub, limits::BACKLOG_MESSAGES_MAX)
}

fn kept_in_pieces(stub: &Arc<Stub>, messages_max: usize) -> KeptStore {
    KeptStore::new(KeptParts {
        log: stub.clone(),
        ownership: stub.clone(),
        inbox: stub.clone(),
        clock: Arc::new(SystemClock),
        retention: Duration::from_secs(3_600),
        messages_max,
    })
}

/// What a client gets that presents a cursor at this offset, or none.
fn ask(stub: &Arc<Stub>, cursor: Option<u64>) -> Option<Backlog> {
    ask_as(&kept(stub), &[], cursor, None)
}

/// The same of somebody with roles, with a cursor of this log, which is no more.
fn ask_as(
    kept: &KeptStore,
    roles: &[u64],
    cursor: Option<u64>,
    replaced: Option<LogShape>,
) -> Option<Backlog> {
    ask_by(kept, roles, cursor.map(|own| presented((own, 0), replaced)))
}

/// A cursor that says this of its user's partition and of the groups'.
fn presented((own, group): (u64, u64), replaced: Option<LogShape>) -> Presented {
    Presented {
        served: Served { own_partition: 0, own, group: [group].into() },
        at: PRESENTED_AT,
        since: SINCE_EVER,
        replaced,
        is_in_ring: false,
    }
}

fn ask_by(kept: &KeptStore, roles: &[u64], presented: Option<Presented>) -> Option<Backlog> {
    run(kept.backlog(&asked(roles, presented))).ok()
}

fn asked(roles: &[u64], presented: Option<Presented>) -> Ask {
    let role = |role: &u64| Membership { kind: MemberKind::Role, name: role.to_string().into() };
    Ask {
        shard: 0,
        key: 0,
        user: UserId::new("somebody").expect("a user id"),
        members: roles.iter().map(role).collect(),
        read: Served { own_partition: 0, own: READ, group: [READ].into() },
        ring: Served { own_partition: 0, own: 0, group: [0].into() },
        presented,
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
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
        // Of what has ended nobody knows whether it came.
        (Some(7), &[7], &[0, 2]),
        (Some(CHECKPOINT + 9), &[], &[0, 2, 7]),
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

/// More contents than a node remembers.
#[test]
fn whom_a_group_broadcast_is_for_is_read_once() {
    const GROUPS: u64 = 2_000;
    let stub = Arc::new(Stub { groups: GROUPS, content_bytes: 60_000, ..Stub::default() });
    assert!(GROUPS as usize * stub.content_bytes > limits::CONTENTS_BYTES_MAX);
    let kept = kept(&stub);
    let read = |roles: &[u64]| {
        let before = stub.contents_read.load(Ordering::Relaxed);
        let backlog = ask_as(&kept, roles, None, None).expect("the store is there");
        assert_eq!(offsets(&backlog), roles);
        stub.contents_read.load(Ordering::Relaxed) - before
    };
    assert_eq!(read(&[]), GROUPS as usize, "the first one finds out");
    assert_eq!(read(&[]), 0, "who gets nothing");
    let theirs = [3, 700, 1_400, 1_999];
    assert!(read(&theirs) <= theirs.len(), "who gets some reads no others");
    assert_eq!(read(&theirs), 0, "what is asked for again is still known");
}

/// In this log, and in one that is no more.
#[test]
fn what_took_a_broadcast_away_is_no_message() {
    let removals = || vec![2, 4];
    let stub = Arc::new(Stub { groups: 6, removals: removals(), ..Stub::default() });
    let backlog = ask_as(&kept(&stub), &[0, 1, 2, 3, 4, 5], None, None);
    assert_eq!(offsets(&backlog.expect("the store is there")), [0, 1, 3, 5]);
    let stub = Arc::new(Stub { old_rows: 6, removals: removals(), ..Stub::default() });
    let backlog = ask_as(&kept(&stub), &[], Some(0), Some(OLD));
    assert_eq!(offsets(&backlog.expect("the store is there")), [0, 1, 3, 5]);
}

/// No shard would begin it, and of a log that is no more no cursor would say that it is over: its
/// client would be given the same piece for ever.
#[test]
fn what_has_been_removed_in_an_older_log_is_no_message() {
    // In this log it counts as served once the shard has passed it.
    for (old_rows, due) in [(0, vec![0, 1, 2, 3, 4, 5]), (6, vec![0, 2, 3, 5])] {
        let pending = (0..6).map(|offset| (offset, (Delivery::Pending, Status::Active)));
        let stands = pending.collect();
        let stub = Stub { rows: 6, old_rows, removed: vec![1, 4], stands, ..Stub::default() };
        let backlog = ask(&Arc::new(stub), None).expect("the store is there");
        let whats = backlog.messages.iter().map(|message| &message.candidate.what);
        let ids: Vec<u64> =
            whats.filter_map(|what| what.broadcast().map(BroadcastId::get)).collect();
        assert_eq!(ids, due, "{old_rows} rows of an older log");
    }
}

/// A crowd at a node that has just started.
#[test]
fn what_many_ask_for_at_once_is_read_once() {
    const GROUPS: u64 = 1_050;
    let stub = Arc::new(Stub { groups: GROUPS, ..Stub::default() });
    let kept = kept(&stub);
    let ask = asked(&[], None);
    let asks = || kept.backlog(&ask);
    let (warm, one, two, three) = run(async { tokio::join!(kept.warm(), asks(), asks(), asks()) });
    warm.expect("the store is there");
    for backlog in [one, two, three] {
        assert!(backlog.expect("the store is there").messages.is_empty());
    }
    assert_eq!(stub.contents_read.load(Ordering::Relaxed), GROUPS as usize);
}

/// A piece of them is read, not all that waits.
#[test]
fn no_more_contents_are_read_than_a_piece_takes() {
    let stub = Arc::new(Stub { rows: 1_000, content_bytes: 60_000, ..Stub::default() });
    let backlog = ask(&stub, Some(0)).expect("the store is there");
    assert!(backlog.is_cut);
    let read = stub.contents_read.load(Ordering::Relaxed);
    assert!(read <= backlog.messages.len() + limits::CONTENTS_READ, "{read} contents read");
}

#[test]
fn of_a_log_that_is_no_more_comes_what_is_kept_and_then_all_of_this_one() {
    let pending = [1, 4, 9].map(|offset| (offset, (Delivery::Pending, Status::Active)));
    let stub = Stub { rows: 10, old_rows: 6, stands: pending.into(), ..Stub::default() };
    let stub = Arc::new(stub);
    let backlog = ask_as(&kept(&stub), &[], Some(3), Some(OLD)).expect("the store is there");
    assert_eq!((backlog.replaced, backlog.progress.own), (Some(OLD), 3));
    let mut of_users = offsets(&backlog);
    of_users.sort_unstable();
    // Its group rows too, of which the cursor covers none.
    assert_eq!(of_users, [0, 1, 2, 3, 3, 4, 4, 5, 5]);
    let gap = backlog.gap.expect("what nobody had kept is gone");
    assert_eq!((gap.reason, gap.from), (GapReason::LogReplaced, PRESENTED_AT));
    let then = backlog.then.expect("this log");
    assert_eq!((then.progress.own, then.replaced, then.since), (0, None, SINCE_EVER));
    assert_eq!(offsets(&then), [6, 7, 8, 9]);
    assert_eq!(then.messages.len(), 4, "nothing of the old one again");
    assert_eq!(*stub.delivered.lock().expect("nobody panicked"), [1], "the cursor covers it");
    // Without a cursor what waits comes, in whichever log it stands.
    let fresh = ask(
        &Arc::new(Stub { rows: 10, old_rows: 6, stands: pending.into(), ..Stub::default() }),
        None,
    );
    let fresh = fresh.expect("the store is there");
    let ids = fresh
        .messages
        .iter()
        .filter_map(|message| message.candidate.what.broadcast().map(BroadcastId::get));
    assert_eq!(ids.collect::<Vec<_>>(), [1, 4, 9]);
}

/// Word of it goes out before anything that lies behind it, once for what several have noted.
#[test]
fn what_the_log_has_lost_is_told_of_behind_a_cursor() {
    let hole = |partition, from, to| Hole { partition, from, to, noted_at: EpochMillis(77) };
    let others = Partition { topic: Topic::Selected, index: 1 };
    let holes = vec![
        hole(own(), 20, 30),
        hole(own(), 25, 40),
        hole(own(), 50, 52),
        // Of another user, and of what is not durable yet.
        hole(others, 0, 90),
        hole(group(), CHECKPOINT + 1, CHECKPOINT + 2),
    ];
    let stands = (20..40).map(|offset| (offset, (Delivery::Failed, Status::Cancelled)));
    let stub = Stub { rows: 60, holes, stands: stands.collect(), ..Stub::default() };
    let stub = Arc::new(stub);
    let told = |cursor| {
        let backlog = ask(&stub, cursor).expect("the store is there");
        let told = |message: &KeptMessage| match message.candidate.what {
            What::Gap(gap) => Some((message.candidate.position?.offset, gap.reason)),
            What::Message(_) | What::Removed(_) => None,
        };
        let order: Vec<u64> = offsets(&backlog);
        assert!(order.is_sorted(), "{order:?}");
        backlog.messages.iter().filter_map(told).collect::<Vec<_>>()
    };
    // Rows 50 and 51 are kept all the same: it is told before them.
    let both = [(20, GapReason::Retention), (50, GapReason::Retention)];
    assert_eq!(told(Some(0)), both);
    assert_eq!(told(Some(19)), both);
    assert_eq!(told(Some(39)).len(), 2, "the end of it is behind this cursor");
    assert_eq!(told(Some(40)), both[1..]);
    assert_eq!(told(Some(52)), []);
    assert_eq!(told(None), [], "nobody says what he had");
    // Nor is who came without a cursor, and breaks off in the middle of his backlog.
    let hour = Duration::from_secs(3_600);
    let begun = |since| Some(Presented { since, ..presented((0, 0), None) });
    let gaps = |since| {
        let backlog = ask_by(&kept(&stub), &[], begun(since)).expect("the store is there");
        let messages = backlog.messages.iter();
        messages.filter(|message| matches!(message.candidate.what, What::Gap(_))).count()
    };
    assert_eq!(gaps(EpochMillis(78).plus(hour)), 0, "that was noted before he came");
    assert_eq!(gaps(EpochMillis(77).plus(hour)), 2, "clocks differ");
}

/// Word of a hole moves no cursor where a message in it is kept all the same.
#[test]
fn every_piece_of_a_backlog_gets_further_whatever_the_log_has_lost() {
    let hole = |from| Hole { partition: own(), from, to: from + 2, noted_at: EpochMillis(77) };
    let holes = vec![hole(3), hole(6), hole(9)];
    let stub = Arc::new(Stub { rows: 12, holes, ..Stub::default() });
    let kept = kept_in_pieces(&stub, 1);
    let (mut at, mut told) = (0, Vec::new());
    loop {
        let mut backlog = ask_by(&kept, &[], Some(presented((at, 0), None))).expect("it is there");
        let before = at;
        while let Some((message, served)) = backlog.next(EpochMillis(0), &Ended::default()) {
            told.push((matches!(message.candidate.what, What::Gap(_)), served.own));
            at = served.own;
        }
        if !backlog.is_cut {
            break;
        }
        assert!(at > before, "{told:?}");
    }
    let of = |is_gap| told.iter().filter(move |told| told.0 == is_gap).map(|told| told.1);
    // Who goes on in the middle of one is told again.
    assert_eq!(of(true).collect::<Vec<_>>(), [3, 4, 6, 7, 9, 10]);
    assert_eq!(of(false).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_cursor_from_elsewhere_is_as_good_as_none() {
    let pending = [1, 4].map(|offset| (offset, (Delivery::Pending, Status::Active)));
    let stub = Arc::new(Stub { rows: 6, stands: pending.into(), ..Stub::default() });
    let backlog = ask_as(&kept(&stub), &[], Some(3), Some(OLD)).expect("the store is there");
    assert_eq!((backlog.replaced, backlog.gap, backlog.is_resumed), (None, None, false));
    assert_eq!(offsets(&backlog), [1, 4]);
}

#[test]
fn a_cursor_from_ahead_of_the_log_is_served_by_time() {
    for ahead in [(END + 1, 3), (3, END + 1), (u64::MAX >> 16, u64::MAX >> 16)] {
        // Rows were appended, and delivered, in the millisecond of their offset.
        let stands = [(20, (Delivery::Pending, Status::Active))];
        let stub = Stub { rows: 200, groups: 200, stands: stands.into(), ..Stub::default() };
        let stub = Arc::new(stub);
        let roles: Vec<u64> = (0..200).collect();
        let kept = kept(&stub);
        let backlog = ask_by(&kept, &roles, Some(presented(ahead, None))).expect("it is there");
        // From an hour before the cursor's time on, whoever had it, and what waits.
        let due = [20].into_iter().chain(77..200).chain(77..200).collect::<Vec<_>>();
        let mut found = offsets(&backlog);
        found.sort_unstable();
        let mut sorted = due.clone();
        sorted.sort_unstable();
        assert_eq!(found, sorted, "ahead at {ahead:?}");
        assert_eq!((backlog.is_resumed, backlog.progress.own), (false, 20));
        assert_eq!(&*backlog.progress.group, [77], "what came before is not served");
        let gap = backlog.gap.expect("what stood between is gone");
        assert_eq!((gap.reason, gap.from), (GapReason::LogReplaced, PRESENTED_AT));
        assert!(stub.delivered.lock().expect("nobody panicked").is_empty(), "nothing is noted");
        // It is taken up in the middle like any other: from an hour before its time on.
        let mut middle = presented((21, 77), None);
        middle.since = backlog.since.plus(limits::CLOCKS_DIFFER);
        let rest = ask_by(&kept, &roles, Some(middle)).expect("it is there");
        let mut found = offsets(&rest);
        found.sort_unstable();
        assert_eq!(found, sorted[1..], "in the middle of it");
    }
}

#[test]
fn what_stands_in_the_partition_that_was_the_users_is_served() {
    let pending = [2, 8, 90].map(|offset| (offset, (Delivery::Pending, Status::Active)));
    let stub = Stub { rows: 100, moved_rows: 50, stands: pending.into(), ..Stub::default() };
    let stub = Arc::new(stub);
    let ids = |backlog: &Backlog| {
        let ids = backlog
            .messages
            .iter()
            .filter_map(|message| message.candidate.what.broadcast().map(BroadcastId::get));
        ids.collect::<Vec<_>>()
    };
    // Without a cursor what waits; nothing is taken for delivered because its offset is low.
    let fresh = ask(&stub, None).expect("it is there");
    assert_eq!(ids(&fresh), [2, 8, 90]);
    assert!(stub.delivered.lock().expect("nobody panicked").is_empty());
    // With one from before, what was delivered of late as well: nothing tells whether to it.
    let since = EpochMillis(40).plus(limits::CLOCKS_DIFFER);
    let cursor = Presented { since, ..presented((60, 0), None) };
    let resumed = ask_by(&kept(&stub), &[], Some(cursor)).expect("it is there");
    let due: Vec<u64> = [2, 8].into_iter().chain(40..50).chain(60..100).collect();
    let mut found = ids(&resumed);
    found.sort_unstable();
    assert_eq!(found, due);
}

#[test]
fn the_log_is_asked_only_about_what_nobody_knows() {
    let stub = Arc::new(Stub::default());
    let kept = kept(&stub);
    let is_resumed = |own| {
        let in_ring = Presented { is_in_ring: true, ..presented((own, 0), None) };
        ask_by(&kept, &[], Some(in_ring)).expect("it is there").was_served_before()
    };
    let asked = || stub.bounds_asked.load(Ordering::Relaxed);
    assert!(is_resumed(READ));
    assert_eq!(asked(), 0, "this node has read as much");
    assert!(is_resumed(READ + 1));
    assert!((READ..=END).all(is_resumed));
    assert_eq!(asked(), 1, "once it is known how far the log is");
    assert!(!is_resumed(END + 1));
    assert_eq!(stub.rows_read.load(Ordering::Relaxed), 0, "all of it is in the ring");
    // With the log away nobody knows, and the client comes back.
    let stub = Arc::new(Stub { is_log_away: true, ..Stub::default() });
    let cursor = |own| Some(presented((own, 0), None));
    assert!(ask_by(&self::kept(&stub), &[], cursor(READ)).is_some());
    assert!(ask_by(&self::kept(&stub), &[], cursor(READ + 1)).is_none());
}

#[test]
fn a_checkpoint_from_ahead_of_the_log_is_nobodys() {
    for (checkpoint, counts) in [(END, END), (END + 1, 0)] {
        let pending = [(7, (Delivery::Pending, Status::Active))];
        let stub = Stub { checkpoint: Some(checkpoint), rows: 9, groups: 9, ..Stub::default() };
        let stub = Arc::new(Stub { stands: pending.into(), ..stub });
        let kept = kept(&stub);
        let backlog = ask_by(&kept, &[3], None).expect("it is there");
        // Of what is not known to be kept, the log tells.
        let due: &[u64] = if counts > 0 { &[3, 7] } else { &[] };
        assert_eq!(offsets(&backlog), due, "at {checkpoint}");
        assert_eq!((backlog.checkpoint.own, &*backlog.checkpoint.group), (counts, &[counts][..]));
    }
}

#[test]
fn a_stored_cursor_from_ahead_of_the_log_counts_for_nothing() {
    for (stored, first) in [(150, 150), (END, CHECKPOINT), (END + 1, 0)] {
        let stub = Stub { groups: 200, stored: Some(stored), ..Stub::default() };
        let roles: Vec<u64> = (0..200).collect();
        let kept = kept(&Arc::new(stub));
        let backlog = ask_by(&kept, &roles, None).expect("it is there");
        let due: Vec<u64> = (first..200).collect();
        assert_eq!(offsets(&backlog), due, "a stored cursor at {stored}");
        let checkpoint = if stored == END { END } else { CHECKPOINT };
        assert_eq!(&*backlog.checkpoint.group, [checkpoint]);
    }
}

#[test]
fn with_the_store_away_nothing_is_said() {
    let stub = Arc::new(Stub { rows: 8, is_away: true, ..Stub::default() });
    assert_eq!(ask(&stub, Some(0)), None);
}
