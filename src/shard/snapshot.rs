//! The broker's part of a checkpoint: every queue's definition and the states of its messages.
//!
//! Numbers are varints (seven bits an octet, low first), octets have their length in front. The version stands
//! first; another version is refused by name.

use std::collections::BTreeSet;

use super::engine::{Out, Outbox};
use crate::broker::dedup::Original;
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::index::{BlockImage, Index, Slot};
use crate::broker::keys::{KeyHash, KeysImage};
use crate::broker::pattern::Pattern;
use crate::broker::queue::{Image, Kept, Queue, Sharing, View, leave_out};
use crate::broker::schedule::{Schedule, Schedules};
use crate::broker::settings::Settings;
use crate::broker::varint;
use crate::fault::{Fault, planted};
use crate::log::TransferReason;

/// Version of this encoding.
pub(super) const VERSION: u64 = 5;
/// The version without parts behind the schedules.
const VERSION_WITHOUT_ROUTES: u64 = 4;
/// The version without schedules.
const VERSION_WITHOUT_SCHEDULES: u64 = 3;
/// The version without groups.
const VERSION_WITHOUT_GROUPS: u64 = 2;
/// The version without bindings, and without parts behind a queue's state.
const VERSION_WITHOUT_PARTS: u64 = 1;
/// The part that holds the keys of a queue's messages.
const PART_KEYS: u64 = 1;
/// What the bare name's reader has not settled, where it is one of several.
const PART_VIEW: u64 = 2;
/// What a queue keeps for its readers.
const PART_SHARING: u64 = 3;
/// The states of one group.
const PART_GROUP: u64 = 4;
/// Behind the schedules: exchanges, bindings and how queues were declared.
const PART_ROUTES: u64 = 1;
/// Behind the schedules: what goes to other shards, and has come from them.
const PART_OUTBOX: u64 = 2;
/// Behind the schedules: what other shards have to do in transactions.
const PART_ORDERS: u64 = 3;

