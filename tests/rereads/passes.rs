//! What is read of the log for whom, and what of it goes out.

use std::time::Duration;

use corecast::domain::{CloseReason, Reread, Unread};
use corecast::limits::log::REPEAT_RECORDS;
use corecast::limits::shard::{
    REPLAY_ENDS_MAX, REPLAY_PATIENCE, REPLAY_RECORDS_FAR, REPLAY_RECORDS_MAX, REPLAY_REFUSED_TIME,
    REPLAY_WRITE_BYTES,
};

use super::bench::{
    Bench, GROUP, Kernel, NOON, RING, cursor, event, event_until, offsets, read, served,
};

#[test]
fn what_many_need_is_read_once() {
    let mut bench = Bench::new(1_000);
    let sockets: Vec<_> = (0..500_u64)
        .map(|number| (number, bench.open(&format!("user-{number}"), number).1))
        .collect();
    bench.replay(100);
    for (served, socket) in &sockets {
        assert_eq!(offsets(socket), (*served..1_000).collect::<Vec<_>>(), "from {served}");
    }
    assert_eq!(bench.reread, (0..10).map(|part| part * 100).collect::<Vec<_>>());
    // Who comes while a pass is under way joins it, if it has not come by.
    let mut bench = Bench::new(1_000);
    let (_, first) = bench.open("first", 0);
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("it is behind");
    let (_, later) = bench.open("later", 300);
    bench.write();
    let events = (0..200).map(|offset| event(offset, offset)).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(events, 200)), bench.now);
    let (_, earlier) = bench.open("earlier", 50);
    bench.replay(200);
    for (served, socket) in [(0, first), (300, later), (50, earlier)] {
        assert_eq!(offsets(&socket), (served..1_000).collect::<Vec<_>>(), "from {served}");
    }
    // One was too late for it, and had a pass of its own.
    assert_eq!(bench.reread, [200, 400, 600, 800, 0, 200, 400, 600, 800]);
}

/// A crowd does not come at one time: once more have come than are served, all begin together.
#[test]
fn a_crowd_that_comes_after_the_first_is_taken_in() {
    let mut bench = Bench::new(1_000);
    let mut sockets = vec![bench.open("first", 0).1];
    for _ in 0..3 {
        bench.replay_part(100);
    }
    sockets.push(bench.open("second", 0).1);
    bench.replay_part(100);
    sockets.push(bench.open("third", 0).1);
    sockets.push(bench.open("fourth", 50).1);
    bench.replay(100);
    let parts = [0, 100, 200, 300].into_iter().chain((0..10).map(|part| part * 100));
    assert_eq!(bench.reread, parts.collect::<Vec<_>>());
    for (socket, first) in sockets.iter().zip([0, 0, 0, 50]) {
        assert_eq!(offsets(socket), (first..1_000).collect::<Vec<_>>());
    }
}

/// However many are slow: those that are not would begin again and again.
#[test]
fn those_that_were_left_behind_wait_for_the_next_pass() {
    let mut bench = Bench::new(1_000);
    let (_, quick) = bench.open("quick", 0);
    let slow: Vec<_> = (0..3).map(|number| bench.open(&format!("slow-{number}"), 0)).collect();
    bench.write();
    slow.iter().for_each(|(_, socket)| socket.borrow_mut().room = Some(0));
    bench.replay(100);
    bench.now = bench.now.plus(REPLAY_PATIENCE);
    bench.replay_part(100);
    for (key, socket) in &slow {
        socket.borrow_mut().room = None;
        bench.streams.handle_writable(*key);
    }
    bench.replay(100);
    let parts = (0..10).map(|part| part * 100);
    assert_eq!(bench.reread, parts.clone().chain(parts).collect::<Vec<_>>());
    for socket in slow.iter().map(|(_, socket)| socket).chain([&quick]) {
        assert_eq!(offsets(socket), (0..1_000).collect::<Vec<_>>());
    }
}

/// A client that never gets anything gives up, and comes again.
#[test]
fn those_that_go_again_hold_up_nobody() {
    for go_later in [false, true] {
        let mut bench = Bench::new(1_000);
        let (_, socket) = bench.open("first", 500);
        let mut parts = 0;
        while offsets(&socket).len() < 500 {
            bench.replay_part(100);
            let impatient: Vec<_> =
                (0..20).map(|number| bench.open(&format!("other-{number}"), 0).0).collect();
            bench.write();
            if go_later {
                bench.replay_part(100);
            }
            for key in impatient {
                bench.streams.handle_close(key, CloseReason::Peer);
            }
            parts += 1;
            assert!(parts < 20 * REPLAY_ENDS_MAX, "it has {:?}", offsets(&socket));
        }
    }
}

