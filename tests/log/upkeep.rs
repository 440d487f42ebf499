//! Checkpoints, compaction, index blocks and the reuse of segments.

use std::sync::Arc;

use crate::bench::{Bench, MemDisk, config};
use ringmq::broker::command::Body;
use ringmq::broker::id::QueueUid;
use ringmq::config::LogConfig;
use ringmq::log::job::Lane;
use ringmq::log::{
    Entry, Event, Message, OpenError, Position, SectionKind, Sections, SectionsBuilder,
    SegmentRange,
};

fn checkpoints(disk: &MemDisk) -> usize {
    disk.paths()
        .iter()
        .filter(|path| path.ends_with(".ckpt"))
        .count()
}

/// Fills segments with messages of queue 9 that are settled at once, and makes two checkpoints.
fn pass_by(bench: &mut Bench) {
    for _ in 0..2 {
        for _ in 0..40 {
            let id = bench.next_id(9);
            bench.publish(9, &[1; 900]);
            bench.turn(true);
            bench.settle(9, id);
        }
        bench.turn(true);
        bench.checkpoint();
    }
}

/// Pins the segments behind with one message each, so that there is enough to be worth a
/// compaction, and has checkpoints cover them all.
fn pin_segments(bench: &mut Bench) {
    for _ in 0..30 {
        let id = bench.next_id(9);
        bench.publish(9, b"small");
        bench.settle(9, id);
    }
    for _ in 0..6 {
        bench.publish(8, b"pin");
        for _ in 0..16 {
            let id = bench.next_id(9);
            bench.publish(9, &[1; 900]);
            bench.turn(true);
            bench.settle(9, id);
        }
    }
    pass_by(bench);
}

/// Compacts until nothing is due; tells the ranges.
fn compact_all(bench: &mut Bench) -> Vec<SegmentRange> {
    let mut done = Vec::new();
    while let Some(range) = bench.log.compaction_due() {
        compact(bench, range);
        done.push(range);
        assert!(done.len() < 20, "compaction comes to an end");
    }
    done
}

fn compact(bench: &mut Bench, range: SegmentRange) {
    let live = bench
        .model
        .live
        .iter()
        .filter(|(_, at)| range.contains(**at));
    let live = live
        .map(|((queue, id), at)| (QueueUid(*queue), *id, *at))
        .collect();
    bench.log.compact(range, live);
    bench.poll();
}

#[test]
fn a_checkpoint_waits_until_what_it_covers_is_durable() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.turn(false);
    *bench.held.lock().expect("unpoisoned") = vec![Lane::Sync];
    bench.publish(1, b"x");
    bench.turn(true);
    bench.checkpoint();
    assert_eq!(checkpoints(&disk), 0);
    bench.held.lock().expect("unpoisoned").clear();
    bench.poll();
    bench.poll();
    assert_eq!(checkpoints(&disk), 1);
    assert!(bench.events.iter().any(|event| event == "CheckpointDone"));
    drop(bench);
    let again = Bench::open(&disk).expect("whole");
    assert_eq!((again.recovered.records, again.model.live.len()), (0, 1));
}

#[test]
fn two_checkpoints_are_kept_and_one_of_the_same_place_replaces_the_other() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    for _ in 0..5 {
        bench.publish(1, b"x");
        bench.turn(true);
        bench.checkpoint();
        bench.checkpoint();
    }
    assert_eq!(checkpoints(&disk), 2);
    assert_eq!(bench.log.stats().checkpoints, 10);
}

#[test]
fn segments_are_used_again_and_their_leftovers_never_parse() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    for _ in 0..12 {
        pass_by(&mut bench);
    }
    let stats = bench.log.stats();
    assert!(stats.segments < 12, "{stats:?}");
    let files = disk
        .paths()
        .iter()
        .filter(|path| path.ends_with(".seg"))
        .count();
    assert!(files < 15, "{files} files");
    let renamed = disk
        .state()
        .log
        .iter()
        .filter(|line| line.starts_with("rename") && line.contains(".seg shard"))
        .count();
    assert!(renamed > 10, "{renamed} were used again");
    bench.publish(1, b"last");
    bench.turn(true);
    let want = bench.kept();
    drop(bench);
    let again = Bench::open(&disk.power_loss()).expect("whole");
    assert_eq!(again.kept(), want);
    assert_eq!(again.recovered.torn_bytes, 0, "leftovers are no torn tail");
}

#[test]
fn what_a_checkpoint_frees_is_enough_until_the_next_one() {
    let disk = MemDisk::default();
    let config = LogConfig {
        checkpoint_bytes: 5 * config().segment_bytes,
        ..config()
    };
    let mut bench = Bench::open_with(&disk, &config, 1).expect("an empty directory");
    let made = |disk: &MemDisk| {
        let state = disk.state();
        let lines = state.log.iter();
        lines
            .filter(|line| line.starts_with("create") && line.contains(".seg.tmp"))
            .count()
    };
    let mut at_first = 0;
    for cycle in 0..16 {
        if cycle == 8 {
            at_first = made(&disk);
        }
        while !bench.log.checkpoint_due() {
            let id = bench.next_id(9);
            bench.publish(9, &[1; 900]);
            bench.turn(true);
            bench.settle(9, id);
        }
        bench.turn(true);
        bench.checkpoint();
    }
    assert!(at_first >= 10, "two checkpoints' worth: {at_first}");
    assert_eq!(made(&disk), at_first, "files are made anew again and again");
    assert!(
        bench.log.stats().segments_spare <= 7,
        "{:?}",
        bench.log.stats()
    );
}

