//! What is in the log: each record has a number in its lane, and says both.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use corecast::base::partition_of_key;

use crate::real::PARTITIONS;

/// Partitions of the group topic, and behind them those of the selected one.
const LANES: usize = 2 * GROUP_LANES;
pub const GROUP_LANES: usize = PARTITIONS as usize;

/// Whom a record is for; users and roles by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    Everybody,
    Role(usize),
    User(usize),
}

/// Who looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    pub user: usize,
    pub role: usize,
}

/// The records of every lane, in order.
#[derive(Default)]
pub struct Script {
    lanes: [Mutex<Vec<Entry>>; LANES],
}

#[derive(Clone, Copy)]
struct Entry {
    audience: Audience,
    content_bytes: usize,
}

impl Script {
    /// Adds a record with so much padding; returns its content.
    pub fn add(&self, lane: usize, audience: Audience, padding: usize) -> String {
        let mut entries = self.lane(lane);
        let content = format!("{lane} {} {}", entries.len(), "x".repeat(padding));
        entries.push(Entry { audience, content_bytes: content.len() });
        content
    }

    /// Where the record is that has this content, if there is one.
    pub fn find(&self, content: &str) -> Option<(usize, usize)> {
        let mut words = content.splitn(3, ' ').map(str::parse::<usize>);
        let (lane, number) = (words.next()?.ok()?, words.next()?.ok()?);
        let entries = self.lanes.get(lane).map(|_| self.lane(lane))?;
        let is_whole = entries.get(number)?.content_bytes == content.len();
        is_whole.then_some((lane, number))
    }

    pub fn is_for(&self, lane: usize, number: usize, reader: Reader) -> bool {
        self.lane(lane)[number].is_for(reader)
    }

    /// Which of these are for this reader.
    pub fn for_reader(&self, lane: usize, range: Range<usize>, reader: Reader) -> Vec<usize> {
        let entries = self.lane(lane);
        range.filter(|number| entries[*number].is_for(reader)).collect()
    }

    /// The number behind the last record for this reader.
    pub fn end_for(&self, lane: usize, reader: Reader) -> usize {
        self.lane(lane).iter().rposition(|entry| entry.is_for(reader)).map_or(0, |last| last + 1)
    }

    pub fn records(&self) -> usize {
        (0..LANES).map(|lane| self.lane(lane).len()).sum()
    }

    fn lane(&self, lane: usize) -> MutexGuard<'_, Vec<Entry>> {
        self.lanes[lane].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_for(self, reader: Reader) -> bool {
        match self.audience {
            Audience::Everybody => true,
            Audience::Role(role) => role == reader.role,
            Audience::User(user) => user == reader.user,
        }
    }
}

pub fn name_of_user(user: usize) -> String {
    format!("resume-{user}")
}

pub fn name_of_role(role: usize) -> String {
    format!("resumers-{role}")
}

/// The partition of the selected topic that is a user's.
pub fn own_partition(user: usize) -> u16 {
    partition_of_key(name_of_user(user).as_bytes(), PARTITIONS)
}

pub fn own_lane(user: usize) -> usize {
    GROUP_LANES + usize::from(own_partition(user))
}
