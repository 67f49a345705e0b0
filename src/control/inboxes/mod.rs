//! What the store keeps for users: answers the shards' questions, and notes what they tell.
//!
//! Both are bounded. A question that finds no room or no store is answered with nothing, and the
//! client is put off; a note that finds none is dropped and counted, which costs a repetition and
//! never a message.

mod backlog;
mod known;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify, mpsc};

use crate::base::{EpochMillis, LogShape, UserId};
use crate::domain::{Backlog, Note, Row, Served};
use crate::lane::{Ask, Sender, ToShard};
use crate::limits::keeping as limits;
use crate::limits::shard::ASK_TIME;
use crate::ports::{
    Backoff, Clock, Delivery, Inbox, InboxWrite, Log, LogError, Ownership, Progress, StoreError,
};
use known::{Checkpoints, Contents, Groups};

/// Why nothing can be said of what is kept. Each passes.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What it works with.
pub struct InboxParts {
    pub log: Arc<dyn Log>,
    pub ownership: Arc<dyn Ownership>,
    pub inbox: Arc<dyn Inbox>,
    pub clock: Arc<dyn Clock>,
    /// A lane to each shard, in the shards' order.
    pub shards: Vec<Sender<ToShard>>,
    /// No row is of interest for longer.
    pub retention: Duration,
    /// Counts notes that found no room.
    pub notes_dropped: Arc<AtomicU64>,
}

/// Takes what the shards ask and tell. Cheap to clone; never waits.
#[derive(Clone)]
pub struct InboxDesk {
    asks: mpsc::Sender<Ask>,
    notes: mpsc::Sender<Vec<Note>>,
    shards: Vec<Sender<ToShard>>,
    /// Messages of notes that are not durable yet.
    waiting: Arc<Waiting>,
    dropped: Arc<AtomicU64>,
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
    parts: InboxParts,
    checkpoints: Checkpoints,
    contents: Contents,
    groups: Groups,
    asks: Mutex<mpsc::Receiver<Ask>>,
    notes: Mutex<mpsc::Receiver<Vec<Note>>>,
    waiting: Arc<Waiting>,
}

impl InboxDesk {
    /// A question; it is answered in any case.
    pub fn take_ask(&self, ask: Ask) {
        let Err(refused) = self.asks.try_send(ask) else { return };
        let (mpsc::error::TrySendError::Full(ask) | mpsc::error::TrySendError::Closed(ask)) =
            refused;
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

/// A desk, and the work behind it, which runs until it is dropped.
pub fn inboxes(parts: InboxParts) -> (InboxDesk, Inboxes) {
    let (asks_in, asks) = mpsc::channel(limits::ASKS_MAX);
    let (notes_in, notes) = mpsc::channel(limits::NOTES_WAITING_MAX);
    let shards = parts.shards.clone();
    let (waiting, dropped) = (Arc::<Waiting>::default(), parts.notes_dropped.clone());
    let desk =
        InboxDesk { asks: asks_in, notes: notes_in, shards, waiting: waiting.clone(), dropped };
    let inboxes = Inboxes {
        parts,
        checkpoints: Checkpoints::default(),
        contents: Contents::default(),
        groups: Groups::default(),
        asks: Mutex::new(asks),
        notes: Mutex::new(notes),
        waiting,
    };
    (desk, inboxes)
}

impl Inboxes {
    /// Works until every desk is gone.
    pub async fn run(self) {
        let inboxes = Arc::new(self);
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..limits::ASKS_AT_ONCE {
            let inboxes = inboxes.clone();
            workers.spawn(async move {
                loop {
                    let next = inboxes.asks.lock().await.recv().await;
                    let Some(ask) = next else { return };
                    inboxes.answer(ask).await;
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

    async fn answer(&self, ask: Ask) {
        let began = Instant::now();
        let found = tokio::time::timeout(ASK_TIME, self.backlog(&ask)).await;
        let backlog = match found {
            Ok(Ok(backlog)) => Some(Box::new(backlog)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "what is kept for a user can't be had");
                None
            }
            Err(_) => {
                tracing::debug!("what is kept for a user takes too long");
                None
            }
        };
        let Some(shard) = self.parts.shards.get(usize::from(ask.shard)) else { return };
        let mut answer = ToShard::Backlog { key: ask.key, backlog };
        while let Err(refusal) = shard.try_send(answer) {
            if began.elapsed() > ASK_TIME {
                return; // The shard has put the client off.
            }
            answer = refusal.item;
            tokio::time::sleep(limits::FULL_LANE_WAIT).await;
        }
    }

    async fn backlog(&self, ask: &Ask) -> Result<Backlog, Unavailable> {
        self.waiting.settled(&ask.user).await;
        let shape = self.parts.log.shape().await?;
        let (backlog, covered) = backlog::build(self, ask, &shape).await?;
        if !covered.is_empty() {
            self.write_delivered(&ask.user, &covered).await?;
        }
        Ok(backlog)
    }

    /// Makes notes durable, as long as that takes; more of them wait meanwhile, or are dropped.
    async fn keep(&self, notes: &[Note]) {
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        while let Err(error) = self.try_keep(notes).await {
            tracing::debug!(%error, "notes have to wait");
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    async fn try_keep(&self, notes: &[Note]) -> Result<(), Unavailable> {
        let shape = self.parts.log.shape().await?;
        let mut writes = Vec::new();
        for note in notes {
            match note {
                Note::Delivered { user, rows } => {
                    writes.extend(rows.iter().map(|row| self.delivered(user, *row)));
                }
                Note::Presented { user, served } => {
                    let rows = backlog::rows_before(self, user, served, &shape).await?;
                    writes.extend(rows.into_iter().map(|row| self.delivered(user, row)));
                }
                Note::Served { user, served } => self.keep_cursor(user, served, &shape).await?,
            }
        }
        if !writes.is_empty() {
            self.parts.inbox.write_inbox(&writes).await?;
        }
        Ok(())
    }

    async fn keep_cursor(
        &self,
        user: &UserId,
        served: &Served,
        shape: &LogShape,
    ) -> Result<(), StoreError> {
        let places: Vec<_> = served.places().collect();
        self.parts.inbox.write_cursor(user, shape.identity, &places).await
    }

    async fn write_delivered(&self, user: &UserId, rows: &[Row]) -> Result<(), StoreError> {
        let writes: Vec<_> = rows.iter().map(|row| self.delivered(user, *row)).collect();
        self.parts.inbox.write_inbox(&writes).await
    }

    fn delivered(&self, user: &UserId, row: Row) -> InboxWrite {
        let now = self.parts.clock.wall();
        let ends_at = self.contents.ends_at(row.broadcast);
        InboxWrite {
            user: user.clone(),
            broadcast: row.broadcast,
            place: None,
            progress: Progress { attempt: row.attempt, delivery: Delivery::Delivered },
            at: now,
            keep_until: ends_at.unwrap_or(now.plus(self.parts.retention)),
        }
    }

    fn now(&self) -> EpochMillis {
        self.parts.clock.wall()
    }
}
