//! Segments to write to: always one ahead, and old ones used again when nothing needs them.
//!
//! Until a segment is ready its records wait in memory; their places are final all the same.

use super::disk::{Disk, Storage};
use super::job::{Job, Work};
use super::manifest::{Manifest, runs};
use super::place::Position;
use super::prepare::{Preparation, Prepared};
use super::rw::JobError;
use super::segment::{SEGMENT_HEADER_BYTES, Segment, SegmentName};
use super::write::TailSegment;
use super::{Event, Log};

/// How long to wait before trying again when there was no space, microseconds.
pub(crate) const RETRY_US: u64 = 200_000;
/// Files kept to be used again: as many as a checkpoint frees at once, within these bounds.
const FREE_COUNT_MIN: u64 = 2;
const FREE_COUNT_MAX: u64 = 8;

/// The segment that records are built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current {
    /// Its number.
    pub number: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Its base time.
    pub base_ms: u64,
    /// Position of its first byte.
    pub start: u64,
    /// Records must end before this position.
    pub limit: u64,
}

impl Current {
    /// The file's name.
    pub fn name(&self) -> SegmentName {
        SegmentName::log(self.number)
    }
}

/// A segment that is ready and that nothing was built for yet.
pub(crate) struct Spare<F> {
    number: u64,
    epoch: u64,
    base_ms: u64,
    pub prepared: Prepared<F>,
}

/// A segment that is being made ready.
#[derive(Clone, Copy, Debug)]
struct Preparing {
    number: u64,
    epoch: u64,
    base_ms: u64,
}

/// Where segments come from.
pub(crate) struct Supply<F> {
    /// The number of the next new segment.
    next_number: u64,
    /// Used epochs of this incarnation.
    epochs: u64,
    preparing: Option<Preparing>,
    /// A segment that could not be made for want of space and that nothing was built for.
    failed: Option<Preparing>,
    pub spare: Option<Spare<F>>,
    /// Files of full size that nobody needs.
    free: Vec<SegmentName>,
    /// The last preparation found less space than wanted.
    pub is_full: bool,
    /// When to try again, microseconds.
    pub retry_at: Option<u64>,
}

impl<F> Supply<F> {
    /// A supply whose next new segment has this number.
    pub fn new(next_number: u64, free: Vec<SegmentName>) -> Supply<F> {
        Supply {
            next_number,
            epochs: 0,
            preparing: None,
            failed: None,
            spare: None,
            free,
            is_full: false,
            retry_at: None,
        }
    }

    /// An epoch that was never used.
    pub fn next_epoch(&mut self, incarnation: u64) -> u64 {
        self.epochs += 1;
        assert!(self.epochs < 1 << 24, "16 million segments in one run");
        incarnation << 24 | self.epochs
    }

    /// Segments ready or free.
    pub fn count(&self) -> usize {
        self.free.len() + usize::from(self.spare.is_some())
    }
}

impl<S: Storage> Log<S> {
    /// Ends the current segment and goes to the next one, ready or not.
    pub(crate) fn next_segment(&mut self) {
        self.count_messages();
        self.close_current();
        let segment_bytes = self.config.segment_bytes;
        let awaited = self
            .supply
            .preparing
            .filter(|p| p.number > self.current.number);
        let awaited = awaited.or_else(|| self.supply.failed.take());
        let (number, epoch, base_ms, prepared) = if let Some(spare) = self.supply.spare.take() {
            (
                spare.number,
                spare.epoch,
                spare.base_ms,
                Some(spare.prepared),
            )
        } else if let Some(preparing) = awaited {
            (preparing.number, preparing.epoch, preparing.base_ms, None)
        } else {
            let (number, epoch, base_ms) = self.new_segment();
            (number, epoch, base_ms, None)
        };
        let bytes = prepared
            .as_ref()
            .map_or(segment_bytes, |prepared| prepared.bytes);
        let start = Position::new(false, number, 0, segment_bytes).0;
        self.current = Current {
            number,
            epoch,
            base_ms,
            start,
            limit: start + bytes,
        };
        self.table
            .insert(false, Segment::new(number, epoch, base_ms, bytes));
        let first = start + SEGMENT_HEADER_BYTES as u64;
        self.chunks.next(first, base_ms, 0);
        self.tail.segments.push_back(TailSegment {
            number,
            file: prepared.map(|prepared| prepared.file),
            first,
            end: first,
            closed: false,
        });
        self.supply_segments();
    }

