//! What is late has a share of a turn.

use corecast::domain::StreamKey;
use corecast::limits::shard::{
    LIVE_FRAMES, REPLAY_EVENTS_PER_TURN_MAX, REPLAY_SHARE, REPLAY_WRITES_PER_TURN_MAX,
};

use super::bench::{Bench, NOON, event, event_for, event_until, offsets, read};

#[test]
fn those_that_replay_leave_the_others_their_turns() {
    let mut bench = Bench::new(1_000);
    for number in 0..100 {
        bench.open(&format!("late-{number}"), 0);
    }
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("they are behind");
    let events = (0..100).map(|offset| event(offset, offset)).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(events, 100)), bench.now);
    let live: Vec<_> =
        (0..10).map(|number| bench.open(&format!("live-{number}"), 1_000).0).collect();
    bench.writes.clear();
    bench.write();
    let last = bench.writes.iter().rposition(|key| live.contains(key)).expect("CONNECTED");
    let most = live.len() * REPLAY_SHARE as usize / (REPLAY_SHARE as usize - 1) + 1;
    assert!(last <= most, "the last of them had the {last}th write of {}", bench.writes.len());
}

/// A turn ends when they have had their share of it: what is live may have come meanwhile.
#[test]
fn those_that_replay_end_a_turn() {
    let mut bench = Bench::new(1_000);
    let late = 2 * REPLAY_WRITES_PER_TURN_MAX;
    let sockets: Vec<_> = (0..late).map(|late| bench.open(&format!("late-{late}"), 0).1).collect();
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("they are behind");
    let events = (0..10).map(|offset| event(offset, offset)).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(events, 10)), bench.now);
    let mut turns = Vec::new();
    while bench.streams.wants_to_write() {
        bench.writes.clear();
        bench.write_turn();
        turns.push(bench.writes.len());
    }
    assert_eq!(turns, [REPLAY_WRITES_PER_TURN_MAX, REPLAY_WRITES_PER_TURN_MAX, 0]);
    for socket in sockets {
        assert_eq!(offsets(&socket), (0..10).collect::<Vec<_>>());
    }
}

/// Nor does it matter where from: what the ring still has is late, too.
#[test]
fn those_that_are_far_behind_in_the_ring_are_a_share_of_a_turn() {
    const EVENTS: u64 = 4 * LIVE_FRAMES;
    let mut bench = Bench::with_ring(2 * EVENTS, EVENTS);
    let late: Vec<_> = (0..100).map(|late| bench.open(&format!("late-{late}"), 0).1).collect();
    let live: Vec<_> = (0..10).map(|live| bench.open(&format!("live-{live}"), EVENTS)).collect();
    // CONNECTED of each, and then what is late.
    bench.write_turn();
    bench.write_turn();
    bench.streams.handle_events(&mut vec![event(EVENTS, EVENTS)]);
    bench.writes.clear();
    bench.write_turn();
    let is_live = |key: &StreamKey| live.iter().any(|(live, _)| live == key);
    let last = bench.writes.iter().rposition(is_live).expect("an event");
    let most = live.len() * REPLAY_SHARE as usize / (REPLAY_SHARE as usize - 1) + 1;
    assert!(last <= most, "the last of them had the {last}th write of {}", bench.writes.len());
    assert!(bench.writes.len() <= live.len() + REPLAY_WRITES_PER_TURN_MAX);
    assert!(bench.streams.wants_to_write(), "the rest comes in later turns");
    bench.write();
    for socket in late {
        assert_eq!(offsets(&socket), (0..=EVENTS).collect::<Vec<_>>());
    }
    for (_, socket) in live {
        assert_eq!(offsets(&socket), [EVENTS]);
    }
}

/// What is for none of many streams is looked at for each of them: not all of it in one turn.
#[test]
fn what_is_for_nobody_leaves_the_others_their_turns() {
    let events = REPLAY_EVENTS_PER_TURN_MAX as u64 / 100;
    let mut bench = Bench::new(2 * events);
    let sockets: Vec<_> = (0..250).map(|late| bench.open(&format!("late-{late}"), 0).1).collect();
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("they are behind");
    let ended = (0..events).map(|offset| event_until(offset, offset, Some(NOON))).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(ended, events)), bench.now);
    let mut turns = 0;
    while bench.streams.wants_to_write() && bench.streams.poll_write(NOON).is_none() {
        turns += 1;
    }
    assert_eq!(turns, 3);
    bench.replay(events);
    for socket in sockets {
        assert_eq!(offsets(&socket), (events..2 * events).collect::<Vec<_>>());
    }
}

/// What is for others does not make anybody late.
#[test]
fn those_that_keep_up_are_served_however_much_is_for_others() {
    const USERS: u64 = 1_000;
    let mut bench = Bench::with_ring(2 * USERS, 0);
    let users: Vec<_> = (0..USERS).map(|user| bench.open(&format!("user-{user}"), 0)).collect();
    bench.write();
    bench.writes.clear();
    let events = (0..USERS).map(|user| event_for(&format!("user-{user}"), user));
    bench.streams.handle_events(&mut events.collect());
    bench.write_turn();
    let keys: Vec<_> = users.iter().map(|(key, _)| *key).collect();
    assert_eq!(bench.writes, keys, "in the order in which they came, in one turn");
}

/// Nor does what comes meanwhile give those anything to do that wait for the log.
#[test]
fn those_that_wait_for_the_log_take_no_turns() {
    let mut bench = Bench::new(1_000);
    for number in 0..100 {
        bench.open(&format!("late-{number}"), 0);
    }
    bench.write();
    bench.streams.handle_events(&mut vec![event(1_000, 1_000)]);
    assert!(!bench.streams.wants_to_write());
}
