//! A body of known length that comes in pieces: memory grows with what has arrived, never with what was
//! announced.

use bytes::Bytes;

/// The first memory taken for a body, bytes.
const FIRST_BYTES: usize = 16 << 10;

/// A body that is coming in.
#[derive(Debug)]
pub struct Collect {
    buffer: Vec<u8>,
    filled: usize,
    size: usize,
}

impl Collect {
    /// One of `size` bytes, of which nothing has come.
    pub fn new(size: usize) -> Collect {
        Collect {
            buffer: Vec::new(),
            filled: 0,
            size,
        }
    }

    /// Takes what belongs to the body from the front of `input`; returns how much that was, bytes.
    pub fn take(&mut self, input: &[u8]) -> usize {
        let mut taken = 0;
        while taken < input.len() && self.filled < self.size {
            self.make_room();
            let room = &mut self.buffer[self.filled..];
            let count = room.len().min(input.len() - taken);
            room[..count].copy_from_slice(&input[taken..taken + count]);
            self.filled += count;
            taken += count;
        }
        taken
    }

    /// Doubles, up to the size.
    fn make_room(&mut self) {
        if self.filled == self.buffer.len() {
            let wanted = (self.filled * 2).max(FIRST_BYTES).min(self.size);
            self.buffer.reserve_exact(wanted - self.filled);
            self.buffer.resize(wanted, 0);
        }
    }

    /// Where the next bytes can be received to; `None` before the first has come, so that an announcement
    /// alone takes no memory, and when all is there.
    pub fn space(&mut self) -> Option<&mut [u8]> {
        if self.filled == 0 || self.is_whole() {
            return None;
        }
        self.make_room();
        Some(&mut self.buffer[self.filled..])
    }

    /// So many bytes were received into the space.
    ///
    /// # Panics
    /// If there was no room for them.
    pub fn filled(&mut self, count: usize) {
        assert!(
            count <= self.buffer.len() - self.filled,
            "more was received than there was room"
        );
        self.filled += count;
    }

    /// All of it is there.
    pub fn is_whole(&self) -> bool {
        self.filled == self.size
    }

    /// The body; nothing is left here.
    ///
    /// # Panics
    /// If not all of it is there.
    pub fn finish(&mut self) -> Bytes {
        assert!(self.is_whole(), "a body is handed out when it is whole");
        self.buffer.truncate(self.filled);
        Bytes::from(std::mem::take(&mut self.buffer))
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.buffer.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_out_as_it_went_in_and_takes_what_it_needs() {
        for step in [1, 7, 5_000, 100_000] {
            let body: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
            let mut collect = Collect::new(body.len());
            assert!(collect.space().is_none(), "nothing is announced memory");
            for piece in body.chunks(step) {
                assert_eq!(collect.take(piece), piece.len());
                assert!(collect.memory() <= (collect.filled * 2).max(FIRST_BYTES));
            }
            assert!(collect.is_whole() && collect.space().is_none());
            assert_eq!(collect.take(b"more"), 0);
            assert_eq!(collect.finish(), body);
        }
    }

    #[test]
    fn bytes_can_be_received_in_place() {
        let mut collect = Collect::new(40_000);
        collect.take(&[1]);
        while let Some(space) = collect.space() {
            let count = space.len().min(999);
            space[..count].fill(1);
            collect.filled(count);
        }
        assert_eq!(collect.finish(), vec![1; 40_000]);
    }
}
