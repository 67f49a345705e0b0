//! How long to wait before a backend is asked again: doubling, with jitter, so that a fleet does
//! not come back in one moment. On the control threads.

use std::time::Duration;

/// The waits of one series of tries.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    step: Duration,
    most: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, step: first, most }
    }

    /// How long to wait now: half of the step to all of it. The step doubles, up to `most`.
    pub fn wait(&mut self) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.most);
        let random = uuid::Uuid::new_v4().as_u128() as u32;
        step / 2 + (step / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// A try went well.
    pub fn reset(&mut self) {
        self.step = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_differ() {
        let (first, most) = (Duration::from_millis(100), Duration::from_millis(350));
        let mut backoff = Backoff::new(first, most);
        for step in [100, 200, 350, 350] {
            let (step, wait) = (Duration::from_millis(step), backoff.wait());
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= first);
        let mut many = (0..20).map(|_| Backoff::new(first, most).wait());
        let one = many.next();
        assert!(many.any(|other| Some(other) != one), "no jitter");
    }
}
