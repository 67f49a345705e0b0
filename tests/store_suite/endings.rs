//! What every `Endings` must do with endings.

use corecast::base::{BroadcastId, End, EpochMillis};
use corecast::ports::{Ending, Endings, NotedEnding};

use super::Case;
use super::store::{Stores, block_on, id_at, now};

/// Every promise about endings.
pub const CASES: &[Case] = &[
    ("endings are listed, settled or not", endings_are_listed),
    ("endings are listed from a time on, and paged", endings_are_listed_from_a_time_on),
    ("what is settled is open no more", what_is_settled_is_open_no_more),
    ("open endings are seen, late or old", open_endings_are_seen_late_or_old),
    ("many that are settled hide none", many_that_are_settled_hide_none),
];

const HOUR: u64 = 3_600_000;

fn ending(at: u64, number: u64, how: End) -> Ending {
    Ending { id: id_at(now(), number), at: EpochMillis(at), how }
}

async fn all(endings: &dyn Endings) -> Vec<NotedEnding> {
    endings.endings(EpochMillis(0), None, 10_000).await.unwrap()
}

fn endings_are_listed(stores: &dyn Stores) {
    let (_, endings) = stores.fresh_endings();
    block_on(async {
        assert_eq!(all(&*endings).await, []);
        let at = now().0;
        let cancelled = ending(at - 20, 1, End::Cancelled);
        // Of one broadcast, at two times; and of another at the same time.
        let expired = Ending { at: EpochMillis(at - 10), how: End::Expired, ..cancelled };
        let other = ending(at - 10, 4_000, End::Cancelled);
        for ending in [&other, &cancelled, &expired, &expired, &other] {
            endings.put_ending(ending).await.unwrap();
        }
        let noted = |ending, is_settled| NotedEnding { ending, is_settled };
        let open = [noted(cancelled, false), noted(expired, false), noted(other, false)];
        assert_eq!(all(&*endings).await, open);
        for _ in 0..2 {
            endings.settle_ending(&expired).await.unwrap();
            let some = [noted(cancelled, false), noted(expired, true), noted(other, false)];
            assert_eq!(all(&*endings).await, some);
        }
        // A late or repeated note opens nothing.
        endings.put_ending(&expired).await.unwrap();
        assert_eq!(all(&*endings).await[1], noted(expired, true));
        assert_eq!(endings.open_endings(10).await.unwrap(), [cancelled, other]);
    });
}

/// So many, each some minutes after the last, over more hours than one.
async fn spread(endings: &dyn Endings, count: u64, step: u64) -> Vec<NotedEnding> {
    let end = now().0;
    let mut all = Vec::new();
    for number in 0..count {
        let how = if number % 2 == 0 { End::Cancelled } else { End::Expired };
        let ending = ending(end - (count - number) * step, number, how);
        endings.put_ending(&ending).await.unwrap();
        let is_settled = number % 3 == 0;
        if is_settled {
            endings.settle_ending(&ending).await.unwrap();
        }
        all.push(NotedEnding { ending, is_settled });
    }
    all
}

fn endings_are_listed_from_a_time_on(stores: &dyn Stores) {
    let (_, endings) = stores.fresh_endings();
    block_on(async {
        let noted = spread(&*endings, 12, 25 * 60_000).await;
        assert_eq!(all(&*endings).await, noted);
        for (number, one) in noted.iter().enumerate() {
            let at = one.ending.at;
            let from = endings.endings(at, None, 100).await.unwrap();
            assert_eq!(from, noted[number..]);
            let behind = endings.endings(EpochMillis(at.0 + 1), None, 100).await.unwrap();
            assert_eq!(behind, noted[number + 1..]);
        }
        let later = EpochMillis(now().0 + HOUR);
        assert_eq!(endings.endings(later, None, 100).await.unwrap(), []);
        assert_pages(&*endings, noted).await;
    });
}

