//! Logs in Kafka, in topics of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corecast::ingest::kafka::{KafkaLog, KafkaOptions};
use corecast::ports::Log;
use harness::kafka::{Kafka, Version, are_to_be_had, shared};

use crate::{PARTITIONS, run, suite};

/// Topics of a test of its own.
pub fn options(kafka: &Kafka) -> KafkaOptions {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    KafkaOptions {
        brokers: kafka.addresses(),
        topic_selected: format!("selected-{number}"),
        topic_group: format!("group-{number}"),
        topic_control: format!("control-{number}"),
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
