//! What the tests of stores share: empty stores, and broadcasts to put into them.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use corecast::base::{BroadcastId, EpochMillis, Priority, TargetType};
use corecast::domain::{Broadcast, Target};
use corecast::ports::{Clock, Store, SystemClock};
use corecast::store::embedded::{Embedded, EmbeddedOptions};

/// Makes stores that are empty.
pub trait Stores {
    fn fresh(&self) -> Arc<dyn Store>;
}

/// In folders that go with this.
#[derive(Default)]
pub struct EmbeddedStores {
    folders: RefCell<Vec<tempfile::TempDir>>,
}

impl Stores for EmbeddedStores {
    fn fresh(&self) -> Arc<dyn Store> {
        let folder = tempfile::tempdir().expect("a folder");
        let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 1 };
        self.folders.borrow_mut().push(folder);
        Embedded::open(&options, Arc::new(SystemClock)).expect("it opens").store()
    }
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
