//! Who gets which partitions: decided by the member that leads a group, for all.
//!
//! Pure. Sizes differ by at most one; a member keeps what it had as far as that allows; the same
//! members give the same shares. Members may be of other topics, if two clusters of nodes share a
//! group: topics are shared among their own members.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What a member says of itself when it joins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Subscription {
    pub topics: Vec<String>,
    /// How many each topic has.
    pub partitions: u16,
    /// Of the assignment that `owned` comes from; -1 without one.
    pub generation: i32,
    /// Slots (`kind.rs`).
    pub owned: BTreeSet<u16>,
}

impl Subscription {
    /// Of all its topics together.
    fn slots(&self) -> u16 {
        let topics = u16::try_from(self.topics.len()).unwrap_or(u16::MAX);
        self.partitions.saturating_mul(topics)
    }
}

/// By member id.
pub(super) type Subscriptions = BTreeMap<String, Subscription>;
pub(super) type Shares = BTreeMap<String, BTreeSet<u16>>;

/// A share for each member; it may be empty.
pub(super) fn assign(members: &Subscriptions) -> Shares {
    let topics: BTreeSet<&[String]> = members.values().map(|one| &one.topics[..]).collect();
    let of_topics = |topics: &[String]| -> Vec<(&str, &Subscription)> {
        let all = members.iter().filter(|(_, one)| one.topics == topics);
        all.map(|(name, one)| (name.as_str(), one)).collect()
    };
    topics.into_iter().flat_map(|topics| share(&of_topics(topics))).collect()
}

/// Shares topics among their members, which come in the order of their names.
fn share(members: &[(&str, &Subscription)]) -> Shares {
    let partitions = members.iter().map(|(_, one)| one.slots()).max().unwrap_or(0);
    let mut claims = claims(members, partitions);
    // Whoever has most takes one of the larger shares: so the fewest move.
    let mut order: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
    order.sort_by_key(|name| Reverse(claims.get(name).map_or(0, BTreeSet::len)));
    let smaller = usize::from(partitions) / members.len().max(1);
    let larger = usize::from(partitions) % members.len().max(1);
    let mut free: BTreeSet<u16> = (0..partitions).collect();
    let mut shares = Vec::with_capacity(members.len());
    for (at, name) in order.into_iter().enumerate() {
        let size = smaller + usize::from(at < larger);
        let kept: BTreeSet<u16> =
            claims.remove(name).unwrap_or_default().into_iter().take(size).collect();
        free.retain(|partition| !kept.contains(partition));
        shares.push((name, size, kept));
    }
    let mut free = free.into_iter();
    let filled = shares.into_iter().map(|(name, size, mut share)| {
        let missing = size - share.len();
        share.extend(free.by_ref().take(missing));
        (name.to_owned(), share)
    });
    filled.collect()
}

