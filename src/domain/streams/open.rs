//! Opening a stream: where it starts, and what it is told first.

use super::{
    BEHIND, Private, QUEUED, SERIAL_MASK, Stream, StreamKey, Streams, ticks, write_cursor,
};
use crate::base::{EpochMillis, Moment, UserId};
use crate::domain::Membership;
use crate::domain::backlog::Backlog;
use crate::domain::vector::Served;
use crate::limits::shard as limits;
use crate::wire::cursor::Cursor;
use crate::wire::frame::{self, GapReason};

/// A stream that is to be opened.
#[derive(Debug)]
pub struct Open<'a, S> {
    pub socket: S,
    pub user: &'a UserId,
    /// Sorted, without repeats.
    pub members: &'a [Membership],
    /// Names it among the user's streams, as the client spells it.
    pub connection: &'a str,
    /// What the client presented, if it was a cursor. One in the middle of a backlog counts only
    /// with the rest of that.
    pub cursor: Option<Cursor>,
    /// What the store keeps for the user, for a client without a usable cursor.
    pub backlog: Option<Backlog>,
    /// Bytes that go out before the first event: the response head.
    pub response_head: &'a [u8],
}

/// Where a new stream starts.
struct Start {
    /// What the client says, or the shard's own positions.
    presented: Served,
    /// The same, raised to what the ring still has.
    served: Served,
    at: u64,
    gap_from: Option<EpochMillis>,
    resumed: bool,
}

impl<S> Streams<S> {
    /// Opens a stream. Its first bytes come out of the next `poll_write`. Gives the socket back if
    /// the shard holds as many as it may.
    pub fn handle_open(
        &mut self,
        open: Open<'_, S>,
        now: Moment,
        wall: EpochMillis,
    ) -> Result<StreamKey, S> {
        if self.slab.len() >= self.options.streams_max {
            return Err(open.socket);
        }
        let user = self.enter_user(open.user);
        let own_partition = self.users.get(user).own_partition;
        let (start, backlog) = match open.backlog {
            Some(backlog) => (self.start_behind(&backlog), Some(backlog)),
            None => (self.start_of(open.cursor.as_ref(), own_partition), None),
        };
        let backlog = backlog.filter(|backlog| !backlog.is_done()).map(Box::new);
        let mut lead = open.response_head.to_vec();
        self.serials = self.serials.wrapping_add(1) & SERIAL_MASK;
        let serial = self.serials;
        frame::write_retry(&mut lead, self.jittered(limits::RETRY, serial, 50));
        let shape = self.options.shape;
        let at = backlog.as_ref().map_or(wall, |backlog| backlog.since);
        write_cursor(&shape, &mut lead, &start.presented, at, backlog.is_some());
        frame::write_connected(&mut lead, open.connection, wall);
        let gap = start.gap_from.filter(|_| backlog.is_some());
        if let (Some(from), None) = (start.gap_from, &backlog) {
            let to = self.ring.event(self.ring.first()).map_or(wall, |event| event.appended_at());
            write_cursor(&shape, &mut lead, &start.served, wall, false);
            frame::write_gap(&mut lead, from.min(to), to, GapReason::Limit);
            self.counters.gaps += 1;
        }
        let behind = start.at < self.ring.next();
        // The GAP behind a backlog goes by what the client has been told by then, too.
        let is_ahead = gap.is_some() || !start.served.is_within(self.before(start.at));
        let ahead = is_ahead.then_some(start.served);
        let private = Private { lead, ahead, backlog, gap, ..Private::default() };
        let index = self.slab.insert(Stream {
            socket: open.socket,
            private: Some(Box::new(private)),
            at: start.at,
            until: self.ring.next(),
            serial,
            user,
            next_of_user: self.users.get(user).first_stream,
            set: 0,
            place_in_set: 0,
            touched: ticks(now),
            state: QUEUED | if behind { BEHIND } else { 0 },
            heartbeats: 0,
        });
        self.users.get_mut(user).first_stream = index;
        let (set, place_in_set) = self.sets.enter(open.members, index);
        if let Some(stream) = self.slab.get_mut(index) {
            (stream.set, stream.place_in_set) = (set, place_in_set);
        }
        self.queue.push_back(index);
        self.wheel.set(index, self.beat_at(now, serial));
        self.counters.opened += 1;
        self.counters.resumed += u64::from(start.resumed);
        Ok(StreamKey { index, serial })
    }

    fn enter_user(&mut self, user: &UserId) -> u32 {
        let own_partition = self.options.shape.partition_of_user(user.as_str());
        self.users.enter(user.as_str(), own_partition)
    }

    /// Where a stream goes on once this is out.
    fn start_behind(&self, backlog: &Backlog) -> Start {
        let Backlog { progress, checkpoint, .. } = backlog;
        let presented = if backlog.is_done() { checkpoint } else { progress }.clone();
        let mut served = checkpoint.clone();
        // From when on is not known: whatever was not durable yet.
        let gap_from = (!served.covers_all(self.ring.base())).then_some(EpochMillis(0));
        if gap_from.is_some() {
            served.raise_to(self.ring.base());
        }
        Start { at: self.ring.place_of(&served), presented, served, gap_from, resumed: false }
    }

    /// Whether the cursor is one of this log, for this user.
    pub fn knows(&self, cursor: &Cursor, user: &UserId) -> bool {
        let shape = &self.options.shape;
        cursor.shape == *shape && cursor.own_partition == shape.partition_of_user(user.as_str())
    }

    /// Where a stream starts that presents this cursor, or none.
    fn start_of(&self, cursor: Option<&Cursor>, own_partition: u16) -> Start {
        let usable = cursor.filter(|cursor| {
            cursor.shape == self.options.shape
                && cursor.own_partition == own_partition
                && !cursor.backlog
        });
        let Some(cursor) = usable else {
            let served = Served::of(self.vector.view(), own_partition);
            let at = self.ring.next();
            return Start { presented: served.clone(), served, at, gap_from: None, resumed: false };
        };
        let presented = Served::from(cursor);
        let mut served = presented.clone();
        let gap_from = (!served.covers_all(self.ring.base())).then(|| cursor.at());
        if gap_from.is_some() {
            served.raise_to(self.ring.base());
        }
        Start { at: self.ring.place_of(&served), presented, served, gap_from, resumed: true }
    }
}
