//! However many shards a node has, its users notice nothing of it.

mod people;

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corecast::base::{Sharding, partition_of_key};
use harness::http::PATIENCE;
use harness::node::Node;
use harness::wait;
use people::{User, close_all_partitions, say, tell};
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");
/// The default of `log.partitions`.
const PARTITIONS: u16 = 10;
const USERS: usize = 12;

/// On 1, 2 and 5 shards, over restarts that change their number: everybody gets everything of his
/// once, each partition in order; half of them, at each restart, in the middle of it.
#[test]
fn everybody_gets_his_events_once_and_in_order_whatever_the_number_of_shards() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut users: Vec<User> = (0..USERS).map(|number| User::new(number, PARTITIONS)).collect();
    for (phase, shards) in [2, 5, 1, 5, 2].into_iter().enumerate() {
        let sharding = format!("node.shards={shards}");
        let mut node = Node::start_in(PROGRAM, folder.path(), &[&sharding]);
        users.iter_mut().for_each(|user| user.connect(&node));
        for round in 0..4 {
            for number in 0..3 {
                say(&node, &mut users, &format!("{phase}.{round} to all {number}"));
            }
            for user in &mut users {
                let content = format!("{phase}.{round} to {}", user.name);
                tell(&node, user, &content);
            }
        }
        for (number, user) in users.iter_mut().enumerate() {
            if number % 2 == 1 {
                (0..3).for_each(|_| user.read());
                user.leave();
            }
        }
        close_all_partitions(&node, &mut users, phase);
        for user in users.iter_mut().step_by(2) {
            user.read_all();
            user.leave();
        }
        let handed = node.metric("corecast_streams_handed_total").expect("a metric");
        assert!(shards > 1 || handed == 0.0, "{handed} streams handed to nobody");
        assert!(node.terminate().success());
    }
    let node = Node::start_in(PROGRAM, folder.path(), &["node.shards=3"]);
    for user in &mut users {
        user.connect(&node);
    }
    close_all_partitions(&node, &mut users, 9);
    for user in &mut users {
        user.read_all();
        assert_eq!(user.got, user.expected, "{}", user.name);
    }
}

#[test]
fn a_connect_that_lands_on_another_shard_is_served() {
    let node = Node::start(PROGRAM, &["node.shards=5"]);
    let mut streams = VecDeque::new();
    // The kernel chooses the shard by the address: four of five connects meet another than the
    // user's.
    wait::until_true("a connect lands on another shard", PATIENCE, || {
        let user = format!("user-{}", streams.len());
        streams.push_back((node.stream(&format!("userId={user}")), user));
        node.metric("corecast_streams_handed_total").is_some_and(|handed| handed > 0.0)
    });
    node.say("to all");
    for (stream, user) in &mut streams {
        assert_eq!(stream.message().content(), "to all");
        node.create(&json!({"content": user, "targetType": "SELECTED", "targetIds": [user]}));
        assert_eq!(stream.message().content(), user);
    }
}

/// Users of one selected partition.
fn users_of(partition: u16, count: usize) -> Vec<String> {
    let users = (0..).map(|number| format!("flooded-{number}"));
    users
        .filter(|user| partition_of_key(user.as_bytes(), PARTITIONS) == partition)
        .take(count)
        .collect()
}

const FLOOD_CONNECTIONS: usize = 200;
const FLOOD_RECORDS: usize = 2_000;
const FLOODS: usize = 5;
const ROUNDS_MIN: usize = 20;
/// What a stream may wait for its event in a debug build whose cores are flooded.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Opens connections that never say what they want, and lets the oldest go.
fn flood_connects(address: SocketAddr, stop: &AtomicBool) {
    let mut open = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut socket) = TcpStream::connect(address) else { continue };
        // Who is thrown out in the middle of a head is not astonished.
        let _ = socket.write_all(b"GET /api/user/sse/connect?userId=nobody HTTP/1.1\r\nHost: l");
        open.push_back(socket);
        if open.len() > FLOOD_CONNECTIONS {
            open.pop_front();
        }
    }
}

#[test]
fn floods_of_connects_and_of_one_partition_hold_no_other_shard_up() {
    let node = Node::start(PROGRAM, &["node.shards=2"]);
    let sharding = Sharding::new(2).expect("some");
    // Two shards divide ten partitions: the flooded partition's shard has its users too.
    let flooded = users_of(3, FLOOD_RECORDS);
    let busy = sharding.of_user(&flooded[0]);
    let mut names = (0..).map(|number| format!("witness-{number}"));
    let witness = names.find(|name| sharding.of_user(name) != busy).expect("endless");
    let mut stream = node.stream(&format!("userId={witness}"));
    let (is_over, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (rounds, [own, shared]) = std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| flood_connects(node.public, &stop));
        }
        threads.spawn(|| {
            let body = json!({
                "content": "flood", "targetType": "SELECTED", "targetIds": flooded
            });
            (0..FLOODS).for_each(|_| drop(node.create(&body)));
            is_over.store(true, Ordering::Relaxed);
        });
        let (mut rounds, mut longest) = (0, [Duration::ZERO; 2]);
        while rounds < ROUNDS_MIN || !is_over.load(Ordering::Relaxed) {
            let content = format!("round {rounds}");
            let mut body = json!({"content": content, "targetType": "ALL"});
            if rounds % 2 == 0 {
                body = json!({
                    "content": content, "targetType": "SELECTED", "targetIds": [witness]
                });
            }
            node.create(&body);
            let began = Instant::now();
            assert_eq!(stream.message().content(), content);
            let longest = &mut longest[rounds % 2];
            *longest = began.elapsed().max(*longest);
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
        (rounds, longest)
    });
    println!("of {rounds} the longest waits were {own:?} for his own, {shared:?} for group events");
    assert!(own.max(shared) < WAIT_MAX, "{own:?}, {shared:?}");
    // It was a flood: both of connects, and of records, of which 95 % were of one partition.
    let connects = node.metric("corecast_connections_accepted_total").expect("a metric");
    assert!(connects > 2.0 * FLOOD_CONNECTIONS as f64, "{connects} connects");
    assert!(FLOODS * FLOOD_RECORDS > 19 * rounds, "{rounds} others");
    wait::until_true("all records have been read", PATIENCE, || {
        let events = node.metric("corecast_events_total").expect("a metric");
        events >= (FLOODS * FLOOD_RECORDS + rounds) as f64
    });
}
