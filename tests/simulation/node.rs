//! A node: shards that turn when they like, with bounded lanes between them.
//!
//! Who decodes, what is passed to whom and when it is taken is the real `Sharding` and `Intake`, in
//! the order of a real turn. The lanes are queues, and one thread reads the log for all shards.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use corecast::base::{EpochMillis, LogShape, Moment, Partition, Sharding};
use corecast::domain::{
    Closed, Intake, Passed, ReadAgain, Reread, StreamKey, Streams, StreamsOptions, Taken, Unread,
    Vector,
};
use corecast::lane::Order;
use corecast::limits::keeping::SETTLE_TIME;
use corecast::limits::log::REPEAT_RECORDS;
use corecast::limits::shard::DRAIN_TIME;
use corecast::ports::Clock as _;
use corecast::wire::archive::SharedEvent;

use crate::client::Socket;
use crate::control::Follower;
use crate::owner::OwnerWork;
use crate::random::{Random, Seen};
use crate::records::Log;
use crate::serving::Serving;
use crate::sky::Time;

/// What a shard gets from whoever reads the log.
enum Input {
    Start { partition: Partition, next: u64 },
    Batch { partition: Partition, events: Vec<SharedEvent>, next: u64 },
    Skip { partition: Partition, next: u64 },
    CaughtUp,
    Drain { window: Duration },
}

pub struct Node {
    pub sharding: Sharding,
    pub shards: Vec<Shard>,
    shape: LogShape,
    /// Where each partition ended at the start.
    pub ends: BTreeMap<Partition, u64>,
    /// Next offset of each partition to read.
    read: BTreeMap<Partition, u64>,
    /// Read, and not taken yet by the shard whose lane is full.
    held: VecDeque<(u16, Input)>,
    has_said_caught_up: bool,
    /// The log once no longer had what it was to read next.
    pub has_fallen_behind: bool,
    /// Its streams have an age.
    rotates: bool,
    lane_items: usize,
    pub owner: OwnerWork,
    pub serving: Serving,
    pub follower: Follower,
    clock: Arc<Time>,
    /// None of its threads does anything until then.
    pub frozen_until: Moment,
    /// It has been told to drain.
    pub drains: bool,
    /// Since when its shards have done with that.
    drained_at: Option<Moment>,
    /// It hears and says nothing of who owns what until then, and works on.
    pub cut_off_until: Moment,
    /// It reads nothing of the control topic until then, and works on.
    pub deaf_until: Moment,
}

/// What a node does besides serving.
pub struct Parts {
    pub owner: OwnerWork,
    pub serving: Serving,
    pub follower: Follower,
    pub clock: Arc<Time>,
}

pub struct Shard {
    pub streams: Streams<Socket>,
    /// What the control topic said, and has not been taken yet.
    orders: VecDeque<Order>,
    /// By the node's clock.
    pub fresh_until: Option<Moment>,
    intake: Intake,
    inputs: VecDeque<Input>,
    /// From each shard of the node.
    lanes: Vec<VecDeque<Passed>>,
    /// Sockets by stream, to report edges and to see which streams the node ended.
    pub sockets: Vec<(StreamKey, Socket)>,
    /// Streams that have ended, whose peer may still acknowledge something.
    pub closed: Vec<(Moment, Closed<Socket>)>,
    pub confirm_at: Option<Moment>,
    /// What is being read again, and when that comes.
    pub rereading: Option<(Moment, Reread)>,
    pub is_serving: bool,
    /// It does nothing until then.
    pub stands_until: Moment,
    /// It had a turn in this step.
    pub has_turned: bool,
    /// It drains, and has done with that then, whatever is left.
    drains_until: Option<Moment>,
    /// It has no streams left, and has told all that is to be noted of them.
    pub has_drained: bool,
}

impl Node {
    pub fn start(
        shards: u16,
        options: StreamsOptions,
        parts: Parts,
        log: &Log,
        random: &mut Random,
        now: Moment,
    ) -> Self {
        let shape = options.shape;
        let sharding = Sharding::new(shards).expect("at least one");
        let shard = |own| Shard {
            streams: Streams::new(options, Vector::new(&shape), now),
            orders: VecDeque::new(),
            fresh_until: None,
            intake: Intake::new(own, sharding, shape),
            inputs: VecDeque::new(),
            lanes: (0..shards).map(|_| VecDeque::new()).collect(),
            sockets: Vec::new(),
            closed: Vec::new(),
            confirm_at: None,
            rereading: None,
            is_serving: false,
            stands_until: now,
            has_turned: false,
            drains_until: None,
            has_drained: false,
        };
        let mut node = Self {
            sharding,
            shards: (0..shards).map(shard).collect(),
            shape,
            ends: BTreeMap::new(),
            read: BTreeMap::new(),
            held: VecDeque::new(),
            has_said_caught_up: false,
            has_fallen_behind: false,
            rotates: options.max_age.is_some(),
            lane_items: [1, 2, 8, 64][random.below(4)],
            owner: parts.owner,
            serving: parts.serving,
            follower: parts.follower,
            clock: parts.clock,
            frozen_until: now,
            drains: false,
            drained_at: None,
            cut_off_until: now,
            deaf_until: now,
        };
        for partition in shape.all_partitions() {
            let end = log.end(partition);
            // A node begins some way before the end, so that its ring is not empty, and reads what
            // is before that to know repeats.
            let next = end.saturating_sub(random.next() % 20).max(served_from(log, partition));
            node.ends.insert(partition, end);
            node.read.insert(partition, log.start(partition));
            for shard in 0..shards {
                node.held.push_back((shard, Input::Start { partition, next }));
            }
        }
        node
    }

