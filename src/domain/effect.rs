//! What a record leaves behind: rows that the owner of its partition makes durable before the
//! record is acknowledged.
//!
//! It follows from the record alone, so it may be done again by whoever owns the partition next.

use std::time::Duration;

use uuid::Uuid;

use super::decode::caught;
use super::judge::{BadRecord, Rules, Says, Unserved, Verdict, judge, parse};
use super::{Broadcast, Target};
use crate::base::{BroadcastId, End, EpochMillis, EventType, Position, TargetType, UserId};
use crate::limits::log as limits;
use crate::wire::archive::{Audience, MemberKind};
use crate::wire::record::{DeliveryRecord, Parser};

/// What is to be kept of one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Served to whoever is here, and forgotten.
    Passing(Kept),
    /// A message of one user.
    Message {
        user: UserId,
        kept: Kept,
        /// The content, where only the record has it: an older producer's.
        content: Option<Box<Broadcast>>,
    },
    /// A message of a group audience, and its content, which the store may not have: another
    /// producer's.
    Group { kept: Kept, content: Box<Broadcast> },
    /// The broadcast has ended, or the message of one user is taken back.
    Removed {
        how: End,
        kept: Kept,
        /// Whose message; `None`: the broadcast as a whole.
        user: Option<UserId>,
        /// Members of a group audience are told by it.
        is_for_group: bool,
    },
    /// Not served where it stands: to be published again.
    Parked { why: Unserved, aside: Aside },
    /// Its serving has failed for good: a dead letter.
    Dead(Aside),
    /// Of no consequence in this release.
    Unserved(Unserved),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    pub event: Uuid,
    pub broadcast: BroadcastId,
    pub attempt: u32,
    /// The broadcast ends then.
    pub ends_at: EpochMillis,
}

/// A well-formed event that is not served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Aside {
    pub kept: Kept,
    /// Whom it is for; `None`: a group audience.
    pub user: Option<UserId>,
    /// Whether the user's inbox has a row of it.
    pub has_row: bool,
    /// It says that its broadcast has ended.
    pub is_removal: bool,
}

/// Finds effects with buffers that it reuses.
pub struct Assessor {
    rules: Rules,
    /// Without `expiresAt`, a message is kept for so long after its append. A producer's clock has
    /// no say in that.
    retention: Duration,
    parser: Parser,
}

impl Assessor {
    pub fn new(rules: Rules, retention: Duration) -> Self {
        Self { rules, retention, parser: Parser::default() }
    }

    /// Agrees with `Decoder::decode_caught` about what is bad and what is served.
    pub fn assess(
        &mut self,
        position: Position,
        appended_at: EpochMillis,
        value: Option<&[u8]>,
    ) -> Result<Effect, BadRecord> {
        let (rules, retention) = (self.rules, self.retention);
        caught(
            self,
            |assessor| assessor.try_assess(position, appended_at, value),
            |assessor| *assessor = Self::new(rules, retention),
        )
    }

