//! The outbox: rows by hour of their writing, marked when they are done.
//!
//! A reader goes on from a stored position (`positions.rs`).

use scylla::DeserializeRow;
use scylla::value::CqlTimestamp;

use super::ScyllaStore;
use super::lists::{List, buckets_from, limit_column};
use super::positions::{move_position, position};
use super::rows::{bucket_of, id_column, malformed, read_id, read_time, time_column, written_at};
use super::statements::{Shared, execute, rows_of};
use crate::base::EpochMillis;
use crate::limits::store as limits;
use crate::ports::{OutboxRow, StoreError};

#[derive(DeserializeRow)]
struct OutboxColumns {
    created_at: CqlTimestamp,
    id: i64,
    v: Option<i32>,
    done: Option<bool>,
}

pub(super) async fn put(
    store: &ScyllaStore,
    connected: &Shared,
    row: &OutboxRow,
) -> Result<(), StoreError> {
    let bucket = bucket_of(row.created_at, limits::OUTBOX_BUCKET);
    store.note_bucket(connected, List::Outbox, bucket).await?;
    let (at, id) = (time_column(row.created_at), id_column(row.id));
    let values = (time_column(bucket), at, id, written_at(row.created_at));
    execute(&connected.session, &connected.statements.insert_outbox, values).await
}

pub(super) async fn mark(connected: &Shared, row: &OutboxRow) -> Result<(), StoreError> {
    let bucket = bucket_of(row.created_at, limits::OUTBOX_BUCKET);
    let (at, id) = (time_column(row.created_at), id_column(row.id));
    let values = (written_at(row.created_at), time_column(bucket), at, id);
    execute(&connected.session, &connected.statements.mark_outbox, values).await
}

/// Rows that are not done, oldest first; moves the position up to the first of them.
pub(super) async fn open(
    store: &ScyllaStore,
    connected: &Shared,
    limit: usize,
) -> Result<Vec<OutboxRow>, StoreError> {
    // What is written after this moment is not below the new position.
    let now = store.clock.wall();
    let position = position(store, connected, List::Outbox).await?;
    let mut found = Vec::new();
    let first_bucket = bucket_of(position, limits::OUTBOX_BUCKET);
    let buckets = buckets_from(connected, List::Outbox, first_bucket).await?;
    for bucket in buckets {
        if found.len() == limit {
            break;
        }
        open_of_bucket(connected, bucket, position, limit, &mut found).await?;
    }
    if limit > 0 {
        let first = found.first().map(|row| row.created_at);
        move_position(store, connected, List::Outbox, position, (now, first)).await?;
    }
    Ok(found)
}

async fn open_of_bucket(
    connected: &Shared,
    bucket: EpochMillis,
    position: EpochMillis,
    limit: usize,
    found: &mut Vec<OutboxRow>,
) -> Result<(), StoreError> {
    let mut after = (CqlTimestamp(time_column(position).0 - 1), i64::MAX);
    loop {
        let values = (time_column(bucket), after.0, after.1, limit_column(limits::OUTBOX_READ));
        let statement = &connected.statements.outbox;
        let rows = rows_of::<OutboxColumns>(&connected.session, statement, values).await?;
        let is_end = rows.len() < limits::OUTBOX_READ;
        for row in rows {
            after = (row.created_at, row.id);
            if row.v.is_none() || row.done == Some(true) {
                continue;
            }
            let created_at = read_time(Some(row.created_at))?;
            let created_at = created_at.ok_or_else(|| malformed("no time"))?;
            found.push(OutboxRow { id: read_id(row.id)?, created_at });
            if found.len() == limit {
                return Ok(());
            }
        }
        if is_end {
            return Ok(());
        }
    }
}
