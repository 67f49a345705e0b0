//! The rules of the house, as a test: who may import whom, where an outside crate may be named,
//! and what every file must have. `docs/architecture.md` says why.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room and the rooms that it may import: always ones that stand lower.
struct Room {
    name: &'static str,
    imports: &'static [&'static str],
}

const fn room(name: &'static str, imports: &'static [&'static str]) -> Room {
    Room { name, imports }
}

/// From the ground up. A room that is not here may not exist.
const ROOMS: [Room; 16] = [
    room("limits", &[]),
    room("base", &["limits"]),
    room("wire", &["limits", "base"]),
    room("domain", &["limits", "base", "wire"]),
    room("ports", &["limits", "base", "wire", "domain"]),
    room("lane", &["limits", "base", "wire", "domain", "ports"]),
    // Shard threads on one side, control threads on the other: they talk by lanes.
    room("edge", &["limits", "base", "wire", "domain", "ports", "lane"]),
    room("shard", &["limits", "base", "wire", "domain", "ports", "lane", "edge"]),
    room("ingest", &["limits", "base", "wire", "domain", "ports", "lane"]),
    room("owner", &["limits", "base", "wire", "domain", "ports", "lane"]),
    room("control", &["limits", "base", "wire", "domain", "ports", "lane"]),
    room("store", &["limits", "base", "wire", "domain", "ports", "lane"]),
    room(
        "ops",
        &[
            "limits", "base", "wire", "domain", "ports", "lane", "edge", "shard", "ingest",
            "owner", "control", "store",
        ],
    ),
    room("admin", &["limits", "base", "wire", "domain", "ports", "lane", "edge", "control", "ops"]),
    // The roof sees all.
    room(
        "boot",
        &[
            "limits", "base", "wire", "domain", "ports", "lane", "edge", "shard", "ingest",
            "owner", "control", "store", "ops", "admin",
        ],
    ),
    room("main", &["boot"]),
];

/// Outside crates that have a place, and the rooms or files where they may be named.
const PLACES: &[(&str, &[&str])] = &[
    ("glommio", &["shard/runtime/"]),
    ("tokio", &["ingest/", "owner/", "control/", "store/", "jobs/", "admin/"]),
    ("rskafka", &["ingest/kafka/"]),
    ("kafka_protocol", &["ingest/kafka/"]),
    ("scylla", &["store/scylla/"]),
    ("fjall", &["store/embedded/"]),
    ("hyper", &["admin/"]),
    ("axum", &["admin/"]),
    ("crossbeam", &["lane/"]),
    ("rkyv", &["wire/archive.rs"]),
    ("simd_json", &["wire/record.rs"]),
    ("httparse", &["wire/head.rs"]),
    ("socket2", &["edge/"]),
    ("clap", &["boot/"]),
    ("mimalloc", &["main.rs"]),
];

/// Files that may hold `unsafe`, each with its reason at its top.
const UNSAFE_FILES: &[&str] = &[
    "src/control/reports.rs",
    "src/shard/runtime/glommio.rs",
    "src/shard/unsent.rs",
    "src/wire/archive.rs",
    "tests/harness/src/process.rs",
    "tests/harness/src/refusal.rs",
    "tests/harness/src/thread.rs",
];

/// What pure rooms never say: they take time and chance as arguments, and never wait.
const IMPURE: &[&str] =
    &["Instant::now", "SystemTime", "async fn", ".await", "std::fs", "TcpStream", "new_v4"];
const PURE_ROOMS: &[&str] = &["base", "limits", "wire", "domain"];

/// It names what it forbids.
const THIS_FILE: &str = "tests/tidy.rs";
const LINE_CHARS_MAX: usize = 100;
/// A file of more lines than this is perhaps two rooms in one; of twice as many, it is.
const FILE_LINES_GOOD: usize = 500;
const FUNCTION_LINES_GOOD: usize = 70;

struct Source {
    /// From the repository's root.
    path: String,
    text: String,
}

impl Source {
    /// Path below `src`, if it is there.
    fn place(&self) -> Option<&str> {
        self.path.strip_prefix("src/")
    }

    /// The room of a file below `src`: its first folder, or its name.
    fn room(&self) -> Option<&str> {
        let place = self.place()?;
        Some(place.split('/').next().unwrap_or(place).trim_end_matches(".rs"))
    }

    /// Without comments, strings, and what follows `#[cfg(test)]`.
    fn code(&self) -> String {
        let production = self.text.split("#[cfg(test)]\nmod ").next().unwrap_or("");
        production.lines().map(without_comment).collect::<Vec<_>>().join("\n")
    }
}

/// Cuts a comment off, unless the `//` stands in a string.
fn without_comment(line: &str) -> &str {
    let mut in_string = false;
    let mut previous = ' ';
    for (at, character) in line.char_indices() {
        match character {
            '"' if previous != '\\' => in_string = !in_string,
            '/' if previous == '/' && !in_string => return &line[..at - 1],
            _ => {}
        }
        previous = character;
    }
    line
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["src", "tests", "bench", "loadtest"] {
        collect(&root().join(folder), &mut found);
    }
    assert!(found.len() > 50, "the sources are where they were");
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let entries = fs::read_dir(folder).expect("a folder of the repository");
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with("node_modules") {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("UTF-8");
            let path = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push(Source { path, text });
        }
    }
}

