//! What operators do with dead letters: send them again, or purge them; one, or all that there are.
//!
//! What is done is a line of the audit, which is written before anything else. A dead letter that
//! was sent again, or purged, leaves the list and a mark in the store, so that reading it again
//! brings nothing back. What a crash leaves between the two stays in the list, and is found to be
//! done when it is sent again (`publish.rs`).

mod publish;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;
use uuid::Uuid;

use crate::base::{BroadcastId, Status};
use crate::domain::NotRedrivable;
use crate::limits::dead_letters as limits;
use crate::ports::{
    Audit, AuditLine, Audited, AuditedCounts, Clock, DeadLetterId, DeadLetterPlace, DeadLetterRow,
    DeadLetterRows, Endings, Inbox, Log, LogError, LogNames, Ownership, Parking, StoreError,
    join_all,
};

/// Why one dead letter stays one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotRedriven {
    #[error(transparent)]
    Record(#[from] NotRedrivable),
    /// The broker has cut it, so its bytes are not those of the event.
    #[error("{0}; the dead letter was cut: {1}")]
    Cut(NotRedrivable, String),
    #[error("it comes from {0}, which is no topic of this configuration")]
    NoTopic(String),
    #[error("broadcast {0} is {word}", word = .1.word())]
    Ended(BroadcastId, Status),
    #[error("broadcast {0} is not known to the store, and the event does not say for whom it is")]
    Unknown(BroadcastId),
    #[error("broadcast {0} is for selected users, who have events of their own")]
    Selected(BroadcastId),
    /// One reader takes its bytes for JSON, another does not.
    #[error("it can't be written again: {0}")]
    Odd(String),
    #[error(transparent)]
    TooLarge(LogError),
}

#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    #[error("there is no dead letter {0}")]
    Missing(DeadLetterId),
    #[error("dead letter {0} can't be sent again: {1}")]
    Refused(DeadLetterId, NotRedriven),
    #[error("dead letters are being sent again or purged by another call to this node; ask again")]
    Busy,
    /// The owners do not come nearer to the end of the log.
    #[error(
        "the log's owners are more than {} records behind; ask again once they are not",
        crate::limits::log::AGAIN_RECORDS
    )]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    /// All the same, what was done is done.
    #[error("{reason}; {done} dead letters were sent again or purged before that: ask again")]
    BrokenOff { done: u64, reason: Box<RedriveError> },
}

/// What became of many.
#[derive(Clone, Default, Debug)]
pub struct Redriven {
    pub succeeded: u64,
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<(DeadLetterId, NotRedriven)>,
}

/// Sends dead letters again, and purges them.
pub struct Redriver {
    pub log: Arc<dyn Log>,
    pub ownership: Arc<dyn Ownership>,
    pub inbox: Arc<dyn Inbox>,
    pub parking: Arc<dyn Parking>,
    pub endings: Arc<dyn Endings>,
    pub rows: Arc<dyn DeadLetterRows>,
    pub audit: Arc<dyn Audit>,
    pub clock: Arc<dyn Clock>,
    pub names: LogNames,
    pub node: String,
    /// Records may ask for their failure.
    pub is_testing: bool,
    /// An older producer's group event of a broadcast that the store does not know is for all.
    pub unknown_is_for_all: bool,
    /// Held by whoever is at all of them.
    pub bulk: Bulk,
    pub counters: Arc<RedriveCounters>,
}

/// Dead letters that left the list, as the metrics show them.
#[derive(Default, Debug)]
pub struct RedriveCounters {
    pub redriven: AtomicU64,
    pub purged: AtomicU64,
}

/// Who is at all of them: nobody, or one.
#[derive(Default, Debug)]
pub struct Bulk(Mutex<()>);

impl Redriven {
    fn take(&mut self, id: DeadLetterId, outcome: Result<(), NotRedriven>) {
        let Err(reason) = outcome else {
            self.succeeded += 1;
            return;
        };
        self.failed += 1;
        if self.failures.len() < limits::FAILURES_SHOWN_MAX {
            self.failures.push((id, reason));
        }
    }

    fn counts(&self) -> AuditedCounts {
        AuditedCounts { succeeded: self.succeeded, failed: self.failed }
    }
}

impl Redriver {
    /// Sends one again. `Ok`: it stands in the log where it is served, and is no dead letter any
    /// more.
    pub async fn redrive(&self, id: &DeadLetterId) -> Result<(), RedriveError> {
        let row = self.find(id).await?;
        let line = self.begin(Audited::Redrive, Some(id)).await?;
        let mut done = Redriven::default();
        self.publish_all(vec![row], &mut done).await?;
        self.end(line, done.counts()).await;
        match done.failures.pop() {
            Some((id, reason)) => Err(RedriveError::Refused(id, reason)),
            None => Ok(()),
        }
    }

