//! Floor 0: every bound, a section a room, each with its derivation.
//!
//! Configuration (`limits.*`) may lower a bound, never raise it. Reaching one is always visible:
//! a status, a GAP event or a counter.

use std::time::Duration;

/// What the contract itself says.
pub mod contract {
    /// Longer ids are no ids of people; 256 bytes hold an e-mail address (254).
    pub const USER_ID_BYTES_MAX: usize = 256;
    /// `content` of a broadcast, bytes of UTF-8.
    pub const CONTENT_BYTES_MAX: usize = 64 * 1024;
    /// Users of one SELECTED broadcast.
    pub const TARGET_USERS_MAX: usize = 1_000_000;
    /// Roles, groups or products of one broadcast.
    pub const TARGET_NAMES_MAX: usize = 1_000;
    /// Content bytes times targets of one broadcast: what publishing it writes to the log.
    pub const FAN_OUT_BYTES_MAX: u64 = 1 << 30;
    /// A name: sender, category, role, group, product; bytes of UTF-8.
    pub const NAME_BYTES_MAX: usize = 256;
    /// A user's roles, groups and products together; a token of 16 KiB holds no more.
    pub const MEMBERSHIPS_MAX: usize = 1_024;
    /// Rows of one answer of a list, and what a list gives without `limit`.
    pub const LIST_ROWS_MAX: usize = 1_000;
    pub const LIST_ROWS_DEFAULT: usize = 100;
    /// `targetIds` shown in one BroadcastResponse.
    pub const TARGET_IDS_SHOWN_MAX: usize = 1_000;
}

/// The cursor, which travels with every event.
pub mod cursor {
    /// Longest `id`, characters. Proxies and apps store it; start is refused if the configured
    /// partitions could exceed it.
    pub const TEXT_CHARS_MAX: usize = 256;
    /// Offsets are written in at most 6 bytes: at a million records a second and partition,
    /// 2^48 lasts 8.9 years.
    pub const OFFSET_BYTES_MAX: usize = 6;
    pub const OFFSET_MAX: u64 = (1 << (8 * OFFSET_BYTES_MAX)) - 1;
    /// Bytes before the offsets: version and flags, two counts, the user's mark and partition,
    /// identity, hours.
    pub const HEADER_BYTES: usize = 1 + 2 + 2 + 1 + 3 + 3;
    /// Group partitions that a cursor can always hold, beside one offset of the selected topic.
    pub const GROUP_PARTITIONS_MAX: usize =
        (TEXT_CHARS_MAX * 3 / 4 - HEADER_BYTES) / OFFSET_BYTES_MAX - 1;
    /// Selected partitions are counted in one byte.
    pub const SELECTED_PARTITIONS_MAX: usize = 255;
    const _: () = assert!(GROUP_PARTITIONS_MAX == 29);
    /// The goal of the design: 10 + 10 partitions, offsets below 2^32, in 76 characters.
    const _: () = assert!((HEADER_BYTES + 11 * 4) * 4 <= 76 * 3);
}

/// Records of the log.
pub mod log {
    use super::{Duration, contract};

    /// Value of one record. JSON may write a byte of content in six (`\u0000`), and 1,000 target
    /// names stand beside it.
    pub const RECORD_VALUE_BYTES_MAX: usize = 1 << 20;
    const _: () = assert!(
        contract::CONTENT_BYTES_MAX * 6
            + contract::TARGET_NAMES_MAX * (contract::NAME_BYTES_MAX + 3)
            < RECORD_VALUE_BYTES_MAX
    );
    /// A record of a dead-letter topic, with key, headers and what batches add: twice what a topic
    /// that is made here takes, since a dead letter has more headers than its record had.
    pub const DEAD_RECORD_BYTES_MAX: usize = 2 * super::kafka::MESSAGE_BYTES_MAX;
    /// Records of one batch between ingest and a shard: one turn decodes it in under a millisecond.
    pub const BATCH_RECORDS_MAX: usize = 512;
    /// Bytes that one fetch may bring.
    pub const FETCH_BYTES_MAX: usize = 4 << 20;
    /// How long a fetch may wait for the first record.
    pub const FETCH_WAIT: Duration = Duration::from_millis(500);
    /// The same while a shard has no room: it works on 64 batches, which takes it a while.
    pub const FULL_SHARD_WAIT: Duration = Duration::from_millis(5);
    /// Between two tries while the log is away: the first, and the longest. Each has jitter.
    pub const RETRY_WAIT_FIRST: Duration = Duration::from_millis(250);
    pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
    /// Records waiting for the embedded log's next commit: about what one fsync of 5 ms gathers
    /// at 800,000 records a second.
    pub const COMMIT_QUEUE_MAX: usize = 4_096;
    /// Bytes of one group commit of the embedded parts.
    pub const COMMIT_BYTES_MAX: usize = 16 << 20;
    /// Records a partition that a starting node reads again to fill its ring.
    pub const WARM_RECORDS: u64 = 4_096;
    /// Offsets of a partition within which a record of the same event id is a repeat. What a crash
    /// leaves unnoted is published again at the next start, long before so many others.
    pub const REPEAT_RECORDS: u64 = 4_096;
    /// How far above the checkpoint a partition may end for a record to be published there again:
    /// so it is found well before it would be beyond what repeats are known in.
    pub const AGAIN_RECORDS: u64 = REPEAT_RECORDS / 2;
    /// How often a record is tried whose serving fails.
    pub const ATTEMPTS: u32 = 3;
    /// Between two of them.
    pub const ATTEMPT_WAIT: Duration = Duration::from_secs(1);
}

/// Connections to Kafka.
pub mod kafka {
    use super::{Duration, log};

