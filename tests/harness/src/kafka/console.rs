//! Kafka's own console tools, one call a process: 1 to 2 s each.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use super::{Kafka, Listener, Version};
use crate::wait;

/// What a broker that comes back has missed is little; the tool itself takes seconds.
const IN_STEP: Duration = Duration::from_secs(60);

/// One line of what `ConsumerGroupCommand --describe` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    pub topic: String,
    pub partition: u16,
    /// Committed offset, if there is one.
    pub current: Option<u64>,
    pub lag: Option<u64>,
    pub member: String,
}

impl Kafka {
    /// Runs one of Kafka's programs to its end and returns what it printed to stdout. Panics, with
    /// all that it printed, if it fails.
    pub fn tool(&self, class: &str, arguments: &[&str], input: &str) -> String {
        let mut command = self.java();
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-Xmx128m", class]);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("java can be run");
        let mut stdin = child.stdin.take().expect("piped");
        // Whoever ends without reading all of it says why by its status.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("java can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{class} {arguments:?} failed:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// `TopicCommand`, at the first broker that runs.
    pub fn topics(&self, arguments: &[&str]) -> String {
        let bootstrap = self.running();
        let all = [&["--bootstrap-server", &bootstrap][..], arguments].concat();
        self.tool("org.apache.kafka.tools.TopicCommand", &all, "")
    }

    /// Makes a topic. `configs`: `name=value`.
    pub fn create_topic(&self, name: &str, partitions: u16, copies: u16, configs: &[&str]) {
        let (partitions, copies) = (partitions.to_string(), copies.to_string());
        let mut arguments = vec!["--create", "--topic", name, "--partitions", &partitions];
        arguments.extend(["--replication-factor", &copies]);
        for config in configs {
            arguments.extend(["--config", config]);
        }
        self.topics(&arguments);
    }

    /// The broker (counted from 0) that leads a partition; `None` without a leader.
    pub fn leader(&self, topic: &str, partition: u16) -> Option<usize> {
        let text = self.topics(&["--describe", "--topic", topic]);
        let wanted = format!("Partition: {partition}\t");
        let line = text.lines().find(|line| line.contains(&wanted))?;
        let id: usize = line.split("Leader: ").nth(1)?.split_whitespace().next()?.parse().ok()?;
        id.checked_sub(1)
    }

    /// Waits until every copy of every partition is in step. All brokers must run.
    pub fn wait_until_in_step(&self) {
        wait::until_true("all copies are in step", IN_STEP, || {
            self.topics(&["--describe", "--under-replicated-partitions"]).trim().is_empty()
        });
    }

    /// Gives each partition back to the broker that is to lead it. All brokers must run.
    pub fn give_back_leaders(&self) {
        let bootstrap = self.running();
        let mut arguments = vec!["--bootstrap-server", &bootstrap, "--all-topic-partitions"];
        arguments.extend(["--election-type", "preferred"]);
        self.tool("org.apache.kafka.tools.LeaderElectionCommand", &arguments, "");
    }

    /// `ConsoleProducer`: a record a line, `name:value,...<TAB>key<TAB>value`.
    pub fn console_produce(&self, topic: &str, options: &[&str], lines: &str) {
        let (class, property) = match self.version() {
            Version::V4_3 => ("org.apache.kafka.tools.ConsoleProducer", "--reader-property"),
            Version::V3_9 => ("kafka.tools.ConsoleProducer", "--property"),
        };
        let bootstrap = self.running();
        let mut arguments = vec!["--bootstrap-server", &bootstrap, "--topic", topic];
        arguments.extend([property, "parse.key=true", property, "parse.headers=true"]);
        arguments.extend(options);
        self.tool(class, &arguments, lines);
    }

    /// `ConsoleConsumer`: waits for so many records from the start of a topic; a line each,
    /// `headers<TAB>key<TAB>value`.
    pub fn console_consume(&self, topic: &str, count: usize) -> Vec<String> {
        let property = match self.version() {
            Version::V4_3 => "--formatter-property",
            Version::V3_9 => "--property",
        };
        let (bootstrap, count) = (self.running(), count.to_string());
        let mut arguments = vec!["--bootstrap-server", &bootstrap, "--topic", topic];
        arguments.extend(["--from-beginning", "--max-messages", &count, "--timeout-ms", "30000"]);
        arguments.extend([property, "print.headers=true", property, "print.key=true"]);
        let class = "org.apache.kafka.tools.consumer.ConsoleConsumer";
        self.tool(class, &arguments, "").lines().map(str::to_owned).collect()
    }

    /// `ConsumerGroupCommand --describe`: members, positions and lag of a group.
    pub fn group(&self, group: &str) -> Vec<Group> {
        self.groups(&[group])
    }

    /// The same of some groups, in one call.
    pub fn groups(&self, groups: &[&str]) -> Vec<Group> {
        let bootstrap = self.running();
        let mut arguments = vec!["--bootstrap-server", &bootstrap, "--describe"];
        arguments.extend(groups.iter().flat_map(|group| ["--group", group]));
        let text =
            self.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &arguments, "");
        text.lines().filter_map(read_group).collect()
    }

    /// Address of the first broker that runs.
    fn running(&self) -> String {
        let first = self.brokers.iter().position(|broker| broker.process.is_some());
        // Storage is made before any broker runs; that tool asks for no address.
        self.address(first.unwrap_or(0), Listener::Plain)
    }
}

/// Columns: group, topic, partition, current offset, end, lag, consumer id, host, client id.
fn read_group(line: &str) -> Option<Group> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let [_, topic, partition, current, _, lag, member, ..] = columns[..] else { return None };
    Some(Group {
        topic: topic.to_owned(),
        partition: partition.parse().ok()?,
        current: current.parse().ok(),
        lag: lag.parse().ok(),
        member: member.to_owned(),
    })
}
