//! Clients come, by a cursor or without one; sockets take bytes, or do not; clients die.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use corecast::base::{BroadcastId, EpochMillis, Moment, Partition};
use corecast::control::Unavailable;
use corecast::domain::{Backlog, CloseReason, Membership, Note, Open, Outcome, Presented, Served};
use corecast::lane::Ask;
use corecast::limits::shard as limits;
use corecast::wire::archive::MemberKind;
use corecast::wire::cursor::Cursor;

use crate::client::{Began, Kernel, Parser, Socket, unsent};
use crate::node::Shard;
use crate::random::Random;
use crate::sky::{SHAPE, Task};
use crate::world::{CLIENTS, Connection, NODES, World};

/// A client that waits for what is kept for its user.
pub struct Asking {
    pub node: usize,
    shard: usize,
    task: Task<Result<Backlog, Unavailable>>,
    answer: Option<Backlog>,
    /// What it presents instead of its own: a cursor from ahead of the log.
    pub forged: Option<Cursor>,
    /// It is put off then.
    until: Moment,
    /// The latest that the node's calendar has said meanwhile.
    pub latest: EpochMillis,
    /// What the store said of the user before: that must not come again.
    before: Before,
}

/// What has been noted of a user.
struct Before {
    delivered: BTreeSet<BroadcastId>,
    groups: Vec<(Partition, u64)>,
}

impl World {
    pub fn connect(&mut self, number: usize) {
        let client = &self.clients[number];
        if client.connection.is_some() || client.asking.is_some() {
            return;
        }
        let node = self.random.below(NODES);
        let owner = self.nodes[node].sharding.of_user(client.user.as_str());
        let shard = &mut self.nodes[node].shards[usize::from(owner)];
        if !shard.takes_streams() || shard.stands_until > self.now {
            let is_draining = shard.streams.is_draining();
            self.seen.count("connects to nodes that drain", u64::from(is_draining));
            self.seen.count("connects to nodes that start", u64::from(!is_draining));
            return;
        }
        let chances = if client.is_forgetful { 2 } else { 12 };
        if self.faults.deaths && client.last_id.is_some() && self.random.one_in(chances) {
            self.seen.note("clients that begin anew");
            self.clients[number].last_id = None;
        }
        let shard = usize::from(owner);
        let user = &self.clients[number].user.clone();
        let mut cursor = self.clients[number].last_id.clone();
        let other = self.random.below(CLIENTS);
        let others = self.clients[other].last_id.as_ref();
        let others = others.filter(|_| self.clients[other].user != *user);
        if self.faults.forgeries && others.is_some() && self.random.one_in(12) {
            self.seen.note("cursors of another user");
            cursor = others.cloned();
            self.clients[number].last_id = None;
        }
        let streams = &self.nodes[node].shards[shard].streams;
        let Some(cursor) = cursor.filter(|cursor| streams.knows(cursor, user)) else {
            self.clients[number].last_id = None;
            return self.ask(number, (node, shard), None, None);
        };
        if self.faults.forgeries && cursor.shape == self.shape && self.random.one_in(12) {
            self.seen.note("cursors from ahead of the log");
            let forged = self.forge(cursor);
            let presented = self.nodes[node].shards[shard].streams.beyond_ring(&forged, user);
            assert!(presented.is_some(), "seed {}: {forged:?} is not asked about", self.seed);
            return self.ask(number, (node, shard), presented, Some(forged));
        }
        let Some(presented) = self.nodes[node].shards[shard].streams.beyond_ring(&cursor, user)
        else {
            return self.open(number, (node, shard), Some(cursor), None);
        };
        let is_crowd = self.random.one_in(4);
        let streams = &self.nodes[node].shards[shard].streams;
        if streams.prefers_log(&cursor, is_crowd, self.now) {
            self.seen.note("clients of a crowd that the log served");
            return self.open(number, (node, shard), Some(cursor), None);
        }
        let what = match (cursor.backlog, cursor.hours) {
            _ if presented.is_in_ring => "resumes of clients that are ahead",
            _ if presented.replaced.is_some() => "resumes in a log that is no more",
            (true, 0) => "resumes in the middle of what the ring had lost",
            (true, _) => "flagged resumes",
            (false, _) => "resumes from before the ring",
        };
        self.seen.note(what);
        self.ask(number, (node, shard), Some(presented), None);
    }

