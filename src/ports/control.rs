//! The control topic: what the nodes of a fleet tell each other, in one order for all.
//!
//! `tests/log_suite` states what every implementation must do.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::LogError;

/// What one reading brings.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ControlRead {
    /// Offset and value, in offset order. A record without a value has an empty one.
    pub records: Vec<(u64, Bytes)>,
    /// Where to go on: above every record here.
    pub next: u64,
}

#[async_trait]
pub trait ControlTopic: Send + Sync {
    /// Where the next record will stand.
    async fn end(&self) -> Result<u64, LogError>;

    /// Appends a record and returns its offset: from then on every reader meets it. On an error it
    /// may have been appended.
    async fn append(&self, value: Bytes) -> Result<u64, LogError>;

    /// Records from an offset on. Waits up to `wait_max` for the first; then returns none.
    /// `OutOfRange`: some that stood there may be gone.
    async fn read(&self, from: u64, wait_max: Duration) -> Result<ControlRead, LogError>;
}
