//! What a stream costs: memory while it is idle, and CPU a delivery when all get a message.

use super::figures::{Figures, Goal, Spread};
use super::peers::{self, Cpu, Memory, Node};
use super::sides::{Bare, Side, frame_bytes, one_shard};
use super::{CLIENT_CORE, CONTENT_BYTES, SERVER_CORE, streams_many};

pub const STREAMS_FEW: u32 = 1_000;
/// Rounds of one message to all, of the node and of the bare loop.
const ROUNDS: usize = 31;
/// The first rounds fill caches and the kernel's slabs.
const WARM_UP_ROUNDS: usize = 3;

const MEMORY_GOAL: f64 = 256.0;
pub const CPU_GOAL: f64 = 1.10;

pub fn measure(figures: &mut Figures) {
    let many = streams_many();
    let few = STREAMS_FEW;

    // Children inherit it. The allocator asks for huge pages, and 2 MiB more or less are 150 bytes
    // a stream here.
    rustix::thread::disable_transparent_huge_pages(true).expect("Linux");
    // As a node is by default, but for one shard, which is what the bare loop can be compared with.
    let node = Node::start(&one_shard(), "auto");
    let runtime = node.runtime();
    let mut ours = Side::of_node(&node);
    let mut bare = Bare::start();

    println!("streams: opening {many} of each");
    let (slope, kernel) = memory_slope(&mut ours, few, many);
    let (bare_slope, _) = memory_slope(&mut bare.side, few, many);
    let (resident, bare_resident) = ([slope.resident], [bare_slope.resident]);
    figures.add(
        ("memory, an idle stream", "B"),
        &resident,
        ("bare loop", &bare_resident),
        Goal::AtMost(MEMORY_GOAL),
    );
    figures.note(format!(
        "memory: one shard on {runtime}; resident bytes of the process, slope from {few} \
         to {many} idle streams, user ids of \
         16 bytes, three roles each, without huge pages; private {:.0} B (bare loop {:.0} B). \
         Apart from it the kernel's objects of both ends of a connection: {kernel:.0} B",
        slope.private, bare_slope.private
    ));

    let mut rounds: Vec<[Cpu; 2]> = Vec::new();
    let mut bytes = 0;
    for round in 0..WARM_UP_ROUNDS + ROUNDS {
        let content = format!("{round:>0$}", CONTENT_BYTES);
        let node_round = ours.round(many, || node.publish(&content));
        bytes = frame_bytes(&node_round, many);
        let bare_round = bare.round(many, bytes);
        assert_eq!(bare_round.bytes, node_round.bytes, "both send the same");
        if round >= WARM_UP_ROUNDS {
            rounds.push([node_round.cpu, bare_round.cpu]);
        }
    }
    let values = |of: fn(&[Cpu; 2]) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let bare_cpu = values(|round| round[1].threads);
    figures.add(
        ("CPU a delivery, shard", "ns"),
        &values(|round| round[0].threads),
        ("bare loop", &bare_cpu),
        Goal::RatioAtMost(CPU_GOAL),
    );
    figures.add(
        ("CPU a delivery, whole process", "ns"),
        &values(|round| round[0].process),
        ("bare loop", &values(|round| round[1].process)),
        Goal::None,
    );
    let ratios = Spread::of(&values(|round| round[0].threads / round[1].threads));
    figures.note(format!(
        "CPU: one shard on {runtime}; {many} deliveries of {bytes} bytes a round, {ROUNDS} rounds \
         of each in turn; server on core {SERVER_CORE}, clients on core {CLIENT_CORE}; ratio of a \
         round: median {:.3}, least {:.3}, most {:.3}",
        ratios.median, ratios.least, ratios.most
    ));
}

/// Bytes a stream of the process, and of the kernel.
fn memory_slope(side: &mut Side, few: u32, many: u32) -> (Memory, f64) {
    side.open(0, few);
    let (before, kernel_before) = (side.memory(), peers::kernel_memory());
    side.open(few, many - few);
    let (after, kernel_after) = (side.memory(), peers::kernel_memory());
    let streams = f64::from(many - few);
    let slope = Memory {
        resident: (after.resident - before.resident) / streams,
        private: (after.private - before.private) / streams,
    };
    (slope, (kernel_after - kernel_before) / streams)
}
