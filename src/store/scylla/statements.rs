//! The statements, prepared once a session, and how they are run.

use std::future::Future;
use std::sync::Arc;

use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::PrepareError;
use scylla::serialize::batch::BatchValues;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchStatement, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, Statement};
use tokio::task::JoinSet;

use super::audit::AuditStatements;
use super::dead_letter_statements::DeadLetterStatements;
use super::endings::EndingStatements;
use super::errors::store_error;
use super::inbox_statements::{INSERT_BROADCAST, InboxStatements};
use super::parking::ParkingStatements;
use crate::limits::store as limits;
use crate::ports::StoreError;

/// Every statement of the store. Times are timestamps, ids are bigints.
pub(super) struct Statements {
    pub insert_broadcast: PreparedStatement,
    pub broadcast: PreparedStatement,
    pub broadcast_claim: PreparedStatement,
    pub broadcast_times: PreparedStatement,
    pub insert_audience: PreparedStatement,
    pub audience: PreparedStatement,
    pub insert_status: PreparedStatement,
    pub status: PreparedStatement,
    pub status_claim: PreparedStatement,
    pub change_status: PreparedStatement,
    pub status_change: PreparedStatement,
    pub insert_listed: PreparedStatement,
    pub listed: PreparedStatement,
    pub insert_active: PreparedStatement,
    pub active: PreparedStatement,
    pub insert_scheduled: PreparedStatement,
    pub scheduled: PreparedStatement,
    pub insert_bucket: PreparedStatement,
    pub buckets_up: PreparedStatement,
    pub buckets_down: PreparedStatement,
    pub insert_outbox: PreparedStatement,
    pub mark_outbox: PreparedStatement,
    pub outbox: PreparedStatement,
    pub set_position: PreparedStatement,
    pub position: PreparedStatement,
    pub probe: PreparedStatement,
    pub inbox: InboxStatements,
    pub parking: ParkingStatements,
    pub dead_letters: DeadLetterStatements,
    pub audit: AuditStatements,
    pub endings: EndingStatements,
}

/// How a statement may be run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Repeatable: tried again, and beside a slow first try.
    Plain,
    /// A lightweight transaction: once, and what happened is looked up.
    Transaction,
    /// Sees what transactions have done and completes what they left.
    Serial,
}

impl Statements {
    pub async fn prepare(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        use Kind::{Plain, Serial, Transaction};
        let prepare = async |kind: Kind, text: &str| prepare(session, keyspace, kind, text).await;
        Ok(Self {
            insert_broadcast: prepare(Transaction, &format!("{INSERT_BROADCAST} IF NOT EXISTS"))
                .await?,
            broadcast: prepare(
                Plain,
                "SELECT id, created_at, correlation_id, sender_id, sender_name, content, \
                 target_type, target_ids, target_count, target_chunks, priority, category, \
                 scheduled_at, expires_at, fire_and_forget FROM KS.broadcast WHERE id = ?",
            )
            .await?,
            broadcast_claim: prepare(Serial, "SELECT claim FROM KS.broadcast WHERE id = ?").await?,
            broadcast_times: prepare(
                Plain,
                "SELECT created_at, scheduled_at, expires_at FROM KS.broadcast WHERE id = ?",
            )
            .await?,
            insert_audience: prepare(
                Plain,
                "INSERT INTO KS.audience (id, chunk, target_ids) VALUES (?, ?, ?) \
                 USING TIMESTAMP ?",
            )
            .await?,
            audience: prepare(
                Plain,
                "SELECT target_ids FROM KS.audience WHERE id = ? AND chunk = ?",
            )
            .await?,
            insert_status: prepare(
                Transaction,
                "INSERT INTO KS.broadcast_status (id, claim, status, changed_at) \
                 VALUES (?, ?, ?, ?) IF NOT EXISTS",
            )
            .await?,
            status: prepare(Plain, "SELECT status FROM KS.broadcast_status WHERE id = ?").await?,
            status_claim: prepare(Serial, "SELECT claim FROM KS.broadcast_status WHERE id = ?")
                .await?,
            change_status: prepare(
                Transaction,
                "UPDATE KS.broadcast_status SET status = ?, change = ?, changed_at = ? \
                 WHERE id = ? IF status = ? AND change = ?",
            )
            .await?,
            status_change: prepare(
                Serial,
                "SELECT status, change FROM KS.broadcast_status WHERE id = ?",
            )
            .await?,
            insert_listed: prepare(
                Plain,
                "INSERT INTO KS.broadcast_list (bucket, created_at, id) VALUES (?, ?, ?) \
                 USING TIMESTAMP ?",
            )
            .await?,
            listed: prepare(
                Plain,
                "SELECT created_at, id FROM KS.broadcast_list WHERE bucket = ? \
                 AND (created_at, id) < (?, ?) LIMIT ?",
            )
            .await?,
            insert_active: prepare(
                Plain,
                "INSERT INTO KS.active_list (bucket, created_at, id) VALUES (?, ?, ?) \
                 USING TIMESTAMP ?",
            )
            .await?,
            active: prepare(
                Plain,
                "SELECT created_at, id FROM KS.active_list WHERE bucket = ? \
                 AND (created_at, id) < (?, ?) LIMIT ?",
            )
            .await?,
            insert_scheduled: prepare(
                Plain,
                "INSERT INTO KS.scheduled_list (bucket, scheduled_at, id) VALUES (?, ?, ?) \
                 USING TIMESTAMP ?",
            )
            .await?,
            scheduled: prepare(
                Plain,
                "SELECT scheduled_at, id FROM KS.scheduled_list WHERE bucket = ? \
                 AND (scheduled_at, id) > (?, ?) LIMIT ?",
            )
            .await?,
            insert_bucket: prepare(
                Plain,
                "INSERT INTO KS.bucket (list, bucket, v) VALUES (?, ?, 1) USING TIMESTAMP ?",
            )
            .await?,
            buckets_up: prepare(
                Plain,
                "SELECT bucket FROM KS.bucket WHERE list = ? AND bucket >= ? LIMIT ?",
            )
            .await?,
            buckets_down: prepare(
                Plain,
                "SELECT bucket FROM KS.bucket WHERE list = ? AND bucket <= ? \
                 ORDER BY bucket DESC LIMIT ?",
            )
            .await?,
            insert_outbox: prepare(
                Plain,
                "INSERT INTO KS.outbox (bucket, created_at, id, v) VALUES (?, ?, ?, 1) \
                 USING TIMESTAMP ?",
            )
            .await?,
            mark_outbox: prepare(
                Plain,
                "UPDATE KS.outbox USING TIMESTAMP ? SET done = true \
                 WHERE bucket = ? AND created_at = ? AND id = ?",
            )
            .await?,
            outbox: prepare(
                Plain,
                "SELECT created_at, id, v, done FROM KS.outbox WHERE bucket = ? \
                 AND (created_at, id) > (?, ?) LIMIT ?",
            )
            .await?,
            set_position: prepare(
                Plain,
                "UPDATE KS.position USING TIMESTAMP ? SET at = ? WHERE name = ?",
            )
            .await?,
            position: prepare(Plain, "SELECT at FROM KS.position WHERE name = ?").await?,
            probe: prepare(Plain, "SELECT layout FROM KS.corecast_schema WHERE part = 'schema'")
                .await?,
            inbox: InboxStatements::prepare(session, keyspace).await?,
            parking: ParkingStatements::prepare(session, keyspace).await?,
            dead_letters: DeadLetterStatements::prepare(session, keyspace).await?,
            audit: AuditStatements::prepare(session, keyspace).await?,
            endings: EndingStatements::prepare(session, keyspace).await?,
        })
    }
}

