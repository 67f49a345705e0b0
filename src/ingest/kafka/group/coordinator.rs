//! A group's coordinator: the broker that counts its members and keeps its checkpoints. It is
//! looked for whenever a connection to it is made.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::error::{ParseResponseErrorCode as _, ResponseError};
use kafka_protocol::messages::{FindCoordinatorRequest, GroupId};
use kafka_protocol::protocol::{Request, StrBytes, VersionRange};

use crate::ingest::kafka::cluster::{self, Cluster};
use crate::ingest::kafka::connection::{BrokerError, Connection, versions};
use crate::limits::{kafka as limits, ownership};
use crate::ports::LogError;

/// How long an answer may take that nothing holds up.
pub(super) const AT_ONCE: Duration = limits::REQUEST_TIME;
/// What kind of name is looked for: that of a group.
const KEY_TYPE_GROUP: i8 = 0;

/// Why the coordinator did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum GroupError {
    /// Heals by itself.
    #[error("{0}")]
    Away(String),
    /// Heals once somebody outside does what it says.
    #[error("{0}")]
    Refused(String),
    /// Does not heal without an operator.
    #[error("{0}")]
    Failed(String),
    /// The members are joining anew.
    #[error("the group's members are joining anew")]
    Rebalancing,
    /// The group has another generation by now.
    #[error("the group has another generation by now")]
    Outdated,
    /// The group has no such member, any more.
    #[error("the group does not know this member")]
    Unknown,
}

pub(super) struct Coordinator {
    cluster: Arc<Cluster>,
    group: StrBytes,
    /// For what is answered at once. A member has a connection of its own, because the coordinator
    /// holds its joins.
    idle: Mutex<Option<Connection>>,
}

impl Coordinator {
    pub fn new(cluster: Arc<Cluster>, group: String) -> Self {
        Self { cluster, group: StrBytes::from_string(group), idle: Mutex::default() }
    }

    pub fn group(&self) -> GroupId {
        GroupId(self.group.clone())
    }

    /// Looks for the coordinator and connects to it.
    pub async fn connect(&self) -> Result<Connection, GroupError> {
        let request = FindCoordinatorRequest::default()
            .with_key_type(KEY_TYPE_GROUP)
            .with_coordinator_keys(vec![self.group.clone()]);
        let asked = self.cluster.ask_any(None, &request, versions::FIND_COORDINATOR).await?;
        let (connection, answer) = asked;
        let found = answer.coordinators.first().ok_or_else(|| {
            let (broker, group) = (connection.broker(), self.group.as_str());
            GroupError::Away(format!("broker {broker} names no coordinator of group {group}"))
        })?;
        if let Some(error) = found.error_code.err() {
            return Err(self.judge(error));
        }
        let address = cluster::address(&found.host, found.port);
        if connection.broker() == address {
            return Ok(connection);
        }
        Ok(self.cluster.connect(&address).await?)
    }

    /// Asks what is answered at once. The caller calls `judge` with each error of the answer.
    pub async fn ask<R: Request>(
        &self,
        request: &R,
        versions: VersionRange,
        waited: Duration,
    ) -> Result<R::Response, GroupError> {
        // One that was idle may have been closed meanwhile: that is no failure of the coordinator.
        let idle = self.lock().take();
        if let Some(mut connection) = idle {
            match connection.call(request, versions, waited).await {
                Ok(answer) => {
                    self.keep(connection);
                    return Ok(answer);
                }
                Err(BrokerError::Closed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.connect().await?;
        let answer = connection.call(request, versions, waited).await?;
        self.keep(connection);
        Ok(answer)
    }

    /// What an error of the coordinator means. If it is not the coordinator any more, the next
    /// question looks for another one.
    pub fn judge(&self, error: ResponseError) -> GroupError {
        if is_away(error) {
            drop(self.lock().take());
        }
        meaning(self.group.as_str(), error)
    }

    /// Others are in the group, which share its partitions out by another rule.
    pub fn refused_for_others(&self, others: &[String]) -> GroupError {
        refused_for_others(self.group.as_str(), others)
    }

    fn keep(&self, connection: Connection) {
        if connection.is_usable() {
            *self.lock() = Some(connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        // One assignment is done under it.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<BrokerError> for GroupError {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Password { .. }
            | BrokerError::Mechanism { .. }
            | BrokerError::Version { .. } => Self::Refused(error.to_string()),
            _ => Self::Away(error.to_string()),
        }
    }
}

impl From<LogError> for GroupError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Failed(reason) => Self::Failed(reason),
            LogError::Away(reason) => Self::Away(reason),
            other => Self::Away(other.to_string()),
        }
    }
}

/// As the log says it.
impl From<GroupError> for LogError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Failed(reason) => Self::Failed(reason),
            other => Self::Away(other.to_string()),
        }
    }
}

fn is_away(error: ResponseError) -> bool {
    matches!(
        error,
        ResponseError::CoordinatorLoadInProgress
            | ResponseError::CoordinatorNotAvailable
            | ResponseError::NotCoordinator
    )
}

fn meaning(group: &str, error: ResponseError) -> GroupError {
    let refused = |reason: String| GroupError::Refused(format!("group {group}: {reason}"));
    match error {
        ResponseError::RebalanceInProgress => GroupError::Rebalancing,
        ResponseError::IllegalGeneration => GroupError::Outdated,
        ResponseError::UnknownMemberId => GroupError::Unknown,
        ResponseError::InconsistentGroupProtocol => refused_for_others(group, &[]),
        ResponseError::InvalidGroupId => refused(format!("choose another name for it: {error}")),
        ResponseError::InvalidSessionTimeout => refused(format!(
            "the brokers take no session of {} ms; set their group.min.session.timeout.ms to \
             that or less",
            ownership::SESSION_TIME.as_millis()
        )),
        ResponseError::GroupAuthorizationFailed => {
            refused("this user may not use it; allow Read on the group".to_owned())
        }
        ResponseError::TopicAuthorizationFailed => {
            refused("this user may not commit; allow Read on its topic".to_owned())
        }
        ResponseError::GroupMaxSizeReached => refused(
            "it is full; raise the brokers' group.max.size, or set node.owner = false on some \
             nodes"
                .to_owned(),
        ),
        _ => GroupError::Away(format!("coordinator of group {group}: {error}")),
    }
}

fn refused_for_others(group: &str, others: &[String]) -> GroupError {
    let which = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
    GroupError::Refused(format!(
        "another program's consumers are in group {group}{which}: stop them, then this node takes \
         part"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_to_mend_is_refused_and_says_how() {
        for (error, advice) in [
            (ResponseError::InconsistentGroupProtocol, "stop them"),
            (ResponseError::InvalidGroupId, "another name"),
            (ResponseError::InvalidSessionTimeout, "group.min.session.timeout.ms"),
            (ResponseError::GroupAuthorizationFailed, "allow Read on the group"),
            (ResponseError::TopicAuthorizationFailed, "allow Read on its topic"),
            (ResponseError::GroupMaxSizeReached, "group.max.size"),
        ] {
            let GroupError::Refused(said) = meaning("g-1", error) else { panic!("{error}") };
            assert!(said.contains("group g-1") && said.contains(advice), "{said}");
        }
        for error in [
            ResponseError::CoordinatorLoadInProgress,
            ResponseError::CoordinatorNotAvailable,
            ResponseError::NotCoordinator,
            ResponseError::UnknownServerError,
            ResponseError::Unknown(1_000),
        ] {
            assert!(matches!(meaning("g-1", error), GroupError::Away(_)), "{error}");
        }
    }
}
