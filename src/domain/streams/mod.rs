//! The streams of a shard: cursors into the ring.
//!
//! A stream has no queue, no buffer, no task and no timer. One that keeps up stands at the head of
//! the ring and is nothing but its entry; one that is behind is fed from its place in the ring, in
//! ring order, its own audience only. Inputs go in by `handle_*`; what is to be written comes out
//! by `poll_write`, and its outcome goes back in by `handle_written` (`feed.rs`).
//!
//! Invariants:
//! - what a stream got is its audience's part of the ring up to its place, in order, once;
//! - the `id` of a frame covers that frame and nothing that was not served;
//! - no component of a stream's `id`s falls;
//! - a stream whose socket is full waits, and costs its entry and one frame.

mod backlog;
mod confirm;
mod drain;
mod entry;
mod feed;
mod fence;
mod joined;
mod open;
mod replay;
mod timers;
mod turns;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::audience::{MemberSets, NOBODY, Users};
use super::backlog::{Backlog, Row};
use super::ended::Ended;
use super::ring::{Frame, Ring, RingLimits};
use super::slab::Slab;
use super::vector::{Served, Vector, VectorRef};
use super::wheel::Wheel;
use crate::base::{EpochMillis, LogIdentity, LogShape, Moment, Partition, Position, UserId};
use crate::wire::archive::{AudienceRef, SharedEvent};
use crate::wire::cursor::{CursorParts, UserMark};

use entry::{
    BEHIND, BLOCKED, CLOSING, CONTINUES, CUT_OFF, Private, QUEUED, STALLED, Stream, UNCONFIRMED,
};

pub use confirm::Closed;
pub use feed::{Outcome, Write};
pub use open::Open;
pub use replay::{ReadAgain, Reread, Unread};

/// What one shard's streams are given at start.
#[derive(Clone, Copy, Debug)]
pub struct StreamsOptions {
    /// Its identity is not known before the log has answered (`handle_identity`).
    pub shape: LogShape,
    pub ring: RingLimits,
    pub streams_max: usize,
    pub heartbeat: Duration,
    pub write_progress: Duration,
    /// How long after its end the log may still bring a broadcast's messages.
    pub ended_kept: Duration,
    /// How old a stream gets before its client has to come back. `None`: there is no bound.
    pub max_age: Option<Duration>,
    /// Of the jitter: the only randomness here.
    pub seed: u64,
}

/// Names a stream for as long as it stands; never another one that got its place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamKey {
    index: u32,
    serial: u32,
}

impl StreamKey {
    /// For the kernel's 64 bits of user data.
    pub const fn to_bits(self) -> u64 {
        (self.serial as u64) << 32 | self.index as u64
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, serial: (bits >> 32) as u32 }
    }
}

/// Why a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer closed, reset, or its machine is gone.
    Peer,
    /// No byte went out within the write-progress time.
    Slow,
    /// The node drains.
    Drain,
    /// What comes next is in the store; the client comes back for it.
    Continues,
    /// It has had its age.
    Rotated,
}

impl CloseReason {
    pub const ALL: [Self; 5] =
        [Self::Peer, Self::Slow, Self::Drain, Self::Continues, Self::Rotated];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Slow => "slow",
            Self::Drain => "drain",
            Self::Continues => "continues",
            Self::Rotated => "rotated",
        }
    }
}

/// Plain counters since the start; whoever owns the streams publishes them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct StreamCounters {
    pub opened: u64,
    pub resumed: u64,
    pub closed: [u64; CloseReason::ALL.len()],
    /// Frames whose last byte the kernel took.
    pub deliveries: u64,
    pub bytes: u64,
    /// Writes that took at least a byte.
    pub writes: u64,
    /// Frames that went out in the write of another.
    pub joined: u64,
    pub blocked: u64,
    pub heartbeats: u64,
    pub gaps: u64,
    /// Messages that did not go out, because their broadcast had ended.
    pub ended_skips: u64,
    /// Streams that came to be served from the log, and events that were read again for them.
    pub replays: u64,
    pub reread: u64,
    /// Frames that were not followed until the peer acknowledged them: too many at a time.
    pub unconfirmed_dropped: u64,
}

/// All streams of one shard, its ring, and its positions.
#[derive(Debug)]
pub struct Streams<S> {
    options: StreamsOptions,
    vector: Vector,
    ring: Ring,
    slab: Slab<Stream<S>>,
    users: Users,
    sets: MemberSets,
    wheel: Wheel,
    /// Streams that have something to write and, as far as is known, a socket that takes it.
    queue: VecDeque<u32>,
    /// Of these, those that replay, as far as that is known.
    replay_queue: VecDeque<u32>,
    /// Counts who is given the next turn.
    turns: u32,
    replay: replay::Replay,
    ended: Ended,
    may_begin: bool,
    plan: feed::Plan,
    /// Streams with frames that no peer has acknowledged yet.
    unconfirmed: BTreeMap<u32, confirm::Unconfirmed>,
    /// Streams that have ended, until somebody asks.
    closed: VecDeque<Closed<S>>,
    /// The node goes, and its streams one after the other.
    drain: Option<drain::Drain>,
    /// The first stream of each event's user; kept to be filled again.
    found: Vec<u32>,
    serials: u32,
    counters: StreamCounters,
}