    /// To connect, with TLS and login.
    pub const CONNECT_TIME: Duration = Duration::from_secs(3);
    /// A broker that has not said by then who leads what is frozen or slow: the next one is asked
    /// beside it. Healthy ones answer in milliseconds.
    pub const NEXT_BROKER_WAIT: Duration = Duration::from_millis(500);
    /// What is known of the topics is asked again after so long, also while nothing fails: that a
    /// topic has got more partitions no broker tells by itself.
    pub const METADATA_AGE: Duration = Duration::from_secs(10);
    /// For an answer, beyond what the request itself waits.
    pub const REQUEST_TIME: Duration = Duration::from_secs(5);
    /// For a produce, with all its tries: longer than a broker's session (9 s by default), after
    /// which its partitions have another leader.
    pub const PRODUCE_TIME: Duration = Duration::from_secs(15);
    const _: () = assert!(PRODUCE_TIME.as_secs() >= 2 * REQUEST_TIME.as_secs());
    /// Between two tries of a broker or a partition: the first, and the longest.
    pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
    pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
    /// One answer: what a fetch asks for, or one batch that is larger (a broker takes batches of
    /// 1 MiB by default, and rarely of more than 16).
    pub const FRAME_BYTES_MAX: usize = 64 << 20;
    const _: () = assert!(FRAME_BYTES_MAX > 2 * log::FETCH_BYTES_MAX);
    /// What one packed batch may unpack to: JSON packs 10 to 1, a megabyte of one letter 1,000
    /// to 1.
    pub const UNPACKED_BYTES_MAX: usize = 32 << 20;
    /// Records of one produced batch together, so that a broker with the default
    /// `max.message.bytes` (1,048,588) takes it. A larger record goes alone.
    pub const PRODUCE_BYTES_MAX: usize = 900_000;
    /// What a record takes in a batch besides key and value: lengths and deltas, each a few bytes.
    pub const RECORD_OVERHEAD_BYTES: usize = 32;
    /// `max.message.bytes` of topics made here: the largest record fits with key and headers.
    pub const MESSAGE_BYTES_MAX: usize = 2 << 20;
    const _: () = assert!(MESSAGE_BYTES_MAX > log::RECORD_VALUE_BYTES_MAX + 64 * 1024);
    /// Connections to one broker that stand idle: as many readers at once.
    pub const IDLE_CONNECTIONS_MAX: usize = 4;
    /// Fetches that are left in flight for the next call: one a broker and reader.
    pub const PARKED_MAX: usize = 64;
}

/// Owning partitions, as a member of Kafka's consumer groups.
pub mod ownership {
    use super::{Duration, kafka};

    /// A member that has said nothing for so long is taken for dead: the least that brokers allow
    /// by default.
    pub const SESSION_TIME: Duration = Duration::from_secs(6);
    /// Between two heartbeats: how late a member learns that partitions move.
    pub const HEARTBEAT_PACE: Duration = Duration::from_secs(1);
    /// For the answer to a heartbeat. One may stay away, and the session still goes on.
    pub const HEARTBEAT_TIME: Duration = Duration::from_secs(2);
    const _: () = assert!(
        2 * (HEARTBEAT_PACE.as_millis() + HEARTBEAT_TIME.as_millis()) <= SESSION_TIME.as_millis()
    );
    /// Longest wait before a coordinator is asked again that was away: it counts the sessions from
    /// its return, and a waiting member asks no more often than one that is well.
    pub const AWAY_WAIT_MAX: Duration = HEARTBEAT_PACE;
    /// How long the coordinator waits for all members to join again: longer than for a dead one.
    pub const REBALANCE_TIME: Duration = Duration::from_secs(10);
    const _: () = assert!(REBALANCE_TIME.as_secs() > SESSION_TIME.as_secs());
    /// For the answer to a join, which the coordinator holds until all have joined; and how long a
    /// commit waits for that.
    pub const JOIN_TIME: Duration =
        Duration::from_secs(REBALANCE_TIME.as_secs() + kafka::REQUEST_TIME.as_secs());
    /// Joins in a row without an assignment, before a member waits: as many others came or went
    /// meanwhile.
    pub const JOINS_MAX: usize = 16;
    /// Between two looks at whether somebody outside has done what was needed.
    pub const REFUSED_WAIT: Duration = Duration::from_secs(3);
    /// How long leaving may take. Without it the others go on after `SESSION_TIME`.
    pub const LEAVE_TIME: Duration = Duration::from_secs(2);
}

/// One shard: its ring, its streams, its turn.
pub mod shard {
    use super::{Duration, log};

