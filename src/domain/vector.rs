//! Positions: how far every partition has been read.
//!
//! Positions only rise. One vector stands beside the shard's ring, which keeps what it was before
//! every frame.

use std::collections::VecDeque;

use crate::base::{LogShape, Partition, Position, Topic, UserId};
use crate::limits::shard as limits;
use crate::wire::cursor::Cursor;

/// The next offset of every partition, group topic first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vector {
    offsets: Box<[u64]>,
    groups: u16,
}

impl Vector {
    /// All at zero.
    pub fn new(shape: &LogShape) -> Self {
        let all = usize::from(shape.group_partitions) + usize::from(shape.selected_partitions);
        Self { offsets: vec![0; all].into(), groups: shape.group_partitions }
    }

    pub fn next(&self, partition: Partition) -> u64 {
        self.offsets[self.slot(partition)]
    }

    /// Raises one component. A position never falls: a lower one changes nothing.
    pub fn advance(&mut self, partition: Partition, next: u64) {
        let slot = self.slot(partition);
        self.offsets[slot] = self.offsets[slot].max(next);
    }

    /// To before the last record of a partition.
    pub fn step_back(&mut self, partition: Partition) {
        let slot = self.slot(partition);
        self.offsets[slot] = self.offsets[slot].saturating_sub(1);
    }

    pub fn view(&self) -> VectorRef<'_> {
        VectorRef { offsets: &self.offsets, groups: self.groups }
    }

    fn slot(&self, partition: Partition) -> usize {
        match partition.topic {
            Topic::Group => {
                debug_assert!(partition.index < self.groups);
                usize::from(partition.index)
            }
            Topic::Selected => usize::from(self.groups) + usize::from(partition.index),
            Topic::SelectedDead | Topic::GroupDead | Topic::Control => {
                unreachable!("only two topics are served")
            }
        }
    }
}

/// A vector, wherever its offsets stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VectorRef<'a> {
    offsets: &'a [u64],
    groups: u16,
}

impl<'a> VectorRef<'a> {
    pub fn group(self) -> &'a [u64] {
        &self.offsets[..usize::from(self.groups)]
    }

    pub fn next(self, partition: Partition) -> u64 {
        match partition.topic {
            Topic::Group => self.offsets[usize::from(partition.index)],
            Topic::Selected => self.selected(partition.index),
            Topic::SelectedDead | Topic::GroupDead | Topic::Control => {
                unreachable!("only two topics are served")
            }
        }
    }

    pub fn selected(self, partition: u16) -> u64 {
        self.offsets[usize::from(self.groups) + usize::from(partition)]
    }

    /// The largest offset of all.
    pub fn offset_max(self) -> u64 {
        self.offsets.iter().copied().max().unwrap_or(0)
    }
}

/// The vectors before every frame of a ring, by the frames' sequence numbers: each is appended once
/// and read in place, in blocks, so that a record costs no allocation here. Of frames that the ring
/// has lost not long ago, it is remembered what changed from one to the next.
#[derive(Debug)]
pub struct History {
    width: usize,
    groups: u16,
    blocks: VecDeque<Vec<u64>>,
    /// Sequence number of the first vector of the front block.
    first: u64,
    /// The blocks before that one.
    past: VecDeque<PastBlock>,
    /// Changes in all of them.
    past_changes: usize,
}

const BLOCK: u64 = 64;

/// What a block is remembered by.
#[derive(Debug)]
struct PastBlock {
    first: Box<[u64]>,
    changes: Vec<Change>,
}

/// From the vector of this place in the block on, this component is that.
#[derive(Clone, Copy, Debug)]
struct Change {
    place: u16,
    slot: u16,
    next: u64,
}

impl PastBlock {
    fn of(vectors: &[u64], width: usize) -> Self {
        let mut changes = Vec::new();
        let pairs = vectors.chunks_exact(width).zip(vectors[width..].chunks_exact(width));
        for (place, (before, after)) in (1..).zip(pairs) {
            for (slot, (before, next)) in (0..).zip(before.iter().zip(after)) {
                if before != next {
                    changes.push(Change { place, slot, next: *next });
                }
            }
        }
        changes.shrink_to_fit();
        Self { first: vectors[..width].into(), changes }
    }

    fn vector(&self, place: u64) -> Box<[u64]> {
        let mut offsets = self.first.clone();
        for change in self.changes.iter().take_while(|change| u64::from(change.place) <= place) {
            offsets[usize::from(change.slot)] = change.next;
        }
        offsets
    }
}

impl History {
    /// Holds one vector: that before the frame `first`.
    pub fn new(first: u64, base: &Vector) -> Self {
        let width = base.offsets.len();
        let groups = base.groups;
        let (blocks, past) = (VecDeque::new(), VecDeque::new());
        let mut history = Self { width, groups, blocks, first, past, past_changes: 0 };
        history.push(base);
        history
    }

