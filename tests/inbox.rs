//! What waits for users who are not here: targeted messages, and group broadcasts that they have
//! not been served, in one order that can be taken up in the middle.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::http;
use harness::node::{Node, ask};
use harness::on_each_runtime;
use harness::runtime::Runtime;
use harness::sse::{Event, Item, Stream, request};
use harness::wait;
use serde_json::json;

on_each_runtime!(
    messages_wait_for_a_user_who_is_not_here,
    what_has_arrived_does_not_come_again,
    a_backlog_that_breaks_off_goes_on_where_it_was,
    group_broadcasts_come_once_to_who_is_in_their_audience,
    nothing_live_comes_before_the_backlog,
    only_what_is_kept_and_has_not_ended_waits,
    a_long_backlog_comes_in_pieces,
    who_comes_back_at_once_gets_nothing_again,
    a_client_that_goes_in_its_backlog_costs_nothing,
    a_flood_of_connects_makes_no_flood_of_threads,
);

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");
const LONG: Duration = Duration::from_secs(30);

fn start(runtime: Runtime) -> Node {
    Node::start(PROGRAM, &[runtime.set()])
}

fn send(node: &Node, user: &str, content: &str) {
    node.create(&json!({"content": content, "targetType": "SELECTED", "targetIds": [user]}));
}

/// Contents of the next so many messages.
fn contents(stream: &mut Stream, many: usize) -> Vec<String> {
    (0..many).map(|_| stream.message().content().to_owned()).collect()
}

/// Opens streams without a cursor until nothing waits for the user any more.
fn wait_until_nothing_waits(node: &Node, query: &str) {
    wait::until_true("all is noted as delivered", LONG, || {
        let mut stream = node.stream(query);
        let marker = format!("marker {}", uuid::Uuid::new_v4());
        node.say(&marker);
        let before = stream.contents_until(&marker);
        before.iter().all(|content| content.starts_with("marker "))
    });
}

fn messages_wait_for_a_user_who_is_not_here(runtime: Runtime) {
    let mut node = start(runtime);
    let sent: Vec<String> = (0..20).map(|number| format!("offline {number}")).collect();
    for content in &sent {
        send(&node, "offline", content);
    }
    // Those of somebody else are none of his.
    send(&node, "another", "for another");
    for how in ["at once", "after a crash"] {
        let mut stream = Stream::open(node.public, &ask("userId=offline", &[]));
        stream.connected();
        assert_eq!(contents(&mut stream, sent.len()), sent, "{how}");
        // Only what has been read can have been acknowledged: this peer read nothing of it.
        if how == "at once" {
            drop(stream);
            node.crash();
        }
    }
}

fn what_has_arrived_does_not_come_again(runtime: Runtime) {
    let node = start(runtime);
    for number in 0..3 {
        send(&node, "arrived", &format!("first {number}"));
    }
    let mut stream = node.stream("userId=arrived");
    assert_eq!(contents(&mut stream, 3), ["first 0", "first 1", "first 2"]);
    send(&node, "arrived", "live");
    assert_eq!(stream.message().content(), "live");
    wait_until_nothing_waits(&node, "userId=arrived");
    // A device with a cursor from before goes by that.
    send(&node, "arrived", "later");
    let markers = stream.contents_until("later");
    assert!(markers.iter().all(|content| content.starts_with("marker ")), "{markers:?}");
    wait_until_nothing_waits(&node, "userId=arrived");
}

