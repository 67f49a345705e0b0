//! The inbox: a row a message and user, put together from cells that anybody writes.
//!
//! What PENDING and FAILED say of a row is written with its base column, in one statement, so both
//! end together; what DELIVERED says outlives them. Of cells of one rank the one that expires last
//! stays, so a repeated write never shortens a row's life.

use async_trait::async_trait;
use scylla::DeserializeRow;
use scylla::frame::response::result::ColumnType;
use scylla::serialize::SerializationError;
use scylla::serialize::value::SerializeValue;
use scylla::serialize::writers::{CellWriter, WrittenCellProof};
use scylla::statement::batch::BatchStatement;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;

use super::lists::limit_column;
use super::ranks::{Ranks, delivery_column, keep_time, ttl_column};
use super::rows::{
    BroadcastColumns, NewBroadcast, TimesColumns, id_column, malformed, read_id, read_status,
    read_time, time_column, written_at,
};
use super::statements::{Connected, Shared, each, execute, execute_together, rows_of};
use super::{ScyllaStore, cursor, group, hole};
use crate::base::{BroadcastId, EpochMillis, LogIdentity, Partition, Position, Topic, UserId};
use crate::domain::Broadcast;
use crate::limits::inbox as limits;
use crate::ports::{
    Content, Delivery, GroupRow, Hole, Inbox, InboxRow, InboxWrite, Place, Progress, Removal,
    StoreError,
};

/// Log, topic, partition, offset, time of the append.
type PlaceColumn = ([u8; 3], i8, i32, i64, CqlTimestamp);
type ReadPlaceColumn = (Vec<u8>, i8, i32, i64, CqlTimestamp);
/// Attempt and delivery.
type ProgressColumn = (i64, i8);

/// A row as it is read. Any of its cells may be missing.
#[derive(DeserializeRow)]
struct InboxColumns {
    id: i64,
    v: Option<i32>,
    place: Option<ReadPlaceColumn>,
    progress: Option<ProgressColumn>,
    delivered_at: Option<CqlTimestamp>,
    removed: Option<ReadPlaceColumn>,
}

/// What one statement sets.
enum Cell {
    Place(PlaceColumn),
    Progress(ProgressColumn),
    DeliveredAt(CqlTimestamp),
}

/// Rank, time to live, value, user, broadcast.
type CellValues<'a> = (i64, i32, Cell, &'a str, i64);

#[async_trait]
impl Inbox for ScyllaStore {
    async fn write_inbox(&self, writes: &[InboxWrite]) -> Result<(), StoreError> {
        let batches = batches_of(writes, |write| &write.user);
        if batches.is_empty() {
            return Ok(());
        }
        let (connected, now) = (self.connected()?, self.clock.wall());
        each(batches, |batch| {
            let connected = connected.clone();
            async move { write_batch(&connected, &batch, now).await }
        })
        .await
        .map(drop)
    }

    async fn inbox(
        &self,
        user: &UserId,
        after: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<InboxRow>, StoreError> {
        rows(&self.connected()?, user, after, limit).await
    }

    async fn write_removals(&self, removals: &[Removal]) -> Result<(), StoreError> {
        let batches = batches_of(removals, |removal| &removal.user);
        if batches.is_empty() {
            return Ok(());
        }
        let (connected, now) = (self.connected()?, self.clock.wall());
        each(batches, |batch| {
            let connected = connected.clone();
            async move { write_removals(&connected, &batch, now).await }
        })
        .await
        .map(drop)
    }

    async fn write_group(&self, rows: &[GroupRow]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        group::write(self, &self.connected()?, rows).await
    }

    async fn group(
        &self,
        log: LogIdentity,
        partition: u16,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GroupRow>, StoreError> {
        group::rows(&self.connected()?, log, partition, from, limit).await
    }

    async fn write_holes(&self, log: LogIdentity, holes: &[Hole]) -> Result<(), StoreError> {
        if holes.is_empty() {
            return Ok(());
        }
        hole::write(&self.connected()?, log, holes).await
    }

    async fn holes(&self, log: LogIdentity) -> Result<Vec<Hole>, StoreError> {
        hole::read(&self.connected()?, log).await
    }

    async fn write_contents(&self, contents: &[Broadcast]) -> Result<(), StoreError> {
        if contents.is_empty() {
            return Ok(());
        }
        let (connected, now) = (self.connected()?, self.clock.wall());
        each(contents.to_vec(), |content| {
            let connected = connected.clone();
            async move { write_content(&connected, &content, now).await }
        })
        .await
        .map(drop)
    }

    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let connected = self.connected()?;
        each(ids.to_vec(), |id| {
            let connected = connected.clone();
            async move { content(&connected, id).await }
        })
        .await
    }

    async fn write_cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
        next: &[(Partition, u64)],
    ) -> Result<(), StoreError> {
        if next.is_empty() {
            return Ok(());
        }
        cursor::write(&self.connected()?, user, log, next).await
    }

