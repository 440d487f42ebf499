//! Putting right what a crash left, once everything was verified. Each step can be interrupted and
//! done again: what is removed is first no longer needed, and what is replaced is first synced.

use super::checkpoint::Loaded;
use super::disk::Disk;
use super::error::{OpenError, is_no_space};
use super::manifest::{Manifest, SHARD, runs};
use super::place::Position;
use super::record;
use super::recovery::{Listing, Scan};
use super::rw::{StoreError, write_all_at, write_new_file};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentName};
use super::segment_reader::SegmentReader;
use crate::fault::{Fault, planted};

/// Puts on stable storage what was believed, and removes what was not. Returns what is free.
pub(crate) fn repair<D: Disk>(
    disk: &D,
    mut reader: SegmentReader<'_, D>,
    manifest: &mut Manifest,
    scan: &mut Scan,
    listing: &Listing,
    checkpoints: &[Loaded],
) -> Result<Vec<SegmentName>, OpenError> {
    // They were never needed, and their space may be.
    for name in &listing.unfinished {
        let file = format!("{SHARD}/{name}");
        super::rw::remove_if_there(disk, &file)
            .map_err(|error| OpenError::io(&file, "removing", error))?;
    }
    let last = scan.read.len() - 1;
    for (number, (name, end)) in scan.read.clone().into_iter().enumerate() {
        let Some(header) = scan.headers.get(&name).copied() else {
            continue;
        };
        let position = scan.table.range(name).start.0 + end;
        let is_settled = number < last && position <= scan.durable;
        if header.sealed_end == 0 && !is_settled && !planted(Fault::TailNotRewritten) {
            let bytes = rewrite(disk, &mut reader, manifest, name, &header, end)?;
            if let Some(segment) = scan.table.get_mut(name) {
                segment.file_bytes = bytes;
            }
        }
    }
    manifest.incarnation += 1;
    let mut free = Vec::new();
    let mut remove: Vec<String> = Vec::new();
    let ended = scan.table.name_of(Position(scan.end)).number;
    let kept_by = |name: &SegmentName| {
        let listed = |loaded: &Loaded| {
            loaded
                .meta
                .kept
                .iter()
                .any(|kept| kept.number == name.number)
        };
        checkpoints.iter().take(2).any(listed)
    };
    for (name, bytes) in &listing.segments {
        if scan.table.get(*name).is_some() || (name.kept && kept_by(name)) {
            continue;
        }
        let is_clean = !name.kept
            && (name.number < ended || !has_records(&mut reader, scan, manifest, *name, *bytes)?);
        if is_clean && *bytes == manifest.segment_bytes && free.len() < 2 {
            free.push(*name);
        } else {
            remove.push(name.path());
        }
    }
    // What is removed below must not be missed if this is interrupted.
    let oldest = checkpoints.get(1).or(checkpoints.first());
    let covered = oldest.map_or(0, |oldest| {
        oldest.meta.position.segment(manifest.segment_bytes)
    });
    let present = scan
        .table
        .of_kind(false)
        .iter()
        .filter(|segment| segment.present);
    manifest.segments = runs(
        present
            .map(|segment| segment.number)
            .filter(|number| *number >= covered),
    );
    manifest.store(disk)?;
    for file in &remove {
        super::rw::remove_if_there(disk, file)
            .map_err(|error| OpenError::io(file, "removing", error))?;
    }
    disk.sync_dir(SHARD)
        .map_err(|error| OpenError::io(SHARD, "syncing", error))?;
    Ok(free)
}

/// A segment behind the end of the log holds whole records, which were cut.
fn has_records<D: Disk>(
    reader: &mut SegmentReader<'_, D>,
    scan: &Scan,
    manifest: &Manifest,
    name: SegmentName,
    bytes: u64,
) -> Result<bool, OpenError> {
    let bytes = reader.load(name, bytes)?;
    let mut found = false;
    let start = scan.table.range(name).start.0;
    let epoch = scan.headers[&name].epoch;
    record::search(
        bytes,
        SEGMENT_HEADER_BYTES,
        manifest.seed(),
        start,
        epoch,
        |_| found = true,
    );
    Ok(found)
}

/// Copies the verified bytes of a segment to a new file that takes its place: what was read may
/// have been in the system's cache only. Returns the size of the file.
fn rewrite<D: Disk>(
    disk: &D,
    reader: &mut SegmentReader<'_, D>,
    manifest: &Manifest,
    name: SegmentName,
    header: &SegmentHeader,
    end: u64,
) -> Result<u64, OpenError> {
    let path = name.path();
    let bytes = reader.load(name, end)?;
    if (bytes.len() as u64) < end {
        let what = "the file has become shorter";
        return Err(OpenError::corrupt(&path, bytes.len() as u64, what));
    }
    let sealed = SegmentHeader {
        sealed_end: end,
        ..*header
    };
    let sealed = sealed.encode(manifest.directory_id, manifest.seed());
    let records = &bytes[SEGMENT_HEADER_BYTES..];
    match write_new_file(disk, &name.tmp_path(), &[&sealed, records]) {
        Ok(_) => {
            disk.rename(&name.tmp_path(), &path)
                .map_err(|error| OpenError::io(&path, "renaming", error))?;
            disk.sync_dir(SHARD)
                .map_err(|error| OpenError::io(SHARD, "syncing", error))?;
            Ok(end)
        }
        Err(StoreError {
            cause,
            is_sync: false,
            ..
        }) if is_no_space(&cause) => rewrite_in_place(disk, &path, records),
        Err(error) => Err(error.into()),
    }
}

/// On a full disk: writes the verified bytes over themselves, so that the sync takes them along.
fn rewrite_in_place<D: Disk>(disk: &D, path: &str, records: &[u8]) -> Result<u64, OpenError> {
    let failed = |error| OpenError::io(path, "writing", error);
    let file = disk.open(path).map_err(failed)?;
    write_all_at(disk, &file, SEGMENT_HEADER_BYTES as u64, records).map_err(failed)?;
    disk.sync(&file)
        .map_err(|error| OpenError::io(path, "syncing", error))?;
    disk.len(&file).map_err(failed)
}
