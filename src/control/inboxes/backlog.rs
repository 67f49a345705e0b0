//! Building a backlog: the user's rows below the checkpoint, and the active group broadcasts that
//! he has not been served. Behind a cursor rows are served in any state, without one PENDING ones.
//!
//! The checkpoint is read first and the rows after it, so that everything below it is among them;
//! what lies behind it comes from the log.

use std::collections::HashSet;
use std::sync::Arc;

use super::known::{Checkpoint, Durable, Known};
use super::{KeptStore, Unavailable};
use crate::base::{EpochMillis, LogShape, Partition, Position, Topic, UserId};
use crate::domain::{
    Backlog, Candidate, Gap, KeptMessage, Membership, Presented, Reach, Row, SINCE_EVER, Served,
    What, in_order,
};
use crate::lane::Ask;
use crate::limits::cursor::OFFSET_MAX;
use crate::limits::keeping as limits;
use crate::ports::{Delivery, GroupRow, GroupWhat, Hole, InboxRow, StoreError};
use crate::wire::frame::{self, GapReason, Message};

/// What is known of what the client has had.
#[derive(Clone, Copy, Debug)]
pub enum Basis<'a> {
    /// What the store says of its user.
    Nothing,
    /// What it says itself.
    Presented(&'a Presented),
    /// It was served by a log that has been further than this one, up to this time: one whose end
    /// was lost, or nobody's. What came later is served, whoever had it.
    Time(EpochMillis),
}

impl<'a> Basis<'a> {
    /// The log that the client comes from, if it is no more, and when that was.
    fn replaced(self) -> Option<(&'a LogShape, EpochMillis)> {
        let Self::Presented(presented) = self else { return None };
        Some((presented.replaced.as_ref()?, presented.at))
    }
}

/// The backlog, and the rows that the presented progress covers. `current`: the log as it is now.
pub async fn build(
    kept: &KeptStore,
    ask: &Ask,
    basis: Basis<'_>,
    current: &LogShape,
) -> Result<(Backlog, Vec<Row>), Unavailable> {
    let replaced = basis.replaced();
    let shape = replaced.map_or(current, |(shape, _)| shape);
    let Durable { checkpoint: known, holes } = match replaced {
        // What it held is in the store, or nowhere.
        Some(_) => Durable {
            checkpoint: Arc::new(shape.all_partitions().map(|of| (of, OFFSET_MAX)).collect()),
            holes: kept.parts.inbox.holes(shape.identity).await?.into(),
        },
        None => kept.durable(shape, (&ask.read, Some(&ask.ring))).await?,
    };
    let mut reach = reach(kept, ask, basis, (shape, &known)).await?;
    let doubted_since = match basis {
        Basis::Nothing => None,
        // The clock that said when it began may have been ahead of those that say when rows came.
        Basis::Presented(_) => Some(reach.since.minus(limits::CLOCKS_DIFFER)),
        Basis::Time(_) => Some(reach.since),
    };
    let mut candidates = Vec::new();
    let mut covered = Vec::new();
    let Rows { found, is_cut: is_inbox_cut } = rows(kept, &ask.user).await?;
    let last = found.last().and_then(|row| row.place);
    for row in found {
        let candidate = candidate(&row, shape, &reach.progress);
        let is_of_log = row.place.is_some_and(|place| place.log == shape.identity);
        let is_pending = row.progress.delivery == Delivery::Pending;
        // Delivered since this backlog began, or to whomever: this client may not have it.
        let delivered_at = row.delivered_at.unwrap_or(SINCE_EVER);
        let is_doubtful = doubted_since.is_some_and(|since| delivered_at >= since);
        candidates.extend(removal(&row, candidate.position, shape, (basis, &reach)));
        match candidate.position {
            Some(position) if reach.progress.covers(position) => {
                covered.extend(candidate.row.filter(|_| is_pending));
            }
            Some(position) if !reach.checkpoint.covers(position) => {}
            // No progress tells how many of these are out, so what the peer has acknowledged is.
            None if replaced.is_some() || (!is_pending && !is_of_log) => {}
            // It is no more, whatever its status says yet: no shard begins it, and no progress
            // would ever say that it is over.
            None if row.removed.is_some() => {}
            _ if is_pending || is_doubtful => candidates.push(candidate),
            _ => {}
        }
    }
    let rows = match replaced {
        Some(_) => group_rows(kept, shape, &reach.progress.group).await?,
        // Up to the checkpoint itself: a client may have been served more than is durable.
        None => {
            let range = (&*reach.progress.group, &*known);
            kept.groups.between(&kept.parts, shape, range, kept.now()).await?
        }
    };
    let mut of_groups = group_candidates(kept, &ask.members, rows).await?;
    if let Basis::Nothing = basis {
        // Nobody says what he has had.
        of_groups.retain(|candidate| !matches!(candidate.what, What::Removed(_)));
    }
    if let Basis::Time(_) = basis {
        let is_late = |candidate: &Candidate| candidate.appended_at >= reach.since;
        candidates.extend(of_groups.into_iter().filter(is_late));
        begin_at(&mut reach.progress, &candidates, &known);
    } else {
        candidates.extend(of_groups);
    }
    // Without a cursor nobody says what he had; by time, GAP stands at the end.
    if let Basis::Presented(presented) = basis {
        candidates.extend(gaps(&holes, &reach, presented.at, &candidates));
    }
    let (messages, is_cut) = fill(kept, &ask.user, candidates).await?;
    let gap = |from, reason| Gap { from, to: kept.now(), reason };
    let at = last.map_or(EpochMillis(0), |place| place.appended_at);
    let lost_at = match basis {
        Basis::Time(at) => Some(at.min(kept.now())),
        Basis::Presented(_) | Basis::Nothing => replaced.map(|(_, at)| at),
    };
    let gap = match lost_at {
        // Whatever nobody had kept when it went.
        Some(at) => Some(gap(at, GapReason::LogReplaced)),
        None => is_inbox_cut.then(|| gap(at, GapReason::Limit)),
    };
    let replaced = replaced.map(|(shape, _)| *shape);
    Ok((Backlog { gap, replaced, ..Backlog::new(reach, messages, is_cut) }, covered))
}

