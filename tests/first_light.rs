//! A broadcast that is posted reaches every open stream of its audience, and nobody else's.

use std::collections::BTreeSet;
use std::sync::Arc;

use harness::http::is_instant;
use harness::node::{Node, Shared, ask};
use harness::on_each_runtime;
use harness::runtime::Runtime;
use harness::sse::{Ask, Item, Stream};
use serde_json::{Value, json};

on_each_runtime!(
    every_audience_gets_its_messages_and_nobody_else_does,
    a_message_has_the_fields_of_the_contract,
    every_tab_of_a_user_gets_all_in_order_once,
    a_stream_begins_as_the_contract_says,
    who_comes_back_with_a_cursor_gets_what_came_after_and_nothing_twice,
    what_is_no_cursor_of_this_log_is_no_error,
    a_quiet_stream_gets_heartbeats_and_with_the_tenth_its_cursor,
);

/// All tests of a runtime share a node, so each has users and words of its own.
fn node(runtime: Runtime) -> Arc<Node> {
    static SHARED: [Shared; 2] = [const { Shared::new() }; 2];
    SHARED[runtime as usize].get(|| start(runtime, &[]))
}

fn start(runtime: Runtime, sets: &[&str]) -> Node {
    Node::start(env!("CARGO_BIN_EXE_corecast"), &[&[runtime.set()], sets].concat())
}

const FIELDS: [&str; 16] = [
    "userMessageId",
    "broadcastId",
    "userId",
    "correlationId",
    "deliveryStatus",
    "readStatus",
    "deliveredAt",
    "readAt",
    "createdAt",
    "senderName",
    "content",
    "priority",
    "category",
    "broadcastCreatedAt",
    "scheduledAt",
    "expiresAt",
];

fn every_audience_gets_its_messages_and_nobody_else_does(runtime: Runtime) {
    let node = node(runtime);
    let members = "aud-ann&roles=aud-admin,aud-dev&groups=aud-north&products=aud-p1";
    let mut ann = node.stream(&format!("userId={members}"));
    let mut ben = node.stream("userId=aud-ben&roles=aud-dev&groups=aud-south");
    let mut guest = node.stream("userId=aud-guest");
    // Content, audience, and who is in it: ann, ben, guest.
    let cases: [(&str, Value, [bool; 3]); 9] = [
        ("all", json!({"targetType": "ALL"}), [true; 3]),
        ("role", targets("ROLE", &["aud-admin"]), [true, false, false]),
        ("roles", targets("ROLE", &["aud-admin", "aud-dev"]), [true, true, false]),
        ("group", targets("GROUP", &["aud-south", "aud-west"]), [false, true, false]),
        ("product", targets("PRODUCT", &["aud-p1"]), [true, false, false]),
        ("user", targets("SELECTED", &["aud-guest"]), [false, false, true]),
        ("users", targets("SELECTED", &["aud-ben", "aud-ann", "aud-ben"]), [true, true, false]),
        ("nobody", targets("ROLE", &["aud-north"]), [false; 3]),
        ("no user", targets("SELECTED", &["aud-admin"]), [false; 3]),
    ];
    let mut expected: [BTreeSet<String>; 3] = Default::default();
    for (content, mut body, members) in cases {
        body["content"] = json!(content);
        node.create(&body);
        for (expected, is_member) in expected.iter_mut().zip(members) {
            if is_member {
                expected.insert(content.to_owned());
            }
        }
    }
    for (stream, expected) in [&mut ann, &mut ben, &mut guest].into_iter().zip(expected) {
        assert_eq!(own_contents(&node, stream), expected);
    }
}

