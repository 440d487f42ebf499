//! A data directory of one shard as a tool sees it: read, verified and replayed as at a start, and left as it is.

use std::collections::BTreeMap;

use super::Replay;
use super::blocks;
use super::disk::Disk;
use super::error::OpenError;
use super::manifest::{self, Manifest, SHARD};
use super::patient::Patient;
use super::place::{BlockSlot, Position, SegmentRange};
use super::recovery;
use super::segment::{Segment, SegmentName, SegmentTable};

/// What is known of a directory that was replayed.
#[derive(Debug)]
pub struct Survey<D> {
    disk: D,
    manifest: Manifest,
    table: SegmentTable,
    /// Checksums of the index blocks that the replayed state refers to.
    slots: BTreeMap<BlockSlot, u32>,
    wall_ms: u64,
    last_kept: u64,
}

/// A segment to copy from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From {
    pub name: SegmentName,
    /// Offset behind its last record.
    pub end: u64,
    pub base_ms: u64,
    /// What checksums in it start from.
    pub seed: u32,
}

impl<D: Disk> Survey<D> {
    /// Replays the directory into `replay`; `None` for one that nothing was ever written to.
    ///
    /// # Errors
    /// Those of opening it. Nothing is changed.
    pub fn read<R: Replay>(disk: D, replay: &mut R) -> Result<Option<Survey<D>>, OpenError> {
        let patient = Patient(&disk);
        let Some(manifest) = Manifest::load(&patient)? else {
            let root = patient
                .list("")
                .map_err(|error| OpenError::io("", "listing", error))?;
            manifest::expect_empty(&root)?;
            return Ok(None);
        };
        manifest.check(manifest.segment_bytes)?;
        if manifest.may_lack_shard() {
            let root = patient.list("");
            let root = root.map_err(|error| OpenError::io("", "listing", error))?;
            let has_shard = root.iter().any(|(name, _)| *name == format!("{SHARD}/"));
            if manifest.incarnation == 0 || !has_shard {
                // A start that died while it made the directory.
                return Ok(None);
            }
        }
        let seen = recovery::see(&patient, &manifest, replay)?;
        let newest = seen.whole.first();
        let slots = newest.map_or(&[][..], |newest| &newest.meta.slots);
        let slots = slots.iter().copied().collect();
        let (wall_ms, last_kept) = (seen.scan.wall_ms, seen.listing.last(true));
        let table = seen.scan.table;
        Ok(Some(Survey {
            manifest,
            table,
            slots,
            wall_ms,
            last_kept,
            disk,
        }))
    }

    /// The file operations.
    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    /// How often the directory was opened.
    pub fn incarnation(&self) -> u64 {
        self.manifest.incarnation
    }

    /// Positions that a segment covers, bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.manifest.segment_bytes
    }

    /// Wall time of the last record, milliseconds since the unix epoch; 0 without one.
    pub fn last_wall_ms(&self) -> u64 {
        self.wall_ms
    }

    /// The highest number of a kept segment; 0 without one.
    pub fn last_kept(&self) -> u64 {
        self.last_kept
    }

    /// The segments in which messages are live, kept ones first, by number, with an estimate of the bytes that
    /// are live in each.
    pub fn live_segments(&self) -> Vec<(SegmentRange, u64)> {
        let lists = [true, false].map(|kept| {
            let segments = self.table.of_kind(kept).iter();
            segments.map(move |segment| {
                (
                    SegmentName {
                        kept,
                        number: segment.number,
                    },
                    segment,
                )
            })
        });
        let segments = lists.into_iter().flatten();
        let live = segments.filter(|(_, segment)| segment.live > 0);
        live.map(|(name, segment)| (self.table.range(name), live_bytes(segment)))
            .collect()
    }

    /// The file of a segment, relative to the directory.
    pub fn file_of(&self, position: Position) -> String {
        self.table.name_of(position).path()
    }

    /// Where to copy from.
    ///
    /// # Panics
    /// If it is no segment of [`Survey::live_segments`].
    pub(crate) fn from(&self, range: SegmentRange) -> From {
        let name = self.table.name_of(range.start);
        let segment = self.table.get(name).expect("it was told to be there");
        From {
            name,
            end: segment.end,
            base_ms: segment.base_ms,
            seed: self.manifest.seed(),
        }
    }

    /// Reads an index block that the replayed state refers to.
    ///
    /// # Errors
    /// It is damaged or cannot be read.
    pub fn block(&self, slot: BlockSlot) -> Result<Vec<u32>, OpenError> {
        let offset = blocks::start_of(slot);
        let crc = self.slots.get(&slot).copied();
        let crc = crc.ok_or_else(|| {
            let what = "the newest checkpoint does not say that an index block is here";
            OpenError::corrupt(&blocks::path(), offset, what)
        })?;
        blocks::load(&Patient(&self.disk), self.manifest.seed(), slot, crc)
            .map_err(|error| OpenError::corrupt(&blocks::path(), offset, error.what))
    }
}

/// Bytes of what is live, if all messages are alike.
fn live_bytes(segment: &Segment) -> u64 {
    let live = u128::from(segment.live) * u128::from(segment.end);
    (live / u128::from(segment.messages.max(segment.live).max(1))) as u64
}
