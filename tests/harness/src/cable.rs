//! A node in a network namespace of its own, behind cables that can be pulled out: the kernel then
//! drops what is sent, in silence and both ways, as a network that is cut in two does. Whatever is
//! open stays open.
//!
//! Needs root and iproute2. The node's namespace has no way to any other network; all goes with the
//! node's process.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

/// A cable's ends, and where nobody is.
const OUTSIDE: &str = "02:00:00:00:00:01";
const INSIDE: &str = "02:00:00:00:00:02";
const NOBODY: &str = "02:00:00:00:00:03";

/// Moves itself into a new namespace and becomes the program. There, all of 127.0.0.0/8 is what
/// it is outside, but for two addresses of its own: it listens on one, and calls from the other.
/// Outside, replies find their way by the table that is looked at before the loopback's.
const SCRIPT: &str = r#"#!/bin/sh
set -e
ip link delete NAME 2>/dev/null || true
ip link add NAME address OUTSIDE type veth peer name NAME-in address INSIDE
echo 1 >/proc/sys/net/ipv4/conf/NAME/route_localnet
ip address add NET.1/32 dev NAME
ip link set NAME up
ip route add NET.2/32 dev NAME src NET.1 table local
ip route add NET.3/32 dev NAME table local
ip neighbour replace NET.2 lladdr INSIDE nud permanent dev NAME
ip neighbour replace NET.3 lladdr INSIDE nud permanent dev NAME
exec unshare --net sh -c '
    set -e
    nsenter --target "$PPID" --net ip link set NAME-in netns $$
    echo 1 >/proc/sys/net/ipv4/conf/NAME-in/route_localnet
    ip address add NET.2/32 dev NAME-in
    ip address add NET.3/32 dev NAME-in
    ip link set NAME-in up
    ip route add NET.1/32 dev NAME-in src NET.2
    ip route add 127.0.0.0/8 via NET.4 dev NAME-in onlink src NET.3
    ip neighbour replace NET.1 lladdr OUTSIDE nud permanent dev NAME-in
    ip neighbour replace NET.4 lladdr OUTSIDE nud permanent dev NAME-in
    exec "$@"
' sh PROGRAM "$@"
"#;

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Whoever calls the node: the test.
    Clients,
    /// Whom the node calls: brokers and databases.
    Backends,
}

/// The cables of one node.
pub struct Cables {
    name: String,
    /// The first three bytes of its addresses.
    net: String,
    folder: TempDir,
}

impl Cables {
    /// What is missing here to have any.
    pub fn missing() -> Option<&'static str> {
        let runs = |program: &str, words: &[&str]| {
            Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
        };
        if !rustix::process::geteuid().is_root() {
            return Some("not root, who may make network namespaces");
        }
        let can = runs("ip", &["-V"]) && runs("unshare", &["--net", "nsenter", "--version"]);
        (!can).then_some("no ip, unshare and nsenter that make network namespaces")
    }

    /// Cables for a node that runs this program.
    pub fn new(program: &str) -> Self {
        static DRAWN: AtomicU32 = AtomicU32::new(0);
        // 127.A.B.0/24 from the process's id and a number within it, above those of databases.
        let drawn = DRAWN.fetch_add(1, Ordering::Relaxed);
        let mixed = std::process::id().wrapping_mul(251).wrapping_add(drawn) % (50 * 250);
        let (name, net) =
            (format!("cable{mixed}"), format!("127.{}.{}", mixed / 250 + 201, mixed % 250 + 1));
        let folder = tempfile::tempdir().expect("a temporary directory");
        let script = SCRIPT
            .replace("NAME", &name)
            .replace("NET", &net)
            .replace("OUTSIDE", OUTSIDE)
            .replace("INSIDE", INSIDE)
            .replace("PROGRAM", program);
        let cables = Self { name, net, folder };
        crate::write_program(&cables.program(), &script);
        cables
    }

    /// What starts the program behind them.
    pub fn program(&self) -> PathBuf {
        self.folder.path().join("corecast")
    }

    /// On which it has to listen.
    pub fn address(&self) -> IpAddr {
        let bytes: Ipv4Addr = format!("{}.2", self.net).parse().expect("an address");
        bytes.into()
    }

    /// Pulls the cable of this side out of the node with this process.
    pub fn pull(&self, side: Side, process: u32) {
        self.lead(side, process, (NOBODY, NOBODY));
    }

    pub fn plug_in(&self, side: Side, process: u32) {
        self.lead(side, process, (INSIDE, OUTSIDE));
    }

    /// Has what is sent in and out go there.
    fn lead(&self, side: Side, process: u32, (inside, outside): (&str, &str)) {
        let Self { name, net, .. } = self;
        let (node, other) = match side {
            Side::Clients => (2, 1),
            Side::Backends => (3, 4),
        };
        let neighbour = |byte: u8, lladdr: &str, end: &str| {
            format!("ip neighbour replace {net}.{byte} lladdr {lladdr} nud permanent dev {end}")
        };
        run(&neighbour(node, inside, name));
        let out = neighbour(other, outside, &format!("{name}-in"));
        run(&format!("nsenter --target {process} --net {out}"));
    }
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    let output = command.args(words).output().expect("it was there before");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}
