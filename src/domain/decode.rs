//! From a record's bytes to its fate: serve, leave, or dead letter.
//!
//! **A record's fate follows from its bytes and its place alone**, so that all nodes agree without
//! talking. No input panics; should one, `decode_caught` makes it a bad record, since every node
//! would meet it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::base::{EpochMillis, EventType, LogShape, Position, TargetType, Topic, UserId};
use crate::limits::{contract, log as limits};
use crate::wire::archive::{Archiver, Audience, Event, MemberKind, SharedEvent};
use crate::wire::frame::{self, Message};
use crate::wire::record::{DeliveryRecord, Parser, event_id};

/// What becomes of a record.
#[derive(Debug)]
pub enum Finding {
    Serve(SharedEvent),
    Ignore(Unserved),
    Bad(BadRecord),
}

/// Well formed, and not served by this release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unserved {
    /// CANCELLED, EXPIRED, FAILED.
    EventType,
    /// An older producer's group event, whose audience must be looked up.
    NoAudience,
    /// A targeted event that is not in its user's partition.
    ForeignPartition,
}

impl Unserved {
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventType => "event type",
            Self::NoAudience => "no audience",
            Self::ForeignPartition => "foreign partition",
        }
    }
}

/// Why a record can never be served.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRecord {
    #[error("no value")]
    Empty,
    #[error("value of {bytes} bytes is over {limit}", limit = limits::RECORD_VALUE_BYTES_MAX)]
    TooLarge { bytes: usize },
    /// Not UTF-8, not JSON, wrong types, no broadcastId, unknown eventType.
    #[error("not a MessageDeliveryEvent: {0}")]
    Malformed(String),
    #[error("userId {0}")]
    User(crate::base::UserIdError),
    #[error("eventId is not a UUID")]
    EventId,
    #[error("CREATED without a message")]
    NoMessage,
    #[error("targetType {0} without userId")]
    NoUser(&'static str),
    #[error("more than {} targetIds", contract::TARGET_NAMES_MAX)]
    TooManyNames,
    #[error("an event for a group in the selected topic")]
    WrongTopic,
    #[error("decoding it panicked")]
    Panicked,
}

/// Decodes with buffers that it reuses. One a shard.
pub struct Decoder {
    shape: LogShape,
    parser: Parser,
    /// Where bodies are written before the archive takes them.
    body: Vec<u8>,
    archiver: Archiver,
}

impl Decoder {
    pub fn new(shape: LogShape) -> Self {
        Self { shape, parser: Parser::default(), body: Vec::new(), archiver: Archiver::default() }
    }

    /// Decodes one record. The key decides nothing: `userId` says whom it is for.
    pub fn decode(
        &mut self,
        position: Position,
        appended_at: EpochMillis,
        value: Option<&[u8]>,
    ) -> Finding {
        match self.try_decode(position, appended_at, value) {
            Ok(finding) => finding,
            Err(bad) => Finding::Bad(bad),
        }
    }

    /// The same; a panic is a bad record.
    pub fn decode_caught(
        &mut self,
        position: Position,
        appended_at: EpochMillis,
        value: Option<&[u8]>,
    ) -> Finding {
        let shape = self.shape;
        caught(
            self,
            |decoder| decoder.decode(position, appended_at, value),
            |decoder| {
                *decoder = Self::new(shape);
            },
        )
    }