    /// Events that the streams are given at once: with their bytes they fit a core's first caches.
    pub const EVENTS_AT_ONCE: usize = 32;
    /// Shards of a node. Each has lanes to all others.
    pub const SHARDS_MAX: u16 = 256;
    /// CPUs have numbers below this: as many as the kernel's plain set has.
    pub const CPUS_MAX: usize = 1_024;
    /// Items that may wait for other shards whose lanes are full, and the bytes of their events,
    /// before no more records are decoded.
    pub const PASSED_WAITING_MAX: usize = 16_384;
    pub const PASSED_WAITING_BYTES_MAX: usize = 16 << 20;
    /// What a shard waits before it looks again whether a full lane has room: less than a turn of
    /// the one that empties it may take.
    pub const FULL_LANE_WAIT: Duration = Duration::from_millis(1);
    /// Items that a shard takes from each other one in a turn.
    pub const PASSED_PER_TURN_MAX: usize = 512;
    /// Streams that a shard takes from each other one in a turn: about 1 ms of them.
    pub const HANDED_PER_TURN_MAX: usize = 64;
    /// Frames of a ring and the bytes of their events. Whatever comes first ends the ring.
    pub const RING_FRAMES_MAX: usize = 65_536;
    pub const RING_BYTES_MAX: usize = 64 << 20;
    const _: () = assert!(RING_FRAMES_MAX as u64 >= log::WARM_RECORDS);
    /// Frames that a ring has lost and of which it is remembered where they stood, some bytes each:
    /// a stream whose reader is further behind has to come back. And what changed from one of them
    /// to the next, 16 bytes each: twice for a frame, as records for other shards come between.
    pub const PAST_FRAMES_MAX: usize = 65_536;
    pub const PAST_CHANGES_MAX: usize = 2 * PAST_FRAMES_MAX;
    /// Streams of one shard. A process has 20,000 descriptors on a default machine, a tuned one
    /// a million; beyond this a shard's idle work passes 2 % of a core.
    pub const STREAMS_MAX: usize = 250_000;
    /// Pieces of one vectored write: 32 frames, an id line and a body each.
    pub const WRITE_PIECES_MAX: usize = 64;
    /// Bytes of the ring beyond which a write takes no further frame.
    pub const WRITE_BYTES: usize = 64 << 10;
    /// Bytes that are put together for one plain write: a frame of a usual message.
    pub const JOINED_BYTES_MAX: usize = 1_024;
    /// Frames looked at for one stream in one turn.
    pub const FRAMES_SCANNED_PER_TURN_MAX: usize = 4_096;
    /// Writes of one turn before the shard looks at its inputs again: about 10 ms of them.
    pub const FEEDS_PER_TURN_MAX: usize = 1_024;
    /// Inputs taken from the control threads in one turn: four batches are 2 to 4 ms.
    pub const INPUTS_PER_TURN_MAX: usize = 4;
    /// Readiness events taken from the kernel in one turn.
    pub const READY_PER_TURN_MAX: usize = 1_024;
    /// A turn longer than this is counted and reported.
    pub const LONG_TURN: Duration = Duration::from_millis(50);
    /// At least between two log lines about such turns.
    pub const LONG_TURN_LINES: Duration = Duration::from_secs(10);
    /// Records of a kind (bad, or not served) that a shard tells of in such a time.
    pub const RECORDS_TOLD_MAX: u32 = 100;
    pub const RECORDS_TOLD_TIME: Duration = Duration::from_secs(10);
    /// A stream whose socket takes no byte for so long is closed and comes back with its cursor.
    pub const WRITE_PROGRESS: Duration = Duration::from_secs(30);
    /// One tick of the timer wheel, and its slots: a horizon of 131 s, past the longest heartbeat.
    pub const WHEEL_TICK: Duration = Duration::from_millis(64);
    pub const WHEEL_SLOTS: usize = 2_048;
    /// Heartbeats that go out together, and how far apart they would have been: about 1.5 ms of
    /// writes in one turn.
    pub const HEARTBEATS_TOGETHER: u64 = 256;
    pub const HEARTBEATS_WITHIN: Duration = Duration::from_millis(512);
    /// Heartbeats between two blocks that carry only an id.
    pub const HEARTBEATS_PER_ID: u8 = 10;
    /// How long a draining shard stays beyond its window: for the streams that were told last to
    /// take their last words, and for their peers to acknowledge them.
    pub const DRAIN_TIME: Duration = Duration::from_secs(2);
    const _: () =
        assert!(LAST_WORDS_TIME.as_millis() + FAREWELL_TIME.as_millis() <= DRAIN_TIME.as_millis());
    /// How long a draining shard stays that had streams, if its window is not shorter: a load
    /// balancer that looks every second sees that it is not ready, and clients that still come are
    /// told to come back, where the kernel would refuse them.
    pub const DRAIN_LINGER: Duration = Duration::from_secs(1);
    /// How long a stream that has to go may take for the frame that is begun and its last words:
    /// many round trips of a reader who reads.
    pub const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
    /// `retry:` of a stream that has to go, and up to how much is added: its client is back within
    /// two seconds, connecting included, also if its first try leads to a node that goes; and those
    /// that are told in one moment do not come in one.
    pub const RETURN_RETRY: Duration = Duration::from_millis(250);
    pub const RETURN_RETRY_SPREAD: Duration = Duration::from_millis(500);
    const _: () =
        assert!(2 * (RETURN_RETRY.as_millis() + RETURN_RETRY_SPREAD.as_millis()) <= 1_500);
    /// The least bound that may be set on the age of a stream, but for none: a client is away for
    /// a tenth of its time at most. And the most: months, after which nobody looks.
    pub const MAX_AGE_MIN: Duration = Duration::from_secs(10);
    const _: () = assert!(
        10 * (RETURN_RETRY.as_millis() + RETURN_RETRY_SPREAD.as_millis())
            <= MAX_AGE_MIN.as_millis()
    );
    pub const MAX_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);
    /// When a stream is looked at again that is old, and in its backlog: soon, as it goes then.
    pub const LATE_LOOK: Duration = Duration::from_millis(100);
    /// Requests of one shard that wait for what the store keeps of their user, and for how long:
    /// what a healthy store answers in, many times over.
    pub const ASKS_MAX: usize = 4_096;
    pub const ASK_TIME: Duration = Duration::from_secs(5);
    /// The same for those that the log could serve: ten times what a healthy store takes.
    pub const ASK_TIME_WITH_LOG: Duration = Duration::from_millis(250);
    /// While so many of them wait, who has a cursor that is near is served by the log: a store has
    /// them in some tens of milliseconds, and a crowd would wait for seconds.
    pub const ASKS_BEFORE_LOG: usize = 64;
    /// Between two looks at what the peers have acknowledged.
    pub const CONFIRM_PACE: Duration = Duration::from_secs(1);
    /// How long the socket of a stream that has ended is kept until its peer has acknowledged all,
    /// how many at a time, and how often they are looked at.
    pub const FAREWELL_TIME: Duration = Duration::from_secs(1);
    pub const FAREWELLS_MAX: usize = 4_096;
    pub const FAREWELL_LOOK: Duration = Duration::from_millis(20);
    /// What a shard has to tell the store of its users, and what goes into one message: a few
    /// megabytes while the control threads have no room.
    pub const NOTES_MAX: usize = 65_536;
    pub const NOTES_TOLD_MAX: usize = 512;
    /// `retry:` of a stream whose backlog goes on: as soon as may be.
    pub const BACKLOG_RETRY: Duration = Duration::from_millis(100);
    /// Targeted frames of one stream that are followed until its peer has acknowledged them: more
    /// than a socket's buffer holds of usual ones.
    pub const UNCONFIRMED_MAX: usize = 1_024;
    /// `retry:` of a stream, with jitter of half its length on top.
    pub const RETRY: Duration = Duration::from_secs(2);
    /// Records of a partition that may be read again for a client that the ring has lost. Beyond
    /// that it comes back for what the store keeps by then.
    pub const REPLAY_RECORDS_MAX: u64 = 100_000;
    /// Who is so many records behind is served by the log: of as many the store would have to look
    /// at the rows, for him alone, and for each piece of what it has for him again.
    pub const REPLAY_RECORDS_FAR: u64 = 10_000;
    /// For so long nobody is served by the log instead of the store, once it has not given all.
    pub const REPLAY_REFUSED_TIME: Duration = Duration::from_secs(5);
    /// How many passes in a row end early for those who have come behind them: each has at least
    /// twice as many members as the one before.
    pub const REPLAY_ENDS_MAX: u32 = 8;
    /// How long those who replay wait for one whose socket takes nothing.
    pub const REPLAY_PATIENCE: Duration = Duration::from_secs(1);
    /// Who is more frames of the ring behind the last one that is for it replays, and is not served
    /// before those that are live.
    pub const LIVE_FRAMES: u64 = 256;
    /// Of so many writes, one goes to a stream that replays, while others have something to write;
    /// and how much goes into it, by the end of its last frame: with these, live delivery takes
    /// about half as long again.
    pub const REPLAY_SHARE: u32 = 16;
    pub const REPLAY_WRITE_BYTES: usize = 32 << 10;
    /// Beyond so many events looked at, and so many writes of theirs, a turn does nothing more for
    /// those that replay: a millisecond of each, which is what others wait for them.
    pub const REPLAY_EVENTS_PER_TURN_MAX: usize = 32_768;
    pub const REPLAY_WRITES_PER_TURN_MAX: usize = 32;
}

