//! Floor 1: what Corecast is, as plain state machines and rules.
//!
//! Nothing here reads a clock, draws a random number, waits or does I/O: inputs go in by
//! `handle_*`, effects come out by `poll_*`, time is an argument. The simulator runs this very
//! code.

mod broadcast;

pub use broadcast::{Broadcast, Target};
