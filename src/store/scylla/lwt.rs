//! Lightweight transactions: rows that are written only if none stands there.
//!
//! Each row carries a token that its writer drew. So a transaction whose answer is lost can be
//! told apart from one that was refused: the row is read back, and whose token it has, won. The
//! answer has other columns when it is refused than when it is applied, and which, differs between
//! ScyllaDB and Cassandra; it is read by name.

use std::time::Instant;

use scylla::client::session::Session;
use scylla::response::query_result::QueryResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlValue, Row};
use uuid::Uuid;

use super::errors::store_error;
use super::statements::rows_of;
use crate::limits::store as limits;
use crate::ports::{Backoff, Claim, StoreError};

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
