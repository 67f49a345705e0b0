//! Users as their clients are: they read, and come back with their cursor to whichever node is
//! there, whenever a stream ends and now and then by themselves. Some wait as they were told before
//! they come back, as an EventSource does.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use harness::http::Connection;
use harness::node::ask;
use harness::sse::{Event, Item, Stream};
use harness::wait;
use serde_json::Value;

use crate::real::PARTITIONS;

/// What a user gets in order: each partition of the group topic, and his own of the selected one.
pub const LANES: usize = PARTITIONS as usize + 1;
const OWN: usize = PARTITIONS as usize;
/// A client's wait before it comes back, if it does not obey.
const RECONNECT: Duration = Duration::from_millis(100);
/// What browsers wait whom no node has told yet.
const UNTOLD: Duration = Duration::from_secs(3);

/// The nodes, as a load balancer knows them.
#[derive(Default)]
pub struct Service {
    nodes: Mutex<BTreeMap<usize, Addresses>>,
    /// Users leave once they have heard this record in each lane. 0: not yet.
    last: AtomicU64,
}

#[derive(Clone, Copy)]
pub struct Addresses {
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

pub struct User {
    pub name: String,
    pub roles: Vec<String>,
    number: usize,
    /// After so many messages his client goes to another node. `None`: it is an EventSource, which
    /// stays until its stream ends, and waits for as long as the last `retry:` said.
    messages_a_stream: Option<usize>,
    /// The latest of the numbered records, by lane.
    heard: [AtomicU64; LANES],
    streams: AtomicUsize,
    ended: AtomicUsize,
    beats: AtomicUsize,
    returns: Mutex<Vec<Return>>,
    /// From an earlier visit.
    cursor: Mutex<Option<String>>,
}

/// A time that a user was away: from the end of a stream until CONNECTED of his next one.
#[derive(Clone, Copy, Debug)]
pub struct Return {
    pub left: Instant,
    pub away: Duration,
    /// Tries that brought no stream.
    pub refused: usize,
}

/// Where a client is between two streams.
struct Wait {
    /// `None`: it was never here.
    left: Option<Instant>,
    retry: Duration,
    refused: usize,
}

/// What a user got, in this order.
#[derive(Default)]
pub struct Got {
    pub messages: Vec<Message>,
    pub gaps: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub broadcast: u64,
    pub content: String,
}

impl Service {
    pub fn list(&self, node: usize, addresses: Addresses) {
        lock(&self.nodes).insert(node, addresses);
    }

    pub fn take_off(&self, node: usize) {
        lock(&self.nodes).remove(&node);
    }

    /// Each in its turn, whether it runs or not.
    pub fn node(&self, turn: usize) -> Addresses {
        let nodes = lock(&self.nodes);
        *nodes.values().nth(turn % nodes.len()).expect("one of them")
    }

    pub fn end_with(&self, record: u64) {
        self.last.store(record, Ordering::Relaxed);
    }
}

impl User {
    pub fn new(
        number: usize,
        name: String,
        roles: Vec<String>,
        messages_a_stream: Option<usize>,
    ) -> Self {
        Self {
            name,
            roles,
            number,
            messages_a_stream,
            heard: Default::default(),
            streams: AtomicUsize::default(),
            ended: AtomicUsize::default(),
            beats: AtomicUsize::default(),
            returns: Mutex::default(),
            cursor: Mutex::default(),
        }
    }

    /// Whether this record, or a later one, has come in each lane.
    pub fn has_heard(&self, record: u64) -> bool {
        self.heard.iter().all(|heard| heard.load(Ordering::Relaxed) >= record)
    }

    /// Streams that were opened so far.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Those of them that a node ended.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Heartbeats that came so far.
    pub fn beats(&self) -> usize {
        self.beats.load(Ordering::Relaxed)
    }

    /// Whether his client is an EventSource.
    pub fn obeys(&self) -> bool {
        self.messages_a_stream.is_none()
    }

    /// How often he was away so far, and for how long.
    pub fn returns(&self) -> Vec<Return> {
        lock(&self.returns).clone()
    }

