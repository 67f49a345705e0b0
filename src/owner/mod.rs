//! Floor 3, control threads: makes durable what records leave behind, for the partitions that this
//! node owns, and then commits how far that is.
//!
//! It reads for itself, from the checkpoint on: it may be far behind the shards when the store was
//! away, and they do not wait for it. A partition has one batch in work, so its marks rise in
//! order and what is held is bounded. What is done twice leaves no trace, so a partition that is
//! lost meanwhile does no harm: its mark is refused.

mod counters;
mod keep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::base::{LogShape, Partition};
use crate::limits::log::{FETCH_WAIT, RETRY_WAIT_FIRST, RETRY_WAIT_MAX};
use crate::limits::owner as limits;
use crate::ports::{
    Backoff, Batch, Clock, Commit, Inbox, Log, LogError, Mark, Owned, Ownership, Store, Tenure,
    Want,
};

pub use counters::OwnerCounters;
use keep::Keeper;

/// Keeps what the owned partitions' records leave behind.
pub struct Owner {
    pub log: Arc<dyn Log>,
    pub ownership: Arc<dyn Ownership>,
    pub store: Arc<dyn Store>,
    pub inbox: Arc<dyn Inbox>,
    pub clock: Arc<dyn Clock>,
    /// Without `expiresAt`, a broadcast ends so long after its creation.
    pub retention: Duration,
    pub counters: Arc<OwnerCounters>,
}

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

/// What a batch has come to.
struct Kept {
    partition: Partition,
    tenure: Tenure,
    next: u64,
}

/// What is under way.
#[derive(Default)]
struct Work {
    held: BTreeMap<Partition, Held>,
    known: Owned,
    keeping: JoinSet<Kept>,
    committing: JoinSet<Result<Vec<(Mark, Commit)>, LogError>>,
}

/// Has an owner leave, and knows when it has.
pub struct Leaver {
    asked: watch::Sender<bool>,
    left: watch::Receiver<bool>,
}

/// The owner's side of it.
pub struct Leaving {
    asked: watch::Receiver<bool>,
    left: watch::Sender<bool>,
}

pub fn leaving() -> (Leaver, Leaving) {
    let (ask, asked) = watch::channel(false);
    let (leave, left) = watch::channel(false);
    (Leaver { asked: ask, left }, Leaving { asked, left: leave })
}

impl Leaver {
    /// From now on other nodes own what this one owned, as soon as what is in work is durable.
    pub fn leave(&self) {
        self.asked.send_replace(true);
    }

    /// Waits until it has left, which is bounded.
    pub async fn left(mut self) {
        // An owner that is gone has left as well.
        let _ = self.left.wait_for(|has_left| *has_left).await;
    }
}

