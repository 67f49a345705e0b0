//! What a shard takes of the log, and in which order: from the records of its own partitions, and
//! from what the other shards pass to it.
//!
//! Invariants:
//! - nothing is taken from other shards before the start of every partition is known, since a start
//!   empties the ring;
//! - an event is given to the streams, and is passed on, before any position that covers it;
//! - streams may be served once every shard, this one too, has given all that the log held at the
//!   start.

use super::exchange::{Exchange, Passed};
use super::repeats::Repeats;
use super::streams::Streams;
use crate::base::{LogShape, Partition, Sharding};
use crate::limits::shard as limits;
use crate::wire::archive::SharedEvent;

/// What became of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It was served before.
    Repeat,
    /// Read again, or read only to know what is a repeat.
    Old,
    /// Some of its audience is on this shard.
    Here,
    /// Its user is on another shard.
    Elsewhere,
}

/// One shard's part in it.
#[derive(Debug)]
pub struct Intake {
    exchange: Exchange,
    repeats: Repeats,
    /// Events that the streams do not know of yet.
    decoded: Vec<SharedEvent>,
    /// Partitions of which it is not known yet where they are served from.
    unstarted: usize,
    /// Shards, with this one, of which not all has come that the log held at the start.
    behind: usize,
}

impl Intake {
    pub fn new(own: u16, sharding: Sharding, shape: LogShape) -> Self {
        Self {
            exchange: Exchange::new(own, sharding),
            repeats: Repeats::new(shape),
            decoded: Vec::with_capacity(limits::EVENTS_AT_ONCE),
            unstarted: shape.all_partitions().count(),
            behind: usize::from(sharding.count()),
        }
    }

    /// The partition is served from `next` on. Once for each, before its first event.
    pub fn handle_start<S>(&mut self, streams: &mut Streams<S>, partition: Partition, next: u64) {
        streams.handle_start(partition, next);
        self.unstarted = self.unstarted.saturating_sub(1);
    }

    /// Takes an event of a partition that this shard owns, and passes it on.
    pub fn handle_event<S>(&mut self, streams: &mut Streams<S>, event: SharedEvent) -> Taken {
        let position = event.position();
        if self.repeats.note(position, event.event_id()) {
            return Taken::Repeat;
        }
        if !streams.is_new(position) {
            return Taken::Old;
        }
        if !self.exchange.pass_event(&event) {
            return Taken::Elsewhere;
        }
        self.take(streams, event);
        Taken::Here
    }

    /// A partition that this shard owns has been read up to `next`, whatever its records were.
    pub fn handle_read<S>(&mut self, streams: &mut Streams<S>, partition: Partition, next: u64) {
        self.advance(streams, partition, next);
        self.exchange.pass_position(partition, next);
    }

    /// A partition that this shard owns can't be read below `next`, and has not been up to there.
    pub fn handle_skip<S>(&mut self, streams: &mut Streams<S>, partition: Partition, next: u64) {
        self.skip(streams, partition, next);
        self.exchange.pass_skip(partition, next);
    }

    /// All that the log held at the start of the partitions that this shard owns has come.
    pub fn handle_caught_up(&mut self) {
        self.exchange.pass_caught_up();
        self.catch_up();
    }

    /// Takes up to `many` items from another shard, if it is time.
    pub fn handle_passed<S>(
        &mut self,
        streams: &mut Streams<S>,
        many: usize,
        mut next: impl FnMut() -> Option<Passed>,
    ) {
        if !self.takes_passed() {
            return;
        }
        for _ in 0..many {
            match next() {
                None => break,
                Some(Passed::Event(event)) => self.take(streams, event),
                Some(Passed::Position { partition, next }) => {
                    self.advance(streams, partition, next);
                }
                Some(Passed::Skip { partition, next }) => self.skip(streams, partition, next),
                Some(Passed::CaughtUp) => self.catch_up(),
            }
        }
        self.flush(streams);
    }

    /// Offers a shard what waits for it, until it gives an item back.
    pub fn poll_passed(&mut self, shard: u16, take: impl FnMut(Passed) -> Result<(), Passed>) {
        self.exchange.offer(shard, take);
    }

    /// Whether records are to be taken: not while much waits for other shards.
    pub fn takes_records(&self) -> bool {
        self.exchange.has_room()
    }

    /// Whether anything is to be taken from other shards.
    pub fn takes_passed(&self) -> bool {
        self.unstarted == 0
    }

    /// Whether streams may be served.
    pub fn is_caught_up(&self) -> bool {
        self.behind == 0
    }

    /// Items that wait for other shards.
    pub fn waiting(&self) -> usize {
        self.exchange.len()
    }

    fn take<S>(&mut self, streams: &mut Streams<S>, event: SharedEvent) {
        self.decoded.push(event);
        if self.decoded.len() >= limits::EVENTS_AT_ONCE {
            self.flush(streams);
        }
    }

    fn advance<S>(&mut self, streams: &mut Streams<S>, partition: Partition, next: u64) {
        self.flush(streams);
        streams.handle_position(partition, next);
    }

    fn skip<S>(&mut self, streams: &mut Streams<S>, partition: Partition, next: u64) {
        self.flush(streams);
        streams.handle_skip(partition, next);
    }

