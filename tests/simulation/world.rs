//! The world: a log, a store, groups, nodes that read at their own pace, clients that come and go.
//!
//! The nodes' streams, rings, cursors, owners and backlogs are the real ones. Time, sockets, log,
//! store and coordinator are not.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;
use std::sync::Arc;
use std::time::Duration;

use corecast::base::{BroadcastId, EpochMillis, LogShape, Moment, Partition, Position, UserId};
use corecast::domain::{CloseReason, RingLimits, StreamKey, StreamsOptions, Vector};
use corecast::limits::shard::MAX_AGE_MIN;
use corecast::ports::Bounds;
use corecast::wire::cursor::Cursor;

use crate::client::{Parser, Socket};
use crate::control::{Cancel, ENDED_KEPT, Follower, Topic, count_fences};
use crate::desk::Desk;
use crate::groups::Groups;
use crate::node::{Node, Parts};
use crate::oracle::Person;
use crate::outage::Outage;
use crate::owner::{OwnerWork, quiet_after};
use crate::random::{Random, Seen};
use crate::records::{Log, Truth};
use crate::serving::Serving;
use crate::sky::{BEGIN, REPLACED, REPLACED_START, SHAPE, Time, wall_at};
use crate::sockets::Asking;
use crate::store::FakeStore;

pub const ROLES: [&str; 4] = ["admin", "editor", "reader", "guest"];
pub const USERS: usize = 12;
/// Some users have two.
pub const CLIENTS: usize = 16;
pub const NODES: usize = 3;
/// Streams of a shard, at least: all find room if each node has one shard.
const ROOM_MIN: usize = CLIENTS.div_ceil(NODES);
const SHARDS_MAX: u16 = 4;
const WRITE_PROGRESS: Duration = Duration::from_secs(30);

/// What is done to the world.
#[derive(Clone, Copy)]
pub struct Faults {
    pub deaths: bool,
    /// Nodes crash, stand still, and are cut off from the coordinator.
    pub nodes: bool,
    pub stalls: bool,
    pub expiry: bool,
    pub lost_notes: bool,
    pub cancels: bool,
    /// The log forgets what has been kept.
    pub trims: bool,
    /// Calendars step.
    pub clocks: bool,
    /// Backends are away for minutes.
    pub outages: bool,
    /// Clients present cursors from ahead of the log.
    pub forgeries: bool,
}

impl Faults {
    pub const ALL: Self = Self {
        deaths: true,
        nodes: true,
        stalls: true,
        expiry: true,
        lost_notes: true,
        cancels: true,
        trims: true,
        clocks: true,
        outages: true,
        forgeries: true,
    };
    pub const NONE: Self = Self {
        deaths: false,
        nodes: false,
        stalls: false,
        expiry: false,
        lost_notes: false,
        cancels: false,
        trims: false,
        clocks: false,
        outages: false,
        forgeries: false,
    };
}

pub struct Client {
    pub user: UserId,
    pub roles: Vec<&'static str>,
    pub connection: Option<Connection>,
    /// It waits for what is kept for its user.
    pub asking: Option<Asking>,
    pub parser: Parser,
    /// What it presents when it comes back. `None`: it begins anew.
    pub last_id: Option<Cursor>,
    /// It came with a cursor from ahead of the log.
    pub is_from_ahead: bool,
    /// When it began anew last. What had come to another device before that need not come.
    pub began_at: Moment,
    /// What it got since it began.
    pub got: BTreeSet<Position>,
    /// What is for it and it has not got, since it began, but for what its user had got by then.
    pub missing: BTreeSet<Position>,
    /// Where it stands that what it got since it began is no more, until it has been told.
    pub owed: BTreeMap<Position, BroadcastId>,
    pub is_slow: bool,
    /// It often begins anew.
    pub is_forgetful: bool,
}

