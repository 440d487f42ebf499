//! Copies the live messages of a segment to kept segments, which stand outside the log's sequence.
//!
//! Every message is verified before it is copied, and keeps its sections, known or not, and its
//! publish time. The copies are on stable storage before anyone is told of them.

use std::collections::BTreeMap;

use crate::broker::id::{MessageId, QueueUid};

use super::disk::Disk;
use super::entry::{
    FLAG_MANY, FLAG_SECTIONS, HeadBuilder, MessageHead, PUBLISH, message_crc, message_head, seed,
};
use super::manifest::SHARD;
use super::place::{LogIndex, Position};
use super::record::{ALIGN, HEADER_BYTES, Header, Kind, ROW_BYTES};
use super::rw::{StoreError, read_up_to, write_all_at};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentName};
use super::windows::WINDOW_BYTES;

/// A record of copies is written when it has so many bytes.
const RECORD_BYTES: usize = 1 << 20;

/// What to copy, and to where.
#[derive(Debug)]
pub(crate) struct Compaction {
    /// The segment to empty.
    pub source: SegmentName,
    /// Offset behind its last record.
    pub source_end: u64,
    /// Its base time.
    pub base_ms: u64,
    /// What is live in it.
    pub live: Vec<(QueueUid, MessageId, Position)>,
    /// A kept segment made since the start, and the offset behind its last record.
    pub append_to: Option<(u64, u64, u64)>,
    /// The number of the next new kept segment.
    pub next_number: u64,
    /// The epoch of the next new kept segment; the following ones count on.
    pub next_epoch: u64,
    /// Identity of the directory.
    pub directory_id: u64,
    /// What checksums start from.
    pub seed: u32,
    /// Positions per segment.
    pub segment_bytes: u64,
    /// For the records, milliseconds since the unix epoch.
    pub wall_ms: u64,
}

/// One kept segment after a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// Its number.
    pub number: u64,
    /// Its epoch.
    pub epoch: u64,
    /// It did not exist before.
    pub is_new: bool,
    /// Offset behind its last record.
    pub end: u64,
    /// Messages copied into it, once for each queue.
    pub messages: u64,
}

/// What was copied.
#[derive(Debug, Default)]
pub(crate) struct Compacted {
    /// The kept segments written to.
    pub outputs: Vec<Output>,
    /// Queue, id, old and new place.
    pub moves: Vec<(QueueUid, MessageId, Position, Position)>,
    /// What could not be verified.
    pub damaged: Vec<(QueueUid, MessageId, Position)>,
}

/// Runs a compaction.
pub(crate) fn perform<D: Disk>(disk: &D, job: Compaction) -> Result<Compacted, StoreError> {
    let seed = job.seed;
    perform_between(disk, seed, disk, job)
}

/// Copies from a segment of another directory on its own disk, whose checksums start from `source_seed`.
pub(crate) fn perform_between<F: Disk, D: Disk>(
    source: &F,
    source_seed: u32,
    disk: &D,
    mut job: Compaction,
) -> Result<Compacted, StoreError> {
    job.live
        .sort_by_key(|(queue, id, position)| (*position, *queue, *id));
    let live = std::mem::take(&mut job.live);
    let mut source = Source::open(source, source_seed, &job)?;
    let mut writer = Writer::new(disk, &job);
    let result = copy(&live, &job, &mut source, &mut writer);
    if result.is_err() {
        writer.abandon();
    }
    result.map(|()| writer.done)
}

fn copy<F: Disk, D: Disk>(
    live: &[(QueueUid, MessageId, Position)],
    job: &Compaction,
    source: &mut Source<'_, F>,
    writer: &mut Writer<'_, D>,
) -> Result<(), StoreError> {
    for message in live.chunk_by(|a, b| a.2 == b.2) {
        let position = message[0].2;
        match source.message(position, job) {
            Some((head, entry)) => writer.add(message, position, &head, entry)?,
            None => writer.done.damaged.extend_from_slice(message),
        }
    }
    writer.write_record()?;
    writer.close_segment()
}

