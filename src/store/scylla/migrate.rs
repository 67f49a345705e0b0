//! Makes the keyspace and brings it to this release's layout: one node does it, the others wait.
//!
//! Schema changes of one cluster have to come one after the other; Cassandra does not see to it
//! when two of its nodes take one each. So every node of Corecast sends them to the same node of
//! the database, and all after the first stand under a lock, which is a row with a time to live.

use std::sync::Arc;

use scylla::DeserializeRow;
use scylla::client::session::Session;
use scylla::errors::{DbError, ExecutionError};
use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::serialize::row::SerializeRow;
use scylla::statement::{Consistency, Statement};
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::ScyllaOptions;
use super::errors::{ConnectError, OpenError, db_error, store_error};
use super::lwt::{Answer, answer};
use super::schema::{self, Column, LAYOUT, META, OLDEST, STEPS};
use crate::limits::store as limits;
use crate::ports::{Clock, StoreError};

/// What is stored about the layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, DeserializeRow)]
struct Stored {
    layout: Option<i32>,
    oldest: Option<i32>,
}

/// What stands between a keyspace and its use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Finding {
    Ready,
    /// Written by a newer release, which says that this one may use it.
    ReadyAndNewer(i32),
    Behind(i32),
}

pub(super) struct Migration<'a> {
    pub session: &'a Session,
    pub options: &'a ScyllaOptions,
    /// Who this is to the lock: the same at every try of this node.
    pub holder: Uuid,
    pub node: &'a str,
    pub clock: &'a Arc<dyn Clock>,
}

