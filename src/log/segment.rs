//! Segments: the header at the front of each file, and the table of what is live in them.

use super::error::OpenError;
use super::manifest::SHARD;
use super::place::{LogIndex, Position, SegmentRange};

/// Bytes of the header; the first record begins behind it.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"RINGMQSG";
const VERSION: u8 = 1;
const FLAG_KEPT: u8 = 1;
const FLAG_RECYCLED: u8 = 2;

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Holds what a compaction copied.
    pub kept: bool,
    /// The file was used before: what lies behind the records are leftovers, not zeroes.
    pub recycled: bool,
    /// Its number.
    pub number: u64,
    /// Its epoch; never used for another segment.
    pub epoch: u64,
    /// What the times in its entries count from, milliseconds since the unix epoch.
    pub base_ms: u64,
    /// For a segment that recovery closed: its records end at this offset, all of them synced.
    /// 0 = not closed by recovery.
    pub sealed_end: u64,
}

impl SegmentHeader {
    /// Stands for the header of a file that is too short to have one. No epoch is 0, so no record
    /// parses under it.
    pub fn unreadable(name: &SegmentName) -> SegmentHeader {
        SegmentHeader {
            kept: name.kept,
            recycled: false,
            number: name.number,
            epoch: 0,
            base_ms: 0,
            sealed_end: 0,
        }
    }

    /// The header's bytes.
    pub fn encode(&self, directory_id: u64, seed: u32) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[12] = VERSION;
        out[13] =
            if self.kept { FLAG_KEPT } else { 0 } | if self.recycled { FLAG_RECYCLED } else { 0 };
        out[16..24].copy_from_slice(&directory_id.to_le_bytes());
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[32..40].copy_from_slice(&self.epoch.to_le_bytes());
        out[40..48].copy_from_slice(&self.base_ms.to_le_bytes());
        out[48..56].copy_from_slice(&self.sealed_end.to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of the file `name`, which must be the segment of that kind and number.
    pub fn parse(
        bytes: &[u8],
        name: &SegmentName,
        directory_id: u64,
        seed: u32,
    ) -> Result<SegmentHeader, OpenError> {
        let file = name.path();
        let wrong = |what: &str| Err(OpenError::corrupt(&file, 0, what));
        if bytes.len() < SEGMENT_HEADER_BYTES {
            return wrong("the file is shorter than a segment's header");
        }
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if bytes[..8] != MAGIC {
            return wrong("the segment's header is not there");
        }
        if number(16) != directory_id {
            return wrong("the segment belongs to another data directory");
        }
        let crc = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        if crc != crc32c::crc32c_append(seed, &bytes[12..SEGMENT_HEADER_BYTES]) {
            return wrong("the segment's header has a wrong checksum");
        }
        if bytes[12] != VERSION {
            return Err(OpenError::Version {
                file,
                offset: 12,
                what: format!("the segment has format version {}", bytes[12]),
            });
        }
        let header = SegmentHeader {
            kept: bytes[13] & FLAG_KEPT != 0,
            recycled: bytes[13] & FLAG_RECYCLED != 0,
            number: number(24),
            epoch: number(32),
            base_ms: number(40),
            sealed_end: number(48),
        };
        if (header.kept, header.number) != (name.kept, name.number) {
            let kind = if header.kept {
                "kept segment"
            } else {
                "segment"
            };
            return wrong(&format!(
                "the file is {kind} {:x} under another name",
                header.number
            ));
        }
        Ok(header)
    }
}

/// The name of a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    /// A kept segment.
    pub kept: bool,
    /// Its number.
    pub number: u64,
}

impl SegmentName {
    /// A segment of the log proper.
    pub fn log(number: u64) -> SegmentName {
        SegmentName {
            kept: false,
            number,
        }
    }

    /// A kept segment.
    pub fn kept(number: u64) -> SegmentName {
        SegmentName { kept: true, number }
    }

    /// Path in the data directory.
    pub fn path(&self) -> String {
        let extension = if self.kept { "kept" } else { "seg" };
        format!("{SHARD}/{:016x}.{extension}", self.number)
    }

    /// Path of the file while it is being made.
    pub fn tmp_path(&self) -> String {
        self.path() + ".tmp"
    }

