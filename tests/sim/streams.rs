//! Streams of RESP on a broker that goes down again and again: consumers of groups read several at once, and what
//! each read was given is its consumer's, nothing twice and nothing lost.
//!
//! One thing happens after the other, so that what each answer must hold is known; only what a crash leaves
//! without an answer is not.

use std::collections::{BTreeMap, BTreeSet};

use crate::dialect::resp::Value;
use crate::pipeline::World;
use crate::runs::{seeds, total};

/// What is done in a run.
const ACTS: u64 = 100;
const STREAMS: [&str; 4] = ["a", "b", "c", "d"];
const CONSUMERS: [&str; 3] = ["x", "y", "z"];
/// Reading connections; another one writes.
const READERS: usize = 2;

/// One stream and its group, as far as what was seen tells; entries by the number in their field.
#[derive(Default)]
struct Stream {
    /// To be read, certainly.
    unread: BTreeSet<u64>,
    /// Perhaps there, perhaps to be read: nobody was told.
    unsure: BTreeSet<u64>,
    /// Read and not acked: its id, and whose it is.
    pending: BTreeMap<u64, (String, &'static str)>,
    /// Acked.
    acked: BTreeSet<u64>,
}

/// What a run knows.
struct Model {
    world: World,
    writer: usize,
    readers: Vec<usize>,
    streams: BTreeMap<&'static str, Stream>,
    next_number: u64,
    read: u64,
}

/// What a read asks for: streams, and for each whether what is new is wanted.
struct Asked {
    consumer: &'static str,
    count: u64,
    streams: Vec<(&'static str, bool)>,
}

impl Asked {
    fn words(&self, block: Option<&str>) -> Vec<String> {
        let mut words: Vec<String> = ["XREADGROUP", "GROUP", "g", self.consumer, "COUNT"]
            .map(str::to_owned)
            .into();
        words.push(self.count.to_string());
        if let Some(block) = block {
            words.extend(["BLOCK".to_owned(), block.to_owned()]);
        }
        words.push("STREAMS".to_owned());
        words.extend(self.streams.iter().map(|(name, _)| (*name).to_owned()));
        let ids = self.streams.iter().map(|(_, is_new)| match is_new {
            true => ">".to_owned(),
            false => "0".to_owned(),
        });
        words.extend(ids);
        words
    }
}

/// Runs one seed: how many entries were read, or what went wrong.
pub fn run(seed: u64) -> Result<u64, String> {
    let mut world = World::new(seed ^ 0x7374_7265);
    world.start()?;
    let mut model = Model {
        world,
        writer: 0,
        readers: Vec::new(),
        streams: STREAMS.map(|name| (name, Stream::default())).into(),
        next_number: 1,
        read: 0,
    };
    model.connect();
    for name in STREAMS {
        let words = ["XGROUP", "CREATE", name, "g", "0", "MKSTREAM"];
        let made = model.ask(model.writer, &words)?;
        if made != Some(Value::Simple("OK".to_owned())) {
            return Err(format!("no group: {made:?}"));
        }
    }
    model.world.plan_crash();
    for _ in 0..ACTS {
        if model.world.now >= model.world.crash_at {
            model.restart()?;
        }
        match model.world.rng.below(100) {
            0..30 => model.add()?,
            30..65 => model.read_now()?,
            65..78 => model.read_later()?,
            78..90 => model.ack()?,
            90..96 => model.look()?,
            _ => model.drop_consumer()?,
        }
    }
    model.judge()?;
    Ok(model.read)
}

impl Model {
    fn connect(&mut self) {
        self.writer = self.world.connect_raw();
        self.readers = (0..READERS).map(|_| self.world.connect_raw()).collect();
        for reader in self.readers.clone() {
            if self.world.rng.chance(500) {
                self.world.say_resp(reader, &["HELLO", "3"]);
                // What it says is not looked at.
                let _ = self.world.reply_resp(reader);
            }
        }
    }

    /// Says a command; its reply, or nothing if the broker went down before it.
    fn ask(&mut self, peer: usize, words: &[&str]) -> Result<Option<Value>, String> {
        self.world.say_resp(peer, words);
        let value = self.world.reply_resp(peer)?;
        if std::env::var("RINGMQ_TRACE").is_ok() {
            let shown = value.as_ref().map(Value::to_string);
            println!("{peer}: {} -> {shown:?}", words.join(" "));
        }
        if value.is_none() {
            self.restart()?;
        }
        Ok(value)
    }

