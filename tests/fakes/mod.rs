//! Ports that ask the test before a call, which may count it, hold it up or refuse it.
#![allow(dead_code)] // each of the test files uses a part of it

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corecast::base::{
    BroadcastId, EpochMillis, LogIdentity, LogShape, Partition, Position, UserId,
};
use corecast::domain::Broadcast;
use corecast::ports::{
    Batch, Bounds, Bucket, Content, GroupRow, Hole, Inbox, InboxRow, InboxWrite, Log, LogError,
    MovedRecord, NewRecord, Parked, Parking, Removal, StoreError, Want,
};
use uuid::Uuid;

/// What is called, and how many items it is called with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    WriteInbox(usize),
    WriteRemovals(usize),
    Inbox,
    WriteGroup(usize),
    Group,
    WriteHoles,
    Holes,
    WriteContents(usize),
    Contents(usize),
    WriteCursor,
    Cursor,
    Park,
    Parked,
    Unpark,
    NoteServed,
    IsServed,
    Append(usize),
    AppendMoved(usize),
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<(), E>> + Send>>;

/// A port, and who is asked.
pub struct Gated<P: ?Sized, E> {
    port: Arc<P>,
    ask: Box<dyn Fn(Call) -> Answer<E> + Send + Sync>,
}

impl<P: ?Sized, E> Gated<P, E> {
    pub fn new<F>(port: Arc<P>, ask: impl Fn(Call) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        Arc::new(Self { port, ask: Box::new(move |call| Box::pin(ask(call))) })
    }

    async fn ask(&self, call: Call) -> Result<(), E> {
        (self.ask)(call).await
    }
}

#[async_trait]
impl Inbox for Gated<dyn Inbox, StoreError> {
    async fn write_inbox(&self, writes: &[InboxWrite]) -> Result<(), StoreError> {
        self.ask(Call::WriteInbox(writes.len())).await?;
        self.port.write_inbox(writes).await
    }

    async fn inbox(
        &self,
        user: &UserId,
        after: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<InboxRow>, StoreError> {
        self.ask(Call::Inbox).await?;
        self.port.inbox(user, after, limit).await
    }

    async fn write_removals(&self, removals: &[Removal]) -> Result<(), StoreError> {
        self.ask(Call::WriteRemovals(removals.len())).await?;
        self.port.write_removals(removals).await
    }

    async fn write_group(&self, rows: &[GroupRow]) -> Result<(), StoreError> {
        self.ask(Call::WriteGroup(rows.len())).await?;
        self.port.write_group(rows).await
    }

    async fn group(
        &self,
        log: LogIdentity,
        partition: u16,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GroupRow>, StoreError> {
        self.ask(Call::Group).await?;
        self.port.group(log, partition, from, limit).await
    }

    async fn write_holes(&self, log: LogIdentity, holes: &[Hole]) -> Result<(), StoreError> {
        self.ask(Call::WriteHoles).await?;
        self.port.write_holes(log, holes).await
    }

    async fn holes(&self, log: LogIdentity) -> Result<Vec<Hole>, StoreError> {
        self.ask(Call::Holes).await?;
        self.port.holes(log).await
    }

    async fn write_contents(&self, contents: &[Broadcast]) -> Result<(), StoreError> {
        self.ask(Call::WriteContents(contents.len())).await?;
        self.port.write_contents(contents).await
    }

    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError> {
        self.ask(Call::Contents(ids.len())).await?;
        self.port.contents(ids).await
    }

    async fn write_cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
        next: &[(Partition, u64)],
    ) -> Result<(), StoreError> {
        self.ask(Call::WriteCursor).await?;
        self.port.write_cursor(user, log, next).await
    }

    async fn cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        self.ask(Call::Cursor).await?;
        self.port.cursor(user, log).await
    }
}

#[async_trait]
impl Parking for Gated<dyn Parking, StoreError> {
    async fn park(&self, row: &Parked) -> Result<(), StoreError> {
        self.ask(Call::Park).await?;
        self.port.park(row).await
    }

    async fn parked(
        &self,
        bucket: Bucket,
        now: EpochMillis,
        limit: usize,
    ) -> Result<Vec<Parked>, StoreError> {
        self.ask(Call::Parked).await?;
        self.port.parked(bucket, now, limit).await
    }

    async fn unpark(&self, row: &Parked) -> Result<(), StoreError> {
        self.ask(Call::Unpark).await?;
        self.port.unpark(row).await
    }

    async fn note_served(&self, event: Uuid) -> Result<(), StoreError> {
        self.ask(Call::NoteServed).await?;
        self.port.note_served(event).await
    }

    async fn is_served(&self, event: Uuid) -> Result<bool, StoreError> {
        self.ask(Call::IsServed).await?;
        self.port.is_served(event).await
    }
}

/// Only of what appends.
#[async_trait]
impl Log for Gated<dyn Log, LogError> {
    async fn shape(&self) -> Result<LogShape, LogError> {
        self.port.shape().await
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, LogError> {
        self.port.bounds(partition).await
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        self.ask(Call::Append(records.len())).await?;
        self.port.append(records).await
    }

    async fn append_moved(&self, records: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        self.ask(Call::AppendMoved(records.len())).await?;
        self.port.append_moved(records).await
    }

    async fn fetch(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait_max: Duration,
    ) -> Result<Vec<Batch>, LogError> {
        self.port.fetch(wants, bytes_max, wait_max).await
    }
}
