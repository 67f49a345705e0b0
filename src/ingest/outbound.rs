//! What has been read and waits for a shard whose lane is full.
//!
//! While something waits for a shard, its partitions are not read, so no more waits than one fetch
//! has brought. The others go on.

use std::collections::VecDeque;

use super::IngestError;
use crate::base::{LogShape, Partition, Sharding};
use crate::lane::{RefusalReason, Sender, ToShard};

pub(super) struct Outbound {
    sharding: Sharding,
    shards: Vec<Shard>,
}

struct Shard {
    lane: Sender<ToShard>,
    waiting: VecDeque<ToShard>,
}

impl Outbound {
    /// A lane to each shard, in the shards' order. Fails without shards.
    pub fn new(lanes: Vec<Sender<ToShard>>) -> Result<Self, IngestError> {
        let sharding = u16::try_from(lanes.len()).ok().and_then(Sharding::new);
        let sharding = sharding.ok_or(IngestError::ShardGone)?;
        let shards = lanes.into_iter().map(|lane| Shard { lane, waiting: VecDeque::new() });
        Ok(Self { sharding, shards: shards.collect() })
    }

    /// Sends to the owner of a partition.
    pub fn send(
        &mut self,
        partition: Partition,
        shape: &LogShape,
        item: ToShard,
    ) -> Result<(), IngestError> {
        let owner = usize::from(self.sharding.of_partition(partition, shape));
        self.shards[owner].send(item)
    }

    pub fn send_to_all(&mut self, item: impl Fn() -> ToShard) -> Result<(), IngestError> {
        self.shards.iter_mut().try_for_each(|shard| shard.send(item()))
    }

    /// Puts into the lanes what waits, as far as they take it.
    pub fn flush(&mut self) -> Result<(), IngestError> {
        self.shards.iter_mut().try_for_each(Shard::flush)
    }

    /// Whether the owner of a partition has taken all that was read for it.
    pub fn has_room(&self, partition: Partition, shape: &LogShape) -> bool {
        self.shards[usize::from(self.sharding.of_partition(partition, shape))].waiting.is_empty()
    }
}

impl Shard {
    /// Items keep their order.
    fn send(&mut self, item: ToShard) -> Result<(), IngestError> {
        self.waiting.push_back(item);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), IngestError> {
        while let Some(item) = self.waiting.pop_front() {
            if let Err(refusal) = self.lane.try_send(item) {
                if refusal.reason == RefusalReason::Closed {
                    return Err(IngestError::ShardGone);
                }
                self.waiting.push_front(refusal.item);
                break;
            }
        }
        Ok(())
    }
}