    async fn cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        cursor::read(&self.connected()?, user, log).await
    }
}

/// What is written, by user, so much together as one batch takes.
fn batches_of<T: Clone>(writes: &[T], user: impl Fn(&T) -> &UserId) -> Vec<Vec<T>> {
    let mut sorted: Vec<&T> = writes.iter().collect();
    sorted.sort_by(|one, other| user(one).cmp(user(other)));
    sorted
        .chunk_by(|one, other| user(one) == user(other))
        .flat_map(|of_user| of_user.chunks(limits::BATCH_ROWS))
        .map(|batch| batch.iter().copied().cloned().collect())
        .collect()
}

async fn write_batch(
    connected: &Connected,
    batch: &[InboxWrite],
    now: EpochMillis,
) -> Result<(), StoreError> {
    let prepared = &connected.statements.inbox;
    let mut statements: Vec<BatchStatement> = Vec::with_capacity(2 * batch.len());
    let mut values: Vec<CellValues<'_>> = Vec::with_capacity(2 * batch.len());
    for write in batch {
        let InboxWrite { user, broadcast, place, progress, at, keep_until } = write;
        let ranks = Ranks::of(*broadcast, now);
        let keep = keep_time(*keep_until, now);
        let (row_ttl, state_ttl) = (ttl_column(keep), ttl_column(keep + limits::STATE_OUTLIVES));
        let mut put = |statement: &PreparedStatement, rank, ttl, cell| {
            statements.push(statement.clone().into());
            values.push((rank, ttl, cell, user.as_str(), id_column(*broadcast)));
        };
        let stands = Cell::Progress(progress_column(*progress));
        if progress.delivery == Delivery::Delivered {
            put(&prepared.set_progress, ranks.progress(*progress), state_ttl, stands);
            let delivered = Cell::DeliveredAt(time_column(*at));
            put(&prepared.set_delivered, ranks.delivered(*at), state_ttl, delivered);
        } else {
            put(&prepared.set_row, ranks.progress(*progress), row_ttl, stands);
        }
        if let Some(place) = place {
            let rank = ranks.place(place.position.offset);
            put(&prepared.set_place, rank, state_ttl, Cell::Place(place_column(place)));
        }
    }
    execute_together(&connected.session, statements, values).await
}

/// A removal lives as long as what says how the row stands, so it never ends before the row.
async fn write_removals(
    connected: &Connected,
    batch: &[Removal],
    now: EpochMillis,
) -> Result<(), StoreError> {
    let set = &connected.statements.inbox.set_removed;
    let statements = vec![BatchStatement::from(set.clone()); batch.len()];
    let values: Vec<CellValues<'_>> = batch
        .iter()
        .map(|removal| {
            let Removal { user, broadcast, place, keep_until } = removal;
            let rank = Ranks::of(*broadcast, now).place(place.position.offset);
            let ttl = ttl_column(keep_time(*keep_until, now) + limits::STATE_OUTLIVES);
            let cell = Cell::Place(place_column(place));
            (rank, ttl, cell, user.as_str(), id_column(*broadcast))
        })
        .collect();
    execute_together(&connected.session, statements, values).await
}

