//! Whether an event has come to where it is served, as inbox and parking say it.

use super::{Inbox, Parking, StoreError};
use crate::domain::Aside;

/// Whether it stands where it is served, and its owner has made that durable. Asked behind the
/// checkpoint (`Rooms::look`): what is not found lies above that.
pub async fn stands(
    inbox: &dyn Inbox,
    parking: &dyn Parking,
    aside: &Aside,
) -> Result<bool, StoreError> {
    let id = aside.kept.broadcast;
    let Some(user) = aside.user.as_ref().filter(|_| aside.has_row) else {
        return parking.is_served(aside.kept.event).await;
    };
    Ok(inbox.row(user, id).await?.is_some_and(|row| row.place.is_some()))
}
