//! Creating a broadcast: outbox, content, status, in that order; then it is published.
//!
//! The status row is what makes it exist; the outbox row says that publishing is not finished, and
//! the relay publishes what a crash or an outage left. Event ids follow from the broadcast, so a
//! repeat is recognised. `Ok` means that store and log hold it durably.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::base::{BroadcastId, EpochMillis, EventType, Status, TargetType, Topic};
use crate::domain::{Broadcast, Draft};
use crate::limits::{admin as limits, relay};
use crate::ports::{
    BroadcastRow, Claim, Clock, Log, LogError, NewRecord, OutboxRow, Store, StoreError,
};
use crate::wire::record::{OutgoingRecord, event_id};

#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("no free broadcast id in {} draws", limits::ID_DRAWS_MAX)]
    NoId,
    /// It exists, and the relay will publish it.
    #[error(
        "{reason}; broadcast {id} is kept and will be published once the log answers: do not \
         create it again"
    )]
    Unpublished { id: BroadcastId, reason: LogError },
}

/// Creates and publishes.
pub struct Creator {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub node: String,
    /// Without `expiresAt`, a broadcast ends so long after its creation.
    pub retention: std::time::Duration,
    /// What the relay must leave alone, and when it must look.
    pub unfinished: Unfinished,
}

impl Creator {
    pub async fn create(&self, draft: Draft) -> Result<BroadcastRow, CreateError> {
        let created_at = self.clock.wall();
        let status = draft.status(created_at);
        let mut broadcast = Broadcast {
            id: draw_id(created_at),
            correlation_id: uuid::Uuid::new_v4().to_string(),
            sender_id: draft.sender_id,
            sender_name: draft.sender_name,
            content: draft.content,
            target: draft.target,
            priority: draft.priority,
            category: draft.category,
            created_at,
            scheduled_at: draft.scheduled_at,
            expires_at: Some(draft.expires_at.unwrap_or(created_at.plus(self.retention))),
            fire_and_forget: draft.fire_and_forget,
        };
        let mut under_way = UnderWay {
            unfinished: &self.unfinished,
            id: broadcast.id,
            is_owed: false,
            is_done: false,
        };
        self.claim(&mut broadcast, &mut under_way).await?;
        if self.store.create_status(broadcast.id, status).await? == Claim::Taken {
            return Err(CreateError::NoId);
        }
        if status == Status::Active {
            under_way.is_owed = true;
            self.publish(&broadcast).await.map_err(|reason| match reason {
                LogError::TooLarge { .. } => CreateError::Log(reason),
                reason => CreateError::Unpublished { id: broadcast.id, reason },
            })?;
            under_way.is_owed = false;
        }
        // It is published: a row that stays is the relay's affair.
        match self.store.remove_outbox(&outbox_row(&broadcast)).await {
            Ok(()) => under_way.is_done = true,
            Err(error) => {
                let broadcast = broadcast.id.get();
                tracing::warn!(broadcast, %error, "its outbox row stays for now");
            }
        }
        Ok(BroadcastRow { broadcast, status })
    }

    /// Writes outbox and content under an id that nobody has.
    async fn claim(
        &self,
        broadcast: &mut Broadcast,
        under_way: &mut UnderWay<'_>,
    ) -> Result<(), CreateError> {
        for _ in 0..limits::ID_DRAWS_MAX {
            under_way.move_to(broadcast.id);
            self.store.put_outbox(&outbox_row(broadcast)).await?;
            if self.store.claim_broadcast(broadcast).await? == Claim::Applied {
                return Ok(());
            }
            // The outbox row stays: the id is somebody's, and so may the row be. Publishing again
            // what is published does no harm.
            broadcast.id = draw_id(broadcast.created_at);
        }
        Err(CreateError::NoId)
    }

    /// A part of the records is in the log before the next one is begun.
    async fn publish(&self, broadcast: &Broadcast) -> Result<(), LogError> {
        for users in addressees(broadcast).chunks(limits::PUBLISH_RECORDS_MAX) {
            let records = users.iter().map(|user| self.record(broadcast, *user, None)).collect();
            self.log.append(records).await?;
        }
        Ok(())
    }

