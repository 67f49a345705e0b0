//! P8, restart without loss or storm: nodes are restarted one after the other under load, and all
//! of them are killed at once. Clients behave as browsers' EventSource does, behind a load balancer
//! that sends them only to nodes that are ready. What one node does of it is in `tests/drain.rs`.

use std::time::{Duration, Instant};

use crate::real::is_missing;
use crate::run::Run;
use crate::users::Return;
use crate::world;

const NODES: usize = 3;
/// EventSources, a third on each node at first.
const SOURCES: usize = 180;
const WINDOW: Duration = Duration::from_secs(4);
const WINDOW_SET: &str = "drain.window_s=4";
/// No client is away for longer in a rolling restart.
const AWAY_MAX: Duration = Duration::from_secs(2);

#[test]
fn a_rolling_restart_loses_nothing_and_is_no_storm() {
    if is_missing() {
        return;
    }
    // Other stories would take the time that is measured here.
    let world = world::alone();
    let mut run = Run::start_with(&world, NODES, SOURCES, &[WINDOW_SET]);
    for node in 0..NODES {
        let (before, began) = (run.returns().len(), Instant::now());
        let took = run.roll(node);
        run.share();
        run.flow_goes_on("it is back");
        let returns = run.returns();
        assert_spread(&returns, began, returns.len() - before);
        println!("node {node} drained in {took:?} and was away for {:?}", began.elapsed());
    }
    let returns = run.returns();
    let longest = print_times(&returns);
    assert!(longest < AWAY_MAX, "{longest:?}");
    run.end(&world.kafka);
}

#[test]
fn all_nodes_killed_at_once_lose_nothing() {
    if is_missing() {
        return;
    }
    let world = world::shared();
    let mut run = Run::start_with(&world, NODES, SOURCES, &[]);
    run.kill_all("under load");
    (0..NODES).for_each(|node| run.launch(node));
    (0..NODES).for_each(|node| run.restart(node));
    run.flow_goes_on("all are back");
    let returns = run.returns();
    assert_eq!(returns.len(), SOURCES, "everybody lost his stream, and once");
    print_times(&returns);
    run.end(&world.kafka);
}

/// Those who left since then did so in all seconds of the window, and too many in none.
fn assert_spread(returns: &[Return], began: Instant, many: usize) {
    let since = |left: &Instant| left.checked_duration_since(began);
    let left: Vec<u64> =
        returns.iter().filter_map(|one| since(&one.left)).map(|since| since.as_secs()).collect();
    let in_second = |second| left.iter().filter(|left| **left == second).count();
    let a_second: Vec<usize> = (0..=WINDOW.as_secs()).map(in_second).collect();
    println!("{many} streams ended, by the second: {a_second:?}");
    assert_eq!(a_second.iter().sum::<usize>(), many, "no other node ended any");
    assert!(many >= SOURCES / 4, "{many} are too few to tell");
    // Behind the window only who was told at its very end.
    let (late, within) = a_second.split_last().expect("some seconds");
    let mean = many / within.len();
    let is_even = |many: &usize| (mean / 4..=mean * 2).contains(many);
    assert!(within.iter().all(is_even) && *late <= mean, "{a_second:?}");
}

/// Tells how long clients were away; the longest.
fn print_times(returns: &[Return]) -> Duration {
    let mut away: Vec<Duration> = returns.iter().map(|one| one.away).collect();
    away.sort_unstable();
    let at = |percent: usize| away[(away.len() * percent / 100).min(away.len() - 1)];
    let refused: usize = returns.iter().map(|one| one.refused).sum();
    println!(
        "{} times a client was away: p50 {:?}, p99 {:?}, longest {:?}; {refused} tries refused",
        away.len(),
        at(50),
        at(99),
        at(100)
    );
    at(100)
}
