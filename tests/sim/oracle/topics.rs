//! What is cast: copies for the queues that are bound, which are messages like any other, and for live
//! subscriptions, where what was received and what was told to be missing must be all that was cast.

use std::collections::{BTreeMap, BTreeSet};

use super::Oracle;
use super::record::{Fate, LiveSub};
use crate::command::{Kind, Level};
use crate::wire::Line;

/// Does a pattern mean a topic?
pub fn means(pattern: &str, topic: &str) -> bool {
    fn words(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            (["#", rest @ ..], _) => (0..=topic.len()).any(|used| words(rest, &topic[used..])),
            (["*", rest @ ..], [_, left @ ..]) => words(rest, left),
            ([word, rest @ ..], [first, left @ ..]) => word == first && words(rest, left),
            _ => false,
        }
    }
    let pattern: Vec<&str> = pattern.split('.').collect();
    let topic: Vec<&str> = topic.split('.').collect();
    words(&pattern, &topic)
}

/// The queue that a copy was cast to, from where it is now.
fn home(place: &str) -> &str {
    let mut home = place;
    while let Some(queue) = home.strip_suffix(".dead") {
        home = queue;
    }
    home
}

/// One binding of one queue.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    queue: String,
    pattern: String,
    /// The `BIND`.
    command: usize,
    /// It began not before, not after.
    from: (u64, u64),
    /// It ended not before, not after.
    until: (u64, u64),
}

/// One message that was cast.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    command: usize,
    topic: String,
    /// Copies that queues have or may have.
    copies: Vec<usize>,
    /// Connections that were given a copy.
    links: Vec<usize>,
}

/// All that is known of topics.
#[derive(Debug, Default)]
pub(super) struct Topics {
    bindings: Vec<Binding>,
    /// By their bodies, which differ.
    casts: BTreeMap<Vec<u8>, Cast>,
    /// `CAST`s that were refused: nobody has a copy.
    refused: BTreeSet<usize>,
}

impl Oracle {
    /// A `CAST` was typed.
    pub(super) fn cast_typed(&mut self, command: usize, topic: &str, body: &[u8]) {
        let cast = Cast {
            command,
            topic: topic.to_string(),
            copies: Vec::new(),
            links: Vec::new(),
        };
        let before = self.topics.casts.insert(body.to_vec(), cast);
        assert!(before.is_none(), "the workload made two equal bodies");
    }

    /// It has arrived: every queue that may be bound may get a copy.
    pub(super) fn cast_arrived(&mut self, command: usize, body: &[u8]) {
        let topic = self.topics.casts[body].topic.clone();
        let queues: Vec<String> = self.bound(&topic, command).1;
        for queue in queues {
            self.add_copy(body, queue);
        }
    }

    /// Queues that are surely bound from the arrival of a command until now, and those that may be
    /// or have been.
    fn bound(&self, topic: &str, command: usize) -> (Vec<String>, Vec<String>) {
        let (arrived, now) = (self.commands[command].arrived.unwrap_or(self.now), self.now);
        let (mut surely, mut maybe) = (Vec::new(), Vec::new());
        for binding in &self.topics.bindings {
            if !means(&binding.pattern, topic) {
                continue;
            }
            let queue = &binding.queue;
            if binding.from.1 < arrived && binding.until.0 > now && !surely.contains(queue) {
                surely.push(queue.clone());
            }
            if binding.from.0 <= now && binding.until.1 >= arrived && !maybe.contains(queue) {
                maybe.push(queue.clone());
            }
        }
        (surely, maybe)
    }

    fn add_copy(&mut self, body: &[u8], queue: String) {
        let now = self.now;
        let cast = &self.topics.casts[body];
        let has = |copy: &usize| self.messages[*copy].home.as_deref() == Some(&queue);
        if cast.copies.iter().any(has) {
            return;
        }
        let command = cast.command;
        let index = self.new_message(body.to_vec());
        let message = &mut self.messages[index];
        message.command = command;
        message.place = queue.clone();
        message.home = Some(queue.clone());
        message.fate = Fate::InFlight;
        message.sent = self.commands[command].arrived.unwrap_or(now);
        message.due = (message.sent, None);
        self.queue(&queue).messages.push(index);
        self.taken_late(&queue, index);
        let cast = self.topics.casts.get_mut(body).expect("it was just there");
        cast.copies.push(index);
    }

