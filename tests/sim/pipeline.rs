//! Workers that consume, transform and produce in transactions, on a broker that goes down again and
//! again: what comes out must be what went in, each exactly once.
//!
//! A worker takes messages of `in`, and for each batch says `BEGIN`, publishes a result to `out` for
//! some, gives others back or up with `NACK`, acks the rest, and says `COMMIT`. It may stop at any point
//! and come back as another. Inputs carry a number; an input that is given up must be in `in.dead`, any
//! other in `out`, at the end, once. With several shards these queues lie on different ones, and the inputs are
//! moved to `in` from a queue of yet another, a few at a time.

mod long;

use std::io::IoSlice;

use ringmq::broker::id::Level;
use ringmq::config::Config;
use ringmq::shard::{Now, shard_of};

use crate::broker::{Broker, Key, Start};
use crate::dialect::resp::{Value, parse};
use crate::disk::{Crash, SimDisk};
use crate::rng::Rng;
use crate::runs::{seeds, total};
use crate::storage::{Delays, JobsHandle};
use crate::wire::{Line, LineReader};

/// Messages that go in.
const INPUTS: u64 = 60;
/// The clock at the begin, microseconds since the unix epoch.
const EPOCH_US: u64 = 1_700_000_000_000_000;
/// It is all done after so long, or something hangs, microseconds.
const LENGTH_MAX_US: u64 = 900_000_000;

/// Numbers that are given up; those of one remainder are given back once before.
const DEAD_EVERY: u64 = 7;
const BACK_EVERY: u64 = 5;

/// One connection, and what was read of it.
struct Peer {
    key: Key,
    reader: LineReader,
    lines: Vec<Line>,
    /// What one that does not speak the line protocol was sent and has not read.
    octets: Option<Vec<u8>>,
}

/// A message that a worker holds.
struct Held {
    handle: String,
    number: u64,
    is_first_try: bool,
}

/// What a worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Pull,
    Work,
    Commit,
}

struct Worker {
    /// Its connection, by its place.
    peer: Option<usize>,
    /// Terminal lines that it waits for.
    owed: usize,
    held: Vec<Held>,
    /// When it goes on.
    at: u64,
    step: Step,
}

/// What the queues are called.
struct Names {
    /// Where inputs are before they are moved; with one shard they are not.
    before: String,
    out: String,
    dead: String,
}

impl Names {
    /// On different shards, if there are several.
    fn new(shards: u32) -> Names {
        let own = |name: &str| shard_of(name.as_bytes(), shards);
        let beside = |stem: &str, taken: &[u32]| {
            let names = (0..).map(|number| format!("{stem}{number}"));
            let mut free = names.filter(|name| !taken.contains(&own(name)));
            free.next().expect("there is no end of names")
        };
        if shards == 1 {
            return Names {
                before: "in".to_owned(),
                out: "out".to_owned(),
                dead: "in.dead".to_owned(),
            };
        }
        let out = beside("out", &[own("in")]);
        Names {
            before: beside("before", &[own("in")]),
            dead: beside("dead", &[own("in"), own(&out)]),
            out,
        }
    }
}

/// A broker and its machine.
pub struct World {
    pub rng: Rng,
    pub disk: SimDisk,
    delays: Delays,
    level: Level,
    pub now: u64,
    shards: u32,
    /// Longest way of mail between them, microseconds.
    mail_us: u64,
    names: Names,
    broker: Option<Broker>,
    jobs: Vec<JobsHandle>,
    /// Who moves inputs, by its place.
    mover: Option<usize>,
    peers: Vec<Peer>,
    workers: Vec<Worker>,
    /// Crashes left, and when the next one is if it doesn't come after so many disk operations.
    pub crashes: u64,
    pub crash_at: u64,
    crash_mode: Crash,
    /// Longest time to the next crash, microseconds, and most disk operations.
    crash_us_max: u64,
    crash_ops_max: u64,
    /// How often a worker is cut off, and how often one was.
    worker_kill_per_mille: u64,
    workers_killed: u64,
    commits: u64,
}

/// Runs one seed: how many transactions were done, or what went wrong.
pub fn run(seed: u64) -> Result<u64, String> {
    run_on(seed, 1)
}

/// Runs one seed with several shards.
pub fn run_sharded(seed: u64) -> Result<u64, String> {
    run_on(seed, 3)
}

