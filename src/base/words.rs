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

impl Status {
    pub const ALL: [Self; 7] = [
        Self::Preparing,
        Self::Ready,
        Self::Scheduled,
        Self::Active,
        Self::Expired,
        Self::Cancelled,
        Self::Failed,
    ];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Preparing => "PREPARING",
            Self::Ready => "READY",
            Self::Scheduled => "SCHEDULED",
            Self::Active => "ACTIVE",
            Self::Expired => "EXPIRED",
            Self::Cancelled => "CANCELLED",
            Self::Failed => "FAILED",
        }
    }

    /// Exact spelling only.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.word() == word)
    }

    /// Whether nothing follows on it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Expired | Self::Cancelled)
    }
}

/// How a broadcast ends for good.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum End {
    Cancelled,
    Expired,
}

impl End {
    pub const ALL: [Self; 2] = [Self::Cancelled, Self::Expired];

    /// Where the broadcast stands then.
    pub const fn status(self) -> Status {
        match self {
            Self::Cancelled => Status::Cancelled,
            Self::Expired => Status::Expired,
        }
    }

    /// What a record says of it.
    pub const fn event_type(self) -> EventType {
        match self {
            Self::Cancelled => EventType::Cancelled,
            Self::Expired => EventType::Expired,
        }
    }

    /// `None` for a status that is not final.
    pub fn of_status(status: Status) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.status() == status)
    }
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
        for known in Status::ALL {
            assert_eq!(serde_json::json!(known), known.word());
            assert_eq!(Status::from_word(known.word()), Some(known));
        }
        assert_eq!(TargetType::from_word("all"), None);
        assert_eq!(Status::from_word("active"), None);
    }

    #[test]
    fn an_end_is_a_final_status_and_an_event_of_one_word() {
        for end in End::ALL {
            assert!(end.status().is_final());
            assert_eq!(end.status().word(), end.event_type().name());
        }
        for status in Status::ALL {
            assert_eq!(
                End::of_status(status).map(End::status),
                status.is_final().then_some(status)
            );
        }
    }
}
