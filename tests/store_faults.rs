//! The store over CQL under faults: nodes killed, frozen, absent; keyspaces and logins that are
//! wrong. Cassandra stands in for ScyllaDB.

mod store;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use corecast::base::{BroadcastId, EpochMillis, Status, UserId};
use corecast::domain::Broadcast;
use corecast::limits::parking::BUCKETS;
use corecast::ports::{
    Bucket, Change, Claim, Delivery, Endings, Inbox, InboxWrite, ListFilter, OutboxRow,
    Progress as Standing, Store, StoreError,
};
use corecast::store::scylla::{Login, OpenError, Progress, ScyllaOptions, ScyllaStore};
use harness::cassandra::{Cassandra, Setup};
use harness::{maven, wait};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use store::{Running, STORE_TIME, block_on, broadcast, draw_keyspace, id_at, now, runtime};

/// Clusters take cores and memory, so one test has them at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_missing() -> bool {
    let missing = maven::missing();
    if let Some(program) = missing {
        harness::skip(program, "install a JDK and Maven");
    }
    missing.is_some()
}

/// The layout that this release makes.
const LAYOUT: i32 = 7;

/// What nodes that are killed have to be.
const DURABLE: Setup = Setup { passwords: false, tls: false, durable_tables: true };

/// Three nodes, three copies; each part leaves all of them running.
#[test]
fn three_nodes_outlive_what_they_promise() {
    if is_missing() {
        return;
    }
    let _turn = turn();
    let mut cluster = Cassandra::start_with(3, DURABLE);
    let options = ScyllaOptions { replication: 3, ..options(&cluster) };
    // Nodes that start at one time make one schema.
    let all: Vec<Running> = (0..3).map(|_| Running::start(options.clone())).collect();
    for running in &all {
        running.wait_until(is_serving);
    }
    let running = &all[0];
    let mut made = one_killed(&mut cluster, running);
    made.extend(one_frozen_just_after_a_start(&mut cluster, running));
    made.extend(one_frozen(&cluster, running));
    made.extend(two_frozen_during_claims(&cluster, running));
    two_frozen_amid_changes(&cluster, running);
    made.extend(two_killed(&mut cluster, running));
    all_killed(&mut cluster, running, &made);
}

fn one_killed(cluster: &mut Cassandra, running: &Running) -> Vec<BroadcastId> {
    let load = Load::start(running);
    load.wait_for_more(30);
    cluster.kill(1);
    load.wait_for_more(100);
    cluster.start_again(1);
    load.wait_for_more(30);
    load.end()
}

/// A node that has just started does not know yet how long answers of the others take.
fn one_frozen_just_after_a_start(cluster: &mut Cassandra, running: &Running) -> Vec<BroadcastId> {
    cluster.kill(1);
    cluster.start_again(1);
    let load = Load::start(running);
    cluster.freeze(0);
    load.wait_for_more(100);
    cluster.thaw(0);
    load.wait_for_more(30);
    load.end()
}

fn one_frozen(cluster: &Cassandra, running: &Running) -> Vec<BroadcastId> {
    let mut made = Vec::new();
    for node in [0, 2] {
        let load = Load::start(running);
        load.wait_for_more(30);
        cluster.freeze(node);
        load.wait_for_more(100);
        cluster.thaw(node);
        load.wait_for_more(30);
        made.extend(load.end());
    }
    made
}

