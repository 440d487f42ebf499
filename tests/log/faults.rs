//! Crashes and failing disks: whatever was confirmed is there afterwards, and nothing is there
//! that never was.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use crate::bench::{Bench, MemDisk, Random};
use ringmq::broker::command::Body;
use ringmq::broker::id::QueueUid;
use ringmq::log::{
    Entry, LogError, LogIndex, Message, OpenError, Position, Room, Run, TransferReason,
};

type Keys = BTreeSet<(u64, u64)>;

/// The body that belongs to a message.
fn body(queue: u64, id: u64) -> Vec<u8> {
    let mut random = Random(queue << 32 | id);
    let bytes = if random.below(15) == 0 {
        random.below(3000)
    } else {
        random.below(300)
    };
    (0..bytes).map(|_| random.next() as u8).collect()
}

/// What was live after each record, and how far the caller could confirm.
#[derive(Default)]
struct History {
    states: BTreeMap<u64, Keys>,
    written: u64,
    durable: u64,
}

impl History {
    fn note(&mut self, bench: &mut Bench) {
        for (index, live) in bench.sealed.drain(..) {
            self.states.insert(index, live.into_iter().collect());
        }
        let index = bench.log.index().0 - 1;
        self.states
            .insert(index, bench.model.live.keys().copied().collect());
        self.written = bench.log.written().0;
        self.durable = bench.log.durable().0;
    }
}