impl<S> Streams<S> {
    /// No streams, an empty ring, standing at `vector`; no message may begin yet.
    pub fn new(options: StreamsOptions, vector: Vector, now: Moment) -> Self {
        let mut ended = Ended::default();
        ended.forget(now);
        Self {
            ring: Ring::new(options.shape, options.ring, &vector),
            options,
            vector,
            slab: Slab::default(),
            users: Users::default(),
            sets: MemberSets::default(),
            wheel: Wheel::new(now),
            queue: VecDeque::new(),
            replay_queue: VecDeque::new(),
            turns: 0,
            replay: replay::Replay::new(),
            ended,
            may_begin: false,
            plan: feed::Plan::default(),
            unconfirmed: BTreeMap::new(),
            closed: VecDeque::new(),
            drain: None,
            found: Vec::new(),
            serials: 0,
            counters: StreamCounters::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.slab.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    pub fn users(&self) -> usize {
        self.users.len()
    }

    pub fn counters(&self) -> &StreamCounters {
        &self.counters
    }

    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    pub fn vector(&self) -> &Vector {
        &self.vector
    }

    pub fn socket(&self, key: StreamKey) -> Option<&S> {
        let stream = self.slab.get(key.index)?;
        (stream.serial == key.serial).then_some(&stream.socket)
    }

    /// Whether this stream still stands.
    pub fn contains(&self, key: StreamKey) -> bool {
        self.slab.get(key.index).is_some_and(|stream| stream.serial == key.serial)
    }

    /// Which log it is. Only before the first event and the first stream.
    pub fn handle_identity(&mut self, identity: LogIdentity) {
        self.options.shape.identity = identity;
        self.ring.restart(self.options.shape, &self.vector);
    }

    /// Starts to read a partition at `next`: what lies before it is not served from here. Only
    /// before the first event and the first stream.
    pub fn handle_start(&mut self, partition: Partition, next: u64) {
        self.vector.advance(partition, next);
        self.ring.restart(self.options.shape, &self.vector);
    }

    /// Whether what stands at this place of the log has not been handled yet.
    pub fn is_new(&self, position: Position) -> bool {
        position.offset >= self.vector.next(position.partition)
    }

    /// Takes events, each partition's in order. One that was handled before changes nothing. As
    /// many as fit a core's cache are best given at once: what is looked up for them then does not
    /// wait for the memory one by one.
    pub fn handle_events(&mut self, events: &mut Vec<SharedEvent>) {
        let first = self.ring.next();
        let Self { vector, ring, slab, users, sets, queue, found, ended, options, .. } = self;
        events.retain(|event| {
            let position = event.position();
            let is_new = position.offset >= vector.next(position.partition);
            if is_new {
                vector.advance(position.partition, position.offset + 1);
                ring.push_positions(vector);
            }
            is_new
        });
        found.clear();
        found.extend(events.iter().map(|event| match event.audience() {
            AudienceRef::User(name) => users.find(name).unwrap_or(NOBODY),
            AudienceRef::Everyone | AudienceRef::Members { .. } => NOBODY,
        }));
        for user in found.iter_mut().filter(|user| **user != NOBODY) {
            *user = users.get(*user).first_stream;
        }
        for ((sequence, event), first_stream) in (first..).zip(&*events).zip(&*found) {
            if event.ends_broadcast() {
                ended.insert(event.broadcast(), ended.now().plus(options.ended_kept));
            }
            match event.audience() {
                AudienceRef::Everyone => {
                    for (index, stream) in slab.iter_mut() {
                        come_behind(stream, index, sequence, queue);
                    }
                }
                AudienceRef::User(_) => {
                    let mut index = *first_stream;
                    while let Some(stream) = slab.get_mut(index) {
                        come_behind(stream, index, sequence, queue);
                        index = stream.next_of_user;
                    }
                }
                AudienceRef::Members { kind, names } => {
                    sets.for_each_member(kind, names.iter(), sequence, |index| {
                        if let Some(stream) = slab.get_mut(index) {
                            come_behind(stream, index, sequence, queue);
                        }
                    });
                }
            }
        }
        events.drain(..).for_each(|event| ring.push(event));
    }

    /// The partition has been read up to `next`; what lies between is nothing for this shard.
    pub fn handle_position(&mut self, partition: Partition, next: u64) {
        self.vector.advance(partition, next);
    }

    /// The log can't be read below `next` any more, and has not been up to there: nothing before it
    /// is served from here. Every stream ends as soon as its backlog is out, and its client comes
    /// back for what the store keeps.
    pub fn handle_skip(&mut self, partition: Partition, next: u64) {
        if next <= self.vector.next(partition) {
            return;
        }
        let Self { vector, ring, slab, queue, .. } = self;
        for (index, stream) in slab.iter_mut() {
            let (is_behind, at, replays) = (stream.is(BEHIND), stream.at, stream.is(CUT_OFF));
            let ahead = stream.private.as_deref_mut().and_then(|private| private.ahead.as_mut());
            if let Some(ahead) = ahead.filter(|_| !replays) {
                // Where it is not ahead of the ring it stands in there.
                match (is_behind, ring.read_before(at)) {
                    (false, _) => ahead.raise_to(vector.view()),
                    (true, Some(before)) => ahead.raise_to(before.view()),
                    (true, None) => {}
                }
            }
            stream.state |= CUT_OFF;
            enqueue(stream, index, queue);
        }
        vector.advance(partition, next);
        ring.clear(vector);
    }

    /// The socket may take bytes again.
    pub fn handle_writable(&mut self, key: StreamKey) {
        let Some(stream) = self.slab.get_mut(key.index) else { return };
        if stream.serial == key.serial && stream.is(BLOCKED) {
            stream.state &= !BLOCKED;
            enqueue(stream, key.index, &mut self.queue);
        }
    }

    /// Ends a stream; its socket is dropped. One that is gone already changes nothing.
    pub fn handle_close(&mut self, key: StreamKey, reason: CloseReason) {
        if self.contains(key) {
            self.close(key.index, reason);
        }
    }

    /// Ends the streams of a user whose peer is gone, though nobody has told yet: a page that is
    /// loaded again opens the next one at once.
    pub fn handle_user_back(&mut self, user: &UserId, is_gone: impl Fn(&S) -> bool) {
        let Some(user) = self.users.find(user.as_str()) else { return };
        let mut index = self.users.get(user).first_stream;
        let mut gone = Vec::new();
        while let Some(stream) = self.slab.get(index) {
            if is_gone(&stream.socket) {
                gone.push(index);
            }
            index = stream.next_of_user;
        }
        gone.into_iter().for_each(|index| self.close(index, CloseReason::Peer));
    }

    /// Whether `poll_write` may have something.
    pub fn wants_to_write(&self) -> bool {
        !self.queue.is_empty() || !self.replay_queue.is_empty()
    }

    /// Whether one of them may be for a stream that keeps up.
    pub fn is_live_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Positions of the ring just before this place; at the head, those of the shard.
    fn before(&self, sequence: u64) -> VectorRef<'_> {
        if sequence == self.ring.next() { self.vector.view() } else { self.ring.before(sequence) }
    }

    fn close(&mut self, index: u32, reason: CloseReason) {
        let Some(stream) = self.slab.remove(index) else { return };
        self.wheel.cancel(index);
        if let Some(moved) = self.sets.leave(stream.set, stream.place_in_set)
            && let Some(moved) = self.slab.get_mut(moved)
        {
            moved.place_in_set = stream.place_in_set;
        }
        self.counters.closed[reason as usize] += 1;
        self.replay.handle_gone(stream.part());
        let (user, next_of_user) = (stream.user, stream.next_of_user);
        self.say_farewell(index, stream);
        self.unchain(user, index, next_of_user);
    }

    /// Takes a stream out of the chain of its user's.
    fn unchain(&mut self, user: u32, index: u32, next: u32) {
        let first = self.users.get(user).first_stream;
        if first == index {
            self.users.get_mut(user).first_stream = next;
            if next == NOBODY {
                self.users.leave(user);
            }
            return;
        }
        let mut previous = first;
        while let Some(stream) = self.slab.get_mut(previous) {
            if stream.next_of_user == index {
                stream.next_of_user = next;
                return;
            }
            previous = stream.next_of_user;
        }
        debug_assert!(false, "a stream is in the chain of its user");
    }
}

/// Serials have 30 bits: two of the kernel's 64 say what kind of descriptor it is.
const SERIAL_MASK: u32 = (1 << 30) - 1;

/// A stream gets work at this place of the ring, unless it has earlier work.
fn come_behind<S>(stream: &mut Stream<S>, index: u32, sequence: u64, queue: &mut VecDeque<u32>) {
    if !stream.is(BEHIND) {
        stream.at = sequence;
        stream.state |= BEHIND;
    }
    stream.until = sequence + 1;
    // One that the log serves is queued when that has something for it.
    if !stream.is(CUT_OFF) {
        enqueue(stream, index, queue);
    }
}

fn enqueue<S>(stream: &mut Stream<S>, index: u32, queue: &mut VecDeque<u32>) {
    if stream.state & (QUEUED | BLOCKED) == 0 {
        stream.state |= QUEUED;
        queue.push_back(index);
    }
}

fn write_id_line(
    (shape, user): (&LogShape, UserMark),
    out: &mut Vec<u8>,
    served: &Served,
    at: EpochMillis,
) {
    write_cursor((shape, user), out, served, at, false);
}

/// The same; flagged, it says how far a backlog is out.
fn write_cursor(
    (shape, user): (&LogShape, UserMark),
    out: &mut Vec<u8>,
    served: &Served,
    at: EpochMillis,
    is_backlog: bool,
) {
    let parts = CursorParts {
        shape: *shape,
        at,
        backlog: is_backlog,
        user,
        own_partition: served.own_partition,
        own: served.own,
        group: &served.group,
        offset_max: served.offset_max(),
    };
    parts.write_id_line(out);
}
