//! P4, nothing after cancel: once a cancel is answered, no write of the broadcast begins on any
//! node, be it frozen meanwhile, killed, or cut off from what tells it; MESSAGE_REMOVED follows.
//! What one node does of it is in `tests/cancel.rs`.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::cable::{Cables, Side};
use harness::http::{self, Connection, Response};
use harness::node::{Node, ask};
use harness::sse::{Event, Item, Stream};
use harness::wait;
use serde_json::{Value, json};

use crate::real::{LONG, PROGRAM, Place, is_missing, is_without_cables};
use crate::world::{self, World};

const NODES: usize = 3;
/// More than the sockets of a reader who stands still and has a narrow one take.
const LARGE: usize = 60_000;
const MANY: usize = 60;
/// Cancels that are timed.
const TIMED: usize = 60;

/// Three nodes of one fleet.
fn start(world: &World) -> (Place, Vec<Node>) {
    let place = world.place();
    let nodes: Vec<Node> = (0..NODES).map(|_| Node::launch(PROGRAM, &sets(&place))).collect();
    nodes.iter().for_each(wait_until_ready);
    (place, nodes)
}

fn sets(place: &Place) -> Vec<&str> {
    [&place.sets()[..], &["log.replication=3", "store.replication=3"]].concat()
}

fn wait_until_ready(node: &Node) {
    wait::until_true("a node is ready", LONG, || node.get("/health/ready").status == 200);
}

fn cancel(node: &Node, id: &str) -> Response {
    http::call(node.admin, "DELETE", &format!("/api/admin/broadcasts/{id}"), &[], None)
}

fn create(node: &Node, content: &str, audience: &Value) -> String {
    let mut body = audience.clone();
    body["content"] = json!(content);
    node.create(&body)["id"].to_string()
}

fn word(event: &Event) -> String {
    match event.name.as_str() {
        "MESSAGE" => event.content().split(' ').next().unwrap_or_default().to_owned(),
        name => format!("{name} {}", event.data["broadcastId"]),
    }
}

/// What comes until a message that says `marker`.
fn until(stream: &mut Stream, marker: &str) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let event = stream.next_event().expect("the stream goes on");
        if event.content() == marker {
            return told;
        }
        told.push(word(&event));
    }
}

/// Reads until a message of each partition of the group topic has said `marker`: what else is on
/// its way has come before it.
fn until_all(node: &Node, stream: &mut Stream, audience: &Value, marker: &str) -> Vec<String> {
    let mut told = Vec::new();
    // As many as make it likely that every partition has some, each a content of its own.
    for number in 0..24 {
        create(node, &format!("{marker}-{number}"), audience);
    }
    let mut left = 24;
    while left > 0 {
        let word = word(&stream.next_event().expect("the stream goes on"));
        if word.starts_with(marker) { left -= 1 } else { told.push(word) }
    }
    told
}

/// Two readers of messages at a node: one has got all, one stands still and is behind.
struct Readers {
    quick: Stream,
    slow: Option<Stream>,
    reading: Option<JoinHandle<Vec<String>>>,
    audience: Value,
    ids: Vec<String>,
}

impl Readers {
    /// At the second of these nodes; messages are created by the first one.
    fn behind(nodes: &[Node]) -> Self {
        let audience = json!({"targetType": "ROLE", "targetIds": ["slow"]});
        let (narrow, asks) =
            (Connection::narrow(nodes[1].public), ask("userId=slow&roles=slow", &[]));
        let mut slow = Stream::over(narrow, nodes[1].public, &asks).expect("an answer");
        slow.connected();
        let mut quick = nodes[1].stream("userId=quick&roles=slow");
        let padding = "x".repeat(LARGE);
        let mut ids = Vec::new();
        for number in 0..MANY {
            ids.push(create(&nodes[0], &format!("m{number} {padding}"), &audience));
            assert_eq!(word(&quick.next_event().expect("it goes on")), format!("m{number}"));
        }
        Self { quick, slow: Some(slow), reading: None, audience, ids }
    }

    /// Who stood still reads all that comes.
    fn go_on(&mut self) {
        let mut slow = self.slow.take().expect("it stands still");
        self.reading = Some(thread::spawn(move || until(&mut slow, "the end")));
    }

