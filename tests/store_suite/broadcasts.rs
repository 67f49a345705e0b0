//! What every `Store` must do.

use std::collections::HashSet;

use corecast::base::{BroadcastId, EpochMillis, Priority, Status, TargetType};
use corecast::domain::{Broadcast, Target};
use corecast::limits::contract;
use corecast::ports::{BroadcastRow, Claim, ListFilter, ListPlace, OutboxRow, Store, StoreError};

use super::Case;
use super::store::{Stores, at_once, block_on, broadcast, id_at, now};

/// Every promise of the trait.
pub const CASES: &[Case] = &[
    ("an id is claimed once", an_id_is_claimed_once),
    ("of many claims one is applied", of_many_claims_one_is_applied),
    ("a status is created once", a_status_is_created_once),
    ("of many statuses one is created", of_many_statuses_one_is_created),
    ("without status nothing exists", without_status_nothing_exists),
    ("a status needs content", a_status_needs_content),
    ("what is written is read", what_is_written_is_read),
    ("large content and audiences", large_content_and_audiences),
    ("lists are newest first", lists_are_newest_first),
    ("lists filter by status", lists_filter_by_status),
    ("the scheduled list is soonest first", the_scheduled_list_is_soonest_first),
    ("lists are paged", lists_are_paged),
    ("lists cross days", lists_cross_days),
    ("the outbox is in order", the_outbox_is_in_order),
    ("the outbox forgets what is removed", the_outbox_forgets_what_is_removed),
    ("the outbox crosses hours", the_outbox_crosses_hours),
    ("all at a time", all_at_a_time),
];

fn an_id_is_claimed_once(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let first = broadcast(id_at(now(), 1));
        let second = Broadcast { content: "another".to_owned(), ..first.clone() };
        assert_eq!(store.claim_broadcast(&first).await.unwrap(), Claim::Applied);
        assert_eq!(store.claim_broadcast(&second).await.unwrap(), Claim::Taken);
        assert_eq!(store.claim_broadcast(&first).await.unwrap(), Claim::Taken);
        store.create_status(first.id, Status::Active).await.unwrap();
        let row = store.broadcast(first.id).await.unwrap();
        assert_eq!(row, Some(BroadcastRow { broadcast: first, status: Status::Active }));
    });
}

fn of_many_claims_one_is_applied(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        for round in 0..4 {
            let id = id_at(now(), round);
            let contenders: Vec<Broadcast> = (0..16)
                .map(|n| Broadcast { content: format!("contender {n}"), ..broadcast(id) })
                .collect();
            let claims = at_once(&contenders, |contender| {
                let store = store.clone();
                async move { store.claim_broadcast(&contender).await.unwrap() }
            })
            .await;
            let won: Vec<usize> =
                (0..claims.len()).filter(|n| claims[*n] == Claim::Applied).collect();
            assert_eq!(won.len(), 1, "round {round}: {claims:?}");
            store.create_status(id, Status::Active).await.unwrap();
            let row = store.broadcast(id).await.unwrap().expect("it exists");
            assert_eq!(row.broadcast, contenders[won[0]]);
        }
    });
}

fn a_status_is_created_once(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let id = claimed(&*store, broadcast(id_at(now(), 1))).await;
        assert_eq!(store.create_status(id, Status::Active).await.unwrap(), Claim::Applied);
        assert_eq!(store.create_status(id, Status::Expired).await.unwrap(), Claim::Taken);
        assert_eq!(store.create_status(id, Status::Active).await.unwrap(), Claim::Taken);
        let row = store.broadcast(id).await.unwrap().expect("it exists");
        assert_eq!(row.status, Status::Active);
        for (number, status) in (10..).zip(ALL_STATUSES) {
            let id = claimed(&*store, broadcast(id_at(now(), number))).await;
            store.create_status(id, status).await.unwrap();
            let row = store.broadcast(id).await.unwrap().expect("it exists");
            assert_eq!(row.status, status);
        }
    });
}

