//! What has been read again of the log not long ago, so that all shards of a node that need it read
//! it once.

use std::collections::VecDeque;
use std::time::Instant;

use crate::limits::rereads as limits;
use crate::ports::{Batch, Want};

/// The batches that were read last, as much as goes into so many bytes.
#[derive(Debug, Default)]
pub struct Recent {
    read: VecDeque<Read>,
    bytes: usize,
}

#[derive(Debug)]
struct Read {
    /// The offset that was asked for.
    from: u64,
    batch: Batch,
    bytes: usize,
    at: Instant,
}

impl Recent {
    /// What there is of this partition from the wanted offset on.
    pub fn find(&self, want: Want) -> Option<Batch> {
        let holds = |read: &&Read| {
            read.batch.partition == want.partition
                && (read.from..read.batch.next).contains(&want.offset)
        };
        let Batch { partition, records, next, end } = &self.read.iter().rev().find(holds)?.batch;
        let first = records.partition_point(|record| record.offset < want.offset);
        let records = records[first..].to_vec();
        Some(Batch { partition: *partition, records, next: *next, end: *end })
    }

    /// Takes what was read from there.
    pub fn put(&mut self, from: u64, batch: Batch, now: Instant) {
        let bytes = bytes_of(&batch);
        self.bytes += bytes;
        self.read.push_back(Read { from, batch, bytes, at: now });
        while self.bytes > limits::RECENT_BYTES_MAX {
            self.drop_first();
        }
    }

    /// Drops what is no longer recent.
    pub fn forget(&mut self, now: Instant) {
        let is_old = |read: &Read| now.duration_since(read.at) >= limits::RECENT_TIME;
        while self.read.front().is_some_and(is_old) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(read) = self.read.pop_front() {
            self.bytes -= read.bytes;
        }
    }
}

/// What a batch takes in memory.
pub fn bytes_of(batch: &Batch) -> usize {
    let records = batch.records.iter().map(|record| {
        let parts = [&record.key, &record.value].into_iter().flatten().map(|part| part.len());
        size_of_val(record) + parts.sum::<usize>()
    });
    size_of::<Read>() + records.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::base::{EpochMillis, Partition, Topic};
    use crate::ports::{Record, TimedBy};

    fn partition(index: u16) -> Partition {
        Partition { topic: Topic::Group, index }
    }

    fn batch(index: u16, offsets: &[u64], next: u64, bytes: usize) -> Batch {
        let value = Bytes::from(vec![b'x'; bytes]);
        let record = |offset: &u64| Record {
            offset: *offset,
            appended_at: EpochMillis(0),
            timed_by: TimedBy::Log,
            key: None,
            value: Some(value.clone()),
            headers: Vec::new(),
        };
        let records = offsets.iter().map(record).collect();
        Batch { partition: partition(index), records, next, end: next }
    }

    fn find(recent: &Recent, index: u16, offset: u64) -> Option<(Vec<u64>, u64)> {
        let batch = recent.find(Want { partition: partition(index), offset })?;
        Some((batch.records.iter().map(|record| record.offset).collect(), batch.next))
    }

    #[test]
    fn what_was_read_is_found_from_any_offset_in_it() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        recent.put(10, batch(0, &[12, 15, 16], 20, 1), now);
        recent.put(5, batch(1, &[], 9, 1), now);
        assert_eq!(find(&recent, 0, 9), None);
        assert_eq!(find(&recent, 0, 10), Some((vec![12, 15, 16], 20)));
        assert_eq!(find(&recent, 0, 13), Some((vec![15, 16], 20)));
        assert_eq!(find(&recent, 0, 19), Some((vec![], 20)), "nothing is there, it is known");
        assert_eq!(find(&recent, 0, 20), None);
        assert_eq!(find(&recent, 1, 5), Some((vec![], 9)));
        assert_eq!(find(&recent, 2, 10), None);
    }

    #[test]
    fn it_is_bounded_in_bytes_and_time() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        for offset in 0..100 {
            recent.put(offset, batch(0, &[offset], offset + 1, limits::RECENT_BYTES_MAX / 10), now);
            assert!(recent.bytes <= limits::RECENT_BYTES_MAX);
        }
        assert!(find(&recent, 0, 99).is_some() && find(&recent, 0, 95).is_some());
        assert_eq!(find(&recent, 0, 50), None);
        recent.put(100, batch(0, &[100], 101, 1), now + Duration::from_millis(1));
        recent.forget(now + limits::RECENT_TIME);
        assert_eq!(find(&recent, 0, 99), None);
        assert!(find(&recent, 0, 100).is_some());
        recent.forget(now + 2 * limits::RECENT_TIME);
        assert_eq!((recent.bytes, recent.read.len()), (0, 0));
        recent.put(0, batch(0, &[0], 1, 2 * limits::RECENT_BYTES_MAX), now);
        assert_eq!(recent.bytes, 0, "what is too large is not kept");
    }
}
