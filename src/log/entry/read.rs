//! Reading the entries of a record.

use super::super::sections::{Sections, SectionsError};
use super::*;
use crate::broker::varint;

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
