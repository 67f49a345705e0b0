//! Dead letters: records that can't be processed, put into the topic beside their own with their
//! bytes and the reason, before the owner commits beyond them.
//!
//! What is done twice leaves two records there, which name one original; who reads them back makes
//! one row of them.

use std::sync::Arc;

use bytes::Bytes;

use super::counters::{OwnerCounters, add};
use crate::base::Partition;
use crate::domain::BadRecord;
use crate::limits::owner as limits;
use crate::ports::{Backoff, Header, Log, LogError, LogNames, MovedRecord, Record, TimedBy};
use crate::wire::dead_letter::{CUT, DeadHeaders};

/// Why records end here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeadClass {
    /// Nobody can make sense of it.
    BadRecord,
    /// It names a broadcast that the store does not know and that it can't be served without.
    UnknownBroadcast,
    /// The test mode had it fail.
    SimulatedFailure,
}

impl DeadClass {
    pub const ALL: [Self; 3] = [Self::BadRecord, Self::UnknownBroadcast, Self::SimulatedFailure];

    /// As the metrics say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRecord => "bad_record",
            Self::UnknownBroadcast => "unknown_broadcast",
            Self::SimulatedFailure => "simulated_failure",
        }
    }

    /// As consoles show it.
    const fn fqcn(self) -> &'static str {
        match self {
            Self::BadRecord => "corecast.BadRecord",
            Self::UnknownBroadcast => "corecast.UnknownBroadcast",
            Self::SimulatedFailure => "corecast.SimulatedFailure",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadReason {
    pub class: DeadClass,
    pub message: String,
}

impl From<BadRecord> for DeadReason {
    fn from(bad: BadRecord) -> Self {
        Self { class: DeadClass::BadRecord, message: bad.to_string() }
    }
}

/// A record that can't be processed, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    pub partition: Partition,
    pub record: Record,
    pub reason: DeadReason,
}

/// Writes them.
pub struct DeadLetters {
    log: Arc<dyn Log>,
    names: LogNames,
    counters: Arc<OwnerCounters>,
}

/// How much is left of a dead letter that is too large.
#[derive(Clone, Copy, Debug)]
struct Left {
    value_bytes: usize,
    has_headers: bool,
    has_key: bool,
}

impl DeadLetters {
    pub fn new(log: Arc<dyn Log>, names: LogNames, counters: Arc<OwnerCounters>) -> Self {
        Self { log, names, counters }
    }

