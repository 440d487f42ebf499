//! Building the turn's record in place, at the end of the log's memory.
//!
//! The record's header and table are filled in when it is sealed; the places of its entries are
//! final from the start. A record never spans segments: one that would is sealed early and the
//! next entry begins another in the next segment.

mod run;

use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::broker::command::Body;
use crate::broker::id::{MessageId, QueueUid};

use super::crc;
use super::disk::Storage;
use super::entry::{
    Entry, FLAG_MANY, FLAG_SECTIONS, HeadBuilder, Message, PUBLISH, PUBLISH_HEAD_BYTES_MAX, Run,
    SettleReason, SmallHead, TRANSFER, TRANSFER_HEAD_BYTES_MAX, message_crc, message_crc_more,
    seed,
};
use super::place::{LogIndex, Position};
use super::plain;
use super::record::{ALIGN, HEADER_BYTES, Header, Kind, ROW_BYTES};
use super::segment::SEGMENT_HEADER_BYTES;
use super::{Log, Room};
use crate::broker::varint;
pub use run::{FreeRun, RUN_BODY_BYTES};

/// Owned bodies of this size and more are kept without copying them.
const ADOPT_BYTES: usize = 16 << 10;
/// Most bytes of one settle entry beyond its runs, and of one run.
const SETTLE_BYTES: usize = 32;
const RUN_BYTES: usize = 2 * varint::BYTES_MAX;
/// Most bytes that one settled message takes, that the end of one lease without a settle takes, and
/// that a queue's definition takes beyond its name and settings.
pub const SETTLE_BYTES_MAX: usize = SETTLE_BYTES + RUN_BYTES;
/// See [`SETTLE_BYTES_MAX`].
pub const RELEASE_BYTES_MAX: usize = 80;
/// See [`SETTLE_BYTES_MAX`].
pub const DEFINE_HEAD_BYTES_MAX: usize = 40;
/// Most bytes that a schedule takes beyond its definition.
pub const SCHEDULE_HEAD_BYTES_MAX: usize = 48;
/// Most bytes of a segment that are kept for settles while no other segment is ready.
const SETTLES_RESERVE_MAX: u64 = 1 << 20;
/// Settles kept aside are written when they are for more (queue, group, reason) or more runs.
const SETTLE_KEYS_MAX: usize = 8;
const RUNS_MAX: usize = 128;

/// The settles of one queue, group and reason that were not written yet.
#[derive(Debug)]
struct Settles {
    queue: QueueUid,
    group: u32,
    reason: SettleReason,
    runs: Vec<Run>,
}

/// The record that is being built.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Position of its header; meaningful while it is open.
    start: u64,
    is_open: bool,
    entries: u32,
    /// Queue and first id of each row, and the id that continues it.
    rows: Vec<(QueueUid, MessageId)>,
    next: Vec<MessageId>,
    /// The row used last.
    row: usize,
    /// Queue to its last row; filled when a record has many.
    row_of: HashMap<u64, u32, FixedState>,
    /// Length that the open chunk may have without looking at anything else.
    soft_end: usize,
    /// Messages published to the current segment and not counted in the table yet.
    pub messages: u64,
    settles: Vec<Settles>,
    /// Bound of the bytes that `settles` will take.
    settles_bytes: usize,
    /// Runs in `settles`.
    runs: usize,
    /// Messages that the entries settle, less those entries.
    settled: u64,
    spare_runs: Vec<Vec<Run>>,
    scratch: Vec<u8>,
    entry: Vec<u8>,
}

impl Batch {
    /// Nothing was appended since the last record was sealed.
    pub fn is_empty(&self) -> bool {
        self.entries == 0 && self.settles.is_empty()
    }

    /// Messages published and settled, and entries of other kinds. Never fewer than before until the record is
    /// sealed.
    pub fn count(&self) -> u64 {
        let runs = self.settles.iter().flat_map(|settles| &settles.runs);
        u64::from(self.entries) + self.settled + runs.map(|run| run.count).sum::<u64>()
    }

