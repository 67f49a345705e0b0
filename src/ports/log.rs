//! The log: partitions of records in order, read by offset.
//!
//! `tests/log_suite.rs` states what every implementation must do.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::{EpochMillis, LogShape, Partition, Position, Topic};

/// One record as it stands in the log. Null keys, values and header values exist in Kafka.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub offset: u64,
    /// When the log took it.
    pub appended_at: EpochMillis,
    pub timed_by: TimedBy,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

/// Whose clock says when the log took a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimedBy {
    Producer,
    Log,
}

/// Names may repeat; order is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    pub name: Bytes,
    pub value: Option<Bytes>,
}

/// A record to append. Its partition follows from its key (`base::partition_of_key`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRecord {
    pub topic: Topic,
    pub key: Bytes,
    pub value: Bytes,
    pub headers: Vec<Header>,
}

/// A record to append as it is, whatever it lacks or has twice, to a partition that the caller
/// chooses: one that stands elsewhere, or did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MovedRecord {
    pub to: Partition,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

/// The offsets that a partition holds: `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    pub start: u64,
    pub end: u64,
}

/// What one fetch asks of one partition: records from `offset` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    pub partition: Partition,
    pub offset: u64,
}

/// What one fetch brings of one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    pub partition: Partition,
    /// In offset order; offsets may have holes. Never empty unless `next` moved.
    pub records: Vec<Record>,
    /// Where to go on: above every record here.
    pub next: u64,
    /// End of the partition when it was read; `end - next` is the lag.
    pub end: u64,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Heals by itself: wait and ask again.
    #[error("log is away: {0}")]
    Away(String),
    /// The offset is not (any more) in the log.
    #[error("offset {} of {}-{} is outside {}..{}", .wanted.offset, .wanted.partition.topic.name(),
        .wanted.partition.index, .bounds.start, .bounds.end)]
    OutOfRange { wanted: Want, bounds: Bounds },
    /// The record can never be taken.
    #[error("record of {bytes} bytes is over the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// The topic takes no records that are together so large, or none that is; smaller ones it may.
    #[error("topic {topic} takes no records of {bytes} bytes at once")]
    Oversized { topic: String, bytes: usize },
    /// Does not heal without an operator.
    #[error("log failed: {0}")]
    Failed(String),
}

/// What the topics and the consumer groups of their owners are called outside, in the order of
/// `Topic::ALL`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogNames {
    pub topics: [String; 2],
    pub consumer_groups: [String; 2],
}

/// The names of the contract.
impl Default for LogNames {
    fn default() -> Self {
        let topic = |kind: &str| format!("broadcast-user-service-{kind}");
        let group = |kind: &str| format!("broadcast-service-group-{kind}");
        let kinds = Topic::ALL.map(Topic::name);
        Self { topics: kinds.map(topic), consumer_groups: kinds.map(group) }
    }
}

impl LogNames {
    pub fn topic(&self, topic: Topic) -> String {
        let original = &self.topics[topic.original() as usize];
        let suffix = if topic.is_dead() { Topic::DEAD_SUFFIX } else { "" };
        format!("{original}{suffix}")
    }
}

#[async_trait]
pub trait Log: Send + Sync {
    /// Identity and partition counts: known once the log has answered, and constant from then on.
    /// The counts are those of the configuration; a log with others is `Failed`.
    async fn shape(&self) -> Result<LogShape, LogError>;

    /// What one partition holds now.
    async fn bounds(&self, partition: Partition) -> Result<Bounds, LogError>;

    /// Appends all of them and returns each one's place. `Ok` means durable. On an error any part
    /// of them may have been appended.
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Position>, LogError>;

    /// The same for records that are moved, each with key, value and headers as they are. What the
    /// topic refuses for its size is `Oversized`.
    async fn append_moved(&self, records: Vec<MovedRecord>) -> Result<Vec<Position>, LogError>;

    /// Durable records from the wanted places on, at least one if there is one, about `bytes_max`
    /// in all. Waits up to `wait_max` for the first; then returns none.
    async fn fetch(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait_max: Duration,
    ) -> Result<Vec<Batch>, LogError>;
}
