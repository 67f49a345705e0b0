//! P9, every bound is visible: reaching one is a status, a GAP event or a counter. Here are those
//! that other tests do not reach on their way; `docs/promises.md` says where each one is shown.

use std::time::Instant;

use corecast::limits::{admin, contract, cursor, edge};
use corecast::wire::cursor::{Cursor, CursorParts};
use harness::http::{Connection, PATIENCE, exchange};
use harness::node::{Node, ask};
use harness::sse::Stream;
use harness::wait;
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");
const CONNECT: &str = "/api/user/sse/connect";

/// What reaching a bound did to a counter.
fn assert_counts(node: &Node, counter: &str, what: &str, reach: impl FnOnce()) {
    let name = format!("corecast_{counter}_total");
    let count = || node.metric(&name).unwrap_or_else(|| panic!("{name} is not there"));
    let before = count();
    reach();
    wait::until_true(&format!("{name} shows {what}"), PATIENCE, || count() > before);
}

fn get(fields: &str) -> String {
    format!("GET {CONNECT}?userId=u HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

/// The same cursor from further than any log has got.
fn ahead(cursor: &str) -> String {
    let cursor = Cursor::parse(cursor).expect("a cursor");
    let group = vec![1 << 40; cursor.group.len()];
    let parts = CursorParts {
        shape: cursor.shape,
        at: cursor.at(),
        backlog: false,
        user: cursor.user,
        own_partition: cursor.own_partition,
        own: 1 << 40,
        group: &group,
        offset_max: 1 << 40,
    };
    let mut text = Vec::new();
    parts.write(&mut text);
    String::from_utf8(text).expect("base64")
}

#[test]
fn what_a_request_for_a_stream_may_reach() {
    let node = Node::start(PROGRAM, &["node.shards=1", "limits.streams_max=2"]);
    let mut first = node.stream("userId=first");
    node.say("something");
    first.message();
    let known = first.last_id.clone().expect("an id");

    let too_large = get(&format!("X: {}\r\n", "x".repeat(edge::HEAD_BYTES_MAX)));
    let too_many = get(&"X: y\r\n".repeat(edge::HEAD_FIELDS_MAX));
    for (what, head) in [("a large head", too_large), ("a head of many fields", too_many)] {
        assert_counts(&node, "requests_malformed", what, || {
            drop(exchange(node.public, head.as_bytes()).error(431));
        });
    }

    let too_long = "A".repeat(cursor::TEXT_CHARS_MAX + 1);
    for (what, cursor) in [
        ("a long cursor", &*too_long),
        ("a cursor that is none", "!"),
        ("a cursor of another user", &*known),
    ] {
        assert_counts(&node, "cursors_refused", what, || {
            drop(node.stream_with("userId=second", &[("last-event-id", cursor)]));
        });
        // The next one needs its place.
        wait::until_true("it has gone", PATIENCE, || node.metric("corecast_streams") == Some(1.0));
    }
    let refused = node.metric("corecast_cursors_refused_total");
    assert_counts(&node, "gaps", "a cursor from ahead of the log", || {
        let mut back = node.stream_with("userId=first", &[("last-event-id", &*ahead(&known))]);
        wait::until_true("it is told", PATIENCE, || {
            let event = back.next_event().expect("the stream goes on");
            event.name == "GAP" && event.data["reason"] == "LOG_REPLACED"
        });
    });
    wait::until_true("it has gone", PATIENCE, || node.metric("corecast_streams") == Some(1.0));
    // Neither one's own cursor nor none is refused.
    let second = node.resume("userId=first", &first);
    assert_eq!(node.metric("corecast_cursors_refused_total"), refused);

    assert_counts(&node, "requests_put_off", "a stream too many", || {
        drop(exchange(node.public, get("").as_bytes()).error(503));
    });
    drop(second);
}

#[test]
fn what_connections_that_say_nothing_may_reach() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start_narrow(PROGRAM, folder.path());
    for (address, counter) in
        [(node.public, "connections_evicted"), (node.admin, "admin_connections_evicted")]
    {
        let mut silent = Vec::new();
        assert_counts(&node, counter, "silent connections", || {
            // More than either listener leaves to them.
            silent.extend((0..50).map(|_| {
                let mut connection = Connection::open(address);
                connection.send(b"GET /health/live HT").expect("taken");
                connection
            }));
        });
    }
}

#[test]
fn what_a_create_may_reach() {
    let node = Node::start(PROGRAM, &[]);
    let users: Vec<String> =
        (0..=contract::TARGET_USERS_MAX).map(|number| number.to_string()).collect();
    let body = json!({"content": "x", "targetType": "SELECTED", "targetIds": users});
    let message = node.post("/api/admin/broadcasts", &body).error(400);
    assert!(message.contains("targetIds: "), "{message}");
}

/// Large ones wait for their place, and those that have one for their body.
#[test]
fn what_large_creates_may_reach() {
    let node = Node::start(PROGRAM, &[]);
    let length = admin::SMALL_CREATE_BYTES_MAX + 1;
    let head = format!(
        "POST /api/admin/broadcasts HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
         Content-Type: application/json\r\n\r\n"
    );
    let began = Instant::now();
    let open = |_| {
        let mut connection = Connection::open(node.admin);
        connection.send(head.as_bytes()).expect("taken");
        connection
    };
    let large: Vec<Connection> = (0..=admin::LARGE_CREATES_MAX).map(open).collect();
    // Which of them came first is not known.
    let mut statuses: Vec<u16> = large
        .into_iter()
        .map(|mut connection| {
            let answer = connection.read_response(2 * PATIENCE).expect("an answer");
            answer.error(answer.status);
            answer.status
        })
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [408, 408, 503]);
    assert!(began.elapsed() >= admin::BODY_TIME, "each has its time");
    // Small ones are not behind them.
    let mut stream = Stream::open(node.public, &ask("userId=u", &[]));
    stream.connected();
    node.say("small");
    assert_eq!(stream.message().content(), "small");
}
