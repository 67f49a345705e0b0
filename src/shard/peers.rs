//! A shard's lanes to and from the other shards of its node.
//!
//! Two for each pair and direction: one for events and positions, which never loses one, and one
//! for connections that the wrong shard has accepted, which may say no. So a flood of connects
//! takes no event's place.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::base::Sharding;
use crate::domain::{Intake, Passed};
use crate::edge::StreamRequest;
use crate::lane::{Doorbell, Receiver, RefusalReason, Refusals, Sender, lane};
use crate::limits::lane as limits;

/// A connection for a stream of a user whose shard is another one, with all that was read from it.
#[derive(Debug)]
pub(super) struct Handed {
    pub socket: OwnedFd,
    pub request: StreamRequest,
    /// Of the request, for the answer that puts it off.
    pub path: Box<str>,
}

/// Lanes with one other shard.
struct Peer {
    shard: u16,
    events_in: Receiver<Passed>,
    events_out: Sender<Passed>,
    streams_in: Receiver<Box<Handed>>,
    streams_out: Sender<Box<Handed>>,
}

/// Lanes with all other shards.
pub struct Peers {
    own: u16,
    sharding: Sharding,
    peers: Vec<Peer>,
    /// Connections that may wait in one lane: each is a descriptor.
    handed_max: usize,
}

/// Makes the lanes between shards, given their doorbells in order. Returns each one's ends.
pub fn mesh(bells: &[Arc<Doorbell>]) -> Option<Vec<Peers>> {
    let sharding = Sharding::new(u16::try_from(bells.len()).ok()?)?;
    let share = limits::STREAMS_TO_SHARDS / bells.len();
    let handed_max = share.clamp(limits::STREAMS_TO_SHARD_MIN, limits::STREAMS_TO_SHARD_MAX);
    let mut all: Vec<Peers> = (0..sharding.count())
        .map(|own| Peers { own, sharding, peers: Vec::new(), handed_max })
        .collect();
    for left in 0..bells.len() {
        for right in left + 1..bells.len() {
            let (to_right, from_left) = ends(&bells[right], handed_max);
            let (to_left, from_right) = ends(&bells[left], handed_max);
            all[left].peers.push(peer(right as u16, from_right, to_right));
            all[right].peers.push(peer(left as u16, from_left, to_left));
        }
    }
    Some(all)
}

type SendingEnds = (Sender<Passed>, Sender<Box<Handed>>);
type ReceivingEnds = (Receiver<Passed>, Receiver<Box<Handed>>);

fn ends(bell: &Arc<Doorbell>, handed_max: usize) -> (SendingEnds, ReceivingEnds) {
    let (events_out, events_in) = lane("shard_to_shard", limits::SHARD_TO_SHARD, bell.clone());
    let (streams_out, streams_in) = lane("streams", handed_max, bell.clone());
    ((events_out, streams_out), (events_in, streams_in))
}

fn peer(shard: u16, from: ReceivingEnds, to: SendingEnds) -> Peer {
    let ((events_in, streams_in), (events_out, streams_out)) = (from, to);
    Peer { shard, events_in, events_out, streams_in, streams_out }
}

impl Peers {
    pub const fn sharding(&self) -> Sharding {
        self.sharding
    }

    pub fn own(&self) -> u16 {
        self.own
    }

    /// At most so many connections may wait in all lanes that lead away from here.
    pub(super) fn limit_handed(&mut self, many: usize) {
        self.handed_max = (many / self.peers.len().max(1)).clamp(1, self.handed_max);
    }

    /// Other shards.
    pub fn others(&self) -> usize {
        self.peers.len()
    }

    /// The lanes that lead away from here, for metrics.
    pub fn lanes(&self) -> Vec<(&'static str, Arc<Refusals>)> {
        let lanes = self.peers.iter().flat_map(|peer| {
            let events = (peer.events_out.name(), peer.events_out.refusals());
            [events, (peer.streams_out.name(), peer.streams_out.refusals())]
        });
        lanes.collect()
    }

    /// What another shard has passed next.
    pub(super) fn take_passed(&self, place: usize) -> Option<Passed> {
        self.peers.get(place)?.events_in.try_recv()
    }

    /// A connection that another shard has accepted for us.
    pub(super) fn take_handed(&self, place: usize) -> Option<Box<Handed>> {
        self.peers.get(place)?.streams_in.try_recv()
    }

    pub(super) fn has_passed(&self) -> bool {
        self.peers.iter().any(|peer| !peer.events_in.is_empty())
    }

    pub(super) fn has_handed(&self) -> bool {
        self.peers.iter().any(|peer| !peer.streams_in.is_empty())
    }

    /// Hands a connection to the shard of its user; gives it back if there is no room.
    pub(super) fn hand(&self, shard: u16, handed: Box<Handed>) -> Result<(), Box<Handed>> {
        match self.peers.iter().find(|peer| peer.shard == shard) {
            Some(peer) if peer.streams_out.depth() < self.handed_max => {
                peer.streams_out.try_send(handed).map_err(|refusal| refusal.item)
            }
            Some(_) | None => Err(handed),
        }
    }

    /// Puts what waits into the lanes, as far as they take it.
    pub(super) fn flush(&self, intake: &mut Intake) {
        for peer in &self.peers {
            intake.poll_passed(peer.shard, |item| match peer.events_out.try_send(item) {
                Ok(()) => Ok(()),
                // Its shard has drained: nobody is served there any more.
                Err(refusal) if refusal.reason == RefusalReason::Closed => Ok(()),
                Err(refusal) => Err(refusal.item),
            });
        }
    }
}
