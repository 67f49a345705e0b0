//! Starts the shards: their cores, lanes, listeners and threads.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::{BootError, Ending};
use crate::base::LogShape;
use crate::domain::StreamsOptions;
use crate::edge::AccessRules;
use crate::lane::{Doorbell, FromShard, Order, Refusals, Sender, ToShard, lane};
use crate::limits;
use crate::ops::config::Config;
use crate::shard::{self, Cores, Probe, RuntimeKind, ShardError, ShardOptions, mesh};

/// All shards of this node, as its other rooms see them.
#[derive(Default)]
pub(super) struct Shards {
    /// A lane to each, in order.
    pub lanes: Vec<Sender<ToShard>>,
    /// The same for what the control topic says.
    pub orders: Vec<Sender<Order>>,
    pub probes: Vec<Arc<Probe>>,
    /// What each waits with.
    pub runtimes: Vec<RuntimeKind>,
    /// Every lane to or between them, by name.
    pub refusals: Vec<(&'static str, Arc<Refusals>)>,
}

/// Where shards run, and what each may take.
pub(super) struct Places<'a> {
    pub cores: &'a Cores,
    /// One for each shard.
    pub listeners: Vec<TcpListener>,
    /// Connections of a shard that have not yet said what they want.
    pub heads_max: usize,
}

impl Shards {
    /// Starts a thread for each core, and one that waits for its end.
    pub fn start(
        config: &Config,
        shape: LogShape,
        places: Places<'_>,
        reports: &Sender<FromShard>,
        endings: &mpsc::Sender<Ending>,
    ) -> Result<Self, BootError> {
        let Places { cores, listeners, heads_max } = places;
        let bells = cores.shards.iter().map(|_| Doorbell::new().map(Arc::new));
        let bells: Vec<Arc<Doorbell>> = bells.collect::<Result<_, _>>()?;
        let all_peers =
            mesh(&bells).ok_or(std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        let left = Arc::new(AtomicUsize::new(bells.len()));
        let mut shards = Self::default();
        let mut refused = None;
        let places = bells.into_iter().zip(all_peers).zip(listeners).zip(&cores.shards);
        for (number, (((bell, peers), listener), cpu)) in (0..).zip(places) {
            let (order, orders) = lane("orders", limits::lane::ORDERS, bell.clone());
            let (to_shard, inputs) = lane("control_to_shard", limits::lane::INGEST_TO_SHARD, bell);
            let probe = Arc::new(Probe::default());
            shards.refusals.push((to_shard.name(), to_shard.refusals()));
            shards.refusals.extend(peers.lanes());
            shards.refusals.push((order.name(), order.refusals()));
            shards.orders.push(order);
            shards.lanes.push(to_shard);
            shards.probes.push(probe.clone());
            let options = ShardOptions {
                number,
                cpu: *cpu,
                runtime: config.runtime,
                streams: StreamsOptions {
                    shape,
                    ring: config.ring,
                    streams_max: config.streams_max,
                    heartbeat: config.heartbeat,
                    write_progress: config.write_progress,
                    ended_kept: config.ended_kept,
                    max_age: config.max_age,
                    seed: uuid::Uuid::new_v4().as_u128() as u64,
                },
                access: AccessRules { allow_anonymous: config.allow_anonymous },
                is_testing: config.is_testing,
                listener,
                heads_max,
                inputs,
                orders,
                peers,
                reports: reports.clone(),
                probe,
            };
            let started = shard::start(options)?;
            shards.runtimes.push(started.runtime);
            refused = refused.or(started.refused);
            watch(number, started.thread, left.clone(), endings.clone())?;
        }
        if let Some(reason) = refused {
            tracing::warn!("shards wait with epoll, because glommio is not to be had: {reason}");
        }
        Ok(shards)
    }
}

/// Starts a thread that says when a shard has ended. A shard that ends by itself ends the node: its
/// users can't be served, and are by another one.
fn watch(
    number: u16,
    thread: JoinHandle<Result<(), ShardError>>,
    left: Arc<AtomicUsize>,
    endings: mpsc::Sender<Ending>,
) -> std::io::Result<()> {
    std::thread::Builder::new().name(format!("watch-{number}")).spawn(move || {
        let ending = match thread.join() {
            Ok(Ok(())) if left.fetch_sub(1, Ordering::AcqRel) > 1 => return,
            Ok(Ok(())) => Ending::ShardsEnded,
            Ok(Err(error)) => Ending::Part(error.to_string()),
            Err(_) => Ending::Part(format!("shard {number} panicked")),
        };
        // Nobody listens any more once the node ends.
        let _ = endings.send(ending);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Watches shards that end like this, one after the other, and returns what was said.
    fn endings_of(shards: [fn() -> Result<(), ShardError>; 2]) -> Vec<Ending> {
        let (endings, ended) = mpsc::channel();
        let left = Arc::new(AtomicUsize::new(shards.len()));
        let threads = (0..).zip(shards).map(|(number, shard)| {
            let thread = std::thread::spawn(shard);
            watch(number, thread, left.clone(), endings.clone()).expect("a thread");
        });
        threads.for_each(drop);
        drop(endings);
        // Ends when the last watcher has.
        ended.iter().collect()
    }

    #[test]
    fn a_shard_that_dies_ends_the_node() {
        let failed = || {
            let error = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
            Err(ShardError::Kernel { shard: 1, error })
        };
        let cases: [(fn() -> _, &str); 2] =
            [(|| panic!("as it is meant to"), "shard 1 panicked"), (failed, "shard 1 can't get")];
        for (dies, why) in cases {
            let endings = endings_of([|| Ok(()), dies]);
            let [Ending::Part(reason)] = &endings[..] else { panic!("one part ends: {why}") };
            assert!(reason.starts_with(why), "{reason}");
            // Which is a failure of the whole, whose status is 1.
            let (ending, ended) = mpsc::channel();
            ending.send(Ending::Part(reason.clone())).expect("heard");
            let outcome = super::super::run_until_signal(&ended);
            assert!(matches!(outcome, Err(super::super::BootError::Ended(_))));
        }
    }

    #[test]
    fn shards_have_ended_when_the_last_one_has() {
        let endings = endings_of([|| Ok(()), || Ok(())]);
        assert!(matches!(endings[..], [Ending::ShardsEnded]));
    }
}
