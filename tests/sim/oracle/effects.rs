//! What may happen from the moment a command has arrived, and what the end of a connection or of
//! the broker does to what is known.

use super::record::{Certainty, Claim, Delivery, Fate, Loss, Message, Reason};
use super::settings::Track;
use super::{Oracle, TIMER_SLACK_US, settings};
use crate::command::{Command, Kind, Level, Publish, Setting, State};
use crate::disk::Crash;

/// The cause of what no command did.
const NOBODY: usize = usize::MAX;

impl Oracle {
    /// The last octet of a command has reached the broker.
    pub fn arrived(&mut self, command: usize, now: u64) {
        self.now = now;
        self.commands[command].arrived = Some(now);
        let link = self.commands[command].link;
        let Command {
            tag,
            quiet: _,
            kind,
        } = self.commands[command].command.clone();
        match (&kind, tag) {
            (Kind::Empty, _) => {}
            (_, Some(tag)) => {
                self.links[link].tagged.insert(tag, command);
            }
            (_, None) => self.links[link].waiting.push_back(command),
        }
        if self.arrived_inside(command) {
            return;
        }
        if self.arrived_at_door(command) {
            return;
        }
        match kind {
            Kind::Publish(publish) => self.publish_arrived(command, &publish),
            Kind::Cast { body, .. } => self.cast_arrived(command, &body),
            Kind::Bind { pattern, queue } => self.bind_arrived(command, &pattern, &queue),
            Kind::Unbind { pattern, queue } => self.unbind_arrived(&pattern, &queue),
            Kind::SubLive(pattern) => {
                let tag = self.commands[command].command.tag.clone();
                self.live_arrived(command, link, &pattern, &tag.unwrap_or_default());
            }
            Kind::UnsubLive(pattern) => self.live_ends(command, link, &pattern, false),
            Kind::Request { message, .. } => self.request_arrived(command, message),
            Kind::Pull(pull) => self.reads(link, &pull.sources),
            Kind::Sub {
                source,
                credit,
                auto: _,
                lease_us,
            } => {
                self.reads(link, std::slice::from_ref(&source));
                self.widen_credit(link, &source, credit, Some(lease_us));
            }
            Kind::Credit { source, credit } => self.widen_credit(link, &source, Some(credit), None),
            Kind::Unsub(source) | Kind::UnsubTag { source, .. } => {
                self.widen_credit(link, &source, None, None);
            }
            Kind::Ack(_) | Kind::Nack { .. } | Kind::Touch { .. } => {
                self.settle_arrived(command, &kind);
            }
            Kind::Drain(us) => self.drain_arrived(us),
            Kind::QSet { queue, settings } => {
                for setting in &settings {
                    if let Setting::Dead(name) = setting {
                        self.queue(name).track.dead_target = true;
                        self.dead_may_go_to(&queue, name);
                    }
                }
                self.queue(&queue).track.begin(&settings, now, command);
                self.settings_change(&queue);
            }
            Kind::QDel(queue) => {
                let level = self.terms.level;
                let values = settings::defaults(&queue, level);
                self.queue(&queue).track.begin(&values, now, command);
                self.settings_change(&queue);
                self.queue(&queue).deleted = Some((now, u64::MAX));
                self.claim_what_it_meets(command);
            }
            Kind::Move { to, .. } => {
                self.queue(&to).moved_into = true;
                self.claim_what_it_meets(command);
            }
            Kind::Del { .. } | Kind::Purge { .. } => self.claim_what_it_meets(command),
            Kind::Quit | Kind::Bad { closes: true, .. } => self.leaves(link),
            // Other shards know it before its answer, which stands behind those to earlier commands, is read.
            Kind::Hello { expired } => {
                self.links[link].expired |= expired && self.terms.shards > 1;
            }
            Kind::Ping(_)
            | Kind::Help
            | Kind::QGet(_)
            | Kind::QLs
            | Kind::Peek { .. }
            | Kind::Sync(_)
            | Kind::Stats
            | Kind::Cancel(_)
            | Kind::Answer { .. }
            | Kind::Begin
            | Kind::Commit
            | Kind::Abort
            | Kind::Bad { .. }
            | Kind::Barrier
            | Kind::Multi
            | Kind::Exec
            | Kind::Empty => {}
        }
    }

