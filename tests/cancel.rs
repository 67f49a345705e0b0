//! Cancel and expiry on one node, from outside: once a cancel is answered, or the time has passed,
//! no write of the broadcast begins; who could see it, and nobody else, is told that it is no more.

use std::time::Duration;

use harness::http::{self, Connection, Response};
use harness::node::{Node, ask};
use harness::on_each_runtime;
use harness::runtime::Runtime;
use harness::sse::{Event, Stream};
use harness::wait;
use serde_json::{Value, json};

on_each_runtime!(
    who_could_see_it_is_told_and_nobody_else,
    a_reader_who_is_behind_gets_nothing_of_it,
    who_comes_later_gets_nothing_of_it_and_is_told_what_he_had,
    at_its_end_a_broadcast_is_over_by_itself,
);

/// More than the sockets of a reader who stands still and has a narrow one take.
const LARGE: usize = 60_000;
const MANY: usize = 40;

fn start(runtime: Runtime) -> Node {
    Node::start(env!("CARGO_BIN_EXE_corecast"), &[runtime.set(), "log.partitions=1"])
}

fn cancel(node: &Node, id: &str) -> Response {
    http::call(node.admin, "DELETE", &format!("/api/admin/broadcasts/{id}"), &[], None)
}

fn id_of(created: &Value) -> String {
    created["id"].to_string()
}

fn create(node: &Node, content: &str, audience: &Value) -> String {
    let mut body = audience.clone();
    body["content"] = json!(content);
    id_of(&node.create(&body))
}

fn status(node: &Node, id: &str) -> String {
    let shown = node.get(&format!("/api/admin/broadcasts/{id}")).expect_json();
    shown["status"].as_str().expect("a text").to_owned()
}

/// Names of the events up to the message that says `marker`, each with what it is about.
fn until(stream: &mut Stream, marker: &str) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let event = stream.next_event().expect("the stream goes on");
        if event.content() == marker {
            return told;
        }
        told.push(word(&event));
    }
}

fn word(event: &Event) -> String {
    match event.name.as_str() {
        "MESSAGE" => event.content().chars().take(20).collect(),
        name => format!("{name} {}", event.data["broadcastId"]),
    }
}

fn who_could_see_it_is_told_and_nobody_else(runtime: Runtime) {
    let node = start(runtime);
    let mut ann = node.stream("userId=ann&roles=dev");
    let mut ben = node.stream("userId=ben");
    let all = create(&node, "all", &json!({"targetType": "ALL"}));
    let devs = json!({"targetType": "ROLE", "targetIds": ["dev", "ops"]});
    let role = create(&node, "role", &devs);
    let ben_only = json!({"targetType": "SELECTED", "targetIds": ["ben"]});
    let selected = create(&node, "selected", &ben_only);
    for id in [&all, &role, &selected] {
        let answer = cancel(&node, id);
        assert_eq!((answer.status, answer.body.len()), (204, 0));
        assert_eq!(status(&node, id), "CANCELLED");
        assert_eq!(cancel(&node, id).status, 204, "again");
    }
    node.say("last");
    let removed = |id: &str| format!("MESSAGE_REMOVED {id}");
    let told = until(&mut ann, "last");
    assert_eq!(told, ["all".into(), "role".into(), removed(&all), removed(&role)]);
    let mut told = until(&mut ben, "last");
    // Partitions have no order between them.
    told.sort();
    let mut expected = ["all".into(), "selected".into(), removed(&all), removed(&selected)];
    expected.sort();
    assert_eq!(told, expected);
    let active = node.get("/api/admin/broadcasts?filter=active").expect_json();
    assert_eq!(active.as_array().map(Vec::len), Some(1), "{active}");
    assert!(cancel(&node, "7").error(404).contains('7'));
    cancel(&node, "x").error(400);
    assert_eq!(cancel(&node, &all).status, 204);
}

fn a_reader_who_is_behind_gets_nothing_of_it(runtime: Runtime) {
    let node = start(runtime);
    // It reads nothing until it is told to.
    let narrow = Connection::narrow(node.public);
    let mut slow = Stream::over(narrow, node.public, &ask("userId=slow", &[])).expect("an answer");
    slow.connected();
    let mut quick = node.stream("userId=quick");
    let padding = "x".repeat(LARGE);
    let ids: Vec<String> =
        (0..MANY).map(|number| id_of(&node.say(&format!("m{number} {padding}")))).collect();
    until(&mut quick, &format!("m{} {padding}", MANY - 1));
    let cancelled = [MANY - 1, MANY - 3];
    for number in cancelled {
        assert_eq!(cancel(&node, &ids[number]).status, 204);
    }
    node.say("last");
    let told = until(&mut slow, "last");
    let is_of = |number: usize| format!("m{number} xxxxxxxxxxxxxxxxxxxx")[..20].to_owned();
    for (number, id) in ids.iter().enumerate() {
        let is_cancelled = cancelled.contains(&number);
        assert_eq!(!told.contains(&is_of(number)), is_cancelled, "m{number}");
        assert_eq!(told.contains(&format!("MESSAGE_REMOVED {id}")), is_cancelled, "m{number}");
    }
    assert_eq!(told.len(), MANY, "{told:?}");
}

