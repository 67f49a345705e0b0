//! What several shards cost on one machine, on glommio and with epoll: CPU a delivery, and CPU
//! while nothing happens but heartbeats.
//!
//! For each number of shards a node on glommio, one with epoll and the bare loop hold as many
//! streams and get a message in turn. One shard has the server's core for itself; the second one
//! shares the clients' core with them, and the third the server's with the first.

use std::time::{Duration, Instant};

use corecast::shard::RuntimeKind;

use super::figures::{Figures, Goal, Spread};
use super::peers::{Cpu, Node};
use super::sides::{Bare, Round, Side, frame_bytes, one_shard};
use super::streams::CPU_GOAL;
use super::{CONTENT_BYTES, streams_many};

const ROUNDS: usize = 31;
const WARM_UP_ROUNDS: usize = 3;
/// The longest time between two heartbeats of a stream. After a message to all, those of all
/// streams come close together, so nothing shorter would do.
const IDLE: Duration = Duration::from_secs(25);
const IDLE_ROUNDS: u32 = 3;
/// Percent of a core.
const IDLE_GOAL: f64 = 2.0;

pub fn measure(figures: &mut Figures) {
    let streams = streams_many();
    for (shards, name) in
        [(one_shard(), "1 shard"), ("2".into(), "2 shards"), ("3".into(), "3 shards")]
    {
        println!("counts: {name}, {streams} streams of each");
        let nodes = RuntimeKind::ALL.map(|kind| Node::start(&shards, kind.name()));
        let mut sides = nodes.each_ref().map(Side::of_node);
        let mut bare = Bare::start();
        sides.iter_mut().chain([&mut bare.side]).for_each(|side| side.open(0, streams));
        deliveries(figures, name, (&nodes, &mut sides), &mut bare, streams);
        // It has no heartbeats, and is in the way of nobody any more.
        drop(bare);
        idle(figures, name, &nodes, &mut sides);
    }
}

fn deliveries(
    figures: &mut Figures,
    name: &str,
    (nodes, sides): (&[Node; 2], &mut [Side; 2]),
    bare: &mut Bare,
    streams: u32,
) {
    let mut rounds: Vec<[Round; 3]> = Vec::new();
    for number in 0..WARM_UP_ROUNDS + ROUNDS {
        let content = format!("{number:>0$}", CONTENT_BYTES);
        let [glommio, epoll] =
            [0, 1].map(|kind| sides[kind].round(streams, || nodes[kind].publish(&content)));
        let bare = bare.round(streams, frame_bytes(&glommio, streams));
        if number >= WARM_UP_ROUNDS {
            rounds.push([glommio, epoll, bare]);
        }
    }
    let of = |side: usize, of: fn(&Round) -> f64| {
        rounds.iter().map(|round| of(&round[side])).collect::<Vec<f64>>()
    };
    for (side, kind) in RuntimeKind::ALL.iter().enumerate() {
        let goal = if name == "1 shard" { Goal::RatioAtMost(CPU_GOAL) } else { Goal::None };
        let threads = |round: &Round| round.cpu.threads;
        let what = format!("CPU a delivery, {name}, {}", kind.name());
        figures.add((what, "ns"), &of(side, threads), ("bare loop", &of(2, threads)), goal);
    }
    for (side, kind) in RuntimeKind::ALL.iter().enumerate() {
        let took = |round: &Round| round.took.as_secs_f64() * 1e3;
        let what = format!("all have it, {name}, {}", kind.name());
        figures.add((what, "ms"), &of(side, took), ("bare loop", &of(2, took)), Goal::None);
    }
}

fn idle(figures: &mut Figures, name: &str, nodes: &[Node; 2], sides: &mut [Side; 2]) {
    let heartbeats = || nodes.each_ref().map(|node| node.counted("corecast_heartbeats_total"));
    let before = heartbeats();
    let mut rounds: Vec<[Cpu; 2]> = Vec::new();
    let began = Instant::now();
    let mut last = sides.each_ref().map(|side| (Instant::now(), side.cpu()));
    for round in 1..=IDLE_ROUNDS {
        harness::wait::until_due(began + IDLE * round);
        let now = sides.each_ref().map(|side| (Instant::now(), side.cpu()));
        rounds.push([0, 1].map(|side| {
            let wall = (now[side].0 - last[side].0).as_nanos() as f64 / 100.0;
            let (before, after) = (last[side].1, now[side].1);
            Cpu {
                threads: (after.threads - before.threads) / wall,
                process: (after.process - before.process) / wall,
            }
        }));
        last = now;
    }
    let sent = [0, 1].map(|side| heartbeats()[side] - before[side]);
    let of = |side: usize, of: fn(&Cpu) -> f64| {
        rounds.iter().map(|round| of(&round[side])).collect::<Vec<f64>>()
    };
    let threads = [0, 1].map(|side| of(side, |cpu| cpu.threads));
    for (side, goal) in [(0, Goal::AtMost(IDLE_GOAL)), (1, Goal::AtMost(IDLE_GOAL))] {
        let [ours, other] = [side, 1 - side].map(|side| RuntimeKind::ALL[side].name());
        let what = format!("idle CPU, {name}, {ours}");
        figures.add((what, "%"), &threads[side], (other, &threads[1 - side]), goal);
    }
    let [glommio, epoll] = [0, 1].map(|side| Spread::of(&of(side, |cpu| cpu.process)).median);
    figures.note(format!(
        "idle, {name}: percent of a core, all shard threads together, {IDLE_ROUNDS} times {} s, in \
         which glommio sent {} and epoll {} heartbeats; the whole process {glommio:.2} % and \
         {epoll:.2} %",
        IDLE.as_secs(),
        sent[0],
        sent[1]
    ));
}
