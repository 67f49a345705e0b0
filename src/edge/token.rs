//! What a shard's epoll set knows a descriptor by: 64 bits, its kind in the upper two.

use crate::domain::StreamKey;

const KIND_SHIFT: u32 = 62;
const VALUE_MASK: u64 = (1 << KIND_SHIFT) - 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    Stream(StreamKey),
    /// A connection whose head is being read, or whose refusal is on its way.
    Head(u64),
    Listener,
    Bell,
}

impl Token {
    pub const fn to_bits(self) -> u64 {
        match self {
            Self::Stream(key) => key.to_bits() & VALUE_MASK,
            Self::Head(key) => 1 << KIND_SHIFT | key & VALUE_MASK,
            Self::Listener => 2 << KIND_SHIFT,
            Self::Bell => 3 << KIND_SHIFT,
        }
    }

    pub const fn from_bits(bits: u64) -> Self {
        match bits >> KIND_SHIFT {
            0 => Self::Stream(StreamKey::from_bits(bits)),
            1 => Self::Head(bits & VALUE_MASK),
            2 => Self::Listener,
            _ => Self::Bell,
        }
    }
}
