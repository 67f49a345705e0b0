//! What the store keeps for this shard's users: asked for before a stream is opened, told of when
//! frames have arrived.
//!
//! The shard never waits for it. A request stands aside until the control threads have answered,
//! or is put off. Notes that find no room wait here; too many are dropped and counted, which costs
//! a repetition and never a message.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::net::{Shutdown, shutdown};

use super::peers::Handed;
use super::unsent::unsent;
use crate::base::{Moment, UserId};
use crate::domain::{Closed, Note, Presented, Served, Slab, Streams};
use crate::lane::{Ask, FromShard, Sender};
use crate::limits::shard as limits;

/// A request that waits for its answer.
#[derive(Debug)]
struct Waiting {
    handed: Box<Handed>,
    serial: u32,
    /// When it is put off.
    until: Moment,
}

#[derive(Debug, Default)]
pub(super) struct Keeping {
    waiting: Slab<Waiting>,
    /// When each of them has waited long enough; those that have an answer are among them.
    deadlines: BTreeSet<(Moment, u64)>,
    serials: u32,
    /// Ended streams whose peer has not acknowledged everything, in order; until when they stay.
    closed: VecDeque<(Moment, Closed<OwnedFd>)>,
    /// When these are looked at next.
    look_at: Option<Moment>,
    notes: VecDeque<Note>,
    /// When the peers are asked next.
    confirm_at: Option<Moment>,
    dropped: u64,
    farewells_refused: u64,
}

impl Keeping {
    /// Asks what is kept for a user; gives the request back if it can't wait here. `has_log`: it
    /// need not wait as long as the others.
    pub fn ask(
        &mut self,
        shard: u16,
        (handed, has_log): (Box<Handed>, bool),
        ((read, ring), presented): ((Served, Served), Option<Presented>),
        reports: &Sender<FromShard>,
        now: Moment,
    ) -> Result<(), Box<Handed>> {
        if self.waiting.len() >= limits::ASKS_MAX {
            return Err(handed);
        }
        self.serials = self.serials.wrapping_add(1);
        let serial = self.serials;
        let (user, members) = (handed.request.user.clone(), handed.request.members.clone());
        let until = now.plus(limits::ASK_TIME);
        let index = self.waiting.insert(Waiting { handed, serial, until });
        let key = u64::from(serial) << 32 | u64::from(index);
        let ask = Box::new(Ask { shard, key, user, members, read, ring, presented });
        if reports.try_send(FromShard::Ask(ask)).is_err() {
            return match self.waiting.remove(index) {
                Some(waiting) => Err(waiting.handed),
                None => Ok(()),
            };
        }
        let first = if has_log { now.plus(limits::ASK_TIME_WITH_LOG) } else { until };
        self.deadlines.insert((first, key));
        Ok(())
    }

    /// Requests that wait for their answer.
    pub fn asked(&self) -> usize {
        self.waiting.len()
    }

    /// The request that this answers, if it still waits.
    pub fn take(&mut self, key: u64) -> Option<Box<Handed>> {
        let waits = self.waiting.get(key as u32)?.serial == (key >> 32) as u32;
        waits.then(|| self.waiting.remove(key as u32)).flatten().map(|waiting| waiting.handed)
    }

    /// The next request that has waited long enough. `has_log` says whether the log has what one
    /// needs; one that it has no more waits on.
    pub fn take_late(
        &mut self,
        now: Moment,
        has_log: impl Fn(&Handed) -> bool,
    ) -> Option<Box<Handed>> {
        while let Some((deadline, key)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let waiting = self.waiting.get(key as u32);
            let Some(waiting) = waiting.filter(|waiting| waiting.serial == (key >> 32) as u32)
            else {
                continue;
            };
            let until = waiting.until;
            if until <= now || has_log(&waiting.handed) {
                return self.take(key);
            }
            self.deadlines.insert((until, key));
        }
        None
    }

    /// The next request, whether late or not.
    pub fn take_any(&mut self) -> Option<Box<Handed>> {
        while let Some((_, key)) = self.deadlines.pop_first() {
            if let Some(handed) = self.take(key) {
                return Some(handed);
            }
        }
        None
    }

