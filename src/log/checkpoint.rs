//! Checkpoints: the broker's state at one place of the log, and what the log itself must know there.
//!
//! One file each, written under another name and renamed when it is synced. It is whole or it does
//! not count: a checksum covers all of it.

use std::io;

use super::disk::Disk;
use super::error::OpenError;
use super::manifest::SHARD;
use super::place::{BlockSlot, LogIndex, Position};
use super::rw::read_whole;
use super::segment::{Segment, SegmentTable, parse_hex};
use crate::broker::varint;

const MAGIC: [u8; 8] = *b"RINGMQCP";
const VERSION: u32 = 1;
/// Magic, checksum, version, directory, length of the log's part, length of the payload.
pub(crate) const PREFIX_BYTES: usize = 40;

/// The log's part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Replay begins here: the end of the last record that the payload has in it.
    pub position: Position,
    /// The last record that the payload has in it.
    pub index: LogIndex,
    /// That record's checksum.
    pub chain: u32,
    /// That record's wall time, milliseconds since the unix epoch.
    pub wall_ms: u64,
    /// Everything before this was durable.
    pub durable: u64,
    /// Segments with something live, or not yet reclaimed, at that place.
    pub segments: Vec<MetaSegment>,
    /// The same for kept ones.
    pub kept: Vec<MetaSegment>,
    /// Index blocks that the payload may refer to, and the checksum of each.
    pub slots: Vec<(BlockSlot, u32)>,
}

/// One segment in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetaSegment {
    /// Its number.
    pub number: u64,
    /// Its epoch.
    pub epoch: u64,
    /// What times in it count from.
    pub base_ms: u64,
    /// Offset behind its last record.
    pub end: u64,
    /// Messages ever stored in it.
    pub messages: u64,
    /// Those not freed.
    pub live: u64,
}

impl Meta {
    /// Lists the segments of a table as they are now.
    pub fn segments_of(table: &SegmentTable, kept: bool) -> Vec<MetaSegment> {
        let list = table.of_kind(kept).iter();
        list.map(|segment| MetaSegment {
            number: segment.number,
            epoch: segment.epoch,
            base_ms: segment.base_ms,
            end: segment.end,
            messages: segment.messages,
            live: segment.live,
        })
        .collect()
    }

    /// The bytes in front of the payload, their checksum taken over the payload too.
    pub fn encode(&self, directory_id: u64, seed: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; PREFIX_BYTES];
        for number in [
            self.position.0,
            self.index.0,
            u64::from(self.chain),
            self.wall_ms,
            self.durable,
        ] {
            varint::put(&mut out, number);
        }
        for list in [&self.segments, &self.kept] {
            varint::put(&mut out, list.len() as u64);
            for s in list {
                for number in [s.number, s.epoch, s.base_ms, s.end, s.messages, s.live] {
                    varint::put(&mut out, number);
                }
            }
        }
        varint::put(&mut out, self.slots.len() as u64);
        for (slot, crc) in &self.slots {
            varint::put(&mut out, u64::from(slot.0));
            varint::put(&mut out, u64::from(*crc));
        }
        let meta_bytes = (out.len() - PREFIX_BYTES) as u64;
        out[..8].copy_from_slice(&MAGIC);
        out[12..16].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&directory_id.to_le_bytes());
        out[24..32].copy_from_slice(&meta_bytes.to_le_bytes());
        out[32..40].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &out[12..]), payload);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Meta> {
        let mut at = 0;
        let mut number = || varint::get(bytes, &mut at);
        let mut meta = Meta {
            position: Position(number()?),
            index: LogIndex(number()?),
            chain: u32::try_from(number()?).ok()?,
            wall_ms: number()?,
            durable: number()?,
            ..Meta::default()
        };
        for list in [&mut meta.segments, &mut meta.kept] {
            for _ in 0..number()? {
                list.push(MetaSegment {
                    number: number()?,
                    epoch: number()?,
                    base_ms: number()?,
                    end: number()?,
                    messages: number()?,
                    live: number()?,
                });
            }
        }
        for _ in 0..number()? {
            let slot = BlockSlot(u32::try_from(number()?).ok()?);
            meta.slots.push((slot, u32::try_from(number()?).ok()?));
        }
        (at == bytes.len()).then_some(meta)
    }
}

