//! Getting sealed records to the disk: writes on the loop, syncs off it, marks while idle.
//!
//! Invariant: `durable <= written <= last sealed`, for indices and positions alike. After a
//! failure nothing is written or synced any more and none of them moves.

use std::collections::VecDeque;
use std::io;

use crate::fault::{Fault, planted};

use super::disk::{Disk, Storage};
use super::error::{LogError, is_no_space};
use super::gather::Gather;
use super::job::{Job, Outcome, Work};
use super::place::LogIndex;
use super::record::Kind;
use super::rw::JobError;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentName};
use super::syncs::{Syncs, Written};
use super::{Event, Log, Room};

/// How long a write that found no space waits for its next try, microseconds.
const STALL_US: u64 = 100_000;
/// How often the directory is looked at, microseconds.
pub(crate) const WATCH_US: u64 = 1_000_000;

/// A segment that is written to, or that was and is not synced.
#[derive(Debug)]
pub(crate) struct TailSegment<F> {
    /// Its number.
    pub number: u64,
    /// Its file, once it is ready.
    pub file: Option<F>,
    /// Position of its first record.
    pub first: u64,
    /// Position behind its last sealed record.
    pub end: u64,
    /// No record follows in it.
    pub closed: bool,
}

/// What was sealed, written and synced.
pub(crate) struct Tail<F> {
    /// By number; the last one is the current segment.
    pub segments: VecDeque<TailSegment<F>>,
    /// Index in `segments` of the one written to.
    writing: usize,
    /// Everything sealed before this position is written.
    pub written: u64,
    /// Records not wholly written.
    sealed: VecDeque<Written>,
    /// The last record wholly written.
    pub written_index: LogIndex,
    /// The last record on stable storage, where it ends, and the bytes sealed up to it.
    pub durable_index: LogIndex,
    pub durable: u64,
    pub durable_bytes: u64,
    syncs: Syncs,
    gather: Gather,
    /// What all sealed records count.
    entries: u64,
    /// Records up to this one are to be synced as soon as possible.
    sync_target: LogIndex,
    /// Their sync waits for nobody up to this one.
    hurry_target: LogIndex,
    /// The next commit says so of its record.
    hurry: bool,
    /// When what is written must be synced at the latest.
    flush_at: Option<u64>,
    /// When to write a mark if nothing follows.
    mark_at: Option<u64>,
    /// The end of the last record with entries, and the highest durable point in any record.
    data_end: u64,
    claimed: u64,
    /// A write found no space; when to try again, and since when none succeeds.
    pub stalled_until: Option<u64>,
    stalled_since: Option<u64>,
}

impl<F> Tail<F> {
    /// A log whose last record ends at `end`, all of it durable.
    pub fn new(end: u64, index: LogIndex, gather: Gather) -> Tail<F> {
        Tail {
            segments: VecDeque::new(),
            writing: 0,
            written: end,
            sealed: VecDeque::new(),
            written_index: index,
            durable_index: index,
            durable: end,
            durable_bytes: 0,
            syncs: Syncs::default(),
            gather,
            entries: 0,
            sync_target: LogIndex(0),
            hurry_target: LogIndex(0),
            hurry: false,
            flush_at: None,
            mark_at: None,
            data_end: end,
            claimed: end,
            stalled_until: None,
            stalled_since: None,
        }
    }

    /// The current segment can be written to.
    pub fn is_current_ready(&self) -> bool {
        self.segments
            .back()
            .is_some_and(|segment| segment.file.is_some())
    }
}

/// How far an orderly end has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Not asked for.
    No,
    /// Everything before the closing mark is being synced.
    Flushing,
    /// The closing mark, this record, is being synced.
    Marking(LogIndex),
}

impl<S: Storage> Log<S> {
    /// Ends the turn: seals the record, writes what is sealed, asks for a sync when `sync` is said
    /// or one is due. `now_us` never goes back. Never blocks.
    pub fn commit(&mut self, now_us: u64, sync: bool) {
        self.now_us = self.now_us.max(now_us);
        self.close_empty_record();
        if !self.batch.is_empty() {
            self.seal(Kind::Batch);
        }
        self.last_commit = self.last.index;
        for name in self.emptied.drain(..) {
            if let Some(segment) = self.table.get_mut(name) {
                segment.emptied_in = self.last.index;
                self.reclaim_due = true;
            }
        }
        if self.failure.is_some() {
            return;
        }
        if std::mem::take(&mut self.tail.hurry) {
            self.tail.hurry_target = self.last.index;
        }
        self.write_out();
        if sync {
            self.tail.sync_target = self.last.index;
            self.sync_if_wanted();
        }
        self.upkeep();
    }