    /// Handles may be settled from now on.
    pub(super) fn settle_arrived(&mut self, command: usize, kind: &Kind) {
        match kind {
            Kind::Ack(handles) => {
                for handle in handles {
                    self.claim_handle(command, handle, Reason::Ack, Vec::new());
                }
            }
            Kind::Nack {
                handles,
                delay_us,
                dead,
            } => {
                for handle in handles {
                    self.nack_arrived(command, handle, *delay_us, *dead);
                }
            }
            Kind::Touch { handles, lease_us } => {
                for handle in handles {
                    self.touch_arrived(command, handle, *lease_us);
                }
            }
            other => unreachable!("{other:?} settles nothing"),
        }
    }

    /// Claims what a command may take away that empties a queue: what is there when it arrives, and
    /// when it is over what may have been moved there before it was run.
    pub(super) fn claim_what_it_meets(&mut self, command: usize) {
        match self.commands[command].command.kind.clone() {
            Kind::QDel(queue) => {
                self.claim_all(command, &queue, Reason::QueueDelete, Vec::new());
            }
            Kind::Del { queue, ids } => self.claim_ids(command, &queue, &ids),
            Kind::Purge { queue, state } => {
                let state = state.unwrap_or(State::Ready);
                if state == State::Dead {
                    let dead = self.queue(&queue).track.dead(0, u64::MAX);
                    for name in dead {
                        self.claim_all(command, &name, Reason::Purge, Vec::new());
                    }
                } else {
                    self.claim_all(command, &queue, Reason::Purge, Vec::new());
                }
            }
            Kind::Move { from, to, .. } => {
                self.claim_all(command, &from, Reason::Move, vec![to]);
            }
            _ => {}
        }
    }

    /// A queue may have a new dead-letter queue from now on: what rejects its messages and is still under way may find that.
    fn dead_may_go_to(&mut self, queue: &str, dead: &str) {
        for message in self
            .messages
            .iter_mut()
            .filter(|message| message.place == queue)
        {
            let claims = message.claims.iter_mut().filter(|claim| {
                let is_open = matches!(
                    claim.certainty,
                    Certainty::Pending | Certainty::Maybe { .. }
                );
                is_open && claim.reason != Reason::Move && !claim.to.is_empty()
            });
            for claim in claims {
                claim.to.push(dead.to_owned());
            }
        }
    }

    fn reads(&mut self, link: usize, sources: &[String]) {
        for source in sources {
            self.queue(source);
            if !self.links[link].sources.contains(source) {
                self.links[link].sources.push(source.clone());
            }
        }
    }

    pub(super) fn publish_arrived(&mut self, command: usize, publish: &Publish) {
        let now = self.now;
        self.drop_old(command, publish);
        for (index, _) in &publish.bodies {
            let due = match publish.at_ms {
                Some(ms) => self.due_at(ms, now, now).0,
                None => now + publish.delay_us,
            };
            let message = &mut self.messages[*index];
            message.fate = Fate::InFlight;
            message.sent = now;
            message.due = (due, None);
            self.queue(&publish.queue).messages.push(*index);
            self.taken_late(&publish.queue, *index);
        }
        if let Some(once) = &publish.once {
            let queue = self.queue(&publish.queue);
            queue.once.entry(once.clone()).or_default().push(command);
        }
        // What empties the queue and is not answered yet may take these too.
        for other in self.open_commands() {
            for (index, _) in &publish.bodies {
                self.claim_if_emptied(other, &publish.queue, *index);
            }
        }
    }

