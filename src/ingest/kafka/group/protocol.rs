//! What members of a group leave with its coordinator for each other: the bytes of Kafka's own
//! consumers, so that its tools can show who has what.
//!
//! A subscription's user data are how many partitions each topic has (2, big-endian). What others
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
use super::kind::slot;

/// As Kafka's consumers call themselves.
pub(super) const PROTOCOL_TYPE: &str = "consumer";
/// Ours alone: a program that shares partitions out by another rule is not let in beside us.
pub(super) const PROTOCOL_NAME: &str = "corecast-sticky";

/// The first version that says of which generation the owned partitions are.
const SUBSCRIPTION_VERSION: i16 = 2;
const ASSIGNMENT_VERSION: i16 = 1;

pub(super) fn write_subscription(subscription: &Subscription) -> Bytes {
    let Subscription { topics, partitions, owned, .. } = subscription;
    let names = topics.iter().map(|topic| StrBytes::from_string(topic.clone()));
    let owned = names.clone().enumerate().map(|(at, name)| {
        OwnedPartitions::default().with_topic(TopicName(name)).with_partitions(indexes(
            owned,
            at,
            *partitions,
        ))
    });
    let user_data = Bytes::copy_from_slice(&partitions.to_be_bytes());
    let message = ConsumerProtocolSubscription::default()
        .with_topics(names.collect())
        .with_user_data(Some(user_data))
        .with_owned_partitions(owned.collect())
        .with_generation_id(subscription.generation);
    write(&message, SUBSCRIPTION_VERSION)
}

/// `None` for what no node of ours wrote.
pub(super) fn read_subscription(mut bytes: &[u8]) -> Option<Subscription> {
    if bytes.try_get_i16().ok()? < SUBSCRIPTION_VERSION {
        return None;
    }
    let mut topics = Vec::new();
    for _ in 0..bytes.try_get_i32().ok()? {
        topics.push(read_text(&mut bytes)?);
    }
    if topics.is_empty() {
        return None;
    }
    if bytes.try_get_i32().ok()? != 2 {
        return None;
    }
    let partitions = bytes.try_get_u16().ok()?;
    let owned = read_slots(&mut bytes, &topics, partitions)?;
    let generation = bytes.try_get_i32().ok()?;
    Some(Subscription { topics, partitions, generation, owned })
}

/// `each`: partitions of each topic.
pub(super) fn write_assignment(topics: &[String], each: u16, share: &BTreeSet<u16>) -> Bytes {
    let assigned = topics.iter().enumerate().map(|(at, topic)| {
        AssignedPartitions::default()
            .with_topic(TopicName(StrBytes::from_string(topic.clone())))
            .with_partitions(indexes(share, at, each))
    });
    let assigned = assigned.collect();
    let message = ConsumerProtocolAssignment::default().with_assigned_partitions(assigned);
    write(&message, ASSIGNMENT_VERSION)
}

/// Slots that are assigned of these topics. No bytes are none; `None` if they can't be read.
pub(super) fn read_assignment(
    mut bytes: &[u8],
    topics: &[String],
    each: u16,
) -> Option<BTreeSet<u16>> {
    if bytes.is_empty() {
        return Some(BTreeSet::new());
    }
    bytes.try_get_i16().ok()?;
    read_slots(&mut bytes, topics, each)
}

/// The partitions of the topic at that place, of all that these slots stand for.
fn indexes(slots: &BTreeSet<u16>, topic_at: usize, each: u16) -> Vec<i32> {
    let of_topic = (0..each)
        .filter(|index| slot(topic_at, *index, each).is_some_and(|slot| slots.contains(&slot)));
    of_topic.map(i32::from).collect()
}

fn write(message: &impl Encodable, version: i16) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(version);
    message.encode(&mut out, version).expect("names and lists that fit");
    out.freeze()
}

/// Topics, each with its partitions: the slots of those that are known.
fn read_slots(bytes: &mut &[u8], topics: &[String], each: u16) -> Option<BTreeSet<u16>> {
    let mut found = BTreeSet::new();
    for _ in 0..bytes.try_get_i32().ok()? {
        let name = read_text(bytes)?;
        let at = topics.iter().position(|topic| *topic == name);
        for _ in 0..bytes.try_get_i32().ok()? {
            let index = u16::try_from(bytes.try_get_i32().ok()?).ok();
            if let (Some(at), Some(index)) = (at, index.filter(|index| *index < each)) {
                found.extend(slot(at, index, each));
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
            topics: vec!["t".to_owned()],
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

        let (share, topic) = (BTreeSet::from([1, 8]), ["t".to_owned()]);
        let bytes = write_assignment(&topic, 9, &share);
        assert_eq!(read_assignment(&bytes, &topic, 9), Some(share));
        assert_eq!(read_assignment(&bytes, &topic, 8), Some(BTreeSet::from([1])));
        assert_eq!(read_assignment(&bytes, &["other".to_owned()], 9), Some(BTreeSet::new()));
        let mut rest = bytes;
        let version = rest.get_i16();
        let read = ConsumerProtocolAssignment::decode(&mut rest, version).expect("its own");
        assert_eq!(read.assigned_partitions[0].partitions, [1, 8]);
        assert_eq!(read_assignment(&[], &topic, 9), Some(BTreeSet::new()));
    }

    #[test]
    fn partitions_of_two_topics_are_told_apart() {
        let topics = ["t".to_owned(), "u".to_owned()];
        let both = Subscription { topics: topics.to_vec(), partitions: 4, ..subscription() };
        let both = Subscription { owned: BTreeSet::from([0, 3, 4, 7]), ..both };
        assert_eq!(read_subscription(&write_subscription(&both)), Some(both.clone()));
        let bytes = write_assignment(&topics, 4, &both.owned);
        assert_eq!(read_assignment(&bytes, &topics, 4), Some(both.owned));
        assert_eq!(read_assignment(&bytes, &topics[1..], 4), Some(BTreeSet::from([0, 3])));
        let mut rest = bytes;
        let version = rest.get_i16();
        let read = ConsumerProtocolAssignment::decode(&mut rest, version).expect("its own");
        let named: Vec<_> = read
            .assigned_partitions
            .iter()
            .map(|one| (one.topic.as_str(), one.partitions.clone()))
            .collect();
        assert_eq!(named, [("t", vec![0, 3]), ("u", vec![0, 3])]);
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
        assert_eq!(read_assignment(&many, &["t".to_owned()], 3), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_subscription(&bytes);
            let _ = read_assignment(&bytes, &["t".to_owned()], 3);
        }
    }
}
