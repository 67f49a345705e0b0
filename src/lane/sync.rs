//! What the protocol of lanes is built on. Its model puts the checker's own in this place.

pub use std::sync::atomic::{AtomicBool, Ordering, fence};
