//! Settling: acks, leases that end otherwise, and the move to another queue.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::Now;
use super::super::trace;
use super::{Damaged, Engine, Moving, free_slots, key_hash};
use crate::broker::arena::{REQUEST, is_request};
use crate::broker::command::Body;
use crate::broker::id::{Handle, Level, MessageId, QueueUid};
use crate::broker::lease::Lease;
use crate::broker::queue::{Published, QueueKey};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{
    Entry, Message, Position, Run, SectionKind, Sections, SettleReason, TransferReason,
    with_priority,
};

/// A message that leaves its queue for the dead-letter queue.
#[derive(Clone, Debug)]
pub struct Death {
    /// Which message.
    pub id: MessageId,
    /// Where it lies.
    pub place: u64,
    /// Size of the body if known, bytes.
    pub size: Option<u32>,
    /// Its priority.
    pub pri: u8,
    /// Why.
    pub reason: TransferReason,
    /// How often it was tried.
    pub tries: u16,
    /// What the consumer said.
    pub why: Vec<u8>,
}

/// How a lease ended without an ack.
#[derive(Clone, Debug)]
pub enum Return {
    /// The consumer gave it back, with its own delay if it said one.
    Nacked {
        /// Microseconds; the queue's backoff when absent.
        delay_us: Option<u64>,
    },
    /// Its deadline passed or its connection closed: ready at once, the try counts.
    Lost,
    /// Its connection closed while the delivery waited for the log behind an earlier answer: nobody
    /// can have seen it, so the try doesn't count.
    Unsent,
}

impl<S: Storage> Engine<S> {
    /// Messages on their way to another queue.
    pub fn moving(&self) -> impl Iterator<Item = (QueueKey, &Death)> {
        let same = |moving: &&Moving| self.is_same(moving.queue, moving.uid);
        self.moving
            .iter()
            .filter(same)
            .map(|moving| (moving.queue, &moving.death))
    }

    /// A compaction has copied messages (queue, id, old and new place): those on their way to another
    /// queue, which wait to be read from the disk, are given back at their new places.
    pub fn relocate_moving(&mut self, moves: &[(QueueUid, MessageId, Position, Position)]) {
        if self.moving.is_empty() {
            return;
        }
        let new = moves.iter().map(|(uid, id, _, new)| ((*uid, *id), new.0));
        let new: BTreeMap<_, _> = new.collect();
        let mut moving = std::mem::take(&mut self.moving);
        for Moving { queue, uid, death } in &mut moving {
            if self.is_same(*queue, *uid) {
                let store = self.queue(self.store_of(*queue)).uid;
                if let Some(place) = new.get(&(store, death.id)) {
                    death.place = *place;
                }
            }
        }
        self.moving = moving;
    }

    /// The lease that a handle names, if it is still on.
    #[inline]
    pub fn lease(&self, handle: Handle) -> Option<&Lease> {
        let lease = self.leases.get(handle.serial)?;
        (lease.id == handle.id && handle.incarnation == self.incarnation).then_some(lease)
    }

    /// Settles a leased message; the lease and the level at which that is safe, or `None` if the handle
    /// is stale.
    #[inline(always)]
    pub fn ack(&mut self, handle: Handle) -> Option<(Lease, Level)> {
        let mut serial = handle.serial;
        if planted(Fault::StaleAckWins) && self.lease(handle).is_none() {
            serial = self
                .leases
                .iter()
                .find(|lease| lease.id == handle.id)?
                .serial;
        } else {
            self.lease(handle)?;
        }
        let lease = self.leases.end(serial)?;
        self.times.acked(serial);
        let queue = &mut self.queues[lease.queue.0 as usize];
        queue.counters.acked += 1;
        let level = match is_request(lease.place) {
            true => Level::None,
            false => queue.settings.durable,
        };
        let size = Some(lease.size);
        queue.settle_leased(lease.id, size);
        let reason = Some(SettleReason::Acked);
        self.settled(lease.queue, lease.id, lease.place, size, reason);
        Some((lease, level))
    }

