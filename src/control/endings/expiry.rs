//! Expires broadcasts whose time is over: each share of them on the node that owns its partition of
//! the group topic.
//!
//! That nothing of them begins any more follows from their `expiresAt` by itself; here their status
//! follows, and word to the users who had the message. Those may be a million, so that is done
//! behind: it holds up no other broadcast's end. While more is due, the next look is at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{EndError, Ender};
use crate::base::{BroadcastId, End};
use crate::control::unfinished::UnderWay;
use crate::limits::expiry as limits;
use crate::ports::{Backoff, Bucket, Due, Ending, Log, Owned, Ownership, buckets_of, join_all};

/// Runs until the process ends.
pub struct Expiry {
    pub ender: Arc<Ender>,
    pub ownership: Arc<dyn Ownership>,
    pub log: Arc<dyn Log>,
}

/// Where it stands.
struct Looks {
    telling: Telling,
    /// The share that the next look begins with, so that each has its turn.
    first: usize,
    /// Broadcasts that are ended together: one, while the last could not be.
    at_once: usize,
}

/// Broadcasts that have expired and whose users are being told.
#[derive(Default)]
struct Telling {
    ids: HashMap<BroadcastId, Bucket>,
    tasks: JoinSet<BroadcastId>,
}

impl Telling {
    fn of(&self, share: Bucket) -> usize {
        self.ids.values().filter(|of| **of == share).count()
    }

    fn room(&self) -> usize {
        limits::TELLING_MAX.saturating_sub(self.ids.len())
    }
}

impl Expiry {
    pub async fn run(self) {
        let mut owned = Owned::new();
        let telling = Telling::default();
        let mut looks = Looks { telling, first: 0, at_once: limits::BEGUN_AT_ONCE };
        let mut backoff = Backoff::new(limits::LOOK, limits::RETRY_WAIT_MAX);
        let mut look_at = Instant::now();
        loop {
            // After a full one the next look reads all again, so it waits until that is worth it.
            let has_room = looks.telling.room() >= limits::TELLING_MAX / 2;
            tokio::select! {
                now_owned = self.ownership.owned(&owned) => {
                    owned = now_owned;
                    continue;
                }
                Some(done) = looks.telling.tasks.join_next() => {
                    // One that panicked is looked after at the next start.
                    if let Ok(id) = done {
                        looks.telling.ids.remove(&id);
                    }
                    continue;
                }
                () = tokio::time::sleep_until(look_at), if has_room => {}
            }
            let now = Instant::now();
            look_at = match self.pass(&owned, &mut looks).await {
                Ok(is_more) => {
                    backoff.reset();
                    looks.at_once = limits::BEGUN_AT_ONCE;
                    if is_more { now } else { now + limits::LOOK }
                }
                Err(error) => {
                    tracing::debug!(%error, "broadcasts that are due to expire have to wait");
                    looks.at_once = 1;
                    Instant::now() + backoff.wait()
                }
            };
        }
    }

    /// Expires what is due in the shares of these partitions, of each share some; whether there is
    /// more.
    async fn pass(&self, owned: &Owned, looks: &mut Looks) -> Result<bool, EndError> {
        if owned.is_empty() {
            return Ok(false);
        }
        let shape = self.log.shape().await?;
        let mut shares = buckets_of(owned.keys().copied(), &shape);
        let first = looks.first % shares.len().max(1);
        shares.rotate_left(first);
        let mut is_more = false;
        for (number, share) in shares.into_iter().enumerate() {
            if looks.telling.room() == 0 {
                looks.first = first + number;
                return Ok(true);
            }
            is_more |= self.expire(share, looks).await?;
        }
        Ok(is_more)
    }

    /// Whether more is due of this share.
    async fn expire(&self, share: Bucket, looks: &mut Looks) -> Result<bool, EndError> {
        let ender = &self.ender;
        let telling = &mut looks.telling;
        // Those that are being told of stand before the others.
        let limit = telling.of(share) + limits::ROWS_MAX.min(telling.room());
        let mut due = ender.endings.due(share, ender.now(), limit).await?;
        let is_full = due.len() == limit;
        // One may be here twice, and then has its second turn later.
        let mut ids = HashSet::new();
        due.retain(|due| !telling.ids.contains_key(&due.id) && ids.insert(due.id));
        for due in due.chunks(looks.at_once) {
            let mut failed = None;
            for begun in join_all(due.iter().map(|due| begin(ender, *due))).await {
                match begun {
                    Ok(begun) => {
                        telling.ids.insert(begun.due.id, share);
                        telling.tasks.spawn(finish(ender.clone(), begun));
                    }
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(is_full && !due.is_empty())
    }
}

/// One that all nodes know to have expired, unless it has ended otherwise.
struct Begun {
    due: Due,
    ending: Option<Ending>,
    under_way: UnderWay,
}

async fn begin(ender: &Ender, due: Due) -> Result<Begun, EndError> {
    let mut under_way = ender.unfinished.begin(due.id);
    // What fails is due again, whatever else it has left.
    under_way.is_done = true;
    let at = ender.unfinished.time_of_row(ender.now());
    let ending = Ending { id: due.id, at, how: End::Expired };
    let is_ended = ender.begin(&ending).await?;
    Ok(Begun { due, ending: is_ended.then_some(ending), under_way })
}

/// Tells the users, and marks the row.
async fn finish(ender: Arc<Ender>, begun: Begun) -> BroadcastId {
    let Begun { due, ending, under_way } = begun;
    let work = async {
        if let Some(ending) = &ending {
            ender.remove(ending).await?;
        }
        Ok::<_, EndError>(ender.endings.mark_due(&due).await?)
    };
    if let Err(error) = work.await {
        tracing::debug!(broadcast = due.id.get(), %error, "users are told of its end later");
        tokio::time::sleep(limits::RETRY_WAIT_MAX).await;
    }
    drop(under_way);
    due.id
}
