//! The owner's work on one node: the real bookkeeping and the real rows, turned by hand. A write or
//! a commit is under way for as long as the world likes; a crash drops it in the middle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use corecast::base::{LogShape, Moment, Partition};
use corecast::owner::{
    BackendError, Holdings, Keeper, Kept, Owner, OwnerCounters, Republisher, Rows,
};
use corecast::ports::{
    Batch, Bounds, Clock, Commit, LogError, LogNames, Mark, Ownership as _, Record, StoreError,
    TimedBy, Want, buckets_of,
};

use corecast::wire::control::NodeStart;
use uuid::Uuid;

use crate::desk::Desk;
use crate::groups::Membership;
use crate::random::{Random, Seen};
use crate::records::Log;
use crate::sky::{AHEAD_MAX, SHAPE, ShapeOfLog, Task};
use crate::store::FakeStore;

pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 3_600);

/// One batch in work.
struct InWork {
    kept: Kept,
    write: Task<(Rows, Result<(), StoreError>)>,
}

pub struct OwnerWork {
    holdings: Holdings,
    keeper: Arc<Keeper>,
    member: Arc<Membership>,
    keeping: Vec<InWork>,
    committing: Option<(Vec<Mark>, Task<Commits>)>,
    /// Partitions that came, whose checkpoints are being asked for.
    coming: Option<(Vec<Partition>, Task<Checkpoints>)>,
    republisher: Arc<Republisher>,
    publishing: Option<Task<Result<bool, BackendError>>>,
}

type Commits = Result<Vec<Commit>, LogError>;
type Checkpoints = Result<BTreeMap<Partition, u64>, LogError>;

impl OwnerWork {
    pub fn new(
        shape: LogShape,
        member: Arc<Membership>,
        store: &FakeStore,
        desk: &Desk,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let owner = Owner {
            log: Arc::new(desk.clone()),
            ownership: member.clone(),
            inbox: Arc::new(store.clone()),
            endings: Arc::new(store.clone()),
            control: Arc::new(store.clone()),
            node: NodeStart { node: "owner".to_owned(), start: Uuid::nil() },
            parking: Arc::new(store.clone()),
            dead_letters: Arc::new(ShapeOfLog(shape)),
            clock,
            names: LogNames::default(),
            retention: RETENTION,
            is_testing: false,
            unknown_is_for_all: false,
            counters: Arc::<OwnerCounters>::default(),
        };
        Self {
            holdings: Holdings::default(),
            keeper: Arc::new(Keeper::new(&owner, shape)),
            member,
            keeping: Vec::new(),
            committing: None,
            coming: None,
            republisher: Arc::new(owner.republisher(shape)),
            publishing: None,
        }
    }

    /// The node drains: it has no more turns.
    pub fn leave(&self) {
        self.member.leave_now();
    }

    /// Whether something of a batch may be half done.
    pub fn is_writing(&self) -> bool {
        !self.keeping.is_empty()
    }

    /// `is_eager`: it does at once whatever is to be done. `is_cut_off`: it hears and says nothing
    /// of who owns what. `is_log_away`: it reads nothing.
    pub fn turn(
        &mut self,
        log: &Log,
        (is_eager, is_cut_off, is_log_away): (bool, bool, bool),
        random: &mut Random,
        seen: &mut Seen,
    ) {
        if !is_cut_off {
            self.member.beat();
        }
        self.take_owned(log);
        self.look_after_writes(seen);
        for want in self.holdings.wants() {
            if is_log_away {
                break;
            }
            let start = log.start(want.partition);
            if want.offset < start {
                seen.note("checkpoints below the log");
                self.begin_hole(want, start);
            } else if is_eager || random.one_in(3) {
                let many = if is_eager { usize::MAX } else { 1 + random.below(8) };
                self.begin(batch_of(log, want, many), seen);
            }
        }
        if is_eager || random.one_in(3) {
            self.begin_commit();
        }
        self.look_after_commit();
        if self.publishing.is_none() && (is_eager || random.one_in(4)) {
            self.begin_publishing();
        }
        self.look_after_publishing(seen);
    }

    fn begin_publishing(&mut self) {
        let shares = buckets_of(self.holdings.owned().keys().copied(), &SHAPE);
        if !shares.is_empty() {
            let republisher = self.republisher.clone();
            self.publishing = Some(Task::new(async move { republisher.pass(&shares).await }));
        }
    }

