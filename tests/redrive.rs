//! Dead letters by the admin API of a node with the embedded log and store, from outside: they are
//! listed, sent again, each once to whoever it is for, and purged.

use std::collections::BTreeSet;
use std::time::Duration;

use corecast::base::EpochMillis;
use harness::http::{self, Response, is_instant};
use harness::node::Node;
use harness::sse::Stream;
use harness::wait;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");
const LONG: Duration = Duration::from_secs(60);
const LIST: &str = "/api/admin/dlt/messages";
const AUDIT: &str = "/api/admin/dlt/audit";
const REDRIVE_ALL: &str = "/api/admin/dlt/redrive-all";
const PURGE_ALL: &str = "/api/admin/dlt/purge-all";
const FAILURE: &str = "/api/admin/testing/kafka-consumer-failure";
const FIELDS: [&str; 10] = [
    "id",
    "broadcastId",
    "originalKey",
    "originalTopic",
    "originalPartition",
    "originalOffset",
    "exceptionMessage",
    "exceptionStackTrace",
    "failedAt",
    "originalMessagePayload",
];

const NOTHING: [&str; 0] = [];
const NO_LETTERS: [Value; 0] = [];

fn start() -> Node {
    Node::start(PROGRAM, &["testing.enabled=true"])
}

fn post(node: &Node, target: &str) -> Response {
    http::call(node.admin, "POST", target, &[], None)
}

fn delete(node: &Node, target: &str) -> Response {
    http::call(node.admin, "DELETE", target, &[], None)
}

/// Creates a broadcast of which everything becomes a dead letter.
fn create_failing(node: &Node, body: &Value) -> u64 {
    let answer = node.post(FAILURE, &json!({"enabled": true})).expect_json();
    assert_eq!(answer, json!({"enabled": true}));
    let created = node.create(body);
    assert_eq!(node.get(FAILURE).expect_json(), json!({"enabled": false}), "one, not more");
    created["id"].as_u64().expect("an id")
}

fn to_users(content: &str, users: &[String]) -> Value {
    json!({"content": content, "targetType": "SELECTED", "targetIds": users})
}

/// All pages of a list, and how many there were.
fn pages(node: &Node, target: &str) -> (Vec<Value>, usize) {
    let (mut all, mut count, mut next) = (Vec::new(), 0, Some(target.to_owned()));
    while let Some(target) = next {
        let page = node.get(&target);
        count += 1;
        next = page.field("link").map(|link| {
            let (link, relation) = link.split_once('>').expect("a link");
            assert_eq!(relation, "; rel=\"next\"");
            link.trim_start_matches('<').to_owned()
        });
        all.extend(page.expect_json().as_array().expect("an array").iter().cloned());
    }
    (all, count)
}

fn letters(node: &Node) -> Vec<Value> {
    pages(node, &format!("{LIST}?limit=1000")).0
}

fn wait_for_letters(node: &Node, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} dead letters"), LONG, || {
        let letters = letters(node);
        (letters.len() == count).then_some(letters)
    })
}

fn id_of(letter: &Value) -> &str {
    letter["id"].as_str().expect("an id")
}

fn all_succeed(count: usize) -> Value {
    json!({"totalMessages": count, "successCount": count, "failureCount": 0, "failures": []})
}

/// What the stream brings until this node says something to everybody.
fn until_marker(node: &Node, stream: &mut Stream, marker: &str) -> Vec<String> {
    node.say(marker);
    stream.contents_until(marker)
}

