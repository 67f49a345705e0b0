//! Floor 3, control threads: makes durable what records leave behind, for the partitions that this
//! node owns, and then commits how far that is.
//!
//! It reads for itself, from the checkpoint on: it may be far behind the shards when the store was
//! away, and they do not wait for it. A partition has one batch in work, so its marks rise in
//! order and what is held is bounded. What is done twice leaves no trace, so a partition that is
//! lost meanwhile does no harm: its mark is refused.

mod again;
mod counters;
mod dead;
mod held;
mod keep;
mod read_back;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::base::LogShape;
use crate::domain::Rules;
use crate::limits::log::{FETCH_WAIT, RETRY_WAIT_FIRST, RETRY_WAIT_MAX};
use crate::limits::owner as limits;
use crate::ports::{
    Backoff, Batch, Bounds, Bucket, Clock, Commit, ControlTopic, DeadLetterRows, Endings, Inbox,
    Log, LogError, LogNames, Mark, Owned, Ownership, Parking, StoreError, Want, buckets_of,
};
use crate::wire::control::NodeStart;

pub use again::Republisher;
pub use counters::OwnerCounters;
pub use dead::{DeadClass, DeadLetter, DeadLetters, DeadReason};
pub use held::{Holdings, Kept, Lag};
pub use keep::{Keeper, Rows};
use read_back::ReadBack;

/// Keeps what the owned partitions' records leave behind.
pub struct Owner {
    pub log: Arc<dyn Log>,
    pub ownership: Arc<dyn Ownership>,
    pub inbox: Arc<dyn Inbox>,
    pub endings: Arc<dyn Endings>,
    pub control: Arc<dyn ControlTopic>,
    /// As this node is called in the control topic.
    pub node: NodeStart,
    pub parking: Arc<dyn Parking>,
    pub dead_letters: Arc<dyn DeadLetterRows>,
    pub clock: Arc<dyn Clock>,
    pub names: LogNames,
    /// Without `expiresAt`, a broadcast ends so long after its creation.
    pub retention: Duration,
    /// Records may ask for their failure.
    pub is_testing: bool,
    /// An older producer's group event of a broadcast that the store does not know is for all.
    pub unknown_is_for_all: bool,
    pub counters: Arc<OwnerCounters>,
}

/// Why something could not be made durable.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Who makes batches durable.
#[derive(Clone)]
struct Keepers {
    served: Arc<Keeper>,
    dead: Arc<ReadBack>,
}

