//! The embedded log and store: one fjall database in the data directory, for one node.
//!
//! All writes go through one thread (`commit.rs`), which gathers what waits into one batch and
//! syncs it once; only what is synced is acknowledged, read or served. A failed sync poisons the
//! database: nothing is taken any more, and the node says so, until it is started again.
//!
//! Keyspaces (numbers big-endian; rows are versioned, fields are only added):
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `meta` | `log` | JSON `{v, topicIds, partitions}` |
//! | `log` | topic (1), partition (2), offset (8) | record, `log.rs` |
//! | `outbox` | broadcast id (8) | JSON `{v, createdAt}` |
//! | `broadcast` | broadcast id (8) | JSON `{v, broadcast}` |
//! | `status` | broadcast id (8) | JSON `{v, status}` |
//! | `checkpoint` | topic (1), partition (2) | JSON `{v, next}` |
//! | `list` | list (1), time (8), id (8), both inverted in newest-first lists | empty |
//! | `inbox` | user id, 0 (1), broadcast id (8) | JSON, `inbox_rows.rs` |
//! | `group_message` | log identity (3), partition (2), offset (8) | JSON, `inbox_rows.rs` |
//! | `dead_letter` | original (16) | JSON, `dead_letter_rows.rs` |
//! | `dead_letter_list` | time (8), original (16), both inverted | empty |
//! | `dead_letter_id` | `dltTopic-partition-offset` | original (16) |
//! | `dead_letter_audit` | time (8), line (16), both inverted | JSON, `audit.rs` |
//! | `cursor` | user id, 0 (1), log identity (3), topic (1), partition (2) | JSON `{v, next}` |
//! | `hole` | log identity (3), topic (1), partition (2), offset (8) | JSON `{v, next, notedAt}` |
//! | `ending` | time (8), broadcast id (8) | JSON, `endings.rs` |
//! | `open_ending` | the same, of those that are not settled | empty |
//! | `due` | share (2), time (8), broadcast id (8) | empty |
//!
//! Rows of the inbox, of group messages, cursors, holes and dead letters are joined with what
//! stands there. Those past their `keepUntil` are no longer read; nothing removes them yet.

mod audit;
mod commit;
mod control;
mod dead_letter_rows;
mod dead_letters;
mod endings;
mod inbox;
mod inbox_rows;
mod log;
mod ownership;
mod parking;
mod rows;
mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::base::{LogIdentity, LogShape};
use crate::ports::{
    Audit, Clock, DeadLetterRows, Descriptors, Endings, Inbox, Log, Ownership, Parking, Store,
};

use commit::Committer;

pub use control::LoneControl;
pub use log::EmbeddedLog;
pub use ownership::EmbeddedOwnership;
pub use store::EmbeddedStore;

/// Where, and how many partitions each topic gets when the log is made.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    pub data_dir: PathBuf,
    pub partitions: u16,
}

/// Why the data directory can't be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "data directory {} is in use by another node; stop that one, or give this one another \
         node.data_dir", .0.display()
    )]
    Locked(PathBuf),
    #[error(
        "data directory {} can't be written: {source}; make it writable for this user, or choose \
         another node.data_dir", .path.display()
    )]
    NotWritable { path: PathBuf, source: io::Error },
    #[error("the disk of data directory {} is full; make room, or move it", .0.display())]
    Full(PathBuf),
    #[error(
        "data directory {} was made with log.partitions = {stored}, the configuration says \
         {configured}; the count can't be changed afterwards", .path.display()
    )]
    Partitions { path: PathBuf, stored: u16, configured: u16 },
    #[error("data directory {} was written by a newer release of Corecast", .0.display())]
    Newer(PathBuf),
    #[error(
        "data directory {} can't be opened: {reason}; restore it from a copy, or move it away to \
         begin anew", .path.display()
    )]
    Broken { path: PathBuf, reason: String },
}

/// The open database. Log, store and ownership share it; it closes with the last of them.
pub struct Embedded {
    log: Arc<EmbeddedLog>,
    store: Arc<EmbeddedStore>,
    shape: LogShape,
    checkpoints: Keyspace,
    committer: Committer,
}

/// Handles of the keyspaces.
#[derive(Clone)]
struct Keyspaces {
    meta: Keyspace,
    log: Keyspace,
    outbox: Keyspace,
    broadcast: Keyspace,
    status: Keyspace,
    checkpoint: Keyspace,
    list: Keyspace,
    inbox: Keyspace,
    group_message: Keyspace,
    cursor: Keyspace,
    hole: Keyspace,
    parked: Keyspace,
    served_event: Keyspace,
    dead_letter: Keyspace,
    dead_letter_list: Keyspace,
    dead_letter_id: Keyspace,
    dead_letter_audit: Keyspace,
    ending: Keyspace,
    open_ending: Keyspace,
    due: Keyspace,
}

