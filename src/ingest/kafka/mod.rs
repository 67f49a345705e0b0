//! The log in Kafka, and owning its partitions through consumer groups (`group`).
//!
//! Fetching, topics and their ids, and records with headers go over connections of our own
//! (`connection.rs`), everything else through rskafka (`produce.rs`), every call under a timeout.
//! Making one does no I/O but reading the files that the configuration names: a node starts while
//! the brokers are absent, and `shape` says what is missing until they answer.
//!
//! Invariants: only committed records are given; a batch that can't be read comes as one record of
//! its bytes, and the next one follows; what a broker refuses is asked again, with jitter, and
//! holds up no other; topics that are replaced while the node runs are never mixed with their
//! predecessors.

mod cluster;
mod connection;
mod control;
mod fetch;
mod group;
mod produce;
mod records;
mod security;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use cluster::Cluster;
use fetch::{Fetched, Fetcher};
pub use group::{KafkaGroups, KafkaOwnership};
use produce::Producer;
use records::Outgoing;
pub use security::{SaslLogin, SaslMechanism, TlsFiles};

use crate::base::{LogShape, Partition, Position, partition_of_key};
use crate::limits::log as limits;
use crate::ports::{Batch, Bounds, Log, LogError, MovedRecord, NewRecord, Want, join_all};

/// What the configuration says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaOptions {
    /// Some of the brokers, `host:port`; they name the others.
    pub brokers: Vec<String>,
    pub topic_selected: String,
    pub topic_group: String,
    pub topic_control: String,
    /// What each topic has. It is made with so many, and one that has others is refused.
    pub partitions: u16,
    /// Copies of a topic that is made here.
    pub replication: u16,
    /// How long a topic that is made here keeps its records, and one for dead letters.
    pub retention: Duration,
    pub dead_retention: Duration,
    /// Least time between two fetches from one broker.
    pub fetch_pace: Duration,
    /// What the brokers' logs and quotas call the node.
    pub client_id: String,
    pub tls: Option<TlsFiles>,
    pub sasl: Option<SaslLogin>,
}

/// A file that the configuration names can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {}: {reason}", .path.display())]
pub struct OptionsError {
    pub key: &'static str,
    pub path: PathBuf,
    pub reason: String,
}

pub struct KafkaLog {
    cluster: Arc<Cluster>,
    fetcher: Fetcher,
    producer: Producer,
}

impl KafkaLog {
    /// Reads the files of TLS and password. Connects to nobody.
    pub fn new(options: KafkaOptions) -> Result<Self, OptionsError> {
        let security = security::Security::load(&options)?;
        let cluster = Arc::new(Cluster::new(options, security));
        Ok(Self {
            fetcher: Fetcher::new(cluster.clone()),
            producer: Producer::new(cluster.clone()),
            cluster,
        })
    }

    /// Returns each record's number and place.
    async fn append_group(&self, group: Group) -> Result<Vec<(usize, Position)>, LogError> {
        let Group { partition, numbers, records } = group;
        let offsets = self.producer.append(partition, records).await?;
        let places = offsets.into_iter().map(|offset| Position { partition, offset });
        Ok(numbers.into_iter().zip(places).collect())
    }
}

/// Records of one append that go to one partition, and their numbers in the append.
struct Group {
    partition: Partition,
    numbers: Vec<usize>,
    records: Vec<NewRecord>,
}

#[async_trait]
impl Log for KafkaLog {
    async fn shape(&self) -> Result<LogShape, LogError> {
        self.cluster.ready().await.map(|(_, shape)| shape)
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, LogError> {
        self.cluster.ready().await?;
        self.producer.bounds(partition).await
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        let large =
            records.iter().find(|record| record.value.len() > limits::RECORD_VALUE_BYTES_MAX);
        if let Some(large) = large {
            let (bytes, limit) = (large.value.len(), limits::RECORD_VALUE_BYTES_MAX);
            return Err(LogError::TooLarge { bytes, limit });
        }
        let (_, shape) = self.cluster.ready().await?;
        // Partitions side by side, within each one in order.
        let mut groups: Vec<Group> = Vec::new();
        let count = records.len();
        for (number, record) in records.into_iter().enumerate() {
            let index = partition_of_key(&record.key, shape.partitions(record.topic));
            let partition = Partition { topic: record.topic, index };
            match groups.iter_mut().find(|group| group.partition == partition) {
                Some(group) => {
                    group.numbers.push(number);
                    group.records.push(record);
                }
                None => {
                    let (numbers, records) = (vec![number], vec![record]);
                    groups.push(Group { partition, numbers, records });
                }
            }
        }
        let appends = groups.into_iter().map(|group| self.append_group(group));
        let mut places: Vec<Option<Position>> = vec![None; count];
        for appended in join_all(appends).await {
            for (number, place) in appended? {
                places[number] = Some(place);
            }
        }
        let places: Option<Vec<Position>> = places.into_iter().collect();
        places
            .ok_or_else(|| LogError::Away("a broker did not say where all records are".to_owned()))
    }

    async fn append_moved(&self, records: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        self.cluster.ready().await?;
        let count = records.len();
        let mut runs: BTreeMap<Partition, (Vec<usize>, Vec<Outgoing>)> = BTreeMap::new();
        for (number, record) in records.into_iter().enumerate() {
            let MovedRecord { to, key, value, headers } = record;
            let (numbers, outgoing) = runs.entry(to).or_default();
            numbers.push(number);
            outgoing.push(Outgoing { key, value, headers });
        }
        let mut places: Vec<Option<Position>> = vec![None; count];
        for (partition, (numbers, outgoing)) in runs {
            let offsets = self.producer.append_moved(partition, outgoing).await?;
            for (number, offset) in numbers.into_iter().zip(offsets) {
                places[number] = Some(Position { partition, offset });
            }
        }
        Ok(places.into_iter().flatten().collect())
    }

    async fn fetch(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait_max: Duration,
    ) -> Result<Vec<Batch>, LogError> {
        self.cluster.ready().await?;
        match self.fetcher.fetch(wants, bytes_max, wait_max).await? {
            Fetched::Batches(batches) => Ok(batches),
            Fetched::OutOfRange(wanted) => {
                let bounds = self.producer.bounds(wanted.partition).await?;
                // Trimmed and grown meanwhile: it is asked again.
                if (bounds.start..=bounds.end).contains(&wanted.offset) {
                    return Ok(Vec::new());
                }
                Err(LogError::OutOfRange { wanted, bounds })
            }
        }
    }
}
