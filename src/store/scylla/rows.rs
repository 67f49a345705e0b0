//! Rows as the tables hold them, and what they mean.

use scylla::value::{CqlTimestamp, MaybeUnset};
use scylla::{DeserializeRow, SerializeRow};
use uuid::Uuid;

use crate::base::{BroadcastId, EpochMillis, Priority, Status, TargetType};
use crate::domain::{Broadcast, Target};
use crate::limits::store as limits;
use crate::ports::StoreError;

/// A row of `broadcast` to write. What is absent is unset, never null: a null is a tombstone.
#[derive(SerializeRow)]
pub(super) struct NewBroadcast<'a> {
    id: i64,
    claim: MaybeUnset<Uuid>,
    created_at: CqlTimestamp,
    correlation_id: &'a str,
    sender_id: MaybeUnset<&'a str>,
    sender_name: MaybeUnset<&'a str>,
    content: &'a str,
    target_type: &'static str,
    target_ids: MaybeUnset<&'a [String]>,
    target_count: i32,
    target_chunks: i32,
    priority: &'static str,
    category: MaybeUnset<&'a str>,
    scheduled_at: MaybeUnset<CqlTimestamp>,
    expires_at: MaybeUnset<CqlTimestamp>,
    fire_and_forget: bool,
}

/// A row of `broadcast` as it is read. A column that is null was unset, or added later.
#[derive(DeserializeRow)]
pub(super) struct BroadcastColumns {
    id: i64,
    created_at: Option<CqlTimestamp>,
    correlation_id: Option<String>,
    sender_id: Option<String>,
    sender_name: Option<String>,
    content: Option<String>,
    target_type: Option<String>,
    target_ids: Option<Vec<String>>,
    target_count: Option<i32>,
    target_chunks: Option<i32>,
    priority: Option<String>,
    category: Option<String>,
    scheduled_at: Option<CqlTimestamp>,
    expires_at: Option<CqlTimestamp>,
    fire_and_forget: Option<bool>,
}

/// The times by which a broadcast is listed.
#[derive(DeserializeRow)]
pub(super) struct TimesColumns {
    created_at: Option<CqlTimestamp>,
    scheduled_at: Option<CqlTimestamp>,
    expires_at: Option<CqlTimestamp>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub created_at: EpochMillis,
    pub scheduled_at: Option<EpochMillis>,
    pub expires_at: Option<EpochMillis>,
}

impl<'a> NewBroadcast<'a> {
    pub fn new(broadcast: &'a Broadcast, claim: Option<Uuid>) -> Self {
        let ids = &broadcast.target.ids;
        let chunks = chunks_of(ids).len();
        Self {
            id: id_column(broadcast.id),
            claim: MaybeUnset::from_option(claim),
            created_at: time_column(broadcast.created_at),
            correlation_id: &broadcast.correlation_id,
            sender_id: MaybeUnset::from_option(broadcast.sender_id.as_deref()),
            sender_name: MaybeUnset::from_option(broadcast.sender_name.as_deref()),
            content: &broadcast.content,
            target_type: broadcast.target.r#type.word(),
            target_ids: MaybeUnset::from_option((chunks == 0).then_some(ids.as_slice())),
            target_count: count_column(ids.len()),
            target_chunks: count_column(chunks),
            priority: broadcast.priority.word(),
            category: MaybeUnset::from_option(broadcast.category.as_deref()),
            scheduled_at: MaybeUnset::from_option(broadcast.scheduled_at.map(time_column)),
            expires_at: MaybeUnset::from_option(broadcast.expires_at.map(time_column)),
            fire_and_forget: broadcast.fire_and_forget,
        }
    }
}

/// The chunks that stand in `audience`; none if all ids stand in the row.
pub(super) fn chunks_of(ids: &[String]) -> Vec<&[String]> {
    if ids.len() <= limits::AUDIENCE_CHUNK_IDS {
        return Vec::new();
    }
    ids.chunks(limits::AUDIENCE_CHUNK_IDS).collect()
}

impl BroadcastColumns {
    /// How many chunks of the audience stand elsewhere.
    pub fn chunks(&self) -> i32 {
        self.target_chunks.unwrap_or(0)
    }

    /// The broadcast, with the chunks of its audience.
    pub fn read(mut self, chunks: Vec<Vec<String>>) -> Result<Broadcast, StoreError> {
        let mut ids = self.target_ids.take().unwrap_or_default();
        ids.extend(chunks.into_iter().flatten());
        if count_column(ids.len()) != self.target_count.unwrap_or(0) {
            return Err(malformed(&format!("broadcast {}: its audience is not complete", self.id)));
        }
        self.read_with(ids)
    }

