//! Two kinds of time, never mixed: what a calendar says, and how long something took.

use std::fmt;
use std::time::Duration;

/// Calendar time, milliseconds since 1970-01-01 UTC. It may step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EpochMillis(pub u64);

impl EpochMillis {
    /// 9999-12-30T21:59:59.999Z: the last whole hour that every time zone can say in four digits of
    /// a year.
    pub const MAX: Self = Self(253_402_207_199_999);

    /// Reads any ISO-8601 instant with an offset, to the millisecond. `None` for anything else,
    /// for times before 1970 and beyond the year 9999.
    pub fn parse_iso(text: &str) -> Option<Self> {
        let stamp: jiff::Timestamp = text.parse().ok()?;
        let millis = u64::try_from(stamp.as_millisecond()).ok()?;
        (millis <= Self::MAX.0).then_some(Self(millis))
    }

    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }
}

/// ISO-8601 in UTC, always with milliseconds and `Z`.
impl fmt::Display for EpochMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0.min(Self::MAX.0)).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(millis) {
            Ok(stamp) => write!(f, "{stamp:.3}"),
            Err(_) => Err(fmt::Error),
        }
    }
}

impl serde::Serialize for EpochMillis {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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

    #[test]
    fn dates_have_milliseconds_and_z() {
        for (text, shown) in [
            ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00.000Z"),
            ("2026-11-24T10:00:00.1239+02:00", "2026-11-24T08:00:00.123Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            ("9999-12-30T21:59:59.999Z", "9999-12-30T21:59:59.999Z"),
        ] {
            let parsed = EpochMillis::parse_iso(text).map(|millis| millis.to_string());
            assert_eq!(parsed.as_deref(), Some(shown), "{text}");
        }
        for bad in ["", "now", "2026-11-24", "2026-11-24T10:00:00", "1969-12-31T23:59:59Z"] {
            assert_eq!(EpochMillis::parse_iso(bad), None, "{bad:?}");
        }
    }
}
