//! A record of a dead-letter topic as stores keep it: versioned JSON, bytes in base64
//! (`tests/golden/tables/dead_record.json`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::base::EpochMillis;
use crate::ports::{Header, Record, TimedBy};

const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RecordJson {
    v: u32,
    pub offset: u64,
    pub appended_at: EpochMillis,
    /// Whose clock that is; else the producer's.
    is_append_time: bool,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, Option<String>)>,
}

impl From<&Record> for RecordJson {
    fn from(record: &Record) -> Self {
        let text = |bytes: &Bytes| STANDARD.encode(bytes);
        let headers = record.headers.iter();
        Self {
            v: VERSION,
            offset: record.offset,
            appended_at: record.appended_at,
            is_append_time: record.timed_by == TimedBy::Log,
            key: record.key.as_ref().map(text),
            value: record.value.as_ref().map(text),
            headers: headers
                .map(|header| (text(&header.name), header.value.as_ref().map(text)))
                .collect(),
        }
    }
}

impl RecordJson {
    /// Why not, if it is of a newer release or was not written by one.
    pub fn read(self) -> Result<Record, String> {
        if self.v > VERSION {
            return Err(format!("a dead letter of version {}, by a newer release", self.v));
        }
        let bytes = |text: String| {
            let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
            Ok::<Bytes, String>(bytes.into())
        };
        let header = |(name, value): (String, Option<String>)| {
            Ok::<Header, String>(Header {
                name: bytes(name)?,
                value: value.map(bytes).transpose()?,
            })
        };
        Ok(Record {
            offset: self.offset,
            appended_at: self.appended_at,
            timed_by: if self.is_append_time { TimedBy::Log } else { TimedBy::Producer },
            key: self.key.map(bytes).transpose()?,
            value: self.value.map(bytes).transpose()?,
            headers: self.headers.into_iter().map(header).collect::<Result<_, _>>()?,
        })
    }
}

pub(super) fn write(record: &Record) -> Vec<u8> {
    serde_json::to_vec(&RecordJson::from(record)).expect("a record is JSON")
}

pub(super) fn read(bytes: &[u8]) -> Result<Record, String> {
    serde_json::from_slice::<RecordJson>(bytes).map_err(|error| error.to_string())?.read()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let header = |name: &'static str, value: Option<&'static [u8]>| Header {
            name: Bytes::from_static(name.as_bytes()),
            value: value.map(Bytes::from_static),
        };
        Record {
            offset: 7,
            appended_at: EpochMillis(1_795_514_400_123),
            timed_by: TimedBy::Producer,
            key: None,
            value: Some(Bytes::from_static(&[0, 255, 10])),
            headers: vec![header("z", Some(b"1")), header("", None), header("z", Some(b""))],
        }
    }

    #[test]
    fn golden_record() {
        let golden = include_str!("../../tests/golden/tables/dead_record.json");
        let written = String::from_utf8(write(&record())).expect("JSON");
        assert_eq!(golden.trim_end(), written);
    }

    #[test]
    fn records_are_read_as_written_and_newer_ones_refused() {
        assert_eq!(read(&write(&record())), Ok(record()));
        let bare = Record { key: Some(Bytes::new()), value: None, headers: Vec::new(), ..record() };
        let of_log = Record { timed_by: TimedBy::Log, ..bare };
        assert_eq!(read(&write(&of_log)), Ok(of_log));
        let newer =
            String::from_utf8(write(&record())).expect("JSON").replace("\"v\":1", "\"v\":2");
        assert!(read(newer.as_bytes()).is_err_and(|said| said.contains("newer release")));
        let odd = String::from_utf8(write(&record())).expect("JSON").replace("AP8K", "AP8*");
        assert!(read(odd.as_bytes()).is_err());
        assert!(read(b"{}").is_err());
    }
}
