//! The inbox in the embedded store: rows that are joined in the committing thread.

use std::ops::Bound;

use async_trait::async_trait;

use super::EmbeddedStore;
use super::Keyspaces;
use super::commit::JoinedRow;
use super::inbox_rows::{self as rows, StoredInboxRow};
use super::rows::{id_key, write_broadcast};
use super::store::{broadcast_of, failed, status_of};
use crate::base::{BroadcastId, LogIdentity, Partition, TargetType, UserId};
use crate::domain::Broadcast;
use crate::ports::{Content, GroupRow, Hole, Inbox, InboxRow, InboxWrite, Removal, StoreError};

#[async_trait]
impl Inbox for EmbeddedStore {
    async fn write_inbox(&self, writes: &[InboxWrite]) -> Result<(), StoreError> {
        let rows = writes.iter().map(|write| JoinedRow {
            keyspace: self.keyspaces.inbox.clone(),
            key: rows::inbox_key(&write.user, write.broadcast),
            value: rows::write_inbox(write),
            join: rows::join_inbox,
        });
        self.join(rows).await
    }

    async fn inbox(
        &self,
        user: &UserId,
        after: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<InboxRow>, StoreError> {
        let now = self.clock.wall();
        let start = match after {
            Some(after) => Bound::Excluded(rows::inbox_key(user, after)),
            None => Bound::Included(rows::user_key(user)),
        };
        let end = Bound::Excluded(end_of(rows::user_key(user)));
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            for entry in keyspaces.inbox.range((start, end)) {
                if found.len() == limit {
                    break;
                }
                let (key, value) = entry.into_inner().map_err(failed)?;
                let StoredInboxRow { row, keep_until } = rows::read_inbox(&key, &value)?;
                found.extend(row.filter(|_| keep_until > now));
            }
            Ok(found)
        })
        .await
    }

    async fn write_removals(&self, removals: &[Removal]) -> Result<(), StoreError> {
        let rows = removals.iter().map(|removal| JoinedRow {
            keyspace: self.keyspaces.inbox.clone(),
            key: rows::inbox_key(&removal.user, removal.broadcast),
            value: rows::write_removal(removal),
            join: rows::join_inbox,
        });
        self.join(rows).await
    }

    async fn write_group(&self, group: &[GroupRow]) -> Result<(), StoreError> {
        let rows = group.iter().map(|row| {
            let position = row.place.position;
            JoinedRow {
                keyspace: self.keyspaces.group_message.clone(),
                key: rows::group_key(row.place.log, position.partition.index, position.offset)
                    .to_vec(),
                value: rows::write_group(row),
                join: rows::join_group,
            }
        });
        self.join(rows).await
    }

    async fn group(
        &self,
        log: LogIdentity,
        partition: u16,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GroupRow>, StoreError> {
        let now = self.clock.wall();
        let all = rows::group_key(log, partition, from)..=rows::group_key(log, partition, u64::MAX);
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            for entry in keyspaces.group_message.range(all) {
                if found.len() == limit {
                    break;
                }
                let (key, value) = entry.into_inner().map_err(failed)?;
                let row = rows::read_group(&key, &value)?;
                found.extend((row.keep_until > now).then_some(row));
            }
            Ok(found)
        })
        .await
    }

    async fn write_holes(&self, log: LogIdentity, holes: &[Hole]) -> Result<(), StoreError> {
        let rows = holes.iter().map(|hole| JoinedRow {
            keyspace: self.keyspaces.hole.clone(),
            key: rows::hole_key(log, hole).to_vec(),
            value: rows::write_hole(hole),
            join: rows::join_hole,
        });
        self.join(rows).await
    }

    async fn holes(&self, log: LogIdentity) -> Result<Vec<Hole>, StoreError> {
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            for entry in keyspaces.hole.prefix(log.0) {
                let (key, value) = entry.into_inner().map_err(failed)?;
                found.push(rows::read_hole(&key, &value)?);
            }
            Ok(found)
        })
        .await
    }

    async fn write_contents(&self, contents: &[Broadcast]) -> Result<(), StoreError> {
        let keys: Vec<[u8; 8]> = contents.iter().map(|content| id_key(content.id)).collect();
        let are_there = self.read(move |keyspaces| {
            let is_there = |key: &[u8; 8]| keyspaces.broadcast.contains_key(key).map_err(failed);
            keys.iter().map(is_there).collect::<Result<Vec<bool>, StoreError>>()
        });
        let are_there = are_there.await?;
        let missing = contents.iter().zip(are_there).filter(|(_, is_there)| !is_there);
        let rows = missing.map(|(content, _)| JoinedRow {
            keyspace: self.keyspaces.broadcast.clone(),
            key: id_key(content.id).to_vec(),
            value: write_broadcast(content),
            join: |stored, _| Ok(stored.to_vec()),
        });
        self.join(rows).await
    }

    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError> {
        let ids = ids.to_vec();
        self.read(move |keyspaces| ids.into_iter().map(|id| content(keyspaces, id)).collect()).await
    }

    async fn write_cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
        next: &[(Partition, u64)],
    ) -> Result<(), StoreError> {
        let rows = next.iter().map(|(partition, next)| JoinedRow {
            keyspace: self.keyspaces.cursor.clone(),
            key: rows::cursor_partition_key(user, log, *partition),
            value: rows::write_cursor(*next),
            join: rows::join_cursor,
        });
        self.join(rows).await
    }

    async fn cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        let prefix = rows::cursor_key(user, log);
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            for entry in keyspaces.cursor.prefix(prefix) {
                let (key, value) = entry.into_inner().map_err(failed)?;
                found.push(rows::read_cursor(&key, &value)?);
            }
            Ok(found)
        })
        .await
    }
}

impl EmbeddedStore {
    async fn join(&self, rows: impl Iterator<Item = JoinedRow>) -> Result<(), StoreError> {
        let rows: Vec<JoinedRow> = rows.collect();
        if rows.is_empty() {
            return Ok(());
        }
        self.committer.join(rows).await
    }
}

fn content(keyspaces: &Keyspaces, id: BroadcastId) -> Result<Option<Content>, StoreError> {
    let Some(mut broadcast) = broadcast_of(keyspaces, id)? else { return Ok(None) };
    if broadcast.target.r#type == TargetType::Selected {
        broadcast.target.ids.clear();
    }
    Ok(Some(Content { broadcast, status: status_of(keyspaces, id)? }))
}

/// Behind all keys that begin with this one of a user, which ends with 0.
fn end_of(mut user_key: Vec<u8>) -> Vec<u8> {
    if let Some(last) = user_key.last_mut() {
        *last += 1;
    }
    user_key
}
