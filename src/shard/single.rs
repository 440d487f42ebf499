//! `single=1`: of a queue's consumers one is active, the others stand by in the order they came.
//!
//! A consumer is a connection. The active one stays it while it has a subscription or a waiting pull on the queue, or holds
//! a lease of it that a pull gave. `UNSUB` gives it up at once. Who is active is decided when there is
//! something to hand out: the first in the queue's line of waiters.

use std::collections::BTreeMap;

use super::hand_out::Stopped;
use super::waiters::Waiter;
use super::{ConnKey, Now, Shard};
use crate::broker::id::QueueUid;
use crate::broker::queue::{QueueKey, WaiterKey};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;

/// The active consumers of queues with `single=1`; an entry counts for nothing when its queue or consumer is gone.
#[derive(Debug, Default)]
pub(super) struct Singles {
    active: BTreeMap<QueueKey, (QueueUid, ConnKey)>,
}

impl<S: Storage> Shard<S> {
    /// May this connection be given messages of the queue?
    #[cold]
    pub(super) fn may_consume(&mut self, queue: QueueKey, at: ConnKey) -> bool {
        if !self.engine.queue(queue).settings.single || planted(Fault::StandbyServed) {
            return true;
        }
        self.elect(queue, Some(at)) == Some(at)
    }

    /// The active consumer of a queue with `single=1`. If there is none, the first in line becomes it, or
    /// else the one who asks.
    fn elect(&mut self, queue: QueueKey, asker: Option<ConnKey>) -> Option<ConnKey> {
        let uid = self.engine.queue(queue).uid;
        if let Some((of, at)) = self.singles.active.get(&queue).copied()
            && of == uid
            && self.consumes(at, queue)
        {
            return Some(at);
        }
        let first = self.engine.queue(queue).waiters.front().copied();
        let next = first.and_then(|first| self.consumer(first)).or(asker);
        match next {
            Some(next) => self.singles.active.insert(queue, (uid, next)),
            None => self.singles.active.remove(&queue),
        };
        next
    }

    /// Whose wait or subscription it is.
    fn consumer(&self, waiter: WaiterKey) -> Option<ConnKey> {
        match self.waiters.slab.get(waiter.0 as usize)? {
            Waiter::Pull(pull) => Some(pull.conn),
            Waiter::Subscription(subscription) => Some(subscription.conn),
            Waiter::Watch(watch) => Some(watch.conn),
            Waiter::Across(_) => None,
        }
    }

    /// Has the connection a subscription, a waiting pull or a pull's lease of the queue?
    fn consumes(&self, at: ConnKey, queue: QueueKey) -> bool {
        let Some(slot) = self.slot(at) else {
            return false;
        };
        let conn = &self.conns[slot];
        let waits = conn.rare.waits.iter().any(|wait| {
            match self.waiters.slab.get(wait.waiter.0 as usize) {
                Some(Waiter::Pull(pull)) => pull.sources().any(|source| source == queue),
                Some(Waiter::Subscription(subscription)) => subscription.queue == queue,
                Some(Waiter::Across(_) | Waiter::Watch(_)) | None => false,
            }
        });
        let watches = conn.watches().iter();
        let watches = watches.filter_map(|key| self.waiters.slab.get(key.0 as usize));
        let mut watches = watches.filter_map(|waiter| match waiter {
            Waiter::Watch(watch) => Some(watch),
            _ => None,
        });
        let leases = &self.engine.leases;
        waits
            || watches.any(|watch| watch.sources.contains(&queue))
            || leases
                .of_holder(conn.holder)
                .filter_map(|serial| leases.get(serial))
                .any(|lease| lease.queue == queue)
    }

    /// A connection's subscription of the queue has ended: the next in line takes over.
    pub(super) fn step_aside(&mut self, queue: QueueKey, at: ConnKey) {
        if let Some((_, active)) = self.singles.active.get(&queue)
            && *active == at
        {
            self.singles.active.remove(&queue);
        }
    }

    /// Hands a queue's ready messages to its active consumer, if it waits for them.
    pub(super) fn dispatch_single(&mut self, key: QueueKey, now: Now) {
        loop {
            let queue = self.engine.queue(key);
            if queue.ready() == 0 || queue.settings.pause.output || !queue.exists {
                return;
            }
            let Some(active) = self.elect(key, None) else {
                return;
            };
            let waiters = &self.engine.queue(key).waiters;
            let own = waiters
                .iter()
                .copied()
                .find(|waiter| self.consumer(*waiter) == Some(active));
            let Some(waiter) = own else {
                return;
            };
            match self.serve(waiter, key, u32::MAX, now) {
                Stopped::Enough => {}
                Stopped::Cold | Stopped::Empty | Stopped::Passed => return,
            }
        }
    }
}