    fn try_assess(
        &mut self,
        position: Position,
        appended_at: EpochMillis,
        value: Option<&[u8]>,
    ) -> Result<Effect, BadRecord> {
        let record = parse(&mut self.parser, value)?;
        let verdict = judge(&record, position, &self.rules)?;
        let (Verdict::Serve { event_id, .. } | Verdict::Ignore { event_id, .. }) = verdict;
        // Who comes back after the end is told of it as well.
        let is_end = matches!(record.event_type, EventType::Cancelled | EventType::Expired);
        let expires_at = record.expires_at.filter(|_| !is_end);
        let kept = Kept {
            event: event_id,
            broadcast: record.broadcast_id,
            attempt: record.attempt.unwrap_or(0),
            ends_at: expires_at.unwrap_or(appended_at.plus(self.retention)),
        };
        let (audience, content) = match verdict {
            Verdict::Ignore { why, .. } => return unserved(why, &record, kept),
            Verdict::Serve { audience, says: Says::Message(content), .. } => (audience, content),
            Verdict::Serve { says: Says::Read, .. } => return Ok(Effect::Passing(kept)),
            Verdict::Serve { audience, says: Says::Removed(how), .. } => {
                return removed(how, kept, &audience);
            }
        };
        if record.is_fire_and_forget() {
            return Ok(Effect::Passing(kept));
        }
        let made_at = record.created_at.or(record.made_at()).unwrap_or(appended_at);
        let content = |target| Box::new(content_of(&record, content, target, made_at, &kept));
        let target = match audience {
            Audience::Everyone => Target { r#type: TargetType::All, ids: Vec::new() },
            Audience::Members { kind, names } => {
                let r#type = match kind {
                    MemberKind::Role => TargetType::Role,
                    MemberKind::Group => TargetType::Group,
                    MemberKind::Product => TargetType::Product,
                };
                Target { r#type, ids: names.into_iter().map(str::to_owned).collect() }
            }
            Audience::User(user) => {
                let user = UserId::new(user).map_err(BadRecord::User)?;
                // Complete in itself: Corecast's own say what they are part of.
                let is_older = record.target_type.is_none();
                let target = Target { r#type: TargetType::Selected, ids: Vec::new() };
                let content = is_older.then(|| content(target));
                return Ok(Effect::Message { user, kept, content });
            }
        };
        Ok(Effect::Group { kept, content: content(target) })
    }
}

fn removed(how: End, kept: Kept, audience: &Audience<'_>) -> Result<Effect, BadRecord> {
    let (user, is_for_group) = match audience {
        Audience::User(user) => (Some(UserId::new(user).map_err(BadRecord::User)?), false),
        Audience::Everyone => (None, true),
        Audience::Members { names, .. } => (None, !names.is_empty()),
    };
    Ok(Effect::Removed { how, kept, user, is_for_group })
}

/// Of what is not served where it stands.
fn unserved(why: Unserved, record: &DeliveryRecord<'_>, kept: Kept) -> Result<Effect, BadRecord> {
    let is_kept = record.event_type == EventType::Created && !record.is_fire_and_forget();
    let user = record.user_id.map(UserId::new).transpose().map_err(BadRecord::User)?;
    let has_row = is_kept && user.is_some();
    let is_removal = matches!(record.event_type, EventType::Cancelled | EventType::Expired);
    let aside = Aside { kept, user, has_row, is_removal };
    Ok(match why {
        Unserved::EventType => Effect::Unserved(why),
        Unserved::Failing if kept.attempt.saturating_add(1) >= limits::ATTEMPTS => {
            Effect::Dead(aside)
        }
        _ => Effect::Parked { why, aside },
    })
}

fn content_of(
    record: &DeliveryRecord<'_>,
    content: &str,
    target: Target,
    created_at: EpochMillis,
    kept: &Kept,
) -> Broadcast {
    Broadcast {
        id: record.broadcast_id,
        correlation_id: record.correlation_id.unwrap_or_default().to_owned(),
        sender_id: None,
        sender_name: record.sender_name.map(str::to_owned),
        content: content.to_owned(),
        target,
        priority: record.priority.unwrap_or_default(),
        category: record.category.map(str::to_owned),
        created_at,
        scheduled_at: record.scheduled_at,
        expires_at: Some(kept.ends_at),
        fire_and_forget: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LogIdentity, LogShape, Partition, Topic};
    use crate::domain::{Decoder, Finding};

    const SHAPE: LogShape = LogShape {
        identity: LogIdentity([1, 2, 3]),
        selected_partitions: 10,
        group_partitions: 10,
    };
    const RULES: Rules = Rules { shape: SHAPE, is_testing: true };
    const RETENTION: Duration = Duration::from_secs(30 * 24 * 3_600);
    const APPENDED_AT: EpochMillis = EpochMillis(1_795_514_400_999);

    fn position(topic: Topic) -> Position {
        let index = if topic == Topic::Selected { SHAPE.partition_of_user("alice") } else { 0 };
        Position { partition: Partition { topic, index }, offset: 5 }
    }

    fn assess(topic: Topic, value: &str) -> Result<Effect, BadRecord> {
        let value = Some(value.as_bytes());
        Assessor::new(RULES, RETENTION).assess(position(topic), APPENDED_AT, value)
    }

    /// The owner keeps what the shards serve, and finds bad what they find bad.
    #[test]
    fn agrees_with_the_decoder_about_every_golden_record() {
        let golden = include_str!("../../tests/golden/records/records.tsv");
        let mut kept = 0;
        for line in golden.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let topic = if fields[0] == "group" { Topic::Group } else { Topic::Selected };
            let value = Some(fields[1].as_bytes());
            let found = Decoder::new(RULES).decode_caught(position(topic), APPENDED_AT, value);
            match (found, assess(topic, fields[1])) {
                (Finding::Bad(bad), Err(same)) => assert_eq!(bad, same),
                (Finding::Ignore(reason), Ok(Effect::Unserved(same))) => assert_eq!(reason, same),
                (Finding::Ignore(reason), Ok(Effect::Parked { why, .. })) => {
                    assert_eq!(reason, why);
                }
                (Finding::Serve(_), Ok(Effect::Passing(_))) => {}
                (Finding::Serve(event), Ok(Effect::Removed { user, .. })) => {
                    assert_eq!(event.ends_broadcast(), user.is_none());
                }
                (Finding::Serve(event), Ok(Effect::Message { user, kept: row, .. })) => {
                    assert_eq!(event.broadcast(), row.broadcast);
                    assert!(event.body().windows(user.as_str().len()).count() > 0);
                    kept += 1;
                }
                (Finding::Serve(event), Ok(Effect::Group { kept: row, content })) => {
                    assert_eq!(event.broadcast(), row.broadcast);
                    assert_eq!(content.id, row.broadcast);
                    kept += 1;
                }
                (finding, effect) => panic!("{}: {finding:?} and {effect:?}", fields[1]),
            }
        }
        assert!(kept > 5, "{kept} records of the golden file leave something");
    }

    #[test]
    fn an_older_producers_record_brings_its_content() {
        let older = r#"{"broadcastId":7,"userId":"alice","eventType":"CREATED","message":"hi",
            "timestampEpochMilli":1795514400000}"#;
        let Ok(Effect::Message { user, kept, content: Some(content) }) =
            assess(Topic::Selected, older)
        else {
            panic!("a message with its content")
        };
        assert_eq!(user.as_str(), "alice");
        let created_at = EpochMillis(1_795_514_400_000);
        assert_eq!(kept.ends_at, APPENDED_AT.plus(RETENTION));
        assert_eq!((content.created_at, content.content.as_str()), (created_at, "hi"));
        assert_eq!(content.expires_at, Some(kept.ends_at));
        let own = older.replace("\"message\"", "\"targetType\":\"SELECTED\",\"message\"");
        assert!(matches!(assess(Topic::Selected, &own), Ok(Effect::Message { content: None, .. })));
    }

