//! Bad input ends its own connection, with the right status, and touches no stream.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::http::{self, Connection, End, PATIENCE, exchange};
use harness::node::{Node, Shared, ask};
use harness::on_each_runtime;
use harness::runtime::Runtime;
use harness::sse::{Ask, Item, Stream, request};
use serde_json::json;

const STREAM: &str = "/api/user/sse/connect?userId=edge";

on_each_runtime!(
    a_bad_head_gets_its_status_and_the_connection_ends,
    odd_heads_that_are_right_get_their_stream,
    a_head_may_come_byte_by_byte,
    a_slow_head_is_answered_408_and_a_fast_one_beside_it_served,
    connections_that_say_nothing_cost_no_stream_anything,
    what_follows_an_answer_on_the_public_listener_is_not_served,
    a_bad_head_on_a_kept_connection_is_refused_like_a_first_one,
    who_says_that_nothing_more_will_come_is_answered,
    bodies_have_a_type_and_a_size,
    every_error_has_the_one_shape,
    a_full_node_sends_streams_away_in_a_way_that_they_come_back,
    without_authentication_only_this_machine_is_believed,
);

/// All tests of a runtime that change nothing share a node.
fn node(runtime: Runtime) -> Arc<Node> {
    static SHARED: [Shared; 2] = [const { Shared::new() }; 2];
    SHARED[runtime as usize].get(|| start(runtime, &[]))
}

fn start(runtime: Runtime, sets: &[&str]) -> Node {
    Node::start(env!("CARGO_BIN_EXE_corecast"), &[&[runtime.set()], sets].concat())
}

/// A stream that reads all the while; at the end it must have got everything, in order.
struct Witness {
    node: Arc<Node>,
    stop: Arc<AtomicBool>,
    speaker: JoinHandle<usize>,
    stream: Stream,
    name: String,
}

impl Witness {
    fn of(node: &Arc<Node>) -> Self {
        let name = format!("witness-{}", uuid::Uuid::new_v4());
        let stream = node.stream(&format!("userId={name}"));
        let stop = Arc::new(AtomicBool::new(false));
        let (speaks, to, until) = (node.clone(), name.clone(), stop.clone());
        let speaker = std::thread::spawn(move || {
            let mut said = 0;
            while !until.load(Ordering::Relaxed) || said == 0 {
                speaks.create(&json!({
                    "content": said.to_string(), "targetType": "SELECTED", "targetIds": [to]
                }));
                said += 1;
            }
            said
        });
        Self { node: node.clone(), stop, speaker, stream, name }
    }

