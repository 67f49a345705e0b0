//! Being a member of a group: joining, sharing out if it leads, heartbeats.
//!
//! One connection is the member's own, because the coordinator holds a join until all others have
//! joined. What is owned stays owned while that lasts, and while the coordinator is away; it is
//! lost when the coordinator says that it does not know the member any more.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use kafka_protocol::error::{ParseResponseErrorCode as _, ResponseError};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;

use super::assign::{Subscription, Subscriptions, assign};
use super::coordinator::{AT_ONCE, Coordinator, GroupError};
use super::kind::Kind;
use super::membership::{Membership, Memberships};
use super::{others, protocol};
use crate::ingest::kafka::cluster::Cluster;
use crate::ingest::kafka::connection::{Connection, versions};
use crate::limits::{kafka as limits, ownership};
use crate::ports::{Backoff, LogError, Standing};

pub(super) struct Group {
    pub kind: Kind,
    pub coordinator: Coordinator,
    pub cluster: Arc<Cluster>,
    pub memberships: Arc<Memberships>,
    /// Commits go one after the other, so that a checkpoint does not fall behind a later one.
    pub commits: tokio::sync::Mutex<()>,
    /// Held while the coordinator is asked for a name. From then on it waits for the member, so
    /// that leaving has to wait for the name.
    pub naming: tokio::sync::Mutex<()>,
}

/// Told with each change of a group's standing.
pub(super) type Tell<'a> = &'a (dyn Fn(Kind, Standing) + Sync);

impl Group {
    fn topics(&self) -> Vec<String> {
        let topics = self.kind.topics().iter();
        topics.map(|topic| self.cluster.topic_name(*topic).to_owned()).collect()
    }

    /// What it shares out, for people.
    pub fn topic_name(&self) -> String {
        self.topics().join(", ")
    }

    /// Partitions of each topic.
    fn each(&self) -> u16 {
        self.cluster.partitions(self.kind.topics()[0])
    }

    pub fn membership(&self) -> Membership {
        self.memberships.of(self.kind)
    }