    /// Bytes that must stay free behind the entries for the settles, `rows` more rows and padding.
    fn reserve(&self, rows: usize) -> u64 {
        (self.settles_bytes + (self.rows.len() + rows) * ROW_BYTES + ALIGN) as u64
    }

    /// The row that has the message as its next one.
    #[inline]
    fn row(&mut self, queue: QueueUid, id: MessageId) -> u64 {
        if let Some(next) = self.next.get_mut(self.row)
            && *next == id
            && self.rows[self.row].0 == queue
        {
            *next += 1;
            return self.row as u64;
        }
        self.find_row(queue, id)
    }

    fn find_row(&mut self, queue: QueueUid, id: MessageId) -> u64 {
        const LOOK_AT: usize = 8;
        let found = if self.rows.len() <= LOOK_AT {
            self.rows.iter().rposition(|(other, _)| *other == queue)
        } else {
            self.row_of.get(&queue.0).map(|row| *row as usize)
        };
        self.row = match found {
            Some(row) if self.next[row] == id => row,
            _ => {
                self.rows.push((queue, id));
                self.next.push(id);
                let row = self.rows.len() - 1;
                if row == LOOK_AT {
                    let rows = self.rows.iter().enumerate();
                    self.row_of
                        .extend(rows.map(|(row, (queue, _))| (queue.0, row as u32)));
                } else if row > LOOK_AT {
                    self.row_of.insert(queue.0, row as u32);
                }
                self.soft_end = self.soft_end.saturating_sub(ROW_BYTES);
                row
            }
        };
        self.next[self.row] = id + 1;
        self.row as u64
    }
}

/// Most bytes of a message that is stored once for so many queues.
pub fn publish_many_bytes(queues: usize, sections: &[u8], body: &[u8]) -> usize {
    PUBLISH_HEAD_BYTES_MAX + queues * varint::BYTES_MAX + sections.len() + body.len()
}

/// Appends an entry to a chunk that has space for it.
#[inline(always)]
fn put_small(open: &mut Vec<u8>, head: &SmallHead, seed: u32, body: &[u8]) {
    // The body is read where it came from: what was just written is not to be had in whole words yet.
    let octets = head.octets(head.crc(seed, body));
    let behind = open.len() + head.len();
    // All sixteen bytes, and back again: a copy of a known length takes one move.
    open.extend_from_slice(&octets);
    open.truncate(behind);
    open.extend_from_slice(body);
}

impl<S: Storage> Log<S> {
    /// Makes sure that the entries appended until the next call of this or of [`Log::commit`] are
    /// in one record, as long as they take at most `bytes` (a publish to one queue takes at most
    /// [`PUBLISH_HEAD_BYTES_MAX`] beyond its sections and body). Only [`Room::Plenty`] means yes;
    /// with [`Room::NoSegment`] ask again later, with [`Room::DiskFull`] refuse the command: no
    /// segment can hold that much. Entries appended without it may go to a record of their own
    /// where a segment ends.
    ///
    /// What is begun stands in a segment that has its space on the disk. So publishes that are
    /// under way never meet a full disk, and settles have a reserve.
    pub fn begin(&mut self, bytes: usize) -> Room {
        self.begin_many(bytes, 1)
    }

    /// The same for messages to so many queues, each of which may take a row of the record's table
    /// beyond `bytes`; [`publish_many_bytes`] says what one of them takes at most.
    #[inline]
    pub fn begin_many(&mut self, bytes: usize, queues: usize) -> Room {
        if self.tail.stalled_until.is_some() {
            return Room::DiskFull;
        }
        // One row more is kept free, as where room is made: what is begun is never sealed in the middle.
        if self.batch.is_open && self.fits(bytes, queues + 1) && self.has_space(bytes as u64) {
            return Room::Plenty;
        }
        // A record of its own, here or at the front of the next segment.
        let alone = (bytes + HEADER_BYTES + (queues + 1) * ROW_BYTES + ALIGN) as u64;
        let room = self.segment_for(alone);
        if room == Room::Plenty {
            self.make_room_for_record(bytes, queues);
        }
        room
    }