fn of_many_statuses_one_is_created(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let id = claimed(&*store, broadcast(id_at(now(), 1))).await;
        let claims = at_once(&ALL_STATUSES, |status| {
            let store = store.clone();
            async move { (status, store.create_status(id, status).await.unwrap()) }
        })
        .await;
        let won: Vec<Status> = claims
            .into_iter()
            .filter_map(|(status, claim)| (claim == Claim::Applied).then_some(status))
            .collect();
        let row = store.broadcast(id).await.unwrap().expect("it exists");
        assert_eq!(won, [row.status]);
    });
}

fn without_status_nothing_exists(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let id = claimed(&*store, broadcast(id_at(now(), 1))).await;
        assert_eq!(store.broadcast(id).await.unwrap(), None);
        for filter in ALL_FILTERS {
            assert_eq!(ids(&*store, filter, None, 10).await, []);
        }
        assert_eq!(store.broadcast(id_at(now(), 2)).await.unwrap(), None);
    });
}

fn a_status_needs_content(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let id = id_at(now(), 1);
        let created = store.create_status(id, Status::Active).await;
        assert!(matches!(created, Err(StoreError::Failed(_))), "{created:?}");
        assert_eq!(store.broadcast(id).await.unwrap(), None);
        assert_eq!(ids(&*store, ListFilter::All, None, 10).await, []);
    });
}

fn what_is_written_is_read(stores: &dyn Stores) {
    let store = stores.fresh();
    let odd = "süß \u{1F600} \u{0} \u{7f} \u{2028} \\ \" ' -- ; DROP\r\n\t";
    let bare = broadcast(id_at(now(), 1));
    let full = Broadcast {
        id: BroadcastId::new(BroadcastId::MAX).expect("the largest"),
        correlation_id: odd.to_owned(),
        sender_id: Some(odd.to_owned()),
        sender_name: Some(String::new()),
        content: odd.repeat(100),
        target: Target {
            r#type: TargetType::Group,
            ids: vec![odd.to_owned(), String::new(), "b".to_owned(), "a".to_owned()],
        },
        priority: Priority::Urgent,
        category: Some("Force Logoff".to_owned()),
        created_at: now(),
        scheduled_at: Some(EpochMillis(0)),
        expires_at: Some(EpochMillis::MAX),
        fire_and_forget: true,
    };
    let smallest = Broadcast { id: BroadcastId::new(0).expect("the smallest"), ..bare.clone() };
    let mut all = vec![bare.clone(), full, smallest];
    for (number, priority) in (10..).zip(Priority::ALL) {
        all.push(Broadcast { priority, ..broadcast(id_at(now(), number)) });
    }
    for (number, r#type) in (20..).zip(TargetType::ALL) {
        let target = Target { r#type, ids: vec!["one".to_owned()] };
        all.push(Broadcast { target, ..broadcast(id_at(now(), number)) });
    }
    block_on(async {
        for broadcast in all {
            let id = claimed(&*store, broadcast.clone()).await;
            store.create_status(id, Status::Active).await.unwrap();
            let row = store.broadcast(id).await.unwrap().expect("it exists");
            assert_eq!(row.broadcast, broadcast);
        }
    });
}

fn large_content_and_audiences(stores: &dyn Stores) {
    let store = stores.fresh();
    let users = |count: usize| Target {
        r#type: TargetType::Selected,
        // Not in their order, and some as long as an id may be.
        ids: (0..count)
            .map(|n| match n % 1_000 {
                7 => format!("{n}-{}", "x".repeat(contract::USER_ID_BYTES_MAX - 8)),
                _ => format!("user-{}", (n * 7_919) % 1_000_003),
            })
            .collect(),
    };
    let content = "\u{1}".repeat(contract::CONTENT_BYTES_MAX);
    let names: Vec<String> = (0..contract::TARGET_NAMES_MAX)
        .map(|n| format!("{n:04}{}", "é".repeat(contract::NAME_BYTES_MAX / 2 - 2)))
        .collect();
    let roles = Target { r#type: TargetType::Role, ids: names };
    let plain = |number| broadcast(id_at(now(), number));
    let mut all = vec![Broadcast { content, target: roles, ..plain(1) }];
    for (number, count) in (2..).zip([999, 1_000, 1_001, 2_000, 2_001, 100_000]) {
        all.push(Broadcast { target: users(count), ..plain(number) });
    }
    block_on(async {
        for broadcast in all {
            let id = claimed(&*store, broadcast.clone()).await;
            store.create_status(id, Status::Active).await.unwrap();
            let row = store.broadcast(id).await.unwrap().expect("it exists");
            let (read, written) = (&row.broadcast.target.ids, &broadcast.target.ids);
            assert_eq!(read.len(), written.len());
            assert!(row.broadcast == broadcast, "broadcast of {} targets", written.len());
        }
    });
}

fn lists_are_newest_first(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let start = now().0;
        // Created in another order than that of their times; three share one.
        let mut places = Vec::new();
        for (number, ms) in [5, 1, 3, 3, 3, 9].into_iter().enumerate() {
            let at = EpochMillis(start + ms);
            let id = existing(&*store, at, number as u64, Status::Active).await;
            places.push((at, id));
        }
        places.sort();
        places.reverse();
        let newest: Vec<BroadcastId> = places.iter().map(|(_, id)| *id).collect();
        assert_eq!(ids(&*store, ListFilter::All, None, 10).await, newest);
        assert_eq!(ids(&*store, ListFilter::Active, None, 10).await, newest);
        assert_eq!(ids(&*store, ListFilter::All, None, 4).await, newest[..4]);
        assert_eq!(ids(&*store, ListFilter::Scheduled, None, 10).await, []);
        let rows = store.broadcasts(ListFilter::All, None, 1).await.unwrap();
        assert_eq!(rows[0].broadcast.content, format!("content of {}", newest[0]));
    });
}