    /// The copy that is seen in a queue, if the body was cast.
    pub(super) fn copy_of(&mut self, body: &[u8], place: &str) -> Option<usize> {
        let cast = self.topics.casts.get(body)?;
        let queue = home(place);
        let mut copies = cast.copies.iter().copied();
        let found = copies.find(|copy| self.messages[*copy].home.as_deref() == Some(queue));
        let command = cast.command;
        if found.is_none() && self.terms.shards > 1 && self.commands[command].orphaned.is_some() {
            // Its connection was over before every shard had it, and queues were bound meanwhile.
            let queue = queue.to_string();
            self.add_copy(body, queue.clone());
            let cast = &self.topics.casts[body];
            let mut copies = cast.copies.iter().copied();
            return copies.find(|copy| self.messages[*copy].home.as_deref() == Some(&queue));
        }
        if found.is_none() {
            let text = format!("{cast:?} is in {place}, which is not bound to its topic");
            self.fail("T", text);
        }
        found
    }

    /// The copies of a cast.
    pub(super) fn copies(&self, body: &[u8]) -> &[usize] {
        self.topics.casts.get(body).map_or(&[], |cast| &cast.copies)
    }

    /// Nobody will ever know what became of it.
    pub(super) fn cast_orphaned(&mut self, body: &[u8]) {
        self.lose_messages(self.copies(body).to_vec());
    }

    /// It was refused: no queue took it.
    pub(super) fn cast_refused(&mut self, body: &[u8], code: &str) {
        let now = self.now;
        for index in self.copies(body).to_vec() {
            if matches!(self.messages[index].fate, Fate::Confirmed { .. }) {
                let text = format!("{} was refused: {code}", self.name_of(index));
                self.fail("P", text);
            }
            self.messages[index].fate = Fate::Failed(format!("refused at {now}: {code}"));
        }
        let command = self.topics.casts[body].command;
        self.topics.refused.insert(command);
    }

    /// `OK <receivers> <level> [refused=k]`.
    pub(super) fn cast_done(&mut self, command: usize, body: &[u8], line: &Line) {
        let now = self.now;
        self.checked("T");
        let [receivers, level, ..] = &line.words[..] else {
            return self.fail("F", format!("{line:?} answers a CAST"));
        };
        let (Ok(receivers), Some(level)) = (receivers.parse::<u64>(), Level::of_receipt(level))
        else {
            return self.fail("F", format!("{line:?} answers a CAST"));
        };
        let refused: u64 = line
            .option("refused")
            .and_then(|count| count.parse().ok())
            .unwrap_or(0);
        let topic = self.topics.casts[body].topic.clone();
        let (surely, maybe) = self.bound(&topic, command);
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let links = self.links.iter().filter(|link| {
            let wants = |sub: &LiveSub| sub.may_get(arrived, now) && means(&sub.pattern, &topic);
            link.live.iter().any(wants)
        });
        let most = (maybe.len() + links.count()) as u64;
        if receivers + refused > most || receivers + refused < surely.len() as u64 {
            let text = format!(
                "{line:?} answers a CAST of {topic}: {surely:?} are bound, and perhaps {maybe:?}, \
                 at most {most} want it"
            );
            self.fail("T", text);
        }
        let copies = self.copies(body).to_vec();
        for index in &copies {
            self.learn_bounds(*index, now);
        }
        if level == Level::Disk {
            self.confirmed_on_disk(arrived);
        }
        if refused > 0 || surely.len() < copies.len() {
            // It isn't known whose they are.
            for index in copies {
                if self.messages[index].fate == Fate::InFlight {
                    self.messages[index].fate = Fate::Unknown;
                }
            }
            return;
        }
        let stored = copies.iter().map(|index| self.messages[*index].stored);
        let least = stored.clone().map(|stored| stored.0).min();
        let most = stored.map(|stored| stored.1).min();
        let (least, most) = (least.unwrap_or(Level::None), most.unwrap_or(Level::None));
        if level < least || level > most {
            let names: Vec<String> = copies.iter().map(|copy| self.name_of(*copy)).collect();
            let text = format!(
                "{line:?} answers CAST {command} of {topic}, stored at {least:?} to {most:?}: \
                 {surely:?} are bound, copies {names:?}"
            );
            self.fail("T", text);
        }
        for index in copies {
            let message = &mut self.messages[index];
            let proved = message.stored.0;
            match message.fate {
                Fate::Confirmed { level: seen, .. } if seen >= proved => {}
                _ => {
                    message.fate = Fate::Confirmed {
                        at: now,
                        level: proved,
                    };
                }
            }
            if proved >= message.stored.1 {
                message.visible.get_or_insert(now);
            }
        }
    }