/// Names that follow `prefix` in the code: `crate::a::b` gives `a`, `crate::{a, b::c}` `a`, `b`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|character| character.is_alphanumeric() || character == '_') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => drop(names.insert(first_name(rest))),
            Some(group) => names.extend(names_of_group(group)),
        }
    }
    names
}

fn names_of_group(group: &str) -> Vec<String> {
    let mut depth = 1;
    let mut names = Vec::new();
    let mut item = String::new();
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && character == ',') {
            names.push(first_name(item.trim()));
            item.clear();
            if depth == 0 {
                break;
            }
        } else {
            item.push(character);
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

fn report(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

#[test]
fn rooms_import_downwards_only() {
    let mut breaches = Vec::new();
    for source in sources() {
        let Some(name) = source.room().filter(|name| *name != "lib") else { continue };
        let Some(room) = ROOMS.iter().find(|room| room.name == name) else {
            breaches
                .push(format!("{}: the room {name} has no floor in tests/tidy.rs", source.path));
            continue;
        };
        for imported in names_after(&source.text, "crate::") {
            let is_room = ROOMS.iter().any(|room| room.name == imported);
            if is_room && imported != name && !room.imports.contains(&imported.as_str()) {
                breaches.push(format!("{}: {name} may not import {imported}", source.path));
            }
        }
    }
    report("imports point down only", &breaches);
}

#[test]
fn the_floors_have_no_stairs_up() {
    for (at, room) in ROOMS.iter().enumerate() {
        for imported in room.imports {
            let lower = ROOMS.iter().position(|known| known.name == *imported);
            assert!(lower.is_some_and(|lower| lower < at), "{} imports {imported}", room.name);
        }
    }
}

#[test]
fn outside_crates_are_named_in_their_place() {
    let mut breaches = Vec::new();
    for source in sources() {
        let Some(place) = source.place() else { continue };
        let code = source.code();
        for (name, places) in PLACES {
            let is_named = mentions_crate(&code, name);
            if is_named && !places.iter().any(|allowed| place.starts_with(allowed)) {
                breaches.push(format!("{}: {name} is named only in {places:?}", source.path));
            }
        }
    }
    report("outside crates have their place", &breaches);
}

/// Whether the code names a crate: at the begin of a path, never in the middle of one.
fn mentions_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = &code[..at];
        !before.ends_with("::")
            && !before.ends_with(|last: char| last.is_alphanumeric() || last == '_')
    }) || code.contains(&format!("#[{name}"))
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| source.path)
        .collect();
    report("every file opens with `//!`", &silent);
}

