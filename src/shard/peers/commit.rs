//! `COMMIT` of a transaction that several shards have a part in.
//!
//! ```text
//!   home --prepare--> each shard: can its part be done? its leases and its room are kept for it
//!   home <---vote---- each
//!   home --decide---> one of them: logs all parts in one record, the commit point
//!                     that one --part--> each other: does it, in one record   (see engine/parts)
//!   home <-decided--- that one, when all is done and safe everywhere
//! ```
//!
//! If one refuses, nothing was done: the others let go what they have kept. A connection that goes meanwhile changes
//! nothing: once its `COMMIT` was taken, its home sees to the end of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Letter;
use super::away::Wait;
use super::gather::{Gather, Question};
use super::guest::Kind;
use crate::broker::command::Command;
use crate::broker::id::{Level, MessageId};
use crate::broker::lease::{Lease, Leases};
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::config::Limits;
use crate::log::disk::Storage;
use crate::protocol::text::{encode, handles};
use crate::shard::conn::Blocked;
use crate::shard::engine::{Bodies, How, Part, Refused, Return, Settle};
use crate::shard::failure::NO_SPACE;
use crate::shard::session::Flow;
use crate::shard::transaction::{Commands, Transaction};
use crate::shard::{ConnKey, Now, Shard};

/// A transaction: the shard of its connection, and its number there.
pub(super) type Name = (u32, u64);

/// A shard can do its part.
#[derive(Debug)]
pub(super) struct Vote {
    part: Bytes,
    /// Something of it is logged.
    is_logged: bool,
    /// The weakest level that a publish of it is told.
    told: Level,
}

/// What is kept for a part until it is decided.
#[derive(Debug, Default)]
struct Prepared {
    /// Leases, for how long each was begun, and the connection that has it.
    leases: Vec<(Lease, Option<u64>, Option<ConnKey>)>,
    bodies: Bodies,
}

/// A transaction of a connection of this shard.
#[derive(Debug)]
struct Commit {
    conn: ConnKey,
    run: u64,
    commands: u64,
    missing: usize,
    votes: Vec<(u32, Vote)>,
    errors: Vec<Error>,
    /// Shards that have prepared it, once it was given to one to decide.
    asked: Vec<u32>,
    told: Level,
}

/// A transaction that this shard is to decide.
#[derive(Debug)]
struct Deciding {
    name: Name,
    own: Option<Part>,
    others: Vec<(u32, bool, Bytes)>,
    bodies: Bodies,
}

/// Transactions of several shards that are under way.
#[derive(Debug, Default)]
pub(super) struct Commits {
    last: u64,
    own: BTreeMap<u64, Commit>,
    prepared: BTreeMap<Name, Prepared>,
    deciding: Vec<Deciding>,
}

impl<S: Storage> Shard<S> {
    /// Begins to commit what the connection has queued; `parts` are the commands of each shard.
    pub(super) fn commit_across(
        &mut self,
        slot: usize,
        parts: Vec<(u32, Vec<u8>)>,
        tag: Option<&[u8]>,
        quiet: bool,
        now: Now,
    ) -> Flow {
        let (shards, me) = self.shards();
        let all = parts.iter().map(|(shard, _)| *shard);
        let others: Vec<u32> = all.filter(|shard| *shard != me).collect();
        if !self.has_room_to(slot, &others) {
            return Flow::Again;
        }
        let number = self.mail().commits.last + 1;
        let mut own = None;
        if let Some((_, frames)) = parts.iter().find(|(shard, _)| *shard == me) {
            let open = self.conns[slot].transaction.as_mut();
            let bodies = open.map(|open| std::mem::take(open.bodies()));
            let mut part = Transaction::part(frames.clone(), bodies.unwrap_or_default());
            own = self.prepare((me, number), &mut part, now);
            if own.is_none() {
                if let Some(open) = &mut self.conns[slot].transaction {
                    *open.bodies() = std::mem::take(part.bodies());
                }
                self.block_cold(slot);
                return Flow::Again;
            }
        }
        let open = self.conns[slot].transaction.take().unwrap_or_default();
        let (_, commands, _) = open.into_parts();
        let gather = Gather::new(Question::Commit, tag, quiet, shards, 1);
        let run = self.add_gather(slot, gather);
        self.conns[slot].blocked = Blocked::Away(Wait::Run(run));
        let commit = Commit {
            conn: self.key(slot),
            run,
            commands,
            missing: parts.len(),
            votes: Vec::new(),
            errors: Vec::new(),
            asked: Vec::new(),
            told: Level::Quorum,
        };
        let commits = &mut self.mail().commits;
        commits.last = number;
        commits.own.insert(number, commit);
        for (to, frames) in parts {
            if to != me {
                self.post_input(slot, to, run, Kind::Prepare { number }, frames);
            }
        }
        if let Some(vote) = own {
            self.voted(me, number, vote, now);
        }
        Flow::Done
    }

