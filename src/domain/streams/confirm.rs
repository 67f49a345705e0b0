//! What has reached users: frames that the peer's TCP has acknowledged, and how far streams that
//! ended had been served.
//!
//! The kernel says how many bytes of a socket are not acknowledged yet. A stream's bytes are
//! counted only while a targeted frame of it is unconfirmed, so that a quiet one costs nothing.
//! Behind a load balancer the peer is the balancer.

use std::collections::VecDeque;

use super::{CONTINUES, CUT_OFF, Private, Stream, Streams, UNCONFIRMED};
use crate::base::UserId;
use crate::domain::backlog::{Note, Row};
use crate::domain::vector::Served;
use crate::limits::shard as limits;

/// Targeted frames that are out, in order.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    /// Bytes written since the first of them was completed.
    written: u64,
    /// Each with what was written when it was complete.
    frames: VecDeque<(u64, Row)>,
}

/// A stream that has ended. `S` is its socket, still open.
#[derive(Debug)]
pub struct Closed<S> {
    pub socket: S,
    user: Box<str>,
    served: Option<Served>,
    unconfirmed: Unconfirmed,
}

impl Unconfirmed {
    /// Takes out what is acknowledged when so many bytes are not.
    fn confirm(&mut self, unsent: u64, mut each: impl FnMut(Row)) {
        let acknowledged = self.written.saturating_sub(unsent);
        while let Some((end, row)) = self.frames.front().copied()
            && end <= acknowledged
        {
            each(row);
            self.frames.pop_front();
        }
    }
}

impl<S> Closed<S> {
    /// What is to be noted of it, when so many of its bytes are not acknowledged.
    pub fn notes(mut self, unsent: u64) -> impl Iterator<Item = Note> {
        let mut rows = Vec::new();
        self.unconfirmed.confirm(unsent, |row| rows.push(row));
        // It was one when the stream was opened.
        let user = UserId::new(&self.user).ok();
        let delivered = user.clone().filter(|_| !rows.is_empty());
        let served = user.zip(self.served.filter(|_| unsent == 0));
        let delivered = delivered.map(|user| Note::Delivered { user, rows });
        delivered.into_iter().chain(served.map(|(user, served)| Note::Served { user, served }))
    }
}

impl<S> Streams<S> {
    /// The last byte of these frames was in a write of so many bytes.
    pub(super) fn note_written(&mut self, index: u32, bytes: u64, completed: &[Row]) {
        let Some(stream) = self.slab.get_mut(index) else { return };
        if completed.is_empty() && !stream.is(UNCONFIRMED) {
            return;
        }
        stream.state |= UNCONFIRMED;
        let unconfirmed = self.unconfirmed.entry(index).or_default();
        unconfirmed.written += bytes;
        let room = limits::UNCONFIRMED_MAX.saturating_sub(unconfirmed.frames.len());
        let end = unconfirmed.written;
        unconfirmed.frames.extend(completed.iter().take(room).map(|row| (end, *row)));
        self.counters.unconfirmed_dropped += completed.len().saturating_sub(room) as u64;
    }

    /// Whether `handle_confirm` may find something.
    pub fn has_unconfirmed(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// Asks how many bytes of each socket are not acknowledged, and tells whose frames are.
    pub fn handle_confirm(&mut self, unsent: impl Fn(&S) -> u64, mut each: impl FnMut(&str, Row)) {
        let Self { unconfirmed, slab, users, .. } = self;
        unconfirmed.retain(|index, frames| {
            let Some(stream) = slab.get_mut(*index) else { return false };
            let user = users.get(stream.user);
            frames.confirm(unsent(&stream.socket), |row| each(user.name.text(), row));
            let stays = !frames.frames.is_empty();
            if !stays {
                stream.state &= !UNCONFIRMED;
            }
            stays
        });
    }

    /// The next stream that has ended and may have something to say.
    pub fn poll_closed(&mut self) -> Option<Closed<S>> {
        self.closed.pop_front()
    }

    /// Keeps what an ended stream has to say.
    pub(super) fn say_farewell(&mut self, index: u32, stream: Stream<S>) {
        let served = self.served_of(&stream);
        let unconfirmed = self.unconfirmed.remove(&index).unwrap_or_default();
        let user = self.users.get(stream.user).name.text().into();
        self.closed.push_back(Closed { socket: stream.socket, user, served, unconfirmed });
    }

    /// How far it has been served, in whole frames; `None` while a backlog is not out, be it that
    /// the rest of it comes on another stream, or the ring has gone on without it.
    fn served_of(&self, stream: &Stream<S>) -> Option<Served> {
        if stream.is(CONTINUES) {
            return None;
        }
        let own_partition = self.users.get(stream.user).own_partition;
        let mut at = if stream.is(super::BEHIND) { stream.at } else { self.ring.next() };
        if let Some(Private { lead, pinned, ahead, backlog, .. }) = stream.private.as_deref() {
            if !lead.is_empty() || backlog.is_some() {
                return None;
            }
            if ahead.is_some() {
                return ahead.clone();
            }
            if pinned.is_some() {
                at = at.checked_sub(1)?;
            }
        }
        if stream.is(CUT_OFF) {
            return None;
        }
        (at >= self.ring.first()).then(|| Served::of(self.before(at), own_partition))
    }
}