fn lists_filter_by_status(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let start = now().0;
        let mut newest = Vec::new();
        for number in 0..21_u64 {
            let status = ALL_STATUSES[number as usize % ALL_STATUSES.len()];
            let id = existing(&*store, EpochMillis(start + number), number, status).await;
            newest.insert(0, (id, status));
        }
        let of = |wanted: Option<Status>| -> Vec<BroadcastId> {
            let found = newest.iter().filter(|(_, status)| wanted.is_none_or(|is| is == *status));
            found.map(|(id, _)| *id).collect()
        };
        assert_eq!(ids(&*store, ListFilter::All, None, 50).await, of(None));
        assert_eq!(ids(&*store, ListFilter::Active, None, 50).await, of(Some(Status::Active)));
        assert_eq!(ids(&*store, ListFilter::Active, None, 2).await, of(Some(Status::Active))[..2]);
        let mut soonest = of(Some(Status::Scheduled));
        soonest.reverse();
        assert_eq!(ids(&*store, ListFilter::Scheduled, None, 50).await, soonest);
        // A status that is refused leaves nothing in a list.
        let (id, _) = newest.iter().find(|(_, status)| *status == Status::Cancelled).expect("one");
        assert_eq!(store.create_status(*id, Status::Active).await.unwrap(), Claim::Taken);
        assert_eq!(ids(&*store, ListFilter::Active, None, 50).await, of(Some(Status::Active)));
        assert_eq!(ids(&*store, ListFilter::Active, None, 2).await, of(Some(Status::Active))[..2]);
        assert_eq!(paged(&*store, ListFilter::Active, 1).await, of(Some(Status::Active)));
    });
}

fn the_scheduled_list_is_soonest_first(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let start = now().0;
        let mut places = Vec::new();
        for (number, hours) in [30, 1, 50, 1, 1, 700].into_iter().enumerate() {
            let at = EpochMillis(start + hours * 3_600_000);
            let number = number as u64;
            let scheduled = Broadcast { scheduled_at: Some(at), ..broadcast(id_at(now(), number)) };
            let id = claimed(&*store, scheduled).await;
            store.create_status(id, Status::Scheduled).await.unwrap();
            places.push((at, id));
        }
        places.sort();
        let soonest: Vec<BroadcastId> = places.iter().map(|(_, id)| *id).collect();
        assert_eq!(ids(&*store, ListFilter::Scheduled, None, 10).await, soonest);
        assert_eq!(paged(&*store, ListFilter::Scheduled, 1).await, soonest);
        assert_eq!(paged(&*store, ListFilter::Scheduled, 4).await, soonest);
    });
}

