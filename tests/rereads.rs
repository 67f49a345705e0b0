//! Streams that the ring has lost: the log is read once for all of them, and neither a slow one
//! among them nor their number holds up anybody else; nor is it read once for each shard.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corecast::base::{
    BroadcastId, EpochMillis, LogIdentity, LogShape, Moment, Partition, Position, Topic, UserId,
};
use corecast::control::rereads;
use corecast::domain::{
    Open, Outcome, ReadAgain, Reread, RingLimits, StreamKey, Streams, StreamsOptions, Unread,
    Vector,
};
use corecast::lane::{Doorbell, ToShard, lane};
use corecast::limits;
use corecast::limits::log::REPEAT_RECORDS;
use corecast::limits::shard::{
    LIVE_FRAMES, PAST_FRAMES_MAX, REPLAY_EVENTS_PER_TURN_MAX, REPLAY_GONE_TIME, REPLAY_PATIENCE,
    REPLAY_RECORDS_FAR, REPLAY_RECORDS_MAX, REPLAY_SHARE, REPLAY_WRITE_BYTES,
    REPLAY_WRITES_PER_TURN_MAX,
};
use corecast::ports::{MovedRecord, SystemClock};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use corecast::wire::archive::{Archiver, Audience, Event, SharedEvent};
use corecast::wire::cursor::{Cursor, CursorParts};

const SHAPE: LogShape =
    LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 1, group_partitions: 1 };
const GROUP: Partition = Partition { topic: Topic::Group, index: 0 };
const NOON: EpochMillis = EpochMillis(1_795_608_000_000);
/// Events that the ring holds.
const RING: u64 = 4;

#[derive(Default, Debug)]
struct Kernel {
    bytes: Vec<u8>,
    /// Bytes that it takes yet; `None`: any number.
    room: Option<usize>,
}

type Socket = Rc<RefCell<Kernel>>;

struct Bench {
    streams: Streams<Socket>,
    now: Moment,
    wall: EpochMillis,
    /// What of the log was read again, from where.
    reread: Vec<u64>,
    /// Whose writes there were, in order.
    writes: Vec<StreamKey>,
}

impl Bench {
    /// A shard that has read so many events, all for everybody.
    fn new(events: u64) -> Self {
        Self::with_ring(RING, events)
    }

    /// The same, with a ring of so many frames.
    fn with_ring(frames: u64, events: u64) -> Self {
        let options = StreamsOptions {
            shape: SHAPE,
            ring: RingLimits { frames: frames as usize, bytes: 1 << 20 },
            streams_max: 2_000,
            heartbeat: Duration::from_secs(25),
            write_progress: Duration::from_secs(30),
            seed: 1,
        };
        let now = Moment(1_000_000);
        let streams = Streams::new(options, Vector::new(&SHAPE), now);
        let mut bench = Self { streams, now, wall: NOON, reread: Vec::new(), writes: Vec::new() };
        for offset in 0..events {
            bench.streams.handle_events(&mut vec![event(offset, offset)]);
        }
        bench
    }

    /// A stream that has been served everything before this offset.
    fn open(&mut self, user: &str, served: u64) -> (StreamKey, Socket) {
        let socket = Socket::default();
        let opened = self.streams.handle_open(
            Open {
                socket: socket.clone(),
                user: &UserId::new(user).expect("a user id"),
                members: &[],
                connection: "tab",
                cursor: Some(cursor(served)),
                backlog: None,
                response_head: b"",
            },
            self.now,
            NOON,
        );
        (opened.expect("room"), socket)
    }

    fn write(&mut self) {
        while self.streams.wants_to_write() {
            self.write_turn();
        }
    }

