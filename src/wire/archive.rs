//! The event between cores: one rkyv archive behind one reference count.
//!
//! Written once by the shard that decoded the record, read in place by every shard that serves it.
//! In memory only: an archive never leaves the process. Any thread.
#![allow(unsafe_code)] // Bytes as aligned units, and access to them without validation.

use std::sync::Arc;

use rkyv::boxed::ArchivedBox;
use rkyv::rancor::Panic;
use rkyv::util::AlignedVec;
use rkyv::with::{InlineAsBox, Map};
use rkyv::{Archive, Serialize};

use crate::base::{BroadcastId, EpochMillis, Partition, Position, Topic};

/// What a user can be a member of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum MemberKind {
    Role = 0,
    Group = 1,
    Product = 2,
}

impl MemberKind {
    pub const COUNT: usize = 3;

    pub const fn number(self) -> usize {
        self as usize
    }
}

/// What an event says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// MESSAGE: nothing of it begins once its broadcast has ended.
    Message = 0,
    /// READ_RECEIPT.
    Receipt = 1,
    /// MESSAGE_REMOVED.
    Removal = 2,
}

/// Whom an event is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Audience<'a> {
    Everyone,
    User(&'a str),
    Members { kind: MemberKind, names: Vec<&'a str> },
}

/// An event as it is put into the archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event<'a> {
    pub position: Position,
    pub appended_at: EpochMillis,
    pub event_id: u128,
    pub attempt: u32,
    pub broadcast: BroadcastId,
    pub kind: EventKind,
    pub expires_at: Option<EpochMillis>,
    /// For who is here when it comes, and nobody else.
    pub is_passing: bool,
    pub audience: Audience<'a>,
    /// The SSE frame without its `id` line: `event: NAME\ndata: {json}\n\n`.
    pub body: &'a [u8],
}

/// The archived form: plain numbers and texts.
#[derive(Archive, Serialize)]
struct Stored<'a> {
    topic: u8,
    partition: u16,
    attempt: u32,
    offset: u64,
    appended_at: u64,
    event_id: u128,
    broadcast: u64,
    kind: u8,
    /// `u64::MAX`: never.
    expires_at: u64,
    is_passing: bool,
    audience: u8,
    /// Empty unless the event is for one user.
    #[rkyv(with = InlineAsBox)]
    user: &'a str,
    /// The members' names, sorted and without repeats.
    #[rkyv(with = Map<InlineAsBox>)]
    names: Vec<&'a str>,
    #[rkyv(with = InlineAsBox)]
    body: &'a [u8],
}

const EVERYONE: u8 = 0;
const USER: u8 = 1;
const MEMBERS: u8 = 2;

/// Writes archives, with a buffer that it reuses. One a shard.
#[derive(Debug, Default)]
pub struct Archiver {
    scratch: AlignedVec,
}

/// What an archive is made of: its alignment is the largest that a field of it wants, and so every
/// archive is a whole number of these.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Unit(#[expect(dead_code, reason = "read as a part of the archive")] [u8; UNIT_BYTES]);

