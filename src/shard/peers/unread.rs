//! What the peer of a connection has read of what guests have sent it.
//!
//! A guest knows where in its own output a reply ends, the home where that is on the wire, and which commands came
//! behind it. So a guest says that it wants to know (`confirm` of its output), and the home tells it up to where its
//! output has been *read*: a command came that was read from the socket when that had been written to it, or the
//! peer has ended its side and its TCP has acknowledged everything.

use std::collections::VecDeque;

use super::away::Away;
use super::{Leave, Letter};
use crate::log::disk::Storage;
use crate::shard::Shard;

/// So many places are kept apart, before one shard's next is put together with its last.
const PLACES_MAX: usize = 1024;

/// A piece of a shard's output on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where it ends on the wire, or counts as ending.
    pub at: u64,
    pub shard: u32,
    /// Where it ends in the shard's output.
    pub upto: u64,
    /// How long it is; 0 = it counts as one, and is read when all of it is.
    pub bytes: u64,
    /// Its shard wants to know.
    pub confirm: bool,
}

impl Place {
    /// How much of the shard's output has been read when the wire has been read up to `known`.
    fn read(&self, known: u64) -> Option<u64> {
        let left = self.at.saturating_sub(known);
        (left == 0 || left < self.bytes).then(|| self.upto - left)
    }
}

/// What stands behind `from` in the pieces counts as ending at `end`, all of it as one.
fn join(places: &mut VecDeque<Place>, from: u64, end: u64) {
    let first = places.iter().position(|place| place.at > from);
    let Some(first) = first else { return };
    let place = &mut places[first];
    let behind = place.at - from;
    if behind < place.bytes {
        let before = Place {
            at: from,
            upto: place.upto - behind,
            bytes: place.bytes - behind,
            ..*place
        };
        places.insert(first, before);
    }
    for place in places.iter_mut().filter(|place| place.at > from) {
        (place.at, place.bytes) = (place.at.max(end), 0);
    }
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

    /// The socket has taken a piece.
    pub(super) fn add(&mut self, place: Place) {
        let is_full = self.places.len() >= PLACES_MAX;
        match self.places.back_mut() {
            // What counts as read later than it was is never settled too early.
            Some(last) if is_full && last.shard == place.shard => {
                *last = Place { bytes: 0, ..place };
            }
            _ => self.places.push_back(place),
        }
    }

    /// Everything up to `known` was read: how much of each shard's output, where that is more than was known. What of
    /// the connection's own, as number `me`, was written before there was a wire is among it. `next` is the piece that the socket
    /// is taking.
    fn take(&mut self, known: u64, me: u32, next: Option<Place>) -> Vec<(u32, u64)> {
        let mut read = vec![(me, known.min(self.begin))];
        let mut note = |shard: u32, upto: u64| match read.iter_mut().find(|it| it.0 == shard) {
            Some((_, before)) => *before = upto.max(*before),
            None => read.push((shard, upto)),
        };
        while let Some(place) = self.places.front().copied()
            && let Some(upto) = place.read(known)
        {
            note(place.shard, upto);
            if place.at > known {
                return read;
            }
            self.places.pop_front();
        }
        if self.places.is_empty()
            && let Some(place) = next
            && let Some(upto) = place.read(known)
        {
            note(place.shard, upto);
        }
        read
    }

    /// Is anything that the wire has brought among what was read up to `known`?
    fn has_any(&self, known: u64, next: Option<Place>) -> bool {
        let first = self.places.front().copied().or(next);
        first.is_some_and(|place| place.read(known).is_some())
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl Away {
    /// What goes to the socket behind `from` is taken by it as one; returns where it ends on the wire.
    fn join_confirms(&mut self, from: u64) -> u64 {
        let end = self.wire.end();
        join(&mut self.confirms, from, end);
        end
    }

    /// The piece that the socket is taking, if its shard, or this one, may want to know.
    fn next_to_read(&self, me: u32) -> Option<Place> {
        let next = self.confirms.front().copied();
        next.filter(|place| place.confirm || place.shard == me)
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
        let next = away.next_to_read(me);
        if !away.unread.has_any(known, next) {
            let own = known.min(away.unread.begin);
            return self.settle_pops(slot, own);
        }
        let read = away.unread.take(known, me, next);
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
            join(&mut away.unread.places, from, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(at: u64, shard: u32, upto: u64, bytes: u64) -> Place {
        Place {
            at,
            shard,
            upto,
            bytes,
            confirm: true,
        }
    }

    #[test]
    fn each_shard_is_told_of_its_own_output() {
        let mut unread = Unread::new(10);
        unread.add(place(20, 1, 5, 0));
        unread.add(place(30, 2, 7, 0));
        unread.add(place(40, 0, 20, 0));
        unread.add(place(50, 1, 9, 0));
        // Before the wire, offsets are the connection's own.
        assert_eq!(unread.take(6, 0, None), [(0, 6)]);
        assert_eq!(unread.take(19, 0, None), [(0, 10)]);
        assert_eq!(unread.take(45, 0, None), [(0, 20), (1, 5), (2, 7)]);
        assert_eq!(unread.take(49, 0, None), [(0, 10)]);
        assert_eq!(unread.take(50, 0, None), [(0, 10), (1, 9)]);
        assert!(unread.is_empty());
    }

    #[test]
    fn a_part_of_a_piece_is_read_for_itself() {
        let mut unread = Unread::new(0);
        unread.add(place(20, 1, 105, 10));
        assert!(!unread.has_any(10, None));
        assert_eq!(unread.take(10, 0, None), [(0, 0)]);
        assert_eq!(unread.take(11, 0, None), [(0, 0), (1, 96)]);
        assert_eq!(unread.take(19, 0, None), [(0, 0), (1, 104)]);
        // Nor has the socket to have taken all of it.
        let next = Some(place(30, 2, 18, 10));
        assert_eq!(unread.take(25, 0, next), [(0, 0), (1, 105), (2, 13)]);
        assert!(unread.is_empty() && unread.has_any(21, next) && !unread.has_any(20, next));
    }

    #[test]
    fn what_counts_as_one_is_read_when_all_of_it_is() {
        let mut unread = Unread::new(0);
        unread.add(place(10, 1, 1, 1));
        unread.add(place(20, 1, 12, 10));
        unread.add(place(30, 2, 3, 3));
        join(&mut unread.places, 15, 40);
        assert_eq!(unread.take(13, 0, None), [(0, 0), (1, 5)]);
        assert_eq!(unread.take(39, 0, None), [(0, 0), (1, 7)]);
        assert_eq!(unread.take(40, 0, None), [(0, 0), (1, 12), (2, 3)]);
    }

    #[test]
    fn of_too_many_places_the_latest_count_as_later() {
        let mut unread = Unread::new(0);
        for nth in 1..=2 * PLACES_MAX as u64 {
            unread.add(place(nth, 1, nth, 1));
        }
        assert_eq!(unread.places.len(), PLACES_MAX);
        let all = 2 * PLACES_MAX as u64;
        assert_eq!(unread.take(all - 1, 0, None)[1], (1, PLACES_MAX as u64 - 1));
        assert_eq!(unread.take(all, 0, None)[1], (1, all));
    }
}
