//! `single=1`: consumers come, take, settle and go, on a broker that goes down now and then, and never
//! is one of them given a message while another is active.
//!
//! One thing happens after the other, so that it is known who is active: the one who was given a message
//! last, as long as it has a subscription or holds what a pull of its own gave it.

use crate::pipeline::World;
use crate::runs::{seeds, total};
use crate::wire::Line;

/// What is done in a run.
const ACTS: u64 = 150;
/// Consumers there are at a time.
const CONSUMERS: usize = 3;
/// Turns in which what can be handed out is handed out.
const TURNS: usize = 20;

/// A connection.
struct Consumer {
    peer: usize,
    subscribes: bool,
    /// Handles, and whether a pull gave them.
    held: Vec<(String, bool)>,
}

impl Consumer {
    fn new(peer: usize) -> Consumer {
        Consumer {
            peer,
            subscribes: false,
            held: Vec::new(),
        }
    }

    fn consumes(&self) -> bool {
        self.subscribes || self.held.iter().any(|(_, is_pulled)| *is_pulled)
    }
}

/// What a run knows.
struct Model {
    world: World,
    publisher: usize,
    consumers: Vec<Consumer>,
    /// Who was given a message last.
    last: Option<usize>,
    /// Messages that nobody has acked, some of them held.
    unsettled: usize,
    deliveries: u64,
}

/// Runs one seed: how many messages were handed out, or what went wrong.
pub fn run(seed: u64) -> Result<u64, String> {
    let mut world = World::new(seed ^ 0x7369_6e67);
    world.start()?;
    let mut model = Model {
        publisher: world.connect(),
        world,
        consumers: Vec::new(),
        last: None,
        unsettled: 0,
        deliveries: 0,
    };
    let made = model.ask(
        model.publisher,
        "QSET q single=1 lease=1d maxdeliver=0 backoff=0",
    );
    if made.last().is_none_or(|line| line.kind != "OK") {
        return Err(format!("no queue: {made:?}"));
    }
    model.connect_all();
    let mut crashes = model.world.rng.below(3);
    for _ in 0..ACTS {
        model.act()?;
        if crashes > 0 && model.world.rng.chance(10) {
            crashes -= 1;
            model.world.crashes = 0;
            model.world.crash()?;
            model.connect_all();
        }
    }
    Ok(model.deliveries)
}

impl Model {
    fn ask(&mut self, peer: usize, command: &str) -> Vec<Line> {
        self.world.ask(peer, &format!("{command}\n"))
    }

    fn connect_all(&mut self) {
        self.publisher = self.world.connect();
        let world = &mut self.world;
        self.consumers = (0..CONSUMERS)
            .map(|_| Consumer::new(world.connect()))
            .collect();
        self.last = None;
    }

    /// Who is active for certain.
    fn active(&self) -> Option<usize> {
        self.last.filter(|last| self.consumers[*last].consumes())
    }

    fn act(&mut self) -> Result<(), String> {
        let who = self.world.rng.below(CONSUMERS as u64) as usize;
        match self.world.rng.weighted(&[30, 30, 12, 20, 4, 4]) {
            0 => self.publish()?,
            1 => self.pull(who)?,
            2 => self.subscribe(who)?,
            3 => self.settle(who)?,
            4 => self.unsubscribe(who)?,
            _ => self.leave(who),
        }
        for _ in 0..TURNS {
            self.world.turn();
        }
        for consumer in 0..CONSUMERS {
            let lines = self.world.heard(self.consumers[consumer].peer);
            self.given(consumer, &lines, false)?;
        }
        Ok(())
    }

    /// Lines of which some may be messages.
    fn given(&mut self, who: usize, lines: &[Line], is_pulled: bool) -> Result<(), String> {
        for line in lines.iter().filter(|line| line.kind == "MSG") {
            if let Some(active) = self.active().filter(|active| *active != who) {
                return Err(format!("{who} was given {line:?} while {active} is active"));
            }
            // What is pushed while a pull is answered carries a tag.
            let is_pulled = is_pulled && line.tag.is_none();
            let handle = line.words[1].clone();
            self.consumers[who].held.push((handle, is_pulled));
            self.last = Some(who);
            self.deliveries += 1;
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<(), String> {
        let count = self.world.rng.spread(1, 8) as usize;
        let lines = vec!["x"; count].join("\n");
        let told = self.ask(self.publisher, &format!("MPUB q *{count}\n{lines}"));
        if told.last().is_none_or(|line| line.kind != "OK") {
            return Err(format!("MPUB: {told:?}"));
        }
        self.unsettled += count;
        Ok(())
    }

    fn pull(&mut self, who: usize) -> Result<(), String> {
        let held: usize = self.consumers.iter().map(|other| other.held.len()).sum();
        let is_free = match self.active() {
            Some(active) => active == who,
            None => self.consumers.iter().all(|other| !other.subscribes),
        };
        let count = self.world.rng.range(1, 4);
        let peer = self.consumers[who].peer;
        let lines = self.ask(peer, &format!("PULL q {count}"));
        self.given(who, &lines, true)?;
        let is_empty = lines.iter().all(|line| line.kind != "MSG");
        if is_empty && is_free && self.unsettled > held {
            return Err(format!(
                "{who} may pull, and of {} messages none came",
                self.unsettled - held
            ));
        }
        Ok(())
    }

    fn subscribe(&mut self, who: usize) -> Result<(), String> {
        if self.consumers[who].subscribes {
            return Ok(());
        }
        let credit = self.world.rng.range(1, 3);
        let peer = self.consumers[who].peer;
        let lines = self.ask(peer, &format!("@s SUB q credit={credit}"));
        self.consumers[who].subscribes = true;
        self.given(who, &lines, false)
    }

    fn unsubscribe(&mut self, who: usize) -> Result<(), String> {
        if !self.consumers[who].subscribes {
            return Ok(());
        }
        let lines = self.ask(self.consumers[who].peer, "UNSUB q");
        self.given(who, &lines, false)?;
        self.consumers[who].subscribes = false;
        // It gives the place up at once, whatever it holds.
        self.last = self.last.filter(|last| *last != who);
        Ok(())
    }

    fn settle(&mut self, who: usize) -> Result<(), String> {
        let held = &mut self.consumers[who].held;
        if held.is_empty() {
            return Ok(());
        }
        let at = self.world.rng.below(held.len() as u64) as usize;
        let (handle, _) = held.swap_remove(at);
        let is_ack = self.world.rng.chance(700);
        let verb = if is_ack { "ACK" } else { "NACK" };
        let lines = self.ask(self.consumers[who].peer, &format!("{verb} {handle}"));
        let is_told = |line: &Line| line.kind == "OK" && line.words == ["1"];
        if !lines.iter().any(is_told) {
            return Err(format!("{verb} of what {who} holds: {lines:?}"));
        }
        self.unsettled -= usize::from(is_ack);
        self.given(who, &lines, false)
    }

    /// The connection ends, and another comes.
    fn leave(&mut self, who: usize) {
        self.world.reset(self.consumers[who].peer);
        self.consumers[who] = Consumer::new(self.world.connect());
        self.last = self.last.filter(|last| *last != who);
    }
}

#[test]
fn one_consumer_is_served_at_a_time() {
    let seeds = seeds(200);
    let deliveries = total(seeds.clone(), run);
    let least = (seeds.end - seeds.start) * 20;
    assert!(deliveries > least, "only {deliveries} messages");
}
