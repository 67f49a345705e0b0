//! Two kinds of time, never mixed: what a calendar says, and how long something took.

use std::fmt;
use std::time::Duration;

/// A date as we write it, and the places of its numbers.
const ISO_FORM: &[u8; ISO_BYTES] = b"0000-00-00T00:00:00.000Z";
pub const ISO_BYTES: usize = 24;
const ISO_YEAR: usize = 0;
const ISO_MONTH: usize = 5;
const ISO_DAY: usize = 8;
const ISO_HOUR: usize = 11;
const ISO_MINUTE: usize = 14;
const ISO_SECOND: usize = 17;
const ISO_MILLIS: usize = 20;
const DAY_MS: u64 = 24 * 3_600 * 1_000;

/// Calendar time, milliseconds since 1970-01-01 UTC. It may step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EpochMillis(pub u64);

impl EpochMillis {
    /// 9999-12-31T23:59:59.999Z: the last that a year of four digits can say, and what many mean
    /// by never.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// Reads any ISO-8601 instant with an offset, to the millisecond. `None` for anything else,
    /// for times before 1970 and beyond the year 9999.
    pub fn parse_iso(text: &str) -> Option<Self> {
        if let Some(at) = parse_utc(text.as_bytes()) {
            return Some(at);
        }
        // The library's timestamps end a day early, so that every time zone can say them. It reads
        // dates without a zone up to the end.
        if let Some(date) = text.strip_suffix(['Z', 'z'])
            && text.starts_with("9999-12-3")
        {
            let date: jiff::civil::DateTime = date.parse().ok()?;
            return parse_utc(format!("{date:.3}Z").as_bytes());
        }
        let stamp: jiff::Timestamp = text.parse().ok()?;
        u64::try_from(stamp.as_millisecond()).ok().map(Self)
    }

    /// The text that `Display` gives. Beyond `MAX` it is that of `MAX`.
    pub fn to_iso(self) -> [u8; ISO_BYTES] {
        let millis = self.0.min(Self::MAX.0);
        let (year, month, day) = date_of((millis / DAY_MS) as u32);
        let of_day = (millis % DAY_MS) as u32;
        let seconds = of_day / 1_000;
        let mut text = *ISO_FORM;
        let mut write = |place: usize, number: u32| {
            text[place] += (number / 10) as u8;
            text[place + 1] += (number % 10) as u8;
        };
        write(ISO_YEAR, year / 100);
        write(ISO_YEAR + 2, year % 100);
        write(ISO_MONTH, month);
        write(ISO_DAY, day);
        write(ISO_HOUR, seconds / 3_600);
        write(ISO_MINUTE, seconds / 60 % 60);
        write(ISO_SECOND, seconds % 60);
        write(ISO_MILLIS, of_day % 1_000 / 10);
        text[ISO_MILLIS + 2] += (of_day % 10) as u8;
        text
    }

    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }

    pub const fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_millis() as u64))
    }
}

/// ISO-8601 in UTC, always with milliseconds and `Z`.
impl fmt::Display for EpochMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.to_iso()).map_err(|_| fmt::Error)?)
    }
}

