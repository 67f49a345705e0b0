//! Whether the node may be sent streams: every part that must be there, and why one is not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What must be there. Named as operators know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    Log,
    Store,
    /// What all users share has been read from the store, so that none of them waits for it.
    Inboxes,
    Shards,
    /// The control topic is heard, and it is known which broadcasts have ended.
    Control,
    /// Taking part in owning partitions.
    Ownership,
    /// Off while the node drains.
    Node,
}

impl Part {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Store => "store",
            Self::Inboxes => "inboxes",
            Self::Shards => "shards",
            Self::Control => "control",
            Self::Ownership => "ownership",
            Self::Node => "node",
        }
    }
}

/// Shared by all who know of a part; read by `/health/ready`. Never on a shard's thread.
#[derive(Clone, Debug)]
pub struct Health {
    missing: Arc<Mutex<BTreeMap<Part, String>>>,
}

impl Health {
    /// Nothing is there yet.
    pub fn starting() -> Self {
        let parts =
            [Part::Log, Part::Store, Part::Inboxes, Part::Shards, Part::Control, Part::Ownership];
        let missing = parts.into_iter().map(|part| (part, "starting".to_owned())).collect();
        Self { missing: Arc::new(Mutex::new(missing)) }
    }

    /// The part is there. Whether that made the node ready.
    pub fn found(&self, part: Part) -> bool {
        let mut missing = self.lock();
        missing.remove(&part).is_some() && missing.is_empty()
    }

    pub fn lost(&self, part: Part, reason: impl Into<String>) {
        self.lock().insert(part, reason.into());
    }

    /// What is missing, and why; empty: ready.
    pub fn missing(&self) -> Vec<(Part, String)> {
        self.lock().iter().map(|(part, reason)| (*part, reason.clone())).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Part, String>> {
        // A map of strings is whole whoever panicked while holding it.
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_every_part_is_there() {
        let health = Health::starting();
        assert!(!health.found(Part::Log) && !health.found(Part::Store));
        assert!(!health.found(Part::Ownership) && !health.found(Part::Inboxes));
        assert!(!health.found(Part::Control));
        assert!(health.found(Part::Shards));
        assert!(health.missing().is_empty());
        health.lost(Part::Log, "no broker answers");
        assert_eq!(health.missing(), [(Part::Log, "no broker answers".to_owned())]);
        assert!(health.found(Part::Log));
    }
}
