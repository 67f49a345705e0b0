//! Metrics in the OpenMetrics text format: what the shards' probes and the reading of the log show.
//!
//! Nothing is counted twice: a scrape reads the numbers where they are kept.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::control::{ControlCounters, RedriveCounters};
use crate::domain::CloseReason;
use crate::lane::{RefusalReason, Refusals};
use crate::owner::{DeadClass, OwnerCounters};
use crate::shard::{BUCKETS_MICROS, Histogram, Probe, RuntimeKind};

/// What a scrape reads.
pub struct Metrics {
    registry: Registry,
    /// What the calls that are no stream count.
    pub calls: Arc<CallCounters>,
}

/// Connections of calls that are no stream, closed without an answer.
#[derive(Debug, Default)]
pub struct CallCounters {
    /// Of the public listener: too many calls were under way.
    pub dropped: AtomicU64,
    /// Of the admin listener: too many had not said what they want.
    pub evicted: AtomicU64,
}

/// Numbers that are kept elsewhere.
#[derive(Clone, Debug)]
pub struct Sources {
    pub shards: Vec<Arc<Probe>>,
    /// What each of them waits with.
    pub runtimes: Vec<RuntimeKind>,
    pub log_lag: Arc<AtomicU64>,
    pub owner: Arc<OwnerCounters>,
    /// Notes of what reached users for which the control threads had no room.
    pub notes_dropped: Arc<AtomicU64>,
    /// Records that were read again from the log, for all shards.
    pub records_reread: Arc<AtomicU64>,
    pub control: Arc<ControlCounters>,
    pub redrive: Arc<RedriveCounters>,
    pub calls: Arc<CallCounters>,
    /// The lanes; those of one name are counted together.
    pub lanes: Vec<(&'static str, Arc<Refusals>)>,
}

impl Metrics {
    pub fn new(sources: Sources) -> Self {
        let mut registry = Registry::with_prefix("corecast");
        let build = Family::<Vec<(String, String)>, Gauge>::default();
        let version = ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        build.get_or_create(&vec![version]).set(1);
        registry.register("build_info", "The release that runs", build);
        let calls = sources.calls.clone();
        registry.register_collector(Box::new(sources));
        Self { registry, calls }
    }

    /// All of them as text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String does not fail; should a collector, the scrape shows nothing.
            Err(_) => String::new(),
        }
    }
}

/// A number of every shard.
type Read = fn(&Probe) -> &AtomicU64;

const GAUGES: [(&str, &str, Read); 5] = [
    ("streams", "Open streams", |probe| &probe.streams),
    ("users", "Users with an open stream", |probe| &probe.users),
    ("ring_frames", "Frames in the ring", |probe| &probe.ring_frames),
    ("passed_waiting", "Events and positions that wait for another shard's lane", |probe| {
        &probe.passed_waiting
    }),
    ("serving", "1 while the shard serves streams", |probe| &probe.serving),
];

