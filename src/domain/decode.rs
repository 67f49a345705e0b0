//! From a record's bytes to its fate: serve, leave, or dead letter.
//!
//! **A record's fate follows from its bytes and its place alone**, so that all nodes agree without
//! talking. No input panics; should one, `decode_caught` makes it a bad record, since every node
//! would meet it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::judge::{BadRecord, Rules, Says, Unserved, Verdict, judge, parse};
use crate::base::{EpochMillis, Position};
use crate::wire::archive::{Archiver, Event, EventKind, SharedEvent};
use crate::wire::frame::{self, Message};
use crate::wire::record::{DeliveryRecord, Parser};

/// What becomes of a record.
#[derive(Debug)]
pub enum Finding {
    Serve(SharedEvent),
    Ignore(Unserved),
    Bad(BadRecord),
}

/// Decodes with buffers that it reuses. One a shard.
pub struct Decoder {
    rules: Rules,
    parser: Parser,
    /// Where bodies are written before the archive takes them.
    body: Vec<u8>,
    archiver: Archiver,
}

impl Decoder {
    pub fn new(rules: Rules) -> Self {
        Self { rules, parser: Parser::default(), body: Vec::new(), archiver: Archiver::default() }
    }

    /// Decodes one record. The key decides nothing: `userId` says whom it is for.
    pub fn decode(
        &mut self,
        position: Position,
        appended_at: EpochMillis,
        value: Option<&[u8]>,
    ) -> Finding {
        self.try_decode(position, appended_at, value).unwrap_or_else(Finding::Bad)
    }

    /// The same; a panic is a bad record.
    pub fn decode_caught(
        &mut self,
        position: Position,
        appended_at: EpochMillis,
        value: Option<&[u8]>,
    ) -> Finding {
        let rules = self.rules;
        let decoded = caught(
            self,
            |decoder| decoder.try_decode(position, appended_at, value),
            |decoder| *decoder = Self::new(rules),
        );
        decoded.unwrap_or_else(Finding::Bad)
    }

    fn try_decode(
        &mut self,
        position: Position,
        appended_at: EpochMillis,
        value: Option<&[u8]>,
    ) -> Result<Finding, BadRecord> {
        let record = parse(&mut self.parser, value)?;
        let (audience, event_id, says) = match judge(&record, position, &self.rules)? {
            Verdict::Ignore { why, .. } => return Ok(Finding::Ignore(why)),
            Verdict::Serve { audience, event_id, says } => (audience, event_id, says),
        };
        self.body.clear();
        match says {
            Says::Message(content) => {
                write_message(&mut self.body, &record, content, appended_at);
            }
            Says::Read => frame::write_read_receipt(&mut self.body, record.broadcast_id),
            Says::Removed(_) => frame::write_message_removed(&mut self.body, record.broadcast_id),
        }
        let kind = match says {
            Says::Message(_) => EventKind::Message,
            Says::Read => EventKind::Receipt,
            Says::Removed(_) => EventKind::Removal,
        };
        Ok(Finding::Serve(self.archiver.write(Event {
            position,
            appended_at,
            event_id: event_id.as_u128(),
            attempt: record.attempt.unwrap_or(0),
            broadcast: record.broadcast_id,
            kind,
            expires_at: record.expires_at,
            // Who has the message is told whenever he comes back.
            is_passing: record.is_fire_and_forget() && kind != EventKind::Removal,
            audience,
            body: &self.body,
        })))
    }
}

/// Runs `work`; should it panic, runs `reset` on what it may have left half done.
pub(super) fn caught<S, T>(
    state: &mut S,
    work: impl FnOnce(&mut S) -> Result<T, BadRecord>,
    reset: impl FnOnce(&mut S),
) -> Result<T, BadRecord> {
    catch_unwind(AssertUnwindSafe(|| work(state))).unwrap_or_else(|_| {
        reset(state);
        Err(BadRecord::Panicked)
    })
}

/// Appends the body of MESSAGE, encoded once for all who get it.
fn write_message(
    body: &mut Vec<u8>,
    record: &DeliveryRecord<'_>,
    content: &str,
    appended_at: EpochMillis,
) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LogIdentity, LogShape, Partition, Topic};
    use crate::limits::log as limits;
    use proptest::prelude::*;

    const SHAPE: LogShape = LogShape {
        identity: LogIdentity([1, 2, 3]),
        selected_partitions: 10,
        group_partitions: 10,
    };
    const RULES: Rules = Rules { shape: SHAPE, is_testing: false };

    fn position(topic: Topic) -> Position {
        // "alice" belongs to this partition; the log's tests hold the partitioner's values.
        let index = match topic {
            Topic::Selected => SHAPE.partition_of_user("alice"),
            _ => 0,
        };
        Position { partition: Partition { topic, index }, offset: 5 }
    }

    fn finding(topic: Topic, value: &str) -> String {
        let mut decoder = Decoder::new(RULES);
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
        let mut decoder = Decoder::new(RULES);
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
        let found: Result<(), _> = caught(&mut state, |_| panic!("a bug"), |state| *state = 0);
        assert_eq!(found, Err(BadRecord::Panicked));
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
            let mut decoder = Decoder::new(RULES);
            let finding = decoder.decode(position(Topic::Group), EpochMillis(0), Some(&bytes));
            if let Finding::Serve(event) = finding {
                let is_whole = event.body().ends_with(b"}\n\n");
                prop_assert!(is_whole);
                prop_assert_eq!(event.body().iter().filter(|byte| **byte == b'\n').count(), 3);
            }
        }
    }
}
