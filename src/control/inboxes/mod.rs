//! What the store keeps for users: answers the shards' questions, and notes what they tell.
//!
//! Both are bounded. A question that finds no room or no store is answered with nothing, and the
//! client is put off; a note that finds none is dropped and counted, which costs a repetition and
//! never a message.

mod backlog;
mod kept;
mod known;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Mutex, Notify, mpsc};

use crate::base::{BroadcastId, UserId};
use crate::domain::{Backlog, Note};
use crate::lane::{Ask, Sender, ToShard};
use crate::limits::keeping as limits;
use crate::limits::shard::ASK_TIME;
use crate::ports::Backoff;

pub use kept::{KeptParts, KeptStore, Unavailable};

/// Takes what the shards ask and tell. Cheap to clone; never waits.
#[derive(Clone)]
pub struct InboxDesk {
    asks: mpsc::Sender<(Instant, Ask)>,
    notes: mpsc::Sender<Vec<Note>>,
    shards: Vec<Sender<ToShard>>,
    /// Messages of notes that are not durable yet.
    waiting: Arc<Waiting>,
    dropped: Arc<AtomicU64>,
    kept: Arc<KeptStore>,
}

/// Notes that are not durable yet.
#[derive(Debug, Default)]
struct Waiting {
    /// Messages of them.
    messages: AtomicU64,
    /// How many of each user. Whoever asks for a user waits for these, within reason.
    users: std::sync::Mutex<HashMap<UserId, usize>>,
    done: Notify,
}

impl Waiting {
    fn begin(&self, notes: &[Note]) {
        self.messages.fetch_add(1, Ordering::AcqRel);
        let mut users = self.lock();
        notes.iter().for_each(|note| *users.entry(note.user().clone()).or_default() += 1);
    }

    fn end(&self, notes: &[Note]) {
        self.messages.fetch_sub(1, Ordering::AcqRel);
        let mut users = self.lock();
        for note in notes {
            if let Some(count) = users.get_mut(note.user()) {
                *count -= 1;
                if *count == 0 {
                    users.remove(note.user());
                }
            }
        }
        drop(users);
        self.done.notify_waiters();
    }

    fn is_empty(&self) -> bool {
        self.messages.load(Ordering::Acquire) == 0
    }

