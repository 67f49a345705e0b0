//! Whole streams, byte for byte: `tests/golden/streams/*.sse`, written from the contract.
//!
//! What a client reads from the response head to the end, with the ids, by the real streams on a
//! clock and a jitter that stand still.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use corecast::base::{
    BroadcastId, EpochMillis, LogIdentity, LogShape, Moment, Partition, Position, Topic, UserId,
};
use corecast::domain::{
    Backlog, Candidate, CloseReason, Gap, KeptMessage, Membership, Open, Outcome, Reach, ReadAgain,
    RingLimits, SINCE_EVER, Served, StreamKey, Streams, StreamsOptions, Unread, Vector, What,
};
use corecast::limits::shard::REPLAY_RECORDS_MAX;
use corecast::wire::archive::{Archiver, Audience, Event, EventKind, MemberKind, SharedEvent};
use corecast::wire::cursor::{Cursor, UserMark};
use corecast::wire::frame::GapReason;
use corecast::wire::head::STREAM_RESPONSE_HEAD;

const SHAPE: LogShape = LogShape {
    identity: LogIdentity([0xc0, 0x7e, 0xca]),
    selected_partitions: 10,
    group_partitions: 2,
};
const NOON: EpochMillis = EpochMillis(1_795_608_000_000);

type Socket = Rc<RefCell<Vec<u8>>>;

struct Bench {
    streams: Streams<Socket>,
    now: Moment,
}

impl Bench {
    fn new(frames: usize) -> Self {
        let options = StreamsOptions {
            shape: SHAPE,
            ring: RingLimits { frames, bytes: 1 << 20 },
            streams_max: 10,
            heartbeat: Duration::from_secs(25),
            write_progress: Duration::from_secs(30),
            ended_kept: Duration::from_secs(3_600),
            max_age: None,
            seed: 1,
        };
        let now = Moment(1_000_000);
        let mut streams = Streams::new(options, Vector::new(&SHAPE), now);
        streams.handle_fence(true);
        Self { streams, now }
    }

    fn open(&mut self, user: &str, cursor: Option<&str>) -> (StreamKey, Socket) {
        self.open_with(user, cursor, None)
    }

    fn open_with(
        &mut self,
        user: &str,
        cursor: Option<&str>,
        backlog: Option<Backlog>,
    ) -> (StreamKey, Socket) {
        let socket = Socket::default();
        let editor = Membership { kind: MemberKind::Role, name: "editor".into() };
        let opened = self.streams.handle_open(
            Open {
                socket: socket.clone(),
                user: &UserId::new(user).expect("a user id"),
                members: &[editor],
                connection: "tab-1",
                cursor: cursor.map(|text| Cursor::parse(text).expect("a cursor")),
                backlog,
                response_head: STREAM_RESPONSE_HEAD,
            },
            self.now,
            NOON,
        );
        self.write();
        (opened.expect("room"), socket)
    }

    fn append(&mut self, partition: Partition, offset: u64, audience: Audience<'_>) {
        self.streams.handle_events(&mut vec![event(partition, offset, audience)]);
        self.write();
    }

    /// Reads again what is asked for: the first group partition, up to here.
    fn reread(&mut self, next: u64) {
        let reread = self.streams.poll_reread(self.now).expect("something is to be read again");
        let from = reread.from.first().expect("of the first partition").1;
        let events = (from..next).map(|offset| event(group(0), offset, Audience::Everyone));
        let read = ReadAgain { events: events.collect(), next: vec![(group(0), next)] };
        self.streams.handle_reread(reread.pass, Ok(read), self.now);
        self.write();
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.streams.handle_timers(self.now, NOON);
        self.write();
    }

    fn write(&mut self) {
        loop {
            let Some(write) = self.streams.poll_write(NOON) else { return };
            let (key, socket) = (write.key, write.socket.clone());
            let bytes: Vec<u8> =
                write.pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            socket.borrow_mut().extend_from_slice(&bytes);
            drop(write);
            self.streams.handle_written(key, Outcome::Took(bytes.len()), self.now);
        }
    }
}