async fn assert_pages(endings: &dyn Endings, mut noted: Vec<NotedEnding>) {
    // Some of one time.
    for number in 100..110 {
        let ending = Ending { at: noted[5].ending.at, ..ending(0, number, End::Expired) };
        endings.put_ending(&ending).await.unwrap();
        noted.push(NotedEnding { ending, is_settled: false });
    }
    noted.sort_by_key(|noted| (noted.ending.at, noted.ending.id));
    let since = noted[2].ending.at;
    for limit in [1, 3, 7, 18, 100] {
        let mut paged: Vec<NotedEnding> = Vec::new();
        loop {
            let after = paged.last().map(|last| (last.ending.at, last.ending.id));
            let page = endings.endings(since, after, limit).await.unwrap();
            paged.extend(&page);
            if page.len() < limit {
                break;
            }
        }
        assert_eq!(paged, noted[2..], "{limit}");
    }
    // A place is a place, whether a row stands there or not; one before `since` is none.
    let id = BroadcastId::new(0).expect("small");
    let from = endings.endings(since, Some((noted[4].ending.at, id)), 100).await.unwrap();
    assert_eq!(from, noted[4..]);
    let from = endings.endings(since, Some((EpochMillis(1), id)), 100).await.unwrap();
    assert_eq!(from, noted[2..]);
    assert_eq!(endings.endings(since, None, 0).await.unwrap(), []);
}

fn what_is_settled_is_open_no_more(stores: &dyn Stores) {
    let (_, endings) = stores.fresh_endings();
    block_on(async {
        let noted = spread(&*endings, 9, 30 * 60_000).await;
        let open: Vec<Ending> =
            noted.iter().filter(|one| !one.is_settled).map(|one| one.ending).collect();
        assert_eq!(open.len(), 6);
        for _ in 0..2 {
            assert_eq!(endings.open_endings(100).await.unwrap(), open);
            assert_eq!(endings.open_endings(2).await.unwrap(), open[..2]);
            assert_eq!(endings.open_endings(0).await.unwrap(), []);
        }
        for (number, ending) in open.iter().enumerate().rev() {
            endings.settle_ending(ending).await.unwrap();
            assert_eq!(endings.open_endings(100).await.unwrap(), open[..number]);
        }
    });
}

fn open_endings_are_seen_late_or_old(stores: &dyn Stores) {
    let (_, endings) = stores.fresh_endings();
    block_on(async {
        // Nobody found any a moment ago; it comes from a clock that is minutes behind.
        for number in 0..5 {
            assert_eq!(endings.open_endings(10).await.unwrap(), []);
            let late = ending(now().0 - number * 120_000, number, End::Cancelled);
            endings.put_ending(&late).await.unwrap();
            assert_eq!(endings.open_endings(10).await.unwrap(), [late]);
            endings.settle_ending(&late).await.unwrap();
        }
    });
    let (_, endings) = stores.fresh_endings();
    block_on(async {
        // What has long been open holds the position.
        let old = ending(now().0 - 5 * HOUR, 1, End::Expired);
        endings.put_ending(&old).await.unwrap();
        for number in 2..5 {
            let new = ending(now().0, number, End::Cancelled);
            endings.put_ending(&new).await.unwrap();
            assert_eq!(endings.open_endings(10).await.unwrap(), [old, new]);
            endings.settle_ending(&new).await.unwrap();
            assert_eq!(endings.open_endings(10).await.unwrap(), [old]);
        }
    });
}

/// More than are read at once.
fn many_that_are_settled_hide_none(stores: &dyn Stores) {
    let (_, endings) = stores.fresh_endings();
    block_on(async {
        let start = now().0 - 1_200;
        for number in 0..1_100 {
            let ending = ending(start + number, number, End::Expired);
            endings.put_ending(&ending).await.unwrap();
            if number != 1_050 {
                endings.settle_ending(&ending).await.unwrap();
            }
        }
        let open = endings.open_endings(10).await.unwrap();
        assert_eq!(open.iter().map(|open| open.at.0).collect::<Vec<_>>(), [start + 1_050]);
        assert_eq!(all(&*endings).await.len(), 1_100);
    });
}