    fn write_turn(&mut self) {
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
    fn replay(&mut self, part: u64) {
        while self.replay_part(part) {}
    }

    /// Reads one part again, if one is asked for.
    fn replay_part(&mut self, part: u64) -> bool {
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

/// Of who has been served everything before this offset.
fn cursor(served: u64) -> Cursor {
    let mut text = Vec::new();
    let parts = CursorParts {
        shape: SHAPE,
        at: NOON,
        backlog: false,
        own_partition: 0,
        own: 0,
        group: &[served],
        offset_max: served,
    };
    parts.write(&mut text);
    Cursor::parse(std::str::from_utf8(&text).expect("base64")).expect("a cursor")
}

fn event(offset: u64, id: u64) -> SharedEvent {
    event_until(offset, id, None)
}

fn event_until(offset: u64, id: u64, expires_at: Option<EpochMillis>) -> SharedEvent {
    let body = format!("event: MESSAGE\ndata: {{\"offset\":{offset}}}\n\n");
    Archiver::default().write(Event {
        position: Position { partition: GROUP, offset },
        appended_at: NOON,
        event_id: u128::from(id),
        attempt: 0,
        broadcast: BroadcastId::new(42).expect("small"),
        expires_at,
        is_passing: false,
        audience: Audience::Everyone,
        body: body.as_bytes(),
    })
}

fn read(events: Vec<SharedEvent>, next: u64) -> ReadAgain {
    ReadAgain { events, next: vec![(GROUP, next)] }
}

/// The offsets of what came, in order.
fn offsets(socket: &Socket) -> Vec<u64> {
    let text = String::from_utf8(socket.borrow().bytes.clone()).expect("UTF-8");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: {\"offset\":"));
    data.map(|rest| rest.trim_end_matches('}').parse().expect("a number")).collect()
}

/// How far it was served, by the ids that came, in order.
fn served(socket: &Socket) -> Vec<u64> {
    let text = String::from_utf8(socket.borrow().bytes.clone()).expect("UTF-8");
    let ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.map(|id| Cursor::parse(id).expect("a cursor").group[0]).collect()
}

#[test]
fn what_many_need_is_read_once() {
    let mut bench = Bench::new(1_000);
    let sockets: Vec<_> = (0..500_u64)
        .map(|number| (number, bench.open(&format!("user-{number}"), number).1))
        .collect();
    bench.replay(100);
    for (served, socket) in &sockets {
        assert_eq!(offsets(socket), (*served..1_000).collect::<Vec<_>>(), "from {served}");
    }
    assert_eq!(bench.reread, (0..10).map(|part| part * 100).collect::<Vec<_>>());
    // Who comes while a pass is under way joins it, if it has not come by.
    let mut bench = Bench::new(1_000);
    let (_, first) = bench.open("first", 0);
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("it is behind");
    let (_, later) = bench.open("later", 300);
    bench.write();
    let events = (0..200).map(|offset| event(offset, offset)).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(events, 200)), bench.now);
    let (_, earlier) = bench.open("earlier", 50);
    bench.replay(200);
    for (served, socket) in [(0, first), (300, later), (50, earlier)] {
        assert_eq!(offsets(&socket), (served..1_000).collect::<Vec<_>>(), "from {served}");
    }
    // One was too late for it, and had a pass of its own.
    assert_eq!(bench.reread, [200, 400, 600, 800, 0, 200, 400, 600, 800]);
}

/// A crowd does not come at one time: once more have come than are served, all begin together.
#[test]
fn a_crowd_that_comes_after_the_first_is_taken_in() {
    let mut bench = Bench::new(1_000);
    let mut sockets = vec![bench.open("first", 0).1];
    for _ in 0..3 {
        bench.replay_part(100);
    }
    sockets.push(bench.open("second", 0).1);
    bench.replay_part(100);
    sockets.push(bench.open("third", 0).1);
    sockets.push(bench.open("fourth", 50).1);
    bench.replay(100);
    let parts = [0, 100, 200, 300].into_iter().chain((0..10).map(|part| part * 100));
    assert_eq!(bench.reread, parts.collect::<Vec<_>>());
    for (socket, first) in sockets.iter().zip([0, 0, 0, 50]) {
        assert_eq!(offsets(socket), (first..1_000).collect::<Vec<_>>());
    }
}

