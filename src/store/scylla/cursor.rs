//! Stored cursors: a cell a partition, whose write timestamp is the offset, so that they merge as a
//! maximum.

use scylla::statement::batch::BatchStatement;

use super::inbox::{offset_column, read_offset, read_partition, topic_column};
use super::ranks::cursor_rank;
use super::statements::{Connected, Shared, execute_together, rows_of};
use crate::base::{LogIdentity, Partition, UserId};
use crate::limits::inbox as limits;
use crate::ports::StoreError;

/// All of one user and log are one partition of the table.
pub(super) async fn write(
    connected: &Shared,
    user: &UserId,
    log: LogIdentity,
    next: &[(Partition, u64)],
) -> Result<(), StoreError> {
    let set = &connected.statements.inbox.set_cursor;
    for batch in next.chunks(limits::BATCH_ROWS) {
        let statements = vec![BatchStatement::from(set.clone()); batch.len()];
        let values: Vec<_> = batch
            .iter()
            .map(|(partition, next)| {
                let (topic, index) = (topic_column(partition.topic), i32::from(partition.index));
                let (rank, next) = (cursor_rank(*next), offset_column(*next));
                (rank, next, user.as_str(), log.0, topic, index)
            })
            .collect();
        execute_together(&connected.session, statements, values).await?;
    }
    Ok(())
}

/// In the order of the partitions.
pub(super) async fn read(
    connected: &Shared,
    user: &UserId,
    log: LogIdentity,
) -> Result<Vec<(Partition, u64)>, StoreError> {
    let Connected { session, statements } = &**connected;
    let values = (user.as_str(), log.0);
    let rows = rows_of::<(i8, i32, Option<i64>)>(session, &statements.inbox.cursor, values).await?;
    rows.into_iter()
        .filter_map(|(topic, index, next)| next.map(|next| (topic, index, next)))
        .map(|(topic, index, next)| Ok((read_partition(topic, index)?, read_offset(next)?)))
        .collect()
}
