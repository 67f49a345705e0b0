//! What a dead letter is once it is to be served after all.
//!
//! It is judged as a record of the topic that it comes from, where it belongs in it: what its last
//! publishing said of its place counts no more, nor does that it was to fail. Pure.

use uuid::Uuid;

use super::decode::caught;
use super::effect::{Aside, Kept};
use super::judge::{BadRecord, Rules, Unserved, Verdict, judge, parse};
use crate::base::{EpochMillis, EventType, Partition, Position, Topic, UserId};
use crate::wire::record::{DeliveryRecord, Parser};

/// An event that can be published again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redrive {
    /// The event, in the attempt that it is published with.
    pub aside: Aside,
    /// It is about what its broadcast says, so it comes with that: a message.
    pub is_message: bool,
    /// An older producer's group event: its audience is to be looked up.
    pub lacks_audience: bool,
    pub to: Partition,
    pub key: String,
}

/// Why a dead letter stays one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotRedrivable {
    #[error("it can't be served: {0}")]
    Bad(#[from] BadRecord),
    #[error("a {} event is served to nobody", EventType::Failed.name())]
    OfNoUse,
    #[error("it has ended at {0}")]
    Ended(EpochMillis),
}

impl Redrive {
    /// Of a record that died in this topic, one that is served.
    pub fn of(
        rules: &Rules,
        topic: Topic,
        value: Option<&[u8]>,
        now: EpochMillis,
    ) -> Result<Self, NotRedrivable> {
        let mut parser = Parser::default();
        // It may be a dead letter because its decoding has panicked.
        let found = caught(
            &mut parser,
            |parser| Ok(Self::try_of(rules, topic, parse(parser, value)?, now)),
            |parser| *parser = Parser::default(),
        );
        found?
    }

    fn try_of(
        rules: &Rules,
        topic: Topic,
        mut record: DeliveryRecord<'_>,
        now: EpochMillis,
    ) -> Result<Self, NotRedrivable> {
        (record.after, record.simulate_failure) = (None, None);
        let index = match (topic, record.user_id) {
            (Topic::Selected, Some(user)) => rules.shape.partition_of_user(user),
            _ => 0,
        };
        let position = Position { partition: Partition { topic, index }, offset: 0 };
        let (event, lacks_audience) = match judge(&record, position, rules)? {
            Verdict::Serve { event_id, .. } => (event_id, false),
            Verdict::Ignore { why: Unserved::NoAudience, event_id } => (event_id, true),
            Verdict::Ignore { .. } => return Err(NotRedrivable::OfNoUse),
        };
        let is_message = record.event_type == EventType::Created;
        if let Some(at) = record.expires_at.filter(|at| is_message && *at <= now) {
            return Err(NotRedrivable::Ended(at));
        }
        let to = rules.shape.partition_of_event(record.broadcast_id, record.user_id);
        let key = record.user_id.map_or_else(|| record.broadcast_id.to_string(), str::to_owned);
        let aside = aside_of(&record, event)?;
        Ok(Self { aside, is_message, lacks_audience, to, key })
    }
}

