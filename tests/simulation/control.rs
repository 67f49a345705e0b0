//! The control topic, the nodes that follow it by clocks of their own, and cancels.
//!
//! Beats and records come late, or not at all; a node that reads late, stands still or has just
//! started follows by the real `Fleet`. P4 is held against what a cancel was answered: from then on
//! nobody begins its messages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use corecast::base::{BroadcastId, End, EpochMillis, EventType, Moment, Position, TargetType};
use corecast::domain::{Appended, Beat, Fleet};
use corecast::lane::Order;
use corecast::ports::{NotedEnding, StoreError};
use corecast::wire::control::{ControlRecord, ControlSays, NodeStart};
use corecast::wire::record::{OutgoingRecord, event_id};
use uuid::Uuid;

use crate::random::{Random, Seen};
use crate::records::Names;
use crate::sky::{BEHIND_MAX, Task};
use crate::store::FakeStore;
use crate::world::{CLIENTS, NODES, World};

/// How long the simulated log may bring a message back: for all its time, and less than a calendar
/// may step by.
pub const ENDED_KEPT: Duration = Duration::from_secs(50 * 60);
const _: () = assert!(ENDED_KEPT.as_millis() < BEHIND_MAX.as_millis());

/// The topic, and what is on its way to it.
#[derive(Default)]
pub struct Topic {
    records: Vec<ControlRecord>,
    flying: Vec<(Moment, u64, ControlRecord)>,
    /// Where what has landed stands, by the number of its sending.
    landed: BTreeMap<u64, u64>,
    sent: u64,
    /// It takes nothing and gives nothing until then.
    pub away_until: Moment,
}

impl Topic {
    fn send(&mut self, at: Moment, record: ControlRecord) -> u64 {
        self.sent += 1;
        let is_beat = matches!(record.says, ControlSays::Beat { .. });
        // A beat is not sent again.
        if at >= self.away_until || !is_beat {
            self.flying.push((at.max(self.away_until), self.sent, record));
        }
        self.sent
    }

    pub fn handle_time(&mut self, now: Moment) {
        let (mut landing, flying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flying).into_iter().partition(|(at, ..)| *at <= now);
        self.flying = flying;
        landing.sort_by_key(|(at, ..)| *at);
        for (_, number, record) in landing {
            self.landed.insert(number, self.end());
            self.records.push(record);
        }
    }

    fn end(&self) -> u64 {
        self.records.len() as u64
    }
}

/// Reading from the store what has ended.
type Joining = Task<Result<Vec<NotedEnding>, StoreError>>;

/// What a node has heard.
pub struct Follower {
    pub fleet: Fleet,
    /// Its clock runs by so many thousandths.
    rate: u64,
    /// It reads the topic in one of so many steps.
    patience: usize,
    /// `None`: what has ended so far is being read.
    next: Option<u64>,
    joining: Option<(u64, Joining)>,
}

impl Follower {
    pub fn new(number: u64, shards: usize, random: &mut Random) -> Self {
        let own = NodeStart { node: "n".to_owned(), start: Uuid::from_u128(u128::from(number)) };
        let rate = 950 + random.next() % 101;
        let patience = [1, 2, 6][random.below(3)];
        Self { fleet: Fleet::new(own, shards), rate, patience, next: None, joining: None }
    }

    pub fn local(&self, now: Moment) -> Moment {
        Moment(now.0 * self.rate / 1_000)
    }

    /// What a node does that has not read the topic yet; what is to be told to the shards.
    fn join(&mut self, topic: &Topic, store: &FakeStore, now: Moment) -> Option<Order> {
        let (next, mut task) = self.joining.take().unwrap_or_else(|| {
            self.fleet.handle_joined(self.local(now));
            let store = store.clone();
            (topic.end(), Task::new(async move { store.over().await }))
        });
        match task.turn() {
            None => self.joining = Some((next, task)),
            Some(Err(_)) => {}
            Some(Ok(noted)) => {
                self.next = Some(next);
                let until = now.plus(ENDED_KEPT);
                let ended = noted.iter().map(|one| (one.ending.id, until)).collect();
                let applied = self.fleet.next_order(next);
                return Some(Order { ended, applied, fresh_until: None });
            }
        }
        None
    }

