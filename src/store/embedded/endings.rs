//! How broadcasts end, in the embedded store: statuses that are changed in the committing thread,
//! together with the lists; endings and what is due, each in the order of its time.

use std::ops::Bound;

use async_trait::async_trait;
use fjall::{Database, PersistMode};
use serde::{Deserialize, Serialize};

use super::commit::{Condition, Row, StatusChange};
use super::rows::{self, List, RowError, VERSION, json, read};
use super::store::{broadcast_of, failed, list_of};
use super::{EmbeddedStore, Keyspaces};
use crate::base::{BroadcastId, End, EpochMillis, Status};
use crate::domain::Broadcast;
use crate::ports::{Bucket, Change, Claim, Due, Ending, Endings, NotedEnding, Store, StoreError};

const ENDING_KEY_BYTES: usize = 16;
const DUE_KEY_BYTES: usize = 18;
/// In the keyspace `meta`: what was there before this release knew of `due` stands there.
const META_DUE: &[u8] = b"due";

#[derive(Serialize, Deserialize)]
struct EndingJson {
    v: u32,
    how: Status,
    settled: bool,
}

#[async_trait]
impl Endings for EmbeddedStore {
    async fn change_status(&self, id: BroadcastId, to: Status) -> Result<Change, StoreError> {
        let content = self.read(move |keyspaces| broadcast_of(keyspaces, id)).await?;
        let Some(broadcast) = content else { return Ok(Change::Missing) };
        let listed = [Status::Active, Status::Scheduled];
        let entries = listed.into_iter().filter_map(|status| {
            let (list, place) = list_of(&broadcast, status)?;
            Some(self.entry(list, place, status == to))
        });
        self.committer.change(StatusChange { id, to, rows: entries.collect() }).await
    }

    async fn create_ended(&self, id: BroadcastId, how: End) -> Result<Claim, StoreError> {
        self.create_status(id, how.status()).await
    }

    async fn put_ending(&self, ending: &Ending) -> Result<(), StoreError> {
        let rows = vec![self.ending_row(ending, false), self.open_row(ending, true)];
        // One that stands there may be settled.
        self.committer.write(rows, Condition::Absent).await.map(drop)
    }

    async fn settle_ending(&self, ending: &Ending) -> Result<(), StoreError> {
        let rows = vec![self.ending_row(ending, true), self.open_row(ending, false)];
        self.committer.write(rows, Condition::None).await.map(drop)
    }

    async fn endings(
        &self,
        since: EpochMillis,
        after: Option<(EpochMillis, BroadcastId)>,
        limit: usize,
    ) -> Result<Vec<NotedEnding>, StoreError> {
        let start = match after.filter(|(at, _)| *at >= since) {
            Some((at, id)) => Bound::Excluded(ending_key(at, id)),
            None => Bound::Included(first_key(since)),
        };
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            for entry in keyspaces.ending.range((start, Bound::Unbounded)).take(limit) {
                let (key, value) = entry.into_inner().map_err(failed)?;
                found.push(read_ending(&key, &value)?);
            }
            Ok(found)
        })
        .await
    }

    async fn open_endings(&self, limit: usize) -> Result<Vec<Ending>, StoreError> {
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            for entry in keyspaces.open_ending.iter().take(limit) {
                let key = entry.key().map_err(failed)?;
                let row = keyspaces.ending.get(&key).map_err(failed)?;
                let missing = || RowError::Malformed("an open ending is none".to_owned());
                found.push(read_ending(&key, &row.ok_or_else(missing)?)?.ending);
            }
            Ok(found)
        })
        .await
    }

    async fn due(
        &self,
        share: Bucket,
        until: EpochMillis,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError> {
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            let due = due_key(share, EpochMillis(0), 0)..=due_key(share, until, u64::MAX);
            for entry in keyspaces.due.range(due).take(limit) {
                found.push(read_due(&entry.key().map_err(failed)?)?);
            }
            Ok(found)
        })
        .await
    }

    async fn mark_due(&self, due: &Due) -> Result<(), StoreError> {
        let row = Row {
            keyspace: self.keyspaces.due.clone(),
            key: due_key(Bucket::of_broadcast(due.id), due.at, due.id.get()).to_vec(),
            value: None,
        };
        self.committer.write(vec![row], Condition::None).await.map(drop)
    }
}

