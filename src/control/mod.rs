//! Floor 3, control threads: what the node does with log and store besides reading and serving.

mod create;
mod dead_letters;
mod endings;
mod inboxes;
mod relay;
mod reports;
mod rereads;
mod threads;
mod topic;
mod unfinished;

pub use create::{CreateError, Creator};
pub use dead_letters::{Bulk, NotRedriven, RedriveCounters, RedriveError, Redriven, Redriver};
pub use endings::{EndError, EndRelay, Ender, Expiry, Removals};
pub use inboxes::{InboxDesk, Inboxes, KeptParts, KeptStore, Unavailable, inboxes};
pub use relay::Relay;
pub use reports::{Desks, Handover, run_reports};
pub use rereads::{RereadDesk, Rereads, rereads};
pub use threads::{Signals, Threads};
pub use topic::{ControlCounters, ControlDesk, Follower, FollowerParts, Hearing, control_topic};
pub use unfinished::Unfinished;
