//! What must be true at a moment: which messages are surely ready, who waits for them too long,
//! what must still be there at the end.

use super::record::{Certainty, Fate, Reason};
use super::{DELIVERY_US_MAX, Deferred, Oracle, TIMER_SLACK_US};
use crate::command::{Kind, Level};
use crate::dialect::Dialect;

impl Oracle {
    /// Takes over what the settings say about a publish that was run between its arrival and
    /// `high`.
    pub(super) fn learn_bounds(&mut self, index: usize, high: u64) {
        let command = self.messages[index].command;
        if let Some(queue) = self.messages[index].home.clone() {
            return self.learn_bounds_of_copy(index, &queue, high);
        }
        let Some(publish) = self.publish_of(command).cloned() else {
            return;
        };
        let sent = self.messages[index].sent;
        let track = &self.queue(&publish.queue).track;
        let stored = track.durable(sent, high);
        let pri = publish
            .pri
            .map_or_else(|| track.pri(sent, high), |pri| (pri, pri));
        let due = publish
            .at_ms
            .map_or(high + publish.delay_us, |ms| self.due_at(ms, sent, high).1);
        let message = &mut self.messages[index];
        message.due.1 = Some(due);
        if !message.moved {
            message.stored = stored;
            message.pri = pri;
        }
    }

    /// Messages of a command whose answer will never be known: what is on its way to another shard is still run.
    pub(super) fn lose_messages(&mut self, messages: impl IntoIterator<Item = usize>) {
        let until = self.now + self.terms.way_us;
        for index in messages {
            self.learn_bounds(index, until);
            if self.messages[index].fate == Fate::InFlight {
                self.messages[index].fate = Fate::Unknown;
                if until > self.now {
                    self.stored_late.push((index, until));
                }
            }
        }
    }

    /// Its settings may be others from now on, for messages that are still on their way to the queue, too.
    pub(super) fn settings_change(&mut self, queue: &str) {
        let now = self.now;
        self.stored_late.retain(|(_, until)| *until >= now);
        for (index, until) in self.stored_late.clone() {
            let message = &self.messages[index];
            if message.place == queue && message.fate == Fate::Unknown {
                self.learn_bounds(index, until);
            }
        }
    }

    fn learn_bounds_of_copy(&mut self, index: usize, queue: &str, high: u64) {
        let sent = self.messages[index].sent;
        let track = &self.queue(queue).track;
        let (stored, pri) = (track.durable(sent, high), track.pri(sent, high));
        let message = &mut self.messages[index];
        message.due.1 = Some(high);
        if !message.moved {
            message.stored = stored;
            message.pri = pri;
        }
    }

    /// Whether a time to live may ever have been set for it.
    pub(super) fn had_ttl(&mut self, index: usize) -> bool {
        self.expiry(index).0 != u64::MAX
    }

    /// It doesn't expire before the first, and surely has by the second.
    pub(super) fn expiry(&self, index: usize) -> (u64, u64) {
        let message = &self.messages[index];
        if message.moved {
            // It brings no time of its own: its queue's is what counts, if that has one.
            let queue = self.queues.get(&message.place);
            let least = queue.map_or(u64::MAX, |queue| queue.track.ttl(0, self.now).0);
            return match least {
                u64::MAX => message.expires,
                _ => (0, u64::MAX),
            };
        }
        let explicit = self
            .publish_of(message.command)
            .and_then(|publish| publish.ttl_us);
        let queue = &self.queues.get(&message.place);
        let (least, most) = queue.map_or((u64::MAX, u64::MAX), |queue| {
            queue.track.ttl(message.sent, self.now)
        });
        let short = explicit.unwrap_or(u64::MAX).min(least);
        let long = match (explicit, most) {
            (Some(own), u64::MAX) => own,
            (Some(own), most) => own.max(most),
            (None, most) => most,
        };
        let high = message
            .due
            .1
            .map_or(u64::MAX, |due| due.saturating_add(long));
        (message.due.0.saturating_add(short), high)
    }

