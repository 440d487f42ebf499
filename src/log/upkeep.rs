//! Checkpoints and compactions: when they are due, and what follows from them.

use crate::broker::id::{MessageId, QueueUid};

use super::checkpoint::{self, Meta};
use super::compaction::{self, Compacted, Compaction, Output};
use super::disk::{Disk, Storage};
use super::error::OpenError;
use super::job::{Job, Work};
use super::patient::Patient;
use super::place::{LogIndex, Position, SegmentRange};
use super::rw::JobError;
use super::segment::{Segment, SegmentName};
use super::survey::Survey;
use super::write::Closing;
use super::{Event, Log};

/// After a checkpoint or compaction that found no space, microseconds.
const PAUSE_US: u64 = 10_000_000;
/// Fewer segments than this are not worth a compaction.
const SEGMENTS_MIN: usize = 4;

/// A checkpoint on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Which one begun.
    pub number: u64,
    /// Its position.
    pub position: Position,
}

/// A checkpoint that waits for what it covers to be durable.
#[derive(Debug)]
struct Waiting {
    number: u64,
    meta: Meta,
    payload: Vec<u8>,
    /// Blocks spilled before it was made.
    spilled: u64,
}

/// Which checkpoints there are.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    /// How many were begun. What refers to places or slots that were given up when this had some
    /// value is only in checkpoints up to that one.
    pub begun: u64,
    /// At most two, older first.
    pub kept: Vec<Kept>,
    waiting: Option<Waiting>,
    /// Being written.
    in_flight: Option<Kept>,
    /// Positions of checkpoint files that are neither kept nor being written.
    pub stale: Vec<Position>,
    /// Bytes sealed when the last one was begun.
    pub begun_bytes: u64,
    /// None is begun before, microseconds.
    pause_until: u64,
}

impl Checkpoints {
    /// The state after opening.
    pub fn new(kept: Vec<Kept>, stale: Vec<Position>) -> Checkpoints {
        Checkpoints {
            begun: 2,
            kept,
            waiting: None,
            in_flight: None,
            stale,
            begun_bytes: 0,
            pause_until: 0,
        }
    }

    /// The number of the older of two kept checkpoints; 0 when there are not two.
    fn oldest_of_two(&self) -> u64 {
        match self.kept[..] {
            [older, _] => older.number,
            _ => 0,
        }
    }
}

/// What is known of the compaction under way and of its output.
#[derive(Debug, Default)]
pub(crate) struct Compacting {
    /// The segment being emptied, and how many messages of it are to be copied.
    source: Option<(SegmentName, usize)>,
    /// The kept segment that the next one appends to.
    append_to: Option<u64>,
    /// The number of the next kept segment.
    next_number: u64,
    pause_until: u64,
}

impl Compacting {
    /// The state after opening.
    pub fn new(next_number: u64) -> Compacting {
        Compacting {
            next_number,
            ..Compacting::default()
        }
    }
}

impl<S: Storage> Log<S> {
    /// Enough was logged since the last checkpoint, and none is under way.
    pub fn checkpoint_due(&self) -> bool {
        let checkpoints = &self.checkpoints;
        let is_idle = checkpoints.waiting.is_none() && checkpoints.in_flight.is_none();
        is_idle
            && self.failure.is_none()
            && self.closing == Closing::No
            && self.now_us >= checkpoints.pause_until
            && self.last.bytes - checkpoints.begun_bytes >= self.config.checkpoint_bytes
    }

    /// Saves the state that has every record up to the last commit applied and no later one. To be
    /// called right after a commit. Until it is done, another one takes its place.
    ///
    /// # Panics
    /// If something was appended since the last commit.
    pub fn checkpoint(&mut self, payload: Vec<u8>) {
        assert!(
            self.is_empty_turn(),
            "a checkpoint is made at the end of a turn"
        );
        if self.last.index == LogIndex(0) {
            return;
        }
        self.checkpoints.begun += 1;
        self.checkpoints.begun_bytes = self.last.bytes;
        let meta = Meta {
            position: Position(self.last.end),
            index: self.last.index,
            chain: self.last.chain,
            wall_ms: self.last.wall_ms,
            durable: 0,
            segments: Meta::segments_of(&self.table, false),
            kept: Meta::segments_of(&self.table, true),
            slots: self.blocks.used(),
        };
        self.checkpoints.waiting = Some(Waiting {
            number: self.checkpoints.begun,
            meta,
            payload,
            spilled: self.blocks.spilled(),
        });
        self.submit_checkpoint();
        self.sync_if_wanted();
    }

    /// A checkpoint waits until its position is durable.
    pub(crate) fn checkpoint_waits(&self) -> bool {
        let waiting = self.checkpoints.waiting.as_ref();
        waiting.is_some_and(|waiting| waiting.meta.index > self.tail.durable_index)
    }

