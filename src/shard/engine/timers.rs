//! Time: delayed messages become ready, old ones expire.

use std::cmp::Reverse;

use super::super::Now;
use super::{Engine, TURN_DEADLINES};
use crate::broker::id::MessageId;
use crate::broker::queue::QueueKey;
use crate::log::disk::Storage;
use crate::log::{SettleReason, TransferReason};

impl<S: Storage> Engine<S> {
    /// Sees to it that the queue is looked at when something of it is due.
    pub fn arm(&mut self, key: QueueKey) {
        let queue = &mut self.queues[key.0 as usize];
        if let Some(next_us) = queue.next_timer_us()
            && next_us < queue.timer_us
        {
            queue.timer_us = next_us;
            self.timers.push(Reverse((next_us, key, queue.uid)));
        }
    }

    /// When the next queue is due, microseconds.
    pub fn next_timer_us(&self) -> Option<u64> {
        let timer_us = self.timers.peek().map(|Reverse((at_us, ..))| *at_us);
        timer_us.into_iter().chain(self.schedules.next_us()).min()
    }

    /// Wakes delayed messages, expires old ones, and publishes those of schedules.
    pub fn handle_timers(&mut self, now: Now) {
        if !self.schedules.is_empty() {
            self.fire_due(now);
        }
        while let Some(Reverse((at_us, key, uid))) = self.timers.peek().copied()
            && at_us <= now.us
        {
            self.timers.pop();
            if !self.is_same(key, uid) || self.queue(key).timer_us != at_us {
                continue;
            }
            let queue = self.queue_mut(key);
            queue.timer_us = u64::MAX;
            if queue.wake_due(now.us, TURN_DEADLINES) > 0 {
                self.schedule(key);
            }
            self.expire_due(key, now);
            if self.queue(key).sharing.is_some() {
                // What is retained has aged.
                self.mark_to_free(key);
            }
            self.arm(key);
            if self
                .timers
                .peek()
                .is_some_and(|Reverse((_, next, _))| *next == key)
            {
                // More of the same queue is due than one turn takes on: the others go first.
                break;
            }
        }
    }

    /// Expires what has outlived its time in one queue.
    pub(super) fn expire_due(&mut self, key: QueueKey, now: Now) {
        let mut budget = TURN_DEADLINES;
        while budget > 0 {
            let queue = &mut self.queues[key.0 as usize];
            let Some((from, to)) = queue.expiry.pop(queue.settings.ttl_us, now.us) else {
                return;
            };
            let mut id = from;
            while let Some(found) = self.queue(key).next_unsettled(id)
                && found <= to
            {
                budget = budget.saturating_sub(1);
                id = found + 1;
                // A run passes over those between its ids that have a deadline of their own.
                if !self.queue(key).expiry.has_own(found) {
                    self.expire(key, found, now);
                }
                if budget == 0 && found < to {
                    self.queue_mut(key).expiry.put_back(found, to);
                    break;
                }
            }
        }
    }

    /// When a delayed message that was never delivered becomes ready, microseconds; 0 if it was.
    fn first_delay_us(&self, key: QueueKey, id: MessageId) -> u64 {
        let queue = self.queue(key);
        match queue.next_try(id) {
            1 => queue.due_us(id),
            _ => 0,
        }
    }

    /// One message has outlived its time.
    fn expire(&mut self, key: QueueKey, id: MessageId, now: Now) {
        use crate::broker::queue::State;
        let again_us = now.us + 10_000;
        match self.queue(key).state(id) {
            State::Gone => {}
            State::Leased => self.queue_mut(key).set_overdue(id),
            State::Hidden => self.queue_mut(key).set_overdue(id),
            State::Delayed if self.first_delay_us(key, id) > now.us => {
                // The queue's time to live began after its publish: it counts from the delay's end.
                let queue = self.queue_mut(key);
                let ttl_us = queue.settings.ttl_us.unwrap_or(0);
                let due_us = queue.due_us(id);
                queue.expiry.own(id, due_us.saturating_add(ttl_us));
            }
            State::Ready | State::Locked | State::Delayed => {
                let Some((place, size)) = self.locate(key, id) else {
                    self.queue_mut(key).expiry.own(id, again_us);
                    return;
                };
                let queue = self.queue_mut(key);
                queue.counters.expired += 1;
                if queue.settings.deadon.ttl && queue.buries() {
                    let why = TransferReason::Expired;
                    let is_buried = self.bury_waiting(key, id, place, size, why, now);
                    assert!(is_buried, "it is ready or delayed");
                } else {
                    self.settle_waiting(key, id, place, size, SettleReason::Expired);
                }
            }
        }
    }
}
