//! What every store of dead letters must do, one suite over all of them.
//!
//! Each case gets a store of its own that is empty.

mod store;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use corecast::base::EpochMillis;
use corecast::limits::dead_letters as limits;
use corecast::ports::{
    DeadLetterId, DeadLetterPlace, DeadLetterRow, DeadLetterRows, Header, Record, TimedBy,
};
use corecast::wire::dead_letter as headers;
use harness::cassandra::Cassandra;
use harness::maven;
use store::{CqlStores, EmbeddedStores, Stores, at_once, block_on, now};

type Case = (&'static str, fn(&dyn Stores));

/// Every promise of the trait.
const CASES: &[Case] = &[
    ("a row comes back as it was", a_row_comes_back_as_it_was),
    ("headers of anybody stop nothing", headers_of_anybody_stop_nothing),
    ("writing again changes nothing", writing_again_changes_nothing),
    ("two of one original are one row", two_of_one_original_are_one_row),
    ("the newest come first, page by page", the_newest_come_first),
    ("a page ends by its bytes", a_page_ends_by_its_bytes),
    ("large ones are whole", large_ones_are_whole),
    ("what is purged stays away", what_is_purged_stays_away),
    ("what is purged is not in the way", what_is_purged_is_not_in_the_way),
    ("many write at a time", many_write_at_a_time),
    ("nothing is asked and nothing is written", nothing_is_asked),
];

const TOPIC: &str = "some-topic-dlt";
/// More than any page here has.
const BYTES: usize = 1 << 30;

#[test]
fn embedded_dead_letters_keep_every_promise() {
    run(&EmbeddedStores::default());
}

#[test]
fn dead_letters_over_cql_keep_every_promise() {
    if let Some(program) = maven::missing() {
        return harness::skip(program, "install a JDK and Maven");
    }
    let cluster = Cassandra::start(1);
    run(&CqlStores { nodes: cluster.addresses(), replication: 1 });
}

fn run(stores: &dyn Stores) {
    for (name, case) in CASES {
        let began = std::time::Instant::now();
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(stores)));
        if let Err(cause) = failed {
            eprintln!("--- the case was: {name}");
            std::panic::resume_unwind(cause);
        }
        println!("{:6.2} s  {name}", began.elapsed().as_secs_f64());
    }
}

fn header(name: &str, value: Option<&[u8]>) -> Header {
    let name = Bytes::copy_from_slice(name.as_bytes());
    Header { name, value: value.map(Bytes::copy_from_slice) }
}

/// The dead letter at this offset of a record at another.
fn row(offset: u64, original: i64, failed_at: EpochMillis) -> DeadLetterRow {
    let record = Record {
        offset,
        appended_at: failed_at,
        timed_by: TimedBy::Producer,
        key: Some(Bytes::from_static(b"ann")),
        value: Some(format!("not JSON, {original}").into()),
        headers: vec![
            header(headers::ORIGINAL_TOPIC, Some(b"some-topic")),
            header(headers::ORIGINAL_PARTITION, Some(&3_i32.to_be_bytes())),
            header(headers::ORIGINAL_OFFSET, Some(&original.to_be_bytes())),
            header(headers::ORIGINAL_TIMESTAMP, Some(&5_i64.to_be_bytes())),
            header(headers::EXCEPTION_MESSAGE, Some(b"why")),
        ],
    };
    DeadLetterRow { topic: TOPIC.to_owned(), partition: 0, record }
}

/// So long before these tests began.
fn earlier(millis: u64) -> EpochMillis {
    static BEGAN: OnceLock<EpochMillis> = OnceLock::new();
    EpochMillis(BEGAN.get_or_init(now).0 - millis)
}

async fn all(rows: &Arc<dyn DeadLetterRows>) -> Vec<DeadLetterRow> {
    rows.dead_letters(None, 10_000, BYTES).await.unwrap()
}

async fn write(rows: &Arc<dyn DeadLetterRows>, written: &[DeadLetterRow]) {
    rows.write_dead_letters(written).await.unwrap();
}

