//! Has the shards drain, and waits until they have ended.
//!
//! A shard that has no streams left goes on decoding for those that do. So each says when it has
//! drained, and all are stopped once the last one has.

use std::sync::mpsc;
use std::time::Duration;

use super::{BootError, Ending};
use crate::lane::{RefusalReason, Sender, ToShard};

/// What has been heard of the shards.
struct Draining<'a> {
    ended: &'a mpsc::Receiver<Ending>,
    shards: &'a [Sender<ToShard>],
    drained: usize,
    are_stopped: bool,
    have_ended: bool,
}

/// Has every stream told within the window, and stops the shards after that. Fails when a second
/// signal comes, or a part ends that the streams still need.
pub(super) fn drain(
    ended: &mpsc::Receiver<Ending>,
    shards: &[Sender<ToShard>],
    window: Duration,
) -> Result<(), BootError> {
    let mut draining =
        Draining { ended, shards, drained: 0, are_stopped: false, have_ended: false };
    draining.tell(|| ToShard::Drain { window })?;
    while draining.drained < shards.len() {
        draining.hear(None)?;
    }
    draining.are_stopped = true;
    draining.tell(|| ToShard::Stop)?;
    while !draining.have_ended {
        draining.hear(None)?;
    }
    Ok(())
}

impl Draining<'_> {
    /// Tells every shard. A lane may be full of records; then its shard makes room within
    /// milliseconds.
    fn tell(&mut self, what: impl Fn() -> ToShard) -> Result<(), BootError> {
        for shard in self.shards {
            while let Err(refusal) = shard.try_send(what())
                && refusal.reason == RefusalReason::Full
            {
                self.hear(Some(Duration::from_millis(1)))?;
            }
        }
        Ok(())
    }

    /// Takes what comes next, if it comes in time.
    fn hear(&mut self, at_most: Option<Duration>) -> Result<(), BootError> {
        let heard = match at_most {
            Some(at_most) => match self.ended.recv_timeout(at_most) {
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(()),
                heard => heard.ok(),
            },
            None => self.ended.recv().ok(),
        };
        match heard {
            Some(Ending::Signal) => return Err(BootError::SecondSignal),
            Some(Ending::ShardDrained) => self.drained += 1,
            Some(Ending::ShardsEnded) => self.have_ended = true,
            // Reading the log ends when its shard does.
            Some(Ending::Part(_)) if self.are_stopped => {}
            Some(Ending::Part(reason)) => return Err(BootError::Ended(reason)),
            None => return Err(BootError::Ended("the shards ended unheard".to_owned())),
        }
        Ok(())
    }
}
