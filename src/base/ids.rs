//! Ids as types of their own, so that no two of them are ever exchanged.

use std::fmt;
use std::str::FromStr;

use super::EpochMillis;
use crate::limits;

/// Longest user id, bytes of UTF-8.
pub const USER_ID_BYTES_MAX: usize = limits::contract::USER_ID_BYTES_MAX;

/// A broadcast: 41 bits of milliseconds since 2020-01-01 and 12 random ones, at most 2^53-1, so
/// that a JavaScript number holds it. Older producers' ids are any integer of that range.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "u64", into = "u64")]
pub struct BroadcastId(u64);

impl BroadcastId {
    pub const MAX: u64 = (1 << 53) - 1;
    /// 2020-01-01T00:00:00Z, from which the milliseconds count.
    pub const EPOCH_MS: u64 = 1_577_836_800_000;
    pub const RANDOM_BITS: u32 = 12;

    /// `None` beyond 2^53-1.
    pub const fn new(value: u64) -> Option<Self> {
        if value <= Self::MAX { Some(Self(value)) } else { None }
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// When it was drawn. An older producer's id says anything up to the year 2089.
    pub const fn drawn_at(self) -> EpochMillis {
        EpochMillis(Self::EPOCH_MS + (self.0 >> Self::RANDOM_BITS))
    }
}

impl fmt::Display for BroadcastId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u64> for BroadcastId {
    type Error = &'static str;

    fn try_from(value: u64) -> Result<Self, Self::Error> {
        Self::new(value).ok_or("a broadcast id is at most 2^53-1")
    }
}

impl From<BroadcastId> for u64 {
    fn from(id: BroadcastId) -> Self {
        id.0
    }
}

impl FromStr for BroadcastId {
    type Err = ();

    /// Decimal digits only: no sign, no blanks.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        text.parse().ok().and_then(Self::new).ok_or(())
    }
}

/// A user: 1 to 256 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UserId(Box<str>);

/// Why a text is no user id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UserIdError {
    #[error("must not be empty")]
    Empty,
    #[error("must be at most {USER_ID_BYTES_MAX} bytes")]
    TooLong,
    #[error("must not contain control characters")]
    Control,
}

impl UserId {
    pub fn new(text: &str) -> Result<Self, UserIdError> {
        Self::check(text).map(|()| Self(text.into()))
    }

    /// Checks without making a copy.
    pub fn check(text: &str) -> Result<(), UserIdError> {
        if text.is_empty() {
            Err(UserIdError::Empty)
        } else if text.len() > USER_ID_BYTES_MAX {
            Err(UserIdError::TooLong)
        } else if text.chars().any(char::is_control) {
            Err(UserIdError::Control)
        } else {
            Ok(())
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_ids_are_javascript_integers() {
        assert_eq!("9007199254740991".parse(), Ok(BroadcastId(BroadcastId::MAX)));
        assert_eq!(BroadcastId(1_000 << 12 | 4_095).drawn_at(), EpochMillis(1_577_836_801_000));
        for bad in ["", "9007199254740992", "-1", "+1", " 1", "1e3", "99999999999999999999999"] {
            assert_eq!(bad.parse::<BroadcastId>(), Err(()), "{bad:?}");
        }
    }

    #[test]
    fn user_ids_are_short_printable_text() {
        assert!(UserId::new("süd-42").is_ok());
        assert_eq!(UserId::new(""), Err(UserIdError::Empty));
        assert_eq!(UserId::new("a\nb"), Err(UserIdError::Control));
        assert!(UserId::new(&"x".repeat(256)).is_ok());
        assert_eq!(UserId::new(&"x".repeat(257)), Err(UserIdError::TooLong));
    }
}
