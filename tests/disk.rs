//! What the disk may do under the embedded parts: be full, and have torn the last write. What was
//! acknowledged is there after it, once, and what can't be kept is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::node::Node;
use harness::sse::Stream;
use harness::wait;
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_corecast");
const LONG: Duration = Duration::from_secs(30);
/// What the store takes before anything is written, and some thousand messages.
const SMALL: &str = "size=80m";

/// A small disk of its own; it goes with this.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None` where this process may not mount anything.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let options = ["-t", "tmpfs", "-o", SMALL, "corecast-test"];
        let mounted = Command::new("mount").args(options).arg(folder.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,{size}");
        let mounted = Command::new("mount").args(["-o", &options]).arg(self.0.path()).status();
        assert!(mounted.expect("it was there before").success(), "the disk is made larger");
    }

    /// Nothing more goes onto it.
    fn fill(&self) -> PathBuf {
        let filling = self.0.path().join("filling");
        let mut file = std::fs::File::create(&filling).expect("a file");
        let piece = vec![0; 4_096];
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        filling
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the node may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Says this to everybody, as often as it is taken; the contents that were acknowledged.
fn say_until(node: &Node, name: &str, at_most: usize) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    for number in 0..at_most {
        let content = format!("{name}-{number}");
        let body = json!({"content": content, "targetType": "ALL"});
        match node.try_create(&body).map(|answer| answer.status) {
            Some(200) => drop(acknowledged.insert(content)),
            Some(503) | None => return acknowledged,
            Some(other) => panic!("{other} for {content}"),
        }
    }
    acknowledged
}

/// Contents that come up to `marker`, each once.
fn contents(stream: &mut Stream, marker: &str) -> BTreeSet<String> {
    let all = stream.contents_until(marker);
    let each: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(each.len(), all.len(), "nothing comes twice");
    each
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let Some(disk) = Disk::mount() else {
        return harness::skip("no right to mount", "run the tests as root, or in a user namespace");
    };
    let sets = ["log.partitions=1"];
    let mut node = Node::start_in(PROGRAM, &disk.0.path().join("data"), &sets);
    let first = node.stream("userId=first");
    let mut open = node.stream("userId=open");
    let mut acknowledged = say_until(&node, "before", 20);
    assert_eq!(acknowledged.len(), 20);
    let filling = disk.fill();
    // Files that were made ahead take some yet.
    acknowledged.extend(say_until(&node, "full", 200_000));
    let refused = node.post("/api/admin/broadcasts", &json!({"content": "x", "targetType": "ALL"}));
    refused.error(503);
    wait::until_true("readiness says so", LONG, || {
        let ready = node.get("/health/ready");
        ready.status == 503 && ready.text().contains("store")
    });
    assert_eq!(node.get("/health/live").status, 200);
    let before = acknowledged.iter().filter(|content| content.starts_with("before")).count();
    for _ in 0..before {
        open.message();
    }
    // It ends in order, and with room it goes on.
    let cursor = first.last_id.clone().expect("an id");
    node.terminate();
    std::fs::remove_file(filling).expect("it is there");
    disk.resize("size=400m");
    node.start_again();
    let fields = [("last-event-id", cursor.as_str())];
    let mut back = node.stream_with("userId=first", &fields);
    node.say("marker");
    let mut got = contents(&mut back, "marker");
    // What was refused may have been kept after all; of what was acknowledged nothing is missing.
    got.remove("x");
    let missing: Vec<&String> = acknowledged.difference(&got).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The file that the last commit went to.
fn journal(data_dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(data_dir).expect("the data directory");
    let files = files.map(|entry| entry.expect("an entry").path());
    let journals = files.filter(|path| path.extension().is_some_and(|end| end == "jnl"));
    let changed = |path: &PathBuf| path.metadata().and_then(|of| of.modified()).expect("a file");
    journals.max_by_key(changed).expect("a journal")
}

/// Of what was written, what the disk got behind it.
type Torn = fn(&[u8]) -> Vec<u8>;

#[test]
fn a_torn_write_is_passed_over_and_nothing_before_it_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = Node::start_in(PROGRAM, folder.path(), &["log.partitions=1"]);
    let first = node.stream("userId=first");
    let cursor = first.last_id.clone().expect("an id");
    let mut acknowledged = BTreeSet::new();
    // What the disk got of a write that was never acknowledged: noise, zeros, a part of a batch.
    let torn: [Torn; 4] = [
        |_| vec![0xa5; 4_097],
        |_| vec![0; 700],
        |written| written[written.len() / 2..written.len() / 2 + 300].to_vec(),
        |written| written[..13].to_vec(),
    ];
    for (round, torn) in torn.iter().enumerate() {
        acknowledged.extend(say_until(&node, &format!("round{round}"), 30));
        node.process.kill();
        let journal = journal(folder.path());
        let written = std::fs::read(&journal).expect("a file");
        let used = written.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let mut bytes = written[..used].to_vec();
        bytes.extend(torn(&written[..used]));
        bytes.resize(bytes.len().max(written.len()), 0);
        std::fs::write(&journal, bytes).expect("written");
        node.start_again();
        let fields = [("last-event-id", cursor.as_str())];
        let mut back = node.stream_with("userId=first", &fields);
        let marker = format!("marker{round}");
        node.say(&marker);
        let mut got = contents(&mut back, &marker);
        got.retain(|content| !content.starts_with("marker"));
        assert_eq!(got, acknowledged, "round {round}");
    }
}
