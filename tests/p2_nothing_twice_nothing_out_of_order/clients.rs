//! Clients, a thread each: they read, leave in one of several ways, and come back in one of several
//! others.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::http::{Connection, End};
use harness::node::ask;
use harness::sse::{Item, Stream};
use harness::wait;
use socket2::{Domain, SockRef, Socket, Type};

use crate::random::{Random, Seen};
use crate::script::{Reader, Script, name_of_role, name_of_user};
use crate::tally::{Reached, Tally};

pub const NODES: usize = 3;
/// Cursors that a client remembers, to come back with one of them.
const CURSORS: usize = 64;
/// How long a client reads before it does something else, in milliseconds.
const READS_MS: u64 = 20_000;
/// How long one stands still, and how long one is away.
const STANDS_MS: u64 = 8_000;
const AWAY_MS: u64 = 10_000;
/// Of a reader who is full soon: with these, a node can't put 100 KB into his socket.
const NARROW_BUFFER_BYTES: usize = 4 * 1024;
const NARROW_SEGMENT_BYTES: u32 = 1_400;
/// The latest streams of a client, told with what went wrong.
const STREAMS_TOLD: usize = 6;
/// Between two tries where nobody listens.
const REFUSED_WAIT: Duration = Duration::from_millis(200);
/// Between two looks at whether all is written.
const LOOK: Duration = Duration::from_millis(200);
/// Until a client that has said that it goes is let go: the node may have much to write yet.
const LET_GO: Duration = Duration::from_secs(10);

/// What the clients share.
pub struct Service {
    pub nodes: [SocketAddr; NODES],
    pub script: Script,
    pub began: Instant,
    /// Nothing more is written: clients stay until they have all.
    pub is_over: AtomicBool,
    /// Some have not got all in time.
    pub is_given_up: AtomicBool,
    pub here: AtomicUsize,
    pub done: AtomicUsize,
}

impl Service {
    /// Lets time pass, less of it once all is written.
    fn pass(&self, time: Duration) {
        let due = Instant::now() + time;
        while Instant::now() < due && !self.is_over.load(Ordering::Relaxed) {
            wait::until_due(due.min(Instant::now() + LOOK));
        }
    }
}

pub struct Client {
    /// Whether no other tab is of the same user.
    is_alone: bool,
    /// How long after the others it comes.
    comes_after: Duration,
    query: String,
    random: Random,
    tally: Tally,
    /// What it came back with, or the last that came since.
    cursor: Option<String>,
    /// What it could come back with, the latest last.
    cursors: VecDeque<(String, Reached)>,
    /// As the node said last.
    retry: Duration,
    how: &'static str,
    node: usize,
    seen: Seen,
    streams: VecDeque<String>,
    notes: Vec<String>,
}

/// What became of a client.
pub struct Story {
    pub tally: Tally,
    pub seen: Seen,
    /// What went wrong, as it went.
    pub notes: Vec<String>,
}

/// How a stream ended.
#[derive(Debug)]
enum Left {
    /// All has come.
    Done,
    ByNode {
        was_connected: bool,
    },
    /// By the client, whom the node may have sent more than it has read.
    Cut,
    /// By the client, which has read to the end.
    LetGo,
    ToOtherNode,
}

impl Client {
    pub fn new(number: usize, reader: Reader, is_alone: bool, random: Random) -> Self {
        let (user, role) = (name_of_user(reader.user), name_of_role(reader.role));
        let query = format!("userId={user}&roles={role}&connectionId=tab-{number}");
        Self {
            is_alone,
            comes_after: Duration::ZERO,
            query,
            random,
            tally: Tally::new(reader),
            cursor: None,
            cursors: VecDeque::new(),
            retry: Duration::ZERO,
            how: "first",
            node: number,
            seen: Seen::default(),
            streams: VecDeque::new(),
            notes: Vec::new(),
        }
    }

    /// For the first time when much has been written already.
    pub fn comes_after(&mut self, time: Duration) {
        (self.how, self.comes_after) = ("first, later than others", time);
    }

