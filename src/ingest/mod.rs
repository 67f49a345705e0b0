//! Floor 3, control threads: reads the log and hands its records to the shards that own the
//! partitions.
//!
//! Invariants: batches of a partition reach its shard in offset order, each once; a shard without
//! room makes the reading of its own partitions wait, not that of others; nothing is dropped; an
//! outage is waited out.

pub mod kafka;
mod outbound;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::outbound::Outbound;
use crate::base::LogShape;
use crate::lane::{Sender, ToShard};
use crate::limits::log as limits;
use crate::ports::{Backoff, Batch, Bounds, Log, LogError, Want};

/// How far the reading is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The log can't be read: the reason. It is asked again.
    Away(String),
    Reading,
    /// Does not heal: the reason. Reading has stopped.
    Failed(String),
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("a shard is gone")]
    ShardGone,
    #[error(transparent)]
    Log(LogError),
}

/// Reads all partitions and feeds the shards, until they are gone or the log fails for good.
pub struct Ingest {
    pub log: Arc<dyn Log>,
    /// A lane to each shard, in the shards' order.
    pub shards: Vec<Sender<ToShard>>,
    /// Told whenever the reading begins to go on, or is held up.
    pub progress: Box<dyn Fn(Progress) + Send + Sync>,
    /// Records between what was read and the end of the log, all partitions.
    pub lag: Arc<AtomicU64>,
}

impl Ingest {
    /// Serves from `WARM_RECORDS` before the end on, so that the ring knows the latest events, and
    /// reads from `REPEAT_RECORDS` before that on, so that it knows which are repeats. Says
    /// `CaughtUp` to every shard once what the log held then has been read.
    pub async fn run(mut self) -> Result<(), IngestError> {
        let mut outbound = Outbound::new(std::mem::take(&mut self.shards))?;
        let mut backoff = new_backoff();
        let shape = loop {
            match self.log.shape().await {
                Ok(shape) => break shape,
                Err(error) => self.wait_out(error, &mut backoff).await?,
            }
        };
        outbound.send_to_all(|| ToShard::Identity(shape.identity))?;
        let (mut wants, ends) = self.start(&shape, &mut outbound).await?;
        let mut lags = vec![0; wants.len()];
        let mut is_caught_up = false;
        let (mut is_away, mut was_read) = (true, false);
        loop {
            if !is_caught_up && wants.iter().zip(&ends).all(|(want, end)| want.offset >= *end) {
                outbound.send_to_all(|| ToShard::CaughtUp)?;
                is_caught_up = true;
            }
            let batches = match self.fetch(&wants, &mut outbound, &shape).await? {
                Ok(batches) => batches,
                Err(LogError::OutOfRange { wanted, bounds }) => {
                    // The log was trimmed under us, or is shorter than it was: go on from what is
                    // there. Later positions only.
                    let next = bounds.start.max(wanted.offset.min(bounds.end));
                    let served = served_from(bounds).max(next);
                    tracing::warn!(
                        topic = wanted.partition.topic.name(),
                        partition = wanted.partition.index,
                        from = wanted.offset,
                        to = next,
                        "the log does not hold this offset, going on where it does"
                    );
                    skip(
                        &mut wants,
                        Want { offset: next, ..wanted },
                        served,
                        &shape,
                        &mut outbound,
                    )?;
                    continue;
                }
                Err(error) => {
                    is_away = true;
                    self.wait_out(error, &mut backoff).await?;
                    continue;
                }
            };
            backoff.reset();
            if std::mem::take(&mut is_away) {
                if was_read {
                    tracing::info!("the log is back");
                }
                (self.progress)(Progress::Reading);
            }
            was_read = true;
            for batch in batches {
                pass_on(batch, &mut wants, &mut lags, &shape, &mut outbound)?;
            }
            self.lag.store(lags.iter().sum(), Ordering::Relaxed);
        }
    }

