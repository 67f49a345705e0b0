//! The cursor: what a stream has been served, as the text of an SSE `id`.
//!
//! A cursor names the next offset of every partition of the group topic and of the user's own
//! partition of the selected topic. It is no secret and no right. Layout, big-endian, then
//! base64url without padding (`tests/golden/cursors/`):
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | version (4 bits), backlog flag (1 bit), width of an offset - 1 (3 bits) |
//! | 1, 1 | group partitions, selected partitions |
//! | 2, 1 | the user: a mark, so that another one's cursor is found out, and his own partition |
//! | 3 | log identity |
//! | 3 | hours since 1970 |
//! | width | own offset |
//! | width each | group offsets |
//!
//! The length follows from the header, so a cut cursor is found out. What says whose it is has four
//! characters of its own: all else is the same for all users of a partition, is written once for
//! them, and gets each user's characters when it goes out. Pure; any thread.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::base::{EpochMillis, LogIdentity, LogShape, mark_of_user};
use crate::limits::cursor as limits;

/// 1 had nothing of its user.
const VERSION: u8 = 2;
const VERSION_SHIFT: u8 = 4;
const BACKLOG_BIT: u8 = 0b1000;
const WIDTH_MASK: u8 = 0b0111;
const MILLIS_PER_HOUR: u64 = 3_600_000;
/// Before the text of a cursor in its line.
const FIELD: &[u8] = b"id: ";
/// Where the user's characters begin in the text, and how many they are.
const USER_AT: usize = 4;
const USER_CHARS: usize = 4;

/// Whose a cursor is, as far as it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UserMark(u16);

impl UserMark {
    pub fn of(user: &str) -> Self {
        Self(mark_of_user(user))
    }

    /// Appends a line `id: CURSOR\n` of a user of this partition, made into this user's.
    pub fn write_line(self, line: &[u8], own_partition: u16, out: &mut Vec<u8>) {
        let start = out.len() + FIELD.len() + USER_AT;
        out.extend_from_slice(line);
        let [high, low] = self.0.to_be_bytes();
        let bytes = [high, low, narrow(own_partition)];
        let place = &mut out[start..start + USER_CHARS];
        let written = URL_SAFE_NO_PAD.encode_slice(bytes, place);
        debug_assert_eq!(written.ok(), Some(USER_CHARS));
    }
}

/// A cursor that a client presented.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    pub shape: LogShape,
    /// The hour in which the last event before it was appended, hours since 1970.
    pub hours: u32,
    /// Presented in the middle of a backlog: positions are progress in it, not in the log.
    pub backlog: bool,
    pub user: UserMark,
    /// The user's partition of the selected topic, by the shape above.
    pub own_partition: u16,
    pub own: u64,
    pub group: Box<[u64]>,
}

/// What to encode: positions are borrowed, because one event is encoded for many partitions.
#[derive(Clone, Copy, Debug)]
pub struct CursorParts<'a> {
    pub shape: LogShape,
    pub at: EpochMillis,
    pub backlog: bool,
    pub user: UserMark,
    pub own_partition: u16,
    pub own: u64,
    pub group: &'a [u64],
    /// No offset to be encoded is above this; it decides the width, so that all cursors of one
    /// event have one length.
    pub offset_max: u64,
}

/// Why a text is no cursor. Never an error to the client: the stream starts without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CursorError {
    #[error("longer than {} characters", limits::TEXT_CHARS_MAX)]
    TooLong,
    #[error("not base64url")]
    NotBase64,
    #[error("of version {0}")]
    Version(u8),
    #[error("cut or padded")]
    Length,
    #[error("impossible partition counts")]
    Partitions,
}

