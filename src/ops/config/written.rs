//! Configuration as written: every key with its default, in the sections of the file.
//!
//! `config/corecast.toml` shows the same; a test holds them together. An empty text stands for a
//! value that is not set, in every layer, so that a later one can take back what an earlier one
//! has set.

use serde::{Deserialize, Serialize};

use crate::limits;

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    pub node: Node,
    pub public: Public,
    pub admin: Admin,
    pub log: Log,
    pub store: Store,
    pub auth: Auth,
    pub stream: Stream,
    pub drain: Drain,
    pub testing: Testing,
    pub broadcast: Broadcast,
    pub limits: Limits,
    pub output: Output,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    pub id: String,
    pub shards: Shards,
    pub runtime: String,
    pub data_dir: String,
    pub owner: bool,
}

/// `"auto"`, a number, or a list of CPUs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be \"auto\", a number from 1 on, or CPUs such as \"0,2-5\"")]
pub enum Shards {
    Number(u16),
    Word(String),
    Cpus(Vec<usize>),
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Public {
    pub listen: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Admin {
    pub listen: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    pub kind: String,
    pub brokers: Vec<String>,
    pub topic_selected: String,
    pub topic_group: String,
    pub topic_control: String,
    pub consumer_group_selected: String,
    pub consumer_group_group: String,
    pub consumer_group_dead_letters: String,
    pub partitions: u16,
    pub replication: u16,
    pub retention_hours: u32,
    pub dead_letter_retention_hours: u32,
    pub fetch_pace_ms: u32,
    /// Files in PEM; with the first, connections to the brokers speak TLS.
    pub tls_ca: String,
    pub tls_cert: String,
    pub tls_key: String,
    pub sasl_mechanism: String,
    pub sasl_username: String,
    pub sasl_password_file: String,
    pub legacy_group_audience: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Store {
    pub kind: String,
    pub nodes: Vec<String>,
    pub keyspace: String,
    pub replication: u16,
    pub datacenter: String,
    pub username: String,
    pub password_file: String,
    pub tls_ca: String,
    pub scylla_ddl: bool,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Auth {
    pub mode: String,
    pub allow_anonymous: bool,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Stream {
    pub heartbeat_s: u32,
    pub max_age_s: u32,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Drain {
    pub window_s: u32,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Testing {
    pub enabled: bool,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Broadcast {
    pub retention_days: u32,
    pub group_deliveries: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub streams_max: u64,
    pub ring_frames_max: u64,
    pub ring_bytes_max: u64,
    pub write_progress_s: u32,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    pub format: String,
    pub level: String,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            id: String::new(),
            shards: Shards::Word("auto".to_owned()),
            runtime: "auto".to_owned(),
            data_dir: "./corecast-data".to_owned(),
            owner: true,
        }
    }
}

impl Default for Public {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8080".to_owned() }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8081".to_owned() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            kind: "embedded".to_owned(),
            brokers: Vec::new(),
            topic_selected: "broadcast-user-service-selected".to_owned(),
            topic_group: "broadcast-user-service-group".to_owned(),
            topic_control: "corecast-control".to_owned(),
            consumer_group_selected: "broadcast-service-group-selected".to_owned(),
            consumer_group_group: "broadcast-service-group-group".to_owned(),
            consumer_group_dead_letters: "broadcast-dlt-group".to_owned(),
            partitions: 10,
            replication: 1,
            retention_hours: 168,
            dead_letter_retention_hours: 336,
            fetch_pace_ms: 0,
            tls_ca: String::new(),
            tls_cert: String::new(),
            tls_key: String::new(),
            sasl_mechanism: String::new(),
            sasl_username: String::new(),
            sasl_password_file: String::new(),
            legacy_group_audience: "lookup".to_owned(),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: "embedded".to_owned(),
            nodes: Vec::new(),
            keyspace: "corecast".to_owned(),
            replication: 1,
            datacenter: String::new(),
            username: String::new(),
            password_file: String::new(),
            tls_ca: String::new(),
            scylla_ddl: false,
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self { mode: "none".to_owned(), allow_anonymous: false }
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self { heartbeat_s: 25, max_age_s: 0 }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { window_s: 30 }
    }
}

impl Default for Broadcast {
    fn default() -> Self {
        Self { retention_days: 30, group_deliveries: "counted".to_owned() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_max: limits::shard::STREAMS_MAX as u64,
            ring_frames_max: limits::shard::RING_FRAMES_MAX as u64,
            ring_bytes_max: limits::shard::RING_BYTES_MAX as u64,
            write_progress_s: limits::shard::WRITE_PROGRESS.as_secs() as u32,
        }
    }
}

impl Default for Output {
    fn default() -> Self {
        Self { format: "text".to_owned(), level: "info".to_owned() }
    }
}
