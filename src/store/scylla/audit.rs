//! The audit: lines by the day of their beginning, the newest first.

use async_trait::async_trait;
use scylla::DeserializeRow;
use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlTimestamp, MaybeUnset};
use uuid::Uuid;

use super::ScyllaStore;
use super::lists::{List, buckets, limit_column};
use super::rows::{bucket_of, malformed, read_time, time_column, written_at};
use super::statements::{Kind, execute, prepare, rows_of};
use crate::base::EpochMillis;
use crate::limits::{dead_letters as limits, store};
use crate::ports::{Audit, AuditLine, AuditPlace, Audited, AuditedCounts, StoreError};

pub(super) struct AuditStatements {
    pub insert: PreparedStatement,
    pub listed: PreparedStatement,
}

impl AuditStatements {
    pub async fn prepare(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        let prepare = async |text: &str| prepare(session, keyspace, Kind::Plain, text).await;
        Ok(Self {
            insert: prepare(
                "INSERT INTO KS.dead_letter_audit (bucket, at, line, action, letter, node, \
                 succeeded, failed) VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            listed: prepare(
                "SELECT at, line, action, letter, node, succeeded, failed \
                 FROM KS.dead_letter_audit WHERE bucket = ? AND (at, line) < (?, ?) LIMIT ?",
            )
            .await?,
        })
    }
}

#[derive(DeserializeRow)]
struct AuditColumns {
    at: CqlTimestamp,
    line: Uuid,
    action: Option<String>,
    letter: Option<String>,
    node: Option<String>,
    succeeded: Option<i64>,
    failed: Option<i64>,
}

#[async_trait]
impl Audit for ScyllaStore {
    async fn write_audit(&self, line: &AuditLine) -> Result<(), StoreError> {
        let connected = self.connected()?;
        let day = bucket_of(line.at, limits::AUDIT_BUCKET);
        self.note_bucket(&connected, List::Audit, day).await?;
        let letter = line.letter.as_ref().map(ToString::to_string);
        let counts = line.counts;
        // Without an outcome those cells are not written, so no order can undo one.
        let values = (
            time_column(day),
            time_column(line.at),
            line.id,
            line.what.word(),
            MaybeUnset::from_option(letter.as_deref()),
            line.node.as_str(),
            MaybeUnset::from_option(counts.map(|counts| count_column(counts.succeeded))),
            MaybeUnset::from_option(counts.map(|counts| count_column(counts.failed))),
            written_at(self.clock.wall().max(line.at)),
        );
        execute(&connected.session, &connected.statements.audit.insert, values).await
    }

    async fn audit(
        &self,
        after: Option<AuditPlace>,
        limit: usize,
    ) -> Result<Vec<AuditLine>, StoreError> {
        let connected = self.connected()?;
        let mut found = Vec::new();
        let mut from = after.map(|place| bucket_of(place.at, limits::AUDIT_BUCKET));
        let before = match after {
            Some(place) => (time_column(place.at), place.id),
            None => (CqlTimestamp(i64::MAX), Uuid::nil()),
        };
        while found.len() < limit {
            let days = buckets(&connected, List::Audit, from).await?;
            for day in &days {
                let wanted = limit_column(limit - found.len());
                let values = (time_column(*day), before.0, before.1, wanted);
                let statement = &connected.statements.audit.listed;
                let rows = rows_of::<AuditColumns>(&connected.session, statement, values).await?;
                for row in rows {
                    found.extend(row.read()?);
                }
                if found.len() == limit {
                    break;
                }
            }
            match days.last() {
                Some(last) if days.len() == store::BUCKETS_READ && last.0 > 0 => {
                    from = Some(EpochMillis(last.0 - 1));
                }
                _ => break,
            }
        }
        Ok(found)
    }
}

impl AuditColumns {
    /// `None` for what this release does not know.
    fn read(self) -> Result<Option<AuditLine>, StoreError> {
        let action = self.action.as_deref().and_then(Audited::from_word);
        let (Some(what), Some(node)) = (action, self.node) else { return Ok(None) };
        let at = read_time(Some(self.at))?.ok_or_else(|| malformed("no time"))?;
        let letter = self.letter.map(|letter| letter.parse()).transpose();
        let letter = letter.map_err(|()| malformed("no id of a dead letter"))?;
        let count = |count: i64| u64::try_from(count).map_err(|_| malformed("a negative count"));
        let counts = match self.succeeded.zip(self.failed) {
            Some((succeeded, failed)) => {
                Some(AuditedCounts { succeeded: count(succeeded)?, failed: count(failed)? })
            }
            None => None,
        };
        Ok(Some(AuditLine { at, id: self.line, what, letter, node, counts }))
    }
}

fn count_column(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
