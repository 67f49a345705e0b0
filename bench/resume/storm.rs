//! A node has lost its streams, and all of them come back at once.

use super::crowd::{Crowd, Script, Witnesses};
use super::figures::{Figures, Goal};
use super::records::For;
use super::{PARTITIONS, Site, World, mebibytes, users};

const ROUNDS: usize = 3;
const STREAMS: usize = 15_000;
/// How old their cursors are.
const EVENTS: usize = 100;
/// All live and exact, of the issue that asked for it.
const GOAL_S: f64 = 2.0;
/// A ring that has lost them.
const SMALL_RING: &str = "limits.ring_frames_max=64";

struct Round {
    seconds: f64,
    /// Of as many that have missed nothing.
    bare_seconds: f64,
    /// Records that were read of the log again, by those that there are to read.
    read: f64,
    most: usize,
    before: usize,
    returns: usize,
}

pub fn measure(world: &World, figures: &mut Figures) {
    for (name, keyspace, sets) in
        [("in the ring", "storm_ring", &[][..]), ("beyond it", "storm_log", &[SMALL_RING])]
    {
        println!("storm, {name}: {ROUNDS} rounds of {STREAMS} streams, {EVENTS} events back");
        let mut site = world.site(keyspace, sets);
        let mut witnesses = Witnesses::of(&site.node, "");
        let rounds: Vec<Round> =
            (0..ROUNDS).map(|_| run(world, &mut site, &mut witnesses)).collect();
        let of = |side: fn(&Round) -> f64| -> Vec<f64> { rounds.iter().map(side).collect() };
        let title = format!("15,000 streams back, {name}");
        let bare = of(|round| round.bare_seconds);
        let measured = of(|round| round.seconds);
        figures.add((title, "s"), &measured, ("nothing missed", &bare), Goal::AtMost(GOAL_S));
        if !sets.is_empty() {
            // Each round has one more, which is live.
            let records = (0..ROUNDS).map(|round| (EVENTS * (round + 1) + round) as f64);
            figures.add(
                ("records read again", "records"),
                &of(|round| round.read),
                ("in the log", &records.collect::<Vec<_>>()),
                Goal::RatioAtMost(1.0),
            );
        }
        figures.add(
            (format!("node's memory, {name}"), "MiB"),
            &of(|round| mebibytes(round.most)),
            ("before", &of(|round| mebibytes(round.before))),
            Goal::None,
        );
        let returns: usize = rounds.iter().map(|round| round.returns).sum();
        figures.note(format!("storm, {name}: {returns} streams were put off or came in pieces"));
    }
}

fn run(world: &World, site: &mut Site, witnesses: &mut Witnesses) -> Round {
    let names = users(STREAMS);
    let old = witnesses.cursors();
    world.append(site, EVENTS, &[For::All]);
    let mut script = Script::default();
    (0..EVENTS).for_each(|_| script.add(witnesses.message()));
    let new = witnesses.cursors();
    let crowd = |cursors: &[String], script: Script| {
        let mut crowd = Crowd::new(site.node.public, vec![script]);
        names.iter().for_each(|name| crowd.add(name, "", cursors, 0));
        crowd
    };
    let mut bare = crowd(&new, Script::default());
    let bare_seconds = bare.run().as_secs_f64();
    drop(bare);
    site.settle(f64::from(PARTITIONS));

    let mut crowd = crowd(&old, script);
    let before = site.node.resident_bytes();
    let read_before = site.counted("corecast_records_reread_total");
    let (took, most) = site.watch(|| crowd.run());
    let read = site.counted("corecast_records_reread_total") - read_before;
    let returns = crowd.returns;
    world.append(site, 1, &[For::All]);
    crowd.expect(0, witnesses.message());
    crowd.wait();
    drop(crowd);
    site.settle(f64::from(PARTITIONS));
    Round { seconds: took.as_secs_f64(), bare_seconds, read, most, before, returns }
}
