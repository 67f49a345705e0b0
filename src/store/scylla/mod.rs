//! The store over CQL: ScyllaDB, or Apache Cassandra. On the control threads.
//!
//! It may be used before the database is there: until then, and whenever it is lost, calls answer
//! `Away`. `run` connects, makes the tables, and watches; it ends only with what an operator has to
//! mend. Tables: `schema.rs`. What is unknown is never guessed: `lwt.rs`.

mod audit;
mod connect;
mod cursor;
mod dead_letter_statements;
mod dead_letters;
mod endings;
mod errors;
mod group;
mod hole;
mod inbox;
mod inbox_statements;
mod lists;
mod lwt;
mod migrate;
mod outbox;
mod parking;
mod positions;
mod ranks;
mod rows;
mod schema;
mod statements;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

pub use connect::{Login, ScyllaOptions};
pub use errors::OpenError;

use crate::base::{BroadcastId, EpochMillis, Status};
use crate::domain::Broadcast;
use crate::limits::store as limits;
use crate::ports::{
    Backoff, BroadcastRow, Claim, Clock, ListFilter, ListPlace, OutboxRow, Store, StoreError,
};
use errors::{ConnectError, invalid_statement, prepare_error};
use group::NotedBuckets;
use lists::List;
use lwt::Insert;
use migrate::Migration;
use positions::Positions;
use rows::{
    BroadcastColumns, NewBroadcast, Times, TimesColumns, chunks_of, id_column, read_status,
    time_column, written_at,
};
use statements::{Connected, Shared, Statements, each, execute, rows_of};

/// What `run` sees. Told on every change, from a control thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    Serving,
    /// Heals by itself.
    Away(String),
    /// Answers, but not as it must; goes on being asked.
    Failed(String),
}

pub struct ScyllaStore {
    options: ScyllaOptions,
    clock: Arc<dyn Clock>,
    /// As the schema notes who made it.
    node: String,
    connected: OnceLock<Shared>,
    /// Why `connected` is not set yet.
    missing: Mutex<String>,
    /// Buckets that this process has noted.
    noted: Mutex<HashSet<(List, EpochMillis)>>,
    group_buckets: Mutex<NotedBuckets>,
    positions: Mutex<Positions>,
}

impl ScyllaStore {
    /// Nothing is asked of the database before `run`.
    pub fn new(options: ScyllaOptions, node: String, clock: Arc<dyn Clock>) -> Self {
        Self {
            options,
            clock,
            node,
            connected: OnceLock::new(),
            missing: Mutex::new("not connected yet".to_owned()),
            noted: Mutex::new(HashSet::new()),
            group_buckets: Mutex::default(),
            positions: Mutex::default(),
        }
    }

