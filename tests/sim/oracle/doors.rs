//! What is different for connections of other protocols: ids that are not told, receipts without a level,
//! what is settled without an answer of its own, and what the broker says of channels and room.

use super::Oracle;
use super::record::{Certainty, Claim, Fate, Reason};
use super::sighting::Consumer;
use crate::command::{Kind, Level, Publish, Setting};
use crate::dialect::{Dialect, UNTOLD};
use crate::wire::Line;

/// The cause of what no command did.
const NOBODY: usize = usize::MAX;

/// The id and the try that a message's line tells, if its protocol does.
///
/// # Errors
/// It should tell an id and doesn't.
pub(super) fn told(line: &Line, handle: &str) -> Result<(Option<u64>, Option<u64>), ()> {
    let tries = line.option("try").and_then(|tries| tries.parse().ok());
    if handle.starts_with(UNTOLD) {
        return Ok((None, tries));
    }
    let id = match handle {
        "-" => line.option("id"),
        handle => handle.split('.').nth(1),
    };
    let id = id.and_then(|id| id.parse().ok()).ok_or(())?;
    Ok((Some(id), tries.or(Some(1))))
}

impl Oracle {
    fn link_of(&self, command: usize) -> usize {
        self.commands[command].link
    }

    fn speaks(&self, command: usize) -> Dialect {
        self.links[self.link_of(command)].dialect
    }

    /// A command is on its way.
    pub(super) fn typed_at_door(&mut self, command: usize) {
        let link = self.link_of(command);
        let asked = self.commands[command].command.clone();
        self.links[link].reader.expect(&asked);
        self.commands[command].settles = self.links[link].pops.clone();
    }

    /// It has arrived. True when nothing of it will be done.
    pub(super) fn arrived_at_door(&mut self, command: usize) -> bool {
        let link = self.link_of(command);
        if self.links[link].is_over {
            self.orphan(command);
            return true;
        }
        let kind = self.commands[command].command.kind.clone();
        if self.links[link].dialect == Dialect::Resp {
            // Its first octets may have come behind a reply that was read since it was typed.
            for delivery in self.links[link].pops.clone() {
                let message = self.deliveries[delivery].message;
                self.claim(command, message, Reason::Ack, Vec::new());
            }
            for queue in lists(&kind) {
                let now = self.now;
                let unlimited = [Setting::MaxDeliver(0)];
                self.queue(&queue).track.begin(&unlimited, now, command);
            }
        }
        if self.links[link].dialect.is_amqp() {
            // It may be answered by the end of the channel, and what is leased on it returns.
            let ends = match &kind {
                Kind::Pull(pull) => !self.is_surely_there(&pull.sources[0]),
                Kind::Sub { source, .. } => !self.is_surely_there(source),
                _ => false,
            };
            if ends || self.links[link].shut {
                self.leases_leave(link);
            }
        }
        false
    }

    /// A list that a command may have made is as it is: without a limit of deliveries, if it made it.
    pub(super) fn list_was_made(&mut self, command: usize) {
        if self.speaks(command) != Dialect::Resp {
            return;
        }
        let now = self.now;
        for queue in lists(&self.commands[command].command.kind.clone()) {
            self.queue(&queue).track.lose(command, now);
        }
    }

    /// Since when a delivery that was made at `low` or later may return because its connection or channel ends.
    pub(super) fn leaves_since(&self, link: usize, low: u64) -> Option<u64> {
        let record = &self.links[link];
        // A command that names a queue which is not there ends the channel.
        let ends = |command: &usize| {
            let sent = &self.commands[*command];
            match &sent.command.kind {
                Kind::Pull(pull) => !self.was_there(&pull.sources[0], sent.arrived),
                Kind::Sub { source, .. } => !self.was_there(source, sent.arrived),
                _ => false,
            }
        };
        let mut open = record.waiting.iter().chain(record.tagged.values());
        let may_end = record.dialect.is_amqp() && open.any(ends);
        let since = record.may_close.map(|since| since.max(low));
        since.or(may_end.then_some(low))
    }

    /// The queue was there in this run of the broker, and nobody has deleted it.
    fn is_surely_there(&self, queue: &str) -> bool {
        let queue = self.queues.get(queue);
        queue.is_some_and(|queue| {
            let there = queue.there.is_some_and(|(boot, _)| boot == self.boot);
            there && queue.deleted.is_none()
        })
    }

    /// It was there already when a command arrived.
    fn was_there(&self, queue: &str, arrived: Option<u64>) -> bool {
        let there = self.queues.get(queue).and_then(|queue| queue.there);
        let since = there.map_or(u64::MAX, |(_, at)| at);
        arrived.is_some_and(|arrived| since < arrived) && self.is_surely_there(queue)
    }

