//! The roof: puts the rooms together, starts them, and ends them in order. Decides nothing else.

mod backends;
mod cli;
mod drain;
mod owner;
mod shards;

use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use backends::Backends;
use clap::Parser as _;
use drain::Departure;
use owner::{owner_of, redriver_of, start_owner};
use shards::{Places, Shards};

use crate::admin::{AdminState, OpenCalls, PublicCalls, serve_admin};
use crate::base::{LogIdentity, LogShape};
use crate::control::{
    ControlCounters, Creator, Desks, EndRelay, Ender, Expiry, Follower, FollowerParts, Hearing,
    KeptParts, KeptStore, RedriveCounters, Relay, Removals, Signals, Threads, Unfinished,
    control_topic, inboxes, rereads, run_reports,
};
use crate::edge::listen;
use crate::ingest::kafka::OptionsError;
use crate::ingest::{Ingest, Progress};
use crate::lane::{Doorbell, FromShard, Receiver, Sender, ToShard, lane};
use crate::limits;
use crate::ops::config::{self, Config};
use crate::ops::health::{Health, Part};
use crate::ops::metrics::{Metrics, Sources};
use crate::owner::OwnerCounters;
use crate::ports::{Clock, Descriptors, Log, SystemClock};
use crate::shard::{Cores, CoresError, ShardError, pin};
use crate::store::embedded::OpenError;
use crate::wire::control::NodeStart;

/// A configuration that is wrong.
const EXIT_CONFIG: u8 = 2;
const CONTROL_THREADS: usize = 2;
/// Beyond what shards take to drain: for answers on their way and the last commit.
const STOP_TIME: Duration = Duration::from_secs(2);

/// Why a node could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("{key} = {address}: {source}{}", advice(.source))]
    Listen { key: &'static str, address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Kafka(#[from] OptionsError),
    #[error(transparent)]
    Cores(#[from] CoresError),
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("the process can't get what it needs from the system: {0}")]
    System(#[from] std::io::Error),
    #[error("{0}")]
    Ended(String),
    #[error("ended by a second signal")]
    SecondSignal,
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; end what listens there, or choose another port",
        std::io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
        _ => "",
    }
}

/// Why the node ends.
enum Ending {
    Signal,
    /// A part that runs as long as the node does has ended.
    Part(String),
    /// One of the shards has told its streams to go, and all are gone.
    ShardDrained,
    ShardsEnded,
}

