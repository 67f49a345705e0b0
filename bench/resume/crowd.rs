//! Clients that come back with a cursor: one thread, which looks at every byte that they get.
//!
//! What they are to get is known from streams that were here all the time: each block's bytes but
//! for its id, in the order of its partition, once. Anything else ends the benchmark.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use corecast::base::partition_of_key;
use corecast::wire::cursor::UserMark;
use harness::node::{Node, ask};
use harness::sse::{Event, Item, Stream, request};
use harness::wait;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use crate::PARTITIONS;
use crate::records;

/// Connects whose answer is still to come: below the listeners' backlog.
const OPENING_MAX: usize = 1_000;
/// Connects between two looks at what has come.
const OPEN_AT_ONCE: usize = 64;
/// Without any byte for anybody.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is read of one stream, and from how many, before it is looked how much that was.
const READ_BYTES: usize = 64 * 1024;
const READ_STREAMS: usize = 64;
/// Below those that the kernel gives.
const PORT_FIRST: u32 = 10_000;
const PORTS: u32 = 20_000;
/// Addresses of one run: another one that follows at once takes others, because the kernel keeps
/// the ports of connections that have ended for a minute.
const ADDRESSES: u32 = 256;
const RUNS: u32 = 250;

/// What a client gets: of each partition of the group topic, in order, the `event` and `data` lines
/// of each event with the empty line behind them.
#[derive(Clone, Default)]
pub struct Script {
    lanes: Vec<Vec<Told>>,
    events: usize,
}

/// An event, and where its `createdAt` is: the store says the time of the append, live delivery
/// that of the record.
#[derive(Clone)]
struct Told {
    block: Vec<u8>,
    date: Range<usize>,
}

impl Told {
    fn new(block: Vec<u8>) -> Self {
        const FIELD: &[u8] = b"\"createdAt\":\"";
        let at = block.windows(FIELD.len()).position(|part| part == FIELD).expect("it has one");
        let begin = at + FIELD.len();
        Self { block, date: begin..begin + "2026-01-02T03:04:05.678Z".len() }
    }

    /// Whether these bytes begin with it.
    fn begins(&self, bytes: &[u8]) -> bool {
        let Self { block, date } = self;
        let is_same = |part: Range<usize>| bytes.get(part.clone()) == block.get(part);
        is_same(0..date.start) && is_same(date.end..block.len())
    }
}

impl Script {
    /// What the witness was told.
    pub fn add(&mut self, block: Vec<u8>) {
        let number = records::number_of(&block).expect("one of ours");
        let lane = usize::from(records::group_partition(number, PARTITIONS));
        self.lanes.resize(usize::from(PARTITIONS), Vec::new());
        self.lanes[lane].push(Told::new(block));
        self.events += 1;
    }
}

/// A client who is never away.
struct Witness {
    stream: Stream,
    cursor: String,
}

impl Witness {
    fn of(node: &Node, query: &str) -> Self {
        let (stream, cursor) = let_in(node, query);
        Self { stream, cursor }
    }

    /// The next message, without its id.
    fn message(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let connection = self.stream.connection();
            let Some(end) = connection.buffer().windows(2).position(|two| two == b"\n\n") else {
                connection.fill(deadline).unwrap_or_else(|end| panic!("the witness: {end:?}"));
                continue;
            };
            let block = connection.take(end + 2);
            let Some(id) = block.strip_prefix(b"id: ") else { continue };
            let end = id.iter().position(|byte| *byte == b'\n').expect("a line has an end");
            self.cursor = String::from_utf8(id[..end].to_vec()).expect("ASCII");
            let told = &id[end + 1..];
            if told.starts_with(b"event: MESSAGE\n") {
                return told.to_vec();
            }
        }
    }
}

/// Clients who are never away, one of each own partition, so that a cursor of theirs is one for
/// everybody of it.
pub struct Witnesses(Vec<Witness>);

impl Witnesses {
    pub fn of(node: &Node, roles: &str) -> Self {
        let user = |partition| {
            let mut names = (0..).map(|number| format!("witness-{number}"));
            names.find(|name| own_partition(name) == partition).expect("endless")
        };
        let queries = (0..PARTITIONS).map(|partition| format!("userId={}{roles}", user(partition)));
        Self(queries.map(|query| Witness::of(node, &query)).collect())
    }

    /// The next message, which all of them get.
    pub fn message(&mut self) -> Vec<u8> {
        let told = self.0.iter_mut().map(Witness::message);
        told.last().expect("there are partitions")
    }

    /// By own partition, what they would come back with now.
    pub fn cursors(&self) -> Vec<String> {
        self.0.iter().map(|witness| witness.cursor.clone()).collect()
    }
}

pub fn own_partition(user: &str) -> u16 {
    partition_of_key(user.as_bytes(), PARTITIONS)
}