/// The answers of these claims are lost. Nobody else claims the ids, so each was applied, and must
/// not be taken for somebody else's when it is found to stand there.
fn two_frozen_during_claims(cluster: &Cassandra, running: &Running) -> Vec<BroadcastId> {
    cluster.freeze(1);
    cluster.freeze(2);
    let claims: Vec<_> = (0..32)
        .map(|number| {
            let store = running.store.clone();
            let content = broadcast(id_at(now(), number));
            runtime().spawn(async move { (content.id, store.claim_broadcast(&content).await) })
        })
        .collect();
    // By then the first try of each has run out of time.
    running.wait_until(is_away);
    cluster.thaw(1);
    cluster.thaw(2);
    let mut made = Vec::new();
    for claim in claims {
        let (id, claim) = block_on(claim).expect("no claim panics");
        assert_eq!(claim.expect("the nodes are back"), Claim::Applied, "{id}");
        let created = block_on(running.store.create_status(id, Status::Active));
        assert_eq!(created.expect("the nodes are back"), Claim::Applied);
        made.push(id);
    }
    running.wait_until(is_serving);
    made
}

/// Of these changes some are done by then, and some under way: at nodes that are frozen, or waiting
/// for them. Nobody else changes the statuses, so each is done by the call that asks for it.
fn two_frozen_amid_changes(cluster: &Cassandra, running: &Running) {
    let ends = [Status::Cancelled, Status::Failed].into_iter().cycle();
    let ids: Vec<BroadcastId> = (0..96).map(|number| existing(&*running.store, number)).collect();
    let calls = ids.into_iter().zip(ends).map(|(id, to)| {
        let store = running.store.clone();
        runtime().spawn(async move { (id, to, store.change_status(id, to).await) })
    });
    let mut calls = calls.collect::<Vec<_>>().into_iter();
    let first = block_on(calls.next().expect("many")).expect("no call panics");
    cluster.freeze(1);
    cluster.freeze(2);
    running.wait_until(is_away);
    cluster.thaw(1);
    cluster.thaw(2);
    let rest = calls.map(|call| block_on(call).expect("no call panics"));
    for (id, to, change) in std::iter::once(first).chain(rest) {
        assert_eq!(change.expect("the nodes are back"), Change::Done, "{id}");
        let row = block_on(running.store.broadcast(id)).expect("the nodes are back");
        assert_eq!(row.expect("it exists").status, to);
    }
    running.wait_until(is_serving);
}

fn two_killed(cluster: &mut Cassandra, running: &Running) -> Vec<BroadcastId> {
    cluster.kill(0);
    cluster.kill(1);
    running.wait_until(is_away);
    let row = outbox_row(now(), 1);
    assert_away(block_on(running.store.put_outbox(&row)));
    assert_away(block_on(running.store.broadcast(row.id)));
    assert_away(block_on(running.store.broadcasts(ListFilter::All, None, 1)));
    assert_away(block_on(running.store.claim_broadcast(&broadcast(row.id))));
    assert_away(block_on(running.store.change_status(row.id, Status::Cancelled)));
    cluster.launch(0);
    cluster.launch(1);
    cluster.wait_until_ready(0);
    cluster.wait_until_ready(1);
    running.wait_until(is_serving);
    let load = Load::start(running);
    load.wait_for_more(30);
    load.end()
}

fn all_killed(cluster: &mut Cassandra, running: &Running, made: &[BroadcastId]) {
    let load = Load::start(running);
    load.wait_for_more(30);
    for node in 0..3 {
        cluster.kill(node);
    }
    let (acknowledged, _) = load.stop();
    running.wait_until(is_away);
    cluster.start_all();
    running.wait_until(is_serving);
    let listed = block_on(running.store.broadcasts(ListFilter::Active, None, 100_000));
    let listed = listed.expect("the nodes are back");
    for id in made.iter().chain(&acknowledged) {
        let row = listed.iter().find(|row| row.broadcast.id == *id);
        let row = row.unwrap_or_else(|| panic!("{id} was acknowledged and is lost"));
        assert_eq!(row.broadcast.content, format!("content of {id}"));
    }
    for id in acknowledged {
        let message = message_of(id);
        let inbox = block_on(running.store.inbox(&message.user, None, 10)).expect("they are back");
        assert_eq!(inbox.len(), 1, "the message of {id} was acknowledged");
        assert_eq!(inbox[0].progress.delivery, Delivery::Delivered);
    }
}

