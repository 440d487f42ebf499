//! What is done now and then: signs of life, publishers that wait, queues that nobody uses any more; and the
//! names that the broker gives.

use std::collections::{BTreeMap, BTreeSet};

use super::Phase;
use super::part::{UNUSED, WANT};
use crate::broker::exchanges::FLAG_AUTO_DELETE;
use crate::broker::id::QueueUid;
use crate::broker::queue::{QueueKey, WaiterKey};
use crate::broker::reply::ErrorCode;
use crate::log::disk::Storage;
use crate::protocol::amqp::encode;
use crate::protocol::amqp::method::id;
use crate::shard::conn::{Blocked, Life};
use crate::shard::door::Session;
use crate::shard::engine::once_hash;
use crate::shard::{ConnKey, Now, Shard};

/// A publisher that waits asks again after so long, microseconds.
const RETRY_US: u64 = 20_000;

/// What the shard keeps for all connections of this protocol.
#[derive(Debug)]
pub struct Upkeep {
    seed: u64,
    /// Names and secrets given so far.
    given: u64,
    /// When there is something to do, microseconds; `u64::MAX` = when something happens.
    due_us: u64,
    /// Slots of the connections.
    members: BTreeSet<usize>,
    /// When the next sign of life is due, or missed; `u64::MAX` = never.
    beats_due_us: u64,
    /// Publishers that wait for a queue.
    waiting: Vec<ConnKey>,
    retry_us: u64,
    /// Queues whose last consumer has gone.
    unused: Vec<(QueueKey, QueueUid)>,
    /// When queues that go unless they are used were used last.
    used: BTreeMap<QueueUid, u64>,
    expires_due_us: u64,
    /// Channels of parts that were allowed more deliveries in this turn.
    allowed: Vec<(ConnKey, u16)>,
    /// Consumers that have their queue for themselves.
    pub(super) exclusive_consumers: BTreeMap<QueueUid, WaiterKey>,
}

impl Upkeep {
    /// `random` seeds what a peer must not foresee.
    pub fn new(random: u64) -> Upkeep {
        Upkeep {
            seed: random,
            given: 0,
            due_us: u64::MAX,
            members: BTreeSet::new(),
            beats_due_us: u64::MAX,
            waiting: Vec::new(),
            retry_us: u64::MAX,
            unused: Vec::new(),
            used: BTreeMap::new(),
            expires_due_us: u64::MAX,
            allowed: Vec::new(),
            exclusive_consumers: BTreeMap::new(),
        }
    }

    pub(super) fn members(&self) -> Vec<usize> {
        self.members.iter().copied().collect()
    }

    /// A connection speaks this protocol from now on.
    pub fn joined(&mut self, slot: usize) {
        self.members.insert(slot);
    }

    fn next_random(&mut self) -> u128 {
        self.given += 1;
        once_hash(self.seed, &self.given.to_le_bytes())
    }

    /// A number that nobody guesses.
    pub(super) fn next_secret(&mut self) -> u64 {
        self.next_random() as u64
    }

    /// A name that nobody has.
    pub(super) fn next_name(&mut self, prefix: &str) -> Vec<u8> {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut name = prefix.as_bytes().to_vec();
        let mut random = self.next_random();
        for _ in 0..22 {
            name.push(LETTERS[(random & 63) as usize]);
            random >>= 6;
        }
        name
    }

    /// A queue is used now.
    pub(super) fn used(&mut self, queue: QueueUid, now: Now) {
        if let Some(at_us) = self.used.get_mut(&queue) {
            *at_us = now.us;
        }
    }

    /// A queue goes when it was not used for a while.
    pub(super) fn watch(&mut self, queue: QueueUid, expires_us: u64, now: Now) {
        self.used.insert(queue, now.us);
        let due_us = now.us.saturating_add(expires_us);
        self.expires_due_us = self.expires_due_us.min(due_us);
        self.plan();
    }

    /// A subscription has ended.
    pub fn consumer_gone(&mut self, queue: (QueueKey, QueueUid), waiter: WaiterKey, is_last: bool) {
        let (key, uid) = queue;
        if self.exclusive_consumers.get(&uid) == Some(&waiter) {
            self.exclusive_consumers.remove(&uid);
        }
        if is_last {
            self.unused.push((key, uid));
            self.plan();
        }
    }

    /// What is due, or when, has changed.
    fn plan(&mut self) {
        self.due_us = match self.unused.is_empty() {
            false => 0,
            true => self
                .beats_due_us
                .min(self.retry_us)
                .min(self.expires_due_us),
        };
    }

    /// When there is something to do, microseconds; `None` = when something happens.
    #[inline]
    pub fn next_us(&self) -> Option<u64> {
        (self.due_us != u64::MAX).then_some(self.due_us)
    }
}

