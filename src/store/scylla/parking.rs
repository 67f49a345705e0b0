//! Parked records: rows by share and hour of their due time, marked when they are done.
//!
//! As with the outbox, a reader goes on from a stored position below which every row is marked, and
//! which stays far behind the clock. Most looks are quick: they begin a few seconds before the
//! latest one, so that a burst of marked rows is not read through twice a second. A row that a
//! clock far behind has hidden from them is found by the next whole look.

use std::collections::HashMap;

use bytes::Bytes;
use scylla::DeserializeRow;
use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::lists::{List, buckets_from, limit_column};
use super::rows::{bucket_of, malformed, read_time, time_column, written_at};
use super::statements::{Kind, Shared, execute, prepare, rows_of};
use super::{ScyllaStore, lock};
use crate::base::{EpochMillis, Partition, Topic};
use crate::limits::{parking, store as limits};
use crate::ports::{Bucket, Header, Parked, Parking, Record, StoreError, TimedBy};

pub(super) struct ParkingStatements {
    insert: PreparedStatement,
    mark: PreparedStatement,
    pub list: PreparedStatement,
    row: PreparedStatement,
    insert_served: PreparedStatement,
    served: PreparedStatement,
}

impl ParkingStatements {
    pub async fn prepare(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        let prepare = async |text: &str| prepare(session, keyspace, Kind::Plain, text).await;
        Ok(Self {
            insert: prepare(
                "INSERT INTO KS.parked (share, bucket, due_at, event_id, attempt, tries, topic, \
                 partition_index, log_offset, appended_at, timed_by_log, key, value, headers) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            mark: prepare(
                "UPDATE KS.parked USING TIMESTAMP ? SET done = true \
                 WHERE share = ? AND bucket = ? AND due_at = ? AND event_id = ? AND attempt = ?",
            )
            .await?,
            list: prepare(
                "SELECT due_at, event_id, attempt, tries, done FROM KS.parked WHERE share = ? \
                 AND bucket = ? AND (due_at, event_id, attempt) > (?, ?, ?) LIMIT ?",
            )
            .await?,
            row: prepare(
                "SELECT tries, topic, partition_index, log_offset, appended_at, timed_by_log, key, \
                 value, headers FROM KS.parked WHERE share = ? AND bucket = ? AND due_at = ? \
                 AND event_id = ? AND attempt = ?",
            )
            .await?,
            insert_served: prepare(
                "INSERT INTO KS.served_event (event_id, v) VALUES (?, 1) USING TIMESTAMP ?",
            )
            .await?,
            served: prepare("SELECT v FROM KS.served_event WHERE event_id = ?").await?,
        })
    }
}

/// How far this process has read a share.
#[derive(Clone, Copy)]
pub(super) struct Looked {
    /// Every row below is marked; stored.
    position: EpochMillis,
    /// Where a quick look begins.
    quick_from: EpochMillis,
    whole_at: EpochMillis,
}

pub(super) type LookedShares = HashMap<Bucket, Looked>;

#[derive(DeserializeRow)]
struct ListColumns {
    due_at: CqlTimestamp,
    event_id: Uuid,
    attempt: i64,
    tries: Option<i32>,
    done: Option<bool>,
}

/// Name and value; names may repeat, values may be missing.
type HeaderColumn = (Vec<u8>, Option<Vec<u8>>);

#[derive(DeserializeRow)]
struct RowColumns {
    tries: Option<i32>,
    topic: Option<i8>,
    partition_index: Option<i32>,
    log_offset: Option<i64>,
    appended_at: Option<CqlTimestamp>,
    timed_by_log: Option<bool>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Option<Vec<HeaderColumn>>,
}

/// Key of a row within its hour.
type Place = (CqlTimestamp, Uuid, i64);