fn event(partition: Partition, offset: u64, audience: Audience<'_>) -> SharedEvent {
    let body = format!("event: MESSAGE\ndata: {{\"offset\":{offset}}}\n\n");
    Archiver::default().write(Event {
        position: Position { partition, offset },
        appended_at: NOON,
        event_id: u128::from(offset),
        attempt: 0,
        broadcast: BroadcastId::new(42).expect("small"),
        expires_at: None,
        kind: EventKind::Message,
        is_passing: false,
        audience,
        body: body.as_bytes(),
    })
}

fn group(index: u16) -> Partition {
    Partition { topic: Topic::Group, index }
}

fn own(user: &str) -> Partition {
    Partition { topic: Topic::Selected, index: SHAPE.partition_of_user(user) }
}

fn role(name: &str) -> Audience<'_> {
    Audience::Members { kind: MemberKind::Role, names: vec![name] }
}

/// Compares; `UPDATE_GOLDEN=1` writes what there is instead, to be read before it is committed.
fn check(name: &str, socket: &Socket) {
    let path = format!("{}/tests/golden/streams/{name}.sse", env!("CARGO_MANIFEST_DIR"));
    let text = String::from_utf8(socket.borrow().clone()).expect("UTF-8");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    assert_eq!(text, std::fs::read_to_string(&path).expect("a golden file"), "{name}");
}

#[test]
fn a_stream_from_its_head_to_its_end() {
    let mut bench = Bench::new(100);
    bench.append(group(0), 6, Audience::Everyone);
    let (_, socket) = bench.open("alice", None);
    bench.append(group(0), 7, Audience::Everyone);
    bench.append(group(1), 0, role("admin"));
    bench.append(group(1), 1, role("editor"));
    bench.append(own("alice"), 300, Audience::User("alice"));
    for _ in 0..10 {
        bench.pass(Duration::from_secs(25));
    }
    bench.streams.handle_drain(Duration::from_secs(30), bench.now);
    bench.pass(Duration::from_secs(30));
    assert!(bench.streams.is_empty());
    check("whole", &socket);
}

/// A client that has got one event and then lost its connection: the cursor it has.
fn cursor_of_a_lost_client(bench: &mut Bench) -> String {
    let (key, socket) = bench.open("alice", None);
    bench.append(group(0), 0, Audience::Everyone);
    bench.streams.handle_close(key, CloseReason::Peer);
    let text = String::from_utf8(socket.borrow().clone()).expect("UTF-8");
    let last = text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back();
    last.expect("an id").to_owned()
}

#[test]
fn a_client_that_comes_back() {
    let mut bench = Bench::new(100);
    let cursor = cursor_of_a_lost_client(&mut bench);
    bench.append(group(0), 1, Audience::Everyone);
    bench.append(own("alice"), 0, Audience::User("alice"));
    let (_, socket) = bench.open("alice", Some(&cursor));
    check("resumed", &socket);
}

#[test]
fn a_client_that_comes_back_too_late() {
    let mut bench = Bench::new(1);
    let cursor = cursor_of_a_lost_client(&mut bench);
    bench.append(group(0), 1, Audience::Everyone);
    bench.append(group(0), 2, Audience::Everyone);
    // The ring has the last one only.
    let backlog = kept_behind(&bench, &cursor, 2);
    let (_, socket) = bench.open_with("alice", Some(&cursor), Some(backlog));
    check("beyond_ring", &socket);
}

#[test]
fn a_client_that_comes_back_before_the_owners_do() {
    let mut bench = Bench::new(1);
    let cursor = cursor_of_a_lost_client(&mut bench);
    for offset in 1..=3 {
        bench.append(group(0), offset, Audience::Everyone);
    }
    // What stands at 2 is neither in the ring nor durable yet: the log has it.
    let backlog = kept_behind(&bench, &cursor, 2);
    let (_, socket) = bench.open_with("alice", Some(&cursor), Some(backlog));
    bench.reread(3);
    assert_eq!(bench.streams.poll_reread(bench.now), None, "the ring has the rest");
    bench.append(group(0), 4, Audience::Everyone);
    check("from_the_log", &socket);
}

