//! Streams that stand where the ring does not reach: they are served from the log, which is read
//! once for all of them.
//!
//! A shard has one pass under way. It begins where the furthest behind of those who wait stands,
//! and reads the log part by part; every member gets of each part what is for it and what it has
//! not been served. The next part is read once all have had this one, so a pass holds one part in
//! memory, and a member whose socket takes nothing is left behind after a while. A member that has
//! come to the ring goes on from there. Who stands behind a pass waits for the next one; once more
//! have come so than are in it, it ends, and the next one begins with all of them. So what a crowd
//! needs that comes within a while is read about twice, and not once for each few of them.
//!
//! Reading begins a window of repeats before what is served, so that a record that repeats another
//! is known as one, as everywhere.

use std::collections::{BTreeMap, VecDeque};

use super::{BEHIND, BLOCKED, CUT_OFF, Stream, StreamKey, Streams, enqueue};
use crate::base::{EpochMillis, LogShape, Moment, Partition};
use crate::domain::backlog::oldest_first;
use crate::domain::repeats::Repeats;
use crate::domain::vector::Served;
use crate::limits::log::REPEAT_RECORDS;
use crate::limits::shard as limits;
use crate::wire::archive::SharedEvent;

/// What of the log is to be read again: some records of each of these partitions, from there on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reread {
    /// Names the pass; the answer carries it.
    pub pass: u32,
    pub from: Vec<(Partition, u64)>,
}

/// What was read again: events, each partition's in order, and how far each has been read.
#[derive(Debug, Default)]
pub struct ReadAgain {
    pub events: Vec<SharedEvent>,
    pub next: Vec<(Partition, u64)>,
}

/// Why nothing was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// The log does not hold it any more: the store has it, or will.
    Gone,
    /// The log can't be had now.
    Away,
}

/// Where a stream stands in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Part {
    /// It has not asked.
    #[default]
    None,
    /// For the next pass; for the first time, or because one has left it behind.
    Waits { is_first: bool },
    /// A member of this pass; the next event of the part to look at. `None`: it has had all of it.
    Member { pass: u32, next: Option<usize> },
    /// It is not to be had.
    Refused(Unread),
}

impl Part {
    /// Whether it is of this pass.
    fn is_of(self, number: u32) -> bool {
        matches!(self, Self::Member { pass, .. } if pass == number)
    }
}

/// The pass of a shard, and who waits for the next one.
#[derive(Debug)]
pub(super) struct Replay {
    waiting: Vec<StreamKey>,
    /// How many of them wait for the first time and are still here.
    newcomers: usize,
    pub pass: Option<Pass>,
    passes: u32,
    /// How many in a row have ended for those who came behind them.
    ended: u32,
    /// When the log did not give what a pass needed.
    refused_at: Option<Moment>,
}

#[derive(Debug)]
pub(super) struct Pass {
    pub number: u32,
    /// Where each partition is served from.
    from: BTreeMap<Partition, u64>,
    /// How far each has been read.
    pub read: BTreeMap<Partition, u64>,
    repeats: Repeats,
    /// The part that was read last.
    pub events: Vec<SharedEvent>,
    members: Vec<StreamKey>,
    /// Members that have not had all of the part.
    pub behind: usize,
    /// When the part came.
    since: Moment,
    is_reading: bool,
}

impl Replay {
    pub fn new() -> Self {
        Self {
            waiting: Vec::new(),
            newcomers: 0,
            pass: None,
            passes: 0,
            ended: 0,
            refused_at: None,
        }
    }

    /// Who waits longer than until then is left behind.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let pass = self.pass.as_ref().filter(|pass| pass.behind > 0)?;
        Some(pass.since.plus(limits::REPLAY_PATIENCE))
    }

    /// Whether that was just now: others would meet it, too.
    pub fn was_refused(&self, now: Moment) -> bool {
        self.refused_at.is_some_and(|at| now < at.plus(limits::REPLAY_REFUSED_TIME))
    }

    /// A stream ends with this part in it.
    pub fn handle_gone(&mut self, part: Part) {
        self.newcomers -= usize::from(part == Part::Waits { is_first: true });
        if let (Some(pass), Part::Member { pass: number, next: Some(_) }) = (&mut self.pass, part)
            && pass.number == number
        {
            pass.behind -= 1;
        }
    }
}