#[async_trait::async_trait]
impl Parking for ScyllaStore {
    async fn park(&self, row: &Parked) -> Result<(), StoreError> {
        let connected = self.connected()?;
        let hour = bucket_of(row.due_at, limits::OUTBOX_BUCKET);
        self.note_bucket(&connected, List::Parked, hour).await?;
        let Record { offset, appended_at, timed_by, key, value, headers } = &row.record;
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            headers.iter().map(|header| (&header.name[..], header.value.as_deref())).collect();
        let values = (
            share_column(row.bucket()),
            time_column(hour),
            time_column(row.due_at),
            row.event,
            i64::from(row.attempt),
            i32::try_from(row.tries).unwrap_or(i32::MAX),
            row.partition.topic as i8,
            i32::from(row.partition.index),
            i64::try_from(*offset).unwrap_or(i64::MAX),
            time_column(*appended_at),
            *timed_by == TimedBy::Log,
            key.as_deref(),
            value.as_deref(),
            headers,
            written_at(row.due_at.min(self.clock.wall())),
        );
        execute(&connected.session, &connected.statements.parking.insert, values).await
    }

    async fn parked(
        &self,
        share: Bucket,
        now: EpochMillis,
        limit: usize,
    ) -> Result<Vec<Parked>, StoreError> {
        let connected = self.connected()?;
        let (looked, is_whole) = looked(self, &connected, share).await?;
        let from = if is_whole { looked.position } else { looked.quick_from };
        // What is written after this moment lies above it, but for what clocks differ.
        let started_at = self.clock.wall();
        let open = open(&connected, share, from, limit).await?;
        let first = open.first().map(|(place, _)| read_due(place)).transpose()?;
        let behind = |slack| EpochMillis(started_at.0.saturating_sub(millis(slack)));
        let settled = |slack| first.map_or(behind(slack), |first| first.min(behind(slack)));
        let mut next = Looked { quick_from: settled(limits::PARKED_QUICK_SLACK), ..looked };
        if is_whole {
            next.position = settled(limits::OUTBOX_SLACK).max(looked.position);
            next.whole_at = started_at;
            store_position(&connected, share, looked.position, &mut next).await?;
        }
        lock(&self.looked).insert(share, next);
        let mut found = Vec::new();
        for (place, tries) in open {
            if read_due(&place)? > now {
                break;
            }
            found.extend(row(&connected, share, place, tries).await?);
        }
        Ok(found)
    }

    async fn unpark(&self, row: &Parked) -> Result<(), StoreError> {
        let connected = self.connected()?;
        let values = (
            written_at(row.due_at.min(self.clock.wall())),
            share_column(row.bucket()),
            time_column(bucket_of(row.due_at, limits::OUTBOX_BUCKET)),
            time_column(row.due_at),
            row.event,
            i64::from(row.attempt),
        );
        execute(&connected.session, &connected.statements.parking.mark, values).await
    }

    async fn note_served(&self, event: Uuid) -> Result<(), StoreError> {
        let connected = self.connected()?;
        let values = (event, written_at(self.clock.wall()));
        execute(&connected.session, &connected.statements.parking.insert_served, values).await
    }

    async fn is_served(&self, event: Uuid) -> Result<bool, StoreError> {
        let connected = self.connected()?;
        let statement = &connected.statements.parking.served;
        let rows = rows_of::<(Option<i32>,)>(&connected.session, statement, (event,)).await?;
        Ok(!rows.is_empty())
    }
}

/// Where to begin, and whether the look is a whole one.
async fn looked(
    store: &ScyllaStore,
    connected: &Shared,
    share: Bucket,
) -> Result<(Looked, bool), StoreError> {
    let known = lock(&store.looked).get(&share).copied();
    if let Some(looked) = known {
        let is_due = looked.whole_at.plus(limits::PARKED_WHOLE_LOOK) <= store.clock.wall();
        return Ok((looked, is_due));
    }
    let statement = &connected.statements.position;
    let rows = rows_of::<(Option<CqlTimestamp>,)>(
        &connected.session,
        statement,
        (position_name(share).as_str(),),
    )
    .await?;
    let stored = rows.into_iter().next().and_then(|(at,)| at);
    let position = read_time(stored)?.unwrap_or(EpochMillis(0));
    Ok((Looked { position, quick_from: position, whole_at: EpochMillis(0) }, true))
}

