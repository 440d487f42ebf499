//! What the answers to publishes and to `SYNC` prove: receipts, ids, duplicates and limits.

use super::Oracle;
use super::record::Fate;
use crate::command::{Level, Publish};
use crate::wire::Line;

impl Oracle {
    /// The receipt of a publish: P, D, the levels, and O's order of ids.
    pub(super) fn published(
        &mut self,
        link: usize,
        command: usize,
        publish: &Publish,
        line: &Line,
    ) {
        let now = self.now;
        let count = publish.bodies.len() as u64;
        let batch = matches!(
            publish.form,
            crate::command::Form::Lines | crate::command::Form::Blocks
        );
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        let (id, told, level) = match (&words[..], batch) {
            ([id, level, ..], false) => (id.parse::<u64>(), 1, Level::of_receipt(level)),
            ([id, told, level, ..], true) => (
                id.parse::<u64>(),
                told.parse().unwrap_or(0),
                Level::of_receipt(level),
            ),
            _ => {
                self.fail("F", format!("{line:?} answers a publish"));
                return;
            }
        };
        let (Ok(id), Some(level)) = (id, level) else {
            self.fail("F", format!("{line:?} answers a publish"));
            return;
        };
        let duplicate = line.option("dup") == Some("1");
        match duplicate {
            true => self.void_claims(command),
            false => self.drop_old(command, publish),
        }
        self.check_dedup(command, publish, duplicate, id, level);
        if duplicate {
            for (index, _) in &publish.bodies {
                self.messages[*index].fate = Fate::Failed("it is a duplicate".to_string());
            }
            return;
        }
        if told != count {
            self.fail("P", format!("{count} messages were sent: {line:?}"));
        }
        for (offset, (index, _)) in publish.bodies.iter().enumerate() {
            self.receipt(
                *index,
                id + offset as u64,
                level,
                publish.sync,
                &publish.queue,
            );
        }
        let arrived = self.commands[command].arrived.unwrap_or(now);
        if level == Level::Disk {
            self.confirmed_on_disk(arrived);
        }
        if self.commands[command].command.tag.is_none() {
            let last = (self.boot, id + count - 1);
            let before = self.links[link].ids.insert(publish.queue.clone(), last);
            let deleted = self.queue(&publish.queue).deleted.is_some();
            if before.is_some_and(|(boot, before)| boot == self.boot && before >= id && !deleted) {
                self.fail(
                    "O",
                    format!("{line:?} after id {before:?} on the same connection"),
                );
            }
        }
        self.check_length(command, publish);
    }

    fn receipt(&mut self, index: usize, id: u64, level: Level, sync: Option<Level>, queue: &str) {
        let now = self.now;
        self.learn_bounds(index, now);
        let message = &self.messages[index];
        let (least, most) = message.stored;
        self.checked("P");
        if level > most || (self.terms.memory && level != Level::None) {
            let text = format!(
                "{} was confirmed at {level:?}, its queue is {most:?}",
                self.name_of(index)
            );
            self.fail("P", text);
        } else if level < sync.unwrap_or(least).min(least) {
            let text = format!(
                "{} asked for {sync:?} of {least:?}, got {level:?}",
                self.name_of(index)
            );
            self.fail("P", text);
        }
        let message = &mut self.messages[index];
        // A consumer may have seen it first; what was proved then stays proved.
        let (at, proved) = match message.fate {
            Fate::Confirmed { at, level: seen } if seen >= level => (at, seen),
            _ => (now, level),
        };
        message.fate = Fate::Confirmed { at, level: proved };
        if level >= most {
            message.visible.get_or_insert(now);
        }
        message.first_id = Some(id);
        let boot = self.boot;
        self.queue(queue).there.get_or_insert((boot, now)).0 = boot;
        let message = &mut self.messages[index];
        let (sent, seen) = (message.sent, message.id);
        // It was moved away and back, or its queue made anew, before its receipt was read.
        let home = self.queue(queue);
        let anew = home.deleted.is_some_and(|(_, end)| end >= sent);
        let filled = home.moved_into;
        let back = seen.is_some_and(|known| known != id && (anew || (filled && known > id)));
        let message = &mut self.messages[index];
        message.moved |= back;
        if message.moved {
            return;
        }
        match message.id {
            Some(known) if known != id => {
                let text = format!("{} has id {id} in its receipt", self.name_of(index));
                self.fail("P", text);
            }
            _ => message.id = Some(id),
        }
        let members = self.queue(queue).messages.clone();
        let deleted = self.queue(queue).deleted.is_some();
        let twin = members.iter().find(|other| {
            let message = &self.messages[**other];
            **other != index
                && message.id == Some(id)
                && message.place == queue
                && !message.moved
                && message.surely_exists()
                && message.visible.is_some()
                && !message.possibly_claimed(now)
        });
        if let Some(twin) = twin.filter(|_| !deleted) {
            let text = format!(
                "{} and {} have one id",
                self.name_of(index),
                self.name_of(*twin)
            );
            self.fail("P", text);
        }
    }

