//! Streams that the ring has lost: the log is read once for all of them, and neither a slow one
//! among them nor their number holds up anybody else; nor is it read once for each shard.

mod bench;
mod node;
mod overtaken;
mod passes;
mod turns;
