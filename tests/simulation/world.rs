//! The world: a log, nodes that read it at their own pace, clients that come and go.
//!
//! The nodes' streams, rings and cursors are the real ones. Time, sockets and the log are not.

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;
use std::rc::Rc;
use std::time::Duration;

use corecast::base::{
    BroadcastId, EpochMillis, LogIdentity, LogShape, Moment, Partition, Position, Priority, Topic,
    UserId,
};
use corecast::domain::{
    CloseReason, Membership, Open, Outcome, RingLimits, StreamKey, StreamsOptions,
};
use corecast::wire::archive::{Archiver, Audience, Event, MemberKind, SharedEvent};
use corecast::wire::cursor::Cursor;
use corecast::wire::frame::{self, Message};

use crate::client::{self, Kernel, Parser, Socket};
use crate::node::{Log, Node, Shard, end_of};

const SHAPE: LogShape =
    LogShape { identity: LogIdentity([7, 7, 7]), selected_partitions: 3, group_partitions: 2 };
const ROLES: [&str; 4] = ["admin", "editor", "reader", "guest"];
const USERS: usize = 12;
const CLIENTS: usize = 16;
const NODES: usize = 2;
const SHARDS_MAX: u16 = 4;
const WALL_START: u64 = 1_795_514_400_000;
const WRITE_PROGRESS: Duration = Duration::from_secs(30);

/// What is done to the world.
#[derive(Clone, Copy)]
pub struct Faults {
    pub slow_sockets: bool,
    pub deaths: bool,
    pub node_crashes: bool,
    pub stalls: bool,
    pub expiry: bool,
}

impl Faults {
    pub const ALL: Self =
        Self { slow_sockets: true, deaths: true, node_crashes: true, stalls: true, expiry: true };
    pub const NONE: Self = Self {
        slow_sockets: false,
        deaths: false,
        node_crashes: false,
        stalls: false,
        expiry: false,
    };
}

/// What happened, so that a simulation in which nothing did is found out.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    pub deliveries: u64,
    pub resumes: u64,
    pub gaps: u64,
    pub partial_writes: u64,
    pub heartbeats: u64,
    pub slow_closes: u64,
    pub deaths: u64,
    pub ahead: u64,
    pub expired: u64,
    pub passed: u64,
    pub full_lanes: u64,
    pub stalls: u64,
    pub put_off: u64,
    pub newcomers: u64,
    pub repeats: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.deliveries += other.deliveries;
        self.resumes += other.resumes;
        self.gaps += other.gaps;
        self.partial_writes += other.partial_writes;
        self.heartbeats += other.heartbeats;
        self.slow_closes += other.slow_closes;
        self.deaths += other.deaths;
        self.ahead += other.ahead;
        self.expired += other.expired;
        self.passed += other.passed;
        self.full_lanes += other.full_lanes;
        self.stalls += other.stalls;
        self.put_off += other.put_off;
        self.newcomers += other.newcomers;
        self.repeats += other.repeats;
    }
}

/// SplitMix64: a stream of numbers that follows from the seed.
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

struct Client {
    user: UserId,
    roles: Vec<&'static str>,
    connection: Option<Connection>,
    parser: Parser,
    last_id: Option<Cursor>,
    /// Everything before it was before this client's time.
    first_id: Option<Cursor>,
    got: BTreeSet<Position>,
    /// Events for this client that it has not got, with their expiry. What a GAP excuses, what has
    /// expired and what lies before the client's time is taken out.
    missing: BTreeMap<Position, Option<EpochMillis>>,
    is_slow: bool,
}

struct Connection {
    node: usize,
    shard: usize,
    key: StreamKey,
    socket: Socket,
    /// It presented a cursor from before what its node serves.
    is_too_old: bool,
}