fn a_backlog_that_breaks_off_goes_on_where_it_was(runtime: Runtime) {
    let node = start(runtime);
    let sent: Vec<String> = (0..8).map(|number| format!("piece {number}")).collect();
    for (number, content) in sent.iter().enumerate() {
        if number % 2 == 0 {
            send(&node, "broken", content);
        } else {
            let body = json!({"content": content, "targetType": "ROLE", "targetIds": ["piece"]});
            node.create(&body);
        }
    }
    node.wait_until_kept();
    let query = "userId=broken&roles=piece";
    let mut whole = Stream::open(node.public, &ask(query, &[]));
    let mut cursors = vec![whole.connected().1.id.expect("CONNECTED has one")];
    let mut order = Vec::new();
    for _ in &sent {
        let message = whole.message();
        order.push(message.content().to_owned());
        cursors.push(message.id.expect("a message has one"));
    }
    drop(whole);
    let mut sorted = order.clone();
    sorted.sort();
    assert_eq!(sorted, sent, "each once");
    // From every place in it, though the node's peer has acknowledged all of it.
    for (place, cursor) in cursors.iter().enumerate() {
        let fields = [("last-event-id", cursor.as_str())];
        let mut resumed = Stream::open(node.public, &ask(query, &fields));
        let (_, connected) = resumed.connected();
        assert_eq!(connected.id.as_ref(), Some(cursor), "CONNECTED carries what was presented");
        assert_eq!(contents(&mut resumed, sent.len() - place), order[place..], "from {place}");
        let marker = format!("marker {place}");
        send(&node, "broken", &marker);
        // Those of the places before are behind it in the log.
        let before = resumed.contents_until(&marker);
        let others = (0..place).map(|place| format!("marker {place}"));
        assert!(others.eq(before), "nothing twice, from {place}");
    }
}

fn group_broadcasts_come_once_to_who_is_in_their_audience(runtime: Runtime) {
    let node = start(runtime);
    node.say("to all");
    node.create(&json!({"content": "to devs", "targetType": "ROLE", "targetIds": ["dev"]}));
    let mut dev = node.stream("userId=dana&roles=dev");
    let mut both = contents(&mut dev, 2);
    both.sort();
    assert_eq!(both, ["to all", "to devs"]);
    let mut guest = node.stream("userId=gus&roles=guest");
    assert_eq!(guest.message().content(), "to all");
    node.say("marker 1");
    assert_eq!(guest.message().content(), "marker 1");
    drop((dev, guest));
    // How far they had been served is known, though they come without a cursor.
    wait_until_nothing_waits(&node, "userId=dana&roles=dev");
    wait_until_nothing_waits(&node, "userId=gus&roles=guest");
}

fn nothing_live_comes_before_the_backlog(runtime: Runtime) {
    let node = start(runtime);
    let waits: Vec<String> = (0..200).map(|number| format!("waits {number}")).collect();
    for content in &waits {
        send(&node, "busy", content);
    }
    node.wait_until_kept();
    let mut stream = Stream::open(node.public, &ask("userId=busy", &[]));
    let live: Vec<String> = (0..20).map(|number| format!("live {number}")).collect();
    for content in &live {
        send(&node, "busy", content);
    }
    stream.connected();
    let all: Vec<Event> = (0..220).map(|_| stream.message()).collect();
    let got: Vec<&str> = all.iter().map(Event::content).collect();
    let sent: Vec<&str> = waits.iter().chain(&live).map(String::as_str).collect();
    assert_eq!(got, sent);
}

fn only_what_is_kept_and_has_not_ended_waits(runtime: Runtime) {
    let node = start(runtime);
    let soon = jiff::Timestamp::now() + Duration::from_secs(1);
    for (content, more) in [
        ("forgotten", json!({"fireAndForget": true})),
        ("ended", json!({"expiresAt": soon.to_string()})),
        ("kept", json!({})),
    ] {
        let mut body =
            json!({"content": content, "targetType": "SELECTED", "targetIds": ["picky"]});
        let more = more.as_object().cloned().expect("an object");
        body.as_object_mut().expect("an object").extend(more);
        node.create(&body);
    }
    node.wait_until_kept();
    wait::until_true("it has ended", LONG, || jiff::Timestamp::now() > soon);
    let mut stream = node.stream("userId=picky");
    // That it has ended may stand behind the checkpoint, and is told whoever comes.
    let mut next = || loop {
        let event = stream.next_event().expect("the stream goes on");
        if event.name != "MESSAGE_REMOVED" {
            return event.content().to_owned();
        }
    };
    assert_eq!(next(), "kept");
    send(&node, "picky", "marker");
    assert_eq!(next(), "marker");
}