    /// Settles a message that was taken.
    #[inline]
    pub fn settle_taken(
        &mut self,
        key: QueueKey,
        id: MessageId,
        place: u64,
        size: Option<u32>,
        reason: SettleReason,
    ) {
        self.queues[key.0 as usize].settle_leased(id, size);
        self.settled(key, id, place, size, Some(reason));
    }

    /// Settles a ready, locked or delayed message.
    pub fn settle_waiting(
        &mut self,
        key: QueueKey,
        id: MessageId,
        place: u64,
        size: Option<u32>,
        reason: SettleReason,
    ) -> bool {
        if !self.queue_mut(key).settle_waiting(id, size) {
            return false;
        }
        self.settled(key, id, place, size, Some(reason));
        true
    }

    /// Gives back a settled message's storage, and logs that it is settled if a reason is given.
    #[inline]
    fn settled(
        &mut self,
        key: QueueKey,
        id: MessageId,
        place: u64,
        size: Option<u32>,
        reason: Option<SettleReason>,
    ) {
        let queue = &mut self.queues[key.0 as usize];
        if queue.is_shared() {
            return self.settled_by_one(key, id, place, size, reason);
        }
        let wakes = queue.wakes_when_settled();
        if queue.settings.durable == Level::None || is_request(place) {
            queue.arena.free(place, &mut self.pool);
        } else {
            let log = self.log.as_mut().expect("a logged queue has a log");
            log.freed(Position(place));
            let forgotten = planted(Fault::AckNotLogged)
                && reason == Some(SettleReason::Acked)
                && id.is_multiple_of(4);
            if let Some(reason) = reason.filter(|_| !forgotten) {
                log.settle(queue.uid, 0, reason, id);
                self.sync_wanted |= queue.settings.durable >= Level::Disk;
            }
            free_slots(log, &mut queue.index);
        }
        if !queue.origins.is_empty()
            && let Some(origin) = queue.origins.remove(&id)
        {
            self.dead_settled(origin);
        }
        if wakes {
            self.schedule(key);
        }
    }

    /// A lease ended without an ack.
    pub fn give_back(&mut self, lease: &Lease, how: Return, why: &[u8], now: Now) {
        let key = lease.queue;
        let queue = &mut self.queues[key.0 as usize];
        let failed = match how {
            Return::Unsent => lease.tries - 1,
            Return::Nacked { .. } | Return::Lost => lease.tries,
        };
        queue.counters.nacked += u64::from(matches!(how, Return::Nacked { .. }));
        let death = |reason| Death {
            id: lease.id,
            place: lease.place,
            size: Some(lease.size),
            pri: lease.pri,
            reason,
            tries: failed,
            why: why.to_vec(),
        };
        if queue.is_overdue(lease.id) {
            queue.counters.expired += 1;
            if queue.settings.deadon.ttl && queue.buries() {
                self.bury(key, death(TransferReason::Expired), now);
            } else {
                self.settle_taken(
                    key,
                    lease.id,
                    lease.place,
                    Some(lease.size),
                    SettleReason::Expired,
                );
            }
            return;
        }
        let most = queue.settings.maxdeliver;
        let unsent = matches!(how, Return::Unsent);
        let spent = most > 0 && u32::from(failed) >= most && !unsent;
        if spent && queue.settings.deadon.tries && queue.buries() {
            self.bury(key, death(TransferReason::Tries), now);
            return;
        }
        if spent && queue.drops_spent() {
            let size = Some(lease.size);
            self.settle_taken(key, lease.id, lease.place, size, SettleReason::Dead);
            return;
        }
        let delay_us = match how {
            Return::Nacked { delay_us } => {
                delay_us.unwrap_or_else(|| queue.settings.backoff.after(u32::from(failed)))
            }
            Return::Lost | Return::Unsent => 0,
        };
        let due_us = if delay_us == 0 {
            0
        } else {
            now.us.saturating_add(delay_us)
        };
        if !planted(Fault::TriesForgotten) {
            queue.set_failed(lease.id, failed);
        }
        let due_us = match planted(Fault::NackDelayIgnored) {
            true => 0,
            false => due_us,
        };
        let pri = match planted(Fault::OrderLostOnReturn) {
            true => lease.pri.saturating_add(1),
            false => lease.pri,
        };
        queue.put_back(lease.id, pri, due_us);
        if queue.settings.durable != Level::None && !unsent && !is_request(lease.place) {
            let log = self.log.as_mut().expect("a logged queue has a log");
            log.append(&Entry::Release {
                queue: queue.uid,
                group: 0,
                run: Run {
                    first: lease.id,
                    count: 1,
                },
                tries: u32::from(failed),
                not_before_us: due_us,
            });
        }
        if planted(Fault::KeyFreeDuringRetry) {
            queue.keep_back(lease.id);
        }
        if due_us == 0 || queue.wakes_when_settled() {
            self.schedule(key);
        }
        if due_us != 0 {
            self.arm(key);
        }
    }

