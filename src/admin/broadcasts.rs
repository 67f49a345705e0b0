//! `/api/admin/broadcasts`: create, list, show, cancel.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest as _, Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, StatusCode, header};

use super::errors::Failure;
use super::lists::{Listing, bad_cursor, both, page, read_limit};
use super::{AdminState, body};
use crate::base::{BroadcastId, EpochMillis, TargetType};
use crate::domain::Draft;
use crate::limits::{admin as limits, contract};
use crate::ports::{BroadcastRow, ListFilter, ListPlace};
use crate::wire::api::{self, BroadcastResponse};

pub(super) async fn create(
    State(state): State<AdminState>,
    request: Request,
) -> Result<Response, Failure> {
    check_json(request.headers())?;
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let most = limits::CREATE_BODY_BYTES_MAX;
    if length.is_some_and(|length| length > most as u64) {
        let message = format!("the body must be at most {most} bytes");
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let place = state.room.for_create(length).await?;
    let draft = {
        let body = read_body(request).await?;
        let value = body::read(&body).map_err(|error| {
            Failure::new(StatusCode::BAD_REQUEST, format!("body: must be JSON: {error}"))
        })?;
        drop(body);
        Draft::check(value, state.clock.wall())?
    };
    // A client that goes away, or is not answered in time, does not stop a broadcast that has
    // begun to exist.
    let targets = draft.target.ids.len() as u64;
    let time = limits::ANSWER_TIME + Duration::from_secs(targets / limits::TARGETS_PER_SECOND);
    let creator = state.creator.clone();
    let creating = tokio::spawn(async move {
        let created = creator.create(draft).await;
        drop(place);
        created
    });
    let created = tokio::time::timeout(time, creating).await;
    let created = created.map_err(|_| Failure::late())?;
    let row = created.map_err(|error| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("creating it failed: {error}"))
    })??;
    Ok(Json(response(&row)).into_response())
}

pub(super) async fn read_body(request: Request) -> Result<Bytes, Failure> {
    let body = tokio::time::timeout(limits::BODY_TIME, Bytes::from_request(request, &())).await;
    let body = body.map_err(|_| {
        let message = format!("the body was not complete within {} s", limits::BODY_TIME.as_secs());
        Failure::new(StatusCode::REQUEST_TIMEOUT, message)
    })?;
    body.map_err(|error| Failure::new(error.status(), error.body_text()))
}