    /// What comes to a queue may be taken by a command that empties it.
    fn claim_if_emptied(&mut self, command: usize, queue: &str, message: usize) {
        let kind = &self.commands[command].command.kind;
        if let Some((of, reason, to)) = empties(kind)
            && of == queue
        {
            let to = to.into_iter().cloned().collect();
            self.claim(command, message, reason, to);
        }
    }

    /// Commands that have arrived and may still do something.
    pub(super) fn open_commands(&self) -> Vec<usize> {
        let links = self.links.iter();
        links
            .flat_map(|link| link.waiting.iter().chain(link.tagged.values()).copied())
            .collect()
    }

    /// A publish that may meet a limit with `full=dropold` may push out the oldest that nobody
    /// leases: one for each message by which the queue may be too long. While it is not answered, that
    /// may be any: it may wait before it is run, and what is leased then is not known.
    pub(super) fn drop_old(&mut self, command: usize, publish: &Publish) {
        let now = self.now;
        let since = self.commands[command].arrived.unwrap_or(now);
        let is_over = self.commands[command].answered.is_some();
        let track = &self.queue(&publish.queue).track;
        if !track.may_drop(since, now) {
            return;
        }
        let (maxlen, _) = track.maxlen(since, now);
        let (maxbytes, _) = track.maxbytes(since, now);
        let dead = match track.deadon(since, now).iter().any(|on| on.2) {
            true => track.dead(since, now),
            false => Vec::new(),
        };
        let mut members = self.members(&publish.queue);
        members.retain(|index| self.messages[*index].command != command);
        // What was moved here counts too, and is never dropped before it has a new place in the order.
        let comes = |message: &&Message| {
            let mut claims = message.claims.iter();
            message.possibly_exists() && claims.any(|claim| claim.to.contains(&publish.queue))
        };
        let moved = self.messages.iter().filter(comes).count();
        // What has left since it arrived may have counted when it was run.
        let claimed = self.commands[command].claimed.iter();
        let left = claimed.filter(|index| !members.contains(index)).count();
        let possible = (members.len() + left + moved + publish.bodies.len()) as u64;
        let mut room = match maxbytes {
            u64::MAX => possible.saturating_sub(maxlen),
            _ => u64::MAX,
        };
        for index in members {
            if room == 0 {
                let own = |claim: &Claim| (claim.cause, claim.reason) == (command, Reason::Drop);
                self.messages[index].claims.retain(|claim| !own(claim));
                continue;
            }
            self.claim(command, index, Reason::Drop, dead.clone());
            let leased = self.lease_possible(index, since);
            let message = &self.messages[index];
            // Only what was surely there and surely free all the time surely uses up a drop.
            if is_over && message.surely_exists() && message.id.is_some() && !leased {
                room = room.saturating_sub(1);
            }
        }
    }

    /// Messages that may be in a queue, those with the lowest known ids first.
    pub(super) fn members(&mut self, queue: &str) -> Vec<usize> {
        let now = self.now;
        let mut members: Vec<usize> = self.queue(queue).messages.clone();
        members.retain(|index| {
            let message = &self.messages[*index];
            message.place == queue && message.possibly_exists() && !message.surely_claimed(now)
        });
        members.sort_by_key(|index| self.messages[*index].id.unwrap_or(0));
        members
    }

    /// Says that a command may take a message away from now on.
    pub(super) fn claim(
        &mut self,
        command: usize,
        message: usize,
        reason: Reason,
        to: Vec<String>,
    ) {
        let from = self.now;
        for name in &to {
            let queue = self.queue(name);
            if !queue.messages.contains(&message) {
                queue.messages.push(message);
            }
        }
        let claims = &mut self.messages[message].claims;
        if claims
            .iter()
            .any(|claim| claim.cause == command && claim.reason == reason)
        {
            return;
        }
        claims.push(Claim {
            reason,
            cause: command,
            from,
            to,
            certainty: Certainty::Pending,
        });
        self.commands[command].claimed.push(message);
    }