    /// From its first stream until all has come.
    pub fn live(mut self, service: &Service) -> Story {
        wait::until_due(service.began + self.comes_after);
        while !service.is_given_up.load(Ordering::Relaxed) {
            let Some(mut stream) = self.open(service) else {
                self.seen.note("found nobody");
                self.node += 1;
                wait::until_due(Instant::now() + REFUSED_WAIT);
                continue;
            };
            let left = self.read(&mut stream, service);
            drop(stream);
            self.streams.push_back(format!("{} on node {}: {left:?}", self.how, self.node % NODES));
            if self.streams.len() > STREAMS_TOLD {
                self.streams.pop_front();
            }
            let away = match left {
                Left::Done => break,
                Left::ByNode { was_connected: false } => self.retry,
                Left::ByNode { was_connected: true } => {
                    self.come_back_with(1, 8, false);
                    self.retry
                }
                Left::Cut | Left::ToOtherNode => {
                    self.tally.doubt(&service.script);
                    self.come_back_with(1, 3, false);
                    self.time_away(matches!(left, Left::ToOtherNode))
                }
                Left::LetGo => {
                    // A cut stream's peer has acknowledged what its client never read.
                    let may_forget = self.is_alone && self.tally.is_sure();
                    self.come_back_with(1, 3, may_forget);
                    self.time_away(false)
                }
            };
            service.pass(away);
        }
        let lacking = self.tally.end(&service.script);
        if !lacking.is_empty() {
            self.tell(service, &format!("{lacking:?} (lane, number) did not come"));
        }
        service.done.fetch_add(1, Ordering::Relaxed);
        Story { tally: self.tally, seen: self.seen, notes: self.notes }
    }

    /// Chooses with what it comes back, and where.
    fn come_back_with(&mut self, older: usize, of: usize, may_forget: bool) {
        if self.random.one_in(4) {
            self.node += 1 + self.random.below(2);
        }
        self.how = "with the last cursor";
        if may_forget && self.random.one_in(2) {
            (self.how, self.cursor) = ("without a cursor", None);
            self.tally.start_over();
        } else if self.random.below(of) < older
            && let Some(at) = self.cursors.len().checked_sub(1)
        {
            let (cursor, reached) = self.cursors[self.random.below(at + 1)].clone();
            (self.how, self.cursor) = ("with an older cursor", Some(cursor));
            self.tally.resume(reached);
        }
    }

    fn time_away(&mut self, goes_on_elsewhere: bool) -> Duration {
        match (goes_on_elsewhere, self.random.one_in(2)) {
            (true, _) => {
                self.node += 1;
                Duration::ZERO
            }
            (false, true) => self.random.millis(500),
            (false, false) => self.random.millis(AWAY_MS),
        }
    }

    /// `None` from a node that is not there, or goes.
    fn open(&mut self, service: &Service) -> Option<Stream> {
        let address = service.nodes[self.node % NODES];
        let is_narrow = self.random.one_in(2);
        let fields: Vec<(&str, &str)> =
            self.cursor.iter().map(|cursor| ("last-event-id", cursor.as_str())).collect();
        // One whose buffer is small holds the node up when it stands still.
        let socket = if is_narrow { narrow(address) } else { TcpStream::connect(address) };
        let connection = Connection::over(socket.ok()?);
        let stream = Stream::over(connection, address, &ask(&self.query, &fields)).ok()?;
        assert_eq!(stream.head.status, 200, "{:?}", stream.head);
        Some(stream)
    }

    fn read(&mut self, stream: &mut Stream, service: &Service) -> Left {
        let mut due = Instant::now() + self.random.millis(READS_MS);
        let mut was_connected = false;
        loop {
            if service.is_over.load(Ordering::Relaxed) {
                let is_done = was_connected && self.tally.is_done(&service.script);
                if is_done || service.is_given_up.load(Ordering::Relaxed) {
                    return Left::Done;
                }
            } else if was_connected && Instant::now() >= due {
                if let Some(left) = self.leave(stream, service) {
                    return left;
                }
                due = Instant::now() + self.random.millis(READS_MS);
            }
            match stream.next_item() {
                Item::End(_) => {
                    self.seen.note(if was_connected { "ended by the node" } else { "put off" });
                    return Left::ByNode { was_connected };
                }
                item => was_connected |= self.take(item, service),
            }
        }
    }

