//! The statements of the inbox. Each that writes sets cells of one rank (`ranks.rs`).

use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;

use super::statements::{Kind, prepare};

/// Those of `inbox` take rank, time to live, value, user and broadcast; so they stand in one batch.
pub(super) struct InboxStatements {
    pub set_row: PreparedStatement,
    pub set_progress: PreparedStatement,
    pub set_place: PreparedStatement,
    pub set_delivered: PreparedStatement,
    pub set_removed: PreparedStatement,
    pub inbox: PreparedStatement,
    pub insert_group: PreparedStatement,
    pub group: PreparedStatement,
    /// Written at the time of its creation.
    pub insert_content: PreparedStatement,
    pub insert_group_bucket: PreparedStatement,
    pub group_buckets: PreparedStatement,
    pub set_cursor: PreparedStatement,
    pub cursor: PreparedStatement,
    pub set_hole: PreparedStatement,
    pub holes: PreparedStatement,
}

/// All columns of a broadcast.
pub(super) const INSERT_BROADCAST: &str = "INSERT INTO KS.broadcast (id, claim, created_at, \
    correlation_id, sender_id, sender_name, content, target_type, target_ids, target_count, \
    target_chunks, priority, category, scheduled_at, expires_at, fire_and_forget) \
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

impl InboxStatements {
    pub async fn prepare(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        let prepare = async |text: &str| prepare(session, keyspace, Kind::Plain, text).await;
        Ok(Self {
            set_row: prepare(
                "UPDATE KS.inbox USING TIMESTAMP ? AND TTL ? SET v = 1, progress = ? \
                 WHERE user_id = ? AND id = ?",
            )
            .await?,
            set_progress: prepare(
                "UPDATE KS.inbox USING TIMESTAMP ? AND TTL ? SET progress = ? \
                 WHERE user_id = ? AND id = ?",
            )
            .await?,
            set_place: prepare(
                "UPDATE KS.inbox USING TIMESTAMP ? AND TTL ? SET place = ? \
                 WHERE user_id = ? AND id = ?",
            )
            .await?,
            set_delivered: prepare(
                "UPDATE KS.inbox USING TIMESTAMP ? AND TTL ? SET delivered_at = ? \
                 WHERE user_id = ? AND id = ?",
            )
            .await?,
            set_removed: prepare(
                "UPDATE KS.inbox USING TIMESTAMP ? AND TTL ? SET removed = ? \
                 WHERE user_id = ? AND id = ?",
            )
            .await?,
            inbox: prepare(
                "SELECT id, v, place, progress, delivered_at, removed FROM KS.inbox \
                 WHERE user_id = ? AND id > ? LIMIT ?",
            )
            .await?,
            insert_group: prepare(
                "INSERT INTO KS.group_message (log, partition_index, bucket, log_offset, id, \
                 appended_at, keep_until, what) VALUES (?, ?, ?, ?, ?, ?, ?, ?) \
                 USING TIMESTAMP ? AND TTL ?",
            )
            .await?,
            insert_content: prepare(INSERT_BROADCAST).await?,
            group: prepare(
                "SELECT log_offset, id, appended_at, keep_until, what FROM KS.group_message \
                 WHERE log = ? AND partition_index = ? AND bucket = ? AND log_offset >= ? LIMIT ?",
            )
            .await?,
            insert_group_bucket: prepare(
                "INSERT INTO KS.group_bucket (log, partition_index, bucket, v) \
                 VALUES (?, ?, ?, 1) USING TIMESTAMP ? AND TTL ?",
            )
            .await?,
            group_buckets: prepare(
                "SELECT bucket FROM KS.group_bucket WHERE log = ? AND partition_index = ? \
                 AND bucket >= ? LIMIT ?",
            )
            .await?,
            set_cursor: prepare(
                "UPDATE KS.stored_cursor USING TIMESTAMP ? SET next = ? \
                 WHERE user_id = ? AND log = ? AND topic = ? AND partition_index = ?",
            )
            .await?,
            cursor: prepare(
                "SELECT topic, partition_index, next FROM KS.stored_cursor \
                 WHERE user_id = ? AND log = ?",
            )
            .await?,
            set_hole: prepare(
                "UPDATE KS.hole USING TIMESTAMP ? SET next = ?, noted_at = ? \
                 WHERE log = ? AND topic = ? AND partition_index = ? AND log_offset = ?",
            )
            .await?,
            holes: prepare(
                "SELECT topic, partition_index, log_offset, next, noted_at FROM KS.hole \
                 WHERE log = ? LIMIT ?",
            )
            .await?,
        })
    }
}
