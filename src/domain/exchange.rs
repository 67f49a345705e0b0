//! What a shard passes on to the other shards of its node.
//!
//! Whoever owns a partition decodes its records and passes each event to the shards that hold part
//! of its audience, and to all others, once a batch, how far the partition has been read. Each
//! shard gets them in order, from one owner a partition, so its positions say exactly what its
//! streams have been served.
//!
//! A lane may be full. What it does not take waits here, in order, and once much of it waits the
//! owner takes no more records. It never stops to take what others pass to it, so two that wait for
//! each other can't be.

use std::collections::VecDeque;

use crate::base::{Partition, Sharding};
use crate::limits::shard as limits;
use crate::wire::archive::{AudienceRef, SharedEvent};

/// One item from shard to shard.
#[derive(Clone, Debug)]
pub enum Passed {
    Event(SharedEvent),
    /// The partition has been read up to `next`: what the events before it did not say.
    Position {
        partition: Partition,
        next: u64,
    },
    /// The partition can't be read below `next`, and has not been up to there.
    Skip {
        partition: Partition,
        next: u64,
    },
    /// All that the log held at the start is before this.
    CaughtUp,
}

impl Passed {
    /// Bytes of the event.
    fn bytes(&self) -> usize {
        match self {
            Self::Event(event) => event.bytes(),
            Self::Position { .. } | Self::Skip { .. } | Self::CaughtUp => 0,
        }
    }
}

/// One shard's part in it.
#[derive(Debug)]
pub struct Exchange {
    own: u16,
    sharding: Sharding,
    /// What waits for each shard; nothing for this one.
    waiting: Vec<VecDeque<Passed>>,
    /// Bytes of the events that wait.
    bytes: usize,
}

impl Exchange {
    pub fn new(own: u16, sharding: Sharding) -> Self {
        debug_assert!(own < sharding.count());
        let waiting = (0..sharding.count()).map(|_| VecDeque::new()).collect();
        Self { own, sharding, waiting, bytes: 0 }
    }

    /// Passes an event to those who hold some of its audience; says whether this shard does.
    pub fn pass_event(&mut self, event: &SharedEvent) -> bool {
        match event.audience() {
            AudienceRef::User(user) => {
                let owner = self.sharding.of_user(user);
                if owner != self.own {
                    self.pass(owner, Passed::Event(event.clone()));
                }
                owner == self.own
            }
            AudienceRef::Everyone | AudienceRef::Members { .. } => {
                self.pass_to_others(&Passed::Event(event.clone()));
                true
            }
        }
    }

    /// Tells the others how far a partition has been read, after its events.
    pub fn pass_position(&mut self, partition: Partition, next: u64) {
        self.pass_to_others(&Passed::Position { partition, next });
    }

    pub fn pass_skip(&mut self, partition: Partition, next: u64) {
        self.pass_to_others(&Passed::Skip { partition, next });
    }

    pub fn pass_caught_up(&mut self) {
        self.pass_to_others(&Passed::CaughtUp);
    }

    /// Offers a shard what waits for it, until it gives an item back.
    pub fn offer(&mut self, shard: u16, mut take: impl FnMut(Passed) -> Result<(), Passed>) {
        let waiting = &mut self.waiting[usize::from(shard)];
        while let Some(item) = waiting.pop_front() {
            let bytes = item.bytes();
            if let Err(item) = take(item) {
                waiting.push_front(item);
                return;
            }
            self.bytes -= bytes;
        }
    }

    /// Whether more records may be decoded.
    pub fn has_room(&self) -> bool {
        self.len() < limits::PASSED_WAITING_MAX && self.bytes < limits::PASSED_WAITING_BYTES_MAX
    }

