//! Completes what a crash or an outage left of endings.

use std::sync::Arc;

use super::{EndError, Ender};
use crate::limits::relay as limits;
use crate::ports::Backoff;

/// Runs until the process ends.
pub struct EndRelay {
    pub ender: Arc<Ender>,
    /// No other node uses this store, so nobody else can be at a row, whatever its time.
    pub is_alone: bool,
}

impl EndRelay {
    pub async fn run(self) {
        let mut backoff = Backoff::new(limits::RETRY_WAIT, limits::LOOK);
        loop {
            let wait = match self.pass().await {
                Ok(count) => {
                    if count > 0 {
                        tracing::info!(broadcasts = count, "ended what was left in the middle");
                    }
                    backoff.reset();
                    limits::LOOK
                }
                Err(error) => {
                    tracing::warn!(%error, "endings have to wait");
                    backoff.wait()
                }
            };
            self.ender.unfinished.wait_for(wait).await;
        }
    }

    /// Completes those that nobody is at; how many.
    async fn pass(&self) -> Result<usize, EndError> {
        let Ender { endings, unfinished, .. } = &*self.ender;
        let mut count = 0;
        for ending in endings.open_endings(limits::ROWS_MAX).await? {
            let id = ending.id;
            let is_young = !self.is_alone && ending.at.plus(limits::GRACE) > self.ender.now();
            let is_young = is_young && !unfinished.is_owed(id);
            if unfinished.is_under_way(id) || is_young {
                continue;
            }
            self.ender.finish(&ending).await?;
            unfinished.forget(id);
            count += 1;
        }
        Ok(count)
    }
}
