//! A queue whose messages several readers share: its bare name's and any number of groups.
//!
//! The queue keeps the messages: its index says where each lies, for as long as any reader has not settled it or
//! `retain=` keeps it. Each reader has a [`View`]: a bit for every message that it has not settled,
//! beside the states that any queue has. A group is a queue with a view and without an index; the bare
//! name's view lies in the queue itself, and is absent while only groups read.
//!
//! A queue that is read by its bare name alone, and retains nothing, has none of this.

use std::collections::BTreeMap;

use super::{IdMap, Published, Queue, QueueKey, Special, State};
use crate::broker::delayed::Delayed;
use crate::broker::expiry::Expiry;
use crate::broker::id::MessageId;
use crate::broker::keys::KeyHash;
use crate::broker::ready::{BLOCK_IDS, IdSet, Ready, WORDS};

/// Publish times for `retain=` are this part of it apart at most.
const RETAIN_GRAINS: u64 = 1024;

/// What one of several readers has not settled.
#[derive(Debug, Default)]
pub struct View {
    unsettled: IdSet,
    /// Sum of their bodies, bytes.
    bytes: u64,
}

impl View {
    /// The ids of one block that are not settled, a bit for each.
    pub fn words(&self, number: u64) -> [u64; WORDS] {
        self.unsettled.words(number)
    }

    /// Everything that is not settled, as runs of consecutive ids.
    pub fn runs(&self) -> Vec<(MessageId, u64)> {
        self.unsettled.runs()
    }

    /// Sum of the bodies of what is not settled, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes over what a checkpoint says.
    pub fn restore(runs: &[(MessageId, u64)], bytes: u64) -> View {
        let mut unsettled = IdSet::default();
        for (first, count) in runs {
            for id in *first..first.saturating_add(*count) {
                unsettled.insert(id);
            }
        }
        View { unsettled, bytes }
    }

    fn add(&mut self, id: MessageId, size: u32) {
        self.unsettled.insert(id);
        self.bytes += u64::from(size);
    }

    /// `size` as in [`Index::settle`](crate::broker::index::Index::settle).
    pub(super) fn settle(&mut self, id: MessageId, size: Option<u32>) {
        let count = self.unsettled.len();
        if self.unsettled.remove(id) {
            let average = self.bytes / count;
            let bytes = size.map_or(average, u64::from).min(self.bytes);
            self.bytes -= if count == 1 { self.bytes } else { bytes };
        }
    }
}

/// What makes a queue a group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Whose messages it reads.
    pub queue: QueueKey,
    /// Octets of the group's own name.
    pub name: Box<[u8]>,
    /// Number of the log record with its beginning; nothing is handed out before that is durable.
    pub begun: u64,
}

/// What a stored message has that most have not, kept for readers to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Priority.
    pub pri: u8,
    /// When its delay ends, microseconds; 0 = it had none.
    pub due_us: u64,
    /// Its own deadline, microseconds.
    pub expires_us: Option<u64>,
    /// Its key.
    pub key: Option<KeyHash>,
}

/// What a queue keeps for its readers.
#[derive(Debug, Default)]
pub struct Sharing {
    /// The groups that exist, by the octets of their names.
    pub groups: BTreeMap<Box<[u8]>, QueueKey>,
    /// Groups that were deleted while consumers waited, which stay for the name.
    pub ghosts: BTreeMap<Box<[u8]>, QueueKey>,
    /// Of every stored message that has any.
    pub kept: BTreeMap<MessageId, Kept>,
    /// Stored messages that every reader has settled, kept by `retain=`.
    retained: IdSet,
    /// Sum of their bodies as far as it is known, bytes.
    retained_bytes: u64,
    /// Stored messages that no reader will ask for, to be freed.
    pub unclaimed: IdSet,
    /// When messages were published; kept while the queue retains by age.
    pub times: Expiry,
}

impl Sharing {
    /// What stays of it when its queue is deleted: the groups that consumers wait for.
    pub(super) fn ghost(mut self: Box<Self>) -> Option<Box<Sharing>> {
        let ghosts = std::mem::take(&mut self.ghosts);
        let sharing = Sharing {
            ghosts,
            ..Sharing::default()
        };
        (!sharing.ghosts.is_empty()).then(|| Box::new(sharing))
    }

    /// Messages kept that every reader has settled.
    pub fn retained(&self) -> u64 {
        self.retained.len()
    }

    /// Sum of their bodies as far as it is known, bytes.
    pub fn retained_bytes(&self) -> u64 {
        self.retained_bytes
    }

