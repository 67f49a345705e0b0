//! Floor 5: everything over HTTP that is no stream, by hyper on the control threads.
//!
//! Two listeners: the admin one is accepted here; connections of the public one come from the edge
//! with the bytes that were read already, and serve one request each. Every error has one shape.

mod body;
mod broadcasts;
mod checked;
mod connection;
mod dead_letters;
mod errors;
mod lists;
mod pages;
mod rewind;
mod room;
mod testing;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{any, delete, get, post};

use crate::control::{Creator, Ender, Redriver};
use crate::limits::admin as limits;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ports::{Clock, Store};

pub use connection::{PublicCalls, serve_admin};
pub use room::{OpenCalls, Room};

/// What the calls work on.
#[derive(Clone)]
pub struct AdminState {
    pub creator: Arc<Creator>,
    pub ender: Arc<Ender>,
    pub redriver: Arc<Redriver>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub allow_anonymous: bool,
    /// Broadcasts may be made to fail.
    pub is_testing: bool,
    pub room: Arc<Room>,
    pub calls: Arc<OpenCalls>,
}

/// Calls of the admin listener.
fn admin_router(state: AdminState) -> Router {
    let create = post(broadcasts::create)
        .get(broadcasts::list)
        .layer(DefaultBodyLimit::max(limits::CREATE_BODY_BYTES_MAX));
    Router::new()
        .route("/", get(pages::index))
        .route("/health/live", get(pages::live))
        .route("/health/ready", get(pages::ready))
        .route("/metrics", get(pages::metrics))
        .route("/api/admin/broadcasts", create)
        .route("/api/admin/broadcasts/{id}", get(broadcasts::show).delete(broadcasts::cancel))
        .route("/api/admin/broadcasts/{id}/targets", get(broadcasts::targets))
        .route("/api/admin/dlt/messages", get(dead_letters::list))
        .route("/api/admin/dlt/redrive/{id}", post(dead_letters::redrive))
        .route("/api/admin/dlt/redrive-all", post(dead_letters::redrive_all))
        .route("/api/admin/dlt/purge/{id}", delete(dead_letters::purge))
        .route("/api/admin/dlt/purge-all", delete(dead_letters::purge_all))
        .route("/api/admin/dlt/audit", get(dead_letters::audit))
        .route("/api/admin/testing/kafka-consumer-failure", get(testing::show).post(testing::set))
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(state.clone(), errors::guard))
        .with_state(state)
}

/// Calls of the public listener that are no stream. A stream's path comes here only with another
/// method than GET.
fn public_router(state: AdminState) -> Router {
    let mut router = Router::new().route("/health/live", get(pages::live));
    for path in crate::wire::head::STREAM_PATHS {
        router = router.route(path, any(errors::stream_is_get));
    }
    router
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(state.clone(), errors::guard))
        .with_state(state)
}
