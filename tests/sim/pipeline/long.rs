//! The same work for long: numbers go in all the time, workers consume, transform and produce in
//! transactions, a sink takes the results, and all of them are cut off at random. One minute of simulated
//! time by default; an hour with
//!
//! ```text
//! RINGMQ_PIPELINE_SECONDS=3600 RINGMQ_SEED=1 cargo test --release --test sim for_long -- --nocapture
//! ```

use std::collections::BTreeMap;

use super::{DEAD_EVERY, Step, Worker, World, is_terminal, number_of};
use crate::runs::seeds;
use crate::wire::Line;

/// Numbers in one publish.
const BATCH: u64 = 20;
/// Numbers that are on their way at most.
const BACKLOG_MAX: u64 = 400;
/// How long the last ones may take, microseconds.
const END_US_MAX: u64 = 600_000_000;
/// A crash comes after so long at most, microseconds, or so many disk operations.
const CRASH_US_MAX: u64 = 10_000_000;
const CRASH_OPS_MAX: u64 = 5_000;

/// Somebody with a connection who waits for the answer to one command.
#[derive(Default)]
struct Actor {
    peer: Option<usize>,
    waits: bool,
}

/// A result: whether it was given up, and its id in its queue.
type Seen = BTreeMap<u64, (bool, u64)>;

/// What happened.
#[derive(Debug, Default)]
pub struct Figures {
    /// Numbers that went in, results that came out, and those given up.
    inputs: u64,
    results: u64,
    given_up: u64,
    commits: u64,
    brokers_killed: u64,
    workers_killed: u64,
    /// Results that were handed out again because their ack was lost.
    redelivered: u64,
}

/// Runs one seed for so many simulated seconds.
pub fn run(seed: u64, seconds: u64) -> Result<Figures, String> {
    let mut world = World::new(seed ^ 0x6c6f_6e67);
    world.crash_us_max = CRASH_US_MAX;
    world.crash_ops_max = CRASH_OPS_MAX;
    // Of a worker's acts; there is one in each turn.
    world.worker_kill_per_mille = 200;
    world.crashes = u64::MAX;
    world.start()?;
    let writer = world.connect();
    for queue in [
        "in maxdeliver=0 lease=300ms backoff=5ms..50ms dedup=1m",
        "out",
    ] {
        world.ask(writer, &format!("QSET {queue}\n"));
    }
    for _ in 0..3 {
        let at = world.now;
        world.workers.push(Worker {
            peer: None,
            owed: 0,
            held: Vec::new(),
            at,
            step: Step::Pull,
        });
    }
    world.plan_crash();
    let mut run = Run {
        end: world.now + seconds * 1_000_000,
        world,
        producer: Actor::default(),
        sink: Actor::default(),
        batches: 0,
        seen: Seen::new(),
        figures: Figures::default(),
    };
    run.work()?;
    run.judge()
}

struct Run {
    world: World,
    producer: Actor,
    sink: Actor,
    /// Batches that have gone in.
    batches: u64,
    seen: Seen,
    figures: Figures,
    /// No more go in after this.
    end: u64,
}

impl Run {
    fn work(&mut self) -> Result<(), String> {
        loop {
            if self.world.disk.crashed() || self.world.now >= self.world.crash_at {
                self.crash()?;
            }
            for worker in 0..self.world.workers.len() {
                self.world.act(worker);
            }
            self.produce()?;
            self.collect()?;
            self.world.turn();
            let now = self.world.now;
            let is_over = now >= self.end && !self.producer.waits;
            if is_over && self.seen.len() as u64 == self.batches * BATCH {
                return Ok(());
            }
            if now > self.end + END_US_MAX {
                let (seen, all) = (self.seen.len(), self.batches * BATCH);
                return Err(format!(
                    "of {all} numbers {seen} came out, and no more come"
                ));
            }
        }
    }

    fn crash(&mut self) -> Result<(), String> {
        self.figures.brokers_killed += 1;
        // It may go down again while it starts.
        self.world.crash()?;
        self.producer = Actor::default();
        self.sink = Actor::default();
        Ok(())
    }

    /// What has come for one who waits, if its last line is there; nothing while it can't be asked.
    fn answer(&mut self, of: fn(&mut Run) -> &mut Actor) -> Option<(usize, Vec<Line>)> {
        if self.world.disk.crashed() {
            return None;
        }
        let Some(peer) = of(self).peer else {
            let peer = self.world.connect();
            of(self).peer = Some(peer);
            return Some((peer, Vec::new()));
        };
        let is_there = self.world.peers[peer].lines.iter().any(is_terminal);
        if of(self).waits && !is_there {
            return None;
        }
        of(self).waits = false;
        Some((peer, self.world.heard(peer)))
    }

