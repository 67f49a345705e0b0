//! Who follows the control topic: joins it, asks the store what has ended so far, and then tells
//! the shards what it says, and the fleet that this node lives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::orders::Orders;
use super::{ControlCounters, Shared, until};
use crate::base::{BroadcastId, Moment, Status};
use crate::control::InboxDesk;
use crate::domain::Beat;
use crate::lane::{Order, Sender};
use crate::limits::control as limits;
use crate::ports::{
    Backoff, Clock, ControlRead, ControlTopic, Endings, Inbox, LogError, StoreError,
};
use crate::wire::control::{ControlRecord, ControlSays, NodeStart};

/// What it works with.
pub struct FollowerParts {
    pub topic: Arc<dyn ControlTopic>,
    pub endings: Arc<dyn Endings>,
    pub inbox: Arc<dyn Inbox>,
    pub clock: Arc<dyn Clock>,
    pub node: NodeStart,
    /// A lane to each shard, in their order.
    pub orders: Vec<Sender<Order>>,
    /// Forgets what it knows of broadcasts that have ended.
    pub desk: InboxDesk,
    /// How long after its end the log may still bring a broadcast's messages.
    pub ended_kept: Duration,
    pub counters: Arc<ControlCounters>,
}

/// Whether messages may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hearing {
    Heard,
    /// Not until this node has heard itself in the topic again.
    Fenced,
}

/// Runs until it is dropped.
pub struct Follower {
    shared: Arc<Shared>,
    parts: FollowerParts,
    orders: Orders,
    told: Option<Hearing>,
}

/// What was to be read next is not there.
struct Hole;