    /// Appends the vector before the next frame.
    pub fn push(&mut self, vector: &Vector) {
        debug_assert_eq!(vector.offsets.len(), self.width);
        let full = self.width * BLOCK as usize;
        match self.blocks.back_mut().filter(|block| block.len() < full) {
            Some(block) => block.extend_from_slice(&vector.offsets),
            None => {
                let mut block = Vec::with_capacity(full);
                block.extend_from_slice(&vector.offsets);
                self.blocks.push_back(block);
            }
        }
    }

    /// The vector before the frame of this sequence number, which is in the ring or the next one.
    pub fn before(&self, sequence: u64) -> VectorRef<'_> {
        let place = sequence - self.first;
        let start = (place % BLOCK) as usize * self.width;
        let offsets = &self.blocks[(place / BLOCK) as usize][start..start + self.width];
        VectorRef { offsets, groups: self.groups }
    }

    /// The vector before a frame that the ring has lost, or has; `None`: it is too long ago.
    pub fn long_before(&self, sequence: u64) -> Option<Vector> {
        let offsets = if sequence >= self.first {
            self.before(sequence).offsets.into()
        } else {
            let back = (self.first - sequence - 1) / BLOCK + 1;
            let index = self.past.len().checked_sub(usize::try_from(back).ok()?)?;
            self.past[index].vector(back * BLOCK - (self.first - sequence))
        };
        Some(Vector { offsets, groups: self.groups })
    }

    /// No frame before this one is in the ring any more.
    pub fn forget(&mut self, sequence: u64) {
        while self.first + BLOCK <= sequence {
            let Some(block) = self.blocks.pop_front() else { return };
            self.first += BLOCK;
            let block = PastBlock::of(&block, self.width);
            self.past_changes += block.changes.len();
            self.past.push_back(block);
        }
        while self.past.len() > limits::PAST_FRAMES_MAX / BLOCK as usize
            || self.past_changes > limits::PAST_CHANGES_MAX
        {
            let Some(block) = self.past.pop_front() else { return };
            self.past_changes -= block.changes.len();
        }
    }
}

/// What one user has been served: the part of a vector that a cursor carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    pub own_partition: u16,
    pub own: u64,
    pub group: Box<[u64]>,
}

impl From<&Cursor> for Served {
    fn from(cursor: &Cursor) -> Self {
        let (own_partition, own) = (cursor.own_partition, cursor.own);
        Self { own_partition, own, group: cursor.group.clone() }
    }
}

impl Served {
    /// What a stream of this partition that stands at `vector` has been served.
    pub fn of(vector: VectorRef<'_>, own_partition: u16) -> Self {
        Self { own_partition, own: vector.selected(own_partition), group: vector.group().into() }
    }

    /// Nothing, of a log of this shape.
    pub fn nothing(shape: &LogShape, user: &UserId) -> Self {
        let own_partition = shape.partition_of_user(user.as_str());
        let group = vec![0; usize::from(shape.group_partitions)].into();
        Self { own_partition, own: 0, group }
    }

    /// Whether the record at this place lies before it.
    pub fn covers(&self, position: Position) -> bool {
        match position.partition.topic {
            Topic::Group => {
                let next = self.group.get(usize::from(position.partition.index));
                next.is_some_and(|next| position.offset < *next)
            }
            Topic::Selected => {
                position.partition.index == self.own_partition && position.offset < self.own
            }
            Topic::SelectedDead | Topic::GroupDead | Topic::Control => false,
        }
    }

    /// Whether everything of a partition below `next` lies before it.
    pub fn covers_up_to(&self, partition: Partition, next: u64) -> bool {
        next.checked_sub(1).is_none_or(|offset| self.covers(Position { partition, offset }))
    }

    /// Whether nothing of what `vector` has read lies behind it, for this user.
    pub fn covers_all(&self, vector: VectorRef<'_>) -> bool {
        self.own >= vector.selected(self.own_partition)
            && self.group.iter().zip(vector.group()).all(|(served, next)| served >= next)
    }

    /// Whether `vector` has read everything that lies before it.
    pub fn is_within(&self, vector: VectorRef<'_>) -> bool {
        self.own <= vector.selected(self.own_partition)
            && self.group.iter().zip(vector.group()).all(|(served, next)| served <= next)
    }

    /// Raises the component of a partition to at least `next`. That of another user's is none of
    /// its own.
    pub fn raise(&mut self, partition: Partition, next: u64) {
        let served = match partition.topic {
            Topic::Group => self.group.get_mut(usize::from(partition.index)),
            Topic::Selected => (partition.index == self.own_partition).then_some(&mut self.own),
            Topic::SelectedDead | Topic::GroupDead | Topic::Control => None,
        };
        if let Some(served) = served {
            *served = (*served).max(next);
        }
    }