impl Pass {
    fn new(number: u32, shape: LogShape, from: BTreeMap<Partition, u64>) -> Self {
        let before = |next: &u64| next.saturating_sub(REPEAT_RECORDS);
        Self {
            number,
            read: from.iter().map(|(partition, next)| (*partition, before(next))).collect(),
            from,
            repeats: Repeats::new(shape),
            events: Vec::new(),
            members: Vec::new(),
            behind: 0,
            since: Moment(0),
            is_reading: false,
        }
    }

    /// Whether somebody who stands there has missed nothing of what it serves.
    fn is_before(&self, served: &Served) -> bool {
        served.places().all(|(partition, next)| {
            let has = |places: &BTreeMap<Partition, u64>| {
                places.get(&partition).is_some_and(|from| *from <= next)
            };
            has(&self.from) && has(&self.read)
        })
    }
}

impl<S> Streams<S> {
    /// Whether the log may be read again from there: not so far back that one client could keep the
    /// node busy.
    pub fn is_near(&self, served: &Served) -> bool {
        let base = Served::of(self.ring.base(), served.own_partition);
        let mut ways = base.places().zip(served.places());
        ways.all(|((_, to), (_, from))| to.saturating_sub(from) <= limits::REPLAY_RECORDS_MAX)
    }

    /// Whether the stream stands where the ring does not reach.
    pub fn replays(&self, key: StreamKey) -> bool {
        let stream = self.slab.get(key.index).filter(|stream| stream.serial == key.serial);
        stream.is_some_and(|stream| stream.is(CUT_OFF))
    }

    /// What is to be read again now. It is asked for until `handle_unasked` says otherwise, and
    /// answered by `handle_reread`.
    pub fn poll_reread(&mut self, now: Moment) -> Option<Reread> {
        self.leave_late_behind(now);
        loop {
            if self.replay.pass.is_none() && !self.begin_pass() {
                return None;
            }
            let pass = self.replay.pass.as_ref()?;
            if pass.is_reading || pass.behind > 0 {
                return None;
            }
            let number = pass.number;
            self.bring_to_ring();
            let base = self.ring.base();
            let pass = self.replay.pass.as_mut()?;
            if pass.members.is_empty() {
                (self.replay.pass, self.replay.ended) = (None, 0);
                continue;
            }
            // Those that a pass has left behind don't count, nor do those that are gone, and not
            // again and again: it would never get far.
            let is_crowd = self.replay.newcomers > pass.members.len();
            if is_crowd && self.replay.ended < limits::REPLAY_ENDS_MAX {
                self.replay.ended += 1;
                self.end_pass();
                continue;
            }
            let is_left = |(partition, read): &(&Partition, &u64)| **read < base.next(**partition);
            let left = pass.read.iter().filter(is_left);
            let from = left.map(|(partition, read)| (*partition, *read)).collect();
            pass.is_reading = true;
            return Some(Reread { pass: number, from });
        }
    }

    /// What `poll_reread` gave could not be asked for yet.
    pub fn handle_unasked(&mut self) {
        if let Some(pass) = &mut self.replay.pass {
            pass.is_reading = false;
        }
    }

    /// Takes what was read. Without it the members come back, for what the store keeps.
    pub fn handle_reread(&mut self, number: u32, read: Result<ReadAgain, Unread>, now: Moment) {
        let Self { replay, slab, queue, counters, .. } = self;
        let Some(pass) = replay.pass.as_mut().filter(|pass| pass.number == number) else { return };
        let (first, ReadAgain { events, next }) = match read {
            Ok(read) => (Part::Member { pass: number, next: Some(0) }, read),
            Err(why) => {
                replay.refused_at = Some(now);
                (Part::Refused(why), ReadAgain::default())
            }
        };
        let is_refused = matches!(first, Part::Refused(_));
        let mut queues: BTreeMap<Partition, VecDeque<SharedEvent>> = BTreeMap::new();
        for event in events {
            let position = event.position();
            let is_repeat = pass.repeats.note(position, event.event_id());
            let from = pass.from.get(&position.partition);
            if !is_repeat && from.is_some_and(|from| position.offset >= *from) {
                queues.entry(position.partition).or_default().push_back(event);
            }
        }
        pass.events = oldest_first(queues, SharedEvent::appended_at).collect();
        for (partition, next) in next {
            pass.read.entry(partition).and_modify(|read| *read = next.max(*read));
        }
        counters.reread += pass.events.len() as u64;
        (pass.since, pass.is_reading, pass.behind) = (now, false, 0);
        let is_member = Part::Member { pass: number, next: None };
        for key in &pass.members {
            let stream = slab.get_mut(key.index).filter(|stream| stream.serial == key.serial);
            let Some(stream) = stream.filter(|stream| stream.part() == is_member) else { continue };
            pass.behind += usize::from(!is_refused);
            stream.private().part = first;
            enqueue(stream, key.index, queue);
        }
        if is_refused {
            (replay.pass, replay.ended) = (None, 0);
        }
    }

