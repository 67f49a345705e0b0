//! What all nodes stand under: one clock, and futures that are turned by hand.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use corecast::base::{EpochMillis, LogIdentity, LogShape, Moment, Partition, Position};
use corecast::ports::{
    Batch, Bounds, Clock, DeadLetterId, DeadLetterPlace, DeadLetterRow, DeadLetterRows, Log,
    LogError, MovedRecord, NewRecord, StoreError, Want,
};

pub const SHAPE: LogShape =
    LogShape { identity: LogIdentity([7, 7, 7]), selected_partitions: 3, group_partitions: 2 };

/// The world begins at this moment, two minutes and a half before an hour is full, so that cursors
/// of both hours are met.
pub const BEGIN: Moment = Moment(1_000_000);
const WALL_START: u64 = 1_795_514_400_000 - 150_000 - BEGIN.0;

/// Virtual time, of which both kinds are one.
#[derive(Default)]
pub struct Time(AtomicU64);

impl Time {
    pub fn set(&self, now: Moment) {
        self.0.store(now.0, Ordering::Relaxed);
    }
}

pub fn wall_at(now: Moment) -> EpochMillis {
    EpochMillis(WALL_START + now.0)
}

impl Clock for Time {
    fn moment(&self) -> Moment {
        Moment(self.0.load(Ordering::Relaxed))
    }

    fn wall(&self) -> EpochMillis {
        wall_at(self.moment())
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
pub struct ShapeOfLog;

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
        Ok(SHAPE)
    }

    async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
        Ok(Bounds { start: 0, end: 0 })
    }

    async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        Err(LogError::Failed("nobody appends by this".to_owned()))
    }

    async fn append_moved(&self, _: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        Err(LogError::Failed("nobody appends by this".to_owned()))
    }

    async fn fetch(
        &self,
        _: &[Want],
        _: usize,
        _: std::time::Duration,
    ) -> Result<Vec<Batch>, LogError> {
        Err(LogError::Failed("nobody fetches by this".to_owned()))
    }
}
