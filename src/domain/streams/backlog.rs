//! A stream with a backlog: the kept messages go out first, one a write, with flagged ids.
//!
//! Until the last of them is out no id says what the shard has read: the client would take it for
//! served.

use std::time::Duration;

use super::feed::Undo;
use super::{Streams, write_cursor};
use crate::base::EpochMillis;
use crate::domain::backlog::Gap;
use crate::limits::shard as limits;
use crate::wire::frame;

impl<S> Streams<S> {
    /// Plans the next kept message; behind the last one, where the log goes on.
    pub(super) fn plan_backlog(&mut self, index: u32, wall: EpochMillis) {
        let own_shape = self.options.shape;
        let Some(stream) = self.slab.get_mut(index) else { return };
        let mark = self.users.get(stream.user).mark;
        let Some(private) = stream.private.as_deref_mut() else { return };
        let Some(backlog) = private.backlog.as_mut() else { return };
        let shape = backlog.replaced.unwrap_or(own_shape);
        let lead = &mut private.lead;
        if let Some((message, served)) = backlog.next(wall, &self.ended) {
            write_cursor((&shape, mark), lead, &served, backlog.since, true);
            lead.extend_from_slice(&message.body);
            private.lead_row = message.candidate.row;
            let before = std::mem::replace(&mut backlog.progress, served);
            self.plan.undo = Some(Undo::Backlog { message, before });
        }
        if backlog.messages.is_empty() && self.plan.undo.is_none() {
            let then = backlog.then.take();
            if backlog.is_cut {
                if backlog.has_skipped {
                    // Or the same would be left out again and again.
                    write_cursor((&shape, mark), lead, &backlog.progress, backlog.since, true);
                    lead.push(b'\n');
                }
                frame::write_retry(lead, limits::BACKLOG_RETRY);
                stream.state |= super::CLOSING | super::CONTINUES;
            } else {
                let of = (&own_shape, mark);
                match &then {
                    Some(then) => write_cursor(of, lead, &then.progress, then.since, true),
                    None => write_cursor(of, lead, &backlog.checkpoint, wall, false),
                }
                match backlog.gap {
                    Some(Gap { from, to, reason }) => {
                        frame::write_gap(lead, from, to, reason);
                        self.counters.gaps += 1;
                    }
                    None => lead.push(b'\n'),
                }
            }
            private.backlog = then;
        }
        self.plan.lead_bytes = private.lead.len();
    }

    /// Neither ring nor log reach down to where the stream stands: it ends, and its client comes
    /// back for what the store keeps.
    pub(super) fn plan_return(&mut self, index: u32, after: Duration) {
        let Some(serial) = self.slab.get(index).map(|stream| stream.serial) else { return };
        let retry = self.jittered(after, serial, 100);
        let Some(stream) = self.slab.get_mut(index) else { return };
        stream.state |= super::CLOSING | super::CONTINUES;
        let lead = &mut stream.private().lead;
        frame::write_retry(lead, retry);
        self.plan.lead_bytes = lead.len();
    }
}