fn a_row_comes_back_as_it_was(stores: &dyn Stores) {
    let rows = stores.fresh_dead_letters();
    let mut odd = row(1 << 47, 9, earlier(1));
    odd.record.timed_by = TimedBy::Log;
    odd.record.key = Some(Bytes::from_static(&[0, 255, 10]));
    odd.record.value = Some(Bytes::from_static(&[0xc3, 0x28, 0]));
    odd.record.headers.insert(0, header("twice", None));
    odd.record.headers.insert(0, header("twice", Some(b"")));
    odd.record.headers.push(header("", Some(&[0, 255])));
    let mut bare = row(0, 0, earlier(2));
    (bare.record.key, bare.record.value) = (None, None);
    let mut empty = row(3, 4, earlier(3));
    (empty.record.key, empty.record.value) = (Some(Bytes::new()), Some(Bytes::new()));
    empty.partition = u16::MAX;
    let written = [odd, bare, empty];
    block_on(async {
        write(&rows, &written).await;
        assert_eq!(all(&rows).await, written);
        for row in &written {
            assert_eq!(rows.dead_letter(&row.id()).await.unwrap().as_ref(), Some(row));
        }
        let shown = written[0].shown();
        assert_eq!(shown.exception_message.as_deref(), Some("why"));
        assert_eq!(shown.origin.map(|origin| (origin.partition, origin.offset)), Some((3, 9)));
    });
}

fn headers_of_anybody_stop_nothing(stores: &dyn Stores) {
    let rows = stores.fresh_dead_letters();
    let with = |offset: u64, headers: Vec<Header>| {
        let mut row = row(offset, 7, earlier(offset));
        row.record.headers = headers;
        row
    };
    let (topic, offset) = (headers::ORIGINAL_TOPIC, headers::ORIGINAL_OFFSET);
    let written = [
        with(1, vec![]),
        with(2, vec![header(topic, Some(b"some-topic"))]),
        with(3, vec![header(topic, None), header(offset, Some(b"7"))]),
        with(4, vec![header(headers::ORIGINAL_PARTITION, Some(b"far too long to be a number"))]),
        with(5, row(0, -1, now()).record.headers),
        with(6, row(0, i64::MIN, now()).record.headers),
    ];
    block_on(async {
        write(&rows, &written).await;
        assert_eq!(all(&rows).await, written, "each is one of its own");
        assert_eq!(written[0].shown().origin, None);
        // Times as a producer's clock may say them.
        let odd = [row(7, 100, EpochMillis::MAX), row(8, 101, EpochMillis(0))];
        write(&rows, &odd).await;
        let found = all(&rows).await;
        assert_eq!((found.first(), found.last()), (Some(&odd[0]), Some(&odd[1])));
        assert_eq!(found.len(), 8);
    });
}

fn writing_again_changes_nothing(stores: &dyn Stores) {
    let rows = stores.fresh_dead_letters();
    let written: Vec<DeadLetterRow> =
        (0..5).map(|number| row(number, number as i64, earlier(number))).collect();
    block_on(async {
        for _ in 0..3 {
            write(&rows, &written).await;
            assert_eq!(all(&rows).await, written);
        }
        let twice = [&written[..], &written[..]].concat();
        write(&rows, &twice).await;
        assert_eq!(all(&rows).await, written);
    });
}

