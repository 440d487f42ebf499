//! The log as its caller sees it: what is appended is read back, now and after a restart.

use crate::bench::{Bench, MemDisk, MemStorage, Model, Random, config, options};
use bytes::Bytes;
use ringmq::broker::command::Body;
use ringmq::broker::id::QueueUid;
use ringmq::log::job::Lane;
use ringmq::log::{
    Entry, Log, LogIndex, Message, Position, Room, Run, SectionKind, Sections, SectionsBuilder,
    SettleReason, TransferReason,
};

#[test]
fn a_new_directory_is_new_once() {
    let disk = MemDisk::default();
    let bench = Bench::open(&disk).expect("an empty directory");
    assert!(bench.recovered.fresh);
    assert_eq!(
        (bench.recovered.incarnation, bench.log.incarnation()),
        (1, 1)
    );
    drop(bench);
    let bench = Bench::open(&disk).expect("a directory without records");
    assert!(!bench.recovered.fresh);
    assert_eq!(bench.recovered.incarnation, 2);
}

#[test]
fn a_first_start_waits_for_two_syncs() {
    let disk = MemDisk::default();
    let storage = MemStorage::new(&disk);
    let mut model = Model::default();
    let opened = Log::open(storage, &config(), options(1_000_000_000), &mut model);
    let (log, _) = opened.expect("an empty directory");
    assert_eq!(log.incarnation(), 1);
    let steps = |disk: &MemDisk| {
        let state = disk.state();
        let steps = state.log.iter().map(|step| step.trim_end().to_owned());
        let is_named = |step: &String| {
            let word = step.split(' ').next().unwrap_or_default();
            ["rename", "create_dir", "sync", "sync_dir"].contains(&word)
        };
        steps.filter(is_named).collect::<Vec<_>>()
    };
    // The manifest's contents before its name, and that before the shard's directory.
    let first = [
        "sync",
        "rename MANIFEST.tmp MANIFEST",
        "sync_dir",
        "create_dir shard-0",
    ];
    assert_eq!(steps(&disk), first);
    drop(log);
    // That directory's name before anything in it.
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.publish(1, b"first");
    bench.turn(true);
    let then = [
        "sync_dir",
        "sync",
        "rename shard-0/0000000000000001.seg.tmp shard-0/0000000000000001.seg",
        "sync_dir shard-0",
        "sync",
        "rename MANIFEST.tmp MANIFEST",
        "sync_dir",
    ];
    assert_eq!(steps(&disk)[4..][..then.len()], then);
}