/// Reading the log again.
pub mod rereads {
    use super::Duration;

    /// Bytes that are read at once, and how long that is tried.
    pub const BYTES: usize = 512 << 10;
    pub const TIME: Duration = Duration::from_secs(5);
    /// What was read last is kept for the other shards of the node, which are not always equally
    /// far: some parts of it, for a while.
    pub const RECENT_BYTES_MAX: usize = 16 * BYTES;
    pub const RECENT_TIME: Duration = Duration::from_secs(5);
}

/// The executors of glommio.
pub mod glommio {
    use super::Duration;

    /// The kernel that it is written for.
    pub const KERNEL_MIN: (u32, u32) = (5, 8);
    /// What a process must be allowed to lock, or it makes no executor.
    pub const MEMLOCK_MIN: u64 = 512 << 10;
    /// Buffers for files, of which a shard has none: the least that it takes. Each of three rings
    /// pins the huge page that they lie in, up to 6 MiB a shard; where the system does not allow
    /// that, they are not pinned.
    pub const IO_MEMORY: usize = 64 << 10;
    /// After so long glommio has a task give way to others. Never, in effect: a shard has one task,
    /// and asks the kernel itself for what is ready; and an executor that loses the CPU for longer
    /// than this just before it runs its tasks goes to sleep without them.
    pub const PREEMPT_TIMER: Duration = Duration::from_secs(3_600);
    /// A parked executor that missed a task looks again after so long. At 1 ms an idle shard costs
    /// 5 % of a core, at 10 ms 1 %, which several shards can't afford.
    pub const GUARD_TICK: Duration = Duration::from_millis(40);
    /// What a shard sleeps when the descriptor is missing that would wake it.
    pub const UNARMED_WAIT: Duration = Duration::from_millis(1);
}

/// The edge: what a peer may send before it is a stream.
pub mod edge {
    use super::Duration;

    /// A request head: line and fields.
    pub const HEAD_BYTES_MAX: usize = 16 * 1024;
    pub const HEAD_FIELDS_MAX: usize = 64;
    /// From the accept to the end of the head.
    pub const HEAD_TIME: Duration = Duration::from_secs(10);
    /// Connections of one shard whose head is not complete, or whose refusal is on its way. Beyond
    /// it the oldest is closed: an honest head comes with the first packet.
    pub const HEADS_MAX: usize = 8_192;
    /// How long a refused connection is read from and forgotten, so that the refusal is not lost
    /// to a reset (RFC 9112, section 9.6).
    pub const LINGER_TIME: Duration = Duration::from_secs(2);
    /// Accepted in one turn, so that a flood of connects can't stop the streams.
    pub const ACCEPTS_PER_TURN_MAX: usize = 128;
    /// Length of the kernel's queue of established connections (`somaxconn` may cut it).
    pub const BACKLOG: i32 = 4_096;
    /// What the kernel takes of a connection beyond what is on its way. By itself it takes
    /// megabytes of one whose peer is slow, which would then be replayed to its memory and not to
    /// its peer.
    pub const UNSENT_BYTES: u32 = 64 << 10;
    /// How long accepting rests when the process has no descriptors left.
    pub const ACCEPT_REST: Duration = Duration::from_millis(100);
}

/// File descriptors.
pub mod descriptors {
    /// Left to files and backends. The embedded store keeps half of them open, and opens others
    /// while it merges files; a broker or a database node takes ten connections.
    pub const FILES_MAX: usize = 1_024;
    /// What each kind of connection that is no stream has at least, if that is no eighth.
    pub const SOCKETS_MIN: usize = 16;
}

/// Lanes: what waits between two threads.
pub mod lane {
    /// Batches from ingest to a shard: with 512 records each, 64 are 32,768 records.
    pub const INGEST_TO_SHARD: usize = 64;
    /// Events and positions from one shard to another.
    pub const SHARD_TO_SHARD: usize = 1_024;
    /// Connections that one shard has accepted for others: in all its lanes, and in one of them. As
    /// many clients as a node can open within tens of milliseconds come back at once.
    pub const STREAMS_TO_SHARDS: usize = 2_048;
    pub const STREAMS_TO_SHARD_MIN: usize = 64;
    pub const STREAMS_TO_SHARD_MAX: usize = 1_024;
    /// What the control topic says, to a shard: what finds no room is joined to the next.
    pub const ORDERS: usize = 64;
    /// Requests and reports from a shard to the control threads.
    pub const SHARD_TO_CONTROL: usize = 4_096;
}

/// The control topic: what the nodes of a fleet tell each other.
pub mod control {
    use super::Duration;

