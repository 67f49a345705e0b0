//! Brokers that the tests share, and logs in topics of their own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use corecast::ingest::kafka::{KafkaLog, KafkaOptions};
use corecast::ports::Log;
use harness::kafka::{Kafka, Version};

use crate::{PARTITIONS, run, suite};

/// Whether brokers can be run here; says so if not.
pub fn are_to_be_had() -> bool {
    let missing = harness::kafka::missing();
    if let Some(program) = missing {
        harness::skip(&format!("no {program}"), "install a JDK 17 and Maven");
    }
    missing.is_none()
}

/// One broker of the newest release, which nobody stops.
pub fn shared() -> &'static Kafka {
    static BROKER: OnceLock<Kafka> = OnceLock::new();
    BROKER.get_or_init(|| Kafka::start(Version::V4_3, 1))
}

/// Topics of a test of its own.
pub fn options(kafka: &Kafka) -> KafkaOptions {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    KafkaOptions {
        brokers: kafka.addresses(),
        topic_selected: format!("selected-{number}"),
        topic_group: format!("group-{number}"),
        partitions: PARTITIONS,
        replication: 1,
        retention: Duration::from_secs(3_600),
        dead_retention: Duration::from_secs(7_200),
        fetch_pace: Duration::ZERO,
        client_id: "corecast-test".to_owned(),
        tls: None,
        sasl: None,
    }
}

pub fn open(options: &KafkaOptions) -> Arc<dyn Log> {
    Arc::new(KafkaLog::new(options.clone()).expect("files that can be read"))
}

#[test]
fn the_log_in_kafka_does_what_a_log_must() {
    if are_to_be_had() {
        run(suite::check(async || (open(&options(shared())), ())));
    }
}

#[test]
fn the_log_in_an_older_kafka_does_what_a_log_must() {
    if are_to_be_had() {
        let kafka = Kafka::start(Version::V3_9, 1);
        run(suite::check(async || (open(&options(&kafka)), ())));
    }
}