    /// The answer to a later command with a tag was read: what came before it without an answer was run.
    pub(super) fn run_before(&mut self, link: usize, command: usize) {
        if !self.links[link].dialect.is_amqp() {
            return;
        }
        let waiting = &self.links[link].waiting;
        let before = |other: &&usize| **other < command && self.commands[**other].command.quiet;
        let quiets: Vec<usize> = waiting.iter().take_while(before).copied().collect();
        self.links[link].waiting.drain(..quiets.len());
        self.quiet_done(link, &quiets, &[]);
    }

    /// P: the receipt of a push, or a confirm, which tell neither id nor level: it is the queue's.
    pub(super) fn published_by_door(
        &mut self,
        link: usize,
        command: usize,
        publish: &Publish,
        line: &Line,
    ) {
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        self.drop_old(command, publish);
        let drops = self.queue(&publish.queue).track.may_drop(arrived, now);
        if !self.links[link].dialect.is_amqp() {
            let length = line.words.first().and_then(|word| word.parse::<u64>().ok());
            if !drops && length.is_none_or(|length| length < publish.bodies.len() as u64) {
                let text = format!("{line:?} answers a push of {}", publish.bodies.len());
                self.fail("F", text);
            }
        }
        self.is_safe(link, command, publish);
        if !self.links[link].dialect.is_amqp() {
            self.check_length(command, publish);
        }
    }

    /// A queue that drops its oldest may be too small for what is published, even while it is empty.
    fn may_never_hold(&mut self, publish: &Publish, arrived: u64) -> bool {
        let now = self.now;
        let track = &self.queue(&publish.queue).track;
        let bytes = publish.bodies.iter().map(|(_, body)| body.len() as u64);
        track.may_drop(arrived, now)
            && (track.maxlen(arrived, now).0 < publish.bodies.len() as u64
                || track.maxbytes(arrived, now).0 < bytes.sum())
    }

    /// What a command published has reached the level of its queue.
    fn is_safe(&mut self, link: usize, command: usize, publish: &Publish) {
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        if self.links[link].dialect.is_amqp() && self.may_never_hold(publish, arrived) {
            // Larger than all that the queue may hold, it has made room for itself.
            let dead = self.queue(&publish.queue).track.dead(arrived, now);
            for (index, _) in &publish.bodies {
                self.claim(command, *index, Reason::Drop, dead.clone());
            }
        }
        let mut level = None;
        for (index, _) in &publish.bodies {
            let fate = &self.messages[*index].fate;
            if !matches!(fate, Fate::InFlight | Fate::Confirmed { .. }) {
                continue;
            }
            self.checked("P");
            self.learn_bounds(*index, now);
            let message = &mut self.messages[*index];
            let (least, most) = message.stored;
            let seen = match message.fate {
                Fate::Confirmed { at, level } if level >= least => Some((at, level)),
                _ => None,
            };
            let (at, proved) = seen.unwrap_or((now, least));
            message.fate = Fate::Confirmed { at, level: proved };
            if least >= most {
                message.visible.get_or_insert(now);
            }
            if !message.moved {
                level = Some(least);
            }
        }
        let Some(level) = level else { return };
        let boot = self.boot;
        self.queue(&publish.queue)
            .there
            .get_or_insert((boot, now))
            .0 = boot;
        if level == Level::Disk {
            self.confirmed_on_disk(arrived);
        }
        self.prove(link, command, &publish.queue, level);
    }

    /// A: acks and publishes share a log, if their queues are of one shard: what was settled on the connection before a
    /// publish that is safe stays settled.
    fn prove(&mut self, link: usize, command: usize, queue: &str, level: Level) {
        if level == Level::None {
            return;
        }
        let now = self.now;
        for (index, cause) in std::mem::take(&mut self.links[link].unproved) {
            let place = self.messages[index].place.clone();
            if cause > command || self.shard_of(&place) != self.shard_of(queue) {
                self.links[link].unproved.push((index, cause));
                continue;
            }
            let message = &mut self.messages[index];
            let is_logged = message.stored.0 > Level::None;
            for claim in message.claims.iter_mut().filter(|_| is_logged) {
                if claim.cause == cause
                    && let Certainty::Sure {
                        level: Level::None, ..
                    } = claim.certainty
                {
                    claim.certainty = Certainty::Sure { at: now, level };
                    *self.checks.entry("A, proved").or_insert(0) += 1;
                }
            }
        }
    }