    /// Connects, however long the database is away, and makes the tables; then watches it for
    /// good. Ends only with what does not heal by itself.
    pub async fn run(&self, progress: impl Fn(Progress)) -> Result<(), OpenError> {
        let mut backoff = Backoff::new(limits::CONNECT_WAIT, limits::CONNECT_WAIT_MAX);
        let holder = Uuid::new_v4();
        let connected = loop {
            match self.connect(holder).await {
                Ok(connected) => break Arc::new(connected),
                Err(ConnectError::Open(error)) => {
                    *lock(&self.missing) = error.to_string();
                    return Err(error);
                }
                Err(ConnectError::Away(reason)) => {
                    let reason = format!("{}: {reason}", self.options.nodes.join(", "));
                    tracing::warn!(reason, "the store is away");
                    lock(&self.missing).clone_from(&reason);
                    progress(Progress::Away(reason));
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        };
        let connected = self.connected.get_or_init(|| connected).clone();
        progress(Progress::Serving);
        watch(&connected, progress).await
    }

    async fn connect(&self, holder: Uuid) -> Result<Connected, ConnectError> {
        let Self { options, clock, node, .. } = self;
        let session = connect::connect(options).await?;
        let migration = Migration { session: &session, options, holder, node, clock };
        migration.run().await?;
        // The keyspace may be new to the driver, which has to know where its rows are.
        let refreshed = session.refresh_metadata().await;
        refreshed.map_err(|error| ConnectError::Away(error.to_string()))?;
        let statements = Statements::prepare(&session, &options.keyspace).await;
        let statements = statements.map_err(|error| {
            let keyspace = options.keyspace.clone();
            // All nodes agreed on the schema before it was noted, so what is missing was removed.
            if let Some(reason) = invalid_statement(&error) {
                return OpenError::Layout { keyspace, reason: reason.to_owned() }.into();
            }
            match prepare_error(&error) {
                StoreError::Away(reason) => ConnectError::Away(reason),
                StoreError::Failed(reason) => OpenError::Layout { keyspace, reason }.into(),
            }
        })?;
        Ok(Connected { session, statements })
    }

    fn connected(&self) -> Result<Shared, StoreError> {
        let missing = || StoreError::Away(lock(&self.missing).clone());
        self.connected.get().cloned().ok_or_else(missing)
    }

    /// Notes that a bucket has rows, if this process has not yet.
    async fn note_bucket(
        &self,
        connected: &Shared,
        list: List,
        bucket: EpochMillis,
    ) -> Result<(), StoreError> {
        if lock(&self.noted).contains(&(list, bucket)) {
            return Ok(());
        }
        // A list's day may be to come, and ScyllaDB takes nothing that is written days ahead.
        let written = written_at(bucket.min(self.clock.wall()));
        let values = (list.name(), time_column(bucket), written);
        execute(&connected.session, &connected.statements.insert_bucket, values).await?;
        let mut noted = lock(&self.noted);
        if noted.len() >= limits::BUCKETS_NOTED_MAX {
            noted.clear();
        }
        noted.insert((list, bucket));
        Ok(())
    }
}

/// Asks every second, and tells what changed. The driver reconnects by itself.
async fn watch(connected: &Shared, progress: impl Fn(Progress)) -> Result<(), OpenError> {
    let mut told = Progress::Serving;
    loop {
        tokio::time::sleep(limits::WATCH_PACE).await;
        let asked =
            rows_of::<(Option<i32>,)>(&connected.session, &connected.statements.probe, ()).await;
        let seen = match asked {
            Ok(rows) if rows.is_empty() => {
                Progress::Failed("the keyspace was emptied under this node".to_owned())
            }
            Ok(_) => Progress::Serving,
            Err(StoreError::Away(reason)) => Progress::Away(reason),
            Err(StoreError::Failed(reason)) => Progress::Failed(reason),
        };
        // Reasons may differ each time; the first is told.
        if std::mem::discriminant(&seen) != std::mem::discriminant(&told) {
            match &seen {
                Progress::Serving => tracing::info!("the store is back"),
                Progress::Away(reason) => tracing::warn!(reason, "the store is away"),
                Progress::Failed(reason) => tracing::error!(reason, "the store failed"),
            }
            progress(seen.clone());
            told = seen;
        }
    }
}

#[async_trait]
impl Store for ScyllaStore {
    async fn put_outbox(&self, row: &OutboxRow) -> Result<(), StoreError> {
        outbox::put(self, &self.connected()?, row).await
    }

    async fn remove_outbox(&self, row: &OutboxRow) -> Result<(), StoreError> {
        outbox::mark(&self.connected()?, row).await
    }

    async fn outbox(&self, limit: usize) -> Result<Vec<OutboxRow>, StoreError> {
        outbox::open(self, &self.connected()?, limit).await
    }

    async fn claim_broadcast(&self, broadcast: &Broadcast) -> Result<Claim, StoreError> {
        let connected = self.connected()?;
        let Connected { session, statements } = &*connected;
        let token = Uuid::new_v4();
        let insert = Insert {
            session,
            insert: &statements.insert_broadcast,
            values: NewBroadcast::new(broadcast, Some(token)),
            read_back: &statements.broadcast_claim,
            id: id_column(broadcast.id),
            token,
        };
        if insert.run().await? == Claim::Taken {
            return Ok(Claim::Taken);
        }
        // Only now the id is ours. Without a status nobody looks for these.
        write_audience(&connected, broadcast).await?;
        Ok(Claim::Applied)
    }

    async fn create_status(&self, id: BroadcastId, status: Status) -> Result<Claim, StoreError> {
        let connected = self.connected()?;
        let Connected { session, statements } = &*connected;
        let times = times_of(&connected, id).await?.ok_or_else(|| {
            StoreError::Failed(format!("broadcast {id} has no content to give a status to"))
        })?;
        tokio::try_join!(
            lists::enter(self, &connected, id, times, status),
            endings::enter(self, &connected, id, times, status),
        )?;
        let token = Uuid::new_v4();
        let changed_at = time_column(self.clock.wall());
        let insert = Insert {
            session,
            insert: &statements.insert_status,
            values: (id_column(id), token, status.word(), changed_at),
            read_back: &statements.status_claim,
            id: id_column(id),
            token,
        };
        insert.run().await
    }

    async fn broadcast(&self, id: BroadcastId) -> Result<Option<BroadcastRow>, StoreError> {
        row(&self.connected()?, id).await
    }

    async fn broadcasts(
        &self,
        filter: ListFilter,
        after: Option<ListPlace>,
        limit: usize,
    ) -> Result<Vec<BroadcastRow>, StoreError> {
        lists::page(&self.connected()?, filter, after, limit).await
    }
}

/// The chunks of a large audience, each in a partition of its own.
async fn write_audience(connected: &Shared, broadcast: &Broadcast) -> Result<(), StoreError> {
    let chunks = chunks_of(&broadcast.target.ids);
    let written = written_at(broadcast.created_at);
    let id = id_column(broadcast.id);
    let numbered: Vec<(i32, Vec<String>)> =
        (0..).zip(chunks.iter().map(|ids| ids.to_vec())).collect();
    each(numbered, |(number, ids)| {
        let connected = connected.clone();
        async move {
            let insert = &connected.statements.insert_audience;
            execute(&connected.session, insert, (id, number, ids, written)).await
        }
    })
    .await
    .map(drop)
}

/// The times by which a broadcast is listed; `None` without content.
async fn times_of(connected: &Shared, id: BroadcastId) -> Result<Option<Times>, StoreError> {
    let (session, statement) = (&connected.session, &connected.statements.broadcast_times);
    let times = rows_of::<TimesColumns>(session, statement, (id_column(id),)).await?;
    times.into_iter().next().map(TimesColumns::read).transpose()
}

/// `None` without a status: it does not exist.
async fn row(connected: &Shared, id: BroadcastId) -> Result<Option<BroadcastRow>, StoreError> {
    let Connected { session, statements } = &**connected;
    let key = (id_column(id),);
    let (status, content) = tokio::try_join!(
        rows_of::<(Option<String>,)>(session, &statements.status, key),
        rows_of::<BroadcastColumns>(session, &statements.broadcast, key),
    )?;
    // A row whose word is null is the rest of one that was removed.
    let Some(word) = status.into_iter().next().and_then(|(word,)| word) else { return Ok(None) };
    let Some(columns) = content.into_iter().next() else { return Ok(None) };
    let chunks = each(0..columns.chunks(), |number| {
        let connected = connected.clone();
        async move {
            let statement = &connected.statements.audience;
            let values = (id_column(id), number);
            let rows = rows_of::<(Vec<String>,)>(&connected.session, statement, values).await?;
            Ok(rows.into_iter().next().map(|(ids,)| ids).unwrap_or_default())
        }
    })
    .await?;
    Ok(Some(BroadcastRow { broadcast: columns.read(chunks)?, status: read_status(&word)? }))
}

/// What is guarded here is whole whoever panicked while holding it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
