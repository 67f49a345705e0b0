//! File descriptors: who may hold how many of those that the process may open.
//!
//! A file that can't be opened fails the embedded store for good, so sockets leave some alone,
//! however many clients come.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits::descriptors as limits;

/// The shares of those that hold many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptors {
    /// All that the process may open.
    pub all: usize,
    /// Files and connections to backends.
    pub files: usize,
    pub streams: usize,
    /// Connections that have not yet said what they want.
    pub heads: usize,
    /// Calls of the public listener, no streams.
    pub calls: usize,
    /// Connections of the admin listener.
    pub admin: usize,
}

impl Descriptors {
    /// Shares of what the process may open now.
    pub fn of_process() -> Self {
        let all = getrlimit(Resource::Nofile).current;
        Self::of(all.map_or(usize::MAX, |all| usize::try_from(all).unwrap_or(usize::MAX)))
    }

    /// Takes what the system allows, which is often more than what it gives at first, and shares
    /// it.
    pub fn take_all() -> Self {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // A refusal leaves what there was.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        Self::of_process()
    }

    /// The same, with what one of so many shards may have of it.
    pub fn of_shard(self, shards: usize) -> Self {
        let part = |all: usize| (all / shards.max(1)).max(1);
        Self { streams: part(self.streams), heads: part(self.heads), ..self }
    }

    fn of(all: usize) -> Self {
        let files = limits::FILES_MAX.min(all / 4);
        let sockets = all - files;
        // Few are enough, but not too few.
        let least = limits::SOCKETS_MIN.min(sockets / 8);
        let [heads, calls, admin] = [8, 32, 32].map(|part| least.max(sockets / part));
        let streams = sockets.saturating_sub(heads + calls + admin).max(1);
        Self { all, files, streams, heads, calls, admin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_are_no_more_than_all() {
        for all in [64, 256, 1_024, 4_096, 20_000, 1 << 20, usize::MAX] {
            let shares = Descriptors::of(all);
            let sockets = shares.streams + shares.heads + shares.calls + shares.admin;
            assert!(sockets + shares.files <= all, "{shares:?}");
            assert!(shares.streams > all / 3, "streams are what it is for: {shares:?}");
        }
        assert_eq!(Descriptors::of(20_000).files, limits::FILES_MAX);
    }
}
