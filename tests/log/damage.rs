//! Damaged directories: what is torn is cut, everything else is refused in words, and no wrong
//! body is ever read.

use std::collections::BTreeMap;

use crate::bench::{Bench, MemDisk, Random, config};
use ringmq::broker::id::QueueUid;
use ringmq::config::LogConfig;
use ringmq::log::{OpenError, Position, check};

type Keys = Vec<(u64, u64)>;

fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 4096,
        checkpoint_bytes: 1 << 30,
        ..config()
    }
}

fn open(disk: &MemDisk) -> Result<Bench, OpenError> {
    Bench::open_with(disk, &small(), 2_000_000_000)
}

fn body(queue: u64, id: u64) -> Vec<u8> {
    format!("queue {queue} id {id} ")
        .repeat(1 + id as usize % 5)
        .into_bytes()
}

/// A directory of a few segments with a checkpoint in the middle and messages before and behind
/// it, and what is live after each record.
fn sample(is_closed: bool) -> (MemDisk, BTreeMap<u64, Keys>) {
    let disk = MemDisk::default();
    let mut bench = Bench::open_with(&disk, &small(), 1_000_000_000).expect("an empty directory");
    let mut states = BTreeMap::new();
    let slot = bench.log.spill(QueueUid(1), 0, (0..10).collect());
    bench.model.blocks.insert(1, slot);
    for turn in 0..48 {
        for queue in 1..=2 {
            let id = bench.next_id(queue);
            bench.publish(queue, &body(queue, id));
        }
        if turn % 4 == 3 {
            bench.settle(1, turn / 4 + 1);
        }
        bench.turn(true);
        for (index, keys) in bench.sealed.drain(..) {
            states.insert(index, keys);
        }
        states.insert(
            bench.log.index().0 - 1,
            bench.model.live.keys().copied().collect(),
        );
        if turn == 10 {
            bench.checkpoint();
        }
    }
    assert!(bench.log.stats().segments >= 3);
    if is_closed {
        bench.log.close(bench.now_us);
        bench.poll();
        assert!(bench.log.is_closed());
    }
    (disk, states)
}

/// Opens a damaged directory. Either it is refused and left as it was, or every message that is
/// live then is whole or known to be damaged. Returns the last record, if it was opened.
fn probe(damaged: &MemDisk, states: &BTreeMap<u64, Keys>, what: &str) -> Result<u64, OpenError> {
    let before = damaged.contents();
    let mut bench = match open(damaged) {
        Ok(bench) => bench,
        Err(error) => {
            assert_eq!(
                damaged.contents(),
                before,
                "{what}: refused, and changed: {error}"
            );
            return Err(error);
        }
    };
    let index = bench.log.index().0 - 1;
    let keys: Keys = bench.model.live.keys().copied().collect();
    let (_, state) = states
        .range(..=index)
        .next_back()
        .expect("something is there");
    assert_eq!(&keys, state, "{what}: record {index}");
    let places: Vec<_> = bench.model.live.iter().map(|(k, v)| (*k, *v)).collect();
    for ((queue, id), place) in places {
        if let Some((_, sections, found)) = bench.read(place) {
            assert_eq!(
                (found, sections),
                (body(queue, id), Vec::new()),
                "{what}: message {queue} {id}"
            );
        }
    }
    Ok(index)
}

fn last_of(states: &BTreeMap<u64, Keys>) -> u64 {
    *states.last_key_value().expect("there are some").0
}

#[test]
fn every_bit_flipped_is_noticed_or_harmless() {
    let (disk, states) = sample(true);
    let last = last_of(&states);
    let mut refused = 0;
    for (path, bytes) in disk
        .contents()
        .into_iter()
        .filter(|(path, _)| !path.ends_with('/'))
    {
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        // In the zeroes behind, one bit of each eighth byte.
        let bits = (0..used * 8).chain((used..bytes.len()).step_by(8).map(|at| at * 8 + 3));
        for bit in bits {
            let copy = disk.copy();
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            copy.put(&path, bytes);
            let what = format!("{path}, bit {bit}");
            match probe(&copy, &states, &what) {
                Ok(index) => assert!(index >= last, "{what}: {index} of {last} records are left"),
                Err(error) => {
                    refused += 1;
                    let text = error.to_string();
                    let named = text.contains(&path) || path == "shard-0/index.blk";
                    assert!(named, "{what} is refused without naming the file: {text}");
                }
            }
        }
    }
    assert!(refused > 10_000, "{refused}");
}

