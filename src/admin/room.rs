//! How many calls may be at what costs memory, whoever asks. Others wait, and are put off if that
//! takes too long.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, RwLock, RwLockReadGuard, Semaphore};

use super::errors::Failure;
use crate::limits::admin as limits;

/// Shared by all calls.
#[derive(Debug)]
pub struct Room {
    creates: Arc<Semaphore>,
    large_creates: Arc<Semaphore>,
    cancels: Arc<Semaphore>,
    rows: Arc<Semaphore>,
}

/// The place of a create; it keeps it as long as it is under way, answered or not.
pub(super) struct CreatePlace {
    _place: OwnedSemaphorePermit,
    _large: Option<OwnedSemaphorePermit>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            creates: Arc::new(Semaphore::new(limits::CREATES_MAX)),
            large_creates: Arc::new(Semaphore::new(limits::LARGE_CREATES_MAX)),
            cancels: Arc::new(Semaphore::new(limits::CANCELS_MAX)),
            rows: Arc::new(Semaphore::new(limits::ROWS_HELD_MAX)),
        }
    }
}

impl Room {
    /// Before the body of a create is read. Without a length it may be large.
    pub(super) async fn for_create(&self, length: Option<u64>) -> Result<CreatePlace, Failure> {
        let full = |_| {
            let message = "too many broadcasts are being created; try again";
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, message)
        };
        let place = self.creates.clone().try_acquire_owned().map_err(full)?;
        let is_small = length.is_some_and(|length| length <= limits::SMALL_CREATE_BYTES_MAX);
        let large = if is_small {
            None
        } else {
            let waiting = self.large_creates.clone().acquire_owned();
            let place = tokio::time::timeout(limits::ANSWER_TIME, waiting).await;
            let full = |_| {
                let message = "too many large broadcasts are being created; try again";
                Failure::new(StatusCode::SERVICE_UNAVAILABLE, message)
            };
            place.map_err(full)?.ok()
        };
        Ok(CreatePlace { _place: place, _large: large })
    }

    /// The place of a cancel; it keeps it as long as it is under way, answered or not.
    pub(super) fn for_cancel(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let full = |_| {
            let message = "too many broadcasts are being cancelled; try again";
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, message)
        };
        self.cancels.clone().try_acquire_owned().map_err(full)
    }

    /// Before that many rows are read from the store, for as long as they are held.
    pub(super) async fn for_rows(&self, rows: usize) -> Option<OwnedSemaphorePermit> {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        // It is never closed.
        self.rows.clone().acquire_many_owned(rows).await.ok()
    }
}

/// Calls that are being answered, so that a node which ends does not leave them without a word.
#[derive(Debug, Default)]
pub struct OpenCalls(RwLock<()>);

impl OpenCalls {
    /// Held until it is answered. `None`: the node has ended but for the calls that are open.
    pub(super) fn begin(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.0.try_read().ok()
    }

    /// Waits until all are answered, for so long; whether they are. Others are refused meanwhile.
    pub async fn end(&self, at_most: Duration) -> bool {
        let ended = tokio::time::timeout(at_most, self.0.write()).await;
        // Nobody is let in any more.
        ended.map(std::mem::forget).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_calls_are_waited_for_and_no_other_begins() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let calls = OpenCalls::default();
            let (first, second) = (calls.begin(), calls.begin());
            assert!(first.is_some() && second.is_some());
            drop(first);
            let mut ending = Box::pin(calls.end(Duration::from_secs(60)));
            let soon = tokio::time::timeout(Duration::from_millis(1), &mut ending).await;
            assert!(soon.is_err() && calls.begin().is_none());
            drop(second);
            assert!(ending.await && calls.begin().is_none());
            assert!(!calls.end(Duration::ZERO).await, "it does not wait for ever");
        });
    }

    #[test]
    fn a_create_too_many_is_put_off_and_has_room_later() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let room = Room::default();
            let mut places = Vec::new();
            for _ in 0..limits::CREATES_MAX {
                places.push(room.for_create(Some(1)).await.expect("there is room"));
            }
            let refused = room.for_create(Some(1)).await.err().expect("it is full");
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
            places.pop();
            assert!(room.for_create(Some(1)).await.is_ok());
        });
    }

    #[test]
    fn a_cancel_too_many_is_put_off_and_has_room_later() {
        let room = Room::default();
        let place = |_| room.for_cancel().expect("there is room");
        let mut places: Vec<_> = (0..limits::CANCELS_MAX).map(place).collect();
        let refused = room.for_cancel().expect_err("it is full");
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.message.contains("cancelled"), "{}", refused.message);
        places.pop();
        assert!(room.for_cancel().is_ok());
    }
}
