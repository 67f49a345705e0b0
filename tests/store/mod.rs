//! What the tests of stores share: empty stores, and broadcasts to put into them.
#![allow(dead_code)] // each of the test files uses a part of it

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use corecast::base::{BroadcastId, EpochMillis, Priority, TargetType};
use corecast::domain::{Broadcast, Target};
use corecast::ports::{Audit, Clock, DeadLetterRows, Endings, Inbox, Parking, Store, SystemClock};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use corecast::store::scylla::{OpenError, Progress, ScyllaOptions, ScyllaStore};
use harness::wait;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tokio::task::JoinHandle;

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

    fn fresh_audit(&self) -> Arc<dyn Audit>;

    /// One store, by the ports of its broadcasts and of their ends.
    fn fresh_endings(&self) -> (Arc<dyn Store>, Arc<dyn Endings>);

    /// Nobody uses any of them any more. Tables take memory and time of a database, used or not.
    fn forget(&self);
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

    fn fresh_audit(&self) -> Arc<dyn Audit> {
        self.open().audit()
    }

    fn fresh_endings(&self) -> (Arc<dyn Store>, Arc<dyn Endings>) {
        let embedded = self.open();
        (embedded.store(), embedded.endings())
    }

    fn forget(&self) {
        self.folders.borrow_mut().clear();
    }
}

/// Over CQL, each in a keyspace of its own.
pub struct CqlStores {
    nodes: Vec<String>,
    raw: Session,
    open: RefCell<Vec<(Running, String)>>,
}

impl CqlStores {
    pub fn new(nodes: Vec<String>) -> Self {
        let raw = block_on(SessionBuilder::new().known_nodes(&nodes).build());
        Self { nodes, raw: raw.expect("a session"), open: RefCell::default() }
    }

    fn open(&self) -> Arc<ScyllaStore> {
        let keyspace = draw_keyspace();
        let options = ScyllaOptions::new(self.nodes.clone());
        let running = Running::start(ScyllaOptions { keyspace: keyspace.clone(), ..options });
        running.wait_until(|progress| *progress == Progress::Serving);
        let store = running.store.clone();
        self.open.borrow_mut().push((running, keyspace));
        store
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

    fn fresh_audit(&self) -> Arc<dyn Audit> {
        self.open()
    }

    fn fresh_endings(&self) -> (Arc<dyn Store>, Arc<dyn Endings>) {
        let store = self.open();
        (store.clone(), store)
    }

    fn forget(&self) {
        for (running, keyspace) in self.open.borrow_mut().drain(..) {
            running.task.abort();
            let drop = format!("DROP KEYSPACE {keyspace}");
            block_on(self.raw.query_unpaged(drop, ())).expect("it is there");
        }
    }
}

/// A store and what its `run` says.
pub struct Running {
    pub store: Arc<ScyllaStore>,
    pub said: Arc<Mutex<Vec<Progress>>>,
    pub ended: Arc<Mutex<Option<OpenError>>>,
    task: JoinHandle<()>,
}

/// A database that is busy with other tests takes its time.
pub const STORE_TIME: Duration = Duration::from_secs(60);

impl Running {
    pub fn start(options: ScyllaOptions) -> Self {
        let store = ScyllaStore::new(options, "test-node".to_owned(), Arc::new(SystemClock));
        let store = Arc::new(store);
        let (said, ended) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Option<_>>>::default());
        let (running, saying, ending) = (store.clone(), said.clone(), ended.clone());
        let task = runtime().spawn(async move {
            let say = |progress| saying.lock().unwrap().push(progress);
            if let Err(error) = running.run(say).await {
                *ending.lock().unwrap() = Some(error);
            }
        });
        Self { store, said, ended, task }
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