    fn close_current(&mut self) {
        if let Some(last) = self.tail.segments.back_mut() {
            last.closed = true;
        }
        if let Some(segment) = self.table.get_mut(self.current.name()) {
            segment.closed = true;
        }
    }

    /// Number, epoch and base time of a segment that does not exist yet.
    fn new_segment(&mut self) -> (u64, u64, u64) {
        let number = self.supply.next_number;
        self.supply.next_number += 1;
        let epoch = self.supply.next_epoch(self.manifest.incarnation);
        (number, epoch, self.last.wall_ms.max(self.now_us / 1000))
    }

    /// Has the next segment made ready, if none is under way.
    pub(crate) fn supply_segments(&mut self) {
        let waits = self.supply.retry_at.is_some_and(|at| at > self.now_us);
        if self.supply.preparing.is_some() || self.failure.is_some() || waits {
            return;
        }
        self.supply.retry_at = None;
        let awaited = self
            .tail
            .segments
            .iter()
            .find(|segment| segment.file.is_none());
        let (number, epoch, base_ms, bytes_min) = match awaited {
            Some(awaited) => {
                let name = SegmentName::log(awaited.number);
                let segment = self
                    .table
                    .get(name)
                    .expect("the tail's segments are in the table");
                let start = self.table.range(name).start.0;
                (
                    segment.number,
                    segment.epoch,
                    segment.base_ms,
                    awaited.end.max(start) - start,
                )
            }
            None if self.supply.spare.is_some() => return,
            None => {
                let failed = self.supply.failed.take();
                let failed = failed.map(|failed| (failed.number, failed.epoch, failed.base_ms));
                let (number, epoch, base_ms) = failed.unwrap_or_else(|| self.new_segment());
                (number, epoch, base_ms, 0)
            }
        };
        self.supply.preparing = Some(Preparing {
            number,
            epoch,
            base_ms,
        });
        let preparation = Preparation {
            number,
            epoch,
            base_ms,
            bytes: self.config.segment_bytes,
            bytes_min,
            recycle: self.supply.free.pop(),
            manifest: Manifest {
                segments: self.needed_segments(number),
                ..self.manifest.clone()
            },
        };
        self.storage.submit(Job {
            work: Work::Prepare(preparation),
        });
    }

    /// The segments whose files must be there once segment `next` is ready.
    fn needed_segments(&self, next: u64) -> Vec<(u64, u64)> {
        let covered = match self.checkpoints.kept.first() {
            Some(older) => older.position.segment(self.config.segment_bytes),
            None => 0,
        };
        let is_awaited = |number: u64| {
            let mut tail = self.tail.segments.iter();
            tail.any(|segment| segment.number == number && segment.file.is_none())
        };
        let ready = self
            .table
            .of_kind(false)
            .iter()
            .map(|segment| segment.number);
        let ready =
            ready.filter(|number| *number >= covered && *number != next && !is_awaited(*number));
        let mut numbers: Vec<u64> = ready.chain([next]).collect();
        numbers.sort_unstable();
        runs(numbers.into_iter())
    }