    /// [`Log::begin`] for settles and releases alone, which need no space ahead: they go on when the disk
    /// is full. False if no segment can hold so much.
    pub fn begin_settles(&mut self, bytes: usize) -> bool {
        let alone = SEGMENT_HEADER_BYTES + HEADER_BYTES + bytes + ROW_BYTES + ALIGN;
        let fits = alone as u64 <= self.config.segment_bytes;
        if fits {
            self.make_room_for_record(bytes, 0);
        }
        fits
    }

    /// So many bytes can be written now and leave the reserve for settles: the spare segment, or
    /// the end of this one.
    #[inline]
    fn has_space(&self, bytes: u64) -> bool {
        if !self.tail.is_current_ready() {
            return false;
        }
        if self.supply.spare.is_some() {
            return true;
        }
        self.chunks.end() + bytes + self.settles_reserve() < self.current.limit
    }

    /// Bytes of the current segment that are kept for settles while no other is ready.
    fn settles_reserve(&self) -> u64 {
        ((self.current.limit - self.current.start) / 16).min(SETTLES_RESERVE_MAX)
    }

    /// Can the current segment or the next one hold a record of so many bytes?
    fn segment_for(&self, bytes: u64) -> Room {
        let fits_here = self.batch.is_empty() && self.chunks.end() + bytes <= self.current.limit;
        if fits_here && self.has_space(bytes) {
            return Room::Plenty;
        }
        let next = match &self.supply.spare {
            Some(spare) => spare.prepared.bytes,
            None if self.supply.is_full => 0,
            None => self.config.segment_bytes,
        };
        if bytes + SEGMENT_HEADER_BYTES as u64 > next {
            Room::DiskFull
        } else if self.supply.spare.is_none() {
            Room::NoSegment
        } else {
            Room::Plenty
        }
    }

    /// Appends a message for one queue to the turn's record and returns its place.
    ///
    /// # Panics
    /// If it does not fit an empty segment.
    #[inline]
    pub fn publish(&mut self, queue: QueueUid, id: MessageId, message: &Message<'_>) -> Position {
        let body = match &message.body {
            Body::Borrowed(body) => *body,
            Body::Owned(body) if body.len() >= ADOPT_BYTES => {
                return self.publish_many(&[(queue, id)], message);
            }
            Body::Owned(body) => body.as_ref(),
        };
        let flags = if message.sections.is_empty() {
            0
        } else {
            FLAG_SECTIONS
        };
        let need = PUBLISH_HEAD_BYTES_MAX + message.sections.len() + body.len();
        let row = self.row_for(queue, id, need);
        let delta_ms = message.time_ms.saturating_sub(self.current.base_ms);
        if flags == 0
            && let Some(head) = SmallHead::new(row, delta_ms, body.len())
        {
            let position = self.chunks.end();
            put_small(self.chunks.open(), &head, seed(self.seed, position), body);
            self.count_message(1);
            return Position(position);
        }
        let mut head = HeadBuilder::<40>::new(PUBLISH | flags);
        head.number(row);
        head.number(delta_ms);
        head.number(body.len() as u64);
        if flags != 0 {
            head.number(message.sections.len() as u64);
        }
        let position = self.chunks.end();
        let open = self.chunks.open();
        let at = open.len();
        open.extend_from_slice(head.as_slice());
        if flags != 0 {
            open.extend_from_slice(message.sections);
        }
        open.extend_from_slice(body);
        let crc = message_crc(seed(self.seed, position), &open[at..]);
        open[at + 1..at + 5].copy_from_slice(&crc.to_le_bytes());
        self.count_message(1);
        Position(position)
    }

    #[inline]
    fn count_message(&mut self, targets: u32) {
        self.batch.entries += 1;
        self.batch.messages += u64::from(targets);
        self.chunks.count_live(targets);
    }

    /// Makes room for a message with that id, which needs so many bytes and was [begun](Log::begin), notes it in the
    /// record's table and returns its row.
    #[inline]
    fn row_for(&mut self, queue: QueueUid, id: MessageId, bytes: usize) -> u64 {
        if self.chunks.open_len() + bytes > self.batch.soft_end {
            self.make_room(bytes, 1);
        }
        self.batch.row(queue, id)
    }

