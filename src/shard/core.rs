//! What a shard does, without its waiting: decodes records, passes events on, opens streams and
//! writes to them.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::keeping::Keeping;
use super::peers::{Handed, Peers};
use super::probe::{self, Probe};
use super::told::Told;
use crate::base::{EpochMillis, Moment, Position};
use crate::domain::{
    Backlog, CloseReason, Decoder, Finding, Intake, Note, Open, Outcome, Passed, ReadAgain,
    Streams, Taken, Unread,
};
use crate::edge::{
    AccessRules, Arrival, Door, StreamRequest, Token, Visitor, head_of, read_stream_request, watch,
};
use crate::lane::{FromShard, Order, Sender};
use crate::limits::{admin, shard as limits};
use crate::ports::{Batch, Clock};
use crate::wire::head::{self, HeadError};
use crate::wire::{api, frame};

/// Streams are told once their socket is writable or gone; edge-triggered, so that a stream is
/// entered into the set once and never touched again.
const STREAM_EVENTS: EventFlags = EventFlags::OUT.union(EventFlags::RDHUP).union(EventFlags::ET);

/// The part of a shard that the door calls back.
pub(super) struct Core {
    pub number: u16,
    pub streams: Streams<OwnedFd>,
    pub decoder: Decoder,
    pub intake: Intake,
    pub peers: Peers,
    pub keeping: Keeping,
    pub access: AccessRules,
    pub reports: Sender<FromShard>,
    pub bad_told: Told,
    pub unserved_told: Told,
    pub probe: Arc<Probe>,
    /// Sockets that streams may take, open, waiting or closing.
    pub streams_max: usize,
    pub is_serving: bool,
    /// What is to be read again found no room in the lane.
    pub owes_reread: bool,
    /// Messages may begin until then; `None`: it is not known yet which broadcasts have ended.
    pub fresh_until: Option<Moment>,
    /// The number of the last order that is applied, and whether that is to be told.
    pub applied: u64,
    pub owes_applied: bool,
    pub wall: EpochMillis,
    /// When the oldest event was appended whose fan-out is not finished.
    pub fanout_since: Option<EpochMillis>,
}

impl Core {
    /// Decodes records and appends their events to the ring. A record's fate follows from its
    /// bytes alone; whatever it is, the position advances.
    pub fn take_batch(&mut self, batch: &Batch, now: Moment) {
        for record in &batch.records {
            let position = Position { partition: batch.partition, offset: record.offset };
            let value = record.value.as_deref();
            match self.decoder.decode_caught(position, record.appended_at, value) {
                Finding::Serve(event) => {
                    let appended_at = event.appended_at();
                    match self.intake.handle_event(&mut self.streams, event) {
                        Taken::Here => self.note_event(appended_at),
                        Taken::Repeat => probe::add(&self.probe.repeats, 1),
                        Taken::Old | Taken::Elsewhere => {}
                    }
                }
                Finding::Ignore(reason) => {
                    probe::add(&self.probe.unserved_records, 1);
                    if let Some(others) = self.unserved_told.take(now) {
                        let reason = reason.name();
                        self.report(FromShard::Unserved { position, reason, others });
                    }
                }
                Finding::Bad(reason) => {
                    probe::add(&self.probe.bad_records, 1);
                    if let Some(others) = self.bad_told.take(now) {
                        let reason = reason.to_string();
                        self.report(FromShard::BadRecord { position, reason, others });
                    }
                }
            }
        }
        self.intake.handle_read(&mut self.streams, batch.partition, batch.next);
    }

    /// Takes what another shard has decoded.
    pub fn take_passed(&mut self, place: usize) {
        let Self { intake, streams, peers, probe, is_serving, fanout_since, .. } = self;
        let mut events = 0;
        intake.handle_passed(streams, limits::PASSED_PER_TURN_MAX, || {
            let passed = peers.take_passed(place);
            if let Some(Passed::Event(event)) = &passed {
                events += 1;
                if *is_serving {
                    fanout_since.get_or_insert(event.appended_at());
                }
            }
            passed
        });
        probe::add(&probe.events, events);
    }

    /// Takes what was read of the log again, for those whom the ring has lost. What is bad or not
    /// served in it has been told before.
    pub fn take_reread(&mut self, pass: u32, batches: Result<Vec<Batch>, Unread>, now: Moment) {
        let batches = match batches {
            Ok(batches) => batches,
            Err(why) => return self.streams.handle_reread(pass, Err(why), now),
        };
        let (mut events, mut next) = (Vec::new(), Vec::new());
        for batch in batches {
            for record in batch.records {
                let position = Position { partition: batch.partition, offset: record.offset };
                let value = record.value.as_deref();
                let found = self.decoder.decode_caught(position, record.appended_at, value);
                if let Finding::Serve(event) = found {
                    events.push(event);
                }
            }
            next.push((batch.partition, batch.next));
        }
        self.streams.handle_reread(pass, Ok(ReadAgain { events, next }), now);
    }

