//! What all nodes stand under: one time, clocks that show it, and futures that are turned by hand.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use corecast::base::{EpochMillis, LogIdentity, LogShape, Moment, Partition, Position};
use corecast::limits::keeping::CLOCKS_DIFFER;
use corecast::ports::{
    Batch, Bounds, Clock, DeadLetterId, DeadLetterPlace, DeadLetterRow, DeadLetterRows, Log,
    LogError, MovedRecord, NewRecord, StoreError, Want,
};

pub const SHAPE: LogShape =
    LogShape { identity: LogIdentity([7, 7, 7]), selected_partitions: 3, group_partitions: 2 };

/// The log that replaces it, and the first offset there: places in the two differ.
pub const REPLACED: LogShape = LogShape { identity: LogIdentity([8, 8, 8]), ..SHAPE };
pub const REPLACED_START: u64 = 1 << 32;

/// The world begins at this moment, two minutes and a half before an hour is full, so that cursors
/// of both hours are met.
pub const BEGIN: Moment = Moment(1_000_000);
const WALL_START: u64 = 1_795_514_400_000 - 150_000 - BEGIN.0;

/// How far the calendars of machines may be behind and ahead. Together that is as much as clocks
/// may differ.
pub const BEHIND_MAX: Duration = Duration::from_secs(57 * 60);
pub const AHEAD_MAX: Duration = Duration::from_secs(3 * 60);
const _: () = assert!(BEHIND_MAX.as_millis() + AHEAD_MAX.as_millis() <= CLOCKS_DIFFER.as_millis());

/// The clocks of one machine: virtual time, and a calendar that may be off and step.
#[derive(Default)]
pub struct Time {
    now: AtomicU64,
    off_ms: AtomicI64,
}

impl Time {
    pub fn set(&self, now: Moment) {
        self.now.store(now.0, Ordering::Relaxed);
    }

    /// Has the calendar be off by so much from now on.
    pub fn step(&self, off_ms: i64) {
        self.off_ms.store(off_ms, Ordering::Relaxed);
    }

    pub fn off_ms(&self) -> i64 {
        self.off_ms.load(Ordering::Relaxed)
    }
}

/// What a calendar says that is right.
pub fn wall_at(now: Moment) -> EpochMillis {
    EpochMillis(WALL_START + now.0)
}

impl Clock for Time {
    fn moment(&self) -> Moment {
        Moment(self.now.load(Ordering::Relaxed))
    }

    fn wall(&self) -> EpochMillis {
        EpochMillis(wall_at(self.moment()).0.saturating_add_signed(self.off_ms()))
    }
}

/// A call that is under way. Dropping it is a crash in the middle of it.
pub struct Task<T>(Pin<Box<dyn Future<Output = T> + Send>>);

impl<T> Task<T> {
    pub fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }

    /// Goes on as far as the world lets it; what it has come to.
    pub fn turn(&mut self) -> Option<T> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }
}

/// Nothing is published, fetched or read back through it: nodes are handed records of the world's
/// log.
pub struct ShapeOfLog(pub LogShape);

#[async_trait]
impl DeadLetterRows for ShapeOfLog {
    async fn write_dead_letters(&self, _: &[DeadLetterRow]) -> Result<(), StoreError> {
        Err(StoreError::Failed("nobody reads back by this".to_owned()))
    }

    async fn dead_letters(
        &self,
        _: Option<DeadLetterPlace>,
        _: usize,
        _: usize,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn dead_letter(&self, _: &DeadLetterId) -> Result<Option<DeadLetterRow>, StoreError> {
        Ok(None)
    }

    async fn purge_dead_letter(&self, _: &DeadLetterId) -> Result<bool, StoreError> {
        Ok(false)
    }
}

#[async_trait]
impl Log for ShapeOfLog {
    async fn shape(&self) -> Result<LogShape, LogError> {
        Ok(self.0)
    }

    async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
        let start = if self.0 == REPLACED { REPLACED_START } else { 0 };
        Ok(Bounds { start, end: start })
    }

    async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        Err(LogError::Failed("nobody appends by this".to_owned()))
    }

    async fn append_moved(&self, _: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        Err(LogError::Failed("nobody appends by this".to_owned()))
    }

    async fn fetch(&self, _: &[Want], _: usize, _: Duration) -> Result<Vec<Batch>, LogError> {
        Err(LogError::Failed("nobody fetches by this".to_owned()))
    }
}
