//! Memory that large bodies are received into before anybody has looked at what comes.
//!
//! Who publishes bodies of one size to one queue sends the same line before each. Where that has been seen, the next
//! read is spread over what is expected: the line, a body, the line, a body. If it is what has come, the
//! bodies lie in memory of their own and are not copied any more; if not, the pieces are put together again, which is one
//! copy that was for nothing.

use std::collections::VecDeque;
use std::io::IoSliceMut;

use super::bodies;

/// Received ahead at most in one read, bytes and bodies.
pub const BYTES_MAX: usize = 256 << 10;
const BODIES_MAX: usize = 15;

/// Most pieces of one read.
const SLICES_MAX: usize = 1 + 2 * BODIES_MAX;

/// Where the next bytes of a connection can be read to; never empty.
#[derive(Debug)]
pub enum Room<'a> {
    /// One piece.
    One(&'a mut [u8]),
    /// What is left of a body under way, which may be nothing, and then what is expected.
    Several(&'a mut [u8], &'a mut Ahead),
}

impl Room<'_> {
    /// Places for the pieces of one read.
    pub fn places<'a>() -> [IoSliceMut<'a>; SLICES_MAX] {
        std::array::from_fn(|_| IoSliceMut::new(&mut []))
    }

    /// How many bytes there is room for.
    pub fn bytes(&self) -> usize {
        match self {
            Room::One(space) => space.len(),
            Room::Several(rest, ahead) => rest.len() + ahead.bytes(),
        }
    }

    /// The pieces of the room's first `most` bytes; returns how many.
    pub fn slices<'a>(&'a mut self, mut most: usize, slices: &mut [IoSliceMut<'a>]) -> usize {
        let mut count = 0;
        let mut add = |space: &'a mut [u8]| {
            let bytes = space.len().min(most);
            if bytes > 0 && count < slices.len() {
                most -= bytes;
                slices[count] = IoSliceMut::new(&mut space[..bytes]);
                count += 1;
            }
        };
        match self {
            Room::One(space) => add(space),
            Room::Several(rest, ahead) => {
                add(rest);
                let heads = ahead.heads.chunks_mut(ahead.line.len());
                for (head, body) in heads.zip(&mut ahead.bodies) {
                    add(head);
                    add(body);
                }
            }
        }
        count
    }

    /// Puts the first of these bytes where a read would; returns how many.
    pub fn fill(&mut self, mut bytes: &[u8]) -> usize {
        let wanted = bytes.len().min(self.bytes());
        bytes = &bytes[..wanted];
        let mut slices = Room::places();
        let count = self.slices(wanted, &mut slices);
        for slice in &mut slices[..count] {
            let (now, later) = bytes.split_at(slice.len());
            slice.copy_from_slice(now);
            bytes = later;
        }
        wanted
    }
}

/// What is expected, and where it is received to.
#[derive(Debug, Default)]
pub struct Ahead {
    /// The line in front of each body, with its end.
    line: Vec<u8>,
    /// What has come instead of each line.
    heads: Vec<u8>,
    /// Room for the bodies that follow, each with one byte for the end of its line.
    bodies: VecDeque<Vec<u8>>,
    /// How many of the heads belong to bodies that were taken.
    taken: usize,
}

/// What has come next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The line, and so much of its body and the byte behind that.
    Body(Vec<u8>, usize),
    /// Something else, or less than the line and a byte.
    Other,
}

impl Ahead {
    /// Bodies of `size` bytes behind that line, given without its end, are expected; false if they are too large for that.
    pub fn expect(&mut self, line: &[u8], size: usize) -> bool {
        let each = line.len() + 1 + size + 1;
        let count = (BYTES_MAX / each).min(BODIES_MAX);
        let is_same = self.line.strip_suffix(b"\n") == Some(line)
            && self
                .bodies
                .front()
                .is_none_or(|body| body.len() == size + 1);
        if !is_same {
            self.clear();
            self.line.extend_from_slice(line);
            self.line.push(b'\n');
        }
        self.taken = 0;
        self.heads.resize(count * self.line.len(), 0);
        while self.bodies.len() < count {
            self.bodies.push_back(bodies::take_or_make(size + 1));
        }
        count > 0
    }

    /// Nothing is expected any more.
    pub fn clear(&mut self) {
        self.line.clear();
        self.bodies.drain(..).for_each(bodies::give_back);
    }

    fn bytes(&self) -> usize {
        self.heads.len() + self.bodies.iter().map(Vec::len).sum::<usize>()
    }