async fn rows(
    connected: &Shared,
    user: &UserId,
    after: Option<BroadcastId>,
    limit: usize,
) -> Result<Vec<InboxRow>, StoreError> {
    let Connected { session, statements } = &**connected;
    let mut found = Vec::new();
    let mut after = after.map_or(-1, id_column);
    while found.len() < limit {
        let asked = (limit - found.len()).min(limits::ROWS_READ);
        let values = (user.as_str(), after, limit_column(asked));
        let columns = rows_of::<InboxColumns>(session, &statements.inbox.inbox, values).await?;
        let is_end = columns.len() < asked;
        for columns in columns {
            after = columns.id;
            found.extend(columns.read()?);
        }
        if is_end {
            break;
        }
    }
    Ok(found)
}

/// Looks first: most are there, Corecast's own. No transaction, which takes four times as long: a
/// claim is newer than this, so it stays whole even if it comes between.
async fn write_content(
    connected: &Connected,
    content: &Broadcast,
    now: EpochMillis,
) -> Result<(), StoreError> {
    let Connected { session, statements } = connected;
    let key = (id_column(content.id),);
    let found = rows_of::<TimesColumns>(session, &statements.broadcast_times, key).await?;
    if !found.is_empty() {
        return Ok(());
    }
    // Producers' clocks are not ours, and ScyllaDB takes nothing from the future.
    let written = written_at(content.created_at.min(now));
    let mut insert = statements.inbox.insert_content.clone();
    insert.set_timestamp(Some(written));
    // Nobody waits for it, and a content may be large: a second try beside the first would have a
    // busy store do the same twice. Whoever fails writes it again.
    insert.set_is_idempotent(false);
    execute(session, &insert, NewBroadcast::new(content, None)).await
}

/// `None` if nobody has claimed or written the id.
async fn content(connected: &Shared, id: BroadcastId) -> Result<Option<Content>, StoreError> {
    let Connected { session, statements } = &**connected;
    let key = (id_column(id),);
    let (status, content) = tokio::try_join!(
        rows_of::<(Option<String>,)>(session, &statements.status, key),
        rows_of::<BroadcastColumns>(session, &statements.broadcast, key),
    )?;
    let Some(columns) = content.into_iter().next() else { return Ok(None) };
    let word = status.into_iter().next().and_then(|(word,)| word);
    let status = word.map(|word| read_status(&word)).transpose()?;
    Ok(Some(Content { broadcast: columns.read_content()?, status }))
}

impl InboxColumns {
    /// `None` if it is no row yet, or no longer.
    fn read(self) -> Result<Option<InboxRow>, StoreError> {
        let (Some(_), Some(progress)) = (self.v, self.progress) else { return Ok(None) };
        Ok(Some(InboxRow {
            broadcast: read_id(self.id)?,
            place: self.place.map(read_place).transpose()?,
            progress: read_progress(progress)?,
            delivered_at: read_time(self.delivered_at)?,
            removed: self.removed.map(read_place).transpose()?,
        }))
    }
}

impl SerializeValue for Cell {
    fn serialize<'b>(
        &self,
        column: &ColumnType<'_>,
        writer: CellWriter<'b>,
    ) -> Result<WrittenCellProof<'b>, SerializationError> {
        match self {
            Self::Place(value) => value.serialize(column, writer),
            Self::Progress(value) => value.serialize(column, writer),
            Self::DeliveredAt(value) => value.serialize(column, writer),
        }
    }
}

fn place_column(place: &Place) -> PlaceColumn {
    let Place { log, position: Position { partition, offset }, appended_at } = place;
    let topic = topic_column(partition.topic);
    let index = i32::from(partition.index);
    (log.0, topic, index, offset_column(*offset), time_column(*appended_at))
}

fn read_place(place: ReadPlaceColumn) -> Result<Place, StoreError> {
    let (log, topic, index, offset, appended_at) = place;
    let log = log.try_into().map_err(|_| malformed("a log's identity is not of 3 bytes"))?;
    let position =
        Position { partition: read_partition(topic, index)?, offset: read_offset(offset)? };
    let appended_at = read_time(Some(appended_at))?.ok_or_else(|| malformed("no time"))?;
    Ok(Place { log: LogIdentity(log), position, appended_at })
}

