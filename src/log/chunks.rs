//! The tail of the log in memory: the bytes of records as they are on disk, in chunks.
//!
//! Chunks are the message store too. A chunk never spans segments; an entry's head never spans
//! chunks, nor does a body; a large body that came in memory of its own is a chunk by itself.
//! A chunk whose messages are all freed gives its memory back as soon as it is written.

use std::collections::VecDeque;

use bytes::Bytes;

/// Chunks of the usual size that are kept for the next use.
const POOL_COUNT_MAX: usize = 16;

#[derive(Debug)]
enum Memory {
    Own(Vec<u8>),
    /// A body that is not copied.
    Adopted(Bytes),
    /// Freed or evicted.
    Gone,
}

/// One run of the log's bytes.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Position of the first byte.
    start: u64,
    /// Length, also when the memory is gone.
    length: u64,
    memory: Memory,
    /// For an adopted body the position of its entry, else 0.
    entry: u64,
    /// Messages beginning (or, for an adopted body, lying) here that are not freed.
    live: u32,
    /// Base time of the segment.
    base_ms: u64,
    /// When it was last read, in the count of [`Chunks::tick`].
    used: u64,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.start + self.length
    }

    fn is_body_of(&self, entry: u64) -> bool {
        self.entry == entry && entry != 0
    }

    fn bytes(&self) -> Option<&[u8]> {
        match &self.memory {
            Memory::Own(bytes) => Some(bytes),
            Memory::Adopted(bytes) => Some(bytes),
            Memory::Gone => None,
        }
    }

    fn memory_bytes(&self) -> usize {
        match &self.memory {
            Memory::Own(bytes) => bytes.capacity(),
            Memory::Adopted(bytes) => bytes.len(),
            Memory::Gone => 0,
        }
    }
}

/// A message's bytes found in memory: the entry from its first byte on, its base time, and the
/// body when that lies elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    /// From the entry's first byte to the end of its chunk.
    pub bytes: &'a [u8],
    /// The segment's base time.
    pub base_ms: u64,
    /// The body, if it was adopted.
    pub body: Option<&'a Bytes>,
}

/// The chunk that an entry was located in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spot {
    /// The open one.
    Open,
    /// A closed one.
    Closed(usize),
    /// A closed one, and the body is the next one.
    ClosedWithBody(usize),
}

/// All chunks: the closed ones by position, and the open one behind them.
///
/// Invariant: `list` is sorted by `start`, does not overlap, and `open` begins where the last one
/// of its segment ends.
#[derive(Debug)]
pub(crate) struct Chunks {
    list: VecDeque<Chunk>,
    open: Vec<u8>,
    open_start: u64,
    open_live: u32,
    open_base_ms: u64,
    /// Bytes before this position are written: their chunks need not be kept.
    written: u64,
    chunk_bytes: usize,
    pool: Vec<Vec<u8>>,
    /// Memory of the closed chunks.
    memory_bytes: usize,
    /// Closed chunks without memory.
    gone: usize,
    /// Index of the closed chunk that was found last.
    hint: usize,
    tick: u64,
}

impl Chunks {
    /// No chunks.
    pub fn new(chunk_bytes: usize) -> Chunks {
        Chunks {
            list: VecDeque::new(),
            open: Vec::new(),
            open_start: 0,
            open_live: 0,
            open_base_ms: 0,
            written: 0,
            chunk_bytes,
            pool: Vec::new(),
            memory_bytes: 0,
            gone: 0,
            hint: 0,
            tick: 0,
        }
    }

    /// Position behind the last byte.
    #[inline]
    pub fn end(&self) -> u64 {
        self.open_start + self.open.len() as u64
    }

    /// Bytes that fit the open chunk.
    #[inline]
    pub fn space(&self) -> usize {
        self.open.capacity() - self.open.len()
    }

    /// Length of the open chunk.
    #[inline]
    pub fn open_len(&self) -> usize {
        self.open.len()
    }

    /// The open chunk, to append to within [`Chunks::space`].
    #[inline]
    pub fn open(&mut self) -> &mut Vec<u8> {
        &mut self.open
    }

    /// Counts a message that begins in the open chunk.
    #[inline]
    pub fn count_live(&mut self, targets: u32) {
        self.open_live += targets;
    }