    /// A consumer says that a message is dead.
    pub fn reject(&mut self, lease: &Lease, reason: TransferReason, why: &[u8], now: Now) {
        self.queue_mut(lease.queue).counters.nacked += 1;
        let death = Death {
            id: lease.id,
            place: lease.place,
            size: Some(lease.size),
            pri: lease.pri,
            reason,
            tries: lease.tries,
            why: why.to_vec(),
        };
        self.bury(lease.queue, death, now);
    }

    /// Moves a ready, locked or delayed message to the dead-letter queue; false if it is in another state.
    pub(super) fn bury_waiting(
        &mut self,
        key: QueueKey,
        id: MessageId,
        place: u64,
        size: Option<u32>,
        reason: TransferReason,
        now: Now,
    ) -> bool {
        let Some(pri) = self.queue_mut(key).take_waiting(id) else {
            return false;
        };
        let death = Death {
            id,
            place,
            size,
            pri,
            reason,
            tries: self.queue(key).next_try(id) - 1,
            why: Vec::new(),
        };
        self.bury(key, death, now);
        true
    }

    /// What is to be buried waits for [`Engine::bury_again`].
    fn bury_later(&mut self, key: QueueKey, death: Death) {
        let uid = self.queue(key).uid;
        self.moving.push(Moving {
            queue: key,
            uid,
            death,
        });
    }

    /// Moves a taken message to the dead-letter queue, in one log entry. A request is nothing to keep: it is
    /// settled.
    pub fn bury(&mut self, key: QueueKey, death: Death, now: Now) {
        if is_request(death.place) {
            let Death {
                id, place, size, ..
            } = death;
            self.settle_taken(key, id, place, size, SettleReason::Dead);
            return;
        }
        if !self.queue(key).buries() {
            let pri = death.pri;
            self.queue_mut(key).put_back(death.id, pri, 0);
            self.schedule(key);
            return;
        }
        let at_hand = match self.at_hand.is_empty() {
            true => None,
            false => {
                let uid = self.queue(self.store_of(key)).uid;
                self.at_hand.get(&(uid, death.id)).cloned()
            }
        };
        let found = match at_hand {
            Some(message) => Some(Ok(message)),
            None => self.stored(key, death.place).map(|stored| {
                stored.map(|message| {
                    let body = Bytes::copy_from_slice(message.body.as_slice());
                    (message.sections.to_vec(), body)
                })
            }),
        };
        let (sections, body) = match found {
            Some(Ok(message)) => message,
            Some(Err(Damaged)) => {
                let queue = self.queue_mut(key);
                queue.counters.damaged += 1;
                queue.keep_back(death.id);
                self.schedule(key);
                return;
            }
            None => {
                self.fetch(death.place);
                return self.bury_later(key, death);
            }
        };
        if let Some(route) = self.queue(key).dead_route().cloned() {
            if self.shards.0 > 1 && !self.has_routes {
                // Where that leads is not known yet.
                return self.bury_later(key, death);
            }
            return self.bury_by_route(key, &death, &route, &sections, body, now);
        }
        let name = self.queue(key).dead_name();
        let name = name.expect("it buries, and by no route");
        if let Some(to) = self.elsewhere(&name) {
            self.queue_mut(key).counters.dead += 1;
            return self.send_away(key, death, name, to, 0);
        }
        let target = match self.find(&name) {
            Some(target) => target,
            None => {
                let settings = self.queue(key).settings.for_dead_letters(&self.defaults);
                self.create(&name, settings)
            }
        };
        let queue = self.queue_mut(key);
        queue.counters.dead += 1;
        queue.dead += 1;
        let origin = queue.uid;
        let note = trace::Note {
            queue: &queue.name.clone(),
            id: death.id,
            reason: death.reason,
            tries: death.tries,
            why: &death.why,
        };
        let sections = trace::add(Sections(&sections), &note);
        let id = self.transfer(
            key,
            death.id,
            death.place,
            death.size,
            death.reason,
            target,
            &sections,
            body,
            now,
        );
        self.queue_mut(target).origins.insert(id, origin);
    }

