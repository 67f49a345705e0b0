//! The door of a shard: accepts, reads request heads, and answers what it refuses.
//!
//! Lives on the shard's thread. A head that came with the first packet costs one accept and one
//! read. Everything else waits in a slab, under one deadline for all (so that a queue is its
//! timer). It never waits, and never looks into a stream.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use super::token::Token;
use crate::base::Moment;
use crate::domain::Slab;
use crate::limits::edge as limits;
use crate::wire::head::{Head, HeadError, may_be_complete, read_head};

/// A connection that has said what it wants.
#[derive(Debug)]
pub struct Arrival {
    pub socket: OwnedFd,
    /// The head, and whatever came with it.
    pub bytes: Vec<u8>,
}

/// What the door makes of the heads that it reads.
pub trait Visitor {
    /// A complete head. The answer for it is the visitor's affair.
    fn handle_head(&mut self, door: &mut Door, set: BorrowedFd<'_>, arrival: Arrival, now: Moment);
    /// A head that is refused, and what was read of it: the bytes of the answer.
    fn refusal(&mut self, error: HeadError, head: &[u8]) -> Vec<u8>;
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct DoorCounters {
    pub accepted: u64,
    /// Heads that were refused: malformed, too large, too slow.
    pub refused: u64,
    /// Connections closed because too many others were at the door.
    pub evicted: u64,
    /// Times that the process had no descriptor for a connection.
    pub exhausted: u64,
}

#[derive(Debug)]
struct Waiting {
    socket: OwnedFd,
    serial: u32,
    bytes: Vec<u8>,
    /// Its answer is out: what still comes is read and forgotten.
    lingers: bool,
}

#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    waiting: Slab<Waiting>,
    /// Deadlines of heads, and of lingering connections, each in order.
    reading: VecDeque<(Moment, u64)>,
    lingering: VecDeque<(Moment, u64)>,
    serials: u32,
    heads_max: usize,
    resting_until: Option<Moment>,
    scratch: Box<[u8]>,
    counters: DoorCounters,
}

impl Door {
    /// Takes connections from this non-blocking listener and enters it into the set.
    pub fn new(listener: TcpListener, set: BorrowedFd<'_>, heads_max: usize) -> io::Result<Self> {
        watch(set, listener.as_fd(), Token::Listener, EventFlags::IN)?;
        Ok(Self {
            listener,
            waiting: Slab::default(),
            reading: VecDeque::new(),
            lingering: VecDeque::new(),
            serials: 0,
            heads_max: limits::HEADS_MAX.min(heads_max),
            resting_until: None,
            scratch: vec![0; limits::HEAD_BYTES_MAX].into(),
            counters: DoorCounters::default(),
        })
    }

    pub fn counters(&self) -> &DoorCounters {
        &self.counters
    }

