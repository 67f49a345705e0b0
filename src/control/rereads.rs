//! Reads parts of the log again for the shards that ask, beside what is read for all of them.
//!
//! A shard asks for one part at a time, and is answered in any case: what the log does not have, or
//! can't give for a while, it is told.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::base::Partition;
use crate::domain::{Reread, Unread};
use crate::lane::{RefusalReason, Sender, ToShard};
use crate::limits::keeping::FULL_LANE_WAIT;
use crate::limits::log::{FETCH_WAIT, RETRY_WAIT_FIRST, RETRY_WAIT_MAX};
use crate::limits::shard::{REREAD_BYTES, REREAD_TIME};
use crate::ports::{Backoff, Batch, Log, LogError, Want};

/// Takes what the shards ask for. Never waits.
#[derive(Clone)]
pub struct RereadDesk(Vec<mpsc::Sender<Reread>>);

/// The work behind the desk.
pub struct Rereads {
    log: Arc<dyn Log>,
    shards: Vec<(mpsc::Receiver<Reread>, Sender<ToShard>)>,
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
/// their order.
pub fn rereads(log: Arc<dyn Log>, shards: Vec<Sender<ToShard>>) -> (RereadDesk, Rereads) {
    let (mut desks, mut workers) = (Vec::new(), Vec::new());
    for shard in shards {
        let (desk, asked) = mpsc::channel(1);
        desks.push(desk);
        workers.push((asked, shard));
    }
    (RereadDesk(desks), Rereads { log, shards: workers })
}

impl Rereads {
    /// Works until every desk is gone.
    pub async fn run(self) {
        let mut workers = tokio::task::JoinSet::new();
        for (mut asked, shard) in self.shards {
            let log = self.log.clone();
            workers.spawn(async move {
                while let Some(Reread { pass, from }) = asked.recv().await {
                    let batches =
                        read(&*log, &from.into_iter().map(want).collect::<Vec<_>>()).await;
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

/// Some records from these places on.
async fn read(log: &dyn Log, wants: &[Want]) -> Result<Vec<Batch>, Unread> {
    let began = Instant::now();
    let mut backoff = Backoff::new(RETRY_WAIT_FIRST, RETRY_WAIT_MAX);
    loop {
        match log.fetch(wants, REREAD_BYTES, FETCH_WAIT).await {
            Ok(batches) => return Ok(batches),
            Err(LogError::OutOfRange { .. }) => return Err(Unread::Gone),
            Err(LogError::Away(_)) if began.elapsed() < REREAD_TIME => {
                tokio::time::sleep(backoff.wait()).await;
            }
            Err(error) => {
                tracing::debug!(%error, "what the rings have lost can't be read");
                return Err(Unread::Away);
            }
        }
    }
}
