//! Waits that double, with jitter, so that many nodes do not come back at one time.

use std::time::Duration;

pub(super) struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { next: first, most }
    }

    /// How long to wait now: half of the step to all of it.
    pub fn next(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.most);
        let random = uuid::Uuid::new_v4().as_u128() as u32;
        step / 2 + (step / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most() {
        let (first, most) = (Duration::from_millis(100), Duration::from_millis(350));
        let mut backoff = Backoff::new(first, most);
        for step in [100, 200, 350, 350] {
            let (step, wait) = (Duration::from_millis(step), backoff.next());
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
        }
        let mut many = (0..20).map(|_| Backoff::new(first, most).next());
        let one = many.next();
        assert!(many.any(|other| Some(other) != one), "no jitter");
    }
}
