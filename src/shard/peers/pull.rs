//! `PULL` of queues on several shards.
//!
//! The connection's home leads: it has every shard *look*, and *takes* from those that have something, one after
//! another in the order named, until there are as many as wanted. Each look leaves a *watch* in the lines of
//! the queues. When a watch's turn comes, its shard keeps one message for the pull and *offers*: so those
//! who wait elsewhere are served in their turn, and who is behind goes on. The home takes from those that have
//! offered, the first named first; what is not taken goes back, and counts as no try.
//!
//! ```text
//!   home: look ----> watch stands in line        take ----> the offered message and more
//!         found <--- nothing, or an offer        given <--- how many
//!               <--- offer, when its turn comes  unwatch -> what is kept goes back
//! ```

use std::collections::VecDeque;

use super::guest::Kind;
use super::read::Read;
use super::watch::{Found, Given, Part, Wanted};
use super::{Letter, Plan};
use crate::broker::command::{PullOptions, Source, Sources};
use crate::broker::queue::{QueueKey, WaiterKey};
use crate::broker::reply::Error;
use crate::log::disk::Storage;
use crate::shard::conn::{Blocked, Life};
use crate::shard::door::Pop;
use crate::shard::drain::draining;
use crate::shard::groups::Reader;
use crate::shard::session::Flow;
use crate::shard::waiters::{AcrossWaiter, COLD_PATIENCE_US, FOREVER_US, Waiter};
use crate::shard::{Now, Shard};

/// What a pull of queues on several shards asks for.
#[derive(Debug)]
pub(in crate::shard) enum Asks {
    /// Messages, as `PULL`.
    Messages,
    /// RESP: what the first list has that has any.
    Pop(Pop),
    /// RESP: what is new or pending in streams.
    Streams(Box<Read>),
}

impl Asks {
    fn wanted(&self) -> Wanted {
        match self {
            Asks::Messages => Wanted::Messages,
            Asks::Pop(pop) => Wanted::Pop(*pop),
            Asks::Streams(_) => Wanted::Streams,
        }
    }
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// So many shards have not looked yet.
    Looking(u32),
    /// A shard takes.
    Taking,
    /// It waits for offers.
    Waiting,
    /// Its end is written.
    Over,
}

/// One part as the home sees it.
#[derive(Debug)]
pub(super) struct Side {
    pub shard: u32,
    sources: Box<[u8]>,
    /// It has offered.
    pub offered: bool,
}

/// A pull of queues on several shards.
#[derive(Debug)]
pub(super) struct Pull {
    pub id: u64,
    tag: Box<[u8]>,
    options: PullOptions,
    pub asks: Asks,
    pub sides: Vec<Side>,
    pub stage: Stage,
    /// Parts that are taken from next.
    pass: VecDeque<u32>,
    total: u32,
    bytes: u64,
    /// A message of it is being read from the disk.
    cold: bool,
    /// Its time is over: it ends when nothing more is found.
    pub due: bool,
    /// It ends, whatever may be read from the disk.
    pub cancelled: bool,
    pub refused: Option<(u32, Error)>,
    waiter: WaiterKey,
}

impl Pull {
    /// What refuses it counts, unless it pops and a list that is named before may have something.
    fn is_refused(&self) -> bool {
        let is_pop = matches!(self.asks, Asks::Pop(_));
        self.refused.as_ref().is_some_and(|(part, _)| {
            let mut before = self.sides.iter().take(*part as usize);
            !(is_pop && (self.cold || before.any(|side| side.offered)))
        })
    }
}

