//! How far partitions may be filled with what is published again (design section 6): so that a
//! record that stands there twice is found near enough to the first to be known for a repeat.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{Log, LogError, Ownership};
use crate::base::Partition;
use crate::limits::log::AGAIN_RECORDS;

/// By the checkpoints of one moment, which comes before it is asked what stands where it is served:
/// what is not found there lies above them.
#[derive(Debug)]
pub struct Rooms {
    checkpoints: BTreeMap<Partition, u64>,
    rooms: BTreeMap<Partition, Room>,
}

#[derive(Debug)]
struct Room {
    checkpoint: u64,
    left: u64,
}

impl Rooms {
    pub async fn look(ownership: &dyn Ownership) -> Result<Self, LogError> {
        Ok(Self { checkpoints: ownership.checkpoints().await?, rooms: BTreeMap::new() })
    }

    /// Takes room for a record; the checkpoint that it carries as `after`. `None`: the partition
    /// is full until its owner has come nearer to its end.
    pub async fn take(&mut self, log: &dyn Log, to: Partition) -> Result<Option<u64>, LogError> {
        let room = match self.rooms.entry(to) {
            Entry::Occupied(room) => room.into_mut(),
            Entry::Vacant(place) => {
                let bounds = log.bounds(to).await?;
                // Without a checkpoint its owner begins at the start.
                let checkpoint = self.checkpoints.get(&to).copied().unwrap_or(bounds.start);
                let full = checkpoint.saturating_add(AGAIN_RECORDS);
                place.insert(Room { checkpoint, left: full.saturating_sub(bounds.end) })
            }
        };
        let Some(left) = room.left.checked_sub(1) else { return Ok(None) };
        room.left = left;
        Ok(Some(room.checkpoint))
    }
}