const UNIT_BYTES: usize = 16;
const _: () = assert!(align_of::<ArchivedStored<'_>>() <= align_of::<Unit>());
const _: () = assert!(size_of::<ArchivedStored<'_>>().is_multiple_of(UNIT_BYTES));

/// One event, shared by all who serve it: one allocation, count and archive together. Cloning it
/// counts a reference.
#[derive(Clone)]
pub struct SharedEvent {
    /// An archive of `Stored`, written by an `Archiver`.
    units: Arc<[Unit]>,
}

/// Whom an event is for, read in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AudienceRef<'a> {
    Everyone,
    User(&'a str),
    Members { kind: MemberKind, names: Names<'a> },
}

/// Names of members: sorted, without repeats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Names<'a>(&'a [ArchivedBox<str>]);

impl<'a> Names<'a> {
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(ArchivedBox::get)
    }

    pub fn contains(self, name: &str) -> bool {
        self.0.binary_search_by(|known| known.get().cmp(name)).is_ok()
    }
}

impl std::fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Archiver {
    pub fn write(&mut self, event: Event<'_>) -> SharedEvent {
        let (audience, user, mut names) = match event.audience {
            Audience::Everyone => (EVERYONE, "", Vec::new()),
            Audience::User(user) => (USER, user, Vec::new()),
            Audience::Members { kind, names } => (MEMBERS + kind as u8, "", names),
        };
        names.sort_unstable();
        names.dedup();
        let stored = Stored {
            topic: event.position.partition.topic as u8,
            partition: event.position.partition.index,
            attempt: event.attempt,
            offset: event.position.offset,
            appended_at: event.appended_at.0,
            event_id: event.event_id,
            broadcast: event.broadcast.get(),
            kind: event.kind as u8,
            expires_at: event.expires_at.map_or(u64::MAX, |at| at.0),
            is_passing: event.is_passing,
            audience,
            user,
            names,
            body: event.body,
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let scratch = match rkyv::api::high::to_bytes_in::<_, Panic>(&stored, scratch) {
            Ok(scratch) => scratch,
            Err(never) => match never {},
        };
        // SAFETY: any bytes are a `Unit`.
        let (before, units, behind) = unsafe { scratch.align_to::<Unit>() };
        assert!(before.is_empty() && behind.is_empty(), "the root ends an archive of whole units");
        let units = units.into();
        self.scratch = scratch;
        SharedEvent { units }
    }
}

impl SharedEvent {
    pub fn position(&self) -> Position {
        let stored = self.stored();
        let topic = if stored.topic == Topic::Group as u8 { Topic::Group } else { Topic::Selected };
        let partition = Partition { topic, index: stored.partition.to_native() };
        Position { partition, offset: stored.offset.to_native() }
    }

    pub fn partition(&self) -> Partition {
        self.position().partition
    }

    /// When the log took the record.
    pub fn appended_at(&self) -> EpochMillis {
        EpochMillis(self.stored().appended_at.to_native())
    }

    pub fn event_id(&self) -> u128 {
        self.stored().event_id.to_native()
    }

    pub fn attempt(&self) -> u32 {
        self.stored().attempt.to_native()
    }

    pub fn broadcast(&self) -> BroadcastId {
        BroadcastId::new(self.stored().broadcast.to_native()).expect("it was one when written")
    }

    pub fn kind(&self) -> EventKind {
        match self.stored().kind {
            kind if kind == EventKind::Message as u8 => EventKind::Message,
            kind if kind == EventKind::Receipt as u8 => EventKind::Receipt,
            _ => EventKind::Removal,
        }
    }

    /// Whether no message of its broadcast is to begin behind it, whoever it is for. The removal
    /// of one user's message says nothing of the others'.
    pub fn ends_broadcast(&self) -> bool {
        self.kind() == EventKind::Removal && self.stored().audience != USER
    }

    pub fn expires_at(&self) -> Option<EpochMillis> {
        let at = self.stored().expires_at.to_native();
        (at != u64::MAX).then_some(EpochMillis(at))
    }

    /// Whether it is for who is here when it comes, and nobody else.
    pub fn is_passing(&self) -> bool {
        self.stored().is_passing
    }

    pub fn audience(&self) -> AudienceRef<'_> {
        let stored = self.stored();
        let kind = match stored.audience {
            USER => return AudienceRef::User(stored.user.get()),
            EVERYONE => return AudienceRef::Everyone,
            kind if kind == MEMBERS + MemberKind::Role as u8 => MemberKind::Role,
            kind if kind == MEMBERS + MemberKind::Group as u8 => MemberKind::Group,
            _ => MemberKind::Product,
        };
        AudienceRef::Members { kind, names: Names(stored.names.as_slice()) }
    }

    /// The SSE frame without its `id` line.
    pub fn body(&self) -> &[u8] {
        self.stored().body.get()
    }

    /// Bytes that the event holds in memory.
    pub fn bytes(&self) -> usize {
        // Two counts stand before the archive.
        size_of_val(&*self.units) + 2 * size_of::<usize>()
    }

    fn stored(&self) -> &ArchivedStored<'_> {
        let (start, length) = (self.units.as_ptr().cast(), size_of_val(&*self.units));
        // SAFETY: a `Unit` is bytes without padding, and as many of them are borrowed as there are.
        // `units` is private and only ever set by `Archiver`, to what rkyv wrote there for a
        // `Stored`: it is valid, and a unit has the alignment under which it was written.
        unsafe {
            rkyv::access_unchecked::<ArchivedStored<'_>>(std::slice::from_raw_parts(start, length))
        }
    }
}

impl std::fmt::Debug for SharedEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedEvent")
            .field("position", &self.position())
            .field("broadcast", &self.broadcast())
            .field("audience", &self.audience())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(audience: Audience<'_>) -> Event<'_> {
        Event {
            position: Position {
                partition: Partition { topic: Topic::Group, index: 7 },
                offset: 1 << 40,
            },
            appended_at: EpochMillis(1_764_000_000_000),
            event_id: u128::MAX - 1,
            attempt: 3,
            broadcast: BroadcastId::new(42).expect("small"),
            kind: EventKind::Receipt,
            expires_at: None,
            is_passing: false,
            audience,
            body: b"event: MESSAGE\ndata: {}\n\n",
        }
    }

    #[test]
    fn what_is_written_is_read_in_place() {
        let shared = Archiver::default().write(event(Audience::User("u")));
        let written = event(Audience::User("u"));
        assert_eq!(shared.position(), written.position);
        assert_eq!(shared.event_id(), written.event_id);
        assert_eq!((shared.attempt(), shared.expires_at()), (3, None));
        assert_eq!((shared.broadcast(), shared.kind()), (written.broadcast, written.kind));
        assert_eq!(shared.audience(), AudienceRef::User("u"));
        assert_eq!(shared.body(), written.body);
    }

    #[test]
    fn names_are_found_whatever_their_order() {
        for kind in [MemberKind::Role, MemberKind::Group, MemberKind::Product] {
            let names = vec!["b", "a", "b"];
            let shared = Archiver::default().write(event(Audience::Members { kind, names }));
            let AudienceRef::Members { kind: read, names } = shared.audience() else {
                panic!("members")
            };
            assert_eq!(read, kind);
            assert_eq!(names.iter().collect::<Vec<_>>(), ["a", "b"]);
            assert!(names.contains("a") && names.contains("b") && !names.contains("c"));
        }
    }
}
