//! What answers to `ACK`, `NACK`, `TOUCH`, `DEL`, `PURGE` and `QDEL` prove.

use super::record::{Certainty, Claim, Fate, Reason};
use super::{Oracle, TIMER_SLACK_US};
use crate::command::{Kind, Level, State};

/// Dead-letter queues that are followed.
const ROW_MAX: usize = 8;

impl Oracle {
    /// R: a row of dead-letter queues that leads back to where it begins is refused. The queue's is surely set now.
    pub(super) fn check_no_circle(&mut self, queue: &str) {
        let now = self.now;
        self.checked("R");
        let mut row = vec![queue.to_string()];
        while row.len() < ROW_MAX {
            let known = self.queues.get(&row[row.len() - 1]);
            let mut dead = known.map_or(Vec::new(), |queue| queue.track.dead(now, now));
            dead.dedup();
            let [next] = &dead[..] else { return };
            if next == queue {
                let text = format!("the dead letters of {row:?} go round in a circle");
                return self.fail("R", text);
            }
            row.push(next.clone());
        }
    }

    fn handles_of(&self, command: usize) -> Vec<String> {
        match &self.commands[command].command.kind {
            Kind::Ack(handles) | Kind::Nack { handles, .. } | Kind::Touch { handles, .. } => {
                handles.clone()
            }
            other => unreachable!("{other:?} has no handles"),
        }
    }

    /// A settle was answered: `done` of its handles, and not the `stale` ones.
    pub(super) fn settled(&mut self, command: usize, done: u64, stale: &[String]) {
        let handles = self.handles_of(command);
        if done + stale.len() as u64 != handles.len() as u64 {
            let text = format!(
                "{done} done and {} stale of {} handles",
                stale.len(),
                handles.len()
            );
            self.fail("A", text);
            return;
        }
        // The stale ones first: a live handle of the same message has the last word.
        let mut live: Vec<(usize, &String)> = Vec::new();
        for (at, handle) in handles.iter().enumerate() {
            if handles[..at].contains(handle) {
                continue;
            }
            let times = handles.iter().filter(|other| *other == handle).count();
            let refused = stale.iter().filter(|other| *other == handle).count();
            match self.by_handle.get(handle).copied() {
                None if refused != times => {
                    self.fail("A", format!("{handle} was never given, and was settled"));
                }
                None => {}
                Some(delivery) if refused == times => self.was_stale(command, delivery, handle),
                Some(delivery) => live.push((delivery, handle)),
            }
        }
        for (delivery, handle) in live {
            self.was_live(command, delivery, handle);
        }
        let level = self.weakest_level(command);
        let quiet = self.commands[command].command.quiet;
        if level == Level::Disk && done > 0 && !quiet {
            self.confirmed_on_disk(self.commands[command].arrived.unwrap_or(0));
        }
    }

    /// The level that all it has written has surely reached; `None` where it may have written nothing.
    fn weakest_level(&mut self, command: usize) -> Level {
        if let Kind::Touch { .. } = self.commands[command].command.kind {
            return Level::None;
        }
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let mut weakest = Level::Disk;
        for handle in self.handles_of(command) {
            if let Some(delivery) = self.by_handle.get(&handle).copied() {
                let message = self.deliveries[delivery].message;
                let place = self.messages[message].place.clone();
                // The log never hears of a request.
                let level = match self.is_request(message) {
                    true => Level::None,
                    false => self.queue(&place).track.durable(arrived, now).0,
                };
                weakest = weakest.min(level);
            }
        }
        weakest
    }

    fn forget(&mut self, command: usize, delivery: usize) -> (Option<u64>, Option<(u64, u64)>) {
        let record = &mut self.deliveries[delivery];
        let touch = record
            .touches
            .iter()
            .find(|touch| touch.0 == command)
            .map(|touch| touch.1);
        let nack = record
            .nacks
            .iter()
            .find(|nack| nack.0 == command)
            .map(|nack| (nack.1, nack.2));
        record.touches.retain(|touch| touch.0 != command);
        record.nacks.retain(|nack| nack.0 != command);
        (touch, nack)
    }

