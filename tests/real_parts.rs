//! The node on Apache Kafka and a CQL database: what other producers write is served, what is
//! created outlives the node, and two nodes are one service.

mod people;
mod real;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use harness::browser::{self, Page};
use harness::node::{Node, command};
use harness::process::Process;
use harness::sse::Stream;
use people::{User, close_all_partitions, say, tell};
use real::{
    LONG, PARTITIONS, PROGRAM, is_missing, line, node, node_with, place, wait_until_owned, world,
};
use scylla::client::session_builder::SessionBuilder;
use serde_json::{Value, json};

#[test]
fn what_the_console_producer_writes_reaches_the_streams() {
    if is_missing() {
        return;
    }
    let place = place();
    let node = node(&place);
    let mut ann = node.stream("userId=ann&roles=chef");
    let more = json!({
        "targetType": "SELECTED", "senderName": "Console", "priority": "HIGH",
        "category": "News", "createdAt": "2026-01-02T03:04:05Z", "attempt": 0, "unheard": [1],
    });
    let targeted = line("ann", Some("ann"), 1, "plain", &json!({}))
        + &line("ann", Some("ann"), 2, "with all", &more)
        + &line("ben", Some("ben"), 3, "for another", &json!({}));
    world().kafka.console_produce(&place.selected, &[], &targeted);
    let plain = ann.message();
    assert_eq!((plain.content(), &plain.data["userId"]), ("plain", &json!("ann")));
    assert_eq!(plain.data["createdAt"], "2026-01-02T03:04:05.678Z", "{plain:?}");
    let full = ann.message();
    assert_eq!((full.content(), &full.data["senderName"]), ("with all", &json!("Console")));
    assert_eq!((&full.data["priority"], &full.data["category"]), (&json!("HIGH"), &json!("News")));

    let roles = |names: &[&str]| json!({"targetType": "ROLE", "targetIds": names});
    let group = line("4", None, 4, "for waiters", &roles(&["waiter"]))
        + &line("4", None, 5, "for chefs", &roles(&["waiter", "chef"]));
    world().kafka.console_produce(&place.group, &[], &group);
    assert_eq!(ann.message().content(), "for chefs");
}

#[test]
fn an_event_source_gets_what_the_console_producer_writes() {
    let Some(program) = browser::find() else {
        return harness::skip("no Chromium", "install the package chromium");
    };
    if is_missing() {
        return;
    }
    let place = place();
    let node = node(&place);
    let page = Page::open(program, node.public);
    page.wait_for_connected();
    let content = "one \\r\\n two: data: three é";
    let targeted = line("browser", Some("browser"), 1, content, &json!({}));
    world().kafka.console_produce(&place.selected, &[], &targeted);
    page.expect_message(content);
}

#[test]
fn no_record_stops_a_partition() {
    if is_missing() {
        return;
    }
    let place = place();
    let node = node(&place);
    let (mut stream, first) = (node.stream("userId=ann"), node.stream("userId=ann"));
    let (topic, mut java) = (&place.group, world().kafka.java_producer());
    java.say(&["open", "plain"]);
    java.say(&["open", "packed", "compression.type=zstd"]);
    java.say(&["open", "sure", &format!("transactional.id={topic}")]);
    let everybody = json!({"targetType": "ALL"});
    let value = |id: u64, content: &str| {
        let line = line("k", None, id, content, &everybody);
        line.trim_end().rsplit('\t').next().expect("a value").to_owned()
    };
    // All into one partition; behind each that can't be served stands one that can.
    let mut id = 0;
    let cut = value(900, "cut");
    let bad = ["no JSON", "", "~", "{}", "[1]", &cut[..cut.len() - 1], "{\"broadcastId\":\"x\"}"];
    for bad in bad {
        id += 1;
        let content = format!("behind {id}");
        java.send(&["plain", topic, "0", "k", bad]);
        java.send(&["plain", topic, "0", "~", &value(id, &content)]);
        assert_eq!(stream.message().content(), content, "behind {bad:?}");
    }
    java.send(&["packed", topic, "0", "k", &value(100, "packed")]);
    assert_eq!(stream.message().content(), "packed");
    for (id, content, end) in [(101, "gone", "abort"), (102, "sure", "commit")] {
        java.say(&["begin", "sure"]);
        java.send(&["sure", topic, "0", "k", &value(id, content)]);
        java.say(&[end, "sure"]);
    }
    assert_eq!(stream.message().content(), "sure");
    let headers: Vec<String> = (0..500).map(|number| format!("name{}=v", number % 7)).collect();
    let mut send = vec!["plain", topic, "0", "k"];
    let many = value(103, "many headers");
    send.push(&many);
    send.push("null");
    send.extend(headers.iter().map(String::as_str));
    java.send(&send);
    assert_eq!(stream.message().content(), "many headers");
    java.send(&["plain", topic, "0", "k", &value(104, "end")]);
    assert_eq!(stream.message().content(), "end");
    // Another node, which reads all of it again, serves the same to who was there at the start.
    let other = real::node(&place);
    let again = other.resume("userId=ann", &first).contents_until("end");
    let behind = (1..=bad.len()).map(|id| format!("behind {id}"));
    let rest = ["packed", "sure", "many headers"].map(str::to_owned);
    assert_eq!(again, behind.chain(rest).collect::<Vec<_>>());
}

