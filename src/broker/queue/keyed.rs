//! A queue in which messages have keys, or that is taken at both ends: what is done otherwise there.
//!
//! Messages with a key wait in [`Keys`], the others in [`Ready`](crate::broker::ready::Ready). A queue that
//! never saw a key has no [`Keys`] and comes here once for each look at that.

use std::collections::BTreeMap;

use super::{Queue, Runs, push_runs};
use crate::broker::id::MessageId;
use crate::broker::keys::{KeyHash, Keys, KeysImage};

impl Queue {
    /// A message that was just published has that key.
    #[cold]
    pub fn set_key(&mut self, id: MessageId, hash: KeyHash) {
        if let Some(sharing) = &mut self.sharing {
            sharing.kept.entry(id).or_default().key = Some(hash);
            if self.is_absent() {
                return;
            }
        }
        let fair = self.settings.fair_key;
        let keys = self.keys.get_or_insert_with(|| {
            let mut keys = Box::new(Keys::default());
            keys.set_fair(fair);
            keys
        });
        keys.note(id, hash);
    }

    /// Messages that wait for others of their key.
    pub fn locked(&self) -> u64 {
        self.keys.as_ref().map_or(0, |keys| keys.parked())
    }

    /// It has seen a message with a key.
    #[inline]
    pub fn is_keyed(&self) -> bool {
        self.keys.is_some()
    }

    /// What ends a lease or a message may let another leave, or another consumer begin.
    #[inline]
    pub fn wakes_when_settled(&self) -> bool {
        self.keys.is_some() || self.settings.single
    }

    /// Keys have turns, and what leaves must be paid for.
    #[inline]
    pub fn takes_turns(&self) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.is_fair())
    }

    /// A message that was just taken has a body of that size.
    pub fn charge(&mut self, id: MessageId, body_bytes: u32) {
        if let Some(keys) = &mut self.keys {
            keys.charge(id, body_bytes);
        }
    }

    /// `fair=` may have changed.
    pub fn fair_changed(&mut self) {
        let fair = self.settings.fair_key;
        if let Some(keys) = &mut self.keys {
            keys.set_fair(fair);
        }
    }

    /// A message that was taken is kept back for ever: those behind it go on without it.
    pub fn keep_back(&mut self, id: MessageId) {
        if let Some(keys) = &mut self.keys {
            keys.release(id);
        }
    }

    /// [`Queue::insert_ready`] where keys are.
    #[cold]
    pub(super) fn insert_keyed(&mut self, id: MessageId, pri: u8) {
        match &mut self.keys {
            Some(keys) if keys.has(id) => keys.wait(id, pri),
            _ => self.ready.insert(id, pri),
        }
    }

    /// [`Queue::peek`] where keys are, or another end than the front. At the tail those without a key come
    /// first.
    #[cold]
    pub(super) fn peek_keyed(&mut self) -> Option<(MessageId, u8)> {
        let keyless = self.ready.peek_end(self.settings.head, self.from_tail);
        match &mut self.keys {
            Some(_) if self.from_tail && keyless.is_some() => keyless,
            Some(keys) => keys.next(keyless),
            None => keyless,
        }
    }

    /// Messages that can be taken, from the end that leaves first to the other; those with keys last.
    pub fn list(&self) -> Vec<MessageId> {
        let mut ids = self.ready.in_order(self.settings.head);
        if let Some(keys) = &self.keys {
            ids.extend(keys.iter_ready(0).map(|(_, id)| id));
        }
        ids
    }

    /// [`Queue::take`] where keys are.
    #[cold]
    pub(super) fn take_keyed(&mut self) -> Option<(MessageId, u8)> {
        let (id, pri) = self.peek_keyed()?;
        match &mut self.keys {
            Some(keys) if keys.has(id) => keys.take(id),
            _ => {
                self.ready.remove(id);
            }
        }
        self.leased += 1;
        Some((id, pri))
    }

    /// Takes a message that is ready or waits for others of its key away; its priority.
    pub(super) fn remove_ready(&mut self, id: MessageId) -> Option<u8> {
        match &mut self.keys {
            Some(keys) if keys.has(id) => keys.remove(id),
            _ => self.ready.remove(id),
        }
    }

    /// The oldest message from an id on that is ready, waits for others of its key included.
    pub fn oldest_waiting(&mut self, from: MessageId) -> Option<MessageId> {
        let keyed = match &self.keys {
            Some(keys) => keys.iter_waiting(from).next().map(|(id, _)| id),
            None => None,
        };
        self.ready.oldest().into_iter().chain(keyed).min()
    }

    /// Messages that can be taken in the order they would leave, then by id those that wait for others of
    /// their key.
    pub fn iter_ready(&self, from: MessageId) -> impl Iterator<Item = MessageId> {
        let keys = self.keys.as_deref();
        let mut fronts = keys.map(|keys| keys.iter_ready(from).peekable());
        let mut keyless = self.ready.iter_from(from).peekable();
        let ready = std::iter::from_fn(move || {
            let Some((keys, fronts)) = keys.zip(fronts.as_mut()) else {
                return keyless.next().map(|(id, _)| id);
            };
            let front = fronts.peek().map(|(rank, _)| *rank);
            let other = keyless
                .peek()
                .map(|(id, pri)| keys.rank_of_keyless(*id, *pri));
            match (front, other) {
                (Some(front), other) if other.is_none_or(|other| front < other) => {
                    fronts.next().map(|(_, id)| id)
                }
                _ => keyless.next().map(|(id, _)| id),
            }
        });
        let parked = keys.into_iter().flat_map(move |keys| {
            let waiting = keys.iter_waiting(from);
            waiting.filter_map(|(id, front)| (!front).then_some(id))
        });
        ready.chain(parked)
    }

    /// Adds what waits with a key to the ready ids by priority of a checkpoint.
    pub(super) fn add_keyed(&self, lanes: &mut BTreeMap<u8, Runs>) {
        let Some(keys) = &self.keys else { return };
        for (id, _) in keys.iter_waiting(0) {
            if let Some((pri, _)) = keys.waiting(id) {
                push_runs(lanes.entry(pri).or_default(), [id].into_iter());
            }
        }
    }

    /// Every message with its key, for a checkpoint; `None` if there was never one.
    pub fn keys_image(&self) -> Option<KeysImage> {
        self.keys.as_ref().map(|keys| keys.image())
    }

    /// Takes the keys over from a checkpoint; the index was restored before, the states come behind.
    ///
    /// # Errors
    /// A sentence if it names a message that is not there, or a key that it does not list.
    pub fn restore_keys(&mut self, image: &KeysImage) -> Result<(), String> {
        for (first, count, ordinal) in &image.runs {
            let hash = image
                .hashes
                .get(*ordinal as usize)
                .ok_or("the checkpoint names a key that it does not list")?;
            for id in *first..first.saturating_add(*count) {
                let known = self.keys.as_ref().is_some_and(|keys| keys.has(id));
                if known || !self.is_unsettled(id) {
                    return Err(format!(
                        "the checkpoint has a key for message {id}, which is not there"
                    ));
                }
                self.set_key(id, *hash);
            }
        }
        Ok(())
    }
}