    /// Reads a few records of each partition, in an order of its own; waits for a shard that has no
    /// room.
    pub fn read_log(&mut self, log: &Log, many: usize, random: &mut Random, seen: &mut Seen) {
        self.hand_out();
        if !self.held.is_empty() {
            return;
        }
        let mut partitions: Vec<Partition> = self.shape.all_partitions().collect();
        while !partitions.is_empty() {
            let partition = partitions.swap_remove(random.below(partitions.len()));
            let owner = self.sharding.of_partition(partition, &self.shape);
            let read = self.read.get_mut(&partition).expect("a partition");
            if *read < log.start(partition) {
                seen.note("nodes that fell behind the log's start");
                self.has_fallen_behind = true;
                *read = log.start(partition);
                let next = served_from(log, partition).max(*read);
                self.held.push_back((owner, Input::Skip { partition, next }));
            }
            let from = *read;
            let behind = log.entries(partition).iter().filter(|entry| entry.offset >= from);
            let mut events = Vec::new();
            for entry in behind.take(many) {
                *read = entry.offset + 1;
                events.extend(entry.event.clone());
                if random.one_in(8) {
                    // The same record again, as after a reconnect to the broker.
                    events.extend(entry.event.clone());
                }
            }
            if *read == from {
                continue;
            }
            self.held.push_back((owner, Input::Batch { partition, events, next: *read }));
        }
        if !self.has_said_caught_up && self.ends.iter().all(|(at, end)| self.read[at] >= *end) {
            self.has_said_caught_up = true;
            for shard in 0..self.sharding.count() {
                self.held.push_back((shard, Input::CaughtUp));
            }
        }
        self.hand_out();
    }

    /// What its calendar says.
    pub fn wall(&self) -> EpochMillis {
        self.clock.wall()
    }

    /// Whether it tells streams to go.
    pub fn ends_streams(&self) -> bool {
        self.drains || self.rotates
    }

    pub fn is_catching_up(&self) -> bool {
        !self.has_said_caught_up
    }

    /// Has every shard drain, behind what it has been given before, and others own at once.
    pub fn drain(&mut self, window: Duration) {
        self.drains = true;
        self.owner.leave();
        for shard in 0..self.sharding.count() {
            self.held.push_back((shard, Input::Drain { window }));
        }
        self.hand_out();
    }

    /// Whether nothing is left to be done before it ends, or it has waited for that long enough.
    pub fn has_drained(&mut self, now: Moment) -> bool {
        if !self.drains || !self.shards.iter().all(|shard| shard.has_drained) {
            return false;
        }
        let since = *self.drained_at.get_or_insert(now);
        self.serving.is_done() || since.plus(SETTLE_TIME) <= now
    }

    /// Hands over in order, until a lane is full.
    fn hand_out(&mut self) {
        while let Some((shard, _)) = self.held.front() {
            let inputs = &mut self.shards[usize::from(*shard)].inputs;
            if inputs.len() >= self.lane_items.max(4) {
                return;
            }
            inputs.extend(self.held.pop_front().map(|(_, input)| input));
        }
    }

    /// What the control topic says goes to all shards, and what is remembered is forgotten.
    pub fn hear(&mut self, order: &Order) {
        let ids: Vec<_> = order.ended.iter().map(|(id, _)| *id).collect();
        self.serving.forget(&ids);
        self.shards.iter_mut().for_each(|shard| shard.orders.push_back(order.clone()));
    }

    /// A shard takes what it was told, and whether messages may begin.
    pub fn take_orders(&mut self, number: usize, now: Moment) {
        let shard = &mut self.shards[number];
        while let Some(Order { ended, applied, fresh_until }) = shard.orders.pop_front() {
            ended.into_iter().for_each(|(id, until)| shard.streams.handle_ended(id, until));
            shard.fresh_until = shard.fresh_until.max(fresh_until);
            self.follower.fleet.handle_applied(number as u16, applied);
        }
        let local = self.follower.local(now);
        shard.streams.handle_fence(shard.fresh_until.is_some_and(|until| local < until));
    }

    /// The first half of a turn: what the shard takes, and what it passes on. Lanes show what is in
    /// them whenever it looks, so how much it takes stands for every interleaving.
    pub fn take(&mut self, number: usize, (now, random, seen): (Moment, &mut Random, &mut Seen)) {
        let shard = &mut self.shards[number];
        for _ in 0..1 + random.below(5) {
            if !shard.intake.takes_records() {
                break;
            }
            let Some(input) = shard.inputs.pop_front() else { break };
            shard.take_input(input, now, seen);
        }
        let Shard { streams, intake, lanes, .. } = shard;
        for lane in lanes {
            let many = random.below(8);
            intake.handle_passed(streams, many, || {
                let passed = lane.pop_front();
                let is_event = matches!(passed, Some(Passed::Event(_)));
                seen.count("events for other shards", u64::from(is_event));
                passed
            });
        }
        shard.is_serving = shard.intake.is_caught_up() && shard.fresh_until.is_some();
    }