const COUNTERS: [(&str, &str, Read); 26] = [
    ("streams_opened", "Streams that were opened", |probe| &probe.opened),
    ("streams_resumed", "Streams that came with a usable cursor", |probe| &probe.resumed),
    ("cursors_refused", "Cursors presented that were none, or of another user or log", |probe| {
        &probe.cursors_refused
    }),
    ("deliveries", "Frames of which the kernel took the last byte", |probe| &probe.deliveries),
    ("writes", "Writes that took at least a byte", |probe| &probe.writes),
    ("deliveries_joined", "Frames that went out with another one", |probe| &probe.joined),
    ("writes_blocked", "Times that a stream's socket became full", |probe| &probe.blocked),
    ("heartbeats", "Heartbeats sent", |probe| &probe.heartbeats),
    ("gaps", "GAP events sent", |probe| &probe.gaps),
    ("ended_skips", "Messages not sent because their broadcast had ended", |probe| {
        &probe.ended_skips
    }),
    ("events", "Events appended to the ring", |probe| &probe.events),
    ("bad_records", "Records that could not be decoded", |probe| &probe.bad_records),
    ("unserved_records", "Records that were not served where they stood", |probe| {
        &probe.unserved_records
    }),
    ("repeats", "Records not served because their event had been", |probe| &probe.repeats),
    ("connections_accepted", "Connections accepted", |probe| &probe.accepted),
    ("streams_handed", "Requests handed to the shard of their user", |probe| &probe.streams_handed),
    ("requests_malformed", "Request heads refused", |probe| &probe.heads_refused),
    ("connections_evicted", "Connections closed for newer ones", |probe| &probe.heads_evicted),
    ("descriptors_exhausted", "Times that no descriptor was left for a connection", |probe| {
        &probe.descriptors_exhausted
    }),
    ("requests_put_off", "Requests told to come back later", |probe| &probe.requests_refused),
    ("notes_dropped", "Notes of what reached users that a shard could not pass on", |probe| {
        &probe.notes_dropped
    }),
    ("unconfirmed_dropped", "Frames not followed until the peer had them", |probe| {
        &probe.unconfirmed_dropped
    }),
    (
        "farewells_refused",
        "Streams that ended while too many others waited for what their peers acknowledge",
        |probe| &probe.farewells_refused,
    ),
    (
        "replays",
        "Times that a stream was served from the log, because the ring had lost its place",
        |probe| &probe.replays,
    ),
    (
        "reread_events",
        "Events of records read again from the log, once for all streams of a shard",
        |probe| &probe.reread,
    ),
    ("long_turns", "Turns of a shard that were too long", |probe| &probe.long_turns),
];

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, read) in GAUGES {
            let value = |probe: &Probe| ConstGauge::new(load(read(probe)) as i64);
            self.per_shard(&mut encoder, (name, help, None), value)?;
        }
        for (name, help, read) in COUNTERS {
            let value = |probe: &Probe| ConstCounter::new(load(read(probe)));
            self.per_shard(&mut encoder, (name, help, None), value)?;
        }
        let ring = |probe: &Probe| ConstGauge::new(load(&probe.ring_bytes) as i64);
        let what = ("ring", "Memory of the ring", Some(Unit::Bytes));
        self.per_shard(&mut encoder, what, ring)?;
        let bytes = |probe: &Probe| ConstCounter::new(load(&probe.bytes));
        let what = ("sent", "Bytes that streams took", Some(Unit::Bytes));
        self.per_shard(&mut encoder, what, bytes)?;
        self.runtimes(&mut encoder)?;
        self.closes(&mut encoder)?;
        self.refusals(&mut encoder)?;
        self.histogram(&mut encoder, "fanout", "Append to all that keep up", |probe| {
            &probe.fanout
        })?;
        self.histogram(&mut encoder, "shard_turn", "Length of a turn", |probe| &probe.turns)?;
        self.dead_letters(&mut encoder)?;
        let OwnerCounters {
            partitions,
            lag,
            rows,
            parked,
            published_again,
            retries,
            commits_lost,
            skipped_records,
            dead_letters: _,
            dead_letter_rows,
            dead_letter_lag,
            dead_letter_retries,
        } = &*self.owner;
        let ControlCounters { nodes, ended, ignored, fences } = &*self.control;
        let CallCounters { dropped, evicted } = &*self.calls;
        let RedriveCounters { redriven, purged } = &*self.redrive;
        for (name, help, gauge) in [
            ("fleet_nodes", "Other nodes that have been heard of in the last seconds", nodes),
            ("ended_broadcasts", "Ended broadcasts that may still be in the log", ended),
            (
                "log_lag_records",
                "Records between what was read and the end of the log",
                &*self.log_lag,
            ),
            ("owned_partitions", "Partitions that this node owns", partitions),
            ("owned_lag_records", "Records of them of which not all is durable yet", lag),
            (
                "dead_letter_lag_records",
                "Records of owned dead-letter topics that are not read back yet",
                dead_letter_lag,
            ),
        ] {
            let value = ConstGauge::new(load(gauge) as i64);
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)?;
        }
        for (name, help, counter) in [
            ("calls_dropped", "Public connections closed because of too many calls", dropped),
            (
                "admin_connections_evicted",
                "Admin connections closed for newer ones, before they said what they want",
                evicted,
            ),
            ("control_records_ignored", "Control records of no release known here", ignored),
            (
                "fences",
                "Times that messages waited, because the control topic was not heard",
                fences,
            ),
            ("rows", "Rows of inboxes and of group messages written", rows),
            ("records_parked", "Records that could not be served where they stood", parked),
            ("records_published_again", "Records that were published again", published_again),
            ("row_retries", "Writes of such rows that have to be done again", retries),
            ("commits_lost", "Commits refused because the partition had gone", commits_lost),
            ("notes_lost", "Notes of what reached users that found no room", &*self.notes_dropped),
            (
                "records_reread",
                "Records read again from the log, once for all shards that need them",
                &*self.records_reread,
            ),
            ("skipped_records", "Offsets that the log lost before they were kept", skipped_records),
            ("dead_letter_rows", "Dead letters read back, whoever wrote them", dead_letter_rows),
            ("dead_letters_redriven", "Dead letters that were sent again by hand", redriven),
            ("dead_letters_purged", "Dead letters that were purged by hand", purged),
            (
                "dead_letter_retries",
                "Writes of dead letters that have to be done again",
                dead_letter_retries,
            ),
        ] {
            let value = ConstCounter::new(load(counter));
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)?;
        }
        Ok(())
    }
}

