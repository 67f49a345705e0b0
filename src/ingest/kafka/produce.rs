//! Producing, and where partitions begin and end.
//!
//! Both go through rskafka, each call under a timeout: it has none of its own, and waits for a
//! broker that does not answer for as long as that takes. After a timeout its connections and what
//! it knows of leaders are thrown away, because nothing else makes it look for another leader.
//!
//! Records with headers, and those that are moved, go over a connection of our own: rskafka keeps
//! headers in a sorted map, in which equal names collapse, and has no null.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::error::{ParseResponseErrorCode as _, ResponseError};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ProduceRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use rskafka::BackoffConfig;
use rskafka::client::error::{Error as ClientError, ProtocolError};
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use rskafka::record::Record;
use tokio::sync::Mutex;

use super::cluster::{Cluster, away};
use super::connection::{BrokerError, Connection, versions};
use super::records::{self, Outgoing};
use super::security::SaslMechanism;
use crate::base::{EpochMillis, Partition};
use crate::limits::kafka as limits;
use crate::ports::{Bounds, Clock, Header, LogError, NewRecord, SystemClock};

/// On all copies that are in step.
const ACKS_ALL: i16 = -1;

pub(super) struct Producer {
    cluster: Arc<Cluster>,
    /// Replaced as a whole once a call of it failed.
    client: Mutex<Option<Arc<Shared>>>,
    /// For records with headers and moved ones; one request at a time.
    direct: Mutex<HashMap<i32, Connection>>,
}

/// rskafka's client, and its client of each partition.
struct Shared {
    client: Client,
    partitions: Mutex<HashMap<Partition, Arc<PartitionClient>>>,
}