    /// Is it kept although every reader has settled it, or about to be freed?
    pub fn is_done(&self, id: MessageId) -> bool {
        self.retained.contains(id) || self.unclaimed.contains(id)
    }

    fn note(&mut self, id: MessageId, message: &Published) {
        if message.pri != 0 || message.due_us != 0 || message.expires_us.is_some() {
            let kept = self.kept.entry(id).or_default();
            kept.pri = message.pri;
            kept.due_us = message.due_us;
            kept.expires_us = message.expires_us;
        }
    }
}

/// What becomes of a message that every reader has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retained {
    /// The queue retains nothing.
    Never,
    /// The queue retains others, but not this one: it is too old, or was not acked.
    Not,
    /// It stays.
    Kept,
}

/// Messages that a reader begins with.
#[derive(Debug)]
pub struct Adoption {
    /// By number of the block, a bit for each id.
    blocks: Vec<(u64, [u64; WORDS])>,
    bytes: u64,
    next_id: MessageId,
    visible: MessageId,
    kept: Vec<(MessageId, Kept)>,
    expiry_done: MessageId,
    expiry_runs: Vec<(u64, MessageId)>,
}

impl Adoption {
    /// Takes over from a reader that has them what is known of when messages expire by the queue's `ttl`.
    pub fn expire_like(&mut self, reader: &Queue) {
        self.expiry_done = reader.expiry.done();
        self.expiry_runs = reader.expiry.runs().collect();
    }
}