    /// A `BIND` has arrived: what is cast from now on may get there.
    pub(super) fn bind_arrived(&mut self, command: usize, pattern: &str, queue: &str) {
        let now = self.now;
        self.queue(queue);
        // One that arrived before may be run only now.
        let may_end = self.open_commands().into_iter().any(|open| {
            let kind = &self.commands[open].command.kind;
            matches!(kind, Kind::Unbind { pattern: of, queue: from } if of == pattern && from == queue)
        });
        self.topics.bindings.push(Binding {
            queue: queue.to_string(),
            pattern: pattern.to_string(),
            command,
            from: (now, u64::MAX),
            until: (if may_end { now } else { u64::MAX }, u64::MAX),
        });
        for open in self.open_commands() {
            if let Kind::Cast { topic, body } = self.commands[open].command.kind.clone()
                && means(pattern, &topic)
            {
                self.add_copy(&body, queue.to_string());
            }
        }
    }

    /// The answer to a `BIND`.
    pub(super) fn bind_done(&mut self, command: usize, done: bool) {
        let now = self.now;
        for binding in &mut self.topics.bindings {
            if binding.command == command {
                match done {
                    true => binding.from.1 = now,
                    false => binding.until = (0, now),
                }
            }
        }
    }

    /// An `UNBIND` has arrived.
    pub(super) fn unbind_arrived(&mut self, pattern: &str, queue: &str) {
        let now = self.now;
        for binding in self.bindings_of(pattern, queue) {
            binding.until.0 = binding.until.0.min(now);
        }
    }

    /// It is done.
    pub(super) fn unbind_done(&mut self, command: usize, pattern: &str, queue: &str) {
        let (arrived, now) = (self.commands[command].arrived.unwrap_or(self.now), self.now);
        for binding in self.bindings_of(pattern, queue) {
            if binding.from.1 < arrived {
                binding.until.1 = binding.until.1.min(now);
            }
        }
    }

    /// It was bound since before an `UNBIND` arrived, and nobody else unbinds it.
    pub(super) fn surely_bound(&mut self, command: usize, pattern: &str, queue: &str) -> bool {
        let arrived = self.commands[command].arrived.unwrap_or(self.now);
        let others = self.commands.iter().enumerate().any(|(other, sent)| {
            let end = sent.answered.or(sent.orphaned);
            other != command
                && sent.arrived.is_some()
                && end.is_none_or(|end| end >= arrived)
                && matches!(&sent.command.kind, Kind::Unbind { pattern: of, queue: from } if of == pattern && from == queue)
        });
        !others
            && self
                .bindings_of(pattern, queue)
                .any(|binding| binding.from.1 < arrived && binding.until.0 >= arrived)
    }

