//! One run: nodes, users of whom some are here and some come only at the end, and traffic. Faults
//! are injected while it flows; the end says what each user missed, got twice, or got wrongly.

mod faults;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::cable::Cables;
use harness::kafka::Kafka;
use harness::node::Node;
use harness::wait;
use harness::wrong::Wrong;

use crate::ledger::Ledger;
use crate::real::{LONG, PROGRAM, Place, owned, wait_until_missing, wait_until_owned};
use crate::traffic::{Made, Producer, Traffic};
use crate::users::{Addresses, Got, Return, Service, User, lock};
use crate::world::World;

/// Users who are here all the time; who were here once, and come back at the end with the cursor
/// of then; who come for the first time at the end, without one. A run may have more of the first,
/// whose clients are EventSources.
const ONLINE: usize = 6;
const AWAY: usize = 1;
const OFFLINE: usize = 4;
/// Of a user's thread; one reads into 16 KiB, and JSON is read by recursion.
const STACK_BYTES: usize = 256 * 1024;
/// Between two looks at whether records flow.
const LOOK: Duration = Duration::from_secs(1);
/// From a fault, or its end, until readiness says so: time-outs, and the longest wait between two
/// tries, and what the clusters themselves take to find together.
const READINESS: Duration = Duration::from_secs(40);

pub struct Run {
    pub nodes: Vec<Node>,
    pub place: Place,
    sets: Vec<String>,
    service: Arc<Service>,
    /// Those who are here first.
    users: Vec<Arc<User>>,
    /// How many those are.
    here: usize,
    listening: Vec<JoinHandle<Got>>,
    traffic: Traffic,
    injected: Vec<String>,
}

impl Run {
    /// So many nodes, users who are connected, and what flows to them.
    pub fn start(world: &World, nodes: usize, sets: &[&str]) -> Self {
        Self::start_with(world, nodes, 0, sets)
    }

    /// The same with so many EventSources besides.
    pub fn start_with(world: &World, nodes: usize, sources: usize, sets: &[&str]) -> Self {
        Self::start_by(launch, world, nodes, sources, sets)
    }

    /// As the first, with nodes behind cables.
    pub fn start_behind_cables(world: &World, nodes: usize, sets: &[&str]) -> Self {
        Self::start_by(launch_behind_cables, world, nodes, 0, sets)
    }

    fn start_by(
        launch: fn(&[String]) -> Node,
        world: &World,
        nodes: usize,
        sources: usize,
        sets: &[&str],
    ) -> Self {
        static DRAWN: AtomicUsize = AtomicUsize::new(0);
        let run = DRAWN.fetch_add(1, Ordering::Relaxed);
        let place = world.place();
        let copies = ["log.replication=3", "store.replication=3"];
        let sets: Vec<String> =
            [&place.sets(), &copies[..], sets].concat().into_iter().map(str::to_owned).collect();
        let role = format!("role-{run}");
        let here = ONLINE + sources;
        let user = |number: usize| {
            // Who goes on too often in a backlog has the node read it as often.
            let (kind, messages_a_stream) = match number {
                ..ONLINE => ("online", Some(60)),
                _ if number < here => ("source", None),
                _ if number < here + AWAY => ("away", Some(700)),
                _ => ("offline", Some(700)),
            };
            let is_even = number.is_multiple_of(2);
            let roles = vec![if is_even { role.clone() } else { "guest".to_owned() }];
            let name = format!("{kind}-{run}-{number}");
            Arc::new(User::new(number, name, roles, messages_a_stream))
        };
        let users: Vec<_> = (0..here + AWAY + OFFLINE).map(user).collect();
        let producer = Producer::new(world.java.clone(), place.clone(), &users, &role);
        let service = Arc::<Service>::default();
        let mut launched = Vec::new();
        for number in 0..nodes {
            launched.push(launch(&sets));
            service.list(number, addresses(&launched[number]));
        }
        launched.iter().for_each(wait_until_ready);
        users[here..here + AWAY].iter().for_each(|user| user.visit(&service));
        let listening = users[..here].iter().map(|user| listen(user, &service)).collect();
        wait::until_true("all are here", LONG, || {
            users[..here].iter().all(|user| user.streams() > 0)
        });
        let traffic = Traffic::start(producer, service.clone());
        let run = Self {
            nodes: launched,
            place,
            sets,
            service,
            users,
            here,
            listening,
            traffic,
            injected: Vec::new(),
        };
        run.share();
        run.flow_goes_on("all are there");
        run
    }

    /// When EventSources were away, and for how long.
    pub fn returns(&self) -> Vec<Return> {
        let sources = self.users.iter().filter(|user| user.obeys());
        sources.flat_map(|user| user.returns()).collect()
    }

    /// Waits until all nodes have their share.
    pub fn share(&self) {
        wait_until_owned(&self.nodes.iter().collect::<Vec<_>>(), "all nodes own partitions");
    }

    /// Waits until the node writes rows.
    pub fn writes(&self, node: usize) {
        let rows = || self.nodes[node].metric("corecast_rows_total").unwrap_or(0.0);
        let before = rows();
        wait::until_true("an owner writes rows", LONG, || rows() > before);
    }

