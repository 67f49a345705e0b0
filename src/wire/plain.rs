//! Records of the usual form, read in one pass and without a copy.
//!
//! Every event pays for its parsing, and nearly all are written by machines of one kind: compact
//! JSON, fields in one order, texts without escapes. What is read here is what the general parser
//! reads. `None` says nothing: it decides. Pure; any thread.

use crate::base::{BroadcastId, EpochMillis, EventType, Priority, TargetType};
use crate::wire::record::DeliveryRecord;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Field {
    EventId,
    BroadcastId,
    UserId,
    EventType,
    Timestamp,
    TimestampEpochMilli,
    CorrelationId,
    Message,
    FireAndForget,
    IsFireAndForget,
    TargetType,
    TargetIds,
    SenderName,
    Priority,
    Category,
    CreatedAt,
    ScheduledAt,
    ExpiresAt,
    SimulateFailure,
    Attempt,
    After,
    /// Known, so that it costs no search, and not read.
    Unread,
}

/// As a record spells them, in the order in which Corecast writes them.
const FIELDS: [(&str, Field); 25] = [
    ("\"eventId\":", Field::EventId),
    ("\"broadcastId\":", Field::BroadcastId),
    ("\"userId\":", Field::UserId),
    ("\"eventType\":", Field::EventType),
    ("\"podId\":", Field::Unread),
    ("\"timestamp\":", Field::Timestamp),
    ("\"timestampEpochMilli\":", Field::TimestampEpochMilli),
    ("\"correlationId\":", Field::CorrelationId),
    ("\"message\":", Field::Message),
    ("\"errorDetails\":", Field::Unread),
    ("\"fireAndForget\":", Field::FireAndForget),
    ("\"isFireAndForget\":", Field::IsFireAndForget),
    ("\"targetType\":", Field::TargetType),
    ("\"targetIds\":", Field::TargetIds),
    ("\"senderId\":", Field::Unread),
    ("\"senderName\":", Field::SenderName),
    ("\"priority\":", Field::Priority),
    ("\"category\":", Field::Category),
    ("\"createdAt\":", Field::CreatedAt),
    ("\"scheduledAt\":", Field::ScheduledAt),
    ("\"expiresAt\":", Field::ExpiresAt),
    ("\"chunk\":", Field::Unread),
    ("\"simulateFailure\":", Field::SimulateFailure),
    ("\"attempt\":", Field::Attempt),
    ("\"after\":", Field::After),
];

/// Reads a record. `None` if it is of another form, or none.
pub(super) fn read(value: &[u8]) -> Option<DeliveryRecord<'_>> {
    let mut reader = Reader { text: simdutf8::basic::from_utf8(value).ok()?, at: 0, expected: 0 };
    let mut record = empty()?;
    let mut seen = 0_u32;
    reader.take(b'{')?;
    loop {
        let field = reader.field()?;
        if field != Field::Unread {
            let bit = 1 << field as u8;
            if seen & bit != 0 {
                return None;
            }
            seen |= bit;
        }
        reader.value(field, &mut record)?;
        if reader.take(b',').is_none() {
            break;
        }
    }
    reader.take(b'}')?;
    let needed = 1 << Field::BroadcastId as u8 | 1 << Field::EventType as u8;
    (reader.at == value.len() && seen & needed == needed).then_some(record)
}

/// A record of which nothing is read yet.
fn empty<'a>() -> Option<DeliveryRecord<'a>> {
    Some(DeliveryRecord {
        event_id: None,
        broadcast_id: BroadcastId::new(0)?,
        user_id: None,
        event_type: EventType::Created,
        timestamp: None,
        timestamp_epoch_milli: None,
        correlation_id: None,
        message: None,
        fire_and_forget: None,
        is_fire_and_forget: None,
        target_type: None,
        target_ids: None,
        sender_name: None,
        priority: None,
        category: None,
        created_at: None,
        scheduled_at: None,
        expires_at: None,
        simulate_failure: None,
        attempt: None,
        after: None,
    })
}