    /// The segment that a file in the shard's directory is, by its name.
    pub fn parse(name: &str) -> Option<SegmentName> {
        let (number, extension) = name.split_once('.')?;
        let kept = match extension {
            "seg" => false,
            "kept" => true,
            _ => return None,
        };
        Some(SegmentName {
            kept,
            number: parse_hex(number)?,
        })
    }
}

/// Exactly 16 lower-case hexadecimal digits.
pub(crate) fn parse_hex(digits: &str) -> Option<u64> {
    let valid = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    if digits.len() != 16 || !digits.bytes().all(valid) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// What is known of one segment while the log is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its number.
    pub number: u64,
    /// Its epoch.
    pub epoch: u64,
    /// What the times in its entries count from, milliseconds since the unix epoch.
    pub base_ms: u64,
    /// Offset behind the last record.
    pub end: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// Messages ever stored in it, once for each queue.
    pub messages: u64,
    /// Those not freed yet.
    pub live: u64,
    /// The record that says that its last message is settled, or a later one; meaningful when
    /// nothing is live. `u64::MAX` until that record is sealed.
    pub emptied_in: LogIndex,
    /// The count of checkpoints begun when messages were last moved out of it.
    pub moved_at: Option<u64>,
    /// Nothing is appended to it any more.
    pub closed: bool,
    /// A compaction found damage in it, so that it cannot be emptied.
    pub stuck: bool,
    /// Its file exists.
    pub present: bool,
}

impl Segment {
    /// An empty segment that is written to, with a file of so many bytes.
    pub fn new(number: u64, epoch: u64, base_ms: u64, file_bytes: u64) -> Segment {
        Segment {
            number,
            epoch,
            base_ms,
            end: SEGMENT_HEADER_BYTES as u64,
            file_bytes,
            messages: 0,
            live: 0,
            emptied_in: LogIndex(0),
            moved_at: None,
            closed: false,
            stuck: false,
            present: true,
        }
    }
}

/// All segments that hold or held messages, in two lists sorted by number.
#[derive(Debug)]
pub(crate) struct SegmentTable {
    segment_bytes: u64,
    log: Vec<Segment>,
    kept: Vec<Segment>,
    /// Where the last look-up in `log` ended.
    hint: usize,
}

impl SegmentTable {
    /// An empty table.
    pub fn new(segment_bytes: u64) -> SegmentTable {
        SegmentTable {
            segment_bytes,
            log: Vec::new(),
            kept: Vec::new(),
            hint: 0,
        }
    }

    fn list(&self, kept: bool) -> &Vec<Segment> {
        if kept { &self.kept } else { &self.log }
    }

    /// Adds a segment.
    ///
    /// # Panics
    /// If there is one of that number.
    pub fn insert(&mut self, kept: bool, segment: Segment) {
        let list = if kept { &mut self.kept } else { &mut self.log };
        let at = list.partition_point(|other| other.number < segment.number);
        assert!(
            list.get(at)
                .is_none_or(|other| other.number != segment.number),
            "segment {} is there twice",
            segment.number
        );
        list.insert(at, segment);
    }

    /// Takes a segment out.
    pub fn remove(&mut self, name: SegmentName) -> Option<Segment> {
        let list = if name.kept {
            &mut self.kept
        } else {
            &mut self.log
        };
        let at = list
            .binary_search_by_key(&name.number, |segment| segment.number)
            .ok()?;
        Some(list.remove(at))
    }

    /// The segment of a name.
    pub fn get(&self, name: SegmentName) -> Option<&Segment> {
        let list = self.list(name.kept);
        let at = list
            .binary_search_by_key(&name.number, |segment| segment.number)
            .ok()?;
        Some(&list[at])
    }

    /// The segment of a name.
    pub fn get_mut(&mut self, name: SegmentName) -> Option<&mut Segment> {
        let list = if name.kept {
            &mut self.kept
        } else {
            &mut self.log
        };
        if !name.kept
            && list
                .get(self.hint)
                .is_some_and(|hint| hint.number == name.number)
        {
            return list.get_mut(self.hint);
        }
        let at = list
            .binary_search_by_key(&name.number, |segment| segment.number)
            .ok()?;
        if !name.kept {
            self.hint = at;
        }
        list.get_mut(at)
    }

    /// The name of the segment that a position lies in.
    #[inline]
    pub fn name_of(&self, position: Position) -> SegmentName {
        SegmentName {
            kept: position.is_kept(),
            number: position.segment(self.segment_bytes),
        }
    }

