//! A message was seen, by a delivery or a peek: could it be there, then, as it was?

use super::doors::told;
use super::record::{Certainty, Claim, Delivery, Fate, Reason, Stay};
use super::{Deferred, Oracle, TIMER_SLACK_US, undecided};
use crate::command::{Kind, Level};
use crate::dialect::Dialect;
use crate::wire::Line;

/// A try that may be any.
const TRIES_UNKNOWN: u64 = u64::MAX / 2;

/// Who a delivery was for.
#[derive(Clone, Debug)]
pub(super) struct Consumer {
    pub link: usize,
    /// The `PULL`, or the `SUB` that began the subscription.
    pub command: usize,
    /// Index among the connection's subscriptions.
    pub sub: Option<usize>,
    pub auto: bool,
    /// Leases that may be asked for; `None` = the queue's.
    pub leases: Vec<Option<u64>>,
    pub hold: bool,
    pub sources: Vec<String>,
    /// It is given the last, not the first.
    pub tail: bool,
    /// It can't have taken a message before this.
    pub since: u64,
}

impl Oracle {
    /// Finds whose body this is, and how it can be: checks P's "bytes delivered = bytes published".
    fn identify(&mut self, line: &Line) -> Option<usize> {
        let body = line.body.as_ref()?;
        self.checked("P");
        let place = line.words.first().map_or("", String::as_str);
        if let Some(copy) = self.copy_of(&body.clone(), place) {
            return Some(copy);
        }
        match self.by_body.get(body) {
            Some(index) => Some(*index),
            None => {
                let start = String::from_utf8_lossy(&body[..body.len().min(40)]).to_string();
                let text = format!(
                    "a body of {} octets that nobody sent: {start:?}",
                    body.len()
                );
                self.fail("P", text);
                None
            }
        }
    }

    /// A message was at `place`, with `id` if that was told, at some moment between `low` and now. False when that
    /// breaks a promise.
    fn sighted(
        &mut self,
        index: usize,
        place: &str,
        id: Option<u64>,
        tries: Option<u64>,
        low: u64,
    ) -> bool {
        match &self.messages[index].fate {
            Fate::Unsent | Fate::Failed(_) | Fate::Lost => {
                let text = format!("{} appeared in {place}", self.name_of(index));
                self.fail("P", text);
                return false;
            }
            Fate::InFlight | Fate::Unknown | Fate::Confirmed { .. } => {}
        }
        if self.is_elsewhere(index, place, id, tries) {
            if !self.relocated(index, place, id) {
                return false;
            }
        } else if !self.still_there(index, low) {
            return false;
        }
        match (self.messages[index].id, id) {
            (Some(known), Some(id)) if known != id => {
                let text = format!(
                    "{} was seen with id {id}: it is there twice",
                    self.name_of(index)
                );
                self.fail("P", text);
                return false;
            }
            (None, Some(id)) => {
                self.messages[index].id = Some(id);
                if !self.messages[index].moved {
                    self.messages[index].first_id.get_or_insert(id);
                    self.check_entered_in_order(index, place, id);
                }
                self.id_is_unique(index, place, id);
            }
            _ => {}
        }
        self.confirmed_by_sight(index);
        let command = self.messages[index].command;
        let batch = self
            .publish_of(command)
            .map(|p| p.bodies.clone())
            .unwrap_or_default();
        if !self.messages[index].moved {
            for (other, _) in batch {
                // All or nothing: one of a batch is there, so all were.
                self.confirmed_by_sight(other);
            }
            self.proves_done(index);
        }
        self.violation.is_none()
    }

    /// It is not where it was seen last: in another queue, or in the same again after moves.
    /// `tries` as a delivery tells it.
    fn is_elsewhere(&self, index: usize, place: &str, id: Option<u64>, tries: Option<u64>) -> bool {
        let message = &self.messages[index];
        // In a queue that was deleted and made anew it may even get its old id again; then its
        // tries count from 1.
        let anew = tries.is_some_and(|tries| tries < message.tries.0) && {
            let queue = self.queues.get(place).and_then(|queue| queue.deleted);
            queue.is_some_and(|(_, end)| end >= message.sent)
        };
        let renumbered = message
            .id
            .is_some_and(|known| id.is_some_and(|id| known != id) || anew);
        let mut claims = message.claims.iter();
        let back = claims.any(|claim| claim.to.iter().any(|to| to == place));
        message.place != place || (renumbered && back)
    }

