//! The log as it stands, and beside it what the oracle knows of each record: whom it is for and
//! what it says.

use std::collections::{BTreeMap, BTreeSet};

use corecast::base::{BroadcastId, EpochMillis, Moment, Partition, Position, UserId};
use corecast::domain::{Decoder, Finding, Rules};
use corecast::limits::log::REPEAT_RECORDS;
use corecast::wire::archive::SharedEvent;
use uuid::Uuid;

use crate::sky::SHAPE;

/// One record; its event, if it is one to be served.
pub struct Entry {
    pub offset: u64,
    pub appended_at: EpochMillis,
    pub value: Option<bytes::Bytes>,
    pub event: Option<SharedEvent>,
}

pub struct Log {
    partitions: BTreeMap<Partition, Vec<Entry>>,
    /// Where each partition begins: what lies before it is no longer there.
    starts: BTreeMap<Partition, u64>,
    decoder: Decoder,
}

/// Whom a record is for, as it was meant.
#[derive(Clone, PartialEq, Debug)]
pub enum Names {
    Everyone,
    Roles(Vec<&'static str>),
    User(UserId),
}

impl Names {
    pub fn admit(&self, user: &UserId, roles: &[&str]) -> bool {
        match self {
            Self::Everyone => true,
            Self::Roles(names) => names.iter().any(|name| roles.contains(name)),
            Self::User(name) => name == user,
        }
    }

    pub fn user(&self) -> Option<&UserId> {
        match self {
            Self::User(user) => Some(user),
            Self::Everyone | Self::Roles(_) => None,
        }
    }
}

/// A record that is to be served, and repeats none.
#[derive(Clone, Debug)]
pub struct Sent {
    pub broadcast: BroadcastId,
    pub names: Names,
    pub content: String,
    pub expires_at: Option<EpochMillis>,
    pub appended_at: EpochMillis,
    /// It waits for users who are not here.
    pub is_kept: bool,
    /// Its status says that it is cancelled.
    pub is_cancelled: bool,
    /// A clock that was ahead said that it had passed its end, before anybody had kept it.
    pub is_unkept: bool,
}

impl Sent {
    pub fn has_ended(&self, wall: EpochMillis) -> bool {
        self.is_cancelled || self.is_past(wall)
    }

    /// Whether it has passed its end, by this clock.
    pub fn is_past(&self, wall: EpochMillis) -> bool {
        self.expires_at.is_some_and(|at| at <= wall)
    }

    /// Whether it has passed its end, by this clock or by one whose word counted.
    pub fn may_be_gone(&self, wall: EpochMillis) -> bool {
        self.is_unkept || self.is_past(wall)
    }

    /// Whether the store need not have it.
    pub fn need_not_be_kept(&self, wall: EpochMillis) -> bool {
        self.is_cancelled || self.may_be_gone(wall)
    }
}

/// What was accepted, by its place.
#[derive(Default)]
pub struct Truth {
    sent: BTreeMap<Position, Sent>,
    places: BTreeMap<Key, Position>,
    /// In the order in which they were sent.
    accepted: Vec<BroadcastId>,
    pub repeats: BTreeSet<Position>,
    /// Acknowledged or not, but not yet where they are served.
    waiting: BTreeMap<Key, Waiting>,
    /// Where an event stood last that was to be served.
    latest: BTreeMap<Key, Position>,
    /// What the log had lost, by partition, before a checkpoint was beyond it.
    lost: Vec<(Partition, std::ops::Range<u64>)>,
    /// What is cancelled, and when that was answered.
    cancelled: BTreeMap<BroadcastId, Option<Moment>>,
    /// Those whose users are still to be told.
    unremoved: BTreeSet<BroadcastId>,
    /// Records that say that a message is no more, of which broadcast and for whom.
    pub removals: BTreeMap<Position, (BroadcastId, Names)>,
}

/// A broadcast, and of a targeted one whose message it is.
pub type Key = (BroadcastId, Option<UserId>);

/// What stands where it can't be served.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub sent: Sent,
    pub position: Position,
    pub event: Uuid,
}

