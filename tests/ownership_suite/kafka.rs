//! Nodes that share partitions through Kafka's consumer groups: they come, leave, crash, freeze.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corecast::base::{Partition, Topic};
use corecast::ingest::kafka::{KafkaGroups, KafkaOptions, KafkaOwnership};
use corecast::ports::{Commit, LogError, Owned, Ownership, Standing};
use harness::kafka::{Kafka, Version, are_to_be_had, shared};

use crate::nodes::{Node, count, share_all};
use crate::{LONG, LOOK, PARTITIONS, Site, marks, run, suite};

/// Less than a session (6 s): what moves sooner was not waited out.
const SOON: Duration = Duration::from_secs(4);
/// A session, and what a rebalance takes.
const SESSION: Duration = Duration::from_secs(10);

/// Topics and groups of a test of its own.
pub struct Groups {
    pub options: KafkaOptions,
    pub groups: KafkaGroups,
}

impl Groups {
    pub fn at(kafka: &Kafka) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let options = KafkaOptions {
            brokers: kafka.addresses(),
            topic_selected: format!("selected-{number}"),
            topic_group: format!("group-{number}"),
            topic_control: format!("control-{number}"),
            partitions: PARTITIONS,
            replication: 1,
            retention: Duration::from_secs(3_600),
            dead_retention: Duration::from_secs(7_200),
            fetch_pace: Duration::ZERO,
            client_id: "corecast-test".to_owned(),
            tls: None,
            sasl: None,
        };
        let groups = KafkaGroups {
            selected: format!("owners-selected-{number}"),
            group: format!("owners-group-{number}"),
            dead_letters: format!("owners-dead-{number}"),
        };
        Self { options, groups }
    }

    pub fn node(&self) -> Node {
        Node::start(self.ownership(true))
    }
}

impl Site for Groups {
    fn ownership(&self, takes_part: bool) -> Arc<dyn Ownership> {
        let (options, groups) = (self.options.clone(), self.groups.clone());
        let ownership = KafkaOwnership::new(options, groups, takes_part);
        Arc::new(ownership.expect("no files"))
    }
}

#[test]
fn the_ownership_in_kafka_does_what_one_must() {
    if are_to_be_had() {
        run(suite::check(|| Groups::at(shared())));
    }
}

#[test]
fn the_ownership_in_an_older_kafka_does_what_one_must() {
    if are_to_be_had() {
        let kafka = Kafka::start(Version::V3_9, 1);
        run(suite::check(|| Groups::at(&kafka)));
        run(come_and_leave(&kafka));
        run(leave_hastily(&kafka));
        run(crash(&kafka));
    }
}

#[test]
fn nodes_that_come_and_leave_move_no_more_than_they_must() {
    if are_to_be_had() {
        run(come_and_leave(shared()));
    }
}

/// What of it a node still has, with the same tenure.
fn kept(before: &Owned, after: &Owned) -> usize {
    before.iter().filter(|(partition, tenure)| after.get(*partition) == Some(*tenure)).count()
}

/// Partitions of both topics and of their dead letters together.
const ALL: usize = 2 * PARTITIONS as usize + 2;

async fn come_and_leave(kafka: &Kafka) {
    let groups = Groups::at(kafka);
    let first = groups.node();
    let alone = first.owns_all().await;
    first.commit_all(1).await;
    let began = Instant::now();
    let second = groups.node();
    let two = share_all(&[&first, &second]).await;
    println!("shared by two after {:?}", began.elapsed());
    // The first one keeps the larger shares; nothing else of it changes.
    assert_eq!(kept(&alone, &two[0]), two[0].len());
    assert_eq!(Topic::ALL.map(|topic| count(&two[0], topic)), [3, 3]);
    second.commit_all(2).await;
    let began = Instant::now();
    let third = groups.node();
    let three = share_all(&[&first, &second, &third]).await;
    println!("shared by three after {:?}", began.elapsed());
    for (before, after) in two.iter().zip(&three) {
        assert_eq!(kept(before, after), after.len(), "{before:?} {after:?}");
    }
    assert_eq!(three[2].len(), Topic::ALL.len(), "one of each topic");
    // Nothing was lost on the way.
    for (partition, next) in third.checkpoints().await {
        assert_eq!(next, if two[0].contains_key(&partition) { 1 } else { 2 });
    }
    third.commit_all(3).await;

    let began = Instant::now();
    second.ownership.leave().await;
    let left = share_all(&[&first, &third]).await;
    println!("left after {:?}", began.elapsed());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(kept(&three[0], &left[0]), three[0].len());
    assert_eq!(kept(&three[2], &left[1]), three[2].len());
    let began = Instant::now();
    first.ownership.leave().await;
    let last = third.owns_all().await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(kept(&left[1], &last), left[1].len());
    assert_eq!(third.checkpoints().await.len(), ALL);
}

