//! The entries of a record: what happened, one by one, and how that is written.
//!
//! An entry holds outcomes (ids, runs, targets), never requests. Entries that hold a message
//! ([`Entry::Publish`], [`Entry::Transfer`]) carry a checksum of their own, seeded with their
//! position, so that a message read back later is this one or nothing.

use crate::broker::command::Body;
use crate::broker::id::{MessageId, QueueUid};

use super::crc;
use super::sections::{Sections, SectionsError};
use crate::broker::varint;

/// A message to be stored.
#[derive(Debug)]
pub struct Message<'a> {
    /// Publish time, milliseconds since the unix epoch.
    pub time_ms: u64,
    /// Optional sections, as a [`super::SectionsBuilder`] makes them; mostly empty.
    pub sections: &'a [u8],
    /// The body. An owned one of 16 KiB or more is kept without copying it.
    pub body: Body<'a>,
}

/// Why messages were settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SettleReason {
    /// A consumer acked it.
    Acked = 1,
    /// Its time to live ended.
    Expired = 2,
    /// It made room in a queue that was full.
    DroppedOld = 3,
    /// `DEL`.
    Deleted = 4,
    /// `PURGE`.
    Purged = 5,
    /// Its last try failed and there is no dead-letter queue to take it.
    Dead = 6,
    /// Its body was damaged on disk.
    Damaged = 7,
    /// Every reader had settled it before, and `retain=` keeps it no longer.
    Released = 8,
}

impl SettleReason {
    fn from_byte(byte: u8) -> Option<SettleReason> {
        use SettleReason::*;
        [
            Acked, Expired, DroppedOld, Deleted, Purged, Dead, Damaged, Released,
        ]
        .get(byte.wrapping_sub(1) as usize)
        .copied()
    }
}

/// Why a message went to another queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TransferReason {
    /// `maxdeliver` was reached.
    Tries = 1,
    /// Its time to live ended.
    Expired = 2,
    /// It made room in a queue that was full.
    DroppedOld = 3,
    /// `NACK dead=1`.
    Rejected = 4,
    /// `MOVE`.
    Moved = 5,
}

impl TransferReason {
    /// The reason that this byte of the log means, if it means one.
    pub fn from_byte(byte: u8) -> Option<TransferReason> {
        use TransferReason::*;
        [Tries, Expired, DroppedOld, Rejected, Moved]
            .get(byte.wrapping_sub(1) as usize)
            .copied()
    }
}

/// Consecutive ids of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first id.
    pub first: MessageId,
    /// How many, at least 1.
    pub count: u64,
}

