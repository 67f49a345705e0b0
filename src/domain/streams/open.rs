//! Opening a stream: where it starts, and what it is told first.

use super::timers::ticks;
use super::{
    BEHIND, CUT_OFF, Private, QUEUED, SERIAL_MASK, Stream, StreamKey, Streams, write_cursor,
};
use crate::base::{EpochMillis, LogShape, Moment, UserId};
use crate::domain::Membership;
use crate::domain::backlog::{Backlog, Presented, SINCE_EVER};
use crate::domain::vector::Served;
use crate::limits::keeping::CLOCKS_DIFFER;
use crate::limits::shard as limits;
use crate::wire::cursor::{Cursor, UserMark};
use crate::wire::frame;

/// A stream that is to be opened.
#[derive(Debug)]
pub struct Open<'a, S> {
    pub socket: S,
    pub user: &'a UserId,
    /// Sorted, without repeats.
    pub members: &'a [Membership],
    /// Names it among the user's streams, as the client spells it.
    pub connection: &'a str,
    /// What the client presented, if it was a cursor. One that `beyond_ring` asks about counts with
    /// the answer, or if it `may_replay`.
    pub cursor: Option<Cursor>,
    /// What the store keeps for the user.
    pub backlog: Option<Backlog>,
    /// Bytes that go out before the first event: the response head.
    pub response_head: &'a [u8],
}

/// Where a new stream starts.
struct Start {
    /// What the client says, or where it is taken to stand, in a log of this shape.
    presented: Served,
    shape: LogShape,
    /// When that was, and whether it is the progress of a backlog.
    presented_at: EpochMillis,
    is_progress: bool,
    /// What it has been served once its backlog is out.
    served: Served,
    is_resumed: bool,
}

impl<S> Streams<S> {
    /// Opens a stream. Its first bytes come out of the next `poll_write`. Gives the socket back if
    /// the shard holds as many as it may, or drains.
    pub fn handle_open(
        &mut self,
        open: Open<'_, S>,
        now: Moment,
        wall: EpochMillis,
    ) -> Result<StreamKey, S> {
        if self.slab.len() >= self.options.streams_max || self.is_draining() {
            return Err(open.socket);
        }
        let user = self.enter_user(open.user);
        let start = self.start_of(&open, user, wall);
        let backlog = open.backlog.filter(|backlog| !backlog.is_done()).map(Box::new);
        let mut lead = open.response_head.to_vec();
        self.serials = self.serials.wrapping_add(1) & SERIAL_MASK;
        let serial = self.serials;
        frame::write_retry(&mut lead, self.jittered(limits::RETRY, serial, 50));
        let Start { shape, presented, presented_at, is_progress, served, is_resumed } = start;
        let mark = self.users.get(user).mark;
        write_cursor((&shape, mark), &mut lead, &presented, presented_at, is_progress);
        frame::write_connected(&mut lead, open.connection, wall);
        let at = self.ring.place_of(&served);
        let is_cut_off = !self.reaches(&served);
        let cut_off = if is_cut_off { CUT_OFF } else { 0 };
        let behind = if at < self.ring.next() { BEHIND } else { 0 };
        let is_ahead = is_cut_off || !served.is_within(self.before(at));
        let ahead = is_ahead.then_some(served);
        let came_at = (at < self.ring.next() || is_cut_off).then(|| self.read_for(open.user));
        let private = Private { lead, ahead, backlog, came_at, ..Private::default() };
        let index = self.slab.insert(Stream {
            socket: open.socket,
            private: Some(Box::new(private)),
            at,
            until: self.ring.next(),
            serial,
            user,
            next_of_user: self.users.get(user).first_stream,
            set: 0,
            place_in_set: 0,
            touched: ticks(now),
            state: QUEUED | behind | cut_off,
            heartbeats: 0,
            old_in: self.old_in(serial, now),
        });
        self.users.get_mut(user).first_stream = index;
        let (set, place_in_set) = self.sets.enter(open.members, index);
        if let Some(stream) = self.slab.get_mut(index) {
            (stream.set, stream.place_in_set) = (set, place_in_set);
        }
        self.queue.push_back(index);
        self.look_again(index, self.beat_at(now, serial), now);
        self.counters.opened += 1;
        self.counters.resumed += u64::from(is_resumed);
        Ok(StreamKey { index, serial })
    }

    fn enter_user(&mut self, user: &UserId) -> u32 {
        let own_partition = self.options.shape.partition_of_user(user.as_str());
        self.users.enter(user.as_str(), own_partition)
    }

    /// Whether the cursor is one for this user: of this log, perhaps when it had fewer partitions,
    /// or of one that it has replaced.
    pub fn knows(&self, cursor: &Cursor, user: &UserId) -> bool {
        let (then, now) = (&cursor.shape, &self.options.shape);
        let has_grown = then.group_partitions <= now.group_partitions
            && then.selected_partitions <= now.selected_partitions;
        let is_usable = has_grown || self.replaced(cursor).is_some();
        let user = user.as_str();
        is_usable
            && cursor.user == UserMark::of(user)
            && cursor.own_partition == cursor.shape.partition_of_user(user)
    }

