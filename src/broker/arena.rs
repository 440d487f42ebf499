//! Where the messages of a `none` queue lie: chunks of memory of its own.
//!
//! An entry is a few octets of head, the optional sections and the body. Chunks grow with the
//! queue, from 4 KiB to 256 KiB, and are given back when their last message is settled; large
//! bodies keep the memory they were received in. Knows bytes and places; never a queue's state.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use slab::Slab;

use super::command::Body;
use super::region::Region;
use super::reply::Payload;
use super::varint;

const CHUNK_BYTES_MIN: usize = 4 << 10;
const CHUNK_BYTES_MAX: usize = 256 << 10;
/// Bodies from this size keep their own memory.
pub const OWN_BYTES_MIN: usize = 16 << 10;

/// Bit of the place of a request: it lies here whatever the level of its queue is, so that the places of a
/// logged queue tell which of its messages the log does not know.
pub const REQUEST: u64 = 1 << 62;

/// Is this the place of a request?
#[inline]
pub fn is_request(place: u64) -> bool {
    place >> 62 == 1
}

const HAS_SECTIONS: u8 = 1;
const OWN_BODY: u8 = 2;

#[derive(Debug)]
struct Chunk {
    /// Place of its first byte.
    base: u64,
    /// Entries, one after another.
    data: Region,
    live: u32,
    /// Publish times in it count from here, unix milliseconds.
    time_ms: u64,
}

/// A body that several queues have, counted once.
#[derive(Debug)]
struct SharedBody {
    bytes: usize,
    queues: u32,
}

/// Free chunks shared by all queues of a shard, and the count of bodies that several of them have.
#[derive(Debug, Default)]
pub struct ChunkPool {
    free: Vec<Region>,
    shared: Slab<SharedBody>,
    /// Memory of all chunks of all arenas, free ones included, bytes.
    pub bytes: usize,
}

/// Free chunks kept at most.
const POOL_CHUNKS: usize = 16;

impl ChunkPool {
    fn take(&mut self, size: usize) -> Region {
        if size == CHUNK_BYTES_MAX
            && let Some(chunk) = self.free.pop()
        {
            return chunk;
        }
        self.bytes += size;
        Region::new(size)
    }

    fn give(&mut self, mut chunk: Region) {
        if chunk.size() == CHUNK_BYTES_MAX && self.free.len() < POOL_CHUNKS {
            chunk.clear();
            self.free.push(chunk);
        } else {
            self.bytes -= chunk.size();
        }
    }

    /// A body that so many queues get by [`Arena::push_shared`] is counted once.
    pub fn share(&mut self, bytes: usize, queues: u32) -> Share {
        self.bytes += bytes;
        Share(self.shared.insert(SharedBody { bytes, queues }) as u32)
    }

    /// One queue has it no more.
    fn unshare(&mut self, share: Share) {
        let body = &mut self.shared[share.0 as usize];
        body.queues -= 1;
        if body.queues == 0 {
            self.bytes -= body.bytes;
            self.shared.remove(share.0 as usize);
        }
    }

    /// Gives the free chunks back to the system.
    pub fn trim(&mut self) {
        self.bytes -= self.free.iter().map(Region::size).sum::<usize>();
        self.free = Vec::new();
    }
}

/// Names a body that several queues have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

/// A body that keeps its own memory.
#[derive(Debug)]
struct OwnBody {
    bytes: Bytes,
    share: Option<Share>,
}

/// A message as it lies in memory.
#[derive(Debug)]
pub struct Stored<'a> {
    /// Publish time, unix milliseconds.
    pub time_ms: u64,
    /// Encoded optional sections; empty if none.
    pub sections: &'a [u8],
    /// The body.
    pub body: Payload<'a>,
}

/// Looks at messages of an arena, best in the order of their places: it remembers the last one's chunk.
#[derive(Debug)]
pub struct Cursor<'a> {
    arena: &'a Arena,
    base: u64,
    data: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// When the message at a place was published, unix milliseconds.
    ///
    /// # Panics
    /// If there is no message.
    pub fn time_ms(&self, place: u64) -> u64 {
        self.arena.get(place).time_ms
    }

    /// The body of the message at a place if it has no sections and no memory of its own.
    ///
    /// # Panics
    /// If there is no message.
    #[inline]
    pub fn plain(&mut self, place: u64) -> Option<&'a [u8]> {
        if is_request(place) {
            return None;
        }
        if place.wrapping_sub(self.base) >= self.data.len() as u64 {
            let chunk = &self.arena.chunks[self.arena.at(place)];
            (self.base, self.data) = (chunk.base, &chunk.data);
        }
        let (flags, mut rest) = self.data[(place - self.base) as usize..].split_first()?;
        if *flags != 0 {
            return None;
        }
        varint::take(&mut rest);
        let len = varint::take(&mut rest) as usize;
        Some(&rest[..len])
    }
}