fn targets(r#type: &str, ids: &[&str]) -> Value {
    json!({"targetType": r#type, "targetIds": ids})
}

/// What this stream gets of its test, until all that was posted before now has surely come. Order
/// is that of each partition, so one marker is not enough: it may overtake, within the batch of
/// records that the node reads with it. The second is posted when the first is here, so it is of a
/// later batch.
fn own_contents(node: &Node, stream: &mut Stream) -> BTreeSet<String> {
    let mut contents = Vec::new();
    for _ in 0..2 {
        let marker = format!("marker {}", uuid::Uuid::new_v4());
        node.say(&marker);
        contents.extend(stream.contents_until(&marker));
    }
    contents.retain(|content| !content.starts_with("marker ") && !content.starts_with("other "));
    let set: BTreeSet<String> = contents.iter().cloned().collect();
    assert_eq!(set.len(), contents.len(), "nothing comes twice: {contents:?}");
    set
}

fn a_message_has_the_fields_of_the_contract(runtime: Runtime) {
    let node = node(runtime);
    let mut stream = node.stream("userId=fields-user");
    let body = json!({
        "senderId": "ops-1", "senderName": "Ops",
        "content": "other \"quoted\"\r\nid: forged\n\n é \u{2028}",
        "targetType": "SELECTED", "targetIds": ["fields-user"], "priority": "HIGH",
        "category": "Maintenance", "expiresAt": "2999-01-01T00:00:00Z",
    });
    let created = node.create(&body);
    let targeted = next_of(&mut stream, &created);
    assert!(targeted.id.is_some(), "a message carries the cursor after it");
    let data = &targeted.data;
    let mut names: Vec<&str> =
        data.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    let mut expected = FIELDS;
    expected.sort_unstable();
    assert_eq!(names, expected);
    let id = created["id"].as_u64().expect("an id");
    for (field, value) in [
        ("userMessageId", json!(format!("{id}:fields-user"))),
        ("broadcastId", json!(id)),
        ("userId", json!("fields-user")),
        ("correlationId", created["correlationId"].clone()),
        ("deliveryStatus", json!("PENDING")),
        ("readStatus", json!("UNREAD")),
        ("deliveredAt", Value::Null),
        ("readAt", Value::Null),
        ("senderName", json!("Ops")),
        ("content", body["content"].clone()),
        ("priority", json!("HIGH")),
        ("category", json!("Maintenance")),
        ("broadcastCreatedAt", created["createdAt"].clone()),
        ("scheduledAt", Value::Null),
        ("expiresAt", json!("2999-01-01T00:00:00.000Z")),
    ] {
        assert_eq!(data[field], value, "{field}");
    }
    assert!(is_instant(data["createdAt"].as_str()), "{data}");

    let created =
        node.create(&json!({"content": "other to all", "targetType": "ALL", "targetIds": null}));
    let group = next_of(&mut stream, &created);
    for field in ["userMessageId", "userId", "deliveredAt", "readAt", "senderName", "category"] {
        assert_eq!(group.data[field], Value::Null, "{field} of what a group audience shares");
    }
    assert_eq!(group.data["priority"], "NORMAL");
    assert_eq!(group.data["expiresAt"], created["expiresAt"], "the end that it was given");
}

/// The message of this broadcast; what the other tests say is passed over.
fn next_of(stream: &mut Stream, created: &Value) -> harness::sse::Event {
    loop {
        let message = stream.message();
        if message.data["broadcastId"] == created["id"] {
            return message;
        }
    }
}

fn every_tab_of_a_user_gets_all_in_order_once(runtime: Runtime) {
    let node = node(runtime);
    const MESSAGES: usize = 100;
    let mut tabs: Vec<Stream> = (0..3)
        .map(|tab| node.stream(&format!("userId=tabs-user&connectionId=tab-{tab}")))
        .collect();
    let sent: Vec<String> = (0..MESSAGES).map(|number| format!("tabs {number}")).collect();
    for content in &sent {
        node.create(&json!({
            "content": content, "targetType": "SELECTED", "targetIds": ["tabs-user"]
        }));
    }
    let mut ids = Vec::new();
    for tab in &mut tabs {
        let mut seen = Vec::new();
        let mut own = Vec::new();
        while seen.len() < MESSAGES {
            let message = tab.message();
            if message.content().starts_with("tabs ") {
                seen.push(message.content().to_owned());
                own.push(message.id.expect("a message carries a cursor"));
            }
        }
        assert_eq!(seen, sent);
        ids.push(own);
    }
    assert_eq!(ids[0], ids[1], "a cursor is the position, the same in every tab");
    assert_eq!(ids[0], ids[2]);
    let distinct: BTreeSet<&String> = ids[0].iter().collect();
    assert_eq!(distinct.len(), MESSAGES, "each message moves the cursor");
}

fn a_stream_begins_as_the_contract_says(runtime: Runtime) {
    let node = node(runtime);
    let mut retries = BTreeSet::new();
    for path in ["/api/user/sse/connect", "/api/sse/connect"] {
        for tab in 0..4 {
            let query = format!("userId=head-user&connectionId=head%20{tab}");
            let mut stream = Stream::open(node.public, &Ask { path, query: &query, fields: &[] });
            for (name, value) in [
                ("content-type", "text/event-stream"),
                ("cache-control", "no-store"),
                ("x-accel-buffering", "no"),
                ("connection", "close"),
            ] {
                assert_eq!(stream.head.field(name), Some(value), "{name}");
            }
            assert_eq!(stream.head.field("content-length"), None);
            let (retry, connected) = stream.connected();
            assert!((500..=30_000).contains(&retry), "retry: {retry}");
            retries.insert(retry);
            assert_eq!(connected.data["connectionId"], format!("head {tab}"));
            assert!(connected.data["message"].is_string(), "{}", connected.data);
            assert!(is_instant(connected.data["timestamp"].as_str()), "{}", connected.data);
            assert_eq!(connected.data.as_object().map(serde_json::Map::len), Some(3));
            assert!(connected.id.is_some(), "CONNECTED carries a cursor");
        }
    }
    assert!(retries.len() > 1, "retry has jitter: {retries:?}");
    let mut unnamed = Stream::open(node.public, &ask("userId=head-user", &[]));
    let drawn = unnamed.connected().1.data["connectionId"].as_str().map(str::len);
    assert!(drawn.is_some_and(|length| length > 0), "a connection is always named");
}

fn who_comes_back_with_a_cursor_gets_what_came_after_and_nothing_twice(runtime: Runtime) {
    let node = node(runtime);
    let query = "userId=back-user&roles=back-role";
    let mut stream = node.stream(query);
    let say = |content: &str| {
        let to_user = content.len().is_multiple_of(2);
        let mut body = if to_user {
            targets("SELECTED", &["back-user"])
        } else {
            targets("ROLE", &["back-role"])
        };
        body["content"] = json!(content);
        node.create(&body);
    };
    let mut ids = Vec::new();
    let sent: Vec<String> = (5..17).map(|number| format!("back {number}")).collect();
    for content in &sent {
        say(content);
        // One after the other, so that there is one order over all partitions.
        let message = own_next(&mut stream, "back ");
        assert_eq!(message.content(), content);
        ids.push(message.id.expect("a cursor"));
    }
    // From every place, by header and by query.
    for (place, id) in ids.iter().enumerate() {
        let by_header = ("header", query.to_owned(), vec![("last-event-id", id.as_str())]);
        let by_query = ("query", format!("{query}&lastEventId={id}"), vec![]);
        for (way, query, fields) in [by_header, by_query] {
            let mut again = Stream::open(node.public, &ask(&query, &fields));
            let (_, connected) = again.connected();
            assert_eq!(connected.id.as_ref(), Some(id), "CONNECTED carries what was presented");
            for content in &sent[place + 1..] {
                let message = own_next(&mut again, "back ");
                assert_eq!(message.content(), content, "from {place}, by {way}");
            }
            let rest = own_contents(&node, &mut again);
            assert!(rest.is_empty(), "nothing twice: {rest:?}");
        }
    }
    // An EventSource repeats its URL: the header is newer.
    let old = format!("{query}&lastEventId={}", ids[0]);
    let mut again = node.stream_with(&old, &[("Last-Event-ID", &ids[10])]);
    assert_eq!(own_next(&mut again, "back ").content(), sent[11]);
    // A query that is newer does not matter either.
    let new = format!("{query}&lastEventId={}", ids[11]);
    let mut again = node.stream_with(&new, &[("Last-Event-ID", &ids[10])]);
    assert_eq!(own_next(&mut again, "back ").content(), sent[11]);
}

fn own_next(stream: &mut Stream, start: &str) -> harness::sse::Event {
    loop {
        let message = stream.message();
        if message.content().starts_with(start) {
            return message;
        }
    }
}

fn what_is_no_cursor_of_this_log_is_no_error(runtime: Runtime) {
    let node = node(runtime);
    let other = start(runtime, &["log.partitions=3"]);
    other.say("other log");
    let foreign = other.stream("userId=foreign-user").last_id.expect("CONNECTED carries one");
    let own = node.stream("userId=foreign-user").last_id.expect("CONNECTED carries one");
    let cut = &own[..own.len() - 1];
    let long = "A".repeat(300);
    for (number, text) in
        ["", "0", "null", "!!!!", "../../etc", cut, &long, &foreign].into_iter().enumerate()
    {
        let mut stream = node.stream_with("userId=foreign-user", &[("last-event-id", text)]);
        let content = format!("other {number}");
        node.create(&json!({
            "content": content, "targetType": "SELECTED", "targetIds": ["foreign-user"]
        }));
        assert_eq!(own_next(&mut stream, &content).content(), content, "{text:?}");
    }
}

fn a_quiet_stream_gets_heartbeats_and_with_the_tenth_its_cursor(runtime: Runtime) {
    let node = start(runtime, &["stream.heartbeat_s=1"]);
    let mut quiet = node.stream("userId=quiet&roles=none");
    let start = quiet.last_id.clone();
    // Nothing for this user, but the log moves on: the cursor must not go stale.
    let mut body = targets("ROLE", &["another"]);
    body["content"] = json!("not for the quiet one");
    node.create(&body);
    for number in 1..10 {
        assert_eq!(quiet.next_item(), Item::Comment(String::new()), "heartbeat {number}");
    }
    let Item::Id(id) = quiet.next_item() else {
        panic!("the tenth carries an id and nothing else")
    };
    assert_ne!(Some(&id), start.as_ref(), "it says how far the log has been passed");
    let mut again = node.stream_with("userId=quiet&roles=none", &[("last-event-id", &id)]);
    node.say("behind the id");
    assert_eq!(again.message().content(), "behind the id");
    assert_eq!(quiet.message().content(), "behind the id");
}