impl Embedded {
    /// Opens the data directory, or makes it.
    pub fn open(options: &EmbeddedOptions, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let path = &options.data_dir;
        check_writable(path)?;
        let database = Database::builder(path)
            .max_cached_files(Some((Descriptors::of_process().files / 2).max(1)))
            .open()
            .map_err(|error| open_error(path, error))?;
        let keyspaces = Keyspaces::open(&database).map_err(|error| open_error(path, error))?;
        let shape = log_shape(&database, &keyspaces, options)?;
        endings::fill_due(&database, &keyspaces).map_err(|error| open_error(path, error))?;
        let ends = log::ends(&keyspaces.log, &shape).map_err(|error| open_error(path, error))?;
        let committer = commit::start(database, keyspaces.clone(), ends, clock.clone())
            .map_err(|error| open_error(path, error.into()))?;
        Ok(Self {
            log: Arc::new(EmbeddedLog::new(shape, keyspaces.log.clone(), committer.clone())),
            shape,
            checkpoints: keyspaces.checkpoint.clone(),
            store: Arc::new(EmbeddedStore::new(keyspaces, committer.clone(), clock)),
            committer,
        })
    }

    pub fn log(&self) -> Arc<dyn Log> {
        self.log.clone()
    }

    /// By all of its ports.
    pub fn stores(&self) -> Arc<EmbeddedStore> {
        self.store.clone()
    }

    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// For one run of the node. Without `takes_part` it owns nothing, but tells checkpoints.
    pub fn ownership(&self, takes_part: bool) -> Arc<dyn Ownership> {
        let (checkpoints, committer) = (self.checkpoints.clone(), self.committer.clone());
        Arc::new(EmbeddedOwnership::new(self.shape, checkpoints, committer, takes_part))
    }

    pub fn inbox(&self) -> Arc<dyn Inbox> {
        self.store.clone()
    }

    pub fn parking(&self) -> Arc<dyn Parking> {
        self.store.clone()
    }

    pub fn dead_letters(&self) -> Arc<dyn DeadLetterRows> {
        self.store.clone()
    }

    pub fn audit(&self) -> Arc<dyn Audit> {
        self.store.clone()
    }

    pub fn endings(&self) -> Arc<dyn Endings> {
        self.store.clone()
    }

    /// Waits until a write has failed, which poisons the database: the reason. Keeps nothing open.
    pub fn failure(&self) -> impl Future<Output = String> + Send + use<> {
        self.committer.failure()
    }
}

impl Keyspaces {
    fn open(database: &Database) -> fjall::Result<Self> {
        let open = |name| database.keyspace(name, KeyspaceCreateOptions::default);
        Ok(Self {
            meta: open("meta")?,
            log: open("log")?,
            outbox: open("outbox")?,
            broadcast: open("broadcast")?,
            status: open("status")?,
            checkpoint: open("checkpoint")?,
            list: open("list")?,
            inbox: open("inbox")?,
            group_message: open("group_message")?,
            cursor: open("cursor")?,
            hole: open("hole")?,
            parked: open("parked")?,
            served_event: open("served_event")?,
            dead_letter: open("dead_letter")?,
            dead_letter_list: open("dead_letter_list")?,
            dead_letter_id: open("dead_letter_id")?,
            dead_letter_audit: open("dead_letter_audit")?,
            ending: open("ending")?,
            open_ending: open("open_ending")?,
            due: open("due")?,
        })
    }
}

/// fjall reports a directory that can't be written in several ways; this asks plainly.
fn check_writable(path: &Path) -> Result<(), OpenError> {
    let probe = path.join(".corecast-writable");
    let written = std::fs::create_dir_all(path)
        .and_then(|()| std::fs::write(&probe, b"?"))
        .and_then(|()| std::fs::remove_file(&probe));
    written.map_err(|error| open_error(path, error.into()))
}

/// Reads what the log was made with, or makes it.
fn log_shape(
    database: &Database,
    keyspaces: &Keyspaces,
    options: &EmbeddedOptions,
) -> Result<LogShape, OpenError> {
    let path = &options.data_dir;
    let failed = |error: fjall::Error| open_error(path, error);
    let meta = match keyspaces.meta.get(rows::META_LOG).map_err(failed)? {
        Some(bytes) => rows::read_meta(&bytes).map_err(|reason| match reason {
            rows::RowError::Newer(_) => OpenError::Newer(path.clone()),
            rows::RowError::Malformed(reason) => OpenError::Broken { path: path.clone(), reason },
        })?,
        None => {
            let meta = rows::Meta::draw(options.partitions);
            let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(&keyspaces.meta, rows::META_LOG, rows::write_meta(&meta));
            batch.commit().map_err(failed)?;
            meta
        }
    };
    if meta.partitions != options.partitions {
        let (stored, configured) = (meta.partitions, options.partitions);
        return Err(OpenError::Partitions { path: path.clone(), stored, configured });
    }
    Ok(LogShape {
        identity: LogIdentity(meta.identity()),
        selected_partitions: meta.partitions,
        group_partitions: meta.partitions,
    })
}

fn open_error(path: &Path, error: fjall::Error) -> OpenError {
    let path = path.to_owned();
    let source = match error {
        fjall::Error::Locked => return OpenError::Locked(path),
        fjall::Error::InvalidVersion(_) => return OpenError::Newer(path),
        fjall::Error::Io(source) => source,
        other => return OpenError::Broken { path, reason: other.to_string() },
    };
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OpenError::Full(path),
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::NotFound
        | io::ErrorKind::AlreadyExists => OpenError::NotWritable { path, source },
        _ => OpenError::Broken { path, reason: source.to_string() },
    }
}
