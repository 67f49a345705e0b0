//! Rows and keys of the embedded store, as bytes (`tests/golden/tables/`).

use serde::{Deserialize, Serialize};

use crate::base::{BroadcastId, EpochMillis, Partition, Status, Topic};
use crate::domain::Broadcast;
use crate::ports::ListPlace;

pub const META_LOG: &[u8] = b"log";
pub(super) const VERSION: u32 = 1;

/// Which list an entry of the keyspace `list` belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum List {
    All = 0,
    Active = 1,
    Scheduled = 2,
}

/// Why a stored row can't be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RowError {
    #[error("row of version {0}, written by a newer release")]
    Newer(u32),
    #[error("malformed row: {0}")]
    Malformed(String),
}

/// What the log was made with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    v: u32,
    topic_ids: [uuid::Uuid; 2],
    pub partitions: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutboxJson {
    v: u32,
    created_at: EpochMillis,
}

#[derive(Serialize, Deserialize)]
struct BroadcastJson<B> {
    v: u32,
    broadcast: B,
}

#[derive(Serialize, Deserialize)]
struct CheckpointJson {
    v: u32,
    next: u64,
}

#[derive(Serialize, Deserialize)]
struct StatusJson {
    v: u32,
    status: Status,
}

impl Meta {
    /// A new log: topic ids that no other has.
    pub fn draw(partitions: u16) -> Self {
        let topic_ids = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
        Self { v: VERSION, topic_ids, partitions }
    }

    /// Three bytes that follow from both topic ids.
    pub fn identity(&self) -> [u8; 3] {
        let both = uuid::Uuid::new_v5(&self.topic_ids[0], self.topic_ids[1].as_bytes());
        let [first, second, third, ..] = both.into_bytes();
        [first, second, third]
    }
}

pub fn write_meta(meta: &Meta) -> Vec<u8> {
    json(meta)
}

pub fn read_meta(bytes: &[u8]) -> Result<Meta, RowError> {
    read(bytes)
}

pub fn write_outbox(created_at: EpochMillis) -> Vec<u8> {
    json(&OutboxJson { v: VERSION, created_at })
}

pub fn read_outbox(bytes: &[u8]) -> Result<EpochMillis, RowError> {
    read::<OutboxJson>(bytes).map(|row| row.created_at)
}

pub fn write_broadcast(broadcast: &Broadcast) -> Vec<u8> {
    json(&BroadcastJson { v: VERSION, broadcast })
}

pub fn read_broadcast(bytes: &[u8]) -> Result<Broadcast, RowError> {
    read::<BroadcastJson<Broadcast>>(bytes).map(|row| row.broadcast)
}

pub fn write_status(status: Status) -> Vec<u8> {
    json(&StatusJson { v: VERSION, status })
}

pub fn read_status(bytes: &[u8]) -> Result<Status, RowError> {
    read::<StatusJson>(bytes).map(|row| row.status)
}

/// Everything below `next` is durable.
pub fn write_checkpoint(next: u64) -> Vec<u8> {
    json(&CheckpointJson { v: VERSION, next })
}

pub fn read_checkpoint(bytes: &[u8]) -> Result<u64, RowError> {
    read::<CheckpointJson>(bytes).map(|row| row.next)
}

pub fn partition_key(partition: Partition) -> [u8; 3] {
    let [high, low] = partition.index.to_be_bytes();
    [partition.topic as u8, high, low]
}

pub fn read_partition(key: &[u8]) -> Result<Partition, RowError> {
    let partition = match *key {
        [number, high, low] => Topic::EVERY
            .into_iter()
            .find(|topic| *topic as u8 == number)
            .map(|topic| Partition { topic, index: u16::from_be_bytes([high, low]) }),
        _ => None,
    };
    partition.ok_or_else(|| RowError::Malformed("key is no partition".to_owned()))
}

pub fn id_key(id: BroadcastId) -> [u8; 8] {
    id.get().to_be_bytes()
}

pub fn read_id(key: &[u8]) -> Result<BroadcastId, RowError> {
    let id = key.try_into().ok().map(u64::from_be_bytes).and_then(BroadcastId::new);
    id.ok_or_else(|| RowError::Malformed("key is no broadcast id".to_owned()))
}