/// A stream without a cursor, and its first id. A node that does not yet know what is kept for it
/// puts it off.
pub fn let_in(node: &Node, query: &str) -> (Stream, String) {
    wait::until("it is let in", PATIENCE, || {
        let mut stream = Stream::open(node.public, &ask(query, &[]));
        assert!(matches!(stream.next_item(), Item::Retry(_)), "retry comes first");
        let Item::Event(Event { id, .. }) = stream.next_item() else { return None };
        Some((stream, id.expect("CONNECTED has an id")))
    })
}

/// One client.
struct Client {
    /// Of user and memberships, for the request.
    query: String,
    /// Where its events stand in `Crowd::scripts`.
    script: usize,
    socket: Option<TcpStream>,
    /// Bytes of a block that is not whole yet.
    rest: Vec<u8>,
    cursor: String,
    /// What came of each lane of its script, and of all.
    next: [usize; PARTITIONS as usize],
    got: usize,
    has_head: bool,
    is_connected: bool,
    is_done: bool,
    retry: Duration,
}

pub struct Crowd {
    address: SocketAddr,
    set: OwnedFd,
    clients: Vec<Client>,
    scripts: Vec<Script>,
    ready: Vec<epoll::Event>,
    scratch: Vec<u8>,
    /// Who has no CONNECTED yet, and who has all of his script.
    opening: usize,
    done: usize,
    /// Who may come back, and when; in order, as they all wait about as long.
    away: VecDeque<(Instant, usize)>,
    /// Streams that the node ended, to go on with the next piece.
    pub returns: usize,
    pub bytes: u64,
    /// What all of them together take in a second at most.
    pub bytes_a_second: Option<u64>,
}

impl Crowd {
    pub fn new(address: SocketAddr, scripts: Vec<Script>) -> Self {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll set");
        let (ready, scratch) = (Vec::with_capacity(READ_STREAMS), vec![0; READ_BYTES]);
        let (clients, away, opening, done, returns, bytes, bytes_a_second) = Default::default();
        Self {
            address,
            set,
            clients,
            scripts,
            ready,
            scratch,
            opening,
            done,
            away,
            returns,
            bytes,
            bytes_a_second,
        }
    }

    /// One more, who comes with `run` and the cursor of his own partition.
    pub fn add(&mut self, user: &str, roles: &str, cursors: &[String], script: usize) {
        let cursor = made_into_one_of(user, &cursors[usize::from(own_partition(user))]);
        self.clients.push(Client {
            query: format!("userId={user}{roles}"),
            script,
            socket: None,
            rest: Vec::new(),
            cursor,
            next: [0; PARTITIONS as usize],
            got: 0,
            has_head: false,
            is_connected: false,
            is_done: false,
            retry: Duration::ZERO,
        });
    }

    /// Has all of them come at once; how long until the last one has all of its script.
    pub fn run(&mut self) -> Duration {
        let began = Instant::now();
        let mut to_open = self.clients.len();
        let mut last_byte = began;
        while self.done < self.clients.len() {
            let opened = OPEN_AT_ONCE.min(to_open).min(OPENING_MAX.saturating_sub(self.opening));
            for _ in 0..opened {
                to_open -= 1;
                self.open(to_open);
            }
            self.come_back();
            if let Some(bytes) = self.bytes_a_second {
                let due = Duration::from_secs_f64(self.bytes as f64 / bytes as f64);
                wait::until_due(began + due);
            }
            // It does not take the node's time by looking again and again.
            if self.read(if opened > 0 { 0 } else { 10 }) {
                last_byte = Instant::now();
            }
            assert!(last_byte.elapsed() < PATIENCE, "nothing has come for {PATIENCE:?}");
        }
        began.elapsed()
    }

    /// One event more of this script.
    pub fn expect(&mut self, script: usize, block: Vec<u8>) {
        self.scripts[script].add(block);
        for client in self.clients.iter_mut().filter(|client| client.script == script) {
            self.done -= usize::from(std::mem::take(&mut client.is_done));
        }
    }

    /// Until all have all of their scripts, on the streams that they have.
    pub fn wait(&mut self) {
        let began = Instant::now();
        while self.done < self.clients.len() {
            self.read(10);
            assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for what is live");
        }
    }

    fn open(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let fields = [("last-event-id", client.cursor.as_str())];
        let socket = connect(self.address).expect("the node listens");
        let request = request(self.address, &ask(&client.query, &fields));
        (&socket).write_all(&request).expect("an empty socket takes a request");
        socket.set_nonblocking(true).expect("an option of sockets");
        let data = EventData::new_u64(number as u64);
        epoll::add(&self.set, &socket, data, EventFlags::IN).expect("the set takes it");
        client.socket = Some(socket);
        (client.has_head, client.is_connected) = (false, false);
        client.rest.clear();
        self.opening += 1;
    }

    /// Opens again what the node has ended, when it said.
    fn come_back(&mut self) {
        let now = Instant::now();
        while let Some((at, number)) = self.away.front().copied()
            && at <= now
            && self.opening < OPENING_MAX
        {
            self.away.pop_front();
            self.open(number);
        }
    }

