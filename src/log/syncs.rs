//! The syncs under way, and what each of them covers.
//!
//! A second sync is handed over while the first one runs, so that the lane goes from one to the next
//! without waiting for the loop. What is written until it begins is still gathered: loop and lane
//! share a [`Ticket`], which the loop raises with every write and the lane takes when it begins.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::place::LogIndex;

/// One that runs and one that waits for it.
const COUNT_MAX: usize = 2;
/// In a ticket: its sync has begun.
const TAKEN: u64 = 1 << 63;

/// Up to which record a sync counts, shared by the loop and the lane that does the sync.
#[derive(Debug)]
pub(crate) struct Ticket {
    upto: AtomicU64,
    /// A sync of this log has failed: no other is tried.
    failed: Arc<AtomicBool>,
}

impl Ticket {
    /// The sync begins now: what was written before counts. False when an earlier one has failed.
    pub fn take(&self) -> (LogIndex, bool) {
        let upto = self.upto.fetch_or(TAKEN, Ordering::AcqRel);
        let failed = self.failed.load(Ordering::Acquire);
        (LogIndex(upto & !TAKEN), !failed)
    }

    /// The sync has failed, and every later one with it.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Written before now: counts if the sync has not begun.
    fn raise(&self, upto: LogIndex) {
        let before = self.upto.load(Ordering::Acquire);
        if before & TAKEN == 0 {
            // If it begins at this moment, it counts without.
            let _ = self
                .upto
                .compare_exchange(before, upto.0, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    fn covers(&self) -> LogIndex {
        LogIndex(self.upto.load(Ordering::Acquire) & !TAKEN)
    }
}

#[derive(Debug)]
struct Sync {
    ticket: Arc<Ticket>,
    /// The newest segment whose file it syncs.
    segment: u64,
    since_us: u64,
}

/// A record that is written and not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Its index.
    pub index: LogIndex,
    /// Position behind it.
    pub end: u64,
    /// Bytes sealed up to there.
    pub bytes: u64,
    /// What was sealed up to there counts: messages published and settled, and entries of other kinds.
    pub entries: u64,
}

/// The loop's side.
#[derive(Debug, Default)]
pub(crate) struct Syncs {
    under_way: VecDeque<Sync>,
    /// By index.
    written: VecDeque<Written>,
    failed: Arc<AtomicBool>,
}

impl Syncs {
    /// A sync was handed over and has not been reported.
    pub fn is_any(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// A record is wholly written.
    pub fn record_written(&mut self, record: Written) {
        self.written.push_back(record);
    }

    /// Everything up to this record is written, the last of it to this segment: a sync of the same
    /// file that has not begun covers it.
    pub fn raise(&mut self, upto: LogIndex, segment: u64) {
        if let Some(last) = self.under_way.back().filter(|last| last.segment == segment) {
            last.ticket.raise(upto);
        }
    }

    /// Up to which record those under way count, if one is.
    pub fn covers(&self) -> Option<LogIndex> {
        self.under_way.back().map(|last| last.ticket.covers())
    }

    /// Would another sync, begun when those under way have ended, cover more than they do, and is
    /// there room for it?
    pub fn wants(&self, upto: LogIndex) -> bool {
        self.under_way.len() < COUNT_MAX && self.covers().is_none_or(|covered| covered < upto)
    }

    /// A sync up to this record is handed over, of files the newest of which is that of `segment`.
    pub fn begin(&mut self, upto: LogIndex, segment: u64, now_us: u64) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket {
            upto: AtomicU64::new(upto.0),
            failed: self.failed.clone(),
        });
        self.under_way.push_back(Sync {
            ticket: ticket.clone(),
            segment,
            since_us: now_us,
        });
        ticket
    }

    /// The oldest has ended well and covers everything up to this record. Returns that record and
    /// how long the sync took, microseconds.
    ///
    /// # Panics
    /// If none was under way, or it covered nothing new: syncs only add.
    pub fn end(&mut self, upto: LogIndex, now_us: u64) -> (Written, u64) {
        let ended = self.under_way.pop_front().expect("a sync is under way");
        if let Some(next) = self.under_way.front_mut() {
            next.since_us = now_us;
        }
        let mut last = None;
        while let Some(record) = self.written.front().filter(|record| record.index <= upto) {
            last = Some(*record);
            self.written.pop_front();
        }
        let last = last.expect("syncs only add");
        assert_eq!(last.index, upto, "a sync covers whole records");
        (last, now_us.saturating_sub(ended.since_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(syncs: &mut Syncs, index: u64, segment: u64) {
        syncs.record_written(Written {
            index: LogIndex(index),
            end: index * 100,
            bytes: index * 100,
            entries: index,
        });
        syncs.raise(LogIndex(index), segment);
    }

    #[test]
    fn what_is_written_before_a_sync_begins_counts_and_what_comes_later_does_not() {
        let mut syncs = Syncs::default();
        write(&mut syncs, 1, 7);
        assert!(syncs.wants(LogIndex(1)) && !syncs.is_any());
        let first = syncs.begin(LogIndex(1), 7, 1000);
        assert!(!syncs.wants(LogIndex(1)), "it covers that");
        write(&mut syncs, 2, 7);
        assert!(!syncs.wants(LogIndex(2)), "it has not begun");
        assert_eq!(first.take(), (LogIndex(2), true));
        write(&mut syncs, 3, 7);
        assert!(syncs.wants(LogIndex(3)));
        let second = syncs.begin(LogIndex(3), 7, 1100);
        write(&mut syncs, 4, 7);
        assert!(!syncs.wants(LogIndex(4)), "two are enough");
        let (record, took_us) = syncs.end(LogIndex(2), 1500);
        assert_eq!((record.index.0, record.end, took_us), (2, 200, 500));
        assert_eq!(second.take(), (LogIndex(4), true));
        let (record, took_us) = syncs.end(LogIndex(4), 1600);
        assert_eq!((record.bytes, took_us), (400, 100), "since the one before");
        assert!(!syncs.is_any());
    }

    #[test]
    fn a_sync_does_not_cover_a_file_that_it_was_not_given() {
        let mut syncs = Syncs::default();
        write(&mut syncs, 1, 7);
        let first = syncs.begin(LogIndex(1), 7, 0);
        write(&mut syncs, 2, 8);
        assert!(syncs.wants(LogIndex(2)));
        assert_eq!(first.take().0, LogIndex(1));
    }

    #[test]
    fn after_a_failed_sync_no_other_is_tried() {
        let mut syncs = Syncs::default();
        write(&mut syncs, 1, 7);
        let first = syncs.begin(LogIndex(1), 7, 0);
        assert!(first.take().1);
        write(&mut syncs, 2, 7);
        let second = syncs.begin(LogIndex(2), 7, 0);
        first.fail();
        assert!(!second.take().1);
    }
}