    /// What was seen is there: for the levels' sake, what was visible was as durable as its queue.
    fn confirmed_by_sight(&mut self, index: usize) {
        let now = self.now;
        match self.messages[index].fate {
            Fate::InFlight | Fate::Unknown => {
                if self.messages[index].due.1.is_none() {
                    self.learn_bounds(index, now);
                }
                let message = &mut self.messages[index];
                message.fate = Fate::Confirmed {
                    at: now,
                    level: message.stored.0,
                };
                message.visible = Some(now);
            }
            Fate::Confirmed { at, level } => {
                let message = &mut self.messages[index];
                message.visible.get_or_insert(now);
                if message.stored.0 > level {
                    message.fate = Fate::Confirmed {
                        at: now.max(at),
                        level: message.stored.0,
                    };
                }
            }
            _ => {}
        }
        if let Some(loss) = self.messages[index].weak.take() {
            self.survived(loss, self.messages[index].sent);
        }
    }

    /// Something written at `sent` or later survived a power loss: so did everything before it.
    fn survived(&mut self, loss: usize, sent: u64) {
        if self.terms.shards > 1 {
            // Each log loses a suffix of its own.
            return;
        }
        let now = self.now;
        let record = &mut self.losses[loss];
        record.kept = record.kept.max(sent);
        let (kept, lost) = (record.kept, record.lost);
        self.check_holes(loss);
        if lost < kept {
            return;
        }
        for message in &mut self.messages {
            if let Fate::Confirmed { at, .. } = message.fate
                && message.weak == Some(loss)
                && at < kept
            {
                message.weak = None;
                message.visible.get_or_insert(now);
            }
            for claim in &mut message.claims {
                if let Certainty::Weak { at, loss: of } = claim.certainty
                    && of == loss
                    && at < kept
                {
                    claim.certainty = Certainty::Sure {
                        at,
                        level: Level::Disk,
                    };
                }
            }
        }
    }

    /// A power loss takes a suffix of the log: nothing before what survived.
    pub(super) fn check_holes(&mut self, loss: usize) {
        if self.terms.shards > 1 {
            return;
        }
        self.checked("os");
        let record = &self.losses[loss];
        if record.lost < record.kept {
            let text = format!(
                "power loss {loss} took something confirmed at {} and kept, or had to keep, \
                 what came at {} or later",
                record.lost, record.kept
            );
            self.fail("os", text);
        }
    }

    /// It is seen where it was before: nothing may have surely taken it.
    fn still_there(&mut self, index: usize, low: u64) -> bool {
        for claim in self.messages[index].claims.clone() {
            match claim.certainty {
                Certainty::Sure { at, .. } if at < low => {
                    let promise = if claim.reason == Reason::Ack {
                        "A"
                    } else {
                        "P"
                    };
                    let text = format!(
                        "{} is still there at {}, but {:?} was confirmed at {at} (command {})",
                        self.name_of(index),
                        self.now,
                        claim.reason,
                        claim.cause
                    );
                    self.fail(promise, text);
                    return false;
                }
                Certainty::Weak { at, loss } if at < low => {
                    self.losses[loss].lost = self.losses[loss].lost.min(at);
                    self.check_holes(loss);
                    self.proves_undone(&claim);
                }
                Certainty::Maybe { finished } if finished < low => self.proves_undone(&claim),
                _ => {}
            }
        }
        self.checked("A");
        self.messages[index]
            .claims
            .retain(|claim| match claim.certainty {
                Certainty::Maybe { finished } => finished >= low,
                Certainty::Weak { at, .. } => at >= low,
                _ => true,
            });
        self.violation.is_none()
    }

