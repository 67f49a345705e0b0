//! The admin listener: creating, showing and listing broadcasts, health, metrics.

use std::collections::BTreeSet;
use std::sync::Arc;

use harness::http::{self, Response, is_instant};
use harness::node::{Node, Shared};
use serde_json::{Value, json};

const PATH: &str = "/api/admin/broadcasts";

/// The tests share a node and list only what is theirs.
fn node() -> Arc<Node> {
    static SHARED: Shared = Shared::new();
    SHARED.get(start)
}

fn start() -> Node {
    Node::start(env!("CARGO_BIN_EXE_corecast"), &[])
}

const FIELDS: [&str; 17] = [
    "id",
    "correlationId",
    "senderId",
    "senderName",
    "content",
    "targetType",
    "targetIds",
    "priority",
    "category",
    "createdAt",
    "scheduledAt",
    "expiresAt",
    "fireAndForget",
    "status",
    "totalTargeted",
    "totalDelivered",
    "totalRead",
];

#[test]
fn a_broadcast_is_shown_as_it_was_created() {
    let node = node();
    let created = node.create(&json!({
        "senderId": "ops-1", "senderName": "Ops", "content": "shown é \u{1F600}\n",
        "targetType": "SELECTED", "targetIds": ["b", "a", "b"], "priority": "URGENT",
        "category": "Maintenance", "scheduledAt": "2020-01-01T01:00:00+01:00",
        "expiresAt": "2999-01-01T00:00:00.5Z", "isFireAndForget": true, "unknown": [1],
    }));
    let names: BTreeSet<&str> =
        created.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(FIELDS));
    for (field, value) in [
        ("senderId", json!("ops-1")),
        ("senderName", json!("Ops")),
        ("content", json!("shown é \u{1F600}\n")),
        ("targetType", json!("SELECTED")),
        ("targetIds", json!(["b", "a"])),
        ("priority", json!("URGENT")),
        ("category", json!("Maintenance")),
        ("scheduledAt", json!("2020-01-01T00:00:00.000Z")),
        ("expiresAt", json!("2999-01-01T00:00:00.500Z")),
        ("fireAndForget", json!(true)),
        ("status", json!("ACTIVE")),
        ("totalTargeted", json!(2)),
        ("totalDelivered", json!(0)),
        ("totalRead", json!(0)),
    ] {
        assert_eq!(created[field], value, "{field}");
    }
    assert!(is_instant(created["createdAt"].as_str()), "{created}");
    assert!(created["correlationId"].is_string(), "{created}");
    let id = created["id"].as_u64().expect("an integer");
    assert!(id < 1 << 53, "a JavaScript number holds {id}");
    assert_eq!(node.get(&format!("{PATH}/{id}")).expect_json(), created);
}

#[test]
fn what_is_left_out_has_its_default() {
    let node = node();
    let created = node.create(&json!({"content": "x", "targetType": "ROLE", "targetIds": ["r"]}));
    for (field, value) in [
        ("senderId", Value::Null),
        ("senderName", Value::Null),
        ("category", Value::Null),
        ("scheduledAt", Value::Null),
        ("priority", json!("NORMAL")),
        ("fireAndForget", json!(false)),
        ("totalTargeted", json!(0)),
    ] {
        assert_eq!(created[field], value, "{field}");
    }
    // 30 days after its creation.
    assert!(is_instant(created["expiresAt"].as_str()), "{created}");
    let created = node.create(&json!({
        "content": "x", "targetType": "ROLE", "targetIds": ["r"],
        "expiresAt": "2020-01-01T00:00:00Z",
    }));
    assert_eq!(created["status"], "EXPIRED", "its end is past");
}

