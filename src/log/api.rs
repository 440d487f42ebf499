//! What the log tells and takes: the types of its interface.

use std::sync::Arc;

use bytes::Bytes;

use crate::broker::id::{MessageId, QueueUid};

use super::Histogram;
use super::entry::Entry;
use super::place::{BlockSlot, LogIndex, Place, Position};
use super::sections::Sections;

/// How to open a data directory.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// A missing or empty directory is refused instead of created.
    pub must_exist: bool,
    /// Wall time, milliseconds since the unix epoch.
    pub now_ms: u64,
    /// A random number: the new directory's identity when one is created.
    pub directory_id: u64,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The directory is new and empty.
    pub fresh: bool,
    /// Which start on this directory this is, from 1.
    pub incarnation: u64,
    /// Records read after the checkpoint.
    pub records: u64,
    /// Messages in them.
    pub messages_replayed: u64,
    /// Bytes of them.
    pub bytes_scanned: u64,
    /// Segments in the directory.
    pub segments: usize,
    /// Bytes behind the last whole record that were cut as a torn tail.
    pub torn_bytes: u64,
    /// Position of the checkpoint that was loaded.
    pub checkpoint: Option<Position>,
    /// Newer checkpoints that were damaged and passed over.
    pub checkpoints_damaged: usize,
    /// Wall time of the last record, milliseconds since the unix epoch.
    pub last_wall_ms: u64,
}

/// Reads an index block while replaying.
pub type ReadBlock<'a> = dyn FnMut(BlockSlot) -> Result<Box<[u32]>, String> + 'a;

/// Who rebuilds the state from the log. Errors are sentences and refuse the directory.
pub trait Replay {
    /// The state saved by the newest whole checkpoint; called at most once, before any entry.
    ///
    /// # Errors
    /// The payload makes no sense.
    fn restore(&mut self, payload: &[u8]) -> Result<(), String>;

    /// One entry, in log order. Pushes onto `freed` the positions of the messages that this entry
    /// frees, each once for every queue it was in (a message published to two queues is freed
    /// twice); the log takes them after each record.
    ///
    /// # Errors
    /// The entry does not fit the state.
    fn apply(
        &mut self,
        entry: &Entry<'_>,
        at: Place,
        blocks: &mut ReadBlock<'_>,
        freed: &mut Vec<Position>,
    ) -> Result<(), String>;
}

/// Something the background finished.
#[derive(Debug)]
pub enum Event {
    /// Every record up to this one is on stable storage.
    Durable(LogIndex),
    /// What was fetched at this position can be read now (or is known to be damaged).
    Fetched(Position),
    /// A block was read.
    BlockLoaded {
        /// Which.
        slot: BlockSlot,
        /// Its offsets, or a sentence on the damage.
        result: Result<Arc<[u32]>, String>,
    },
    /// A checkpoint is on stable storage.
    CheckpointDone,
    /// A compaction copied messages; each must now be relocated, and then `freed(old)` called (or
    /// `freed(new)` as well if it was settled meanwhile).
    Compacted {
        /// Queue, id, old and new place.
        moves: Vec<(QueueUid, MessageId, Position, Position)>,
        /// Messages whose bytes were found damaged; they stay where they are.
        damaged: Vec<(QueueUid, MessageId, Position)>,
    },
    /// There may be room again after [`Room::Waiting`], [`Room::NoSegment`] or [`Room::DiskFull`].
    Room,
    /// The log has failed; see [`super::Log::failure`]. Reported once.
    Failed,
}

/// Whether the log takes publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Plenty,
    /// Too much waits for the disk: take no more publishes for a moment.
    Waiting,
    /// The segment that the next publish would go to is still being made ready: ask again after
    /// [`Event::Room`]. Settles and releases go on.
    NoSegment,
    /// There is no disk space: refuse publishes; settles and releases go on in reserved space.
    DiskFull,
}

/// A body in memory.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// Lies in the log's memory.
    Slice(&'a [u8]),
    /// A large one that can be kept without copying it.
    Shared(Bytes),
}

impl Payload<'_> {
    /// The octets.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Payload::Slice(slice) => slice,
            Payload::Shared(bytes) => bytes,
        }
    }
}

/// A message as it is stored.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    /// Publish time, milliseconds since the unix epoch.
    pub time_ms: u64,
    /// Its sections.
    pub sections: Sections<'a>,
    /// Its body.
    pub body: Payload<'a>,
}

/// What [`super::Log::read`] finds.
#[derive(Clone, Debug)]
pub enum Read<'a> {
    /// The message is in memory.
    Resident(Stored<'a>),
    /// It is on disk only: [`super::Log::fetch`] it.
    Cold,
    /// Its bytes on disk are not what was written, or cannot be read: it must not be delivered.
    Damaged,
}

/// Counts since the log was opened, and sizes now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Segments that hold records of the log.
    pub segments: usize,
    /// Segments that hold compacted messages.
    pub segments_kept: usize,
    /// Segments prepared or free to be used again.
    pub segments_spare: usize,
    /// Bytes of records and compacted messages on disk.
    pub bytes: u64,
    /// Messages on disk that are not freed, counted once for each queue.
    pub messages_live: u64,
    /// Records sealed.
    pub records: u64,
    /// Bytes accepted by `write`.
    pub bytes_written: u64,
    /// Syncs finished.
    pub syncs: u64,
    /// Those of them that have waited until everybody whom the one before had answered was back.
    pub syncs_gathered: u64,
    /// Those of them that have waited for somebody who was not back in time.
    pub syncs_in_vain: u64,
    /// Sync times, microseconds from submission.
    pub sync_us: Histogram,
    /// Longest sync, microseconds.
    pub sync_us_max: u64,
    /// Windows read.
    pub reads: u64,
    /// Messages found damaged when read.
    pub damaged: u64,
    /// Bytes of closed segments that the scrub has verified.
    pub scrubbed_bytes: u64,
    /// Records that the scrub found damaged.
    pub scrub_damaged: u64,
    /// Checkpoints finished.
    pub checkpoints: u64,
    /// Compactions finished.
    pub compactions: u64,
}

/// What `ringmq check` counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckSummary {
    /// Segments read.
    pub segments: usize,
    /// Whole records.
    pub records: u64,
    /// Entries in them.
    pub entries: u64,
    /// Messages whose checksum was verified.
    pub messages: u64,
    /// Bytes that do not belong to a whole record behind the last one.
    pub torn_bytes: u64,
    /// Checkpoints that are whole.
    pub checkpoints: usize,
    /// Things that are wrong; each was printed.
    pub problems: usize,
}
