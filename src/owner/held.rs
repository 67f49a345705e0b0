//! Which partitions are held, and how far each is: read, durable, committed. Knows no task and no
//! clock.

use std::collections::BTreeMap;

use crate::base::Partition;
use crate::ports::{Batch, Bounds, Commit, Mark, Owned, Tenure, Want};

/// One owned partition.
#[derive(Debug)]
struct Held {
    tenure: Tenure,
    /// What to read next.
    next: u64,
    /// Everything below is durable.
    done: u64,
    /// The checkpoint, as far as this node knows.
    committed: u64,
    /// End of the partition when it was last read.
    end: u64,
    is_in_work: bool,
}

/// What a batch has come to, once it is durable.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub partition: Partition,
    pub tenure: Tenure,
    pub next: u64,
}

/// Partitions of the topics that are served, and records that are not durable yet: theirs, and
/// those of the topics of dead letters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lag {
    pub partitions: u64,
    pub served: u64,
    pub dead: u64,
}

/// The partitions of this node. Each has one batch in work, at most.
#[derive(Debug, Default)]
pub struct Holdings {
    held: BTreeMap<Partition, Held>,
    owned: Owned,
}

impl Holdings {
    pub fn owned(&self) -> &Owned {
        &self.owned
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Forgets what went; returns what came, which `handle_start` begins.
    pub fn handle_owned(&mut self, owned: Owned) -> Vec<Partition> {
        self.held.retain(|partition, held| owned.get(partition) == Some(&held.tenure));
        self.owned = owned;
        let is_new = |partition: &&Partition| !self.held.contains_key(partition);
        self.owned.keys().filter(is_new).copied().collect()
    }

    /// Begins with a partition that came, at its checkpoint; without one all that is there is to
    /// be done.
    pub fn handle_start(&mut self, partition: Partition, checkpoint: Option<u64>, bounds: Bounds) {
        let Some(tenure) = self.owned.get(&partition).copied() else { return };
        let next = checkpoint.unwrap_or(bounds.start);
        let (done, committed, end) = (next, next, bounds.end);
        let held = Held { tenure, next, done, committed, end, is_in_work: false };
        self.held.insert(partition, held);
    }

    /// From where to read the partitions that have nothing in work.
    pub fn wants(&self) -> Vec<Want> {
        let idle = self.held.iter().filter(|(_, held)| !held.is_in_work);
        idle.map(|(partition, held)| Want { partition: *partition, offset: held.next }).collect()
    }

    /// Takes a batch into work, if it is one that was wanted; what it is once it is durable.
    pub fn handle_batch(&mut self, batch: &Batch) -> Option<Kept> {
        let held = self.held.get_mut(&batch.partition)?;
        if held.is_in_work || batch.next <= held.next {
            return None;
        }
        held.is_in_work = true;
        held.next = batch.next;
        held.end = batch.end;
        Some(Kept { partition: batch.partition, tenure: held.tenure, next: batch.next })
    }

    /// A batch is durable.
    pub fn handle_kept(&mut self, kept: Kept) {
        let held = self.held.get_mut(&kept.partition);
        if let Some(held) = held.filter(|held| held.tenure == kept.tenure) {
            held.is_in_work = false;
            held.done = held.done.max(kept.next);
        }
    }

    /// What is durable and not committed.
    pub fn marks(&self) -> Vec<Mark> {
        let is_due = |held: &&Held| held.done > held.committed;
        let due = self.held.iter().map(|(partition, held)| (*partition, held));
        due.filter(|(_, held)| is_due(held))
            .map(|(partition, held)| Mark { partition, tenure: held.tenure, next: held.done })
            .collect()
    }

    /// What became of a mark; whether it lost the partition.
    pub fn handle_commit(&mut self, mark: Mark, commit: Commit) -> bool {
        let held = self.held.get_mut(&mark.partition);
        match (commit, held.filter(|held| held.tenure == mark.tenure)) {
            (Commit::Done, Some(held)) => {
                held.committed = held.committed.max(mark.next);
                false
            }
            (Commit::Lost, Some(_)) => {
                self.held.remove(&mark.partition);
                true
            }
            (_, None) => false,
        }
    }

    /// The log goes on at `next`: it was trimmed, or it is another one. Whether it is held.
    pub fn skip(&mut self, partition: Partition, next: u64) -> bool {
        let Some(held) = self.held.get_mut(&partition) else { return false };
        held.next = next;
        held.done = next;
        held.committed = held.committed.min(next);
        true
    }

    /// How much there is, and how far behind.
    pub fn lag(&self) -> Lag {
        let mut all = Lag::default();
        for (partition, held) in &self.held {
            let lag = held.end.saturating_sub(held.done);
            if partition.topic.is_dead() {
                all.dead += lag;
            } else {
                all.partitions += 1;
                all.served += lag;
            }
        }
        all
    }
}
