//! What is parked in the store of the simulation. A row that was removed may come back when it is
//! written again, or stay away.

use async_trait::async_trait;
use corecast::base::EpochMillis;
use corecast::ports::{Bucket, Parked, Parking, StoreError};
use uuid::Uuid;

use crate::store::{FakeStore, Piece};

/// In the order in which they are listed.
pub type Key = (Bucket, EpochMillis, Uuid, u32);

pub fn key_of(row: &Parked) -> Key {
    (row.bucket(), row.due_at, row.event, row.attempt)
}

#[async_trait]
impl Parking for FakeStore {
    async fn park(&self, row: &Parked) -> Result<(), StoreError> {
        self.write(vec![Piece::Park(Box::new(row.clone()))]).await
    }

    async fn parked(
        &self,
        bucket: Bucket,
        now: EpochMillis,
        limit: usize,
    ) -> Result<Vec<Parked>, StoreError> {
        self.read(move |shelves| {
            let first = (bucket, EpochMillis(0), Uuid::nil(), 0);
            let last = (bucket, now, Uuid::max(), u32::MAX);
            shelves.parked.range(first..=last).map(|(_, row)| row.clone()).take(limit).collect()
        })
        .await
    }

    async fn unpark(&self, row: &Parked) -> Result<(), StoreError> {
        self.write(vec![Piece::Unpark(key_of(row))]).await
    }

    async fn note_served(&self, event: Uuid) -> Result<(), StoreError> {
        self.write(vec![Piece::Served(event)]).await
    }

    async fn is_served(&self, event: Uuid) -> Result<bool, StoreError> {
        self.read(move |shelves| shelves.served.contains(&event)).await
    }
}
