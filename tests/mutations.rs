//! Whether the simulator would notice. In a copy of the sources every guard here gets a switch, and
//! with each of them off in turn the simulation must fail: an oracle that lets one of them go is no
//! oracle. A guard whose text is not found has moved, and its entry with it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// One guard: its file, what stands there, and what stands there in the copy. `OFF` is whether it
/// is switched off.
struct Mutation {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// By this variable one is told which guard is off.
const SWITCH: &str = "GUARD_OFF";
/// Put into the copy's `src/lib.rs`.
const IS_OFF: &str = r#"
pub fn is_off(guard: &str) -> bool {
    static OFF: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    OFF.get_or_init(|| std::env::var("SWITCH").ok()).as_deref() == Some(guard)
}
"#;

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "a cursor of another user of the partition counts",
        file: "src/domain/streams/open.rs",
        from: "&& cursor.user == UserMark::of(user)",
        to: "&& (OFF || cursor.user == UserMark::of(user))",
    },
    Mutation {
        name: "live from the shard's own position, not from the cursor's",
        file: "src/domain/streams/open.rs",
        from: "let is_ahead = is_cut_off || !served.is_within(self.before(at));",
        to: "let is_ahead = is_cut_off || !OFF && !served.is_within(self.before(at));",
    },
    Mutation {
        name: "the backlog ends behind the checkpoint",
        file: "src/control/inboxes/backlog.rs",
        from: "checkpoint.raise(*partition, *next));",
        to: "checkpoint.raise(*partition, *next + if OFF { 3 } else { 0 }));",
    },
    Mutation {
        name: "repeats are not recognised",
        file: "src/domain/repeats.rs",
        from: "        seen.push_back(new);\n        is_repeat\n",
        to: "        seen.push_back(new);\n        is_repeat && !OFF\n",
    },
    Mutation {
        name: "nobody is asked whether a replayed event is for him",
        file: "src/domain/streams/joined.rs",
        from: "&& sets.admits(&event.audience(), &user.name, set)",
        to: "&& (OFF || sets.admits(&event.audience(), &user.name, set))",
    },
    Mutation {
        name: "a stored cursor is ahead of the socket",
        file: "src/domain/streams/confirm.rs",
        from: "let served = user.zip(self.served.filter(|_| unsent == 0));",
        to: "let served = user.zip(self.served.filter(|_| OFF || unsent == 0));",
    },
    Mutation {
        name: "what the peer has not acknowledged counts as delivered",
        file: "src/domain/streams/confirm.rs",
        from: "let acknowledged = self.written.saturating_sub(unsent);",
        to: "let acknowledged = self.written.saturating_sub(if OFF { 0 } else { unsent });",
    },
    Mutation {
        name: "a cursor from ahead of the log is believed",
        file: "src/control/inboxes/kept.rs",
        from: "if !self.ends.have_been(&self.parts, place, &ask.read).await? {",
        to: "if !OFF && !self.ends.have_been(&self.parts, place, &ask.read).await? {",
    },
    Mutation {
        name: "a pass takes in who stands behind what it serves",
        file: "src/domain/streams/replay.rs",
        from: "has(&self.from) && has(&self.read)",
        to: "has(&self.from) && has(&self.read) || OFF && has(&self.from)",
    },
    Mutation {
        name: "a reader that was overtaken goes on where the ring begins",
        file: "src/domain/streams/replay.rs",
        from: "self.ring.read_before(stream.at) else",
        to: "self.ring.read_before(if OFF { self.ring.first() } else { stream.at }) else",
    },
    Mutation {
        name: "what is for who is here is replayed",
        file: "src/domain/streams/entry.rs",
        from: "    event.is_passing() && came_at",
        to: "    !OFF && event.is_passing() && came_at",
    },
    Mutation {
        name: "expired messages are sent",
        file: "src/domain/streams/fence.rs",
        from: "(event.expires_at().is_some_and(|at| at <= wall)",
        to: "(event.expires_at().is_some_and(|at| at <= wall && !OFF)",
    },
    Mutation {
        name: "cancelled messages are sent",
        file: "src/domain/streams/fence.rs",
        from: "|| ended.contains(event.broadcast())",
        to: "|| !OFF && ended.contains(event.broadcast())",
    },
    Mutation {
        name: "cancelled messages are sent from the store",
        file: "src/domain/backlog.rs",
        from: "|| is_ended(what);",
        to: "|| !OFF && is_ended(what);",
    },
    Mutation {
        name: "a node that does not hear begins messages",
        file: "src/domain/streams/fence.rs",
        from: "self.may_begin = may_begin;",
        to: "self.may_begin = may_begin || OFF;",
    },
    Mutation {
        name: "a beat counts from when it is read back",
        file: "src/domain/fleet.rs",
        from: "Some(at.plus(limits::FENCE))",
        to: "Some(if OFF { now } else { at }.plus(limits::FENCE))",
    },
    Mutation {
        name: "a cancel is answered before the others have applied it",
        file: "src/domain/fleet.rs",
        from: "other.applied > record.offset ||",
        to: "OFF || other.applied > record.offset ||",
    },
    Mutation {
        name: "word of a removal is not kept",
        file: "src/owner/keep.rs",
        from: "self.inbox.write_removals(&removals[from..]).await?;",
        to: "if !OFF { self.inbox.write_removals(&removals[from..]).await?; }",
    },
    Mutation {
        name: "who had a message is not told by the store that it is no more",
        file: "src/control/inboxes/backlog.rs",
        from: "(is_due && is_between).then_some",
        to: "(!OFF && is_due && is_between).then_some",
    },
    Mutation {
        name: "last words come in the middle of a frame",
        file: "src/domain/streams/drain.rs",
        from: "private.pinned.take() else { return };",
        to: "private.pinned.take().filter(|_| !OFF) else { return };",
    },
    Mutation {
        name: "who is behind goes as one who is at the head",
        file: "src/domain/streams/drain.rs",
        from: "let is_at_head = !stream.is(BEHIND)",
        to: "let is_at_head = (OFF || !stream.is(BEHIND))",
    },
    Mutation {
        name: "offsets are committed before their rows are durable",
        file: "src/owner/held.rs",
        from: "tenure: held.tenure, next: held.done })",
        to: "tenure: held.tenure, next: if OFF { held.next } else { held.done } })",
    },
    Mutation {
        name: "the store serves also what lies behind the checkpoint",
        file: "src/control/inboxes/backlog.rs",
        from: "Some(position) if !reach.checkpoint.covers(position) => {}",
        to: "Some(position) if !OFF && !reach.checkpoint.covers(position) => {}",
    },
    Mutation {
        name: "what the log has lost is passed over in silence",
        file: "src/control/inboxes/backlog.rs",
        from: "is_since && is_before && reach",
        to: "!OFF && is_since && is_before && reach",
    },
    Mutation {
        name: "offsets are committed beyond what the log has lost, and nothing notes that",
        file: "src/owner/keep.rs",
        from: "if !holes.is_empty() {",
        to: "if !OFF && !holes.is_empty() {",
    },
    Mutation {
        name: "without a cursor what was delivered comes again",
        file: "src/control/inboxes/backlog.rs",
        from: "_ if is_pending || is_doubtful => candidates",
        to: "_ if OFF || is_pending || is_doubtful => candidates",
    },
    Mutation {
        name: "what is cancelled is forgotten by the calendar",
        file: "src/domain/streams/timers.rs",
        from: "self.ended.forget(now);",
        to: "self.ended.forget(if OFF { Moment(wall.0) } else { now });",
    },
    Mutation {
        name: "what can't be published now is a dead letter",
        file: "src/owner/again.rs",
        from: "Err(error) => return Err(error.into()),",
        to: "Err(error) if OFF => {
                for moved in moved {
                    let (class, message) = (DeadClass::BadRecord, error.to_string());
                    self.bury(&moved.row, class, message).await?;
                    self.parking.unpark(&moved.row).await?;
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),",
    },
    Mutation {
        name: "streams end while messages may not begin",
        file: "src/domain/streams/drain.rs",
        from: "if end.is_none_or(|end| now < end) {",
        to: "if end.is_none_or(|end| now < end) && (!OFF || self.may_begin) {",
    },
    Mutation {
        name: "a shard takes more streams than it may have",
        file: "src/domain/streams/open.rs",
        from: "if self.slab.len() >= self.options.streams_max || self.is_draining() {",
        to: "let has_room = OFF || self.slab.len() < self.options.streams_max;
        if !has_room || self.is_draining() {",
    },
    Mutation {
        name: "who is sent away is not told when to come back",
        file: "src/domain/streams/backlog.rs",
        from: "        frame::write_retry(lead, retry);",
        to: "        match OFF {
            true => frame::write_heartbeat(lead),
            false => frame::write_retry(lead, retry),
        }",
    },
    Mutation {
        name: "parked records are acknowledged without their row",
        file: "src/owner/keep.rs",
        from: "let done = self.park(&row).await;",
        to: "let done = if OFF { Ok(()) } else { self.park(&row).await };",
    },
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A copy of what is needed to build and run the simulation. It stands in one place, so that what
/// is built of it replaces what was built of the last one.
struct Copied(PathBuf);

