//! What every `Inbox` must do with word that a message is taken away.

use std::collections::BTreeMap;

use corecast::base::{BroadcastId, EpochMillis, LogIdentity, Partition, Position, Topic, UserId};
use corecast::limits::cursor;
use corecast::ports::{
    Delivery, GroupRow, GroupWhat, Inbox, InboxRow, InboxWrite, Place, Progress, Removal,
};

use super::Case;
use super::given::{Dice, HOSTILE_USERS, LOG, group_row, orders_of, user_id};
use super::store::{Stores, at_once, block_on, now};

/// Every promise about removals.
pub const CASES: &[Case] = &[
    ("a removal stands beside its row, in whatever order", a_removal_stands_beside_its_row),
    ("a removal alone makes no row, the first one stays", a_removal_alone_makes_no_row),
    ("one call takes many removals", one_call_takes_many_removals),
    ("a removal has the oddest places", a_removal_has_the_oddest_places),
    ("group rows are of both kinds", group_rows_are_of_both_kinds),
];

fn place(offset: u64) -> Place {
    let partition = Partition { topic: Topic::Selected, index: 7 };
    let appended_at = EpochMillis(1_795_514_400_000 + offset % 1_000);
    Place { log: LOG, position: Position { partition, offset }, appended_at }
}

fn keep_until() -> EpochMillis {
    EpochMillis(now().0 + 10 * 24 * 3_600_000)
}

fn write(user: &UserId, id: u64, delivery: Delivery) -> InboxWrite {
    InboxWrite {
        user: user.clone(),
        broadcast: BroadcastId::new(id).expect("an id"),
        place: Some(place(5)),
        progress: Progress { attempt: 0, delivery },
        at: EpochMillis(1_795_514_400_000),
        keep_until: keep_until(),
    }
}

fn removal(user: &UserId, id: u64, offset: u64) -> Removal {
    let broadcast = BroadcastId::new(id).expect("an id");
    let (place, keep_until) = (place(offset), keep_until());
    Removal { user: user.clone(), broadcast, place, keep_until }
}

async fn removed(inbox: &dyn Inbox, user: &UserId) -> Vec<(u64, Option<Place>)> {
    let rows = inbox.inbox(user, None, 10_000).await.unwrap();
    rows.into_iter().map(|row| (row.broadcast.get(), row.removed)).collect()
}

/// Message, delivery, and two removals, one of them twice: each order of them.
fn a_removal_stands_beside_its_row(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    block_on(async {
        for (number, order) in (0..).zip(orders_of(5)) {
            let user = user_id(&format!("user {number}"));
            for step in order {
                match step {
                    0 => inbox.write_inbox(&[write(&user, 1, Delivery::Pending)]).await.unwrap(),
                    1 => inbox.write_inbox(&[write(&user, 1, Delivery::Delivered)]).await.unwrap(),
                    2 => inbox.write_removals(&[removal(&user, 1, 9)]).await.unwrap(),
                    _ => inbox.write_removals(&[removal(&user, 1, 12)]).await.unwrap(),
                }
            }
            let expected = InboxRow {
                broadcast: BroadcastId::new(1).expect("an id"),
                place: Some(place(5)),
                progress: Progress { attempt: 0, delivery: Delivery::Delivered },
                delivered_at: Some(EpochMillis(1_795_514_400_000)),
                removed: Some(place(9)),
            };
            assert_eq!(inbox.inbox(&user, None, 10).await.unwrap(), [expected]);
        }
    });
}

fn a_removal_alone_makes_no_row(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let ann = user_id("ann");
    block_on(async {
        inbox.write_removals(&[removal(&ann, 1, 9), removal(&ann, 2, 10)]).await.unwrap();
        assert_eq!(removed(&*inbox, &ann).await, []);
        // What was delivered is none either, before its row is written.
        inbox.write_inbox(&[write(&ann, 1, Delivery::Delivered)]).await.unwrap();
        assert_eq!(removed(&*inbox, &ann).await, []);
        inbox.write_inbox(&[write(&ann, 1, Delivery::Pending)]).await.unwrap();
        assert_eq!(removed(&*inbox, &ann).await, [(1, Some(place(9)))]);
        let row = inbox.row(&ann, BroadcastId::new(1).expect("an id")).await.unwrap();
        let row = row.expect("a row");
        assert_eq!(row.progress.delivery, Delivery::Delivered);
        let (ben, cem) = (user_id("ben"), user_id("cem"));
        for user in [&ben, &cem] {
            inbox.write_inbox(&[write(user, 1, Delivery::Pending)]).await.unwrap();
            assert_eq!(removed(&*inbox, user).await, [(1, None)]);
        }
        for (offset, stays) in [(20, 20), (30, 20), (10, 10), (20, 10), (0, 0), (1 << 40, 0)] {
            inbox.write_removals(&[removal(&ben, 1, offset)]).await.unwrap();
            assert_eq!(removed(&*inbox, &ben).await, [(1, Some(place(stays)))], "{offset}");
        }
        assert_eq!(removed(&*inbox, &cem).await, [(1, None)]);
    });
}

