//! The audit in the embedded store (`tests/golden/tables/embedded_audit.tsv`).

use std::ops::Bound;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::EmbeddedStore;
use super::commit::{Condition, Row};
use super::rows::{RowError, VERSION, json, read};
use super::store::failed;
use crate::base::EpochMillis;
use crate::ports::{Audit, AuditLine, AuditPlace, Audited, AuditedCounts, StoreError};

const KEY_BYTES: usize = 8 + 16;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditJson {
    v: u32,
    action: String,
    letter: Option<String>,
    node: String,
    succeeded: Option<u64>,
    failed: Option<u64>,
}

#[async_trait]
impl Audit for EmbeddedStore {
    async fn write_audit(&self, line: &AuditLine) -> Result<(), StoreError> {
        let row = Row {
            keyspace: self.keyspaces.dead_letter_audit.clone(),
            key: key(line.place()).to_vec(),
            value: Some(write(line)),
        };
        // That it began takes no outcome away.
        let condition = if line.counts.is_none() { Condition::Absent } else { Condition::None };
        self.committer.write(vec![row], condition).await.map(drop)
    }

    async fn audit(
        &self,
        after: Option<AuditPlace>,
        limit: usize,
    ) -> Result<Vec<AuditLine>, StoreError> {
        let start = after.map_or(Bound::Unbounded, |place| Bound::Excluded(key(place)));
        self.read(move |keyspaces| {
            let mut found = Vec::new();
            let lines = keyspaces.dead_letter_audit.range((start, Bound::Unbounded));
            for entry in lines.take(limit) {
                let (key, value) = entry.into_inner().map_err(failed)?;
                found.push(read_line(&key, &value)?);
            }
            Ok(found)
        })
        .await
    }
}

fn write(line: &AuditLine) -> Vec<u8> {
    json(&AuditJson {
        v: VERSION,
        action: line.what.word().to_owned(),
        letter: line.letter.as_ref().map(ToString::to_string),
        node: line.node.clone(),
        succeeded: line.counts.map(|counts| counts.succeeded),
        failed: line.counts.map(|counts| counts.failed),
    })
}

fn read_line(key: &[u8], value: &[u8]) -> Result<AuditLine, RowError> {
    let malformed = || RowError::Malformed("a line of the audit".to_owned());
    let key: [u8; KEY_BYTES] = key.try_into().map_err(|_| malformed())?;
    let key = key.map(|byte| !byte);
    let (time, id) = key.split_first_chunk::<8>().ok_or_else(malformed)?;
    let id = Uuid::from_slice(id).map_err(|_| malformed())?;
    let row = read::<AuditJson>(value)?;
    let letter = row.letter.map(|letter| letter.parse()).transpose().map_err(|()| malformed())?;
    let counts = row.succeeded.zip(row.failed);
    Ok(AuditLine {
        at: EpochMillis(u64::from_be_bytes(*time)),
        id,
        what: Audited::from_word(&row.action).ok_or_else(malformed)?,
        letter,
        node: row.node,
        counts: counts.map(|(succeeded, failed)| AuditedCounts { succeeded, failed }),
    })
}

/// Keys rise as the list goes: from the newest on.
fn key(place: AuditPlace) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&place.at.0.to_be_bytes());
    key[8..].copy_from_slice(place.id.as_bytes());
    key.map(|byte| !byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row a line: name and text.
    #[test]
    fn golden_rows() {
        let golden = include_str!("../../../tests/golden/tables/embedded_audit.tsv");
        let one = AuditLine {
            at: EpochMillis(1_795_514_400_123),
            id: Uuid::from_u128(42),
            what: Audited::Purge,
            letter: Some("t-dlt-0-7".parse().expect("an id")),
            node: "east-1".to_owned(),
            counts: None,
        };
        let counts = Some(AuditedCounts { succeeded: 2, failed: 1 });
        let all = AuditLine { what: Audited::RedriveAll, letter: None, counts, ..one.clone() };
        let text = |line: &AuditLine| String::from_utf8(write(line)).expect("JSON");
        let hex: String = key(one.place()).iter().map(|byte| format!("{byte:02x}")).collect();
        let rows = [("one", text(&one)), ("all", text(&all)), ("key", hex)];
        let lines: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), rows.len());
        for (line, (name, row)) in lines.iter().zip(rows) {
            assert_eq!(*line, format!("{name}\t{row}"));
        }
        for line in [one, all] {
            assert_eq!(read_line(&key(line.place()), &write(&line)), Ok(line));
        }
        assert!(read_line(b"short", b"{}").is_err());
    }
}
