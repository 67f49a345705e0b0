//! What every `Inbox` must do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use corecast::base::{
    BroadcastId, EpochMillis, LogIdentity, Partition, Position, Status, TargetType, Topic, UserId,
};
use corecast::domain::{Broadcast, Target};
use corecast::limits::{cursor, inbox as limits};
use corecast::ports::{
    Claim, Content, Delivery, GroupRow, Inbox, InboxRow, InboxWrite, Place, Progress, Removal,
    SystemClock,
};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use corecast::store::scylla::{Progress as StoreProgress, ScyllaOptions};
use harness::cassandra::Cassandra;
use scylla::client::session_builder::SessionBuilder;

use super::Case;
use super::given::{Dice, HOSTILE_USERS, LOG, group_row, orders_of, user_id};
use super::store::{Running, Stores, at_once, block_on, broadcast, draw_keyspace, id_at, now};

/// Every promise of the trait.
pub const CASES: &[Case] = &[
    ("a row is what its writes say together", a_row_is_what_its_writes_say_together),
    ("no order makes a difference", no_order_makes_a_difference),
    ("many write one row at a time", many_write_one_row_at_a_time),
    ("one call takes many writes", one_call_takes_many_writes),
    ("an inbox is paged", an_inbox_is_paged),
    ("users are apart", users_are_apart),
    ("the largest and the oddest values", the_largest_and_the_oddest_values),
    ("a row that has ended may be written again", a_row_that_has_ended_may_be_written_again),
    ("contents come without an audience", contents_come_without_an_audience),
    ("contents of others stay as they were", contents_of_others_stay_as_they_were),
    ("nothing is asked and nothing is written", nothing_is_asked_and_nothing_is_written),
];

fn a_row_is_what_its_writes_say_together(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let at = now();
    let later = EpochMillis(at.0 + 5_000);
    let w = |attempt, delivery| write("ann", 1).says(attempt, delivery).at(at);
    use Delivery::{Delivered, Failed, Pending};
    // Writes, then attempt, delivery, offset and time of the delivery of the row, if it is one.
    type Says = Option<(u32, Delivery, Option<u64>, Option<EpochMillis>)>;
    let table: Vec<(&str, Vec<InboxWrite>, Says)> = vec![
        ("pending", vec![w(0, Pending).with_offset(7)], Some((0, Pending, Some(7), None))),
        ("without a place", vec![w(0, Pending)], Some((0, Pending, None, None))),
        ("failed alone", vec![w(2, Failed)], Some((2, Failed, None, None))),
        ("delivered alone is no row", vec![w(0, Delivered).with_offset(7)], None),
        (
            "delivered before pending",
            vec![w(0, Delivered), w(0, Pending).with_offset(7)],
            Some((0, Delivered, Some(7), Some(at))),
        ),
        (
            "pending does not undo what is further",
            vec![w(1, Failed), w(1, Pending), w(0, Delivered)],
            Some((1, Failed, None, Some(at))),
        ),
        (
            "a later attempt begins anew",
            vec![w(0, Pending), w(0, Delivered), w(1, Pending)],
            Some((1, Pending, None, Some(at))),
        ),
        (
            "the smallest offset stays",
            vec![w(0, Pending).with_offset(9), w(1, Pending).with_offset(4), w(2, Pending)]
                .into_iter()
                .chain([w(3, Pending).with_offset(5)])
                .collect(),
            Some((3, Pending, Some(4), None)),
        ),
        (
            "a place may come late",
            vec![w(0, Pending), w(0, Delivered), w(1, Pending).with_offset(1 << 40)],
            Some((1, Pending, Some(1 << 40), Some(at))),
        ),
        (
            "the earliest delivery stays",
            vec![w(0, Pending), w(0, Delivered).at(later), w(0, Delivered), w(1, Delivered)]
                .into_iter()
                .chain([w(2, Delivered).at(later)])
                .collect(),
            Some((2, Delivered, None, Some(at))),
        ),
    ];
    block_on(async {
        for (number, (name, writes, says)) in table.into_iter().enumerate() {
            // One by one for one user, in one call for another.
            for (user, at_once) in [("single", false), ("together", true)] {
                let user = format!("{user}-{number}");
                let writes: Vec<InboxWrite> =
                    writes.iter().map(|write| write.clone().of(&user)).collect();
                if at_once {
                    inbox.write_inbox(&writes).await.unwrap();
                } else {
                    for write in &writes {
                        inbox.write_inbox(std::slice::from_ref(write)).await.unwrap();
                    }
                }
                let rows = inbox.inbox(&user_id(&user), None, 10).await.unwrap();
                let said = rows.first().map(|row| {
                    let offset = row.place.map(|place| place.position.offset);
                    (row.progress.attempt, row.progress.delivery, offset, row.delivered_at)
                });
                assert_eq!(said, says, "{name}");
                assert_eq!(rows, Vec::from_iter(merged(&writes)), "{name}");
            }
        }
    });
}

