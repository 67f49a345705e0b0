//! What is known of the cluster: brokers, topic ids, leaders. Asked when something does not fit
//! any more, at any broker that answers.
//!
//! Topics that are missing are made here and not through rskafka, which can't say how long a topic
//! keeps its records.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use kafka_protocol::error::{ParseResponseErrorCode as _, ResponseError};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{CreateTopicsRequest, MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::{Request, StrBytes, VersionRange};
use uuid::Uuid;

use super::KafkaOptions;
use super::connection::{BrokerError, Connection, versions};
use super::security::Security;
use crate::base::{LogIdentity, LogShape, Partition, Topic};
use crate::limits::{control, kafka as limits, log};
use crate::ports::LogError;

/// Between two questions about the cluster, so that a leaderless partition is not asked for
/// without pause.
const REFRESH_PACE: Duration = Duration::from_millis(100);
/// How often the cluster is asked for topics that have just been made.
const NEW_TOPIC_LOOKS: usize = 50;

pub(super) struct Cluster {
    pub options: KafkaOptions,
    /// Names in the order of `Topic::SHARED`.
    names: [String; 5],
    pub security: Security,
    known: Mutex<Arc<Known>>,
    asking: tokio::sync::Mutex<Asking>,
    /// Why the last question was not answered as it should.
    trouble: Mutex<Option<String>>,
    /// Why this can't be the log any more.
    failed: OnceLock<String>,
}

/// One answer of the cluster.
#[derive(Clone, Default, Debug)]
pub(super) struct Known {
    /// Counts the answers.
    pub generation: u64,
    /// Address by id.
    pub brokers: BTreeMap<i32, String>,
    /// In the order of `Topic::SHARED`.
    topics: [Option<KnownTopic>; 5],
    /// Set once the topics' ids and partitions have been found right; never changes after.
    pub shape: Option<LogShape>,
    /// In the order of `Topic::ALL`.
    ids: Option<[Uuid; 2]>,
}

#[derive(Clone, Debug)]
struct KnownTopic {
    id: Uuid,
    /// The leader of each partition, if it has one.
    leaders: Vec<Option<i32>>,
}

#[derive(Default)]
struct Asking {
    connection: Option<Connection>,
    /// When the last question began.
    last: Option<Instant>,
    /// What it has come to, if that was an error, and when.
    failed: Option<(Instant, LogError)>,
}

/// One answer, and the connection that it came by. Without an error: that of a connection which
/// was idle, and says nothing of the broker.
type Asked<A> = Result<(Connection, A), Option<BrokerError>>;
type AskedSoon<'a, A> = Pin<Box<dyn Future<Output = Asked<A>> + Send + 'a>>;

impl Known {
    pub fn topic_id(&self, topic: Topic) -> Option<Uuid> {
        self.topics[topic as usize].as_ref().map(|known| known.id)
    }

    /// Id and address of the broker that leads a partition.
    pub fn leader(&self, partition: Partition) -> Option<(i32, &str)> {
        let topic = self.topics[partition.topic as usize].as_ref()?;
        let id = topic.leaders.get(usize::from(partition.index)).copied().flatten()?;
        self.brokers.get(&id).map(|address| (id, address.as_str()))
    }
}

impl Cluster {
    pub fn new(options: KafkaOptions, security: Security) -> Self {
        let names = Topic::SHARED.map(|topic| {
            let original = match topic.original() {
                Topic::Selected => &options.topic_selected,
                Topic::Control => &options.topic_control,
                _ => &options.topic_group,
            };
            let suffix = if topic.is_dead() { Topic::DEAD_SUFFIX } else { "" };
            format!("{original}{suffix}")
        });
        Self {
            options,
            names,
            security,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
            failed: OnceLock::new(),
        }
    }

    pub fn topic_name(&self, topic: Topic) -> &str {
        &self.names[topic as usize]
    }

    /// How many partitions a topic has to have.
    pub fn partitions(&self, topic: Topic) -> u16 {
        if topic.is_served() { self.options.partitions } else { 1 }
    }

    /// The last answer, with a shape; asks if there is none yet.
    pub async fn ready(&self) -> Result<(Arc<Known>, LogShape), LogError> {
        if let Some(reason) = self.failed.get() {
            return Err(LogError::Failed(reason.clone()));
        }
        let known = self.known();
        if let Some(shape) = known.shape {
            return Ok((known, shape));
        }
        self.refresh(known.generation).await?;
        let known = self.known();
        match known.shape {
            Some(shape) => Ok((known, shape)),
            None => Err(LogError::Away("the topics are not complete yet".to_owned())),
        }
    }

