//! Ownership in Kafka: a node is a member of three consumer groups, one for each topic that is
//! served and one for their dead letters, by the classic protocol. What Kafka's own tools show of
//! them is true: members, partitions, lag.
//!
//! Invariants: a partition has at most one owner that can commit; what moves is read on from its
//! checkpoint; what stays goes on through a rebalance, with its tenure; another program's consumers
//! in a group keep the node out, and it says so.
//!
//! | file | holds |
//! |---|---|
//! | `coordinator.rs` | the broker that counts the members, and what its errors mean |
//! | `member.rs` | join, heartbeat, leave |
//! | `others.rs` | members that are not ours |
//! | `membership.rs` | what is owned, as tasks share it |
//! | `kind.rs` | what each group shares out |
//! | `assign.rs`, `protocol.rs` | who gets what, and its bytes |
//! | `offsets.rs` | checkpoints |

mod assign;
mod coordinator;
mod kind;
mod member;
mod membership;
mod offsets;
mod others;
mod protocol;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use coordinator::Coordinator;
use kind::Kind;
use member::Group;
use membership::Memberships;

use super::cluster::Cluster;
use super::security::Security;
use super::{KafkaOptions, OptionsError};
use crate::base::Partition;
use crate::limits::ownership::LEAVE_TIME;
use crate::ports::{Commit, LogError, Mark, Owned, Ownership, Standing};

/// The consumer groups whose members own partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaGroups {
    /// Of the topic for selected users.
    pub selected: String,
    /// Of the topic for groups.
    pub group: String,
    /// Of the topics of dead letters.
    pub dead_letters: String,
}

/// The names of the contract.
impl Default for KafkaGroups {
    fn default() -> Self {
        Self {
            selected: "broadcast-service-group-selected".to_owned(),
            group: "broadcast-service-group-group".to_owned(),
            dead_letters: "broadcast-dlt-group".to_owned(),
        }
    }
}

pub struct KafkaOwnership {
    cluster: Arc<Cluster>,
    takes_part: bool,
    memberships: Arc<Memberships>,
    /// In the order of `Kind::ALL`.
    groups: [Group; 3],
}

impl KafkaOwnership {
    /// Reads the files of TLS and password. Connects to nobody. Without `takes_part` it never
    /// joins and owns nothing, but tells checkpoints.
    pub fn new(
        options: KafkaOptions,
        groups: KafkaGroups,
        takes_part: bool,
    ) -> Result<Self, OptionsError> {
        let security = Security::load(&options)?;
        let cluster = Arc::new(Cluster::new(options, security));
        let memberships = Arc::new(Memberships::new());
        let group = |kind, name| Group {
            kind,
            coordinator: Coordinator::new(cluster.clone(), name),
            cluster: cluster.clone(),
            memberships: memberships.clone(),
            commits: tokio::sync::Mutex::default(),
            naming: tokio::sync::Mutex::default(),
        };
        let groups = [
            group(Kind::Selected, groups.selected),
            group(Kind::Group, groups.group),
            group(Kind::DeadLetters, groups.dead_letters),
        ];
        Ok(Self { cluster, takes_part, memberships, groups })
    }
}

/// What the groups come to, told once for all.
#[derive(Default)]
struct Standings {
    each: [Option<Standing>; 3],
    told: Option<Standing>,
}

impl Standings {
    /// What has to be told now, if anything has.
    fn take(&mut self, kind: Kind, standing: Standing) -> Option<Standing> {
        self.each[kind as usize] = Some(standing);
        let find = |is_it: fn(&Standing) -> bool| {
            self.each.iter().flatten().find(|standing| is_it(standing))
        };
        let all = self.each.iter().all(|standing| standing == &Some(Standing::Member));
        let now = find(|standing| matches!(standing, Standing::Refused(_)))
            .or_else(|| find(|standing| matches!(standing, Standing::Away(_))))
            .or(all.then_some(&Standing::Member))
            .cloned();
        if now.is_none() || now == self.told {
            return None;
        }
        self.told.clone_from(&now);
        now
    }
}

