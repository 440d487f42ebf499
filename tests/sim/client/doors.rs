//! Clients of RESP and of AMQP: what they say, and what they make of what they are told.

use super::{Act, Client, Held, Theme};
use crate::command::{Command, Form, Kind, Publish, Pull};
use crate::dialect::resp::HEAD;
use crate::dialect::{Dialect, FOREVER_US};
use crate::oracle::Oracle;
use crate::wire::Line;

/// Consumers of one connection at most.
const CONSUMERS_MAX: usize = 2;

impl Client {
    /// A line that it was sent.
    pub(super) fn line_of_door(&mut self, command: Option<&Command>, line: &Line) {
        match &line.kind[..] {
            "MSG" => {
                let handle = line.words[1].clone();
                if self.dialect.is_amqp() {
                    self.held.push(Held { handle });
                }
                return;
            }
            "CLOSED" => self.is_refused = true,
            "END" if line.option("gone").is_some() => {
                // It may have asked for another one on the same queue since.
                self.consumers
                    .retain(|consumer| Some(&consumer.1) != line.tag.as_ref());
                return;
            }
            _ => {}
        }
        if command.is_some() {
            self.open = self.open.saturating_sub(1);
        }
    }

    /// What to do now.
    pub(super) fn act_at_door(&mut self, theme: &Theme, oracle: &mut Oracle) -> Vec<Act> {
        let mut acts = Vec::new();
        if !self.has_greeted {
            self.has_greeted = true;
            let expired = self.dialect == Dialect::AmqpConfirmed;
            if self.dialect.is_amqp() || self.rng.chance(300) {
                self.say(None, Kind::Hello { expired }, &mut acts);
            }
        }
        if self.dialect == Dialect::Resp && !oracle.is_scarce() && self.rng.chance(200) {
            self.transact_at_door(theme, oracle, &mut acts);
        }
        for _ in 0..self.rng.spread(1, 8) {
            let [publishes, consumes, _] = self.shares;
            match self.rng.weighted(&[publishes, consumes, 1]) {
                0 => self.publish_at_door(theme, oracle, &mut acts),
                1 if self.dialect == Dialect::Resp => self.pop(theme, true, &mut acts),
                1 => self.consume_amqp(theme, &mut acts),
                _ => self.ask_at_door(theme, &mut acts),
            }
        }
        if theme.rough && self.dialect == Dialect::Resp && self.rng.chance(100) {
            // What it has just asked for is answered while it doesn't read.
            acts.push(Act::Pause(self.rng.spread(10_000, 1_000_000)));
        }
        acts
    }

    /// A few commands in one reply. Nothing of it waits, and nothing is refused before it is run.
    fn transact_at_door(&mut self, theme: &Theme, oracle: &mut Oracle, acts: &mut Vec<Act>) {
        self.say(None, Kind::Multi, acts);
        for _ in 0..self.rng.range(1, 5) {
            match self.rng.below(5) {
                0 | 1 => self.publish_at_door(theme, oracle, acts),
                2 | 3 => self.pop(theme, false, acts),
                _ => {
                    let queue = self.queue(theme);
                    self.say(None, Kind::QGet(queue), acts);
                }
            }
        }
        self.say(None, Kind::Exec, acts);
    }

    /// What is said without an answer of its own.
    fn say_quietly(&mut self, kind: Kind, acts: &mut Vec<Act>) {
        acts.push(Act::Type(Command {
            tag: None,
            quiet: true,
            kind,
        }));
    }

