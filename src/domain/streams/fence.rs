//! What may not begin: messages of broadcasts that have ended, and, while the node does not know
//! which have, any message.
//!
//! A frame that has begun is finished. What a stream is told beside messages goes out always.

use super::{BEHIND, CUT_OFF, Streams, enqueue};
use crate::base::{BroadcastId, EpochMillis, Moment};
use crate::domain::ended::Ended;
use crate::wire::archive::{EventKind, SharedEvent};

impl<S> Streams<S> {
    /// Whether messages may begin. While they may not, streams stay where they are.
    pub fn handle_fence(&mut self, may_begin: bool) {
        if self.may_begin == may_begin {
            return;
        }
        self.may_begin = may_begin;
        if !may_begin {
            return;
        }
        let Self { slab, queue, .. } = self;
        for (index, stream) in slab.iter_mut() {
            let private = stream.private.as_deref();
            let has_backlog = private.is_some_and(|private| private.backlog.is_some());
            if stream.is(BEHIND | CUT_OFF) || has_backlog {
                enqueue(stream, index, queue);
            }
        }
    }

    pub fn may_begin(&self) -> bool {
        self.may_begin
    }

    /// No message of this broadcast begins any more; nothing can bring one from then on.
    pub fn handle_ended(&mut self, id: BroadcastId, until: Moment) {
        self.ended.insert(id, until);
    }

    /// Broadcasts whose messages are held back.
    pub fn ended(&self) -> &Ended {
        &self.ended
    }
}