pub struct Connection {
    pub node: usize,
    pub shard: usize,
    pub key: StreamKey,
    pub socket: Socket,
    /// It gets what the store keeps first.
    pub has_backlog: bool,
    /// What the shard had read when it came.
    pub came_at: Vector,
    /// It was told to go, behind which nothing comes.
    pub is_told: bool,
    /// The last that it was told is when to come back.
    pub has_retry: bool,
    /// What comes next was once not in the ring.
    pub may_continue: bool,
}

pub struct World {
    pub seed: u64,
    pub random: Random,
    pub faults: Faults,
    pub now: Moment,
    /// Of the machines on which the nodes run.
    pub clocks: [Arc<Time>; NODES],
    /// Calendars step in this world.
    pub has_steps: bool,
    /// Of the log as it is now.
    pub shape: LogShape,
    pub log: Log,
    pub truth: Truth,
    pub store: FakeStore,
    pub desk: Desk,
    pub groups: Groups,
    pub nodes: Vec<Node>,
    pub clients: Vec<Client>,
    pub people: BTreeMap<UserId, Person>,
    /// Up to where every checkpoint has been looked into.
    pub checked: BTreeMap<Partition, u64>,
    pub broadcasts: u64,
    /// Offsets go up by thousands now and then.
    pub has_large_holes: bool,
    ring: RingLimits,
    /// Messages of one piece of a backlog.
    piece: usize,
    /// Streams of one shard.
    pub room: usize,
    pub topic: Topic,
    pub cancels: Vec<Cancel>,
    starts: u64,
    pub outage: Outage,
    pub seen: Seen,
    pub trace: DefaultHasher,
}

impl World {
    pub fn new(seed: u64, mut faults: Faults) -> Self {
        let mut random = Random::new(seed);
        // Where the log was trimmed, it is not read again.
        faults.trims &= random.one_in(2);
        faults.clocks &= random.one_in(2);
        let ring = RingLimits {
            frames: [8, 32, 4_096, 4_096][random.below(4)],
            bytes: [20_000, 1 << 20, 1 << 20][random.below(3)],
        };
        let (store, groups) = (FakeStore::new(random.fork()), Groups::new(random.fork()));
        let desk = Desk::new(random.fork());
        let has_large_holes = random.one_in(3);
        let piece = [2, 5, 1_000][random.below(3)];
        let room = [ROOM_MIN, CLIENTS, CLIENTS][random.below(3)];
        let mut world = Self {
            seed,
            random,
            faults,
            now: BEGIN,
            clocks: std::array::from_fn(|_| Arc::default()),
            has_steps: faults.clocks,
            shape: SHAPE,
            log: Log::new(),
            truth: Truth::default(),
            store,
            desk,
            groups,
            nodes: Vec::new(),
            clients: Vec::new(),
            people: BTreeMap::new(),
            checked: SHAPE.all_partitions().map(|partition| (partition, 0)).collect(),
            broadcasts: 0,
            has_large_holes,
            ring,
            piece,
            room,
            topic: Topic::default(),
            cancels: Vec::new(),
            starts: 0,
            outage: Outage::default(),
            seen: Seen::default(),
            trace: DefaultHasher::new(),
        };
        world.pass_time(Duration::ZERO);
        for number in 0..NODES {
            let drawn = world.random.below(usize::from(SHARDS_MAX)) as u16;
            let node = world.start_node(number, drawn);
            world.nodes.push(node);
        }
        for number in 0..CLIENTS {
            let user = UserId::new(&format!("user-{}", number % USERS)).expect("a user id");
            let drawn = ROLES.into_iter().filter(|_| world.random.one_in(2)).collect::<Vec<_>>();
            let person = world.people.entry(user.clone());
            let roles = person.or_insert_with(|| Person::new(drawn)).roles.clone();
            world.clients.push(Client {
                user,
                roles,
                connection: None,
                asking: None,
                parser: Parser::default(),
                last_id: None,
                is_from_ahead: false,
                began_at: world.now,
                got: BTreeSet::new(),
                missing: BTreeSet::new(),
                owed: BTreeMap::new(),
                is_slow: world.random.one_in(3),
                is_forgetful: world.random.one_in(3),
            });
        }
        world
    }