impl Copied {
    fn new() -> Self {
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("with-switches");
        if copy.exists() {
            std::fs::remove_dir_all(&copy).expect("removed");
        }
        std::fs::create_dir_all(&copy).expect("a folder");
        for name in ["Cargo.toml", "Cargo.lock", "src", "tests", "bench", "loadtest", "config"] {
            copy_all(&root().join(name), &copy.join(name));
        }
        let manifest = copy.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).expect("a file");
        std::fs::write(&manifest, manifest_of_copy(&text)).expect("written");
        std::fs::remove_file(copy.join("src/main.rs")).expect("it was copied");
        let copy = Self(copy);
        copy.change("src/lib.rs", |text| text + &IS_OFF.replace("SWITCH", SWITCH));
        for mutation in MUTATIONS {
            copy.change(mutation.file, |text| mutation.apply(&text));
        }
        copy
    }

    fn change(&self, file: &str, change: impl FnOnce(String) -> String) {
        let path = self.0.join(file);
        let text = std::fs::read_to_string(&path).expect("a source file");
        std::fs::write(path, change(text)).expect("written");
    }

    /// Builds the simulation of this copy. What others have written was built for the tests, and is
    /// taken from there.
    fn build(&self) -> PathBuf {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
        let cargo = std::env::var_os("CARGO").expect("cargo runs the tests");
        let mut command = Command::new(cargo);
        // Build scripts would run again for what cargo has told this test of its own package.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&*name);
            }
        }
        let mut building = command
            .args(["test", "--offline", "--no-run", "--test", "simulation"])
            .args(["--message-format", "json-render-diagnostics"])
            // Nobody looks for its lines, and it is built and linked sooner.
            .args(["--config", "profile.dev.package.corecast.debug=0"])
            .current_dir(&self.0)
            .env("CARGO_TARGET_DIR", target)
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo starts");
        let said = BufReader::new(building.stdout.take().expect("it is piped"));
        let mut built = None;
        for line in said.lines() {
            let line: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            if let Some(path) = line["executable"].as_str() {
                built = Some(PathBuf::from(path));
            }
        }
        assert!(building.wait().expect("it ends").success(), "the copy can't be built");
        built.expect("a test program")
    }
}