    /// A preparation has ended.
    pub(crate) fn handle_prepared(
        &mut self,
        number: u64,
        result: Result<Prepared<<S::Disk as Disk>::File>, JobError>,
    ) {
        let preparing = self.supply.preparing.take();
        let preparing = preparing.filter(|preparing| preparing.number == number);
        let preparing = preparing.expect("one segment is prepared at a time");
        // Made or not: who waits for a segment asks again.
        self.events.push_back(Event::Room);
        let prepared = match result {
            Ok(prepared) => prepared,
            Err(JobError::NoSpace) => {
                if number > self.current.number {
                    self.supply.failed = Some(preparing);
                }
                return self.wait_for_space();
            }
            Err(JobError::Failed(error)) => return self.fail(error),
        };
        self.supply.is_full = prepared.bytes < self.config.segment_bytes;
        let name = SegmentName::log(number);
        let start = self.table.range(name).start.0;
        let reserve = self.batch_reserve();
        let tail = self
            .tail
            .segments
            .iter_mut()
            .find(|segment| segment.number == number);
        let Some(segment) = tail else {
            if number < self.current.number {
                // It was awaited, and skipped because a record needed more than it had. The
                // manifest says that it exists, so it goes the way of all segments.
                return self.add_skipped(preparing, prepared.bytes);
            }
            self.supply.spare = Some(Spare {
                number,
                epoch: preparing.epoch,
                base_ms: preparing.base_ms,
                prepared,
            });
            return;
        };
        let built = if number == self.current.number {
            self.chunks.end()
        } else {
            segment.end
        };
        if start + prepared.bytes < built + reserve {
            // More was built for it meanwhile than it holds: it must be made again, larger.
            return self.wait_for_space();
        }
        segment.file = Some(prepared.file);
        let entry = self
            .table
            .get_mut(name)
            .expect("the tail's segments are in the table");
        entry.file_bytes = prepared.bytes;
        if number == self.current.number {
            self.current.limit = start + prepared.bytes;
            self.limit();
        }
        self.write_out();
        self.supply_segments();
    }

    fn add_skipped(&mut self, preparing: Preparing, bytes: u64) {
        if self.table.get(SegmentName::log(preparing.number)).is_none() {
            let mut segment =
                Segment::new(preparing.number, preparing.epoch, preparing.base_ms, bytes);
            segment.closed = true;
            self.table.insert(false, segment);
        }
    }

    /// Keeps the file of a segment that nobody needs for the next use, or removes it.
    fn give_up(&mut self, name: SegmentName, file_bytes: u64) {
        let is_full_size = !name.kept && file_bytes == self.config.segment_bytes;
        // A checkpoint frees at once what was logged since the one before, or a segment more by where
        // they begin; until the next one as much is needed again.
        let cycle = self.config.checkpoint_bytes / self.config.segment_bytes + 1;
        let count_max = cycle.clamp(FREE_COUNT_MIN, FREE_COUNT_MAX);
        if is_full_size && (self.supply.free.len() as u64) < count_max {
            self.supply.free.push(name);
        } else {
            self.storage.submit(Job {
                work: Work::Remove {
                    files: vec![name.path()],
                },
            });
        }
    }

    fn wait_for_space(&mut self) {
        self.supply.is_full = true;
        self.supply.retry_at = Some(self.now_us + RETRY_US);
    }

    /// Gives up segments that hold nothing live and that no checkpoint needs.
    pub(crate) fn reclaim(&mut self) {
        if !std::mem::take(&mut self.reclaim_due) || self.failure.is_some() {
            return;
        }
        let (covered, oldest) = match self.checkpoints.kept[..] {
            [older, _] => (older.position, older.number),
            _ => return,
        };
        let first_in_tail = self
            .tail
            .segments
            .front()
            .map_or(u64::MAX, |segment| segment.number);
        let durable = self.tail.durable_index;
        let is_free = |name: &SegmentName, segment: &Segment| {
            let end = self.table.range(*name).start.plus(segment.end);
            segment.live == 0
                && segment.closed
                && segment.emptied_in <= durable
                && segment.moved_at.is_none_or(|moved| moved < oldest)
                && (name.kept || (end <= covered && name.number < first_in_tail))
        };
        let free: Vec<SegmentName> = self
            .table
            .iter()
            .filter(|(name, segment)| is_free(name, segment))
            .map(|(name, _)| name)
            .collect();
        for name in free {
            let segment = self.table.remove(name).expect("it was found there");
            let range = self.table.range(name);
            self.windows.forget(range.start.0, range.end.0);
            self.give_up(name, segment.file_bytes);
        }
        if self.supply.is_full && !self.supply.free.is_empty() {
            self.supply.retry_at = None;
            self.supply_segments();
        }
    }
}
