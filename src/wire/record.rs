//! Records of the log: `MessageDeliveryEvent` as JSON, read and written (contract section 2).
//!
//! Reading borrows every string from the bytes that were parsed. Readers tolerate the absence of
//! what Corecast adds, and ignore what they do not know. Pure; any thread.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use simd_json::{Buffers, ErrorType, INPUT_PADDING, Tape, fill_tape_padded};
use uuid::Uuid;

use super::plain;
use crate::base::{BroadcastId, EpochMillis, EventType, Priority, TargetType};

/// Values of `timestampEpochMilli` below this are seconds, written by mistake: as milliseconds
/// they would lie before 1973-03-03.
const SECONDS_BELOW: u64 = 100_000_000_000;
/// Namespace of the event ids that Corecast derives: UUIDv5 of "corecast.event" under the OID
/// namespace.
const EVENT_NAMESPACE: Uuid = Uuid::from_u128(0x8f3b_3b8d_5674_5dc9_9f2d_ca1d_6e3a_efa4);

/// A record as it was read.
#[derive(PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryRecord<'a> {
    #[serde(borrow, default)]
    pub event_id: Option<&'a str>,
    pub broadcast_id: BroadcastId,
    #[serde(borrow, default)]
    pub user_id: Option<&'a str>,
    pub event_type: EventType,
    #[serde(default, deserialize_with = "timestamp")]
    pub(super) timestamp: Option<EpochMillis>,
    #[serde(default)]
    pub(super) timestamp_epoch_milli: Option<u64>,
    #[serde(borrow, default)]
    pub correlation_id: Option<&'a str>,
    #[serde(borrow, default)]
    pub message: Option<&'a str>,
    #[serde(default)]
    pub(super) fire_and_forget: Option<bool>,
    #[serde(default)]
    pub(super) is_fire_and_forget: Option<bool>,
    #[serde(default)]
    pub target_type: Option<TargetType>,
    #[serde(borrow, default)]
    pub target_ids: Option<Vec<&'a str>>,
    #[serde(borrow, default)]
    pub sender_name: Option<&'a str>,
    #[serde(default)]
    pub priority: Option<Priority>,
    #[serde(borrow, default)]
    pub category: Option<&'a str>,
    #[serde(default)]
    pub created_at: Option<EpochMillis>,
    #[serde(default)]
    pub scheduled_at: Option<EpochMillis>,
    #[serde(default)]
    pub expires_at: Option<EpochMillis>,
    /// Test mode: serving it is to fail.
    #[serde(default)]
    pub simulate_failure: Option<bool>,
    #[serde(default)]
    pub attempt: Option<u32>,
    /// Published again: the checkpoint of its partition at that time.
    #[serde(default)]
    pub after: Option<u64>,
}

impl DeliveryRecord<'_> {
    pub fn is_fire_and_forget(&self) -> bool {
        self.fire_and_forget.or(self.is_fire_and_forget).unwrap_or(false)
    }

    /// When the event was made, as far as the record says.
    pub fn made_at(&self) -> Option<EpochMillis> {
        let millis = self
            .timestamp_epoch_milli
            .map(|value| EpochMillis(if value < SECONDS_BELOW { value * 1_000 } else { value }));
        millis.or(self.timestamp).map(|at| at.min(EpochMillis::MAX))
    }
}

/// Parses records with buffers that it reuses: the parser writes into its input, reads beyond its
/// end, and makes a tape of it.
pub struct Parser {
    padded: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
}

impl Default for Parser {
    fn default() -> Self {
        Self { padded: Vec::new(), buffers: Buffers::default(), tape: Tape(Vec::new()) }
    }
}

impl Parser {
    /// Fails when the value is not UTF-8, not JSON, or not of this shape.
    pub fn parse<'a>(
        &'a mut self,
        value: &'a [u8],
    ) -> Result<DeliveryRecord<'a>, simd_json::Error> {
        match plain::read(value) {
            Some(record) => Ok(record),
            None => self.parse_any(value),
        }
    }

    /// The same by the general parser, whose word is the last one.
    pub fn parse_any(&mut self, value: &[u8]) -> Result<DeliveryRecord<'_>, simd_json::Error> {
        self.padded.clear();
        self.padded.extend_from_slice(value);
        self.padded.extend_from_slice(&[0; INPUT_PADDING]);
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        fill_tape_padded(&mut self.padded, value.len(), &mut self.buffers, &mut tape)?;
        let mut deserializer = simd_json::Deserializer::from_tape(tape);
        let record = DeliveryRecord::deserialize(&mut deserializer)?;
        self.tape = deserializer.into_tape().reset();
        Ok(record)
    }
}

