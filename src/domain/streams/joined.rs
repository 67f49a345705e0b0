//! Frames that were read again, several in one write of the stream they are for.
//!
//! A frame whose first byte is out has to come whole; those behind it are looked at again before
//! they go out, because their broadcasts may have ended by then.

use super::Streams;
use super::entry::is_past;
use super::feed::{Undo, row_of};
use super::fence::is_over;
use super::replay::Part;
use crate::base::EpochMillis;
use crate::domain::backlog::Row;
use crate::domain::vector::Served;
use crate::limits::shard as limits;

/// The frames that are joined in the lead of the planned write.
pub(super) type Joined = Vec<JoinedFrame>;

#[derive(Debug)]
pub(super) struct JoinedFrame {
    /// Where it ends in the lead.
    end: usize,
    /// The event behind it in the part.
    next: usize,
    row: Option<Row>,
}

impl<S> Streams<S> {
    /// The next events of the part that are for the stream; behind the last one, where the part
    /// ends.
    pub(super) fn plan_reread(&mut self, index: u32, first: usize, wall: EpochMillis) {
        let Self { slab, users, sets, replay, plan, options, ended, .. } = self;
        let (Some(stream), Some(pass)) = (slab.get_mut(index), replay.pass.as_mut()) else {
            return;
        };
        let (user, set) = (users.get(stream.user), stream.set);
        let Some(private) = stream.private.as_deref_mut() else { return };
        let Some(ahead) = private.ahead.as_mut() else { return };
        plan.joined.clear();
        let mut next = first;
        for event in &pass.events[first.min(pass.events.len())..] {
            if private.lead.len() >= limits::REPLAY_WRITE_BYTES {
                break;
            }
            next += 1;
            let position = event.position();
            let is_due = !is_past(event, private.came_at.as_ref())
                && !ahead.covers(position)
                && sets.admits(&event.audience(), &user.name, set)
                && !is_over(event, ended, wall);
            if is_due && plan.joined.is_empty() {
                let part = Part::Member { pass: pass.number, next: Some(next - 1) };
                plan.undo = Some(Undo::Reread { part, ahead: ahead.clone() });
            }
            ahead.raise(position.partition, position.offset + 1);
            if is_due {
                let lead = &mut private.lead;
                let of = (&options.shape, user.mark);
                super::write_id_line(of, lead, ahead, event.appended_at());
                lead.extend_from_slice(event.body());
                plan.joined.push(JoinedFrame { end: lead.len(), next, row: row_of(event) });
            }
        }
        plan.looked_at += next - first;
        plan.lead_bytes = private.lead.len();
        if !plan.joined.is_empty() {
            private.part = Part::Member { pass: pass.number, next: Some(next) };
            return;
        }
        private.part = Part::Member { pass: pass.number, next: None };
        pass.behind -= 1;
        pass.read.iter().for_each(|(partition, read)| ahead.raise(*partition, *read));
        if self.reaches_ring(index) {
            self.go_on_from_ring(index);
        }
    }

    /// So many bytes of the joined frames went out, at least one. The stream stands behind the last
    /// frame that has begun; `part` and `before` are where it stood.
    pub(super) fn settle_joined(&mut self, index: u32, bytes: usize, part: Part, before: Served) {
        let Self { slab, replay, plan, counters, .. } = self;
        let Some(stream) = slab.get_mut(index) else { return };
        let private = stream.private();
        let last = plan.joined.iter().position(|frame| frame.end >= bytes);
        let begun = last.map_or(plan.joined.len(), |last| last + 1);
        counters.deliveries += begun as u64;
        counters.joined += begun.saturating_sub(1) as u64;
        for frame in &plan.joined[..begun] {
            plan.completed.extend(private.lead_row.take());
            private.lead_row = frame.row;
        }
        let last = plan.joined[..begun].last().filter(|_| begun < plan.joined.len());
        let Some(last) = last else { return };
        private.lead.truncate(last.end);
        private.lead.shrink_to_fit();
        plan.lead_bytes = last.end;
        let Part::Member { pass, next: Some(first) } = part else { return };
        let mut ahead = before;
        let events = replay.pass.as_ref().map_or(&[][..], |pass| &pass.events);
        for event in &events[first..last.next] {
            let position = event.position();
            ahead.raise(position.partition, position.offset + 1);
        }
        private.ahead = Some(ahead);
        private.part = Part::Member { pass, next: Some(last.next) };
    }
}
