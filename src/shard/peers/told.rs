//! What the guests of a connection are told of it beside its commands.

use super::away::{Dest, Run};
use super::guest::Kind;
use super::{Leave, Letter};
use crate::log::disk::Storage;
use crate::shard::conn::Conn;
use crate::shard::{Now, Shard};

impl<S: Storage> Shard<S> {
    /// Tells every guest something.
    fn tell_guests(&mut self, slot: usize, letter: impl Fn(&Conn) -> Letter) {
        self.flush_drafts(slot);
        let Some(away) = &self.conns[slot].away else {
            return;
        };
        for to in away.guests() {
            let letter = letter(&self.conns[slot]);
            self.mail().post(to, letter);
        }
    }

    pub(super) fn leave_guests(&mut self, slot: usize, how: Leave) {
        if self.conns[slot].away.is_some() {
            let conn = self.key(slot);
            self.tell_guests(slot, |_| Letter::Leave { conn, how });
        }
    }

    /// `HELLO` was run.
    pub(in crate::shard) fn guests_named(&mut self, slot: usize) {
        if self.conns[slot].away.is_some() {
            let conn = self.key(slot);
            self.tell_guests(slot, |open| Letter::Named {
                conn,
                name: open.rare.name.as_slice().into(),
                wants_expired: open.wants_expired,
            });
        }
    }

    /// The version of RESP is another one.
    pub(in crate::shard) fn guests_speak(&mut self, slot: usize) {
        if let Some(version) = self.conns[slot].resp_version()
            && self.conns[slot].away.is_some()
        {
            let conn = self.key(slot);
            self.tell_guests(slot, |_| Letter::Speaks { conn, version });
        }
    }

    /// `QUIT` was run.
    pub(in crate::shard) fn guests_quit(&mut self, slot: usize) {
        self.leave_guests(slot, Leave::Quit);
        if let Some(away) = &mut self.conns[slot].away {
            away.quitting = true;
        }
    }

    /// The peer has ended its side.
    pub(in crate::shard) fn guests_half_closed(&mut self, slot: usize) {
        self.leave_guests(slot, Leave::HalfClosed);
    }

    /// All input was run and no more comes.
    pub(in crate::shard) fn finish_guests(&mut self, slot: usize, now: Now) {
        let away = self.conns[slot].away.as_mut();
        if away.is_some_and(|away| !std::mem::replace(&mut away.finished, true)) {
            if self.has_front(slot) {
                self.end_channels(slot, now);
            }
            self.leave_guests(slot, Leave::Finish);
        }
    }

    /// The connection goes at once.
    pub(in crate::shard) fn guests_reset(&mut self, slot: usize) {
        self.leave_guests(slot, Leave::Reset);
    }

    /// An empty line behind an untagged wait at a guest ends it, or another client does.
    pub(in crate::shard) fn cancel_away(&mut self, slot: usize, run: u64, with_error: bool) {
        let away = self.away(slot);
        if std::mem::replace(&mut away.cancelled, true) {
            return;
        }
        let to = away.runs.iter().find(|other| other.id == run);
        if let Some(Run {
            dest: Dest::Guest(to),
            ..
        }) = to
        {
            let to = *to;
            let kind = Kind::Cancel { with_error };
            self.post_input(slot, to, run, kind, Vec::new());
        }
    }
}