    /// Takes what stands in the topic, up to so many records.
    fn read(&mut self, topic: &Topic, many: usize, now: Moment) -> Option<Order> {
        let mut next = self.next?;
        let mut order = Order::default();
        for (offset, record) in (next..).zip(&topic.records[next as usize..]).take(many) {
            next = offset + 1;
            match record.says {
                ControlSays::Beat { applied } => {
                    let beat = Beat { offset, seq: record.seq, applied };
                    self.fleet.handle_beat(&record.from, beat, self.local(now));
                }
                ControlSays::Ended { broadcast_id, .. } => {
                    order.ended.push((broadcast_id, now.plus(ENDED_KEPT)));
                    self.fleet.handle_record(offset);
                }
            }
        }
        self.next = Some(next);
        order.applied = self.fleet.next_order(next);
        order.fresh_until = self.fleet.fresh_until();
        Some(order)
    }
}

/// A cancel that a node is at.
pub struct Cancel {
    node: usize,
    /// It ends with the node that began it.
    by: NodeStart,
    broadcast: BroadcastId,
    stage: Stage,
    removes_at: Option<Moment>,
}

enum Stage {
    /// Its status is written then.
    Storing(Moment),
    /// Sent by that number; the node hears of it so much later.
    Appending(u64, Duration),
    Settling(Appended),
    /// Only its users are still to be told.
    Left,
}

impl World {
    /// Somebody cancels a broadcast, often one that has just been made.
    pub fn cancel(&mut self) {
        let node = self.random.below(NODES);
        if let Some(broadcast) = self.choose_cancelled() {
            if self.random.one_in(4) && !self.is_log_out() {
                // Another producer, by its records alone.
                self.seen.note("cancels of other producers");
                self.truth.begin_end(broadcast);
                return self.remove(broadcast);
            }
            self.cancel_by(node, broadcast);
        }
    }

