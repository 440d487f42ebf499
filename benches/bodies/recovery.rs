//! A restart: a log with messages of 100 bytes that all wait is read, verified and applied.

use ringmq::broker::id::Level;
use ringmq::config::{Config, LogConfig};
use ringmq::log::disk::Storage;
use ringmq::log::{Log, Recovered};

use super::log::{Ignore, OPTIONS, TempDir, open_files};
use super::memory::{MemoryDisk, MemoryStorage};
use super::shard::{Driver, config, publishes};
use super::{Body, Work};

/// Nearly as many as are logged before the first checkpoint.
const MANY: usize = 2_200_000;
const FEW: usize = 30_000;

/// From the temporary directory, whose files are in the system's cache.
pub const FILES: &[Body] = &[
    Body {
        name: "recovery_of_the_log",
        operations: MANY,
        make: || files(MANY, open_log),
    },
    Body {
        name: "recovery_of_the_shard",
        operations: MANY,
        make: || files(MANY, open_shard),
    },
];

/// From memory, and less of it.
pub const MEMORY: &[Body] = &[
    Body {
        name: "recovery_of_the_log_in_memory",
        operations: FEW,
        make: || memory(FEW, open_log),
    },
    Body {
        name: "recovery_of_the_shard_in_memory",
        operations: FEW,
        make: || memory(FEW, open_shard),
    },
];

/// Segments of a size that all these messages nearly fill: what is behind them is looked through as
/// well, and is not to be counted.
fn log_config(messages: usize) -> LogConfig {
    let mut config = LogConfig::default();
    if messages == FEW {
        config.segment_bytes = 4 << 20;
    }
    config
}

/// Opens what is there; dropping the second value is not part of a restart.
type Open<S> = fn(S, &Config) -> (Recovered, Box<dyn std::any::Any>);

/// Reads and verifies the records, and builds nothing from them.
fn open_log<S: Storage + 'static>(
    storage: S,
    config: &Config,
) -> (Recovered, Box<dyn std::any::Any>) {
    let opened = Log::open(storage, &config.log, OPTIONS, &mut Ignore);
    let (log, recovered) = opened.expect("the directory is whole");
    (recovered, Box::new(log))
}

/// Rebuilds the queue with its index as well.
fn open_shard<S: Storage + 'static>(
    storage: S,
    config: &Config,
) -> (Recovered, Box<dyn std::any::Any>) {
    let (driver, recovered) = Driver::open(config, Some(storage));
    (recovered, Box::new(driver.shard))
}

struct Restart<S: Storage> {
    /// What the last run opened.
    opened: Option<Box<dyn std::any::Any>>,
    ready: Option<S>,
    /// Dropped last, with the directory if there is one.
    storage: Box<dyn FnMut() -> S>,
    open: Open<S>,
    config: Config,
    messages: usize,
    log_bytes: u64,
}

impl<S: Storage> Work for Restart<S> {
    fn prepare(&mut self) {
        self.opened = None;
        self.ready = Some((self.storage)());
    }

    fn run(&mut self) {
        let storage = self.ready.take().expect("it is prepared before each run");
        let (recovered, opened) = (self.open)(storage, &self.config);
        assert_eq!(
            recovered.messages_replayed, self.messages as u64,
            "all are there"
        );
        self.log_bytes = recovered.bytes_scanned;
        self.opened = Some(opened);
    }

    fn log_bytes(&self) -> Option<u64> {
        Some(self.log_bytes)
    }
}

/// Publishes that many messages, a hundred to a record.
fn fill<S: Storage>(storage: S, config: &Config, messages: usize) {
    const BATCH: usize = 100;
    let (mut driver, _) = Driver::open(config, Some(storage));
    // The first segment may have to be made before the first answer.
    driver.waits = true;
    let input = publishes(100, BATCH);
    for _ in 0..messages / BATCH {
        driver.answered(&input);
    }
    assert_eq!(driver.shard.messages(), messages as u64);
}

fn restart<S: Storage + 'static>(
    mut storage: impl FnMut() -> S + 'static,
    messages: usize,
    open: Open<S>,
) -> Box<dyn Work> {
    let mut config = config(Level::Os);
    config.log = log_config(messages);
    fill(storage(), &config, messages);
    let (recovered, _) = open(storage(), &config);
    Box::new(Restart {
        opened: None,
        ready: None,
        storage: Box::new(storage),
        open,
        config,
        messages,
        log_bytes: recovered.bytes_scanned,
    })
}

fn files(messages: usize, open: Open<ringmq::log::files::FileStorage>) -> Box<dyn Work> {
    let dir = TempDir::new();
    restart(move || open_files(dir.path()), messages, open)
}

fn memory(messages: usize, open: Open<MemoryStorage>) -> Box<dyn Work> {
    let disk = MemoryDisk::whole();
    restart(move || MemoryStorage::new(&disk), messages, open)
}
