//! Ending a broadcast before its time, or at it: the row that says that it is being ended, its
//! status, word to all nodes, and then to the users who had the message; in that order.
//!
//! The status row decides. What a crash or an outage leaves behind it is completed by `EndRelay`;
//! every step may be done again.

mod expiry;
mod relay;
mod removals;

use std::sync::Arc;

use crate::base::{BroadcastId, End, EpochMillis, Status};
use crate::limits::control as limits;
use crate::ports::{Change, Ending, Endings, Inbox, LogError, StoreError};

use super::create::Creator;
use super::topic::ControlDesk;
use super::unfinished::{UnderWay, Unfinished};

pub use expiry::Expiry;
pub use relay::EndRelay;
pub use removals::Removals;

#[derive(Debug, thiserror::Error)]
pub enum EndError {
    #[error("there is no broadcast {0}")]
    Missing(BroadcastId),
    #[error("broadcast {id} is {} and can't become {}", .status.word(), .to.word())]
    Refused { id: BroadcastId, status: Status, to: Status },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(
        "{} broadcasts have ended that may still be in the log, which is the limit; try again \
             once the log has forgotten some",
        limits::ENDED_MAX
    )]
    Full,
    /// It is done, and not all nodes are known to know it.
    #[error(
        "broadcast {id} is {}, but not every node has confirmed it yet{reason}; ask again",
        .status.word()
    )]
    Unsettled { id: BroadcastId, status: Status, reason: String },
}

/// Ends broadcasts.
pub struct Ender {
    pub creator: Arc<Creator>,
    pub endings: Arc<dyn Endings>,
    pub inbox: Arc<dyn Inbox>,
    pub desk: ControlDesk,
    /// What the relay must leave alone, and when it must look.
    pub unfinished: Unfinished,
    pub removals: Removals,
}

impl Ender {
    /// Cancels. `Ok`: from now on no message of it begins on any node. One that was cancelled
    /// before is told all nodes once more, and that is all: its users are told by who cancelled it,
    /// behind the answer, since they may be many, or by the relay.
    pub async fn cancel(self: Arc<Self>, id: BroadcastId) -> Result<(), EndError> {
        let content = self.inbox.contents(&[id]).await?.into_iter().next().flatten();
        let status = content.and_then(|content| content.status).ok_or(EndError::Missing(id))?;
        let to = Status::Cancelled;
        if status == Status::Expired {
            return Err(EndError::Refused { id, status, to });
        }
        if !self.desk.has_room() {
            return Err(EndError::Full);
        }
        let begun = if status == to { None } else { self.begin_cancel(id).await? };
        let unsettled = |reason: String| EndError::Unsettled { id, status: to, reason };
        let told = self.desk.tell_ended(id, End::Cancelled).await;
        let record = told.map_err(|error| unsettled(format!(": {error}")))?;
        if let Some((ending, under_way)) = begun {
            self.clone().remove_behind(ending, under_way);
        }
        if self.desk.settled(record).await { Ok(()) } else { Err(unsettled(String::new())) }
    }

    /// The row, and the status; what is left to do, if this call has changed it.
    async fn begin_cancel(&self, id: BroadcastId) -> Result<Option<(Ending, UnderWay)>, EndError> {
        let ending =
            Ending { id, at: self.unfinished.time_of_row(self.now()), how: End::Cancelled };
        let mut under_way = self.unfinished.begin(id);
        self.endings.put_ending(&ending).await?;
        // What becomes of a change whose answer is lost, the relay finds out by another: of two
        // one is `Done`, and no later one is.
        under_way.is_owed = true;
        let change = self.endings.change_status(id, ending.how.status()).await?;
        if change == Change::Done {
            say_ended(&ending);
            return Ok(Some((ending, under_way)));
        }
        // Somebody else was quicker, and has a row of his own.
        self.endings.settle_ending(&ending).await?;
        under_way.finish();
        match change {
            Change::Done | Change::Already => Ok(None),
            Change::Refused(status) => Err(EndError::Refused { id, status, to: Status::Cancelled }),
            Change::Missing => Err(EndError::Missing(id)),
        }
    }

    /// Tells the users once all nodes have been told; the relay does it if this fails, or if too
    /// many wait for it.
    fn remove_behind(self: Arc<Self>, ending: Ending, under_way: UnderWay) {
        let Some(place) = self.removals.place_behind() else { return };
        tokio::spawn(async move {
            match self.remove(&ending).await {
                Ok(()) => under_way.finish(),
                Err(error) => {
                    let broadcast = ending.id.get();
                    tracing::warn!(broadcast, %error, "its users are told later that it has ended");
                }
            }
            drop(place);
        });
    }

    /// Does all that ending it takes, whatever of that was done before; `Ok` also for one that has
    /// ended otherwise, or never was.
    async fn finish(&self, ending: &Ending) -> Result<(), EndError> {
        if self.begin(ending).await? {
            self.remove(ending).await?;
        }
        Ok(())
    }

    /// The row, the status, and word to all nodes; whether users are to be told.
    async fn begin(&self, ending: &Ending) -> Result<bool, EndError> {
        let is_ended = self.change(ending).await?;
        if is_ended {
            self.desk.tell_ended(ending.id, ending.how).await?;
        }
        Ok(is_ended)
    }

    /// The row, and the status; whether the broadcast stands there now.
    async fn change(&self, ending: &Ending) -> Result<bool, StoreError> {
        self.endings.put_ending(ending).await?;
        match self.endings.change_status(ending.id, ending.how.status()).await? {
            Change::Done => {
                say_ended(ending);
                Ok(true)
            }
            Change::Already => Ok(true),
            Change::Refused(_) | Change::Missing => {
                self.endings.settle_ending(ending).await?;
                Ok(false)
            }
        }
    }

    /// Tells the users, as far as they could see it; then nothing is left to do.
    async fn remove(&self, ending: &Ending) -> Result<(), EndError> {
        self.removals.append(&self.creator, ending).await?;
        Ok(self.endings.settle_ending(ending).await?)
    }

    fn now(&self) -> EpochMillis {
        self.creator.clock.wall()
    }
}

/// Who cancels is somebody; what expires may be thousands in a second.
fn say_ended(ending: &Ending) {
    let broadcast = ending.id.get();
    match ending.how {
        End::Cancelled => tracing::info!(broadcast, "cancelled"),
        End::Expired => tracing::debug!(broadcast, "expired"),
    }
}
