//! Looking at a data directory without changing it: `ringmq check` and `ringmq dump`.
//!
//! Neither locks the directory. Both read everything that is there, also what no checkpoint needs.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::api::CheckSummary;
use super::blocks;
use super::checkpoint::Loaded;
use super::disk::Disk;
use super::entry::{Entries, Entry, EntryError, Message, Scratch, message_crc, message_head, seed};
use super::error::OpenError;
use super::manifest::{self, Manifest};
use super::patient::Patient;
use super::place::{LogIndex, Position};
use super::record::{self, HEADER_BYTES, Header, NoRecord};
use super::recovery::{FoundCheckpoints, Listing, load_checkpoints};
use super::rw::read_up_to;
use super::sections::Sections;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentName, SegmentTable};
use super::segment_reader::SegmentReader;

/// Verifies a data directory, every body included, and prints what it holds. Changes nothing.
/// What is wrong is printed in lines that begin with `PROBLEM` and counted.
///
/// # Errors
/// The directory is no data directory, is of another version, or cannot be read.
pub fn check<D: Disk>(disk: &D, out: &mut dyn io::Write) -> Result<CheckSummary, OpenError> {
    let disk = &Patient(disk);
    let mut checker = Checker::open(disk, out)?;
    checker.checkpoints()?;
    checker.listed_segments();
    let names: Vec<SegmentName> = checker.listing.segments.keys().copied().collect();
    for name in names {
        checker.segment(name)?;
    }
    checker.judge();
    checker.blocks();
    let summary = checker.summary.clone();
    checker.say(format_args!(
        "{} segments, {} records, {} entries, {} messages verified, {} checkpoints, {} bytes torn off, {} problems",
        summary.segments,
        summary.records,
        summary.entries,
        summary.messages,
        summary.checkpoints,
        summary.torn_bytes,
        summary.problems
    ));
    Ok(summary)
}

/// A place where the log stops although it may go on.
struct Stop {
    name: SegmentName,
    offset: u64,
    /// The number of the record that should be here.
    expected: LogIndex,
    torn_bytes: u64,
}

struct Checker<'a, D: Disk> {
    disk: &'a D,
    out: &'a mut dyn Write,
    manifest: Manifest,
    listing: Listing,
    /// Only for its arithmetic.
    table: SegmentTable,
    newest: Option<Loaded>,
    summary: CheckSummary,
    scratch: Scratch,
    /// The record before, of the log: its index, checksum and the end of its segment's records.
    before: Option<(LogIndex, u32)>,
    stops: Vec<Stop>,
    /// The highest durable point claimed, and by which record.
    claim: (u64, LogIndex),
}