    /// Between two beats of a node.
    pub const BEAT_PACE: Duration = Duration::from_millis(500);
    /// The same while another node may wait for what this one has applied: with a fetch every
    /// `READ_PACE` at both ends, a cancel is answered within about a quarter of a second.
    pub const ANSWER_PACE: Duration = Duration::from_millis(100);
    /// Between two fetches of the topic, so that a hundred nodes are no load.
    pub const READ_PACE: Duration = Duration::from_millis(50);
    /// How long a fetch waits for the first record.
    pub const READ_WAIT: Duration = Duration::from_millis(500);
    /// How long after the sending of its last beat that it has read back a node begins messages:
    /// three beats may be lost.
    pub const FENCE: Duration = Duration::from_secs(2);
    /// Who has said nothing for so long begins no message any more. Beyond the fence, half a
    /// second for clocks that run apart, and as much for what is being written.
    pub const SILENCE: Duration = Duration::from_secs(3);
    const _: () = assert!(SILENCE.as_millis() >= FENCE.as_millis() + 2 * BEAT_PACE.as_millis());
    const _: () = assert!(FENCE.as_millis() >= 4 * BEAT_PACE.as_millis());
    /// How long a cancel is waited for: the silence, and what log and store take.
    pub const SETTLE_TIME: Duration = Duration::from_secs(8);
    /// For the append of what all nodes are to apply; then whoever asked is told to ask again.
    pub const TELL_TIME: Duration = Duration::from_secs(5);
    /// For the append of a beat. A later one says more.
    pub const BEAT_TIME: Duration = Duration::from_secs(1);
    /// Beats that are on their way: as many as the fence and slow appends leave.
    pub const BEATS_SENT_MAX: usize = 64;
    /// Orders that not all shards have applied, each by itself: what is read in 50 s. Of more only
    /// the last counts.
    pub const ORDERS_GIVEN_MAX: usize = 1_024;
    /// Appends of beats that are under way: one that is late does not hold up the next.
    pub const BEATS_AT_ONCE: usize = 4;
    /// Nodes that are heard of late. With more, a cancel waits for the silence.
    pub const NODES_MAX: usize = 1_024;
    /// A record: a node's name and some numbers.
    pub const RECORD_BYTES_MAX: usize = 4_096;
    /// How long the topic keeps its records. A node that has not read for longer begins anew.
    pub const RETENTION: Duration = Duration::from_secs(3_600);
    /// Records that a node which is alone keeps of what it tells itself: minutes of beats.
    pub const LONE_RECORDS_MAX: usize = 4_096;
    /// Ended broadcasts that a node remembers, 32 bytes each on every shard. With as many a cancel
    /// is refused: one each second of the log's retention, and half of that again.
    pub const ENDED_MAX: usize = 1_000_000;
    /// How long after the log's retention an ended broadcast is remembered: what was on its way
    /// to the log when it ended.
    pub const ENDED_SLACK: Duration = Duration::from_secs(24 * 3_600);
    /// The same where the log keeps all: a hundred years.
    pub const ENDED_KEPT_BY_ALL: Duration = Duration::from_secs(36_525 * 24 * 3_600);
    /// Ended broadcasts that are read from the store, and told a shard, at once.
    pub const ENDED_READ: usize = 4_096;
    /// Between two tries while log or store are away: the first, and the longest.
    pub const RETRY_WAIT_FIRST: Duration = Duration::from_millis(100);
    pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(1);
    /// What is waited before a shard's full lane is tried again.
    pub const FULL_LANE_WAIT: Duration = Duration::from_millis(2);
}

/// The store over CQL.
pub mod store {
    use super::admin::ANSWER_TIME;
    use super::{Duration, contract};

    /// One statement, its second try included. Cassandra itself gives a write up after 2 s.
    pub const REQUEST_TIME: Duration = Duration::from_secs(2);
    /// A statement that has no answer by then is sent to a second node: past the slowest ones of a
    /// healthy cluster, short against what a user notices.
    pub const SPECULATION_WAIT: Duration = Duration::from_millis(100);
    /// Connections are probed so often, and given up when a probe has no answer.
    pub const KEEPALIVE_PACE: Duration = Duration::from_secs(1);
    pub const KEEPALIVE_TIME: Duration = Duration::from_secs(1);
    /// One connection, and a session with all of them.
    pub const CONNECTION_TIME: Duration = Duration::from_secs(2);
    pub const SESSION_TIME: Duration = Duration::from_secs(30);
    /// Between two tries to connect: doubling from the first to the second.
    pub const CONNECT_WAIT: Duration = Duration::from_millis(250);
    pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
    /// Between two looks at whether the database still answers.
    pub const WATCH_PACE: Duration = Duration::from_secs(1);
    /// How long a claim whose outcome is unknown is pursued: several statements' time, so that the
    /// loss of a node is outlived, and below an answer's (`admin::ANSWER_TIME`).
    pub const CLAIM_TIME: Duration = Duration::from_secs(10);
    const _: () =
        assert!(CLAIM_TIME.as_secs() + 3 * REQUEST_TIME.as_secs() < ANSWER_TIME.as_secs());
    pub const CLAIM_WAIT: Duration = Duration::from_millis(20);
    pub const CLAIM_WAIT_MAX: Duration = Duration::from_millis(500);
    /// One change of the schema: a second on three idle nodes.
    pub const SCHEMA_TIME: Duration = Duration::from_secs(30);
    /// How long the lock of the schema outlives a node that died with it: longer than one change
    /// may take.
    pub const MIGRATION_LOCK: Duration = Duration::from_secs(45);
    const _: () = assert!(MIGRATION_LOCK.as_secs() > SCHEMA_TIME.as_secs());
    /// Between two looks at whether another node has made the tables.
    pub const MIGRATION_LOOK: Duration = Duration::from_millis(200);
    /// Statements of one call that are under way at one time.
    pub const IN_FLIGHT_MAX: usize = 32;
    /// Ids of one row of an audience: 256 KB at most, a quarter of the largest good cell.
    pub const AUDIENCE_CHUNK_IDS: usize = 1_000;
    const _: () = assert!(AUDIENCE_CHUNK_IDS * contract::USER_ID_BYTES_MAX <= 1 << 18);
    const _: () = assert!(AUDIENCE_CHUNK_IDS >= contract::TARGET_NAMES_MAX);
    /// What one partition of a list, and of the outbox, spans.
    pub const LIST_BUCKET: Duration = Duration::from_secs(24 * 3_600);
    pub const OUTBOX_BUCKET: Duration = Duration::from_secs(3_600);
    /// Reads of the embedded log and store that may wait for the disk at a time, each on a thread
    /// of its own. Without this bound fifteen thousand connects made 260 threads, and their stacks
    /// and heaps were more than the streams.
    pub const DISK_READS_AT_ONCE: usize = 8;
    /// Buckets, and rows of the outbox, that are read in one statement.
    pub const BUCKETS_READ: usize = 100;
    pub const OUTBOX_READ: usize = 1_000;
    /// Buckets that a process remembers to have noted: a year of them, then it notes them again.
    pub const BUCKETS_NOTED_MAX: usize = 10_000;
    /// How far the outbox's position stays behind the clock: what nodes' clocks may differ and a
    /// row may take to be written. A node whose clock is further behind hides its rows.
    pub const OUTBOX_SLACK: Duration = Duration::from_secs(600);
    /// The same for quick looks at what is parked, and how often a look is a whole one.
    pub const PARKED_QUICK_SLACK: Duration = Duration::from_secs(10);
    pub const PARKED_WHOLE_LOOK: Duration = Duration::from_secs(30);
    /// How long endings are known, and what was due is after its time: longer than any log is kept
    /// by default, and a day.
    pub const ENDINGS_KEEP: Duration = Duration::from_secs(30 * 24 * 3_600);
    /// How far the position moves before it is stored again.
    pub const POSITION_STEP: Duration = Duration::from_secs(60);
}