    /// Appends a message for several queues, which is stored once, and returns its place. It must
    /// be freed once for each of them.
    ///
    /// # Panics
    /// If there is no target, or it does not fit an empty segment.
    pub fn publish_many(
        &mut self,
        targets: &[(QueueUid, MessageId)],
        message: &Message<'_>,
    ) -> Position {
        assert!(
            !targets.is_empty(),
            "a message is published to one queue at least"
        );
        let many = if targets.len() > 1 { FLAG_MANY } else { 0 };
        let flags = if message.sections.is_empty() {
            0
        } else {
            FLAG_SECTIONS
        };
        let mut head = std::mem::take(&mut self.batch.entry);
        head.clear();
        head.extend_from_slice(HeadBuilder::<5>::new(PUBLISH | many | flags).as_slice());
        let body = message.body.as_slice();
        let whole = publish_many_bytes(targets.len(), message.sections, body);
        self.make_room_for_record(whole, targets.len());
        if many != 0 {
            varint::put(&mut head, targets.len() as u64);
        }
        for (queue, id) in targets {
            varint::put(&mut head, self.batch.row(*queue, *id));
        }
        let position = self.put_message(head, message);
        self.count_message(targets.len() as u32);
        if self.is_adopted(message) {
            self.adopt(position, message, targets.len() as u32);
        }
        Position(position)
    }

    fn is_adopted(&self, message: &Message<'_>) -> bool {
        matches!(&message.body, Body::Owned(body) if body.len() >= ADOPT_BYTES)
    }

    /// Ends `head` with time and lengths and appends it with its message. There must be room in
    /// the record. Returns the entry's place.
    fn put_message(&mut self, mut head: Vec<u8>, message: &Message<'_>) -> u64 {
        let body = message.body.as_slice();
        varint::put(
            &mut head,
            message.time_ms.saturating_sub(self.current.base_ms),
        );
        varint::put(&mut head, body.len() as u64);
        if !message.sections.is_empty() {
            varint::put(&mut head, message.sections.len() as u64);
            head.extend_from_slice(message.sections);
        }
        let body_here = if self.is_adopted(message) {
            &[][..]
        } else {
            body
        };
        self.chunk_for(head.len() + body_here.len());
        let position = self.chunks.end();
        let mut crc = message_crc(seed(self.seed, position), &head);
        crc = message_crc_more(crc, body);
        head[1..5].copy_from_slice(&crc.to_le_bytes());
        let open = self.chunks.open();
        open.extend_from_slice(&head);
        open.extend_from_slice(body_here);
        self.batch.entry = head;
        position
    }

    fn adopt(&mut self, position: u64, message: &Message<'_>, targets: u32) {
        if let Body::Owned(body) = &message.body {
            self.chunks.adopt(position, body.clone(), targets);
            self.limit();
        }
    }

    /// Appends a settle; consecutive ids are merged into runs, which are written at the commit or
    /// before the next entry that is not a publish.
    #[inline]
    pub fn settle(&mut self, queue: QueueUid, group: u32, reason: SettleReason, id: MessageId) {
        if let Some(last) = self.batch.settles.last_mut()
            && (last.queue, last.group, last.reason) == (queue, group, reason)
            && let Some(run) = last.runs.last_mut()
            && run.first + run.count == id
        {
            run.count += 1;
            return;
        }
        self.settle_slowly(queue, group, reason, id);
    }

