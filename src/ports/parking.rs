//! Parking: records that could not be served where they stood, until they have been published
//! again.
//!
//! `tests/store_suite` states what every implementation must do. `Ok` of a write means
//! durable.

use async_trait::async_trait;
use uuid::Uuid;

use super::{Record, StoreError};
use crate::base::{BroadcastId, EpochMillis, LogShape, Partition, Topic};
use crate::limits::parking::BUCKETS;

/// A record that waits. What makes it one of its kind: when it is due, the event, the attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    /// Not before then. At least the time of its writing by the node's clock: a store may look for
    /// rows from where it found none left some time ago.
    pub due_at: EpochMillis,
    pub event: Uuid,
    /// The record's own.
    pub attempt: u32,
    /// How often its broadcast has been looked for in vain.
    pub tries: u32,
    /// Where it stood, and what.
    pub partition: Partition,
    pub record: Record,
}

/// A share of what is parked, or of the broadcasts: below `BUCKETS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bucket(pub u16);

impl Bucket {
    /// Follows from the id: its lowest bits are random, or those of a counter.
    pub const fn of_broadcast(id: BroadcastId) -> Self {
        Self((id.get() % BUCKETS as u64) as u16)
    }
}

impl Parked {
    /// Follows from the event.
    pub fn bucket(&self) -> Bucket {
        let share = self.event.as_u128() % u128::from(BUCKETS);
        Bucket(share as u16)
    }
}

/// The shares that go with these partitions of the group topic.
pub fn buckets_of(owned: impl Iterator<Item = Partition>, shape: &LogShape) -> Vec<Bucket> {
    let groups: Vec<Partition> =
        owned.filter(|partition| partition.topic == Topic::Group).collect();
    let is_own = |bucket: &u16| {
        groups.iter().any(|partition| bucket % shape.group_partitions == partition.index)
    };
    (0..BUCKETS).filter(is_own).map(Bucket).collect()
}

#[async_trait]
pub trait Parking: Send + Sync {
    /// Idempotent. A row that was removed may stay away when it is written again.
    async fn park(&self, row: &Parked) -> Result<(), StoreError>;

    /// Rows of a bucket that are due at `now`, in the order of their times, at most `limit`.
    async fn parked(
        &self,
        bucket: Bucket,
        now: EpochMillis,
        limit: usize,
    ) -> Result<Vec<Parked>, StoreError>;

    /// Idempotent.
    async fn unpark(&self, row: &Parked) -> Result<(), StoreError>;

    /// Notes that an event without an inbox row, published again, stands where it is served.
    /// Idempotent.
    async fn note_served(&self, event: Uuid) -> Result<(), StoreError>;

    /// Whether that has been noted.
    async fn is_served(&self, event: Uuid) -> Result<bool, StoreError>;
}