    /// The broker comes back: what consumers had pending is to be read again.
    fn restart(&mut self) -> Result<(), String> {
        self.world.crash()?;
        self.connect();
        for stream in self.streams.values_mut() {
            let pending = std::mem::take(&mut stream.pending);
            stream.unread.extend(pending.into_keys());
        }
        Ok(())
    }

    fn reader(&mut self) -> usize {
        *self.world.rng.pick(&self.readers)
    }

    fn add(&mut self) -> Result<(), String> {
        let name = *self.world.rng.pick(&STREAMS);
        for _ in 0..self.world.rng.spread(1, 12) {
            let filler = "x".repeat(*self.world.rng.pick(&[0, 10, 600]));
            let number = self.next_number;
            self.next_number += 1;
            let words = [
                "XADD",
                name,
                "*",
                "n",
                &number.to_string(),
                "filler",
                &filler,
            ];
            let told = self.ask(self.writer, &words)?;
            let stream = self.streams.get_mut(name).expect("it is one of them");
            match told {
                Some(Value::Bulk(_)) => _ = stream.unread.insert(number),
                Some(other) => return Err(format!("XADD: {other:?}")),
                None => {
                    stream.unsure.insert(number);
                    break;
                }
            }
        }
        Ok(())
    }

    /// A read of some streams.
    fn asked(&mut self, only_new: bool) -> Asked {
        let mut streams: Vec<(&'static str, bool)> = Vec::new();
        for _ in 0..self.world.rng.range(1, 4) {
            let name = *self.world.rng.pick(&STREAMS);
            let is_new = only_new || self.world.rng.chance(850);
            if streams.iter().all(|(other, _)| *other != name) {
                streams.push((name, is_new));
            }
        }
        let consumer = *self.world.rng.pick(&CONSUMERS);
        Asked {
            consumer,
            count: self.world.rng.spread(1, 20),
            streams,
        }
    }

    /// Reads what is there, by itself or inside of a transaction, where nothing waits.
    fn read_now(&mut self) -> Result<(), String> {
        let asked = self.asked(false);
        let reader = self.reader();
        let in_transaction = self.world.rng.chance(250);
        let block = in_transaction.then_some("0");
        let words = asked.words(block);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if !in_transaction {
            let Some(reply) = self.ask(reader, &words)? else {
                return Ok(());
            };
            return self.judge_read(&asked, &reply, true);
        }
        self.world.say_resp(reader, &["MULTI"]);
        self.world.say_resp(reader, &words);
        self.world.say_resp(reader, &["PING"]);
        self.world.say_resp(reader, &["EXEC"]);
        for _ in 0..3 {
            if self.world.reply_resp(reader)?.is_none() {
                return self.restart();
            }
        }
        match self.world.reply_resp(reader)? {
            None => self.restart(),
            Some(Value::Array(parts)) if parts.len() == 2 => {
                self.judge_read(&asked, &parts[0], true)
            }
            other => Err(format!("EXEC: {other:?}")),
        }
    }

    /// Reads, and waits until there is something: another one writes meanwhile, or it goes before that.
    fn read_later(&mut self) -> Result<(), String> {
        let asked = self.asked(true);
        let reader = self.reader();
        let is_long = self.world.rng.chance(500);
        let words = asked.words(Some(if is_long { "0" } else { "40" }));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.world.say_resp(reader, &words);
        for _ in 0..self.world.rng.below(30) {
            self.world.turn();
        }
        let early = self.world.replied_resp(reader)?;
        if let Some(reply) = early {
            return self.judge_read(&asked, &reply, true);
        }
        if self.world.disk.crashed() {
            return self.restart();
        }
        // Otherwise it may be given something just now.
        let mut waits = self.has_nothing(&asked);
        if waits && self.world.rng.chance(300) {
            // Its consumer goes, and comes again with what it is given.
            let name = asked.streams[0].0;
            let words = ["XGROUP", "DELCONSUMER", name, "g", asked.consumer];
            match self.ask(self.writer, &words)? {
                None => return Ok(()),
                Some(_) => self.forget_consumer(name, asked.consumer),
            }
            waits = self.has_nothing(&asked);
        }
        let name = match waits {
            true => *self.world.rng.pick(&STREAMS),
            false => self.world.rng.pick(&asked.streams).0,
        };
        let number = self.next_number;
        self.next_number += 1;
        self.streams
            .get_mut(name)
            .expect("it is one of them")
            .unsure
            .insert(number);
        let told = self.ask(self.writer, &["XADD", name, "*", "n", &number.to_string()])?;
        if told.is_none() {
            return Ok(());
        }
        let stream = self.streams.get_mut(name).expect("it is one of them");
        stream.unsure.remove(&number);
        stream.unread.insert(number);
        if is_long && asked.streams.iter().all(|(other, _)| *other != name) {
            // Nobody writes what it waits for.
            if let Some(reply) = self.world.replied_resp(reader)? {
                return Err(format!("it was to wait: {reply}"));
            }
            self.world.reset(reader);
            self.readers.retain(|other| *other != reader);
            let again = self.world.connect_raw();
            self.readers.push(again);
            return Ok(());
        }
        match self.world.reply_resp(reader)? {
            None => self.restart(),
            Some(reply) => self.judge_read(&asked, &reply, false),
        }
    }

    /// Is there surely nothing to be read?
    fn has_nothing(&self, asked: &Asked) -> bool {
        asked.streams.iter().all(|(name, _)| {
            let stream = &self.streams[name];
            stream.unread.is_empty() && stream.unsure.is_empty()
        })
    }

    /// Entries with their ids.
    fn entries(value: &Value) -> Result<Vec<(String, u64)>, String> {
        let bad = || format!("no entries: {value:?}");
        let Value::Array(values) = value else {
            return Err(bad());
        };
        let entry = |value: &Value| {
            let Value::Array(parts) = value else {
                return None;
            };
            let [Value::Bulk(id), Value::Array(fields)] = &parts[..] else {
                return None;
            };
            let [Value::Bulk(name), Value::Bulk(number), ..] = &fields[..] else {
                return None;
            };
            let number = std::str::from_utf8(number).ok()?.parse().ok()?;
            (name == b"n").then(|| (String::from_utf8_lossy(id).into_owned(), number))
        };
        let entries: Option<Vec<_>> = values.iter().map(entry).collect();
        entries.ok_or_else(bad)
    }

    /// What a read was answered; `is_whole` if it must hold every stream that has something.
    fn judge_read(&mut self, asked: &Asked, reply: &Value, is_whole: bool) -> Result<(), String> {
        let fail = |what: &str| {
            Err(format!(
                "{what}: {} -> {reply}",
                asked.words(None).join(" ")
            ))
        };
        let mut told: Vec<(Vec<u8>, &Value)> = Vec::new();
        match reply {
            Value::Nil => {}
            // A map, or pairs.
            Value::Array(parts) if matches!(parts.first(), Some(Value::Bulk(_))) => {
                for pair in parts.chunks(2) {
                    let [Value::Bulk(name), entries] = pair else {
                        return fail("a strange map");
                    };
                    told.push((name.clone(), entries));
                }
            }
            Value::Array(parts) if !parts.is_empty() => {
                for part in parts {
                    let Value::Array(pair) = part else {
                        return fail("a strange stream");
                    };
                    let [Value::Bulk(name), entries] = &pair[..] else {
                        return fail("a strange stream");
                    };
                    told.push((name.clone(), entries));
                }
            }
            _ => return fail("a strange answer"),
        }
        let mut told = told.into_iter().peekable();
        for (name, is_new) in &asked.streams {
            let own = told.next_if(|(other, _)| other == name.as_bytes());
            let entries = match own {
                Some((_, entries)) => Model::entries(entries)?,
                None => Vec::new(),
            };
            let stream = self.streams.get_mut(name).expect("it is one of them");
            if entries.len() as u64 > asked.count {
                return fail("more than were asked for");
            }
            if entries.windows(2).any(|pair| pair[0].1 >= pair[1].1) {
                return fail("not in order");
            }
            if !is_new {
                let own = stream.pending.iter();
                let own = own.filter(|(_, (_, consumer))| *consumer == asked.consumer);
                let want: Vec<u64> = own.map(|(number, _)| *number).collect();
                let want = &want[..want.len().min(asked.count as usize)];
                let found: Vec<u64> = entries.iter().map(|(_, number)| *number).collect();
                if found != want {
                    return fail(&format!("{name} has {want:?} pending"));
                }
                continue;
            }
            if is_whole && entries.is_empty() && !stream.unread.is_empty() {
                return fail(&format!("{name} has {:?}", stream.unread));
            }
            for (id, number) in entries {
                if stream.acked.contains(&number) || stream.pending.contains_key(&number) {
                    return fail(&format!("{number} of {name} came again"));
                }
                if !stream.unread.remove(&number) && !stream.unsure.remove(&number) {
                    return fail(&format!("{number} of {name} was never added"));
                }
                stream.pending.insert(number, (id, asked.consumer));
                self.read += 1;
            }
        }
        match told.next() {
            None => Ok(()),
            Some(_) => fail("streams that were not asked for, or not in this order"),
        }
    }

    fn ack(&mut self) -> Result<(), String> {
        let name = *self.world.rng.pick(&STREAMS);
        let rng = &mut self.world.rng;
        let stream = self.streams.get_mut(name).expect("it is one of them");
        let pending = stream.pending.iter();
        let mut picked: Vec<(u64, String)> = pending
            .map(|(number, (id, _))| (*number, id.clone()))
            .collect();
        picked.retain(|_| rng.chance(500));
        if picked.is_empty() {
            return Ok(());
        }
        let mut words = vec!["XACK", name, "g"];
        words.extend(picked.iter().map(|(_, id)| id.as_str()));
        for (number, _) in &picked {
            stream.pending.remove(number);
        }
        let told = self.ask(self.writer, &words)?;
        let stream = self.streams.get_mut(name).expect("it is one of them");
        let numbers = picked.iter().map(|(number, _)| *number);
        match told {
            Some(Value::Integer(count)) if count == picked.len() as u64 => {
                stream.acked.extend(numbers);
                Ok(())
            }
            Some(other) => Err(format!("XACK of {picked:?}: {other:?}")),
            None => {
                stream.unsure.extend(numbers);
                Ok(())
            }
        }
    }

    /// What each consumer has pending is what it was sent.
    fn look(&mut self) -> Result<(), String> {
        for name in STREAMS {
            let Some(told) = self.ask(self.writer, &["XPENDING", name, "g"])? else {
                return Ok(());
            };
            let mut want: BTreeMap<&str, u64> = BTreeMap::new();
            for (_, consumer) in self.streams[name].pending.values() {
                *want.entry(consumer).or_default() += 1;
            }
            let Value::Array(parts) = &told else {
                return Err(format!("XPENDING: {told:?}"));
            };
            let mut found: BTreeMap<&str, u64> = BTreeMap::new();
            if let Some(Value::Array(consumers)) = parts.last() {
                for consumer in consumers {
                    let Value::Array(pair) = consumer else {
                        return Err(format!("XPENDING: {told:?}"));
                    };
                    let [Value::Bulk(who), Value::Bulk(count)] = &pair[..] else {
                        return Err(format!("XPENDING: {told:?}"));
                    };
                    let who = std::str::from_utf8(who).unwrap_or("?");
                    let count = String::from_utf8_lossy(count).parse().unwrap_or(0);
                    found.insert(who, count);
                }
            }
            if found != want {
                return Err(format!(
                    "{name}: {found:?} are pending, and {want:?} were sent"
                ));
            }
        }
        Ok(())
    }

    fn forget_consumer(&mut self, name: &str, consumer: &str) {
        let stream = self.streams.get_mut(name).expect("it is one of them");
        let pending = std::mem::take(&mut stream.pending);
        for (number, (id, whose)) in pending {
            match whose == consumer {
                true => _ = stream.unread.insert(number),
                false => _ = stream.pending.insert(number, (id, whose)),
            }
        }
    }

    fn drop_consumer(&mut self) -> Result<(), String> {
        let name = *self.world.rng.pick(&STREAMS);
        let consumer = *self.world.rng.pick(&CONSUMERS);
        let words = ["XGROUP", "DELCONSUMER", name, "g", consumer];
        if self.ask(self.writer, &words)?.is_some() {
            self.forget_consumer(name, consumer);
        }
        Ok(())
    }

    /// After a last crash, everything is read.
    fn judge(&mut self) -> Result<(), String> {
        self.world.crashes = 0;
        self.restart()?;
        let asked = Asked {
            consumer: "last",
            count: 500,
            streams: STREAMS.map(|name| (name, true)).into(),
        };
        let words = asked.words(None);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        loop {
            let reader = self.reader();
            let reply = self.ask(reader, &words)?.ok_or("it went down")?;
            if reply == Value::Nil {
                break;
            }
            self.judge_read(&asked, &reply, true)?;
        }
        for (name, stream) in &self.streams {
            if let Some(number) = stream.unread.first() {
                return Err(format!("{number} of {name} never came"));
            }
        }
        self.look()
    }
}

#[test]
fn streams_read_together_lose_nothing_and_repeat_nothing() {
    let seeds = seeds(200);
    let read = total(seeds.clone(), run);
    let least = (seeds.end - seeds.start) * 10;
    assert!(read > least, "only {read} entries");
}
