//! Feeding streams from the ring: what goes out next, and what became of it.
//!
//! `poll_write` plans one vectored write for the next stream in the queue and lends the pieces,
//! straight from the shared bytes; `handle_written` must follow, before any other call.

use std::io::IoSlice;
use std::rc::Rc;

use arrayvec::ArrayVec;

use super::drain::reason_of_end;
use super::entry::is_past;
use super::fence::is_over;
use super::joined::Joined;
use super::replay::Part;
use super::timers::ticks;
use super::{BEHIND, BLOCKED, CLOSING, CUT_OFF, QUEUED, STALLED};
use super::{CloseReason, Frame, Served, Stream, StreamKey, Streams, enqueue, write_id_line};
use crate::base::{EpochMillis, Moment};
use crate::domain::audience::User;
use crate::domain::backlog::{KeptMessage, Row, What};
use crate::limits::shard as limits;
use crate::wire::archive::{AudienceRef, SharedEvent};
use crate::wire::cursor::UserMark;

const FRAMES_MAX: usize = limits::WRITE_PIECES_MAX / 2;

/// One vectored write, to be done now.
#[derive(Debug)]
pub struct Write<'a, S> {
    pub key: StreamKey,
    pub socket: &'a S,
    pub pieces: ArrayVec<IoSlice<'a>, { limits::WRITE_PIECES_MAX }>,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The kernel took so many bytes, at least one.
    Took(usize),
    /// It takes none now, and `handle_writable` will be called when it does.
    Full,
    /// The socket is dead.
    Dead,
}

/// What the last `poll_write` planned.
#[derive(Debug, Default)]
pub(super) struct Plan {
    frames: Vec<Planned>,
    own_partition: u16,
    mark: UserMark,
    /// The id lines of the frames, with whose they are.
    ids: Vec<u8>,
    /// Bytes of the stream's own that go first.
    pub(super) lead_bytes: usize,
    /// Where the stream stands once all of it is out.
    pub(super) end: u64,
    /// The lead holds frames that are built for this stream alone. What to go back to if no byte
    /// of them goes out, because the broadcast may have ended when the socket takes bytes again.
    pub(super) undo: Option<Undo>,
    /// The frames of the lead, where it holds several.
    pub(super) joined: Joined,
    /// The write is of a stream that replays.
    pub(super) is_late: bool,
    /// Events that were looked at in this turn, and writes of those that replay.
    pub(super) looked_at: usize,
    pub(super) replayed: usize,
    /// Targeted messages whose last byte was in the write.
    pub(super) completed: Vec<Row>,
}

#[derive(Debug)]
pub(super) enum Undo {
    /// An event of the ring, for a client that is ahead.
    Ahead { at: u64, ahead: Served },
    /// A kept message, and the progress before it.
    Backlog { message: KeptMessage, before: Served },
    /// Events that were read again.
    Reread { part: Part, ahead: Served },
}

impl Undo {
    /// Not a message, but word of some that can't be had.
    fn is_gap(&self) -> bool {
        let Self::Backlog { message, .. } = self else { return false };
        matches!(message.candidate.what, What::Gap(_))
    }
}

#[derive(Debug)]
struct Planned {
    frame: Rc<Frame>,
    /// Where the stream stands once this frame is out.
    end: u64,
    /// Bytes of it that are out already, and its length.
    out: usize,
    bytes: usize,
}

impl Plan {
    fn push(&mut self, planned: Planned) {
        let line = planned.frame.id_line(self.own_partition);
        self.mark.write_line(line, self.own_partition, &mut self.ids);
        self.frames.push(planned);
    }
}