#[test]
fn forged_fields_of_ours_cost_their_record_at_most() {
    if is_missing() {
        return;
    }
    let place = place();
    let nodes = [node(&place), node(&place)];
    wait_until_owned(&nodes.each_ref(), "both own some");
    let mut streams = nodes.each_ref().map(|node| node.stream("userId=ann"));
    // What only Corecast writes, in ann's partition and, as by another partitioner, in others'.
    let taken = [
        ("ann", json!({})),
        ("ann", json!({"after": u64::MAX})),
        ("ann", json!({"after": null})),
        ("ann", json!({"attempt": u32::MAX})),
        ("k1", json!({})),
        ("k2", json!({"attempt": u32::MAX})),
        ("k3", json!({"attempt": u32::MAX - 1})),
        ("k4", json!({"after": u64::MAX})),
        // Once more, in other attempts.
        ("ann", json!({"attempt": 5})),
        ("k5", json!({"attempt": 3})),
    ];
    let repeats = BTreeMap::from([(8, 0), (9, 4)]);
    let refused = [
        json!({"after": 1e30}),
        json!({"after": -1}),
        json!({"after": "7"}),
        json!({"attempt": u64::from(u32::MAX) + 1}),
        json!({"attempt": -1}),
        json!({"attempt": "2"}),
    ];
    let said = |number: u64| format!("said {number}");
    let lines = (0..).zip(&taken).map(|(number, (key, more))| {
        let number = repeats.get(&number).copied().unwrap_or(number);
        line(key, Some("ann"), number + 1, &said(number), more)
    });
    let bad = (100..).zip(&refused).map(|(id, more)| line("ann", Some("ann"), id, "bad", more));
    let lines: String = lines.chain(bad).collect();
    world().kafka.console_produce(&place.selected, &[], &lines);
    let due: BTreeSet<String> = (0..8).map(said).collect();
    for stream in &mut streams {
        let got = due.iter().map(|_| stream.message().content().to_owned());
        assert_eq!(got.collect::<BTreeSet<_>>(), due);
    }
    place.wait_for_no_lag(&world().kafka, 2);
    nodes[0].create(&json!({"content": "end", "targetType": "SELECTED", "targetIds": ["ann"]}));
    for stream in &mut streams {
        assert_eq!(stream.message().content(), "end", "and nothing twice");
    }
    let dead = format!("{}-dlt", place.selected);
    let letters = world().kafka.console_consume(&dead, refused.len());
    // What the headers say takes lines of its own.
    let bad = letters.iter().filter(|line| line.contains("\"message\":\"bad\""));
    assert_eq!(bad.count(), refused.len(), "{letters:?}");
}

#[test]
fn what_is_created_outlives_the_node() {
    if is_missing() {
        return;
    }
    let place = place();
    let mut node = node(&place);
    let mut stream = node.stream("userId=ann");
    node.say("before");
    assert_eq!(stream.message().content(), "before");
    let contents: Vec<String> = (0..6).map(|number| format!("after {number}")).collect();
    let mut made = Vec::new();
    for (number, content) in contents.iter().enumerate() {
        let mut body = json!({"content": content, "targetType": "ALL"});
        if number % 2 == 1 {
            body = json!({"content": content, "targetType": "SELECTED", "targetIds": ["ann"]});
        }
        made.push(node.create(&body));
    }
    node.process.kill();
    node.start_again();
    let list = node.get("/api/admin/broadcasts?filter=all").expect_json();
    let listed: Vec<&Value> = list.as_array().expect("an array").iter().collect();
    assert_eq!(listed.len(), 7);
    for made in &made {
        assert!(listed.contains(&made), "{made} is not in {list}");
        let shown = node.get(&format!("/api/admin/broadcasts/{}", made["id"])).expect_json();
        assert_eq!(shown["content"], made["content"]);
    }
    let mut back = node.resume("userId=ann", &stream);
    let mut got: Vec<String> =
        contents.iter().map(|_| back.message().content().to_owned()).collect();
    got.sort_unstable();
    assert_eq!(got, contents, "each once");
    node.say("end");
    assert_eq!(back.message().content(), "end");
}