    fn try_decode(
        &mut self,
        position: Position,
        appended_at: EpochMillis,
        value: Option<&[u8]>,
    ) -> Result<Finding, BadRecord> {
        let value = value.filter(|value| !value.is_empty()).ok_or(BadRecord::Empty)?;
        if value.len() > limits::RECORD_VALUE_BYTES_MAX {
            return Err(BadRecord::TooLarge { bytes: value.len() });
        }
        let record = self.parser.parse(value);
        let record = record.map_err(|error| BadRecord::Malformed(error.to_string()))?;
        let audience = match audience_of(&record, position.partition.topic)? {
            Some(audience) => audience,
            None if matches!(record.event_type, EventType::Created | EventType::Read) => {
                return Ok(Finding::Ignore(Unserved::NoAudience));
            }
            None => return Ok(Finding::Ignore(Unserved::EventType)),
        };
        let id = match record.event_id {
            Some(text) => uuid::Uuid::try_parse(text).map_err(|_| BadRecord::EventId)?,
            None => event_id(record.broadcast_id, record.user_id, record.event_type),
        };
        self.body.clear();
        match record.event_type {
            EventType::Created => write_message(&mut self.body, &record, appended_at)?,
            EventType::Read => frame::write_read_receipt(&mut self.body, record.broadcast_id),
            EventType::Cancelled | EventType::Expired | EventType::Failed => {
                return Ok(Finding::Ignore(Unserved::EventType));
            }
        }
        if let (Topic::Selected, Audience::User(user)) = (position.partition.topic, &audience)
            && self.shape.partition_of_user(user) != position.partition.index
        {
            return Ok(Finding::Ignore(Unserved::ForeignPartition));
        }
        Ok(Finding::Serve(self.archiver.write(Event {
            position,
            appended_at,
            event_id: id.as_u128(),
            attempt: record.attempt.unwrap_or(0),
            broadcast: record.broadcast_id,
            expires_at: record.expires_at,
            audience,
            body: &self.body,
        })))
    }
}

/// Runs `work`; should it panic, runs `reset` on what it may have left half done.
fn caught<T>(
    state: &mut T,
    work: impl FnOnce(&mut T) -> Finding,
    reset: impl FnOnce(&mut T),
) -> Finding {
    catch_unwind(AssertUnwindSafe(|| work(state))).unwrap_or_else(|_| {
        reset(state);
        Finding::Bad(BadRecord::Panicked)
    })
}

/// Whom the event is for; `None` if the record does not say.
fn audience_of<'a>(
    record: &DeliveryRecord<'a>,
    topic: Topic,
) -> Result<Option<Audience<'a>>, BadRecord> {
    if let Some(user) = record.user_id {
        UserId::check(user).map_err(BadRecord::User)?;
        return Ok(Some(Audience::User(user)));
    }
    if topic == Topic::Selected {
        return Err(BadRecord::WrongTopic);
    }
    let kind = match record.target_type {
        None => return Ok(None),
        Some(TargetType::All) => return Ok(Some(Audience::Everyone)),
        Some(TargetType::Role) => MemberKind::Role,
        Some(TargetType::Group) => MemberKind::Group,
        Some(TargetType::Product) => MemberKind::Product,
        Some(TargetType::Selected) if record.event_type == EventType::Created => {
            return Err(BadRecord::NoUser(TargetType::Selected.word()));
        }
        Some(TargetType::Selected) => return Ok(None),
    };
    let names = record.target_ids.as_deref().unwrap_or(&[]);
    if names.len() > contract::TARGET_NAMES_MAX {
        return Err(BadRecord::TooManyNames);
    }
    Ok(Some(Audience::Members { kind, names: names.to_vec() }))
}