    /// Somebody waits for what was appended so far and not for publishers that may come: the sync that the next
    /// [`Log::commit`] asks for begins as soon as it can.
    pub fn hurry(&mut self) {
        self.tail.hurry = true;
    }

    /// Everything sealed so far is to be synced, and waits for nobody.
    fn sync_soon(&mut self) {
        self.tail.sync_target = self.last_commit;
        self.tail.hurry_target = self.last_commit;
        self.sync_if_wanted();
    }

    /// The next sync is one that others wait for than those who publish, or nobody could come for whom it might
    /// wait: the log ends, a segment does, there is no room, a checkpoint is due.
    fn is_hurried(&self) -> bool {
        let tail = &self.tail;
        let segment_ends = tail.segments.front().is_some_and(|first| first.closed);
        self.closing != Closing::No
            || tail.hurry_target > tail.syncs.covers().unwrap_or(tail.durable_index)
            || segment_ends
            || self.checkpoint_waits()
            || self.room() != Room::Plenty
    }

    /// A record was sealed: it is to be written.
    pub(crate) fn record_sealed(&mut self, kind: Kind, length: u64) {
        self.last.bytes += length;
        self.tail.claimed = self.tail.claimed.max(self.tail.durable);
        if kind == Kind::Batch {
            self.tail.data_end = self.last.end;
            self.tail.mark_at = None;
        }
        self.stats.records += 1;
        self.tail.entries += self.batch.count();
        self.tail.sealed.push_back(Written {
            index: self.last.index,
            end: self.last.end,
            bytes: self.last.bytes,
            entries: self.tail.entries,
        });
        let segment = self
            .tail
            .segments
            .back_mut()
            .expect("there is always a current segment");
        segment.end = self.last.end;
        let entry = self
            .table
            .get_mut(self.current.name())
            .expect("the current segment is in the table");
        entry.end = self.last.end - self.current.start;
        self.count_messages();
    }