fn run_on(seed: u64, shards: u32) -> Result<u64, String> {
    let mut world = World::new(seed ^ 0x7069_7065);
    world.shards = shards;
    world.names = Names::new(shards);
    if shards > 1 {
        world.mail_us = *world.rng.pick(&[1, 1_000, 10_000]);
    }
    world.run().map(|()| world.commits)
}

impl World {
    /// A broker that has not started, and what will happen to it.
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let sync_most = *rng.pick(&[500, 5_000, 50_000]);
        World {
            disk: SimDisk::new(rng.next()),
            delays: Delays {
                sync_us: (50, sync_most),
                other_us: (100, 5_000),
            },
            level: *rng.pick(&[Level::Disk, Level::Disk, Level::Os]),
            now: EPOCH_US,
            shards: 1,
            mail_us: 0,
            names: Names::new(1),
            broker: None,
            jobs: Vec::new(),
            mover: None,
            peers: Vec::new(),
            workers: Vec::new(),
            crashes: rng.range(1, 8),
            crash_at: u64::MAX,
            crash_mode: Crash::Power,
            crash_us_max: 400_000,
            crash_ops_max: 120,
            worker_kill_per_mille: 1000,
            workers_killed: 0,
            commits: 0,
            rng,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        self.start()?;
        let writer = self.connect();
        let Names { before, out, dead } = &self.names;
        let dead = match self.shards {
            1 => String::new(),
            // What is moved there beyond its limit is refused.
            _ => format!(" dead={dead} maxlen={}", self.rng.range(3, 20)),
        };
        let (before, out) = (before.clone(), out.clone());
        self.ask(
            writer,
            &format!("QSET in maxdeliver=0 lease=300ms backoff=5ms..50ms{dead}\n"),
        );
        self.ask(writer, &format!("QSET {out}\n"));
        for number in 0..INPUTS {
            let body = self.body(number);
            let publish = format!("PUB {before} ${}\n{body}\n", body.len());
            self.ask(writer, &publish);
        }
        for _ in 0..self.rng.range(1, 3) {
            let at = self.now;
            self.workers.push(Worker {
                peer: None,
                owed: 0,
                held: Vec::new(),
                at,
                step: Step::Pull,
            });
        }
        self.plan_crash();
        let end = self.now + LENGTH_MAX_US;
        for turns in 0_u64.. {
            if self.disk.crashed() || self.now >= self.crash_at {
                self.crash()?;
            }
            for worker in 0..self.workers.len() {
                self.act(worker);
            }
            if self.shards > 1 && self.rng.chance(30) {
                self.move_some();
            }
            self.turn();
            if turns % 100 == 99 && self.is_done() {
                break;
            }
            if self.now > end {
                return Err("the work never ends".to_owned());
            }
        }
        self.judge()
    }

    /// Some are so large that they come into memory of their own.
    fn body(&mut self, number: u64) -> String {
        let size = *self.rng.pick(&[0, 10, 100, 20_000]);
        format!("{number}:{}", "x".repeat(size))
    }

    // --- The broker ---

    fn clock(&self) -> Now {
        Now {
            us: self.now,
            wall_us: self.now,
        }
    }

    pub fn start(&mut self) -> Result<(), String> {
        let mut config = Config::default();
        config.queue_defaults.durable = self.level;
        config.limits.body_bytes_max = 50_000;
        config.log.segment_bytes = 1 << 20;
        config.log.chunk_bytes = 4 << 10;
        config.log.checkpoint_bytes = 60 << 10;
        let seed = self.rng.next();
        let start = Start {
            shards: self.shards,
            memory: false,
            delays: self.delays,
            now: self.clock(),
            seed,
            mail_us: self.mail_us,
        };
        let opened = Broker::open(&config, &self.disk, start);
        let (broker, jobs, _) = opened.map_err(|error| format!("no start: {error}"))?;
        self.broker = Some(broker);
        self.jobs = jobs;
        Ok(())
    }

