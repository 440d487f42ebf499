//! Which command a server line belongs to, and what the answers to pulls and definitions prove.
//! Receipts are in `publishing`, answers that settle deliveries in `settling`.

use super::record::{Certainty, Fate, Sent, Sub};
use super::sighting::Consumer;
use std::collections::VecDeque;

use super::{Deferred, Oracle};
use crate::command::Kind;
use crate::dialect::Dialect;
use crate::wire::Line;

impl Oracle {
    /// One line of the server. Gives the command it belongs to.
    pub(super) fn line(&mut self, link: usize, line: &Line) -> Option<usize> {
        match line.kind.as_str() {
            "RETURN" | "BLOCKED" | "UNBLOCKED" | "CLOSED" => {
                self.door_line(link, line);
                return None;
            }
            "EXPIRED" => {
                self.expired_line(link, line);
                return None;
            }
            "LAG" if self.live_line(link, line) => return None,
            "LAG" => {
                self.fail(
                    "F",
                    format!("connection {link} has no live subscription: {line:?}"),
                );
                return None;
            }
            "END" if line.option("gone").is_some() => {
                if self.live_line(link, line) {
                    return None;
                }
                let source = line.words.first().cloned().unwrap_or_default();
                self.links[link].subs.retain(|sub| sub.source != source);
                return None;
            }
            _ => {}
        }
        if line.kind == "MSG" {
            return self.message_line(link, line);
        }
        if self.is_about_the_end(link, line) {
            return None;
        }
        let command = match &line.tag {
            Some(tag) => self.links[link].tagged.get(tag).copied(),
            None => self.head(link, line),
        };
        let Some(command) = command else {
            let quiet = line.kind == "ERR" && !self.links[link].quiet_errors.is_empty();
            if !quiet {
                self.fail(
                    "F",
                    format!("connection {link}: a line that answers nothing: {line:?}"),
                );
            }
            return None;
        };
        self.terminal(link, command, line);
        Some(command)
    }

    /// The input ended inside a command that never wholly arrived: that is said once, behind the
    /// answers to all others.
    fn is_about_the_end(&self, link: usize, line: &Line) -> bool {
        let record = &self.links[link];
        let closes = |command: &usize| {
            matches!(
                self.commands[*command].command.kind,
                Kind::Bad { closes: true, .. }
            )
        };
        line.kind == "ERR"
            && line.words[0] == "PROTO"
            && (record.half_closed || record.shut)
            && !record.waiting.iter().any(closes)
    }

    /// The untagged command that a terminal line answers. Quiet ones in front of it are thereby
    /// known to have been run; an error in front of it may be one of theirs.
    fn head(&mut self, link: usize, line: &Line) -> Option<usize> {
        let waiting = &self.links[link].waiting;
        let quiet = |command: &&usize| self.commands[**command].command.quiet;
        let quiets: Vec<usize> = waiting.iter().take_while(quiet).copied().collect();
        // Quiet commands wait for nothing: what is unknown is another's.
        let own = line.kind == "ERR" && line.words[0] != "UNKNOWNRESULT";
        if own && !quiets.is_empty() {
            self.links[link].quiet_errors.push(line.clone());
            return None;
        }
        self.links[link].waiting.drain(..quiets.len());
        let errors = std::mem::take(&mut self.links[link].quiet_errors);
        self.quiet_done(link, &quiets, &errors);
        self.links[link].waiting.front().copied()
    }