#[test]
fn compaction_keeps_times_sections_and_every_queue() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let mut sections = Vec::new();
    SectionsBuilder::new(&mut sections).key(b"k").due(77);
    // A section of a later version that need not be understood.
    sections.extend_from_slice(&[0x55, 2, b'h', b'i']);
    let time_ms = bench.now_us / 1000;
    let one = bench.publish_with(1, &sections, Body::Borrowed(b"one"));
    let message = Message {
        time_ms,
        sections: &[],
        body: Body::Borrowed(b"three queues"),
    };
    let many = bench.append(&Entry::Publish {
        targets: &[(QueueUid(1), 2), (QueueUid(2), 1), (QueueUid(3), 1)],
        message,
    });
    let large = bench.publish(4, &[6; 9000]);
    assert_eq!(bench.log.compaction_due(), None);
    pin_segments(&mut bench);
    let done = compact_all(&mut bench);
    let all = [one, many, large];
    let first = |range: &&SegmentRange| all.iter().all(|place| range.contains(*place));
    assert_eq!(done.iter().filter(first).count(), 1);
    assert!(bench.relocated > 5 && bench.log.stats().segments_kept == 1);
    let moved: Vec<Position> = [(1, 1), (1, 2), (2, 1), (3, 1), (4, 1)]
        .map(|key| bench.model.live[&key])
        .into();
    assert!(moved.iter().all(|place| place.is_kept()));
    assert!(moved[1] == moved[2] && moved[2] == moved[3], "stored once");
    let check = |bench: &mut Bench| {
        let (time, found, body) = bench.read(moved[0]).expect("whole");
        assert_eq!(
            (time, found.as_slice(), body.as_slice()),
            (time_ms, &sections[..], &b"one"[..])
        );
        assert_eq!(Sections(&found).number(SectionKind::Due), Some(77));
        assert_eq!(bench.read(moved[2]).expect("whole").2, b"three queues");
        assert_eq!(bench.read(moved[4]).expect("whole").2, [6; 9000]);
    };
    check(&mut bench);
    // The segment that was emptied goes when no kept checkpoint refers to the old places.
    let old = format!("shard-0/{:016x}.seg", one.segment(16 << 10));
    bench.turn(true);
    assert!(disk.paths().contains(&old));
    for _ in 0..4 {
        pass_by(&mut bench);
    }
    assert!(!disk.paths().contains(&old));
    check(&mut bench);
    drop(bench);
    let mut again = Bench::open(&disk.power_loss()).expect("whole");
    check(&mut again);
    // A kept segment is given back when nothing in it is live.
    let live: Vec<(u64, u64)> = again.model.live.keys().copied().collect();
    for (queue, id) in live {
        again.settle(queue, id);
    }
    again.turn(true);
    assert_eq!(again.log.stats().segments_kept, 0);
}

#[test]
fn a_message_settled_while_it_is_copied_is_gone() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.publish(1, b"stays");
    bench.publish(1, b"goes");
    let first = bench.model.live[&(1, 1)];
    pin_segments(&mut bench);
    while bench
        .log
        .compaction_due()
        .is_some_and(|range| !range.contains(first))
    {
        let range = bench.log.compaction_due().expect("it was just there");
        compact(&mut bench, range);
    }
    let range = bench.log.compaction_due().expect("two live messages");
    bench.relocated = 0;
    *bench.held.lock().expect("unpoisoned") = vec![Lane::Background];
    compact(&mut bench, range);
    bench.settle(1, 2);
    bench.turn(true);
    bench.held.lock().expect("unpoisoned").clear();
    bench.poll();
    assert!(bench.relocated >= 2);
    assert_eq!(
        bench.log.stats().messages_live,
        bench.model.live.len() as u64
    );
    let place = bench.model.live[&(1, 1)];
    assert_eq!(bench.read(place).expect("whole").2, b"stays");
}

#[test]
fn compaction_leaves_a_damaged_message_where_it_is() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let good = bench.publish(1, b"good good good");
    let bad = bench.publish(1, b"bad bad bad");
    pin_segments(&mut bench);
    let path = format!("shard-0/{:016x}.seg", bad.segment(16 << 10));
    let id = disk.state().names[&path];
    disk.state().files.get_mut(&id).expect("it is there").bytes
        [bad.offset(16 << 10) as usize + 14] ^= 1;
    let done = compact_all(&mut bench);
    assert_eq!(
        done.iter().filter(|range| range.contains(good)).count(),
        1,
        "tried once"
    );
    assert!(bench.model.live[&(1, 1)].is_kept());
    assert_eq!(bench.model.live[&(1, 2)], bad);
    assert_eq!(
        (bench.log.stats().damaged, bench.log.compaction_due()),
        (1, None)
    );
}

