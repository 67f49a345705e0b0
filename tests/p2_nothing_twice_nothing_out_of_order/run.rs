//! One run: nodes, of which some are killed and started again, clients, and what is written for
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corecast::ports::Descriptors;
use harness::node::Node;
use harness::wait;
use harness::wrong::Wrong;

use crate::clients::{Client, NODES, Service, Story};
use crate::random::{Random, Seen};
use crate::real::{LONG, PROGRAM, Place, World};
use crate::script::{Reader, Script};
use crate::traffic::{Traffic, role_of};

const CLIENTS: usize = 1_000;
/// Users who have so many tabs; the other clients are a user each.
const USERS_WITH_TABS: usize = 100;
const TABS: usize = 3;
const USERS: usize = CLIENTS - USERS_WITH_TABS * (TABS - 1);
/// One in so many comes later than the others.
const LATECOMERS: usize = 20;
/// Readers that take nothing for so long are closed; that must happen in this run.
const PROGRESS: &str = "limits.write_progress_s=1";
/// On one node the ring holds some seconds only: who comes back there replays from the log.
const SMALL_RING: &str = "limits.ring_frames_max=64";
/// Of a client's thread; one reads into 16 KiB, and JSON is read by recursion.
const STACK_BYTES: usize = 256 * 1024;
/// Of this, most is printed by a broken node.
const NOTES_SHOWN: usize = 30;
/// What must have happened, or the run shows nothing.
const WAYS: [&str; 12] = [
    "first",
    "first, later than others",
    "with the last cursor",
    "with an older cursor",
    "without a cursor",
    "reset in a frame",
    "closed",
    "closed and read to the end",
    "went to another node",
    "stood still",
    "reset where it stood still",
    "ended by the node",
];

/// Of the nodes' counters, by their names and a label.
const COUNTED: [(&str, &str); 4] = [
    ("corecast_replays_total", ""),
    ("corecast_writes_blocked_total", ""),
    ("corecast_stream_closes_total", "reason=\"slow\""),
    ("corecast_requests_put_off_total", ""),
];

pub struct Run {
    nodes: Vec<Node>,
    service: Arc<Service>,
    clients: Vec<JoinHandle<Story>>,
    traffic: Traffic,
    random: Random,
    duration: Duration,
    kills: usize,
    /// What nodes have counted, those that were killed before included.
    counted: [f64; COUNTED.len()],
    /// Ends behind the nodes.
    _world: World,
}

impl Run {
    /// Nodes, clients who are connected, and what is written for them for so long.
    pub fn start(duration: Duration) -> Self {
        // Each client is a socket here.
        let _ = Descriptors::take_all();
        let began = Instant::now();
        let world = World::start(3, 3);
        println!("the clusters run after {:?}", began.elapsed());
        let place = Place::new(&world.kafka, &world.cassandra);
        let seed = u64::from(std::process::id());
        println!("the clients' seed is {seed}");
        let mut random = Random::new(seed);
        let mut nodes: Vec<Node> = Vec::new();
        for node in 0..NODES {
            let mut sets = place.sets();
            sets.extend(["log.replication=3", "store.replication=3", PROGRESS]);
            sets.extend((node == 0).then_some(SMALL_RING));
            nodes.push(Node::launch(PROGRAM, &sets));
        }
        nodes.iter().for_each(wait_until_ready);
        println!("the nodes are ready after {:?}", began.elapsed());
        let service = Arc::new(Service {
            nodes: std::array::from_fn(|node| nodes[node].public),
            script: Script::default(),
            began: Instant::now(),
            is_over: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            here: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        });
        let later = |number: usize| number % LATECOMERS == LATECOMERS - 1;
        let clients = (0..CLIENTS).map(|number| {
            let with_tabs = USERS_WITH_TABS * TABS;
            let is_alone = number >= with_tabs;
            let user = if is_alone {
                number - with_tabs + USERS_WITH_TABS
            } else {
                number % USERS_WITH_TABS
            };
            let reader = Reader { user, role: role_of(user) };
            let mut client = Client::new(number, reader, is_alone, random.fork());
            if is_alone && later(number) {
                let time = u64::try_from(duration.as_millis()).expect("not long");
                client.comes_after(random.millis(time));
            }
            let service = service.clone();
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            thread.spawn(move || client.live(&service)).expect("a thread")
        });
        let clients: Vec<_> = clients.collect();
        let first =
            (0..CLIENTS).filter(|number| *number < USERS_WITH_TABS * TABS || !later(*number));
        let first = first.count();
        wait::until_true("all are here", LONG, || service.here.load(Ordering::Relaxed) == first);
        println!("{first} clients are here after {:?}", service.began.elapsed());
        let traffic = Traffic::start(world.kafka.java_producer(), place, service.clone(), USERS);
        Self {
            nodes,
            service,
            clients,
            traffic,
            random,
            duration,
            kills: 0,
            counted: Default::default(),
            _world: world,
        }
    }