    /// Ends the test: the stream that was open all the while has missed nothing.
    fn testify(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let said = self.speaker.join().expect("every broadcast is taken");
        self.node.create(&json!({
            "content": "end", "targetType": "SELECTED", "targetIds": [self.name]
        }));
        let heard = self.stream.contents_until("end");
        let expected: Vec<String> = (0..said).map(|number| number.to_string()).collect();
        assert_eq!(heard, expected);
    }
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

fn a_bad_head_gets_its_status_and_the_connection_ends(runtime: Runtime) {
    let node = node(runtime);
    let witness = Witness::of(&node);
    let long_field = get(STREAM, &format!("X-Long: {}\r\n", "x".repeat(16 * 1024)));
    let endless_field = format!("GET {STREAM} HTTP/1.1\r\nX-Long: {}", "x".repeat(64 * 1024));
    let long_target = get(&format!("{STREAM}&x={}", "x".repeat(20 * 1024)), "");
    let many = get(STREAM, &"X: y\r\n".repeat(64));
    let endless_lines = "\r\n".repeat(16 * 1024);
    let post = |fields: &str, body: &str| {
        format!("POST /api/user/messages/read HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{body}")
    };
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("no HTTP", b"hello there\r\n\r\n".to_vec(), 400),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0".to_vec(), 400),
        ("HTTP/3 by name", b"GET / HTTP/3\r\nHost: a\r\n\r\n".to_vec(), 400),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec(), 400),
        ("NUL bytes", vec![0; 64], 400),
        ("a NUL in a field", get(STREAM, "X: a\0b\r\n").into_bytes(), 400),
        ("a NUL in the target", get("/api/sse/connect?userId=\0", "").into_bytes(), 400),
        ("a blank in the target", get("/api/sse/connect?userId=a b", "").into_bytes(), 400),
        ("a lone CR in a field", get(STREAM, "X: a\rY: b\r\n").into_bytes(), 400),
        ("a blank before the colon", get(STREAM, "X : a\r\n").into_bytes(), 400),
        ("a field without a name", get(STREAM, ": a\r\n").into_bytes(), 400),
        ("a field without a colon", get(STREAM, "Accept\r\n").into_bytes(), 400),
        ("a folded field", get(STREAM, "X: a\r\n b\r\n").into_bytes(), 400),
        ("no Host", format!("GET {STREAM} HTTP/1.1\r\n\r\n").into_bytes(), 400),
        ("two Hosts", get(STREAM, "Host: localhost\r\n").into_bytes(), 400),
        ("no path", b"GET localhost HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), 400),
        ("a star", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), 400),
        ("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), 400),
        ("a long field", long_field.into_bytes(), 431),
        ("an endless field", endless_field.into_bytes(), 431),
        ("a long target", long_target.into_bytes(), 431),
        ("many fields", many.into_bytes(), 431),
        ("endless empty lines", endless_lines.into_bytes(), 431),
        // Framings that a proxy in front may have understood otherwise.
        (
            "length and coding",
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n").into_bytes(),
            400,
        ),
        (
            "coding and length",
            post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n").into_bytes(),
            400,
        ),
        ("two lengths", post("Content-Length: 1\r\nContent-Length: 1\r\n", "x").into_bytes(), 400),
        (
            "two other lengths",
            post("Content-Length: 1\r\nContent-Length: 2\r\n", "x").into_bytes(),
            400,
        ),
        ("a list of lengths", post("Content-Length: 1, 1\r\n", "x").into_bytes(), 400),
        ("a signed length", post("Content-Length: +1\r\n", "x").into_bytes(), 400),
        ("a negative length", post("Content-Length: -1\r\n", "x").into_bytes(), 400),
        ("a length that is none", post("Content-Length: 0x1\r\n", "x").into_bytes(), 400),
        (
            "a huge length",
            post("Content-Length: 99999999999999999999999\r\n", "x").into_bytes(),
            400,
        ),
        (
            "two codings",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")
                .into_bytes(),
            400,
        ),
        (
            "an unknown coding",
            post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n").into_bytes(),
            400,
        ),
        (
            "a coding behind chunked",
            post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n").into_bytes(),
            400,
        ),
        (
            "a coding in HTTP/1.0",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            400,
        ),
        ("a stream with a body", get(STREAM, "Content-Length: 1\r\n\r\nx").into_bytes(), 400),
        (
            "a stream with a chunked body",
            get(STREAM, "Transfer-Encoding: chunked\r\n").into_bytes(),
            400,
        ),
        (
            "a request behind a stream's",
            [get(STREAM, ""), get(STREAM, "")].concat().into_bytes(),
            400,
        ),
        ("no user", get("/api/user/sse/connect", "").into_bytes(), 400),
        ("an empty user", get("/api/user/sse/connect?userId=", "").into_bytes(), 400),
        ("two users", get(&format!("{STREAM}&userId=b"), "").into_bytes(), 400),
        (
            "a user with a line end",
            get("/api/user/sse/connect?userId=a%0aid:%20x", "").into_bytes(),
            400,
        ),
        (
            "a user that is too long",
            get(&format!("/api/user/sse/connect?userId={}", "x".repeat(257)), "").into_bytes(),
            400,
        ),
        (
            "a connection with a line end",
            get(&format!("{STREAM}&connectionId=%0d"), "").into_bytes(),
            400,
        ),
        ("an empty role", get(&format!("{STREAM}&roles=a,,b"), "").into_bytes(), 400),
        (
            "too many roles",
            get(&format!("{STREAM}&roles={}", vec!["r"; 1_025].join(",")), "").into_bytes(),
            400,
        ),
    ];
    for (what, bytes, status) in cases {
        let answer = exchange_named(what, node.public, &bytes);
        let message = answer.error(status);
        assert_eq!(answer.field("connection"), Some("close"), "{what}: {message}");
        let path = answer.json()["path"].clone();
        let expected = if what == "a blank in the target" {
            "/api/sse/connect"
        } else {
            path_asked_for(&bytes)
        };
        assert_eq!(path, expected, "{what}: {message}");
        // Of a stream's own rules the admin listener knows nothing.
        if !what.starts_with("a stream") && !bytes.starts_with(b"GET /api/") {
            exchange_named(what, node.admin, &bytes).error(status);
        }
    }
    witness.testify();
}