    /// Faults, and every byte checked.
    pub fn run_safety(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// No more faults: all is kept, everybody comes back, and has everything.
    pub fn run_liveness(&mut self) {
        self.faults = Faults::NONE;
        self.set_faults(false);
        for partition in SHAPE.all_partitions() {
            self.append_unserved(partition);
        }
        self.settle();
        for client in &mut self.clients {
            client.is_slow = false;
            if let Some(connection) = &client.connection {
                connection.socket.borrow_mut().room = None;
            }
        }
        // What comes in pieces takes many rounds.
        for _ in 0..2_000 {
            self.pass_time(Duration::from_millis(20));
            for client in 0..CLIENTS {
                self.connect(client);
            }
            self.turn_all(true);
            if (0..CLIENTS).all(|client| self.is_complete(client)) {
                break;
            }
        }
        for client in 0..CLIENTS {
            self.check_complete(client);
        }
        self.check_people();
        self.check_removals();
    }

    /// Whether store and coordinator have faults. What earlier ones have put off has then come.
    fn set_faults(&mut self, has_faults: bool) {
        self.store.lock().has_faults = has_faults;
        self.groups.lock().has_faults = has_faults;
        self.desk.lock().has_faults = has_faults;
        if !has_faults {
            self.clocks.iter().for_each(|clock| clock.step(0));
            let quiet = quiet_after(self.now);
            self.pass_time(quiet.since(self.now));
            self.take_clocks();
        }
    }

    pub fn seen(&self) -> Seen {
        let mut seen = self.seen.clone();
        for node in &self.nodes {
            count(node, &mut seen);
        }
        seen.add(&self.store.lock().seen);
        seen.add(&self.groups.lock().seen);
        seen.add(&self.desk.lock().seen);
        seen
    }

    /// A hash of all that clients read, in order.
    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// What a calendar says that is right, as that of the log is.
    pub fn wall(&self) -> EpochMillis {
        wall_at(self.now)
    }

    fn pass_time(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.clocks.iter().for_each(|clock| clock.set(self.now));
        self.store.handle_time(self.now);
        self.groups.handle_time(self.now);
        self.take_published();
    }

    /// What was published again stands in the log; whoever publishes sees how long that is.
    fn take_published(&mut self) {
        let landed = self.desk.lock().handle_time(self.now);
        landed.into_iter().for_each(|record| self.append_again(record));
        self.show_bounds();
    }

    /// Whoever asks the log where it ends is told of all that stands there.
    pub fn show_bounds(&self) {
        let mut desk = self.desk.lock();
        for partition in SHAPE.all_partitions() {
            let bounds = Bounds { start: self.log.start(partition), end: self.log.end(partition) };
            desk.handle_bounds(partition, bounds);
        }
    }

    /// All that the log holds comes to every shard that has a part in it, and into the store.
    fn settle(&mut self) {
        for _ in 0..4_000 {
            let is_at_rest = |node: &Node| node.is_at_rest(&self.log) && !node.drains;
            // Whoever completes a cancel appends to the log.
            let are_told = self.cancels.is_empty();
            if are_told && self.nodes.iter().all(is_at_rest) && self.is_all_kept() {
                break;
            }
            for node in 0..NODES {
                self.read_log(node, usize::MAX);
            }
            self.pass_time(Duration::from_millis(20));
            self.turn_all(true);
        }
        let seed = self.seed;
        assert!(self.is_all_kept(), "seed {seed}: not all is kept");
        for node in &self.nodes {
            assert!(node.is_at_rest(&self.log), "seed {seed}: a node does not come to rest");
            for (number, shard) in node.shards.iter().enumerate() {
                assert!(shard.is_serving, "seed {seed}: shard {number} does not serve");
                for partition in SHAPE.all_partitions() {
                    let (next, end) =
                        (shard.streams.vector().next(partition), self.log.end(partition));
                    assert_eq!(next, end, "seed {seed}: {partition:?} on shard {number}");
                }
            }
        }
    }

    fn is_all_kept(&self) -> bool {
        if !self.desk.lock().is_empty() || !self.store.lock().parked.is_empty() {
            return false;
        }
        let groups = self.groups.lock();
        SHAPE.all_partitions().all(|partition| {
            let next = groups.committed().get(&partition).copied();
            next.unwrap_or(self.log.start(partition)) == self.log.end(partition)
        })
    }

    pub fn step(&mut self) {
        // With something away, all waits grow long.
        let longest =
            if self.is_in_outage() { [400, 3_000, 12_000][self.random.below(3)] } else { 400 };
        let time = self.random.millis(longest);
        self.pass_time(time);
        if self.faults.clocks && self.random.one_in(24) {
            self.step_clock();
        }
        let mut kills = false;
        match self.random.below(16) {
            0..=3 => self.append(),
            4..=5 => {
                let (node, many) = (self.random.below(NODES), 1 + self.random.below(6));
                self.read_log(node, many);
            }
            8 if self.faults.cancels && self.random.one_in(2) => self.cancel(),
            6..=8 => {
                for _ in 0..3 {
                    let client = self.random.below(CLIENTS);
                    self.connect(client);
                }
            }
            9 => kills = self.faults.deaths,
            10 => self.change_rooms(),
            11 if self.faults.nodes && self.random.one_in(8) => self.crash_node(),
            11 if self.faults.nodes && self.random.one_in(6) => self.drain_node(),
            12 if self.faults.nodes && self.random.one_in(3) => self.disturb_node(),
            13 if self.faults.nodes && self.random.one_in(4) => {
                self.seen.note("rebalances");
                self.groups.lock().rebalance(2);
            }
            15 if self.faults.trims && !self.is_log_out() && self.random.one_in(4) => {
                self.trim_log()
            }
            // Long quiet: heartbeats, and stuck sockets that run into their deadline.
            14 if self.random.one_in(4) => {
                let time = self.random.millis(40_000);
                self.pass_time(time);
            }
            _ => {}
        }
        for node in 0..NODES {
            if self.nodes[node].is_catching_up() && self.random.one_in(3) {
                self.read_log(node, 40);
            }
        }
        self.take_clocks();
        // A node that wakes up may write before it hears.
        let is_heard_first = self.random.one_in(2);
        if is_heard_first {
            self.turn_control(false);
        }
        self.turn_owners(false);
        self.turn_asks();
        self.turn_shards();
        if !is_heard_first {
            self.turn_control(false);
        }
        self.end_drained();
        if kills {
            // What was written in these turns is on its way.
            self.kill_client();
        }
        self.read_and_check();
    }

    /// Everybody who does not stand still does something, and all of it is looked at.
    fn turn_all(&mut self, is_eager: bool) {
        self.take_clocks();
        self.turn_control(is_eager);
        self.turn_owners(is_eager);
        self.turn_asks();
        self.turn_shards();
        self.end_drained();
        self.read_and_check();
    }

    fn read_and_check(&mut self) {
        let mut seen = std::mem::take(&mut self.seen);
        count_fences(self, &mut seen);
        self.seen = seen;
        self.read_sockets();
        self.check_no_delay();
        self.check_store();
    }

    fn turn_owners(&mut self, is_eager: bool) {
        let first = self.random.below(NODES);
        for number in (0..NODES).map(|number| (first + number) % NODES) {
            let node = &mut self.nodes[number];
            if node.frozen_until > self.now {
                continue;
            }
            let is_cut_off = node.cut_off_until > self.now;
            if !node.drains {
                let how = (is_eager, is_cut_off, self.outage.log_until > self.now);
                node.owner.turn(&self.log, how, &mut self.random, &mut self.seen);
            }
            node.serving.turn(&mut self.seen);
        }
    }

    fn read_log(&mut self, number: usize, many: usize) {
        let node = &mut self.nodes[number];
        if node.frozen_until > self.now || self.outage.log_until > self.now {
            return;
        }
        // What the log held at the start comes in large pieces.
        let many = if node.is_catching_up() { many.max(40) } else { many };
        node.read_log(&self.log, many, &mut self.random, &mut self.seen);
    }

    /// With another number of shards than before.
    fn start_node(&mut self, number: usize, before: u16) -> Node {
        let shards = 1 + (before + self.random.below(3) as u16) % SHARDS_MAX;
        let options = StreamsOptions {
            shape: self.shape,
            ring: self.ring,
            streams_max: self.room,
            heartbeat: Duration::from_secs(5),
            write_progress: WRITE_PROGRESS,
            ended_kept: ENDED_KEPT,
            max_age: [None, Some(MAX_AGE_MIN), Some(3 * MAX_AGE_MIN)][self.random.below(3)],
            seed: self.random.next(),
        };
        let member = Arc::new(self.groups.join());
        let (store, clock) = (&self.store, self.clocks[number].clone());
        let owner = OwnerWork::new(self.shape, member.clone(), store, &self.desk, clock.clone());
        let serving = Serving::new(member, (store, &self.desk), clock.clone(), self.piece);
        self.starts += 1;
        let follower = Follower::new(self.starts, usize::from(shards), &mut self.random);
        let parts = Parts { owner, serving, follower, clock };
        Node::start(shards, options, parts, &self.log, &mut self.random, self.now)
    }

    /// Shards have their turns in any order; one may stand still for long.
    fn turn_shards(&mut self) {
        let mut shards: Vec<(usize, usize)> = Vec::new();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            for (place, shard) in node.shards.iter_mut().enumerate() {
                shard.has_turned = false;
                shards.push((number, place));
            }
        }
        while !shards.is_empty() {
            let (node, place) = shards.swap_remove(self.random.below(shards.len()));
            let stops = self.faults.stalls && self.random.one_in(60);
            let shard = &mut self.nodes[node].shards[place];
            if shard.stands_until > self.now {
                continue;
            }
            if stops {
                self.seen.note("shards that stand still");
                let time = self.random.millis(20_000);
                shard.stands_until = self.now.plus(time);
                continue;
            }
            self.turn(node, place);
        }
    }