fn two_of_one_original_are_one_row(stores: &dyn Stores) {
    block_on(async {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            for is_together in [false, true] {
                let rows = stores.fresh_dead_letters();
                // Of different hours and sizes, as two nodes may write them.
                let mut letters = [3, 4, 9].map(|offset| row(offset, 7, earlier(offset)));
                letters[0].record.appended_at = earlier(2 * 3_600_000);
                letters[1].record.value = Some(vec![b'x'; 2 * limits::PART_BYTES].into());
                let other = row(5, 8, earlier(1));
                let in_order: Vec<DeadLetterRow> = order.map(|at| letters[at].clone()).into();
                if is_together {
                    write(&rows, &[&in_order[..], std::slice::from_ref(&other)].concat()).await;
                } else {
                    for letter in &in_order {
                        write(&rows, std::slice::from_ref(letter)).await;
                    }
                    write(&rows, std::slice::from_ref(&other)).await;
                }
                assert_eq!(all(&rows).await, [other, letters[0].clone()], "{order:?}");
                let found = rows.dead_letter(&letters[0].id()).await.unwrap();
                assert_eq!(found.as_ref(), Some(&letters[0]));
                assert_eq!(rows.dead_letter(&letters[1].id()).await.unwrap(), None);
                assert!(!rows.purge_dead_letter(&letters[2].id()).await.unwrap());
                assert_eq!(all(&rows).await.len(), 2);
            }
        }
    });
}

fn the_newest_come_first(stores: &dyn Stores) {
    const HOUR: u64 = 3_600_000;
    let rows = stores.fresh_dead_letters();
    let base = earlier(200 * HOUR).0;
    // Over hours and days, some at one moment, written in no order.
    let times = [0, 0, 0, 1, HOUR, 2 * HOUR, 2 * HOUR, 30 * HOUR, 30 * HOUR + 1, 150 * HOUR];
    let mut written: Vec<DeadLetterRow> = (0..)
        .zip(times)
        .map(|(number, time)| row(number, number as i64, EpochMillis(base + time)))
        .collect();
    written.rotate_left(4);
    block_on(async {
        write(&rows, &written).await;
        written.sort_by_key(|row| std::cmp::Reverse(row.place()));
        assert_eq!(all(&rows).await, written);
        for limit in [1, 2, 3, 7] {
            let mut found: Vec<DeadLetterRow> = Vec::new();
            loop {
                let after: Option<DeadLetterPlace> = found.last().map(DeadLetterRow::place);
                let page = rows.dead_letters(after, limit, BYTES).await.unwrap();
                assert!(page.len() <= limit);
                if page.is_empty() {
                    break;
                }
                found.extend(page);
            }
            assert_eq!(found, written, "pages of {limit}");
        }
        assert_eq!(rows.dead_letters(None, 0, BYTES).await.unwrap(), []);
    });
}

fn a_page_ends_by_its_bytes(stores: &dyn Stores) {
    let rows = stores.fresh_dead_letters();
    let written: Vec<DeadLetterRow> = (0..6)
        .map(|number| {
            let mut row = row(number, number as i64, earlier(number));
            row.record.value = Some(vec![b'x'; 10_000].into());
            row
        })
        .collect();
    block_on(async {
        write(&rows, &written).await;
        let page = rows.dead_letters(None, 100, 25_000).await.unwrap();
        assert_eq!(page, written[..3], "the one that passes it is the last");
        let page = rows.dead_letters(Some(page[2].place()), 100, 1).await.unwrap();
        assert_eq!(page, written[3..4], "one at least");
        let page = rows.dead_letters(Some(page[0].place()), 100, BYTES).await.unwrap();
        assert_eq!(page, written[4..]);
        let end = rows.dead_letters(Some(page[1].place()), 100, BYTES).await.unwrap();
        assert_eq!(end, []);
    });
}

fn large_ones_are_whole(stores: &dyn Stores) {
    let rows = stores.fresh_dead_letters();
    // About a part, some parts, and what the largest dead letter is.
    let sizes = [limits::PART_BYTES - 700, limits::PART_BYTES, 3_000_000, 4 << 20];
    let written: Vec<DeadLetterRow> = (0..)
        .zip(sizes)
        .map(|(number, size)| {
            let mut row = row(number, number as i64, earlier(number));
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            row.record.value = Some(bytes.into());
            row
        })
        .collect();
    block_on(async {
        write(&rows, &written).await;
        // Not shown where they differ: they are large.
        assert!(all(&rows).await == written);
        assert!(rows.purge_dead_letter(&written[3].id()).await.unwrap());
        write(&rows, &written).await;
        assert!(all(&rows).await == written[..3]);
    });
}

