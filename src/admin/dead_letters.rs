//! `/api/admin/dlt`: list, redrive and purge dead letters, and what was done with them.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{StatusCode, header};
use uuid::Uuid;

use super::AdminState;
use super::errors::Failure;
use super::lists::{Listing, bad_cursor, both, page, read_limit};
use crate::base::EpochMillis;
use crate::control::{RedriveError, Redriven};
use crate::limits::{admin as limits, dead_letters};
use crate::ports::{AuditLine, AuditPlace, DeadLetterId, DeadLetterPlace, DeadLetterRow, Original};
use crate::wire::api::{
    self, DeadLetterAuditResponse, DeadLetterResponse, RedriveFailure, RedriveResponse,
};

const ORIGINAL_BYTES: usize = 16;

pub(super) async fn list(
    State(state): State<AdminState>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(listing) = listing?;
    let after = listing.cursor.as_deref().map(read_place).transpose();
    let (limit, after) = both(read_limit(listing.limit.as_deref()), after)?;
    let (body, next) = read_page(&state, after, limit).await?;
    let body = ([(header::CONTENT_TYPE, api::JSON)], body).into_response();
    Ok(page(body, "/api/admin/dlt/messages", None, limit, next.map(write_place)))
}

/// Dead letters as a JSON array, and where the next page begins. A page has fewer than `limit` of
/// them if they are long.
async fn read_page(
    state: &AdminState,
    mut after: Option<DeadLetterPlace>,
    limit: usize,
) -> Result<(Vec<u8>, Option<DeadLetterPlace>), Failure> {
    let mut body = Vec::from(*b"[");
    let mut count = 0;
    loop {
        // One more than asked for tells whether there is a next page.
        let wanted = (limit + 1 - count).min(limits::LIST_ROWS_READ);
        let _held = state.room.for_rows(wanted).await;
        let rows = &state.redriver.rows;
        let rows = rows.dead_letters(after, wanted, limits::LIST_BYTES_MAX).await?;
        if rows.is_empty() {
            body.push(b']');
            return Ok((body, None));
        }
        for row in &rows {
            if count == limit || body.len() > limits::LIST_BYTES_MAX {
                body.push(b']');
                return Ok((body, after));
            }
            if count > 0 {
                body.push(b',');
            }
            write_row(&mut body, row);
            after = Some(row.place());
            count += 1;
        }
    }
}

fn write_row(body: &mut Vec<u8>, row: &DeadLetterRow) {
    let shown = row.shown();
    let id = shown.id.to_string();
    let origin = shown.origin.as_ref();
    let response = DeadLetterResponse {
        id: &id,
        broadcast_id: shown.broadcast,
        original_key: shown.original_key.as_deref(),
        original_topic: origin.map(|origin| origin.topic.as_str()),
        original_partition: origin.map(|origin| origin.partition),
        original_offset: origin.map(|origin| origin.offset),
        exception_message: shown.exception_message.as_deref(),
        exception_stack_trace: shown.exception_stack_trace.as_deref(),
        failed_at: shown.failed_at,
        original_message_payload: shown.payload.as_deref(),
    };
    serde_json::to_writer(body, &response).expect("rows are JSON");
}