    fn settle_slowly(&mut self, queue: QueueUid, group: u32, reason: SettleReason, id: MessageId) {
        let key = (queue, group, reason);
        let same = |s: &Settles| (s.queue, s.group, s.reason) == key;
        let mut place = self.batch.settles.iter().rposition(same);
        if let Some(place) = place {
            let runs = self.batch.settles[place].runs.iter_mut().rev().take(8);
            for run in runs {
                if run.first + run.count == id {
                    run.count += 1;
                    return;
                }
                if id + 1 == run.first {
                    run.first = id;
                    run.count += 1;
                    return;
                }
            }
        }
        if self.batch.runs >= RUNS_MAX
            || (place.is_none() && self.batch.settles.len() >= SETTLE_KEYS_MAX)
        {
            self.flush_settles();
            place = None;
        }
        let need = SETTLE_BYTES + RUN_BYTES;
        if !self.batch.is_open || !self.fits(need, 0) {
            self.make_room_for_record(need, 0);
            // The record may have been sealed, and with it what was kept aside.
            place = self.batch.settles.iter().rposition(same);
        }
        let run = Run {
            first: id,
            count: 1,
        };
        self.batch.runs += 1;
        self.batch.settles_bytes += RUN_BYTES;
        match place {
            Some(place) => self.batch.settles[place].runs.push(run),
            None => {
                let mut runs = self.batch.spare_runs.pop().unwrap_or_default();
                runs.push(run);
                self.batch.settles_bytes += SETTLE_BYTES;
                self.batch.settles.push(Settles {
                    queue,
                    group,
                    reason,
                    runs,
                });
            }
        }
        self.limit();
    }

    /// Writes the settles that were kept aside into the open record, which has space reserved.
    fn flush_settles(&mut self) {
        while let Some(settles) = self.batch.settles.pop() {
            let Settles {
                queue,
                group,
                reason,
                mut runs,
            } = settles;
            self.put_plain(&Entry::Settle {
                queue,
                group,
                reason,
                runs: &runs,
            });
            self.batch.settled += runs.iter().map(|run| run.count).sum::<u64>() - 1;
            runs.clear();
            self.batch.spare_runs.push(runs);
        }
        self.batch.settles_bytes = 0;
        self.batch.runs = 0;
        self.limit();
    }

    /// Appends an entry without message at the end of the open record.
    fn put_plain(&mut self, entry: &Entry<'_>) -> u64 {
        let mut bytes = std::mem::take(&mut self.batch.entry);
        bytes.clear();
        plain::put_plain(&mut bytes, &mut self.batch.scratch, entry);
        self.chunk_for(bytes.len());
        let position = self.chunks.end();
        self.chunks.open().extend_from_slice(&bytes);
        self.batch.entry = bytes;
        self.batch.entries += 1;
        position
    }

    /// Appends any entry and returns its place; for those that store a message, the message's.
    ///
    /// # Panics
    /// If it does not fit an empty segment.
    pub fn append(&mut self, entry: &Entry<'_>) -> Position {
        if let Entry::Publish { targets, message } = entry {
            return self.publish_many(targets, message);
        }
        if self.batch.is_open {
            self.flush_settles();
        }
        let position = match entry {
            Entry::Publish { .. } => unreachable!("it was handled above"),
            Entry::Transfer {
                source,
                source_id,
                group,
                reason,
                target,
                target_id,
                message,
            } => {
                let body = message.body.as_slice();
                self.make_room_for_record(
                    TRANSFER_HEAD_BYTES_MAX + message.sections.len() + body.len(),
                    0,
                );
                let flags = if message.sections.is_empty() {
                    0
                } else {
                    FLAG_SECTIONS
                };
                let mut start = HeadBuilder::<TRANSFER_HEAD_BYTES_MAX>::new(TRANSFER | flags);
                start.number(source.0);
                start.number(*source_id);
                start.byte(*reason as u8);
                start.number(u64::from(*group));
                start.number(target.0);
                start.number(*target_id);
                let mut head = std::mem::take(&mut self.batch.entry);
                head.clear();
                head.extend_from_slice(start.as_slice());
                let position = self.put_message(head, message);
                self.count_message(1);
                if self.is_adopted(message) {
                    self.adopt(position, message, 1);
                }
                position
            }
            Entry::Define { name, settings, .. } => {
                self.make_room_for_record(DEFINE_HEAD_BYTES_MAX + name.len() + settings.len(), 0);
                self.put_plain(entry)
            }
            Entry::Bind { pattern, .. } | Entry::Unbind { pattern, .. } => {
                self.make_room_for_record(40 + pattern.len(), 0);
                self.put_plain(entry)
            }
            Entry::Part { part, .. } => {
                self.make_room_for_record(60 + part.len(), 0);
                self.put_plain(entry)
            }
            Entry::Route { change } => {
                self.make_room_for_record(40 + change.len(), 0);
                self.put_plain(entry)
            }
            Entry::Group { name, .. } => {
                self.make_room_for_record(60 + name.len(), 0);
                self.put_plain(entry)
            }
            Entry::Schedule { definition, .. } => {
                self.make_room_for_record(SCHEDULE_HEAD_BYTES_MAX + definition.len(), 0);
                self.put_plain(entry)
            }
            Entry::Settle { runs, .. } => {
                self.make_room_for_record(SETTLE_BYTES + runs.len() * RUN_BYTES, 0);
                self.put_plain(entry)
            }
            Entry::Out { target, why, .. } => {
                self.make_room_for_record(80 + target.len() + why.len(), 0);
                self.put_plain(entry)
            }
            Entry::Release { .. }
            | Entry::DeleteQueue { .. }
            | Entry::Open { .. }
            | Entry::In { .. } => {
                self.make_room_for_record(RELEASE_BYTES_MAX, 0);
                self.put_plain(entry)
            }
        };
        Position(position)
    }

