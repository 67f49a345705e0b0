//! What a node remembers of the store, so that a crowd that connects does not ask for the same
//! again and again: checkpoints, contents, and where the group broadcasts stand.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{KeptParts, Unavailable};
use crate::base::{
    BroadcastId, EpochMillis, LogShape, Moment, Partition, Status, TargetType, Topic,
};
use crate::domain::{Broadcast, Membership};
use crate::limits::keeping as limits;
use crate::ports::{Content, GroupRow, StoreError};
use crate::wire::archive::MemberKind;

/// Up to where everything is durable, of every partition.
pub type Checkpoint = BTreeMap<Partition, u64>;

/// The checkpoints, asked for at most so often, and by one at a time.
#[derive(Default)]
pub struct Checkpoints {
    last: tokio::sync::Mutex<Option<(Moment, Arc<Checkpoint>)>>,
}

impl Checkpoints {
    /// As they were not long ago. With the log away, as they were last: a checkpoint that is too
    /// low is right as well.
    pub async fn get(
        &self,
        parts: &KeptParts,
        shape: &LogShape,
    ) -> Result<Arc<Checkpoint>, Unavailable> {
        let mut last = self.last.lock().await;
        if let Some((at, known)) = &*last
            && parts.clock.moment().since(*at) < limits::CHECKPOINT_AGE
        {
            return Ok(known.clone());
        }
        match ask(parts, shape).await {
            Ok(checkpoint) => {
                let checkpoint = Arc::new(checkpoint);
                *last = Some((parts.clock.moment(), checkpoint.clone()));
                Ok(checkpoint)
            }
            Err(error) => match &*last {
                Some((_, known)) => Ok(known.clone()),
                None => Err(error),
            },
        }
    }
}

async fn ask(parts: &KeptParts, shape: &LogShape) -> Result<Checkpoint, Unavailable> {
    let mut checkpoint = parts.ownership.checkpoints().await?;
    for partition in shape.all_partitions() {
        if let Entry::Vacant(place) = checkpoint.entry(partition) {
            // Nothing of it has been kept yet.
            place.insert(parts.log.bounds(partition).await?.start);
        }
    }
    Ok(checkpoint)
}

/// A content that was read, and what all who get it share.
#[derive(Debug)]
pub struct Known {
    pub broadcast: Broadcast,
    pub status: Option<Status>,
    /// The frame of MESSAGE without its `id` line, as every member of a group audience gets it.
    pub shared_frame: OnceLock<Arc<[u8]>>,
}

impl Known {
    fn new(content: Content) -> Self {
        let Content { mut broadcast, status } = content;
        broadcast.target.ids.sort_unstable();
        Self { broadcast, status, shared_frame: OnceLock::new() }
    }

    /// Whether it may be served at all. An older producer's has no status and counts as active.
    pub fn is_active(&self, now: EpochMillis) -> bool {
        matches!(self.status, None | Some(Status::Active))
            && self.broadcast.expires_at.is_none_or(|at| at > now)
    }

    /// Whether somebody with these memberships is in its group audience.
    pub fn admits(&self, members: &[Membership]) -> bool {
        let target = &self.broadcast.target;
        let kind = match target.r#type {
            TargetType::All => return true,
            TargetType::Role => MemberKind::Role,
            TargetType::Group => MemberKind::Group,
            TargetType::Product => MemberKind::Product,
            // An older producer's group event says nothing of its audience: nobody.
            TargetType::Selected => return false,
        };
        let is_named = |member: &&Membership| {
            target.ids.binary_search_by(|id| id.as_str().cmp(&member.name)).is_ok()
        };
        members.iter().filter(|member| member.kind == kind).any(|member| is_named(&member))
    }

    fn bytes(&self) -> usize {
        let Broadcast { content, target, .. } = &self.broadcast;
        let names: usize = target.ids.iter().map(|id| id.len() + size_of::<String>()).sum();
        // With the shared frame, which repeats the content.
        size_of::<Self>() + 2 * content.len() + names
    }
}

/// Contents by broadcast. They never change.
#[derive(Default)]
pub struct Contents {
    known: Mutex<(usize, HashMap<BroadcastId, Arc<Known>>)>,
}

impl Contents {
    /// Those that exist. What was read stays known if the question is given up meanwhile, so that
    /// the next one gets further.
    pub async fn get(
        &self,
        parts: &KeptParts,
        ids: &[BroadcastId],
    ) -> Result<HashMap<BroadcastId, Arc<Known>>, StoreError> {
        let mut found = HashMap::with_capacity(ids.len());
        let mut missing = Vec::new();
        {
            let known = self.lock();
            for id in ids {
                match known.1.get(id) {
                    Some(content) => drop(found.insert(*id, content.clone())),
                    None => missing.push(*id),
                }
            }
        }
        missing.sort_unstable();
        missing.dedup();
        for ids in missing.chunks(limits::CONTENTS_READ) {
            let contents = parts.inbox.contents(ids).await?;
            for content in contents.into_iter().flatten() {
                let content = Arc::new(Known::new(content));
                found.insert(content.broadcast.id, content.clone());
                self.note(content);
            }
        }
        Ok(found)
    }

    /// When a broadcast ends, if that is known here.
    pub fn ends_at(&self, id: BroadcastId) -> Option<EpochMillis> {
        self.lock().1.get(&id).and_then(|content| content.broadcast.expires_at)
    }

    fn note(&self, content: Arc<Known>) {
        let mut known = self.lock();
        if known.0 > limits::CONTENTS_BYTES_MAX {
            *known = (0, HashMap::new());
        }
        known.0 += content.bytes();
        known.1.insert(content.broadcast.id, content);
    }

    fn lock(&self) -> MutexGuard<'_, (usize, HashMap<BroadcastId, Arc<Known>>)> {
        // Whole whoever panicked while holding it: an entry too many or too few.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Whose rows those are. A broadcast that was published twice is served at its first place,
    /// also to who stands between the two.
    broadcasts: HashSet<BroadcastId>,
}

impl Groups {
    /// The rows of each partition from a place up to the checkpoint; what has ended is left out.
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
            if offset < to && self.broadcasts.insert(row.broadcast) {
                self.rows.insert(offset, row);
            }
        }
        self.next = match last {
            Some(last) if !is_end => to.min(last + 1),
            _ => to,
        };
    }

    /// Drops what has ended.
    fn forget(&mut self, now: EpochMillis) {
        let Self { rows, broadcasts, .. } = self;
        rows.retain(|_, row| {
            let stays = row.keep_until > now;
            if !stays {
                broadcasts.remove(&row.broadcast);
            }
            stays
        });
    }
}