    /// A cursor that says, of some partitions, that it has been served what the log never held.
    fn forge(&mut self, mut cursor: Cursor) -> Cursor {
        let far = |random: &mut Random| (1 << 40) + random.next() % 1_000;
        let place = self.random.below(cursor.group.len() + 1);
        match cursor.group.get_mut(place) {
            Some(next) => *next = far(&mut self.random),
            None => cursor.own = far(&mut self.random),
        }
        cursor.hours = [cursor.hours, 0, u32::MAX >> 8][self.random.below(3)];
        cursor
    }

    fn ask(
        &mut self,
        number: usize,
        (node, shard): (usize, usize),
        presented: Option<Presented>,
        forged: Option<Cursor>,
    ) {
        let client = &self.clients[number];
        let (shelves, log) = (self.store.lock(), self.shape.identity);
        let before = Before {
            delivered: shelves.delivered_of(&client.user),
            groups: SHAPE
                .all_partitions()
                .map(|partition| (partition, shelves.cursor_of(&client.user, log, partition)))
                .collect(),
        };
        drop(shelves);
        let task = self.nodes[node].serving.ask(Ask {
            shard: shard as u16,
            key: 0,
            user: client.user.clone(),
            members: members(&client.roles),
            read: self.nodes[node].shards[shard].streams.read_for(&client.user),
            ring: self.nodes[node].shards[shard].streams.ring_for(&client.user),
            presented,
        });
        let until = self.now.plus(limits::ASK_TIME);
        let latest = self.nodes[node].wall();
        let asking = Asking { node, shard, task, answer: None, forged, until, latest, before };
        self.clients[number].asking = Some(asking);
    }

    /// Whoever waits for what is kept for him is served, put off, or waits on.
    pub fn turn_asks(&mut self) {
        self.show_bounds();
        for number in 0..CLIENTS {
            let Some(mut asking) = self.clients[number].asking.take() else { continue };
            let node = &self.nodes[asking.node];
            if node.frozen_until > self.now {
                self.clients[number].asking = Some(asking);
                continue;
            }
            if node.shards[asking.shard].streams.is_draining() {
                continue;
            }
            if asking.answer.is_none() {
                match asking.task.turn() {
                    Some(Ok(backlog)) => asking.answer = Some(backlog),
                    Some(Err(_)) => {
                        self.seen.note("backlogs that could not be had");
                        continue;
                    }
                    None => {}
                }
            }
            let stands = node.shards[asking.shard].stands_until > self.now;
            let is_late = self.faults.stalls && self.random.one_in(3);
            if asking.until <= self.now && !stands {
                self.seen.note("asks that took too long");
                self.replay(number, &asking);
            } else if stands || is_late || asking.answer.is_none() {
                self.clients[number].asking = Some(asking);
            } else if let Some(backlog) = asking.answer.take() {
                let streams = &self.nodes[asking.node].shards[asking.shard].streams;
                if streams.is_of_use(&backlog) {
                    self.take_backlog(number, &asking, backlog);
                } else {
                    self.seen.note("clients put off until the owners come after");
                }
            }
        }
    }