#[test]
fn unsafe_code_stands_in_named_files_and_is_argued() {
    let mut breaches = Vec::new();
    for source in sources().into_iter().filter(|source| source.path != THIS_FILE) {
        let blocks = source.code().matches("unsafe {").count()
            + source.code().matches("unsafe impl").count()
            + source.code().matches("unsafe fn").count();
        let is_named = UNSAFE_FILES.contains(&source.path.as_str());
        if blocks > 0 && !is_named {
            breaches.push(format!("{}: holds unsafe code", source.path));
        }
        if blocks == 0 && is_named {
            breaches.push(format!("{}: holds no unsafe code any more", source.path));
        }
        if source.text.matches("SAFETY:").count() < blocks {
            breaches.push(format!("{}: unsafe code without SAFETY:", source.path));
        }
    }
    report("unsafe code is rare, named and argued", &breaches);
}

#[test]
fn pure_rooms_have_no_clock_no_chance_and_never_wait() {
    let mut breaches = Vec::new();
    for source in sources() {
        if !source.room().is_some_and(|room| PURE_ROOMS.contains(&room)) {
            continue;
        }
        let code = source.code();
        for word in IMPURE.iter().filter(|word| code.contains(**word)) {
            breaches.push(format!("{}: {word}", source.path));
        }
    }
    report("base, limits, wire and domain are pure", &breaches);
}

#[test]
fn nothing_is_unfinished_and_nothing_waits_by_the_clock() {
    let mut breaches = Vec::new();
    for source in sources().into_iter().filter(|source| source.path != THIS_FILE) {
        for (at, line) in source.text.lines().enumerate() {
            for word in ["TODO", "FIXME", "#[ignore", "todo!(", "unimplemented!("] {
                if line.contains(word) {
                    breaches.push(format!("{}:{}: {word}", source.path, at + 1));
                }
            }
            let may_sleep = source.path == "tests/harness/src/wait.rs";
            if line.contains("thread::sleep(") && !may_sleep {
                breaches.push(format!("{}:{}: waits by the clock", source.path, at + 1));
            }
        }
    }
    report("what is here is finished, and waits for conditions", &breaches);
}

#[test]
fn lines_functions_and_files_are_short() {
    let mut breaches = Vec::new();
    for source in sources() {
        for (at, line) in source.text.lines().enumerate() {
            let is_long = line.chars().count() > LINE_CHARS_MAX;
            if is_long && !line.contains("\" => ") && !line.contains("http") && !line.contains("r#")
            {
                breaches.push(format!("{}:{}: over {LINE_CHARS_MAX}", source.path, at + 1));
            }
        }
        // Tests and their tables may be as long as they need.
        if source.place().is_none() {
            continue;
        }
        let production = source.text.split("#[cfg(test)]\nmod ").next().unwrap_or("");
        grade(&source.path, production.lines().count(), FILE_LINES_GOOD, &mut breaches);
        for (name, lines) in functions(production) {
            let what = format!("{}: fn {name}", source.path);
            grade(&what, lines, FUNCTION_LINES_GOOD, &mut breaches);
        }
    }
    report("short enough to be read at once", &breaches);
}

/// Warns above what is good, fails above twice that.
fn grade(what: &str, lines: usize, good: usize, breaches: &mut Vec<String>) {
    if lines > 2 * good {
        breaches.push(format!("{what}: {lines} lines, at most {}", 2 * good));
    } else if lines > good {
        println!("warning: {what}: {lines} lines, better {good}");
    }
}

/// Names and lengths of the functions, told by rustfmt's indentation.
fn functions(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut open: Option<(String, usize, usize)> = None;
    for (at, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line.trim_start();
        let is_head =
            ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn ", "async fn ", "pub async fn "]
                .iter()
                .find_map(|head| words.strip_prefix(head));
        if let (None, Some(rest)) = (&open, is_head) {
            open = Some((first_name(rest), indent, at));
        }
        if let Some((name, column, begin)) = &open
            && indent == *column
            && (words == "}" || words.ends_with(';'))
        {
            found.push((name.clone(), at - begin + 1));
            open = None;
        }
    }
    found
}