/// Writes a checkpoint's payload.
#[derive(Debug, Default)]
pub(super) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// A payload with its head: version, the next queue's identity, how many queues follow.
    pub(super) fn new(next_uid: u64, queues: usize) -> Writer {
        let mut writer = Writer::default();
        writer.number(VERSION);
        writer.number(next_uid);
        writer.number(queues as u64);
        writer
    }

    /// Queues that another writer has written, without a head.
    pub(super) fn append(&mut self, queues: Writer) {
        self.out.extend_from_slice(&queues.out);
    }

    /// Every schedule, behind the queues.
    pub(super) fn schedules(&mut self, schedules: &Schedules) {
        self.number(schedules.next_number);
        self.number(schedules.iter().count() as u64);
        for (queue, number, planned) in schedules.iter() {
            self.number(queue.0);
            self.number(number);
            self.number(planned.next_us);
            let mut definition = Vec::new();
            planned.schedule.encode(&mut definition);
            self.octets(&definition);
        }
    }

    /// What stands behind the schedules: exchanges, bindings and declarations as changes; and what goes to other
    /// shards and has come from them, if there was any.
    pub(super) fn behind(&mut self, changes: &[Vec<u8>], outbox: &Outbox) {
        let mut part = Writer::default();
        part.number(changes.len() as u64);
        for change in changes {
            part.octets(change);
        }
        let mut crossing = Writer::default();
        crossing.outbox(outbox);
        let has_crossed = outbox.next_seq() > 0 || outbox.seen().next().is_some();
        let parts: Vec<_> = outbox.orders.open().collect();
        self.number(1 + u64::from(has_crossed) + u64::from(!parts.is_empty()));
        self.number(PART_ROUTES);
        self.octets(&part.out);
        if has_crossed {
            self.number(PART_OUTBOX);
            self.octets(&crossing.out);
        }
        if !parts.is_empty() {
            let mut orders = Writer::default();
            orders.number(parts.len() as u64);
            for (seq, shard, part) in parts {
                orders.number(seq);
                orders.number(u64::from(shard));
                orders.octets(part);
            }
            self.number(PART_ORDERS);
            self.octets(&orders.out);
        }
    }

    fn outbox(&mut self, outbox: &Outbox) {
        self.number(outbox.next_seq());
        self.number(outbox.outs().count() as u64);
        for (seq, out) in outbox.outs() {
            self.number(seq);
            self.number(u64::from(out.to));
            self.number(out.uid.0);
            self.number(out.id);
            self.number(out.reason as u64);
            self.number(u64::from(out.tries));
            self.octets(&out.target);
            self.octets(&out.why);
        }
        self.number(outbox.seen().count() as u64);
        for (from, below, numbers) in outbox.seen() {
            self.number(u64::from(from));
            self.number(below);
            self.number(numbers.len() as u64);
            for number in numbers {
                self.number(number);
            }
        }
    }

    /// The finished payload.
    pub(super) fn finish(self) -> Vec<u8> {
        self.out
    }

    fn number(&mut self, number: u64) {
        varint::put(&mut self.out, number);
    }

    fn octets(&mut self, octets: &[u8]) {
        self.number(octets.len() as u64);
        self.out.extend_from_slice(octets);
    }

    /// One queue with its groups; `leased` are messages that are with consumers, with their priorities.
    pub(super) fn queue(
        &mut self,
        queue: &Queue,
        leased: &[(MessageId, u8)],
        groups: &[(&Queue, &[(MessageId, u8)])],
    ) {
        self.number(queue.uid.0);
        self.octets(&queue.name);
        let mut settings = Vec::new();
        queue.settings.encode(&mut settings);
        self.octets(&settings);
        self.number(u64::from(queue.begun));
        self.number(queue.bindings.len() as u64);
        for pattern in &queue.bindings {
            self.octets(&pattern.printed());
        }
        self.number(groups.len() as u64);
        for (group, _) in groups {
            self.number(group.uid.0);
            self.octets(group.group.as_ref().map_or(b"", |group| &group.name));
        }
        if queue.settings.durable == Level::None {
            return;
        }
        let requests: BTreeSet<_> = queue.index.requests().collect();
        self.image(&queue.image(leased, &requests));
        self.index(&queue.index, |place| {
            queue.arena.get(place).body.as_slice().len() as u32
        });
        let mut seen: Vec<_> = queue.dedup.iter().collect();
        seen.sort_unstable_by_key(|(at_us, hash, _)| (*at_us, *hash));
        self.number(seen.len() as u64);
        for (at_us, hash, original) in seen {
            self.number(at_us);
            self.out.extend_from_slice(&hash.to_le_bytes());
            self.number(original.first);
            self.number(u64::from(original.count));
        }
        self.expiry(queue);
        self.pairs(queue.origins.iter().map(|(id, origin)| (*id, origin.0)));
        self.number(queue.dead);
        // Parts: a number for each kind, then its octets with their length in front.
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut part = Writer::default();
        // What a reader has not settled comes before the keys, which are checked against it.
        if let Some(view) = queue.view() {
            part.view(view, &requests);
            parts.push((PART_VIEW, std::mem::take(&mut part.out)));
        }
        if let Some(sharing) = &queue.sharing {
            part.sharing(sharing, &requests);
            parts.push((PART_SHARING, std::mem::take(&mut part.out)));
        }
        if let Some(keys) = kept_keys(queue) {
            part.keys(&keys);
            parts.push((PART_KEYS, std::mem::take(&mut part.out)));
        }
        for (group, leased) in groups {
            part.group(group, leased, &requests);
            parts.push((PART_GROUP, std::mem::take(&mut part.out)));
        }
        self.number(parts.len() as u64);
        for (kind, octets) in parts {
            self.number(kind);
            self.octets(&octets);
        }
    }

    /// When messages expire.
    fn expiry(&mut self, queue: &Queue) {
        self.number(queue.expiry.done());
        self.pairs(queue.expiry.runs());
        // What outlived its time while it was leased or not yet visible is due at once after a
        // restart: there are no leases then.
        let overdue = queue.overdue().map(|id| (0, id));
        self.pairs(queue.expiry.owned().chain(overdue));
    }

    /// Bytes, then the unsettled ids as pairs: the first, how many.
    fn view(&mut self, view: &View, requests: &BTreeSet<MessageId>) {
        self.number(view.bytes());
        let mut runs = view.runs();
        leave_out(&mut runs, requests);
        self.pairs(runs.into_iter());
    }

    fn sharing(&mut self, sharing: &Sharing, requests: &BTreeSet<MessageId>) {
        self.number(sharing.times.done());
        self.pairs(sharing.times.runs());
        let kept = || {
            let kept = sharing.kept.iter();
            kept.filter(|(id, _)| !requests.contains(id))
        };
        self.number(kept().count() as u64);
        for (id, kept) in kept() {
            self.number(*id);
            self.number(u64::from(kept.pri));
            self.number(kept.due_us);
            self.number(kept.expires_us.map_or(0, |at_us| at_us + 1));
            self.number(u64::from(kept.key.is_some()));
            if let Some(hash) = kept.key {
                self.out.extend_from_slice(&hash.to_le_bytes());
            }
        }
    }

    fn group(&mut self, group: &Queue, leased: &[(MessageId, u8)], requests: &BTreeSet<MessageId>) {
        self.number(group.uid.0);
        self.image(&group.image(leased, requests));
        if let Some(view) = group.view() {
            self.view(view, requests);
        }
        self.expiry(group);
        self.number(group.dead);
        self.keys(&kept_keys(group).unwrap_or_default());
    }

    /// The keys as 16 octets each; then ids that follow each other and have the same key, as the distance to the
    /// run before, how many, and which key.
    fn keys(&mut self, keys: &KeysImage) {
        self.number(keys.hashes.len() as u64);
        for hash in &keys.hashes {
            self.out.extend_from_slice(&hash.to_le_bytes());
        }
        self.number(keys.runs.len() as u64);
        let mut end = 0;
        for (first, count, key) in &keys.runs {
            self.number(first - end);
            self.number(*count);
            self.number(*key);
            end = first + count;
        }
    }

    fn image(&mut self, image: &Image) {
        self.number(image.next_id);
        self.number(image.lanes.len() as u64);
        for (pri, runs) in &image.lanes {
            self.number(u64::from(*pri));
            self.pairs(runs.iter().copied());
        }
        self.number(image.delayed.len() as u64);
        for (due_us, id, pri) in &image.delayed {
            self.number(*due_us);
            self.number(*id);
            self.number(u64::from(*pri));
        }
        self.pairs(
            image
                .tries
                .iter()
                .map(|(id, tries)| (*id, u64::from(*tries))),
        );
    }

    fn pairs(&mut self, pairs: impl Iterator<Item = (u64, u64)>) {
        let pairs: Vec<_> = pairs.collect();
        self.number(pairs.len() as u64);
        for (one, two) in pairs {
            self.number(one);
            self.number(two);
        }
    }

    /// Where a queue's messages lie.
    pub(super) fn index(&mut self, index: &Index, size_of: impl Fn(u64) -> u32) {
        let blocks: Vec<_> = index.images(size_of).collect();
        self.number(blocks.len() as u64);
        for block in blocks {
            self.number(block.number);
            self.number(block.base);
            self.number(u64::from(block.located));
            self.number(block.bytes);
            for word in block.settled {
                self.out.extend_from_slice(&word.to_le_bytes());
            }
            self.number(block.slot.map_or(0, |slot| slot.0 + 1));
            self.number(block.offsets.len() as u64);
            for offset in block.offsets {
                self.out.extend_from_slice(&offset.to_le_bytes());
            }
            self.pairs(
                block
                    .far
                    .iter()
                    .map(|(nth, place)| (u64::from(*nth), *place)),
            );
        }
    }
}

