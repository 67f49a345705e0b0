//! Headers of dead letters, by the names and in the bytes of Spring Kafka, whose consoles show them
//! (contract section 2). Numbers are big-endian, everything else is UTF-8.
//!
//! Anybody may write a dead letter, and one may have been dead before: of two headers of one name
//! the last counts, and one that is malformed is none.

use crate::base::BroadcastId;

/// How all of them begin that are not ours.
pub const HEADERS_BEGIN: &str = "kafka_dlt-";
pub const ORIGINAL_TOPIC: &str = "kafka_dlt-original-topic";
pub const ORIGINAL_PARTITION: &str = "kafka_dlt-original-partition";
pub const ORIGINAL_OFFSET: &str = "kafka_dlt-original-offset";
pub const ORIGINAL_TIMESTAMP: &str = "kafka_dlt-original-timestamp";
pub const ORIGINAL_TIMESTAMP_TYPE: &str = "kafka_dlt-original-timestamp-type";
pub const ORIGINAL_CONSUMER_GROUP: &str = "kafka_dlt-original-consumer-group";
pub const EXCEPTION_FQCN: &str = "kafka_dlt-exception-fqcn";
pub const EXCEPTION_CAUSE_FQCN: &str = "kafka_dlt-exception-cause-fqcn";
pub const EXCEPTION_MESSAGE: &str = "kafka_dlt-exception-message";
pub const EXCEPTION_STACKTRACE: &str = "kafka_dlt-exception-stacktrace";
/// Ours: what was cut because the broker refused the size, and how many bytes it had.
pub const CUT: &str = "corecast_dlt-cut";

/// The exception that consoles show; the cause's class says what it was.
const EXCEPTION: &str = "corecast.NotProcessed";

/// Where a dead letter's record stands, or stood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970; not every producer says it.
    pub timestamp: Option<i64>,
}

/// What the headers of a new dead letter say.
#[derive(Clone, Copy, Debug)]
pub struct DeadHeaders<'a> {
    pub topic: &'a str,
    pub partition: u16,
    pub offset: u64,
    /// Milliseconds since 1970.
    pub timestamp: u64,
    /// Whose clock that is; else the producer's.
    pub is_append_time: bool,
    pub consumer_group: &'a str,
    /// As a class of Java is called.
    pub cause: &'a str,
    pub message: &'a str,
}

/// What the headers of anybody's dead letter say.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ReadHeaders {
    /// Without topic, partition or offset there is none.
    pub origin: Option<Origin>,
    pub exception_message: Option<String>,
    pub exception_stack_trace: Option<String>,
}

impl DeadHeaders<'_> {
    /// Names and values, in the order of the contract.
    pub fn write(&self) -> Vec<(&'static str, Vec<u8>)> {
        let Self { topic, partition, offset, timestamp, cause, message, .. } = *self;
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX).to_be_bytes().to_vec();
        let time_type = if self.is_append_time { "LogAppendTime" } else { "CreateTime" };
        let trace = format!(
            "{EXCEPTION}: {message}\n\tat {topic}-{partition}@{offset}\n\
             Caused by: {cause}: {message}\n"
        );
        vec![
            (ORIGINAL_TOPIC, topic.into()),
            (ORIGINAL_PARTITION, i32::from(partition).to_be_bytes().to_vec()),
            (ORIGINAL_OFFSET, signed(offset)),
            (ORIGINAL_TIMESTAMP, signed(timestamp)),
            (ORIGINAL_TIMESTAMP_TYPE, time_type.into()),
            (ORIGINAL_CONSUMER_GROUP, self.consumer_group.into()),
            (EXCEPTION_FQCN, EXCEPTION.into()),
            (EXCEPTION_CAUSE_FQCN, cause.into()),
            (EXCEPTION_MESSAGE, message.into()),
            (EXCEPTION_STACKTRACE, trace.into_bytes()),
        ]
    }
}

/// Reads all headers of a record. What is not UTF-8 is shown as well as it can be.
pub fn read<'a>(headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> ReadHeaders {
    let (mut topic, mut partition, mut offset, mut timestamp) = (None, None, None, None);
    let mut read = ReadHeaders::default();
    let text = |value: &[u8]| Some(String::from_utf8_lossy(value).into_owned());
    let long = |value: &[u8]| value.try_into().ok().map(i64::from_be_bytes);
    for (name, value) in headers {
        let (Ok(name), Some(value)) = (std::str::from_utf8(name), value) else { continue };
        match name {
            ORIGINAL_TOPIC => topic = text(value),
            ORIGINAL_PARTITION => partition = value.try_into().ok().map(i32::from_be_bytes),
            ORIGINAL_OFFSET => offset = long(value),
            ORIGINAL_TIMESTAMP => timestamp = long(value),
            EXCEPTION_MESSAGE => read.exception_message = text(value),
            EXCEPTION_STACKTRACE => read.exception_stack_trace = text(value),
            _ => {}
        }
    }
    if let (Some(topic), Some(partition), Some(offset)) = (topic, partition, offset) {
        read.origin = Some(Origin { topic, partition, offset, timestamp });
    }
    read
}