    fn message_line(&mut self, link: usize, line: &Line) -> Option<usize> {
        if self.live_line(link, line) {
            return None;
        }
        let asked = line
            .tag
            .as_ref()
            .and_then(|tag| self.links[link].tagged.get(tag));
        if let Some(command) = asked.copied()
            && matches!(self.commands[command].command.kind, Kind::Request { .. })
        {
            self.answer_given(command, line);
            return Some(command);
        }
        let source = line.words.first().cloned().unwrap_or_default();
        let record = &self.links[link];
        let command = match &line.tag {
            Some(tag) => record.tagged.get(tag).copied(),
            None => {
                let quiet = |command: &&usize| !self.commands[**command].command.quiet;
                let untagged_sub = record.subs.iter().any(|sub| sub.tag.is_none());
                record
                    .waiting
                    .iter()
                    .find(quiet)
                    .copied()
                    .filter(|_| !untagged_sub)
            }
        };
        let reads = |command: &usize| {
            matches!(
                self.commands[*command].command.kind,
                Kind::Pull(_) | Kind::Peek { .. }
            )
        };
        if let Some(command) = command.filter(reads) {
            if line.tag.is_none() {
                let before = record.waiting.iter().take_while(|other| **other != command);
                let count = before.count();
                let quiets: Vec<usize> = self.links[link].waiting.drain(..count).collect();
                let errors = std::mem::take(&mut self.links[link].quiet_errors);
                self.quiet_done(link, &quiets, &errors);
            }
            self.commands[command].messages += 1;
            match self.commands[command].command.kind.clone() {
                Kind::Peek { .. } => self.peeked(command, line),
                Kind::Pull(pull) => {
                    if self.commands[command].messages > pull.count {
                        self.fail("F", format!("more than {} messages: {line:?}", pull.count));
                    }
                    let arrived = self.commands[command].arrived.unwrap_or(self.now);
                    let since = arrived.max(self.held_back_since(link));
                    let consumer = Consumer {
                        link,
                        command,
                        sub: None,
                        auto: pull.auto,
                        leases: vec![pull.lease_us],
                        hold: pull.hold,
                        sources: pull.sources,
                        tail: pull.tail,
                        since,
                    };
                    self.delivered(&consumer, line);
                }
                _ => unreachable!("filtered above"),
            }
            return Some(command);
        }
        let subs = &self.links[link].subs;
        let Some(index) = subs
            .iter()
            .position(|sub| sub.source == source && sub.tag == line.tag)
        else {
            self.fail(
                "F",
                format!("connection {link}: a message nobody asked for: {line:?}"),
            );
            return None;
        };
        let sub = &subs[index];
        let consumer = Consumer {
            link,
            command: sub.command,
            sub: Some(index),
            auto: sub.auto,
            leases: sub.leases.clone(),
            hold: false,
            sources: vec![source],
            tail: false,
            // Behind answers of other shards it may have waited for as long as any of them did.
            since: match sub.auto || self.terms.shards > 1 {
                true => sub.begun,
                false => sub.begun.max(self.held_back_since(link)),
            },
        };
        self.delivered(&consumer, line);
        Some(consumer.command)
    }

    /// Since when lines of this connection may have been held back by an answer before them that
    /// waits for the log: what is read now may have happened then.
    pub(super) fn held_back_since(&self, link: usize) -> u64 {
        let record = &self.links[link];
        let open = record.waiting.iter().chain(record.tagged.values());
        let open = open.map(|command| &self.commands[*command]);
        let open = open
            .filter(|sent| self.terms.shards > 1 || self.waits_for_log(sent))
            .filter_map(|sent| sent.arrived);
        let just = record
            .burst
            .filter(|burst| burst.0 == self.now)
            .map(|burst| burst.1);
        // A message that is settled before it is sent waits for the log as an answer does.
        let settling = record
            .subs
            .iter()
            .filter(|sub| sub.auto)
            .map(|sub| sub.begun);
        open.chain(just)
            .chain(settling)
            .chain(record.blocked)
            .chain([self.now])
            .min()
            .expect("now is in it")
            .saturating_sub(self.terms.way_us)
    }

    /// An answer on this connection may wait for the log now.
    pub(super) fn is_held_back(&self, link: usize) -> bool {
        let record = &self.links[link];
        let mut open = record.waiting.iter().chain(record.tagged.values());
        open.any(|command| self.waits_for_log(&self.commands[*command]))
            || self.held_back_since(link) < self.now
    }

