//! Cold data read back: windows of a segment, each beginning exactly at a message that was wanted.
//!
//! A message that is cut by its window's end is cold again. One larger than a window gets a window
//! of its size. Every message read from a window is verified.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::entry::{HeadError, MessageHead, message_crc, message_head, seed};
use super::place::Position;

/// Usual size of a window.
pub(crate) const WINDOW_BYTES: usize = 512 << 10;

#[derive(Debug)]
struct Window {
    bytes: Bytes,
    base_ms: u64,
    /// When it was last read, in the count of [`Windows::tick`].
    used: u64,
    /// Nothing behind it can be read, or its first entry claims more than there is: what does not
    /// fit is damaged, not cut.
    is_last: bool,
}

/// What a window has at a position.
#[derive(Debug)]
pub(crate) enum Cold<'a> {
    /// The entry, verified; its window from the entry's first byte on, and the base time.
    Whole(MessageHead, &'a Bytes, usize, u64),
    /// Nothing or not all of it.
    Missing,
    /// It is not what was written.
    Damaged,
}

/// All windows by the position of their first byte.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    windows: BTreeMap<u64, Window>,
    /// Windows being read, with the bytes asked for.
    in_flight: BTreeMap<u64, usize>,
    memory_bytes: usize,
    tick: u64,
}

