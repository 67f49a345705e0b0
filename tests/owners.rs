//! Who keeps what, on real parts: two nodes share the partitions, and what is for users who are
//! not here is kept by one of them, whoever is killed or frozen meanwhile. Then everybody comes
//! without a cursor, and has each of his messages once, in order.
//!
//! Cassandra stands in for ScyllaDB.

mod real;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::node::Node;
use real::{is_missing, line, node, node_with, owned, place, wait_until_owned, world};
use serde_json::json;

/// A crash moves partitions within 10 s; twice that, for a machine that is busy.
const MOVED: Duration = Duration::from_secs(20);
const USERS: usize = 12;

/// What is sent to users who are not here.
#[derive(Default)]
struct Sent {
    by_user: BTreeMap<String, Vec<String>>,
    count: usize,
}

impl Sent {
    /// One more to each user, by this node.
    fn send(&mut self, node: &Node) {
        for user in 0..USERS {
            let user = format!("offline-{user}");
            let content = format!("{} of {user}", self.count);
            node.create(
                &json!({"content": content, "targetType": "SELECTED", "targetIds": [user]}),
            );
            self.by_user.entry(user).or_default().push(content);
        }
        self.count += 1;
    }

    /// Everybody comes, and has his messages, each once and in order; then one more, and no other.
    fn check(&mut self, node: &Node) {
        let (mut missing, mut twice) = (0, 0);
        let mut streams = BTreeMap::new();
        for (user, sent) in &self.by_user {
            let mut stream = node.stream(&format!("userId={user}"));
            let got: Vec<String> =
                sent.iter().map(|_| stream.message().content().to_owned()).collect();
            missing += sent.iter().filter(|content| !got.contains(content)).count();
            twice += got.len() - got.iter().collect::<std::collections::BTreeSet<_>>().len();
            assert_eq!(got, *sent, "{user}");
            streams.insert(user.clone(), stream);
        }
        self.send(node);
        for (user, stream) in &mut streams {
            assert_eq!(Some(stream.message().content()), self.by_user[user].last().map(|s| &**s));
        }
        println!("{} users, {} messages: {missing} missing, {twice} twice", USERS, self.count);
    }
}

#[test]
fn an_owner_that_is_killed_leaves_nothing_undone() {
    if is_missing() {
        return;
    }
    let place = place();
    let (mut left, mut right) = (node(&place), node(&place));
    wait_until_owned(&[&left, &right], "two nodes share the partitions");
    let mut sent = Sent::default();
    for round in 0..10 {
        sent.send(&left);
        if round == 4 {
            println!("injected: kill -9 of an owner in the middle of its work");
            right.process.kill();
        }
    }
    let took = wait_until_owned(&[&left], "the other owns all");
    assert!(took < MOVED, "{took:?}");
    place.wait_for_no_lag(&world().kafka, 1);
    right.start_again();
    wait_until_owned(&[&left, &right], "it has its share again");
    place.wait_for_no_lag(&world().kafka, 2);
    sent.check(&right);
    assert!(left.terminate().success());
}

#[test]
fn an_owner_that_was_frozen_does_no_harm() {
    if is_missing() {
        return;
    }
    let place = place();
    let (left, right) = (node(&place), node(&place));
    wait_until_owned(&[&left, &right], "two nodes share the partitions");
    let mut sent = Sent::default();
    sent.send(&left);
    println!("injected: SIGSTOP of an owner past its session");
    right.process.freeze();
    for _ in 0..5 {
        sent.send(&left);
    }
    wait_until_owned(&[&left], "the other owns all");
    place.wait_for_no_lag(&world().kafka, 1);
    right.process.thaw();
    for _ in 0..5 {
        sent.send(&right);
    }
    wait_until_owned(&[&left, &right], "it has its share again");
    place.wait_for_no_lag(&world().kafka, 2);
    sent.check(&left);
}

#[test]
fn an_owner_that_leaves_is_replaced_at_once() {
    if is_missing() {
        return;
    }
    let place = place();
    let (left, mut right) = (node(&place), node(&place));
    wait_until_owned(&[&left, &right], "two nodes share the partitions");
    let mut sent = Sent::default();
    sent.send(&left);
    assert!(right.terminate().success());
    let began = Instant::now();
    sent.send(&left);
    wait_until_owned(&[&left], "the other owns all");
    // Less than a session: nobody had to be missed.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    place.wait_for_no_lag(&world().kafka, 1);
    sent.check(&left);
}

#[test]
fn a_node_that_is_no_owner_serves_what_others_keep() {
    if is_missing() {
        return;
    }
    let place = place();
    let edge = node_with(&place, &["node.owner=false"]);
    let owner = node(&place);
    wait_until_owned(&[&owner], "the one owner has all");
    assert_eq!(owned(&edge), 0.0);
    let mut sent = Sent::default();
    sent.send(&edge);
    sent.send(&owner);
    place.wait_for_no_lag(&world().kafka, 1);
    sent.check(&edge);
}

#[test]
fn older_producers_and_bad_records_stop_no_owner() {
    if is_missing() {
        return;
    }
    let place = place();
    let node = node(&place);
    let mut lines = String::new();
    for number in 1..=20_u64 {
        lines += &line("ann", Some("ann"), number, &format!("older {number}"), &json!({}));
        lines += "a:b\tann\tnot JSON\n";
        lines += "a:b\tann\t{\"broadcastId\":-1,\"eventType\":\"CREATED\"}\n";
    }
    world().kafka.console_produce(&place.selected, &[], &lines);
    place.wait_for_no_lag(&world().kafka, 1);
    let mut stream = node.stream("userId=ann");
    for number in 1..=20 {
        assert_eq!(stream.message().content(), format!("older {number}"));
    }
    // Each is of a broadcast that only its records told of.
    node.get("/api/admin/broadcasts/1").error(404);
}
