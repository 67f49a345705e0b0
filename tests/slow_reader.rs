//! A reader that stops reading costs only itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::http::{Connection, PATIENCE};
use harness::node::{Node, ask};
use harness::on_each_runtime;
use harness::runtime::Runtime;
use harness::sse::{Event, Item, Stream};
use harness::wait;
use serde_json::json;

const CONTENT_BYTES: usize = 60 * 1024;
const STALLED: usize = 40;
const READING_AGAIN: usize = 3;
/// Said once all the stalled are full. Kept for each of them it would be 96 MB.
const MESSAGES_MORE: usize = 40;
/// What the node may grow by while that is said: it keeps a message once in its ring and twice in
/// what its database wrote lately, which makes 7 MB.
const MEMORY_BYTES_MAX: usize = 48 << 20;

on_each_runtime!(
    who_stands_still_is_fed_in_order_when_he_reads_again,
    who_stands_still_for_too_long_is_closed_and_comes_back_with_his_cursor,
);

fn start(runtime: Runtime, sets: &[&str]) -> Node {
    Node::start(env!("CARGO_BIN_EXE_corecast"), &[&[runtime.set()], sets].concat())
}

/// A stream with a small buffer of its own.
fn narrow_stream(address: SocketAddr, query: &str, cursor: Option<&str>) -> Stream {
    let fields: Vec<(&str, &str)> =
        cursor.map(|cursor| ("last-event-id", cursor)).into_iter().collect();
    let connection = Connection::narrow(address);
    let mut stream = Stream::over(connection, address, &ask(query, &fields)).expect("an answer");
    assert_eq!(stream.head.status, 200);
    stream.connected();
    stream
}

fn content(number: usize) -> String {
    format!("{number} {}", "x".repeat(CONTENT_BYTES))
}

fn number_of(event: &Event) -> usize {
    let number = event.content().split(' ').next().and_then(|number| number.parse().ok());
    number.expect("a number in front")
}

/// Says a message to all, and times how long it takes to be everywhere where it is read.
fn say_and_read(node: &Node, readers: &mut [Stream], number: usize) -> Duration {
    node.say(&content(number));
    let began = Instant::now();
    for reader in readers {
        assert_eq!(number_of(&reader.message()), number);
    }
    began.elapsed()
}

fn who_stands_still_is_fed_in_order_when_he_reads_again(runtime: Runtime) {
    let node = start(runtime, &[]);
    let mut stalled: Vec<Stream> = (0..STALLED)
        .map(|number| narrow_stream(node.public, &format!("userId=stalled-{number}"), None))
        .collect();
    // Some on each shard: what they have read, all shards have, and so it is in one order.
    let mut readers: Vec<Stream> =
        (0..5).map(|number| node.stream(&format!("userId=reader-{number}"))).collect();
    let mut said = 0;
    wait::until("the stalled are full", PATIENCE, || {
        say_and_read(&node, &mut readers, said);
        said += 1;
        let blocked = node.metric("corecast_writes_blocked_total");
        blocked.is_some_and(|blocked| blocked >= STALLED as f64).then_some(())
    });
    let before = node.resident_bytes();
    for _ in 0..MESSAGES_MORE {
        let took = say_and_read(&node, &mut readers, said);
        assert!(took < Duration::from_secs(5), "message {said} took {took:?}");
        said += 1;
    }
    assert_eq!(node.metric("corecast_streams"), Some((STALLED + 5) as f64), "all are here");
    let grown = node.resident_bytes().saturating_sub(before);
    assert!(grown < MEMORY_BYTES_MAX, "the node grew by {grown} bytes");
    // The others stand still until the end.
    let (stalled, _still) = stalled.split_at_mut(READING_AGAIN);
    std::thread::scope(|threads| {
        for stream in &mut *stalled {
            threads.spawn(move || {
                for number in 0..said {
                    assert_eq!(number_of(&stream.message()), number);
                }
            });
        }
    });
    let took = say_and_read(&node, stalled, said);
    assert!(took < PATIENCE, "a stream that caught up is as any other");
}

fn who_stands_still_for_too_long_is_closed_and_comes_back_with_his_cursor(runtime: Runtime) {
    let node = start(runtime, &["limits.write_progress_s=1"]);
    let mut stalled = narrow_stream(node.public, "userId=stalled", None);
    // The same user, so on the same shard: each message is there before the next is said, and so
    // they are in one order, whatever their partitions.
    let mut readers = [node.stream("userId=stalled&connectionId=reader")];
    let mut said = 0;
    // Until the stalled one is full, and then until it is closed.
    wait::until("the stalled stream is closed", PATIENCE, || {
        say_and_read(&node, &mut readers, said);
        said += 1;
        let text = node.get("/metrics").text();
        text.lines().any(|line| line.ends_with("reason=\"slow\"} 1")).then_some(())
    });
    assert_eq!(node.metric("corecast_streams"), Some(1.0));
    let mut seen = Vec::new();
    loop {
        match stalled.next_item() {
            Item::Event(event) => seen.push(number_of(&event)),
            Item::End(_) => break,
            Item::Comment(_) | Item::Id(_) => {}
            Item::Retry(_) => panic!("retry in the middle of a stream"),
        }
    }
    assert!(!seen.is_empty() && seen.len() < said, "{} of {said} came before", seen.len());
    let cursor = stalled.last_id.clone().expect("ids came");
    let mut again = narrow_stream(node.public, "userId=stalled", Some(&cursor));
    while seen.len() < said {
        seen.push(number_of(&again.message()));
    }
    let all: Vec<usize> = (0..said).collect();
    assert_eq!(seen, all, "in order, nothing lost, nothing twice");
    node.create(&json!({"content": "0", "targetType": "SELECTED", "targetIds": ["stalled"]}));
    assert_eq!(number_of(&again.message()), 0, "and nothing else behind it");
}