    /// Asks for what is to be read again.
    pub fn reread(&mut self, now: Moment) {
        self.owes_reread = false;
        if let Some(reread) = self.streams.poll_reread(now)
            && !self.report(FromShard::Reread { shard: self.number, reread })
        {
            self.streams.handle_unasked();
            self.owes_reread = true;
        }
    }

    fn note_event(&mut self, appended_at: EpochMillis) {
        probe::add(&self.probe.events, 1);
        if self.is_serving {
            self.fanout_since.get_or_insert(appended_at);
        }
    }

    pub fn take_order(&mut self, order: Order) {
        let Order { ended, applied, fresh_until } = order;
        ended.into_iter().for_each(|(id, until)| self.streams.handle_ended(id, until));
        self.owes_applied |= applied > self.applied;
        self.applied = self.applied.max(applied);
        self.fresh_until = self.fresh_until.max(fresh_until);
    }

    /// Tells how far the control topic is applied.
    pub fn tell_applied(&mut self) {
        if self.owes_applied {
            let (shard, applied) = (self.number, self.applied);
            self.owes_applied = !self.report(FromShard::Applied { shard, applied });
        }
    }

    /// Writes to streams until none wants to, or the turn is long enough.
    pub fn feed(&mut self, now: Moment, clock: &impl Clock) {
        self.streams.handle_turn();
        for _ in 0..limits::FEEDS_PER_TURN_MAX {
            // Before each write: a process that was frozen in the middle of a turn goes on here.
            let is_fresh = self.fresh_until.is_some_and(|until| clock.moment() < until);
            self.streams.handle_fence(is_fresh);
            let Some(write) = self.streams.poll_write(clock.wall()) else { break };
            let key = write.key;
            let outcome = match send(write.socket, &write.pieces) {
                Ok(0) => Outcome::Dead,
                Ok(took) => Outcome::Took(took),
                Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => Outcome::Full,
                Err(_) => Outcome::Dead,
            };
            drop(write); // It lends pieces of the streams.
            self.streams.handle_written(key, outcome, now);
        }
        if !self.streams.is_live_waiting()
            && let Some(since) = self.fanout_since.take()
        {
            let took = Duration::from_millis(self.wall.0.saturating_sub(since.0));
            self.probe.fanout.record(took);
        }
    }

    /// Opens the stream; gives the socket back if there are as many as may be.
    fn open(
        &mut self,
        set: BorrowedFd<'_>,
        socket: OwnedFd,
        request: StreamRequest,
        backlog: Option<Backlog>,
        now: Moment,
    ) -> Result<(), OwnedFd> {
        let connection = request.connection;
        let connection = connection.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        // What a backlog covers has been noted where it was made.
        let is_to_note = backlog.as_ref().is_none_or(Backlog::was_served_before);
        let presented = request.cursor.as_ref().filter(|_| is_to_note);
        let presented = presented.map(|cursor| self.streams.served_by(cursor, &request.user));
        let open = Open {
            socket,
            user: &request.user,
            members: &request.members,
            connection: &connection,
            cursor: request.cursor,
            backlog,
            response_head: head::STREAM_RESPONSE_HEAD,
        };
        let key = self.streams.handle_open(open, now, self.wall)?;
        let watched = self
            .streams
            .socket(key)
            .map(|socket| watch(set, socket.as_fd(), Token::Stream(key), STREAM_EVENTS));
        if !matches!(watched, Some(Ok(()))) {
            self.streams.handle_close(key, CloseReason::Peer);
        }
        if let Some(served) = presented {
            self.keeping.note(Note::Presented { user: request.user, served });
        }
        Ok(())
    }

    /// Whether streams are opened here: not before it serves, and not while it drains.
    fn takes_streams(&self) -> bool {
        self.is_serving && !self.streams.is_draining()
    }

    /// A request for a stream, which this shard has accepted: it belongs to the shard of its user.
    fn take_request(&mut self, door: &mut Door, set: BorrowedFd<'_>, handed: Handed, now: Moment) {
        let owner = self.peers.sharding().of_user(handed.request.user.as_str());
        if owner == self.number {
            return self.take_handed(door, set, handed, now);
        }
        match self.peers.hand(owner, Box::new(handed)) {
            Ok(()) => probe::add(&self.probe.streams_handed, 1),
            Err(handed) => self.refuse(door, set, *handed, now),
        }
    }

