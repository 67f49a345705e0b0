//! Which records are repeats of one that was served before.
//!
//! A crash between publishing and noting it, or a producer's retry, puts a record into the log
//! twice. A record is a repeat if among the 4,096 offsets before it in its partition one of the
//! same event id was to be served by its own bytes. That follows from the log alone, so every node
//! that has read so far back finds the same.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::base::{LogShape, Partition, Position, Topic};
use crate::limits::log as limits;

/// The latest event ids of every partition.
#[derive(Debug)]
pub struct Repeats {
    shape: LogShape,
    windows: Vec<Window>,
    hasher: RandomState,
}

/// Small, because every record looks into its own: 16 bytes for the id, 8 for its offset, and 2 for
/// its place with a byte of its hash.
#[derive(Debug, Default)]
struct Window {
    /// What was seen, in offset order.
    seen: VecDeque<Seen>,
    /// How many were seen before the front of `seen`.
    forgotten: u64,
    /// The low bits of each event's number, counted from the first that was ever seen. An event
    /// that was seen again has its latest number here.
    latest: HashTable<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    offset: u64,
    /// As bytes, which need no alignment.
    event: [u8; 16],
}

const _: () = assert!(size_of::<Seen>() == 24);

// The numbers of a window differ in their low bits.
const _: () = assert!(limits::REPEAT_RECORDS < u16::MAX as u64);

impl Repeats {
    pub fn new(shape: LogShape) -> Self {
        let windows = shape.all_partitions().map(|_| Window::default()).collect();
        Self { shape, windows, hasher: RandomState::default() }
    }

    /// Notes a record that is to be served by its own bytes, and says whether it is a repeat. Each
    /// partition in offset order.
    pub fn note(&mut self, position: Position, event: u128) -> bool {
        let Partition { topic, index } = position.partition;
        let before = match topic {
            Topic::Selected => 0,
            Topic::Group => usize::from(self.shape.selected_partitions),
            Topic::SelectedDead | Topic::GroupDead | Topic::Control => {
                unreachable!("only two topics are served")
            }
        };
        let window = &mut self.windows[before + usize::from(index)];
        window.forget(position.offset.saturating_sub(limits::REPEAT_RECORDS), &self.hasher);
        window.note(Seen { offset: position.offset, event: event.to_ne_bytes() }, &self.hasher)
    }
}

impl Window {
    fn note(&mut self, new: Seen, hasher: &RandomState) -> bool {
        let Self { seen, forgotten, latest } = self;
        let number = (*forgotten + seen.len() as u64) as u16;
        let event_of = |number: u16| event_of(seen, *forgotten, number);
        let entry = latest.entry(
            hasher.hash_one(new.event),
            |number| event_of(*number) == Some(new.event),
            |number| hasher.hash_one(event_of(*number).unwrap_or_default()),
        );
        let is_repeat = match entry {
            Entry::Occupied(mut known) => {
                *known.get_mut() = number;
                true
            }
            Entry::Vacant(place) => {
                place.insert(number);
                false
            }
        };
        seen.push_back(new);
        is_repeat
    }

    /// Drops what lies before this offset.
    fn forget(&mut self, first: u64, hasher: &RandomState) {
        while let Some(old) = self.seen.front().copied().filter(|seen| seen.offset < first) {
            let number = self.forgotten as u16;
            let hash = hasher.hash_one(old.event);
            if let Ok(entry) = self.latest.find_entry(hash, |known| *known == number) {
                entry.remove();
            }
            self.seen.pop_front();
            self.forgotten += 1;
        }
    }
}

/// The event of that number, from its low bits.
fn event_of(seen: &VecDeque<Seen>, forgotten: u64, number: u16) -> Option<[u8; 16]> {
    let place = number.wrapping_sub(forgotten as u16);
    seen.get(usize::from(place)).map(|seen| seen.event)
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
        // More than the numbers of a window have bits for.
        for offset in 0..20 * limits::REPEAT_RECORDS {
            // Every third record is a repeat.
            let event = u128::from(offset - u64::from(offset % 3 == 2));
            assert_eq!(repeats.note(at(Topic::Group, 0, offset), event), offset % 3 == 2);
        }
        let most = repeats.windows.iter().map(|window| window.seen.len()).max();
        assert_eq!(most, Some(limits::REPEAT_RECORDS as usize + 1));
        assert!(repeats.windows.iter().all(|window| window.latest.len() <= window.seen.len()));
    }
}
