//! What all lists share: `limit` and `cursor`, pages, and the Link field that says where one goes
//! on.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::errors::Failure;
use crate::limits::contract;

/// Query of a list. Texts, so that each can be refused by name.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    pub filter: Option<String>,
    pub limit: Option<String>,
    pub cursor: Option<String>,
}

/// Two parts of one request; an error that names whatever is wrong with them.
pub(super) fn both<A, B>(a: Result<A, Failure>, b: Result<B, Failure>) -> Result<(A, B), Failure> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err(Failure { message: format!("{}; {}", a.message, b.message), ..a }),
        (Err(wrong), _) | (_, Err(wrong)) => Err(wrong),
    }
}

pub(super) fn read_limit(text: Option<&str>) -> Result<usize, Failure> {
    let Some(text) = text else { return Ok(contract::LIST_ROWS_DEFAULT) };
    let limit = text.parse().ok().filter(|limit| (1..=contract::LIST_ROWS_MAX).contains(limit));
    limit.ok_or_else(|| {
        let message = format!("limit: must be 1 to {}", contract::LIST_ROWS_MAX);
        Failure::new(StatusCode::BAD_REQUEST, message)
    })
}

/// A page; where it goes on stands in the Link field.
pub(super) fn page(
    mut response: Response,
    path: &str,
    filter: Option<&str>,
    limit: usize,
    next: Option<String>,
) -> Response {
    if let Some(next) = next {
        let filter = filter.map_or(String::new(), |word| format!("filter={word}&"));
        let link = format!("<{path}?{filter}limit={limit}&cursor={next}>; rel=\"next\"");
        if let Ok(link) = HeaderValue::try_from(link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    response
}

pub(super) fn bad_cursor() -> Failure {
    let message = "cursor: must be one that a Link field gave";
    Failure::new(StatusCode::BAD_REQUEST, message)
}
