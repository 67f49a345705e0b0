//! Floor 2: the seams to the world, as traits. Implementations stand on floor 3.
//!
//! `Log`, `Ownership`, `Store`, `Endings`, `Inbox`, `Parking`, `DeadLetterRows` and `Audit` are
//! called on the control threads only; `Clock` everywhere.

mod audit;
mod backoff;
mod clock;
mod control;
mod dead_letters;
mod descriptors;
mod endings;
mod inbox;
mod log;
mod ownership;
mod parking;
mod rooms;
mod stands;
mod store;
mod together;

pub use audit::{Audit, AuditLine, AuditPlace, Audited, AuditedCounts};
pub use backoff::Backoff;
pub use clock::{Clock, SystemClock};
pub use control::{ControlRead, ControlTopic};
pub use dead_letters::{
    DeadLetterId, DeadLetterPlace, DeadLetterRow, DeadLetterRows, Original, ShownDeadLetter,
};
pub use descriptors::Descriptors;
pub use endings::{Change, Due, Ending, Endings, NotedEnding};
pub use inbox::{
    Content, Delivery, GroupRow, GroupWhat, Hole, Inbox, InboxRow, InboxWrite, Place, Progress,
    Removal,
};
pub use log::{
    Batch, Bounds, Header, Log, LogError, LogNames, MovedRecord, NewRecord, Record, TimedBy, Want,
};
pub use ownership::{Commit, Mark, Owned, Ownership, Standing, Tenure};
pub use parking::{Bucket, Parked, Parking, buckets_of};
pub use rooms::Rooms;
pub use stands::stands;
pub use store::{BroadcastRow, Claim, ListFilter, ListPlace, OutboxRow, Store, StoreError};
pub use together::join_all;