    fn take_backlog(&mut self, number: usize, asking: &Asking, backlog: Backlog) {
        let seed = self.seed;
        let client = &self.clients[number];
        self.seen.count("backlogs", u64::from(!backlog.is_done()));
        self.seen.count("cut backlogs", u64::from(backlog.is_cut));
        let is_from_ahead = asking.forged.is_some();
        assert!(!is_from_ahead || !backlog.is_resumed, "seed {seed}: it is believed");
        if !backlog.is_resumed && !is_from_ahead {
            for message in &backlog.messages {
                let candidate = message.candidate;
                let Some(place) = candidate.position else { continue };
                let is_noted = match candidate.row {
                    Some(row) => asking.before.delivered.contains(&row.broadcast),
                    None => false,
                };
                let stored = asking.before.groups.iter();
                let is_served = stored
                    .filter(|(at, _)| at.topic == corecast::base::Topic::Group)
                    .any(|(at, next)| *at == place.partition && place.offset < *next);
                assert!(
                    !is_noted && !is_served,
                    "seed {seed}: {place:?} goes to {} again, though he had it",
                    client.user
                );
            }
        }
        if !backlog.is_resumed {
            // What it has presented was as good as nothing.
            self.clients[number].last_id = None;
        }
        self.clients[number].is_from_ahead = is_from_ahead;
        self.begin_chain(number, asking, &backlog);
        let cursor = asking.forged.clone().or(self.clients[number].last_id.clone());
        self.open(number, (asking.node, asking.shard), cursor, Some(backlog));
    }

    /// The store does not answer: the log alone serves a client that has a cursor.
    fn replay(&mut self, number: usize, asking: &Asking) {
        let Some(cursor) = asking.forged.clone().or(self.clients[number].last_id.clone()) else {
            return;
        };
        let streams = &self.nodes[asking.node].shards[asking.shard].streams;
        if streams.may_replay(&cursor) {
            assert!(asking.forged.is_none(), "seed {}: it is believed", self.seed);
            self.seen.note("clients that the log served without the store");
            self.open(number, (asking.node, asking.shard), Some(cursor), None);
        }
    }

    fn open(
        &mut self,
        number: usize,
        (node, place): (usize, usize),
        cursor: Option<Cursor>,
        backlog: Option<Backlog>,
    ) {
        let (seed, now, wall) = (self.seed, self.now, self.nodes[node].wall());
        let client = &self.clients[number];
        let room = client.is_slow.then(|| self.random.below(3_000));
        let socket: Socket = Rc::new(RefCell::new(Kernel { room, ..Kernel::default() }));
        let vector = self.nodes[node].shards[place].streams.vector();
        for (partition, end) in &self.nodes[node].ends {
            // A node serves nobody before it has read what the log held at its start.
            let next = vector.next(*partition);
            assert!(next >= *end, "seed {seed}: client {number} came in before the node was");
        }
        let from = match (&backlog, &cursor) {
            (Some(backlog), _) => Some(backlog.checkpoint.clone()),
            (None, cursor) => cursor.as_ref().map(Served::from),
        };
        let from = from.expect("by one of them");
        let is_ahead = !from.is_within(vector.view());
        let came_at = vector.clone();
        self.seen.count("clients ahead of the node", u64::from(is_ahead));
        let has_backlog = backlog.is_some();
        let is_cut = backlog.as_ref().is_some_and(|backlog| {
            backlog.is_cut || backlog.then.as_ref().is_some_and(|then| then.is_cut)
        });
        let is_to_note = backlog.as_ref().is_none_or(Backlog::was_served_before);
        let presented = cursor.as_ref().filter(|_| is_to_note).map(Served::from);
        let shard = &mut self.nodes[node].shards[place];
        let opened = shard.streams.handle_open(
            Open {
                socket: socket.clone(),
                user: &client.user,
                members: &members(&client.roles),
                connection: "c",
                cursor,
                backlog,
                response_head: b"HTTP/1.1 200 OK\r\n\r\n",
            },
            now,
            wall,
        );
        let len = shard.streams.len();
        let Ok(key) = opened else {
            assert_eq!(
                len, self.room,
                "seed {seed}: client {number} is refused, and there is room"
            );
            return self.seen.note("clients that found no room");
        };
        assert!(len <= self.room, "seed {seed}: a shard has more streams than it may have");
        shard.sockets.push((key, socket.clone()));
        let may_continue = is_cut || shard.streams.replays(key);
        let client = &mut self.clients[number];
        client.parser = Parser::default();
        // What is for who is here was for who was here.
        client
            .missing
            .retain(|at| self.truth.at(*at).is_kept || at.offset >= came_at.next(at.partition));
        let shard = place;
        client.connection = Some(Connection {
            node,
            shard,
            key,
            socket,
            has_backlog,
            came_at,
            is_told: false,
            has_retry: false,
            may_continue,
        });
        let user = client.user.clone();
        if let Some(served) = presented {
            self.note(node, vec![Note::Presented { user, served }]);
        }
    }