/// However many are slow: those that are not would begin again and again.
#[test]
fn those_that_were_left_behind_wait_for_the_next_pass() {
    let mut bench = Bench::new(1_000);
    let (_, quick) = bench.open("quick", 0);
    let slow: Vec<_> = (0..3).map(|number| bench.open(&format!("slow-{number}"), 0)).collect();
    bench.write();
    slow.iter().for_each(|(_, socket)| socket.borrow_mut().room = Some(0));
    bench.replay(100);
    bench.now = bench.now.plus(REPLAY_PATIENCE);
    bench.replay_part(100);
    for (key, socket) in &slow {
        socket.borrow_mut().room = None;
        bench.streams.handle_writable(*key);
    }
    bench.replay(100);
    let parts = (0..10).map(|part| part * 100);
    assert_eq!(bench.reread, parts.clone().chain(parts).collect::<Vec<_>>());
    for socket in slow.iter().map(|(_, socket)| socket).chain([&quick]) {
        assert_eq!(offsets(socket), (0..1_000).collect::<Vec<_>>());
    }
}

#[test]
fn one_whose_socket_is_full_holds_up_nobody() {
    let mut bench = Bench::new(1_000);
    let (slow_key, slow) = bench.open("slow", 0);
    let (_, quick) = bench.open("quick", 0);
    bench.write();
    slow.borrow_mut().room = Some(0);
    bench.replay(100);
    assert_eq!(offsets(&quick), (0..100).collect::<Vec<_>>(), "it waits for the slow one");
    assert_eq!(bench.streams.poll_timeout(), Some(bench.now.plus(REPLAY_PATIENCE)));
    bench.now = bench.now.plus(REPLAY_PATIENCE);
    bench.replay(100);
    assert_eq!(offsets(&quick), (0..1_000).collect::<Vec<_>>(), "but not for ever");
    assert_eq!(offsets(&slow), Vec::<u64>::new());
    // It goes on where it stands, once it takes something again.
    slow.borrow_mut().room = None;
    bench.streams.handle_writable(slow_key);
    bench.replay(100);
    assert_eq!(offsets(&slow), (0..1_000).collect::<Vec<_>>());
}

#[test]
fn what_was_read_again_goes_out_together() {
    let mut bench = Bench::new(1_000);
    let (_, socket) = bench.open("late", 0);
    bench.write();
    bench.writes.clear();
    bench.replay(996);
    assert_eq!(offsets(&socket), (0..1_000).collect::<Vec<_>>());
    let bytes = socket.borrow().bytes.len();
    assert!(bench.writes.len() <= bytes / REPLAY_WRITE_BYTES + 2, "{} writes", bench.writes.len());
    let counters = bench.streams.counters();
    assert_eq!((counters.deliveries, counters.bytes), (1_000, bytes as u64));
}

/// Wherever the socket is full: what has begun comes whole, and what has not is looked at again.
#[test]
fn what_goes_out_together_may_end_before_it_does() {
    const SEEN: u64 = 16;
    let later = NOON.plus(Duration::from_millis(1));
    let events =
        || (0..SEEN).map(|offset| event_until(offset, offset, (offset % 2 == 1).then_some(later)));
    let replay = |room: Option<usize>| {
        let mut bench = Bench::new(SEEN + RING);
        let (key, socket) = bench.open("late", 0);
        bench.write();
        let reread = bench.streams.poll_reread(bench.now).expect("it is behind");
        bench.streams.handle_reread(reread.pass, Ok(read(events().collect(), SEEN)), bench.now);
        *socket.borrow_mut() = Kernel { bytes: Vec::new(), room };
        bench.write();
        let before = String::from_utf8(socket.borrow().bytes.clone()).expect("ASCII");
        bench.wall = later;
        socket.borrow_mut().room = None;
        bench.streams.handle_writable(key);
        bench.write();
        (before, socket, bench.streams.counters().deliveries)
    };
    let (all, ..) = replay(None);
    let ends: Vec<usize> = all.match_indices("\n\n").map(|(at, _)| at + 2).collect();
    assert_eq!(ends.len() as u64, SEEN + RING, "one write has all, and then comes the ring");
    for room in 1..ends[SEEN as usize - 1] {
        let (_, socket, deliveries) = replay(Some(room));
        let has_begun = |offset: &u64| *offset == 0 || ends[*offset as usize - 1] < room;
        let is_due =
            |offset: &u64| offset.is_multiple_of(2) || *offset >= SEEN || has_begun(offset);
        let due: Vec<u64> = (0..SEEN + RING).filter(is_due).collect();
        assert_eq!(offsets(&socket), due, "{room} bytes");
        let ids: Vec<u64> = due.iter().map(|offset| offset + 1).collect();
        assert_eq!(served(&socket), ids, "{room} bytes");
        assert_eq!(deliveries, due.len() as u64, "{room} bytes");
    }
}

