//! Records of the group topic, in buckets of 16,384 offsets.
//!
//! A bucket is noted before its first row is written, for as long as its rows live. So a reader
//! goes from one bucket that holds rows to the next, however far apart they are, and looks into
//! none of which all rows have expired.

use std::collections::HashMap;
use std::time::Duration;

use scylla::DeserializeRow;
use scylla::statement::batch::BatchStatement;
use scylla::value::{CqlTimestamp, MaybeUnset};

use super::inbox::{offset_column, read_offset};
use super::lists::limit_column;
use super::ranks::{keep_time, ttl_column};
use super::rows::{id_column, malformed, read_id, read_time, time_column, written_at};
use super::statements::{Connected, Shared, each, execute, execute_together, rows_of};
use super::{ScyllaStore, lock};
use crate::base::{EpochMillis, LogIdentity, Partition, Position, Topic};
use crate::limits::{inbox as limits, store};
use crate::ports::{GroupRow, GroupWhat, Place, StoreError};

/// A bucket is noted for up to two days longer than its rows live, so that rising ends of its rows
/// are noted once a day.
const NOTE_STEP: Duration = Duration::from_secs(24 * 3_600);

/// What a record did that took its broadcast away.
const REMOVED: &str = "REMOVED";

/// A partition of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Bucket {
    log: [u8; 3],
    partition: u16,
    number: i64,
}

/// Buckets that this process has noted, and until when the notes last.
#[derive(Default)]
pub(super) struct NotedBuckets {
    until: HashMap<Bucket, EpochMillis>,
}

#[derive(DeserializeRow)]
struct GroupColumns {
    log_offset: i64,
    id: Option<i64>,
    appended_at: Option<CqlTimestamp>,
    keep_until: Option<CqlTimestamp>,
    what: Option<String>,
}

impl Bucket {
    fn of(place: &Place) -> Self {
        debug_assert_eq!(place.position.partition.topic, Topic::Group);
        Self {
            log: place.log.0,
            partition: place.position.partition.index,
            number: bucket_number(place.position.offset),
        }
    }
}

impl NotedBuckets {
    fn covers(&self, bucket: Bucket, end: EpochMillis) -> bool {
        self.until.get(&bucket).is_some_and(|until| *until >= end)
    }

    fn note(&mut self, bucket: Bucket, until: EpochMillis) {
        if self.until.len() >= store::BUCKETS_NOTED_MAX {
            self.until.clear();
        }
        self.until.insert(bucket, until);
    }
}

pub(super) async fn write(
    store: &ScyllaStore,
    connected: &Shared,
    rows: &[GroupRow],
) -> Result<(), StoreError> {
    let now = store.clock.wall();
    let mut sorted: Vec<(Bucket, GroupRow)> =
        rows.iter().map(|row| (Bucket::of(&row.place), *row)).collect();
    sorted.sort_by_key(|(bucket, _)| *bucket);
    let mut ends: Vec<(Bucket, EpochMillis)> = Vec::new();
    let mut batches: Vec<(Bucket, Vec<GroupRow>)> = Vec::new();
    for of_bucket in sorted.chunk_by(|(one, _), (other, _)| one == other) {
        let bucket = of_bucket[0].0;
        let keep = of_bucket.iter().map(|(_, row)| keep_time(row.keep_until, now)).max();
        ends.push((bucket, now.plus(keep.unwrap_or_default())));
        for batch in of_bucket.chunks(limits::BATCH_ROWS) {
            batches.push((bucket, batch.iter().map(|(_, row)| *row).collect()));
        }
    }
    note(store, connected, ends, now).await?;
    each(batches, |(bucket, rows)| {
        let connected = connected.clone();
        async move { write_batch(&connected, bucket, &rows, now).await }
    })
    .await
    .map(drop)
}

async fn write_batch(
    connected: &Connected,
    bucket: Bucket,
    rows: &[GroupRow],
    now: EpochMillis,
) -> Result<(), StoreError> {
    let insert = &connected.statements.inbox.insert_group;
    let statements = vec![BatchStatement::from(insert.clone()); rows.len()];
    let values: Vec<_> = rows
        .iter()
        .map(|row| {
            let appended_at = row.place.appended_at;
            (
                bucket.log,
                i32::from(bucket.partition),
                bucket.number,
                offset_column(row.place.position.offset),
                id_column(row.broadcast),
                time_column(appended_at),
                time_column(row.keep_until),
                what_column(row.what),
                // Producers' clocks are not ours, and ScyllaDB takes nothing from the future.
                written_at(appended_at.min(now)),
                ttl_column(keep_time(row.keep_until, now)),
            )
        })
        .collect();
    execute_together(&connected.session, statements, values).await
}

/// Notes that these buckets hold rows up to those ends, as far as this process has not yet.
async fn note(
    store: &ScyllaStore,
    connected: &Shared,
    ends: Vec<(Bucket, EpochMillis)>,
    now: EpochMillis,
) -> Result<(), StoreError> {
    let missing: Vec<(Bucket, EpochMillis)> = {
        let noted = lock(&store.group_buckets);
        let missing = ends.into_iter().filter(|(bucket, end)| !noted.covers(*bucket, *end));
        missing.map(|(bucket, end)| (bucket, note_end(end))).collect()
    };
    each(missing.clone(), |(bucket, until)| {
        let connected = connected.clone();
        async move {
            let insert = &connected.statements.inbox.insert_group_bucket;
            let time = Duration::from_millis(until.0.saturating_sub(now.0));
            let (rank, ttl) = (note_rank(until), ttl_column(time));
            let values = (bucket.log, i32::from(bucket.partition), bucket.number, rank, ttl);
            execute(&connected.session, insert, values).await
        }
    })
    .await?;
    let mut noted = lock(&store.group_buckets);
    for (bucket, until) in missing {
        noted.note(bucket, until);
    }
    Ok(())
}

