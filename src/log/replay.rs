//! Reading the log from the checkpoint on, to its end: every record is verified and handed to the
//! broker, and what lies behind the end is judged. Changes nothing on the disk.

use std::collections::BTreeMap;

use super::Replay;
use super::blocks;
use super::disk::Disk;
use super::entry::{Entries, Entry, EntryError, Scratch};
use super::error::OpenError;
use super::manifest::Manifest;
use super::place::{BlockSlot, LogIndex, Place, Position};
use super::record::{self, Header, NoRecord};
use super::recovery::{Listing, Scan};
use super::segment::{SEGMENT_HEADER_BYTES, Segment, SegmentHeader, SegmentName};
use super::segment_reader::SegmentReader;
use crate::fault::{Fault, planted};

/// What is found behind the place where the log stops.
struct Evidence {
    /// The record with the highest durable point behind that place.
    claim: Option<Header>,
    /// The lowest number of a whole record.
    lowest: u64,
    torn_bytes: u64,
    /// Whole or damaged records were found.
    found_any: bool,
    /// Where the missing record should be.
    place: (SegmentName, u64),
}

/// Replays the log into `replay`. Changes nothing on the disk.
pub(crate) struct Scanner<'a, D: Disk, R: Replay> {
    disk: &'a D,
    listing: &'a Listing,
    segment_bytes: u64,
    seed: u32,
    /// Checksums of the index blocks of the checkpoint.
    slots: BTreeMap<BlockSlot, u32>,
    replay: &'a mut R,
    scratch: Scratch,
    freed: Vec<Position>,
    /// What was found so far.
    pub scan: Scan,
}

/// Where the records of a segment end, and what is there instead of another.
#[derive(Clone, Copy)]
struct End {
    offset: u64,
    why: NoRecord,
}

