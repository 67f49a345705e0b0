//! What a node remembers of the store, so that a crowd that connects does not ask for the same
//! again and again: checkpoints, contents, and where the group broadcasts stand.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::{KeptParts, Unavailable};
use crate::base::{
    BroadcastId, EpochMillis, LogShape, Moment, Partition, Status, TargetType, Topic,
};
use crate::domain::{Broadcast, Ended, Membership, Served};
use crate::limits::keeping as limits;
use crate::ports::{Content, GroupRow, GroupWhat, Hole, LogError, StoreError};
use crate::wire::archive::MemberKind;

/// Up to where everything is durable, of every partition.
pub type Checkpoint = BTreeMap<Partition, u64>;

/// What is durable, and what can't be had any more.
#[derive(Clone)]
pub struct Durable {
    pub checkpoint: Arc<Checkpoint>,
    /// At least those below the checkpoint.
    pub holes: Arc<[Hole]>,
}

/// The checkpoints, asked for at most so often, and by one at a time.
#[derive(Default)]
pub struct Checkpoints {
    last: tokio::sync::Mutex<Option<(Moment, Durable)>>,
}

impl Checkpoints {
    /// As they were not long ago, and newer ones where those do not reach up to what a ring has.
    /// With the log away, as they were last: a checkpoint that is too low is right as well, but
    /// what lies behind it is served to whoever had it.
    pub async fn get(
        &self,
        parts: &KeptParts,
        shape: &LogShape,
        ring: Option<&Served>,
    ) -> Result<Durable, Unavailable> {
        let mut last = self.last.lock().await;
        if let Some((at, known)) = &*last {
            let checkpoint = &known.checkpoint;
            let reaches =
                |(partition, next)| checkpoint.get(&partition).is_some_and(|at| *at >= next);
            let is_enough = ring.is_none_or(|ring| ring.places().all(reaches));
            let age = if is_enough { limits::CHECKPOINT_AGE } else { limits::CHECKPOINT_AGE_SHORT };
            if parts.clock.moment().since(*at) < age {
                return Ok(known.clone());
            }
        }
        match ask(parts, shape).await {
            Ok(durable) => {
                *last = Some((parts.clock.moment(), durable.clone()));
                Ok(durable)
            }
            Err(error) => match &*last {
                Some((_, known)) => Ok(known.clone()),
                None => Err(error),
            },
        }
    }
}

/// A hole is noted before its owner commits beyond it, so the holes are read after the checkpoint.
async fn ask(parts: &KeptParts, shape: &LogShape) -> Result<Durable, Unavailable> {
    let mut checkpoint = parts.ownership.checkpoints().await?;
    for partition in shape.all_partitions() {
        // Nothing of it has been kept yet.
        checkpoint.entry(partition).or_insert(0);
    }
    let holes = parts.inbox.holes(shape.identity).await?;
    Ok(Durable { checkpoint: Arc::new(checkpoint), holes: holes.into() })
}

/// How far each partition of the log has been, as far as is known. That never falls.
#[derive(Default)]
pub struct Ends(Mutex<Checkpoint>);

impl Ends {
    /// Whether the log holds, or held, all of a partition below `next`. `read`: what it did hold.
    /// Nothing is asked about what is known, so a crowd that comes from a node that was ahead costs
    /// the brokers little.
    pub async fn have_been(
        &self,
        parts: &KeptParts,
        (partition, next): (Partition, u64),
        read: &Served,
    ) -> Result<bool, LogError> {
        let known = lock(&self.0).get(&partition).copied();
        if read.covers_up_to(partition, next) || known.is_some_and(|end| next <= end) {
            return Ok(true);
        }
        let end = parts.log.bounds(partition).await?.end;
        let mut ends = lock(&self.0);
        let known = ends.entry(partition).or_default();
        *known = end.max(*known);
        Ok(next <= *known)
    }
}

/// A content that was read, and what all who get it share.
#[derive(Debug)]
pub struct Known {
    /// Without the names of its audience.
    pub broadcast: Broadcast,
    pub status: Option<Status>,
    /// The frame of MESSAGE without its `id` line, as every member of a group audience gets it.
    pub shared_frame: OnceLock<Arc<[u8]>>,
}

impl Known {
    /// Whether it may be served at all. An older producer's has no status and counts as active.
    pub fn is_active(&self, now: EpochMillis) -> bool {
        matches!(self.status, None | Some(Status::Active))
            && self.broadcast.expires_at.is_none_or(|at| at > now)
    }
}

/// For whom a group broadcast is.
#[derive(Debug)]
pub struct Addressees {
    kind: TargetType,
    /// Sorted.
    names: Vec<String>,
}