impl<'a, D: Disk> Checker<'a, D> {
    fn open(disk: &'a D, out: &'a mut dyn Write) -> Result<Checker<'a, D>, OpenError> {
        let (manifest, listing) = read_directory(disk)?;
        let mut checker = Checker {
            disk,
            out,
            table: SegmentTable::new(manifest.segment_bytes),
            manifest,
            listing,
            newest: None,
            summary: CheckSummary::default(),
            scratch: Scratch::default(),
            before: None,
            stops: Vec::new(),
            claim: (0, LogIndex(0)),
        };
        let manifest = checker.manifest.clone();
        checker.say(format_args!(
            "directory {:016x}, format version {}, opened {} times, segments of {} bytes",
            manifest.directory_id,
            manifest::VERSION,
            manifest.incarnation,
            manifest.segment_bytes
        ));
        Ok(checker)
    }

    /// Prints a line. What the reader of the output does not take is not the directory's fault.
    fn say(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.out, "{text}");
    }

    fn problem(&mut self, text: std::fmt::Arguments<'_>) {
        self.summary.problems += 1;
        let _ = writeln!(self.out, "PROBLEM {text}");
    }

    fn checkpoints(&mut self) -> Result<(), OpenError> {
        let found = load_checkpoints(self.disk, &self.listing, &self.manifest)?;
        let FoundCheckpoints { whole, damaged } = found;
        for loaded in &whole {
            let meta = &loaded.meta;
            self.summary.checkpoints += 1;
            let live: u64 = meta
                .segments
                .iter()
                .chain(&meta.kept)
                .map(|segment| segment.live)
                .sum();
            self.say(format_args!(
                "checkpoint at {}, record {}: {} segments, {live} live messages, {} index blocks",
                meta.position,
                meta.index,
                meta.segments.len() + meta.kept.len(),
                meta.slots.len()
            ));
        }
        for (_, what) in &damaged {
            self.problem(format_args!("{what}"));
        }
        self.newest = whole.into_iter().next();
        Ok(())
    }

    fn listed_segments(&mut self) {
        let from = self
            .newest
            .as_ref()
            .map_or(0, |newest| self.table.name_of(newest.meta.position).number);
        if let Err(error) =
            super::recovery::expect_listed_segments(&self.listing, &self.manifest, from)
        {
            self.problem(format_args!("{error}"));
        }
        let Some(newest) = &self.newest else { return };
        let listed = newest
            .meta
            .segments
            .iter()
            .map(|segment| (SegmentName::log(segment.number), segment.live));
        let kept = newest
            .meta
            .kept
            .iter()
            .map(|segment| (SegmentName::kept(segment.number), segment.live));
        let missing: Vec<(SegmentName, u64)> = listed
            .chain(kept)
            .filter(|(name, live)| *live > 0 && !self.listing.segments.contains_key(name))
            .collect();
        for (name, live) in missing {
            self.say(format_args!(
                "{} is not there and had {live} live messages at the newest checkpoint: \
                 opening the directory tells whether they were settled since",
                name.path()
            ));
        }
    }

    fn segment(&mut self, name: SegmentName) -> Result<(), OpenError> {
        let mut reader = SegmentReader::new(self.disk);
        let bytes = match reader.load(name, self.listing.segments[&name]) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.problem(format_args!("{error}"));
                return Ok(());
            }
        };
        self.summary.segments += 1;
        let seed = self.manifest.seed();
        let header = SegmentHeader::parse(bytes, &name, self.manifest.directory_id, seed);
        let header = match header {
            Ok(header) => header,
            Err(error @ OpenError::Version { .. }) => return Err(error),
            Err(error) => {
                self.problem(format_args!("{error}"));
                return Ok(());
            }
        };
        self.records(name, &header, bytes)
    }

    /// Reads the records of one segment one after another.
    fn records(
        &mut self,
        name: SegmentName,
        header: &SegmentHeader,
        bytes: &[u8],
    ) -> Result<(), OpenError> {
        let path = name.path();
        let start = self.table.range(name).start.0;
        let seed = self.manifest.seed();
        let mut offset = SEGMENT_HEADER_BYTES;
        let (mut first, mut last, mut messages) = (LogIndex(0), LogIndex(0), 0);
        let why = loop {
            let rest = bytes.get(offset..).unwrap_or_default();
            let record = match Header::parse(rest, seed, start + offset as u64, header.epoch) {
                Ok(record) => record,
                Err(why) => break why,
            };
            if first == LogIndex(0) {
                first = record.index;
            }
            if !name.kept {
                self.follow(name, offset, &record);
            }
            last = record.index;
            messages += self.entries(&path, offset, &record, rest, header.base_ms);
            self.summary.records += 1;
            offset += record.length as usize;
        };
        if let NoRecord::Later(version) = why {
            return Err(OpenError::Version {
                file: path,
                offset: offset as u64,
                what: format!("a record has version or kind {version}"),
            });
        }
        let state = if header.sealed_end > 0 {
            ", closed by recovery"
        } else {
            ""
        };
        self.say(format_args!(
            "{path}: records {first} to {last}, {messages} messages, {offset} of {} bytes{state}",
            bytes.len()
        ));
        self.end(name, header, bytes, offset, why);
        Ok(())
    }

    /// Whether a record follows the one before it, where it must.
    fn follow(&mut self, name: SegmentName, offset: usize, record: &Header) {
        if record.durable > self.claim.0 {
            self.claim = (record.durable, record.index);
        }
        if let Some((index, chain)) = self.before
            && (record.index != index.next() || record.chain != chain)
        {
            // Between segments that a checkpoint covers, others may have been given up.
            let covered = self
                .newest
                .as_ref()
                .map_or(0, |newest| newest.meta.position.0);
            let is_gap = offset == SEGMENT_HEADER_BYTES
                && record.index > index.next()
                && record.position < covered;
            if !is_gap {
                let path = name.path();
                self.problem(format_args!(
                    "{path} at offset {offset}: record {} follows record {index}",
                    record.index
                ));
            }
        }
        self.before = Some((record.index, record.crc));
    }

    /// Verifies the entries of a record. Returns how many messages are in it.
    fn entries(
        &mut self,
        path: &str,
        offset: usize,
        record: &Header,
        bytes: &[u8],
        base_ms: u64,
    ) -> u64 {
        let directory_seed = self.manifest.seed();
        let body = &bytes[..record.table_at as usize];
        let mut scratch = std::mem::take(&mut self.scratch);
        let table = record.table(bytes);
        let mut entries = Entries::new(
            body,
            HEADER_BYTES,
            record.entries,
            table,
            base_ms,
            &mut scratch,
        );
        let mut messages = 0;
        let mut damaged = Vec::new();
        let mut result = loop {
            match entries.next() {
                Ok(Some((at, Entry::Publish { .. } | Entry::Transfer { .. }))) => {
                    messages += 1;
                    let head = message_head(&body[at..]).expect("the entry was just read");
                    let entry = &body[at..at + head.entry_bytes()];
                    if message_crc(seed(directory_seed, record.position + at as u64), entry)
                        != head.crc
                    {
                        damaged.push(at);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if result.is_ok() && !entries.is_done() {
            result = Err(EntryError::Malformed(
                "bytes are left over behind its entries",
            ));
        }
        self.scratch = scratch;
        self.summary.entries += u64::from(record.entries);
        self.summary.messages += messages;
        for at in damaged {
            self.problem(format_args!(
                "{path} at offset {}: the message has a wrong checksum",
                offset + at
            ));
        }
        if let Err(error) = result {
            let error = super::replay::entry_error(path, offset as u64, error);
            self.problem(format_args!("{error}"));
        }
        messages
    }

    /// Notes what is behind the last record of a segment.
    fn end(
        &mut self,
        name: SegmentName,
        header: &SegmentHeader,
        bytes: &[u8],
        offset: usize,
        why: NoRecord,
    ) {
        let path = name.path();
        if (offset as u64) < header.sealed_end {
            return self.problem(format_args!(
                "{path} at offset {offset}: a record is damaged that recovery had verified"
            ));
        }
        if name.kept {
            let newest = self.newest.as_ref();
            let listed =
                newest.and_then(|n| n.meta.kept.iter().find(|kept| kept.number == name.number));
            if listed.is_some_and(|kept| kept.end > offset as u64) {
                self.problem(format_args!(
                    "{path} at offset {offset}: a record is damaged"
                ));
            }
            return;
        }
        let start = self.table.range(name).start.0;
        let mut claim = self.claim;
        let mut until = offset;
        record::search(
            bytes,
            offset,
            self.manifest.seed(),
            start,
            header.epoch,
            |record| {
                until = (record.position - start) as usize + record.length as usize;
                if record.durable > claim.0 {
                    claim = (record.durable, record.index);
                }
            },
        );
        self.claim = claim;
        if let NoRecord::Damaged(length) = why {
            until = until.max(offset + length as usize);
        }
        if !header.recycled {
            let zeroes = bytes.iter().rev().take_while(|byte| **byte == 0).count();
            until = until.max(bytes.len() - zeroes);
        }
        self.stops.push(Stop {
            name,
            offset: offset as u64,
            expected: self.before.map_or(LogIndex(1), |(index, _)| index.next()),
            torn_bytes: (until.min(bytes.len()).max(offset) - offset) as u64,
        });
    }

    /// Tells for each stop whether it is the end of its segment, a torn tail, or corruption.
    fn judge(&mut self) {
        let mut expected = self.before.map_or(LogIndex(1), |(index, _)| index.next());
        for stop in std::mem::take(&mut self.stops).into_iter().rev() {
            let position = self.table.range(stop.name).start.0 + stop.offset;
            let is_last = stop.expected == expected;
            expected = stop.expected;
            if stop.torn_bytes == 0 {
                continue;
            }
            let path = stop.name.path();
            if self.claim.0 > position {
                let by = self.claim.1;
                self.problem(format_args!(
                    "{path} at offset {}: record {} is damaged, and record {by} says that it was on stable storage",
                    stop.offset, stop.expected
                ));
            } else if is_last {
                self.summary.torn_bytes += stop.torn_bytes;
                self.say(format_args!(
                    "{path} at offset {}: {} bytes of records that were never confirmed as on disk; opening cuts them",
                    stop.offset, stop.torn_bytes
                ));
            }
        }
    }

    fn blocks(&mut self) {
        let slots = self
            .newest
            .as_ref()
            .map_or(Vec::new(), |newest| newest.meta.slots.clone());
        for (slot, crc) in slots {
            if let Err(what) = blocks::load(self.disk, self.manifest.seed(), slot, crc) {
                self.problem(format_args!("{}", what.what));
            }
        }
    }
}

/// The manifest and the files of a data directory.
fn read_directory<D: Disk>(disk: &D) -> Result<(Manifest, Listing), OpenError> {
    let root = disk
        .list("")
        .map_err(|error| OpenError::io("", "listing", error))?;
    let Some(manifest) = Manifest::load(disk)? else {
        manifest::expect_empty(&root)?;
        return Err(OpenError::Missing);
    };
    let listing = Listing::read(disk)?;
    Ok((manifest, listing))
}

/// Prints the records and entries of a data directory. Changes nothing.
///
/// # Errors
/// The directory is no data directory, or cannot be read. What is damaged is printed as such.
pub fn dump<D: Disk>(disk: &D, out: &mut dyn io::Write) -> Result<(), OpenError> {
    let disk = &Patient(disk);
    let (manifest, listing) = read_directory(disk)?;
    let printed = |error| OpenError::io("the output", "writing to", error);
    write!(out, "{}", manifest.encode()).map_err(printed)?;
    let mut headers = BTreeMap::new();
    let mut reader = SegmentReader::new(disk);
    for (name, size) in &listing.segments {
        let bytes = reader.load(*name, *size)?;
        let header = SegmentHeader::parse(bytes, name, manifest.directory_id, manifest.seed());
        match header {
            Ok(header) => {
                dump_segment(*name, &header, &manifest, bytes, out).map_err(printed)?;
                headers.insert(*name, header);
            }
            Err(error) => writeln!(out, "{}: {error}", name.path()).map_err(printed)?,
        }
    }
    for position in &listing.checkpoints {
        let path = super::checkpoint::path(*position);
        let mut first = [0; 40];
        let file = disk
            .open(&path)
            .map_err(|error| OpenError::io(&path, "opening", error))?;
        let filled = read_up_to(disk, &file, 0, &mut first)
            .map_err(|error| OpenError::io(&path, "reading", error))?;
        writeln!(
            out,
            "{path}: checkpoint at {position}, {filled} bytes of header"
        )
        .map_err(printed)?;
    }
    Ok(())
}

fn dump_segment(
    name: SegmentName,
    header: &SegmentHeader,
    manifest: &Manifest,
    bytes: &[u8],
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let start = Position::new(name.kept, name.number, 0, manifest.segment_bytes).0;
    writeln!(
        out,
        "{}: epoch {:#x} base_ms {} sealed_end {} recycled {}",
        name.path(),
        header.epoch,
        header.base_ms,
        header.sealed_end,
        header.recycled
    )?;
    let mut scratch = Scratch::default();
    let mut offset = SEGMENT_HEADER_BYTES;
    while let Some(rest) = bytes.get(offset..) {
        let record = match Header::parse(rest, manifest.seed(), start + offset as u64, header.epoch)
        {
            Ok(record) => record,
            Err(NoRecord::Nothing) => break,
            Err(why) => {
                writeln!(out, "  {offset}: no whole record: {why:?}")?;
                break;
            }
        };
        writeln!(
            out,
            "  {offset}: record {} {:?} length {} term {} durable {} wall_ms {} chain {:08x} crc {:08x} entries {}",
            record.index,
            record.kind,
            record.length,
            record.term,
            Position(record.durable),
            record.wall_ms,
            record.chain,
            record.crc,
            record.entries
        )?;
        let body = &rest[..record.table_at as usize];
        let table = record.table(rest);
        let mut entries = Entries::new(
            body,
            HEADER_BYTES,
            record.entries,
            table,
            header.base_ms,
            &mut scratch,
        );
        loop {
            match entries.next() {
                Ok(Some((at, entry))) => dump_entry(offset + at, &entry, out)?,
                Ok(None) => break,
                Err(error) => {
                    writeln!(out, "    the entries cannot be read: {error:?}")?;
                    break;
                }
            }
        }
        offset += record.length as usize;
    }
    Ok(())
}

fn dump_entry(offset: usize, entry: &Entry<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    write!(out, "    {offset}: ")?;
    match entry {
        Entry::Publish { targets, message } => {
            write!(out, "publish")?;
            for (queue, id) in *targets {
                write!(out, " {}/{id}", queue.0)?;
            }
            dump_message(message, out)
        }
        Entry::Settle {
            queue,
            group,
            reason,
            runs,
        } => {
            write!(out, "settle queue {} group {group} {reason:?}", queue.0)?;
            for run in *runs {
                write!(out, " {}+{}", run.first, run.count)?;
            }
            writeln!(out)
        }
        Entry::Release {
            queue,
            group,
            run,
            tries,
            not_before_us,
        } => writeln!(
            out,
            "release queue {} group {group} {}+{} tries {tries} not_before_us {not_before_us}",
            queue.0, run.first, run.count
        ),
        Entry::Transfer {
            source,
            source_id,
            group,
            reason,
            target,
            target_id,
            message,
        } => {
            write!(
                out,
                "transfer {}/{source_id} group {group} {reason:?} to {}/{target_id}",
                source.0, target.0
            )?;
            dump_message(message, out)
        }
        Entry::Define {
            uid,
            name,
            settings,
            flags,
        } => writeln!(
            out,
            "define queue {} \"{}\" flags {flags:#x} settings {}",
            uid.0,
            name.escape_ascii(),
            settings.escape_ascii()
        ),
        Entry::DeleteQueue { uid } => writeln!(out, "delete queue {}", uid.0),
        Entry::Bind { queue, pattern } => {
            writeln!(out, "bind {} to queue {}", pattern.escape_ascii(), queue.0)
        }
        Entry::Unbind { queue, pattern } => {
            writeln!(
                out,
                "unbind {} from queue {}",
                pattern.escape_ascii(),
                queue.0
            )
        }
        Entry::Out {
            seq,
            shard,
            queue,
            id,
            reason,
            tries,
            target,
            why,
        } => writeln!(
            out,
            "out {seq} to shard {shard} queue \"{}\": message {id} of queue {} {reason:?} tries {tries} why \"{}\"",
            target.escape_ascii(),
            queue.0,
            why.escape_ascii()
        ),
        Entry::In {
            shard,
            seq,
            below,
            origin,
        } => writeln!(
            out,
            "in {seq} from shard {shard} queue {origin}, done below {below}"
        ),
        Entry::Part {
            seq,
            shard,
            part: [],
        } => {
            writeln!(out, "part {seq} of shard {shard} is done")
        }
        Entry::Part { seq, shard, part } => {
            writeln!(out, "part {seq} of shard {shard}: {}", part.escape_ascii())
        }
        Entry::Route { change } => writeln!(out, "route {}", change.escape_ascii()),
        Entry::Group {
            uid,
            queue,
            first,
            name,
        } => writeln!(
            out,
            "group {} \"{}\" of queue {} from {first}",
            uid.0,
            name.escape_ascii(),
            queue.0
        ),
        Entry::Schedule {
            queue,
            number,
            next_us,
            definition,
        } => writeln!(
            out,
            "schedule {number} of queue {} next_us {next_us} definition {}",
            queue.0,
            definition.escape_ascii()
        ),
        Entry::Open { incarnation } => writeln!(out, "open incarnation {incarnation}"),
    }
}

fn dump_message(message: &Message<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    const SHOWN_BYTES: usize = 60;
    let body = message.body.as_slice();
    write!(out, " time_ms {} bytes {}", message.time_ms, body.len())?;
    for section in Sections(message.sections).iter() {
        match section.kind() {
            Some(kind) => write!(out, " {kind:?}={}", section.octets.escape_ascii())?,
            None => write!(out, " unknown={}", section.octets.escape_ascii())?,
        }
    }
    let shown = &body[..body.len().min(SHOWN_BYTES)];
    let more = if shown.len() < body.len() { "..." } else { "" };
    writeln!(out, " \"{}\"{more}", shown.escape_ascii())
}