    /// In the order of a real turn.
    fn turn(&mut self, node: usize, place: usize) {
        let (now, wall) = (self.now, self.nodes[node].wall());
        self.nodes[node].shards[place].has_turned = true;
        self.nodes[node].shards[place].streams.handle_timers(now, wall);
        self.nodes[node].take_orders(place, now);
        let with = (now, &mut self.random, &mut self.seen);
        self.nodes[node].take(place, with);
        self.report_edges(node, place);
        self.nodes[node].pass_on(place, &mut self.seen);
        self.feed(node, place);
        let with = (now, &mut self.random, &mut self.seen);
        let faults = (self.faults.nodes, self.outage.log_until > now);
        self.nodes[node].shards[place].reread(&self.log, faults, with);
        let shard = &mut self.nodes[node].shards[place];
        let notes = shard.look(now);
        shard.look_at_drain(now);
        self.note(node, notes);
    }

    pub fn note(&mut self, node: usize, notes: Vec<corecast::domain::Note>) {
        let loses = self.faults.lost_notes;
        self.nodes[node].serving.take(notes, loses, &mut self.random, &mut self.seen);
    }

    /// Some of what has been kept is no longer in the log, whoever has read it; now and then also
    /// what has not.
    fn trim_log(&mut self) {
        for (partition, kept) in &self.checked {
            if self.random.one_in(2) {
                let is_early = self.random.one_in(8);
                let end = if is_early { self.log.end(*partition) } else { *kept };
                let start = self.random.next() % (end + 1);
                self.seen.count("trims", u64::from(start > self.log.start(*partition)));
                if start > *kept {
                    self.seen.note("trims of what was not kept");
                    self.truth.lose(*partition, *kept..start);
                }
                self.log.trim(*partition, start);
            }
        }
    }