/// The keys of a queue's messages, if any has one.
fn kept_keys(queue: &Queue) -> Option<KeysImage> {
    let is_kept = !planted(Fault::KeysNotInCheckpoint);
    let keys = queue.keys_image();
    keys.filter(|keys| is_kept && !keys.runs.is_empty())
}

/// Reads a checkpoint's payload.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    version: u64,
}

/// A queue as it stood in a checkpoint.
#[derive(Debug)]
pub(super) struct QueueImage<'a> {
    pub uid: QueueUid,
    pub name: &'a [u8],
    pub settings: Settings,
    pub begun: bool,
    pub bindings: Vec<Pattern>,
    pub groups: Vec<(QueueUid, &'a [u8])>,
    /// Absent for a `none` queue.
    pub state: Option<QueueState>,
}

/// The states of a queue's messages as they stood in a checkpoint.
#[derive(Debug)]
pub(super) struct QueueState {
    pub image: Image,
    pub index: Index,
    /// (publish time, hash, what was published).
    pub seen: Vec<(u64, u128, Original)>,
    pub expiry_done: MessageId,
    pub expiry_runs: Vec<(u64, u64)>,
    pub expiry_own: Vec<(u64, u64)>,
    pub origins: Vec<(u64, u64)>,
    pub dead: u64,
    pub keys: KeysImage,
    pub view: Option<View>,
    pub sharing: Option<SharingImage>,
    pub groups: Vec<GroupImage>,
}