/// Stores the position once it has moved far enough to be worth a write.
async fn store_position(
    connected: &Shared,
    share: Bucket,
    stored: EpochMillis,
    looked: &mut Looked,
) -> Result<(), StoreError> {
    let to = looked.position;
    if to.0.saturating_sub(stored.0) < millis(limits::POSITION_STEP) {
        looked.position = stored;
        return Ok(());
    }
    let name = position_name(share);
    let values = (written_at(to), time_column(to), name.as_str());
    execute(&connected.session, &connected.statements.set_position, values).await
}

/// Rows that are not marked, in order, at most `limit`.
async fn open(
    connected: &Shared,
    share: Bucket,
    from: EpochMillis,
    limit: usize,
) -> Result<Vec<(Place, u32)>, StoreError> {
    let mut found = Vec::new();
    let first = bucket_of(from, limits::OUTBOX_BUCKET);
    for hour in buckets_from(connected, List::Parked, first).await? {
        let mut after = (CqlTimestamp(time_column(from).0 - 1), Uuid::max(), i64::MAX);
        loop {
            let (share, hour) = (share_column(share), time_column(hour));
            let values =
                (share, hour, after.0, after.1, after.2, limit_column(limits::OUTBOX_READ));
            let statement = &connected.statements.parking.list;
            let rows = rows_of::<ListColumns>(&connected.session, statement, values).await?;
            let is_end = rows.len() < limits::OUTBOX_READ;
            for row in rows {
                after = (row.due_at, row.event_id, row.attempt);
                // Without `tries` a row is only a mark.
                let Some(tries) = row.tries.filter(|_| row.done != Some(true)) else { continue };
                if found.len() == limit {
                    return Ok(found);
                }
                found.push((after, u32::try_from(tries).unwrap_or(0)));
            }
            if is_end {
                break;
            }
        }
    }
    Ok(found)
}

/// The whole of one row; `None` if it has expired meanwhile.
async fn row(
    connected: &Shared,
    share: Bucket,
    (due, event, attempt): Place,
    tries: u32,
) -> Result<Option<Parked>, StoreError> {
    let due_at = read_due(&(due, event, attempt))?;
    let hour = time_column(bucket_of(due_at, limits::OUTBOX_BUCKET));
    let values = (share_column(share), hour, due, event, attempt);
    let statement = &connected.statements.parking.row;
    let rows = rows_of::<RowColumns>(&connected.session, statement, values).await?;
    let Some(row) = rows.into_iter().next().filter(|row| row.tries.is_some()) else {
        return Ok(None);
    };
    let broken = || malformed("a parked record lacks its place");
    let topic = row.topic.and_then(|topic| u8::try_from(topic).ok());
    let topic = topic.and_then(Topic::from_number).ok_or_else(broken)?;
    let index = row.partition_index.and_then(|index| u16::try_from(index).ok());
    let offset = row.log_offset.and_then(|offset| u64::try_from(offset).ok());
    let headers = row
        .headers
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| Header { name: Bytes::from(name), value: value.map(Bytes::from) });
    Ok(Some(Parked {
        due_at,
        event,
        attempt: u32::try_from(attempt).map_err(|_| malformed("an attempt out of range"))?,
        tries,
        partition: Partition { topic, index: index.ok_or_else(broken)? },
        record: Record {
            offset: offset.ok_or_else(broken)?,
            appended_at: read_time(row.appended_at)?.ok_or_else(broken)?,
            timed_by: match row.timed_by_log {
                Some(false) => TimedBy::Producer,
                _ => TimedBy::Log,
            },
            key: row.key.map(Bytes::from),
            value: row.value.map(Bytes::from),
            headers: headers.collect(),
        },
    }))
}

fn read_due(place: &Place) -> Result<EpochMillis, StoreError> {
    read_time(Some(place.0))?.ok_or_else(|| malformed("no time"))
}

fn share_column(share: Bucket) -> i32 {
    i32::from(share.0)
}

fn position_name(share: Bucket) -> String {
    format!("{}-{}-of-{}", List::Parked.name(), share.0, parking::BUCKETS)
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
