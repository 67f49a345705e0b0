//! Ports that ask the test before a call, which may count it, hold it up or refuse it.
#![allow(dead_code)] // each of the test files uses a part of it

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corecast::base::{BroadcastId, LogIdentity, LogShape, Partition, Position, Status, UserId};
use corecast::domain::Broadcast;
use corecast::ports::{
    Batch, Bounds, BroadcastRow, Claim, Content, GroupRow, Inbox, InboxRow, InboxWrite, ListFilter,
    ListPlace, Log, LogError, MovedRecord, NewRecord, OutboxRow, Store, StoreError, Want,
};

/// What is called, and how many items it is called with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    WriteInbox(usize),
    Inbox,
    WriteGroup(usize),
    Group,
    Contents(usize),
    WriteCursor,
    Cursor,
    Claim,
    CreateStatus,
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

/// Only of what creates.
#[async_trait]
impl Store for Gated<dyn Store, StoreError> {
    async fn put_outbox(&self, row: &OutboxRow) -> Result<(), StoreError> {
        self.port.put_outbox(row).await
    }

    async fn remove_outbox(&self, row: &OutboxRow) -> Result<(), StoreError> {
        self.port.remove_outbox(row).await
    }

    async fn outbox(&self, limit: usize) -> Result<Vec<OutboxRow>, StoreError> {
        self.port.outbox(limit).await
    }

    async fn claim_broadcast(&self, broadcast: &Broadcast) -> Result<Claim, StoreError> {
        self.ask(Call::Claim).await?;
        self.port.claim_broadcast(broadcast).await
    }

    async fn create_status(&self, id: BroadcastId, status: Status) -> Result<Claim, StoreError> {
        self.ask(Call::CreateStatus).await?;
        self.port.create_status(id, status).await
    }

    async fn broadcast(&self, id: BroadcastId) -> Result<Option<BroadcastRow>, StoreError> {
        self.port.broadcast(id).await
    }

    async fn broadcasts(
        &self,
        filter: ListFilter,
        after: Option<ListPlace>,
        limit: usize,
    ) -> Result<Vec<BroadcastRow>, StoreError> {
        self.port.broadcasts(filter, after, limit).await
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