    /// Plans what comes next of a stream that the ring does not reach. Without knowing where it
    /// stands, or with a log that does not have it, it comes back.
    pub(super) fn plan_replay(&mut self, index: u32, wall: EpochMillis) {
        let Some(stream) = self.slab.get(index) else { return };
        let ahead = stream.private.as_deref().and_then(|private| private.ahead.as_ref());
        let Some(ahead) = ahead else { return self.plan_return(index, limits::BACKLOG_RETRY) };
        let number = self.replay.pass.as_ref().map(|pass| pass.number);
        match stream.part() {
            Part::Refused(Unread::Gone) => self.plan_return(index, limits::BACKLOG_RETRY),
            Part::Refused(Unread::Away) => self.plan_return(index, limits::RETRY),
            Part::Member { pass, next: Some(next) } if Some(pass) == number => {
                self.plan_reread(index, next, wall);
            }
            Part::Member { pass, next: None } if Some(pass) == number => {}
            Part::Waits { .. } => {}
            Part::None | Part::Member { .. } => {
                if self.reaches(ahead) {
                    self.go_on_from_ring(index);
                } else if self.is_near(ahead) {
                    self.join_replay(index);
                } else {
                    self.plan_return(index, limits::BACKLOG_RETRY);
                }
            }
        }
    }

    /// The ring has lost what comes next of a stream that reads slowly: it goes on from the log, if
    /// it is known where it stands.
    pub(super) fn plan_overtaken(&mut self, index: u32, wall: EpochMillis) {
        let Some(stream) = self.slab.get_mut(index) else { return };
        let Some(vector) = self.ring.read_before(stream.at) else {
            return self.plan_return(index, limits::BACKLOG_RETRY);
        };
        stream.state |= CUT_OFF;
        let own_partition = self.users.get(stream.user).own_partition;
        let mut served = Served::of(vector.view(), own_partition);
        let private = stream.private();
        for (partition, next) in private.ahead.iter().flat_map(Served::places) {
            served.raise(partition, next);
        }
        private.ahead = Some(served);
        self.plan_replay(index, wall);
    }

    /// Queues the stream if `plan_replay` would do something for it.
    pub(super) fn enqueue_replay(&mut self, index: u32) {
        let number = self.replay.pass.as_ref().map(|pass| pass.number);
        let Some(stream) = self.slab.get_mut(index) else { return };
        let has_work = match stream.part() {
            Part::Waits { .. } => false,
            Part::Member { pass, next: None } => Some(pass) != number,
            Part::None | Part::Refused(_) | Part::Member { .. } => true,
        };
        if has_work {
            enqueue(stream, index, &mut self.queue);
        }
    }

    /// The stream becomes a member of the pass, if that has not come by, or waits for the next one.
    fn join_replay(&mut self, index: u32) {
        let Some(stream) = self.slab.get_mut(index) else { return };
        let key = StreamKey { index, serial: stream.serial };
        let private = stream.private();
        let Some(ahead) = private.ahead.as_ref() else { return };
        let pass = self.replay.pass.as_mut().filter(|pass| pass.is_before(ahead));
        let is_first = private.part == Part::None;
        self.counters.replays += u64::from(is_first);
        match pass {
            Some(pass) => {
                private.part = Part::Member { pass: pass.number, next: None };
                pass.members.push(key);
            }
            None => {
                private.part = Part::Waits { is_first };
                self.replay.waiting.push(key);
                self.replay.newcomers += usize::from(is_first);
            }
        }
    }

