//! Apache Kafka without ZooKeeper: one process a broker, each also a controller.
//!
//! Data is kept under `target/backends/data` for as long as the test process lives, so that a
//! broker that was stopped or killed comes back with what it had.

mod console;
mod consumer;
mod keys;
mod producer;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, test_kill_process};

use crate::maven::{self, Jars};
use crate::process::Process;

pub use console::Group;
pub use consumer::{Drained, JavaConsumer, Taken};
pub use keys::Keys;
pub use producer::{JavaProducer, Stored};

/// A JVM on a busy machine; alone it takes 3 to 7 s.
const READY: Duration = Duration::from_secs(90);
const STOP: Duration = Duration::from_secs(60);

/// Which release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V4_3,
    V3_9,
}

/// What a broker listens with besides plain text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listener {
    /// For the tools, the brokers among themselves, and most tests.
    Plain,
    /// TLS, and the client shows a certificate.
    Tls,
    /// A name and a password, in the clear.
    Sasl,
    /// Both.
    SaslTls,
}

impl Listener {
    const ALL: [Self; 4] = [Self::Plain, Self::Tls, Self::Sasl, Self::SaslTls];

    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Tls => "TLS",
            Self::Sasl => "SASL",
            Self::SaslTls => "SASLTLS",
        }
    }

    const fn protocol(self) -> &'static str {
        match self {
            Self::Plain => "PLAINTEXT",
            Self::Tls => "SSL",
            Self::Sasl => "SASL_PLAINTEXT",
            Self::SaslTls => "SASL_SSL",
        }
    }
}

/// The one user of the listeners that ask for a password.
pub const USER: &str = "corecast";
pub const PASSWORD: &str = "right-password";

/// A running cluster of one or three brokers.
pub struct Kafka {
    version: Version,
    jars: PathBuf,
    folder: PathBuf,
    brokers: Vec<Broker>,
    keys: Option<Keys>,
}

struct Broker {
    /// A port a listener, in the order of `Listener::ALL`.
    ports: Vec<u16>,
    controller_port: u16,
    folder: PathBuf,
    process: Option<Process>,
}

/// Whether brokers can be run here; the program that is missing.
pub fn missing() -> Option<&'static str> {
    maven::missing()
}

/// Whether brokers can be run here; says so if not.
pub fn are_to_be_had() -> bool {
    let missing = missing();
    if let Some(program) = missing {
        crate::skip(&format!("no {program}"), "install a JDK 17 and Maven");
    }
    missing.is_none()
}

/// One broker of the newest release, which nobody stops.
pub fn shared() -> &'static Kafka {
    static BROKER: OnceLock<Kafka> = OnceLock::new();
    BROKER.get_or_init(|| Kafka::start(Version::V4_3, 1))
}

impl Version {
    fn jars(self) -> Jars {
        // One log backend, or each prints a warning about the other.
        let exclusions = &[
            "org.slf4j:slf4j-reload4j",
            "org.apache.logging.log4j:log4j-slf4j-impl",
            "org.apache.logging.log4j:log4j-slf4j2-impl",
        ];
        match self {
            Self::V4_3 => Jars {
                name: "kafka-4.3.1",
                artifacts: &[
                    "org.apache.kafka:kafka_2.13:4.3.1",
                    "org.apache.kafka:kafka-tools:4.3.1",
                    "org.slf4j:slf4j-simple:1.7.36",
                ],
                exclusions,
            },
            Self::V3_9 => Jars {
                name: "kafka-3.9.2",
                artifacts: &[
                    "org.apache.kafka:kafka_2.13:3.9.2",
                    "org.apache.kafka:kafka-tools:3.9.2",
                    "org.slf4j:slf4j-simple:1.7.36",
                ],
                exclusions,
            },
        }
    }
}

impl Kafka {
    /// Starts so many brokers, one or three, and waits until they are ready.
    pub fn start(version: Version, brokers: usize) -> Self {
        Self::start_with(version, brokers, None)
    }

    /// One broker that also has the listeners with TLS and passwords.
    pub fn start_secured(version: Version) -> Self {
        Self::start_with(version, 1, Some(Keys::make()))
    }

    /// Settles addresses and makes the storage; no broker runs until `restart`.
    pub fn prepare(version: Version, brokers: usize) -> Self {
        Self::prepare_with(version, brokers, None)
    }

