//! Work done away from the event loop.
//!
//! A job owns all it needs and goes to the disk only through [`Disk`], so that it runs on a thread
//! in production and in the simulator's own order there. It knows nothing of the log's state.

use std::fmt;
use std::sync::Arc;

use super::again::ReadError;
use super::blocks::{self, PendingBlock};
use super::checkpoint;
use super::compaction::{self, Compacted, Compaction};
use super::disk::Disk;
use super::error::LogError;
use super::manifest::{self, Manifest, SHARD};
use super::patient::Patient;
use super::place::{BlockSlot, LogIndex, Position};
use super::prepare::{self, Preparation, Prepared};
use super::rw::{JobError, StoreError, read_file, read_up_to, write_all_at, write_new_file};
use super::scrub::{self, Piece, Verified};
use super::segment::SegmentName;
use super::syncs::Ticket;

/// Which background thread does a job; lanes never wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// `fdatasync` of the log's tail, and nothing else.
    Sync,
    /// Reads of cold data.
    Read,
    /// Preparing segments, writing checkpoints and index blocks, compaction.
    Background,
}

/// One job, made by the log and only passed on by the storage.
pub struct Job<F> {
    pub(crate) work: Work<F>,
}

/// One finished job, to be handed back by [`super::disk::Storage::poll`].
pub struct Done<F> {
    pub(crate) outcome: Outcome<F>,
}

/// What is to be done.
pub(crate) enum Work<F> {
    /// Sync the files of these segments of the log, which hold what the ticket says.
    Sync {
        ticket: Arc<Ticket>,
        files: Vec<(u64, F)>,
    },
    /// Read a window.
    Read {
        start: Position,
        file: String,
        offset: u64,
        bytes: usize,
    },
    /// Read an index block.
    LoadBlock {
        slot: BlockSlot,
        crc: u32,
        seed: u32,
    },
    /// See whether the directory is still ours.
    Watch { directory_id: u64, incarnation: u64 },
    /// Verify old records.
    Scrub(Piece),
    /// Make a segment ready.
    Prepare(Preparation),
    /// Write index blocks.
    WriteBlocks {
        last: u64,
        blocks: Vec<PendingBlock>,
    },
    /// Write a checkpoint, whose log part is encoded in `head`, and remove older ones.
    Checkpoint {
        position: Position,
        head: Vec<u8>,
        payload: Vec<u8>,
        sync_blocks: bool,
        remove: Vec<String>,
    },
    /// Copy live messages to kept segments.
    Compact(Compaction),
    /// Remove files that nobody needs.
    Remove { files: Vec<String> },
}

/// What was done.
pub(crate) enum Outcome<F> {
    Synced {
        upto: LogIndex,
        result: Result<(), LogError>,
    },
    Read {
        start: Position,
        bytes: usize,
        result: Result<Vec<u8>, ReadError>,
    },
    BlockLoaded {
        slot: BlockSlot,
        crc: u32,
        result: Result<Vec<u32>, ReadError>,
    },
    Watched {
        result: Result<(), LogError>,
    },
    Scrubbed {
        piece: Piece,
        result: Result<Verified, String>,
    },
    Prepared {
        number: u64,
        result: Result<Prepared<F>, JobError>,
    },
    BlocksWritten {
        last: u64,
        result: Result<(), JobError>,
    },
    Checkpointed {
        result: Result<(), JobError>,
    },
    Compacted {
        result: Result<Compacted, JobError>,
    },
    Removed {
        result: Result<(), JobError>,
    },
}

impl<F> Work<F> {
    fn name(&self) -> &'static str {
        match self {
            Work::Sync { .. } => "sync",
            Work::Read { .. } => "read",
            Work::LoadBlock { .. } => "load block",
            Work::Watch { .. } => "watch",
            Work::Scrub(_) => "scrub",
            Work::Prepare(_) => "prepare",
            Work::WriteBlocks { .. } => "write blocks",
            Work::Checkpoint { .. } => "checkpoint",
            Work::Compact(_) => "compact",
            Work::Remove { .. } => "remove",
        }
    }
}

impl<F> Job<F> {
    /// Where to do it.
    pub fn lane(&self) -> Lane {
        match self.work {
            Work::Sync { .. } => Lane::Sync,
            Work::Read { .. } | Work::LoadBlock { .. } | Work::Watch { .. } | Work::Scrub(_) => {
                Lane::Read
            }
            Work::Prepare(_)
            | Work::WriteBlocks { .. }
            | Work::Checkpoint { .. }
            | Work::Compact(_)
            | Work::Remove { .. } => Lane::Background,
        }
    }
}

impl<F> fmt::Debug for Job<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").field(&self.work.name()).finish()
    }
}

impl<F> fmt::Debug for Done<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, is_ok) = match &self.outcome {
            Outcome::Synced { result, .. } => ("sync", result.is_ok()),
            Outcome::Read { result, .. } => ("read", result.is_ok()),
            Outcome::BlockLoaded { result, .. } => ("load block", result.is_ok()),
            Outcome::Watched { result } => ("watch", result.is_ok()),
            Outcome::Scrubbed { result, .. } => ("scrub", result.is_ok()),
            Outcome::Prepared { result, .. } => ("prepare", result.is_ok()),
            Outcome::BlocksWritten { result, .. } => ("write blocks", result.is_ok()),
            Outcome::Checkpointed { result } => ("checkpoint", result.is_ok()),
            Outcome::Compacted { result } => ("compact", result.is_ok()),
            Outcome::Removed { result } => ("remove", result.is_ok()),
        };
        f.debug_struct("Done")
            .field("job", &name)
            .field("ok", &is_ok)
            .finish()
    }
}