fn what_is_purged_stays_away(stores: &dyn Stores) {
    let rows = stores.fresh_dead_letters();
    let written: Vec<DeadLetterRow> =
        (0..4).map(|number| row(number + 1, number as i64, earlier(number))).collect();
    block_on(async {
        write(&rows, &written).await;
        let id = written[1].id();
        assert!(rows.purge_dead_letter(&id).await.unwrap());
        let left = [written[0].clone(), written[2].clone(), written[3].clone()];
        assert_eq!(all(&rows).await, left);
        assert_eq!(rows.dead_letter(&id).await.unwrap(), None);
        assert!(!rows.purge_dead_letter(&id).await.unwrap(), "it is gone");
        // Read again from the beginning, and another one of the same original behind or before it.
        write(&rows, &written).await;
        let mut more = [row(9, 1, earlier(0)), row(0, 1, earlier(9))];
        more[1].record.value = Some(Bytes::from_static(b"smaller"));
        for one in &more {
            write(&rows, std::slice::from_ref(one)).await;
        }
        let found = all(&rows).await;
        assert!(found.iter().all(|row| row.original() != written[1].original()), "{found:?}");
        assert_eq!(rows.dead_letter(&more[0].id()).await.unwrap(), None);
        // The rest of them, and one that comes later.
        for row in &left[1..] {
            assert!(rows.purge_dead_letter(&row.id()).await.unwrap());
        }
        write(&rows, &written).await;
        let later = row(10, 10, now());
        write(&rows, std::slice::from_ref(&later)).await;
        assert!(all(&rows).await.contains(&later));
    });
}

fn what_is_purged_is_not_in_the_way(stores: &dyn Stores) {
    const MANY: u64 = 300;
    let rows = stores.fresh_dead_letters();
    let written: Vec<DeadLetterRow> =
        (0..MANY).map(|number| row(number, number as i64, earlier(number))).collect();
    block_on(async {
        write(&rows, &written).await;
        let purge = |row: DeadLetterRow| {
            let rows = rows.clone();
            async move { rows.purge_dead_letter(&row.id()).await.unwrap() }
        };
        let purged = at_once(&written[..MANY as usize - 1], purge).await;
        assert!(purged.into_iter().all(|was_there| was_there));
        let found = rows.dead_letters(None, 1, BYTES).await.unwrap();
        assert_eq!(found, written[MANY as usize - 1..]);
    });
}

fn many_write_at_a_time(stores: &dyn Stores) {
    const WRITERS: u64 = 16;
    let rows = stores.fresh_dead_letters();
    let at = earlier(1);
    block_on(async {
        // All write dead letters of the same originals, each its own and all at once.
        let writers: Vec<u64> = (0..WRITERS).collect();
        at_once(&writers, |writer| {
            let rows = rows.clone();
            async move {
                let letters = (0..10).map(|original| {
                    let offset = original as u64 * WRITERS + writer;
                    let mut row = row(offset, original, EpochMillis(at.0 - offset));
                    row.record.value = Some(format!("{writer} of {original}").into());
                    row
                });
                rows.write_dead_letters(&letters.collect::<Vec<_>>()).await.unwrap();
            }
        })
        .await;
        let found = all(&rows).await;
        assert_eq!(found.len(), 10);
        for (original, row) in found.iter().enumerate() {
            assert_eq!(row.record.offset, original as u64 * WRITERS, "of the smallest offset");
            assert_eq!(row.shown().payload, Some(format!("0 of {original}")), "and as a whole");
        }
    });
}

fn nothing_is_asked(stores: &dyn Stores) {
    let rows = stores.fresh_dead_letters();
    block_on(async {
        write(&rows, &[]).await;
        assert_eq!(all(&rows).await, []);
        let id = DeadLetterId { topic: TOPIC.to_owned(), partition: 0, offset: 0 };
        assert_eq!(rows.dead_letter(&id).await.unwrap(), None);
        assert!(!rows.purge_dead_letter(&id).await.unwrap());
    });
}