/// Gives messages back, best in the order of their places; done when it is dropped.
#[derive(Debug)]
pub struct FreeRun<'a> {
    arena: &'a mut Arena,
    pool: &'a mut ChunkPool,
    /// The chunk of the last ones, and how many they were.
    base: u64,
    len: u64,
    count: u32,
}

impl FreeRun<'_> {
    /// The message at a place is settled.
    #[inline]
    pub fn free(&mut self, place: u64) {
        let place = place & !REQUEST;
        if place.wrapping_sub(self.base) >= self.len {
            self.turn_to(place);
        }
        self.count += 1;
    }

    /// Goes on with another chunk.
    #[inline(never)]
    fn turn_to(&mut self, place: u64) {
        self.release();
        let chunk = &self.arena.chunks[self.arena.at(place)];
        (self.base, self.len) = (chunk.base, chunk.data.len() as u64);
    }

    fn release(&mut self) {
        if self.count > 0 {
            let at = self.arena.at(self.base);
            self.arena.release(at, self.count, self.pool);
            self.count = 0;
        }
    }
}

impl Drop for FreeRun<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Where [`Arena::push_run`] has stored messages.
#[derive(Debug, Default)]
pub struct PushRun {
    /// Their distances count from here.
    pub base: u64,
    /// How far from `base` each lies, in ascending order.
    pub offsets: Vec<u32>,
    /// Sum of their bodies, bytes.
    pub bytes: u64,
}

impl PushRun {
    #[inline]
    fn begin(&mut self, base: u64) {
        self.base = base;
        self.offsets.clear();
        self.bytes = 0;
    }
}

/// The messages of one `none` queue.
#[derive(Debug, Default)]
pub struct Arena {
    chunks: VecDeque<Chunk>,
    /// Large bodies, by the place of their entry.
    own: HashMap<u64, OwnBody, foldhash::fast::FixedState>,
    /// Place of the next entry.
    end: u64,
    /// Memory of the chunks and large bodies.
    bytes: usize,
}

