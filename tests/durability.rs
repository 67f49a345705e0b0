//! What was acknowledged survives `kill -9`, once: it is listed, and served to a client that
//! presents the cursor that it had before.

mod fakes;

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use corecast::base::Topic;
use corecast::control::{Creator, Unfinished, run_relay};
use corecast::domain::Draft;
use corecast::ports::{Clock, Log, LogError, Store, SystemClock};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use fakes::Gated;
use harness::http::PATIENCE;
use harness::node::{Node, try_create};
use harness::sse::Stream;
use harness::{http, wait};
use serde_json::{Value, json};

const CRASHES: usize = 25;
const WRITERS: usize = 4;
/// Creates that are acknowledged before each crash, at least.
const ACKNOWLEDGED_MIN: usize = 12;
const USERS: [&str; 3] = ["ann", "ben", "cem"];
const END: &str = "end";

/// What one writer asked for: content, and the id if it was acknowledged.
type Asked = Vec<(String, Option<u64>)>;

/// Creates until the node is gone: to all, to one user, to two.
fn write(
    admin: SocketAddr,
    round: usize,
    writer: usize,
    done: &'static AtomicUsize,
) -> JoinHandle<Asked> {
    std::thread::spawn(move || {
        let mut asked = Vec::new();
        for number in 0.. {
            let content = format!("{round}-{writer}-{number}");
            let mut body = audience(number);
            body["content"] = json!(content);
            let answer = try_create(admin, &body);
            let id = answer.as_ref().map(|answer| answer.expect_json()["id"].as_u64());
            asked.push((content, id.flatten()));
            if answer.is_none() {
                return asked;
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        asked
    })
}

fn audience(number: usize) -> Value {
    match number % 3 {
        0 => json!({"targetType": "ALL"}),
        1 => json!({"targetType": "SELECTED", "targetIds": [USERS[0]]}),
        _ => json!({"targetType": "SELECTED", "targetIds": [USERS[0], USERS[1]]}),
    }
}

/// Whether a content is for this user.
fn is_for(content: &str, user: &str) -> bool {
    let number = content.rsplit('-').next().and_then(|number| number.parse::<usize>().ok());
    match number.expect("a number at the end") % 3 {
        0 => true,
        1 => user == USERS[0],
        _ => user != USERS[2],
    }
}

/// All broadcasts by id, page by page.
fn list(node: &Node) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    let mut target = "/api/admin/broadcasts?limit=100".to_owned();
    loop {
        let page = http::call(node.admin, "GET", &target, &[], None);
        for row in page.expect_json().as_array().expect("an array") {
            let id = row["id"].as_u64().expect("an id");
            let content = row["content"].as_str().expect("a content").to_owned();
            assert_eq!(found.insert(id, content), None, "{id} is listed twice");
        }
        let Some(link) = page.field("link") else { return found };
        let next = link.strip_prefix('<').and_then(|link| link.split_once('>'));
        target = next.expect("a link").0.to_owned();
    }
}

/// Broadcast ids and contents that come before the end is said; none may come twice. Two ends, the
/// second said when the first has come: it is behind all partitions.
fn read_all(node: &Node, stream: &mut Stream, into: &mut BTreeMap<u64, String>) {
    for _ in 0..2 {
        let end = node.say(END)["id"].clone();
        loop {
            let message = stream.message();
            if message.data["broadcastId"] == end {
                break;
            }
            if message.content() == END {
                continue;
            }
            let id = message.data["broadcastId"].as_u64().expect("an id");
            let before = into.insert(id, message.content().to_owned());
            assert_eq!(before, None, "{id} came twice");
        }
    }
}

#[test]
fn what_was_acknowledged_survives_crashes_once() {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    let mut node = Node::start(env!("CARGO_BIN_EXE_corecast"), &[]);
    let query = |user: &str| format!("userId={user}");
    // One client a user that reads all the time, and one that comes at the end with an old cursor.
    let mut streams: Vec<Stream> = USERS.map(|user| node.stream(&query(user))).into();
    let first = USERS.map(|user| node.stream(&query(user)));
    let mut got: Vec<BTreeMap<u64, String>> = vec![BTreeMap::new(); USERS.len()];
    let mut asked: BTreeMap<String, Option<u64>> = BTreeMap::new();
    for round in 0..CRASHES {
        let before = DONE.load(Ordering::Relaxed);
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| write(node.admin, round, writer, &DONE)).collect();
        wait::until_true("creates are acknowledged", PATIENCE, || {
            DONE.load(Ordering::Relaxed) >= before + ACKNOWLEDGED_MIN + round
        });
        node.process.kill();
        for writer in writers {
            asked.extend(writer.join().expect("only acknowledged or not"));
        }
        node.start_again();
        for ((user, stream), got) in USERS.iter().zip(&mut streams).zip(&mut got) {
            // What came before the crash was read from the socket at leisure.
            while let Some(event) = stream.next_event() {
                let id = event.data["broadcastId"].as_u64().expect("a MESSAGE");
                if event.content() != END {
                    let before = got.insert(id, event.content().to_owned());
                    assert_eq!(before, None, "{id} came twice");
                }
            }
            *stream = node.resume(&query(user), stream);
            read_all(&node, stream, got);
        }
    }
    let mut listed = list(&node);
    listed.retain(|_, content| content != END);
    for (content, id) in &asked {
        if let Some(id) = id {
            assert_eq!(listed.get(id), Some(content), "{content} was acknowledged");
        }
    }
    let contents: BTreeSet<&String> = listed.values().collect();
    assert_eq!(contents.len(), listed.len(), "one create, one broadcast");
    assert!(contents.iter().all(|content| asked.contains_key(*content)), "nothing was made up");
    for ((user, got), first) in USERS.iter().zip(&got).zip(&first) {
        // Whole or absent: whoever is in the audience of what is listed got it.
        let mut expected = listed.clone();
        expected.retain(|_, content| is_for(content, user));
        assert_eq!(*got, expected, "{user}, from stream to stream");
        let mut late = node.resume(&query(user), first);
        let mut at_once = BTreeMap::new();
        read_all(&node, &mut late, &mut at_once);
        assert_eq!(at_once, expected, "{user}, with the first cursor");
    }
}