#[test]
fn every_violated_rule_is_named_in_one_answer() {
    let node = node();
    let answer = node.post(
        PATH,
        &json!({
            "senderId": "", "senderName": "a\u{7}", "content": " \n", "targetType": "GROUP",
            "targetIds": [], "priority": "ASAP", "category": 5,
            "scheduledAt": "2020-01-02T00:00:00Z", "expiresAt": "2020-01-01T00:00:00Z",
            "fireAndForget": "yes",
        }),
    );
    let message = answer.error(400);
    for field in [
        "senderId",
        "senderName",
        "content",
        "targetIds",
        "priority",
        "category",
        "expiresAt",
        "fireAndForget",
    ] {
        assert!(message.contains(&format!("{field}: ")), "{field} is not named in {message:?}");
    }
    assert!(!message.contains("targetType"), "{message}");
    let names: Vec<String> = (0..1_001).map(|number| number.to_string()).collect();
    for (body, part) in [
        (json!({}), "content: "),
        (json!({}), "targetType: "),
        (json!([1]), "body: "),
        (json!("text"), "body: "),
        (json!({"content": "x".repeat(65_537), "targetType": "ALL"}), "content: "),
        (json!({"content": "é".repeat(32_769), "targetType": "ALL"}), "content: "),
        (json!({"content": "x", "targetType": "EVERYBODY"}), "targetType: "),
        (json!({"content": "x", "targetType": "ROLE"}), "targetIds: "),
        (json!({"content": "x", "targetType": "ROLE", "targetIds": names}), "targetIds: "),
        (json!({"content": "x", "targetType": "ROLE", "targetIds": [7]}), "targetIds: "),
        (json!({"content": "x", "targetType": "SELECTED", "targetIds": ["a\n"]}), "targetIds: "),
        (json!({"content": "x", "targetType": "ALL", "expiresAt": "tomorrow"}), "expiresAt: "),
        (json!({"content": "x", "targetType": "ALL", "expiresAt": 5}), "expiresAt: "),
    ] {
        let message = node.post(PATH, &body).error(400);
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    // What one broadcast may write to the log in all.
    let users: Vec<String> = (0..20_000).map(|number| format!("u{number}")).collect();
    let body = json!({"content": "x".repeat(60_000), "targetType": "SELECTED", "targetIds": users});
    node.post(PATH, &body).error(413);
    let body =
        json!({"content": "x".repeat(65_536), "targetType": "ROLE", "targetIds": ["limits"]});
    node.create(&body);
}

/// Follows the Link fields; the bodies of the pages.
fn pages(node: &Node, first: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut target = Some(first.to_owned());
    while let Some(next) = target {
        let answer = node.get(&next);
        let page = answer.expect_json().as_array().expect("an array").clone();
        pages.push(page);
        target = next_of(&answer);
        assert!(pages.len() < 1_000, "the pages end");
    }
    pages
}

fn next_of(answer: &Response) -> Option<String> {
    let link = answer.field("link")?;
    let rest = link.strip_prefix('<').expect("a link");
    let (target, relation) = rest.split_once('>').expect("a link");
    assert_eq!(relation, "; rel=\"next\"");
    Some(target.to_owned())
}

#[test]
fn lists_are_newest_first_and_paged() {
    let node = start();
    assert_eq!(node.get(PATH).expect_json(), json!([]));
    let mut ids: Vec<u64> = Vec::new();
    for number in 0..25 {
        // Every fifth has expired already.
        let expires_at =
            if number % 5 == 0 { "2020-01-01T00:00:00Z" } else { "2999-01-01T00:00:00Z" };
        let created = node.create(&json!({
            "content": number.to_string(), "targetType": "ALL", "expiresAt": expires_at
        }));
        ids.push(created["id"].as_u64().expect("an id"));
    }
    // Newest first; those of one millisecond stand in the order of their ids.
    let mut newest_first = ids.clone();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    let active: BTreeSet<u64> =
        ids.iter().enumerate().filter(|(number, _)| number % 5 != 0).map(|(_, id)| *id).collect();
    for (filter, limit, expected) in [
        ("", None, newest_first.clone()),
        ("filter=all&", Some(1), newest_first.clone()),
        ("filter=all&", Some(7), newest_first.clone()),
        ("filter=all&", Some(25), newest_first.clone()),
        ("filter=all&", Some(1_000), newest_first.clone()),
        (
            "filter=active&",
            Some(6),
            newest_first.iter().copied().filter(|id| active.contains(id)).collect(),
        ),
        ("filter=scheduled&", Some(6), Vec::new()),
    ] {
        let query = limit.map_or(String::new(), |limit| format!("limit={limit}"));
        let pages = pages(&node, &format!("{PATH}?{filter}{query}"));
        let limit = limit.unwrap_or(100);
        let count = expected.len();
        assert_eq!(pages.len(), count.div_ceil(limit).max(1), "{filter}{query}");
        let rows: Vec<u64> =
            pages.concat().iter().map(|row| row["id"].as_u64().expect("an id")).collect();
        assert_eq!(rows, expected, "{filter}{query}");
    }
    for bad in
        ["limit=0", "limit=1001", "limit=x", "limit=-1", "filter=new", "cursor=!", "cursor=AAAA"]
    {
        node.get(&format!("{PATH}?{bad}")).error(400);
    }
    let all = node.get(&format!("{PATH}?filter=new&limit=0&cursor=!")).error(400);
    for name in ["filter: ", "limit: ", "cursor: "] {
        assert!(all.contains(name), "{name} is not in {all}");
    }
}

#[test]
fn all_targets_can_be_paged() {
    let node = node();
    let users: Vec<String> = (0..2_500).map(|number| format!("page user {number}")).collect();
    let created = node.create(&json!({
        "content": "many", "targetType": "SELECTED", "targetIds": users
    }));
    assert_eq!(created["totalTargeted"], 2_500);
    assert_eq!(created["targetIds"], json!(users[..1_000]), "the first 1,000 are shown");
    let id = &created["id"];
    for limit in [100, 999, 1_000] {
        let pages = pages(&node, &format!("{PATH}/{id}/targets?limit={limit}"));
        assert_eq!(pages.len(), 2_500_usize.div_ceil(limit));
        assert_eq!(Value::from(pages.concat()), json!(users));
    }
    assert_eq!(next_of(&node.get(&format!("{PATH}/{id}/targets?limit=1000&cursor=1500"))), None);
    node.get(&format!("{PATH}/{id}/targets?cursor=x")).error(400);
    node.get(&format!("{PATH}/{id}/targets?limit=0")).error(400);
    let all = node.get(&format!("{PATH}/x/targets?limit=0&cursor=x")).error(400);
    for name in ["id: ", "limit: ", "cursor: "] {
        assert!(all.contains(name), "{name} is not in {all}");
    }
    node.get(&format!("{PATH}/1/targets")).error(404);
    let to_all = node.say("to all")["id"].clone();
    assert_eq!(node.get(&format!("{PATH}/{to_all}/targets")).expect_json(), json!([]));
}

#[test]
fn ids_that_are_none_and_ids_of_nothing() {
    let node = node();
    for (id, status) in [
        ("0", 404),
        ("1", 404),
        ("9007199254740991", 404),
        ("9007199254740992", 400),
        ("99999999999999999999999999", 400),
        ("-1", 400),
        ("1.0", 400),
        ("1e3", 400),
        ("abc", 400),
        ("%31", 404),
        ("%00", 400),
        ("%ff", 400),
    ] {
        for rest in ["", "/targets"] {
            let path = format!("{PATH}/{id}{rest}");
            let answer = node.get(&path);
            let message = answer.error(status);
            assert_eq!(answer.json()["path"], path, "{message}");
        }
    }
}

#[test]
fn a_user_id_may_be_any_printable_text() {
    let node = node();
    for (user, encoded) in [
        ("süd-42", "s%C3%BCd-42"),
        ("a b&c=d", "a%20b%26c%3Dd"),
        ("../x?y#z%", "..%2Fx%3Fy%23z%25"),
        ("\u{1F600}", "%F0%9F%98%80"),
        (&"x".repeat(256), &"x".repeat(256)),
    ] {
        let mut stream = node.stream(&format!("userId={encoded}"));
        let created = node.create(&json!({
            "content": "odd names", "targetType": "SELECTED", "targetIds": [user]
        }));
        let message = loop {
            let message = stream.message();
            if message.data["broadcastId"] == created["id"] {
                break message;
            }
        };
        assert_eq!(message.data["userId"], user);
        let id = format!("{}:{user}", created["id"]);
        assert_eq!(message.data["userMessageId"], id);
    }
}

#[test]
fn a_page_of_long_rows_is_shorter_and_says_where_it_goes_on() {
    let node = start();
    let content = "x".repeat(64 * 1024);
    let body = json!({"content": content, "targetType": "ROLE", "targetIds": ["nobody"]});
    let created: Vec<Value> = (0..100).map(|_| node.create(&body)["id"].clone()).collect();
    let mut target = format!("{PATH}?limit=1000");
    let mut listed = Vec::new();
    let mut pages = 0;
    loop {
        let page = http::call(node.admin, "GET", &target, &[], None);
        let rows = page.expect_json();
        assert!(page.body.len() < 5 << 20, "{} bytes in one page", page.body.len());
        listed.extend(rows.as_array().expect("an array").iter().map(|row| row["id"].clone()));
        pages += 1;
        let Some(link) = page.field("link") else { break };
        let (next, rest) = link.strip_prefix('<').and_then(|link| link.split_once('>')).unwrap();
        assert_eq!(rest, "; rel=\"next\"");
        target = next.to_owned();
    }
    assert!(pages > 1, "7 MB are no one page");
    listed.reverse();
    assert_eq!(listed, created, "newest first, each once");
}

#[test]
fn a_question_that_can_not_be_read_is_told_why() {
    let node = node();
    for (target, part) in [
        (format!("{PATH}?limit=1&limit=2"), "duplicate field `limit`"),
        (format!("{PATH}/%ff"), "UTF-8"),
        (format!("{PATH}/%ff/targets"), "UTF-8"),
    ] {
        let message = node.get(&target).error(400);
        assert!(message.contains(part), "{target}: {message}");
    }
}

#[test]
fn health_is_open_and_json() {
    let node = node();
    for (address, path) in
        [(node.admin, "/health/live"), (node.admin, "/health/ready"), (node.public, "/health/live")]
    {
        http::call(address, "GET", path, &[], None).expect_json();
        // A balancer asks by its own name, and through proxies.
        let fields = "host: balancer.example\r\nx-forwarded-for: 10.0.0.1\r\nconnection: close";
        let bytes = format!("GET {path} HTTP/1.1\r\n{fields}\r\n\r\n");
        http::exchange(address, bytes.as_bytes()).expect_json();
        let head = format!("HEAD {path} HTTP/1.1\r\n{fields}\r\n\r\n");
        let mut connection = http::Connection::open(address);
        connection.send(head.as_bytes()).expect("taken");
        let deadline = std::time::Instant::now() + http::PATIENCE;
        assert_eq!(connection.read_head(deadline).expect("an answer").status, 200, "{path}");
        connection.wait_for_end(http::PATIENCE);
    }
    let index = node.get("/");
    assert_eq!(index.status, 200);
    assert!(index.text().contains(PATH), "the index says what is here");
}

/// The names of the contract's section 7 that this release counts, as a scrape shows them.
const METRICS: [&str; 10] = [
    "corecast_build_info",
    "corecast_streams",
    "corecast_deliveries_total",
    "corecast_fanout_seconds_bucket",
    "corecast_fanout_seconds_count",
    "corecast_fanout_seconds_sum",
    "corecast_lane_refusals_total",
    "corecast_log_lag_records",
    "corecast_shard_turn_seconds_count",
    "corecast_stream_closes_total",
];

#[test]
fn metrics_are_open_metrics_and_have_the_names_of_the_contract() {
    let node = start();
    let mut stream = node.stream("userId=counted");
    node.say("counted");
    assert_eq!(stream.message().content(), "counted");
    // A shard of two shows its numbers at the end of a turn, behind what it has written in it.
    harness::wait::until_true("the delivery is counted", http::PATIENCE, || {
        node.metric("corecast_fanout_seconds_count") == Some(2.0)
    });
    let answer = node.get("/metrics");
    assert_eq!(answer.status, 200);
    let content_type = answer.field("content-type").unwrap_or_default().to_owned();
    assert!(content_type.starts_with("application/openmetrics-text"), "{content_type}");
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = check_open_metrics(&text);
    for name in METRICS {
        assert!(samples.contains(name), "{name} is missing in\n{text}");
    }
    for name in ["corecast_fanout_seconds", "corecast_shard_turn_seconds"] {
        for shard in [0, 1] {
            check_buckets(&text, name, shard);
        }
    }
    assert_eq!(node.metric("corecast_streams"), Some(1.0));
    assert_eq!(node.metric("corecast_deliveries_total"), Some(1.0));
    assert_eq!(node.metric("corecast_build_info"), Some(1.0));
    assert_eq!(node.metric("corecast_log_lag_records"), Some(0.0));
    for lane in ["control_to_shard", "shard_to_control"] {
        let series = format!("corecast_lane_refusals_total{{lane=\"{lane}\"");
        assert!(text.contains(&series), "{series} is missing");
    }
    for reason in ["peer", "slow", "drain"] {
        let label = format!("reason=\"{reason}\"");
        let has = text
            .lines()
            .any(|line| line.starts_with("corecast_stream_closes_total{") && line.contains(&label));
        assert!(has, "{reason} is missing");
    }
    drop(stream);
    harness::wait::until_true("the close is counted", http::PATIENCE, || {
        node.metric("corecast_stream_closes_total") == Some(1.0)
    });
}

/// Counts of the buckets are cumulative, and the last one has no bound.
fn check_buckets(text: &str, name: &str, shard: u16) {
    let start = format!("{name}_bucket{{");
    let of_shard = format!("shard=\"{shard}\"");
    let buckets: Vec<(&str, u64)> = text
        .lines()
        .filter(|line| line.starts_with(&start) && line.contains(&of_shard))
        .filter_map(|line| {
            let bound = line.split("le=\"").nth(1)?.split('"').next()?;
            Some((bound, line.rsplit_once(' ')?.1.parse().ok()?))
        })
        .collect();
    assert!(buckets.is_sorted_by_key(|(_, count)| *count), "{buckets:?}");
    let count = format!("{name}_count{{{of_shard}}}");
    let count = text.lines().find(|line| line.starts_with(&count)).expect("a count");
    let (bound, all) = buckets.last().expect("buckets");
    assert_eq!((*bound, Some(all.to_string().as_str())), ("+Inf", count.rsplit(' ').next()));
}

/// Checks the text line by line and returns the names of the samples.
fn check_open_metrics(text: &str) -> BTreeSet<&str> {
    let mut samples = BTreeSet::new();
    let mut family: Option<(&str, &str)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (kind, name) = (words.next(), words.next());
            match kind {
                Some("TYPE") => {
                    let kind = words.next().expect("a type");
                    assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                    family = Some((name.expect("a name"), kind));
                }
                Some("HELP" | "UNIT") => assert!(name.is_some(), "{line}"),
                Some("EOF") => assert_eq!(name, None),
                _ => panic!("no metadata: {line:?}"),
            }
            continue;
        }
        let (series, value) =
            line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
        assert!(value.parse::<f64>().is_ok(), "no number: {line:?}");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(labels.ends_with('}'), "{line:?}");
        let good = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        assert!(good && name.starts_with("corecast_"), "{line:?}");
        let (of, kind) = family.expect("a family before its samples");
        let suffixes: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_count", "_sum"],
            _ => &[""],
        };
        let suffix = name.strip_prefix(of).unwrap_or_else(|| panic!("{line:?} is of {of}"));
        assert!(suffixes.contains(&suffix), "{line:?} is a {kind}");
        samples.insert(name);
    }
    samples
}
