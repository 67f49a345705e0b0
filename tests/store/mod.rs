//! What the tests of stores share: empty stores, and broadcasts to put into them.
#![allow(dead_code)] // each of the test files uses a part of it

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use corecast::base::{BroadcastId, EpochMillis, Priority, TargetType};
use corecast::domain::{Broadcast, Target};
use corecast::ports::{Clock, DeadLetterRows, Inbox, Parking, Store, SystemClock};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use corecast::store::scylla::{OpenError, Progress, ScyllaOptions, ScyllaStore};
use harness::wait;

/// Makes stores that are empty.
pub trait Stores {
    /// One store, by both of its ports.
    fn fresh_both(&self) -> (Arc<dyn Store>, Arc<dyn Inbox>);

    /// One store, by the port of its dead letters.
    fn fresh_dead_letters(&self) -> Arc<dyn DeadLetterRows>;

    fn fresh(&self) -> Arc<dyn Store> {
        self.fresh_both().0
    }

    fn fresh_parking(&self) -> Arc<dyn Parking>;
}

/// What a suite asks of every store: its name, and what it does with stores that are empty.
pub type Case = (&'static str, fn(&dyn Stores));

/// Runs every case; names the one that fails.
pub fn run(cases: &[Case], stores: &dyn Stores) {
    for (name, case) in cases {
        let began = std::time::Instant::now();
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(stores)));
        if let Err(cause) = failed {
            eprintln!("--- the case was: {name}");
            std::panic::resume_unwind(cause);
        }
        println!("{:6.2} s  {name}", began.elapsed().as_secs_f64());
    }
}

/// In folders that go with this.
#[derive(Default)]
pub struct EmbeddedStores {
    folders: RefCell<Vec<tempfile::TempDir>>,
}

impl EmbeddedStores {
    fn open(&self) -> Embedded {
        let folder = tempfile::tempdir().expect("a folder");
        let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 1 };
        self.folders.borrow_mut().push(folder);
        Embedded::open(&options, Arc::new(SystemClock)).expect("it opens")
    }
}

impl Stores for EmbeddedStores {
    fn fresh_both(&self) -> (Arc<dyn Store>, Arc<dyn Inbox>) {
        let embedded = self.open();
        (embedded.store(), embedded.inbox())
    }

    fn fresh_dead_letters(&self) -> Arc<dyn DeadLetterRows> {
        self.open().dead_letters()
    }

    fn fresh_parking(&self) -> Arc<dyn Parking> {
        self.open().parking()
    }
}

/// Over CQL, each in a keyspace of its own.
pub struct CqlStores {
    pub nodes: Vec<String>,
    pub replication: u16,
}

impl CqlStores {
    fn open(&self) -> Arc<ScyllaStore> {
        let replication = self.replication;
        let options = ScyllaOptions { replication, ..ScyllaOptions::new(self.nodes.clone()) };
        let running = Running::start(ScyllaOptions { keyspace: draw_keyspace(), ..options });
        running.wait_until(|progress| *progress == Progress::Serving);
        running.store
    }
}

impl Stores for CqlStores {
    fn fresh_both(&self) -> (Arc<dyn Store>, Arc<dyn Inbox>) {
        let store = self.open();
        (store.clone(), store)
    }

    fn fresh_dead_letters(&self) -> Arc<dyn DeadLetterRows> {
        self.open()
    }

    fn fresh_parking(&self) -> Arc<dyn Parking> {
        self.open()
    }
}

/// A store and what its `run` says.
pub struct Running {
    pub store: Arc<ScyllaStore>,
    pub said: Arc<Mutex<Vec<Progress>>>,
    pub ended: Arc<Mutex<Option<OpenError>>>,
}

/// A database that is busy with other tests takes its time.
pub const STORE_TIME: Duration = Duration::from_secs(60);

impl Running {
    pub fn start(options: ScyllaOptions) -> Self {
        let store = ScyllaStore::new(options, "test-node".to_owned(), Arc::new(SystemClock));
        let store = Arc::new(store);
        let (said, ended) = (Arc::default(), Arc::default());
        let running = Self { store: store.clone(), said, ended };
        let (said, ended) = (running.said.clone(), running.ended.clone());
        runtime().spawn(async move {
            let Err(error) = store.run(|progress| said.lock().unwrap().push(progress)).await else {
                return;
            };
            *ended.lock().unwrap() = Some(error);
        });
        running
    }

    /// Waits until the last that was said is so.
    pub fn wait_until(&self, is_so: impl Fn(&Progress) -> bool) {
        wait::until_true("the store says so", STORE_TIME, || {
            assert!(self.ended.lock().unwrap().is_none(), "{:?}", self.ended);
            self.said.lock().unwrap().last().is_some_and(&is_so)
        });
    }

    /// Waits until it ends, which is for an operator; returns what it says to that one.
    pub fn wait_for_end(&self) -> OpenError {
        harness::wait::until("the store ends", STORE_TIME, || self.ended.lock().unwrap().take())
    }
}

/// A name that no other test has.
pub fn draw_keyspace() -> String {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    format!("test_{}_{}", std::process::id(), DRAWN.fetch_add(1, Ordering::Relaxed))
}

/// Runs on threads like a node's control threads.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("a runtime")
    })
}

/// Starts all of them, then waits for all of them; answers in the order of the items.
pub async fn at_once<I, T, F>(items: &[I], start: impl Fn(I) -> F) -> Vec<T>
where
    I: Clone,
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = items.iter().map(|item| tokio::spawn(start(item.clone()))).collect();
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(task.await.expect("no task panics"));
    }
    answers
}

pub fn now() -> EpochMillis {
    SystemClock.wall()
}

/// An id as a node draws it: 41 bits of milliseconds since 2020, and 12 that are random there.
pub fn id_at(at: EpochMillis, random: u64) -> BroadcastId {
    BroadcastId::new((at.0 - 1_577_836_800_000) << 12 | random).expect("of this century")
}

/// A plain broadcast to everybody.
pub fn broadcast(id: BroadcastId) -> Broadcast {
    Broadcast {
        id,
        correlation_id: format!("correlation of {id}"),
        sender_id: None,
        sender_name: None,
        content: format!("content of {id}"),
        target: Target { r#type: TargetType::All, ids: Vec::new() },
        priority: Priority::Normal,
        category: None,
        created_at: now(),
        scheduled_at: None,
        expires_at: Some(EpochMillis(now().0 + 30 * 24 * 3_600_000)),
        fire_and_forget: false,
    }
}