impl Queue {
    /// Is it read by groups, or does it retain what was settled, or is it a group?
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.view.is_some()
    }

    /// Groups read it, and nobody by the bare name.
    #[inline]
    pub fn is_absent(&self) -> bool {
        match &self.sharing {
            None => false,
            Some(sharing) => !self.begun && !sharing.groups.is_empty(),
        }
    }

    /// Its groups, in the order of their names.
    pub fn groups(&self) -> impl Iterator<Item = QueueKey> {
        let sharing = self.sharing.iter();
        sharing.flat_map(|sharing| sharing.groups.values().copied())
    }

    /// What its reader has not settled; `None` where the index says it.
    pub fn view(&self) -> Option<&View> {
        self.view.as_deref()
    }

    /// Takes the view over from a checkpoint.
    pub fn restore_view(&mut self, view: View) {
        self.view = Some(Box::new(view));
    }

    /// Messages that the reader has not settled.
    #[inline]
    pub fn unsettled(&self) -> u64 {
        match &self.view {
            None => self.index.live(),
            Some(view) => view.unsettled.len(),
        }
    }

    /// Sum of the bodies of what the reader has not settled, bytes.
    pub fn unsettled_bytes(&self) -> u64 {
        match &self.view {
            None => self.index.bytes(),
            Some(view) => view.bytes,
        }
    }

    /// Has the reader still to settle it?
    #[inline]
    pub fn is_unsettled(&self, id: MessageId) -> bool {
        match &self.view {
            None => self.index.is_live(id),
            Some(view) => view.unsettled.contains(id),
        }
    }

    /// The smallest id from `from` on that the reader has not settled.
    #[inline]
    pub fn next_unsettled(&self, from: MessageId) -> Option<MessageId> {
        match &self.view {
            None => self.index.next_live(from),
            Some(view) => view.unsettled.next_from(from),
        }
    }

    pub(super) fn shared_memory(&self) -> usize {
        let view = self.view.as_ref().map_or(0, |view| view.unsettled.memory());
        let sharing = self.sharing.as_ref().map_or(0, |sharing| {
            sharing.kept.len() * 96
                + sharing.retained.memory()
                + sharing.unclaimed.memory()
                + sharing.times.memory()
        });
        view + sharing
    }

    /// A taken message of so many bytes has left for another shard: it counts no more, though it is still stored.
    pub fn leaves(&mut self, bytes: u64) {
        self.leaving.0 += 1;
        self.leaving.1 += bytes;
    }

    /// It is stored no more, or is back.
    pub fn has_left(&mut self, bytes: u64) {
        self.leaving.0 -= 1;
        self.leaving.1 -= bytes;
    }

    /// How many of its dead letters are in its dead-letter queue.
    pub fn dead_letters(&self) -> u64 {
        self.dead.saturating_add_signed(self.dead_far)
    }

    /// So many messages and bytes are to come, and count for the limits from now on.
    pub fn expects(&mut self, messages: u64, bytes: u64) {
        self.expected.0 += messages;
        self.expected.1 += bytes;
    }

    /// They come now, or never.
    pub fn expects_no_more(&mut self, messages: u64, bytes: u64) {
        self.expected.0 -= messages;
        self.expected.1 -= bytes;
    }

    /// Messages that count for `maxlen=`: stored and not settled by all.
    #[inline]
    pub fn counted(&self) -> u64 {
        let counted = match &self.sharing {
            None => self.index.live().saturating_sub(self.leaving.0),
            Some(sharing) => {
                let done = sharing.retained.len() + sharing.unclaimed.len();
                self.index.live().saturating_sub(done)
            }
        };
        counted + self.expected.0
    }

    /// Bytes that count for `maxbytes=`.
    #[inline]
    pub fn counted_bytes(&self) -> u64 {
        let counted = match &self.sharing {
            None => self.index.bytes().saturating_sub(self.leaving.1),
            Some(sharing) => {
                let bytes = self.index.bytes();
                let average = bytes / self.index.live().max(1);
                let unclaimed = sharing.unclaimed.len() * average;
                bytes.saturating_sub(sharing.retained_bytes + unclaimed)
            }
        };
        counted + self.expected.1
    }

    /// Makes it a queue that can have groups and retain: its bare name becomes one reader among others.
    pub fn share(&mut self) {
        if self.view.is_some() {
            return;
        }
        let mut view = View {
            bytes: self.index.bytes(),
            ..View::default()
        };
        for (number, words) in self.index.live_words(0) {
            view.unsettled.insert_words(number, &words);
        }
        self.view = Some(Box::new(view));
        let mut sharing = self.sharing.take().unwrap_or_default();
        sharing.kept = self.find_kept();
        sharing.times.restore(self.next_id - 1, std::iter::empty());
        self.sharing = Some(sharing);
    }

    /// Gathers what messages have that most have not, from the states of the only reader.
    fn find_kept(&self) -> BTreeMap<MessageId, Kept> {
        let mut found: BTreeMap<MessageId, Kept> = BTreeMap::new();
        for (pri, lane) in self.ready.lanes().filter(|(pri, _)| *pri != 0) {
            for id in lane.iter() {
                found.entry(id).or_default().pri = pri;
            }
        }
        for (due_us, id, pri) in self.delayed.iter() {
            let kept = found.entry(id).or_default();
            kept.pri = pri;
            // A wait after a failed try is this reader's own.
            if !self.tries.contains_key(&id) {
                kept.due_us = due_us;
            }
        }
        let mut specials = self.specials.iter().peekable();
        for id in self.visible..self.next_id {
            match specials.next_if(|special| special.id == id) {
                Some(special) => {
                    let kept = found.entry(id).or_default();
                    (kept.pri, kept.due_us) = (special.pri, special.due_us);
                }
                None => found.entry(id).or_default().pri = self.settings.pri,
            }
        }
        for (expires_us, id) in self.expiry.owned() {
            found.entry(id).or_default().expires_us = Some(expires_us);
        }
        if let Some(keys) = &self.keys {
            let image = keys.image();
            for (first, count, ordinal) in &image.runs {
                for id in *first..first + count {
                    let kept = found.entry(id).or_default();
                    kept.key = Some(image.hashes[*ordinal as usize]);
                    if let Some((pri, _)) = keys.waiting(id) {
                        kept.pri = pri;
                    }
                }
            }
        }
        found.retain(|id, kept| *kept != Kept::default() && self.index.is_live(*id));
        found
    }

    /// Notes the priority of a message that is with a consumer, which the queue itself doesn't know.
    pub fn keep_pri(&mut self, id: MessageId, pri: u8) {
        if let Some(sharing) = &mut self.sharing
            && pri != 0
        {
            sharing.kept.entry(id).or_default().pri = pri;
        }
    }

    /// [`Queue::publish`] where the bare name is one reader among others; false if it is absent.
    #[cold]
    pub(super) fn publish_shared(&mut self, id: MessageId, message: &Published) -> bool {
        let absent = self.is_absent();
        if let Some(sharing) = &mut self.sharing {
            sharing.note(id, message);
            if let Some(age_us) = self.settings.retain.age_us {
                let grain_us = (age_us / RETAIN_GRAINS).max(1);
                let time_us = message.now_us.next_multiple_of(grain_us);
                sharing.times.follow(id, time_us);
            }
        }
        if absent {
            self.counters.published += 1;
            return false;
        }
        if let Some(view) = &mut self.view {
            view.add(id, message.size);
        }
        true
    }

    /// A group's queue has taken a message.
    pub fn follow(&mut self, id: MessageId, message: &Published, key: Option<KeyHash>) {
        if self.next_id < id {
            // Ids that are left out in recovery, where nothing is hidden.
            self.skip_to(id);
        }
        self.next_id = id + 1;
        if let Some(view) = &mut self.view {
            view.add(id, message.size);
        }
        self.expect(id, message);
        if let Some(hash) = key {
            self.set_key(id, hash);
        }
    }

    /// Every reader has settled a message whose storage is given back.
    pub fn free(&mut self, id: MessageId, size: Option<u32>) {
        let before = self.index.bytes();
        self.index.settle(id, size);
        let freed = before - self.index.bytes();
        if let Some(sharing) = &mut self.sharing {
            sharing.kept.remove(&id);
            sharing.unclaimed.remove(id);
            if sharing.retained.remove(id) {
                sharing.retained_bytes = match sharing.retained.len() {
                    0 => 0,
                    _ => sharing.retained_bytes.saturating_sub(freed),
                };
            }
        }
    }

    /// Every reader has settled a message, the last by an ack or otherwise: does `retain=` keep it?
    pub fn retain(&mut self, id: MessageId, size: Option<u32>, is_acked: bool) -> Retained {
        let retain = self.settings.retain;
        let Some(sharing) = &mut self.sharing else {
            return Retained::Never;
        };
        if !retain.is_set() {
            return Retained::Never;
        }
        if !is_acked || (retain.age_us.is_some() && id <= sharing.times.done()) {
            return Retained::Not;
        }
        let average = self.index.bytes() / self.index.live().max(1);
        sharing.retained.insert(id);
        sharing.retained_bytes += size.map_or(average, u64::from);
        Retained::Kept
    }

    /// Ages what is retained; then the oldest message that is kept for nobody and may go, if there is one.
    pub fn next_to_free(&mut self, now_us: u64) -> Option<MessageId> {
        let retain = self.settings.retain;
        let sharing = self.sharing.as_deref_mut()?;
        if let Some(id) = sharing.unclaimed.first() {
            return Some(id);
        }
        while sharing.times.pop(retain.age_us, now_us).is_some() {}
        let oldest = sharing.retained.first()?;
        let is_old = retain.age_us.is_some() && oldest <= sharing.times.done();
        let too_many = retain
            .bytes
            .is_some_and(|most| sharing.retained_bytes > most);
        (is_old || too_many || !retain.is_set()).then_some(oldest)
    }

    /// When the oldest retained message is too old, microseconds.
    pub(super) fn next_retained_us(&self) -> Option<u64> {
        let sharing = self.sharing.as_deref()?;
        let age_us = self.settings.retain.age_us?;
        match sharing.retained.is_empty() {
            true => None,
            false => sharing.times.next_us(Some(age_us)),
        }
    }

    /// `retain=` was changed: messages without a known publish time count from now.
    pub fn retain_changed(&mut self, now_us: u64) {
        if !self.settings.retain.is_set() {
            return;
        }
        self.share();
        let last = self.next_id - 1;
        if let Some(sharing) = &mut self.sharing
            && self.settings.retain.age_us.is_some()
            && sharing.times.is_empty()
            && sharing.times.done() < last
        {
            sharing.times.follow(last, now_us);
        }
    }

    /// What every reader of `views` has settled is retained, or else is to be freed. To be called when a
    /// reader came, went, or was moved.
    pub fn recount(&mut self, views: &[Vec<[u64; WORDS]>]) {
        let retains = self.settings.retain.is_set();
        let blocks: Vec<_> = self.index.live_words(0).collect();
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let mut done = IdSet::default();
        for (at, (number, words)) in blocks.iter().enumerate() {
            let mut left = *words;
            for view in views {
                for (word, wanted) in left.iter_mut().zip(&view[at]) {
                    *word &= !wanted;
                }
            }
            done.insert_words(*number, &left);
        }
        let count = done.len();
        (sharing.retained, sharing.unclaimed) = match retains {
            true => (done, IdSet::default()),
            false => (IdSet::default(), done),
        };
        sharing.retained_bytes = match retains {
            true => self.index.bytes() / self.index.live().max(1) * count,
            false => 0,
        };
    }

    /// The numbers of the blocks in which messages are stored.
    pub fn stored_blocks(&self) -> Vec<u64> {
        self.index.live_words(0).map(|(number, _)| number).collect()
    }

    /// The stored messages from `from` on, for a reader to begin with; only those of `among`, if given. What is to
    /// be freed is left out: it is gone already, as far as anybody can tell.
    pub fn adoption(&self, from: MessageId, among: Option<&Queue>) -> Adoption {
        let mut blocks: Vec<(u64, [u64; WORDS])> = self.index.live_words(from).collect();
        if let Some(view) = among.and_then(|among| among.view.as_deref()) {
            for (number, words) in &mut blocks {
                let wanted = view.words(*number);
                for (word, wanted) in words.iter_mut().zip(wanted) {
                    *word &= wanted;
                }
            }
        }
        if let Some(sharing) = &self.sharing {
            for (number, words) in &mut blocks {
                let gone = sharing.unclaimed.words(*number);
                for (word, gone) in words.iter_mut().zip(gone) {
                    *word &= !gone;
                }
            }
        }
        let count: u64 = blocks
            .iter()
            .flat_map(|(_, words)| words)
            .map(|word| u64::from(word.count_ones()))
            .sum();
        let live = self.index.live().max(1);
        let bytes = (u128::from(self.index.bytes()) * u128::from(count) / u128::from(live)) as u64;
        let kept = self.sharing.as_ref().map(|sharing| {
            let kept = sharing.kept.range(from..);
            kept.map(|(id, kept)| (*id, *kept)).collect()
        });
        Adoption {
            blocks,
            bytes,
            next_id: self.next_id,
            visible: self.visible,
            kept: kept.unwrap_or_default(),
            expiry_done: self.next_id - 1,
            expiry_runs: Vec::new(),
        }
    }

    /// Begins to read: forgets every state and takes these messages, none of them tried yet. Leases have
    /// ended before.
    pub fn adopt(&mut self, adoption: &Adoption, now_us: u64) {
        let mut view = View {
            bytes: adoption.bytes,
            ..View::default()
        };
        for (number, words) in &adoption.blocks {
            view.unsettled.insert_words(*number, words);
        }
        self.clear_states();
        self.next_id = adoption.next_id;
        self.visible = adoption.visible;
        self.expiry
            .restore(adoption.expiry_done, adoption.expiry_runs.iter().copied());
        let kept: Vec<_> = adoption
            .kept
            .iter()
            .filter(|(id, _)| view.unsettled.contains(*id))
            .collect();
        // Those that are hidden become ready with the others; the rest is ready, a block at a time.
        let mut others = adoption.blocks.clone();
        for (number, words) in &mut others {
            let first = *number * BLOCK_IDS;
            if first + BLOCK_IDS > self.visible {
                for nth in self.visible.saturating_sub(first)..BLOCK_IDS {
                    words[nth as usize / 64] &= !(1 << (nth % 64));
                }
            }
        }
        for (id, _) in &kept {
            let number = id / BLOCK_IDS;
            if let Ok(at) = others.binary_search_by_key(&number, |(number, _)| *number) {
                others[at].1[(id % BLOCK_IDS / 64) as usize] &= !(1 << (id % 64));
            }
        }
        for (number, words) in &others {
            self.ready.insert_words(*number, words, 0);
        }
        self.view = Some(Box::new(view));
        for (id, kept) in &kept {
            if let Some(hash) = kept.key {
                self.set_key(*id, hash);
            }
            if let Some(expires_us) = kept.expires_us.filter(|at_us| *at_us > now_us) {
                self.expiry.own(*id, expires_us);
            }
            if *id < self.visible {
                let due_us = if kept.due_us > now_us { kept.due_us } else { 0 };
                self.become_waiting(*id, kept.pri, due_us);
            }
        }
        let mut kept = kept.into_iter().peekable();
        for id in self.visible..self.next_id {
            while kept.next_if(|(known, _)| *known < id).is_some() {}
            let known = kept.peek().filter(|(known, _)| *known == id);
            let (pri, due_us) = known.map_or((0, 0), |(_, kept)| (kept.pri, kept.due_us));
            if pri != self.settings.pri || due_us != 0 {
                self.specials.push_back(Special { id, pri, due_us });
            }
        }
    }

    /// The bare name's reader is gone, its messages are others' now.
    pub fn leave(&mut self) {
        self.clear_states();
        self.view = Some(Box::default());
        self.visible = self.visible.min(self.next_id);
    }

    fn clear_states(&mut self) {
        self.ready = Ready::default();
        self.keys = None;
        self.specials.clear();
        self.delayed = Delayed::default();
        self.tries = IdMap::default();
        self.overdue.clear();
        self.leased = 0;
        self.expiry = Expiry::default();
    }

    /// Is it with a consumer, or not to be seen yet? Then it can't be dropped.
    pub fn is_in_use(&self, id: MessageId) -> bool {
        matches!(self.state(id), State::Leased | State::Hidden)
    }
}
