//! Whole reads and writes out of the single operations of a [`Disk`]: loops around short ones.

use std::io;

use super::disk::Disk;
use super::error::{LogError, OpenError, is_no_space};

/// Reads are done in pieces of this size.
const PIECE_BYTES: usize = 4 << 20;

/// A file could not be stored.
#[derive(Debug)]
pub(crate) struct StoreError {
    /// File or directory.
    pub file: String,
    /// It was a sync that failed.
    pub is_sync: bool,
    /// The system's words.
    pub cause: io::Error,
}

impl StoreError {
    /// A failed write, rename or creation.
    pub fn write(file: &str, cause: io::Error) -> StoreError {
        StoreError {
            file: file.to_owned(),
            is_sync: false,
            cause,
        }
    }

    /// A failed sync.
    pub fn sync(file: &str, cause: io::Error) -> StoreError {
        StoreError {
            file: file.to_owned(),
            is_sync: true,
            cause,
        }
    }
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> OpenError {
        let doing = if error.is_sync { "syncing" } else { "writing" };
        OpenError::io(&error.file, doing, error.cause)
    }
}

impl StoreError {
    /// What it means for a log that is open.
    pub fn into_job_error(self) -> JobError {
        let file = if self.file.is_empty() {
            "the data directory".to_owned()
        } else {
            self.file
        };
        let cause = self.cause.to_string();
        if self.is_sync {
            JobError::Failed(LogError::Sync { file, cause })
        } else if is_no_space(&self.cause) {
            JobError::NoSpace
        } else {
            JobError::Failed(LogError::Write { file, cause })
        }
    }
}

/// Why a job did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JobError {
    /// There is no space (or no file descriptor) at the moment; nothing was left behind.
    NoSpace,
    /// The disk has failed for good.
    Failed(LogError),
}

/// Writes all of `bytes` at an offset.
pub(crate) fn write_all_at<D: Disk>(
    disk: &D,
    file: &D::File,
    mut offset: u64,
    mut bytes: &[u8],
) -> io::Result<()> {
    while !bytes.is_empty() {
        match disk.write_at(file, offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                bytes = &bytes[count..];
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `into` from an offset on as far as the file goes; returns how much that was.
pub(crate) fn read_up_to<D: Disk>(
    disk: &D,
    file: &D::File,
    offset: u64,
    into: &mut [u8],
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        let end = into.len().min(filled + PIECE_BYTES);
        match disk.read_at(file, offset + filled as u64, &mut into[filled..end]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The whole file.
pub(crate) fn read_whole<D: Disk>(disk: &D, file: &D::File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(disk.len(file)?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; length];
    let filled = read_up_to(disk, file, 0, &mut bytes)?;
    bytes.truncate(filled);
    Ok(bytes)
}

/// The file of a path, of which at most `bytes_max` are read.
pub(crate) fn read_file<D: Disk>(disk: &D, path: &str, bytes_max: usize) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let mut bytes = vec![
        0;
        usize::try_from(disk.len(&file)?)
            .map_or(bytes_max, |length| length.min(bytes_max))
    ];
    let filled = read_up_to(disk, &file, 0, &mut bytes)?;
    bytes.truncate(filled);
    Ok(bytes)
}

/// Removes a file if it is there.
pub(crate) fn remove_if_there<D: Disk>(disk: &D, path: &str) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a file anew with these contents and syncs it, but not its directory.
pub(crate) fn write_new_file<D: Disk>(
    disk: &D,
    path: &str,
    parts: &[&[u8]],
) -> Result<D::File, StoreError> {
    let write = |error| StoreError::write(path, error);
    remove_if_there(disk, path).map_err(write)?;
    let file = disk.create(path).map_err(write)?;
    let mut offset = 0;
    for part in parts {
        if let Err(error) = write_all_at(disk, &file, offset, part) {
            // Half a file is of no use and takes the space that was missing.
            let _ = disk.remove(path);
            return Err(write(error));
        }
        offset += part.len() as u64;
    }
    disk.sync(&file)
        .map_err(|error| StoreError::sync(path, error))?;
    Ok(file)
}
