//! Corecast: an edge gateway that takes broadcast events from a log and holds the SSE streams of
//! very large audiences.
//!
//! The rooms stand on floors and import downwards only (`docs/architecture.md`; `tests/tidy.rs`
//! checks it). They are listed here from the ground up.

// Floor 0: plain values and every bound.
pub mod base;
pub mod limits;

// Floor 1: pure. No runtime, no clock, no I/O.
pub mod domain;
pub mod wire;

// Floor 2: the only doors between threads, and the seams to the world.
pub mod lane;
pub mod ports;

// Floor 3: shard threads on one side, control threads on the other; they talk by lanes.
pub mod edge;
pub mod shard;

pub mod control;
pub mod ingest;
pub mod owner;
pub mod store;

// Floor 4: configuration, health, metrics.
pub mod ops;

// Floor 5: the admin API.
pub mod admin;

// Roof.
pub mod boot;