/// One node; each part has a keyspace of its own.
#[test]
fn one_node_comes_goes_and_holds_other_things() {
    if is_missing() {
        return;
    }
    let _turn = turn();
    let mut cluster = Cassandra::prepare(1, DURABLE);
    absent_at_start(&mut cluster);
    lost_later(&mut cluster);
    let raw = raw_session(&cluster);
    many_nodes_make_one_schema(&cluster, &raw);
    a_lock_of_a_dead_node_passes(&cluster, &raw);
    keyspaces_of_others_are_refused(&cluster, &raw);
    older_keyspaces_are_brought_up(&cluster, &raw);
    newer_keyspaces_are_judged(&cluster, &raw);
    broken_keyspaces_are_refused(&cluster, &raw);
    impossible_options_are_refused(&cluster);
}

fn absent_at_start(cluster: &mut Cassandra) {
    let options = options(cluster);
    let running = Running::start(options.clone());
    running.wait_until(
        |progress| matches!(progress, Progress::Away(reason) if reason.contains(&options.nodes[0])),
    );
    assert_away(block_on(running.store.broadcast(id_at(now(), 1))));
    assert_away(block_on(running.store.put_outbox(&outbox_row(now(), 1))));
    cluster.start_again(0);
    running.wait_until(is_serving);
    let load = Load::start(&running);
    load.wait_for_more(20);
    load.end();
}

fn lost_later(cluster: &mut Cassandra) {
    let running = Running::start(options(cluster));
    running.wait_until(is_serving);
    let load = Load::start(&running);
    load.wait_for_more(30);
    let made = load.end();
    cluster.kill(0);
    running.wait_until(is_away);
    assert_away(block_on(running.store.broadcast(made[0])));
    cluster.start_again(0);
    running.wait_until(is_serving);
    for id in made {
        assert!(block_on(running.store.broadcast(id)).expect("it is back").is_some(), "{id}");
    }
    let load = Load::start(&running);
    load.wait_for_more(30);
    load.end();
}

fn many_nodes_make_one_schema(cluster: &Cassandra, raw: &Session) {
    let options = options(cluster);
    let nodes: Vec<Running> = (0..4).map(|_| Running::start(options.clone())).collect();
    for running in &nodes {
        running.wait_until(is_serving);
    }
    let id = existing(&*nodes[0].store, 1);
    for running in &nodes {
        assert!(block_on(running.store.broadcast(id)).expect("serving").is_some());
    }
    let keyspace = &options.keyspace;
    let parts = texts(raw, &format!("SELECT part FROM {keyspace}.corecast_schema"));
    assert_eq!(parts, ["schema"], "the lock is given back");
    // Once made, a node that starts writes nothing into it.
    let written = format!("SELECT made_by FROM {keyspace}.corecast_schema WHERE part = 'schema'");
    assert_eq!(texts(raw, &written), ["test-node"]);
    change(
        raw,
        &format!(
            "UPDATE {keyspace}.corecast_schema SET made_by = 'another' WHERE part = 'schema' \
         IF EXISTS"
        ),
    );
    Running::start(options.clone()).wait_until(is_serving);
    assert_eq!(texts(raw, &written), ["another"]);
}

fn a_lock_of_a_dead_node_passes(cluster: &Cassandra, raw: &Session) {
    let options = options(cluster);
    let keyspace = &options.keyspace;
    Running::start(options.clone()).wait_until(is_serving);
    for text in [
        format!("DELETE FROM {keyspace}.corecast_schema WHERE part = 'schema' IF EXISTS"),
        format!("DROP TABLE {keyspace}.position"),
        format!(
            "INSERT INTO {keyspace}.corecast_schema (part, holder) VALUES ('lock', uuid()) \
             IF NOT EXISTS USING TTL 5"
        ),
    ] {
        change(raw, &text);
    }
    let locked_at = Instant::now();
    let second = Running::start(options.clone());
    second.wait_until(is_serving);
    // It made the table that was missing, and not before the lock was free.
    let made = format!(
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}' \
         AND table_name = 'position'"
    );
    assert_eq!(texts(raw, &made), ["position"]);
    assert!(locked_at.elapsed() >= Duration::from_secs(4), "the lock was not heeded");
}

