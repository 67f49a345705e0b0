//! How broadcasts end: statuses that are changed by transactions, endings by hour of their writing,
//! and what is due by share and hour. Rows are marked when they are done; readers go on from stored
//! positions (`positions.rs`).

use async_trait::async_trait;
use scylla::DeserializeRow;
use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::lists::{self, List, buckets_between, buckets_from, limit_column, places_of_bucket};
use super::lwt::StatusChange;
use super::parking::share_column;
use super::positions::{Look, move_position, position};
use super::ranks::{keep_time, ttl_column};
use super::rows::{
    Times, bucket_of, id_column, malformed, read_id, read_status, read_time, time_column,
    written_at,
};
use super::statements::{Kind, Shared, execute, prepare, rows_of};
use super::{ScyllaStore, times_of};
use crate::base::{BroadcastId, End, EpochMillis, Status};
use crate::limits::store as limits;
use crate::ports::{
    Bucket, Change, Claim, Due, Ending, Endings, NotedEnding, Store, StoreError, join_all,
};

pub(super) struct EndingStatements {
    insert: PreparedStatement,
    settle: PreparedStatement,
    pub listed: PreparedStatement,
    insert_due: PreparedStatement,
    mark_due: PreparedStatement,
    pub due: PreparedStatement,
}

impl EndingStatements {
    pub async fn prepare(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        let prepare = async |text: &str| prepare(session, keyspace, Kind::Plain, text).await;
        Ok(Self {
            insert: prepare(
                "INSERT INTO KS.ending (bucket, at, id, how) VALUES (?, ?, ?, ?) \
                 USING TIMESTAMP ?",
            )
            .await?,
            settle: prepare(
                "UPDATE KS.ending USING TIMESTAMP ? SET settled = true \
                 WHERE bucket = ? AND at = ? AND id = ?",
            )
            .await?,
            listed: prepare(
                "SELECT at, id, how, settled FROM KS.ending WHERE bucket = ? \
                 AND (at, id) > (?, ?) LIMIT ?",
            )
            .await?,
            insert_due: prepare(
                "INSERT INTO KS.due (share, bucket, at, id, v) VALUES (?, ?, ?, ?, 1) \
                 USING TIMESTAMP ? AND TTL ?",
            )
            .await?,
            mark_due: prepare(
                "UPDATE KS.due USING TIMESTAMP ? AND TTL ? SET done = true \
                 WHERE share = ? AND bucket = ? AND at = ? AND id = ?",
            )
            .await?,
            due: prepare(
                "SELECT at, id, v, done FROM KS.due WHERE share = ? AND bucket = ? \
                 AND (at, id) > (?, ?) LIMIT ?",
            )
            .await?,
        })
    }
}

#[derive(DeserializeRow)]
struct EndingColumns {
    at: CqlTimestamp,
    id: i64,
    how: Option<String>,
    settled: Option<bool>,
}

#[derive(DeserializeRow)]
struct DueColumns {
    at: CqlTimestamp,
    id: i64,
    v: Option<i32>,
    done: Option<bool>,
}

/// Key of a row within its hour.
type Place = (CqlTimestamp, i64);

#[async_trait]
impl Endings for ScyllaStore {
    async fn change_status(&self, id: BroadcastId, to: Status) -> Result<Change, StoreError> {
        let connected = self.connected()?;
        if matches!(to, Status::Active | Status::Scheduled) {
            // What exists is listed, so it is listed before.
            let times = times_of(&connected, id).await?;
            let Some(times) = times else { return Ok(Change::Missing) };
            lists::enter(self, &connected, id, times, to).await?;
        }
        let (changed_at, token) = (time_column(self.clock.wall()), Uuid::new_v4());
        StatusChange { connected: &connected, id, to, changed_at, token }.run().await
    }

    async fn create_ended(&self, id: BroadcastId, how: End) -> Result<Claim, StoreError> {
        self.create_status(id, how.status()).await
    }