impl Addressees {
    /// Whether somebody with these memberships is among them.
    pub fn admit(&self, members: &[Membership]) -> bool {
        let kind = match self.kind {
            TargetType::All => return true,
            TargetType::Role => MemberKind::Role,
            TargetType::Group => MemberKind::Group,
            TargetType::Product => MemberKind::Product,
            // An older producer's group event says nothing of its audience: nobody.
            TargetType::Selected => return false,
        };
        let is_named = |member: &&Membership| {
            self.names.binary_search_by(|name| name.as_str().cmp(&member.name)).is_ok()
        };
        members.iter().filter(|member| member.kind == kind).any(|member| is_named(&member))
    }
}

/// What broadcasts say and for whom they are; neither ever changes. They are remembered apart: who
/// connects gets a few of the contents, and has to be looked for among all addressees.
pub struct Contents {
    known: Mutex<Remembered<Known>>,
    addressees: Mutex<Remembered<Addressees>>,
    /// Whose turn it is to read addressees.
    turns: tokio::sync::Mutex<()>,
    /// What has just ended: what is being read of it now may still say that it is active.
    ended: Mutex<Ended>,
}

type Found<T> = HashMap<BroadcastId, Arc<T>>;

impl Default for Contents {
    fn default() -> Self {
        Self {
            known: Mutex::new(Remembered::new(limits::CONTENTS_BYTES_MAX)),
            addressees: Mutex::new(Remembered::new(limits::ADDRESSEES_BYTES_MAX)),
            turns: tokio::sync::Mutex::default(),
            ended: Mutex::default(),
        }
    }
}

impl Contents {
    /// What those say that exist.
    pub async fn get(
        &self,
        parts: &KeptParts,
        ids: &[BroadcastId],
    ) -> Result<Found<Known>, StoreError> {
        let (mut found, missing) = lock(&self.known).get(ids);
        self.read(parts, &missing, |id, known, _| drop(found.insert(id, known))).await?;
        Ok(found)
    }

    /// For whom those are that exist. A crowd that asks for the same at once takes turns in reading
    /// it, and nothing is read twice.
    pub async fn addressees(
        &self,
        parts: &KeptParts,
        ids: &[BroadcastId],
    ) -> Result<Found<Addressees>, StoreError> {
        let (mut found, missing) = lock(&self.addressees).get(ids);
        for ids in missing.chunks(limits::CONTENTS_READ) {
            let _turn = self.turns.lock().await;
            let (known, missing) = lock(&self.addressees).get(ids);
            found.extend(known);
            self.read(parts, &missing, |id, _, named| drop(found.insert(id, named))).await?;
        }
        Ok(found)
    }

    /// Broadcasts that have ended: how they stand is asked anew.
    pub fn forget(&self, ids: &[BroadcastId], now: Moment) {
        let mut ended = lock(&self.ended);
        ended.forget(now);
        ids.iter().for_each(|id| ended.insert(*id, now.plus(limits::ENDED_AGE)));
        drop(ended);
        let mut known = lock(&self.known);
        ids.iter().for_each(|id| drop(known.0.remove(id)));
    }

    /// When a broadcast ends, if that is known here.
    pub fn ends_at(&self, id: BroadcastId) -> Option<EpochMillis> {
        lock(&self.known).0.get(&id).and_then(|known| known.broadcast.expires_at)
    }