impl Producer {
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, client: Mutex::default(), direct: Mutex::default() }
    }

    /// Appends records of one partition, in order; returns their offsets.
    pub async fn append(
        &self,
        partition: Partition,
        records: Vec<NewRecord>,
    ) -> Result<Vec<u64>, LogError> {
        let mut offsets = Vec::with_capacity(records.len());
        let has_headers = |record: &NewRecord| !record.headers.is_empty();
        let may_join = |one: &NewRecord, next: &NewRecord| has_headers(one) == has_headers(next);
        for batch in batches(records, may_join, new_bytes) {
            let count = batch.len();
            let first = if batch.iter().any(has_headers) {
                let outgoing = batch.into_iter().map(Outgoing::from).collect();
                let appended = self.append_direct(partition, outgoing).await;
                appended.map_err(|error| match error {
                    LogError::Oversized { topic, .. } => too_large(&topic),
                    other => other,
                })?
            } else {
                self.append_plain(partition, batch).await?
            };
            offsets.extend(first..first + count as u64);
        }
        Ok(offsets)
    }

    /// The same for records that are moved.
    pub async fn append_moved(
        &self,
        partition: Partition,
        records: Vec<Outgoing>,
    ) -> Result<Vec<u64>, LogError> {
        let mut offsets = Vec::with_capacity(records.len());
        for batch in batches(records, |_, _| true, Outgoing::bytes) {
            let count = batch.len();
            let first = self.append_direct(partition, batch).await?;
            offsets.extend(first..first + count as u64);
        }
        Ok(offsets)
    }

    /// The first offset that the partition holds, and the one behind its last committed record.
    pub async fn bounds(&self, partition: Partition) -> Result<Bounds, LogError> {
        let (shared, client) = self.client_of(partition).await?;
        let asked = timed(async {
            let start = client.get_offset(OffsetAt::Earliest).await?;
            Ok((start, client.get_offset(OffsetAt::Latest).await?))
        });
        let (start, end) = self.settle(partition, &shared, asked.await).await?;
        let offset = |offset: i64| u64::try_from(offset).unwrap_or(0);
        Ok(Bounds { start: offset(start), end: offset(end) })
    }

    /// A try that has no answer in time is repeated: the partition may have another leader by now.
    /// What is written twice by that is a repeat, and recognised as one.
    async fn append_plain(
        &self,
        partition: Partition,
        records: Vec<NewRecord>,
    ) -> Result<u64, LogError> {
        let now = chrono::Utc::now();
        let records: Vec<Record> = records
            .iter()
            .map(|record| Record {
                key: Some(record.key.to_vec()),
                value: Some(record.value.to_vec()),
                headers: std::collections::BTreeMap::new(),
                timestamp: now,
            })
            .collect();
        let tries = async {
            loop {
                let shared = self.shared().await?;
                let tried = self.try_plain(partition, &shared, records.clone()).await;
                let is_silent = matches!(tried, Err(ClientError::Timeout));
                match self.settle(partition, &shared, tried).await {
                    Err(_) if is_silent => {}
                    settled => return settled,
                }
            }
        };
        let name = self.cluster.topic_name(partition.topic);
        let appended = tokio::time::timeout(limits::PRODUCE_TIME, tries).await;
        appended.unwrap_or_else(|_| Err(silent(name, partition.index, limits::PRODUCE_TIME)))
    }

    async fn try_plain(
        &self,
        partition: Partition,
        shared: &Shared,
        records: Vec<Record>,
    ) -> Result<u64, ClientError> {
        let name = self.cluster.topic_name(partition.topic);
        let client = timed(shared.partition(name, partition)).await?;
        let offsets = timed(client.produce(records, Compression::NoCompression)).await?;
        let first = offsets.first().and_then(|offset| u64::try_from(*offset).ok());
        first.ok_or_else(|| ClientError::InvalidResponse("no offset".to_owned()))
    }

    /// rskafka's client of a partition, and what it belongs to.
    async fn client_of(
        &self,
        partition: Partition,
    ) -> Result<(Arc<Shared>, Arc<PartitionClient>), LogError> {
        let shared = self.shared().await?;
        let name = self.cluster.topic_name(partition.topic);
        let client = timed(shared.partition(name, partition)).await;
        let client = self.settle(partition, &shared, client).await?;
        Ok((shared, client))
    }

    /// After a failed call nothing that it knew is used again.
    async fn settle<T>(
        &self,
        partition: Partition,
        shared: &Arc<Shared>,
        called: Result<T, ClientError>,
    ) -> Result<T, LogError> {
        match called {
            Ok(done) => Ok(done),
            Err(error) => {
                self.forget(shared).await;
                let name = self.cluster.topic_name(partition.topic);
                Err(explain(name, partition.index, &error))
            }
        }
    }

    /// The client, made anew if there is none. It is told of one broker only, one that has just
    /// answered: of several it might choose one that is frozen.
    async fn shared(&self) -> Result<Arc<Shared>, LogError> {
        let mut current = self.client.lock().await;
        if let Some(shared) = &*current {
            return Ok(shared.clone());
        }
        let broker = self.cluster.live_broker().await?;
        let options = &self.cluster.options;
        let mut builder = ClientBuilder::new(vec![broker.clone()])
            .client_id(options.client_id.clone())
            .max_message_size(limits::FRAME_BYTES_MAX)
            .backoff_config(BackoffConfig {
                init_backoff: limits::BACKOFF_FIRST,
                max_backoff: Duration::from_secs(1),
                base: 2.0,
                // Beyond the time of a call: that one ends its retries.
                deadline: Some(limits::PRODUCE_TIME),
            });
        if let Some(tls) = &self.cluster.security.tls {
            builder = builder.tls_config(tls.clone());
        }
        if let Some(login) = &self.cluster.security.sasl {
            let credentials = Credentials::new(login.username.clone(), login.password.clone());
            builder = builder.sasl_config(match login.mechanism {
                SaslMechanism::Plain => SaslConfig::Plain(credentials),
                SaslMechanism::ScramSha256 => SaslConfig::ScramSha256(credentials),
                SaslMechanism::ScramSha512 => SaslConfig::ScramSha512(credentials),
            });
        }
        let built = tokio::time::timeout(limits::CONNECT_TIME, builder.build()).await;
        let client = match built {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                return Err(LogError::Away(format!("broker {broker} can't be used: {error}")));
            }
            Err(_) => return Err(LogError::Away(format!("broker {broker} does not answer"))),
        };
        let shared = Arc::new(Shared { client, partitions: Mutex::default() });
        *current = Some(shared.clone());
        Ok(shared)
    }

    async fn forget(&self, shared: &Arc<Shared>) {
        let mut current = self.client.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, shared)) {
            *current = None;
        }
    }

    /// One batch over a connection of our own; returns its first offset.
    async fn append_direct(
        &self,
        partition: Partition,
        outgoing: Vec<Outgoing>,
    ) -> Result<u64, LogError> {
        let sent = tokio::time::timeout(limits::PRODUCE_TIME, async {
            let now = SystemClock.wall();
            loop {
                let known = self.cluster.known();
                match self.try_direct(partition, &outgoing, now).await {
                    // The leader has moved: nothing was written.
                    Err(Direct::Moved) => self.cluster.refresh(known.generation).await?,
                    Err(Direct::Error(error)) => return Err(error),
                    Ok(offset) => return Ok(offset),
                }
            }
        });
        let name = self.cluster.topic_name(partition.topic);
        sent.await.unwrap_or_else(|_| {
            Err(LogError::Away(format!("{name}-{} takes no records in time", partition.index)))
        })
    }

    async fn try_direct(
        &self,
        partition: Partition,
        records: &[Outgoing],
        now: EpochMillis,
    ) -> Result<u64, Direct> {
        let name = self.cluster.topic_name(partition.topic);
        let index = partition.index;
        let known = self.cluster.known();
        let (broker, address) = known.leader(partition).ok_or(Direct::Moved)?;
        let mut all = self.direct.lock().await;
        let idle = all.remove(&broker).filter(|idle| idle.broker() == address);
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.cluster.connect(address).await?,
        };
        let data = PartitionProduceData::default()
            .with_index(i32::from(index))
            .with_records(Some(records::encode(records, now)));
        let topic = TopicProduceData::default()
            .with_name(TopicName(StrBytes::from_string(name.to_owned())))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(ACKS_ALL)
            .with_timeout_ms(i32::try_from(limits::REQUEST_TIME.as_millis()).unwrap_or(i32::MAX))
            .with_topic_data(vec![topic]);
        let waited = limits::REQUEST_TIME * 2;
        let answer = connection.call(&request, versions::PRODUCE, waited).await?;
        all.insert(broker, connection);
        let placed = answer.responses.first().and_then(|topic| topic.partition_responses.first());
        let placed = placed.ok_or_else(|| {
            LogError::Away(format!("broker {address} gave no offset for {name}-{index}"))
        })?;
        match placed.error_code.err() {
            None => Ok(u64::try_from(placed.base_offset).unwrap_or(0)),
            Some(
                ResponseError::NotLeaderOrFollower
                | ResponseError::LeaderNotAvailable
                | ResponseError::UnknownTopicOrPartition,
            ) => Err(Direct::Moved),
            Some(ResponseError::MessageTooLarge | ResponseError::RecordListTooLarge) => {
                let bytes = records.iter().map(Outgoing::bytes).sum();
                Err(LogError::Oversized { topic: name.to_owned(), bytes }.into())
            }
            Some(error) => Err(LogError::Away(format!(
                "broker {address} takes no record for {name}-{index}: {error}"
            ))
            .into()),
        }
    }
}

