//! `/api/admin/testing`: makes the next broadcast fail, where the configuration allows it.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Request, State};
use http::StatusCode;
use serde::Serialize;

use super::AdminState;
use super::broadcasts::{check_json, read_body};
use super::errors::Failure;

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ConsumerFailure {
    enabled: bool,
}

pub(super) async fn show(
    State(state): State<AdminState>,
) -> Result<Json<ConsumerFailure>, Failure> {
    check_allowed(&state)?;
    let enabled = state.creator.fail_next.load(Ordering::Acquire);
    Ok(Json(ConsumerFailure { enabled }))
}

/// Until a broadcast is created, on this node.
pub(super) async fn set(
    State(state): State<AdminState>,
    request: Request,
) -> Result<Json<ConsumerFailure>, Failure> {
    check_allowed(&state)?;
    check_json(request.headers())?;
    let body = read_body(request).await?;
    let bad = |reason: &str| Failure::new(StatusCode::BAD_REQUEST, reason);
    let body: serde_json::Value = serde_json::from_slice(&body)
        .map_err(|error| bad(&format!("body: must be JSON: {error}")))?;
    let enabled = body.get("enabled").and_then(serde_json::Value::as_bool);
    let enabled = enabled.ok_or_else(|| bad("enabled: must be true or false"))?;
    state.creator.fail_next.store(enabled, Ordering::Release);
    Ok(Json(ConsumerFailure { enabled }))
}

fn check_allowed(state: &AdminState) -> Result<(), Failure> {
    if state.is_testing {
        return Ok(());
    }
    let message = "the configuration does not allow it: testing.enabled is false";
    Err(Failure::new(StatusCode::FORBIDDEN, message))
}
