//! Rows of what is for groups, by their place in the log.

use corecast::base::{EpochMillis, LogIdentity};
use corecast::limits::cursor;
use corecast::ports::GroupRow;

use super::Case;
use super::given::{Dice, LOG, group_row};
use super::store::{Stores, block_on, now};

/// Every promise of the trait about them.
pub const CASES: &[Case] = &[
    ("group rows are in order", group_rows_are_in_order),
    ("group rows are apart by log and partition", group_rows_are_apart),
    ("group rows lie far apart", group_rows_lie_far_apart),
    ("a group row is written again", a_group_row_is_written_again),
];

fn group_rows_are_in_order(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    // Both sides of every border of 2^14 and 2^16 offsets, with holes between.
    let mut offsets = vec![0, 1, 5, 16_383, 16_384, 16_385, 32_767, 32_768, 65_535, 65_536, 65_537];
    offsets.extend([131_071, 131_072, 200_000]);
    offsets.extend(300_000..301_200);
    let rows: Vec<GroupRow> = offsets.iter().map(|offset| group_row(LOG, 3, *offset)).collect();
    block_on(async {
        let mut shuffled = rows.clone();
        Dice(3).shuffle(&mut shuffled);
        inbox.write_group(&shuffled[..700]).await.unwrap();
        for row in &shuffled[700..730] {
            inbox.write_group(std::slice::from_ref(row)).await.unwrap();
        }
        inbox.write_group(&shuffled[600..]).await.unwrap();
        let read = async |from: u64, limit: usize| inbox.group(LOG, 3, from, limit).await.unwrap();
        assert_eq!(read(0, 10_000).await, rows);
        assert_eq!(read(0, rows.len()).await, rows);
        assert_eq!(read(0, 0).await, []);
        for from in
            [0, 1, 2, 5, 6, 16_383, 16_384, 20_000, 65_535, 65_536, 65_538, 250_000, 301_199]
        {
            let behind = rows.iter().position(|row| row.place.position.offset >= from);
            let behind = &rows[behind.expect("some")..];
            assert_eq!(read(from, 10_000).await, behind, "{from}");
            assert_eq!(read(from, 3).await, behind[..behind.len().min(3)], "{from}");
        }
        for from in [301_200, 400_000, cursor::OFFSET_MAX, u64::MAX] {
            assert_eq!(read(from, 10).await, [], "{from}");
        }
        for limit in [1, 7, 1_000] {
            let mut paged: Vec<GroupRow> = Vec::new();
            // A page a row takes its time; the first fifty rows cross all borders.
            while paged.len() < if limit == 1 { 50 } else { rows.len() } {
                let from = paged.last().map_or(0, |row| row.place.position.offset + 1);
                let page = read(from, limit).await;
                assert!(!page.is_empty() && page.len() <= limit);
                paged.extend(page);
            }
            assert_eq!(paged, rows[..paged.len()], "{limit}");
        }
    });
}

fn group_rows_are_apart(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let other = LogIdentity([1, 2, 4]);
    let mut rows = Vec::new();
    for (number, log) in (0..).zip([LOG, other]) {
        for partition in [0, 1, 255, 256, u16::MAX] {
            for offset in [0, 10, 70_000] {
                let row = group_row(log, partition, offset + number);
                rows.push(row);
            }
        }
    }
    block_on(async {
        inbox.write_group(&rows).await.unwrap();
        for log in [LOG, other, LogIdentity([0; 3])] {
            for partition in [0, 1, 2, 255, 256, u16::MAX] {
                let found = inbox.group(log, partition, 0, 100).await.unwrap();
                let of_it: Vec<GroupRow> = rows
                    .iter()
                    .filter(|row| row.place.log == log)
                    .filter(|row| row.place.position.partition.index == partition)
                    .copied()
                    .collect();
                assert_eq!(found, of_it, "{log:?} {partition}");
            }
        }
    });
}

/// More buckets than are looked up at once, and the furthest offset there is.
fn group_rows_lie_far_apart(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let mut rows: Vec<GroupRow> =
        (0..230).map(|number| group_row(LOG, 0, number * 16_384 + number)).collect();
    rows.push(group_row(LOG, 0, 1 << 40));
    rows.push(group_row(LOG, 0, cursor::OFFSET_MAX));
    block_on(async {
        inbox.write_group(&rows).await.unwrap();
        assert_eq!(inbox.group(LOG, 0, 0, 1_000).await.unwrap(), rows);
        for (from, skipped) in
            [(1, 1), (16_385 * 100, 100), (16_385 * 229 + 1, 230), (1 << 41, 231)]
        {
            assert_eq!(inbox.group(LOG, 0, from, 1_000).await.unwrap(), rows[skipped..], "{from}");
        }
        assert_eq!(inbox.group(LOG, 0, 0, 150).await.unwrap(), rows[..150]);
        let furthest = inbox.group(LOG, 0, cursor::OFFSET_MAX, 1).await.unwrap();
        assert_eq!(furthest, rows[231..]);
    });
}

fn a_group_row_is_written_again(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let days = |count: u64| EpochMillis(now().0 + count * 24 * 3_600_000);
    let row = |count| GroupRow { keep_until: days(count), ..group_row(LOG, 0, 9) };
    block_on(async {
        let long = row(20);
        for row in [row(10), long, row(5), row(10), long] {
            inbox.write_group(&[row]).await.unwrap();
        }
        assert_eq!(inbox.group(LOG, 0, 0, 10).await.unwrap(), [long]);
        // Without an end, with one that has passed, and in one call.
        let endless = GroupRow { keep_until: EpochMillis::MAX, ..group_row(LOG, 0, 10) };
        let mut early = group_row(LOG, 0, 11);
        (early.keep_until, early.place.appended_at) = (EpochMillis(0), EpochMillis(0));
        let mut late = group_row(LOG, 0, 12);
        late.place.appended_at = EpochMillis::MAX;
        inbox.write_group(&[late, endless, early, late, endless]).await.unwrap();
        let mut rows = inbox.group(LOG, 0, 10, 10).await.unwrap();
        rows.retain(|row| *row != early);
        assert_eq!(rows, [endless, late]);
    });
}
