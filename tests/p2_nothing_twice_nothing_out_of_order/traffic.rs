//! What is written: records as an older producer writes them, to everybody, to a role and to single
//! users, until it is ended.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::kafka::JavaProducer;
use serde_json::{Value, json};

use crate::clients::Service;
use crate::real::{Place, value};
use crate::script::{Audience, GROUP_LANES, name_of_role, name_of_user, own_lane};

/// Roles that most users share; and one of few, who get so much that the sockets of those who stand
/// still are full soon.
const ROLES: usize = 4;
const HEAVY_ROLE: usize = ROLES;
const HEAVY_USERS: usize = 10;
const HEAVY_BYTES: usize = 60 * 1024;
/// Between two rounds.
const PACE: Duration = Duration::from_millis(100);
/// Single users who get something in a round.
const USERS_A_ROUND: usize = 8;
/// A role gets something in one of so many rounds.
const ROLE_ROUNDS: usize = 4;

/// The role that a user has.
pub fn role_of(user: usize) -> usize {
    if user.is_multiple_of(HEAVY_USERS) { HEAVY_ROLE } else { user % ROLES }
}

pub struct Traffic {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Producer {
    java: JavaProducer,
    place: Place,
    service: Arc<Service>,
    users: usize,
    broadcasts: u64,
}

impl Traffic {
    pub fn start(
        mut java: JavaProducer,
        place: Place,
        service: Arc<Service>,
        users: usize,
    ) -> Self {
        let (stop, stopped) = mpsc::channel();
        java.say(&["open", "flow"]);
        let mut producer = Producer { java, place, service, users, broadcasts: 0 };
        let thread = std::thread::spawn(move || {
            let goes_on = || matches!(stopped.recv_timeout(PACE), Err(RecvTimeoutError::Timeout));
            (0..).take_while(|_| goes_on()).for_each(|round| producer.round(round));
            producer.end();
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }

    /// Panics if it has ended by itself.
    pub fn check(&self) {
        let has_ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        assert!(!has_ended, "the traffic has ended, see above");
    }

    /// Behind a last record for everybody in each lane.
    pub fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
}

impl Producer {
    fn round(&mut self, round: usize) {
        self.write(round % GROUP_LANES, Audience::Everybody, 100);
        let turn = round / ROLE_ROUNDS;
        match round % ROLE_ROUNDS {
            0 => self.write(turn % GROUP_LANES, Audience::Role(turn % ROLES), 100),
            2 => self.write(turn % GROUP_LANES, Audience::Role(HEAVY_ROLE), HEAVY_BYTES),
            _ => {}
        }
        for user in 0..USERS_A_ROUND {
            self.tell((round * USERS_A_ROUND + user) % self.users);
        }
    }

    fn end(&mut self) {
        (0..GROUP_LANES).for_each(|lane| self.write(lane, Audience::Everybody, 0));
        (0..self.users).for_each(|user| self.tell(user));
        self.java.say(&["settle"]);
    }

    fn tell(&mut self, user: usize) {
        self.write(own_lane(user), Audience::User(user), 50);
    }

    /// One thread writes, so numbers rise with the offsets of each partition.
    fn write(&mut self, lane: usize, audience: Audience, padding: usize) {
        let content = self.service.script.add(lane, audience, padding);
        self.broadcasts += 1;
        let (user, more): (Option<String>, Value) = match audience {
            Audience::Everybody => (None, json!({"targetType": "ALL"})),
            Audience::Role(role) => {
                (None, json!({"targetType": "ROLE", "targetIds": [name_of_role(role)]}))
            }
            Audience::User(user) => (Some(name_of_user(user)), json!({})),
        };
        let topic = if user.is_some() { &self.place.selected } else { &self.place.group };
        let partition = (lane % GROUP_LANES).to_string();
        let record = value(user.as_deref(), self.broadcasts, &content, &more);
        self.java.say(&["post", "flow", topic, &partition, "k", &record]);
    }
}