/// The path of a request line that is whole and has no odd byte in it.
fn path_asked_for(bytes: &[u8]) -> &str {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or(b"");
    let line = std::str::from_utf8(line).ok().filter(|line| !line.contains(char::is_control));
    let words: Vec<&str> = line.unwrap_or("").split(' ').collect();
    match words[..] {
        [_, target, version] if target.starts_with('/') && version.starts_with("HTTP/") => {
            target.split('?').next().unwrap_or("")
        }
        _ => "",
    }
}

fn exchange_named(what: &str, address: SocketAddr, bytes: &[u8]) -> http::Response {
    std::panic::catch_unwind(|| exchange(address, bytes))
        .unwrap_or_else(|_| panic!("{what}: no answer, or no end behind it"))
}

fn odd_heads_that_are_right_get_their_stream(runtime: Runtime) {
    let node = node(runtime);
    let address = node.public;
    let fields = ["Host: LOCALHOST.:1\r\n", "host:127.0.0.1\r\n", "HOST: [::1]:9\r\n"];
    let mut heads: Vec<Vec<u8>> = fields
        .iter()
        .map(|field| format!("GET {STREAM} HTTP/1.1\r\n{field}\r\n").into_bytes())
        .collect();
    heads.push(format!("GET http://{address}{STREAM} HTTP/1.1\r\nHost: localhost\r\n\r\n").into());
    heads.push(format!("GET {STREAM} HTTP/1.0\r\n\r\n").into_bytes());
    heads.push(format!("\r\n\r\nGET {STREAM} HTTP/1.1\nHost: localhost\n\n").into_bytes());
    heads.push(get(STREAM, "Content-Length: 0\r\n").into_bytes());
    heads.push(get(STREAM, &"X: y\r\n".repeat(63)).into_bytes());
    heads.push(get(STREAM, &format!("X: {}\r\n", "x".repeat(15 * 1024))).into_bytes());
    for head in heads {
        let mut connection = Connection::open(address);
        connection.send(&head).expect("taken");
        let answer = connection.read_head(Instant::now() + PATIENCE).expect("an answer");
        assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&head));
        assert_eq!(answer.field("content-type"), Some("text/event-stream"));
    }
}

fn a_head_may_come_byte_by_byte(runtime: Runtime) {
    let node = node(runtime);
    let witness = Witness::of(&node);
    let mut connection = Connection::open(node.public);
    let head = request(node.public, &ask("userId=bytes", &[]));
    for byte in &head {
        connection.send(&[*byte]).expect("taken");
    }
    let answer = connection.read_head(Instant::now() + PATIENCE).expect("an answer");
    assert_eq!(answer.status, 200);
    witness.testify();
}

fn a_slow_head_is_answered_408_and_a_fast_one_beside_it_served(runtime: Runtime) {
    let node = node(runtime);
    let witness = Witness::of(&node);
    let began = Instant::now();
    // One that sends nothing at all, and one that sends a byte whenever it is looked at.
    let mut silent = Connection::open(node.public);
    let mut of_admin = Connection::open(node.admin);
    let mut slow = Connection::open(node.public);
    let head = get(STREAM, &format!("X: {}", "x".repeat(8 * 1024)));
    let mut bytes = head.bytes();
    let answer = loop {
        slow.send(&[bytes.next().expect("the head is long")]).expect("taken");
        match slow.try_fill(Instant::now() + Duration::from_millis(100)) {
            None => assert!(began.elapsed() < Duration::from_secs(15), "no answer in time"),
            Some(came) => {
                came.expect("an answer before the end");
                break slow.read_response(PATIENCE).expect("an answer");
            }
        }
    };
    answer.error(408);
    slow.wait_for_end(PATIENCE);
    for connection in [&mut silent, &mut of_admin] {
        connection.read_response(PATIENCE).expect("an answer").error(408);
        connection.wait_for_end(PATIENCE);
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(9), "an honest head has its time: {took:?}");
    assert!(took <= Duration::from_secs(16), "a slow one not more: {took:?}");
    witness.testify();
}

