//! A piece of memory that is filled from its front.
//!
//! A large one is mapped and its pages are asked for at once: as a queue grows, one call in 256 KiB takes the place of
//! 64 page faults, which cost more than everything else that storing small messages takes.

use std::ops::Deref;

use memmap2::{MmapMut, MmapOptions};

/// Regions from this size are mapped, bytes.
const MAPPED_BYTES_MIN: usize = 256 << 10;

/// Memory of a fixed size; derefs to what it was filled with.
#[derive(Debug)]
pub struct Region {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Box<[u8]>),
    Mapped(MmapMut),
}

impl Memory {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(bytes) => bytes,
        }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(bytes) => bytes,
        }
    }
}

impl Region {
    /// An empty region for so many bytes.
    pub fn new(size: usize) -> Region {
        // Where mapping is refused (too many maps), the allocator knows what to do.
        let mapped = (size >= MAPPED_BYTES_MIN)
            .then(|| MmapOptions::new().len(size).populate().map_anon().ok())
            .flatten();
        let memory = match mapped {
            Some(mapped) => Memory::Mapped(mapped),
            None => Memory::Heap(vec![0; size].into()),
        };
        Region { memory, len: 0 }
    }

    /// Bytes it can hold.
    #[inline]
    pub fn size(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Bytes that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.size() - self.len
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// If they don't fit.
    #[inline]
    pub fn append(&mut self, bytes: &[u8]) {
        self.memory.bytes_mut()[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends the first `used` bytes of `head`, and then `rest`. A copy of a known length takes one move, so all of
    /// `head` is copied and what is not used is written over.
    ///
    /// # Panics
    /// If all of `head` and `rest` don't fit.
    #[inline]
    pub fn append_headed<const N: usize>(&mut self, head: &[u8; N], used: usize, rest: &[u8]) {
        let room = &mut self.memory.bytes_mut()[self.len..self.len + N + rest.len()];
        room[..N].copy_from_slice(head);
        room[used..used + rest.len()].copy_from_slice(rest);
        self.len += used + rest.len();
    }

    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl Deref for Region {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.memory.bytes()[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_ones_hold_what_was_appended() {
        for size in [100, MAPPED_BYTES_MIN] {
            let mut region = Region::new(size);
            assert_eq!(
                (region.size(), region.room(), region.len()),
                (size, size, 0)
            );
            region.append(b"first");
            region.append_headed(b"head----", 4, b" and rest");
            assert_eq!(*region, *b"firsthead and rest");
            assert_eq!(region.room(), size - 18);
            region.clear();
            let whole = vec![7; size];
            region.append(&whole);
            assert_eq!(*region, *whole);
            assert_eq!(region.room(), 0);
        }
    }

    #[test]
    #[should_panic(expected = "range end")]
    fn nothing_is_written_behind_the_end() {
        Region::new(8).append(&[0; 9]);
    }
}