/// The names of the configuration, of metrics and of files that pages name must exist.
#[test]
fn pages_point_to_files_that_are_there() {
    let mut breaches = Vec::new();
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    pages.extend(docs.map(|entry| entry.expect("an entry").path()));
    for page in pages.iter().filter(|page| page.extension().is_some_and(|end| end == "md")) {
        let text = fs::read_to_string(page).expect("UTF-8");
        let folder = page.parent().expect("a page stands in a folder");
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().unwrap_or("");
            let is_outside = target.is_empty() || target.contains("://");
            if !is_outside && !folder.join(target).exists() {
                breaches.push(format!("{}: {target}", page.display()));
            }
        }
    }
    report("links lead somewhere", &breaches);
}

/// `cargo test --test NAME [FILTER]` on a page: the program is there, and a test or a module of it
/// has a name that begins so.
#[test]
fn pages_name_tests_that_are_there() {
    let sources = sources();
    let mut breaches = Vec::new();
    for page in ["README.md", "docs/architecture.md", "docs/promises.md"] {
        let text = fs::read_to_string(root().join(page)).expect("UTF-8");
        for (at, _) in text.match_indices("`cargo test --") {
            let command = text[at + 1..].split('`').next().unwrap_or("");
            if !is_test_there(&sources, command) {
                breaches.push(format!("{page}: {command}"));
            }
        }
    }
    report("tests that are named are there", &breaches);
}

fn is_test_there(sources: &[Source], command: &str) -> bool {
    let words: Vec<&str> = command.split_whitespace().skip(2).collect();
    let (places, rest) = match words[..] {
        ["--test", program, ref rest @ ..] => {
            (vec![format!("tests/{program}.rs"), format!("tests/{program}/")], rest)
        }
        ["--lib", ref rest @ ..] => (vec!["src/".to_owned()], rest),
        _ => return true,
    };
    let filter = rest.first().filter(|word| !word.starts_with('-')).copied().unwrap_or("");
    let is_of_it = |source: &&Source| places.iter().any(|place| source.path.starts_with(place));
    let has_it = |source: &Source| {
        ["fn ", "mod "].iter().any(|word| source.text.contains(&format!("{word}{filter}")))
    };
    sources.iter().filter(is_of_it).any(has_it)
}

#[test]
fn the_rules_can_be_broken() {
    let code = "use crate::{base, domain::{Draft, Ring}, shard::Probe};\nuse crate::wire::frame;";
    let names: Vec<String> = names_after(code, "crate::").into_iter().collect();
    assert_eq!(names, ["base", "domain", "shard", "wire"]);
    assert_eq!(without_comment("let x = \"//\"; // tokio::spawn"), "let x = \"//\"; ");
    assert!(mentions_crate("tokio::spawn(", "tokio"));
    assert!(!mentions_crate("use crate::tokio::Value", "tokio"));
    assert!(!mentions_crate("my_tokio::spawn(", "tokio"));
    let text = "fn a() {\n    b();\n}\nfn c(\n    d: u8,\n) {\n}\n";
    assert_eq!(functions(text), [("a".to_owned(), 3), ("c".to_owned(), 4)]);
    let text = "mod inner;\nfn one_test() {}".to_owned();
    let sources = [Source { path: "tests/some/main.rs".to_owned(), text }];
    for (filter, is_there) in [("", true), (" inner", true), (" one_", true), (" other", false)] {
        let command = format!("cargo test --test some{filter}");
        assert_eq!(is_test_there(&sources, &command), is_there, "{command}");
    }
    assert!(!is_test_there(&sources, "cargo test --test another"));
}