    /// What a client of this log has been served that presents this cursor: of partitions that it
    /// does not know nothing, and of its user's nothing either if he has another one now.
    pub fn served_by(&self, cursor: &Cursor, user: &UserId) -> Served {
        if cursor.shape == self.options.shape {
            return Served::from(cursor);
        }
        let mut served = Served::nothing(&self.options.shape, user);
        for (partition, next) in Served::from(cursor).places() {
            served.raise(partition, next);
        }
        served
    }

    /// The log of the cursor, if it is another one.
    pub fn replaced(&self, cursor: &Cursor) -> Option<LogShape> {
        let is_other = cursor.shape.identity != self.options.shape.identity;
        is_other.then_some(cursor.shape)
    }

    /// What log and store are to be asked about for a client that presents this cursor. `None`: it
    /// is within what has been read here, and all that comes next is in the ring.
    pub fn beyond_ring(&self, cursor: &Cursor, user: &UserId) -> Option<Presented> {
        let replaced = self.replaced(cursor);
        let served = match replaced {
            Some(_) => Served::from(cursor),
            None => self.served_by(cursor, user),
        };
        // What he had in the partition that was his, only time tells.
        let has_moved = replaced.is_none() && served.own_partition != cursor.own_partition;
        let is_whole = replaced.is_none() && !cursor.backlog && !has_moved;
        let is_in_ring = is_whole && self.reaches(&served);
        if is_in_ring && served.is_within(self.vector.view()) {
            return None;
        }
        let since = match (cursor.backlog, has_moved) {
            (true, _) => cursor.at(),
            (false, true) => cursor.at().minus(CLOCKS_DIFFER),
            (false, false) => SINCE_EVER,
        };
        Some(Presented { served, at: cursor.at(), since, replaced, is_in_ring })
    }

    /// Whether the log alone may serve what comes behind this cursor, or is likely to.
    pub fn may_replay(&self, cursor: &Cursor) -> bool {
        let served = Served::from(cursor);
        let is_of_log = cursor.shape == self.options.shape && !cursor.backlog;
        is_of_log && served.is_within(self.vector.view()) && self.is_near(&served)
    }

    /// Whether a client is better served by the log than by the store: one of a crowd, or one who
    /// is so far behind that the store would have to look at as much. Not where the log has just
    /// not given it.
    pub fn prefers_log(&self, cursor: &Cursor, is_crowd: bool, now: Moment) -> bool {
        let served = Served::from(cursor);
        let here = Served::of(self.vector.view(), served.own_partition);
        let behind = here.places().zip(served.places());
        let behind = behind.map(|((_, next), (_, served))| next.saturating_sub(served));
        let is_far = || behind.sum::<u64>() >= limits::REPLAY_RECORDS_FAR;
        self.may_replay(cursor) && !self.replay.was_refused(now) && (is_crowd || is_far())
    }

    /// How far the log has been read here, for this user.
    pub fn read_for(&self, user: &UserId) -> Served {
        Served::of(self.vector.view(), self.options.shape.partition_of_user(user.as_str()))
    }

    /// From where on the ring has what is for this user.
    pub fn ring_for(&self, user: &UserId) -> Served {
        Served::of(self.ring.base(), self.options.shape.partition_of_user(user.as_str()))
    }

    /// Whether a client gets further by this backlog. If not, the owners are far behind the ring,
    /// and it is put off.
    pub fn is_of_use(&self, backlog: &Backlog) -> bool {
        let is_told = !backlog.messages.is_empty() || backlog.replaced.is_some();
        is_told || self.reaches(&backlog.checkpoint) || self.is_near(&backlog.checkpoint)
    }

    /// Whether nothing lies between this and the ring.
    pub(super) fn reaches(&self, served: &Served) -> bool {
        served.covers_all(self.ring.base())
    }

    /// Where a stream starts that comes with this cursor and backlog, or without.
    fn start_of(&self, open: &Open<'_, S>, user: u32, wall: EpochMillis) -> Start {
        let backlog = open.backlog.as_ref();
        let cursor = open.cursor.as_ref();
        let cursor =
            cursor.filter(|cursor| self.knows(cursor, open.user)).filter(|cursor| match backlog {
                Some(backlog) => backlog.is_resumed && self.replaced(cursor) == backlog.replaced,
                None => self.beyond_ring(cursor, open.user).is_none() || self.may_replay(cursor),
            });
        let here = || Served::of(self.vector.view(), self.users.get(user).own_partition);
        let last = match backlog {
            Some(Backlog { replaced: Some(_), then, .. }) => then.as_deref(),
            backlog => backlog,
        };
        let checkpoint = last.map(|backlog| backlog.checkpoint.clone());
        if let Some(cursor) = cursor {
            let presented = Served::from(cursor);
            let is_of_log = self.replaced(cursor).is_none();
            let of_log = || is_of_log.then(|| self.served_by(cursor, open.user));
            let served = checkpoint.or_else(of_log).unwrap_or_else(here);
            return Start {
                shape: cursor.shape,
                presented,
                presented_at: cursor.at(),
                is_progress: cursor.backlog,
                served,
                is_resumed: true,
            };
        }
        let served = checkpoint.unwrap_or_else(here);
        let (presented, presented_at, is_progress) = match backlog {
            Some(backlog) if !backlog.is_done() => (backlog.progress.clone(), backlog.since, true),
            _ => (served.clone(), wall, false),
        };
        let shape = self.options.shape;
        Start { shape, presented, presented_at, is_progress, served, is_resumed: false }
    }
}