#[test]
fn those_that_replay_leave_the_others_their_turns() {
    let mut bench = Bench::new(1_000);
    for number in 0..100 {
        bench.open(&format!("late-{number}"), 0);
    }
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("they are behind");
    let events = (0..100).map(|offset| event(offset, offset)).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(events, 100)), bench.now);
    let live: Vec<_> =
        (0..10).map(|number| bench.open(&format!("live-{number}"), 1_000).0).collect();
    bench.writes.clear();
    bench.write();
    let last = bench.writes.iter().rposition(|key| live.contains(key)).expect("CONNECTED");
    let most = live.len() * REPLAY_SHARE as usize / (REPLAY_SHARE as usize - 1) + 1;
    assert!(last <= most, "the last of them had the {last}th write of {}", bench.writes.len());
}

/// A turn ends when they have had their share of it: what is live may have come meanwhile.
#[test]
fn those_that_replay_end_a_turn() {
    let mut bench = Bench::new(1_000);
    let late = 2 * REPLAY_WRITES_PER_TURN_MAX;
    let sockets: Vec<_> = (0..late).map(|late| bench.open(&format!("late-{late}"), 0).1).collect();
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("they are behind");
    let events = (0..10).map(|offset| event(offset, offset)).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(events, 10)), bench.now);
    let mut turns = Vec::new();
    while bench.streams.wants_to_write() {
        bench.writes.clear();
        bench.write_turn();
        turns.push(bench.writes.len());
    }
    assert_eq!(turns, [REPLAY_WRITES_PER_TURN_MAX, REPLAY_WRITES_PER_TURN_MAX, 0]);
    for socket in sockets {
        assert_eq!(offsets(&socket), (0..10).collect::<Vec<_>>());
    }
}

/// Nor does it matter where from: what the ring still has is late, too.
#[test]
fn those_that_are_far_behind_in_the_ring_are_a_share_of_a_turn() {
    const EVENTS: u64 = 4 * LIVE_FRAMES;
    let mut bench = Bench::with_ring(2 * EVENTS, EVENTS);
    let late: Vec<_> = (0..100).map(|late| bench.open(&format!("late-{late}"), 0).1).collect();
    let live: Vec<_> = (0..10).map(|live| bench.open(&format!("live-{live}"), EVENTS)).collect();
    // CONNECTED of each, and then what is late.
    bench.write_turn();
    bench.write_turn();
    bench.streams.handle_events(&mut vec![event(EVENTS, EVENTS)]);
    bench.writes.clear();
    bench.write_turn();
    let is_live = |key: &StreamKey| live.iter().any(|(live, _)| live == key);
    let last = bench.writes.iter().rposition(is_live).expect("an event");
    let most = live.len() * REPLAY_SHARE as usize / (REPLAY_SHARE as usize - 1) + 1;
    assert!(last <= most, "the last of them had the {last}th write of {}", bench.writes.len());
    assert!(bench.writes.len() <= live.len() + REPLAY_WRITES_PER_TURN_MAX);
    assert!(bench.streams.wants_to_write(), "the rest comes in later turns");
    bench.write();
    for socket in late {
        assert_eq!(offsets(&socket), (0..=EVENTS).collect::<Vec<_>>());
    }
    for (_, socket) in live {
        assert_eq!(offsets(&socket), [EVENTS]);
    }
}

