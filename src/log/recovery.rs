//! Opening a directory: list it, choose a checkpoint, replay what follows, repair what a crash left.
//!
//! Everything is verified before anything is changed; a refused directory is left as it was. Every
//! repair can be interrupted and done again.

use std::collections::BTreeMap;

use super::blocks::{self, Blocks};
use super::checkpoint::{self, Loaded, Unusable};
use super::disk::Disk;
use super::error::OpenError;
use super::manifest::{self, Manifest, SHARD};
use super::place::{LogIndex, Position};
use super::repair::repair;
use super::replay::Scanner;
use super::rw::read_up_to;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentName, SegmentTable};
use super::segment_reader::SegmentReader;
use super::upkeep::{Checkpoints, Kept};
use super::{OpenOptions, Recovered, Replay};

/// The files of the shard's directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Segments with their sizes, the log's first, by number.
    pub segments: BTreeMap<SegmentName, u64>,
    /// Positions of checkpoints, rising.
    pub checkpoints: Vec<Position>,
    /// Files that were being made, without the directory.
    pub unfinished: Vec<String>,
}

impl Listing {
    /// Lists the shard's directory.
    pub fn read<D: Disk>(disk: &D) -> Result<Listing, OpenError> {
        let mut listing = Listing::default();
        let files = disk
            .list(SHARD)
            .map_err(|error| OpenError::io(SHARD, "listing", error))?;
        for (name, bytes) in files {
            if let Some(segment) = SegmentName::parse(&name) {
                listing.segments.insert(segment, bytes);
            } else if let Some(position) = checkpoint::parse_name(&name) {
                listing.checkpoints.push(position);
            } else if name.ends_with(".tmp") {
                listing.unfinished.push(name);
            }
        }
        listing.checkpoints.sort();
        Ok(listing)
    }

    /// The highest number of a segment of that kind.
    pub fn last(&self, kept: bool) -> u64 {
        let names = self.segments.keys().filter(|name| name.kept == kept);
        names.map(|name| name.number).max().unwrap_or(0)
    }
}

/// What was found out without changing anything.
pub(crate) struct Scan {
    /// Segments' headers.
    pub headers: BTreeMap<SegmentName, SegmentHeader>,
    pub table: SegmentTable,
    /// Index, checksum, wall time and end of the last record.
    pub index: LogIndex,
    pub chain: u32,
    pub wall_ms: u64,
    pub end: u64,
    /// The highest durable point that was claimed.
    pub durable: u64,
    /// The segments read, with the offset where their records end.
    pub read: Vec<(SegmentName, u64)>,
    pub recovered: Recovered,
}

/// Reads and verifies the headers of all segments.
pub(crate) fn read_headers<D: Disk>(
    disk: &D,
    listing: &Listing,
    manifest: &Manifest,
) -> Result<BTreeMap<SegmentName, SegmentHeader>, OpenError> {
    let seed = manifest.seed();
    let mut headers = BTreeMap::new();
    for (name, size) in &listing.segments {
        let path = name.path();
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let file = disk
            .open(&path)
            .map_err(|error| OpenError::io(&path, "opening", error))?;
        let filled = read_up_to(disk, &file, 0, &mut bytes)
            .map_err(|error| OpenError::io(&path, "reading", error))?;
        if filled < SEGMENT_HEADER_BYTES && !name.kept {
            // Cut to less than its header: nothing in it can be read, which is judged later.
            headers.insert(*name, SegmentHeader::unreadable(name));
            continue;
        }
        let header = SegmentHeader::parse(&bytes[..filled], name, manifest.directory_id, seed)?;
        if header.sealed_end > *size {
            let what = format!(
                "the file ends here, and it had {} bytes when it was closed",
                header.sealed_end
            );
            return Err(OpenError::corrupt(&path, *size, what));
        }
        headers.insert(*name, header);
    }
    Ok(headers)
}

