//! The pump of a shard: one turn takes what is ready, decides, and feeds streams.
//!
//! Order of a turn: stop, timers, inputs of the lanes, descriptors, feeding; each bounded. Only
//! what must wait for the next turn makes it turn again at once; otherwise it sleeps, and rings of
//! its doorbell, ready descriptors and its next deadline wake it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, Event, EventFlags};

use super::ShardOptions;
use super::core::Core;
use super::keeping::Keeping;
use super::probe;
use super::runtime::{Next, Pump};
use super::told::Told;
use crate::base::Moment;
use crate::domain::{CloseReason, Decoder, Intake, Rules, Streams, Vector};
use crate::edge::{Door, Token, watch};
use crate::lane::{FromShard, Order, Receiver, ToShard};
use crate::limits::shard as limits;
use crate::ports::Clock;

const GONE: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Reads what the log held at the start. Streams are put off.
    Starting,
    Serving,
    /// Streams are told to go one after the other, and no new ones are taken. It has drained when
    /// they are gone, but not before it has been here for a moment, if there were any.
    Draining {
        stays_until: Option<Moment>,
        until: Moment,
    },
    /// It still decodes for the other shards, until all have drained.
    Drained {
        is_told: bool,
    },
    Stopped,
}

/// One shard. `C` is the clock, asked once a turn.
pub struct Shard<C> {
    number: u16,
    set: OwnedFd,
    door: Door,
    inputs: Receiver<ToShard>,
    orders: Receiver<Order>,
    phase: Phase,
    /// It serves, and the control threads have not been told: readiness waits for that.
    owes_serving: bool,
    clock: C,
    core: Core,
}

