//! Expires broadcasts whose time is over: each share of them on the node that owns its partition of
//! the group topic.
//!
//! That nothing of them begins any more follows from their `expiresAt` by itself; here their status
//! follows, and word to the users who had the message.

use std::sync::Arc;
use std::time::Duration;

use super::{EndError, Ender};
use crate::base::End;
use crate::limits::expiry as limits;
use crate::ports::{Backoff, Bucket, Due, Ending, Log, Owned, Ownership, buckets_of};

/// Runs until the process ends.
pub struct Expiry {
    pub ender: Arc<Ender>,
    pub ownership: Arc<dyn Ownership>,
    pub log: Arc<dyn Log>,
}

impl Expiry {
    pub async fn run(self) {
        let mut owned = Owned::new();
        let mut backoff = Backoff::new(limits::LOOK, limits::RETRY_WAIT_MAX);
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                now_owned = self.ownership.owned(&owned) => {
                    owned = now_owned;
                    continue;
                }
                () = tokio::time::sleep(wait) => {}
            }
            wait = match self.pass(&owned).await {
                Ok(is_more) => {
                    backoff.reset();
                    if is_more { Duration::ZERO } else { limits::LOOK }
                }
                Err(error) => {
                    tracing::debug!(%error, "broadcasts that are due to expire have to wait");
                    backoff.wait()
                }
            };
        }
    }

    /// Expires what is due in the shares of these partitions; whether there may be more.
    async fn pass(&self, owned: &Owned) -> Result<bool, EndError> {
        if owned.is_empty() {
            return Ok(false);
        }
        let shape = self.log.shape().await?;
        let mut is_more = false;
        for share in buckets_of(owned.keys().copied(), &shape) {
            is_more |= self.expire(share).await?;
        }
        Ok(is_more)
    }

    async fn expire(&self, share: Bucket) -> Result<bool, EndError> {
        let Ender { endings, unfinished, .. } = &*self.ender;
        let due = endings.due(share, self.ender.now(), limits::ROWS_MAX).await?;
        for due @ Due { id, .. } in &due {
            let mut under_way = unfinished.begin(*id);
            let ending = Ending { id: *id, at: self.ender.now(), how: End::Expired };
            self.ender.finish(&ending).await?;
            endings.mark_due(due).await?;
            under_way.is_done = true;
        }
        Ok(due.len() == limits::ROWS_MAX)
    }
}
