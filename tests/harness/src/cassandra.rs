//! Apache Cassandra as the stand-in for ScyllaDB: one node or three, each a Java process.
//!
//! Each cluster has a loopback network of its own, so that several can run at a time, and a folder
//! that goes with it. `commitlog_sync: batch` makes an acknowledged row survive `kill -9`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpriority_process, setpriority_process};

use crate::maven::Jars;
use crate::process::Process;
use crate::{ports, wait};

const JARS: Jars = Jars {
    name: "cassandra-5.0.9",
    artifacts: &["org.apache.cassandra:cassandra-all:5.0.9"],
    exclusions: &[],
};
const MAIN: &str = "org.apache.cassandra.service.CassandraDaemon";
/// A node is ready in 4 to 7 seconds, three in 14; a machine that is busy takes its time.
const READY_TIME: Duration = Duration::from_secs(180);
/// Each step of priority is a quarter more time.
const TENTH_PRIORITY: i32 = 10;
const STOP_TIME: Duration = Duration::from_secs(60);

/// How the nodes are set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Setup {
    /// Asks for a password; the first user is `cassandra` with the password `cassandra`.
    pub passwords: bool,
    /// Speaks TLS, with certificates that `Cassandra::authority` signed.
    pub tls: bool,
    /// Whether tables, as rows always, outlive `kill -9`. Making one takes five times as long.
    pub durable_tables: bool,
}

/// A cluster. Dropping it kills its nodes and removes what they stored.
pub struct Cassandra {
    nodes: Vec<Node>,
    folder: tempfile::TempDir,
}

struct Node {
    address: String,
    port: u16,
    command: NodeCommand,
    process: Option<Process>,
    is_tls: bool,
    /// Lines that each other node had printed when this one was last launched.
    launched_at: Vec<usize>,
}

/// What starts a node, again and again.
struct NodeCommand {
    jars: PathBuf,
    folder: PathBuf,
    durable_tables: bool,
}

impl Cassandra {
    /// Starts that many nodes and waits until they serve.
    pub fn start(nodes: usize) -> Self {
        Self::start_with(nodes, Setup::default())
    }

    pub fn start_with(nodes: usize, setup: Setup) -> Self {
        let mut cluster = Self::prepare(nodes, setup);
        cluster.start_all();
        if setup.passwords {
            cluster.nodes[0].wait_for_line("Created default superuser role");
        }
        cluster
    }

    /// Settles addresses and configuration; no node runs yet.
    pub fn prepare(count: usize, setup: Setup) -> Self {
        assert!((1..=3).contains(&count), "one to three nodes");
        let jars = JARS.fetch();
        let folder = tempfile::Builder::new().prefix("cassandra-").tempdir().expect("a folder");
        let network = Network::draw(count);
        let certificate = setup.tls.then(|| make_certificate(folder.path(), &network.addresses));
        let mut nodes = Vec::new();
        for address in &network.addresses {
            let node_folder = folder.path().join(address);
            let config = node_folder.join("conf");
            std::fs::create_dir_all(&config).expect("the folder can be written");
            let yaml = yaml(&network, address, &node_folder, setup, certificate.as_deref());
            std::fs::write(config.join("cassandra.yaml"), yaml).expect("it can be written");
            std::fs::write(config.join("logback.xml"), LOGBACK).expect("it can be written");
            nodes.push(Node {
                address: address.clone(),
                port: network.native_port,
                command: NodeCommand {
                    jars: jars.clone(),
                    folder: node_folder,
                    durable_tables: setup.durable_tables,
                },
                process: None,
                is_tls: setup.tls,
                launched_at: vec![0; count],
            });
        }
        Self { nodes, folder }
    }

