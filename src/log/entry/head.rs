//! The heads of entries that hold a message: how they are built and read, and the checksum over entry and place.

use super::super::crc;
use super::{FLAG_MANY, FLAG_SECTIONS, PUBLISH, TRANSFER};
use crate::broker::varint;

/// Most bytes that a publish to one queue takes beyond its sections and body.
pub const PUBLISH_HEAD_BYTES_MAX: usize = 26;
/// Most bytes that a transfer takes beyond its sections and body.
pub const TRANSFER_HEAD_BYTES_MAX: usize = 72;

/// The initial value of a message's checksum: ties it to its directory and place.
#[inline]
pub(crate) fn seed(directory_seed: u32, position: u64) -> u32 {
    directory_seed ^ (position as u32) ^ ((position >> 32) as u32).rotate_left(16)
}

/// Where the parts of a stored message lie, counted from the entry's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MessageHead {
    /// Checksum over kind byte, the rest of the head, sections and body.
    pub crc: u32,
    /// Publish time less the segment's base time, milliseconds.
    pub delta_ms: u64,
    /// Where the sections begin.
    pub sections_at: usize,
    /// Where the body begins: the sections end here.
    pub body_at: usize,
    /// Length of the body.
    pub body_bytes: usize,
}

impl MessageHead {
    /// Length of the whole entry.
    pub fn entry_bytes(&self) -> usize {
        self.body_at + self.body_bytes
    }
}

/// Why a head cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadError {
    /// The bytes may end inside the head.
    Cut,
    /// This is not a stored message.
    Malformed,
}

/// Reads the head of a message entry up to its body. Sections are not looked at.
#[inline]
pub(crate) fn message_head(bytes: &[u8]) -> Result<MessageHead, HeadError> {
    match plain_head(bytes) {
        Some(head) => Ok(head),
        None => any_head(bytes),
    }
}

/// The usual head: a publish to one queue without sections, whose numbers are small.
#[inline]
fn plain_head(bytes: &[u8]) -> Option<MessageHead> {
    // Kind, checksum, a byte for the row, up to four for the time, up to two for the length.
    let head = bytes.first_chunk::<12>()?;
    if head[0] != PUBLISH || head[5] >= 0x80 {
        return None;
    }
    let mut at = 6;
    let mut number = |bytes_max: usize| {
        let mut number = 0;
        for place in 0..bytes_max {
            let byte = head[at];
            at += 1;
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    };
    let (delta_ms, body_bytes) = (number(4)?, number(2)?);
    Some(MessageHead {
        crc: u32::from_le_bytes([head[1], head[2], head[3], head[4]]),
        delta_ms,
        sections_at: at,
        body_at: at,
        body_bytes: body_bytes as usize,
    })
}

fn any_head(bytes: &[u8]) -> Result<MessageHead, HeadError> {
    let kind = *bytes.first().ok_or(HeadError::Cut)?;
    let crc = bytes.get(1..5).ok_or(HeadError::Cut)?;
    let crc = u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]);
    let mut at = 5;
    let number = |at: &mut usize| {
        varint::get(bytes, at).ok_or(if bytes.len() - *at < varint::BYTES_MAX {
            HeadError::Cut
        } else {
            HeadError::Malformed
        })
    };
    match kind & !FLAG_SECTIONS {
        PUBLISH => {
            number(&mut at)?;
        }
        many if many == PUBLISH | FLAG_MANY => {
            for _ in 0..number(&mut at)? {
                number(&mut at)?;
            }
        }
        TRANSFER => {
            number(&mut at)?;
            number(&mut at)?;
            at += 1;
            if at > bytes.len() {
                return Err(HeadError::Cut);
            }
            number(&mut at)?;
            number(&mut at)?;
            number(&mut at)?;
        }
        _ => return Err(HeadError::Malformed),
    }
    let delta_ms = number(&mut at)?;
    let body_bytes = number(&mut at)?;
    let sections_bytes = if kind & FLAG_SECTIONS != 0 {
        number(&mut at)?
    } else {
        0
    };
    if body_bytes > u64::from(u32::MAX) || sections_bytes > u64::from(u32::MAX) {
        return Err(HeadError::Malformed);
    }
    Ok(MessageHead {
        crc,
        delta_ms,
        sections_at: at,
        body_at: at + sections_bytes as usize,
        body_bytes: body_bytes as usize,
    })
}

/// The checksum that belongs at bytes 1 to 5 of a message entry which is whole in `entry`.
#[inline]
pub(crate) fn message_crc(seed: u32, entry: &[u8]) -> u32 {
    crc::append(seed ^ u32::from(entry[0]), &entry[5..])
}

/// Continues a checksum over a body that lies elsewhere.
pub(crate) fn message_crc_more(crc: u32, body: &[u8]) -> u32 {
    crc::append(crc, body)
}

/// Bytes of a [`SmallHead`] before its numbers: kind and checksum.
const SMALL_HEAD_NUMBERS_AT: usize = 5;

/// The head of a publish to one queue without sections whose numbers are small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallHead {
    /// Row, time and length of the body as they are written, from the lowest octet on, and how many octets they are.
    numbers: u64,
    count: usize,
}

impl SmallHead {
    /// Rows below this are small: a byte.
    pub const ROWS: u64 = 1 << 7;
    /// Times below this are small, milliseconds: four bytes, three days.
    pub const DELTA_MS: u64 = 1 << 28;
    /// Bodies below this are small: two bytes.
    pub const BODY_BYTES: usize = 1 << 14;