#[test]
fn a_client_whom_neither_ring_nor_log_reach() {
    let mut bench = Bench::new(1);
    let cursor = cursor_of_a_lost_client(&mut bench);
    for offset in 1..=3 {
        bench.append(group(0), offset, Audience::Everyone);
    }
    // The log does not have it any more: it comes back for what is durable by then.
    let backlog = kept_behind(&bench, &cursor, 2);
    let (_, socket) = bench.open_with("alice", Some(&cursor), Some(backlog));
    let reread = bench.streams.poll_reread(bench.now).expect("something is to be read again");
    bench.streams.handle_reread(reread.pass, Err(Unread::Gone), bench.now);
    bench.write();
    assert!(bench.streams.is_empty());
    check("continues", &socket);
    // It is not even asked for what lies far back.
    bench.append(group(0), 3 + REPLAY_RECORDS_MAX + 2, Audience::Everyone);
    bench.append(group(0), 3 + REPLAY_RECORDS_MAX + 3, Audience::Everyone);
    let backlog = kept_behind(&bench, &cursor, 2);
    assert!(bench.streams.is_of_use(&backlog));
    let (_, socket) = bench.open_with("alice", Some(&cursor), Some(backlog));
    assert!(bench.streams.is_empty() && socket.borrow().ends_with(b"\n\n"));
    let parsed = Cursor::parse(&cursor).expect("a cursor");
    assert!(!bench.streams.may_replay(&parsed));
}

#[test]
fn a_client_that_misses_something_for_good() {
    let mut bench = Bench::new(1);
    let cursor = cursor_of_a_lost_client(&mut bench);
    bench.append(group(0), 1, Audience::Everyone);
    bench.append(group(0), 2, Audience::Everyone);
    let mut backlog = kept_behind(&bench, &cursor, 2);
    let hour_ago = EpochMillis(NOON.0 - 3_600_000);
    backlog.gap = Some(Gap { from: hour_ago, to: NOON, reason: GapReason::Limit });
    let (_, socket) = bench.open_with("alice", Some(&cursor), Some(backlog));
    check("gap", &socket);
}

#[test]
fn a_log_that_goes_on_elsewhere() {
    let mut bench = Bench::new(100);
    let (_, socket) = bench.open("alice", None);
    bench.append(group(0), 0, Audience::Everyone);
    bench.streams.handle_skip(group(0), 1);
    bench.append(group(0), 1, Audience::Everyone);
    bench.streams.handle_skip(group(1), 50);
    bench.write();
    assert!(bench.streams.is_empty(), "it is to come back for what the store keeps");
    bench.append(group(1), 50, Audience::Everyone);
    check("skipped", &socket);
}

#[test]
fn a_client_of_a_log_that_was_replaced() {
    let mut old = Bench::new(1);
    let cursor = cursor_of_a_lost_client(&mut old);
    old.append(group(0), 1, Audience::Everyone);
    old.append(group(0), 2, Audience::Everyone);
    let mut backlog = kept_behind(&old, &cursor, 2);
    let mut bench = Bench::new(100);
    let identity = LogIdentity([1, 2, 3]);
    bench.streams.handle_identity(identity);
    bench.append(group(0), 0, Audience::Everyone);
    bench.append(group(0), 1, Audience::Everyone);
    let parsed = Cursor::parse(&cursor).expect("a cursor");
    let user = UserId::new("alice").expect("a user id");
    assert!(
        bench.streams.knows(&parsed, &user) && bench.streams.beyond_ring(&parsed, &user).is_some()
    );
    let shape = LogShape { identity, ..SHAPE };
    let progress = Served::nothing(&shape, &user);
    let mut checkpoint = progress.clone();
    checkpoint.raise(group(0), 1);
    let reach = Reach { progress, checkpoint, is_resumed: true, since: SINCE_EVER };
    let then = Backlog::new(reach, vec![kept(0)], false);
    backlog.replaced = bench.streams.replaced(&parsed);
    backlog.gap = Some(Gap { from: parsed.at(), to: NOON, reason: GapReason::LogReplaced });
    backlog.then = Some(Box::new(then));
    let (_, socket) = bench.open_with("alice", Some(&cursor), Some(backlog));
    bench.append(group(0), 2, Audience::Everyone);
    check("replaced", &socket);
}