    /// `ADDRESS:PORT` of every node, whether it runs or not.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("{}:{}", node.address, node.port)).collect()
    }

    /// With TLS: the certificate of the authority that signed the nodes', as PEM.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Starts every node, with what it stored, and waits until they serve.
    pub fn start_all(&mut self) {
        // The first is the seed: nodes that find nobody to gossip with for half a minute give up.
        self.start_again(0);
        for node in 1..self.nodes.len() {
            self.launch(node);
        }
        for node in 1..self.nodes.len() {
            self.wait_until_ready(node);
        }
    }

    /// Starts a node that does not run, with what it stored; does not wait.
    pub fn launch(&mut self, node: usize) {
        assert!(self.nodes[node].process.is_none(), "node {node} runs already");
        let lines = |node: &Node| node.process.as_ref().map_or(0, Process::lines);
        self.nodes[node].launched_at = self.nodes.iter().map(lines).collect();
        for other in &mut self.nodes {
            // What is launched later has nothing to say yet about this one's past.
            other.launched_at[node] = 0;
        }
        let node = &mut self.nodes[node];
        let name = format!("Cassandra {}", node.address);
        node.process = Some(Process::start(&name, node.command.build()).expect("java can be run"));
    }

    /// Waits until the node answers CQL, and it and the other running nodes see each other.
    pub fn wait_until_ready(&mut self, node: usize) {
        self.nodes[node].wait_for_cql();
        for other in 0..self.nodes.len() {
            if other != node && self.nodes[other].process.is_some() {
                self.wait_until_seen(node, other);
                self.wait_until_seen(other, node);
            }
        }
    }

    /// Waits until the second has said, since the first was launched, that the first is up.
    fn wait_until_seen(&self, seen: usize, by: usize) {
        let sign = format!("/{}:", self.nodes[seen].address);
        let since = self.nodes[seen].launched_at[by];
        let process = self.nodes[by].process.as_ref().expect("launched");
        process.wait_for_line_after(since, READY_TIME, |line| {
            (line.contains(&sign) && line.ends_with("is now UP")).then_some(())
        });
    }

    pub fn start_again(&mut self, node: usize) {
        self.launch(node);
        self.wait_until_ready(node);
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].process.take().expect("it runs").kill();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, node: usize) {
        let mut process = self.nodes[node].process.take().expect("it runs");
        process.signal(Signal::TERM);
        process.wait_for_end(STOP_TIME);
    }

    /// Has all nodes take a tenth of the time where others want it, as if they had machines of
    /// their own.
    pub fn give_way(&self) {
        let own = getpriority_process(None).expect("this process has one");
        for process in self.nodes.iter().filter_map(|node| node.process.as_ref()) {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id()));
            for task in tasks.expect("it runs").filter_map(Result::ok) {
                let name = task.file_name();
                let thread = name.to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
                // It may have ended meanwhile.
                let _ = setpriority_process(thread, (own + TENTH_PRIORITY).min(19));
            }
        }
    }

    /// SIGSTOP.
    pub fn freeze(&self, node: usize) {
        self.nodes[node].process.as_ref().expect("it runs").freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self, node: usize) {
        self.nodes[node].process.as_ref().expect("it runs").thaw();
    }
}

impl Node {
    fn wait_for_cql(&mut self) {
        if self.is_tls {
            return self.wait_for_line("Starting listening for CQL clients");
        }
        let process = self.process.as_mut().expect("launched");
        let (address, port) = (&self.address, self.port);
        wait::until_true(&format!("Cassandra {address} is ready"), READY_TIME, || {
            assert!(process.is_running(), "Cassandra ended:\n{}", process.text());
            answers_cql(address, port)
        });
    }

    fn wait_for_line(&self, part: &str) {
        let process = self.process.as_ref().expect("launched");
        process.wait_for_line(READY_TIME, |line| line.contains(part).then_some(()));
    }
}

/// Addresses that no other cluster has, and ports that are free.
struct Network {
    addresses: Vec<String>,
    native_port: u16,
    storage_port: u16,
}

