//! Creating a broadcast: outbox, content, status, in that order; then it is published.
//!
//! The status row is what makes it exist; the outbox row says that publishing is not finished, and
//! the relay publishes what a crash or an outage left. Event ids follow from the broadcast, so a
//! repeat is recognised. `Ok` means that store and log hold it durably.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::unfinished::{UnderWay, Unfinished};
use crate::base::{BroadcastId, End, EpochMillis, EventType, Status, TargetType, Topic};
use crate::domain::{Broadcast, Draft};
use crate::limits::admin as limits;
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
    /// Test mode: the next one that is created fails.
    pub fail_next: AtomicBool,
}

/// How a record comes into the log.
#[derive(Clone, Copy)]
struct Publishing {
    /// The checkpoint of its partition, if it may be there already.
    after: Option<u64>,
    /// Serving it is to fail.
    fails: bool,
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
        let mut under_way = self.unfinished.begin(broadcast.id);
        self.claim(&mut broadcast, &mut under_way).await?;
        if self.store.create_status(broadcast.id, status).await? == Claim::Taken {
            return Err(CreateError::NoId);
        }
        if status == Status::Active {
            under_way.is_owed = true;
            let fails = self.fail_next.swap(false, Ordering::AcqRel);
            self.publish(&broadcast, fails).await.map_err(|reason| match reason {
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
        under_way: &mut UnderWay,
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
    async fn publish(&self, broadcast: &Broadcast, fails: bool) -> Result<(), LogError> {
        for users in addressees(broadcast).chunks(limits::PUBLISH_RECORDS_MAX) {
            let record = |user: &Option<&str>| {
                self.record_of(
                    EventType::Created,
                    broadcast,
                    *user,
                    Publishing { after: None, fails },
                )
            };
            self.log.append(users.iter().map(record).collect()).await?;
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
        self.record_of(EventType::Created, broadcast, user, Publishing { after, fails: false })
    }

    /// The record that says to those who had the message that it is no more.
    pub(super) fn removal(&self, how: End, broadcast: &Broadcast, user: Option<&str>) -> NewRecord {
        self.record_of(how.event_type(), broadcast, user, Publishing { after: None, fails: false })
    }

    fn record_of(
        &self,
        event_type: EventType,
        broadcast: &Broadcast,
        user: Option<&str>,
        Publishing { after, fails }: Publishing,
    ) -> NewRecord {
        let kind = broadcast.target.r#type;
        let is_group = user.is_none() && !matches!(kind, TargetType::All | TargetType::Selected);
        let message = (event_type == EventType::Created).then_some(&*broadcast.content);
        let value = OutgoingRecord {
            event_id: event_id(broadcast.id, user, event_type),
            broadcast_id: broadcast.id,
            user_id: user,
            event_type,
            pod_id: &self.node,
            timestamp: self.clock.wall(),
            correlation_id: Some(&broadcast.correlation_id),
            message,
            error_details: None,
            fire_and_forget: broadcast.fire_and_forget,
            target_type: Some(kind),
            target_ids: is_group.then_some(&broadcast.target.ids),
            sender_id: broadcast.sender_id.as_deref(),
            sender_name: broadcast.sender_name.as_deref(),
            priority: Some(broadcast.priority),
            category: broadcast.category.as_deref(),
            created_at: Some(broadcast.created_at),
            scheduled_at: broadcast.scheduled_at,
            expires_at: broadcast.expires_at,
            simulate_failure: fails,
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

/// 41 bits of milliseconds and 12 random ones.
fn draw_id(at: EpochMillis) -> BroadcastId {
    let millis = at.0.saturating_sub(BroadcastId::EPOCH_MS) & ((1 << 41) - 1);
    let random = uuid::Uuid::new_v4().as_u128() as u64 & ((1 << BroadcastId::RANDOM_BITS) - 1);
    BroadcastId::new(millis << BroadcastId::RANDOM_BITS | random).expect("41 + 12 bits are 53")
}
