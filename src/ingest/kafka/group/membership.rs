//! What this node is in its groups: shared by the tasks that keep it a member and those that
//! commit.
//!
//! Invariants: what is owned, and the member and generation that it was assigned to, change
//! together; a tenure is kept only from one generation to the next, since somebody else may have
//! owned the partition in one that this node missed; nothing is owned after leaving.

use std::collections::BTreeSet;

use kafka_protocol::protocol::StrBytes;
use tokio::sync::watch;

use super::kind::Kind;
use crate::base::Partition;
use crate::ports::{Owned, Tenure};

/// What this node is in one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Membership {
    /// What the coordinator calls the node. Empty until it has.
    pub member: StrBytes,
    /// Of the assignment that `owned` comes from; -1 without one.
    pub generation: i32,
    pub owned: Owned,
    /// No other generation is known to be coming.
    pub is_settled: bool,
}

pub(super) struct Memberships {
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    /// In the order of `Kind::ALL`.
    memberships: [Membership; 3],
    tenures: u64,
    has_left: bool,
}

impl Default for Membership {
    fn default() -> Self {
        let member = StrBytes::new();
        Self { member, generation: -1, owned: Owned::new(), is_settled: false }
    }
}

impl Membership {
    /// Whether both stand for the same assignment.
    pub fn is_of_generation(&self, other: &Self) -> bool {
        self.member == other.member && self.generation == other.generation
    }
}

impl State {
    fn owned(&self) -> Owned {
        let all = self.memberships.iter().flat_map(|membership| &membership.owned);
        all.map(|(partition, tenure)| (*partition, *tenure)).collect()
    }
}

impl Memberships {
    pub fn new() -> Self {
        Self { state: watch::Sender::default() }
    }

    pub fn of(&self, kind: Kind) -> Membership {
        self.state.borrow().memberships[kind as usize].clone()
    }

    /// What is owned, as soon as that is not `known`.
    pub async fn owned(&self, known: &Owned) -> Owned {
        let mut state = self.state.subscribe();
        let changed = state.wait_for(|state| state.owned() != *known).await;
        changed.expect("the sender lives as long as this").owned()
    }