impl Network {
    fn draw(count: usize) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static DRAWN: AtomicU32 = AtomicU32::new(0);
        // 127.A.B.0/24 from the process's id and a number within it.
        let drawn = DRAWN.fetch_add(1, Ordering::Relaxed);
        let mixed = std::process::id().wrapping_mul(251).wrapping_add(drawn) % (200 * 250);
        let (a, b) = (mixed / 250 + 1, mixed % 250 + 1);
        let addresses: Vec<String> =
            (1..=count).map(|node| format!("127.{a}.{b}.{node}")).collect();
        let ports = ports::free(&addresses[0], 2);
        Self { addresses, native_port: ports[0], storage_port: ports[1] }
    }
}

impl NodeCommand {
    fn build(&self) -> Command {
        let config = self.folder.join("conf");
        let mut command = Command::new("java");
        command.args(["-Xms64M", "-Xmx512M", "-XX:MaxDirectMemorySize=256M", "-Xss256k"]);
        command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.arg(format!("-javaagent:{}", self.jars.join("jamm-0.4.0.jar").display()));
        for export in EXPORTS {
            command.arg("--add-exports").arg(format!("{export}=ALL-UNNAMED"));
        }
        for open in OPENS {
            command.arg("--add-opens").arg(format!("{open}=ALL-UNNAMED"));
        }
        command.arg("-Djdk.attach.allowAttachSelf=true");
        command.arg("-Dio.netty.tryReflectionSetAccessible=true");
        let yaml = config.join("cassandra.yaml");
        command.arg(format!("-Dcassandra.config=file://{}", yaml.display()));
        command.arg(format!("-Dcassandra.storagedir={}", self.folder.display()));
        command
            .arg(format!("-Dlogback.configurationFile={}", config.join("logback.xml").display()));
        for option in [
            "-foreground=yes",
            ".skip_wait_for_gossip_to_settle=0",
            ".ring_delay_ms=1000",
            ".superuser_setup_delay_ms=0",
        ] {
            command.arg(format!("-Dcassandra{option}"));
        }
        let flush = self.durable_tables;
        command.arg(format!("-Dcassandra.test.flush_local_schema_changes={flush}"));
        command.arg("-cp").arg(format!("{}/*", self.jars.display())).arg(MAIN);
        command.current_dir(&self.folder);
        command
    }
}

/// Asks for the options of the protocol; the answer is SUPPORTED.
fn answers_cql(address: &str, port: u16) -> bool {
    const OPTIONS: [u8; 9] = [4, 0, 0, 0, 5, 0, 0, 0, 0];
    const SUPPORTED: u8 = 6;
    let ask = || -> std::io::Result<[u8; 5]> {
        let address: SocketAddr = format!("{address}:{port}").parse().expect("an address");
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(&OPTIONS)?;
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        Ok(head)
    };
    ask().is_ok_and(|head| head[0] == 0x84 && head[4] == SUPPORTED)
}

fn yaml(
    network: &Network,
    address: &str,
    folder: &Path,
    setup: Setup,
    certificate: Option<&Path>,
) -> String {
    let Network { addresses, native_port, storage_port } = network;
    let seed = &addresses[0];
    let folder = folder.display();
    let mut yaml = format!(
        "cluster_name: corecast-test\n\
         num_tokens: 4\n\
         partitioner: org.apache.cassandra.dht.Murmur3Partitioner\n\
         endpoint_snitch: SimpleSnitch\n\
         seed_provider:\n\
         \x20 - class_name: org.apache.cassandra.locator.SimpleSeedProvider\n\
         \x20   parameters:\n\
         \x20     - seeds: \"{seed}:{storage_port}\"\n\
         listen_address: {address}\n\
         rpc_address: {address}\n\
         storage_port: {storage_port}\n\
         native_transport_port: {native_port}\n\
         commitlog_directory: {folder}/commitlog\n\
         data_file_directories: [{folder}/data]\n\
         saved_caches_directory: {folder}/saved_caches\n\
         hints_directory: {folder}/hints\n\
         cdc_raw_directory: {folder}/cdc_raw\n\
         commitlog_sync: batch\n\
         commitlog_segment_size: 8MiB\n\
         memtable_heap_space: 64MiB\n\
         concurrent_writes: 16\n\
         key_cache_size: 4MiB\n\
         file_cache_size: 32MiB\n\
         auto_snapshot: false\n\
         auto_bootstrap: false\n"
    );
    if setup.passwords {
        yaml.push_str("authenticator: PasswordAuthenticator\nauthorizer: CassandraAuthorizer\n");
    }
    if let Some(keystore) = certificate {
        let keystore = keystore.display();
        write!(
            yaml,
            "client_encryption_options:\n\
             \x20 enabled: true\n\
             \x20 optional: false\n\
             \x20 keystore: {keystore}\n\
             \x20 keystore_password: {PASSWORD}\n\
             \x20 store_type: PKCS12\n"
        )
        .expect("a string can be written");
    }
    yaml
}

