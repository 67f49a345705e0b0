//! Headless Chromium, and what a page needs: one origin with the node, and a way to tell the test
//! what it saw.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Connection;
use crate::process::Process;

const PROGRAMS: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
];

/// Opens an EventSource and tells what comes, each with what it was.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>Corecast</title><script>
let telling = Promise.resolve();
function tell(what, event) {
  const body = JSON.stringify({ what, id: event.lastEventId || "", data: event.data || "" });
  // One after the other, so that the order of what is told is that of what came.
  telling = telling.then(() => fetch("/told", { method: "POST", body }));
}
const source = new EventSource("/api/user/sse/connect?userId=browser&connectionId=tab");
for (const name of ["CONNECTED", "MESSAGE", "GAP", "SERVER_SHUTDOWN", "message"])
  source.addEventListener(name, event => tell(name, event));
</script>"#;

/// A page with an EventSource of the user `browser`, in a browser. Dropping it kills that.
pub struct Page {
    origin: Origin,
    _browser: Browser,
}

/// A browser that shows one page. Dropping it kills it.
pub struct Browser {
    _process: Process,
    _profile: TempDir,
}

impl Page {
    /// Opens it in a browser of its own, of the origin of this public listener.
    pub fn open(program: PathBuf, node: SocketAddr) -> Self {
        let origin = Origin::start(PAGE, node);
        let browser = Browser::open(program, &origin.url());
        Self { origin, _browser: browser }
    }

    /// The next thing that came: its name and its data.
    pub fn next(&self) -> (String, Value) {
        let told: Value = serde_json::from_str(&self.origin.told()).expect("the page tells JSON");
        let data = told["data"].as_str().expect("a string");
        assert_ne!(told["id"], "", "the browser keeps a cursor: {told}");
        let what = told["what"].as_str().expect("a string").to_owned();
        (what, serde_json::from_str(data).expect("data is JSON"))
    }

    /// How long it was away after its first stream. `None` while it is not back.
    pub fn was_away(&self) -> Option<Duration> {
        let passed = self.origin.passed();
        let ((_, Some(ended_at)), (back_at, _)) = (passed.first()?, passed.get(1)?) else {
            return None;
        };
        Some(back_at.saturating_duration_since(*ended_at))
    }

    pub fn wait_for_connected(&self) {
        let (what, data) = self.next();
        assert_eq!((what.as_str(), &data["connectionId"]), ("CONNECTED", &json!("tab")));
    }

    pub fn expect_message(&self, content: &str) {
        let (what, data) = self.next();
        assert_eq!((what.as_str(), &data["content"]), ("MESSAGE", &json!(content)));
    }
}

/// Where the browser is, if there is one.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let places =
        PROGRAMS.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    places.into_iter().find(|place| place.is_file())
}

impl Browser {
    /// Opens the page in a profile of its own.
    pub fn open(program: PathBuf, url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(program);
        command.args(FLAGS);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(url);
        let process = Process::start("chromium", command).expect("the browser can be run");
        Self { _process: process, _profile: profile }
    }
}

/// When a request was passed on, and when its answer had ended.
pub type Passed = (Instant, Option<Instant>);

/// The origin of a page: serves it at `/`, takes what it POSTs to `/told`, and passes `/api` on
/// to a node, byte by byte. Ends with the test process.
pub struct Origin {
    address: SocketAddr,
    told: mpsc::Receiver<String>,
    passed: Arc<Mutex<Vec<Passed>>>,
}

impl Origin {
    /// `node` is the public listener; while nobody listens there, connections are closed.
    pub fn start(page: &'static str, node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (tell, told) = mpsc::channel();
        let passed = Arc::<Mutex<Vec<Passed>>>::default();
        let passes = passed.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (tell, passes) = (tell.clone(), passes.clone());
                std::thread::spawn(move || serve(socket, page, (node, &passes), &tell));
            }
        });
        Self { address, told, passed }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What was passed on to the node so far, in order.
    pub fn passed(&self) -> Vec<Passed> {
        self.passed.lock().expect("nobody panics with it").clone()
    }

    /// The next thing that the page tells. Panics if it is silent for too long.
    pub fn told(&self) -> String {
        // A browser's start on a busy machine takes longest.
        self.told.recv_timeout(3 * crate::http::PATIENCE).expect("the page tells something")
    }
}

/// Serves one request.
fn serve(
    socket: TcpStream,
    page: &str,
    (node, passed): (SocketAddr, &Mutex<Vec<Passed>>),
    tell: &mpsc::Sender<String>,
) {
    let mut connection = Connection::over(socket);
    let Some((head, length)) = read_head(&mut connection) else { return };
    if head.starts_with("GET /api/") {
        let lock = || passed.lock().expect("nobody panics with it");
        let place = {
            let mut passed = lock();
            passed.push((Instant::now(), None));
            passed.len() - 1
        };
        pass_on(&mut connection, &head, node);
        lock()[place].1 = Some(Instant::now());
        return;
    }
    let body = if head.starts_with("POST /told ") {
        let Some(body) = read_body(&mut connection, length) else { return };
        let _ = tell.send(body);
        ""
    } else {
        page
    };
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = connection.send(answer.as_bytes());
}

/// Sends the request as it came, and back whatever the node sends for as long as it does.
fn pass_on(connection: &mut Connection, head: &str, node: SocketAddr) {
    let Ok(mut upstream) = TcpStream::connect(node) else { return };
    if upstream.write_all(head.as_bytes()).is_err() {
        return;
    }
    let mut bytes = [0; 4 * 1024];
    while let Ok(read @ 1..) = upstream.read(&mut bytes) {
        if connection.send(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = upstream.shutdown(Shutdown::Both);
}

/// The head as it came, and the length of the body behind it.
fn read_head(connection: &mut Connection) -> Option<(String, usize)> {
    let end = loop {
        let end = connection.buffer().windows(4).position(|four| four == b"\r\n\r\n");
        match end {
            Some(end) => break end + 4,
            None => fill(connection)?,
        }
    };
    let head = String::from_utf8(connection.take(end)).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Some((head, length.unwrap_or(0)))
}

fn read_body(connection: &mut Connection, length: usize) -> Option<String> {
    while connection.buffer().len() < length {
        fill(connection)?;
    }
    String::from_utf8(connection.take(length)).ok()
}

/// A browser opens connections that it may never use: those just end.
fn fill(connection: &mut Connection) -> Option<()> {
    let deadline = std::time::Instant::now() + 3 * crate::http::PATIENCE;
    connection.try_fill(deadline)?.ok()
}
