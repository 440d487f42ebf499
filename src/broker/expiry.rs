//! When messages of one queue outlive their time.
//!
//! Messages that follow the queue's `ttl` expire in the order of their ids, so they need no more
//! than a run (publish time, last id) for each moment; those with a time of their own are in
//! an ordered set. Knows ids and times; never a message.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::id::MessageId;

/// Deadlines of one queue's messages, microseconds.
#[derive(Debug, Default)]
pub struct Expiry {
    /// (publish time, last id): ids after the previous run's last were published then.
    runs: VecDeque<(u64, MessageId)>,
    /// Ids up to this one were dealt with by runs.
    done: MessageId,
    own: BTreeSet<(u64, MessageId)>,
    own_by_id: HashMap<MessageId, u64, foldhash::fast::FixedState>,
}

/// Publishes within this time share a run, microseconds; they expire at its end, never early.
const RUN_US: u64 = 1_000;

impl Expiry {
    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.runs.len() * 16 + self.own.len() * 64
    }

    /// A message follows the queue's time to live.
    #[inline]
    pub fn follow(&mut self, id: MessageId, published_us: u64) {
        let time = published_us.next_multiple_of(RUN_US);
        match self.runs.back_mut() {
            Some((run, last)) if time <= *run => *last = id,
            _ => {
                if self.runs.is_empty() {
                    self.done = self.done.max(id - 1);
                }
                self.runs.push_back((time, id));
            }
        }
    }

    /// All messages up to this one that were not dealt with follow the queue's time to live from now on.
    pub fn follow_all(&mut self, last: MessageId, now_us: u64) {
        self.runs.push_back((now_us.next_multiple_of(RUN_US), last));
    }

    /// Of the ids taken last, those after `done` are still to be dealt with: they are due at once.
    pub fn put_back(&mut self, done: MessageId, last: MessageId) {
        self.done = done;
        self.runs.push_front((0, last));
    }

    /// A message has a deadline of its own.
    pub fn own(&mut self, id: MessageId, expires_us: u64) {
        if let Some(before) = self.own_by_id.insert(id, expires_us) {
            self.own.remove(&(before, id));
        }
        self.own.insert((expires_us, id));
    }

    /// A message is settled.
    #[inline]
    pub fn forget(&mut self, id: MessageId) {
        if !self.own_by_id.is_empty()
            && let Some(expires_us) = self.own_by_id.remove(&id)
        {
            self.own.remove(&(expires_us, id));
        }
    }

    /// Does any message have a deadline?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.own.is_empty()
    }

    /// The earliest deadline, microseconds.
    #[inline]
    pub fn next_us(&self, ttl_us: Option<u64>) -> Option<u64> {
        let run = ttl_us.and_then(|ttl_us| {
            self.runs
                .front()
                .map(|(time, _)| time.saturating_add(ttl_us))
        });
        let own = self.own.first().map(|(expires_us, _)| *expires_us);
        [run, own].into_iter().flatten().min()
    }

    /// Takes one deadline that has passed: the ids `from..=to` have expired (but for those that
    /// [`Expiry::has_own`] or that are settled).
    pub fn pop(&mut self, ttl_us: Option<u64>, now_us: u64) -> Option<(MessageId, MessageId)> {
        if let Some((expires_us, id)) = self.own.first().copied()
            && expires_us <= now_us
        {
            self.forget(id);
            return Some((id, id));
        }
        let (time, last) = self.runs.front().copied()?;
        if time.saturating_add(ttl_us?) > now_us {
            return None;
        }
        self.runs.pop_front();
        let from = self.done + 1;
        self.done = last;
        Some((from, last))
    }

    /// Has the message a deadline of its own?
    #[inline]
    pub fn has_own(&self, id: MessageId) -> bool {
        !self.own_by_id.is_empty() && self.own_by_id.contains_key(&id)
    }

    /// The message's own deadline, microseconds.
    pub fn own_us(&self, id: MessageId) -> Option<u64> {
        self.own_by_id.get(&id).copied()
    }

    /// The runs, for a checkpoint.
    pub fn runs(&self) -> impl Iterator<Item = (u64, MessageId)> {
        self.runs.iter().copied()
    }

    /// Deadlines of their own, for a checkpoint: (deadline, id).
    pub fn owned(&self) -> impl Iterator<Item = (u64, MessageId)> {
        self.own.iter().copied()
    }

    /// Ids dealt with, for a checkpoint.
    pub fn done(&self) -> MessageId {
        self.done
    }

    /// Takes a checkpoint's runs over.
    pub fn restore(&mut self, done: MessageId, runs: impl Iterator<Item = (u64, MessageId)>) {
        self.done = done;
        self.runs = runs.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_expire_in_order_and_never_early() {
        let mut expiry = Expiry::default();
        for id in 1..=100u64 {
            expiry.follow(id, 10_000 + id * 400);
        }
        let mut expired = 0;
        for now in (0..200_000).step_by(50) {
            while let Some((from, to)) = expiry.pop(Some(5_000), now) {
                assert_eq!(from, expired + 1);
                assert!(10_000 + to * 400 + 5_000 <= now);
                expired = to;
            }
            if now > 10_000 + 5_000 + RUN_US + 400 {
                let due = (now - 15_000 - RUN_US - 400) / 400;
                assert!(expired >= due.min(100), "{now}: {expired} of {due}");
            }
        }
        assert_eq!(expired, 100);
    }

    #[test]
    fn a_deadline_of_its_own_stands() {
        let mut expiry = Expiry::default();
        expiry.own(7, 50);
        expiry.own(8, 40);
        expiry.own(7, 30);
        assert!(expiry.has_own(7));
        assert_eq!(expiry.next_us(None), Some(30));
        assert_eq!(expiry.pop(None, 29), None);
        assert_eq!(expiry.pop(None, 100), Some((7, 7)));
        expiry.forget(8);
        assert_eq!(expiry.pop(None, 100), None);
        assert!(expiry.is_empty());
    }
}