/// Many users, some of whom have many; and many calls at a time.
fn one_call_takes_many_removals(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let mut dice = Dice(8);
    let mut users: Vec<UserId> = (0..60).map(|number| user_id(&format!("u{number}"))).collect();
    users.extend(HOSTILE_USERS.map(user_id));
    let mut expected: BTreeMap<&UserId, BTreeMap<u64, Option<Place>>> = BTreeMap::new();
    let (mut writes, mut removals) = (Vec::new(), Vec::new());
    for (number, user) in users.iter().enumerate() {
        let messages = if number == 0 { 300 } else { 1 + dice.below(4) };
        for id in 0..messages {
            writes.push(write(user, id, Delivery::Pending));
            let offset = dice.below(3).checked_sub(1).map(|_| dice.below(1 << 30));
            removals.extend(offset.map(|offset| removal(user, id, offset)));
            expected.entry(user).or_default().insert(id, offset.map(place));
        }
    }
    dice.shuffle(&mut removals);
    let (first, rest) = removals.split_at(removals.len() / 2);
    let rest: Vec<Vec<Removal>> = rest.chunks(40).map(<[Removal]>::to_vec).collect();
    block_on(async {
        inbox.write_removals(&[]).await.unwrap();
        inbox.write_removals(first).await.unwrap();
        inbox.write_inbox(&writes).await.unwrap();
        at_once(&rest, |some| {
            let inbox = inbox.clone();
            async move { inbox.write_removals(&some).await.unwrap() }
        })
        .await;
        for (user, rows) in expected {
            let rows: Vec<(u64, Option<Place>)> = rows.into_iter().collect();
            assert_eq!(removed(&*inbox, user).await, rows, "{user}");
        }
    });
}

fn a_removal_has_the_oddest_places(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let ann = user_id("ann");
    let partition = Partition { topic: Topic::Group, index: u16::MAX };
    let position = Position { partition, offset: cursor::OFFSET_MAX };
    let log = LogIdentity([0xff; 3]);
    let far = Place { log, position, appended_at: EpochMillis::MAX };
    block_on(async {
        for (id, keep_until) in
            [(0, EpochMillis(0)), (BroadcastId::MAX, EpochMillis::MAX), (77, keep_until())]
        {
            let mut removal = removal(&ann, id, 0);
            (removal.place, removal.keep_until) = (far, keep_until);
            inbox.write_inbox(&[write(&ann, id, Delivery::Pending)]).await.unwrap();
            inbox.write_removals(&[removal]).await.unwrap();
        }
        let expected = [0, 77, BroadcastId::MAX].map(|id| (id, Some(far)));
        assert_eq!(removed(&*inbox, &ann).await, expected);
    });
}

fn group_rows_are_of_both_kinds(stores: &dyn Stores) {
    let (_, inbox) = stores.fresh_both();
    let what = |offset: u64| match offset % 3 {
        0 => GroupWhat::Removed,
        _ => GroupWhat::Created,
    };
    let rows: Vec<GroupRow> = [0, 1, 2, 3, 16_383, 16_384, 16_386, 100_000]
        .into_iter()
        .map(|offset| GroupRow { what: what(offset), ..group_row(LOG, 4, offset) })
        .collect();
    block_on(async {
        inbox.write_group(&rows).await.unwrap();
        assert_eq!(inbox.group(LOG, 4, 0, 100).await.unwrap(), rows);
        // Repeated, as after a crash.
        inbox.write_group(&rows[3..]).await.unwrap();
        assert_eq!(inbox.group(LOG, 4, 0, 100).await.unwrap(), rows);
        assert_eq!(inbox.group(LOG, 4, 4, 2).await.unwrap(), rows[4..6]);
    });
}