/// The next whole day but one.
fn note_end(end: EpochMillis) -> EpochMillis {
    let step = u64::try_from(NOTE_STEP.as_millis()).unwrap_or(u64::MAX);
    EpochMillis((end.0 / step + 2) * step)
}

/// The note that lasts longest stays. No rank is in the future: none is noted for longer.
fn note_rank(until: EpochMillis) -> i64 {
    let longest = limits::KEEP_MAX + 2 * NOTE_STEP;
    let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    written_at(EpochMillis(until.0.saturating_sub(longest)))
}

pub(super) async fn rows(
    connected: &Shared,
    log: LogIdentity,
    partition: u16,
    from: u64,
    limit: usize,
) -> Result<Vec<GroupRow>, StoreError> {
    let Connected { session, statements } = &**connected;
    let mut found = Vec::new();
    let mut first = bucket_number(from);
    while found.len() < limit {
        let values = (log.0, i32::from(partition), first, limit_column(store::BUCKETS_READ));
        let statement = &statements.inbox.group_buckets;
        let numbers = rows_of::<(i64,)>(session, statement, values).await?;
        for (number,) in &numbers {
            let bucket = Bucket { log: log.0, partition, number: *number };
            rows_of_bucket(connected, bucket, from, limit, &mut found).await?;
            if found.len() == limit {
                break;
            }
        }
        match numbers.last() {
            Some((last,)) if numbers.len() == store::BUCKETS_READ => first = last + 1,
            _ => break,
        }
    }
    Ok(found)
}

/// Adds the rows of a bucket until there are as many as wanted.
async fn rows_of_bucket(
    connected: &Shared,
    bucket: Bucket,
    from: u64,
    limit: usize,
    found: &mut Vec<GroupRow>,
) -> Result<(), StoreError> {
    let statement = &connected.statements.inbox.group;
    let mut from = offset_column(from);
    while found.len() < limit {
        let asked = (limit - found.len()).min(limits::ROWS_READ);
        let index = i32::from(bucket.partition);
        let values = (bucket.log, index, bucket.number, from, limit_column(asked));
        let rows = rows_of::<GroupColumns>(&connected.session, statement, values).await?;
        let is_end = rows.len() < asked;
        for columns in rows {
            from = columns.log_offset + 1;
            found.push(columns.read(bucket)?);
        }
        if is_end {
            break;
        }
    }
    Ok(())
}

impl GroupColumns {
    fn read(self, bucket: Bucket) -> Result<GroupRow, StoreError> {
        let malformed = || malformed(&format!("group message {}", self.log_offset));
        let partition = Partition { topic: Topic::Group, index: bucket.partition };
        let position = Position { partition, offset: read_offset(self.log_offset)? };
        let appended_at = read_time(self.appended_at)?.ok_or_else(malformed)?;
        Ok(GroupRow {
            broadcast: read_id(self.id.ok_or_else(malformed)?)?,
            what: match self.what.as_deref() {
                None => GroupWhat::Created,
                Some(REMOVED) => GroupWhat::Removed,
                Some(_) => return Err(malformed()),
            },
            place: Place { log: LogIdentity(bucket.log), position, appended_at },
            keep_until: read_time(self.keep_until)?.ok_or_else(malformed)?,
        })
    }
}

/// Unset for what created a broadcast, as the releases before leave it.
fn what_column(what: GroupWhat) -> MaybeUnset<&'static str> {
    match what {
        GroupWhat::Created => MaybeUnset::Unset,
        GroupWhat::Removed => MaybeUnset::Set(REMOVED),
    }
}

fn bucket_number(offset: u64) -> i64 {
    offset_column(offset) >> limits::GROUP_BUCKET_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3_600_000;

    #[test]
    fn notes_outlast_rows_and_are_not_in_the_future() {
        let now = EpochMillis(1_795_514_400_123);
        for keep in [limits::KEEP_MIN, limits::KEEP_MAX, Duration::from_secs(1_234_567)] {
            let end = now.plus(keep);
            let until = note_end(end);
            assert!((DAY..=2 * DAY).contains(&(until.0 - end.0)));
            assert!(note_rank(until) <= written_at(now));
            assert!(note_rank(EpochMillis(until.0 + DAY)) > note_rank(until));
        }
    }

    #[test]
    fn a_bucket_is_noted_again_when_its_rows_live_longer() {
        let mut noted = NotedBuckets::default();
        let bucket = |number| Bucket { log: [1, 2, 3], partition: 4, number };
        assert!(!noted.covers(bucket(0), EpochMillis(1)));
        noted.note(bucket(0), EpochMillis(5));
        assert!(noted.covers(bucket(0), EpochMillis(5)));
        assert!(!noted.covers(bucket(0), EpochMillis(6)));
        assert!(!noted.covers(bucket(1), EpochMillis(5)));
        for number in 0..2 * store::BUCKETS_NOTED_MAX as i64 {
            noted.note(bucket(number), EpochMillis(5));
        }
        assert!(noted.until.len() <= store::BUCKETS_NOTED_MAX);
    }

    #[test]
    fn buckets_are_of_16384_offsets() {
        assert_eq!(bucket_number(16_383), 0);
        assert_eq!(bucket_number(16_384), 1);
        assert_eq!(bucket_number((1 << 48) - 1), (1 << 34) - 1);
        assert!(bucket_number(u64::MAX) > 0);
    }
}