fn lists_are_paged(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let start = now().0;
        let numbers: Vec<u64> = (0..40).collect();
        // Four share each time.
        let created = at_once(&numbers, |number| {
            let store = store.clone();
            async move {
                let at = EpochMillis(start + number / 4);
                (at, existing(&*store, at, number, Status::Active).await)
            }
        })
        .await;
        let mut places = created;
        places.sort();
        places.reverse();
        let newest: Vec<BroadcastId> = places.iter().map(|(_, id)| *id).collect();
        for filter in [ListFilter::All, ListFilter::Active] {
            for limit in [1, 3, 4, 39, 40, 41] {
                assert_eq!(paged(&*store, filter, limit).await, newest, "{filter:?}, {limit}");
            }
            // A place is a place, whether a row stands there or not.
            let id = BroadcastId::new(0).expect("small");
            let after = Some(ListPlace { at: EpochMillis(start + 5), id });
            assert_eq!(ids(&*store, filter, after, 50).await, newest[20..]);
            let beyond = Some(ListPlace { at: EpochMillis(start - 1), id });
            assert_eq!(ids(&*store, filter, beyond, 50).await, []);
        }
    });
}

fn lists_cross_days(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        const DAY: u64 = 24 * 3_600_000;
        let today = now().0 / DAY * DAY;
        let mut newest = Vec::new();
        // Days with nothing between them, and both sides of a midnight; ends differ from each
        // other and from the order of creation.
        for (number, at) in [today, today - 1, today - 3 * DAY, today - 90 * DAY, today - 800 * DAY]
            .into_iter()
            .enumerate()
        {
            let ends = [5, 90, 1, 4_000, 60][number] * DAY;
            let broadcast = Broadcast {
                created_at: EpochMillis(at),
                expires_at: (number != 3).then_some(EpochMillis(now().0 + ends)),
                ..broadcast(id_at(EpochMillis(at), number as u64))
            };
            let id = claimed(&*store, broadcast).await;
            store.create_status(id, Status::Active).await.unwrap();
            newest.push(id);
        }
        for filter in [ListFilter::All, ListFilter::Active] {
            assert_eq!(ids(&*store, filter, None, 10).await, newest);
            for limit in 1..=5 {
                assert_eq!(paged(&*store, filter, limit).await, newest);
            }
        }
    });
}

fn the_outbox_is_in_order(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        assert_eq!(store.outbox(10).await.unwrap(), []);
        let start = now().0;
        let mut rows: Vec<OutboxRow> = [4, 2, 9, 2, 2, 0]
            .into_iter()
            .zip(0..)
            .map(|(ms, n)| outbox_row(start + ms, n))
            .collect();
        for row in &rows {
            store.put_outbox(row).await.unwrap();
            store.put_outbox(row).await.unwrap();
        }
        rows.sort_by_key(|row| (row.created_at, row.id));
        assert_eq!(store.outbox(10).await.unwrap(), rows);
        assert_eq!(store.outbox(3).await.unwrap(), rows[..3]);
        assert_eq!(store.outbox(6).await.unwrap(), rows);
    });
}

fn the_outbox_forgets_what_is_removed(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let start = now().0;
        let rows: Vec<OutboxRow> = (0..300).map(|n| outbox_row(start + n / 2, n % 2)).collect();
        at_once(&rows, |row| {
            let store = store.clone();
            async move { store.put_outbox(&row).await.unwrap() }
        })
        .await;
        store.remove_outbox(&outbox_row(start + 1_000, 1)).await.unwrap();
        assert_eq!(store.outbox(500).await.unwrap(), rows);
        for row in &rows[..200] {
            store.remove_outbox(row).await.unwrap();
        }
        store.remove_outbox(&rows[0]).await.unwrap();
        store.remove_outbox(&rows[250]).await.unwrap();
        let left = [&rows[200..250], &rows[251..]].concat();
        assert_eq!(store.outbox(500).await.unwrap(), left);
        assert_eq!(store.outbox(60).await.unwrap(), left[..60]);
        // Looked at or not, an older row that comes late is seen.
        let late = outbox_row(start - 1, 1);
        store.put_outbox(&late).await.unwrap();
        assert_eq!(store.outbox(1).await.unwrap(), [late]);
    });
}