    /// The record that is open now: what was appended since the last commit is in it or, where a
    /// segment ended, before it.
    pub fn index(&self) -> LogIndex {
        self.last.index.next()
    }

    /// Nothing was appended since the last commit.
    pub fn is_empty_turn(&self) -> bool {
        self.batch.is_empty() && self.last.index == self.last_commit
    }

    /// So many more bytes and rows fit the segment behind what the record has.
    fn fits(&self, bytes: usize, rows: usize) -> bool {
        self.chunks.end() + bytes as u64 + self.batch.reserve(rows) <= self.current.limit
    }

    /// Makes room for an entry whose head and body lie together, and for some new rows.
    #[cold]
    fn make_room(&mut self, bytes: usize, rows: usize) {
        self.make_room_for_record(bytes, rows);
        self.chunk_for(bytes);
    }

    /// Opens a chunk if the open one has no space for so many bytes.
    fn chunk_for(&mut self, bytes: usize) {
        if self.chunks.space() < bytes {
            let end = self.chunks.end();
            self.chunks.next(end, self.current.base_ms, bytes);
            self.limit();
        }
    }

    /// Makes sure that a record is open and that the segment has room for so many more bytes and
    /// rows in it.
    fn make_room_for_record(&mut self, bytes: usize, rows: usize) {
        // One row more than asked for is always kept free: see `Batch::row`.
        let rows = rows + 1;
        if self.batch.is_open && !self.fits(bytes, rows) {
            self.close_empty_record();
            if self.batch.is_open {
                self.seal(Kind::Batch);
            }
        }
        if !self.batch.is_open {
            let alone = SEGMENT_HEADER_BYTES + HEADER_BYTES + bytes + rows * ROW_BYTES + ALIGN;
            assert!(
                alone as u64 <= self.config.segment_bytes,
                "an entry of {bytes} bytes does not fit an empty segment"
            );
            while !self.fits(bytes + HEADER_BYTES, rows) {
                self.next_segment();
            }
            self.open_record();
        }
        self.limit();
    }

    fn open_record(&mut self) {
        self.chunk_for(HEADER_BYTES);
        self.batch.is_open = true;
        self.batch.start = self.chunks.end();
        assert!(
            self.batch.start.is_multiple_of(ALIGN as u64),
            "records are aligned"
        );
        self.chunks.open().extend_from_slice(&[0; HEADER_BYTES]);
    }

    /// Bytes of the current segment that the open record needs behind its entries.
    pub(crate) fn batch_reserve(&self) -> u64 {
        if self.batch.is_open {
            self.batch.reserve(1)
        } else {
            0
        }
    }

    /// Sets how far the open chunk may grow unseen.
    pub(crate) fn limit(&mut self) {
        if !self.batch.is_open {
            self.batch.soft_end = 0;
            return;
        }
        let left = (self.current.limit - self.chunks.end()).saturating_sub(self.batch.reserve(1));
        let length = self.chunks.open_len();
        let in_segment = length.saturating_add(left as usize);
        self.batch.soft_end = in_segment.min(length + self.chunks.space());
    }