impl Owner {
    /// Runs until it is told to leave; ends before only with what does not heal.
    pub async fn run(self, mut leaving: Leaving) -> Result<(), LogError> {
        let asked = async {
            // Nobody who could ask is left: nobody asks.
            if leaving.asked.wait_for(|is_asked| *is_asked).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let mut work = Work::default();
        tokio::select! {
            ended = self.work(&mut work) => return ended,
            () = asked => {}
        }
        let finished = tokio::time::timeout(limits::LEAVE_TIME, self.finish(&mut work)).await;
        if finished.is_err() {
            tracing::warn!("not everything that was in work could be committed before leaving");
        }
        self.ownership.leave().await;
        leaving.left.send_replace(true);
        Ok(())
    }

    /// Makes durable what is in work, and commits it.
    async fn finish(&self, work: &mut Work) {
        while let Some(kept) = work.keeping.join_next().await {
            work.take_kept(kept);
        }
        while let Some(done) = work.committing.join_next().await {
            self.take_commits(work, done);
        }
        self.commit(work);
        while let Some(done) = work.committing.join_next().await {
            self.take_commits(work, done);
        }
    }

    async fn work(&self, work: &mut Work) -> Result<(), LogError> {
        let shape = self.shape().await?;
        let keeper = Arc::new(Keeper::new(self, shape));
        let mut commits = interval(limits::COMMIT_PACE);
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::new(RETRY_WAIT_FIRST, RETRY_WAIT_MAX);
        // Nothing is fetched before then.
        let mut rest_until = Instant::now();
        loop {
            let wants = work.wants();
            // A partition whose work gets done is not kept waiting by those that are silent.
            let is_whole = wants.len() == work.held.len();
            let wait = if is_whole { FETCH_WAIT } else { limits::BUSY_FETCH_WAIT };
            let rest = tokio::time::sleep_until(rest_until);
            let fetch = async {
                if wants.is_empty() {
                    return std::future::pending().await;
                }
                rest.await;
                self.log.fetch(&wants, limits::FETCH_BYTES_MAX, wait).await
            };
            tokio::pin!(fetch);
            // A fetch is seen to its end, whatever else happens: a dropped one is asked again.
            let fetched = loop {
                tokio::select! {
                    fetched = &mut fetch => break fetched,
                    owned = self.ownership.owned(&work.known) => {
                        self.take_owned(work, owned).await?;
                        // What was wanted is no longer what is owned.
                        break Ok(Vec::new());
                    }
                    Some(kept) = work.keeping.join_next() => {
                        let is_first = wants.is_empty();
                        work.take_kept(kept);
                        if is_first {
                            break Ok(Vec::new());
                        }
                    }
                    Some(done) = work.committing.join_next() => self.take_commits(work, done),
                    _ = commits.tick() => self.commit(work),
                }
            };
            match fetched {
                Ok(batches) => {
                    backoff.reset();
                    batches.into_iter().for_each(|batch| work.keep(batch, &keeper));
                }
                Err(LogError::OutOfRange { wanted, bounds }) => {
                    self.skip(work, wanted, bounds.start.max(wanted.offset.min(bounds.end)));
                }
                // The reading for the shards tells of it.
                Err(LogError::Away(_)) => rest_until = Instant::now() + backoff.wait(),
                Err(error) => return Err(error),
            }
            self.show(work);
        }
    }

    async fn shape(&self) -> Result<LogShape, LogError> {
        let mut patience = Patience::default();
        loop {
            match self.log.shape().await {
                Ok(shape) => return Ok(shape),
                Err(error) => patience.wait_out(error).await?,
            }
        }
    }

    /// Begins with what came, at its checkpoint, and forgets what went.
    async fn take_owned(&self, work: &mut Work, owned: Owned) -> Result<(), LogError> {
        work.held.retain(|partition, held| owned.get(partition) == Some(&held.tenure));
        let came: Vec<Partition> =
            owned.keys().filter(|partition| !work.held.contains_key(partition)).copied().collect();
        work.known = owned;
        if came.is_empty() {
            return Ok(());
        }
        let mut patience = Patience::default();
        let checkpoints = loop {
            match self.ownership.checkpoints().await {
                Ok(checkpoints) => break checkpoints,
                Err(error) => patience.wait_out(error).await?,
            }
        };
        for partition in came {
            let Some(tenure) = work.known.get(&partition).copied() else { continue };
            let bounds = loop {
                match self.log.bounds(partition).await {
                    Ok(bounds) => break bounds,
                    Err(error) => patience.wait_out(error).await?,
                }
            };
            // Without a checkpoint all that is there is to be done.
            let next = checkpoints.get(&partition).copied().unwrap_or(bounds.start);
            let (done, committed, end) = (next, next, bounds.end);
            let held = Held { tenure, next, done, committed, end, is_in_work: false };
            work.held.insert(partition, held);
        }
        tracing::info!(partitions = work.held.len(), "owned partitions");
        Ok(())
    }

    /// Commits what is durable and not committed; one commit at a time.
    fn commit(&self, work: &mut Work) {
        if !work.committing.is_empty() {
            return;
        }
        let is_due = |held: &&Held| held.done > held.committed;
        let marks: Vec<Mark> = work
            .held
            .iter()
            .filter(|(_, held)| is_due(held))
            .map(|(partition, held)| Mark {
                partition: *partition,
                tenure: held.tenure,
                next: held.done,
            })
            .collect();
        if marks.is_empty() {
            return;
        }
        let ownership = self.ownership.clone();
        work.committing.spawn(async move {
            let commits = ownership.commit(&marks).await?;
            Ok(marks.into_iter().zip(commits).collect())
        });
    }

    fn take_commits(
        &self,
        work: &mut Work,
        done: Result<Result<Vec<(Mark, Commit)>, LogError>, JoinError>,
    ) {
        let commits = match done {
            Ok(Ok(commits)) => commits,
            // Tried again with the next tick; what is durable stays so.
            Ok(Err(error)) => return tracing::debug!(%error, "checkpoints have to wait"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        for (mark, commit) in commits {
            let held = work.held.get_mut(&mark.partition);
            match (commit, held.filter(|held| held.tenure == mark.tenure)) {
                (Commit::Done, Some(held)) => held.committed = held.committed.max(mark.next),
                (Commit::Lost, Some(_)) => {
                    counters::add(&self.counters.commits_lost, 1);
                    work.held.remove(&mark.partition);
                }
                (_, None) => {}
            }
        }
    }

    /// The log does not hold what is to be kept: it was trimmed, or it is another one.
    fn skip(&self, work: &mut Work, wanted: Want, next: u64) {
        let Some(held) = work.held.get_mut(&wanted.partition) else { return };
        counters::add(&self.counters.skipped_records, next.abs_diff(wanted.offset));
        tracing::error!(
            topic = wanted.partition.topic.name(),
            partition = wanted.partition.index,
            from = wanted.offset,
            to = next,
            "the log no longer holds what was not yet kept, going on where it does"
        );
        held.next = next;
        held.done = next;
        held.committed = held.committed.min(next);
    }

    fn show(&self, work: &Work) {
        let lag = work.held.values().map(|held| held.end.saturating_sub(held.done)).sum();
        counters::set(&self.counters.partitions, work.held.len() as u64);
        counters::set(&self.counters.lag, lag);
    }
}

impl Work {
    /// From where to read the partitions that have nothing in work.
    fn wants(&self) -> Vec<Want> {
        let idle = self.held.iter().filter(|(_, held)| !held.is_in_work);
        idle.map(|(partition, held)| Want { partition: *partition, offset: held.next }).collect()
    }

    fn keep(&mut self, batch: Batch, keeper: &Arc<Keeper>) {
        let Some(held) = self.held.get_mut(&batch.partition) else { return };
        if held.is_in_work || batch.next <= held.next {
            return;
        }
        held.is_in_work = true;
        held.next = batch.next;
        held.end = batch.end;
        let (keeper, tenure) = (keeper.clone(), held.tenure);
        self.keeping.spawn(async move {
            let (partition, next) = (batch.partition, batch.next);
            keeper.keep(batch).await;
            Kept { partition, tenure, next }
        });
    }

    fn take_kept(&mut self, kept: Result<Kept, JoinError>) {
        let Kept { partition, tenure, next } = match kept {
            Ok(kept) => kept,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let held = self.held.get_mut(&partition);
        if let Some(held) = held.filter(|held| held.tenure == tenure) {
            held.is_in_work = false;
            held.done = held.done.max(next);
        }
    }
}

/// Waits while the log is away, and for nothing else.
struct Patience(Backoff);

impl Default for Patience {
    fn default() -> Self {
        Self(Backoff::new(RETRY_WAIT_FIRST, RETRY_WAIT_MAX))
    }
}

impl Patience {
    async fn wait_out(&mut self, error: LogError) -> Result<(), LogError> {
        match error {
            LogError::Away(_) => {
                tokio::time::sleep(self.0.wait()).await;
                Ok(())
            }
            error => Err(error),
        }
    }
}