    /// The terminal line of a command.
    fn terminal(&mut self, link: usize, command: usize, line: &Line) {
        let now = self.now;
        match &line.tag {
            Some(tag) => {
                self.links[link].tagged.remove(tag);
                self.run_before(link, command);
            }
            None => {
                self.links[link].waiting.pop_front();
            }
        }
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let record = &mut self.links[link];
        record.burst = match record.burst {
            Some((at, first)) if at == now => Some((at, first.min(arrived))),
            _ => Some((now, arrived)),
        };
        if self.part_answered(command, line) {
            self.links[link].idle_since = now;
            return;
        }
        self.commands[command].answered = Some(now);
        let asked = self.commands[command].command.clone();
        self.checked("F");
        if line.kind == "ERR" {
            self.refused(command, line);
        } else if asked.quiet {
            self.fail(
                "F",
                format!("a quiet command was answered: {asked:?} {line:?}"),
            );
        } else {
            self.done(link, command, &asked.kind, line);
        }
        if line.tag.is_none() {
            self.links[link].idle_since = now;
        }
        self.finish_claims(command);
        self.answered_at_door(link, command, line);
    }

    /// Nothing rots while the broker is up, so its scrub has nothing to tell.
    fn check_scrub(&mut self, line: &Line) {
        let text = String::from_utf8_lossy(line.body.as_deref().unwrap_or_default());
        let mut lines = text.lines();
        if !lines.any(|line| line == "log_scrub_damaged_total=0") && text.contains("log_") {
            self.fail("P", "the scrub calls whole records damaged".to_string());
        }
    }

    /// Adds up the syncs that have waited for publishers, as far as the broker tells.
    fn count_waits(&mut self, line: &Line) {
        let text = String::from_utf8_lossy(line.body.as_deref().unwrap_or_default());
        for key in ["log_syncs_gathered_total", "log_syncs_in_vain_total"] {
            let values = text.lines().filter_map(|line| line.strip_prefix(key));
            let values = values.filter_map(|value| value.strip_prefix('=')?.parse::<u64>().ok());
            let Some(value) = values.max() else { continue };
            let told = self.waits_told.entry(key).or_insert(0);
            *self.checks.entry(key).or_insert(0) += value.max(*told) - *told;
            *told = value.max(*told);
        }
    }

