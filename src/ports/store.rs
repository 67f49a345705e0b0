//! The store: what must outlive a node.
//!
//! `tests/store_suite` states what every implementation must do. `Ok` of a write means durable.

use async_trait::async_trait;

use crate::base::{BroadcastId, EpochMillis, Status};
use crate::domain::Broadcast;

/// A broadcast that exists: its immutable content and its status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BroadcastRow {
    pub broadcast: Broadcast,
    pub status: Status,
}

/// What is still to be published. Removed once the log has it. Its time is that of its writing, by
/// the node's clock: a store may look for rows from where it found none left some time ago.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutboxRow {
    pub id: BroadcastId,
    pub created_at: EpochMillis,
}

/// Whether an id was free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    Applied,
    /// Somebody else's row stands there and was not touched.
    Taken,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListFilter {
    /// Newest first.
    All,
    /// Status ACTIVE; newest first.
    Active,
    /// Status SCHEDULED; soonest first.
    Scheduled,
}

/// Where a list goes on: behind this row. For `Scheduled` the time is `scheduled_at`, for the
/// others `created_at`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListPlace {
    pub at: EpochMillis,
    pub id: BroadcastId,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Heals by itself: wait and ask again. A write may or may not have been done.
    #[error("store is away: {0}")]
    Away(String),
    /// Does not heal without an operator.
    #[error("store failed: {0}")]
    Failed(String),
}

#[async_trait]
pub trait Store: Send + Sync {
    /// Idempotent.
    async fn put_outbox(&self, row: &OutboxRow) -> Result<(), StoreError>;

    /// Idempotent; a row that is not there is no error. A row that was removed may stay away
    /// when it is put again.
    async fn remove_outbox(&self, row: &OutboxRow) -> Result<(), StoreError>;

    /// Every row that is there, oldest first, at most `limit`.
    async fn outbox(&self, limit: usize) -> Result<Vec<OutboxRow>, StoreError>;

    /// Writes the content if the id is free: this is what makes ids unique.
    async fn claim_broadcast(&self, broadcast: &Broadcast) -> Result<Claim, StoreError>;

    /// Creates the status row if there is none: this is what makes a broadcast exist.
    async fn create_status(&self, id: BroadcastId, status: Status) -> Result<Claim, StoreError>;

    /// `None` without a status row.
    async fn broadcast(&self, id: BroadcastId) -> Result<Option<BroadcastRow>, StoreError>;

    /// At most `limit` rows behind `after`, in the filter's order.
    async fn broadcasts(
        &self,
        filter: ListFilter,
        after: Option<ListPlace>,
        limit: usize,
    ) -> Result<Vec<BroadcastRow>, StoreError>;
}