    /// Once all that the log held has been kept, another one stands in its place. Every node ends
    /// and starts again, and every client comes back with what it has.
    pub fn replace_log(&mut self) {
        let faults = std::mem::replace(&mut self.faults, Faults::NONE);
        self.set_faults(false);
        self.settle();
        self.faults = faults;
        self.set_faults(true);
        self.seen.note("logs that were replaced");
        self.shape = REPLACED;
        self.desk.lock().shape = REPLACED;
        self.groups.lock().forget_all(REPLACED_START);
        for partition in SHAPE.all_partitions() {
            self.log.trim(partition, REPLACED_START);
            self.checked.insert(partition, REPLACED_START);
        }
        (0..NODES).for_each(|number| self.crash(number));
    }

    fn crash_node(&mut self) {
        let number = self.random.below(NODES);
        self.crash(number);
    }

    fn crash(&mut self, number: usize) {
        let node = &self.nodes[number];
        self.seen.note("node crashes");
        self.seen.count("starts in an outage", u64::from(self.is_in_outage()));
        self.seen.count("crashes in the middle of a write", u64::from(node.owner.is_writing()));
        self.seen.count("notes lost in a crash", u64::from(!node.serving.is_done()));
        self.restart(number);
    }

    /// A node ends and starts again, and so do its clients.
    fn restart(&mut self, number: usize) {
        count(&self.nodes[number], &mut self.seen);
        for client in &mut self.clients {
            if client.connection.as_ref().is_some_and(|connection| connection.node == number) {
                client.connection = None;
                client.parser = Parser::default();
            }
            if client.asking.as_ref().is_some_and(|asking| asking.node == number) {
                client.asking = None;
            }
        }
        let before = self.nodes[number].sharding.count();
        self.nodes[number] = self.start_node(number, before);
    }

