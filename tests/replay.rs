//! What came after a cursor that a shard's ring does not reach down to: the store has it, and no
//! client is told of a gap.

use std::collections::BTreeSet;
use std::time::Instant;

use corecast::base::partition_of_key;
use corecast::wire::cursor::{Cursor, CursorParts};
use harness::http::{Connection, PATIENCE};
use harness::node::{Node, ask};
use harness::on_each_runtime;
use harness::runtime::Runtime;
use harness::sse::{Event, Item, Stream, request};
use harness::wait;
use serde_json::{Value, json};

on_each_runtime!(
    a_cursor_from_before_the_ring_gets_what_came_after_it,
    a_reader_that_the_ring_overtakes_goes_on_from_the_log,
    a_forged_cursor_gets_what_is_for_its_user_once,
    a_cursor_of_another_user_counts_for_nothing,
    what_is_for_who_is_here_is_not_replayed,
    a_crowd_is_served_by_the_log,
);

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");
const QUERY: &str = "userId=late&roles=dev";
/// Events that a shard of the node remembers.
const RING: usize = 4;

fn start(runtime: Runtime) -> Node {
    Node::start(PROGRAM, &[runtime.set(), &format!("limits.ring_frames_max={RING}")])
}

/// To the user, to his role, to all, or to another.
fn send(node: &Node, number: usize, content: &str) -> Value {
    let mut body = match number % 4 {
        0 => json!({"targetType": "SELECTED", "targetIds": ["late"]}),
        1 => json!({"targetType": "ROLE", "targetIds": ["dev"]}),
        2 => json!({"targetType": "ALL"}),
        _ => json!({"targetType": "SELECTED", "targetIds": ["late", "another"]}),
    };
    body["content"] = json!(content);
    node.create(&body)
}

/// What is for nobody of this test, and what is not kept.
fn send_others(node: &Node) {
    for body in [
        json!({"content": "of another", "targetType": "SELECTED", "targetIds": ["another"]}),
        json!({"content": "of another role", "targetType": "ROLE", "targetIds": ["ops"]}),
        json!({"content": "for who is here", "targetType": "ALL", "fireAndForget": true}),
        json!({"content": "for him if he is here", "targetType": "SELECTED",
            "targetIds": ["late"], "fireAndForget": true}),
    ] {
        node.create(&body);
    }
}

/// A client that comes back with its cursor whenever its stream ends, as an EventSource does.
struct Client<'a> {
    node: &'a Node,
    is_narrow: bool,
    stream: Option<Stream>,
    cursor: Option<String>,
    /// Streams that ended behind CONNECTED.
    ended: usize,
    /// Its cursor is nobody's: it is given another.
    is_led: bool,
    gaps: usize,
}

impl<'a> Client<'a> {
    fn new(node: &'a Node, cursor: Option<&str>) -> Self {
        let cursor = cursor.map(str::to_owned);
        Self { node, is_narrow: false, stream: None, cursor, ended: 0, is_led: false, gaps: 0 }
    }

