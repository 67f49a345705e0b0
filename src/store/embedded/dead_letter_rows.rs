//! Rows and keys of dead letters in the embedded store, as bytes
//! (`tests/golden/tables/embedded_dead_letters.tsv`), and what two rows of one original make.
//!
//! The dead letter of the smallest offset stays; a row that was purged holds none and stays so.

use serde::{Deserialize, Serialize};

use super::rows::{RowError, VERSION, json, read as read_json};
use crate::base::EpochMillis;
use crate::ports::{DeadLetterId, DeadLetterPlace, DeadLetterRow, Original};
use crate::store::dead_record::RecordJson;

const ORIGINAL_BYTES: usize = 16;
const LIST_KEY_BYTES: usize = 8 + ORIGINAL_BYTES;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeadJson {
    v: u32,
    topic: String,
    partition: u16,
    offset: u64,
    /// `None` once it was purged.
    record: Option<RecordJson>,
    purged_at: Option<EpochMillis>,
}

/// A row as it is stored; without the dead letter if that was purged.
pub struct Stored {
    pub row: Option<DeadLetterRow>,
}

pub fn write(row: &DeadLetterRow) -> Vec<u8> {
    json(&DeadJson {
        v: VERSION,
        topic: row.topic.clone(),
        partition: row.partition,
        offset: row.record.offset,
        record: Some(RecordJson::from(&row.record)),
        purged_at: None,
    })
}

pub fn write_purged(row: &DeadLetterRow, at: EpochMillis) -> Vec<u8> {
    json(&DeadJson {
        v: VERSION,
        topic: row.topic.clone(),
        partition: row.partition,
        offset: row.record.offset,
        record: None,
        purged_at: Some(at),
    })
}

pub fn join(stored: &[u8], new: &[u8]) -> Result<Vec<u8>, RowError> {
    let (stored, new) = (read_json::<DeadJson>(stored)?, read_json::<DeadJson>(new)?);
    let purged_at = stored.purged_at.into_iter().chain(new.purged_at).min();
    let rank = |row: &DeadJson| {
        (row.offset, row.partition, row.record.as_ref().map(|record| record.appended_at))
    };
    let mut first = if rank(&stored) <= rank(&new) { stored } else { new };
    first.purged_at = purged_at;
    if purged_at.is_some() {
        first.record = None;
    }
    Ok(json(&first))
}

pub fn read(bytes: &[u8]) -> Result<Stored, RowError> {
    let DeadJson { topic, partition, record, .. } = read_json::<DeadJson>(bytes)?;
    let record = record.map(RecordJson::read).transpose().map_err(RowError::Malformed)?;
    Ok(Stored { row: record.map(|record| DeadLetterRow { topic, partition, record }) })
}

/// Keys rise as the list goes: from the newest on.
pub fn list_key(place: DeadLetterPlace) -> [u8; LIST_KEY_BYTES] {
    let mut key = [0; LIST_KEY_BYTES];
    key[..8].copy_from_slice(&place.failed_at.0.to_be_bytes());
    key[8..].copy_from_slice(&place.original.0);
    key.map(|byte| !byte)
}

pub fn read_list_key(key: &[u8]) -> Result<DeadLetterPlace, RowError> {
    let malformed =
        || RowError::Malformed("key is no place in the list of dead letters".to_owned());
    let key: [u8; LIST_KEY_BYTES] = key.try_into().map_err(|_| malformed())?;
    let key = key.map(|byte| !byte);
    let (time, original) = key.split_first_chunk::<8>().ok_or_else(malformed)?;
    let failed_at = EpochMillis(u64::from_be_bytes(*time));
    Ok(DeadLetterPlace { failed_at, original: read_original(original)? })
}

pub fn id_key(id: &DeadLetterId) -> Vec<u8> {
    id.to_string().into_bytes()
}

pub fn read_original(bytes: &[u8]) -> Result<Original, RowError> {
    let malformed = |_| RowError::Malformed("no key of an original".to_owned());
    bytes.try_into().map(Original).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ports::{Record, TimedBy};

    const AT: EpochMillis = EpochMillis(1_795_514_400_123);

    fn row(offset: u64) -> DeadLetterRow {
        let record = Record {
            offset,
            appended_at: AT,
            timed_by: TimedBy::Log,
            key: Some(Bytes::from_static(b"ann")),
            value: Some(Bytes::from_static(b"not JSON")),
            headers: Vec::new(),
        };
        DeadLetterRow { topic: "t-dlt".to_owned(), partition: 0, record }
    }

    fn text(row: Vec<u8>) -> String {
        String::from_utf8(row).expect("JSON")
    }

    /// One row a line: name and text.
    #[test]
    fn golden_rows() {
        let golden = include_str!("../../../tests/golden/tables/embedded_dead_letters.tsv");
        let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let place = DeadLetterPlace { failed_at: AT, original: Original([1; 16]) };
        let rows = [
            ("dead letter", text(write(&row(7)))),
            ("purged", text(write_purged(&row(7), AT))),
            ("list key", hex(&list_key(place))),
            ("id key", hex(&id_key(&row(7).id()))),
        ];
        let lines: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), rows.len());
        for (line, (name, row)) in lines.iter().zip(rows) {
            assert_eq!(*line, format!("{name}\t{row}"));
        }
        assert_eq!(read_list_key(&list_key(place)), Ok(place));
        assert!(read_list_key(b"short").is_err() && read_original(b"short").is_err());
    }

    #[test]
    fn joining_knows_no_order() {
        let later = EpochMillis(AT.0 + 1);
        let all = [
            write(&row(7)),
            write(&row(8)),
            write_purged(&row(7), AT),
            write_purged(&row(8), later),
        ];
        let join = |one: &[u8], other: &[u8]| join(one, other).expect("rows of this release");
        for one in &all {
            assert_eq!(text(join(one, one)), text(one.clone()));
            for two in &all {
                assert_eq!(text(join(one, two)), text(join(two, one)));
                for three in &all {
                    assert_eq!(
                        text(join(&join(one, two), three)),
                        text(join(one, &join(two, three)))
                    );
                }
            }
        }
        assert_eq!(read(&join(&all[1], &all[0])).expect("a row").row, Some(row(7)));
        assert_eq!(read(&join(&all[0], &all[3])).expect("a row").row, None, "purged stays so");
    }
}
