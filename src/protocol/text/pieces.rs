//! Bodies that come in pieces: collected for a command that is valid, passed by for one that is refused.

use crate::broker::reply::{Error, ErrorCode};
use crate::buffer::bodies;
use crate::config::Limits;

use super::OVERSIZE_FACTOR;
use super::batch::{self, LineScan};

/// Memory that a body is given when its first bytes arrive, bytes; doubled as it fills.
const FIRST_BYTES: usize = 16 << 10;

/// Less room than this is not worth a read of its own, bytes.
const ROOM_BYTES_MIN: usize = 4 << 10;

/// A valid command whose body is on its way.
#[derive(Debug)]
pub(super) struct Collect {
    /// Its line, without the line end.
    pub line: Box<[u8]>,
    /// Its body so far. For a counted body this is room that is filled up to `rest`'s `filled`.
    pub buffer: Vec<u8>,
    pub rest: Rest,
}

#[derive(Debug)]
pub(super) enum Rest {
    /// `filled` of `size` octets and the first of their line end have arrived.
    Octets { size: usize, filled: usize },
    /// Lines.
    Lines(LineScan),
}

/// A refused command whose body is on its way.
#[derive(Debug)]
pub(super) struct Skip {
    pub tag: Option<Box<[u8]>>,
    pub error: Error,
    pub rest: SkipRest,
}

#[derive(Debug)]
pub(super) enum SkipRest {
    /// So many octets, then a line end.
    Octets(u64),
    /// Lines.
    Lines(LineScan),
}

/// How far a piece of input has brought a body.
pub(super) enum Progress {
    /// Not to its end.
    More,
    /// To its end.
    Whole,
    /// Over a limit: what follows of it is skipped.
    Over(Error),
    /// Out of step, or so far over a limit that it is not even skipped.
    Lost(Error),
}

impl Collect {
    pub fn take(&mut self, input: &[u8], limits: &Limits) -> (usize, Progress) {
        match &mut self.rest {
            Rest::Octets { size, filled } => {
                let size = *size;
                let taken = input.len().min((size + 1).saturating_sub(*filled));
                if taken == 0 && *filled <= size {
                    return (0, Progress::More);
                }
                let end = *filled + taken;
                let start = std::mem::replace(filled, end);
                self.make_room(end, size);
                self.buffer[start..end].copy_from_slice(&input[..taken]);
                if end <= size {
                    return (taken, Progress::More);
                }
                match (self.buffer[size], input.get(taken)) {
                    (b'\n', _) => (taken, Progress::Whole),
                    (b'\r', Some(b'\n')) => (taken + 1, Progress::Whole),
                    (b'\r', None) => (taken, Progress::More),
                    _ => (taken, Progress::Lost(no_line_end())),
                }
            }
            Rest::Lines(scan) => {
                let taken = scan.feed(input);
                if let Err(progress) = lines_verdict(scan, limits) {
                    return (taken, progress);
                }
                self.buffer.extend_from_slice(&input[..taken]);
                let progress = if scan.is_done() {
                    Progress::Whole
                } else {
                    Progress::More
                };
                (taken, progress)
            }
        }
    }

    /// Makes the buffer at least `bytes` long, more so that it is not made longer often, but never
    /// longer than the body and one byte.
    pub fn make_room(&mut self, bytes: usize, size: usize) {
        let long = self.buffer.len();
        let enough = bytes <= long && (long - bytes >= ROOM_BYTES_MIN || long > size);
        if enough {
            return;
        }
        let wanted = bytes.max(FIRST_BYTES).max(long * 2).min(size + 1);
        if wanted > long
            && let Some(mut kept) = bodies::take(size + 1)
        {
            // Memory that is held already: all of the body may use it at once.
            kept[..long].copy_from_slice(&self.buffer);
            self.buffer = kept;
        } else if wanted > long {
            self.buffer.reserve_exact(wanted - long);
            self.buffer.resize(wanted, 0);
        }
    }
}

impl Skip {
    pub fn take(&mut self, input: &[u8], limits: &Limits) -> (usize, Progress) {
        match &mut self.rest {
            SkipRest::Octets(left) => {
                let taken =
                    usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= taken as u64;
                if *left > 0 {
                    return (taken, Progress::More);
                }
                match &input[taken..] {
                    [b'\n', ..] => (taken + 1, Progress::Whole),
                    [b'\r', b'\n', ..] => (taken + 2, Progress::Whole),
                    [] | [b'\r'] => (taken, Progress::More),
                    _ => (taken, Progress::Lost(no_line_end())),
                }
            }
            SkipRest::Lines(scan) => {
                let taken = scan.feed(input);
                match lines_verdict(scan, limits) {
                    Err(Progress::Lost(error)) => (taken, Progress::Lost(error)),
                    _ if scan.is_done() => (taken, Progress::Whole),
                    _ => (taken, Progress::More),
                }
            }
        }
    }
}

/// What the lines seen so far say about the limits.
pub(super) fn lines_verdict(scan: &LineScan, limits: &Limits) -> Result<(), Progress> {
    let batch_max = batch_bytes_max(limits);
    if is_oversize(scan.longest, limits.body_bytes_max) || is_oversize(scan.seen, batch_max) {
        return Err(Progress::Lost(oversize(batch::lines_too_big(limits))));
    }
    if scan.longest > limits.body_bytes_max as u64 || scan.seen > batch_max as u64 {
        return Err(Progress::Over(batch::lines_too_big(limits)));
    }
    Ok(())
}

/// Largest body of a command that is no `PUB`, bytes.
pub(super) fn batch_bytes_max(limits: &Limits) -> usize {
    limits.batch_bytes_max.max(limits.body_bytes_max)
}

/// So far over its limit that it is not read past.
pub(super) fn is_oversize(size: u64, size_max: usize) -> bool {
    size / OVERSIZE_FACTOR > size_max as u64
        || (size / OVERSIZE_FACTOR == size_max as u64 && !size.is_multiple_of(OVERSIZE_FACTOR))
}

/// The place behind a body's line end.
pub(super) enum LineEnd {
    /// Behind so many bytes.
    At(usize),
    /// Something else stands there.
    Missing,
    /// Not seen before so many bytes are there.
    Needs(usize),
}

/// Looks for the line end behind `size` octets.
pub(super) fn line_end(input: &[u8], size: usize) -> LineEnd {
    match input.get(size..) {
        Some([b'\n', ..]) => LineEnd::At(size + 1),
        Some([b'\r', b'\n', ..]) => LineEnd::At(size + 2),
        Some([b'\r']) => LineEnd::Needs(size + 2),
        None | Some([]) => LineEnd::Needs(size + 1),
        Some(_) => LineEnd::Missing,
    }
}

pub(super) fn proto(text: &'static str) -> Error {
    Error::new(ErrorCode::Proto, text)
}

pub(super) fn no_line_end() -> Error {
    proto(
        "no line end follows the body, so its size was wrong; where the next command begins is \
         lost, so the connection is closed",
    )
}

/// The same refusal for a body that is not even read past.
pub(super) fn oversize(error: Error) -> Error {
    let text = format!(
        "{}; this is over {OVERSIZE_FACTOR} times that, so the connection is closed",
        error.text
    );
    Error::new(error.code, text)
}
