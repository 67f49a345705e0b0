//! The ring: the latest frames of a shard, in the shard's own order.
//!
//! Events have a sequence number that never repeats, and each has its positions, so that a cursor
//! finds its place and every `id` is exact. A record costs no allocation here: the frame that is
//! sent is made when the first stream wants it. Bounded in events and in bytes; what falls off the
//! end is counted by the caller through `first`.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::vector::{History, Served, Vector, VectorRef};
use crate::base::{LogShape, Partition, Topic};
use crate::limits::shard::PAST_FRAMES_MAX;
use crate::wire::archive::{AudienceRef, SharedEvent};
use crate::wire::cursor::{CursorParts, UserMark};

/// What a ring may hold. Both are at least one frame's worth: the newest frame always stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingLimits {
    pub frames: usize,
    pub bytes: usize,
}

/// An event with its `id` lines: what streams are sent. Outlives its place in the ring while a
/// stream is in the middle of it.
#[derive(Debug)]
pub struct Frame {
    event: SharedEvent,
    /// The `id:` lines for each selected partition, all of one length.
    id_lines: Box<[u8]>,
    /// Bytes of one line.
    line_bytes: usize,
    /// Partition of the first line.
    first: u16,
}

impl Frame {
    /// A targeted event needs the line of one partition, a group event those of all.
    fn new(event: &SharedEvent, after: VectorRef<'_>, shape: &LogShape) -> Self {
        let partitions = match (event.audience(), event.partition()) {
            (AudienceRef::User(_), partition) if partition.topic == Topic::Selected => {
                partition.index..partition.index + 1
            }
            _ => 0..shape.selected_partitions,
        };
        let offset_max = after.offset_max();
        let first = partitions.start;
        let count = partitions.len();
        let mut text = Vec::new();
        for own_partition in partitions {
            let parts = CursorParts {
                shape: *shape,
                at: event.appended_at(),
                backlog: false,
                user: UserMark::default(),
                own_partition,
                own: after.selected(own_partition),
                group: after.group(),
                offset_max,
            };
            if text.is_empty() {
                text.reserve_exact((parts.chars() + "id: \n".len()) * count);
            }
            parts.write_id_line(&mut text);
        }
        let line_bytes = text.len() / count;
        Self { event: event.clone(), id_lines: text.into(), line_bytes, first }
    }

    pub fn event(&self) -> &SharedEvent {
        &self.event
    }

    /// The line `id: CURSOR\n` for users of this selected partition, but for whose it is.
    pub fn id_line(&self, own_partition: u16) -> &[u8] {
        debug_assert!(own_partition >= self.first);
        let start = usize::from(own_partition - self.first) * self.line_bytes;
        &self.id_lines[start..start + self.line_bytes]
    }
}

#[derive(Debug)]
struct Entry {
    event: SharedEvent,
    /// Made when the first stream wants it.
    frame: OnceCell<Rc<Frame>>,
}

impl Entry {
    /// Bytes that the entry holds, with its frame once that is made.
    fn bytes(&self, shape: &LogShape) -> usize {
        let partitions = usize::from(shape.group_partitions + shape.selected_partitions);
        let id_line = "id: \n".len() + crate::limits::cursor::HEADER_BYTES * 2;
        let ids = usize::from(shape.selected_partitions) * (id_line + partitions * 8);
        self.event.bytes() + size_of::<Self>() + size_of::<Frame>() + partitions * 8 + ids
    }
}

#[derive(Debug)]
pub struct Ring {
    shape: LogShape,
    limits: RingLimits,
    entries: VecDeque<Entry>,
    /// Sequence number of the front entry.
    first: u64,
    history: History,
    /// Where the events stood that it has lost last.
    past: VecDeque<Partition>,
    bytes: usize,
}

impl Ring {
    /// Empty, standing at `base`.
    pub fn new(shape: LogShape, limits: RingLimits, base: &Vector) -> Self {
        let history = History::new(0, base);
        let (entries, past) = (VecDeque::new(), VecDeque::new());
        Self { shape, limits, entries, first: 0, history, past, bytes: 0 }
    }

    /// The positions with the next event included, which `push` will append.
    pub fn push_positions(&mut self, after: &Vector) {
        self.history.push(after);
    }

    /// Appends an event whose positions are here already.
    pub fn push(&mut self, event: SharedEvent) {
        let entry = Entry { event, frame: OnceCell::new() };
        self.bytes += entry.bytes(&self.shape);
        self.entries.push_back(entry);
        while self.entries.len() > 1
            && (self.entries.len() > self.limits.frames || self.bytes > self.limits.bytes)
        {
            self.drop_first();
        }
    }