impl Cursor {
    /// Reads what a client sent. Any text is allowed.
    pub fn parse(text: &str) -> Result<Self, CursorError> {
        if text.len() > limits::TEXT_CHARS_MAX {
            return Err(CursorError::TooLong);
        }
        let mut bytes = [0_u8; limits::TEXT_CHARS_MAX];
        let length = URL_SAFE_NO_PAD
            .decode_slice(text.as_bytes(), &mut bytes)
            .map_err(|_| CursorError::NotBase64)?;
        Self::from_bytes(&bytes[..length])
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CursorError> {
        let Some((header, offsets)) = bytes.split_at_checked(limits::HEADER_BYTES) else {
            return Err(CursorError::Length);
        };
        let version = header[0] >> VERSION_SHIFT;
        if version != VERSION {
            return Err(CursorError::Version(version));
        }
        let width = usize::from(header[0] & WIDTH_MASK) + 1;
        let (groups, selected, own_partition) = (header[1], header[2], header[5]);
        if groups == 0 || own_partition >= selected || width > limits::OFFSET_BYTES_MAX {
            return Err(CursorError::Partitions);
        }
        if offsets.len() != width * (1 + usize::from(groups)) {
            return Err(CursorError::Length);
        }
        let mut offsets = offsets.chunks_exact(width).map(big_endian);
        let own = offsets.next().ok_or(CursorError::Length)?;
        Ok(Self {
            shape: LogShape {
                identity: LogIdentity([header[6], header[7], header[8]]),
                selected_partitions: u16::from(selected),
                group_partitions: u16::from(groups),
            },
            hours: u32::from_be_bytes([0, header[9], header[10], header[11]]),
            backlog: header[0] & BACKLOG_BIT != 0,
            user: UserMark(u16::from_be_bytes([header[3], header[4]])),
            own_partition: u16::from(own_partition),
            own,
            group: offsets.collect(),
        })
    }

    /// The begin of the hour.
    pub fn at(&self) -> EpochMillis {
        EpochMillis(u64::from(self.hours) * MILLIS_PER_HOUR)
    }
}

impl CursorParts<'_> {
    /// Characters that `write` will add.
    pub fn chars(&self) -> usize {
        let bytes = limits::HEADER_BYTES + self.width() * (1 + self.group.len());
        (bytes * 4).div_ceil(3)
    }