#[test]
fn blocks_are_read_back_from_memory_and_from_disk() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let block: Arc<[u32]> = (0..1024).collect();
    *bench.held.lock().expect("unpoisoned") = vec![Lane::Background];
    let slot = bench.log.spill(QueueUid(1), 0, block.clone());
    let load = |bench: &mut Bench, slot| {
        bench.log.load(slot);
        bench.log.load(slot);
        let mut loaded = None;
        while let Some(event) = bench.log.poll(bench.now_us) {
            if let Event::BlockLoaded {
                slot: found,
                result,
            } = event
            {
                assert_eq!(found, slot);
                loaded = Some(result);
            }
        }
        loaded.expect("it was loaded")
    };
    bench.turn(false);
    assert_eq!(load(&mut bench, slot).expect("in memory"), block);
    bench.held.lock().expect("unpoisoned").clear();
    bench.turn(false);
    assert_eq!(load(&mut bench, slot).expect("whole"), block);
    let mut bytes = disk.get("shard-0/index.blk");
    bytes[100] ^= 1;
    disk.put("shard-0/index.blk", bytes);
    let error = load(&mut bench, slot).expect_err("damaged");
    assert!(
        error.contains("index.blk") && error.contains("offset 0"),
        "{error}"
    );
}

#[test]
fn a_freed_slot_keeps_its_block_for_the_checkpoints_that_refer_to_it() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.publish(1, b"x");
    let slot = bench.log.spill(QueueUid(1), 0, (0..10).collect());
    bench.model.blocks.insert(1, slot);
    bench.turn(true);
    bench.checkpoint();
    bench.model.blocks.clear();
    bench.log.free_slot(slot);
    for _ in 0..2 {
        let other = bench.log.spill(QueueUid(2), 0, (100..110).collect());
        assert_ne!(other, slot, "the first checkpoint is kept");
        bench.publish(1, b"x");
        bench.turn(true);
        bench.checkpoint();
    }
    assert_eq!(bench.log.spill(QueueUid(2), 0, (100..110).collect()), slot);
}

#[test]
fn a_missing_file_of_index_blocks_is_refused() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.publish(1, b"x");
    let slot = bench.log.spill(QueueUid(1), 0, (0..10).collect());
    bench.model.blocks.insert(1, slot);
    bench.turn(true);
    bench.checkpoint();
    drop(bench);
    disk.delete("shard-0/index.blk");
    let error = Bench::open(&disk).expect_err("blocks are missing");
    assert!(
        matches!(&error, OpenError::Corrupt { file, .. } if file == "shard-0/index.blk"),
        "{error}"
    );
}

#[test]
fn a_full_disk_puts_checkpoints_and_blocks_off() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.publish(1, b"x");
    bench.turn(true);
    let used = disk
        .contents()
        .values()
        .map(|bytes| bytes.len() as u64)
        .sum::<u64>();
    disk.state().space = Some(used);
    let slot = bench.log.spill(QueueUid(1), 0, (0..10).collect());
    bench.model.blocks.insert(1, slot);
    bench.turn(true);
    bench.checkpoint();
    bench.wait(1_000_000);
    assert_eq!((checkpoints(&disk), bench.log.failure()), (0, None));
    disk.state().space = None;
    bench.wait(1_000_000);
    assert_eq!(checkpoints(&disk), 1);
    drop(bench);
    assert_eq!(
        Bench::open(&disk.power_loss())
            .expect("whole")
            .model
            .blocks
            .len(),
        1
    );
}

#[test]
fn a_checkpoint_is_due_by_bytes() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    assert!(!bench.log.checkpoint_due());
    while bench.log.stats().bytes < config().checkpoint_bytes {
        assert!(!bench.log.checkpoint_due());
        bench.publish(1, &[0; 500]);
        bench.turn(true);
    }
    assert!(bench.log.checkpoint_due());
    bench.checkpoint();
    assert!(!bench.log.checkpoint_due());
}

#[test]
fn a_read_whose_segment_is_given_up_meanwhile_ends_too() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let position = bench.publish(1, b"x");
    pass_by(&mut bench);
    drop(bench);
    let mut bench = Bench::open(&disk).expect("whole");
    let before = disk.paths();
    let first = before.iter().find(|path| path.ends_with(".seg"));
    let first = first.expect("there is a segment").clone();
    *bench.held.lock().expect("unpoisoned") = vec![Lane::Read];
    bench.log.fetch(position);
    bench.settle(1, 1);
    bench.turn(true);
    pass_by(&mut bench);
    assert!(!disk.paths().contains(&first));
    let fetched = format!("{:?}", Event::Fetched(position));
    assert!(!bench.events.contains(&fetched));
    // Who waits for it looks again, wherever the message is now.
    bench.held.lock().expect("unpoisoned").clear();
    bench.poll();
    assert!(bench.events.contains(&fetched));
}