impl Shared {
    async fn partition(
        &self,
        name: &str,
        partition: Partition,
    ) -> Result<Arc<PartitionClient>, ClientError> {
        if let Some(client) = self.partitions.lock().await.get(&partition) {
            return Ok(client.clone());
        }
        // Not under the lock: other partitions' brokers may answer sooner. Two that make the same
        // one at once lose a connection.
        let index = i32::from(partition.index);
        // The topic is known to be there: a broker that does not know it yet is behind.
        let made = self.client.partition_client(name, index, UnknownTopicHandling::Retry).await?;
        let made = Arc::new(made);
        self.partitions.lock().await.insert(partition, made.clone());
        Ok(made)
    }
}

/// Why a batch was not written over our own connection.
enum Direct {
    Moved,
    Error(LogError),
}

impl From<LogError> for Direct {
    fn from(error: LogError) -> Self {
        Self::Error(error)
    }
}

impl From<BrokerError> for Direct {
    fn from(error: BrokerError) -> Self {
        Self::Error(away(error))
    }
}

async fn timed<T>(call: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let called = tokio::time::timeout(limits::REQUEST_TIME, call).await;
    called.unwrap_or(Err(ClientError::Timeout))
}

fn explain(topic: &str, index: u16, error: &ClientError) -> LogError {
    match error {
        ClientError::ServerError { protocol_error: ProtocolError::MessageTooLarge, .. } => {
            too_large(topic)
        }
        ClientError::Timeout => silent(topic, index, limits::REQUEST_TIME),
        _ => LogError::Away(format!("{topic}-{index}: {error}")),
    }
}