    fn look_after_publishing(&mut self, seen: &mut Seen) {
        let Some(mut pass) = self.publishing.take() else { return };
        match pass.turn() {
            None => self.publishing = Some(pass),
            Some(Ok(_)) => {}
            Some(Err(_)) => seen.note("publishing tried again"),
        }
    }

    fn take_owned(&mut self, log: &Log) {
        if self.coming.is_none() {
            let (member, known) = (self.member.clone(), self.holdings.owned().clone());
            let mut owned = Task::new(async move { member.owned(&known).await });
            let Some(owned) = owned.turn() else { return };
            let came = self.holdings.handle_owned(owned);
            if !came.is_empty() {
                self.coming = Some((came, self.ask_checkpoints()));
            }
        }
        let Some((came, mut asking)) = self.coming.take() else { return };
        match asking.turn() {
            None => self.coming = Some((came, asking)),
            Some(Err(_)) => self.coming = Some((came, self.ask_checkpoints())),
            Some(Ok(checkpoints)) => {
                for partition in came {
                    let bounds = Bounds { start: log.start(partition), end: log.end(partition) };
                    let checkpoint = checkpoints.get(&partition).copied();
                    self.holdings.handle_start(partition, checkpoint, bounds);
                }
            }
        }
    }

    fn ask_checkpoints(&self) -> Task<Checkpoints> {
        let member = self.member.clone();
        Task::new(async move { member.checkpoints().await })
    }

    fn begin(&mut self, batch: Batch, seen: &mut Seen) {
        let Some(kept) = self.holdings.handle_batch(&batch) else { return };
        seen.note("batches");
        let write = self.write(self.keeper.assess(&batch));
        self.keeping.push(InWork { kept, write });
    }

    fn begin_hole(&mut self, want: Want, to: u64) {
        let Some(kept) = self.holdings.handle_hole(want.partition, to) else { return };
        let write = self.write(self.keeper.hole(want.partition, (want.offset, to)));
        self.keeping.push(InWork { kept, write });
    }

    fn write(&self, mut rows: Rows) -> Task<(Rows, Result<(), StoreError>)> {
        let keeper = self.keeper.clone();
        Task::new(async move {
            let done = keeper.write(&mut rows).await;
            (rows, done)
        })
    }

    fn look_after_writes(&mut self, seen: &mut Seen) {
        for mut work in std::mem::take(&mut self.keeping) {
            match work.write.turn() {
                None => self.keeping.push(work),
                Some((_, Ok(()))) => self.holdings.handle_kept(work.kept),
                Some((rows, Err(_))) => {
                    seen.note("writes tried again");
                    work.write = self.write(rows);
                    self.keeping.push(work);
                }
            }
        }
    }

    fn begin_commit(&mut self) {
        let marks = self.holdings.marks();
        if self.committing.is_some() || marks.is_empty() {
            return;
        }
        let (member, asked) = (self.member.clone(), marks.clone());
        let commit = Task::new(async move { member.commit(&asked).await });
        self.committing = Some((marks, commit));
    }

    fn look_after_commit(&mut self) {
        let Some((marks, mut commit)) = self.committing.take() else { return };
        match commit.turn() {
            None => self.committing = Some((marks, commit)),
            Some(Err(_)) => {} // Tried again with the next one.
            Some(Ok(commits)) => {
                for (mark, commit) in marks.into_iter().zip(commits) {
                    self.holdings.handle_commit(mark, commit);
                }
            }
        }
    }
}

fn batch_of(log: &Log, want: Want, many: usize) -> Batch {
    let Want { partition, offset } = want;
    let entries = log.entries(partition).iter().filter(|entry| entry.offset >= offset);
    let records: Vec<Record> = entries
        .take(many)
        .map(|entry| Record {
            offset: entry.offset,
            appended_at: entry.appended_at,
            timed_by: TimedBy::Log,
            key: None,
            value: entry.value.clone(),
            headers: Vec::new(),
        })
        .collect();
    let next = records.last().map_or(offset, |record| record.offset + 1);
    Batch { partition, records, next, end: log.end(partition) }
}

/// A moment from which nothing that a fault has put off is still on its way, and all is due that a
/// clock has said is due now.
pub const fn quiet_after(now: Moment) -> Moment {
    now.plus(Duration::from_secs(40)).plus(AHEAD_MAX)
}
