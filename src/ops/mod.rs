//! Floor 4: what operators see and set: configuration, health, metrics.

pub mod config;
pub mod health;
pub mod metrics;