/// One thing that happened.
#[derive(Debug)]
pub enum Entry<'a> {
    /// A message was published to one or more queues; it is stored once.
    Publish {
        /// Every queue that took it, and its id there; at least one.
        targets: &'a [(QueueUid, MessageId)],
        /// The message.
        message: Message<'a>,
    },
    /// Messages of one queue were settled.
    Settle {
        /// The queue.
        queue: QueueUid,
        /// Number of the group in the queue; 0 = the one without a name.
        group: u32,
        /// Why.
        reason: SettleReason,
        /// Which; at least one run.
        runs: &'a [Run],
    },
    /// Leases of messages ended without settling them.
    Release {
        /// The queue.
        queue: QueueUid,
        /// Number of the group in the queue.
        group: u32,
        /// Which messages.
        run: Run,
        /// The failed tries of each so far.
        tries: u32,
        /// Not delivered again before this unix time, microseconds; 0 = at once.
        not_before_us: u64,
    },
    /// A message was settled in one queue and written anew to another, atomically.
    Transfer {
        /// Where it was.
        source: QueueUid,
        /// Its id there.
        source_id: MessageId,
        /// Number of the group of the source in which it was settled.
        group: u32,
        /// Why.
        reason: TransferReason,
        /// Where it is now.
        target: QueueUid,
        /// Its id there.
        target_id: MessageId,
        /// The message as it is stored now.
        message: Message<'a>,
    },
    /// A queue was made, or its settings changed.
    Define {
        /// The queue.
        uid: QueueUid,
        /// Its name, 1 to 255 octets.
        name: &'a [u8],
        /// The broker's encoding of its settings.
        settings: &'a [u8],
        /// The broker's flags.
        flags: u32,
    },
    /// A queue was deleted with everything in it.
    DeleteQueue {
        /// The queue.
        uid: QueueUid,
    },
    /// A queue takes what is cast to topics that a pattern means.
    Bind {
        /// The queue.
        queue: QueueUid,
        /// The pattern as it is typed.
        pattern: &'a [u8],
    },
    /// A reader of a queue begins, or goes to another place: it has every message that is stored from an id on,
    /// and none before.
    Group {
        /// The group's identity, of those of queues and never used again; the queue's own for its bare
        /// name.
        uid: QueueUid,
        /// Whose messages it reads.
        queue: QueueUid,
        /// The first message that it has.
        first: MessageId,
        /// Octets of the group's name; empty for the bare name.
        name: &'a [u8],
    },
    /// It does not any more.
    Unbind {
        /// The queue.
        queue: QueueUid,
        /// The pattern as it is typed.
        pattern: &'a [u8],
    },
    /// A schedule of a queue was made or changed, has published a message, or has ended.
    Schedule {
        /// The queue.
        queue: QueueUid,
        /// Which of the broker's schedules.
        number: u64,
        /// When its next message is due, unix microseconds; 0 = it has ended.
        next_us: u64,
        /// The broker's encoding of it; empty if it stays as it is.
        definition: &'a [u8],
    },
    /// A message has left for a queue of another shard: it stays where it is, taken, until it is settled.
    Out {
        /// Its number among those of this shard, from 1.
        seq: u64,
        /// Where it goes.
        shard: u32,
        /// Which reader it leaves.
        queue: QueueUid,
        /// Its id there.
        id: MessageId,
        /// Why.
        reason: TransferReason,
        /// How often it was tried.
        tries: u32,
        /// Name of the queue it goes to, 1 to 255 octets.
        target: &'a [u8],
        /// What the consumer said.
        why: &'a [u8],
    },
    /// The next message of this record came from another shard.
    In {
        /// Where it comes from.
        shard: u32,
        /// Its number there.
        seq: u64,
        /// What has lower numbers there is never sent again.
        below: u64,
        /// Uid of the reader there that it died in; 0 if it did not.
        origin: u64,
    },
    /// What another shard has to do in a transaction that is decided; an empty part: it has done it.
    Part {
        /// Its number among those of this shard, from 1.
        seq: u64,
        /// The shard.
        shard: u32,
        /// The broker's encoding of it.
        part: &'a [u8],
    },
    /// An exchange or a binding was made or ended, or a queue was declared.
    Route {
        /// The broker's encoding of it.
        change: &'a [u8],
    },
    /// The broker started.
    Open {
        /// Which start on this data directory, from 1.
        incarnation: u64,
    },
}

pub(crate) const PUBLISH: u8 = 1;
pub(crate) const TRANSFER: u8 = 2;
pub(super) const SETTLE: u8 = 3;
pub(super) const RELEASE: u8 = 4;
pub(super) const DEFINE: u8 = 5;
pub(super) const DELETE_QUEUE: u8 = 6;
pub(super) const OPEN: u8 = 7;
pub(super) const GROUP: u8 = 8;
pub(super) const SCHEDULE: u8 = 12;
pub(super) const OUT: u8 = 13;
pub(super) const IN: u8 = 14;
pub(super) const PART: u8 = 15;
pub(super) const BIND: u8 = 16;
pub(super) const UNBIND: u8 = 17;
pub(super) const ROUTE: u8 = 18;

/// The bits of the first byte that hold the kind; the others are flags.
const KIND_BITS: u8 = 0x1f;
/// A publish with several targets.
pub(crate) const FLAG_MANY: u8 = 0x20;
/// A message with sections.
pub(crate) const FLAG_SECTIONS: u8 = 0x40;

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

/// Why an entry cannot be read although its record's checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryError {
    /// The bytes do not follow the format.
    Malformed(&'static str),
    /// A kind of entry or a flag of a later version.
    UnknownKind(u8),
    /// A section of a later version that must be understood.
    UnknownSection(u8),
}