    /// Begins a pass for all who wait; whether there are any.
    fn begin_pass(&mut self) -> bool {
        let Self { replay, slab, options, .. } = self;
        replay.passes = replay.passes.wrapping_add(1);
        replay.newcomers = 0;
        let number = replay.passes;
        let mut from = BTreeMap::new();
        let mut members = Vec::new();
        for key in replay.waiting.drain(..) {
            let stream = slab.get_mut(key.index).filter(|stream| stream.serial == key.serial);
            let waits = |stream: &&mut Stream<S>| matches!(stream.part(), Part::Waits { .. });
            let Some(stream) = stream.filter(waits) else { continue };
            let private = stream.private();
            let Some(ahead) = private.ahead.as_ref() else { continue };
            for (partition, next) in ahead.places() {
                let first = from.entry(partition).or_insert(next);
                *first = next.min(*first);
            }
            private.part = Part::Member { pass: number, next: None };
            members.push(key);
        }
        if members.is_empty() {
            return false;
        }
        replay.pass = Some(Pass { members, ..Pass::new(number, options.shape, from) });
        true
    }

    /// Ends the pass between two parts: its members wait with the others.
    fn end_pass(&mut self) {
        let Some(pass) = self.replay.pass.take() else { return };
        for key in pass.members {
            let stream = self.slab.get_mut(key.index);
            if let Some(stream) = stream.filter(|stream| stream.serial == key.serial) {
                stream.private().part = Part::Waits { is_first: false };
                self.replay.waiting.push(key);
            }
        }
    }

    /// Members that the ring reaches go on from there; those that are gone are forgotten.
    fn bring_to_ring(&mut self) {
        let Some(pass) = self.replay.pass.as_mut() else { return };
        let is_member = Part::Member { pass: pass.number, next: None };
        let mut members = std::mem::take(&mut pass.members);
        members.retain(|key| {
            let stream = self.slab.get(key.index).filter(|stream| stream.serial == key.serial);
            if stream.is_none_or(|stream| stream.part() != is_member) {
                return false;
            }
            let has_come = self.reaches_ring(key.index);
            if has_come {
                self.go_on_from_ring(key.index);
            }
            !has_come
        });
        if let Some(pass) = self.replay.pass.as_mut() {
            pass.members = members;
        }
    }

    /// Members that have had a part for long, and whose socket takes nothing, do not hold up the
    /// others: they join again once it does.
    fn leave_late_behind(&mut self, now: Moment) {
        if self.replay.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        let Self { replay, slab, .. } = self;
        let Some(pass) = replay.pass.as_mut() else { return };
        // Those that are only slow have as long again.
        pass.since = now;
        let number = pass.number;
        let is_member = |stream: &Stream<S>| stream.part().is_of(number);
        let is_late = |stream: &Stream<S>| {
            let has_more = matches!(stream.part(), Part::Member { next: Some(_), .. });
            stream.is(BLOCKED) && is_member(stream) && has_more
        };
        let mut members = pass
            .members
            .iter()
            .filter_map(|key| slab.get(key.index).filter(|stream| stream.serial == key.serial));
        let holds_up_others = !replay.waiting.is_empty()
            || members.any(|stream| is_member(stream) && !is_late(stream));
        if !holds_up_others {
            return;
        }
        for key in &pass.members {
            let stream = slab.get_mut(key.index).filter(|stream| stream.serial == key.serial);
            let Some(stream) = stream.filter(|stream| is_late(stream)) else { continue };
            stream.private().part = Part::Member { pass: number.wrapping_sub(1), next: None };
            pass.behind -= 1;
        }
    }

    pub(super) fn reaches_ring(&self, index: u32) -> bool {
        let private = self.slab.get(index).and_then(|stream| stream.private.as_deref());
        private.and_then(|private| private.ahead.as_ref()).is_some_and(|ahead| self.reaches(ahead))
    }

    /// The ring has all that comes next.
    pub(super) fn go_on_from_ring(&mut self, index: u32) {
        let Some(ahead) = self.slab.get_mut(index).and_then(|stream| stream.private().ahead.take())
        else {
            return;
        };
        let at = self.ring.place_of(&ahead);
        let is_ahead = !ahead.is_within(self.before(at));
        let next = self.ring.next();
        let Some(stream) = self.slab.get_mut(index) else { return };
        stream.state &= !(CUT_OFF | BEHIND);
        (stream.at, stream.until) = (at, next);
        let private = stream.private();
        private.part = Part::None;
        private.ahead = is_ahead.then_some(ahead);
        if private.is_over() {
            stream.private = None;
        }
        if at < next {
            stream.state |= BEHIND;
            enqueue(stream, index, &mut self.queue);
        }
        self.plan.end = at;
    }
}
