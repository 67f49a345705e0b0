//! Rows a second of the store over CQL, beside a bare loop over the driver that writes or reads the
//! same rows: `cargo bench --bench store`.
//!
//! Both run against the same Cassandra node, in turns, so that neither has the warmer one; the
//! ratios' median counts. The goal is 0.6 of the bare loop. `BENCH_JSON=FILE` writes the figures
//! there too.

#[path = "common/figures.rs"]
mod figures;
#[path = "../tests/store/mod.rs"]
mod store;

use std::sync::Arc;
use std::time::Instant;

use corecast::base::{
    BroadcastId, EpochMillis, LogIdentity, Partition, Position, Status, Topic, UserId,
};
use corecast::ports::{
    Claim, Delivery, Inbox, InboxWrite, OutboxRow, Place, Progress as Standing, Store,
};
use corecast::store::scylla::{Progress, ScyllaOptions, ScyllaStore};
use figures::{Figures, Goal};
use harness::cassandra::Cassandra;
use harness::maven;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::serialize::SerializationError;
use scylla::serialize::row::{RowSerializationContext, SerializeRow};
use scylla::serialize::writers::RowWriter;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;
use store::{Running, block_on, broadcast, draw_keyspace, id_at, now};

/// Calls under way at one time, on both sides.
const IN_FLIGHT: usize = 64;
const ROUNDS: usize = 5;
const WRITES: u64 = 20_000;
const CLAIMS: u64 = 1_000;
const READS: u64 = 5_000;
const INBOX_ROWS: usize = 20_000;
/// What the owner of a partition has of a batch of records, of so many users. Two such calls keep
/// as many statements in flight as the bare loop does.
const INBOX_CALL_ROWS: usize = 500;
const INBOX_CALLS: usize = 2;
/// What one user is written at once.
const INBOX_USER_ROWS: usize = 20;
const GOAL: f64 = 0.6;

fn main() {
    if let Some(program) = maven::missing() {
        return harness::skip(program, "install a JDK and Maven");
    }
    let cluster = Cassandra::start(1);
    let options =
        ScyllaOptions { keyspace: draw_keyspace(), ..ScyllaOptions::new(cluster.addresses()) };
    let running = Running::start(options.clone());
    running.wait_until(|progress| *progress == Progress::Serving);
    let store = running.store.clone();
    let bare = Arc::new(block_on(Bare::connect(&cluster, &options.keyspace)));
    let mut figures = Figures::default();
    figures.note(format!(
        "Cassandra, one node, one copy, {IN_FLIGHT} calls in flight, {ROUNDS} rounds"
    ));

    let start = now().0;
    let writes = |round: u64, side: u64| {
        let first = start + (round * 2 + side) * WRITES;
        (first..first + WRITES).map(|at| (EpochMillis(at), id_at(EpochMillis(at), 1)))
    };
    compare(
        &mut figures,
        "outbox rows written",
        |round| rate(writes(round, 0), &store, write_by_store),
        |round| rate(writes(round, 1), &bare, write_by_loop),
    );
    let claims = |round: u64, side: u64| {
        let first = start + (round * 2 + side) * CLAIMS;
        (first..first + CLAIMS).map(|at| id_at(EpochMillis(at), 2))
    };
    compare(
        &mut figures,
        "contents claimed",
        |round| rate(claims(round, 0), &store, claim_by_store),
        |round| rate(claims(round, 1), &bare, claim_by_loop),
    );
    let existing: Vec<BroadcastId> = claims(0, 0).collect();
    rate(existing.iter().copied(), &store, create_status);
    let reads = || existing.iter().copied().cycle().take(READS as usize);
    compare(
        &mut figures,
        "broadcasts read",
        |_| rate(reads(), &store, read_by_store),
        |_| rate(reads(), &bare, read_by_loop),
    );
    compare_inbox(&mut figures, &store, &bare);
    figures.tell();
}

/// Rows of an owner: PENDING, with a place.
fn compare_inbox(figures: &mut Figures, store: &Arc<ScyllaStore>, bare: &Arc<Bare>) {
    let rows = |round: u64, side: u64, a_user: usize| -> Vec<InboxWrite> {
        let first = (round * 2 + side) as usize * INBOX_ROWS;
        (first..first + INBOX_ROWS).map(|at| pending(at, a_user)).collect()
    };
    let calls = |rows: Vec<InboxWrite>, count: usize| -> Vec<Vec<InboxWrite>> {
        rows.chunks(count).map(<[_]>::to_vec).collect()
    };
    compare(
        figures,
        "inbox rows written, one a user",
        |round| {
            let calls = calls(rows(round, 0, 1), INBOX_CALL_ROWS).into_iter();
            INBOX_CALL_ROWS as f64 * rate_of(INBOX_CALLS, calls, store, write_inbox_by_store)
        },
        |round| rate(calls(rows(round, 1, 1), 1).into_iter(), bare, write_inbox_by_loop),
    );
    compare(
        figures,
        "inbox rows written, 20 a user",
        |round| {
            let calls = calls(rows(round, 0, INBOX_USER_ROWS), INBOX_USER_ROWS).into_iter();
            INBOX_USER_ROWS as f64 * rate(calls, store, write_inbox_by_store)
        },
        |round| {
            let calls = calls(rows(round, 1, INBOX_USER_ROWS), INBOX_USER_ROWS).into_iter();
            INBOX_USER_ROWS as f64 * rate(calls, bare, write_inbox_by_loop)
        },
    );
}

