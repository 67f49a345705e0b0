//! Which records are repeats of one that was served before.
//!
//! A crash between publishing and noting it, or a producer's retry, puts a record into the log
//! twice. A record is a repeat if among the 4,096 offsets before it in its partition one of the
//! same event id was to be served by its own bytes. That follows from the log alone, so every node
//! that has read so far back finds the same.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::base::{LogShape, Partition, Position, Topic};
use crate::limits::log as limits;

/// The latest event ids of every partition.
#[derive(Debug)]
pub struct Repeats {
    shape: LogShape,
    windows: Vec<Window>,
}

#[derive(Debug, Default)]
struct Window {
    /// Where each event was seen last.
    latest: HashMap<u128, u64, foldhash::fast::RandomState>,
    /// The same in offset order; what `latest` has seen again since is out of date here.
    order: VecDeque<(u64, u128)>,
}

impl Repeats {
    pub fn new(shape: LogShape) -> Self {
        let windows = shape.all_partitions().map(|_| Window::default()).collect();
        Self { shape, windows }
    }

    /// Notes a record that is to be served by its own bytes, and says whether it is a repeat. Each
    /// partition in offset order.
    pub fn note(&mut self, position: Position, event: u128) -> bool {
        let Partition { topic, index } = position.partition;
        let before = match topic {
            Topic::Selected => 0,
            Topic::Group => usize::from(self.shape.selected_partitions),
        };
        let window = &mut self.windows[before + usize::from(index)];
        window.forget(position.offset.saturating_sub(limits::REPEAT_RECORDS));
        window.order.push_back((position.offset, event));
        window.latest.insert(event, position.offset).is_some()
    }
}

impl Window {
    /// Drops what lies before this offset.
    fn forget(&mut self, first: u64) {
        while let Some(&(offset, event)) = self.order.front().filter(|(offset, _)| *offset < first)
        {
            self.order.pop_front();
            if self.latest.get(&event) == Some(&offset) {
                self.latest.remove(&event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::LogIdentity;

    const SHAPE: LogShape =
        LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 2, group_partitions: 3 };

    fn at(topic: Topic, index: u16, offset: u64) -> Position {
        Position { partition: Partition { topic, index }, offset }
    }

    #[test]
    fn a_repeat_is_of_the_same_partition_and_not_long_ago() {
        let mut repeats = Repeats::new(SHAPE);
        let window = limits::REPEAT_RECORDS;
        for (topic, index, offset, event, is_repeat) in [
            (Topic::Group, 2, 10, 7, false),
            (Topic::Group, 1, 11, 7, false),
            (Topic::Selected, 1, 11, 7, false),
            (Topic::Group, 2, 11, 8, false),
            (Topic::Group, 2, 12, 7, true),
            // Measured from the latest, which was a repeat itself.
            (Topic::Group, 2, 12 + window, 7, true),
            (Topic::Group, 2, 11 + window + 1, 8, false),
            (Topic::Group, 2, 13 + window + window, 7, false),
        ] {
            let position = at(topic, index, offset);
            assert_eq!(repeats.note(position, event), is_repeat, "{position:?} {event}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut repeats = Repeats::new(SHAPE);
        for offset in 0..3 * limits::REPEAT_RECORDS {
            // Every third record is a repeat.
            let event = u128::from(offset - u64::from(offset % 3 == 2));
            assert_eq!(repeats.note(at(Topic::Group, 0, offset), event), offset % 3 == 2);
        }
        let most = repeats.windows.iter().map(|window| window.order.len()).max();
        assert_eq!(most, Some(limits::REPEAT_RECORDS as usize + 1));
        assert!(repeats.windows.iter().all(|window| window.latest.len() <= window.order.len()));
    }
}
