//! The ring: the latest frames of a shard, in the shard's own order.
//!
//! Frames have a sequence number that never repeats. Each one keeps the vector of positions after
//! it, so that a cursor finds its place and every `id` is exact. Bounded in frames and in bytes;
//! what falls off the end is counted by the caller through `first`.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::vector::{Served, Vector};
use crate::base::{LogShape, Topic};
use crate::wire::archive::{AudienceRef, SharedEvent};
use crate::wire::cursor::CursorParts;

/// What a ring may hold. Both are at least one frame's worth: the newest frame always stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingLimits {
    pub frames: usize,
    pub bytes: usize,
}

/// One event as this shard serves it.
#[derive(Debug)]
pub struct Frame {
    event: SharedEvent,
    /// Positions with this event included.
    after: Vector,
    /// The `id:` lines for each selected partition, all of one length, made when first needed.
    ids: OnceCell<IdLines>,
}

#[derive(Debug)]
struct IdLines {
    text: Box<[u8]>,
    /// Bytes of one line.
    line_bytes: usize,
    /// Partition of the first line.
    first: u16,
}

impl Frame {
    pub fn event(&self) -> &SharedEvent {
        &self.event
    }

    pub fn after(&self) -> &Vector {
        &self.after
    }

    /// The line `id: CURSOR\n` for users of this selected partition.
    pub fn id_line(&self, shape: &LogShape, own_partition: u16) -> &[u8] {
        let lines = self.ids.get_or_init(|| self.encode_ids(shape));
        debug_assert!(own_partition >= lines.first);
        let start = usize::from(own_partition - lines.first) * lines.line_bytes;
        &lines.text[start..start + lines.line_bytes]
    }

    /// A targeted event needs the line of one partition, a group event those of all.
    fn encode_ids(&self, shape: &LogShape) -> IdLines {
        let partitions = match (self.event.audience(), self.event.partition()) {
            (AudienceRef::User(_), partition) if partition.topic == Topic::Selected => {
                partition.index..partition.index + 1
            }
            _ => 0..shape.selected_partitions,
        };
        let offset_max = self.after.offset_max();
        let first = partitions.start;
        let count = partitions.len();
        let mut text = Vec::new();
        for own_partition in partitions {
            let parts = CursorParts {
                shape: *shape,
                at: self.event.appended_at(),
                backlog: false,
                own_partition,
                own: self.after.selected(own_partition),
                group: self.after.group(),
                offset_max,
            };
            if text.is_empty() {
                text.reserve_exact((parts.chars() + "id: \n".len()) * count);
            }
            parts.write_id_line(&mut text);
        }
        IdLines { line_bytes: text.len() / count, text: text.into(), first }
    }

    /// Bytes that the frame holds, with its id lines once they are made.
    fn bytes(&self, shape: &LogShape) -> usize {
        let partitions = usize::from(shape.group_partitions + shape.selected_partitions);
        let id_line = "id: \n".len() + crate::limits::cursor::HEADER_BYTES * 2;
        let ids = usize::from(shape.selected_partitions) * (id_line + partitions * 8);
        self.event.bytes() + size_of::<Self>() + partitions * 8 + ids
    }
}

#[derive(Debug)]
pub struct Ring {
    shape: LogShape,
    limits: RingLimits,
    frames: VecDeque<Rc<Frame>>,
    /// Sequence number of the front frame.
    first: u64,
    /// Positions before the front frame: what no frame here can replay.
    base: Vector,
    bytes: usize,
}

impl Ring {
    /// Empty, standing at `base`.
    pub fn new(shape: LogShape, limits: RingLimits, base: Vector) -> Self {
        Self { shape, limits, frames: VecDeque::new(), first: 0, base, bytes: 0 }
    }

    /// Appends an event; returns its sequence number.
    pub fn push(&mut self, event: SharedEvent, after: Vector) -> u64 {
        let frame = Frame { event, after, ids: OnceCell::new() };
        self.bytes += frame.bytes(&self.shape);
        self.frames.push_back(Rc::new(frame));
        while self.frames.len() > 1
            && (self.frames.len() > self.limits.frames || self.bytes > self.limits.bytes)
        {
            self.drop_first();
        }
        self.next() - 1
    }

    /// Sets the shape and the base of an empty ring: nothing before these positions will be served
    /// from it.
    pub fn restart(&mut self, shape: LogShape, base: Vector) {
        debug_assert!(self.frames.is_empty());
        self.shape = shape;
        self.base = base;
    }

    /// Sequence number of the oldest frame.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Sequence number that the next event will get: where a stream stands that keeps up.
    pub fn next(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    pub fn base(&self) -> &Vector {
        &self.base
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&self, sequence: u64) -> Option<&Rc<Frame>> {
        self.frames.get(usize::try_from(sequence.checked_sub(self.first)?).ok()?)
    }

    /// The first frame that a stream may need that has been served up to here. The vectors of the
    /// frames rise component by component, so "all before it is covered" holds for a first part
    /// of the ring and for nothing behind it.
    pub fn place_of(&self, served: &Served) -> u64 {
        let covered = self.frames.partition_point(|frame| served.covers_all(&frame.after));
        self.first + covered as u64
    }

    /// Positions before this frame.
    pub fn before(&self, sequence: u64) -> &Vector {
        match sequence.checked_sub(1).and_then(|previous| self.get(previous)) {
            Some(frame) => &frame.after,
            None => &self.base,
        }
    }

    fn drop_first(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.bytes(&self.shape);
            self.first += 1;
            // A frame that no stream holds gives its positions: reading them would be one more
            // cache miss an event.
            self.base = match Rc::try_unwrap(frame) {
                Ok(frame) => frame.after,
                Err(frame) => frame.after.clone(),
            };
        }
    }
}