    /// Settles a taken message at its queue and publishes it anew at another, in one log entry when both are
    /// logged. A request stays one, with its deadline. Returns its id there.
    #[allow(clippy::too_many_arguments)]
    pub fn transfer(
        &mut self,
        key: QueueKey,
        id: MessageId,
        place: u64,
        size: Option<u32>,
        reason: TransferReason,
        target: QueueKey,
        sections: &[u8],
        body: Bytes,
        now: Now,
    ) -> MessageId {
        let (source_uid, source_level) = (self.queue(key).uid, self.queue(key).settings.durable);
        let to = self.queue(target);
        let (target_uid, target_id, level) = (to.uid, to.next_id(), to.settings.durable);
        let sections = &with_priority(sections, to.settings.pri)[..];
        let message = Message {
            time_ms: now.us / 1000,
            sections,
            body: Body::Owned(body.clone()),
        };
        let request = is_request(place);
        let expires_us = match request {
            true => self.queue(key).expiry.own_us(id),
            false => None,
        };
        let both = source_level != Level::None && level != Level::None && !request;
        let unsettled = both && planted(Fault::DeadLetterNotSettled);
        let both = both && !unsettled;
        let new_place = if level == Level::None || request {
            let to = &mut self.queues[target.0 as usize];
            let place = to
                .arena
                .push(message.time_ms, sections, &message.body, &mut self.pool);
            place | if request { REQUEST } else { 0 }
        } else {
            let log = self.log.as_mut().expect("a logged queue has a log");
            if both {
                let entry = Entry::Transfer {
                    source: source_uid,
                    source_id: id,
                    group: 0,
                    reason,
                    target: target_uid,
                    target_id,
                    message,
                };
                log.append(&entry).0
            } else {
                log.publish(target_uid, target_id, &message).0
            }
        };
        self.queues[key.0 as usize].settle_leased(id, size);
        let settle_reason = match reason {
            TransferReason::Expired => SettleReason::Expired,
            TransferReason::DroppedOld => SettleReason::DroppedOld,
            TransferReason::Tries | TransferReason::Rejected | TransferReason::Moved => {
                SettleReason::Dead
            }
        };
        self.settled(
            key,
            id,
            place,
            size,
            (!both && !unsettled).then_some(settle_reason),
        );
        let settings = &self.queue(target).settings;
        let published = Published {
            place: new_place,
            size: body.len() as u32,
            pri: settings.pri,
            due_us: 0,
            expires_us,
            now_us: now.us,
        };
        let order = Sections(sections).get(SectionKind::Key);
        let order = order.map(|order| key_hash(self.once_key, order));
        self.enter(target, &published, order);
        if request {
            self.reveal_request(target, target_id);
        } else {
            self.sync_wanted |= source_level.max(level) >= Level::Disk;
            self.published(target, level, level);
            let need = self.visible_need(target);
            self.moved.add(need);
        }
        self.arm(target);
        target_id
    }
}