impl<S: Storage> Shard<S> {
    /// The sources of a pull by shard, in the order named; the shard if all are on one.
    pub(super) fn split_pull(
        &mut self,
        slot: usize,
        sources: Sources<'_>,
        options: PullOptions,
    ) -> Result<Plan, u32> {
        let mut parts: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut seen: Vec<Source<'_>> = Vec::new();
        for source in sources.iter() {
            let shard = self.owner_of(slot, source.queue);
            let same = |other: &Source<'_>| {
                let group = |source: &Source<'_>| source.group.map(|group| group.0.to_vec());
                other.queue.0 == source.queue.0 && group(other) == group(&source)
            };
            if seen.iter().any(same) {
                continue;
            }
            seen.push(source);
            let mut text = source.queue.0.to_vec();
            if let Some(group) = source.group {
                text.push(b'/');
                text.extend_from_slice(group.0);
            }
            match parts.last_mut() {
                Some((last, joined)) if *last == shard => {
                    joined.push(b',');
                    joined.extend_from_slice(&text);
                }
                _ => parts.push((shard, text)),
            }
        }
        match &parts[..] {
            [(shard, _)] => Err(*shard),
            _ => Ok(Plan::Pull(parts, options)),
        }
    }

    /// Begins a pull of queues on several shards.
    pub(in crate::shard) fn begin_across(
        &mut self,
        slot: usize,
        tag: &[u8],
        mut parts: Vec<(u32, Vec<u8>)>,
        options: PullOptions,
        asks: Asks,
        now: Now,
    ) -> Flow {
        let (_, me) = self.shards();
        let wanted = asks.wanted();
        let others: Vec<u32> = parts.iter().map(|(shard, _)| *shard).collect();
        let others: Vec<u32> = others.into_iter().filter(|shard| *shard != me).collect();
        let tag_shown = (!tag.is_empty()).then_some(tag);
        if self.is_draining() {
            self.refuse(slot, tag_shown, &draining());
            return Flow::Done;
        }
        if !self.has_room_to(slot, &others) {
            return Flow::Again;
        }
        // What can be refused here is, before others are asked.
        let (mut own, mut refused) = (Vec::new(), None);
        for (part, (shard, sources)) in parts.iter().enumerate() {
            if *shard != me {
                continue;
            }
            if self.wait_for_publishes(slot) {
                return Flow::Again;
            }
            match self.open_part(slot, Sources(sources), &options, wanted, now) {
                Ok(Some(keys)) => own.push((part as u32, keys)),
                Ok(None) => return Flow::Again,
                Err(error) if part > 0 && matches!(asks, Asks::Pop(_)) => {
                    refused = Some((part as u32, error));
                    break;
                }
                Err(error) => {
                    self.refuse(slot, tag_shown, &error);
                    return Flow::Done;
                }
            }
        }
        if let Some((part, _)) = refused {
            // Lists that were named before may have something.
            parts.truncate(part as usize);
        }
        let asked = parts.iter().filter(|(shard, _)| *shard != me).count();
        self.totals.commands += 1;
        let at = self.key(slot);
        let away = self.away(slot);
        away.next_pull += 1;
        let id = away.next_pull;
        let deadline_us = match options.wait_us {
            0 => FOREVER_US,
            wait_us => now.us.saturating_add(wait_us),
        };
        let waiter = AcrossWaiter {
            conn: at,
            pull: id,
            deadline_us,
            serial: self.waiters.next_serial(),
        };
        let waiter = self.waiters.add_across(Waiter::Across(waiter));
        let sides = parts.iter().map(|(shard, sources)| Side {
            shard: *shard,
            sources: (&**sources).into(),
            offered: false,
        });
        let is_over = options.wait_us == 0 || self.conns[slot].life != Life::Open;
        let pull = Pull {
            id,
            tag: tag.into(),
            options,
            asks,
            sides: sides.collect(),
            stage: Stage::Looking(asked as u32),
            pass: VecDeque::new(),
            total: 0,
            bytes: 0,
            cold: false,
            due: is_over,
            cancelled: false,
            refused,
            waiter,
        };
        self.away(slot).pulls.push(pull);
        let conn = &mut self.conns[slot];
        conn.rare.make().waits.push(crate::shard::conn::Wait {
            tag: tag.into(),
            waiter,
            subscription: false,
        });
        if tag.is_empty() {
            conn.blocked = Blocked::Pull(waiter);
        }
        for (part, (shard, sources)) in parts.iter().enumerate() {
            if *shard != me {
                let look = Part {
                    pull: id,
                    part: part as u32,
                    sources: (&**sources).into(),
                    tag: tag.into(),
                    options,
                    wanted,
                };
                self.post_input(slot, *shard, 0, Kind::Look(Box::new(look)), Vec::new());
            }
        }
        for (part, keys) in own {
            let is_stream = wanted == Wanted::Streams;
            if self.watch(slot, id, part, keys, is_stream, now) {
                self.offered(slot, id, part);
            }
        }
        Flow::Done
    }

    /// What a part of a pull reads; `None` if the connection waits for one to begin.
    pub(super) fn open_part(
        &mut self,
        slot: usize,
        sources: Sources<'_>,
        options: &PullOptions,
        wanted: Wanted,
        now: Now,
    ) -> Result<Option<Vec<QueueKey>>, Error> {
        match wanted {
            Wanted::Messages => self.open_all(slot, sources, options, now),
            Wanted::Pop(pop) => self.open_pop(slot, sources, pop, now).map(Some),
            Wanted::Streams => self.open_streams(slot, sources).map(Some),
        }
    }

    /// The readers of these sources; `None` if the connection waits for one to begin.
    fn open_all(
        &mut self,
        slot: usize,
        sources: Sources<'_>,
        options: &PullOptions,
        now: Now,
    ) -> Result<Option<Vec<QueueKey>>, Error> {
        let mut keys = Vec::new();
        for source in sources.iter() {
            match self.open_reader(slot, source, options.from, now)? {
                Reader::Open(key) if keys.contains(&key) => {}
                Reader::Open(key) => keys.push(key),
                Reader::Blocked => return Ok(None),
            }
        }
        for key in &keys {
            self.note_puller(slot, *key);
        }
        Ok(Some(keys))
    }

    /// Was the pull, if it is of queues on several shards, asked to wait?
    pub(in crate::shard) fn pull_may_wait(&self, slot: usize, waiter: WaiterKey) -> bool {
        let away = self.conns[slot].away.as_ref();
        let mut pulls = away.iter().flat_map(|away| &away.pulls);
        let pull = pulls.find(|pull| pull.waiter == waiter);
        pull.is_none_or(|pull| pull.options.wait_us > 0)
    }

    pub(super) fn across(&mut self, slot: usize, id: u64) -> Option<&mut Pull> {
        let away = self.conns[slot].away.as_mut()?;
        away.pulls.iter_mut().find(|pull| pull.id == id)
    }

    /// Is one of the connection's pulls between two questions?
    pub(super) fn is_pulling(&self, slot: usize, tag: Option<&[u8]>) -> bool {
        let away = self.conns[slot].away.as_ref();
        away.is_some_and(|away| {
            let mut pulls = away.pulls.iter();
            pulls.any(|pull| {
                let is_busy = matches!(pull.stage, Stage::Looking(_) | Stage::Taking);
                is_busy && tag.is_none_or(|tag| *pull.tag == *tag)
            })
        })
    }

    /// A part has an offer: what to do is decided in the next turn, for all that came till then.
    pub(super) fn offered(&mut self, slot: usize, id: u64, part: u32) {
        let at = self.key(slot);
        if let Some(pull) = self.across(slot, id) {
            pull.sides[part as usize].offered = true;
            self.mail().deciding.push((at, id));
        }
    }

    /// A shard has looked.
    pub(super) fn looked(&mut self, slot: usize, id: u64, part: u32, found: Found) {
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        if let Stage::Looking(left) = &mut pull.stage
            && !matches!(found, Found::Gone(_))
        {
            *left -= 1;
        }
        match found {
            Found::Nothing => {}
            Found::Ready => pull.sides[part as usize].offered = true,
            Found::Refused(error) | Found::Gone(error) => {
                if pull.refused.as_ref().is_none_or(|(first, _)| part < *first) {
                    pull.refused = Some((part, error));
                }
            }
        }
        let at = self.key(slot);
        self.mail().deciding.push((at, id));
    }

    /// Goes on with the pulls of which something is known that was not.
    pub(in crate::shard) fn decide_pulls(&mut self, now: Now) {
        for (at, id) in std::mem::take(&mut self.mail().deciding) {
            let Some(slot) = self.slot(at) else { continue };
            let Some(pull) = self.across(slot, id) else {
                continue;
            };
            match pull.stage {
                Stage::Looking(0) if pull.is_refused() => self.refuse_across(slot, id, now),
                Stage::Looking(0) => self.begin_pass(slot, id, false, now),
                Stage::Waiting if pull.is_refused() => self.refuse_across(slot, id, now),
                Stage::Taking => self.go_on_reading(slot, id, now),
                Stage::Waiting if pull.sides.iter().any(|side| side.offered) => {
                    self.begin_pass(slot, id, false, now);
                }
                _ => {}
            }
        }
    }

    /// Takes from those that have offered, or from all.
    fn begin_pass(&mut self, slot: usize, id: u64, all: bool, now: Now) {
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        if let Asks::Streams(_) = pull.asks {
            return self.begin_reading(slot, id, all, now);
        }
        pull.cold = false;
        pull.pass.clear();
        let end = pull.refused.as_ref().map_or(u32::MAX, |(part, _)| *part);
        for (part, side) in pull.sides.iter_mut().enumerate() {
            let is_asked = std::mem::take(&mut side.offered) || all;
            if is_asked && (part as u32) < end {
                pull.pass.push_back(part as u32);
            }
        }
        self.take_next_part(slot, id, now);
    }

    /// A shard has given.
    pub(super) fn taken(&mut self, slot: usize, id: u64, given: Given, now: Now) {
        self.count_given(slot, id, given);
        self.take_next_part(slot, id, now);
    }

    fn count_given(&mut self, slot: usize, id: u64, given: Given) {
        if let Some(pull) = self.across(slot, id) {
            pull.total += given.count;
            pull.bytes += given.bytes;
            pull.cold |= given.cold;
        }
    }

    fn take_next_part(&mut self, slot: usize, id: u64, now: Now) {
        let (_, me) = self.shards();
        loop {
            let Some(pull) = self.across(slot, id) else {
                return;
            };
            let bytes_max = pull.options.bytes_max.unwrap_or(u64::MAX).max(1);
            let is_popped = matches!(pull.asks, Asks::Pop(_)) && pull.total > 0;
            let is_full = is_popped || pull.total >= pull.options.count || pull.bytes >= bytes_max;
            let Some(part) = pull.pass.pop_front().filter(|_| !is_full) else {
                return self.end_pass(slot, id, now);
            };
            pull.stage = Stage::Taking;
            let side = &pull.sides[part as usize];
            let shard = side.shard;
            let take = Part {
                pull: id,
                part,
                sources: side.sources.clone(),
                tag: pull.tag.clone(),
                options: PullOptions {
                    count: pull.options.count - pull.total,
                    bytes_max: pull.options.bytes_max.map(|_| bytes_max - pull.bytes),
                    ..pull.options
                },
                wanted: pull.asks.wanted(),
            };
            if shard != me {
                return self.post_alone(slot, shard, Kind::Take(Box::new(take)), Vec::new());
            }
            let given = self.take_part(slot, &take, now);
            self.seal_own(slot, true);
            self.count_given(slot, id, given);
        }
    }

    fn end_pass(&mut self, slot: usize, id: u64, now: Now) {
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        pull.stage = Stage::Waiting;
        if pull.total > 0 || pull.cancelled {
            return self.finish_across(slot, id, now);
        }
        if pull.is_refused() {
            return self.refuse_across(slot, id, now);
        }
        if pull.sides.iter().any(|side| side.offered) {
            return self.begin_pass(slot, id, false, now);
        }
        if !pull.due {
            // A command that ends it may have been kept back.
            return self.list_away(slot);
        }
        if !pull.cold {
            return self.finish_across(slot, id, now);
        }
        // What is read from the disk is offered when it comes.
        pull.due = false;
        let waiter = pull.waiter;
        if let Some(Waiter::Across(across)) = self.waiters.slab.get_mut(waiter.0 as usize) {
            across.deadline_us = now.us + COLD_PATIENCE_US;
        }
        self.waiters.deadline_changed(waiter);
    }

    /// The wait is over: all are asked once more.
    pub(in crate::shard) fn across_due(&mut self, slot: usize, id: u64, now: Now) {
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        pull.due = true;
        if pull.stage == Stage::Waiting {
            self.begin_pass(slot, id, true, now);
        }
    }

    /// The wait is to end at once; a shard that takes at this moment is still waited for.
    pub(in crate::shard) fn cancel_across(&mut self, slot: usize, id: u64) {
        let at = self.key(slot);
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        pull.due = true;
        pull.cancelled = true;
        if pull.stage == Stage::Waiting {
            pull.stage = Stage::Over;
            self.write_end(slot, id);
            self.mail().ended.push((at, id));
        }
    }

    /// The peer sends nothing more, or the broker drains: what waits ends, what is asked for is still given.
    pub(in crate::shard) fn end_across(&mut self, slot: usize, now: Now) {
        if self.conns[slot].guest.is_some() {
            return self.drop_watches(slot, None, now);
        }
        let Some(away) = &self.conns[slot].away else {
            return;
        };
        let ids: Vec<u64> = away.pulls.iter().map(|pull| pull.id).collect();
        for id in ids {
            let Some(pull) = self.across(slot, id) else {
                continue;
            };
            pull.due = true;
            if pull.stage == Stage::Waiting {
                self.finish_across(slot, id, now);
            }
        }
    }

    pub(super) fn refuse_across(&mut self, slot: usize, id: u64, now: Now) {
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        let (_, error) = pull.refused.take().expect("it was just looked at");
        let tag = pull.tag.clone();
        let tag = (!tag.is_empty()).then_some(&*tag);
        self.answer_error(slot, tag, &error);
        self.leave_across(slot, id);
        self.unwatch(slot, id, now);
    }

    pub(super) fn finish_across(&mut self, slot: usize, id: u64, now: Now) {
        self.write_end(slot, id);
        self.unwatch(slot, id, now);
    }

    /// Ends a pull with what it was given.
    fn write_end(&mut self, slot: usize, id: u64) {
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        let (tag, total) = (pull.tag.clone(), pull.total);
        match pull.asks.wanted() {
            Wanted::Messages => self.end_pull(slot, &tag, total),
            Wanted::Streams => self.write_streams_read(slot, id),
            // What was given is the reply.
            Wanted::Pop(_) if total > 0 => self.end_with(slot, false),
            Wanted::Pop(pop) => {
                self.expect_pop(slot, pop);
                self.end_pull(slot, &tag, 0);
            }
        }
        self.leave_across(slot, id);
    }

    /// The connection goes on.
    pub(super) fn leave_across(&mut self, slot: usize, id: u64) {
        let Some(pull) = self.across(slot, id) else {
            return;
        };
        let waiter = pull.waiter;
        self.waiters.slab.try_remove(waiter.0 as usize);
        self.waiters.pull_gone();
        let conn = &mut self.conns[slot];
        conn.rare.end_wait(waiter);
        if conn.blocked == Blocked::Pull(waiter) {
            conn.blocked = Blocked::No;
            self.resume(slot);
        }
        // The answer stands behind what was given elsewhere.
        self.seal_own(slot, true);
        self.list_away(slot);
        self.mark_dirty(slot);
    }

    /// Nothing is kept any more for a pull that has ended.
    pub(super) fn unwatch(&mut self, slot: usize, id: u64, now: Now) {
        let (_, me) = self.shards();
        let conn = self.key(slot);
        let Some(away) = self.conns[slot].away.as_mut() else {
            return;
        };
        let Some(at) = away.pulls.iter().position(|pull| pull.id == id) else {
            return;
        };
        let pull = away.pulls.remove(at);
        let mut told: Vec<u32> = pull.sides.iter().map(|side| side.shard).collect();
        told.sort_unstable();
        told.dedup();
        for shard in told.into_iter().filter(|shard| *shard != me) {
            self.mail().post(shard, Letter::Unwatch { conn, pull: id });
        }
        self.drop_watches(slot, Some(id), now);
    }

    /// Pulls that were cancelled since the last turn keep nothing any more.
    pub(super) fn end_cancelled(&mut self, now: Now) {
        for (at, id) in std::mem::take(&mut self.mail().ended) {
            if let Some(slot) = self.slot(at) {
                self.unwatch(slot, id, now);
            }
        }
    }
}