fn progress_column(progress: Progress) -> ProgressColumn {
    (i64::from(progress.attempt), delivery_column(progress.delivery))
}

fn read_progress((attempt, delivery): ProgressColumn) -> Result<Progress, StoreError> {
    let known = [Delivery::Pending, Delivery::Failed, Delivery::Delivered];
    let delivery = known.into_iter().find(|known| delivery_column(*known) == delivery);
    let attempt = u32::try_from(attempt).ok();
    let (Some(attempt), Some(delivery)) = (attempt, delivery) else {
        return Err(malformed("unknown progress of a message"));
    };
    Ok(Progress { attempt, delivery })
}

pub(super) const fn topic_column(topic: Topic) -> i8 {
    (topic as u8).cast_signed()
}

pub(super) fn read_partition(topic: i8, index: i32) -> Result<Partition, StoreError> {
    let unknown = || malformed(&format!("unknown partition {index} of topic {topic}"));
    let topic = Topic::from_number(topic.cast_unsigned()).ok_or_else(unknown)?;
    Ok(Partition { topic, index: u16::try_from(index).map_err(|_| unknown())? })
}

/// Offsets are below 2^48.
pub(super) fn offset_column(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

pub(super) fn read_offset(offset: i64) -> Result<u64, StoreError> {
    u64::try_from(offset).map_err(|_| malformed("an offset below 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(user: &str, id: u64) -> InboxWrite {
        InboxWrite {
            user: UserId::new(user).expect("a user id"),
            broadcast: BroadcastId::new(id).expect("an id"),
            place: None,
            progress: Progress { attempt: 0, delivery: Delivery::Pending },
            at: EpochMillis(0),
            keep_until: EpochMillis(0),
        }
    }

    #[test]
    fn a_batch_is_of_one_user_and_bounded() {
        let rows = limits::BATCH_ROWS as u64;
        let mut writes: Vec<InboxWrite> = (0..=rows).map(|id| write("ann", id)).collect();
        writes.insert(1, write("ben", 7));
        writes.push(write("ben", 8));
        writes.push(write("cem", 9));
        let batches: Vec<(String, usize)> = batches_of(&writes, |write| &write.user)
            .iter()
            .map(|batch| {
                assert!(batch.iter().all(|write| write.user == batch[0].user));
                (batch[0].user.to_string(), batch.len())
            })
            .collect();
        let expected = [("ann", limits::BATCH_ROWS), ("ann", 1), ("ben", 2), ("cem", 1)];
        assert_eq!(batches, expected.map(|(user, count)| (user.to_owned(), count)));
        assert!(batches_of(&[], |write: &InboxWrite| &write.user).is_empty());
    }

    #[test]
    fn rows_without_their_base_are_none() {
        let bare = || InboxColumns {
            id: 1,
            v: Some(1),
            place: None,
            progress: Some((u32::MAX.into(), 2)),
            delivered_at: None,
            removed: None,
        };
        let furthest = Progress { attempt: u32::MAX, delivery: Delivery::Delivered };
        let row = bare().read().expect("well-formed").expect("a row");
        assert_eq!(row.progress, furthest);
        for none in [InboxColumns { v: None, ..bare() }, InboxColumns { progress: None, ..bare() }]
        {
            assert_eq!(none.read().expect("well-formed"), None);
        }
        let at = CqlTimestamp(0);
        for odd in [
            InboxColumns { id: -1, ..bare() },
            InboxColumns { progress: Some((0, 3)), ..bare() },
            InboxColumns { progress: Some((-1, 0)), ..bare() },
            InboxColumns { place: Some((vec![1, 2], 0, 0, 0, at)), ..bare() },
            InboxColumns { place: Some((vec![1, 2, 3], 2, 0, 0, at)), ..bare() },
            InboxColumns { place: Some((vec![1, 2, 3], 0, 65_536, 0, at)), ..bare() },
            InboxColumns { place: Some((vec![1, 2, 3], 0, 0, -1, at)), ..bare() },
            InboxColumns { delivered_at: Some(CqlTimestamp(-1)), ..bare() },
        ] {
            assert!(matches!(odd.read(), Err(StoreError::Failed(_))));
        }
    }
}