    /// Nobody knows what became of it.
    pub(super) fn settle_unknown(&mut self, command: usize) {
        let now = self.now;
        for handle in self.handles_of(command) {
            if let Some(delivery) = self.by_handle.get(&handle).copied() {
                let (touch, nack) = self.forget(command, delivery);
                let record = &mut self.deliveries[delivery];
                if let Some(low) = touch {
                    record.deadline.0 = record.deadline.0.min(low);
                    record.deadline.1 = u64::MAX;
                }
                if let Some((low, most)) = nack {
                    record.deadline.0 = record.deadline.0.min(low);
                    record.deadline.1 = record.deadline.1.max(now + most);
                }
            }
        }
    }

    /// It was refused as a whole.
    pub(super) fn settle_nothing(&mut self, command: usize) {
        for handle in self.handles_of(command) {
            if let Some(delivery) = self.by_handle.get(&handle).copied() {
                self.forget(command, delivery);
            }
        }
    }

    /// A handle was answered as stale: then its lease must have ended, or may have.
    pub(super) fn was_stale(&mut self, command: usize, delivery: usize, handle: &str) {
        self.forget(command, delivery);
        let index = self.deliveries[delivery].message;
        self.messages[index].claims.retain(|claim| {
            claim.cause != command || matches!(claim.certainty, Certainty::Sure { .. })
        });
        self.checked("A");
        let record = &self.deliveries[delivery];
        if self.surely_leased(delivery) {
            let text = format!(
                "{handle} is called stale at {}, but holds {}: {record:?}",
                self.now,
                self.name_of(index)
            );
            self.fail("L", text);
        }
    }

    /// The lease can't have ended yet.
    pub(super) fn surely_leased(&self, delivery: usize) -> bool {
        let record = &self.deliveries[delivery];
        let message = &self.messages[record.message];
        record.boot == self.boot
            && !record.settled
            && record.ended.is_none()
            && record.ready_again() > self.now
            // Another NACK may have ended it, and not be answered yet.
            && record.nacks.is_empty()
            && !message.murky
            && !message.possibly_claimed(self.now)
            && message.deliveries.last() == Some(&delivery)
    }

    /// Does a command settle handles of several shards?
    fn is_of_several_shards(&self, command: usize) -> bool {
        let shards = u64::from(self.terms.shards);
        let handles = self.handles_of(command);
        let owners = handles.iter().filter_map(|handle| {
            let incarnation = handle.split('.').next()?.parse::<u64>().ok()?;
            Some(incarnation % shards)
        });
        let owners: std::collections::BTreeSet<u64> = owners.collect();
        owners.len() > 1
    }