    /// Often one that waits for a slow reader.
    fn choose_cancelled(&mut self) -> Option<BroadcastId> {
        let number = self.random.below(CLIENTS);
        let client = &self.clients[number];
        if let (true, Some(waits)) = (client.is_slow, client.missing.last()) {
            let broadcast = self.truth.at(*waits).broadcast;
            return Some(broadcast).filter(|broadcast| !self.truth.is_ending(*broadcast));
        }
        let many = if self.random.one_in(2) { 3 } else { 60 };
        let all: Vec<BroadcastId> = self.truth.cancellable(many).collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len())])
    }

    fn cancel_by(&mut self, node: usize, broadcast: BroadcastId) {
        if self.nodes[node].frozen_until > self.now || self.truth.is_ending(broadcast) {
            return;
        }
        self.seen.note("cancels");
        if self.store.lock().is_away() {
            return;
        }
        let wall = self.wall();
        self.store.lock().put_ending(broadcast, wall);
        let longest = if self.random.one_in(2) { 100 } else { 2_000 };
        let done_at = self.now.plus(self.random.millis(longest));
        let by = self.nodes[node].follower.fleet.own().clone();
        let stage = Stage::Storing(done_at);
        self.cancels.push(Cancel { node, by, broadcast, stage, removes_at: None });
    }

    /// The topic goes on, and whoever follows it; some shards have had their turn before.
    pub fn turn_control(&mut self, is_eager: bool) {
        let told = std::mem::take(&mut self.store.lock().told);
        for value in told {
            let record = ControlRecord::read(&value).expect("an owner's record");
            self.topic.send(self.now, record);
        }
        self.topic.handle_time(self.now);
        for number in 0..NODES {
            let node = &mut self.nodes[number];
            if node.frozen_until > self.now {
                continue;
            }
            if self.topic.away_until > self.now {
                let local = node.follower.local(self.now);
                // What it sends is lost.
                let _ = node.follower.fleet.poll_beat(local);
                continue;
            }
            if node.follower.next.is_none() {
                let Some(order) = node.follower.join(&self.topic, &self.store, self.now) else {
                    continue;
                };
                node.hear(&order);
                // Who has just come does not know the others.
                if self.faults.cancels
                    && self.random.one_in(2)
                    && let Some(broadcast) = self.choose_cancelled()
                {
                    self.seen.note("cancels by a node that has just joined");
                    self.cancel_by(number, broadcast);
                }
                continue;
            }
            let patience = self.nodes[number].follower.patience;
            let node = &mut self.nodes[number];
            let is_deaf = node.deaf_until > self.now;
            if is_eager || !is_deaf && self.random.one_in(patience) {
                let many =
                    if is_eager { usize::MAX } else { [1, 3, 8, 1_000][self.random.below(4)] };
                let order = node.follower.read(&self.topic, many, self.now);
                order.into_iter().for_each(|order| node.hear(&order));
            }
            let local = node.follower.local(self.now);
            let Some((seq, applied)) = node.follower.fleet.poll_beat(local) else { continue };
            let from = node.follower.fleet.own().clone();
            let beat = ControlRecord { from, seq, says: ControlSays::Beat { applied } };
            if self.faults.nodes && self.random.one_in(12) {
                self.seen.note("lost beats");
                continue;
            }
            let delay = self.control_delay();
            self.topic.send(self.now.plus(delay), beat);
        }
        for cancel in std::mem::take(&mut self.cancels) {
            self.turn_cancel(cancel);
        }
    }

    fn control_delay(&mut self) -> Duration {
        match self.faults.nodes {
            true if self.random.one_in(10) => self.random.millis(4_000),
            true => self.random.millis(200),
            false => Duration::ZERO,
        }
    }

    fn turn_cancel(&mut self, mut cancel: Cancel) {
        if matches!(cancel.stage, Stage::Left) {
            return self.remove_later(cancel);
        }
        let node = &mut self.nodes[cancel.node];
        if *node.follower.fleet.own() != cancel.by {
            // Whoever completes it later tells the users, and all nodes once more.
            self.seen.note("cancels that a crash left");
            return self.remove_later(cancel);
        }
        if node.frozen_until > self.now {
            return self.cancels.push(cancel);
        }
        match cancel.stage {
            Stage::Storing(at) if at <= self.now && !self.store.lock().is_away() => {
                self.store.lock().end(cancel.broadcast);
                self.truth.begin_end(cancel.broadcast);
                let fleet = &mut self.nodes[cancel.node].follower.fleet;
                let (from, seq) = (fleet.own().clone(), fleet.next_seq());
                let (broadcast_id, status) = (cancel.broadcast, End::Cancelled);
                let says = ControlSays::Ended { broadcast_id, status };
                let (delay, more) = (self.control_delay(), self.control_delay());
                let record = ControlRecord { from, seq, says };
                let number = self.topic.send(self.now.plus(delay), record);
                cancel.stage = Stage::Appending(number, more);
            }
            Stage::Appending(number, more) => {
                if let Some(offset) = self.topic.landed.get(&number).copied() {
                    let at = self.nodes[cancel.node].follower.local(self.now);
                    let later = self.now.plus(more);
                    cancel.stage = Stage::Settling(Appended { offset, at });
                    cancel.removes_at = Some(later);
                }
            }
            Stage::Settling(appended) => {
                let follower = &self.nodes[cancel.node].follower;
                if follower.fleet.is_settled(appended, follower.local(self.now)) {
                    self.seen.note("cancels that were answered");
                    self.truth.answer_end(cancel.broadcast, self.now);
                    self.let_readers_go_on();
                    return self.remove_later(cancel);
                }
            }
            Stage::Storing(_) | Stage::Left => {}
        }
        if cancel.removes_at.is_some_and(|at| at <= self.now) && !self.is_log_out() {
            self.remove(cancel.broadcast);
            cancel.removes_at = None;
        }
        self.cancels.push(cancel);
    }

    /// Slow readers read a lot, so that whatever waits for them may be written now.
    fn let_readers_go_on(&mut self) {
        for client in self.clients.iter().filter(|client| client.is_slow) {
            if let Some(connection) = &client.connection {
                connection.socket.borrow_mut().room = Some(100_000);
            }
        }
    }

    /// Whoever completes a cancel tells the users of it.
    fn remove_later(&mut self, cancel: Cancel) {
        if !self.truth.is_ending(cancel.broadcast) {
            return;
        }
        if self.is_log_out() {
            let (removes_at, stage) = (Some(self.now), Stage::Left);
            return self.cancels.push(Cancel { stage, removes_at, ..cancel });
        }
        self.remove(cancel.broadcast);
    }

    /// Who could see it is told, by records in the partitions of its messages.
    fn remove(&mut self, broadcast: BroadcastId) {
        if !self.truth.take_removal(broadcast) {
            return;
        }
        let sent: Vec<(Position, Names)> = self.truth.of(broadcast);
        for (position, names) in sent {
            let value = removal_of(broadcast, &names, self.wall());
            let (removed_at, is_served) = self.append_to(position.partition, value);
            assert!(is_served, "seed {}: a removal is served", self.seed);
            self.seen.note("removals");
            for client in &mut self.clients {
                let is_his = names.admit(&client.user, &client.roles);
                if is_his && client.got.contains(&position) {
                    client.owed.insert(removed_at, broadcast);
                }
            }
            self.truth.removals.insert(removed_at, (broadcast, names));
        }
    }

    /// A client was told that a message is no more.
    pub fn take_removal(
        &mut self,
        number: usize,
        broadcast: BroadcastId,
        last_id: &crate::client::Block,
    ) {
        let seed = self.seed;
        let client = &mut self.clients[number];
        let id = last_id.id.as_ref().expect("MESSAGE_REMOVED has an id");
        let is_covered = |at: &Position| crate::client::is_covered(id, *at);
        let of_it = self.truth.removals.iter().filter(|(_, (of, _))| *of == broadcast);
        let is_his = |names: &Names| names.admit(&client.user, &client.roles);
        let told: BTreeSet<Position> = of_it
            .filter(|(at, (_, names))| is_covered(at) && is_his(names))
            .map(|(at, _)| *at)
            .collect();
        assert!(!told.is_empty(), "seed {seed}: client {number} could not see {broadcast}");
        self.seen.note("removals that were told");
        client.owed.retain(|at, _| !told.contains(at));
    }

    /// What a client had and has not been told is no more, unless the store keeps no word of it: it
    /// was for who was here, or has passed the end that it named itself.
    pub fn owed(&self, number: usize) -> Option<Position> {
        let wall = self.wall();
        let is_due = |(at, broadcast): &(&Position, &BroadcastId)| {
            !self.truth.is_lost(**at) && !self.truth.is_past(**broadcast, wall)
        };
        self.clients[number].owed.iter().find(is_due).map(|(at, _)| *at)
    }

    /// Clients that had what is cancelled have been told.
    pub fn check_removals(&self) {
        for number in 0..CLIENTS {
            let owed = self.owed(number);
            assert_eq!(owed, None, "seed {}: client {number} was not told", self.seed);
        }
    }
}

