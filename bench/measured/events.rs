//! What a record costs: from its bytes in a batch to the streams that will get it.
//!
//! In process and without sockets: a decoder and the streams of one shard, as the pump uses them.
//! Records are targeted, each at another user who has a stream here; what they make streams want
//! to write is written between the timed batches, outside of what is timed.

use std::time::Duration;

use corecast::base::{
    BroadcastId, EpochMillis, EventType, LogIdentity, LogShape, Moment, Partition, Position,
    Priority, TargetType, Topic, UserId,
};
use corecast::domain::{
    Decoder, Finding, Membership, Open, Outcome, Repeats, RingLimits, Rules, Streams,
    StreamsOptions, Vector,
};
use corecast::limits;
use corecast::wire::archive::{MemberKind, SharedEvent};
use corecast::wire::record::{OutgoingRecord, Parser, event_id};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::figures::{Figures, Goal};
use super::{CONTENT_BYTES, SERVER_CORE, audience, cpu_time};

const STREAMS: u32 = 15_000;
const ROUNDS: usize = 15;
/// Batches of a round, and how many different ones there are: a record comes to the shard's core
/// from the one that has just fetched it, so these stay in the cache that cores share.
const BATCHES: usize = 100;
const BATCHES_KEPT: usize = 10;
const BATCH: usize = limits::log::BATCH_RECORDS_MAX;
const ROUND: u64 = (BATCHES * BATCH) as u64;
/// A million events a second and core.
const GOAL_NS: f64 = 1_000.0;

const SHAPE: LogShape =
    LogShape { identity: LogIdentity([1, 2, 3]), selected_partitions: 10, group_partitions: 10 };
const WALL: EpochMillis = EpochMillis(1_795_514_400_123);

/// A record as a fetch brings it.
struct Record {
    partition: Partition,
    value: Vec<u8>,
}

/// One shard's part in this.
struct Shard {
    decoder: Decoder,
    repeats: Repeats,
    streams: Streams<()>,
    decoded: Vec<SharedEvent>,
    /// The next offset; one sequence for all partitions, so that each one's rises.
    offset: u64,
}

pub fn measure(figures: &mut Figures) {
    println!("events: {ROUNDS} rounds of {} records", BATCHES * BATCH);
    let cores = sched_getaffinity(None).expect("Linux");
    let mut one = CpuSet::new();
    one.set(SERVER_CORE);
    sched_setaffinity(None, &one).expect("the server's core is there");
    let records = targeted_records();
    let mut shard = Shard::new();
    // Until the ring is full and gives back as much as it takes.
    for _ in 0..limits::shard::RING_FRAMES_MAX / (BATCHES * BATCH) + 2 {
        shard.run(&records);
    }
    let (mut parse, mut decode, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        parse.push(parse_alone(&records));
        decode.push(shard.decode_alone(&records));
        both.push(shard.run(&records));
    }
    sched_setaffinity(None, &cores).expect("as it was");
    let baseline = ("parse alone", &parse[..]);
    figures.add(("decode a record", "ns"), &decode, baseline, Goal::None);
    figures.add(("decode and route", "ns"), &both, baseline, Goal::AtMost(GOAL_NS));
    let median = super::figures::Spread::of(&both).median;
    figures.note(format!(
        "events: {:.0} a second and core, targeted, content of {CONTENT_BYTES} bytes, records of \
         {} bytes, {STREAMS} streams; parse alone: simd-json into the record's shape, nothing \
         else, which decoding needs for unusual records only",
        1e9 / median,
        records[0].value.len()
    ));
}

/// Records to users in an order in which neighbours are far apart.
fn targeted_records() -> Vec<Record> {
    let content = "x".repeat(CONTENT_BYTES);
    let record = |number: usize| {
        let user = audience::user(number as u32 * 7_919 % STREAMS);
        let broadcast = BroadcastId::new(1_000_000 + number as u64).expect("small");
        let outgoing = OutgoingRecord {
            event_id: event_id(broadcast, Some(&user), EventType::Created),
            broadcast_id: broadcast,
            user_id: Some(&user),
            event_type: EventType::Created,
            pod_id: "node-1",
            timestamp: WALL,
            correlation_id: Some("7a7d68ec-d4ae-5055-b6e9-9ed74513a5b2"),
            message: Some(&content),
            error_details: None,
            fire_and_forget: false,
            target_type: Some(TargetType::Selected),
            target_ids: None,
            sender_id: Some("ops-1"),
            sender_name: Some("Operations"),
            priority: Some(Priority::Normal),
            category: Some("News"),
            created_at: Some(WALL),
            scheduled_at: None,
            expires_at: Some(EpochMillis(WALL.0 + 86_400_000)),
            simulate_failure: false,
            attempt: 0,
            after: None,
        };
        let index = SHAPE.partition_of_user(&user);
        let partition = Partition { topic: Topic::Selected, index };
        Record { partition, value: outgoing.to_json() }
    };
    (0..BATCHES_KEPT * BATCH).map(record).collect()
}