#[test]
fn every_kind_of_entry_comes_back() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let mut sections = Vec::new();
    SectionsBuilder::new(&mut sections).key(b"k").priority(3);
    bench.append(&Entry::Open { incarnation: 1 });
    bench.append(&Entry::Define {
        uid: QueueUid(1),
        name: b"jobs",
        settings: b"s",
        flags: 9,
    });
    bench.publish(1, b"plain");
    bench.publish_with(1, &sections, Body::Borrowed(b"with sections"));
    let message = Message {
        time_ms: bench.now_us / 1000,
        sections: &[],
        body: Body::Borrowed(b"shared"),
    };
    bench.append(&Entry::Publish {
        targets: &[(QueueUid(1), 3), (QueueUid(2), 1), (QueueUid(3), 1)],
        message,
    });
    bench.append(&Entry::Release {
        queue: QueueUid(1),
        group: 0,
        run: Run { first: 1, count: 1 },
        tries: 2,
        not_before_us: 77,
    });
    bench.turn(true);
    let message = Message {
        time_ms: bench.now_us / 1000,
        sections: &sections,
        body: Body::Borrowed(b"moved"),
    };
    let moved = bench.append(&Entry::Transfer {
        source: QueueUid(1),
        source_id: 2,
        group: 0,
        reason: TransferReason::Tries,
        target: QueueUid(4),
        target_id: 1,
        message,
    });
    bench.append(&Entry::Bind {
        queue: QueueUid(1),
        pattern: b"news.#",
    });
    bench.append(&Entry::Unbind {
        queue: QueueUid(300),
        pattern: b"*",
    });
    bench.append(&Entry::Route {
        change: b"\x02\x01e",
    });
    bench.append(&Entry::Out {
        seq: 300,
        shard: 2,
        queue: QueueUid(1),
        id: 3,
        reason: TransferReason::Rejected,
        tries: 4,
        target: b"graves",
        why: b"bad",
    });
    bench.append(&Entry::In {
        shard: 1,
        seq: 7,
        below: 5,
        origin: 900,
    });
    bench.append(&Entry::Part {
        seq: 301,
        shard: 2,
        part: b"what is to be done",
    });
    bench.append(&Entry::DeleteQueue { uid: QueueUid(3) });
    bench.settle(2, 1);
    bench.turn(true);
    assert_eq!(bench.log.durable(), LogIndex(2));
    assert_eq!(bench.log.written(), LogIndex(2));
    assert_eq!(bench.read(moved).expect("it is whole").2, b"moved");

    let model = bench.model.clone();
    let mut again = Bench::open(&disk).expect("whole");
    assert_eq!(
        (again.model.live.clone(), again.model.next.clone()),
        bench.kept()
    );
    assert_eq!(again.model.defined, model.defined);
    assert_eq!(again.model.released, model.released);
    assert_eq!(again.model.opens, [1]);
    let bound = [
        (1, b"news.#".to_vec(), true),
        (300, b"*".to_vec(), false),
        (0, b"\x02\x01e".to_vec(), true),
        (300, b"2 1 3 Rejected 4 graves bad".to_vec(), false),
        (7, b"1 5 900".to_vec(), false),
        (301, b"2 what is to be done".to_vec(), false),
    ];
    assert_eq!(again.model.bound, bound);
    assert_eq!(
        (again.recovered.records, again.recovered.messages_replayed),
        (2, 6)
    );
    let (time_ms, read, body) = again.read(moved).expect("it is whole");
    assert_eq!(
        (time_ms, body),
        (bench.now_us / 1000 - 1, b"moved".to_vec())
    );
    assert_eq!(Sections(&read).get(SectionKind::Key), Some(&b"k"[..]));
    assert_eq!(Sections(&read).priority(), Some(3));
}

#[test]
fn thousands_of_messages_of_all_sizes_come_back_cold() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let mut random = Random(7);
    let mut wanted: Vec<(Position, u64, Vec<u8>)> = Vec::new();
    for turn in 0..200 {
        for _ in 0..random.below(12) {
            let bytes = match random.below(20) {
                0 => random.below(9000),
                1 => 0,
                _ => random.below(200),
            };
            let body: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
            let queue = 1 + random.below(20);
            let position = bench.publish(queue, &body);
            wanted.push((position, bench.now_us / 1000, body));
        }
        bench.turn(turn % 3 == 0);
    }
    for (position, time_ms, body) in &wanted {
        let (time, _, found) = bench.read(*position).expect("it is whole");
        assert_eq!((time, &found), (*time_ms, body));
    }
    bench.log.trim(0);
    assert!(bench.log.memory() < 10_000, "{}", bench.log.memory());
    let mut cold = 0;
    for (position, time_ms, body) in &wanted {
        cold += u32::from(!bench.log.is_resident(*position));
        let (time, _, found) = bench.read(*position).expect("it is whole");
        assert_eq!((time, &found), (*time_ms, body));
        if cold % 7 == 0 {
            bench.log.trim(0);
        }
    }
    assert!(cold > 10);
    bench.turn(true);
    let mut again = Bench::open(&disk).expect("whole");
    assert_eq!(again.kept().0, bench.kept().0);
    for (position, _, body) in wanted.iter().rev() {
        assert_eq!(&again.read(*position).expect("it is whole").2, body);
    }
}

