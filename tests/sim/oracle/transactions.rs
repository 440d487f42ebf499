//! BEGIN … COMMIT: what is typed in between happens at the `COMMIT`, all of it or nothing, whatever
//! crashes and whoever closes.
//!
//! A part has no effect when it arrives. When its `COMMIT` has arrived it counts as arrived then, and it
//! is answered by the `COMMIT`'s answer. Until there is one, a part that is seen to be done or not to be
//! done proves the same of all others.

use std::collections::BTreeSet;

use super::Oracle;
use super::record::{Certainty, Claim, Fate, Reason};
use crate::command::{Kind, Level};
use crate::wire::Line;

/// How far a transaction has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its `COMMIT` has not arrived: nothing of it is done.
    Open,
    /// It has arrived, and is not answered.
    Asked,
    /// Its `OK` was read.
    Done,
    /// It was refused, or proved not to be done.
    Undone,
    /// No answer will come.
    Unknown,
}

/// One transaction.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    /// Its publishes and settles.
    parts: Vec<usize>,
    /// Something in it is refused whatever happens.
    spoiled: bool,
    /// Something in it was refused.
    void: bool,
    /// The run of the broker in which its `COMMIT` arrived.
    boot: u64,
    state: State,
}

impl Oracle {
    /// A command was typed: the client knows which transaction it is in.
    pub(super) fn typed_inside(&mut self, command: usize) {
        let link = self.commands[command].link;
        match &self.commands[command].command.kind {
            Kind::Begin => {
                self.links[link].typing = Some(self.transactions.len());
                self.transactions.push(Transaction {
                    parts: Vec::new(),
                    spoiled: false,
                    void: false,
                    boot: 0,
                    state: State::Open,
                });
            }
            Kind::Publish(_) | Kind::Ack(_) | Kind::Nack { .. } => {
                if let Some(number) = self.links[link].typing {
                    self.transactions[number].parts.push(command);
                }
            }
            Kind::Bad { .. } => {
                if let Some(number) = self.links[link].typing {
                    self.transactions[number].spoiled = true;
                }
            }
            Kind::Commit | Kind::Abort => {
                self.commands[command].transaction = self.links[link].typing.take();
                return;
            }
            _ => return,
        }
        self.commands[command].transaction = self.links[link].typing;
    }

    /// The transaction of which the command is a part that takes effect, or is refused, later.
    fn part_of(&self, command: usize) -> Option<usize> {
        let sent = &self.commands[command];
        let ends = matches!(sent.command.kind, Kind::Begin | Kind::Commit | Kind::Abort);
        sent.transaction.filter(|_| !ends)
    }

    /// A command of a transaction has arrived. True if that has no other effect.
    pub(super) fn arrived_inside(&mut self, command: usize) -> bool {
        let Some(number) = self.commands[command].transaction else {
            return false;
        };
        if !matches!(self.commands[command].command.kind, Kind::Commit) {
            return true;
        }
        let (boot, now) = (self.boot, self.now);
        let transaction = &mut self.transactions[number];
        if transaction.spoiled || transaction.void {
            return true;
        }
        transaction.state = State::Asked;
        transaction.boot = boot;
        for part in transaction.parts.clone() {
            self.commands[part].arrived = Some(now);
            self.commands[part].answered = None;
            match self.commands[part].command.kind.clone() {
                Kind::Publish(publish) => self.publish_arrived(part, &publish),
                settle => self.settle_arrived(part, &settle),
            }
        }
        true
    }

    /// The answer to a part, which says only that it is kept, or that all is void. False for what is no
    /// part.
    pub(super) fn part_answered(&mut self, command: usize, line: &Line) -> bool {
        let Some(number) = self.part_of(command) else {
            return false;
        };
        self.checked("F");
        let transaction = &self.transactions[number];
        if transaction.state != State::Asked {
            self.commands[command].answered = Some(self.now);
        }
        let code = line.words.first().map_or("", String::as_str);
        if line.kind == "ERR" && code == "UNKNOWNRESULT" {
            // The disk has failed, and with it every answer that stood behind one that waits for it.
            return true;
        }
        let is_right = match (line.kind.as_str(), &self.commands[command].command.kind) {
            ("ERR", _) if transaction.void => code == "CONFLICT" || code == "UNKNOWN",
            ("ERR", Kind::Bad { codes, .. }) => codes.contains(&code),
            ("ERR", _) => code == "MEM" && self.terms.scarce,
            (kind, Kind::Publish(_) | Kind::Ack(_) | Kind::Nack { .. }) => {
                kind == "OK" && code == "queued" && !transaction.void
            }
            _ => false,
        };
        self.transactions[number].void |= line.kind == "ERR";
        if !is_right {
            let what = &self.commands[command].command;
            let text = format!("{line:?} answers {what:?} in a transaction");
            self.fail("F", text);
        }
        true
    }

