//! JSON of the HTTP calls: one error shape, and what answers look like.
//!
//! camelCase, nulls written, dates ISO-8601 UTC (`tests/golden/api/`). Pure; any thread.

use http::StatusCode;
use serde::Serialize;

use crate::base::{BroadcastId, EpochMillis, Priority, Status, TargetType};

pub const JSON: &str = "application/json";

/// The body of every answer that is an error.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorBody<'a> {
    pub timestamp: EpochMillis,
    pub status: u16,
    /// The status in words.
    pub error: &'a str,
    /// What to do about it; every violated rule.
    pub message: &'a str,
    pub path: &'a str,
}

pub fn error_body(status: StatusCode, message: &str, path: &str, at: EpochMillis) -> Vec<u8> {
    let body = ErrorBody {
        timestamp: at,
        status: status.as_u16(),
        error: status.canonical_reason().unwrap_or("Error"),
        message,
        path,
    };
    serde_json::to_vec(&body).expect("this shape is JSON")
}

/// A broadcast as the admin calls show it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BroadcastResponse<'a> {
    pub id: BroadcastId,
    pub correlation_id: &'a str,
    pub sender_id: Option<&'a str>,
    pub sender_name: Option<&'a str>,
    pub content: &'a str,
    pub target_type: TargetType,
    /// At most the first 1,000.
    pub target_ids: &'a [String],
    pub priority: Priority,
    pub category: Option<&'a str>,
    pub created_at: EpochMillis,
    pub scheduled_at: Option<EpochMillis>,
    pub expires_at: Option<EpochMillis>,
    pub fire_and_forget: bool,
    pub status: Status,
    pub total_targeted: u64,
    pub total_delivered: u64,
    pub total_read: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: EpochMillis = EpochMillis(1_795_514_400_123);

    #[test]
    fn golden_bodies() {
        let error = error_body(
            StatusCode::BAD_REQUEST,
            "content: must not be blank; targetType: is required",
            "/api/admin/broadcasts",
            AT,
        );
        let golden = include_str!("../../tests/golden/api/error.json");
        assert_eq!(String::from_utf8_lossy(&error), golden.trim_end());
        let response = BroadcastResponse {
            id: BroadcastId::new(890_123_456_789_012).expect("small"),
            correlation_id: "0b0c7b1e-6a5b-4c1e-9f57-0d3f6f3b8a11",
            sender_id: Some("ops-1"),
            sender_name: Some("Ops"),
            content: "Hello",
            target_type: TargetType::Selected,
            target_ids: &["alice".to_owned(), "bob".to_owned()],
            priority: Priority::Normal,
            category: None,
            created_at: AT,
            scheduled_at: None,
            expires_at: Some(EpochMillis(AT.0 + 1_000)),
            fire_and_forget: false,
            status: Status::Active,
            total_targeted: 2,
            total_delivered: 0,
            total_read: 0,
        };
        let golden = include_str!("../../tests/golden/api/broadcast.json");
        let written = serde_json::to_string(&response).expect("JSON");
        assert_eq!(written, golden.trim_end());
    }
}
