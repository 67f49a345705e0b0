//! The Java client as a plain consumer, which benchmarks compare with, and as another program in a
//! consumer group (`java/Consumer.java`): its defaults, committed records only, values as bytes.

use std::io::Write as _;
use std::process::{ChildStdin, Command};
use std::time::Duration;

use super::Kafka;
use crate::process::Process;

/// Longer than any step of a benchmark.
const ANSWER: Duration = Duration::from_secs(300);

/// One process with one consumer of some topics' ends, and others for `drain`.
pub struct JavaConsumer {
    process: Process,
    input: ChildStdin,
    asked: u64,
}

/// A record as `take` tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// In the order of `follow`.
    pub topic: usize,
    pub partition: u16,
    pub offset: u64,
    /// When the poll returned that brought it: nanoseconds since 1970.
    pub at: u64,
}

/// What `drain` has read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drained {
    pub records: u64,
    /// Of the values.
    pub bytes: u64,
    pub took: Duration,
}

impl Kafka {
    /// Starts the program, on a JVM as it is by default. It ends when this is dropped.
    pub fn java_consumer(&self) -> JavaConsumer {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/java/Consumer.java");
        let mut command = Command::new("java");
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-Xmx512m"]);
        command.arg("-cp").arg(self.jars.join("*")).current_dir(&self.folder);
        command.arg(source).arg(self.addresses().join(","));
        let (process, input) =
            Process::start_told("java consumer", command).expect("java can be run");
        JavaConsumer { process, input, asked: 0 }
    }
}

impl JavaConsumer {
    /// From now on `take` gives what is appended to these topics.
    pub fn follow(&mut self, topics: &[&str]) {
        self.tell(&[&["follow"], topics].concat());
        self.answer();
    }

    /// Polls until so many records have come; `taken` waits for that.
    pub fn take(&mut self, records: usize) {
        self.tell(&["take", &records.to_string()]);
    }

    /// The records of the last `take`, perhaps more than were asked for.
    pub fn taken(&self) -> Vec<Taken> {
        let answer = self.answer();
        let records = answer.split_whitespace().map(|record| {
            let mut numbers =
                record.split(':').map(|number| number.parse::<u64>().expect("a number"));
            let mut next = || numbers.next().expect("four numbers a record");
            Taken { topic: next() as usize, partition: next() as u16, offset: next(), at: next() }
        });
        records.collect()
    }

    /// Reads a topic from its beginning by a consumer of its own, until so many records have come.
    /// The time runs from when the partitions are known.
    pub fn drain(&mut self, topic: &str, records: u64) -> Drained {
        self.tell(&["drain", topic, &records.to_string()]);
        let answer = self.answer();
        let mut numbers =
            answer.split_whitespace().map(|number| number.parse::<u64>().expect("a number"));
        let mut next = || numbers.next().expect("three numbers");
        Drained { records: next(), bytes: next(), took: Duration::from_nanos(next()) }
    }

    /// Joins a consumer group and waits until it has partitions of the topic, or gives the client's
    /// reason. `protocol`: `classic` or `consumer`.
    pub fn join(&mut self, group: &str, topic: &str, protocol: &str) -> Result<(), String> {
        self.tell(&["join", group, topic, protocol]);
        self.outcome().map(drop)
    }

    /// Leaves it again.
    pub fn leave(&mut self) {
        self.tell(&["leave"]);
        self.answer();
    }

    fn tell(&mut self, command: &[&str]) {
        self.asked += 1;
        let line = format!("{}\t{}\n", self.asked, command.join("\t"));
        self.input.write_all(line.as_bytes()).expect("the java consumer runs");
    }

    /// Waits for the end of the last command. Panics if it failed.
    fn answer(&self) -> String {
        self.outcome().unwrap_or_else(|reason| panic!("the java consumer: {reason}"))
    }

    fn outcome(&self) -> Result<String, String> {
        let mark = format!("{}\t", self.asked);
        let answer =
            self.process.wait_for_line(ANSWER, |line| line.strip_prefix(&mark).map(str::to_owned));
        match answer.strip_prefix("done") {
            Some(done) => Ok(done.trim().to_owned()),
            None => Err(answer),
        }
    }
}
