//! What members of a group leave with its coordinator for each other: the bytes of Kafka's own
//! consumers, so that its tools can show who has what.
//!
//! A subscription's user data are how many partitions the topic has (2, big-endian). What others
//! wrote is read by hand: kafka-protocol makes room for as many items as a length says.

use std::collections::BTreeSet;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::TopicName;
use kafka_protocol::messages::consumer_protocol_assignment::{
    ConsumerProtocolAssignment, TopicPartition as AssignedPartitions,
};
use kafka_protocol::messages::consumer_protocol_subscription::{
    ConsumerProtocolSubscription, TopicPartition as OwnedPartitions,
};
use kafka_protocol::protocol::{Encodable, StrBytes};

use super::assign::Subscription;

/// As Kafka's consumers call themselves.
pub(super) const PROTOCOL_TYPE: &str = "consumer";
/// Ours alone: a program that shares partitions out by another rule is not let in beside us.
pub(super) const PROTOCOL_NAME: &str = "corecast-sticky";

/// The first version that says of which generation the owned partitions are.
const SUBSCRIPTION_VERSION: i16 = 2;
const ASSIGNMENT_VERSION: i16 = 1;

pub(super) fn write_subscription(subscription: &Subscription) -> Bytes {
    let topic = StrBytes::from_string(subscription.topic.clone());
    let owned = OwnedPartitions::default()
        .with_topic(TopicName(topic.clone()))
        .with_partitions(subscription.owned.iter().map(|index| i32::from(*index)).collect());
    let user_data = Bytes::copy_from_slice(&subscription.partitions.to_be_bytes());
    let message = ConsumerProtocolSubscription::default()
        .with_topics(vec![topic])
        .with_user_data(Some(user_data))
        .with_owned_partitions(vec![owned])
        .with_generation_id(subscription.generation);
    write(&message, SUBSCRIPTION_VERSION)
}

/// `None` for what no node of ours wrote.
pub(super) fn read_subscription(mut bytes: &[u8]) -> Option<Subscription> {
    if bytes.try_get_i16().ok()? < SUBSCRIPTION_VERSION {
        return None;
    }
    if bytes.try_get_i32().ok()? != 1 {
        return None;
    }
    let topic = read_text(&mut bytes)?;
    if bytes.try_get_i32().ok()? != 2 {
        return None;
    }
    let partitions = bytes.try_get_u16().ok()?;
    let owned = read_partitions(&mut bytes, &topic)?;
    let generation = bytes.try_get_i32().ok()?;
    Some(Subscription { topic, partitions, generation, owned })
}

pub(super) fn write_assignment(topic: &str, share: &BTreeSet<u16>) -> Bytes {
    let assigned = AssignedPartitions::default()
        .with_topic(TopicName(StrBytes::from_string(topic.to_owned())))
        .with_partitions(share.iter().map(|index| i32::from(*index)).collect());
    let message = ConsumerProtocolAssignment::default().with_assigned_partitions(vec![assigned]);
    write(&message, ASSIGNMENT_VERSION)
}

/// What is assigned of this topic. No bytes are no partitions; `None` if they can't be read.
pub(super) fn read_assignment(mut bytes: &[u8], topic: &str) -> Option<BTreeSet<u16>> {
    if bytes.is_empty() {
        return Some(BTreeSet::new());
    }
    bytes.try_get_i16().ok()?;
    read_partitions(&mut bytes, topic)
}

fn write(message: &impl Encodable, version: i16) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(version);
    message.encode(&mut out, version).expect("names and lists that fit");
    out.freeze()
}

/// Topics, each with its partitions: those of one topic. Numbers that are none of a partition are
/// left out.
fn read_partitions(bytes: &mut &[u8], topic: &str) -> Option<BTreeSet<u16>> {
    let mut found = BTreeSet::new();
    for _ in 0..bytes.try_get_i32().ok()? {
        let is_wanted = read_text(bytes)? == topic;
        for _ in 0..bytes.try_get_i32().ok()? {
            let index = bytes.try_get_i32().ok()?;
            if is_wanted {
                found.extend(u16::try_from(index));
            }
        }
    }
    Some(found)
}

fn read_text(bytes: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(bytes.try_get_i16().ok()?).ok()?;
    let text = bytes.get(..length)?;
    let text = std::str::from_utf8(text).ok()?.to_owned();
    bytes.advance(length);
    Some(text)
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::Decodable as _;
    use proptest::prelude::*;

    use super::*;

    fn subscription() -> Subscription {
        Subscription {
            topic: "t".to_owned(),
            partitions: 3,
            generation: 7,
            owned: BTreeSet::from([0, 2]),
        }
    }

    #[test]
    fn what_is_written_can_be_read_here_and_by_kafkas_own_tools() {
        let bytes = write_subscription(&subscription());
        assert_eq!(read_subscription(&bytes), Some(subscription()));
        let mut rest = bytes;
        let version = rest.get_i16();
        let read = ConsumerProtocolSubscription::decode(&mut rest, version).expect("its own");
        assert_eq!((read.topics.len(), read.generation_id), (1, 7));
        assert!(rest.is_empty());

        let share = BTreeSet::from([1, 65_535]);
        let bytes = write_assignment("t", &share);
        assert_eq!(read_assignment(&bytes, "t"), Some(share));
        assert_eq!(read_assignment(&bytes, "other"), Some(BTreeSet::new()));
        let mut rest = bytes;
        let version = rest.get_i16();
        let read = ConsumerProtocolAssignment::decode(&mut rest, version).expect("its own");
        assert_eq!(read.assigned_partitions[0].partitions, [1, 65_535]);
        assert_eq!(read_assignment(&[], "t"), Some(BTreeSet::new()));
    }

    #[test]
    fn what_is_cut_off_or_says_a_length_that_is_not_there_is_not_read() {
        let bytes = write_subscription(&subscription());
        for length in 0..bytes.len() {
            assert_eq!(read_subscription(&bytes[..length]), None, "{length} bytes");
        }
        let mut many = BytesMut::new();
        many.put_i16(ASSIGNMENT_VERSION);
        many.put_i32(i32::MAX);
        assert_eq!(read_assignment(&many, "t"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_subscription(&bytes);
            let _ = read_assignment(&bytes, "t");
        }
    }
}