    /// Connections wait at the listener: takes a bounded number of them.
    pub fn handle_connects(
        &mut self,
        set: BorrowedFd<'_>,
        visitor: &mut impl Visitor,
        now: Moment,
    ) {
        for _ in 0..limits::ACCEPTS_PER_TURN_MAX {
            match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    self.counters.accepted += 1;
                    self.serials = self.serials.wrapping_add(1) & 0x3fff_ffff;
                    let serial = self.serials;
                    let bytes = Vec::new();
                    let waiting = Waiting { socket, serial, bytes, lingers: false };
                    self.read(set, Err(waiting), visitor, now);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.counters.exhausted += 1;
                    let _ = epoll::delete(set, &self.listener);
                    self.resting_until = Some(now.plus(limits::ACCEPT_REST));
                    return;
                }
                // The connection was gone before it was taken (accept(2)).
                Err(_) => {}
            }
        }
    }

    /// A connection at the door has sent something, or has gone.
    pub fn handle_readable(
        &mut self,
        set: BorrowedFd<'_>,
        key: u64,
        visitor: &mut impl Visitor,
        now: Moment,
    ) {
        let Some(waiting) = self.waiting.get_mut(key as u32) else { return };
        if waiting.serial != (key >> 32) as u32 {
            return;
        }
        if waiting.lingers {
            if !matches!(rustix::io::read(&waiting.socket, &mut *self.scratch), Ok(1..)) {
                self.waiting.remove(key as u32);
            }
            return;
        }
        self.read(set, Ok(key as u32), visitor, now);
    }

    /// Closes who has been too slow.
    pub fn handle_timers(&mut self, set: BorrowedFd<'_>, visitor: &mut impl Visitor, now: Moment) {
        while let Some((deadline, key)) = self.reading.front().copied() {
            let waits = self.stands(key).is_some_and(|waiting| !waiting.lingers);
            if waits && deadline > now {
                break;
            }
            self.reading.pop_front();
            if waits && let Some(waiting) = self.waiting.remove(key as u32) {
                let _ = epoll::delete(set, &waiting.socket);
                self.refuse(set, waiting, HeadError::TooSlow, visitor, now);
            }
        }
        while let Some((deadline, key)) = self.lingering.front().copied() {
            let stands = self.stands(key).is_some();
            if stands && deadline > now {
                break;
            }
            self.lingering.pop_front();
            if stands {
                self.waiting.remove(key as u32);
            }
        }
        if self.resting_until.is_some_and(|until| until <= now) {
            self.resting_until = None;
            let _ = watch(set, self.listener.as_fd(), Token::Listener, EventFlags::IN);
        }
    }

    /// When `handle_timers` has to be called next.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let deadlines = [
            self.reading.front().map(|(deadline, _)| *deadline),
            self.lingering.front().map(|(deadline, _)| *deadline),
            self.resting_until,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Sends a whole answer and ends the connection, in a way that the peer gets to see it.
    pub fn answer(&mut self, set: BorrowedFd<'_>, socket: OwnedFd, answer: &[u8], now: Moment) {
        // An answer fits the empty buffer of a new socket; what doesn't is lost to a peer that
        // does not read.
        let sent = rustix::io::write(&socket, answer);
        if sent.is_err() || shutdown(&socket, Shutdown::Write).is_err() {
            return;
        }
        // What the peer sent behind its head is read, or the close would be a reset.
        match rustix::io::read(&socket, &mut *self.scratch) {
            Ok(0) => return,
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(_) => return,
        }
        self.make_room();
        self.serials = self.serials.wrapping_add(1) & 0x3fff_ffff;
        let waiting = Waiting { socket, serial: self.serials, bytes: Vec::new(), lingers: true };
        if let Some(key) = self.enter(set, waiting) {
            self.lingering.push_back((now.plus(limits::LINGER_TIME), key));
        }
    }

    /// Reads from a connection, which waits already (`Ok`) or is new (`Err`).
    fn read(
        &mut self,
        set: BorrowedFd<'_>,
        who: Result<u32, Waiting>,
        visitor: &mut impl Visitor,
        now: Moment,
    ) {
        let (is_new, mut waiting) = match who {
            Err(waiting) => (true, waiting),
            Ok(index) => match self.waiting.remove(index) {
                Some(waiting) => (false, waiting),
                None => return,
            },
        };
        let read = match rustix::io::read(&waiting.socket, &mut *self.scratch) {
            Ok(0) => return,
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => return,
        };
        let fresh = waiting.bytes.len();
        waiting.bytes.extend_from_slice(&self.scratch[..read]);
        let look = fresh == 0
            || may_be_complete(&waiting.bytes, fresh)
            || waiting.bytes.len() >= limits::HEAD_BYTES_MAX;
        let is_complete = if read > 0 && look {
            read_head(&waiting.bytes).map(|head| head.is_some())
        } else {
            Ok(false)
        };
        if !is_new && is_complete != Ok(false) {
            let _ = epoll::delete(set, &waiting.socket);
        }
        match is_complete {
            Err(error) => self.refuse(set, waiting, error, visitor, now),
            Ok(true) => {
                let arrival = Arrival { socket: waiting.socket, bytes: waiting.bytes };
                visitor.handle_head(self, set, arrival, now);
            }
            Ok(false) if is_new => {
                self.make_room();
                if let Some(key) = self.enter(set, waiting) {
                    self.reading.push_back((now.plus(limits::HEAD_TIME), key));
                }
            }
            Ok(false) => {
                // The index was freed by this very call, so it is given out again.
                self.waiting.insert(waiting);
            }
        }
    }

    fn refuse(
        &mut self,
        set: BorrowedFd<'_>,
        waiting: Waiting,
        error: HeadError,
        visitor: &mut impl Visitor,
        now: Moment,
    ) {
        self.counters.refused += 1;
        let answer = visitor.refusal(error, &waiting.bytes);
        self.answer(set, waiting.socket, &answer, now);
    }

    /// Makes a connection wait; `None` if the kernel can't watch it, and then it is closed.
    fn enter(&mut self, set: BorrowedFd<'_>, waiting: Waiting) -> Option<u64> {
        let serial = waiting.serial;
        let index = self.waiting.insert(waiting);
        let key = u64::from(serial) << 32 | u64::from(index);
        let socket = &self.waiting.get(index)?.socket;
        if watch(set, socket.as_fd(), Token::Head(key), EventFlags::IN).is_err() {
            self.waiting.remove(index);
            return None;
        }
        Some(key)
    }

    /// Closes the oldest of those that wait, if there are too many.
    fn make_room(&mut self) {
        while self.waiting.len() >= self.heads_max {
            let oldest = self.lingering.pop_front().or_else(|| self.reading.pop_front());
            let Some((_, key)) = oldest else { return };
            if self.stands(key).is_some() {
                self.waiting.remove(key as u32);
                self.counters.evicted += 1;
            }
        }
    }

    fn stands(&self, key: u64) -> Option<&Waiting> {
        self.waiting.get(key as u32).filter(|waiting| waiting.serial == (key >> 32) as u32)
    }
}

/// Reads again the head of an arrival, which is known to be complete.
pub fn head_of(arrival: &[u8]) -> Option<Head<'_>> {
    read_head(arrival).ok().flatten()
}

/// Enters a descriptor into the set.
pub fn watch(
    set: BorrowedFd<'_>,
    descriptor: BorrowedFd<'_>,
    token: Token,
    flags: EventFlags,
) -> io::Result<()> {
    Ok(epoll::add(set, descriptor, EventData::new_u64(token.to_bits()), flags)?)
}
