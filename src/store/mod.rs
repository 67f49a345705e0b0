//! Floor 3, control threads: the store, and with the embedded parts also the log.

pub mod embedded;
pub mod scylla;