/// Every order of five writes that bear on each other, with repetitions; looked at after each.
fn no_order_makes_a_difference(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let at = now();
    let writes = [
        write("", 1).says(0, Delivery::Pending).with_offset(70),
        write("", 1).says(0, Delivery::Failed),
        write("", 1).says(0, Delivery::Delivered).at(EpochMillis(at.0 + 1)),
        write("", 1).says(1, Delivery::Pending).with_offset(90).keep(20),
        write("", 1).says(1, Delivery::Delivered).at(EpochMillis(at.0 + 9)).with_offset(30),
    ];
    let orders: Vec<(usize, Vec<usize>)> =
        orders_of(writes.len()).into_iter().enumerate().collect();
    assert_eq!(orders.len(), 120);
    block_on(at_once(&orders, |(number, order)| {
        let (inbox, writes) = (inbox.clone(), writes.clone());
        async move {
            let user = format!("user-{number}");
            let mut written: Vec<InboxWrite> = Vec::new();
            for at in order.iter().chain(&order[..2]) {
                written.push(writes[*at].clone().of(&user));
                inbox.write_inbox(&written[written.len() - 1..]).await.unwrap();
                let rows = inbox.inbox(&user_id(&user), None, 10).await.unwrap();
                assert_eq!(rows, Vec::from_iter(merged(&written)), "{order:?}");
            }
        }
    }));
}

/// Random writes of random rows, each by two of four writers, in calls of random sizes.
fn many_write_one_row_at_a_time(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let mut dice = Dice(7);
    let writes: Vec<InboxWrite> = (0..1_500)
        .map(|_| {
            let user = format!("user-{}", dice.below(20));
            let delivery = [Delivery::Pending, Delivery::Failed, Delivery::Delivered];
            let mut write = write(&user, dice.below(15))
                .says(dice.below(3) as u32, delivery[dice.below(3) as usize])
                .at(EpochMillis(now().0 + dice.below(5)))
                .keep(10 + dice.below(5));
            if dice.below(2) == 0 {
                write = write.with_offset(dice.below(6));
            }
            write
        })
        .collect();
    let mut calls: Vec<Vec<InboxWrite>> = Vec::new();
    for half in 0..2 {
        let mut shuffled = writes.clone();
        dice.shuffle(&mut shuffled);
        let (mut rest, mut first) = (&shuffled[..], half);
        while !rest.is_empty() {
            let (call, others) = rest.split_at(rest.len().min(1 + first % 40));
            calls.push(call.to_vec());
            (rest, first) = (others, first + 13);
        }
    }
    dice.shuffle(&mut calls);
    let shares: Vec<Vec<Vec<InboxWrite>>> =
        calls.chunks(calls.len().div_ceil(4)).map(<[_]>::to_vec).collect();
    block_on(async {
        at_once(&shares, |calls| {
            let inbox = inbox.clone();
            async move {
                for call in calls {
                    inbox.write_inbox(&call).await.unwrap();
                }
            }
        })
        .await;
        assert_inboxes(&*inbox, &writes).await;
    });
}

fn one_call_takes_many_writes(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let row = |user: &str, id| write(user, id).says(0, Delivery::Pending).with_offset(id);
    let of_one: Vec<InboxWrite> = (0..500).rev().map(|id| row("one", id)).collect();
    let of_many: Vec<InboxWrite> = (0..1_000).map(|id| row(&format!("user-{id}"), id)).collect();
    let of_some: Vec<InboxWrite> =
        (0..1_000).map(|id| row(&format!("some-{}", id % 7), id)).collect();
    block_on(async {
        for writes in [&of_one, &of_many, &of_some] {
            inbox.write_inbox(writes).await.unwrap();
            assert_inboxes(&*inbox, writes).await;
        }
        inbox.write_inbox(&[of_many, of_one.clone(), of_some].concat()).await.unwrap();
        assert_inboxes(&*inbox, &of_one).await;
    });
}