    fn done(&mut self, link: usize, command: usize, kind: &Kind, line: &Line) {
        let wanted = match kind {
            Kind::Ping(_) => "PONG",
            Kind::Help | Kind::QGet(_) | Kind::QLs | Kind::Stats => "DATA",
            Kind::Pull(_) | Kind::Peek { .. } | Kind::Request { .. } => "END",
            Kind::Bad { .. } => "ERR",
            _ => "OK",
        };
        if line.kind != wanted {
            self.fail("F", format!("{line:?} answers {kind:?}"));
            return;
        }
        if matches!(kind, Kind::Stats) {
            self.check_scrub(line);
            self.count_waits(line);
        }
        self.check_not_drained(command);
        let number = line.words.first().and_then(|word| word.parse::<u64>().ok());
        let counts = matches!(
            kind,
            Kind::Pull(_)
                | Kind::Peek { .. }
                | Kind::Ack(_)
                | Kind::Nack { .. }
                | Kind::Touch { .. }
                | Kind::Del { .. }
                | Kind::Purge { .. }
                | Kind::Move { .. }
                | Kind::Cancel(_)
                | Kind::Commit
        );
        if counts && number.is_none() {
            self.fail("F", format!("{line:?} tells no number to {kind:?}"));
            return;
        }
        let number = number.unwrap_or(0);
        match kind {
            Kind::Ping(body) if *body != line.text => {
                self.fail("F", format!("{line:?} answers {kind:?}"));
            }
            Kind::Hello { expired } => self.links[link].expired |= *expired,
            Kind::Publish(publish) if self.links[link].dialect != Dialect::Text => {
                self.published_by_door(link, command, publish, line);
            }
            Kind::Publish(publish) => self.published(link, command, publish, line),
            Kind::Cast { body, .. } => self.cast_done(command, body, line),
            Kind::Bind { .. } => self.bind_done(command, true),
            Kind::Unbind { pattern, queue } => self.unbind_done(command, pattern, queue),
            Kind::SubLive(_) => self.live_begun(command, link, true),
            Kind::UnsubLive(pattern) => self.live_ends(command, link, pattern, true),
            Kind::Request { message, .. } => self.request_ended(command, *message, line),
            Kind::Answer { token, .. } => self.answer_taken(command, token, line),
            Kind::Pull(pull) => {
                let given = self.commands[command].messages;
                if number != given {
                    self.fail("F", format!("END {number} after {given} messages"));
                }
                if number == 0 {
                    let sources = pull.sources.clone();
                    if !self.may_be_cut_short(command) {
                        self.deferred.push(Deferred::Empty { command, sources });
                    }
                }
                for delivery in self.commands[command].deliveries.clone() {
                    let lease = &mut self.deliveries[delivery];
                    if lease.held.is_some() {
                        lease.held = Some(true);
                    }
                }
                for source in &pull.sources {
                    self.queue(source).established |= number > 0;
                }
            }
            Kind::Peek { .. } => {
                let given = self.commands[command].messages;
                if number != given {
                    self.fail("F", format!("END {number} after {given} messages"));
                }
            }
            Kind::Sub {
                source,
                credit,
                lease_us,
                auto,
            } => {
                let tag = self.commands[command].command.tag.clone();
                self.subscribed(link, command, tag, source, *credit, *lease_us, *auto);
            }
            Kind::Credit { source, credit } => {
                for sub in self.links[link]
                    .subs
                    .iter_mut()
                    .filter(|sub| sub.source == *source)
                {
                    sub.changing = sub.changing.saturating_sub(1);
                    sub.credit = (*credit, *credit);
                    sub.since = self.now;
                }
            }
            Kind::Unsub(source) | Kind::UnsubTag { source, .. } => {
                self.links[link].subs.retain(|sub| sub.source != *source)
            }
            Kind::QSet { queue, .. } => {
                if !matches!(line.words[..], [ref word] if word == "created" || word == "updated") {
                    self.fail("F", format!("{line:?} answers QSET"));
                }
                let now = self.now;
                self.queue(queue).track.end(command, now, true);
                self.check_no_circle(queue);
            }
            Kind::QDel(queue) => {
                self.queue_deleted(command, queue);
                self.claim_what_it_meets(command);
            }
            Kind::Ack(_) | Kind::Nack { .. } | Kind::Touch { .. } => {
                self.settled(command, number, &line.stale());
            }
            Kind::Del { queue, ids } => {
                self.deleted(command, queue, ids, number, &line.stale());
                if number > 0 {
                    self.claim_what_it_meets(command);
                }
            }
            Kind::Purge { queue, state } => {
                self.purged(command, queue, *state, number);
                if number > 0 {
                    self.claim_what_it_meets(command);
                }
            }
            Kind::Move { count, .. } => {
                if count.is_some_and(|count| number > count) {
                    self.fail("F", format!("MOVE of {count:?} moved {number}"));
                }
                match number {
                    0 => self.void_claims(command),
                    // What was dead-lettered while it waited may have been moved too.
                    _ => self.claim_what_it_meets(command),
                }
            }
            Kind::Sync(_) => self.synced(link, line),
            Kind::Commit => self.committed(command, number),
            Kind::Drain(_) => self.drain_told(),
            Kind::Cancel(_) if number > 1 => self.fail("F", format!("{line:?} answers CANCEL")),
            _ => {}
        }
    }

    /// Its wait may have been ended before it was begun: it waits for the connection's publishes.
    fn may_be_cut_short(&self, command: usize) -> bool {
        let sent = &self.commands[command];
        let link = &self.links[sent.link];
        let cancels = |other: &Sent| match &other.command.kind {
            Kind::Cancel(tag) => sent.command.tag.as_ref() == Some(tag),
            Kind::Empty => sent.command.tag.is_none(),
            _ => false,
        };
        let mut later = self.commands[command + 1..].iter();
        link.half_closed
            || link.shut
            || later
                .any(|other| other.link == sent.link && other.arrived.is_some() && cancels(other))
    }