#[test]
fn a_node_that_leaves_while_it_joins_holds_up_nobody() {
    if !are_to_be_had() {
        return;
    }
    run(leave_hastily(shared()));
}

async fn leave_hastily(kafka: &Kafka) {
    let groups = Groups::at(kafka);
    let node = groups.node();
    node.owns_all().await;
    // From before it has connected to after it has joined.
    for millis in [0, 1, 2, 4, 6, 8, 12, 20, 100] {
        let hasty = groups.node();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        hasty.ownership.leave().await;
        drop(hasty);
        let began = Instant::now();
        let next = groups.node();
        share_all(&[&node, &next]).await;
        assert!(began.elapsed() < SOON, "{millis} ms: {:?}", began.elapsed());
        let began = Instant::now();
        next.ownership.leave().await;
        node.owns_all().await;
        assert!(began.elapsed() < SOON, "{millis} ms: {:?}", began.elapsed());
    }
}

#[test]
fn what_a_crashed_node_had_is_owned_again_after_its_session() {
    if are_to_be_had() {
        run(crash(shared()));
    }
}

async fn crash(kafka: &Kafka) {
    let groups = Groups::at(kafka);
    let (first, second) = (groups.node(), groups.node());
    let before = share_all(&[&first, &second]).await;
    first.commit_all(5).await;
    drop(first);
    let began = Instant::now();
    let after = second.owns_all().await;
    println!("owned again after {:?}", began.elapsed());
    assert!(began.elapsed() < SESSION, "{:?}", began.elapsed());
    assert_eq!(kept(&before[1], &after), before[1].len());
    let found = second.checkpoints().await;
    assert!(before[0].keys().all(|partition| found[partition] == 5), "{found:?}");
}

#[test]
fn a_frozen_node_commits_nothing_once_others_own_what_it_had() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let groups = Groups::at(shared());
        let (frozen, other) = (groups.node(), groups.node());
        let before = share_all(&[&frozen, &other]).await;
        frozen.commit_all(5).await;
        frozen.freeze();
        let began = Instant::now();
        other.owns_all().await;
        println!("owned by the other after {:?}", began.elapsed());
        assert!(began.elapsed() < SESSION, "{:?}", began.elapsed());
        other.commit_all(7).await;
        // It does not know yet, and is told.
        assert_eq!(frozen.owned().await, before[0]);
        let late = marks(&before[0], 6);
        assert_eq!(frozen.commit(&late).await, vec![Commit::Lost; late.len()]);
        assert_eq!(frozen.owned().await, Owned::new());
        let found = other.checkpoints().await;
        assert!(found.values().all(|next| *next == 7), "{found:?}");
        // It comes back as somebody new.
        frozen.thaw();
        let after = share_all(&[&frozen, &other]).await;
        assert_eq!(kept(&before[0], &after[0]), 0, "no tenure goes on");
        assert_eq!(frozen.commit(&late).await, vec![Commit::Lost; late.len()]);
        frozen.commit_all(8).await;
    });
}

/// Commits everything that a node owns, again and again.
struct Writer {
    node: Node,
    is_over: AtomicBool,
    rounds: AtomicUsize,
}

/// What a writer was told.
#[derive(Default)]
struct Written {
    /// The last checkpoint of each partition that was done.
    done: BTreeMap<Partition, u64>,
    lost: Vec<Partition>,
    longest: Duration,
}