    /// Prepares a part at a guest; false if that goes on in a later turn.
    pub(super) fn prepare_posted(
        &mut self,
        slot: usize,
        name: Name,
        frames: &[u8],
        now: Now,
    ) -> bool {
        let open = self.conns[slot].transaction.take();
        let mut part =
            open.unwrap_or_else(|| Box::new(Transaction::part(frames.to_vec(), Bodies::default())));
        let Some(vote) = self.prepare(name, &mut part, now) else {
            self.conns[slot].transaction = Some(part);
            self.block_cold(slot);
            return false;
        };
        let (to, number) = name;
        let vote = Box::new(vote);
        self.mail().post(to, Letter::Vote { number, vote });
        true
    }

    /// Finds out whether a part can be done, and keeps for it what it needs; `None` if something must be read first.
    fn prepare(
        &mut self,
        name: Name,
        open: &mut Transaction,
        now: Now,
    ) -> Option<Result<Vote, Error>> {
        let plan = match self.plan(open, now) {
            Ok(plan) => plan,
            Err(Refused::Cold) => return None,
            Err(Refused::Error(error)) => return Some(Err(error)),
        };
        let limits = self.limits.clone();
        let mut prepared = Prepared::default();
        let (mut settles, mut told, mut is_logged) = (Vec::new(), Level::Quorum, false);
        let frames = Bytes::copy_from_slice(open.frames());
        let mut commands = Commands::new(&frames);
        let mut scratch = Vec::new();
        while let Some(command) = commands.next(&limits) {
            let (tokens, how) = match command {
                Command::Ack { handles } => (handles, How::Ack),
                Command::Nack {
                    handles,
                    delay_us,
                    dead,
                    why,
                } => {
                    let why = why.map(|why| why.decoded(&mut scratch).to_vec());
                    let why = why.unwrap_or_default();
                    let how = How::Nack {
                        delay_us,
                        dead,
                        why,
                    };
                    (handles, how)
                }
                Command::Publish { queue, options, .. }
                | Command::PublishBatch { queue, options, .. } => {
                    let found = self.engine.find(queue.decoded(&mut scratch));
                    let level = match found {
                        Some(key) => self.engine.queue(key).settings.durable,
                        None => self.engine.defaults.durable,
                    };
                    told = told.min(options.sync.unwrap_or(level));
                    is_logged |= level != Level::None;
                    continue;
                }
                _ => continue,
            };
            for token in tokens.iter() {
                let handle = handles::parse(token).expect("the handle was looked at");
                let duration_us = self.engine.leases.duration_us(handle.serial);
                let lease = self.engine.leases.end(handle.serial);
                let lease = lease.expect("the lease was looked at");
                is_logged |= self.settled_at(&lease) != Level::None;
                let conn = self.conn_of_holder(lease.holder);
                let conn = conn.map(|slot| self.key(slot));
                settles.push(Settle {
                    uid: self.engine.queue(lease.queue).uid,
                    id: lease.id,
                    tries: lease.tries,
                    pri: lease.pri,
                    how: how.clone(),
                });
                prepared.leases.push((lease, duration_us, conn));
            }
        }
        prepared.bodies = std::mem::take(open.bodies());
        self.engine.expect_part(name, plan.expected());
        let part = Part {
            at_us: now.us,
            settles,
            frames,
        };
        self.mail().commits.prepared.insert(name, prepared);
        Some(Ok(Vote {
            part: part.encode(),
            is_logged,
            told,
        }))
    }

