//! What the streams of one shard feel while nearly all events are in a partition of the other one.
//!
//! A node with two shards. Load: broadcasts to users of one partition, all of whose streams are on
//! the first shard, as many of them as keep that shard busy. Probes: broadcasts to a few users on
//! the second shard, one for each of the load's, so that 95 events in 100 are the load's. The time
//! of a probe is from when it is due until a stream has it.
//!
//! Three in turn: probes alone; with a load that is created and decoded, but whose users have no
//! streams (what creating costs both cores); with the load whose users have them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corecast::base::{LogIdentity, LogShape, Sharding};
use corecast::shard::pin;
use harness::sse::{Ask, Stream};
use harness::wait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::figures::{Figures, Goal, Spread, percentile};
use super::peers::{self, Node, PATIENCE, Peer};
use super::{CLIENT_CORE, CONTENT_BYTES, audience};

/// Of the node by default.
const SHAPE: LogShape =
    LogShape { identity: LogIdentity([0; 3]), selected_partitions: 10, group_partitions: 10 };
/// The partition of the load, which the first shard decodes.
const HOT_PARTITION: u16 = 0;
const HOT_USERS: usize = 950;
/// Streams of each of them: what fills the shard is writing to them, not creating.
const HOT_STREAMS: usize = 8;
/// Events of one of the load's broadcasts, and of one probe.
const HOT_TARGETS: usize = 95;
const COOL_TARGETS: usize = 5;
const BUSY: f64 = 0.8;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(4);
/// The load that is tried first, for how long, and how often what keeps the shard busy is sought.
const TRIED_PACE: Duration = Duration::from_millis(30);
const TRIED: Duration = Duration::from_secs(2);
const TRIES: usize = 3;
/// With more of them the clients' core is full before the shard's is, and everything waits.
const CREATES_A_SECOND_MAX: f64 = 75.0;
/// Threads that create; each has one request on its way.
const CREATORS: usize = 4;

/// One of the three.
struct Phase {
    /// Microseconds.
    times: Vec<f64>,
    /// Share of the time for which the first shard's thread ran, and the second's.
    busy: [f64; 2],
}

struct Bench {
    node: Node,
    streams: Vec<Stream>,
    cool: Vec<String>,
    /// Number of the next probe.
    next: usize,
    pace: Duration,
}

pub fn measure(figures: &mut Figures) {
    let users = |is: fn(u16, u16) -> bool, first: u32, count: usize| -> Vec<u32> {
        let sharding = Sharding::new(2).expect("two");
        let fits = move |number: &u32| {
            let user = audience::user(*number);
            is(SHAPE.partition_of_user(&user), sharding.of_user(&user))
        };
        (first..).filter(fits).take(count).collect()
    };
    let is_hot = |partition, shard| partition == HOT_PARTITION && shard == 0;
    let hot = users(is_hot, 0, HOT_USERS);
    let absent: Vec<String> =
        users(is_hot, 1_000_000, HOT_USERS).into_iter().map(audience::user).collect();
    let cool: Vec<String> =
        users(|_, shard| shard == 1, 0, COOL_TARGETS).into_iter().map(audience::user).collect();

    let node = Node::start("2", "auto");
    println!("skew: {ROUNDS} rounds of three times {} s on {}", ROUND.as_secs(), node.runtime());
    let mut clients = Peer::start(peers::AUDIENCE);
    for _ in 0..HOT_STREAMS {
        for number in &hot {
            clients.tell(format!("open {} {number} 1\n", node.public).as_bytes());
            clients.answer("opened");
        }
    }
    clients.tell(b"swallow\n");
    pin(&[CLIENT_CORE]);
    let hot: Vec<String> = hot.into_iter().map(audience::user).collect();
    let public = node.public.parse().expect("an address");
    let stream = |user: &String| {
        let query = format!("userId={user}");
        let ask = Ask { path: "/api/user/sse/connect", query: &query, fields: &[] };
        Stream::open(public, &ask)
    };
    let streams = cool.iter().map(stream).collect();
    let mut bench = Bench { node, streams, cool, next: 0, pace: TRIED_PACE };

    // The more of them, the less each costs, so what was found is tried.
    let mut rate = 1.0 / TRIED_PACE.as_secs_f64();
    for _ in 0..TRIES {
        let tried = bench.run(Some(&hot), TRIED);
        rate = (rate * BUSY / tried.busy[0]).min(CREATES_A_SECOND_MAX);
        bench.pace = Duration::from_secs_f64(1.0 / rate);
    }
    let mut rounds: Vec<[Phase; 3]> = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(
            [None, Some(&absent), Some(&hot)].map(|load| bench.run(load.map(Vec::as_slice), ROUND)),
        );
    }

    let of = |phase: usize, share: f64| -> Vec<f64> {
        rounds.iter().map(|round| percentile(&round[phase].times, share)).collect()
    };
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        for (baseline, phase) in [("no load", 0), ("nobody there", 1)] {
            let what = format!("other shard under skew, {name}");
            figures.add((what, "us"), &of(2, share), (baseline, &of(phase, share)), Goal::None);
        }
    }
    let busy = |phase: usize, shard: usize| {
        let shares: Vec<f64> =
            rounds.iter().map(|round| round[phase].busy[shard] * 100.0).collect();
        Spread::of(&shares).median
    };
    let events = rate * (HOT_TARGETS + COOL_TARGETS) as f64;
    figures.note(format!(
        "skew: {events:.0} targeted events a second, {HOT_TARGETS} % in one partition, whose users \
         have {HOT_STREAMS} streams each: {:.0} deliveries a second; shard of that partition {:.0} \
         % of a core, the other {:.0} %; with the same events to users without streams {:.0} % \
         and {:.0} %, with the probes alone {:.0} % and {:.0} %; {} probe deliveries a phase",
        rate * (HOT_TARGETS * HOT_STREAMS + COOL_TARGETS) as f64,
        busy(2, 0),
        busy(2, 1),
        busy(1, 0),
        busy(1, 1),
        busy(0, 0),
        busy(0, 1),
        rounds[0][2].times.len(),
    ));
    // Before its node.
    drop(clients);
}