    /// It is seen in another queue than before: something must have moved it there, and from now
    /// on it may not be seen where it was.
    fn relocated(&mut self, index: usize, place: &str, id: Option<u64>) -> bool {
        let now = self.now;
        let claims = &self.messages[index].claims;
        let mut named = claims.iter().filter(|claim| self.leads_to(claim, place));
        let dead = self.dead_places(index, now).contains(&place.to_string());
        if !dead && named.next().is_none() {
            let text = format!(
                "{} was seen in {place}, where nothing moved it",
                self.name_of(index)
            );
            self.fail("R", text);
            return false;
        }
        let settled = claims.iter().find(|claim| {
            let gone = matches!(claim.certainty, Certainty::Sure { .. });
            gone && claim.to.is_empty()
        });
        if let Some(claim) = settled {
            let text = format!(
                "{} was seen in {place} after {:?} was confirmed ({:?})",
                self.name_of(index),
                claim.reason,
                claim.certainty
            );
            self.fail("A", text);
            return false;
        }
        self.checked("R");
        if !dead {
            self.check_undone(index, place, id);
        }
        for delivery in self.messages[index].deliveries.clone() {
            self.deliveries[delivery].settled = true;
            self.deliveries[delivery].moved = Some(now);
        }
        let ttl = self.had_ttl(index);
        let queue = self.queue(place);
        queue.moved_into = true;
        if !queue.messages.contains(&index) {
            queue.messages.push(index);
        }
        let stored = queue.track.durable(0, now);
        let mut through = Vec::new();
        for claim in &self.messages[index].claims {
            for name in &claim.to {
                through.push(name.clone());
                if let Some(queue) = self.queues.get(name) {
                    through.extend(queue.track.dead(0, now));
                }
            }
        }
        through.extend(self.dead_places(index, now));
        through.retain(|name| name != place);
        let message = &mut self.messages[index];
        // A move that is visible is as durable as its target's level, and all before it too.
        for stay in &mut message.trail {
            stay.level = stay.level.max(stored.0);
        }
        message.trail.push(Stay {
            place: std::mem::replace(&mut message.place, place.to_string()),
            through,
            id: message.id,
            until: now,
            level: stored.0,
        });
        message.moved = true;
        message.id = id;
        message.deliveries.clear();
        message.tries = (1, None);
        message.failed.clear();
        message.pri = (0, 255);
        message.stored = stored;
        message.expires = if ttl {
            (0, u64::MAX)
        } else {
            (u64::MAX, u64::MAX)
        };
        message.visible = Some(now);
        // What was asked of it where it was is over; other moves in flight may still meet it.
        message
            .claims
            .retain(|claim| undecided(claim.certainty) && claim.certainty == Certainty::Pending);
        true
    }

    /// What made the claim may have taken the message to a queue: at once, or it was dead-lettered
    /// from where it was taken, before anybody saw it there.
    fn leads_to(&self, claim: &Claim, place: &str) -> bool {
        claim.to.iter().any(|to| {
            let queue = self.queues.get(to);
            let dead = queue.map(|queue| queue.track.dead(0, self.now));
            to == place || dead.is_some_and(|dead| dead.iter().any(|dead| dead == place))
        })
    }

    /// If nothing but a power loss can have brought it back, that loss took the move away, with all
    /// that came after it. Not to be asked when it may have been dead-lettered from where it was.
    fn check_undone(&mut self, index: usize, place: &str, id: Option<u64>) {
        let claims = self.messages[index].claims.iter();
        let mut undone = None;
        for claim in claims.filter(|claim| self.leads_to(claim, place)) {
            let (Reason::Undone { loss }, Certainty::Maybe { finished }) =
                (claim.reason, claim.certainty)
            else {
                return;
            };
            if claim.to.iter().any(|to| to == place) {
                undone = undone.max(Some((finished, loss)));
            }
        }
        let Some((finished, loss)) = undone else {
            return;
        };
        let trail = &self.messages[index].trail;
        let was = |stay: &Stay| {
            let same = stay.place == place && (stay.id.is_none() || id.is_none() || stay.id == id);
            same || stay.through.iter().any(|name| name == place)
        };
        if !trail.iter().any(was) {
            let text = format!(
                "{} came back to {place} with id {id:?}, which it never had there",
                self.name_of(index)
            );
            self.fail("P", text);
            return;
        }
        self.losses[loss].lost = self.losses[loss].lost.min(finished);
        self.check_holes(loss);
    }

    fn id_is_unique(&mut self, index: usize, place: &str, id: u64) {
        if self.queue(place).deleted.is_some() {
            return;
        }
        let members = self.queue(place).messages.clone();
        let twin = members.into_iter().find(|other| {
            let message = &self.messages[*other];
            let same = message.place == place && message.id == Some(id) && *other != index;
            same && message.surely_exists() && !message.possibly_claimed(self.now)
        });
        if let Some(twin) = twin {
            let text = format!(
                "{} and {} have one id",
                self.name_of(index),
                self.name_of(twin)
            );
            self.fail("P", text);
        }
    }