impl Arena {
    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.bytes
    }

    /// Stores a message and says where.
    #[inline]
    pub fn push(
        &mut self,
        time_ms: u64,
        sections: &[u8],
        body: &Body<'_>,
        pool: &mut ChunkPool,
    ) -> u64 {
        let owned = match body {
            body if body.as_slice().len() < OWN_BYTES_MIN => {
                if sections.is_empty() {
                    return self.push_small(time_ms, body.as_slice(), pool);
                }
                None
            }
            Body::Owned(bytes) => Some(bytes.clone()),
            Body::Borrowed(octets) => Some(Bytes::copy_from_slice(octets)),
        };
        let owned = owned.map(|bytes| OwnBody { bytes, share: None });
        self.push_entry(time_ms, sections, body, owned, pool)
    }

    /// Stores a message whose body other queues have too; each of them frees it.
    pub fn push_shared(
        &mut self,
        time_ms: u64,
        sections: &[u8],
        body: &Bytes,
        share: Share,
        pool: &mut ChunkPool,
    ) -> u64 {
        let own = OwnBody {
            bytes: body.clone(),
            share: Some(share),
        };
        self.push_entry(time_ms, sections, &Body::Borrowed(&[]), Some(own), pool)
    }

    #[inline]
    fn push_entry(
        &mut self,
        time_ms: u64,
        sections: &[u8],
        body: &Body<'_>,
        owned: Option<OwnBody>,
        pool: &mut ChunkPool,
    ) -> u64 {
        let inline = if owned.is_some() {
            &[]
        } else {
            body.as_slice()
        };
        self.chunk_for(time_ms, sections.len() + inline.len(), pool);
        let chunk = self.chunks.back_mut().expect("it was just looked for");
        let place = chunk.base + chunk.data.len() as u64;
        let own = if owned.is_some() { OWN_BODY } else { 0 };
        let delta_ms = time_ms.saturating_sub(chunk.time_ms);
        if sections.is_empty() {
            chunk.data.append(Head::new(own).number(delta_ms).octets());
        } else {
            let head = Head::new(own | HAS_SECTIONS).number(delta_ms);
            let head = head.number(sections.len() as u64);
            chunk.data.append(head.octets());
            chunk.data.append(sections);
        }
        match owned {
            Some(own) => {
                self.bytes += own.bytes.len();
                if own.share.is_none() {
                    pool.bytes += own.bytes.len();
                }
                self.own.insert(place, own);
            }
            None => {
                let head = Head::default().number(inline.len() as u64);
                chunk.data.append(head.octets());
                chunk.data.append(inline);
            }
        }
        chunk.live += 1;
        self.end = chunk.base + chunk.data.len() as u64;
        place
    }

    /// Stores a message without sections whose body is below [`OWN_BYTES_MIN`], and says where.
    #[inline]
    pub fn push_small(&mut self, time_ms: u64, body: &[u8], pool: &mut ChunkPool) -> u64 {
        debug_assert!(body.len() < OWN_BYTES_MIN);
        let chunk = self.chunk_for(time_ms, body.len(), pool);
        let place = chunk.base + chunk.data.len() as u64;
        let head = Head::new(0).number(time_ms.saturating_sub(chunk.time_ms));
        let head = head.number(body.len() as u64);
        chunk.data.append_headed(&head.octets, head.len, body);
        chunk.live += 1;
        self.end = chunk.base + chunk.data.len() as u64;
        place
    }

    /// [`Arena::push_small`] of one body after another, as many as one chunk has room for: `first`, and what `next`
    /// gives. Says in `run` where they are, and returns the body that did not fit any more, which is the first of another
    /// run.
    #[inline]
    pub fn push_run<'b>(
        &mut self,
        time_ms: u64,
        first: &'b [u8],
        mut next: impl FnMut() -> Option<&'b [u8]>,
        pool: &mut ChunkPool,
        run: &mut PushRun,
    ) -> Option<&'b [u8]> {
        let chunk = self.chunk_for(time_ms, first.len(), pool);
        run.begin(chunk.base);
        let time = Head::new(0).number(time_ms.saturating_sub(chunk.time_ms));
        let mut head = time.number(first.len() as u64);
        let mut body = first;
        let left = loop {
            run.offsets.push(chunk.data.len() as u32);
            run.bytes += body.len() as u64;
            chunk.data.append_headed(&head.octets, head.len, body);
            let Some(following) = next() else { break None };
            debug_assert!(following.len() < OWN_BYTES_MIN);
            if chunk.data.room() < 2 * HEAD_BYTES + following.len() {
                break Some(following);
            }
            if following.len() != body.len() {
                head = time.number(following.len() as u64);
            }
            body = following;
        };
        chunk.live += run.offsets.len() as u32;
        self.end = chunk.base + chunk.data.len() as u64;
        left
    }

    /// The chunk to append an entry to that has so many bytes beyond its head.
    #[inline]
    fn chunk_for(&mut self, time_ms: u64, bytes: usize, pool: &mut ChunkPool) -> &mut Chunk {
        let need = 2 * HEAD_BYTES + bytes;
        let fits = self.chunks.back().is_some_and(|chunk| {
            chunk.data.room() >= need && time_ms - chunk.time_ms <= u64::from(u32::MAX)
        });
        if !fits {
            self.add_chunk(time_ms, need, pool);
        }
        self.chunks
            .back_mut()
            .expect("a chunk was added if there was none")
    }

    #[cold]
    fn add_chunk(&mut self, time_ms: u64, need: usize, pool: &mut ChunkPool) {
        // A closed chunk without live messages would never be looked at again.
        if self.chunks.back().is_some_and(|chunk| chunk.live == 0) {
            let chunk = self.chunks.pop_back().expect("there is a last one");
            self.drop_chunk(chunk, pool);
        }
        let grown = self
            .chunks
            .back()
            .map_or(CHUNK_BYTES_MIN, |chunk| chunk.data.size() * 2);
        let size = grown.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX).max(need);
        let data = pool.take(size);
        self.bytes += data.size();
        self.chunks.push_back(Chunk {
            base: self.end,
            data,
            live: 0,
            time_ms,
        });
    }

    fn drop_own(&mut self, own: &OwnBody, pool: &mut ChunkPool) {
        self.bytes -= own.bytes.len();
        match own.share {
            Some(share) => pool.unshare(share),
            None => pool.bytes -= own.bytes.len(),
        }
    }

    fn drop_chunk(&mut self, chunk: Chunk, pool: &mut ChunkPool) {
        self.bytes -= chunk.data.size();
        pool.give(chunk.data);
    }

    #[inline]
    fn at(&self, place: u64) -> usize {
        match (self.chunks.front(), self.chunks.back()) {
            (Some(front), _) if place < front.base + front.data.len() as u64 => 0,
            (_, Some(back)) if place >= back.base => self.chunks.len() - 1,
            _ => self.chunks.partition_point(|chunk| chunk.base <= place) - 1,
        }
    }

    /// The message at a place.
    ///
    /// # Panics
    /// If there is none: places come from the index, which is never wrong about memory.
    #[inline]
    pub fn get(&self, place: u64) -> Stored<'_> {
        let place = place & !REQUEST;
        let chunk = &self.chunks[self.at(place)];
        let mut rest = &chunk.data[(place - chunk.base) as usize..];
        let flags = rest[0];
        rest = &rest[1..];
        let time_ms = chunk.time_ms + varint::take(&mut rest);
        let mut sections: &[u8] = &[];
        if flags & HAS_SECTIONS != 0 {
            let len = varint::take(&mut rest) as usize;
            (sections, rest) = rest.split_at(len);
        }
        let body = if flags & OWN_BODY != 0 {
            Payload::Shared(self.own[&place].bytes.clone())
        } else {
            let len = varint::take(&mut rest) as usize;
            Payload::Slice(&rest[..len])
        };
        Stored {
            time_ms,
            sections,
            body,
        }
    }

    /// For looking at several messages, one after another.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor {
            arena: self,
            base: 0,
            data: &[],
        }
    }

    /// The message at a place is settled; its chunk goes with its last one.
    #[inline]
    pub fn free(&mut self, place: u64, pool: &mut ChunkPool) {
        let place = place & !REQUEST;
        if !self.own.is_empty()
            && let Some(own) = self.own.remove(&place)
        {
            self.drop_own(&own, pool);
        }
        let at = self.at(place);
        self.release(at, 1, pool);
    }

    /// So many messages of a chunk are settled.
    #[inline]
    fn release(&mut self, at: usize, count: u32, pool: &mut ChunkPool) {
        let filling = at == self.chunks.len() - 1;
        let chunk = &mut self.chunks[at];
        chunk.live -= count;
        if chunk.live > 0 {
            return;
        }
        if filling {
            // The chunk being filled starts again from its front, hot in the cache.
            chunk.base += chunk.data.len() as u64;
            chunk.data.clear();
        } else {
            let chunk = self.chunks.remove(at).expect("it was found there");
            self.drop_chunk(chunk, pool);
        }
    }

    /// Whether some bodies keep memory of their own.
    #[inline]
    pub fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// Gives back messages one after another, none of which has memory of its own, chunk by chunk.
    #[inline]
    pub fn free_run<'a>(&'a mut self, pool: &'a mut ChunkPool) -> FreeRun<'a> {
        FreeRun {
            arena: self,
            pool,
            base: 0,
            len: 0,
            count: 0,
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self, pool: &mut ChunkPool) {
        while let Some(chunk) = self.chunks.pop_front() {
            self.drop_chunk(chunk, pool);
        }
        for own in std::mem::take(&mut self.own).into_values() {
            self.drop_own(&own, pool);
        }
    }
}

