//! The ring goes on meanwhile, and past readers that are slow.

use std::collections::BTreeMap;
use std::time::Duration;

use corecast::domain::Reread;
use corecast::limits::shard::PAST_FRAMES_MAX;

use super::bench::{Bench, GROUP, NOON, event, offsets, read, served};

#[test]
fn no_heartbeat_passes_what_is_still_to_come() {
    let mut bench = Bench::new(1_000);
    let (_, socket) = bench.open("late", 100);
    bench.write();
    let reread = bench.streams.poll_reread(bench.now).expect("it is behind");
    // Of more than ten of them, one says where a stream stands.
    for _ in 0..12 {
        bench.now = bench.now.plus(Duration::from_secs(25));
        bench.streams.handle_timers(bench.now, NOON);
        bench.write();
    }
    assert_eq!(served(&socket), [100], "that of CONNECTED");
    let events = (0..1_000).map(|offset| event(offset, offset)).collect();
    bench.streams.handle_reread(reread.pass, Ok(read(events, 1_000)), bench.now);
    bench.write();
    assert_eq!(offsets(&socket), (100..1_000).collect::<Vec<_>>());
}

#[test]
fn the_ring_may_go_on_while_they_replay() {
    let mut bench = Bench::new(1_000);
    let (key, socket) = bench.open("late", 0);
    let mut appended = 1_000;
    let mut rounds = BTreeMap::new();
    for round in 0.. {
        bench.write();
        // Two for each that is read again, until far on.
        if appended < 1_400 {
            for _ in 0..20 {
                bench.streams.handle_events(&mut vec![event(appended, appended)]);
                appended += 1;
            }
        }
        let Some(Reread { pass, from }) = bench.streams.poll_reread(bench.now) else { break };
        rounds.insert(round, from[0].1);
        let (from, next) = (from[0].1, from[0].1 + 40);
        let events = (from..next).map(|offset| event(offset, offset)).collect();
        bench.streams.handle_reread(pass, Ok(read(events, next)), bench.now);
    }
    bench.write();
    assert!(!bench.streams.replays(key), "it has come to the ring: {rounds:?}");
    assert_eq!(offsets(&socket), (0..appended).collect::<Vec<_>>());
}

#[test]
fn a_reader_that_the_ring_overtakes_goes_on_where_it_is() {
    let mut bench = Bench::new(500);
    let (key, socket) = bench.open("slow", 500);
    let (_, quick) = bench.open("quick", 500);
    let come = |bench: &mut Bench, offsets: std::ops::Range<u64>| {
        for offset in offsets {
            bench.streams.handle_events(&mut vec![event(offset, offset)]);
            bench.write();
        }
    };
    come(&mut bench, 500..510);
    // Records of which nothing is for this shard come between, and ids say so.
    bench.streams.handle_position(GROUP, 550);
    for _ in 0..12 {
        bench.now = bench.now.plus(Duration::from_secs(25));
        bench.streams.handle_timers(bench.now, NOON);
        bench.write();
    }
    assert_eq!(served(&socket).last(), Some(&550));
    socket.borrow_mut().room = Some(0);
    bench.streams.handle_position(GROUP, 600);
    come(&mut bench, 600..700);
    assert!(bench.streams.poll_reread(bench.now).is_none(), "its socket takes nothing");
    socket.borrow_mut().room = None;
    bench.streams.handle_writable(key);
    bench.write();
    while let Some(Reread { pass, from }) = bench.streams.poll_reread(bench.now) {
        let next = 700.min(from[0].1 + 40);
        let here = (from[0].1..next).filter(|offset| !(510..600).contains(offset));
        let events = here.map(|offset| event(offset, offset)).collect();
        bench.streams.handle_reread(pass, Ok(read(events, next)), bench.now);
        bench.write();
    }
    come(&mut bench, 700..710);
    let all: Vec<_> = (500..510).chain(600..710).collect();
    assert_eq!(offsets(&socket), all);
    assert_eq!(offsets(&quick), all);
    assert!(bench.streams.contains(key) && !bench.streams.replays(key));
    let ids = served(&socket);
    assert!(ids.is_sorted(), "{ids:?}");
    assert_eq!(ids.last(), Some(&710));
}

#[test]
fn who_was_overtaken_too_long_ago_comes_back() {
    let mut bench = Bench::new(10);
    let (key, socket) = bench.open("slow", 10);
    bench.write();
    socket.borrow_mut().room = Some(0);
    let all = 10 + 2 * PAST_FRAMES_MAX as u64;
    for offset in 10..all {
        bench.streams.handle_events(&mut vec![event(offset, offset)]);
        bench.write();
    }
    socket.borrow_mut().room = None;
    bench.streams.handle_writable(key);
    bench.write();
    assert!(!bench.streams.contains(key), "nobody knows where it stood");
}