/// Reads messages of one segment in rising order.
struct Source<'d, D: Disk> {
    disk: &'d D,
    /// What checksums start from.
    seed: u32,
    file: D::File,
    window: Vec<u8>,
    window_at: u64,
}

impl<'d, D: Disk> Source<'d, D> {
    fn open(disk: &'d D, seed: u32, job: &Compaction) -> Result<Source<'d, D>, StoreError> {
        let path = job.source.path();
        let file = disk
            .open(&path)
            .map_err(|error| StoreError::write(&path, error))?;
        Ok(Source {
            disk,
            seed,
            file,
            window: Vec::new(),
            window_at: 0,
        })
    }

    /// The verified entry at a position; `None` if it cannot be read or is damaged.
    fn message(&mut self, position: Position, job: &Compaction) -> Option<(MessageHead, &[u8])> {
        let offset = position.offset(job.segment_bytes);
        let mut wanted = 32;
        let head = loop {
            self.load(offset, wanted, job.source_end)?;
            let bytes = &self.window[(offset - self.window_at) as usize..];
            match message_head(bytes) {
                Ok(head) if head.entry_bytes() <= bytes.len() => break head,
                Ok(head) if wanted < head.entry_bytes() => wanted = head.entry_bytes(),
                Err(super::entry::HeadError::Cut) if wanted < 1 << 30 => {
                    wanted = (bytes.len() + 1) * 2
                }
                _ => return None,
            }
        };
        let at = (offset - self.window_at) as usize;
        let entry = &self.window[at..at + head.entry_bytes()];
        (message_crc(seed(self.seed, position.0), entry) == head.crc).then_some((head, entry))
    }

    /// Makes the window hold `wanted` bytes from `offset` on, or all that there is.
    fn load(&mut self, offset: u64, wanted: usize, end: u64) -> Option<()> {
        let held = self.window_at..self.window_at + self.window.len() as u64;
        let left = usize::try_from(end.checked_sub(offset)?).ok()?;
        let until = offset + wanted.min(left) as u64;
        if held.contains(&offset) && until <= held.end {
            return Some(());
        }
        self.window.resize(wanted.max(WINDOW_BYTES).min(left), 0);
        self.window_at = offset;
        let filled = read_up_to(self.disk, &self.file, offset, &mut self.window).ok()?;
        self.window.truncate(filled);
        Some(())
    }
}

/// Writes records of copies.
struct Writer<'d, D: Disk> {
    disk: &'d D,
    directory_id: u64,
    seed: u32,
    segment_bytes: u64,
    wall_ms: u64,
    base_ms: u64,
    next_number: u64,
    next_epoch: u64,
    /// The segment written to: its file and what is known of it.
    open: Option<(D::File, Output)>,
    append_to: Option<(u64, u64, u64)>,
    record: Vec<u8>,
    entries: u32,
    rows: Vec<(QueueUid, MessageId)>,
    /// Of each queue the last row and the id that would continue it.
    next_of: BTreeMap<QueueUid, (u32, MessageId)>,
    /// Messages of the record.
    messages: u64,
    done: Compacted,
}