    /// Where each partition is read from, and where it ended.
    async fn start(
        &self,
        shape: &LogShape,
        outbound: &mut Outbound,
    ) -> Result<(Vec<Want>, Vec<u64>), IngestError> {
        let mut wants = Vec::new();
        let mut ends = Vec::new();
        for partition in shape.all_partitions() {
            let mut backoff = new_backoff();
            let bounds = loop {
                match self.log.bounds(partition).await {
                    Ok(bounds) => break bounds,
                    Err(error) => self.wait_out(error, &mut backoff).await?,
                }
            };
            let next = served_from(bounds).max(bounds.end.saturating_sub(limits::WARM_RECORDS));
            let offset = bounds.start.max(next.saturating_sub(limits::REPEAT_RECORDS));
            wants.push(Want { partition, offset });
            ends.push(bounds.end);
            outbound.send_to_all(|| ToShard::Start { partition, next })?;
        }
        Ok((wants, ends))
    }

    /// Reads the partitions whose shards have room, while what waits for the others goes out.
    async fn fetch(
        &self,
        wants: &[Want],
        outbound: &mut Outbound,
        shape: &LogShape,
    ) -> Result<Result<Vec<Batch>, LogError>, IngestError> {
        outbound.flush()?;
        let wanted: Vec<Want> =
            wants.iter().filter(|want| outbound.has_room(want.partition, shape)).copied().collect();
        if wanted.is_empty() {
            tokio::time::sleep(limits::FULL_SHARD_WAIT).await;
            return Ok(Ok(Vec::new()));
        }
        // A shard that has room again is not kept waiting by partitions that are silent.
        let is_whole = wanted.len() == wants.len();
        let wait = if is_whole { limits::FETCH_WAIT } else { limits::FULL_SHARD_WAIT };
        let mut fetch = self.log.fetch(&wanted, limits::FETCH_BYTES_MAX, wait);
        loop {
            tokio::select! {
                fetched = &mut fetch => return Ok(fetched),
                () = tokio::time::sleep(limits::FULL_SHARD_WAIT), if !is_whole => {
                    outbound.flush()?;
                }
            }
        }
    }

    /// Waits before the next try, or gives up on what does not heal.
    async fn wait_out(&self, error: LogError, backoff: &mut Backoff) -> Result<(), IngestError> {
        match error {
            LogError::Away(reason) => {
                let wait = backoff.wait();
                tracing::warn!(%reason, wait_ms = wait.as_millis(), "the log is away");
                (self.progress)(Progress::Away(reason));
                tokio::time::sleep(wait).await;
                Ok(())
            }
            error => {
                (self.progress)(Progress::Failed(error.to_string()));
                Err(IngestError::Log(error))
            }
        }
    }
}

fn pass_on(
    batch: Batch,
    wants: &mut [Want],
    lags: &mut [u64],
    shape: &LogShape,
    outbound: &mut Outbound,
) -> Result<(), IngestError> {
    let partition = batch.partition;
    let Some(at) = wants.iter().position(|want| want.partition == partition) else {
        return Ok(());
    };
    wants[at].offset = batch.next;
    lags[at] = batch.end.saturating_sub(batch.next);
    pieces(batch).try_for_each(|piece| outbound.send(partition, shape, ToShard::Batch(piece)))
}

/// Goes on at `from`: what lies before it can't be read. Records are served from `next` on.
fn skip(
    wants: &mut [Want],
    from: Want,
    next: u64,
    shape: &LogShape,
    outbound: &mut Outbound,
) -> Result<(), IngestError> {
    let partition = from.partition;
    if let Some(want) = wants.iter_mut().find(|want| want.partition == partition) {
        *want = from;
    }
    outbound.send(partition, shape, ToShard::Skip { partition, next })
}

/// Where serving may begin: what was trimmed off may have been the first of what is a repeat.
fn served_from(bounds: Bounds) -> u64 {
    match bounds.start {
        0 => 0,
        start => bounds.end.min(start + limits::REPEAT_RECORDS),
    }
}

/// Waits between tries while the log is away.
fn new_backoff() -> Backoff {
    Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX)
}