#[async_trait]
impl Ownership for KafkaOwnership {
    async fn run(&self, told: &(dyn Fn(Standing) + Sync)) -> LogError {
        if !self.takes_part {
            return std::future::pending().await;
        }
        let standings = Mutex::new(Standings::default());
        let tell = |kind: Kind, standing: Standing| {
            let mut standings = standings.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(now) = standings.take(kind, standing) {
                told(now);
            }
        };
        let [selected, group, dead] = &self.groups;
        let left = async {
            self.memberships.until_left().await;
            tokio::join!(selected.until_named(), group.until_named(), dead.until_named());
        };
        tokio::select! {
            biased;
            () = left => std::future::pending().await,
            error = selected.take_part(&tell) => error,
            error = group.take_part(&tell) => error,
            error = dead.take_part(&tell) => error,
        }
    }

    async fn owned(&self, known: &Owned) -> Owned {
        self.memberships.owned(known).await
    }

    async fn checkpoints(&self) -> Result<BTreeMap<Partition, u64>, LogError> {
        self.cluster.ready().await?;
        let [selected, group, dead] = &self.groups;
        let (selected, group, dead) =
            tokio::try_join!(selected.checkpoints(), group.checkpoints(), dead.checkpoints())?;
        Ok(selected.into_iter().chain(group).chain(dead).collect())
    }

    async fn commit(&self, marks: &[Mark]) -> Result<Vec<Commit>, LogError> {
        let of_kind = |kind: Kind| -> Vec<Mark> {
            let is_its = |mark: &Mark| Kind::of(mark.partition.topic) == kind;
            marks.iter().copied().filter(is_its).collect()
        };
        let [selected, group, dead] = Kind::ALL.map(of_kind);
        let (selected, group, dead) = tokio::join!(
            self.groups[Kind::Selected as usize].commit(&selected),
            self.groups[Kind::Group as usize].commit(&group),
            self.groups[Kind::DeadLetters as usize].commit(&dead)
        );
        let mut outcomes = [selected?.into_iter(), group?.into_iter(), dead?.into_iter()];
        let outcome = |mark: &Mark| outcomes[Kind::of(mark.partition.topic) as usize].next();
        Ok(marks.iter().filter_map(outcome).collect())
    }

    async fn leave(&self) {
        let before = self.memberships.leave();
        let leave = async |kind: Kind| {
            let (group, membership) = (&self.groups[kind as usize], &before[kind as usize]);
            if membership.member.is_empty() {
                // What is called by no name yet leaves by itself once it has one.
                let _ = tokio::time::timeout(LEAVE_TIME, group.until_named()).await;
            } else {
                group.leave(&membership.member).await;
            }
        };
        tokio::join!(leave(Kind::Selected), leave(Kind::Group), leave(Kind::DeadLetters));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_standing_is_told_once() {
        let away = |reason: &str| Standing::Away(reason.to_owned());
        let refused = || Standing::Refused("r".to_owned());
        let mut standings = Standings::default();
        for (kind, standing, told) in [
            (Kind::Group, Standing::Member, None),
            (Kind::DeadLetters, Standing::Member, None),
            (Kind::Selected, away("a"), Some(away("a"))),
            (Kind::Selected, away("a"), None),
            (Kind::Group, refused(), Some(refused())),
            (Kind::Selected, Standing::Member, None),
            (Kind::Selected, away("b"), None),
            (Kind::Group, Standing::Member, Some(away("b"))),
            (Kind::Selected, Standing::Member, Some(Standing::Member)),
            (Kind::Group, Standing::Member, None),
        ] {
            assert_eq!(standings.take(kind, standing.clone()), told, "{kind:?} {standing:?}");
        }
    }
}
