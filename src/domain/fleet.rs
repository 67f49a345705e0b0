//! What a node knows of the fleet by the control topic, and until when it may begin messages.
//!
//! Every node appends beats, each with how far all its shards have applied the topic, and reads the
//! topic in order. A beat of its own that it has read back says that it had read what stood before,
//! as of when the beat was sent. For `FENCE` from then on its shards may begin messages.
//!
//! So a record is applied or fenced on every node a `FENCE` after its append, whoever is slow,
//! frozen or cut off: a node that reads back a beat from behind the record has read the record, and
//! one that does not begins nothing any more. Beats from behind it, of all nodes that have been
//! heard of late, tell the same sooner.
//!
//! Sans I/O; time is an argument. Source: design section 6. Compare C. Gray and D. Cheriton,
//! "Leases" (1989).

use std::collections::{HashMap, VecDeque};

use crate::base::Moment;
use crate::limits::control as limits;
use crate::wire::control::NodeStart;

/// One node's view.
#[derive(Debug)]
pub struct Fleet {
    own: NodeStart,
    /// The number of the last order that each shard has applied.
    shards: Vec<u64>,
    /// The number of the last order that was given.
    order: u64,
    /// Orders that not all shards have applied, oldest first, and before which place of the topic
    /// each of them says all.
    given: VecDeque<(u64, u64)>,
    /// All shards have applied what stands before this place.
    applied: u64,
    /// The topic has been read up to here.
    read: u64,
    /// Beats that have been sent and not been read back, oldest first.
    sent: VecDeque<(u64, Moment)>,
    seq: u64,
    beat_at: Option<Moment>,
    /// Somebody may wait for the beat that says that this record is applied.
    owed: Option<u64>,
    fresh_until: Option<Moment>,
    /// Since when the topic has been read without a hole.
    joined_at: Option<Moment>,
    others: HashMap<NodeStart, Other>,
    /// When there were more nodes than are remembered.
    crowded_at: Option<Moment>,
}

#[derive(Debug)]
struct Other {
    applied: u64,
    heard_at: Moment,
}

/// A beat where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    pub offset: u64,
    pub seq: u64,
    /// All shards of its node have applied what stands before this place.
    pub applied: u64,
}

/// A record of this node in the topic, that all nodes are to apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    pub offset: u64,
    /// When the topic had it for certain.
    pub at: Moment,
}

impl Fleet {
    pub fn new(own: NodeStart, shards: usize) -> Self {
        Self {
            own,
            shards: vec![0; shards],
            order: 0,
            given: VecDeque::new(),
            applied: 0,
            read: 0,
            sent: VecDeque::new(),
            seq: 0,
            beat_at: None,
            owed: None,
            fresh_until: None,
            joined_at: None,
            others: HashMap::new(),
            crowded_at: None,
        }
    }

    pub fn own(&self) -> &NodeStart {
        &self.own
    }

    /// The topic is read from here on, without having been read before. It may be another one: no
    /// place of before says anything of it.
    pub fn handle_joined(&mut self, now: Moment) {
        self.joined_at = Some(now);
        // What was sent before is read back by nobody, or says nothing.
        self.sent.clear();
        self.given.clear();
        (self.applied, self.read, self.owed) = (0, 0, None);
        self.others.values_mut().for_each(|other| other.applied = 0);
    }

    /// Everything before this place has been read; the number of the order that says it to the
    /// shards.
    pub fn next_order(&mut self, next: u64) -> u64 {
        if next != self.read {
            self.read = next;
            self.order += 1;
            // A shard that stands still for long is told of them together.
            if self.given.len() == limits::ORDERS_GIVEN_MAX {
                self.given.pop_back();
            }
            self.given.push_back((self.order, next));
        }
        self.order
    }