/// Some turns of everything that a broker does. Ends early when the log fails.
fn work(bench: &mut Bench, turns: u64, seed: u64, history: &mut History) {
    let mut random = Random(seed);
    history.note(bench);
    for _ in 0..turns {
        for _ in 0..random.below(6) {
            let queue = 1 + random.below(4);
            let id = bench.next_id(queue);
            bench.publish(queue, &body(queue, id));
        }
        let live: Vec<(u64, u64)> = bench.model.live.keys().copied().collect();
        if random.below(5) == 0 && !live.is_empty() {
            let (source, source_id) = live[random.below(live.len() as u64) as usize];
            let target_id = bench.next_id(9);
            bench.append(&Entry::Transfer {
                source: QueueUid(source),
                source_id,
                group: 0,
                reason: TransferReason::Tries,
                target: QueueUid(9),
                target_id,
                message: Message {
                    time_ms: bench.now_us / 1000,
                    sections: &[],
                    body: Body::Borrowed(&body(9, target_id)),
                },
            });
        }
        for _ in 0..random.below(10) {
            let live: Vec<(u64, u64)> = bench.model.live.keys().copied().collect();
            if live.len() > 20 {
                let (queue, id) = live[random.below(live.len() as u64 / 2) as usize];
                bench.settle(queue, id);
            }
        }
        if let Some(slot) = bench.model.blocks.get(&1)
            && random.below(20) == 0
        {
            bench.log.free_slot(*slot);
            bench.model.blocks.remove(&1);
        }
        bench
            .model
            .blocks
            .entry(1)
            .or_insert_with(|| bench.log.spill(QueueUid(1), 0, (0..10).collect()));
        bench.append(&Entry::Release {
            queue: QueueUid(1),
            group: 0,
            run: Run {
                first: 999,
                count: 1,
            },
            tries: 1,
            not_before_us: 0,
        });
        bench.turn(random.below(3) == 0);
        history.note(bench);
        if bench.log.checkpoint_due() || random.below(40) == 0 {
            bench.checkpoint();
        }
        if let Some(range) = bench.log.compaction_due() {
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
        let live: Vec<_> = bench
            .model
            .live
            .iter()
            .map(|(key, at)| (*key, *at))
            .collect();
        for _ in 0..random.below(4).min(live.len() as u64) {
            let ((queue, id), place) = live[random.below(live.len() as u64) as usize];
            if let Some((_, _, found)) = bench.read(place) {
                assert_eq!(found, body(queue, id), "message {queue} {id}");
            }
            if random.below(3) == 0 {
                bench.log.trim(random.below(20_000) as usize);
            }
        }
        if random.below(10) == 0 {
            bench.log.trim(0);
            bench.wait(random.below(120_000));
        }
        history.note(bench);
        if bench.log.failure().is_some() {
            return;
        }
    }
}

/// Opens what a crash left and checks it against the history. Returns the number of records.
fn verify(disk: &MemDisk, history: &History, confirmed: u64, what: &str) -> Bench {
    let mut bench = Bench::open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let index = bench.log.index().0 - 1;
    assert!(
        index >= confirmed,
        "{what}: record {confirmed} was confirmed and {index} is the last"
    );
    let keys: Keys = bench.model.live.keys().copied().collect();
    // Records without entries (marks) change nothing: the state is that of the last noted one.
    let (_, state) = history
        .states
        .range(..=index)
        .next_back()
        .expect("the beginning is noted");
    assert_eq!(&keys, state, "{what}: record {index}");
    let places: Vec<((u64, u64), Position)> =
        bench.model.live.iter().map(|(k, v)| (*k, *v)).collect();
    for ((queue, id), place) in places {
        let read = bench
            .read(place)
            .unwrap_or_else(|| panic!("{what}: message {queue} {id} is damaged"));
        assert_eq!(read.2, body(queue, id), "{what}: message {queue} {id}");
    }
    bench
}

/// A run that dies at one operation.
fn killed_at(operation: u64, turns: u64, seed: u64) -> Option<(MemDisk, History)> {
    let disk = MemDisk::default();
    disk.state().die_at = Some(operation);
    let mut history = History::default();
    history.states.insert(0, Keys::new());
    if let Ok(mut bench) = Bench::open(&disk) {
        work(&mut bench, turns, seed, &mut history);
    }
    let is_over = disk.state().operations <= operation;
    (!is_over).then_some((disk, history))
}

#[test]
fn the_workload_does_all_that_it_should() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let mut history = History::default();
    work(&mut bench, 600, 1, &mut history);
    assert_eq!(bench.log.failure(), None);
    let stats = bench.log.stats();
    assert!(
        stats.checkpoints > 3 && stats.compactions > 0 && stats.segments_kept > 0,
        "{stats:?}"
    );
    assert!(
        bench.relocated > 0 && stats.reads > 10 && stats.damaged == 0,
        "{stats:?}"
    );
    // Segments are given back: what is on disk is a few times what is live and covered.
    assert!(stats.segments < 20, "{stats:?}");
    let names = disk.paths();
    assert_eq!(
        names.iter().filter(|name| name.ends_with(".ckpt")).count(),
        2,
        "{names:?}"
    );
    drop(bench);
    let again = verify(&disk, &history, history.written, "after a kill");
    assert!(again.recovered.checkpoint.is_some());
}

#[test]
fn nothing_confirmed_is_lost_when_killed_at_any_operation() {
    let mut operation = 0;
    let mut tried = 0;
    while let Some((disk, history)) = killed_at(operation, 120, 5) {
        let what = format!("killed at operation {operation}");
        verify(&disk.copy(), &history, history.written, &what);
        verify(
            &disk.power_loss(),
            &history,
            history.durable,
            &format!("{what}, power lost"),
        );
        for seed in 0..3 {
            let left = disk.power_loss_mixed(operation * 3 + seed);
            verify(
                &left,
                &history,
                history.durable,
                &format!("{what}, sectors {seed}"),
            );
        }
        tried += 1;
        // The first operations one by one, which are the creation, then in odd steps.
        operation += if operation < 60 { 1 } else { 3 };
    }
    assert!(tried > 200, "{tried}");
}