/// Among the rows stand others that are none yet.
fn an_inbox_is_paged(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let writes: Vec<InboxWrite> = (0..90)
        .map(|id| {
            let is_row = id % 3 == 0 || (40..60).contains(&id);
            let delivery = if is_row { Delivery::Pending } else { Delivery::Delivered };
            write("ann", 10 + 2 * id).says(0, delivery).at(now())
        })
        .collect();
    block_on(async {
        inbox.write_inbox(&writes).await.unwrap();
        let all = rows_of(&writes, "ann");
        assert!(all.len() > 40 && all.len() < 50);
        let ann = user_id("ann");
        for limit in [1, 2, 7, all.len() - 1, all.len(), all.len() + 1, 1_000] {
            let mut paged: Vec<InboxRow> = Vec::new();
            loop {
                let after = paged.last().map(|row| row.broadcast);
                let page = inbox.inbox(&ann, after, limit).await.unwrap();
                assert!(page.len() <= limit);
                let is_end = page.len() < limit;
                paged.extend(page);
                if is_end {
                    break;
                }
            }
            assert_eq!(paged, all, "{limit}");
        }
        // Behind any id, whether a row stands there or not.
        for after in [0, 9, 10, 11, 12, 100, 101, 187, 188, 189, BroadcastId::MAX] {
            let rows = inbox.inbox(&ann, BroadcastId::new(after), 1_000).await.unwrap();
            let behind: Vec<InboxRow> =
                all.iter().filter(|row| row.broadcast.get() > after).cloned().collect();
            assert_eq!(rows, behind, "{after}");
        }
        assert_eq!(inbox.inbox(&ann, None, 0).await.unwrap(), []);
    });
}

fn users_are_apart(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let long = ["x".repeat(256), "é".repeat(128), format!("{}y", "x".repeat(255))];
    let users: Vec<&str> = HOSTILE_USERS.into_iter().chain(long.iter().map(|id| &**id)).collect();
    let writes: Vec<InboxWrite> = (0_u64..)
        .zip(&users)
        .flat_map(|(number, user)| {
            let row = move |id| write(user, id).says(number as u32, Delivery::Pending);
            [row(number), row(1_000).with_offset(number)]
        })
        .collect();
    block_on(async {
        inbox.write_inbox(&writes).await.unwrap();
        assert_inboxes(&*inbox, &writes).await;
        for absent in ["x", "b", "a\u{308}\u{308}", "aa", "xy"] {
            assert_eq!(inbox.inbox(&user_id(absent), None, 10).await.unwrap(), []);
        }
    });
}

fn the_largest_and_the_oddest_values(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let mut writes = Vec::new();
    let ids = [0, 1, 1 << 31, id_at(now(), 5).get(), BroadcastId::MAX - 1, BroadcastId::MAX];
    for id in ids {
        for delivery in [Delivery::Delivered, Delivery::Pending, Delivery::Failed] {
            for attempt in [0, u32::MAX - 1, u32::MAX] {
                let mut write = write("ann", id).says(attempt, delivery).with_offset(3);
                write.at = EpochMillis(u64::from(attempt) * 50_000);
                let place = write.place.as_mut().expect("one");
                place.log = LogIdentity([0xff; 3]);
                place.position.partition.index = u16::MAX;
                place.position.offset = cursor::OFFSET_MAX - u64::from(attempt % 2);
                place.appended_at = EpochMillis::MAX;
                write.keep_until = EpochMillis::MAX;
                writes.push(write);
            }
        }
    }
    for (id, at) in [(50, EpochMillis(0)), (51, EpochMillis::MAX)] {
        writes.push(write("ann", id).says(0, Delivery::Pending).with_offset(0));
        writes.push(write("ann", id).says(0, Delivery::Delivered).at(at));
    }
    block_on(async {
        for write in &writes {
            inbox.write_inbox(std::slice::from_ref(write)).await.unwrap();
        }
        assert_inboxes(&*inbox, &writes).await;
        let rows = inbox.inbox(&user_id("ann"), None, 100).await.unwrap();
        let last = rows.last().expect("a row");
        assert_eq!(last.broadcast.get(), BroadcastId::MAX);
        let furthest = Progress { attempt: u32::MAX, delivery: Delivery::Delivered };
        assert_eq!(last.progress, furthest);
        let place = last.place.expect("a place");
        assert_eq!(place.position.offset, cursor::OFFSET_MAX - 1);
        assert_eq!(last.delivered_at, Some(EpochMillis(0)));
    });
}