    pub fn note(&mut self, note: Note) {
        if self.notes.len() < limits::NOTES_MAX {
            self.notes.push_back(note);
        } else {
            self.dropped += 1;
        }
    }

    /// Asks the peers what has arrived, from time to time, and takes in streams that have ended.
    pub fn look(&mut self, set: BorrowedFd<'_>, streams: &mut Streams<OwnedFd>, now: Moment) {
        while let Some(closed) = streams.poll_closed() {
            self.take_closed(set, closed, now);
        }
        if self.look_at.is_some_and(|at| at <= now) {
            for _ in 0..self.closed.len() {
                let Some((until, closed)) = self.closed.pop_front() else { break };
                let waits = unsent(&closed.socket);
                if waits > 0 && now < until {
                    self.closed.push_back((until, closed));
                } else {
                    closed.notes(waits).for_each(|note| self.note(note));
                }
            }
            let is_over = self.closed.is_empty();
            self.look_at = (!is_over).then(|| now.plus(limits::FAREWELL_LOOK));
        }
        if self.confirm_at.is_some_and(|at| at <= now) {
            self.confirm_at = None;
            let notes = &mut self.notes;
            let room = limits::NOTES_MAX.saturating_sub(notes.len());
            let mut found: Vec<Note> = Vec::new();
            streams.handle_confirm(
                |socket| unsent(socket),
                |user: &str, row| match found.last_mut() {
                    Some(Note::Delivered { user: last, rows }) if last.as_str() == user => {
                        rows.push(row);
                    }
                    _ => {
                        let user = UserId::new(user).ok();
                        found.extend(user.map(|user| Note::Delivered { user, rows: vec![row] }));
                    }
                },
            );
            self.dropped += found.len().saturating_sub(room) as u64;
            notes.extend(found.into_iter().take(room));
        }
        if self.confirm_at.is_none() && streams.has_unconfirmed() {
            self.confirm_at = Some(now.plus(limits::CONFIRM_PACE));
        }
    }

    /// A stream that has ended stays until its peer has acknowledged what is on its way, but not
    /// for long. A peer that is gone will acknowledge nothing more.
    fn take_closed(&mut self, set: BorrowedFd<'_>, closed: Closed<OwnedFd>, now: Moment) {
        let waits = unsent(&closed.socket);
        let is_full = self.closed.len() >= limits::FAREWELLS_MAX;
        self.farewells_refused += u64::from(waits > 0 && is_full);
        if waits > 0 && !is_full {
            // Nothing that happens to it is anybody's affair any more; the end would be reported.
            let _ = epoll::delete(set, &closed.socket);
            if shutdown(&closed.socket, Shutdown::Write).is_ok() {
                self.closed.push_back((now.plus(limits::FAREWELL_TIME), closed));
                self.look_at.get_or_insert(now.plus(limits::FAREWELL_LOOK));
                return;
            }
        }
        closed.notes(waits).for_each(|note| self.note(note));
    }

    /// Tells the control threads, as far as they have room.
    pub fn tell(&mut self, reports: &Sender<FromShard>) {
        while !self.notes.is_empty() {
            let many = self.notes.len().min(limits::NOTES_TOLD_MAX);
            let notes: Vec<Note> = self.notes.drain(..many).collect();
            let Err(refusal) = reports.try_send(FromShard::Notes(notes)) else { continue };
            if let FromShard::Notes(notes) = refusal.item {
                notes.into_iter().rev().for_each(|note| self.notes.push_front(note));
            }
            return;
        }
    }

    /// Sockets that are held here, beside those of streams.
    pub fn held(&self) -> usize {
        self.waiting.len() + self.closed.len()
    }

    /// Whether all has been told.
    pub fn is_done(&self) -> bool {
        self.notes.is_empty() && self.closed.is_empty()
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Streams that ended and were not kept until their peers had acknowledged all.
    pub fn farewells_refused(&self) -> u64 {
        self.farewells_refused
    }

    /// When to look again.
    pub fn poll_timeout(&self, now: Moment) -> Option<Moment> {
        let late = self.deadlines.first().map(|(deadline, _)| *deadline);
        let notes = (!self.notes.is_empty()).then(|| now.plus(limits::FULL_LANE_WAIT));
        [late, self.look_at, notes, self.confirm_at].into_iter().flatten().min()
    }
}
