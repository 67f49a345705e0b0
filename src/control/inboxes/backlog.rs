//! Building a backlog: the user's rows below the checkpoint, and the active group broadcasts that
//! he has not been served. Behind a cursor rows are served in any state, without one PENDING ones.
//!
//! The checkpoint is read first and the rows after it, so that everything below it is among them;
//! what lies behind it comes from the log.

use std::collections::HashSet;
use std::sync::Arc;

use super::known::{Checkpoint, Known};
use super::{KeptStore, Unavailable};
use crate::base::{EpochMillis, LogShape, Topic, UserId};
use crate::domain::{
    Backlog, Candidate, Gap, KeptMessage, Reach, Row, SINCE_EVER, Served, in_order,
};
use crate::lane::Ask;
use crate::limits::keeping as limits;
use crate::ports::{Delivery, GroupRow, InboxRow, StoreError};
use crate::wire::frame::{self, GapReason, Message};

/// The backlog, and the rows that the presented progress covers.
pub async fn build(
    kept: &KeptStore,
    ask: &Ask,
    shape: &LogShape,
) -> Result<(Backlog, Vec<Row>), Unavailable> {
    let known = kept.checkpoints.get(&kept.parts, shape).await?;
    let reach = reach(kept, ask, shape, &known).await?;
    let mut candidates = Vec::new();
    let mut covered = Vec::new();
    let Rows { found, is_cut: is_inbox_cut } = rows(kept, &ask.user).await?;
    let last = found.last().and_then(|row| row.place);
    for row in found {
        let candidate = candidate(&row, shape);
        let is_pending = row.progress.delivery == Delivery::Pending;
        // Delivered since this backlog began, or to whomever: this client may not have it.
        let is_doubtful = reach.is_resumed && row.delivered_at.unwrap_or(SINCE_EVER) >= reach.since;
        match candidate.position {
            Some(position) if reach.progress.covers(position) => {
                covered.extend(candidate.row.filter(|_| is_pending));
            }
            Some(position) if !reach.checkpoint.covers(position) => {}
            _ if is_pending || is_doubtful => candidates.push(candidate),
            _ => {}
        }
    }
    candidates.extend(group_candidates(kept, ask, (&reach, &known), shape).await?);
    let (messages, is_cut) = fill(kept, &ask.user, candidates).await?;
    let gap = is_inbox_cut.then(|| Gap {
        from: last.map_or(EpochMillis(0), |place| place.appended_at),
        to: kept.now(),
        reason: GapReason::Limit,
    });
    Ok((Backlog { gap, ..Backlog::new(reach, messages, is_cut) }, covered))
}

/// The rows that are PENDING and lie before this: they have reached the user.
pub async fn rows_before(
    kept: &KeptStore,
    user: &UserId,
    served: &Served,
    shape: &LogShape,
) -> Result<Vec<Row>, StoreError> {
    let mut rows = rows(kept, user).await?.found;
    rows.retain(|row| row.progress.delivery == Delivery::Pending);
    let reached = rows
        .iter()
        .map(|row| candidate(row, shape))
        .filter(|candidate| candidate.position.is_some_and(|position| served.covers(position)));
    Ok(reached.filter_map(|candidate| candidate.row).collect())
}

/// From where to where: never below what the client has been served, whatever this node knows.
async fn reach(
    kept: &KeptStore,
    ask: &Ask,
    shape: &LogShape,
    known: &Checkpoint,
) -> Result<Reach, Unavailable> {
    let own_partition = shape.partition_of_user(ask.user.as_str());
    let groups = usize::from(shape.group_partitions);
    let zero = || Served { own_partition, own: 0, group: vec![0; groups].into() };
    let (progress, since) = match &ask.progress {
        Some(presented) => presented.clone(),
        None => {
            let mut stored = zero();
            let places = kept.parts.inbox.cursor(&ask.user, shape.identity).await?;
            // How far the user's own messages have come, their rows say.
            let of_groups = places.iter().filter(|(partition, _)| partition.topic == Topic::Group);
            of_groups.for_each(|(partition, next)| stored.raise(*partition, *next));
            (stored, kept.now())
        }
    };
    let mut checkpoint = progress.clone();
    known.iter().for_each(|(partition, next)| checkpoint.raise(*partition, *next));
    Ok(Reach { progress, checkpoint, is_resumed: ask.progress.is_some(), since })
}

/// A user's rows that have a place, by broadcast.
struct Rows {
    found: Vec<InboxRow>,
    /// There are more than are looked at.
    is_cut: bool,
}

