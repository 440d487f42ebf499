//! Making a segment ready: its file has its full size and its header on stable storage before the
//! first record is written to it.
//!
//! Written ahead, because syncing a file whose size and blocks do not change costs about half.

use super::disk::Disk;
use super::error::is_no_space;
use super::manifest::{Manifest, SHARD};
use super::rw::{StoreError, remove_if_there, write_all_at};
use super::segment::{SegmentHeader, SegmentName};

/// The smallest segment that is worth making.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 1 << 20;
const STEP_BYTES: usize = 1 << 20;

/// Which segment to make, and how.
#[derive(Clone, Debug)]
pub(crate) struct Preparation {
    /// Its number.
    pub number: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Its base time.
    pub base_ms: u64,
    /// The size wanted; halved while there is no space.
    pub bytes: u64,
    /// The least size that will do.
    pub bytes_min: u64,
    /// A file of the size wanted that nobody needs any more.
    pub recycle: Option<SegmentName>,
    /// The manifest that says this segment exists.
    pub manifest: Manifest,
}

impl Preparation {
    /// Nothing was ever made ready in this directory.
    fn is_first(&self) -> bool {
        let only = [(self.number, self.number)];
        self.manifest.incarnation == 1 && self.manifest.segments == only
    }
}

/// A segment that is ready.
pub(crate) struct Prepared<F> {
    /// Its size.
    pub bytes: u64,
    /// Its file.
    pub file: F,
}

/// Makes a segment ready. The file appears under its name only when it is.
pub(crate) fn prepare<D: Disk>(
    disk: &D,
    want: &Preparation,
) -> Result<Prepared<D::File>, StoreError> {
    let name = SegmentName::log(want.number);
    let (path, tmp) = (name.path(), name.tmp_path());
    let write = |error| StoreError::write(&path, error);
    let header = SegmentHeader {
        kept: false,
        recycled: want.recycle.is_some(),
        number: want.number,
        epoch: want.epoch,
        base_ms: want.base_ms,
        sealed_end: 0,
    };
    let header = header.encode(want.manifest.directory_id, want.manifest.seed());
    if want.is_first() {
        // The name of the shard's directory may be new: it is there for good before anything in it is.
        disk.sync_dir("")
            .map_err(|error| StoreError::sync("", error))?;
    }
    let (file, bytes) = match &want.recycle {
        Some(old) => {
            disk.rename(&old.path(), &tmp).map_err(write)?;
            // The old name must be gone before the file says that it is another segment.
            disk.sync_dir(SHARD)
                .map_err(|error| StoreError::sync(SHARD, error))?;
            (disk.open(&tmp).map_err(write)?, want.bytes)
        }
        None => zeroed(disk, &tmp, want).map_err(write)?,
    };
    write_all_at(disk, &file, 0, &header).map_err(write)?;
    disk.sync(&file)
        .map_err(|error| StoreError::sync(&path, error))?;
    disk.rename(&tmp, &path).map_err(write)?;
    disk.sync_dir(SHARD)
        .map_err(|error| StoreError::sync(SHARD, error))?;
    if let Err(error) = want.manifest.store(disk) {
        if !error.is_sync {
            // No manifest speaks of it yet, and its space may be what was missing.
            let _ = disk.remove(&path);
        }
        return Err(error);
    }
    Ok(Prepared { bytes, file })
}

/// A new file full of zeroes, as large as there is space for.
fn zeroed<D: Disk>(disk: &D, tmp: &str, want: &Preparation) -> std::io::Result<(D::File, u64)> {
    let least = want.bytes_min.max(SEGMENT_BYTES_MIN.min(want.bytes));
    let mut bytes = want.bytes;
    loop {
        remove_if_there(disk, tmp)?;
        let file = disk.create(tmp)?;
        match fill(disk, &file, bytes) {
            Ok(()) => return Ok((file, bytes)),
            Err(error) if is_no_space(&error) && bytes > least => bytes = (bytes / 2).max(least),
            Err(error) => {
                let _ = disk.remove(tmp);
                return Err(error);
            }
        }
    }
}

fn fill<D: Disk>(disk: &D, file: &D::File, bytes: u64) -> std::io::Result<()> {
    let zeroes = vec![0; STEP_BYTES.min(bytes as usize)];
    let mut offset = 0;
    while offset < bytes {
        let step = zeroes.len().min((bytes - offset) as usize);
        write_all_at(disk, file, offset, &zeroes[..step])?;
        offset += step as u64;
    }
    Ok(())
}