    /// Up to where the topic has been read. What is appended from now on stands behind it, or in
    /// another topic.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// The next number of a record of this node.
    pub fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// The beat that is due, if one is: its number, and what all shards have applied.
    pub fn poll_beat(&mut self, now: Moment) -> Option<(u64, u64)> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return None;
        }
        self.beat_at = Some(now);
        self.owed = self.owed.filter(|_| !self.owes_word());
        let seq = self.next_seq();
        if self.sent.len() == limits::BEATS_SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((seq, now));
        Some((seq, self.applied()))
    }

    /// When the next beat is due; `None` before the topic is read.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let joined_at = self.joined_at?;
        let pace = if self.owes_word() { limits::ANSWER_PACE } else { limits::BEAT_PACE };
        Some(self.beat_at.map_or(joined_at, |at| at.plus(pace)))
    }

    /// A beat was read at this place.
    pub fn handle_beat(&mut self, from: &NodeStart, beat: Beat, now: Moment) {
        let Beat { offset, seq, applied } = beat;
        if *from == self.own {
            while let Some((sent, at)) = self.sent.front().copied()
                && sent <= seq
            {
                self.sent.pop_front();
                if sent == seq {
                    self.fresh_until = self.fresh_until.max(Some(at.plus(limits::FENCE)));
                }
            }
            return;
        }
        // Who has applied more than there was when it was sent speaks of another topic, and will
        // find out.
        if applied > offset {
            return;
        }
        if let Some(other) = self.others.get_mut(from) {
            other.applied = other.applied.max(applied);
            other.heard_at = now;
            return;
        }
        self.others.retain(|_, other| now.since(other.heard_at) < limits::SILENCE);
        if self.others.len() >= limits::NODES_MAX {
            self.crowded_at = Some(now);
            return;
        }
        self.others.insert(from.clone(), Other { applied, heard_at: now });
    }

    /// A record was read whose appender waits until all have applied it.
    pub fn handle_record(&mut self, offset: u64) {
        self.owed = self.owed.max(Some(offset));
    }

    fn owes_word(&self) -> bool {
        self.owed.is_some_and(|offset| self.applied() > offset)
    }

    /// A shard has applied all orders up to this one.
    pub fn handle_applied(&mut self, shard: u16, order: u64) {
        if let Some(known) = self.shards.get_mut(usize::from(shard)) {
            *known = order.max(*known);
        }
        let all = self.shards.iter().copied().min().unwrap_or(0);
        while let Some((_, place)) = self.given.pop_front_if(|(order, _)| *order <= all) {
            self.applied = place;
        }
    }

    /// What all shards have applied: everything before this place.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Until when messages may begin; `None`: not yet.
    pub fn fresh_until(&self) -> Option<Moment> {
        self.fresh_until
    }

    /// Other nodes that have been heard of late.
    pub fn others(&self, now: Moment) -> usize {
        let is_heard = |other: &&Other| now.since(other.heard_at) < limits::SILENCE;
        self.others.values().filter(is_heard).count()
    }

    /// Whether every node has applied a record or begins no message any more.
    pub fn is_settled(&self, record: Appended, now: Moment) -> bool {
        if self.applied() <= record.offset {
            return false;
        }
        if now.since(record.at) >= limits::SILENCE {
            return true;
        }
        let is_recent = |at: Option<Moment>| at.is_none_or(|at| now.since(at) < limits::SILENCE);
        if is_recent(self.joined_at) || (self.crowded_at.is_some() && is_recent(self.crowded_at)) {
            return false;
        }
        self.others.values().all(|other| {
            other.applied > record.offset || now.since(other.heard_at) >= limits::SILENCE
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use uuid::Uuid;

    const NOW: Moment = Moment(1_000_000);

    fn named(node: &str) -> NodeStart {
        NodeStart { node: node.to_owned(), start: Uuid::nil() }
    }

    fn after(millis: u64) -> Moment {
        NOW.plus(Duration::from_millis(millis))
    }

    fn beat(seq: u64, applied: u64) -> Beat {
        Beat { offset: 1_000, seq, applied }
    }

    fn fleet() -> Fleet {
        let mut fleet = Fleet::new(named("own"), 2);
        assert_eq!(fleet.poll_beat(NOW), None, "nothing is read yet");
        fleet.handle_joined(NOW);
        fleet
    }

    #[test]
    fn a_beat_counts_from_its_sending_once_it_has_come_back() {
        let mut fleet = fleet();
        assert_eq!(fleet.poll_beat(NOW), Some((1, 0)));
        assert_eq!(fleet.poll_beat(NOW), None);
        assert_eq!(fleet.fresh_until(), None);
        assert_eq!(fleet.poll_beat(after(500)), Some((2, 0)));
        fleet.handle_beat(&named("own"), beat(1, 0), after(1_900));
        assert_eq!(fleet.fresh_until(), Some(after(2_000)));
        // One that comes twice, one of an earlier start and one that was never sent change nothing.
        fleet.handle_beat(&named("own"), beat(1, 0), after(1_990));
        let earlier = NodeStart { start: Uuid::max(), ..named("own") };
        fleet.handle_beat(&earlier, beat(2, 0), after(1_990));
        assert_eq!(fleet.fresh_until(), Some(after(2_000)));
        fleet.handle_beat(&named("own"), beat(2, 0), after(2_100));
        assert_eq!(fleet.fresh_until(), Some(after(2_500)));
    }

    #[test]
    fn what_was_sent_before_a_hole_does_not_count() {
        let mut fleet = fleet();
        fleet.poll_beat(NOW).expect("the first");
        fleet.handle_joined(after(100));
        fleet.handle_beat(&named("own"), beat(1, 0), after(200));
        assert_eq!(fleet.fresh_until(), None);
    }

    #[test]
    fn who_may_be_waited_for_beats_soon() {
        let mut fleet = fleet();
        fleet.poll_beat(NOW).expect("the first");
        fleet.handle_record(6);
        let (first, second) = (fleet.next_order(7), fleet.next_order(9));
        fleet.handle_applied(0, second);
        assert_eq!(fleet.poll_beat(after(100)), None, "a shard has not applied it");
        fleet.handle_applied(1, first);
        assert_eq!(fleet.poll_beat(after(99)), None);
        assert_eq!(fleet.poll_beat(after(100)), Some((2, 7)));
        assert_eq!(fleet.poll_beat(after(200)), None);
        assert_eq!(fleet.poll_beat(after(600)), Some((3, 7)));
    }

    #[test]
    fn a_record_is_settled_once_all_have_it_or_are_silent() {
        let record = Appended { offset: 10, at: after(5_000) };
        let mut fleet = fleet();
        fleet.handle_beat(&named("a"), beat(1, 5), after(4_900));
        fleet.handle_beat(&named("b"), beat(1, 5), after(2_100));
        let order = fleet.next_order(11);
        let mut settled = |at, do_first: &dyn Fn(&mut Fleet)| {
            do_first(&mut fleet);
            fleet.is_settled(record, after(at))
        };
        assert!(!settled(5_010, &|_| {}), "not applied here");
        assert!(!settled(5_020, &|fleet| fleet.handle_applied(0, order)), "by one shard");
        assert!(!settled(5_030, &|fleet| fleet.handle_applied(1, order)), "not by a and b");
        let a_again = |fleet: &mut Fleet| fleet.handle_beat(&named("a"), beat(2, 11), after(5_040));
        assert!(!settled(5_040, &a_again), "b was heard three seconds ago");
        assert!(settled(5_100, &|_| {}), "b is silent");
        let b_again = |fleet: &mut Fleet| fleet.handle_beat(&named("b"), beat(2, 10), after(5_200));
        assert!(!settled(5_200, &b_again), "b is there, and does not have it");
        assert!(settled(8_000, &|_| {}), "b has it or is fenced");
        let not_here = Appended { offset: 11, ..record };
        assert!(!fleet.is_settled(not_here, after(20_000)), "never before it is applied here");
    }

    #[test]
    fn who_has_just_come_does_not_know_the_others() {
        let mut fleet = Fleet::new(named("own"), 1);
        fleet.handle_joined(NOW);
        let order = fleet.next_order(11);
        fleet.handle_applied(0, order);
        let record = |millis| Appended { offset: 10, at: after(millis) };
        assert!(!fleet.is_settled(record(100), after(200)));
        assert!(fleet.is_settled(record(2_950), after(3_000)), "nobody else was heard for long");
    }

    #[test]
    fn more_nodes_than_are_remembered_are_waited_for() {
        let mut fleet = Fleet::new(named("own"), 1);
        fleet.handle_joined(NOW);
        let order = fleet.next_order(11);
        fleet.handle_applied(0, order);
        for number in 0..=limits::NODES_MAX {
            fleet.handle_beat(&named(&number.to_string()), beat(1, 11), after(4_000));
        }
        let record = Appended { offset: 10, at: after(4_000) };
        assert!(!fleet.is_settled(record, after(4_100)));
        assert!(fleet.is_settled(record, after(7_000)));
    }

    #[test]
    fn in_a_topic_that_was_made_anew_no_place_of_before_counts() {
        let mut fleet = fleet();
        let order = fleet.next_order(500);
        (0..2).for_each(|shard| fleet.handle_applied(shard, order));
        fleet.handle_beat(&named("a"), beat(9, 500), after(9_000));
        fleet.handle_joined(after(9_500));
        let record = Appended { offset: 3, at: after(9_600) };
        assert_eq!(fleet.read(), 0, "whatever is appended is behind it");
        let order = fleet.next_order(4);
        assert!(!fleet.is_settled(record, after(20_000)), "not applied here");
        (0..2).for_each(|shard| fleet.handle_applied(shard, order));
        assert_eq!(fleet.applied(), 4);
        fleet.handle_beat(&named("a"), Beat { offset: 2, ..beat(10, 1) }, after(12_500));
        // This one has not found out yet that it speaks of another topic.
        fleet.handle_beat(&named("a"), Beat { offset: 5, ..beat(10, 501) }, after(12_550));
        assert!(!fleet.is_settled(record, after(12_550)), "not by a");
        fleet.handle_beat(&named("a"), Beat { offset: 6, ..beat(11, 4) }, after(12_560));
        assert!(fleet.is_settled(record, after(12_560)));
    }

    #[test]
    fn a_shard_that_stands_still_is_told_of_many_orders_together() {
        let mut fleet = fleet();
        let mut last = 0;
        for place in 1..=2 * limits::ORDERS_GIVEN_MAX as u64 {
            last = fleet.next_order(place);
            assert_eq!(fleet.next_order(place), last, "it says nothing new");
        }
        assert!(fleet.given.len() <= limits::ORDERS_GIVEN_MAX);
        fleet.handle_applied(0, last);
        assert_eq!(fleet.applied(), 0);
        fleet.handle_applied(1, last);
        assert_eq!((fleet.applied(), fleet.given.len()), (2 * limits::ORDERS_GIVEN_MAX as u64, 0));
    }
}
