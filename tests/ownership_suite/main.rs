//! What every implementation of `ports::Ownership` must do (`suite.rs`), run against each of them,
//! and what only the one in Kafka has to do besides: nodes that share.

mod embedded;
mod kafka;
mod kafka_outside;
mod nodes;
mod suite;

use std::sync::Arc;
use std::time::Duration;

use corecast::base::{Partition, Topic};
use corecast::ports::{Mark, Owned, Ownership};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// Between two looks at what many nodes do.
const LOOK: Duration = Duration::from_millis(20);
/// Partitions of each topic: no number of nodes here divides it.
const PARTITIONS: u16 = 5;

/// Where nodes own something: a log, its topics and its groups, which no other test uses.
trait Site {
    /// What one more node has.
    fn ownership(&self, takes_part: bool) -> Arc<dyn Ownership>;
}

/// Runs a test's future as a node's control threads would.
fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime").block_on(test);
}

/// Also those of dead letters, of which each topic has one.
fn all_partitions() -> impl Iterator<Item = Partition> {
    Topic::EVERY.into_iter().flat_map(|topic| {
        let count = if topic.is_dead() { 1 } else { PARTITIONS };
        (0..count).map(move |index| Partition { topic, index })
    })
}

/// A mark for each partition.
fn marks(owned: &Owned, next: u64) -> Vec<Mark> {
    let mark = |(partition, tenure): (&Partition, &_)| Mark {
        partition: *partition,
        tenure: *tenure,
        next,
    };
    owned.iter().map(mark).collect()
}
