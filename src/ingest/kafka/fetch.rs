//! Fetching: one request a broker, all wanted partitions that it leads in it, over connections of
//! our own.
//!
//! A request that waits at one broker must not hold up what another has. So a fetch returns with
//! the first answer, and the other requests stay in flight; the next fetch that wants the same of
//! the same broker takes them up again.
//!
//! Only committed records are asked for. What a broker or a partition refuses is asked again after
//! a while, with jitter, and the others are served meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use kafka_protocol::error::{ParseResponseErrorCode as _, ResponseError};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{FetchRequest, FetchResponse};
use tokio::task::JoinHandle;

use super::cluster::{Cluster, Known};
use super::connection::{BrokerError, Connection, versions};
use super::records::{self, Aborted};
use crate::base::{Partition, Topic};
use crate::limits::kafka as limits;
use crate::ports::{Backoff, Batch, LogError, Want};

const READ_COMMITTED: i8 = 1;
/// How long after `wait_max` an answer may come that the broker sends when that has passed.
const ANSWER_SLACK: Duration = Duration::from_millis(50);

pub(super) struct Fetcher {
    cluster: Arc<Cluster>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Connections that nobody uses, by broker.
    idle: HashMap<i32, Vec<Connection>>,
    /// Requests that a fetch has left behind.
    parked: Vec<Flight>,
    /// When a request may next go to a broker: `log.fetch_pace_ms`, and what it asked for itself.
    next_send: HashMap<i32, Instant>,
    brokers: HashMap<i32, Trouble>,
    partitions: HashMap<Partition, Trouble>,
    /// When the cluster was last asked for what nobody tells by himself.
    renewed_at: Option<Instant>,
    /// Which partition stands first in a request: that one is given at least one batch.
    turn: usize,
}

/// Somebody who refused, and when to ask again.
struct Trouble {
    backoff: Backoff,
    until: Instant,
    reason: String,
}

/// What is asked of one broker.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Ask {
    broker: i32,
    address: String,
    wants: Vec<Want>,
    bytes_max: usize,
    wait_max: Duration,
}

struct Flight {
    ask: Ask,
    task: JoinHandle<Landing>,
}

/// How a flight ended.
struct Landing {
    /// Usable again.
    connection: Option<Connection>,
    outcome: Result<Answer, BrokerError>,
}

#[derive(Default)]
struct Answer {
    batches: Vec<Batch>,
    out_of_range: Vec<Want>,
    refused: Vec<(Partition, ResponseError)>,
    throttle: Duration,
}

/// What one fetch has come to.
#[derive(Default)]
struct Harvest {
    batches: Vec<Batch>,
    out_of_range: Option<Want>,
    /// A flight has ended, whatever it brought.
    has_heard: bool,
}

/// What a fetch brings.
pub(super) enum Fetched {
    Batches(Vec<Batch>),
    OutOfRange(Want),
}