    pub(super) fn claim_all(
        &mut self,
        command: usize,
        queue: &str,
        reason: Reason,
        to: Vec<String>,
    ) {
        let mut members = self.members(queue);
        members.extend(self.maybe_moved_to(queue));
        self.commands[command].tally = members.len() as u64;
        for index in members {
            self.claim(command, index, reason, to.clone());
        }
    }

    /// Messages that are elsewhere as far as is known, but may have been moved to this queue.
    pub(super) fn maybe_moved_to(&mut self, queue: &str) -> Vec<usize> {
        let all = 0..self.messages.len();
        all.filter(|index| {
            let message = &self.messages[*index];
            message.place != queue
                && message.possibly_exists()
                && (message
                    .claims
                    .iter()
                    .any(|claim| claim.to.iter().any(|to| to == queue))
                    || self
                        .dead_places(*index, self.now)
                        .iter()
                        .any(|dead| dead == queue))
        })
        .collect()
    }

    fn claim_handle(&mut self, command: usize, handle: &str, reason: Reason, to: Vec<String>) {
        if let Some(delivery) = self.by_handle.get(handle).copied() {
            let message = self.deliveries[delivery].message;
            self.claim(command, message, reason, to);
        }
    }

    fn nack_arrived(&mut self, command: usize, handle: &str, delay_us: Option<u64>, dead: bool) {
        let now = self.now;
        let Some(index) = self.by_handle.get(handle).copied() else {
            return;
        };
        let (message, tries) = (self.deliveries[index].message, self.deliveries[index].tries);
        let place = self.messages[message].place.clone();
        let track = &self.queue(&place).track;
        let (least, most) = match delay_us {
            Some(us) => (us, us),
            // Which settings count is known when it is answered.
            None => (0, track.backoff(tries, now, now).1),
        };
        let to = track.dead(now, now);
        let delivery = &mut self.deliveries[index];
        delivery.nacks.push((command, now + least, most));
        if dead {
            self.claim(command, message, Reason::Dead, to);
        }
    }

    fn touch_arrived(&mut self, command: usize, handle: &str, lease_us: Option<u64>) {
        let now = self.now;
        let Some(index) = self.by_handle.get(handle).copied() else {
            return;
        };
        let delivery = &mut self.deliveries[index];
        if let Some(us) = lease_us {
            delivery.lease = (delivery.lease.0.min(us), delivery.lease.1.max(us));
        }
        let least = lease_us.unwrap_or(delivery.lease.0);
        delivery.touches.push((command, now + least, u64::MAX));
    }

    fn claim_ids(&mut self, command: usize, queue: &str, ids: &[String]) {
        // The ids of those that were moved there are not known.
        for index in self.maybe_moved_to(queue) {
            self.claim(command, index, Reason::Delete, Vec::new());
        }
        for index in self.members(queue) {
            let id = self.messages[index].id.map(|id| id.to_string());
            // A message whose id isn't known yet may be the one that is meant.
            if id.is_none_or(|id| ids.contains(&id)) {
                self.claim(command, index, Reason::Delete, Vec::new());
            }
        }
    }

    fn widen_credit(
        &mut self,
        link: usize,
        source: &str,
        credit: Option<u64>,
        lease: Option<Option<u64>>,
    ) {
        for sub in self.links[link]
            .subs
            .iter_mut()
            .filter(|sub| sub.source == source)
        {
            sub.changing += 1;
            sub.leases.extend(lease);
            if let Some(credit) = credit {
                sub.credit = (sub.credit.0.min(credit), sub.credit.1.max(credit));
            }
        }
    }

