//! A store that behaves as badly as it may: calls take their time, are answered with Away though
//! they were done, or are done long after that, row by row.
//!
//! Rows merge as a maximum. Whatever is written lands at a moment of its own; a crash in the middle
//! of a call takes with it what has not been sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use corecast::base::{
    BroadcastId, End, EpochMillis, LogIdentity, Moment, Partition, Status, UserId,
};
use corecast::domain::Broadcast;
use corecast::ports::{
    Bucket, Change, Claim, Content, ControlRead, ControlTopic, Delivery, Due, Ending, Endings,
    GroupRow, Hole, Inbox, InboxRow, InboxWrite, LogError, NotedEnding, Parked, Progress, Removal,
    StoreError,
};
use uuid::Uuid;

use crate::parking::{Key, key_of};
use crate::random::{Random, Seen};
use crate::sky::{REPLACED, REPLACED_START, wall_at};

/// What one row of a call writes.
#[derive(Clone, Debug)]
pub enum Piece {
    Inbox(InboxWrite),
    Removal(Removal),
    Group(GroupRow),
    Cursor { user: UserId, log: LogIdentity, partition: Partition, next: u64 },
    Hole(Hole),
    Content(Box<Broadcast>),
    Park(Box<Parked>),
    Unpark(Key),
    Served(Uuid),
}

/// A row that is on its way.
struct Flying {
    at: Moment,
    call: u64,
    piece: Piece,
}

/// What the oracle has to look at.
#[derive(Clone, Debug)]
pub enum Landed {
    Delivered { user: UserId, broadcast: BroadcastId },
    Cursor { user: UserId, partition: Partition, from: u64, next: u64 },
}

#[derive(Clone, Debug)]
struct Stored {
    /// More than DELIVERED has been written of it.
    is_row: bool,
    row: InboxRow,
    keep_until: corecast::base::EpochMillis,
}

pub struct Shelves {
    random: Random,
    now: Moment,
    pub has_faults: bool,
    /// It does nothing until then, and answers nothing.
    pub away_until: Moment,
    inbox: BTreeMap<(UserId, BroadcastId), Stored>,
    groups: BTreeMap<(Partition, u64), GroupRow>,
    cursors: BTreeMap<(UserId, [u8; 3], Partition), u64>,
    /// By partition and where they begin.
    holes: BTreeMap<(Partition, u64), Hole>,
    contents: BTreeMap<BroadcastId, Content>,
    /// When each was noted as one that is being ended.
    endings: BTreeMap<BroadcastId, EpochMillis>,
    over: BTreeSet<BroadcastId>,
    pub parked: BTreeMap<Key, Parked>,
    unparked: BTreeSet<Key>,
    pub served: BTreeSet<Uuid>,
    flying: Vec<Flying>,
    /// What owners have to tell all nodes.
    pub told: Vec<Bytes>,
    calls: u64,
    /// Calls that were answered while rows of theirs were on their way.
    pub landed: Vec<Landed>,
    pub seen: Seen,
}

/// How one call goes.
struct Fate {
    done_at: Moment,
    is_away: bool,
}

#[derive(Clone)]
pub struct FakeStore(Arc<Mutex<Shelves>>);