/// Every segment that the manifest lists behind the one where replay begins must be there: the log
/// was or may have been continued in it.
pub(crate) fn expect_listed_segments(
    listing: &Listing,
    manifest: &Manifest,
    from: u64,
) -> Result<(), OpenError> {
    for (first, last) in &manifest.segments {
        for number in (*first).max(from + 1)..=*last {
            let name = SegmentName::log(number);
            if !listing.segments.contains_key(&name) {
                let what = "the file is missing; MANIFEST says that the log may go on in it";
                return Err(OpenError::corrupt(&name.path(), 0, what));
            }
        }
    }
    Ok(())
}

/// The checkpoints of a directory.
#[derive(Debug, Default)]
pub(crate) struct FoundCheckpoints {
    /// Those that are whole, newest first; only the newest has its payload.
    pub whole: Vec<Loaded>,
    /// Positions of the others, and what is wrong with each.
    pub damaged: Vec<(Position, String)>,
}

/// Reads and verifies all checkpoints.
pub(crate) fn load_checkpoints<D: Disk>(
    disk: &D,
    listing: &Listing,
    manifest: &Manifest,
) -> Result<FoundCheckpoints, OpenError> {
    let mut found = FoundCheckpoints::default();
    for position in listing.checkpoints.iter().rev() {
        match checkpoint::load(disk, *position, manifest.directory_id, manifest.seed()) {
            Ok(mut loaded) => {
                if !found.whole.is_empty() {
                    loaded.forget_payload();
                }
                found.whole.push(loaded);
            }
            Err(Unusable::Damaged(what)) => found.damaged.push((*position, what)),
            Err(Unusable::Refused(error)) => return Err(error),
        }
    }
    Ok(found)
}

/// What opening gives to the log.
pub(crate) struct Opened {
    pub manifest: Manifest,
    pub scan: Scan,
    pub blocks: Blocks,
    pub checkpoints: Checkpoints,
    /// Segments of full size that hold nothing.
    pub free: Vec<SegmentName>,
    /// Numbers above all that exist.
    pub next_segment: u64,
    pub next_kept: u64,
    pub recovered: Recovered,
}

/// What the manifest was found as.
enum Found {
    /// It was made, with the directory of the shard, for this start.
    Made,
    /// A start that never served made it.
    Unused,
    /// The directory was in use.
    Used,
}

/// The manifest, and how it was found. Makes it and the shard's directory if there is nothing yet.
fn open_manifest<D: Disk>(
    disk: &D,
    segment_bytes: u64,
    options: &OpenOptions,
) -> Result<(Manifest, Found), OpenError> {
    let root = disk
        .list("")
        .map_err(|error| OpenError::io("", "listing", error))?;
    let loaded = Manifest::load(disk)?;
    let mut found = match &loaded {
        None => Found::Made,
        Some(manifest) if manifest.incarnation == 0 => Found::Unused,
        Some(_) => Found::Used,
    };
    let manifest = match loaded {
        Some(manifest) => manifest,
        None => {
            manifest::expect_empty(&root)?;
            if options.must_exist {
                return Err(OpenError::Missing);
            }
            let manifest = Manifest {
                directory_id: options.directory_id,
                shards: 1,
                segment_bytes,
                // This start's: nothing else of the manifest changes before the first segment is ready.
                incarnation: 1,
                segments: Vec::new(),
            };
            manifest.store(disk)?;
            manifest
        }
    };
    manifest.check(segment_bytes)?;
    let has_shard = root.iter().any(|(name, _)| name == &format!("{SHARD}/"));
    if !has_shard && !manifest.may_lack_shard() {
        return Err(OpenError::corrupt(SHARD, 0, "the directory is missing"));
    }
    let sync_names = || {
        disk.sync_dir("")
            .map_err(|error| OpenError::io("", "syncing", error))
    };
    let is_made = matches!(found, Found::Made);
    if manifest.may_lack_shard() && !is_made {
        // A start that died may have named the manifest and the shard's directory and synced neither. If power failed
        // now, either could stay without the other: the directory would look like another's, or like one that was used.
        sync_names()?;
    }
    if !has_shard {
        disk.create_dir(SHARD)
            .map_err(|error| OpenError::io(SHARD, "making", error))?;
        if !is_made {
            found = Found::Unused;
            sync_names()?;
        }
        // Otherwise nobody waits for that: it is synced before the first segment is used.
    }
    Ok((manifest, found))
}

