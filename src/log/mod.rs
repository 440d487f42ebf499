//! The commit log: records, segments, recovery, compaction, index blocks, checkpoints.
//!
//! Knows bytes, positions and files; never a queue's state, a socket or a clock.
//!
//! A turn's entries are built in place at the end of the log's memory (`append`), sealed as one
//! record, written on the loop and synced off it (`write`) into segments prepared ahead
//! (`supply`), and read back from memory or from disk (`read`). `upkeep` makes checkpoints and
//! compactions, `scrub` verifies what is old; `recovery` opens a directory. The format is in docs/log-format.md.

mod again;
mod api;
mod append;
mod below;
mod blocks;
mod check;
mod checkpoint;
mod chunks;
mod compaction;
pub mod conversion;
mod crc;
pub mod disk;
mod entry;
mod error;
pub mod files;
mod foreground;
mod gather;
mod histogram;
pub mod job;
pub mod layout;
mod manifest;
mod none;
mod patient;
mod place;
mod plain;
mod prepare;
mod read;
mod record;
mod recovery;
mod repair;
mod replay;
mod rw;
mod scrub;
mod sections;
mod segment;
mod segment_reader;
mod supply;
mod survey;
mod syncs;
mod upkeep;
mod windows;
mod write;

use std::collections::VecDeque;
use std::fmt;

use crate::config::LogConfig;
use disk::{Disk, Storage};
use segment::SEGMENT_HEADER_BYTES;
use write::{Closing, WATCH_US};

pub use api::{
    CheckSummary, Event, LogStats, OpenOptions, Payload, Read, ReadBlock, Recovered, Replay, Room,
    Stored,
};
pub use append::{
    DEFINE_HEAD_BYTES_MAX, FreeRun, RELEASE_BYTES_MAX, RUN_BODY_BYTES, SCHEDULE_HEAD_BYTES_MAX,
    SETTLE_BYTES_MAX, publish_many_bytes,
};
pub use below::Below;
pub use blocks::BLOCK_OFFSETS_MAX;
pub use check::{check, dump};
pub use entry::{
    Entry, Message, PUBLISH_HEAD_BYTES_MAX, Run, SettleReason, TRANSFER_HEAD_BYTES_MAX,
    TransferReason,
};
pub use error::{LogError, OpenError};
pub use foreground::Foreground;
pub use histogram::Histogram;
pub use none::NoStorage;
pub use place::{BlockSlot, LogIndex, Place, Position, SegmentRange};
pub use sections::{
    PRIORITY_BYTES, Section, SectionKind, Sections, SectionsBuilder, SectionsError, with_priority,
};
pub use survey::Survey;

/// Publishes are refused for a moment when more than this waits for a sync.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;

/// The last record sealed.
#[derive(Debug)]
struct Last {
    index: LogIndex,
    /// Its checksum.
    chain: u32,
    wall_ms: u64,
    /// Position behind it.
    end: u64,
    /// Bytes sealed since the log was opened.
    bytes: u64,
}

/// One commit log on one storage.
///
/// Calling order of a turn: any number of [`Log::publish`], [`Log::settle`], [`Log::append`] and
/// reads; [`Log::commit`]; then [`Log::poll`] until it is empty. None of them blocks.
pub struct Log<S: Storage> {
    storage: S,
    config: LogConfig,
    manifest: manifest::Manifest,
    /// What checksums start from.
    seed: u32,
    /// The latest time told, microseconds since the unix epoch.
    now_us: u64,
    batch: append::Batch,
    last: Last,
    /// The last record when the last turn was committed.
    last_commit: LogIndex,
    current: supply::Current,
    chunks: chunks::Chunks,
    windows: windows::Windows,
    table: segment::SegmentTable,
    blocks: blocks::Blocks,
    blocks_retry_at: Option<u64>,
    again: again::Again,
    tail: write::Tail<<S::Disk as Disk>::File>,
    supply: supply::Supply<<S::Disk as Disk>::File>,
    checkpoints: upkeep::Checkpoints,
    compacting: upkeep::Compacting,
    /// Segments whose last message was freed since the last commit.
    emptied: Vec<segment::SegmentName>,
    /// A segment may have become free.
    reclaim_due: bool,
    watch_at: Option<u64>,
    scrub: scrub::Scrub,
    closing: Closing,
    failure: Option<LogError>,
    last_room: Room,
    events: VecDeque<Event>,
    stats: LogStats,
}

