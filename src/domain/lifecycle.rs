//! How a broadcast may go from one status to another: contract section 3, as one function.

use crate::base::Status;

/// Whether a broadcast that stands there may become that; `None` is one that is being created.
pub const fn may_become(from: Option<Status>, to: Status) -> bool {
    use Status::{Active, Cancelled, Expired, Failed, Preparing, Ready, Scheduled};
    match from {
        None => matches!(to, Expired | Scheduled | Active | Preparing),
        Some(Preparing) => matches!(to, Ready | Failed | Cancelled),
        Some(Ready) => matches!(to, Scheduled | Active | Cancelled | Expired),
        Some(Scheduled) => matches!(to, Active | Cancelled | Expired),
        Some(Active) => matches!(to, Expired | Cancelled | Failed),
        Some(Failed) => matches!(to, Active | Cancelled | Expired),
        Some(Expired | Cancelled) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the contract draws it: from, and to what. What is not there may not be.
    const TABLE: [(&str, &str); 8] = [
        ("(create)", "EXPIRED, SCHEDULED, ACTIVE, PREPARING"),
        ("PREPARING", "READY, FAILED, CANCELLED"),
        ("READY", "SCHEDULED, ACTIVE, CANCELLED, EXPIRED"),
        ("SCHEDULED", "ACTIVE, CANCELLED, EXPIRED"),
        ("ACTIVE", "EXPIRED, CANCELLED, FAILED"),
        ("FAILED", "ACTIVE, CANCELLED, EXPIRED"),
        ("EXPIRED", ""),
        ("CANCELLED", ""),
    ];

    #[test]
    fn every_pair_is_as_the_contract_says() {
        for (from, to) in TABLE {
            let from = Status::from_word(from);
            for status in Status::ALL {
                let is_allowed = to.split(", ").any(|word| word == status.word());
                assert_eq!(may_become(from, status), is_allowed, "{from:?} to {status:?}");
            }
        }
    }

    #[test]
    fn every_status_is_reached_from_a_create() {
        let mut reached: Vec<Status> = Vec::new();
        loop {
            let is_new = |to: &Status| {
                let from = reached.iter().map(|from| Some(*from)).chain([None]);
                !reached.contains(to) && from.into_iter().any(|from| may_become(from, *to))
            };
            let Some(next) = Status::ALL.into_iter().find(is_new) else { break };
            reached.push(next);
        }
        assert_eq!(reached.len(), Status::ALL.len(), "{reached:?}");
    }

    proptest! {
        /// Whatever is asked for, in whatever order: nothing follows on an end, nothing becomes
        /// what it is already or is prepared twice, and from everywhere a cancel leads to an end.
        #[test]
        fn no_path_leads_out_of_an_end(
            wishes in prop::collection::vec(0..Status::ALL.len(), 0..40),
        ) {
            let mut stands = None;
            for wish in wishes {
                let to = Status::ALL[wish];
                if !may_become(stands, to) {
                    continue;
                }
                prop_assert!(stands != Some(to));
                prop_assert!(stands.is_none() || to != Status::Preparing);
                prop_assert!(!stands.is_some_and(Status::is_final), "{stands:?} to {to:?}");
                stands = Some(to);
            }
            if let Some(stands) = stands.filter(|stands| !stands.is_final()) {
                prop_assert!(may_become(Some(stands), Status::Cancelled));
            }
        }
    }
}