/// In the text, `KS.` stands for the keyspace.
pub(super) async fn prepare(
    session: &Session,
    keyspace: &str,
    kind: Kind,
    text: &str,
) -> Result<PreparedStatement, PrepareError> {
    let text = text.replace("KS.", &format!("{keyspace}."));
    let mut prepared = session.prepare(Statement::new(text)).await?;
    prepared.set_is_idempotent(kind != Kind::Transaction);
    if kind == Kind::Serial {
        prepared.set_consistency(Consistency::LocalSerial);
    }
    Ok(prepared)
}

/// Runs a statement that answers nothing.
pub(super) async fn execute(
    session: &Session,
    statement: &PreparedStatement,
    values: impl SerializeRow,
) -> Result<(), StoreError> {
    let done = session.execute_unpaged(statement, values).await;
    done.map(drop).map_err(|error| store_error(&error))
}

/// Runs statements of one partition, all repeatable, which are applied together.
pub(super) async fn execute_together(
    session: &Session,
    statements: Vec<BatchStatement>,
    values: impl BatchValues,
) -> Result<(), StoreError> {
    let mut batch = Batch::new_with_statements(BatchType::Unlogged, statements);
    batch.set_is_idempotent(true);
    let done = session.batch(&batch, values).await;
    done.map(drop).map_err(|error| store_error(&error))
}

/// Every row of the answer, copied out of its frame.
pub(super) async fn rows_of<R>(
    session: &Session,
    statement: &PreparedStatement,
    values: impl SerializeRow,
) -> Result<Vec<R>, StoreError>
where
    R: for<'frame> DeserializeRow<'frame, 'frame>,
{
    let failed = |reason: String| StoreError::Failed(format!("row of an unknown shape: {reason}"));
    let result = session.execute_unpaged(statement, values).await;
    let result = result.map_err(|error| store_error(&error))?;
    let rows = result.into_rows_result().map_err(|error| failed(error.to_string()))?;
    let rows = rows.rows::<R>().map_err(|error| failed(error.to_string()))?;
    let rows: Result<Vec<R>, _> = rows.collect();
    rows.map_err(|error| failed(error.to_string()))
}

/// Does something with every item, so many at a time; answers in the order of the items. Ends with
/// the first error.
pub(super) async fn each<I, T, F>(
    items: impl IntoIterator<Item = I>,
    start: impl Fn(I) -> F,
) -> Result<Vec<T>, StoreError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut answers: Vec<Option<T>> = Vec::new();
    let mut items = items.into_iter().enumerate();
    loop {
        while running.len() < limits::IN_FLIGHT_MAX
            && let Some((number, item)) = items.next()
        {
            answers.push(None);
            let future = start(item);
            running.spawn(async move { (number, future.await) });
        }
        let Some(done) = running.join_next().await else { break };
        let (number, answer) = done.map_err(|error| StoreError::Failed(error.to_string()))?;
        answers[number] = Some(answer?);
    }
    Ok(answers.into_iter().flatten().collect())
}

/// A session and its statements.
pub(super) struct Connected {
    pub session: Session,
    pub statements: Statements,
}

pub(super) type Shared = Arc<Connected>;