#[test]
fn recovery_can_be_killed_at_any_operation_again_and_again() {
    for seed in 0..6 {
        let Some((disk, history)) = killed_at(300 + 171 * seed, 400, seed) else {
            panic!("the run is longer than that");
        };
        let left = if seed % 2 == 0 {
            disk.copy()
        } else {
            disk.power_loss_mixed(seed)
        };
        let confirmed = if seed % 2 == 0 {
            history.written
        } else {
            history.durable
        };
        let mut operation = 0;
        loop {
            let mut current = left.copy();
            // Killed at an operation of recovery, then a little later in the next one, and so on.
            let mut died = false;
            for again in 0..3 {
                current.state().die_at = Some(operation + 13 * again);
                let opened = Bench::open(&current);
                died |= current.state().operations > operation + 13 * again;
                drop(opened);
                current = if again == 1 && confirmed == history.durable {
                    current.power_loss_mixed(operation)
                } else {
                    current.copy()
                };
            }
            verify(
                &current,
                &history,
                confirmed,
                &format!("seed {seed}, recovery killed at {operation}"),
            );
            if !died {
                break;
            }
            operation += 1;
        }
        assert!(operation > 10, "recovery does more than that");
    }
}

#[test]
fn work_goes_on_after_each_of_many_crashes() {
    for seed in 0..10 {
        let mut disk = MemDisk::default();
        let mut random = Random(seed);
        let mut history = History::default();
        history.states.insert(0, Keys::new());
        for life in 0..12 {
            let die_at = 100 + random.below(1500);
            disk.state().die_at = Some(die_at);
            let what = format!("seed {seed}, life {life}");
            if let Ok(mut bench) = Bench::open(&disk) {
                // Only the states of this life can be found from now on.
                history.states = history.states.split_off(&(bench.log.index().0 - 1));
                history.written = 0;
                history.durable = 0;
                work(&mut bench, 200, random.next(), &mut history);
            }
            let (left, confirmed) = match random.below(3) {
                0 => (disk.copy(), history.written),
                1 => (disk.power_loss(), history.durable),
                _ => (disk.power_loss_mixed(random.next()), history.durable),
            };
            let bench = verify(&left.copy(), &history, confirmed, &what);
            let found = bench.log.index().0 - 1;
            let state = bench.model.live.keys().copied().collect();
            // The disk as the crash left it is opened again by the next life.
            history.states = BTreeMap::from([(found, state)]);
            history.durable = found.min(confirmed);
            history.written = history.durable;
            disk = left;
        }
    }
}

#[test]
fn short_and_interrupted_calls_are_looped() {
    let disk = MemDisk::default();
    disk.state().short = Some(1000);
    let mut bench = Bench::open(&disk).expect("an empty directory");
    let mut history = History::default();
    work(&mut bench, 150, 2, &mut history);
    assert_eq!(bench.log.failure(), None);
    drop(bench);
    verify(&disk, &history, history.written, "short calls");
}

#[test]
fn the_first_error_of_a_sync_is_final() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.publish(1, b"good");
    bench.turn(true);
    disk.state().fail_syncs = true;
    bench.publish(1, b"lost");
    bench.turn(true);
    assert!(matches!(bench.log.failure(), Some(LogError::Sync { .. })));
    assert_eq!(bench.log.durable(), LogIndex(1));
    assert_eq!(
        bench
            .events
            .iter()
            .filter(|event| *event == "Failed")
            .count(),
        1
    );
    disk.state().fail_syncs = false;
    let before = disk.contents();
    bench.publish(1, b"after");
    bench.turn(true);
    bench.wait(10_000_000);
    assert_eq!(
        (bench.log.durable(), bench.log.deadline_us()),
        (LogIndex(1), None)
    );
    assert_eq!(
        disk.contents(),
        before,
        "nothing is written after a failed sync"
    );
    // What the cache still shows is put on stable storage before it is served.
    let again = Bench::open(&disk).expect("whole");
    let live = again.model.live.len();
    assert_eq!(live, 2);
    drop(again);
    assert_eq!(
        Bench::open(&disk.power_loss())
            .expect("whole")
            .model
            .live
            .len(),
        live
    );
}