    /// `None` if a number is larger than small.
    #[inline]
    pub fn new(row: u64, delta_ms: u64, body_bytes: usize) -> Option<SmallHead> {
        let is_small = row < SmallHead::ROWS
            && delta_ms < SmallHead::DELTA_MS
            && body_bytes < SmallHead::BODY_BYTES;
        if !is_small {
            return None;
        }
        let (mut numbers, mut bits) = (row, 8);
        for mut number in [delta_ms, body_bytes as u64] {
            while number >= 0x80 {
                numbers |= (number & 0x7f | 0x80) << bits;
                number >>= 7;
                bits += 8;
            }
            numbers |= number << bits;
            bits += 8;
        }
        let count = bits / 8;
        Some(SmallHead { numbers, count })
    }

    /// Bytes of the head.
    #[inline]
    pub fn len(&self) -> usize {
        SMALL_HEAD_NUMBERS_AT + self.count
    }

    /// The checksum of the entry, with this body; `seed` as for [`message_crc`].
    #[inline]
    pub fn crc(&self, seed: u32, body: &[u8]) -> u32 {
        crc::append_parts(seed ^ u32::from(PUBLISH), self.numbers, self.count, body)
    }

    /// The head with that checksum, of which [`SmallHead::len`] bytes are used.
    #[inline]
    pub fn octets(&self, crc: u32) -> [u8; 16] {
        let front = u64::from(crc) << 8 | u64::from(PUBLISH);
        let head = u128::from(self.numbers) << (8 * SMALL_HEAD_NUMBERS_AT) | u128::from(front);
        head.to_le_bytes()
    }
}

/// The variable part of a message entry's head, built on the stack.
#[derive(Debug)]
pub(crate) struct HeadBuilder<const BYTES: usize> {
    bytes: [u8; BYTES],
    at: usize,
}

impl<const BYTES: usize> HeadBuilder<BYTES> {
    /// Begins a head; the checksum is filled in later.
    #[inline]
    pub fn new(kind: u8) -> HeadBuilder<BYTES> {
        let mut bytes = [0; BYTES];
        bytes[0] = kind;
        HeadBuilder { bytes, at: 5 }
    }

    /// Appends a number.
    #[inline]
    pub fn number(&mut self, number: u64) {
        varint::write(&mut self.bytes, &mut self.at, number);
    }

    /// Appends a byte.
    pub fn byte(&mut self, byte: u8) {
        self.bytes[self.at] = byte;
        self.at += 1;
    }

    /// The bytes so far.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers at the edges of how many bytes they take.
    const NUMBERS: [u64; 11] = [
        0,
        1,
        0x7f,
        0x80,
        0x3fff,
        0x4000,
        0x1f_ffff,
        0x20_0000,
        0xfff_ffff,
        0x1000_0000,
        u32::MAX as u64,
    ];

    fn each_head(mut check: impl FnMut(u64, u64, u64, &[u8])) {
        for row in NUMBERS {
            for delta_ms in NUMBERS {
                for body_bytes in NUMBERS {
                    let mut head = HeadBuilder::<40>::new(PUBLISH);
                    head.number(row);
                    head.number(delta_ms);
                    head.number(body_bytes);
                    check(row, delta_ms, body_bytes, head.as_slice());
                }
            }
        }
    }

    #[test]
    fn a_small_head_is_what_the_builder_writes() {
        let mut small = 0;
        each_head(|row, delta_ms, body_bytes, built| {
            let Some(head) = SmallHead::new(row, delta_ms, body_bytes as usize) else {
                assert!(row >= 0x80 || delta_ms >= 0x1000_0000 || body_bytes >= 0x4000);
                return;
            };
            small += 1;
            let mut whole = built.to_vec();
            let body: Vec<u8> = (0..body_bytes).map(|n| (n * 7) as u8).collect();
            whole.extend_from_slice(&body);
            let crc = message_crc(0x1234_5678, &whole);
            assert_eq!(head.crc(0x1234_5678, &body), crc);
            whole[1..5].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(&head.octets(crc)[..head.len()], &whole[..built.len()]);
        });
        assert_eq!(small, 3 * 9 * 5, "all that are small, and no other");
    }

    #[test]
    fn a_plain_head_is_read_as_any_other() {
        let mut plain = 0;
        each_head(|row, delta_ms, body_bytes, built| {
            let mut bytes = built.to_vec();
            bytes[1..5].copy_from_slice(&[9, 8, 7, 6]);
            bytes.extend([0xff; 16]);
            let head = any_head(&bytes).expect("it was just built");
            assert_eq!(
                (head.crc, head.delta_ms, head.body_bytes as u64),
                (0x0607_0809, delta_ms, body_bytes)
            );
            assert_eq!(head.body_at, built.len());
            if let Some(found) = plain_head(&bytes) {
                plain += 1;
                assert_eq!(found, head, "row {row}");
            }
            for cut in 0..built.len() {
                assert_eq!(message_head(&bytes[..cut]), Err(HeadError::Cut));
            }
            assert_eq!(message_head(&bytes[..built.len()]), Ok(head));
        });
        assert_eq!(plain, 3 * 9 * 5, "all that are small");
        for kind in [PUBLISH | FLAG_SECTIONS, PUBLISH | FLAG_MANY, TRANSFER] {
            assert_eq!(plain_head(&[kind; 16]), None);
        }
    }
}