/// The whole program.
pub fn main() -> ExitCode {
    let line = cli::CommandLine::parse();
    let (written, config) = match config::load(&line.inputs()) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if matches!(line.command, Some(cli::Command::CheckConfig)) {
        print!("{}", config::to_toml(&written));
        return ExitCode::SUCCESS;
    }
    start_logging(&config);
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corecast: {error}");
            match error {
                BootError::Cores(_) => ExitCode::from(EXIT_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn start_logging(config: &Config) {
    // What libraries say of their own affairs is for who looks for it; glommio warns of buffers
    // for files that it can't pin, and nothing uses them.
    let filter = match config.output_level.as_str() {
        "info" => "info,fjall=warn,glommio=error,lsm_tree=warn,rskafka=warn",
        level => level,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // Fails only if a subscriber is set already, and then log lines go there.
    let _ = if config.output_json { builder.json().try_init() } else { builder.try_init() };
}

/// A node from start to end.
fn serve(mut config: Config) -> Result<(), BootError> {
    let cores = Cores::plan(&config.shards)?;
    let descriptors = Descriptors::take_all().of_shard(cores.shards.len());
    bound_streams(&mut config, &descriptors);
    let (public_address, public) = bind("public.listen", config.public_listen, cores.shards.len())?;
    let (admin_address, mut admin) = bind("admin.listen", config.admin_listen, 1)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let control = cores.control.clone();
    let threads = Threads::start(CONTROL_THREADS, move || pin(&control))?;
    let (endings, ended) = mpsc::channel();
    // Before what takes time: a process without a handler is killed, or as a container's first one
    // goes on as if nothing had been said.
    let is_open = Arc::<AtomicBool>::default();
    hear_signals(&threads, &endings, is_open.clone())?;
    let backends = Backends::open(&config, &clock)?;
    is_open.store(true, Ordering::Relaxed);
    let (log, store) = (backends.log.clone(), backends.store.clone());
    let health = Health::starting();

    let creator = Arc::new(Creator {
        log: log.clone(),
        store: store.clone(),
        clock: clock.clone(),
        node: config.node_id.clone(),
        retention: config.retention,
        unfinished: Unfinished::default(),
        fail_next: AtomicBool::new(false),
    });
    let log_lag = Arc::new(AtomicU64::new(0));
    let owner_counters = Arc::<OwnerCounters>::default();
    let report_bell = Arc::new(Doorbell::new()?);
    let (report, reports) =
        lane("shard_to_control", limits::lane::SHARD_TO_CONTROL, report_bell.clone());
    let shape = unidentified(config.log.partitions());
    let heads_max = descriptors.heads;
    let places = Places { cores: &cores, listeners: public, heads_max };
    let shards = Shards::start(&config, shape, places, &report, &endings)?;

    let mut lanes = shards.refusals;
    lanes.push((report.name(), report.refusals()));
    let (probes, runtimes) = (shards.probes, shards.runtimes);
    let notes_dropped = Arc::<AtomicU64>::default();
    let records_reread = Arc::<AtomicU64>::default();
    let control_counters = Arc::<ControlCounters>::default();
    let redrive_counters = Arc::<RedriveCounters>::default();
    let owner = owner_counters.clone();
    let sources = Sources {
        shards: probes,
        runtimes,
        log_lag: log_lag.clone(),
        owner,
        notes_dropped: notes_dropped.clone(),
        records_reread: records_reread.clone(),
        control: control_counters.clone(),
        redrive: redrive_counters.clone(),
        calls: Arc::default(),
        lanes,
    };
    let lanes = shards.lanes;
    let kept = KeptStore::new(KeptParts {
        log: log.clone(),
        ownership: backends.ownership.clone(),
        inbox: backends.inbox.clone(),
        clock: clock.clone(),
        retention: config.retention,
        messages_max: limits::keeping::BACKLOG_MESSAGES_MAX,
    });
    let (desk, inboxes) = inboxes(kept, lanes.clone(), notes_dropped);
    let health_of_inboxes = health.clone();
    threads.spawn(inboxes.run(move || say_if_ready(health_of_inboxes.found(Part::Inboxes))));
    let node = NodeStart { node: config.node_id.clone(), start: uuid::Uuid::new_v4() };
    let (control, follower) = control_topic(FollowerParts {
        topic: backends.control.clone(),
        endings: backends.endings.clone(),
        inbox: backends.inbox.clone(),
        clock: clock.clone(),
        node: node.clone(),
        orders: shards.orders,
        desk: desk.clone(),
        ended_kept: config.ended_kept,
        counters: control_counters,
    });
    start_follower(&threads, follower, health.clone());
    let ender = Arc::new(Ender {
        creator: creator.clone(),
        endings: backends.endings.clone(),
        inbox: backends.inbox.clone(),
        desk: control.clone(),
        unfinished: Unfinished::default(),
        removals: Removals::default(),
    });
    let calls = Arc::<OpenCalls>::default();
    let state = AdminState {
        creator: creator.clone(),
        ender: ender.clone(),
        redriver: Arc::new(redriver_of(&config, &backends, clock.clone(), redrive_counters)),
        store,
        clock: clock.clone(),
        health: health.clone(),
        metrics: Arc::new(Metrics::new(sources)),
        allow_anonymous: config.allow_anonymous,
        is_testing: config.is_testing,
        room: Arc::default(),
        calls: calls.clone(),
    };
    if let Some(admin) = admin.pop() {
        let (rereads, rereading) = rereads(log.clone(), lanes.clone(), records_reread);
        threads.spawn(rereading.run());
        let desks = Desks { inboxes: desk.clone(), rereads, control };
        let reports = Reports { reports, bell: report_bell, desks };
        start_control(&threads, admin, state, reports, lanes.len(), &endings);
    }
    let owner = owner_of(&config, &backends, (clock, node), owner_counters);
    let leaver = start_owner(&threads, &backends, owner, &health, config.is_owner);
    start_relays(&threads, &backends, creator, ender);
    start_ingest(&threads, log, lanes.clone(), log_lag, health.clone(), &endings);
    say_hello(public_address, admin_address);
    if config.is_testing {
        tracing::warn!("testing.enabled: whoever may create can make messages fail");
    }
    backends.watch(&threads, &health, &endings);

    let departure = Departure {
        threads: &threads,
        ended: &ended,
        shards: &lanes,
        window: config.drain_window,
        health: &health,
        desk: &desk,
        reports: &report,
        calls: &calls,
        leaver,
        is_alone: backends.is_alone,
    };
    let ended = run_until_signal(&ended).and_then(|()| departure.run());
    drop(lanes);
    threads.stop(STOP_TIME);
    ended
}

/// A stream is a file descriptor.
fn bound_streams(config: &mut Config, descriptors: &Descriptors) {
    if descriptors.streams < config.streams_max {
        config.streams_max = descriptors.streams;
        let (streams, files) = (descriptors.streams, descriptors.all);
        tracing::info!(
            "room for {streams} streams a shard in {files} file descriptors (ulimit -Hn)"
        );
    }
}

/// The log as configured; which one it is the shard hears once the log has answered.
fn unidentified(partitions: u16) -> LogShape {
    let identity = LogIdentity([0; 3]);
    LogShape { identity, selected_partitions: partitions, group_partitions: partitions }
}

/// So many listeners on one address, and which that is.
fn bind(
    key: &'static str,
    address: SocketAddr,
    count: usize,
) -> Result<(SocketAddr, Vec<TcpListener>), BootError> {
    let failed = |source| BootError::Listen { key, address, source };
    let listeners = listen(address, count).map_err(failed)?;
    let bound = listeners.first().map_or(Ok(address), TcpListener::local_addr).map_err(failed)?;
    Ok((bound, listeners))
}

/// What the shards report, and who takes it.
struct Reports {
    reports: Receiver<FromShard>,
    bell: Arc<Doorbell>,
    desks: Desks,
}

/// Starts the admin API and the shards' reports.
fn start_control(
    threads: &Threads,
    admin: TcpListener,
    state: AdminState,
    reports: Reports,
    shards: usize,
    endings: &mpsc::Sender<Ending>,
) {
    let health = state.health.clone();
    // Each shard says once that it serves.
    let missing = AtomicUsize::new(shards);
    let serving = move |_shard| {
        if missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            say_if_ready(health.found(Part::Shards));
        }
    };
    let ending = endings.clone();
    let drained = move |_shard| {
        // Nobody listens any more once the node ends.
        let _ = ending.send(Ending::ShardDrained);
    };
    let calls = PublicCalls::new(state.clone(), Box::new(serving), Box::new(drained));
    let calls = Arc::new(calls);
    let ending = endings.clone();
    threads.spawn(async move {
        let Reports { reports, bell, desks } = reports;
        let ended = run_reports(reports, bell, calls, desks).await;
        let _ = ending.send(Ending::Part(format!("the shards' reports stopped: {ended:?}")));
    });
    let ending = endings.clone();
    threads.spawn(async move {
        let ended = serve_admin(admin, state).await;
        let _ = ending.send(Ending::Part(format!("the admin listener stopped: {ended:?}")));
    });
}

/// Tells of each signal. The second one ends a node that is still being opened, which nothing else
/// would interrupt; it is safe at any time, as a crash is.
fn hear_signals(
    threads: &Threads,
    endings: &mpsc::Sender<Ending>,
    is_open: Arc<AtomicBool>,
) -> Result<(), BootError> {
    let mut signals = threads.block_on(async { Signals::listen() })?;
    let ending = endings.clone();
    threads.spawn(async move {
        for count in 1.. {
            signals.next().await;
            if count > 1 && !is_open.load(Ordering::Relaxed) {
                eprintln!("corecast: {}", BootError::SecondSignal);
                std::process::exit(1);
            }
            if ending.send(Ending::Signal).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Starts to follow the control topic, and tells health whether it is heard.
fn start_follower(threads: &Threads, follower: Follower, health: Health) {
    threads.spawn(follower.run(move |hearing| match hearing {
        Hearing::Heard => say_if_ready(health.found(Part::Control)),
        Hearing::Fenced => {
            tracing::warn!("messages wait: the control topic is not heard");
            health.lost(Part::Control, "the control topic is not heard");
        }
    }));
}

/// Starts what publishes and ends what was left in the middle, and what ends broadcasts at their
/// time.
fn start_relays(threads: &Threads, backends: &Backends, creator: Arc<Creator>, ender: Arc<Ender>) {
    let (ownership, inbox) = (backends.ownership.clone(), backends.inbox.clone());
    let is_alone = backends.is_alone;
    threads.spawn(Relay { creator, ownership, inbox, is_alone }.run());
    let (ownership, log) = (backends.ownership.clone(), backends.log.clone());
    threads.spawn(Expiry { ender: ender.clone(), ownership, log }.run());
    threads.spawn(EndRelay { ender, is_alone }.run());
}

fn start_ingest(
    threads: &Threads,
    log: Arc<dyn Log>,
    shards: Vec<Sender<ToShard>>,
    lag: Arc<AtomicU64>,
    health: Health,
    endings: &mpsc::Sender<Ending>,
) {
    let progress = move |progress| match progress {
        Progress::Reading => say_if_ready(health.found(Part::Log)),
        Progress::Away(reason) | Progress::Failed(reason) => health.lost(Part::Log, reason),
    };
    let ingest = Ingest { log, shards, progress: Box::new(progress), lag };
    let ending = endings.clone();
    threads.spawn(async move {
        if let Err(error) = ingest.run().await {
            let _ = ending.send(Ending::Part(format!("the log can't be read: {error}")));
        }
    });
}

/// One line a listener, and what to try them with.
fn say_hello(public: SocketAddr, admin: SocketAddr) {
    say(&format!(
        "public listener on http://{public}\nadmin listener on http://{admin}\n\
         try: curl -N 'http://{public}/api/user/sse/connect?userId=alice'\n\
         and: curl -H 'content-type: application/json' \
         -d '{{\"content\":\"Hello\",\"targetType\":\"ALL\"}}' \
         http://{admin}/api/admin/broadcasts"
    ));
}

/// Says `ready` the first time that the node is.
fn say_if_ready(became_ready: bool) {
    static SAID: std::sync::Once = std::sync::Once::new();
    if became_ready {
        SAID.call_once(|| say("ready"));
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    // Without anybody who reads it, nobody misses it.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn run_until_signal(ended: &mpsc::Receiver<Ending>) -> Result<(), BootError> {
    match ended.recv() {
        Ok(Ending::Signal) => Ok(()),
        Ok(Ending::Part(reason)) => Err(BootError::Ended(reason)),
        Ok(Ending::ShardDrained | Ending::ShardsEnded) | Err(_) => {
            Err(BootError::Ended("the shards stopped without being told".to_owned()))
        }
    }
}