/// Why a value is none, naming the field if it is one. Of an error of `Parser::parse`.
pub fn explain(value: &[u8], error: &simd_json::Error) -> String {
    let mut copy = value.to_vec();
    // It is no JSON, and the parser knows where.
    let Ok(tape) = simd_json::to_tape(&mut copy) else { return error.to_string() };
    let mut deserializer = simd_json::Deserializer::from_tape(tape);
    let found = serde_path_to_error::deserialize::<_, DeliveryRecord<'_>>(&mut deserializer);
    let Err(found) = found else { return error.to_string() };
    let reason = match found.inner().error() {
        ErrorType::Serde(reason) => reason.clone(),
        kind => format!("{kind:?}"),
    };
    let is_of_field = found.path().iter().next().is_some();
    if is_of_field { format!("{}: {reason}", found.path()) } else { reason }
}

/// A record that Corecast writes.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutgoingRecord<'a> {
    pub event_id: Uuid,
    pub broadcast_id: BroadcastId,
    pub user_id: Option<&'a str>,
    pub event_type: EventType,
    /// The node that produces it; informational.
    pub pod_id: &'a str,
    pub timestamp: EpochMillis,
    pub correlation_id: Option<&'a str>,
    pub message: Option<&'a str>,
    pub error_details: Option<&'a str>,
    pub fire_and_forget: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_type: Option<TargetType>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ids: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<EpochMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<EpochMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<EpochMillis>,
    /// Test mode: serving it is to fail.
    #[serde(skip_serializing_if = "is_false")]
    pub simulate_failure: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// Published again: the checkpoint of its partition at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

impl OutgoingRecord<'_> {
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("this shape is JSON")
    }
}

/// The id of an event of Corecast's own: UUIDv5 of `broadcastId`, the user id or nothing, and the
/// event type, joined by line feeds, which none of them holds.
pub fn event_id(broadcast: BroadcastId, user: Option<&str>, event_type: EventType) -> Uuid {
    let name = format!("{broadcast}\n{}\n{}", user.unwrap_or(""), event_type.name());
    Uuid::new_v5(&EVENT_NAMESPACE, name.as_bytes())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(attempt: &u32) -> bool {
    *attempt == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// ISO-8601, or epoch seconds with a fraction, or null.
fn timestamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<EpochMillis>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Option<EpochMillis>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an ISO-8601 instant, epoch seconds or null")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let at = EpochMillis::parse_iso(text);
            at.map(Some).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
        }
        fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Self::Value, E> {
            let millis = (seconds * 1_000.0).round();
            if (0.0..=EpochMillis::MAX.0 as f64).contains(&millis) {
                return Ok(Some(EpochMillis(millis as u64)));
            }
            Err(E::invalid_value(de::Unexpected::Float(seconds), &self))
        }
        fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Self::Value, E> {
            Ok(Some(EpochMillis(seconds.saturating_mul(1_000)).min(EpochMillis::MAX)))
        }
        fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Self::Value, E> {
            match u64::try_from(seconds) {
                Ok(seconds) => self.visit_u64(seconds),
                Err(_) => Err(E::invalid_value(de::Unexpected::Signed(seconds), &self)),
            }
        }
        fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Visitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_names_its_field() {
        let said = |value: &str| {
            let error = Parser::default().parse(value.as_bytes()).expect_err("it is bad");
            explain(value.as_bytes(), &error)
        };
        for (value, starts) in [
            (r#"{"broadcastId":1,"eventType":"CREATED","attempt":-1}"#, "attempt: "),
            (r#"{"broadcastId":1,"eventType":"CREATED","after":"7"}"#, "after: "),
            (r#"{"broadcastId":1,"eventType":"CREATED","targetIds":["a",5]}"#, "targetIds"),
            (r#"{"broadcastId":"x","eventType":"CREATED"}"#, "broadcastId: "),
        ] {
            let said = said(value);
            assert!(said.starts_with(starts) && !said.contains("character 0"), "{said}");
        }
        assert_eq!(said("{}"), "missing field `broadcastId`");
        for value in ["no JSON", "[1", "[]", "7"] {
            assert!(!said(value).is_empty(), "{value}");
        }
    }
}