    /// Closes the open chunk and opens one at `position` with space for `bytes`.
    pub fn next(&mut self, position: u64, base_ms: u64, bytes: usize) {
        let fresh = if bytes <= self.chunk_bytes {
            self.pool
                .pop()
                .unwrap_or_else(|| Vec::with_capacity(self.chunk_bytes))
        } else {
            Vec::with_capacity(bytes)
        };
        assert!(
            fresh.is_empty() && position >= self.end(),
            "chunks come in the order of the log"
        );
        let memory = std::mem::replace(&mut self.open, fresh);
        let closed = Chunk {
            start: self.open_start,
            length: memory.len() as u64,
            live: std::mem::take(&mut self.open_live),
            base_ms: self.open_base_ms,
            used: self.tick,
            entry: 0,
            memory: Memory::Own(memory),
        };
        self.open_start = position;
        self.open_base_ms = base_ms;
        self.push(closed);
    }

    /// Appends a body without copying it; `entry` is the position of its entry, which the open
    /// chunk ends with, and `targets` in how many queues it is.
    pub fn adopt(&mut self, entry: u64, body: Bytes, targets: u32) {
        let start = self.end();
        let length = body.len() as u64;
        self.next(start, self.open_base_ms, 0);
        self.open_start = start + length;
        let chunk = Chunk {
            start,
            length,
            memory: Memory::Adopted(body),
            entry,
            live: targets,
            base_ms: self.open_base_ms,
            used: self.tick,
        };
        self.push(chunk);
    }

    fn push(&mut self, chunk: Chunk) {
        if chunk.length == 0 {
            self.recycle(chunk.memory);
            return;
        }
        self.memory_bytes += chunk.memory_bytes();
        self.list.push_back(chunk);
        self.release_if_free(self.list.len() - 1);
        self.tidy();
    }

    fn recycle(&mut self, memory: Memory) {
        if let Memory::Own(mut bytes) = memory
            && bytes.capacity() == self.chunk_bytes
            && self.pool.len() < POOL_COUNT_MAX
        {
            bytes.clear();
            self.pool.push(bytes);
        }
    }

    fn release_if_free(&mut self, at: usize) {
        let chunk = &self.list[at];
        if chunk.live == 0 && chunk.end() <= self.written {
            self.release(at);
        }
    }

    fn release(&mut self, at: usize) {
        let chunk = &mut self.list[at];
        if matches!(chunk.memory, Memory::Gone) {
            return;
        }
        self.memory_bytes -= chunk.memory_bytes();
        let memory = std::mem::replace(&mut chunk.memory, Memory::Gone);
        self.gone += 1;
        self.recycle(memory);
    }

    /// Forgets chunks without memory where that is cheap. Moves indices.
    fn tidy(&mut self) {
        while self
            .list
            .front()
            .is_some_and(|chunk| matches!(chunk.memory, Memory::Gone))
        {
            self.list.pop_front();
            self.gone -= 1;
            self.hint = self.hint.saturating_sub(1);
        }
        if self.gone > 64 && self.gone * 2 > self.list.len() {
            self.list
                .retain(|chunk| !matches!(chunk.memory, Memory::Gone));
            self.gone = 0;
            self.hint = 0;
        }
    }

    /// Index of the closed chunk that a position lies in, if its memory is there.
    #[inline]
    fn find(&mut self, position: u64) -> Option<usize> {
        let within = |chunk: &Chunk| position.wrapping_sub(chunk.start) < chunk.length;
        if self.list.get(self.hint).is_some_and(within) {
            return Some(self.hint);
        }
        let after = self.list.partition_point(|chunk| chunk.start <= position);
        let at = after.checked_sub(1)?;
        if !within(&self.list[at]) {
            return None;
        }
        self.hint = at;
        Some(at)
    }

    /// Finds the chunk with the entry at a position, if it is in memory.
    #[inline]
    pub fn locate(&mut self, position: u64) -> Option<Spot> {
        if position >= self.open_start {
            return (position < self.end()).then_some(Spot::Open);
        }
        let at = self.find(position)?;
        let chunk = &mut self.list[at];
        chunk.used = self.tick;
        if matches!(chunk.memory, Memory::Gone) {
            return None;
        }
        match self.list.get_mut(at + 1) {
            Some(next) if next.is_body_of(position) => {
                next.used = self.tick;
                Some(Spot::ClosedWithBody(at)).filter(|_| !matches!(next.memory, Memory::Gone))
            }
            _ => Some(Spot::Closed(at)),
        }
    }

