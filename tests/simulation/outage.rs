//! Outages: log, store, control topic or coordinator are away for longer than every time-out,
//! session and retry, whatever nodes and clients do meanwhile.
//!
//! P7 is held against each stream that a node ends by itself in the meantime, and against every
//! dead letter.

use std::time::Duration;

use corecast::base::Moment;

use crate::world::World;

/// Until when something is away, if that is not said where it is.
#[derive(Default)]
pub struct Outage {
    until: Moment,
    /// For nodes.
    pub log_until: Moment,
    /// For who appends.
    producers_until: Moment,
}

impl World {
    /// Something is away for minutes, and what is not goes on.
    pub fn run_outage(&mut self) {
        if !self.faults.outages {
            return;
        }
        let length = Duration::from_secs(90) + self.random.millis(150_000);
        let until = self.now.plus(length);
        let (what, [store, log, producers, control, groups]) = match self.random.below(6) {
            0 => ("outages of the store", [true, false, false, false, false]),
            1 => ("outages of the log", [false, true, true, true, true]),
            2 => ("outages of log and store", [true, true, true, true, true]),
            3 => ("outages of the control topic", [false, false, false, true, false]),
            4 => ("outages of the coordinator", [false, false, false, false, true]),
            _ => ("outages of the log for nodes alone", [false, true, false, true, true]),
        };
        self.seen.note(what);
        let if_away = |is_away| if is_away { until } else { Moment(0) };
        self.outage =
            Outage { until, log_until: if_away(log), producers_until: if_away(producers) };
        self.store.lock().away_until = if_away(store);
        self.desk.lock().away_until = if_away(log);
        self.topic.away_until = if_away(control);
        self.groups.lock().away_until = if_away(groups);
        let deliveries = self.seen().of("deliveries");
        while self.is_in_outage() {
            self.step();
        }
        if store && !log {
            let more = self.seen().of("deliveries") - deliveries;
            self.seen.count("deliveries without the store", more);
        }
    }

    pub fn is_in_outage(&self) -> bool {
        self.now < self.outage.until
    }

    /// Whether nobody can append anything.
    pub fn is_log_out(&self) -> bool {
        self.now < self.outage.producers_until
    }
}