impl<S: Storage> fmt::Debug for Log<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("last", &self.last)
            .field("written", &self.written())
            .field("durable", &self.durable())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl<S: Storage> Log<S> {
    /// Opens the directory: verifies it, replays into `replay`, repairs what a crash left. The
    /// first segment is prepared in the background.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed then, unless it is an [`OpenError::Io`].
    pub fn open<R: Replay>(
        storage: S,
        config: &LogConfig,
        options: OpenOptions,
        replay: &mut R,
    ) -> Result<(Log<S>, Recovered), OpenError> {
        assert!(
            config.segment_bytes.is_multiple_of(record::ALIGN as u64)
                && config.segment_bytes < 1 << 32,
            "a segment is less than 4 GiB, and a multiple of 8 bytes"
        );
        let opened = recovery::open(
            &patient::Patient(storage.disk()),
            config.segment_bytes,
            &options,
            replay,
        )?;
        let scan = opened.scan;
        let mut log = Log {
            storage,
            config: config.clone(),
            seed: opened.manifest.seed(),
            manifest: opened.manifest,
            now_us: options.now_ms * 1000,
            batch: append::Batch::default(),
            last: Last {
                index: scan.index,
                chain: scan.chain,
                wall_ms: scan.wall_ms,
                end: scan.end,
                bytes: 0,
            },
            last_commit: scan.index,
            current: supply::Current {
                number: 0,
                epoch: 0,
                base_ms: 0,
                start: 0,
                limit: 0,
            },
            chunks: chunks::Chunks::new(config.chunk_bytes),
            windows: windows::Windows::default(),
            table: scan.table,
            blocks: opened.blocks,
            blocks_retry_at: None,
            again: again::Again::default(),
            tail: write::Tail::new(
                scan.end,
                scan.index,
                gather::Gather::after(config.gather_after_syncs),
            ),
            supply: supply::Supply::new(opened.next_segment, opened.free),
            checkpoints: opened.checkpoints,
            compacting: upkeep::Compacting::new(opened.next_kept),
            emptied: Vec::new(),
            reclaim_due: true,
            watch_at: Some(options.now_ms * 1000 + WATCH_US),
            scrub: scrub::Scrub::new(options.now_ms * 1000 + 60 * config.scrub_piece_us),
            closing: Closing::No,
            failure: None,
            last_room: Room::Plenty,
            events: VecDeque::new(),
            stats: LogStats::default(),
        };
        // What was replayed counts towards the next checkpoint.
        log.last.bytes = opened.recovered.bytes_scanned;
        log.tail.durable_bytes = log.last.bytes;
        log.next_segment();
        Ok((log, opened.recovered))
    }

    /// Makes a directory that counts its starts from `incarnation` on, which the next [`Log::open`] makes one
    /// more. It is on stable storage then.
    ///
    /// # Errors
    /// The disk fails, or there is a directory already.
    pub fn create<D: Disk>(
        disk: &D,
        config: &LogConfig,
        directory_id: u64,
        incarnation: u64,
    ) -> Result<(), OpenError> {
        recovery::create(
            &patient::Patient(disk),
            config.segment_bytes,
            directory_id,
            incarnation,
        )
    }

    /// Which start on the directory this is, from 1.
    pub fn incarnation(&self) -> u64 {
        self.manifest.incarnation
    }

    /// Counts and sizes.
    pub fn stats(&self) -> LogStats {
        let segments = self.table.iter();
        let bytes = segments
            .map(|(_, segment)| segment.end - SEGMENT_HEADER_BYTES as u64)
            .sum();
        LogStats {
            segments: self.table.of_kind(false).len(),
            segments_kept: self.table.of_kind(true).len(),
            segments_spare: self.supply.count(),
            bytes,
            messages_live: self
                .table
                .iter()
                .map(|(_, segment)| segment.live)
                .sum::<u64>()
                + self.batch.messages,
            ..self.stats.clone()
        }
    }
}
