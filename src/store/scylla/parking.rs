//! Parked records: rows by share and hour of their due time, marked when they are done.
//!
//! Readers go on from a stored position (`positions.rs`).

use bytes::Bytes;
use scylla::DeserializeRow;
use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::ScyllaStore;
use super::lists::{List, buckets_from, limit_column};
use super::positions::Look;
use super::rows::{bucket_of, malformed, read_time, time_column, written_at};
use super::statements::{Kind, Shared, execute, prepare, rows_of};
use crate::base::{EpochMillis, Partition, Topic};
use crate::limits::store as limits;
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
        let look = Look::begin(self, &connected, List::Parked, share).await?;
        let open = open(&connected, share, look.from(), limit).await?;
        let first = open.first().map(|(place, _)| read_due(place)).transpose()?;
        look.end(self, &connected, first).await?;
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

pub(super) fn share_column(share: Bucket) -> i32 {
    i32::from(share.0)
}