impl<S: Storage> Shard<S> {
    /// Does what is due.
    #[inline]
    pub(in crate::shard) fn keep_up_amqp(&mut self, now: Now) {
        if self.amqp.due_us <= now.us {
            self.keep_up(now);
        }
    }

    #[cold]
    fn keep_up(&mut self, now: Now) {
        self.drop_unused(now);
        if self.amqp.retry_us <= now.us {
            self.amqp.retry_us = u64::MAX;
            for key in std::mem::take(&mut self.amqp.waiting) {
                self.unblock_cold(key);
            }
        }
        if self.amqp.beats_due_us <= now.us {
            self.beat(now);
        }
        if self.amqp.expires_due_us <= now.us {
            self.expire_queues(now);
        }
        self.amqp.plan();
    }

    /// After a start: queues that go unless they are used are watched.
    pub(in crate::shard) fn watch_expiring(&mut self, now: Now) {
        for (_, queue) in &self.engine.queues {
            let expires_us = queue.declared.as_ref().and_then(|it| it.expires_us);
            if let Some(expires_us) = expires_us {
                self.amqp.watch(queue.uid, expires_us, now);
            }
        }
    }

    /// Queues go that were only there for their consumers.
    pub(super) fn drop_unused(&mut self, now: Now) {
        for (key, uid) in std::mem::take(&mut self.amqp.unused) {
            if !self.engine.is_same(key, uid) {
                continue;
            }
            self.amqp.used(uid, now);
            let queue = self.engine.queue(key);
            let is_over = queue.consumers == 0
                && queue
                    .declared
                    .as_ref()
                    .is_some_and(|declared| declared.is(FLAG_AUTO_DELETE));
            if is_over {
                self.drop_queue(key);
            }
        }
    }

    fn expire_queues(&mut self, now: Now) {
        self.amqp.expires_due_us = u64::MAX;
        let watched: Vec<_> = self.amqp.used.iter().map(|(uid, at)| (*uid, *at)).collect();
        for (uid, used_us) in watched {
            let key = self.engine.find_uid(uid);
            let expires_us = key.and_then(|key| {
                let declared = self.engine.queue(key).declared.as_ref()?;
                declared.expires_us
            });
            let (Some(key), Some(expires_us)) = (key, expires_us) else {
                self.amqp.used.remove(&uid);
                continue;
            };
            let is_consumed = self.engine.queue(key).consumers > 0;
            let since_us = if is_consumed { now.us } else { used_us };
            let due_us = since_us.saturating_add(expires_us);
            if due_us <= now.us {
                self.amqp.used.remove(&uid);
                self.drop_queue(key);
                continue;
            }
            self.amqp.expires_due_us = self.amqp.expires_due_us.min(due_us);
        }
    }

    /// An unconfirmed publish waits, and everything behind it.
    pub(super) fn block_publisher(&mut self, slot: usize, why: ErrorCode, now: Now) {
        let key = self.key(slot);
        self.conns[slot].blocked = Blocked::Cold;
        self.amqp.waiting.push(key);
        let due_us = now.us.saturating_add(RETRY_US);
        self.amqp.retry_us = self.amqp.retry_us.min(due_us);
        self.amqp.plan();
        let amqp = self.amqp(slot);
        if amqp.is_blocked {
            return;
        }
        amqp.is_blocked = true;
        if amqp.understands.blocked {
            let reason = match why {
                ErrorCode::Full => "a queue is full",
                ErrorCode::Mem => "the memory budget is used up",
                ErrorCode::Disk => "the disk is full",
                ErrorCode::Paused => "a queue is paused",
                _ => "a queue takes nothing at the moment",
            };
            self.say_on(slot, 0, id::CONNECTION_BLOCKED)
                .shortstr(reason.as_bytes())
                .end();
            self.mark_dirty(slot);
        }
    }

    /// A client that has ended its side has waited long enough: nobody may be there any more, and the queue may
    /// stay full for ever.
    pub(super) fn gives_up(&mut self, slot: usize, now: Now) -> bool {
        if self.conns[slot].life != Life::HalfClosed {
            return false;
        }
        let until_us = now.us.saturating_add(self.limits.stall_us);
        let amqp = self.amqp(slot);
        if now.us < *amqp.gives_up_us.get_or_insert(until_us) {
            return false;
        }
        let peer = &self.conns[slot].peer;
        ::log::warn!("{peer} has gone, and what it published last found no room and is dropped");
        true
    }

    /// A publisher that has waited goes on.
    pub(super) fn unblock_publisher(&mut self, slot: usize) {
        let amqp = self.amqp(slot);
        amqp.is_blocked = false;
        amqp.gives_up_us = None;
        if amqp.understands.blocked {
            self.say_on(slot, 0, id::CONNECTION_UNBLOCKED).end();
            self.mark_dirty(slot);
        }
    }

