//! One timer wheel a shard: a deadline for each stream, without a timer for each.
//!
//! Source: G. Varghese, T. Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 4, one
//! level. A deadline beyond the horizon is cut to it, so whoever is called looks again whether it
//! is due.

use crate::base::Moment;
use crate::limits::shard::{WHEEL_SLOTS, WHEEL_TICK};

const NONE: u32 = u32::MAX;
const WORD_BITS: usize = u64::BITS as usize;
const WORDS: usize = WHEEL_SLOTS / WORD_BITS;
const TICK_MS: u64 = WHEEL_TICK.as_millis() as u64;
const _: () = assert!(WHEEL_SLOTS.is_multiple_of(WORD_BITS) && WHEEL_SLOTS < LATE.slot as usize);

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    /// `u16::MAX`: in no slot; `LATE`: taken out of its slot, and not handed out yet.
    slot: u16,
}

const UNLINKED: Link = Link { previous: NONE, next: NONE, slot: u16::MAX };
const LATE: Link = Link { previous: NONE, next: NONE, slot: u16::MAX - 1 };

/// At most one deadline for each index.
#[derive(Debug)]
pub struct Wheel {
    /// First index of each slot's list.
    heads: Box<[u32]>,
    /// A bit for each slot that is not empty.
    occupied: [u64; WORDS],
    links: Vec<Link>,
    /// Everything due at or before this tick has been handed out.
    tick: u64,
    /// The latest tick up to which `pop_due` was asked. What is set meanwhile comes after it, or
    /// who sets anew what has just come would never be done.
    asked: u64,
    /// What was due when more than the horizon had passed at once, as on a machine that has slept.
    late: Vec<u32>,
}

impl Wheel {
    pub fn new(now: Moment) -> Self {
        let tick = now.0 / TICK_MS;
        let heads = vec![NONE; WHEEL_SLOTS].into();
        let (links, late) = (Vec::new(), Vec::new());
        Self { heads, occupied: [0; WORDS], links, tick, asked: tick, late }
    }

    /// Sets or moves the deadline of an index. It is handed out at the first tick not before it;
    /// one that has passed, at the next tick.
    pub fn set(&mut self, index: u32, deadline: Moment) {
        self.cancel(index);
        let last = self.tick + WHEEL_SLOTS as u64 - 1;
        let first = (self.asked + 1).min(last);
        let tick = deadline.0.div_ceil(TICK_MS).clamp(first, last);
        let slot = (tick % WHEEL_SLOTS as u64) as usize;
        if self.links.len() <= index as usize {
            self.links.resize(index as usize + 1, UNLINKED);
        }
        let next = self.heads[slot];
        self.links[index as usize] = Link { previous: NONE, next, slot: slot as u16 };
        if next != NONE {
            self.links[next as usize].previous = index;
        }
        self.heads[slot] = index;
        self.occupied[slot / WORD_BITS] |= 1 << (slot % WORD_BITS);
    }

    pub fn cancel(&mut self, index: u32) {
        let Some(link) = self.links.get(index as usize).copied() else { return };
        if link.slot == UNLINKED.slot || link.slot == LATE.slot {
            self.links[index as usize] = UNLINKED;
            return;
        }
        let slot = usize::from(link.slot);
        if link.previous == NONE {
            self.heads[slot] = link.next;
        } else {
            self.links[link.previous as usize].next = link.next;
        }
        if link.next != NONE {
            self.links[link.next as usize].previous = link.previous;
        }
        if self.heads[slot] == NONE {
            self.occupied[slot / WORD_BITS] &= !(1 << (slot % WORD_BITS));
        }
        self.links[index as usize] = UNLINKED;
    }

    /// The next index that is due, taken out of the wheel.
    pub fn pop_due(&mut self, now: Moment) -> Option<u32> {
        let now_tick = now.0 / TICK_MS;
        self.asked = self.asked.max(now_tick);
        if now_tick >= self.tick + WHEEL_SLOTS as u64 - 1 {
            self.take_all(now_tick);
        }
        while let Some(index) = self.late.pop() {
            if self.links[index as usize].slot == LATE.slot {
                self.links[index as usize] = UNLINKED;
                return Some(index);
            }
        }
        while let Some(tick) = self.next_tick() {
            if tick > now_tick {
                break;
            }
            let head = self.heads[(tick % WHEEL_SLOTS as u64) as usize];
            if head != NONE {
                self.cancel(head);
                return Some(head);
            }
            self.tick = tick;
        }
        self.tick = self.tick.max(now_tick);
        None
    }