const PASSWORD: &str = "cassandra";

/// An authority `ca.pem`, and a key store with a certificate for these addresses.
fn make_certificate(folder: &Path, addresses: &[String]) -> PathBuf {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(folder).output();
        let output = output.unwrap_or_else(|error| panic!("{program} can't be run: {error}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let names: Vec<String> = addresses.iter().map(|address| format!("ip:{address}")).collect();
    let names = format!("san={}", names.join(","));
    let keep = ["-storetype", "PKCS12", "-storepass", PASSWORD];
    let key = ["-keyalg", "EC", "-groupname", "secp256r1", "-validity", "2"];
    let keytool = |arguments: &[&str]| run("keytool", &[arguments, &keep].concat());
    let ca = ["-genkeypair", "-alias", "ca", "-keystore", "ca.p12", "-dname", "CN=test authority"];
    keytool(&[&ca, &key[..], &["-ext", "bc:c"]].concat());
    keytool(&["-exportcert", "-rfc", "-alias", "ca", "-keystore", "ca.p12", "-file", "ca.pem"]);
    let node = ["-genkeypair", "-alias", "node", "-keystore", "node.p12", "-dname", "CN=node"];
    keytool(&[&node, &key[..]].concat());
    keytool(&["-certreq", "-alias", "node", "-keystore", "node.p12", "-file", "node.csr"]);
    let sign = ["-gencert", "-alias", "ca", "-keystore", "ca.p12", "-infile", "node.csr"];
    let signed = ["-outfile", "node.pem", "-rfc", "-ext", &names, "-validity", "2"];
    keytool(&[&sign[..], &signed].concat());
    for (alias, file) in [("ca", "ca.pem"), ("node", "node.pem")] {
        let store = ["-keystore", "node.p12", "-noprompt"];
        keytool(&[&["-importcert", "-alias", alias, "-file", file], &store[..]].concat());
    }
    folder.join("node.p12")
}

const LOGBACK: &str = "<configuration>\n\
    <appender name=\"out\" class=\"ch.qos.logback.core.ConsoleAppender\">\n\
    <encoder><pattern>%-5level %date{HH:mm:ss.SSS} %msg%n</pattern></encoder></appender>\n\
    <root level=\"INFO\"><appender-ref ref=\"out\"/></root>\n\
    </configuration>\n";

/// What Cassandra reaches into on Java 17.
const EXPORTS: [&str; 8] = [
    "java.base/jdk.internal.misc",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "java.base/java.lang.ref",
    "jdk.unsupported/sun.misc",
    "jdk.attach/sun.tools.attach",
];

const OPENS: [&str; 14] = [
    "java.base/java.lang.module",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.util",
    "jdk.management/com.sun.management.internal",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_starts_stops_and_starts_again() {
        if let Some(program) = crate::maven::missing() {
            return crate::skip(program, "install a JDK and Maven");
        }
        let setup = Setup { durable_tables: true, ..Setup::default() };
        let mut cluster = Cassandra::start_with(1, setup);
        assert_eq!(cluster.addresses().len(), 1);
        cluster.kill(0);
        cluster.start_again(0);
        cluster.stop(0);
    }
}
