//! Floor 1: what Corecast is, as plain state machines and rules.
//!
//! Nothing here reads a clock, draws a random number, waits or does I/O: inputs go in by
//! `handle_*`, effects come out by `poll_*`, time is an argument. The simulator runs this very
//! code.

pub mod access;
mod audience;
mod backlog;
mod broadcast;
mod decode;
mod draft;
mod effect;
mod ended;
mod exchange;
mod fleet;
mod intake;
mod judge;
mod lifecycle;
mod redrive;
mod repeats;
mod ring;
mod slab;
mod streams;
mod vector;
mod wheel;

pub use audience::Membership;
pub use backlog::{
    Backlog, Candidate, Gap, KeptMessage, Note, Presented, Reach, Row, SINCE_EVER, What, in_order,
};
pub use broadcast::{Broadcast, Target};
pub use decode::{Decoder, Finding};
pub use draft::{Draft, DraftError, Violation};
pub use effect::{Aside, Assessor, Effect, Kept};
pub use ended::Ended;
pub use exchange::{Exchange, Passed};
pub use fleet::{Appended, Beat, Fleet};
pub use intake::{Intake, Taken};
pub use judge::{BadRecord, Rules, Unserved};
pub use lifecycle::may_become;
pub use redrive::{NotRedrivable, Redrive};
pub use repeats::Repeats;
pub use ring::{Ring, RingLimits};
pub use slab::Slab;
pub use streams::{
    CloseReason, Closed, Open, Outcome, ReadAgain, Reread, StreamCounters, StreamKey, Streams,
    StreamsOptions, Unread, Write,
};
pub use vector::{Served, Vector};