/// Rows past their time may be missing; they are no error.
fn a_row_that_has_ended_may_be_written_again(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    block_on(async {
        let mut ended = write("ann", 1).says(0, Delivery::Pending).with_offset(5);
        for keep_until in [0, 1, now().0 - 1, now().0] {
            ended.keep_until = EpochMillis(keep_until);
            inbox.write_inbox(std::slice::from_ref(&ended)).await.unwrap();
            let rows = inbox.inbox(&user_id("ann"), None, 10).await.unwrap();
            assert!(rows.is_empty() || rows == Vec::from_iter(merged(&[ended.clone()])));
        }
        let again = ended.clone().keep(5);
        inbox.write_inbox(std::slice::from_ref(&again)).await.unwrap();
        // Who says now that it has ended does not end it for others.
        inbox.write_inbox(std::slice::from_ref(&ended)).await.unwrap();
        let rows = inbox.inbox(&user_id("ann"), None, 10).await.unwrap();
        assert_eq!(rows, Vec::from_iter(merged(&[again])));
    });
}

fn contents_come_without_an_audience(stores: &dyn Stores) {
    let (store, inbox) = stores.fresh_both();
    let target = |r#type, count: usize| Target {
        r#type,
        ids: (0..count).map(|number| format!("name-{number}")).collect(),
    };
    let targets = [
        target(TargetType::All, 0),
        target(TargetType::Role, 1_000),
        target(TargetType::Group, 1),
        target(TargetType::Product, 2),
        target(TargetType::Selected, 1),
        target(TargetType::Selected, 1_000),
        target(TargetType::Selected, 2_500),
    ];
    let mut made: Vec<Broadcast> = Vec::new();
    for (number, target) in (0..).zip(targets) {
        made.push(Broadcast { target, ..broadcast(id_at(now(), number)) });
    }
    block_on(async {
        let mut expected = Vec::new();
        for (number, broadcast) in made.iter().enumerate() {
            assert_eq!(store.claim_broadcast(broadcast).await.unwrap(), Claim::Applied);
            let status = [None, Some(Status::Active), Some(Status::Cancelled)][number % 3];
            if let Some(status) = status {
                store.create_status(broadcast.id, status).await.unwrap();
            }
            let mut broadcast = broadcast.clone();
            if broadcast.target.r#type == TargetType::Selected {
                broadcast.target.ids.clear();
            }
            expected.push(Some(Content { broadcast, status }));
        }
        let mut ids: Vec<BroadcastId> = made.iter().map(|broadcast| broadcast.id).collect();
        assert_eq!(inbox.contents(&ids).await.unwrap(), expected);
        // In the order asked, with repetitions and ids that nobody has claimed.
        ids.reverse();
        expected.reverse();
        for place in [0, 3, 8] {
            ids.insert(place, id_at(now(), 4_000 + place as u64));
            expected.insert(place, None);
        }
        ids.push(ids[1]);
        expected.push(expected[1].clone());
        assert_eq!(inbox.contents(&ids).await.unwrap(), expected);
        let many: Vec<BroadcastId> = ids.iter().copied().cycle().take(300).collect();
        let found = inbox.contents(&many).await.unwrap();
        assert!(found.iter().eq(expected.iter().cycle().take(300)));
    });
}