impl<C: Clock> Shard<C> {
    /// Fails when the kernel refuses an epoll set or to watch listener and doorbell.
    pub fn new(options: ShardOptions, clock: C) -> std::io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = options.inputs.bell().clone();
        watch(set.as_fd(), bell.as_fd(), Token::Bell, EventFlags::IN)?;
        // Half of the connections that are no streams yet wait at the door, half in lanes.
        let in_lanes = options.heads_max / 2;
        let at_door = options.heads_max - in_lanes;
        let door = Door::new(options.listener, set.as_fd(), at_door)?;
        let mut peers = options.peers;
        peers.limit_handed(in_lanes);
        let shape = options.streams.shape;
        let streams = Streams::new(options.streams, Vector::new(&shape), clock.moment());
        let core = Core {
            number: options.number,
            streams,
            decoder: Decoder::new(Rules { shape, is_testing: options.is_testing }),
            intake: Intake::new(options.number, peers.sharding(), shape),
            peers,
            keeping: Keeping::default(),
            access: options.access,
            reports: options.reports,
            bad_told: Told::default(),
            unserved_told: Told::default(),
            probe: options.probe,
            streams_max: options.streams.streams_max,
            is_serving: false,
            owes_reread: false,
            fresh_until: None,
            applied: 0,
            owes_applied: false,
            wall: clock.wall(),
            fanout_since: None,
        };
        Ok(Self {
            number: core.number,
            set,
            door,
            inputs: options.inputs,
            orders: options.orders,
            phase: Phase::Starting,
            owes_serving: false,
            clock,
            core,
        })
    }

    /// Takes what the control topic says, and tells how far that is applied.
    fn take_orders(&mut self) {
        while let Some(order) = self.orders.try_recv() {
            self.core.take_order(order);
        }
        self.core.tell_applied();
    }

    /// Takes from the control threads, unless too much waits for other shards.
    fn take_inputs(&mut self, now: Moment) {
        for _ in 0..limits::INPUTS_PER_TURN_MAX {
            if !self.core.intake.takes_records() {
                return;
            }
            match self.inputs.try_recv() {
                None => return,
                Some(ToShard::Identity(identity)) => self.core.streams.handle_identity(identity),
                Some(ToShard::Start { partition, next }) => {
                    self.core.intake.handle_start(&mut self.core.streams, partition, next);
                }
                Some(ToShard::Batch(batch)) => self.core.take_batch(&batch, now),
                Some(ToShard::Skip { partition, next }) => {
                    self.core.intake.handle_skip(&mut self.core.streams, partition, next);
                }
                Some(ToShard::CaughtUp) => self.core.intake.handle_caught_up(),
                Some(ToShard::Backlog { key, backlog }) => {
                    let (door, set) = (&mut self.door, self.set.as_fd());
                    self.core.take_backlog(door, set, (key, backlog), now);
                }
                Some(ToShard::Reread { pass, batches }) => {
                    self.core.take_reread(pass, batches, now);
                }
                Some(ToShard::Drain { window }) => self.drain(window, now),
                Some(ToShard::Stop) => self.phase = Phase::Stopped,
            }
        }
    }

    /// Takes from the other shards, as much from each.
    fn take_from_peers(&mut self, now: Moment) {
        for place in 0..self.core.peers.others() {
            for _ in 0..limits::HANDED_PER_TURN_MAX {
                let Some(handed) = self.core.peers.take_handed(place) else { break };
                self.core.take_handed(&mut self.door, self.set.as_fd(), *handed, now);
            }
            self.core.take_passed(place);
        }
    }

    /// Begins to serve once all has come that the log held at the start, and it is known which
    /// broadcasts have ended.
    fn serve_if_caught_up(&mut self) {
        let is_complete = self.core.intake.is_caught_up() && self.core.fresh_until.is_some();
        if self.phase == Phase::Starting && is_complete {
            self.phase = Phase::Serving;
            self.core.is_serving = true;
            probe::set(&self.core.probe.serving, 1);
            self.owes_serving = true;
        }
        if self.owes_serving {
            self.owes_serving = !self.core.report(FromShard::Serving { shard: self.number });
        }
    }

    fn drain(&mut self, window: Duration, now: Moment) {
        let had_streams = !self.core.streams.is_empty();
        self.core.streams.handle_drain(window, now);
        probe::set(&self.core.probe.serving, 0);
        self.owes_serving = false;
        let linger = window.min(limits::DRAIN_LINGER);
        let until = now.plus(window + limits::DRAIN_TIME);
        self.phase = Phase::Draining { stays_until: had_streams.then(|| now.plus(linger)), until };
    }

    /// Says that it has drained, once it has.
    fn tell_if_drained(&mut self, now: Moment) {
        if let Phase::Draining { stays_until, until } = &mut self.phase {
            *stays_until = stays_until.filter(|at| now < *at);
            let is_empty = self.core.streams.is_empty() && self.core.keeping.is_done();
            if is_empty && stays_until.is_none() || *until <= now {
                self.phase = Phase::Drained { is_told: false };
            }
        }
        if let Phase::Drained { is_told } = &mut self.phase
            && !*is_told
        {
            *is_told = self.core.report(FromShard::Drained { shard: self.number });
        }
    }

    /// Whether there is something to take that would be taken.
    fn has_inputs(&self) -> bool {
        let peers = &self.core.peers;
        (self.core.intake.takes_records() && !self.inputs.is_empty())
            || (self.core.intake.takes_passed() && peers.has_passed())
            || peers.has_handed()
            || !self.orders.is_empty()
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
        if self.phase == Phase::Stopped {
            return Next::Stop;
        }
        let has_work = self.core.streams.wants_to_write();
        if has_work || !self.inputs.bell().may_sleep(|| !self.has_inputs()) {
            return Next::Turn;
        }
        let drained = match self.phase {
            Phase::Draining { stays_until, until } => Some(stays_until.unwrap_or(until)),
            _ => None,
        };
        // Nobody rings when a full lane has room again.
        let owes_drained = self.phase == Phase::Drained { is_told: false };
        let owes_reread = self.core.owes_reread;
        let is_owed = self.owes_serving || owes_drained || owes_reread || self.core.owes_applied;
        let full = (self.core.intake.waiting() > 0 || is_owed)
            .then(|| self.clock.moment().plus(limits::FULL_LANE_WAIT));
        let kept = self.core.keeping.poll_timeout(self.clock.moment());
        let streams = self.core.streams.poll_timeout();
        let deadlines = [streams, self.door.poll_timeout(), kept, drained, full];
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
        self.take_orders();
        self.take_inputs(now);
        self.take_from_peers(now);
        self.serve_if_caught_up();
        self.take_ready(ready, now);
        self.core.peers.flush(&mut self.core.intake);
        self.core.feed(now, &self.clock);
        self.core.reread(now);
        self.core.look_after(&mut self.door, self.set.as_fd(), now);
        self.tell_if_drained(now);
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::base::{LogIdentity, LogShape};
    use crate::domain::{RingLimits, StreamsOptions};
    use crate::edge::AccessRules;
    use crate::lane::{Doorbell, lane};
    use crate::ports::SystemClock;
    use crate::shard::{Probe, RuntimeWanted, mesh};

    #[test]
    fn that_a_shard_serves_or_has_drained_is_said_as_soon_as_the_lane_has_room() {
        let bell = || Arc::new(Doorbell::new().expect("a doorbell"));
        let own = bell();
        let identity = LogIdentity([1, 2, 3]);
        let shape = LogShape { identity, selected_partitions: 1, group_partitions: 1 };
        let (input, inputs) = lane("control_to_shard", 8, own.clone());
        let (order, orders) = lane("orders", 1, own.clone());
        let (reports, reported) = lane("shard_to_control", 1, bell());
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let options = ShardOptions {
            number: 0,
            cpu: 0,
            runtime: RuntimeWanted::Auto,
            streams: StreamsOptions {
                shape,
                ring: RingLimits { frames: 8, bytes: 1 << 20 },
                streams_max: 8,
                heartbeat: Duration::from_secs(25),
                write_progress: Duration::from_secs(30),
                ended_kept: Duration::from_secs(3_600),
                max_age: None,
                seed: 1,
            },
            access: AccessRules { allow_anonymous: true },
            is_testing: false,
            listener,
            heads_max: 8,
            inputs,
            orders,
            peers: mesh(&[own]).expect("one shard").remove(0),
            reports: reports.clone(),
            probe: Arc::new(Probe::default()),
        };
        let mut shard = Shard::new(options, SystemClock).expect("the kernel has what it needs");
        let took = Duration::from_secs(1);
        reports.try_send(FromShard::LongTurn { shard: 0, took }).expect("there is room for one");
        input.try_send(ToShard::Identity(identity)).expect("room");
        for partition in shape.all_partitions() {
            input.try_send(ToShard::Start { partition, next: 0 }).expect("room");
        }
        input.try_send(ToShard::CaughtUp).expect("room");
        let fresh_until = Some(SystemClock.moment().plus(Duration::from_secs(60)));
        order.try_send(Order { fresh_until, ..Order::default() }).expect("room");
        let mut next = Next::Turn;
        while next == Next::Turn {
            next = shard.turn(&[]);
        }
        let Next::Wait(Some(until)) = next else { panic!("it looks again soon, not {next:?}") };
        assert!(until <= SystemClock.moment().plus(Duration::from_secs(1)));
        assert!(matches!(reported.try_recv(), Some(FromShard::LongTurn { .. })));
        shard.turn(&[]);
        assert!(matches!(reported.try_recv(), Some(FromShard::Serving { shard: 0 })));
        shard.turn(&[]);
        assert!(reported.try_recv().is_none(), "it is said once");

        reports.try_send(FromShard::LongTurn { shard: 0, took }).expect("there is room for one");
        input.try_send(ToShard::Drain { window: Duration::from_secs(3_600) }).expect("room");
        let mut next = Next::Turn;
        while next == Next::Turn {
            next = shard.turn(&[]);
        }
        let Next::Wait(Some(until)) = next else { panic!("it looks again soon, not {next:?}") };
        assert!(until <= SystemClock.moment().plus(Duration::from_secs(1)));
        assert!(matches!(reported.try_recv(), Some(FromShard::LongTurn { .. })));
        assert_ne!(shard.turn(&[]), Next::Stop, "others may still need it");
        assert!(matches!(reported.try_recv(), Some(FromShard::Drained { shard: 0 })));
        shard.turn(&[]);
        assert!(reported.try_recv().is_none(), "it is said once");
        input.try_send(ToShard::Stop).expect("room");
        assert_eq!(shard.turn(&[]), Next::Stop);
    }
}
