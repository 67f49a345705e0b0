//! Reads parts of the log again for the shards that ask, beside what is read for all of them.
//!
//! A shard asks for one part at a time, and is answered in any case: what the log does not have, or
//! can't give for a while, it is told. Shards that need the same are given what one has had read.

mod recent;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{Mutex, mpsc};

use crate::base::Partition;
use crate::domain::{Reread, Unread};
use crate::lane::{RefusalReason, Sender, ToShard};
use crate::limits::keeping::FULL_LANE_WAIT;
use crate::limits::log::{FETCH_WAIT, RETRY_WAIT_FIRST, RETRY_WAIT_MAX};
use crate::limits::rereads as limits;
use crate::ports::{Backoff, Batch, Log, LogError, Want};
use recent::{Recent, bytes_of};

/// Takes what the shards ask for. Never waits.
#[derive(Clone)]
pub struct RereadDesk(Vec<mpsc::Sender<Reread>>);

/// The work behind the desk.
pub struct Rereads {
    reader: Arc<Reader>,
    shards: Vec<(mpsc::Receiver<Reread>, Sender<ToShard>)>,
}

/// Reads for one shard at a time.
struct Reader {
    log: Arc<dyn Log>,
    recent: Mutex<Recent>,
    /// Records that the log was asked for.
    records: Arc<AtomicU64>,
}

impl RereadDesk {
    pub fn take(&self, shard: u16, reread: Reread) {
        // A shard has one question out, so there is room.
        if let Some(desk) = self.0.get(usize::from(shard)) {
            let _ = desk.try_send(reread);
        }
    }
}

/// A desk, and the work behind it, which runs until it is dropped. `shards`: a lane to each, in
/// their order. `records` counts what is read of the log.
pub fn rereads(
    log: Arc<dyn Log>,
    shards: Vec<Sender<ToShard>>,
    records: Arc<AtomicU64>,
) -> (RereadDesk, Rereads) {
    let (mut desks, mut workers) = (Vec::new(), Vec::new());
    for shard in shards {
        let (desk, asked) = mpsc::channel(1);
        desks.push(desk);
        workers.push((asked, shard));
    }
    let reader = Arc::new(Reader { log, recent: Mutex::default(), records });
    (RereadDesk(desks), Rereads { reader, shards: workers })
}

impl Rereads {
    /// Works until every desk is gone.
    pub async fn run(self) {
        let mut workers = tokio::task::JoinSet::new();
        for (mut asked, shard) in self.shards {
            let reader = self.reader.clone();
            workers.spawn(async move {
                loop {
                    let next = tokio::time::timeout(limits::RECENT_TIME, asked.recv()).await;
                    let Reread { pass, from } = match next {
                        Ok(Some(reread)) => reread,
                        Ok(None) => return,
                        Err(_) => {
                            reader.recent.lock().await.forget(Instant::now());
                            continue;
                        }
                    };
                    let batches = reader.read(from.into_iter().map(want).collect()).await;
                    let mut answer = ToShard::Reread { pass, batches };
                    while let Err(refusal) = shard.try_send(answer) {
                        if refusal.reason == RefusalReason::Closed {
                            return;
                        }
                        answer = refusal.item;
                        tokio::time::sleep(FULL_LANE_WAIT).await;
                    }
                }
            });
        }
        while workers.join_next().await.is_some() {}
    }
}

fn want((partition, offset): (Partition, u64)) -> Want {
    Want { partition, offset }
}

impl Reader {
    /// Some records from these places on.
    async fn read(&self, mut wants: Vec<Want>) -> Result<Vec<Batch>, Unread> {
        let mut recent = self.recent.lock().await;
        recent.forget(Instant::now());
        let (mut found, mut bytes) = (Vec::new(), 0);
        wants.retain(|want| {
            let batch = if bytes < limits::BYTES { recent.find(*want) } else { None };
            let is_missing = batch.is_none();
            found.extend(batch.inspect(|batch| bytes += bytes_of(batch)));
            is_missing
        });
        if bytes >= limits::BYTES || wants.is_empty() {
            return Ok(found);
        }
        let read = fetch(&*self.log, &wants).await?;
        let now = Instant::now();
        for batch in &read {
            self.records.fetch_add(batch.records.len() as u64, Ordering::Relaxed);
            if let Some(want) = wants.iter().find(|want| want.partition == batch.partition) {
                recent.put(want.offset, batch.clone(), now);
            }
        }
        found.extend(read);
        Ok(found)
    }
}

async fn fetch(log: &dyn Log, wants: &[Want]) -> Result<Vec<Batch>, Unread> {
    let began = Instant::now();
    let mut backoff = Backoff::new(RETRY_WAIT_FIRST, RETRY_WAIT_MAX);
    loop {
        match log.fetch(wants, limits::BYTES, FETCH_WAIT).await {
            Ok(batches) => return Ok(batches),
            Err(LogError::OutOfRange { .. }) => return Err(Unread::Gone),
            Err(LogError::Away(_)) if began.elapsed() < limits::TIME => {
                tokio::time::sleep(backoff.wait()).await;
            }
            Err(error) => {
                tracing::debug!(%error, "what the rings have lost can't be read");
                return Err(Unread::Away);
            }
        }
    }
}