impl Fetcher {
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, state: Mutex::default() }
    }

    pub async fn fetch(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait_max: Duration,
    ) -> Result<Fetched, LogError> {
        let deadline = Instant::now() + wait_max + (wait_max / 10).min(ANSWER_SLACK);
        let mut flights: Vec<Flight> = Vec::new();
        let mut harvest = Harvest::default();
        loop {
            let known = self.cluster.known();
            let wake = self.depart(&known, wants, bytes_max, wait_max, &mut flights);
            if flights.is_empty() && Instant::now() >= deadline {
                // Nobody could be asked.
                return Err(LogError::Away(self.reason(wants)));
            }
            // Without a flight the deadline ends the waiting; with one only once somebody answered.
            let may_end = flights.is_empty() || harvest.has_heard;
            let until = if may_end { wake.min(deadline) } else { wake };
            let landed = next_landing(&mut flights, until).await;
            self.take_in(landed, known.generation, &mut harvest);
            if harvest.has_something() || (harvest.has_heard && Instant::now() >= deadline) {
                break;
            }
        }
        // What else has come meanwhile.
        let landed = landed_already(&mut flights).await;
        self.take_in(landed, self.cluster.known().generation, &mut harvest);
        self.park(flights);
        match harvest.out_of_range {
            Some(want) if harvest.batches.is_empty() => Ok(Fetched::OutOfRange(want)),
            _ if harvest.batches.is_empty() && self.all_in_trouble(wants) => {
                Err(LogError::Away(self.reason(wants)))
            }
            _ => Ok(Fetched::Batches(harvest.batches)),
        }
    }

    /// Sends what is wanted and not in flight, to each broker that may be asked; returns when one
    /// that may not be asked now may be.
    fn depart(
        &self,
        known: &Arc<Known>,
        wants: &[Want],
        bytes_max: usize,
        wait_max: Duration,
        flights: &mut Vec<Flight>,
    ) -> Instant {
        let now = Instant::now();
        let mut state = self.lock();
        let state = &mut *state;
        state.sweep();
        let renewed_at = state.renewed_at.get_or_insert(now);
        if now.duration_since(*renewed_at) > limits::METADATA_AGE {
            *renewed_at = now;
            self.cluster.refresh_aside(known.generation);
        }
        // Far away: without trouble nothing has to be asked again before an answer.
        let mut wake = now + wait_max + limits::REQUEST_TIME * 2;
        let leaders: HashSet<i32> = wants
            .iter()
            .filter_map(|want| known.leader(want.partition))
            .map(|(broker, _)| broker)
            .collect();
        let share = bytes_max / leaders.len().max(1);
        let mut groups: BTreeMap<i32, (String, Vec<Want>)> = BTreeMap::new();
        for want in wants {
            if flights.iter().any(|flight| flight.ask.wants.contains(want)) {
                continue;
            }
            let Some((broker, address)) = known.leader(want.partition) else {
                let name = self.cluster.topic_name(want.partition.topic);
                let reason = format!("partition {name}-{} has no leader", want.partition.index);
                let until = state.trouble_partition(want.partition, reason);
                wake = wake.min(until);
                self.cluster.refresh_aside(known.generation);
                continue;
            };
            let troubles = [state.partitions.get(&want.partition), state.brokers.get(&broker)];
            let until = troubles.into_iter().flatten().map(|trouble| trouble.until).max();
            if let Some(until) = until.filter(|until| *until > now) {
                wake = wake.min(until);
                continue;
            }
            let group = groups.entry(broker).or_insert_with(|| (address.to_owned(), Vec::new()));
            group.1.push(*want);
        }
        for (broker, (address, wants)) in groups {
            let ask = Ask { broker, address, wants, bytes_max: share, wait_max };
            let parked = state.parked.iter().position(|flight| flight.ask == ask);
            let flight = match parked {
                Some(at) => state.parked.swap_remove(at),
                None => self.launch(state, known, ask, now),
            };
            flights.push(flight);
        }
        wake
    }

    fn launch(&self, state: &mut State, known: &Arc<Known>, ask: Ask, now: Instant) -> Flight {
        let connection = state.idle.get_mut(&ask.broker).and_then(Vec::pop);
        let send_at = state.next_send.get(&ask.broker).copied().unwrap_or(now).max(now);
        state.next_send.insert(ask.broker, send_at + self.cluster.options.fetch_pace);
        state.turn = state.turn.wrapping_add(1);
        let request = request(known, &ask, state.turn);
        let cluster = self.cluster.clone();
        let known = known.clone();
        let flying = ask.clone();
        let task = tokio::spawn(async move {
            wait_until(send_at).await;
            fly(&cluster, &known, connection, &flying, &request).await
        });
        Flight { ask, task }
    }

    /// Takes in what has landed. After a refusal the cluster is asked what is new, on the side:
    /// other brokers' records do not wait for that.
    fn take_in(&self, landed: Vec<(Ask, Landing)>, generation: u64, harvest: &mut Harvest) {
        let mut needs_refresh = false;
        let mut state = self.lock();
        for (ask, landing) in landed {
            harvest.has_heard = true;
            if let Some(connection) = landing.connection {
                state.keep(ask.broker, connection);
            }
            let answer = match landing.outcome {
                Ok(answer) => answer,
                Err(error) => {
                    // Other connections to it are as old as this one.
                    state.idle.remove(&ask.broker);
                    let partitions = ask.wants.len();
                    tracing::warn!(%error, partitions, "can't fetch from a broker");
                    state.trouble_broker(ask.broker, error.to_string());
                    needs_refresh = true;
                    continue;
                }
            };
            state.brokers.remove(&ask.broker);
            if !answer.throttle.is_zero() {
                let next = Instant::now() + answer.throttle;
                state.next_send.insert(ask.broker, next);
            }
            for (partition, error) in &answer.refused {
                let name = self.cluster.topic_name(partition.topic);
                let index = partition.index;
                let reason =
                    format!("broker {} refuses to give {name}-{index}: {error}", ask.address);
                tracing::warn!(
                    topic = name, partition = index, broker = ask.address, %error,
                    "a broker refuses a partition"
                );
                state.trouble_partition(*partition, reason);
                needs_refresh = true;
            }
            for want in &ask.wants {
                if !answer.refused.iter().any(|(partition, _)| *partition == want.partition) {
                    state.partitions.remove(&want.partition);
                }
            }
            harvest.out_of_range = harvest.out_of_range.or(answer.out_of_range.first().copied());
            harvest.batches.extend(answer.batches);
        }
        if needs_refresh {
            self.cluster.refresh_aside(generation);
        }
    }

    fn park(&self, flights: Vec<Flight>) {
        self.lock().parked.extend(flights);
    }

    fn all_in_trouble(&self, wants: &[Want]) -> bool {
        let known = self.cluster.known();
        let state = self.lock();
        wants.iter().all(|want| state.trouble_of(&known, want.partition).is_some())
    }

    /// Why nothing comes.
    fn reason(&self, wants: &[Want]) -> String {
        let known = self.cluster.known();
        let state = self.lock();
        let reason = wants.iter().find_map(|want| state.trouble_of(&known, want.partition));
        let reason = reason.map(|trouble| trouble.reason.clone());
        self.cluster.trouble().or(reason).unwrap_or_else(|| "no broker answers".to_owned())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is in it is whole between any two lines: connections and waits, nothing counted.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Harvest {
    fn has_something(&self) -> bool {
        !self.batches.is_empty() || self.out_of_range.is_some()
    }
}

impl State {
    /// Gives up the oldest requests that nobody came back for.
    fn sweep(&mut self) {
        while self.parked.len() > limits::PARKED_MAX {
            self.parked.remove(0).task.abort();
        }
    }

    fn keep(&mut self, broker: i32, connection: Connection) {
        let idle = self.idle.entry(broker).or_default();
        if connection.is_usable() && idle.len() < limits::IDLE_CONNECTIONS_MAX {
            idle.push(connection);
        }
    }

    fn trouble_broker(&mut self, broker: i32, reason: String) {
        Trouble::put(self.brokers.entry(broker), reason);
    }

    fn trouble_partition(&mut self, partition: Partition, reason: String) -> Instant {
        Trouble::put(self.partitions.entry(partition), reason)
    }

    fn trouble_of(&self, known: &Known, partition: Partition) -> Option<&Trouble> {
        let broker = known.leader(partition).and_then(|(id, _)| self.brokers.get(&id));
        self.partitions.get(&partition).or(broker)
    }
}

impl Trouble {
    /// One more failure. One that is still waited out is not counted again.
    fn put<K: std::hash::Hash + Eq>(
        entry: std::collections::hash_map::Entry<'_, K, Self>,
        reason: String,
    ) -> Instant {
        let now = Instant::now();
        let trouble = entry.or_insert_with(|| Self {
            backoff: Backoff::new(limits::BACKOFF_FIRST, limits::BACKOFF_MAX),
            until: now,
            reason: String::new(),
        });
        trouble.reason = reason;
        if trouble.until <= now {
            let wait = trouble.backoff.wait();
            trouble.until = now + wait;
        }
        trouble.until
    }
}

/// Waits until a flight lands, or until then; returns all that have landed.
async fn next_landing(flights: &mut Vec<Flight>, until: Instant) -> Vec<(Ask, Landing)> {
    let sleep = tokio::time::sleep_until(until.into());
    tokio::pin!(sleep);
    std::future::poll_fn(|context| {
        let landed = take_landed(flights, context);
        if landed.is_empty() && sleep.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(landed)
    })
    .await
}

/// The same without waiting. Not by a moment that has passed: the timer's step is a millisecond,
/// and it would be waited for.
async fn landed_already(flights: &mut Vec<Flight>) -> Vec<(Ask, Landing)> {
    std::future::poll_fn(|context| Poll::Ready(take_landed(flights, context))).await
}

/// Waits for a moment, and not for the timer's next step if it has come.
async fn wait_until(moment: Instant) {
    if moment > Instant::now() {
        tokio::time::sleep_until(moment.into()).await;
    }
}

fn take_landed(flights: &mut Vec<Flight>, context: &mut Context<'_>) -> Vec<(Ask, Landing)> {
    let mut landed = Vec::new();
    let mut at = 0;
    while at < flights.len() {
        match Pin::new(&mut flights[at].task).poll(context) {
            Poll::Pending => at += 1,
            Poll::Ready(result) => {
                let ask = flights.swap_remove(at).ask;
                let lost = |error: tokio::task::JoinError| Landing {
                    connection: None,
                    outcome: Err(BrokerError::Garbled {
                        broker: ask.address.clone(),
                        what: "FetchRequest",
                        reason: error.to_string(),
                    }),
                };
                let landing = result.unwrap_or_else(lost);
                landed.push((ask, landing));
            }
        }
    }
    landed
}

fn request(known: &Known, ask: &Ask, turn: usize) -> FetchRequest {
    let bytes_max = i32::try_from(ask.bytes_max).unwrap_or(i32::MAX).max(1);
    let mut wants = ask.wants.clone();
    let count = wants.len();
    wants.rotate_left(turn % count.max(1));
    let mut topics: Vec<FetchTopic> = Vec::new();
    for want in wants {
        let Some(id) = known.topic_id(want.partition.topic) else { continue };
        let partition = FetchPartition::default()
            .with_partition(i32::from(want.partition.index))
            .with_fetch_offset(i64::try_from(want.offset).unwrap_or(i64::MAX))
            .with_partition_max_bytes(bytes_max);
        match topics.last_mut() {
            Some(topic) if topic.topic_id == id => topic.partitions.push(partition),
            _ => topics
                .push(FetchTopic::default().with_topic_id(id).with_partitions(vec![partition])),
        }
    }
    FetchRequest::default()
        .with_max_wait_ms(i32::try_from(ask.wait_max.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(1)
        .with_max_bytes(bytes_max)
        .with_isolation_level(READ_COMMITTED)
        .with_topics(topics)
}

/// One request to its end.
async fn fly(
    cluster: &Cluster,
    known: &Known,
    connection: Option<Connection>,
    ask: &Ask,
    request: &FetchRequest,
) -> Landing {
    let waited = ask.wait_max + limits::REQUEST_TIME;
    // One that was idle may have been closed by the broker meanwhile: that is no failure of it.
    if let Some(mut connection) = connection
        && connection.broker() == ask.address
    {
        match connection.call(request, versions::FETCH, waited).await {
            Ok(response) => return land(cluster, known, connection, ask, response),
            Err(BrokerError::Closed { .. }) => {}
            Err(error) => return Landing { connection: None, outcome: Err(error) },
        }
    }
    let mut connection = match cluster.connect(&ask.address).await {
        Ok(connection) => connection,
        Err(error) => return Landing { connection: None, outcome: Err(error) },
    };
    match connection.call(request, versions::FETCH, waited).await {
        Ok(response) => land(cluster, known, connection, ask, response),
        Err(error) => Landing { connection: None, outcome: Err(error) },
    }
}

fn land(
    cluster: &Cluster,
    known: &Known,
    connection: Connection,
    ask: &Ask,
    response: FetchResponse,
) -> Landing {
    if let Some(error) = response.error_code.err() {
        let error = connection.refused("a fetch", error);
        return Landing { connection: Some(connection), outcome: Err(error) };
    }
    let mut answer = Answer {
        throttle: Duration::from_millis(u64::try_from(response.throttle_time_ms).unwrap_or(0)),
        ..Answer::default()
    };
    for topic_answer in response.responses {
        let topic = Topic::SHARED
            .into_iter()
            .find(|topic| known.topic_id(*topic) == Some(topic_answer.topic_id));
        let Some(topic) = topic else { continue };
        for data in topic_answer.partitions {
            let index = u16::try_from(data.partition_index).ok();
            let want = ask
                .wants
                .iter()
                .find(|want| want.partition.topic == topic && Some(want.partition.index) == index);
            if let Some(want) = want {
                let name = cluster.topic_name(topic);
                take_partition(name, &ask.address, *want, data, &mut answer);
            }
        }
    }
    Landing { connection: Some(connection), outcome: Ok(answer) }
}

fn take_partition(topic: &str, broker: &str, want: Want, data: PartitionData, answer: &mut Answer) {
    match data.error_code.err() {
        None => {}
        Some(ResponseError::OffsetOutOfRange) => return answer.out_of_range.push(want),
        Some(error) => return answer.refused.push((want.partition, error)),
    }
    let aborted: Vec<Aborted> = data
        .aborted_transactions
        .unwrap_or_default()
        .iter()
        .map(|one| Aborted { producer: one.producer_id.0, first_offset: one.first_offset })
        .collect();
    let bytes = data.records.unwrap_or_default();
    let decoded = records::decode(bytes, want.offset, &aborted);
    for (offset, error) in &decoded.bad {
        tracing::error!(
            topic, partition = want.partition.index, offset, broker, %error,
            "a batch can't be read; it is passed on as one record of its bytes"
        );
    }
    if decoded.next > want.offset {
        // Records behind the last stable offset are not committed, and not sent.
        let end = u64::try_from(data.last_stable_offset).unwrap_or(0).max(decoded.next);
        answer.batches.push(Batch {
            partition: want.partition,
            records: decoded.records,
            next: decoded.next,
            end,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it ends when it is first looked at, the timer standing still.
    fn ends_at_once<T>(future: impl Future<Output = T>) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let mut future = std::pin::pin!(future);
        runtime.expect("a runtime").block_on(std::future::poll_fn(|context| {
            Poll::Ready(future.as_mut().poll(context).is_ready())
        }))
    }

    #[test]
    fn what_need_not_be_waited_for_is_not() {
        assert!(ends_at_once(wait_until(Instant::now())));
        assert!(ends_at_once(landed_already(&mut Vec::new())));
        assert!(!ends_at_once(wait_until(Instant::now() + Duration::from_secs(60))));
    }
}
