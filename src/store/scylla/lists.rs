//! The lists: which broadcasts there are, by time.
//!
//! An entry is written before the status, so that what exists is listed. It says that the broadcast
//! may belong into the list; whether it does, the status row says when the list is read. Entries
//! stand in buckets of a day, and the bucket is noted before its first entry.

use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;

use super::ScyllaStore;
use super::rows::{
    Times, bucket_of, id_column, malformed, read_id, read_time, time_column, written_at,
};
use super::statements::{Shared, Statements, each, execute, rows_of};
use crate::base::{BroadcastId, EpochMillis, Status};
use crate::limits::store as limits;
use crate::ports::{BroadcastRow, ListFilter, ListPlace, StoreError};

/// What stands in buckets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum List {
    All,
    Active,
    Scheduled,
    Outbox,
    Parked,
    DeadLetters,
    Audit,
    Endings,
    Due,
}

impl List {
    /// As the table `bucket` knows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Active => "active",
            Self::Scheduled => "scheduled",
            Self::Outbox => "outbox",
            Self::Parked => "parked",
            Self::DeadLetters => "dead letters",
            Self::Audit => "audit",
            Self::Endings => "endings",
            Self::Due => "due",
        }
    }

    fn of(filter: ListFilter) -> Self {
        match filter {
            ListFilter::All => Self::All,
            ListFilter::Active => Self::Active,
            ListFilter::Scheduled => Self::Scheduled,
        }
    }

    fn holds(self, status: Status) -> bool {
        match self {
            Self::All => true,
            Self::Active => status == Status::Active,
            Self::Scheduled => status == Status::Scheduled,
            _ => false,
        }
    }

    fn read(self, statements: &Statements) -> &PreparedStatement {
        match self {
            Self::All => &statements.listed,
            Self::Active => &statements.active,
            Self::Scheduled => &statements.scheduled,
            Self::Outbox => &statements.outbox,
            Self::Parked => &statements.parking.list,
            Self::DeadLetters => &statements.dead_letters.listed,
            Self::Audit => &statements.audit.listed,
            Self::Endings => &statements.endings.listed,
            Self::Due => &statements.endings.due,
        }
    }

    /// Whether the oldest come first.
    const fn rises(self) -> bool {
        !matches!(self, Self::All | Self::Active | Self::DeadLetters | Self::Audit)
    }
}

/// Puts the broadcast into the lists in which it may be looked for with this status.
pub(super) async fn enter(
    store: &ScyllaStore,
    connected: &Shared,
    id: BroadcastId,
    times: Times,
    status: Status,
) -> Result<(), StoreError> {
    let day = |at| bucket_of(at, limits::LIST_BUCKET);
    let statements = &connected.statements;
    let mut entries =
        vec![(List::All, &statements.insert_listed, day(times.created_at), times.created_at)];
    if status == Status::Active {
        let ends = day(times.expires_at.unwrap_or(EpochMillis::MAX));
        entries.push((List::Active, &statements.insert_active, ends, times.created_at));
    }
    if status == Status::Scheduled {
        let at = times.scheduled_at.unwrap_or(times.created_at);
        entries.push((List::Scheduled, &statements.insert_scheduled, day(at), at));
    }
    for (list, insert, bucket, at) in entries {
        store.note_bucket(connected, list, bucket).await?;
        let written = written_at(times.created_at);
        let values = (time_column(bucket), time_column(at), id_column(id), written);
        execute(&connected.session, insert, values).await?;
    }
    Ok(())
}

/// A page: entries in order, of which those are kept whose status is right.
pub(super) async fn page(
    connected: &Shared,
    filter: ListFilter,
    after: Option<ListPlace>,
    limit: usize,
) -> Result<Vec<BroadcastRow>, StoreError> {
    let list = List::of(filter);
    let mut found: Vec<BroadcastRow> = Vec::new();
    let mut after = after;
    while found.len() < limit {
        let places = places(connected, list, after, limit - found.len()).await?;
        let Some(last) = places.last() else { break };
        after = Some(*last);
        let rows = each(places, |place| {
            let connected = connected.clone();
            async move { super::row(&connected, place.id).await }
        })
        .await?;
        found.extend(rows.into_iter().flatten().filter(|row| list.holds(row.status)));
    }
    Ok(found)
}

