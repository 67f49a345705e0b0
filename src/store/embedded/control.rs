//! The control topic of a node that is alone: in memory. Nobody else reads it, and a start begins
//! without what an earlier one said.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::base::{Partition, Topic};
use crate::limits::control as limits;
use crate::ports::{Bounds, ControlRead, ControlTopic, LogError, Want};

/// The latest records.
#[derive(Debug)]
pub struct LoneControl {
    records: watch::Sender<Records>,
}

#[derive(Debug, Default)]
struct Records {
    /// Offset of the first one that is here.
    start: u64,
    values: VecDeque<Bytes>,
}

impl Records {
    fn end(&self) -> u64 {
        self.start + self.values.len() as u64
    }
}

impl Default for LoneControl {
    fn default() -> Self {
        Self { records: watch::Sender::new(Records::default()) }
    }
}

#[async_trait]
impl ControlTopic for LoneControl {
    async fn end(&self) -> Result<u64, LogError> {
        Ok(self.records.borrow().end())
    }

    async fn append(&self, value: Bytes) -> Result<u64, LogError> {
        let mut offset = 0;
        self.records.send_modify(|records| {
            offset = records.end();
            records.values.push_back(value);
            if records.values.len() > limits::LONE_RECORDS_MAX {
                records.values.pop_front();
                records.start += 1;
            }
        });
        Ok(offset)
    }

    async fn read(&self, from: u64, wait_max: Duration) -> Result<ControlRead, LogError> {
        let mut changes = self.records.subscribe();
        let has_some = |records: &Records| records.end() > from;
        let records = match tokio::time::timeout(wait_max, changes.wait_for(has_some)).await {
            Ok(Ok(records)) => records,
            Ok(Err(_)) | Err(_) => return Ok(ControlRead { records: Vec::new(), next: from }),
        };
        let Some(skipped) = from.checked_sub(records.start) else {
            let partition = Partition { topic: Topic::Control, index: 0 };
            let bounds = Bounds { start: records.start, end: records.end() };
            return Err(LogError::OutOfRange { wanted: Want { partition, offset: from }, bounds });
        };
        let values = records.values.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX));
        let values = (from..).zip(values.cloned()).collect();
        Ok(ControlRead { records: values, next: records.end() })
    }
}