/// Does one job. Runs on the lane's thread; every step goes through `disk`.
pub fn perform<D: Disk>(disk: &D, job: Job<D::File>) -> Done<D::File> {
    let disk = &Patient(disk);
    let failed = |error: StoreError| error.into_job_error();
    let outcome = match job.work {
        Work::Sync { ticket, files } => {
            let (upto, may_begin) = ticket.take();
            let result = match may_begin {
                true => sync(disk, &files),
                false => Err(LogError::Sync {
                    file: SHARD.to_owned(),
                    cause: "the sync before has failed".to_owned(),
                }),
            };
            if result.is_err() {
                ticket.fail();
            }
            Outcome::Synced { upto, result }
        }
        Work::Read {
            start,
            file,
            offset,
            bytes,
        } => Outcome::Read {
            start,
            bytes,
            result: read(disk, &file, offset, bytes),
        },
        Work::LoadBlock { slot, crc, seed } => Outcome::BlockLoaded {
            slot,
            crc,
            result: blocks::load(disk, seed, slot, crc),
        },
        Work::Watch {
            directory_id,
            incarnation,
        } => Outcome::Watched {
            result: watch(disk, directory_id, incarnation),
        },
        Work::Scrub(piece) => Outcome::Scrubbed {
            result: scrub::perform(disk, &piece).map_err(|error| error.to_string()),
            piece,
        },
        Work::Prepare(preparation) => Outcome::Prepared {
            number: preparation.number,
            result: prepare::prepare(disk, &preparation).map_err(failed),
        },
        Work::WriteBlocks { last, blocks } => Outcome::BlocksWritten {
            last,
            result: write_blocks(disk, &blocks).map_err(failed),
        },
        Work::Checkpoint {
            position,
            head,
            payload,
            sync_blocks,
            remove,
        } => Outcome::Checkpointed {
            result: write_checkpoint(disk, position, &head, &payload, sync_blocks, &remove)
                .map_err(failed),
        },
        Work::Compact(compaction) => Outcome::Compacted {
            result: compaction::perform(disk, compaction).map_err(failed),
        },
        Work::Remove { files } => Outcome::Removed {
            result: remove(disk, &files).map_err(failed),
        },
    };
    Done { outcome }
}

fn sync<D: Disk>(disk: &D, files: &[(u64, D::File)]) -> Result<(), LogError> {
    if crate::fault::planted(crate::fault::Fault::SyncSkipped) {
        return Ok(());
    }
    for (number, file) in files {
        disk.sync(file).map_err(|error| LogError::Sync {
            file: SegmentName::log(*number).path(),
            cause: error.to_string(),
        })?;
    }
    Ok(())
}

fn read<D: Disk>(disk: &D, file: &str, offset: u64, count: usize) -> Result<Vec<u8>, ReadError> {
    let failed = |error: std::io::Error| ReadError::io(file, offset, &error);
    let handle = disk.open(file).map_err(failed)?;
    let mut bytes = vec![0; count];
    let filled = read_up_to(disk, &handle, offset, &mut bytes).map_err(failed)?;
    bytes.truncate(filled);
    Ok(bytes)
}

/// The manifest is still there and says the directory is ours. Its segments change all the time.
fn watch<D: Disk>(disk: &D, directory_id: u64, incarnation: u64) -> Result<(), LogError> {
    let gone = |cause: String| Err(LogError::Gone { cause });
    let text = match read_file(disk, manifest::FILE, manifest::BYTES_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return gone(format!("{} is gone", manifest::FILE));
        }
        // Not being able to look says nothing.
        Err(_) => return Ok(()),
    };
    match Manifest::decode(&text) {
        Ok(found) if found.directory_id != directory_id => {
            gone(format!("{} is that of another directory", manifest::FILE))
        }
        Ok(found) if found.incarnation != incarnation => {
            gone("another process has opened it".to_owned())
        }
        Ok(_) => Ok(()),
        Err(what) => gone(format!("{}: {what}", manifest::FILE)),
    }
}

fn write_blocks<D: Disk>(disk: &D, blocks: &[PendingBlock]) -> Result<(), StoreError> {
    let path = blocks::path();
    let write = |error| StoreError::write(&path, error);
    let file = match disk.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            disk.create(&path).map_err(write)?
        }
        Err(error) => return Err(write(error)),
    };
    for block in blocks {
        write_all_at(disk, &file, blocks::start_of(block.slot), &block.image).map_err(write)?;
    }
    Ok(())
}

fn write_checkpoint<D: Disk>(
    disk: &D,
    position: Position,
    head: &[u8],
    payload: &[u8],
    sync_blocks: bool,
    remove: &[String],
) -> Result<(), StoreError> {
    if sync_blocks {
        let path = blocks::path();
        let file = disk
            .open(&path)
            .map_err(|error| StoreError::write(&path, error))?;
        disk.sync(&file)
            .map_err(|error| StoreError::sync(&path, error))?;
    }
    let path = checkpoint::path(position);
    let tmp = path.clone() + ".tmp";
    write_new_file(disk, &tmp, &[head, payload])?;
    disk.rename(&tmp, &path)
        .map_err(|error| StoreError::write(&path, error))?;
    disk.sync_dir(SHARD)
        .map_err(|error| StoreError::sync(SHARD, error))?;
    for old in remove {
        super::rw::remove_if_there(disk, old).map_err(|error| StoreError::write(old, error))?;
    }
    Ok(())
}

fn remove<D: Disk>(disk: &D, files: &[String]) -> Result<(), StoreError> {
    for file in files {
        super::rw::remove_if_there(disk, file).map_err(|error| StoreError::write(file, error))?;
    }
    disk.sync_dir(SHARD)
        .map_err(|error| StoreError::sync(SHARD, error))
}
