//! The send ring: what waits to be written to one connection.
//!
//! Small pieces are copied into one run of bytes, large ones are referenced and keep their place
//! among them. Bytes behind the *gate* wait for the log and are not handed to the socket.
//! An empty ring owns no memory: its buffer goes back to the pool.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

/// A ring of so many bytes or more is handed over as it is, a smaller one is copied, bytes.
const TAKEN_BYTES_MIN: usize = 32 << 10;

/// Buffers that nobody uses at the moment, kept to be used again.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Vec<u8>>,
    /// Memory of `free`.
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
    buffer_bytes_max: usize,
}

impl Pool {
    /// A pool that keeps at most `count_max` buffers of at most `buffer_bytes_max` bytes each, and
    /// at most `bytes_max` bytes in all.
    pub fn new(count_max: usize, buffer_bytes_max: usize, bytes_max: usize) -> Pool {
        Pool {
            free: Vec::new(),
            bytes: 0,
            count_max,
            bytes_max,
            buffer_bytes_max,
        }
    }

    /// An empty buffer, with memory of its own if there was one in the pool.
    pub fn take(&mut self) -> Vec<u8> {
        let buffer = self.free.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer
    }

    /// Gives a buffer back; it is dropped when it is too large or the pool is full.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        let wanted = bytes > 0 && bytes <= self.buffer_bytes_max;
        if wanted && self.free.len() < self.count_max && self.bytes + bytes <= self.bytes_max {
            buffer.clear();
            self.bytes += bytes;
            self.free.push(buffer);
        }
    }

    /// Gives the kept buffers back to the system.
    pub fn trim(&mut self) {
        self.free = Vec::new();
        self.bytes = 0;
    }

    /// Memory held, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Referenced pieces, in order.
#[derive(Debug, Default)]
struct Shared {
    /// Each with the place in the copied bytes behind which it stands.
    pieces: VecDeque<(usize, Bytes)>,
}

/// Output of one connection. Offsets into the stream count every byte since the connection began.
///
/// Invariant: `sent <= gate <= end`, and `end - sent` = inline bytes left + shared bytes left.
#[derive(Debug)]
pub struct SendRing {
    /// Copied bytes; those before `start` were sent.
    inline: Vec<u8>,
    start: usize,
    /// Referenced pieces: each stands after `inline[..at]`. There are none in most rings.
    shared: Option<Box<Shared>>,
    /// Bytes of `shared` not sent yet.
    shared_bytes: usize,
    /// Stream offset of the next byte to send.
    sent: u64,
    /// Stream offset up to which bytes may be sent; [`OPEN`] = all.
    gate: u64,
}

/// The gate of a ring that is open.
const OPEN: u64 = u64::MAX;

impl Default for SendRing {
    fn default() -> SendRing {
        SendRing {
            inline: Vec::new(),
            start: 0,
            shared: None,
            shared_bytes: 0,
            sent: 0,
            gate: OPEN,
        }
    }
}

impl SendRing {
    /// A ring whose offsets begin there: it goes on with what another has sent.
    pub fn beginning_at(sent: u64) -> SendRing {
        SendRing {
            sent,
            ..SendRing::default()
        }
    }

    /// Where to append copied bytes. The buffer comes from the pool if the ring was empty.
    #[inline]
    pub fn writer(&mut self, pool: &mut Pool) -> &mut Vec<u8> {
        if self.inline.capacity() == 0 {
            self.inline = pool.take();
        }
        &mut self.inline
    }