    /// Queues to which it may have been dead-lettered from where it is.
    pub(super) fn dead_places(&self, index: usize, now: u64) -> Vec<String> {
        let message = &self.messages[index];
        let Some(queue) = self.queues.get(&message.place) else {
            return Vec::new();
        };
        let last = message
            .deliveries
            .last()
            .map(|last| &self.deliveries[*last]);
        let since = last.map_or(message.sent, |last| last.granted.0);
        let limits = queue.track.maxdeliver(since, now);
        let tries = match (message.tries.1, last) {
            // Deliveries that nobody saw may have used up the tries.
            (None, _) => u64::MAX,
            _ if self.maybe_taken_unseen(&message.place) => u64::MAX,
            (Some(_), Some(last)) => last.tries,
            (Some(_), None) => 0,
        };
        let spent = limits.iter().any(|limit| *limit != 0 && tries >= *limit);
        let on = queue.track.deadon(since.min(message.sent), now);
        let by_tries = spent && on.iter().any(|on| on.0);
        let by_ttl = self.expiry(index).0 <= now && on.iter().any(|on| on.1);
        match by_tries || by_ttl {
            true => queue.track.dead(since, now),
            false => Vec::new(),
        }
    }

    /// It may have left its place by now, for any reason.
    pub(super) fn possibly_gone(&self, index: usize, now: u64) -> bool {
        let message = &self.messages[index];
        message.possibly_claimed(now)
            || self.expiry(index).0 <= now
            || !self.dead_places(index, now).is_empty()
            || self.tries_spent(index, now)
    }

    /// Its tries may be used up, wherever it went then.
    fn tries_spent(&self, index: usize, now: u64) -> bool {
        let message = &self.messages[index];
        let Some(queue) = self.queues.get(&message.place) else {
            return false;
        };
        let Some(last) = message
            .deliveries
            .last()
            .map(|last| &self.deliveries[*last])
        else {
            return false;
        };
        let limits = queue.track.maxdeliver(last.granted.0, now);
        limits
            .iter()
            .any(|limit| *limit != 0 && last.tries >= *limit)
    }

    /// A lease that was seen may still last.
    pub(super) fn lease_possible(&self, index: usize, now: u64) -> bool {
        let message = &self.messages[index];
        message
            .deliveries
            .iter()
            .any(|delivery| self.deliveries[*delivery].over() > now)
    }

    /// Since when the message is surely there and surely ready for a consumer of `source`, without
    /// a gap until now; `None` when it may not be.
    pub(super) fn ready_since(&self, index: usize, source: &str) -> Option<u64> {
        self.ready_given(index, source, self.messages[index].visible)
    }

    fn ready_given(&self, index: usize, source: &str, visible: Option<u64>) -> Option<u64> {
        let now = self.now;
        let message = &self.messages[index];
        message.visible?;
        let queue = self.queues.get(source)?;
        if message.place != source || !message.surely_exists() || self.possibly_gone(index, now) {
            return None;
        }
        let mut since = visible?
            .max(self.up_since?)
            .max(queue.track.open_since(now)?)
            .max(queue.track.shared_since(now)?);
        // A deadline takes effect in a turn that its timer woke. Without a delay there is none,
        // whenever the receipt came.
        let delayed = self
            .publish_of(message.command)
            .is_some_and(|publish| publish.delay_us > 0 || publish.at_ms.is_some());
        if let Some(due) = message.due.1
            && due > message.sent
            && delayed
            && !message.moved
        {
            since = since.max(match due > visible? {
                true => due + TIMER_SLACK_US,
                false => due,
            });
        }
        for delivery in &message.deliveries {
            let record = &self.deliveries[*delivery];
            let over = match record.ended {
                Some((_, high)) => high,
                None => record.over().saturating_add(TIMER_SLACK_US),
            };
            since = since.max(over);
        }
        if let Some(fog) = queue.fog {
            since = since.max(fog);
        }
        since = since.max(self.key_free_since(index, source)?);
        since = since.max(self.nothing_on_its_way_since(index, source)?);
        if since > now || self.maybe_taken_unseen(source) {
            return None;
        }
        Some(since)
    }