    /// What comes next; nothing but messages may, and GAP if its cursor is nobody's.
    fn message(&mut self) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(
                Instant::now() < deadline,
                "no message, though the client came again and again"
            );
            let Some(stream) = &mut self.stream else {
                self.stream = self.open();
                continue;
            };
            let item = stream.next_item();
            self.cursor.clone_from(&stream.last_id);
            match item {
                Item::Event(event) if event.name == "MESSAGE" => return event,
                Item::Event(event) if event.name == "GAP" && self.is_led => {
                    assert_eq!(event.data["reason"], "LOG_REPLACED", "{event:?}");
                    self.gaps += 1;
                }
                Item::Event(event) => panic!("a MESSAGE was to come, not {event:?}"),
                Item::Retry(retry) => assert!(retry < 1_000, "it is to come back soon: {retry}"),
                Item::End(_) => {
                    self.stream = None;
                    self.ended += 1;
                }
                Item::Comment(_) | Item::Id(_) => {}
            }
        }
    }

    /// A stream past its CONNECTED, unless the client is put off.
    fn open(&self) -> Option<Stream> {
        let cursor = self.cursor.as_deref();
        let fields: Vec<_> = cursor.map(|cursor| ("last-event-id", cursor)).into_iter().collect();
        let public = self.node.public;
        let connection =
            if self.is_narrow { Connection::narrow(public) } else { Connection::open(public) };
        let mut stream = Stream::over(connection, public, &ask(QUERY, &fields)).expect("an answer");
        assert!(matches!(stream.next_item(), Item::Retry(_)), "retry comes first");
        match stream.next_item() {
            Item::End(_) => None,
            Item::Event(event) if event.name == "CONNECTED" => {
                let is_same = cursor.is_none_or(|cursor| event.id.as_deref() == Some(cursor));
                let is_same = is_same || self.is_led && self.gaps == 0;
                assert!(is_same, "CONNECTED carries what was presented, not {:?}", event.id);
                Some(stream)
            }
            other => panic!("CONNECTED comes behind retry, not {other:?}"),
        }
    }

    fn messages(&mut self, many: usize) -> Vec<Event> {
        (0..many).map(|_| self.message()).collect()
    }

    /// Contents of the messages that come before this one.
    fn contents_until(&mut self, marker: &str) -> Vec<String> {
        let next = || self.message().content().to_owned();
        std::iter::repeat_with(next).take_while(|content| content != marker).collect()
    }
}

fn contents(events: &[Event]) -> Vec<&str> {
    events.iter().map(Event::content).collect()
}

fn a_cursor_from_before_the_ring_gets_what_came_after_it(runtime: Runtime) {
    let node = start(runtime);
    let mut device = Client::new(&node, None);
    device.stream = device.open();
    send(&node, 0, "before");
    let before = device.message();
    let sent: Vec<String> = (0..16).map(|number| format!("late {number}")).collect();
    for (number, content) in sent.iter().enumerate() {
        send(&node, number, content);
        send_others(&node);
    }
    // The last that are for who is here are out of the ring: from there they would come again.
    for _ in 0..RING {
        node.create(&json!({"content": "of another role", "targetType": "ROLE",
            "targetIds": ["ops"]}));
    }
    // His other device has had all of it, so that no row is PENDING.
    let mut had = 0;
    while had < sent.len() {
        had += usize::from(device.message().content().starts_with("late "));
    }
    node.wait_until_kept();
    let whole = Client::new(&node, before.id.as_deref()).messages(sent.len());
    let mut sorted: Vec<&str> = contents(&whole);
    sorted.sort_by_key(|content| content[5..].parse::<usize>().expect("a number"));
    assert_eq!(sorted, sent, "each once, and nothing else");
    for kind in 0..2 {
        let of_kind = |content: &&str| content[5..].parse::<usize>().expect("one") % 4 == kind * 3;
        let order: Vec<&str> = contents(&whole).into_iter().filter(of_kind).collect();
        let sent: Vec<&str> = sent.iter().map(String::as_str).filter(of_kind).collect();
        assert_eq!(order, sent, "his own partition in its order");
    }
    // From every place in it.
    for (place, event) in whole.iter().enumerate() {
        let mut resumed = Client::new(&node, event.id.as_deref());
        let rest = resumed.messages(sent.len() - place - 1);
        assert_eq!(contents(&rest), contents(&whole[place + 1..]), "from {place}");
        let marker = format!("marker {place}");
        send(&node, 0, &marker);
        let before = resumed.contents_until(&marker);
        let others = (0..place).map(|place| format!("marker {place}"));
        assert_eq!(before, others.collect::<Vec<_>>(), "nothing twice, from {place}");
    }
    assert_eq!(node.metric("corecast_gaps_total"), Some(0.0));
}

