//! The clock, asked once a turn and passed on as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::base::{EpochMillis, Moment};

pub trait Clock: Send + Sync {
    /// Monotonic, and running on while the machine sleeps.
    fn moment(&self) -> Moment;
    /// Calendar time. It may step.
    fn wall(&self) -> EpochMillis;
}

/// The machine's clocks: `CLOCK_BOOTTIME` and the system's calendar time.
#[derive(Clone, Copy, Default, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn moment(&self) -> Moment {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let millis = u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
        Moment(seconds * 1_000 + millis)
    }

    fn wall(&self) -> EpochMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        EpochMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX).min(EpochMillis::MAX.0))
    }
}