    #[test]
    fn what_is_for_users_who_are_here_leaves_nothing() {
        for fields in [
            r#""eventType":"CREATED","message":"hi","fireAndForget":true"#,
            r#""eventType":"CREATED","message":"hi","isFireAndForget":true"#,
            r#""eventType":"READ""#,
        ] {
            let record = format!(r#"{{"broadcastId":7,"userId":"alice",{fields}}}"#);
            let found = assess(Topic::Selected, &record);
            assert!(matches!(found, Ok(Effect::Passing(_))), "{record}: {found:?}");
        }
    }

    #[test]
    fn what_is_not_served_where_it_stands_is_parked() {
        let of_alice = |fields: &str| {
            format!(r#"{{"broadcastId":7,"userId":"alice","message":"hi",{fields}}}"#)
        };
        let limit = limits::REPEAT_RECORDS;
        for (fields, parked) in [
            (r#""eventType":"CREATED","after":0"#, None),
            (r#""eventType":"CREATED","simulateFailure":true"#, Some(Unserved::Failing)),
            (r#""eventType":"CREATED","simulateFailure":false"#, None),
        ] {
            match (assess(Topic::Selected, &of_alice(fields)), parked) {
                (Ok(Effect::Message { .. }), None) => {}
                (Ok(Effect::Parked { why, aside }), Some(expected)) => {
                    assert!(aside.has_row && aside.user.is_some());
                    assert_eq!(why, expected, "{fields}");
                }
                (other, _) => panic!("{fields}: {other:?}"),
            }
        }
        let late = of_alice(r#""eventType":"CREATED","attempt":1,"after":3"#);
        for (offset, is_late) in [(2 + limit, false), (3 + limit, true)] {
            let place = Position { offset, ..position(Topic::Selected) };
            let value = Some(late.as_bytes());
            let found = Assessor::new(RULES, RETENTION).assess(place, APPENDED_AT, value);
            let is_parked = matches!(found, Ok(Effect::Parked { why: Unserved::Late, ref aside })
                    if aside.kept.attempt == 1);
            assert_eq!(is_parked, is_late, "{offset}: {found:?}");
        }
        let last = of_alice(r#""eventType":"CREATED","simulateFailure":true,"attempt":2"#);
        assert!(matches!(assess(Topic::Selected, &last), Ok(Effect::Dead(aside)) if aside.has_row));
        let read = r#"{"broadcastId":7,"userId":"bob","eventType":"READ"}"#;
        let found = assess(Topic::Selected, read);
        let Ok(Effect::Parked { why: Unserved::ForeignPartition, aside }) = found else {
            panic!("bob's are elsewhere: {found:?}")
        };
        assert!(!aside.has_row && aside.user.is_some());
    }
}