    /// Takes a request for a stream of one of this shard's users. One that comes without a usable
    /// cursor, in the middle of a backlog, from before the ring, or from further than has been read
    /// here waits for what log and store know; one of a crowd, or far behind, is served by the log,
    /// which is read once for all of them.
    pub fn take_handed(
        &mut self,
        door: &mut Door,
        set: BorrowedFd<'_>,
        mut handed: Handed,
        now: Moment,
    ) {
        let has_room = self.streams.len() + self.keeping.held() < self.streams_max;
        if !self.takes_streams() || !has_room {
            return self.refuse(door, set, handed, now);
        }
        let Handed { request, .. } = &mut handed;
        let user = &request.user;
        request.cursor = request.cursor.take().filter(|cursor| self.streams.knows(cursor, user));
        if request.is_presented && request.cursor.is_none() {
            probe::add(&self.probe.cursors_refused, 1);
        }
        let presented = match &request.cursor {
            Some(cursor) => match self.streams.beyond_ring(cursor, user) {
                None => return self.open_or_refuse(door, set, (handed, None), now),
                beyond => beyond,
            },
            None => None,
        };
        let is_crowd = self.keeping.asked() >= limits::ASKS_BEFORE_LOG;
        let prefers_log = |is_crowd| {
            let cursor = request.cursor.as_ref();
            cursor.is_some_and(|cursor| self.streams.prefers_log(cursor, is_crowd, now))
        };
        if prefers_log(is_crowd) {
            return self.open_or_refuse(door, set, (handed, None), now);
        }
        let has_log = prefers_log(true);
        let reach = (self.streams.read_for(user), self.streams.ring_for(user));
        // What is known of the user goes first: a page that is loaded again has just gone.
        self.streams.handle_user_back(&handed.request.user, is_gone);
        self.keeping.look(set, &mut self.streams, now);
        self.keeping.tell(&self.reports);
        let handed = Box::new(handed);
        if let Err(handed) =
            self.keeping.ask(self.number, (handed, has_log), (reach, presented), &self.reports, now)
        {
            self.replay_or_refuse(door, set, *handed, now);
        }
    }

    /// What the store keeps for a user who waits for it.
    pub fn take_backlog(
        &mut self,
        door: &mut Door,
        set: BorrowedFd<'_>,
        (key, backlog): (u64, Option<Box<Backlog>>),
        now: Moment,
    ) {
        let Some(handed) = self.keeping.take(key) else { return };
        let is_of_use = |backlog: &Backlog| self.takes_streams() && self.streams.is_of_use(backlog);
        let Some(backlog) = backlog.filter(|backlog| is_of_use(backlog)) else {
            return self.replay_or_refuse(door, set, *handed, now);
        };
        self.open_or_refuse(door, set, (*handed, Some(*backlog)), now);
    }

    /// Tells what is to be noted, and puts off who has waited too long; all of them if the shard
    /// drains.
    pub fn look_after(&mut self, door: &mut Door, set: BorrowedFd<'_>, now: Moment) {
        self.keeping.look(set, &mut self.streams, now);
        self.keeping.tell(&self.reports);
        loop {
            let has_log = |handed: &Handed| {
                let cursor = handed.request.cursor.as_ref();
                cursor.is_some_and(|cursor| self.streams.prefers_log(cursor, true, now))
            };
            let next = if self.takes_streams() {
                self.keeping.take_late(now, has_log)
            } else {
                self.keeping.take_any()
            };
            let Some(handed) = next else { return };
            self.replay_or_refuse(door, set, *handed, now);
        }
    }

    fn open_or_refuse(
        &mut self,
        door: &mut Door,
        set: BorrowedFd<'_>,
        (handed, backlog): (Handed, Option<Backlog>),
        now: Moment,
    ) {
        let Handed { socket, request, path } = handed;
        let accepts_event_stream = request.accepts_event_stream;
        if let Err(socket) = self.open(set, socket, request, backlog, now) {
            let answer = self.put_off(accepts_event_stream, &path);
            door.answer(set, socket, &answer, now);
        }
    }

    /// The store can't say what it keeps. Who has a cursor needs only the log.
    fn replay_or_refuse(
        &mut self,
        door: &mut Door,
        set: BorrowedFd<'_>,
        handed: Handed,
        now: Moment,
    ) {
        let cursor = handed.request.cursor.as_ref();
        if self.takes_streams() && cursor.is_some_and(|cursor| self.streams.may_replay(cursor)) {
            self.open_or_refuse(door, set, (handed, None), now);
        } else {
            self.refuse(door, set, handed, now);
        }
    }

