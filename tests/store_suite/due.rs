//! What every `Endings` must say of what is due.

use corecast::base::{BroadcastId, EpochMillis, Status};
use corecast::domain::Broadcast;
use corecast::limits::parking::BUCKETS;
use corecast::ports::{Bucket, Change, Claim, Due, Endings, Store};

use super::Case;
use super::broadcasts::claimed;
use super::store::{Stores, block_on, broadcast, id_at, now};

/// Every promise about what is due.
pub const CASES: &[Case] = &[
    ("what expires is due then, in order", what_expires_is_due_then),
    ("what is due is apart by share", what_is_due_is_apart_by_share),
    ("what is final or endless is never due", what_is_final_or_endless_is_never_due),
    ("what is marked is due no more, what is late is", what_is_marked_is_due_no_more),
    ("many that are marked hide none", many_that_are_marked_hide_none),
];

const HOUR: u64 = 3_600_000;
const SHARE: Bucket = Bucket(3);

/// Ids of one share.
fn id_of(number: u64) -> BroadcastId {
    let id = id_at(now(), number * u64::from(BUCKETS) + u64::from(SHARE.0));
    assert_eq!(Bucket::of_broadcast(id), SHARE);
    id
}

/// A broadcast that exists and expires then.
async fn expiring(
    store: &dyn Store,
    id: BroadcastId,
    expires_at: Option<EpochMillis>,
    status: Status,
) -> BroadcastId {
    let id = claimed(store, Broadcast { expires_at, ..broadcast(id) }).await;
    assert_eq!(store.create_status(id, status).await.unwrap(), Claim::Applied);
    id
}

async fn active(store: &dyn Store, number: u64, at: EpochMillis) -> Due {
    Due { id: expiring(store, id_of(number), Some(at), Status::Active).await, at }
}

async fn due(endings: &dyn Endings, until: EpochMillis) -> Vec<Due> {
    endings.due(SHARE, until, 100).await.unwrap()
}

fn later(millis: u64) -> EpochMillis {
    EpochMillis(now().0 + millis)
}

fn what_expires_is_due_then(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        assert_eq!(due(&*endings, later(0)).await, []);
        let mut all = Vec::new();
        for (number, hours) in [400, 2, 1, 30, 2, 9_000].into_iter().enumerate() {
            let at = later(hours * HOUR);
            all.push(active(&*store, number as u64, at).await);
        }
        all.sort_by_key(|due| (due.at, due.id));
        assert_eq!(due(&*endings, later(0)).await, []);
        for (count, one) in (1..).zip(&all) {
            assert_eq!(due(&*endings, one.at).await, all[..count]);
            let just_before = EpochMillis(one.at.0 - 1);
            assert_eq!(due(&*endings, just_before).await, all[..count - 1]);
        }
        assert_eq!(endings.due(SHARE, EpochMillis::MAX, 2).await.unwrap(), all[..2]);
        assert_eq!(endings.due(SHARE, EpochMillis::MAX, 0).await.unwrap(), []);
        assert_eq!(due(&*endings, later(0)).await, []);
        assert_eq!(due(&*endings, EpochMillis::MAX).await, all);
    });
}

fn what_is_due_is_apart_by_share(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        let at = later(HOUR);
        let mut ids = Vec::new();
        for number in 0..2 * u64::from(BUCKETS) {
            ids.push(expiring(&*store, id_at(now(), number), Some(at), Status::Scheduled).await);
        }
        for share in 0..BUCKETS {
            let found = endings.due(Bucket(share), at, 10).await.unwrap();
            let of_share =
                ids.iter().filter(|id| id.get() % u64::from(BUCKETS) == u64::from(share));
            let of_share: Vec<Due> = of_share.map(|id| Due { id: *id, at }).collect();
            assert_eq!(found, of_share);
            assert_eq!(found.len(), 2);
        }
    });
}

fn what_is_final_or_endless_is_never_due(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        let at = later(HOUR);
        let mut expected = Vec::new();
        for (number, status) in (0..).zip(Status::ALL) {
            let id = expiring(&*store, id_of(number), Some(at), status).await;
            if !status.is_final() {
                expected.push(Due { id, at });
            }
            expiring(&*store, id_of(100 + number), None, status).await;
        }
        expected.sort_by_key(|due| due.id);
        assert_eq!(due(&*endings, EpochMillis::MAX).await, expected);
        // Whoever looks after it sees by the status that there is nothing to do.
        let change = endings.change_status(expected[0].id, Status::Cancelled).await.unwrap();
        assert_eq!(change, Change::Done);
        assert_eq!(due(&*endings, EpochMillis::MAX).await, expected);
    });
}

fn what_is_marked_is_due_no_more(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        let first = active(&*store, 1, later(HOUR)).await;
        let second = active(&*store, 2, later(2 * HOUR)).await;
        assert_eq!(due(&*endings, second.at).await, [first, second]);
        for _ in 0..2 {
            endings.mark_due(&first).await.unwrap();
            assert_eq!(due(&*endings, second.at).await, [second]);
        }
        endings.mark_due(&second).await.unwrap();
        assert_eq!(due(&*endings, EpochMillis::MAX).await, []);
        // A status that is refused makes nothing due of what has ended.
        let ended = expiring(&*store, id_of(3), Some(later(HOUR)), Status::Cancelled).await;
        assert_eq!(store.create_status(ended, Status::Cancelled).await.unwrap(), Claim::Taken);
        assert_eq!(due(&*endings, EpochMillis::MAX).await, []);
        // Nobody found any a moment ago.
        for number in 10..14 {
            assert_eq!(due(&*endings, later(0)).await, []);
            // Its time has passed long ago, or passes now.
            let expires_at = EpochMillis(now().0 - (number - 10) * 8 * HOUR);
            let id = expiring(&*store, id_of(number), Some(expires_at), Status::Active).await;
            let found = due(&*endings, later(0)).await;
            assert_eq!(found.iter().map(|due| due.id).collect::<Vec<_>>(), [id]);
            assert!(found[0].at >= expires_at);
            endings.mark_due(&found[0]).await.unwrap();
        }
    });
}

/// More than are read at once; that nothing was due there makes no difference.
fn many_that_are_marked_hide_none(stores: &dyn Stores) {
    let (store, endings) = stores.fresh_endings();
    block_on(async {
        let at = later(HOUR);
        for number in 0..1_100 {
            let id = BroadcastId::new(number * u64::from(BUCKETS) + u64::from(SHARE.0));
            endings.mark_due(&Due { id: id.expect("small"), at }).await.unwrap();
        }
        let one = active(&*store, 1, at).await;
        for _ in 0..2 {
            assert_eq!(due(&*endings, at).await, [one]);
        }
    });
}
