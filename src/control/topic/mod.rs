//! The control topic, followed: what the nodes of the fleet tell each other goes to the shards in
//! its order, and what this node has to tell goes out.
//!
//! `domain::Fleet` has the protocol. Invariants: a shard is told of every record before anything
//! that stands behind it, and of freshness behind all of them; what a reading may have missed, the
//! store is asked for before the shards are told that anything is fresh.

mod follow;
mod orders;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::base::{BroadcastId, End};
use crate::domain::{Appended, Ended, Fleet};
use crate::limits::control as limits;
use crate::ports::{Clock, ControlTopic, LogError};
use crate::wire::control::{ControlRecord, ControlSays};

pub use follow::{Follower, FollowerParts, Hearing};

/// What is counted of it; read by the metrics.
#[derive(Debug, Default)]
pub struct ControlCounters {
    /// Other nodes that have been heard of late.
    pub nodes: AtomicU64,
    /// Ended broadcasts that are remembered.
    pub ended: AtomicU64,
    /// Records that say nothing to this release.
    pub ignored: AtomicU64,
    /// Times that no message could begin, because the topic was not heard.
    pub fences: AtomicU64,
}

/// Tells the fleet, and knows what has become of that. Cheap to clone.
#[derive(Clone)]
pub struct ControlDesk {
    shared: Arc<Shared>,
}

struct Shared {
    topic: Arc<dyn ControlTopic>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Something that waiters look at has changed.
    changed: Notify,
    counters: Arc<ControlCounters>,
}

struct State {
    fleet: Fleet,
    /// As the shards know them.
    ended: Ended,
}

/// A desk, and who follows the topic, which runs until it is dropped.
pub fn control_topic(parts: FollowerParts) -> (ControlDesk, Follower) {
    let fleet = Fleet::new(parts.node.clone(), parts.orders.len());
    let state = State { fleet, ended: Ended::default() };
    let shared = Arc::new(Shared {
        topic: parts.topic.clone(),
        clock: parts.clock.clone(),
        state: Mutex::new(state),
        changed: Notify::new(),
        counters: parts.counters.clone(),
    });
    (ControlDesk { shared: shared.clone() }, Follower::new(shared, parts))
}

impl ControlDesk {
    /// A shard has applied all orders up to this one.
    pub fn take_applied(&self, shard: u16, order: u64) {
        self.shared.lock().fleet.handle_applied(shard, order);
        self.shared.changed.notify_waiters();
    }

    /// Whether one more broadcast may be ended.
    pub fn has_room(&self) -> bool {
        self.shared.lock().ended.has_room()
    }

    /// Tells all nodes that no message of a broadcast may begin any more. On an error they may have
    /// been told.
    pub async fn tell_ended(&self, id: BroadcastId, status: End) -> Result<Appended, LogError> {
        let Shared { topic, clock, .. } = &*self.shared;
        let value = self.shared.record(ControlSays::Ended { broadcast_id: id, status });
        let read = self.shared.lock().fleet.read();
        let appended = tokio::time::timeout(limits::TELL_TIME, topic.append(value)).await;
        let late = |_| LogError::Away("the control topic takes nothing".to_owned());
        let offset = appended.map_err(late)??;
        if offset < read {
            return Err(LogError::Away("the control topic was made anew".to_owned()));
        }
        Ok(Appended { offset, at: clock.moment() })
    }

    /// Waits until every node has applied a record or begins nothing any more; whether that is so.
    pub async fn settled(&self, record: Appended) -> bool {
        let shared = &*self.shared;
        let settled = async {
            loop {
                let changed = shared.changed.notified();
                if shared.lock().fleet.is_settled(record, shared.clock.moment()) {
                    return;
                }
                // Time alone settles it, too.
                let _ = tokio::time::timeout(limits::READ_PACE, changed).await;
            }
        };
        tokio::time::timeout(limits::SETTLE_TIME, settled).await.is_ok()
    }
}

impl Shared {
    fn record(&self, says: ControlSays) -> Bytes {
        let mut state = self.lock();
        let (from, seq) = (state.fleet.own().clone(), state.fleet.next_seq());
        Bytes::from(ControlRecord { from, seq, says }.to_json())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers that only rise: whole whoever panicked while holding them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, state: &State) {
        let nodes = state.fleet.others(self.clock.moment()) as u64;
        self.counters.nodes.store(nodes, Ordering::Relaxed);
        self.counters.ended.store(state.ended.len() as u64, Ordering::Relaxed);
    }
}

/// How long it is until then.
fn until(clock: &dyn Clock, at: crate::base::Moment) -> Duration {
    at.since(clock.moment())
}
