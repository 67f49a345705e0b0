//! The faults that a run injects, and what undoes them.

use std::time::{Duration, Instant};

use harness::cable::Side;
use harness::node::Node;
use harness::wait;
use rustix::process::Signal;

use super::{Run, addresses, lag, launch, wait_until_ready};
use crate::real::{LONG, wait_until_missing, wait_until_owned};

/// Between two looks of a load balancer at whether a node is ready.
const BALANCER_LOOK: Duration = Duration::from_secs(1);
/// From a crash until others own what it owned: 10 s, and twice that for a machine that is busy.
const MOVED: Duration = Duration::from_secs(20);
/// Records that are written between two looks at whether an owner is behind.
const BURST: usize = 600;

impl Run {
    pub fn inject(&mut self, fault: &str) {
        println!("injected: {fault}");
        self.injected.push(fault.to_owned());
    }

    /// `kill -9`. Clients still try this node.
    pub fn kill(&mut self, node: usize, when: &str) {
        self.inject(&format!("kill -9 of node {node} {when}"));
        self.nodes[node].process.kill();
    }

    /// `kill -9` of all of them at once.
    pub fn kill_all(&mut self, when: &str) {
        self.inject(&format!("kill -9 of all nodes at once {when}"));
        self.nodes.iter().for_each(|node| node.process.signal(Signal::KILL));
        self.nodes.iter_mut().for_each(|node| node.process.kill());
    }

    /// SIGTERM, and its end, which must be a good one; and starts it again. Clients are sent there
    /// only while it is ready, as a load balancer sees it. How long it drained.
    pub fn roll(&mut self, node: usize) -> Duration {
        self.inject(&format!("a restart of node {node}"));
        let began = Instant::now();
        self.nodes[node].process.signal(Signal::TERM);
        wait::until_true("readiness goes off", LONG, || {
            self.nodes[node].get("/health/ready").status == 503
        });
        wait::until_due(began + BALANCER_LOOK);
        self.service.take_off(node);
        let status = self.nodes[node].process.wait_for_end(LONG);
        let took = began.elapsed();
        assert_eq!(status.code(), Some(0), "{}", self.nodes[node].process.text());
        self.nodes[node].launch_again();
        wait_until_ready(&self.nodes[node]);
        self.service.list(node, addresses(&self.nodes[node]));
        took
    }

    /// Starts it again and waits for its listeners only.
    pub fn launch(&mut self, node: usize) {
        self.nodes[node].launch_again();
        self.service.list(node, addresses(&self.nodes[node]));
    }

    /// Starts it again if it does not run, and waits until it is ready and owns its share.
    pub fn restart(&mut self, node: usize) {
        if !self.nodes[node].process.is_running() {
            self.launch(node);
        }
        wait_until_ready(&self.nodes[node]);
        self.share();
    }

    /// One node more: where it is among them. Waits for its listeners only.
    pub fn join(&mut self) -> usize {
        let node = self.nodes.len();
        self.nodes.push(launch(&self.sets));
        self.service.list(node, addresses(&self.nodes[node]));
        node
    }

    /// Waits until the others own what this one owned.
    pub fn is_replaced(&self, node: usize) {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != node);
        let others: Vec<&Node> = others.map(|(_, other)| other).collect();
        let took = wait_until_owned(&others, "the others own all");
        assert!(took < MOVED, "{took:?}");
    }

    /// SIGSTOP. A load balancer would send nobody there; who is there stays.
    pub fn freeze(&mut self, node: usize, when: &str) {
        self.inject(&format!("SIGSTOP of node {node} {when}"));
        self.service.take_off(node);
        // One create may be under way there.
        let until = self.traffic.made().answers + 2;
        wait::until_true("creates go elsewhere", LONG, || self.traffic.made().answers >= until);
        self.nodes[node].process.freeze();
    }

    pub fn thaw(&self, node: usize) {
        self.nodes[node].process.thaw();
        self.service.list(node, addresses(&self.nodes[node]));
    }

    /// Cuts a node off from brokers and databases. A load balancer sends nobody there once it is
    /// not ready; who is there stays.
    pub fn cut_off(&mut self, node: usize) {
        self.inject(&format!("node {node} cut off from brokers and databases"));
        self.nodes[node].pull(Side::Backends);
        wait_until_missing(&self.nodes[node], &["log", "store"]);
        self.service.take_off(node);
    }

    /// Undoes it, and waits until the node is ready and owns its share.
    pub fn connect(&self, node: usize) {
        self.nodes[node].plug_in(Side::Backends);
        wait_until_missing(&self.nodes[node], &[]);
        self.service.list(node, addresses(&self.nodes[node]));
        self.share();
    }

    /// Cuts a node's clients off from it as well, while creates go on elsewhere.
    pub fn lose_clients_for_a_while(&mut self, node: usize) {
        self.inject(&format!("node {node} cut off from its clients"));
        self.nodes[node].pull(Side::Clients);
        self.creates_go_on("all cables of a node are out");
        self.nodes[node].plug_in(Side::Clients);
    }

    /// Writes as fast as may be, until so many records of its partitions are not durable yet.
    pub fn burst_until_behind(&self, node: usize, records: f64) {
        wait::until_true("an owner has work", LONG, || {
            self.traffic.producer.burst(BURST);
            lag(&self.nodes[node..=node]) >= records
        });
    }

    pub fn set_heavy(&self, is_heavy: bool) {
        self.traffic.producer.set_heavy(is_heavy);
    }

    /// Writes what is no event to every partition; waits until each node has met all of it.
    pub fn poison(&mut self) {
        let bad = |node: &Node| node.metric("corecast_bad_records_total").unwrap_or(0.0) as usize;
        let before: Vec<usize> = self.nodes.iter().map(bad).collect();
        let count = self.traffic.producer.poison();
        self.inject(&format!("{count} poisonous records"));
        wait::until_true("all nodes meet them", LONG, || {
            self.check();
            self.nodes.iter().zip(&before).all(|(node, before)| bad(node) == before + count)
        });
    }
}