    /// `kill -9`, again and again. Every other time the next one, perhaps the same, is killed
    /// before this one is ready again.
    pub fn kill_nodes(&mut self) {
        let end = Instant::now() + self.duration;
        while Instant::now() < end {
            self.pass(500, 2_500);
            let node = self.random.below(NODES);
            self.count(node);
            assert_whole(&mut self.nodes[node]);
            self.nodes[node].process.kill();
            self.kills += 1;
            self.pass(0, 2_000);
            self.nodes[node].launch_again();
            if self.kills.is_multiple_of(2) {
                self.nodes.iter().for_each(wait_until_ready);
            }
            self.check();
        }
        self.nodes.iter().for_each(wait_until_ready);
    }

    fn count(&mut self, node: usize) {
        let text = self.nodes[node].get("/metrics").text();
        for ((name, label), counted) in COUNTED.iter().zip(&mut self.counted) {
            let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
            let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
            *counted += values.sum::<f64>();
        }
    }

    fn pass(&mut self, at_least: u64, more: u64) {
        let time = Duration::from_millis(at_least) + self.random.millis(more);
        wait::until_due(Instant::now() + time);
    }

    /// Ends at once what would otherwise wait for a thread that has panicked.
    fn check(&self) {
        // In this order, as some may end meanwhile.
        let ended = self.clients.iter().filter(|client| client.is_finished()).count();
        let done = self.service.done.load(Ordering::Relaxed);
        assert!(ended <= done, "a client is gone, see above");
        self.traffic.check();
    }

    /// Ends the traffic, waits until everybody has all, and looks at what everybody got.
    pub fn end(mut self) {
        self.traffic.end();
        self.service.is_over.store(true, Ordering::Relaxed);
        let began = Instant::now();
        while self.service.done.load(Ordering::Relaxed) < CLIENTS && began.elapsed() < LONG {
            self.check();
            wait::until_due(Instant::now() + Duration::from_millis(50));
        }
        println!("everybody has all, or never will, after {:?}", began.elapsed());
        self.service.is_given_up.store(true, Ordering::Relaxed);
        (0..NODES).for_each(|node| self.count(node));
        let (mut seen, mut wrong, mut notes) = (Seen::default(), Wrong::default(), Vec::new());
        let (mut messages, mut repeated) = (0, 0);
        for client in self.clients {
            let story = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            seen.add(&story.seen);
            wrong += story.tally.wrong();
            notes.extend(story.notes);
            messages += story.tally.messages;
            repeated += story.tally.repeated;
        }
        println!(
            "injected: {} kills of nodes; {} records, {messages} messages",
            self.kills,
            self.service.script.records()
        );
        println!("{seen:?}");
        println!("{repeated} messages came again to clients without a cursor");
        println!("the nodes counted {:?} of {COUNTED:?}", self.counted);
        println!("{wrong:?}");
        notes.iter().take(NOTES_SHOWN).for_each(|note| println!("{note}"));
        assert_eq!(wrong, Wrong::default(), "see above");
        for way in WAYS {
            assert!(seen.of(way) > 0, "nobody: {way}");
        }
        assert!(self.counted.iter().all(|counted| *counted > 0.0), "see above");
        self.nodes.iter_mut().for_each(assert_whole);
    }
}

fn wait_until_ready(node: &Node) {
    node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
}

fn assert_whole(node: &mut Node) {
    assert!(node.process.is_running(), "a node fell");
    assert!(!node.process.text().contains("panicked"), "{}", node.process.text());
}
