//! Waiting for a condition, never for a time; and the pace of a load.

use std::time::{Duration, Instant};

/// Between two looks: long against a look, short against what is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// Looks until there is something; panics with `what` once `at_most` has passed.
pub fn until<T>(what: &str, at_most: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < at_most, "waited {at_most:?} in vain: {what}");
        std::thread::sleep(LOOK);
    }
}

/// The same for a condition.
pub fn until_true(what: &str, at_most: Duration, mut look: impl FnMut() -> bool) {
    until(what, at_most, || look().then_some(()));
}

/// Waits until something is due, for a load that is sent by a schedule. Nothing is expected to have
/// happened meanwhile.
pub fn until_due(due: Instant) {
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
}