/// Longest head of an entry: its flags and two numbers.
const HEAD_BYTES: usize = 16;

/// The numbers in front of an entry's octets.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    octets: [u8; HEAD_BYTES],
    len: usize,
}

impl Head {
    #[inline]
    fn new(flags: u8) -> Head {
        let mut head = Head::default();
        head.octets[0] = flags;
        head.len = 1;
        head
    }

    /// A number in groups of seven bits, low first; of 32 bits if there are two.
    #[inline]
    fn number(mut self, number: u64) -> Head {
        varint::write(&mut self.octets, &mut self.len, number);
        self
    }

    #[inline]
    fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_pushed_and_all_memory_after_the_drain() {
        let mut pool = ChunkPool::default();
        let mut arena = Arena::default();
        let body = |n: u64| vec![n as u8; (n * 37 % 3000) as usize];
        let sections = |n: u64| {
            if n.is_multiple_of(5) {
                vec![9; 20]
            } else {
                Vec::new()
            }
        };
        let mut places = VecDeque::new();
        for n in 0..20_000u64 {
            places.push_back((
                n,
                arena.push(n, &sections(n), &Body::Borrowed(&body(n)), &mut pool),
            ));
            if n.is_multiple_of(3) {
                let (n, place) = if n.is_multiple_of(2) {
                    places.pop_front()
                } else {
                    places.pop_back()
                }
                .expect("some are left");
                let stored = arena.get(place);
                assert_eq!(
                    (stored.time_ms, stored.sections, stored.body.as_slice()),
                    (n, &sections(n)[..], &body(n)[..])
                );
                arena.free(place, &mut pool);
            }
        }
        for (n, place) in places {
            assert_eq!(arena.get(place).body.as_slice(), body(n));
            arena.free(place, &mut pool);
        }
        assert!(arena.memory() <= CHUNK_BYTES_MAX, "{}", arena.memory());
        arena.clear(&mut pool);
        pool.trim();
        assert_eq!((arena.memory(), pool.bytes), (0, 0));
    }