    /// Since when all transactions of this run of the broker that publish to a queue are done; `None` if one may not be.
    pub(super) fn committed_since(&self, queue: &str) -> Option<u64> {
        let mut since = 0;
        for transaction in &self.transactions {
            let publishes = |part: &&usize| {
                let publish = self.publish_of(**part);
                publish.is_some_and(|publish| publish.queue == queue)
            };
            let Some(part) = transaction.parts.iter().find(publishes) else {
                continue;
            };
            match transaction.state {
                State::Open | State::Undone => {}
                State::Asked | State::Unknown if transaction.boot != self.boot => {}
                State::Asked | State::Unknown => return None,
                State::Done => since = since.max(self.commands[*part].answered.unwrap_or(0)),
            }
        }
        Some(since)
    }

    /// The `OK` of a `COMMIT`: all of it was done.
    pub(super) fn committed(&mut self, command: usize, count: u64) {
        let Some(number) = self.commands[command].transaction else {
            return;
        };
        self.checked("C");
        let transaction = self.transactions[number].clone();
        let mut handles = BTreeSet::new();
        let mut all = transaction
            .parts
            .iter()
            .flat_map(|part| self.handles_in(*part));
        let is_twice = !all.all(|handle| handles.insert(handle));
        if transaction.void || transaction.spoiled || is_twice {
            let text = format!("something in it was refused, and it was done: {transaction:?}");
            return self.fail("C", text);
        }
        if count != transaction.parts.len() as u64 {
            self.fail(
                "F",
                format!("OK {count} answers the end of {transaction:?}"),
            );
        }
        self.transactions[number].state = State::Done;
        for part in transaction.parts {
            self.commands[part].answered = Some(self.now);
            match self.commands[part].command.kind.clone() {
                Kind::Publish(publish) => {
                    self.drop_old(part, &publish);
                    self.published_inside(part);
                }
                _ => self.settled(part, self.handles_in(part).len() as u64, &[]),
            }
            self.finish_claims(part);
        }
    }

    /// Something in it is a publish.
    pub(super) fn publishes(&self, number: usize) -> bool {
        let mut parts = self.transactions[number].parts.iter();
        parts.any(|part| self.publish_of(*part).is_some())
    }

    fn handles_in(&self, part: usize) -> Vec<String> {
        match &self.commands[part].command.kind {
            Kind::Ack(handles) | Kind::Nack { handles, .. } => handles.clone(),
            _ => Vec::new(),
        }
    }

    /// With `once=`, a part may do nothing because it was done before.
    fn has_client_id(&self, part: usize) -> bool {
        let publish = self.publish_of(part);
        publish.is_some_and(|publish| publish.once.is_some())
    }

    fn bodies_in(&self, part: usize) -> Vec<usize> {
        let publish = self.publish_of(part);
        let bodies = publish.iter().flat_map(|publish| &publish.bodies);
        bodies.map(|body| body.0).collect()
    }

    /// A publish whose transaction is done, at its queue's level.
    fn published_inside(&mut self, part: usize) {
        let now = self.now;
        let may_be_duplicate = self.has_client_id(part);
        for index in self.bodies_in(part) {
            self.checked("P");
            self.learn_bounds(index, now);
            let message = &mut self.messages[index];
            let (level, most) = message.stored;
            if may_be_duplicate {
                // The answer does not say.
                if message.fate == Fate::InFlight {
                    message.fate = Fate::Unknown;
                }
                continue;
            }
            match message.fate {
                Fate::Confirmed { level: seen, .. } if seen >= level => {}
                _ => message.fate = Fate::Confirmed { at: now, level },
            }
            // Its queue may have begun to store at a weaker level while earlier messages wait for theirs.
            if level == most {
                message.visible.get_or_insert(now);
            }
            if level == Level::Disk {
                let arrived = self.commands[part].arrived.unwrap_or(0);
                self.confirmed_on_disk(arrived);
            }
        }
    }