/// A batch in pieces that a shard takes in one turn. The last one carries `next`.
fn pieces(batch: Batch) -> impl Iterator<Item = Batch> {
    let Batch { partition, records, next, end } = batch;
    let count = records.len().div_ceil(limits::BATCH_RECORDS_MAX).max(1);
    let mut records = records.into_iter();
    (1..=count).map(move |piece| {
        let records: Vec<_> = records.by_ref().take(limits::BATCH_RECORDS_MAX).collect();
        let last = records.last().map_or(next, |record| record.offset + 1);
        Batch { partition, records, next: if piece == count { next } else { last }, end }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::{EpochMillis, Partition, Position, Topic};
    use crate::ports::{MovedRecord, NewRecord, Record, TimedBy};

    #[test]
    fn pieces_keep_order_and_positions() {
        let partition = Partition { topic: Topic::Group, index: 3 };
        let record = |offset| Record {
            offset,
            appended_at: EpochMillis(0),
            timed_by: TimedBy::Producer,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        for (count, expected) in [(0_u64, 1), (1, 1), (512, 1), (513, 2), (1_025, 3)] {
            let records: Vec<Record> = (0..count).map(|number| record(number * 2)).collect();
            let batch = Batch { partition, records: records.clone(), next: 5_000, end: 6_000 };
            let pieces: Vec<Batch> = pieces(batch).collect();
            assert_eq!(pieces.len(), expected, "{count} records");
            assert_eq!(pieces.last().map(|piece| piece.next), Some(5_000));
            assert!(pieces.is_sorted_by_key(|piece| piece.next));
            let joined: Vec<Record> = pieces.into_iter().flat_map(|piece| piece.records).collect();
            assert_eq!(joined, records);
        }
    }

    /// Holds the same offsets in every partition, and fails the first fetch.
    struct Bare(Bounds);

    #[async_trait::async_trait]
    impl Log for Bare {
        async fn shape(&self) -> Result<LogShape, LogError> {
            let identity = crate::base::LogIdentity([0; 3]);
            Ok(LogShape { identity, selected_partitions: 1, group_partitions: 1 })
        }

        async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
            Ok(self.0)
        }

        async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
            Ok(Vec::new())
        }

        async fn append_moved(&self, _: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
            Ok(Vec::new())
        }

        async fn fetch(
            &self,
            wants: &[Want],
            _: usize,
            _: Duration,
        ) -> Result<Vec<Batch>, LogError> {
            let from: Vec<u64> = wants.iter().map(|want| want.offset).collect();
            Err(LogError::Failed(format!("from {from:?}")))
        }
    }

    /// Is empty, and a moment later trimmed far behind that.
    #[derive(Default)]
    struct Trimmed {
        fetches: AtomicU64,
    }

    const LATER: Bounds = Bounds { start: 10_000, end: 20_000 };

    #[async_trait::async_trait]
    impl Log for Trimmed {
        async fn shape(&self) -> Result<LogShape, LogError> {
            Bare(LATER).shape().await
        }

        async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
            Ok(Bounds { start: 0, end: 0 })
        }

        async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
            Ok(Vec::new())
        }

        async fn append_moved(&self, _: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
            Ok(Vec::new())
        }

        async fn fetch(
            &self,
            wants: &[Want],
            bytes_max: usize,
            wait_max: Duration,
        ) -> Result<Vec<Batch>, LogError> {
            if self.fetches.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(LogError::OutOfRange { wanted: wants[0], bounds: LATER });
            }
            Bare(LATER).fetch(wants, bytes_max, wait_max).await
        }
    }

    #[test]
    fn a_shard_is_told_of_what_can_not_be_read_any_more() {
        let bell = Arc::new(crate::lane::Doorbell::new().expect("an eventfd"));
        let (shard, inputs) = crate::lane::lane("test", 8, bell);
        let progress = Box::new(|_| ());
        let log = Arc::new(Trimmed::default());
        let ingest = Ingest { log, shards: vec![shard], progress, lag: Arc::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let ended = runtime.expect("a runtime").block_on(ingest.run());
        // It reads on where the log begins, and serves where repeats are known again.
        let ended = ended.expect_err("the second fetch fails").to_string();
        assert_eq!(ended, "log failed: from [10000, 0]");
        let told: Vec<ToShard> = std::iter::from_fn(|| inputs.try_recv()).collect();
        let is_told = |input: &ToShard| matches!(input, ToShard::Skip { next: 14_096, .. });
        assert!(told.last().is_some_and(is_told), "{told:?}");
    }

    /// Every partition has one record of this offset, and the next one as soon as it is asked for.
    struct Endless;

    #[async_trait::async_trait]
    impl Log for Endless {
        async fn shape(&self) -> Result<LogShape, LogError> {
            let identity = crate::base::LogIdentity([0; 3]);
            Ok(LogShape { identity, selected_partitions: 2, group_partitions: 2 })
        }

        async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
            Ok(Bounds { start: 0, end: 0 })
        }

        async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
            Ok(Vec::new())
        }

        async fn append_moved(&self, _: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
            Ok(Vec::new())
        }

        async fn fetch(
            &self,
            wants: &[Want],
            _: usize,
            _: Duration,
        ) -> Result<Vec<Batch>, LogError> {
            tokio::task::yield_now().await;
            let batch = |want: &Want| {
                let (partition, next) = (want.partition, want.offset + 1);
                Batch { partition, records: Vec::new(), next, end: next }
            };
            Ok(wants.iter().map(batch).collect())
        }
    }

    #[test]
    fn a_shard_without_room_holds_up_its_own_partitions_only() {
        let (mut lanes, mut inputs) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let bell = Arc::new(crate::lane::Doorbell::new().expect("an eventfd"));
            let (lane, input) = crate::lane::lane("test", 8, bell);
            lanes.push(lane);
            inputs.push(input);
        }
        let progress = Box::new(|_| ());
        let log = Arc::new(Endless);
        let ingest = Ingest { log, shards: lanes, progress, lag: Arc::default() };
        let full = inputs.remove(0);
        let reading = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            runtime.expect("a runtime").block_on(ingest.run())
        });
        // The first shard takes nothing. The second one's partitions go on all the same.
        let next_of = |input: ToShard| match input {
            ToShard::Batch(batch) => Some((batch.partition, batch.next)),
            _ => None,
        };
        let began = std::time::Instant::now();
        let mut last = std::collections::BTreeMap::new();
        while last.values().filter(|next| **next >= 1_000).count() < 2 {
            assert!(began.elapsed() < Duration::from_secs(20), "{last:?}");
            let Some((partition, next)) = inputs[0].try_recv().and_then(next_of) else { continue };
            assert_eq!(last.insert(partition, next).unwrap_or(0) + 1, next, "each once, in order");
        }
        // Once it takes again, it gets all of its own, each once and in order.
        let mut first = std::collections::BTreeMap::new();
        while first.values().filter(|next| **next >= 100).count() < 2 {
            assert!(began.elapsed() < Duration::from_secs(40), "{first:?}");
            while inputs[0].try_recv().is_some() {}
            let Some((partition, next)) = full.try_recv().and_then(next_of) else { continue };
            assert_eq!(first.insert(partition, next).unwrap_or(0) + 1, next, "each once, in order");
        }
        assert!(first.keys().all(|partition| !last.contains_key(partition)));
        drop((full, inputs));
        let ended = reading.join().expect("no panic");
        assert!(matches!(ended, Err(IngestError::ShardGone)), "{ended:?}");
    }

    #[test]
    fn reading_starts_a_window_of_repeats_before_what_is_served() {
        let (warm, window) = (limits::WARM_RECORDS, limits::REPEAT_RECORDS);
        for (start, end, next, from) in [
            (0, 0, 0, 0),
            (0, warm, 0, 0),
            (0, warm + 5, 5, 0),
            (0, warm + window + 5, window + 5, 5),
            // What was trimmed off may have been what a record repeats.
            (5, warm + window + 9, warm + 9, 9),
            (window, warm + window + 5, warm + window, window),
            (warm + window, warm + window + 5, warm + window + 5, warm + window),
        ] {
            let bell = Arc::new(crate::lane::Doorbell::new().expect("an eventfd"));
            let (shard, inputs) = crate::lane::lane("test", 8, bell);
            let log = Arc::new(Bare(Bounds { start, end }));
            let progress = Box::new(|_| ());
            let ingest = Ingest { log, shards: vec![shard], progress, lag: Arc::default() };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let ended = runtime.expect("a runtime").block_on(ingest.run());
            let ended = ended.expect_err("the fetch fails").to_string();
            assert_eq!(ended, format!("log failed: from [{from}, {from}]"), "{start}..{end}");
            assert!(matches!(inputs.try_recv(), Some(ToShard::Identity(_))));
            for _ in 0..2 {
                let input = inputs.try_recv();
                let served = matches!(input, Some(ToShard::Start { next: at, .. }) if at == next);
                assert!(served, "{start}..{end}: {input:?}");
            }
        }
    }
}
