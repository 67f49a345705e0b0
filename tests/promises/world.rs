//! Three brokers and three database nodes. Stories in which none of them fails share them; the
//! others have them alone.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use harness::cassandra::{Cassandra, Setup};
use harness::kafka::{JavaProducer, Kafka, Version};

use crate::real::Place;

pub struct World {
    pub kafka: Kafka,
    pub cassandra: Cassandra,
    /// Writes for all stories.
    pub java: Arc<Mutex<JavaProducer>>,
    /// A keyspace, which takes three nodes long to make. Each story has topics of its own, and
    /// users.
    place: Place,
    killed_brokers: BTreeSet<usize>,
    killed_databases: BTreeSet<usize>,
}

/// For a story in which no broker and no database fails.
pub fn shared() -> RwLockReadGuard<'static, World> {
    world().read().unwrap_or_else(PoisonError::into_inner)
}

/// For a story in which they do.
pub fn alone() -> RwLockWriteGuard<'static, World> {
    let mut world = world().write().unwrap_or_else(PoisonError::into_inner);
    world.heal();
    world
}

fn world() -> &'static RwLock<World> {
    static WORLD: OnceLock<RwLock<World>> = OnceLock::new();
    WORLD.get_or_init(|| RwLock::new(World::start()))
}

impl World {
    fn start() -> Self {
        let durable = Setup { durable_tables: true, ..Setup::default() };
        let began = Instant::now();
        let cassandra = std::thread::spawn(move || Cassandra::start_with(3, durable));
        let kafka = Kafka::start(Version::V4_3, 3);
        let mut java = kafka.java_producer();
        // It gives a frozen broker up soon, so that it is the node's time that is measured, and
        // keeps what it has until the brokers are back.
        let soon = ["request.timeout.ms=2000", "socket.connection.setup.timeout.ms=1000"];
        let patient = ["reconnect.backoff.max.ms=200", "delivery.timeout.ms=900000"];
        java.say(&[&["open", "flow"], &soon[..], &patient[..]].concat());
        let cassandra = cassandra.join().expect("it starts");
        let place = Place::new(&kafka, &cassandra);
        println!("the clusters run after {:?}", began.elapsed());
        let (killed_brokers, killed_databases) = Default::default();
        let java = Arc::new(Mutex::new(java));
        Self { kafka, cassandra, java, place, killed_brokers, killed_databases }
    }

    /// Topics that nobody else has.
    pub fn place(&self) -> Place {
        let mut place = self.place.clone();
        place.move_to_new_topics(&self.kafka, &self.cassandra);
        place
    }

    /// Undoes what the last story left, if it failed.
    fn heal(&mut self) {
        self.thaw_brokers();
        self.thaw_databases();
        self.restart_killed();
    }

    pub fn kill_broker(&mut self, broker: usize) {
        self.kafka.kill(broker);
        self.killed_brokers.insert(broker);
    }

    pub fn kill_database(&mut self, node: usize) {
        self.cassandra.kill(node);
        self.killed_databases.insert(node);
    }

    /// With what they have stored.
    pub fn restart_killed(&mut self) {
        let (kafka, cassandra) = (&mut self.kafka, &mut self.cassandra);
        let (brokers, databases) = (&mut self.killed_brokers, &mut self.killed_databases);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::mem::take(databases).into_iter().for_each(|node| cassandra.start_again(node))
            });
            std::mem::take(brokers).into_iter().for_each(|broker| kafka.restart(broker));
        });
    }

    pub fn freeze_brokers(&self) {
        (0..3).for_each(|broker| self.kafka.freeze(broker));
    }

    pub fn thaw_brokers(&self) {
        let runs = |broker: &usize| !self.killed_brokers.contains(broker);
        (0..3).filter(runs).for_each(|broker| self.kafka.thaw(broker));
    }

    pub fn freeze_databases(&self) {
        (0..3).for_each(|node| self.cassandra.freeze(node));
    }

    pub fn thaw_databases(&self) {
        let runs = |node: &usize| !self.killed_databases.contains(node);
        (0..3).filter(runs).for_each(|node| self.cassandra.thaw(node));
    }
}