async fn rows(kept: &KeptStore, user: &UserId) -> Result<Rows, StoreError> {
    let mut found = Vec::new();
    let mut after = None;
    let mut seen = 0;
    loop {
        let rows = kept.parts.inbox.inbox(user, after, limits::ROWS_READ).await?;
        after = rows.last().map(|row| row.broadcast);
        seen += rows.len();
        let is_end = rows.len() < limits::ROWS_READ;
        // Without a place it is parked: it comes when it is published again.
        found.extend(rows.into_iter().filter(|row| row.place.is_some()));
        if is_end {
            return Ok(Rows { found, is_cut: false });
        }
        if seen >= limits::INBOX_ROWS_MAX {
            tracing::warn!(rows = seen, "an inbox has more rows than are looked at");
            return Ok(Rows { found, is_cut: true });
        }
    }
}

fn candidate(row: &InboxRow, shape: &LogShape) -> Candidate {
    let place = row.place.filter(|place| place.log == shape.identity);
    Candidate {
        broadcast: row.broadcast,
        position: place.map(|place| place.position),
        appended_at: row.place.map_or(EpochMillis(0), |place| place.appended_at),
        row: Some(Row { broadcast: row.broadcast, attempt: row.progress.attempt }),
    }
}

/// Group broadcasts that the user is in the audience of and has not been served.
async fn group_candidates(
    kept: &KeptStore,
    ask: &Ask,
    (reach, known): (&Reach, &Checkpoint),
    shape: &LogShape,
) -> Result<Vec<Candidate>, StoreError> {
    let now = kept.now();
    // Up to the checkpoint itself: a client may have been served more than is durable.
    let rows = kept.groups.between(&kept.parts, shape, (&reach.progress.group, known), now).await?;
    let ids: Vec<_> = rows.iter().map(|row| row.broadcast).collect();
    let contents = kept.contents.get(&kept.parts, &ids).await?;
    let mut met = HashSet::new();
    let is_his = |row: &&GroupRow| {
        // A broadcast that was published twice is served at its first place.
        contents
            .get(&row.broadcast)
            .is_some_and(|known| known.is_active(now) && known.admits(&ask.members))
            && met.insert(row.broadcast)
    };
    let candidate = |row: &GroupRow| Candidate {
        broadcast: row.broadcast,
        position: Some(row.place.position),
        appended_at: row.place.appended_at,
        row: None,
    };
    Ok(rows.iter().filter(is_his).map(candidate).collect())
}

/// Puts candidates into order and gives them what they say, as far as goes out at once; whether
/// there are more.
async fn fill(
    kept: &KeptStore,
    user: &UserId,
    candidates: Vec<Candidate>,
) -> Result<(Vec<KeptMessage>, bool), StoreError> {
    let now = kept.now();
    let mut messages = Vec::new();
    let mut bytes = 0;
    let mut rest = in_order(candidates).peekable();
    while rest.peek().is_some() {
        let room = kept.parts.messages_max.saturating_sub(messages.len());
        if room == 0 || bytes >= limits::BACKLOG_BYTES_MAX {
            return Ok((messages, true));
        }
        let piece: Vec<Candidate> = rest.by_ref().take(room).collect();
        let ids: Vec<_> = piece.iter().map(|candidate| candidate.broadcast).collect();
        let contents = kept.contents.get(&kept.parts, &ids).await?;
        for candidate in piece {
            // What has ended is for nobody any more; what nobody knows can't be said.
            let known = contents.get(&candidate.broadcast).filter(|known| known.is_active(now));
            let Some(known) = known else { continue };
            if bytes >= limits::BACKLOG_BYTES_MAX {
                return Ok((messages, true));
            }
            let body = frame_of(known, &candidate, user);
            bytes += body.len();
            messages.push(KeptMessage { candidate, expires_at: known.broadcast.expires_at, body });
        }
    }
    Ok((messages, false))
}

fn frame_of(known: &Known, candidate: &Candidate, user: &UserId) -> Arc<[u8]> {
    let write = |user_id: Option<&str>| -> Arc<[u8]> {
        let broadcast = &known.broadcast;
        let correlation = Some(broadcast.correlation_id.as_str());
        let mut body = Vec::new();
        let message = Message {
            broadcast_id: broadcast.id,
            user_id,
            correlation_id: correlation.filter(|text| !text.is_empty()),
            delivery_status: "PENDING",
            read_status: "UNREAD",
            delivered_at: None,
            read_at: None,
            created_at: Some(candidate.appended_at),
            sender_name: broadcast.sender_name.as_deref(),
            content: &broadcast.content,
            priority: broadcast.priority,
            category: broadcast.category.as_deref(),
            broadcast_created_at: Some(broadcast.created_at),
            scheduled_at: broadcast.scheduled_at,
            expires_at: broadcast.expires_at,
        };
        frame::write_message(&mut body, &message);
        body.into()
    };
    match candidate.row {
        Some(_) => write(Some(user.as_str())),
        None => known.shared_frame.get_or_init(|| write(None)).clone(),
    }
}