fn pending(at: usize, a_user: usize) -> InboxWrite {
    let user = format!("{a_user}-user-{:020}", at / a_user);
    let partition = Partition { topic: Topic::Selected, index: (at % 10) as u16 };
    InboxWrite {
        user: UserId::new(&user).expect("a user id"),
        broadcast: id_at(now(), at as u64 % 4_096),
        place: Some(Place {
            log: LogIdentity([1, 2, 3]),
            position: Position { partition, offset: at as u64 },
            appended_at: now(),
        }),
        progress: Standing { attempt: 0, delivery: Delivery::Pending },
        at: now(),
        keep_until: EpochMillis(now().0 + 30 * 24 * 3_600_000),
    }
}

/// Runs both in turns.
fn compare(
    figures: &mut Figures,
    name: &'static str,
    ours: impl Fn(u64) -> f64,
    theirs: impl Fn(u64) -> f64,
) {
    let (mut our_rates, mut their_rates) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS as u64 {
        our_rates.push(ours(round));
        their_rates.push(theirs(round));
    }
    let baseline = ("bare loop", &their_rates[..]);
    figures.add((name, "rows/s"), &our_rates, baseline, Goal::RatioAtLeast(GOAL));
}

/// Calls a second.
fn rate<I, S, F>(items: impl Iterator<Item = I>, side: &Arc<S>, call: fn(Arc<S>, I) -> F) -> f64
where
    I: Send + 'static,
    S: Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    rate_of(IN_FLIGHT, items, side, call)
}

/// The same by so many workers, who take the items in turn.
fn rate_of<I, S, F>(
    workers: usize,
    items: impl Iterator<Item = I>,
    side: &Arc<S>,
    call: fn(Arc<S>, I) -> F,
) -> f64
where
    I: Send + 'static,
    S: Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut shares: Vec<Vec<I>> = (0..workers).map(|_| Vec::new()).collect();
    let mut count = 0;
    for item in items {
        shares[count % workers].push(item);
        count += 1;
    }
    let began = Instant::now();
    let workers: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let side = side.clone();
            store::runtime().spawn(async move {
                for item in share {
                    call(side.clone(), item).await;
                }
            })
        })
        .collect();
    for worker in workers {
        block_on(worker).expect("no worker panics");
    }
    count as f64 / began.elapsed().as_secs_f64()
}

async fn write_by_store(store: Arc<ScyllaStore>, (created_at, id): (EpochMillis, BroadcastId)) {
    store.put_outbox(&OutboxRow { id, created_at }).await.expect("it is written");
}

async fn claim_by_store(store: Arc<ScyllaStore>, id: BroadcastId) {
    let claim = store.claim_broadcast(&broadcast(id)).await.expect("it is written");
    assert_eq!(claim, Claim::Applied);
}

async fn create_status(store: Arc<ScyllaStore>, id: BroadcastId) {
    store.create_status(id, Status::Active).await.expect("it is written");
}

async fn write_inbox_by_store(store: Arc<ScyllaStore>, writes: Vec<InboxWrite>) {
    store.write_inbox(&writes).await.expect("they are written");
}

async fn read_by_store(store: Arc<ScyllaStore>, id: BroadcastId) {
    assert!(store.broadcast(id).await.expect("it is read").is_some());
}

/// What somebody would write who has only these rows to move: the same statements, prepared, and
/// nothing around them.
struct Bare {
    session: Session,
    write: PreparedStatement,
    claim: PreparedStatement,
    content: PreparedStatement,
    status: PreparedStatement,
    row: PreparedStatement,
    place: PreparedStatement,
}