fn contents_of_others_stay_as_they_were(stores: &dyn Stores) {
    let (store, inbox) = stores.fresh_both();
    let ids: Vec<BroadcastId> = (0..300).map(|number| id_at(now(), number)).collect();
    let said = |id: BroadcastId, content: &str, later_ms: u64| Broadcast {
        content: content.to_owned(),
        created_at: EpochMillis(now().0 + later_ms),
        ..broadcast(id)
    };
    let bare = |broadcast: Broadcast| Some(Content { broadcast, status: None });
    block_on(async {
        let claimed = said(ids[0], "claimed", 0);
        assert_eq!(store.claim_broadcast(&claimed).await.unwrap(), Claim::Applied);
        let first: Vec<Broadcast> = ids.iter().map(|id| said(*id, "first", 1)).collect();
        inbox.write_contents(&first).await.unwrap();
        let mut expected: Vec<_> = first.into_iter().map(bare).collect();
        expected[0] = bare(claimed);
        assert_eq!(inbox.contents(&ids).await.unwrap(), expected);
        let later: Vec<Broadcast> = ids.iter().map(|id| said(*id, "later", 9)).collect();
        inbox.write_contents(&later).await.unwrap();
        assert_eq!(inbox.contents(&ids).await.unwrap(), expected);
        assert_eq!(store.claim_broadcast(&later[1]).await.unwrap(), Claim::Taken);
        assert_eq!(inbox.contents(&ids).await.unwrap(), expected);
        // Of several at a time, one as a whole.
        let id = id_at(now(), 1_000);
        let many: Vec<Broadcast> = (0..8).map(|at| said(id, &format!("at {at}"), at)).collect();
        at_once(&many, |content| {
            let inbox = inbox.clone();
            async move { inbox.write_contents(&[content]).await.unwrap() }
        })
        .await;
        let found = inbox.contents(&[id]).await.unwrap();
        assert!(many.into_iter().map(bare).any(|one| one == found[0]), "{found:?}");
    });
}

fn nothing_is_asked_and_nothing_is_written(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let ann = user_id("ann");
    block_on(async {
        inbox.write_contents(&[]).await.unwrap();
        inbox.write_inbox(&[]).await.unwrap();
        inbox.write_group(&[]).await.unwrap();
        inbox.write_cursor(&ann, LOG, &[]).await.unwrap();
        assert_eq!(inbox.contents(&[]).await.unwrap(), []);
        assert_eq!(inbox.inbox(&ann, None, 10).await.unwrap(), []);
        assert_eq!(inbox.inbox(&ann, BroadcastId::new(BroadcastId::MAX), 10).await.unwrap(), []);
        assert_eq!(inbox.group(LOG, 0, 0, 10).await.unwrap(), []);
        assert_eq!(inbox.group(LOG, 0, u64::MAX, usize::MAX).await.unwrap(), []);
        assert_eq!(inbox.cursor(&ann, LOG).await.unwrap(), []);
        assert_eq!(inbox.contents(&[id_at(now(), 1)]).await.unwrap(), [None]);
    });
}

/// A copy of the files is what a process finds that comes after one that was killed.
#[test]
fn what_was_acknowledged_is_in_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = tempfile::tempdir().expect("a folder");
    let open = |path: &Path| {
        let options = EmbeddedOptions { data_dir: path.to_owned(), partitions: 1 };
        Embedded::open(&options, Arc::new(SystemClock)).expect("it opens")
    };
    let running = open(folder.path());
    let inbox = running.inbox();
    let writes: Vec<InboxWrite> = (0..300)
        .map(|number| {
            let delivery = [Delivery::Pending, Delivery::Delivered][number as usize % 2];
            write(&format!("user-{}", number % 9), number / 18).says(0, delivery).at(now())
        })
        .collect();
    let rows: Vec<GroupRow> = (0..300).map(|offset| group_row(LOG, 0, offset * 999)).collect();
    let own = Partition { topic: Topic::Selected, index: 0 };
    block_on(async {
        at_once(&writes, |write| {
            let inbox = inbox.clone();
            async move { inbox.write_inbox(&[write]).await.unwrap() }
        })
        .await;
        inbox.write_group(&rows).await.unwrap();
        inbox.write_cursor(&user_id("ann"), LOG, &[(own, 77)]).await.unwrap();
    });
    copy_folder(folder.path(), copy.path());
    let after = open(copy.path()).inbox();
    block_on(async {
        assert_inboxes(&*after, &writes).await;
        assert_eq!(after.group(LOG, 0, 0, 1_000).await.unwrap(), rows);
        assert_eq!(after.cursor(&user_id("ann"), LOG).await.unwrap(), [(own, 77)]);
        // What is stored is joined with what comes.
        after.write_cursor(&user_id("ann"), LOG, &[(own, 76)]).await.unwrap();
        after.write_inbox(&writes[..50]).await.unwrap();
        assert_inboxes(&*after, &writes).await;
        assert_eq!(after.cursor(&user_id("ann"), LOG).await.unwrap(), [(own, 77)]);
    });
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("it can be made");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("it can be copied");
        }
    }
}

