//! What must hold at every step, from what was accepted alone:
//!
//! - P1: below a checkpoint everything is in the store; what the store takes for delivered has
//!   reached its user, and so has what lies below a stored cursor;
//! - P2: along the cursors that a client presents nothing comes twice, out of order or not at all;
//! - P3: nobody gets what is for another.

use std::collections::{BTreeMap, BTreeSet};

use corecast::base::{EpochMillis, Moment, Position, Topic};
use corecast::domain::{Backlog, SINCE_EVER, Served};
use corecast::limits::keeping::CLOCKS_DIFFER;
use corecast::limits::log::REPEAT_RECORDS;
use corecast::ports::{Delivery, Hole};
use corecast::wire::cursor::Cursor;

use crate::client::{self, Block};
use crate::sky::{REPLACED, REPLACED_START};
use crate::sockets::Asking;
use crate::store::Landed;
use crate::world::{CLIENTS, Connection, World};

/// What has become of a user's messages, whichever of his clients it was.
pub struct Person {
    pub roles: Vec<&'static str>,
    /// His machines have it, each with the client that got it first, and when.
    arrived: BTreeMap<Position, (usize, Moment)>,
    /// It had passed its end, by the clock of a node that served him.
    ended: BTreeSet<Position>,
}

impl Person {
    pub fn new(roles: Vec<&'static str>) -> Self {
        Self { roles, arrived: BTreeMap::new(), ended: BTreeSet::new() }
    }

    fn knows(&self, position: Position) -> bool {
        self.arrived.contains_key(&position) || self.ended.contains(&position)
    }
}

/// From when on a client is served whose cursor is from ahead of the log: from an hour before that
/// of the cursor, since clocks differ.
fn begun_by_time(forged: &Cursor, latest: EpochMillis) -> EpochMillis {
    forged.at().min(latest).minus(CLOCKS_DIFFER)
}

impl World {
    /// What a client has to get from here on: it opens a stream behind this backlog.
    pub fn begin_chain(&mut self, number: usize, asking: &Asking, backlog: &Backlog) {
        let (wall, latest) = (self.wall(), asking.latest);
        let since = asking.forged.as_ref().map(|forged| begun_by_time(forged, latest));
        let client = &mut self.clients[number];
        let Person { arrived, ended, .. } = self.people.get_mut(&client.user).expect("a person");
        let shelves = self.store.lock();
        if !backlog.is_resumed {
            client.got.clear();
            // What comes by time comes whoever had it.
            client.began_at = if since.is_some() { Moment(0) } else { self.now };
            client.owed.clear();
            client.missing.clear();
            let his = self.truth.all();
            let his = his.filter(|(_, sent)| sent.names.admit(&client.user, &client.roles));
            // Without a cursor nobody is told of what was lost.
            let his = his.map(|(position, _)| position);
            client.missing.extend(his.filter(|position| !self.truth.is_lost(*position)));
        }
        let is_old =
            |position: &Position| self.shape == REPLACED && position.offset < REPLACED_START;
        let checkpoint = match (&backlog.replaced, &backlog.then) {
            (None, _) => Some(&backlog.checkpoint),
            (Some(_), then) => then.as_ref().map(|then| &then.checkpoint),
        };
        // What lies behind the checkpoint comes from the log, whoever had it.
        client.missing.retain(|position| {
            let sent = self.truth.at(*position);
            if sent.is_past(latest) {
                ended.insert(*position);
            }
            if sent.has_ended(wall.max(latest)) {
                return false;
            }
            let is_behind =
                |checkpoint: &Served| !is_old(position) && !checkpoint.covers(*position);
            if checkpoint.is_none_or(is_behind) && !is_old(position) {
                return true;
            }
            let is_group = sent.names.user().is_none();
            if is_old(position) && is_group && !backlog.is_resumed {
                // Who comes without a cursor is not looked for in a log that is no more.
                return false;
            }
            let row = sent.names.user().and_then(|user| shelves.row(user, sent.broadcast));
            let delivered_at = row.and_then(|row| row.delivered_at);
            let is_early = |at: EpochMillis| since.is_some_and(|since| at < since);
            let is_delivered = delivered_at.is_some_and(|at| match backlog.is_resumed {
                // No progress tells of it.
                true if is_old(position) && backlog.replaced.is_none() => true,
                // To another device, before this one began.
                true => {
                    let arrived_at = arrived.get(position).map(|(_, at)| *at);
                    let is_before = arrived_at.is_none_or(|at| at < client.began_at);
                    backlog.since != SINCE_EVER && is_before
                }
                false => !client.is_from_ahead || is_old(position) || is_early(at),
            });
            let is_early = is_early(sent.appended_at) && delivered_at.is_none_or(is_early);
            let stored = shelves.cursor_of(&client.user, self.shape.identity, position.partition);
            let is_group = position.partition.topic == Topic::Group;
            let counts = !backlog.is_resumed && !client.is_from_ahead;
            let is_served = is_group && counts && position.offset < stored;
            let may_be_had = sent.is_kept && !sent.is_unkept && !is_early;
            may_be_had && !is_delivered && !is_served
        });
    }

