//! P2, nothing twice, nothing out of order: a thousand clients on three nodes, three brokers and
//! three database nodes. Clients are cut, stand still, go to another node, and come back with the
//! cursor that they had, with an older one or without; nodes are killed meanwhile. Whoever resumes
//! gets exactly what came after his cursor, in the order of each partition.
//!
//! `RESUME_S` says for how long, in seconds. Cassandra stands in for ScyllaDB.

mod clients;
#[path = "../simulation/random.rs"]
#[allow(dead_code)] // the simulator's, of which this uses a part
mod random;
#[path = "../real/mod.rs"]
mod real;
mod run;
mod script;
mod tally;
mod traffic;

use std::time::Duration;

use real::is_missing;
use run::Run;

fn duration() -> Duration {
    let seconds = std::env::var("RESUME_S").ok().map(|text| text.parse().expect("seconds"));
    Duration::from_secs(seconds.unwrap_or(25))
}

#[test]
fn a_thousand_clients_get_exactly_what_comes_after_their_cursors() {
    if is_missing() {
        return;
    }
    let mut run = Run::start(duration());
    run.kill_nodes();
    run.end();
}