    pub fn plan_crash(&mut self) {
        self.crash_at = u64::MAX;
        if self.crashes == 0 {
            return;
        }
        self.crashes -= 1;
        self.crash_mode = match self.level {
            Level::Disk => *self.rng.pick(&[Crash::Kill, Crash::Power, Crash::Power]),
            // Power takes the end of what an `os` queue has told.
            _ => Crash::Kill,
        };
        match self.rng.chance(700) {
            true => {
                let at = self.disk.ops() + self.rng.spread(1, self.crash_ops_max);
                self.disk.set_faults(|faults| faults.crash_at = Some(at));
            }
            false => self.crash_at = self.now + self.rng.spread(1_000, self.crash_us_max),
        }
    }

    pub fn crash(&mut self) -> Result<(), String> {
        self.broker = None;
        self.jobs.clear();
        self.mover = None;
        self.disk.crash(self.crash_mode);
        self.disk.set_faults(|faults| faults.crash_at = None);
        self.disk.forget_removed();
        self.peers.clear();
        for worker in &mut self.workers {
            worker.forget();
        }
        self.now += self.rng.spread(1_000, 1_000_000);
        self.start()?;
        self.plan_crash();
        Ok(())
    }

    pub fn turn(&mut self) {
        self.now += self.rng.spread(20, 3_000);
        let now = self.clock();
        for jobs in &self.jobs {
            jobs.advance(self.now);
        }
        let Some(shard) = &mut self.broker else {
            return;
        };
        if self.disk.crashed() {
            return;
        }
        shard.handle_turn_end(now);
        shard.post(self.now);
        // What was put out in the turn in which it died never left.
        while !self.disk.crashed()
            && let Some(key) = shard.poll_output()
        {
            loop {
                let mut slices = [IoSlice::new(&[]); 64];
                let filled = shard.output(key, &mut slices);
                let octets = slices[..filled].iter().flat_map(|slice| slice.iter());
                let octets: Vec<u8> = octets.copied().collect();
                let peer = self.peers.iter_mut().find(|peer| peer.key == key);
                if let Some(Peer {
                    octets: Some(kept), ..
                }) = peer
                {
                    kept.extend_from_slice(&octets);
                } else if let Some(peer) = peer {
                    let lines = peer.reader.feed(&octets).expect("the protocol is kept");
                    peer.lines.extend(lines);
                }
                if octets.is_empty() || !shard.handle_sent(key, octets.len(), now) {
                    break;
                }
            }
        }
        while shard.poll_resume().is_some() || shard.poll_close().is_some() {}
    }

    // --- Connections ---

    pub fn connect(&mut self) -> usize {
        let now = self.clock();
        let shard = self.broker.as_mut().expect("the broker is up");
        let key = shard.handle_accept("127.0.0.1:1", now);
        self.peers.push(Peer {
            key: key.expect("there are few connections"),
            reader: LineReader::default(),
            lines: Vec::new(),
            octets: None,
        });
        self.peers.len() - 1
    }

    /// Connects one that does not speak the line protocol.
    pub fn connect_raw(&mut self) -> usize {
        let peer = self.connect();
        self.peers[peer].octets = Some(Vec::new());
        peer
    }

    /// The octets that such a one was sent and has not read.
    pub fn heard_raw(&mut self, peer: usize) -> Vec<u8> {
        let octets = self.peers[peer].octets.as_mut();
        std::mem::take(octets.expect("it does not read lines"))
    }

    /// Says a command of RESP.
    pub fn say_resp(&mut self, peer: usize, words: &[&str]) {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.type_text(peer, &text);
    }

    /// Waits for a reply of RESP; nothing if the broker goes down first.
    pub fn reply_resp(&mut self, peer: usize) -> Result<Option<Value>, String> {
        for _ in 0..100_000 {
            if let Some(value) = self.replied_resp(peer)? {
                return Ok(Some(value));
            }
            if self.disk.crashed() {
                return Ok(None);
            }
            self.turn();
        }
        Err("no reply ever".to_owned())
    }

    /// The reply of RESP that has come, if one has.
    pub fn replied_resp(&mut self, peer: usize) -> Result<Option<Value>, String> {
        let octets = self.peers[peer]
            .octets
            .as_mut()
            .expect("it does not read lines");
        let Some((value, used)) = parse(octets)? else {
            return Ok(None);
        };
        octets.drain(..used);
        Ok(Some(value))
    }

    fn type_text(&mut self, peer: usize, text: &str) {
        self.type_octets(peer, text.as_bytes());
    }

