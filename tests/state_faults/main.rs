//! State under faults: nodes share the partitions on three brokers and three database nodes, users
//! come and go, and whatever is killed, frozen or away meanwhile, everybody gets each of his
//! messages once and in the order of its partition, and nobody else's.
//!
//! Cassandra stands in for ScyllaDB.

mod ledger;
#[path = "../real/mod.rs"]
mod real;
mod run;
mod traffic;
mod users;
mod world;

use std::time::{Duration, Instant};

use corecast::limits::kafka::REQUEST_TIME;
use corecast::limits::log::FETCH_WAIT;
use harness::wait;
use real::{LONG, is_missing};
use run::Run;

/// From a fault of one broker until records of every partition come again: the node gives up a
/// request after 5.5 s, the brokers give their fellow up after 3 s and choose new leaders, and the
/// node's next try is at most 5 s away. Twice that, for a machine that is busy.
const FLOW_AGAIN: Duration = Duration::from_secs(30);

/// How long store and log are away: `STATE_OUTAGE_S`, or long past every time-out.
fn outage() -> Duration {
    let seconds = std::env::var("STATE_OUTAGE_S").ok().map(|text| text.parse().expect("seconds"));
    Duration::from_secs(seconds.unwrap_or(40))
}

/// What a node may take more while its backends are away: the ring, the rows of a batch of 4 MiB
/// for each partition, and answers of the brokers on their way.
const RING: &str = "limits.ring_bytes_max=16777216";
const MEMORY_MORE_MAX: usize = 80 << 20;

#[test]
fn an_owner_may_be_killed_in_any_phase() {
    if is_missing() {
        return;
    }
    let world = world::shared();
    let mut run = Run::start(&world, 2, &[]);
    run.writes(0);
    run.kill(0, "while it wrote rows");
    run.launch(0);
    run.kill(0, "just after its start");
    run.launch(0);
    run.owns(0);
    run.kill(0, "as soon as it owned partitions");
    run.restart(0);
    run.flow_goes_on("both are there again");
    run.burst_until_behind(1, 50.0);
    run.kill(1, "under a burst");
    run.is_replaced(1);
    run.restart(1);
    run.end(&world.kafka);
}

#[test]
fn an_owner_may_be_killed_while_another_joins_or_be_frozen() {
    if is_missing() {
        return;
    }
    let world = world::shared();
    let mut run = Run::start(&world, 2, &[]);
    // While it is frozen the group can't settle, so it is killed in the middle of that.
    run.freeze(1, "before another joined");
    let newcomer = run.join();
    wait::until_true("the newcomer has found the brokers", LONG, || {
        !run.nodes[newcomer].get("/health/ready").text().contains("log: ")
    });
    run.kill(1, "in the middle of a rebalance");
    run.restart(1);
    run.flow_goes_on("three are there");
    run.poison();
    run.flow_goes_on("all have met poison");
    run.freeze(newcomer, "past its session");
    run.is_replaced(newcomer);
    run.thaw(newcomer);
    run.share();
    run.flow_goes_on("it is thawed");
    run.end(&world.kafka);
}

#[test]
fn one_broker_and_one_database_node_may_be_lost() {
    if is_missing() {
        return;
    }
    let mut world = world::alone();
    let mut run = Run::start(&world, 2, &[]);
    let leader = world.kafka.leader(&run.place.group, 0).expect("a leader");
    run.inject("kill -9 of a broker and of a database node");
    world.kill_broker(leader);
    world.kill_database(1);
    let took = run.flow_goes_on("a broker and a database node are killed");
    assert!(took < FLOW_AGAIN, "{took:?}");
    run.creates_go_on("a broker and a database node are killed");
    run.readiness_misses(&[], "they are killed");

    world.restart_killed();
    world.kafka.wait_until_in_step();
    world.kafka.give_back_leaders();
    let took = run.flow_goes_on("the broker leads again");
    assert!(took < FLOW_AGAIN, "{took:?}");
    assert_eq!(world.kafka.leader(&run.place.group, 0), Some(leader), "it came back");
    run.creates_go_on("they are back");
    run.readiness_misses(&[], "they are back");

    run.inject("SIGSTOP of a broker and of a database node");
    world.kafka.freeze(leader);
    world.cassandra.freeze(2);
    let frozen = Instant::now();
    let took = run.flow_goes_on("a broker and a database node are frozen");
    assert!(took < FLOW_AGAIN, "{took:?}");
    run.creates_go_on("a broker and a database node are frozen");
    run.readiness_misses(&[], "they are frozen");
    // Until whatever the nodes asked of it has run out of time.
    let times_out = REQUEST_TIME + FETCH_WAIT * 2;
    wait::until_true("requests time out", LONG, || frozen.elapsed() > times_out);
    world.kafka.thaw(leader);
    world.cassandra.thaw(2);
    world.kafka.wait_until_in_step();
    run.flow_goes_on("they are thawed");
    run.creates_go_on("they are thawed");
    run.assert_none_refused();
    run.assert_no_stream_ended();
    run.end(&world.kafka);
}

#[test]
fn outages_are_waited_out() {
    if is_missing() {
        return;
    }
    let world = world::alone();
    let mut run = Run::start(&world, 2, &[RING]);
    run.creates_go_on("all are there");
    let before = run.resident_bytes();
    let mut most = before;

    run.inject(&format!("all database nodes frozen for {:?}", outage()));
    world.freeze_databases();
    let began = Instant::now();
    run.readiness_misses(&["store"], "the databases are frozen");
    run.set_heavy(true);
    run.relay_rests_while_creates_are_refused(25, "store");
    run.flows_until(began + outage() / 2, "the databases are frozen");
    most = most.max(run.resident_bytes());

    run.set_heavy(false);
    run.inject(&format!("all brokers frozen for {:?}, half of that together", outage()));
    world.freeze_brokers();
    let frozen = Instant::now();
    run.readiness_misses(&["log", "store"], "the brokers are frozen too");
    while began.elapsed() < outage() {
        run.streams_are_held();
        most = most.max(run.resident_bytes());
    }
    world.thaw_databases();
    run.readiness_misses(&["log"], "the databases are thawed");
    run.creates_are_refused(1, "log");
    while frozen.elapsed() < outage() {
        run.streams_are_held();
        most = most.max(run.resident_bytes());
    }
    world.thaw_brokers();
    run.readiness_misses(&[], "the brokers are thawed");
    run.flow_goes_on("all are thawed");
    run.creates_go_on("all are thawed");

    println!("a node has {} MiB before and {} MiB at most", before >> 20, most >> 20);
    assert!(most < before + MEMORY_MORE_MAX, "{before} and {most} bytes");
    run.assert_no_dead_letters();
    run.assert_no_stream_ended();
    run.end(&world.kafka);
}