/// What a queue keeps for its readers, as it stood in a checkpoint.
#[derive(Debug)]
pub(super) struct SharingImage {
    pub times_done: MessageId,
    pub times: Vec<(u64, u64)>,
    pub kept: Vec<(MessageId, Kept)>,
}

/// The states of a group's messages as they stood in a checkpoint.
#[derive(Debug)]
pub(super) struct GroupImage {
    pub uid: QueueUid,
    pub image: Image,
    pub view: View,
    pub expiry_done: MessageId,
    pub expiry_runs: Vec<(u64, u64)>,
    pub expiry_own: Vec<(u64, u64)>,
    pub dead: u64,
    pub keys: KeysImage,
}

type Outcome<T> = Result<T, String>;

impl<'a> Reader<'a> {
    /// Reads the head; returns the next queue's identity and how many queues follow.
    pub(super) fn new(payload: &'a [u8]) -> Outcome<(Reader<'a>, u64, u64)> {
        let mut reader = Reader {
            rest: payload,
            version: 0,
        };
        let version = reader.number()?;
        if !(VERSION_WITHOUT_PARTS..=VERSION).contains(&version) {
            return Err(format!(
                "the checkpoint is of version {version}, this program reads versions up to {VERSION}"
            ));
        }
        reader.version = version;
        let next_uid = reader.number()?;
        let queues = reader.number()?;
        Ok((reader, next_uid, queues))
    }

