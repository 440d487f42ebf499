//! Transactions: publishes and settles between `BEGIN` and `COMMIT`, or an end without one.

use super::{Act, Client, Theme};
use crate::command::{Command, Kind};
use crate::oracle::Oracle;

/// What a transaction does not take, or not a second time.
const REFUSED_INSIDE: [&str; 5] = ["BEGIN\n", "QLS\n", "PULL a\n", "SYNC\n", "FROB x\n"];

impl Client {
    /// A whole transaction, or one that the end of its connection finds open.
    pub(super) fn transact(
        &mut self,
        theme: &Theme,
        oracle: &mut Oracle,
        wall_us: u64,
        acts: &mut Vec<Act>,
    ) {
        // Every command in it waits for an answer of its own.
        let theme = &Theme {
            quiet: false,
            once: theme.once && self.rng.chance(300),
            levels: false,
            ..match self.rng.chance(300) {
                true => self.on_one_shard(theme),
                false => theme.clone(),
            }
        };
        self.say(None, Kind::Begin, acts);
        for _ in 0..self.rng.spread(1, 6) {
            let first = acts.len();
            match self.rng.weighted(&[50, 40, 4, 2]) {
                0 => self.publish(theme, oracle, wall_us, acts),
                1 if !self.held.is_empty() => self.settle(theme, oracle, acts),
                2 => {
                    let ping = self.ping();
                    self.say(None, ping, acts);
                }
                3 => {
                    let bytes = self.rng.pick(&REFUSED_INSIDE).as_bytes().to_vec();
                    let codes = &["CONFLICT", "UNKNOWN"];
                    let bad = Kind::Bad {
                        bytes,
                        codes,
                        closes: false,
                    };
                    self.say(None, bad, acts);
                }
                _ => {}
            }
            for act in &mut acts[first..] {
                if let Act::Type(command) = act {
                    as_part(command);
                }
            }
        }
        match self.rng.weighted(&[80, 10, 3, 3, 4]) {
            0 => self.say(None, Kind::Commit, acts),
            1 => self.say(None, Kind::Abort, acts),
            2 => {
                self.finished = true;
                acts.push(Act::HalfClose);
            }
            3 => {
                self.finished = true;
                self.say(None, Kind::Quit, acts);
            }
            _ => {
                self.finished = true;
                acts.push(Act::Reset);
            }
        }
    }
}

impl Client {
    /// A transaction stays on one shard.
    fn on_one_shard(&mut self, theme: &Theme) -> Theme {
        let mut theme = theme.clone();
        if theme.shards > 1 {
            let shard = theme.shard_of(&self.queue(&theme));
            let mut queues = std::mem::take(&mut theme.queues);
            queues.retain(|queue| theme.shard_of(queue) == shard);
            theme.queues = queues;
            theme.only = Some(shard);
        }
        theme
    }
}

/// Tags would only be another way to read the same answers; a `TOUCH` is for outside.
fn as_part(command: &mut Command) {
    command.tag = None;
    if let Kind::Touch { handles, .. } = &command.kind {
        command.kind = Kind::Ack(handles.clone());
    }
}
