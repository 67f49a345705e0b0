//! Where readers of queues go on: a stored position below which every row is marked. It stays
//! behind the clock by what clocks may differ, and rows may take to arrive.
//!
//! A queue in shares that is read twice a second has quick looks besides: they begin a few seconds
//! before the latest one, so that a burst of marked rows is not read through each time. A row that
//! a clock far behind has hidden from them is found by the next whole look.

use std::collections::HashMap;

use scylla::value::CqlTimestamp;

use super::lists::List;
use super::rows::{read_time, time_column, written_at};
use super::statements::{Shared, execute, rows_of};
use super::{ScyllaStore, lock};
use crate::base::EpochMillis;
use crate::limits::{parking, store as limits};
use crate::ports::{Bucket, StoreError};

/// How far this process has read the queues.
#[derive(Default)]
pub(super) struct Positions {
    queues: HashMap<List, EpochMillis>,
    shares: HashMap<(List, Bucket), Looked>,
}

/// How far a share has been read.
#[derive(Clone, Copy)]
struct Looked {
    /// Every row below is marked; stored.
    position: EpochMillis,
    /// Where a quick look begins.
    quick_from: EpochMillis,
    whole_at: EpochMillis,
}

/// A look at a share of a queue.
pub(super) struct Look {
    list: List,
    share: Bucket,
    looked: Looked,
    is_whole: bool,
    started_at: EpochMillis,
}

/// Every row of the queue below it is marked.
pub(super) async fn position(
    store: &ScyllaStore,
    connected: &Shared,
    list: List,
) -> Result<EpochMillis, StoreError> {
    let known = lock(&store.positions).queues.get(&list).copied();
    match known {
        Some(known) => Ok(known),
        None => stored(connected, list.name()).await,
    }
}

/// Moves it up to the first row that is not marked. Whoever looked began at `started_at`: what is
/// written after that moment lies above the new position.
pub(super) async fn move_position(
    store: &ScyllaStore,
    connected: &Shared,
    list: List,
    from: EpochMillis,
    (started_at, first): (EpochMillis, Option<EpochMillis>),
) -> Result<(), StoreError> {
    let to = settled(started_at, first, limits::OUTBOX_SLACK);
    if !is_far_enough(from, to) {
        return Ok(());
    }
    keep(connected, list.name(), to).await?;
    let mut positions = lock(&store.positions);
    let known = positions.queues.entry(list).or_insert(to);
    *known = to.max(*known);
    Ok(())
}

impl Look {
    pub async fn begin(
        store: &ScyllaStore,
        connected: &Shared,
        list: List,
        share: Bucket,
    ) -> Result<Self, StoreError> {
        let known = lock(&store.positions).shares.get(&(list, share)).copied();
        let (looked, is_whole) = match known {
            Some(looked) => {
                let is_due = looked.whole_at.plus(limits::PARKED_WHOLE_LOOK) <= store.clock.wall();
                (looked, is_due)
            }
            None => {
                let position = stored(connected, &name_of(list, share)).await?;
                let whole_at = EpochMillis(0);
                (Looked { position, quick_from: position, whole_at }, true)
            }
        };
        // What is written after this moment lies above it, but for what clocks differ.
        Ok(Self { list, share, looked, is_whole, started_at: store.clock.wall() })
    }

    /// Whether nobody has looked at this share before.
    pub fn is_first(&self) -> bool {
        self.is_whole && self.looked.position == EpochMillis(0)
    }

    /// Where to begin.
    pub fn from(&self) -> EpochMillis {
        if self.is_whole { self.looked.position } else { self.looked.quick_from }
    }

    /// Remembers how far it went: all rows below `first` are marked, or else all that there are.
    pub async fn end(
        self,
        store: &ScyllaStore,
        connected: &Shared,
        first: Option<EpochMillis>,
    ) -> Result<(), StoreError> {
        let Self { list, share, looked, is_whole, started_at } = self;
        let quick_from = settled(started_at, first, limits::PARKED_QUICK_SLACK);
        let mut next = Looked { quick_from, ..looked };
        if is_whole {
            next.whole_at = started_at;
            let to = settled(started_at, first, limits::OUTBOX_SLACK);
            if is_far_enough(looked.position, to) {
                keep(connected, &name_of(list, share), to).await?;
                next.position = to;
            }
        }
        lock(&store.positions).shares.insert((list, share), next);
        Ok(())
    }
}

fn settled(
    started_at: EpochMillis,
    first: Option<EpochMillis>,
    slack: std::time::Duration,
) -> EpochMillis {
    let behind = started_at.minus(slack);
    first.map_or(behind, |first| first.min(behind))
}

/// Whether it has moved far enough to be worth a write.
fn is_far_enough(from: EpochMillis, to: EpochMillis) -> bool {
    u128::from(to.0.saturating_sub(from.0)) >= limits::POSITION_STEP.as_millis()
}

async fn stored(connected: &Shared, name: &str) -> Result<EpochMillis, StoreError> {
    let (session, statement) = (&connected.session, &connected.statements.position);
    let rows = rows_of::<(Option<CqlTimestamp>,)>(session, statement, (name,)).await?;
    let stored = rows.into_iter().next().and_then(|(at,)| at);
    Ok(read_time(stored)?.unwrap_or(EpochMillis(0)))
}

async fn keep(connected: &Shared, name: &str, to: EpochMillis) -> Result<(), StoreError> {
    let values = (written_at(to), time_column(to), name);
    execute(&connected.session, &connected.statements.set_position, values).await
}

fn name_of(list: List, share: Bucket) -> String {
    format!("{}-{}-of-{}", list.name(), share.0, parking::BUCKETS)
}
