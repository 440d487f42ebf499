//! A sync that waits until those whom the last one has answered are back, and all that does not wait with it.

use ringmq::config::LogConfig;
use ringmq::log::LogIndex;
use ringmq::log::job::Lane;

use crate::bench::{Bench, MemDisk};

fn config() -> LogConfig {
    LogConfig {
        gather_after_syncs: Some(0),
        ..crate::bench::config()
    }
}

/// What syncs are handed over for is not done until [`finish`].
fn hold(bench: &Bench) {
    *bench.held.lock().expect("unpoisoned") = vec![Lane::Sync];
}

fn finish(bench: &mut Bench) {
    bench.held.lock().expect("unpoisoned").clear();
    bench.poll();
    hold(bench);
}

/// Commits so many messages that wait for a sync, a while later.
fn publish(bench: &mut Bench, count: u64, after_us: u64) {
    bench.now_us += after_us;
    for _ in 0..count {
        bench.publish(1, b"x");
    }
    bench.log.commit(bench.now_us, true);
    bench.poll();
}

/// Four messages were answered by a sync of a millisecond, and two of those who sent them are back 100 us
/// later.
fn two_of_four_are_back(config: &LogConfig) -> Bench {
    let disk = MemDisk::default();
    let mut bench = Bench::open_with(&disk, config, 1_000_000_000).expect("an empty directory");
    bench.turn(false);
    hold(&bench);
    bench.publish(1, &[1; 9000]);
    publish(&mut bench, 3, 0);
    bench.now_us += 1000;
    finish(&mut bench);
    assert_eq!(bench.log.durable(), LogIndex(1));
    publish(&mut bench, 2, 100);
    bench
}

/// So many syncs there were, those that were gathered, and those that have waited in vain, of all that could be
/// done by now.
fn syncs(bench: &mut Bench) -> (u64, u64, u64) {
    finish(bench);
    let stats = bench.log.stats();
    (stats.syncs, stats.syncs_gathered, stats.syncs_in_vain)
}

#[test]
fn a_sync_waits_for_those_who_come_back() {
    let mut bench = two_of_four_are_back(&config());
    assert_eq!(syncs(&mut bench), (1, 0, 0), "it waits");
    assert_eq!(bench.log.written(), LogIndex(2), "and nothing else does");
    publish(&mut bench, 1, 100);
    assert_eq!(syncs(&mut bench), (1, 0, 0), "for the last one");
    publish(&mut bench, 1, 100);
    assert_eq!(syncs(&mut bench), (2, 1, 0));
    assert_eq!(bench.log.durable(), LogIndex(4));
}

#[test]
fn settled_messages_count_as_well_however_they_are_written() {
    let mut bench = two_of_four_are_back(&config());
    // One run of them, and one entry.
    bench.settle(1, 1);
    bench.settle(1, 2);
    publish(&mut bench, 0, 100);
    assert_eq!(syncs(&mut bench), (2, 1, 0));
}

#[test]
fn who_is_late_is_not_waited_for() {
    let mut bench = two_of_four_are_back(&config());
    // One and a half times as long as the last sync took, from its end.
    let due = bench.now_us + 1_400;
    assert_eq!(bench.log.deadline_us(), Some(due));
    bench.wait(1_399);
    assert_eq!(syncs(&mut bench), (1, 0, 0));
    bench.wait(1);
    assert_eq!(syncs(&mut bench), (2, 0, 1));
    assert_eq!(bench.log.durable(), LogIndex(2));
    // That has failed: the next syncs follow each other at once.
    publish(&mut bench, 1, 10);
    assert_eq!(syncs(&mut bench), (3, 0, 1));
}

#[test]
fn nobody_is_waited_for_where_that_is_switched_off() {
    let off = LogConfig {
        gather_after_syncs: None,
        ..config()
    };
    let mut bench = two_of_four_are_back(&off);
    assert_eq!(syncs(&mut bench), (2, 0, 0));
}

#[test]
fn who_asks_for_a_sync_waits_for_nobody() {
    let mut bench = two_of_four_are_back(&config());
    bench.log.hurry();
    publish(&mut bench, 0, 10);
    assert_eq!(syncs(&mut bench), (2, 0, 0));
    assert_eq!(bench.log.durable(), LogIndex(2));
}

#[test]
fn the_loss_window_of_os_is_not_longer_for_it() {
    let short = LogConfig {
        flush_us: 300,
        ..config()
    };
    let mut bench = two_of_four_are_back(&short);
    bench.wait(299);
    assert_eq!(syncs(&mut bench), (1, 0, 0));
    bench.wait(1);
    assert_eq!(syncs(&mut bench), (2, 0, 0), "the flush");
    assert_eq!(bench.log.durable(), LogIndex(2));
}

#[test]
fn an_end_waits_for_nobody() {
    let mut bench = two_of_four_are_back(&config());
    bench.log.close(bench.now_us);
    bench.poll();
    assert_eq!(syncs(&mut bench), (3, 0, 0), "and its mark");
    assert!(bench.log.is_closed());
}

#[test]
fn a_checkpoint_waits_for_nobody() {
    let mut bench = two_of_four_are_back(&config());
    bench.checkpoint();
    assert_eq!(syncs(&mut bench), (2, 0, 0));
    assert_eq!(bench.log.stats().checkpoints, 1);
}

#[test]
fn the_end_of_a_segment_waits_for_nobody() {
    let mut bench = two_of_four_are_back(&config());
    let segments = bench.log.stats().segments;
    bench.publish(1, &[1; 9000]);
    bench.log.commit(bench.now_us, true);
    bench.poll();
    assert!(
        bench.log.stats().segments > segments,
        "it does not fit behind the others"
    );
    assert_eq!(syncs(&mut bench), (2, 0, 0));
    assert_eq!(bench.log.durable(), bench.log.written());
}