    /// Comes, and goes at once with a cursor.
    pub fn visit(&self, service: &Service) {
        let mut stream = self.open(service.node(self.number).public, None).expect("it is ready");
        *lock(&self.cursor) = stream.connected().1.id;
    }

    /// Comes, without a cursor if it is the first time, and gets all that there is for him.
    pub fn listen(&self, service: &Service) -> Got {
        let mut got = Got::default();
        let mut cursor = lock(&self.cursor).take();
        let mut wait = Wait { left: None, retry: UNTOLD, refused: 0 };
        for turn in self.number.. {
            let mut is_connected = false;
            if let Some(mut stream) = self.open(service.node(turn).public, cursor.as_deref()) {
                is_connected = self.read(&mut stream, service, &mut got, &mut wait);
                cursor = stream.last_id.or(cursor);
            }
            if self.is_done(service) {
                break;
            }
            if is_connected {
                (wait.left, wait.refused) = (Some(Instant::now()), 0);
            } else {
                wait.refused += 1;
            }
            let after = if self.obeys() { wait.retry } else { RECONNECT };
            wait::until_due(Instant::now() + after);
        }
        got
    }

    /// `None` from a node that is not there, or goes.
    fn open(&self, address: SocketAddr, cursor: Option<&str>) -> Option<Stream> {
        let query = format!("userId={}&roles={}", self.name, self.roles.join(","));
        let fields: Vec<(&str, &str)> =
            cursor.iter().map(|cursor| ("last-event-id", *cursor)).collect();
        let connection = Connection::over(TcpStream::connect(address).ok()?);
        let stream = Stream::over(connection, address, &ask(&query, &fields)).ok()?;
        assert_eq!(stream.head.status, 200, "{:?}", stream.head);
        Some(stream)
    }

    /// Until the stream ends, or the user goes elsewhere. Whether he was connected.
    fn read(&self, stream: &mut Stream, service: &Service, got: &mut Got, wait: &mut Wait) -> bool {
        let until = self.messages_a_stream.map_or(usize::MAX, |many| got.messages.len() + many);
        let mut is_connected = false;
        while got.messages.len() < until && !self.is_done(service) {
            match stream.next_item() {
                Item::Event(event) => match event.name.as_str() {
                    "MESSAGE" => got.messages.push(self.take(&event)),
                    "CONNECTED" => {
                        if let Some(left) = wait.left.take() {
                            let (away, refused) = (left.elapsed(), wait.refused);
                            lock(&self.returns).push(Return { left, away, refused });
                        }
                        self.streams.fetch_add(1, Ordering::Relaxed);
                        is_connected = true;
                    }
                    "GAP" => got.gaps += 1,
                    "SERVER_SHUTDOWN" => {}
                    _ => panic!("{event:?}"),
                },
                Item::Comment(_) => drop(self.beats.fetch_add(1, Ordering::Relaxed)),
                Item::Id(_) => {}
                Item::Retry(retry) => wait.retry = Duration::from_millis(retry),
                Item::End(_) => {
                    self.ended.fetch_add(usize::from(is_connected), Ordering::Relaxed);
                    break;
                }
            }
        }
        is_connected
    }

    fn take(&self, event: &Event) -> Message {
        let broadcast = event.data["broadcastId"].as_u64().expect("an id");
        let content = event.content().to_owned();
        if let Some(rest) = content.strip_prefix("flow ") {
            let lane = match &event.data["userId"] {
                Value::Null => rest.split(' ').next().and_then(|lane| lane.parse().ok()),
                _ => Some(OWN),
            };
            let lane: usize = lane.expect("a flow has a lane");
            self.heard[lane].fetch_max(broadcast, Ordering::Relaxed);
        }
        Message { broadcast, content }
    }

    fn is_done(&self, service: &Service) -> bool {
        let last = service.last.load(Ordering::Relaxed);
        last > 0 && self.has_heard(last)
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} after {} streams, {:?}", self.name, self.streams(), self.heard)
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
