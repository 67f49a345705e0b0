//! `cargo bench --bench kafka`: how long a record takes from its producer to the clients, and how
//! many of them a second are fetched and decoded, each beside a plain consumer of Kafka's Java
//! client in the same run.
//!
//! One broker of Apache Kafka, the node as it is shipped, the Java consumer, and clients and
//! producer in this process, all on the same cores and none pinned by us: the differences and the
//! ratios count. Needs Java and Maven, as the tests on real brokers do.
//!
//! Environment: `BENCH_JSON=FILE` writes the figures there too. A word on the command line runs
//! only `latency` or `throughput`.

#[path = "../common/figures.rs"]
mod figures;
mod latency;
#[path = "../common/records.rs"]
mod records;
mod throughput;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use corecast::ingest::kafka::{KafkaLog, KafkaOptions};
use figures::Figures;
use harness::kafka::{Kafka, Version};

/// As in the program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of each topic, as the node's default is.
const PARTITIONS: u16 = 10;

fn main() -> ExitCode {
    if let Some(program) = harness::kafka::missing() {
        harness::skip(&format!("no {program}"), "install a JDK 17 and Maven");
        return ExitCode::SUCCESS;
    }
    let wants = figures::wanted();
    let kafka = Kafka::start(Version::V4_3, 1);
    let mut figures = Figures::default();
    if wants("latency") {
        latency::measure(&kafka, &mut figures);
    }
    if wants("throughput") {
        throughput::measure(&kafka, &mut figures);
    }
    figures.tell();
    ExitCode::SUCCESS
}

/// The library's log in topics of this prefix.
fn open_log(kafka: &Kafka, prefix: &str) -> Arc<KafkaLog> {
    let options = KafkaOptions {
        brokers: kafka.addresses(),
        topic_selected: format!("{prefix}-selected"),
        topic_group: format!("{prefix}-group"),
        topic_control: format!("{prefix}-control"),
        partitions: PARTITIONS,
        replication: 1,
        retention: Duration::from_secs(24 * 3_600),
        dead_retention: Duration::from_secs(24 * 3_600),
        fetch_pace: Duration::ZERO,
        client_id: "corecast-bench".to_owned(),
        tls: None,
        sasl: None,
    };
    Arc::new(KafkaLog::new(options).expect("no files are named"))
}

/// For what this process does itself.
fn new_runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
}