    /// Has the waiting checkpoint written once its position is durable and its blocks are written.
    pub(crate) fn submit_checkpoint(&mut self) {
        let durable = self.tail.durable_index;
        let is_ready = |waiting: &Waiting| {
            waiting.meta.index <= durable && self.blocks.is_written(waiting.spilled)
        };
        if self.failure.is_some()
            || self.checkpoints.in_flight.is_some()
            || !self.checkpoints.waiting.as_ref().is_some_and(is_ready)
        {
            return;
        }
        let waiting = self
            .checkpoints
            .waiting
            .take()
            .expect("it was just looked at");
        let position = waiting.meta.position;
        let meta = Meta {
            durable: self.tail.durable,
            ..waiting.meta
        };
        // The newest one before stays; it is replaced if it has the same place.
        let checkpoints = &mut self.checkpoints;
        if checkpoints
            .kept
            .last()
            .is_some_and(|newest| newest.position == position)
        {
            checkpoints.kept.pop();
        }
        while checkpoints.kept.len() > 1 {
            checkpoints.stale.push(checkpoints.kept.remove(0).position);
        }
        checkpoints.stale.retain(|stale| *stale != position);
        let head = meta.encode(self.manifest.directory_id, self.seed, &waiting.payload);
        checkpoints.in_flight = Some(Kept {
            number: waiting.number,
            position,
        });
        self.storage.submit(Job {
            work: Work::Checkpoint {
                position,
                head,
                payload: waiting.payload,
                sync_blocks: !meta.slots.is_empty(),
                remove: self
                    .checkpoints
                    .stale
                    .iter()
                    .map(|stale| checkpoint::path(*stale))
                    .collect(),
            },
        });
    }

    pub(crate) fn handle_checkpointed(&mut self, result: Result<(), JobError>) {
        let kept = self
            .checkpoints
            .in_flight
            .take()
            .expect("one checkpoint is written at a time");
        match result {
            Ok(()) => {
                self.checkpoints.stale.clear();
                self.checkpoints.kept.push(kept);
                self.blocks.release(self.checkpoints.oldest_of_two());
                self.stats.checkpoints += 1;
                self.reclaim_due = true;
                self.events.push_back(Event::CheckpointDone);
            }
            Err(JobError::NoSpace) => {
                // An earlier one of the same place may be there.
                self.checkpoints.stale.push(kept.position);
                self.checkpoints.pause_until = self.now_us + PAUSE_US;
            }
            Err(JobError::Failed(error)) => self.fail(error),
        }
    }

    /// A segment that is worth compacting, if any: few of its messages are live, and what the
    /// checkpoints do not need of the log is more than twice what is live in it.
    pub fn compaction_due(&self) -> Option<SegmentRange> {
        let covered = match self.checkpoints.kept[..] {
            [older, _] => older.position,
            _ => return None,
        };
        let is_busy = self.compacting.source.is_some() || self.now_us < self.compacting.pause_until;
        if is_busy || self.failure.is_some() || self.closing != Closing::No {
            return None;
        }
        let live_bytes = |segment: &Segment| {
            (u128::from(segment.end) * u128::from(segment.live)
                / u128::from(segment.messages.max(1))) as u64
        };
        let candidates = self.table.iter().filter(|(name, segment)| {
            let end = self.table.range(*name).start.plus(segment.end);
            segment.closed && (name.kept || end <= covered)
        });
        let (mut count, mut bytes, mut live) = (0, 0u64, 0u64);
        let mut best: Option<(u64, SegmentName)> = None;
        for (name, segment) in candidates {
            count += 1;
            bytes += segment.end;
            live += live_bytes(segment);
            let is_movable =
                segment.live > 0 && !segment.stuck && segment.live * 4 <= segment.messages;
            if is_movable && best.is_none_or(|(least, _)| live_bytes(segment) < least) {
                best = Some((live_bytes(segment), name));
            }
        }
        let (_, name) = best.filter(|_| count > SEGMENTS_MIN && bytes > 2 * live)?;
        Some(self.table.range(name))
    }

    /// Copies the live messages of a segment elsewhere; [`Event::Compacted`] tells where. `live`
    /// names every message in the range that is not freed, once for each queue.
    ///
    /// # Panics
    /// If a compaction is under way, or the range is not one that [`Log::compaction_due`] told.
    pub fn compact(&mut self, segment: SegmentRange, live: Vec<(QueueUid, MessageId, Position)>) {
        let inside = live
            .iter()
            .all(|(_, _, position)| segment.contains(*position));
        assert!(inside, "a message to compact is in another segment");
        assert!(self.compacting.source.is_none(), "one compaction at a time");
        let source = self.table.name_of(segment.start);
        let (source_end, base_ms) = {
            let segment = self
                .table
                .get(source)
                .expect("the segment was told to be compacted");
            (segment.end, segment.base_ms)
        };
        let append_to = self.append_to();
        self.compacting.source = Some((source, live.len()));
        // Each output but the last is at least half full, so that a few epochs do.
        let next_epoch = self.supply.next_epoch(self.manifest.incarnation);
        for _ in 0..15 {
            self.supply.next_epoch(self.manifest.incarnation);
        }
        self.storage.submit(Job {
            work: Work::Compact(Compaction {
                source,
                source_end,
                base_ms,
                live,
                append_to,
                next_number: self.compacting.next_number,
                next_epoch,
                directory_id: self.manifest.directory_id,
                seed: self.seed,
                segment_bytes: self.config.segment_bytes,
                wall_ms: self.last.wall_ms,
            }),
        });
    }