impl Migration<'_> {
    /// Brings the keyspace to this release's layout, or waits until another node has. On an error
    /// it may be called again.
    pub async fn run(&self) -> Result<(), ConnectError> {
        self.make_keyspace().await?;
        self.make_meta().await?;
        loop {
            let layout = match self.look().await? {
                Finding::Ready => return Ok(()),
                Finding::ReadyAndNewer(stored) => {
                    tracing::warn!(
                        stored,
                        ours = LAYOUT,
                        "the keyspace was migrated by a newer release, which says that this one \
                         can use it"
                    );
                    return Ok(());
                }
                Finding::Behind(layout) => layout,
            };
            if !self.lock().await? {
                tracing::info!("another node makes the tables");
                tokio::time::sleep(limits::MIGRATION_LOOK).await;
                continue;
            }
            let migrated = self.migrate(layout).await;
            self.unlock().await;
            migrated?;
        }
    }

    async fn make_keyspace(&self) -> Result<(), ConnectError> {
        let keyspace = &self.options.keyspace;
        let found = self
            .texts(
                "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?",
                (keyspace,),
            )
            .await?;
        if !found.is_empty() {
            return Ok(());
        }
        tracing::info!(keyspace, replication = self.options.replication, "making the keyspace");
        self.change(&schema::create_keyspace(self.options)).await
    }

    /// Makes the table of the layout and the lock, unless what stands there is somebody else's.
    async fn make_meta(&self) -> Result<(), ConnectError> {
        let keyspace = &self.options.keyspace;
        let tables = self
            .texts(
                "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?",
                (keyspace,),
            )
            .await?;
        if tables.iter().any(|table| table == META) {
            return Ok(());
        }
        if let Some(table) = tables.into_iter().next() {
            return Err(OpenError::Foreign { keyspace: keyspace.clone(), table }.into());
        }
        self.change(&schema::create_meta(self.options)).await
    }

    async fn look(&self) -> Result<Finding, ConnectError> {
        let text = format!(
            "SELECT layout, oldest FROM {}.{META} WHERE part = 'schema'",
            self.options.keyspace
        );
        let mut statement = Statement::new(text);
        statement.set_consistency(Consistency::LocalSerial);
        statement.set_is_idempotent(true);
        let result = self.session.query_unpaged(statement, &[]).await;
        let result = result.map_err(|error| self.refused(&error))?;
        let layout_error = |reason: String| self.layout_error(reason);
        let rows = result.into_rows_result().map_err(|error| layout_error(error.to_string()))?;
        let stored = rows.maybe_first_row::<Stored>();
        let stored = stored.map_err(|error| layout_error(error.to_string()))?;
        judge(stored).map_err(|newer| match newer {
            Some((stored, oldest)) => {
                let keyspace = self.options.keyspace.clone();
                OpenError::Newer { keyspace, stored, oldest, ours: LAYOUT }.into()
            }
            None => layout_error(format!("{META} says {stored:?}")),
        })
    }

    /// Whether this node may change the schema now.
    async fn lock(&self) -> Result<bool, ConnectError> {
        let text = format!(
            "INSERT INTO {}.{META} (part, holder) VALUES ('lock', ?) IF NOT EXISTS USING TTL {}",
            self.options.keyspace,
            limits::MIGRATION_LOCK.as_secs()
        );
        Ok(match self.transaction(&text, (self.holder,)).await? {
            Answer::Applied => true,
            // Ours from an earlier try, whose answer was lost.
            Answer::Refused { token } => token == Some(self.holder),
        })
    }

    /// Makes the lock last from now. Whether it is still this node's.
    async fn keep_lock(&self) -> Result<bool, ConnectError> {
        let text = format!(
            "UPDATE {}.{META} USING TTL {} SET holder = ? WHERE part = 'lock' IF holder = ?",
            self.options.keyspace,
            limits::MIGRATION_LOCK.as_secs()
        );
        let answer = self.transaction(&text, (self.holder, self.holder)).await?;
        Ok(matches!(answer, Answer::Applied))
    }

    async fn unlock(&self) {
        let text = format!(
            "DELETE FROM {}.{META} WHERE part = 'lock' IF holder = ?",
            self.options.keyspace
        );
        // If this fails, the lock goes when its time is over.
        if let Err(error) = self.transaction(&text, (self.holder,)).await {
            tracing::debug!(?error, "the lock of the schema is left to expire");
        }
    }

    /// All steps above that layout. Each statement may have been done before.
    async fn migrate(&self, from: i32) -> Result<(), ConnectError> {
        for step in STEPS.iter().filter(|step| step.layout > from) {
            tracing::info!(layout = step.layout, "making tables");
            for table in step.tables {
                if !self.keep_lock().await? {
                    return Err(ConnectError::Away("the lock of the schema was lost".to_owned()));
                }
                self.change(&schema::create(table, self.options)).await?;
            }
            for column in step.columns {
                self.add(column).await?;
            }
        }
        let text = format!(
            "INSERT INTO {}.{META} (part, product, layout, oldest, made_by, made_at) \
             VALUES ('schema', 'corecast', ?, ?, ?, ?) IF NOT EXISTS",
            self.options.keyspace
        );
        let made_at = CqlTimestamp(i64::try_from(self.clock.wall().0).unwrap_or(i64::MAX));
        let made = (LAYOUT, OLDEST, self.node, made_at);
        if matches!(self.transaction(&text, made).await?, Answer::Applied) {
            return Ok(());
        }
        let text = format!(
            "UPDATE {}.{META} SET product = 'corecast', layout = ?, oldest = ?, made_by = ?, \
             made_at = ? WHERE part = 'schema' IF layout < ?",
            self.options.keyspace
        );
        self.transaction(&text, (LAYOUT, OLDEST, self.node, made_at, LAYOUT)).await.map(drop)
    }

    /// Adds a column, unless an earlier try has.
    async fn add(&self, column: &Column) -> Result<(), ConnectError> {
        let found = self
            .texts(
                "SELECT column_name FROM system_schema.columns WHERE keyspace_name = ? \
                 AND table_name = ? AND column_name = ?",
                (&self.options.keyspace, column.table, column.name),
            )
            .await?;
        if !found.is_empty() {
            return Ok(());
        }
        if !self.keep_lock().await? {
            return Err(ConnectError::Away("the lock of the schema was lost".to_owned()));
        }
        self.change(&schema::add(column, self.options)).await
    }

    /// A change of the schema, by the node that every Corecast node sends them to.
    async fn change(&self, text: &str) -> Result<(), ConnectError> {
        let mut statement = Statement::new(text);
        statement.set_request_timeout(Some(limits::SCHEMA_TIME));
        // A second try beside the first would be a change of its own.
        statement.set_is_idempotent(false);
        let state = self.session.get_cluster_state();
        let up = state.get_nodes_info().iter().filter(|node| node.is_connected());
        if let Some(first) = up.min_by_key(|node| node.host_id) {
            let first = NodeIdentifier::HostId(first.host_id);
            let only = SingleTargetLoadBalancingPolicy::new(first, None);
            statement.set_load_balancing_policy(Some(only));
        }
        let changed = self.session.query_unpaged(statement, &[]).await;
        changed.map(drop).map_err(|error| self.refused(&error))
    }

    async fn transaction(
        &self,
        text: &str,
        values: impl SerializeRow,
    ) -> Result<Answer, ConnectError> {
        let prepared = self.session.prepare(text).await;
        let prepared = prepared.map_err(|error| self.refused(&error.into()))?;
        let result = self.session.execute_unpaged(&prepared, values).await;
        let result = result.map_err(|error| self.refused(&error))?;
        answer(result, "holder").map_err(|error| self.layout_error(error.to_string()))
    }

    async fn texts(
        &self,
        text: &str,
        values: impl SerializeRow,
    ) -> Result<Vec<String>, ConnectError> {
        let result = self.session.query_unpaged(text, values).await;
        let result = result.map_err(|error| self.refused(&error))?;
        let layout_error = |reason: String| self.layout_error(reason);
        let rows = result.into_rows_result().map_err(|error| layout_error(error.to_string()))?;
        let rows = rows.rows::<(String,)>().map_err(|error| layout_error(error.to_string()))?;
        let texts: Result<Vec<_>, _> = rows.map(|row| row.map(|(text,)| text)).collect();
        texts.map_err(|error| layout_error(error.to_string()))
    }

    fn layout_error(&self, reason: String) -> ConnectError {
        OpenError::Layout { keyspace: self.options.keyspace.clone(), reason }.into()
    }

    /// What the operator has to do about a statement that failed, if anything.
    fn refused(&self, error: &ExecutionError) -> ConnectError {
        let keyspace = self.options.keyspace.clone();
        let is_of_scylla =
            |reason: &str| ["tablets", "Unknown property"].iter().any(|sign| reason.contains(sign));
        match db_error(error) {
            Some((_, reason)) if self.options.scylla_ddl && is_of_scylla(reason) => {
                OpenError::NoScylla(reason.to_owned()).into()
            }
            Some((DbError::Unauthorized, reason)) => {
                OpenError::Permission(reason.to_owned()).into()
            }
            Some((DbError::ConfigError, reason)) => {
                OpenError::Keyspace { keyspace, reason: reason.to_owned() }.into()
            }
            _ => match store_error(error) {
                StoreError::Away(reason) => ConnectError::Away(reason),
                StoreError::Failed(reason) => OpenError::Layout { keyspace, reason }.into(),
            },
        }
    }
}

