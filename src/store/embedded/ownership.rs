//! Ownership on one machine: the node owns every partition, from its start until it leaves.
//! Checkpoints are rows that the committing thread writes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use fjall::Keyspace;
use tokio::sync::watch;

use super::commit::{Committer, Condition, Row};
use super::rows;
use crate::base::{LogShape, Partition};
use crate::ports::{Commit, LogError, Mark, Owned, Ownership, Standing, StoreError, Tenure};

/// The only one: nobody else owns anything in between.
const TENURE: Tenure = Tenure(1);

pub struct EmbeddedOwnership {
    checkpoints: Keyspace,
    committer: Committer,
    /// Empty from the start if the node does not take part, and once it has left.
    owned: watch::Sender<Owned>,
}

impl EmbeddedOwnership {
    pub(super) fn new(
        shape: LogShape,
        checkpoints: Keyspace,
        committer: Committer,
        takes_part: bool,
    ) -> Self {
        let all = shape.all_partitions().chain(shape.dead_partitions());
        let all = all.filter(|_| takes_part);
        let owned = all.map(|partition| (partition, TENURE)).collect();
        Self { checkpoints, committer, owned: watch::Sender::new(owned) }
    }

    /// Whether a mark's partition is owned as it says.
    fn is_held(&self, mark: &Mark) -> bool {
        self.owned.borrow().get(&mark.partition) == Some(&mark.tenure)
    }
}

#[async_trait]
impl Ownership for EmbeddedOwnership {
    async fn run(&self, told: &(dyn Fn(Standing) + Sync)) -> LogError {
        let mut owned = self.owned.subscribe();
        if !owned.borrow().is_empty() {
            told(Standing::Member);
        }
        let left = async { drop(owned.wait_for(Owned::is_empty).await) };
        tokio::select! {
            biased;
            () = left => std::future::pending().await,
            reason = self.committer.failure() => LogError::Failed(reason),
        }
    }

    async fn owned(&self, known: &Owned) -> Owned {
        let mut owned = self.owned.subscribe();
        let changed = owned.wait_for(|owned| owned != known).await;
        changed.expect("the sender lives as long as this").clone()
    }

    async fn checkpoints(&self) -> Result<BTreeMap<Partition, u64>, LogError> {
        let checkpoints = self.checkpoints.clone();
        let read = tokio::task::spawn_blocking(move || read(&checkpoints)).await;
        read.map_err(|error| LogError::Failed(error.to_string()))?
    }

    async fn commit(&self, marks: &[Mark]) -> Result<Vec<Commit>, LogError> {
        let held: Vec<bool> = marks.iter().map(|mark| self.is_held(mark)).collect();
        // Of two marks of one partition the later one stands.
        let mut next = BTreeMap::new();
        for (mark, _) in marks.iter().zip(&held).filter(|(_, is_held)| **is_held) {
            next.insert(mark.partition, mark.next);
        }
        if !next.is_empty() {
            let row = |(partition, next): (Partition, u64)| Row {
                keyspace: self.checkpoints.clone(),
                key: rows::partition_key(partition).to_vec(),
                value: Some(rows::write_checkpoint(next)),
            };
            let rows = next.into_iter().map(row).collect();
            self.committer.write(rows, Condition::None).await.map_err(as_log_error)?;
        }
        let outcome = |is_held| if is_held { Commit::Done } else { Commit::Lost };
        Ok(held.into_iter().map(outcome).collect())
    }

    async fn leave(&self) {
        self.owned.send_replace(Owned::new());
    }
}

fn read(checkpoints: &Keyspace) -> Result<BTreeMap<Partition, u64>, LogError> {
    let mut found = BTreeMap::new();
    let broken = |error: &dyn std::error::Error| LogError::Failed(error.to_string());
    for entry in checkpoints.iter() {
        let (key, value) = entry.into_inner().map_err(|error| broken(&error))?;
        let partition = rows::read_partition(&key).map_err(|error| broken(&error))?;
        let next = rows::read_checkpoint(&value).map_err(|error| broken(&error))?;
        found.insert(partition, next);
    }
    Ok(found)
}

fn as_log_error(error: StoreError) -> LogError {
    match error {
        StoreError::Away(reason) => LogError::Away(reason),
        StoreError::Failed(reason) => LogError::Failed(reason),
    }
}
