//! Places in the log, and which partition a key belongs to.

use super::BroadcastId;

/// The two topics whose records become events of streams, one for the dead letters of each, and
/// what the nodes tell each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Topic {
    /// Records for one user, keyed by the user id.
    Selected = 0,
    /// Records for a group audience or about a whole broadcast, keyed by the broadcast id.
    Group = 1,
    /// Records of `Selected` that could not be processed.
    SelectedDead = 2,
    /// Records of `Group` that could not be processed.
    GroupDead = 3,
    /// Of one partition. It has no dead letters and is no original.
    Control = 4,
}

impl Topic {
    /// What is served: cursors, rings and shards know of these only.
    pub const ALL: [Topic; 2] = [Topic::Selected, Topic::Group];
    /// In the order of `ALL`. Each has one partition.
    pub const DEAD: [Topic; 2] = [Topic::SelectedDead, Topic::GroupDead];
    /// What outlives every node, in the order of their numbers.
    pub const EVERY: [Topic; 4] =
        [Topic::Selected, Topic::Group, Topic::SelectedDead, Topic::GroupDead];
    /// What nodes share, in the order of their numbers.
    pub const SHARED: [Topic; 5] =
        [Topic::Selected, Topic::Group, Topic::SelectedDead, Topic::GroupDead, Topic::Control];
    /// What a dead-letter topic's name has behind that of the original.
    pub const DEAD_SUFFIX: &str = "-dlt";

    /// One that is served; `None` for any other number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Selected),
            1 => Some(Self::Group),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Selected => "selected",
            Self::Group => "group",
            Self::SelectedDead => "selected-dlt",
            Self::GroupDead => "group-dlt",
            Self::Control => "control",
        }
    }

    /// Whether cursors, rings and shards know of it.
    pub const fn is_served(self) -> bool {
        matches!(self, Self::Selected | Self::Group)
    }

    pub const fn is_dead(self) -> bool {
        matches!(self, Self::SelectedDead | Self::GroupDead)
    }

    /// Where its dead letters go.
    pub const fn dead(self) -> Self {
        match self {
            Self::Selected | Self::SelectedDead => Self::SelectedDead,
            Self::Group | Self::GroupDead => Self::GroupDead,
            Self::Control => Self::Control,
        }
    }

    /// Where they come from: one that is served.
    pub const fn original(self) -> Self {
        match self {
            Self::Selected | Self::SelectedDead => Self::Selected,
            Self::Group | Self::GroupDead => Self::Group,
            Self::Control => Self::Control,
        }
    }
}

/// One partition of one topic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Partition {
    pub topic: Topic,
    pub index: u16,
}

/// One record's place. Offsets are below 2^48 (`limits::cursor`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Position {
    pub partition: Partition,
    pub offset: u64,
}

/// Three bytes of the topics' ids: a log that was replaced has others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LogIdentity(pub [u8; 3]);

/// What a cursor has to know of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogShape {
    pub identity: LogIdentity,
    pub selected_partitions: u16,
    pub group_partitions: u16,
}

impl LogShape {
    pub const fn partitions(&self, topic: Topic) -> u16 {
        match topic {
            Topic::Selected => self.selected_partitions,
            Topic::Group => self.group_partitions,
            Topic::SelectedDead | Topic::GroupDead | Topic::Control => 1,
        }
    }

    /// Every partition that is served, selected first, each topic in order.
    pub fn all_partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        let shape = *self;
        Topic::ALL.into_iter().flat_map(move |topic| {
            (0..shape.partitions(topic)).map(move |index| Partition { topic, index })
        })
    }

    /// The same for dead letters.
    pub fn dead_partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        Topic::DEAD.into_iter().map(|topic| Partition { topic, index: 0 })
    }

    /// Where events of this user are.
    pub fn partition_of_user(&self, user: &str) -> u16 {
        partition_of_key(user.as_bytes(), self.selected_partitions)
    }

    /// Where an event is served: with others of its user, or of its broadcast.
    pub fn partition_of_event(&self, broadcast: BroadcastId, user: Option<&str>) -> Partition {
        match user {
            Some(user) => Partition { topic: Topic::Selected, index: self.partition_of_user(user) },
            None => {
                let key = broadcast.to_string();
                let index = partition_of_key(key.as_bytes(), self.group_partitions);
                Partition { topic: Topic::Group, index }
            }
        }
    }
}

/// Tells users of one partition apart, most of them: 16 bits of what the partitioner hashes.
pub fn mark_of_user(user: &str) -> u16 {
    (murmur2(user.as_bytes()) >> 15) as u16
}

/// Kafka's default partitioner: murmur2 of the key, sign bit cleared, modulo the partitions.
///
/// Source: `org.apache.kafka.common.utils.Utils.murmur2`, the 32-bit MurmurHash2 of Austin Appleby
/// with seed 0x9747b28c. The tests hold values that the Java client gives.
pub fn partition_of_key(key: &[u8], partitions: u16) -> u16 {
    debug_assert!(partitions > 0);
    let positive = murmur2(key) & 0x7fff_ffff;
    u16::try_from(positive % u32::from(partitions)).expect("a remainder is below its u16 divisor")
}

fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MULTIPLIER: u32 = 0x5bd1_e995;
    const SHIFT: u32 = 24;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = SEED ^ length;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        k = k.wrapping_mul(MULTIPLIER);
        k ^= k >> SHIFT;
        k = k.wrapping_mul(MULTIPLIER);
        hash = hash.wrapping_mul(MULTIPLIER) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_agrees_with_the_java_client() {
        for (text, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), hash.cast_unsigned(), "{text}");
        }
    }
}
