//! Dead letters: a row by original, large ones in parts of their own; where each id is found; and
//! a list of them by hour.
//!
//! Cells of a row merge by the rank of its offset, so of two dead letters of one original that of
//! the smallest stays, as a whole. A purge overwrites the bytes at a rank above all of those, and
//! marks: what is written again afterwards stays below it. Entries of the list say what may be
//! there; whether it is, the row says.

use async_trait::async_trait;
use scylla::DeserializeRow;
use scylla::value::CqlTimestamp;

use super::ScyllaStore;
use super::inbox::offset_column;
use super::lists::{List, buckets, limit_column};
use super::ranks::dead_letter_rank;
use super::rows::{bucket_of, malformed, read_time, time_column, written_at};
use super::statements::{Shared, each, execute, rows_of};
use crate::base::EpochMillis;
use crate::limits::{dead_letters as limits, store};
use crate::ports::{
    DeadLetterId, DeadLetterPlace, DeadLetterRow, DeadLetterRows, Original, StoreError,
};
use crate::store::dead_record;

/// A row as it is read. Any of its cells may be missing.
#[derive(DeserializeRow)]
struct DeadColumns {
    dlt_topic: Option<String>,
    dlt_partition: Option<i32>,
    dlt_offset: Option<i64>,
    record: Option<Vec<u8>>,
    parts: Option<i32>,
    purged_at: Option<CqlTimestamp>,
}

#[derive(DeserializeRow)]
struct ListedColumns {
    failed_at: CqlTimestamp,
    original: Vec<u8>,
    v: Option<i32>,
    purged: Option<bool>,
}

#[async_trait]
impl DeadLetterRows for ScyllaStore {
    async fn write_dead_letters(&self, rows: &[DeadLetterRow]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let (connected, now) = (self.connected()?, self.clock.wall());
        let mut hours: Vec<EpochMillis> = rows.iter().map(|row| hour_of(row.place())).collect();
        hours.sort_unstable();
        hours.dedup();
        for hour in hours {
            self.note_bucket(&connected, List::DeadLetters, hour).await?;
        }
        each(rows.to_vec(), |row| {
            let connected = connected.clone();
            async move { write(&connected, &row, now).await }
        })
        .await
        .map(drop)
    }

    async fn dead_letters(
        &self,
        after: Option<DeadLetterPlace>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        let connected = self.connected()?;
        let mut page = Page { limit, bytes_max, rows: Vec::new(), bytes: 0 };
        let mut from = after.map(hour_of);
        while !page.is_full() {
            let hours = buckets(&connected, List::DeadLetters, from).await?;
            for hour in &hours {
                page.read_hour(&connected, *hour, after).await?;
                if page.is_full() {
                    break;
                }
            }
            match hours.last() {
                Some(last) if hours.len() == store::BUCKETS_READ && last.0 > 0 => {
                    from = Some(EpochMillis(last.0 - 1));
                }
                _ => break,
            }
        }
        Ok(page.rows)
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetterRow>, StoreError> {
        let connected = self.connected()?;
        let values = (id.topic.as_str(), i32::from(id.partition), offset_column(id.offset));
        let (session, statement) =
            (&connected.session, &connected.statements.dead_letters.original);
        let found = rows_of::<(Option<Vec<u8>>,)>(session, statement, values).await?;
        let Some(original) = found.into_iter().next().and_then(|(original,)| original) else {
            return Ok(None);
        };
        let row = read(&connected, read_original(&original)?).await?;
        Ok(row.filter(|row| row.id() == *id))
    }

    async fn purge_dead_letter(&self, id: &DeadLetterId) -> Result<bool, StoreError> {
        let Some(row) = self.dead_letter(id).await? else { return Ok(false) };
        let (connected, now) = (self.connected()?, self.clock.wall());
        let statements = &connected.statements.dead_letters;
        let place = row.place();
        let (written, original) = (written_at(now), &place.original.0[..]);
        let offset = offset_column(id.offset);
        // The row first: from then on it is gone, whatever else is left.
        let values = (written, time_column(now), original);
        execute(&connected.session, &statements.purge, values).await?;
        let (hour, failed_at) = (time_column(hour_of(place)), time_column(place.failed_at));
        let values = (written, hour, failed_at, original);
        execute(&connected.session, &statements.purge_listed, values).await?;
        for part in 1..=parts_of(&dead_record::write(&row.record)).1.len() {
            let values = (written, original, offset, part_column(part));
            execute(&connected.session, &statements.purge_part, values).await?;
        }
        Ok(true)
    }
}

/// Rows that a call gathers.
struct Page {
    limit: usize,
    bytes_max: usize,
    rows: Vec<DeadLetterRow>,
    bytes: usize,
}

impl Page {
    fn is_full(&self) -> bool {
        self.rows.len() >= self.limit || self.bytes >= self.bytes_max
    }

    async fn read_hour(
        &mut self,
        connected: &Shared,
        hour: EpochMillis,
        after: Option<DeadLetterPlace>,
    ) -> Result<(), StoreError> {
        let statement = &connected.statements.dead_letters.listed;
        let mut before = match after {
            Some(place) => (time_column(place.failed_at), place.original.0.to_vec()),
            None => (CqlTimestamp(i64::MAX), Vec::new()),
        };
        loop {
            let limit = limit_column(limits::LIST_ROWS_READ);
            let values = (time_column(hour), before.0, before.1.as_slice(), limit);
            let entries = rows_of::<ListedColumns>(&connected.session, statement, values).await?;
            let is_end = entries.len() < limits::LIST_ROWS_READ;
            if let Some(last) = entries.last() {
                before = (last.failed_at, last.original.clone());
            }
            let places: Vec<DeadLetterPlace> = entries
                .into_iter()
                .filter(|entry| entry.v.is_some() && entry.purged != Some(true))
                .map(ListedColumns::read)
                .collect::<Result<_, _>>()?;
            // A few at a time: each may be of megabytes.
            for places in places.chunks(limits::ROWS_AT_ONCE) {
                self.read_rows(connected, places).await?;
                if self.is_full() {
                    return Ok(());
                }
            }
            if is_end {
                return Ok(());
            }
        }
    }

