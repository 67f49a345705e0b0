//! The control topic in Kafka: one partition, which every node reads.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::KafkaLog;
use crate::base::{Partition, Topic};
use crate::limits::log as limits;
use crate::ports::{ControlRead, ControlTopic, Log, LogError, NewRecord, Want};

const CONTROL: Partition = Partition { topic: Topic::Control, index: 0 };

#[async_trait]
impl ControlTopic for KafkaLog {
    async fn end(&self) -> Result<u64, LogError> {
        Ok(self.bounds(CONTROL).await?.end)
    }

    async fn append(&self, value: Bytes) -> Result<u64, LogError> {
        self.cluster.ready().await?;
        let (key, headers) = (Bytes::new(), Vec::new());
        let record = NewRecord { topic: CONTROL.topic, key, value, headers };
        let offsets = self.producer.append(CONTROL, vec![record]).await?;
        let offset = offsets.first().copied();
        offset.ok_or_else(|| LogError::Away("a broker did not say where a record is".to_owned()))
    }

    async fn read(&self, from: u64, wait_max: Duration) -> Result<ControlRead, LogError> {
        let want = Want { partition: CONTROL, offset: from };
        let batches = self.fetch(&[want], limits::FETCH_BYTES_MAX, wait_max).await?;
        let mut read = ControlRead { records: Vec::new(), next: from };
        for batch in batches {
            let values = batch.records.into_iter();
            read.records.extend(values.map(|one| (one.offset, one.value.unwrap_or_default())));
            read.next = read.next.max(batch.next);
        }
        Ok(read)
    }
}
