//! Messages of one queue that are stored, or freed, one after another: what is the same for all of them is done
//! once.

use super::put_small;
use crate::broker::id::{MessageId, QueueUid};
use crate::log::disk::Storage;
use crate::log::entry::{PUBLISH_HEAD_BYTES_MAX, SettleReason, SmallHead, seed};
use crate::log::place::Position;
use crate::log::{Log, Room};

/// Bodies of a run are shorter than this, bytes.
pub const RUN_BODY_BYTES: usize = SmallHead::BODY_BYTES;

/// Gives messages back, best in the order of their places; done when it is dropped.
#[derive(Debug)]
pub struct FreeRun<'l, S: Storage> {
    log: &'l mut Log<S>,
    /// The chunk of the last ones, how much of it has messages that are freed alike, and how many of them were.
    start: u64,
    length: u64,
    count: u32,
}

impl<S: Storage> FreeRun<'_, S> {
    /// [`Log::freed`].
    ///
    /// # Panics
    /// As that does.
    #[inline]
    pub fn free(&mut self, position: Position) {
        if position.0.wrapping_sub(self.start) < self.length || self.turn_to(position) {
            self.count += 1;
        }
    }

    /// Goes on with another chunk. False if the message is freed by itself.
    fn turn_to(&mut self, position: Position) -> bool {
        self.release();
        let span = match position.is_kept() {
            true => None,
            false => self.log.chunks.span(position.0),
        };
        (self.start, self.length) = span.unwrap_or((0, 0));
        if span.is_none() {
            self.log.freed(position);
        }
        span.is_some()
    }

    fn release(&mut self) {
        if self.count > 0 {
            self.log.freed_run(self.start, self.count);
            self.count = 0;
        }
    }
}

impl<S: Storage> Drop for FreeRun<'_, S> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<S: Storage> Log<S> {
    /// [`Log::begin`] for a message without sections, with a body of so many bytes and published at that time, unix
    /// milliseconds; and is it one that [`Log::publish_run`] takes?
    #[inline]
    pub fn begin_run(&mut self, time_ms: u64, body_bytes: usize) -> bool {
        body_bytes < RUN_BODY_BYTES
            && self.begin(PUBLISH_HEAD_BYTES_MAX + body_bytes) == Room::Plenty
            && (self.batch.rows.len() as u64) < SmallHead::ROWS
            && time_ms.saturating_sub(self.current.base_ms) < SmallHead::DELTA_MS
    }

    /// [`Log::publish`] of one body after another, as many as there is room for in the chunk and in the record, of
    /// which there are `most` at most: of the message that was just [begun](Log::begin_run), with that id, and of those
    /// after it. `next` is told which length a body has to stay below, and gives it or ends the run.
    ///
    /// Returns the place that they are `offsets` away from, in ascending order, and the sum of their bodies, bytes.
    ///
    /// # Panics
    /// If the first one is not given.
    #[inline]
    pub fn publish_run<'b>(
        &mut self,
        queue: QueueUid,
        first: MessageId,
        time_ms: u64,
        most: usize,
        mut next: impl FnMut(usize) -> Option<&'b [u8]>,
        offsets: &mut Vec<u32>,
    ) -> (Position, u64) {
        offsets.clear();
        let mut body = next(RUN_BODY_BYTES).expect("it was begun");
        let row = self.row_for(queue, first, PUBLISH_HEAD_BYTES_MAX + body.len());
        let end = self.run_end();
        let delta_ms = time_ms.saturating_sub(self.current.base_ms);
        let log_seed = self.seed;
        let base = self.chunks.end() - self.chunks.open_len() as u64;
        let head_of = |bytes| SmallHead::new(row, delta_ms, bytes).expect("it was asked before");
        let mut head = head_of(body.len());
        let open = self.chunks.open();
        let mut bytes = 0;
        loop {
            offsets.push(open.len() as u32);
            bytes += body.len() as u64;
            let seed = seed(log_seed, base + open.len() as u64);
            put_small(open, &head, seed, body);
            if offsets.len() == most {
                break;
            }
            let room = (end + 1).saturating_sub(open.len() + PUBLISH_HEAD_BYTES_MAX);
            let Some(following) = next(room.min(RUN_BODY_BYTES)) else {
                break;
            };
            if following.len() != body.len() {
                head = head_of(following.len());
            }
            body = following;
        }
        self.count_run(offsets.len() as u32);
        (Position(base), bytes)
    }

    /// So many messages of the row that was used last follow the one that it was used for. With that one they are
    /// `count` messages.
    #[inline]
    fn count_run(&mut self, count: u32) {
        let row = self.batch.row;
        self.batch.next[row] += u64::from(count) - 1;
        self.batch.entries += count;
        self.batch.messages += u64::from(count);
        self.chunks.count_live(count);
    }

    /// How long the open chunk may become with messages of a row that is there, each of which would be begun with
    /// [`Room::Plenty`].
    #[inline]
    fn run_end(&self) -> usize {
        let open = self.chunks.open_len();
        let mut end = self.current.limit - self.batch.reserve(2);
        if self.supply.spare.is_none() {
            end = end.min(self.current.limit - self.settles_reserve() - 1);
        }
        let left = end.saturating_sub(self.chunks.end()) as usize;
        open + left.min(self.chunks.space())
    }

    /// [`Log::settle`] of so many consecutive ids.
    pub fn settle_run(
        &mut self,
        queue: QueueUid,
        reason: SettleReason,
        first: MessageId,
        count: u64,
    ) {
        self.settle(queue, 0, reason, first);
        for id in first + 1..first + count {
            if let Some(last) = self.batch.settles.last_mut()
                && (last.queue, last.group, last.reason) == (queue, 0, reason)
                && let Some(run) = last.runs.last_mut()
                && run.first + run.count == id
            {
                run.count += first + count - id;
                return;
            }
            self.settle(queue, 0, reason, id);
        }
    }

    /// For freeing messages one after another.
    #[inline]
    pub fn free_run(&mut self) -> FreeRun<'_, S> {
        FreeRun {
            log: self,
            start: 0,
            length: 0,
            count: 0,
        }
    }

    /// [`Log::freed`] of so many messages of a chunk.
    fn freed_run(&mut self, start: u64, count: u32) {
        if start >= self.current.start {
            self.count_messages();
        }
        self.chunks.free_run(start, count);
        let position = Position(start);
        match self.table.free_run(position, count) {
            Ok(0) => self.emptied.push(self.table.name_of(position)),
            Ok(_) => {}
            Err(what) => panic!("{what}: {count} at {position}"),
        }
    }
}
