//! Floor 3, control threads: what the node does with log and store besides reading and serving.

mod create;
mod inboxes;
mod relay;
mod reports;
mod rereads;
mod threads;

pub use create::{CreateError, Creator, Unfinished};
pub use inboxes::{InboxDesk, Inboxes, KeptParts, KeptStore, Unavailable, inboxes};
pub use relay::Relay;
pub use reports::{Handover, run_reports};
pub use rereads::{RereadDesk, Rereads, rereads};
pub use threads::{Signals, Threads};