impl<'a, D: Disk, R: Replay> Scanner<'a, D, R> {
    /// Begins at what `scan` says; `slots` are the index blocks of the checkpoint.
    pub fn new(
        disk: &'a D,
        listing: &'a Listing,
        manifest: &Manifest,
        slots: &[(BlockSlot, u32)],
        replay: &'a mut R,
        scan: Scan,
    ) -> Scanner<'a, D, R> {
        Scanner {
            disk,
            listing,
            segment_bytes: manifest.segment_bytes,
            seed: manifest.seed(),
            slots: slots.iter().copied().collect(),
            replay,
            scratch: Scratch::default(),
            freed: Vec::new(),
            scan,
        }
    }

    fn start_of(&self, name: SegmentName) -> u64 {
        self.scan.table.range(name).start.0
    }

    /// Replays from the end of the checkpoint (or the first segment) to the end of the log.
    pub fn run(&mut self, reader: &mut SegmentReader<'_, D>) -> Result<(), OpenError> {
        let from = Position(self.scan.end);
        let mut at = self.scan.table.name_of(from);
        let mut end = End {
            offset: from.offset(self.segment_bytes),
            why: NoRecord::Nothing,
        };
        let is_there = self.listing.segments.get(&at).copied();
        if let Some(bytes) = is_there {
            end = self.replay_segment(at, end.offset, reader.load(at, bytes)?)?;
        }
        loop {
            self.scan.read.push((at, end.offset));
            let header = self.scan.headers.get(&at);
            if header.is_some_and(|header| end.offset < header.sealed_end) {
                return Err(self.corrupt(at, end.offset, "a record is damaged", None));
            }
            let Some(next) = self.successor(at, reader)? else {
                break;
            };
            at = next;
            let bytes = reader.load(at, self.listing.segments[&at])?;
            end = self.replay_segment(at, SEGMENT_HEADER_BYTES as u64, bytes)?;
        }
        self.judge_end(at, end, reader)?;
        if is_there.is_none() && at.number > 0 && self.scan.read.len() == 1 {
            let what = "the file is missing; the log goes on in it behind the checkpoint";
            return Err(OpenError::corrupt(&at.path(), end.offset, what));
        }
        Ok(())
    }

    /// Replays the records of one segment from an offset on.
    fn replay_segment(
        &mut self,
        name: SegmentName,
        offset: u64,
        bytes: &[u8],
    ) -> Result<End, OpenError> {
        let header = self.scan.headers[&name];
        let start = self.start_of(name);
        self.add_segment(name, &header, bytes.len() as u64);
        let mut offset = offset;
        loop {
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            let parsed = Header::parse(rest, self.seed, start + offset, header.epoch);
            let record = match parsed {
                Ok(record) => record,
                Err(NoRecord::Later(version)) => {
                    return Err(OpenError::Version {
                        file: name.path(),
                        offset,
                        what: format!("a record has version or kind {version}"),
                    });
                }
                Err(why) => {
                    let segment = self.scan.table.get_mut(name).expect("it was added above");
                    segment.end = offset;
                    return Ok(End { offset, why });
                }
            };
            if record.index != self.scan.index.next() || record.chain != self.scan.chain {
                return Err(self.corrupt(
                    name,
                    offset,
                    &format!(
                        "record {} does not follow record {}",
                        record.index, self.scan.index
                    ),
                    None,
                ));
            }
            self.replay_record(name, offset, &record, rest, header.base_ms)?;
            offset += u64::from(record.length);
            self.scan.recovered.bytes_scanned += u64::from(record.length);
            self.scan.recovered.records += 1;
            self.scan.index = record.index;
            self.scan.chain = record.crc;
            self.scan.wall_ms = self.scan.wall_ms.max(record.wall_ms);
            self.scan.durable = self.scan.durable.max(record.durable);
            self.scan.end = start + offset;
        }
    }

    fn add_segment(&mut self, name: SegmentName, header: &SegmentHeader, file_bytes: u64) {
        if self.scan.table.get(name).is_none() {
            let mut segment = Segment::new(name.number, header.epoch, header.base_ms, file_bytes);
            segment.closed = true;
            self.scan.table.insert(false, segment);
        }
    }

    fn replay_record(
        &mut self,
        name: SegmentName,
        offset: u64,
        record: &Header,
        bytes: &[u8],
        base_ms: u64,
    ) -> Result<(), OpenError> {
        let table = record.table(bytes);
        let body = &bytes[..record.table_at as usize];
        let count = record.entries;
        let mut entries = Entries::new(
            body,
            record::HEADER_BYTES,
            count,
            table,
            base_ms,
            &mut self.scratch,
        );
        let (disk, slots, seed) = (self.disk, &self.slots, self.seed);
        let mut read_block = |slot: BlockSlot| -> Result<Box<[u32]>, String> {
            let crc = slots
                .get(&slot)
                .ok_or("the checkpoint lists no such index block")?;
            let offsets = blocks::load(disk, seed, slot, *crc).map_err(|error| error.what)?;
            Ok(offsets.into_boxed_slice())
        };
        let mut messages = 0;
        loop {
            let (at, entry) = match entries.next() {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(error) => return Err(entry_error(&name.path(), offset, error)),
            };
            messages += match &entry {
                Entry::Publish { targets, .. } => targets.len() as u64,
                Entry::Transfer { .. } => 1,
                _ => 0,
            };
            let place = Place {
                position: Position(record.position + at as u64),
                index: record.index,
                time_ms: record.wall_ms,
            };
            self.replay
                .apply(&entry, place, &mut read_block, &mut self.freed)
                .map_err(|what| OpenError::Replay {
                    file: name.path(),
                    offset: offset + at as u64,
                    what,
                })?;
        }
        if !entries.is_done() {
            let error = EntryError::Malformed("bytes are left over behind its entries");
            return Err(entry_error(&name.path(), offset, error));
        }
        self.scan.recovered.messages_replayed += messages;
        let segment = self
            .scan
            .table
            .get_mut(name)
            .expect("the segment is in the table");
        segment.messages += messages;
        segment.live += messages;
        for position in self.freed.drain(..) {
            let freed = self.scan.table.free(position);
            freed.map_err(|what| OpenError::Replay {
                file: name.path(),
                offset,
                what: format!("{what} (the message at {position})"),
            })?;
        }
        Ok(())
    }

    /// The segment in which the log goes on: the one that begins with the next record.
    fn successor(
        &self,
        after: SegmentName,
        reader: &mut SegmentReader<'_, D>,
    ) -> Result<Option<SegmentName>, OpenError> {
        for (name, bytes) in &self.listing.segments {
            if name.kept || name.number <= after.number {
                continue;
            }
            let bytes = reader.load(*name, *bytes)?;
            let at = SEGMENT_HEADER_BYTES;
            let position = self.start_of(*name) + at as u64;
            let epoch = self.scan.headers[name].epoch;
            let first = bytes.get(at..).unwrap_or_default();
            if let Ok(record) = Header::parse(first, self.seed, position, epoch)
                && record.index == self.scan.index.next()
                && record.chain == self.scan.chain
            {
                return Ok(Some(*name));
            }
        }
        Ok(None)
    }

    /// The log stops at an offset of a segment and goes on nowhere: a torn tail, or corruption if
    /// any whole record behind says that more was durable.
    fn judge_end(
        &mut self,
        name: SegmentName,
        end: End,
        reader: &mut SegmentReader<'_, D>,
    ) -> Result<(), OpenError> {
        let stopped = self.start_of(name) + end.offset;
        let mut evidence = Evidence {
            place: (name, end.offset),
            lowest: u64::MAX,
            claim: None,
            torn_bytes: 0,
            found_any: false,
        };
        for (later, bytes) in &self.listing.segments {
            if !later.kept && later.number >= name.number {
                let bytes = reader.load(*later, *bytes)?;
                let end = (*later == name).then_some(end);
                self.gather(*later, end, bytes, stopped, &mut evidence);
            }
        }
        let believed = |_: &Header| !planted(Fault::TruncatedAtFirstBadRecord);
        if let Some(claim) = evidence.claim.filter(believed) {
            let last = LogIndex(evidence.lowest.saturating_sub(1).max(self.scan.index.0 + 1));
            let what = format!(
                "a record is damaged or missing, and record {} behind it says that everything before {} was on stable storage",
                claim.index,
                Position(claim.durable)
            );
            let (name, offset) = evidence.place;
            return Err(self.corrupt(name, offset, &what, Some(last)));
        }
        self.scan.recovered.torn_bytes = evidence.torn_bytes;
        Ok(())
    }

    /// Looks at what is in one segment behind the end of the log, which is in it at `end` or
    /// before it.
    fn gather(
        &self,
        name: SegmentName,
        end: Option<End>,
        bytes: &[u8],
        stopped: u64,
        evidence: &mut Evidence,
    ) {
        let header = self.scan.headers[&name];
        let start = self.start_of(name);
        let from = end.map_or(SEGMENT_HEADER_BYTES, |end| end.offset as usize);
        let mut until = from;
        let mut first = None;
        record::search(bytes, from, self.seed, start, header.epoch, |record| {
            first = first.or(Some(record.position));
            until = (record.position - start) as usize + record.length as usize;
            evidence.lowest = evidence.lowest.min(record.index.0);
            let claimed = evidence.claim.map_or(stopped, |claim| claim.durable);
            if record.durable > claimed {
                evidence.claim = Some(record);
            }
        });
        // Nothing that was a record is where the log stops: then it is the next segment's first
        // record that is damaged.
        if end.is_none() && !evidence.found_any && first != Some(start + from as u64) {
            evidence.place = (name, from as u64);
        }
        let is_damaged = end.is_some_and(|end| matches!(end.why, NoRecord::Damaged(_)));
        evidence.found_any |= first.is_some() || is_damaged;
        if let Some(End {
            why: NoRecord::Damaged(length),
            ..
        }) = end
        {
            until = until.max(from + length as usize);
        }
        if !header.recycled {
            let tail = bytes.get(from..).unwrap_or_default();
            until = until.max(from + tail.len() - zeroes_at_end(tail));
        }
        evidence.torn_bytes += (until.min(bytes.len()).max(from) - from) as u64;
    }

    fn corrupt(
        &self,
        name: SegmentName,
        offset: u64,
        what: &str,
        last: Option<LogIndex>,
    ) -> OpenError {
        OpenError::Corrupt {
            file: name.path(),
            offset,
            what: what.to_owned(),
            lost: last.map(|last| (self.scan.index.next(), last)),
        }
    }
}