    fn refuse(&mut self, door: &mut Door, set: BorrowedFd<'_>, handed: Handed, now: Moment) {
        let answer = self.put_off(handed.request.accepts_event_stream, &handed.path);
        door.answer(set, handed.socket, &answer, now);
    }

    /// Hands a request that is no stream to the control threads; gives the socket back if they
    /// have no room.
    fn hand_over(&mut self, arrival: Arrival) -> Result<(), OwnedFd> {
        let bytes = arrival.bytes.into();
        let Err(refusal) =
            self.reports.try_send(FromShard::Request { socket: arrival.socket, bytes })
        else {
            return Ok(());
        };
        match refusal.item {
            FromShard::Request { socket, .. } => Err(socket),
            _ => Ok(()),
        }
    }

    /// The answer to a request that would be taken at another time. An EventSource gives up for
    /// good on every status but 200, so it gets one, told to come back, and the end.
    fn put_off(&mut self, accepts_event_stream: bool, path: &str) -> Vec<u8> {
        probe::add(&self.probe.requests_refused, 1);
        let mut answer = Vec::new();
        if accepts_event_stream {
            answer.extend_from_slice(head::STREAM_RESPONSE_HEAD);
            frame::write_retry(&mut answer, self.streams.retry_after());
        } else {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let message = "the node can't take this request now, try again";
            let body = api::error_body(status, message, path, self.wall);
            head::write_response(&mut answer, status, api::JSON, Some(admin::RETRY_AFTER_S), &body);
        }
        answer
    }

    /// Whether the lane had room. What is refused may be a log line: the probe has counted what it
    /// was about.
    pub fn report(&self, report: FromShard) -> bool {
        self.reports.try_send(report).is_ok()
    }

    pub fn publish(&self, door: &Door) {
        let probe = &self.probe;
        probe.publish(self.streams.counters(), door.counters());
        let ring = self.streams.ring();
        probe::set(&probe.streams, self.streams.len() as u64);
        probe::set(&probe.users, self.streams.users() as u64);
        probe::set(&probe.ring_frames, ring.next() - ring.first());
        probe::set(&probe.ring_bytes, ring.bytes() as u64);
        probe::set(&probe.passed_waiting, self.intake.waiting() as u64);
        probe::set(&probe.notes_dropped, self.keeping.dropped());
        probe::set(&probe.farewells_refused, self.keeping.farewells_refused());
    }
}

/// Whether the peer has said, or shown, that it is gone.
fn is_gone(socket: &OwnedFd) -> bool {
    let flags = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut asked = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().intersects(flags)
}

/// Writes the pieces. Few bytes are put together first: the kernel takes longer over a list of
/// pieces than a copy of so little takes.
fn send(socket: &OwnedFd, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let mut together = [0; limits::JOINED_BYTES_MAX];
    let mut length = 0;
    for piece in pieces {
        let Some(place) = together.get_mut(length..length + piece.len()) else {
            return rustix::io::writev(socket, pieces);
        };
        place.copy_from_slice(piece);
        length += piece.len();
    }
    rustix::io::write(socket, &together[..length])
}

impl Visitor for Core {
    fn handle_head(&mut self, door: &mut Door, set: BorrowedFd<'_>, arrival: Arrival, now: Moment) {
        let Some(head) = head_of(&arrival.bytes) else { return };
        if !head.is_stream() {
            let path = head.path.to_owned();
            drop(head);
            if let Err(socket) = self.hand_over(arrival) {
                let answer = self.put_off(false, &path);
                door.answer(set, socket, &answer, now);
            }
            return;
        }
        let request = read_stream_request(&head, arrival.bytes.len(), self.access);
        let (socket, answer) = match request {
            Err(refusal) => {
                let body =
                    api::error_body(refusal.status(), &refusal.to_string(), head.path, self.wall);
                let mut answer = Vec::new();
                head::write_response(&mut answer, refusal.status(), api::JSON, None, &body);
                (arrival.socket, answer)
            }
            Ok(request) => {
                let path = head.path.into();
                let handed = Handed { socket: arrival.socket, request, path };
                drop(head);
                self.take_request(door, set, handed, now);
                return;
            }
        };
        door.answer(set, socket, &answer, now);
    }

    fn refusal(&mut self, error: HeadError, bytes: &[u8]) -> Vec<u8> {
        let path = head::path_of(bytes);
        let body = api::error_body(error.status(), &error.to_string(), path, self.wall);
        let mut answer = Vec::new();
        head::write_response(&mut answer, error.status(), api::JSON, None, &body);
        answer
    }
}
