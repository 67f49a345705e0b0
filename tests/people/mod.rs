//! Users of a node who know what they are to get, and check that they get it once and in order.

use std::collections::{BTreeMap, BTreeSet};

use corecast::base::partition_of_key;
use harness::node::Node;
use harness::sse::{Event, Stream};
use serde_json::{Value, json};

/// A partition, as far as one user knows them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    Own,
    Group(u16),
}

/// Contents by partition, each in its order.
pub type Contents = BTreeMap<Place, Vec<String>>;

pub struct User {
    pub name: String,
    partitions: u16,
    stream: Option<Stream>,
    cursor: Option<String>,
    pub expected: Contents,
    pub got: Contents,
}

impl User {
    /// One of a node whose topics have so many partitions.
    pub fn new(number: usize, partitions: u16) -> Self {
        let name = format!("user-{number}");
        let (expected, got) = (Contents::new(), Contents::new());
        Self { name, partitions, stream: None, cursor: None, expected, got }
    }

    pub fn connect(&mut self, node: &Node) {
        let query = format!("userId={}", self.name);
        let cursor = self.cursor.take();
        let fields: Vec<_> = cursor.iter().map(|cursor| ("last-event-id", &**cursor)).collect();
        self.stream = Some(node.stream_with(&query, &fields));
    }

    /// Reads one message, which must be the next one of its partition.
    pub fn read(&mut self) {
        let stream = self.stream.as_mut().expect("connected");
        let message = stream.message();
        let place = place_of(&message, self.partitions);
        let got = self.got.entry(place).or_default();
        got.push(message.content().to_owned());
        let expected = self.expected.get(&place).map_or(&[][..], Vec::as_slice);
        assert!(expected.starts_with(got), "{} got {got:?} of {expected:?}", self.name);
    }

    pub fn read_all(&mut self) {
        let count = |contents: &Contents| contents.values().map(Vec::len).sum::<usize>();
        while count(&self.got) < count(&self.expected) {
            self.read();
        }
    }

    pub fn leave(&mut self) {
        self.cursor = self.stream.take().and_then(|stream| stream.last_id);
    }
}

fn group_partition(created: &Value, partitions: u16) -> u16 {
    let id = created["broadcastId"].as_u64().or_else(|| created["id"].as_u64()).expect("an id");
    partition_of_key(id.to_string().as_bytes(), partitions)
}

fn place_of(message: &Event, partitions: u16) -> Place {
    match &message.data["userId"] {
        Value::Null => Place::Group(group_partition(&message.data, partitions)),
        _ => Place::Own,
    }
}

/// Something for everybody; returns the partition that it went to.
pub fn say(node: &Node, users: &mut [User], content: &str) -> u16 {
    let partition = group_partition(&node.say(content), users[0].partitions);
    for user in users {
        let contents = user.expected.entry(Place::Group(partition)).or_default();
        contents.push(content.to_owned());
    }
    partition
}

pub fn tell(node: &Node, user: &mut User, content: &str) {
    node.create(&json!({
        "content": content, "targetType": "SELECTED", "targetIds": [user.name]
    }));
    user.expected.entry(Place::Own).or_default().push(content.to_owned());
}

/// Something last in every partition: what came twice, or to the wrong one, has come before it.
pub fn close_all_partitions(node: &Node, users: &mut [User], phase: usize) {
    let mut open: BTreeSet<u16> = (0..users[0].partitions).collect();
    for number in 0.. {
        open.remove(&say(node, users, &format!("{phase} last {number}")));
        if open.is_empty() {
            break;
        }
    }
    for user in users {
        let content = format!("{phase} last of {}", user.name);
        tell(node, user, &content);
    }
}
