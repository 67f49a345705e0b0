//! Parked records in the embedded store: a row each, in the order of share and due time.

use async_trait::async_trait;
use bytes::BufMut;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::EmbeddedStore;
use super::commit::{Condition, Row};
use super::log;
use super::rows::{self, RowError, VERSION};
use super::store::failed;
use crate::base::{EpochMillis, Partition, Topic};
use crate::ports::{Bucket, MovedRecord, Parked, Parking, Record, StoreError, TimedBy};

const KEY_BYTES: usize = 30;

/// What stands before the record itself.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParkedJson {
    v: u32,
    tries: u32,
    topic: u8,
    partition: u16,
    offset: u64,
    timed_by_log: bool,
}

#[async_trait]
impl Parking for EmbeddedStore {
    async fn park(&self, row: &Parked) -> Result<(), StoreError> {
        self.put(row_key(row), Some(write(row))).await
    }

    async fn parked(
        &self,
        bucket: Bucket,
        now: EpochMillis,
        limit: usize,
    ) -> Result<Vec<Parked>, StoreError> {
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            let due = key(bucket, EpochMillis(0), Uuid::nil(), 0)
                ..=key(bucket, now, Uuid::max(), u32::MAX);
            for entry in keyspaces.parked.range(due).take(limit) {
                let (key, value) = entry.into_inner().map_err(failed)?;
                found.push(read(&key, &value)?);
            }
            Ok(found)
        })
        .await
    }

    async fn unpark(&self, row: &Parked) -> Result<(), StoreError> {
        self.put(row_key(row), None).await
    }

    async fn note_served(&self, event: Uuid) -> Result<(), StoreError> {
        let row = Row {
            keyspace: self.keyspaces.served_event.clone(),
            key: event.as_bytes().to_vec(),
            value: Some(Vec::new()),
        };
        self.committer.write(vec![row], Condition::None).await.map(drop)
    }

    async fn is_served(&self, event: Uuid) -> Result<bool, StoreError> {
        self.read(move |keyspaces| {
            keyspaces.served_event.contains_key(event.as_bytes()).map_err(failed)
        })
        .await
    }
}

impl EmbeddedStore {
    async fn put(&self, key: [u8; KEY_BYTES], value: Option<Vec<u8>>) -> Result<(), StoreError> {
        let row = Row { keyspace: self.keyspaces.parked.clone(), key: key.to_vec(), value };
        self.committer.write(vec![row], Condition::None).await.map(drop)
    }
}

fn row_key(row: &Parked) -> [u8; KEY_BYTES] {
    key(row.bucket(), row.due_at, row.event, row.attempt)
}

/// Keys of a share rise with the due time.
fn key(bucket: Bucket, due_at: EpochMillis, event: Uuid, attempt: u32) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..2].copy_from_slice(&bucket.0.to_be_bytes());
    key[2..10].copy_from_slice(&due_at.0.to_be_bytes());
    key[10..26].copy_from_slice(event.as_bytes());
    key[26..].copy_from_slice(&attempt.to_be_bytes());
    key
}

fn write(row: &Parked) -> Vec<u8> {
    let Parked { tries, partition, record, .. } = row;
    let head = rows::json(&ParkedJson {
        v: VERSION,
        tries: *tries,
        topic: partition.topic as u8,
        partition: partition.index,
        offset: record.offset,
        timed_by_log: record.timed_by == TimedBy::Log,
    });
    let appended_at = record.appended_at;
    let Record { key, value, headers, .. } = record.clone();
    let record = log::encode(&MovedRecord { to: *partition, key, value, headers }, appended_at);
    let mut out = Vec::with_capacity(4 + head.len() + record.len());
    out.put_u32(u32::try_from(head.len()).unwrap_or(u32::MAX));
    out.put_slice(&head);
    out.put_slice(&record);
    out
}

fn read(key: &[u8], value: &[u8]) -> Result<Parked, StoreError> {
    let malformed = || RowError::Malformed("a parked record".to_owned());
    let key: &[u8; KEY_BYTES] = key.try_into().map_err(|_| malformed())?;
    let (head, rest) = value.split_first_chunk::<4>().ok_or_else(malformed)?;
    let length = u32::from_be_bytes(*head) as usize;
    let (head, record) = rest.split_at_checked(length).ok_or_else(malformed)?;
    let head = rows::read::<ParkedJson>(head)?;
    let topic = Topic::from_number(head.topic).ok_or_else(malformed)?;
    let partition = Partition { topic, index: head.partition };
    let place = log::key(partition, head.offset);
    let record =
        log::decode(&place, record).map_err(|error| StoreError::Failed(error.to_string()))?;
    let timed_by = if head.timed_by_log { TimedBy::Log } else { TimedBy::Producer };
    let (mut due_at, mut event, mut attempt) = ([0; 8], [0; 16], [0; 4]);
    due_at.copy_from_slice(&key[2..10]);
    event.copy_from_slice(&key[10..26]);
    attempt.copy_from_slice(&key[26..]);
    Ok(Parked {
        due_at: EpochMillis(u64::from_be_bytes(due_at)),
        event: Uuid::from_bytes(event),
        attempt: u32::from_be_bytes(attempt),
        tries: head.tries,
        partition,
        record: Record { timed_by, ..record },
    })
}