#[test]
fn two_nodes_are_one_service() {
    if is_missing() {
        return;
    }
    let place = place();
    let nodes = [node(&place), node(&place)];
    let mut streams = [nodes[0].stream("userId=ann"), nodes[1].stream("userId=ben")];
    for (number, from) in nodes.iter().enumerate() {
        let content = format!("from node {number}");
        from.say(&content);
        for stream in &mut streams {
            assert_eq!(stream.message().content(), content);
        }
        let to = json!({"content": "for ann", "targetType": "SELECTED", "targetIds": ["ann"]});
        from.create(&to);
        assert_eq!(streams[0].message().content(), "for ann");
    }
    // What one node has served is behind its cursor on the other, and nothing else is.
    for round in 0..4 {
        let (here, there) = (&nodes[round % 2], &nodes[(round + 1) % 2]);
        let query = "userId=ann";
        let first = here.stream(query);
        let mut last = if round < 2 { there.resume(query, &streams[0]) } else { first };
        for number in 0..3 {
            let content = format!("{round} {number}");
            here.say(&content);
            assert_eq!(last.message().content(), content);
            let mut other = there.resume(query, &last);
            let next = format!("{round} {number} next");
            there.say(&next);
            assert_eq!(other.message().content(), next);
            assert_eq!(last.message().content(), next);
            streams[0] = other;
        }
    }
}

/// Nodes of two and of three shards, on which users come and go, most of them in the middle of what
/// they are to get: everybody gets everything of his once, in the order of each partition.
#[test]
fn every_user_is_served_on_whichever_node_he_is_on() {
    if is_missing() {
        return;
    }
    let place = place();
    let nodes = ["node.shards=2", "node.shards=3"].map(|shards| node_with(&place, &[shards]));
    let mut users: Vec<User> = (0..24).map(|number| User::new(number, PARTITIONS)).collect();
    for round in 0..6 {
        for (number, user) in users.iter_mut().enumerate() {
            let is_to_move = round == 0 || (number + round) % 3 > 0;
            if is_to_move {
                user.leave();
                user.connect(&nodes[(number + round) % 2]);
            }
        }
        for (number, node) in nodes.iter().enumerate() {
            say(node, &mut users, &format!("{round} to all from node {number}"));
            for user in users.iter_mut().skip(number).step_by(2) {
                let content = format!("{round} to {}", user.name);
                tell(node, user, &content);
            }
        }
        for (number, user) in users.iter_mut().enumerate() {
            (0..(number + round) % 4).for_each(|_| user.read());
        }
    }
    for (phase, node) in nodes.iter().enumerate() {
        close_all_partitions(node, &mut users, phase);
    }
    for user in &mut users {
        user.read_all();
        assert_eq!(user.got, user.expected, "{}", user.name);
    }
}

