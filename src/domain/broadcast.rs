//! A broadcast: its immutable content.

use serde::{Deserialize, Serialize};

use crate::base::{BroadcastId, EpochMillis, Priority, TargetType};

/// Whom a broadcast is for: the type and, but for ALL, the names without repeats.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    pub r#type: TargetType,
    pub ids: Vec<String>,
}

/// The immutable content. What changes (status, counts) stands elsewhere.
///
/// Serialised as JSON it is a row of the embedded store; fields are only ever added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Broadcast {
    pub id: BroadcastId,
    pub correlation_id: String,
    pub sender_id: Option<String>,
    pub sender_name: Option<String>,
    pub content: String,
    pub target: Target,
    pub priority: Priority,
    pub category: Option<String>,
    pub created_at: EpochMillis,
    pub scheduled_at: Option<EpochMillis>,
    pub expires_at: Option<EpochMillis>,
    pub fire_and_forget: bool,
}