impl EmbeddedStore {
    fn ending_row(&self, ending: &Ending, settled: bool) -> Row {
        Row {
            keyspace: self.keyspaces.ending.clone(),
            key: ending_key(ending.at, ending.id).to_vec(),
            value: Some(write_ending(ending, settled)),
        }
    }

    fn open_row(&self, ending: &Ending, is_open: bool) -> Row {
        Row {
            keyspace: self.keyspaces.open_ending.clone(),
            key: ending_key(ending.at, ending.id).to_vec(),
            value: is_open.then(Vec::new),
        }
    }

    /// That the broadcast is to expire, if it is.
    pub(super) fn due_row(&self, broadcast: &Broadcast, status: Status) -> Option<Row> {
        let expires_at = broadcast.expires_at.filter(|_| !status.is_final())?;
        let at = expires_at.max(self.clock.wall());
        Some(Row {
            keyspace: self.keyspaces.due.clone(),
            key: due_key(Bucket::of_broadcast(broadcast.id), at, broadcast.id.get()).to_vec(),
            value: Some(Vec::new()),
        })
    }
}

/// Notes, once, when the broadcasts are due that a release made which did not: those that are
/// listed as active or scheduled.
pub(super) fn fill_due(database: &Database, keyspaces: &Keyspaces) -> fjall::Result<()> {
    if keyspaces.meta.contains_key(META_DUE)? {
        return Ok(());
    }
    let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
    batch.insert(&keyspaces.meta, META_DUE, b"");
    for entry in keyspaces.list.range(vec![List::Active as u8]..vec![List::Scheduled as u8 + 1]) {
        // What is malformed is told to who reads it.
        let Ok(id) = rows::list_id(&entry.key()?) else { continue };
        let content = keyspaces.broadcast.get(rows::id_key(id))?;
        let broadcast = content.and_then(|content| rows::read_broadcast(&content).ok());
        let Some(at) = broadcast.and_then(|broadcast| broadcast.expires_at) else { continue };
        batch.insert(&keyspaces.due, due_key(Bucket::of_broadcast(id), at, id.get()), b"");
    }
    batch.commit()
}

fn write_ending(ending: &Ending, settled: bool) -> Vec<u8> {
    json(&EndingJson { v: VERSION, how: ending.how.status(), settled })
}

fn read_ending(key: &[u8], value: &[u8]) -> Result<NotedEnding, RowError> {
    let malformed = || RowError::Malformed("an ending".to_owned());
    let key: &[u8; ENDING_KEY_BYTES] = key.try_into().map_err(|_| malformed())?;
    let (at, id) = key.split_at(size_of::<u64>());
    let row = read::<EndingJson>(value)?;
    let how = End::of_status(row.how).ok_or_else(malformed)?;
    let ending = Ending { id: rows::read_id(id)?, at: read_time(at)?, how };
    Ok(NotedEnding { ending, is_settled: row.settled })
}

/// Keys rise with the time.
fn ending_key(at: EpochMillis, id: BroadcastId) -> [u8; ENDING_KEY_BYTES] {
    let mut key = first_key(at);
    key[8..].copy_from_slice(&rows::id_key(id));
    key
}

fn first_key(at: EpochMillis) -> [u8; ENDING_KEY_BYTES] {
    let mut key = [0; ENDING_KEY_BYTES];
    key[..8].copy_from_slice(&at.0.to_be_bytes());
    key
}

/// Keys of a share rise with the time.
fn due_key(share: Bucket, at: EpochMillis, id: u64) -> [u8; DUE_KEY_BYTES] {
    let mut key = [0; DUE_KEY_BYTES];
    key[..2].copy_from_slice(&share.0.to_be_bytes());
    key[2..10].copy_from_slice(&at.0.to_be_bytes());
    key[10..].copy_from_slice(&id.to_be_bytes());
    key
}

fn read_due(key: &[u8]) -> Result<Due, RowError> {
    let malformed = || RowError::Malformed("key is no place of what is due".to_owned());
    let key: &[u8; DUE_KEY_BYTES] = key.try_into().map_err(|_| malformed())?;
    Ok(Due { id: rows::read_id(&key[10..])?, at: read_time(&key[2..10])? })
}

