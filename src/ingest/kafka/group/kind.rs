//! What each group shares out.
//!
//! Members speak of partitions by slots: those of the group's first topic, then those of the next.

use crate::base::{Partition, Topic};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Selected = 0,
    Group = 1,
    DeadLetters = 2,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Selected, Self::Group, Self::DeadLetters];

    pub fn of(topic: Topic) -> Self {
        match topic {
            Topic::Selected => Self::Selected,
            Topic::Group => Self::Group,
            Topic::SelectedDead | Topic::GroupDead => Self::DeadLetters,
            Topic::Control => unreachable!("nobody owns what all nodes read"),
        }
    }

    pub fn topics(self) -> &'static [Topic] {
        match self {
            Self::Selected => &[Topic::Selected],
            Self::Group => &[Topic::Group],
            Self::DeadLetters => &Topic::DEAD,
        }
    }

    /// `each`: partitions of each topic.
    pub fn slot(self, partition: Partition, each: u16) -> u16 {
        let before = self.topics().iter().take_while(|topic| **topic != partition.topic).count();
        slot(before, partition.index, each).expect("a group has few partitions")
    }

    /// `None` for a slot that there is not.
    pub fn partition(self, slot: u16, each: u16) -> Option<Partition> {
        let topic = *self.topics().get(usize::from(slot.checked_div(each)?))?;
        Some(Partition { topic, index: slot % each })
    }
}

/// The slot of a partition of the topic at that place.
pub(super) fn slot(topic_at: usize, index: u16, each: u16) -> Option<u16> {
    let slot = topic_at.checked_mul(usize::from(each))?.checked_add(usize::from(index))?;
    u16::try_from(slot).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_partitions_stand_for_each_other() {
        for (kind, each, count) in
            [(Kind::Selected, 5, 5), (Kind::Group, 29, 29), (Kind::DeadLetters, 1, 2)]
        {
            for slot in 0..count {
                let partition = kind.partition(slot, each).expect("one of its own");
                assert_eq!(Kind::of(partition.topic), kind);
                assert_eq!(kind.slot(partition, each), slot);
            }
            assert_eq!(kind.partition(count, each), None);
        }
        assert_eq!(Kind::Selected.partition(0, 0), None);
    }
}