    /// No answer will come to this command any more.
    pub(super) fn orphan(&mut self, command: usize) {
        let now = self.now;
        if !self.commands[command].open() {
            return;
        }
        self.commands[command].orphaned = Some(now);
        if self.orphaned_inside(command) {
            return;
        }
        // What is on its way to another shard is still run.
        let until = now + self.terms.way_us;
        let kind = self.commands[command].command.kind.clone();
        match kind {
            Kind::Publish(publish) => {
                self.drop_old(command, &publish);
                self.lose_messages(publish.bodies.into_iter().map(|body| body.0));
            }
            Kind::Cast { body, .. } => self.cast_orphaned(&body),
            Kind::Request { message, .. } => {
                self.messages[message].fate = Fate::Failed("nobody waits for it".to_string());
            }
            Kind::QSet { queue, .. } => self.queue(&queue).track.lose(command, until),
            Kind::QDel(queue) => {
                self.queue(&queue).track.lose(command, until);
                self.deletion_over(&queue, until);
            }
            Kind::Pull(pull) if pull.auto => {
                for source in pull.sources {
                    self.auto_consumed(command, &source);
                }
            }
            // It may have begun: its `OK` can have stood behind an answer that waited.
            Kind::Sub { source, auto, .. } if auto => self.auto_consumed(command, &source),
            _ => {}
        }
        self.claim_what_it_meets(command);
        self.finish_claims(command);
        self.list_was_made(command);
        if until > now && empties(&self.commands[command].command.kind).is_some() {
            self.run_late.push((command, until));
        }
    }

    /// What an `ack=auto` consumer took and never got is gone for good: at most once.
    fn auto_consumed(&mut self, command: usize, source: &str) {
        let mut members = self.members(source);
        if self.terms.shards > 1 {
            // What another shard's `MOVE` has brought may have been taken before its answer came.
            members.extend(self.maybe_moved_to(source));
        }
        for index in members {
            self.claim(command, index, Reason::AutoAck, Vec::new());
        }
        if self.terms.shards > 1 {
            // The command, and the end of its connection, may both be on their way still.
            let until = self.now + 2 * self.terms.way_us;
            self.queue(source).takers.push((command, until));
        }
    }

    /// What comes while a consumer that is gone is not known to be may go to it, and what comes before a command of such a
    /// connection is run may be taken by that.
    pub(super) fn taken_late(&mut self, source: &str, message: usize) {
        let now = self.now;
        let takers = &mut self.queue(source).takers;
        takers.retain(|(_, until)| *until >= now);
        for (command, _) in takers.clone() {
            self.claim(command, message, Reason::AutoAck, Vec::new());
            self.finish_claims(command);
        }
        self.run_late.retain(|(_, until)| *until >= now);
        for (command, _) in self.run_late.clone() {
            self.claim_if_emptied(command, source, message);
            self.finish_claims(command);
        }
    }

    /// Whether the command did what it claimed will only be seen from now on, if at all.
    pub(super) fn finish_claims(&mut self, command: usize) {
        // What is on its way to another shard is still run.
        let finished = self.now + self.terms.way_us;
        for index in self.commands[command].claimed.clone() {
            let claims = self.messages[index].claims.iter_mut();
            for claim in claims.filter(|claim| claim.cause == command) {
                if claim.certainty == Certainty::Pending {
                    claim.certainty = Certainty::Maybe { finished };
                }
            }
        }
    }

