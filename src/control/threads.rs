//! The control threads: one tokio runtime, which boot starts and stops without naming it.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::limits::store as limits;

/// The runtime. Dropping it ends what still runs on it.
pub struct Threads {
    runtime: Runtime,
}

impl Threads {
    /// Starts that many worker threads; each calls `at_start` first.
    pub fn start(
        workers: usize,
        at_start: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .max_blocking_threads(limits::DISK_READS_AT_ONCE)
            .thread_name("control")
            .on_thread_start(at_start)
            .enable_all()
            .build()?;
        Ok(Self { runtime })
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Ends everything; waits for what can't be interrupted, but not longer than this.
    pub fn stop(self, at_most: Duration) {
        self.runtime.shutdown_timeout(at_most);
    }
}

/// SIGTERM and SIGINT, from when it is made on: none of them is missed between two waits.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Only on the control threads.
    pub fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