    /// Transactions of connections that have typed `COMMIT`, here or at the shard that commits them, and are not done.
    pub(in crate::shard) fn commits_open(&self) -> usize {
        let own = self.peers.as_ref().map_or(0, |it| it.commits.own.len());
        let guests = self
            .conns
            .iter()
            .filter_map(|(_, conn)| conn.guest.as_ref());
        own + guests.map(|guest| guest.commits()).sum::<usize>()
    }

    /// A lease outlives its connection from now on, if a part keeps it.
    pub(in crate::shard) fn hold_prepared(&mut self, serial: u64) {
        let Some(peers) = &mut self.peers else { return };
        let parts = peers.commits.prepared.values_mut();
        let mut leases = parts.flat_map(|part| &mut part.leases);
        if let Some((lease, ..)) = leases.find(|(lease, ..)| lease.serial == serial) {
            lease.holder = Leases::NOBODY;
        }
    }

    /// What was kept for a part is let go: it was done, or is not going to be.
    pub(super) fn end_prepared(&mut self, name: Name, done: bool, now: Now) {
        self.engine.expect_no_more(name);
        let Some(prepared) = self.mail().commits.prepared.remove(&name) else {
            return;
        };
        self.engine.outbox.move_on();
        for (lease, duration_us, conn) in prepared.leases {
            let holder = self.conn_of_holder(lease.holder);
            let is_there = conn.is_some() && holder.map(|slot| self.key(slot)) == conn;
            if done {
                self.engine.times.acked(lease.serial);
                if is_there {
                    self.credit_returned(lease.holder);
                }
            } else if is_there || lease.holder == Leases::NOBODY {
                self.engine.leases.restore(&lease, duration_us);
            } else {
                self.engine.give_back(&lease, Return::Lost, b"", now);
            }
        }
    }

    /// A shard has said whether it can do its part.
    pub(super) fn voted(&mut self, from: u32, number: u64, vote: Result<Vote, Error>, now: Now) {
        let (_, me) = self.shards();
        let Some(commit) = self.mail().commits.own.get_mut(&number) else {
            return;
        };
        match vote {
            Ok(vote) => commit.votes.push((from, vote)),
            Err(error) => commit.errors.push(error),
        }
        commit.missing -= 1;
        if commit.missing > 0 {
            return;
        }
        commit.votes.sort_by_key(|(shard, _)| *shard);
        let votes = std::mem::take(&mut commit.votes);
        commit.asked = votes.iter().map(|(shard, _)| *shard).collect();
        if !commit.errors.is_empty() {
            let error = worst(std::mem::take(&mut commit.errors));
            return self.decided(number, Err(error), now);
        }
        let told = votes.iter().map(|(_, vote)| vote.told).min();
        commit.told = told.unwrap_or(Level::Quorum);
        // The lowest of those whose logs have to do with it, else the lowest.
        let logged = votes.iter().find(|(_, vote)| vote.is_logged);
        let to = logged.or(votes.first()).map_or(me, |(shard, _)| *shard);
        let votes = votes.into_iter();
        let parts = votes.map(|(shard, vote)| (shard, vote.is_logged, vote.part));
        let parts = parts.collect();
        if to == me {
            self.decide_later((me, number), parts);
        } else {
            self.mail().post(to, Letter::Decide { number, parts });
        }
    }