    /// A client vanishes; what was on its way is lost, though perhaps its machine had it.
    pub fn kill_client(&mut self) {
        // Rather one with something on its way.
        let has_some = |number: &usize| {
            let connection = self.clients[*number].connection.as_ref();
            connection.is_some_and(|connection| unsent(&connection.socket) > 0)
        };
        let busy: Vec<usize> = (0..CLIENTS).filter(has_some).collect();
        let number = match busy.len() {
            0 => self.random.below(CLIENTS),
            many => busy[self.random.below(many)],
        };
        let client = &mut self.clients[number];
        if self.random.one_in(2) {
            client.asking = None;
        }
        let Some(connection) = client.connection.take() else { return };
        self.seen.note("deaths");
        let is_acknowledged = self.random.one_in(2);
        {
            let mut kernel = connection.socket.borrow_mut();
            kernel.is_dead = true;
            kernel.is_acknowledged = is_acknowledged;
        }
        if is_acknowledged {
            self.take_unread(number, &connection);
        }
        // The node may hear of it at once, or only when it writes.
        if self.random.one_in(2) {
            let shard = &mut self.nodes[connection.node].shards[connection.shard];
            shard.streams.handle_close(connection.key, CloseReason::Peer);
        }
        self.clients[number].parser = Parser::default();
    }

    /// Slow clients read a bit, or stop reading.
    pub fn change_rooms(&mut self) {
        for client in 0..CLIENTS {
            let more = self.random.below(4_000);
            let stops = self.random.one_in(3);
            let client = &self.clients[client];
            if let (true, Some(connection)) = (client.is_slow, &client.connection) {
                connection.socket.borrow_mut().room = Some(if stops { 0 } else { more });
            }
        }
    }

    pub fn report_edges(&mut self, node: usize, place: usize) {
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

    pub fn feed(&mut self, node: usize, place: usize) {
        let (now, wall) = (self.now, self.nodes[node].wall());
        let began = Began { at: now, wall };
        let streams = &mut self.nodes[node].shards[place].streams;
        // Those that replay have a share of each turn, and the shard turns again at once.
        while streams.wants_to_write() {
            let Some(write) = streams.poll_write(wall) else { continue };
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
                self.seen.count("partial writes", u64::from(taken < bytes.len()));
                if let Some(room) = kernel.room.as_mut() {
                    *room -= taken;
                }
                kernel.in_flight.push_back((began, bytes[..taken].to_vec()));
                Outcome::Took(taken)
            };
            drop(kernel);
            drop(write);
            streams.handle_written(key, outcome, now);
        }
    }

    /// Clients read what arrived; each block is checked.
    pub fn read_sockets(&mut self) {
        use std::hash::Hasher as _;
        for client in 0..CLIENTS {
            let Some(connection) = self.clients[client].connection.as_ref() else { continue };
            let shard = &self.nodes[connection.node].shards[connection.shard];
            let node_has_it = shard.streams.contains(connection.key);
            let socket = connection.socket.clone();
            // It takes its time, so that the node does not know what has arrived.
            let is_late = self.clients[client].is_slow && self.random.one_in(2);
            if is_late && node_has_it {
                continue;
            }
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
                if let Some(connection) = self.clients[client].connection.take() {
                    self.check_end(client, &connection);
                }
                self.clients[client].parser = Parser::default();
            }
        }
    }
}

/// Sorted, without repeats.
fn members(roles: &[&str]) -> Vec<Membership> {
    let member = |role: &&str| Membership { kind: MemberKind::Role, name: (*role).into() };
    let mut members: Vec<Membership> = roles.iter().map(member).collect();
    members.sort_unstable();
    members
}