    /// Nobody but this command can have ended the lease.
    fn surely_holds(&self, delivery: usize, causes: &[usize]) -> bool {
        let record = &self.deliveries[delivery];
        let message = &self.messages[record.message];
        let own = |cause: usize| causes.contains(&cause);
        record.boot == self.boot
            && !record.settled
            && record.ended.is_none()
            && record.leaving.is_none()
            && record.nacks.iter().all(|nack| own(nack.0))
            && record.touches.is_empty()
            && !message.murky
            && message.claims.iter().all(|claim| own(claim.cause))
            && message.deliveries.last() == Some(&delivery)
    }

    /// AMQP: an ack or a nack was run, and what it did is not answered. Each is for one delivery.
    pub(super) fn settled_unsaid(&mut self, link: usize, command: usize) {
        let (Kind::Ack(handles) | Kind::Nack { handles, .. }) =
            self.commands[command].command.kind.clone()
        else {
            unreachable!("called for a settle");
        };
        for handle in handles {
            let Some(delivery) = self.by_handle.get(&handle).copied() else {
                continue;
            };
            if !self.surely_holds(delivery, &[command]) {
                self.settle_unknown(command);
                continue;
            }
            self.was_live(command, delivery, &handle);
            let message = self.deliveries[delivery].message;
            self.links[link].unproved.push((message, command));
        }
    }

    /// RESP: a message was popped.
    pub(super) fn popped(&mut self, link: usize, delivery: usize) {
        if self.links[link].dialect != Dialect::Resp {
            return;
        }
        self.links[link].pops.push(delivery);
        if self.links[link].half_closed {
            self.pop_awaits_peer(delivery);
        }
    }

    /// RESP: the command stands behind a `MULTI`.
    pub(super) fn is_queued(&self, command: usize) -> bool {
        let link = self.link_of(command);
        if self.links[link].dialect != Dialect::Resp {
            return false;
        }
        let before = self.commands[..command].iter().rev();
        let last = before
            .filter(|sent| sent.link == link)
            .find(|sent| matches!(sent.command.kind, Kind::Multi | Kind::Exec));
        last.is_some_and(|sent| matches!(sent.command.kind, Kind::Multi))
    }

    /// The `EXEC` that runs such a command, if it was typed.
    pub(super) fn exec_of(&self, command: usize) -> Option<usize> {
        let link = self.link_of(command);
        (command..self.commands.len()).find(|other| {
            let sent = &self.commands[*other];
            sent.link == link && matches!(sent.command.kind, Kind::Exec)
        })
    }

    /// The try that a delivery may be, at most; `None` when nobody knows: RESP doesn't tell, and others may have been
    /// given the message before and not have read it.
    pub(super) fn most_tries(
        &self,
        consumer: &Consumer,
        index: usize,
        source: &str,
        tries: u64,
    ) -> Option<u64> {
        if self.links[consumer.link].dialect != Dialect::Resp {
            return Some(tries);
        }
        let most = self.messages[index].tries.1?;
        let mut others = (0..self.links.len()).filter(|link| *link != consumer.link);
        let is_unsure = others.any(|link| self.may_hold_unseen(link, source));
        (!is_unsure).then_some(most.max(tries))
    }

    /// The client has ended its side: what it has popped is settled once its TCP has acknowledged that.
    pub(super) fn pops_await_peer(&mut self, link: usize) {
        for delivery in self.links[link].pops.clone() {
            self.pop_awaits_peer(delivery);
        }
    }

    fn pop_awaits_peer(&mut self, delivery: usize) {
        let (now, index) = (self.now, self.deliveries[delivery].message);
        self.messages[index].claims.push(Claim {
            reason: Reason::Ack,
            cause: NOBODY,
            from: now,
            to: Vec::new(),
            certainty: Certainty::Maybe { finished: u64::MAX },
        });
    }

    /// The client's TCP has acknowledged everything, and the broker was told so.
    pub fn acknowledged(&mut self, link: usize, now: u64) {
        self.now = now;
        for delivery in std::mem::take(&mut self.links[link].pops) {
            let index = self.deliveries[delivery].message;
            // It is leaving, and nothing else: what it leaves behind is settled.
            self.deliveries[delivery].leaving = None;
            let certainty = match self.surely_holds(delivery, &self.causes(link)) {
                true => Certainty::Sure {
                    at: now,
                    level: Level::None,
                },
                false => Certainty::Maybe { finished: now },
            };
            self.deliveries[delivery].settled = matches!(certainty, Certainty::Sure { .. });
            self.deliveries[delivery].leaving = Some(now);
            let claims = self.messages[index].claims.iter_mut();
            for claim in claims.filter(|claim| awaits_peer(claim)) {
                claim.certainty = certainty;
            }
            self.checked("A, half-closed");
        }
    }