/// What is for none of many streams is looked at for each of them: not all of it in one turn.
#[test]
fn what_is_for_nobody_leaves_the_others_their_turns() {
    let events = REPLAY_EVENTS_PER_TURN_MAX as u64 / 100;
    let mut bench = Bench::new(2 * events);
    let sockets: Vec<_> = (0..250).map(|late| bench.open(&format!("late-{late}"), 0).1).collect();
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("they are behind");
    let ended = (0..events).map(|offset| event_until(offset, offset, Some(NOON))).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(ended, events)), bench.now);
    let mut turns = 0;
    while bench.streams.wants_to_write() && bench.streams.poll_write(NOON).is_none() {
        turns += 1;
    }
    assert_eq!(turns, 3);
    bench.replay(events);
    for socket in sockets {
        assert_eq!(offsets(&socket), (events..2 * events).collect::<Vec<_>>());
    }
}

#[test]
fn what_repeats_another_is_not_served_again_from_the_log() {
    // Event 7 stands at 10 once more, and at 900 event 899.
    let id = |offset: u64| match offset {
        10 => 7,
        900 => 899,
        other => other,
    };
    for served in [0, 8, 50] {
        let mut bench = Bench::new(1_000);
        let (_, socket) = bench.open("late", served);
        bench.write();
        let mut first = None;
        while let Some(Reread { pass, from }) = bench.streams.poll_reread(bench.now) {
            first.get_or_insert(from[0].1);
            let (from, next) = (from[0].1, (from[0].1 + 300).min(1_000));
            let events = (from..next).map(|offset| event(offset, id(offset))).collect();
            bench.streams.handle_reread(pass, Ok(read(events, next)), bench.now);
            bench.write();
        }
        assert_eq!(first, Some(0), "a window of repeats before what is served");
        let due = (served..1_000).filter(|offset| ![10, 900].contains(offset));
        assert_eq!(offsets(&socket), due.collect::<Vec<_>>(), "from {served}");
    }
    const { assert!(REPEAT_RECORDS > 1_000) };
}

#[test]
fn what_is_not_to_be_had_ends_the_streams_and_the_next_come_in() {
    for (why, soon) in [(Unread::Gone, true), (Unread::Away, false)] {
        let mut bench = Bench::new(1_000);
        let sockets: Vec<_> =
            (0..3).map(|number| bench.open(&format!("user-{number}"), 0).1).collect();
        bench.write();
        let reread = bench.streams.poll_reread(bench.now).expect("they are behind");
        assert!(bench.streams.prefers_log(&cursor(0), true, bench.now));
        assert!(!bench.streams.prefers_log(&cursor(0), false, bench.now), "he is alone, and near");
        bench.streams.handle_reread(reread.pass, Err(why), bench.now);
        let prefers = |after| bench.streams.prefers_log(&cursor(0), true, bench.now.plus(after));
        assert_eq!(prefers(Duration::ZERO), why == Unread::Away, "the store has what is gone");
        assert!(prefers(REPLAY_GONE_TIME), "it may be another part");
        bench.write();
        assert!(bench.streams.is_empty());
        for socket in &sockets {
            let text = String::from_utf8(socket.borrow().bytes.clone()).expect("UTF-8");
            let retries = text.lines().filter_map(|line| line.strip_prefix("retry: "));
            let retries: Vec<u64> = retries.map(|retry| retry.parse().expect("one")).collect();
            assert_eq!((retries.len(), retries[1] < 1_000), (2, soon), "{why:?}: {retries:?}");
        }
        let (_, next) = bench.open("next", 990);
        bench.replay(100);
        assert_eq!(offsets(&next), (990..1_000).collect::<Vec<_>>());
        // An answer to what nobody waits for any more changes nothing.
        bench.streams.handle_reread(reread.pass, Err(why), bench.now);
        assert_eq!(bench.streams.len(), 1);
    }
}

