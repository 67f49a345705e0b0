//! The keys of `[log]` that say where Kafka is and who the node is to it.

use std::path::PathBuf;
use std::time::Duration;

use super::meant::check_file;
use super::written::{self, Written};
use crate::base::Topic;
use crate::ingest::kafka::{KafkaGroups, KafkaOptions, SaslLogin, SaslMechanism, TlsFiles};

/// As Kafka has it, and room for that of the dead letters.
const TOPIC_NAME_BYTES_MAX: usize = 249 - Topic::DEAD_SUFFIX.len();
/// A hundred years: beyond it a retention is a mistake.
const RETENTION_HOURS_MAX: u32 = 876_000;
const FETCH_PACE_MS_MAX: u32 = 10_000;

/// `None` once a problem was reported.
pub(super) fn mean(
    log: &written::Log,
    node_id: &str,
    report: &mut impl FnMut(&str, String),
) -> Option<(KafkaOptions, KafkaGroups)> {
    let mut is_right = true;
    let mut report = |key: &str, message: &str| {
        is_right = false;
        report(key, message.to_owned());
    };
    if log.brokers.is_empty() {
        report("log.brokers", "must name a broker, such as [\"127.0.0.1:9092\"]");
    }
    if !log.brokers.iter().all(|broker| is_address(broker)) {
        report("log.brokers", "each must be HOST:PORT, such as 127.0.0.1:9092");
    }
    for (key, name) in [
        ("log.topic_selected", &log.topic_selected),
        ("log.topic_group", &log.topic_group),
        ("log.topic_control", &log.topic_control),
    ] {
        if !is_topic(name) {
            report(key, "must be 1 to 245 letters, digits, dots, underscores and hyphens");
        }
    }
    if log.topic_selected == log.topic_group {
        report("log.topic_group", "must be another topic than log.topic_selected");
    }
    let dead = |name: &str| format!("{name}{}", Topic::DEAD_SUFFIX);
    if dead(&log.topic_selected) == log.topic_group || dead(&log.topic_group) == log.topic_selected
    {
        report("log.topic_group", "must be another topic than that of the other's dead letters");
    }
    let others = [&log.topic_selected, &log.topic_group];
    if others.iter().any(|name| [(*name).clone(), dead(name)].contains(&log.topic_control)) {
        report("log.topic_control", "must be another topic than the others");
    }
    let groups = [
        ("log.consumer_group_selected", &log.consumer_group_selected),
        ("log.consumer_group_group", &log.consumer_group_group),
        ("log.consumer_group_dead_letters", &log.consumer_group_dead_letters),
    ];
    for (at, (key, name)) in groups.iter().enumerate() {
        if !crate::domain::access::is_name(name) {
            report(key, "must be 1 to 256 bytes without control characters");
        }
        if groups[..at].iter().any(|(_, other)| other == name) {
            report(key, "must be another than the other consumer groups");
        }
    }
    if !(1..=i16::MAX as u16).contains(&log.replication) {
        report("log.replication", "must be 1 to 32767");
    }
    for (key, hours) in [
        ("log.retention_hours", log.retention_hours),
        ("log.dead_letter_retention_hours", log.dead_letter_retention_hours),
    ] {
        if !(1..=RETENTION_HOURS_MAX).contains(&hours) {
            report(key, "must be 1 to 876000");
        }
    }
    if log.fetch_pace_ms > FETCH_PACE_MS_MAX {
        report("log.fetch_pace_ms", "must be 0 to 10000");
    }
    for (key, path) in [
        ("log.tls_ca", &log.tls_ca),
        ("log.tls_cert", &log.tls_cert),
        ("log.tls_key", &log.tls_key),
        ("log.sasl_password_file", &log.sasl_password_file),
    ] {
        check_file(key, path, &mut |key, message| report(key, &message));
    }
    let tls = tls(log, &mut report);
    let sasl = sasl(log, &mut report);
    let options = KafkaOptions {
        brokers: log.brokers.clone(),
        topic_selected: log.topic_selected.clone(),
        topic_group: log.topic_group.clone(),
        topic_control: log.topic_control.clone(),
        partitions: log.partitions,
        replication: log.replication,
        retention: hours(log.retention_hours),
        dead_retention: hours(log.dead_letter_retention_hours),
        fetch_pace: Duration::from_millis(u64::from(log.fetch_pace_ms)),
        client_id: node_id.to_owned(),
        tls,
        sasl,
    };
    let groups = KafkaGroups {
        selected: log.consumer_group_selected.clone(),
        group: log.consumer_group_group.clone(),
        dead_letters: log.consumer_group_dead_letters.clone(),
    };
    is_right.then_some((options, groups))
}

