//! Groups on a broker that goes down again and again: every group gets every message that is its own, none
//! that it has settled comes back, and what is sought is there.
//!
//! One client does one thing after the other, so that what each answer means is certain; only what a crash
//! leaves without an answer is not. For each group the test knows which messages must still come, which may,
//! and which never.

use std::collections::{BTreeMap, BTreeSet};

use crate::pipeline::World;
use crate::runs::{seeds, total};
use crate::wire::Line;

/// What is done in a run.
const ACTS: u64 = 120;
/// Groups in use at most; the first one is never deleted.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// One group, as far as what was seen tells.
#[derive(Clone, Default)]
struct Group {
    /// Its messages, that it has not settled.
    must: BTreeSet<u64>,
    /// What it has settled, or what came before it.
    never: BTreeSet<u64>,
    /// What it holds now, by message.
    held: BTreeMap<u64, String>,
}

/// What a run knows.
struct Model {
    world: World,
    client: usize,
    /// Settled messages are kept, so that what a `SEEK` finds is certain.
    retains: bool,
    groups: BTreeMap<&'static str, Group>,
    /// Messages published for certain, with their ids.
    confirmed: BTreeMap<u64, u64>,
    next_number: u64,
    deliveries: u64,
}

/// Runs one seed: how many messages were handed out, or what went wrong.
pub fn run(seed: u64) -> Result<u64, String> {
    let mut world = World::new(seed ^ 0x6772_6f75);
    world.start()?;
    let client = world.connect();
    let retains = world.rng.chance(500);
    let mut model = Model {
        world,
        client,
        retains,
        groups: BTreeMap::new(),
        confirmed: BTreeMap::new(),
        next_number: 1,
        deliveries: 0,
    };
    let retain = if retains { " retain=1000d" } else { "" };
    model.say(&format!("QSET q lease=1d backoff=0 maxdeliver=0{retain}"))?;
    model.begin("a")?;
    model.world.plan_crash();
    for _ in 0..ACTS {
        if model.world.now >= model.world.crash_at {
            model.restart()?;
        }
        match model.world.rng.below(100) {
            0..40 => model.publish()?,
            40..80 => model.consume()?,
            80..90 => {
                let name = *model.world.rng.pick(&NAMES);
                if !model.groups.contains_key(name) {
                    model.begin(name)?;
                }
            }
            90..93 => model.delete()?,
            _ => model.seek()?,
        }
    }
    model.judge()?;
    Ok(model.deliveries)
}

impl Model {
    /// Types a command; its lines, or `None` if the broker went down before the last of them.
    fn say(&mut self, command: &str) -> Result<Option<Vec<Line>>, String> {
        let lines = self.world.ask(self.client, &format!("{command}\n"));
        if std::env::var("RINGMQ_TRACE").is_ok() {
            let shown: Vec<String> = lines
                .iter()
                .map(|line| format!("{} {:?}", line.kind, line.words))
                .collect();
            println!("{} -> {shown:?}", command.replace('\n', ","));
        }
        if lines.last().is_some_and(|line| line.kind != "MSG") {
            return Ok(Some(lines));
        }
        self.restart()?;
        Ok(None)
    }

    /// The broker comes back: what was leased is not, and every group that there was is there.
    fn restart(&mut self) -> Result<(), String> {
        self.world.crash()?;
        // It may go down again at once.
        loop {
            self.client = self.world.connect();
            let lines = self.world.ask(self.client, "QLS\n");
            let Some(line) = lines.last().filter(|line| line.kind == "DATA") else {
                self.world.crash()?;
                continue;
            };
            let body = String::from_utf8(line.body.clone().unwrap_or_default()).expect("text");
            for (name, group) in &mut self.groups {
                group.held.clear();
                if !body.contains(&format!("q/{name} ")) {
                    return Err(format!("group {name} is gone: {body}"));
                }
            }
            return Ok(());
        }
    }