    fn bindings_of<'a>(
        &'a mut self,
        pattern: &'a str,
        queue: &'a str,
    ) -> impl Iterator<Item = &'a mut Binding> {
        let bindings = self.topics.bindings.iter_mut();
        bindings.filter(move |binding| binding.pattern == pattern && binding.queue == queue)
    }

    /// Without a directory, bindings live no longer than the process.
    pub(super) fn forget_bindings(&mut self) {
        let now = self.now;
        for binding in &mut self.topics.bindings {
            binding.until = (binding.until.0.min(now), binding.until.1.min(now));
        }
    }

    /// A `SUB pattern mode=live` has arrived.
    pub(super) fn live_arrived(&mut self, command: usize, link: usize, pattern: &str, tag: &str) {
        let now = self.now;
        self.links[link].live.push(LiveSub {
            command,
            pattern: pattern.to_string(),
            tag: tag.to_string(),
            from: (now, u64::MAX),
            until: (u64::MAX, u64::MAX),
        });
    }

    /// Its answer.
    pub(super) fn live_begun(&mut self, command: usize, link: usize, done: bool) {
        let now = self.now;
        let live = &mut self.links[link].live;
        match done {
            true => {
                let begun = live.iter_mut().find(|sub| sub.command == command);
                begun.expect("it has arrived").from.1 = now;
            }
            false => live.retain(|sub| sub.command != command),
        }
    }

    /// An `UNSUB` of it has arrived, or (with `over`) is done.
    pub(super) fn live_ends(&mut self, command: usize, link: usize, pattern: &str, over: bool) {
        let now = self.now;
        let live = self.links[link].live.iter_mut();
        let is_meant = |sub: &&mut LiveSub| sub.pattern == pattern && sub.command < command;
        for sub in live.filter(is_meant).filter(|sub| sub.until.1 == u64::MAX) {
            sub.until.0 = sub.until.0.min(now);
            if over {
                sub.until.1 = now;
            }
        }
    }

    /// A line of a live subscription, if it is one: `MSG`, `LAG`, or `END … gone=`.
    pub(super) fn live_line(&mut self, link: usize, line: &Line) -> bool {
        let tag = line.tag.as_deref().unwrap_or_default();
        let live = &self.links[link].live;
        let Some(at) = live.iter().position(|sub| sub.tag == tag) else {
            return false;
        };
        let sub = live[at].clone();
        self.checked("T");
        match line.kind.as_str() {
            "LAG" => {
                let dropped = line.option("dropped").and_then(|count| count.parse().ok());
                match dropped {
                    Some(count @ 1..) if line.words[0] == sub.pattern => {
                        self.links[link].live_count += count;
                    }
                    _ => self.fail("F", format!("connection {link}: {line:?} for {sub:?}")),
                }
            }
            "END" => {
                let now = self.now;
                let sub = &mut self.links[link].live[at];
                sub.until = (sub.until.0.min(now), now);
                if self.links[link].live.iter().all(|sub| sub.until.1 <= now) {
                    self.check_live(link);
                }
            }
            "MSG" => self.live_message(link, at, line),
            // The answer to the `SUB`.
            _ => return false,
        }
        true
    }

    fn live_message(&mut self, link: usize, at: usize, line: &Line) {
        let sub = self.links[link].live[at].clone();
        let body = line.body.clone().unwrap_or_default();
        let Some(cast) = self.topics.casts.get(&body).cloned() else {
            let text = format!("connection {link}: a copy of what nobody has cast: {line:?}");
            return self.fail("T", text);
        };
        let caster = self.commands[cast.command].link;
        let arrived = self.commands[cast.command].arrived;
        let (now, end) = (self.now, self.end_of(cast.command));
        let older = &self.links[link].live[..at];
        let surely = |sub: &LiveSub| {
            let arrived = arrived.unwrap_or(0);
            sub.from.1 < arrived && sub.until.0 > end && means(&sub.pattern, &cast.topic)
        };
        let what = if line.words[..] != [cast.topic.clone(), "-".to_string()] {
            Some("it is not as it was cast")
        } else if !means(&sub.pattern, &cast.topic) {
            Some("the pattern does not mean the topic")
        } else if arrived.is_none() || end < sub.from.0 || sub.from.1 > now {
            Some("it was cast before the subscription began")
        } else if cast.links.contains(&link) {
            Some("the connection has a copy already")
        } else if older.iter().any(surely) {
            Some("an older subscription of the connection means it too")
        } else if self.links[link].last_casts.get(&caster) > Some(&cast.command) {
            Some("it came behind what was cast later")
        } else {
            None
        };
        if let Some(what) = what {
            let text = format!("connection {link}, {sub:?}: {line:?} of {cast:?}: {what}");
            return self.fail("T", text);
        }
        self.links[link].last_casts.insert(caster, cast.command);
        self.links[link].live_count += 1;
        let cast = self.topics.casts.get_mut(&body).expect("it was found");
        cast.links.push(link);
    }

    /// When a command was surely over.
    fn end_of(&self, command: usize) -> u64 {
        let sent = &self.commands[command];
        let orphaned = sent.orphaned.map(|at| at + self.terms.way_us);
        sent.answered.or(orphaned).unwrap_or(self.now)
    }

    /// What a connection received live and what it was told to have missed is all that was cast.
    pub(super) fn check_live(&mut self, link: usize) {
        let live = &self.links[link].live;
        if live.is_empty() {
            return;
        }
        let (mut least, mut most) = (0, 0);
        for cast in self.topics.casts.values() {
            let sent = &self.commands[cast.command];
            let Some(arrived) = sent.arrived else {
                continue;
            };
            let end = self.end_of(cast.command);
            let refused = self.topics.refused.contains(&cast.command);
            let wanted = live.iter().filter(|sub| means(&sub.pattern, &cast.topic));
            let surely = |sub: &LiveSub| sub.from.1 < arrived && sub.until.0 > end;
            if sent.answered.is_some() && !refused && wanted.clone().any(surely) {
                least += 1;
            }
            if wanted.clone().any(|sub| sub.may_get(arrived, end)) {
                most += 1;
            }
        }
        let count = self.links[link].live_count;
        self.checked("T");
        // Without memory, what was missed is told when there is some again.
        if self.terms.scarce {
            least = 0;
        }
        if count < least || count > most {
            let text = format!(
                "connection {link} received and missed {count} together, and {least} to {most} \
                 were cast for it: {:?}",
                self.links[link].live
            );
            self.fail("T", text);
        }
    }
}