/// The batches of a round.
fn round(records: &[Record]) -> impl Iterator<Item = &[Record]> {
    records.chunks(BATCH).cycle().take(BATCHES)
}

impl Shard {
    fn new() -> Self {
        let options = StreamsOptions {
            shape: SHAPE,
            ring: RingLimits {
                frames: limits::shard::RING_FRAMES_MAX,
                bytes: limits::shard::RING_BYTES_MAX,
            },
            streams_max: STREAMS as usize,
            heartbeat: Duration::from_secs(25),
            write_progress: limits::shard::WRITE_PROGRESS,
            ended_kept: Duration::from_secs(3_600),
            max_age: None,
            seed: 1,
        };
        let mut streams = Streams::new(options, Vector::new(&SHAPE), Moment(0));
        streams.handle_fence(true);
        for number in 0..STREAMS {
            let (site, team) = audience::roles(number);
            let role = |name: String| Membership { kind: MemberKind::Role, name: name.into() };
            let members = [
                role(format!("site-{site}")),
                role("staff".to_owned()),
                role(format!("team-{team}")),
            ];
            let user = UserId::new(&audience::user(number)).expect("a user id");
            let open = Open {
                socket: (),
                user: &user,
                members: &members,
                connection: "c",
                backlog: None,
                cursor: None,
                response_head: b"",
            };
            streams.handle_open(open, Moment(0), WALL).expect("there is room");
        }
        let (decoder, repeats) =
            (Decoder::new(Rules { shape: SHAPE, is_testing: false }), Repeats::new(SHAPE));
        Self { decoder, repeats, streams, decoded: Vec::new(), offset: 0 }
    }

    /// Decodes and routes all records; returns the nanoseconds of CPU for each.
    fn run(&mut self, records: &[Record]) -> f64 {
        let mut took = Duration::ZERO;
        for batch in round(records) {
            let began = cpu_time();
            for record in batch {
                if self.decoded.len() >= limits::shard::EVENTS_AT_ONCE {
                    self.streams.handle_events(&mut self.decoded);
                }
                let Finding::Serve(event) = self.decode(record) else { panic!("it is served") };
                let is_repeat = self.repeats.note(event.position(), event.event_id());
                assert!(!is_repeat, "more records than the window of repeats come in turn");
                self.decoded.push(event);
            }
            self.streams.handle_events(&mut self.decoded);
            took += cpu_time() - began;
            self.write_all();
        }
        assert!(self.streams.counters().deliveries >= ROUND, "somebody gets them");
        took.as_nanos() as f64 / ROUND as f64
    }

    fn decode_alone(&mut self, records: &[Record]) -> f64 {
        let began = cpu_time();
        for record in round(records).flatten() {
            let finding = self.decode(record);
            assert!(matches!(finding, Finding::Serve(_)));
        }
        (cpu_time() - began).as_nanos() as f64 / ROUND as f64
    }

    fn decode(&mut self, record: &Record) -> Finding {
        self.offset += 1;
        let position = Position { partition: record.partition, offset: self.offset };
        self.decoder.decode_caught(position, WALL, Some(&record.value))
    }

    fn write_all(&mut self) {
        loop {
            let Some(write) = self.streams.poll_write(WALL) else { return };
            let bytes = write.pieces.iter().map(|piece| piece.len()).sum();
            let key = write.key;
            drop(write);
            self.streams.handle_written(key, Outcome::Took(bytes), Moment(0));
        }
    }
}

/// What decoding is compared with: a general parser into the record's shape, with reused buffers.
fn parse_alone(records: &[Record]) -> f64 {
    let mut parser = Parser::default();
    let began = cpu_time();
    for record in round(records).flatten() {
        assert!(std::hint::black_box(parser.parse_any(&record.value)).is_ok());
    }
    (cpu_time() - began).as_nanos() as f64 / ROUND as f64
}