/// Nobody waits for it, and another pass would read the same again.
#[test]
fn one_that_replays_alone_may_be_slow() {
    let mut bench = Bench::new(1_000);
    let (key, socket) = bench.open("slow", 0);
    bench.write();
    for _ in 0..12 {
        socket.borrow_mut().room = Some(0);
        bench.replay(100);
        bench.now = bench.now.plus(REPLAY_PATIENCE);
        bench.replay(100);
        socket.borrow_mut().room = None;
        bench.streams.handle_writable(key);
    }
    bench.replay(100);
    assert_eq!(offsets(&socket), (0..1_000).collect::<Vec<_>>());
    assert_eq!(bench.reread, (0..10).map(|part| part * 100).collect::<Vec<_>>());
}

#[test]
fn one_whose_socket_is_full_holds_up_nobody() {
    let mut bench = Bench::new(1_000);
    let (slow_key, slow) = bench.open("slow", 0);
    let (_, quick) = bench.open("quick", 0);
    bench.write();
    slow.borrow_mut().room = Some(0);
    bench.replay(100);
    assert_eq!(offsets(&quick), (0..100).collect::<Vec<_>>(), "it waits for the slow one");
    assert_eq!(bench.streams.poll_timeout(), Some(bench.now.plus(REPLAY_PATIENCE)));
    bench.now = bench.now.plus(REPLAY_PATIENCE);
    bench.replay(100);
    assert_eq!(offsets(&quick), (0..1_000).collect::<Vec<_>>(), "but not for ever");
    assert_eq!(offsets(&slow), Vec::<u64>::new());
    // It goes on where it stands, once it takes something again.
    slow.borrow_mut().room = None;
    bench.streams.handle_writable(slow_key);
    bench.replay(100);
    assert_eq!(offsets(&slow), (0..1_000).collect::<Vec<_>>());
}

#[test]
fn what_was_read_again_goes_out_together() {
    let mut bench = Bench::new(1_000);
    let (_, socket) = bench.open("late", 0);
    bench.write();
    bench.writes.clear();
    bench.replay(996);
    assert_eq!(offsets(&socket), (0..1_000).collect::<Vec<_>>());
    let bytes = socket.borrow().bytes.len();
    assert!(bench.writes.len() <= bytes / REPLAY_WRITE_BYTES + 2, "{} writes", bench.writes.len());
    let counters = bench.streams.counters();
    assert_eq!((counters.deliveries, counters.bytes), (1_000, bytes as u64));
}

/// Wherever the socket is full: what has begun comes whole, and what has not is looked at again.
#[test]
fn what_goes_out_together_may_end_before_it_does() {
    const SEEN: u64 = 16;
    let later = NOON.plus(Duration::from_millis(1));
    let events =
        || (0..SEEN).map(|offset| event_until(offset, offset, (offset % 2 == 1).then_some(later)));
    let replay = |room: Option<usize>| {
        let mut bench = Bench::new(SEEN + RING);
        let (key, socket) = bench.open("late", 0);
        bench.write();
        let reread = bench.streams.poll_reread(bench.now).expect("it is behind");
        bench.streams.handle_reread(reread.pass, Ok(read(events().collect(), SEEN)), bench.now);
        *socket.borrow_mut() = Kernel { bytes: Vec::new(), room };
        bench.write();
        let before = String::from_utf8(socket.borrow().bytes.clone()).expect("ASCII");
        bench.wall = later;
        socket.borrow_mut().room = None;
        bench.streams.handle_writable(key);
        bench.write();
        (before, socket, bench.streams.counters().deliveries)
    };
    let (all, ..) = replay(None);
    let ends: Vec<usize> = all.match_indices("\n\n").map(|(at, _)| at + 2).collect();
    assert_eq!(ends.len() as u64, SEEN + RING, "one write has all, and then comes the ring");
    for room in 1..ends[SEEN as usize - 1] {
        let (_, socket, deliveries) = replay(Some(room));
        let has_begun = |offset: &u64| *offset == 0 || ends[*offset as usize - 1] < room;
        let is_due =
            |offset: &u64| offset.is_multiple_of(2) || *offset >= SEEN || has_begun(offset);
        let due: Vec<u64> = (0..SEEN + RING).filter(is_due).collect();
        assert_eq!(offsets(&socket), due, "{room} bytes");
        let ids: Vec<u64> = due.iter().map(|offset| offset + 1).collect();
        assert_eq!(served(&socket), ids, "{room} bytes");
        assert_eq!(deliveries, due.len() as u64, "{room} bytes");
    }
}