    /// Appends a large piece without copying it.
    pub fn share(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.shared_bytes += bytes.len();
            let shared = self.shared.get_or_insert_default();
            shared.pieces.push_back((self.inline.len(), bytes));
        }
    }

    /// Bytes not sent yet.
    #[inline]
    pub fn len(&self) -> usize {
        self.inline.len() - self.start + self.shared_bytes
    }

    /// Nothing is left to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stream offset behind the last byte appended.
    #[inline]
    pub fn end(&self) -> u64 {
        self.sent + self.len() as u64
    }

    /// Stream offset of the next byte to send.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Only bytes before this stream offset may leave; `None` opens the ring.
    #[inline]
    pub fn set_gate(&mut self, gate: Option<u64>) {
        debug_assert!(gate.is_none_or(|gate| gate >= self.sent));
        self.gate = gate.unwrap_or(OPEN);
    }

    /// Bytes that may be sent now.
    #[inline]
    pub fn sendable(&self) -> usize {
        match self.gate {
            OPEN => self.len(),
            gate => (gate - self.sent) as usize,
        }
    }

    /// Fills `slices` with what may be sent now, in order; returns how many were filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut left = self.sendable();
        let mut filled = 0;
        let mut at = self.start;
        let mut pieces = self.pieces().peekable();
        while left > 0 && filled < slices.len() {
            let piece = match pieces.peek() {
                Some((place, bytes)) if *place == at => {
                    pieces.next();
                    bytes.as_ref()
                }
                next => {
                    let until = next.map_or(self.inline.len(), |(place, _)| *place);
                    let piece = &self.inline[at..until];
                    at = until;
                    piece
                }
            };
            let piece = &piece[..piece.len().min(left)];
            left -= piece.len();
            slices[filled] = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    /// Takes away the first `count` bytes, which the socket has taken.
    ///
    /// # Panics
    /// If more was taken than [`SendRing::sendable`].
    pub fn consume(&mut self, count: usize, pool: &mut Pool) {
        assert!(
            count <= self.sendable(),
            "the socket took what it was not given"
        );
        self.sent += count as u64;
        let mut left = count;
        while left > 0 {
            match self
                .shared
                .as_mut()
                .and_then(|shared| shared.pieces.front_mut())
            {
                Some((place, bytes)) if *place == self.start => {
                    let taken = bytes.len().min(left);
                    bytes::Buf::advance(bytes, taken);
                    self.shared_bytes -= taken;
                    left -= taken;
                    if bytes.is_empty()
                        && let Some(shared) = &mut self.shared
                    {
                        shared.pieces.pop_front();
                    }
                }
                next => {
                    let until = next.map_or(self.inline.len(), |(place, _)| *place);
                    let taken = (until - self.start).min(left);
                    self.start += taken;
                    left -= taken;
                }
            }
        }
        if self.is_empty() {
            self.start = 0;
            pool.give(std::mem::take(&mut self.inline));
            self.shared = None;
        } else if self.start >= 64 << 10 && self.start * 2 >= self.inline.len() {
            self.compact();
        }
    }

    /// Takes out the first `count` bytes, as if a socket had taken them. Referenced pieces are copied.
    ///
    /// # Panics
    /// If that is more than [`SendRing::sendable`].
    pub fn take(&mut self, count: usize, pool: &mut Pool) -> Vec<u8> {
        if count >= TAKEN_BYTES_MIN
            && count == self.len()
            && self.shared_bytes == 0
            && self.start == 0
        {
            assert!(count <= self.sendable(), "it waits for the log");
            self.sent += count as u64;
            return std::mem::take(&mut self.inline);
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let mut slices = [IoSlice::new(&[]); 16];
            let filled = self.slices(&mut slices);
            let before = taken.len();
            for slice in &slices[..filled] {
                let wanted = slice.len().min(count - taken.len());
                taken.extend_from_slice(&slice[..wanted]);
            }
            let more = taken.len() - before;
            assert!(more > 0, "more is taken than may leave");
            self.consume(more, pool);
        }
        taken
    }

    /// The referenced pieces, in order.
    fn pieces(&self) -> impl Iterator<Item = &(usize, Bytes)> {
        self.shared.iter().flat_map(|shared| shared.pieces.iter())
    }

    /// Moves what is left to the front, so that a ring that never empties does not grow.
    fn compact(&mut self) {
        self.inline.drain(..self.start);
        let pieces = self.shared.iter_mut().flat_map(|shared| &mut shared.pieces);
        for (place, _) in pieces {
            *place -= self.start;
        }
        self.start = 0;
    }

    /// Takes out every byte behind the gate, to be answered differently. Referenced pieces are
    /// copied; used only when the log has failed.
    pub fn take_gated(&mut self) -> Vec<u8> {
        let open = self.sendable();
        let mut all = Vec::with_capacity(self.len());
        let mut at = self.start;
        for (place, bytes) in self.pieces() {
            all.extend_from_slice(&self.inline[at..*place]);
            all.extend_from_slice(bytes);
            at = *place;
        }
        all.extend_from_slice(&self.inline[at..]);
        let gated = all.split_off(open);
        self.inline = all;
        self.start = 0;
        self.shared = None;
        self.shared_bytes = 0;
        self.gate = OPEN;
        gated
    }

    /// Memory held, bytes, referenced pieces included.
    pub fn memory(&self) -> usize {
        self.inline.capacity() + self.shared_bytes
    }

    /// Drops everything; the buffer goes back to the pool.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.sent = self.end();
        self.start = 0;
        self.shared_bytes = 0;
        self.shared = None;
        self.gate = OPEN;
        pool.give(std::mem::take(&mut self.inline));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(ring: &mut SendRing, pool: &mut Pool, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let mut slices = [IoSlice::new(&[]); 3];
            let filled = ring.slices(&mut slices);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
            if bytes.is_empty() {
                return out;
            }
            let taken = bytes.len().min(step);
            out.extend_from_slice(&bytes[..taken]);
            ring.consume(taken, pool);
        }
    }

    #[test]
    fn keeps_the_order_of_copied_and_referenced_pieces_at_every_step() {
        for step in 1..40 {
            let mut pool = Pool::new(4, 1 << 16, 1 << 18);
            let mut ring = SendRing::default();
            ring.share(Bytes::from_static(b"first"));
            ring.writer(&mut pool).extend_from_slice(b" second ");
            ring.share(Bytes::from_static(b"third"));
            ring.share(Bytes::from_static(b" fourth"));
            ring.writer(&mut pool).extend_from_slice(b" fifth");
            assert_eq!(
                sent(&mut ring, &mut pool, step),
                b"first second third fourth fifth"
            );
            assert!(ring.is_empty());
            assert_eq!(ring.memory(), 0, "an empty ring owns nothing");
        }
    }

    #[test]
    fn bytes_behind_the_gate_stay() {
        let mut pool = Pool::new(4, 1 << 16, 1 << 18);
        let mut ring = SendRing::default();
        ring.writer(&mut pool).extend_from_slice(b"open");
        let gate = ring.end();
        ring.writer(&mut pool).extend_from_slice(b"shut");
        ring.set_gate(Some(gate));
        assert_eq!(sent(&mut ring, &mut pool, 3), b"open");
        assert_eq!(ring.len(), 4);
        ring.set_gate(None);
        assert_eq!(sent(&mut ring, &mut pool, 3), b"shut");
    }

    #[test]
    fn what_is_behind_the_gate_can_be_taken_out() {
        let mut pool = Pool::new(4, 1 << 16, 1 << 18);
        let mut ring = SendRing::default();
        ring.writer(&mut pool).extend_from_slice(b"open");
        ring.set_gate(Some(ring.end()));
        ring.share(Bytes::from_static(b"shared"));
        ring.writer(&mut pool).extend_from_slice(b"tail");
        assert_eq!(ring.take_gated(), b"sharedtail");
        assert_eq!(sent(&mut ring, &mut pool, 2), b"open");
    }

    #[test]
    fn any_part_can_be_taken_out() {
        for step in 1..60 {
            let mut pool = Pool::new(4, 1 << 16, 1 << 18);
            let mut ring = SendRing::default();
            ring.writer(&mut pool).extend_from_slice(b"first ");
            ring.share(Bytes::from_static(b"second"));
            ring.writer(&mut pool).extend_from_slice(&[7; 40_000]);
            let mut all = Vec::new();
            let mut step = step;
            while !ring.is_empty() {
                let count = step.min(ring.len());
                all.extend_from_slice(&ring.take(count, &mut pool));
                assert_eq!(ring.sent(), all.len() as u64);
                step *= 3;
            }
            assert_eq!(all, [&b"first second"[..], &[7; 40_000]].concat());
        }
        let mut pool = Pool::new(4, 1 << 16, 1 << 18);
        let mut ring = SendRing::default();
        ring.writer(&mut pool).extend_from_slice(&[7; 40_000]);
        assert_eq!(ring.take(40_000, &mut pool), [7; 40_000]);
        assert_eq!((ring.len(), ring.end()), (0, 40_000));
    }

    #[test]
    fn the_pool_keeps_no_more_than_it_may() {
        let mut pool = Pool::new(3, 100, 180);
        for (capacity, held) in [(101, 0), (90, 90), (100, 90), (80, 170), (9, 179), (1, 179)] {
            let buffer = Vec::with_capacity(capacity);
            assert_eq!(buffer.capacity(), capacity, "what this test is about");
            pool.give(buffer);
            assert_eq!(pool.bytes(), held, "after {capacity} bytes");
        }
        for held in [170, 90] {
            pool.take();
            assert_eq!(pool.bytes(), held);
        }
        pool.trim();
        assert_eq!(pool.bytes(), 0);
        assert_eq!(pool.take().capacity(), 0);
    }

    #[test]
    fn a_ring_that_never_empties_does_not_grow() {
        let mut pool = Pool::new(4, 1 << 20, 1 << 22);
        let mut ring = SendRing::default();
        for _ in 0..1000 {
            ring.writer(&mut pool).extend_from_slice(&[7; 10_000]);
            let take = ring.len().saturating_sub(5);
            ring.consume(take, &mut pool);
        }
        assert!(ring.memory() < 300_000, "{}", ring.memory());
    }
}
