//! A shard whose streams replay, without sockets and log: writes go to memory, and parts of the log
//! are as many events as a test wants.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use corecast::base::{
    BroadcastId, EpochMillis, LogIdentity, LogShape, Moment, Partition, Position, Topic, UserId,
};
use corecast::domain::{
    Open, Outcome, ReadAgain, Reread, RingLimits, StreamKey, Streams, StreamsOptions, Vector,
};
use corecast::wire::archive::{Archiver, Audience, Event, EventKind, SharedEvent};
use corecast::wire::cursor::{Cursor, CursorParts, UserMark};

pub const SHAPE: LogShape =
    LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 1, group_partitions: 1 };
pub const GROUP: Partition = Partition { topic: Topic::Group, index: 0 };
pub const NOON: EpochMillis = EpochMillis(1_795_608_000_000);
/// Events that the ring holds.
pub const RING: u64 = 4;

#[derive(Default, Debug)]
pub struct Kernel {
    pub bytes: Vec<u8>,
    /// Bytes that it takes yet; `None`: any number.
    pub room: Option<usize>,
}

pub type Socket = Rc<RefCell<Kernel>>;

pub struct Bench {
    pub streams: Streams<Socket>,
    pub now: Moment,
    pub wall: EpochMillis,
    /// What of the log was read again, from where.
    pub reread: Vec<u64>,
    /// Whose writes there were, in order.
    pub writes: Vec<StreamKey>,
}

impl Bench {
    /// A shard that has read so many events, all for everybody.
    pub fn new(events: u64) -> Self {
        Self::with_ring(RING, events)
    }

    /// The same, with a ring of so many frames.
    pub fn with_ring(frames: u64, events: u64) -> Self {
        let options = StreamsOptions {
            shape: SHAPE,
            ring: RingLimits { frames: frames as usize, bytes: 1 << 20 },
            streams_max: 2_000,
            heartbeat: Duration::from_secs(25),
            write_progress: Duration::from_secs(30),
            ended_kept: Duration::from_secs(3_600),
            max_age: None,
            seed: 1,
        };
        let now = Moment(1_000_000);
        let mut streams = Streams::new(options, Vector::new(&SHAPE), now);
        streams.handle_fence(true);
        let mut bench = Self { streams, now, wall: NOON, reread: Vec::new(), writes: Vec::new() };
        for offset in 0..events {
            bench.streams.handle_events(&mut vec![event(offset, offset)]);
        }
        bench
    }

    /// A stream that has been served everything before this offset.
    pub fn open(&mut self, user: &str, served: u64) -> (StreamKey, Socket) {
        let socket = Socket::default();
        let opened = self.streams.handle_open(
            Open {
                socket: socket.clone(),
                user: &UserId::new(user).expect("a user id"),
                members: &[],
                connection: "tab",
                cursor: Some(cursor(user, served)),
                backlog: None,
                response_head: b"",
            },
            self.now,
            NOON,
        );
        (opened.expect("room"), socket)
    }

    pub fn write(&mut self) {
        while self.streams.wants_to_write() {
            self.write_turn();
        }
    }

    pub fn write_turn(&mut self) {
        loop {
            let Some(write) = self.streams.poll_write(self.wall) else { return };
            let (key, socket) = (write.key, write.socket.clone());
            let bytes: Vec<u8> =
                write.pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            drop(write);
            let mut kernel = socket.borrow_mut();
            let taken = kernel.room.map_or(bytes.len(), |room| room.min(bytes.len()));
            let outcome = if taken == 0 {
                Outcome::Full
            } else {
                kernel.bytes.extend_from_slice(&bytes[..taken]);
                kernel.room = kernel.room.map(|room| room - taken);
                self.writes.push(key);
                Outcome::Took(taken)
            };
            drop(kernel);
            self.streams.handle_written(key, outcome, self.now);
        }
    }

    /// Reads again what is asked for, a part of so many records at a time, until nothing is.
    pub fn replay(&mut self, part: u64) {
        while self.replay_part(part) {}
    }

    /// Reads one part again, if one is asked for.
    pub fn replay_part(&mut self, part: u64) -> bool {
        self.write();
        let Some(Reread { pass, from }) = self.streams.poll_reread(self.now) else { return false };
        let [(GROUP, from)] = from[..] else { panic!("one partition has events: {from:?}") };
        self.reread.push(from);
        let next = from + part;
        let events = (from..next).map(|offset| event(offset, offset)).collect();
        self.streams.handle_reread(pass, Ok(read(events, next)), self.now);
        true
    }
}

/// Of a user who has been served everything before this offset.
pub fn cursor(user: &str, served: u64) -> Cursor {
    let mut text = Vec::new();
    let parts = CursorParts {
        shape: SHAPE,
        at: NOON,
        backlog: false,
        user: UserMark::of(user),
        own_partition: 0,
        own: 0,
        group: &[served],
        offset_max: served,
    };
    parts.write(&mut text);
    Cursor::parse(std::str::from_utf8(&text).expect("base64")).expect("a cursor")
}

pub fn event(offset: u64, id: u64) -> SharedEvent {
    event_until(offset, id, None)
}

pub fn event_until(offset: u64, id: u64, expires_at: Option<EpochMillis>) -> SharedEvent {
    event_of(offset, id, expires_at, Audience::Everyone)
}

pub fn event_for(user: &str, offset: u64) -> SharedEvent {
    event_of(offset, offset, None, Audience::User(user))
}

fn event_of(
    offset: u64,
    id: u64,
    expires_at: Option<EpochMillis>,
    audience: Audience<'_>,
) -> SharedEvent {
    let body = format!("event: MESSAGE\ndata: {{\"offset\":{offset}}}\n\n");
    Archiver::default().write(Event {
        position: Position { partition: GROUP, offset },
        appended_at: NOON,
        event_id: u128::from(id),
        attempt: 0,
        broadcast: BroadcastId::new(42).expect("small"),
        expires_at,
        kind: EventKind::Message,
        is_passing: false,
        audience,
        body: body.as_bytes(),
    })
}

pub fn read(events: Vec<SharedEvent>, next: u64) -> ReadAgain {
    ReadAgain { events, next: vec![(GROUP, next)] }
}

/// The offsets of what came, in order.
pub fn offsets(socket: &Socket) -> Vec<u64> {
    let text = String::from_utf8(socket.borrow().bytes.clone()).expect("UTF-8");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: {\"offset\":"));
    data.map(|rest| rest.trim_end_matches('}').parse().expect("a number")).collect()
}

/// How far it was served, by the ids that came, in order.
pub fn served(socket: &Socket) -> Vec<u64> {
    let text = String::from_utf8(socket.borrow().bytes.clone()).expect("UTF-8");
    let ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.map(|id| Cursor::parse(id).expect("a cursor").group[0]).collect()
}