fn a_reader_that_the_ring_overtakes_goes_on_from_the_log(runtime: Runtime) {
    let node = start(runtime);
    let mut slow = Client { is_narrow: true, ..Client::new(&node, None) };
    slow.stream = slow.open();
    let mut said: usize = 0;
    let mut say = || {
        let padding = "x".repeat(60_000);
        send(&node, 0, &format!("{said} {padding}"));
        said += 1;
        said
    };
    wait::until("he is full", PATIENCE, || {
        say();
        node.metric("corecast_writes_blocked_total").filter(|blocked| *blocked > 0.0)
    });
    // So many that the ring has lost what he stands at.
    let said = (0..12).map(|_| say()).last().expect("some");
    node.wait_until_kept();
    let number = |event: &Event| event.content().split(' ').next()?.parse::<usize>().ok();
    let seen: Vec<_> = slow.messages(said).iter().map(number).collect();
    let all: Vec<_> = (0..said).map(Some).collect();
    assert_eq!(seen, all, "in order, nothing lost, nothing twice");
    assert_eq!(node.metric("corecast_replays_total"), Some(1.0), "he was overtaken");
    assert_eq!(slow.ended, 0, "and goes on where he is");
    assert_eq!(node.metric("corecast_gaps_total"), Some(0.0));
}

fn a_forged_cursor_gets_what_is_for_its_user_once(runtime: Runtime) {
    let node = start(runtime);
    let mut first = Client::new(&node, None);
    let sent: Vec<String> = (0..8).map(|number| format!("late {number}")).collect();
    for (number, content) in sent.iter().enumerate() {
        send(&node, number, content);
        send_others(&node);
    }
    let marker = "marker";
    send(&node, 0, marker);
    first.contents_until(marker);
    node.wait_until_kept();
    let last = first.cursor.expect("a message has one");
    let parsed = Cursor::parse(&last).expect("a cursor");
    let forge = |own: u64, group: u64| {
        let groups = vec![group; parsed.group.len()];
        let parts = CursorParts {
            shape: parsed.shape,
            at: parsed.at(),
            backlog: false,
            user: parsed.user,
            own_partition: parsed.own_partition,
            own,
            group: &groups,
            offset_max: own.max(group),
        };
        let mut text = Vec::new();
        parts.write(&mut text);
        String::from_utf8(text).expect("base64")
    };
    // One who says that he is ahead of the log is served what is of late, and told.
    for (own, group) in [(0, 0), (parsed.own, 0), (0, 1 << 40), (1 << 40, 0), (1 << 40, 1 << 40)] {
        let is_ahead = own.max(group) == 1 << 40;
        let mut stream =
            Client { is_led: is_ahead, ..Client::new(&node, Some(&forge(own, group))) };
        let marker = format!("marker {own} {group}");
        send(&node, 0, &marker);
        let mut got = stream.contents_until(&marker);
        got.retain(|content| content.starts_with("late "));
        let is_due = |number: &usize| is_ahead || own == 0 || matches!(number % 4, 1 | 2);
        let mut due: Vec<String> =
            (0..sent.len()).filter(is_due).map(|number| sent[number].clone()).collect();
        due.sort();
        got.sort();
        assert_eq!(got, due, "from {own} and {group}");
        assert_eq!(stream.gaps, usize::from(is_ahead), "from {own} and {group}");
    }
    // Nothing of it was believed: what comes next waits for whoever comes without a cursor.
    node.wait_until_kept();
    send(&node, 2, "to all");
    send(&node, 0, "to him");
    node.wait_until_kept();
    // What came within the last half second may come again to it.
    let mut fresh = Client::new(&node, None);
    let mut due = BTreeSet::from(["to all", "to him"]);
    while !due.is_empty() {
        due.remove(fresh.message().content());
    }
}

