//! Floor 3, control threads: the store, and with the embedded parts also the log.

mod dead_record;
pub mod embedded;
pub mod scylla;
