//! The embedded log: partitions in one keyspace, offsets dense from 0.
//!
//! A record's value, big-endian: version (1), append time (8), key, value, number of headers (2),
//! then for each its name and value. Each text is a length (4) and its bytes; the length 2^32-1
//! stands for null.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes};
use fjall::Keyspace;
use tokio::sync::watch;

use super::commit::{Committer, Ends};
use crate::base::{EpochMillis, LogShape, Partition, Position, Topic, partition_of_key};
use crate::limits::log as limits;
use crate::ports::{
    Batch, Bounds, Header, Log, LogError, MovedRecord, NewRecord, Record, TimedBy, Want,
};

const VERSION: u8 = 1;
const NULL: u32 = u32::MAX;
const KEY_BYTES: usize = 11;

pub struct EmbeddedLog {
    shape: LogShape,
    records: Keyspace,
    committer: Committer,
    /// Which of the wanted partitions is read first; moves on, so that none starves.
    turn: AtomicUsize,
}

impl EmbeddedLog {
    pub(super) fn new(shape: LogShape, records: Keyspace, committer: Committer) -> Self {
        Self { shape, records, committer, turn: AtomicUsize::new(0) }
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn shape(&self) -> Result<LogShape, LogError> {
        Ok(self.shape)
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, LogError> {
        Ok(Bounds { start: 0, end: self.committer.ends().borrow().of(partition) })
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        if let Some(large) =
            records.iter().find(|record| record.value.len() > limits::RECORD_VALUE_BYTES_MAX)
        {
            let (bytes, limit) = (large.value.len(), limits::RECORD_VALUE_BYTES_MAX);
            return Err(LogError::TooLarge { bytes, limit });
        }
        let place = |record: NewRecord| {
            let NewRecord { topic, key, value, headers } = record;
            let index = partition_of_key(&key, self.shape.partitions(topic));
            let to = Partition { topic, index };
            MovedRecord { to, key: Some(key), value: Some(value), headers }
        };
        self.committer.append(records.into_iter().map(place).collect()).await
    }

    async fn append_moved(&self, records: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        let sized = records.iter().map(|record| (record, size_of(record)));
        let mut large = sized.filter(|(_, bytes)| *bytes > limits::DEAD_RECORD_BYTES_MAX);
        if let Some((record, bytes)) = large.next() {
            let topic = record.to.topic.name().to_owned();
            return Err(LogError::Oversized { topic, bytes });
        }
        self.committer.append(records).await
    }

    async fn fetch(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait_max: Duration,
    ) -> Result<Vec<Batch>, LogError> {
        let mut ends = self.committer.ends();
        let due = tokio::time::timeout(wait_max, wait_for_records(&mut ends, wants)).await;
        let ends = match due {
            Ok(ends) => ends?,
            Err(_) => return Ok(Vec::new()),
        };
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let (records, wants) = (self.records.clone(), wants.to_vec());
        let read = move || read(&records, &wants, &ends, first, bytes_max);
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|error| LogError::Failed(error.to_string()))?
    }
}

/// Waits until one of the wanted partitions has a durable record; returns the durable ends.
async fn wait_for_records(
    ends: &mut watch::Receiver<Arc<Ends>>,
    wants: &[Want],
) -> Result<Arc<Ends>, LogError> {
    loop {
        let now = ends.borrow_and_update().clone();
        for want in wants {
            let end = now.of(want.partition);
            if want.offset > end {
                let bounds = Bounds { start: 0, end };
                return Err(LogError::OutOfRange { wanted: *want, bounds });
            }
        }
        if wants.iter().any(|want| want.offset < now.of(want.partition)) {
            return Ok(now);
        }
        let gone = |_| LogError::Failed("the embedded log has stopped".to_owned());
        ends.changed().await.map_err(gone)?;
    }
}

/// Reads durable records until `bytes_max` is reached, starting with another partition each time.
fn read(
    records: &Keyspace,
    wants: &[Want],
    ends: &Ends,
    first: usize,
    bytes_max: usize,
) -> Result<Vec<Batch>, LogError> {
    let mut batches = Vec::new();
    let mut room = bytes_max;
    for step in 0..wants.len() {
        let want = wants[(first + step) % wants.len()];
        let end = ends.of(want.partition);
        if want.offset >= end || room == 0 {
            continue;
        }
        let mut batch =
            Batch { partition: want.partition, records: Vec::new(), next: want.offset, end };
        let range = key(want.partition, want.offset)..key(want.partition, end);
        for entry in records.range(range) {
            let failed = |error: fjall::Error| LogError::Failed(error.to_string());
            let (stored_key, value) = entry.into_inner().map_err(failed)?;
            let record = decode(&stored_key, &value)?;
            batch.next = record.offset + 1;
            batch.records.push(record);
            room = room.saturating_sub(value.len());
            if room == 0 {
                break;
            }
        }
        batches.push(batch);
    }
    Ok(batches)
}

/// The end of each partition, from its last key.
pub(super) fn ends(records: &Keyspace, shape: &LogShape) -> fjall::Result<Ends> {
    let mut ends = Ends::new(shape);
    for partition in shape.all_partitions().chain(shape.dead_partitions()) {
        let all = key(partition, 0)..=key(partition, u64::MAX);
        if let Some(last) = records.range(all).next_back() {
            let stored_key = last.key()?;
            let offset = stored_key.get(3..).and_then(|bytes| bytes.try_into().ok());
            ends.set(partition, offset.map_or(0, u64::from_be_bytes) + 1);
        }
    }
    Ok(ends)
}

/// Keys rise with the offset within a partition.
pub(super) fn key(partition: Partition, offset: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[0] = partition.topic as u8;
    key[1..3].copy_from_slice(&partition.index.to_be_bytes());
    key[3..].copy_from_slice(&offset.to_be_bytes());
    key
}

pub(super) fn encode(record: &MovedRecord, appended_at: EpochMillis) -> Vec<u8> {
    let mut out = Vec::with_capacity(size_of(record));
    out.put_u8(VERSION);
    out.put_u64(appended_at.0);
    put_text(&mut out, record.key.as_ref());
    put_text(&mut out, record.value.as_ref());
    out.put_u16(u16::try_from(record.headers.len()).unwrap_or(u16::MAX));
    for header in record.headers.iter().take(usize::from(u16::MAX)) {
        put_text(&mut out, Some(&header.name));
        put_text(&mut out, header.value.as_ref());
    }
    out
}

/// Bytes of a record's value in the keyspace.
fn size_of(record: &MovedRecord) -> usize {
    let text = |text: &Option<Bytes>| 4 + text.as_ref().map_or(0, Bytes::len);
    let header = |header: &Header| 4 + header.name.len() + text(&header.value);
    let headers: usize = record.headers.iter().map(header).sum();
    11 + text(&record.key) + text(&record.value) + headers
}

fn put_text(out: &mut Vec<u8>, text: Option<&Bytes>) {
    out.put_u32(text.map_or(NULL, |text| u32::try_from(text.len()).unwrap_or(NULL)));
    out.put_slice(text.map_or(&[][..], |text| text));
}

pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Record, LogError> {
    let malformed = || LogError::Failed("a record of the embedded log is malformed".to_owned());
    let offset = key.get(3..).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let mut bytes = Bytes::copy_from_slice(value);
    if bytes.remaining() < 9 || bytes.get_u8() != VERSION {
        return Err(malformed());
    }
    let appended_at = EpochMillis(bytes.get_u64());
    let key = take_text(&mut bytes).ok_or_else(malformed)?;
    let value = take_text(&mut bytes).ok_or_else(malformed)?;
    let count = if bytes.remaining() < 2 { return Err(malformed()) } else { bytes.get_u16() };
    let mut headers = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let name = take_text(&mut bytes).flatten().ok_or_else(malformed)?;
        let value = take_text(&mut bytes).ok_or_else(malformed)?;
        headers.push(Header { name, value });
    }
    let offset = offset.ok_or_else(malformed)?;
    Ok(Record { offset, appended_at, timed_by: TimedBy::Log, key, value, headers })
}

/// `None`: the bytes end too early. `Some(None)`: null.
fn take_text(bytes: &mut Bytes) -> Option<Option<Bytes>> {
    if bytes.remaining() < 4 {
        return None;
    }
    match bytes.get_u32() {
        NULL => Some(None),
        length => {
            let length = length as usize;
            (bytes.remaining() >= length).then(|| Some(bytes.split_to(length)))
        }
    }
}

/// Whether a topic's number is stored as the contract's order says.
const _: () = assert!(Topic::Selected as u8 == 0 && Topic::Group as u8 == 1);
const _: () = assert!(Topic::SelectedDead as u8 == 2 && Topic::GroupDead as u8 == 3);
