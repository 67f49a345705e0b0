//! Records as the node itself publishes them: 200 bytes of content.
#![allow(dead_code)] // each benchmark uses a part of it

use std::time::Duration;

use bytes::Bytes;
use corecast::base::{BroadcastId, EventType, Priority, TargetType, Topic, partition_of_key};
use corecast::ports::{Clock as _, NewRecord, SystemClock};
use corecast::wire::record::{OutgoingRecord, event_id};

const CONTENT_BYTES: usize = 200;
const MARK: &str = "n-";
const DIGITS: usize = 8;

/// For whom a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum For<'a> {
    User(&'a str),
    Role(&'a str),
    All,
}

/// A record whose content begins with its number. No two have the same event id.
pub fn record(number: usize, audience: For<'_>) -> NewRecord {
    let broadcast = broadcast(number);
    let mut content = format!("{MARK}{number:0DIGITS$} ");
    content.extend(std::iter::repeat_n('x', CONTENT_BYTES - content.len()));
    let (user, target, topic, key) = match audience {
        For::User(user) => (Some(user), TargetType::Selected, Topic::Selected, user.to_owned()),
        For::Role(_) => (None, TargetType::Role, Topic::Group, broadcast.get().to_string()),
        For::All => (None, TargetType::All, Topic::Group, broadcast.get().to_string()),
    };
    let role = if let For::Role(role) = audience { Some([role.to_owned()]) } else { None };
    let now = SystemClock.wall();
    let outgoing = OutgoingRecord {
        event_id: event_id(broadcast, user, EventType::Created),
        broadcast_id: broadcast,
        user_id: user,
        event_type: EventType::Created,
        pod_id: "node-1",
        timestamp: now,
        correlation_id: Some("7a7d68ec-d4ae-5055-b6e9-9ed74513a5b2"),
        message: Some(&content),
        error_details: None,
        fire_and_forget: false,
        target_type: Some(target),
        target_ids: role.as_ref().map(|role| &role[..]),
        sender_id: Some("ops-1"),
        sender_name: Some("Operations"),
        priority: Some(Priority::Normal),
        category: Some("News"),
        created_at: Some(now),
        scheduled_at: None,
        expires_at: Some(now.plus(Duration::from_secs(30 * 24 * 3_600))),
        simulate_failure: false,
        attempt: 0,
        after: None,
    };
    let value = Bytes::from(outgoing.to_json());
    NewRecord { topic, key: key.into(), value, headers: Vec::new() }
}

fn broadcast(number: usize) -> BroadcastId {
    BroadcastId::new(1_000_000 + number as u64).expect("small")
}

/// Where a record for a group stands.
pub fn group_partition(number: usize, partitions: u16) -> u16 {
    partition_of_key(broadcast(number).get().to_string().as_bytes(), partitions)
}

/// The number of the record whose MESSAGE this is.
pub fn number_of(block: &[u8]) -> Option<usize> {
    const FIELD: &[u8] = b"\"content\":\"n-";
    let at = block.windows(FIELD.len()).position(|part| part == FIELD)? + FIELD.len();
    std::str::from_utf8(block.get(at..at + DIGITS)?).ok()?.parse().ok()
}