    /// A handle was settled: then its lease may not have ended before.
    pub(super) fn was_live(&mut self, command: usize, delivery: usize, handle: &str) {
        let now = self.now;
        let index = self.deliveries[delivery].message;
        if self.messages[index].murky {
            self.forget(command, delivery);
            return;
        }
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let (touch, nack) = self.forget(command, delivery);
        self.checked("A");
        let record = &self.deliveries[delivery];
        let over = record.ended.map_or_else(|| record.over(), |ended| ended.1);
        let newer = self.messages[index].deliveries.last() != Some(&delivery);
        // What it did, or what happened after it, was seen before its answer.
        let kind = &self.commands[command].command.kind;
        let is_ack = matches!(kind, Kind::Ack(_));
        let mut seen = record.moved.into_iter().chain(record.taken);
        let overtaken =
            !is_ack && seen.any(|seen| seen >= arrived) || self.settled_later(index, kind, arrived);
        // Where several shards settle, one may have done its part long before the answer.
        let is_early = self.is_of_several_shards(command);
        let wrong = if record.boot != self.boot {
            Some("was given before the restart")
        } else if record.settled && !overtaken && !is_early {
            Some("was settled before")
        } else if newer && self.newer_before(index, delivery, arrived) {
            Some("is older than the delivery that holds the message")
        } else if over.saturating_add(TIMER_SLACK_US) < arrived {
            Some("had ended")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let text = format!(
                "{handle} of {} {wrong}, and was settled at {now}: {record:?}",
                self.name_of(index)
            );
            self.fail("A", text);
            return;
        }
        if overtaken {
            return;
        }
        let place = self.messages[index].place.clone();
        let quiet = self.commands[command].command.quiet;
        let level = match quiet {
            // Nobody waited for it: a crash may undo it.
            true => Level::None,
            false => self.queue(&place).track.durable(arrived, now).0,
        };
        match self.commands[command].command.kind.clone() {
            Kind::Ack(_) => {
                self.deliveries[delivery].settled = true;
                self.surely(command, index, Reason::Ack, level);
            }
            Kind::Nack { dead, .. } => {
                let (mut low, mut most) = nack.unwrap_or((arrived, 0));
                if let Kind::Nack { delay_us: None, .. } = self.commands[command].command.kind {
                    let tries = self.deliveries[delivery].tries;
                    let span = self.queue(&place).track.backoff(tries, arrived, now);
                    (low, most) = (arrived + span.0, span.1);
                }
                let slack = if most > 0 { TIMER_SLACK_US } else { 0 };
                let record = &mut self.deliveries[delivery];
                record.ended = Some((low, now + most + slack));
                let tries = record.tries;
                self.messages[index].failed.push((tries, now, level));
                if dead {
                    let to = self.queue(&place).track.dead(arrived, now);
                    self.claim(command, index, Reason::Dead, to);
                }
            }
            Kind::Touch { lease_us, .. } => {
                let queues = self.queue(&place).track.lease(arrived, now);
                let delivery = &mut self.deliveries[delivery];
                let least = lease_us.unwrap_or(delivery.lease.0.max(queues.0));
                let most = lease_us.unwrap_or(delivery.lease.1.max(queues.1));
                let low = touch.map_or(arrived, |low| low.max(arrived + least));
                delivery.lease = (delivery.lease.0.min(least), delivery.lease.1.max(most));
                delivery.deadline = (low, now + most);
            }
            _ => {}
        }
    }

    /// What surely took the message may all have come after a settle that was sent then: its queue may have been deleted
    /// after it, and after a `TOUCH` somebody may have acked it.
    fn settled_later(&self, index: usize, kind: &Kind, arrived: u64) -> bool {
        let claims = self.messages[index].claims.iter();
        let sure = claims.filter_map(|claim| match claim.certainty {
            Certainty::Sure { at, .. } => Some((claim.reason, at)),
            _ => None,
        });
        let may_follow = |reason: Reason| match reason {
            Reason::QueueDelete => true,
            Reason::Ack => matches!(kind, Kind::Touch { .. }),
            _ => false,
        };
        let mut sure = sure.peekable();
        sure.peek().is_some() && sure.all(|(reason, at)| may_follow(reason) && at >= arrived)
    }

    /// A later delivery of the message was seen before the settle was sent.
    fn newer_before(&self, index: usize, delivery: usize, arrived: u64) -> bool {
        let later = self.messages[index]
            .deliveries
            .iter()
            .filter(|other| **other > delivery);
        later
            .into_iter()
            .any(|other| self.deliveries[*other].granted.1 < arrived)
    }

    fn surely(&mut self, command: usize, index: usize, reason: Reason, level: Level) {
        let at = self.now;
        let certainty = Certainty::Sure { at, level };
        let claims = &mut self.messages[index].claims;
        let own = |claim: &&mut Claim| claim.cause == command && claim.reason == reason;
        match claims.iter_mut().find(own) {
            Some(claim) => claim.certainty = certainty,
            // Another handle of the same message was stale and took the claim back.
            None => claims.push(Claim {
                reason,
                cause: command,
                from: at,
                to: Vec::new(),
                certainty,
            }),
        }
    }

    /// The message was surely there and idle all the time since `low`, but for this command.
    fn surely_idle(&self, index: usize, place: &str, low: u64, command: usize) -> bool {
        let message = &self.messages[index];
        let others = message.claims.iter().any(|claim| claim.cause != command);
        let leases = message
            .deliveries
            .iter()
            .map(|delivery| &self.deliveries[*delivery]);
        message.place == place
            && message.surely_exists()
            && message.visible.is_some_and(|visible| visible < low)
            && !others
            && leases
                .into_iter()
                .all(|lease| lease.over().saturating_add(TIMER_SLACK_US) < low)
            && self.expiry(index).0 > self.now
            && self.dead_places(index, self.now).is_empty()
            && self.queues[place].fog.is_none_or(|fog| fog < low)
            && !self.maybe_taken_unseen(place)
            && !self.may_be_kept(None, place, low)
    }

