//! Clients that others have written, over crashes of the node: the EventSource of npm, httpx-sse of
//! PyPI, and curl. Each comes back in its own way, and gets each message once, in order.
//!
//! Their packages are fetched into the target folder once, by the registries as this machine knows
//! them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::node::Node;
use harness::process::Process;
use serde_json::{Value, json};

/// From a message until a client tells it. A client that has just been cut waits as `retry:` says,
/// and one that then finds no node does so again.
const TOLD: Duration = Duration::from_secs(60);
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// It asks for Node 22.12, of which npm warns, and runs on 18 as well.
#[test]
fn the_event_source_of_npm_gets_each_message_once_over_crashes() {
    if is_missing(&[&["node", "--version"], &["npm", "--version"]], "install nodejs and npm") {
        return;
    }
    let files = ["package.json", "package-lock.json", "eventsource.mjs"];
    let folder = prepare("npm", &files, |folder| {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder);
        run(npm);
    });
    let mut node = Command::new("node");
    node.arg(folder.join("eventsource.mjs"));
    gets_each_message_once(node);
}

#[test]
fn httpx_sse_gets_each_message_once_over_crashes() {
    let needed = ["python3", "-c", "import ensurepip, venv"];
    if is_missing(&[&needed], "install python3 and python3-venv") {
        return;
    }
    let files = ["requirements.txt", "httpx_stream.py"];
    let folder = prepare("pypi", &files, |folder| {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(folder.join("venv"));
        run(venv);
        let mut pip = Command::new(folder.join("venv/bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--require-hashes"]);
        pip.arg("-r").arg(folder.join("requirements.txt"));
        run(pip);
    });
    let mut python = Command::new(folder.join("venv/bin/python"));
    python.arg(folder.join("httpx_stream.py"));
    gets_each_message_once(python);
}

#[test]
fn curl_gets_each_message_once_over_crashes() {
    if is_missing(&[&["curl", "--version"]], "install curl") {
        return;
    }
    let last_id = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut shell = Command::new("sh");
    shell.arg(Path::new(SCRIPTS).join("curl.sh")).arg(last_id.path());
    gets_each_message_once(shell);
}

/// Runs the client, which tells what comes at the address that is its last argument.
fn gets_each_message_once(mut client: Command) {
    let mut node = Node::start(env!("CARGO_BIN_EXE_corecast"), &[]);
    client.arg(format!("http://{}/api/user/sse/connect?userId=client", node.public));
    let client = Process::start("the client", client).expect("it can be run");
    wait_for_connects(&client, 1);
    let mut sent = Vec::new();
    let mut tell = |node: &Node, content: String| {
        node.create(&json!({
            "content": content, "targetType": "SELECTED", "targetIds": ["client"]
        }));
        sent.push(content);
    };
    for round in 0..3 {
        let odd = format!("{round} before \n\r\n data: \\n \"é\" \u{2028}");
        tell(&node, odd.clone());
        node.say("to everybody");
        wait_for_message(&client, &odd);
        node.process.kill();
        node.start_again();
        // The client waits for as long as `retry:` said: this is here before it is back.
        tell(&node, format!("{round} meanwhile"));
        wait_for_connects(&client, round + 2);
        tell(&node, format!("{round} after"));
        wait_for_message(&client, &format!("{round} after"));
    }
    let text = client.text();
    let told: Vec<(&str, Value)> = text.lines().map(read).collect();
    let of = |wanted: &str| told.iter().filter(|(name, _)| *name == wanted).count();
    assert_eq!(of("CONNECTED") + of("MESSAGE"), told.len(), "nothing else comes: {text}");
    let (to_all, own): (Vec<&str>, Vec<&str>) =
        told.iter().filter_map(content).partition(|content| *content == "to everybody");
    assert_eq!(to_all.len(), 3, "{text}");
    assert_eq!(own, sent, "each once, in order");
}

fn wait_for_message(client: &Process, wanted: &str) {
    client.wait_for_line(TOLD, |line| (content(&read(line)) == Some(wanted)).then_some(()));
}

fn wait_for_connects(client: &Process, wanted: usize) {
    let connects = || client.text().lines().filter(|line| read(line).0 == "CONNECTED").count();
    harness::wait::until_true("the client comes", TOLD, || connects() >= wanted);
}

/// What a client tells of an event: its name, and its data, which must be what the node sent.
fn read(line: &str) -> (&str, Value) {
    let (name, data) = line.split_once('\t').unwrap_or_else(|| panic!("the client says {line}"));
    (name, serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {line}")))
}

fn content<'a>((name, data): &'a (&str, Value)) -> Option<&'a str> {
    data["content"].as_str().filter(|_| *name == "MESSAGE")
}

/// Whether one of these can't be run here; says so.
fn is_missing(commands: &[&[&str]], how: &str) -> bool {
    let missing = commands.iter().find(|command| {
        let (program, arguments) = command.split_first().expect("a program");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        !command.status().is_ok_and(|status| status.success())
    });
    if let Some(command) = missing {
        harness::skip(&format!("can't run {}", command.join(" ")), how);
    }
    missing.is_some()
}

/// A folder of the target's with these files and what `fill` fetches for them. Filled once; who
/// comes meanwhile waits.
fn prepare(name: &str, files: &[&str], fill: impl FnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name);
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let lock = File::create(folder.join("lock")).expect("a lock file");
    lock.lock().expect("the lock of the folder");
    let wanted: String = files.iter().map(|file| text_of(Path::new(SCRIPTS), file)).collect();
    let stamp = folder.join("filled");
    if std::fs::read_to_string(&stamp).is_ok_and(|known| known == wanted) {
        return folder;
    }
    let _ = std::fs::remove_file(&stamp);
    for file in files {
        std::fs::copy(Path::new(SCRIPTS).join(file), folder.join(file)).expect("a copy");
    }
    fill(&folder);
    std::fs::write(stamp, wanted).expect("the target folder can be written");
    folder
}

fn text_of(folder: &Path, file: &str) -> String {
    std::fs::read_to_string(folder.join(file)).expect("a file beside this test")
}

/// Panics, with its words, if it fails.
fn run(mut command: Command) {
    let output = command.stdin(Stdio::null()).output().expect("it can be run");
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (words(&output.stdout), words(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
}
