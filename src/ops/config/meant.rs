//! Configuration as meant: types, ranges, and what goes together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::kafka;
use super::written::{self, Shards, Written};
use crate::domain::RingLimits;
use crate::ingest::kafka::{KafkaGroups, KafkaOptions};
use crate::limits;
use crate::ports::LogNames;
use crate::shard::{RuntimeKind, RuntimeWanted, ShardsWanted};
use crate::store::scylla::{Login, ScyllaOptions};

/// A configuration that makes sense.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub node_id: String,
    pub shards: ShardsWanted,
    pub runtime: RuntimeWanted,
    pub data_dir: PathBuf,
    /// Takes part in owning partitions.
    pub is_owner: bool,
    pub public_listen: SocketAddr,
    pub admin_listen: SocketAddr,
    pub log: LogConfig,
    pub store: StoreConfig,
    pub allow_anonymous: bool,
    pub heartbeat: Duration,
    /// `None`: streams have no bound.
    pub max_age: Option<Duration>,
    pub drain_window: Duration,
    pub retention: Duration,
    /// How long after its end the log may still bring a broadcast's messages.
    pub ended_kept: Duration,
    /// Records may ask for their failure.
    pub is_testing: bool,
    /// An older producer's group event of a broadcast that the store does not know is for all.
    pub unknown_is_for_all: bool,
    pub streams_max: usize,
    pub ring: RingLimits,
    pub write_progress: Duration,
    pub output_json: bool,
    pub output_level: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogConfig {
    Embedded { partitions: u16 },
    Kafka { options: Box<KafkaOptions>, groups: KafkaGroups },
}

impl LogConfig {
    /// Of each topic.
    pub const fn partitions(&self) -> u16 {
        match self {
            Self::Embedded { partitions } => *partitions,
            Self::Kafka { options, .. } => options.partitions,
        }
    }