/// What is kept for users who are not here.
pub mod inbox {
    use super::{Duration, contract};

    const DAY_S: u64 = 24 * 3_600;
    /// Rows of one batch, all of one partition. Each takes up to three statements, and those the
    /// longest user id and 96 bytes besides: half of the 50 KiB beyond which a batch is refused.
    pub const BATCH_ROWS: usize = 24;
    const _: () = assert!(BATCH_ROWS * 3 * (contract::USER_ID_BYTES_MAX + 96) <= 25 << 10);
    /// Rows of some 100 bytes that are read in one statement.
    pub const ROWS_READ: usize = 1_000;
    /// The least and the most that a row is kept. The least is what nodes' clocks may differ; the
    /// most is the longest retention that can be configured.
    pub const KEEP_MIN: Duration = Duration::from_secs(3_600);
    pub const KEEP_MAX: Duration = Duration::from_secs(3_650 * DAY_S);
    /// How much longer than its row a cell is kept that says how the row stands: writers' clocks
    /// and ends may differ by as much.
    pub const STATE_OUTLIVES: Duration = Duration::from_secs(DAY_S);
    /// Seconds since 1970 up to which rows may be kept: 2038-01-14. Cassandra refuses what would
    /// expire after 2038-01-19; state, and notes of buckets, end up to two days after rows.
    pub const END_S_MAX: u64 = (1 << 31) - 1 - 5 * DAY_S;
    /// How far an id may be ahead of the clock and still say when it was drawn. ScyllaDB refuses
    /// what is written three days ahead.
    pub const ID_AHEAD_MAX: Duration = Duration::from_secs(2 * DAY_S);
    /// Offsets of one partition of group rows, as a power of two. A row that has expired counts as
    /// three cells, that of a removal as four, until it is compacted away, and a read that meets
    /// 100,000 is refused.
    pub const GROUP_BUCKET_BITS: u32 = 14;
    const _: () = assert!((1 << GROUP_BUCKET_BITS) * 4 <= 100_000);
    /// Stored cursors of users who stay away are forgotten after 400 days: they have been past all
    /// that is kept for a year.
    pub const CURSOR_KEEP: Duration = Duration::from_secs(400 * DAY_S);
    /// Holes of one log that are read: each costs an operator an error in the log, so there are
    /// few.
    pub const HOLES_READ: usize = 10_000;
}

/// Dead letters as rows.
pub mod dead_letters {
    use super::Duration;

    /// One cell of a record: a quarter of the largest good one.
    pub const PART_BYTES: usize = 256 << 10;
    /// What one partition of the list spans.
    pub const LIST_BUCKET: Duration = Duration::from_secs(3_600);
    /// Entries of the list that are read in one statement, and rows that are read together, each of
    /// up to some megabytes.
    pub const LIST_ROWS_READ: usize = 1_000;
    pub const ROWS_AT_ONCE: usize = 16;
    /// Rows and marks are forgotten after 400 days: they outlive their records by a year.
    pub const KEEP: Duration = Duration::from_secs(400 * 24 * 3_600);
    /// Those that are sent again or purged together: enough for `log::AGAIN_RECORDS` to be used
    /// within some rounds, and little to be looked at again when a backend goes away.
    pub const AT_ONCE: usize = 256;
    pub const BYTES_AT_ONCE: usize = 4 << 20;
    /// How long owners may make no room for what is sent again, and how often that is looked for.
    pub const ROOM_TIME: Duration = Duration::from_secs(15);
    pub const ROOM_LOOK: Duration = Duration::from_millis(100);
    /// Failures that one answer names, as a page of a list.
    pub const FAILURES_SHOWN_MAX: usize = super::contract::LIST_ROWS_MAX;
    /// How long the answer to a call for all of them is waited for; then the caller is told that
    /// it goes on. Shorter than the admin listener gives any call.
    pub const ALL_TIME: Duration = Duration::from_secs(100);
    const _: () = assert!(
        ALL_TIME.as_secs()
            < super::admin::ANSWER_TIME.as_secs()
                + super::admin::BODY_TIME.as_secs()
                + super::admin::CREATE_TIME_MAX.as_secs()
    );
    /// Buckets of the audit: a day, with a line a call.
    pub const AUDIT_BUCKET: Duration = Duration::from_secs(24 * 3_600);
}

/// The admin API and the calls of users that are no stream.
pub mod admin {
    use super::{Duration, contract};

