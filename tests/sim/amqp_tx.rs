//! A worker of AMQP that consumes, transforms and produces in transactions, on a broker that goes down again and
//! again: what comes out must be what went in, each exactly once.
//!
//! It gets messages of `in`, and for each batch publishes a result to `out` for some, gives others back or up, acks
//! the rest, singly or several at once, and commits. It may roll back and say all of it again, be cut off at any
//! point, and come back.

use ringmq::protocol::amqp::method::id;

use crate::command::{Command, Form, Kind, Publish, Pull};
use crate::dialect::amqp::{Reader, typed, typed_tx};
use crate::dialect::{Dialect, FOREVER_US};
use crate::pipeline::{World, number_of};
use crate::runs::{seeds, total};
use crate::wire::Line;

/// Messages that go in.
const INPUTS: u64 = 40;
/// Numbers that are given up; those of one remainder are given back once before.
const DEAD_EVERY: u64 = 7;
const BACK_EVERY: u64 = 5;
/// Batches after which something hangs.
const ROUNDS_MAX: usize = 2_000;

/// A message that the worker holds.
#[derive(Clone)]
struct Held {
    handle: String,
    number: u64,
    is_first_try: bool,
}

/// The worker's connection.
struct Link {
    peer: usize,
    reader: Reader,
}

struct Model {
    world: World,
    link: Option<Link>,
    commits: u64,
}

/// Runs one seed: how many transactions were done, or what went wrong.
pub fn run(seed: u64) -> Result<u64, String> {
    let mut world = World::new(seed ^ 0x616d_7470);
    world.start()?;
    let mut model = Model {
        world,
        link: None,
        commits: 0,
    };
    model.fill();
    model.world.plan_crash();
    for _ in 0..ROUNDS_MAX {
        if model.world.disk.crashed() || model.world.now >= model.world.crash_at {
            model.link = None;
            model.world.crash()?;
        }
        if model.work()? {
            model.judge()?;
            return Ok(model.commits);
        }
    }
    Err("the work never ends".to_owned())
}

fn command(kind: Kind) -> Command {
    Command {
        tag: None,
        quiet: false,
        kind,
    }
}

impl Model {
    fn fill(&mut self) {
        let writer = self.world.connect();
        let settings = "maxdeliver=0 backoff=0 dead=in.dead";
        self.world.ask(writer, &format!("QSET in {settings}\n"));
        self.world.ask(writer, "QSET out\n");
        for number in 0..INPUTS {
            let body = self.body(number);
            let publish = format!("PUB in ${}\n{body}\n", body.len());
            self.world.ask(writer, &publish);
        }
    }

    fn body(&mut self, number: u64) -> String {
        let size = *self.world.rng.pick(&[0, 10, 100, 20_000]);
        format!("{number}:{}", "x".repeat(size))
    }

    /// Says something, which so many lines answer; fewer if the broker goes down.
    fn say(&mut self, octets: &[u8], answers: usize) -> Result<Vec<Line>, String> {
        let Link { peer, mut reader } = self.link.take().expect("it is connected");
        self.world.type_octets(peer, octets);
        let mut lines: Vec<Line> = Vec::new();
        for _ in 0..100_000 {
            let told = reader.feed(&self.world.heard_raw(peer))?;
            lines.extend(told);
            let ends = lines.iter().filter(|line| line.kind != "MSG").count();
            if ends >= answers || self.world.disk.crashed() {
                break;
            }
            self.world.turn();
        }
        self.link = Some(Link { peer, reader });
        Ok(lines)
    }

    fn connect(&mut self) -> Result<(), String> {
        let peer = self.world.connect_raw();
        let mut reader = Reader::new(peer);
        let hello = command(Kind::Hello { expired: false });
        reader.expect(&hello);
        reader.expect_tx(id::TX_SELECT);
        let mut octets = typed(Dialect::Amqp, &hello, &mut self.world.rng);
        octets.extend(typed_tx(id::TX_SELECT));
        self.link = Some(Link { peer, reader });
        self.say(&octets, 2).map(|_| ())
    }