    /// A queue that has a limit takes nothing beyond it.
    pub(super) fn check_length(&mut self, command: usize, publish: &Publish) {
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let (_, maxlen) = self.queue(&publish.queue).track.maxlen(arrived, now);
        if maxlen == u64::MAX || self.queue(&publish.queue).moved_into {
            return;
        }
        self.checked("P");
        let there = self
            .queue(&publish.queue)
            .messages
            .clone()
            .into_iter()
            .filter(|index| {
                let message = &self.messages[*index];
                let early = matches!(message.fate, Fate::Confirmed { at, .. } if at < arrived);
                early
                    && message.surely_exists()
                    && !message.moved
                    && !self.possibly_gone(*index, now)
            });
        let there = there.count() as u64;
        if there + publish.bodies.len() as u64 > maxlen {
            let text = format!(
                "{} took {} messages beside {there}, maxlen is {maxlen}",
                publish.queue,
                publish.bodies.len()
            );
            self.fail("P", text);
        }
    }

    /// D: within the window a second publish with the same id is a duplicate of the first.
    fn check_dedup(
        &mut self,
        command: usize,
        publish: &Publish,
        duplicate: bool,
        id: u64,
        level: Level,
    ) {
        let now = self.now;
        let Some(once) = &publish.once else {
            if duplicate {
                self.fail(
                    "D",
                    format!("command {command} has no once= and is a duplicate"),
                );
            }
            return;
        };
        self.checked("D");
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let attempts = self
            .queue(&publish.queue)
            .once
            .get(once)
            .cloned()
            .unwrap_or_default();
        let others: Vec<usize> = attempts
            .into_iter()
            .filter(|other| *other != command)
            .collect();
        let first_of = |oracle: &Oracle, other: usize| {
            oracle
                .publish_of(other)
                .map(|publish| publish.bodies[0].0)
                .expect("a publish")
        };
        if duplicate {
            // Whatever may be there with this id may be the original. One that was confirmed by
            // being seen may not have an id yet either, if it was another of its batch.
            let mut originals = others.iter().filter(|other| {
                let message = &self.messages[first_of(self, **other)];
                !matches!(message.fate, Fate::Failed(_) | Fate::Unsent)
                    && message.first_id.is_none_or(|first| first == id)
            });
            let first = originals.next().copied();
            let alone = originals.next().is_none();
            let Some(original) = first else {
                let text =
                    format!("command {command} is a duplicate of id {id}, which has no original");
                self.fail("D", text);
                return;
            };
            let fate = &self.messages[first_of(self, original)].fate;
            if alone && matches!(fate, Fate::Unknown | Fate::InFlight) {
                self.proved_by_duplicate(original, id, level);
            }
            return;
        }
        let (window, _) = self.queue(&publish.queue).track.dedup(0, now);
        let deleted = self.queue(&publish.queue).deleted;
        for other in others {
            let before = self.commands[other].arrived.unwrap_or(now);
            let closed = self.commands[other]
                .answered
                .or(self.commands[other].orphaned);
            let over = closed.is_none_or(|closed| closed >= arrived);
            // The window is counted from the original's publish; over it, anything is right.
            if over || now - before >= window || deleted.is_some_and(|deleted| deleted.1 >= before)
            {
                continue;
            }
            let index = first_of(self, other);
            let message = &self.messages[index];
            match message.fate {
                Fate::Confirmed { level, .. } if message.weak.is_none() && level > Level::None => {
                    let text = format!(
                        "command {command} was taken as new with once={once}, {} µs after {}",
                        now - before,
                        self.name_of(index)
                    );
                    self.fail("D", text);
                }
                Fate::Unknown if message.stored.0 > Level::None => {
                    let bodies = self.publish_of(other).map(|publish| publish.bodies.clone());
                    for (index, _) in bodies.unwrap_or_default() {
                        self.messages[index].fate =
                            Fate::Failed("its once= was free later".to_string());
                    }
                }
                _ => {}
            }
        }
    }

