//! Ownership: which partitions this node makes durable, and how far that is.
//!
//! Every node reads every partition; one owns it, writes what its records leave behind, and then
//! commits. The committed offset is the partition's checkpoint: everything below it is durable.
//! `tests/ownership_suite` states what every implementation must do.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::LogError;
use crate::base::Partition;

/// One stay of a partition with this node, drawn anew each time that it comes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tenure(pub u64);

/// What this node owns.
pub type Owned = BTreeMap<Partition, Tenure>;

/// Everything below `next` is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    pub partition: Partition,
    pub tenure: Tenure,
    pub next: u64,
}

/// What became of a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Commit {
    Done,
    /// The partition is no longer this node's, or was not in between. Nothing was committed.
    Lost,
}

/// How taking part goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// A member; it may own nothing.
    Member,
    /// Heals by itself: the reason.
    Away(String),
    /// Heals once somebody outside does what the reason says.
    Refused(String),
}

#[async_trait]
pub trait Ownership: Send + Sync {
    /// Takes part in owning until it is dropped; tells of every change. Ends only with what does
    /// not heal. While the log is away what is owned stays owned. For a node that is not to take
    /// part it waits and tells nothing.
    async fn run(&self, told: &(dyn Fn(Standing) + Sync)) -> LogError;

    /// What is owned now, as soon as that is not `known`.
    async fn owned(&self, known: &Owned) -> Owned;

    /// The checkpoint of each partition that has one, asked of the log each time, whoever owns it.
    async fn checkpoints(&self) -> Result<BTreeMap<Partition, u64>, LogError>;

    /// Moves checkpoints. `Ok` means durable, in the order of the marks. A lost partition does not
    /// hold up the others. On an error any of them may have moved. Waits while it is being settled
    /// who owns what from now on.
    async fn commit(&self, marks: &[Mark]) -> Result<Vec<Commit>, LogError>;

    /// Gives everything to the others, who go on at once. `run` then does nothing any more.
    async fn leave(&self);
}