    /// `after`: the checkpoint of its partition, if it may be in the log already.
    pub(super) fn record(
        &self,
        broadcast: &Broadcast,
        user: Option<&str>,
        after: Option<u64>,
    ) -> NewRecord {
        let is_group = user.is_none() && broadcast.target.r#type != TargetType::All;
        let value = OutgoingRecord {
            event_id: event_id(broadcast.id, user, EventType::Created),
            broadcast_id: broadcast.id,
            user_id: user,
            event_type: EventType::Created,
            pod_id: &self.node,
            timestamp: self.clock.wall(),
            correlation_id: Some(&broadcast.correlation_id),
            message: Some(&broadcast.content),
            error_details: None,
            fire_and_forget: broadcast.fire_and_forget,
            target_type: Some(broadcast.target.r#type),
            target_ids: is_group.then_some(&broadcast.target.ids),
            sender_id: broadcast.sender_id.as_deref(),
            sender_name: broadcast.sender_name.as_deref(),
            priority: Some(broadcast.priority),
            category: broadcast.category.as_deref(),
            created_at: Some(broadcast.created_at),
            scheduled_at: broadcast.scheduled_at,
            expires_at: broadcast.expires_at,
            attempt: 0,
            after,
        };
        let (topic, key) = match user {
            Some(user) => (Topic::Selected, user.to_owned()),
            None => (Topic::Group, broadcast.id.to_string()),
        };
        let value = Bytes::from(value.to_json());
        NewRecord { topic, key: Bytes::from(key), value, headers: Vec::new() }
    }
}

/// Whose records there are, in order: one a user in the selected topic, or one without a user in
/// the group topic.
pub(super) fn addressees(broadcast: &Broadcast) -> Vec<Option<&str>> {
    match broadcast.target.r#type {
        TargetType::Selected => broadcast.target.ids.iter().map(|id| Some(id.as_str())).collect(),
        _ => vec![None],
    }
}

fn outbox_row(broadcast: &Broadcast) -> OutboxRow {
    OutboxRow { id: broadcast.id, created_at: broadcast.created_at }
}

/// The broadcasts whose outbox row may still be there.
#[derive(Debug, Default)]
pub struct Unfinished {
    sets: Mutex<Sets>,
    look: Notify,
}

#[derive(Debug, Default)]
struct Sets {
    under_way: HashSet<BroadcastId>,
    owed: HashSet<BroadcastId>,
}

impl Unfinished {
    /// Whether a create of this process is at it.
    pub(super) fn is_under_way(&self, id: BroadcastId) -> bool {
        self.lock().under_way.contains(&id)
    }

    /// Whether a create of this process has ended between status and publishing: nobody is at it
    /// any more, and no write of its status is still on its way.
    pub(super) fn is_owed(&self, id: BroadcastId) -> bool {
        self.lock().owed.contains(&id)
    }

    /// Its row is gone.
    pub(super) fn forget(&self, id: BroadcastId) {
        self.lock().owed.remove(&id);
    }

    /// Waits until a create has ended that may have left a row, but not longer than this.
    pub(super) async fn wait_for(&self, at_most: std::time::Duration) {
        let _ = tokio::time::timeout(at_most, self.look.notified()).await;
    }

    fn lock(&self) -> MutexGuard<'_, Sets> {
        // Sets of numbers are whole whoever panicked while holding them.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A create that is under way; over when this is dropped, whatever ended it.
struct UnderWay<'a> {
    unfinished: &'a Unfinished,
    id: BroadcastId,
    /// It exists and is not published.
    is_owed: bool,
    /// It has left nothing for the relay.
    is_done: bool,
}

impl UnderWay<'_> {
    /// The create goes on under another id; a row of the old one is not its own.
    fn move_to(&mut self, id: BroadcastId) {
        let mut sets = self.unfinished.lock();
        sets.under_way.remove(&self.id);
        sets.under_way.insert(id);
        self.id = id;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut sets = self.unfinished.lock();
        sets.under_way.remove(&self.id);
        if self.is_owed && sets.owed.len() < relay::OWED_MAX {
            sets.owed.insert(self.id);
        }
        drop(sets);
        if !self.is_done {
            self.unfinished.look.notify_one();
        }
    }
}

/// 41 bits of milliseconds and 12 random ones.
fn draw_id(at: EpochMillis) -> BroadcastId {
    let millis = at.0.saturating_sub(BroadcastId::EPOCH_MS) & ((1 << 41) - 1);
    let random = uuid::Uuid::new_v4().as_u128() as u64 & ((1 << BroadcastId::RANDOM_BITS) - 1);
    BroadcastId::new(millis << BroadcastId::RANDOM_BITS | random).expect("41 + 12 bits are 53")
}