impl Writer {
    async fn write(self: Arc<Self>) -> Written {
        let mut written = Written::default();
        for next in 1.. {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            let marks = marks(&self.node.owned().await, next);
            let began = Instant::now();
            let outcomes = self.node.ownership.commit(&marks).await.expect("a commit");
            written.longest = written.longest.max(began.elapsed());
            for (mark, outcome) in marks.iter().zip(outcomes) {
                match outcome {
                    Commit::Done => drop(written.done.insert(mark.partition, next)),
                    Commit::Lost => written.lost.push(mark.partition),
                }
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(LOOK).await;
        }
        written
    }
}

fn writing(node: Node) -> (Arc<Writer>, tokio::task::JoinHandle<Written>) {
    let (is_over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let writer = Arc::new(Writer { node, is_over, rounds });
    (writer.clone(), tokio::spawn(writer.write()))
}

#[test]
fn commits_go_on_while_nodes_come_and_leave() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let groups = Groups::at(shared());
        let node = groups.node();
        let alone = node.owns_all().await;
        let (writer, written) = writing(node);
        let mut moved = BTreeSet::new();
        for _ in 0..3 {
            let second = groups.node();
            let shared = share_all(&[&writer.node, &second]).await;
            moved.extend(shared[1].keys().copied());
            second.ownership.leave().await;
            writer.node.owns_all().await;
        }
        let rounds = writer.rounds.load(Ordering::Relaxed);
        while writer.rounds.load(Ordering::Relaxed) < rounds + 3 {
            tokio::time::sleep(LOOK).await;
        }
        writer.is_over.store(true, Ordering::Relaxed);
        let written = written.await.expect("no commit failed");
        println!("{} rounds, the longest took {:?}", rounds, written.longest);
        assert!(written.lost.iter().all(|partition| moved.contains(partition)));
        assert_eq!(writer.node.checkpoints().await, written.done, "each as it was done last");
        let stayed = kept(&alone, &writer.node.owned().await);
        assert_eq!(stayed, ALL - moved.len(), "{moved:?} moved");
    });
}

#[test]
fn a_rebalance_that_waits_for_a_frozen_node_holds_up_no_commit() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let groups = Groups::at(shared());
        let (node, frozen) = (groups.node(), groups.node());
        share_all(&[&node, &frozen]).await;
        frozen.freeze();
        let (writer, written) = writing(node);
        // It is let in once the frozen one's session has ended.
        let began = Instant::now();
        let newcomer = groups.node();
        let none = Owned::new();
        let came = tokio::time::timeout(LONG, newcomer.ownership.owned(&none)).await;
        assert!(came.is_ok(), "the newcomer is let in");
        let (held, rounds) = (began.elapsed(), writer.rounds.load(Ordering::Relaxed));
        share_all(&[&writer.node, &newcomer]).await;
        writer.is_over.store(true, Ordering::Relaxed);
        let written = written.await.expect("no commit failed");
        println!("held up for {held:?}, {rounds} rounds, the longest {:?}", written.longest);
        assert!(held > Duration::from_secs(3), "nothing was held up: {held:?}");
        assert!(rounds > 20, "{rounds} rounds in {held:?}");
        assert!(written.longest < Duration::from_secs(2), "{:?}", written.longest);
    });
}

/// In which a node has surely heard that the members join anew, on a busy machine too.
const HEARD: Duration = Duration::from_secs(2);

#[test]
fn no_commit_passes_a_generation_in_which_others_may_have_owned() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let groups = Groups::at(shared());
        // The first member leads.
        let leader = groups.node();
        leader.owns_all().await;
        let node = groups.node();
        let mut before = share_all(&[&leader, &node]).await.pop().expect("two shares");
        // The leader joins again for the newcomer, and freezes before the last one has joined: so
        // there is a generation that nobody gets an assignment of.
        node.commit_all(1).await;
        // Each group goes its own way.
        before.retain(|partition, _| partition.topic == Topic::Group);
        node.freeze();
        let newcomer = groups.node();
        let none = Owned::new();
        let early = tokio::time::timeout(HEARD, newcomer.ownership.owned(&none)).await;
        assert!(early.is_err(), "{early:?} before all have joined");
        leader.freeze();
        node.thaw();
        let (mut done, mut longest) = (1, Duration::ZERO);
        for next in 2.. {
            let began = Instant::now();
            let outcomes = node.ownership.commit(&marks(&before, next)).await.expect("a commit");
            longest = longest.max(began.elapsed());
            if outcomes.iter().all(|outcome| *outcome == Commit::Lost) {
                break;
            }
            assert!(outcomes.iter().all(|outcome| *outcome == Commit::Done), "{outcomes:?}");
            done = next;
        }
        println!("{done} was done; the next one waited {longest:?} and was lost");
        assert!(longest > HEARD, "it waits for what comes: {longest:?}");
        let found = node.checkpoints().await;
        assert!(before.keys().all(|partition| found[partition] == done), "{done} of {found:?}");
        let after = share_all(&[&node, &newcomer]).await;
        assert_eq!(kept(&before, &after[0]), 0, "no tenure goes on");
        node.commit_all(1_000_000).await;
        leader.thaw();
        share_all(&[&node, &newcomer, &leader]).await;
    });
}