/// Which partitions each member has. Of two that say so of one, the later assignment counts: the
/// other member has missed it.
fn claims<'a>(
    members: &[(&'a str, &Subscription)],
    partitions: u16,
) -> BTreeMap<&'a str, BTreeSet<u16>> {
    let mut holders: BTreeMap<u16, (i32, &str)> = BTreeMap::new();
    for (name, one) in members {
        for partition in one.owned.range(..partitions) {
            let claim = (one.generation, *name);
            let holder = holders.entry(*partition).or_insert(claim);
            if claim.0 > holder.0 {
                *holder = claim;
            }
        }
    }
    let mut claims: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
    for (partition, (_, name)) in holders {
        claims.entry(name).or_default().insert(partition);
    }
    claims
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(partitions: u16, generation: i32, owned: &[u16]) -> Subscription {
        let owned = owned.iter().copied().collect();
        Subscription { topics: vec!["t".to_owned()], partitions, generation, owned }
    }

    fn named<const N: usize>(members: [(&str, Subscription); N]) -> Subscriptions {
        members.map(|(name, one)| (name.to_owned(), one)).into()
    }

    fn check<const N: usize>(members: &Subscriptions, expected: [(&str, &[u16]); N]) {
        let expected: Shares =
            expected.map(|(name, share)| (name.to_owned(), share.iter().copied().collect())).into();
        assert_eq!(assign(members), expected);
    }

    #[test]
    fn shares_are_balanced_and_move_no_more_than_they_must() {
        check(&named([]), []);
        check(&named([("a", member(3, -1, &[]))]), [("a", &[0, 1, 2])]);
        check(
            &named([("a", member(3, -1, &[])), ("b", member(3, -1, &[]))]),
            [("a", &[0, 1]), ("b", &[2])],
        );
        // Nobody came or went.
        check(
            &named([("a", member(3, 1, &[2])), ("b", member(3, 1, &[0, 1]))]),
            [("a", &[2]), ("b", &[0, 1])],
        );
        // A third one.
        check(
            &named([
                ("a", member(5, 1, &[0, 2, 4])),
                ("b", member(5, 1, &[1, 3])),
                ("c", member(5, -1, &[])),
            ]),
            [("a", &[0, 2]), ("b", &[1, 3]), ("c", &[4])],
        );
        // One of three is gone.
        check(
            &named([("a", member(6, 4, &[0, 2])), ("b", member(6, 4, &[1, 3]))]),
            [("a", &[0, 2, 4]), ("b", &[1, 3, 5])],
        );
        // More members than partitions.
        check(
            &named([
                ("a", member(1, -1, &[])),
                ("b", member(1, 1, &[0])),
                ("c", member(1, -1, &[])),
            ]),
            [("a", &[]), ("b", &[0]), ("c", &[])],
        );
    }

    #[test]
    fn a_member_that_missed_an_assignment_claims_nothing_that_others_have() {
        check(
            &named([("a", member(4, 3, &[0, 1, 2, 3])), ("b", member(4, 4, &[0, 1]))]),
            [("a", &[2, 3]), ("b", &[0, 1])],
        );
        // Partitions that the topic does not have are nobody's.
        check(&named([("a", member(2, 3, &[0, 7]))]), [("a", &[0, 1])]);
    }

    #[test]
    fn members_of_another_topic_have_shares_of_their_own() {
        let other = Subscription { topics: vec!["other".to_owned()], ..member(1, -1, &[]) };
        check(
            &named([("a", member(2, -1, &[])), ("b", other), ("c", member(2, -1, &[]))]),
            [("a", &[0]), ("b", &[0]), ("c", &[1])],
        );
    }

    #[test]
    fn topics_of_one_partition_are_shared_out_together() {
        let both = |owned| Subscription {
            topics: vec!["t".to_owned(), "u".to_owned()],
            ..member(1, 1, owned)
        };
        check(&named([("a", both(&[0, 1]))]), [("a", &[0, 1])]);
        check(&named([("a", both(&[0, 1])), ("b", both(&[]))]), [("a", &[0]), ("b", &[1])]);
    }

    fn members() -> impl Strategy<Value = Subscriptions> {
        let one = (0..4_i32, prop::collection::btree_set(0..25_u16, 0..25));
        (1..25_u16, prop::collection::btree_map("[a-z]{1,3}", one, 1..12)).prop_map(
            |(partitions, all)| {
                let one = |(name, (generation, owned))| {
                    let topics = vec!["t".to_owned()];
                    (name, Subscription { topics, partitions, generation, owned })
                };
                all.into_iter().map(one).collect()
            },
        )
    }

    proptest! {
        #[test]
        fn every_partition_has_one_owner_and_shares_are_even(members in members()) {
            let partitions = members.values().next().expect("one at least").partitions;
            let shares = assign(&members);
            prop_assert!(shares.keys().eq(members.keys()));
            let all: Vec<u16> = shares.values().flatten().copied().collect();
            prop_assert_eq!(all.len(), usize::from(partitions), "one owner each");
            prop_assert!(all.into_iter().collect::<BTreeSet<_>>().into_iter().eq(0..partitions));
            let sizes = || shares.values().map(BTreeSet::len);
            prop_assert!(sizes().max() <= sizes().min().map(|least| least + 1));
        }

        /// Who comes anew with what it was given keeps it; a newcomer takes only what is due to
        /// it; what a leaver had is all that moves then.
        #[test]
        fn only_what_must_move_moves(members in members()) {
            let again = |shares: &Shares| -> Subscriptions {
                let one = |(name, owned): (&String, &BTreeSet<u16>)| {
                    let topics = vec!["t".to_owned()];
                    let partitions = members[name].partitions;
                    let owned = owned.clone();
                    (name.clone(), Subscription { topics, partitions, generation: 9, owned })
                };
                shares.iter().map(one).collect()
            };
            let moved = |before: &Shares, after: &Shares| {
                let lost = |(name, had): (&String, &BTreeSet<u16>)| {
                    after.get(name).map_or(0, |has| had.difference(has).count())
                };
                before.iter().map(lost).sum::<usize>()
            };
            let before = assign(&members);
            prop_assert_eq!(&assign(&again(&before)), &before);

            let partitions = members.values().next().expect("one at least").partitions;
            let mut more = again(&before);
            let newcomer = "newcomer".to_owned();
            more.insert(newcomer.clone(), member(partitions, -1, &[]));
            let after = assign(&more);
            prop_assert_eq!(moved(&before, &after), after[&newcomer].len());

            let mut fewer = again(&before);
            fewer.pop_first();
            prop_assert_eq!(moved(&before, &assign(&fewer)), 0);
        }
    }
}