fn aside_of(record: &DeliveryRecord<'_>, event: Uuid) -> Result<Aside, BadRecord> {
    let is_message = record.event_type == EventType::Created;
    let user = record.user_id.map(UserId::new).transpose().map_err(BadRecord::User)?;
    Ok(Aside {
        kept: Kept {
            event,
            broadcast: record.broadcast_id,
            attempt: record.attempt.unwrap_or(0).saturating_add(1),
            ends_at: record.expires_at.unwrap_or(EpochMillis::MAX),
        },
        has_row: is_message && !record.is_fire_and_forget() && user.is_some(),
        user,
        is_removal: matches!(record.event_type, EventType::Cancelled | EventType::Expired),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LogIdentity, LogShape};
    use proptest::prelude::*;

    const RULES: Rules = Rules {
        shape: LogShape {
            identity: LogIdentity([1, 2, 3]),
            selected_partitions: 10,
            group_partitions: 10,
        },
        is_testing: true,
    };
    const NOW: EpochMillis = EpochMillis(1_795_514_400_000);

    fn of(topic: Topic, value: &str) -> Result<Redrive, NotRedrivable> {
        Redrive::of(&RULES, topic, Some(value.as_bytes()), NOW)
    }

    fn to_ann(more: &str) -> String {
        format!(r#"{{"broadcastId":7,"userId":"ann","message":"m"{more}}}"#)
    }

    #[test]
    fn a_letter_goes_to_its_users_partition_in_the_next_attempt() {
        let more = r#","eventType":"CREATED","attempt":2,"after":0,"simulateFailure":true"#;
        for topic in Topic::ALL {
            let redrive = of(topic, &to_ann(more)).expect("it can be served");
            let own = RULES.shape.partition_of_user("ann");
            assert_eq!(redrive.to, Partition { topic: Topic::Selected, index: own });
            assert_eq!((redrive.key.as_str(), redrive.aside.kept.attempt), ("ann", 3));
            assert!(redrive.aside.has_row && redrive.is_message && !redrive.lacks_audience);
        }
        let group = r#"{"broadcastId":7,"eventType":"CREATED","message":"m","targetType":"ALL"}"#;
        let redrive = of(Topic::Group, group).expect("it can be served");
        assert_eq!(redrive.to, RULES.shape.partition_of_event(redrive.aside.kept.broadcast, None));
        assert_eq!((redrive.key.as_str(), redrive.aside.kept.attempt), ("7", 1));
        assert!(!redrive.aside.has_row && redrive.aside.user.is_none());
    }

    #[test]
    fn what_is_kept_of_it_follows_from_the_event() {
        for (more, has_row, is_message) in [
            (r#","eventType":"CREATED""#, true, true),
            (r#","eventType":"CREATED","fireAndForget":true"#, false, true),
            (r#","eventType":"READ""#, false, false),
            (r#","eventType":"CANCELLED""#, false, false),
        ] {
            let redrive = of(Topic::Selected, &to_ann(more)).expect("it can be served");
            assert_eq!((redrive.aside.has_row, redrive.is_message), (has_row, is_message));
        }
    }

    #[test]
    fn what_stays_a_dead_letter_says_why() {
        let past = r#","eventType":"CREATED","expiresAt":"2026-01-01T00:00:00Z""#;
        let group = r#"{"broadcastId":7,"eventType":"CREATED","message":"m","targetType":"ALL"}"#;
        for (topic, value, said) in [
            (Topic::Group, "".to_owned(), "it can't be served: no value"),
            (Topic::Group, "no JSON".to_owned(), "not a MessageDeliveryEvent"),
            (Topic::Selected, to_ann(r#","eventType":"FAILED""#), "a FAILED event is served to"),
            (Topic::Selected, to_ann(past), "it has ended at 2026-01-01T00:00:00.000Z"),
            (Topic::Selected, group.to_owned(), "an event for a group in the selected topic"),
            (Topic::Group, to_ann(r#","eventType":"CREATED","eventId":"x""#), "is not a UUID"),
        ] {
            let error = of(topic, &value).expect_err(&value).to_string();
            assert!(error.contains(said), "{value}: {error}");
        }
        // Word of an end is of use after it as well.
        let end = past.replace("CREATED", "EXPIRED");
        assert!(of(Topic::Selected, &to_ann(&end)).is_ok());
        assert!(Redrive::of(&RULES, Topic::Group, None, NOW).is_err());
        let older = r#"{"broadcastId":7,"eventType":"CREATED","message":"m"}"#;
        assert!(of(Topic::Group, older).expect("an audience is to be had").lacks_audience);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_a_panic(
            value in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Redrive::of(&RULES, Topic::Group, Some(&value), NOW);
        }
    }
}
