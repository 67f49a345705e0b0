//! Holes of a log: a row each, whose write timestamp is the end, so that they merge as a maximum.

use scylla::DeserializeRow;
use scylla::statement::batch::BatchStatement;
use scylla::value::CqlTimestamp;

use super::inbox::{offset_column, read_offset, read_partition, topic_column};
use super::lists::limit_column;
use super::ranks::cursor_rank;
use super::rows::{malformed, read_time, time_column};
use super::statements::{Connected, Shared, execute_together, rows_of};
use crate::base::LogIdentity;
use crate::limits::inbox as limits;
use crate::ports::{Hole, StoreError};

#[derive(DeserializeRow)]
struct HoleColumns {
    topic: i8,
    partition_index: i32,
    log_offset: i64,
    next: Option<i64>,
    noted_at: Option<CqlTimestamp>,
}

/// All of one log are one partition of the table.
pub(super) async fn write(
    connected: &Shared,
    log: LogIdentity,
    holes: &[Hole],
) -> Result<(), StoreError> {
    let set = &connected.statements.inbox.set_hole;
    for batch in holes.chunks(limits::BATCH_ROWS) {
        let statements = vec![BatchStatement::from(set.clone()); batch.len()];
        let values: Vec<_> = batch
            .iter()
            .map(|hole| {
                let Hole { partition, from, to, noted_at } = *hole;
                let (topic, index) = (topic_column(partition.topic), i32::from(partition.index));
                let (next, noted_at) = (offset_column(to), time_column(noted_at));
                (cursor_rank(to), next, noted_at, log.0, topic, index, offset_column(from))
            })
            .collect();
        execute_together(&connected.session, statements, values).await?;
    }
    Ok(())
}

pub(super) async fn read(connected: &Shared, log: LogIdentity) -> Result<Vec<Hole>, StoreError> {
    let Connected { session, statements } = &**connected;
    let values = (log.0, limit_column(limits::HOLES_READ));
    let rows = rows_of::<HoleColumns>(session, &statements.inbox.holes, values).await?;
    if rows.len() == limits::HOLES_READ {
        tracing::warn!(holes = rows.len(), "a log has lost more than is looked at");
    }
    rows.into_iter().map(HoleColumns::read).collect()
}

impl HoleColumns {
    fn read(self) -> Result<Hole, StoreError> {
        let malformed = || malformed(&format!("hole at {}", self.log_offset));
        Ok(Hole {
            partition: read_partition(self.topic, self.partition_index)?,
            from: read_offset(self.log_offset)?,
            to: read_offset(self.next.ok_or_else(malformed)?)?,
            noted_at: read_time(self.noted_at)?.ok_or_else(malformed)?,
        })
    }
}