    /// What may have settled what was popped on a connection: any of its commands, and its end.
    fn causes(&self, link: usize) -> Vec<usize> {
        let commands = self.commands.iter().enumerate();
        let own = commands.filter(|(_, sent)| sent.link == link);
        own.map(|own| own.0).chain([NOBODY]).collect()
    }

    /// The connection is over: what was popped and not settled returns.
    pub(super) fn pops_end(&mut self, link: usize) {
        let now = self.now;
        for delivery in std::mem::take(&mut self.links[link].pops) {
            let index = self.deliveries[delivery].message;
            let claims = self.messages[index].claims.iter_mut();
            for claim in claims.filter(|claim| awaits_peer(claim)) {
                claim.certainty = Certainty::Maybe { finished: now };
            }
        }
    }

    /// A command of another protocol was answered, whatever the answer: what stood before it was done.
    pub(super) fn answered_at_door(&mut self, link: usize, command: usize, line: &Line) {
        let is_unknown = line.kind == "ERR" && line.words[0] == "UNKNOWNRESULT";
        let dialect = self.links[link].dialect;
        if dialect == Dialect::Text || is_unknown {
            return;
        }
        let kind = self.commands[command].command.kind.clone();
        if dialect == Dialect::Resp {
            self.list_was_made(command);
            for delivery in self.commands[command].settles.clone() {
                self.pop_settled(link, command, delivery);
            }
            self.pops_may_be_settled(link, command);
            if let Kind::Publish(publish) = &kind
                && line.kind == "OK"
            {
                self.is_safe(link, command, publish);
            }
            return;
        }
        let is_synchronous = !matches!(kind, Kind::Publish(_) | Kind::Ack(_) | Kind::Nack { .. });
        if is_synchronous {
            for publish in std::mem::take(&mut self.links[link].unsynced) {
                if let Some(asked) = self.publish_of(publish).cloned() {
                    self.checked("P, synchronous");
                    self.is_safe(link, publish, &asked);
                }
            }
        }
    }

    /// What was popped and read before a command was typed is settled when that is answered.
    fn pop_settled(&mut self, link: usize, command: usize, delivery: usize) {
        if !self.links[link].pops.contains(&delivery) {
            return;
        }
        self.links[link].pops.retain(|other| *other != delivery);
        if !self.surely_holds(delivery, &self.causes(link)) {
            return;
        }
        self.checked("A, popped");
        let (now, index) = (self.now, self.deliveries[delivery].message);
        // Another shard hears of it a hop later, perhaps after the answer.
        let way_us = match self.terms.shards {
            1 => 0,
            _ => self.terms.way_us,
        };
        self.deliveries[delivery].settled = true;
        self.messages[index].claims.push(Claim {
            reason: Reason::AutoAck,
            cause: command,
            from: now,
            to: Vec::new(),
            certainty: Certainty::Sure {
                at: now + way_us,
                level: Level::None,
            },
        });
        self.links[link].unproved.push((index, command));
    }

    /// What was read after a command was typed may be settled by it, too: its octets may have come later.
    fn pops_may_be_settled(&mut self, link: usize, command: usize) {
        let finished = self.now;
        for delivery in self.links[link].pops.clone() {
            let index = self.deliveries[delivery].message;
            let claims = &mut self.messages[index].claims;
            if claims.iter().all(|claim| claim.cause != command) {
                claims.push(Claim {
                    reason: Reason::Ack,
                    cause: command,
                    from: finished,
                    to: Vec::new(),
                    certainty: Certainty::Maybe { finished },
                });
            }
        }
    }

    /// A publish with confirms may be refused for any reason that another has.
    pub(super) fn may_be_nacked(&mut self, command: usize, publish: &Publish) -> bool {
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let is_paused = self.queue(&publish.queue).track.may_pause_in(arrived, now);
        is_paused || self.terms.scarce || !self.terms.memory || self.may_be_full(command, publish)
    }

    /// What AMQP says beside answers: `RETURN`, `BLOCKED`, `UNBLOCKED`, `CLOSED`.
    pub(super) fn door_line(&mut self, link: usize, line: &Line) {
        self.checked("F");
        match &line.kind[..] {
            "RETURN" => self.returned(link, line),
            "BLOCKED" | "UNBLOCKED" => {
                let waits = line.kind == "BLOCKED";
                let record = &mut self.links[link];
                if record.dialect != Dialect::Amqp || record.waits_for_room == waits {
                    self.fail("F", format!("connection {link}: {line:?}"));
                    return;
                }
                record.waits_for_room = waits;
            }
            _ => self.closed_by_broker(link, line),
        }
    }