/// Whether nothing of it may begin: its broadcast has ended. What is told of a broadcast beside its
/// messages is told all the same.
pub(super) fn is_over(event: &SharedEvent, ended: &Ended, wall: EpochMillis) -> bool {
    event.kind() == EventKind::Message
        && (event.expires_at().is_some_and(|at| at <= wall) || ended.contains(event.broadcast()))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::base::{LogIdentity, LogShape, Partition, Position, Topic, UserId};
    use crate::domain::{
        Backlog, Candidate, KeptMessage, Open, Outcome, Reach, RingLimits, Served, StreamsOptions,
        Vector, What,
    };
    use crate::wire::archive::{Archiver, Audience, Event};
    use crate::wire::cursor::Cursor;

    const SHAPE: LogShape =
        LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 1, group_partitions: 1 };
    const NOON: EpochMillis = EpochMillis(1_795_514_400_000);
    const KEPT: Duration = Duration::from_secs(3_600);

    /// What the kernel took, and how much more it takes.
    type Socket = Rc<RefCell<(String, usize)>>;

    struct Bench {
        streams: Streams<Socket>,
        now: Moment,
        offset: u64,
    }

    impl Bench {
        fn new() -> Self {
            let options = StreamsOptions {
                shape: SHAPE,
                ring: RingLimits { frames: 64, bytes: 1 << 20 },
                streams_max: 10,
                heartbeat: Duration::from_secs(25),
                write_progress: Duration::from_secs(30),
                ended_kept: KEPT,
                max_age: None,
                seed: 1,
            };
            let now = Moment(1_000_000);
            Self { streams: Streams::new(options, Vector::new(&SHAPE), now), now, offset: 0 }
        }

        fn open(&mut self, user: &str) -> Socket {
            self.open_with(user, None)
        }

        fn open_with(&mut self, user: &str, backlog: Option<Backlog>) -> Socket {
            let socket = Rc::new(RefCell::new((String::new(), usize::MAX)));
            let user = UserId::new(user).expect("a user id");
            let open = Open {
                socket: socket.clone(),
                user: &user,
                members: &[],
                connection: "tab",
                cursor: None,
                backlog,
                response_head: b"",
            };
            self.streams.handle_open(open, self.now, NOON).expect("room");
            self.write();
            socket
        }

        /// A record of a broadcast in the group topic.
        fn append(&mut self, broadcast: u64, kind: EventKind, audience: Audience<'_>) {
            let partition = Partition { topic: Topic::Group, index: 0 };
            let body = format!("data: {kind:?} {broadcast}\n\n");
            let event = Archiver::default().write(Event {
                position: Position { partition, offset: self.offset },
                appended_at: NOON,
                event_id: u128::from(self.offset),
                attempt: 0,
                broadcast: id(broadcast),
                kind,
                expires_at: None,
                is_passing: false,
                audience,
                body: body.as_bytes(),
            });
            self.offset += 1;
            self.streams.handle_events(&mut vec![event]);
            self.write();
        }

        fn message(&mut self, broadcast: u64) {
            self.append(broadcast, EventKind::Message, Audience::Everyone);
        }

        fn write(&mut self) {
            while self.streams.wants_to_write() {
                let Some(write) = self.streams.poll_write(NOON) else { continue };
                let (key, socket) = (write.key, write.socket.clone());
                let bytes: Vec<u8> =
                    write.pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
                drop(write);
                let mut kernel = socket.borrow_mut();
                let taken = bytes.len().min(kernel.1);
                kernel.1 -= taken;
                kernel.0 += std::str::from_utf8(&bytes[..taken]).expect("ASCII");
                let outcome = if taken == 0 { Outcome::Full } else { Outcome::Took(taken) };
                self.streams.handle_written(key, outcome, self.now);
            }
        }

        fn pass(&mut self, time: Duration) {
            self.now = self.now.plus(time);
            self.streams.handle_timers(self.now, NOON);
            self.write();
        }

        /// The sockets of all streams take so much more.
        fn drain(&mut self, socket: &Socket, room: usize) {
            socket.borrow_mut().1 = room;
            let all = self.streams.slab.iter().map(|(index, one)| (index, one.serial));
            for (index, serial) in all.collect::<Vec<_>>() {
                self.streams.handle_writable(super::super::StreamKey { index, serial });
            }
            self.write();
        }
    }

    fn id(number: u64) -> BroadcastId {
        BroadcastId::new(number).expect("small")
    }

    /// What a client was told, in order; heartbeats are dots.
    fn told(socket: &Socket) -> String {
        let text = &socket.borrow().0;
        let words = text.lines().filter_map(|line| match line {
            ":" => Some("."),
            line => line.strip_prefix("data: ").filter(|data| !data.starts_with('{')),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn behind_the_fence_messages_wait_and_everything_else_goes_on() {
        let mut bench = Bench::new();
        bench.streams.handle_fence(true);
        let socket = bench.open("alice");
        bench.message(1);
        bench.streams.handle_fence(false);
        bench.message(2);
        let late = bench.open("bob");
        assert!(late.borrow().0.contains("CONNECTED"), "a stream opens");
        for _ in 0..3 {
            bench.pass(Duration::from_secs(25));
        }
        bench.message(3);
        assert_eq!(told(&socket), "Message 1 . . .");
        let last_id = |socket: &Socket| {
            let text = &socket.borrow().0;
            text.lines().filter(|line| line.starts_with("id: ")).count()
        };
        let ids = last_id(&socket);
        for _ in 0..12 {
            bench.pass(Duration::from_secs(25));
        }
        assert_eq!(last_id(&socket), ids, "no id covers what waits");
        bench.streams.handle_fence(true);
        bench.write();
        assert!(told(&socket).ends_with(". Message 2 Message 3"), "{}", told(&socket));
        assert!(told(&late).ends_with(". Message 3"), "{}", told(&late));
        assert!(!bench.streams.wants_to_write());
    }

    #[test]
    fn a_frame_that_has_begun_is_finished_and_the_next_one_is_not_begun() {
        let mut bench = Bench::new();
        bench.streams.handle_fence(true);
        let socket = bench.open("alice");
        socket.borrow_mut().1 = 20;
        bench.message(1);
        bench.message(2);
        bench.streams.handle_fence(false);
        bench.streams.handle_ended(id(1), bench.now.plus(KEPT));
        bench.drain(&socket, usize::MAX);
        assert_eq!(told(&socket), "Message 1");
        bench.streams.handle_ended(id(2), bench.now.plus(KEPT));
        bench.streams.handle_fence(true);
        bench.message(3);
        assert_eq!(told(&socket), "Message 1 Message 3");
        assert_eq!(bench.streams.counters().ended_skips, 1);
    }

    #[test]
    fn of_a_broadcast_that_has_ended_no_message_begins() {
        let mut bench = Bench::new();
        bench.streams.handle_fence(true);
        let (quick, slow) = (bench.open("alice"), bench.open("bob"));
        slow.borrow_mut().1 = 0;
        bench.message(1);
        bench.message(2);
        bench.streams.handle_ended(id(1), bench.now.plus(KEPT));
        // Published once more, by somebody who did not know.
        bench.message(1);
        bench.append(1, EventKind::Receipt, Audience::User("alice"));
        bench.append(1, EventKind::Removal, Audience::Everyone);
        bench.drain(&slow, usize::MAX);
        assert_eq!(told(&quick), "Message 1 Message 2 Receipt 1 Removal 1");
        assert_eq!(told(&slow), "Message 2 Removal 1");
        // A calendar that is set ahead makes nobody forget.
        bench.streams.handle_timers(bench.now, NOON.plus(2 * KEPT));
        bench.message(1);
        assert!(told(&quick).ends_with("Removal 1"), "{}", told(&quick));
        bench.streams.handle_timers(bench.now.plus(KEPT), NOON);
        bench.message(1);
        assert!(told(&quick).ends_with("Message 1"), "nothing is remembered for ever");
    }

    #[test]
    fn the_record_of_the_whole_ends_it_and_that_of_one_user_does_not() {
        let mut bench = Bench::new();
        bench.streams.handle_fence(true);
        let (alice, bob) = (bench.open("alice"), bench.open("bob"));
        bench.append(1, EventKind::Removal, Audience::User("alice"));
        bench.message(1);
        assert_eq!((told(&alice), told(&bob)), ("Removal 1 Message 1".into(), "Message 1".into()));
        // For nobody: it stops delivery, and says nothing.
        let nobody =
            Audience::Members { kind: crate::wire::archive::MemberKind::Role, names: Vec::new() };
        bench.append(2, EventKind::Removal, nobody);
        bench.message(2);
        bench.message(3);
        assert_eq!(told(&bob), "Message 1 Message 3");
    }

    /// Else the same piece would be asked for again and again.
    #[test]
    fn what_has_ended_counts_as_served_in_a_piece_of_a_backlog() {
        let mut bench = Bench::new();
        bench.streams.handle_fence(true);
        let served = |next| Served { own_partition: 0, own: next, group: [0].into() };
        let message = |offset: u64| KeptMessage {
            candidate: Candidate {
                what: What::Message(id(offset)),
                position: Some(Position {
                    partition: Partition { topic: Topic::Selected, index: 0 },
                    offset,
                }),
                appended_at: NOON,
                row: None,
            },
            expires_at: None,
            body: format!("data: Kept {offset}\n\n").into_bytes().into(),
        };
        let reach =
            Reach { progress: served(0), checkpoint: served(9), is_resumed: false, since: NOON };
        let piece = Backlog::new(reach, vec![message(4), message(5)], true);
        bench.streams.handle_ended(id(4), bench.now.plus(KEPT));
        bench.streams.handle_ended(id(5), bench.now.plus(KEPT));
        let socket = bench.open_with("alice", Some(piece));
        let text = socket.borrow().0.clone();
        let mut ids = text.lines().rev().filter_map(|line| line.strip_prefix("id: "));
        let last = Cursor::parse(ids.next().expect("an id")).expect("a cursor");
        assert!(last.backlog && last.own == 6, "{last:?}");
        assert!(text.ends_with("\n\n") && told(&socket).is_empty(), "{text}");
        assert!(bench.streams.is_empty(), "it comes back for the rest");
    }
}
