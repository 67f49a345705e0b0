//! The backlog: what the store keeps for a user who comes without a cursor, or with one that the
//! ring does not reach down to, in the one order in which it is served.
//!
//! Each partition's messages go out in offset order, the partition with the oldest head first. That
//! order follows from the messages alone, so a backlog that broke off is taken up on any node from
//! the progress that its flagged cursor carries.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use super::ended::Ended;
use super::vector::Served;
use crate::base::{BroadcastId, EpochMillis, LogShape, Partition, Position, UserId};
use crate::wire::frame::GapReason;

/// A message that may belong to a backlog, or word of one that can't be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub what: What,
    /// `None` in a log that is no more: such messages have an order of their own, and no cursor
    /// tells how many of them are out.
    pub position: Option<Position>,
    pub appended_at: EpochMillis,
    /// Whose row is to say that it has been delivered; `None` for a group audience.
    pub row: Option<Row>,
}

/// What stands at a place of a backlog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Message(BroadcastId),
    /// One that was served before has ended.
    Removed(BroadcastId),
    /// Not all that stood before this place was kept.
    Gap(Gap),
}

impl What {
    /// Whose message it is.
    pub fn broadcast(self) -> Option<BroadcastId> {
        match self {
            Self::Message(broadcast) => Some(broadcast),
            Self::Removed(_) | Self::Gap(_) => None,
        }
    }
}

/// One message of a backlog, with what it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptMessage {
    pub candidate: Candidate,
    pub expires_at: Option<EpochMillis>,
    /// Its frame without the `id` line.
    pub body: Arc<[u8]>,
}

/// A message of one user, in one of its attempts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Row {
    pub broadcast: BroadcastId,
    pub attempt: u32,
}

/// What a shard has learnt of a user, for the store to keep. A note that is lost costs a
/// repetition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// The peer has acknowledged these.
    Delivered { user: UserId, rows: Vec<Row> },
    /// A stream has ended that had been served so far.
    Served { user: UserId, served: Served },
    /// A client has presented this: what lies before it has reached the user.
    Presented { user: UserId, served: Served },
}

impl Note {
    pub fn user(&self) -> &UserId {
        match self {
            Self::Delivered { user, .. }
            | Self::Served { user, .. }
            | Self::Presented { user, .. } => user,
        }
    }
}

/// What a client says that it has been served, where its shard can't tell by itself what comes
/// next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Presented {
    pub served: Served,
    /// When that was, to the hour.
    pub at: EpochMillis,
    /// What was delivered from then on need not have reached it: when the backlog began that it was
    /// given before, or `SINCE_EVER`.
    pub since: EpochMillis,
    /// The log of which it speaks, if that is no more.
    pub replaced: Option<LogShape>,
    /// What comes next is in the ring, if the log has ever been so far.
    pub is_in_ring: bool,
}

/// What a stream is served before it goes on from the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backlog {
    /// In the order in which they go out.
    pub messages: VecDeque<KeptMessage>,
    /// What has been served of it, by partition: what a flagged cursor says.
    pub progress: Served,
    /// Where the log takes over: everything below is in the store.
    pub checkpoint: Served,
    /// The client presented the progress.
    pub is_resumed: bool,
    /// When it began, to the hour once it has been resumed. What has been delivered since then need
    /// not have reached this client, so it is served from the progress on.
    pub since: EpochMillis,
    /// More is kept than goes out at once: the client comes back for it.
    pub is_cut: bool,
    /// What had ended was left out.
    pub has_skipped: bool,
    /// Told behind the last message.
    pub gap: Option<Gap>,
    /// Its positions are those of a log that is no more. What comes then is of this log.
    pub replaced: Option<LogShape>,
    pub then: Option<Box<Backlog>>,
}

/// Something that can no longer be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    pub from: EpochMillis,
    pub to: EpochMillis,
    pub reason: GapReason,
}

/// `since` of a backlog behind a cursor: its rows are served whenever they were delivered, because
/// that was to another client.
pub const SINCE_EVER: EpochMillis = EpochMillis(0);

/// From where to where a backlog reaches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    pub progress: Served,
    pub checkpoint: Served,
    pub is_resumed: bool,
    pub since: EpochMillis,
}

impl Backlog {
    /// `messages` in their order; `is_cut`: there are more.
    pub fn new(reach: Reach, messages: Vec<KeptMessage>, is_cut: bool) -> Self {
        let Reach { progress, checkpoint, is_resumed, since } = reach;
        Self {
            messages: messages.into(),
            progress,
            checkpoint,
            is_resumed,
            since,
            is_cut,
            has_skipped: false,
            gap: None,
            replaced: None,
            then: None,
        }
    }

    /// Whether nothing of it is to be told: where the log takes over is where the client stands.
    pub fn is_done(&self) -> bool {
        self.messages.is_empty() && !self.is_cut && !self.is_resumed && self.gap.is_none()
    }