#[test]
fn owned_bodies_are_kept_as_they_are() {
    let disk = MemDisk::default();
    let mut config = config();
    config.segment_bytes = 1 << 20;
    let mut bench = Bench::open_with(&disk, &config, 1_000_000_000).expect("an empty directory");
    let body = Bytes::from((0..100_000u32).map(|n| n as u8).collect::<Vec<u8>>());
    let before = bench.publish(1, b"before");
    let large = bench.publish_with(1, b"", Body::Owned(body.clone()));
    let after = bench.publish(1, b"after");
    let small = bench.publish_with(1, b"", Body::Owned(Bytes::from_static(b"small")));
    bench.turn(true);
    assert!(bench.log.memory() >= 100_000);
    for (position, want) in [
        (before, &b"before"[..]),
        (large, &body),
        (after, b"after"),
        (small, b"small"),
    ] {
        assert_eq!(bench.read(position).expect("it is whole").2, want);
    }
    bench.log.trim(0);
    assert!(bench.log.memory() < 100_000);
    assert_eq!(bench.read(large).expect("it is whole").2, body);
    bench.settle(1, 2);
    bench.turn(true);
    let mut again = Bench::open_with(&disk, &config, 2_000_000_000).expect("whole");
    assert_eq!(again.read(after).expect("it is whole").2, b"after");
    assert_eq!(again.model.live.len(), 3);
}

#[test]
fn memory_comes_back_when_messages_are_freed() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    for _ in 0..100 {
        bench.publish(1, &[7; 500]);
    }
    bench.turn(true);
    let full = bench.log.memory();
    assert!(full > 50_000);
    for id in 1..=100 {
        bench.settle(1, id);
    }
    bench.turn(true);
    // Up to 16 chunks stay in the pool.
    assert!(
        bench.log.memory() < full - 10_000,
        "{} of {full}",
        bench.log.memory()
    );
    bench.log.trim(0);
    assert!(bench.log.memory() < 5_000, "{}", bench.log.memory());
    assert_eq!(bench.log.stats().messages_live, 0);
}

#[test]
fn settles_merge_into_runs() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    for _ in 0..50 {
        bench.publish(1, b"x");
        bench.publish(2, b"x");
    }
    bench.turn(true);
    let before = bench.log.stats().bytes;
    for id in 1..=50 {
        bench.settle(1, id);
        bench.settle(2, 51 - id);
    }
    bench.turn(true);
    assert!(
        bench.log.stats().bytes - before <= 128,
        "two runs of fifty take a few bytes"
    );
    let again = Bench::open(&disk).expect("whole");
    assert!(again.model.live.is_empty());
    assert_eq!(again.model.entries, 100 + 2);
}

#[test]
fn settles_of_many_queues_and_reasons_are_all_kept() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let mut random = Random(3);
    for queue in 1..=30 {
        for _ in 0..40 {
            bench.publish(queue, b"body");
        }
    }
    bench.turn(false);
    let mut left: Vec<(u64, u64)> = bench.model.live.keys().copied().collect();
    while !left.is_empty() {
        for _ in 0..random.below(400) {
            if left.is_empty() {
                break;
            }
            let (queue, id) = left.swap_remove(random.below(left.len() as u64) as usize);
            bench.settle(queue, id);
        }
        bench.publish(99, b"between");
        bench.turn(false);
    }
    bench.turn(true);
    let again = Bench::open(&disk).expect("whole");
    assert_eq!(again.kept(), bench.kept());
}

#[test]
fn the_index_tells_which_record_an_entry_is_in() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    assert!(bench.log.is_empty_turn());
    assert_eq!(bench.log.index(), LogIndex(1));
    bench.publish(1, b"x");
    assert!(!bench.log.is_empty_turn());
    bench.log.commit(bench.now_us, false);
    assert!(bench.log.is_empty_turn());
    bench.log.commit(bench.now_us, false);
    assert_eq!(
        bench.log.index(),
        LogIndex(2),
        "an empty turn makes no record"
    );
    bench.poll();
    assert_eq!(bench.log.begin(1000), Room::Plenty);
    bench.log.commit(bench.now_us, false);
    assert_eq!(
        bench.log.index(),
        LogIndex(2),
        "nor does one that only asked for room"
    );
}

