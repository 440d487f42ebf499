//! Records: one turn's entries under one header.
//!
//! A record proves where it belongs: its length, and then all of it, is checksummed together with
//! its position, its segment's epoch and the directory's identity, so that zeroes, leftovers of
//! an earlier use of the file and bytes that a client made up never parse.

use super::place::LogIndex;

/// Bytes in front of the entries.
pub(crate) const HEADER_BYTES: usize = 80;
/// Records begin at multiples of this.
pub(crate) const ALIGN: usize = 8;
/// Bytes of one row of the table.
pub(crate) const ROW_BYTES: usize = 16;
/// The version of the record format that this program writes, and the only one it reads.
pub(crate) const VERSION: u8 = 1;

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The entries of a turn.
    Batch = 1,
    /// No entries: only tells the durable point while the log is idle.
    Mark = 2,
    /// No entries: the log was closed in order.
    Close = 3,
    /// Messages that a compaction copied; only in kept segments.
    Kept = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Batch, Kind::Mark, Kind::Close, Kind::Kept]
            .get(byte.wrapping_sub(1) as usize)
            .copied()
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Length of the whole record with header, table and padding.
    pub length: u32,
    /// Checksum over everything behind it; filled in by [`Header::parse`].
    pub crc: u32,
    /// What the record is for.
    pub kind: Kind,
    /// Position of its first byte.
    pub position: u64,
    /// Its number; 0 in kept segments.
    pub index: LogIndex,
    /// Term of the leader that wrote it.
    pub term: u64,
    /// Epoch of the segment.
    pub epoch: u64,
    /// Every record before this position was on stable storage when this one was written.
    pub durable: u64,
    /// Wall time, milliseconds since the unix epoch.
    pub wall_ms: u64,
    /// Checksum of the record before it.
    pub chain: u32,
    /// How many entries.
    pub entries: u32,
    /// Where the table begins, counted from the record's first byte.
    pub table_at: u32,
    /// How many rows the table has.
    pub rows: u32,
}

/// Why there is no record at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRecord {
    /// Nothing says that a record begins here.
    Nothing,
    /// A record of this length begins here and is not whole.
    Damaged(u32),
    /// A whole record of a later version or kind.
    Later(u8),
}

fn length_check(seed: u32, length: u32, position: u64, epoch: u64) -> u32 {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..12].copy_from_slice(&position.to_le_bytes());
    bytes[12..].copy_from_slice(&epoch.to_le_bytes());
    crc32c::crc32c_append(seed, &bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    /// The header's bytes with a checksum of 0; `seed` belongs to the directory.
    pub fn encode(&self, seed: u32) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&self.length.to_le_bytes());
        let check = length_check(seed, self.length, self.position, self.epoch);
        out[4..8].copy_from_slice(&check.to_le_bytes());
        out[12] = VERSION;
        out[13] = self.kind as u8;
        out[16..24].copy_from_slice(&self.position.to_le_bytes());
        out[24..32].copy_from_slice(&self.index.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.term.to_le_bytes());
        out[40..48].copy_from_slice(&self.epoch.to_le_bytes());
        out[48..56].copy_from_slice(&self.durable.to_le_bytes());
        out[56..64].copy_from_slice(&self.wall_ms.to_le_bytes());
        out[64..68].copy_from_slice(&self.chain.to_le_bytes());
        out[68..72].copy_from_slice(&self.entries.to_le_bytes());
        out[72..76].copy_from_slice(&self.table_at.to_le_bytes());
        out[76..80].copy_from_slice(&self.rows.to_le_bytes());
        out
    }

    /// The header of the whole record at the front of `bytes`, which may go on behind it. The
    /// record must say that it belongs at `position` in a segment of `epoch`.
    pub fn parse(bytes: &[u8], seed: u32, position: u64, epoch: u64) -> Result<Header, NoRecord> {
        if bytes.len() < HEADER_BYTES || u64_at(bytes, 16) != position || u64_at(bytes, 40) != epoch
        {
            // The length is believed if it checks, even when what follows it does not.
            if bytes.len() >= 8 {
                let length = u32_at(bytes, 0);
                if u32_at(bytes, 4) == length_check(seed, length, position, epoch) {
                    return Err(NoRecord::Damaged(length));
                }
            }
            return Err(NoRecord::Nothing);
        }
        let length = u32_at(bytes, 0);
        if u32_at(bytes, 4) != length_check(seed, length, position, epoch) {
            return Err(NoRecord::Nothing);
        }
        let damaged = Err(NoRecord::Damaged(length));
        let Some(record) = bytes.get(..length as usize) else {
            return damaged;
        };
        if record.len() < HEADER_BYTES || !record.len().is_multiple_of(ALIGN) {
            return damaged;
        }
        let crc = u32_at(record, 8);
        if crc != crc32c::crc32c_append(seed, &record[12..]) {
            return damaged;
        }
        if record[12] != VERSION {
            return Err(NoRecord::Later(record[12]));
        }
        let Some(kind) = Kind::from_byte(record[13]) else {
            return Err(NoRecord::Later(record[13]));
        };
        let header = Header {
            length,
            crc,
            kind,
            position,
            index: LogIndex(u64_at(record, 24)),
            term: u64_at(record, 32),
            epoch,
            durable: u64_at(record, 48),
            wall_ms: u64_at(record, 56),
            chain: u32_at(record, 64),
            entries: u32_at(record, 68),
            table_at: u32_at(record, 72),
            rows: u32_at(record, 76),
        };
        let table_end = u64::from(header.table_at) + u64::from(header.rows) * ROW_BYTES as u64;
        if (header.table_at as usize) < HEADER_BYTES || table_end > u64::from(length) {
            return damaged;
        }
        Ok(header)
    }

    /// The table of the record that begins `bytes`.
    pub fn table<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let at = self.table_at as usize;
        &bytes[at..at + self.rows as usize * ROW_BYTES]
    }
}