    /// Since when nothing that comes to its `os` queue from another shard can stand before it in the order and not be on
    /// stable storage yet, so that it is seen after that; `None` if something can.
    fn nothing_on_its_way_since(&self, index: usize, source: &str) -> Option<u64> {
        let (least, most) = self.messages[index].stored;
        if self.terms.shards == 1 || least > Level::Os || most < Level::Os {
            return Some(0);
        }
        let committed = self.committed_since(source)?;
        let mut since = committed;
        for message in &self.messages {
            for claim in message
                .claims
                .iter()
                .filter(|claim| claim.to.iter().any(|to| to == source))
            {
                match claim.certainty {
                    Certainty::Pending | Certainty::Maybe { .. } => return None,
                    Certainty::Sure { at, .. } | Certainty::Weak { at, .. } => {
                        since = since.max(at)
                    }
                }
            }
        }
        Some(since)
    }

    /// Somebody may hold messages of the queue without anybody having seen it: his socket takes
    /// nothing, or they stand behind an answer that waits for the log, or he asked for messages
    /// that are settled before they are sent.
    pub(super) fn maybe_taken_unseen(&self, source: &str) -> bool {
        (0..self.links.len()).any(|link| self.may_hold_unseen(link, source))
    }

    /// The same, of one connection.
    pub(super) fn may_hold_unseen(&self, link: usize, source: &str) -> bool {
        let record = &self.links[link];
        if !record.open || !record.sources.iter().any(|name| name == source) {
            return false;
        }
        let mut subs = record.subs.iter().filter(|sub| sub.source == source);
        let reader = subs.next().is_some() || self.open_reads(link, source).next().is_some();
        let held_back = reader && self.is_held_back(link);
        record.blocked.is_some() || self.takes_at_once(link, source) || held_back
    }

    /// A connection is given messages of the queue that are settled before they are sent.
    fn takes_at_once(&self, link: usize, source: &str) -> bool {
        let mut subs = self.links[link].subs.iter();
        let auto_sub = subs.any(|sub| sub.source == source && sub.auto);
        auto_sub
            || self.open_reads(link, source).any(|kind| match kind {
                Kind::Pull(pull) => pull.auto,
                Kind::Sub { auto, .. } => *auto,
                _ => false,
            })
    }

    /// What a connection has typed to be given messages of the queue, and has no answer of.
    fn open_reads(&self, link: usize, source: &str) -> impl Iterator<Item = &Kind> {
        let record = &self.links[link];
        let open = record.waiting.iter().chain(record.tagged.values());
        let open = open.map(|command| &self.commands[*command].command.kind);
        open.filter(move |kind| match kind {
            Kind::Pull(pull) => pull.sources.iter().any(|name| name == source),
            Kind::Sub { source: name, .. } => name == source,
            _ => false,
        })
    }

    /// Somebody may have been given messages of the queue that are settled before anybody sees them: they were settled
    /// before they were sent, or a command behind a pop of RESP was run before its reply was read.
    pub(super) fn maybe_settled_unseen(&self, source: &str) -> bool {
        (0..self.links.len()).any(|link| {
            let record = &self.links[link];
            let pops = record.dialect == Dialect::Resp && self.open_reads(link, source).count() > 0;
            record.open && (pops || self.takes_at_once(link, source))
        })
    }