    /// Some of those messages that the slow one does not have yet.
    fn cancel_some(&self, node: &Node) -> Vec<String> {
        let cancelled: Vec<String> = self.ids.iter().rev().step_by(2).take(5).cloned().collect();
        let asked = Instant::now();
        for id in &cancelled {
            assert_eq!(cancel(node, id).status, 204);
        }
        println!("five cancels took {:?}", asked.elapsed());
        cancelled
    }

    /// Once the second node is there again: of what was cancelled, nobody got more than word of it.
    fn assert_nothing_began(mut self, nodes: &[Node], cancelled: &[String]) {
        wait_until_ready(&nodes[1]);
        let mut told = until_all(&nodes[1], &mut self.quick, &self.audience, "last");
        told.retain(|told| told.starts_with("MESSAGE_REMOVED"));
        for id in cancelled {
            assert!(told.contains(&format!("MESSAGE_REMOVED {id}")), "{id}");
        }
        create(&nodes[0], "the end", &json!({"targetType": "SELECTED", "targetIds": ["slow"]}));
        let reading = self.reading.expect("it goes on");
        let told = reading.join().expect("it reads to the end");
        for (number, id) in self.ids.iter().enumerate() {
            let is_cancelled = cancelled.contains(id);
            assert_eq!(!told.contains(&format!("m{number}")), is_cancelled, "m{number}");
        }
    }
}

#[test]
fn healthy_nodes_answer_a_cancel_at_once() {
    if is_missing() {
        return;
    }
    let world = world::shared();
    let (_, nodes) = start(&world);
    let audience = json!({"targetType": "ROLE", "targetIds": ["timed"]});
    let mut streams: Vec<Stream> =
        (0..NODES).map(|n| nodes[n].stream(&format!("userId=t{n}&roles=timed"))).collect();
    // Who has just joined does not know the others.
    let began = Instant::now();
    let mut took: Vec<Duration> = Vec::new();
    let mut removed: Vec<String> = Vec::new();
    while took.len() < TIMED {
        let id = create(&nodes[0], "timed", &audience);
        let asked = Instant::now();
        assert_eq!(cancel(&nodes[took.len() % NODES], &id).status, 204);
        if began.elapsed() > Duration::from_secs(3) {
            took.push(asked.elapsed());
        }
        removed.push(format!("MESSAGE_REMOVED {id}"));
    }
    took.sort();
    println!("cancels of three nodes: p50 {:?}, p99 {:?}", took[TIMED / 2], took[TIMED - 1]);
    // Silence alone would have taken three seconds.
    assert!(took[TIMED / 2] < Duration::from_secs(2), "{took:?}");
    for (node, stream) in nodes.iter().zip(&mut streams) {
        let told = until_all(node, stream, &audience, "last");
        for removal in &removed {
            assert_eq!(told.iter().filter(|told| *told == removal).count(), 1, "{removal}");
        }
    }
}

#[test]
fn nothing_begins_on_a_node_that_was_frozen() {
    if is_missing() {
        return;
    }
    let world = world::shared();
    let (_, nodes) = start(&world);
    let mut readers = Readers::behind(&nodes);
    nodes[1].process.freeze();
    // The reader takes all that is on its way, so that the node could write as soon as it wakes.
    readers.go_on();
    let cancelled = readers.cancel_some(&nodes[0]);
    nodes[1].process.thaw();
    readers.assert_nothing_began(&nodes, &cancelled);
}

/// Its clients are still there, and it can write to them.
#[test]
fn nothing_begins_on_a_node_that_is_cut_off() {
    if is_missing() || is_without_cables() {
        return;
    }
    let world = world::shared();
    let (place, mut nodes) = start(&world);
    nodes[1] = Node::launch_behind(Cables::new(PROGRAM), &sets(&place));
    wait_until_ready(&nodes[1]);
    let mut readers = Readers::behind(&nodes);
    nodes[1].pull(Side::Backends);
    let cancelled = readers.cancel_some(&nodes[0]);
    readers.go_on();
    wait::until_true("readiness says why", LONG, || {
        nodes[1].get("/health/ready").text().contains("control")
    });
    for _ in 0..3 {
        let item = readers.quick.next_item();
        assert!(matches!(item, Item::Comment(_)), "only heartbeats come: {item:?}");
    }
    nodes[1].plug_in(Side::Backends);
    readers.assert_nothing_began(&nodes, &cancelled);
}