    /// A position came before it, so the streams know of all events.
    fn catch_up(&mut self) {
        self.behind = self.behind.saturating_sub(1);
    }

    /// Gives the streams the events that they do not know of yet.
    fn flush<S>(&mut self, streams: &mut Streams<S>) {
        streams.handle_events(&mut self.decoded);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::{BroadcastId, EpochMillis, LogIdentity, Moment, Position, Topic};
    use crate::domain::{RingLimits, StreamsOptions, Vector};
    use crate::wire::archive::{Archiver, Audience, Event, EventKind};

    const SHAPE: LogShape =
        LogShape { identity: LogIdentity([0; 3]), selected_partitions: 1, group_partitions: 1 };
    const GROUP: Partition = Partition { topic: Topic::Group, index: 0 };
    const SELECTED: Partition = Partition { topic: Topic::Selected, index: 0 };

    fn new() -> (Intake, Streams<()>) {
        let options = StreamsOptions {
            shape: SHAPE,
            ring: RingLimits { frames: 8, bytes: 1 << 20 },
            streams_max: 1,
            heartbeat: Duration::from_secs(25),
            write_progress: Duration::from_secs(30),
            ended_kept: Duration::from_secs(3_600),
            max_age: None,
            seed: 0,
        };
        let sharding = Sharding::new(2).expect("some");
        let streams = Streams::new(options, Vector::new(&SHAPE), Moment(0));
        (Intake::new(0, sharding, SHAPE), streams)
    }

    fn event(offset: u64) -> SharedEvent {
        Archiver::default().write(Event {
            position: Position { partition: GROUP, offset },
            appended_at: EpochMillis(0),
            event_id: u128::from(offset),
            attempt: 0,
            broadcast: BroadcastId::new(1).expect("small"),
            expires_at: None,
            kind: EventKind::Message,
            is_passing: false,
            audience: Audience::Everyone,
            body: b"event: MESSAGE\ndata: {}\n\n",
        })
    }

    fn passed_to_the_other(intake: &mut Intake) -> Vec<String> {
        let mut passed = Vec::new();
        intake.poll_passed(1, |item| {
            passed.push(match item {
                Passed::Event(event) => format!("event {}", event.position().offset),
                Passed::Position { next, .. } => format!("next {next}"),
                Passed::Skip { next, .. } => format!("skip {next}"),
                Passed::CaughtUp => "caught up".to_owned(),
            });
            Ok(())
        });
        passed
    }

    #[test]
    fn nothing_is_taken_from_others_before_all_starts_are_known() {
        let (mut intake, mut streams) = new();
        let mut passed = vec![Passed::CaughtUp, Passed::Event(event(7))];
        for partition in [GROUP, SELECTED] {
            intake.handle_passed(&mut streams, 9, || passed.pop());
            assert_eq!((passed.len(), streams.ring().next()), (2, 0));
            intake.handle_start(&mut streams, partition, 5);
        }
        intake.handle_passed(&mut streams, 9, || passed.pop());
        assert_eq!((passed.len(), streams.ring().next()), (0, 1));
    }

    #[test]
    fn streams_are_served_once_every_shard_has_caught_up() {
        let (mut intake, mut streams) = new();
        intake.handle_start(&mut streams, GROUP, 0);
        intake.handle_start(&mut streams, SELECTED, 0);
        assert!(!intake.is_caught_up());
        intake.handle_caught_up();
        assert!(!intake.is_caught_up(), "the other one has not");
        let mut passed = vec![Passed::CaughtUp];
        intake.handle_passed(&mut streams, 9, || passed.pop());
        assert!(intake.is_caught_up());
    }

    #[test]
    fn what_lies_before_a_skip_is_served_no_more() {
        let (mut intake, mut streams) = new();
        intake.handle_start(&mut streams, GROUP, 5);
        intake.handle_start(&mut streams, SELECTED, 0);
        intake.handle_event(&mut streams, event(5));
        intake.handle_skip(&mut streams, GROUP, 9);
        let taken = [8, 9].map(|offset| intake.handle_event(&mut streams, event(offset)));
        assert_eq!(taken, [Taken::Old, Taken::Here], "what is below tells of repeats only");
        intake.handle_read(&mut streams, GROUP, 10);
        let ring = streams.ring();
        assert_eq!((ring.first(), ring.next(), ring.base().group()), (1, 2, &[9][..]));
        assert_eq!(passed_to_the_other(&mut intake), ["event 5", "skip 9", "event 9", "next 10"]);
    }

    #[test]
    fn events_go_before_the_position_that_covers_them() {
        let (mut intake, mut streams) = new();
        intake.handle_start(&mut streams, GROUP, 5);
        intake.handle_start(&mut streams, SELECTED, 0);
        let taken = [4, 5, 5, 6].map(|offset| intake.handle_event(&mut streams, event(offset)));
        assert_eq!(taken, [Taken::Old, Taken::Here, Taken::Repeat, Taken::Here]);
        intake.handle_read(&mut streams, GROUP, 9);
        assert_eq!((streams.ring().next(), streams.vector().next(GROUP)), (2, 9));
        assert_eq!(passed_to_the_other(&mut intake), ["event 5", "event 6", "next 9"]);
    }
}