    /// Waits until the membership is so.
    pub async fn until(&self, kind: Kind, is_so: impl Fn(&Membership) -> bool) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| is_so(&state.memberships[kind as usize])).await;
    }

    pub async fn until_left(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| state.has_left).await;
    }

    pub fn has_left(&self) -> bool {
        self.state.borrow().has_left
    }

    /// The coordinator has said what it calls the node.
    pub fn name(&self, kind: Kind, member: &StrBytes) {
        self.change(kind, |membership, _| membership.member = member.clone());
    }

    /// Another generation is coming. What is owned stays owned until it is there.
    pub fn unsettle(&self, kind: Kind) {
        self.change(kind, |membership, _| membership.is_settled = false);
    }

    /// An assignment has come.
    pub fn settle(
        &self,
        kind: Kind,
        member: &StrBytes,
        generation: i32,
        assigned: &BTreeSet<Partition>,
    ) {
        self.change(kind, |membership, tenures| {
            let is_next = membership.member == *member
                && (membership.generation == generation
                    || membership.generation.checked_add(1) == Some(generation));
            let before = std::mem::take(&mut membership.owned);
            let stays = |one: &Partition| before.get(one).copied().filter(|_| is_next);
            membership.owned = assigned
                .iter()
                .map(|partition| {
                    let tenure = stays(partition).unwrap_or_else(|| {
                        *tenures += 1;
                        Tenure(*tenures)
                    });
                    (*partition, tenure)
                })
                .collect();
            membership.member = member.clone();
            membership.generation = generation;
            membership.is_settled = true;
        });
    }

    /// The coordinator does not know this member or its generation: it owns nothing, and joins
    /// anew. Nothing happens if that was said of an earlier generation. Returns whether it was so.
    pub fn lose(&self, kind: Kind, seen: &Membership) -> bool {
        let mut is_lost = false;
        self.change(kind, |membership, _| {
            is_lost = membership.is_of_generation(seen);
            if is_lost {
                *membership = Membership::default();
            }
        });
        is_lost
    }

    /// Nothing is owned from here on. Returns what the node was.
    pub fn leave(&self) -> [Membership; 3] {
        let mut before = <[Membership; 3]>::default();
        self.state.send_modify(|state| {
            state.has_left = true;
            before = std::mem::take(&mut state.memberships);
        });
        before
    }

    fn change(&self, kind: Kind, change: impl FnOnce(&mut Membership, &mut u64)) {
        self.state.send_if_modified(|state| {
            if state.has_left {
                return false;
            }
            let membership = &mut state.memberships[kind as usize];
            let before = membership.clone();
            change(membership, &mut state.tenures);
            *membership != before
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::Topic;

    const KIND: Kind = Kind::Group;

    fn partition(index: u16) -> Partition {
        Partition { topic: Topic::Group, index }
    }

    fn one() -> StrBytes {
        StrBytes::from_static_str("one")
    }

    fn settle(all: &Memberships, generation: i32, assigned: &[u16]) -> BTreeMap<u16, Tenure> {
        let assigned = assigned.iter().map(|index| partition(*index)).collect();
        all.settle(KIND, &one(), generation, &assigned);
        let owned = all.of(KIND).owned;
        owned.into_iter().map(|(partition, tenure)| (partition.index, tenure)).collect()
    }

    fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let waker = std::task::Waker::noop();
        match future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn what_stays_keeps_its_tenure_and_what_comes_has_a_new_one() {
        let all = Memberships::new();
        let first = settle(&all, 1, &[0, 1]);
        assert_ne!(first[&0], first[&1]);
        all.unsettle(KIND);
        assert!(all.of(KIND).owned.values().eq(first.values()), "owned through a rebalance");
        let second = settle(&all, 2, &[1, 2]);
        assert_eq!(second.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(second[&1], first[&1]);
        assert!(!first.values().any(|tenure| *tenure == second[&2]));
        // The same generation once more: its answer had been lost.
        assert_eq!(settle(&all, 2, &[1, 2]), second);
        // What went and came back was somebody else's in between.
        settle(&all, 3, &[2]);
        assert_ne!(settle(&all, 4, &[1, 2])[&1], second[&1]);
    }

    #[test]
    fn a_generation_that_was_missed_ends_all_tenures() {
        let all = Memberships::new();
        let first = settle(&all, 1, &[0]);
        assert_ne!(settle(&all, 3, &[0]), first);
        let other = StrBytes::from_static_str("another");
        let before = all.of(KIND);
        all.settle(KIND, &other, 4, &BTreeSet::from([partition(0)]));
        assert_ne!(all.of(KIND).owned, before.owned, "another member");
    }

    #[test]
    fn only_the_generation_that_is_meant_can_be_lost() {
        let all = Memberships::new();
        settle(&all, 1, &[0]);
        let seen = all.of(KIND);
        settle(&all, 2, &[0]);
        assert!(!all.lose(KIND, &seen));
        assert!(all.lose(KIND, &all.of(KIND)));
        assert_eq!(all.of(KIND), Membership::default());
    }

    #[test]
    fn owned_waits_for_a_change_and_nothing_is_owned_after_leaving() {
        let all = Memberships::new();
        let none = Owned::new();
        assert_eq!(at_once(all.owned(&none)), None);
        let tenure = settle(&all, 1, &[3])[&3];
        let some = Owned::from([(partition(3), tenure)]);
        assert_eq!(at_once(all.owned(&none)), Some(some.clone()));
        assert_eq!(at_once(all.owned(&some)), None);
        assert_eq!(at_once(all.until_left()), None);
        let left = all.leave();
        assert_eq!(left[KIND as usize].member, one());
        assert_eq!(at_once(all.owned(&some)), Some(none));
        assert_eq!(at_once(all.until_left()), Some(()));
        assert_eq!(settle(&all, 2, &[3]), BTreeMap::new(), "an answer that came too late");
    }
}