pub(super) async fn show(
    State(state): State<AdminState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Failure> {
    let Path(id) = id?;
    let _held = state.room.for_rows(1).await;
    let row = find(&state, read_id(&id)?).await?;
    Ok(Json(response(&row)).into_response())
}

/// Answers once no message of it begins any more, on any node.
pub(super) async fn cancel(
    State(state): State<AdminState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Failure> {
    let Path(id) = id?;
    let id = read_id(&id)?;
    // A client that goes away does not leave it in the middle.
    let (ender, place) = (state.ender.clone(), state.room.for_cancel()?);
    let cancelling = tokio::spawn(async move {
        let cancelled = ender.cancel(id).await;
        drop(place);
        cancelled
    });
    let cancelled = tokio::time::timeout(limits::ANSWER_TIME, cancelling).await;
    cancelled.map_err(|_| Failure::late())?.map_err(|error| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cancelling it failed: {error}"))
    })??;
    Ok(StatusCode::NO_CONTENT)
}

/// All target ids, paged by their number.
pub(super) async fn targets(
    State(state): State<AdminState>,
    id: Result<Path<String>, PathRejection>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Failure> {
    let (Path(id), Query(listing)) = (id?, listing?);
    let cursor = listing.cursor.as_deref().map(|text| text.parse::<usize>());
    let cursor = cursor.transpose().map_err(|_| bad_cursor());
    let ((id, limit), cursor) =
        both(both(read_id(&id), read_limit(listing.limit.as_deref())), cursor)?;
    let _held = state.room.for_rows(1).await;
    let row = find(&state, id).await?;
    let ids = &row.broadcast.target.ids;
    let start = cursor.unwrap_or(0).min(ids.len());
    let end = (start + limit).min(ids.len());
    let next = (end < ids.len()).then(|| end.to_string());
    let path = format!("/api/admin/broadcasts/{}/targets", row.broadcast.id);
    Ok(page(Json(&ids[start..end]).into_response(), &path, None, limit, next))
}

pub(super) async fn list(
    State(state): State<AdminState>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(listing) = listing?;
    let filter = match listing.filter.as_deref().unwrap_or("all") {
        "all" => Ok(("all", ListFilter::All)),
        "active" => Ok(("active", ListFilter::Active)),
        "scheduled" => Ok(("scheduled", ListFilter::Scheduled)),
        _ => {
            let message = "filter: must be one of all, active, scheduled";
            Err(Failure::new(StatusCode::BAD_REQUEST, message))
        }
    };
    let after = listing.cursor.as_deref().map(read_place).transpose();
    let (((word, filter), limit), after) =
        both(both(filter, read_limit(listing.limit.as_deref())), after)?;
    let (body, next) = read_page(&state, filter, after, limit).await?;
    let body = ([(header::CONTENT_TYPE, api::JSON)], body).into_response();
    Ok(page(body, "/api/admin/broadcasts", Some(word), limit, next.map(write_place)))
}

/// Rows as a JSON array, and where the next page begins. A page has fewer than `limit` rows if
/// they are long.
async fn read_page(
    state: &AdminState,
    filter: ListFilter,
    mut after: Option<ListPlace>,
    limit: usize,
) -> Result<(Vec<u8>, Option<ListPlace>), Failure> {
    let mut body = Vec::from(*b"[");
    let mut count = 0;
    loop {
        // One more than asked for tells whether there is a next page.
        let wanted = (limit + 1 - count).min(limits::LIST_ROWS_READ);
        let _held = state.room.for_rows(wanted).await;
        let rows = state.store.broadcasts(filter, after, wanted).await?;
        for row in &rows {
            if count == limit || body.len() > limits::LIST_BYTES_MAX {
                body.push(b']');
                return Ok((body, after));
            }
            if count > 0 {
                body.push(b',');
            }
            serde_json::to_writer(&mut body, &response(row)).expect("rows are JSON");
            after = Some(place(filter, row));
            count += 1;
        }
        if rows.len() < wanted {
            body.push(b']');
            return Ok((body, None));
        }
    }
}

fn place(filter: ListFilter, row: &BroadcastRow) -> ListPlace {
    let at = match filter {
        ListFilter::Scheduled => row.broadcast.scheduled_at,
        ListFilter::All | ListFilter::Active => None,
    };
    ListPlace { at: at.unwrap_or(row.broadcast.created_at), id: row.broadcast.id }
}

fn read_id(text: &str) -> Result<BroadcastId, Failure> {
    text.parse().map_err(|()| {
        Failure::new(StatusCode::BAD_REQUEST, "id: must be an integer of at most 2^53-1")
    })
}

async fn find(state: &AdminState, id: BroadcastId) -> Result<BroadcastRow, Failure> {
    let not_found = || Failure::new(StatusCode::NOT_FOUND, format!("there is no broadcast {id}"));
    state.store.broadcast(id).await?.ok_or_else(not_found)
}

fn response(row: &BroadcastRow) -> BroadcastResponse<'_> {
    let broadcast = &row.broadcast;
    let ids = &broadcast.target.ids;
    let targeted = if broadcast.target.r#type == TargetType::Selected { ids.len() } else { 0 };
    BroadcastResponse {
        id: broadcast.id,
        correlation_id: &broadcast.correlation_id,
        sender_id: broadcast.sender_id.as_deref(),
        sender_name: broadcast.sender_name.as_deref(),
        content: &broadcast.content,
        target_type: broadcast.target.r#type,
        target_ids: &ids[..ids.len().min(contract::TARGET_IDS_SHOWN_MAX)],
        priority: broadcast.priority,
        category: broadcast.category.as_deref(),
        created_at: broadcast.created_at,
        scheduled_at: broadcast.scheduled_at,
        expires_at: broadcast.expires_at,
        fire_and_forget: broadcast.fire_and_forget,
        status: row.status,
        total_targeted: targeted as u64,
        total_delivered: 0,
        total_read: 0,
    }
}

pub(super) fn check_json(headers: &HeaderMap) -> Result<(), Failure> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or("");
    if media_type.trim().eq_ignore_ascii_case(api::JSON) {
        return Ok(());
    }
    let message = "the body must be application/json";
    Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

fn write_place(place: ListPlace) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}-{}", place.at.0, place.id))
}

fn read_place(text: &str) -> Result<ListPlace, Failure> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    let place = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let place = place.as_deref().and_then(|place| place.split_once('-'));
    let place = place.and_then(|(at, id)| {
        let at = at.parse().ok().filter(|at| *at <= EpochMillis::MAX.0)?;
        Some(ListPlace { at: EpochMillis(at), id: id.parse().ok()? })
    });
    place.ok_or_else(bad_cursor)
}
