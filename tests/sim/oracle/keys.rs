//! Who may be given a message: its place in the order, keys that are taken, and queues with one
//! consumer at a time.

use super::Oracle;
use super::sighting::Consumer;
use crate::dialect::resp::HEAD;

impl Oracle {
    /// Since when no other message of its key is in the queue, so that none can have the key; `None`
    /// while one may be there.
    pub(super) fn key_free_since(&self, index: usize, source: &str) -> Option<u64> {
        let Some(key) = &self.messages[index].key else {
            return Some(0);
        };
        let mut since = 0;
        for other in &self.queues[source].messages {
            let message = &self.messages[*other];
            if *other == index || message.key.as_ref() != Some(key) || !message.possibly_exists() {
                continue;
            }
            let left = match message.place == source {
                true => message.claimed_since(),
                false => {
                    let stays = message.trail.iter().filter(|stay| stay.place == source);
                    stays.map(|stay| stay.until).max()
                }
            };
            since = since.max(left?);
        }
        Some(since)
    }

    /// O: nothing that was surely ready before may stand before it in the order.
    pub(super) fn check_order(&mut self, index: usize, source: &str, low: u64) {
        if self.messages[index].moved {
            return;
        }
        let pri = self.messages[index].pri;
        let now = self.now;
        let turns = self.queue(source).track.may_be_fair(low, now);
        self.checked("O");
        for other in self.queue(source).messages.clone() {
            let standing = &self.messages[other];
            if other == index || standing.place != source || standing.moved {
                continue;
            }
            // Two may only stand beside each other where both are as high as this one can be, and of two at the
            // head the last one that entered is in front.
            let (first, second) = match pri.1 == HEAD {
                true => (index, other),
                false => (other, index),
            };
            let by_id = !turns && standing.pri.0 >= pri.1 && self.entered_before(first, second);
            let before = standing.pri.0 > pri.1 || by_id;
            if !before {
                continue;
            }
            if self
                .ready_since(other, source)
                .is_some_and(|since| since < low)
                && !self.may_be_kept(None, source, low)
            {
                let text = format!(
                    "{} left {source} before {}, which was ready and stands before it",
                    self.name_of(index),
                    self.name_of(other)
                );
                self.fail("O", text);
                return;
            }
        }
    }

    /// O, keys: while a message of a key is leased or to be retried, later ones wait.
    pub(super) fn check_key(&mut self, index: usize, source: &str) {
        let now = self.now;
        let Some(key) = self.messages[index].key.clone() else {
            return;
        };
        for other in self.queue(source).messages.clone() {
            let earlier = &self.messages[other];
            if other == index
                || earlier.place != source
                || earlier.moved
                || self.messages[index].moved
                || earlier.key.as_ref() != Some(&key)
                || !earlier.surely_exists()
                || self.possibly_gone(other, now)
            {
                continue;
            }
            // Ready again, it may have gone to somebody else, and be settled.
            let settles = self.maybe_settled_unseen(source);
            let held = self.messages[other].deliveries.iter().any(|delivery| {
                let record = &self.deliveries[*delivery];
                let may_be_ready = record.ready_again() <= now;
                record.boot == self.boot && !record.settled && !(settles && may_be_ready)
            });
            if held {
                let text = format!(
                    "{} left {source} while {} of the same key is leased or to be retried",
                    self.name_of(index),
                    self.name_of(other)
                );
                self.fail("O", text);
                return;
            }
        }
    }

    /// L, `single=1`: nobody is served beside a subscription that was served under it and still lasts.
    pub(super) fn check_single(&mut self, consumer: &Consumer, source: &str) {
        let (low, now) = (consumer.since, self.now);
        let queue = self.queue(source);
        if queue.deleted.is_some() || !queue.track.surely_single(low, now) {
            return;
        }
        self.checked("L");
        for link in 0..self.links.len() {
            let other = &self.links[link];
            let gone = other.half_closed || other.shut || other.may_close.is_some();
            if link == consumer.link || !other.open || gone || other.blocked.is_some() {
                continue;
            }
            let subs = other.subs.iter().filter(|sub| sub.source == source);
            let active = subs.filter(|sub| sub.changing == 0).any(|sub| {
                sub.deliveries.iter().any(|delivery| {
                    let record = &self.deliveries[*delivery];
                    let track = &self.queues[source].track;
                    record.boot == self.boot
                        && record.granted.1 < low
                        && track.surely_single(record.granted.0, now)
                })
            });
            if active {
                let text = format!(
                    "connection {} was given a message of {source}, where connection {link} is the only consumer",
                    consumer.link
                );
                self.fail("L", text);
                return;
            }
        }
    }
}