impl Log {
    pub fn new() -> Self {
        let partitions = SHAPE.all_partitions().map(|partition| (partition, Vec::new())).collect();
        let starts = SHAPE.all_partitions().map(|partition| (partition, 0)).collect();
        let rules = Rules { shape: SHAPE, is_testing: false };
        Self { partitions, starts, decoder: Decoder::new(rules) }
    }

    /// The records that are still there.
    pub fn entries(&self, partition: Partition) -> &[Entry] {
        let (entries, start) = (&self.partitions[&partition], self.start(partition));
        &entries[entries.partition_point(|entry| entry.offset < start)..]
    }

    pub fn start(&self, partition: Partition) -> u64 {
        self.starts[&partition]
    }

    /// Where a partition ends.
    pub fn end(&self, partition: Partition) -> u64 {
        let last = self.partitions[&partition].last().map_or(0, |entry| entry.offset + 1);
        last.max(self.start(partition))
    }

    /// The partition's time is over up to here.
    pub fn trim(&mut self, partition: Partition, start: u64) {
        let known = self.starts.get_mut(&partition).expect("a partition");
        *known = start.max(*known);
    }

    /// Appends a record `hole` offsets behind the last one; whether it is to be served.
    pub fn append(
        &mut self,
        partition: Partition,
        hole: u64,
        appended_at: EpochMillis,
        value: Option<bytes::Bytes>,
    ) -> (Position, bool) {
        let position = Position { partition, offset: self.end(partition) + hole };
        let found = self.decoder.decode_caught(position, appended_at, value.as_deref());
        let event = match found {
            Finding::Serve(event) => Some(event),
            Finding::Ignore(_) | Finding::Bad(_) => None,
        };
        let is_served = event.is_some();
        let entry = Entry { offset: position.offset, appended_at, value, event };
        self.partitions.get_mut(&partition).expect("a partition").push(entry);
        (position, is_served)
    }
}

impl Truth {
    pub fn accept(&mut self, position: Position, sent: Sent) {
        let key = (sent.broadcast, sent.names.user().cloned());
        self.note_served(key.clone(), position);
        assert!(self.places.insert(key, position).is_none(), "each is sent once");
        self.accepted.push(sent.broadcast);
        self.sent.insert(position, sent);
    }

    /// It stands where it is to be served, perhaps again: within what repeats are known in, unless
    /// the log has lost it, and nothing is left that knows of it.
    pub fn note_served(&mut self, key: Key, position: Position) {
        let before = self.latest.insert(key, position);
        let is_known = before.is_none_or(|before| {
            let is_near = before.partition == position.partition
                && position.offset - before.offset <= REPEAT_RECORDS;
            is_near || self.is_lost(before)
        });
        assert!(is_known, "{position:?} is served twice, before at {before:?}");
    }

    pub fn latest(&self, key: &Key) -> Option<Position> {
        self.latest.get(key).copied()
    }

    pub fn wait(&mut self, waiting: Waiting) {
        let key = (waiting.sent.broadcast, waiting.sent.names.user().cloned());
        assert!(self.waiting.insert(key, waiting).is_none(), "each is sent once");
    }

