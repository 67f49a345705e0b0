//! The body of `POST /api/admin/broadcasts`: its rules, all checked at once.
//!
//! Every violated rule is named in one answer. Nothing here is stored or published.

use std::collections::HashSet;
use std::fmt;

use serde_json::{Map, Value};

use super::access::is_name;
use super::broadcast::Target;
use crate::base::{EpochMillis, Priority, Status, TargetType, UserId};
use crate::limits::contract as limits;

/// A broadcast that keeps all rules and does not exist yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    pub sender_id: Option<String>,
    pub sender_name: Option<String>,
    pub content: String,
    /// Repeats are merged, the order is kept.
    pub target: Target,
    pub priority: Priority,
    pub category: Option<String>,
    pub scheduled_at: Option<EpochMillis>,
    pub expires_at: Option<EpochMillis>,
    pub fire_and_forget: bool,
}

/// One violated rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub field: &'static str,
    pub rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.rule)
    }
}

/// Why a body is no draft.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DraftError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
    #[error(
        "content of {content} bytes for {targets} targets is over {} bytes in all",
        limits::FAN_OUT_BYTES_MAX
    )]
    TooLarge { content: usize, targets: usize },
}

impl Draft {
    /// Checks a parsed body. `now` decides what lies in the future. Unknown fields are ignored.
    pub fn check(body: Value, now: EpochMillis) -> Result<Self, DraftError> {
        let Value::Object(fields) = body else {
            let rule = "must be a JSON object".to_owned();
            return Err(DraftError::Invalid(vec![Violation { field: "body", rule }]));
        };
        let mut reader = Reader { fields, violations: Vec::new() };
        let content = reader.content();
        let target = reader.target();
        let draft = Self {
            sender_id: reader.name("senderId"),
            sender_name: reader.name("senderName"),
            content,
            target,
            priority: reader.priority(),
            category: reader.name("category"),
            scheduled_at: reader.moment("scheduledAt"),
            expires_at: reader.moment("expiresAt"),
            fire_and_forget: reader.flag("fireAndForget") | reader.flag("isFireAndForget"),
        };
        if let (Some(scheduled_at), Some(expires_at)) = (draft.scheduled_at, draft.expires_at)
            && expires_at <= scheduled_at
        {
            reader.violate("expiresAt", "must be after scheduledAt");
        }
        if draft.scheduled_at.is_some_and(|at| at > now) {
            reader.violate("scheduledAt", "must not be in the future: this release can't schedule");
        }
        if !reader.violations.is_empty() {
            return Err(DraftError::Invalid(reader.violations));
        }
        let (content, targets) = (draft.content.len(), draft.target.ids.len());
        if content as u64 * targets as u64 > limits::FAN_OUT_BYTES_MAX {
            return Err(DraftError::TooLarge { content, targets });
        }
        Ok(draft)
    }

    /// The status in which the broadcast begins.
    pub fn status(&self, now: EpochMillis) -> Status {
        if self.expires_at.is_some_and(|at| at <= now) {
            Status::Expired
        } else if self.scheduled_at.is_some_and(|at| at > now) {
            Status::Scheduled
        } else {
            Status::Active
        }
    }
}

/// Takes fields out of the body and notes what is wrong with them.
struct Reader {
    fields: Map<String, Value>,
    violations: Vec<Violation>,
}

impl Reader {
    fn violate(&mut self, field: &'static str, rule: impl Into<String>) {
        self.violations.push(Violation { field, rule: rule.into() });
    }

