//! Reading messages back: from the tail's memory, from windows, or not yet.

use std::sync::Arc;

use bytes::Bytes;

use crate::broker::id::QueueUid;

use super::again::{ReadError, Wanted};
use super::disk::Storage;
use super::entry::message_head;
use super::job::{Job, Work};
use super::place::{BlockSlot, Position};
use super::rw::JobError;
use super::sections::Sections;
use super::supply::RETRY_US;
use super::windows::{Cold, WINDOW_BYTES};
use super::{Event, Log, Payload, Read, Stored};

/// Bodies of this size and more that lie in a window are shared instead of lent: they would hold
/// on to at most eight times their size.
const SHARE_BYTES: usize = WINDOW_BYTES / 8;

impl<S: Storage> Log<S> {
    /// The message at a place that was returned by [`Log::publish`], [`Log::append`], replay or
    /// compaction, and that is not freed in all its queues.
    #[inline]
    pub fn read(&mut self, position: Position) -> Read<'_> {
        if !position.is_kept()
            && let Some(spot) = self.chunks.locate(position.0)
        {
            let found = self.chunks.get(spot, position.0);
            let head =
                message_head(found.bytes).expect("the log's memory holds what was put there");
            let body = match found.body {
                Some(body) => Payload::Shared(body.clone()),
                None => Payload::Slice(&found.bytes[head.body_at..head.entry_bytes()]),
            };
            return Read::Resident(Stored {
                time_ms: found.base_ms + head.delta_ms,
                sections: Sections(&found.bytes[head.sections_at..head.body_at]),
                body,
            });
        }
        self.read_window(position)
    }

    fn read_window(&mut self, position: Position) -> Read<'_> {
        match self.windows.read(position, self.seed) {
            Cold::Missing => Read::Cold,
            Cold::Damaged => {
                self.stats.damaged += 1;
                Read::Damaged
            }
            Cold::Whole(head, window, at, base_ms) => {
                let body = at + head.body_at..at + head.entry_bytes();
                Read::Resident(Stored {
                    time_ms: base_ms + head.delta_ms,
                    sections: Sections(&window[at + head.sections_at..at + head.body_at]),
                    body: if head.body_bytes >= SHARE_BYTES {
                        Payload::Shared(Bytes::slice(window, body))
                    } else {
                        Payload::Slice(&window[body])
                    },
                })
            }
        }
    }

    /// The message at a place can be read without a fetch, or is known to be damaged.
    pub fn is_resident(&mut self, position: Position) -> bool {
        (!position.is_kept() && self.chunks.locate(position.0).is_some())
            || !matches!(self.windows.read(position, self.seed), Cold::Missing)
    }

    /// Has the message at a place read, and as much of what follows it as fits a window.
    /// [`Event::Fetched`] tells the end. Does nothing while that is under way.
    ///
    /// # Panics
    /// If the place is in no segment.
    pub fn fetch(&mut self, position: Position) {
        if !self.windows.is_in_flight(position)
            && !self.is_resident(position)
            && self.failure.is_none()
        {
            self.submit_read(position, WINDOW_BYTES);
        }
    }

    fn submit_read(&mut self, position: Position, bytes: usize) {
        let left = self.segment_bytes_left(position);
        let bytes = bytes.min(left);
        self.windows.begin(position, bytes);
        self.stats.reads += 1;
        self.storage.submit(Job {
            work: Work::Read {
                start: position,
                file: self.table.name_of(position).path(),
                offset: position.offset(self.config.segment_bytes),
                bytes,
            },
        });
    }

    /// Bytes that are written from a position to the end of its segment.
    fn segment_bytes_left(&self, position: Position) -> usize {
        let name = self.table.name_of(position);
        let segment = self.table.get(name);
        let segment = segment.expect("a message that is live is in a segment of the table");
        let mut end = self.table.range(name).start.0 + segment.end;
        if !name.kept {
            end = end.min(self.tail.written);
        }
        end.saturating_sub(position.0) as usize
    }

    pub(crate) fn handle_read(
        &mut self,
        start: Position,
        asked: usize,
        result: Result<Vec<u8>, ReadError>,
    ) {
        let wanted = Wanted::Window(start, asked);
        let Some(segment) = self.table.get(self.table.name_of(start)) else {
            // Everything in it was freed, and the segment given up, while this was under way. Who waits for
            // it looks where a compaction has put it.
            self.again.succeeded(wanted);
            self.windows.end(start, Vec::new(), 0, 0);
            self.events.push_back(Event::Fetched(start));
            return;
        };
        let base_ms = segment.base_ms;
        let left = self.segment_bytes_left(start);
        let bytes = match result {
            Ok(bytes) => {
                self.again.succeeded(wanted);
                bytes
            }
            Err(error) if self.again.failed(wanted, &error, self.now_us) => {
                ::log::warn!("{}; it is tried again", error.what);
                return;
            }
            Err(error) => {
                ::log::error!("{}; the message there cannot be delivered", error.what);
                Vec::new()
            }
        };
        match self.windows.end(start, bytes, base_ms, left) {
            Some(more) => self.submit_read(start, more),
            None => self.events.push_back(Event::Fetched(start)),
        }
    }

    /// The message is settled in one of its queues and will not be read for it again. The entry
    /// that says so must be in the log by the next commit.
    ///
    /// # Panics
    /// If nothing is live in its segment: that would be a second time for one message.
    #[inline]
    pub fn freed(&mut self, position: Position) {
        if !position.is_kept() {
            if position.0 >= self.current.start {
                self.count_messages();
            }
            self.chunks.free(position.0);
        }
        match self.table.free(position) {
            // What says that it is settled may still be appended to this turn's last record.
            Ok(0) => self.emptied.push(self.table.name_of(position)),
            Ok(_) => {}
            Err(what) => panic!("{what}: {position}"),
        }
    }

    /// Memory of messages and blocks, bytes.
    #[inline]
    pub fn memory(&self) -> usize {
        self.chunks.memory() + self.windows.memory() + self.blocks.memory()
    }

    /// Lets go of memory that can be read again from disk, least recently used first, until
    /// `target_bytes` are held or there is no more; never of windows fetched since the last call.
    pub fn trim(&mut self, target_bytes: usize) {
        if self.memory() > target_bytes {
            self.chunks.drop_pool();
        }
        let mut excess = self.memory().saturating_sub(target_bytes);
        if excess > 0 {
            let chunks = self
                .chunks
                .evictable()
                .map(|(used, start, bytes)| (used, start, bytes, true));
            let windows = self
                .windows
                .evictable()
                .map(|(used, start, bytes)| (used, start, bytes, false));
            let mut candidates: Vec<_> = chunks.chain(windows).collect();
            candidates.sort_unstable();
            for (_, start, bytes, is_chunk) in candidates {
                if excess == 0 {
                    break;
                }
                if is_chunk {
                    self.chunks.evict(start);
                } else {
                    self.windows.evict(start);
                }
                excess = excess.saturating_sub(bytes);
            }
            self.chunks.drop_pool();
        }
        self.chunks.advance_tick();
        self.windows.advance_tick();
    }

    /// Stores a block of at most [`super::BLOCK_OFFSETS_MAX`] offsets away; the slot can be loaded
    /// at once, and the block is written in the background.
    pub fn spill(&mut self, queue: QueueUid, number: u64, offsets: Arc<[u32]>) -> BlockSlot {
        self.blocks.spill(self.seed, queue, number, offsets)
    }

    /// Has a block read; [`Event::BlockLoaded`] brings it. The slot stays in use.
    ///
    /// # Panics
    /// If the slot is not in use.
    pub fn load(&mut self, slot: BlockSlot) {
        if let Some(offsets) = self.blocks.pending(slot) {
            self.events.push_back(Event::BlockLoaded {
                slot,
                result: Ok(offsets),
            });
        } else if let Some(crc) = self.blocks.begin_load(slot) {
            self.submit_load(slot, crc);
        }
    }

    fn submit_load(&mut self, slot: BlockSlot, crc: u32) {
        self.storage.submit(Job {
            work: Work::LoadBlock {
                slot,
                crc,
                seed: self.seed,
            },
        });
    }

    /// The block is not needed any more. Its slot is used again when no kept checkpoint can refer
    /// to it.
    ///
    /// # Panics
    /// If the slot is not in use.
    pub fn free_slot(&mut self, slot: BlockSlot) {
        self.blocks.free(slot, self.checkpoints.begun);
    }

    pub(crate) fn handle_block_loaded(
        &mut self,
        slot: BlockSlot,
        crc: u32,
        result: Result<Vec<u32>, ReadError>,
    ) {
        let wanted = Wanted::Block(slot, crc);
        match &result {
            Err(error)
                if self.blocks.is_loading(slot, crc)
                    && self.again.failed(wanted, error, self.now_us) =>
            {
                ::log::warn!("{}; it is tried again", error.what);
                return;
            }
            _ => self.again.succeeded(wanted),
        }
        if self.blocks.end_load(slot, crc) {
            let result = result.map(Arc::from).map_err(|error| error.what);
            self.events.push_back(Event::BlockLoaded { slot, result });
        }
    }

    /// Has what could not be read a while ago read again.
    pub(crate) fn read_again_if_due(&mut self) {
        while let Some(wanted) = self.again.pop(self.now_us) {
            match wanted {
                Wanted::Window(start, bytes) => {
                    if self.table.get(self.table.name_of(start)).is_some() {
                        self.submit_read(start, bytes);
                    } else {
                        self.again.succeeded(wanted);
                        self.windows.end(start, Vec::new(), 0, 0);
                    }
                }
                Wanted::Block(slot, crc) if self.blocks.is_loading(slot, crc) => {
                    self.submit_load(slot, crc);
                }
                Wanted::Block(..) => self.again.succeeded(wanted),
            }
        }
    }

    /// Has spilled blocks written, if no others are under way.
    pub(crate) fn write_blocks(&mut self) {
        if self.blocks_retry_at.is_some() {
            return;
        }
        if let Some((last, blocks)) = self.blocks.take_writes() {
            self.storage.submit(Job {
                work: Work::WriteBlocks { last, blocks },
            });
        }
    }

    pub(crate) fn handle_blocks_written(&mut self, last: u64, result: Result<(), JobError>) {
        match result {
            Ok(()) => self.blocks.wrote(Some(last)),
            Err(JobError::NoSpace) => {
                self.blocks.wrote(None);
                self.blocks_retry_at = Some(self.now_us + RETRY_US);
            }
            Err(JobError::Failed(error)) => self.fail(error),
        }
    }
}
