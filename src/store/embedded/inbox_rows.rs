//! Rows and keys of the inbox in the embedded store, as bytes
//! (`tests/golden/tables/embedded_inbox.tsv`), and what two rows of one key make together.
//!
//! A write is a row that says only what its writer has learnt. Joining takes the greater or the
//! smaller of each thing, so order and repetition make no difference.

use serde::{Deserialize, Serialize};

use super::rows::{RowError, VERSION, json, read, read_id};
use crate::base::{BroadcastId, EpochMillis, LogIdentity, Partition, Position, Topic, UserId};
use crate::ports::{
    Delivery, GroupRow, GroupWhat, Hole, InboxRow, InboxWrite, Place, Progress, Removal,
};

/// Ends the user id in a key: no user id holds it.
const USER_END: u8 = 0;
const PARTITION_BYTES: usize = 3;
const GROUP_KEY_BYTES: usize = 13;
const HOLE_KEY_BYTES: usize = 14;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct InboxJson {
    v: u32,
    /// Whether more than DELIVERED or a removal was written: without that it is no row yet.
    is_row: bool,
    attempt: u32,
    #[serde(with = "DeliveryWord")]
    delivery: Delivery,
    place: Option<PlaceJson>,
    delivered_at: Option<EpochMillis>,
    /// Older releases know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    removed: Option<PlaceJson>,
    keep_until: EpochMillis,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Delivery", rename_all = "UPPERCASE")]
enum DeliveryWord {
    Pending,
    Failed,
    Delivered,
}

/// In the order of its fields: the smallest offset is the smallest place.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PlaceJson {
    offset: u64,
    topic: u8,
    partition: u16,
    log: [u8; 3],
    appended_at: EpochMillis,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupJson {
    v: u32,
    id: BroadcastId,
    appended_at: EpochMillis,
    keep_until: EpochMillis,
    /// Older releases write only what created a broadcast.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_removal: bool,
}

#[derive(Serialize, Deserialize)]
struct CursorJson {
    v: u32,
    next: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HoleJson {
    v: u32,
    next: u64,
    noted_at: EpochMillis,
}

/// An inbox row as it is stored, which may be none yet.
pub struct StoredInboxRow {
    pub row: Option<InboxRow>,
    pub keep_until: EpochMillis,
}

pub fn write_inbox(write: &InboxWrite) -> Vec<u8> {
    let InboxWrite { place, progress, at, keep_until, .. } = write;
    let is_delivered = progress.delivery == Delivery::Delivered;
    json(&InboxJson {
        v: VERSION,
        is_row: !is_delivered,
        attempt: progress.attempt,
        delivery: progress.delivery,
        place: place.map(PlaceJson::of),
        delivered_at: is_delivered.then_some(*at),
        removed: None,
        keep_until: *keep_until,
    })
}

/// Says nothing of how far the message has come.
pub fn write_removal(removal: &Removal) -> Vec<u8> {
    json(&InboxJson {
        v: VERSION,
        is_row: false,
        attempt: 0,
        delivery: Delivery::Pending,
        place: None,
        delivered_at: None,
        removed: Some(PlaceJson::of(removal.place)),
        keep_until: removal.keep_until,
    })
}

pub fn join_inbox(stored: &[u8], new: &[u8]) -> Result<Vec<u8>, RowError> {
    let (stored, new) = (read::<InboxJson>(stored)?, read::<InboxJson>(new)?);
    let progress = stored.progress().max(new.progress());
    Ok(json(&InboxJson {
        v: VERSION,
        is_row: stored.is_row || new.is_row,
        attempt: progress.attempt,
        delivery: progress.delivery,
        place: least(stored.place, new.place),
        delivered_at: least(stored.delivered_at, new.delivered_at),
        removed: least(stored.removed, new.removed),
        keep_until: stored.keep_until.max(new.keep_until),
    }))
}

pub fn read_inbox(key: &[u8], value: &[u8]) -> Result<StoredInboxRow, RowError> {
    let stored = read::<InboxJson>(value)?;
    let (progress, keep_until) = (stored.progress(), stored.keep_until);
    let start = key.len().saturating_sub(size_of::<u64>());
    let broadcast = read_id(&key[start..])?;
    let place = stored.place.map(PlaceJson::read).transpose()?;
    let removed = stored.removed.map(PlaceJson::read).transpose()?;
    let delivered_at = stored.delivered_at;
    let row = InboxRow { broadcast, place, progress, delivered_at, removed };
    Ok(StoredInboxRow { row: stored.is_row.then_some(row), keep_until })
}

impl InboxJson {
    fn progress(&self) -> Progress {
        Progress { attempt: self.attempt, delivery: self.delivery }
    }
}

impl PlaceJson {
    fn of(place: Place) -> Self {
        Self {
            offset: place.position.offset,
            topic: place.position.partition.topic as u8,
            partition: place.position.partition.index,
            log: place.log.0,
            appended_at: place.appended_at,
        }
    }

    fn read(self) -> Result<Place, RowError> {
        let topic = read_topic(self.topic)?;
        let partition = Partition { topic, index: self.partition };
        let position = Position { partition, offset: self.offset };
        Ok(Place { log: LogIdentity(self.log), position, appended_at: self.appended_at })
    }
}

/// The smaller of those that are there.
fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

pub fn write_group(row: &GroupRow) -> Vec<u8> {
    json(&GroupJson {
        v: VERSION,
        id: row.broadcast,
        appended_at: row.place.appended_at,
        keep_until: row.keep_until,
        is_removal: row.what == GroupWhat::Removed,
    })
}

/// What stands at one place is the same whoever says it, but for how long it is of interest.
pub fn join_group(stored: &[u8], new: &[u8]) -> Result<Vec<u8>, RowError> {
    let (stored, new) = (read::<GroupJson>(stored)?, read::<GroupJson>(new)?);
    let rank = |row: &GroupJson| (row.keep_until, row.id, row.appended_at, row.is_removal);
    Ok(json(if rank(&stored) >= rank(&new) { &stored } else { &new }))
}

pub fn read_group(key: &[u8], value: &[u8]) -> Result<GroupRow, RowError> {
    let malformed = || RowError::Malformed("key is no place in the group topic".to_owned());
    let key: &[u8; GROUP_KEY_BYTES] = key.try_into().map_err(|_| malformed())?;
    let [first, second, third, high, low, offset @ ..] = *key;
    let index = u16::from_be_bytes([high, low]);
    let partition = Partition { topic: Topic::Group, index };
    let position = Position { partition, offset: u64::from_be_bytes(offset) };
    let row = read::<GroupJson>(value)?;
    Ok(GroupRow {
        broadcast: row.id,
        what: if row.is_removal { GroupWhat::Removed } else { GroupWhat::Created },
        place: Place {
            log: LogIdentity([first, second, third]),
            position,
            appended_at: row.appended_at,
        },
        keep_until: row.keep_until,
    })
}

pub fn write_cursor(next: u64) -> Vec<u8> {
    json(&CursorJson { v: VERSION, next })
}

pub fn join_cursor(stored: &[u8], new: &[u8]) -> Result<Vec<u8>, RowError> {
    let (stored, new) = (read::<CursorJson>(stored)?, read::<CursorJson>(new)?);
    Ok(write_cursor(stored.next.max(new.next)))
}

pub fn read_cursor(key: &[u8], value: &[u8]) -> Result<(Partition, u64), RowError> {
    let malformed = || RowError::Malformed("key is no partition of a cursor".to_owned());
    let (_, end) = key.split_last_chunk::<PARTITION_BYTES>().ok_or_else(malformed)?;
    let [topic, high, low] = *end;
    let partition = Partition { topic: read_topic(topic)?, index: u16::from_be_bytes([high, low]) };
    Ok((partition, read::<CursorJson>(value)?.next))
}

pub fn write_hole(hole: &Hole) -> Vec<u8> {
    json(&HoleJson { v: VERSION, next: hole.to, noted_at: hole.noted_at })
}

/// The one that reaches further.
pub fn join_hole(stored: &[u8], new: &[u8]) -> Result<Vec<u8>, RowError> {
    Ok(json(&read::<HoleJson>(stored)?.max(read::<HoleJson>(new)?)))
}

pub fn read_hole(key: &[u8], value: &[u8]) -> Result<Hole, RowError> {
    let malformed = || RowError::Malformed("key is no place of a hole".to_owned());
    let key: &[u8; HOLE_KEY_BYTES] = key.try_into().map_err(|_| malformed())?;
    let [_, _, _, topic, high, low, from @ ..] = *key;
    let partition = Partition { topic: read_topic(topic)?, index: u16::from_be_bytes([high, low]) };
    let HoleJson { next: to, noted_at, .. } = read(value)?;
    Ok(Hole { partition, from: u64::from_be_bytes(from), to, noted_at })
}

/// Keys of a log rise with the partition, and there with the offset.
pub fn hole_key(log: LogIdentity, hole: &Hole) -> [u8; HOLE_KEY_BYTES] {
    let mut key = [0; HOLE_KEY_BYTES];
    key[..3].copy_from_slice(&log.0);
    key[3] = hole.partition.topic as u8;
    key[4..6].copy_from_slice(&hole.partition.index.to_be_bytes());
    key[6..].copy_from_slice(&hole.from.to_be_bytes());
    key
}

/// What all keys of a user begin with.
pub fn user_key(user: &UserId) -> Vec<u8> {
    let mut key = Vec::with_capacity(user.as_str().len() + 1 + size_of::<u64>());
    key.extend_from_slice(user.as_str().as_bytes());
    key.push(USER_END);
    key
}

/// Keys of a user rise with the broadcast.
pub fn inbox_key(user: &UserId, broadcast: BroadcastId) -> Vec<u8> {
    let mut key = user_key(user);
    key.extend_from_slice(&broadcast.get().to_be_bytes());
    key
}

/// Keys of a partition rise with the offset.
pub fn group_key(log: LogIdentity, partition: u16, offset: u64) -> [u8; GROUP_KEY_BYTES] {
    let mut key = [0; GROUP_KEY_BYTES];
    key[..3].copy_from_slice(&log.0);
    key[3..5].copy_from_slice(&partition.to_be_bytes());
    key[5..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// What all keys of a user's cursor begin with.
pub fn cursor_key(user: &UserId, log: LogIdentity) -> Vec<u8> {
    let mut key = user_key(user);
    key.extend_from_slice(&log.0);
    key
}

pub fn cursor_partition_key(user: &UserId, log: LogIdentity, partition: Partition) -> Vec<u8> {
    let mut key = cursor_key(user, log);
    key.push(partition.topic as u8);
    key.extend_from_slice(&partition.index.to_be_bytes());
    key
}

fn read_topic(number: u8) -> Result<Topic, RowError> {
    let malformed = || RowError::Malformed(format!("{number} is no topic"));
    Topic::from_number(number).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: EpochMillis = EpochMillis(1_795_514_400_123);
    const KEEP_UNTIL: EpochMillis = EpochMillis(1_798_106_400_123);
    const LOG: LogIdentity = LogIdentity([1, 2, 255]);

    fn user() -> UserId {
        UserId::new("ann").expect("a user id")
    }

    fn place(topic: Topic, offset: u64) -> Place {
        let position = Position { partition: Partition { topic, index: 258 }, offset };
        Place { log: LOG, position, appended_at: AT }
    }

    fn write(attempt: u32, delivery: Delivery, offset: Option<u64>) -> InboxWrite {
        InboxWrite {
            user: user(),
            broadcast: BroadcastId::new(42).expect("small"),
            place: offset.map(|offset| place(Topic::Selected, offset)),
            progress: Progress { attempt, delivery },
            at: AT,
            keep_until: KEEP_UNTIL,
        }
    }

    fn group_row() -> GroupRow {
        let broadcast = BroadcastId::new(42).expect("small");
        let (what, place) = (GroupWhat::Created, place(Topic::Group, 65_536));
        GroupRow { broadcast, what, place, keep_until: KEEP_UNTIL }
    }

    fn removed_row() -> GroupRow {
        GroupRow { what: GroupWhat::Removed, ..group_row() }
    }

    fn removal(offset: u64) -> Removal {
        let InboxWrite { user, broadcast, .. } = write(0, Delivery::Pending, None);
        let place = place(Topic::Selected, offset);
        Removal { user, broadcast, place, keep_until: KEEP_UNTIL }
    }

    fn text(row: Vec<u8>) -> String {
        String::from_utf8(row).expect("JSON")
    }

    /// One row a line: name and text.
    #[test]
    fn golden_rows() {
        let golden = include_str!("../../../tests/golden/tables/embedded_inbox.tsv");
        let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let write = |delivery, offset| text(write_inbox(&write(3, delivery, offset)));
        let partition = Partition { topic: Topic::Group, index: 258 };
        let hole = Hole { partition, from: 65_536, to: 1 << 47, noted_at: AT };
        let id = BroadcastId::new(42).expect("small");
        let rows = [
            ("inbox pending", write(Delivery::Pending, Some(7))),
            ("inbox failed", write(Delivery::Failed, None)),
            ("inbox delivered", write(Delivery::Delivered, None)),
            ("inbox removed", text(write_removal(&removal(9)))),
            ("group message", text(write_group(&group_row()))),
            ("group message removed", text(write_group(&removed_row()))),
            ("cursor", text(write_cursor(1 << 47))),
            ("hole", text(write_hole(&hole))),
            ("inbox key", hex(&inbox_key(&user(), id))),
            ("group key", hex(&group_key(LOG, 258, 65_536))),
            ("cursor key", hex(&cursor_partition_key(&user(), LOG, partition))),
            ("hole key", hex(&hole_key(LOG, &hole))),
        ];
        let lines: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), rows.len());
        for (line, (name, row)) in lines.iter().zip(rows) {
            assert_eq!(*line, format!("{name}\t{row}"));
        }
    }

    #[test]
    fn rows_are_read_as_written_and_newer_ones_refused() {
        let written = write(3, Delivery::Failed, Some(7));
        let key = inbox_key(&written.user, written.broadcast);
        let row = read_inbox(&key, &write_inbox(&written)).expect("a row");
        let InboxWrite { broadcast, place, progress, .. } = written;
        let expected = InboxRow { broadcast, place, progress, delivered_at: None, removed: None };
        assert_eq!(row.row, Some(expected.clone()));
        assert_eq!(row.keep_until, KEEP_UNTIL);
        let removal = removal(9);
        let alone = read_inbox(&key, &write_removal(&removal)).expect("well-formed");
        assert_eq!(alone.row, None);
        let both = join_inbox(&write_removal(&removal), &write_inbox(&written)).expect("rows");
        let removed = Some(removal.place);
        let row = read_inbox(&key, &both).expect("a row");
        assert_eq!(row.row, Some(InboxRow { removed, ..expected }));
        let key = group_key(LOG, 258, 65_536);
        for row in [group_row(), removed_row()] {
            assert_eq!(read_group(&key, &write_group(&row)), Ok(row));
        }
        let partition = Partition { topic: Topic::Selected, index: 9 };
        let key = cursor_partition_key(&user(), LOG, partition);
        assert_eq!(read_cursor(&key, &write_cursor(5)), Ok((partition, 5)));
        let newer = b"{\"v\":2,\"state\":1}";
        for join in [join_inbox, join_group, join_cursor] {
            assert_eq!(join(newer, newer), Err(RowError::Newer(2)));
            assert!(matches!(join(b"{\"v\":1}", newer), Err(RowError::Malformed(_))));
        }
        for key in [&b""[..], b"ann", &[0xff; 40]] {
            assert!(read_inbox(key, &write_inbox(&write(0, Delivery::Pending, None))).is_err());
            assert!(read_group(key, &write_group(&group_row())).is_err());
            assert!(read_cursor(key, &write_cursor(1)).is_err());
        }
    }

    fn any_inbox() -> impl Strategy<Value = Vec<u8>> {
        let delivery =
            prop_oneof![Just(Delivery::Pending), Just(Delivery::Failed), Just(Delivery::Delivered)];
        let place = proptest::option::of((0..3_u64, 0..2_u8));
        let any_place = |(offset, log)| Place { log: LogIdentity([log; 3]), ..place_at(offset) };
        let written = (0..3_u32, delivery, place, 0..3_u64, 0..3_u64).prop_map(
            move |(attempt, delivery, offset, at, keep)| {
                let mut write = write(attempt, delivery, None);
                write.place = offset.map(any_place);
                write.at = EpochMillis(at);
                write.keep_until = EpochMillis(keep);
                write_inbox(&write)
            },
        );
        let removed = (0..3_u64, 0..2_u8, 0..3_u64).prop_map(move |(offset, log, keep)| {
            let (place, keep_until) = (any_place((offset, log)), EpochMillis(keep));
            write_removal(&Removal { place, keep_until, ..removal(0) })
        });
        prop_oneof![3 => written, 1 => removed]
    }

    fn place_at(offset: u64) -> Place {
        place(Topic::Selected, offset)
    }

    fn any_group() -> impl Strategy<Value = Vec<u8>> {
        let what = prop_oneof![Just(GroupWhat::Created), Just(GroupWhat::Removed)];
        (0..3_u64, 0..3_u64, what).prop_map(|(id, keep, what)| {
            let broadcast = BroadcastId::new(id).expect("small");
            let keep_until = EpochMillis(keep);
            write_group(&GroupRow { broadcast, what, keep_until, ..group_row() })
        })
    }

    fn check_join(join: super::super::commit::Join, [a, b, c]: [&[u8]; 3]) {
        let join = |one: &[u8], other: &[u8]| join(one, other).expect("rows of this release");
        assert_eq!(text(join(a, b)), text(join(b, a)));
        assert_eq!(text(join(&join(a, b), c)), text(join(a, &join(b, c))));
        assert_eq!(text(join(a, a)), text(a.to_vec()));
    }

    proptest! {
        #[test]
        fn joining_knows_no_order(
            inbox in [any_inbox(), any_inbox(), any_inbox()],
            group in [any_group(), any_group(), any_group()],
            cursor in [0..9_u64, 0..9, 0..9],
        ) {
            check_join(join_inbox, inbox.each_ref().map(Vec::as_slice));
            check_join(join_group, group.each_ref().map(Vec::as_slice));
            let cursor = cursor.map(write_cursor);
            check_join(join_cursor, cursor.each_ref().map(Vec::as_slice));
        }
    }
}