    /// This shard is to decide a transaction; it does so before the turn's record is written.
    pub(super) fn decide_later(&mut self, name: Name, mut parts: Vec<(u32, bool, Bytes)>) {
        let (_, me) = self.shards();
        let own = parts.iter().position(|(shard, ..)| *shard == me);
        let own = own.map(|at| parts.remove(at).2);
        let own =
            own.map(|part| Part::decode(&part).expect("a shard writes what another can read"));
        let commits = &mut self.mail().commits;
        let prepared = commits.prepared.get_mut(&name);
        let bodies = prepared.map(|prepared| std::mem::take(&mut prepared.bodies));
        commits.deciding.push(Deciding {
            name,
            own,
            others: parts,
            bodies: bodies.unwrap_or_default(),
        });
    }

    /// Transactions that wait for this shard go on.
    pub(in crate::shard) fn go_on_committing(&mut self, now: Now) {
        if self.failed.is_some() || self.is_log_closed() {
            return;
        }
        let limits = part_limits(&self.limits);
        for mut deciding in std::mem::take(&mut self.mail().commits.deciding) {
            let decided = self.engine.decide(
                deciding.name,
                deciding.own.as_ref(),
                &deciding.others,
                &mut deciding.bodies,
                &limits,
                now,
            );
            match decided {
                Ok(()) => self.end_prepared(deciding.name, true, now),
                Err(Refused::Cold) => self.mail().commits.deciding.push(deciding),
                Err(Refused::Error(error)) => self.tell_decided(deciding.name, Err(error), now),
            }
        }
        for name in self.engine.do_orders(&limits, now) {
            self.end_prepared(name, true, now);
        }
        for (home, number) in self.engine.outbox.orders.take_stuck() {
            match home == self.shards().1 {
                true => self.stuck(number),
                false => self.mail().post(home, Letter::Stuck { number }),
            }
        }
        self.open_when_started();
    }

    /// The home of a transaction is told what became of it.
    fn tell_decided(&mut self, (home, number): Name, result: Result<(), Error>, now: Now) {
        if home == self.shards().1 {
            return self.decided(number, result, now);
        }
        self.mail().post(home, Letter::Decided { number, result });
    }

    /// Parts go to their shards, and transactions that are done everywhere are answered.
    pub(super) fn exchange_orders(&mut self, now: Now) {
        for (to, ordered) in self.engine.poll_orders() {
            self.mail().post(to, Letter::Order(Box::new(ordered)));
        }
        for name in self.engine.poll_decided() {
            self.tell_decided(name, Ok(()), now);
        }
    }

    /// A transaction of this shard's connection was decided: done everywhere, or refused.
    pub(super) fn decided(&mut self, number: u64, result: Result<(), Error>, now: Now) {
        let (_, me) = self.shards();
        let Some(commit) = self.mail().commits.own.remove(&number) else {
            return;
        };
        let mut text = Vec::new();
        match result {
            Ok(()) => {
                self.totals.transactions.committed += 1;
                let level = commit.told.receipt();
                text.extend_from_slice(format!("OK {} {level}\n", commit.commands).as_bytes());
            }
            Err(error) => {
                for shard in commit.asked {
                    match shard == me {
                        true => self.end_prepared((me, number), false, now),
                        false => self.mail().post(shard, Letter::Abort { number }),
                    }
                }
                self.totals.transactions.voided += 1;
                self.totals.count_error(error.code);
                encode::reply(&mut text, None, &Reply::Error(&error));
            }
        }
        if let Some(slot) = self.slot(commit.conn) {
            self.part_came(slot, commit.run, me, text);
        }
        self.housekeeping.look_again();
    }

    /// A transaction of this shard's connection is decided, and a shard has no space to do its part: it will be done
    /// whole or, if its decision is lost with a crash, not at all.
    pub(super) fn stuck(&mut self, number: u64) {
        let (_, me) = self.shards();
        let Some(commit) = self.mail().commits.own.remove(&number) else {
            return;
        };
        self.totals.transactions.committed += 1;
        let error = Error::new(ErrorCode::UnknownResult, NO_SPACE);
        self.totals.count_error(error.code);
        let mut text = Vec::new();
        encode::reply(&mut text, None, &Reply::Error(&error));
        if let Some(slot) = self.slot(commit.conn) {
            self.part_came(slot, commit.run, me, text);
        }
        self.housekeeping.look_again();
    }