#[test]
fn a_dead_letter_is_listed_sent_again_and_comes_once() {
    let mut node = start();
    let users = ["ann", "ben"].map(str::to_owned);
    let mut ben = node.stream("userId=ben");
    let broadcast = create_failing(&node, &to_users("late", &users));
    let letters = wait_for_letters(&node, 2);
    for letter in &letters {
        let names: BTreeSet<&str> =
            letter.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(FIELDS));
        assert_eq!(letter["broadcastId"], broadcast);
        assert_eq!(letter["originalTopic"], "broadcast-user-service-selected");
        assert!(letter["originalPartition"].is_u64() && letter["originalOffset"].is_u64());
        assert_eq!(letter["exceptionMessage"], "its failure was simulated, attempt 3 of 3");
        let trace = letter["exceptionStackTrace"].as_str().expect("a text");
        assert!(trace.starts_with("corecast.NotProcessed: "), "{trace}");
        assert!(is_instant(letter["failedAt"].as_str()));
        let payload = letter["originalMessagePayload"].as_str().expect("a text");
        let payload: Value = serde_json::from_str(payload).expect("JSON");
        assert_eq!((&payload["attempt"], &payload["userId"]), (&json!(2), &letter["originalKey"]));
        assert!(id_of(letter).starts_with("broadcast-user-service-selected-dlt-0-"));
    }
    assert!(letters[0]["failedAt"].as_str() >= letters[1]["failedAt"].as_str(), "newest first");
    let of = |user: &str| {
        let letter = letters.iter().find(|letter| letter["originalKey"] == user);
        id_of(letter.expect("one each")).to_owned()
    };

    let redrive =
        |node: &Node, user: &str| post(node, &format!("/api/admin/dlt/redrive/{}", of(user)));
    assert_eq!(redrive(&node, "ann").expect_json(), all_succeed(1));
    assert_eq!(wait_for_letters(&node, 1), letters_of(&letters, "ben"));
    assert!(redrive(&node, "ann").error(404).contains("there is no dead letter"));
    assert_eq!(post(&node, REDRIVE_ALL).expect_json(), all_succeed(1));
    assert_eq!(ben.message().content(), "late");
    assert_eq!(until_marker(&node, &mut ben, "one"), NOTHING, "once");
    assert_eq!(post(&node, REDRIVE_ALL).expect_json(), all_succeed(0));

    // Who was away gets it as well, and neither it nor the dead letter comes back.
    let mut ann = node.stream("userId=ann");
    assert_eq!(ann.message().content(), "late");
    node.crash();
    let mut ben = node.resume("userId=ben", &ben);
    assert_eq!(until_marker(&node, &mut ben, "two"), NOTHING);
    assert_eq!(self::letters(&node), NO_LETTERS);
}

fn letters_of(letters: &[Value], user: &str) -> Vec<Value> {
    letters.iter().filter(|letter| letter["originalKey"] == user).cloned().collect()
}

#[test]
fn a_dead_letter_for_a_group_comes_once() {
    let node = start();
    let mut stream = node.stream("userId=ann&roles=chef");
    let mut other = node.stream("userId=ben");
    let role = json!({"content": "chefs", "targetType": "ROLE", "targetIds": ["chef"]});
    create_failing(&node, &role);
    let letters = wait_for_letters(&node, 1);
    assert_eq!(letters[0]["originalTopic"], "broadcast-user-service-group");
    assert_eq!(post(&node, REDRIVE_ALL).expect_json(), all_succeed(1));
    assert_eq!(stream.message().content(), "chefs");
    assert_eq!(until_marker(&node, &mut stream, "end"), NOTHING);
    assert_eq!(other.contents_until("end"), NOTHING, "nobody else's");
    // Without a cursor, and for nobody else.
    node.wait_until_kept();
    let again = node.stream("userId=carl&roles=chef").contents_until("end");
    assert_eq!(again, ["chefs"]);
}