/// The store would have to look at as many rows, for each of them.
#[test]
fn who_is_far_behind_is_served_by_the_log() {
    let mut bench = Bench::new(RING);
    bench.streams.handle_position(GROUP, REPLAY_RECORDS_FAR + 1);
    let prefers = |served| bench.streams.prefers_log(&cursor(served), false, bench.now);
    assert_eq!([0, 1, 2].map(prefers), [true, true, false]);
    for offset in REPLAY_RECORDS_MAX + 1..=REPLAY_RECORDS_MAX + 2 * RING {
        bench.streams.handle_events(&mut vec![event(offset, offset)]);
    }
    let prefers = |served| bench.streams.prefers_log(&cursor(served), true, bench.now);
    assert!(!prefers(0), "the log is not read as far back for one client");
}

#[test]
fn no_heartbeat_passes_what_is_still_to_come() {
    let mut bench = Bench::new(1_000);
    let (_, socket) = bench.open("late", 100);
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("it is behind");
    // Of more than ten of them, one says where a stream stands.
    for _ in 0..12 {
        bench.now = bench.now.plus(Duration::from_secs(25));
        bench.streams.handle_timers(bench.now, NOON);
        bench.write();
    }
    assert_eq!(served(&socket), [100], "that of CONNECTED");
    let events = (0..1_000).map(|offset| event(offset, offset)).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(events, 1_000)), bench.now);
    bench.write();
    assert_eq!(offsets(&socket), (100..1_000).collect::<Vec<_>>());
}

#[test]
fn the_ring_may_go_on_while_they_replay() {
    let mut bench = Bench::new(1_000);
    let (key, socket) = bench.open("late", 0);
    let mut appended = 1_000;
    let mut rounds = BTreeMap::new();
    for round in 0.. {
        bench.write();
        // Two for each that is read again, until far on.
        if appended < 1_400 {
            for _ in 0..20 {
                bench.streams.handle_events(&mut vec![event(appended, appended)]);
                appended += 1;
            }
        }
        let Some(Reread { pass, from }) = bench.streams.poll_reread(bench.now) else { break };
        rounds.insert(round, from[0].1);
        let (from, next) = (from[0].1, from[0].1 + 40);
        let events = (from..next).map(|offset| event(offset, offset)).collect();
        bench.streams.handle_reread(pass, Ok(read(events, next)), bench.now);
    }
    bench.write();
    assert!(!bench.streams.replays(key), "it has come to the ring: {rounds:?}");
    assert_eq!(offsets(&socket), (0..appended).collect::<Vec<_>>());
}

#[test]
fn a_reader_that_the_ring_overtakes_goes_on_where_it_is() {
    let mut bench = Bench::new(500);
    let (key, socket) = bench.open("slow", 500);
    let (_, quick) = bench.open("quick", 500);
    let come = |bench: &mut Bench, offsets: std::ops::Range<u64>| {
        for offset in offsets {
            bench.streams.handle_events(&mut vec![event(offset, offset)]);
            bench.write();
        }
    };
    come(&mut bench, 500..510);
    // Records of which nothing is for this shard come between, and ids say so.
    bench.streams.handle_position(GROUP, 550);
    for _ in 0..12 {
        bench.now = bench.now.plus(Duration::from_secs(25));
        bench.streams.handle_timers(bench.now, NOON);
        bench.write();
    }
    assert_eq!(served(&socket).last(), Some(&550));
    socket.borrow_mut().room = Some(0);
    bench.streams.handle_position(GROUP, 600);
    come(&mut bench, 600..700);
    assert!(bench.streams.poll_reread(bench.now).is_none(), "its socket takes nothing");
    socket.borrow_mut().room = None;
    bench.streams.handle_writable(key);
    bench.write();
    while let Some(Reread { pass, from }) = bench.streams.poll_reread(bench.now) {
        let next = 700.min(from[0].1 + 40);
        let here = (from[0].1..next).filter(|offset| !(510..600).contains(offset));
        let events = here.map(|offset| event(offset, offset)).collect();
        bench.streams.handle_reread(pass, Ok(read(events, next)), bench.now);
        bench.write();
    }
    come(&mut bench, 700..710);
    let all: Vec<_> = (500..510).chain(600..710).collect();
    assert_eq!(offsets(&socket), all);
    assert_eq!(offsets(&quick), all);
    assert!(bench.streams.contains(key) && !bench.streams.replays(key));
    let ids = served(&socket);
    assert!(ids.is_sorted(), "{ids:?}");
    assert_eq!(ids.last(), Some(&710));
}