    /// Asks the cluster, unless that was done since `seen`. `Ok` means that there is a later
    /// answer than that; what it says may be the same.
    pub async fn refresh(&self, seen: u64) -> Result<(), LogError> {
        let outcome = self.try_refresh(seen).await;
        let trouble = outcome.as_ref().err().map(ToString::to_string);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        if let Err(LogError::Failed(reason)) = &outcome
            && self.known().shape.is_some()
        {
            let _ = self.failed.set(reason.clone());
        }
        outcome
    }

    /// The same, without waiting for it.
    pub fn refresh_aside(self: &Arc<Self>, seen: u64) {
        let cluster = self.clone();
        tokio::spawn(async move {
            if let Err(error) = cluster.refresh(seen).await {
                tracing::warn!(%error, "the cluster can't be asked for the leaders");
            }
        });
    }

    /// What the last question met.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn try_refresh(&self, seen: u64) -> Result<(), LogError> {
        let called = Instant::now();
        let mut asking = self.asking.lock().await;
        if self.known().generation > seen {
            return Ok(());
        }
        // One that has failed meanwhile tells all who waited for it: while no broker answers, they
        // would else wait for each other.
        if let Some((at, error)) = &asking.failed
            && *at >= called
        {
            return Err(error.clone());
        }
        if let Some(last) = asking.last {
            tokio::time::sleep_until((last + REFRESH_PACE).into()).await;
        }
        asking.last = Some(Instant::now());
        let outcome = self.ask_and_learn(&mut asking).await;
        asking.failed = outcome.as_ref().err().map(|error| (Instant::now(), error.clone()));
        outcome
    }

    async fn ask_and_learn(&self, asking: &mut Asking) -> Result<(), LogError> {
        let first = self.ask(asking).await.map_err(away)?;
        let mut missing = self.missing(&first);
        if self.known().shape.is_some() {
            // One that is served and gone is never made again: cursors are of the old one.
            missing.retain(|topic| !topic.is_served());
            if !missing.is_empty()
                && let Err(error) = self.make_topics(asking, &missing).await
            {
                tracing::warn!(%error, "a topic that is gone can't be made");
            }
            return self.learn(&first);
        }
        if missing.is_empty() {
            return self.learn(&first);
        }
        self.make_topics(asking, &missing).await?;
        // Brokers hear of new topics one after the other.
        for _ in 0..NEW_TOPIC_LOOKS {
            let answer = self.ask(asking).await.map_err(away)?;
            let learned = self.learn(&answer);
            if self.missing(&answer).is_empty() {
                return learned;
            }
            tokio::time::sleep(REFRESH_PACE).await;
        }
        let names: Vec<&str> = missing.iter().map(|topic| self.topic_name(*topic)).collect();
        Err(LogError::Away(format!("no broker knows the new topics yet: {}", names.join(", "))))
    }

    pub fn known(&self) -> Arc<Known> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Known>> {
        // One assignment is done under it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the cluster knows of the topics: asked at the broker that answered last, else at any.
    async fn ask(&self, asking: &mut Asking) -> Result<MetadataResponse, BrokerError> {
        let topics = Topic::SHARED.map(|topic| {
            let name = TopicName(StrBytes::from_string(self.topic_name(topic).to_owned()));
            MetadataRequestTopic::default().with_name(Some(name))
        });
        let request = MetadataRequest::default()
            .with_topics(Some(topics.to_vec()))
            .with_allow_auto_topic_creation(false);
        let last = asking.connection.take();
        let (connection, answer) = self.ask_any(last, &request, versions::METADATA).await?;
        asking.connection = Some(connection);
        Ok(answer)
    }

    /// One question, over the connection if there is one and else at any broker: each is asked when
    /// the one before it has failed, or has said nothing for a while. The first answer counts.
    pub async fn ask_any<R>(
        &self,
        idle: Option<Connection>,
        request: &R,
        versions: VersionRange,
    ) -> Result<(Connection, R::Response), BrokerError>
    where
        R: Request + Sync,
        R::Response: Send,
    {
        let mut asked: Vec<AskedSoon<'_, R::Response>> = Vec::new();
        if let Some(connection) = idle {
            asked.push(Box::pin(ask_over(connection, request, versions)));
        }
        let mut others = self.candidates().into_iter();
        let mut worst: Option<BrokerError> = None;
        loop {
            if asked.is_empty() {
                match others.next() {
                    Some(address) => asked.push(Box::pin(self.ask_at(address, request, versions))),
                    None => break,
                }
            }
            match tokio::time::timeout(limits::NEXT_BROKER_WAIT, first_of(&mut asked)).await {
                Ok(Ok(answered)) => return Ok(answered),
                // A wrong password says more than a broker that is down.
                Ok(Err(Some(error)))
                    if worst.as_ref().is_none_or(|worst| rank(&error) > rank(worst)) =>
                {
                    worst = Some(error);
                }
                Ok(Err(_)) => {}
                Err(_) => {
                    let next = others.next();
                    let ask = |address| Box::pin(self.ask_at(address, request, versions)) as _;
                    asked.extend(next.map(ask));
                }
            }
        }
        Err(worst.unwrap_or_else(|| BrokerError::Unreachable {
            broker: "(none)".to_owned(),
            reason: "log.brokers is empty".to_owned(),
        }))
    }

    async fn ask_at<R: Request>(
        &self,
        address: String,
        request: &R,
        versions: VersionRange,
    ) -> Asked<R::Response> {
        let mut connection = self.connect(&address).await?;
        let answer = connection.call(request, versions, limits::CONNECT_TIME).await?;
        Ok((connection, answer))
    }

    /// The address of a broker that has just answered.
    pub async fn live_broker(&self) -> Result<String, LogError> {
        let generation = self.known().generation;
        self.refresh(generation).await?;
        let asking = self.asking.lock().await;
        let connection = asking.connection.as_ref();
        let address = connection.map(|connection| connection.broker().to_owned());
        address.ok_or_else(|| LogError::Away("no broker answers".to_owned()))
    }

    pub async fn connect(&self, address: &str) -> Result<Connection, BrokerError> {
        Connection::open(address, &self.security, &self.options.client_id).await
    }

    /// Every address that may answer, in another order for each node and time.
    fn candidates(&self) -> Vec<String> {
        let known = self.known();
        let mut all: Vec<String> = known.brokers.values().cloned().collect();
        all.extend(self.options.brokers.iter().cloned());
        all.sort();
        all.dedup();
        if !all.is_empty() {
            let turn = uuid::Uuid::new_v4().as_u128() as usize % all.len();
            all.rotate_left(turn);
        }
        all
    }

    /// The configured topics that the answer does not know.
    fn missing(&self, answer: &MetadataResponse) -> Vec<Topic> {
        let is_unknown = |topic: &Topic| {
            let name = self.topic_name(*topic);
            let found = answer.topics.iter().find(|found| name_of(found) == Some(name));
            found.is_none_or(|found| {
                found.error_code.err() == Some(ResponseError::UnknownTopicOrPartition)
            })
        };
        Topic::SHARED.into_iter().filter(is_unknown).collect()
    }

    async fn make_topics(&self, asking: &mut Asking, topics: &[Topic]) -> Result<(), LogError> {
        let Some(connection) = asking.connection.as_mut() else { return Ok(()) };
        let copies = self.options.replication;
        let config = |name: &'static str, value: String| {
            CreatableTopicConfig::default()
                .with_name(StrBytes::from_static_str(name))
                .with_value(Some(StrBytes::from_string(value)))
        };
        let topics = topics.iter().map(|topic| {
            let (retention, bytes) = match topic {
                Topic::Selected | Topic::Group => {
                    (self.options.retention, limits::MESSAGE_BYTES_MAX)
                }
                Topic::SelectedDead | Topic::GroupDead => {
                    (self.options.dead_retention, log::DEAD_RECORD_BYTES_MAX)
                }
                Topic::Control => (control::RETENTION, limits::MESSAGE_BYTES_MAX),
            };
            CreatableTopic::default()
                .with_name(TopicName(StrBytes::from_string(self.topic_name(*topic).to_owned())))
                .with_num_partitions(i32::from(self.partitions(*topic)))
                .with_replication_factor(i16::try_from(copies).unwrap_or(i16::MAX))
                .with_configs(vec![
                    config("retention.ms", retention.as_millis().to_string()),
                    config("max.message.bytes", bytes.to_string()),
                    // Acknowledged means on all but one copy: losing one broker loses nothing.
                    config("min.insync.replicas", copies.saturating_sub(1).max(1).to_string()),
                ])
        });
        let waited = limits::REQUEST_TIME;
        let request = CreateTopicsRequest::default()
            .with_topics(topics.collect())
            .with_timeout_ms(i32::try_from(waited.as_millis()).unwrap_or(i32::MAX));
        let answer = connection.call(&request, versions::CREATE_TOPICS, waited * 2).await;
        for topic in answer.map_err(away)?.topics {
            let name = topic.name.0.as_str();
            let said = topic.error_message.as_ref().map_or("", |said| said.as_str());
            let advice = match topic.error_code.err() {
                None => {
                    tracing::info!(topic = name, copies, "made a topic");
                    continue;
                }
                // Another node was faster.
                Some(ResponseError::TopicAlreadyExists) => continue,
                Some(ResponseError::InvalidReplicationFactor) => {
                    "start more brokers, or lower log.replication"
                }
                Some(
                    ResponseError::TopicAuthorizationFailed
                    | ResponseError::ClusterAuthorizationFailed,
                ) => "allow this user to make it, or make it",
                Some(_) => "make it, or correct the configuration",
            };
            return Err(LogError::Away(format!(
                "topic {name} can't be made with {copies} copies: {said}; {advice}"
            )));
        }
        Ok(())
    }

    /// Takes over an answer. Fails if it says that the log is not the one that it was, or not the
    /// one that is configured.
    fn learn(&self, answer: &MetadataResponse) -> Result<(), LogError> {
        let brokers = answer.brokers.iter();
        let brokers = brokers.map(|one| (one.node_id.0, address(&one.host, one.port))).collect();
        let mut next = Known { brokers, ..(*self.known()).clone() };
        next.generation += 1;
        let mut trouble = None;
        for topic in Topic::SHARED {
            let name = self.topic_name(topic);
            let found = answer.topics.iter().find(|found| name_of(found) == Some(name));
            match self.check_topic(topic, found, next.ids) {
                Ok(known) => next.topics[topic as usize] = Some(known),
                // What is served does not wait for it.
                Err(error) if !topic.is_served() && next.shape.is_some() => {
                    tracing::warn!(%error, "a topic has to be waited for");
                    next.topics[topic as usize] = None;
                }
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        if trouble.is_none()
            && next.shape.is_none()
            && let [Some(selected), Some(group), ..] = &next.topics
        {
            next.ids = Some([selected.id, group.id]);
            next.shape = Some(LogShape {
                identity: identity(selected.id, group.id),
                selected_partitions: self.options.partitions,
                group_partitions: self.options.partitions,
            });
        }
        *self.lock() = Arc::new(next);
        trouble.map_or(Ok(()), Err)
    }

    fn check_topic(
        &self,
        topic: Topic,
        found: Option<&MetadataResponseTopic>,
        ids: Option<[Uuid; 2]>,
    ) -> Result<KnownTopic, LogError> {
        let name = self.topic_name(topic);
        let error = found
            .map_or(Some(ResponseError::UnknownTopicOrPartition), |found| found.error_code.err());
        let found = match (found, error) {
            (Some(found), None) => found,
            (_, Some(ResponseError::UnknownTopicOrPartition)) => {
                return Err(LogError::Away(format!("topic {name} is not there")));
            }
            (_, Some(ResponseError::TopicAuthorizationFailed)) => {
                return Err(LogError::Away(format!(
                    "topic {name} may not be read by this user; allow Describe, Read and Write"
                )));
            }
            (_, error) => {
                let error = error.map_or(String::new(), |error| error.to_string());
                return Err(LogError::Away(format!("topic {name}: {error}")));
            }
        };
        // No cursor knows of the other topics.
        let known_id = ids.and_then(|ids| ids.get(topic as usize).copied());
        if let Some(id) = known_id
            && id != found.topic_id
        {
            return Err(LogError::Failed(format!(
                "topic {name} was replaced: its id was {id}, now it is {}; start the node again, \
                 and it serves the new one",
                found.topic_id
            )));
        }
        let partitions = self.partitions(topic);
        let count = found.partitions.len();
        if !topic.is_served() && count != 1 {
            return Err(LogError::Failed(format!(
                "topic {name} has {count} partitions, and a topic for dead letters or for control \
                 has one; remove it, or name other topics"
            )));
        }
        if count < usize::from(partitions) || (ids.is_none() && count != usize::from(partitions)) {
            return Err(LogError::Failed(format!(
                "topic {name} has {count} partitions, the configuration says log.partitions = \
                 {partitions}; set log.partitions to what the topics have, or name other topics"
            )));
        }
        if count != usize::from(partitions) {
            tracing::error!(
                topic = name,
                partitions = count,
                configured = partitions,
                "the topic has got more partitions, and nobody reads them: set log.partitions and \
                 start the nodes again"
            );
        }
        let mut leaders = vec![None; usize::from(partitions)];
        for partition in &found.partitions {
            let at = usize::try_from(partition.partition_index).ok();
            if let Some(leader) = at.and_then(|at| leaders.get_mut(at)) {
                *leader = (partition.leader_id.0 >= 0).then_some(partition.leader_id.0);
            }
        }
        Ok(KnownTopic { id: found.topic_id, leaders })
    }
}

async fn ask_over<R: Request>(
    mut connection: Connection,
    request: &R,
    versions: VersionRange,
) -> Asked<R::Response> {
    let answer = connection.call(request, versions, limits::CONNECT_TIME).await;
    answer.map(|answer| (connection, answer)).map_err(|_| None)
}

/// Where a broker says that one is, as one connects to it.
pub(super) fn address(host: &StrBytes, port: i32) -> String {
    if host.contains(':') {
        format!("[{}]:{port}", host.as_str())
    } else {
        format!("{}:{port}", host.as_str())
    }
}

/// The first of them that ends; the others go on when this is called again.
async fn first_of<A>(asked: &mut Vec<AskedSoon<'_, A>>) -> Asked<A> {
    std::future::poll_fn(|context| {
        for at in 0..asked.len() {
            if let Poll::Ready(answer) = asked[at].as_mut().poll(context) {
                drop(asked.swap_remove(at));
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    })
    .await
}

fn name_of(topic: &MetadataResponseTopic) -> Option<&str> {
    topic.name.as_ref().map(|name| name.0.as_str())
}

/// Three bytes that follow from both topic ids.
fn identity(selected: Uuid, group: Uuid) -> LogIdentity {
    let [first, second, third, ..] = Uuid::new_v5(&selected, group.as_bytes()).into_bytes();
    LogIdentity([first, second, third])
}

/// How much an error says about what is wrong.
fn rank(error: &BrokerError) -> u8 {
    match error {
        BrokerError::Unreachable { .. } => 0,
        BrokerError::Silent { .. } => 1,
        BrokerError::Closed { .. } => 2,
        _ => 3,
    }
}

pub(super) fn away(error: BrokerError) -> LogError {
    LogError::Away(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(brokers: Vec<String>) -> Cluster {
        let options = KafkaOptions {
            brokers,
            topic_selected: "selected".to_owned(),
            topic_group: "group".to_owned(),
            topic_control: "control".to_owned(),
            partitions: 1,
            replication: 1,
            retention: Duration::from_secs(3_600),
            dead_retention: Duration::from_secs(3_600),
            fetch_pace: Duration::ZERO,
            client_id: "test".to_owned(),
            tls: None,
            sasl: None,
        };
        let security = Security::load(&options).expect("no files");
        Cluster::new(options, security)
    }

    /// Brokers that are frozen: the kernel connects, and nobody answers.
    #[tokio::test]
    async fn silent_brokers_are_asked_side_by_side_and_nobody_queues() {
        let frozen: Vec<_> = (0..3)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let address = |one: &std::net::TcpListener| one.local_addr().expect("bound").to_string();
        let cluster = Arc::new(cluster(frozen.iter().map(address).collect()));
        let began = Instant::now();
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let cluster = cluster.clone();
                tokio::spawn(async move { cluster.refresh(0).await })
            })
            .collect();
        for one in asking {
            let error = one.await.expect("no panic").expect_err("nobody answers").to_string();
            assert!(error.contains("does not answer"), "{error}");
        }
        let took = began.elapsed();
        assert!(took < limits::CONNECT_TIME * 2, "{took:?}");
    }
}
