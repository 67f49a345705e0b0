//! Floor 3: a shard, one core. It owns its listener, its streams, its share of the partitions,
//! and nothing that another thread writes; within it there is no lock.
//!
//! One pump a shard (`pump.rs`), turned by the runtime seam (`runtime.rs`) on a pinned thread.

mod core;
mod cores;
mod peers;
mod probe;
mod pump;
mod runtime;

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::domain::StreamsOptions;
use crate::edge::AccessRules;
use crate::lane::{FromShard, Receiver, Sender, ToShard};
use crate::ports::SystemClock;

pub use cores::{Cores, CoresError, ShardsWanted, pin};
pub use peers::{Peers, mesh};
pub use probe::{BUCKETS_MICROS, Histogram, Probe};
pub use pump::Shard;

/// What a shard is given at start.
pub struct ShardOptions {
    pub number: u16,
    /// The CPU that its thread is pinned to.
    pub cpu: usize,
    pub streams: StreamsOptions,
    pub access: AccessRules,
    pub listener: TcpListener,
    /// Connections that may be without a complete head at a time.
    pub heads_max: usize,
    pub inputs: Receiver<ToShard>,
    pub peers: Peers,
    pub reports: Sender<FromShard>,
    pub probe: Arc<Probe>,
}

/// Why a shard could not go on. Each ends the process.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("shard {shard} can't get what it needs from the kernel: {error}")]
    Kernel { shard: u16, error: std::io::Error },
}

/// Starts the thread of a shard. It ends by `ToShard::Drain`, or with an error.
pub fn start(options: ShardOptions) -> std::io::Result<JoinHandle<Result<(), ShardError>>> {
    let number = options.number;
    std::thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
        let failed = |error| ShardError::Kernel { shard: number, error };
        pin(&[options.cpu]);
        let mut shard = Shard::new(options, SystemClock).map_err(failed)?;
        runtime::run_epoll(&mut shard, &SystemClock).map_err(failed)
    })
}