impl<'d, D: Disk> Writer<'d, D> {
    fn new(disk: &'d D, job: &Compaction) -> Writer<'d, D> {
        Writer {
            disk,
            directory_id: job.directory_id,
            seed: job.seed,
            segment_bytes: job.segment_bytes,
            wall_ms: job.wall_ms,
            base_ms: job.base_ms,
            next_number: job.next_number,
            next_epoch: job.next_epoch,
            open: None,
            append_to: job.append_to,
            record: Vec::new(),
            entries: 0,
            rows: Vec::new(),
            next_of: BTreeMap::new(),
            messages: 0,
            done: Compacted::default(),
        }
    }

    /// Copies one message, which is in the queues that `message` lists.
    fn add(
        &mut self,
        message: &[(QueueUid, MessageId, Position)],
        old: Position,
        head: &MessageHead,
        entry: &[u8],
    ) -> Result<(), StoreError> {
        let most = 64 + 21 * message.len() + (entry.len() - head.sections_at);
        let alone = SEGMENT_HEADER_BYTES + HEADER_BYTES + most + message.len() * ROW_BYTES + ALIGN;
        if alone as u64 > self.segment_bytes {
            // Its time takes more bytes here: one that filled a segment stays where it is.
            return Ok(());
        }
        let table = (self.rows.len() + message.len()) * ROW_BYTES;
        let needed = HEADER_BYTES.max(self.record.len()) + most + table + ALIGN;
        let fits = |output: &Output| output.end + needed as u64 <= self.segment_bytes;
        if !self.record.is_empty()
            && (self.record.len() + most > RECORD_BYTES || !self.open_fits(fits))
        {
            self.write_record()?;
        }
        if self.record.is_empty() {
            self.open_segment((HEADER_BYTES + most + message.len() * ROW_BYTES + ALIGN) as u64)?;
            self.record.resize(HEADER_BYTES, 0);
        }
        let (_, output) = self
            .open
            .as_ref()
            .expect("a segment was opened for the record");
        let start = self.record.len();
        let new = Position::new(
            true,
            output.number,
            output.end + start as u64,
            self.segment_bytes,
        );
        let many = if message.len() > 1 { FLAG_MANY } else { 0 };
        let sections = if head.body_at > head.sections_at {
            FLAG_SECTIONS
        } else {
            0
        };
        self.record
            .extend_from_slice(HeadBuilder::<5>::new(PUBLISH | many | sections).as_slice());
        if many != 0 {
            crate::broker::varint::put(&mut self.record, message.len() as u64);
        }
        for (queue, id, _) in message {
            let row = self.row(*queue, *id);
            crate::broker::varint::put(&mut self.record, u64::from(row));
        }
        // Times in kept segments count from the epoch.
        crate::broker::varint::put(&mut self.record, self.base_ms + head.delta_ms);
        crate::broker::varint::put(&mut self.record, head.body_bytes as u64);
        if sections != 0 {
            crate::broker::varint::put(&mut self.record, (head.body_at - head.sections_at) as u64);
        }
        self.record.extend_from_slice(&entry[head.sections_at..]);
        let crc = message_crc(seed(self.seed, new.0), &self.record[start..]);
        self.record[start + 1..start + 5].copy_from_slice(&crc.to_le_bytes());
        self.entries += 1;
        self.messages += message.len() as u64;
        let moves = message.iter().map(|(queue, id, _)| (*queue, *id, old, new));
        self.done.moves.extend(moves);
        Ok(())
    }

    fn open_fits(&self, fits: impl Fn(&Output) -> bool) -> bool {
        self.open.as_ref().is_some_and(|(_, output)| fits(output))
    }

    fn row(&mut self, queue: QueueUid, id: MessageId) -> u32 {
        match self.next_of.get_mut(&queue) {
            Some((row, next)) if *next == id => {
                *next += 1;
                *row
            }
            _ => {
                let row = self.rows.len() as u32;
                self.rows.push((queue, id));
                self.next_of.insert(queue, (row, id + 1));
                row
            }
        }
    }

    /// Makes `open` a segment with space for a record of so many bytes.
    fn open_segment(&mut self, bytes: u64) -> Result<(), StoreError> {
        let segment_bytes = self.segment_bytes;
        if self.open_fits(|output| output.end + bytes <= segment_bytes) {
            return Ok(());
        }
        self.close_segment()?;
        if let Some((number, epoch, end)) = self.append_to.take()
            && end + bytes <= segment_bytes
        {
            let path = SegmentName::kept(number).path();
            let file = self
                .disk
                .open(&path)
                .map_err(|error| StoreError::write(&path, error))?;
            let output = Output {
                number,
                epoch,
                is_new: false,
                end,
                messages: 0,
            };
            self.open = Some((file, output));
            return Ok(());
        }
        let output = Output {
            number: self.next_number,
            epoch: self.next_epoch,
            is_new: true,
            end: SEGMENT_HEADER_BYTES as u64,
            messages: 0,
        };
        self.next_number += 1;
        self.next_epoch += 1;
        let header = SegmentHeader {
            kept: true,
            recycled: false,
            number: output.number,
            epoch: output.epoch,
            base_ms: 0,
            sealed_end: 0,
        };
        let tmp = SegmentName::kept(output.number).tmp_path();
        let write = |error| StoreError::write(&tmp, error);
        super::rw::remove_if_there(self.disk, &tmp).map_err(write)?;
        let file = self.disk.create(&tmp).map_err(write)?;
        let header = header.encode(self.directory_id, self.seed);
        write_all_at(self.disk, &file, 0, &header).map_err(write)?;
        self.open = Some((file, output));
        Ok(())
    }

    fn write_record(&mut self) -> Result<(), StoreError> {
        if self.record.is_empty() {
            return Ok(());
        }
        let (file, output) = self
            .open
            .as_mut()
            .expect("a segment was opened for the record");
        let table_at = self.record.len() as u32;
        for (queue, first) in &self.rows {
            self.record.extend_from_slice(&queue.0.to_le_bytes());
            self.record.extend_from_slice(&first.to_le_bytes());
        }
        self.record
            .resize(self.record.len().next_multiple_of(ALIGN), 0);
        let header = Header {
            length: self.record.len() as u32,
            crc: 0,
            kind: Kind::Kept,
            position: Position::new(true, output.number, output.end, self.segment_bytes).0,
            index: LogIndex(0),
            term: 1,
            epoch: output.epoch,
            durable: 0,
            wall_ms: self.wall_ms,
            chain: 0,
            entries: self.entries,
            table_at,
            rows: self.rows.len() as u32,
        };
        self.record[..HEADER_BYTES].copy_from_slice(&header.encode(self.seed));
        let crc = crc32c::crc32c_append(self.seed, &self.record[12..]);
        self.record[8..12].copy_from_slice(&crc.to_le_bytes());
        let name = SegmentName::kept(output.number);
        write_all_at(self.disk, file, output.end, &self.record)
            .map_err(|error| StoreError::write(&name.path(), error))?;
        output.end += self.record.len() as u64;
        output.messages += self.messages;
        self.record.clear();
        self.rows.clear();
        self.next_of.clear();
        self.entries = 0;
        self.messages = 0;
        Ok(())
    }

    /// Puts the open segment on stable storage under its name.
    fn close_segment(&mut self) -> Result<(), StoreError> {
        let Some((file, output)) = self.open.take() else {
            return Ok(());
        };
        let name = SegmentName::kept(output.number);
        let path = name.path();
        self.disk
            .sync(&file)
            .map_err(|error| StoreError::sync(&path, error))?;
        if output.is_new {
            let write = |error| StoreError::write(&path, error);
            self.disk.rename(&name.tmp_path(), &path).map_err(write)?;
            self.disk
                .sync_dir(SHARD)
                .map_err(|error| StoreError::sync(SHARD, error))?;
        }
        self.done.outputs.push(output);
        Ok(())
    }

    /// Removes what was made, as far as that goes: nobody was told of it.
    fn abandon(&mut self) {
        if let Some((_, output)) = &self.open
            && output.is_new
        {
            let _ = self
                .disk
                .remove(&SegmentName::kept(output.number).tmp_path());
        }
        for output in self.done.outputs.iter().filter(|output| output.is_new) {
            let _ = self.disk.remove(&SegmentName::kept(output.number).path());
        }
    }
}
