//! The pump of a shard: one turn takes what is ready, decides, and feeds streams.
//!
//! Order of a turn: stop, timers, inputs of the lanes, descriptors, feeding; each bounded. Only
//! what must wait for the next turn makes it turn again at once; otherwise it sleeps, and rings of
//! its doorbell, ready descriptors and its next deadline wake it.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::io::Errno;

use super::ShardOptions;
use super::probe::{self, Probe};
use super::runtime::{Next, Pump};
use crate::base::{EpochMillis, Moment, Position};
use crate::domain::{CloseReason, Decoder, Finding, Open, Outcome, Repeats, Streams, Vector};
use crate::edge::{
    AccessRules, Arrival, Door, StreamRequest, Token, Visitor, head_of, read_stream_request, watch,
};
use crate::lane::{FromShard, Receiver, Sender, ToShard};
use crate::limits::{admin, shard as limits};
use crate::ports::{Batch, Clock};
use crate::wire::archive::SharedEvent;
use crate::wire::head::{self, HeadError};
use crate::wire::{api, frame};

/// Streams are told once their socket is writable or gone; edge-triggered, so that a stream is
/// entered into the set once and never touched again.
const STREAM_EVENTS: EventFlags = EventFlags::OUT.union(EventFlags::RDHUP).union(EventFlags::ET);
const GONE: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Reads what the log held at the start. Streams are put off.
    Starting,
    Serving,
    /// Streams have been told; ends when they are gone.
    Draining {
        until: Moment,
    },
}

/// One shard. `C` is the clock, asked once a turn.
pub struct Shard<C> {
    number: u16,
    set: OwnedFd,
    door: Door,
    inputs: Receiver<ToShard>,
    phase: Phase,
    clock: C,
    core: Core,
}

/// The part of a shard that the door calls back.
struct Core {
    number: u16,
    streams: Streams<OwnedFd>,
    decoder: Decoder,
    repeats: Repeats,
    /// Events of the batch at hand that the streams do not know of yet.
    decoded: Vec<SharedEvent>,
    access: AccessRules,
    reports: Sender<FromShard>,
    probe: Arc<Probe>,
    is_serving: bool,
    wall: EpochMillis,
    /// When the oldest event was appended whose fan-out is not finished.
    fanout_since: Option<EpochMillis>,
}

impl<C: Clock> Shard<C> {
    /// Fails when the kernel refuses an epoll set or to watch listener and doorbell.
    pub fn new(options: ShardOptions, clock: C) -> std::io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = options.inputs.bell().clone();
        watch(set.as_fd(), bell.as_fd(), Token::Bell, EventFlags::IN)?;
        let door = Door::new(options.listener, set.as_fd())?;
        let shape = options.streams.shape;
        let streams = Streams::new(options.streams, Vector::new(&shape), clock.moment());
        let core = Core {
            number: options.number,
            streams,
            decoder: Decoder::new(shape),
            repeats: Repeats::new(shape),
            decoded: Vec::with_capacity(limits::EVENTS_AT_ONCE),
            access: options.access,
            reports: options.reports,
            probe: options.probe,
            is_serving: false,
            wall: clock.wall(),
            fanout_since: None,
        };
        let inputs = options.inputs;
        Ok(Self { number: core.number, set, door, inputs, phase: Phase::Starting, clock, core })
    }

    fn take_inputs(&mut self, now: Moment) {
        for _ in 0..limits::INPUTS_PER_TURN_MAX {
            match self.inputs.try_recv() {
                None => return,
                Some(ToShard::Identity(identity)) => self.core.streams.handle_identity(identity),
                Some(ToShard::Start { partition, next }) => {
                    self.core.streams.handle_start(partition, next);
                }
                Some(ToShard::Batch(batch)) => self.core.take_batch(&batch),
                Some(ToShard::CaughtUp) => {
                    if self.phase == Phase::Starting {
                        self.phase = Phase::Serving;
                        self.core.is_serving = true;
                        probe::set(&self.core.probe.serving, 1);
                        self.core.report(FromShard::Serving { shard: self.number });
                    }
                }
                Some(ToShard::Drain { window }) => {
                    self.door.close();
                    self.core.is_serving = false;
                    probe::set(&self.core.probe.serving, 0);
                    self.core.streams.handle_drain(window);
                    self.phase = Phase::Draining { until: now.plus(limits::DRAIN_TIME) };
                }
            }
        }
    }

    fn take_ready(&mut self, ready: &[Event], now: Moment) {
        let set = self.set.as_fd();
        for event in ready {
            let (data, flags) = (event.data, event.flags);
            match Token::from_bits(data.u64()) {
                Token::Bell => self.inputs.bell().silence(),
                Token::Listener => self.door.handle_connects(set, &mut self.core, now),
                Token::Head(key) => self.door.handle_readable(set, key, &mut self.core, now),
                Token::Stream(key) if flags.intersects(GONE) => {
                    self.core.streams.handle_close(key, CloseReason::Peer);
                }
                Token::Stream(key) => self.core.streams.handle_writable(key),
            }
        }
    }

    fn next(&self) -> Next {
        let is_done = match self.phase {
            Phase::Draining { until } => {
                self.core.streams.is_empty() || until <= self.clock.moment()
            }
            Phase::Starting | Phase::Serving => false,
        };
        if is_done {
            return Next::Stop;
        }
        let has_work = self.core.streams.wants_to_write();
        if has_work || !self.inputs.bell().may_sleep(|| self.inputs.is_empty()) {
            return Next::Turn;
        }
        let drained = match self.phase {
            Phase::Draining { until } => Some(until),
            Phase::Starting | Phase::Serving => None,
        };
        let deadlines = [self.core.streams.poll_timeout(), self.door.poll_timeout(), drained];
        Next::Wait(deadlines.into_iter().flatten().min())
    }
}

