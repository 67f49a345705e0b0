//! Streams that the node ends by itself: all of them when it drains, each when it has had its age.
//! Such a stream is told when to come back, behind whatever frame is begun.
//!
//! Nothing is kept for a drain but when it began: whose turn is when follows from seed and serial.
//! One whose socket does not take its last words within a moment then ends without them; it has its
//! cursor.

use std::time::Duration;

use super::feed::row_of;
use super::timers::spread;
use super::{BEHIND, CLOSING, CONTINUES, CUT_OFF, CloseReason, Stream, Streams, StreamsOptions};
use super::{enqueue, write_id_line};
use crate::base::{EpochMillis, Moment};
use crate::domain::audience::User;
use crate::domain::vector::Served;
use crate::limits::shard as limits;
use crate::wire::frame;

/// The node goes: since when, and how long its streams may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    since: Moment,
    window: Duration,
}

/// Parts of an age. A stream remembers in which it will have had its age, modulo 2^16: two bytes,
/// which the alignment of its entry leaves over. So it is known for 32 ages ahead or gone by.
const AGE_PARTS: u64 = 1_024;

impl<S> Streams<S> {
    /// The node goes: every stream is told and ended at a time of its own within the window, and is
    /// served until then. No other stream is opened.
    pub fn handle_drain(&mut self, window: Duration, now: Moment) {
        self.drain = Some(Drain { since: now, window });
        let indices = self.slab.iter().map(|(index, _)| index);
        for index in indices.collect::<Vec<u32>>() {
            if let Some(stream) = self.slab.get(index) {
                self.look_again(index, self.due_of(stream), now);
            }
        }
    }

    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// In which part it will be old: up to a tenth of its age sooner, so that streams that were
    /// opened together do not end together.
    pub(super) fn old_in(&self, serial: u32, now: Moment) -> u16 {
        let Some(age) = self.options.max_age else { return 0 };
        let sooner = spread(self.options.seed, !serial, age / 10);
        (now.plus(age - sooner).0 / part_ms(age)) as u16
    }

    /// Has the stream looked at again then, or when it is to go, if that is sooner.
    pub(super) fn look_again(&mut self, index: u32, at: Moment, now: Moment) {
        let Some(stream) = self.slab.get(index) else { return };
        let end = end_of(stream, &self.options, self.drain, now);
        self.wheel.set(index, end.map_or(at, |end| end.min(at)));
    }

    /// Tells the stream to go if its time has come, and ends it if it has had its time to do so.
    pub(super) fn see_off(&mut self, index: u32, now: Moment, wall: EpochMillis) {
        let Some(stream) = self.slab.get(index) else { return };
        let end = end_of(stream, &self.options, self.drain, now);
        if end.is_none_or(|end| now < end) {
            return;
        }
        if stream.is(CLOSING) {
            self.close(index, reason_of_end(stream, self.drain));
        } else {
            self.tell_to_go(index, wall);
        }
    }

    /// When a client comes back that is told to go: at once, but not all of them together.
    pub(super) fn return_after(&self, serial: u32) -> Duration {
        limits::RETURN_RETRY + spread(self.options.seed, !serial, limits::RETURN_RETRY_SPREAD)
    }

    /// Puts the last words behind the frame that is begun. Who is at the head, and has had nothing
    /// for a while, is told where that is, to come back with it.
    fn tell_to_go(&mut self, index: u32, wall: EpochMillis) {
        self.unpin(index);
        let Some(stream) = self.slab.get(index) else { return };
        let after = self.return_after(stream.serial);
        let is_at_head = !stream.is(BEHIND) && !stream.is(CUT_OFF) && !has_backlog(stream);
        if is_at_head && stream.heartbeats > 0 {
            self.write_place(index, wall);
        }
        let Some(stream) = self.slab.get_mut(index) else { return };
        let lead = &mut stream.private().lead;
        frame::write_retry(lead, after);
        frame::write_server_shutdown(lead, after);
        stream.state |= CLOSING;
        enqueue(stream, index, &mut self.queue);
    }

    /// Makes what is begun of a shared frame the stream's own, so that something may follow it.
    fn unpin(&mut self, index: u32) {
        let Some(stream) = self.slab.get_mut(index) else { return };
        let &User { own_partition, mark, .. } = self.users.get(stream.user);
        let Some(private) = stream.private.as_deref_mut() else { return };
        let Some((frame, out)) = private.pinned.take() else { return };
        debug_assert!(private.lead.is_empty(), "a frame is finished before anything");
        mark.write_line(frame.id_line(own_partition), own_partition, &mut private.lead);
        private.lead.extend_from_slice(frame.event().body());
        private.lead_out = out;
        private.lead_row = row_of(frame.event());
        self.counters.deliveries += 1;
    }

