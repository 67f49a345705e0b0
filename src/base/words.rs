//! The closed lists of the contract, with the exact spelling that goes over the wire.

use serde::{Deserialize, Serialize};

/// Whom a broadcast is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TargetType {
    All,
    Role,
    Group,
    Product,
    Selected,
}

/// Orders publishing, not a stream.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    Urgent,
}

/// What a record says about its broadcast.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventType {
    Created,
    Cancelled,
    Expired,
    Read,
    Failed,
}

impl EventType {
    pub const ALL: [Self; 5] =
        [Self::Created, Self::Cancelled, Self::Expired, Self::Read, Self::Failed];

    /// Exact spelling only.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == word)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "CREATED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
            Self::Read => "READ",
            Self::Failed => "FAILED",
        }
    }
}

/// Where a broadcast stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    Preparing,
    Ready,
    Scheduled,
    Active,
    Expired,
    Cancelled,
    Failed,
}

impl TargetType {
    pub const ALL: [Self; 5] = [Self::All, Self::Role, Self::Group, Self::Product, Self::Selected];

    pub const fn word(self) -> &'static str {
        match self {
            Self::All => "ALL",
            Self::Role => "ROLE",
            Self::Group => "GROUP",
            Self::Product => "PRODUCT",
            Self::Selected => "SELECTED",
        }
    }

    /// Exact spelling only.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.word() == word)
    }
}

impl Priority {
    pub const ALL: [Self; 4] = [Self::Low, Self::Normal, Self::High, Self::Urgent];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Low => "LOW",
            Self::Normal => "NORMAL",
            Self::High => "HIGH",
            Self::Urgent => "URGENT",
        }
    }

    /// Exact spelling only.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.word() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_spelt_as_serde_spells_them() {
        for known in TargetType::ALL {
            assert_eq!(serde_json::json!(known), known.word());
        }
        for known in Priority::ALL {
            assert_eq!(serde_json::json!(known), known.word());
        }
        for known in EventType::ALL {
            assert_eq!(serde_json::json!(known), known.name());
        }
        assert_eq!(TargetType::from_word("all"), None);
    }
}
