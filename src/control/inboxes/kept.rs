//! What the store keeps for users, as one try each: what waits for a user, and what has reached
//! him. Knows no shard and no task.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::backlog::{self, Basis};
use super::known::{Checkpoints, Contents, Durable, Ends, Groups};
use crate::base::{BroadcastId, EpochMillis, LogShape, UserId};
use crate::domain::{Backlog, KeptMessage, Note, Presented, Reach, Row, SINCE_EVER, Served};
use crate::lane::Ask;
use crate::ports::{
    Clock, Delivery, Inbox, InboxWrite, Log, LogError, Ownership, Progress, StoreError,
};

/// Why nothing can be said of what is kept. Each passes.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What it works with.
pub struct KeptParts {
    pub log: Arc<dyn Log>,
    pub ownership: Arc<dyn Ownership>,
    pub inbox: Arc<dyn Inbox>,
    pub clock: Arc<dyn Clock>,
    /// No row is of interest for longer.
    pub retention: Duration,
    /// Messages of one piece of a backlog.
    pub messages_max: usize,
}

/// Asks and tells the store, and remembers what does not change.
pub struct KeptStore {
    pub(super) parts: KeptParts,
    pub(super) checkpoints: Checkpoints,
    pub(super) ends: Ends,
    pub(super) contents: Contents,
    pub(super) groups: Groups,
}

impl KeptStore {
    pub fn new(parts: KeptParts) -> Self {
        Self {
            parts,
            checkpoints: Checkpoints::default(),
            ends: Ends::default(),
            contents: Contents::default(),
            groups: Groups::default(),
        }
    }

    /// Reads ahead what all users share, so that the first of them need not wait for it.
    pub async fn warm(&self) -> Result<(), Unavailable> {
        let shape = self.parts.log.shape().await?;
        let group = vec![0; usize::from(shape.group_partitions)].into();
        let nothing = Served { own_partition: 0, own: 0, group };
        let Durable { checkpoint, .. } = self.durable(&shape, (&nothing, None)).await?;
        let from = vec![0; usize::from(shape.group_partitions)];
        let range = (&from[..], &*checkpoint);
        let rows = self.groups.between(&self.parts, &shape, range, self.now()).await?;
        let ids: Vec<_> = rows.iter().map(|row| row.broadcast).collect();
        self.contents.addressees(&self.parts, &ids).await?;
        Ok(())
    }

    /// These broadcasts have ended: what is remembered of them does not say so.
    pub fn forget(&self, ids: &[BroadcastId]) {
        self.contents.forget(ids, self.parts.clock.moment());
    }

    /// Up to where everything is durable that is for this user, and what is lost. A checkpoint from
    /// ahead of the log's end is nobody's, until the owner has kept all of the log again.
    pub(super) async fn durable(
        &self,
        shape: &LogShape,
        (read, ring): (&Served, Option<&Served>),
    ) -> Result<Durable, Unavailable> {
        let mut known = self.checkpoints.get(&self.parts, shape, ring).await?;
        for (partition, _) in read.places() {
            let next = known.checkpoint.get(&partition).copied().unwrap_or(0);
            if !self.ends.have_been(&self.parts, (partition, next), read).await? {
                tracing::debug!(?partition, next, "a checkpoint is ahead of the log");
                Arc::make_mut(&mut known.checkpoint).insert(partition, 0);
            }
        }
        Ok(known)
    }

    /// What waits for a user. What the presented progress covers is noted first.
    pub async fn backlog(&self, ask: &Ask) -> Result<Backlog, Unavailable> {
        let shape = self.parts.log.shape().await?;
        let Some(presented) = &ask.presented else {
            return self.part(ask, Basis::Nothing, &shape).await;
        };
        if let Some(replaced) = &presented.replaced {
            return self.of_both_logs(ask, (presented, replaced), &shape).await;
        }
        for place in presented.served.places() {
            if !self.ends.have_been(&self.parts, place, &ask.read).await? {
                tracing::debug!(user = %ask.user, at = ?place, "a cursor is ahead of the log");
                return self.part(ask, Basis::Time(presented.at), &shape).await;
            }
        }
        if presented.is_in_ring {
            let (progress, since) = (presented.served.clone(), presented.since);
            let checkpoint = progress.clone();
            let reach = Reach { progress, checkpoint, is_resumed: true, since };
            return Ok(Backlog::new(reach, Vec::new(), false));
        }
        self.part(ask, Basis::Presented(presented), &shape).await
    }

