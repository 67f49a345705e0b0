//! How far users have been served, and what the log had lost before it was kept.

use corecast::base::{EpochMillis, LogIdentity, Partition, Topic, UserId};
use corecast::limits::cursor;
use corecast::ports::Hole;

use super::Case;
use super::given::{HOSTILE_USERS, LOG, user_id};
use super::store::{Stores, at_once, block_on, now};

/// Every promise of the trait about it.
pub const CASES: &[Case] = &[
    ("cursors merge as a maximum", cursors_merge_as_a_maximum),
    ("cursors are apart by user and log", cursors_are_apart),
    ("holes reach as far as anybody says", holes_reach_as_far_as_anybody_says),
];

fn cursors_merge_as_a_maximum(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let partition = |topic, index| Partition { topic, index };
    let own = partition(Topic::Selected, 300);
    let (first, last) = (partition(Topic::Group, 0), partition(Topic::Group, u16::MAX));
    let ann = user_id("ann");
    block_on(async {
        let read = async || inbox.cursor(&ann, LOG).await.unwrap();
        let write = async |next: &[(Partition, u64)]| {
            inbox.write_cursor(&ann, LOG, next).await.unwrap();
        };
        assert_eq!(read().await, []);
        write(&[(last, 7), (own, 0), (first, 9)]).await;
        assert_eq!(read().await, [(own, 0), (first, 9), (last, 7)]);
        write(&[(first, 8), (last, 8)]).await;
        write(&[(own, cursor::OFFSET_MAX)]).await;
        write(&[(own, 5), (first, 9)]).await;
        assert_eq!(read().await, [(own, cursor::OFFSET_MAX), (first, 9), (last, 8)]);
        write(&[(first, 3), (first, 20), (first, 10)]).await;
        assert_eq!(read().await[1], (first, 20));
        // Many at a time.
        let nexts: Vec<u64> = (0..200).map(|number| (number * 7_919) % 200 + 100).collect();
        at_once(&nexts, |next| {
            let (inbox, ann) = (inbox.clone(), ann.clone());
            async move { inbox.write_cursor(&ann, LOG, &[(first, next)]).await.unwrap() }
        })
        .await;
        assert_eq!(read().await[1], (first, 299));
    });
}

fn cursors_are_apart(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let long = "é".repeat(128);
    let users: Vec<UserId> = HOSTILE_USERS.into_iter().chain([&*long]).map(user_id).collect();
    let logs = [LOG, LogIdentity([0; 3]), LogIdentity([0xff; 3])];
    let next = |user: usize, log: usize| -> Vec<(Partition, u64)> {
        let all = (0..29).map(|index| Partition { topic: Topic::Group, index });
        let own = Partition { topic: Topic::Selected, index: user as u16 };
        [own]
            .into_iter()
            .chain(all)
            .map(|partition| (partition, (user * 10 + log) as u64))
            .collect()
    };
    block_on(async {
        for (at, user) in users.iter().enumerate() {
            for (log_at, log) in logs.into_iter().enumerate() {
                inbox.write_cursor(user, log, &next(at, log_at)).await.unwrap();
            }
        }
        for (at, user) in users.iter().enumerate() {
            for (log_at, log) in logs.into_iter().enumerate() {
                assert_eq!(inbox.cursor(user, log).await.unwrap(), next(at, log_at));
            }
            assert_eq!(inbox.cursor(user, LogIdentity([1, 2, 4])).await.unwrap(), []);
        }
        assert_eq!(inbox.cursor(&user_id("nobody"), LOG).await.unwrap(), []);
    });
}

fn holes_reach_as_far_as_anybody_says(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let at = now();
    let hole = |topic, index, from, to| Hole {
        partition: Partition { topic, index },
        from,
        to,
        noted_at: EpochMillis(at.0 + to % 1_000),
    };
    let own = hole(Topic::Selected, 300, 0, 7);
    let first = hole(Topic::Group, 0, 5, 9);
    let far = hole(Topic::Group, 0, 20, cursor::OFFSET_MAX);
    let last = hole(Topic::Group, u16::MAX, 1 << 40, (1 << 40) + 1);
    block_on(async {
        let write = async |holes: &[Hole]| inbox.write_holes(LOG, holes).await.unwrap();
        assert_eq!(inbox.holes(LOG).await.unwrap(), []);
        write(&[]).await;
        write(&[last, first, far, own]).await;
        assert_eq!(inbox.holes(LOG).await.unwrap(), [own, first, far, last]);
        // Again, less far, and further.
        write(&[hole(Topic::Group, 0, 5, 8), own]).await;
        let further = hole(Topic::Selected, 300, 0, 12);
        write(&[further]).await;
        assert_eq!(inbox.holes(LOG).await.unwrap(), [further, first, far, last]);
        assert_eq!(inbox.holes(LogIdentity([0; 3])).await.unwrap(), []);
        let ends: Vec<u64> = (0..100).map(|number| 100 + (number * 7_919) % 100).collect();
        at_once(&ends, |end| {
            let (inbox, hole) = (inbox.clone(), hole(Topic::Group, 1, 50, end));
            async move { inbox.write_holes(LOG, &[hole]).await.unwrap() }
        })
        .await;
        assert_eq!(inbox.holes(LOG).await.unwrap()[3], hole(Topic::Group, 1, 50, 199));
    });
}
