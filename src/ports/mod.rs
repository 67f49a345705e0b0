//! Floor 2: the seams to the world, as traits. Implementations stand on floor 3.
//!
//! `Log` and `Store` are called on the control threads only; `Clock` everywhere.

mod backoff;
mod clock;
mod descriptors;
mod log;
mod store;

pub use backoff::Backoff;
pub use clock::{Clock, SystemClock};
pub use descriptors::Descriptors;
pub use log::{Batch, Bounds, Header, Log, LogError, NewRecord, Record, Want};
pub use store::{BroadcastRow, Claim, ListFilter, ListPlace, OutboxRow, Store, StoreError};