/// What is under way.
#[derive(Default)]
struct Work {
    holdings: Holdings,
    keeping: JoinSet<Kept>,
    committing: JoinSet<Result<Vec<(Mark, Commit)>, LogError>>,
    /// The one that publishes again what was parked, and of which shares.
    publishing: JoinSet<()>,
    shares: watch::Sender<Vec<Bucket>>,
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
            ended = self.work(&mut work) => {
                // Others may be able to.
                self.ownership.leave().await;
                return ended;
            }
            () = asked => {}
        }
        let finished = tokio::time::timeout(limits::LEAVE_TIME, self.finish(&mut work)).await;
        if !matches!(finished, Ok(Ok(()))) {
            tracing::warn!("not everything that was in work could be committed before leaving");
        }
        self.ownership.leave().await;
        leaving.left.send_replace(true);
        Ok(())
    }

    /// Makes durable what is in work, and commits it.
    async fn finish(&self, work: &mut Work) -> Result<(), LogError> {
        while let Some(kept) = work.keeping.join_next().await {
            work.holdings.handle_kept(joined(kept)?);
        }
        while let Some(done) = work.committing.join_next().await {
            self.take_commits(work, joined(done)?);
        }
        self.commit(work);
        while let Some(done) = work.committing.join_next().await {
            self.take_commits(work, joined(done)?);
        }
        Ok(())
    }

    async fn work(&self, work: &mut Work) -> Result<(), LogError> {
        let shape = self.shape().await?;
        let keepers = Keepers {
            served: Arc::new(Keeper::new(self, shape)),
            dead: Arc::new(ReadBack {
                rows: self.dead_letters.clone(),
                names: self.names.clone(),
                counters: self.counters.clone(),
            }),
        };
        let shares = work.shares.subscribe();
        work.publishing.spawn(self.republisher(shape).run(shares));
        let mut commits = interval(limits::COMMIT_PACE);
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::new(RETRY_WAIT_FIRST, RETRY_WAIT_MAX);
        // Nothing is fetched before then.
        let mut rest_until = Instant::now();
        loop {
            let wants = work.holdings.wants();
            // A partition whose work gets done is not kept waiting by those that are silent.
            let is_whole = wants.len() == work.holdings.len();
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
                    owned = self.ownership.owned(work.holdings.owned()) => {
                        self.take_owned(work, owned, &shape).await?;
                        // What was wanted is no longer what is owned.
                        break Ok(Vec::new());
                    }
                    Some(kept) = work.keeping.join_next() => {
                        let is_first = wants.is_empty();
                        work.holdings.handle_kept(joined(kept)?);
                        if is_first {
                            break Ok(Vec::new());
                        }
                    }
                    Some(done) = work.committing.join_next() => {
                        self.take_commits(work, joined(done)?);
                    }
                    Some(ended) = work.publishing.join_next() => joined(ended)?,
                    _ = commits.tick() => self.commit(work),
                }
            };
            match fetched {
                Ok(batches) => {
                    backoff.reset();
                    batches.into_iter().for_each(|batch| work.keep(batch, &keepers));
                }
                Err(LogError::OutOfRange { wanted, bounds }) => {
                    self.skip(work, wanted, bounds, &keepers);
                }
                // The reading for the shards tells of it.
                Err(LogError::Away(_)) => rest_until = Instant::now() + backoff.wait(),
                Err(error) => return Err(error),
            }
            self.show(work);
        }
    }

    /// Publishes again what was parked; `run` has one at work.
    pub fn republisher(&self, shape: LogShape) -> Republisher {
        Republisher {
            log: self.log.clone(),
            ownership: self.ownership.clone(),
            inbox: self.inbox.clone(),
            parking: self.parking.clone(),
            clock: self.clock.clone(),
            rules: Rules { shape, is_testing: self.is_testing },
            retention: self.retention,
            dead: self.dead_letters(),
            counters: self.counters.clone(),
            unknown_is_for_all: self.unknown_is_for_all,
        }
    }

    fn dead_letters(&self) -> DeadLetters {
        DeadLetters::new(self.log.clone(), self.names.clone(), self.counters.clone())
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
    async fn take_owned(
        &self,
        work: &mut Work,
        owned: Owned,
        shape: &LogShape,
    ) -> Result<(), LogError> {
        work.shares.send_replace(buckets_of(owned.keys().copied(), shape));
        let came = work.holdings.handle_owned(owned);
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
            let bounds = loop {
                match self.log.bounds(partition).await {
                    Ok(bounds) => break bounds,
                    Err(error) => patience.wait_out(error).await?,
                }
            };
            let checkpoint = checkpoints.get(&partition).copied();
            work.holdings.handle_start(partition, checkpoint, bounds);
        }
        tracing::info!(partitions = work.holdings.len(), "owned partitions");
        Ok(())
    }

    /// Commits what is durable and not committed; one commit at a time.
    fn commit(&self, work: &mut Work) {
        if !work.committing.is_empty() {
            return;
        }
        let marks = work.holdings.marks();
        if marks.is_empty() {
            return;
        }
        let ownership = self.ownership.clone();
        work.committing.spawn(async move {
            let commits = ownership.commit(&marks).await?;
            Ok(marks.into_iter().zip(commits).collect())
        });
    }

    fn take_commits(&self, work: &mut Work, done: Result<Vec<(Mark, Commit)>, LogError>) {
        let commits = match done {
            Ok(commits) => commits,
            // Tried again with the next tick; what is durable stays so.
            Err(error) => return tracing::debug!(%error, "checkpoints have to wait"),
        };
        for (mark, commit) in commits {
            if work.holdings.handle_commit(mark, commit) {
                counters::add(&self.counters.commits_lost, 1);
            }
        }
    }

    /// The log does not hold what is to be kept. It was trimmed, which leaves a hole; or the offset
    /// is nobody's: somebody has committed it, the log has lost its end, or a topic of dead
    /// letters, of which no cursor knows, was made anew. What was kept of it nobody knows then, and
    /// keeping it again does no harm.
    fn skip(&self, work: &mut Work, wanted: Want, bounds: Bounds, keepers: &Keepers) {
        let next = bounds.start;
        let is_hole = wanted.offset < next && !wanted.partition.topic.is_dead();
        let is_held = match is_hole {
            true => work.keep_hole((wanted, next), keepers),
            false => work.holdings.skip(wanted.partition, next),
        };
        if !is_held {
            return;
        }
        let (topic, partition) = (wanted.partition.topic.name(), wanted.partition.index);
        let (from, to, end) = (wanted.offset, next, bounds.end);
        if wanted.offset > bounds.end {
            tracing::error!(
                topic,
                partition,
                from,
                to,
                end,
                "the offset that is committed is ahead of the log's end; all that the log holds is \
                 kept again"
            );
            return;
        }
        if wanted.offset == 0 {
            tracing::info!(
                topic,
                partition,
                to,
                "nothing of it had been kept, beginning with what the log holds"
            );
            return;
        }
        counters::add(&self.counters.skipped_records, next.abs_diff(wanted.offset));
        tracing::error!(
            topic,
            partition,
            from,
            to,
            "the log no longer holds what was not yet kept, going on where it does"
        );
    }

    fn show(&self, work: &Work) {
        let Lag { partitions, served, dead } = work.holdings.lag();
        counters::set(&self.counters.partitions, partitions);
        counters::set(&self.counters.lag, served);
        counters::set(&self.counters.dead_letter_lag, dead);
    }
}

impl Work {
    fn keep(&mut self, batch: Batch, keepers: &Keepers) {
        let Some(kept) = self.holdings.handle_batch(&batch) else { return };
        let Keepers { served, dead } = keepers.clone();
        self.keeping.spawn(async move {
            if batch.partition.topic.is_dead() {
                dead.keep(batch).await;
            } else {
                served.keep(batch).await;
            }
            kept
        });
    }

    /// Notes that the log has lost what was wanted, up to there; whether it is wanted still.
    fn keep_hole(&mut self, (wanted, to): (Want, u64), keepers: &Keepers) -> bool {
        let Want { partition, offset } = wanted;
        let Some(kept) = self.holdings.handle_hole(partition, to) else { return false };
        let keeper = keepers.served.clone();
        self.keeping.spawn(async move {
            keeper.keep_hole(partition, (offset, to)).await;
            kept
        });
        true
    }
}

/// What a task has come to. One that panicked ends the owning, which is told; a panic would end it
/// in silence, and keep the partitions from others.
fn joined<T>(done: Result<T, JoinError>) -> Result<T, LogError> {
    done.map_err(|error| LogError::Failed(format!("a task of the owner ended: {error}")))
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