    /// Sets the shape and the base of an empty ring: nothing before these positions will be served
    /// from it.
    pub fn restart(&mut self, shape: LogShape, base: &Vector) {
        debug_assert!(self.entries.is_empty() && self.first == 0);
        *self = Self::new(shape, self.limits, base);
    }

    /// Forgets all events: nothing before these positions will be served from it any more.
    pub fn clear(&mut self, base: &Vector) {
        self.first = self.next();
        self.entries.clear();
        self.bytes = 0;
        self.past.clear();
        self.history = History::new(self.first, base);
    }

    /// Sequence number of the oldest event.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Sequence number that the next event will get: where a stream stands that keeps up.
    pub fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Positions before the oldest event: what nothing here can replay.
    pub fn base(&self) -> VectorRef<'_> {
        self.history.before(self.first)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn event(&self, sequence: u64) -> Option<&SharedEvent> {
        self.entry(sequence).map(|entry| &entry.event)
    }

    /// What streams are sent of this event.
    pub fn frame(&self, sequence: u64) -> Option<&Rc<Frame>> {
        let entry = self.entry(sequence)?;
        let make = || Rc::new(Frame::new(&entry.event, self.after(sequence), &self.shape));
        Some(entry.frame.get_or_init(make))
    }

    /// The first frame that a stream may need that has been served up to here. The vectors of the
    /// events rise component by component, so "all before it is covered" holds for a first part
    /// of the ring and for nothing behind it.
    pub fn place_of(&self, served: &Served) -> u64 {
        let (mut covered, mut other) = (self.first, self.next());
        while covered < other {
            let middle = covered + (other - covered) / 2;
            if served.covers_all(self.after(middle)) {
                covered = middle + 1;
            } else {
                other = middle;
            }
        }
        covered
    }

    /// Positions before this event, which is in the ring or the next one.
    pub fn before(&self, sequence: u64) -> VectorRef<'_> {
        self.history.before(sequence)
    }

    /// What had been read when this event came, which is in the ring, or not any more; `None`: too
    /// long ago. Whoever stands before it may have been told so much.
    pub fn read_before(&self, sequence: u64) -> Option<Vector> {
        let partition = match self.event(sequence) {
            Some(event) => event.partition(),
            None => {
                let back = usize::try_from(self.first.checked_sub(sequence)?).ok()?;
                *self.past.get(self.past.len().checked_sub(back)?)?
            }
        };
        let mut vector = self.history.long_before(sequence + 1)?;
        vector.step_back(partition);
        Some(vector)
    }

    /// Positions with this event of the ring included.
    pub fn after(&self, sequence: u64) -> VectorRef<'_> {
        self.history.before(sequence + 1)
    }

    fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(sequence.checked_sub(self.first)?).ok()?)
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes(&self.shape);
            self.first += 1;
            self.history.forget(self.first);
            if self.past.len() == PAST_FRAMES_MAX {
                self.past.pop_front();
            }
            self.past.push_back(entry.event.partition());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BroadcastId, EpochMillis, LogIdentity, Position};
    use crate::wire::archive::{Archiver, Audience, Event, EventKind};

    const SHAPE: LogShape =
        LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 1, group_partitions: 2 };

    fn event(position: Position) -> SharedEvent {
        Archiver::default().write(Event {
            position,
            appended_at: EpochMillis(0),
            event_id: 0,
            attempt: 0,
            broadcast: BroadcastId::new(42).expect("small"),
            expires_at: None,
            kind: EventKind::Message,
            is_passing: false,
            audience: Audience::Everyone,
            body: b"event: MESSAGE\n\n",
        })
    }

    #[test]
    fn what_had_been_read_when_an_event_came_is_known_long_after() {
        let mut vector = Vector::new(&SHAPE);
        let mut ring = Ring::new(SHAPE, RingLimits { frames: 4, bytes: 1 << 20 }, &vector);
        let mut read = Vec::new();
        for number in 0..PAST_FRAMES_MAX as u64 + 1_000 {
            // Records for other shards come between, in either partition.
            let partition = Partition { topic: Topic::Group, index: (number % 2) as u16 };
            let other = Partition { topic: Topic::Group, index: (number / 2 % 2) as u16 };
            vector.advance(other, vector.next(other) + number % 3);
            read.push(vector.clone());
            let offset = vector.next(partition);
            vector.advance(partition, offset + 1);
            ring.push_positions(&vector);
            ring.push(event(Position { partition, offset }));
        }
        let next = ring.next();
        for back in [1, 4, 5, 6, 70, 1_000, 10_000] {
            let found = ring.read_before(next - back);
            assert_eq!(found.as_ref(), read.get((next - back) as usize), "{back} back");
        }
        assert_eq!(ring.read_before(next), None, "nothing stands there");
        assert_eq!(ring.read_before(10), None, "too long ago");
    }
}