/// Makes a directory that was opened so many times.
pub(crate) fn create<D: Disk>(
    disk: &D,
    segment_bytes: u64,
    directory_id: u64,
    incarnation: u64,
) -> Result<(), OpenError> {
    disk.create_dir(SHARD)
        .map_err(|error| OpenError::io(SHARD, "making", error))?;
    let manifest = Manifest {
        directory_id,
        shards: 1,
        segment_bytes,
        incarnation,
        segments: Vec::new(),
    };
    // This syncs the entries of both.
    manifest.store(disk)?;
    Ok(())
}

/// What a directory holds: read, verified and replayed.
pub(crate) struct Seen<'d, D: Disk> {
    pub listing: Listing,
    pub scan: Scan,
    /// Whole checkpoints, newest first.
    pub whole: Vec<Loaded>,
    /// Positions of those that are not.
    pub damaged: Vec<Position>,
    pub reader: SegmentReader<'d, D>,
}

/// Reads, verifies and replays the directory of that manifest. Changes nothing.
pub(crate) fn see<'d, D: Disk, R: Replay>(
    disk: &'d D,
    manifest: &Manifest,
    replay: &mut R,
) -> Result<Seen<'d, D>, OpenError> {
    let listing = Listing::read(disk)?;
    let headers = read_headers(disk, &listing, manifest)?;
    let FoundCheckpoints { mut whole, damaged } = load_checkpoints(disk, &listing, manifest)?;
    for (_, what) in &damaged {
        ::log::warn!("{what}; an older checkpoint is used");
    }
    let mut scan = new_scan(manifest, &listing, headers, whole.first())?;
    scan.recovered.checkpoints_damaged = damaged.len();
    if let Some(newest) = whole.first() {
        expect_blocks(disk, newest)?;
    }
    let from = Position(scan.end).segment(manifest.segment_bytes);
    expect_listed_segments(&listing, manifest, from)?;
    if let Some(newest) = whole.first_mut() {
        replay
            .restore(newest.payload())
            .map_err(|what| OpenError::Replay {
                file: checkpoint::path(newest.meta.position),
                offset: 0,
                what,
            })?;
        newest.forget_payload();
    }
    let newest = whole.first();
    let slots = newest.map_or(&[][..], |newest| &newest.meta.slots);
    let mut reader = SegmentReader::new(disk);
    let mut scanner = Scanner::new(disk, &listing, manifest, slots, replay, scan);
    scanner.run(&mut reader)?;
    let scan = scanner.scan;
    expect_live_segments(&scan.table)?;
    Ok(Seen {
        listing,
        scan,
        whole,
        damaged: damaged.into_iter().map(|(position, _)| position).collect(),
        reader,
    })
}

/// Opens a directory: finds or makes the manifest, replays, repairs.
pub(crate) fn open<D: Disk, R: Replay>(
    disk: &D,
    segment_bytes: u64,
    options: &OpenOptions,
    replay: &mut R,
) -> Result<Opened, OpenError> {
    let (mut manifest, found) = open_manifest(disk, segment_bytes, options)?;
    let Seen {
        listing,
        mut scan,
        whole,
        damaged,
        reader,
    } = see(disk, &manifest, replay)?;
    scan.recovered.fresh = !matches!(found, Found::Used);
    let newest = whole.first();
    let slots = newest.map_or(&[][..], |newest| &newest.meta.slots);

    let kept: Vec<Kept> = (whole.iter().take(2).rev())
        .zip(3 - whole.len().min(2) as u64..)
        .map(|(loaded, number)| Kept {
            number,
            position: loaded.meta.position,
        })
        .collect();
    let other = whole.iter().skip(2).map(|loaded| loaded.meta.position);
    let stale = other.chain(damaged).collect();
    let older = whole.get(1).map_or(&[][..], |older| &older.meta.slots);
    let blocks = Blocks::recover(slots, older, 2);
    let listed = manifest.segments.last().map_or(0, |(_, last)| *last);
    let next_segment = listing.last(false).max(listed) + 1;
    let next_kept = listing.last(true) + 1;

    let free = match found {
        // Nothing can need repair, and the manifest counts this start already.
        Found::Made => Vec::new(),
        _ => repair(disk, reader, &mut manifest, &mut scan, &listing, &whole)?,
    };
    scan.table.set_emptied(scan.index);
    scan.recovered.incarnation = manifest.incarnation;
    scan.recovered.last_wall_ms = scan.wall_ms;
    scan.recovered.checkpoint = newest.map(|newest| newest.meta.position);
    scan.recovered.segments = scan.table.of_kind(false).len() + scan.table.of_kind(true).len();
    let recovered = scan.recovered.clone();
    Ok(Opened {
        manifest,
        scan,
        blocks,
        checkpoints: Checkpoints::new(kept, stale),
        free,
        next_segment,
        next_kept,
        recovered,
    })
}