/// Whether the store keeps anything of this log: for this user, or for groups.
pub async fn has_some_of(
    kept: &KeptStore,
    user: &UserId,
    log: &LogShape,
) -> Result<bool, StoreError> {
    let rows = rows(kept, user).await?.found;
    if rows.iter().any(|row| row.place.is_some_and(|place| place.log == log.identity)) {
        return Ok(true);
    }
    for index in 0..log.group_partitions {
        if !kept.parts.inbox.group(log.identity, index, 0, 1).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
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
        .map(|row| candidate(row, shape, served))
        .filter(|candidate| candidate.position.is_some_and(|position| served.covers(position)));
    still_active(kept, reached.filter_map(|candidate| candidate.row).collect()).await
}

/// Those whose broadcast has not ended: of the others nobody knows whether they came.
pub async fn still_active(kept: &KeptStore, rows: Vec<Row>) -> Result<Vec<Row>, StoreError> {
    let ids: Vec<_> = rows.iter().map(|row| row.broadcast).collect();
    let contents = kept.contents.get(&kept.parts, &ids).await?;
    let now = kept.now();
    let is_active = |row: &Row| {
        let known = contents.get(&row.broadcast);
        known.is_none_or(|known| known.is_active(now))
    };
    Ok(rows.into_iter().filter(is_active).collect())
}

/// From where to where: never below what the client has been served, whatever this node knows.
async fn reach(
    kept: &KeptStore,
    ask: &Ask,
    basis: Basis<'_>,
    (shape, known): (&LogShape, &Checkpoint),
) -> Result<Reach, Unavailable> {
    let mut progress = Served::nothing(shape, &ask.user);
    let (mut is_resumed, mut since) = (false, kept.now());
    match basis {
        Basis::Presented(presented) => {
            (progress, since, is_resumed) = (presented.served.clone(), presented.since, true);
        }
        Basis::Nothing => {
            // How far the user's own messages have come, their rows say.
            let places = kept.parts.inbox.cursor(&ask.user, shape.identity).await?;
            for place in places.into_iter().filter(|(at, _)| at.topic == Topic::Group) {
                if kept.ends.have_been(&kept.parts, place, &ask.read).await? {
                    progress.raise(place.0, place.1);
                } else {
                    let user = &ask.user;
                    tracing::debug!(%user, at = ?place, "a stored cursor is ahead of the log");
                }
            }
        }
        Basis::Time(at) => {
            // A cursor says the hour. One more, because clocks differ.
            since = at.min(kept.now()).minus(limits::CLOCKS_DIFFER);
        }
    }
    let mut checkpoint = progress.clone();
    known.iter().for_each(|(partition, next)| checkpoint.raise(*partition, *next));
    Ok(Reach { progress, checkpoint, is_resumed, since })
}

/// Word of the holes between the client and the checkpoint, each where it ends, or before the first
/// message in it that is kept all the same: no id passes any of it unsaid. What was noted before a
/// client came that had no cursor is none of its gaps.
fn gaps(
    holes: &[Hole],
    reach: &Reach,
    at: EpochMillis,
    candidates: &[Candidate],
) -> Vec<Candidate> {
    let is_met = |hole: &&Hole| {
        let mut places = reach.progress.places();
        let is_before = places.any(|(of, next)| of == hole.partition && next < hole.to);
        let is_since = hole.noted_at >= reach.since.minus(limits::CLOCKS_DIFFER);
        is_since && is_before && reach.checkpoint.covers_up_to(hole.partition, hole.to)
    };
    let gap = |hole: &Hole| {
        let from = at.min(hole.noted_at);
        let places = candidates.iter().filter_map(|candidate| candidate.position);
        let inside = places
            .filter(|place| place.partition == hole.partition)
            .map(|place| place.offset)
            .filter(|offset| (hole.from..hole.to).contains(offset));
        let offset = inside.min().unwrap_or(hole.to);
        Candidate {
            what: What::Gap(Gap { from, to: hole.noted_at, reason: GapReason::Retention }),
            position: Some(Position { partition: hole.partition, offset }),
            appended_at: from,
            row: None,
        }
    };
    // Owners that came after each other may have noted the same.
    let mut met: Vec<Hole> = Vec::new();
    for hole in holes.iter().filter(is_met) {
        let last = met.last_mut().filter(|last| last.partition == hole.partition);
        match last.filter(|last| hole.from <= last.to) {
            Some(last) => {
                last.to = last.to.max(hole.to);
                last.noted_at = last.noted_at.max(hole.noted_at);
            }
            None => met.push(*hole),
        }
    }
    met.iter().map(gap).collect()
}

/// Raises the progress to the first candidate of each partition, or to the checkpoint: what comes
/// before it is not served, and must not be when the backlog is taken up in the middle.
fn begin_at(progress: &mut Served, candidates: &[Candidate], known: &Checkpoint) {
    let mut first = known.clone();
    for position in candidates.iter().filter_map(|candidate| candidate.position) {
        let first = first.entry(position.partition).or_insert(position.offset);
        *first = position.offset.min(*first);
    }
    first.into_iter().for_each(|(partition, offset)| progress.raise(partition, offset));
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

fn candidate(row: &InboxRow, shape: &LogShape, served: &Served) -> Candidate {
    let place = row.place.filter(|place| place.log == shape.identity);
    // Where another partition was the user's before the topic got more of them, no cursor reaches.
    let is_own = |at: &Partition| at.topic == Topic::Group || at.index == served.own_partition;
    Candidate {
        what: What::Message(row.broadcast),
        position: place.map(|place| place.position).filter(|at| is_own(&at.partition)),
        appended_at: row.place.map_or(EpochMillis(0), |place| place.appended_at),
        row: Some(Row { broadcast: row.broadcast, attempt: row.progress.attempt }),
    }
}

/// Word that a message of the user which the client has had is no more.
fn removal(
    row: &InboxRow,
    had_at: Option<Position>,
    shape: &LogShape,
    (basis, reach): (Basis<'_>, &Reach),
) -> Option<Candidate> {
    let place = row.removed.filter(|place| place.log == shape.identity)?;
    let is_due = match basis {
        Basis::Nothing => false,
        // Where no cursor tells of the message it may have come.
        Basis::Presented(_) => had_at.is_none_or(|at| reach.progress.covers(at)),
        Basis::Time(_) => place.appended_at >= reach.since,
    };
    let is_between =
        !reach.progress.covers(place.position) && reach.checkpoint.covers(place.position);
    (is_due && is_between).then_some(Candidate {
        what: What::Removed(row.broadcast),
        position: Some(place.position),
        appended_at: place.appended_at,
        row: None,
    })
}

/// Those of these group broadcasts that somebody with such memberships is in the audience of.
async fn group_candidates(
    kept: &KeptStore,
    members: &[Membership],
    rows: Vec<GroupRow>,
) -> Result<Vec<Candidate>, StoreError> {
    let mut met = HashSet::new();
    let mut found = Vec::new();
    for rows in rows.chunks(limits::GROUP_ROWS_AT_ONCE) {
        let ids: Vec<_> = rows.iter().map(|row| row.broadcast).collect();
        let addressees = kept.contents.addressees(&kept.parts, &ids).await?;
        let is_his = |row: &&GroupRow| {
            let addressees = addressees.get(&row.broadcast);
            // A broadcast that was published twice is served at its first place.
            let is_first = met.insert((row.broadcast, row.what));
            addressees.is_some_and(|named| named.admit(members)) && is_first
        };
        let candidate = |row: &GroupRow| Candidate {
            what: match row.what {
                GroupWhat::Created => What::Message(row.broadcast),
                GroupWhat::Removed => What::Removed(row.broadcast),
            },
            position: Some(row.place.position),
            appended_at: row.place.appended_at,
            row: None,
        };
        found.extend(rows.iter().filter(is_his).map(candidate));
        tokio::task::yield_now().await;
    }
    Ok(found)
}

/// The group rows of a log that is no more, from a place in each partition on. All are read: one
/// that was published twice is served at its first place.
async fn group_rows(
    kept: &KeptStore,
    shape: &LogShape,
    from: &[u64],
) -> Result<Vec<GroupRow>, StoreError> {
    let mut found: Vec<GroupRow> = Vec::new();
    for (index, from) in (0..).zip(from) {
        let (mut next, mut met) = (0, HashSet::new());
        loop {
            let (log, limit) = (shape.identity, limits::ROWS_READ);
            let rows = kept.parts.inbox.group(log, index, next, limit).await?;
            let last = rows.last().map(|row| row.place.position.offset);
            let is_end = rows.len() < limit || met.len() >= limits::INBOX_ROWS_MAX;
            let created = rows.into_iter().filter(|row| row.what == GroupWhat::Created);
            let first = created.filter(|row| met.insert(row.broadcast));
            found.extend(first.filter(|row| row.place.position.offset >= *from));
            match last {
                Some(last) if !is_end => next = last + 1,
                _ => break,
            }
        }
    }
    Ok(found)
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
    // Word of a hole does not count: with it alone nobody gets any further.
    let mut gaps = 0;
    let mut rest = in_order(candidates).peekable();
    while rest.peek().is_some() {
        let room = kept.parts.messages_max.saturating_sub(messages.len() - gaps);
        if room == 0 || bytes >= limits::BACKLOG_BYTES_MAX {
            return Ok((messages, true));
        }
        let piece: Vec<Candidate> = rest.by_ref().take(room.min(limits::CONTENTS_READ)).collect();
        let ids: Vec<_> = piece.iter().filter_map(|one| one.what.broadcast()).collect();
        let contents = kept.contents.get(&kept.parts, &ids).await?;
        for candidate in piece {
            let id = match candidate.what {
                What::Message(id) => id,
                What::Removed(id) => {
                    let mut body = Vec::new();
                    frame::write_message_removed(&mut body, id);
                    let body = body.into();
                    messages.push(KeptMessage { candidate, expires_at: None, body });
                    continue;
                }
                What::Gap(Gap { from, to, reason }) => {
                    let mut body = Vec::new();
                    frame::write_gap(&mut body, from, to, reason);
                    let body = body.into();
                    messages.push(KeptMessage { candidate, expires_at: None, body });
                    gaps += 1;
                    continue;
                }
            };
            // What has ended is for nobody any more; what nobody knows can't be said.
            let known = contents.get(&id).filter(|known| known.is_active(now));
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
