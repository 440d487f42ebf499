//! `XREADGROUP` of streams on several shards.
//!
//! It is a pull whose parts are read at once, each as a command of its own, and whose one reply is merged by the home:
//! so what each part says does not go to the wire. All parts look before any reads, so that a group that is missing
//! refuses all of it. What they have read belongs to its consumer, whatever becomes of the reply.

use super::gather::Part;
use super::guest::Kind;
use super::pull::{Asks, Stage};
use crate::broker::queue::WaiterKey;
use crate::log::disk::Storage;
use crate::shard::conn::Blocked;
use crate::shard::door;
use crate::shard::waiters::Offer;
use crate::shard::{ConnKey, Now, Shard};

/// A read of streams on several shards.
#[derive(Debug)]
pub(in crate::shard) struct Read {
    /// The streams in the order asked for.
    keys: Vec<Box<[u8]>>,
    /// What each part is asked.
    commands: Vec<Vec<u8>>,
    /// Under which number those that are asked answer.
    question: u64,
    /// So many have not answered.
    missing: usize,
    replies: Vec<Vec<u8>>,
    /// This shard's part comes again when something was read from the disk.
    is_own_blocked: bool,
}

impl Read {
    /// Of these streams, in that order; each part is asked that.
    pub(in crate::shard) fn new(keys: Vec<Box<[u8]>>, commands: Vec<Vec<u8>>) -> Read {
        Read {
            keys,
            commands,
            question: 0,
            missing: 0,
            replies: Vec::new(),
            is_own_blocked: false,
        }
    }
}

impl<S: Storage> Shard<S> {
    fn reading(&mut self, slot: usize, id: u64) -> Option<&mut Read> {
        match &mut self.across(slot, id)?.asks {
            Asks::Streams(read) => Some(read),
            _ => None,
        }
    }

    /// Asks every part, or those that have offered; the first time every part is asked.
    pub(super) fn begin_reading(&mut self, slot: usize, id: u64, all: bool, now: Now) {
        let question = self.add_question(slot);
        let (_, me) = self.shards();
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        let Asks::Streams(read) = &mut pull.asks else {
            return;
        };
        let all = all || read.question == 0;
        let mut asked = Vec::new();
        for (side, command) in pull.sides.iter_mut().zip(&read.commands) {
            if std::mem::take(&mut side.offered) || all {
                asked.push((side.shard, command.clone()));
            }
        }
        (read.question, read.missing) = (question, asked.len());
        read.replies.clear();
        pull.stage = Stage::Taking;
        let mut is_own = false;
        for (shard, command) in asked {
            match shard == me {
                true => is_own = true,
                false => self.post_input(slot, shard, question, Kind::Read { pull: id }, command),
            }
        }
        if is_own {
            self.read_own(slot, id, now);
        }
    }

    /// This shard's part. The connection waits for its pull and for nothing else.
    fn read_own(&mut self, slot: usize, id: u64, now: Now) {
        let (_, me) = self.shards();
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        let own = pull.sides.iter().position(|side| side.shard == me);
        let Asks::Streams(read) = &pull.asks else {
            return;
        };
        let command = read.commands[own.expect("it has a part")].clone();
        let question = read.question;
        let waits = std::mem::replace(&mut self.conns[slot].blocked, Blocked::No);
        let part = self.read_part(slot, id, &command, now);
        self.conns[slot].blocked = waits;
        let home = (me, self.key(slot));
        match part {
            Some(part) => self.keep_captured(home, question, part),
            None => {
                if let Some(read) = self.reading(slot, id) {
                    read.is_own_blocked = true;
                }
            }
        }
    }

    /// Something was read from the disk: a part that waited for that comes again.
    pub(in crate::shard) fn read_own_again(&mut self, at: ConnKey) {
        let Some(slot) = self.slot(at) else { return };
        let Some(away) = &self.conns[slot].away else {
            return;
        };
        let is_blocked = |asks: &Asks| matches!(asks, Asks::Streams(read) if read.is_own_blocked);
        let pulls = away.pulls.iter().filter(|pull| is_blocked(&pull.asks));
        let ids: Vec<u64> = pulls.map(|pull| pull.id).collect();
        for id in ids {
            self.mail().deciding.push((at, id));
        }
    }