    /// Sends octets, some of them in pieces.
    pub fn type_octets(&mut self, peer: usize, mut rest: &[u8]) {
        let now = self.clock();
        let key = self.peers[peer].key;
        while !rest.is_empty() && !self.disk.crashed() {
            let shard = self.broker.as_mut().expect("the broker is up");
            let Some(mut room) = shard.receive_room(key) else {
                self.turn();
                continue;
            };
            let most = room.bytes().min(rest.len());
            let count = match self.rng.chance(800) {
                true => most,
                false => self.rng.range(1, most as u64) as usize,
            };
            room.fill(&rest[..count]);
            rest = &rest[count..];
            shard.handle_received(key, count, now);
        }
    }

    /// Types a command and waits for its answer; the lines up to it, fewer if the broker goes down.
    pub fn ask(&mut self, peer: usize, text: &str) -> Vec<Line> {
        self.type_text(peer, text);
        for _ in 0..100_000 {
            // What is pushed may come behind it.
            if self.disk.crashed() || self.peers[peer].lines.iter().any(is_terminal) {
                break;
            }
            self.turn();
        }
        self.heard(peer)
    }

    /// The lines that have come since they were last asked for.
    pub fn heard(&mut self, peer: usize) -> Vec<Line> {
        std::mem::take(&mut self.peers[peer].lines)
    }

    /// Breaks a connection.
    pub fn reset(&mut self, peer: usize) {
        let now = self.clock();
        let key = self.peers[peer].key;
        let shard = self.broker.as_mut().expect("the broker is up");
        shard.handle_reset(key, now);
    }

    // --- The workers ---

    /// Has some inputs moved, whatever has come of the last.
    fn move_some(&mut self) {
        if self.disk.crashed() {
            return;
        }
        let mover = match self.mover {
            Some(mover) => mover,
            None => self.connect(),
        };
        self.mover = Some(mover);
        let (count, before) = (self.rng.spread(1, 30), &self.names.before);
        let text = format!("MOVE {before} in {count}\n");
        self.type_text(mover, &text);
        if self.rng.chance(100) {
            self.reset(mover);
            self.mover = None;
        }
    }

    fn act(&mut self, worker: usize) {
        if self.workers[worker].at > self.now || self.disk.crashed() {
            return;
        }
        let Some(peer) = self.workers[worker].peer else {
            let peer = self.connect();
            self.workers[worker].peer = Some(peer);
            return;
        };
        if self.rng.chance(5) && self.rng.chance(self.worker_kill_per_mille) {
            self.workers_killed += 1;
            self.reset(peer);
            self.workers[worker].forget();
            return;
        }
        let lines = &self.peers[peer].lines;
        if lines.iter().filter(|line| is_terminal(line)).count() < self.workers[worker].owed {
            return;
        }
        let lines = std::mem::take(&mut self.peers[peer].lines);
        self.workers[worker].owed = 0;
        match self.workers[worker].step {
            Step::Pull => {
                let last = lines.last();
                self.commits += u64::from(last.is_some_and(|line| line.kind == "OK"));
                let count = self.rng.range(1, 5);
                self.type_text(peer, &format!("PULL in {count} wait=200ms\n"));
                self.workers[worker].owed = 1;
                self.workers[worker].step = Step::Work;
            }
            Step::Work => {
                let held: Vec<Held> = lines.iter().filter_map(Held::of).collect();
                self.workers[worker].step = match held.is_empty() {
                    true => Step::Pull,
                    false => Step::Commit,
                };
                self.workers[worker].held = held;
                if self.rng.chance(200) {
                    // Sometimes longer than its lease.
                    self.workers[worker].at = self.now + self.rng.spread(1_000, 600_000);
                }
            }
            Step::Commit => {
                let text = self.transaction(worker);
                self.type_text(peer, &text);
                // Begin, publishes and settles are quiet or answered; the end is always.
                self.workers[worker].step = Step::Pull;
                self.workers[worker].owed = 1;
            }
        }
    }