    #[allow(clippy::too_many_arguments)]
    fn subscribed(
        &mut self,
        link: usize,
        command: usize,
        tag: Option<String>,
        source: &str,
        credit: Option<u64>,
        lease_us: Option<u64>,
        auto: bool,
    ) {
        let now = self.now;
        let subs = &mut self.links[link].subs;
        if let Some(sub) = subs.iter_mut().find(|sub| sub.source == source) {
            sub.changing = sub.changing.saturating_sub(1);
            if let Some(credit) = credit {
                sub.credit = (credit, credit);
            }
            match lease_us {
                // The queue's, or what it was: the change doesn't say.
                None => sub.leases.push(None),
                Some(_) if sub.changing == 0 => sub.leases = vec![lease_us],
                Some(_) => {}
            }
            sub.since = now;
            return;
        }
        let credit = credit.unwrap_or(100);
        let mut credit = (credit, credit);
        let mut leases = vec![lease_us];
        let mut changing = 0;
        // Changes of it that have arrived already may have been run before this was read.
        let record = &self.links[link];
        for open in record.waiting.iter().chain(record.tagged.values()) {
            let asked = match &self.commands[*open].command.kind {
                Kind::Sub {
                    source: of,
                    credit,
                    lease_us,
                    ..
                } if of == source => {
                    leases.push(*lease_us);
                    *credit
                }
                Kind::Credit { source: of, credit } if of == source => Some(*credit),
                Kind::Unsub(of) if of == source => None,
                _ => continue,
            };
            changing += 1;
            credit = asked.map_or(credit, |asked| (credit.0.min(asked), credit.1.max(asked)));
        }
        self.links[link].subs.push(Sub {
            command,
            tag,
            source: source.to_string(),
            credit,
            leases,
            auto,
            since: now,
            begun: self.commands[command].arrived.unwrap_or(now),
            changing,
            deliveries: Vec::new(),
        });
    }

    fn expired_line(&mut self, link: usize, line: &Line) {
        let handle = line.words.first().cloned().unwrap_or_default();
        if !self.links[link].expired {
            self.fail("F", format!("connection {link} did not ask for {line:?}"));
        }
        match self.by_handle.get(&handle) {
            Some(delivery) if self.deliveries[*delivery].link == link => {}
            _ => self.fail("F", format!("connection {link} never held {line:?}")),
        }
    }

    /// Quiet commands that were run before the answer that was just read.
    pub(super) fn quiet_done(&mut self, link: usize, quiets: &[usize], errors: &[Line]) {
        let now = self.now;
        let is_publish = |oracle: &Oracle, command: &usize| {
            matches!(oracle.commands[*command].command.kind, Kind::Publish(_))
        };
        let mut settle_errors: VecDeque<&Line> = errors
            .iter()
            .filter(|line| line.option("done").is_some())
            .collect();
        let refused = errors.len() - settle_errors.len();
        let publishes = quiets
            .iter()
            .filter(|command| is_publish(self, command))
            .count();
        let others = quiets.len() - publishes;
        for command in quiets {
            self.commands[*command].answered = Some(now);
            let kind = self.commands[*command].command.kind.clone();
            match kind {
                Kind::Publish(publish) => {
                    self.links[link].unsynced.push(*command);
                    self.drop_old(*command, &publish);
                    let once = publish.once.is_some();
                    for (index, _) in publish.bodies {
                        self.learn_bounds(index, now);
                        let message = &mut self.messages[index];
                        if message.fate != Fate::InFlight {
                            continue;
                        }
                        if refused == publishes && others == 0 {
                            message.fate = Fate::Failed("a quiet publish had an error".to_string());
                        } else if refused > 0 || once {
                            // It isn't known whose the errors are, or which is the duplicate.
                            message.fate = Fate::Unknown;
                        }
                    }
                }
                Kind::Ack(_) | Kind::Nack { .. } if self.links[link].dialect.is_amqp() => {
                    self.settled_unsaid(link, *command);
                }
                Kind::Ack(handles) | Kind::Nack { handles, .. } | Kind::Touch { handles, .. } => {
                    // Errors come in the order of their commands: the first that fits is its own.
                    let fits = |line: &&Line| {
                        let done = line
                            .option("done")
                            .and_then(|done| done.parse::<usize>().ok());
                        let stale = line.stale();
                        done.is_some_and(|done| done + stale.len() == handles.len())
                            && stale.iter().all(|handle| handles.contains(handle))
                    };
                    let stale = match settle_errors.front().copied().filter(fits) {
                        Some(line) => {
                            settle_errors.pop_front();
                            line.stale()
                        }
                        None => Vec::new(),
                    };
                    match refused == 0 {
                        true => {
                            self.settled(*command, (handles.len() - stale.len()) as u64, &stale)
                        }
                        false => self.settle_unknown(*command),
                    }
                }
                Kind::QSet { queue, .. } if refused == 0 => {
                    self.queue(&queue).track.end(*command, now, true);
                }
                Kind::QSet { queue, .. } => self.queue(&queue).track.lose(*command, now),
                _ => {}
            }
            self.finish_claims(*command);
        }
        self.links[link].refused += refused as u64;
    }