    /// It stands here as well, and can't be served here either.
    pub fn wait_at(&mut self, key: &Key, position: Position) {
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.position = position;
        }
    }

    /// It waits no more.
    pub fn take_waiting(&mut self, key: &Key) -> Option<Waiting> {
        self.waiting.remove(key)
    }

    pub fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.values()
    }

    pub fn lose(&mut self, partition: Partition, offsets: std::ops::Range<u64>) {
        self.lost.push((partition, offsets));
    }

    /// Whether nobody need have kept what stands there.
    pub fn is_lost(&self, position: Position) -> bool {
        let holds = |(of, offsets): &(Partition, std::ops::Range<u64>)| {
            *of == position.partition && offsets.contains(&position.offset)
        };
        self.lost.iter().any(holds)
    }

    /// Broadcasts that may be cancelled, of the last so many messages that were sent.
    pub fn cancellable(&self, many: usize) -> impl Iterator<Item = BroadcastId> {
        let sent = self.accepted.iter().rev().take(many).copied();
        let all: BTreeSet<BroadcastId> = sent.filter(|id| !self.is_ending(*id)).collect();
        all.into_iter()
    }

    pub fn is_ending(&self, broadcast: BroadcastId) -> bool {
        self.cancelled.contains_key(&broadcast)
    }

    /// From now on nobody need get it.
    pub fn begin_end(&mut self, broadcast: BroadcastId) {
        if self.cancelled.insert(broadcast, None).is_none() {
            self.unremoved.insert(broadcast);
        }
        let waiting = self.waiting.values_mut().map(|waiting| &mut waiting.sent);
        let all = self.sent.values_mut().chain(waiting);
        all.filter(|sent| sent.broadcast == broadcast).for_each(|sent| sent.is_cancelled = true);
    }

    /// From now on nobody gets it.
    pub fn answer_end(&mut self, broadcast: BroadcastId, now: Moment) {
        self.cancelled.entry(broadcast).and_modify(|at| *at = at.or(Some(now)));
    }

    pub fn answered_at(&self, broadcast: BroadcastId) -> Option<Moment> {
        self.cancelled.get(&broadcast).copied().flatten()
    }

    /// Whether its users are still to be told; they are now.
    pub fn take_removal(&mut self, broadcast: BroadcastId) -> bool {
        self.unremoved.remove(&broadcast)
    }

    /// Whether nothing is kept of it, or it has passed the end that it named itself.
    pub fn is_past(&self, broadcast: BroadcastId, wall: EpochMillis) -> bool {
        let mut sent = self.sent.values().filter(|sent| sent.broadcast == broadcast);
        sent.any(|sent| !sent.is_kept || sent.may_be_gone(wall))
    }

    /// Owners, or those who publish again, whose clock says that something has ended, keep none of
    /// it; what is durable stays. `checked`: up to where that is so.
    pub fn handle_clock(&mut self, wall: EpochMillis, checked: &BTreeMap<Partition, u64>) {
        for waiting in self.waiting.values_mut() {
            waiting.sent.is_unkept |= waiting.sent.is_past(wall);
        }
        for (partition, next) in checked {
            let place = |offset| Position { partition: *partition, offset };
            for (_, sent) in self.sent.range_mut(place(*next)..=place(u64::MAX)) {
                sent.is_unkept |= sent.is_past(wall);
            }
        }
    }

    /// The messages of a broadcast.
    pub fn of(&self, broadcast: BroadcastId) -> Vec<(Position, Names)> {
        let of_it = self.sent.iter().filter(|(_, sent)| sent.broadcast == broadcast);
        of_it.map(|(position, sent)| (*position, sent.names.clone())).collect()
    }

    /// Where the message of this broadcast stands that such a user gets.
    pub fn place(&self, broadcast: BroadcastId, user: Option<&UserId>) -> Option<Position> {
        self.places.get(&(broadcast, user.cloned())).copied()
    }

    pub fn at(&self, position: Position) -> &Sent {
        &self.sent[&position]
    }

    pub fn all(&self) -> impl Iterator<Item = (Position, &Sent)> {
        self.sent.iter().map(|(position, sent)| (*position, sent))
    }

    /// From one offset of a partition to another.
    pub fn between(
        &self,
        partition: Partition,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = (Position, &Sent)> {
        let place = |offset| Position { partition, offset };
        let range = self.sent.range(place(from)..place(to.max(from)));
        range.map(|(position, sent)| (*position, sent))
    }
}