/// The broadcast that a value names, as far as it can be read.
pub fn broadcast_of(value: &[u8]) -> Option<BroadcastId> {
    #[derive(serde::Deserialize)]
    struct Named {
        #[serde(rename = "broadcastId")]
        broadcast: BroadcastId,
    }
    serde_json::from_slice::<Named>(value).ok().map(|named| named.broadcast)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADERS: DeadHeaders<'_> = DeadHeaders {
        topic: "broadcast-user-service-selected",
        partition: 3,
        offset: 258,
        timestamp: 1_795_514_400_123,
        is_append_time: false,
        consumer_group: "broadcast-service-group-selected",
        cause: "corecast.BadRecord",
        message: "not a MessageDeliveryEvent: \u{e4}",
    };

    fn read_all(headers: &[(&str, Option<&[u8]>)]) -> ReadHeaders {
        read(headers.iter().map(|(name, value)| (name.as_bytes(), *value)))
    }

    #[test]
    fn golden_headers() {
        let golden = include_str!("../../tests/golden/records/dead-letter.tsv");
        let hex = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let text = |value: &[u8]| {
            let text = String::from_utf8(value.to_vec()).expect("UTF-8");
            text.replace('\n', "\\n").replace('\t', "\\t")
        };
        let lines: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        let written = HEADERS.write();
        assert_eq!(lines.len(), written.len());
        for (line, (name, value)) in lines.iter().zip(written) {
            let is_number = line.contains("\thex\t");
            let (kind, value) =
                if is_number { ("hex", hex(&value)) } else { ("text", text(&value)) };
            assert_eq!(*line, format!("{name}\t{kind}\t{value}"));
        }
        let of_log = DeadHeaders { is_append_time: true, ..HEADERS }.write();
        assert!(of_log.contains(&(ORIGINAL_TIMESTAMP_TYPE, b"LogAppendTime".to_vec())));
    }

    #[test]
    fn what_is_written_is_read() {
        let written = HEADERS.write();
        let pairs: Vec<(&str, Option<&[u8]>)> =
            written.iter().map(|(name, value)| (*name, Some(value.as_slice()))).collect();
        let read = read_all(&pairs);
        let (topic, timestamp) = (HEADERS.topic.to_owned(), Some(1_795_514_400_123));
        let origin = Origin { topic, partition: 3, offset: 258, timestamp };
        assert_eq!(read.origin, Some(origin));
        assert_eq!(read.exception_message.as_deref(), Some(HEADERS.message));
        let trace = read.exception_stack_trace.expect("written");
        assert!(trace.starts_with("corecast.NotProcessed: not a") && trace.ends_with('\n'));
    }

    #[test]
    fn the_last_of_a_name_counts_and_a_malformed_one_is_none() {
        let (one, two) = (1_i64.to_be_bytes(), 2_i64.to_be_bytes());
        let place: [(&str, Option<&[u8]>); 3] = [
            (ORIGINAL_TOPIC, Some(b"t")),
            (ORIGINAL_PARTITION, Some(&[0, 0, 0, 7])),
            (ORIGINAL_OFFSET, Some(&one)),
        ];
        let offset = |more: &[(&str, Option<&[u8]>)]| {
            read_all(&[&place[..], more].concat()).origin.map(|origin| origin.offset)
        };
        assert_eq!(offset(&[]), Some(1));
        assert_eq!(offset(&[(ORIGINAL_OFFSET, Some(&two))]), Some(2));
        assert_eq!(offset(&[(ORIGINAL_OFFSET, Some(b"12"))]), None);
        assert_eq!(offset(&[(ORIGINAL_OFFSET, None)]), Some(1));
        assert_eq!(offset(&[(ORIGINAL_PARTITION, Some(b""))]), None);
        assert_eq!(read_all(&place[..2]).origin, None);
        assert_eq!(read_all(&[]), ReadHeaders::default());
        let odd = read_all(&[(EXCEPTION_MESSAGE, Some(b"a\xff"))]);
        assert_eq!(odd.exception_message.as_deref(), Some("a\u{fffd}"));
    }

    #[test]
    fn a_broadcast_is_named_where_it_can_be_read() {
        for (value, broadcast) in [
            (&br#"{"broadcastId":42,"eventType":7}"#[..], BroadcastId::new(42)),
            (br#"{"broadcastId":-1}"#, None),
            (br#"{"broadcastId":"42"}"#, None),
            (b"not JSON", None),
            (b"", None),
        ] {
            assert_eq!(broadcast_of(value), broadcast);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            headers in prop::collection::vec((0..6_usize, any::<Vec<u8>>()), 0..8)
        ) {
            let names = [
                ORIGINAL_TOPIC, ORIGINAL_PARTITION, ORIGINAL_OFFSET, ORIGINAL_TIMESTAMP,
                EXCEPTION_MESSAGE, "other",
            ];
            let pairs = headers.iter().map(|(at, value)| (names[*at].as_bytes(), Some(&value[..])));
            let _ = read(pairs);
        }
    }
}