/// `Err` with layout and oldest of a newer release that shuts this one out; `Err(None)` for what
/// nobody writes.
fn judge(stored: Option<Stored>) -> Result<Finding, Option<(i32, i32)>> {
    let Some(stored) = stored else { return Ok(Finding::Behind(0)) };
    match (stored.layout, stored.oldest) {
        (Some(LAYOUT), _) => Ok(Finding::Ready),
        (Some(layout), _) if (1..LAYOUT).contains(&layout) => Ok(Finding::Behind(layout)),
        (Some(layout), Some(oldest)) if layout > LAYOUT && oldest <= LAYOUT => {
            Ok(Finding::ReadyAndNewer(layout))
        }
        (Some(layout), Some(oldest)) if layout > LAYOUT => Err(Some((layout, oldest))),
        _ => Err(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_judged() {
        let stored =
            |layout, oldest| judge(Some(Stored { layout: Some(layout), oldest: Some(oldest) }));
        assert_eq!(judge(None), Ok(Finding::Behind(0)));
        assert_eq!(stored(LAYOUT, OLDEST), Ok(Finding::Ready));
        assert_eq!(stored(LAYOUT + 1, LAYOUT), Ok(Finding::ReadyAndNewer(LAYOUT + 1)));
        assert_eq!(stored(LAYOUT + 2, LAYOUT + 1), Err(Some((LAYOUT + 2, LAYOUT + 1))));
        assert_eq!(stored(0, 0), Err(None));
        assert_eq!(stored(-1, 0), Err(None));
        assert_eq!(judge(Some(Stored { layout: None, oldest: None })), Err(None));
        let no_oldest = Stored { layout: Some(LAYOUT + 1), oldest: None };
        assert_eq!(judge(Some(no_oldest)), Err(None));
    }
}
