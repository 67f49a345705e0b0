//! What a node asks and tells the store for its users: the real building of backlogs and noting of
//! what has arrived, turned by hand.

use std::collections::VecDeque;
use std::sync::Arc;

use corecast::base::{BroadcastId, Moment, UserId};
use corecast::control::{KeptParts, KeptStore, Unavailable};
use corecast::domain::{Backlog, Note};
use corecast::lane::Ask;
use corecast::limits::shard as limits;
use corecast::ports::Clock;

use crate::client::unsent;
use crate::desk::Desk;
use crate::groups::Membership;
use crate::node::Shard;
use crate::owner::RETENTION;
use crate::random::{Random, Seen};
use crate::sky::Task;
use crate::store::FakeStore;

pub struct Serving {
    kept: Arc<KeptStore>,
    waiting: VecDeque<Vec<Note>>,
    telling: Option<Telling>,
}

/// Notes that are being made durable.
type Telling = (Arc<Vec<Note>>, Task<Result<(), Unavailable>>);

impl Serving {
    pub fn new(
        member: Arc<Membership>,
        (store, desk): (&FakeStore, &Desk),
        clock: Arc<dyn Clock>,
        messages_max: usize,
    ) -> Self {
        let kept = Arc::new(KeptStore::new(KeptParts {
            log: Arc::new(desk.clone()),
            ownership: member,
            inbox: Arc::new(store.clone()),
            clock,
            retention: RETENTION,
            messages_max,
        }));
        Self { kept, waiting: VecDeque::new(), telling: None }
    }

    pub fn ask(&self, ask: Ask) -> Task<Result<Backlog, Unavailable>> {
        let kept = self.kept.clone();
        Task::new(async move { kept.backlog(&ask).await })
    }

    /// Takes notes in; some find no room.
    pub fn take(&mut self, notes: Vec<Note>, loses: bool, random: &mut Random, seen: &mut Seen) {
        for note in notes {
            if loses && random.one_in(6) {
                seen.note("lost notes");
            } else if random.one_in(2) {
                self.waiting.push_back(vec![note]);
            } else if let Some(last) = self.waiting.back_mut() {
                last.push(note);
            } else {
                self.waiting.push_back(vec![note]);
            }
        }
    }

    /// Makes notes durable in their order, however often that takes.
    pub fn turn(&mut self, seen: &mut Seen) {
        loop {
            if self.telling.is_none() {
                let Some(notes) = self.waiting.pop_front() else { return };
                self.telling = Some(self.tell(Arc::new(notes)));
            }
            let Some((notes, mut telling)) = self.telling.take() else { return };
            match telling.turn() {
                None => {
                    self.telling = Some((notes, telling));
                    return;
                }
                Some(Ok(())) => seen.count("notes", notes.len() as u64),
                Some(Err(_)) => {
                    seen.note("notes told again");
                    self.telling = Some(self.tell(notes));
                    return;
                }
            }
        }
    }

    pub fn forget(&self, ids: &[BroadcastId]) {
        self.kept.forget(ids);
    }

    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.telling.is_none()
    }

    fn tell(&self, notes: Arc<Vec<Note>>) -> Telling {
        let (kept, told) = (self.kept.clone(), notes.clone());
        (notes, Task::new(async move { kept.keep(&told).await }))
    }
}

impl Shard {
    /// Asks the peers what has arrived, from time to time, and takes in streams that have ended.
    pub fn look(&mut self, now: Moment) -> Vec<Note> {
        let mut notes = Vec::new();
        while let Some(closed) = self.streams.poll_closed() {
            self.closed.push((now.plus(limits::FAREWELL_TIME), closed));
        }
        for (until, closed) in std::mem::take(&mut self.closed) {
            let waits = unsent(&closed.socket);
            if waits > 0 && now < until {
                self.closed.push((until, closed));
            } else {
                notes.extend(closed.notes(waits));
            }
        }
        if self.confirm_at.is_some_and(|at| at <= now) {
            self.confirm_at = None;
            self.streams.handle_confirm(unsent, |user, row| {
                let user = UserId::new(user).expect("a user id");
                notes.push(Note::Delivered { user, rows: vec![row] });
            });
        }
        if self.confirm_at.is_none() && self.streams.has_unconfirmed() {
            self.confirm_at = Some(now.plus(limits::CONFIRM_PACE));
        }
        notes
    }
}
