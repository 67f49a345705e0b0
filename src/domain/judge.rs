//! A record's fate: serve, park, leave, or dead letter.
//!
//! **It follows from the record's bytes and its place alone**, so that all nodes agree without
//! talking: the shards that serve it, and the owner that keeps what it leaves behind. Pure.

use uuid::Uuid;

use crate::base::{
    End, EventType, LogShape, Partition, Position, TargetType, Topic, UserId, UserIdError,
};
use crate::limits::{contract, log as limits};
use crate::wire::archive::{Audience, MemberKind};
use crate::wire::record::{DeliveryRecord, Parser, event_id, explain};

/// What nodes that share a log must agree about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    pub shape: LogShape,
    /// Records may ask for their failure.
    pub is_testing: bool,
}

/// Why a well-formed record is not served where it stands. All but the first are parked, and
/// published again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unserved {
    /// FAILED.
    EventType,
    /// An older producer's group event, whose audience must be looked up.
    NoAudience,
    /// A targeted event that is not in its user's partition.
    ForeignPartition,
    /// Published again, and found too late: beyond where repeats of it are known.
    Late,
    /// Test mode: its serving fails.
    Failing,
}

impl Unserved {
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventType => "event type",
            Self::NoAudience => "no audience",
            Self::ForeignPartition => "foreign partition",
            Self::Late => "late",
            Self::Failing => "failing",
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
    User(UserIdError),
    #[error("eventId is not a UUID")]
    EventId,
    #[error("CREATED without a message")]
    NoMessage,
    #[error("targetType {0} without userId")]
    NoUser(&'static str),
    #[error("READ without userId")]
    NoReader,
    #[error("more than {} targetIds", contract::TARGET_NAMES_MAX)]
    TooManyNames,
    #[error("an event for a group in the selected topic")]
    WrongTopic,
    #[error("decoding it panicked")]
    Panicked,
}

/// What is to be done with a well-formed record.
#[derive(Debug)]
pub enum Verdict<'a> {
    Serve { audience: Audience<'a>, event_id: Uuid, says: Says<'a> },
    Ignore { why: Unserved, event_id: Uuid },
}

/// What a served record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says<'a> {
    /// MESSAGE, with this content.
    Message(&'a str),
    /// READ_RECEIPT.
    Read,
    /// MESSAGE_REMOVED: the broadcast, or the message of one user, is no more.
    Removed(End),
}

/// Reads a value, which a record may lack.
pub fn parse<'a>(
    parser: &'a mut Parser,
    value: Option<&'a [u8]>,
) -> Result<DeliveryRecord<'a>, BadRecord> {
    let value = value.filter(|value| !value.is_empty()).ok_or(BadRecord::Empty)?;
    if value.len() > limits::RECORD_VALUE_BYTES_MAX {
        return Err(BadRecord::TooLarge { bytes: value.len() });
    }
    parser.parse(value).map_err(|error| BadRecord::Malformed(explain(value, &error)))
}

/// The key decides nothing: `userId` says whom a record is for.
pub fn judge<'a>(
    record: &DeliveryRecord<'a>,
    position: Position,
    rules: &Rules,
) -> Result<Verdict<'a>, BadRecord> {
    let audience = audience_of(record, position.partition.topic)?;
    let event_id = match record.event_id {
        Some(text) => Uuid::try_parse(text).map_err(|_| BadRecord::EventId)?,
        None => event_id(record.broadcast_id, record.user_id, record.event_type),
    };
    let ignore = |why| Verdict::Ignore { why, event_id };
    let says = match record.event_type {
        EventType::Created => Says::Message(record.message.ok_or(BadRecord::NoMessage)?),
        EventType::Read if record.user_id.is_none() => return Err(BadRecord::NoReader),
        EventType::Read => Says::Read,
        EventType::Cancelled => Says::Removed(End::Cancelled),
        EventType::Expired => Says::Removed(End::Expired),
        EventType::Failed => return Ok(ignore(Unserved::EventType)),
    };
    let Some(audience) = audience else { return Ok(ignore(Unserved::NoAudience)) };
    if is_foreign(&audience, position.partition, &rules.shape) {
        return Ok(ignore(Unserved::ForeignPartition));
    }
    let latest = record.after.map(|after| after.saturating_add(limits::REPEAT_RECORDS));
    if latest.is_some_and(|latest| position.offset >= latest) {
        return Ok(ignore(Unserved::Late));
    }
    if rules.is_testing && record.simulate_failure == Some(true) {
        return Ok(ignore(Unserved::Failing));
    }
    Ok(Verdict::Serve { audience, event_id, says })
}

/// Members of nothing.
const NOBODY: Audience<'static> = Audience::Members { kind: MemberKind::Role, names: Vec::new() };

/// Whether a targeted event stands where its user's cursor does not reach.
fn is_foreign(audience: &Audience<'_>, partition: Partition, shape: &LogShape) -> bool {
    match (partition.topic, audience) {
        (Topic::Selected, Audience::User(user)) => shape.partition_of_user(user) != partition.index,
        _ => false,
    }
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
        // It stops delivery; who had the message is told by a record of his own.
        Some(TargetType::Selected) => return Ok(Some(NOBODY)),
    };
    let names = record.target_ids.as_deref().unwrap_or(&[]);
    if names.len() > contract::TARGET_NAMES_MAX {
        return Err(BadRecord::TooManyNames);
    }
    Ok(Some(Audience::Members { kind, names: names.to_vec() }))
}