fn keyspaces_of_others_are_refused(cluster: &Cassandra, raw: &Session) {
    let options = options(cluster);
    let keyspace = &options.keyspace;
    change(raw, &create_keyspace(keyspace));
    change(raw, &format!("CREATE TABLE {keyspace}.orders (id int PRIMARY KEY)"));
    let ended = Running::start(options.clone()).wait_for_end();
    assert!(matches!(&ended, OpenError::Foreign { table, .. } if table == "orders"), "{ended}");
    assert_advice(&ended, &["orders", "choose another store.keyspace"]);
    // An operator may make an empty one.
    change(raw, &format!("DROP TABLE {keyspace}.orders"));
    Running::start(options.clone()).wait_until(is_serving);
}

/// From the layout of the first release, while a node of that release goes on.
fn older_keyspaces_are_brought_up(cluster: &Cassandra, raw: &Session) {
    let options = options(cluster);
    let keyspace = &options.keyspace;
    let older = Running::start(options.clone());
    older.wait_until(is_serving);
    let ids: Vec<BroadcastId> = (0..20).map(|number| existing(&*older.store, number)).collect();
    block_on(older.store.put_outbox(&outbox_row(now(), 1))).expect("serving");
    let newer_tables = [
        "inbox",
        "group_message",
        "group_bucket",
        "stored_cursor",
        "hole",
        "dead_letter",
        "dead_letter_part",
        "dead_letter_id",
        "dead_letter_list",
        "dead_letter_audit",
        "parked",
        "served_event",
        "ending",
        "due",
    ];
    for table in newer_tables {
        change(raw, &format!("DROP TABLE {keyspace}.{table}"));
    }
    change(raw, &format!("ALTER TABLE {keyspace}.broadcast_status DROP change"));
    change(
        raw,
        &format!(
            "UPDATE {keyspace}.corecast_schema SET layout = 1, oldest = 1 WHERE part = 'schema' \
             IF EXISTS"
        ),
    );
    // Two that start at one time make one step.
    let newer: Vec<Running> = (0..2).map(|_| Running::start(options.clone())).collect();
    for running in &newer {
        running.wait_until(is_serving);
    }
    let layout = format!(
        "SELECT CAST(layout AS text) FROM {keyspace}.corecast_schema WHERE part = 'schema'"
    );
    assert_eq!(texts(raw, &layout), [LAYOUT.to_string()]);
    let oldest = layout.replace("layout AS", "oldest AS");
    assert_eq!(texts(raw, &oldest), ["1"], "a node of the first release may start again");
    let made =
        format!("SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}'");
    let made = texts(raw, &made);
    for table in newer_tables {
        assert!(made.iter().any(|name| name == table), "{table} is missing in {made:?}");
    }
    let message = message_of(ids[0]);
    block_on(newer[0].store.write_inbox(std::slice::from_ref(&message))).expect("serving");
    let inbox = block_on(newer[1].store.inbox(&message.user, None, 10)).expect("serving");
    assert_eq!(inbox.len(), 1);
    // What was made before anybody noted what is due is noted by who looks first.
    let then = EpochMillis(now().0 + 31 * 24 * 3_600_000);
    let due = (0..BUCKETS).flat_map(|share| {
        let due = block_on(newer[0].store.due(Bucket(share), then, 100)).expect("serving");
        due.into_iter().map(|due| due.id)
    });
    assert_eq!(due.collect::<BTreeSet<_>>(), ids.iter().copied().collect());
    let cancelled = existing(&*newer[0].store, 200);
    let done = block_on(newer[1].store.change_status(cancelled, Status::Cancelled));
    assert_eq!(done.expect("serving"), Change::Done);
    // What a node of an earlier release made may be changed by one of this.
    let done = block_on(newer[1].store.change_status(ids[0], Status::Failed));
    assert_eq!(done.expect("serving"), Change::Done);
    for store in [&newer[0].store, &newer[1].store, &older.store] {
        assert_eq!(block_on(store.outbox(10)).expect("serving").len(), 1);
        for id in &ids {
            let kept = block_on(store.broadcast(*id)).expect("serving");
            assert_eq!(kept.expect("kept").broadcast.content, format!("content of {id}"));
        }
    }
    existing(&*older.store, 100);
}