    /// Waits until none of this user's waits, but not for long.
    async fn settled(&self, user: &UserId) {
        let _ = tokio::time::timeout(limits::NOTES_BEFORE_ASK, async {
            loop {
                let done = self.done.notified();
                if !self.lock().contains_key(user) {
                    return;
                }
                done.await;
            }
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, usize>> {
        // A count that is off costs a wait.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work behind the desk.
pub struct Inboxes {
    kept: Arc<KeptStore>,
    shards: Vec<Sender<ToShard>>,
    asks: Mutex<mpsc::Receiver<(Instant, Ask)>>,
    notes: Mutex<mpsc::Receiver<Vec<Note>>>,
    waiting: Arc<Waiting>,
}

impl InboxDesk {
    /// A question; it is answered in any case.
    pub fn take_ask(&self, ask: Ask) {
        let Err(refused) = self.asks.try_send((Instant::now(), ask)) else { return };
        let (_, ask) = refused.into_inner();
        // A lane that is full has the shard put the client off by itself, later.
        if let Some(shard) = self.shards.get(usize::from(ask.shard)) {
            let _ = shard.try_send(ToShard::Backlog { key: ask.key, backlog: None });
        }
    }

    pub fn take_notes(&self, notes: Vec<Note>) {
        let count = notes.len() as u64;
        self.waiting.begin(&notes);
        if let Err(refused) = self.notes.try_send(notes) {
            self.waiting.end(&refused.into_inner());
            self.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// These broadcasts have ended: what is remembered of them does not say so.
    pub fn forget(&self, ids: &[BroadcastId]) {
        self.kept.forget(ids);
    }

    /// Waits, but not for ever, until what has been told is durable. `is_told`: nothing is on its
    /// way to this desk any more.
    pub async fn settle(&self, is_told: impl Fn() -> bool) {
        let began = Instant::now();
        let is_done = || is_told() && self.waiting.is_empty();
        let mut was_done = false;
        while began.elapsed() < limits::SETTLE_TIME {
            // Between a lane and this desk a message is in neither for a moment.
            if is_done() && std::mem::replace(&mut was_done, true) {
                return;
            }
            tokio::time::sleep(limits::SETTLE_LOOK).await;
        }
        tracing::warn!("not all of what has reached users could be noted");
    }
}

/// A desk, and the work behind it, which runs until it is dropped. `shards`: a lane to each, in
/// their order. `notes_dropped` counts notes that find no room.
pub fn inboxes(
    kept: KeptStore,
    shards: Vec<Sender<ToShard>>,
    notes_dropped: Arc<AtomicU64>,
) -> (InboxDesk, Inboxes) {
    let (asks_in, asks) = mpsc::channel(limits::ASKS_MAX);
    let (notes_in, notes) = mpsc::channel(limits::NOTES_WAITING_MAX);
    let waiting = Arc::<Waiting>::default();
    let kept = Arc::new(kept);
    let desk = InboxDesk {
        asks: asks_in,
        notes: notes_in,
        shards: shards.clone(),
        waiting: waiting.clone(),
        dropped: notes_dropped,
        kept: kept.clone(),
    };
    let (asks, notes) = (Mutex::new(asks), Mutex::new(notes));
    (desk, Inboxes { kept, shards, asks, notes, waiting })
}

impl Inboxes {
    /// Works until every desk is gone. `warmed`: what all users share has been read; until then who
    /// connects may be put off.
    pub async fn run(self, warmed: impl FnOnce() + Send + 'static) {
        let inboxes = Arc::new(self);
        let mut workers = tokio::task::JoinSet::new();
        let reader = inboxes.clone();
        workers.spawn(async move {
            let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
            while let Err(error) = reader.kept.warm().await {
                tracing::debug!(%error, "what all users share can't be read ahead");
                tokio::time::sleep(backoff.wait()).await;
            }
            warmed();
        });
        for _ in 0..limits::ASKS_AT_ONCE {
            let inboxes = inboxes.clone();
            workers.spawn(async move {
                loop {
                    let next = inboxes.asks.lock().await.recv().await;
                    let Some((asked_at, ask)) = next else { return };
                    inboxes.answer(asked_at, ask).await;
                }
            });
        }
        for _ in 0..limits::NOTES_AT_ONCE {
            let inboxes = inboxes.clone();
            workers.spawn(async move {
                loop {
                    let next = inboxes.notes.lock().await.recv().await;
                    let Some(notes) = next else { return };
                    inboxes.keep(&notes).await;
                    inboxes.waiting.end(&notes);
                }
            });
        }
        drop(inboxes);
        while workers.join_next().await.is_some() {}
    }

    async fn answer(&self, began: Instant, ask: Ask) {
        let Some(left) = ASK_TIME.checked_sub(began.elapsed()) else {
            return; // The shard has put the client off.
        };
        self.waiting.settled(&ask.user).await;
        let found = tokio::time::timeout(left, self.backlog(&ask)).await;
        if found.is_err() {
            tracing::debug!("what is kept for a user takes too long");
        }
        let backlog = found.ok().map(Box::new);
        let Some(shard) = self.shards.get(usize::from(ask.shard)) else { return };
        let mut answer = ToShard::Backlog { key: ask.key, backlog };
        while let Err(refusal) = shard.try_send(answer) {
            if began.elapsed() > ASK_TIME {
                return; // The shard has put the client off.
            }
            answer = refusal.item;
            tokio::time::sleep(limits::FULL_LANE_WAIT).await;
        }
    }

    /// Asks again while log or store are away: what passes soon, nobody notices.
    async fn backlog(&self, ask: &Ask) -> Backlog {
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        loop {
            match self.kept.backlog(ask).await {
                Ok(backlog) => return backlog,
                Err(error) => tracing::debug!(%error, "what is kept for a user can't be had"),
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Makes notes durable, as long as that takes; more of them wait meanwhile, or are dropped.
    async fn keep(&self, notes: &[Note]) {
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        while let Err(error) = self.kept.keep(notes).await {
            tracing::debug!(%error, "notes have to wait");
            tokio::time::sleep(backoff.wait()).await;
        }
    }
}