    /// P: a message that no queue takes comes back, and appears nowhere.
    fn returned(&mut self, link: usize, line: &Line) {
        let body = line.body.as_deref().unwrap_or_default();
        let Some(index) = self.by_body.get(body).copied() else {
            return self.fail("P", format!("nobody sent what was returned: {line:?}"));
        };
        let message = &self.messages[index];
        let (command, sent, place) = (message.command, message.sent, message.place.clone());
        let queue = self.queues.get(&place);
        let there = queue.and_then(|queue| queue.there);
        let before = there.is_some_and(|(_, at)| at < sent);
        let is_known = before && self.is_surely_there(&place);
        if self.link_of(command) != link || message.fate != Fate::InFlight || is_known {
            let text = format!("{} was returned to connection {link}", self.name_of(index));
            return self.fail("P", text);
        }
        self.messages[index].fate = Fate::Failed("no queue takes it".to_string());
    }

    /// The broker closes the channel or the connection: what it has not done it will not do.
    fn closed_by_broker(&mut self, link: usize, line: &Line) {
        let record = &self.links[link];
        let is_quiet = |command: &&usize| self.commands[**command].command.quiet;
        let head = record.waiting.iter().find(|command| !is_quiet(command));
        let consumers = record.tagged.values();
        let mut asked = head.into_iter().chain(consumers).map(|command| {
            let sent = &self.commands[*command];
            match &sent.command.kind {
                Kind::Pull(pull) => !self.was_there(&pull.sources[0], sent.arrived),
                Kind::Sub { source, .. } => !self.was_there(source, sent.arrived),
                _ => false,
            }
        });
        let is_right = match &line.words[0][..] {
            "404" => asked.any(|may_be_missing| may_be_missing),
            "320" => record.shut,
            "541" => !self.terms.memory,
            _ => false,
        };
        if !is_right {
            return self.fail("F", format!("connection {link} was closed: {line:?}"));
        }
        self.links[link].is_over = true;
        self.links[link].subs.clear();
        self.leaves(link);
        let record = &self.links[link];
        let open = record.waiting.iter().chain(record.tagged.values());
        for command in open.copied().collect::<Vec<_>>() {
            self.orphan(command);
        }
    }

    /// Of two messages of one connection the one that was sent first stands before the other, whether their
    /// ids are known or not.
    pub(super) fn entered_before(&self, first: usize, second: usize) -> bool {
        let (one, other) = (&self.messages[first], &self.messages[second]);
        match (one.id, other.id) {
            (Some(one), Some(other)) => one < other,
            _ => first < second && !other.moved && self.is_of_one_door(first, second),
        }
    }

    fn is_of_one_door(&self, first: usize, second: usize) -> bool {
        let publish = |index: usize| {
            let command = self.messages[index].command;
            let queue = &self.publish_of(command)?.queue;
            let link = self.link_of(command);
            (self.links[link].dialect != Dialect::Text).then_some((link, queue))
        };
        publish(first).is_some() && publish(first) == publish(second)
    }

    /// O: publishes of one connection to one queue enter in the order in which they were sent.
    pub(super) fn check_entered_in_order(&mut self, index: usize, place: &str, id: u64) {
        if self.queue(place).deleted.is_some() {
            return;
        }
        let members = self.queue(place).messages.clone();
        let wrong = members.into_iter().find(|other| {
            let message = &self.messages[*other];
            let is_known = message.place == place && !message.moved && *other != index;
            let order = message.id.map(|other_id| other_id < id);
            is_known
                && order.is_some_and(|before| before != (*other < index))
                && self.is_of_one_door(*other, index)
        });
        if let Some(other) = wrong {
            let text = format!(
                "{} has id {id} and {} was sent on the same connection",
                self.name_of(index),
                self.name_of(other)
            );
            self.fail("O", text);
        }
    }
}

/// Lists that a command of RESP makes if they are not there.
fn lists(kind: &Kind) -> Vec<String> {
    match kind {
        Kind::Publish(publish) => vec![publish.queue.clone()],
        Kind::Pull(pull) if pull.wait_us > 0 => pull.sources.clone(),
        _ => Vec::new(),
    }
}

/// It is about what was popped on a connection that has ended its side.
fn awaits_peer(claim: &Claim) -> bool {
    let waits = matches!(claim.certainty, Certainty::Maybe { finished: u64::MAX });
    claim.cause == NOBODY && claim.reason == Reason::Ack && waits
}