/// Memory that reading entries uses again and again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    rows: Vec<(QueueUid, MessageId)>,
    targets: Vec<(QueueUid, MessageId)>,
    runs: Vec<Run>,
}

/// Reads the entries of one record, front to back.
pub(crate) struct Entries<'r, 's> {
    bytes: &'r [u8],
    at: usize,
    left: u32,
    base_ms: u64,
    scratch: &'s mut Scratch,
}

impl<'r, 's> Entries<'r, 's> {
    /// Begins to read: `bytes` is the record from its first byte up to its table, `at` where the
    /// entries begin, `table` its table, `base_ms` the segment's base time.
    pub fn new(
        bytes: &'r [u8],
        at: usize,
        count: u32,
        table: &[u8],
        base_ms: u64,
        scratch: &'s mut Scratch,
    ) -> Entries<'r, 's> {
        scratch.rows.clear();
        scratch
            .rows
            .extend(table.as_chunks::<16>().0.iter().map(|row| {
                let (uid, first) = row.split_at(8);
                let number = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("half a row"));
                (QueueUid(number(uid)), number(first))
            }));
        Entries {
            bytes,
            at,
            left: count,
            base_ms,
            scratch,
        }
    }

    /// The next entry and where it begins in the record.
    pub fn next(&mut self) -> Result<Option<(usize, Entry<'_>)>, EntryError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let start = self.at;
        let kind = *self
            .bytes
            .get(start)
            .ok_or(EntryError::Malformed("an entry is missing"))?;
        let entry = match kind & KIND_BITS {
            PUBLISH | TRANSFER => self.message(start, kind)?,
            _ => self.plain(start, kind)?,
        };
        Ok(Some((start, entry)))
    }

    fn message(&mut self, start: usize, kind: u8) -> Result<Entry<'_>, EntryError> {
        const BAD: EntryError = EntryError::Malformed("a message is cut");
        if kind & !(KIND_BITS | FLAG_MANY | FLAG_SECTIONS) != 0 {
            return Err(EntryError::UnknownKind(kind));
        }
        let bytes = &self.bytes[start..];
        let head = message_head(bytes).map_err(|_| BAD)?;
        let entry = bytes.get(..head.entry_bytes()).ok_or(BAD)?;
        let sections = &entry[head.sections_at..head.body_at];
        match Sections(sections).validate() {
            Ok(()) => {}
            Err(SectionsError::Cut) => return Err(EntryError::Malformed("a section is cut")),
            Err(SectionsError::Unknown(kind)) => return Err(EntryError::UnknownSection(kind)),
        }
        let message = Message {
            time_ms: self.base_ms.saturating_add(head.delta_ms),
            sections,
            body: Body::Borrowed(&entry[head.body_at..]),
        };
        self.at = start + head.entry_bytes();
        let mut at = 5;
        if kind & KIND_BITS == PUBLISH {
            let count = if kind & FLAG_MANY != 0 {
                varint::get(entry, &mut at).ok_or(BAD)?
            } else {
                1
            };
            self.scratch.targets.clear();
            for _ in 0..count {
                let row = varint::get(entry, &mut at).ok_or(BAD)?;
                let row = usize::try_from(row)
                    .ok()
                    .and_then(|row| self.scratch.rows.get_mut(row));
                let (queue, next) = row.ok_or(EntryError::Malformed("no such row in the table"))?;
                self.scratch.targets.push((*queue, *next));
                *next += 1;
            }
            let targets = &self.scratch.targets;
            return Ok(Entry::Publish { targets, message });
        }
        let mut number = || varint::get(entry, &mut at).ok_or(BAD);
        let (source, source_id) = (QueueUid(number()?), number()?);
        let reason = entry[at];
        at += 1;
        let mut number = || varint::get(entry, &mut at).ok_or(BAD);
        Ok(Entry::Transfer {
            source,
            source_id,
            reason: TransferReason::from_byte(reason).ok_or(EntryError::UnknownKind(kind))?,
            group: small(number()?)?,
            target: QueueUid(number()?),
            target_id: number()?,
            message,
        })
    }

    fn plain(&mut self, start: usize, kind: u8) -> Result<Entry<'_>, EntryError> {
        const BAD: EntryError = EntryError::Malformed("an entry is cut");
        let mut at = start + 1;
        let length = varint::get(self.bytes, &mut at).ok_or(BAD)?;
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| at.checked_add(length));
        let octets = end.and_then(|end| self.bytes.get(at..end)).ok_or(BAD)?;
        self.at = at + octets.len();
        let mut at = 0;
        let mut number = || varint::get(octets, &mut at).ok_or(BAD);
        let entry = match kind {
            SETTLE => {
                let (queue, group) = (QueueUid(number()?), small(number()?)?);
                let reason = *octets.get(at).ok_or(BAD)?;
                at += 1;
                let mut number = || varint::get(octets, &mut at).ok_or(BAD);
                self.scratch.runs.clear();
                for _ in 0..number()? {
                    let (first, count) = (number()?, number()?);
                    if count == 0 || first.checked_add(count).is_none() {
                        return Err(EntryError::Malformed("an empty or endless run of ids"));
                    }
                    self.scratch.runs.push(Run { first, count });
                }
                Entry::Settle {
                    queue,
                    group,
                    reason: SettleReason::from_byte(reason).ok_or(EntryError::UnknownKind(kind))?,
                    runs: &self.scratch.runs,
                }
            }
            RELEASE => Entry::Release {
                queue: QueueUid(number()?),
                group: small(number()?)?,
                run: Run {
                    first: number()?,
                    count: number()?,
                },
                tries: small(number()?)?,
                not_before_us: number()?,
            },
            DEFINE => {
                let (uid, flags, name) = (QueueUid(number()?), small(number()?)?, number()?);
                let name = usize::try_from(name).map_err(|_| BAD)?;
                let (name, settings) = octets[at..].split_at_checked(name).ok_or(BAD)?;
                Entry::Define {
                    uid,
                    name,
                    settings,
                    flags,
                }
            }
            DELETE_QUEUE => Entry::DeleteQueue {
                uid: QueueUid(number()?),
            },
            GROUP => {
                let (uid, queue, first) = (QueueUid(number()?), QueueUid(number()?), number()?);
                let name = &octets[at..];
                Entry::Group {
                    uid,
                    queue,
                    first,
                    name,
                }
            }
            BIND | UNBIND => {
                let queue = QueueUid(number()?);
                let pattern = &octets[at..];
                match kind {
                    BIND => Entry::Bind { queue, pattern },
                    _ => Entry::Unbind { queue, pattern },
                }
            }
            SCHEDULE => {
                let (queue, number, next_us) = (QueueUid(number()?), number()?, number()?);
                Entry::Schedule {
                    queue,
                    number,
                    next_us,
                    definition: &octets[at..],
                }
            }
            OUT => {
                let (seq, shard) = (number()?, small(number()?)?);
                let (queue, id) = (QueueUid(number()?), number()?);
                let (reason, tries) = (number()?, small(number()?)?);
                let reason = u8::try_from(reason).ok();
                let reason = reason.and_then(TransferReason::from_byte);
                let name = usize::try_from(number()?).map_err(|_| BAD)?;
                let (target, why) = octets[at..].split_at_checked(name).ok_or(BAD)?;
                Entry::Out {
                    seq,
                    shard,
                    queue,
                    id,
                    reason: reason.ok_or(EntryError::UnknownKind(kind))?,
                    tries,
                    target,
                    why,
                }
            }
            IN => Entry::In {
                shard: small(number()?)?,
                seq: number()?,
                below: number()?,
                origin: number()?,
            },
            PART => Entry::Part {
                seq: number()?,
                shard: small(number()?)?,
                part: &octets[at..],
            },
            ROUTE => Entry::Route { change: octets },
            OPEN => Entry::Open {
                incarnation: number()?,
            },
            _ => return Err(EntryError::UnknownKind(kind)),
        };
        Ok(entry)
    }

    /// All entries were read and nothing but the table follows.
    pub fn is_done(&self) -> bool {
        self.left == 0 && self.at == self.bytes.len()
    }
}

fn small(number: u64) -> Result<u32, EntryError> {
    u32::try_from(number).map_err(|_| EntryError::Malformed("a number is too large"))
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
