//! Every limit and address of one broker, checked once at start. Units are in the names.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::broker::settings::Settings;

/// The protocols that a connection can speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// The line protocol: everything that is none of the others.
    Text,
    /// Redis: the first byte is `*`.
    Resp,
    /// A method in capitals and a space.
    Http,
    /// `AMQP` and a zero byte.
    Amqp,
    /// A TLS handshake record: the first byte is 0x16.
    Tls,
}

impl Door {
    /// Those that this version answers on.
    pub const BUILT: &[Door] = &[Door::Text, Door::Resp, Door::Http, Door::Amqp];

    /// The word before `://` in `--listen`.
    pub fn word(self) -> &'static str {
        match self {
            Door::Text => "text",
            Door::Resp => "resp",
            Door::Http => "http",
            Door::Amqp => "amqp",
            Door::Tls => "tls",
        }
    }
}

/// What a connection may send and what is kept for it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest line in either direction, bytes.
    pub line_bytes_max: usize,
    /// Largest body of one message, bytes.
    pub body_bytes_max: usize,
    /// Most messages in one `MPUB`.
    pub batch_count_max: usize,
    /// Most bytes in one `MPUB`, its whole body as sent.
    pub batch_bytes_max: usize,
    /// Most handles in one `ACK`, `NACK`, `TOUCH`, or ids in a `DEL`.
    pub handles_max: usize,
    /// Output kept for one connection before it is read no further, bytes.
    pub send_bytes_max: usize,
    /// A frame that receives no byte for so long closes its connection, microseconds.
    pub stall_us: u64,
    /// Most connections.
    pub connections_max: usize,
    /// Input taken from one connection in one turn, bytes.
    pub turn_bytes_max: usize,
    /// What RESP pops is settled before it is sent, as in Redis: at most once.
    pub pop_is_classic: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            line_bytes_max: 64 << 10,
            body_bytes_max: 1 << 20,
            batch_count_max: 1 << 20,
            batch_bytes_max: 32 << 20,
            handles_max: 1000,
            send_bytes_max: 1 << 20,
            stall_us: 60_000_000,
            connections_max: 100_000,
            turn_bytes_max: 256 << 10,
            pop_is_classic: false,
        }
    }
}

/// The log's sizes and times.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Size of a segment, bytes.
    pub segment_bytes: u64,
    /// Size of a chunk of the tail in memory, bytes.
    pub chunk_bytes: usize,
    /// Longest time that `os` records stay unsynced, and after which an idle log gets its mark,
    /// microseconds.
    pub flush_us: u64,
    /// A checkpoint is due after so much log, bytes.
    pub checkpoint_bytes: u64,
    /// So many syncs of a start follow each other at once before one waits until those whom the one before
    /// has answered are back, where that is faster; `None` = none ever waits.
    pub gather_after_syncs: Option<u32>,
    /// Between two pieces that the scrub reads, microseconds; the first is due after sixty of
    /// these.
    pub scrub_piece_us: u64,
    /// Between the beginnings of two rounds of the scrub, microseconds.
    pub scrub_round_us: u64,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            segment_bytes: 64 << 20,
            chunk_bytes: 256 << 10,
            flush_us: 50_000,
            checkpoint_bytes: 256 << 20,
            gather_after_syncs: Some(16),
            scrub_piece_us: 1_000_000,
            scrub_round_us: 24 * 3600 * 1_000_000,
        }
    }
}

/// Everything a broker is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// The only protocol that the listener of the same index takes; `None`, or no entry: any.
    pub pinned: Vec<Option<Door>>,
    /// Listening elsewhere than on loopback is wanted.
    pub insecure: bool,
    /// The data directory; `None` is `--memory`.
    pub data: Option<PathBuf>,
    /// An absent or empty data directory is refused.
    pub data_must_exist: bool,
    /// Settings of queues that are created without any.
    pub queue_defaults: Settings,
    /// Memory for messages, index and buffers, bytes.
    pub memory_budget_bytes: usize,
    /// Event loops, each with queues, connections and a log of its own.
    pub shards: u32,
    /// Which of them a [`crate::shard::Shard`] opened with this is, from 0.
    pub shard: u32,
    /// The core of each event loop's thread; empty: the system chooses.
    pub cores: Vec<usize>,
    /// Poll without sleeping.
    pub spin: bool,
    /// Per-connection limits.
    pub limits: Limits,
    /// The log.
    pub log: LogConfig,
}