    /// Reads what a part of a pull reads at this shard. `None`: it comes again when the connection is not blocked.
    pub(super) fn read_part(
        &mut self,
        slot: usize,
        pull: u64,
        command: &[u8],
        now: Now,
    ) -> Option<Part> {
        let watches = self.conns[slot].watches().to_vec();
        let is_its = |shard: &mut Self, key: &WaiterKey| {
            let watch = shard.waiters.watch(*key);
            watch.is_some_and(|watch| watch.pull == pull)
        };
        let mut watches = watches;
        watches.retain(|key| is_its(self, key));
        for key in &watches {
            let Some(watch) = self.waiters.watch(*key) else {
                continue;
            };
            let (offer, sources) = (watch.offer, watch.sources.clone());
            watch.offer = match offer {
                Offer::Kept(serial) => Offer::Kept(serial),
                _ => Offer::Late,
            };
            self.return_offer(*key, now);
            if !matches!(offer, Offer::Kept(_)) {
                // Those who came before are served first.
                for source in sources {
                    self.dispatch(source, now);
                }
            }
        }
        let part = self.run_captured(slot, command, now)?;
        for key in watches {
            if !door::is_nothing(&part.text) {
                self.drop_watch(slot, key, now);
            } else if let Some(watch) = self.waiters.watch(key) {
                watch.offer = Offer::None;
                for source in watch.sources.clone() {
                    self.engine.schedule(source);
                }
            }
        }
        Some(part)
    }

    /// A part has answered.
    pub(super) fn read_came(&mut self, slot: usize, question: u64, reply: Vec<u8>) {
        let at = self.key(slot);
        let pulls = &mut self.away(slot).pulls;
        let found = pulls.iter_mut().find_map(|pull| match &mut pull.asks {
            Asks::Streams(read) if read.question == question => Some((pull.id, read)),
            _ => None,
        });
        if let Some((id, read)) = found {
            read.replies.push(reply);
            read.missing -= 1;
            self.mail().deciding.push((at, id));
        }
    }

    /// Goes on with a read that asks, if that is what it is.
    pub(super) fn go_on_reading(&mut self, slot: usize, id: u64, now: Now) {
        let Some(read) = self.reading(slot, id) else {
            return;
        };
        if std::mem::take(&mut read.is_own_blocked) {
            self.read_own(slot, id, now);
        }
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        let Asks::Streams(read) = &mut pull.asks else {
            return;
        };
        if read.missing > 0 {
            return;
        }
        let error = read.replies.iter().find(|reply| reply.starts_with(b"-"));
        if let Some(error) = error.cloned() {
            // Its group went since it was looked for.
            let out = self.conns[slot].out.writer(&mut self.pool);
            out.extend_from_slice(&error);
            self.leave_across(slot, id);
            return self.unwatch(slot, id, now);
        }
        let has_any = read.replies.iter().any(|reply| !door::is_nothing(reply));
        if pull.refused.is_some() {
            self.refuse_across(slot, id, now);
        } else if has_any || pull.cancelled {
            self.finish_across(slot, id, now);
        } else if pull.sides.iter().any(|side| side.offered) {
            self.begin_reading(slot, id, false, now);
        } else if pull.due {
            self.finish_across(slot, id, now);
        } else {
            pull.stage = Stage::Waiting;
            // A command that ends it may have been kept back.
            self.list_away(slot);
        }
    }

    /// Writes what all parts have read, or that there is nothing.
    pub(super) fn write_streams_read(&mut self, slot: usize, id: u64) {
        let version = self.conns[slot].resp_version().unwrap_or_default();
        let Some(read) = self.reading(slot, id) else {
            return;
        };
        if read.replies.iter().all(|reply| door::is_nothing(reply)) {
            self.expect_no_streams(slot);
            return self.end_pull(slot, b"", 0);
        }
        let merged = door::merge_streams(version, &read.keys, &read.replies);
        self.end_with(slot, false);
        let out = self.conns[slot].out.writer(&mut self.pool);
        out.extend_from_slice(&merged);
        self.mark_dirty(slot);
    }
}