impl Bench {
    fn run(&mut self, load: Option<&[String]>, length: Duration) -> Phase {
        let count = (length.as_secs_f64() / self.pace.as_secs_f64()).round() as usize;
        let first = self.next;
        self.next += count;
        // The load is half a step behind the probes.
        let begin = Instant::now() + Duration::from_millis(200);
        let begin_load = begin + self.pace / 2;
        let pace = self.pace;
        let admin = self.node.admin;
        let cool = self.cool.clone();
        let probes = create_on_time(admin, begin, pace, count, move |number| {
            (format!("probe-{:08}", first + number), cool.clone())
        });
        let load = load.map(|users| {
            let users = users.to_vec();
            create_on_time(admin, begin_load, pace, count, move |number| {
                let at = number * HOT_TARGETS % users.len();
                let targets = users.iter().cycle().skip(at).take(HOT_TARGETS);
                (format!("{number:>0$}", CONTENT_BYTES), targets.cloned().collect())
            })
        });
        let shards = ["shard-0", "shard-1"];
        let process = self.node.id();
        // Not while they sleep, of which there is little: a tick of the kernel more or less.
        let cpu = || shards.map(|name| peers::cpu_of_running(process, name));
        let (before, since) = (cpu(), Instant::now());
        let seen = read_streams(&mut self.streams, first..first + count);
        let (after, wall) = (cpu(), since.elapsed().as_nanos() as f64);
        for thread in probes.into_iter().chain(load.into_iter().flatten()) {
            thread.join().expect("all broadcasts are created");
        }
        let times = seen.into_iter().map(|(number, at)| {
            let due = begin + self.pace * (number - first) as u32;
            at.saturating_duration_since(due).as_secs_f64() * 1e6
        });
        Phase { times: times.collect(), busy: [0, 1].map(|at| (after[at] - before[at]) / wall) }
    }
}

/// Creates so many broadcasts, each when it is due.
fn create_on_time(
    admin: SocketAddr,
    begin: Instant,
    pace: Duration,
    count: usize,
    draft: impl Fn(usize) -> (String, Vec<String>) + Send + Sync + 'static,
) -> Vec<JoinHandle<()>> {
    let draft = Arc::new(draft);
    let thread = |creator: usize| {
        let draft = draft.clone();
        std::thread::spawn(move || {
            for number in (creator..count).step_by(CREATORS) {
                let (content, targets) = draft(number);
                let draft = serde_json::json!({
                    "content": content, "targetType": "SELECTED", "targetIds": targets,
                    "senderName": "Ops",
                });
                wait::until_due(begin + pace * number as u32);
                peers::create(admin, &draft);
            }
        })
    };
    (0..CREATORS).map(thread).collect()
}

/// Reads all streams until each has every probe; returns each probe's number, and when it came.
fn read_streams(streams: &mut [Stream], numbers: std::ops::Range<usize>) -> Vec<(usize, Instant)> {
    const MARK: &[u8] = b"\"content\":\"probe-";
    let all = numbers.len() * streams.len();
    let mut seen = Vec::with_capacity(all);
    let mut rests = vec![Vec::new(); streams.len()];
    let mut buffer = vec![0; 64 * 1024];
    while seen.len() < all {
        for ready in wait_for_any(streams) {
            let socket = streams[ready].connection().socket();
            let read = rustix::io::read(socket, &mut buffer[..]).expect("the stream goes on");
            let at = Instant::now();
            assert_ne!(read, 0, "the stream ended");
            let rest: &mut Vec<u8> = &mut rests[ready];
            rest.extend_from_slice(&buffer[..read]);
            while let Some(end) = rest.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = rest.drain(..end + 2).collect();
                // What is no probe is CONNECTED or a heartbeat.
                let mark = block.windows(MARK.len()).position(|part| part == MARK);
                let Some(digits) = mark.map(|mark| &block[mark + MARK.len()..][..8]) else {
                    continue;
                };
                let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
                let number = number.expect("the number of a probe");
                assert!(numbers.contains(&number), "no probe twice");
                seen.push((number, at));
            }
        }
    }
    seen
}

/// Numbers of the streams on which there is something to read.
fn wait_for_any(streams: &mut [Stream]) -> Vec<usize> {
    let sockets = streams.iter_mut().map(|stream| stream.connection().socket());
    let mut waits: Vec<PollFd<'_>> =
        sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(PATIENCE).expect("it fits");
    let ready = poll(&mut waits, Some(&timeout)).expect("sockets can be waited for");
    assert_ne!(ready, 0, "nothing has come for {PATIENCE:?}");
    (0..waits.len()).filter(|number| !waits[*number].revents().is_empty()).collect()
}