    /// Items that wait for other shards.
    pub fn len(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    fn pass_to_others(&mut self, item: &Passed) {
        let own = self.own;
        for shard in (0..self.sharding.count()).filter(|shard| *shard != own) {
            self.pass(shard, item.clone());
        }
    }

    /// Appends an item. Positions of one partition in turn are one: the last.
    fn pass(&mut self, shard: u16, item: Passed) {
        let waiting = &mut self.waiting[usize::from(shard)];
        if let Passed::Position { partition: new, .. } = item
            && let Some(Passed::Position { partition, .. }) = waiting.back()
            && *partition == new
        {
            waiting.pop_back();
        }
        self.bytes += item.bytes();
        waiting.push_back(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BroadcastId, EpochMillis, Position, Topic};
    use crate::wire::archive::{Archiver, Audience, Event, EventKind};

    const PARTITION: Partition = Partition { topic: Topic::Group, index: 3 };

    fn event(audience: Audience<'_>) -> SharedEvent {
        Archiver::default().write(Event {
            position: Position { partition: PARTITION, offset: 5 },
            appended_at: EpochMillis(0),
            event_id: 1,
            attempt: 0,
            broadcast: BroadcastId::new(1).expect("small"),
            expires_at: None,
            kind: EventKind::Message,
            is_passing: false,
            audience,
            body: b"event: MESSAGE\ndata: {}\n\n",
        })
    }

    fn exchange() -> Exchange {
        Exchange::new(1, Sharding::new(3).expect("some"))
    }

    /// What a shard is offered, at most so many items.
    fn offered(exchange: &mut Exchange, shard: u16, many: usize) -> Vec<String> {
        let mut taken = Vec::new();
        exchange.offer(shard, |item| {
            if taken.len() == many {
                return Err(item);
            }
            taken.push(match item {
                Passed::Event(_) => "event".to_owned(),
                Passed::Position { next, .. } => format!("up to {next}"),
                Passed::Skip { next, .. } => format!("from {next}"),
                Passed::CaughtUp => "caught up".to_owned(),
            });
            Ok(())
        });
        taken
    }

    #[test]
    fn a_targeted_event_goes_to_its_users_shard_and_positions_to_all() {
        let mut exchange = exchange();
        let mut users = (0..).map(|number| format!("user-{number}"));
        let mut of = |shard: u16| users.find(|user| exchange.sharding.of_user(user) == shard);
        let (theirs, ours) = (of(2).expect("some"), of(1).expect("some"));
        let event = |user: &str| event(Audience::User(user));
        assert!(!exchange.pass_event(&event(&theirs)));
        assert!(exchange.pass_event(&event(&ours)));
        exchange.pass_position(PARTITION, 6);
        assert_eq!(offered(&mut exchange, 0, 9), ["up to 6"]);
        assert_eq!(offered(&mut exchange, 2, 9), ["event", "up to 6"]);
        assert!(exchange.is_empty());
    }

    #[test]
    fn what_is_not_taken_waits_in_order() {
        let mut exchange = exchange();
        assert!(exchange.pass_event(&event(Audience::Everyone)));
        exchange.pass_position(PARTITION, 6);
        exchange.pass_position(PARTITION, 9);
        exchange.pass_caught_up();
        assert_eq!(offered(&mut exchange, 0, 1), ["event"]);
        assert_eq!(exchange.len(), 2 + 3);
        assert_eq!(offered(&mut exchange, 0, 9), ["up to 9", "caught up"]);
        assert_eq!(offered(&mut exchange, 2, 9), ["event", "up to 9", "caught up"]);
        assert_eq!((exchange.is_empty(), exchange.bytes), (true, 0));
    }

    #[test]
    fn much_that_waits_stops_the_decoding_by_number_and_by_bytes() {
        let mut by_number = exchange();
        while by_number.has_room() {
            by_number.pass_event(&event(Audience::Everyone));
        }
        assert_eq!(by_number.len(), limits::PASSED_WAITING_MAX);
        let mut by_bytes = exchange();
        let large = "x".repeat(1 << 20);
        let large = event(Audience::Members {
            kind: crate::wire::archive::MemberKind::Role,
            names: vec![&large],
        });
        while by_bytes.has_room() {
            by_bytes.pass_event(&large);
        }
        assert_eq!(by_bytes.len(), 2 * limits::PASSED_WAITING_BYTES_MAX / (2 << 20));
        offered(&mut by_bytes, 0, 9);
        assert!(by_bytes.has_room());
    }
}