    /// An `ERR`: nothing was done, but for `UNKNOWNRESULT`.
    fn refused(&mut self, command: usize, line: &Line) {
        let now = self.now;
        let code = line.words[0].clone();
        let kind = self.commands[command].command.kind.clone();
        self.check_refusal(command, &kind, &code, line);
        let link = self.commands[command].link;
        if code == "UNKNOWNRESULT" {
            self.commands[command].answered = None;
            self.orphan(command);
            if matches!(kind, Kind::Sync(_)) {
                // It has counted, and what it counted is not told again.
                self.links[link].unsynced.clear();
                self.links[link].refused = 0;
            }
            return;
        }
        match &kind {
            Kind::Publish(publish) => {
                for (index, _) in &publish.bodies {
                    if matches!(self.messages[*index].fate, Fate::Confirmed { .. }) {
                        let text = format!("{} was refused: {line:?}", self.name_of(*index));
                        self.fail("P", text);
                    }
                    self.messages[*index].fate = Fate::Failed(format!("refused at {now}: {code}"));
                }
                if self.commands[command].command.quiet {
                    self.links[link].unsynced.push(command);
                    self.links[link].refused += 1;
                }
            }
            Kind::Cast { body, .. } => self.cast_refused(body, &code),
            Kind::Bind { .. } => self.bind_done(command, false),
            Kind::SubLive(_) => self.live_begun(command, link, false),
            Kind::Request { message, .. } => self.request_ended(command, *message, line),
            Kind::Answer { token, .. } => self.answer_taken(command, token, line),
            Kind::Commit => self.commit_refused(command, line),
            Kind::QSet { queue, .. } => self.queue(queue).track.end(command, now, false),
            Kind::QDel(queue) => {
                self.queue(queue).track.end(command, now, false);
                self.deletion_over(queue, now);
            }
            Kind::Ack(_) | Kind::Nack { .. } | Kind::Touch { .. } => {
                match line.option("done").and_then(|done| done.parse().ok()) {
                    Some(done) if code == "STALE" => self.settled(command, done, &line.stale()),
                    _ => self.settle_nothing(command),
                }
            }
            Kind::Credit { source, .. } | Kind::Unsub(source) | Kind::Sub { source, .. } => {
                for sub in self.links[link]
                    .subs
                    .iter_mut()
                    .filter(|sub| sub.source == *source)
                {
                    sub.changing = sub.changing.saturating_sub(1);
                }
            }
            _ => {}
        }
        self.void_claims(command);
    }