    /// Looks for a consumer who has waited too long for a message that was ready. To be called
    /// before the broker is given anything at `now`.
    pub fn tick(&mut self, now: u64) {
        for check in std::mem::take(&mut self.deferred) {
            match check {
                Deferred::Empty { command, sources } => self.check_empty(command, &sources),
                Deferred::Order { index, source, low } => self.check_order(index, &source, low),
                Deferred::NoConsumer { command } => self.check_no_consumer(command),
            }
        }
        self.now = now;
        if self.up_since.is_none() {
            return;
        }
        self.drain_goes_on();
        for link in 0..self.links.len() {
            let record = &self.links[link];
            if !record.open || record.blocked.is_some() || record.is_over {
                continue;
            }
            self.late_answers(link);
            self.late_requests(link);
            let willing = self.willing(link);
            if !willing.is_empty() && self.held_back_since(link) + self.terms.way_us >= now {
                for (since, source) in willing {
                    self.overdue(link, since, &source);
                }
            }
            if self.violation.is_some() {
                return;
            }
        }
    }

    fn overdue(&mut self, link: usize, since: u64, source: &str) {
        let now = self.now;
        if !self.queue(source).established
            || self.drain.is_some()
            || now < since + DELIVERY_US_MAX
            || self.unseen_publishes(link)
        {
            return;
        }
        self.checked("L");
        for index in self.queue(source).messages.clone() {
            let ready = self.ready_since(index, source);
            if ready.is_some_and(|ready| ready.max(since) + DELIVERY_US_MAX < now) {
                let text = format!(
                    "connection {link} waits for {source} since {since}, and {} is ready since \
                     {ready:?}, now {now}",
                    self.name_of(index)
                );
                self.fail("L", text);
                return;
            }
        }
    }

    /// The queues from which this connection surely takes a message now, and since when.
    fn willing(&self, link: usize) -> Vec<(u64, String)> {
        let record = &self.links[link];
        let mut found = Vec::new();
        if record.may_close.is_some() {
            // Its subscriptions have ended; it may still wait for the answers to its requests.
            return found;
        }
        let head = record.waiting.front().copied();
        let first_alone = head.filter(|head| self.commands[*head].command.tag.is_none());
        for command in first_alone
            .into_iter()
            .chain(record.tagged.values().copied())
        {
            let sent = &self.commands[command];
            let (Kind::Pull(pull), Some(arrived)) = (&sent.command.kind, sent.arrived) else {
                continue;
            };
            // A tagged one may have to wait for the connection's own publishes.
            let alone = sent.command.tag.is_none() || record.waiting.is_empty();
            if sent.messages > 0 || pull.auto || !alone || pull.wait_us == 0 {
                continue;
            }
            let since = arrived.max(record.idle_since);
            found.extend(pull.sources.iter().map(|source| (since, source.clone())));
        }
        for sub in record
            .subs
            .iter()
            .filter(|sub| !sub.auto && sub.changing == 0)
        {
            let out = sub.deliveries.iter().filter(|delivery| {
                let lease = &self.deliveries[**delivery];
                let message = &self.messages[lease.message];
                !lease.settled && lease.over() > self.now && !message.surely_claimed(self.now)
            });
            if (out.count() as u64) < sub.credit.0 {
                // Credit may have come back just now: the last settled delivery says when.
                let freed = sub.deliveries.iter().map(|delivery| {
                    let lease = &self.deliveries[*delivery];
                    lease
                        .ended
                        .map_or(lease.deadline.1.min(self.now), |ended| ended.1)
                });
                let since = freed
                    .chain([sub.since, record.idle_since])
                    .max()
                    .unwrap_or(sub.since);
                found.push((since, sub.source.clone()));
            }
        }
        found
    }