    /// The next offset of each partition that it speaks of.
    pub fn places(&self) -> impl Iterator<Item = (Partition, u64)> {
        let own = Partition { topic: Topic::Selected, index: self.own_partition };
        let groups = (0..).zip(&self.group);
        let groups = groups.map(|(index, next)| (Partition { topic: Topic::Group, index }, *next));
        std::iter::once((own, self.own)).chain(groups)
    }

    /// Raises every component to at least that of `vector`.
    pub fn raise_to(&mut self, vector: VectorRef<'_>) {
        self.own = self.own.max(vector.selected(self.own_partition));
        for (served, next) in self.group.iter_mut().zip(vector.group()) {
            *served = (*served).max(*next);
        }
    }

    pub fn offset_max(&self) -> u64 {
        self.group.iter().copied().max().unwrap_or(0).max(self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::LogIdentity;

    const SHAPE: LogShape =
        LogShape { identity: LogIdentity([0; 3]), selected_partitions: 3, group_partitions: 2 };

    fn group(index: u16) -> Partition {
        Partition { topic: Topic::Group, index }
    }

    #[test]
    fn positions_never_fall() {
        let mut vector = Vector::new(&SHAPE);
        vector.advance(group(1), 9);
        vector.advance(group(1), 4);
        assert_eq!((vector.next(group(0)), vector.next(group(1))), (0, 9));
    }

    #[test]
    fn the_history_has_the_vector_before_every_frame_of_the_ring() {
        let mut vector = Vector::new(&SHAPE);
        let mut history = History::new(0, &vector);
        for sequence in 1..=1_000 {
            vector.advance(group((sequence % 2) as u16), sequence);
            history.push(&vector);
            // The ring holds a hundred frames.
            let first = sequence.saturating_sub(100);
            history.forget(first);
            for kept in first..=sequence {
                let previous = kept.saturating_sub(1);
                let expected = if kept % 2 == 0 { [kept, previous] } else { [previous, kept] };
                assert_eq!(history.before(kept).group(), expected, "{kept} after {sequence}");
            }
            assert!(history.blocks.len() as u64 <= 2 + 100 / BLOCK, "{}", history.blocks.len());
        }
    }

    #[test]
    fn the_history_remembers_vectors_of_frames_that_the_ring_has_lost() {
        let mut vector = Vector::new(&SHAPE);
        let mut history = History::new(7, &vector);
        let mut all = vec![vector.clone()];
        for step in 0..3 * limits::PAST_FRAMES_MAX as u64 {
            // Often one component rises, at times none or all of them.
            let slots = if step % 97 == 0 { 0..2 } else { 0..u16::from(step % 5 != 0) };
            slots.for_each(|slot| vector.advance(group(slot), step));
            history.push(&vector);
            all.push(vector.clone());
            // The ring holds ten frames.
            history.forget((all.len() as u64 + 6).saturating_sub(10).max(7));
            if !step.is_multiple_of(1_009) {
                continue;
            }
            for back in [0, 5, 10, 11, 63, 64, 65, 127, 128, 129, 1_000, 50_000] {
                let Some(place) = (all.len() - 1).checked_sub(back) else { break };
                let sequence = 7 + place as u64;
                assert_eq!(history.long_before(sequence).as_ref(), all.get(place), "{back}");
            }
        }
        assert_eq!(history.long_before(7), None, "that is too long ago");
        assert!(history.past.len() as u64 * BLOCK <= limits::PAST_FRAMES_MAX as u64);
        for step in 0..2 * limits::PAST_CHANGES_MAX as u64 {
            (0..2).for_each(|slot| vector.advance(group(slot), u64::MAX / 2 + step));
            history.push(&vector);
            history.forget(7 + all.len() as u64 + step - 10);
        }
        assert!(history.past_changes <= limits::PAST_CHANGES_MAX);
    }

    #[test]
    fn a_user_is_concerned_by_all_group_partitions_and_one_selected() {
        let mut vector = Vector::new(&SHAPE);
        vector.advance(group(0), 5);
        let served = Served::of(vector.view(), 2);
        let other = Partition { topic: Topic::Selected, index: 1 };
        vector.advance(other, 7);
        assert!(
            served.covers_all(vector.view()),
            "another partition's targeted events are not his"
        );
        assert!(served.covers(Position { partition: group(0), offset: 4 }));
        assert!(!served.covers(Position { partition: group(0), offset: 5 }));
        assert!(!served.covers(Position { partition: other, offset: 0 }));
        vector.advance(Partition { topic: Topic::Selected, index: 2 }, 1);
        assert!(!served.covers_all(vector.view()));
        assert!(served.is_within(vector.view()));
    }
}
