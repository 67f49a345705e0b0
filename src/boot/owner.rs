//! Starts what owning partitions takes, and tells health how it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backends::Backends;
use super::say_if_ready;
use crate::control::{Bulk, RedriveCounters, Redriver, Threads};
use crate::ops::config::Config;
use crate::ops::health::{Health, Part};
use crate::owner::{Leaver, Owner, OwnerCounters, leaving};
use crate::ports::{Clock, LogError, Standing};
use crate::wire::control::NodeStart;

/// The owner of this node's partitions, as configured.
pub(super) fn owner_of(
    config: &Config,
    backends: &Backends,
    (clock, node): (Arc<dyn Clock>, NodeStart),
    counters: Arc<OwnerCounters>,
) -> Owner {
    Owner {
        log: backends.log.clone(),
        ownership: backends.ownership.clone(),
        inbox: backends.inbox.clone(),
        endings: backends.endings.clone(),
        control: backends.control.clone(),
        node,
        parking: backends.parking.clone(),
        dead_letters: backends.dead_letters.clone(),
        clock,
        names: config.log.names(),
        retention: config.retention,
        is_testing: config.is_testing,
        unknown_is_for_all: config.unknown_is_for_all,
        counters,
    }
}

/// What sends dead letters again: by the rules by which the owners parked them.
pub(super) fn redriver_of(
    config: &Config,
    backends: &Backends,
    clock: Arc<dyn Clock>,
    counters: Arc<RedriveCounters>,
) -> Redriver {
    Redriver {
        log: backends.log.clone(),
        ownership: backends.ownership.clone(),
        inbox: backends.inbox.clone(),
        parking: backends.parking.clone(),
        endings: backends.endings.clone(),
        rows: backends.dead_letters.clone(),
        audit: backends.audit.clone(),
        clock,
        names: config.log.names(),
        node: config.node_id.clone(),
        is_testing: config.is_testing,
        unknown_is_for_all: config.unknown_is_for_all,
        bulk: Bulk::default(),
        counters,
    }
}

/// Starts to take part in owning partitions, and to keep what their records leave behind.
pub(super) fn start_owner(
    threads: &Threads,
    backends: &Backends,
    owner: Owner,
    health: &Health,
    takes_part: bool,
) -> Leaver {
    if !takes_part {
        // Others own; who takes no part is told nothing.
        say_if_ready(health.found(Part::Ownership));
    }
    let (leaver, leaving) = leaving();
    let failed = health.clone();
    threads.spawn(async move {
        if let Err(error) = owner.run(leaving).await {
            give_up(&failed, &error);
        }
    });
    let (ownership, health) = (backends.ownership.clone(), health.clone());
    threads.spawn(async move {
        let has_been_member = AtomicBool::new(false);
        let told = |standing| match standing {
            Standing::Member => {
                has_been_member.store(true, Ordering::Relaxed);
                say_if_ready(health.found(Part::Ownership));
            }
            // A node that has been one serves on: others own what it did.
            Standing::Away(reason) | Standing::Refused(reason) => {
                tracing::warn!(reason, "no part in owning partitions");
                if !has_been_member.load(Ordering::Relaxed) {
                    health.lost(Part::Ownership, reason);
                }
            }
        };
        let error = ownership.run(&told).await;
        give_up(&health, &error);
    });
    leaver
}

/// Who is here goes on being served; what is for others waits in the log until the next start, or
/// for another node.
fn give_up(health: &Health, error: &LogError) {
    tracing::error!(%error, "partitions can't be owned any more");
    health.lost(Part::Ownership, format!("mend and start again: {error}"));
}
