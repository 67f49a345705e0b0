//! Checkpoints: the committed offsets of a group.
//!
//! A commit carries the generation that its partitions were assigned in, and the coordinator takes
//! it only while that is the group's: so it can't undo what a later owner has committed.

use std::collections::BTreeMap;

use kafka_protocol::error::ParseResponseErrorCode as _;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetFetchRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::coordinator::{AT_ONCE, GroupError};
use super::member::Group;
use super::membership::Membership;
use crate::base::{Partition, Topic};
use crate::ingest::kafka::connection::versions;
use crate::limits::ownership;
use crate::ports::{Commit, LogError, Mark};

impl Group {
    /// Commits those of the marks whose partition is owned; all are of this group's topics.
    pub async fn commit(&self, marks: &[Mark]) -> Result<Vec<Commit>, LogError> {
        if marks.is_empty() {
            return Ok(Vec::new());
        }
        let committed = tokio::time::timeout(ownership::JOIN_TIME, self.commit_patiently(marks));
        committed.await.unwrap_or_else(|_| {
            let group = self.coordinator.group();
            Err(LogError::Away(format!(
                "the members of group {} are not counted in time",
                group.0.as_str()
            )))
        })
    }

    /// Waits for an assignment that is coming, as long as that takes.
    async fn commit_patiently(&self, marks: &[Mark]) -> Result<Vec<Commit>, LogError> {
        let _in_order = self.commits.lock().await;
        loop {
            let seen = self.membership();
            let is_held = |mark: &Mark| {
                seen.owned.get(&mark.partition).is_some_and(|held| *held == mark.tenure)
            };
            // Of two marks of one partition the later one stands.
            let held: BTreeMap<Partition, u64> = marks
                .iter()
                .filter(|mark| is_held(mark))
                .map(|mark| (mark.partition, mark.next))
                .collect();
            let outcome = |mark| if is_held(mark) { Commit::Done } else { Commit::Lost };
            if held.is_empty() {
                return Ok(marks.iter().map(outcome).collect());
            }
            match self.try_commit(&seen, &held).await {
                Ok(()) => return Ok(marks.iter().map(outcome).collect()),
                // While members join, the generation that this one has ends before it knows the
                // next one.
                Err(GroupError::Outdated) if !self.membership().is_settled => {
                    self.wait_for_another(&seen).await;
                }
                Err(GroupError::Rebalancing) => self.wait_for_another(&seen).await,
                Err(GroupError::Outdated | GroupError::Unknown) => self.lose(&seen),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn wait_for_another(&self, seen: &Membership) {
        self.memberships.until(self.kind, |now| !now.is_of_generation(seen)).await;
    }

    async fn try_commit(
        &self,
        seen: &Membership,
        held: &BTreeMap<Partition, u64>,
    ) -> Result<(), GroupError> {
        let partition = |(partition, next): (&Partition, &u64)| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(i32::from(partition.index))
                .with_committed_offset(i64::try_from(*next).unwrap_or(i64::MAX))
        };
        let topics = self.kind.topics().iter().filter_map(|topic| {
            let of_topic = held.iter().filter(|(partition, _)| partition.topic == *topic);
            let partitions: Vec<_> = of_topic.map(partition).collect();
            let name = self.topic_of_log(*topic);
            let topic = OffsetCommitRequestTopic::default().with_name(name);
            (!partitions.is_empty()).then(|| topic.with_partitions(partitions))
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(self.coordinator.group())
            .with_generation_id_or_member_epoch(seen.generation)
            .with_member_id(seen.member.clone())
            .with_topics(topics.collect());
        let answer = self.coordinator.ask(&request, versions::OFFSET_COMMIT, AT_ONCE).await?;
        let mut count = 0;
        for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            if let Some(error) = partition.error_code.err() {
                return Err(self.coordinator.judge(error));
            }
            count += 1;
        }
        if count != held.len() {
            let (name, wanted) = (self.topic_name(), held.len());
            return Err(GroupError::Away(format!(
                "the coordinator committed {count} of {wanted} partitions of {name}"
            )));
        }
        Ok(())
    }

    /// The checkpoint of each partition that has one.
    pub async fn checkpoints(&self) -> Result<BTreeMap<Partition, u64>, GroupError> {
        let topics = self.kind.topics().iter().map(|topic| {
            let all = (0..self.cluster.partitions(*topic)).map(i32::from);
            OffsetFetchRequestTopics::default()
                .with_name(self.topic_of_log(*topic))
                .with_partition_indexes(all.collect())
        });
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(self.coordinator.group())
            .with_topics(Some(topics.collect()));
        let request = OffsetFetchRequest::default().with_groups(vec![group]);
        let answer = self.coordinator.ask(&request, versions::OFFSET_FETCH, AT_ONCE).await?;
        let group = answer.groups.first().ok_or_else(|| {
            let name = self.topic_name();
            GroupError::Away(format!("the coordinator tells no checkpoints of {name}"))
        })?;
        if let Some(error) = group.error_code.err() {
            return Err(self.coordinator.judge(error));
        }
        let mut found = BTreeMap::new();
        for answered in &group.topics {
            let named = |topic: &&Topic| self.cluster.topic_name(**topic) == answered.name.as_str();
            let Some(topic) = self.kind.topics().iter().copied().find(|topic| named(&topic)) else {
                continue;
            };
            for one in &answered.partitions {
                if let Some(error) = one.error_code.err() {
                    return Err(self.coordinator.judge(error));
                }
                let index = u16::try_from(one.partition_index);
                // -1 stands for none.
                let next = u64::try_from(one.committed_offset);
                if let (Ok(index), Ok(next)) = (index, next) {
                    found.insert(Partition { topic, index }, next);
                }
            }
        }
        Ok(found)
    }

    fn topic_of_log(&self, topic: Topic) -> TopicName {
        TopicName(StrBytes::from_string(self.cluster.topic_name(topic).to_owned()))
    }
}
