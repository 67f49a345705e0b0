//! The one thread that writes: gathers what waits, commits and syncs it as one batch, answers.
//!
//! Conditional writes are decided here, where nobody else writes: that is the lightweight
//! transaction of the embedded store. Group commit after D. DeWitt et al., "Implementation
//! Techniques for Main Memory Database Systems" (1984), section 5.2.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, PersistMode, Slice};
use tokio::sync::{mpsc, oneshot, watch};

use super::rows::{self, RowError};
use super::{Keyspaces, log};
use crate::base::{BroadcastId, EpochMillis, LogShape, Partition, Position, Status, Topic};
use crate::domain::may_become;
use crate::limits::log as limits;
use crate::ports::{Change, Claim, Clock, LogError, MovedRecord, StoreError};

/// The durable end of every partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    shape: LogShape,
    offsets: Vec<u64>,
}

/// A row to write, or with `None` to remove.
pub(super) struct Row {
    pub keyspace: Keyspace,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// A row that is joined with the one that stands there. Its keyspace holds only such rows.
pub(super) struct JoinedRow {
    pub keyspace: Keyspace,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub join: Join,
}

/// Makes one row of two: the same in any order, and however often one of them comes.
pub(super) type Join = fn(stored: &[u8], new: &[u8]) -> Result<Vec<u8>, RowError>;

/// What a row's writing depends on.
pub(super) enum Condition {
    None,
    /// The first row's key is free.
    Absent,
}

/// A change of a status, and the rows that are written with it.
pub(super) struct StatusChange {
    pub id: BroadcastId,
    pub to: Status,
    pub rows: Vec<Row>,
}

enum Operation {
    Append {
        records: Vec<MovedRecord>,
        reply: oneshot::Sender<Result<Vec<Position>, LogError>>,
    },
    Write {
        rows: Vec<Row>,
        condition: Condition,
        reply: oneshot::Sender<Result<Claim, StoreError>>,
    },
    Change {
        change: StatusChange,
        reply: oneshot::Sender<Result<Change, StoreError>>,
    },
    Join {
        rows: Vec<JoinedRow>,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// Hands operations to the committing thread, which ends with the last of these.
#[derive(Clone)]
pub(super) struct Committer {
    operations: mpsc::Sender<Operation>,
    ends: watch::Receiver<Arc<Ends>>,
    failure: watch::Receiver<Option<String>>,
}

/// Starts the thread. `ends` is what the log holds.
pub(super) fn start(
    database: Database,
    keyspaces: Keyspaces,
    ends: Ends,
    clock: Arc<dyn Clock>,
) -> std::io::Result<Committer> {
    let (operations, inbox) = mpsc::channel(limits::COMMIT_QUEUE_MAX);
    let (publish, published) = watch::channel(Arc::new(ends.clone()));
    let (fail, failure) = watch::channel(None);
    let writer = Writer { database, keyspaces, ends, publish, fail, clock };
    std::thread::Builder::new()
        .name("embedded-commit".to_owned())
        .spawn(move || writer.run(inbox))?;
    Ok(Committer { operations, ends: published, failure })
}

impl Ends {
    pub fn new(shape: &LogShape) -> Self {
        let count = shape.all_partitions().chain(shape.dead_partitions()).count();
        Self { shape: *shape, offsets: vec![0; count] }
    }

    pub fn of(&self, partition: Partition) -> u64 {
        self.offsets.get(self.slot(partition)).copied().unwrap_or(0)
    }

    pub fn set(&mut self, partition: Partition, end: u64) {
        let slot = self.slot(partition);
        self.offsets[slot] = end;
    }

    fn slot(&self, partition: Partition) -> usize {
        let topics = Topic::EVERY.into_iter().take_while(|topic| *topic != partition.topic);
        let before: usize = topics.map(|topic| usize::from(self.shape.partitions(topic))).sum();
        before + usize::from(partition.index)
    }
}

impl Committer {
    pub fn ends(&self) -> watch::Receiver<Arc<Ends>> {
        self.ends.clone()
    }

    /// Waits for the first batch that could not be written; then none is any more.
    pub fn failure(&self) -> impl Future<Output = String> + Send + use<> {
        let mut failure = self.failure.clone();
        async move {
            let reason = failure.wait_for(Option::is_some).await;
            match reason.ok().and_then(|reason| reason.clone()) {
                Some(reason) => reason,
                // The thread ended, as it does when the node does.
                None => std::future::pending().await,
            }
        }
    }

    pub async fn append(&self, records: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
        let (reply, answer) = oneshot::channel();
        let gone = || LogError::Failed("the embedded log has stopped".to_owned());
        let sent = self.operations.send(Operation::Append { records, reply }).await;
        sent.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    pub async fn write(&self, rows: Vec<Row>, condition: Condition) -> Result<Claim, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Failed("the embedded store has stopped".to_owned());
        let sent = self.operations.send(Operation::Write { rows, condition, reply }).await;
        sent.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    pub async fn change(&self, change: StatusChange) -> Result<Change, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Failed("the embedded store has stopped".to_owned());
        let sent = self.operations.send(Operation::Change { change, reply }).await;
        sent.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// On an error some of the rows may have been joined; doing it again does no harm.
    pub async fn join(&self, rows: Vec<JoinedRow>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Failed("the embedded store has stopped".to_owned());
        let sent = self.operations.send(Operation::Join { rows, reply }).await;
        sent.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Writer {
    database: Database,
    keyspaces: Keyspaces,
    ends: Ends,
    publish: watch::Sender<Arc<Ends>>,
    fail: watch::Sender<Option<String>>,
    clock: Arc<dyn Clock>,
}

/// An operation whose effects are in the batch.
enum Waiting {
    Append(oneshot::Sender<Result<Vec<Position>, LogError>>, Vec<Position>),
    Write(oneshot::Sender<Result<Claim, StoreError>>, Claim),
    Change(oneshot::Sender<Result<Change, StoreError>>, Change),
    Join(oneshot::Sender<Result<(), StoreError>>),
}

/// Rows that are in the batch, or with `None` are removed by it, by keyspace and key.
type Written = HashMap<(u64, Bytes), Option<Slice>>;

/// Joined rows of one batch by keyspace and key, so that each is put into it once.
type JoinedRows = HashMap<(u64, Vec<u8>), (Keyspace, Vec<u8>)>;

impl Writer {
    fn run(mut self, mut inbox: mpsc::Receiver<Operation>) {
        while let Some(first) = inbox.blocking_recv() {
            let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
            let mut waiting = Vec::new();
            let mut written = Written::new();
            let mut joined = JoinedRows::new();
            let mut bytes = 0;
            let mut ends = self.ends.clone();
            let mut next = Some(first);
            while let Some(operation) = next {
                match operation {
                    Operation::Append { records, reply } => {
                        let places = self.put_records(&mut batch, &mut ends, records, &mut bytes);
                        waiting.push(Waiting::Append(reply, places));
                    }
                    Operation::Write { rows, condition, reply } => {
                        match self.put_rows(&mut batch, &mut written, rows, &condition) {
                            Ok(claim) => waiting.push(Waiting::Write(reply, claim)),
                            Err(error) => drop(reply.send(Err(error))),
                        }
                    }
                    Operation::Change { change, reply } => {
                        match self.change_status(&mut batch, &mut written, change) {
                            Ok(change) => waiting.push(Waiting::Change(reply, change)),
                            Err(error) => drop(reply.send(Err(error))),
                        }
                    }
                    Operation::Join { rows, reply } => {
                        match join_rows(&mut joined, rows, &mut bytes) {
                            Ok(()) => waiting.push(Waiting::Join(reply)),
                            Err(error) => drop(reply.send(Err(error))),
                        }
                    }
                }
                next = if bytes < limits::COMMIT_BYTES_MAX { inbox.try_recv().ok() } else { None };
            }
            for ((_, key), (keyspace, value)) in joined {
                batch.insert(&keyspace, key, value);
            }
            // A database that could not write once writes nothing more, and no longer says why.
            let failed = self.fail.borrow().clone();
            let committed = match failed {
                Some(reason) => Err(format!("it takes nothing since {reason}")),
                None => batch.commit().map_err(|error| error.to_string()),
            };
            if committed.is_ok() && ends != self.ends {
                self.ends = ends;
                self.publish.send_replace(Arc::new(self.ends.clone()));
            }
            if let Err(reason) = &committed {
                // The first reason stands: what follows only says that there was one.
                self.fail.send_if_modified(|known| {
                    let is_first = known.is_none();
                    known.get_or_insert_with(|| reason.clone());
                    is_first
                });
            }
            answer(waiting, &committed);
        }
    }

    fn put_records(
        &self,
        batch: &mut fjall::OwnedWriteBatch,
        ends: &mut Ends,
        records: Vec<MovedRecord>,
        bytes: &mut usize,
    ) -> Vec<Position> {
        let appended_at: EpochMillis = self.clock.wall();
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            let partition = record.to;
            let offset = ends.of(partition);
            let value = log::encode(&record, appended_at);
            *bytes += value.len();
            batch.insert(&self.keyspaces.log, log::key(partition, offset), value);
            ends.set(partition, offset + 1);
            places.push(Position { partition, offset });
        }
        places
    }

    /// Puts the rows into the batch, if the condition holds for what is stored and for what is in
    /// the batch already.
    fn put_rows(
        &self,
        batch: &mut fjall::OwnedWriteBatch,
        written: &mut Written,
        rows: Vec<Row>,
        condition: &Condition,
    ) -> Result<Claim, StoreError> {
        if let (Condition::Absent, Some(first)) = (condition, rows.first()) {
            let stored = first.keyspace.contains_key(&first.key);
            let stored = stored.map_err(|error| StoreError::Failed(error.to_string()))?;
            if stored || written.contains_key(&first.place()) {
                return Ok(Claim::Taken);
            }
        }
        for row in rows {
            let place = row.place();
            let value = row.value.map(Slice::from);
            match value.clone() {
                Some(value) => batch.insert(&row.keyspace, row.key, value),
                None => batch.remove(&row.keyspace, row.key),
            }
            written.insert(place, value);
        }
        Ok(Claim::Applied)
    }

    /// Changes a status as it may, by what the batch or else the database says of it.
    fn change_status(
        &self,
        batch: &mut fjall::OwnedWriteBatch,
        written: &mut Written,
        StatusChange { id, to, mut rows }: StatusChange,
    ) -> Result<Change, StoreError> {
        let row = Row {
            keyspace: self.keyspaces.status.clone(),
            key: rows::id_key(id).to_vec(),
            value: Some(rows::write_status(to)),
        };
        let stands = match written.get(&row.place()) {
            Some(value) => value.clone(),
            None => {
                let stored = row.keyspace.get(&row.key);
                stored.map_err(|error| StoreError::Failed(error.to_string()))?
            }
        };
        let Some(stands) = stands else { return Ok(Change::Missing) };
        let stands = rows::read_status(&stands)?;
        if stands == to {
            return Ok(Change::Already);
        }
        if !may_become(Some(stands), to) {
            return Ok(Change::Refused(stands));
        }
        rows.push(row);
        self.put_rows(batch, written, rows, &Condition::None)?;
        Ok(Change::Done)
    }
}

impl Row {
    fn place(&self) -> (u64, Bytes) {
        (self.keyspace.id(), Bytes::copy_from_slice(&self.key))
    }
}

/// Joins the rows with what this batch holds of them already, or else with what is stored.
fn join_rows(
    joined: &mut JoinedRows,
    rows: Vec<JoinedRow>,
    bytes: &mut usize,
) -> Result<(), StoreError> {
    for JoinedRow { keyspace, key, value, join } in rows {
        *bytes += key.len() + value.len();
        match joined.entry((keyspace.id(), key)) {
            Entry::Occupied(mut entry) => {
                let (_, stands) = entry.get_mut();
                *stands = join(stands, &value)?;
            }
            Entry::Vacant(entry) => {
                let stored = keyspace.get(&entry.key().1);
                let stored = stored.map_err(|error| StoreError::Failed(error.to_string()))?;
                let value = match stored {
                    Some(stored) => join(&stored, &value)?,
                    None => value,
                };
                entry.insert((keyspace, value));
            }
        }
    }
    Ok(())
}

/// Tells everybody. Who no longer waits is not told.
fn answer(waiting: Vec<Waiting>, committed: &Result<(), String>) {
    for waiting in waiting {
        match (waiting, committed) {
            (Waiting::Append(reply, places), Ok(())) => drop(reply.send(Ok(places))),
            (Waiting::Write(reply, claim), Ok(())) => drop(reply.send(Ok(claim))),
            (Waiting::Append(reply, _), Err(reason)) => {
                drop(reply.send(Err(LogError::Failed(reason.clone()))));
            }
            (Waiting::Write(reply, _), Err(reason)) => {
                drop(reply.send(Err(StoreError::Failed(reason.clone()))));
            }
            (Waiting::Change(reply, change), Ok(())) => drop(reply.send(Ok(change))),
            (Waiting::Change(reply, _), Err(reason)) => {
                drop(reply.send(Err(StoreError::Failed(reason.clone()))));
            }
            (Waiting::Join(reply), Ok(())) => drop(reply.send(Ok(()))),
            (Waiting::Join(reply), Err(reason)) => {
                drop(reply.send(Err(StoreError::Failed(reason.clone()))));
            }
        }
    }
}