/// Reports what means nothing without Kafka.
pub(super) fn refuse(log: &written::Log, report: &mut impl FnMut(&str, String)) {
    let defaults = Written::default().log;
    for (key, is_default) in [
        ("log.brokers", log.brokers == defaults.brokers),
        ("log.topic_selected", log.topic_selected == defaults.topic_selected),
        ("log.topic_group", log.topic_group == defaults.topic_group),
        ("log.topic_control", log.topic_control == defaults.topic_control),
        (
            "log.consumer_group_selected",
            log.consumer_group_selected == defaults.consumer_group_selected,
        ),
        ("log.consumer_group_group", log.consumer_group_group == defaults.consumer_group_group),
        (
            "log.consumer_group_dead_letters",
            log.consumer_group_dead_letters == defaults.consumer_group_dead_letters,
        ),
        ("log.replication", log.replication == defaults.replication),
        ("log.retention_hours", log.retention_hours == defaults.retention_hours),
        (
            "log.dead_letter_retention_hours",
            log.dead_letter_retention_hours == defaults.dead_letter_retention_hours,
        ),
        ("log.fetch_pace_ms", log.fetch_pace_ms == defaults.fetch_pace_ms),
        ("log.tls_ca", log.tls_ca == defaults.tls_ca),
        ("log.tls_cert", log.tls_cert == defaults.tls_cert),
        ("log.tls_key", log.tls_key == defaults.tls_key),
        ("log.sasl_mechanism", log.sasl_mechanism == defaults.sasl_mechanism),
        ("log.sasl_username", log.sasl_username == defaults.sasl_username),
        ("log.sasl_password_file", log.sasl_password_file == defaults.sasl_password_file),
    ] {
        if !is_default {
            report(key, "has no effect without log.kind = \"kafka\"; set that, or leave it".into());
        }
    }
}

fn hours(hours: u32) -> Duration {
    Duration::from_secs(u64::from(hours) * 3_600)
}

fn tls(log: &written::Log, report: &mut impl FnMut(&str, &str)) -> Option<TlsFiles> {
    let identity = match (log.tls_cert.is_empty(), log.tls_key.is_empty()) {
        (true, true) => None,
        (false, false) => Some((PathBuf::from(&log.tls_cert), PathBuf::from(&log.tls_key))),
        (true, false) => {
            report("log.tls_cert", "must be set with log.tls_key");
            None
        }
        (false, true) => {
            report("log.tls_key", "must be set with log.tls_cert");
            None
        }
    };
    if log.tls_ca.is_empty() {
        if identity.is_some() {
            report("log.tls_ca", "must be set with log.tls_cert: it turns TLS on");
        }
        return None;
    }
    Some(TlsFiles { authorities: PathBuf::from(&log.tls_ca), identity })
}

