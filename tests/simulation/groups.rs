//! Who owns which partition: a coordinator with sessions and generations, that loses answers and
//! commits, and lets a member know late what it has lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use corecast::base::{Moment, Partition};
use corecast::ports::{Commit, LogError, Mark, Owned, Ownership, Standing, Tenure};

use crate::random::{Random, Seen};
use crate::sky::SHAPE;

/// A member that has said nothing for so long is taken for dead.
const SESSION: Duration = Duration::from_secs(6);

struct Member {
    beat_at: Moment,
    /// What it believes to own.
    view: Owned,
    /// It is told then what it really owns.
    told_at: Moment,
}

pub struct Table {
    random: Random,
    now: Moment,
    pub has_faults: bool,
    /// The coordinator is not there until then. Sessions count from its return.
    pub away_until: Moment,
    members: BTreeMap<u64, Member>,
    assigned: BTreeMap<Partition, (u64, Tenure)>,
    committed: BTreeMap<Partition, u64>,
    /// Commits that are on their way though they were answered.
    flying: Vec<(Moment, u64, Mark)>,
    tenures: u64,
    ids: u64,
    pub seen: Seen,
}

#[derive(Clone)]
pub struct Groups(Arc<Mutex<Table>>);

/// One node's part in it.
pub struct Membership {
    groups: Groups,
    id: u64,
}