    /// Publishes the next numbers, or the last ones again if their receipt is missing.
    fn produce(&mut self) -> Result<(), String> {
        let Some((peer, lines)) = self.answer(|run| &mut run.producer) else {
            return Ok(());
        };
        match lines.last() {
            Some(line) if line.kind == "OK" => self.batches += 1,
            Some(line) if line.words.first().is_some_and(|code| code == "DISK") => {}
            Some(line) => return Err(format!("MPUB: {line:?}")),
            None => {}
        }
        let first = self.batches * BATCH;
        let backlog = first - self.seen.len() as u64;
        if self.world.now >= self.end || backlog > BACKLOG_MAX {
            return Ok(());
        }
        let bodies: Vec<String> = (first..first + BATCH)
            .map(|number| self.world.body(number))
            .collect();
        let batch = self.batches;
        let text = format!("MPUB in once=b{batch} *{BATCH}\n{}\n", bodies.join("\n"));
        self.world.type_text(peer, &text);
        self.producer.waits = true;
        Ok(())
    }

    /// Takes results and what was given up; each number once, whatever is handed out again.
    fn collect(&mut self) -> Result<(), String> {
        let Some((peer, lines)) = self.answer(|run| &mut run.sink) else {
            return Ok(());
        };
        let mut handles = Vec::new();
        for line in lines.iter().filter(|line| line.kind == "MSG") {
            let number = number_of(line).ok_or_else(|| format!("no number: {line:?}"))?;
            let handle = &line.words[1];
            let id = handle.split('.').nth(1).and_then(|id| id.parse().ok());
            let id = id.ok_or_else(|| format!("no id: {line:?}"))?;
            let result = (line.words[0] == "in.dead", id);
            match self.seen.insert(number, result) {
                None => {}
                Some(before) if before == result => self.figures.redelivered += 1,
                Some(before) => {
                    return Err(format!(
                        "{number} came out twice: {before:?} and {result:?}"
                    ));
                }
            }
            if result.0 != (number % DEAD_EVERY == 3) {
                return Err(format!("{number} is in {}", line.words[0]));
            }
            handles.push(handle.clone());
        }
        let text = match handles.is_empty() {
            true => "PULL out,in.dead 100 wait=50ms\n".to_owned(),
            false => format!("ACK {}\n", handles.join(" ")),
        };
        self.world.type_text(peer, &text);
        self.sink.waits = true;
        Ok(())
    }

    /// After one more crash nothing is left, and nothing comes that was not seen.
    fn judge(mut self) -> Result<Figures, String> {
        let inputs = self.batches * BATCH;
        self.figures.workers_killed = self.world.workers_killed;
        self.figures.commits = self.world.commits;
        self.world.workers.clear();
        self.world.crashes = 0;
        self.crash()?;
        let peer = self.world.connect();
        for queue in ["in", "out", "in.dead"] {
            loop {
                let lines = self
                    .world
                    .ask(peer, &format!("PULL {queue} 100 ack=auto wait=1s\n"));
                let messages: Vec<&Line> = lines.iter().filter(|line| line.kind == "MSG").collect();
                if messages.is_empty() {
                    break;
                }
                // An ack that got no answer may not have been taken.
                for line in messages {
                    let id = line
                        .option("id")
                        .and_then(|id| id.parse().ok())
                        .unwrap_or(0);
                    let number = number_of(line).ok_or_else(|| format!("no number: {line:?}"))?;
                    let result = (queue == "in.dead", id);
                    if queue == "in" || self.seen.get(&number) != Some(&result) {
                        return Err(format!("{number} is still in {queue}"));
                    }
                    self.figures.redelivered += 1;
                }
            }
        }
        if let Some(missing) = (0..inputs).find(|number| !self.seen.contains_key(number)) {
            return Err(format!("{missing} never came out"));
        }
        let given_up = self.seen.values().filter(|result| result.0).count() as u64;
        self.figures.inputs = inputs;
        self.figures.given_up = given_up;
        self.figures.results = self.seen.len() as u64 - given_up;
        if self.seen.len() as u64 != inputs {
            return Err(format!("{inputs} went in: {:?}", self.figures));
        }
        Ok(self.figures)
    }
}

#[test]
fn what_comes_out_for_long_is_what_went_in() {
    let seconds = std::env::var("RINGMQ_PIPELINE_SECONDS")
        .map_or(60, |text| text.parse::<u64>().expect("a number of seconds"));
    for seed in seeds(2) {
        match run(seed, seconds) {
            Ok(figures) => {
                println!("seed {seed}, {seconds} s: {figures:?}");
                assert!(figures.commits > 0 && figures.workers_killed > 0);
                assert!(figures.brokers_killed > seconds / 20, "{figures:?}");
            }
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
}