    /// A connection is over: its commands stay unanswered, its leases return.
    pub(super) fn end_of_link(&mut self, link: usize, by_server: bool) {
        let now = self.now;
        self.links[link].ended = Some(now);
        self.pops_end(link);
        let waiting: Vec<usize> = self.links[link].waiting.drain(..).collect();
        let tagged = std::mem::take(&mut self.links[link].tagged);
        let subs = std::mem::take(&mut self.links[link].subs);
        let open: Vec<usize> = waiting.into_iter().chain(tagged.into_values()).collect();
        let mut consuming = !subs.is_empty();
        for command in &open {
            let sent = &self.commands[*command];
            let ends = |kind: &Kind| matches!(kind, Kind::Quit | Kind::Bad { closes: true, .. });
            let cut = self.links[link].shut
                || self.commands.iter().any(|other| {
                    other.link == link && ends(&other.command.kind) && other.arrived.is_some()
                });
            if by_server && sent.open() && !sent.command.quiet && !cut {
                let text =
                    format!("connection {link} was closed with {command} unanswered: {sent:?}");
                self.fail("F", text);
            }
            let kind = &self.commands[*command].command.kind;
            consuming |= matches!(kind, Kind::Pull(_) | Kind::Sub { .. });
            self.orphan(*command);
        }
        for sub in subs.iter().filter(|sub| sub.auto) {
            self.auto_consumed(sub.command, &sub.source);
            self.finish_claims(sub.command);
        }
        let blocked = self.links[link].blocked.take().is_some();
        // What other shards give it until they hear of its end nobody sees.
        if blocked || (consuming && (!by_server || self.terms.shards > 1)) {
            for source in self.links[link].sources.clone() {
                self.unseen_deliveries(&source);
            }
        }
        let way_us = self.terms.way_us;
        for index in 0..self.deliveries.len() {
            let delivery = &mut self.deliveries[index];
            let ours = delivery.link == link && delivery.boot == self.boot;
            if !ours || delivery.settled || delivery.ended.is_some() || delivery.held == Some(true)
            {
                continue;
            }
            let delay = delivery.nacks.iter().map(|nack| nack.2).max().unwrap_or(0);
            let low = delivery.ready_again().min(now);
            delivery.ended = Some((low, now + way_us + delay));
        }
    }

    /// Messages of this queue may have been delivered where nobody saw it.
    fn unseen_deliveries(&mut self, source: &str) {
        let now = self.now;
        // A guest may take some until it hears of it.
        let until = now + self.terms.way_us;
        self.queue(source).fog = Some(until);
        for index in self.members(source) {
            self.messages[index].tries.1 = None;
        }
    }

    /// The broker's run is over.
    pub(super) fn end_of_boot(&mut self, mode: Crash, sync_us: u64) {
        let now = self.now;
        self.drain = None;
        self.run_late.clear();
        self.stored_late.clear();
        if let Some(since) = self.up_since.take() {
            self.runs.push((since, now));
        }
        for index in 0..self.messages.len() {
            if self.messages[index].fate == Fate::InFlight {
                // A quiet publish that was run, but for whose level nobody waited.
                self.learn_bounds(index, now);
                self.messages[index].fate = Fate::Unknown;
            }
            // A dead letter is stored by the dead-letter queue's level.
            let escaped =
                self.messages[index].home.is_some() || !self.dead_places(index, now).is_empty();
            let message = &mut self.messages[index];
            let volatile = message.stored.1 == Level::None;
            match message.fate {
                Fate::Confirmed { .. } | Fate::Unknown if volatile && escaped => {
                    message.fate = Fate::Unknown;
                    message.visible = None;
                }
                Fate::Confirmed { .. } | Fate::Unknown if volatile => message.fate = Fate::Lost,
                Fate::Confirmed {
                    level: Level::None, ..
                } => {
                    message.fate = Fate::Unknown;
                    message.visible = None;
                }
                Fate::Confirmed { .. } if message.stored.0 == Level::None && message.moved => {
                    message.fate = Fate::Unknown;
                    message.visible = None;
                }
                _ => {}
            }
            for claim in &mut message.claims {
                if let Certainty::Sure {
                    level: Level::None, ..
                } = claim.certainty
                {
                    claim.certainty = Certainty::Maybe { finished: now };
                }
            }
            forget_failed(message, &mut self.deliveries, now, |failed| {
                failed.2 == Level::None
            });
        }
        if self.terms.memory {
            self.forget_bindings();
            // Definitions live no longer than the process.
            for (name, queue) in &mut self.queues {
                let dead_target = queue.track.dead_target;
                queue.track = Track::new(name, Level::None);
                queue.track.dead_target = dead_target;
            }
        }
        if mode == Crash::Power {
            self.power_lost(now, sync_us);
        }
        for message in &mut self.messages {
            let logged = message
                .failed
                .iter()
                .map(|failed| failed.0)
                .max()
                .unwrap_or(0);
            message.tries.0 = logged + 1;
        }
    }