    /// The broadcast, without the audience of a SELECTED one.
    pub fn read_content(self) -> Result<Broadcast, StoreError> {
        if self.target_type.as_deref() == Some(TargetType::Selected.word()) {
            return self.read_with(Vec::new());
        }
        self.read(Vec::new())
    }

    fn read_with(self, ids: Vec<String>) -> Result<Broadcast, StoreError> {
        let number = self.id;
        let malformed = |what: &str| malformed(&format!("broadcast {number}: {what}"));
        let target_type = self.target_type.unwrap_or_default();
        let priority = self.priority.unwrap_or_default();
        Ok(Broadcast {
            id: read_id(number)?,
            correlation_id: self.correlation_id.unwrap_or_default(),
            sender_id: self.sender_id,
            sender_name: self.sender_name,
            content: self.content.ok_or_else(|| malformed("no content"))?,
            target: Target {
                r#type: TargetType::from_word(&target_type)
                    .ok_or_else(|| malformed(&format!("unknown target type {target_type:?}")))?,
                ids,
            },
            priority: Priority::from_word(&priority)
                .ok_or_else(|| malformed(&format!("unknown priority {priority:?}")))?,
            category: self.category,
            created_at: read_time(self.created_at)?.ok_or_else(|| malformed("no time"))?,
            scheduled_at: read_time(self.scheduled_at)?,
            expires_at: read_time(self.expires_at)?,
            fire_and_forget: self.fire_and_forget.unwrap_or(false),
        })
    }
}

impl TimesColumns {
    pub fn read(self) -> Result<Times, StoreError> {
        Ok(Times {
            created_at: read_time(self.created_at)?.ok_or_else(|| malformed("no time"))?,
            scheduled_at: read_time(self.scheduled_at)?,
            expires_at: read_time(self.expires_at)?,
        })
    }
}

/// Ids are at most 2^53-1.
pub(super) fn id_column(id: BroadcastId) -> i64 {
    id.get().cast_signed()
}

pub(super) fn read_id(number: i64) -> Result<BroadcastId, StoreError> {
    let id = u64::try_from(number).ok().and_then(BroadcastId::new);
    id.ok_or_else(|| malformed(&format!("{number} is no broadcast id")))
}

pub(super) fn time_column(at: EpochMillis) -> CqlTimestamp {
    CqlTimestamp(at.0.min(EpochMillis::MAX.0).cast_signed())
}

pub(super) fn read_time(at: Option<CqlTimestamp>) -> Result<Option<EpochMillis>, StoreError> {
    at.map(|CqlTimestamp(millis)| {
        let millis = u64::try_from(millis).map_err(|_| malformed("a time before 1970"))?;
        Ok(EpochMillis(millis))
    })
    .transpose()
}

/// When a row counts as written: a repeated or late statement changes nothing.
pub(super) fn written_at(at: EpochMillis) -> i64 {
    at.0.min(EpochMillis::MAX.0).cast_signed() * 1_000
}

/// The start of the span that holds this time.
pub(super) fn bucket_of(at: EpochMillis, span: std::time::Duration) -> EpochMillis {
    let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    EpochMillis(at.0 / span * span)
}

pub(super) fn read_status(word: &str) -> Result<Status, StoreError> {
    Status::from_word(word).ok_or_else(|| malformed(&format!("unknown status {word:?}")))
}

pub(super) fn malformed(what: &str) -> StoreError {
    StoreError::Failed(format!("malformed row, or one of a newer release: {what}"))
}

fn count_column(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn small_audiences_stand_in_the_row() {
        let ids = |count: usize| vec!["u".to_owned(); count];
        let sizes = |ids: &[String]| -> Vec<usize> {
            chunks_of(ids).into_iter().map(<[String]>::len).collect()
        };
        assert!(sizes(&ids(0)).is_empty() && sizes(&ids(1_000)).is_empty());
        assert_eq!(sizes(&ids(1_001)), [1_000, 1]);
        assert_eq!(sizes(&ids(2_000)), [1_000, 1_000]);
    }

    #[test]
    fn buckets_begin_where_their_span_does() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(bucket_of(EpochMillis(3_600_000), hour), EpochMillis(3_600_000));
        assert_eq!(bucket_of(EpochMillis(7_199_999), hour), EpochMillis(3_600_000));
        assert_eq!(bucket_of(EpochMillis(0), hour), EpochMillis(0));
    }
}