/// Appends the body of MESSAGE, encoded once for all who get it.
fn write_message(
    body: &mut Vec<u8>,
    record: &DeliveryRecord<'_>,
    appended_at: EpochMillis,
) -> Result<(), BadRecord> {
    let content = record.message.ok_or(BadRecord::NoMessage)?;
    let message = Message {
        broadcast_id: record.broadcast_id,
        user_id: record.user_id,
        correlation_id: record.correlation_id,
        delivery_status: "PENDING",
        read_status: "UNREAD",
        delivered_at: None,
        read_at: None,
        created_at: record.made_at().or(Some(appended_at)),
        sender_name: record.sender_name,
        content,
        priority: record.priority.unwrap_or_default(),
        category: record.category,
        broadcast_created_at: record.created_at,
        scheduled_at: record.scheduled_at,
        expires_at: record.expires_at,
    };
    frame::write_message(body, &message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LogIdentity, Partition};
    use proptest::prelude::*;

    const SHAPE: LogShape = LogShape {
        identity: LogIdentity([1, 2, 3]),
        selected_partitions: 10,
        group_partitions: 10,
    };

    fn position(topic: Topic) -> Position {
        // "alice" belongs to this partition; the log's tests hold the partitioner's values.
        let index = match topic {
            Topic::Selected => SHAPE.partition_of_user("alice"),
            Topic::Group => 0,
        };
        Position { partition: Partition { topic, index }, offset: 5 }
    }

    fn finding(topic: Topic, value: &str) -> String {
        let mut decoder = Decoder::new(SHAPE);
        let at = EpochMillis(1_795_514_400_999);
        match decoder.decode_caught(position(topic), at, Some(value.as_bytes())) {
            Finding::Serve(event) => {
                let body = String::from_utf8(event.body().to_vec()).expect("UTF-8");
                let name = body.lines().next().unwrap_or("").trim_start_matches("event: ");
                let data = body.lines().nth(1).unwrap_or("").trim_start_matches("data: ");
                let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
                let created = data.get("createdAt").and_then(|at| at.as_str()).unwrap_or("-");
                format!("serve {name} to {:?} createdAt {created}", event.audience())
            }
            Finding::Ignore(reason) => format!("ignore {}", reason.name()),
            Finding::Bad(BadRecord::Malformed(_)) => "bad malformed".to_owned(),
            Finding::Bad(bad) => format!("bad {bad}"),
        }
    }

    /// One record a line: topic, JSON, finding, split by tabs.
    #[test]
    fn golden_records() {
        let golden = include_str!("../../tests/golden/records/records.tsv");
        let mut rows = 0;
        for line in golden.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [topic, json, expected] = fields[..] else { panic!("three fields: {line}") };
            let topic = if topic == "group" { Topic::Group } else { Topic::Selected };
            assert_eq!(finding(topic, json), expected, "{json}");
            rows += 1;
        }
        assert!(rows >= 20, "the golden file has rows");
    }

    #[test]
    fn sizes_and_emptiness_are_bad() {
        let mut decoder = Decoder::new(SHAPE);
        let mut decode = |value: Option<&[u8]>| match decoder.decode(
            position(Topic::Group),
            EpochMillis(0),
            value,
        ) {
            Finding::Bad(bad) => bad,
            other => panic!("{other:?}"),
        };
        assert_eq!(decode(None), BadRecord::Empty);
        assert_eq!(decode(Some(b"")), BadRecord::Empty);
        let large = vec![b' '; limits::RECORD_VALUE_BYTES_MAX + 1];
        assert_eq!(decode(Some(&large)), BadRecord::TooLarge { bytes: large.len() });
        assert!(matches!(decode(Some(b"\xff\xfe")), BadRecord::Malformed(_)));
        assert!(matches!(
            decode(Some(b"{\"broadcastId\":1,\"eventType\":\"CREATED\",\"message\":\"\xff\"}")),
            BadRecord::Malformed(_)
        ));
    }

    #[test]
    fn a_panic_is_a_bad_record_and_the_decoder_goes_on() {
        let mut state = 1;
        let finding = caught(&mut state, |_| panic!("a bug"), |state| *state = 0);
        assert!(matches!(finding, Finding::Bad(BadRecord::Panicked)));
        assert_eq!(state, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        /// Records with a few bytes changed, cut or repeated never panic, and what is served is a
        /// whole frame.
        #[test]
        fn damaged_records_are_found_out(
            row in any::<prop::sample::Index>(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let golden = include_str!("../../tests/golden/records/records.tsv");
            let rows: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
            let json = rows[row.index(rows.len())].split('\t').nth(1).unwrap_or("{}");
            let mut bytes = json.as_bytes().to_vec();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() * 4) + 1);
            let mut decoder = Decoder::new(SHAPE);
            let finding = decoder.decode(position(Topic::Group), EpochMillis(0), Some(&bytes));
            if let Finding::Serve(event) = finding {
                let is_whole = event.body().ends_with(b"}\n\n");
                prop_assert!(is_whole);
                prop_assert_eq!(event.body().iter().filter(|byte| **byte == b'\n').count(), 3);
            }
        }
    }
}