    /// A `MSG` line of a `PEEK`.
    pub(super) fn peeked(&mut self, command: usize, line: &Line) {
        let now = self.now;
        let low = self.commands[command].arrived.unwrap_or(now);
        let Kind::Peek { queue, state, .. } = self.commands[command].command.kind.clone() else {
            unreachable!("called for a PEEK")
        };
        let Some(index) = self.identify(line) else {
            return;
        };
        let Some(id) = line.option("id").and_then(|id| id.parse().ok()) else {
            self.fail("F", format!("a peeked message without id=: {line:?}"));
            return;
        };
        if self.messages[index].murky {
            return;
        }
        let place = match state {
            crate::command::State::Dead => {
                let places = self.queue(&queue).track.dead(low, now);
                let here = &self.messages[index].place;
                match places.contains(here) || places.len() != 1 {
                    true => return,
                    false => places[0].clone(),
                }
            }
            _ => queue,
        };
        let message = &self.messages[index];
        let other = message.place != place || message.id.is_some_and(|known| known != id);
        if other && message.trail.last().is_some_and(|stay| stay.until >= low) {
            // It was moved while this answer was on its way: nobody can know which came first.
            return;
        }
        let known = message.visible;
        self.may_be_another_id(index, &place, Some(id));
        if self.messages[index].murky {
            return;
        }
        self.sighted(index, &place, Some(id), None, low);
        if state != crate::command::State::Ready && known.is_none() {
            // It is there, but nobody knows for how long it is leased or delayed.
            self.messages[index].visible = None;
        }
    }

    /// A `MSG` line of a `PULL` or a subscription.
    pub(super) fn delivered(&mut self, consumer: &Consumer, line: &Line) {
        let now = self.now;
        let Some(index) = self.identify(line) else {
            return;
        };
        self.request_seen(index, line);
        let [source, handle, ..] = &line.words[..] else {
            self.fail(
                "F",
                format!("a message without source and handle: {line:?}"),
            );
            return;
        };
        let (source, handle) = (source.clone(), handle.clone());
        if !consumer.sources.contains(&source) {
            self.fail(
                "F",
                format!("a message from {source}, which was not asked for"),
            );
            return;
        }
        let auto = handle == "-";
        if auto != consumer.auto {
            self.fail(
                "F",
                format!("handle {handle} with ack=auto {}", consumer.auto),
            );
            return;
        }
        let Ok((id, told)) = told(line, &handle) else {
            self.fail("F", format!("a message that doesn't tell its id: {line:?}"));
            return;
        };
        let low = consumer.since;
        // RESP doesn't tell: it is not less than what is known.
        let tries = told.unwrap_or(self.messages[index].tries.0);
        if low < now
            && self.messages[index].place != source
            && !self.messages[index].place.is_empty()
        {
            // It was moved after this delivery or before: nobody can know which.
            self.messages[index].murky = true;
        }
        self.may_be_another_id(index, &source, id);
        if self.messages[index].murky {
            if !auto {
                self.seen_late(consumer, index, &handle, 1, low);
                self.may_last(consumer);
            }
            return;
        }
        if !auto && self.overtaken(index, &source, tries, low) {
            if self.is_order_unknown(index) {
                self.messages[index].murky = true;
            }
            return self.seen_late(consumer, index, &handle, tries, low);
        }
        let elsewhere = self.is_elsewhere(index, &source, id, told);
        self.may_leave(index, &source, low, auto, elsewhere);
        if self.violation.is_some() || !self.sighted(index, &source, id, told, low) {
            return;
        }
        if !auto {
            if !consumer.tail {
                self.deferred.push(Deferred::Order {
                    index,
                    source: source.clone(),
                    low,
                });
            }
            self.check_key(index, &source);
            self.check_single(consumer, &source);
        }
        if told.is_some() {
            self.check_tries(index, &source, tries, low);
        }
        self.queue(&source).established = true;
        if auto {
            self.settled_by_delivery(index, &source, consumer.command, now);
            return;
        }
        self.record_delivery(consumer, index, &source, &handle, tries, low);
    }

    /// The line waited in the broker's output while a later delivery of the message was seen.
    fn overtaken(&self, index: usize, source: &str, tries: u64, low: u64) -> bool {
        let message = &self.messages[index];
        let last = message
            .deliveries
            .last()
            .map(|last| &self.deliveries[*last]);
        let later = last.is_some_and(|last| last.granted.1 >= low && last.tries >= tries);
        low < self.now && message.place == source && (later || message.surely_claimed(self.now))
    }

    /// The last delivery that was seen does not tell its try: whether it came before one that was seen after it nobody
    /// knows.
    fn is_order_unknown(&self, index: usize) -> bool {
        let message = &self.messages[index];
        let last = message.deliveries.last();
        let is_resp = last
            .is_some_and(|last| self.links[self.deliveries[*last].link].dialect == Dialect::Resp);
        is_resp && !message.surely_claimed(self.now)
    }

