//! The statements of dead letters.

use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;

use super::statements::{Kind, prepare};

pub(super) struct DeadLetterStatements {
    pub insert: PreparedStatement,
    pub row: PreparedStatement,
    pub insert_part: PreparedStatement,
    pub part: PreparedStatement,
    pub insert_id: PreparedStatement,
    pub original: PreparedStatement,
    pub insert_listed: PreparedStatement,
    pub listed: PreparedStatement,
    pub purge: PreparedStatement,
    pub purge_part: PreparedStatement,
    pub purge_listed: PreparedStatement,
}

impl DeadLetterStatements {
    pub async fn prepare(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        let prepare = async |text: &str| prepare(session, keyspace, Kind::Plain, text).await;
        Ok(Self {
            insert: prepare(
                "INSERT INTO KS.dead_letter (original, dlt_topic, dlt_partition, dlt_offset, \
                 failed_at, record, parts) VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            row: prepare(
                "SELECT dlt_topic, dlt_partition, dlt_offset, record, parts, purged_at \
                 FROM KS.dead_letter WHERE original = ?",
            )
            .await?,
            insert_part: prepare(
                "INSERT INTO KS.dead_letter_part (original, dlt_offset, part, bytes) \
                 VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            part: prepare(
                "SELECT bytes FROM KS.dead_letter_part WHERE original = ? AND dlt_offset = ? \
                 AND part = ?",
            )
            .await?,
            insert_id: prepare(
                "INSERT INTO KS.dead_letter_id (dlt_topic, dlt_partition, dlt_offset, original) \
                 VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            original: prepare(
                "SELECT original FROM KS.dead_letter_id WHERE dlt_topic = ? \
                 AND dlt_partition = ? AND dlt_offset = ?",
            )
            .await?,
            insert_listed: prepare(
                "INSERT INTO KS.dead_letter_list (bucket, failed_at, original, v) \
                 VALUES (?, ?, ?, 1) USING TIMESTAMP ?",
            )
            .await?,
            listed: prepare(
                "SELECT failed_at, original, v, purged FROM KS.dead_letter_list \
                 WHERE bucket = ? AND (failed_at, original) < (?, ?) LIMIT ?",
            )
            .await?,
            purge: prepare(
                "UPDATE KS.dead_letter USING TIMESTAMP ? SET purged_at = ?, record = 0x \
                 WHERE original = ?",
            )
            .await?,
            purge_part: prepare(
                "UPDATE KS.dead_letter_part USING TIMESTAMP ? SET bytes = 0x \
                 WHERE original = ? AND dlt_offset = ? AND part = ?",
            )
            .await?,
            purge_listed: prepare(
                "UPDATE KS.dead_letter_list USING TIMESTAMP ? SET purged = true \
                 WHERE bucket = ? AND failed_at = ? AND original = ?",
            )
            .await?,
        })
    }
}