    /// One batch; true when nothing is left. Where the broker goes down in it, the next one sees that.
    fn work(&mut self) -> Result<bool, String> {
        if self.link.is_none() {
            self.connect()?;
        }
        if self.world.rng.chance(50) {
            self.leave();
            return Ok(false);
        }
        let get = command(Kind::Pull(Pull::one("in".to_owned(), FOREVER_US)));
        let count = self.world.rng.range(1, 6) as usize;
        let mut octets = Vec::new();
        for _ in 0..count {
            let link = self.link.as_mut().expect("it is connected");
            link.reader.expect(&get);
            octets.extend(typed(Dialect::Amqp, &get, &mut self.world.rng));
        }
        let lines = self.say(&octets, count)?;
        let is_cut = lines.iter().filter(|line| line.kind == "END").count() < count;
        if is_cut || self.world.disk.crashed() {
            return Ok(false);
        }
        let held: Vec<Held> = lines.iter().filter_map(held).collect();
        if held.is_empty() {
            // Nobody else holds any: what one has that was cut off is given back at once.
            let others = self.world.rng.below(5);
            (0..others).for_each(|_| self.world.turn());
            return self.is_done();
        }
        let mut octets = self.transaction(&held);
        if self.world.rng.chance(100) {
            // All of it is said again.
            octets.extend(typed_tx(id::TX_ROLLBACK));
            let link = self.link.as_mut().expect("it is connected");
            link.reader.expect_tx(id::TX_ROLLBACK);
            self.say(&octets, 1)?;
            if self.world.disk.crashed() {
                return Ok(false);
            }
            octets = self.transaction(&held);
        }
        if self.world.rng.chance(70) {
            self.world.type_octets(self.peer(), &octets);
            self.leave();
            return Ok(false);
        }
        octets.extend(typed_tx(id::TX_COMMIT));
        let link = self.link.as_mut().expect("it is connected");
        link.reader.expect_tx(id::TX_COMMIT);
        if self.world.rng.chance(70) {
            // It may be done, and nobody hears of it.
            self.world.type_octets(self.peer(), &octets);
            for _ in 0..self.world.rng.below(4) {
                self.world.turn();
            }
            self.leave();
            return Ok(false);
        }
        let lines = self.say(&octets, 1)?;
        match lines.last() {
            Some(line) if line.kind == "OK" => self.commits += 1,
            None if self.world.disk.crashed() => {}
            other => return Err(format!("a commit is answered {other:?}")),
        }
        Ok(false)
    }

    fn peer(&self) -> usize {
        self.link.as_ref().expect("it is connected").peer
    }

    /// The worker is cut off.
    fn leave(&mut self) {
        if let Some(link) = self.link.take()
            && !self.world.disk.crashed()
        {
            self.world.reset(link.peer);
        }
    }

    /// Everything that it has to say about what it holds.
    fn transaction(&mut self, held: &[Held]) -> Vec<u8> {
        let mut octets = Vec::new();
        let mut say = |model: &mut Model, kind: Kind| {
            let octets_of = typed(Dialect::Amqp, &command(kind), &mut model.world.rng);
            octets.extend(octets_of);
        };
        // Acked by one that means all from the first on, as long as nothing else was said of any.
        let mut together: Vec<String> = Vec::new();
        let mut is_unbroken = self.world.rng.chance(500);
        for Held {
            handle,
            number,
            is_first_try,
        } in held
        {
            let handle = handle.clone();
            let gives_up = number % DEAD_EVERY == 3;
            if gives_up || (number % BACK_EVERY == 1 && *is_first_try) {
                if !together.is_empty() {
                    say(self, Kind::Ack(std::mem::take(&mut together)));
                }
                is_unbroken = false;
                say(
                    self,
                    Kind::Nack {
                        handles: vec![handle],
                        delay_us: Some(0),
                        dead: gives_up,
                    },
                );
                continue;
            }
            let body = self.body(*number).into_bytes();
            let publish = Publish {
                queue: "out".to_owned(),
                bodies: vec![(0, body)],
                form: Form::Counted,
                delay_us: 0,
                at_ms: None,
                ttl_us: None,
                pri: None,
                key: None,
                once: None,
                sync: None,
            };
            say(self, Kind::Publish(publish));
            match is_unbroken {
                true => together.push(handle),
                false => say(self, Kind::Ack(vec![handle])),
            }
        }
        if !together.is_empty() {
            say(self, Kind::Ack(together));
        }
        octets
    }

    /// Nothing is left to be worked on.
    fn is_done(&mut self) -> Result<bool, String> {
        let peer = self.world.connect();
        let lines = self.world.ask(peer, "QGET in\n");
        if self.world.disk.crashed() {
            return Ok(false);
        }
        self.world.reset(peer);
        let body = lines.last().and_then(|line| line.body.clone());
        let text = String::from_utf8(body.unwrap_or_default()).expect("it is text");
        let none = |key: &str| text.lines().any(|line| line == format!("{key}=0"));
        Ok(none("ready") && none("leased") && none("delayed"))
    }

    /// After a last crash, everything is where it belongs.
    fn judge(&mut self) -> Result<(), String> {
        self.world.crashes = 0;
        for _ in 0..200 {
            self.world.turn();
        }
        self.world.crash()?;
        let dead = |number: &u64| number % DEAD_EVERY == 3;
        let results: Vec<u64> = (0..INPUTS).filter(|number| !dead(number)).collect();
        let given_up: Vec<u64> = (0..INPUTS).filter(dead).collect();
        self.world.holds("out", &results)?;
        self.world.holds("in.dead", &given_up)?;
        self.world.holds("in", &[])
    }
}

fn held(line: &Line) -> Option<Held> {
    Some(Held {
        number: number_of(line)?,
        handle: line.words.get(1)?.clone(),
        is_first_try: line.option("try").is_none_or(|tries| tries == "1"),
    })
}

#[test]
fn what_workers_of_amqp_commit_is_done_once() {
    let seeds = seeds(60);
    let commits = total(seeds.clone(), run);
    let least = 6 * (seeds.end - seeds.start);
    assert!(commits > least, "only {commits} transactions were done");
}