#[test]
fn what_is_owned_stays_owned_while_the_broker_is_killed_and_started_again() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut kafka = Kafka::start(Version::V4_3, 1);
        let groups = Groups::at(&kafka);
        let nodes = [groups.node(), groups.node()];
        let before = share_all(&[&nodes[0], &nodes[1]]).await;
        let changes = nodes.each_ref().map(|node| node.ownership.clone());
        let changes = changes
            .into_iter()
            .zip(before.clone())
            .map(|(ownership, known)| tokio::spawn(async move { ownership.owned(&known).await }));
        let changes: Vec<_> = changes.collect();
        for (node, next) in nodes.iter().zip([11, 12]) {
            node.commit_all(next).await;
        }
        kafka.kill(0);
        for node in &nodes {
            node.says(|standing| matches!(standing, Standing::Away(_))).await;
            let refused = node.ownership.commit(&marks(&node.owned().await, 13)).await;
            assert!(matches!(refused, Err(LogError::Away(_))), "{refused:?}");
        }
        kafka.restart(0);
        let began = Instant::now();
        for node in &nodes {
            node.is_member().await;
        }
        println!("members again after {:?}", began.elapsed());
        let found = nodes[0].checkpoints().await;
        for (owned, next) in before.iter().zip([11, 12]) {
            assert!(owned.keys().all(|partition| found[partition] == next), "{found:?}");
        }
        for (node, next) in nodes.iter().zip([21, 22]) {
            node.commit_all(next).await;
        }
        for (node, before) in nodes.iter().zip(&before) {
            assert_eq!(node.owned().await, *before);
        }
        assert!(changes.iter().all(|change| !change.is_finished()), "not even in between");
        // Leaving is not held up by a broker that is away.
        kafka.freeze(0);
        let began = Instant::now();
        nodes[0].ownership.leave().await;
        println!("left without an answer after {:?}", began.elapsed());
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert_eq!(nodes[0].owned().await, Owned::new());
    });
}

#[test]
fn another_broker_takes_over_from_a_coordinator_that_is_lost() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut kafka = Kafka::start(Version::V4_3, 3);
        let mut groups = Groups::at(&kafka);
        groups.options.replication = 3;
        let nodes = [groups.node(), groups.node()];
        let before = share_all(&[&nodes[0], &nodes[1]]).await;
        let go_on = async |what: &str, next: u64| {
            let began = Instant::now();
            for node in &nodes {
                node.commit_all(next).await;
                node.is_member().await;
            }
            println!("{what}: went on after {:?}", began.elapsed());
            let found = nodes[0].checkpoints().await;
            assert!(found.len() == ALL && found.values().all(|one| *one == next), "{found:?}");
        };
        go_on("all are there", 1).await;
        // Whichever it is: each of them is lost once.
        kafka.kill(0);
        go_on("the first was killed", 2).await;
        kafka.restart(0);
        go_on("the first is back", 3).await;
        kafka.wait_until_in_step();
        kafka.freeze(1);
        go_on("the second is frozen", 4).await;
        kafka.thaw(1);
        go_on("the second is thawed", 5).await;
        kafka.wait_until_in_step();
        kafka.stop(2);
        go_on("the third was stopped", 6).await;
        for (node, before) in nodes.iter().zip(&before) {
            assert_eq!(node.owned().await, *before);
        }
    });
}