fn newer_keyspaces_are_judged(cluster: &Cassandra, raw: &Session) {
    let options = options(cluster);
    let keyspace = &options.keyspace;
    let running = Running::start(options.clone());
    running.wait_until(is_serving);
    let id = existing(&*running.store, 1);
    let newer = |oldest: i32| {
        change(
            raw,
            &format!(
                "UPDATE {keyspace}.corecast_schema SET layout = {}, oldest = {oldest} \
             WHERE part = 'schema' IF EXISTS",
                LAYOUT + 1
            ),
        );
    };
    // What a later release may do: add columns and tables.
    change(raw, &format!("ALTER TABLE {keyspace}.broadcast ADD colour text"));
    change(raw, &format!("ALTER TABLE {keyspace}.broadcast_status ADD reason text"));
    change(raw, &format!("CREATE TABLE {keyspace}.colour (id bigint PRIMARY KEY)"));
    newer(1);
    let before = Running::start(options.clone());
    before.wait_until(is_serving);
    for store in [&running.store, &before.store] {
        assert!(block_on(store.broadcast(id)).expect("serving").is_some());
        let again = block_on(store.claim_broadcast(&broadcast(id)));
        assert_eq!(again.expect("serving"), Claim::Taken);
    }
    existing(&*before.store, 2);
    newer(LAYOUT);
    Running::start(options.clone()).wait_until(is_serving);
    newer(LAYOUT + 1);
    let ended = Running::start(options.clone()).wait_for_end();
    let OpenError::Newer { stored, oldest, ours, .. } = ended else { panic!("{ended}") };
    assert_eq!((stored, oldest, ours), (LAYOUT + 1, LAYOUT + 1, LAYOUT));
    assert_advice(&ended, &["newer release", "run the newer release"]);
}

fn broken_keyspaces_are_refused(cluster: &Cassandra, raw: &Session) {
    let options = options(cluster);
    let keyspace = &options.keyspace;
    Running::start(options.clone()).wait_until(is_serving);
    change(raw, &format!("ALTER TABLE {keyspace}.broadcast DROP content"));
    let ended = Running::start(options.clone()).wait_for_end();
    assert!(matches!(ended, OpenError::Layout { .. }), "{ended}");
    assert_advice(&ended, &["content", "restore it"]);
    change(raw, &format!("DROP TABLE {keyspace}.broadcast"));
    let ended = Running::start(options.clone()).wait_for_end();
    assert!(matches!(ended, OpenError::Layout { .. }), "{ended}");
    change(raw, &format!("DROP TABLE {keyspace}.corecast_schema"));
    change(raw, &format!("CREATE TABLE {keyspace}.corecast_schema (part text PRIMARY KEY)"));
    let ended = Running::start(options.clone()).wait_for_end();
    assert!(matches!(ended, OpenError::Layout { .. }), "{ended}");
}