    fn number(&mut self) -> Outcome<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (octet, rest) = self.rest.split_first().ok_or("the checkpoint ends early")?;
            self.rest = rest;
            number |= u64::from(octet & 0x7f) << shift;
            if *octet < 0x80 {
                return Ok(number);
            }
        }
        Err("the checkpoint holds a number that is too long".into())
    }

    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or("the checkpoint ends early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn octets(&mut self) -> Outcome<&'a [u8]> {
        let count = self.number()?;
        self.take(count as usize)
    }

    fn pairs(&mut self) -> Outcome<Vec<(u64, u64)>> {
        let count = self.number()?;
        (0..count)
            .map(|_| Ok((self.number()?, self.number()?)))
            .collect()
    }

    /// What stands behind the queues.
    pub(super) fn schedules(&mut self, schedules: &mut Schedules) -> Outcome<()> {
        if self.version <= VERSION_WITHOUT_SCHEDULES {
            return Ok(());
        }
        schedules.next_number = self.number()?;
        for _ in 0..self.number()? {
            let (queue, number) = (QueueUid(self.number()?), self.number()?);
            let next_us = self.number()?;
            let schedule = Schedule::decode(self.octets()?)
                .ok_or("the checkpoint holds a schedule that makes no sense")?;
            schedules.insert(queue, number, schedule, next_us);
        }
        Ok(())
    }

    /// What stands behind the schedules: encoded changes of exchanges, bindings and declarations.
    pub(super) fn behind(&mut self, outbox: &mut Outbox) -> Outcome<Vec<&'a [u8]>> {
        if self.version <= VERSION_WITHOUT_ROUTES {
            return Ok(Vec::new());
        }
        let mut changes = Vec::new();
        for _ in 0..self.number()? {
            let (kind, octets) = (self.number()?, self.octets()?);
            let mut part = Reader {
                rest: octets,
                version: self.version,
            };
            if kind == PART_OUTBOX {
                part.outbox(outbox)?;
                continue;
            }
            if kind == PART_ORDERS {
                for _ in 0..part.number()? {
                    let (seq, shard) = (part.number()?, part.number()? as u32);
                    outbox.replay_part(seq, shard, part.octets()?);
                }
                continue;
            }
            if kind != PART_ROUTES {
                return Err(format!(
                    "the checkpoint holds a part of kind {kind} behind its queues, which this program does not know"
                ));
            }
            for _ in 0..part.number()? {
                changes.push(part.octets()?);
            }
        }
        Ok(changes)
    }

    fn outbox(&mut self, outbox: &mut Outbox) -> Outcome<()> {
        let next_seq = self.number()?;
        for _ in 0..self.number()? {
            let (seq, to) = (self.number()?, self.number()? as u32);
            let (uid, id) = (QueueUid(self.number()?), self.number()?);
            let reason = TransferReason::from_byte(self.number()? as u8)
                .ok_or("the checkpoint names a reason that is none")?;
            let tries = self.number()? as u16;
            let (target, why) = (self.octets()?, self.octets()?);
            let out = Out::replayed(to, uid, id, reason, tries, target, why);
            outbox.replay_out(seq, out);
        }
        outbox.restore(next_seq);
        for _ in 0..self.number()? {
            let (from, below) = (self.number()? as u32, self.number()?);
            let count = self.number()?;
            let numbers: Outcome<Vec<u64>> = (0..count).map(|_| self.number()).collect();
            outbox.restore_seen(from, below, numbers?);
        }
        Ok(())
    }

    /// The next queue.
    pub(super) fn queue(&mut self) -> Outcome<QueueImage<'a>> {
        let uid = QueueUid(self.number()?);
        let name = self.octets()?;
        let settings = Settings::decode(self.octets()?)
            .ok_or("the checkpoint holds settings that make no sense")?;
        // Of a queue that an older program wrote it is not known whether it was read by its bare name; most were.
        let begun = self.version <= VERSION_WITHOUT_GROUPS || self.number()? != 0;
        let bindings = match self.version {
            VERSION_WITHOUT_PARTS => Vec::new(),
            _ => self.bindings()?,
        };
        let mut groups = Vec::new();
        if self.version > VERSION_WITHOUT_GROUPS {
            for _ in 0..self.number()? {
                groups.push((QueueUid(self.number()?), self.octets()?));
            }
        }
        let state = match settings.durable {
            Level::None => None,
            _ => Some(self.state()?),
        };
        Ok(QueueImage {
            uid,
            name,
            settings,
            begun,
            bindings,
            groups,
            state,
        })
    }

    fn bindings(&mut self) -> Outcome<Vec<Pattern>> {
        let count = self.number()?;
        (0..count)
            .map(|_| {
                Pattern::new(self.octets()?)
                    .map_err(|_| "the checkpoint binds a queue to what is no pattern".into())
            })
            .collect()
    }

    fn state(&mut self) -> Outcome<QueueState> {
        let image = self.image()?;
        let index = self.index()?;
        let count = self.number()?;
        let mut seen = Vec::new();
        for _ in 0..count {
            let at_us = self.number()?;
            let hash = u128::from_le_bytes(self.take(16)?.try_into().expect("sixteen octets"));
            let first = self.number()?;
            let count = self.number()? as u32;
            seen.push((at_us, hash, Original { first, count }));
        }
        let mut state = QueueState {
            image,
            index,
            seen,
            expiry_done: self.number()?,
            expiry_runs: self.pairs()?,
            expiry_own: self.pairs()?,
            origins: self.pairs()?,
            dead: self.number()?,
            keys: KeysImage::default(),
            view: None,
            sharing: None,
            groups: Vec::new(),
        };
        if self.version > VERSION_WITHOUT_PARTS {
            self.parts(&mut state)?;
        }
        Ok(state)
    }

    fn parts(&mut self, state: &mut QueueState) -> Outcome<()> {
        for _ in 0..self.number()? {
            let (kind, octets) = (self.number()?, self.octets()?);
            let mut part = Reader {
                rest: octets,
                version: self.version,
            };
            match kind {
                PART_KEYS => state.keys = part.keys()?,
                PART_VIEW => state.view = Some(part.view()?),
                PART_SHARING => state.sharing = Some(part.sharing()?),
                PART_GROUP => state.groups.push(part.group()?),
                _ => {
                    return Err(format!(
                        "the checkpoint holds a part of kind {kind}, which this program does not know"
                    ));
                }
            }
            if !part.rest.is_empty() {
                return Err("a part of the checkpoint is followed by more".into());
            }
        }
        Ok(())
    }

    fn view(&mut self) -> Outcome<View> {
        let bytes = self.number()?;
        Ok(View::restore(&self.pairs()?, bytes))
    }

    fn sharing(&mut self) -> Outcome<SharingImage> {
        let mut image = SharingImage {
            times_done: self.number()?,
            times: self.pairs()?,
            kept: Vec::new(),
        };
        for _ in 0..self.number()? {
            let id = self.number()?;
            let kept = Kept {
                pri: self.number()? as u8,
                due_us: self.number()?,
                expires_us: self.number()?.checked_sub(1),
                key: match self.number()? {
                    0 => None,
                    _ => Some(self.hash()?),
                },
            };
            image.kept.push((id, kept));
        }
        Ok(image)
    }

    fn group(&mut self) -> Outcome<GroupImage> {
        Ok(GroupImage {
            uid: QueueUid(self.number()?),
            image: self.image()?,
            view: self.view()?,
            expiry_done: self.number()?,
            expiry_runs: self.pairs()?,
            expiry_own: self.pairs()?,
            dead: self.number()?,
            keys: self.keys()?,
        })
    }

    fn hash(&mut self) -> Outcome<KeyHash> {
        let octets = self.take(16)?.try_into().expect("sixteen octets");
        Ok(KeyHash::from_le_bytes(octets))
    }

    fn keys(&mut self) -> Outcome<KeysImage> {
        let mut keys = KeysImage::default();
        for _ in 0..self.number()? {
            keys.hashes.push(self.hash()?);
        }
        let mut end: u64 = 0;
        for _ in 0..self.number()? {
            let (skipped, count, key) = (self.number()?, self.number()?, self.number()?);
            let first = end
                .checked_add(skipped)
                .ok_or("a key's ids are too large")?;
            end = first
                .checked_add(count)
                .ok_or("a key's ids are too large")?;
            keys.runs.push((first, count, key));
        }
        Ok(keys)
    }

    fn image(&mut self) -> Outcome<Image> {
        let mut image = Image {
            next_id: self.number()?,
            ..Image::default()
        };
        for _ in 0..self.number()? {
            let pri = self.number()? as u8;
            let runs = self.pairs()?;
            image.lanes.insert(pri, runs);
        }
        for _ in 0..self.number()? {
            image
                .delayed
                .push((self.number()?, self.number()?, self.number()? as u8));
        }
        image.tries = self
            .pairs()?
            .into_iter()
            .map(|(id, tries)| (id, tries as u16))
            .collect();
        Ok(image)
    }

    /// Where a queue's messages lie.
    pub(super) fn index(&mut self) -> Outcome<Index> {
        let mut index = Index::default();
        for _ in 0..self.number()? {
            let number = self.number()?;
            let base = self.number()?;
            let located =
                u16::try_from(self.number()?).map_err(|_| "an index block is too long")?;
            let bytes = self.number()?;
            let mut settled = [0; 16];
            for word in &mut settled {
                *word = u64::from_le_bytes(self.take(8)?.try_into().expect("eight octets"));
            }
            let slot = self.number()?.checked_sub(1).map(Slot);
            let count = self.number()? as usize;
            let column = self.take(count.saturating_mul(4))?;
            let offsets: Vec<u32> = column
                .chunks_exact(4)
                .map(|octets| u32::from_le_bytes(octets.try_into().expect("four octets")))
                .collect();
            let far = self
                .pairs()?
                .into_iter()
                .map(|(nth, place)| (nth as u16, place))
                .collect();
            index.restore(BlockImage {
                number,
                base,
                located,
                bytes,
                settled,
                offsets: &offsets,
                slot,
                far,
            })?;
        }
        Ok(index)
    }
}
