//! Queues come and go: creation, settings, deletion, and the storage deleted ones leave behind.

use super::super::placement::shard_of;
use super::outbox::far;
use super::{Engine, TURN_DEADLINES, free_slots};
use crate::broker::arena::is_request;
use crate::broker::id::{Level, QueueUid};
use crate::broker::index::Located;
use crate::broker::lease::{HolderKey, Lease};
use crate::broker::queue::{Queue, QueueKey};
use crate::broker::settings::Settings;
use crate::log::disk::Storage;
use crate::log::{BlockSlot, Entry, Position};
use crate::protocol::text::encode;

/// Shards of a data directory, and the number of this one.
const SHARDS: u32 = 1;
const SHARD: u32 = 0;

/// A definition's flag: somebody has read the queue by its bare name.
pub const DEFINE_BEGUN: u32 = 1;

impl<S: Storage> Engine<S> {
    /// The queue of that name, made with the defaults if there is none.
    pub fn find_or_create(&mut self, name: &[u8]) -> QueueKey {
        match self.find(name) {
            Some(key) => key,
            None => self.create(name, self.defaults.clone()),
        }
    }

    /// Makes a queue and logs its definition.
    pub fn create(&mut self, name: &[u8], settings: Settings) -> QueueKey {
        let uid = QueueUid(self.next_uid);
        let key = self.install(uid, name, settings);
        let queue = self.queue_mut(key);
        // Who waits for the name is its first reader.
        queue.begun = !queue.waiters.is_empty() || queue.consumers > 0;
        self.log_definition(key);
        if self.queue(key).sharing.is_some() {
            self.revive_groups(key);
        }
        key
    }

    /// Puts a queue into its places, without logging.
    pub fn install(&mut self, uid: QueueUid, name: &[u8], settings: Settings) -> QueueKey {
        assert_eq!(
            shard_of(name, SHARDS),
            SHARD,
            "a queue is made on its own shard"
        );
        self.next_uid = self.next_uid.max(uid.0 + 1);
        let mut printed = Vec::new();
        encode::typed(&mut printed, name);
        let mut queue = Queue::new(uid, name, printed, settings);
        if queue.settings.retain.is_set() {
            queue.share();
        }
        let key = match self.names.get(name).copied() {
            Some(key) => {
                // Consumers have waited here since the last queue of this name was deleted.
                let ghost = self.queue_mut(key);
                queue.waiters = std::mem::take(&mut ghost.waiters);
                queue.consumers = ghost.consumers;
                if let Some(ghosts) = ghost.sharing.take() {
                    queue.share();
                    queue.sharing = Some(ghosts);
                }
                *ghost = queue;
                key
            }
            None => {
                let key = QueueKey(self.queues.insert(queue) as u32);
                self.names.insert(name.into(), key);
                key
            }
        };
        self.by_uid.insert(uid, key);
        key
    }

    /// Logs a queue's settings as they are now.
    pub fn log_definition(&mut self, key: QueueKey) {
        let queue = &self.queues[key.0 as usize];
        if let Some(log) = &mut self.log {
            let mut settings = Vec::new();
            queue.settings.encode(&mut settings);
            log.append(&Entry::Define {
                uid: queue.uid,
                name: &queue.name,
                settings: &settings,
                flags: u32::from(queue.begun) * DEFINE_BEGUN,
            });
            self.sync_wanted = true;
        }
    }

    /// Deletes a queue; its waiting consumers stay for the name. Returns who had leases of it.
    pub fn delete_queue(&mut self, key: QueueKey, from_log: bool) -> Vec<HolderKey> {
        let mut holders = self.delete_groups(key);
        holders.extend(self.settle_everything(key));
        self.drop_bindings(key);
        let queue = &mut self.queues[key.0 as usize];
        let uid = queue.uid;
        self.schedules.remove_all(uid);
        let queue = &mut self.queues[key.0 as usize];
        queue.become_ghost();
        if let Some(log) = &mut self.log
            && !from_log
        {
            log.append(&Entry::DeleteQueue { uid });
            self.sync_wanted = true;
        }
        self.unbind_queue(uid);
        self.by_uid.remove(&uid);
        self.drop_ghost(key);
        holders
    }

    /// Frees every message of a queue without logging it, leases included.
    fn settle_everything(&mut self, key: QueueKey) -> Vec<HolderKey> {
        let holders = self.end_leases(key);
        let queue = &mut self.queues[key.0 as usize];
        queue.arena.clear(&mut self.pool);
        let logged = queue.settings.durable != Level::None;
        let index = std::mem::take(&mut queue.index);
        if logged && index.live() > 0 {
            self.doomed.push(index);
        }
        let origins = std::mem::take(&mut queue.origins);
        for uid in origins.into_values() {
            self.dead_settled(uid);
        }
        holders
    }

    /// Ends every lease of a queue or a group. Returns who had them.
    pub(super) fn end_leases(&mut self, key: QueueKey) -> Vec<HolderKey> {
        let serials: Vec<u64> = self
            .leases
            .iter()
            .filter(|lease| lease.queue == key)
            .map(|lease| lease.serial)
            .collect();
        let ended: Vec<Lease> = serials
            .into_iter()
            .filter_map(|serial| self.leases.end(serial))
            .collect();
        ended.iter().map(|lease| lease.holder).collect()
    }

    /// Forgets a deleted queue for which nobody waits any more.
    pub fn drop_ghost(&mut self, key: QueueKey) {
        let queue = self.queue(key);
        let is_left = !queue.exists && queue.waiters.is_empty() && queue.consumers == 0;
        if !is_left || queue.scheduled {
            return;
        }
        if let Some(group) = queue.group.clone() {
            self.forget_queue(key);
            let queue = self.queue_mut(group.queue);
            if let Some(sharing) = &mut queue.sharing {
                sharing.ghosts.remove(&group.name);
                if !queue.exists && sharing.ghosts.is_empty() {
                    queue.sharing = None;
                }
            }
            self.drop_ghost(group.queue);
        } else if queue.sharing.is_none() {
            let name = queue.name.clone();
            self.names.remove(&*name);
            self.forget_queue(key);
        }
    }

    /// A deleted queue or group is gone for good; what it has counted stays in the broker's sums.
    pub(super) fn forget_queue(&mut self, key: QueueKey) {
        let queue = self.queues.remove(key.0 as usize);
        self.gone.add(&queue.counters);
    }

    /// Gives back storage of deleted queues, a bounded piece at a time; true while there is more that
    /// can be done now.
    pub fn drain_doomed(&mut self) -> bool {
        let Some(log) = &mut self.log else {
            return false;
        };
        let mut budget = TURN_DEADLINES;
        while let Some(index) = self.doomed.last_mut() {
            match index.take_any() {
                Some(Located::At(place)) if is_request(place) => {}
                Some(Located::At(place)) => log.freed(Position(place)),
                Some(Located::Spilled(slot)) => {
                    log.load(BlockSlot(slot.0 as u32));
                    return false;
                }
                Some(Located::Gone) | None => {
                    free_slots(log, index);
                    self.doomed.pop();
                }
            }
            budget -= 1;
            if budget == 0 {
                return true;
            }
        }
        false
    }

    /// A dead letter that came from that queue is settled.
    pub fn dead_settled(&mut self, origin: QueueUid) {
        if far(origin).is_some() {
            return self.outbox.count_dead(origin, -1);
        }
        if let Some(key) = self.find_uid(origin) {
            let queue = self.queue_mut(key);
            queue.dead = queue.dead.saturating_sub(1);
        }
    }
}