    /// Whether it is CONNECTED.
    fn take(&mut self, item: Item, service: &Service) -> bool {
        let (id, is_connected) = match item {
            Item::Event(event) => {
                match event.name.as_str() {
                    "MESSAGE" => {
                        if let Err(wrong) = self.tally.take(&service.script, event.content()) {
                            self.tell(service, &wrong);
                        }
                    }
                    "CONNECTED" => {
                        self.seen.note("streams");
                        self.seen.note(self.how);
                        if self.how == "first" {
                            service.here.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    "GAP" => {
                        self.tally.gap();
                        self.tell(service, &format!("GAP {}", event.data));
                    }
                    _ => panic!("{event:?}"),
                }
                (event.id, event.name == "CONNECTED")
            }
            Item::Id(id) => (Some(id), false),
            Item::Retry(retry) => {
                self.retry = Duration::from_millis(retry);
                (None, false)
            }
            Item::Comment(_) | Item::End(_) => (None, false),
        };
        if let Some(id) = id {
            self.cursor = Some(id.clone());
            self.cursors.push_back((id, self.tally.reached()));
            if self.cursors.len() > CURSORS {
                self.cursors.pop_front();
            }
        }
        is_connected
    }

    /// `None`: it has only stood still, and reads on.
    fn leave(&mut self, stream: &mut Stream, service: &Service) -> Option<Left> {
        match self.random.below(8) {
            0 | 1 => {
                self.seen.note("reset in a frame");
                // Some bytes of what comes next, and no more.
                let socket = stream.connection().socket();
                socket.set_read_timeout(Some(Duration::from_secs(1))).expect("an option");
                let _ = { socket }.read(&mut [0; 40]);
                reset_when_dropped(stream);
                Some(Left::Cut)
            }
            2 => {
                self.seen.note("closed");
                Some(Left::Cut)
            }
            3 => {
                self.seen.note("closed and read to the end");
                let _ = stream.connection().socket().shutdown(Shutdown::Write);
                Some(self.read_to_end(stream, service))
            }
            4 | 5 => {
                self.seen.note("went to another node");
                Some(Left::ToOtherNode)
            }
            _ => {
                self.seen.note("stood still");
                service.pass(self.random.millis(STANDS_MS));
                if self.random.one_in(2) {
                    return None;
                }
                self.seen.note("reset where it stood still");
                reset_when_dropped(stream);
                Some(Left::Cut)
            }
        }
    }

    fn read_to_end(&mut self, stream: &mut Stream, service: &Service) -> Left {
        let deadline = Instant::now() + LET_GO;
        loop {
            assert!(Instant::now() < deadline, "a node goes on writing to who has gone");
            match stream.next_item() {
                Item::End(End::Closed) => return Left::LetGo,
                Item::End(End::Reset) => return Left::Cut,
                item => drop(self.take(item, service)),
            }
        }
    }

    fn tell(&mut self, service: &Service, wrong: &str) {
        self.notes.push(format!(
            "{:?}, {}: {wrong}; on node {}, where it came {}, behind {}; before: {:?}",
            service.began.elapsed(),
            self.query,
            self.node % NODES,
            self.how,
            self.cursor.as_deref().unwrap_or("no cursor"),
            self.streams
        ));
    }
}

/// A socket that takes little while its reader stands still.
fn narrow(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_recv_buffer_size(NARROW_BUFFER_BYTES)?;
    socket.set_tcp_mss(NARROW_SEGMENT_BYTES)?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

fn reset_when_dropped(stream: &mut Stream) {
    let socket = SockRef::from(stream.connection().socket());
    socket.set_linger(Some(Duration::ZERO)).expect("an option of sockets");
}
