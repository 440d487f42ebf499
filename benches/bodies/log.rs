//! Appending to the log: records made, written, and where the name says so synced, with 1, 100
//! and 1,000 messages of 100 bytes to a record.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringmq::broker::command::Body as MessageBody;
use ringmq::broker::id::{MessageId, QueueUid};
use ringmq::config::LogConfig;
use ringmq::log::disk::Storage;
use ringmq::log::files::FileStorage;
use ringmq::log::{
    Entry, Log, Message, OpenOptions, Place, Position, ReadBlock, Replay, Room, SettleReason,
};

use super::memory::{MemoryDisk, MemoryStorage};
use super::{Body, OPERATIONS, Work, body};

/// On a disk that does nothing: what the log itself takes.
pub const MEMORY: &[Body] = &[
    body("append_batches_of_1", || memory(1)),
    body("append_batches_of_100", || memory(100)),
    body("append_batches_of_1000", || memory(1000)),
];

/// On the disk of the temporary directory, written only.
pub const WRITTEN: &[Body] = &[
    body("append_written_batches_of_1", || {
        files(1, OPERATIONS, false)
    }),
    body("append_written_batches_of_100", || {
        files(100, OPERATIONS, false)
    }),
    body("append_written_batches_of_1000", || {
        files(1000, OPERATIONS, false)
    }),
];

/// Records that are synced one after another in one run.
const SYNCS: usize = 10;

/// The same, each record synced before the next is made.
pub const SYNCED: &[Body] = &[
    Body {
        name: "append_synced_batches_of_1",
        operations: SYNCS,
        make: || files(1, SYNCS, true),
    },
    Body {
        name: "append_synced_batches_of_100",
        operations: 100 * SYNCS,
        make: || files(100, 100 * SYNCS, true),
    },
    Body {
        name: "append_synced_batches_of_1000",
        operations: 1000 * SYNCS,
        make: || files(1000, 1000 * SYNCS, true),
    },
];

/// Bytes of a body.
const BODY: [u8; 100] = [b'x'; 100];
const QUEUE: QueueUid = QueueUid(1);

/// A directory that is removed at the end: below `RINGMQ_DIR` if that is set, otherwise where the
/// system keeps temporary files.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let parent = std::env::var_os("RINGMQ_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        TempDir(parent.join(format!("ringmq-bench-{}-{number}", std::process::id())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever cleans such places.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Opens the storage of a directory; its threads wake the one that calls this.
pub fn open_files(dir: &Path) -> FileStorage {
    let waiting = std::thread::current();
    let wake = Arc::new(move || waiting.unpark());
    FileStorage::open(dir, wake).expect("the directory can be written to")
}

/// A state that is nothing: what the reading alone costs.
pub struct Ignore;

impl Replay for Ignore {
    fn restore(&mut self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn apply(
        &mut self,
        entry: &Entry<'_>,
        at: Place,
        _: &mut ReadBlock<'_>,
        _: &mut Vec<Position>,
    ) -> Result<(), String> {
        std::hint::black_box((entry, at));
        Ok(())
    }
}

/// How to open a log in a bench.
pub const OPTIONS: OpenOptions = OpenOptions {
    must_exist: false,
    now_ms: 1_700_000_000_000,
    directory_id: 7,
};

/// Publishes and commits in batches.
struct Appends<S: Storage> {
    log: Log<S>,
    now_us: u64,
    next_id: MessageId,
    /// Where the messages of the last run are.
    places: Vec<Position>,
    batch: usize,
    messages: usize,
    /// Each record is synced before the next.
    synced: bool,
    /// Something else does the jobs: wait for it.
    waits: bool,
    /// Removed when the log is closed.
    _dir: Option<TempDir>,
}

impl<S: Storage> Appends<S> {
    fn commit(&mut self, sync: bool) {
        self.now_us += 100;
        self.log.commit(self.now_us, sync);
        self.poll();
    }

    fn poll(&mut self) {
        while let Some(event) = self.log.poll(self.now_us) {
            std::hint::black_box(event);
        }
        assert!(self.log.failure().is_none(), "{:?}", self.log.failure());
    }

    /// Waits until that is so.
    fn until(&mut self, is_so: impl Fn(&Log<S>) -> bool) {
        while !is_so(&self.log) {
            if self.waits {
                std::thread::park();
            }
            self.poll();
        }
    }
}

impl<S: Storage> Work for Appends<S> {
    /// The messages of the last run are settled, and everything is written and synced.
    fn prepare(&mut self) {
        let first = self.next_id - self.places.len() as u64;
        for (id, position) in (first..).zip(std::mem::take(&mut self.places)) {
            self.log.settle(QUEUE, 0, SettleReason::Acked, id);
            self.log.freed(position);
        }
        self.commit(true);
        self.until(|log| log.durable().next() == log.index() && log.room() == Room::Plenty);
        if self.log.checkpoint_due() {
            self.log.checkpoint(Vec::new());
        }
        self.places.reserve(self.messages);
    }

    fn run(&mut self) {
        let mut left = self.messages;
        while left > 0 {
            for _ in 0..self.batch {
                let message = Message {
                    time_ms: self.now_us / 1000,
                    sections: &[],
                    body: MessageBody::Borrowed(&BODY),
                };
                let place = self.log.publish(QUEUE, self.next_id, &message);
                self.places.push(place);
                self.next_id += 1;
            }
            left -= self.batch;
            self.commit(self.synced);
            if self.synced {
                self.until(|log| log.durable().next() == log.index());
            }
        }
    }
}

fn appends<S: Storage + 'static>(
    storage: S,
    batch: usize,
    messages: usize,
    synced: bool,
    dir: Option<TempDir>,
) -> Box<dyn Work> {
    let opened = Log::open(storage, &LogConfig::default(), OPTIONS, &mut Ignore);
    let (log, _) = opened.expect("a new directory");
    Box::new(Appends {
        log,
        now_us: OPTIONS.now_ms * 1000,
        next_id: 1,
        places: Vec::new(),
        batch,
        messages,
        synced,
        waits: dir.is_some(),
        _dir: dir,
    })
}

fn memory(batch: usize) -> Box<dyn Work> {
    let storage = MemoryStorage::new(&MemoryDisk::forgetful());
    appends(storage, batch, OPERATIONS, false, None)
}

fn files(batch: usize, messages: usize, synced: bool) -> Box<dyn Work> {
    let dir = TempDir::new();
    appends(open_files(dir.path()), batch, messages, synced, Some(dir))
}
