//! DRAIN: the broker goes down, but lets those who hold messages finish first.
//!
//! From the command on nothing new begins: publishes and requests are refused, nothing is handed out,
//! subscriptions end. What is leased can be settled, on new connections too. The shutdown itself is that
//! of SIGTERM; it comes when nothing is leased any more, or when the time is up.

use super::conn::Need;
use super::door::Told;
use super::session::Asker;
use super::{Ending, Now, Shard};
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::protocol::text::encode::Gone;

/// How long leases are waited for if `DRAIN` does not say, microseconds.
const DRAIN_US: u64 = 30_000_000;
/// What is said with `ERR DRAINING`, milliseconds.
const RETRY_MS: u32 = 100;
/// The end of a drain that was not asked for.
pub(super) const NEVER: u64 = u64::MAX;

impl<S: Storage> Shard<S> {
    /// `DRAIN` was asked for: nothing new is begun any more.
    #[inline]
    pub(super) fn is_draining(&self) -> bool {
        self.drained_at_us != NEVER
    }

    /// `DRAIN`: begins to, or shortens what is left.
    pub(super) fn drain(&mut self, asker: Asker<'_>, most_us: Option<u64>, now: Now) {
        let until_us = now.us.saturating_add(most_us.unwrap_or(DRAIN_US));
        let is_first = !self.is_draining();
        self.drained_at_us = self.drained_at_us.min(until_us.min(NEVER - 1));
        if is_first {
            let conn = &self.conns[asker.slot];
            ::log::info!("draining, as {} has asked", conn.peer);
            self.end_all_interests(now);
        }
        self.answer_when(asker, Need::NOW, &Reply::Ok);
    }

    /// Waits and subscriptions of all connections end, and say so.
    pub(super) fn end_all_interests(&mut self, now: Now) {
        let slots: Vec<usize> = self.conns.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.tell_drain(slot);
            self.end_interests(slot, now);
            self.mark_dirty(slot);
        }
    }

    /// `END <src> gone=drain` for every subscription of a connection.
    fn tell_drain(&mut self, slot: usize) {
        self.tell_live_drain(slot);
        for wait in self.conns[slot].rare.waits.clone() {
            if let Some(subscription) = self.waiters.subscription(wait.waiter) {
                let source = &self.engine.queue(subscription.queue).printed;
                let tag = (!wait.tag.is_empty()).then_some(&*wait.tag);
                let why = Gone::Drain;
                self.conns[slot].tell(&mut self.pool, tag, Told::Gone { source, why });
            }
        }
    }

    /// The shutdown begins when nobody holds a message any more, or when the time is up.
    pub(super) fn go_on_draining(&mut self, now: Now) {
        let is_over = || {
            self.engine.leases.is_empty()
                || self.drained_at_us <= now.us
                || planted(Fault::LeasesEndAtDrain)
        };
        if !self.is_draining() || self.ending != Ending::No || !is_over() {
            return;
        }
        // Elsewhere somebody may hold messages still.
        if self.all_idle() || self.drained_at_us <= now.us {
            self.handle_shutdown(now);
        }
    }

    /// When the time is up, microseconds; `None` if it does not run.
    pub(super) fn drained_at_us(&self) -> Option<u64> {
        (self.is_draining() && self.ending == Ending::No).then_some(self.drained_at_us)
    }
}

/// The answer to whatever would begin something.
#[cold]
pub(super) fn draining() -> Error {
    Error::new(
        ErrorCode::Draining,
        "the broker is going down; ask again when it is back",
    )
    .retry(RETRY_MS)
}
