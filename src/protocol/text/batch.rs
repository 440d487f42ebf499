//! The bodies of `MPUB`: n lines, or counted messages one behind another. Measures and checks
//! them, and walks the messages of a checked one; stores nothing.

use crate::broker::command::Framing;
use crate::broker::reply::{Error, ErrorCode};
use crate::config::Limits;

use super::value::{decimal, syntax};

/// What a checked batch holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Messages.
    pub count: u32,
    /// The sum of their lengths, bytes.
    pub body_bytes: u64,
}

/// Follows n lines through pieces of input, whatever is done with the bytes.
#[derive(Clone, Copy, Debug)]
pub struct LineScan {
    /// Lines still to come, the one under way included.
    left: u64,
    /// Bytes of the line under way.
    open_bytes: u64,
    /// Its last byte is a CR, which will not count if an LF follows.
    open_cr: bool,
    /// Bytes of every message that is complete.
    pub body_bytes: u64,
    /// The longest message, bytes, the one under way included.
    pub longest: u64,
    /// All bytes taken, line ends included.
    pub seen: u64,
}

impl LineScan {
    /// Waits for so many lines.
    pub fn new(lines: u64) -> LineScan {
        LineScan {
            left: lines,
            open_bytes: 0,
            open_cr: false,
            body_bytes: 0,
            longest: 0,
            seen: 0,
        }
    }

    /// The last line has ended.
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Takes input up to the last line's end; returns how many bytes that were.
    pub fn feed(&mut self, input: &[u8]) -> usize {
        if self.left == 0 {
            return 0;
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', input) {
            let piece = &input[start..end];
            let cr = piece.last().map_or(self.open_cr, |last| *last == b'\r');
            let message = self.open_bytes + piece.len() as u64 - u64::from(cr);
            self.body_bytes += message;
            self.longest = self.longest.max(message);
            self.open_bytes = 0;
            self.open_cr = false;
            start = end + 1;
            self.left -= 1;
            if self.left == 0 {
                self.seen += start as u64;
                return start;
            }
        }
        let piece = &input[start..];
        if let Some(last) = piece.last() {
            self.open_cr = *last == b'\r';
            self.open_bytes += piece.len() as u64;
            let message = self.open_bytes - u64::from(self.open_cr);
            self.longest = self.longest.max(message);
        }
        self.seen += input.len() as u64;
        input.len()
    }
}

/// Checks that `data` is exactly messages of the form `<len> LF bytes LF`, within the limits.
///
/// # Errors
/// `SYNTAX` when it is not, `TOOBIG` for a message or a number of messages over its limit.
pub fn check_counted(data: &[u8], limits: &Limits) -> Result<Extent, Error> {
    let mut extent = Extent::default();
    let mut rest = data;
    while !rest.is_empty() {
        let Some((body, after)) = next_counted(rest) else {
            return Err(syntax(format!(
                "message {} of the batch is not exact: each is its length, a line feed, so many \
                 octets and a line feed",
                extent.count + 1
            )));
        };
        if body.len() > limits.body_bytes_max {
            return Err(body_too_big(limits));
        }
        if extent.count as usize >= limits.batch_count_max {
            return Err(batch_too_long(limits));
        }
        extent.count += 1;
        extent.body_bytes += body.len() as u64;
        rest = after;
    }
    if extent.count == 0 {
        return Err(empty_batch());
    }
    Ok(extent)
}

/// Splits the first counted message off.
fn next_counted(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let line_end = data.iter().take(11).position(|octet| *octet == b'\n')?;
    let size = usize::try_from(decimal(&data[..line_end])?).ok()?;
    let rest = &data[line_end + 1..];
    if size >= rest.len() || rest[size] != b'\n' {
        return None;
    }
    Some((&rest[..size], &rest[size + 1..]))
}

/// The messages of a checked batch, in order.
pub fn messages(framing: Framing, data: &[u8]) -> Messages<'_> {
    Messages {
        framing,
        rest: data,
    }
}

/// Iterator over the messages of a batch; see [`messages`]. Ends early on data that was not
/// checked.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    framing: Framing,
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        match self.framing {
            Framing::Lines => {
                let end = super::line::find_end(self.rest, 0)?;
                let line = super::line::without_cr(&self.rest[..end]);
                self.rest = &self.rest[end + 1..];
                Some(line)
            }
            Framing::Counted => {
                let (body, rest) = next_counted(self.rest)?;
                self.rest = rest;
                Some(body)
            }
        }
    }
}