fn connections_that_say_nothing_cost_no_stream_anything(runtime: Runtime) {
    let node = node(runtime);
    let witness = Witness::of(&node);
    // Some are closed at once, some reset, some stay.
    let mut idle = Vec::new();
    for number in 0..600 {
        let socket = TcpStream::connect(node.public).expect("taken");
        match number % 3 {
            0 => drop(socket),
            1 => {
                let mut connection = Connection::over(socket);
                connection.send(b"GET /api/user/sse/conn").expect("taken");
                connection.finish_sending();
            }
            _ => idle.push(socket),
        }
    }
    let mut stream = node.stream("userId=among-idle");
    node.create(&json!({
        "content": "through", "targetType": "SELECTED", "targetIds": ["among-idle"]
    }));
    assert_eq!(stream.message().content(), "through");
    witness.testify();
    drop(idle);
}

fn what_follows_an_answer_on_the_public_listener_is_not_served(runtime: Runtime) {
    let node = node(runtime);
    let second = get(STREAM, "Accept: text/event-stream\r\n");
    for first in [
        get("/health/live", ""),
        get("/nothing", ""),
        "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}".to_owned(),
        // What stands in the body is body.
        format!(
            "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{second}",
            second.len()
        ),
    ] {
        let answer = exchange(node.public, [first.as_str(), &second].concat().as_bytes());
        assert_eq!(answer.field("connection"), Some("close"), "{first}");
    }
    assert_eq!(node.stream("userId=after").head.status, 200);
}

