//! Chance that follows from the seed, and a count of what happened.

use std::collections::BTreeMap;
use std::time::Duration;

/// SplitMix64: a stream of numbers that follows from the seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    /// Up to so many milliseconds.
    pub fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.next() % bound)
    }

    /// Another stream of numbers, of which the draws here know nothing.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// What happened how often, so that a simulation in which nothing did is found out.
#[derive(Clone, Default, Debug)]
pub struct Seen(BTreeMap<&'static str, u64>);

impl Seen {
    pub fn count(&mut self, what: &'static str, many: u64) {
        *self.0.entry(what).or_default() += many;
    }

    pub fn note(&mut self, what: &'static str) {
        self.count(what, 1);
    }

    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    pub fn add(&mut self, other: &Self) {
        for (what, many) in &other.0 {
            self.count(what, *many);
        }
    }
}
