//! What the fake disk itself must do: were it kinder than a real one, no seed would prove a thing.

use std::collections::BTreeSet;
use std::io;

use ringmq::log::disk::Disk;

use crate::disk::{Crash, Fault, Faults, Op, SimDisk, SimFile, Space};

/// Outcomes of the same history under many seeds: what a reader finds in `path`, `None` when
/// the file isn't there.
fn outcomes(path: &str, history: impl Fn(&SimDisk)) -> BTreeSet<Option<Vec<u8>>> {
    (0..400)
        .map(|seed| {
            let disk = SimDisk::new(seed);
            history(&disk);
            disk.crash(Crash::Power);
            disk.contents().get(path).cloned()
        })
        .collect()
}

fn put(disk: &SimDisk, path: &str, bytes: &[u8]) -> SimFile {
    let file = disk.create(path).expect("no faults");
    assert_eq!(
        disk.write_at(&file, 0, bytes).expect("no faults"),
        bytes.len()
    );
    file
}

#[test]
fn a_synced_file_whose_directory_was_not_synced_may_be_gone() {
    let seen = outcomes("a", |disk| {
        let file = put(disk, "a", b"x");
        disk.sync(&file).expect("no faults");
    });
    assert_eq!(seen, BTreeSet::from([None, Some(b"x".to_vec())]));
}

#[test]
fn synced_content_in_a_synced_directory_stays() {
    let seen = outcomes("a", |disk| {
        let file = put(disk, "a", b"x");
        disk.sync(&file).expect("no faults");
        disk.sync_dir("").expect("no faults");
    });
    assert_eq!(seen, BTreeSet::from([Some(b"x".to_vec())]));
}

#[test]
fn unsynced_sectors_and_sizes_go_their_own_ways_and_synced_bytes_stay() {
    let seen = outcomes("a", |disk| {
        let file = put(disk, "a", &[1; 600]);
        disk.sync(&file).expect("no faults");
        disk.sync_dir("").expect("no faults");
        disk.write_at(&file, 600, &[2; 1400]).expect("no faults");
    });
    let found = |want: &dyn Fn(&[u8]) -> bool| {
        seen.iter()
            .any(|content| want(content.as_ref().expect("synced")))
    };
    for content in &seen {
        let content = content.as_ref().expect("the entry is synced");
        assert!(content.len() >= 600 && content[..600] == [1; 600]);
    }
    assert!(found(&|c| c.len() == 600), "all lost");
    assert!(
        found(&|c| c.len() == 2000 && c[600..].iter().all(|b| *b == 2)),
        "all kept"
    );
    assert!(
        found(&|c| c.len() == 2000 && c[600..].iter().all(|b| *b == 0)),
        "size alone"
    );
    assert!(
        found(&|c| c.len() == 2000 && c[1024..1536] == [0; 512] && c[1999] == 2),
        "a hole"
    );
    assert!(
        found(&|c| c.len() == 2000 && c[1030] != c[1530]),
        "a torn sector"
    );
}

#[test]
fn a_rename_is_kept_or_lost_whole() {
    let seen = outcomes("new", |disk| {
        let file = put(disk, "new", b"old");
        disk.sync(&file).expect("no faults");
        disk.sync_dir("").expect("no faults");
        let file = put(disk, "tmp", b"fresh");
        disk.sync(&file).expect("no faults");
        disk.rename("tmp", "new").expect("no faults");
    });
    assert_eq!(
        seen,
        BTreeSet::from([Some(b"old".to_vec()), Some(b"fresh".to_vec())])
    );
}

#[test]
fn kill_keeps_the_cache_but_not_for_ever() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let file = put(&disk, "a", b"x");
        disk.sync_dir("").expect("no faults");
        let _ = file;
        disk.crash(Crash::Kill);
        assert_eq!(disk.contents()["a"], b"x");
    }
    let seen = outcomes("a", |disk| {
        put(disk, "a", b"x");
        disk.sync_dir("").expect("no faults");
        disk.crash(Crash::Kill);
    });
    assert!(seen.contains(&Some(Vec::new())) && seen.contains(&Some(b"x".to_vec())));
}

#[test]
fn after_a_failed_sync_the_next_one_succeeds_and_proves_nothing() {
    let mut kept = BTreeSet::new();
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let file = put(&disk, "a", b"old");
        disk.sync(&file).expect("no faults");
        disk.sync_dir("").expect("no faults");
        disk.write_at(&file, 0, b"new").expect("no faults");
        let op = disk.ops();
        disk.set_faults(|faults| {
            faults.at.insert(op, Fault::Io);
        });
        disk.sync(&file).expect_err("planned");
        assert_eq!(disk.failures(Op::Sync), 1);
        disk.sync(&file).expect("the fault is over");
        let mut read = [0; 3];
        disk.read_at(&file, 0, &mut read).expect("no faults");
        assert_eq!(&read, b"new", "the cache still has it");
        disk.crash(Crash::Power);
        kept.insert(disk.contents()["a"].clone());
    }
    assert_eq!(kept, BTreeSet::from([b"old".to_vec(), b"new".to_vec()]));
}

#[test]
fn faults_hit_what_they_are_meant_for() {
    let disk = SimDisk::new(1);
    let file = put(&disk, "a", b"0123456789");
    disk.set_faults(|faults| faults.space = Space::NoGrowth);
    assert_eq!(disk.write_at(&file, 8, b"abcd").expect("a part fits"), 2);
    let full = disk.write_at(&file, 10, b"cd").expect_err("no room");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.write_at(&file, 0, b"x").expect("overwriting"), 1);
    assert!(disk.create("b").is_err());
    let op = disk.ops() + 1;
    disk.set_faults(|faults| {
        *faults = Faults {
            crash_at: Some(op),
            ..Faults::default()
        }
    });
    disk.create("b").expect("healed");
    assert!(!disk.crashed());
    disk.sync(&file).expect_err("down");
    assert!(disk.crashed());
    disk.sync(&file).expect_err("still down");
    disk.crash(Crash::Kill);
    assert_eq!(disk.list("").expect("up again").len(), 2);
}

#[test]
#[should_panic(expected = "before the crash")]
fn files_do_not_outlive_a_crash() {
    let disk = SimDisk::new(1);
    let file = put(&disk, "a", b"x");
    disk.crash(Crash::Kill);
    let _ = disk.sync(&file);
}