impl FakeStore {
    pub fn new(random: Random) -> Self {
        Self(Arc::new(Mutex::new(Shelves {
            random,
            now: Moment(0),
            has_faults: true,
            away_until: Moment(0),
            inbox: BTreeMap::new(),
            groups: BTreeMap::new(),
            cursors: BTreeMap::new(),
            holes: BTreeMap::new(),
            contents: BTreeMap::new(),
            endings: BTreeMap::new(),
            over: BTreeSet::new(),
            parked: BTreeMap::new(),
            unparked: BTreeSet::new(),
            served: BTreeSet::new(),
            flying: Vec::new(),
            told: Vec::new(),
            calls: 0,
            landed: Vec::new(),
            seen: Seen::default(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Shelves> {
        // What fails is told by the first panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has arrived by now is there.
    pub fn handle_time(&self, now: Moment) {
        let mut shelves = self.lock();
        shelves.now = now;
        let (mut landing, flying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut shelves.flying).into_iter().partition(|piece| piece.at <= now);
        shelves.flying = flying;
        landing.sort_by_key(|piece| piece.at);
        landing.into_iter().for_each(|flying| shelves.apply(flying.piece));
    }

    async fn wait_until(&self, at: Moment) {
        std::future::poll_fn(
            |_| {
                if self.lock().now >= at { Poll::Ready(()) } else { Poll::Pending }
            },
        )
        .await;
    }

    pub async fn write(&self, pieces: Vec<Piece>) -> Result<(), StoreError> {
        let (call, fate) = self.lock().begin(pieces);
        let guard = Call { store: self, call };
        self.wait_until(fate.done_at).await;
        std::mem::forget(guard);
        if fate.is_away { Err(StoreError::Away("as drawn".to_owned())) } else { Ok(()) }
    }

    /// Shows what is there at some moment between question and answer.
    pub async fn read<T>(&self, look: impl Fn(&mut Shelves) -> T) -> Result<T, StoreError> {
        let (fate, early) = {
            let mut shelves = self.lock();
            let fate = shelves.draw_fate();
            let is_early = shelves.random.one_in(2);
            let early = is_early.then(|| look(&mut shelves));
            (fate, early)
        };
        self.wait_until(fate.done_at).await;
        if fate.is_away {
            return Err(StoreError::Away("as drawn".to_owned()));
        }
        Ok(early.unwrap_or_else(|| look(&mut self.lock())))
    }
}

/// A write that has not been answered.
struct Call<'a> {
    store: &'a FakeStore,
    call: u64,
}

impl Drop for Call<'_> {
    /// The node is gone: what it has not sent yet never comes.
    fn drop(&mut self) {
        let mut shelves = self.store.lock();
        let flying = std::mem::take(&mut shelves.flying);
        let before = flying.len();
        let mine = flying.iter().filter(|flying| flying.call == self.call).count();
        let sent = shelves.random.below(mine + 1);
        let mut number = 0;
        shelves.flying = flying;
        shelves.flying.retain(|flying| {
            number += usize::from(flying.call == self.call);
            flying.call != self.call || number <= sent
        });
        let lost = before - shelves.flying.len();
        shelves.seen.count("batches cut by a crash", u64::from(lost > 0));
    }
}

impl Shelves {
    /// Whether a row of this targeted message is there, with its place.
    pub fn has_row(&self, user: &UserId, broadcast: BroadcastId) -> bool {
        let stored = self.inbox.get(&(user.clone(), broadcast));
        stored.is_some_and(|stored| stored.is_row && stored.row.place.is_some())
    }

    pub fn holes(&self) -> impl Iterator<Item = &Hole> {
        self.holes.values()
    }

    pub fn has_group(&self, partition: Partition, offset: u64) -> bool {
        self.groups.contains_key(&(partition, offset))
    }

    pub fn row(&self, user: &UserId, broadcast: BroadcastId) -> Option<&InboxRow> {
        let stored = self.inbox.get(&(user.clone(), broadcast));
        stored.filter(|stored| stored.is_row).map(|stored| &stored.row)
    }

    pub fn delivered_of(&self, user: &UserId) -> BTreeSet<BroadcastId> {
        let first = BroadcastId::new(0).expect("small");
        let of_user = self.inbox.range((user.clone(), first)..);
        let of_user = of_user.take_while(|((other, _), _)| other == user);
        let delivered =
            of_user.filter(|(_, stored)| stored.row.progress.delivery == Delivery::Delivered);
        delivered.map(|((_, broadcast), _)| *broadcast).collect()
    }

    pub fn cursor_of(&self, user: &UserId, log: LogIdentity, partition: Partition) -> u64 {
        self.cursors.get(&(user.clone(), log.0, partition)).copied().unwrap_or(0)
    }

    /// What creating a broadcast has made durable before its records are published.
    pub fn put_content(&mut self, broadcast: Broadcast) {
        let id = broadcast.id;
        self.contents.insert(id, Content { broadcast, status: Some(Status::Active) });
    }

    /// Whoever cancels notes that before its status says so.
    pub fn put_ending(&mut self, id: BroadcastId, at: EpochMillis) {
        self.endings.insert(id, at);
    }

    /// It is cancelled; an older producer's that nobody has kept yet is known by its ending.
    pub fn end(&mut self, id: BroadcastId) {
        if let Some(content) = self.contents.get_mut(&id) {
            content.status = Some(Status::Cancelled);
        }
        self.over.insert(id);
    }

    pub fn is_away(&self) -> bool {
        self.now < self.away_until
    }

    fn draw_fate(&mut self) -> Fate {
        if self.is_away() {
            return Fate { done_at: self.now.plus(self.random.millis(6_000)), is_away: true };
        }
        if !self.has_faults {
            return Fate { done_at: self.now, is_away: false };
        }
        let delay = match self.random.below(16) {
            0..=9 => Duration::ZERO,
            10..=14 => self.random.millis(1_000),
            _ => self.random.millis(6_000),
        };
        Fate { done_at: self.now.plus(delay), is_away: self.random.one_in(12) }
    }

    /// Draws how a write goes, and when each of its rows lands.
    fn begin(&mut self, pieces: Vec<Piece>) -> (u64, Fate) {
        self.calls += 1;
        let (call, fate) = (self.calls, self.draw_fate());
        let span = fate.done_at.since(self.now).as_millis() as u64;
        let done_before = fate.is_away && self.random.one_in(3);
        for piece in pieces {
            let within = self.now.plus(self.random.millis(span + 1));
            let at = match fate.is_away {
                // Perhaps it has come as far as some queue.
                true if self.is_away() => {
                    let late = self.away_until.plus(self.random.millis(20_000));
                    self.random.one_in(6).then_some(late)
                }
                false => Some(within),
                true if done_before => Some(within),
                true => match self.random.below(3) {
                    0 => Some(within),
                    1 => Some(fate.done_at.plus(self.random.millis(20_000))),
                    _ => None,
                },
            };
            let Some(at) = at else { continue };
            self.seen.count("writes done though they were away", u64::from(fate.is_away));
            self.seen.count("late writes", u64::from(at > fate.done_at));
            if at <= self.now {
                self.apply(piece);
            } else {
                self.flying.push(Flying { at, call, piece });
            }
        }
        (call, fate)
    }

    fn apply(&mut self, piece: Piece) {
        match piece {
            Piece::Inbox(write) => self.apply_inbox(write),
            Piece::Removal(removal) => self.apply_removal(removal),
            Piece::Group(row) => {
                let position = row.place.position;
                let stored = self.groups.entry((position.partition, position.offset));
                let stored = stored.or_insert(row);
                assert_eq!(stored.broadcast, row.broadcast, "a place says one thing");
                stored.keep_until = stored.keep_until.max(row.keep_until);
            }
            Piece::Cursor { user, log, partition, next } => {
                let stored = self.cursors.entry((user.clone(), log.0, partition)).or_default();
                let from = *stored;
                if next > from {
                    *stored = next;
                    self.landed.push(Landed::Cursor { user, partition, from, next });
                }
            }
            Piece::Hole(hole) => {
                let stored = self.holes.entry((hole.partition, hole.from)).or_insert(hole);
                if hole.to > stored.to {
                    *stored = hole;
                }
            }
            Piece::Content(broadcast) => {
                let content = Content { broadcast: *broadcast, status: None };
                self.contents.entry(content.broadcast.id).or_insert(content);
            }
            Piece::Park(row) => {
                let key = key_of(&row);
                if self.unparked.contains(&key) {
                    self.seen.note("rows that were parked again");
                    if self.random.one_in(2) {
                        return;
                    }
                }
                self.parked.insert(key, *row);
            }
            Piece::Unpark(key) => {
                self.parked.remove(&key);
                self.unparked.insert(key);
            }
            Piece::Served(event) => drop(self.served.insert(event)),
        }
    }

    fn apply_inbox(&mut self, write: InboxWrite) {
        let InboxWrite { user, broadcast, place, progress, at, keep_until } = write;
        let is_delivered = progress.delivery == Delivery::Delivered;
        let new = Stored {
            is_row: !is_delivered,
            row: InboxRow {
                broadcast,
                place,
                progress,
                delivered_at: is_delivered.then_some(at),
                removed: None,
            },
            keep_until,
        };
        if is_delivered {
            self.landed.push(Landed::Delivered { user: user.clone(), broadcast });
        }
        let stored = self.inbox.entry((user, broadcast)).or_insert_with(|| new.clone());
        stored.is_row |= new.is_row;
        stored.keep_until = stored.keep_until.max(new.keep_until);
        let row = &mut stored.row;
        row.progress = row.progress.max(new.row.progress);
        row.delivered_at = row.delivered_at.into_iter().chain(new.row.delivered_at).min();
        let places = row.place.into_iter().chain(new.row.place);
        row.place = places.min_by_key(|place| place.position.offset);
    }

    fn apply_removal(&mut self, removal: Removal) {
        let Removal { user, broadcast, place, keep_until } = removal;
        let progress = Progress { attempt: 0, delivery: Delivery::Pending };
        let none = InboxRow { broadcast, place: None, progress, delivered_at: None, removed: None };
        let none = Stored { is_row: false, row: none, keep_until };
        let stored = self.inbox.entry((user, broadcast)).or_insert(none);
        stored.keep_until = stored.keep_until.max(keep_until);
        let places = stored.row.removed.into_iter().chain([place]);
        stored.row.removed = places.min_by_key(|place| place.position.offset);
    }
}

impl FakeStore {
    /// What a node that starts has to know of what has ended.
    pub async fn over(&self) -> Result<Vec<NotedEnding>, StoreError> {
        self.read(|shelves| {
            let is_final = |id: &BroadcastId| {
                let status = shelves.contents.get(id).and_then(|content| content.status);
                shelves.over.contains(id) || status.is_some_and(Status::is_final)
            };
            let over = shelves.endings.iter().filter(|(id, _)| is_final(id));
            let noted = over.map(|(id, at)| NotedEnding {
                ending: Ending { id: *id, at: *at, how: End::Cancelled },
                is_settled: true,
            });
            noted.collect()
        })
        .await
    }
}

/// What owners ask and write of endings; nodes that cancel do so by the world.
#[async_trait]
impl Endings for FakeStore {
    async fn change_status(&self, id: BroadcastId, to: Status) -> Result<Change, StoreError> {
        self.read(move |shelves| {
            match shelves.contents.get_mut(&id).map(|content| &mut content.status) {
                None => Change::Missing,
                Some(Some(status)) if *status == to => Change::Already,
                Some(Some(status)) if status.is_final() => Change::Refused(*status),
                Some(status) => {
                    *status = Some(to);
                    Change::Done
                }
            }
        })
        .await
    }

    async fn create_ended(&self, id: BroadcastId, how: End) -> Result<Claim, StoreError> {
        self.read(move |shelves| match shelves.contents.get_mut(&id) {
            Some(content) if content.status.is_none() => {
                content.status = Some(how.status());
                Claim::Applied
            }
            _ => Claim::Taken,
        })
        .await
    }

    async fn put_ending(&self, ending: &Ending) -> Result<(), StoreError> {
        let Ending { id, at, .. } = *ending;
        self.read(move |shelves| {
            shelves.endings.entry(id).or_insert(at);
        })
        .await
    }

    async fn settle_ending(&self, _: &Ending) -> Result<(), StoreError> {
        self.read(|_| ()).await
    }

    async fn endings(
        &self,
        _: EpochMillis,
        _: Option<(EpochMillis, BroadcastId)>,
        _: usize,
    ) -> Result<Vec<NotedEnding>, StoreError> {
        self.over().await
    }

    async fn open_endings(&self, _: usize) -> Result<Vec<Ending>, StoreError> {
        Ok(Vec::new())
    }

    async fn due(&self, _: Bucket, _: EpochMillis, _: usize) -> Result<Vec<Due>, StoreError> {
        Ok(Vec::new())
    }

    async fn mark_due(&self, _: &Due) -> Result<(), StoreError> {
        Ok(())
    }
}

/// By which owners tell of ends that others have published; as bad as the store.
#[async_trait]
impl ControlTopic for FakeStore {
    async fn end(&self) -> Result<u64, LogError> {
        Ok(0)
    }

    async fn append(&self, value: Bytes) -> Result<u64, LogError> {
        let told = self.read(move |shelves| shelves.told.push(value.clone())).await;
        told.map(|()| 0).map_err(|error| LogError::Away(error.to_string()))
    }

    async fn read(&self, from: u64, _: Duration) -> Result<ControlRead, LogError> {
        Ok(ControlRead { records: Vec::new(), next: from })
    }
}

#[async_trait]
impl Inbox for FakeStore {
    async fn write_inbox(&self, writes: &[InboxWrite]) -> Result<(), StoreError> {
        self.write(writes.iter().cloned().map(Piece::Inbox).collect()).await
    }

    async fn inbox(
        &self,
        user: &UserId,
        after: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<InboxRow>, StoreError> {
        let (user, first) = (user.clone(), after.map_or(0, |after| after.get() + 1));
        let first = BroadcastId::new(first).expect("ids are small here");
        self.read(move |shelves| {
            // Rows past their time may be missing.
            let wall = wall_at(shelves.now);
            let shows_ended = shelves.random.one_in(2);
            let of_user = shelves.inbox.range((user.clone(), first)..);
            let of_user = of_user.take_while(|((other, _), _)| *other == user);
            let rows = of_user.map(|(_, stored)| stored).filter(|stored| stored.is_row);
            let rows = rows.filter(|stored| shows_ended || stored.keep_until > wall);
            rows.map(|stored| stored.row.clone()).take(limit).collect()
        })
        .await
    }

    async fn write_removals(&self, removals: &[Removal]) -> Result<(), StoreError> {
        self.write(removals.iter().cloned().map(Piece::Removal).collect()).await
    }

    async fn write_group(&self, rows: &[GroupRow]) -> Result<(), StoreError> {
        self.write(rows.iter().copied().map(Piece::Group).collect()).await
    }

    async fn group(
        &self,
        log: LogIdentity,
        partition: u16,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GroupRow>, StoreError> {
        let partition = Partition { topic: corecast::base::Topic::Group, index: partition };
        self.read(move |shelves| {
            let range = shelves.groups.range((partition, from)..=(partition, u64::MAX));
            let of_log = range.map(|(_, row)| *row).filter(|row| row.place.log == log);
            of_log.take(limit).collect()
        })
        .await
    }

    async fn write_holes(&self, _: LogIdentity, holes: &[Hole]) -> Result<(), StoreError> {
        self.write(holes.iter().copied().map(Piece::Hole).collect()).await
    }

    async fn holes(&self, log: LogIdentity) -> Result<Vec<Hole>, StoreError> {
        // Offsets tell of which log they are.
        let is_replaced = log == REPLACED.identity;
        self.read(move |shelves| {
            let of_log = |hole: &&Hole| (hole.from >= REPLACED_START) == is_replaced;
            shelves.holes().filter(of_log).copied().collect()
        })
        .await
    }

    async fn write_contents(&self, contents: &[Broadcast]) -> Result<(), StoreError> {
        let piece = |content: &Broadcast| Piece::Content(Box::new(content.clone()));
        self.write(contents.iter().map(piece).collect()).await
    }

    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError> {
        let ids = ids.to_vec();
        self.read(move |shelves| ids.iter().map(|id| shelves.contents.get(id).cloned()).collect())
            .await
    }

    async fn write_cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
        next: &[(Partition, u64)],
    ) -> Result<(), StoreError> {
        let piece = |(partition, next): &(Partition, u64)| Piece::Cursor {
            user: user.clone(),
            log,
            partition: *partition,
            next: *next,
        };
        self.write(next.iter().map(piece).collect()).await
    }

    async fn cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        let user = user.clone();
        self.read(move |shelves| {
            let of = |(other, of, _): &(UserId, [u8; 3], Partition)| *other == user && *of == log.0;
            let own = shelves.cursors.iter().filter(|(key, _)| of(key));
            own.map(|((.., partition), next)| (*partition, *next)).collect()
        })
        .await
    }
}