impl<S> Streams<S> {
    /// The next write, if any stream has one. Expired frames are skipped by `wall`. `None` also
    /// when those that replay have had their share of this turn.
    pub fn poll_write(&mut self, wall: EpochMillis) -> Option<Write<'_, S>> {
        loop {
            let Some(index) = self.next_queued() else {
                self.handle_turn();
                return None;
            };
            let Some(stream) = self.slab.get_mut(index) else { continue };
            if !stream.is(QUEUED) {
                continue; // An entry of an earlier stream in this place.
            }
            stream.state &= !QUEUED;
            self.plan(index, wall);
            if self.plan.frames.is_empty() && self.plan.lead_bytes == 0 {
                // Behind the fence it stays where it is, until that is gone.
                self.stand_at(index, self.plan.end);
                continue;
            }
            self.plan.replayed += usize::from(self.plan.is_late);
            return self.lend(index);
        }
    }

    /// What became of the write that `poll_write` lent.
    pub fn handle_written(&mut self, key: StreamKey, outcome: Outcome, now: Moment) {
        let index = key.index;
        let Some(stream) = self.slab.get_mut(index) else { return };
        debug_assert_eq!(stream.serial, key.serial);
        match outcome {
            Outcome::Dead => self.close(index, CloseReason::Peer),
            Outcome::Full => {
                if let Some(undo) = self.plan.undo.take() {
                    take_back(stream, undo);
                }
                self.block(index, now);
            }
            Outcome::Took(bytes) => {
                stream.touched = ticks(now);
                stream.state &= !STALLED;
                match self.plan.undo.take() {
                    Some(Undo::Reread { part, ahead }) => {
                        self.settle_joined(index, bytes, part, ahead);
                    }
                    Some(undo) if undo.is_gap() => self.counters.gaps += 1,
                    Some(_) => self.counters.deliveries += 1,
                    None => {}
                }
                self.counters.bytes += bytes as u64;
                self.counters.writes += 1;
                let is_all_out = self.settle(index, bytes);
                let completed = std::mem::take(&mut self.plan.completed);
                self.note_written(index, bytes as u64, &completed);
                self.plan.completed = completed;
                if is_all_out {
                    self.stand_at(index, self.plan.end);
                } else {
                    self.block(index, now);
                }
            }
        }
    }

    /// Plans the next write of a stream.
    fn plan(&mut self, index: u32, wall: EpochMillis) {
        self.plan.frames.clear();
        self.plan.completed.clear();
        self.plan.lead_bytes = 0;
        self.plan.undo = None;
        let Some(stream) = self.slab.get_mut(index) else { return };
        let &User { own_partition, mark, .. } = self.users.get(stream.user);
        (self.plan.own_partition, self.plan.mark) = (own_partition, mark);
        self.plan.ids.clear();
        self.plan.end = if stream.is(BEHIND) { stream.at } else { self.ring.next() };
        let (mut is_ahead, mut has_backlog) = (false, false);
        if let Some(private) = stream.private.as_deref_mut() {
            self.plan.lead_bytes = private.lead.len() - private.lead_out;
            if let Some((frame, out)) = private.pinned.as_ref() {
                debug_assert_eq!(self.plan.lead_bytes, 0, "a frame is finished before anything");
                let bytes = frame_bytes(frame, self.plan.own_partition);
                let (frame, out) = (frame.clone(), *out);
                self.plan.push(Planned { frame, end: self.plan.end, out, bytes });
            }
            is_ahead = private.ahead.is_some();
            has_backlog = private.backlog.is_some();
        }
        if stream.is(CLOSING) || !self.may_begin {
            return;
        }
        let is_free = self.plan.frames.is_empty() && self.plan.lead_bytes == 0;
        if has_backlog {
            if is_free {
                self.plan_backlog(index, wall);
            }
            return;
        }
        if stream.is(CUT_OFF) {
            if is_free {
                self.plan_replay(index, wall);
            }
            return;
        }
        if stream.is(BEHIND) && self.plan.end < self.ring.first() {
            if is_free {
                self.plan_overtaken(index, wall);
            }
            return;
        }
        if !stream.is(BEHIND) {
            return;
        }
        if is_ahead {
            if is_free {
                self.plan_ahead(index, wall);
            }
            return;
        }
        self.plan_frames(index, wall);
    }

    /// Frames of the stream's audience from its place on.
    fn plan_frames(&mut self, index: u32, wall: EpochMillis) {
        let Some(stream) = self.slab.get(index) else { return };
        let user = self.users.get(stream.user);
        let until = stream.until;
        let private = stream.private.as_deref();
        let came_at = private.and_then(|private| private.came_at.as_ref());
        let scan_end = self.scan_end().min(until);
        // The lead takes one piece; a frame takes two.
        let room = FRAMES_MAX - usize::from(self.plan.lead_bytes > 0);
        let (begin, mut planned_bytes) = (self.plan.end, 0);
        while self.plan.end < scan_end
            && self.plan.frames.len() < room
            && planned_bytes < limits::WRITE_BYTES
        {
            let sequence = self.plan.end;
            let Some(event) = self.ring.event(sequence) else { break };
            self.plan.end += 1;
            if !self.sets.admits(&event.audience(), &user.name, stream.set) {
                continue;
            }
            if is_over(event, &self.ended, wall) {
                self.counters.ended_skips += 1;
                continue;
            }
            if is_past(event, came_at) {
                continue;
            }
            let Some(frame) = self.ring.frame(sequence) else { break };
            let bytes = frame_bytes(frame, user.own_partition);
            let (frame, end) = (frame.clone(), self.plan.end);
            planned_bytes += bytes;
            self.plan.push(Planned { frame, end, out: 0, bytes });
        }
        self.plan.looked_at += (self.plan.end - begin) as usize;
        if self.plan.end >= until {
            self.plan.end = self.ring.next();
        }
    }

    /// The next frame of a stream whose client is ahead of the ring in some partition: what it has
    /// been served is skipped, and ids are the maximum of both.
    fn plan_ahead(&mut self, index: u32, wall: EpochMillis) {
        let scan_end = self.scan_end();
        let Some(stream) = self.slab.get_mut(index) else { return };
        let user = self.users.get(stream.user);
        let set = stream.set;

        let Some(private) = stream.private.as_deref_mut() else { return };
        let begin = self.plan.end;
        while self.plan.end < scan_end {
            let Some(ahead) = private.ahead.as_mut() else { break };
            let Some(event) = self.ring.event(self.plan.end) else { break };
            let after = self.ring.after(self.plan.end);
            self.plan.end += 1;
            let due = !is_past(event, private.came_at.as_ref())
                && !ahead.covers(event.position())
                && self.sets.admits(&event.audience(), &user.name, set)
                && !is_over(event, &self.ended, wall);
            if due {
                self.plan.undo = Some(Undo::Ahead { at: self.plan.end - 1, ahead: ahead.clone() });
                private.lead_row = row_of(event);
            }
            ahead.raise_to(after);
            if due {
                let (of, lead) = ((&self.options.shape, user.mark), &mut private.lead);
                write_id_line(of, lead, ahead, event.appended_at());
                private.lead.extend_from_slice(event.body());
            }
            if ahead.is_within(after) {
                private.ahead = None;
            }
            if due {
                break;
            }
        }
        self.plan.looked_at += (self.plan.end - begin) as usize;
        self.plan.lead_bytes = private.lead.len();
        stream.at = self.plan.end;
    }

    /// The place up to which one plan may look.
    fn scan_end(&self) -> u64 {
        self.ring.next().min(self.plan.end + limits::FRAMES_SCANNED_PER_TURN_MAX as u64)
    }

    /// Lends the planned pieces.
    fn lend(&self, index: u32) -> Option<Write<'_, S>> {
        let stream = self.slab.get(index)?;
        let mut pieces = ArrayVec::new();
        if let Some(private) = stream.private.as_deref()
            && self.plan.lead_bytes > 0
        {
            pieces.push(IoSlice::new(&private.lead[private.lead_out..]));
        }
        let mut ids = &self.plan.ids[..];
        for planned in &self.plan.frames {
            let body = planned.frame.event().body();
            let (id_line, others) = ids.split_at(planned.bytes - body.len());
            ids = others;
            if planned.out < id_line.len() {
                pieces.push(IoSlice::new(&id_line[planned.out..]));
                pieces.push(IoSlice::new(body));
            } else {
                pieces.push(IoSlice::new(&body[planned.out - id_line.len()..]));
            }
        }
        let key = StreamKey { index, serial: stream.serial };
        Some(Write { key, socket: &stream.socket, pieces })
    }

    /// Books the bytes that went out. Whether all that was planned did.
    fn settle(&mut self, index: u32, mut bytes: usize) -> bool {
        let Some(stream) = self.slab.get_mut(index) else { return false };
        if let Some(private) = stream.private.as_deref_mut() {
            let lead = bytes.min(self.plan.lead_bytes);
            bytes -= lead;
            private.lead_out += lead;
            if lead < self.plan.lead_bytes {
                return false; // Of the frames behind it nothing is out.
            }
            private.lead = Vec::new();
            private.lead_out = 0;
            private.pinned = None;
            self.plan.completed.extend(private.lead_row.take());
        }
        let mut completed = 0;
        let mut all_out = true;
        for planned in self.plan.frames.drain(..) {
            let rest = planned.bytes - planned.out;
            if bytes >= rest {
                bytes -= rest;
                completed += 1;
                stream.at = planned.end;
                self.plan.completed.extend(row_of(planned.frame.event()));
                continue;
            }
            all_out = false;
            stream.state |= BEHIND;
            if bytes + planned.out > 0 {
                stream.at = planned.end;
                stream.private().pinned = Some((planned.frame, planned.out + bytes));
            } else {
                stream.at = planned.end - 1;
            }
            break;
        }
        if completed > 0 {
            stream.heartbeats = 0;
        }
        self.counters.deliveries += completed;
        self.counters.joined += completed.saturating_sub(1);
        if stream.private.as_ref().is_some_and(|private| private.is_over()) {
            stream.private = None;
        }
        all_out
    }

    /// All that was planned is out: the stream stands here, at the head or with more to do.
    fn stand_at(&mut self, index: u32, place: u64) {
        let Some(stream) = self.slab.get_mut(index) else { return };
        if stream.is(CLOSING) {
            let reason = reason_of_end(stream, self.drain);
            self.close(index, reason);
            return;
        }
        if !self.may_begin {
            return;
        }
        let has_backlog =
            stream.private.as_deref().is_some_and(|private| private.backlog.is_some());
        if has_backlog {
            enqueue(stream, index, &mut self.queue);
            return;
        }
        if stream.is(CUT_OFF) {
            self.enqueue_replay(index);
            return;
        }
        if let Some(private) = stream.private.as_deref_mut()
            && place >= self.ring.next()
        {
            private.came_at = None;
            if private.is_over() {
                stream.private = None;
            }
        }
        if !stream.is(BEHIND) {
            return;
        }
        stream.at = place;
        if place >= self.ring.next() {
            stream.state &= !BEHIND;
        } else {
            enqueue(stream, index, &mut self.queue);
        }
    }

    /// The socket is full: the stream waits at its place, for so long as it may.
    fn block(&mut self, index: u32, now: Moment) {
        let Some(stream) = self.slab.get_mut(index) else { return };
        if !stream.is(STALLED) {
            stream.touched = ticks(now);
            self.counters.blocked += 1;
        }
        stream.state |= BLOCKED | STALLED;
        let look = self.options.write_progress.min(self.options.heartbeat);
        self.look_again(index, now.plus(look), now);
    }
}

/// No byte of the frame in the lead went out: it is looked at again before it does.
fn take_back<S>(stream: &mut Stream<S>, undo: Undo) {
    if let Undo::Ahead { at, .. } = &undo {
        stream.at = *at;
    }
    let private = stream.private();
    private.lead = Vec::new();
    private.lead_row = None;
    match undo {
        Undo::Ahead { ahead, .. } => private.ahead = Some(ahead),
        Undo::Reread { part, ahead } => {
            private.part = part;
            private.ahead = Some(ahead);
        }
        Undo::Backlog { message, before } => {
            if let Some(backlog) = private.backlog.as_mut() {
                backlog.messages.push_front(message);
                backlog.progress = before;
            }
        }
    }
}

/// The row of a targeted message. Nothing that is written says whether one is kept of it; where
/// none is, noting its delivery makes none.
pub(super) fn row_of(event: &SharedEvent) -> Option<Row> {
    let is_targeted = matches!(event.audience(), AudienceRef::User(_));
    is_targeted.then(|| Row { broadcast: event.broadcast(), attempt: event.attempt() })
}

fn frame_bytes(frame: &Frame, own_partition: u16) -> usize {
    frame.id_line(own_partition).len() + frame.event().body().len()
}
