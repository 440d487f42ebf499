//! Rebuilds the queues from a checkpoint and the log behind it, and writes the next checkpoint.
//!
//! Replaying applies outcomes; it decides nothing. There are no leases and no connections then, so
//! every unsettled message waits.

use super::Now;
use super::Shard;
use super::engine::{DEFINE_BEGUN, Engine, Out, Part, far_origin, key_hash, once_hash};
use super::snapshot::{GroupImage, QueueImage, QueueState, Reader, Writer};
use crate::broker::dedup::Original;
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::index::Located;
use crate::broker::pattern::Pattern;
use crate::broker::queue::{Published, Queue, QueueKey};
use crate::broker::schedule::Schedule;
use crate::broker::settings::Settings;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{
    BlockSlot, Entry, Message, Place, Position, ReadBlock, Recovered, Replay, SectionKind,
    Sections, SettleReason, TransferReason,
};
use bytes::Bytes;

/// Sizes of the bodies that were replayed, so that what their settles take from a queue's bytes is
/// exact. Of those that are only in a checkpoint nothing is known.
#[derive(Default)]
struct Sizes {
    /// By the queue's place: runs of consecutive ids.
    queues: Vec<Vec<(MessageId, Vec<u32>)>>,
}

impl Sizes {
    fn note(&mut self, key: QueueKey, id: MessageId, size: u32) {
        let place = key.0 as usize;
        if self.queues.len() <= place {
            self.queues.resize_with(place + 1, Vec::new);
        }
        let runs = &mut self.queues[place];
        match runs.last_mut() {
            Some((first, sizes)) if *first + sizes.len() as u64 == id => sizes.push(size),
            _ => runs.push((id, vec![size])),
        }
    }

    fn of(&self, key: QueueKey, id: MessageId) -> Option<u32> {
        let runs = self.queues.get(key.0 as usize)?;
        let run = runs.partition_point(|(first, _)| *first <= id);
        let (first, sizes) = runs.get(run.checked_sub(1)?)?;
        sizes.get((id - first) as usize).copied()
    }

    fn forget(&mut self, key: QueueKey) {
        if let Some(runs) = self.queues.get_mut(key.0 as usize) {
            runs.clear();
        }
    }
}

/// Replays a log into an engine.
pub(super) struct Recovery<'a, S: Storage> {
    engine: &'a mut Engine<S>,
    sizes: Sizes,
    /// The queue found last.
    found: QueueKey,
    /// The reader of another shard that the next message died in.
    origin: Option<QueueUid>,
}