    /// Body of a create: a million user ids of 24 bytes, quoted, beside the content.
    pub const CREATE_BODY_BYTES_MAX: usize = 32 << 20;
    const _: () = assert!(CREATE_BODY_BYTES_MAX > contract::CONTENT_BYTES_MAX * 6);
    /// Body of every other call.
    pub const BODY_BYTES_MAX: usize = 64 * 1024;
    /// A body has to be here so long after its head.
    pub const BODY_TIME: Duration = Duration::from_secs(30);
    /// What log and store may take; then the caller is told that they are late. Longer than the
    /// store pursues an unclear write, shorter than the 30 s after which clients and proxies
    /// commonly give up.
    pub const ANSWER_TIME: Duration = Duration::from_secs(20);
    /// A create of many targets may take longer by these: half of what a log on an idle disk takes.
    pub const TARGETS_PER_SECOND: u64 = 20_000;
    pub const CREATE_TIME_MAX: Duration = Duration::from_secs(
        ANSWER_TIME.as_secs() + contract::TARGET_USERS_MAX as u64 / TARGETS_PER_SECOND,
    );
    /// Creates under way, answered or not: so many callers wait on a store that hangs, each with a
    /// body of a few KiB.
    pub const CREATES_MAX: usize = 4_096;
    /// The same of cancels, of a few KiB each. More than come in a second of a node, each of which
    /// takes up to `control::SETTLE_TIME` while a node is silent.
    pub const CANCELS_MAX: usize = 4_096;
    /// Creates whose body is larger than this, or not said to be smaller. One of them takes up to
    /// 500 MB while its audience is read: eight million ids of one letter.
    pub const SMALL_CREATE_BYTES_MAX: u64 = 256 * 1024;
    pub const LARGE_CREATES_MAX: usize = 2;
    /// Rows of broadcasts that calls hold at one time, each of up to 60 MB: a million target ids.
    pub const ROWS_HELD_MAX: usize = 32;
    /// Rows that a list reads together.
    pub const LIST_ROWS_READ: usize = 16;
    const _: () = assert!(LIST_ROWS_READ <= ROWS_HELD_MAX);
    /// A page ends with the row that passes this: a thousand usual rows fit, and no page is more
    /// than a row longer.
    pub const LIST_BYTES_MAX: usize = 4 << 20;
    /// Connections of the admin listener, and the part of them whose first head is not here or
    /// waits for its turn. Beyond that part the oldest is closed.
    pub const CONNECTIONS_MAX: usize = 1_024;
    pub const HEADS_PART: usize = 4;
    /// How long it is left alone before that: 2,560 silent connections a second keep nobody out.
    pub const HEAD_GRACE: Duration = Duration::from_millis(100);
    /// Calls of the public listener, no streams, at one time.
    pub const PUBLIC_CALLS_MAX: usize = 4_096;
    /// `Retry-After` of a refusal that passes.
    pub const RETRY_AFTER_S: u32 = 2;
    /// Records of one append while a SELECTED broadcast is published.
    pub const PUBLISH_RECORDS_MAX: usize = 1_000;
    /// Times that a new broadcast id is drawn before a create is refused: each draw meets a taken
    /// id with at most 1 in 4,096.
    pub const ID_DRAWS_MAX: usize = 8;
}

/// The relay of the outbox.
pub mod relay {
    use super::Duration;

    /// Between two looks at the outbox, if nothing calls for an earlier one.
    pub const LOOK: Duration = Duration::from_secs(10);
    /// Before the first new try, when a backend is away. Doubles up to `LOOK`.
    pub const RETRY_WAIT: Duration = Duration::from_millis(250);
    /// Rows that are looked at together.
    pub const ROWS_MAX: usize = 1_000;
    /// How young a row may be that another node may be at: a million records take 50 s at 20,000 a
    /// second, and the nodes' clocks may differ by as much again.
    pub const GRACE: Duration = Duration::from_secs(120);
    /// Creates that ended between status and publishing and are remembered: 64 KiB of ids. Others
    /// wait until `GRACE` has passed.
    pub const OWED_MAX: usize = 4_096;
}

/// Telling users that a broadcast has ended.
pub mod endings {
    /// Of cancels, waiting or under way: tasks of 1 KiB. The relay does the others.
    pub const REMOVALS_BEHIND_MAX: usize = 4_096;
    /// Audiences of at most one append at a time, each with a row of up to 320 KB, a thousand names
    /// and the content, and a record or a thousand of as much again: 40 MB.
    pub const SMALL_REMOVALS_MAX: usize = 64;
    /// Others at a time, each with a row of up to 60 MB: 120 MB.
    pub const LARGE_REMOVALS_MAX: usize = 2;
    /// Rows that are read to know which they are, up to 60 MB each. A read takes a millisecond or
    /// two, so they are a few thousand a second.
    pub const REMOVALS_READ_MAX: usize = 4;
}

/// Expiring broadcasts.
pub mod expiry {
    use super::Duration;

    /// Between two looks at what is due: with one, a broadcast expires within half a second.
    pub const LOOK: Duration = Duration::from_millis(500);
    /// Longest wait while the store or the log is away.
    pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
    /// Broadcasts of a share that are expired in one look; if more is due, the next is at once.
    pub const ROWS_MAX: usize = 100;
    /// Of these at a time: with three writes of 10 ms each, 1,000 a second.
    pub const BEGUN_AT_ONCE: usize = 32;
    /// Those whose users are being told, or wait for that, at a time: tasks of 1 KiB, and half as
    /// many rows read in vain by a look. With as many, others expire later.
    pub const TELLING_MAX: usize = 4_096;
}

/// Owning partitions: what their records leave behind.
pub mod owner {
    use super::{Duration, kafka, log, store};

