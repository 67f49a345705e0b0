//! How every `Endings` must change statuses, and what lists say of it.

use std::sync::Arc;

use corecast::base::{BroadcastId, End, EpochMillis, Status};
use corecast::domain::{Broadcast, may_become};
use corecast::ports::{BroadcastRow, Change, Claim, Endings, ListFilter, Store};

use super::Case;
use super::broadcasts::{claimed, existing, ids};
use super::store::{Stores, at_once, block_on, broadcast, id_at, now};

/// Every promise about statuses.
pub const CASES: &[Case] = &[
    ("a status goes where it may, and nowhere else", a_status_goes_where_it_may),
    ("what does not exist changes nothing", what_does_not_exist_changes_nothing),
    ("one without a status is given its end", one_without_a_status_is_given_its_end),
    ("of changes at one time one is done", of_changes_at_one_time_one_is_done),
    ("lists follow the status", lists_follow_the_status),
    ("a change keeps the content, and the row", a_change_keeps_the_content_and_the_row),
];

async fn status_of(store: &dyn Store, id: BroadcastId) -> Option<Status> {
    store.broadcast(id).await.unwrap().map(|row| row.status)
}

/// Every pair there is; a repeat tells what was done already.
fn a_status_goes_where_it_may(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    let pairs: Vec<(Status, Status)> =
        Status::ALL.into_iter().flat_map(|from| Status::ALL.map(|to| (from, to))).collect();
    let numbered: Vec<(u64, (Status, Status))> = (0..).zip(pairs).collect();
    block_on(at_once(&numbered, |(number, (from, to))| {
        let (store, endings) = (store.clone(), endings.clone());
        async move {
            let id = existing(&*store, now(), number, from).await;
            let expected = match may_become(Some(from), to) {
                _ if from == to => Change::Already,
                true => Change::Done,
                false => Change::Refused(from),
            };
            let change = endings.change_status(id, to).await.unwrap();
            assert_eq!(change, expected, "{from:?} to {to:?}");
            let stands = if expected == Change::Done { to } else { from };
            assert_eq!(status_of(&*store, id).await, Some(stands), "{from:?} to {to:?}");
            if stands == to {
                let again = endings.change_status(id, to).await.unwrap();
                assert_eq!(again, Change::Already, "{from:?} to {to:?}");
            }
        }
    }));
}

/// Another producer's broadcast has a content and no status.
fn one_without_a_status_is_given_its_end(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        let id = claimed(&*store, broadcast(id_at(now(), 1))).await;
        let create = || endings.create_ended(id, End::Cancelled);
        assert_eq!(create().await.unwrap(), Claim::Applied);
        assert_eq!(status_of(&*store, id).await, Some(Status::Cancelled));
        assert_eq!(create().await.unwrap(), Claim::Taken);
        let active = store.broadcasts(ListFilter::Active, None, 10).await.unwrap();
        assert!(active.is_empty(), "{active:?}");
        let existing = existing(&*store, now(), 2, Status::Active).await;
        let taken = endings.create_ended(existing, End::Expired).await.unwrap();
        assert_eq!(taken, Claim::Taken);
        assert_eq!(status_of(&*store, existing).await, Some(Status::Active));
    });
}

fn what_does_not_exist_changes_nothing(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        let content_only = claimed(&*store, broadcast(id_at(now(), 1))).await;
        for id in [content_only, id_at(now(), 2)] {
            for to in Status::ALL {
                assert_eq!(endings.change_status(id, to).await.unwrap(), Change::Missing);
                assert_eq!(status_of(&*store, id).await, None);
            }
        }
        // It is still free.
        let created = store.create_status(content_only, Status::Active).await.unwrap();
        assert_eq!(created, Claim::Applied);
    });
}

