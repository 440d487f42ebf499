//! Where things are in the log: positions, record numbers, ranges and index block slots.
//!
//! Pure numbers; nothing here knows a file.

use std::fmt;

/// Bit 63 of a [`Position`]: the place is in a kept segment.
const KEPT: u64 = 1 << 63;

/// Place of a byte of the log: `segment number * segment_bytes + offset in the segment`.
///
/// Bit 63 set means the segment is a *kept* one (compaction's output), with the same arithmetic on
/// the other bits. Places in the log proper increase with time; those in kept segments do not.
/// Segments are numbered from 1, so no entry is ever at position 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u64);

impl Position {
    /// The place `offset` bytes into a segment.
    pub fn new(kept: bool, segment: u64, offset: u64, segment_bytes: u64) -> Position {
        let place = segment * segment_bytes + offset;
        assert!(place & KEPT == 0, "a position needs 63 bits at most");
        Position(if kept { place | KEPT } else { place })
    }

    /// The place is in a kept segment.
    #[inline]
    pub fn is_kept(self) -> bool {
        self.0 & KEPT != 0
    }

    /// Number of the segment.
    #[inline]
    pub fn segment(self, segment_bytes: u64) -> u64 {
        (self.0 & !KEPT) / segment_bytes
    }

    /// Offset in the segment, bytes.
    #[inline]
    pub fn offset(self, segment_bytes: u64) -> u64 {
        (self.0 & !KEPT) % segment_bytes
    }

    /// The place so many bytes further on in the same segment.
    #[inline]
    pub fn plus(self, bytes: u64) -> Position {
        Position(self.0 + bytes)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = if self.is_kept() { "kept:" } else { "" };
        write!(f, "{kept}{:#x}", self.0 & !KEPT)
    }
}

/// Number of a record: from 1, consecutive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The number of the record after this one.
    pub fn next(self) -> LogIndex {
        LogIndex(self.0 + 1)
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The positions of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRange {
    /// The segment's first byte.
    pub start: Position,
    /// The first byte behind the segment.
    pub end: Position,
}

impl SegmentRange {
    /// The position lies in this segment.
    pub fn contains(&self, position: Position) -> bool {
        self.start <= position && position < self.end
    }
}

/// A place for one index block in `index.blk`, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockSlot(pub u32);

/// Where and when an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The entry's first byte: for a message what [`super::Log::publish`] returned.
    pub position: Position,
    /// The record it is in.
    pub index: LogIndex,
    /// Wall time of the record, milliseconds since the unix epoch; never decreases along the log.
    pub time_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_apart_as_they_were_put_together() {
        for kept in [false, true] {
            let position = Position::new(kept, 7, 4095, 1 << 20);
            assert_eq!(position.is_kept(), kept);
            assert_eq!(position.segment(1 << 20), 7);
            assert_eq!(position.offset(1 << 20), 4095);
            assert_eq!(position.plus(3).offset(1 << 20), 4098);
        }
        assert!(Position::new(false, 9, 0, 64) > Position::new(false, 8, 63, 64));
    }
}