    #[test]
    fn a_run_lies_as_its_messages_would_one_by_one() {
        let mut pools = [ChunkPool::default(), ChunkPool::default()];
        let mut arenas = [Arena::default(), Arena::default()];
        let bodies: Vec<Vec<u8>> = (0..3000u64)
            .map(|n| {
                vec![
                    n as u8;
                    if n % 7 < 4 {
                        100
                    } else {
                        n as usize * 5 % 16_000
                    }
                ]
            })
            .collect();
        let mut run = PushRun::default();
        let mut given = 0;
        for many in bodies.chunks(90) {
            let time_ms = given as u64 * 3;
            let mut rest = many.iter().map(Vec::as_slice);
            let mut first = rest.next();
            while let Some(body) = first {
                let [one, all] = &mut arenas;
                first = all.push_run(time_ms, body, || rest.next(), &mut pools[1], &mut run);
                let mut bytes = 0;
                for offset in &run.offsets {
                    let place = one.push_small(time_ms, &bodies[given], &mut pools[0]);
                    assert_eq!(run.base + u64::from(*offset), place);
                    let stored = all.get(place);
                    let expected = (time_ms, &bodies[given][..]);
                    assert_eq!((stored.time_ms, stored.body.as_slice()), expected);
                    bytes += bodies[given].len() as u64;
                    given += 1;
                }
                assert_eq!(run.bytes, bytes);
            }
            if given > 2000 {
                break;
            }
        }
        assert_eq!(arenas[0].memory(), arenas[1].memory());
        for at in 0..2 {
            arenas[at].clear(&mut pools[at]);
            pools[at].trim();
            assert_eq!((arenas[at].memory(), pools[at].bytes), (0, 0));
        }
    }

    #[test]
    fn a_shared_body_is_counted_until_its_last_queue_frees_it() {
        let mut pool = ChunkPool::default();
        let mut arenas = [Arena::default(), Arena::default(), Arena::default()];
        let body = Bytes::from(vec![7; 5_000]);
        let share = pool.share(body.len(), 3);
        let places = arenas
            .each_mut()
            .map(|arena| arena.push_shared(5, &[], &body, share, &mut pool));
        let before = pool.bytes;
        for (arena, place) in arenas.iter().zip(places) {
            assert_eq!(arena.get(place).body.as_slice(), body);
            assert_eq!(arena.get(place).time_ms, 5);
        }
        arenas[0].free(places[0], &mut pool);
        arenas[1].clear(&mut pool);
        assert_eq!(pool.bytes, before - CHUNK_BYTES_MIN);
        assert_eq!(arenas[2].get(places[2]).body.as_slice(), body);
        arenas[2].free(places[2], &mut pool);
        assert_eq!(pool.bytes, before - CHUNK_BYTES_MIN - body.len());
        for arena in &mut arenas {
            arena.clear(&mut pool);
        }
        assert_eq!(pool.bytes, 0);
    }

    #[test]
    fn large_bodies_are_kept_and_not_copied() {
        let mut pool = ChunkPool::default();
        let mut arena = Arena::default();
        let large = Bytes::from(vec![7; 100_000]);
        arena.push(1, &[], &Body::Borrowed(b"small"), &mut pool);
        let place = arena.push(1, &[], &Body::Owned(large.clone()), &mut pool);
        let after = arena.push(1, &[], &Body::Borrowed(b"after"), &mut pool);
        let Payload::Shared(kept) = arena.get(place).body else {
            panic!("a large body is shared")
        };
        assert_eq!(kept.as_ptr(), large.as_ptr());
        assert_eq!(arena.get(after).body.as_slice(), b"after");
        arena.free(place, &mut pool);
        assert_eq!(arena.get(after).body.as_slice(), b"after");
    }
}
