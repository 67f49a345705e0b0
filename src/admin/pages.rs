//! Health, metrics, and the page that says what is here.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;

use super::AdminState;
use super::errors::Failure;

const INDEX: &str = "Corecast admin listener

POST   /api/admin/broadcasts               create a broadcast
GET    /api/admin/broadcasts               list (filter=all|active|scheduled, limit, cursor)
GET    /api/admin/broadcasts/{id}          one broadcast
DELETE /api/admin/broadcasts/{id}          cancel it
GET    /api/admin/broadcasts/{id}/targets  all its targets (limit, cursor)
GET    /api/admin/dlt/messages             dead letters (limit, cursor)
POST   /api/admin/dlt/redrive/{id}         send one again
POST   /api/admin/dlt/redrive-all          send all again
DELETE /api/admin/dlt/purge/{id}           purge one
DELETE /api/admin/dlt/purge-all            purge all
GET    /api/admin/dlt/audit                what was done with them (limit, cursor)
GET    /api/admin/testing/kafka-consumer-failure  whether the next broadcast fails (test mode)
POST   /api/admin/testing/kafka-consumer-failure  have it fail ({enabled})
GET    /metrics                            OpenMetrics
GET    /health/live, /health/ready         liveness, readiness
";

pub(super) async fn index() -> &'static str {
    INDEX
}

pub(super) async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({"live": true}))
}

pub(super) async fn ready(State(state): State<AdminState>) -> Response {
    let missing = state.health.missing();
    if missing.is_empty() {
        #[derive(Serialize)]
        struct Ready {
            ready: bool,
        }
        return Json(Ready { ready: true }).into_response();
    }
    let parts: Vec<String> =
        missing.iter().map(|(part, reason)| format!("{}: {reason}", part.name())).collect();
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}", parts.join("; ")))
        .into_response()
}

pub(super) async fn metrics(State(state): State<AdminState>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], state.metrics.encode()).into_response()
}