    /// Writes what is sealed, as far as there are segments and space.
    pub(crate) fn write_out(&mut self) {
        if self.tail.stalled_until.is_some_and(|at| at > self.now_us) || self.failure.is_some() {
            return;
        }
        if self.tail.stalled_until.take().is_none() {
            self.tail.stalled_since = None;
        }
        let written_before = self.tail.written;
        let mut written_to = 0;
        while let Some(segment) = self.tail.segments.get_mut(self.tail.writing) {
            self.tail.written = self.tail.written.max(segment.first);
            if self.tail.written >= segment.end {
                if !segment.closed {
                    break;
                }
                self.tail.writing += 1;
                continue;
            }
            let Some(file) = &segment.file else { break };
            let bytes = self.chunks.bytes_from(self.tail.written);
            let left = (segment.end - self.tail.written) as usize;
            let bytes = &bytes[..bytes.len().min(left)];
            let offset = self.tail.written - segment.first + SEGMENT_HEADER_BYTES as u64;
            match self.storage.disk().write_at(file, offset, bytes) {
                Ok(count) if count > 0 => {
                    written_to = segment.number;
                    self.tail.written += count as u64;
                    self.stats.bytes_written += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_no_space(&error) => {
                    self.tail.stalled_until = Some(self.now_us + STALL_US);
                    self.tail.stalled_since.get_or_insert(self.now_us);
                    break;
                }
                other => {
                    let cause = other.map_or_else(
                        |error| error.to_string(),
                        |_| "nothing was written".to_owned(),
                    );
                    let file = SegmentName::log(segment.number).path();
                    self.fail(LogError::Write { file, cause });
                    return;
                }
            }
        }
        if self.tail.written == written_before {
            return;
        }
        self.chunks.set_written(self.tail.written);
        while let Some(record) = self.tail.sealed.front().copied() {
            if record.end > self.tail.written {
                break;
            }
            self.tail.sealed.pop_front();
            self.tail.written_index = record.index;
            self.tail.syncs.record_written(record);
        }
        self.tail.syncs.raise(self.tail.written_index, written_to);
        if self.tail.flush_at.is_none() && self.tail.written_index > self.tail.durable_index {
            self.tail.flush_at = Some(self.now_us + self.config.flush_us);
        }
        self.sync_if_wanted();
    }

    /// Submits a sync if one is wanted that covers more than those under way.
    pub(crate) fn sync_if_wanted(&mut self) {
        let tail = &mut self.tail;
        let upto = tail.written_index;
        let is_wanted = tail.sync_target > tail.durable_index && upto > tail.durable_index;
        if !is_wanted || !tail.syncs.wants(upto) {
            return;
        }
        let hurried = tail.gather.is_on() && self.is_hurried();
        let tail = &mut self.tail;
        let under_way = tail.syncs.is_any();
        let waits = tail.gather.waits(tail.entries, under_way, self.now_us);
        if waits && (!hurried || planted(Fault::GoneWaitedFor)) {
            return;
        }
        // The bytes of a record that is not wholly written may be synced along; they do not count.
        let (written, durable) = (tail.written, tail.durable);
        let touched = tail.segments.iter();
        let touched = touched.filter(|segment| segment.first < written && segment.end > durable);
        let files = touched.map(|segment| {
            let file = segment.file.clone().expect("a file that was written to");
            (segment.number, file)
        });
        let files: Vec<_> = files.collect();
        let (newest, _) = files.last().expect("what is not durable is in a segment");
        let ticket = tail.syncs.begin(upto, *newest, self.now_us);
        self.stats.syncs_in_vain += u64::from(tail.gather.begin(tail.entries, hurried));
        tail.flush_at = None;
        self.storage.submit(Job {
            work: Work::Sync { ticket, files },
        });
    }

    fn handle_synced(&mut self, upto: LogIndex, result: Result<(), LogError>) {
        if let Err(error) = result {
            return self.fail(error);
        }
        let (record, took_us) = self.tail.syncs.end(upto, self.now_us);
        self.stats.syncs += 1;
        let entries = self.tail.entries + self.batch.count();
        let gathered = self
            .tail
            .gather
            .end(record.entries, entries, took_us, self.now_us);
        self.stats.syncs_gathered += u64::from(gathered);
        self.stats.sync_us_max = self.stats.sync_us_max.max(took_us);
        self.stats.sync_us.add(took_us);
        let tail = &mut self.tail;
        tail.durable_index = upto;
        tail.durable = record.end;
        tail.durable_bytes = record.bytes;
        while let Some(first) = tail.segments.front() {
            // A segment that was skipped has no record and ends at its first place.
            let is_synced = first.end <= tail.durable.max(first.first);
            if !first.closed || !is_synced || tail.writing == 0 {
                break;
            }
            if first.file.is_none() {
                // Skipped before it was ever made.
                self.table.remove(SegmentName::log(first.number));
            }
            tail.segments.pop_front();
            tail.writing -= 1;
        }
        if tail.written_index > upto && tail.flush_at.is_none() {
            tail.flush_at = Some(self.now_us + self.config.flush_us);
        }
        if self.tail.claimed < self.tail.data_end && self.tail.data_end <= self.tail.durable {
            self.tail.mark_at = Some(self.now_us + self.config.flush_us);
        }
        self.events.push_back(Event::Durable(upto));
        self.reclaim_due = true;
        self.sync_if_wanted();
        self.close_step();
    }

    /// Nothing is written, synced or confirmed after this.
    pub(crate) fn fail(&mut self, error: LogError) {
        if self.failure.is_none() {
            ::log::error!("{error}");
            self.failure = Some(error);
            self.events.push_back(Event::Failed);
        }
    }

    /// The next thing that the background finished.
    pub fn poll(&mut self, now_us: u64) -> Option<Event> {
        self.now_us = self.now_us.max(now_us);
        while let Some(done) = self.storage.poll() {
            self.handle_done(done.outcome);
        }
        if self.failure.is_none() {
            self.upkeep();
        }
        self.events.pop_front()
    }

    fn handle_done(&mut self, outcome: Outcome<<S::Disk as Disk>::File>) {
        if self.failure.is_some() {
            // What finished after the failure does not count; the failure may be why it did.
            return;
        }
        match outcome {
            Outcome::Synced { upto, result } => self.handle_synced(upto, result),
            Outcome::Read {
                start,
                bytes,
                result,
            } => self.handle_read(start, bytes, result),
            Outcome::BlockLoaded { slot, crc, result } => {
                self.handle_block_loaded(slot, crc, result)
            }
            Outcome::Watched { result } => {
                self.watch_at = Some(self.now_us + WATCH_US);
                if let Err(error) = result {
                    self.fail(error);
                }
            }
            Outcome::Scrubbed { piece, result } => self.handle_scrubbed(&piece, result),
            Outcome::Prepared { number, result } => self.handle_prepared(number, result),
            Outcome::BlocksWritten { last, result } => self.handle_blocks_written(last, result),
            Outcome::Checkpointed { result } => self.handle_checkpointed(result),
            Outcome::Compacted { result } => self.handle_compacted(result),
            Outcome::Removed { result } => match result {
                Err(JobError::Failed(error)) => self.fail(error),
                Ok(()) | Err(JobError::NoSpace) => {}
            },
        }
    }

    /// What may become possible with every step: segments, blocks, a checkpoint, room.
    fn upkeep(&mut self) {
        self.supply_segments();
        self.reclaim();
        self.write_blocks();
        self.submit_checkpoint();
        let room = self.room();
        if room != self.last_room {
            if room == Room::Plenty {
                self.events.push_back(Event::Room);
            }
            self.last_room = room;
        }
    }

    /// When [`Log::handle_deadline`] is due next, on the clock of `now_us`.
    pub fn deadline_us(&self) -> Option<u64> {
        if self.failure.is_some() {
            return None;
        }
        let is_syncing = self.tail.syncs.is_any();
        let flush_at = self.tail.flush_at.filter(|_| !is_syncing);
        let gathered_at = self.tail.gather.deadline_us().filter(|_| !is_syncing);
        [
            flush_at,
            gathered_at,
            self.tail.mark_at,
            self.tail.stalled_until,
            self.supply.retry_at,
            self.blocks_retry_at,
            self.watch_at,
            self.scrub.next_at,
            self.again.next_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due: flush, mark, another try after missing space or a
    /// failed read, the directory watch.
    pub fn handle_deadline(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        if self.failure.is_some() {
            return;
        }
        let is_due = |at: Option<u64>| at.is_some_and(|at| at <= now_us);
        if is_due(self.tail.stalled_until) {
            self.write_out();
        }
        if is_due(self.tail.mark_at) {
            self.tail.mark_at = None;
            // A record that is being built claims the durable point itself.
            if self.batch.is_empty() {
                self.close_empty_record();
                self.seal(Kind::Mark);
                self.last_commit = self.last.index;
                self.write_out();
                self.sync_soon();
            }
        }
        if is_due(self.tail.flush_at) {
            self.tail.flush_at = None;
            self.sync_soon();
        }
        if is_due(self.tail.gather.deadline_us()) {
            self.tail.gather.expire();
            self.sync_if_wanted();
        }
        if is_due(self.watch_at) {
            self.watch_at = None;
            self.storage.submit(Job {
                work: Work::Watch {
                    directory_id: self.manifest.directory_id,
                    incarnation: self.manifest.incarnation,
                },
            });
        }
        self.scrub_if_due();
        self.read_again_if_due();
        if is_due(self.blocks_retry_at) {
            self.blocks_retry_at = None;
        }
        self.upkeep();
    }

    /// Writes and syncs everything, then a closing mark; [`Log::is_closed`] tells when that is on
    /// stable storage. Nothing may be appended after this.
    pub fn close(&mut self, now_us: u64) {
        self.hurry();
        self.commit(now_us, true);
        if self.closing == Closing::No && self.failure.is_none() {
            self.closing = Closing::Flushing;
            self.close_step();
        }
    }

    fn close_step(&mut self) {
        if self.closing == Closing::Flushing && self.tail.durable_index == self.last_commit {
            self.seal(Kind::Close);
            self.last_commit = self.last.index;
            self.closing = Closing::Marking(self.last.index);
            self.write_out();
            self.sync_soon();
        }
    }

    /// The closing mark is on stable storage.
    pub fn is_closed(&self) -> bool {
        matches!(self.closing, Closing::Marking(index) if index <= self.tail.durable_index)
    }

    /// Every record up to this one is accepted by `write`.
    #[inline]
    pub fn written(&self) -> LogIndex {
        self.tail.written_index
    }

    /// Every record up to this one is on stable storage.
    #[inline]
    pub fn durable(&self) -> LogIndex {
        self.tail.durable_index
    }

    /// For how long what is sealed could not be written for want of space, microseconds; 0 while
    /// it can. Segments have their space before they are used, so this happens only where the
    /// filesystem takes it back: one that copies on write, or a file size limit set later.
    pub fn stalled_us(&self, now_us: u64) -> u64 {
        let since = self
            .tail
            .stalled_since
            .filter(|_| self.tail.stalled_until.is_some());
        since.map_or(0, |since| now_us.saturating_sub(since))
    }

    /// The failure after which nothing is written, synced or confirmed any more.
    pub fn failure(&self) -> Option<&LogError> {
        self.failure.as_ref()
    }
}
