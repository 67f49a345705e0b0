//! JSON of the HTTP calls: one error shape, and what answers look like.
//!
//! camelCase, nulls written, dates ISO-8601 UTC (`tests/golden/api/`). Pure; any thread.

use http::StatusCode;
use serde::Serialize;
use uuid::Uuid;

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

/// A dead letter as the list shows it. Null for what nobody says.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterResponse<'a> {
    pub id: &'a str,
    pub broadcast_id: Option<BroadcastId>,
    pub original_key: Option<&'a str>,
    pub original_topic: Option<&'a str>,
    pub original_partition: Option<i32>,
    pub original_offset: Option<i64>,
    pub exception_message: Option<&'a str>,
    pub exception_stack_trace: Option<&'a str>,
    pub failed_at: EpochMillis,
    pub original_message_payload: Option<&'a str>,
}

/// What redriving dead letters has come to.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedriveResponse {
    pub total_messages: u64,
    pub success_count: u64,
    pub failure_count: u64,
    /// At most the first 1,000.
    pub failures: Vec<RedriveFailure>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedriveFailure {
    pub dlt_message_id: String,
    pub reason: String,
}

/// What was done with dead letters, as it is kept.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterAuditResponse<'a> {
    pub id: Uuid,
    pub at: EpochMillis,
    pub action: &'static str,
    /// Null: all that there were.
    pub dlt_message_id: Option<&'a str>,
    pub node: &'a str,
    /// Null as long as it is under way, and if it broke off.
    pub total_messages: Option<u64>,
    pub success_count: Option<u64>,
    pub failure_count: Option<u64>,
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

    #[test]
    fn golden_dead_letters() {
        let reason = "its failure was simulated, attempt 3 of 3";
        let trace = format!(
            "corecast.NotProcessed: {reason}\n\tat broadcast-user-service-selected-3@258\n"
        );
        let id = "broadcast-user-service-selected-dlt-0-7";
        let all = [
            DeadLetterResponse {
                id,
                broadcast_id: BroadcastId::new(890_123_456_789_012),
                original_key: Some("ann"),
                original_topic: Some("broadcast-user-service-selected"),
                original_partition: Some(3),
                original_offset: Some(258),
                exception_message: Some(reason),
                exception_stack_trace: Some(&trace),
                failed_at: AT,
                original_message_payload: Some("{\"broadcastId\":890123456789012}"),
            },
            DeadLetterResponse {
                id: "broadcast-user-service-group-dlt-0-0",
                broadcast_id: None,
                original_key: None,
                original_topic: None,
                original_partition: None,
                original_offset: None,
                exception_message: None,
                exception_stack_trace: None,
                failed_at: AT,
                original_message_payload: None,
            },
        ];
        let golden = include_str!("../../tests/golden/api/dead-letters.json");
        assert_eq!(serde_json::to_string(&all).expect("JSON"), golden.trim_end());
        let reason = "it can't be served: no value".to_owned();
        let failures = vec![RedriveFailure { dlt_message_id: id.to_owned(), reason }];
        let redriven =
            RedriveResponse { total_messages: 3, success_count: 2, failure_count: 1, failures };
        let golden = include_str!("../../tests/golden/api/redriven.json");
        assert_eq!(serde_json::to_string(&redriven).expect("JSON"), golden.trim_end());
        let line = Uuid::from_u128(0x018f_3b3b_8d56_745d_8f2d_ca1d_6e3a_efa4);
        let all = DeadLetterAuditResponse {
            id: line,
            at: AT,
            action: "REDRIVE_ALL",
            dlt_message_id: None,
            node: "east-1",
            total_messages: Some(3),
            success_count: Some(2),
            failure_count: Some(1),
        };
        let one = DeadLetterAuditResponse {
            id: Uuid::from_u128(line.as_u128() - 1),
            action: "PURGE",
            dlt_message_id: Some(id),
            total_messages: None,
            success_count: None,
            failure_count: None,
            ..all.clone()
        };
        let golden = include_str!("../../tests/golden/api/dead-letter-audit.json");
        assert_eq!(serde_json::to_string(&[all, one]).expect("JSON"), golden.trim_end());
    }
}