fn silent(topic: &str, index: u16, waited: Duration) -> LogError {
    let seconds = waited.as_secs();
    LogError::Away(format!("the broker of {topic}-{index} does not answer in {seconds} s"))
}

fn too_large(topic: &str) -> LogError {
    LogError::Failed(format!(
        "a record is larger than topic {topic} takes; set its max.message.bytes to {}",
        limits::MESSAGE_BYTES_MAX
    ))
}

impl From<NewRecord> for Outgoing {
    fn from(record: NewRecord) -> Self {
        let NewRecord { key, value, headers, .. } = record;
        Self { key: Some(key), value: Some(value), headers }
    }
}

impl Outgoing {
    /// About what it takes in a batch.
    fn bytes(&self) -> usize {
        let text = |text: &Option<bytes::Bytes>| text.as_ref().map_or(0, bytes::Bytes::len);
        let header = |header: &Header| header.name.len() + text(&header.value) + 8;
        let headers: usize = self.headers.iter().map(header).sum();
        text(&self.key) + text(&self.value) + headers + limits::RECORD_OVERHEAD_BYTES
    }
}

fn new_bytes(record: &NewRecord) -> usize {
    Outgoing::from(record.clone()).bytes()
}

/// Cut into what a broker takes in one batch.
fn batches<R>(
    records: Vec<R>,
    may_join: impl Fn(&R, &R) -> bool,
    bytes_of: impl Fn(&R) -> usize,
) -> Vec<Vec<R>> {
    let mut all: Vec<Vec<R>> = Vec::new();
    let mut room = 0_usize;
    for record in records {
        let bytes = bytes_of(&record);
        match all.last_mut() {
            Some(batch) if bytes <= room && may_join(&batch[0], &record) => {
                room -= bytes;
                batch.push(record);
            }
            _ => {
                room = limits::PRODUCE_BYTES_MAX.saturating_sub(bytes);
                all.push(vec![record]);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Topic;

    #[test]
    fn batches_are_small_enough_and_keep_the_order() {
        let record = |bytes: usize, has_headers: bool| NewRecord {
            topic: Topic::Group,
            key: bytes::Bytes::from_static(b"k"),
            value: vec![0; bytes].into(),
            headers: if has_headers {
                vec![Header { name: bytes::Bytes::from_static(b"h"), value: None }]
            } else {
                Vec::new()
            },
        };
        let sizes = |records: Vec<NewRecord>| -> Vec<Vec<usize>> {
            let lengths =
                |batch: &Vec<NewRecord>| batch.iter().map(|one| one.value.len()).collect();
            let has_headers = |record: &NewRecord| !record.headers.is_empty();
            let may_join = |one: &_, next: &_| has_headers(one) == has_headers(next);
            batches(records, may_join, new_bytes).iter().map(lengths).collect()
        };
        assert_eq!(sizes(Vec::new()), Vec::<Vec<usize>>::new());
        let many = [400_000, 400_000, 400_000, 2_000_000, 1].map(|bytes| record(bytes, false));
        let cut = [vec![400_000, 400_000], vec![400_000], vec![2_000_000], vec![1]];
        assert_eq!(sizes(many.to_vec()), cut);
        let mixed = vec![record(1, false), record(2, true), record(3, true), record(4, false)];
        assert_eq!(sizes(mixed), [vec![1], vec![2, 3], vec![4]]);
    }
}