    /// Waits until the node owns something.
    pub fn owns(&self, node: usize) {
        wait::until_true("it owns partitions", LONG, || owned(&self.nodes[node]) > 0.0);
    }

    /// Waits until everybody who is here gets, in each of his lanes, what is sent from now on; how
    /// long that took.
    pub fn flow_goes_on(&self, what: &str) -> Duration {
        let took = self.flow(what);
        let lag = lag(&self.nodes);
        println!("{what}: records flow after {took:?}, {lag} are still to be kept");
        took
    }

    /// Waits until then; meanwhile records flow.
    pub fn flows_until(&self, due: Instant, what: &str) {
        let mut longest = Duration::ZERO;
        while Instant::now() < due {
            longest = longest.max(self.flow(what));
            wait::until_due(Instant::now() + LOOK);
        }
        println!("{what}: records flow, the slowest look took {longest:?}");
    }

    fn flow(&self, what: &str) -> Duration {
        let began = Instant::now();
        let mark = self.traffic.producer.mark();
        wait::until_true(&format!("records flow: {what}"), LONG, || {
            self.check();
            self.users[..self.here].iter().all(|user| user.has_heard(mark))
        });
        began.elapsed()
    }

    /// Waits until more creates are acknowledged.
    pub fn creates_go_on(&self, what: &str) {
        let began = Instant::now();
        let until = self.traffic.made().accepted.len() + 10;
        wait::until_true(&format!("broadcasts are created: {what}"), LONG, || {
            self.check();
            self.traffic.made().accepted.len() >= until
        });
        println!("{what}: creates go on after {:?}", began.elapsed());
    }

    /// Waits until so many creates that are sent from now on are refused because this is away.
    pub fn creates_are_refused(&self, count: usize, away: &str) {
        // One may be under way.
        let from = self.traffic.made().refused.len() + 1;
        let refused = wait::until("creates are refused", LONG, || {
            self.check();
            let refused = self.traffic.made().refused;
            (refused.len() >= from + count).then_some(refused)
        });
        for reason in &refused[from..] {
            assert!(reason.starts_with(&format!("{away} is away")), "{reason}");
        }
    }

    pub fn assert_none_refused(&self) {
        let refused = self.traffic.made().refused;
        assert!(refused.is_empty(), "two of three are enough: {refused:?}");
    }

    /// Whoever is here left his streams by himself.
    pub fn assert_no_stream_ended(&self) {
        for user in &self.users[..self.here] {
            assert_eq!(user.ended(), 0, "{user}");
        }
    }

    /// Waits until every open stream has got more heartbeats; none has ended meanwhile.
    pub fn streams_are_held(&self) {
        let state = |user: &Arc<User>| (user.streams(), user.beats());
        let before: Vec<_> = self.users[..self.here].iter().map(state).collect();
        wait::until_true("streams are held", LONG, || {
            self.check();
            self.users.iter().zip(&before).all(|(user, (_, beats))| user.beats() >= beats + 3)
        });
        for (user, (streams, _)) in self.users.iter().zip(&before) {
            assert_eq!(user.streams(), *streams, "{} came again", user.name);
        }
    }

    /// Waits until readiness of every node names exactly these parts.
    pub fn readiness_misses(&self, parts: &[&str], what: &str) {
        let began = Instant::now();
        self.nodes.iter().for_each(|node| wait_until_missing(node, parts));
        println!("{what}: readiness misses {parts:?} after {:?}", began.elapsed());
        assert!(began.elapsed() < READINESS, "{what}: {:?}", began.elapsed());
    }

    /// Waits for refusals, of which none has the relay look at the outbox again.
    pub fn relay_rests_while_creates_are_refused(&self, count: usize, away: &str) {
        let waits = |node: &Node| node.process.text().matches("the outbox has to wait").count();
        let before: Vec<usize> = self.nodes.iter().map(waits).collect();
        self.creates_are_refused(count, away);
        for (node, before) in self.nodes.iter().zip(before) {
            let looks = waits(node) - before;
            assert!(looks <= 8, "the relay backs off, whatever is refused: {looks} looks");
        }
    }

    /// Nothing is in the dead-letter topics, if there are any.
    pub fn assert_no_dead_letters(&self) {
        for node in &self.nodes {
            assert_eq!(node.metric("corecast_dead_letters_total").unwrap_or(0.0), 0.0);
        }
        for topic in [&self.place.selected, &self.place.group].map(|topic| format!("{topic}-dlt")) {
            assert_eq!(lock(&self.traffic.producer.java).dump(&topic), [], "{topic}");
        }
    }

    /// The most memory that one of the nodes has in RAM.
    pub fn resident_bytes(&self) -> usize {
        self.nodes.iter().map(Node::resident_bytes).max().expect("there are nodes")
    }

    /// Ends at once what would otherwise wait for a thread that has panicked.
    fn check(&self) {
        self.traffic.check();
        assert!(!self.listening.iter().any(JoinHandle::is_finished), "a user is gone, see above");
    }