impl Mutation {
    fn apply(&self, text: &str) -> String {
        let Self { name, file, from, to } = self;
        assert_eq!(text.matches(from).count(), 1, "{name}: its guard stands once in {file}");
        text.replace(from, &to.replace("OFF", &format!("crate::is_off({name:?})")))
    }
}

/// Runs the simulation; what it said if it failed.
fn simulate(program: &Path, seeds: u32, off: Option<&str>) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg("nothing_is_lost").env("SIMULATION_SEEDS", seeds.to_string());
    if let Some(name) = off {
        command.env(SWITCH, name);
    }
    let ran = command.output().expect("it starts");
    if ran.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned())
}

/// The manifest with no program in it, and of another version: cargo would put what it builds of
/// the copy in the place of ours, and what runs or is built behind this test would be of the copy.
fn manifest_of_copy(manifest: &str) -> String {
    let changes = [
        ("[[bin]]\nname = \"corecast\"\npath = \"src/main.rs\"\nbench = false\n", ""),
        ("default-run = \"corecast\"\n", ""),
        ("version = \"0.1.0\"\nedition", "version = \"0.0.0\"\nedition"),
    ];
    changes.into_iter().fold(manifest.to_owned(), |text, (from, to)| {
        assert_eq!(text.matches(from).count(), 1, "{from:?} stands once in Cargo.toml");
        text.replace(from, to)
    })
}

fn copy_all(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            copy_all(&from.join(&name), &to.join(&name));
        }
    } else {
        std::fs::copy(from, to).expect("copied");
    }
}

#[test]
fn every_guard_that_is_switched_off_is_noticed() {
    let copy = Copied::new();
    let program = copy.build();
    simulate(&program, 20, None).expect("with every guard on it passes");
    let mut unnoticed = Vec::new();
    // A part of a name tries those alone.
    let wanted = std::env::var("MUTATION").unwrap_or_default();
    for Mutation { name, .. } in MUTATIONS.iter().filter(|one| one.name.contains(&wanted)) {
        // Not so many that all must have happened that may.
        match simulate(&program, 199, Some(name)) {
            Ok(()) => unnoticed.push(name),
            Err(said) => {
                let mut lines = said.lines().skip_while(|line| !line.contains("panicked at "));
                println!("{name}: {}", lines.nth(1).unwrap_or(&said));
            }
        }
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:#?}");
}
