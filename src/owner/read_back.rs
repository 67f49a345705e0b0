//! Makes rows of what stands in the dead-letter topics, whoever wrote it.

use std::sync::Arc;

use super::counters::{OwnerCounters, add};
use crate::limits::owner as limits;
use crate::ports::{Backoff, Batch, DeadLetterRow, DeadLetterRows, LogNames, StoreError};

pub struct ReadBack {
    pub rows: Arc<dyn DeadLetterRows>,
    pub names: LogNames,
    pub counters: Arc<OwnerCounters>,
}

impl ReadBack {
    /// Returns once all of it is durable, however long the store is away.
    pub async fn keep(&self, batch: Batch) {
        let (topic, partition) = (self.names.topic(batch.partition.topic), batch.partition.index);
        let row = |record| DeadLetterRow { topic: topic.clone(), partition, record };
        let rows: Vec<DeadLetterRow> = batch.records.into_iter().map(row).collect();
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        while let Err(error) = self.rows.write_dead_letters(&rows).await {
            add(&self.counters.retries, 1);
            match &error {
                StoreError::Away(reason) => {
                    tracing::debug!(reason, "rows of dead letters have to wait");
                }
                StoreError::Failed(_) => {
                    tracing::error!(%error, "rows of dead letters can't be written");
                }
            }
            tokio::time::sleep(backoff.wait()).await;
        }
        add(&self.counters.dead_letter_rows, rows.len() as u64);
    }
}