    fn publish(&mut self) -> Result<(), String> {
        let count = self.world.rng.spread(1, 40);
        let numbers = self.next_number..self.next_number + count;
        self.next_number += count;
        let lines: Vec<String> = numbers.clone().map(|number| number.to_string()).collect();
        let options = *self.world.rng.pick(&["", " key=k", " pri=2", " ttl=1000d"]);
        let command = format!("MPUB q{options} *{count}\n{}", lines.join("\n"));
        if let Some(lines) = self.say(&command)? {
            let words = &lines.last().expect("one line is there").words;
            let first: u64 = words[0].parse().map_err(|_| format!("{words:?}"))?;
            for (number, id) in numbers.zip(first..) {
                self.confirmed.insert(number, id);
                for group in self.groups.values_mut() {
                    group.must.insert(number);
                }
            }
        }
        Ok(())
    }

    fn consume(&mut self) -> Result<(), String> {
        let names: Vec<&'static str> = self.groups.keys().copied().collect();
        let name = *self.world.rng.pick(&names);
        let count = self.world.rng.spread(1, 60);
        let Some(lines) = self.say(&format!("PULL q/{name} {count} wait=20ms"))? else {
            return Ok(());
        };
        let group = self.groups.get_mut(name).expect("it was just picked");
        for line in lines.iter().filter(|line| line.kind == "MSG") {
            let number = number_of(line)?;
            if group.never.contains(&number) {
                return Err(format!("{number} came to {name}, which has settled it"));
            }
            if group.held.insert(number, line.words[1].clone()).is_some() {
                return Err(format!("{number} came to {name}, which holds it"));
            }
            self.deliveries += 1;
        }
        let held: Vec<(u64, String)> = group
            .held
            .iter()
            .map(|(number, handle)| (*number, handle.clone()))
            .collect();
        let held: Vec<_> = held
            .into_iter()
            .filter(|_| self.world.rng.chance(600))
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        let handles: Vec<&str> = held.iter().map(|(_, handle)| handle.as_str()).collect();
        let is_ack = self.world.rng.chance(700);
        let verb = if is_ack { "ACK" } else { "NACK" };
        let group = self.groups.get_mut(name).expect("it was just picked");
        for (number, _) in &held {
            group.held.remove(number);
        }
        let before = group.clone();
        if is_ack {
            // Without an answer, nobody knows.
            group
                .must
                .retain(|number| held.iter().all(|(acked, _)| acked != number));
        }
        let told = self.say(&format!("{verb} {}", handles.join(" ")))?;
        let group = self.groups.get_mut(name).expect("it was just picked");
        if let Some(lines) = told {
            let line = lines.last().expect("one line is there");
            if line.words != [held.len().to_string()] {
                return Err(format!("{verb} of what {name} holds: {line:?}"));
            }
            if is_ack {
                group.never.extend(held.iter().map(|(number, _)| *number));
            } else {
                group.must = before.must;
            }
        }
        Ok(())
    }

    /// Where a reader begins, as it is typed, and what it has then.
    fn place(&mut self) -> (String, Group) {
        let ids: Vec<u64> = self.confirmed.values().copied().collect();
        let kind = match ids.is_empty() {
            true => 0,
            false => self.world.rng.below(3),
        };
        let mut group = Group::default();
        let all = self.confirmed.keys().copied();
        match kind {
            0 => {
                group.never.extend(all);
                ("new".to_owned(), group)
            }
            1 => {
                group.must.extend(all);
                ("first".to_owned(), group)
            }
            _ => {
                let from = *self.world.rng.pick(&ids);
                for (number, id) in &self.confirmed {
                    match *id >= from {
                        true => group.must.insert(*number),
                        false => group.never.insert(*number),
                    };
                }
                (from.to_string(), group)
            }
        }
    }