/// The admin listener keeps connections, and reads every head on them in the same way.
fn a_bad_head_on_a_kept_connection_is_refused_like_a_first_one(runtime: Runtime) {
    let node = node(runtime);
    let body = r#"{"content":"kept","targetType":"ROLE","targetIds":["nobody"]}"#;
    let length = body.len();
    let create = "POST /api/admin/broadcasts HTTP/1.1\r\nHost: localhost\r\n\
                  Content-Type: application/json\r\n";
    let live = get("/health/live", "");
    let firsts = [
        (live.clone(), 1),
        (format!("{create}Content-Length: {length}\r\n\r\n{body}"), 1),
        ([live.as_str(), &live, &live].concat(), 3),
        ("POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}".into(), 1),
    ];
    let bad = [
        (get("/bad", "X : y\r\n"), 400),
        ("GET /bad HTTP/1.1\r\n\r\n".to_owned(), 400),
        (get("/bad", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 400),
        (get("/bad", "Content-Length: 1\r\nContent-Length: 1\r\n"), 400),
        (get("/bad", "Content-Length: 18446744073709551615\r\n"), 400),
        (get("/bad", &format!("X: {}\r\n", "x".repeat(16 * 1024))), 431),
        (get("/bad", &"X: y\r\n".repeat(64)), 431),
    ];
    for (first, count) in &firsts {
        for (bad, status) in &bad {
            // At once, and when the answers before it are here.
            for is_pipelined in [true, false] {
                let mut connection = Connection::open(node.admin);
                if is_pipelined {
                    connection.send([first.as_str(), bad].concat().as_bytes()).expect("taken");
                } else {
                    connection.send(first.as_bytes()).expect("taken");
                }
                for _ in 0..*count {
                    let answer = connection.read_response(PATIENCE).expect("an answer");
                    assert!(answer.status == 200 || answer.status == 404, "{answer:?}");
                    assert_eq!(answer.field("connection"), None, "it is kept");
                }
                if !is_pipelined {
                    connection.send(bad.as_bytes()).expect("taken");
                }
                let answer = connection.read_response(PATIENCE).expect("an answer");
                answer.error(*status);
                assert_eq!(answer.json()["path"], "/bad");
                assert_eq!(answer.field("connection"), Some("close"));
                assert_eq!(connection.wait_for_end(PATIENCE), End::Closed, "no reset overtook it");
            }
        }
    }
    // Where a chunked body ends is not read twice, so such a connection is not kept.
    let chunked = format!(
        "{create}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n{live}"
    );
    let answer = exchange(node.admin, chunked.as_bytes());
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    // A head and a body may come byte by byte, as often as one likes.
    let mut connection = Connection::open(node.admin);
    for (first, _) in firsts.iter().take(2) {
        for byte in first.as_bytes() {
            connection.send(&[*byte]).expect("taken");
        }
        assert_eq!(connection.read_response(PATIENCE).expect("an answer").status, 200);
    }
}

fn who_says_that_nothing_more_will_come_is_answered(runtime: Runtime) {
    let node = node(runtime);
    for address in [node.public, node.admin] {
        let mut connection = Connection::open(address);
        connection.send(get("/health/live", "").as_bytes()).expect("taken");
        connection.finish_sending();
        connection.read_response(PATIENCE).expect("an answer").expect_json();
        connection.wait_for_end(PATIENCE);
    }
}

fn bodies_have_a_type_and_a_size(runtime: Runtime) {
    let node = node(runtime);
    let witness = Witness::of(&node);
    const PATH: &str = "/api/admin/broadcasts";
    let small = br#"{"content":"x","targetType":"ROLE","targetIds":["nobody"]}"#;
    let json_type = [("content-type", "application/json")];
    for (what, fields, body, status) in [
        ("no type", &[][..], &small[..], 415),
        ("text", &[("content-type", "text/plain")], small, 415),
        ("a form", &[("content-type", "application/x-www-form-urlencoded")], small, 415),
        ("almost JSON", &[("content-type", "application/jsonx")], small, 415),
        ("a charset", &[("content-type", "Application/JSON; charset=utf-8")], small, 200),
        ("nothing", &json_type, b"", 400),
        ("half of it", &json_type, &small[..20], 400),
        ("no UTF-8", &json_type, b"{\"content\":\"\xff\",\"targetType\":\"ALL\"}", 400),
        ("two of it", &json_type, br#"{"content":"x","targetType":"ALL"}{}"#, 400),
        ("a field twice", &json_type, br#"{"content":"x","targetType":"ALL","content":"y"}"#, 400),
    ] {
        let answer = http::call(node.admin, "POST", PATH, fields, Some(body));
        if status == 200 {
            answer.expect_json();
        } else {
            let message = answer.error(status);
            assert_eq!(answer.json()["path"], PATH, "{what}: {message}");
        }
    }
    let deep = [b"[".repeat(60_000), b"]".repeat(60_000)].concat();
    http::call(node.admin, "POST", PATH, &json_type, Some(&deep)).error(400);
    let huge = vec![b' '; (32 << 20) + 1];
    http::call(node.admin, "POST", PATH, &json_type, Some(&huge)).error(413);
    // Nobody waits for a body that is said to be too long.
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        huge.len()
    );
    exchange(node.admin, head.as_bytes()).error(413);
    witness.testify();
}

fn every_error_has_the_one_shape(runtime: Runtime) {
    let node = node(runtime);
    let big = "x".repeat(100_000);
    for (address, method, path, status, allow) in [
        (node.public, "GET", "/", 404, None),
        (node.public, "GET", "/api/user/sse/connect/", 404, None),
        (node.public, "GET", "/api/admin/broadcasts", 404, None),
        (node.public, "GET", "/metrics", 404, None),
        (node.public, "GET", "/%2e%2e/%00", 404, None),
        (node.public, "DELETE", "/api/user/sse/connect", 405, Some("GET")),
        (node.public, "POST", "/api/sse/connect", 405, Some("GET")),
        (node.public, "BREW", "/api/sse/connect", 405, Some("GET")),
        (node.public, "POST", "/health/live", 405, None),
        (node.admin, "GET", "/api/admin/nothing", 404, None),
        (node.admin, "GET", "/api/user/sse/connect", 404, None),
        (node.admin, "PUT", "/api/admin/broadcasts", 405, None),
        (node.admin, "DELETE", "/metrics", 405, None),
        (node.admin, "GET", "/api/admin/broadcasts/abc", 400, None),
        (node.admin, "GET", "/api/admin/broadcasts/1", 404, None),
        (node.admin, "GET", "/api/admin/broadcasts/1/nothing", 404, None),
    ] {
        for body in [None, Some(b"{}".as_slice()), Some(big.as_bytes())] {
            let answer = http::call(address, method, path, &[], body);
            let message = answer.error(status);
            assert_eq!(answer.json()["path"], path, "{method} {path}: {message}");
            if let Some(allow) = allow {
                assert_eq!(answer.field("allow"), Some(allow));
            }
            if status == 405 {
                assert!(answer.field("allow").is_some(), "{method} {path} says what is allowed");
            }
            assert_eq!(answer.field("cache-control"), Some("no-store"));
        }
    }
}

fn a_full_node_sends_streams_away_in_a_way_that_they_come_back(runtime: Runtime) {
    let node = start(runtime, &["limits.streams_max=2"]);
    let mut first = node.stream("userId=first");
    let second = node.stream("userId=second");
    for path in ["/api/user/sse/connect", "/api/sse/connect"] {
        let ask = Ask { path, query: "userId=third", fields: &[] };
        let mut put_off = Stream::open(node.public, &ask);
        assert_eq!(put_off.head.field("content-type"), Some("text/event-stream"));
        assert!(matches!(put_off.next_item(), Item::Retry(500..=30_000)));
        assert_eq!(put_off.next_item(), Item::End(End::Closed));
        for accept in ["", "Accept: */*\r\n", "Accept: application/json\r\n"] {
            let target = format!("{path}?userId=third");
            let answer = exchange(node.public, get(&target, accept).as_bytes());
            answer.error(503);
            assert_eq!(answer.json()["path"], path);
            let seconds = answer.field("retry-after").and_then(|value| value.parse().ok());
            assert!(seconds.is_some_and(|seconds: u32| seconds > 0), "{answer:?}");
        }
    }
    assert_eq!(node.metric("corecast_streams"), Some(2.0));
    drop(second);
    harness::wait::until("there is room again", PATIENCE, || {
        let mut stream = Stream::open(node.public, &ask("userId=third", &[]));
        assert!(matches!(stream.next_item(), Item::Retry(_)));
        matches!(stream.next_item(), Item::Event(_)).then_some(())
    });
    node.say("to the first");
    assert_eq!(first.message().content(), "to the first");
}

fn without_authentication_only_this_machine_is_believed(runtime: Runtime) {
    let node = node(runtime);
    let live = "GET /api/admin/broadcasts HTTP/1.1\r\n";
    let stream = "GET /api/user/sse/connect?userId=far HTTP/1.1\r\n";
    let nothing = "GET /api/user/messages?userId=far HTTP/1.1\r\n";
    for fields in [
        "Host: example.com\r\n",
        "Host: localhost.example.com\r\n",
        "Host: 127.0.0.1.nip.io\r\n",
        "Host: 10.0.0.1:8080\r\n",
        "Host: 0.0.0.0\r\n",
        "Host: [::2]\r\n",
        "Host: \r\n",
        "Host: localhost@example.com\r\n",
        "Host: localhost, example.com\r\n",
        "Host: localhost\r\nX-Forwarded-For: 127.0.0.1\r\n",
        "Host: localhost\r\nx-forwarded-proto: https\r\n",
        "Host: localhost\r\nX-Real-IP: 127.0.0.1\r\n",
        "Host: localhost\r\nForwarded: for=127.0.0.1\r\n",
        "Host: localhost\r\nVia: 1.1 proxy\r\n",
    ] {
        for (address, line) in [(node.admin, live), (node.public, stream), (node.public, nothing)] {
            let bytes = format!("{line}{fields}Connection: close\r\n\r\n");
            let answer = exchange(address, bytes.as_bytes());
            answer.error(403);
        }
    }
    // The authority of an absolute form is what was asked for, whatever Host says (RFC 9112,
    // section 3.2.2).
    for (address, path) in [
        (node.admin, "/api/admin/broadcasts"),
        (node.public, "/api/user/sse/connect?userId=far"),
        (node.public, "/api/user/messages?userId=far"),
    ] {
        let bytes = format!(
            "GET http://example.com{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        exchange(address, bytes.as_bytes()).error(403);
    }
    let everybody = start(runtime, &["auth.allow_anonymous=true"]);
    let bytes = format!("{live}Host: example.com\r\nVia: 1.1 proxy\r\nConnection: close\r\n\r\n");
    exchange(everybody.admin, bytes.as_bytes()).expect_json();
    let bytes = format!("{stream}Host: example.com\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n");
    let mut connection = Connection::open(everybody.public);
    connection.send(bytes.as_bytes()).expect("taken");
    let answer = connection.read_head(Instant::now() + PATIENCE).expect("an answer");
    assert_eq!(answer.status, 200);
}