/// The key of a list's entry: in the list's order, keys rise.
pub fn list_key(list: List, place: ListPlace) -> [u8; 17] {
    let (time, id) = match list {
        List::All | List::Active => (u64::MAX - place.at.0, u64::MAX - place.id.get()),
        List::Scheduled => (place.at.0, place.id.get()),
    };
    let mut key = [0; 17];
    key[0] = list as u8;
    key[1..9].copy_from_slice(&time.to_be_bytes());
    key[9..].copy_from_slice(&id.to_be_bytes());
    key
}

/// The id in a list's key.
pub fn list_id(key: &[u8]) -> Result<BroadcastId, RowError> {
    let malformed = || RowError::Malformed("key is no list entry".to_owned());
    let key: &[u8; 17] = key.try_into().map_err(|_| malformed())?;
    let number = u64::from_be_bytes(key[9..].try_into().map_err(|_| malformed())?);
    let number = if key[0] == List::Scheduled as u8 { number } else { u64::MAX - number };
    BroadcastId::new(number).ok_or_else(malformed)
}

pub(super) fn json(row: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows are JSON")
}

/// Looks at the version before the shape: a newer release may have changed it.
pub(super) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, RowError> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let malformed = |error: serde_json::Error| RowError::Malformed(error.to_string());
    let Version { v } = serde_json::from_slice(bytes).map_err(malformed)?;
    if v > VERSION {
        return Err(RowError::Newer(v));
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Priority, TargetType};
    use crate::domain::Target;

    const AT: EpochMillis = EpochMillis(1_795_514_400_123);
    const PARTITION: Partition = Partition { topic: Topic::Group, index: 258 };

    fn broadcast() -> Broadcast {
        Broadcast {
            id: BroadcastId::new(42).expect("small"),
            correlation_id: "c-1".to_owned(),
            sender_id: None,
            sender_name: Some("Ops".to_owned()),
            content: "hello".to_owned(),
            target: Target { r#type: TargetType::Role, ids: vec!["admin".to_owned()] },
            priority: Priority::High,
            category: None,
            created_at: AT,
            scheduled_at: None,
            expires_at: Some(EpochMillis(AT.0 + 1_000)),
            fire_and_forget: false,
        }
    }

    /// One row a line: name and text.
    #[test]
    fn golden_rows() {
        let golden = include_str!("../../../tests/golden/tables/embedded.tsv");
        let meta = Meta {
            v: VERSION,
            topic_ids: [uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2)],
            partitions: 10,
        };
        let place = ListPlace { at: AT, id: broadcast().id };
        let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let text = |row: Vec<u8>| String::from_utf8(row).expect("JSON");
        let rows = [
            ("meta", text(write_meta(&meta))),
            ("outbox", text(write_outbox(AT))),
            ("broadcast", text(write_broadcast(&broadcast()))),
            ("status", text(write_status(Status::Active))),
            ("checkpoint", text(write_checkpoint(1_234))),
            ("partition key", hex(&partition_key(PARTITION))),
            ("id key", hex(&id_key(broadcast().id))),
            ("list key all", hex(&list_key(List::All, place))),
            ("list key active", hex(&list_key(List::Active, place))),
            ("list key scheduled", hex(&list_key(List::Scheduled, place))),
        ];
        let lines: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), rows.len());
        for (line, (name, row)) in lines.iter().zip(rows) {
            assert_eq!(*line, format!("{name}\t{row}"));
        }
    }

    #[test]
    fn rows_are_read_as_written_and_newer_ones_refused() {
        assert_eq!(read_broadcast(&write_broadcast(&broadcast())), Ok(broadcast()));
        assert_eq!(read_status(&write_status(Status::Expired)), Ok(Status::Expired));
        assert_eq!(read_status(b"{\"v\":2,\"state\":1}"), Err(RowError::Newer(2)));
        assert_eq!(read_checkpoint(&write_checkpoint(u64::MAX)), Ok(u64::MAX));
        assert_eq!(read_partition(&partition_key(PARTITION)), Ok(PARTITION));
        for key in [&[][..], &[4, 0, 0], &[0, 0, 0, 0]] {
            assert!(matches!(read_partition(key), Err(RowError::Malformed(_))), "{key:?}");
        }
        assert!(matches!(read_status(b"{\"v\":1}"), Err(RowError::Malformed(_))));
        for list in [List::All, List::Active, List::Scheduled] {
            let place = ListPlace { at: AT, id: broadcast().id };
            assert_eq!(list_id(&list_key(list, place)), Ok(place.id));
        }
    }
}