    /// P: a refusal has its reason.
    fn check_refusal(&mut self, command: usize, kind: &Kind, code: &str, line: &Line) {
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let known = match (kind, code) {
            (_, "INTERNAL") => false,
            (Kind::Bad { codes, .. }, code) => codes.contains(&code),
            (_, "UNKNOWNRESULT") => true,
            (_, "DRAINING") if !self.may_be_drained(command) => false,
            (Kind::Commit, code) => self.may_refuse_commit(command, code, line),
            (_, "DRAINING") => true,
            // Full, or the next segment is not prepared yet: a capacity, with a time to retry.
            (_, "DISK") => !self.terms.memory,
            (Kind::Publish(publish), "FULL") => self.may_be_full(command, publish),
            (Kind::Publish(publish), "PAUSED") => {
                self.queue(&publish.queue).track.may_pause_in(arrived, now)
            }
            (Kind::Publish(publish), "CONFLICT") => {
                let least = self.queue(&publish.queue).track.durable(arrived, now).0;
                publish
                    .sync
                    .is_some_and(|sync| sync > least || self.terms.memory)
            }
            (Kind::Publish(publish), "NACKED") => self.may_be_nacked(command, publish),
            (Kind::Publish(_) | Kind::Move { .. }, "MEM") => self.terms.scarce,
            (Kind::Cast { .. } | Kind::Bind { .. } | Kind::SubLive(_), "MEM") => self.terms.scarce,
            (Kind::Request { .. }, "MEM") => self.terms.scarce,
            (Kind::Request { .. }, code) => self.is_true_of_request(command, code),
            (Kind::Answer { .. }, "STALE" | "FULL") => true,
            (Kind::Unbind { pattern, queue }, "CONFLICT" | "NOQUEUE") => {
                !self.surely_bound(command, pattern, queue)
            }
            (Kind::SubLive(_), "CONFLICT") => {
                self.links[self.commands[command].link].may_close.is_some()
            }
            (Kind::UnsubLive(pattern), "CONFLICT") => {
                let link = &self.links[self.commands[command].link];
                let there = |sub: &super::record::LiveSub| {
                    let is_older = sub.command < command && sub.from.1 < arrived;
                    is_older && sub.pattern == *pattern && sub.until.0 >= arrived
                };
                link.may_close.is_some() || !link.live.iter().any(there)
            }
            (Kind::Publish(publish), "LIMIT") => self.terms.scarce && publish.once.is_some(),
            (Kind::Pull(_) | Kind::Peek { .. } | Kind::Sub { .. }, "CONFLICT") => true,
            (Kind::QSet { .. } | Kind::Move { .. } | Kind::Sync(_), "CONFLICT") => true,
            (Kind::Move { .. }, "FULL" | "PAUSED") => true,
            (Kind::Ack(_) | Kind::Nack { .. } | Kind::Touch { .. }, "STALE") => {
                self.commands[command].command.quiet
            }
            (Kind::Credit { .. } | Kind::Unsub(_), "CONFLICT" | "NOQUEUE" | "STALE") => true,
            (
                Kind::QGet(_)
                | Kind::QDel(_)
                | Kind::Del { .. }
                | Kind::Purge { .. }
                | Kind::Peek { .. }
                | Kind::Move { .. },
                "NOQUEUE",
            ) => true,
            _ => false,
        };
        if !known {
            let promise = if matches!(kind, Kind::Publish(_)) {
                "P"
            } else {
                "F"
            };
            self.fail(
                promise,
                format!("{line:?} answers {kind:?}, for no reason that can be seen"),
            );
        }
    }

    /// The command did nothing of what it might have done.
    pub(super) fn void_claims(&mut self, command: usize) {
        for index in std::mem::take(&mut self.commands[command].claimed) {
            self.messages[index].claims.retain(|claim| {
                claim.cause != command || matches!(claim.certainty, Certainty::Sure { .. })
            });
        }
    }
}

impl Oracle {
    /// Whether the answer may wait for the log, and with it all behind it on the connection. AMQP has confirms
    /// that nothing waits behind, and what a publish holds up there are answers, not messages.
    fn waits_for_log(&self, sent: &Sent) -> bool {
        let is_amqp = self.links[sent.link].dialect.is_amqp();
        !is_amqp && waits_for_log(&sent.command.kind)
    }
}

/// The same, of the line protocol and RESP.
fn waits_for_log(kind: &Kind) -> bool {
    match kind {
        Kind::Pull(pull) => pull.auto,
        Kind::Peek { .. } | Kind::Cancel(_) | Kind::Ping(_) | Kind::Empty => false,
        Kind::SubLive(_) | Kind::UnsubLive(_) | Kind::Request { .. } | Kind::Answer { .. } => false,
        _ => true,
    }
}