    /// Between two commits: a checkpoint is so far behind what is durable, and a new owner does so
    /// much again.
    pub const COMMIT_PACE: Duration = Duration::from_millis(250);
    /// Bytes that one fetch may bring. A partition has one batch in work, so this times the
    /// partitions of both topics is the most that is held while the store is away: 20 x 4 MiB.
    pub const FETCH_BYTES_MAX: usize = log::FETCH_BYTES_MAX;
    /// How long a fetch waits for the first record while some partition has work and would be
    /// asked for again as soon as that is done.
    pub const BUSY_FETCH_WAIT: Duration = Duration::from_millis(10);
    /// Between two tries of what the store refused: the first, and the longest. Each has jitter.
    pub const RETRY_WAIT_FIRST: Duration = Duration::from_millis(100);
    pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
    /// What finishing may take before a node leaves its partitions to the others.
    pub const LEAVE_TIME: Duration = Duration::from_secs(3);
    /// Of the reason that a dead letter names, bytes of UTF-8: what a decoder says is a line.
    pub const DEAD_REASON_BYTES_MAX: usize = 4_096;
    /// What is left of a value in the first place when a broker refuses a dead letter for its size:
    /// one with the default `max.message.bytes` takes that beside 100 KB of headers. Then halves.
    pub const DEAD_VALUE_BYTES_CUT: usize = kafka::PRODUCE_BYTES_MAX;
    /// Records of one batch that are parked at a time.
    pub const PARKED_AT_ONCE: usize = 16;
    /// Rows of one batch that are written together: few to write again when one of them fails, and
    /// enough for `store::IN_FLIGHT_MAX` statements at a time.
    pub const ROWS_AT_ONCE: usize = 128;
    const _: () = assert!(ROWS_AT_ONCE >= 4 * store::IN_FLIGHT_MAX);
    /// Of these, at a time, of all batches of a node: one waits for its last statement while the
    /// other keeps the store busy. More would be in the way of creates once a store is back.
    pub const PARTS_AT_ONCE: usize = 2;
    /// Broadcasts that are known to have their content in the store.
    pub const CONTENTS_KNOWN_MAX: usize = 16_384;
}

/// Records that wait until they are published again.
pub mod parking {
    use super::Duration;

    /// Shares of what is parked; the owner of group partition b publishes those of share b, b plus
    /// the number of partitions, and so on. Each is asked for at every look.
    pub const BUCKETS: u16 = 16;
    /// Between two looks: so late a record is published, at most, beyond what it waits for.
    pub const LOOK: Duration = Duration::from_millis(500);
    /// How old the time may be at which a row is due when it is written: so a row that is written
    /// twice is one. Quick looks begin further back.
    pub const DUE_AGE: Duration = Duration::from_secs(5);
    const _: () = assert!(DUE_AGE.as_millis() < super::store::PARKED_QUICK_SLACK.as_millis());
    /// Between two tries when a backend is away: the longest.
    pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
    /// Rows of a share that are looked at together. Each is at most a record of `log`.
    pub const ROWS_MAX: usize = 16;
    /// How long it is remembered that an event stands where it is served: longer than any log or
    /// dead letter is kept by default.
    pub const SERVED_KEEP: Duration = Duration::from_secs(30 * 24 * 3_600);
}

/// What the control threads do for users who come and go.
pub mod keeping {
    use super::Duration;

    /// Questions of the shards that wait for their turn, and that are worked on at a time.
    pub const ASKS_MAX: usize = 8_192;
    pub const ASKS_AT_ONCE: usize = 64;
    /// Messages of notes (`shard::NOTES_TOLD_MAX` each) that wait while the store is away: half a
    /// million notes, some 100 MB. Beyond that they are dropped and counted.
    pub const NOTES_WAITING_MAX: usize = 1_024;
    /// How long a question about a user waits for what is still to be noted of him.
    pub const NOTES_BEFORE_ASK: Duration = Duration::from_millis(500);
    /// Of them, those that are worked on at a time. In which order they are noted is the same.
    pub const NOTES_AT_ONCE: usize = 8;
    /// How old a checkpoint may be that a backlog ends at. An older one is right as well, but what
    /// lies behind it has to be in the ring.
    pub const CHECKPOINT_AGE: Duration = Duration::from_millis(250);
    /// The same where a newer one may reach up to the ring.
    pub const CHECKPOINT_AGE_SHORT: Duration = Duration::from_millis(20);
    /// How far the clocks of those who append records may be apart, where only time tells what a
    /// client has had.
    pub const CLOCKS_DIFFER: Duration = Duration::from_secs(3_600);
    /// Between two times at which group messages that have ended are looked for.
    pub const FORGET_PACE: Duration = Duration::from_secs(1);
    /// Group messages that are looked at for one user before others have their turn.
    pub const GROUP_ROWS_AT_ONCE: usize = 1_000;
    /// Rows of an inbox, and of group messages, that are read in one statement.
    pub const ROWS_READ: usize = 1_000;
    /// Contents that are read together, each by a statement of its own: little enough that a slow
    /// store has it within `shard::ASK_TIME`, after which a question is given up.
    pub const CONTENTS_READ: usize = 100;
    /// For so long after the end of a broadcast what is read of it is not remembered: it may have
    /// been asked for before.
    pub const ENDED_AGE: Duration = Duration::from_secs(60);
    /// Rows of one inbox that are looked at: a hundred thousand messages of one user.
    pub const INBOX_ROWS_MAX: usize = 100_000;
    /// One piece of a backlog: as much as a client gets on one stream before it comes back for
    /// more.
    pub const BACKLOG_MESSAGES_MAX: usize = 1_000;
    pub const BACKLOG_BYTES_MAX: usize = 4 << 20;
    /// Contents that are kept in memory, and for whom broadcasts are: half a million broadcasts
    /// that name three roles each.
    pub const CONTENTS_BYTES_MAX: usize = 64 << 20;
    pub const ADDRESSEES_BYTES_MAX: usize = 64 << 20;
    /// How many there are at first room for.
    pub const CONTENTS_EXPECTED: usize = 1_024;
    /// Between two tries of the store.
    pub const RETRY_WAIT_FIRST: Duration = Duration::from_millis(100);
    pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);
    /// What the last notes of a node that ends may take.
    pub const SETTLE_TIME: Duration = Duration::from_secs(3);
    pub const SETTLE_LOOK: Duration = Duration::from_millis(5);
    /// Between two tries to answer a shard whose lane is full.
    pub const FULL_LANE_WAIT: Duration = Duration::from_millis(1);
}