impl<C: Clock> Pump for Shard<C> {
    fn set(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }

    fn turn(&mut self, ready: &[Event]) -> Next {
        let began = Instant::now();
        self.inputs.bell().awake();
        let now = self.clock.moment();
        self.core.wall = self.clock.wall();
        self.core.streams.handle_timers(now, self.core.wall);
        self.door.handle_timers(self.set.as_fd(), &mut self.core, now);
        self.take_inputs(now);
        self.take_ready(ready, now);
        self.core.feed(now);
        self.core.publish(&self.door);
        let took = began.elapsed();
        self.core.probe.turns.record(took);
        if took > limits::LONG_TURN {
            probe::add(&self.core.probe.long_turns, 1);
            self.core.report(FromShard::LongTurn { shard: self.number, took });
        }
        self.next()
    }
}

impl Core {
    /// Decodes records and appends their events to the ring. A record's fate follows from its
    /// bytes alone; whatever it is, the position advances.
    fn take_batch(&mut self, batch: &Batch) {
        for record in &batch.records {
            let position = Position { partition: batch.partition, offset: record.offset };
            let value = record.value.as_deref();
            match self.decoder.decode_caught(position, record.appended_at, value) {
                Finding::Serve(event) if self.repeats.note(position, event.event_id()) => {
                    probe::add(&self.probe.repeats, 1);
                }
                Finding::Serve(event) => {
                    self.decoded.push(event);
                    if self.decoded.len() >= limits::EVENTS_AT_ONCE {
                        self.streams.handle_events(&mut self.decoded);
                    }
                    probe::add(&self.probe.events, 1);
                    if self.is_serving && self.fanout_since.is_none() {
                        self.fanout_since = Some(record.appended_at);
                    }
                }
                Finding::Ignore(reason) => {
                    probe::add(&self.probe.unserved_records, 1);
                    self.report(FromShard::Unserved { position, reason: reason.name() });
                }
                Finding::Bad(reason) => {
                    probe::add(&self.probe.bad_records, 1);
                    self.report(FromShard::BadRecord { position, reason: reason.to_string() });
                }
            }
        }
        self.streams.handle_events(&mut self.decoded);
        self.streams.handle_position(batch.partition, batch.next);
    }

    /// Writes to streams until none wants to, or the turn is long enough.
    fn feed(&mut self, now: Moment) {
        for _ in 0..limits::FEEDS_PER_TURN_MAX {
            let Some(write) = self.streams.poll_write(now, self.wall) else { break };
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
        if !self.streams.wants_to_write()
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
        now: Moment,
    ) -> Result<(), OwnedFd> {
        let connection = request.connection;
        let connection = connection.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let open = Open {
            socket,
            user: &request.user,
            members: &request.members,
            connection: &connection,
            cursor: request.cursor,
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
        Ok(())
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
        probe::add(&self.probe.requests_refused, 1);
        match refusal.item {
            FromShard::Request { socket, .. } => Err(socket),
            _ => Ok(()),
        }
    }

    /// The answer to a request that would be taken at another time. An EventSource gives up for
    /// good on every status but 200, so it gets one, told to come back, and the end.
    fn put_off(&mut self, accepts_event_stream: bool, path: &str) -> Vec<u8> {
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

    fn report(&self, report: FromShard) {
        // A full lane loses a log line; the probe has counted what it was about.
        let _ = self.reports.try_send(report);
    }

    fn publish(&self, door: &Door) {
        let probe = &self.probe;
        probe.publish(self.streams.counters(), door.counters());
        let ring = self.streams.ring();
        probe::set(&probe.streams, self.streams.len() as u64);
        probe::set(&probe.users, self.streams.users() as u64);
        probe::set(&probe.ring_frames, ring.next() - ring.first());
        probe::set(&probe.ring_bytes, ring.bytes() as u64);
    }
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
                let accepts_event_stream = request.accepts_event_stream;
                let taken = if self.is_serving {
                    self.open(set, arrival.socket, request, now)
                } else {
                    Err(arrival.socket)
                };
                let Err(socket) = taken else { return };
                probe::add(&self.probe.requests_refused, 1);
                (socket, self.put_off(accepts_event_stream, head.path))
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