fn the_outbox_crosses_hours(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        const HOUR: u64 = 3_600_000;
        let hour = now().0 / HOUR * HOUR;
        let rows: Vec<OutboxRow> = [hour - 50 * HOUR, hour - 2 * HOUR, hour - 1, hour, hour + 1]
            .map(|at| outbox_row(at, 1))
            .to_vec();
        for row in rows.iter().rev() {
            store.put_outbox(row).await.unwrap();
        }
        assert_eq!(store.outbox(10).await.unwrap(), rows);
        for done in 0..rows.len() {
            store.remove_outbox(&rows[done]).await.unwrap();
            assert_eq!(store.outbox(10).await.unwrap(), rows[done + 1..]);
        }
    });
}

/// Whole broadcasts, many at a time, as creators make them.
fn all_at_a_time(stores: &dyn Stores) {
    let store = stores.fresh();
    block_on(async {
        let start = now().0;
        let numbers: Vec<u64> = (0..200).collect();
        let made = at_once(&numbers, |number| {
            let store = store.clone();
            async move {
                let row = outbox_row(start + number, number);
                store.put_outbox(&row).await.unwrap();
                let id = existing(&*store, row.created_at, number, Status::Active).await;
                assert_eq!(id, row.id);
                store.remove_outbox(&row).await.unwrap();
                id
            }
        })
        .await;
        let made: HashSet<BroadcastId> = made.into_iter().collect();
        let listed = paged(&*store, ListFilter::Active, 64).await;
        assert_eq!(listed.len(), 200);
        assert_eq!(listed.into_iter().collect::<HashSet<_>>(), made);
        assert_eq!(store.outbox(500).await.unwrap(), []);
    });
}

const ALL_STATUSES: [Status; 7] = Status::ALL;

const ALL_FILTERS: [ListFilter; 3] = [ListFilter::All, ListFilter::Active, ListFilter::Scheduled];

fn outbox_row(at: u64, random: u64) -> OutboxRow {
    let created_at = EpochMillis(at);
    OutboxRow { id: id_at(created_at, random), created_at }
}

/// Writes the content under a free id.
pub async fn claimed(store: &dyn Store, broadcast: Broadcast) -> BroadcastId {
    assert_eq!(store.claim_broadcast(&broadcast).await.unwrap(), Claim::Applied);
    broadcast.id
}

/// A broadcast that exists.
pub async fn existing(
    store: &dyn Store,
    at: EpochMillis,
    random: u64,
    status: Status,
) -> BroadcastId {
    let broadcast = Broadcast { created_at: at, ..broadcast(id_at(at, random)) };
    let id = claimed(store, broadcast).await;
    assert_eq!(store.create_status(id, status).await.unwrap(), Claim::Applied);
    id
}

pub async fn ids(
    store: &dyn Store,
    filter: ListFilter,
    after: Option<ListPlace>,
    limit: usize,
) -> Vec<BroadcastId> {
    let rows = store.broadcasts(filter, after, limit).await.unwrap();
    rows.into_iter().map(|row| row.broadcast.id).collect()
}

/// The whole list, page after page.
async fn paged(store: &dyn Store, filter: ListFilter, limit: usize) -> Vec<BroadcastId> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let rows = store.broadcasts(filter, after, limit).await.unwrap();
        assert!(rows.len() <= limit);
        let Some(BroadcastRow { broadcast: last, .. }) = rows.last() else { return all };
        let at = match filter {
            ListFilter::Scheduled => last.scheduled_at.unwrap_or(last.created_at),
            ListFilter::All | ListFilter::Active => last.created_at,
        };
        after = Some(ListPlace { at, id: last.id });
        all.extend(rows.iter().map(|row| row.broadcast.id));
    }
}
