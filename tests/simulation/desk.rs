//! The log as who publishes sees it: what is appended may come late, twice as late as the answer,
//! or not at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use corecast::base::{LogShape, Moment, Partition, Position};
use corecast::ports::{Batch, Bounds, Log, LogError, MovedRecord, NewRecord, Want};

use crate::random::{Random, Seen};
use crate::sky::{BEGIN, SHAPE};

/// Appends that are on their way, and the log as it was when they were looked at last.
pub struct Counter {
    random: Random,
    now: Moment,
    pub has_faults: bool,
    /// Nothing is taken or said until then.
    pub away_until: Moment,
    /// Of the log as it is now.
    pub shape: LogShape,
    bounds: BTreeMap<Partition, Bounds>,
    flying: Vec<(Moment, MovedRecord)>,
    /// How often what has arrived was taken into the log.
    taken: u64,
    pub seen: Seen,
}

#[derive(Clone)]
pub struct Desk(Arc<Mutex<Counter>>);

impl Desk {
    pub fn new(random: Random) -> Self {
        Self(Arc::new(Mutex::new(Counter {
            random,
            now: BEGIN,
            has_faults: true,
            away_until: BEGIN,
            shape: SHAPE,
            bounds: BTreeMap::new(),
            flying: Vec::new(),
            taken: 0,
            seen: Seen::default(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Counter> {
        // What fails is told by the first panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until then, and until what is to be there by then is in the log.
    async fn wait_until(&self, at: Moment) {
        let taken = self.lock().taken;
        std::future::poll_fn(|_| {
            let counter = self.lock();
            let is_time = counter.now >= at && counter.taken > taken;
            if is_time { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Counter {
    /// What has arrived by now, in the order of its arrival.
    pub fn handle_time(&mut self, now: Moment) -> Vec<MovedRecord> {
        self.now = now;
        self.taken += 1;
        let (mut landing, flying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flying).into_iter().partition(|(at, _)| *at <= now);
        self.flying = flying;
        landing.sort_by_key(|(at, _)| *at);
        landing.into_iter().map(|(_, record)| record).collect()
    }

    pub fn handle_bounds(&mut self, partition: Partition, bounds: Bounds) {
        self.bounds.insert(partition, bounds);
    }

    pub fn is_empty(&self) -> bool {
        self.flying.is_empty()
    }

    /// Draws when each record lands, and when that is answered: by an error, or not.
    fn begin(&mut self, records: Vec<MovedRecord>) -> (Moment, bool) {
        let is_slow = self.has_faults && self.random.one_in(3);
        let delay = if is_slow { self.random.millis(3_000) } else { Duration::ZERO };
        let done_at = self.now.plus(delay);
        let is_out = self.now < self.away_until;
        let is_away = is_out || self.has_faults && self.random.one_in(6);
        for record in records {
            let at = match is_away.then(|| self.random.below(3)) {
                None => done_at,
                Some(0) if !is_out => done_at,
                Some(1) => done_at.max(self.away_until).plus(self.random.millis(20_000)),
                Some(_) => continue,
            };
            self.seen.count("records published though the log was away", u64::from(is_away));
            self.flying.push((at, record));
        }
        (done_at, is_away)
    }
}

#[async_trait]
impl Log for Desk {
    async fn shape(&self) -> Result<LogShape, LogError> {
        Ok(self.lock().shape)
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, LogError> {
        let mut counter = self.lock();
        let is_out = counter.now < counter.away_until;
        if is_out || counter.has_faults && counter.random.one_in(8) {
            counter.seen.note("bounds that could not be had");
            return Err(LogError::Away("as drawn".to_owned()));
        }
        Ok(counter.bounds.get(&partition).copied().unwrap_or(Bounds { start: 0, end: 0 }))
    }

    async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        Err(LogError::Failed("nobody appends by this".to_owned()))
    }

    async fn append_moved(&self, records: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        let (done_at, is_away) = self.lock().begin(records);
        self.wait_until(done_at).await;
        // Who publishes again does not ask where.
        if is_away { Err(LogError::Away("as drawn".to_owned())) } else { Ok(Vec::new()) }
    }

    async fn fetch(&self, _: &[Want], _: usize, _: Duration) -> Result<Vec<Batch>, LogError> {
        Err(LogError::Failed("nobody fetches by this".to_owned()))
    }
}
