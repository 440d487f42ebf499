//! What comes from other shards.

use super::super::super::Now;
use super::super::super::conn::Need;
use super::super::publish::{begin_many, store};
use super::super::{Engine, key_hash};
use super::{BY_ROUTE, Carried, IN_BYTES_MAX, far_origin};
use crate::broker::arena::REQUEST;
use crate::broker::command::Body;
use crate::broker::id::Level;
use crate::broker::queue::Published;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{
    Entry, PRIORITY_BYTES, PUBLISH_HEAD_BYTES_MAX, SectionKind, Sections, with_priority,
};

impl<S: Storage> Engine<S> {
    /// A message of another shard has come: it is taken in, once, or a `MOVE` is refused.
    pub fn take_in(&mut self, from: u32, carried: Carried, now: Now) {
        let seen = self.outbox.seen.entry(from).or_default();
        if seen.has(carried.seq) {
            self.outbox.arrived.push((Need::NOW, from, carried.seq));
            return;
        }
        if !self.outbox.waiting.is_empty() {
            // What goes together stays in its order.
            self.outbox.waiting.push((from, carried));
            return;
        }
        if *carried.target == *BY_ROUTE {
            return self.take_in_routed(from, carried, now);
        }
        let target = match self.find(&carried.target) {
            Some(target) => target,
            None => self.create(&carried.target, carried.settings.clone()),
        };
        if let Some(piece) = carried.moved
            && let Some(error) = self.refuses_piece(from, piece, target, carried.body.len() as u64)
        {
            self.outbox.pieces.refuse(from, piece, carried.seq, error);
            return;
        }
        let to = self.queue(target);
        let (level, pri) = (to.settings.durable, to.settings.pri);
        let is_request = carried.request_until_us.is_some();
        let sections = carried.sections.len() + PRIORITY_BYTES;
        let (bytes, entries) = match level {
            Level::None => (0, 0),
            _ if is_request => (0, 0),
            _ => (PUBLISH_HEAD_BYTES_MAX + sections + carried.body.len(), 1),
        };
        let Some(carried) = self.log_arrival(from, carried, bytes, entries) else {
            return;
        };
        let sections = with_priority(&carried.sections, pri);
        let body = Body::Owned(carried.body.clone());
        let queue = &mut self.queues[target.0 as usize];
        let place = match is_request {
            true => {
                let time_ms = now.us / 1000;
                queue.arena.push(time_ms, &sections, &body, &mut self.pool) | REQUEST
            }
            false => store(queue, &mut self.log, &mut self.pool, &sections, body, now),
        };
        let published = Published {
            place,
            size: carried.body.len() as u32,
            pri,
            due_us: 0,
            expires_us: carried.request_until_us,
            now_us: now.us,
        };
        let order = Sections(&sections).get(SectionKind::Key);
        let order = order.map(|order| key_hash(self.once_key, order));
        let id = self.queue(target).next_id();
        self.enter(target, &published, order);
        if carried.origin != 0 {
            let origin = far_origin(from, carried.origin);
            self.queue_mut(target).origins.insert(id, origin);
            self.outbox.count_dead(origin, 1);
        }
        match is_request {
            true => self.reveal_request(target, id),
            false => {
                self.published(target, level, level);
                self.show_when_stored(target);
            }
        }
        self.arm(target);
        let need = match level {
            _ if is_request => Need::NOW,
            Level::None => Need::NOW,
            _ => self.need(Level::Disk),
        };
        self.outbox.arrived.push((need, from, carried.seq));
    }

    /// What has come is to be stored in so many entries of the log, of so many bytes; with any, that it has come is logged
    /// before them. `None`: there is no room for that yet, and it waits.
    pub(super) fn log_arrival(
        &mut self,
        from: u32,
        carried: Carried,
        bytes: usize,
        entries: usize,
    ) -> Option<Carried> {
        if entries > 0
            && let Some(log) = &mut self.log
        {
            if begin_many(log, bytes + IN_BYTES_MAX, entries).is_err() {
                self.outbox.waiting.push((from, carried));
                return None;
            }
            if carried.is_logged && !planted(Fault::ArrivalNotLogged) {
                log.append(&Entry::In {
                    shard: from,
                    seq: carried.seq,
                    below: carried.below,
                    origin: carried.origin,
                });
            }
        }
        if carried.is_logged {
            let seen = self.outbox.seen.entry(from).or_default();
            seen.add(carried.seq, carried.below);
        }
        Some(carried)
    }

    /// Tries again what the log had no room for.
    pub fn take_in_again(&mut self, now: Now) {
        for (from, carried) in std::mem::take(&mut self.outbox.waiting) {
            self.take_in(from, carried, now);
        }
    }

    /// What is on stable storage of what came: (the shard it came from, its number there).
    pub fn poll_arrived(&mut self) -> Vec<(u32, u64)> {
        if self.outbox.arrived.is_empty() {
            return Vec::new();
        }
        let arrived = std::mem::take(&mut self.outbox.arrived);
        let (done, left): (Vec<_>, Vec<_>) = arrived
            .into_iter()
            .partition(|(need, ..)| self.reached(*need));
        self.outbox.arrived = left;
        done.into_iter().map(|(_, from, seq)| (from, seq)).collect()
    }
}