pub struct World {
    seed: u64,
    random: Random,
    faults: Faults,
    now: Moment,
    log: Log,
    /// Records that repeat an earlier one.
    repeats: BTreeSet<Position>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    ring: RingLimits,
    seen: Seen,
    trace: DefaultHasher,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut random = Random(seed);
        let ring = RingLimits {
            frames: [8, 32, 4_096][random.below(3)],
            bytes: [20_000, 1 << 20][random.below(2)],
        };
        let log = SHAPE.all_partitions().map(|partition| (partition, Vec::new())).collect();
        let mut world = Self {
            seed,
            random,
            faults,
            now: Moment(1_000_000),
            log,
            repeats: BTreeSet::new(),
            nodes: Vec::new(),
            clients: Vec::new(),
            ring,
            seen: Seen::default(),
            trace: DefaultHasher::new(),
        };
        for _ in 0..NODES {
            let drawn = world.random.below(usize::from(SHARDS_MAX)) as u16;
            let node = world.start_node(drawn);
            world.nodes.push(node);
        }
        for number in 0..CLIENTS {
            let roles = ROLES.into_iter().filter(|_| world.random.one_in(2)).collect::<Vec<_>>();
            let user = UserId::new(&format!("user-{}", number % USERS)).expect("a user id");
            let is_slow = world.random.one_in(3) && faults.slow_sockets;
            world.clients.push(Client {
                user,
                roles,
                connection: None,
                parser: Parser::default(),
                last_id: None,
                first_id: None,
                got: BTreeSet::new(),
                missing: BTreeMap::new(),
                is_slow,
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

    /// No more faults: everybody comes back, and has everything.
    pub fn run_liveness(&mut self) {
        self.faults = Faults::NONE;
        self.now = self.now.plus(Duration::from_secs(20));
        self.settle();
        for client in 0..CLIENTS {
            self.clients[client].is_slow = false;
            if let Some(connection) = &self.clients[client].connection {
                connection.socket.borrow_mut().room = None;
            } else {
                self.connect(client);
            }
        }
        // A client that its node has ended comes back in the second round.
        for _ in 0..3 {
            self.turn_shards();
            self.read_sockets();
            for client in 0..CLIENTS {
                if self.clients[client].connection.is_none() {
                    self.connect(client);
                }
            }
        }
        for client in 0..CLIENTS {
            self.check_complete(client);
        }
    }

    pub fn seen(&self) -> Seen {
        let mut seen = self.seen;
        for node in &self.nodes {
            self.count(node, &mut seen);
        }
        seen
    }

    /// A hash of all that clients read, in order.
    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }

    fn wall(&self) -> EpochMillis {
        EpochMillis(WALL_START + self.now.0)
    }

    /// All that the log holds comes to every shard that has a part in it.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            if self.nodes.iter().all(|node| node.is_at_rest(&self.log)) {
                break;
            }
            for node in 0..NODES {
                self.read_log(node, usize::MAX);
            }
            self.turn_shards();
        }
        let seed = self.seed;
        for node in &self.nodes {
            assert!(node.is_at_rest(&self.log), "seed {seed}: a node does not come to rest");
            for (number, shard) in node.shards.iter().enumerate() {
                assert!(shard.is_serving, "seed {seed}: shard {number} does not serve");
                for (partition, events) in &self.log {
                    let (next, end) = (shard.streams.vector().next(*partition), end_of(events));
                    assert_eq!(next, end, "seed {seed}: {partition:?} on shard {number}");
                }
            }
        }
    }

    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.random.next() % 400));
        match self.random.below(12) {
            0..=3 => self.append(),
            4..=5 => {
                let (node, many) = (self.random.below(NODES), 1 + self.random.below(6));
                self.read_log(node, many);
            }
            6..=7 => {
                let client = self.random.below(CLIENTS);
                if self.clients[client].connection.is_none() {
                    self.connect(client);
                }
            }
            8 if self.faults.deaths => self.kill_client(),
            9 => self.change_rooms(),
            10 if self.faults.node_crashes && self.random.one_in(12) => self.crash_node(),
            // Long quiet: heartbeats, and stuck sockets that run into their deadline.
            11 if self.random.one_in(4) => {
                self.now = self.now.plus(Duration::from_secs(self.random.next() % 40));
            }
            _ => {}
        }
        self.turn_shards();
        self.read_sockets();
        self.check_no_delay();
    }

    fn append(&mut self) {
        let partitions: Vec<Partition> = SHAPE.all_partitions().collect();
        let user = format!("user-{}", self.random.below(USERS));
        let (partition, audience) = match self.random.below(4) {
            0 => {
                let index = SHAPE.partition_of_user(&user);
                (Partition { topic: Topic::Selected, index }, Audience::User(&user))
            }
            kind => {
                let groups: Vec<_> =
                    partitions.iter().filter(|partition| partition.topic == Topic::Group).collect();
                let partition = *groups[self.random.below(groups.len())];
                let names = vec![ROLES[self.random.below(4)], ROLES[self.random.below(4)]];
                let members = Audience::Members { kind: MemberKind::Role, names };
                (partition, if kind == 1 { Audience::Everyone } else { members })
            }
        };
        let offset = self.log[&partition].last().map_or(0, |event| event.position().offset + 1)
            // Kafka's offsets have holes.
            + u64::from(self.random.one_in(10));
        let position = Position { partition, offset };
        let expires_at = (self.faults.expiry && self.random.one_in(5))
            .then(|| EpochMillis(self.wall().0 + self.random.next() % 3_000));
        let content = format!("{}-{}-{offset}", partition.topic as u8, partition.index);
        let padding = "x".repeat(self.random.below(2_000));
        let earlier = &self.log[&partition];
        let repeated = (self.random.one_in(15) && !earlier.is_empty())
            .then(|| earlier[self.random.below(earlier.len())].event_id());
        if repeated.is_some() {
            self.repeats.insert(position);
        }
        let mut body = Vec::new();
        frame::write_message(&mut body, &message(&content, &padding));
        let event = Archiver::default().write(Event {
            position,
            appended_at: self.wall(),
            event_id: repeated.unwrap_or_else(|| u128::from(self.random.next())),
            attempt: 0,
            broadcast: BroadcastId::new(1).expect("small"),
            expires_at,
            audience,
            body: &body,
        });
        for client in &mut self.clients {
            if repeated.is_none() && is_for(&event, client.user.as_str(), &client.roles) {
                client.missing.insert(position, expires_at);
            }
        }
        self.log.get_mut(&partition).expect("a partition").push(event);
    }

    fn read_log(&mut self, node: usize, many: usize) {
        let node = &mut self.nodes[node];
        // What the log held at the start comes in large pieces.
        let many = if node.is_catching_up() { many.max(40) } else { many };
        node.read_log(&self.log, many, &mut self.random);
    }

    /// With another number of shards than before.
    fn start_node(&mut self, before: u16) -> Node {
        let shards = 1 + (before + self.random.below(3) as u16) % SHARDS_MAX;
        let options = StreamsOptions {
            shape: SHAPE,
            ring: self.ring,
            streams_max: CLIENTS,
            heartbeat: Duration::from_secs(5),
            write_progress: WRITE_PROGRESS,
            seed: self.random.next(),
        };
        Node::start(shards, options, &self.log, &mut self.random, self.now)
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
                self.seen.stalls += 1;
                let time = Duration::from_millis(self.random.next() % 20_000);
                shard.stands_until = self.now.plus(time);
                continue;
            }
            self.turn(node, place);
        }
    }

    /// In the order of a real turn.
    fn turn(&mut self, node: usize, place: usize) {
        let (now, wall) = (self.now, self.wall());
        self.nodes[node].shards[place].has_turned = true;
        self.nodes[node].shards[place].streams.handle_timers(now, wall);
        self.nodes[node].take(place, &mut self.random, &mut self.seen);
        self.report_edges(node, place);
        self.nodes[node].pass_on(place, &mut self.seen);
        self.feed(node, place);
    }

    fn crash_node(&mut self) {
        let node = self.random.below(NODES);
        let mut seen = self.seen;
        self.count(&self.nodes[node], &mut seen);
        self.seen = seen;
        for client in &mut self.clients {
            if client.connection.as_ref().is_some_and(|connection| connection.node == node) {
                client.connection = None;
                client.parser = Parser::default();
            }
        }
        let before = self.nodes[node].sharding.count();
        self.nodes[node] = self.start_node(before);
    }

    fn count(&self, node: &Node, seen: &mut Seen) {
        for counters in node.shards.iter().map(|shard| shard.streams.counters()) {
            seen.deliveries += counters.deliveries;
            seen.resumes += counters.resumed;
            seen.gaps += counters.gaps;
            seen.heartbeats += counters.heartbeats;
            seen.expired += counters.expired_skips;
            seen.slow_closes += counters.closed[CloseReason::Slow as usize];
        }
    }

    fn connect(&mut self, client: usize) {
        let node = self.random.below(NODES);
        let owner = self.nodes[node].sharding.of_user(self.clients[client].user.as_str());
        let shard = &mut self.nodes[node].shards[usize::from(owner)];
        if !shard.is_serving || shard.stands_until > self.now {
            self.seen.put_off += 1;
            return;
        }
        if self.faults.deaths && self.random.one_in(12) {
            self.forget_all(client);
        }
        let room = self.clients[client].is_slow.then(|| self.random.below(3_000));
        let socket: Socket = Rc::new(RefCell::new(Kernel { room, ..Kernel::default() }));
        let (now, wall) = (self.now, self.wall());
        let client = &mut self.clients[client];
        let mut members: Vec<Membership> = client
            .roles
            .iter()
            .map(|role| Membership { kind: MemberKind::Role, name: (*role).into() })
            .collect();
        members.sort_unstable();
        let cursor = client.last_id.clone();
        let shard = &mut self.nodes[node].shards[usize::from(owner)];
        let mut is_too_old = false;
        if let Some(cursor) = &cursor {
            let read = shard.streams.vector().view().group();
            let is_ahead = cursor.group.iter().zip(read).any(|(own, read)| own > read);
            self.seen.ahead += u64::from(is_ahead);
            is_too_old = !client::has_reached(cursor, &self.nodes[node].starts);
        }
        let shard = &mut self.nodes[node].shards[usize::from(owner)];
        let opened = shard.streams.handle_open(
            Open {
                socket: socket.clone(),
                user: &client.user,
                members: &members,
                connection: "c",
                cursor,
                backlog: None,
                response_head: b"HTTP/1.1 200 OK\r\n\r\n",
            },
            now,
            wall,
        );
        let key = opened.expect("there is room for all clients");
        shard.sockets.push((key, socket.clone()));
        client.parser = Parser::default();
        let shard = usize::from(owner);
        client.connection = Some(Connection { node, shard, key, socket, is_too_old });
    }

    /// The client is installed anew: what it had is nobody's any more.
    fn forget_all(&mut self, client: usize) {
        let client = &mut self.clients[client];
        self.seen.newcomers += u64::from(client.first_id.is_some());
        client.last_id = None;
        client.first_id = None;
        client.got.clear();
        client.missing.clear();
        for event in self.log.values().flatten() {
            let is_his = is_for(event, client.user.as_str(), &client.roles);
            if is_his && !self.repeats.contains(&event.position()) {
                client.missing.insert(event.position(), event.expires_at());
            }
        }
    }

    /// A client vanishes; what was on its way is lost.
    fn kill_client(&mut self) {
        let client = self.random.below(CLIENTS);
        let Some(connection) = self.clients[client].connection.take() else { return };
        self.seen.deaths += 1;
        connection.socket.borrow_mut().is_dead = true;
        // The node may hear of it at once, or only when it writes.
        if self.random.one_in(2) {
            let shard = &mut self.nodes[connection.node].shards[connection.shard];
            shard.streams.handle_close(connection.key, CloseReason::Peer);
        }
        self.clients[client].parser = Parser::default();
    }

    /// Slow clients read a bit, or stop reading.
    fn change_rooms(&mut self) {
        for client in 0..CLIENTS {
            let more = self.random.below(4_000);
            let stops = self.random.one_in(3);
            let client = &self.clients[client];
            if let (true, Some(connection)) = (client.is_slow, &client.connection) {
                connection.socket.borrow_mut().room = Some(if stops { 0 } else { more });
            }
        }
    }

    fn report_edges(&mut self, node: usize, place: usize) {
        let Shard { streams, sockets, .. } = &mut self.nodes[node].shards[place];
        sockets.retain(|(key, _)| streams.contains(*key));
        for (key, socket) in sockets {
            let mut kernel = socket.borrow_mut();
            if kernel.wants_edge && kernel.room != Some(0) {
                kernel.wants_edge = false;
                streams.handle_writable(*key);
            }
        }
    }

    fn feed(&mut self, node: usize, place: usize) {
        let (now, wall) = (self.now, self.wall());
        let streams = &mut self.nodes[node].shards[place].streams;
        loop {
            let Some(write) = streams.poll_write(now, wall) else { break };
            let key = write.key;
            let socket = write.socket.clone();
            let mut kernel = socket.borrow_mut();
            let bytes: Vec<u8> =
                write.pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            assert!(!bytes.is_empty(), "seed {}: a write of nothing", self.seed);
            let taken = kernel.room.map_or(bytes.len(), |room| room.min(bytes.len()));
            let outcome = if kernel.is_dead {
                Outcome::Dead
            } else if taken == 0 {
                kernel.wants_edge = true;
                Outcome::Full
            } else {
                kernel.wants_edge = taken < bytes.len();
                self.seen.partial_writes += u64::from(taken < bytes.len());
                if let Some(room) = kernel.room.as_mut() {
                    *room -= taken;
                }
                kernel.in_flight.push_back((wall.0, bytes[..taken].to_vec()));
                Outcome::Took(taken)
            };
            drop(kernel);
            drop(write);
            streams.handle_written(key, outcome, now);
        }
    }

    /// Clients read what arrived; each block is checked.
    fn read_sockets(&mut self) {
        for client in 0..CLIENTS {
            let Some(connection) = self.clients[client].connection.as_ref() else { continue };
            let shard = &self.nodes[connection.node].shards[connection.shard];
            let node_has_it = shard.streams.contains(connection.key);
            let socket = connection.socket.clone();
            loop {
                let Some((at, bytes)) = socket.borrow_mut().in_flight.pop_front() else { break };
                self.trace.write(&bytes);
                let mut parser = std::mem::take(&mut self.clients[client].parser);
                let mut blocks = Vec::new();
                parser.feed(at, &bytes, |block| blocks.push(block));
                self.clients[client].parser = parser;
                for block in blocks {
                    self.take_block(client, block);
                }
            }
            if !node_has_it {
                self.clients[client].connection = None;
                self.clients[client].parser = Parser::default();
            }
        }
    }

    fn take_block(&mut self, number: usize, block: client::Block) {
        let seed = self.seed;
        let client = &mut self.clients[number];
        if let (Some(before), Some(id)) = (&client.last_id, &block.id) {
            assert!(client::never_falls(before, id), "seed {seed}: an id of client {number} fell");
        }
        match block.event.as_deref() {
            None => assert!(block.data.is_empty(), "seed {seed}: data without event"),
            Some("CONNECTED") => {
                let id = block.id.clone().expect("CONNECTED has an id");
                if let Some(last) = &client.last_id {
                    assert_eq!(last, &id, "seed {seed}: CONNECTED carries the presented cursor");
                } else if let Some(connection) = &client.connection {
                    // A node serves nobody before it has read what the log held at its start.
                    let ends = &self.nodes[connection.node].ends;
                    let has_all = client::has_reached(&id, ends);
                    assert!(has_all, "seed {seed}: client {number} came in before the node was");
                }
                client.first_id.get_or_insert(id);
            }
            Some("MESSAGE") => {
                let position = client::position_of(&block.data);
                let id = block.id.clone().expect("MESSAGE has an id");
                assert!(client::is_covered(&id, position), "seed {seed}: the id misses its event");
                let last = client.last_id.as_ref().expect("CONNECTED came first");
                assert!(
                    !client::is_covered(last, position),
                    "seed {seed}: client {number} got {position:?} behind a cursor that covers it"
                );
                assert!(client.got.insert(position), "seed {seed}: {position:?} twice");
                assert!(!self.repeats.contains(&position), "seed {seed}: {position:?} is a repeat");
                let event = find(&self.log, position);
                assert!(
                    is_for(&event, client.user.as_str(), &client.roles),
                    "seed {seed}: {position:?} is not for client {number}"
                );
                let in_time = event.expires_at().is_none_or(|at| block.begun_at < at.0);
                assert!(in_time, "seed {seed}: {position:?} was begun after its expiry");
                client.missing.remove(&position);
            }
            Some("GAP") => {
                let id = block.id.clone().expect("GAP has an id");
                let connection = client.connection.as_ref().expect("a stream that is read");
                let ring = self.nodes[connection.node].shards[connection.shard].streams.ring();
                let is_needed = connection.is_too_old || ring.first() > 0;
                assert!(is_needed, "seed {seed}: a gap for client {number}, of which all is there");
                client.missing.retain(|position, _| !client::is_covered(&id, *position));
            }
            Some(other) => panic!("seed {seed}: unexpected event {other}"),
        }
        let Some(id) = block.id else { return };
        // Nothing of the audience lies between the last cursor and this one, but the event itself.
        if let Some(last) = &client.last_id {
            for (skipped, expires_at) in &client.missing {
                let is_new =
                    client::is_covered(&id, *skipped) && !client::is_covered(last, *skipped);
                let has_expired = expires_at.is_some_and(|at| at.0 <= WALL_START + self.now.0);
                assert!(
                    !is_new || has_expired,
                    "seed {seed}: client {number} was led past {skipped:?}"
                );
            }
        }
        client.last_id = Some(id);
    }

    /// A reader that takes everything has everything that its shard has taken, whoever else is
    /// stuck.
    fn check_no_delay(&mut self) {
        for number in 0..CLIENTS {
            let client = &self.clients[number];
            let Some(connection) = client.connection.as_ref() else { continue };
            let shard = &self.nodes[connection.node].shards[connection.shard];
            if client.is_slow || !shard.has_turned || client.first_id.is_none() {
                continue;
            }
            let (node, place) = (connection.node, connection.shard);
            self.forget_what_is_excused(number);
            let vector = self.nodes[node].shards[place].streams.vector();
            let mut missing = self.clients[number].missing.keys();
            let late = missing.find(|missed| missed.offset < vector.next(missed.partition));
            assert_eq!(late, None, "seed {}: client {number} waits", self.seed);
        }
    }

    fn check_complete(&mut self, number: usize) {
        let seed = self.seed;
        assert!(self.clients[number].first_id.is_some(), "seed {seed}: {number} never came in");
        self.forget_what_is_excused(number);
        let missing = self.clients[number].missing.keys().next();
        assert_eq!(missing, None, "seed {seed}: client {number} misses it");
    }

    /// What has expired, and what was before the client's time, need not come any more.
    fn forget_what_is_excused(&mut self, number: usize) {
        let wall = self.wall();
        let client = &mut self.clients[number];
        let first = client.first_id.as_ref().expect("connected");
        client.missing.retain(|position, expires_at| {
            !client::is_covered(first, *position) && expires_at.is_none_or(|at| at > wall)
        });
    }
}

/// The oracle's own idea of an audience, from what was appended.
fn is_for(event: &SharedEvent, user: &str, roles: &[&str]) -> bool {
    use corecast::wire::archive::AudienceRef;
    match event.audience() {
        AudienceRef::Everyone => true,
        AudienceRef::User(name) => name == user,
        AudienceRef::Members { names, .. } => names.iter().any(|name| roles.contains(&name)),
    }
}

fn find(log: &Log, position: Position) -> SharedEvent {
    let found = log[&position.partition].iter().find(|event| event.position() == position);
    found.expect("an event of the log").clone()
}

fn message<'a>(content: &'a str, padding: &'a str) -> Message<'a> {
    Message {
        broadcast_id: BroadcastId::new(1).expect("small"),
        user_id: None,
        correlation_id: Some(padding),
        delivery_status: "PENDING",
        read_status: "UNREAD",
        delivered_at: None,
        read_at: None,
        created_at: None,
        sender_name: None,
        content,
        priority: Priority::Normal,
        category: None,
        broadcast_created_at: None,
        scheduled_at: None,
        expires_at: None,
    }
}
