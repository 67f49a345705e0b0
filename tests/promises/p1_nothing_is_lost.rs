//! P1, nothing is lost: every accepted event ends at each of its users in exactly one way, and an
//! offset is acknowledged only after its effects are durable. Nodes are killed in any phase, one is
//! frozen, brokers and database nodes are lost; at the end everybody has each of his messages, once
//! and in the order of its partition.

use std::time::{Duration, Instant};

use corecast::limits::kafka::REQUEST_TIME;
use corecast::limits::log::FETCH_WAIT;
use harness::wait;

use crate::real::{LONG, is_missing};
use crate::run::Run;
use crate::world;

/// From a fault of one broker until records of every partition come again: the node gives up a
/// request after 5.5 s, the brokers give their fellow up after 3 s and choose new leaders, and the
/// node's next try is at most 5 s away. Twice that, for a machine that is busy.
const FLOW_AGAIN: Duration = Duration::from_secs(30);

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
