//! Whether the simulator would notice. Each guard here is switched off, one at a time, in a copy of
//! the sources, and the simulation of that copy must fail: an oracle that lets one of them go is
//! no oracle. A guard whose text is not found has moved, and its entry with it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One guard: its file, what stands there, and what stands there without it.
struct Mutation {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "live from the shard's own position, not from the cursor's",
        file: "src/domain/streams/open.rs",
        from: "let is_ahead = is_cut_off || !served.is_within(self.before(at));",
        to: "let is_ahead = is_cut_off;",
    },
    Mutation {
        name: "the backlog ends behind the checkpoint",
        file: "src/control/inboxes/backlog.rs",
        from: "checkpoint.raise(*partition, *next));",
        to: "checkpoint.raise(*partition, *next + 3));",
    },
    Mutation {
        name: "repeats are not recognised",
        file: "src/domain/repeats.rs",
        from: "        seen.push_back(new);\n        is_repeat\n",
        to: "        seen.push_back(new);\n        is_repeat && false\n",
    },
    Mutation {
        name: "nobody is asked whether a replayed event is for him",
        file: "src/domain/streams/replay.rs",
        from: "&& sets.admits(&event.audience(), &user.name, set)",
        to: "&& (true || sets.admits(&event.audience(), &user.name, set))",
    },
    Mutation {
        name: "a stored cursor is ahead of the socket",
        file: "src/domain/streams/confirm.rs",
        from: "let served = user.zip(self.served.filter(|_| unsent == 0));",
        to: "let served = user.zip(self.served);",
    },
    Mutation {
        name: "what the peer has not acknowledged counts as delivered",
        file: "src/domain/streams/confirm.rs",
        from: "let acknowledged = self.written.saturating_sub(unsent);",
        to: "let acknowledged = self.written.saturating_sub(unsent * 0);",
    },
    Mutation {
        name: "a cursor from ahead of the log is believed",
        file: "src/control/inboxes/kept.rs",
        from: "if !self.ends.have_been(&self.parts, place, &ask.read).await? {",
        to: "if false && !self.ends.have_been(&self.parts, place, &ask.read).await? {",
    },
    Mutation {
        name: "a pass takes in who stands behind what it serves",
        file: "src/domain/streams/replay.rs",
        from: "has(&self.from) && has(&self.read)",
        to: "has(&self.from) || has(&self.read)",
    },
    Mutation {
        name: "what is for who is here is replayed",
        file: "src/domain/streams/entry.rs",
        from: "        event.is_passing()\n            && self",
        to: "        false\n            && self",
    },
    Mutation {
        name: "expired frames are sent",
        file: "src/domain/streams/feed.rs",
        from: "if event.expires_at().is_some_and(|expires_at| expires_at <= wall) {",
        to: "if event.expires_at().is_some_and(|expires_at| expires_at <= wall && false) {",
    },
    Mutation {
        name: "a frame that was taken back is not looked at again",
        file: "src/domain/streams/feed.rs",
        from: "                backlog.messages.push_front(message);\n",
        to: "                drop(message);\n",
    },
    Mutation {
        name: "parked records are acknowledged without their row",
        file: "src/owner/keep.rs",
        from: "let done = self.park(&row).await;",
        to: "let done = Ok(()); let _ = self.park(&row);",
    },
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A copy of what is needed to build and run the simulation.
struct Copied(tempfile::TempDir);

impl Copied {
    fn new() -> Self {
        let copy = tempfile::tempdir().expect("a temporary folder");
        for name in ["Cargo.toml", "Cargo.lock", "src", "tests", "bench", "loadtest", "config"] {
            copy_all(&root().join(name), &copy.path().join(name));
        }
        // Other packages, or cargo would take what is built of them for what is built of these.
        let manifest = copy.path().join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).expect("a file");
        let version = format!("version = \"{}\"\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(text.matches(&version).count(), 1, "it is said once which version this is");
        let text = text.replace(&version, "version = \"0.0.0-mutated\"\n");
        std::fs::write(&manifest, text).expect("written");
        Self(copy)
    }

    fn apply(&self, mutation: &Mutation) {
        let text = std::fs::read_to_string(root().join(mutation.file)).expect("a source file");
        let found = text.matches(mutation.from).count();
        assert_eq!(found, 1, "{}: its guard stands once in {}", mutation.name, mutation.file);
        let text = text.replace(mutation.from, mutation.to);
        std::fs::write(self.0.path().join(mutation.file), text).expect("written");
    }

    fn restore(&self, mutation: &Mutation) {
        copy_all(&root().join(mutation.file), &self.0.path().join(mutation.file));
    }

    /// Builds and runs the simulation; whether it passed, and what it said.
    fn simulate(&self, seeds: u32) -> (bool, String) {
        // What others have written was built for the tests, and is taken from there.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
        let cargo = std::env::var_os("CARGO").expect("cargo runs the tests");
        let ran = Command::new(cargo)
            .args(["test", "--offline", "--config", "profile.dev.package.corecast.debug=0"])
            .args(["--test", "simulation", "nothing_is_lost"])
            .current_dir(self.0.path())
            .env("CARGO_TARGET_DIR", target)
            .env("SIMULATION_SEEDS", seeds.to_string())
            .env("RUSTFLAGS", std::env::var_os("RUSTFLAGS").unwrap_or_default())
            .output()
            .expect("cargo starts");
        let said = [ran.stdout, ran.stderr].concat();
        (ran.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
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
    let (passes, said) = copy.simulate(20);
    assert!(passes, "the copy as it is: {said}");
    let mut unnoticed = Vec::new();
    for mutation in MUTATIONS {
        let began = std::time::Instant::now();
        copy.apply(mutation);
        // Not so many that all must have happened that may.
        let (passes, said) = copy.simulate(199);
        copy.restore(mutation);
        let mut lines = said.lines().skip_while(|line| !line.contains("panicked at "));
        let finding = lines.nth(1);
        let shown = finding.unwrap_or("UNNOTICED");
        println!("{} ({:.0?}): {shown}", mutation.name, began.elapsed());
        if passes {
            unnoticed.push(mutation.name);
        }
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:#?}");
}