impl Windows {
    /// The entry at a position.
    pub fn read(&mut self, position: Position, directory_seed: u32) -> Cold<'_> {
        let Some((start, window)) = self.windows.range_mut(..=position.0).next_back() else {
            return Cold::Missing;
        };
        let offset = position.0 - start;
        if offset >= window.bytes.len() as u64 && !(window.is_last && offset == 0) {
            return Cold::Missing;
        }
        window.used = self.tick;
        let offset = offset as usize;
        let window = &*window;
        let bytes = &window.bytes[offset..];
        let cut = || {
            if window.is_last {
                Cold::Damaged
            } else {
                Cold::Missing
            }
        };
        let head = match message_head(bytes) {
            Ok(head) => head,
            Err(HeadError::Cut) => return cut(),
            Err(HeadError::Malformed) => return Cold::Damaged,
        };
        let Some(entry) = bytes.get(..head.entry_bytes()) else {
            return cut();
        };
        if message_crc(seed(directory_seed, position.0), entry) != head.crc {
            return Cold::Damaged;
        }
        Cold::Whole(head, &window.bytes, offset, window.base_ms)
    }

    /// A window that holds the position is being read.
    pub fn is_in_flight(&self, position: Position) -> bool {
        let before = self.in_flight.range(..=position.0).next_back();
        before.is_some_and(|(start, bytes)| position.0 - start < *bytes as u64)
    }

    /// A window is being read from now on.
    pub fn begin(&mut self, start: Position, bytes: usize) {
        self.in_flight.insert(start.0, bytes);
    }

    /// The bytes of a window have come, fewer than asked for if the file ends or cannot be read.
    /// `left` is how much of the segment is written from `start` on; what is read from windows is
    /// wholly written. Returns how many bytes the first entry needs, if it was cut and there are
    /// more.
    pub fn end(
        &mut self,
        start: Position,
        bytes: Vec<u8>,
        base_ms: u64,
        left: usize,
    ) -> Option<usize> {
        let asked = self.in_flight.remove(&start.0)?;
        let needed = match message_head(&bytes) {
            Ok(head) => head.entry_bytes(),
            Err(HeadError::Cut) => bytes.len() * 2,
            Err(HeadError::Malformed) => 0,
        };
        let is_cut = needed > bytes.len();
        if is_cut && bytes.len() == asked && asked < left {
            return Some(needed.min(left));
        }
        let is_last = is_cut || bytes.len() < asked;
        self.remove(start.0);
        self.memory_bytes += bytes.len();
        let window = Window {
            bytes: Bytes::from(bytes),
            base_ms,
            // Counts as used later than all others until the next trim.
            used: self.tick,
            is_last,
        };
        self.windows.insert(start.0, window);
        None
    }

    fn remove(&mut self, start: u64) {
        if let Some(window) = self.windows.remove(&start) {
            self.memory_bytes -= window.bytes.len();
        }
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.memory_bytes
    }

    /// Starts a new span of use.
    pub fn advance_tick(&mut self) {
        self.tick += 1;
    }

    /// Windows that were not fetched or read in this span: when last used, first position, memory.
    pub fn evictable(&self) -> impl Iterator<Item = (u64, u64, usize)> {
        let windows = self
            .windows
            .iter()
            .filter(|(_, window)| window.used < self.tick);
        windows.map(|(start, window)| (window.used, *start, window.bytes.len()))
    }

    /// Lets go of a window.
    pub fn evict(&mut self, start: u64) {
        self.remove(start);
    }

    /// Lets go of everything in a range: its positions are used for something else now.
    pub fn forget(&mut self, start: u64, end: u64) {
        let starts: Vec<u64> = self
            .windows
            .range(start..end)
            .map(|(start, _)| *start)
            .collect();
        for start in starts {
            self.remove(start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{HeadBuilder, PUBLISH};
    use super::*;

    /// A publish entry with a body of so many bytes, as it stands at a position.
    fn entry(position: u64, body_bytes: usize) -> Vec<u8> {
        let mut head = HeadBuilder::<32>::new(PUBLISH);
        for number in [0, 5, body_bytes as u64] {
            head.number(number);
        }
        let mut out = head.as_slice().to_vec();
        out.resize(out.len() + body_bytes, 7);
        let crc = message_crc(seed(9, position), &out);
        out[1..5].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn body(windows: &mut Windows, position: u64) -> Option<usize> {
        match windows.read(Position(position), 9) {
            Cold::Whole(head, ..) => Some(head.body_bytes),
            Cold::Missing => None,
            Cold::Damaged => Some(usize::MAX),
        }
    }

    #[test]
    fn whole_entries_are_read_and_cut_ones_are_cold_again() {
        let mut bytes = entry(1000, 10);
        let second = 1000 + bytes.len() as u64;
        bytes.extend(entry(second, 20));
        let cut = bytes.len() - 1;
        let mut windows = Windows::default();
        windows.begin(Position(1000), cut);
        assert!(windows.is_in_flight(Position(second)) && !windows.is_in_flight(Position(999)));
        assert_eq!(
            windows.end(Position(1000), bytes[..cut].to_vec(), 1, cut),
            None
        );
        assert_eq!(body(&mut windows, 1000), Some(10));
        assert_eq!(body(&mut windows, second), None);
        assert_eq!(body(&mut windows, 5000), None);
        let rest = bytes[(second - 1000) as usize..].to_vec();
        windows.begin(Position(second), rest.len());
        assert_eq!(
            windows.end(Position(second), rest.clone(), 1, rest.len()),
            None
        );
        assert_eq!(body(&mut windows, second), Some(20));
    }

    #[test]
    fn a_large_entry_gets_a_window_of_its_size() {
        let bytes = entry(1000, 5000);
        let mut windows = Windows::default();
        windows.begin(Position(1000), 100);
        let more = windows.end(Position(1000), bytes[..100].to_vec(), 1, 9000);
        assert_eq!(more, Some(bytes.len()));
        windows.begin(Position(1000), bytes.len());
        assert_eq!(windows.end(Position(1000), bytes, 1, 9000), None);
        assert_eq!(body(&mut windows, 1000), Some(5000));
    }

    #[test]
    fn what_is_not_what_was_written_is_damaged() {
        let bytes = entry(1000, 50);
        let read = |bytes: Vec<u8>, asked: usize, left: usize| {
            let mut windows = Windows::default();
            windows.begin(Position(1000), asked);
            assert_eq!(windows.end(Position(1000), bytes, 1, left), None);
            body(&mut windows, 1000)
        };
        let all = bytes.len();
        assert_eq!(read(bytes.clone(), all, all), Some(50));
        for cut in 0..all {
            assert_eq!(
                read(bytes[..cut].to_vec(), all, all),
                Some(usize::MAX),
                "the file ends"
            );
        }
        assert_eq!(
            read(bytes[..40].to_vec(), 40, 40),
            Some(usize::MAX),
            "it claims too much"
        );
        for bit in 0..all * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut windows = Windows::default();
            windows.begin(Position(1000), all);
            // A longer length may only ask for more, of which there is none.
            assert_eq!(windows.end(Position(1000), bytes, 1, all), None);
            assert_eq!(body(&mut windows, 1000), Some(usize::MAX), "bit {bit}");
        }
    }

    #[test]
    fn windows_fetched_since_the_last_trim_are_not_evicted() {
        let mut windows = Windows::default();
        for start in [1000, 2000] {
            let bytes = entry(start, 50);
            windows.begin(Position(start), bytes.len());
            let left = bytes.len();
            windows.end(Position(start), bytes, 1, left);
            assert_eq!(windows.evictable().count(), (start / 1000 - 1) as usize);
            windows.advance_tick();
        }
        body(&mut windows, 1000);
        assert_eq!(
            windows
                .evictable()
                .map(|(_, start, _)| start)
                .collect::<Vec<_>>(),
            [2000]
        );
        windows.evict(2000);
        windows.forget(0, 1500);
        assert_eq!((windows.memory(), body(&mut windows, 1000)), (0, None));
    }
}