    /// Puts what waits for other shards into their lanes, as far as these take it.
    pub fn pass_on(&mut self, number: usize, seen: &mut Seen) {
        for other in (0..self.shards.len()).filter(|other| *other != number) {
            let mut lane = std::mem::take(&mut self.shards[other].lanes[number]);
            self.shards[number].intake.poll_passed(other as u16, |item| {
                if lane.len() >= self.lane_items {
                    seen.note("full lanes");
                    return Err(item);
                }
                lane.push_back(item);
                Ok(())
            });
            self.shards[other].lanes[number] = lane;
        }
    }

    /// Whether everything that was read has come wherever it goes.
    pub fn is_at_rest(&self, log: &Log) -> bool {
        let has_read_all = self.shape.all_partitions().all(|at| self.read[&at] >= log.end(at));
        has_read_all
            && self.held.is_empty()
            && self.shards.iter().all(|shard| {
                shard.is_serving
                    && shard.inputs.is_empty()
                    && shard.intake.waiting() == 0
                    && shard.lanes.iter().all(VecDeque::is_empty)
            })
    }
}

/// Where serving may begin: what was trimmed off may have been the first of what is a repeat.
fn served_from(log: &Log, partition: Partition) -> u64 {
    match log.start(partition) {
        0 => 0,
        start => log.end(partition).min(start + REPEAT_RECORDS),
    }
}

impl Shard {
    /// Asks for what is to be read again, and is answered some time: with a few records of each
    /// partition, or not at all.
    pub fn reread(
        &mut self,
        log: &Log,
        (has_faults, is_away): (bool, bool),
        (now, random, seen): (Moment, &mut Random, &mut Seen),
    ) {
        if let Some((at, reread)) = self.rereading.take() {
            if at > now {
                self.rereading = Some((at, reread));
            } else {
                let is_trimmed =
                    |(partition, from): &(Partition, u64)| *from < log.start(*partition);
                let is_refused = reread.from.iter().any(is_trimmed);
                seen.count("replays of what the log has trimmed", u64::from(is_refused));
                if is_refused || is_away || has_faults && random.one_in(12) {
                    seen.note("replays that were refused");
                    let why = if is_refused && !is_away { Unread::Gone } else { Unread::Away };
                    self.streams.handle_reread(reread.pass, Err(why), now);
                } else {
                    let (mut events, mut next) = (Vec::new(), Vec::new());
                    for (partition, from) in reread.from {
                        let many = random.below(6);
                        let mut read = from;
                        let entries = log.entries(partition).iter();
                        for entry in entries.filter(|entry| entry.offset >= from).take(many) {
                            read = entry.offset + 1;
                            events.extend(entry.event.clone());
                        }
                        if log.end(partition) <= read || many > 0 && read == from {
                            read = read.max(log.end(partition));
                        }
                        next.push((partition, read));
                    }
                    seen.count("events read again", events.len() as u64);
                    self.streams.handle_reread(reread.pass, Ok(ReadAgain { events, next }), now);
                }
            }
        }
        let Some(reread) = self.streams.poll_reread(now) else { return };
        if has_faults && random.one_in(8) {
            seen.note("rereads that found a full lane");
            self.streams.handle_unasked();
            return;
        }
        let slow = if has_faults { random.millis(1_500) } else { Duration::ZERO };
        self.rereading = Some((now.plus(slow), reread));
    }

    /// Whether it takes streams, as the real one says it.
    pub fn takes_streams(&self) -> bool {
        self.is_serving && !self.streams.is_draining()
    }

    /// Sees whether it has drained.
    pub fn look_at_drain(&mut self, now: Moment) {
        let Some(until) = self.drains_until else { return };
        let is_empty = self.streams.is_empty() && self.closed.is_empty();
        self.has_drained |= is_empty || until <= now;
    }

    fn take_input(&mut self, input: Input, now: Moment, seen: &mut Seen) {
        let Self { streams, intake, .. } = self;
        match input {
            Input::Start { partition, next } => intake.handle_start(streams, partition, next),
            Input::Batch { partition, events, next } => {
                for event in events {
                    let taken = intake.handle_event(streams, event);
                    seen.count("repeats", u64::from(taken == Taken::Repeat));
                }
                intake.handle_read(streams, partition, next);
            }
            Input::Skip { partition, next } => intake.handle_skip(streams, partition, next),
            Input::CaughtUp => intake.handle_caught_up(),
            Input::Drain { window } => {
                seen.count("streams on nodes that drain", streams.len() as u64);
                streams.handle_drain(window, now);
                self.drains_until = Some(now.plus(window + DRAIN_TIME));
            }
        }
    }
}