#[test]
fn a_batch_stays_in_one_record_where_a_segment_ends() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.turn(false);
    bench.publish(1, &[1; 9000]);
    let first = bench.log.index();
    assert_eq!(bench.log.begin(20 * 526), Room::Plenty);
    let second = bench.log.index();
    assert_ne!(first, second, "it does not fit behind the first");
    for _ in 0..20 {
        bench.publish(1, &[2; 500]);
        assert_eq!(bench.log.index(), second);
    }
    bench.turn(true);
    assert_eq!(
        bench.log.begin(17 << 10),
        Room::DiskFull,
        "no segment holds that"
    );
    let again = Bench::open(&disk).expect("whole");
    assert_eq!(again.model.live.len(), 21);
}

#[test]
fn os_records_are_synced_within_the_flush_interval_and_marked_when_idle() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.turn(false);
    bench.publish(1, b"x");
    bench.turn(false);
    assert_eq!(
        (bench.log.written(), bench.log.durable()),
        (LogIndex(1), LogIndex(0))
    );
    bench.wait(49_000);
    assert_eq!(bench.log.durable(), LogIndex(0));
    bench.wait(2_000);
    assert_eq!(bench.log.durable(), LogIndex(1));
    bench.wait(60_000);
    assert_eq!(bench.log.durable(), LogIndex(2), "the mark");
    bench.wait(5_000_000);
    assert_eq!(bench.log.durable(), LogIndex(2), "one mark is enough");
    assert_eq!(bench.log.stats().syncs, 2);
}

#[test]
fn a_sync_covers_what_is_written_before_it_begins() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.turn(false);
    *bench.held.lock().expect("unpoisoned") = vec![Lane::Sync];
    for _ in 0..5 {
        bench.publish(1, b"x");
        bench.turn(true);
    }
    assert_eq!(
        (bench.log.written(), bench.log.durable()),
        (LogIndex(5), LogIndex(0))
    );
    bench.held.lock().expect("unpoisoned").clear();
    bench.poll();
    assert_eq!(bench.log.durable(), LogIndex(5));
    assert_eq!(bench.log.stats().syncs, 1);
}

#[test]
fn an_orderly_end_is_synced_and_marked() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.publish(1, b"x");
    bench.log.close(bench.now_us);
    bench.poll();
    assert!(bench.log.is_closed());
    let again = Bench::open(&disk.power_loss()).expect("whole");
    assert_eq!(again.model.live.len(), 1);
    assert_eq!(again.recovered.records, 2);
    assert_eq!(again.recovered.torn_bytes, 0);
}

#[test]
fn records_wait_in_memory_for_the_first_segment() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    *bench.held.lock().expect("unpoisoned") = vec![Lane::Background];
    for _ in 0..100 {
        bench.publish(1, &[5; 1000]);
        bench.turn(true);
    }
    assert_eq!(
        (bench.log.written(), bench.log.durable()),
        (LogIndex(0), LogIndex(0))
    );
    assert_eq!(
        (bench.log.room(), bench.log.begin(100)),
        (Room::NoSegment, Room::NoSegment),
        "publishes wait for a segment that has its space"
    );
    bench.held.lock().expect("unpoisoned").clear();
    bench.poll();
    assert_eq!(bench.log.durable(), bench.log.written());
    assert!(bench.log.durable() >= LogIndex(100));
    assert_eq!(bench.log.room(), Room::Plenty);
    assert!(bench.events.iter().any(|event| event == "Room"));
    let again = Bench::open(&disk.power_loss()).expect("whole");
    assert_eq!(again.kept(), bench.kept());
}

#[test]
fn settle_reasons_survive() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    for _ in 0..3 {
        bench.publish(1, b"x");
    }
    bench.append(&Entry::Settle {
        queue: QueueUid(1),
        group: 0,
        reason: SettleReason::Purged,
        runs: &[Run { first: 1, count: 2 }],
    });
    bench.turn(true);
    assert_eq!(Bench::open(&disk).expect("whole").model.live.len(), 1);
}
