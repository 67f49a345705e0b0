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

    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::base::{BroadcastId, EpochMillis, LogIdentity, LogShape, Position, UserId};
    use crate::domain::{Open, RingLimits, StreamsOptions};
    use crate::edge::AccessRules;
    use crate::lane::{Doorbell, Sender, lane};
    use crate::ports::SystemClock;
    use crate::shard::{Probe, RuntimeWanted, mesh};
    use crate::wire::archive::{Archiver, Audience, Event, EventKind};

    /// A shard, and what it hears and tells.
    struct Bench<C> {
        shard: Shard<C>,
        input: Sender<ToShard>,
        order: Sender<Order>,
        reports: Sender<FromShard>,
        reported: Receiver<FromShard>,
    }

    const SHAPE: LogShape =
        LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 1, group_partitions: 1 };

    fn bench<C: Clock>(clock: C) -> Bench<C> {
        let bell = || Arc::new(Doorbell::new().expect("a doorbell"));
        let own = bell();
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
                shape: SHAPE,
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
        let shard = Shard::new(options, clock).expect("the kernel has what it needs");
        Bench { shard, input, order, reports, reported }
    }

    #[test]
    fn that_a_shard_serves_or_has_drained_is_said_as_soon_as_the_lane_has_room() {
        let Bench { mut shard, input, order, reports, reported } = bench(SystemClock);
        let took = Duration::from_secs(1);
        reports.try_send(FromShard::LongTurn { shard: 0, took }).expect("there is room for one");
        input.try_send(ToShard::Identity(SHAPE.identity)).expect("room");
        for partition in SHAPE.all_partitions() {
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
    /// Calendar time goes on with every look.
    struct Quick(AtomicU64);

    impl Clock for Quick {
        fn moment(&self) -> Moment {
            SystemClock.moment()
        }

        fn wall(&self) -> EpochMillis {
            EpochMillis(self.0.fetch_add(1, Ordering::Relaxed))
        }
    }

    /// A process may be frozen between two writes of a turn.
    #[test]
    fn no_message_begins_once_it_has_expired_in_the_middle_of_a_turn() {
        const NOON: u64 = 1_795_514_400_000;
        let Bench { mut shard, .. } = bench(Quick(AtomicU64::new(NOON)));
        let now = shard.clock.moment();
        shard.core.fresh_until = Some(now.plus(Duration::from_secs(60)));
        let mut clients = Vec::new();
        for name in ["ann", "ben"] {
            let (client, node) = UnixStream::pair().expect("two sockets");
            let user = UserId::new(name).expect("a user id");
            let open = Open {
                socket: OwnedFd::from(node),
                user: &user,
                members: &[],
                connection: "tab",
                cursor: None,
                backlog: None,
                response_head: b"",
            };
            shard.core.streams.handle_open(open, now, EpochMillis(NOON)).expect("room");
            client.set_nonblocking(true).expect("a socket");
            clients.push(client);
        }
        shard.core.feed(now, &shard.clock);
        let looks = shard.clock.wall();
        let event = Archiver::default().write(Event {
            position: Position {
                partition: SHAPE.all_partitions().next().expect("one"),
                offset: 0,
            },
            appended_at: EpochMillis(NOON),
            event_id: 1,
            attempt: 0,
            broadcast: BroadcastId::new(1).expect("small"),
            kind: EventKind::Message,
            expires_at: Some(EpochMillis(looks.0 + 2)),
            is_passing: false,
            audience: Audience::Everyone,
            body: b"data: short\n\n",
        });
        shard.core.streams.handle_events(&mut vec![event]);
        shard.core.feed(now, &shard.clock);
        let got = clients.iter_mut().filter_map(|client| {
            let mut text = [0; 4_096];
            let length = client.read(&mut text).ok()?;
            String::from_utf8_lossy(&text[..length]).contains("short").then_some(())
        });
        assert_eq!(got.count(), 1, "the first look came in time, the second did not");
    }
}
