//! Dead letters as rows: read back from their topics, whoever wrote them there, for who lists,
//! looks at, sends again and purges them.
//!
//! `tests/dead_letter_suite.rs` states what every implementation must do. `Ok` of a write means
//! durable.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Header, Record, StoreError};
use crate::base::{BroadcastId, EpochMillis};
use crate::wire::dead_letter::{self, Origin, ReadHeaders};

/// Where a dead letter stands: `dltTopic-partition-offset`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeadLetterId {
    pub topic: String,
    pub partition: u16,
    pub offset: u64,
}

/// A record of a dead-letter topic. What it says of itself may be anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetterRow {
    pub topic: String,
    pub partition: u16,
    pub record: Record,
}

/// Where a list goes on: behind this row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DeadLetterPlace {
    pub failed_at: EpochMillis,
    pub original: Original,
}

/// What a dead letter is a dead letter of; two of one record have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Original(pub [u8; 16]);

/// What is shown of a dead letter. `None` for what nobody says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownDeadLetter {
    pub id: DeadLetterId,
    pub broadcast: Option<BroadcastId>,
    pub original_key: Option<String>,
    pub origin: Option<Origin>,
    pub exception_message: Option<String>,
    pub exception_stack_trace: Option<String>,
    pub failed_at: EpochMillis,
    pub payload: Option<String>,
}

impl DeadLetterRow {
    pub fn id(&self) -> DeadLetterId {
        let (topic, partition) = (self.topic.clone(), self.partition);
        DeadLetterId { topic, partition, offset: self.record.offset }
    }

    /// By where the original stood and when the log took it: offsets alone begin anew in a topic
    /// that was replaced. Without that, what stands here is the original.
    pub fn original(&self) -> Original {
        let mut key = Vec::new();
        let mut put = |text: &str, numbers: &[i64]| {
            key.extend_from_slice(text.as_bytes());
            // No topic's name holds it.
            key.push(0);
            numbers.iter().for_each(|number| key.extend_from_slice(&number.to_be_bytes()));
        };
        put(&self.topic, &[]);
        match self.headers().origin {
            Some(Origin { topic, partition, offset, timestamp }) => {
                put(&topic, &[i64::from(partition), offset, timestamp.unwrap_or(-1)]);
            }
            None => {
                let offset = self.record.offset.cast_signed();
                let failed_at = self.record.appended_at.0.cast_signed();
                put("", &[i64::from(self.partition), offset, failed_at]);
            }
        }
        Original(Uuid::new_v5(&Uuid::NAMESPACE_OID, &key).into_bytes())
    }

    pub fn place(&self) -> DeadLetterPlace {
        DeadLetterPlace { failed_at: self.record.appended_at, original: self.original() }
    }

    /// Key, value and headers.
    pub fn bytes(&self) -> usize {
        let text = |text: &Option<bytes::Bytes>| text.as_ref().map_or(0, bytes::Bytes::len);
        let header = |header: &Header| header.name.len() + text(&header.value);
        let headers: usize = self.record.headers.iter().map(header).sum();
        text(&self.record.key) + text(&self.record.value) + headers
    }

    pub fn shown(&self) -> ShownDeadLetter {
        let ReadHeaders { origin, exception_message, exception_stack_trace } = self.headers();
        let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
        let value = self.record.value.as_ref();
        ShownDeadLetter {
            id: self.id(),
            broadcast: value.and_then(|value| dead_letter::broadcast_of(value)),
            original_key: self.record.key.as_ref().map(text),
            origin,
            exception_message,
            exception_stack_trace,
            failed_at: self.record.appended_at,
            payload: value.map(text),
        }
    }

    fn headers(&self) -> ReadHeaders {
        let headers = self.record.headers.iter();
        dead_letter::read(headers.map(|header| (&header.name[..], header.value.as_deref())))
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for DeadLetterId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.rsplitn(3, '-');
        let mut next = || parts.next().filter(|part| !part.is_empty()).ok_or(());
        let (offset, partition, topic) = (next()?, next()?, next()?.to_owned());
        let (partition, offset) = (partition.parse(), offset.parse());
        let id = Self { topic, partition: partition.map_err(drop)?, offset: offset.map_err(drop)? };
        // Signs and zeros in front would give one row two ids.
        if id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

#[async_trait]
pub trait DeadLetterRows: Send + Sync {
    /// Idempotent, in any order. Of several of one original, one stays: that of the smallest
    /// offset. What was purged stays so.
    async fn write_dead_letters(&self, rows: &[DeadLetterRow]) -> Result<(), StoreError>;

    /// Rows behind `after`, newest first, at most `limit`, and no more once they are of `bytes_max`
    /// together; none only if there are no more.
    async fn dead_letters(
        &self,
        after: Option<DeadLetterPlace>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<DeadLetterRow>, StoreError>;

    /// `None` for one that was purged, or whose original has another row.
    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetterRow>, StoreError>;

    /// Removes it, and leaves a mark: reading it again, or another one of its original, brings
    /// nothing back. Whether it was there.
    async fn purge_dead_letter(&self, id: &DeadLetterId) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ports::TimedBy;

    fn row(offset: u64, headers: &[(&str, &[u8])]) -> DeadLetterRow {
        let headers = headers.iter().map(|(name, value)| Header {
            name: Bytes::copy_from_slice(name.as_bytes()),
            value: Some(Bytes::copy_from_slice(value)),
        });
        let record = Record {
            offset,
            appended_at: EpochMillis(7),
            timed_by: TimedBy::Producer,
            key: None,
            value: Some(Bytes::from_static(b"{\"broadcastId\":5}")),
            headers: headers.collect(),
        };
        DeadLetterRow { topic: "a-b-dlt".to_owned(), partition: 0, record }
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = row(18, &[]).id();
        assert_eq!(id.to_string(), "a-b-dlt-0-18");
        assert_eq!("a-b-dlt-0-18".parse(), Ok(id));
        for text in ["", "a", "a-1", "-0-1", "a-0-", "a-0-+1", "a-00-1", "a-0--1", "a-65536-1"] {
            assert_eq!(text.parse::<DeadLetterId>(), Err(()), "{text}");
        }
    }

    #[test]
    fn an_original_is_told_by_its_place_and_time() {
        let of = |offset: u64, original: i64, at: i64| {
            let (original, at) = (original.to_be_bytes(), at.to_be_bytes());
            let headers: [(&str, &[u8]); 4] = [
                (dead_letter::ORIGINAL_TOPIC, b"a-b"),
                (dead_letter::ORIGINAL_PARTITION, &[0, 0, 0, 1]),
                (dead_letter::ORIGINAL_OFFSET, &original),
                (dead_letter::ORIGINAL_TIMESTAMP, &at),
            ];
            row(offset, &headers).original()
        };
        assert_eq!(of(1, 7, 9), of(2, 7, 9));
        assert_ne!(of(1, 7, 9), of(1, 8, 9));
        assert_ne!(of(1, 7, 9), of(1, 7, 10), "of a topic that was replaced");
        assert_eq!(row(1, &[]).original(), row(1, &[]).original());
        assert_ne!(row(1, &[]).original(), row(2, &[]).original());
        assert_eq!(row(1, &[]).shown().broadcast, BroadcastId::new(5));
    }
}