fn creator(log: Arc<dyn Log>, store: Arc<dyn Store>) -> Arc<Creator> {
    let retention = Duration::from_secs(3_600);
    let (clock, unfinished) = (Arc::new(SystemClock), Unfinished::default());
    Arc::new(Creator { log, store, clock, node: "node".to_owned(), retention, unfinished })
}

/// More targets than repeats are known in: what the relay publishes again must be little.
#[tokio::test]
async fn a_large_audience_that_was_half_published_is_finished_and_not_begun_anew() {
    const TARGETS: u64 = 80_000;
    const APPENDED: usize = 60;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 4 };
    let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("a new directory");
    let (log, store) = (embedded.log(), embedded.store());
    let left = AtomicUsize::new(APPENDED);
    let cut = Gated::new(log.clone(), move |_| {
        let lost = |_| LogError::Away("the test has cut it off".to_owned());
        let taken =
            left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        ready(taken.map(drop).map_err(lost))
    });
    let ids: Vec<String> = (0..TARGETS).map(|number| format!("user-{number}")).collect();
    let body = json!({"content": "x", "targetType": "SELECTED", "targetIds": ids});
    let draft = Draft::check(body, SystemClock.wall()).expect("valid");
    creator(cut, store.clone()).create(draft).await.expect_err("cut off");
    assert_eq!(store.outbox(10).await.expect("rows").len(), 1, "it is owed");
    assert!(records(&*log).await > 10 * TARGETS / 16, "most of it was published");

    // As a process does that starts behind a crash.
    let relay = tokio::spawn(run_relay(creator(log.clone(), store.clone()), true));
    tokio::time::timeout(3 * PATIENCE, async {
        while !store.outbox(10).await.expect("rows").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is finished in time");
    relay.abort();
    let all = records(&*log).await;
    assert!((TARGETS..=TARGETS + 1_000).contains(&all), "{all} records for {TARGETS} targets");
}

/// Records of the selected topic.
async fn records(log: &dyn Log) -> u64 {
    let mut all = 0;
    for partition in log.shape().await.expect("its shape").all_partitions() {
        if partition.topic == Topic::Selected {
            all += log.bounds(partition).await.expect("its bounds").end;
        }
    }
    all
}