    fn start_with(version: Version, brokers: usize, keys: Option<Keys>) -> Self {
        let mut kafka = Self::prepare_with(version, brokers, keys);
        // All at once: a controller alone has no majority and does not get ready.
        for index in 0..kafka.brokers.len() {
            kafka.launch(index);
        }
        for index in 0..kafka.brokers.len() {
            kafka.wait_until_ready(index);
        }
        kafka
    }

    fn prepare_with(version: Version, brokers: usize, keys: Option<Keys>) -> Self {
        let jars = version.jars().fetch();
        let folder = fresh_folder();
        let mut ports = crate::ports::free("127.0.0.1", brokers * 5).into_iter();
        let mut port = || ports.next().expect("five ports a broker");
        let brokers = (0..brokers)
            .map(|index| Broker {
                ports: Listener::ALL.iter().map(|_| port()).collect(),
                controller_port: port(),
                folder: folder.join(format!("broker-{}", index + 1)),
                process: None,
            })
            .collect();
        let kafka = Self { version, jars, folder, brokers, keys };
        for index in 0..kafka.brokers.len() {
            kafka.format(index);
        }
        kafka
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// What `start_secured` made.
    pub fn keys(&self) -> &Keys {
        self.keys.as_ref().expect("started with keys")
    }

    /// `host:port` of every broker, plain text.
    pub fn addresses(&self) -> Vec<String> {
        (0..self.brokers.len()).map(|index| self.address(index, Listener::Plain)).collect()
    }

    pub fn address(&self, broker: usize, listener: Listener) -> String {
        let place = Listener::ALL.iter().position(|one| *one == listener).expect("one of all");
        format!("127.0.0.1:{}", self.brokers[broker].ports[place])
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self, broker: usize) {
        self.brokers[broker].process = None;
    }

    /// A clean stop: its partitions go to others first.
    pub fn stop(&mut self, broker: usize) {
        if let Some(mut process) = self.brokers[broker].process.take() {
            process.signal(Signal::TERM);
            process.wait_for_end(STOP);
        }
    }

    /// Starts it again with its data, and waits until it is ready.
    pub fn restart(&mut self, broker: usize) {
        self.launch(broker);
        self.wait_until_ready(broker);
    }

    /// SIGSTOP: its connections stay and nothing answers, until `thaw`.
    pub fn freeze(&self, broker: usize) {
        self.process(broker).freeze();
    }

    pub fn thaw(&self, broker: usize) {
        self.process(broker).thaw();
    }

    /// What the broker has printed.
    pub fn text(&self, broker: usize) -> String {
        self.process(broker).text()
    }

    fn process(&self, broker: usize) -> &Process {
        self.brokers[broker].process.as_ref().expect("a running broker")
    }

    /// Writes its configuration and makes its storage.
    fn format(&self, index: usize) {
        let folder = &self.brokers[index].folder;
        std::fs::create_dir_all(folder).expect("the target folder can be written");
        let file = folder.join("server.properties");
        std::fs::write(&file, self.properties(index)).expect("the target folder can be written");
        let mut arguments = vec!["format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c"];
        let file = file.to_str().expect("a path of UTF-8");
        arguments.push(file);
        let scram: Vec<String> = [256, 512]
            .iter()
            .map(|bits| format!("SCRAM-SHA-{bits}=[name={USER},password={PASSWORD}]"))
            .collect();
        if self.keys.is_some() {
            for user in &scram {
                arguments.extend(["--add-scram", user]);
            }
        }
        self.tool("kafka.tools.StorageTool", &arguments, "");
    }

    fn properties(&self, index: usize) -> String {
        let broker = &self.brokers[index];
        let count = self.brokers.len();
        let copies = count.min(3);
        let voters: Vec<String> = (0..count)
            .map(|other| format!("{}@127.0.0.1:{}", other + 1, self.brokers[other].controller_port))
            .collect();
        let listeners: Vec<Listener> = Listener::ALL
            .into_iter()
            .filter(|listener| *listener == Listener::Plain || self.keys.is_some())
            .collect();
        let mut bound = Vec::new();
        let mut protocols = vec!["CONTROLLER:PLAINTEXT".to_owned()];
        for listener in listeners {
            bound.push(format!("{}://{}", listener.name(), self.address(index, listener)));
            protocols.push(format!("{}:{}", listener.name(), listener.protocol()));
        }
        let advertised = bound.join(",");
        bound.push(format!("CONTROLLER://127.0.0.1:{}", broker.controller_port));
        let mut text = String::new();
        let mut put = |key: &str, value: &str| {
            writeln!(text, "{key}={value}").expect("a string takes text");
        };
        put("node.id", &(index + 1).to_string());
        put("process.roles", "broker,controller");
        put("controller.quorum.voters", &voters.join(","));
        put("controller.listener.names", "CONTROLLER");
        put("inter.broker.listener.name", Listener::Plain.name());
        put("listeners", &bound.join(","));
        put("advertised.listeners", &advertised);
        put("listener.security.protocol.map", &protocols.join(","));
        put("log.dirs", &broker.folder.join("data").display().to_string());
        put("offsets.topic.replication.factor", &copies.to_string());
        put("offsets.topic.num.partitions", "4");
        put("transaction.state.log.replication.factor", &copies.to_string());
        put("transaction.state.log.min.isr", &copies.min(2).to_string());
        put("transaction.state.log.num.partitions", "4");
        put("group.initial.rebalance.delay.ms", "0");
        put("auto.create.topics.enable", "false");
        // Segments are looked at often, so that retention can be seen at work.
        put("log.retention.check.interval.ms", "500");
        put("log.initial.task.delay.ms", "500");
        put("log.cleaner.dedupe.buffer.size", "4194304");
        put("broker.session.timeout.ms", "3000");
        put("broker.heartbeat.interval.ms", "500");
        put("num.network.threads", "2");
        put("num.io.threads", "4");
        if let Some(keys) = &self.keys {
            keys.write_properties(&mut put);
            let plain = "org.apache.kafka.common.security.plain.PlainLoginModule";
            let scram = "org.apache.kafka.common.security.scram.ScramLoginModule";
            for listener in ["sasl", "sasltls"] {
                let prefix = format!("listener.name.{listener}");
                let mechanisms = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512";
                put(&format!("{prefix}.sasl.enabled.mechanisms"), mechanisms);
                put(
                    &format!("{prefix}.plain.sasl.jaas.config"),
                    &format!("{plain} required user_{USER}=\"{PASSWORD}\";"),
                );
                for bits in [256, 512] {
                    put(
                        &format!("{prefix}.scram-sha-{bits}.sasl.jaas.config"),
                        &format!("{scram} required;"),
                    );
                }
            }
        }
        text
    }

    fn launch(&mut self, index: usize) {
        let name = format!("kafka broker {}", index + 1);
        let mut command = self.java();
        command.args(["-Xms64m", "-Xmx256m"]);
        command.args(["kafka.Kafka"]).arg(self.brokers[index].folder.join("server.properties"));
        let process = Process::start(&name, command).expect("java can be run");
        self.brokers[index].process = Some(process);
    }

    fn wait_until_ready(&self, index: usize) {
        let started = |line: &str| line.contains("Kafka Server started").then_some(());
        self.process(index).wait_for_line(READY, started);
    }

    /// A Java program of Kafka's, with what all of them need; heap and class are to be added.
    fn java(&self) -> Command {
        let mut command = Command::new("java");
        command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]);
        command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=info");
        command.arg("-cp").arg(self.jars.join("*")).current_dir(&self.folder);
        command
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.brokers.clear();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A folder for one cluster. Folders of test processes that have ended are removed: a cluster that
/// stands in a `static` is never dropped.
fn fresh_folder() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let all = crate::target_dir().join("backends").join("data");
    std::fs::create_dir_all(&all).expect("the target folder can be written");
    for old in std::fs::read_dir(&all).expect("a folder").flatten() {
        if owner(&old.path()).is_some_and(|owner| test_kill_process(owner).is_err()) {
            let _ = std::fs::remove_dir_all(old.path());
        }
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = all.join(format!("kafka-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

fn owner(folder: &Path) -> Option<Pid> {
    let name = folder.file_name()?.to_str()?;
    name.strip_prefix("kafka-")?.split('-').next()?.parse().ok().and_then(Pid::from_raw)
}
