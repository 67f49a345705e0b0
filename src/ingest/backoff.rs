//! How long to wait before the next try: doubling, with jitter, so that a fleet does not come back
//! in one moment.

use std::time::Duration;

/// Counts failures in a row.
#[derive(Clone, Copy, Default, Debug)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// One more failure; returns the wait before the next try: between half and all of
    /// `first` x 2^(failures - 1), and of `most` in the end.
    pub fn next(&mut self, first: Duration, most: Duration) -> Duration {
        let whole = first.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures = self.failures.saturating_add(1);
        jitter(whole)
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Between half of it and all of it.
fn jitter(whole: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_with_jitter_up_to_a_bound() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::default();
        for whole in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let wait = backoff.next(first, most).as_millis();
            assert!((whole / 2..=whole).contains(&wait), "{wait} of {whole}");
        }
        backoff.reset();
        assert!(backoff.next(first, most) <= first);
        for _ in 0..100 {
            backoff.next(first, most);
        }
        assert!(backoff.next(first, most) <= most);
    }
}
