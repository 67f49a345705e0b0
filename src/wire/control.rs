//! Records of the control topic: what the nodes tell each other (contract section 2).
//!
//! Versioned JSON. What a later release writes is not understood, which is no error: it is ignored
//! and counted. Pure; any thread.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::base::{BroadcastId, End};
use crate::limits::control as limits;

/// The version that this release writes, and the highest that it reads.
const VERSION: u32 = 1;

/// A node between one start and its end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NodeStart {
    pub node: String,
    pub start: Uuid,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlRecord {
    pub from: NodeStart,
    /// Counts the records of this start.
    pub seq: u64,
    pub says: ControlSays,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum ControlSays {
    /// It lives, and all its shards have applied what stands before this place of the topic.
    Beat { applied: u64 },
    /// Of this broadcast no message may begin any more.
    Ended { broadcast_id: BroadcastId, status: End },
}

/// Why a record says nothing to this release.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotUnderstood {
    #[error("version {0}, or a type, of a later release")]
    Later(u32),
    #[error("not a control record: {0}")]
    Malformed(String),
}

#[derive(Serialize, Deserialize)]
struct Written {
    v: u32,
    #[serde(flatten)]
    says: ControlSays,
    #[serde(flatten)]
    from: NodeStart,
    seq: u64,
}

#[derive(Deserialize)]
struct Head<'a> {
    v: u32,
    #[serde(borrow)]
    r#type: std::borrow::Cow<'a, str>,
}

impl ControlRecord {
    pub fn to_json(&self) -> Vec<u8> {
        let Self { from, seq, says } = self.clone();
        let written = Written { v: VERSION, says, from, seq };
        serde_json::to_vec(&written).expect("this shape is JSON")
    }

    pub fn read(value: &[u8]) -> Result<Self, NotUnderstood> {
        if value.len() > limits::RECORD_BYTES_MAX {
            return Err(NotUnderstood::Malformed(format!("{} bytes", value.len())));
        }
        let malformed = |error: serde_json::Error| NotUnderstood::Malformed(error.to_string());
        let head: Head<'_> = serde_json::from_slice(value).map_err(malformed)?;
        if head.v > VERSION || !matches!(&*head.r#type, "beat" | "ended") {
            return Err(NotUnderstood::Later(head.v));
        }
        let Written { says, from, seq, .. } = serde_json::from_slice(value).map_err(malformed)?;
        Ok(Self { from, seq, says })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, says: ControlSays) -> ControlRecord {
        let start = Uuid::from_u128(0x7a7d_68ec_d4ae_5055_b6e9_9ed7_4513_a5b2);
        ControlRecord { from: NodeStart { node: "edge-1".to_owned(), start }, seq, says }
    }

    /// One record a line, as this release writes it; then what becomes of others.
    #[test]
    fn golden_records() {
        let golden = include_str!("../../tests/golden/records/control.tsv");
        let broadcast_id = BroadcastId::new(42).expect("small");
        let mut own = vec![
            record(7, ControlSays::Beat { applied: 1_234 }),
            record(8, ControlSays::Ended { broadcast_id, status: End::Cancelled }),
            record(9, ControlSays::Ended { broadcast_id, status: End::Expired }),
        ]
        .into_iter();
        for line in golden.lines().filter(|line| !line.starts_with('#')) {
            let (value, expected) = line.split_once('\t').expect("two fields");
            let read = ControlRecord::read(value.as_bytes());
            match expected {
                "own" => {
                    let own = own.next().expect("as many as are written");
                    assert_eq!(String::from_utf8(own.to_json()).expect("UTF-8"), value);
                    assert_eq!(read, Ok(own));
                }
                "read" => assert!(read.is_ok(), "{value}: {read:?}"),
                "later" => assert!(matches!(read, Err(NotUnderstood::Later(_))), "{value}"),
                "malformed" => {
                    assert!(matches!(read, Err(NotUnderstood::Malformed(_))), "{value}: {read:?}");
                }
                other => panic!("unknown finding {other}"),
            }
        }
        assert!(own.next().is_none());
        let long = vec![b' '; limits::RECORD_BYTES_MAX + 1];
        assert!(matches!(ControlRecord::read(&long), Err(NotUnderstood::Malformed(_))));
    }
}