impl Groups {
    pub fn new(random: Random) -> Self {
        Self(Arc::new(Mutex::new(Table {
            random,
            now: Moment(0),
            has_faults: true,
            away_until: Moment(0),
            members: BTreeMap::new(),
            assigned: BTreeMap::new(),
            committed: BTreeMap::new(),
            flying: Vec::new(),
            tenures: 0,
            ids: 0,
            seen: Seen::default(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Table> {
        // What fails is told by the first panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn join(&self) -> Membership {
        let mut table = self.lock();
        table.ids += 1;
        let id = table.ids;
        if !table.is_away() {
            table.enter(id);
        }
        Membership { groups: self.clone(), id }
    }

    pub fn handle_time(&self, now: Moment) {
        let mut table = self.lock();
        table.now = now;
        let (landing, flying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut table.flying).into_iter().partition(|(at, ..)| *at <= now);
        table.flying = flying;
        for (_, member, mark) in landing {
            table.seen.note("late commits");
            table.commit(member, mark);
        }
        let before = table.members.len();
        let back_at = table.away_until;
        table.members.retain(|_, member| member.beat_at.max(back_at).plus(SESSION) > now);
        if table.members.len() < before {
            table.rebalance(0);
        }
    }

    async fn wait_until(&self, at: Moment) {
        std::future::poll_fn(
            |_| {
                if self.lock().now >= at { Poll::Ready(()) } else { Poll::Pending }
            },
        )
        .await;
    }
}

impl Table {
    /// The topics are deleted, and everything that was said of them. Those in their place begin at
    /// `first`, as others do at 0.
    pub fn forget_all(&mut self, first: u64) {
        self.members.clear();
        self.assigned.clear();
        self.committed = SHAPE.all_partitions().map(|partition| (partition, first)).collect();
        self.flying.clear();
    }

    fn is_away(&self) -> bool {
        self.now < self.away_until
    }

    pub fn committed(&self) -> &BTreeMap<Partition, u64> {
        &self.committed
    }

    /// Gives every partition of a member that is gone to another one, and moves up to `many` of
    /// the others.
    pub fn rebalance(&mut self, many: usize) {
        let members: Vec<u64> = self.members.keys().copied().collect();
        if members.is_empty() || self.is_away() {
            return;
        }
        let partitions: Vec<Partition> = SHAPE.all_partitions().collect();
        let moved: Vec<Partition> =
            (0..many).map(|_| partitions[self.random.below(partitions.len())]).collect();
        for partition in partitions {
            let owner = self.assigned.get(&partition).map(|(member, _)| *member);
            let is_lost = owner.is_none_or(|owner| !self.members.contains_key(&owner));
            if is_lost || moved.contains(&partition) {
                self.tenures += 1;
                let member = members[self.random.below(members.len())];
                self.assigned.insert(partition, (member, Tenure(self.tenures)));
                self.seen.count("partitions that moved", u64::from(owner.is_some()));
            }
        }
        for id in members {
            let late = if self.has_faults { self.random.millis(3_000) } else { Duration::ZERO };
            let told_at = self.now.plus(late);
            if let Some(member) = self.members.get_mut(&id) {
                member.told_at = told_at;
            }
        }
    }

    fn enter(&mut self, id: u64) {
        let member = Member { beat_at: self.now, view: Owned::new(), told_at: self.now };
        self.members.insert(id, member);
        // It has forgotten what it owned, so what comes to it comes anew.
        for (_, tenure) in self.assigned.values_mut().filter(|(member, _)| *member == id) {
            self.tenures += 1;
            *tenure = Tenure(self.tenures);
        }
        self.rebalance(3);
    }

    /// As the coordinator does it: whoever owns it may say anything.
    fn commit(&mut self, member: u64, mark: Mark) -> Commit {
        if self.assigned.get(&mark.partition) != Some(&(member, mark.tenure)) {
            self.seen.note("refused commits");
            return Commit::Lost;
        }
        let before = self.committed.insert(mark.partition, mark.next);
        self.seen.count("checkpoints that fell", u64::from(before > Some(mark.next)));
        Commit::Done
    }
}

impl Membership {
    /// It leaves, so that others own at once what it did.
    pub fn leave_now(&self) {
        let mut table = self.groups.lock();
        if table.is_away() {
            return;
        }
        table.members.remove(&self.id);
        table.rebalance(0);
    }

    /// The member lives, and hears what it owns.
    pub fn beat(&self) {
        let mut table = self.groups.lock();
        if table.is_away() {
            return;
        }
        if !table.members.contains_key(&self.id) {
            // It stood still for too long, and its partitions went to others meanwhile.
            table.seen.note("sessions that ended");
            table.enter(self.id);
        }
        let (now, id) = (table.now, self.id);
        let own = table.assigned.iter().filter(|(_, (member, _))| *member == id);
        let view: Owned = own.map(|(partition, (_, tenure))| (*partition, *tenure)).collect();
        let Some(member) = table.members.get_mut(&id) else { return };
        member.beat_at = now;
        if member.told_at <= now {
            member.view = view;
        }
    }
}

#[async_trait]
impl Ownership for Membership {
    async fn run(&self, _: &(dyn Fn(Standing) + Sync)) -> LogError {
        std::future::pending().await
    }

    async fn owned(&self, known: &Owned) -> Owned {
        std::future::poll_fn(|_| {
            let table = self.groups.lock();
            match table.members.get(&self.id) {
                Some(member) if member.view != *known => Poll::Ready(member.view.clone()),
                _ => Poll::Pending,
            }
        })
        .await
    }

    async fn checkpoints(&self) -> Result<BTreeMap<Partition, u64>, LogError> {
        let (early, done_at, is_away) = {
            let mut table = self.groups.lock();
            let is_slow = table.has_faults && table.random.one_in(4);
            let delay = if is_slow { table.random.millis(2_000) } else { Duration::ZERO };
            let is_away = table.is_away() || table.has_faults && table.random.one_in(12);
            let early = table.random.one_in(2).then(|| table.committed.clone());
            (early, table.now.plus(delay), is_away)
        };
        self.groups.wait_until(done_at).await;
        if is_away {
            return Err(LogError::Away("as drawn".to_owned()));
        }
        Ok(early.unwrap_or_else(|| self.groups.lock().committed.clone()))
    }

    async fn commit(&self, marks: &[Mark]) -> Result<Vec<Commit>, LogError> {
        let done_at = {
            let mut table = self.groups.lock();
            let is_slow = table.has_faults && table.random.one_in(3);
            let delay = if is_slow { table.random.millis(3_000) } else { Duration::ZERO };
            table.now.plus(delay)
        };
        self.groups.wait_until(done_at).await;
        let mut table = self.groups.lock();
        if table.is_away() {
            return Err(LogError::Away("the coordinator is away".to_owned()));
        }
        if !table.has_faults {
            return Ok(marks.iter().map(|mark| table.commit(self.id, *mark)).collect());
        }
        let away = || Err(LogError::Away("as drawn".to_owned()));
        match table.random.below(12) {
            0 => {
                table.seen.note("commits lost on their way");
                away()
            }
            1 => {
                for mark in marks {
                    let at = table.now;
                    let at = at.plus(table.random.millis(10_000));
                    table.flying.push((at, self.id, *mark));
                }
                away()
            }
            2 => {
                for mark in marks {
                    table.commit(self.id, *mark);
                }
                away()
            }
            _ => Ok(marks.iter().map(|mark| table.commit(self.id, *mark)).collect()),
        }
    }

    async fn leave(&self) {}
}