    /// All of it is due. It is put aside, so that what is set anew has a place behind `now_tick`.
    fn take_all(&mut self, now_tick: u64) {
        for slot in 0..WHEEL_SLOTS {
            while self.heads[slot] != NONE {
                let head = self.heads[slot];
                self.cancel(head);
                self.links[head as usize] = LATE;
                self.late.push(head);
            }
        }
        self.tick = now_tick;
    }

    /// When `pop_due` will next have something. `None` if the wheel is empty.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.next_tick().map(|tick| Moment(tick * TICK_MS))
    }

    /// The first tick after `self.tick` whose slot is occupied.
    fn next_tick(&self) -> Option<u64> {
        let start = ((self.tick + 1) % WHEEL_SLOTS as u64) as usize;
        // One word more than there are, because the first may be looked at from its middle.
        for step in 0..=WORDS {
            let word = (start / WORD_BITS + step) % WORDS;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % WORD_BITS);
            }
            if bits != 0 {
                let slot = word * WORD_BITS + bits.trailing_zeros() as usize;
                let ahead = (slot + WHEEL_SLOTS - start) % WHEEL_SLOTS;
                return Some(self.tick + 1 + ahead as u64);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn due(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut all: Vec<u32> = std::iter::from_fn(|| wheel.pop_due(Moment(now))).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn deadlines_come_not_before_their_time() {
        let mut wheel = Wheel::new(Moment(1_000));
        wheel.set(1, Moment(1_100));
        wheel.set(2, Moment(2_000));
        wheel.set(3, Moment(0));
        assert_eq!(due(&mut wheel, 1_087), [3]);
        assert_eq!(due(&mut wheel, 1_099), [] as [u32; 0]);
        assert_eq!(due(&mut wheel, 1_200), [1]);
        wheel.cancel(2);
        assert_eq!(wheel.next_deadline(), None);
        assert_eq!(due(&mut wheel, 1_000_000), [] as [u32; 0]);
    }

    #[test]
    fn a_deadline_that_has_passed_comes_once_a_tick() {
        let mut wheel = Wheel::new(Moment(0));
        wheel.set(1, Moment(64));
        let mut times = 0;
        // Somebody who always sets what has just come must get to an end.
        while let Some(index) = wheel.pop_due(Moment(10_000)) {
            wheel.set(index, Moment(5));
            times += 1;
            assert!(times < 10, "handed out again and again");
        }
        assert_eq!((times, due(&mut wheel, 10_064)), (1, vec![1]));
    }

    #[test]
    fn who_slept_for_longer_than_the_horizon_gets_to_an_end() {
        let horizon = WHEEL_SLOTS as u64 * TICK_MS;
        for slept in [horizon - 64, horizon, horizon + 64, 100 * horizon + 7] {
            let mut wheel = Wheel::new(Moment(0));
            wheel.set(1, Moment(64));
            wheel.set(2, Moment(5_000));
            let mut times = 0;
            while let Some(index) = wheel.pop_due(Moment(slept)) {
                wheel.set(index, Moment(5));
                times += 1;
                assert!(times < 10, "handed out again and again");
            }
            assert_eq!((times, due(&mut wheel, slept)), (2, vec![]));
            assert_eq!(due(&mut wheel, slept + 2 * TICK_MS), [1, 2]);
        }
    }

    proptest! {
        /// The wheel hands out what a sorted map would, at most a tick late.
        #[test]
        fn agrees_with_a_sorted_map(
            steps in proptest::collection::vec((0_u32..20, 0_u64..100_000, 0_u64..5_000), 1..200),
        ) {
            let mut wheel = Wheel::new(Moment(0));
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = 0;
            for (index, ahead, pass) in steps {
                wheel.set(index, Moment(now + ahead));
                model.insert(index, now + ahead);
                now += pass;
                for index in due(&mut wheel, now) {
                    let deadline = model.remove(&index);
                    prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                }
                let late = now.saturating_sub(2 * TICK_MS);
                prop_assert!(model.values().all(|deadline| *deadline >= late), "one is overdue");
                prop_assert_eq!(wheel.next_deadline().is_none(), model.is_empty());
            }
        }
    }
}