    /// The `ERR` of a `COMMIT`: nothing of it was done.
    pub(super) fn commit_refused(&mut self, command: usize, line: &Line) {
        let Some(number) = self.commands[command].transaction else {
            return;
        };
        self.checked("C");
        let (now, code) = (self.now, line.words[0].clone());
        let stale = match code.as_str() {
            "STALE" => line.stale(),
            _ => Vec::new(),
        };
        let parts = self.transactions[number].parts.clone();
        let all: Vec<String> = parts
            .iter()
            .flat_map(|part| self.handles_in(*part))
            .collect();
        let was_asked = self.transactions[number].state == State::Asked;
        self.transactions[number].state = State::Undone;
        for part in parts.into_iter().filter(|_| was_asked) {
            self.commands[part].answered = Some(now);
            for index in self.bodies_in(part) {
                if matches!(self.messages[index].fate, Fate::Confirmed { .. }) {
                    let text = format!("{} is there, and: {line:?}", self.name_of(index));
                    self.fail("C", text);
                }
                let text = format!("its transaction was refused at {now}: {code}");
                self.messages[index].fate = Fate::Failed(text);
            }
            for handle in self.handles_in(part) {
                let is_once = all.iter().filter(|other| **other == handle).count() == 1;
                if let (true, Some(delivery)) = (
                    is_once && stale.contains(&handle),
                    self.by_handle.get(&handle),
                ) {
                    self.was_stale(part, *delivery, &handle);
                }
            }
            if self.publish_of(part).is_none() {
                self.settle_nothing(part);
            }
            self.void_claims(part);
            self.finish_claims(part);
        }
    }

    /// Whether a `COMMIT` may be refused so.
    pub(super) fn may_refuse_commit(&mut self, command: usize, code: &str, line: &Line) -> bool {
        let Some(number) = self.commands[command].transaction else {
            return false;
        };
        let transaction = self.transactions[number].clone();
        if transaction.void {
            return code == "CONFLICT";
        }
        let handles = transaction
            .parts
            .iter()
            .flat_map(|part| self.handles_in(*part));
        if code == "DRAINING" && self.drain.is_none() && self.terms.shards > 1 {
            // A shutdown decides nothing any more that several shards have to do.
            return true;
        }
        if code == "STALE" {
            let (stale, handles) = (line.stale(), handles.collect::<Vec<_>>());
            return !stale.is_empty() && stale.iter().all(|handle| handles.contains(handle));
        }
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        transaction.parts.iter().any(|part| {
            let publish = self.publish_of(*part).cloned();
            publish.is_some_and(|publish| match code {
                "FULL" => self.may_be_full(*part, &publish),
                "PAUSED" => self.queue(&publish.queue).track.may_pause_in(arrived, now),
                "DRAINING" => true,
                "LIMIT" => self.terms.scarce && publish.once.is_some(),
                _ => false,
            })
        }) || (code == "DISK" && !self.terms.memory)
            || (code == "MEM" && self.terms.scarce)
    }

    /// No answer will come to a command of a transaction. True if that is all there is to say.
    pub(super) fn orphaned_inside(&mut self, command: usize) -> bool {
        let Some(number) = self.commands[command].transaction else {
            return false;
        };
        if self.part_of(command).is_some() {
            return !matches!(
                self.transactions[number].state,
                State::Asked | State::Unknown
            );
        }
        if matches!(self.commands[command].command.kind, Kind::Commit)
            && self.transactions[number].state == State::Asked
        {
            self.transactions[number].state = State::Unknown;
            for part in self.transactions[number].parts.clone() {
                self.orphan(part);
            }
        }
        true
    }

    /// A message was seen in the queue that it was published to: if that was in a transaction, all of it was
    /// done, and is as durable as that message, or survived with it.
    pub(super) fn proves_done(&mut self, index: usize) {
        let command = self.messages[index].command;
        let sent = self.commands.get(command);
        let number = sent.and_then(|sent| sent.transaction);
        if let Some(number) = number.filter(|_| !self.messages[index].moved) {
            let place = self.messages[index].place.clone();
            self.all_was_done(number, self.messages[index].stored.0, Some(&place));
        }
    }

