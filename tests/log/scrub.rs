//! The slow scrub: old segments are verified while the log is used, damage is told, and what is
//! given up or used again meanwhile is no damage.

use crate::bench::{Bench, MemDisk};
use ringmq::config::LogConfig;
use ringmq::log::job::Lane;

fn config() -> LogConfig {
    LogConfig {
        scrub_piece_us: 1000,
        scrub_round_us: 60_000_000,
        ..crate::bench::config()
    }
}

fn open(disk: &MemDisk) -> Bench {
    Bench::open_with(disk, &config(), 1_000_000_000).expect("whole")
}

/// Publishes until so many segments hold messages.
fn fill(bench: &mut Bench, segments: usize) {
    while bench.log.stats().segments < segments {
        let n = bench.next_id(1);
        let size = [1, 100, 3000][n as usize % 3];
        bench.publish(1, &vec![n as u8; size]);
        bench.turn(true);
    }
}

/// The path of the nth segment of the log proper.
fn segment(disk: &MemDisk, nth: usize) -> String {
    let mut paths = disk.paths();
    paths.retain(|path| path.ends_with(".seg"));
    paths.sort();
    paths.swap_remove(nth)
}

#[test]
fn a_round_verifies_every_closed_segment_once() {
    let disk = MemDisk::default();
    let mut bench = open(&disk);
    fill(&mut bench, 6);
    assert_eq!(bench.log.stats().scrubbed_bytes, 0, "it begins later");
    bench.wait(1_000_000);
    let first = bench.log.stats();
    let closed = 5 * (10 << 10)..6 * (16 << 10);
    assert!(closed.contains(&first.scrubbed_bytes), "{first:?}");
    assert_eq!(first.scrub_damaged, 0);
    bench.wait(30_000_000);
    assert_eq!(bench.log.stats().scrubbed_bytes, first.scrubbed_bytes);
    bench.wait(31_000_000);
    assert_eq!(bench.log.stats().scrubbed_bytes, 2 * first.scrubbed_bytes);
}

#[test]
fn records_longer_than_a_piece_are_verified_whole() {
    let disk = MemDisk::default();
    let config = LogConfig {
        segment_bytes: 8 << 20,
        checkpoint_bytes: 1 << 30,
        ..config()
    };
    let mut bench = Bench::open_with(&disk, &config, 1_000_000_000).expect("an empty directory");
    bench.turn(false);
    while bench.log.stats().segments < 3 {
        let n = bench.next_id(1);
        bench.publish(1, &vec![n as u8; [10, 700_000, 2_500_000][n as usize % 3]]);
        bench.turn(true);
    }
    bench.wait(1_000_000);
    let stats = bench.log.stats();
    assert!(stats.scrubbed_bytes > 10 << 20, "{stats:?}");
    assert_eq!(stats.scrub_damaged, 0);

    // One flipped bit in the middle of a long record.
    let path = segment(&disk, 0);
    let mut bytes = disk.get(&path);
    bytes[4 << 20] ^= 1;
    disk.put(&path, bytes);
    bench.wait(61_000_000);
    assert_eq!(bench.log.stats().scrub_damaged, 1);
}

#[test]
fn damage_is_told_and_the_rest_is_verified() {
    let disk = MemDisk::default();
    let mut bench = open(&disk);
    fill(&mut bench, 4);
    let path = segment(&disk, 1);
    for offset in [200, 5000] {
        let mut bytes = disk.get(&path);
        bytes[offset] ^= 0x10;
        disk.put(&path, bytes);
    }
    bench.wait(1_000_000);
    let stats = bench.log.stats();
    assert!((1..=2).contains(&stats.scrub_damaged), "{stats:?}");
    assert!(bench.log.failure().is_none(), "the log goes on");
    fill(&mut bench, 6);
    bench.wait(61_000_000);
    assert!(bench.log.stats().scrubbed_bytes > 2 * stats.scrubbed_bytes);
}

#[test]
fn a_lost_length_ends_the_look_at_its_segment_only() {
    let disk = MemDisk::default();
    let mut bench = open(&disk);
    fill(&mut bench, 4);
    let path = segment(&disk, 1);
    let mut bytes = disk.get(&path);
    // The first record's length and its check.
    bytes[64..80].fill(0xa5);
    disk.put(&path, bytes);
    bench.wait(1_000_000);
    let stats = bench.log.stats();
    assert_eq!(stats.scrub_damaged, 1);
    assert!(stats.scrubbed_bytes > 2 * (10 << 10), "{stats:?}");
}

#[test]
fn a_segment_that_is_used_again_while_it_is_read_is_no_damage() {
    let disk = MemDisk::default();
    let mut bench = open(&disk);
    fill(&mut bench, 6);
    let path = segment(&disk, 3);
    while bench.log.stats().scrubbed_bytes < 30 << 10 {
        bench.wait(1000);
    }
    bench.held.lock().expect("unpoisoned").push(Lane::Read);
    bench.wait(100_000);
    // The read of a segment in the middle hangs. Everything in it is settled, checkpoints pass, and its
    // file is used for new segments.
    let last = bench.next_id(1);
    for id in 1..last {
        bench.settle(1, id);
        if id % 50 == 0 {
            bench.turn(true);
        }
    }
    bench.turn(true);
    for _ in 0..40 {
        let n = bench.next_id(1);
        bench.publish(1, &[7; 5000]);
        bench.turn(true);
        bench.settle(1, n);
        bench.turn(true);
        bench.checkpoint();
        bench.wait(100_000);
        if !disk.paths().contains(&path) {
            break;
        }
    }
    assert!(!disk.paths().contains(&path), "{:?}", disk.paths());
    bench.held.lock().expect("unpoisoned").clear();
    bench.wait(1_000_000);
    let stats = bench.log.stats();
    assert_eq!(stats.scrub_damaged, 0, "{stats:?}");
}