    /// A node is told to end, and is started again once it has.
    fn drain_node(&mut self) {
        let number = self.random.below(NODES);
        let window = self.random.millis(10_000);
        let window = if self.random.one_in(4) { Duration::ZERO } else { window };
        if !self.nodes[number].drains {
            self.seen.note("nodes that drained");
            self.seen.count("drains in an outage", u64::from(self.is_in_outage()));
            self.nodes[number].drain(window);
        }
    }

    /// Nodes that have drained end. What their streams said at their end has been kept.
    fn end_drained(&mut self) {
        for number in 0..NODES {
            if self.nodes[number].has_drained(self.now) {
                let is_done = self.nodes[number].serving.is_done();
                self.seen.count("notes lost in a drain", u64::from(!is_done));
                self.restart(number);
            }
        }
    }

    /// A node stands still, or hears nothing of who owns what: perhaps for longer than a session.
    fn disturb_node(&mut self) {
        let node = &mut self.nodes[self.random.below(NODES)];
        let until = self.now.plus(self.random.millis(15_000));
        match self.random.below(3) {
            0 => {
                self.seen.note("frozen nodes");
                node.frozen_until = until;
                for shard in &mut node.shards {
                    shard.stands_until = shard.stands_until.max(until);
                }
            }
            1 => {
                self.seen.note("nodes cut off from the coordinator");
                node.cut_off_until = until;
            }
            _ => {
                self.seen.note("nodes that are deaf to the control topic");
                node.deaf_until = until;
            }
        }
    }
}

fn count(node: &Node, seen: &mut Seen) {
    for counters in node.shards.iter().map(|shard| shard.streams.counters()) {
        seen.count("deliveries", counters.deliveries);
        seen.count("resumes", counters.resumed);
        seen.count("heartbeats", counters.heartbeats);
        seen.count("ended messages", counters.ended_skips);
        seen.count("slow closes", counters.closed[CloseReason::Slow as usize]);
        seen.count("streams that drained", counters.closed[CloseReason::Drain as usize]);
        seen.count("streams that rotated", counters.closed[CloseReason::Rotated as usize]);
        let continued = counters.closed[CloseReason::Continues as usize];
        seen.count("streams that went on from the store", continued);
        seen.count("streams that replayed", counters.replays);
    }
}