/// The state at the newest checkpoint, or at the very beginning.
fn new_scan(
    manifest: &Manifest,
    listing: &Listing,
    headers: BTreeMap<SegmentName, SegmentHeader>,
    newest: Option<&Loaded>,
) -> Result<Scan, OpenError> {
    let mut table = SegmentTable::new(manifest.segment_bytes);
    let mut scan = Scan {
        headers,
        index: LogIndex(0),
        chain: 0,
        wall_ms: 0,
        end: 0,
        durable: 0,
        read: Vec::new(),
        recovered: Recovered::default(),
        table: SegmentTable::new(manifest.segment_bytes),
    };
    if let Some(Loaded { meta, .. }) = newest {
        for (kept, list) in [(false, &meta.segments), (true, &meta.kept)] {
            for listed in list {
                let name = SegmentName {
                    kept,
                    number: listed.number,
                };
                let mut segment = listed.restore();
                if let Some(bytes) = listing.segments.get(&name) {
                    let epoch = scan.headers[&name].epoch;
                    if epoch != segment.epoch && *bytes >= SEGMENT_HEADER_BYTES as u64 {
                        let what = format!(
                            "the segment has epoch {epoch:#x} and the checkpoint says {:#x}: it is an older or newer copy",
                            segment.epoch
                        );
                        return Err(OpenError::corrupt(&name.path(), 32, what));
                    }
                    segment.present = true;
                    segment.file_bytes = *bytes;
                }
                table.insert(kept, segment);
            }
        }
        scan.index = meta.index;
        scan.chain = meta.chain;
        scan.wall_ms = meta.wall_ms;
        scan.end = meta.position.0;
        scan.durable = meta.durable;
    }
    scan.table = table;
    Ok(scan)
}

/// The file of index blocks must be there, as long as the checkpoint's blocks need it.
fn expect_blocks<D: Disk>(disk: &D, checkpoint: &Loaded) -> Result<(), OpenError> {
    let Some(end) = checkpoint
        .meta
        .slots
        .iter()
        .map(|(slot, _)| blocks::start_of(*slot))
        .max()
    else {
        return Ok(());
    };
    let path = blocks::path();
    let length = match disk.open(&path) {
        Ok(file) => disk
            .len(&file)
            .map_err(|error| OpenError::io(&path, "reading", error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(OpenError::io(&path, "opening", error)),
    };
    if length <= end {
        let what =
            "the file is missing or ends here, and index blocks of the checkpoint are behind";
        return Err(OpenError::corrupt(&path, length, what));
    }
    Ok(())
}

/// Every segment with something live in it must be there, as long as it was.
fn expect_live_segments(table: &SegmentTable) -> Result<(), OpenError> {
    for (name, segment) in table.iter().filter(|(_, segment)| segment.live > 0) {
        if !segment.present {
            let what = format!(
                "the file is missing and {} messages that are not settled are in it",
                segment.live
            );
            return Err(OpenError::corrupt(&name.path(), 0, what));
        }
        if segment.file_bytes < segment.end {
            let what = format!(
                "the file ends here, its records end at {}, and {} messages that are not settled are in it",
                segment.end, segment.live
            );
            return Err(OpenError::corrupt(&name.path(), segment.file_bytes, what));
        }
    }
    Ok(())
}