    /// Everything that it has to say about what it holds.
    fn transaction(&mut self, worker: usize) -> String {
        let mut text = "BEGIN!\n".to_owned();
        for held in std::mem::take(&mut self.workers[worker].held) {
            let Held {
                handle,
                number,
                is_first_try,
            } = held;
            if number % DEAD_EVERY == 3 {
                text += &format!("NACK! {handle} dead=1\n");
            } else if number % BACK_EVERY == 1 && is_first_try {
                text += &format!("NACK! {handle}\n");
            } else {
                let body = self.body(number);
                let out = &self.names.out;
                let publish = format!("PUB! {out} ${}\n{body}\n", body.len());
                let ack = format!("ACK! {handle}\n");
                text += &match self.rng.chance(500) {
                    true => publish + &ack,
                    false => ack + &publish,
                };
            }
        }
        text + match self.rng.chance(50) {
            true => "ABORT\n",
            false => "COMMIT\n",
        }
    }

    // --- The end ---

    /// Nothing is left to be worked on.
    fn is_done(&mut self) -> bool {
        if self.disk.crashed() {
            return false;
        }
        let before = self.names.before.clone();
        self.is_empty(&before) && self.is_empty("in")
    }

    /// Nothing is left in a queue.
    fn is_empty(&mut self, queue: &str) -> bool {
        if self.disk.crashed() {
            return false;
        }
        let peer = self.connect();
        let lines = self.ask(peer, &format!("QGET {queue}\n"));
        if self.disk.crashed() {
            return false;
        }
        self.reset(peer);
        let body = lines.last().and_then(|line| line.body.clone());
        let text = String::from_utf8(body.unwrap_or_default()).expect("it is text");
        let none = |key: &str| text.lines().any(|line| line == format!("{key}=0"));
        none("ready") && none("leased") && none("delayed")
    }

    fn judge(&mut self) -> Result<(), String> {
        self.workers.clear();
        self.crashes = 0;
        self.crash_mode = match self.level {
            Level::Disk => Crash::Power,
            _ => Crash::Kill,
        };
        // The last answers were read; a crash behind them changes nothing.
        for _ in 0..1000 {
            self.turn();
        }
        self.crash()?;
        let all = 0..INPUTS;
        let dead = |number: &u64| number % DEAD_EVERY == 3;
        let results: Vec<u64> = all.clone().filter(|number| !dead(number)).collect();
        let given_up: Vec<u64> = all.filter(dead).collect();
        let Names { before, out, dead } = &self.names;
        let (before, out, dead) = (before.clone(), out.clone(), dead.clone());
        self.holds(&out, &results)?;
        self.holds(&dead, &given_up)?;
        self.holds(&before, &[])?;
        self.holds("in", &[])
    }

    /// These numbers are in the queue, once each.
    pub fn holds(&mut self, queue: &str, want: &[u64]) -> Result<(), String> {
        let peer = self.connect();
        let mut got = Vec::new();
        loop {
            let lines = self.ask(peer, &format!("PULL {queue} 10 ack=auto\n"));
            let numbers: Vec<u64> = lines.iter().filter_map(number_of).collect();
            if numbers.is_empty() {
                break;
            }
            got.extend(numbers);
        }
        got.sort_unstable();
        match got == want {
            true => Ok(()),
            false => Err(format!("{queue} has {got:?}, and not {want:?}")),
        }
    }
}

impl Worker {
    /// Its connection is gone.
    fn forget(&mut self) {
        self.peer = None;
        self.owed = 0;
        self.held.clear();
        self.step = Step::Pull;
    }
}

impl Held {
    fn of(line: &Line) -> Option<Held> {
        Some(Held {
            number: number_of(line)?,
            handle: line.words.get(1)?.clone(),
            is_first_try: line.option("try").is_none(),
        })
    }
}

/// The number of a message.
pub fn number_of(line: &Line) -> Option<u64> {
    let body = line.body.as_deref().filter(|_| line.kind == "MSG")?;
    let digits = body.split(|octet| *octet == b':').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn is_terminal(line: &Line) -> bool {
    line.kind != "MSG"
}

#[test]
fn what_comes_out_is_what_went_in() {
    let seeds = seeds(60);
    let commits = total(seeds.clone(), run);
    let least = 8 * (seeds.end - seeds.start);
    assert!(commits > least, "only {commits} transactions were done");
}

#[test]
fn what_comes_out_of_several_shards_is_what_went_in() {
    let seeds = seeds(60);
    let commits = total(seeds.clone(), run_sharded);
    let least = 8 * (seeds.end - seeds.start);
    assert!(commits > least, "only {commits} transactions were done");
}