    /// All of it was done, as was seen in the queue `seen`. On other shards than that queue's it is done within a
    /// sync and some hops, and until its `OK` need not be seen yet.
    fn all_was_done(&mut self, number: usize, level: Level, seen: Option<&str>) {
        let now = self.now;
        let shard = |queue: &str| self.shard_of(queue);
        let seen_on = seen.map(shard);
        let parts = self.transactions[number].parts.clone();
        let bodies = parts.iter().flat_map(|part| self.bodies_in(*part));
        let is_near = |index: &usize| seen_on == Some(shard(&self.messages[*index].place));
        let is_shown = self.transactions[number].state == State::Done;
        let shown: BTreeSet<usize> = bodies.filter(|index| is_shown || is_near(index)).collect();
        let transaction = self.transactions[number].clone();
        if transaction.state == State::Undone {
            let text = format!("a part of {transaction:?} was done, which was not");
            return self.fail("C", text);
        }
        self.checked("C");
        let is_same_run = transaction.boot == self.boot;
        let level = if is_same_run { level } else { Level::Disk };
        for part in transaction.parts {
            let certain = !self.has_client_id(part);
            for index in self.bodies_in(part).into_iter().filter(|_| certain) {
                if self.messages[index].fate == Fate::InFlight {
                    self.learn_bounds(index, now);
                }
                let message = &mut self.messages[index];
                let survives = is_same_run || message.stored.0 > Level::None;
                if survives && matches!(message.fate, Fate::InFlight | Fate::Unknown) {
                    let level = level.min(message.stored.0);
                    message.fate = Fate::Confirmed { at: now, level };
                }
                if survives && matches!(message.fate, Fate::Confirmed { .. }) {
                    message.weak = None;
                    if shown.contains(&index) && (level >= message.stored.1 || !is_same_run) {
                        message.visible.get_or_insert(now);
                    }
                }
            }
            for index in self.commands[part].claimed.clone() {
                for claim in &mut self.messages[index].claims {
                    if claim.cause != part || claim.reason != Reason::Ack {
                        continue;
                    }
                    claim.certainty = match claim.certainty {
                        Certainty::Pending | Certainty::Maybe { .. } => {
                            Certainty::Sure { at: now, level }
                        }
                        Certainty::Weak { at, .. } => Certainty::Sure {
                            at,
                            level: Level::Disk,
                        },
                        sure => sure,
                    };
                }
            }
        }
    }

    /// A message is there that this claim would have taken: if it was an ack in a transaction, nothing of that
    /// was done, or all of it was lost.
    pub(super) fn proves_undone(&mut self, claim: &Claim) {
        let sent = self.commands.get(claim.cause);
        let Some(number) = sent.and_then(|sent| sent.transaction) else {
            return;
        };
        let transaction = self.transactions[number].clone();
        let (is_done, is_weak) = (
            transaction.state == State::Done,
            matches!(claim.certainty, Certainty::Weak { .. }),
        );
        if claim.reason != Reason::Ack
            || !(transaction.state == State::Unknown || is_done && is_weak)
        {
            return;
        }
        self.checked("C");
        self.transactions[number].state = State::Undone;
        let is_same_run = transaction.boot == self.boot;
        let parts = transaction.parts.into_iter();
        let bodies: Vec<usize> = parts.flat_map(|part| self.bodies_in(part)).collect();
        for index in bodies {
            let message = &self.messages[index];
            let logged = is_same_run || message.stored.0 > Level::None;
            match message.fate {
                _ if !logged || message.murky || message.moved => {}
                Fate::Confirmed { .. } if message.weak.is_none() => {
                    let text = format!(
                        "{} is there, and what its transaction acked too",
                        self.name_of(index)
                    );
                    self.fail("C", text);
                }
                Fate::Confirmed { .. } | Fate::InFlight | Fate::Unknown => {
                    let text = "its transaction was not done".to_string();
                    self.messages[index].fate = Fate::Failed(text);
                }
                _ => {}
            }
        }
    }

    /// Everything was read that is there: an ack that nobody answered was done if its message is gone.
    pub(super) fn finish_transactions(&mut self) {
        for number in 0..self.transactions.len() {
            let transaction = &self.transactions[number];
            let parts = transaction.parts.clone();
            let gone = transaction.state == State::Unknown
                && parts.iter().any(|part| {
                    let claimed = &self.commands[*part].claimed;
                    claimed
                        .iter()
                        .any(|index| self.only_acked_by(*index, *part))
                });
            if gone {
                self.all_was_done(number, Level::Disk, None);
            }
        }
    }

    /// Nothing can have taken the message but that ack, and it is gone.
    fn only_acked_by(&self, index: usize, part: usize) -> bool {
        let message = &self.messages[index];
        let own = |claim: &Claim| claim.cause == part && claim.reason == Reason::Ack;
        message.surely_exists()
            && message.stored.0 > Level::None
            && !message.claims.is_empty()
            && message.claims.iter().all(own)
            && self.expiry(index).0 > self.now
    }
}
