//! Dead letters in the embedded store: rows by original that are joined in the committing thread, a
//! list of them by time, and where each id is found.

use std::ops::Bound;

use async_trait::async_trait;

use super::EmbeddedStore;
use super::Keyspaces;
use super::commit::{Condition, JoinedRow, Row};
use super::dead_letter_rows::{self as rows, Stored};
use super::store::failed;
use crate::ports::{
    DeadLetterId, DeadLetterPlace, DeadLetterRow, DeadLetterRows, Original, StoreError,
};

#[async_trait]
impl DeadLetterRows for EmbeddedStore {
    async fn write_dead_letters(&self, letters: &[DeadLetterRow]) -> Result<(), StoreError> {
        if letters.is_empty() {
            return Ok(());
        }
        let written = letters.iter().map(|letter| JoinedRow {
            keyspace: self.keyspaces.dead_letter.clone(),
            key: letter.original().0.to_vec(),
            value: rows::write(letter),
            join: rows::join,
        });
        self.committer.join(written.collect()).await?;
        // What is listed is there. An entry of a row that has another place, or was purged, is
        // passed over.
        let found = letters.iter().flat_map(|letter| {
            let (listed, id) = (rows::list_key(letter.place()), rows::id_key(&letter.id()));
            [
                Row {
                    keyspace: self.keyspaces.dead_letter_list.clone(),
                    key: listed.to_vec(),
                    value: Some(Vec::new()),
                },
                Row {
                    keyspace: self.keyspaces.dead_letter_id.clone(),
                    key: id,
                    value: Some(letter.original().0.to_vec()),
                },
            ]
        });
        self.committer.write(found.collect(), Condition::None).await.map(drop)
    }

    async fn dead_letters(
        &self,
        after: Option<DeadLetterPlace>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        let start = after.map_or(Bound::Unbounded, |place| Bound::Excluded(rows::list_key(place)));
        self.read(move |keyspaces| {
            let (mut found, mut bytes) = (Vec::new(), 0);
            for entry in keyspaces.dead_letter_list.range((start, Bound::Unbounded)) {
                if found.len() == limit || bytes >= bytes_max {
                    break;
                }
                let key = entry.key().map_err(failed)?;
                let place = rows::read_list_key(&key)?;
                let row = stored(keyspaces, place.original)?.and_then(|stored| stored.row);
                if let Some(row) = row.filter(|row| row.place() == place) {
                    bytes += row.bytes();
                    found.push(row);
                }
            }
            Ok(found)
        })
        .await
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetterRow>, StoreError> {
        let id = id.clone();
        self.read(move |keyspaces| {
            let key = rows::id_key(&id);
            let Some(original) = keyspaces.dead_letter_id.get(key).map_err(failed)? else {
                return Ok(None);
            };
            let row = stored(keyspaces, rows::read_original(&original)?)?;
            Ok(row.and_then(|stored| stored.row).filter(|row| row.id() == id))
        })
        .await
    }

    async fn purge_dead_letter(&self, id: &DeadLetterId) -> Result<bool, StoreError> {
        let Some(row) = self.dead_letter(id).await? else { return Ok(false) };
        let place = row.place();
        let mark = JoinedRow {
            keyspace: self.keyspaces.dead_letter.clone(),
            key: place.original.0.to_vec(),
            value: rows::write_purged(&row, self.clock.wall()),
            join: rows::join,
        };
        self.committer.join(vec![mark]).await?;
        let listed = Row {
            keyspace: self.keyspaces.dead_letter_list.clone(),
            key: rows::list_key(place).to_vec(),
            value: None,
        };
        self.committer.write(vec![listed], Condition::None).await?;
        Ok(true)
    }
}

fn stored(keyspaces: &Keyspaces, original: Original) -> Result<Option<Stored>, StoreError> {
    let bytes = keyspaces.dead_letter.get(original.0).map_err(failed)?;
    Ok(bytes.map(|bytes| rows::read(&bytes)).transpose()?)
}