    /// Transactions of several shards are under way.
    pub(in crate::shard) fn is_committing(&self) -> bool {
        let peers = self.peers.as_ref();
        peers.is_some_and(|peers| !peers.commits.own.is_empty())
    }

    /// Messages that are kept for a transaction, and their priorities.
    pub(in crate::shard) fn prepared_messages(
        &self,
    ) -> impl Iterator<Item = (QueueKey, MessageId, u8)> {
        let peers = self.peers.iter();
        let prepared = peers.flat_map(|peers| peers.commits.prepared.values());
        let leases = prepared.flat_map(|prepared| &prepared.leases);
        leases.map(|(lease, ..)| (lease.queue, lease.id, lease.pri))
    }

    /// A compaction has copied a message.
    pub(in crate::shard) fn relocate_prepared(&mut self, key: QueueKey, id: MessageId, place: u64) {
        let Some(peers) = &mut self.peers else { return };
        for prepared in peers.commits.prepared.values_mut() {
            for (lease, ..) in &mut prepared.leases {
                if lease.queue == key && lease.id == id {
                    lease.place = place;
                }
            }
        }
    }

    // --- The begin: parts that a crash has left are done before anybody is served ---

    /// Do connections have to wait, because another shard may still have something for this one to do?
    pub(in crate::shard) fn is_starting(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| !peers.is_open)
    }

    /// A new connection waits with its first command.
    pub(in crate::shard) fn wait_for_start(&mut self, slot: usize) {
        if self.is_starting() {
            self.conns[slot].blocked = Blocked::Away(Wait::Start);
        }
    }

    /// Tells the others, once, that what they have to do was posted.
    pub(super) fn exchange_starts(&mut self) {
        let peers = self.mail();
        if std::mem::replace(&mut peers.said_started, true) {
            return;
        }
        self.engine.count_far_dead();
        self.exchange_dead();
        self.post_routes();
        let peers = self.mail();
        for to in 0..peers.count {
            if to != peers.me {
                peers.post(to, Letter::Started);
            }
        }
    }

    fn open_when_started(&mut self) {
        let has_pending = self.engine.outbox.orders.has_pending();
        let peers = self.mail();
        if peers.is_open || peers.started + 1 < peers.count || has_pending {
            return;
        }
        peers.is_open = true;
        let slots: Vec<usize> = self.conns.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            if self.conns[slot].blocked == Blocked::Away(Wait::Start) {
                self.conns[slot].blocked = Blocked::No;
                self.resume(slot);
            }
        }
        self.housekeeping.look_again();
    }
}

/// What is in a part was within the limits when it was typed, which may be others after a restart.
fn part_limits(limits: &Limits) -> Limits {
    const LARGE: usize = 1 << 31;
    Limits {
        line_bytes_max: LARGE,
        body_bytes_max: LARGE,
        batch_count_max: LARGE,
        batch_bytes_max: LARGE,
        handles_max: LARGE,
        ..limits.clone()
    }
}

/// What a transaction is refused with: all stale handles, or what was said first.
fn worst(errors: Vec<Error>) -> Error {
    let is_stale = |error: &&Error| error.code == ErrorCode::Stale;
    let lists = errors.iter().filter(is_stale);
    let lists: Vec<&str> = lists
        .filter_map(|error| error.fields.strip_prefix("stale="))
        .collect();
    let fields = lists.join(",");
    let stale = errors.iter().find(is_stale).cloned();
    match stale {
        Some(stale) if fields.is_empty() => stale,
        Some(stale) => Error {
            fields: format!("stale={fields}"),
            ..stale
        },
        None => errors.into_iter().next().expect("one has refused"),
    }
}

/// The guest that was to prepare a part is gone.
pub(super) fn gone() -> Error {
    Error::new(
        ErrorCode::Conflict,
        "the connection was closed: nothing of its transaction is done",
    )
}