    /// Whether the client has been served all that lies before the checkpoint, as it says.
    pub fn was_served_before(&self) -> bool {
        self.is_resumed && self.replaced.is_none() && self.progress == self.checkpoint
    }

    /// Takes the next message that has not ended; with it, what will have been served. What has
    /// ended counts as served.
    pub fn next(&mut self, wall: EpochMillis, ended: &Ended) -> Option<(KeptMessage, Served)> {
        let is_ended = |what| matches!(what, What::Message(id) if ended.contains(id));
        loop {
            let message = self.messages.pop_front()?;
            let what = message.candidate.what;
            let is_over = message.expires_at.is_some_and(|at| at <= wall) || is_ended(what);
            let mut served = self.progress.clone();
            if let Some(position) = message.candidate.position {
                let is_record = !matches!(what, What::Gap(_));
                served.raise(position.partition, position.offset + u64::from(is_record));
            }
            if is_over {
                self.progress = served;
                self.has_skipped = true;
                continue;
            }
            return Some((message, served));
        }
    }
}

/// Merges the partitions into the order in which they are served.
pub fn in_order(candidates: Vec<Candidate>) -> impl Iterator<Item = Candidate> {
    let mut queues: BTreeMap<Option<Partition>, VecDeque<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        let partition = candidate.position.map(|position| position.partition);
        queues.entry(partition).or_default().push_back(candidate);
    }
    for queue in queues.values_mut() {
        // A gap goes out before what stands at its end.
        queue.make_contiguous().sort_by_key(|Candidate { what, position, appended_at, .. }| {
            let offset = position.map_or(0, |position| position.offset);
            (offset, !matches!(what, What::Gap(_)), *appended_at, what.broadcast())
        });
    }
    oldest_first(queues, |candidate| candidate.appended_at)
}

/// Merges queues that keep their order: the oldest head goes first.
pub(super) fn oldest_first<Q: Ord + Copy, T>(
    mut queues: BTreeMap<Q, VecDeque<T>>,
    at: impl Fn(&T) -> EpochMillis,
) -> impl Iterator<Item = T> {
    let heads = queues.iter().filter_map(|(name, queue)| Some((at(queue.front()?), *name)));
    let mut heads: BinaryHeap<_> = heads.map(Reverse).collect();
    std::iter::from_fn(move || {
        let Reverse((_, name)) = heads.pop()?;
        let queue = queues.get_mut(&name)?;
        let item = queue.pop_front()?;
        heads.extend(queue.front().map(|head| Reverse((at(head), name))));
        Some(item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Moment, Topic};

    fn candidate(place: Option<(Topic, u16, u64)>, at: u64) -> Candidate {
        let position = place.map(|(topic, index, offset)| Position {
            partition: Partition { topic, index },
            offset,
        });
        let broadcast = BroadcastId::new(at).expect("small");
        Candidate {
            what: What::Message(broadcast),
            position,
            appended_at: EpochMillis(at),
            row: None,
        }
    }

    #[test]
    fn partitions_keep_their_order_and_the_oldest_head_goes_first() {
        let (own, group) = (Topic::Selected, Topic::Group);
        let candidates = vec![
            candidate(Some((group, 0, 5)), 30),
            candidate(Some((group, 0, 4)), 50), // Appended before by a clock that was ahead.
            candidate(Some((own, 2, 9)), 40),
            candidate(Some((own, 2, 1)), 10),
            candidate(None, 20),
            candidate(None, 15),
        ];
        let times: Vec<u64> = in_order(candidates).map(|next| next.appended_at.0).collect();
        assert_eq!(times, [10, 15, 20, 40, 50, 30]);
    }

    #[test]
    fn progress_covers_what_went_out_and_what_ended_is_left_out() {
        let served = Served { own_partition: 2, own: 0, group: [0, 0].into() };
        let (progress, checkpoint, since) = (served.clone(), served, EpochMillis(0));
        let reach = Reach { progress, checkpoint, is_resumed: false, since };
        let message = |at: u64| KeptMessage {
            candidate: candidate(Some((Topic::Group, 1, at)), at),
            expires_at: (at == 0).then_some(EpochMillis(100)),
            body: Arc::from(*b"event: MESSAGE"),
        };
        let mut backlog = Backlog::new(reach, (0..3).map(message).collect(), false);
        let mut ended = Ended::default();
        let (next, served) = backlog.next(EpochMillis(100), &ended).expect("two are left");
        assert_eq!((next.candidate.appended_at.0, &*served.group), (1, [0, 2].as_slice()));
        assert_eq!(backlog.progress.group[1], 1, "what ended counts as out, the other not yet");
        ended.insert(BroadcastId::new(2).expect("small"), Moment(1_000));
        assert!(backlog.next(EpochMillis(100), &ended).is_none());
    }
}