    /// What waits of a log that is no more, and then of the one in its place.
    async fn of_both_logs(
        &self,
        ask: &Ask,
        (presented, replaced): (&Presented, &LogShape),
        shape: &LogShape,
    ) -> Result<Backlog, Unavailable> {
        if !backlog::has_some_of(self, &ask.user, replaced).await? {
            // The cursor comes from elsewhere, and is as good as none.
            return self.part(ask, Basis::Nothing, shape).await;
        }
        let backlog = self.part(ask, Basis::Presented(presented), shape).await?;
        if backlog.is_cut {
            return Ok(backlog);
        }
        // Of the log that replaced it, the client has been served nothing.
        let nothing = Presented {
            served: Served::nothing(shape, &ask.user),
            since: SINCE_EVER,
            replaced: None,
            ..presented.clone()
        };
        let mut then = self.part(ask, Basis::Presented(&nothing), shape).await?;
        let told: HashSet<_> = backlog.messages.iter().filter_map(broadcast_of).collect();
        then.messages.retain(|message| {
            broadcast_of(message).is_none_or(|broadcast| !told.contains(&broadcast))
        });
        Ok(Backlog { then: Some(Box::new(then)), ..backlog })
    }

    /// What waits of one log.
    async fn part(
        &self,
        ask: &Ask,
        basis: Basis<'_>,
        shape: &LogShape,
    ) -> Result<Backlog, Unavailable> {
        let (backlog, covered) = backlog::build(self, ask, basis, shape).await?;
        let covered = backlog::still_active(self, covered).await?;
        if !covered.is_empty() {
            let writes: Vec<_> =
                covered.iter().map(|row| self.delivered(&ask.user, *row)).collect();
            self.parts.inbox.write_inbox(&writes).await?;
        }
        Ok(backlog)
    }

    /// Makes notes durable. On an error any part of them may be; they may be told again.
    pub async fn keep(&self, notes: &[Note]) -> Result<(), Unavailable> {
        let shape = self.parts.log.shape().await?;
        let mut writes = Vec::new();
        for note in notes {
            match note {
                Note::Delivered { user, rows } => {
                    writes.extend(rows.iter().map(|row| self.delivered(user, *row)));
                }
                Note::Presented { user, served } => {
                    let rows = backlog::rows_before(self, user, served, &shape).await?;
                    writes.extend(rows.into_iter().map(|row| self.delivered(user, row)));
                }
                Note::Served { user, served } => self.keep_cursor(user, served, &shape).await?,
            }
        }
        if !writes.is_empty() {
            self.parts.inbox.write_inbox(&writes).await?;
        }
        Ok(())
    }

    async fn keep_cursor(
        &self,
        user: &UserId,
        served: &Served,
        shape: &LogShape,
    ) -> Result<(), StoreError> {
        let places: Vec<_> = served.places().collect();
        self.parts.inbox.write_cursor(user, shape.identity, &places).await
    }

    fn delivered(&self, user: &UserId, row: Row) -> InboxWrite {
        let now = self.now();
        let ends_at = self.contents.ends_at(row.broadcast);
        InboxWrite {
            user: user.clone(),
            broadcast: row.broadcast,
            place: None,
            progress: Progress { attempt: row.attempt, delivery: Delivery::Delivered },
            at: now,
            keep_until: ends_at.unwrap_or(now.plus(self.parts.retention)),
        }
    }

    pub(super) fn now(&self) -> EpochMillis {
        self.parts.clock.wall()
    }
}

fn broadcast_of(message: &KeptMessage) -> Option<BroadcastId> {
    message.candidate.what.broadcast()
}