/// Seconds that are left to the cells, to within a minute: state outlives its row, and what is
/// written last never shortens a life.
pub fn cells_expire_in_their_order(cluster: &Cassandra) {
    let keyspace = draw_keyspace();
    let options =
        ScyllaOptions { keyspace: keyspace.clone(), ..ScyllaOptions::new(cluster.addresses()) };
    let running = Running::start(options);
    running.wait_until(|progress| *progress == StoreProgress::Serving);
    let inbox: Arc<dyn Inbox> = running.store.clone();
    let session = SessionBuilder::new().known_nodes(cluster.addresses());
    let session = block_on(session.build()).expect("a session");
    let left = |what: &str| -> Vec<Option<i32>> {
        let text = format!("SELECT {}", what.replace("KS.", &format!("{keyspace}.")));
        let rows = block_on(session.query_unpaged(text, ())).expect("it answers");
        let rows = rows.into_rows_result().expect("rows");
        let row = rows.single_row::<scylla::value::Row>().expect("one row");
        row.columns.into_iter().map(|column| column.and_then(|value| value.as_int())).collect()
    };
    let is_about = |left: Option<i32>, seconds: u64| {
        let (left, seconds) = (left.expect("it expires"), i32::try_from(seconds).expect("few"));
        assert!((seconds - 60..=seconds + 1).contains(&left), "{left} s, not {seconds}");
    };
    const DAY: u64 = 24 * 3_600;
    let cells = "TTL(v), TTL(progress), TTL(place), TTL(delivered_at) FROM KS.inbox \
                 WHERE user_id = 'ann' AND id = 1";
    let pending = write("ann", 1).says(0, Delivery::Pending).with_offset(5);
    for keep in [10, 5] {
        block_on(inbox.write_inbox(&[pending.clone().keep(keep)])).unwrap();
        let left = left(cells);
        is_about(left[0], 10 * DAY);
        is_about(left[1], 10 * DAY);
        is_about(left[2], 11 * DAY);
        assert_eq!(left[3], None);
    }
    let delivered = write("ann", 1).says(0, Delivery::Delivered).at(now());
    block_on(inbox.write_inbox(&[delivered.keep(10)])).unwrap();
    let seconds = left(cells);
    is_about(seconds[0], 10 * DAY);
    is_about(seconds[1], 11 * DAY);
    is_about(seconds[3], 11 * DAY);

    let (user, place) = (user_id("ann"), pending.place.expect("it has one"));
    let keep_until = EpochMillis(now().0 + 10 * DAY * 1_000);
    let removal = Removal { user, broadcast: pending.broadcast, place, keep_until };
    block_on(inbox.write_removals(&[removal])).unwrap();
    let removed = "TTL(removed) FROM KS.inbox WHERE user_id = 'ann' AND id = 1";
    is_about(left(removed)[0], 11 * DAY);

    let ended = write("ann", 2).says(0, Delivery::Pending).keep(0);
    let mut endless = write("ann", 3).says(0, Delivery::Pending);
    endless.keep_until = EpochMillis::MAX;
    block_on(inbox.write_inbox(&[ended, endless])).unwrap();
    let row = |id: u64| format!("TTL(v) FROM KS.inbox WHERE user_id = 'ann' AND id = {id}");
    is_about(left(&row(2))[0], limits::KEEP_MIN.as_secs());
    is_about(left(&row(3))[0], limits::KEEP_MAX.as_secs());

    let mut row = group_row(LOG, 0, 7);
    row.keep_until = EpochMillis(now().0 + 10 * DAY * 1_000);
    block_on(inbox.write_group(&[row])).unwrap();
    let message = "TTL(id) FROM KS.group_message WHERE log = 0x010203 AND partition_index = 0 \
                   AND bucket = 0 AND log_offset = 7";
    let note = "TTL(v) FROM KS.group_bucket WHERE log = 0x010203 AND partition_index = 0 \
                AND bucket = 0";
    is_about(left(message)[0], 10 * DAY);
    let noted = left(note)[0].expect("it expires");
    assert!((11 * DAY as i32 - 60..=12 * DAY as i32).contains(&noted), "{noted} s");
    // A row that lives longer makes the note last longer, and a shorter one does not end it.
    for keep in [30, 3] {
        row.keep_until = EpochMillis(now().0 + keep * DAY * 1_000);
        block_on(inbox.write_group(&[row])).unwrap();
        is_about(left(message)[0], 30 * DAY);
        assert!(left(note)[0].expect("it expires") > 31 * DAY as i32 - 60);
    }

    let own = Partition { topic: Topic::Selected, index: 0 };
    block_on(inbox.write_cursor(&user_id("ann"), LOG, &[(own, 7)])).unwrap();
    let cell = "TTL(next) FROM KS.stored_cursor WHERE user_id = 'ann' AND log = 0x010203 \
                AND topic = 0 AND partition_index = 0";
    is_about(left(cell)[0], limits::CURSOR_KEEP.as_secs());
}