    /// A delivery that was over before it was seen: only its handle matters.
    fn seen_late(&mut self, consumer: &Consumer, index: usize, handle: &str, tries: u64, low: u64) {
        if self.by_handle.contains_key(handle) {
            self.fail("L", format!("handle {handle} was given a second time"));
            return;
        }
        self.by_handle
            .insert(handle.to_string(), self.deliveries.len());
        self.deliveries.push(Delivery {
            message: index,
            link: consumer.link,
            boot: self.boot,
            tries,
            granted: (low, self.now),
            deadline: (low, self.now),
            lease: (0, 0),
            touches: Vec::new(),
            nacks: Vec::new(),
            held: None,
            leaving: None,
            ended: Some((low, self.now)),
            settled: false,
            moved: None,
            taken: None,
        });
    }

    /// The delivery that was seen last, of a message of which nothing is known, may take of its subscription's credit.
    fn may_last(&mut self, consumer: &Consumer) {
        let Some(last) = self.deliveries.len().checked_sub(1) else {
            return;
        };
        let delivery = &mut self.deliveries[last];
        (delivery.ended, delivery.deadline.1) = (None, u64::MAX);
        if let Some(sub) = consumer.sub {
            self.links[consumer.link].subs[sub].deliveries.push(last);
        }
    }

    /// An `ack=auto` delivery: it was settled before it was sent.
    fn settled_by_delivery(&mut self, index: usize, source: &str, command: usize, now: u64) {
        let before = self.messages[index].claims.iter().find(|claim| {
            matches!(claim.certainty, Certainty::Sure { .. })
                && matches!(claim.reason, Reason::Ack | Reason::AutoAck)
        });
        if let Some(claim) = before {
            let text = format!("{} was delivered after {claim:?}", self.name_of(index));
            self.fail("A", text);
            return;
        }
        let level = self.queue(source).track.durable(0, now).0;
        for delivery in self.messages[index].deliveries.clone() {
            self.deliveries[delivery].settled = true;
            self.deliveries[delivery].taken = Some(now);
        }
        self.messages[index].claims.push(Claim {
            reason: Reason::AutoAck,
            cause: command,
            from: now,
            to: Vec::new(),
            certainty: Certainty::Sure { at: now, level },
        });
    }

    /// L and R: one lease at a time, not before the deadline or the end of a nack's delay, not
    /// before the delay of the publish, not after it has expired, not while paused.
    fn may_leave(&mut self, index: usize, source: &str, low: u64, auto: bool, elsewhere: bool) {
        let now = self.now;
        self.checked("L");
        if !elsewhere {
            for delivery in self.messages[index].deliveries.clone() {
                let record = &self.deliveries[delivery];
                if !record.settled && record.ready_again() > now {
                    let text = format!(
                        "{} was delivered at {now} while delivery {delivery} held it: {record:?}",
                        self.name_of(index)
                    );
                    self.fail("R", text);
                    return;
                }
            }
            let (message, expired) = (&self.messages[index], self.expiry(index).1);
            if now < message.due.0 && !message.moved {
                let text = format!(
                    "{} was delivered at {now}, before its time {}",
                    self.name_of(index),
                    message.due.0
                );
                self.fail("R", text);
            } else if expired.saturating_add(TIMER_SLACK_US) < low
                && !auto
                && !self.went_round(index, source)
            {
                let text = format!(
                    "{} was delivered at {now}, expired by {expired}",
                    self.name_of(index)
                );
                self.fail("P", text);
            }
        }
        if self.queue(source).track.surely_paused_out(low, now) && !auto {
            self.fail(
                "P",
                format!("{source} gave a message at {now} while it was paused"),
            );
        }
    }

    /// Where the id that it had or the one that it has is not told, and it may have been moved away and back between, nobody
    /// can know whether it was.
    fn may_be_another_id(&mut self, index: usize, source: &str, id: Option<u64>) {
        let is_unknown = id.is_none() || self.messages[index].id.is_none();
        self.messages[index].murky |= is_unknown && self.went_round(index, source);
    }

    /// May the message have been moved to another queue and back? A `MOVE` leaves its time to live behind.
    fn went_round(&self, index: usize, source: &str) -> bool {
        let mut claims = self.messages[index].claims.iter();
        claims.any(|claim| claim.reason == Reason::Move && claim.to.iter().any(|to| to == source))
    }