/// A browser whose user changes, and whose page has kept the id: also if both are in one partition.
fn a_cursor_of_another_user_counts_for_nothing(runtime: Runtime) {
    const PARTITIONS: u16 = 10;
    let node = start(runtime);
    let name = |number: usize| format!("user-{number}");
    let partition = |number| partition_of_key(name(number).as_bytes(), PARTITIONS);
    let is_like_first = |number: &usize| partition(*number) == partition(0);
    let alike = (1..).find(is_like_first).expect("endless");
    let apart = (1..).find(|number| !is_like_first(number)).expect("endless");
    for other in [alike, apart] {
        for (content, user) in [("his own", name(other)), ("of the first", name(0))] {
            let body = json!({"content": content, "targetType": "SELECTED", "targetIds": [user]});
            node.create(&body);
        }
        node.wait_until_kept();
        let mut first = node.stream(&format!("userId={}", name(0)));
        assert_eq!(first.message().content(), "of the first");
        let query = format!("userId={}", name(other));
        assert_eq!(node.resume(&query, &first).message().content(), "his own");
    }
}

fn what_is_for_who_is_here_is_not_replayed(runtime: Runtime) {
    // The ring has all of it.
    let node = Node::start(PROGRAM, &[runtime.set()]);
    let passing = |content: &str| {
        for body in [
            json!({"content": content, "targetType": "ALL", "fireAndForget": true}),
            json!({"content": content, "targetType": "SELECTED", "targetIds": ["late"],
                "fireAndForget": true}),
        ] {
            node.create(&body);
        }
    };
    let mut here = node.stream(QUERY);
    passing("at once");
    let got = [here.message(), here.message()];
    assert_eq!(contents(&got), ["at once", "at once"]);
    let last = here.last_id.clone();
    drop(here);
    passing("while he was away");
    send(&node, 0, "kept");
    let mut back = Client::new(&node, last.as_deref());
    assert_eq!(back.message().content(), "kept");
    passing("now that he is back");
    let got = [back.message(), back.message()];
    assert_eq!(contents(&got), ["now that he is back", "now that he is back"]);
}

/// The store has few turns, and what many need is read of the log once.
fn a_crowd_is_served_by_the_log(runtime: Runtime) {
    const CROWD: usize = 400;
    let node = start(runtime);
    let cursor = node.stream(QUERY).last_id.expect("CONNECTED has one");
    let sent: Vec<String> = (0..16).map(|number| format!("late {number:02}")).collect();
    for (number, content) in sent.iter().enumerate() {
        send(&node, number, content);
        send_others(&node);
    }
    node.wait_until_kept();
    // So that all of them stand before it at once.
    node.process.freeze();
    let mut crowd: Vec<Connection> = (0..CROWD)
        .map(|tab| {
            let query = format!("{QUERY}&connectionId=tab-{tab}");
            let mut connection = Connection::open(node.public);
            let fields = [("last-event-id", cursor.as_str())];
            let request = request(node.public, &ask(&query, &fields));
            connection.send(&request).expect("it is not full");
            connection
        })
        .collect();
    node.process.thaw();
    let deadline = Instant::now() + PATIENCE;
    let contents = |connection: &Connection| -> Vec<String> {
        let text = String::from_utf8(connection.buffer().to_vec()).expect("UTF-8");
        assert!(!text.contains("event: GAP"), "{text}");
        let contents = text.split("\"content\":\"").skip(1);
        contents.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect()
    };
    for connection in &mut crowd {
        while contents(connection).len() < sent.len() {
            connection.fill(deadline).expect("the stream goes on");
        }
        let mut got = contents(connection);
        got.sort_unstable();
        assert_eq!(got, sent, "each once, and nothing else");
    }
    let replayed = node.metric("corecast_replays_total").expect("it is counted");
    assert!(replayed >= (CROWD / 2) as f64, "{replayed} of {CROWD}");
    let read = node.metric("corecast_records_reread_total").expect("it is counted");
    // Of four messages one has two records; and what is for others.
    let records = (sent.len() / 4 * 5 + sent.len() * 4) as f64;
    assert!(read <= 2.0 * records, "{read}, and there are {records}");
}