    /// Takes back the header of a record that nothing was appended to.
    pub(crate) fn close_empty_record(&mut self) {
        if self.batch.is_open && self.batch.is_empty() {
            assert!(self.chunks.end() == self.batch.start + HEADER_BYTES as u64);
            let length = self.chunks.open_len();
            self.chunks.open().truncate(length - HEADER_BYTES);
            self.batch.is_open = false;
            self.limit();
        }
    }

    /// Ends the open record: table, padding, header, checksum.
    pub(crate) fn seal(&mut self, kind: Kind) {
        if !self.batch.is_open {
            self.make_room_for_record(0, 0);
        }
        if !self.batch.settles.is_empty() {
            self.flush_settles();
        }
        self.chunk_for(self.batch.rows.len() * ROW_BYTES + ALIGN);
        let start = self.batch.start;
        let table_at = (self.chunks.end() - start) as u32;
        let open = self.chunks.open();
        for (queue, first) in &self.batch.rows {
            open.extend_from_slice(&queue.0.to_le_bytes());
            open.extend_from_slice(&first.to_le_bytes());
        }
        let length = (self.chunks.end() - start).next_multiple_of(ALIGN as u64);
        let padding = length - (self.chunks.end() - start);
        self.chunks
            .open()
            .extend_from_slice(&[0; ALIGN][..padding as usize]);
        self.last.wall_ms = self.last.wall_ms.max(self.now_us / 1000);
        let header = Header {
            length: u32::try_from(length).expect("a segment has less than 4 GiB"),
            crc: 0,
            kind,
            position: start,
            index: self.index(),
            term: 1,
            epoch: self.current.epoch,
            durable: self.tail.durable,
            wall_ms: self.last.wall_ms,
            chain: self.last.chain,
            entries: self.batch.entries,
            table_at,
            rows: self.batch.rows.len() as u32,
        };
        self.chunks.patch(start, &header.encode(self.seed));
        let crc = self.record_crc(start, length);
        self.chunks.patch(start + 8, &crc.to_le_bytes());
        self.last.chain = crc;
        self.last.index = header.index;
        self.last.end = start + length;
        assert!(self.last.end == self.chunks.end() && self.last.end <= self.current.limit);
        self.record_sealed(kind, length);
        self.batch.is_open = false;
        self.batch.entries = 0;
        self.batch.settled = 0;
        self.batch.rows.clear();
        self.batch.next.clear();
        self.batch.row_of.clear();
        self.batch.row = 0;
        self.batch.soft_end = 0;
    }

    /// The checksum of the record at `start`, over all behind the checksum itself.
    fn record_crc(&self, start: u64, length: u64) -> u32 {
        let mut crc = self.seed;
        let mut at = start + 12;
        while at < start + length {
            let bytes = self.chunks.bytes_from(at);
            let left = (start + length - at) as usize;
            let bytes = &bytes[..bytes.len().min(left)];
            crc = crc::append(crc, bytes);
            at += bytes.len() as u64;
        }
        crc
    }

    /// Counts the messages published to the current segment in the table.
    pub(crate) fn count_messages(&mut self) {
        let messages = std::mem::take(&mut self.batch.messages);
        if messages > 0 {
            let segment = self.table.get_mut(self.current.name());
            let segment = segment.expect("the current segment is in the table");
            segment.messages += messages;
            segment.live += messages;
        }
    }

    /// Whether publishes can be taken.
    #[inline]
    pub fn room(&self) -> Room {
        if self.tail.stalled_until.is_some() {
            return Room::DiskFull;
        }
        if !self.has_space(0) {
            return match self.supply.is_full {
                true => Room::DiskFull,
                false => Room::NoSegment,
            };
        }
        let unsynced = self.last.bytes - self.tail.durable_bytes;
        if unsynced > super::UNSYNCED_BYTES_MAX || self.failure.is_some() {
            return Room::Waiting;
        }
        Room::Plenty
    }
}