/// A cancel and an expiry, then equal ones.
fn of_changes_at_one_time_one_is_done(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        for round in 0..8 {
            let id = existing(&*store, now(), round, Status::Active).await;
            let wishes = [Status::Cancelled, Status::Expired].repeat(4);
            let changes = change_at_once(&endings, id, &wishes).await;
            let done: Vec<Status> = of_kind(&changes, Change::Done);
            assert_eq!(done.len(), 1, "round {round}: {changes:?}");
            assert_eq!(status_of(&*store, id).await, Some(done[0]));
            for (to, change) in changes {
                match change {
                    Change::Done | Change::Already => assert_eq!(to, done[0]),
                    Change::Refused(stands) => assert!(stands == done[0] && to != done[0]),
                    Change::Missing => panic!("it exists"),
                }
            }
        }
        // From FAILED it may become ACTIVE again, over and over.
        let id = existing(&*store, now(), 100, Status::Active).await;
        for to in [Status::Failed, Status::Active, Status::Failed, Status::Active] {
            let changes = change_at_once(&endings, id, &[to; 8]).await;
            assert_eq!(of_kind(&changes, Change::Done).len(), 1, "{changes:?}");
            assert_eq!(of_kind(&changes, Change::Already).len(), 7, "{changes:?}");
            assert_eq!(status_of(&*store, id).await, Some(to));
        }
    });
}

fn lists_follow_the_status(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        let start = now();
        let soon = EpochMillis(start.0 + 3_600_000);
        let make = async |number, status| {
            let content = Broadcast { scheduled_at: Some(soon), ..broadcast(id_at(start, number)) };
            let content = Broadcast { created_at: EpochMillis(start.0 + number), ..content };
            let id = claimed(&*store, content).await;
            assert_eq!(store.create_status(id, status).await.unwrap(), Claim::Applied);
            id
        };
        let (first, second) = (make(1, Status::Active).await, make(2, Status::Active).await);
        let (third, fourth) = (make(3, Status::Scheduled).await, make(4, Status::Ready).await);
        let all = [fourth, third, second, first];
        let assert_lists = async |active: &[BroadcastId], scheduled: &[BroadcastId]| {
            assert_eq!(ids(&*store, ListFilter::All, None, 9).await, all);
            assert_eq!(ids(&*store, ListFilter::Active, None, 9).await, active);
            assert_eq!(ids(&*store, ListFilter::Scheduled, None, 9).await, scheduled);
        };
        assert_lists(&[second, first], &[third]).await;
        let change = async |id, to| {
            assert_eq!(endings.change_status(id, to).await.unwrap(), Change::Done);
        };
        change(third, Status::Active).await;
        assert_lists(&[third, second, first], &[]).await;
        change(fourth, Status::Scheduled).await;
        assert_lists(&[third, second, first], &[fourth]).await;
        change(second, Status::Failed).await;
        assert_lists(&[third, first], &[fourth]).await;
        change(second, Status::Active).await;
        change(third, Status::Expired).await;
        assert_lists(&[second, first], &[fourth]).await;
        // What is refused leaves the lists as they are.
        let refused = endings.change_status(third, Status::Active).await.unwrap();
        assert_eq!(refused, Change::Refused(Status::Expired));
        let refused = endings.change_status(first, Status::Scheduled).await.unwrap();
        assert_eq!(refused, Change::Refused(Status::Active));
        assert_lists(&[second, first], &[fourth]).await;
        for id in [first, second, fourth] {
            change(id, Status::Cancelled).await;
        }
        assert_lists(&[], &[]).await;
    });
}

fn a_change_keeps_the_content_and_the_row(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        let content = broadcast(id_at(now(), 1));
        let id = claimed(&*store, content.clone()).await;
        store.create_status(id, Status::Active).await.unwrap();
        endings.change_status(id, Status::Cancelled).await.unwrap();
        let row = BroadcastRow { broadcast: content, status: Status::Cancelled };
        assert_eq!(store.broadcast(id).await.unwrap(), Some(row.clone()));
        // It is there, so it is not created anew.
        assert_eq!(store.create_status(id, Status::Active).await.unwrap(), Claim::Taken);
        assert_eq!(store.broadcast(id).await.unwrap(), Some(row));
    });
}

async fn change_at_once(
    endings: &Arc<dyn Endings>,
    id: BroadcastId,
    wishes: &[Status],
) -> Vec<(Status, Change)> {
    at_once(wishes, |to| {
        let endings = endings.clone();
        async move { (to, endings.change_status(id, to).await.unwrap()) }
    })
    .await
}

fn of_kind(changes: &[(Status, Change)], kind: Change) -> Vec<Status> {
    changes.iter().filter(|(_, change)| *change == kind).map(|(to, _)| *to).collect()
}
