//! Which records a shard tells of. A producer gone wrong writes millions of them, and what is told
//! of goes over a lane on which more important things wait, and becomes a line of the log.

use crate::base::Moment;
use crate::limits::shard as limits;

/// Tells of the first records of a while, each with the number of those before it that it did not
/// tell of.
#[derive(Debug, Default)]
pub struct Told {
    began_at: Option<Moment>,
    told: u32,
    untold: u64,
}

impl Told {
    /// For one more: whether to tell of it, and of how many others.
    pub fn take(&mut self, now: Moment) -> Option<u64> {
        if self.began_at.is_none_or(|at| now.since(at) >= limits::RECORDS_TOLD_TIME) {
            self.began_at = Some(now);
            self.told = 0;
        }
        if self.told == limits::RECORDS_TOLD_MAX {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_while_are_told_of_and_the_others_counted() {
        let mut told = Told::default();
        let mut take = |after_s: u64, count: u32| {
            let now = Moment(after_s * 1_000);
            let others: Vec<u64> = (0..count).filter_map(|_| told.take(now)).collect();
            (others.len() as u32, others.iter().sum::<u64>())
        };
        const MAX: u32 = limits::RECORDS_TOLD_MAX;
        assert_eq!(take(0, MAX - 1), (MAX - 1, 0));
        assert_eq!(take(9, 3), (1, 0));
        assert_eq!(take(10, MAX + 5), (MAX, 2));
        assert_eq!(take(19, 1), (0, 0));
        assert_eq!(take(40, 2), (2, 6));
    }
}
