//! What is compared: servers, each with its clients.

use std::time::{Duration, Instant};

use super::SERVER_CORE;
use super::peers::{self, Cpu, Memory, Node, Peer};

/// A server with its clients.
pub struct Side {
    process: u32,
    /// How the names of the threads begin whose CPU counts.
    threads: &'static str,
    address: String,
    audience: Peer,
}

/// One frame to all.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// A delivery.
    pub cpu: Cpu,
    /// From the command until all have it.
    pub took: Duration,
    /// That came.
    pub bytes: u64,
}

/// The bare loop, on the first core.
pub struct Bare {
    process: Peer,
    pub side: Side,
}

impl Side {
    pub fn of_node(node: &Node) -> Self {
        let (address, audience) = (node.public.clone(), Peer::start(peers::AUDIENCE));
        Self { process: node.id(), threads: "shard-", address, audience }
    }

    pub fn open(&mut self, first: u32, count: u32) {
        self.audience.tell(format!("open {} {first} {count}\n", self.address).as_bytes());
        self.audience.answer("opened");
    }

    pub fn memory(&self) -> Memory {
        // Whatever it did last is done once its threads sleep.
        self.cpu();
        peers::memory(self.process)
    }

    pub fn cpu(&self) -> Cpu {
        peers::cpu(self.process, self.threads)
    }

    /// Lets the server send one frame to all.
    pub fn round(&mut self, streams: u32, send: impl FnOnce()) -> Round {
        let before = self.cpu();
        self.audience.tell(format!("drain {streams}\n").as_bytes());
        let began = Instant::now();
        send();
        let bytes = self.audience.answer("drained ");
        let took = began.elapsed();
        let after = self.cpu();
        let bytes = bytes.parse().expect("a number of bytes");
        let threads = (after.threads - before.threads) / f64::from(streams);
        let process = (after.process - before.process) / f64::from(streams);
        Round { cpu: Cpu { threads, process }, took, bytes }
    }
}

impl Bare {
    pub fn start() -> Self {
        let process = Peer::start(peers::BARE);
        let address = process.answer("listening on ");
        let audience = Peer::start(peers::AUDIENCE);
        // Threads have 15 bytes of a program's name.
        let name = std::fs::read_to_string(format!("/proc/{}/comm", process.id()));
        let threads = name.expect("it runs").trim().to_owned().leak();
        let side = Side { process: process.id(), threads, address, audience };
        Self { process, side }
    }

    /// Sends a frame of so many bytes to all.
    pub fn round(&mut self, streams: u32, frame_bytes: u64) -> Round {
        let mut command = format!("send {frame_bytes}\n").into_bytes();
        command.resize(command.len() + frame_bytes as usize - 3, b'x');
        command.extend_from_slice(b"}\n\n");
        let process = &mut self.process;
        let round = self.side.round(streams, || process.tell(&command));
        assert_eq!(self.process.answer("sent "), streams.to_string());
        round
    }
}

/// The bytes of one frame of a round.
pub fn frame_bytes(round: &Round, streams: u32) -> u64 {
    assert_eq!(round.bytes % u64::from(streams), 0, "every stream gets a frame of one length");
    round.bytes / u64::from(streams)
}

/// `node.shards` that is one shard on the server's core.
pub fn one_shard() -> String {
    format!("[{SERVER_CORE}]")
}
