//! What the cases of several modules are given: users, a log, rows, and dice.

use corecast::base::{BroadcastId, EpochMillis, LogIdentity, Partition, Position, Topic, UserId};
use corecast::ports::{GroupRow, GroupWhat, Place};

use super::store::now;

pub const LOG: LogIdentity = LogIdentity([1, 2, 3]);

pub const HOSTILE_USERS: [&str; 12] = [
    "a",
    "ab",
    "a ",
    " a",
    "A",
    "ä",
    "a\u{308}",
    "süß \u{1F600} \u{2028} \u{feff}",
    "' OR 1=1; DROP TABLE inbox; --",
    "\"{}[]\\",
    "\u{10ffff}",
    "%00/../..",
];

pub fn user_id(text: &str) -> UserId {
    UserId::new(text).expect("a user id")
}

pub fn group_row(log: LogIdentity, partition: u16, offset: u64) -> GroupRow {
    let partition = Partition { topic: Topic::Group, index: partition };
    let appended_at = EpochMillis(1_795_514_400_000 + offset % 1_000);
    GroupRow {
        broadcast: BroadcastId::new(offset % (1 << 40)).expect("an id"),
        what: GroupWhat::Created,
        place: Place { log, position: Position { partition, offset }, appended_at },
        keep_until: EpochMillis(now().0 / 1_000 * 1_000 + 10 * 24 * 3_600_000),
    }
}

/// All orders of so many things.
pub fn orders_of(count: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for _ in 0..count {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                let others = (0..count).filter(|next| !order.contains(next)).collect::<Vec<_>>();
                others.into_iter().map(move |next| [&order[..], &[next]].concat())
            })
            .collect();
    }
    orders
}

/// The same throws each time.
///
/// Source: G. Steele et al., "Fast Splittable Pseudorandom Number Generators" (2014), splitmix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}