#[test]
fn what_repeats_another_is_not_served_again_from_the_log() {
    // Event 7 stands at 10 once more, and at 900 event 899.
    let id = |offset: u64| match offset {
        10 => 7,
        900 => 899,
        other => other,
    };
    for served in [0, 8, 50] {
        let mut bench = Bench::new(1_000);
        let (_, socket) = bench.open("late", served);
        bench.write();
        let mut first = None;
        while let Some(Reread { pass, from }) = bench.streams.poll_reread(bench.now) {
            first.get_or_insert(from[0].1);
            let (from, next) = (from[0].1, (from[0].1 + 300).min(1_000));
            let events = (from..next).map(|offset| event(offset, id(offset))).collect();
            bench.streams.handle_reread(pass, Ok(read(events, next)), bench.now);
            bench.write();
        }
        assert_eq!(first, Some(0), "a window of repeats before what is served");
        let due = (served..1_000).filter(|offset| ![10, 900].contains(offset));
        assert_eq!(offsets(&socket), due.collect::<Vec<_>>(), "from {served}");
    }
    const { assert!(REPEAT_RECORDS > 1_000) };
}

#[test]
fn what_is_not_to_be_had_ends_the_streams_and_the_next_come_in() {
    for (why, soon) in [(Unread::Gone, true), (Unread::Away, false)] {
        let mut bench = Bench::new(1_000);
        let sockets: Vec<_> =
            (0..3).map(|number| bench.open(&format!("user-{number}"), 0).1).collect();
        bench.write();
        let reread = bench.streams.poll_reread(bench.now).expect("they are behind");
        assert!(bench.streams.prefers_log(&cursor("user-0", 0), true, bench.now));
        assert!(
            !bench.streams.prefers_log(&cursor("user-0", 0), false, bench.now),
            "he is alone, and near"
        );
        bench.streams.handle_reread(reread.pass, Err(why), bench.now);
        let prefers =
            |after| bench.streams.prefers_log(&cursor("user-0", 0), true, bench.now.plus(after));
        assert!(!prefers(Duration::ZERO), "the store may have it");
        assert!(prefers(REPLAY_REFUSED_TIME), "it may be another part, or the log is back");
        bench.write();
        assert!(bench.streams.is_empty());
        for socket in &sockets {
            let text = String::from_utf8(socket.borrow().bytes.clone()).expect("UTF-8");
            let retries = text.lines().filter_map(|line| line.strip_prefix("retry: "));
            let retries: Vec<u64> = retries.map(|retry| retry.parse().expect("one")).collect();
            assert_eq!((retries.len(), retries[1] < 1_000), (2, soon), "{why:?}: {retries:?}");
        }
        let (_, next) = bench.open("next", 990);
        bench.replay(100);
        assert_eq!(offsets(&next), (990..1_000).collect::<Vec<_>>());
        // An answer to what nobody waits for any more changes nothing.
        bench.streams.handle_reread(reread.pass, Err(why), bench.now);
        assert_eq!(bench.streams.len(), 1);
    }
}

/// The store would have to look at as many rows, for each of them.
#[test]
fn who_is_far_behind_is_served_by_the_log() {
    let mut bench = Bench::new(RING);
    bench.streams.handle_position(GROUP, REPLAY_RECORDS_FAR + 1);
    let prefers = |served| bench.streams.prefers_log(&cursor("user-0", served), false, bench.now);
    assert_eq!([0, 1, 2].map(prefers), [true, true, false]);
    for offset in REPLAY_RECORDS_MAX + 1..=REPLAY_RECORDS_MAX + 2 * RING {
        bench.streams.handle_events(&mut vec![event(offset, offset)]);
    }
    let prefers = |served| bench.streams.prefers_log(&cursor("user-0", served), true, bench.now);
    assert!(!prefers(0), "the log is not read as far back for one client");
}