    async fn put_ending(&self, ending: &Ending) -> Result<(), StoreError> {
        let connected = self.connected()?;
        let hour = bucket_of(ending.at, limits::OUTBOX_BUCKET);
        self.note_bucket(&connected, List::Endings, hour).await?;
        let (at, id) = (time_column(ending.at), id_column(ending.id));
        let written = written_at(ending.at.min(self.clock.wall()));
        let values = (time_column(hour), at, id, ending.how.status().word(), written);
        execute(&connected.session, &connected.statements.endings.insert, values).await
    }

    async fn settle_ending(&self, ending: &Ending) -> Result<(), StoreError> {
        let connected = self.connected()?;
        let hour = bucket_of(ending.at, limits::OUTBOX_BUCKET);
        let (at, id) = (time_column(ending.at), id_column(ending.id));
        let written = written_at(ending.at.min(self.clock.wall()));
        let values = (written, time_column(hour), at, id);
        execute(&connected.session, &connected.statements.endings.settle, values).await
    }

    async fn endings(
        &self,
        since: EpochMillis,
        after: Option<(EpochMillis, BroadcastId)>,
        limit: usize,
    ) -> Result<Vec<NotedEnding>, StoreError> {
        let after = after.filter(|(at, _)| *at >= since);
        let from = after.map_or(since, |(at, _)| at);
        let behind = match after {
            Some((at, id)) => (time_column(at), id_column(id)),
            None => before(since),
        };
        read(&self.connected()?, from, behind, limit, |_| true).await
    }

    async fn open_endings(&self, limit: usize) -> Result<Vec<Ending>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let connected = self.connected()?;
        // What is written after this moment is not below the new position.
        let now = self.clock.wall();
        let from = position(self, &connected, List::Endings).await?;
        let open = read(&connected, from, before(from), limit, |noted| !noted.is_settled).await?;
        let open: Vec<Ending> = open.into_iter().map(|noted| noted.ending).collect();
        let first = open.first().map(|ending| ending.at);
        move_position(self, &connected, List::Endings, from, (now, first)).await?;
        Ok(open)
    }

    async fn due(
        &self,
        share: Bucket,
        until: EpochMillis,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let connected = self.connected()?;
        let look = Look::begin(self, &connected, List::Due, share).await?;
        if look.is_first() {
            fill(self, &connected, share).await?;
        }
        let due = read_due(&connected, share, look.from(), until, limit).await?;
        // What lies behind `until` has not been looked at.
        let first = due.first().map_or(until, |first| first.at);
        look.end(self, &connected, Some(first)).await?;
        Ok(due)
    }

    async fn mark_due(&self, due: &Due) -> Result<(), StoreError> {
        let connected = self.connected()?;
        let now = self.clock.wall();
        let values = (
            written_at(now),
            due_ttl(due.at, now),
            share_column(Bucket::of_broadcast(due.id)),
            time_column(bucket_of(due.at, limits::OUTBOX_BUCKET)),
            time_column(due.at),
            id_column(due.id),
        );
        execute(&connected.session, &connected.statements.endings.mark_due, values).await
    }
}

/// Notes when a broadcast that is to exist expires. One that is late stands where nobody has looked
/// yet.
pub(super) async fn enter(
    store: &ScyllaStore,
    connected: &Shared,
    id: BroadcastId,
    times: Times,
    status: Status,
) -> Result<(), StoreError> {
    let Some(expires_at) = times.expires_at.filter(|_| !status.is_final()) else { return Ok(()) };
    let now = store.clock.wall();
    let at = expires_at.max(now);
    let hour = bucket_of(at, limits::OUTBOX_BUCKET);
    store.note_bucket(connected, List::Due, hour).await?;
    let values = (
        share_column(Bucket::of_broadcast(id)),
        time_column(hour),
        time_column(at),
        id_column(id),
        written_at(now),
        due_ttl(at, now),
    );
    execute(&connected.session, &connected.statements.endings.insert_due, values).await
}