    /// Where the stream stands, which must be at the head.
    pub(super) fn write_place(&mut self, index: u32, wall: EpochMillis) {
        let Some(stream) = self.slab.get_mut(index) else { return };
        let &User { own_partition, mark, .. } = self.users.get(stream.user);
        let ahead = stream.private.as_ref().and_then(|private| private.ahead.clone());
        let mut served = ahead.unwrap_or_else(|| Served::of(self.vector.view(), own_partition));
        served.raise_to(self.vector.view());
        let lead = &mut stream.private().lead;
        write_id_line((&self.options.shape, mark), lead, &served, wall);
        lead.push(b'\n');
    }
}

/// Why a stream ends that has been told to come back.
pub(super) fn reason_of_end<S>(stream: &Stream<S>, drain: Option<Drain>) -> CloseReason {
    match drain {
        _ if stream.is(CONTINUES) => CloseReason::Continues,
        Some(_) => CloseReason::Drain,
        None => CloseReason::Rotated,
    }
}

/// When the stream is to be told to go, or, if it has been, to be ended. `None`: never.
fn end_of<S>(
    stream: &Stream<S>,
    options: &StreamsOptions,
    drain: Option<Drain>,
    now: Moment,
) -> Option<Moment> {
    if let Some(Drain { since, window }) = drain {
        let told_at = since.plus(spread(options.seed, stream.serial, window));
        let is_told = stream.is(CLOSING);
        return Some(if is_told { told_at.plus(limits::LAST_WORDS_TIME) } else { told_at });
    }
    let age = options.max_age.filter(|_| !stream.is(CLOSING))?;
    let part = now.0 / part_ms(age);
    let left = stream.old_in.wrapping_sub(part as u16).cast_signed();
    let old_at = Moment(part.saturating_add_signed(i64::from(left)) * part_ms(age));
    let is_late = old_at <= now && has_backlog(stream);
    Some(if is_late { now.plus(limits::LATE_LOOK) } else { old_at })
}

fn part_ms(age: Duration) -> u64 {
    (age.as_millis() as u64 / AGE_PARTS).max(1)
}