    /// What was read stays known if the question is given up meanwhile, so that the next one gets
    /// further.
    async fn read(
        &self,
        parts: &KeptParts,
        ids: &[BroadcastId],
        mut found: impl FnMut(BroadcastId, Arc<Known>, Arc<Addressees>),
    ) -> Result<(), StoreError> {
        for ids in ids.chunks(limits::CONTENTS_READ) {
            let contents = parts.inbox.contents(ids).await?;
            for Content { mut broadcast, status } in contents.into_iter().flatten() {
                let id = broadcast.id;
                let mut names = mem::take(&mut broadcast.target.ids);
                names.sort_unstable();
                let named = Arc::new(Addressees { kind: broadcast.target.r#type, names });
                let known = Known { broadcast, status, shared_frame: OnceLock::new() };
                let known = Arc::new(known);
                lock(&self.addressees).0.insert(id, named.clone());
                if !lock(&self.ended).contains(id) {
                    lock(&self.known).0.insert(id, known.clone());
                }
                found(id, known, named);
            }
        }
        Ok(())
    }
}

/// As much as goes into so many bytes; what is asked for least makes room for more.
struct Remembered<T>(Cache<BroadcastId, Arc<T>, Bytes>);

impl<T> Remembered<T>
where
    Bytes: Weighter<BroadcastId, Arc<T>>,
{
    fn new(bytes_max: usize) -> Self {
        let bytes_max = bytes_max as u64;
        Self(Cache::with_weighter(limits::CONTENTS_EXPECTED, bytes_max, Bytes))
    }

    /// Those of them that are here, and which are not.
    fn get(&self, ids: &[BroadcastId]) -> (Found<T>, Vec<BroadcastId>) {
        let mut found = HashMap::with_capacity(ids.len());
        let mut missing = Vec::new();
        for id in ids {
            match self.0.get(id) {
                Some(value) => drop(found.insert(*id, value.clone())),
                None => missing.push(*id),
            }
        }
        missing.sort_unstable();
        missing.dedup();
        (found, missing)
    }
}

/// What remembering costs.
#[derive(Clone)]
struct Bytes;

impl Weighter<BroadcastId, Arc<Known>> for Bytes {
    fn weight(&self, _: &BroadcastId, known: &Arc<Known>) -> u64 {
        // With the shared frame, which repeats the content.
        (size_of::<Known>() + 2 * known.broadcast.content.len()) as u64
    }
}

impl Weighter<BroadcastId, Arc<Addressees>> for Bytes {
    fn weight(&self, _: &BroadcastId, addressees: &Arc<Addressees>) -> u64 {
        let names = addressees.names.iter();
        let names: usize = names.map(|name| name.len() + size_of::<String>()).sum();
        (size_of::<Addressees>() + names) as u64
    }
}

/// The group broadcasts below the checkpoint, by place. Rows below a checkpoint are durable and
/// never change, so each is read once.
#[derive(Default)]
pub struct Groups {
    partitions: tokio::sync::Mutex<BTreeMap<u16, Partial>>,
}

/// What has been read of one partition.
#[derive(Debug, Default)]
struct Partial {
    /// Everything below has been read.
    next: u64,
    rows: BTreeMap<u64, GroupRow>,
    /// Whose rows those are, and where each stands. A broadcast that was published twice is served
    /// at its first place, also to who stands between the two.
    broadcasts: HashMap<BroadcastId, u64>,
    /// Word of those that have ended.
    removals: BTreeMap<u64, GroupRow>,
    /// When what has ended was dropped last.
    forgotten_at: Option<EpochMillis>,
}

impl Groups {
    /// The rows of each partition from a place up to the checkpoint; most of what has ended is left
    /// out. Of removals those that take back what stands before the place.
    pub async fn between(
        &self,
        parts: &KeptParts,
        shape: &LogShape,
        (from, checkpoint): (&[u64], &Checkpoint),
        now: EpochMillis,
    ) -> Result<Vec<GroupRow>, StoreError> {
        let mut partitions = self.partitions.lock().await;
        let mut found = Vec::new();
        for (index, from) in (0..).zip(from) {
            let partition = Partition { topic: Topic::Group, index };
            let to = checkpoint.get(&partition).copied().unwrap_or(0);
            let partial = partitions.entry(index).or_default();
            while partial.next < to {
                let (log, next) = (shape.identity, partial.next);
                let rows = parts.inbox.group(log, index, next, limits::ROWS_READ).await?;
                let is_end = rows.len() < limits::ROWS_READ;
                partial.take(rows, to, is_end);
            }
            partial.forget(now);
            found.extend(partial.rows.range(*from..to.max(*from)).map(|(_, row)| *row));
            found.extend(partial.removed(*from, to));
            // What is read for one user may be much.
            tokio::task::yield_now().await;
        }
        Ok(found)
    }
}

impl Partial {
    /// Takes rows in; those from `to` on may not be all.
    fn take(&mut self, rows: Vec<GroupRow>, to: u64, is_end: bool) {
        let last = rows.last().map(|row| row.place.position.offset);
        for row in rows {
            let offset = row.place.position.offset;
            match (row.what, self.broadcasts.entry(row.broadcast)) {
                _ if offset >= to => {}
                (GroupWhat::Removed, _) => drop(self.removals.insert(offset, row)),
                (GroupWhat::Created, Entry::Vacant(first)) => {
                    first.insert(offset);
                    self.rows.insert(offset, row);
                }
                (GroupWhat::Created, Entry::Occupied(_)) => {}
            }
        }
        self.next = match last {
            Some(last) if !is_end => to.min(last + 1),
            _ => to,
        };
    }

    /// Word of what ended in `from..to` and stands before it, as far as is known.
    fn removed(&self, from: u64, to: u64) -> impl Iterator<Item = GroupRow> {
        let is_before = move |row: &GroupRow| {
            self.broadcasts.get(&row.broadcast).is_none_or(|created| *created < from)
        };
        self.removals.range(from..to.max(from)).map(|(_, row)| *row).filter(is_before)
    }

    /// Drops what has ended, from time to time.
    fn forget(&mut self, now: EpochMillis) {
        // Before it, the clock has been set back.
        let is_recent = |at: EpochMillis| (at..at.plus(limits::FORGET_PACE)).contains(&now);
        if self.forgotten_at.is_some_and(is_recent) {
            return;
        }
        self.forgotten_at = Some(now);
        let Self { rows, broadcasts, removals, .. } = self;
        // They are read once, and the clock may be ahead, and be set back.
        let gone_by = now.minus(limits::CLOCKS_DIFFER);
        removals.retain(|_, row| row.keep_until > gone_by);
        rows.retain(|_, row| {
            let stays = row.keep_until > gone_by;
            if !stays {
                broadcasts.remove(&row.broadcast);
            }
            stays
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole whoever panicked while holding it: an entry too many or too few.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