    /// A duplicate isn't answered before its original is as durable as the answer says.
    fn proved_by_duplicate(&mut self, command: usize, id: u64, level: Level) {
        let now = self.now;
        let bodies = self
            .publish_of(command)
            .map(|publish| publish.bodies.clone());
        for (offset, (index, _)) in bodies.unwrap_or_default().into_iter().enumerate() {
            if self.messages[index].fate == Fate::InFlight {
                self.learn_bounds(index, now);
            }
            let message = &mut self.messages[index];
            message.fate = Fate::Confirmed { at: now, level };
            message.first_id = Some(id + offset as u64);
            if !message.moved {
                message.id = Some(id + offset as u64);
            }
            if level >= message.stored.1 {
                message.visible.get_or_insert(now);
            }
        }
    }

    /// `SYNC`: one wait for all quiet publishes since the last.
    pub(super) fn synced(&mut self, link: usize, line: &Line) {
        let now = self.now;
        let count = |key| line.option(key).and_then(|value| value.parse::<u64>().ok());
        let level = line.words.last().and_then(|word| Level::of_receipt(word));
        let (Some(accepted), Some(rejected), Some(level)) =
            (count("accepted"), count("rejected"), level)
        else {
            self.fail("F", format!("{line:?} answers SYNC"));
            return;
        };
        let commands = std::mem::take(&mut self.links[link].unsynced);
        let all = commands.len() as u64;
        let bodies: Vec<usize> = commands
            .iter()
            .filter_map(|command| self.publish_of(*command))
            .flat_map(|publish| publish.bodies.iter().map(|body| body.0))
            .collect();
        let total = accepted + rejected;
        if total != all && total != bodies.len() as u64 {
            self.fail("F", format!("{line:?} after {all} quiet publishes"));
        }
        let refused = std::mem::take(&mut self.links[link].refused);
        if (rejected == 0) != (refused == 0) {
            self.fail(
                "F",
                format!("{line:?} after {refused} errors of quiet publishes"),
            );
        }
        for index in bodies {
            if self.messages[index].fate == Fate::InFlight {
                self.learn_bounds(index, now);
                let message = &mut self.messages[index];
                message.fate = Fate::Confirmed { at: now, level };
                if level >= message.stored.1 {
                    message.visible.get_or_insert(now);
                }
            }
        }
        // Of nothing, nothing is said.
        if level == Level::Disk && accepted > 0 {
            self.confirmed_on_disk(self.links[link].idle_since);
        }
    }

    /// The queue may have been at a limit.
    pub(super) fn may_be_full(&mut self, command: usize, publish: &Publish) -> bool {
        let now = self.now;
        let arrived = self.commands[command].arrived.unwrap_or(now);
        let track = &self.queue(&publish.queue).track;
        let (maxlen, _) = track.maxlen(arrived, now);
        let (maxbytes, _) = track.maxbytes(arrived, now);
        let own: Vec<usize> = publish.bodies.iter().map(|body| body.0).collect();
        let moved = self.maybe_moved_to(&publish.queue);
        let here = self.queue(&publish.queue).messages.clone();
        let others = here.into_iter().chain(moved).filter(|index| {
            let message = &self.messages[*index];
            !own.contains(index) && message.possibly_exists() && !message.surely_claimed(arrived)
        });
        let others: Vec<usize> = others.collect();
        let count = (others.len() + own.len()) as u64;
        let bytes = |list: &[usize]| -> u64 {
            list.iter()
                .map(|index| self.messages[*index].body.len() as u64)
                .sum()
        };
        count > maxlen || bytes(&others) + bytes(&own) > maxbytes
    }
}