    /// R: tries count from 1 and `maxdeliver` ends them.
    fn check_tries(&mut self, index: usize, source: &str, tries: u64, low: u64) {
        let now = self.now;
        self.checked("R");
        let (least, most) = self.messages[index].tries;
        // What a socket hasn't taken yet are deliveries that nobody has seen.
        let most = most.filter(|_| !self.maybe_taken_unseen(source));
        if tries < least || most.is_some_and(|most| tries > most) {
            let text = format!(
                "{} was delivered as try {tries}, expected {least} to {most:?}",
                self.name_of(index)
            );
            self.fail("R", text);
            return;
        }
        // The limit was judged when the try before failed, or at any time since.
        let message = &self.messages[index];
        let failed = match message.deliveries.last() {
            Some(last) if self.deliveries[*last].tries + 1 == tries => {
                self.deliveries[*last].granted.0
            }
            // A try that nobody saw, whenever that was.
            _ if tries > 1 => message.sent,
            _ => low,
        };
        let limits = self.queue(source).track.maxdeliver(failed, now);
        if limits.iter().all(|limit| *limit != 0 && tries > *limit) {
            let text = format!(
                "{} was delivered as try {tries} of {limits:?}",
                self.name_of(index)
            );
            self.fail("R", text);
        }
    }

    fn record_delivery(
        &mut self,
        consumer: &Consumer,
        index: usize,
        source: &str,
        handle: &str,
        tries: u64,
        low: u64,
    ) {
        let now = self.now;
        if self.by_handle.contains_key(handle) {
            self.fail("L", format!("handle {handle} was given a second time"));
            return;
        }
        let spans = consumer.leases.iter().map(|lease| match lease {
            Some(us) => (*us, *us),
            None => self.queues[source].track.lease(low, now),
        });
        let spans: Vec<(u64, u64)> = spans.collect();
        let least = spans
            .iter()
            .map(|span| span.0)
            .min()
            .expect("a lease is asked for");
        let most = spans.iter().map(|span| span.1).max().expect("as above");
        for earlier in self.messages[index].deliveries.clone() {
            let record = &mut self.deliveries[earlier];
            let (first, _) = record.ended.unwrap_or((record.ready_again(), now));
            record.ended = Some((first, now));
        }
        let delivery = self.deliveries.len();
        let highest = self.most_tries(consumer, index, source, tries);
        self.deliveries.push(Delivery {
            message: index,
            link: consumer.link,
            boot: self.boot,
            tries: highest.unwrap_or(TRIES_UNKNOWN),
            granted: (low, now),
            deadline: (low + least, now + most),
            lease: (least, most),
            touches: Vec::new(),
            nacks: Vec::new(),
            held: consumer.hold.then_some(false),
            leaving: self.leaves_since(consumer.link, low),
            ended: None,
            settled: false,
            moved: None,
            taken: None,
        });
        self.by_handle.insert(handle.to_string(), delivery);
        // Later tries may have gone unseen between its being written and being read.
        let unseen = self.queue(source).fog.is_some_and(|fog| fog >= low);
        self.popped(consumer.link, delivery);
        let message = &mut self.messages[index];
        message.deliveries.push(delivery);
        let next = highest.filter(|_| !unseen).map(|highest| highest + 1);
        message.tries = (tries + 1, next);
        match consumer.sub {
            Some(sub) => {
                self.links[consumer.link].subs[sub]
                    .deliveries
                    .push(delivery);
                self.check_credit(consumer.link, sub);
            }
            None => self.commands[consumer.command].deliveries.push(delivery),
        }
    }

    /// L: never more unacked messages than the credit.
    fn check_credit(&mut self, link: usize, sub: usize) {
        let now = self.now;
        let record = &self.links[link].subs[sub];
        let (source, most) = (record.source.clone(), record.credit.1);
        let out = record.deliveries.iter().filter(|delivery| {
            let lease = &self.deliveries[**delivery];
            let message = &self.messages[lease.message];
            !lease.settled
                && lease.ended.is_none()
                && lease.ready_again() > now
                && lease.nacks.is_empty()
                && !self.possibly_gone(lease.message, now)
                && message.deliveries.last() == Some(delivery)
        });
        let out = out.count() as u64;
        self.checked("L");
        if out > most {
            let text =
                format!("{out} unacked messages of {source} on connection {link}, credit {most}");
            self.fail("L", text);
        }
    }
}