    /// A group begins. What no group has to settle any more is not there, unless it is retained.
    fn begin(&mut self, name: &'static str) -> Result<(), String> {
        let (from, mut group) = self.place();
        if !self.retains {
            let others: Vec<&Group> = self.groups.values().collect();
            group
                .must
                .retain(|number| others.iter().any(|other| other.must.contains(number)));
        }
        let told = self.say(&format!("PULL q/{name} from={from}"))?;
        if told.is_none() {
            // Did it begin? It is known where, if it did.
            let lines = self.world.ask(self.client, &format!("QGET q/{name}\n"));
            match lines.last() {
                Some(line) if line.kind == "DATA" => {}
                Some(line) if line.kind == "ERR" => return Ok(()),
                _ => {
                    // Down once more: whoever it was, the next ones know.
                    self.restart()?;
                    let lines = self.say(&format!("QDEL q/{name}"))?;
                    return match lines {
                        Some(_) => Ok(()),
                        None => self.drop_for_sure(name),
                    };
                }
            }
        }
        for line in told.iter().flatten().filter(|line| line.kind == "MSG") {
            let number = number_of(line)?;
            if group.never.contains(&number) {
                return Err(format!("{number} came to {name}, which began at {from}"));
            }
            group.held.insert(number, line.words[1].clone());
        }
        if told.iter().flatten().any(|line| line.kind == "ERR") {
            return Err(format!("{name} doesn't begin: {told:?}"));
        }
        self.groups.insert(name, group);
        Ok(())
    }

    /// Deletes a group until an answer says that it is not there.
    fn drop_for_sure(&mut self, name: &str) -> Result<(), String> {
        while self.say(&format!("QDEL q/{name}"))?.is_none() {}
        Ok(())
    }

    fn delete(&mut self) -> Result<(), String> {
        let names: Vec<&'static str> = self
            .groups
            .keys()
            .copied()
            .filter(|name| *name != "a")
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let name = *self.world.rng.pick(&names);
        self.groups.remove(name);
        self.drop_for_sure(name)
    }

    fn seek(&mut self) -> Result<(), String> {
        if !self.retains {
            return Ok(());
        }
        let names: Vec<&'static str> = self.groups.keys().copied().collect();
        let name = *self.world.rng.pick(&names);
        let (to, there) = self.place();
        let told = self.say(&format!("SEEK q/{name} to={to}"))?;
        let group = self.groups.get_mut(name).expect("it was just picked");
        match told {
            Some(lines) if lines.last().is_some_and(|line| line.kind == "OK") => *group = there,
            Some(lines) => return Err(format!("SEEK: {lines:?}")),
            // It went there, or it did not.
            None => {
                group.must.retain(|number| there.must.contains(number));
                group.never.retain(|number| there.never.contains(number));
            }
        }
        Ok(())
    }

    /// After a last crash, everything is taken.
    fn judge(&mut self) -> Result<(), String> {
        self.world.crashes = 0;
        self.restart()?;
        for (name, group) in &self.groups {
            let mut seen = BTreeSet::new();
            loop {
                let command = format!("PULL q/{name} 500 wait=1s ack=auto\n");
                let lines = self.world.ask(self.client, &command);
                let before = seen.len();
                for line in lines.iter().filter(|line| line.kind == "MSG") {
                    let number = number_of(line)?;
                    if group.never.contains(&number) || !seen.insert(number) {
                        return Err(format!(
                            "{number} came to {name} at the end, once too often"
                        ));
                    }
                }
                if seen.len() == before {
                    break;
                }
            }
            if let Some(missing) = group.must.difference(&seen).next() {
                return Err(format!("{missing} never came to {name}"));
            }
        }
        if self.retains {
            return Ok(());
        }
        let lines = self.world.ask(self.client, "QGET q\n");
        let body = lines.last().and_then(|line| line.body.clone());
        let text = String::from_utf8(body.unwrap_or_default()).expect("text");
        match text.contains("\nstored=0\n") {
            true => Ok(()),
            false => Err(format!("all is settled, and yet: {text}")),
        }
    }
}

fn number_of(line: &Line) -> Result<u64, String> {
    let body = line.body.as_deref().unwrap_or_default();
    let text = std::str::from_utf8(body).map_err(|_| format!("a strange body: {line:?}"))?;
    text.parse()
        .map_err(|_| format!("a strange body: {line:?}"))
}

#[test]
fn groups_miss_nothing_and_repeat_nothing() {
    let seeds = seeds(200);
    let deliveries = total(seeds.clone(), run);
    let least = (seeds.end - seeds.start) * 10;
    assert!(deliveries > least, "only {deliveries} messages");
}