/// What these writes of one row say together: the model.
fn merged(writes: &[InboxWrite]) -> Option<InboxRow> {
    let is_delivered = |write: &&InboxWrite| write.progress.delivery == Delivery::Delivered;
    if writes.iter().all(|write| is_delivered(&write)) {
        return None;
    }
    let places = writes.iter().filter_map(|write| write.place);
    Some(InboxRow {
        broadcast: writes[0].broadcast,
        place: places.min_by_key(|place| place.position.offset),
        progress: writes.iter().map(|write| write.progress).max()?,
        delivered_at: writes.iter().filter(is_delivered).map(|write| write.at).min(),
        removed: None,
    })
}

/// The inbox of a user after these writes.
fn rows_of(writes: &[InboxWrite], user: &str) -> Vec<InboxRow> {
    let mut by_broadcast: BTreeMap<BroadcastId, Vec<InboxWrite>> = BTreeMap::new();
    for write in writes.iter().filter(|write| write.user.as_str() == user) {
        by_broadcast.entry(write.broadcast).or_default().push(write.clone());
    }
    by_broadcast.values().filter_map(|writes| merged(writes)).collect()
}

/// Every inbox is as these writes say, which are all.
async fn assert_inboxes(inbox: &dyn Inbox, writes: &[InboxWrite]) {
    let users: std::collections::BTreeSet<&UserId> =
        writes.iter().map(|write| &write.user).collect();
    for user in users {
        let rows = inbox.inbox(user, None, 10_000).await.unwrap();
        assert_eq!(rows, rows_of(writes, user.as_str()), "{user}");
    }
}

/// A write that says nothing in particular.
fn write(user: &str, id: u64) -> InboxWrite {
    InboxWrite {
        user: user_id(if user.is_empty() { "nobody" } else { user }),
        broadcast: BroadcastId::new(id).expect("an id"),
        place: None,
        progress: Progress { attempt: 0, delivery: Delivery::Pending },
        at: now(),
        keep_until: EpochMillis(now().0 + 10 * 24 * 3_600_000),
    }
}

trait Says {
    fn of(self, user: &str) -> Self;
    fn says(self, attempt: u32, delivery: Delivery) -> Self;
    fn with_offset(self, offset: u64) -> Self;
    fn at(self, at: EpochMillis) -> Self;
    fn keep(self, days: u64) -> Self;
}

impl Says for InboxWrite {
    fn of(self, user: &str) -> Self {
        Self { user: user_id(user), ..self }
    }

    fn says(self, attempt: u32, delivery: Delivery) -> Self {
        Self { progress: Progress { attempt, delivery }, ..self }
    }

    /// Everything else of the place follows from the offset.
    fn with_offset(self, offset: u64) -> Self {
        let partition = Partition { topic: Topic::Selected, index: (offset % 10) as u16 };
        let appended_at = EpochMillis(1_795_514_400_000 + offset % 1_000);
        let position = Position { partition, offset };
        Self { place: Some(Place { log: LOG, position, appended_at }), ..self }
    }

    fn at(self, at: EpochMillis) -> Self {
        Self { at, ..self }
    }

    fn keep(self, days: u64) -> Self {
        Self { keep_until: EpochMillis(now().0 + days * 24 * 3_600_000), ..self }
    }
}
