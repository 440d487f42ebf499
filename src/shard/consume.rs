//! Consumers: pulls, waiting pulls and subscriptions, and who gets the next message.
//!
//! A queue keeps its waiting consumers in the order they came. A waiting pull leaves with its first
//! messages; a subscription goes to the back after each turn of its own and leaves only while it has no credit or its
//! connection's output is full. Those with a higher priority stand before all others.

use std::cmp::Reverse;

use super::conn::{Blocked, Life, Wait};
use super::door::{Session, Told};
use super::hand_out::{Stopped, hand_out};
use super::waiters::{COLD_PATIENCE_US, PullWaiter, Subscription, Taking, Terms, Waiter};
use super::{ConnKey, Now, Shard};
use crate::broker::command::PullOptions;
use crate::broker::lease::{HolderKey, Leases};
use crate::broker::queue::{QueueKey, WaiterKey};
use crate::broker::reply::Reply;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::protocol::text::encode;

impl<S: Storage> Shard<S> {
    /// Runs a pull: gives what is ready, or waits.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn pull(
        &mut self,
        at: ConnKey,
        tag: &[u8],
        sources: &[QueueKey],
        options: &PullOptions,
        taking: Taking<'_>,
        now: Now,
    ) {
        for key in sources {
            // Those who came before are served first.
            if !taking.has_turn && !self.engine.queue(*key).waiters.is_empty() {
                self.dispatch(*key, now);
            }
        }
        let slot = at.slot as usize;
        let terms = Terms::of_pull(options, taking, self.conns[slot].holder);
        let bytes_max = options.bytes_max.unwrap_or(u64::MAX).max(1);
        let given = self.give(
            slot,
            tag,
            sources.iter().copied(),
            &terms,
            taking.consumer,
            options.count,
            bytes_max,
            now,
        );
        let (given, cold) = match given {
            Ok((given, _)) => (given, false),
            Err(Cold) => (0, true),
        };
        if given > 0 || (options.wait_us == 0 && !cold) {
            self.end_pull(slot, tag, given);
            return;
        }
        if self.conns[slot].life == Life::HalfClosed && !cold {
            self.end_pull(slot, tag, 0);
            return;
        }
        let waiter = PullWaiter {
            conn: at,
            tag: tag.into(),
            first: sources[0],
            others: sources[1..].to_vec(),
            consumer: taking.consumer.map(Box::from),
            count: options.count,
            bytes_max,
            terms,
            deadline_us: now.us.saturating_add(options.wait_us),
            serial: self.waiters.next_serial(),
        };
        let key = self.waiters.add_pull(waiter);
        for source in sources {
            let queue = self.engine.queue_mut(*source);
            if !queue.waiters.contains(&key) {
                self.waiters.join(&mut queue.waiters, key);
            }
        }
        let conn = &mut self.conns[slot];
        conn.rare.make().waits.push(Wait {
            tag: tag.into(),
            waiter: key,
            subscription: false,
        });
        if tag.is_empty() {
            conn.blocked = Blocked::Pull(key);
        }
    }

    /// Gives what is ready of several sources, in order: how many messages, and bytes of their bodies. `Err` if nothing
    /// was given and a next message is on the disk. A consumer of streams gets at most so many of each source, as its
    /// consumer of that name; anybody else so many of all.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn give(
        &mut self,
        slot: usize,
        tag: &[u8],
        sources: impl Iterator<Item = QueueKey>,
        terms: &Terms,
        consumer: Option<&[u8]>,
        most: u32,
        bytes_max: u64,
        now: Now,
    ) -> Result<(u32, u64), Cold> {
        let (mut count, mut bytes, mut cold) = (0, 0, false);
        let mut holder = None;
        for key in sources {
            let wanted = match consumer {
                None => most - count,
                Some(_) => most,
            };
            if wanted == 0 || bytes >= bytes_max {
                break;
            }
            let mut own = *terms;
            if let Some(name) = consumer {
                if self.engine.queue(key).ready() == 0 {
                    continue;
                }
                own.holder = match holder {
                    Some(holder) if planted(Fault::StreamsOfOneConsumer) => holder,
                    _ => self.stream_consumer(key, name),
                };
                holder = Some(own.holder);
            }
            if self.engine.queue(key).settings.single && !self.may_consume(key, self.key(slot)) {
                continue;
            }
            let limit = self.limits.send_bytes_max;
            let given = hand_out(
                &mut self.engine,
                &mut self.conns[slot],
                &mut self.pool,
                key,
                &own,
                tag,
                wanted,
                bytes_max - bytes,
                limit,
                now,
            );
            count += given.count;
            bytes += given.bytes;
            cold |= given.stopped == Stopped::Cold;
        }
        if count == 0 && cold {
            Err(Cold)
        } else {
            Ok((count, bytes))
        }
    }

    /// Writes the `END` of a pull; its held leases outlive the connection once all of it is sent.
    pub(super) fn end_pull(&mut self, slot: usize, tag: &[u8], count: u32) {
        let conn = &mut self.conns[slot];
        let tag = (!tag.is_empty()).then_some(tag);
        let count = u64::from(count);
        let reply = Reply::End { count };
        if conn.session.is_text() {
            encode::reply(conn.out.writer(&mut self.pool), tag, &reply);
        } else {
            conn.tell(&mut self.pool, tag, Told::Reply(&reply));
        }
        self.end_holding(slot);
        self.mark_dirty(slot);
    }

    /// The leases that a pull has just held outlive the connection when all that was written so far is sent.
    pub(super) fn end_holding(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        let end = conn.out.end();
        let Some(rare) = conn.rare.any() else {
            return;
        };
        for (until, _) in rare
            .holding
            .iter_mut()
            .rev()
            .take_while(|(until, _)| *until == u64::MAX)
        {
            *until = end;
        }
    }

    /// Hands a queue's ready messages to those who wait for them.
    pub(super) fn dispatch(&mut self, key: QueueKey, now: Now) {
        if self.engine.queue(key).settings.single {
            return self.dispatch_single(key, now);
        }
        let mut passed = 0;
        loop {
            let queue = self.engine.queue(key);
            if queue.ready() == 0 || queue.settings.pause.output || !queue.exists {
                return;
            }
            let Some(waiter) = queue.waiters.front().copied() else {
                return;
            };
            let share = (queue.ready() / queue.waiters.len() as u64).clamp(1, 64) as u32;
            let alone = queue.waiters.len() == 1;
            let most = if alone { u32::MAX } else { share };
            match self.serve(waiter, key, most, now) {
                Stopped::Enough => passed = 0,
                Stopped::Cold | Stopped::Empty => return,
                Stopped::Passed => {
                    passed += 1;
                    if passed >= self.engine.queue(key).waiters.len() {
                        return;
                    }
                }
            }
        }
    }

    /// Hands ready messages to one who waits for them.
    #[inline]
    pub(super) fn serve(
        &mut self,
        waiter: WaiterKey,
        queue: QueueKey,
        most: u32,
        now: Now,
    ) -> Stopped {
        match &self.waiters.slab[waiter.0 as usize] {
            Waiter::Pull(_) => self.serve_pull(waiter, now),
            Waiter::Subscription(_) => self.serve_subscription(waiter, queue, most, now),
            Waiter::Watch(_) => self.serve_watch(waiter, queue, now),
            Waiter::Across(_) => unreachable!("it stands in no line"),
        }
    }

    fn serve_pull(&mut self, key: WaiterKey, now: Now) -> Stopped {
        let Waiter::Pull(waiter) = &self.waiters.slab[key.0 as usize] else {
            return Stopped::Enough;
        };
        let (slot, terms, count, bytes_max) = (
            waiter.conn.slot as usize,
            waiter.terms,
            waiter.count,
            waiter.bytes_max,
        );
        let (first, others) = (waiter.first, waiter.others.clone());
        let (tag, consumer) = (waiter.tag.clone(), waiter.consumer.clone());
        let sources = std::iter::once(first).chain(others);
        let consumer = consumer.as_deref();
        match self.give(slot, &tag, sources, &terms, consumer, count, bytes_max, now) {
            Err(Cold) => Stopped::Cold,
            Ok((0, _)) => Stopped::Empty,
            Ok((given, _)) => {
                self.finish_pull(key, given);
                Stopped::Enough
            }
        }
    }

    /// Ends a waiting pull with what it was given.
    pub(super) fn finish_pull(&mut self, key: WaiterKey, given: u32) {
        if let Some(Waiter::Across(across)) = self.waiters.slab.get(key.0 as usize) {
            let (slot, pull) = (across.conn.slot as usize, across.pull);
            return self.cancel_across(slot, pull);
        }
        let Some(Waiter::Pull(waiter)) = self.waiters.slab.try_remove(key.0 as usize) else {
            return;
        };
        self.waiters.pull_gone();
        for source in waiter.sources() {
            self.leave_line(source, key);
        }
        let slot = waiter.conn.slot as usize;
        self.end_pull(slot, &waiter.tag, given);
        let conn = &mut self.conns[slot];
        conn.rare.end_wait(key);
        if conn.blocked == Blocked::Pull(key) {
            conn.blocked = Blocked::No;
            self.resume(slot);
        }
    }

    /// The pulls of a connection that wait end with nothing.
    pub(super) fn end_pulls(&mut self, slot: usize) {
        for wait in self.conns[slot].rare.waits.clone() {
            if !wait.subscription {
                self.finish_pull(wait.waiter, 0);
            }
        }
    }

    /// Forgets a waiting pull whose connection is gone.
    pub(super) fn drop_pull(&mut self, key: WaiterKey) {
        let removed = self.waiters.slab.try_remove(key.0 as usize);
        self.waiters.pull_gone();
        if let Some(Waiter::Pull(waiter)) = removed {
            for source in waiter.sources() {
                self.leave_line(source, key);
            }
        }
    }

    pub(super) fn leave_line(&mut self, queue: QueueKey, key: WaiterKey) {
        let waiters = &mut self.engine.queue_mut(queue).waiters;
        if waiters.front() == Some(&key) {
            waiters.pop_front();
        } else if let Some(at) = waiters.iter().position(|waiter| *waiter == key) {
            waiters.remove(at);
        }
        if self.engine.queue(queue).settings.single {
            // It may have been the active one.
            self.engine.schedule(queue);
        }
        self.engine.drop_ghost(queue);
    }

    /// Ends the pulls that have waited long enough.
    pub(super) fn end_waits(&mut self, now: Now) {
        while let Some(key) = self.waiters.next_due(now.us) {
            self.end_wait(key, now);
        }
    }

    /// Ends a wait with `END 0`, unless a message for it is on its way from the disk.
    pub(super) fn end_wait(&mut self, key: WaiterKey, now: Now) {
        match self.waiters.slab.get(key.0 as usize) {
            Some(Waiter::Across(across)) => {
                let (slot, pull) = (across.conn.slot as usize, across.pull);
                return self.across_due(slot, pull, now);
            }
            Some(Waiter::Watch(_)) => return self.offer_due(key, now),
            _ => {}
        }
        let Some(Waiter::Pull(waiter)) = self.waiters.slab.get(key.0 as usize) else {
            return;
        };
        let at = waiter.conn;
        let sources: Vec<QueueKey> = waiter.sources().collect();
        let ready = sources.iter().any(|source| {
            let queue = self.engine.queue(*source);
            queue.ready() > 0 && !queue.settings.pause.output && self.may_consume(*source, at)
        });
        let waiter = match self.waiters.slab.get_mut(key.0 as usize) {
            Some(Waiter::Pull(waiter)) if ready => waiter,
            _ => {
                self.finish_pull(key, 0);
                return;
            }
        };
        waiter.deadline_us = now.us + COLD_PATIENCE_US;
        let entry = Reverse((waiter.deadline_us, key, waiter.serial));
        self.waiters.deadlines.push(entry);
        for source in sources {
            self.engine.schedule(source);
        }
    }

    fn serve_subscription(
        &mut self,
        key: WaiterKey,
        queue: QueueKey,
        most: u32,
        now: Now,
    ) -> Stopped {
        let Waiter::Subscription(subscription) = &self.waiters.slab[key.0 as usize] else {
            return Stopped::Enough;
        };
        let terms = subscription.terms;
        let held = self.engine.leases.held(terms.holder);
        let credit = if terms.ack_auto {
            most
        } else {
            subscription.credit.saturating_sub(held)
        };
        let credit = match &self.conns[subscription.conn.slot as usize].session {
            Session::Amqp(amqp) => amqp.credit(&subscription.tag, credit),
            _ => credit,
        };
        let slot = subscription.conn.slot as usize;
        let conn = &mut self.conns[slot];
        let limit = self.limits.send_bytes_max;
        if credit == 0 || conn.out.len() >= limit || conn.life == Life::Closing {
            self.leave_line(queue, key);
            if let Some(subscription) = self.waiters.subscription(key) {
                subscription.queued = false;
            }
            if self.peers.is_some() && self.conns[slot].is_amqp() {
                self.ask_for_more(slot, key);
            }
            return Stopped::Enough;
        }
        let most = most.min(credit);
        let given = hand_out(
            &mut self.engine,
            conn,
            &mut self.pool,
            queue,
            &terms,
            &subscription.tag,
            most,
            u64::MAX,
            limit,
            now,
        );
        if given.count > 0 {
            self.mark_dirty(slot);
        }
        let waiters = &mut self.engine.queue_mut(queue).waiters;
        if waiters.len() > 1 && waiters.front() == Some(&key) {
            waiters.pop_front();
            self.waiters.join(waiters, key);
        }
        given.stopped
    }

    /// Begins a subscription, or changes the one there is.
    pub(super) fn subscribe(
        &mut self,
        at: ConnKey,
        tag: &[u8],
        queue: QueueKey,
        credit: Option<u32>,
        mut terms: Terms,
    ) {
        if let Some(key) = self.find_subscription(at, queue) {
            let subscription = self.waiters.subscription(key).expect("it was just found");
            terms.holder = subscription.terms.holder;
            subscription.terms = terms;
            subscription.credit = credit.unwrap_or(subscription.credit);
            self.line_up(key);
            return;
        }
        let credit = credit.unwrap_or(CREDIT_DEFAULT);
        self.begin_subscription(at, tag, queue, credit, 0, terms);
    }

    /// Begins one more subscription of a connection.
    pub(super) fn begin_subscription(
        &mut self,
        at: ConnKey,
        tag: &[u8],
        queue: QueueKey,
        credit: u32,
        priority: i32,
        mut terms: Terms,
    ) -> WaiterKey {
        terms.holder = self.engine.leases.add_holder();
        self.waiters.ranked += usize::from(priority != 0);
        let subscription = Subscription {
            conn: at,
            tag: tag.into(),
            queue,
            credit,
            terms,
            queued: false,
            priority,
        };
        let key = WaiterKey(self.waiters.slab.insert(Waiter::Subscription(subscription)) as u32);
        let by_holder = &mut self.waiters.by_holder;
        if by_holder.len() <= terms.holder.0 as usize {
            by_holder.resize(terms.holder.0 as usize + 1, None);
        }
        by_holder[terms.holder.0 as usize] = Some(key);
        self.engine.queue_mut(queue).consumers += 1;
        let conn = &mut self.conns[at.slot as usize];
        conn.rare.make().waits.push(Wait {
            tag: tag.into(),
            waiter: key,
            subscription: true,
        });
        self.line_up(key);
        key
    }

    /// The connection's subscription of a queue.
    pub(super) fn find_subscription(&mut self, at: ConnKey, queue: QueueKey) -> Option<WaiterKey> {
        let waiters = &mut self.waiters;
        self.conns[at.slot as usize]
            .rare
            .waits
            .iter()
            .filter(|wait| wait.subscription)
            .map(|wait| wait.waiter)
            .find(|key| {
                waiters
                    .subscription(*key)
                    .is_some_and(|subscription| subscription.queue == queue)
            })
    }

    /// Puts a subscription into its queue's line, if it is not there.
    pub(super) fn line_up(&mut self, key: WaiterKey) {
        let Some(subscription) = self.waiters.subscription(key) else {
            return;
        };
        if !subscription.queued {
            subscription.queued = true;
            let queue = subscription.queue;
            let line = &mut self.engine.queue_mut(queue).waiters;
            self.waiters.join(line, key);
            self.engine.schedule(queue);
        }
    }

    /// A lease of this holder has ended: its subscription may have more.
    #[inline]
    pub(super) fn credit_returned(&mut self, holder: HolderKey) {
        if let Some(key) = self.waiters.of_holder(holder) {
            self.line_up(key);
        }
    }

    /// Ends a subscription. Its leases stay with the connection until they end, or go back with it.
    pub(super) fn unsubscribe(&mut self, key: WaiterKey) {
        let Some(Waiter::Subscription(subscription)) = self.waiters.slab.try_remove(key.0 as usize)
        else {
            return;
        };
        let queue = subscription.queue;
        let holder = subscription.terms.holder;
        self.waiters.ranked -= usize::from(subscription.priority != 0);
        let read = self.engine.queue_mut(queue);
        read.consumers -= 1;
        let is_last = !read.has_consumers();
        self.step_aside(queue, subscription.conn);
        if is_last {
            self.consumer_gone(queue);
        }
        let uid = self.engine.queue(queue).uid;
        self.amqp.consumer_gone((queue, uid), key, is_last);
        self.leave_line(queue, key);
        self.waiters.by_holder[holder.0 as usize] = None;
        let conn = &mut self.conns[subscription.conn.slot as usize];
        conn.rare.end_wait(key);
        if let Session::Amqp(amqp) = &mut conn.session {
            amqp.forget_consumer(&subscription.tag, key);
        }
        let to = conn.holder;
        while let Some(serial) = self.engine.leases.any_of(holder) {
            self.engine.leases.hand_over(serial, to);
        }
        self.engine.leases.remove_holder(holder);
    }

    /// Leases of replies that were sent whole outlive the connection from now on.
    pub(super) fn release_holds(&mut self, slot: usize) {
        while let conn = &mut self.conns[slot]
            && let Some((end, serial)) = conn.rare.holding.front().copied()
            && end <= conn.confirmed()
        {
            conn.rare.make().holding.pop_front();
            let Some(queue) = self.engine.leases.get(serial).map(|lease| lease.queue) else {
                self.hold_prepared(serial);
                continue;
            };
            self.engine.leases.hand_over(serial, Leases::NOBODY);
            if self.engine.queue(queue).settings.single {
                self.engine.schedule(queue);
            }
        }
    }
}

/// Nothing could be given because the next message is on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cold;

/// Most unacked messages of a subscription that says nothing.
const CREDIT_DEFAULT: u32 = 100;