impl<'a, S: Storage> Recovery<'a, S> {
    pub(super) fn new(engine: &'a mut Engine<S>) -> Recovery<'a, S> {
        Recovery {
            engine,
            sizes: Sizes::default(),
            found: QueueKey(u32::MAX),
            origin: None,
        }
    }

    /// Everything was replayed: times are put right and deadlines armed.
    pub(super) fn finish(self, now: Now, found: &Recovered) {
        let down_us = now.us.saturating_sub(found.last_wall_ms * 1000);
        let keys: Vec<QueueKey> = self
            .engine
            .queues
            .iter()
            .map(|(key, _)| QueueKey(key as u32))
            .collect();
        self.engine.take_outs_back();
        for key in keys {
            let queue = self.engine.queue_mut(key);
            queue.counters = Default::default();
            queue.dedup.shift(down_us);
            self.engine.arm(key);
        }
    }

    fn restore_queue(&mut self, image: QueueImage<'_>) -> Result<(), String> {
        let key = self.engine.install(image.uid, image.name, image.settings);
        self.engine.queue_mut(key).begun = image.begun;
        for pattern in image.bindings {
            self.engine.install_binding(key, pattern);
        }
        for (uid, name) in image.groups {
            self.engine.place_group(uid, key, name);
        }
        let Some(state) = image.state else {
            return Ok(());
        };
        let QueueState {
            image,
            index,
            seen,
            expiry_done,
            expiry_runs,
            expiry_own,
            origins,
            dead,
            keys,
            view,
            sharing,
            groups,
        } = state;
        let queue = self.engine.queue_mut(key);
        queue.index = index;
        if let Some(view) = view {
            queue.share();
            queue.restore_view(view);
        }
        if let (Some(image), Some(sharing)) = (sharing, &mut queue.sharing) {
            sharing.kept = image.kept.into_iter().collect();
            sharing
                .times
                .restore(image.times_done, image.times.into_iter());
        }
        queue.restore_keys(&keys)?;
        queue.restore(&image);
        for (at_us, hash, original) in seen {
            queue.dedup.restore(hash, original, at_us);
        }
        queue.expiry.restore(expiry_done, expiry_runs.into_iter());
        for (expires_us, id) in expiry_own {
            queue.expiry.own(id, expires_us);
        }
        queue.origins = origins
            .into_iter()
            .map(|(id, uid)| (id, QueueUid(uid)))
            .collect();
        queue.dead = dead;
        for group in groups {
            self.restore_group(group)?;
        }
        if self.engine.queue(key).is_shared() {
            self.engine.recount(key);
        }
        Ok(())
    }

    fn restore_group(&mut self, image: GroupImage) -> Result<(), String> {
        let key = self.find(image.uid)?;
        let queue = self.engine.queue_mut(key);
        queue.restore_view(image.view);
        queue.restore_keys(&image.keys)?;
        queue.restore(&image.image);
        queue
            .expiry
            .restore(image.expiry_done, image.expiry_runs.into_iter());
        for (expires_us, id) in image.expiry_own {
            queue.expiry.own(id, expires_us);
        }
        queue.dead = image.dead;
        Ok(())
    }

    /// Mostly the queue that was asked for before.
    #[inline]
    fn find(&mut self, uid: QueueUid) -> Result<QueueKey, String> {
        if !self.engine.is_same(self.found, uid) {
            let key = self.engine.find_uid(uid);
            self.found = key.ok_or_else(|| {
                format!("the log speaks of queue {}, which was never defined", uid.0)
            })?;
        }
        Ok(self.found)
    }

    fn publish(
        &mut self,
        uid: QueueUid,
        id: MessageId,
        message: &Message<'_>,
        at: &Place,
    ) -> Result<(), String> {
        let key = self.find(uid)?;
        let sections = Sections(message.sections);
        let (mut hash, mut order) = (None, None);
        if !sections.is_empty() {
            let secret = self.engine.once_key;
            let once = sections.get(SectionKind::Once);
            hash = once.map(|once| once_hash(secret, once));
            let key = sections.get(SectionKind::Key);
            order = key.map(|key| key_hash(secret, key));
        }
        let queue = self.engine.queue_mut(key);
        if queue.next_id() > id {
            return Err(format!(
                "message {id} of queue {} comes after {}",
                uid.0,
                queue.next_id() - 1
            ));
        }
        queue.skip_to(id);
        let now_us = at.time_ms * 1000;
        let size = message.body.as_slice().len() as u32;
        self.sizes.note(key, id, size);
        let message = Published {
            place: at.position.0,
            size,
            pri: sections.priority().unwrap_or(0),
            due_us: sections.number(SectionKind::Due).unwrap_or(0),
            expires_us: sections.number(SectionKind::ExpiresAt),
            now_us,
        };
        self.engine.enter(key, &message, order);
        let queue = self.engine.queue_mut(key);
        queue.reveal(id + 1);
        if queue.sharing.is_some() {
            self.engine.reveal_groups(key);
        }
        let queue = self.engine.queue_mut(key);
        if let Some(hash) = hash.filter(|_| !planted(Fault::DedupInMemoryOnly)) {
            let window_us = queue.settings.dedup_us;
            // The messages of one batch carry the same id and follow each other.
            let original = match queue.dedup.find(hash, window_us, now_us) {
                Some(known) if known.first + u64::from(known.count) == id => Original {
                    count: known.count + 1,
                    ..known
                },
                _ => Original {
                    first: id,
                    count: 1,
                },
            };
            queue.dedup.insert(hash, original, window_us, now_us);
        }
        Ok(())
    }

    /// A queue is deleted: the storage of all its messages is given back at once, so that the log knows
    /// which segments nobody needs before it looks for their files.
    fn free_all(
        &mut self,
        key: QueueKey,
        blocks: &mut ReadBlock<'_>,
        freed: &mut Vec<Position>,
    ) -> Result<(), String> {
        let queue = self.engine.queue_mut(key);
        if queue.settings.durable == Level::None {
            return Ok(());
        }
        let mut index = std::mem::take(&mut queue.index);
        loop {
            match index.take_any() {
                None | Some(Located::Gone) => {
                    self.engine.unused_slots.extend(index.take_freed_slots());
                    return Ok(());
                }
                Some(Located::At(place)) => freed.push(Position(place)),
                Some(Located::Spilled(slot)) => {
                    let column = blocks(BlockSlot(slot.0 as u32))?;
                    let number = index.block_of(slot).ok_or("an index block lost its slot")?;
                    index.loaded(slot, number, &column);
                }
            }
        }
    }

    /// Where a stored message lies; `None` if it is settled.
    fn place_of(
        &mut self,
        key: QueueKey,
        id: MessageId,
        blocks: &mut ReadBlock<'_>,
    ) -> Result<Option<u64>, String> {
        let index = &mut self.engine.queue_mut(key).index;
        if let Located::Spilled(slot) = index.find(id) {
            let column = blocks(BlockSlot(slot.0 as u32))?;
            let number = index.block_of(slot).ok_or("an index block lost its slot")?;
            index.loaded(slot, number, &column);
        }
        match index.find(id) {
            Located::At(place) => Ok(Some(place)),
            Located::Gone => Ok(None),
            Located::Spilled(_) => Err("an index block is too short".into()),
        }
    }

    fn settle(
        &mut self,
        key: QueueKey,
        id: MessageId,
        blocks: &mut ReadBlock<'_>,
        freed: &mut Vec<Position>,
    ) -> Result<(), String> {
        let store = self.engine.store_of(key);
        let place = self.place_of(store, id, blocks)?;
        let size = self.sizes.of(store, id);
        if self.engine.settle_replayed(key, id, size)
            && let Some(place) = place
        {
            freed.push(Position(place));
            self.forget_origin(store, id);
        }
        Ok(())
    }

    /// A message is not retained any longer.
    fn release(
        &mut self,
        store: QueueKey,
        id: MessageId,
        blocks: &mut ReadBlock<'_>,
        freed: &mut Vec<Position>,
    ) -> Result<(), String> {
        if let Some(place) = self.place_of(store, id, blocks)? {
            let size = self.sizes.of(store, id);
            self.engine.queue_mut(store).free(id, size);
            freed.push(Position(place));
            self.forget_origin(store, id);
        }
        Ok(())
    }

    fn forget_origin(&mut self, store: QueueKey, id: MessageId) {
        if let Some(origin) = self.engine.queue_mut(store).origins.remove(&id) {
            self.engine.dead_settled(origin);
        }
    }

    /// Readers have changed: what none of them wants is given back at once, as [`Recovery::free_all`] does.
    fn free_unclaimed(
        &mut self,
        store: QueueKey,
        blocks: &mut ReadBlock<'_>,
        freed: &mut Vec<Position>,
    ) -> Result<(), String> {
        loop {
            let sharing = &mut self.engine.queue_mut(store).sharing;
            let first = sharing
                .as_mut()
                .and_then(|sharing| sharing.unclaimed.first());
            let Some(id) = first else { return Ok(()) };
            self.release(store, id, blocks, freed)?;
            if let Some(sharing) = &mut self.engine.queue_mut(store).sharing {
                sharing.unclaimed.remove(id);
            }
        }
    }
}

fn read_pattern(typed: &[u8]) -> Result<Pattern, String> {
    let unreadable = |_| {
        format!(
            "the log binds to {}, which is no pattern",
            typed.escape_ascii()
        )
    };
    Pattern::new(typed).map_err(unreadable)
}

impl<S: Storage> Replay for Recovery<'_, S> {
    fn restore(&mut self, payload: &[u8]) -> Result<(), String> {
        let (mut reader, next_uid, queues) = Reader::new(payload)?;
        for _ in 0..queues {
            let image = reader.queue()?;
            self.restore_queue(image)?;
        }
        self.engine.next_uid = next_uid;
        reader.schedules(&mut self.engine.schedules)?;
        for change in reader.behind(&mut self.engine.outbox)? {
            self.engine.replay_change(change)?;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        entry: &Entry<'_>,
        at: Place,
        blocks: &mut ReadBlock<'_>,
        freed: &mut Vec<Position>,
    ) -> Result<(), String> {
        match entry {
            Entry::Publish { targets, message } => {
                for (uid, id) in *targets {
                    self.publish(*uid, *id, message, &at)?;
                    if let Some(origin) = self.origin.take() {
                        let key = self.find(*uid)?;
                        self.engine.queue_mut(key).origins.insert(*id, origin);
                    }
                }
            }
            Entry::Settle {
                queue,
                runs,
                reason,
                ..
            } => {
                let key = self.find(*queue)?;
                for run in *runs {
                    for id in run.first..run.first + run.count {
                        match reason {
                            SettleReason::Released => self.release(key, id, blocks, freed)?,
                            _ => self.settle(key, id, blocks, freed)?,
                        }
                        self.engine.outbox.replay_end(*queue, id);
                    }
                }
            }
            Entry::Release {
                queue,
                run,
                tries,
                not_before_us,
                ..
            } => {
                let key = self.find(*queue)?;
                for id in run.first..run.first + run.count {
                    self.engine.outbox.replay_end(*queue, id);
                }
                let queue = self.engine.queue_mut(key);
                for id in run.first..run.first + run.count {
                    if queue.is_unsettled(id) {
                        queue.set_failed(id, u16::try_from(*tries).unwrap_or(u16::MAX));
                        queue.wait_replayed(id, *not_before_us);
                    }
                }
            }
            Entry::Transfer {
                source,
                source_id,
                reason,
                target,
                target_id,
                message,
                ..
            } => {
                let key = self.find(*source)?;
                self.settle(key, *source_id, blocks, freed)?;
                self.publish(*target, *target_id, message, &at)?;
                if *reason != TransferReason::Moved {
                    self.engine.queue_mut(key).dead += 1;
                    let target = self.find(*target)?;
                    self.engine
                        .queue_mut(target)
                        .origins
                        .insert(*target_id, *source);
                }
            }
            Entry::Define {
                uid,
                name,
                settings,
                flags,
            } => {
                let settings = Settings::decode(settings)
                    .ok_or_else(|| format!("the settings of queue {} make no sense", uid.0))?;
                let key = match self.engine.find_uid(*uid) {
                    Some(key) => {
                        let queue = self.engine.queue_mut(key);
                        let before = std::mem::replace(&mut queue.settings, settings);
                        let now_us = at.time_ms * 1000;
                        self.engine.settings_changed(key, &before, now_us);
                        self.free_unclaimed(key, blocks, freed)?;
                        key
                    }
                    None => self.engine.install(*uid, name, settings),
                };
                self.engine.queue_mut(key).begun |= flags & DEFINE_BEGUN != 0;
            }
            Entry::DeleteQueue { uid } => {
                let key = self.find(*uid)?;
                if self.engine.queue(key).group.is_some() {
                    let store = self.engine.store_of(key);
                    self.engine.delete_group(key, true);
                    self.free_unclaimed(store, blocks, freed)?;
                } else {
                    self.free_all(key, blocks, freed)?;
                    self.sizes.forget(key);
                    self.engine.delete_queue(key, true);
                }
            }
            Entry::Group {
                uid,
                queue,
                first,
                name,
            } => {
                let store = self.find(*queue)?;
                let now_us = at.time_ms * 1000;
                match self.engine.find_uid(*uid) {
                    Some(key) => _ = self.engine.seek_unlogged(key, *first, now_us),
                    None => {
                        self.engine.install_group(*uid, store, name, *first, now_us);
                    }
                }
                self.free_unclaimed(store, blocks, freed)?;
            }
            Entry::Bind { queue, pattern } => {
                let key = self.find(*queue)?;
                self.engine.install_binding(key, read_pattern(pattern)?);
            }
            Entry::Unbind { queue, pattern } => {
                let key = self.find(*queue)?;
                self.engine.remove_binding(key, &read_pattern(pattern)?);
            }
            Entry::Schedule {
                queue,
                number,
                next_us,
                definition,
            } => {
                self.find(*queue)?;
                let schedules = &mut self.engine.schedules;
                match (*definition, *next_us) {
                    (b"", 0) => _ = schedules.remove(*queue, *number),
                    (b"", next_us) => schedules.advance(*queue, *number, next_us),
                    (definition, next_us) => {
                        let schedule = Schedule::decode(definition)
                            .ok_or_else(|| format!("schedule {number} makes no sense"))?;
                        schedules.insert(*queue, *number, schedule, next_us);
                    }
                }
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
            } => {
                self.find(*queue)?;
                let tries = u16::try_from(*tries).unwrap_or(u16::MAX);
                let out = Out::replayed(*shard, *queue, *id, *reason, tries, target, why);
                self.engine.outbox.replay_out(*seq, out);
            }
            Entry::In {
                shard,
                seq,
                below,
                origin,
            } => {
                self.origin = (*origin != 0).then(|| far_origin(*shard, *origin));
                self.engine.outbox.replay_in(*shard, *seq, *below);
            }
            Entry::Part { seq, shard, part } => {
                if !part.is_empty() && Part::decode(&Bytes::copy_from_slice(part)).is_none() {
                    return Err(format!("part {seq} of a transaction makes no sense"));
                }
                self.engine.outbox.replay_part(*seq, *shard, part);
            }
            Entry::Route { change } => self.engine.replay_change(change)?,
            Entry::Open { .. } => {}
        }
        Ok(())
    }
}

impl<S: Storage> Shard<S> {
    /// Writes a checkpoint when enough was logged since the last one.
    pub(super) fn checkpoint_if_due(&mut self) {
        // Storage that a deleted queue still holds is in no queue's state: it is given back first.
        if self.engine.doomed.is_empty()
            && !self.engine.has_unclaimed()
            && self
                .engine
                .log
                .as_ref()
                .is_some_and(|log| log.checkpoint_due())
        {
            self.save_blocks();
            let payload = self.snapshot();
            let log = self.engine.log.as_mut().expect("it was just looked at");
            log.checkpoint(payload);
        }
    }