pub(super) async fn redrive(
    State(state): State<AdminState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<RedriveResponse>, Failure> {
    let Path(id) = id?;
    let id = read_id(&id)?;
    let redriver = state.redriver.clone();
    let held = state.room.for_rows(1).await;
    let working = async move {
        let _held = held;
        redriver.redrive(&id).await
    };
    to_its_end(limits::ANSWER_TIME, working).await?;
    Ok(Json(RedriveResponse { total_messages: 1, success_count: 1, ..Default::default() }))
}

pub(super) async fn redrive_all(
    State(state): State<AdminState>,
) -> Result<Json<RedriveResponse>, Failure> {
    let redriver = state.redriver.clone();
    let working = async move { redriver.redrive_all().await };
    let done = to_its_end(dead_letters::ALL_TIME, working).await?;
    let Redriven { succeeded, failed, failures } = done;
    let failure = |(id, reason): (DeadLetterId, _)| RedriveFailure {
        dlt_message_id: id.to_string(),
        reason: format!("{reason}"),
    };
    Ok(Json(RedriveResponse {
        total_messages: succeeded + failed,
        success_count: succeeded,
        failure_count: failed,
        failures: failures.into_iter().map(failure).collect(),
    }))
}

pub(super) async fn purge(
    State(state): State<AdminState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Failure> {
    let Path(id) = id?;
    let id = read_id(&id)?;
    let redriver = state.redriver.clone();
    let held = state.room.for_rows(1).await;
    let working = async move {
        let _held = held;
        redriver.purge(&id).await
    };
    to_its_end(limits::ANSWER_TIME, working).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn purge_all(State(state): State<AdminState>) -> Result<StatusCode, Failure> {
    let redriver = state.redriver.clone();
    let working = async move { redriver.purge_all().await };
    to_its_end(dead_letters::ALL_TIME, working).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A client that goes away, or is not answered in time, does not leave it in the middle.
async fn to_its_end<T: Send + 'static>(
    time: Duration,
    working: impl Future<Output = Result<T, RedriveError>> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::time::timeout(time, tokio::spawn(working)).await;
    let done = done.map_err(|_| Failure::late())?.map_err(|error| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("it failed: {error}"))
    })?;
    Ok(done?)
}

pub(super) async fn audit(
    State(state): State<AdminState>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(listing) = listing?;
    let after = listing.cursor.as_deref().map(read_audit_place).transpose();
    let (limit, after) = both(read_limit(listing.limit.as_deref()), after)?;
    // One more than asked for tells whether there is a next page.
    let mut lines = state.redriver.audit.audit(after, limit + 1).await?;
    let is_more = lines.len() > limit;
    lines.truncate(limit);
    let next = lines.last().filter(|_| is_more).map(|line| write_audit_place(line.place()));
    let letters: Vec<Option<String>> =
        lines.iter().map(|line| line.letter.as_ref().map(ToString::to_string)).collect();
    let shown: Vec<_> = lines
        .iter()
        .zip(&letters)
        .map(|(line, letter)| audit_response(line, letter.as_deref()))
        .collect();
    Ok(page(Json(&shown).into_response(), "/api/admin/dlt/audit", None, limit, next))
}

fn audit_response<'a>(line: &'a AuditLine, letter: Option<&'a str>) -> DeadLetterAuditResponse<'a> {
    DeadLetterAuditResponse {
        id: line.id,
        at: line.at,
        action: line.what.word(),
        dlt_message_id: letter,
        node: &line.node,
        total_messages: line.counts.map(|counts| counts.succeeded + counts.failed),
        success_count: line.counts.map(|counts| counts.succeeded),
        failure_count: line.counts.map(|counts| counts.failed),
    }
}

fn read_id(text: &str) -> Result<DeadLetterId, Failure> {
    text.parse().map_err(|()| {
        Failure::new(StatusCode::BAD_REQUEST, "id: must be dltTopic-partition-offset")
    })
}

fn write_place(place: DeadLetterPlace) -> String {
    write_key(place.failed_at, place.original.0)
}

fn read_place(text: &str) -> Result<DeadLetterPlace, Failure> {
    let (failed_at, original) = read_key(text)?;
    Ok(DeadLetterPlace { failed_at, original: Original(original) })
}

fn write_audit_place(place: AuditPlace) -> String {
    write_key(place.at, place.id.into_bytes())
}

fn read_audit_place(text: &str) -> Result<AuditPlace, Failure> {
    let (at, id) = read_key(text)?;
    Ok(AuditPlace { at, id: Uuid::from_bytes(id) })
}

fn write_key(at: EpochMillis, rest: [u8; ORIGINAL_BYTES]) -> String {
    URL_SAFE_NO_PAD.encode([&at.0.to_be_bytes()[..], &rest].concat())
}

fn read_key(text: &str) -> Result<(EpochMillis, [u8; ORIGINAL_BYTES]), Failure> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad_cursor())?;
    let (at, rest) = bytes.split_first_chunk::<8>().ok_or_else(bad_cursor)?;
    let at = EpochMillis(u64::from_be_bytes(*at));
    let rest = rest.try_into().map_err(|_| bad_cursor())?;
    if at <= EpochMillis::MAX { Ok((at, rest)) } else { Err(bad_cursor()) }
}