    /// Ends the traffic; waits until all of it has been kept, as Kafka's own tool sees it; has the
    /// others come, without a cursor; and looks at what everybody got.
    pub fn end(mut self, kafka: &Kafka) {
        let (producer, made) = self.traffic.end();
        wait::until_true("what is owed is published", LONG, || {
            let java = &mut lock(&producer.java);
            made.owed.is_empty() || Ledger::read(java, &self.place).holds_owed(&made.owed)
        });
        let mark = producer.mark();
        producer.settle();
        let (lag, began) = (lag(&self.nodes), Instant::now());
        self.place.wait_for_no_lag(kafka, self.nodes.len());
        println!("the last {lag} records are kept after {:?}", began.elapsed());
        self.listening
            .extend(self.users[self.here..].iter().map(|user| listen(user, &self.service)));
        let began = Instant::now();
        wait::until_true("everybody has all", LONG * 2, || {
            let lacking = self.users.iter().filter(|user| !user.has_heard(mark));
            let lacking: Vec<String> = lacking.map(|user| user.to_string()).collect();
            assert!(began.elapsed() < LONG, "{mark} has not reached {lacking:?}");
            lacking.is_empty()
        });
        assert_listed(&self.nodes[0], &made);
        // What came twice, or wrongly, has come before this.
        self.service.end_with(producer.mark());
        let mut accepted = producer.settle();
        accepted.extend(made.accepted.iter().cloned());
        let listening = self.listening.into_iter();
        let got: Vec<Got> = listening
            .map(|user| user.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        let ledger = Ledger::read(&mut lock(&producer.java), &self.place);
        ledger.assert_holds(&accepted, &made, &producer.role);
        let judged = self.users.iter().zip(&got);
        let judged: Vec<(String, Wrong)> = judged
            .map(|(user, got)| {
                let wrong = ledger.judge(user, got);
                (format!("{} {}: {wrong}", user.name, got.messages.len()), wrong)
            })
            .collect();
        let is_told = |number: usize, wrong: &Wrong| {
            !self.users[number].obeys() || *wrong != Wrong::default()
        };
        let lines =
            judged.iter().enumerate().filter(|(number, (_, wrong))| is_told(*number, wrong));
        let lines: Vec<&str> = lines.map(|(_, (line, _))| line.as_str()).collect();
        let messages: usize = got.iter().map(|got| got.messages.len()).sum();
        println!(
            "{} events, {} accepted; {} creates refused, {} unanswered, the slowest took {:?}",
            ledger.events(),
            accepted.len(),
            made.refused.len(),
            made.unanswered,
            made.slowest
        );
        println!("injected: {}", self.injected.join(", "));
        println!("each user's messages, missed twice strange late gaps: {}", lines.join(", "));
        println!("{} users got {messages} messages", self.users.len());
        assert!(judged.iter().all(|(_, wrong)| *wrong == Wrong::default()), "see above");
        for node in &mut self.nodes {
            assert!(node.process.is_running(), "a node fell");
            assert!(!node.process.text().contains("panicked"), "{}", node.process.text());
        }
    }
}

fn launch(sets: &[String]) -> Node {
    Node::launch(PROGRAM, &sets.iter().map(String::as_str).collect::<Vec<_>>())
}

fn launch_behind_cables(sets: &[String]) -> Node {
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    Node::launch_behind(Cables::new(PROGRAM), &sets)
}

/// Records that are not durable yet, as these nodes see it.
fn lag(nodes: &[Node]) -> f64 {
    nodes.iter().map(|node| node.metric("corecast_owned_lag_records").unwrap_or(0.0)).sum()
}

fn wait_until_ready(node: &Node) {
    node.process.wait_for_line(LONG, |line| (line == "ready").then_some(()));
}

fn addresses(node: &Node) -> Addresses {
    Addresses { public: node.public, admin: node.admin }
}

fn listen(user: &Arc<User>, service: &Arc<Service>) -> JoinHandle<Got> {
    let (user, service) = (user.clone(), service.clone());
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    thread.spawn(move || user.listen(&service)).expect("a thread")
}

/// Broadcasts that were acknowledged exist, and those that are owed.
fn assert_listed(node: &Node, made: &Made) {
    let mut missing: BTreeSet<u64> = made.accepted.iter().map(|one| one.broadcast).collect();
    let mut owed: BTreeSet<&str> = made.owed.iter().map(String::as_str).collect();
    let mut page = Some("/api/admin/broadcasts?filter=all&limit=200".to_owned());
    while let Some(target) = page {
        // Databases that have just come back may be slow.
        let answer = wait::until("a page of the list", LONG, || {
            Some(node.get(&target)).filter(|answer| answer.status != 503)
        });
        for row in answer.expect_json().as_array().expect("an array") {
            missing.remove(&row["id"].as_u64().expect("an id"));
            owed.remove(row["content"].as_str().expect("a content"));
        }
        let next = answer.field("link").and_then(|link| link.strip_prefix('<')?.split_once('>'));
        page = next.map(|(target, _)| target.to_owned());
    }
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    assert!(owed.is_empty(), "owed and lost: {owed:?}");
}
