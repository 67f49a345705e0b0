//! What goes over the lanes between control threads and shards: two closed enums.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;

use crate::base::{BroadcastId, LogIdentity, Moment, Partition, Position, UserId};
use crate::domain::{Backlog, Membership, Note, Presented, Reread, Served, Unread};
use crate::ports::Batch;

/// The one kind of input of a shard.
#[derive(Debug)]
pub enum ToShard {
    /// Which log it is. Before everything else.
    Identity(LogIdentity),
    /// The partition is served from here on; records before it only tell what is a repeat. Before
    /// its first batch.
    Start { partition: Partition, next: u64 },
    /// Records of one partition, in order.
    Batch(Batch),
    /// The log can't be read below `next`, and has not been up to there. What comes of it until
    /// then only tells what is a repeat.
    Skip { partition: Partition, next: u64 },
    /// What the log held at the start has been read: streams may be served.
    CaughtUp,
    /// What the store keeps for a user who is about to be served; `None`: not to be had now.
    Backlog { key: u64, backlog: Option<Box<Backlog>> },
    /// What was read again of the log.
    Reread { pass: u32, batches: Result<Vec<Batch>, Unread> },
    /// Tell the streams to go, one after the other within the window, and say when all are gone.
    Drain { window: Duration },
    /// Stop. Once every shard has said that.
    Stop,
}

/// What the control topic says, in its order. It has a lane of its own, so that it does not stand
/// behind records.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Order {
    /// Broadcasts of which no message may begin any more, and until when that has to be known.
    pub ended: Vec<(BroadcastId, Moment)>,
    /// Its number, which rises: all up to it are applied once this one is.
    pub applied: u64,
    /// Messages may begin until then; `None`: it says nothing of that.
    pub fresh_until: Option<Moment>,
}

impl Order {
    /// Takes the next one in, for a shard that has no room for two.
    pub fn join(&mut self, next: Self) {
        self.ended.extend(next.ended);
        self.applied = self.applied.max(next.applied);
        self.fresh_until = self.fresh_until.max(next.fresh_until);
    }
}

/// What a shard tells the control threads.
#[derive(Debug)]
pub enum FromShard {
    /// A request that is no stream: its socket, and the bytes that were read from it.
    Request { socket: OwnedFd, bytes: Bytes },
    /// What does the store keep for this user, and was the log ever where he says? Answered by
    /// `ToShard::Backlog`.
    Ask(Box<Ask>),
    /// Read this again. Answered by `ToShard::Reread`.
    Reread { shard: u16, reread: Reread },
    /// For the store to keep.
    Notes(Vec<Note>),
    /// A record that could not be decoded, and how many before it were not told of. The next one
    /// is served.
    BadRecord { position: Position, reason: String, others: u64 },
    /// A record that this release does not serve, and how many before it were not told of.
    Unserved { position: Position, reason: &'static str, others: u64 },
    /// The shard has applied the orders up to this one.
    Applied { shard: u16, applied: u64 },
    /// The shard serves streams.
    Serving { shard: u16 },
    /// The shard drains, and has no streams left.
    Drained { shard: u16 },
    /// A turn took longer than it should.
    LongTurn { shard: u16, took: Duration },
}

/// A user who comes without a cursor, in the middle of a backlog, from before the ring, or from
/// further than the node has read.
#[derive(Debug)]
pub struct Ask {
    pub shard: u16,
    /// Names the question to the shard that asks.
    pub key: u64,
    pub user: UserId,
    /// Sorted, without repeats.
    pub members: Vec<Membership>,
    /// How far the shard has read the log: what lies before it has been there.
    pub read: Served,
    /// From where on its ring has what is for the user.
    pub ring: Served,
    pub presented: Option<Presented>,
}
