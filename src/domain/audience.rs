//! Who is in which audience: users and their streams, and sets of memberships.
//!
//! Streams with the same roles, groups and products share one `MemberSet`, so that a stream costs
//! eight bytes here, and an event finds its members by the names that it carries: its cost grows
//! with its audience. A stream is in exactly one set, so nobody is found twice.

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};
use std::hash::BuildHasher;

use super::slab::Slab;
use crate::wire::archive::{AudienceRef, MemberKind};
use crate::wire::cursor::UserMark;

pub(super) const NOBODY: u32 = u32::MAX;

/// One role, group or product of a user.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Membership {
    pub kind: MemberKind,
    pub name: Box<str>,
}

/// A user's name. Short ones, which are nearly all, stand in the entry itself: finding a user then
/// costs one cache miss, not two.
#[derive(Debug)]
pub(super) enum UserName {
    Short { bytes: [u8; SHORT_BYTES_MAX], length: u8 },
    Long(Box<[u8]>),
}

/// As many as make an entry 32 bytes.
const SHORT_BYTES_MAX: usize = 22;
const _: () = assert!(size_of::<Option<User>>() == 32);

impl UserName {
    fn new(name: &str) -> Self {
        let mut bytes = [0; SHORT_BYTES_MAX];
        let Some(place) = bytes.get_mut(..name.len()) else {
            return Self::Long(name.as_bytes().into());
        };
        place.copy_from_slice(name.as_bytes());
        Self::Short { bytes, length: name.len() as u8 }
    }