/// Why it can't be followed now.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>, mut parts: FollowerParts) -> Self {
        let orders = Orders::new(std::mem::take(&mut parts.orders));
        Self { shared, parts, orders, told: None }
    }

    /// Tells of every change of whether messages may begin.
    pub async fn run(mut self, told: impl Fn(Hearing)) {
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        loop {
            let joined = tokio::select! {
                joined = join(&self.parts, &self.shared) => joined,
                () = self.fenced() => {
                    self.tell(&told);
                    continue;
                }
            };
            match joined {
                Ok((next, ended)) => {
                    backoff.reset();
                    self.begin(next, ended);
                    let Hole = self.follow(next, &told).await;
                    tracing::warn!("the control topic has a hole; what has ended is read again");
                }
                Err(error) => {
                    tracing::debug!(%error, "the control topic can't be followed yet");
                    self.shared.count(&self.shared.lock());
                    self.tell(&told);
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
    }

    /// The shards know what had ended before this place.
    fn begin(&mut self, next: u64, ended: Vec<(BroadcastId, Moment)>) {
        let mut state = self.shared.lock();
        ended.iter().for_each(|(id, until)| state.ended.insert(*id, *until));
        self.shared.count(&state);
        drop(state);
        for ended in ended.chunks(limits::ENDED_READ) {
            let ids: Vec<BroadcastId> = ended.iter().map(|(id, _)| *id).collect();
            self.parts.desk.forget(&ids);
            self.orders.give(&Order { ended: ended.to_vec(), ..Order::default() });
        }
        let applied = self.shared.lock().fleet.next_order(next);
        self.orders.give(&Order { applied, ..Order::default() });
    }

    async fn follow(&mut self, mut next: u64, told: &impl Fn(Hearing)) -> Hole {
        let topic = self.parts.topic.clone();
        let (shared, clock) = (self.shared.clone(), self.parts.clock.clone());
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        let mut beats = JoinSet::new();
        let mut rest_until = Instant::now();
        loop {
            let (from, rest) = (next, tokio::time::sleep_until(rest_until));
            let topic = topic.clone();
            let reading = async move {
                rest.await;
                topic.read(from, limits::READ_WAIT).await
            };
            tokio::pin!(reading);
            // A reading is seen to its end, whatever else happens.
            let read = loop {
                let changed = shared.changed.notified();
                let beat_at = shared.lock().fleet.poll_timeout();
                let beat_in = beat_at.map_or(limits::BEAT_PACE, |at| until(&*clock, at));
                tokio::select! {
                    read = &mut reading => break read,
                    () = tokio::time::sleep(beat_in), if beats.len() < limits::BEATS_AT_ONCE => {
                        self.beat(&mut beats);
                    }
                    Some(_) = beats.join_next() => {}
                    () = self.orders.room() => self.orders.flush(),
                    () = self.fenced() => self.tell(told),
                    // The next beat may be due sooner.
                    () = changed => {}
                }
            };
            rest_until = Instant::now() + limits::READ_PACE;
            match read {
                Ok(read) => {
                    backoff.reset();
                    next = read.next;
                    self.take(read);
                    self.tell(told);
                }
                Err(LogError::OutOfRange { .. }) => return Hole,
                Err(error) => {
                    tracing::debug!(%error, "the control topic can't be read");
                    rest_until = Instant::now() + backoff.wait();
                }
            }
        }
    }

    /// Sends a beat, if one is due; one that takes too long is not waited for.
    fn beat(&self, beats: &mut JoinSet<()>) {
        let mut state = self.shared.lock();
        // Also while nothing is read.
        self.shared.count(&state);
        let Some((seq, applied)) = state.fleet.poll_beat(self.parts.clock.moment()) else { return };
        let from = state.fleet.own().clone();
        drop(state);
        let record = ControlRecord { from, seq, says: ControlSays::Beat { applied } };
        let topic = self.parts.topic.clone();
        beats.spawn(async move {
            let appended = topic.append(record.to_json().into());
            match tokio::time::timeout(limits::BEAT_TIME, appended).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a beat could not be sent"),
                Err(_) => tracing::debug!("a beat could not be sent in time"),
            }
        });
    }

    /// Applies what was read, and tells the shards.
    fn take(&mut self, read: ControlRead) {
        let now = self.parts.clock.moment();
        let kept_until = now.plus(self.parts.ended_kept);
        let mut ended = Vec::new();
        let mut state = self.shared.lock();
        for (offset, value) in read.records {
            match ControlRecord::read(&value) {
                Ok(ControlRecord { from, seq, says: ControlSays::Beat { applied } }) => {
                    state.fleet.handle_beat(&from, Beat { offset, seq, applied }, now);
                }
                Ok(ControlRecord { says: ControlSays::Ended { broadcast_id, .. }, .. }) => {
                    ended.push((broadcast_id, kept_until));
                    state.fleet.handle_record(offset);
                }
                Err(reason) => {
                    tracing::debug!(offset, %reason, "a control record is ignored");
                    self.shared.counters.ignored.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        ended.iter().for_each(|(id, until)| state.ended.insert(*id, *until));
        state.ended.forget(now);
        let fresh_until = state.fleet.fresh_until();
        let applied = state.fleet.next_order(read.next);
        self.shared.count(&state);
        drop(state);
        if !ended.is_empty() {
            let ids: Vec<BroadcastId> = ended.iter().map(|(id, _)| *id).collect();
            self.parts.desk.forget(&ids);
        }
        self.orders.give(&Order { ended, applied, fresh_until });
        self.shared.changed.notify_waiters();
    }

    fn hearing(&self) -> Option<Hearing> {
        let until = self.shared.lock().fleet.fresh_until()?;
        let is_heard = self.parts.clock.moment() < until;
        Some(if is_heard { Hearing::Heard } else { Hearing::Fenced })
    }

    /// Waits until the fence closes, if messages may begin now.
    async fn fenced(&self) {
        if self.told != Some(Hearing::Heard) {
            return std::future::pending().await;
        }
        let until_at = self.shared.lock().fleet.fresh_until().unwrap_or(Moment(0));
        tokio::time::sleep(until(&*self.parts.clock, until_at)).await;
    }

    fn tell(&mut self, told: &impl Fn(Hearing)) {
        let Some(hearing) = self.hearing() else { return };
        if self.told == Some(hearing) {
            return;
        }
        self.told = Some(hearing);
        if hearing == Hearing::Fenced {
            self.shared.counters.fences.fetch_add(1, Ordering::Relaxed);
        }
        told(hearing);
    }
}

/// Where the topic is read from, and what had ended before.
async fn join(
    parts: &FollowerParts,
    shared: &Shared,
) -> Result<(u64, Vec<(BroadcastId, Moment)>), Unheard> {
    let next = parts.topic.end().await?;
    shared.lock().fleet.handle_joined(parts.clock.moment());
    let (now, wall) = (parts.clock.moment(), parts.clock.wall());
    let since = wall.minus(parts.ended_kept);
    let (mut ended, mut open) = (Vec::new(), Vec::new());
    let mut after = None;
    loop {
        let noted = parts.endings.endings(since, after, limits::ENDED_READ).await?;
        after = noted.last().map(|last| (last.ending.at, last.ending.id));
        let is_end = noted.len() < limits::ENDED_READ;
        for noted in noted {
            let kept_until = noted.ending.at.plus(parts.ended_kept);
            let left = Duration::from_millis(kept_until.0.saturating_sub(wall.0));
            let until = now.plus(left);
            let list = if noted.is_settled { &mut ended } else { &mut open };
            list.push((noted.ending.id, until));
        }
        if is_end {
            break;
        }
    }
    // Of those that are open the status may not say so, and then never has, or not yet: the record
    // comes behind `next`.
    for open in open.chunks(limits::ENDED_READ) {
        let ids: Vec<BroadcastId> = open.iter().map(|(id, _)| *id).collect();
        let contents = parts.inbox.contents(&ids).await?;
        let statuses = contents.into_iter().map(|content| content.and_then(|one| one.status));
        let is_over = |status| matches!(status, Some(Status::Cancelled | Status::Expired));
        let over = open.iter().zip(statuses).filter(|(_, status)| is_over(*status));
        ended.extend(over.map(|(one, _)| *one));
    }
    Ok((next, ended))
}
