//! ACK, NACK and TOUCH: what a consumer says of the messages it holds.

use super::door::Told;
use super::engine::Return;
use super::session::Asker;
use super::{Now, Shard};
use crate::broker::arena::is_request;
use crate::broker::command::{Tokens, Typed};
use crate::broker::id::{Handle, Level};
use crate::broker::lease::Lease;
use crate::broker::reply::Reply;
use crate::log::TransferReason;
use crate::log::disk::Storage;
use crate::protocol::text::handles;

impl<S: Storage> Shard<S> {
    #[inline]
    pub(super) fn ack(&mut self, asker: Asker<'_>, tokens: Tokens<'_>) {
        let mut count = 0;
        let mut level = Level::None;
        self.text.clear();
        for token in tokens.iter() {
            match handles::parse(token).and_then(|handle| self.engine.ack(handle)) {
                Some((lease, safe_at)) => {
                    count += 1;
                    level = level.max(safe_at);
                    self.credit_returned(lease.holder);
                }
                None => push_stale(&mut self.text, token),
            }
        }
        self.settled(asker, count, level);
    }

    /// The level at which the end of that lease is safe.
    #[inline]
    pub(super) fn settled_at(&self, lease: &Lease) -> Level {
        match is_request(lease.place) {
            true => Level::None,
            false => self.engine.queue(lease.queue).settings.durable,
        }
    }

    /// Answers `ACK`, `NACK` and `TOUCH`; the stale tokens are in the scratch text.
    #[inline]
    pub(super) fn settled(&mut self, asker: Asker<'_>, count: u64, level: Level) {
        let need = self.engine.need(level);
        let stale = std::mem::take(&mut self.text);
        if asker.quiet && !stale.is_empty() {
            let loud = Asker {
                quiet: false,
                ..asker
            };
            self.answer_when(
                loud,
                need,
                &Reply::QuietStale {
                    count,
                    stale: &stale,
                },
            );
        } else if !asker.quiet {
            self.answer_when(
                asker,
                need,
                &Reply::Count {
                    count,
                    stale: &stale,
                },
            );
        }
        self.text = stale;
    }

    pub(super) fn nack(
        &mut self,
        asker: Asker<'_>,
        tokens: Tokens<'_>,
        delay_us: Option<u64>,
        dead: bool,
        why: Option<Typed<'_>>,
        now: Now,
    ) {
        let mut scratch = Vec::new();
        let why = why.map(|why| why.decoded(&mut scratch)).unwrap_or_default();
        let mut count = 0;
        let mut level = Level::None;
        self.text.clear();
        for token in tokens.iter() {
            let lease = handles::parse(token).and_then(|handle| {
                self.engine.lease(handle)?;
                self.engine.leases.end(handle.serial)
            });
            let Some(lease) = lease else {
                push_stale(&mut self.text, token);
                continue;
            };
            count += 1;
            level = level.max(self.settled_at(&lease));
            self.credit_returned(lease.holder);
            self.give_back_nacked(&lease, delay_us, dead, why, now);
        }
        // What its next command finds is what it has done: dead letters are where they belong by then.
        let moved = self.engine.moved;
        self.conns[asker.slot].published.merge(moved);
        self.settled(asker, count, level);
    }

    /// What a nack does to the message of a lease that it has ended.
    pub(super) fn give_back_nacked(
        &mut self,
        lease: &Lease,
        delay_us: Option<u64>,
        dead: bool,
        why: &[u8],
        now: Now,
    ) {
        if dead && self.engine.queue(lease.queue).buries() {
            self.engine
                .reject(lease, TransferReason::Rejected, why, now);
        } else {
            self.engine
                .give_back(lease, Return::Nacked { delay_us }, why, now);
        }
    }

    pub(super) fn touch(
        &mut self,
        asker: Asker<'_>,
        tokens: Tokens<'_>,
        lease_us: Option<u64>,
        now: Now,
    ) {
        let mut count = 0;
        self.text.clear();
        for token in tokens.iter() {
            let touched = handles::parse(token).is_some_and(|handle| {
                let Some(lease) = self.engine.lease(handle) else {
                    return false;
                };
                // A consumer that asked for more than the queue gives doesn't get less by this.
                let queues_us = self.engine.queue(lease.queue).settings.lease_us;
                let own_us = self.engine.leases.duration_us(handle.serial).unwrap_or(0);
                let lease_us = lease_us.unwrap_or(own_us.max(queues_us));
                self.engine.leases.touch(handle.serial, now.us, lease_us)
            });
            if touched {
                count += 1;
            } else {
                push_stale(&mut self.text, token);
            }
        }
        self.settled(asker, count, Level::None);
    }

    /// Tells the holder of an expired lease, if it wants to know.
    pub(super) fn tell_expired(&mut self, lease: &Lease) {
        let Some(slot) = self.conn_of_holder(lease.holder) else {
            return;
        };
        let handle = Handle {
            incarnation: self.engine.incarnation,
            id: lease.id,
            serial: lease.serial,
        };
        let conn = &mut self.conns[slot];
        if let Some(rare) = conn.rare.any() {
            rare.holding.retain(|(_, serial)| *serial != lease.serial);
        }
        if conn.wants_expired && conn.out.len() < self.limits.send_bytes_max {
            conn.tell(&mut self.pool, None, Told::Expired(handle));
            self.mark_dirty(slot);
        }
    }
}

pub(super) fn push_stale(stale: &mut Vec<u8>, token: &[u8]) {
    if !stale.is_empty() {
        stale.push(b',');
    }
    stale.extend_from_slice(token);
}