    pub fn take_block(&mut self, number: usize, block: Block) {
        let seed = self.seed;
        let client = &mut self.clients[number];
        let is_told = client.connection.as_ref().is_some_and(|connection| connection.is_told);
        assert!(!is_told, "seed {seed}: client {number} was told to go, and got {block:?}");
        if let Some(connection) = client.connection.as_mut() {
            let is_shutdown = block.event.as_deref() == Some("SERVER_SHUTDOWN");
            connection.has_retry = block.has_retry || connection.has_retry && is_shutdown;
        }
        if let (Some(before), Some(id)) = (&client.last_id, &block.id) {
            let rises = client::never_falls(before, id);
            assert!(rises, "seed {seed}: an id of client {number} fell: {before:?}, {id:?}");
            let has_backlog = client.connection.as_ref().is_some_and(|open| open.has_backlog);
            let is_led_back = id.backlog && !before.backlog && !has_backlog;
            assert!(!is_led_back, "seed {seed}: client {number} is led back into a backlog");
        }
        match block.event.as_deref() {
            None => assert!(block.data.is_empty(), "seed {seed}: data without event"),
            Some("CONNECTED") => {
                let id = block.id.as_ref().expect("CONNECTED has an id");
                if let Some(last) = &client.last_id {
                    assert_eq!(last, id, "seed {seed}: CONNECTED carries the presented cursor");
                }
            }
            Some("MESSAGE") => self.take_message(number, &block),
            Some("MESSAGE_REMOVED") => {
                let broadcast = client::about(&block.data);
                self.take_removal(number, broadcast, &block);
            }
            Some("GAP") => {
                let id = block.id.as_ref().expect("GAP has an id");
                let last = client.last_id.as_ref().expect("CONNECTED came first");
                let is_needed = if block.data.contains("RETENTION") {
                    self.seen.note("gaps where the log had lost something");
                    let shelves = self.store.lock();
                    let is_met = |hole: &&Hole| client::is_before(last, hole);
                    let met: Vec<&Hole> = shelves.holes().filter(is_met).collect();
                    client.missing.retain(|missing| {
                        let is_told = |hole: &&Hole| {
                            hole.partition == missing.partition && missing.offset < hole.to
                        };
                        !(self.truth.is_lost(*missing) && met.iter().any(is_told))
                    });
                    !met.is_empty()
                } else {
                    self.seen.note("gaps");
                    // Of what went with the other log nobody tells.
                    client.owed.clear();
                    let is_from_elsewhere = last.shape != id.shape || client.is_from_ahead;
                    is_from_elsewhere && block.data.contains("LOG_REPLACED")
                };
                assert!(is_needed, "seed {seed}: a gap for client {number}: {}", block.data);
            }
            Some("SERVER_SHUTDOWN") => {
                assert_eq!(block.id, None, "seed {seed}: it covers nothing");
                self.seen.note("streams that were told to go");
                if let Some(connection) = client.connection.as_mut() {
                    connection.is_told = true;
                }
            }
            Some(other) => panic!("seed {seed}: unexpected event {other}"),
        }
        if let Some(id) = block.id {
            self.take_id(number, id);
        }
    }

