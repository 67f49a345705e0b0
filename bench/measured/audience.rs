//! The clients: one thread that opens streams and drains them, a process of its own, because one
//! process may have 20,000 descriptors.
//!
//! Commands: `open ADDRESS FIRST COUNT`, answered by `opened` once all have their CONNECTED;
//! `drain FRAMES`, answered by `drained BYTES` once so many frames have come; and `swallow`, which
//! reads whatever comes and ends with the process only.

use std::io::{self, BufRead, Write};
use std::net::TcpStream;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Connects between two waits for answers: below the listeners' backlog.
const OPEN_AT_ONCE: u32 = 500;
/// How every frame ends whose data is a JSON object. A server writes a frame at once, so it is not
/// cut while it fits the socket.
const FRAME_END: &[u8] = b"}\n\n";

pub fn run(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores)?;
    let mut audience = Audience {
        set: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        sockets: Vec::new(),
        ready: Vec::with_capacity(1_024),
        scratch: vec![0; 64 * 1024],
    };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u32>().map_err(io::Error::other);
        let answer = match words[..] {
            ["open", address, first, count] => {
                audience.open(address, number(first)?, number(count)?)?;
                "opened".to_owned()
            }
            ["swallow"] => loop {
                audience.drain(u32::MAX)?;
            },
            ["drain", frames] => format!("drained {}", audience.drain(number(frames)?)?),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

struct Audience {
    set: OwnedFd,
    sockets: Vec<TcpStream>,
    ready: Vec<Event>,
    scratch: Vec<u8>,
}

impl Audience {
    fn open(&mut self, address: &str, first: u32, count: u32) -> io::Result<()> {
        let mut waiting = 0;
        for number in first..first + count {
            let mut socket = TcpStream::connect(address)?;
            socket.write_all(request(number).as_bytes())?;
            socket.set_nonblocking(true)?;
            let index = EventData::new_u64(self.sockets.len() as u64);
            epoll::add(&self.set, &socket, index, EventFlags::IN)?;
            self.sockets.push(socket);
            waiting += 1;
            if waiting == OPEN_AT_ONCE || number + 1 == first + count {
                self.drain(std::mem::take(&mut waiting))?;
            }
        }
        Ok(())
    }

    /// Reads until so many frames have come; returns their bytes, without heartbeats.
    fn drain(&mut self, frames: u32) -> io::Result<u64> {
        let mut missing = i64::from(frames);
        let mut bytes = 0;
        while missing > 0 {
            self.ready.clear();
            match epoll::wait(&self.set, spare_capacity(&mut self.ready), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &self.ready {
                let data = event.data;
                let socket = &self.sockets[data.u64() as usize];
                let read = rustix::io::read(socket, &mut *self.scratch)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let chunk = &self.scratch[..read];
                let chunk = without_heartbeats(chunk);
                let ends = chunk.windows(FRAME_END.len()).filter(|part| *part == FRAME_END);
                let ends = ends.count() as i64;
                if ends > 0 {
                    bytes += chunk.len() as u64;
                    missing -= ends;
                }
            }
        }
        Ok(bytes)
    }
}

/// What came behind the heartbeats of a stream that nobody has read for a while.
fn without_heartbeats(mut chunk: &[u8]) -> &[u8] {
    while let Some(rest) = chunk.strip_prefix(b":\n\n") {
        chunk = rest;
    }
    chunk
}

/// A user id of 16 bytes.
pub fn user(number: u32) -> String {
    format!("user-{number:011}")
}

/// A user with three roles: one that all have, one of 20 and one of 100.
fn request(number: u32) -> String {
    let (site, team) = roles(number);
    format!(
        "GET /api/user/sse/connect?userId={}&roles=staff,site-{site},team-{team} \
         HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
        user(number)
    )
}

/// Site and team of a user, spread as if by chance.
pub fn roles(number: u32) -> (u32, u32) {
    let mixed = number.wrapping_mul(0x9e37_79b1);
    ((mixed >> 16) % 20, (mixed >> 8) % 100)
}