    /// Signs of life are sent and expected from now on.
    pub(super) fn begin_heartbeats(&mut self, slot: usize, now: Now) {
        let amqp = self.amqp(slot);
        if amqp.heartbeat_us == 0 {
            return;
        }
        amqp.beat_due_us = now.us + amqp.heartbeat_us / 2;
        let due_us = amqp.beat_due_us;
        self.amqp.beats_due_us = self.amqp.beats_due_us.min(due_us);
        self.amqp.plan();
    }

    /// Sends signs of life where nothing else was sent, and drops those who give none.
    fn beat(&mut self, now: Now) {
        self.amqp.beats_due_us = u64::MAX;
        for slot in self.amqp.members() {
            let conn = &mut self.conns[slot];
            let is_read = conn.blocked == Blocked::No && !conn.read_wanted;
            let heard_us = conn.heard_us;
            let Session::Amqp(amqp) = &mut conn.session else {
                continue;
            };
            if amqp.heartbeat_us == 0 {
                continue;
            }
            if heard_us.saturating_add(2 * amqp.heartbeat_us) <= now.us && is_read {
                ::log::debug!("{} gave no sign of life", conn.peer);
                let key = self.key(slot);
                self.remove(slot, now);
                self.closing.push_back(key);
                continue;
            }
            if amqp.beat_due_us <= now.us {
                let is_silent = amqp.beat_end == conn.out.end();
                if is_silent && amqp.phase != Phase::Closed && conn.out.is_empty() {
                    encode::heartbeat(conn.out.writer(&mut self.pool));
                }
                amqp.beat_end = conn.out.end();
                amqp.beat_due_us = now.us + amqp.heartbeat_us / 2;
            }
            let due_us = amqp.beat_due_us;
            self.amqp.beats_due_us = self.amqp.beats_due_us.min(due_us);
            self.mark_dirty(slot);
        }
    }

    // --- Parts of channels that are limited as a whole ---

    /// A part of a channel is limited from now on, or is not any more.
    pub(super) fn limit_part(&mut self, slot: usize, number: u16, is_limited: bool) {
        if let Some(channel) = self.amqp(slot).channel(number) {
            channel.allowed = is_limited.then_some(0);
            channel.has_asked = false;
            self.line_up_channel(slot, number);
        }
    }

    /// A part of a channel may make so many more deliveries in this turn.
    pub(super) fn allow_part(&mut self, slot: usize, number: u16, count: u32) {
        let key = self.key(slot);
        if let Some(channel) = self.amqp(slot).channel(number) {
            channel.allowed = channel.allowed.map(|left| left.saturating_add(count));
            channel.has_asked = false;
            self.amqp.allowed.push((key, number));
            self.line_up_channel(slot, number);
        }
    }

    /// A part of a channel has messages for a consumer and may not deliver them: it asks, once.
    pub(in crate::shard) fn ask_for_more(&mut self, slot: usize, waiter: WaiterKey) {
        let subscription = self.waiters.subscription(waiter);
        let tag = subscription.and_then(|subscription| super::split_tag(&subscription.tag));
        let Some(number) = tag.map(|(number, _)| number) else {
            return;
        };
        let Some(amqp) = self.conns[slot].amqp() else {
            return;
        };
        if let Some(channel) = amqp.channel(number)
            && channel.allowed == Some(0)
            && !std::mem::replace(&mut channel.has_asked, true)
        {
            self.say_on(slot, number, WANT).end();
            self.mark_dirty(slot);
        }
    }

    /// At the end of a turn: deliveries that were allowed and that there was nothing for are given back.
    pub(in crate::shard) fn return_allowances(&mut self) {
        for (key, number) in std::mem::take(&mut self.amqp.allowed) {
            let Some(slot) = self.slot(key) else { continue };
            let Some(amqp) = self.conns[slot].amqp() else {
                continue;
            };
            if let Some(channel) = amqp.channel(number)
                && let Some(left) = channel.allowed.filter(|left| *left > 0)
            {
                channel.allowed = Some(0);
                self.say_on(slot, number, UNUSED).long(left).end();
                self.mark_dirty(slot);
            }
        }
    }

    /// A connection of this protocol goes.
    pub(in crate::shard) fn forget_amqp(&mut self, slot: usize) {
        if self.conns[slot].amqp().is_some() {
            self.amqp.members.remove(&slot);
            self.drop_exclusive(slot);
        }
    }

    /// The queues that a connection has for itself go.
    pub(super) fn drop_exclusive(&mut self, slot: usize) {
        for uid in std::mem::take(&mut self.amqp(slot).exclusive) {
            if let Some(key) = self.engine.find_uid(uid) {
                self.drop_queue(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_long_and_differ() {
        let mut upkeep = Upkeep::new(7);
        let names: BTreeSet<_> = (0..1000).map(|_| upkeep.next_name("amq.gen-")).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 30));
        assert_ne!(Upkeep::new(8).next_name("x"), Upkeep::new(7).next_name("x"));
    }
}
