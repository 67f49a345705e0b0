//! The Java client as a producer, for what no other one does: transactions, all codecs, null keys,
//! values and header values, header names that repeat (`java/Producer.java`).

use std::io::Write as _;
use std::process::ChildStdin;
use std::time::Duration;

use super::Kafka;
use crate::process::Process;

/// Beyond the 120 s after which the client gives up by itself, so that its reason is seen.
const ANSWER: Duration = Duration::from_secs(150);

/// A record as it stands in a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub partition: u16,
    pub offset: u64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Stored {
    /// The last header of this name, if it has a value.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.headers.iter().rfind(|(known, _)| known == name)?;
        value.as_deref()
    }
}

/// One process that holds any number of producers by name.
pub struct JavaProducer {
    process: Process,
    input: ChildStdin,
    asked: u64,
}

impl Kafka {
    /// Starts the program. It ends when this is dropped.
    pub fn java_producer(&self) -> JavaProducer {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/java/Producer.java");
        let mut command = self.java();
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-Xmx128m"]);
        command.arg(source).arg(self.addresses().join(","));
        let (process, input) =
            Process::start_told("java producer", command).expect("java can be run");
        JavaProducer { process, input, asked: 0 }
    }
}

impl JavaProducer {
    /// Says one command and waits for its end; returns the answer. Panics if it fails.
    ///
    /// - `open NAME [CONFIG=VALUE]...`: a producer; with `transactional.id` for transactions
    /// - `begin NAME`, `commit NAME`, `abort NAME`, `close NAME`
    /// - `send NAME TOPIC PARTITION KEY VALUE [HEADER=VALUE | HEADER]...`: waits until it is there
    ///   and answers its offset. `~` is null, `0x` begins bytes as
    ///   hexadecimal digits, `HEADER` alone has a null value
    /// - `post`, the same without the waiting; `settle` waits until all that was posted is there
    /// - `fill NAME TOPIC PARTITION COUNT BYTES`: so many records of that size, sent together
    /// - `trim TOPIC PARTITION OFFSET`: removes what lies below
    /// - `dump TOPIC FILE`: all that is in a topic, which need not exist; a line a record
    /// - `records TOPIC FILE`: the same with offset, key and headers, and bytes as digits
    pub fn say(&mut self, command: &[&str]) -> String {
        self.asked += 1;
        let mark = format!("{}\t", self.asked);
        let line = format!("{mark}{}\n", command.join("\t"));
        // Of thousands of answers, only what comes from here on is looked at.
        let seen = self.process.lines();
        self.input.write_all(line.as_bytes()).expect("the java producer runs");
        let answer = self
            .process
            .wait_for_line_after(seen, ANSWER, |line| line.strip_prefix(&mark).map(str::to_owned));
        let done = answer.strip_prefix("done");
        done.unwrap_or_else(|| panic!("{command:?}: {answer}")).trim().to_owned()
    }

    /// Partition and value of every record of a topic, in the order of each partition. A value
    /// must be one line.
    pub fn dump(&mut self, topic: &str) -> Vec<(u16, String)> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        self.say(&["dump", topic, file.path().to_str().expect("a path of UTF-8")]);
        let text = std::fs::read_to_string(file.path()).expect("it was written");
        let read = |line: &str| {
            let (partition, value) = line.split_once('\t')?;
            Some((partition.parse().ok()?, value.to_owned()))
        };
        text.lines().map(|line| read(line).expect("a partition and a value")).collect()
    }

    /// Every record of a topic, in the order of each partition.
    pub fn records(&mut self, topic: &str) -> Vec<Stored> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        self.say(&["records", topic, file.path().to_str().expect("a path of UTF-8")]);
        let text = std::fs::read_to_string(file.path()).expect("it was written");
        text.lines().map(|line| read_stored(line).expect("a record")).collect()
    }

    /// `send`, with its offset.
    pub fn send(&mut self, command: &[&str]) -> u64 {
        self.say(&[&["send"], command].concat()).parse().expect("an offset")
    }
}

fn read_stored(line: &str) -> Option<Stored> {
    let mut columns = line.split('\t');
    let partition = columns.next()?.parse().ok()?;
    let offset = columns.next()?.parse().ok()?;
    let (key, value) = (bytes_of(columns.next()?)?, bytes_of(columns.next()?)?);
    let headers = columns.map(|header| {
        let (name, value) = header.split_once('=')?;
        Some((name.to_owned(), bytes_of(value)?))
    });
    Some(Stored { partition, offset, key, value, headers: headers.collect::<Option<_>>()? })
}

/// Of hexadecimal digits; `~` is null.
fn bytes_of(digits: &str) -> Option<Option<Vec<u8>>> {
    if digits == "~" {
        return Some(None);
    }
    let pairs = digits.as_bytes().chunks(2);
    let bytes = pairs.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    Some(Some(bytes.collect::<Option<_>>()?))
}
