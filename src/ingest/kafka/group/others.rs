//! Consumers of other programs in a group, so that a refusal can name them.
//!
//! Consumers of the classic protocol keep a node out by themselves: they know no rule of ours.
//! Those of the newer one (KIP-848) would have the brokers share the partitions out between them
//! and us, so they are asked for before a node joins.

use kafka_protocol::messages::{ConsumerGroupDescribeRequest, DescribeGroupsRequest};
use kafka_protocol::protocol::StrBytes;

use super::coordinator::{AT_ONCE, Coordinator};
use crate::ingest::kafka::connection::{BrokerError, Connection, versions};

/// How many are named.
const NAMED_MAX: usize = 3;

/// Members of the classic protocol.
pub(super) async fn classic(
    coordinator: &Coordinator,
    connection: &mut Connection,
) -> Result<Vec<String>, BrokerError> {
    let request = DescribeGroupsRequest::default().with_groups(vec![coordinator.group()]);
    let answer = connection.call(&request, versions::DESCRIBE_GROUPS, AT_ONCE).await?;
    let members = answer.groups.iter().flat_map(|group| &group.members);
    Ok(names(members.map(|member| (&member.client_id, &member.client_host))))
}

/// Members of the newer protocol; none where brokers do not know it.
pub(super) async fn newer(
    coordinator: &Coordinator,
    connection: &mut Connection,
) -> Result<Vec<String>, BrokerError> {
    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![coordinator.group()]);
    let asked = connection.call(&request, versions::CONSUMER_GROUP_DESCRIBE, AT_ONCE).await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(BrokerError::Version { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // A group of the classic protocol is answered with an error, and without members.
    let members = answer.groups.iter().flat_map(|group| &group.members);
    Ok(names(members.map(|member| (&member.client_id, &member.client_host))))
}

fn names<'a>(members: impl Iterator<Item = (&'a StrBytes, &'a StrBytes)>) -> Vec<String> {
    let name = |(client, host): (&StrBytes, &StrBytes)| {
        format!("{} at {}", client.as_str(), host.as_str().trim_start_matches('/'))
    };
    members.take(NAMED_MAX).map(name).collect()
}