fn has_backlog<S>(stream: &Stream<S>) -> bool {
    stream.private.as_deref().is_some_and(|private| private.backlog.is_some())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use super::*;
    use crate::base::{BroadcastId, LogIdentity, LogShape, Partition, Position, Topic, UserId};
    use crate::domain::{
        Backlog, Candidate, KeptMessage, Open, Outcome, Reach, RingLimits, StreamKey, Vector, What,
    };
    use crate::limits::shard::{LAST_WORDS_TIME, LATE_LOOK, WHEEL_TICK};
    use crate::wire::archive::{Archiver, Audience, Event, EventKind};
    use crate::wire::cursor::Cursor;

    const SHAPE: LogShape =
        LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 1, group_partitions: 1 };
    const GROUP: Partition = Partition { topic: Topic::Group, index: 0 };
    const NOON: EpochMillis = EpochMillis(1_795_608_000_000);
    const BEGIN: Moment = Moment(1_000_000);
    const WINDOW: Duration = Duration::from_secs(8);

    #[derive(Default, Debug)]
    struct Kernel {
        text: String,
        /// Bytes that it takes yet; `None`: any number.
        room: Option<usize>,
        ended_at: Option<Moment>,
    }

    type Socket = Rc<RefCell<Kernel>>;

    struct Bench {
        streams: Streams<Socket>,
        now: Moment,
        events: u64,
        sockets: BTreeMap<u64, Socket>,
    }

    impl Bench {
        fn new(seed: u64, max_age: Option<Duration>) -> Self {
            let options = StreamsOptions {
                shape: SHAPE,
                ring: RingLimits { frames: 1_000, bytes: 1 << 20 },
                streams_max: 1_000,
                heartbeat: Duration::from_secs(25),
                write_progress: Duration::from_secs(30),
                ended_kept: Duration::from_secs(3_600),
                max_age,
                seed,
            };
            let mut streams = Streams::new(options, Vector::new(&SHAPE), BEGIN);
            streams.handle_fence(true);
            Self { streams, now: BEGIN, events: 0, sockets: BTreeMap::new() }
        }

        fn open(&mut self, cursor: Option<&str>) -> (StreamKey, Socket) {
            self.open_into(None, cursor, None)
        }

        fn open_into(
            &mut self,
            room: Option<usize>,
            cursor: Option<&str>,
            backlog: Option<Backlog>,
        ) -> (StreamKey, Socket) {
            let socket = Rc::new(RefCell::new(Kernel { room, ..Kernel::default() }));
            let opened = self.streams.handle_open(
                Open {
                    socket: socket.clone(),
                    user: &user(),
                    members: &[],
                    connection: "tab",
                    cursor: cursor.map(|text| Cursor::parse(text).expect("a cursor")),
                    backlog,
                    response_head: b"",
                },
                self.now,
                NOON,
            );
            let key = opened.expect("room");
            self.sockets.insert(key.to_bits(), socket.clone());
            self.write();
            (key, socket)
        }

        fn append(&mut self) {
            let body = body(self.events);
            self.streams.handle_events(&mut vec![Archiver::default().write(Event {
                position: Position { partition: GROUP, offset: self.events },
                appended_at: NOON,
                event_id: u128::from(self.events),
                attempt: 0,
                broadcast: BroadcastId::new(42).expect("small"),
                expires_at: None,
                kind: EventKind::Message,
                is_passing: false,
                audience: Audience::Everyone,
                body: body.as_bytes(),
            })]);
            self.events += 1;
            self.write();
        }

        fn write(&mut self) {
            while self.streams.wants_to_write() {
                let Some(write) = self.streams.poll_write(NOON) else { continue };
                let (key, socket) = (write.key, write.socket.clone());
                let pieces = write.pieces.iter().flat_map(|piece| piece.iter().copied());
                let bytes: Vec<u8> = pieces.collect();
                let mut kernel = socket.borrow_mut();
                let taken = kernel.room.map_or(bytes.len(), |room| room.min(bytes.len()));
                kernel.room = kernel.room.map(|room| room - taken);
                kernel.text.push_str(std::str::from_utf8(&bytes[..taken]).expect("ASCII"));
                drop(kernel);
                drop(write);
                let outcome = if taken > 0 { Outcome::Took(taken) } else { Outcome::Full };
                self.streams.handle_written(key, outcome, self.now);
            }
            for (key, socket) in &self.sockets {
                if !self.streams.contains(StreamKey::from_bits(*key)) {
                    socket.borrow_mut().ended_at.get_or_insert(self.now);
                }
            }
        }

        fn pass(&mut self, time: Duration) {
            let until = self.now.plus(time);
            while self.now < until {
                self.now = self.now.plus(WHEEL_TICK).min(until);
                self.streams.handle_timers(self.now, NOON);
                self.write();
            }
        }

        fn give_room(&mut self, key: StreamKey, room: Option<usize>) {
            self.sockets[&key.to_bits()].borrow_mut().room = room;
            self.streams.handle_writable(key);
            self.write();
        }

        /// When the streams ended, in the order in which they were opened.
        fn ends(&self) -> Vec<Duration> {
            let ends = self.sockets.values().map(|socket| socket.borrow().ended_at);
            ends.map(|at| at.expect("it has ended").since(BEGIN)).collect()
        }

        fn closed(&self, reason: CloseReason) -> u64 {
            self.streams.counters().closed[reason as usize]
        }
    }

    fn user() -> UserId {
        UserId::new("alice").expect("a user id")
    }

    fn body(offset: u64) -> String {
        format!("event: MESSAGE\ndata: {{\"offset\":{offset}}}\n\n")
    }

    fn offsets(text: &str) -> Vec<u64> {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: {\"offset\":"));
        data.map(|rest| rest.trim_end_matches('}').parse().expect("a number")).collect()
    }

    fn last_id(text: &str) -> &str {
        text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().expect("an id")
    }

    /// What it was told at last, which must be when to come back, in both ways.
    fn last_words(text: &str) -> u64 {
        let words = text.rfind("retry: ").map(|at| &text[at..]).expect("it was told");
        let after = words.lines().next().and_then(|line| line["retry: ".len()..].parse().ok());
        let after = after.expect("a number");
        let told = format!(
            "retry: {after}\n\nevent: SERVER_SHUTDOWN\ndata: {{\"reconnectAfterMs\":{after}}}\n\n"
        );
        assert_eq!(words, told);
        assert!((250..750).contains(&after), "{after}");
        after
    }

    #[test]
    fn a_drain_is_spread_over_its_window_and_loses_nothing() {
        let drained = |seed| {
            let mut bench = Bench::new(seed, None);
            let sockets: Vec<Socket> = (0..400).map(|_| bench.open(None).1).collect();
            bench.append();
            bench.streams.handle_drain(WINDOW, bench.now);
            assert!(bench.streams.is_draining() && bench.streams.len() == 400);
            while !bench.streams.is_empty() {
                bench.append();
                bench.pass(Duration::from_millis(100));
            }
            assert_eq!(bench.closed(CloseReason::Drain), 400);
            (bench, sockets)
        };
        let (bench, sockets) = drained(1);
        let ends = bench.ends();
        for quarter in 0..4 {
            let quarter = WINDOW / 4 * quarter..WINDOW / 4 * (quarter + 1);
            let many = ends.iter().filter(|end| quarter.contains(*end)).count();
            assert!((70..130).contains(&many), "{many} in {quarter:?}");
        }
        assert!(ends.iter().all(|end| *end <= WINDOW + WHEEL_TICK));
        assert_eq!(drained(1).0.ends(), ends, "it follows from the seed");
        assert_ne!(drained(2).0.ends(), ends);
        // Each goes on elsewhere.
        let mut other = Bench::new(3, None);
        (0..bench.events).for_each(|_| other.append());
        let mut retries = Vec::new();
        for socket in sockets {
            let text = &socket.borrow().text;
            retries.push(last_words(text));
            let (_, back) = other.open(Some(last_id(text)));
            let got = [offsets(text), offsets(&back.borrow().text)].concat();
            assert!(got.into_iter().eq(0..bench.events), "nothing is lost, nothing comes twice");
        }
        let early = retries.iter().filter(|retry| **retry < 500).count();
        assert!((150..250).contains(&early), "not all come back in one moment");
    }

    #[test]
    fn a_node_that_drains_opens_nothing_and_is_soon_left() {
        let mut bench = Bench::new(1, None);
        bench.streams.handle_drain(Duration::ZERO, bench.now);
        let refused = bench.streams.handle_open(
            Open {
                socket: Socket::default(),
                user: &user(),
                members: &[],
                connection: "tab",
                cursor: None,
                backlog: None,
                response_head: b"",
            },
            bench.now,
            NOON,
        );
        assert!(refused.is_err());
        assert!(bench.streams.retry_after() < Duration::from_millis(750));
    }

    #[test]
    fn quiet_streams_have_heartbeats_until_they_go_and_are_told_where_they_stand() {
        let mut bench = Bench::new(1, None);
        let (_, socket) = bench.open(None);
        bench.append();
        // Of nobody here, and read all the same.
        bench.streams.handle_position(GROUP, 500);
        let window = Duration::from_secs(240);
        bench.streams.handle_drain(window, bench.now);
        bench.pass(window);
        let text = socket.borrow().text.clone();
        last_words(&text);
        let cursor = Cursor::parse(last_id(&text)).expect("a cursor");
        assert_eq!((offsets(&text), &cursor.group[..]), (vec![0], &[500][..]));
        let beats = text.lines().filter(|line| *line == ":").count() as u64;
        let lived = bench.ends()[0].as_secs();
        assert!(beats > 0 && beats < 10, "no id came with them: {text}");
        assert!(beats >= lived / 25 && beats <= lived / 20, "{beats} in {lived} s");
    }

    #[test]
    fn who_waits_for_the_log_is_not_told_that_it_has_come_to_the_ring() {
        let mut bench = Bench::new(1, None);
        let (key, socket) = bench.open(None);
        bench.streams.handle_close(key, CloseReason::Peer);
        let first = last_id(&socket.borrow().text).to_owned();
        bench.streams.handle_skip(GROUP, 1_000);
        let (key, socket) = bench.open(Some(&first));
        assert!(bench.streams.replays(key));
        bench.pass(Duration::from_secs(30));
        bench.streams.handle_drain(Duration::ZERO, bench.now);
        bench.pass(WHEEL_TICK);
        let text = &socket.borrow().text;
        assert!(text.contains("\n:\n"), "{text}");
        assert_eq!((last_words(text) > 0, last_id(text)), (true, &*first));
    }

    #[test]
    fn a_stream_in_the_middle_of_a_frame_has_a_moment_for_it() {
        for takes_it in [false, true] {
            let mut bench = Bench::new(1, None);
            let (key, socket) = bench.open(None);
            let opened = socket.borrow().text.len();
            socket.borrow_mut().room = Some(20);
            bench.append();
            bench.append();
            bench.streams.handle_drain(Duration::ZERO, bench.now);
            bench.pass(LAST_WORDS_TIME / 2);
            assert!(bench.streams.contains(key));
            if takes_it {
                bench.give_room(key, None);
            }
            bench.pass(LAST_WORDS_TIME / 2 + WHEEL_TICK);
            assert!(bench.streams.is_empty(), "it is not waited for any longer");
            let text = &socket.borrow().text[opened..];
            if takes_it {
                // The frame that was begun, whole; the one behind it comes elsewhere.
                assert!(text.starts_with("id: ") && text.contains(&body(0)), "{text}");
                assert_eq!((last_words(text) > 0, offsets(text)), (true, vec![0]));
                assert_eq!(text.find("retry"), text.find(&body(0)).map(|at| at + body(0).len()));
            } else {
                assert_eq!(text.len(), 20, "nothing stands in the middle of a frame: {text}");
            }
            assert_eq!(bench.closed(CloseReason::Drain), 1);
        }
    }

    #[test]
    fn old_streams_go_one_after_the_other() {
        let age = Duration::from_secs(100);
        let mut bench = Bench::new(1, Some(age));
        let sockets: Vec<Socket> = (0..400).map(|_| bench.open(None).1).collect();
        bench.pass(Duration::from_secs(70));
        bench.append();
        bench.pass(Duration::from_secs(40));
        assert_eq!(bench.closed(CloseReason::Rotated), 400);
        let ends = bench.ends();
        for part in 0..4 {
            let from = Duration::from_millis(90_000 + 2_500 * part);
            let part = from..from + Duration::from_millis(2_500);
            let many = ends.iter().filter(|end| part.contains(*end)).count();
            assert!((70..130).contains(&many), "{many} in {part:?}");
        }
        for socket in sockets {
            let text = &socket.borrow().text;
            assert_eq!((last_words(text) > 0, offsets(text)), (true, vec![0]));
        }
        // They come again and again, also once what they remember has gone round.
        for _ in 0..70 {
            let opened_at = bench.now;
            let (_, socket) = bench.open(None);
            bench.pass(Duration::from_secs(101));
            let ended_at = socket.borrow().ended_at.expect("it was old");
            assert!(ended_at.since(opened_at) >= Duration::from_millis(89_800));
        }
    }

    #[test]
    fn an_old_stream_has_its_backlog_and_its_frame_first() {
        let mut bench = Bench::new(1, Some(Duration::from_secs(10)));
        (0..3).for_each(|_| bench.append());
        let progress = Served::nothing(&SHAPE, &user());
        let mut checkpoint = progress.clone();
        checkpoint.raise(GROUP, 2);
        let reach = Reach { progress, checkpoint, is_resumed: false, since: NOON };
        let backlog = Backlog::new(reach, (0..2).map(kept).collect(), false);
        // Room for CONNECTED and a part of the first kept message; then of the second; then of what
        // the ring has behind them.
        let (key, socket) = bench.open_into(Some(160), None, Some(backlog));
        bench.pass(Duration::from_secs(15));
        for (more, whole) in [(59, vec![0]), (91, vec![0, 1])] {
            bench.give_room(key, Some(more));
            bench.pass(LATE_LOOK + WHEEL_TICK);
            let text = &socket.borrow().text;
            assert!(bench.streams.contains(key) && !text.contains("SHUTDOWN"), "{text}");
            assert_eq!((offsets(text), text.ends_with("\n\n")), (whole, false), "{text}");
        }
        bench.give_room(key, None);
        let text = &socket.borrow().text;
        assert_eq!((last_words(text) > 0, offsets(text)), (true, vec![0, 1, 2]));
        assert_eq!(bench.closed(CloseReason::Rotated), 1);
    }

    fn kept(offset: u64) -> KeptMessage {
        KeptMessage {
            candidate: Candidate {
                what: What::Message(BroadcastId::new(42).expect("small")),
                position: Some(Position { partition: GROUP, offset }),
                appended_at: NOON,
                row: None,
            },
            expires_at: None,
            body: body(offset).into_bytes().into(),
        }
    }
}