    fn take_message(&mut self, number: usize, block: &Block) {
        let seed = self.seed;
        let client = &mut self.clients[number];
        let said = client::said(&block.data);
        let (user, broadcast) = (&client.user, said.broadcast);
        let is_his = said.user.as_ref().is_none_or(|said| said == user);
        assert!(is_his, "seed {seed}: client {number} got what is for {:?}", said.user);
        let position = self.truth.place(broadcast, said.user.as_ref());
        let position = position.expect("it was sent");
        let sent = self.truth.at(position);
        let is_for = sent.names.admit(user, &client.roles);
        assert!(is_for, "seed {seed}: {position:?} is not for client {number}");
        assert_eq!(sent.content, said.content, "seed {seed}: {position:?} says something else");
        // By the calendar of the node that served it.
        let in_time = sent.expires_at.is_none_or(|at| block.begun.wall < at);
        assert!(in_time, "seed {seed}: {position:?} was begun after its expiry");
        let answered_at = self.truth.answered_at(broadcast);
        let in_time = answered_at.is_none_or(|at| block.begun.at <= at);
        assert!(in_time, "seed {seed}: {position:?} was begun after its cancel was answered");
        let came_at = client.connection.as_ref().map(|connection| &connection.came_at);
        let is_here = came_at.is_some_and(|at| at.next(position.partition) <= position.offset);
        assert!(sent.is_kept || is_here, "seed {seed}: {position:?} came before client {number}");
        let id = block.id.as_ref().expect("MESSAGE has an id");
        let last = client.last_id.as_ref().expect("CONNECTED came first");
        let is_new = client.got.insert(position);
        if client::is_of_log(id, position) {
            assert!(client::is_covered(id, position), "seed {seed}: the id misses its event");
            // What was lost at its place may stand in the log once more. And where a log has been
            // trimmed between a record and its repeat, who read only the rest serves the repeat.
            let whose = said.user.clone();
            let latest = self.truth.latest(&(broadcast, whose)).expect("it stands there");
            let start = self.log.start(position.partition);
            let is_cut_off = position.offset < start
                && (start..start + REPEAT_RECORDS).contains(&latest.offset)
                && client::is_covered(id, latest)
                && !client::is_covered(last, latest);
            // Whose owner took it for ended, and so kept no row of it, may be published again.
            let may_repeat = is_cut_off || self.truth.is_lost(position) || sent.is_unkept;
            assert!(
                !client::is_covered(last, position) || may_repeat,
                "seed {seed}: client {number} got {position:?} behind a cursor that covers it"
            );
            assert!(is_new || may_repeat, "seed {seed}: {position:?} twice to client {number}");
            if !is_new && is_cut_off {
                self.seen.note("repeats of what was trimmed off");
            }
        } else {
            // No cursor of this log tells of it.
            assert!(id.backlog && sent.names.user().is_some(), "seed {seed}: {position:?}");
        }
        if self.shape == REPLACED && position.offset < REPLACED_START {
            self.seen.note("messages of a log that is no more");
        }
        client.missing.remove(&position);
        let person = self.people.get_mut(user).expect("a person");
        match person.arrived.get(&position) {
            None => drop(person.arrived.insert(position, (number, self.now))),
            Some((first, _)) if *first == number => self.seen.note("repeats to who began anew"),
            Some(_) => self.seen.note("messages to a second device"),
        }
        if id.backlog {
            assert!(sent.is_kept, "seed {seed}: {position:?} was for who was here");
            self.seen.note("messages of backlogs");
        }
    }