    async fn read_rows(
        &mut self,
        connected: &Shared,
        places: &[DeadLetterPlace],
    ) -> Result<(), StoreError> {
        let found = each(places.to_vec(), |place| {
            let connected = connected.clone();
            async move { Ok((place, read(&connected, place.original).await?)) }
        })
        .await?;
        for (place, row) in found {
            // The entry of a dead letter that gave way to another one of its original.
            let Some(row) = row.filter(|row| row.place() == place) else { continue };
            if self.is_full() {
                return Ok(());
            }
            self.bytes += row.bytes();
            self.rows.push(row);
        }
        Ok(())
    }
}

async fn write(
    connected: &Shared,
    row: &DeadLetterRow,
    now: EpochMillis,
) -> Result<(), StoreError> {
    let (session, statements) = (&connected.session, &connected.statements.dead_letters);
    let (id, place) = (row.id(), row.place());
    let (rank, original) = (dead_letter_rank(id.offset), &place.original.0[..]);
    let (partition, offset) = (i32::from(id.partition), offset_column(id.offset));
    let bytes = dead_record::write(&row.record);
    let (first, others) = parts_of(&bytes);
    // A row is read once it is there, so what belongs to it comes before.
    for (part, bytes) in (1..).zip(&others) {
        let values = (original, offset, part_column(part), *bytes, rank);
        execute(session, &statements.insert_part, values).await?;
    }
    let failed_at = time_column(place.failed_at);
    let parts = part_column(others.len());
    let values = (original, id.topic.as_str(), partition, offset, failed_at, first, parts, rank);
    execute(session, &statements.insert, values).await?;
    // Producers' clocks are not ours, and ScyllaDB takes nothing from the future.
    let written = written_at(place.failed_at.min(now));
    let values = (id.topic.as_str(), partition, offset, original, written);
    execute(session, &statements.insert_id, values).await?;
    let values = (time_column(hour_of(place)), failed_at, original, written);
    execute(session, &statements.insert_listed, values).await
}

/// `None` for one that was purged, or of which not all is there.
async fn read(connected: &Shared, original: Original) -> Result<Option<DeadLetterRow>, StoreError> {
    let (session, statements) = (&connected.session, &connected.statements.dead_letters);
    let rows = rows_of::<DeadColumns>(session, &statements.row, (&original.0[..],)).await?;
    let Some(columns) = rows.into_iter().next() else { return Ok(None) };
    let DeadColumns { dlt_topic, dlt_partition, dlt_offset, record, parts, .. } = columns;
    let (Some(topic), Some(partition), Some(offset), Some(mut bytes), Some(parts)) =
        (dlt_topic, dlt_partition, dlt_offset, record, parts)
    else {
        return Ok(None);
    };
    if columns.purged_at.is_some() {
        return Ok(None);
    }
    let others = each(1..=parts, |part| {
        let connected = connected.clone();
        async move {
            let statement = &connected.statements.dead_letters.part;
            let values = (&original.0[..], offset, part);
            let rows = rows_of::<(Option<Vec<u8>>,)>(&connected.session, statement, values).await?;
            Ok(rows.into_iter().next().and_then(|(bytes,)| bytes))
        }
    })
    .await?;
    for part in others {
        let Some(part) = part else { return Ok(None) };
        bytes.extend_from_slice(&part);
    }
    let partition = u16::try_from(partition).map_err(|_| malformed("no partition"))?;
    let record = dead_record::read(&bytes).map_err(|reason| malformed(&reason))?;
    Ok(Some(DeadLetterRow { topic, partition, record }))
}

impl ListedColumns {
    fn read(self) -> Result<DeadLetterPlace, StoreError> {
        let failed_at = read_time(Some(self.failed_at))?.ok_or_else(|| malformed("no time"))?;
        Ok(DeadLetterPlace { failed_at, original: read_original(&self.original)? })
    }
}

fn read_original(bytes: &[u8]) -> Result<Original, StoreError> {
    bytes.try_into().map(Original).map_err(|_| malformed("no key of an original"))
}

fn hour_of(place: DeadLetterPlace) -> EpochMillis {
    bucket_of(place.failed_at, limits::LIST_BUCKET)
}

/// What stands in the row, and what in parts of their own.
fn parts_of(bytes: &[u8]) -> (&[u8], Vec<&[u8]>) {
    let mut parts = bytes.chunks(limits::PART_BYTES);
    (parts.next().unwrap_or_default(), parts.collect())
}

fn part_column(part: usize) -> i32 {
    i32::try_from(part).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_small_stands_in_the_row() {
        let sizes = |count: usize| {
            let bytes = vec![0; count];
            let (first, others) = parts_of(&bytes);
            (first.len(), others.into_iter().map(<[u8]>::len).collect::<Vec<_>>())
        };
        let most = limits::PART_BYTES;
        assert_eq!(sizes(0), (0, vec![]));
        assert_eq!(sizes(most), (most, vec![]));
        assert_eq!(sizes(2 * most + 1), (most, vec![most, 1]));
    }
}
