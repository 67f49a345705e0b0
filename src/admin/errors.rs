//! Causes to HTTP: the one place where an error gets its status, and the one shape that it has.

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};

use super::AdminState;
use crate::control::{CreateError, EndError, RedriveError};
use crate::domain::{DraftError, access};
use crate::limits::admin as limits;
use crate::ports::{LogError, StoreError};
use crate::wire::api;

/// An error on its way out; `guard` gives it its body.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub status: StatusCode,
    pub message: String,
    pub allow: Option<&'static str>,
}

impl Failure {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), allow: None }
    }

    /// What was asked for may still be done.
    pub fn late() -> Self {
        let message = "log or store did not answer in time; what was asked for may still happen";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// Nothing was done.
    fn ending() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "this node ends now; ask another, or later")
    }
}

impl From<QueryRejection> for Failure {
    fn from(error: QueryRejection) -> Self {
        Self::new(error.status(), error.body_text())
    }
}

impl From<PathRejection> for Failure {
    fn from(error: PathRejection) -> Self {
        Self::new(error.status(), error.body_text())
    }
}

impl From<DraftError> for Failure {
    fn from(error: DraftError) -> Self {
        let status = match &error {
            DraftError::Invalid(_) => StatusCode::BAD_REQUEST,
            DraftError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        let status = match &error {
            CreateError::Log(LogError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            CreateError::Log(_)
            | CreateError::Store(_)
            | CreateError::NoId
            | CreateError::Unpublished { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<EndError> for Failure {
    fn from(error: EndError) -> Self {
        let status = match &error {
            EndError::Missing(_) => StatusCode::NOT_FOUND,
            EndError::Refused { .. } => StatusCode::CONFLICT,
            EndError::Store(_) | EndError::Log(_) | EndError::Full | EndError::Unsettled { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, error.to_string())
    }
}

impl From<RedriveError> for Failure {
    fn from(error: RedriveError) -> Self {
        let status = match &error {
            RedriveError::Missing(_) => StatusCode::NOT_FOUND,
            RedriveError::Refused(..) => StatusCode::CONFLICT,
            RedriveError::Busy
            | RedriveError::Full
            | RedriveError::Store(_)
            | RedriveError::Log(_)
            | RedriveError::BrokenOff { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

pub(super) async fn not_found() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "there is nothing at this path")
}

pub(super) async fn method_not_allowed() -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know this method")
}

pub(super) async fn stream_is_get() -> Failure {
    let message = "a stream is opened by GET";
    Failure { allow: Some("GET"), ..Failure::new(StatusCode::METHOD_NOT_ALLOWED, message) }
}

/// Around every call: who may, how long it may take, and the shape of what went wrong.
pub(super) async fn guard(
    State(state): State<AdminState>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let is_open = path.starts_with("/health/");
    let allowed = if state.allow_anonymous || is_open { Ok(()) } else { check_local(&request) };
    let is_head = request.method() == Method::HEAD;
    let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let time = match *request.method() {
        Method::GET | Method::HEAD => limits::ANSWER_TIME,
        // It waits for a place, for the body, and for log and store.
        _ => limits::ANSWER_TIME + limits::BODY_TIME + limits::CREATE_TIME_MAX,
    };
    let calls = state.calls.clone();
    let open = calls.begin();
    let allowed = if open.is_some() { allowed } else { Err(Failure::ending()) };
    let response = match allowed {
        Err(failure) => axum::response::IntoResponse::into_response(failure),
        Ok(()) => match tokio::time::timeout(time, next.run(request)).await {
            Ok(response) => response,
            Err(_) => axum::response::IntoResponse::into_response(Failure::late()),
        },
    };
    let mut response = shape(response, &path, is_head, &state);
    if is_chunked {
        // Where such a body ends only hyper knows, so the next head could not be checked
        // (`checked.rs`).
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn check_local(request: &Request) -> Result<(), Failure> {
    let hosts = request.headers().get_all(header::HOST).iter();
    let hosts = hosts.map(|host| host.to_str().unwrap_or("?"));
    let hosts = hosts.chain(request.uri().authority().map(http::uri::Authority::as_str));
    access::check_local(hosts, request.headers().keys().map(http::HeaderName::as_str))
        .map_err(|error| Failure::new(error.status(), error.to_string()))
}

/// Gives an error its body, and every answer the fields that keep it out of caches.
fn shape(mut response: Response, path: &str, is_head: bool, state: &AdminState) -> Response {
    let status = response.status();
    let failure = response.extensions_mut().remove::<Failure>();
    if status.is_client_error() || status.is_server_error() {
        let words = status.canonical_reason().unwrap_or("error");
        let message = failure.as_ref().map_or(words, |failure| failure.message.as_str());
        let body = api::error_body(status, message, path, state.clock.wall());
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(api::JSON));
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(limits::RETRY_AFTER_S));
        }
        if let Some(allow) = failure.and_then(|failure| failure.allow) {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        *response.body_mut() = if is_head { Body::empty() } else { Body::from(body) };
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