#[test]
fn who_was_overtaken_too_long_ago_comes_back() {
    let mut bench = Bench::new(10);
    let (key, socket) = bench.open("slow", 10);
    bench.write();
    socket.borrow_mut().room = Some(0);
    let all = 10 + 2 * PAST_FRAMES_MAX as u64;
    for offset in 10..all {
        bench.streams.handle_events(&mut vec![event(offset, offset)]);
        bench.write();
    }
    socket.borrow_mut().room = None;
    bench.streams.handle_writable(key);
    bench.write();
    assert!(!bench.streams.contains(key), "nobody knows where it stood");
}

/// Each shard has its own pass. They are not always equally far, but not far apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_shards_need_is_read_once_a_node() {
    const RECORDS: u64 = 6_000;
    const BYTES: usize = 1_000;
    /// Records that one may be ahead of the others.
    const LEAD: u64 = 4_000;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 2 };
    let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("opens");
    let partition = |index| Partition { topic: Topic::Group, index };
    for index in 0..2 {
        let record = |number: u64| {
            let value = Some(vec![number as u8; BYTES].into());
            MovedRecord { to: partition(index), key: None, value, headers: Vec::new() }
        };
        let records: Vec<_> = (0..RECORDS).map(record).collect();
        for records in records.chunks(1_000) {
            embedded.log().append_moved(records.to_vec()).await.expect("embedded");
        }
    }
    let bell = Arc::new(Doorbell::new().expect("a doorbell"));
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..4).map(|_| lane("control_to_shard", 8, bell.clone())).unzip();
    let records = Arc::<AtomicU64>::default();
    let (desk, rereads) = rereads(embedded.log(), senders, records.clone());
    let running = tokio::spawn(rereads.run());
    let far: Arc<[AtomicU64]> = receivers.iter().map(|_| AtomicU64::new(0)).collect();
    let shards = (0..).zip(receivers).map(|(shard, receiver)| {
        let (desk, far) = (desk.clone(), far.clone());
        tokio::spawn(async move {
            let mut read = BTreeMap::from([(partition(0), 0), (partition(1), 0)]);
            loop {
                let left = read.iter().filter(|(_, next)| **next < RECORDS);
                let from: Vec<_> = left.map(|(partition, next)| (*partition, *next)).collect();
                if from.is_empty() {
                    far[usize::from(shard)].store(u64::MAX - LEAD, Ordering::Relaxed);
                    return;
                }
                let own = read.values().sum::<u64>();
                far[usize::from(shard)].store(own, Ordering::Relaxed);
                let is_near = || far.iter().all(|far| own <= far.load(Ordering::Relaxed) + LEAD);
                while !is_near() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                desk.take(shard, Reread { pass: 7, from });
                let batches = loop {
                    match receiver.try_recv() {
                        Some(ToShard::Reread { pass: 7, batches }) => break batches,
                        Some(other) => panic!("{other:?}"),
                        None => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                };
                let mut bytes = 0;
                for batch in batches.expect("the log has them") {
                    let next = read.get_mut(&batch.partition).expect("it was asked for");
                    for record in batch.records {
                        assert_eq!(record.offset, *next, "nothing is missing or doubled");
                        *next += 1;
                        bytes += record.value.map_or(0, |value| value.len());
                    }
                    assert_eq!(*next, batch.next);
                }
                assert!(bytes <= 3 * limits::rereads::BYTES, "{bytes} bytes in one part");
            }
        })
    });
    for shard in shards.collect::<Vec<_>>() {
        tokio::time::timeout(Duration::from_secs(30), shard).await.expect("in time").expect("done");
    }
    drop(desk);
    running.await.expect("it ends with its desk");
    let read = records.load(Ordering::Relaxed);
    assert!((2 * RECORDS..2 * RECORDS + RECORDS / 10).contains(&read), "{read} records were read");
}