    /// A sync of 30 s stops no ping, and a `PULL` ends when its wait is over.
    fn late_answers(&mut self, link: usize) {
        let now = self.now;
        let record = &self.links[link];
        let Some(head) = record.waiting.front().copied() else {
            return;
        };
        let sent = &self.commands[head];
        // What stands behind a `MULTI` is answered with its `EXEC`.
        let answered_by = match self.is_queued(head) {
            true => self.exec_of(head),
            false => Some(head),
        };
        let Some(arrived) = answered_by.and_then(|command| self.commands[command].arrived) else {
            return;
        };
        // What stands behind an answer that waits for the log waits too.
        if self.held_back_since(link) < now {
            return;
        }
        let answered = record.burst.map_or(0, |burst| burst.0);
        let since = arrived.max(record.idle_since).max(answered);
        let limit = match &sent.command.kind {
            Kind::Ping(_) | Kind::Help | Kind::Hello { .. } | Kind::Stats | Kind::QLs => 10_000,
            Kind::Pull(pull) if !pull.auto && self.all_established(&pull.sources) => {
                pull.wait_us + DELIVERY_US_MAX
            }
            _ => return,
        };
        if now > since + limit && !self.unseen_publishes(link) {
            let text =
                format!("connection {link}: no answer at {now} to {sent:?}, first since {since}");
            self.fail("L", text);
        }
    }

    /// Publishes of the connection that its receipts, if there were any, don't show to be visible:
    /// a later command of its own waits until they are.
    pub(super) fn unseen_publishes(&self, link: usize) -> bool {
        self.commands.iter().any(|sent| {
            let own: Vec<usize> = match &sent.command.kind {
                Kind::Publish(publish) => publish.bodies.iter().map(|body| body.0).collect(),
                Kind::Cast { body, .. } => self.copies(body).to_vec(),
                _ => return false,
            };
            sent.link == link
                && sent.arrived.is_some()
                && own.into_iter().any(|index| {
                    let message = &self.messages[index];
                    let stored = matches!(message.fate, Fate::InFlight | Fate::Confirmed { .. });
                    stored && message.visible.is_none()
                })
        })
    }

    fn all_established(&self, sources: &[String]) -> bool {
        sources.iter().all(|source| {
            self.queues
                .get(source)
                .is_some_and(|queue| queue.established)
        })
    }

    /// `END 0` is honest only if nothing was ready at some moment of the call.
    /// One message of a queue may be kept, at some time since `low`, for a `PULL` of queues on several shards,
    /// other than `but`, and go back.
    pub(super) fn may_be_kept(&self, but: Option<usize>, source: &str, low: u64) -> bool {
        /// A message is kept so long at most, microseconds.
        const KEPT_US_MAX: u64 = 100_000;
        let shard = |name: &String| self.shard_of(name);
        self.terms.shards > 1
            && self.commands.iter().enumerate().any(|(command, sent)| {
                let Kind::Pull(pull) = &sent.command.kind else {
                    return false;
                };
                let ended = sent.answered.or(sent.orphaned).unwrap_or(u64::MAX);
                Some(command) != but
                    && ended.saturating_add(KEPT_US_MAX + 2 * self.terms.way_us) >= low
                    && pull.sources.iter().any(|name| name == source)
                    && pull
                        .sources
                        .iter()
                        .any(|name| shard(name) != shard(&pull.sources[0]))
            })
    }

    fn check_empty(&mut self, command: usize, sources: &[String]) {
        let sent = &self.commands[command];
        let link = sent.link;
        let low = sent.arrived.unwrap_or(self.now);
        self.checked("L");
        for source in sources {
            for index in self.queue(source).messages.clone() {
                // It waits until the connection's own earlier publishes are visible; others' must
                // have been there before.
                let publish = self.messages[index].command;
                let own = publish < command && self.commands[publish].link == link;
                let visible = if own {
                    Some(0)
                } else {
                    self.messages[index].visible
                };
                if self
                    .ready_given(index, source, visible)
                    .is_some_and(|since| since < low)
                    && !self.may_be_kept(Some(command), source, low)
                {
                    let text = format!(
                        "END 0 at {} for a PULL since {low}, but {} was ready all the time",
                        self.now,
                        self.name_of(index)
                    );
                    self.fail("L", text);
                    return;
                }
            }
        }
    }

