//! What every store must do, one suite over all of them: a module a port.
//!
//! Each case gets a store of its own that is empty. Times are about now, as a node's are.

mod audit;
mod broadcasts;
mod cursors;
mod dead_letters;
mod due;
mod endings;
mod given;
mod groups;
mod inbox;
mod parking;
mod removals;
mod statuses;
#[path = "../store/mod.rs"]
mod store;

use std::time::Instant;

use harness::cassandra::Cassandra;
use harness::maven;
use store::{CqlStores, EmbeddedStores, Stores};

/// A promise: its name, and what it asks of stores that are empty.
type Case = (&'static str, fn(&dyn Stores));

/// Every promise of every port.
const PORTS: &[(&str, &[Case])] = &[
    ("Store", broadcasts::CASES),
    ("Inbox", inbox::CASES),
    ("Inbox, of groups", groups::CASES),
    ("Inbox, cursors", cursors::CASES),
    ("DeadLetterRows", dead_letters::CASES),
    ("Audit", audit::CASES),
    ("Parking", parking::CASES),
    ("Inbox, removals", removals::CASES),
    ("Endings, statuses", statuses::CASES),
    ("Endings", endings::CASES),
    ("Endings, what is due", due::CASES),
];

#[test]
fn the_embedded_store_keeps_every_promise() {
    run(&EmbeddedStores::default());
}

#[test]
fn the_store_over_cql_keeps_every_promise() {
    if let Some(program) = maven::missing() {
        return harness::skip(program, "install a JDK and Maven");
    }
    let cluster = Cassandra::start(1);
    run(&CqlStores::new(cluster.addresses()));
    inbox::cells_expire_in_their_order(&cluster);
}

/// Runs every case; names the one that fails.
fn run(stores: &dyn Stores) {
    for (port, cases) in PORTS {
        for (name, case) in *cases {
            let began = Instant::now();
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(stores)));
            if let Err(cause) = failed {
                eprintln!("--- the case was: {port}: {name}");
                std::panic::resume_unwind(cause);
            }
            stores.forget();
            println!("{:6.2} s  {port}: {name}", began.elapsed().as_secs_f64());
        }
    }
}
