//! The embedded store: rows by id, and lists as keyspace entries in list order.

use std::sync::Arc;

use async_trait::async_trait;
use fjall::Keyspace;

use super::Keyspaces;
use super::commit::{Committer, Condition, Row};
use super::rows::{self, List, RowError};
use crate::base::{BroadcastId, Status};
use crate::domain::Broadcast;
use crate::ports::{
    BroadcastRow, Claim, Clock, ListFilter, ListPlace, OutboxRow, Store, StoreError,
};

pub struct EmbeddedStore {
    pub(super) keyspaces: Keyspaces,
    pub(super) committer: Committer,
    pub(super) clock: Arc<dyn Clock>,
}

impl EmbeddedStore {
    pub(super) fn new(keyspaces: Keyspaces, committer: Committer, clock: Arc<dyn Clock>) -> Self {
        Self { keyspaces, committer, clock }
    }

    /// Reads off the async threads: a row may have to come from the disk.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Keyspaces) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let keyspaces = self.keyspaces.clone();
        let read = tokio::task::spawn_blocking(move || read(&keyspaces)).await;
        read.map_err(|error| StoreError::Failed(error.to_string()))?
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn put_outbox(&self, row: &OutboxRow) -> Result<(), StoreError> {
        let value = Some(rows::write_outbox(row.created_at));
        let row = row_of(&self.keyspaces.outbox, row.id, value);
        self.committer.write(vec![row], Condition::None).await.map(drop)
    }

    async fn remove_outbox(&self, row: &OutboxRow) -> Result<(), StoreError> {
        let row = row_of(&self.keyspaces.outbox, row.id, None);
        self.committer.write(vec![row], Condition::None).await.map(drop)
    }

    async fn outbox(&self, limit: usize) -> Result<Vec<OutboxRow>, StoreError> {
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            for entry in keyspaces.outbox.iter().take(limit) {
                let (key, value) = entry.into_inner().map_err(failed)?;
                let (id, created_at) = (rows::read_id(&key)?, rows::read_outbox(&value)?);
                found.push(OutboxRow { id, created_at });
            }
            Ok(found)
        })
        .await
    }

    async fn claim_broadcast(&self, broadcast: &Broadcast) -> Result<Claim, StoreError> {
        let value = Some(rows::write_broadcast(broadcast));
        let row = row_of(&self.keyspaces.broadcast, broadcast.id, value);
        self.committer.write(vec![row], Condition::Absent).await
    }

    async fn create_status(&self, id: BroadcastId, status: Status) -> Result<Claim, StoreError> {
        let broadcast = self.read(move |keyspaces| broadcast_of(keyspaces, id)).await?;
        let broadcast = broadcast.ok_or_else(|| {
            StoreError::Failed(format!("broadcast {id} has no content to give a status to"))
        })?;
        let mut rows = vec![row_of(&self.keyspaces.status, id, Some(rows::write_status(status)))];
        let all = ListPlace { at: broadcast.created_at, id };
        let lists = [Some((List::All, all)), list_of(&broadcast, status)];
        rows.extend(lists.into_iter().flatten().map(|(list, place)| self.entry(list, place, true)));
        rows.extend(self.due_row(&broadcast, status));
        self.committer.write(rows, Condition::Absent).await
    }

    async fn broadcast(&self, id: BroadcastId) -> Result<Option<BroadcastRow>, StoreError> {
        self.read(move |keyspaces| row(keyspaces, id)).await
    }

    async fn broadcasts(
        &self,
        filter: ListFilter,
        after: Option<ListPlace>,
        limit: usize,
    ) -> Result<Vec<BroadcastRow>, StoreError> {
        let list = match filter {
            ListFilter::All => List::All,
            ListFilter::Active => List::Active,
            ListFilter::Scheduled => List::Scheduled,
        };
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            let after = after.map(|place| rows::list_key(list, place).to_vec());
            let start = after.clone().unwrap_or_else(|| vec![list as u8]);
            for entry in keyspaces.list.range(start..vec![list as u8 + 1]) {
                let key = entry.key().map_err(failed)?;
                if found.len() == limit {
                    break;
                }
                if after.as_deref() == Some(&*key) {
                    continue;
                }
                found.extend(row(keyspaces, rows::list_id(&key)?)?);
            }
            Ok(found)
        })
        .await
    }
}

impl EmbeddedStore {
    /// An entry of a list, or its removal.
    pub(super) fn entry(&self, list: List, place: ListPlace, is_there: bool) -> Row {
        Row {
            keyspace: self.keyspaces.list.clone(),
            key: rows::list_key(list, place).to_vec(),
            value: is_there.then(Vec::new),
        }
    }
}

/// The list in which a broadcast of that status stands, besides that of all.
pub(super) fn list_of(broadcast: &Broadcast, status: Status) -> Option<(List, ListPlace)> {
    let Broadcast { id, created_at, scheduled_at, .. } = *broadcast;
    match status {
        Status::Active => Some((List::Active, ListPlace { at: created_at, id })),
        Status::Scheduled => {
            let at = scheduled_at.unwrap_or(created_at);
            Some((List::Scheduled, ListPlace { at, id }))
        }
        _ => None,
    }
}

fn row_of(keyspace: &Keyspace, id: BroadcastId, value: Option<Vec<u8>>) -> Row {
    Row { keyspace: keyspace.clone(), key: rows::id_key(id).to_vec(), value }
}

pub(super) fn broadcast_of(
    keyspaces: &Keyspaces,
    id: BroadcastId,
) -> Result<Option<Broadcast>, StoreError> {
    let bytes = keyspaces.broadcast.get(rows::id_key(id)).map_err(failed)?;
    Ok(bytes.map(|bytes| rows::read_broadcast(&bytes)).transpose()?)
}

pub(super) fn status_of(
    keyspaces: &Keyspaces,
    id: BroadcastId,
) -> Result<Option<Status>, StoreError> {
    let bytes = keyspaces.status.get(rows::id_key(id)).map_err(failed)?;
    Ok(bytes.map(|bytes| rows::read_status(&bytes)).transpose()?)
}

/// `None` without a status: it does not exist.
fn row(keyspaces: &Keyspaces, id: BroadcastId) -> Result<Option<BroadcastRow>, StoreError> {
    let Some(status) = status_of(keyspaces, id)? else { return Ok(None) };
    Ok(broadcast_of(keyspaces, id)?.map(|broadcast| BroadcastRow { broadcast, status }))
}

pub(super) fn failed(error: fjall::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl From<RowError> for StoreError {
    fn from(error: RowError) -> Self {
        Self::Failed(error.to_string())
    }
}