impl Sources {
    fn per_shard<M: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit): (&str, &str, Option<Unit>),
        value: impl Fn(&Probe) -> M,
    ) -> Result<(), std::fmt::Error> {
        let Some(first) = self.shards.first() else { return Ok(()) };
        let kind = value(first).metric_type();
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (shard, probe) in self.shards.iter().enumerate() {
            let labels = [("shard", shard.to_string())];
            value(probe).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn runtimes(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let is = ConstGauge::new(1_i64);
        let help = "1 for what the shard waits with";
        let mut family = encoder.encode_descriptor("runtime", help, None, is.metric_type())?;
        for (shard, runtime) in self.runtimes.iter().enumerate() {
            let labels = [("shard", shard.to_string()), ("runtime", runtime.name().to_owned())];
            is.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn closes(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kind = ConstCounter::new(0_u64).metric_type();
        let help = "Streams that ended, by reason";
        let mut family = encoder.encode_descriptor("stream_closes", help, None, kind)?;
        for (shard, probe) in self.shards.iter().enumerate() {
            for reason in CloseReason::ALL {
                let labels = [("shard", shard.to_string()), ("reason", reason.name().to_owned())];
                let closed = ConstCounter::new(load(&probe.closed[reason as usize]));
                closed.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn dead_letters(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kind = ConstCounter::new(0_u64).metric_type();
        let help = "Records that could not be processed, by reason";
        let mut family = encoder.encode_descriptor("dead_letters", help, None, kind)?;
        for (class, count) in DeadClass::ALL.into_iter().zip(&self.owner.dead_letters) {
            let labels = [("reason", class.name())];
            ConstCounter::new(load(count)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn refusals(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kind = ConstCounter::new(0_u64).metric_type();
        let help = "Items that a lane did not take, by reason";
        let mut family = encoder.encode_descriptor("lane_refusals", help, None, kind)?;
        let names: BTreeSet<&str> = self.lanes.iter().map(|(name, _)| *name).collect();
        for lane in names {
            for reason in RefusalReason::ALL {
                let labels = [("lane", lane), ("reason", reason.name())];
                let of_name = self.lanes.iter().filter(|(name, _)| *name == lane);
                let refused: u64 = of_name.map(|(_, refusals)| load(refusals.of(reason))).sum();
                ConstCounter::new(refused).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// The library takes the buckets of a histogram that is kept elsewhere.
    fn histogram(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        read: fn(&Probe) -> &Histogram,
    ) -> Result<(), std::fmt::Error> {
        use prometheus_client::metrics::MetricType;
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (shard, probe) in self.shards.iter().enumerate() {
            let (counts, sum) = read(probe).read();
            let bounds = BUCKETS_MICROS.iter().map(|micros| *micros as f64 / 1e6);
            let buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(counts).collect();
            let labels = [("shard", shard.to_string())];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)?;
        }
        Ok(())
    }
}

fn load(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}