/// A record that says that a message is no more.
fn removal_of(broadcast: BroadcastId, names: &Names, wall: EpochMillis) -> Bytes {
    let user = names.user().map(|user| user.as_str());
    let (target_type, target_ids) = match names {
        Names::Everyone => (TargetType::All, Vec::new()),
        Names::Roles(roles) => {
            (TargetType::Role, roles.iter().map(|role| (*role).to_owned()).collect())
        }
        Names::User(_) => (TargetType::Selected, Vec::new()),
    };
    let value = OutgoingRecord {
        event_id: event_id(broadcast, user, EventType::Cancelled),
        broadcast_id: broadcast,
        user_id: user,
        event_type: EventType::Cancelled,
        pod_id: "simulated",
        timestamp: wall,
        correlation_id: None,
        message: None,
        error_details: None,
        fire_and_forget: false,
        target_type: Some(target_type),
        target_ids: Some(&target_ids),
        sender_id: None,
        sender_name: None,
        priority: None,
        category: None,
        created_at: None,
        scheduled_at: None,
        expires_at: None,
        simulate_failure: false,
        attempt: 0,
        after: None,
    };
    Bytes::from(value.to_json())
}

/// Counts what the nodes' fences did.
pub fn count_fences(world: &World, seen: &mut Seen) {
    for shard in world.nodes.iter().flat_map(|node| &node.shards) {
        seen.count("fenced shards", u64::from(shard.is_serving && !shard.streams.may_begin()));
    }
}