#[test]
fn topics_that_are_not_as_configured_end_the_process() {
    if is_missing() {
        return;
    }
    let place = place();
    world().kafka.create_topic(&place.group, PARTITIONS + 1, 1, &[]);
    let text = ended(&place.sets());
    for part in [&place.group, "4 partitions", "log.partitions = 3", "set log.partitions"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn partitions_that_are_added_are_told_of_and_cost_no_stream() {
    if is_missing() {
        return;
    }
    let place = place();
    let node = node(&place);
    let mut stream = node.stream("userId=ann");
    let more = (PARTITIONS + 1).to_string();
    world().kafka.topics(&["--alter", "--topic", &place.group, "--partitions", &more]);
    let told = |line: &str| line.contains("has got more partitions").then(|| line.to_owned());
    let line = node.process.wait_for_line(LONG, told);
    for part in [&*place.group, "partitions=4", "configured=3", "set log.partitions"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    node.say("still served");
    assert_eq!(stream.message().content(), "still served");
}

#[test]
fn what_the_log_lost_before_it_was_kept_is_told_of() {
    if is_missing() {
        return;
    }
    let place = place();
    let mut node = node(&place);
    let mut ann = node.stream("userId=ann");
    node.say("before");
    node.create(&json!({"content": "ann's", "targetType": "SELECTED", "targetIds": ["ann"]}));
    let mut had = [ann.message(), ann.message()].map(|event| event.content().to_owned());
    had.sort();
    assert_eq!(had, ["ann's", "before"]);
    place.wait_for_no_lag(&world().kafka, 1);
    node.process.kill();

    // Nobody owns the partitions; what comes now is past the log's time before somebody does.
    let everybody = json!({"targetType": "ALL"});
    let to_ann = |id, content| line("ann", Some("ann"), id, content, &json!({}));
    let to_all = |id, content| line("k", None, id, content, &everybody);
    world().kafka.console_produce(&place.selected, &[], &to_ann(1, "lost"));
    world().kafka.console_produce(&place.group, &[], &to_all(2, "lost"));
    let mut java = world().kafka.java_producer();
    for topic in [&place.selected, &place.group] {
        for partition in 0..PARTITIONS {
            // Up to its end.
            java.say(&["trim", topic, &partition.to_string(), "-1"]);
        }
    }
    world().kafka.console_produce(&place.selected, &[], &to_ann(3, "ann's, kept"));
    world().kafka.console_produce(&place.group, &[], &to_all(4, "kept"));
    node.start_again();
    place.wait_for_no_lag(&world().kafka, 1);

    let mut back = node.resume("userId=ann", &ann);
    let (mut gaps, mut kept) = (0, Vec::new());
    while kept.len() < 2 {
        let event = back.next_event().expect("it stays open");
        match &*event.name {
            "GAP" => {
                assert_eq!(event.data["reason"], "RETENTION");
                assert!(event.id.is_some());
                gaps += 1;
            }
            "MESSAGE" => kept.push(event.content().to_owned()),
            other => panic!("unexpected event {other}"),
        }
    }
    kept.sort();
    assert_eq!(kept, ["ann's, kept", "kept"]);
    assert_eq!(gaps, 2, "of her own partition, and of the group's");
    // Who has been told is not told again, and who never had any of it is not told at all.
    let mut again = node.resume("userId=ann", &back);
    let mut ben = node.stream("userId=ben");
    assert_eq!(ben.contents_until("kept"), ["before"]);
    node.say("end");
    assert_eq!(again.message().content(), "end");
    assert_eq!(back.message().content(), "end");
    assert_eq!(ben.message().content(), "end");
}

#[test]
fn what_waits_and_what_a_cursor_says_outlives_more_partitions() {
    if is_missing() {
        return;
    }
    let place = place();
    let mut node = node(&place);
    let users: Vec<String> = (0..12).map(|number| format!("user-{number}")).collect();
    let query = |user: &str| format!("userId={user}");
    let to_each = |node: &Node, content: &str| {
        node.create(&json!({"content": content, "targetType": "SELECTED", "targetIds": users}));
    };
    let mut streams: Vec<_> = users.iter().map(|user| node.stream(&query(user))).collect();
    to_each(&node, "seen");
    streams.iter_mut().for_each(|stream| assert_eq!(stream.message().content(), "seen"));
    // The first half keeps its cursors, the other half begins anew.
    let cursors: Vec<_> = streams.iter().map(|stream| stream.last_id.clone()).collect();
    drop(streams);
    to_each(&node, "waits");
    node.wait_until_kept();
    node.terminate();
    let more = (PARTITIONS + 4).to_string();
    for topic in [&place.selected, &place.group] {
        world().kafka.topics(&["--alter", "--topic", topic, "--partitions", &more]);
    }
    let node = node_with(&place, &[&format!("log.partitions={more}")]);
    to_each(&node, "new");
    // What came of late may come again to who has another partition now.
    let check = |stream: &mut Stream, user: &str| {
        let mut got = stream.contents_until("new");
        got.retain(|content| content != "seen");
        assert_eq!(got, ["waits"], "{user}");
    };
    for (user, cursor) in users.iter().zip(&cursors).take(users.len() / 2) {
        let cursor = cursor.as_deref().expect("a message has one");
        let mut stream = node.stream_with(&query(user), &[("last-event-id", cursor)]);
        check(&mut stream, user);
    }
    for user in &users[users.len() / 2..] {
        check(&mut node.stream(&query(user)), user);
    }
}

#[test]
fn a_keyspace_of_a_newer_release_ends_the_process() {
    if is_missing() {
        return;
    }
    let place = place();
    drop(node(&place));
    let address = &world().cassandra.addresses()[0];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let raw = SessionBuilder::new().known_node(address).build().await.expect("it connects");
        let keyspace = &place.keyspace;
        let newer = format!(
            "UPDATE {keyspace}.corecast_schema SET layout = 1000, oldest = 1000 \
             WHERE part = 'schema' IF EXISTS"
        );
        raw.query_unpaged(newer, ()).await.expect("it is taken");
    });
    let text = ended(&place.sets());
    for part in [&place.keyspace, "layout 1000", "run the newer release"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Starts a node that can't be; its last words.
fn ended(sets: &[&str]) -> String {
    let mut command: Command = command(PROGRAM.as_ref());
    let own = ["public.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0"];
    for set in own.iter().chain(sets) {
        command.args(["--set", set]);
    }
    let mut process = Process::start("corecast", command).expect("it can be run");
    assert_eq!(process.wait_for_end(LONG).code(), Some(1));
    let text = process.text();
    let last = text.lines().find(|line| line.starts_with("corecast: "));
    last.unwrap_or_else(|| panic!("no last words: {text}")).to_owned()
}