impl serde::Serialize for EpochMillis {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_iso();
        serializer.serialize_str(std::str::from_utf8(&text).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> serde::Deserialize<'de> for EpochMillis {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = EpochMillis;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an ISO-8601 instant such as 2026-01-31T12:00:00Z")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EpochMillis, E> {
                EpochMillis::parse_iso(text)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Reads exactly the form that we write ourselves, which is that of nearly every record. `None`
/// says nothing: the general parser decides.
fn parse_utc(text: &[u8]) -> Option<EpochMillis> {
    let text: &[u8; ISO_BYTES] = text.try_into().ok()?;
    let mut digits = [0; ISO_BYTES];
    let mut beyond = 0;
    // Eight bytes at once. Without its form a digit is 0 to 9 and anything else 0; what is more
    // shows in the upper bit of its byte, by itself or once `ISO_ROOM` is added.
    for place in (0..ISO_BYTES).step_by(8) {
        let word = word_at(text, place) ^ word_at(ISO_FORM, place);
        beyond |= (word | word.wrapping_add(word_at(&ISO_ROOM, place))) & 0x8080_8080_8080_8080;
        digits[place..place + 8].copy_from_slice(&word.to_ne_bytes());
    }
    if beyond != 0 {
        return None;
    }
    let number = |place: usize| u32::from(digits[place]) * 10 + u32::from(digits[place + 1]);
    let year = number(ISO_YEAR) * 100 + number(ISO_YEAR + 2);
    let (month, day) = (number(ISO_MONTH), number(ISO_DAY));
    let (hour, minute, second) = (number(ISO_HOUR), number(ISO_MINUTE), number(ISO_SECOND));
    if year < 1970 || day == 0 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    if month == 0 || month > 12 || day > 28 && day > days_in(year, month) {
        return None;
    }
    let days = days_of(year, month, day);
    let of_day = (hour * 3_600 + minute * 60 + second) * 1_000
        + number(ISO_MILLIS) * 10
        + u32::from(digits[ISO_MILLIS + 2]);
    let millis = u64::from(days) * DAY_MS + u64::from(of_day);
    (millis <= EpochMillis::MAX.0).then_some(EpochMillis(millis))
}

/// For each byte of the form, what makes 128 of the first number that is too large.
const ISO_ROOM: [u8; ISO_BYTES] = {
    let mut room = [0x7f; ISO_BYTES];
    let mut place = 0;
    while place < ISO_BYTES {
        if ISO_FORM[place] == b'0' {
            room[place] = 0x7f - 9;
        }
        place += 1;
    }
    room
};

fn word_at(bytes: &[u8; ISO_BYTES], place: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[place..place + 8]);
    u64::from_ne_bytes(word)
}

/// Days that a month of 1 to 12 has.
const fn days_in(year: u32, month: u32) -> u32 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 => 28 + is_leap as u32,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01, for years from then on.
///
/// Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms" (2013), `days_from_civil`.
const fn days_of(year: u32, month: u32, day: u32) -> u32 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

/// Year, month and day of a number of days since 1970-01-01: `civil_from_days`, as above.
const fn date_of(days: u32) -> (u32, u32, u32) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + (month <= 2) as u32, month, day)
}

/// Monotonic time, milliseconds since an origin of the process's own. It never steps, and runs on
/// while the machine sleeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(pub u64);

impl Moment {
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }

    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 9999-12-30T21:59:59.999Z: the library's last whole hour.
    const LIBRARY_MAX: u64 = 253_402_207_199_999;

    proptest! {
        /// Our own arithmetic is that of the library, in both directions.
        #[test]
        fn dates_are_those_of_the_library(millis in 0..=LIBRARY_MAX) {
            let stamp = jiff::Timestamp::from_millisecond(millis as i64).expect("in range");
            let text = format!("{stamp:.3}");
            prop_assert_eq!(EpochMillis(millis).to_string(), text.clone());
            prop_assert_eq!(parse_utc(text.as_bytes()), Some(EpochMillis(millis)));
        }

        /// What our own form allows, the library does too, and gives the same.
        #[test]
        fn odd_dates_are_read_as_the_library_does(
            text in "(19|20|21)[0-9]{2}-[01][0-9]-[0-3][0-9]\
                     T[0-2][0-9]:[0-6][0-9]:[0-6][0-9][.,][0-9]{3}[Zz]",
        ) {
            let library = text.parse::<jiff::Timestamp>().ok();
            let library = library.and_then(|stamp| u64::try_from(stamp.as_millisecond()).ok());
            if let Some(own) = parse_utc(text.as_bytes()) {
                prop_assert_eq!(Some(own.0), library);
            }
            prop_assert_eq!(EpochMillis::parse_iso(&text).map(|at| at.0), library);
        }
    }

    #[test]
    fn dates_have_milliseconds_and_z() {
        for (text, shown) in [
            ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00.000Z"),
            ("2026-11-24T10:00:00.1239+02:00", "2026-11-24T08:00:00.123Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            ("9999-12-30T21:59:59.999Z", "9999-12-30T21:59:59.999Z"),
            ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
            ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.999Z"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000Z"),
            ("9999-12-31T23:59:60Z", "9999-12-31T23:59:59.000Z"),
        ] {
            let parsed = EpochMillis::parse_iso(text).map(|millis| millis.to_string());
            assert_eq!(parsed.as_deref(), Some(shown), "{text}");
        }
        for bad in [
            "",
            "now",
            "2026-11-24",
            "2026-11-24T10:00:00",
            "1969-12-31T23:59:59Z",
            "9999-12-31T24:00:00Z",
            "9999-12-31T23:59Z+1",
        ] {
            assert_eq!(EpochMillis::parse_iso(bad), None, "{bad:?}");
        }
    }
}
