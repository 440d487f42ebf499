//! Safe pop: what a client pops is leased to it until it shows that it has the reply.

use std::collections::VecDeque;

use super::super::super::{ConnKey, Ending, Now, Shard};
use super::Door;
use crate::broker::id::Handle;
use crate::log::disk::Storage;

/// A connection that has ended its side is asked so often whether it has taken everything, microseconds.
const ASK_AGAIN_US: u64 = 2_000;
/// It is waited for so long; what it has popped goes back then, microseconds.
const ASK_US_MAX: u64 = 5_000_000;

/// Most pieces of kept input of which it is known when each came.
const ARRIVALS_MAX: usize = 32;

/// What had been written out when the input came that is kept, piece by piece. Where there are too many
/// pieces the latest count as older than they are, so that nothing is settled too early.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Bytes of input, and how much had been written out before they came.
    parts: VecDeque<(usize, u64)>,
    /// All of these bytes.
    bytes: usize,
}

impl Arrivals {
    /// There are so many bytes of input now; what is new has come after `sent` bytes had been written out.
    pub(super) fn note(&mut self, input_bytes: usize, sent: u64) {
        if input_bytes < self.bytes {
            // The connection ends, and what was not run is gone.
            *self = Arrivals::default();
        }
        let new = input_bytes - self.bytes;
        if new == 0 {
            return;
        }
        self.bytes = input_bytes;
        let is_full = self.parts.len() >= ARRIVALS_MAX;
        match self.parts.back_mut() {
            Some((bytes, at)) if *at == sent || is_full => *bytes += new,
            _ => self.parts.push_back((new, sent)),
        }
    }

    /// What had been written out when the first byte came; `None` if there is none.
    pub(super) fn first(&self) -> Option<u64> {
        self.parts.front().map(|part| part.1)
    }

    /// Memory held, bytes.
    pub(super) fn memory(&self) -> usize {
        self.parts.capacity() * size_of::<(usize, u64)>()
    }

    /// So many bytes at the front were used up.
    pub(super) fn consume(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some((bytes, _)) = self.parts.front_mut() {
            if *bytes > count {
                *bytes -= count;
                return;
            }
            count -= *bytes;
            self.parts.pop_front();
        }
    }
}

impl<S: Storage> Shard<S> {
    /// Settles what was popped in replies that end at or before that place of the output.
    pub(in super::super::super) fn settle_pops(&mut self, slot: usize, known: u64) {
        while let Some((end, serial)) = self.conns[slot].resp().pops.front().copied()
            && end <= known
        {
            self.conns[slot].resp().pops.pop_front();
            let Some(lease) = self.engine.leases.get(serial) else {
                continue;
            };
            let handle = Handle {
                incarnation: self.engine.incarnation,
                id: lease.id,
                serial,
            };
            if let Some((lease, _)) = self.engine.ack(handle) {
                self.credit_returned(lease.holder);
            }
        }
    }

    /// The peer has ended its side and has all output, as far as it was written: what it has popped is settled
    /// once its TCP has acknowledged that. True while that is waited for.
    pub(in super::super::super) fn awaits_peer(&mut self, slot: usize) -> bool {
        let key = self.key(slot);
        let (is_guest, has_unread) = (self.conns[slot].guest.is_some(), self.has_unread(slot));
        let Door::Resp(session) = &mut self.conns[slot].session else {
            return false;
        };
        if !(session.has_pops() || has_unread) || self.ending != Ending::No {
            // A broker that goes down does not know what its clients have read: it will be handed out again.
            return false;
        }
        if is_guest {
            // Its home finds out.
            return true;
        }
        if session.asked_until_us == 0 {
            session.asked_until_us = u64::MAX;
            self.asking.push_back(key);
        }
        true
    }

    /// A connection of which it is to be told how many bytes its peer has not acknowledged.
    pub fn poll_unacknowledged(&mut self) -> Option<ConnKey> {
        self.asking.pop_front()
    }

    /// So many bytes that were written to the connection are not acknowledged by its peer.
    pub fn handle_unacknowledged(&mut self, conn: ConnKey, bytes: usize, now: Now) {
        let Some(slot) = self.slot(conn) else { return };
        let sent = match &self.conns[slot].away {
            None => self.conns[slot].out.sent(),
            Some(away) => away.sent(),
        };
        let Door::Resp(session) = &mut self.conns[slot].session else {
            return;
        };
        if session.asked_until_us == u64::MAX {
            session.asked_until_us = now.us + ASK_US_MAX;
        }
        if bytes == 0 {
            self.peer_has_read(slot, sent);
        } else if now.us < session.asked_until_us {
            self.ask_again.push_back((now.us + ASK_AGAIN_US, conn));
            return;
        }
        // What is left goes back when the connection is removed.
        self.conns[slot].resp().forget_pops();
        self.forget_unread(slot);
        self.settle_life(slot, now);
    }

    /// Those of whom it is time to ask again.
    pub(in super::super::super) fn ask_due(&mut self, now: Now) {
        while let Some((at_us, key)) = self.ask_again.front().copied()
            && at_us <= now.us
        {
            self.ask_again.pop_front();
            self.asking.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_as_old_as_its_first_byte() {
        let mut arrivals = Arrivals::default();
        arrivals.note(30, 0);
        arrivals.consume(20);
        // 10 bytes stay; 5 come while they wait, behind a reply of 100 bytes, and 7 more behind that.
        arrivals.note(15, 100);
        arrivals.note(15, 150);
        arrivals.note(22, 100);
        assert_eq!(arrivals.first(), Some(0));
        arrivals.consume(9);
        assert_eq!(arrivals.first(), Some(0));
        arrivals.consume(1);
        assert_eq!(arrivals.first(), Some(100));
        arrivals.note(20, 200);
        arrivals.consume(12);
        assert_eq!(arrivals.first(), Some(200));
        arrivals.consume(8);
        assert_eq!(arrivals.first(), None);
        assert_eq!(arrivals.bytes, 0);
    }

    #[test]
    fn of_too_many_pieces_the_latest_count_as_older() {
        let mut arrivals = Arrivals::default();
        for piece in 1..=100 {
            arrivals.note(piece, piece as u64);
        }
        assert_eq!(arrivals.parts.len(), ARRIVALS_MAX);
        arrivals.consume(99);
        assert_eq!(arrivals.first(), Some(ARRIVALS_MAX as u64));
        // What was not run is gone.
        arrivals.note(0, 500);
        arrivals.note(3, 500);
        assert_eq!(arrivals.first(), Some(500));
    }
}
