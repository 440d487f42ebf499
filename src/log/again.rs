//! Reads that failed and are tried again.
//!
//! An error of a read says nothing about what is stored: a bus that was reset, a path that fails
//! over, a process without a free file descriptor. Only what fails again and again counts as
//! damaged; what fails for want of a descriptor or memory is tried until it succeeds.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use super::error::is_no_space;
use super::place::{BlockSlot, Position};

/// How often a read is tried before what it is about counts as damaged.
pub(crate) const TRIES_MAX: u32 = 3;
/// Between two tries, microseconds.
pub(crate) const PAUSE_US: u64 = 200_000;

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadError {
    /// One sentence with file and offset.
    pub what: String,
    /// Whether another try may succeed.
    pub kind: ReadErrorKind,
}

/// Whether another try may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadErrorKind {
    /// It was read, and it is not what was written.
    Damaged,
    /// The operation failed.
    Failed,
    /// There was no file descriptor or no memory for it.
    Scarce,
}

impl ReadError {
    /// An operation failed.
    pub fn io(path: &str, offset: u64, error: &io::Error) -> ReadError {
        ReadError {
            what: format!("reading {path} at offset {offset} failed: {error}"),
            kind: if is_no_space(error) {
                ReadErrorKind::Scarce
            } else {
                ReadErrorKind::Failed
            },
        }
    }
}

/// What was to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wanted {
    /// A window of so many bytes.
    Window(Position, usize),
    /// An index block with this checksum.
    Block(BlockSlot, u32),
}

/// Reads that wait for another try.
#[derive(Debug, Default)]
pub(crate) struct Again {
    /// How often each of them has failed.
    failures: BTreeMap<Wanted, u32>,
    /// When each of them is due, microseconds, soonest first.
    due: VecDeque<(u64, Wanted)>,
}

impl Again {
    /// A read has failed; whether it is tried again.
    pub fn failed(&mut self, wanted: Wanted, error: &ReadError, now_us: u64) -> bool {
        let failures = self.failures.entry(wanted).or_insert(0);
        *failures += u32::from(error.kind == ReadErrorKind::Failed);
        if error.kind == ReadErrorKind::Damaged || *failures >= TRIES_MAX {
            self.failures.remove(&wanted);
            return false;
        }
        self.due.push_back((now_us + PAUSE_US, wanted));
        true
    }

    /// A read has succeeded.
    pub fn succeeded(&mut self, wanted: Wanted) {
        if !self.failures.is_empty() {
            self.failures.remove(&wanted);
        }
    }

    /// When the next one is due, microseconds.
    pub fn next_at(&self) -> Option<u64> {
        self.due.front().map(|(at, _)| *at)
    }

    /// The next one that is due.
    pub fn pop(&mut self, now_us: u64) -> Option<Wanted> {
        if self.next_at()? > now_us {
            return None;
        }
        self.due.pop_front().map(|(_, wanted)| wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32) -> ReadError {
        ReadError::io("shard/x", 7, &io::Error::from_raw_os_error(code))
    }

    #[test]
    fn a_failure_is_tried_a_few_times_and_scarcity_for_ever() {
        let mut again = Again::default();
        let wanted = Wanted::Window(Position(8), 100);
        assert_eq!(again.next_at(), None);
        for at in [5, 6] {
            assert!(again.failed(wanted, &error(libc::EIO), at));
            assert_eq!(again.next_at(), Some(at + PAUSE_US));
            assert_eq!(again.pop(at + PAUSE_US - 1), None);
            assert_eq!(again.pop(at + PAUSE_US), Some(wanted));
        }
        for _ in 0..100 {
            assert!(again.failed(wanted, &error(libc::EMFILE), 7));
            assert_eq!(again.pop(u64::MAX), Some(wanted));
        }
        assert!(!again.failed(wanted, &error(libc::EIO), 8));
        // The next read of it begins anew, and a success forgets failures.
        assert!(again.failed(wanted, &error(libc::EIO), 9));
        again.succeeded(wanted);
        assert!(again.failed(wanted, &error(libc::EIO), 9));
        assert!(again.failed(wanted, &error(libc::EIO), 9));
        assert!(!again.failed(wanted, &error(libc::EIO), 9));
    }

    #[test]
    fn what_was_read_and_is_wrong_is_not_read_again() {
        let mut again = Again::default();
        let wanted = Wanted::Block(BlockSlot(1), 2);
        let damaged = ReadError {
            what: String::new(),
            kind: ReadErrorKind::Damaged,
        };
        assert!(!again.failed(wanted, &damaged, 1));
        assert_eq!(again.next_at(), None);
    }
}