    /// Power failed; the broker had stopped running at `end`. What was promised at `os` may have
    /// lost a suffix of the log.
    pub(super) fn power_lost(&mut self, end: u64, sync_us: u64) {
        let window = self.terms.flush_us + 2 * sync_us + TIMER_SLACK_US;
        // What was there when it began to serve had been synced by its recovery.
        let begun = self.runs.last().map_or(0, |run| run.0);
        let kept = self.floor.max(end.saturating_sub(window)).max(begun);
        let loss = self.losses.len();
        self.losses.push(Loss {
            kept,
            lost: u64::MAX,
        });
        self.dark = Some(loss);
        for message in &mut self.messages {
            if let Fate::Confirmed {
                at,
                level: Level::Os,
            } = message.fate
                && at >= kept
            {
                message.weak = Some(loss);
                message.visible = None;
            }
            for claim in &mut message.claims {
                if let Certainty::Sure {
                    at,
                    level: Level::Os,
                } = claim.certainty
                    && at >= kept
                {
                    claim.certainty = Certainty::Weak { at, loss };
                }
            }
            undo_move(message, kept, end, loss);
            forget_failed(message, &mut self.deliveries, end, |failed| {
                failed.2 == Level::Os && failed.1 >= kept
            });
            let logged = message
                .failed
                .iter()
                .map(|failed| failed.0)
                .max()
                .unwrap_or(0);
            message.tries.0 = message.tries.0.min(logged + 1);
        }
    }
}

/// The queue that a command takes messages from without handing them out, why, and where to.
fn empties(kind: &Kind) -> Option<(&String, Reason, Option<&String>)> {
    match kind {
        Kind::Del { queue, .. } => Some((queue, Reason::Delete, None)),
        Kind::Purge { queue, .. } => Some((queue, Reason::Purge, None)),
        Kind::QDel(queue) => Some((queue, Reason::QueueDelete, None)),
        Kind::Move { from, to, .. } => Some((from, Reason::Move, Some(to))),
        _ => None,
    }
}

/// A crash at `end` may have undone the logging of some failed tries, and with it their delays.
fn forget_failed(
    message: &mut Message,
    deliveries: &mut [Delivery],
    end: u64,
    undone: impl Fn(&(u64, u64, Level)) -> bool,
) {
    let tries: Vec<u64> = message
        .failed
        .iter()
        .filter(|failed| undone(failed))
        .map(|failed| failed.0)
        .collect();
    message.failed.retain(|failed| !undone(failed));
    for index in &message.deliveries {
        let delivery = &mut deliveries[*index];
        if tries.contains(&delivery.tries)
            && let Some((low, _)) = &mut delivery.ended
        {
            *low = (*low).min(end);
        }
    }
}

/// A power loss that kept everything before `kept` may have undone the message's moves.
fn undo_move(message: &mut Message, kept: u64, end: u64, loss: usize) {
    let weak = message
        .trail
        .iter()
        .filter(|stay| stay.level < Level::Disk && stay.until >= kept);
    // From the last move back, each one only together with those after it.
    let claims: Vec<Claim> = weak
        .map(|stay| Claim {
            reason: Reason::Undone { loss },
            cause: NOBODY,
            from: end,
            to: [std::slice::from_ref(&stay.place), &stay.through].concat(),
            certainty: Certainty::Maybe {
                finished: stay.until,
            },
        })
        .collect();
    if !claims.is_empty() && message.fate == Fate::Lost {
        // Its last queue was in memory alone, the one before may have it again.
        message.fate = Fate::Unknown;
    }
    message.claims.extend(claims);
}
