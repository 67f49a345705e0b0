//! What a stream costs: memory while it is idle, and CPU a delivery when all get a message.

use super::figures::{Figures, Goal, Spread};
use super::peers::{self, Cpu, Memory, Node, Peer};
use super::{CLIENT_CORE, SERVER_CORE};

const STREAMS_FEW: u32 = 1_000;
const STREAMS_MANY: u32 = 15_000;
/// Rounds of one message to all, of the node and of the bare loop.
const ROUNDS: usize = 31;
/// The first rounds fill caches and the kernel's slabs.
const WARM_UP_ROUNDS: usize = 3;
const CONTENT_BYTES: usize = 200;

const MEMORY_GOAL: f64 = 256.0;
const CPU_GOAL: f64 = 1.10;

/// A server with its clients.
struct Side {
    process: u32,
    thread: &'static str,
    address: String,
    audience: Peer,
}

impl Side {
    fn open(&mut self, first: u32, count: u32) {
        self.audience.tell(format!("open {} {first} {count}\n", self.address).as_bytes());
        self.audience.answer("opened");
    }

    fn memory(&self) -> Memory {
        // Whatever it did last is done once its thread sleeps.
        self.cpu();
        peers::memory(self.process)
    }

    fn cpu(&self) -> Cpu {
        peers::cpu(self.process, self.thread)
    }

    /// Lets the server send one frame to all; returns its CPU, and the bytes that came.
    fn round(&mut self, streams: u32, send: impl FnOnce()) -> (Cpu, u64) {
        let before = self.cpu();
        self.audience.tell(format!("drain {streams}\n").as_bytes());
        send();
        let bytes = self.audience.answer("drained ");
        let after = self.cpu();
        let bytes = bytes.parse().expect("a number of bytes");
        let thread = (after.thread - before.thread) / f64::from(streams);
        let process = (after.process - before.process) / f64::from(streams);
        (Cpu { thread, process }, bytes)
    }
}

pub fn measure(figures: &mut Figures) {
    let many = std::env::var("BENCH_STREAMS").ok().and_then(|count| count.parse().ok());
    let many: u32 = many.unwrap_or(STREAMS_MANY).max(STREAMS_FEW + 1);
    let few = STREAMS_FEW;

    // Children inherit it. The allocator asks for huge pages, and 2 MiB more or less are 150 bytes
    // a stream here.
    rustix::thread::disable_transparent_huge_pages(true).expect("Linux");
    let node = Node::start(SERVER_CORE);
    let audience = Peer::start(peers::AUDIENCE);
    let address = node.public.clone();
    let mut ours = Side { process: node.id(), thread: "shard-0", address, audience };
    let mut loop_process = Peer::start(peers::BARE);
    let address = loop_process.answer("listening on ");
    let audience = Peer::start(peers::AUDIENCE);
    // Threads have 15 bytes of a program's name.
    let name = std::fs::read_to_string(format!("/proc/{}/comm", loop_process.id()));
    let thread = name.expect("it runs").trim().to_owned().leak();
    let mut bare = Side { process: loop_process.id(), thread, address, audience };

    println!("streams: opening {many} of each");
    let (slope, kernel) = memory_slope(&mut ours, few, many);
    let (bare_slope, _) = memory_slope(&mut bare, few, many);
    let (resident, bare_resident) = ([slope.resident], [bare_slope.resident]);
    figures.add(
        ("memory, an idle stream", "B"),
        &resident,
        ("bare loop", &bare_resident),
        Goal::AtMost(MEMORY_GOAL),
    );
    figures.note(format!(
        "memory: resident bytes of the process, slope from {few} to {many} idle streams, user ids \
         of 16 bytes, three roles each, without huge pages; private {:.0} B (bare loop {:.0} B). \
         Apart from it the kernel's objects of both ends of a connection: {kernel:.0} B",
        slope.private, bare_slope.private
    ));

    let mut rounds: Vec<[Cpu; 2]> = Vec::new();
    let mut frame_bytes = 0;
    for round in 0..WARM_UP_ROUNDS + ROUNDS {
        let content = format!("{round:>0$}", CONTENT_BYTES);
        let (node_cpu, bytes) = ours.round(many, || node.publish(&content));
        frame_bytes = bytes / u64::from(many);
        assert_eq!(bytes % u64::from(many), 0, "every stream gets a frame of one length");
        let mut command = format!("send {frame_bytes}\n").into_bytes();
        command.resize(command.len() + frame_bytes as usize - 3, b'x');
        command.extend_from_slice(b"}\n\n");
        let (bare_cpu, bare_bytes) = bare.round(many, || loop_process.tell(&command));
        assert_eq!(loop_process.answer("sent "), many.to_string());
        assert_eq!(bare_bytes, bytes, "both send the same");
        if round >= WARM_UP_ROUNDS {
            rounds.push([node_cpu, bare_cpu]);
        }
    }
    let values = |of: fn(&[Cpu; 2]) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let bare_cpu = values(|round| round[1].thread);
    figures.add(
        ("CPU a delivery, shard", "ns"),
        &values(|round| round[0].thread),
        ("bare loop", &bare_cpu),
        Goal::RatioAtMost(CPU_GOAL),
    );
    figures.add(
        ("CPU a delivery, whole process", "ns"),
        &values(|round| round[0].process),
        ("bare loop", &values(|round| round[1].process)),
        Goal::None,
    );
    let ratios = Spread::of(&values(|round| round[0].thread / round[1].thread));
    figures.note(format!(
        "CPU: {many} deliveries of {frame_bytes} bytes a round, {ROUNDS} rounds of each in turn; \
         server on core {SERVER_CORE}, clients on core {CLIENT_CORE}; ratio of a round: median \
         {:.3}, least {:.3}, most {:.3}",
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
