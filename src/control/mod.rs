//! Floor 3, control threads: what the node does with log and store besides reading and serving.

mod create;
mod reports;
mod threads;

pub use create::{CreateError, Creator};
pub use reports::{Handover, run_reports};
pub use threads::{Signals, Threads};