#[test]
fn an_error_at_any_operation_loses_nothing_confirmed() {
    let mut operation = 0;
    loop {
        let disk = MemDisk::default();
        disk.state().fail_at = Some((operation, ErrorKind::Other));
        let mut history = History::default();
        history.states.insert(0, Keys::new());
        match Bench::open(&disk) {
            Ok(mut bench) => work(&mut bench, 120, 5, &mut history),
            Err(error) => assert!(matches!(error, OpenError::Io { .. }), "{error}"),
        }
        if disk.state().operations <= operation {
            break;
        }
        disk.state().fail_at = None;
        let what = format!("error at operation {operation}");
        verify(&disk.copy(), &history, history.written, &what);
        verify(&disk.power_loss(), &history, history.durable, &what);
        operation += 3;
    }
    assert!(operation > 300, "{operation}");
}

#[test]
fn missing_space_at_any_operation_loses_nothing_and_heals() {
    let mut operation = 0;
    loop {
        let disk = MemDisk::default();
        disk.state().fail_at = Some((operation, ErrorKind::StorageFull));
        let mut history = History::default();
        history.states.insert(0, Keys::new());
        let mut bench = match Bench::open(&disk) {
            Ok(bench) => bench,
            Err(_) => {
                operation += 1;
                continue;
            }
        };
        work(&mut bench, 60, 5, &mut history);
        if disk.state().operations <= operation {
            break;
        }
        // A sync or a rename cannot want space; everything else heals.
        let failed = disk.state().log[operation as usize].clone();
        let is_final = failed.starts_with("sync");
        assert_eq!(
            bench.log.failure().is_some(),
            is_final,
            "{failed}: {:?}",
            bench.log.failure()
        );
        if !is_final {
            bench.wait(1_000_000);
            bench.publish(1, b"");
            bench.turn(true);
            bench.wait(1_000_000);
            assert_eq!(bench.log.durable(), bench.log.written(), "after {failed}");
            assert!(
                bench.log.durable().0 + 1 == bench.log.index().0,
                "after {failed}"
            );
        }
        drop(bench);
        operation += 3;
    }
}

#[test]
fn a_full_disk_refuses_publishes_keeps_settles_and_heals() {
    let disk = MemDisk::default();
    let mut bench = Bench::open(&disk).expect("an empty directory");
    bench.turn(false);
    let used = disk
        .contents()
        .values()
        .map(|bytes| bytes.len() as u64)
        .sum::<u64>();
    disk.state().space = Some(used + 1000);
    let mut published = 0;
    while bench.log.room() == Room::Plenty {
        bench.publish(1, &[3; 200]);
        published += 1;
        bench.turn(true);
        assert!(published < 1000, "the disk is full");
    }
    assert_eq!(bench.log.room(), Room::DiskFull);
    assert!(published > 40, "both segments were used: {published}");
    assert_eq!(
        bench.log.begin(5000),
        Room::DiskFull,
        "nor is there room for a large batch"
    );
    for id in 1..=published {
        bench.settle(1, id);
        if id % 30 == 0 {
            bench.turn(true);
        }
    }
    bench.turn(true);
    assert_eq!(
        bench.log.durable().0 + 1,
        bench.log.index().0,
        "settles are confirmed on a full disk"
    );
    bench.wait(1_000_000);
    assert_eq!(bench.log.room(), Room::DiskFull);
    disk.state().space = None;
    bench.wait(300_000);
    assert_eq!(bench.log.room(), Room::Plenty);
    assert!(bench.events.iter().any(|event| event == "Room"));
    let next = bench.next_id(1);
    bench.publish(1, &body(1, next));
    bench.turn(true);
    drop(bench);
    let again = Bench::open(&disk.power_loss()).expect("whole");
    assert_eq!(again.model.live.len(), 1);
}

#[test]
fn smaller_segments_are_used_when_there_is_space_for_no_more() {
    let disk = MemDisk::default();
    let mut config = crate::bench::config();
    config.segment_bytes = 8 << 20;
    let mut bench = Bench::open_with(&disk, &config, 1_000_000_000).expect("an empty directory");
    disk.state().space = Some(7 << 20);
    bench.turn(false);
    let mut published = 0;
    while bench.log.room() == Room::Plenty {
        bench.publish(1, &[published as u8; 20_000]);
        published += 1;
        bench.turn(true);
        assert!(published < 1000, "the disk is full");
    }
    assert!(published > 150, "4, 2 and 1 MiB: {published}");
    assert_eq!(bench.log.durable().0 + 1, bench.log.index().0);
    drop(bench);
    let mut again = Bench::open_with(&disk.power_loss(), &config, 2_000_000_000).expect("whole");
    assert_eq!(again.model.live.len() as u64, published);
    let places: Vec<Position> = again.model.live.values().copied().collect();
    for (number, place) in places.into_iter().enumerate() {
        assert_eq!(again.read(place).expect("whole").2[0], number as u8);
    }
}