struct Reader<'a> {
    text: &'a str,
    /// The next byte to look at.
    at: usize,
    /// Place of the field that comes next where fields stand in our order.
    expected: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.rest().first() == Some(&byte)).then(|| self.at += 1)
    }

    fn take_word(&mut self, word: &str) -> Option<()> {
        self.rest().starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    /// A key with its colon.
    fn field(&mut self) -> Option<Field> {
        let rest = self.rest();
        let places = (self.expected..FIELDS.len()).chain(0..self.expected);
        for place in places {
            let (key, field) = FIELDS[place];
            if starts_with_key(rest, key.as_bytes()) {
                self.at += key.len();
                self.expected = place + 1;
                return Some(field);
            }
        }
        self.string()?;
        self.take(b':')?;
        Some(Field::Unread)
    }

    fn value(&mut self, field: Field, record: &mut DeliveryRecord<'a>) -> Option<()> {
        match field {
            Field::EventId => record.event_id = self.or_null(Self::string)?,
            Field::BroadcastId => record.broadcast_id = BroadcastId::new(self.number()?)?,
            Field::UserId => record.user_id = self.or_null(Self::string)?,
            Field::EventType => record.event_type = EventType::from_word(self.string()?)?,
            Field::Timestamp => record.timestamp = self.or_null(Self::date)?,
            Field::TimestampEpochMilli => {
                record.timestamp_epoch_milli = self.or_null(Self::number)?;
            }
            Field::CorrelationId => record.correlation_id = self.or_null(Self::string)?,
            Field::Message => record.message = self.or_null(Self::string)?,
            Field::FireAndForget => record.fire_and_forget = self.or_null(Self::boolean)?,
            Field::IsFireAndForget => record.is_fire_and_forget = self.or_null(Self::boolean)?,
            Field::TargetType => {
                record.target_type =
                    self.or_null(|reader| TargetType::from_word(reader.string()?))?;
            }
            Field::TargetIds => record.target_ids = self.or_null(Self::strings)?,
            Field::SenderName => record.sender_name = self.or_null(Self::string)?,
            Field::Priority => {
                record.priority = self.or_null(|reader| Priority::from_word(reader.string()?))?;
            }
            Field::Category => record.category = self.or_null(Self::string)?,
            Field::CreatedAt => record.created_at = self.or_null(Self::date)?,
            Field::ScheduledAt => record.scheduled_at = self.or_null(Self::date)?,
            Field::ExpiresAt => record.expires_at = self.or_null(Self::date)?,
            Field::SimulateFailure => record.simulate_failure = self.or_null(Self::boolean)?,
            Field::Attempt => {
                record.attempt = self.or_null(|reader| reader.number()?.try_into().ok())?;
            }
            Field::After => record.after = self.or_null(Self::number)?,
            Field::Unread => self.unread()?,
        }
        Some(())
    }

    /// Any text, number or word; whatever has parts is left to the general parser.
    fn unread(&mut self) -> Option<()> {
        match self.rest().first()? {
            b'"' => self.string().map(drop),
            b'0'..=b'9' => self.number().map(drop),
            _ => self.or_null(Self::boolean).map(drop),
        }
    }

    fn or_null<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.take_word("null") {
            Some(()) => Some(None),
            None => read(self).map(Some),
        }
    }

    fn boolean(&mut self) -> Option<bool> {
        let is_false = self.take_word("false").map(|()| false);
        is_false.or_else(|| self.take_word("true").map(|()| true))
    }

    /// A whole number without sign, of at most 16 digits: more than a broadcast's id has.
    fn number(&mut self) -> Option<u64> {
        let rest = self.rest();
        let digits = rest.iter().take(17).take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 16 || (digits > 1 && rest[0] == b'0') {
            return None;
        }
        self.at += digits;
        Some(rest[..digits].iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
    }

    fn date(&mut self) -> Option<EpochMillis> {
        EpochMillis::parse_iso(self.string()?)
    }

    fn strings(&mut self) -> Option<Vec<&'a str>> {
        let mut strings = Vec::new();
        self.take(b'[')?;
        if self.take(b']').is_some() {
            return Some(strings);
        }
        loop {
            strings.push(self.string()?);
            if self.take(b',').is_none() {
                break;
            }
        }
        self.take(b']')?;
        Some(strings)
    }

    /// A text without escapes.
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let length = plain_length(self.rest());
        let end = self.at + length;
        let string = self.text.get(self.at..end)?;
        self.at = end;
        self.take(b'"')?;
        Some(string)
    }
}

/// Whether a key stands here. Keys are short: looked at in words, the last of which may overlap the
/// one before, they need no call.
fn starts_with_key(rest: &[u8], key: &[u8]) -> bool {
    let Some(found) = rest.get(..key.len()) else { return false };
    let Some((key_end, found_end)) = key.last_chunk::<8>().zip(found.last_chunk::<8>()) else {
        return found == key;
    };
    let words = key.chunks_exact(8).zip(found.chunks_exact(8));
    key_end == found_end && words.into_iter().all(|(key, found)| key == found)
}

