//! Expires broadcasts whose time is over: each share of them on the node that owns its partition of
//! the group topic.
//!
//! That nothing of them begins any more follows from their `expiresAt` by itself; here their status
//! follows, and word to the users who had the message. Those may be a million, so that is done
//! behind: it holds up no other broadcast's end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{EndError, Ender};
use crate::base::{BroadcastId, End};
use crate::limits::expiry as limits;
use crate::ports::{Backoff, Bucket, Due, Ending, Log, Owned, Ownership, buckets_of};

/// Runs until the process ends.
pub struct Expiry {
    pub ender: Arc<Ender>,
    pub ownership: Arc<dyn Ownership>,
    pub log: Arc<dyn Log>,
}

/// Broadcasts that have expired and whose users are being told.
#[derive(Default)]
struct Telling {
    ids: HashSet<BroadcastId>,
    tasks: JoinSet<BroadcastId>,
}

impl Expiry {
    pub async fn run(self) {
        let mut owned = Owned::new();
        let mut telling = Telling::default();
        let mut backoff = Backoff::new(limits::LOOK, limits::RETRY_WAIT_MAX);
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                now_owned = self.ownership.owned(&owned) => {
                    owned = now_owned;
                    continue;
                }
                Some(done) = telling.tasks.join_next() => {
                    // One that panicked is looked after at the next start.
                    if let Ok(id) = done {
                        telling.ids.remove(&id);
                    }
                    continue;
                }
                () = tokio::time::sleep(wait) => {}
            }
            wait = match self.pass(&owned, &mut telling).await {
                Ok(()) => {
                    backoff.reset();
                    limits::LOOK
                }
                Err(error) => {
                    tracing::debug!(%error, "broadcasts that are due to expire have to wait");
                    backoff.wait()
                }
            };
        }
    }

    /// Expires what is due in the shares of these partitions.
    async fn pass(&self, owned: &Owned, telling: &mut Telling) -> Result<(), EndError> {
        if owned.is_empty() {
            return Ok(());
        }
        let shape = self.log.shape().await?;
        for share in buckets_of(owned.keys().copied(), &shape) {
            self.expire(share, telling).await?;
        }
        Ok(())
    }

    async fn expire(&self, share: Bucket, telling: &mut Telling) -> Result<(), EndError> {
        let ender = &self.ender;
        // Those that are being told of stand before the others.
        let limit = telling.ids.len() + limits::ROWS_MAX;
        let due = ender.endings.due(share, ender.now(), limit).await?;
        for due in due {
            if telling.ids.contains(&due.id) {
                continue;
            }
            if telling.ids.len() >= limits::TELLING_MAX {
                return Ok(());
            }
            let ending = Ending { id: due.id, at: ender.now(), how: End::Expired };
            let is_ended = ender.begin(&ending).await?;
            telling.ids.insert(due.id);
            telling.tasks.spawn(finish(ender.clone(), due, is_ended.then_some(ending)));
        }
        Ok(())
    }
}

/// Tells the users, and marks the row. What fails is due again.
async fn finish(ender: Arc<Ender>, due: Due, ending: Option<Ending>) -> BroadcastId {
    let work = async {
        if let Some(ending) = &ending {
            ender.remove(ending).await?;
        }
        Ok::<_, EndError>(ender.endings.mark_due(&due).await?)
    };
    if let Err(error) = work.await {
        tracing::debug!(broadcast = due.id.get(), %error, "users are told of its end later");
        tokio::time::sleep(limits::RETRY_WAIT_MAX).await;
    }
    due.id
}