fn read_time(bytes: &[u8]) -> Result<EpochMillis, RowError> {
    let malformed = || RowError::Malformed("no time".to_owned());
    Ok(EpochMillis(u64::from_be_bytes(bytes.try_into().map_err(|_| malformed())?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Priority, TargetType};
    use crate::domain::Target;
    use crate::ports::ListPlace;

    const AT: EpochMillis = EpochMillis(1_795_514_400_123);

    fn ending(how: End) -> Ending {
        Ending { id: BroadcastId::new(42).expect("small"), at: AT, how }
    }

    /// One row a line: name and text.
    #[test]
    fn golden_rows() {
        let golden = include_str!("../../../tests/golden/tables/embedded_endings.tsv");
        let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let text = |row: Vec<u8>| String::from_utf8(row).expect("JSON");
        let (cancelled, expired) = (ending(End::Cancelled), ending(End::Expired));
        let rows = [
            ("ending", text(write_ending(&cancelled, false))),
            ("ending settled", text(write_ending(&expired, true))),
            ("ending key", hex(&ending_key(AT, cancelled.id))),
            ("due key", hex(&due_key(Bucket(10), AT, 42))),
        ];
        let lines: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), rows.len());
        for (line, (name, row)) in lines.iter().zip(rows) {
            assert_eq!(*line, format!("{name}\t{row}"));
        }
    }

    #[test]
    fn rows_are_read_as_written_and_newer_ones_refused() {
        for how in End::ALL {
            for is_settled in [false, true] {
                let ending = ending(how);
                let key = ending_key(ending.at, ending.id);
                let row = read_ending(&key, &write_ending(&ending, is_settled));
                assert_eq!(row, Ok(NotedEnding { ending, is_settled }));
            }
        }
        let key = ending_key(AT, ending(End::Expired).id);
        assert_eq!(read_ending(&key, b"{\"v\":2}"), Err(RowError::Newer(2)));
        for value in [&b"{\"v\":1}"[..], br#"{"v":1,"how":"ACTIVE","settled":false}"#] {
            assert!(matches!(read_ending(&key, value), Err(RowError::Malformed(_))));
        }
        let due = Due { id: ending(End::Expired).id, at: AT };
        assert_eq!(read_due(&due_key(Bucket(10), due.at, due.id.get())), Ok(due));
        assert!(read_due(b"short").is_err() && read_ending(b"short", b"").is_err());
    }

    fn broadcast(id: u64, expires_at: Option<EpochMillis>) -> Broadcast {
        Broadcast {
            id: BroadcastId::new(id).expect("small"),
            correlation_id: "c-1".to_owned(),
            sender_id: None,
            sender_name: None,
            content: "hello".to_owned(),
            target: Target { r#type: TargetType::All, ids: Vec::new() },
            priority: Priority::Normal,
            category: None,
            created_at: AT,
            scheduled_at: None,
            expires_at,
            fire_and_forget: false,
        }
    }

    /// As the release before leaves it: broadcasts and lists, and nothing that is due.
    #[test]
    fn what_an_older_release_made_is_due_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Database::builder(folder.path()).open().expect("it opens");
        let keyspaces = Keyspaces::open(&database).expect("it opens");
        let listed = [
            (List::Active, 1, Some(AT)),
            (List::Scheduled, 2, Some(EpochMillis(AT.0 + 5))),
            (List::Active, 3, None),
            // It has ended: only the list of all names it.
            (List::All, 4, Some(AT)),
        ];
        for (list, id, expires_at) in listed {
            let content = broadcast(id, expires_at);
            let key = rows::list_key(list, ListPlace { at: AT, id: content.id });
            keyspaces.list.insert(key, b"").expect("it takes it");
            let value = rows::write_broadcast(&content);
            keyspaces.broadcast.insert(rows::id_key(content.id), value).expect("it takes it");
        }
        let due = || -> Vec<u64> {
            let keys = keyspaces.due.iter().map(|entry| entry.key().expect("a key"));
            keys.map(|key| read_due(&key).expect("well-formed").id.get()).collect()
        };
        fill_due(&database, &keyspaces).expect("it takes it");
        assert_eq!(due(), [1, 2]);
        // Once: what has been marked since stays away.
        keyspaces.due.clear().expect("it takes it");
        fill_due(&database, &keyspaces).expect("it takes it");
        assert!(due().is_empty());
    }
}