    /// Appends the text to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let width = self.width();
        let mut bytes = [0_u8; limits::TEXT_CHARS_MAX];
        let hours = (self.at.0 / MILLIS_PER_HOUR).min(0xff_ffff) as u32;
        let backlog = if self.backlog { BACKLOG_BIT } else { 0 };
        bytes[0] = VERSION << VERSION_SHIFT | backlog | (width as u8 - 1);
        bytes[1] = narrow(self.shape.group_partitions);
        bytes[2] = narrow(self.shape.selected_partitions);
        bytes[3..5].copy_from_slice(&self.user.0.to_be_bytes());
        bytes[5] = narrow(self.own_partition);
        bytes[6..9].copy_from_slice(&self.shape.identity.0);
        bytes[9..12].copy_from_slice(&hours.to_be_bytes()[1..]);
        let mut length = limits::HEADER_BYTES;
        for offset in std::iter::once(self.own).chain(self.group.iter().copied()) {
            debug_assert!(offset <= self.offset_max, "an offset beyond the announced width");
            bytes[length..length + width].copy_from_slice(&offset.to_be_bytes()[8 - width..]);
            length += width;
        }
        let start = out.len();
        out.resize(start + (length * 4).div_ceil(3), 0);
        let written = URL_SAFE_NO_PAD.encode_slice(&bytes[..length], &mut out[start..]);
        assert_eq!(written.ok(), Some(out.len() - start), "a cursor has the length announced");
    }

    /// Appends `id: CURSOR\n`.
    pub fn write_id_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(FIELD);
        self.write(out);
        out.push(b'\n');
    }

    fn width(&self) -> usize {
        debug_assert!(self.offset_max <= limits::OFFSET_MAX);
        let bits = u64::BITS - self.offset_max.leading_zeros();
        (bits.div_ceil(8) as usize).clamp(1, limits::OFFSET_BYTES_MAX)
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn narrow(count: u16) -> u8 {
    u8::try_from(count).expect("configuration keeps partition counts below 256")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHAPE: LogShape = LogShape {
        identity: LogIdentity([0xc0, 0x7e, 0xca]),
        selected_partitions: 10,
        group_partitions: 10,
    };

    fn text(own: u64, group: &[u64], backlog: bool) -> String {
        let parts = CursorParts {
            shape: LogShape { group_partitions: group.len() as u16, ..SHAPE },
            at: EpochMillis(1_764_000_000_000),
            backlog,
            user: UserMark(0xa11c),
            own_partition: 7,
            own,
            group,
            offset_max: group.iter().copied().max().unwrap_or(0).max(own),
        };
        let mut out = Vec::new();
        parts.write(&mut out);
        assert_eq!(out.len(), parts.chars());
        String::from_utf8(out).expect("base64 is ASCII")
    }

    #[test]
    fn golden_cursors() {
        let golden = include_str!("../../tests/golden/cursors/cursors.txt");
        let mut rows = 0;
        for line in golden.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split_whitespace();
            let mut field = || fields.next().expect("own, group, flag, text");
            let own = field().parse().expect("own offset");
            let group: Vec<u64> =
                field().split(',').map(|offset| offset.parse().expect("group offset")).collect();
            let backlog = field() == "backlog";
            let expected = field();
            assert_eq!(text(own, &group, backlog), expected, "{line}");
            let parsed = Cursor::parse(expected).expect("a golden cursor");
            assert_eq!((parsed.own, &*parsed.group), (own, &*group), "{line}");
            assert_eq!((parsed.backlog, parsed.own_partition), (backlog, 7), "{line}");
            assert_eq!(parsed.user, UserMark(0xa11c), "{line}");
            assert_eq!(parsed.shape.identity, SHAPE.identity);
            assert_eq!(parsed.at(), EpochMillis(1_764_000_000_000), "a full hour");
            rows += 1;
        }
        assert!(rows >= 4, "the golden file has rows");
    }

    #[test]
    fn a_line_that_many_share_becomes_one_of_a_user() {
        let parts = CursorParts {
            shape: SHAPE,
            at: EpochMillis(1_764_000_000_000),
            backlog: false,
            user: UserMark::default(),
            own_partition: 7,
            own: 5,
            group: &[1; 10],
            offset_max: 300,
        };
        let (mut shared, mut own, mut made) = (Vec::new(), Vec::new(), b"before".to_vec());
        parts.write_id_line(&mut shared);
        let user = UserMark::of("alice");
        CursorParts { user, ..parts }.write_id_line(&mut own);
        user.write_line(&shared, 7, &mut made);
        assert_ne!(shared, own);
        assert_eq!(made, [&b"before"[..], &own].concat());
    }

    #[test]
    fn ten_and_ten_partitions_take_at_most_76_characters() {
        let length = text(u64::from(u32::MAX), &[u64::from(u32::MAX); 10], false).len();
        assert!(length <= 76, "{length}");
    }

    #[test]
    fn the_most_partitions_take_at_most_256_characters() {
        let group = vec![limits::OFFSET_MAX; limits::GROUP_PARTITIONS_MAX];
        assert!(text(limits::OFFSET_MAX, &group, true).len() <= limits::TEXT_CHARS_MAX);
    }

    #[test]
    fn every_cut_and_every_other_version_is_refused() {
        let whole = text(70_000, &[1, 2, 3], false);
        for cut in 0..whole.len() {
            assert!(Cursor::parse(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for longer in ["A", "AA", "AAAA", "=", " "] {
            assert!(Cursor::parse(&format!("{whole}{longer}")).is_err(), "{longer:?} behind it");
        }
        for (bad, why) in [
            ("!".repeat(8), CursorError::NotBase64),
            ("A".repeat(257), CursorError::TooLong),
            (format!("E{}", &whole[1..]), CursorError::Version(1)),
        ] {
            assert_eq!(Cursor::parse(&bad), Err(why), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,300}") {
            let _ = Cursor::parse(&text);
        }

        #[test]
        fn what_is_written_is_read(
            own in 0..=limits::OFFSET_MAX,
            group in proptest::collection::vec(0..=limits::OFFSET_MAX, 1..=29),
        ) {
            let parsed = Cursor::parse(&text(own, &group, false)).expect("written by us");
            prop_assert_eq!(parsed.own, own);
            prop_assert_eq!(&*parsed.group, &*group);
        }
    }
}