    fn publish_at_door(&mut self, theme: &Theme, oracle: &mut Oracle, acts: &mut Vec<Act>) {
        let count = match self.dialect {
            Dialect::Resp if self.rng.chance(300) => self.rng.spread(1, theme.batch_max),
            _ => 1,
        };
        let form = match count {
            1 => Form::Counted,
            _ => Form::Blocks,
        };
        let bodies = (0..count)
            .map(|_| self.body(oracle, form, count > 12))
            .collect();
        let publish = Kind::Publish(Publish {
            queue: self.queue(theme),
            bodies,
            form,
            delay_us: 0,
            at_ms: None,
            ttl_us: None,
            pri: (self.dialect == Dialect::Resp && self.rng.chance(150)).then_some(HEAD),
            key: None,
            once: None,
            sync: None,
        });
        match self.dialect {
            Dialect::Amqp => {
                self.say_quietly(publish, acts);
                if self.rng.chance(300) {
                    self.say(None, Kind::Barrier, acts);
                }
            }
            Dialect::AmqpConfirmed => {
                let tag = self.tag(1000);
                self.say(tag, publish, acts);
            }
            Dialect::Resp | Dialect::Text => self.say(None, publish, acts),
        }
    }

    fn pop(&mut self, theme: &Theme, may_wait: bool, acts: &mut Vec<Act>) {
        let mut sources = vec![self.queue(theme)];
        if self.rng.chance(150) {
            let more = self.queue(theme);
            if more != sources[0] {
                sources.push(more);
            }
        }
        let wait_us = match may_wait && self.rng.chance(500) {
            true => self.rng.spread(1000, 3_000_000),
            false => 0,
        };
        let count = match self.rng.chance(500) {
            true => self.rng.spread(2, 16),
            false => 1,
        };
        let pull = Pull {
            // Where several are named and waited for, one message is given.
            count: if sources.len() > 1 { 1 } else { count },
            sources,
            wait_us,
            lease_us: Some(FOREVER_US),
            auto: false,
            hold: false,
            bytes: None,
            timestamps: false,
            tail: self.rng.chance(150),
        };
        self.say(None, Kind::Pull(pull), acts);
    }

    fn consume_amqp(&mut self, theme: &Theme, acts: &mut Vec<Act>) {
        if !self.held.is_empty() && self.rng.chance(750) {
            let at = self.rng.below(self.held.len() as u64) as usize;
            let handles = match self.rng.chance(250) {
                // That one and all before it, in one.
                true => {
                    let rest = self.held.split_off(at + 1);
                    let taken = std::mem::replace(&mut self.held, rest);
                    taken.into_iter().map(|held| held.handle).collect()
                }
                false => vec![self.held.remove(at).handle],
            };
            let kind = match self.rng.chance(750) {
                true => Kind::Ack(handles),
                false => Kind::Nack {
                    handles,
                    delay_us: Some(0),
                    dead: false,
                },
            };
            self.say_quietly(kind, acts);
            if self.rng.chance(200) {
                self.say(None, Kind::Barrier, acts);
            }
            return;
        }
        let source = self.queue(theme);
        let is_consumed = self.consumers.iter().any(|it| it.0 == source);
        let has_room = !is_consumed && self.consumers.len() < CONSUMERS_MAX;
        if theme.pushes && has_room && self.rng.chance(300) {
            let tag = self.tag(1000);
            let name = tag.clone().expect("it was asked for");
            self.consumers.push((source.clone(), name));
            let sub = Kind::Sub {
                source,
                credit: Some(self.rng.spread(1, 30)),
                lease_us: Some(FOREVER_US),
                auto: false,
            };
            return self.say(tag, sub, acts);
        }
        let pull = Pull::one(source, FOREVER_US);
        self.say(None, Kind::Pull(pull), acts);
    }

    fn ask_at_door(&mut self, theme: &Theme, acts: &mut Vec<Act>) {
        if self.dialect.is_amqp() {
            if self.consumers.is_empty() || self.rng.chance(700) {
                return self.say(None, Kind::Barrier, acts);
            }
            let at = self.rng.below(self.consumers.len() as u64) as usize;
            let (source, tag) = self.consumers.swap_remove(at);
            return self.say(None, Kind::UnsubTag { source, tag }, acts);
        }
        let kind = match self.rng.below(3) {
            0 if theme.garbage => Kind::Bad {
                bytes: b"*2\r\n$4\r\nFROB\r\n$15\r\nRPUSH jobs evil\r\n".to_vec(),
                codes: &["SYNTAX"],
                closes: false,
            },
            1 => Kind::QGet(self.queue(theme)),
            _ => self.ping(),
        };
        self.say(None, kind, acts);
    }
}
