//! Calendars of machines, which step: NTP puts them right, or somebody sets them wrong.
//!
//! What ends at a time of day ends by the calendar of the node that serves it, or that has to keep
//! it; what any of them says is taken down here before the nodes have their turns.

use corecast::base::EpochMillis;

use crate::node::Node;
use crate::sky::{AHEAD_MAX, BEHIND_MAX};
use crate::world::{CLIENTS, NODES, World};

impl World {
    /// The calendar of a machine is set: right, off by seconds or minutes, or by most of an hour.
    pub fn step_clock(&mut self) {
        let clock = &self.clocks[self.random.below(NODES)];
        let longest = match self.random.below(8) {
            0..=2 => 1,
            3..=4 => 10_000,
            5..=6 => AHEAD_MAX.as_millis() as u64,
            _ => {
                self.seen.note("calendars that were set far back");
                return clock.step(-(BEHIND_MAX.as_millis() as i64));
            }
        };
        let off_ms = (self.random.next() % longest) as i64;
        let off_ms = if self.random.one_in(2) { off_ms } else { -off_ms };
        let what = if off_ms > clock.off_ms() {
            "calendars that stepped ahead"
        } else {
            "calendars that stepped back"
        };
        self.seen.note(what);
        clock.step(off_ms);
    }

    /// What the nodes' calendars say has ended need not come by them, and need not be kept.
    pub fn take_clocks(&mut self) {
        if !self.has_steps {
            return;
        }
        let latest = self.nodes.iter().map(Node::wall).max();
        self.truth.handle_clock(latest.unwrap_or(self.wall()), &self.checked);
        for number in 0..CLIENTS {
            let wall = self.wall_of(number);
            if let Some(asking) = &mut self.clients[number].asking {
                asking.latest = asking.latest.max(wall);
            }
            self.forget_what_has_ended(number);
        }
    }

    /// What the calendar of the node says at which a client is.
    pub fn wall_of(&self, number: usize) -> EpochMillis {
        let client = &self.clients[number];
        let connection = client.connection.as_ref().map(|connection| connection.node);
        let node = connection.or(client.asking.as_ref().map(|asking| asking.node));
        node.map_or(self.wall(), |node| self.nodes[node].wall())
    }
}
