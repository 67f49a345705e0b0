//! The end of a node, in order: readiness goes off, its partitions are others', the shards drain,
//! what they said last is kept, and calls that are under way are answered.
//!
//! A shard that has no streams left goes on decoding for those that do. So each says when it has
//! drained, and all are stopped once the last one has.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{BootError, Ending};
use crate::admin::OpenCalls;
use crate::control::{InboxDesk, Threads};
use crate::lane::{FromShard, RefusalReason, Sender, ToShard};
use crate::limits::admin::ANSWER_TIME;
use crate::ops::health::{Health, Part};
use crate::owner::Leaver;

/// Between two looks for a second signal.
const SIGNAL_LOOK: Duration = Duration::from_millis(50);

/// What ends, and what it takes.
pub(super) struct Departure<'a> {
    pub threads: &'a Threads,
    pub ended: &'a mpsc::Receiver<Ending>,
    pub shards: &'a [Sender<ToShard>],
    pub window: Duration,
    pub health: &'a Health,
    pub desk: &'a InboxDesk,
    pub reports: &'a Sender<FromShard>,
    pub calls: &'a OpenCalls,
    pub leaver: Leaver,
    /// Nobody else owns what this node does.
    pub is_alone: bool,
}

impl Departure<'_> {
    /// Fails when a second signal comes, or a part ends that the streams still need.
    pub fn run(self) -> Result<(), BootError> {
        let window_s = self.window.as_secs();
        tracing::info!(window_s, "draining; a second signal ends the node at once");
        self.health.lost(Part::Node, "draining");
        if !self.is_alone {
            self.leaver.leave();
        }
        drain(self.ended, self.shards, self.window)?;
        self.threads.block_on(self.desk.settle(|| self.reports.depth() == 0));
        self.answer_all()?;
        self.leaver.leave();
        self.threads.block_on(self.leaver.left());
        tracing::info!("drained");
        Ok(())
    }

    /// Waits until the calls that came before the end are answered.
    fn answer_all(&self) -> Result<(), BootError> {
        let until = Instant::now() + ANSWER_TIME;
        while !self.threads.block_on(self.calls.end(SIGNAL_LOOK)) && Instant::now() < until {
            if let Ok(Ending::Signal) = self.ended.try_recv() {
                return Err(BootError::SecondSignal);
            }
        }
        Ok(())
    }
}

/// What has been heard of the shards.
struct Draining<'a> {
    ended: &'a mpsc::Receiver<Ending>,
    shards: &'a [Sender<ToShard>],
    drained: usize,
    are_stopped: bool,
    have_ended: bool,
}

/// Has every stream told within the window, and stops the shards after that.
fn drain(
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lane::{Doorbell, lane};

    /// Drains two shards, of which this is heard; what they were told, in order.
    fn drained(heard: Vec<Ending>) -> (Result<(), BootError>, [Vec<ToShard>; 2]) {
        let (endings, ended) = mpsc::channel();
        heard.into_iter().for_each(|ending| endings.send(ending).expect("heard"));
        let bell = Arc::new(Doorbell::new().expect("a doorbell"));
        let (left, right) = (lane("left", 2, bell.clone()), lane("right", 2, bell));
        let outcome = drain(&ended, &[left.0, right.0], Duration::ZERO);
        let told = [left.1, right.1].map(|told| std::iter::from_fn(|| told.try_recv()).collect());
        (outcome, told)
    }

    fn part() -> Ending {
        Ending::Part("the log can't be read".to_owned())
    }

    #[test]
    fn all_shards_are_stopped_when_the_last_one_has_drained() {
        use Ending::{ShardDrained, ShardsEnded};
        // Reading the log ends with the first of them.
        let (outcome, told) = drained(vec![ShardDrained, ShardDrained, part(), ShardsEnded]);
        assert!(outcome.is_ok());
        for told in told {
            assert!(matches!(told[..], [ToShard::Drain { .. }, ToShard::Stop]), "{told:?}");
        }
    }

    #[test]
    fn a_drain_ends_early_without_a_part_that_streams_need_or_by_a_signal() {
        for ending in [part(), Ending::Signal] {
            let (outcome, told) = drained(vec![Ending::ShardDrained, ending]);
            assert!(outcome.is_err());
            for told in told {
                assert!(matches!(told[..], [ToShard::Drain { .. }]), "{told:?}");
            }
        }
    }
}