impl Bare {
    async fn connect(cluster: &Cassandra, keyspace: &str) -> Self {
        let session = SessionBuilder::new().known_nodes(cluster.addresses()).build().await;
        let session = session.expect("a session");
        let prepare = async |text: &str| {
            let prepared = session.prepare(text.replace("KS.", &format!("{keyspace}."))).await;
            let mut prepared = prepared.expect("the tables are there");
            prepared.set_consistency(Consistency::LocalQuorum);
            prepared
        };
        Self {
            write: prepare("INSERT INTO KS.outbox (bucket, created_at, id, v) VALUES (?, ?, ?, 1)")
                .await,
            claim: prepare(
                "INSERT INTO KS.broadcast (id, claim, created_at, correlation_id, content, \
                 target_type, target_ids, target_count, target_chunks, priority, expires_at, \
                 fire_and_forget) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS",
            )
            .await,
            content: prepare(
                "SELECT id, created_at, correlation_id, sender_id, sender_name, content, \
                 target_type, target_ids, target_count, target_chunks, priority, category, \
                 scheduled_at, expires_at, fire_and_forget FROM KS.broadcast WHERE id = ?",
            )
            .await,
            status: prepare("SELECT status FROM KS.broadcast_status WHERE id = ?").await,
            row: prepare(
                "UPDATE KS.inbox USING TIMESTAMP ? AND TTL ? SET v = 1, progress = ? \
                 WHERE user_id = ? AND id = ?",
            )
            .await,
            place: prepare(
                "UPDATE KS.inbox USING TIMESTAMP ? AND TTL ? SET place = ? \
                 WHERE user_id = ? AND id = ?",
            )
            .await,
            session,
        }
    }
}

async fn write_by_loop(bare: Arc<Bare>, (created_at, id): (EpochMillis, BroadcastId)) {
    let at = |millis: u64| CqlTimestamp(millis.cast_signed());
    let hour = at(created_at.0 / 3_600_000 * 3_600_000);
    let values = (hour, at(created_at.0), id.get().cast_signed());
    bare.session.execute_unpaged(&bare.write, values).await.expect("it is written");
}

async fn claim_by_loop(bare: Arc<Bare>, id: BroadcastId) {
    let content = broadcast(id);
    let at = |millis: u64| CqlTimestamp(millis.cast_signed());
    let values = (
        id.get().cast_signed(),
        uuid::Uuid::new_v4(),
        at(content.created_at.0),
        content.correlation_id,
        content.content,
        "ALL",
        Vec::<String>::new(),
        0,
        0,
        "NORMAL",
        content.expires_at.map(|millis| at(millis.0)),
        false,
    );
    let done = bare.session.execute_unpaged(&bare.claim, values).await.expect("it is written");
    assert_eq!(done.into_rows_result().expect("an answer").rows_num(), 1);
}

async fn read_by_loop(bare: Arc<Bare>, id: BroadcastId) {
    let key = (id.get().cast_signed(),);
    let (status, content) = tokio::join!(
        bare.session.execute_unpaged(&bare.status, key),
        bare.session.execute_unpaged(&bare.content, key),
    );
    let status = status.expect("it is read").into_rows_result().expect("rows");
    status.single_row::<(String,)>().expect("a status");
    let content = content.expect("it is read").into_rows_result().expect("rows");
    let row = content.single_row::<scylla::value::Row>().expect("a content");
    assert_eq!(row.columns.len(), 15);
}

/// Rank, time to live, value, user, broadcast.
type Values<'a, V> = (i64, i32, V, &'a str, i64);

enum Cells<'a> {
    Row(Values<'a, (i64, i8)>),
    Place(Values<'a, ([u8; 3], i8, i32, i64, CqlTimestamp)>),
}

impl SerializeRow for Cells<'_> {
    fn serialize(
        &self,
        context: &RowSerializationContext<'_>,
        writer: &mut RowWriter<'_>,
    ) -> Result<(), SerializationError> {
        match self {
            Self::Row(values) => values.serialize(context, writer),
            Self::Place(values) => values.serialize(context, writer),
        }
    }

    fn is_empty(&self) -> bool {
        false
    }
}

/// Of one user: one batch.
async fn write_inbox_by_loop(bare: Arc<Bare>, writes: Vec<InboxWrite>) {
    const MONTH_S: i32 = 30 * 24 * 3_600;
    let mut batch = Batch::new(BatchType::Unlogged);
    batch.set_consistency(Consistency::LocalQuorum);
    let mut values = Vec::with_capacity(2 * writes.len());
    for write in &writes {
        let (user, id) = (write.user.as_str(), write.broadcast.get().cast_signed());
        let Place { log, position, appended_at } = write.place.expect("one");
        let (appended_at, offset) = (appended_at.0.cast_signed(), position.offset.cast_signed());
        let rank = appended_at * 1_000;
        values.push(Cells::Row((rank, MONTH_S, (0, 0), user, id)));
        batch.append_statement(bare.row.clone());
        let index = i32::from(position.partition.index);
        let place = (log.0, 0, index, offset, CqlTimestamp(appended_at));
        values.push(Cells::Place((rank - offset, MONTH_S, place, user, id)));
        batch.append_statement(bare.place.clone());
    }
    bare.session.batch(&batch, values).await.expect("they are written");
}