/// A batch without a message.
pub fn empty_batch() -> Error {
    syntax("a batch has at least one message, as in MPUB jobs *2 and two lines")
}

/// A message over its limit.
pub fn body_too_big(limits: &Limits) -> Error {
    Error::new(
        ErrorCode::TooBig,
        format!(
            "a message has at most {} bytes here (max_body of HELLO): keep large things \
             elsewhere and send a reference",
            limits.body_bytes_max
        ),
    )
}

/// A batch with too many messages.
pub fn batch_too_long(limits: &Limits) -> Error {
    Error::new(
        ErrorCode::TooBig,
        format!(
            "a batch has at most {} messages here (max_batch of HELLO): send several",
            limits.batch_count_max
        ),
    )
}

/// Lines of which one, or all together, are too long. One text for both, since which is noticed
/// first depends on how the input was cut.
pub fn lines_too_big(limits: &Limits) -> Error {
    Error::new(
        ErrorCode::TooBig,
        format!(
            "a message has at most {} bytes here and a batch {} (max_body and max_batch_bytes of \
             HELLO): send several",
            limits.body_bytes_max, limits.batch_bytes_max
        ),
    )
}

/// A batch with too many bytes.
pub fn batch_too_big(limits: &Limits) -> Error {
    Error::new(
        ErrorCode::TooBig,
        format!(
            "a batch has at most {} bytes here (max_batch_bytes of HELLO): send several",
            limits.batch_bytes_max
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans `input` cut at every place; what is behind the last line is never taken.
    fn check(lines: u64, input: &[u8], taken: usize, body_bytes: u64, longest: u64) {
        for cut in 0..=input.len() {
            let mut scan = LineScan::new(lines);
            let mut total = scan.feed(&input[..cut]);
            assert!(total == cut || scan.is_done());
            total += scan.feed(&input[total..]);
            assert!(scan.is_done(), "{input:?} cut at {cut}");
            let got = (total, scan.body_bytes, scan.longest, scan.seen);
            assert_eq!(
                got,
                (taken, body_bytes, longest, taken as u64),
                "{input:?} at {cut}"
            );
        }
    }

    #[test]
    fn lines_are_followed_through_every_cut() {
        check(0, b"a\n", 0, 0, 0);
        check(1, b"\n", 1, 0, 0);
        check(1, b"a\nb\n", 2, 1, 1);
        check(2, b"a\r\nbcd\r\n\n", 8, 4, 3);
        check(3, b"\r\n\r\r\n\rx\n", 8, 3, 2);
        check(2, b"longest\nb\nlonger than the longest\n", 10, 8, 7);
    }

    fn counted(data: &[u8]) -> Option<Vec<Vec<u8>>> {
        let limits = Limits {
            body_bytes_max: 20,
            batch_count_max: 3,
            ..Limits::default()
        };
        let extent = check_counted(data, &limits).ok()?;
        let bodies: Vec<_> = messages(Framing::Counted, data)
            .map(<[u8]>::to_vec)
            .collect();
        assert_eq!(extent.count as usize, bodies.len());
        let sum: usize = bodies.iter().map(Vec::len).sum();
        assert_eq!(extent.body_bytes as usize, sum);
        Some(bodies)
    }

    #[test]
    fn counted_messages_are_exact_or_refused() {
        assert_eq!(counted(b"1\na\n"), Some(vec![b"a".to_vec()]));
        assert_eq!(
            counted(b"0\n\n03\n\n\n\n\n2\n\r\n\n"),
            Some(vec![b"".to_vec(), b"\n\n\n".to_vec(), b"\r\n".to_vec()])
        );
        for bad in [
            &b""[..],
            b"1\na",
            b"1\na\r\n",
            b"2\na\n",
            b"1\nab\n",
            b"\n\n",
            b"x\na\n",
            b"-1\na\n",
            b"+1\na\n",
            b"1 \na\n",
            b"1\r\na\n",
            b"1",
            b"99999999999999999999\na\n",
            b"00000000001\na\n",
            b"1\na\n2",
            b"1\na\n1\na\n1\na\n1\na\n",
            b"21\nabcdefghijklmnopqrstu\n",
        ] {
            assert_eq!(counted(bad), None, "{bad:?}");
        }
        assert!(counted(b"20\nabcdefghijklmnopqrst\n").is_some());
    }

    #[test]
    fn lines_are_walked_without_their_ends() {
        let lines: Vec<_> = messages(Framing::Lines, b"a\r\n\n:b $5\nc\r\r\n").collect();
        assert_eq!(lines, [&b"a"[..], b"", b":b $5", b"c\r"]);
    }
}