    /// The value of a field; null is absent.
    fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    fn text(&mut self, field: &'static str) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            _ => {
                self.violate(field, "must be a string");
                None
            }
        }
    }

    fn content(&mut self) -> String {
        let before = self.violations.len();
        let content = self.text("content").unwrap_or_default();
        if self.violations.len() > before {
            return content;
        }
        if content.trim().is_empty() {
            self.violate("content", "must not be blank");
        } else if content.len() > limits::CONTENT_BYTES_MAX {
            let rule = format!("must be at most {} bytes", limits::CONTENT_BYTES_MAX);
            self.violate("content", rule);
        }
        content
    }

    fn name(&mut self, field: &'static str) -> Option<String> {
        let text = self.text(field)?;
        if !is_name(&text) {
            let rule =
                format!("must be 1 to {} bytes without control characters", limits::NAME_BYTES_MAX);
            self.violate(field, rule);
        }
        Some(text)
    }

    fn priority(&mut self) -> Priority {
        let Some(word) = self.text("priority") else { return Priority::default() };
        Priority::from_word(&word).unwrap_or_else(|| {
            let known: Vec<_> = Priority::ALL.into_iter().map(Priority::word).collect();
            self.violate("priority", format!("must be one of {}", known.join(", ")));
            Priority::default()
        })
    }

    fn moment(&mut self, field: &'static str) -> Option<EpochMillis> {
        let text = self.text(field)?;
        let moment = EpochMillis::parse_iso(&text);
        if moment.is_none() {
            self.violate(field, "must be an ISO-8601 instant such as 2026-01-31T12:00:00Z");
        }
        moment
    }

    fn flag(&mut self, field: &'static str) -> bool {
        match self.take(field) {
            None => false,
            Some(Value::Bool(flag)) => flag,
            Some(_) => {
                self.violate(field, "must be true or false");
                false
            }
        }
    }

    fn target(&mut self) -> Target {
        let before = self.violations.len();
        let r#type = self.text("targetType").and_then(|word| TargetType::from_word(&word));
        if r#type.is_none() && self.violations.len() == before {
            let known: Vec<_> = TargetType::ALL.into_iter().map(TargetType::word).collect();
            self.violate("targetType", format!("must be one of {}", known.join(", ")));
        }
        let ids = match self.take("targetIds") {
            None => Vec::new(),
            Some(Value::Array(ids)) => ids,
            Some(_) => {
                self.violate("targetIds", "must be an array of strings");
                return Target { r#type: TargetType::All, ids: Vec::new() };
            }
        };
        let Some(r#type) = r#type else {
            return Target { r#type: TargetType::All, ids: Vec::new() };
        };
        if r#type == TargetType::All {
            return Target { r#type, ids: Vec::new() };
        }
        self.target_ids(r#type, ids)
    }

    fn target_ids(&mut self, r#type: TargetType, ids: Vec<Value>) -> Target {
        let max = match r#type {
            TargetType::Selected => limits::TARGET_USERS_MAX,
            _ => limits::TARGET_NAMES_MAX,
        };
        if ids.is_empty() {
            self.violate("targetIds", format!("is required for {}", r#type.word()));
        }
        let mut known = HashSet::with_capacity(ids.len());
        let mut merged = Vec::with_capacity(ids.len());
        for (index, id) in ids.into_iter().enumerate() {
            let rule = match id {
                Value::String(id) if r#type == TargetType::Selected => {
                    UserId::check(&id).map(|()| id).map_err(|error| error.to_string())
                }
                Value::String(id) if is_name(&id) => Ok(id),
                Value::String(_) => Err(format!(
                    "must be 1 to {} bytes without control characters",
                    limits::NAME_BYTES_MAX
                )),
                _ => Err("must be a string".to_owned()),
            };
            match rule {
                Ok(id) => {
                    if known.insert(id.clone()) {
                        merged.push(id);
                    }
                }
                Err(rule) => {
                    self.violate("targetIds", format!("entry {index} {rule}"));
                    break;
                }
            }
        }
        if merged.len() > max {
            self.violate("targetIds", format!("must be at most {max} for {}", r#type.word()));
        }
        Target { r#type, ids: merged }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: EpochMillis = EpochMillis(1_795_514_400_000);

    fn violations(body: Value) -> String {
        Draft::check(body, NOW).expect_err("refused").to_string()
    }

    #[test]
    fn the_smallest_draft() {
        let body = json!({"content": "hi", "targetType": "ALL", "other": 1});
        let draft = Draft::check(body, NOW).expect("valid");
        assert_eq!((draft.priority, draft.fire_and_forget), (Priority::Normal, false));
        assert_eq!(draft.status(NOW), Status::Active);
    }

    #[test]
    fn repeats_are_merged_in_order() {
        let body = json!({"content": "x", "targetType": "SELECTED", "targetIds": ["b", "a", "b"]});
        assert_eq!(Draft::check(body, NOW).expect("valid").target.ids, ["b", "a"]);
    }

    #[test]
    fn every_violated_rule_is_named_at_once() {
        let all = violations(json!({
            "content": " ", "targetType": "ROLE", "priority": "ASAP", "senderName": "a\u{7}",
            "scheduledAt": "2026-01-02T00:00:00Z", "expiresAt": "2026-01-01T00:00:00Z",
            "fireAndForget": "yes", "category": 5,
        }));
        for part in [
            "content: must not be blank",
            "targetIds: is required for ROLE",
            "priority: must be one of LOW, NORMAL, HIGH, URGENT",
            "senderName: must be 1 to 256 bytes",
            "expiresAt: must be after scheduledAt",
            "fireAndForget: must be true or false",
            "category: must be a string",
        ] {
            assert!(all.contains(part), "{part:?} is missing in {all:?}");
        }
    }

    #[test]
    fn each_rule_has_its_limit() {
        let long = "x".repeat(limits::CONTENT_BYTES_MAX + 1);
        let names: Vec<String> = (0..=limits::TARGET_NAMES_MAX).map(|n| n.to_string()).collect();
        for (body, part) in [
            (json!({}), "targetType: must be one of ALL"),
            (json!([]), "body: must be a JSON object"),
            (json!({"content": long, "targetType": "ALL"}), "content: must be at most 65536 bytes"),
            (json!({"content": "x", "targetType": "all"}), "targetType: must be one of"),
            (json!({"content": "x", "targetType": "ROLE", "targetIds": names}), "at most 1000"),
            (json!({"content": "x", "targetType": "ROLE", "targetIds": "a"}), "must be an array"),
            (json!({"content": "x", "targetType": "ROLE", "targetIds": [1]}), "entry 0 must be a"),
            (
                json!({"content": "x", "targetType": "SELECTED", "targetIds": ["a", ""]}),
                "targetIds: entry 1 must not be empty",
            ),
            (
                json!({"content": "x", "targetType": "ALL", "expiresAt": "tomorrow"}),
                "expiresAt: must be an ISO-8601 instant",
            ),
            (
                json!({"content": "x", "targetType": "ALL", "scheduledAt": "2099-01-01T00:00:00Z"}),
                "scheduledAt: must not be in the future",
            ),
        ] {
            let all = violations(body);
            assert!(all.contains(part), "{part:?} is missing in {all:?}");
        }
    }

    #[test]
    fn content_times_targets_is_bounded() {
        let users: Vec<String> = (0..20_000).map(|n| format!("u{n}")).collect();
        let content = "x".repeat(60_000);
        let body = json!({"content": content, "targetType": "SELECTED", "targetIds": users});
        let error = Draft::check(body, NOW).expect_err("1.2 GB");
        assert_eq!(error, DraftError::TooLarge { content: 60_000, targets: 20_000 });
    }

    #[test]
    fn what_has_expired_begins_so() {
        let body =
            json!({"content": "x", "targetType": "ALL", "expiresAt": "2020-01-01T00:00:00Z"});
        assert_eq!(Draft::check(body, NOW).expect("valid").status(NOW), Status::Expired);
    }
}