    /// The positions of a segment.
    pub fn range(&self, name: SegmentName) -> SegmentRange {
        let start = Position::new(name.kept, name.number, 0, self.segment_bytes);
        SegmentRange {
            start,
            end: start.plus(self.segment_bytes),
        }
    }

    /// Notes that one message at the position is settled in one queue. Returns what is live still.
    ///
    /// # Errors
    /// There is no such segment, or nothing was live in it.
    #[inline]
    pub fn free(&mut self, position: Position) -> Result<u64, &'static str> {
        self.free_run(position, 1)
    }

    /// The same of so many messages of one segment.
    ///
    /// # Errors
    /// There is no such segment, or fewer were live in it.
    #[inline]
    pub fn free_run(&mut self, position: Position, count: u32) -> Result<u64, &'static str> {
        let segment = self
            .get_mut(self.name_of(position))
            .ok_or("a message was freed that is in no segment")?;
        segment.live = segment
            .live
            .checked_sub(u64::from(count))
            .ok_or("more messages were freed than were stored in the segment")?;
        if segment.live == 0 {
            segment.emptied_in = LogIndex(u64::MAX);
        }
        Ok(segment.live)
    }

    /// Everything that was freed so far was so in records up to this one.
    pub fn set_emptied(&mut self, index: LogIndex) {
        for segment in self.log.iter_mut().chain(&mut self.kept) {
            segment.emptied_in = index;
        }
    }

    /// Every segment with its name, the log's first, by number.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentName, &Segment)> {
        let log = self
            .log
            .iter()
            .map(|segment| (SegmentName::log(segment.number), segment));
        let kept = self
            .kept
            .iter()
            .map(|segment| (SegmentName::kept(segment.number), segment));
        log.chain(kept)
    }

    /// Every segment of the log or every kept one, by number.
    pub fn of_kind(&self, kept: bool) -> &[Segment] {
        self.list(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: SegmentHeader = SegmentHeader {
        kept: false,
        recycled: true,
        number: 0xabc,
        epoch: 5,
        base_ms: 6,
        sealed_end: 7,
    };

    #[test]
    fn a_header_comes_back_or_is_refused() {
        let bytes = SAMPLE.encode(1, 2);
        let name = SegmentName::log(0xabc);
        let parsed = SegmentHeader::parse(&bytes, &name, 1, 2).expect("it was just made");
        assert_eq!(parsed, SAMPLE);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                SegmentHeader::parse(&bytes, &name, 1, 2).is_err(),
                "bit {bit}"
            );
        }
        let refused = |name: SegmentName, directory| {
            SegmentHeader::parse(&bytes, &name, directory, 2)
                .expect_err("wrong")
                .to_string()
        };
        assert!(refused(SegmentName::log(3), 1).contains("under another name"));
        assert!(refused(SegmentName::kept(0xabc), 1).contains("under another name"));
        assert!(refused(name, 9).contains("another data directory"));
    }

    #[test]
    fn names_are_exact() {
        for name in [SegmentName::log(0xabc), SegmentName::kept(1)] {
            let path = name.path();
            let file = path
                .strip_prefix("shard-0/")
                .expect("in the shard's directory");
            assert_eq!(SegmentName::parse(file), Some(name));
        }
        for other in [
            "abc.seg",
            "000000000000000A.seg",
            "0000000000000001.seg.tmp",
            "x",
        ] {
            assert_eq!(SegmentName::parse(other), None);
        }
    }

    #[test]
    fn the_table_counts_what_is_live() {
        let mut table = SegmentTable::new(1000);
        let segment = |number| Segment {
            messages: 2,
            live: 2,
            ..Segment::new(number, 1, 0, 1000)
        };
        table.insert(false, segment(4));
        table.insert(false, segment(2));
        table.insert(true, segment(2));
        let at = Position::new(true, 2, 10, 1000);
        assert_eq!(table.free(at), Ok(1));
        assert_eq!(table.free(at), Ok(0));
        assert!(table.free(at).is_err());
        assert!(table.free(Position::new(false, 3, 10, 1000)).is_err());
        assert_eq!(table.free(Position::new(false, 4, 10, 1000)), Ok(1));
        assert_eq!(
            table
                .iter()
                .map(|(name, s)| (name.kept, name.number, s.live))
                .collect::<Vec<_>>(),
            [(false, 2, 2), (false, 4, 1), (true, 2, 0)]
        );
    }
}