fn who_comes_later_gets_nothing_of_it_and_is_told_what_he_had(runtime: Runtime) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = env!("CARGO_BIN_EXE_corecast");
    let sets = [runtime.set(), "log.partitions=1"];
    let mut node = Node::start_in(program, folder.path(), &sets);
    let for_eve = json!({"targetType": "SELECTED", "targetIds": ["eve"]});
    let had = [
        create(&node, "had by all", &json!({"targetType": "ALL"})),
        create(&node, "had by eve", &for_eve),
    ];
    let mut before = node.stream("userId=eve");
    let mut told = [before.message(), before.message()].map(|message| word(&message));
    told.sort();
    assert_eq!(told, ["had by all", "had by eve"]);
    let cursor = before.last_id.take().expect("an id");
    drop(before);
    let later = [
        create(&node, "later for all", &json!({"targetType": "ALL"})),
        create(&node, "later for eve", &for_eve),
    ];
    for id in had.iter().chain(&later) {
        assert_eq!(cancel(&node, id).status, 204);
    }
    let markers = || ["mark".to_owned(), "mark of eve".to_owned()];
    create(&node, "mark", &json!({"targetType": "ALL"}));
    create(&node, "mark of eve", &for_eve);
    node.wait_until_kept();
    let mut removals: Vec<String> = had.iter().map(|id| format!("MESSAGE_REMOVED {id}")).collect();
    removals.sort();
    // From the ring; then from a node that has just started; then from its store alone.
    for phase in 0..3 {
        let fields = [("last-event-id", cursor.as_str())];
        let mut back = Stream::open(node.public, &ask("userId=eve", &fields));
        back.connected();
        let (mut messages, mut removed) = (Vec::new(), Vec::new());
        while messages.len() < 2 {
            let told = word(&back.next_event().expect("it goes on"));
            if told.starts_with("MESSAGE_REMOVED") {
                removed.push(told)
            } else {
                messages.push(told)
            }
        }
        messages.sort();
        assert_eq!(messages, markers(), "phase {phase}");
        removed.retain(|told| removals.contains(told));
        removed.sort();
        assert_eq!(removed, removals, "phase {phase}");
        // Whoever comes without one is told of what is there, and of nothing else.
        let mut new = node.stream(&format!("userId=new-{phase}"));
        // Unless it stands behind the checkpoint: from there on the log is served as it is.
        let told = until(&mut new, "mark");
        assert!(told.iter().all(|told| told.starts_with("MESSAGE_REMOVED")), "{phase}: {told:?}");
        match phase {
            0 => node.crash(),
            1 => {
                node.terminate();
                let ring = [&sets[..], &["limits.ring_frames_max=1"]].concat();
                node = Node::start_in(program, folder.path(), &ring);
            }
            _ => {}
        }
    }
}

fn at_its_end_a_broadcast_is_over_by_itself(runtime: Runtime) {
    let node = start(runtime);
    let mut ann = node.stream("userId=ann&roles=dev");
    let mut ben = node.stream("userId=ben");
    let ends_at = |seconds: u64| {
        let now = std::time::SystemTime::now() + Duration::from_secs(seconds);
        let since = now.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let at = corecast::base::EpochMillis(since.as_millis() as u64).to_iso();
        String::from_utf8(at.to_vec()).expect("ASCII")
    };
    let body = json!({"targetType": "ROLE", "targetIds": ["dev"], "expiresAt": ends_at(2)});
    let id = create(&node, "short", &body);
    assert_eq!(word(&ann.next_event().expect("it goes on")), "short");
    assert_eq!(word(&ann.next_event().expect("it goes on")), format!("MESSAGE_REMOVED {id}"));
    wait::until_true("its status follows", Duration::from_secs(10), || {
        status(&node, &id) == "EXPIRED"
    });
    let message = cancel(&node, &id).error(409);
    assert!(message.contains("EXPIRED") && message.contains("CANCELLED"), "{message}");
    node.say("last");
    assert_eq!(until(&mut ann, "last"), [""; 0]);
    assert_eq!(until(&mut ben, "last"), [""; 0], "he could not see it");
}