    pub(crate) fn handle_compacted(&mut self, result: Result<Compacted, JobError>) {
        let (source, count) = self
            .compacting
            .source
            .take()
            .expect("one compaction runs at a time");
        let done = match result {
            Ok(done) => done,
            Err(JobError::Failed(error)) => return self.fail(error),
            Err(JobError::NoSpace) => {
                // Whatever it left behind is never written to again.
                self.compacting.next_number += 16;
                self.close_kept();
                self.compacting.pause_until = self.now_us + PAUSE_US;
                return;
            }
        };
        self.take_outputs(&done.outputs);
        if let Some(segment) = self.table.get_mut(source) {
            // Checkpoints begun so far refer to the old places, and so may one that is begun
            // before the caller has taken the event.
            segment.moved_at = Some(self.checkpoints.begun + 1);
            segment.stuck = done.moves.len() < count || count == 0;
        }
        self.stats.compactions += 1;
        self.stats.damaged += done.damaged.len() as u64;
        self.events.push_back(Event::Compacted {
            moves: done.moves,
            damaged: done.damaged,
        });
    }

    /// Kept segments were written to.
    fn take_outputs(&mut self, outputs: &[Output]) {
        for output in outputs {
            let name = SegmentName::kept(output.number);
            if output.is_new {
                self.close_kept();
                let segment = Segment::new(output.number, output.epoch, 0, output.end);
                self.table.insert(true, segment);
                self.compacting.append_to = Some(output.number);
                self.compacting.next_number = output.number + 1;
            }
            let kept = self
                .table
                .get_mut(name)
                .expect("it is open or was just inserted");
            kept.end = output.end;
            kept.file_bytes = output.end;
            kept.messages += output.messages;
            kept.live += output.messages;
        }
    }

    /// The kept segment that the next compaction appends to.
    fn append_to(&self) -> Option<(u64, u64, u64)> {
        let number = self.compacting.append_to?;
        let kept = self.table.get(SegmentName::kept(number))?;
        Some((number, kept.epoch, kept.end))
    }

    /// New kept segments get numbers from this one on, if they would get lower ones.
    pub fn number_kept_from(&mut self, number: u64) {
        let next = &mut self.compacting.next_number;
        *next = number.max(*next);
    }

    /// Copies messages of another directory's segment to kept segments of this one, and waits for it: for tools.
    /// `live` names them as they are called here, once for each queue, with the places where they are there;
    /// what comes back has the places where they are here, on stable storage. What fills a segment to its last
    /// bytes may be missing there: there is no place for it.
    ///
    /// # Errors
    /// A message is damaged, or a disk fails; the log may have some of the messages then, which is of no harm.
    ///
    /// # Panics
    /// If a compaction is under way, or the segments of the two directories are of different size.
    pub fn copy_in<D: Disk>(
        &mut self,
        survey: &Survey<D>,
        segment: SegmentRange,
        live: Vec<(QueueUid, MessageId, Position)>,
    ) -> Result<Vec<(QueueUid, MessageId, Position)>, OpenError> {
        assert!(self.compacting.source.is_none(), "one compaction at a time");
        assert_eq!(survey.segment_bytes(), self.config.segment_bytes);
        let from = survey.from(segment);
        let next_epoch = self.supply.next_epoch(self.manifest.incarnation);
        let job = Compaction {
            source: from.name,
            source_end: from.end,
            base_ms: from.base_ms,
            live,
            append_to: self.append_to(),
            next_number: self.compacting.next_number,
            next_epoch,
            directory_id: self.manifest.directory_id,
            seed: self.seed,
            segment_bytes: self.config.segment_bytes,
            wall_ms: self.last.wall_ms,
        };
        let disks = (Patient(survey.disk()), Patient(self.storage.disk()));
        let done = compaction::perform_between(&disks.0, from.seed, &disks.1, job)?;
        for _ in done.outputs.iter().filter(|output| output.is_new).skip(1) {
            self.supply.next_epoch(self.manifest.incarnation);
        }
        if let Some((_, id, position)) = done.damaged.first() {
            let offset = position.offset(self.config.segment_bytes);
            let what = format!("message {id} is not what was written");
            return Err(OpenError::corrupt(&from.name.path(), offset, what));
        }
        self.take_outputs(&done.outputs);
        let moves = done.moves.into_iter();
        Ok(moves.map(|(queue, id, _, new)| (queue, id, new)).collect())
    }

    /// The kept segment that was appended to is complete.
    fn close_kept(&mut self) {
        if let Some(number) = self.compacting.append_to.take()
            && let Some(segment) = self.table.get_mut(SegmentName::kept(number))
        {
            segment.closed = true;
        }
    }
}