    /// Reads what has come within so many milliseconds; whether anything has.
    fn read(&mut self, wait_ms: i64) -> bool {
        let wait = Timespec { tv_sec: 0, tv_nsec: wait_ms * 1_000_000 };
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        match epoll::wait(&self.set, spare_capacity(&mut ready), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
        for event in &ready {
            self.read_one(event.data.u64() as usize);
        }
        self.ready = ready;
        !self.ready.is_empty()
    }

    fn read_one(&mut self, number: usize) {
        let Self { clients, scripts, scratch, .. } = self;
        let client = &mut clients[number];
        let Some(mut socket) = client.socket.as_ref() else { return };
        let read = match socket.read(scratch) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{}: {error}", client.query),
        };
        if read == 0 {
            self.opening -= usize::from(!client.is_connected);
            self.returns += 1;
            client.socket = None;
            self.away.push_back((Instant::now() + client.retry, number));
            return;
        }
        self.bytes += read as u64;
        let was_connected = client.is_connected;
        client.take(&scratch[..read], &scripts[client.script]);
        self.opening -= usize::from(client.is_connected && !was_connected);
        let is_all = client.is_connected && client.got == scripts[client.script].events;
        self.done += usize::from(is_all && !std::mem::replace(&mut client.is_done, is_all));
    }
}

/// The cursor of another user of the partition, as this one's.
fn made_into_one_of(user: &str, cursor: &str) -> String {
    let mut line = Vec::new();
    let others = format!("id: {cursor}\n");
    UserMark::of(user).write_line(others.as_bytes(), own_partition(user), &mut line);
    let line = String::from_utf8(line).expect("ASCII");
    line["id: ".len()..].trim_end().to_owned()
}

/// From an address and a port that nobody had before: for the kernel to look for a port that is
/// free takes longer than all else of a connect, with as many as are in use here.
fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    let drawn = DRAWN.fetch_add(1, Ordering::Relaxed);
    let port = (PORT_FIRST + drawn % PORTS) as u16;
    let first = u32::from(Ipv4Addr::new(127, 2, 0, 1)) + std::process::id() % RUNS * ADDRESSES;
    let address = Ipv4Addr::from(first + drawn / PORTS);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((address, port)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

impl Client {
    fn take(&mut self, bytes: &[u8], script: &Script) {
        let mut joined = std::mem::take(&mut self.rest);
        let mut rest = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined
        };
        if !self.has_head {
            let Some(end) = rest.windows(4).position(|part| part == b"\r\n\r\n") else {
                self.rest = rest.to_vec();
                return;
            };
            assert!(rest.starts_with(b"HTTP/1.1 200 "), "{}", rest.escape_ascii());
            (self.has_head, rest) = (true, &rest[end + 4..]);
        }
        while let Some(length) = self.take_block(rest, script) {
            rest = &rest[length..];
        }
        self.rest = rest.to_vec();
    }

    /// Takes the block that is first; its length, if it is whole.
    fn take_block(&mut self, bytes: &[u8], script: &Script) -> Option<usize> {
        let mut body = bytes;
        if let Some(id) = bytes.strip_prefix(b"id: ") {
            let end = id.iter().position(|byte| *byte == b'\n')?;
            body = &id[end + 1..];
        }
        let id_bytes = bytes.len() - body.len();
        let mut lanes = self.next.iter_mut().zip(&script.lanes);
        let expected = lanes.find_map(|(next, lane)| {
            let expected = lane.get(*next).filter(|expected| expected.begins(body))?;
            *next += 1;
            Some(expected)
        });
        let length = match expected {
            Some(expected) => {
                self.got += 1;
                expected.block.len()
            }
            None => {
                let end = body.windows(2).position(|two| two == b"\n\n");
                // Of an id that stands alone, the line's own end is one of the two.
                let is_id_alone = id_bytes > 0 && body.first() == Some(&b'\n');
                let length = if is_id_alone { 1 } else { end? + 2 };
                self.take_other(&body[..length]);
                length
            }
        };
        if id_bytes > 0 {
            let id = &bytes[4..id_bytes - 1];
            self.cursor.clear();
            self.cursor.push_str(std::str::from_utf8(id).expect("ASCII"));
        }
        Some(id_bytes + length)
    }

    /// What is no event of the script.
    fn take_other(&mut self, block: &[u8]) {
        let text = std::str::from_utf8(block).expect("UTF-8");
        if let Some(retry) = text.strip_prefix("retry: ") {
            self.retry = Duration::from_millis(retry.trim().parse().expect("a number"));
            return;
        }
        self.is_connected |= text.starts_with("event: CONNECTED\n");
        let is_expected = self.is_connected || text.starts_with(':') || text == "\n";
        assert!(is_expected && !text.contains("MESSAGE"), "{}: {text}", self.query);
        assert!(!text.starts_with("event: GAP"), "{}: {text}", self.query);
    }
}