    /// Returns once all of them are durable, however long the log is away.
    pub async fn keep(&self, letters: &[DeadLetter]) {
        let mut backoff = Backoff::new(limits::RETRY_WAIT_FIRST, limits::RETRY_WAIT_MAX);
        while let Err(error) = self.append(letters).await {
            add(&self.counters.dead_letter_retries, 1);
            match &error {
                LogError::Away(reason) => tracing::debug!(reason, "dead letters have to wait"),
                _ => tracing::error!(%error, "dead letters can't be written"),
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// One try. `Ok` means durable. On an error any of them may have been written.
    pub async fn append(&self, letters: &[DeadLetter]) -> Result<(), LogError> {
        if letters.is_empty() {
            return Ok(());
        }
        let records = letters.iter().map(|letter| self.record(letter)).collect();
        match self.log.append_moved(records).await {
            Ok(_) => {}
            // It may be that only all together are too large.
            Err(LogError::Oversized { .. }) => {
                for letter in letters {
                    self.append_cut(letter).await?;
                }
            }
            Err(error) => return Err(error),
        }
        for letter in letters {
            add(&self.counters.dead_letters[letter.reason.class as usize], 1);
        }
        Ok(())
    }

    /// Cuts it until the broker takes it.
    async fn append_cut(&self, letter: &DeadLetter) -> Result<(), LogError> {
        let mut left = None;
        loop {
            let mut record = self.record(letter);
            if let Some(left) = left {
                cut(letter, &mut record, left);
            }
            let error = match self.log.append_moved(vec![record]).await {
                Err(error @ LogError::Oversized { .. }) => error,
                other => return other.map(drop),
            };
            left = Some(Left::next(left, letter).ok_or(error)?);
        }
    }

    fn record(&self, letter: &DeadLetter) -> MovedRecord {
        let DeadLetter { partition, record, reason } = letter;
        let topic = self.names.topic(partition.topic);
        let added = DeadHeaders {
            topic: &topic,
            partition: partition.index,
            offset: record.offset,
            timestamp: record.appended_at.0,
            is_append_time: record.timed_by == TimedBy::Log,
            consumer_group: &self.names.consumer_groups[partition.topic.original() as usize],
            cause: reason.class.fqcn(),
            message: beginning(&reason.message),
        };
        let added = added.write().into_iter().map(|(name, value)| header(name, value));
        MovedRecord {
            to: Partition { topic: partition.topic.dead(), index: 0 },
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.iter().cloned().chain(added).collect(),
        }
    }
}

impl Left {
    /// Half of the value, and none of it, then no header of its own, then no key. `None` if there
    /// is nothing to cut any more.
    fn next(before: Option<Self>, letter: &DeadLetter) -> Option<Self> {
        let value_bytes = letter.record.value.as_ref().map_or(0, Bytes::len);
        let whole = Self { value_bytes, has_headers: true, has_key: true };
        let left = before.unwrap_or(whole);
        if left.value_bytes > limits::DEAD_VALUE_BYTES_CUT {
            Some(Self { value_bytes: limits::DEAD_VALUE_BYTES_CUT, ..left })
        } else if left.value_bytes > 0 {
            Some(Self { value_bytes: left.value_bytes / 2, ..left })
        } else if left.has_headers && !letter.record.headers.is_empty() {
            Some(Self { has_headers: false, ..left })
        } else if left.has_key && letter.record.key.is_some() {
            Some(Self { has_headers: false, has_key: false, ..left })
        } else {
            None
        }
    }
}

/// Leaves of it what is said, and says what is not there.
fn cut(letter: &DeadLetter, record: &mut MovedRecord, left: Left) {
    let mut gone = Vec::new();
    if let Some(value) = record.value.as_mut().filter(|value| value.len() > left.value_bytes) {
        gone.push(format!("value of {} bytes", value.len()));
        value.truncate(left.value_bytes);
    }
    if !left.has_headers {
        let own = letter.record.headers.len();
        record.headers.drain(..own);
        if own > 0 {
            gone.push(format!("{own} headers"));
        }
    }
    if !left.has_key
        && let Some(key) = record.key.take()
    {
        gone.push(format!("key of {} bytes", key.len()));
    }
    record.headers.push(header(CUT, gone.join(", ").into_bytes()));
}

fn header(name: &'static str, value: Vec<u8>) -> Header {
    Header { name: Bytes::from_static(name.as_bytes()), value: Some(value.into()) }
}

/// As much of a reason as is kept.
fn beginning(message: &str) -> &str {
    &message[..message.floor_char_boundary(limits::DEAD_REASON_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use async_trait::async_trait;

    use super::*;
    use crate::base::{EpochMillis, LogShape, Position, Topic};
    use crate::ports::{Batch, Bounds, NewRecord, Want};

    /// Takes so many bytes at once, and is away at first.
    struct Small {
        bytes_max: usize,
        tries_away: usize,
        taken: Mutex<(usize, Vec<Vec<MovedRecord>>)>,
    }

    fn bytes_of(record: &MovedRecord) -> usize {
        let text = |text: &Option<Bytes>| text.as_ref().map_or(0, Bytes::len);
        let headers = record.headers.iter();
        let headers: usize = headers.map(|one| one.name.len() + text(&one.value)).sum();
        text(&record.key) + text(&record.value) + headers
    }

    #[async_trait]
    impl Log for Small {
        async fn shape(&self) -> Result<LogShape, LogError> {
            unreachable!("nobody asks")
        }

        async fn bounds(&self, _: Partition) -> Result<Bounds, LogError> {
            unreachable!("nobody asks")
        }

        async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
            unreachable!("a dead letter is moved")
        }

        async fn append_moved(&self, all: Vec<MovedRecord>) -> Result<Vec<Position>, LogError> {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.0 += 1;
            if taken.0 <= self.tries_away {
                return Err(LogError::Away("as it is meant to be".to_owned()));
            }
            let bytes = all.iter().map(bytes_of).sum();
            if bytes > self.bytes_max {
                return Err(LogError::Oversized { topic: "t".to_owned(), bytes });
            }
            let places = all.iter().map(|one| Position { partition: one.to, offset: 0 }).collect();
            taken.1.push(all);
            Ok(places)
        }

        async fn fetch(&self, _: &[Want], _: usize, _: Duration) -> Result<Vec<Batch>, LogError> {
            unreachable!("nobody fetches")
        }
    }

    fn letter(key: usize, value: usize, own: usize) -> DeadLetter {
        let record = Record {
            offset: 258,
            appended_at: EpochMillis(5),
            timed_by: TimedBy::Log,
            key: (key > 0).then(|| vec![b'k'; key].into()),
            value: (value > 0).then(|| vec![b'v'; value].into()),
            headers: (0..own).map(|_| header("own", vec![b'h'; 100])).collect(),
        };
        let partition = Partition { topic: Topic::Group, index: 3 };
        let reason = DeadReason { class: DeadClass::UnknownBroadcast, message: "why".to_owned() };
        DeadLetter { partition, record, reason }
    }

    /// What a log with room for so much was given, and how many tries that took.
    fn given(
        bytes_max: usize,
        tries_away: usize,
        letters: &[DeadLetter],
    ) -> (Result<(), LogError>, usize, Vec<Vec<MovedRecord>>) {
        let log = Arc::new(Small { bytes_max, tries_away, taken: Mutex::default() });
        let counters = Arc::<OwnerCounters>::default();
        let dead = DeadLetters::new(log.clone(), LogNames::default(), counters.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let outcome = runtime.expect("a runtime").block_on(async {
            if tries_away > 0 {
                dead.keep(letters).await;
                return Ok(());
            }
            dead.append(letters).await
        });
        let counted = &counters.dead_letters[DeadClass::UnknownBroadcast as usize];
        let expected = if outcome.is_ok() { letters.len() } else { 0 };
        assert_eq!(counted.load(std::sync::atomic::Ordering::Relaxed), expected as u64);
        let (tries, taken) =
            std::mem::take(&mut *log.taken.lock().unwrap_or_else(PoisonError::into_inner));
        (outcome, tries, taken)
    }

    fn said(record: &MovedRecord, name: &str) -> Option<String> {
        let is_it = |header: &&Header| header.name == name.as_bytes();
        let value = record.headers.iter().rev().find(is_it)?.value.clone()?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    #[test]
    fn a_dead_letter_is_its_record_and_more_headers() {
        let one = letter(1, 2, 2);
        let (outcome, tries, taken) = given(usize::MAX, 0, &[one.clone(), letter(0, 0, 0)]);
        outcome.expect("there is room");
        assert_eq!((tries, taken.len(), taken[0].len()), (1, 1, 2), "together");
        let [record, bare] = &taken[0][..] else { panic!("{taken:?}") };
        assert_eq!(record.to, Partition { topic: Topic::GroupDead, index: 0 });
        assert_eq!((&record.key, &record.value), (&one.record.key, &one.record.value));
        assert_eq!(record.headers[..2], one.record.headers);
        assert_eq!((&bare.key, &bare.value), (&None, &None));
        let said = |name: &str| said(record, &format!("kafka_dlt-{name}"));
        for (name, value) in [
            ("original-topic", "broadcast-user-service-group"),
            ("original-consumer-group", "broadcast-service-group-group"),
            ("original-timestamp-type", "LogAppendTime"),
            ("exception-cause-fqcn", "corecast.UnknownBroadcast"),
            ("exception-message", "why"),
        ] {
            assert_eq!(said(name).as_deref(), Some(value));
        }
        assert!(record.headers.iter().all(|header| header.name != CUT));
        assert_eq!(given(0, 0, &[]).1, 0, "nothing is to be written");
    }

    #[test]
    fn what_is_too_large_only_together_is_whole() {
        let letters = [letter(1, 3_000, 0), letter(1, 3_000, 0), letter(1, 3_000, 0)];
        let (outcome, _, taken) = given(5_000, 0, &letters);
        outcome.expect("each has room");
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        for (one, letter) in taken.iter().flatten().zip(&letters) {
            assert_eq!(one.value, letter.record.value);
            assert_eq!(said(one, CUT), None);
        }
    }

    #[test]
    fn what_is_too_large_is_cut_and_says_so() {
        let most = limits::DEAD_VALUE_BYTES_CUT;
        for (room, key, value, own, kept, cut) in [
            (most + 10_000, 5, 3 * most, 2, (Some(5), most, 2), "value of 2700000 bytes"),
            (3_000, 5, 8_000, 2, (Some(5), 2_000, 2), "value of 8000 bytes"),
            (3_000, 5, 8_000, 40, (Some(5), 0, 0), "value of 8000 bytes, 40 headers"),
            (3_000, 5_000, 0, 0, (None, 0, 0), "key of 5000 bytes"),
        ] {
            let (outcome, _, taken) = given(room, 0, &[letter(key, value, own)]);
            outcome.expect("there is room for some of it");
            let record = &taken[0][0];
            let own = record.headers.iter().filter(|header| header.name == "own").count();
            let left = record.value.as_ref().map_or(0, Bytes::len);
            assert_eq!((record.key.as_ref().map(Bytes::len), left, own), kept);
            assert_eq!(said(record, CUT).as_deref(), Some(cut));
            assert_eq!(said(record, "kafka_dlt-exception-message").as_deref(), Some("why"));
        }
    }

    #[test]
    fn a_topic_without_any_room_is_an_error_and_an_outage_is_waited_out() {
        let (outcome, tries, taken) = given(10, 0, &[letter(1, 1_000, 1)]);
        assert!(matches!(outcome, Err(LogError::Oversized { .. })), "{outcome:?}");
        assert!(taken.is_empty() && tries < 30, "{tries} tries");
        let (_, tries, taken) = given(usize::MAX, 2, &[letter(1, 1, 0)]);
        assert_eq!((tries, taken.len()), (3, 1));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let long = "\u{e4}".repeat(limits::DEAD_REASON_BYTES_MAX);
        assert_eq!(beginning(&long).len(), limits::DEAD_REASON_BYTES_MAX);
        assert_eq!(beginning(&format!("a{long}")).len(), limits::DEAD_REASON_BYTES_MAX - 1);
        assert_eq!(beginning("short"), "short");
    }
}