fn sasl(log: &written::Log, report: &mut impl FnMut(&str, &str)) -> Option<SaslLogin> {
    let named = |mechanism: &SaslMechanism| mechanism.name() == log.sasl_mechanism;
    let mechanism = SaslMechanism::ALL.into_iter().find(named);
    if log.sasl_mechanism.is_empty() {
        for (key, value) in [
            ("log.sasl_username", &log.sasl_username),
            ("log.sasl_password_file", &log.sasl_password_file),
        ] {
            if !value.is_empty() {
                report(key, "has no effect without log.sasl_mechanism; set that too");
            }
        }
        return None;
    }
    if mechanism.is_none() {
        let all = "must be \"PLAIN\", \"SCRAM-SHA-256\", \"SCRAM-SHA-512\", or empty for none";
        report("log.sasl_mechanism", all);
    }
    for (key, value) in [
        ("log.sasl_username", &log.sasl_username),
        ("log.sasl_password_file", &log.sasl_password_file),
    ] {
        if value.is_empty() {
            report(key, "must be set with log.sasl_mechanism");
        }
    }
    mechanism.map(|mechanism| SaslLogin {
        mechanism,
        username: log.sasl_username.clone(),
        password_file: PathBuf::from(&log.sasl_password_file),
    })
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

fn is_topic(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=TOPIC_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_plain)
        && ![".", ".."].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests run where it is.
    const FILE: &str = "Cargo.toml";

    fn written() -> written::Log {
        let brokers = vec!["a:9092".to_owned(), "[::1]:9093".to_owned()];
        written::Log { kind: "kafka".to_owned(), brokers, ..Written::default().log }
    }

    fn problems(log: &written::Log) -> Vec<String> {
        let mut keys = Vec::new();
        let meant = mean(log, "node", &mut |key, _| keys.push(key.to_owned()));
        assert_eq!(meant.is_none(), !keys.is_empty());
        keys
    }

    #[test]
    fn what_is_written_is_meant() {
        let meant = mean(&written(), "node", &mut |key, message| panic!("{key}: {message}"));
        let (options, _) = meant.expect("no problem");
        assert_eq!(options.retention, Duration::from_secs(7 * 24 * 3_600));
        assert_eq!(options.dead_retention, Duration::from_secs(14 * 24 * 3_600));
        assert_eq!((options.partitions, options.tls, options.sasl), (10, None, None));
        let text = str::to_owned;
        let secured = written::Log {
            tls_ca: text(FILE),
            sasl_mechanism: text("SCRAM-SHA-512"),
            sasl_username: text("u"),
            sasl_password_file: text(FILE),
            ..written()
        };
        let (options, _) = mean(&secured, "node", &mut |_, _| {}).expect("no problem");
        assert!(options.tls.is_some_and(|tls| tls.identity.is_none()));
        assert_eq!(options.sasl.map(|sasl| sasl.mechanism), Some(SaslMechanism::ScramSha512));
    }

    #[test]
    fn every_problem_is_named_by_its_key() {
        let text = str::to_owned;
        let cases: &[(&[&str], written::Log)] = &[
            (&["log.brokers"], written::Log { brokers: Vec::new(), ..written() }),
            (&["log.brokers"], written::Log { brokers: vec![text("host")], ..written() }),
            (&["log.topic_group"], written::Log { topic_group: text("a b"), ..written() }),
            (
                &["log.topic_group"],
                written::Log { topic_group: written().topic_selected, ..written() },
            ),
            (
                &["log.topic_group"],
                written::Log {
                    topic_group: format!("{}-dlt", written().topic_selected),
                    ..written()
                },
            ),
            (&["log.topic_control"], written::Log { topic_control: text("a/b"), ..written() }),
            (
                &["log.topic_control"],
                written::Log {
                    topic_control: format!("{}-dlt", written().topic_group),
                    ..written()
                },
            ),
            (
                &["log.consumer_group_dead_letters"],
                written::Log {
                    consumer_group_dead_letters: written().consumer_group_group,
                    ..written()
                },
            ),
            (&["log.replication"], written::Log { replication: 0, ..written() }),
            (&["log.retention_hours"], written::Log { retention_hours: 0, ..written() }),
            (&["log.fetch_pace_ms"], written::Log { fetch_pace_ms: 10_001, ..written() }),
            (
                &["log.tls_key"],
                written::Log { tls_ca: text(FILE), tls_cert: text(FILE), ..written() },
            ),
            (
                &["log.tls_ca"],
                written::Log { tls_cert: text(FILE), tls_key: text(FILE), ..written() },
            ),
            (
                &["log.sasl_mechanism", "log.sasl_username", "log.sasl_password_file"],
                written::Log { sasl_mechanism: text("MD5"), ..written() },
            ),
            (&["log.tls_ca"], written::Log { tls_ca: text("absent.pem"), ..written() }),
            (&["log.sasl_username"], written::Log { sasl_username: text("u"), ..written() }),
        ];
        for (expected, log) in cases {
            assert_eq!(problems(log), *expected, "{log:?}");
        }
    }

    #[test]
    fn without_kafka_its_keys_are_refused() {
        let mut keys = Vec::new();
        refuse(&written(), &mut |key, _| keys.push(key.to_owned()));
        assert_eq!(keys, ["log.brokers"]);
    }
}