    /// The state with everything that was logged so far.
    fn snapshot(&self) -> Vec<u8> {
        let engine = &self.engine;
        let mut leased: Vec<Vec<(MessageId, u8)>> = vec![Vec::new(); engine.queues.capacity()];
        for lease in engine.leases.iter() {
            leased[lease.queue.0 as usize].push((lease.id, lease.pri));
        }
        for (key, death) in engine.moving() {
            leased[key.0 as usize].push((death.id, death.pri));
        }
        for (_, out) in engine.outbox.outs() {
            if let Some(key) = engine.find_uid(out.uid) {
                leased[key.0 as usize].push((out.id, out.pri));
            }
        }
        for (key, id, pri) in self.prepared_messages() {
            leased[key.0 as usize].push((id, pri));
        }
        leased.iter_mut().for_each(|ids| ids.sort_unstable());
        let is_kept = |queue: &Queue| queue.exists && queue.group.is_none();
        let count = engine
            .queues
            .iter()
            .filter(|(_, queue)| is_kept(queue))
            .count();
        let mut writer = Writer::new(engine.next_uid, count);
        for (key, queue) in &engine.queues {
            if !is_kept(queue) {
                continue;
            }
            let groups: Vec<_> = queue
                .groups()
                .map(|key| (engine.queue(key), &leased[key.0 as usize][..]))
                .collect();
            writer.queue(queue, &leased[key], &groups);
        }
        writer.schedules(&engine.schedules);
        writer.behind(&engine.changes(), &engine.outbox);
        writer.finish()
    }

    /// Is anything stored at all?
    pub fn is_memory_only(&self) -> bool {
        self.engine.defaults.durable == Level::None && self.engine.log.is_none()
    }
}