#[test]
fn a_log_cut_at_every_length_keeps_what_is_before_the_cut() {
    let (disk, states) = sample(false);
    let mut paths = disk
        .paths()
        .into_iter()
        .filter(|path| path.ends_with(".seg"));
    let path = paths.nth(2).expect("three segments");
    let whole = disk.get(&path);
    let mut kept = std::collections::BTreeSet::new();
    let mut before = 0;
    for length in 0..=whole.len() {
        let copy = disk.copy();
        copy.put(&path, whole[..length].to_vec());
        let what = format!("{path} cut at {length}");
        let index = probe(&copy, &states, &what).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(index >= before, "{what}: more is kept of less");
        before = index;
        kept.insert(index);
        // What was cut stays cut, and the log goes on behind it.
        let mut bench = open(&copy).expect("it was opened before");
        assert_eq!(bench.recovered.torn_bytes, 0, "{what}");
        bench.publish(1, b"more");
        bench.turn(true);
        let want = bench.kept();
        drop(bench);
        let again = open(&copy.power_loss()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(again.kept(), want, "{what}");
    }
    assert_eq!(before, last_of(&states));
    assert_eq!(
        kept.len() as u64,
        before - kept.first().expect("some") + 1,
        "each record by itself"
    );
    assert!(kept.len() > 8, "{kept:?}");
}

#[test]
fn a_segment_in_the_middle_cut_at_any_length_is_refused() {
    let (disk, states) = sample(false);
    let path = disk
        .paths()
        .into_iter()
        .filter(|path| path.ends_with(".seg"))
        .nth(1)
        .expect("three segments");
    let whole = disk.get(&path);
    let used = whole.len() - whole.iter().rev().take_while(|byte| **byte == 0).count();
    for length in 0..used {
        let copy = disk.copy();
        copy.put(&path, whole[..length].to_vec());
        let error = probe(&copy, &states, &format!("{path} cut at {length}"))
            .expect_err("it goes on behind");
        assert!(error.to_string().contains("shard-0/"), "{error}");
    }
}

#[test]
fn pages_zeroed_or_swapped_are_noticed() {
    let (disk, states) = sample(true);
    let paths: Vec<String> = disk
        .paths()
        .into_iter()
        .filter(|path| path.ends_with(".seg"))
        .collect();
    let mut pages: Vec<(String, usize)> = Vec::new();
    for path in &paths {
        pages.extend((0..disk.get(path).len() / 512).map(|page| (path.clone(), page)));
    }
    // Damage to the closing mark looks like a torn tail, and takes along what shares its pages.
    let last = &paths[2];
    let used = disk
        .get(last)
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("it has records");
    pages.retain(|(path, page)| path != last || !((used - 80) / 512..=used / 512).contains(page));
    let mut refused = 0;
    for (path, page) in &pages {
        let copy = disk.copy();
        let mut bytes = disk.get(path);
        bytes[page * 512..(page + 1) * 512].fill(0);
        copy.put(path, bytes);
        match probe(&copy, &states, &format!("page {page} of {path} zeroed")) {
            Ok(index) => assert!(index >= last_of(&states)),
            Err(_) => refused += 1,
        }
    }
    let mut random = Random(1);
    for _ in 0..300 {
        let (a, b) = (
            &pages[random.below(pages.len() as u64) as usize],
            &pages[random.below(pages.len() as u64) as usize],
        );
        let copy = disk.copy();
        let (mut first, mut second) = (disk.get(&a.0), disk.get(&b.0));
        let page = first[a.1 * 512..(a.1 + 1) * 512].to_vec();
        first[a.1 * 512..(a.1 + 1) * 512].copy_from_slice(&second[b.1 * 512..(b.1 + 1) * 512]);
        copy.put(&a.0, first);
        if a.0 == b.0 {
            second = copy.get(&a.0);
        }
        second[b.1 * 512..(b.1 + 1) * 512].copy_from_slice(&page);
        copy.put(&b.0, second);
        match probe(&copy, &states, &format!("{a:?} and {b:?} swapped")) {
            Ok(index) => assert!(index >= last_of(&states)),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_missing_file_is_refused_or_was_not_needed() {
    let (disk, states) = sample(true);
    let mut refused = Vec::new();
    for path in disk.paths().into_iter().filter(|path| !path.ends_with('/')) {
        let copy = disk.copy();
        copy.delete(&path);
        match probe(&copy, &states, &format!("{path} missing")) {
            Ok(index) => assert!(index >= last_of(&states), "{path}"),
            Err(_) => refused.push(path),
        }
    }
    // Every segment holds live messages or is the one after the last, and the manifest is one.
    let segments = disk
        .paths()
        .iter()
        .filter(|path| path.ends_with(".seg"))
        .count();
    assert_eq!(
        refused.iter().filter(|path| path.ends_with(".seg")).count(),
        segments,
        "{refused:?}"
    );
    assert!(refused.contains(&"MANIFEST".to_owned()));
}

#[test]
fn duplicated_foreign_and_renamed_segments_are_refused() {
    let (disk, states) = sample(true);
    let paths: Vec<String> = disk
        .paths()
        .into_iter()
        .filter(|path| path.ends_with(".seg"))
        .collect();
    for (number, path) in paths.iter().enumerate() {
        let copy = disk.copy();
        copy.put("shard-0/00000000000000ff.seg", disk.get(path));
        let error = probe(&copy, &states, "duplicated").expect_err("the name is another");
        assert!(error.to_string().contains("another name"), "{error}");

        let copy = disk.copy();
        let other = &paths[(number + 1) % paths.len()];
        copy.put(path, disk.get(other));
        probe(&copy, &states, "one in the place of another").expect_err("the name is another");

        let copy = disk.copy();
        copy.put("shard-0/0000000000000001.kept", disk.get(path));
        probe(&copy, &states, "a segment as a kept one").expect_err("it is of another kind");
    }
    // The same number of another directory.
    let foreign = MemDisk::default();
    let storage = crate::bench::MemStorage::new(&foreign);
    let mut model = crate::bench::Model::default();
    let options = ringmq::log::OpenOptions {
        directory_id: 0xbad,
        ..crate::bench::options(1_000_000_000)
    };
    let (mut log, _) =
        ringmq::log::Log::open(storage, &small(), options, &mut model).expect("an empty directory");
    while log.poll(1_000_000_000).is_some() {}
    let copy = disk.copy();
    copy.put(&paths[0], foreign.get("shard-0/0000000000000001.seg"));
    let error = probe(&copy, &states, "foreign").expect_err("it is from elsewhere");
    assert!(
        error.to_string().contains("another data directory"),
        "{error}"
    );
}

#[test]
fn the_shards_directory_may_only_be_missing_where_nothing_was_ever_served() {
    let without_shard = |disk: &MemDisk| {
        for path in disk.paths() {
            if path.starts_with("shard-0/") {
                disk.delete(&path);
            }
        }
        open(disk)
    };
    // The first start has died when it had made the manifest.
    let has = |disk: &MemDisk, path: &str| disk.paths().contains(&path.to_owned());
    let killed_at = |operation| {
        let disk = MemDisk::default();
        disk.state().die_at = Some(operation);
        assert!(open(&disk).is_err());
        disk.copy()
    };
    let mut disks = (0..).map(killed_at);
    let disk = disks.find(|disk| has(disk, "MANIFEST"));
    let disk = disk.expect("it is made at some operation");
    assert!(!has(&disk, "shard-0/"));
    assert!(open(&disk).expect("nothing was lost").recovered.fresh);
    // Any later one has served.
    let error = without_shard(&disk).expect_err("it was there");
    assert!(error.to_string().contains("missing"), "{error}");
    let (used, _) = sample(true);
    let error = without_shard(&used).expect_err("it was used");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn stray_files_change_nothing() {
    let (disk, states) = sample(true);
    let copy = disk.copy();
    let segment = disk.get("shard-0/0000000000000002.seg");
    copy.put("notes.txt", b"mine".to_vec());
    copy.put("shard-0/0000000000000002.seg.bak", segment.clone());
    copy.put("shard-0/2.seg", segment);
    copy.put("shard-0/000000000000000F.seg", b"?".to_vec());
    copy.put("shard-0/0000000000000009.seg.tmp", b"half".to_vec());
    assert!(probe(&copy, &states, "stray files").expect("harmless") >= last_of(&states));
    let paths = copy.paths();
    for stray in [
        "notes.txt",
        "shard-0/0000000000000002.seg.bak",
        "shard-0/2.seg",
    ] {
        assert!(
            paths.contains(&stray.to_owned()),
            "{stray} is not ours to remove"
        );
    }
}

#[test]
fn other_directories_and_versions_are_refused_in_words() {
    let foreign = MemDisk::default();
    foreign.put("thesis.tex", b"x".to_vec());
    let error = open(&foreign).expect_err("it is somebody else's");
    assert!(
        matches!(&error, OpenError::Foreign { found } if found == "thesis.tex"),
        "{error}"
    );
    assert_eq!(foreign.paths(), ["thesis.tex"]);

    let interrupted = MemDisk::default();
    interrupted.put("LOCK", b"1\n".to_vec());
    interrupted.put("MANIFEST.tmp", b"ringmq da".to_vec());
    assert!(
        open(&interrupted)
            .expect("an interrupted creation")
            .recovered
            .fresh
    );

    let (disk, _) = sample(true);
    let error = Bench::open_with(
        &disk,
        &LogConfig {
            segment_bytes: 8192,
            ..small()
        },
        0,
    )
    .expect_err("another size");
    assert!(error.to_string().contains("4096"), "{error}");
    let manifest = String::from_utf8(disk.get("MANIFEST")).expect("text");
    let changed = |from: &str, to: &str| {
        let body = manifest[..manifest.find("crc ").expect("it has one")].replace(from, to);
        let text = format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
        let copy = disk.copy();
        copy.put("MANIFEST", text.into_bytes());
        open(&copy).expect_err("changed").to_string()
    };
    assert!(changed("version 1", "version 2").contains("version 2"));
    assert!(changed("shards 1", "shards 4").contains("4 shards"));
    assert!(changed("id 0000", "id 1000").contains("another data directory"));
}

#[test]
fn a_directory_that_must_exist_is_not_made() {
    let disk = MemDisk::default();
    let storage = crate::bench::MemStorage::new(&disk);
    let options = ringmq::log::OpenOptions {
        must_exist: true,
        ..crate::bench::options(0)
    };
    let error = ringmq::log::Log::open(
        storage,
        &small(),
        options,
        &mut crate::bench::Model::default(),
    );
    assert!(matches!(error, Err(OpenError::Missing)));
    assert!(disk.paths().is_empty());
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_older_one() {
    let disk = MemDisk::default();
    let mut bench = Bench::open_with(&disk, &small(), 1_000_000_000).expect("an empty directory");
    for turn in 0..60 {
        let id = bench.next_id(1);
        bench.publish(1, &body(1, id));
        if id > 5 {
            bench.settle(1, id - 5);
        }
        bench.turn(true);
        if turn % 13 == 12 {
            bench.checkpoint();
        }
    }
    let want = bench.kept();
    assert!(
        bench.log.stats().segments < 6,
        "segments were given back: {:?}",
        bench.log.stats()
    );
    drop(bench);
    let checkpoints: Vec<String> = disk
        .paths()
        .into_iter()
        .filter(|path| path.ends_with(".ckpt"))
        .collect();
    assert_eq!(checkpoints.len(), 2);
    let flip = |disk: &MemDisk, path: &str| {
        let mut bytes = disk.get(path);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        disk.put(path, bytes);
    };
    let copy = disk.copy();
    flip(&copy, &checkpoints[1]);
    let mut bench = open(&copy).expect("the older one is whole");
    assert_eq!(
        (bench.kept(), bench.recovered.checkpoints_damaged),
        (want.clone(), 1)
    );
    bench.turn(true);
    // Two later ones take the place of both.
    for _ in 0..2 {
        bench.publish(1, b"x");
        bench.turn(true);
        bench.checkpoint();
    }
    assert!(!copy.paths().contains(&checkpoints[1]) && !copy.paths().contains(&checkpoints[0]));
    drop(bench);
    assert_eq!(open(&copy).expect("whole").recovered.checkpoints_damaged, 0);

    flip(&disk, &checkpoints[0]);
    flip(&disk, &checkpoints[1]);
    let error = open(&disk).expect_err("the beginning of the log is gone");
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}

#[test]
fn a_damaged_body_is_never_read() {
    let (disk, _) = sample(true);
    let mut bench = open(&disk).expect("whole");
    let place: Position = bench.model.live[&(1, 20)];
    let path = format!("shard-0/{:016x}.seg", place.segment(4096));
    let mut bytes = disk.get(&path);
    bytes[place.offset(4096) as usize + 20] ^= 4;
    // Damaged behind the back of the running log, which has nothing in memory.
    let id = disk.state().names[&path];
    disk.state().files.get_mut(&id).expect("it is there").bytes = bytes;
    assert_eq!(bench.read(place), None);
    assert_eq!(bench.log.stats().damaged, 1);
    let other = bench.model.live[&(1, 21)];
    assert_eq!(bench.read(other).expect("whole").2, body(1, 21));
}

#[test]
fn check_finds_every_flipped_bit_of_records_and_bodies() {
    let (disk, _) = sample(true);
    let whole = check(&disk, &mut Vec::new()).expect("a data directory");
    assert_eq!((whole.problems, whole.messages), (0, 96));
    let before = disk.contents();
    for path in disk
        .paths()
        .into_iter()
        .filter(|path| path.ends_with(".seg"))
    {
        let bytes = disk.get(&path);
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        for at in (0..used).step_by(3) {
            let copy = disk.copy();
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            copy.put(&path, bytes);
            let mut out = Vec::new();
            let found = match check(&copy, &mut out) {
                Ok(summary) => summary.problems > 0 || summary.torn_bytes > 0,
                Err(_) => true,
            };
            assert!(found, "{path} at {at}: {}", String::from_utf8_lossy(&out));
        }
    }
    assert_eq!(disk.contents(), before, "check changes nothing");
}
