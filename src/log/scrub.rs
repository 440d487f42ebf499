//! The slow scrub: closed segments are read again, piece by piece, and every record's checksum is
//! verified, so that damage to old bodies is told while other copies may still exist, not when
//! somebody at last asks for the message.
//!
//! It changes nothing: a damaged message stays where it is and is kept back when it is asked for,
//! and `ringmq check` names what is in the record.

use super::Log;
use super::disk::{Disk, Storage};
use super::job::{Job, Work};
use super::record::{HEADER_BYTES, Header, NoRecord};
use super::rw::read_up_to;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentName};

/// Bytes read in one piece, unless a record is longer.
const PIECE_BYTES: u64 = 1 << 20;

/// How far the scrub has got.
#[derive(Debug)]
pub(crate) struct Scrub {
    /// When the next piece is due, microseconds; `None` while one is being read.
    pub next_at: Option<u64>,
    /// When this round began, microseconds.
    began_us: u64,
    /// The segment being read and the offset of its next record.
    at: Option<(SegmentName, u64)>,
    /// The last segment done in this round.
    done: Option<SegmentName>,
}

impl Scrub {
    /// A scrub whose first round begins at `first_us`.
    pub fn new(first_us: u64) -> Scrub {
        Scrub {
            next_at: Some(first_us),
            began_us: first_us,
            at: None,
            done: None,
        }
    }
}

/// A run of records to verify.
#[derive(Debug)]
pub(crate) struct Piece {
    pub name: SegmentName,
    pub epoch: u64,
    seed: u32,
    /// Position of the segment's first byte.
    start: u64,
    /// Offset of the first record, and of the end of the segment's last.
    offset: u64,
    end: u64,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Verified {
    /// Offset of the first record that was not looked at.
    pub next: u64,
    /// Offsets where a record should be whole and is not.
    pub damaged: Vec<u64>,
}

/// Verifies the records of one piece. An error says only that it could not be read now.
pub(crate) fn perform<D: Disk>(disk: &D, piece: &Piece) -> std::io::Result<Verified> {
    let file = disk.open(&piece.name.path())?;
    let read = |offset: u64, count: u64| {
        let mut bytes = vec![0; count as usize];
        let filled = read_up_to(disk, &file, offset, &mut bytes)?;
        bytes.truncate(filled);
        std::io::Result::Ok(bytes)
    };
    let mut bytes = read(piece.offset, PIECE_BYTES.min(piece.end - piece.offset))?;
    let mut verified = Verified {
        next: piece.offset,
        damaged: Vec::new(),
    };
    loop {
        let at = (verified.next - piece.offset) as usize;
        let rest = bytes.get(at..).unwrap_or_default();
        match Header::parse(rest, piece.seed, piece.start + verified.next, piece.epoch) {
            Ok(header) => verified.next += u64::from(header.length),
            Err(NoRecord::Damaged(length)) if at > 0 && length as usize > rest.len() => {
                // It goes on behind this piece: the next one begins with it.
                return Ok(verified);
            }
            Err(NoRecord::Damaged(length)) if length as usize > rest.len() && at == 0 => {
                let whole = u64::from(length).min(piece.end - piece.offset);
                if rest.len() as u64 >= whole {
                    verified.damaged.push(verified.next);
                    verified.next = piece.end;
                } else {
                    bytes = read(piece.offset, whole)?;
                    if (bytes.len() as u64) < whole {
                        verified.damaged.push(verified.next);
                        verified.next = piece.end;
                    }
                }
            }
            Err(NoRecord::Damaged(length)) => {
                verified.damaged.push(verified.next);
                verified.next += u64::from(length).max(HEADER_BYTES as u64);
            }
            Err(NoRecord::Nothing) if at > 0 && rest.len() < HEADER_BYTES => return Ok(verified),
            Err(NoRecord::Nothing | NoRecord::Later(_)) => {
                // Where the next record begins is lost.
                verified.damaged.push(verified.next);
                verified.next = piece.end;
            }
        }
        if verified.next >= piece.end || (verified.next - piece.offset) as usize >= bytes.len() {
            return Ok(verified);
        }
    }
}

impl<S: Storage> Log<S> {
    /// Has the next piece read if one is due.
    pub(crate) fn scrub_if_due(&mut self) {
        if self.failure.is_some() || self.scrub.next_at.is_none_or(|at| at > self.now_us) {
            return;
        }
        if self.scrub.at.is_none() {
            self.scrub.at = self.next_to_scrub();
        }
        let Some((name, offset)) = self.scrub.at else {
            let next = self
                .scrub
                .began_us
                .saturating_add(self.config.scrub_round_us);
            let next = next.max(self.now_us + self.config.scrub_piece_us);
            self.scrub = Scrub::new(next);
            return;
        };
        let Some(segment) = self.table.get(name).filter(|segment| segment.closed) else {
            // It was given up meanwhile.
            self.scrub.at = None;
            self.scrub.done = Some(name);
            return self.scrub_if_due();
        };
        self.scrub.next_at = None;
        let piece = Piece {
            name,
            epoch: segment.epoch,
            seed: self.seed,
            start: self.table.range(name).start.0,
            offset,
            end: segment.end,
        };
        self.storage.submit(Job {
            work: Work::Scrub(piece),
        });
    }

    /// The first segment behind the last one done that is closed, durable and holds messages.
    fn next_to_scrub(&self) -> Option<(SegmentName, u64)> {
        let first_in_tail = self
            .tail
            .segments
            .front()
            .map_or(u64::MAX, |segment| segment.number);
        let order = |name: SegmentName| (name.kept, name.number);
        self.table
            .iter()
            .filter(|(name, _)| {
                self.scrub
                    .done
                    .is_none_or(|done| order(*name) > order(done))
            })
            .filter(|(name, segment)| {
                segment.closed && segment.live > 0 && (name.kept || name.number < first_in_tail)
            })
            .map(|(name, _)| (name, SEGMENT_HEADER_BYTES as u64))
            .min_by_key(|(name, _)| order(*name))
    }

    /// A piece was read.
    pub(crate) fn handle_scrubbed(&mut self, piece: &Piece, result: Result<Verified, String>) {
        self.scrub.next_at = Some(self.now_us + self.config.scrub_piece_us);
        let current = self.table.get(piece.name);
        let is_same = current.is_some_and(|segment| segment.epoch == piece.epoch);
        let verified = match result {
            Ok(verified) if is_same => verified,
            Ok(_) => return self.segment_scrubbed(piece.name),
            Err(cause) => {
                if is_same {
                    ::log::warn!("{} could not be scrubbed: {cause}", piece.name.path());
                }
                return self.segment_scrubbed(piece.name);
            }
        };
        self.stats.scrubbed_bytes += verified.next - piece.offset;
        for offset in verified.damaged {
            self.stats.scrub_damaged += 1;
            ::log::error!(
                "{} is damaged at offset {offset}: messages of this record are kept back when \
                 they are asked for; stop the broker and run `ringmq check` on the directory to \
                 see what is in it",
                piece.name.path()
            );
        }
        if verified.next >= piece.end {
            self.segment_scrubbed(piece.name);
        } else {
            self.scrub.at = Some((piece.name, verified.next));
        }
    }

    fn segment_scrubbed(&mut self, name: SegmentName) {
        self.scrub.at = None;
        self.scrub.done = Some(name);
    }
}