    /// The bytes of the entry at a position that was just located.
    #[inline]
    pub fn get(&self, spot: Spot, position: u64) -> Found<'_> {
        let (chunk, body) = match spot {
            Spot::Open => {
                return Found {
                    bytes: &self.open[(position - self.open_start) as usize..],
                    base_ms: self.open_base_ms,
                    body: None,
                };
            }
            Spot::Closed(at) => (&self.list[at], None),
            Spot::ClosedWithBody(at) => {
                let Memory::Adopted(body) = &self.list[at + 1].memory else {
                    panic!("it was just located");
                };
                (&self.list[at], Some(body))
            }
        };
        let bytes = chunk.bytes().expect("it was just located");
        Found {
            bytes: &bytes[(position - chunk.start) as usize..],
            base_ms: chunk.base_ms,
            body,
        }
    }

    #[cfg(test)]
    fn read(&mut self, position: u64) -> Option<Found<'_>> {
        let spot = self.locate(position)?;
        Some(self.get(spot, position))
    }

    /// A message of one queue is freed.
    #[inline]
    pub fn free(&mut self, position: u64) {
        if position >= self.open_start {
            debug_assert!(position < self.end(), "a position behind the log");
            self.open_live -= 1;
            return;
        }
        let Some(at) = self.find(position) else {
            return;
        };
        let chunk = &mut self.list[at];
        if matches!(chunk.memory, Memory::Gone) {
            return;
        }
        chunk.live = chunk
            .live
            .checked_sub(1)
            .expect("a message is freed once for each queue");
        if let Some(next) = self.list.get_mut(at + 1)
            && next.is_body_of(position)
        {
            next.live -= 1;
            self.release_if_free(at + 1);
        }
        self.release_if_free(at);
        self.tidy();
    }

    /// Where the chunk with the message at a position begins, and how many bytes from there on the messages are only in it
    /// that begin there: [`Chunks::free_run`] frees several of them. `None` if it has a body of its own, or is not in
    /// memory.
    #[inline]
    pub fn span(&mut self, position: u64) -> Option<(u64, u64)> {
        if position >= self.open_start {
            return Some((self.open_start, self.open.len() as u64));
        }
        let at = self.find(position)?;
        let chunk = &self.list[at];
        if matches!(chunk.memory, Memory::Gone) {
            return None;
        }
        let length = match self.list.get(at + 1) {
            Some(next) if next.entry >= chunk.start && next.entry < chunk.end() => {
                next.entry - chunk.start
            }
            _ => chunk.length,
        };
        (position - chunk.start < length).then_some((chunk.start, length))
    }

    /// [`Chunks::free`] of so many messages of a [`Chunks::span`], which begins at `start`.
    pub fn free_run(&mut self, start: u64, count: u32) {
        if start >= self.open_start {
            self.open_live -= count;
            return;
        }
        let at = self.find(start).expect("it was just looked at");
        let chunk = &mut self.list[at];
        chunk.live = chunk
            .live
            .checked_sub(count)
            .expect("a message is freed once for each queue");
        self.release_if_free(at);
        self.tidy();
    }

    /// Overwrites bytes that are not written yet and lie in one chunk.
    pub fn patch(&mut self, position: u64, bytes: &[u8]) {
        if position >= self.open_start {
            let at = (position - self.open_start) as usize;
            self.open[at..at + bytes.len()].copy_from_slice(bytes);
            return;
        }
        let at = self
            .find(position)
            .expect("what is not written is in memory");
        let chunk = &mut self.list[at];
        let Memory::Own(memory) = &mut chunk.memory else {
            panic!("an adopted body is never patched");
        };
        let at = (position - chunk.start) as usize;
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The bytes from a position to the end of its chunk.
    pub fn bytes_from(&self, position: u64) -> &[u8] {
        if position >= self.open_start {
            return &self.open[(position - self.open_start) as usize..];
        }
        let after = self.list.partition_point(|chunk| chunk.start <= position);
        let chunk = &self.list[after - 1];
        let bytes = chunk.bytes().expect("what is not written is in memory");
        &bytes[(position - chunk.start) as usize..]
    }

    /// Everything before `position` is written now.
    pub fn set_written(&mut self, position: u64) {
        let from = self
            .list
            .partition_point(|chunk| chunk.end() <= self.written);
        self.written = position;
        let to = self.list.partition_point(|chunk| chunk.end() <= position);
        for at in from..to {
            self.release_if_free(at);
        }
        self.tidy();
    }

    /// Memory held, bytes.
    #[inline]
    pub fn memory(&self) -> usize {
        self.memory_bytes + self.open.capacity() + self.pool.len() * self.chunk_bytes
    }

    /// Starts a new span of use; see [`Chunks::evictable`].
    pub fn advance_tick(&mut self) {
        self.tick += 1;
    }

    /// The chunks that can be read again from disk: when each was last used, where it begins, and
    /// its memory. Of an entry's chunk its body is written too.
    pub fn evictable(&self) -> impl Iterator<Item = (u64, u64, usize)> {
        let next = self.list.iter().skip(1).map(Some).chain([None]);
        let chunks = self.list.iter().zip(next);
        chunks
            .filter(|(chunk, next)| {
                let body = next.filter(|next| next.entry != 0);
                let end = body.map_or(chunk.end(), |body| body.end());
                end <= self.written && !matches!(chunk.memory, Memory::Gone)
            })
            .map(|(chunk, _)| (chunk.used, chunk.start, chunk.memory_bytes()))
    }

    /// Lets go of the written chunk that begins at `start`; of a body's together with its entry's.
    pub fn evict(&mut self, start: u64) {
        let Some(at) = self.find(start) else { return };
        debug_assert!(self.list[at].end() <= self.written);
        if self.list[at].entry != 0
            && let Some(head) = self.find(self.list[at].entry)
        {
            self.release(head);
        }
        self.release(at);
        self.tidy();
    }

    /// Lets go of all chunks that wait for their next use.
    pub fn drop_pool(&mut self) {
        self.pool = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(chunks: &mut Chunks, bytes: &[u8]) -> u64 {
        let at = chunks.end();
        if chunks.space() < bytes.len() {
            chunks.next(at, 7, bytes.len());
        }
        chunks.open().extend_from_slice(bytes);
        chunks.count_live(1);
        at
    }

    #[test]
    fn entries_are_found_until_their_chunk_is_freed() {
        let mut chunks = Chunks::new(64);
        chunks.next(1000, 7, 0);
        let places: Vec<u64> = (0..20u8).map(|n| filled(&mut chunks, &[n; 20])).collect();
        for (n, place) in places.iter().enumerate() {
            let found = chunks.read(*place).expect("it is in memory");
            assert_eq!((found.bytes[0], found.base_ms), (n as u8, 7));
        }
        let full = chunks.memory();
        chunks.set_written(chunks.end());
        assert_eq!(chunks.memory(), full, "written is not freed");
        for place in &places[3..6] {
            chunks.free(*place);
        }
        assert!(chunks.read(places[3]).is_none());
        assert!(chunks.read(places[2]).is_some() && chunks.read(places[6]).is_some());
        for place in places[..3].iter().chain(&places[6..]) {
            chunks.free(*place);
        }
        assert!(chunks.list.is_empty(), "{chunks:?}");
        chunks.drop_pool();
        assert_eq!(chunks.memory(), 64);
    }

    #[test]
    fn a_chunk_stays_until_it_is_written() {
        let mut chunks = Chunks::new(64);
        chunks.next(8, 0, 0);
        let first = filled(&mut chunks, &[1; 60]);
        filled(&mut chunks, &[2; 60]);
        chunks.free(first);
        assert_eq!(chunks.bytes_from(first), [1; 60]);
        chunks.set_written(67);
        assert_eq!(chunks.bytes_from(first), [1; 60]);
        chunks.set_written(68);
        assert!(chunks.read(first).is_none());
    }

    #[test]
    fn an_adopted_body_lives_with_its_entry() {
        let mut chunks = Chunks::new(64);
        chunks.next(8, 0, 0);
        let entry = filled(&mut chunks, &[1; 10]);
        chunks.adopt(entry, Bytes::from(vec![9; 1000]), 1);
        let next = filled(&mut chunks, &[2; 10]);
        assert_eq!(next, 1018);
        let found = chunks.read(entry).expect("it is in memory");
        assert_eq!(
            (found.bytes, found.body.map(|b| b.len())),
            (&[1; 10][..], Some(1000))
        );
        assert!(chunks.read(next).expect("it is in memory").body.is_none());
        assert!(chunks.memory() >= 1000);
        chunks.set_written(1023);
        chunks.free(entry);
        assert!(chunks.memory() < 1000);
        assert!(chunks.read(entry).is_none());
    }

    #[test]
    fn evicted_chunks_are_not_found() {
        let mut chunks = Chunks::new(64);
        chunks.next(8, 0, 0);
        let places: Vec<u64> = (0..6).map(|n| filled(&mut chunks, &[n; 60])).collect();
        chunks.set_written(208);
        chunks.advance_tick();
        chunks.read(places[0]);
        let mut order: Vec<_> = chunks.evictable().collect();
        order.sort();
        assert_eq!(order.iter().map(|o| o.1).collect::<Vec<_>>(), [68, 128, 8]);
        chunks.evict(68);
        assert!(chunks.read(places[1]).is_none() && chunks.read(places[2]).is_some());
        chunks.free(places[1]);
        chunks.patch(309, &[7]);
        assert_eq!(chunks.bytes_from(308)[..2], [5, 7]);
    }
}
