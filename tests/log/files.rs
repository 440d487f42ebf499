//! The log on real files: the lock, foreign directories, and what threads and the kernel add.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::bench::Model;
use ringmq::broker::command::Body;
use ringmq::broker::id::QueueUid;
use ringmq::config::LogConfig;
use ringmq::log::files::{FileDisk, FileStorage};
use ringmq::log::{Log, Message, OpenError, OpenOptions, Read, Recovered, check};

/// A directory of its own that is removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("ringmq-log-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn storage(dir: &Path) -> Result<(FileStorage, Receiver<()>), OpenError> {
    let (wake, woken) = channel();
    let wake = std::sync::Mutex::new(wake);
    let storage = FileStorage::open(
        dir,
        Arc::new(move || {
            let _ = wake.lock().expect("no wake panics").send(());
        }),
    )?;
    Ok((storage, woken))
}

struct Opened {
    log: Log<FileStorage>,
    woken: Receiver<()>,
    model: Model,
    recovered: Recovered,
}

fn open(dir: &Path) -> Result<Opened, OpenError> {
    let (storage, woken) = storage(dir)?;
    let config = LogConfig {
        segment_bytes: 2 << 20,
        checkpoint_bytes: 4 << 20,
        ..LogConfig::default()
    };
    let options = OpenOptions {
        must_exist: false,
        now_ms: 1_000_000,
        directory_id: 77,
    };
    let mut model = Model::default();
    let (log, recovered) = Log::open(storage, &config, options, &mut model)?;
    Ok(Opened {
        log,
        woken,
        model,
        recovered,
    })
}

fn publish(log: &mut Log<FileStorage>, id: u64, body: &[u8]) -> ringmq::log::Position {
    let message = Message {
        time_ms: 1_000_000,
        sections: &[],
        body: Body::Borrowed(body),
    };
    log.publish(QueueUid(1), id, &message)
}

fn wait(opened: &mut Opened, done: impl Fn(&mut Log<FileStorage>) -> bool) {
    for _ in 0..10_000 {
        while opened.log.poll(1_000_000_000).is_some() {}
        if done(&mut opened.log) {
            return;
        }
        let _ = opened.woken.recv_timeout(Duration::from_millis(10));
    }
    panic!("the background did not get there: {:?}", opened.log);
}

#[test]
fn a_log_on_files_comes_back() {
    let dir = Dir::new("comes-back");
    let nested = dir.0.join("a/b");
    let mut opened = open(&nested).expect("a missing directory is made");
    assert!(opened.recovered.fresh);
    let mut places = Vec::new();
    for id in 1..=20_000u64 {
        places.push(publish(
            &mut opened.log,
            id,
            format!("body {id}").repeat(20).as_bytes(),
        ));
        if id % 100 == 0 {
            opened.log.commit(1_000_000_000, true);
        }
    }
    let last = opened.log.index().0 - 1;
    wait(&mut opened, |log| log.durable().0 == last);
    assert!(opened.log.stats().segments > 1);
    opened.log.close(1_000_000_000);
    wait(&mut opened, |log| log.is_closed());
    drop(opened);

    let mut again = open(&nested).expect("whole");
    assert!(!again.recovered.fresh);
    assert_eq!(again.model.live.len(), 20_000);
    assert_eq!(again.recovered.incarnation, 2);
    for (id, place) in (1..=20_000u64).zip(&places).step_by(777) {
        again.log.fetch(*place);
        let place = *place;
        wait(&mut again, |log| log.is_resident(place));
        let Read::Resident(stored) = again.log.read(place) else {
            panic!("it was fetched")
        };
        assert_eq!(
            stored.body.as_slice(),
            format!("body {id}").repeat(20).as_bytes()
        );
    }
    drop(again);
    let mut out = Vec::new();
    let summary = check(&FileDisk::unlocked(&nested), &mut out).expect("a data directory");
    assert_eq!((summary.problems, summary.messages), (0, 20_000));
}

#[test]
fn a_second_broker_is_refused() {
    let dir = Dir::new("second");
    let first = open(&dir.0).expect("a missing directory is made");
    let error = storage(&dir.0).expect_err("it is locked");
    assert!(
        matches!(&error, OpenError::Locked { holder, .. } if *holder == std::process::id().to_string()),
        "{error}"
    );
    drop(first);
    open(&dir.0).expect("it is free again");
}

#[test]
fn a_foreign_directory_is_refused_and_left_alone() {
    let dir = Dir::new("foreign");
    std::fs::create_dir_all(&dir.0).expect("a temporary directory");
    std::fs::write(dir.0.join("thesis.tex"), b"x").expect("a file");
    let error = storage(&dir.0).expect_err("it is somebody else's");
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(std::fs::read_dir(&dir.0).expect("it is there").count(), 1);
}

#[test]
fn a_directory_that_must_exist_is_not_made() {
    let dir = Dir::new("must-exist");
    let error = FileStorage::open_existing(&dir.0, Arc::new(|| {})).expect_err("it is missing");
    assert!(matches!(error, OpenError::Missing));
    assert!(!dir.0.exists());
    std::fs::create_dir(&dir.0).expect("a temporary directory");
    let error = FileStorage::open_existing(&dir.0, Arc::new(|| {})).expect_err("it is empty");
    assert!(matches!(error, OpenError::Missing));
    let found = std::fs::read_dir(&dir.0).expect("it is there").count();
    assert_eq!(found, 0, "a refused directory is left as it was");
}

#[test]
fn a_directory_deleted_underneath_is_noticed() {
    let dir = Dir::new("deleted");
    let mut opened = open(&dir.0).expect("a missing directory is made");
    publish(&mut opened.log, 1, b"x");
    opened.log.commit(1_000_000_000, true);
    wait(&mut opened, |log| log.durable().0 == 1);
    // A file may be made in it while the others are removed.
    while dir.0.exists() {
        _ = std::fs::remove_dir_all(&dir.0);
    }
    opened.log.handle_deadline(1_001_000_000);
    wait(&mut opened, |log| log.failure().is_some());
    let failure = opened.log.failure().expect("it has failed").to_string();
    // Whoever comes first: the look after the directory, or a file that cannot be made in it.
    let is_clear = failure.contains("gone") || failure.contains("No such file or directory");
    assert!(is_clear, "{failure}");
}
