//! Endings: how statuses change, which broadcasts are being ended or were, and which are due to.
//!
//! An ending is noted before its status says so, and settled when all that follows from it is done:
//! what a crash leaves between the two stays open. `tests/store_suite` states what every
//! implementation must do. `Ok` of a write means durable.

use async_trait::async_trait;

use super::{Bucket, Claim, StoreError};
use crate::base::{BroadcastId, End, EpochMillis, Status};

/// A broadcast that is being ended, or was. Of two of one broadcast at one time one is noted: where
/// it went, its status says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ending {
    pub id: BroadcastId,
    /// That of its writing, by the node's clock: a store may look for those that are open from
    /// where it found none left some time ago.
    pub at: EpochMillis,
    pub how: End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotedEnding {
    pub ending: Ending,
    pub is_settled: bool,
}

/// What became of a change of status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    Done,
    /// It stands there already.
    Already,
    /// It stands at this, from which it may not.
    Refused(Status),
    /// It does not exist.
    Missing,
}

/// A broadcast whose time is over at `at`: that is its `expiresAt`, or when this was noted, if that
/// was later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    pub id: BroadcastId,
    pub at: EpochMillis,
}

#[async_trait]
pub trait Endings: Send + Sync {
    /// Moves a status as `may_become` allows. Answers only what is certain; after `Away` it may
    /// have been done, or not.
    async fn change_status(&self, id: BroadcastId, to: Status) -> Result<Change, StoreError>;

    /// Gives its end for a status to a broadcast that never had one: another producer's, of which
    /// only the content is kept. `Taken`: it has one by now.
    async fn create_ended(&self, id: BroadcastId, how: End) -> Result<Claim, StoreError>;

    /// Notes, before its status says so, that a broadcast is being ended. Idempotent, and opens
    /// nothing that is settled.
    async fn put_ending(&self, ending: &Ending) -> Result<(), StoreError>;

    /// All that follows from it is done: nobody has to look after it any more. Idempotent.
    async fn settle_ending(&self, ending: &Ending) -> Result<(), StoreError>;

    /// Those noted at `since` or later, oldest first, settled or not, behind `after`, at most
    /// `limit`; fewer only at the end. Those of more than 30 days ago may be missing.
    async fn endings(
        &self,
        since: EpochMillis,
        after: Option<(EpochMillis, BroadcastId)>,
        limit: usize,
    ) -> Result<Vec<NotedEnding>, StoreError>;

    /// Those that are not settled, oldest first, at most `limit`.
    async fn open_endings(&self, limit: usize) -> Result<Vec<Ending>, StoreError>;

    /// Broadcasts of a share that are due at `until` and have not been marked, soonest first, at
    /// most `limit`. Each with an `expiresAt` whose status was created, and was not final then, is
    /// here; one may be here twice, or without a status.
    async fn due(
        &self,
        share: Bucket,
        until: EpochMillis,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError>;

    /// Nobody has to look after it any more. Idempotent.
    async fn mark_due(&self, due: &Due) -> Result<(), StoreError>;
}