/// A log whose messages 1 to 20 are on the disk only, with an index block there.
fn with_cold_messages(disk: &MemDisk) -> (Bench, Position) {
    let mut bench = Bench::open(disk).expect("an empty directory");
    for id in 1..=20 {
        bench.publish(1, &body(1, id));
    }
    bench.turn(true);
    let slot = bench
        .log
        .spill(QueueUid(1), 0, (0..10).collect::<Vec<u32>>().into());
    bench.model.blocks.insert(1, slot);
    // Enough that the first segment is closed and nothing of it is in memory.
    for _ in 0..400 {
        let id = bench.next_id(2);
        bench.publish(2, &body(2, id));
        bench.turn(true);
    }
    bench.wait(1_000_000);
    bench.log.trim(0);
    bench.log.trim(0);
    let place = bench.model.live[&(1, 7)];
    assert!(!bench.log.is_resident(place), "it is on the disk only");
    (bench, place)
}

#[test]
fn a_read_that_fails_now_and_then_is_tried_again() {
    for kind in [
        ErrorKind::Other,
        ErrorKind::TimedOut,
        ErrorKind::StorageFull,
    ] {
        for operation in 0..2 {
            let disk = MemDisk::default();
            let (mut bench, place) = with_cold_messages(&disk);
            let next = disk.state().operations;
            disk.state().fail_at = Some((next + operation, kind));
            let read = bench.read(place).expect("one error is no damage");
            assert_eq!(read.2, body(1, 7), "{kind:?} at {operation}");
            assert_eq!(bench.log.stats().damaged, 0);
            assert!(disk.state().operations > next + operation, "it was met");
        }
    }
}

#[test]
fn a_read_that_fails_for_a_while_is_tried_until_it_succeeds() {
    // For so long, with an error of the disk and with no free file descriptor.
    for (code, pauses) in [(libc::EIO, 1), (libc::EMFILE, 40)] {
        let disk = MemDisk::default();
        let (mut bench, place) = with_cold_messages(&disk);
        disk.state().fail_reads = Some(code);
        bench.log.fetch(place);
        let slot = bench.model.blocks[&1];
        bench.log.load(slot);
        bench.events.clear();
        for _ in 0..pauses {
            bench.poll();
            assert!(!bench.log.is_resident(place), "not damaged: {code}");
            assert_eq!(bench.events, Vec::<String>::new());
            let due_us = bench.log.deadline_us().expect("another try");
            assert!(due_us <= bench.now_us + 200_000);
            bench.wait(200_000);
        }
        disk.state().fail_reads = None;
        bench.wait(200_000);
        assert!(
            bench
                .events
                .iter()
                .any(|event| event.starts_with("BlockLoaded") && event.contains("Ok("))
        );
        let read = bench.read(place).expect("the disk has healed");
        assert_eq!(read.2, body(1, 7));
        assert_eq!(bench.log.stats().damaged, 0);
    }
}

#[test]
fn a_read_that_always_fails_is_damage() {
    let disk = MemDisk::default();
    let (mut bench, place) = with_cold_messages(&disk);
    disk.state().fail_reads = Some(libc::EIO);
    let before = disk.state().operations;
    bench.log.fetch(place);
    for _ in 0..10 {
        bench.poll();
        bench.wait(200_000);
    }
    assert!(bench.log.is_resident(place), "it is known to be damaged");
    assert_eq!(bench.read(place), None);
    let tries = disk.state().operations - before;
    assert!((3..20).contains(&tries), "{tries} tries");
}