fn impossible_options_are_refused(cluster: &Cassandra) {
    let nowhere = ScyllaOptions { datacenter: Some("mars".to_owned()), ..options(cluster) };
    let ended = Running::start(nowhere).wait_for_end();
    assert!(matches!(ended, OpenError::Datacenter { .. }), "{ended}");
    assert_advice(&ended, &["mars", "datacenter1", "correct store.datacenter"]);
    let here = ScyllaOptions { datacenter: Some("datacenter1".to_owned()), ..options(cluster) };
    Running::start(here).wait_until(is_serving);
    // It speaks no TLS.
    let authority = tempfile::tempdir().expect("a folder");
    let certificates = Cassandra::prepare(1, Setup { tls: true, ..Setup::default() });
    let tls = ScyllaOptions { tls_ca: Some(certificates.authority()), ..options(cluster) };
    let ended = Running::start(tls).wait_for_end();
    assert!(matches!(ended, OpenError::NoTls(_)), "{ended}");
    for (name, text) in [("absent.pem", None), ("empty.pem", Some("no certificate"))] {
        let path = authority.path().join(name);
        if let Some(text) = text {
            std::fs::write(&path, text).expect("the folder can be written");
        }
        let tls = ScyllaOptions { tls_ca: Some(path), ..options(cluster) };
        let ended = Running::start(tls).wait_for_end();
        assert!(matches!(ended, OpenError::Authority { .. }), "{ended}");
        assert_advice(&ended, &[name, "PEM"]);
    }
    // More copies than nodes: it waits, and says for what.
    let copies = ScyllaOptions { replication: 3, ..options(cluster) };
    Running::start(copies).wait_until(|progress| {
        matches!(progress, Progress::Away(reason) if reason.contains("Not enough nodes")
            && reason.contains("lower the replication of the keyspace"))
    });
    let foreign = ScyllaOptions { scylla_ddl: true, ..options(cluster) };
    let ended = Running::start(foreign).wait_for_end();
    assert!(matches!(ended, OpenError::NoScylla(_)), "{ended}");
    assert_advice(&ended, &["tablets", "set store.scylla_ddl to false"]);
}

/// TLS and passwords.
#[test]
fn who_may_not_come_in_is_told_why() {
    if is_missing() {
        return;
    }
    let _turn = turn();
    let cluster =
        Cassandra::start_with(1, Setup { passwords: true, tls: true, ..Setup::default() });
    let folder = tempfile::tempdir().expect("a folder");
    let login = |username: &str, password: &str| {
        let password_file = folder.path().join(format!("{username}-{password}"));
        std::fs::write(&password_file, format!("{password}\n")).expect("it can be written");
        Some(Login { username: username.to_owned(), password_file })
    };
    let ended = |tls_ca: Option<PathBuf>, login: Option<Login>| {
        Running::start(ScyllaOptions { tls_ca, login, ..options(&cluster) }).wait_for_end()
    };
    let authority = || Some(cluster.authority());

    // It hangs up, as a dying node does; so this goes on, with a hint.
    Running::start(options(&cluster)).wait_until(|progress| {
        matches!(progress, Progress::Away(reason) if reason.contains("set store.tls_ca"))
    });
    let other = Cassandra::prepare(1, Setup { tls: true, ..Setup::default() });
    let untrusted = ended(Some(other.authority()), None);
    assert!(matches!(untrusted, OpenError::Certificate(_)), "{untrusted}");
    assert_advice(&untrusted, &["store.tls_ca", "authority"]);
    let nobody = ended(authority(), None);
    assert!(matches!(nobody, OpenError::PasswordMissing), "{nobody}");
    let wrong = ended(authority(), login("cassandra", "wrong"));
    assert!(matches!(wrong, OpenError::Password { .. }), "{wrong}");
    assert_advice(&wrong, &["cassandra", "store.password_file"]);
    assert!(!wrong.to_string().contains("wrong;"), "no password is told: {wrong}");
    let absent = Login { username: "u".to_owned(), password_file: folder.path().join("absent") };
    let absent = ended(authority(), Some(absent));
    assert!(matches!(absent, OpenError::PasswordFile { .. }), "{absent}");

    let right = ScyllaOptions {
        tls_ca: authority(),
        login: login("cassandra", "cassandra"),
        ..options(&cluster)
    };
    let running = Running::start(right);
    running.wait_until(is_serving);
    existing(&*running.store, 1);

    let builder = SessionBuilder::new().known_nodes(cluster.addresses());
    let builder = builder.user("cassandra", "cassandra").tls_context(Some(trust(&cluster)));
    let raw = block_on(builder.build()).expect("a session");
    change(&raw, "CREATE ROLE guest WITH PASSWORD = 'guest' AND LOGIN = true");
    let guest = ended(authority(), login("guest", "guest"));
    assert!(matches!(guest, OpenError::Permission(_)), "{guest}");
    assert_advice(&guest, &["guest", "grant it"]);
}

