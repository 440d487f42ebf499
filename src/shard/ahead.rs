//! Large bodies that are received where they stay: a connection that sends the same line again and again is read into
//! memory for the bodies behind it (see [`crate::buffer::ahead`]).

use super::conn::{Blocked, Life, ReadInto};
use super::{ConnKey, Now, Shard};
use crate::buffer::ahead::{Next, Room};
use crate::log::disk::Storage;

impl<S: Storage> Shard<S> {
    /// Where to read the connection's next bytes to; `None` when it must not be read now (it will
    /// come out of `poll_resume` when it may be read again). Never empty.
    pub fn receive_room(&mut self, conn: ConnKey) -> Option<Room<'_>> {
        let slot = self.may_receive(conn)?;
        if self.conns[slot].decoder.foreseen().is_some() && self.expects_more(slot) {
            let conn = &mut self.conns[slot];
            conn.reading = ReadInto::Ahead;
            let rest = conn.body_space().unwrap_or_default();
            return Some(Room::Several(rest, &mut self.ahead));
        }
        Some(Room::One(self.space(slot)))
    }

    /// Can what is foreseen be received, from the next byte on or behind the body that is under way?
    fn expects_more(&mut self, slot: usize) -> bool {
        let conn = &mut self.conns[slot];
        if conn.blocked != Blocked::No || !conn.tail.is_empty() || !conn.session.is_text() {
            return false;
        }
        let is_next = conn.decoder.is_between() || conn.decoder.has_room_for_all();
        match conn.decoder.foreseen() {
            Some((line, size)) if is_next => self.ahead.expect(line, size),
            _ => false,
        }
    }

    /// So many bytes were read into that.
    pub(super) fn received_ahead(&mut self, slot: usize, count: usize, now: Now) {
        let mut ahead = std::mem::take(&mut self.ahead);
        let mut left = count;
        let conn = &mut self.conns[slot];
        let rest = conn.body_space().map_or(0, |rest| rest.len()).min(left);
        if rest > 0 {
            conn.body_filled(rest);
            left -= rest;
            self.run_input(slot, now);
        }
        while left > 0 && self.goes_on(slot) {
            let Next::Body(body, filled) = ahead.take(left) else {
                self.conns[slot].decoder.was_wrong();
                break;
            };
            left -= ahead.line_bytes() + filled;
            self.conns[slot].decoder.received(body, filled);
            self.run_input(slot, now);
        }
        if left > 0 && self.conns[slot].life != Life::Closing {
            let rest = ahead.rest(left);
            self.run_or_keep(slot, &rest, now);
        }
        self.ahead = ahead;
    }

    /// Nothing keeps the next command back.
    fn goes_on(&self, slot: usize) -> bool {
        let conn = &self.conns[slot];
        conn.blocked == Blocked::No && conn.life == Life::Open && conn.decoder.is_between()
    }
}