    fn take_id(&mut self, number: usize, id: Cursor) {
        let (seed, wall) = (self.seed, self.wall_of(number));
        let client = &self.clients[number];
        // Nothing of the audience lies between the last cursor and this one, but the event itself.
        let before = client.last_id.as_ref();
        for skipped in &client.missing {
            let is_told = client::is_of_log(&id, *skipped) || !id.backlog;
            let is_new = is_told
                && client::is_covered(&id, *skipped)
                && before.is_none_or(|last| !client::is_covered(last, *skipped));
            assert!(
                !is_new || self.truth.at(*skipped).has_ended(wall),
                "seed {seed}: client {number} was led past {skipped:?}"
            );
        }
        self.clients[number].last_id = Some(id);
    }

    /// The client's machine has all that is on its way, and the client will never read it.
    pub fn take_unread(&mut self, number: usize, connection: &Connection) {
        let client = &self.clients[number];
        let mut parser = client.parser.clone();
        let mut blocks = Vec::new();
        for (at, bytes) in &connection.socket.borrow().in_flight {
            parser.feed(*at, bytes, |block| blocks.push(block));
        }
        let person = self.people.get_mut(&client.user).expect("a person");
        for block in blocks {
            if block.event.as_deref() == Some("MESSAGE") {
                let said = client::said(&block.data);
                let position = self.truth.place(said.broadcast, said.user.as_ref());
                let position = position.expect("it was sent");
                person.arrived.entry(position).or_insert((number, self.now));
                self.seen.note("messages that arrived and were not read");
            }
        }
    }

    /// The node has ended a stream of a reader that takes everything: he was told when to come
    /// back, and it was not because of an outage.
    pub fn check_end(&mut self, number: usize, connection: &Connection) {
        let seed = self.seed;
        if self.clients[number].is_slow {
            return;
        }
        assert!(connection.has_retry, "seed {seed}: client {number} was sent away without a word");
        self.seen.note("streams that ended with a word");
        let node = &self.nodes[connection.node];
        // It drains, has had its age, or what comes next is not in the ring.
        let goes = connection.is_told && node.ends_streams();
        let is_due = goes || connection.may_continue || node.has_fallen_behind;
        if self.is_in_outage() && !is_due {
            panic!("seed {seed}: client {number} lost its stream for an outage");
        }
    }

    /// A reader that takes everything has everything that its shard has taken, whoever else is
    /// stuck.
    pub fn check_no_delay(&mut self) {
        for number in 0..CLIENTS {
            let client = &self.clients[number];
            let Some(connection) = client.connection.as_ref() else { continue };
            let shard = &self.nodes[connection.node].shards[connection.shard];
            let replays = shard.streams.replays(connection.key);
            if let Some(connection) = self.clients[number].connection.as_mut() {
                connection.may_continue |= replays;
            }
            let client = &self.clients[number];
            let Some(connection) = client.connection.as_ref() else { continue };
            let is_fenced = !shard.streams.may_begin();
            let is_excused = client.is_slow || is_fenced || replays;
            if is_excused || !shard.has_turned || client.last_id.is_none() {
                continue;
            }
            let (node, place) = (connection.node, connection.shard);
            self.forget_what_has_ended(number);
            let vector = self.nodes[node].shards[place].streams.vector();
            let mut missing = self.clients[number].missing.iter();
            let late = missing.find(|missed| missed.offset < vector.next(missed.partition));
            assert_eq!(late, None, "seed {}: client {number} waits", self.seed);
        }
    }