/// Bytes before the first that ends a text or that a text writes in another way.
fn plain_length(bytes: &[u8]) -> usize {
    let mut length = 0;
    // Two words are enough for most texts; beyond them, pieces that the compiler looks at at once.
    for _ in 0..2 {
        let Some(word) = bytes[length..].first_chunk() else { break };
        match special(u64::from_le_bytes(*word)) {
            0 => length += 8,
            found => return length + found.trailing_zeros() as usize / 8,
        }
    }
    let is_special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    while let Some(piece) = bytes[length..].first_chunk::<32>() {
        if piece.iter().fold(false, |any, byte| any | is_special(*byte)) {
            break;
        }
        length += piece.len();
    }
    while let Some(word) = bytes[length..].first_chunk() {
        match special(u64::from_le_bytes(*word)) {
            0 => length += 8,
            found => return length + found.trailing_zeros() as usize / 8,
        }
    }
    let tail = &bytes[length..];
    length + tail.iter().position(|byte| is_special(*byte)).unwrap_or(tail.len())
}

/// The upper bit of the first byte that is a quote, a backslash or below a blank, if there is one;
/// bits above it say nothing.
///
/// Source: S. E. Anderson, "Bit Twiddling Hacks", "Determine if a word has a byte less than n".
const fn special(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let found = (word.wrapping_sub(ONES * b' ' as u64) & !word)
        | (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash);
    found & (ONES * 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::record::Parser;
    use proptest::prelude::*;

    const DAMAGE: &[u8] = b"\"\\{}[],:0129-.eE ntu\xc3\xa9";

    fn golden() -> Vec<&'static str> {
        let golden = include_str!("../../tests/golden/records/records.tsv");
        let rows = golden.lines().filter(|line| !line.starts_with('#'));
        rows.map(|line| line.split('\t').nth(1).expect("three fields")).collect()
    }

    /// Where this fails, nothing is wrong but the time that a record takes.
    #[test]
    fn what_corecast_and_older_producers_write_is_usual() {
        let golden = golden();
        let usual = |json: &str| read(json.as_bytes()).is_some();
        for field in ["\"targetType\":\"ALL\",\"targetIds\":[]}", "\"targetIds\":[\"g\"]}"] {
            assert!(golden.iter().any(|json| json.ends_with(field) && usual(json)), "{field}");
        }
        assert!(golden.iter().any(|json| json.contains("jvm-1") && usual(json)));
        assert_eq!(golden.iter().filter(|json| usual(json)).count(), 29);
        for other in ["", "{}", "[]", "null", "{\"broadcastId\":1}", "{\"eventType\":\"READ\"}"] {
            assert!(!usual(other), "{other}");
        }
    }

    #[test]
    fn a_text_ends_where_it_ends() {
        for length in 0..100 {
            for end in ["\"", "\\", "\n", "\u{1f}"] {
                let text = format!("{}{end}\"\\\0", "\u{e9}".repeat(length));
                assert_eq!(plain_length(text.as_bytes()), 2 * length, "{text:?}");
                let text = format!("{}{end}\"\\\0", "!".repeat(length));
                assert_eq!(plain_length(text.as_bytes()), length, "{text:?}");
            }
            assert_eq!(plain_length("~".repeat(length).as_bytes()), length);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]
        /// What is read here, the general parser reads as the same.
        #[test]
        fn what_is_read_is_what_the_general_parser_reads(
            row in any::<prop::sample::Index>(),
            damage in prop::collection::vec(
                (any::<prop::sample::Index>(), prop::sample::select(DAMAGE.to_vec())),
                0..3,
            ),
            fields in prop::collection::vec((
                prop::sample::select(FIELDS.map(|(key, _)| key).to_vec()),
                prop::sample::select(vec![
                    "null", "true", "false", "0", "7", "007", "4294967296", "9007199254740991",
                    "9007199254740992", "99999999999999999999", "-1", "1.5", "1e3", "\"\"",
                    "\"alice\"", "\"ALL\"", "\"LOW\"", "\"CREATED\"", "\"a\\nb\"", "[]", "[\"a\"]",
                    "[\"a\",1]", "[\"a\",]", "{}", "\"2026-11-24T10:00:00.123Z\"",
                ]),
            ), 0..3),
        ) {
            let json = golden()[row.index(golden().len())];
            let mut bytes = json.as_bytes().to_vec();
            for (key, value) in fields {
                bytes.pop();
                bytes.extend_from_slice(format!(",{key}{value}}}").as_bytes());
            }
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let mut parser = Parser::default();
            if let Some(record) = read(&bytes) {
                let general = parser.parse_any(&bytes);
                prop_assert_eq!(Some(&record), general.as_ref().ok());
            }
        }
    }
}
