//! Floor 3: a shard, one core. It owns its listener, its streams, its share of the partitions,
//! and nothing that another thread writes; within it there is no lock.
//!
//! One pump a shard (`pump.rs`), turned by the runtime seam (`runtime/`) on a pinned thread.

mod core;
mod cores;
mod keeping;
mod peers;
mod probe;
mod pump;
mod runtime;
mod told;
mod unsent;

use std::net::TcpListener;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::domain::StreamsOptions;
use crate::edge::AccessRules;
use crate::lane::{FromShard, Order, Receiver, Sender, ToShard};
use crate::ports::SystemClock;

pub use cores::{Cores, CoresError, ShardsWanted, pin};
pub use peers::{Peers, mesh};
pub use probe::{BUCKETS_MICROS, Histogram, Probe};
pub use pump::Shard;
pub use runtime::{Next, NoGlommio, Pump, Runtime, RuntimeKind, RuntimeWanted};

/// What a shard is given at start.
pub struct ShardOptions {
    pub number: u16,
    /// The CPU that its thread is pinned to.
    pub cpu: usize,
    pub runtime: RuntimeWanted,
    pub streams: StreamsOptions,
    pub access: AccessRules,
    /// Records may ask for their failure.
    pub is_testing: bool,
    pub listener: TcpListener,
    /// Connections that may be without a complete head at a time.
    pub heads_max: usize,
    pub inputs: Receiver<ToShard>,
    /// The same doorbell.
    pub orders: Receiver<Order>,
    pub peers: Peers,
    pub reports: Sender<FromShard>,
    pub probe: Arc<Probe>,
}

/// Why a shard could not go on. Each ends the process.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("shard {shard} can't get what it needs from the kernel: {error}")]
    Kernel { shard: u16, error: std::io::Error },
    #[error(
        "node.runtime = \"glommio\" is not to be had: {reason}; or set node.runtime = \"auto\""
    )]
    Runtime { reason: NoGlommio },
}

/// A shard that runs.
pub struct Started {
    pub runtime: RuntimeKind,
    /// Why it is not glommio, if that was tried.
    pub refused: Option<NoGlommio>,
    /// Ends by `ToShard::Drain`, or with an error.
    pub thread: JoinHandle<Result<(), ShardError>>,
}

/// Starts the thread of a shard, and waits until it has its runtime.
pub fn start(options: ShardOptions) -> Result<Started, ShardError> {
    let number = options.number;
    let failed = move |error| ShardError::Kernel { shard: number, error };
    let (tell, told) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
        pin(&[options.cpu]);
        // Nobody waits for this thread longer than for this one word.
        let runtime = match Runtime::make(options.runtime) {
            Ok((runtime, refused)) => {
                let _ = tell.send(Ok((runtime.kind(), refused)));
                runtime
            }
            Err(reason) => {
                let _ = tell.send(Err(ShardError::Runtime { reason }));
                return Ok(());
            }
        };
        drop(tell);
        let mut shard = Shard::new(options, SystemClock).map_err(failed)?;
        runtime.run(&mut shard, &SystemClock).map_err(failed)
    });
    let thread = thread.map_err(failed)?;
    let ended = |_| failed(std::io::Error::other("its thread ended at once"));
    let (runtime, refused) = told.recv().map_err(ended)??;
    Ok(Started { runtime, refused, thread })
}
