//! What the peer of a connection has read of what guests have sent it.
//!
//! A guest knows where in its own output a reply ends, the home where that is on the wire, and which commands came
//! behind it. So a guest says that it wants to know (`confirm` of its output), and the home tells it up to where its
//! output has been *read*: a command came that was read from the socket when that had been written to it, or the
//! peer has ended its side and its TCP has acknowledged everything.

use std::collections::VecDeque;

use super::{Leave, Letter};
use crate::log::disk::Storage;
use crate::shard::Shard;

/// So many places are kept apart, before one shard's next is put together with its last.
const PLACES_MAX: usize = 1024;

/// A place on the wire that the socket has taken, and how much of a shard's output stands before it.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    shard: u32,
    upto: u64,
}

/// Output that the socket has taken, and of which nobody knows yet whether it was read.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// The wire began there: up to there its offsets are those of the connection's own output.
    begin: u64,
    /// In the order of the wire.
    places: VecDeque<Place>,
}

impl Unread {
    /// Of a wire that begins at that offset.
    pub(super) fn new(begin: u64) -> Unread {
        Unread {
            begin,
            places: VecDeque::new(),
        }
    }

    /// The socket has taken the wire up to `at`, and so a shard's output up to `upto`.
    pub(super) fn add(&mut self, at: u64, shard: u32, upto: u64) {
        let is_full = self.places.len() >= PLACES_MAX;
        match self.places.back_mut() {
            // What counts as read later than it was is never settled too early.
            Some(last) if is_full && last.shard == shard => (last.at, last.upto) = (at, upto),
            _ => self.places.push_back(Place { at, shard, upto }),
        }
    }

    /// Everything on the wire between these places counts as read when all of it is.
    fn join(&mut self, from: u64, end: u64) {
        let places = self.places.iter_mut();
        for place in places.filter(|place| place.at > from) {
            place.at = place.at.max(end);
        }
    }

    /// Everything up to `known` was read: how much of each shard's output, where that is more than was known. What of
    /// the connection's own, as number `me`, was written before there was a wire is among it.
    fn take(&mut self, known: u64, me: u32) -> Vec<(u32, u64)> {
        let mut read = vec![(me, known.min(self.begin))];
        while let Some(place) = self.places.front().copied()
            && place.at <= known
        {
            self.places.pop_front();
            match read.iter_mut().find(|(shard, _)| *shard == place.shard) {
                Some((_, upto)) => *upto = place.upto.max(*upto),
                None => read.push((place.shard, place.upto)),
            }
        }
        read
    }

    /// Is anything that the wire has brought among what was read up to `known`?
    fn has_any(&self, known: u64) -> bool {
        self.places.front().is_some_and(|place| place.at <= known)
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl<S: Storage> Shard<S> {
    /// The peer has read what was written to it up to that offset: what it has popped there is settled, here and at
    /// other shards.
    pub(in crate::shard) fn peer_has_read(&mut self, slot: usize, known: u64) {
        let (_, me) = self.shards();
        let Some(away) = &mut self.conns[slot].away else {
            return self.settle_pops(slot, known);
        };
        if !away.unread.has_any(known) {
            let own = known.min(away.unread.begin);
            return self.settle_pops(slot, own);
        }
        let read = away.unread.take(known, me);
        let conn = self.key(slot);
        for (shard, upto) in read {
            match shard == me {
                true => self.settle_pops(slot, upto),
                false => self.mail().post(shard, Letter::Read { conn, upto }),
            }
        }
    }

    /// Is it known of all that the peer has popped at other shards that it has read it?
    pub(in crate::shard) fn has_unread(&self, slot: usize) -> bool {
        let away = self.conns[slot].away.as_ref();
        away.is_some_and(|away| !away.unread.is_empty())
    }

    /// Nothing more will be known: what was popped at other shards and is not settled goes back.
    pub(in crate::shard) fn forget_unread(&mut self, slot: usize) {
        if let Some(away) = &mut self.conns[slot].away {
            let begin = away.unread.begin;
            away.unread = Unread::new(begin);
            self.leave_guests(slot, Leave::Reset);
        }
    }

    /// Replies that are on their way to the socket since `from` count as read when all of them are.
    pub(in crate::shard) fn read_together(&mut self, slot: usize, from: u64) {
        if let Some(away) = &mut self.conns[slot].away {
            let end = away.join_confirms(from);
            away.unread.join(from, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_is_told_of_its_own_output() {
        let mut unread = Unread::new(10);
        unread.add(20, 1, 5);
        unread.add(30, 2, 7);
        unread.add(40, 0, 20);
        unread.add(50, 1, 9);
        // Before the wire, offsets are the connection's own.
        assert_eq!(unread.take(6, 0), [(0, 6)]);
        assert_eq!(unread.take(19, 0), [(0, 10)]);
        assert_eq!(unread.take(45, 0), [(0, 20), (1, 5), (2, 7)]);
        assert_eq!(unread.take(49, 0), [(0, 10)]);
        assert_eq!(unread.take(50, 0), [(0, 10), (1, 9)]);
        assert!(unread.is_empty());
    }

    #[test]
    fn what_counts_as_one_is_read_when_all_of_it_is() {
        let mut unread = Unread::new(0);
        unread.add(10, 1, 1);
        unread.add(20, 1, 2);
        unread.add(30, 2, 3);
        unread.join(10, 40);
        assert_eq!(unread.take(39, 0), [(0, 0), (1, 1)]);
        assert_eq!(unread.take(40, 0), [(0, 0), (1, 2), (2, 3)]);
    }

    #[test]
    fn of_too_many_places_the_latest_count_as_later() {
        let mut unread = Unread::new(0);
        for nth in 1..=2 * PLACES_MAX as u64 {
            unread.add(nth, 1, nth);
        }
        assert_eq!(unread.places.len(), PLACES_MAX);
        let all = 2 * PLACES_MAX as u64;
        assert_eq!(unread.take(all - 1, 0)[1], (1, PLACES_MAX as u64 - 1));
        assert_eq!(unread.take(all, 0)[1], (1, all));
    }
}