impl Default for Config {
    /// In memory on loopback and a port of the system's choice: what a test wants.
    fn default() -> Config {
        Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            pinned: Vec::new(),
            insecure: false,
            data: None,
            data_must_exist: false,
            queue_defaults: Settings::default(),
            memory_budget_bytes: 1 << 30,
            shards: 1,
            shard: 0,
            cores: Vec::new(),
            spin: false,
            limits: Limits::default(),
            log: LogConfig::default(),
        }
    }
}

/// The least memory a broker can work in, bytes.
pub const MEMORY_BUDGET_BYTES_MIN: usize = 16 << 20;

/// Most shards of one broker.
pub const SHARDS_MAX: u32 = 256;

impl Config {
    /// What one of the shards is started with: its share of what the broker may use.
    pub fn of_shard(&self, shard: u32) -> Config {
        let mut config = self.clone();
        let shards = self.shards as usize;
        config.shard = shard;
        config.memory_budget_bytes = self.memory_budget_bytes / shards;
        config.limits.connections_max = self.limits.connections_max.div_ceil(shards);
        config
    }

    /// Checks every value against its range and against the others.
    ///
    /// # Errors
    /// A sentence that names the option and what it can be.
    pub fn check(&self) -> Result<(), String> {
        let open = self.listen.iter().find(|addr| !addr.ip().is_loopback());
        if let (Some(open), false) = (open, self.insecure) {
            return Err(format!(
                "--listen {open} is open to other machines and there is no authentication yet: \
                 listen on 127.0.0.1, or add --insecure if the network is trusted"
            ));
        }
        assert!(
            self.pinned.len() <= self.listen.len(),
            "a pin belongs to a listener"
        );
        let limits = &self.limits;
        let log = &self.log;
        in_range(
            "--memory-budget",
            self.memory_budget_bytes,
            MEMORY_BUDGET_BYTES_MIN,
            1 << 46,
        )?;
        in_range("--shards", self.shards, 1, SHARDS_MAX)?;
        let least = self.shards as usize * MEMORY_BUDGET_BYTES_MIN;
        if self.memory_budget_bytes < least {
            return Err(format!(
                "--memory-budget must be at least {least} for {} shards",
                self.shards
            ));
        }
        if !self.cores.is_empty() && self.cores.len() != self.shards as usize {
            return Err(format!(
                "--pin names {} cores, and there is one event loop for each of {} shards: name {}",
                self.cores.len(),
                self.shards,
                self.shards
            ));
        }
        in_range("--max-connections", limits.connections_max, 1, 1 << 24)?;
        in_range("--max-line", limits.line_bytes_max, 1 << 10, 16 << 20)?;
        in_range("--max-body", limits.body_bytes_max, 1, 1 << 30)?;
        in_range("--max-batch", limits.batch_count_max, 1, 1 << 24)?;
        in_range(
            "--max-batch-bytes",
            limits.batch_bytes_max,
            1 << 10,
            1 << 30,
        )?;
        in_range("--max-handles", limits.handles_max, 1, 1 << 20)?;
        in_range("--max-send", limits.send_bytes_max, 1 << 10, 1 << 30)?;
        in_range("--stall-timeout", limits.stall_us, 1_000, 86_400_000_000)?;
        in_range("--segment", log.segment_bytes, 1 << 20, 4 << 30)?;
        in_range("--flush-interval", log.flush_us, 1_000, 3_600_000_000)?;
        in_range("--checkpoint", log.checkpoint_bytes, 1 << 20, 1 << 40)?;
        if limits.batch_bytes_max < limits.body_bytes_max {
            return Err("--max-batch-bytes must be at least --max-body".to_owned());
        }
        Ok(())
    }
}

/// Refuses a value outside `least..=most`.
fn in_range<T: PartialOrd + std::fmt::Display>(
    option: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), String> {
    if value < least || value > most {
        return Err(format!("{option} can be {least} to {most}, not {value}"));
    }
    Ok(())
}