#[test]
fn what_can_not_be_sent_again_says_why_and_may_be_purged() {
    let node = start();
    let mut stream = node.stream("userId=ann");
    let kept = create_failing(&node, &to_users("kept", &["ann".to_owned()]));
    let gone = create_failing(&node, &to_users("gone", &["ann".to_owned()]));
    let letters = wait_for_letters(&node, 2);
    let of = |broadcast: u64| {
        let letter = letters.iter().find(|letter| letter["broadcastId"] == broadcast);
        id_of(letter.expect("one each")).to_owned()
    };
    assert_eq!(delete(&node, &format!("/api/admin/broadcasts/{gone}")).status, 204);
    let why = format!("broadcast {gone} is CANCELLED");
    let said = post(&node, &format!("/api/admin/dlt/redrive/{}", of(gone))).error(409);
    assert!(said.contains(&why), "{said}");
    let expected = json!({
        "totalMessages": 2, "successCount": 1, "failureCount": 1,
        "failures": [{"dltMessageId": of(gone), "reason": why}],
    });
    assert_eq!(post(&node, REDRIVE_ALL).expect_json(), expected);
    let removed = stream.next_event().expect("an event");
    assert_eq!(
        (removed.name.as_str(), &removed.data["broadcastId"]),
        ("MESSAGE_REMOVED", &json!(gone))
    );
    assert_eq!(stream.message().content(), "kept");
    assert_eq!(wait_for_letters(&node, 1)[0]["id"], of(gone));

    assert!(delete(&node, &format!("/api/admin/dlt/purge/{}", of(kept))).error(404).len() > 1);
    assert_eq!(delete(&node, &format!("/api/admin/dlt/purge/{}", of(gone))).status, 204);
    assert_eq!(self::letters(&node), NO_LETTERS);
    for (method, call) in [("POST", "redrive"), ("DELETE", "purge")] {
        let target = format!("/api/admin/dlt/{call}/{}", of(gone));
        http::call(node.admin, method, &target, &[], None).error(404);
        let target = format!("/api/admin/dlt/{call}/nonsense");
        let said = http::call(node.admin, method, &target, &[], None).error(400);
        assert!(said.contains("id: must be"), "{said}");
    }
    // What was done is kept, the newest first.
    let (lines, count) = pages(&node, &format!("{AUDIT}?limit=2"));
    assert_eq!(count, 2, "3 lines in pages of 2");
    let said: Vec<_> = lines
        .iter()
        .map(|line| (&line["action"], &line["dltMessageId"], &line["totalMessages"]))
        .collect();
    assert_eq!(
        said,
        [
            (&json!("PURGE"), &json!(of(gone)), &json!(1)),
            (&json!("REDRIVE_ALL"), &Value::Null, &json!(2)),
            (&json!("REDRIVE"), &json!(of(gone)), &json!(1)),
        ]
    );
    assert_eq!((&lines[1]["successCount"], &lines[1]["failureCount"]), (&json!(1), &json!(1)));
}

#[test]
fn what_is_purged_stays_away_and_its_line_stays() {
    let mut node = start();
    let users: Vec<String> = (0..10).map(|number| format!("u{number}")).collect();
    create_failing(&node, &to_users("never", &users));
    wait_for_letters(&node, users.len());
    assert_eq!(delete(&node, PURGE_ALL).status, 204);
    assert_eq!(node.metric("corecast_dead_letters_purged_total"), Some(users.len() as f64));
    node.crash();
    assert_eq!(letters(&node), NO_LETTERS);
    assert_eq!(post(&node, REDRIVE_ALL).expect_json(), all_succeed(0));
    let mut stream = node.stream("userId=u3");
    assert_eq!(until_marker(&node, &mut stream, "end"), NOTHING);
    let lines = node.get(AUDIT).expect_json();
    let purge = &lines[1];
    assert_eq!((&purge["action"], &purge["totalMessages"]), (&json!("PURGE_ALL"), &json!(10)));
    assert!(is_instant(purge["at"].as_str()) && purge["node"].is_string(), "{purge}");
}

#[test]
fn thousands_are_listed_page_by_page_and_sent_again() {
    const MANY: usize = 3_000;
    let node = start();
    let users: Vec<String> = (0..MANY).map(|number| format!("u{number}")).collect();
    let mut streams: Vec<Stream> =
        (0..5).map(|number| node.stream(&format!("userId=u{}", number * 500))).collect();
    create_failing(&node, &to_users("late", &users));
    wait::until_true("all are dead letters", LONG, || {
        node.metric("corecast_dead_letter_rows_total") >= Some(MANY as f64)
    });
    let (found, count) = pages(&node, &format!("{LIST}?limit=700"));
    assert_eq!((found.len(), count), (MANY, 5));
    let ids: BTreeSet<&str> = found.iter().map(id_of).collect();
    assert_eq!(ids.len(), MANY, "each once");
    let times: Vec<_> = found.iter().map(|letter| letter["failedAt"].as_str()).collect();
    assert!(times.is_sorted_by(|one, next| one >= next), "newest first");
    let said = node.get(&format!("{LIST}?limit=0&cursor=x")).error(400);
    assert!(said.contains("limit: must be 1 to 1000") && said.contains("cursor: "), "{said}");

    let began = std::time::Instant::now();
    assert_eq!(post(&node, REDRIVE_ALL).expect_json(), all_succeed(MANY));
    assert_eq!(node.metric("corecast_dead_letters_redriven_total"), Some(MANY as f64));
    println!("{MANY} dead letters sent again in {:?}", began.elapsed());
    for stream in &mut streams {
        assert_eq!(until_marker(&node, stream, "end"), ["late"]);
    }
    assert_eq!(letters(&node), NO_LETTERS);
}