impl MetaSegment {
    /// The table's entry for it; whether its file is there is told later.
    pub fn restore(&self) -> Segment {
        Segment {
            end: self.end,
            messages: self.messages,
            live: self.live,
            closed: true,
            present: false,
            ..Segment::new(self.number, self.epoch, self.base_ms, 0)
        }
    }
}

/// Path of the checkpoint at a position.
pub(crate) fn path(position: Position) -> String {
    format!("{SHARD}/{:016x}.ckpt", position.0)
}

/// The position in the name of a checkpoint's file in the shard's directory.
pub(crate) fn parse_name(name: &str) -> Option<Position> {
    parse_hex(name.strip_suffix(".ckpt")?).map(Position)
}

/// A whole checkpoint.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The log's part.
    pub meta: Meta,
    bytes: Vec<u8>,
    payload_at: usize,
}

impl Loaded {
    /// Gives the memory of the broker's part back.
    pub fn forget_payload(&mut self) {
        self.bytes = Vec::new();
        self.payload_at = 0;
    }

    /// The broker's part.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload_at..]
    }
}

/// Why a checkpoint cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It is damaged: an older one will do. With one sentence.
    Damaged(String),
    /// The directory cannot be opened.
    Refused(OpenError),
}

/// Reads and verifies a checkpoint.
pub(crate) fn load<D: Disk>(
    disk: &D,
    position: Position,
    directory_id: u64,
    seed: u32,
) -> Result<Loaded, Unusable> {
    let file = path(position);
    let refused = |cause: io::Error| Unusable::Refused(OpenError::io(&file, "reading", cause));
    let handle = disk.open(&file).map_err(refused)?;
    let bytes = read_whole(disk, &handle).map_err(refused)?;
    let damaged = |what: &str| Err(Unusable::Damaged(format!("{file}: {what}")));
    if bytes.len() < PREFIX_BYTES || bytes[..8] != MAGIC {
        return damaged("the header is not there");
    }
    let crc = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
    if crc != crc32c::crc32c_append(seed, &bytes[12..]) {
        return damaged("the checksum is wrong");
    }
    let version = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes"));
    if version != VERSION {
        return Err(Unusable::Refused(OpenError::Version {
            file,
            offset: 12,
            what: format!("the checkpoint has format version {version}"),
        }));
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let payload_at = usize::try_from(number(24))
        .ok()
        .and_then(|bytes| PREFIX_BYTES.checked_add(bytes));
    let payload_at = match payload_at {
        Some(at) if at <= bytes.len() && (bytes.len() - at) as u64 == number(32) => at,
        _ => return damaged("its lengths do not fit"),
    };
    match Meta::decode(&bytes[PREFIX_BYTES..payload_at]) {
        Some(meta) if meta.position == position && number(16) == directory_id => Ok(Loaded {
            meta,
            bytes,
            payload_at,
        }),
        _ => damaged("it is another checkpoint under this name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logs_part_comes_back() {
        let segment = MetaSegment {
            number: 3,
            epoch: 1 << 24,
            base_ms: 1_700_000_000_000,
            end: 500,
            messages: 9,
            live: 2,
        };
        let meta = Meta {
            position: Position(12345),
            index: LogIndex(77),
            chain: u32::MAX,
            wall_ms: 5,
            durable: 12345,
            segments: vec![
                segment,
                MetaSegment {
                    number: 4,
                    ..segment
                },
            ],
            kept: vec![segment],
            slots: vec![(BlockSlot(0), 5), (BlockSlot(9), u32::MAX)],
        };
        let bytes = meta.encode(1, 2, b"payload");
        assert_eq!(Meta::decode(&bytes[PREFIX_BYTES..]), Some(meta));
        assert_eq!(Meta::decode(&bytes[PREFIX_BYTES..bytes.len() - 1]), None);
        assert_eq!(parse_name("00000000000000ff.ckpt"), Some(Position(255)));
        assert_eq!(parse_name("00000000000000ff.ckpt.tmp"), None);
    }
}
