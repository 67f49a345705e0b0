//! Word to the users of a broadcast that has ended: bounded, since a row and its records may be
//! large, and so that few large audiences hold up no small one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::TargetType;
use crate::control::Creator;
use crate::domain::Broadcast;
use crate::limits::admin::PUBLISH_RECORDS_MAX;
use crate::limits::endings as limits;
use crate::ports::Ending;

use super::EndError;

/// How many may be under way.
#[derive(Debug)]
pub struct Removals {
    /// Cancels whose users wait for word, or are being told.
    behind: Arc<Semaphore>,
    small: Semaphore,
    large: Semaphore,
    /// Rows of which it is not known yet how large they are.
    reading: Semaphore,
}

impl Default for Removals {
    fn default() -> Self {
        Self {
            behind: Arc::new(Semaphore::new(limits::REMOVALS_BEHIND_MAX)),
            small: Semaphore::new(limits::SMALL_REMOVALS_MAX),
            large: Semaphore::new(limits::LARGE_REMOVALS_MAX),
            reading: Semaphore::new(limits::REMOVALS_READ_MAX),
        }
    }
}

impl Removals {
    /// For one that is done behind an answer; `None`: too many are.
    pub(super) fn place_behind(&self) -> Option<OwnedSemaphorePermit> {
        self.behind.clone().try_acquire_owned().ok()
    }

    /// Appends the records that tell the users, once there is room.
    pub(super) async fn append(&self, creator: &Creator, ending: &Ending) -> Result<(), EndError> {
        {
            let _small = self.small.acquire().await;
            let reading = self.reading.acquire().await;
            let Some(row) = creator.store.broadcast(ending.id).await? else { return Ok(()) };
            if selected(&row.broadcast).len() <= PUBLISH_RECORDS_MAX {
                drop(reading);
                return append_all(creator, ending, &row.broadcast).await;
            }
        }
        let _large = self.large.acquire().await;
        match creator.store.broadcast(ending.id).await? {
            Some(row) => append_all(creator, ending, &row.broadcast).await,
            None => Ok(()),
        }
    }
}

async fn append_all(
    creator: &Creator,
    ending: &Ending,
    broadcast: &Broadcast,
) -> Result<(), EndError> {
    // This one stops delivery wherever the log is read again.
    creator.log.append(vec![creator.removal(ending.how, broadcast, None)]).await?;
    for users in selected(broadcast).chunks(PUBLISH_RECORDS_MAX) {
        let of = |user: &String| creator.removal(ending.how, broadcast, Some(user));
        creator.log.append(users.iter().map(of).collect()).await?;
    }
    Ok(())
}

/// The users who have a record of their own.
fn selected(broadcast: &Broadcast) -> &[String] {
    match broadcast.target.r#type {
        TargetType::Selected => &broadcast.target.ids,
        _ => &[],
    }
}