    /// As dead letters name what they come from.
    pub fn names(&self) -> LogNames {
        match self {
            Self::Embedded { .. } => LogNames::default(),
            Self::Kafka { options, groups } => LogNames {
                topics: [options.topic_selected.clone(), options.topic_group.clone()],
                consumer_groups: [groups.selected.clone(), groups.group.clone()],
            },
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreConfig {
    Embedded,
    Scylla(ScyllaOptions),
}

const HOUR: u64 = 3_600;

/// Turns what is written into what is meant. Reports every problem as (key, message).
pub(super) fn mean(written: &Written, report: &mut dyn FnMut(&str, String)) -> Option<Config> {
    let mut problems = 0;
    let mut report = |key: &str, message: String| {
        problems += 1;
        report(key, message);
    };
    refuse_unsupported(written, &mut report);
    check_ranges(written, &mut report);
    let public_listen = address("public.listen", &written.public.listen, &mut report);
    let admin_listen = address("admin.listen", &written.admin.listen, &mut report);
    for (key, listen) in [("public.listen", public_listen), ("admin.listen", admin_listen)] {
        if listen.is_some_and(|listen| !listen.ip().is_loopback()) && !written.auth.allow_anonymous
        {
            report(
                key,
                "is not on loopback while auth.mode = \"none\" believes everybody; listen on \
                 127.0.0.1, or set auth.allow_anonymous = true"
                    .to_owned(),
            );
        }
    }
    if let (Some(public), Some(admin)) = (public_listen, admin_listen)
        && is_one_place(public, admin)
    {
        let message = "must have a port of its own: public.listen has this one";
        report("admin.listen", message.to_owned());
    }
    let shards = shards(&written.node.shards, &mut report);
    let store = store(&written.store, &mut report);
    let node_id = set(&written.node.id).map_or_else(draw_node_id, str::to_owned);
    if !crate::domain::access::is_name(&node_id) {
        report("node.id", "must be at most 256 bytes without control characters".to_owned());
    }
    let log = match written.log.kind.as_str() {
        "kafka" => kafka::mean(&written.log, &node_id, &mut report)
            .map(|(options, groups)| LogConfig::Kafka { options: Box::new(options), groups }),
        _ => {
            kafka::refuse(&written.log, &mut report);
            if !written.node.owner {
                let message = "the embedded log has no other owner than this node; leave it true";
                report("node.owner", message.to_owned());
            }
            Some(LogConfig::Embedded { partitions: written.log.partitions })
        }
    };
    let ended_kept = match &log {
        Some(LogConfig::Kafka { options, .. }) => options.retention + limits::control::ENDED_SLACK,
        _ => limits::control::ENDED_KEPT_BY_ALL,
    };
    let max_age = Some(Duration::from_secs(u64::from(written.stream.max_age_s)));
    let config = Config {
        node_id,
        shards: shards?,
        runtime: runtime(&written.node.runtime),
        data_dir: PathBuf::from(&written.node.data_dir),
        is_owner: written.node.owner,
        public_listen: public_listen?,
        admin_listen: admin_listen?,
        log: log?,
        store,
        allow_anonymous: written.auth.allow_anonymous,
        heartbeat: Duration::from_secs(u64::from(written.stream.heartbeat_s)),
        max_age: max_age.filter(|age| !age.is_zero()),
        drain_window: Duration::from_secs(u64::from(written.drain.window_s)),
        retention: Duration::from_secs(u64::from(written.broadcast.retention_days) * 24 * HOUR),
        ended_kept,
        is_testing: written.testing.enabled,
        unknown_is_for_all: written.log.legacy_group_audience == "all",
        streams_max: usize::try_from(written.limits.streams_max).ok()?,
        ring: RingLimits {
            frames: usize::try_from(written.limits.ring_frames_max).ok()?,
            bytes: usize::try_from(written.limits.ring_bytes_max).ok()?,
        },
        write_progress: Duration::from_secs(u64::from(written.limits.write_progress_s)),
        output_json: written.output.format == "json",
        output_level: written.output.level.clone(),
    };
    (problems == 0).then_some(config)
}

/// Keys that are known, and values of them that this release can't act on.
fn refuse_unsupported(written: &Written, report: &mut impl FnMut(&str, String)) {
    let mut one_of = |key: &str, value: &str, supported: &[&str], later: &[&str]| {
        if later.contains(&value) {
            let supported = supported.join("\" or \"");
            report(key, format!("is not supported by this release, which knows \"{supported}\""));
        } else if !supported.contains(&value) {
            let all: Vec<&str> = supported.iter().chain(later).copied().collect();
            report(key, format!("must be one of \"{}\"", all.join("\", \"")));
        }
    };
    one_of("log.kind", &written.log.kind, &["embedded", "kafka"], &[]);
    one_of("store.kind", &written.store.kind, &["embedded", "scylla"], &[]);
    one_of("auth.mode", &written.auth.mode, &["none"], &["jwt"]);
    one_of("node.runtime", &written.node.runtime, &["auto", "glommio", "epoll"], &[]);
    let deliveries = &written.broadcast.group_deliveries;
    one_of("broadcast.group_deliveries", deliveries, &["counted"], &["recorded"]);
    let legacy = &written.log.legacy_group_audience;
    one_of("log.legacy_group_audience", legacy, &["lookup", "all"], &[]);
    one_of("output.format", &written.output.format, &["text", "json"], &[]);
    let levels = ["error", "warn", "info", "debug", "trace"];
    one_of("output.level", &written.output.level, &levels, &[]);
}

fn check_ranges(written: &Written, report: &mut impl FnMut(&str, String)) {
    use limits::{cursor, shard};
    let mut within = |key: &str, value: u64, least: u64, most: u64| {
        if value < least || value > most {
            report(key, format!("must be {least} to {most}"));
        }
    };
    // More would let a cursor exceed 256 characters.
    let partitions = cursor::GROUP_PARTITIONS_MAX as u64;
    within("log.partitions", u64::from(written.log.partitions), 1, partitions);
    within("stream.heartbeat_s", u64::from(written.stream.heartbeat_s), 1, 120);
    within("drain.window_s", u64::from(written.drain.window_s), 0, 3_600);
    within("broadcast.retention_days", u64::from(written.broadcast.retention_days), 1, 3_650);
    let lowered = &written.limits;
    within("limits.streams_max", lowered.streams_max, 1, shard::STREAMS_MAX as u64);
    within("limits.ring_frames_max", lowered.ring_frames_max, 1, shard::RING_FRAMES_MAX as u64);
    within("limits.ring_bytes_max", lowered.ring_bytes_max, 1, shard::RING_BYTES_MAX as u64);
    let progress = shard::WRITE_PROGRESS.as_secs();
    within("limits.write_progress_s", u64::from(lowered.write_progress_s), 1, progress);
    let age = u64::from(written.stream.max_age_s);
    let (least, most) = (shard::MAX_AGE_MIN.as_secs(), shard::MAX_AGE_MAX.as_secs());
    if age > 0 && !(least..=most).contains(&age) {
        report("stream.max_age_s", format!("must be {least} to {most}, or 0 for no bound"));
    }
}

fn address(key: &str, text: &str, report: &mut impl FnMut(&str, String)) -> Option<SocketAddr> {
    let parsed = text.replace("localhost:", "127.0.0.1:").parse().ok();
    if parsed.is_none() {
        report(key, "must be ADDRESS:PORT, such as 127.0.0.1:8080 or [::1]:8080".to_owned());
    }
    parsed
}

/// Whether two listeners get in each other's way.
fn is_one_place(a: SocketAddr, b: SocketAddr) -> bool {
    let is_any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || is_any)
}

/// Other words have been refused before.
fn runtime(word: &str) -> RuntimeWanted {
    let kind = RuntimeKind::ALL.into_iter().find(|kind| kind.name() == word);
    kind.map_or(RuntimeWanted::Auto, RuntimeWanted::Only)
}

fn shards(shards: &Shards, report: &mut impl FnMut(&str, String)) -> Option<ShardsWanted> {
    let most = usize::from(limits::shard::SHARDS_MAX);
    let wanted = match shards {
        Shards::Word(word) if word == "auto" => Ok(ShardsWanted::Auto),
        Shards::Word(word) => cpus(word),
        Shards::Number(0) => Err("a node has at least one shard".to_owned()),
        Shards::Number(number) => Ok(ShardsWanted::Count(*number)),
        Shards::Cpus(cpus) => Ok(ShardsWanted::Cpus(cpus.clone())),
    };
    let wanted = wanted.and_then(|wanted| match &wanted {
        ShardsWanted::Cpus(cpus) if cpus.is_empty() => Err("names no CPU".to_owned()),
        ShardsWanted::Cpus(cpus) if cpus.iter().any(|cpu| *cpu >= limits::shard::CPUS_MAX) => {
            Err(format!("CPUs are numbered 0 to {}", limits::shard::CPUS_MAX - 1))
        }
        ShardsWanted::Cpus(cpus) if cpus.len() > most => Err(format!("at most {most} CPUs")),
        ShardsWanted::Count(count) if usize::from(*count) > most => Err(format!("at most {most}")),
        ShardsWanted::Cpus(cpus) => match twice(cpus) {
            Some(cpu) => Err(format!("names CPU {cpu} twice")),
            None => Ok(wanted),
        },
        ShardsWanted::Auto | ShardsWanted::Count(_) => Ok(wanted),
    });
    wanted.map_err(|message| report("node.shards", message)).ok()
}

/// A list of CPUs and ranges of them, such as `0,2-5`.
fn cpus(text: &str) -> Result<ShardsWanted, String> {
    let message = || "must be \"auto\", a number from 1 on, or CPUs such as \"0,2-5\"".to_owned();
    let cpu = |text: &str| {
        let cpu = text.trim().parse::<usize>().ok().filter(|cpu| *cpu < limits::shard::CPUS_MAX);
        cpu.ok_or_else(message)
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (cpu(first)?, cpu(last)?);
        if first > last {
            return Err(message());
        }
        cpus.extend(first..=last);
    }
    Ok(ShardsWanted::Cpus(cpus))
}

fn twice(cpus: &[usize]) -> Option<usize> {
    let mut seen = std::collections::BTreeSet::new();
    cpus.iter().copied().find(|cpu| !seen.insert(*cpu))
}

fn store(written: &written::Store, report: &mut impl FnMut(&str, String)) -> StoreConfig {
    if written.kind != "scylla" {
        let defaults = written::Store::default();
        for (key, is_default) in [
            ("store.nodes", written.nodes.is_empty()),
            ("store.keyspace", written.keyspace == defaults.keyspace),
            ("store.replication", written.replication == defaults.replication),
            ("store.datacenter", written.datacenter.is_empty()),
            ("store.username", written.username.is_empty()),
            ("store.password_file", written.password_file.is_empty()),
            ("store.tls_ca", written.tls_ca.is_empty()),
            ("store.scylla_ddl", !written.scylla_ddl),
        ] {
            if !is_default {
                report(key, "has an effect only with store.kind = \"scylla\"".to_owned());
            }
        }
        return StoreConfig::Embedded;
    }
    if written.nodes.is_empty() {
        report("store.nodes", "must name a node, such as [\"10.0.0.1:9042\"]".to_owned());
    }
    if written.nodes.iter().any(|node| !is_host_and_port(node)) {
        report("store.nodes", "must be a list of HOST:PORT, such as 10.0.0.1:9042".to_owned());
    }
    if !is_keyspace(&written.keyspace) {
        let rule = "must be 1 to 48 lower-case letters, digits or underscores, a letter first";
        report("store.keyspace", rule.to_owned());
    }
    if written.replication == 0 {
        report("store.replication", "must be 1 or more; 3 outlives the loss of a node".to_owned());
    }
    let login = match (set(&written.username), set(&written.password_file)) {
        (Some(username), Some(password_file)) => {
            let username = username.to_owned();
            Some(Login { username, password_file: PathBuf::from(password_file) })
        }
        (None, None) => None,
        (Some(_), None) => {
            report("store.username", "needs store.password_file".to_owned());
            None
        }
        (None, Some(_)) => {
            report("store.password_file", "needs store.username".to_owned());
            None
        }
    };
    check_file("store.password_file", &written.password_file, report);
    check_file("store.tls_ca", &written.tls_ca, report);
    StoreConfig::Scylla(ScyllaOptions {
        nodes: written.nodes.clone(),
        keyspace: written.keyspace.clone(),
        replication: written.replication,
        datacenter: set(&written.datacenter).map(str::to_owned),
        login,
        tls_ca: set(&written.tls_ca).map(PathBuf::from),
        scylla_ddl: written.scylla_ddl,
    })
}

/// An empty text is a value that is not set.
fn set(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A file that is named can be read, or the start would fail over it later.
pub(super) fn check_file(key: &str, path: &str, report: &mut impl FnMut(&str, String)) {
    let Some(path) = set(path) else { return };
    let opened = std::fs::File::open(path).and_then(|file| file.metadata());
    match opened {
        Ok(found) if found.is_dir() => report(key, format!("{path} is a directory, not a file")),
        Ok(_) => {}
        Err(error) => report(key, format!("{path} can't be read: {error}")),
    }
}

fn is_host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

/// What stands in statements without quotes.
fn is_keyspace(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= 48
        && name.bytes().all(is_inner)
        && name.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
}

/// The host's name and a random part.
fn draw_node_id() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{host}-{}", &random[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every (key, message) about these values of the section `store`.
    fn complaints(section: &str) -> Vec<String> {
        let written: written::Store = toml::from_str(section).expect("TOML");
        let mut said = Vec::new();
        store(&written, &mut |key: &str, message: String| said.push(format!("{key}: {message}")));
        said
    }

    #[test]
    fn the_store_is_checked() {
        let scylla = "kind = \"scylla\"\nnodes = [\"db-1:9042\", \"[::1]:9042\"]\n";
        assert!(complaints("").is_empty() && complaints(scylla).is_empty());
        for (line, key) in [
            ("nodes = [\"db\"]", "store.nodes"),
            ("nodes = [\":9042\"]", "store.nodes"),
            ("nodes = []", "store.nodes"),
            ("keyspace = \"Core\"", "store.keyspace"),
            ("keyspace = \"\"", "store.keyspace"),
            ("keyspace = \"a;b\"", "store.keyspace"),
            ("keyspace = \"1a\"", "store.keyspace"),
            ("replication = 0", "store.replication"),
            ("username = \"u\"", "store.username"),
            ("password_file = \"Cargo.toml\"", "store.password_file"),
            ("tls_ca = \"absent.pem\"", "store.tls_ca"),
            ("tls_ca = \"src\"", "store.tls_ca"),
            ("username = \"u\"\npassword_file = \"absent\"", "store.password_file"),
        ] {
            let section = if line.starts_with("nodes") {
                format!("kind = \"scylla\"\n{line}")
            } else {
                format!("{scylla}{line}")
            };
            let said = complaints(&section);
            assert!(said.len() == 1 && said[0].starts_with(key), "{line}: {said:?}");
        }
        for line in ["nodes = [\"db:9042\"]", "keyspace = \"k\"", "scylla_ddl = true"] {
            let said = complaints(line);
            assert!(said.len() == 1 && said[0].contains("only with store.kind"), "{said:?}");
        }
    }
}