    /// Is a member, or tries to become one, until it is dropped.
    pub async fn take_part(&self, tell: Tell<'_>) -> LogError {
        let mut away = Backoff::new(limits::BACKOFF_FIRST, ownership::AWAY_WAIT_MAX);
        let mut refused = Backoff::new(ownership::REFUSED_WAIT, ownership::REFUSED_WAIT);
        loop {
            let Err(error) = self.be_member(&mut away, tell).await;
            let wait = match error {
                GroupError::Failed(reason) => return LogError::Failed(reason),
                GroupError::Refused(reason) => {
                    tell(self.kind, Standing::Refused(reason));
                    refused.wait()
                }
                error => {
                    tell(self.kind, Standing::Away(error.to_string()));
                    away.wait()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// A member over one connection, until something fails.
    async fn be_member(
        &self,
        away: &mut Backoff,
        tell: Tell<'_>,
    ) -> Result<Infallible, GroupError> {
        let mut connection = self.coordinator.connect().await?;
        // Topics that are missing are made, and others than the configured ones refused.
        self.cluster.ready().await?;
        loop {
            let seen = self.membership();
            if seen.is_settled {
                self.beat(&mut connection, &seen).await?;
            } else {
                self.join(&mut connection).await?;
            }
            if self.membership().is_settled {
                away.reset();
                tell(self.kind, Standing::Member);
                // A commit may learn before a heartbeat does that the membership is lost.
                let unsettled = self.memberships.until(self.kind, |now| !now.is_settled);
                let _ = tokio::time::timeout(ownership::HEARTBEAT_PACE, unsettled).await;
            }
        }
    }

    async fn beat(&self, connection: &mut Connection, seen: &Membership) -> Result<(), GroupError> {
        let request = HeartbeatRequest::default()
            .with_group_id(self.coordinator.group())
            .with_generation_id(seen.generation)
            .with_member_id(seen.member.clone());
        let answer =
            connection.call(&request, versions::HEARTBEAT, ownership::HEARTBEAT_TIME).await?;
        match answer.error_code.err().map(|error| self.coordinator.judge(error)) {
            None => Ok(()),
            Some(GroupError::Rebalancing) => {
                self.memberships.unsettle(self.kind);
                Ok(())
            }
            Some(GroupError::Outdated | GroupError::Unknown) => {
                self.lose(seen);
                Ok(())
            }
            Some(error) => Err(error),
        }
    }

    /// Joins until there is an assignment.
    async fn join(&self, connection: &mut Connection) -> Result<(), GroupError> {
        for _ in 0..ownership::JOINS_MAX {
            let seen = self.membership();
            match self.try_join(connection, &seen).await {
                Err(GroupError::Outdated | GroupError::Unknown) => self.lose(&seen),
                Err(GroupError::Rebalancing) => {}
                other => return other,
            }
        }
        let group = self.coordinator.group();
        Err(GroupError::Away(format!("the members of group {} do not settle", group.0.as_str())))
    }

    async fn try_join(
        &self,
        connection: &mut Connection,
        seen: &Membership,
    ) -> Result<(), GroupError> {
        let member = if seen.member.is_empty() {
            self.introduce(connection).await?
        } else {
            seen.member.clone()
        };
        let request = self.join_request(&member, seen);
        let joined = connection.call(&request, versions::JOIN_GROUP, ownership::JOIN_TIME).await?;
        if let Some(error) = joined.error_code.err() {
            return Err(self.judge_join(connection, error).await?);
        }
        // Every group of the classic protocol has a leader: consumers of the newer one came in
        // between, and the brokers share out.
        if joined.leader.is_empty() {
            let seen = self.membership();
            self.lose(&seen);
            self.leave(&member).await;
            let newer = others::newer(&self.coordinator, connection).await?;
            return Err(self.coordinator.refused_for_others(&newer));
        }
        let request = SyncGroupRequest::default()
            .with_group_id(self.coordinator.group())
            .with_generation_id(joined.generation_id)
            .with_member_id(member.clone())
            .with_protocol_type(Some(StrBytes::from_static_str(protocol::PROTOCOL_TYPE)))
            .with_protocol_name(Some(StrBytes::from_static_str(protocol::PROTOCOL_NAME)))
            .with_assignments(self.share_out(&member, &joined));
        let synced = connection.call(&request, versions::SYNC_GROUP, ownership::JOIN_TIME).await?;
        if let Some(error) = synced.error_code.err() {
            return Err(self.coordinator.judge(error));
        }
        let assigned = protocol::read_assignment(&synced.assignment, &self.topics(), self.each());
        let Some(assigned) = assigned else {
            return Err(GroupError::Away(format!(
                "the leader {} sent an assignment that can't be read",
                joined.leader.as_str()
            )));
        };
        let partitions = assigned.iter().filter_map(|slot| self.kind.partition(*slot, self.each()));
        self.memberships.settle(self.kind, &member, joined.generation_id, &partitions.collect());
        tracing::info!(
            topic = self.topic_name(), generation = joined.generation_id, partitions = ?assigned,
            "partitions of this node"
        );
        Ok(())
    }

    /// Lets the coordinator say what it calls this node: it lets nobody in without a name.
    async fn introduce(&self, connection: &mut Connection) -> Result<StrBytes, GroupError> {
        let newer = others::newer(&self.coordinator, connection).await?;
        if !newer.is_empty() {
            return Err(self.coordinator.refused_for_others(&newer));
        }
        let naming = self.naming.lock().await;
        if self.memberships.has_left() {
            drop(naming);
            return std::future::pending().await;
        }
        let request = self.join_request(&StrBytes::new(), &Membership::default());
        let answer = connection.call(&request, versions::JOIN_GROUP, AT_ONCE).await?;
        match answer.error_code.err() {
            Some(ResponseError::MemberIdRequired) => {}
            Some(error) => return Err(self.judge_join(connection, error).await?),
            None => {
                let broker = connection.broker();
                let reason = format!("broker {broker} lets members in without a name");
                return Err(GroupError::Away(reason));
            }
        }
        let member = answer.member_id;
        self.memberships.name(self.kind, &member);
        if self.memberships.has_left() {
            self.leave(&member).await;
            drop(naming);
            return std::future::pending().await;
        }
        Ok(member)
    }

    fn join_request(&self, member: &StrBytes, seen: &Membership) -> JoinGroupRequest {
        let subscription = Subscription {
            topics: self.topics(),
            partitions: self.each(),
            generation: seen.generation,
            owned: self.slots(seen),
        };
        let ours = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(protocol::PROTOCOL_NAME))
            .with_metadata(protocol::write_subscription(&subscription));
        let millis =
            |time: std::time::Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        JoinGroupRequest::default()
            .with_group_id(self.coordinator.group())
            .with_session_timeout_ms(millis(ownership::SESSION_TIME))
            .with_rebalance_timeout_ms(millis(ownership::REBALANCE_TIME))
            .with_member_id(member.clone())
            .with_protocol_type(StrBytes::from_static_str(protocol::PROTOCOL_TYPE))
            .with_protocols(vec![ours])
    }

    /// The others' names belong to a refusal because of them.
    async fn judge_join(
        &self,
        connection: &mut Connection,
        error: ResponseError,
    ) -> Result<GroupError, GroupError> {
        if error != ResponseError::InconsistentGroupProtocol {
            return Ok(self.coordinator.judge(error));
        }
        let classic = others::classic(&self.coordinator, connection).await?;
        Ok(self.coordinator.refused_for_others(&classic))
    }

    /// Everybody's share, if this member leads.
    fn share_out(
        &self,
        member: &StrBytes,
        joined: &JoinGroupResponse,
    ) -> Vec<SyncGroupRequestAssignment> {
        if joined.leader != *member || joined.skip_assignment {
            return Vec::new();
        }
        let mut members = Subscriptions::new();
        for one in &joined.members {
            match protocol::read_subscription(&one.metadata) {
                Some(subscription) => {
                    members.insert(one.member_id.as_str().to_owned(), subscription);
                }
                None => tracing::warn!(
                    topic = self.topic_name(),
                    member = one.member_id.as_str(),
                    "a member says what can't be read, and gets no partitions"
                ),
            }
        }
        let topics: BTreeSet<&[String]> = members.values().map(|one| &one.topics[..]).collect();
        if topics.len() > 1 {
            tracing::warn!(
                ?topics,
                "clusters with different topics share a group; each keeps to its own partitions"
            );
        }
        let share = |(name, share): (String, BTreeSet<u16>)| {
            let (topics, each) =
                members.get(&name).map_or((&[][..], 0), |one| (&one.topics[..], one.partitions));
            SyncGroupRequestAssignment::default()
                .with_assignment(protocol::write_assignment(topics, each, &share))
                .with_member_id(StrBytes::from_string(name))
        };
        assign(&members).into_iter().map(share).collect()
    }

    /// The coordinator does not know this generation of the node any more.
    pub fn lose(&self, seen: &Membership) {
        if self.memberships.lose(self.kind, seen) && !seen.owned.is_empty() {
            tracing::warn!(
                topic = self.topic_name(), generation = seen.generation,
                partitions = ?self.slots(seen),
                "this node was taken for dead; its partitions are others' now"
            );
        }
    }

    fn slots(&self, membership: &Membership) -> BTreeSet<u16> {
        let each = self.each();
        membership.owned.keys().map(|partition| self.kind.slot(*partition, each)).collect()
    }

    /// Waits until the coordinator is not being asked for a name.
    pub async fn until_named(&self) {
        drop(self.naming.lock().await);
    }

    /// Tells the coordinator that this member goes, so that the others go on at once.
    pub async fn leave(&self, member: &StrBytes) {
        let member = MemberIdentity::default()
            .with_member_id(member.clone())
            .with_reason(Some(StrBytes::from_static_str("the node stops")));
        let request = LeaveGroupRequest::default()
            .with_group_id(self.coordinator.group())
            .with_members(vec![member]);
        let asked = self.coordinator.ask(&request, versions::LEAVE_GROUP, AT_ONCE);
        let error = match tokio::time::timeout(ownership::LEAVE_TIME, asked).await {
            Ok(Ok(answer)) => answer.error_code.err().map(|error| error.to_string()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer in {} ms", ownership::LEAVE_TIME.as_millis())),
        };
        if let Some(error) = error {
            tracing::warn!(
                topic = self.topic_name(),
                error,
                "leaving a group was not heard; the others wait until the session ends"
            );
        }
    }
}