/// Notes what is due of the broadcasts that a release made which did not: of those that may be
/// active and end from now on, by how the list of these stands. What ended yesterday is of clocks.
async fn fill(store: &ScyllaStore, connected: &Shared, share: Bucket) -> Result<(), StoreError> {
    let yesterday = store.clock.wall().minus(limits::LIST_BUCKET);
    let first = bucket_of(yesterday, limits::LIST_BUCKET);
    for day in buckets_from(connected, List::Active, first).await? {
        let mut after = None;
        loop {
            let limit = limits::OUTBOX_READ;
            let places = places_of_bucket(connected, List::Active, day, after, limit).await?;
            after = places.last().copied();
            let of_share: Vec<BroadcastId> = places
                .iter()
                .map(|place| place.id)
                .filter(|id| Bucket::of_broadcast(*id) == share)
                .collect();
            for some in of_share.chunks(limits::IN_FLIGHT_MAX) {
                let noted = join_all(some.iter().map(|id| enter_listed(store, connected, *id)));
                noted.await.into_iter().collect::<Result<(), StoreError>>()?;
            }
            if places.len() < limit {
                break;
            }
        }
    }
    Ok(())
}

async fn enter_listed(
    store: &ScyllaStore,
    connected: &Shared,
    id: BroadcastId,
) -> Result<(), StoreError> {
    match times_of(connected, id).await? {
        Some(times) => enter(store, connected, id, times, Status::Active).await,
        None => Ok(()),
    }
}

fn due_ttl(at: EpochMillis, now: EpochMillis) -> i32 {
    ttl_column(keep_time(at.plus(limits::ENDINGS_KEEP), now))
}

/// Endings behind that place, of those that are wanted at most `limit`.
async fn read(
    connected: &Shared,
    from: EpochMillis,
    mut after: Place,
    limit: usize,
    is_wanted: impl Fn(&NotedEnding) -> bool,
) -> Result<Vec<NotedEnding>, StoreError> {
    let mut found = Vec::new();
    let first = bucket_of(from, limits::OUTBOX_BUCKET);
    for hour in buckets_from(connected, List::Endings, first).await? {
        loop {
            let values = (time_column(hour), after.0, after.1, limit_column(limits::OUTBOX_READ));
            let statement = &connected.statements.endings.listed;
            let rows = rows_of::<EndingColumns>(&connected.session, statement, values).await?;
            let is_end = rows.len() < limits::OUTBOX_READ;
            for row in rows {
                after = (row.at, row.id);
                let Some(noted) = row.read()?.filter(|noted| is_wanted(noted)) else { continue };
                if found.len() == limit {
                    return Ok(found);
                }
                found.push(noted);
            }
            if is_end {
                break;
            }
        }
    }
    Ok(found)
}

/// Rows of a share that are not marked, in order, at most `limit`.
async fn read_due(
    connected: &Shared,
    share: Bucket,
    from: EpochMillis,
    until: EpochMillis,
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let mut found = Vec::new();
    let mut after = before(from);
    let first = bucket_of(from, limits::OUTBOX_BUCKET);
    for hour in buckets_between(connected, List::Due, first, until).await? {
        loop {
            let (share, hour) = (share_column(share), time_column(hour));
            let values = (share, hour, after.0, after.1, limit_column(limits::OUTBOX_READ));
            let statement = &connected.statements.endings.due;
            let rows = rows_of::<DueColumns>(&connected.session, statement, values).await?;
            let is_end = rows.len() < limits::OUTBOX_READ;
            for row in rows {
                after = (row.at, row.id);
                let at = read_time(Some(row.at))?.ok_or_else(|| malformed("no time"))?;
                if at > until || found.len() == limit {
                    return Ok(found);
                }
                if row.v.is_some() && row.done != Some(true) {
                    found.push(Due { id: read_id(row.id)?, at });
                }
            }
            if is_end {
                break;
            }
        }
    }
    Ok(found)
}

/// Before all rows of that time.
fn before(at: EpochMillis) -> Place {
    (CqlTimestamp(time_column(at).0 - 1), i64::MAX)
}

impl EndingColumns {
    /// `None` if it is only a mark.
    fn read(self) -> Result<Option<NotedEnding>, StoreError> {
        let Some(word) = self.how else { return Ok(None) };
        let how = End::of_status(read_status(&word)?);
        let how = how.ok_or_else(|| malformed(&format!("{word} is no end of a broadcast")))?;
        let at = read_time(Some(self.at))?.ok_or_else(|| malformed("no time"))?;
        let ending = Ending { id: read_id(self.id)?, at, how };
        Ok(Some(NotedEnding { ending, is_settled: self.settled == Some(true) }))
    }
}