    /// What the store says is so.
    pub fn check_store(&mut self) {
        let (seed, wall) = (self.seed, self.wall());
        let mut shelves = self.store.lock();
        for (partition, next) in self.groups.lock().committed() {
            let checked = self.checked.get_mut(partition).expect("a partition");
            for (position, sent) in self.truth.between(*partition, *checked, *next) {
                if !sent.is_kept || sent.need_not_be_kept(wall) || self.truth.is_lost(position) {
                    continue;
                }
                let is_there = match sent.names.user() {
                    Some(user) => shelves.has_row(user, sent.broadcast),
                    None => shelves.has_group(*partition, position.offset),
                };
                assert!(is_there, "seed {seed}: {position:?} is acknowledged and not kept");
            }
            *checked = (*checked).max(*next);
        }
        for waiting in self.truth.waiting() {
            let committed = self.groups.lock();
            let committed = committed.committed().get(&waiting.position.partition);
            let is_acknowledged = committed.is_some_and(|next| *next > waiting.position.offset);
            let is_parked = || shelves.parked.values().any(|row| row.event == waiting.event);
            assert!(
                !is_acknowledged
                    || waiting.sent.need_not_be_kept(wall)
                    || self.truth.is_lost(waiting.position)
                    || is_parked(),
                "seed {seed}: {:?} is acknowledged, and neither served nor parked",
                waiting.position
            );
        }
        for landed in std::mem::take(&mut shelves.landed) {
            match landed {
                Landed::Delivered { user, broadcast } => {
                    let position = self.truth.place(broadcast, Some(&user));
                    let position = position.expect("it was sent");
                    let person = &self.people[&user];
                    let knows = person.knows(position) || self.truth.at(position).has_ended(wall);
                    assert!(knows, "seed {seed}: {position:?} was noted, and {user} has it not");
                }
                Landed::Cursor { user, partition, from, next } => {
                    let person = &self.people[&user];
                    let from = if next >= REPLACED_START { from.max(REPLACED_START) } else { from };
                    for (position, sent) in self.truth.between(partition, from, next) {
                        let is_his = sent.names.admit(&user, &person.roles) && sent.is_kept;
                        assert!(
                            !is_his
                                || person.knows(position)
                                || sent.need_not_be_kept(wall)
                                || self.truth.is_lost(position),
                            "seed {seed}: a cursor of {user} is beyond {position:?}"
                        );
                    }
                }
            }
        }
    }

    pub fn is_complete(&mut self, number: usize) -> bool {
        let client = &self.clients[number];
        let is_served = client.last_id.as_ref().is_some_and(|last| !last.backlog);
        if client.connection.is_none() || !is_served {
            return false;
        }
        self.forget_what_has_ended(number);
        self.clients[number].missing.is_empty() && self.owed(number).is_none()
    }

    pub fn check_complete(&mut self, number: usize) {
        let seed = self.seed;
        self.forget_what_has_ended(number);
        let missing = self.clients[number].missing.first();
        assert_eq!(missing, None, "seed {seed}: client {number} misses it");
        assert!(self.is_complete(number), "seed {seed}: {number} never came in");
    }

    /// Every accepted message has reached every one of its audience, waits for him, or has ended.
    pub fn check_people(&self) {
        let (seed, wall) = (self.seed, self.wall());
        let shelves = self.store.lock();
        for waiting in self.truth.waiting() {
            let has_ended =
                waiting.sent.need_not_be_kept(wall) || self.truth.is_lost(waiting.position);
            assert!(has_ended, "seed {seed}: {:?} was never served", waiting.position);
        }
        for (user, person) in &self.people {
            for (position, sent) in self.truth.all() {
                let is_his = sent.names.admit(user, &person.roles) && sent.is_kept;
                if !is_his || sent.need_not_be_kept(wall) || self.truth.is_lost(position) {
                    continue;
                }
                let is_old = self.shape == REPLACED && position.offset < REPLACED_START;
                let is_lost = is_old && sent.names.user().is_none();
                let knows = person.knows(position) || is_lost;
                assert!(knows, "seed {seed}: {user} never got {position:?}");
                if sent.names.user().is_some() {
                    let row = shelves.row(user, sent.broadcast).expect("it is kept");
                    let is_sound =
                        matches!(row.progress.delivery, Delivery::Pending | Delivery::Delivered);
                    assert!(is_sound, "seed {seed}: {position:?} is {:?}", row.progress);
                }
            }
        }
    }

    /// What has ended need not come any more, by the clock of whoever serves the client.
    pub fn forget_what_has_ended(&mut self, number: usize) {
        let wall = self.wall_of(number);
        let (truth, client) = (&self.truth, &mut self.clients[number]);
        let ended = &mut self.people.get_mut(&client.user).expect("a person").ended;
        client.missing.retain(|position| {
            let sent = truth.at(*position);
            if sent.is_past(wall) {
                ended.insert(*position);
            }
            !sent.has_ended(wall)
        });
    }
}