/// Entries behind that place, in order, at most `limit`, and none only if there are no more.
async fn places(
    connected: &Shared,
    list: List,
    after: Option<ListPlace>,
    limit: usize,
) -> Result<Vec<ListPlace>, StoreError> {
    if list == List::Active {
        return active_places(connected, after, limit).await;
    }
    let mut found = Vec::new();
    let mut from = after.map(|place| bucket_of(place.at, limits::LIST_BUCKET));
    loop {
        let buckets = buckets(connected, list, from).await?;
        for bucket in &buckets {
            let wanted = limit - found.len();
            found.extend(places_of_bucket(connected, list, *bucket, after, wanted).await?);
            if found.len() == limit {
                return Ok(found);
            }
        }
        let Some(last) = buckets.last().filter(|_| buckets.len() == limits::BUCKETS_READ) else {
            return Ok(found);
        };
        // Days are whole, so the next one begins a day on.
        let day = u64::try_from(limits::LIST_BUCKET.as_millis()).unwrap_or(u64::MAX);
        from = Some(match list {
            _ if list.rises() => EpochMillis(last.0.saturating_add(day)),
            _ if last.0 < day => return Ok(found),
            _ => EpochMillis(last.0 - day),
        });
    }
}

/// The buckets are those of the ends, so the order of creation comes by merging them.
async fn active_places(
    connected: &Shared,
    after: Option<ListPlace>,
    limit: usize,
) -> Result<Vec<ListPlace>, StoreError> {
    let buckets = buckets_from(connected, List::Active, EpochMillis(0)).await?;
    let found = each(buckets, |bucket| {
        let connected = connected.clone();
        async move { places_of_bucket(&connected, List::Active, bucket, after, limit).await }
    })
    .await?;
    let mut found: Vec<ListPlace> = found.into_iter().flatten().collect();
    found.sort_by_key(|place| std::cmp::Reverse((place.at, place.id)));
    found.truncate(limit);
    Ok(found)
}

pub(super) async fn places_of_bucket(
    connected: &Shared,
    list: List,
    bucket: EpochMillis,
    after: Option<ListPlace>,
    limit: usize,
) -> Result<Vec<ListPlace>, StoreError> {
    let (at, id) = match (after, list) {
        (Some(place), _) => (time_column(place.at), id_column(place.id)),
        (None, _) if list.rises() => (CqlTimestamp(-1), -1),
        (None, _) => (CqlTimestamp(i64::MAX), i64::MAX),
    };
    let values = (time_column(bucket), at, id, limit_column(limit));
    let statement = list.read(&connected.statements);
    let rows = rows_of::<(CqlTimestamp, i64)>(&connected.session, statement, values).await?;
    rows.into_iter().map(|(at, id)| place(at, id)).collect()
}

fn place(at: CqlTimestamp, id: i64) -> Result<ListPlace, StoreError> {
    let at = read_time(Some(at))?.ok_or_else(|| malformed("no time"))?;
    Ok(ListPlace { at, id: read_id(id)? })
}

/// Some buckets in the list's order from that one on; fewer than `BUCKETS_READ` only at the end.
pub(super) async fn buckets(
    connected: &Shared,
    list: List,
    from: Option<EpochMillis>,
) -> Result<Vec<EpochMillis>, StoreError> {
    let statements = &connected.statements;
    // The active ones stand in the buckets of their ends.
    let (statement, default) = match list {
        _ if list.rises() => (&statements.buckets_up, CqlTimestamp(0)),
        List::Active => (&statements.buckets_up, CqlTimestamp(0)),
        _ => (&statements.buckets_down, CqlTimestamp(i64::MAX)),
    };
    let from = from.map_or(default, time_column);
    let values = (list.name(), from, limit_column(limits::BUCKETS_READ));
    let rows = rows_of::<(CqlTimestamp,)>(&connected.session, statement, values).await?;
    let times = rows.into_iter().map(|(at,)| read_time(Some(at)));
    Ok(times.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// All buckets of a list that is noted upwards, from that one on.
pub(super) async fn buckets_from(
    connected: &Shared,
    list: List,
    from: EpochMillis,
) -> Result<Vec<EpochMillis>, StoreError> {
    buckets_between(connected, list, from, EpochMillis::MAX).await
}

/// The same, up to that one.
pub(super) async fn buckets_between(
    connected: &Shared,
    list: List,
    from: EpochMillis,
    to: EpochMillis,
) -> Result<Vec<EpochMillis>, StoreError> {
    let mut all: Vec<EpochMillis> = Vec::new();
    let mut next = from;
    loop {
        let some = buckets(connected, list, Some(next)).await?;
        let is_end = some.len() < limits::BUCKETS_READ;
        all.extend(some.into_iter().take_while(|bucket| *bucket <= to));
        match all.last() {
            Some(last) if !is_end && *last >= next => next = EpochMillis(last.0 + 1),
            _ => return Ok(all),
        }
    }
}

pub(super) fn limit_column(limit: usize) -> i32 {
    i32::try_from(limit).unwrap_or(i32::MAX)
}
