//! Lightweight transactions: rows that are written only if none stands there, and statuses that are
//! changed only from where they stood.
//!
//! Each carries a token that its writer drew. So a transaction whose answer is lost can be
//! told apart from one that was refused: the row is read back, and whose token it has, won. The
//! answer has other columns when it is refused than when it is applied, and which, differs between
//! ScyllaDB and Cassandra; it is read by name.

use std::time::Instant;

use scylla::client::session::Session;
use scylla::response::query_result::QueryResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlTimestamp, CqlValue, Row};
use uuid::Uuid;

use super::errors::store_error;
use super::rows::{id_column, read_status};
use super::statements::{Connected, rows_of};
use crate::base::{BroadcastId, Status};
use crate::domain::may_become;
use crate::limits::store as limits;
use crate::ports::{Backoff, Change, Claim, StoreError};

/// What a transaction answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Applied,
    /// Somebody's row stands there; whose.
    Refused {
        token: Option<Uuid>,
    },
}

/// An insertion, and how to see whose row stands there.
pub(super) struct Insert<'a, V> {
    pub session: &'a Session,
    /// `INSERT .. IF NOT EXISTS`.
    pub insert: &'a PreparedStatement,
    pub values: V,
    /// `SELECT claim ..` with the id, serial.
    pub read_back: &'a PreparedStatement,
    pub id: i64,
    /// The token in `values`; drawn for this insertion.
    pub token: Uuid,
}

impl<V: SerializeRow> Insert<'_, V> {
    /// Inserts; answers only what is certain. `Away` if that can't be found out in time.
    pub async fn run(self) -> Result<Claim, StoreError> {
        let began = Instant::now();
        let mut backoff = Backoff::new(limits::CLAIM_WAIT, limits::CLAIM_WAIT_MAX);
        loop {
            let done = self.session.execute_unpaged(self.insert, &self.values).await;
            let unknown = match done.map_err(|error| store_error(&error)) {
                Ok(result) => return Ok(self.claim(answer(result, "claim")?)),
                Err(StoreError::Away(reason)) => reason,
                Err(failed) => return Err(failed),
            };
            // A serial read completes what is under way, so a row of ours is final. None may still
            // come: a repeated insertion then meets our own token.
            match self.token_that_stands().await {
                Ok(Some(token)) => return Ok(self.claim(Answer::Refused { token: Some(token) })),
                Ok(None) | Err(StoreError::Away(_)) => {}
                Err(failed) => return Err(failed),
            }
            if began.elapsed() > limits::CLAIM_TIME {
                return Err(StoreError::Away(unknown));
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    fn claim(&self, answer: Answer) -> Claim {
        match answer {
            Answer::Applied => Claim::Applied,
            Answer::Refused { token } if token == Some(self.token) => Claim::Applied,
            Answer::Refused { .. } => Claim::Taken,
        }
    }

    async fn token_that_stands(&self) -> Result<Option<Uuid>, StoreError> {
        let rows = rows_of::<(Option<Uuid>,)>(self.session, self.read_back, (self.id,)).await?;
        Ok(rows.first().map(|(token,)| token.unwrap_or_default()))
    }
}

/// A change of a status.
pub(super) struct StatusChange<'a> {
    pub connected: &'a Connected,
    pub id: BroadcastId,
    pub to: Status,
    pub changed_at: CqlTimestamp,
    /// Drawn for this change.
    pub token: Uuid,
}

/// A status, and the token of the change that made it; none did if it stands as created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stands {
    status: Status,
    token: Option<Uuid>,
}

impl StatusChange<'_> {
    /// Changes it; answers only what is certain. `Away` if that can't be found out in time.
    ///
    /// A change is made on what stands, status and token, so one that is tried again, or comes
    /// late, is done once: from its own token it starts nowhere.
    pub async fn run(self) -> Result<Change, StoreError> {
        let began = Instant::now();
        let mut backoff = Backoff::new(limits::CLAIM_WAIT, limits::CLAIM_WAIT_MAX);
        // On what a try was made whose answer was lost.
        let mut tried: Option<Stands> = None;
        loop {
            let unknown = match self.stands().await {
                Ok(None) => return Ok(Change::Missing),
                Ok(Some(stands)) if stands.token == Some(self.token) => return Ok(Change::Done),
                Ok(Some(stands)) => {
                    // Others changed it: instead of that try, or after it. No end is changed.
                    if tried.is_some_and(|tried| tried != stands) && !self.to.is_final() {
                        return Err(StoreError::Away("others changed the status too".to_owned()));
                    }
                    if stands.status == self.to {
                        return Ok(Change::Already);
                    }
                    if !may_become(Some(stands.status), self.to) {
                        return Ok(Change::Refused(stands.status));
                    }
                    match self.attempt(stands).await {
                        Ok(Answer::Applied) => return Ok(Change::Done),
                        Ok(Answer::Refused { .. }) => "others change the status too".to_owned(),
                        Err(StoreError::Away(reason)) => {
                            tried = Some(stands);
                            reason
                        }
                        Err(failed) => return Err(failed),
                    }
                }
                Err(StoreError::Away(reason)) => reason,
                Err(failed) => return Err(failed),
            };
            if began.elapsed() > limits::CLAIM_TIME {
                return Err(StoreError::Away(unknown));
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    async fn attempt(&self, from: Stands) -> Result<Answer, StoreError> {
        let Connected { session, statements } = self.connected;
        let (to, from_word) = (self.to.word(), from.status.word());
        let id = id_column(self.id);
        let values = (to, self.token, self.changed_at, id, from_word, from.token);
        let done = session.execute_unpaged(&statements.change_status, values).await;
        answer(done.map_err(|error| store_error(&error))?, "change")
    }

    /// A serial read completes what is under way, so what it finds is final.
    async fn stands(&self) -> Result<Option<Stands>, StoreError> {
        let Connected { session, statements } = self.connected;
        let (statement, key) = (&statements.status_change, (id_column(self.id),));
        let rows = rows_of::<(Option<String>, Option<Uuid>)>(session, statement, key).await?;
        // A row whose word is null is the rest of one that was removed.
        let Some((Some(word), token)) = rows.into_iter().next() else { return Ok(None) };
        Ok(Some(Stands { status: read_status(&word)?, token }))
    }
}

/// Reads the answer by the names of its columns.
pub(super) fn answer(result: QueryResult, token_column: &str) -> Result<Answer, StoreError> {
    let failed = |reason: String| StoreError::Failed(format!("answer to a transaction: {reason}"));
    let rows = result.into_rows_result().map_err(|error| failed(error.to_string()))?;
    let place = |name: &str| rows.column_specs().get_by_name(name).map(|(index, _)| index);
    let (applied, token) = (place("[applied]"), place(token_column));
    let applied = applied.ok_or_else(|| failed("no column [applied]".to_owned()))?;
    let row = rows.first_row::<Row>().map_err(|error| failed(error.to_string()))?;
    let column = |index: usize| row.columns.get(index).and_then(Option::as_ref);
    match column(applied) {
        Some(CqlValue::Boolean(true)) => Ok(Answer::Applied),
        Some(CqlValue::Boolean(false)) => {
            let token = token.and_then(column).and_then(CqlValue::as_uuid);
            Ok(Answer::Refused { token })
        }
        other => Err(failed(format!("[applied] is {other:?}"))),
    }
}