    /// Takes the next body, if the `left` bytes that were received and not taken begin with its line.
    pub fn take(&mut self, left: usize) -> Next {
        let line = self.line.len();
        let at = self.taken * line;
        let is_line = left > line && self.heads.get(at..at + line) == Some(&self.line[..]);
        match is_line.then(|| self.bodies.pop_front()).flatten() {
            Some(body) => {
                let filled = (left - line).min(body.len());
                if filled == body.len() && body.last() != Some(&b'\n') {
                    // Another end of the line, or none.
                    self.bodies.push_front(body);
                    return Next::Other;
                }
                self.taken += 1;
                Next::Body(body, filled)
            }
            None => Next::Other,
        }
    }

    /// The `left` bytes that were received and not taken, as they came.
    pub fn rest(&self, mut left: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(left);
        let heads = self.heads.chunks(self.line.len()).skip(self.taken);
        for (head, body) in heads.zip(&self.bodies) {
            for piece in [head, &body[..]] {
                let bytes = piece.len().min(left);
                out.extend_from_slice(&piece[..bytes]);
                left -= bytes;
            }
        }
        out
    }

    /// The line's length with its end, bytes.
    pub fn line_bytes(&self) -> usize {
        self.line.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"PUB q $20000";
    const SIZE: usize = 20_000;

    /// One message as it is sent, with a body of that octet.
    fn sent(octet: u8) -> Vec<u8> {
        [LINE, b"\n", &[octet; SIZE], b"\n"].concat()
    }

    fn received(ahead: &mut Ahead, bytes: &[u8]) -> usize {
        let mut none = [];
        Room::Several(&mut none, ahead).fill(bytes)
    }

    #[test]
    fn what_is_expected_is_taken_without_a_copy() {
        let mut ahead = Ahead::default();
        assert!(ahead.expect(LINE, SIZE));
        let room = ahead.bodies[0].as_ptr();
        let stream = [sent(b'a'), sent(b'b'), sent(b'c')].concat();
        let cut = stream.len() - 7;
        assert_eq!(received(&mut ahead, &stream[..cut]), cut);
        let mut left = cut;
        for octet in [b'a', b'b'] {
            let Next::Body(body, filled) = ahead.take(left) else {
                panic!("it is what was expected");
            };
            assert!(octet == b'b' || body.as_ptr() == room);
            assert_eq!(filled, SIZE + 1);
            assert!(body[..SIZE].iter().all(|other| *other == octet));
            left -= ahead.line_bytes() + filled;
        }
        let Next::Body(_, filled) = ahead.take(left) else {
            panic!("it has begun");
        };
        assert_eq!((filled, left), (SIZE + 1 - 7, ahead.line_bytes() + filled));
        assert_eq!(ahead.take(0), Next::Other);
    }

    #[test]
    fn what_is_not_expected_is_put_together_at_every_place() {
        let other = b"PULL q\n".repeat(4_000);
        let ended = [LINE, b"\n", &[b'x'; SIZE], b"\r\nPING\n"].concat();
        for rest in [&other[..], &ended, &LINE[..5], LINE, b"PUB q $20000\n"] {
            for before in 0..2 {
                let mut ahead = Ahead::default();
                assert!(ahead.expect(LINE, SIZE));
                let stream = [&sent(b'a').repeat(before)[..], rest].concat();
                assert_eq!(received(&mut ahead, &stream), stream.len());
                let mut left = stream.len();
                for _ in 0..before {
                    let Next::Body(_, filled) = ahead.take(left) else {
                        panic!("it is what was expected");
                    };
                    left -= ahead.line_bytes() + filled;
                }
                assert_eq!(ahead.take(left), Next::Other);
                assert_eq!(ahead.rest(left), rest);
            }
        }
    }

    #[test]
    fn no_more_is_received_than_may_be() {
        let mut ahead = Ahead::default();
        assert!(!ahead.expect(LINE, BYTES_MAX), "one does not fit");
        assert!(ahead.expect(LINE, BYTES_MAX / 2));
        assert!(ahead.bytes() <= BYTES_MAX);
        assert!(ahead.expect(b"PUB q $16384", 16 << 10));
        assert!(ahead.bytes() <= BYTES_MAX);
        let mut none = [];
        let mut room = Room::Several(&mut none, &mut ahead);
        let mut slices = Room::places();
        let count = room.slices(20_000, &mut slices);
        let bytes: usize = slices[..count].iter().map(|slice| slice.len()).sum();
        assert_eq!((count, bytes), (4, 20_000));
    }
}