    pub fn is(&self, name: &str) -> bool {
        self.bytes() == name.as_bytes()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(self.bytes()).unwrap_or_default() // It was text when it came.
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { bytes, length } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

/// A user with at least one stream here.
#[derive(Debug)]
pub(super) struct User {
    pub name: UserName,
    /// The user's partition of the selected topic.
    pub own_partition: u16,
    /// What the user's cursors say of him.
    pub mark: UserMark,
    /// First of the user's streams; they are chained.
    pub first_stream: u32,
}

/// Users by name.
#[derive(Debug, Default)]
pub(super) struct Users {
    slab: Slab<User>,
    by_name: HashTable<u32>,
    hasher: RandomState,
}

impl Users {
    pub fn find(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(name.as_bytes());
        self.by_name.find(hash, |index| self.get(*index).name.is(name)).copied()
    }

    /// The user of that name, made if there is none.
    pub fn enter(&mut self, name: &str, own_partition: u16) -> u32 {
        if let Some(index) = self.find(name) {
            return index;
        }
        let (mark, first_stream) = (UserMark::of(name), NOBODY);
        let user = User { name: UserName::new(name), own_partition, mark, first_stream };
        let index = self.slab.insert(user);
        let Self { slab, by_name, hasher } = self;
        let name_of = |index: &u32| slab.get(*index).map_or(&b""[..], |user| user.name.bytes());
        by_name.insert_unique(hasher.hash_one(name.as_bytes()), index, |index| {
            hasher.hash_one(name_of(index))
        });
        index
    }

    /// Forgets a user who has no stream any more.
    pub fn leave(&mut self, index: u32) {
        let hash = self.hasher.hash_one(self.get(index).name.bytes());
        if let Ok(entry) = self.by_name.find_entry(hash, |known| *known == index) {
            entry.remove();
        }
        self.slab.remove(index);
    }

    pub fn len(&self) -> usize {
        self.slab.len()
    }

    pub fn get(&self, index: u32) -> &User {
        self.slab.get(index).expect("a stream's user stands while the stream does")
    }

    pub fn get_mut(&mut self, index: u32) -> &mut User {
        self.slab.get_mut(index).expect("a stream's user stands while the stream does")
    }
}

/// All streams with exactly these memberships.
#[derive(Debug)]
pub(super) struct MemberSet {
    /// Sorted, without repeats.
    pub members: Box<[Membership]>,
    pub streams: Vec<u32>,
    /// The last event that this set was asked for, so that two of its names count once.
    asked_for: u64,
}

impl MemberSet {
    fn is_in(&self, audience: &AudienceRef<'_>) -> bool {
        match audience {
            AudienceRef::Members { kind, names } => self
                .members
                .iter()
                .filter(|member| member.kind == *kind)
                .any(|member| names.contains(&member.name)),
            AudienceRef::Everyone | AudienceRef::User(_) => false,
        }
    }
}

/// Member sets by content and by name.
#[derive(Debug, Default)]
pub(super) struct MemberSets {
    slab: Slab<MemberSet>,
    by_content: HashTable<u32>,
    by_name: [HashMap<Box<str>, Vec<u32>, RandomState>; MemberKind::COUNT],
    hasher: RandomState,
}

impl MemberSets {
    /// Enters a stream; returns its set and its place there. `members` is sorted, no repeats.
    pub fn enter(&mut self, members: &[Membership], stream: u32) -> (u32, u32) {
        debug_assert!(members.is_sorted());
        let hash = self.hasher.hash_one(members);
        let found = self.by_content.find(hash, |index| *self.get(*index).members == *members);
        let index = match found {
            Some(index) => *index,
            None => self.make(members, hash),
        };
        let streams = &mut self.get_mut(index).streams;
        streams.push(stream);
        (index, streams.len() as u32 - 1)
    }

    /// Takes a stream out; returns the stream that now stands in its place, if one moved.
    pub fn leave(&mut self, index: u32, place: u32) -> Option<u32> {
        let set = self.get_mut(index);
        set.streams.swap_remove(place as usize);
        let moved = set.streams.get(place as usize).copied();
        if set.streams.is_empty() {
            self.drop_set(index);
        }
        moved
    }

    pub fn get(&self, index: u32) -> &MemberSet {
        self.slab.get(index).expect("a stream's set stands while the stream does")
    }

    /// Whether a user of that name and set is in the audience.
    pub fn admits(&self, audience: &AudienceRef<'_>, user: &UserName, set: u32) -> bool {
        match audience {
            AudienceRef::Everyone => true,
            AudienceRef::User(name) => user.is(name),
            AudienceRef::Members { .. } => self.get(set).is_in(audience),
        }
    }

    /// Calls for every stream in a set that has one of the names, each once. `event` differs from
    /// call to call.
    pub fn for_each_member<'a>(
        &mut self,
        kind: MemberKind,
        names: impl Iterator<Item = &'a str>,
        event: u64,
        mut each: impl FnMut(u32),
    ) {
        let Self { slab, by_name, .. } = self;
        for name in names {
            for index in by_name[kind.number()].get(name).into_iter().flatten() {
                let Some(set) = slab.get_mut(*index) else { continue };
                if set.asked_for != event {
                    set.asked_for = event;
                    set.streams.iter().copied().for_each(&mut each);
                }
            }
        }
    }

    fn get_mut(&mut self, index: u32) -> &mut MemberSet {
        self.slab.get_mut(index).expect("a stream's set stands while the stream does")
    }

    fn make(&mut self, members: &[Membership], hash: u64) -> u32 {
        let set = MemberSet { members: members.into(), streams: Vec::new(), asked_for: u64::MAX };
        let index = self.slab.insert(set);
        for member in members {
            let sets = &mut self.by_name[member.kind.number()];
            sets.entry(member.name.clone()).or_default().push(index);
        }
        let Self { slab, by_content, hasher, .. } = self;
        by_content.insert_unique(hash, index, |index| {
            hasher.hash_one(slab.get(*index).map_or(&[][..], |set| &set.members))
        });
        index
    }

    fn drop_set(&mut self, index: u32) {
        let Some(set) = self.slab.remove(index) else { return };
        let hash = self.hasher.hash_one(&*set.members);
        if let Ok(entry) = self.by_content.find_entry(hash, |known| *known == index) {
            entry.remove();
        }
        for member in &set.members {
            let sets = &mut self.by_name[member.kind.number()];
            if let Some(indices) = sets.get_mut(&*member.name) {
                indices.retain(|known| *known != index);
                if indices.is_empty() {
                    sets.remove(&*member.name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str) -> Membership {
        Membership { kind: MemberKind::Role, name: name.into() }
    }

    fn members(sets: &mut MemberSets, names: &[&str], event: u64) -> Vec<u32> {
        let mut found = Vec::new();
        sets.for_each_member(MemberKind::Role, names.iter().copied(), event, |stream| {
            found.push(stream);
        });
        found.sort_unstable();
        found
    }

    #[test]
    fn each_member_is_found_once_and_nobody_else() {
        let mut sets = MemberSets::default();
        sets.enter(&[role("a"), role("b")], 1);
        sets.enter(&[role("a")], 2);
        let (set, place) = sets.enter(&[role("a"), role("b")], 3);
        sets.enter(&[], 4);
        assert_eq!(members(&mut sets, &["a", "b"], 0), [1, 2, 3]);
        assert_eq!(members(&mut sets, &["b"], 1), [1, 3]);
        assert_eq!(members(&mut sets, &["nobody"], 2), [] as [u32; 0]);
        assert_eq!(sets.leave(set, place), None);
        assert_eq!(members(&mut sets, &["b"], 3), [1]);
        assert_eq!(sets.slab.len(), 3);
    }

    #[test]
    fn a_set_goes_with_its_last_stream() {
        let mut sets = MemberSets::default();
        let (set, place) = sets.enter(&[role("x")], 1);
        sets.leave(set, place);
        assert_eq!((sets.slab.len(), sets.by_name[0].len(), sets.by_content.len()), (0, 0, 0));
    }

    #[test]
    fn users_are_found_by_name_until_they_leave() {
        let mut users = Users::default();
        let indices: Vec<u32> = (0..100).map(|n| users.enter(&format!("u{n}"), n)).collect();
        let names: Vec<String> = (1..=256).map(|length| "x".repeat(length)).collect();
        let long: Vec<u32> = names.iter().map(|name| users.enter(name, 1)).collect();
        for (name, index) in names.iter().zip(long) {
            assert_eq!(users.find(name), Some(index), "{} bytes", name.len());
            users.leave(index);
            assert_eq!(users.find(name), None, "{} bytes", name.len());
        }
        assert_eq!(users.enter("u7", 7), indices[7]);
        users.leave(indices[7]);
        assert_eq!((users.find("u7"), users.find("u8")), (None, Some(indices[8])));
        assert_eq!(users.len(), 99);
    }
}