/// Needs no database.
#[test]
fn what_is_no_database_is_told() {
    let ended = |answer: &'static [u8]| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                // The request first, or the answer may be lost to a reset.
                let _ = stream.read(&mut [0; 9]).and_then(|_| stream.write_all(answer));
            }
        });
        Running::start(ScyllaOptions::new([address])).wait_for_end()
    };
    let web = ended(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert!(matches!(web, OpenError::NoCql(_)), "{web}");
    assert_advice(&web, &["9042", "store.tls_ca"]);
    let tls = ended(b"\x15\x03\x03\x00\x02\x02\x50 and a little more");
    assert!(matches!(tls, OpenError::NoCql(_)), "{tls}");
    let old = ended(b"\x83\x00\x00\x00\x00\x00\x00\x00\x00");
    assert!(matches!(old, OpenError::Version(_)), "{old}");
    assert_advice(&old, &["too old", "Cassandra 4"]);
}

fn trust(cluster: &Cassandra) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(cluster.authority());
    roots.add(certificate.expect("PEM")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_root_certificates(roots);
    Arc::new(config.with_no_client_auth())
}

/// With a keyspace of its own.
fn options(cluster: &Cassandra) -> ScyllaOptions {
    ScyllaOptions { keyspace: draw_keyspace(), ..ScyllaOptions::new(cluster.addresses()) }
}

fn is_serving(progress: &Progress) -> bool {
    *progress == Progress::Serving
}

fn is_away(progress: &Progress) -> bool {
    matches!(progress, Progress::Away(_))
}

fn assert_away<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Away(_))), "{result:?}");
}

fn assert_advice(error: &OpenError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
    assert!(!text.contains('\n'), "one line: {text:?}");
}

fn outbox_row(at: EpochMillis, random: u64) -> OutboxRow {
    OutboxRow { id: id_at(at, random), created_at: at }
}

/// A message that waits for a user who has no other.
fn message_of(id: BroadcastId) -> InboxWrite {
    InboxWrite {
        user: UserId::new(&format!("user of {id}")).expect("a user id"),
        broadcast: id,
        place: None,
        progress: Standing { attempt: 0, delivery: Delivery::Pending },
        at: now(),
        keep_until: EpochMillis(now().0 + 24 * 3_600_000),
    }
}

fn existing(store: &dyn Store, random: u64) -> BroadcastId {
    let content = broadcast(id_at(now(), random));
    let claim = block_on(store.claim_broadcast(&content));
    assert_eq!(claim.expect("serving"), Claim::Applied);
    let created = block_on(store.create_status(content.id, Status::Active));
    assert_eq!(created.expect("serving"), Claim::Applied);
    content.id
}

fn raw_session(cluster: &Cassandra) -> Session {
    let builder = SessionBuilder::new().known_nodes(cluster.addresses());
    block_on(builder.build()).expect("a session")
}

fn create_keyspace(keyspace: &str) -> String {
    format!(
        "CREATE KEYSPACE {keyspace} WITH replication = \
         {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}}"
    )
}