fn alice() -> UserId {
    UserId::new("alice").expect("a user id")
}

/// What the store keeps behind this cursor, of the first group partition, below a checkpoint.
fn kept_behind(bench: &Bench, cursor: &str, checkpoint: u64) -> Backlog {
    let cursor = Cursor::parse(cursor).expect("a cursor");
    let presented = bench.streams.beyond_ring(&cursor, &alice()).expect("the ring has lost some");
    let (progress, since) = (presented.served, presented.since);
    let first = progress.group[0];
    let mut end = progress.clone();
    end.raise(group(0), checkpoint);
    let reach = Reach { progress, checkpoint: end, is_resumed: true, since };
    Backlog::new(reach, (first..checkpoint).map(kept).collect(), false)
}

fn kept(offset: u64) -> KeptMessage {
    KeptMessage {
        candidate: Candidate {
            what: What::Message(BroadcastId::new(42).expect("small")),
            position: Some(Position { partition: group(0), offset }),
            appended_at: NOON,
            row: None,
        },
        expires_at: None,
        body: format!("event: MESSAGE\ndata: {{\"offset\":{offset}}}\n\n").into_bytes().into(),
    }
}

#[test]
fn a_cursor_from_before_there_were_more_partitions() {
    let old = LogShape { selected_partitions: 2, group_partitions: 1, ..SHAPE };
    let served = |user: &str| {
        let user = UserId::new(user).expect("a user id");
        let own_partition = old.partition_of_user(user.as_str());
        let group = [7].into();
        let at = NOON.0 as u32 / 3_600_000;
        let hours = at;
        let mark = UserMark::of(user.as_str());
        Cursor { shape: old, hours, backlog: false, user: mark, own_partition, own: 9, group }
    };
    let mut bench = Bench::new(10);
    bench.append(group(0), 6, Audience::Everyone);
    let mut moved = 0;
    for user in (0..20).map(|number| format!("user-{number}")) {
        let cursor = served(&user);
        let user = UserId::new(&user).expect("a user id");
        assert!(bench.streams.knows(&cursor, &user));
        let other = Cursor { user: UserMark::of("somebody else"), ..cursor.clone() };
        assert!(!bench.streams.knows(&other, &user), "though of the same partition");
        let now = bench.streams.served_by(&cursor, &user);
        assert_eq!(now.group[0], 7, "what it knows counts");
        assert!(now.group[1..].iter().all(|next| *next == 0), "and of new ones it had nothing");
        let own = SHAPE.partition_of_user(user.as_str());
        let has_moved = own != cursor.own_partition;
        assert_eq!((now.own_partition, now.own), (own, if has_moved { 0 } else { 9 }));
        let asked = bench.streams.beyond_ring(&cursor, &user).expect("9 is ahead, 0 is moved");
        assert_eq!(asked.since != SINCE_EVER, has_moved, "only time tells of the old one");
        moved += usize::from(has_moved);
    }
    assert!((1..20).contains(&moved), "some have moved: {moved}");
    // A topic never gets fewer: such a cursor is nobody's.
    let more = LogShape { group_partitions: SHAPE.group_partitions + 1, ..SHAPE };
    let own_partition = more.partition_of_user("alice");
    let group = vec![0; usize::from(more.group_partitions)].into();
    let user = UserMark::of("alice");
    let cursor =
        Cursor { shape: more, hours: 0, backlog: false, user, own_partition, own: 0, group };
    assert!(!bench.streams.knows(&cursor, &alice()));
}
