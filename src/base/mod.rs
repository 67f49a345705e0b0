//! Floor 0: the words that every other floor uses.
//!
//! Plain values without behaviour of their own: ids, names of the contract, places in the log,
//! moments in time. Nothing here reads a clock, allocates more than its value, or does I/O.

mod ids;
mod log;
mod moment;
mod shards;
mod words;

pub use ids::{BroadcastId, USER_ID_BYTES_MAX, UserId, UserIdError};
pub use log::{LogIdentity, LogShape, Partition, Position, Topic, mark_of_user, partition_of_key};
pub use moment::{EpochMillis, Moment};
pub use shards::Sharding;
pub use words::{End, EventType, Priority, Status, TargetType};