    /// Sends all again that there are now, the newest first. What comes meanwhile is left.
    pub async fn redrive_all(&self) -> Result<Redriven, RedriveError> {
        let _held = self.bulk.0.try_lock().map_err(|_| RedriveError::Busy)?;
        let line = self.begin(Audited::RedriveAll, None).await?;
        let mut done = Redriven::default();
        let mut after = None;
        loop {
            let outcome = match self.page(after).await {
                Ok(rows) if rows.is_empty() => break,
                Ok(rows) => {
                    after = rows.last().map(DeadLetterRow::place);
                    self.publish_all(rows, &mut done).await
                }
                Err(error) => Err(error.into()),
            };
            outcome.map_err(|reason| broken_off(done.succeeded, reason))?;
        }
        self.end(line, done.counts()).await;
        Ok(done)
    }

    /// Purges one: it leaves the list for good.
    pub async fn purge(&self, id: &DeadLetterId) -> Result<(), RedriveError> {
        self.find(id).await?;
        let line = self.begin(Audited::Purge, Some(id)).await?;
        self.mark(std::slice::from_ref(id), &self.counters.purged, |_| ()).await?;
        self.end(line, AuditedCounts { succeeded: 1, failed: 0 }).await;
        Ok(())
    }

    /// Purges all that there are now.
    pub async fn purge_all(&self) -> Result<(), RedriveError> {
        let _held = self.bulk.0.try_lock().map_err(|_| RedriveError::Busy)?;
        let line = self.begin(Audited::PurgeAll, None).await?;
        let (mut purged, mut after) = (0, None);
        loop {
            let outcome = match self.page(after).await {
                Ok(rows) if rows.is_empty() => break,
                Ok(rows) => {
                    after = rows.last().map(DeadLetterRow::place);
                    let ids: Vec<DeadLetterId> = rows.iter().map(DeadLetterRow::id).collect();
                    drop(rows); // They may be of megabytes.
                    self.mark(&ids, &self.counters.purged, |_| purged += 1).await
                }
                Err(error) => Err(error),
            };
            outcome.map_err(|reason| broken_off(purged, reason.into()))?;
        }
        self.end(line, AuditedCounts { succeeded: purged, failed: 0 }).await;
        Ok(())
    }

    async fn find(&self, id: &DeadLetterId) -> Result<DeadLetterRow, RedriveError> {
        let found = self.rows.dead_letter(id).await?;
        found.ok_or_else(|| RedriveError::Missing(id.clone()))
    }

    async fn page(&self, after: Option<DeadLetterPlace>) -> Result<Vec<DeadLetterRow>, StoreError> {
        self.rows.dead_letters(after, limits::AT_ONCE, limits::BYTES_AT_ONCE).await
    }

    /// Takes them out of the list, some at a time, and tells of each that is out.
    async fn mark(
        &self,
        ids: &[DeadLetterId],
        counter: &AtomicU64,
        mut done: impl FnMut(&DeadLetterId),
    ) -> Result<(), StoreError> {
        for part in ids.chunks(crate::limits::store::IN_FLIGHT_MAX) {
            let marks = part.iter().map(|id| self.rows.purge_dead_letter(id));
            let mut failed = Ok(());
            for (id, marked) in part.iter().zip(join_all(marks).await) {
                match marked {
                    // Somebody else may have taken it out.
                    Ok(was_there) => {
                        counter.fetch_add(u64::from(was_there), Ordering::Relaxed);
                        done(id);
                    }
                    Err(error) => failed = Err(error),
                }
            }
            failed?;
        }
        Ok(())
    }

    /// Says what is about to be done, so that it is known whatever comes.
    async fn begin(
        &self,
        what: Audited,
        letter: Option<&DeadLetterId>,
    ) -> Result<AuditLine, StoreError> {
        let line = AuditLine {
            at: self.clock.wall(),
            id: Uuid::new_v4(),
            what,
            letter: letter.cloned(),
            node: self.node.clone(),
            counts: None,
        };
        self.audit.write_audit(&line).await?;
        Ok(line)
    }

    /// It is done, so that the line stays without its outcome is no failure.
    async fn end(&self, line: AuditLine, counts: AuditedCounts) {
        let AuditedCounts { succeeded, failed } = counts;
        let letter = line.letter.as_ref().map(ToString::to_string);
        tracing::info!(action = line.what.word(), letter, succeeded, failed, "dead letters");
        let line = AuditLine { counts: Some(counts), ..line };
        if let Err(error) = self.audit.write_audit(&line).await {
            let line = line.id;
            tracing::warn!(%line, %error, "a line of the audit stays without its outcome");
        }
    }
}

fn broken_off(done: u64, reason: RedriveError) -> RedriveError {
    RedriveError::BrokenOff { done, reason: Box::new(reason) }
}
