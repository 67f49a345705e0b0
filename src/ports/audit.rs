//! The audit: a line for whatever was done with dead letters by hand, which stays when they are
//! gone.
//!
//! `tests/store_suite` states what every implementation must do. `Ok` of a write means
//! durable.

use async_trait::async_trait;
use uuid::Uuid;

use super::{DeadLetterId, StoreError};
use crate::base::EpochMillis;

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audited {
    Redrive,
    RedriveAll,
    Purge,
    PurgeAll,
}

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditedCounts {
    pub succeeded: u64,
    pub failed: u64,
}

/// One line. It is written before anything is done, and once more when that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditLine {
    /// When it began, by the node's clock.
    pub at: EpochMillis,
    /// Drawn for each.
    pub id: Uuid,
    pub what: Audited,
    /// `None`: all that there were.
    pub letter: Option<DeadLetterId>,
    /// Whose call it was.
    pub node: String,
    /// `None` as long as it is under way, and if it broke off.
    pub counts: Option<AuditedCounts>,
}

/// Where a list goes on: behind this line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AuditPlace {
    pub at: EpochMillis,
    pub id: Uuid,
}

impl Audited {
    pub const ALL: [Self; 4] = [Self::Redrive, Self::RedriveAll, Self::Purge, Self::PurgeAll];

    /// As it is stored and shown.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Redrive => "REDRIVE",
            Self::RedriveAll => "REDRIVE_ALL",
            Self::Purge => "PURGE",
            Self::PurgeAll => "PURGE_ALL",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.word() == word)
    }
}

impl AuditLine {
    pub const fn place(&self) -> AuditPlace {
        AuditPlace { at: self.at, id: self.id }
    }
}

#[async_trait]
pub trait Audit: Send + Sync {
    /// Idempotent, in any order: a line without counts takes none away.
    async fn write_audit(&self, line: &AuditLine) -> Result<(), StoreError>;

    /// Lines behind `after`, newest first, at most `limit`; fewer only at the end. Those of more
    /// than 400 days ago may be missing.
    async fn audit(
        &self,
        after: Option<AuditPlace>,
        limit: usize,
    ) -> Result<Vec<AuditLine>, StoreError>;
}