    /// After everything was drained: whatever was promised must have been seen and settled.
    pub fn finish(&mut self, now: u64) {
        self.now = now;
        self.finish_transactions();
        for index in 0..self.messages.len() {
            let message = &self.messages[index];
            let Fate::Confirmed { at, level } = message.fate else {
                continue;
            };
            if message.murky || (level == Level::None && message.stored.1 > Level::None) {
                continue;
            }
            if message.surely_claimed(now) || self.excused(index) {
                continue;
            }
            let expired = self.expiry(index).0 <= now;
            if expired && !self.surely_dead_on_ttl(index) {
                continue;
            }
            self.checked("P");
            match self.messages[index].weak {
                Some(loss) => {
                    self.losses[loss].lost = self.losses[loss].lost.min(at);
                    self.check_holes(loss);
                }
                None => {
                    let text = format!(
                        "{} is lost: confirmed {:?} at {at}, never acked; stored {:?}, tries {:?}, deliveries {:?}",
                        self.name_of(index),
                        level,
                        self.messages[index].stored,
                        self.messages[index].tries,
                        self.messages[index].deliveries,
                    );
                    self.fail("P", text);
                }
            }
            if self.violation.is_some() {
                return;
            }
        }
    }

    /// Something may have taken it out of the broker.
    fn excused(&self, index: usize) -> bool {
        // Where it may have gone unseen, it may have been lost, have expired or been dropped.
        let fleeting = |name: &String| {
            self.queues.get(name).is_some_and(|queue| {
                let track = &queue.track;
                let volatile = track.durable(0, self.now).0 == Level::None;
                volatile || track.ttl(0, self.now).0 < u64::MAX || track.may_drop(0, self.now)
            })
        };
        // That its tries were used up nobody was told.
        let dead = self.dead_places(index, self.now);
        if self.tries_spent(index, self.now) && dead.iter().any(fleeting) {
            return true;
        }
        self.messages[index].claims.iter().any(|claim| {
            claim.to.is_empty() || claim.reason == Reason::Drop || claim.to.iter().any(fleeting)
        })
    }

    /// It can only have gone to the dead-letter queue when its time was over.
    fn surely_dead_on_ttl(&self, index: usize) -> bool {
        let message = &self.messages[index];
        let queue = self.queues.get(&message.place);
        let on = queue
            .map(|queue| queue.track.deadon(message.sent, self.now))
            .unwrap_or_default();
        !message.moved && !on.is_empty() && on.iter().all(|on| on.1)
    }

    /// Commands on open connections that have not been answered, when nothing is left to wait for.
    pub fn stuck(&mut self, now: u64) {
        self.now = now;
        for link in 0..self.links.len() {
            let record = &self.links[link];
            // Who asks for no confirms waits until his queue has room.
            if !record.open || record.blocked.is_some() || record.waits_for_room || record.is_over {
                continue;
            }
            if record.may_close.is_none() {
                self.check_live(link);
            }
            let record = &self.links[link];
            let mut open = record.waiting.iter().chain(record.tagged.values());
            let stuck = open.find(|command| {
                let sent = &self.commands[**command];
                sent.open() && sent.arrived.is_some() && !sent.command.quiet
            });
            if let Some(command) = stuck {
                let sent = self.commands[*command].clone();
                self.fail("F", format!("connection {link}: never answered: {sent:?}"));
                return;
            }
        }
    }

    /// Whether nothing is left that could still be delivered later: nothing leased or delayed.
    pub fn later(&self) -> Option<u64> {
        let now = self.now;
        let mut latest = None;
        for message in &self.messages {
            let alive = message.possibly_exists() && !message.surely_claimed(now);
            if !alive {
                continue;
            }
            let leases = message
                .deliveries
                .iter()
                .map(|delivery| &self.deliveries[*delivery]);
            let over = leases
                .filter(|lease| !lease.settled)
                .map(|lease| match lease.over() {
                    u64::MAX => lease.deadline.1,
                    over => over,
                });
            let due = message.due.1.unwrap_or(message.due.0);
            let at = over.chain([due]).max().unwrap_or(0);
            latest = latest.max(Some(at));
        }
        latest
    }
}
