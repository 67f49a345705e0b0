//! One stream's entry, and what it has beside it while it needs more than that.

use std::rc::Rc;

use super::replay::Part;
use super::{Backlog, Frame, Row, Served};
use crate::wire::archive::SharedEvent;

/// One stream's entry. `S` is the socket; dropping it closes it.
#[derive(Debug)]
pub(super) struct Stream<S> {
    pub socket: S,
    /// What only a stream needs that resumes, is stuck in a frame, or is being told something.
    pub private: Option<Box<Private>>,
    /// The next frame to look at; without meaning at the head.
    pub at: u64,
    /// No frame from here on is for it; without meaning at the head.
    pub until: u64,
    pub serial: u32,
    pub user: u32,
    pub next_of_user: u32,
    pub set: u32,
    pub place_in_set: u32,
    /// Wheel ticks: the last write that took a byte; of a blocked stream, its last progress.
    pub touched: u32,
    pub state: u8,
    /// Heartbeats since the last `id`.
    pub heartbeats: u8,
    /// The part in which it has had its age (`drain.rs`); without meaning where there is none.
    pub old_in: u16,
}

/// Memory a stream is this entry's, and that of its socket in the kernel: 56 bytes with a
/// descriptor, which fill their alignment.
const _: () = assert!(size_of::<Stream<u32>>() == 56);

pub(super) const BEHIND: u8 = 1;
pub(super) const QUEUED: u8 = 2;
pub(super) const BLOCKED: u8 = 4;
pub(super) const CLOSING: u8 = 8;
/// Blocked, and no byte went out since.
pub(super) const STALLED: u8 = 16;
/// Its bytes are counted, because a targeted frame is not acknowledged.
pub(super) const UNCONFIRMED: u8 = 32;
/// It ends because what comes next is in the store.
pub(super) const CONTINUES: u8 = 64;
/// The ring does not reach down to where it stands: once its backlog is out, the log serves it.
pub(super) const CUT_OFF: u8 = 128;

#[derive(Debug, Default)]
pub(super) struct Private {
    /// Bytes of the stream's own, which go out before anything from the ring.
    pub lead: Vec<u8>,
    pub lead_out: usize,
    /// The lead ends with this message.
    pub lead_row: Option<Row>,
    /// A frame of which only a part is out. The stream's place is behind it.
    pub pinned: Option<(Rc<Frame>, usize)>,
    /// Where the client stands, while any component of it is ahead of the ring at our place.
    pub ahead: Option<Served>,
    /// What goes out before anything from the ring.
    pub backlog: Option<Box<Backlog>>,
    /// Where it stands in the replay from the log.
    pub part: Part,
    /// What had been read when it was opened, until it has come so far: of that, nothing is for it
    /// that is for who is here.
    pub came_at: Option<Served>,
}

impl Private {
    pub fn is_done(&self) -> bool {
        self.lead.is_empty()
            && self.pinned.is_none()
            && self.ahead.is_none()
            && self.backlog.is_none()
    }

    /// Whether nothing of it is needed any more.
    pub fn is_over(&self) -> bool {
        self.came_at.is_none() && self.is_done()
    }
}

impl<S> Stream<S> {
    pub fn part(&self) -> Part {
        self.private.as_deref().map_or(Part::None, |private| private.part)
    }

    pub fn is(&self, flag: u8) -> bool {
        self.state & flag != 0
    }

    pub fn private(&mut self) -> &mut Private {
        self.private.get_or_insert_default()
    }
}

/// Whether the event is for who was here when it came, and a stream that found so much read was
/// not.
pub(super) fn is_past(event: &SharedEvent, came_at: Option<&Served>) -> bool {
    event.is_passing() && came_at.is_some_and(|came_at| came_at.covers(event.position()))
}
