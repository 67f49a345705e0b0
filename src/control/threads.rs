//! The control threads: one tokio runtime, which boot starts and stops without naming it.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// The runtime. Dropping it ends what still runs on it.
pub struct Threads {
    runtime: Runtime,
}

impl Threads {
    /// Starts that many worker threads.
    pub fn start(workers: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("control")
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

/// Waits for the next SIGTERM or SIGINT.
pub async fn wait_for_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