fn a_long_backlog_comes_in_pieces(runtime: Runtime) {
    let node = start(runtime);
    const MESSAGES: usize = 1_200;
    let users: Vec<String> = vec!["patient".to_owned()];
    for number in 0..MESSAGES {
        let body = json!({"content": number.to_string(), "targetType": "SELECTED",
            "targetIds": users});
        node.create(&body);
    }
    node.wait_until_kept();
    let mut got = Vec::new();
    let mut cursor: Option<String> = None;
    let mut streams = 0;
    while got.len() < MESSAGES {
        streams += 1;
        let fields: Vec<(&str, &str)> =
            cursor.iter().map(|cursor| ("last-event-id", cursor.as_str())).collect();
        let mut stream = Stream::open(node.public, &ask("userId=patient", &fields));
        stream.connected();
        while got.len() < MESSAGES {
            match stream.next_item() {
                Item::Event(event) => got.push(event.content().to_owned()),
                Item::Id(_) | Item::Comment(_) | Item::Retry(_) => {}
                Item::End(_) => break,
            }
        }
        cursor = stream.last_id.clone();
    }
    let expected: Vec<String> = (0..MESSAGES).map(|number| number.to_string()).collect();
    assert_eq!(got, expected);
    assert_eq!(streams, 2, "it comes in two pieces");
    let continued = || node.metric_of("corecast_stream_closes_total", "reason=\"continues\"");
    wait::until_true("that is counted", LONG, || continued() == Some(1.0));
}

fn who_comes_back_at_once_gets_nothing_again(runtime: Runtime) {
    let node = start(runtime);
    let query = "userId=reload&roles=dev";
    let mut gone = Vec::new();
    for round in 0..20 {
        let body = json!({"content": "to devs", "targetType": "ROLE", "targetIds": ["dev"]});
        let created = node.create(&body);
        let mut stream = node.stream(query);
        assert_eq!(stream.message().data["broadcastId"], created["id"], "round {round}");
        // As a page that is loaded again does. What it has read is acknowledged with its end; a
        // reset, which the kernel sends for bytes that nobody read, would acknowledge nothing.
        stream.connection().finish_sending();
        gone.push(stream);
    }
}

fn a_client_that_goes_in_its_backlog_costs_nothing(runtime: Runtime) {
    let node = start(runtime);
    for _ in 0..20 {
        node.say(&"x".repeat(60_000));
    }
    node.wait_until_kept();
    let mut narrow = http::Connection::narrow(node.public);
    let ask = ask("userId=gone", &[]);
    narrow.send(&request(node.public, &ask)).expect("taken");
    wait::until_true("a message is out, and the rest can't be", LONG, || {
        node.metric("corecast_sent_bytes_total").is_some_and(|bytes| bytes > 60_000.0)
    });
    let turns = || node.metric("corecast_shard_turn_seconds_count").expect("they are counted");
    let before = turns();
    drop(narrow);
    wait::until_true("the node has noticed", LONG, || node.metric("corecast_streams") == Some(0.0));
    // What a shard does while it should do nothing.
    wait::until_due(Instant::now() + Duration::from_secs(1));
    let turned = turns() - before;
    assert!(turned < 1_000.0, "{turned} turns");
}

/// What waits for each of them is read from the disk, some at a time.
fn a_flood_of_connects_makes_no_flood_of_threads(runtime: Runtime) {
    let node = start(runtime);
    let threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", node.process.id()));
        tasks.expect("it runs").count()
    };
    let before = threads();
    // Heads that are all there before the node reads the first of them.
    node.process.freeze();
    let streams: Vec<TcpStream> = (0..1_000)
        .map(|number| {
            let mut socket = TcpStream::connect(node.public).expect("somebody listens");
            let query = format!("userId=flood-{number}");
            let head = request(node.public, &ask(&query, &[]));
            socket.write_all(&head).expect("it goes out");
            socket
        })
        .collect();
    node.process.thaw();
    let mut most = before;
    wait::until_true("all are served", LONG, || {
        most = most.max(threads());
        node.metric("corecast_streams") == Some(streams.len() as f64)
    });
    println!("{before} threads before, {most} at most");
    assert!(most < before + 20, "{most} threads, {before} before");
}
