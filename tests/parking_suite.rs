//! What every parking must do, one suite over all of them.
//!
//! Each case gets a store of its own that is empty. Times are about now, as a node's are.

mod store;

use std::sync::Arc;

use bytes::Bytes;
use corecast::base::{EpochMillis, Partition, Topic};
use corecast::limits::parking::BUCKETS;
use corecast::ports::{Bucket, Header, Parked, Parking, Record, TimedBy};
use harness::cassandra::Cassandra;
use harness::maven;
use store::{CqlStores, EmbeddedStores, Stores, block_on, now};
use uuid::Uuid;

type Case = (&'static str, fn(Arc<dyn Parking>));

/// Every promise of the trait.
const CASES: &[Case] = &[
    ("rows come when they are due, in order", rows_come_when_they_are_due),
    ("rows are apart by share", rows_are_apart_by_share),
    ("a row that is done comes no more", a_row_that_is_done_comes_no_more),
    ("a row that comes late is found", a_row_that_comes_late_is_found),
    ("a row is kept whole", a_row_is_kept_whole),
    ("many rows that are done hide none", many_rows_that_are_done_hide_none),
    ("what is served is known", what_is_served_is_known),
];

#[test]
fn the_embedded_parking_keeps_every_promise() {
    run(&EmbeddedStores::default());
}

#[test]
fn parking_over_cql_keeps_every_promise() {
    if let Some(program) = maven::missing() {
        return harness::skip(program, "install a JDK and Maven");
    }
    let cluster = Cassandra::start(1);
    run(&CqlStores { nodes: cluster.addresses(), replication: 1 });
}

fn run(stores: &dyn Stores) {
    for (name, case) in CASES {
        println!("case: {name}");
        case(stores.fresh_parking());
    }
}

/// Due then; all else follows from a number.
fn row(number: u128, due_at: EpochMillis) -> Parked {
    Parked {
        due_at,
        event: Uuid::from_u128(number),
        attempt: 0,
        tries: 0,
        partition: Partition { topic: Topic::Group, index: 7 },
        record: Record {
            offset: number as u64,
            appended_at: EpochMillis(due_at.0 - 1),
            timed_by: TimedBy::Log,
            key: None,
            value: Some(Bytes::from(format!("value {number}"))),
            headers: Vec::new(),
        },
    }
}

fn before(millis: u64) -> EpochMillis {
    EpochMillis(now().0 - millis)
}

/// What is due now in the share of event 0.
async fn due(parking: &dyn Parking, limit: usize) -> Vec<Parked> {
    parking.parked(Bucket(0), now(), limit).await.unwrap()
}

const SHARES: u128 = BUCKETS as u128;

fn rows_come_when_they_are_due(parking: Arc<dyn Parking>) {
    block_on(async {
        assert_eq!(due(&*parking, 10).await, []);
        let later = row(3 * SHARES, EpochMillis(now().0 + 3_600_000));
        let rows = [row(2 * SHARES, before(30)), row(SHARES, before(20)), row(0, before(10))];
        for row in [&later, &rows[1], &rows[2], &rows[0]] {
            parking.park(row).await.unwrap();
        }
        assert_eq!(due(&*parking, 10).await, rows);
        assert_eq!(due(&*parking, 2).await, rows[..2]);
        let then = parking.parked(Bucket(0), later.due_at, 10).await.unwrap();
        assert_eq!(then.last(), Some(&later));
        assert_eq!(then.len(), 4);
    });
}

fn rows_are_apart_by_share(parking: Arc<dyn Parking>) {
    block_on(async {
        let rows: Vec<Parked> = (0..SHARES).map(|number| row(number, before(5))).collect();
        for row in &rows {
            parking.park(row).await.unwrap();
        }
        for (share, row) in (0..).zip(&rows) {
            assert_eq!(row.bucket(), Bucket(share));
            let found = parking.parked(Bucket(share), now(), 10).await.unwrap();
            assert_eq!(found, std::slice::from_ref(row));
        }
    });
}

fn a_row_that_is_done_comes_no_more(parking: Arc<dyn Parking>) {
    block_on(async {
        let (first, second) = (row(0, before(20)), row(SHARES, before(10)));
        // Of one event, and not the same.
        let attempt = Parked { attempt: 1, ..first.clone() };
        for row in [&first, &second, &attempt] {
            parking.park(row).await.unwrap();
            parking.park(row).await.unwrap();
        }
        assert_eq!(due(&*parking, 10).await, [first.clone(), attempt.clone(), second.clone()]);
        for _ in 0..2 {
            parking.unpark(&first).await.unwrap();
        }
        assert_eq!(due(&*parking, 10).await, [attempt.clone(), second.clone()]);
        for row in [&attempt, &second] {
            parking.unpark(row).await.unwrap();
        }
        assert_eq!(due(&*parking, 10).await, []);
    });
}

fn a_row_that_comes_late_is_found(parking: Arc<dyn Parking>) {
    block_on(async {
        for number in 0..5 {
            // Found none, before each of them.
            assert_eq!(due(&*parking, 10).await, []);
            let row = row(number * SHARES, now());
            parking.park(&row).await.unwrap();
            assert_eq!(due(&*parking, 10).await, std::slice::from_ref(&row));
            parking.unpark(&row).await.unwrap();
        }
    });
}

fn a_row_is_kept_whole(parking: Arc<dyn Parking>) {
    let header = |value: Option<&'static [u8]>| Header {
        name: Bytes::from_static(b"equal"),
        value: value.map(Bytes::from_static),
    };
    let mut odd = row(0, before(9));
    odd.attempt = u32::MAX;
    odd.tries = 2;
    odd.partition = Partition { topic: Topic::Selected, index: 40 };
    odd.record.offset = 1 << 52;
    odd.record.key = Some(Bytes::from_static(b"\xff\0"));
    odd.record.headers = vec![header(Some(b"\0\xff")), header(None), header(Some(b""))];
    let mut large = row(SHARES, before(8));
    large.record.value = Some(Bytes::from(vec![b'x'; 1 << 20]));
    let mut empty = row(2 * SHARES, before(7));
    empty.record.key = Some(Bytes::new());
    empty.record.value = Some(Bytes::new());
    block_on(async {
        let rows = [odd, large, empty];
        for row in &rows {
            parking.park(row).await.unwrap();
        }
        assert!(due(&*parking, 10).await == rows, "something of a row is lost");
    });
}

fn many_rows_that_are_done_hide_none(parking: Arc<dyn Parking>) {
    block_on(async {
        for number in 0..1_100 {
            let row = row(number * SHARES, before(2_000 - number as u64));
            parking.park(&row).await.unwrap();
            if number != 1_050 {
                parking.unpark(&row).await.unwrap();
            }
        }
        let left = due(&*parking, 10).await;
        assert_eq!(
            left.iter().map(|row| row.event.as_u128()).collect::<Vec<_>>(),
            [1_050 * SHARES]
        );
    });
}

fn what_is_served_is_known(parking: Arc<dyn Parking>) {
    block_on(async {
        let (known, unknown) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert!(!parking.is_served(known).await.unwrap());
        for _ in 0..2 {
            parking.note_served(known).await.unwrap();
        }
        assert!(parking.is_served(known).await.unwrap());
        assert!(!parking.is_served(unknown).await.unwrap());
    });
}
