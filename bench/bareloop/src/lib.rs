//! The baseline of the benchmarks: the least that a program can do to send bytes to many sockets.
//!
//! One thread, one epoll set. It accepts, reads a request head, answers the head of an SSE stream
//! and one event, and on a command sends the same bytes to every socket by one plain write each.
//! It has no audiences, ids, timers, ring or limits, takes no thought of slow readers, and shares
//! no code with the gateway. It stays as it is, or older figures mean nothing any more.
//!
//! Commands on stdin: a line `send LENGTH`, and so many bytes. Answers on stdout, a line each:
//! `listening on ADDRESS`, and `sent SOCKETS` once every socket has been written to. It ends with
//! its stdin.

use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::thread::{CpuSet, sched_setaffinity};

const BACKLOG: i32 = 4_096;
const LISTENER: u64 = u64::MAX;
const COMMANDS: u64 = u64::MAX - 1;
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    cache-control: no-store\r\nx-accel-buffering: no\r\n\r\nevent: CONNECTED\ndata: {}\n\n";

/// Serves until stdin ends. With a core, pinned to it.
pub fn run(core: Option<usize>) -> io::Result<()> {
    if let Some(core) = core {
        let mut cores = CpuSet::new();
        cores.set(core);
        sched_setaffinity(None, &cores)?;
    }
    let listener = listen()?;
    say(&format!("listening on {}", listener.local_addr()?))?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut commands = io::stdin().lock();
    epoll::add(&set, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    epoll::add(&set, &commands, EventData::new_u64(COMMANDS), EventFlags::IN)?;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    let mut ready = Vec::with_capacity(1_024);
    let mut scratch = vec![0; 16 * 1024];
    loop {
        ready.clear();
        match epoll::wait(&set, spare_capacity(&mut ready), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &ready {
            let data = event.data;
            match data.u64() {
                LISTENER => accept(&listener, &set, &mut sockets)?,
                COMMANDS => {
                    let Some(bytes) = read_command(&mut commands)? else { return Ok(()) };
                    let sent = send(&sockets, &bytes);
                    say(&format!("sent {sent}"))?;
                }
                index => {
                    let socket = &sockets[index as usize];
                    // Each edge is a whole head, or the end of the connection.
                    if matches!(rustix::io::read(socket, &mut *scratch), Ok(1..)) {
                        rustix::io::write(socket, RESPONSE)?;
                    }
                }
            }
        }
    }
}

fn listen() -> io::Result<TcpListener> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, set: &OwnedFd, sockets: &mut Vec<OwnedFd>) -> io::Result<()> {
    loop {
        match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => {
                let index = EventData::new_u64(sockets.len() as u64);
                epoll::add(set, socket.as_fd(), index, EventFlags::IN | EventFlags::ET)?;
                sockets.push(socket);
            }
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The bytes to send; `None` at the end of the commands.
fn read_command(commands: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = String::new();
    if commands.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let length = line.trim().strip_prefix("send ").and_then(|length| length.parse().ok());
    let length: usize = length.ok_or(io::ErrorKind::InvalidInput)?;
    let mut bytes = vec![0; length];
    commands.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// Writes the bytes to every socket; returns how many took them all.
fn send(sockets: &[OwnedFd], bytes: &[u8]) -> usize {
    let mut sent = 0;
    for socket in sockets {
        sent += usize::from(rustix::io::write(socket, bytes) == Ok(bytes.len()));
    }
    sent
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