fn change(raw: &Session, text: &str) {
    let changed = block_on(raw.query_unpaged(text, ()));
    changed.unwrap_or_else(|error| panic!("{text}: {error}"));
}

fn texts(raw: &Session, text: &str) -> Vec<String> {
    let rows = block_on(raw.query_unpaged(text, ())).expect("it answers");
    let rows = rows.into_rows_result().expect("rows");
    rows.rows::<(String,)>().expect("texts").map(|row| row.expect("a text").0).collect()
}

/// Creators that go on until they are stopped.
struct Load {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    numbers: AtomicU64,
    done: AtomicUsize,
    made: Mutex<Vec<BroadcastId>>,
    errors: Mutex<Vec<String>>,
}

impl Load {
    fn start(running: &Running) -> Self {
        let shared = Arc::new(Shared::default());
        let tasks = (0..8)
            .map(|_| {
                let (shared, store) = (shared.clone(), running.store.clone());
                runtime().spawn(async move {
                    while !shared.is_stopped.load(Ordering::Relaxed) {
                        let number = shared.numbers.fetch_add(1, Ordering::Relaxed) % 4_096;
                        match create(&store, outbox_row(now(), number)).await {
                            Ok(id) => shared.made.lock().unwrap().push(id),
                            Err(error) => shared.errors.lock().unwrap().push(error),
                        }
                        shared.done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { shared, tasks }
    }

    fn wait_for_more(&self, count: usize) {
        let wanted = self.shared.done.load(Ordering::Relaxed) + count;
        let is_there = || self.shared.done.load(Ordering::Relaxed) >= wanted;
        wait::until_true("broadcasts are made", STORE_TIME * 2, is_there);
    }

    /// What was acknowledged, and every error.
    fn stop(self) -> (Vec<BroadcastId>, Vec<String>) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        for task in self.tasks {
            block_on(task).expect("no creator panics");
        }
        let made = std::mem::take(&mut *self.shared.made.lock().unwrap());
        let errors = std::mem::take(&mut *self.shared.errors.lock().unwrap());
        (made, errors)
    }

    /// The same, and there were no errors.
    fn end(self) -> Vec<BroadcastId> {
        let (made, errors) = self.stop();
        assert!(errors.is_empty(), "{} errors: {errors:#?}", errors.len());
        made
    }
}

/// As a node does it, with a message for a user of its own; an error names its step. Ids are the
/// creator's own, so no claim may be refused.
async fn create(store: &ScyllaStore, row: OutboxRow) -> Result<BroadcastId, String> {
    fn step<T>(name: &str, done: Result<T, StoreError>) -> Result<T, String> {
        done.map_err(|error| format!("{name}: {error}"))
    }
    let content = Broadcast { created_at: row.created_at, ..broadcast(row.id) };
    step("outbox", store.put_outbox(&row).await)?;
    let claim = step("claim", store.claim_broadcast(&content).await)?;
    assert_eq!(claim, Claim::Applied, "{}", row.id);
    let status = step("status", store.create_status(row.id, Status::Active).await)?;
    assert_eq!(status, Claim::Applied, "{}", row.id);
    if row.id.get().is_multiple_of(4) {
        for to in [Status::Failed, Status::Active] {
            let change = step("change", store.change_status(row.id, to).await)?;
            assert_eq!(change, Change::Done, "{}", row.id);
        }
    }
    let mut message = message_of(row.id);
    step("pending", store.write_inbox(std::slice::from_ref(&message)).await)?;
    message.progress.delivery = Delivery::Delivered;
    step("delivered", store.write_inbox(std::slice::from_ref(&message)).await)?;
    step("removal from the outbox", store.remove_outbox(&row).await)?;
    let read = step("reading", store.broadcast(row.id).await)?;
    assert!(read.is_some_and(|read| read.broadcast == content), "{} is not as written", row.id);
    Ok(row.id)
}