/// What is wrong with an entry in a record whose checksum is right.
pub(crate) fn entry_error(file: &str, offset: u64, error: EntryError) -> OpenError {
    let version = |what: String| OpenError::Version {
        file: file.to_owned(),
        offset,
        what,
    };
    match error {
        EntryError::Malformed(what) => {
            OpenError::corrupt(file, offset, format!("in the record there, {what}"))
        }
        EntryError::UnknownKind(kind) => {
            version(format!("an entry of kind {kind:#04x} is unknown"))
        }
        EntryError::UnknownSection(kind) => version(format!(
            "a section of kind {kind:#04x} must be understood and is unknown"
        )),
    }
}

/// How many bytes at the end are zeroes. Most of a segment may be: whole blocks are compared first.
fn zeroes_at_end(bytes: &[u8]) -> usize {
    const ZEROES: [u8; 4096] = [0; 4096];
    let blocks = bytes.rchunks_exact(ZEROES.len());
    let whole = blocks.take_while(|block| **block == ZEROES).count() * ZEROES.len();
    let rest = &bytes[..bytes.len() - whole];
    whole + rest.iter().rev().take_while(|byte| **byte == 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_counted_from_the_end() {
        for length in [0, 1, 4095, 4096, 4097, 9000] {
            assert_eq!(zeroes_at_end(&vec![0; length]), length);
            for behind in [0, 1, 4095, 4096, 5000] {
                let mut bytes = vec![0; length];
                bytes.push(7);
                bytes.resize(bytes.len() + behind, 0);
                assert_eq!(zeroes_at_end(&bytes), behind, "{length} before");
            }
        }
    }
}
