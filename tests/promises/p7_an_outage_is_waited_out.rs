//! P7, an outage is waited out: with Kafka or the store away, open streams stay open, what can be
//! served is served, readiness says what is missing, and nothing goes to the dead letters for it.

use std::time::{Duration, Instant};

use harness::sse::{Item, Stream};

use crate::real::{is_missing, is_without_cables};
use crate::run::Run;
use crate::world;

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

/// Everything is away for one node only, which still has its clients: the others go on without it.
#[test]
fn a_node_that_is_cut_off_waits_and_the_others_go_on() {
    if is_missing() || is_without_cables() {
        return;
    }
    let world = world::shared();
    let mut run = Run::start_behind_cables(&world, 3, &[]);
    let mut held = run.nodes[0].stream("userId=held");
    run.creates_go_on("all are there");
    run.cut_off(0);
    run.is_replaced(0);
    run.creates_go_on("one is cut off");
    wait_for_silence(&mut held);
    run.lose_clients_for_a_while(0);
    wait_for_silence(&mut held);
    run.connect(0);
    held.message();
    run.flow_goes_on("all are there again");
    run.assert_no_dead_letters();
    run.assert_no_stream_ended();
    run.end(&world.kafka);
}

/// Reads what is on its way, until there are only heartbeats.
fn wait_for_silence(stream: &mut Stream) {
    let mut beats = 0;
    while beats < 3 {
        match stream.next_item() {
            Item::Comment(_) => beats += 1,
            Item::End(how) => panic!("the stream ends: {how:?}"),
            _ => beats = 0,
        }
    }
}