/// Searches for whole records at every place they may begin, from offset `from` of a segment whose
/// first bytes are `bytes` on, and gives each to `found`.
pub(crate) fn search(
    bytes: &[u8],
    from: usize,
    seed: u32,
    segment_start: u64,
    epoch: u64,
    mut found: impl FnMut(Header),
) {
    let mut at = from.next_multiple_of(ALIGN);
    while at + HEADER_BYTES <= bytes.len() {
        let position = segment_start + at as u64;
        if u64_at(bytes, at + 16) == position
            && let Ok(header) = Header::parse(&bytes[at..], seed, position, epoch)
        {
            found(header);
            at += header.length as usize;
        } else {
            at += ALIGN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(position: u64, payload: usize) -> Vec<u8> {
        let length = (HEADER_BYTES + payload).next_multiple_of(ALIGN);
        let header = Header {
            length: length as u32,
            crc: 0,
            kind: Kind::Batch,
            position,
            index: LogIndex(4),
            term: 1,
            epoch: 77,
            durable: 5,
            wall_ms: 6,
            chain: 7,
            entries: 1,
            table_at: HEADER_BYTES as u32,
            rows: (payload / ROW_BYTES) as u32,
        };
        let mut bytes = header.encode(9).to_vec();
        bytes.resize(length, 0xab);
        let crc = crc32c::crc32c_append(9, &bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_record_parses_only_whole_and_where_it_belongs() {
        let bytes = record(800, 32);
        let header = Header::parse(&bytes, 9, 800, 77).expect("it was just made");
        assert_eq!(
            (header.index, header.durable, header.rows),
            (LogIndex(4), 5, 2)
        );
        assert_eq!(header.table(&bytes).len(), 32);
        for (seed, position, epoch) in [(8, 800, 77), (9, 808, 77), (9, 800, 78)] {
            assert_eq!(
                Header::parse(&bytes, seed, position, epoch),
                Err(NoRecord::Nothing)
            );
        }
        for cut in 0..bytes.len() {
            assert!(Header::parse(&bytes[..cut], 9, 800, 77).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&bytes, 9, 800, 77).is_err(), "bit {bit}");
        }
        assert!(Header::parse(&[0; 4096], 9, 800, 77).is_err());
    }

    #[test]
    fn the_search_finds_records_behind_garbage() {
        let mut bytes = vec![0x5a; 1000];
        bytes.extend(record(1000, 64));
        bytes.extend(record(1000 + 144, 0));
        bytes.extend([1; 50]);
        let mut found = Vec::new();
        search(&bytes, 3, 9, 0, 77, |header| found.push(header.position));
        assert_eq!(found, [1000, 1144]);
    }
}
