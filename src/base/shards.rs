//! Which shard owns what: a rule that every room of a node follows, and no state.

use super::log::{LogShape, Partition, partition_of_key};

/// How many shards a node has, at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sharding {
    shards: u16,
}

impl Sharding {
    /// `None` for no shards.
    pub const fn new(shards: u16) -> Option<Self> {
        if shards == 0 { None } else { Some(Self { shards }) }
    }

    pub const fn count(self) -> u16 {
        self.shards
    }

    /// Who decodes the records of a partition.
    pub fn of_partition(self, partition: Partition, shape: &LogShape) -> u16 {
        let topic = usize::from(partition.topic as u8);
        let number = topic * usize::from(shape.partitions(partition.topic));
        ((number + usize::from(partition.index)) % usize::from(self.shards)) as u16
    }

    /// Who holds the streams of a user. The partitioner's hash: where the number of shards divides
    /// that of partitions, a user's own events are decoded where he is.
    pub fn of_user(self, user: &str) -> u16 {
        partition_of_key(user.as_bytes(), self.shards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LogIdentity, Topic};

    const SHAPE: LogShape =
        LogShape { identity: LogIdentity([0; 3]), selected_partitions: 10, group_partitions: 10 };

    #[test]
    fn partitions_and_users_are_spread_over_all_shards() {
        for shards in [1, 2, 3, 5, 7] {
            let sharding = Sharding::new(shards).expect("some");
            let mut partitions = vec![0; usize::from(shards)];
            let mut users = partitions.clone();
            for partition in SHAPE.all_partitions() {
                partitions[usize::from(sharding.of_partition(partition, &SHAPE))] += 1;
            }
            for number in 0..10_000 {
                users[usize::from(sharding.of_user(&format!("user-{number}")))] += 1;
            }
            let even = 20 / i32::from(shards);
            assert!(partitions.iter().all(|count| [even, even + 1].contains(count)));
            let even = 10_000 / i32::from(shards);
            assert!(users.iter().all(|count| (even * 9 / 10..even * 11 / 10).contains(count)));
        }
        assert_eq!(Sharding::new(0), None);
    }

    #[test]
    fn own_events_stay_on_their_shard_where_shards_divide_partitions() {
        for shards in [1, 2, 5, 10] {
            let sharding = Sharding::new(shards).expect("some");
            for number in 0..1_000 {
                let user = format!("user-{number}");
                let index = SHAPE.partition_of_user(&user);
                let partition = Partition { topic: Topic::Selected, index };
                assert_eq!(sharding.of_user(&user), sharding.of_partition(partition, &SHAPE));
            }
        }
    }
}