#[test]
fn a_node_that_starts_knows_what_has_ended_and_a_killed_one_holds_no_cancel_up() {
    if is_missing() {
        return;
    }
    let world = world::shared();
    let (_, mut nodes) = start(&world);
    let audience = json!({"targetType": "ROLE", "targetIds": ["later"]});
    let mut before = nodes[2].stream("userId=later&roles=later");
    let first = create(&nodes[0], "first", &audience);
    assert_eq!(word(&before.next_event().expect("it goes on")), "first");
    let cursor = before.last_id.clone().expect("an id");
    nodes[2].process.kill();
    let (kept, second) =
        (create(&nodes[0], "kept", &audience), create(&nodes[0], "second", &audience));
    for id in [&first, &second] {
        let asked = Instant::now();
        assert_eq!(cancel(&nodes[1], id).status, 204);
        println!("a cancel with a node killed took {:?}", asked.elapsed());
    }
    nodes[2].launch_again();
    wait_until_ready(&nodes[2]);
    let fields = [("last-event-id", cursor.as_str())];
    let mut back = nodes[2].stream_with("userId=later&roles=later", &fields);
    let told = until_all(&nodes[2], &mut back, &audience, "last");
    let is_told = |id: &str| told.contains(&format!("MESSAGE_REMOVED {id}"));
    assert!(is_told(&first) && !told.contains(&"second".to_owned()), "{told:?}");
    assert!(told.contains(&"kept".to_owned()) && !is_told(&kept), "{told:?}");
}

#[test]
fn a_cancel_that_can_not_be_told_is_not_answered_as_done() {
    if is_missing() {
        return;
    }
    let world = world::alone();
    let (_, nodes) = start(&world);
    let audience = json!({"targetType": "ALL"});
    let mut stream = nodes[0].stream("userId=u");
    let id = create(&nodes[0], "m", &audience);
    assert_eq!(word(&stream.next_event().expect("it goes on")), "m");
    world.freeze_brokers();
    let message = cancel(&nodes[0], &id).error(503);
    assert!(message.contains("CANCELLED") && message.contains("ask again"), "{message}");
    let shown = nodes[0].get(&format!("/api/admin/broadcasts/{id}")).expect_json();
    assert_eq!(shown["status"], "CANCELLED", "it stands");
    wait::until_true("readiness says why", LONG, || {
        nodes[0].get("/health/ready").text().contains("control")
    });
    world.thaw_brokers();
    nodes.iter().for_each(wait_until_ready);
    wait::until_true("it is confirmed", LONG, || cancel(&nodes[1], &id).status == 204);
    let told = until_all(&nodes[0], &mut stream, &audience, "last");
    assert!(told.contains(&format!("MESSAGE_REMOVED {id}")), "{told:?}");
    assert!(!told.contains(&"m".to_owned()), "{told:?}");
}

/// The control topic has one leader; while it has none, cancels are not confirmed.
#[test]
fn cancels_outlive_the_leader_of_the_control_topic() {
    if is_missing() {
        return;
    }
    let mut world = world::alone();
    let (place, nodes) = start(&world);
    let audience = json!({"targetType": "ALL"});
    let mut stream = nodes[0].stream("userId=u");
    let leader = world.kafka.leader(&place.control, 0).expect("a leader");
    let mut removed = Vec::new();
    for round in 0..4 {
        if round == 1 {
            world.kill_broker(leader);
        }
        let mut created = None;
        wait::until_true("it is created", LONG, || {
            let mut body = audience.clone();
            body["content"] = json!(format!("m{round}"));
            created = nodes[0].try_create(&body).filter(|answer| answer.status == 200);
            created.is_some()
        });
        let id = created.expect("by now").json()["id"].to_string();
        let asked = Instant::now();
        wait::until_true("it is confirmed", LONG, || cancel(&nodes[1], &id).status == 204);
        println!("round {round}: a cancel took {:?}", asked.elapsed());
        removed.push(format!("MESSAGE_REMOVED {id}"));
    }
    let told = until_all(&nodes[0], &mut stream, &audience, "last");
    assert!(removed.iter().all(|removal| told.contains(removal)), "{told:?}");
    world.restart_killed();
}
