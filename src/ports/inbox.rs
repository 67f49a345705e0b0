//! The inbox: what is kept of messages for users who are not here.
//!
//! Rows are written by whoever learns something, in any order, again and again, and merge as a
//! maximum. `tests/store_suite` states what every implementation must do. `Ok` of a write means
//! durable.

use async_trait::async_trait;

use super::StoreError;
use crate::base::{BroadcastId, EpochMillis, LogIdentity, Partition, Position, Status, UserId};
use crate::domain::Broadcast;

/// How far a message has come to its user, within one attempt. In rising order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Delivery {
    Pending,
    /// It stands in the dead letters.
    Failed,
    Delivered,
}

/// Where a message stands in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub log: LogIdentity,
    pub position: Position,
    pub appended_at: EpochMillis,
}

/// How far, and in which attempt. A later attempt is above all of an earlier one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Progress {
    pub attempt: u32,
    pub delivery: Delivery,
}

/// What somebody has learnt of one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InboxWrite {
    pub user: UserId,
    pub broadcast: BroadcastId,
    /// Stored rows keep the smallest offset; of equal ones in two logs, either.
    pub place: Option<Place>,
    pub progress: Progress,
    /// When that was. The earliest DELIVERED stays.
    pub at: EpochMillis,
    /// The row may be forgotten from then on; if its writers differ, from the earliest on.
    pub keep_until: EpochMillis,
}

/// Word that a message is to be taken away from a user again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removal {
    pub user: UserId,
    pub broadcast: BroadcastId,
    /// Where the record stands that says so. Stored rows keep the smallest offset, as of messages.
    pub place: Place,
    /// As that of the message.
    pub keep_until: EpochMillis,
}

/// One message of one user. What only DELIVERED, or a removal, has been written of is no row yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InboxRow {
    pub broadcast: BroadcastId,
    pub place: Option<Place>,
    pub progress: Progress,
    pub delivered_at: Option<EpochMillis>,
    /// Where the CANCELLED or EXPIRED record for this user stands.
    pub removed: Option<Place>,
}

/// What a record of the group topic did to its broadcast.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum GroupWhat {
    Created,
    /// Cancelled it, or said that it has expired.
    Removed,
}

/// A record of the group topic about a broadcast, and until when it is of interest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupRow {
    pub broadcast: BroadcastId,
    pub what: GroupWhat,
    pub place: Place,
    pub keep_until: EpochMillis,
}

/// Offsets `from..to` of a partition that the log lost before its owner had kept what stood there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    pub partition: Partition,
    pub from: u64,
    pub to: u64,
    pub noted_at: EpochMillis,
}

/// What a message of a broadcast says; without the audience of a SELECTED one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    /// `target.ids` is empty for SELECTED.
    pub broadcast: Broadcast,
    /// An older producer's broadcast has none and counts as ACTIVE.
    pub status: Option<Status>,
}

#[async_trait]
pub trait Inbox: Send + Sync {
    /// Idempotent; several of one row merge as if they had come one by one.
    async fn write_inbox(&self, writes: &[InboxWrite]) -> Result<(), StoreError>;

    /// The rows of a user behind `after`, by broadcast, at most `limit`; fewer only at the end.
    /// Rows past `keep_until` may be missing.
    async fn inbox(
        &self,
        user: &UserId,
        after: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<InboxRow>, StoreError>;

    /// The row of one broadcast.
    async fn row(
        &self,
        user: &UserId,
        broadcast: BroadcastId,
    ) -> Result<Option<InboxRow>, StoreError> {
        let before = broadcast.get().checked_sub(1).and_then(BroadcastId::new);
        let rows = self.inbox(user, before, 1).await?;
        Ok(rows.into_iter().find(|row| row.broadcast == broadcast))
    }

    /// Idempotent, before the rows or behind them. A removal alone makes no row.
    async fn write_removals(&self, removals: &[Removal]) -> Result<(), StoreError>;

    /// Idempotent: the place is the key.
    async fn write_group(&self, rows: &[GroupRow]) -> Result<(), StoreError>;

    /// The rows of a partition of the group topic from an offset on, in offset order, at most
    /// `limit`; fewer only at the end. Rows past `keep_until` may be missing.
    async fn group(
        &self,
        log: LogIdentity,
        partition: u16,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GroupRow>, StoreError>;

    /// Notes holes of this log. Of those that begin at one place the one that reaches furthest
    /// stays.
    async fn write_holes(&self, log: LogIdentity, holes: &[Hole]) -> Result<(), StoreError>;

    /// The holes of this log, by partition and place; of very many, the first.
    async fn holes(&self, log: LogIdentity) -> Result<Vec<Hole>, StoreError>;

    /// Writes contents of broadcasts that were created elsewhere, if their ids are free. What
    /// stands there stays; of several that are written at a time, one. Their targets fit one row.
    async fn write_contents(&self, contents: &[Broadcast]) -> Result<(), StoreError>;

    /// In the order of the ids; `None` for one that nobody has claimed or written.
    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError>;

    /// Notes up to where a user has been served: next offsets. They merge as a maximum.
    async fn write_cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
        next: &[(Partition, u64)],
    ) -> Result<(), StoreError>;

    /// What was noted of this log, by partition.
    async fn cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
    ) -> Result<Vec<(Partition, u64)>, StoreError>;
}