#[test]
fn a_crash_in_the_middle_loses_nothing_and_sends_nothing_twice() {
    const MANY: usize = 1_500;
    const ROUNDS: usize = 5;
    let mut node = start();
    let users: Vec<String> = (0..MANY).map(|number| format!("u{number}")).collect();
    let mut streams: Vec<Stream> =
        (0..30).map(|number| node.stream(&format!("userId=u{}", number * 50))).collect();
    create_failing(&node, &to_users("late", &users));
    wait_for_letters(&node, MANY);
    let mut rounds = 0;
    while rounds < ROUNDS && !letters(&node).is_empty() {
        let (admin, before) = (node.admin, letters(&node).len());
        let calling = std::thread::spawn(move || {
            http::try_call(admin, "POST", REDRIVE_ALL, &[], None).is_some()
        });
        // Some are out of the list, or it was too quick.
        wait::until_true("some are done", LONG, || {
            let page = node.get(&format!("{LIST}?limit=1000"));
            page.expect_json().as_array().is_some_and(|page| page.len() < before.min(1_000))
        });
        node.crash();
        calling.join().expect("it ends");
        println!("round {rounds}: {before} before, {} left", letters(&node).len());
        rounds += 1;
    }
    let answer = post(&node, REDRIVE_ALL).expect_json();
    assert_eq!(answer["failureCount"], 0, "{answer}");
    assert_eq!(letters(&node), NO_LETTERS);
    node.wait_until_kept();
    node.say("end");
    for (number, stream) in streams.iter_mut().enumerate() {
        let query = format!("userId=u{}", number * 50);
        let mut had = Vec::new();
        while let Some(event) = stream.next_event() {
            had.extend((event.name == "MESSAGE").then(|| event.content().to_owned()));
        }
        had.extend(node.resume(&query, stream).contents_until("end"));
        assert_eq!(had, ["late"], "u{}", number * 50);
    }
}

#[test]
fn a_message_that_fails_is_tried_three_times_a_second_apart_while_others_are_served() {
    let node = start();
    let mut stream = node.stream("userId=ann");
    let to_ann = |content: &str| to_users(content, &["ann".to_owned()]);
    let at = |shown: &Value| {
        let at = EpochMillis::parse_iso(shown.as_str().expect("an instant"));
        at.expect("a time").0
    };
    let began = at(&node.create(&to_ann("before"))["createdAt"]);
    create_failing(&node, &to_ann("failing"));
    node.create(&to_ann("behind it"));
    assert_eq!(stream.message().content(), "before");
    assert_eq!(stream.message().content(), "behind it");
    let letter = wait_for_letters(&node, 1).remove(0);
    let took = at(&letter["failedAt"]) - began;
    assert!((2_000..20_000).contains(&took), "three tries in {took} ms");
    let again = node.metric("corecast_records_published_again_total");
    assert_eq!(again, Some(2.0), "two more tries");
}

#[test]
fn without_test_mode_nothing_is_made_to_fail() {
    let node = Node::start(PROGRAM, &[]);
    for answer in [node.get(FAILURE), node.post(FAILURE, &json!({"enabled": true}))] {
        assert!(answer.error(403).contains("testing.enabled"));
    }
    assert_eq!(post(&node, REDRIVE_ALL).expect_json(), all_succeed(0));
    assert_eq!(node.get(LIST).expect_json(), json!([]));
    assert_eq!(node.get(AUDIT).expect_json()[0]["action"], "REDRIVE_ALL");
}

#[test]
fn the_test_mode_reads_what_it_is_told_and_nothing_else() {
    let node = start();
    for (body, said) in [
        (json!({}), "enabled: must be"),
        (json!({"enabled": "yes"}), "enabled: must be"),
        (json!([]), "enabled: must be"),
    ] {
        assert!(node.post(FAILURE, &body).error(400).contains(said), "{body}");
    }
    let text = http::call(node.admin, "POST", FAILURE, &[], Some(b"{\"enabled\":true}"));
    text.error(415);
    node.post(FAILURE, &json!({"enabled": true}));
    assert_eq!(node.post(FAILURE, &json!({"enabled": false})).status, 200);
    let mut stream = node.stream("userId=ann");
    node.say("served");
    assert_eq!(stream.message().content(), "served");
}