    pub(super) fn queue_deleted(&mut self, command: usize, queue: &str) {
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        for index in self.commands[command].claimed.clone() {
            let message = &self.messages[index];
            let early = matches!(message.fate, Fate::Confirmed { at, .. } if at < arrived);
            let moving = message.claims.iter().any(|claim| !claim.to.is_empty());
            if message.place == queue && early && !moving && self.dead_places(index, now).is_empty()
            {
                for delivery in message.deliveries.clone() {
                    self.deliveries[delivery].settled = true;
                }
                self.surely(command, index, Reason::QueueDelete, Level::Disk);
            }
        }
        let record = self.queue(queue);
        record.track.end(command, now, true);
        record.deleted = Some((arrived, now));
        record.established = false;
        self.deletion_over(queue, now);
    }

    /// A `QDEL` of the queue has no effect from `end` on. Another one that is not answered may delete it again at
    /// any time.
    pub(super) fn deletion_over(&mut self, queue: &str, end: u64) {
        let again = self.commands.iter().any(|other| {
            let same = matches!(&other.command.kind, Kind::QDel(name) if name == queue);
            same && other.arrived.is_some() && other.open()
        });
        if let Some((_, high)) = &mut self.queue(queue).deleted {
            *high = if again { u64::MAX } else { end };
        }
    }

    pub(super) fn deleted(
        &mut self,
        command: usize,
        queue: &str,
        ids: &[String],
        done: u64,
        stale: &[String],
    ) {
        let now = self.now;
        if done + stale.len() as u64 != ids.len() as u64 {
            self.fail("F", format!("DEL of {ids:?}: {done} done, {stale:?} stale"));
            return;
        }
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let level = self.queue(queue).track.durable(arrived, now).0;
        for index in self.commands[command].claimed.clone() {
            let message = &self.messages[index];
            let Some(id) = message.id.map(|id| id.to_string()) else {
                continue;
            };
            if message.place != queue {
                continue;
            }
            if !ids.contains(&id) {
                self.messages[index]
                    .claims
                    .retain(|claim| claim.cause != command);
                continue;
            }
            let idle = self.surely_idle(index, queue, arrived, command);
            match (stale.contains(&id), idle) {
                (true, true) => {
                    let text = format!(
                        "DEL calls {id} stale, but {} was there",
                        self.name_of(index)
                    );
                    self.fail("P", text);
                }
                (true, false) => self.messages[index]
                    .claims
                    .retain(|claim| claim.cause != command),
                // With another claim on it, or its queue made anew, the id may name another.
                (false, _) if self.alone(index, queue, command) => {
                    self.surely(command, index, Reason::Delete, level);
                }
                (false, _) => {}
            }
        }
    }

    /// Nothing else can have happened to the message, and no other one can have its id.
    fn alone(&self, index: usize, queue: &str, command: usize) -> bool {
        let message = &self.messages[index];
        message.claims.iter().all(|claim| claim.cause == command)
            && self.dead_places(index, self.now).is_empty()
            && self.queues[queue].deleted.is_none()
    }

    pub(super) fn purged(&mut self, command: usize, queue: &str, state: Option<State>, done: u64) {
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let level = self.queue(queue).track.durable(arrived, now).0;
        if state == Some(State::Dead) || state == Some(State::Delayed) {
            return;
        }
        let mut sure = 0;
        for index in self.commands[command].claimed.clone() {
            let due = self.messages[index].due.1;
            let ready = due.is_some_and(|due| {
                due + TIMER_SLACK_US < arrived || due <= self.messages[index].sent
            });
            let meant = state.is_none() || ready || self.messages[index].moved;
            if meant && self.surely_idle(index, queue, arrived, command) {
                sure += 1;
                self.surely(command, index, Reason::Purge, level);
            }
        }
        if done < sure {
            self.fail(
                "P",
                format!("PURGE {queue} took {done}, but {sure} were surely there"),
            );
        }
    }
}
