//! The end of a run: what must still be there is read, or a byte of the log rots.

use super::{Event, World};
use crate::broker::{Broker, Start};
use crate::command::{Command, Kind, Pull, Setting};
use crate::disk::{Crash, Faults};

impl World {
    /// The broker is down and a byte of its log rots. It must refuse to start: more was confirmed
    /// behind that byte than could be read. True when it does.
    fn rot(&mut self) -> bool {
        let contents = self.disk.contents();
        let checkpointed = contents.keys().any(|path| path.ends_with(".ckpt"));
        let segment = contents.iter().find(|(path, _)| path.ends_with(".seg"));
        let Some((path, content)) = segment.filter(|_| !checkpointed && self.broker.is_some())
        else {
            return false;
        };
        let used = content.iter().rposition(|octet| *octet != 0).unwrap_or(0);
        let at = self.rng.range(used as u64 / 8, used as u64 / 2) as usize;
        if at < 512 {
            return false;
        }
        let bit = 1 << self.rng.below(8);
        self.trace
            .note(self.now, || format!("rot at {at} of {path}"));
        self.crash(Crash::Kill, Crash::Kill);
        self.disk.damage(path, |octets| octets[at] ^= bit);
        let start = Start {
            shards: self.plan.shards,
            memory: false,
            delays: self.plan.delays,
            now: self.clock(),
            seed: 1,
            mail_us: 0,
        };
        match Broker::open(&self.config(), &self.disk, start) {
            Err(_) => true,
            Ok(_) => {
                self.trace
                    .note(self.now, || "rot was not noticed at start".to_string());
                self.disk.crash(Crash::Kill);
                false
            }
        }
    }

    /// The end of a run: everything is mended, every client gone, and one consumer reads all there
    /// is, waits for what is leased or delayed, and reads again.
    pub(super) fn drain(&mut self) {
        self.trace.note(self.now, || "drain".to_string());
        self.draining = true;
        self.disk.set_faults(|faults| *faults = Faults::default());
        self.plan.recovery_crash_per_mille = 0;
        self.plan.delays.sync_us = (100, 2000);
        for jobs in &self.jobs {
            jobs.set_delays(self.plan.delays);
        }
        // Subscriptions would be given the same messages again and again while time passes.
        for socket in 0..self.sockets.len() {
            if self.sockets[socket].open && self.oracle.subscribes(socket) {
                self.reset(socket);
            }
        }
        let settled = self.now + 70_000_000;
        self.run_until(settled);
        for socket in 0..self.sockets.len() {
            if self.sockets[socket].paused {
                self.happen(Event::Unpause(socket));
            }
        }
        let settled = self.now + 5_000_000;
        self.run_until(settled);
        self.oracle.stuck(self.now);
        if self.plan.rot && self.oracle.violation().is_none() && self.rot() {
            return;
        }
        for socket in 0..self.sockets.len() {
            if self.sockets[socket].open && self.broker.is_some() {
                self.reset(socket);
            }
        }
        let soon = self.now + 1_000_000;
        self.run_until(soon);
        if self.oracle.violation().is_some() {
            return;
        }
        if self.broker.is_none() {
            self.oracle
                .refused_to_start("it did not come up again".to_string());
            return;
        }
        let Some(socket) = self.connect(usize::MAX) else {
            self.oracle
                .refused_to_start("it takes no connection".to_string());
            return;
        };
        let names = self.oracle.queue_names();
        for queue in &names {
            let settings = vec![Setting::Pause(false, false)];
            self.say(
                socket,
                Kind::QSet {
                    queue: queue.clone(),
                    settings,
                },
            );
        }
        for _ in 0..40 {
            for queue in &names {
                while self.drain_some(socket, queue) {}
            }
            match self.oracle.later() {
                _ if self.oracle.violation().is_some() => return,
                None => break,
                Some(at) => {
                    let at = at.max(self.now).min(self.now + 1_000_000_000) + 500_000;
                    self.run_until(at);
                }
            }
        }
        self.oracle.finish(self.now);
    }

    /// Says a command and waits until it is answered.
    fn say(&mut self, socket: usize, kind: Kind) -> usize {
        let command = Command {
            tag: None,
            quiet: false,
            kind,
        };
        let number = self.type_command(socket, command);
        for _ in 0..100 {
            let soon = self.now + 100_000;
            self.run_until(soon);
            if self.oracle.is_answered(number) || self.oracle.violation().is_some() {
                return number;
            }
        }
        self.oracle.stuck(self.now);
        number
    }

    /// Takes messages of a queue and acks them. False when there are none now.
    fn drain_some(&mut self, socket: usize, queue: &str) -> bool {
        let pull = Pull {
            sources: vec![queue.to_string()],
            count: 100,
            wait_us: 0,
            lease_us: Some(60_000_000),
            auto: false,
            hold: false,
            bytes: None,
            timestamps: false,
            tail: false,
        };
        let pulled = self.say(socket, Kind::Pull(pull));
        let handles = self.oracle.handles_from(pulled);
        if handles.is_empty() || self.oracle.violation().is_some() {
            return false;
        }
        self.say(socket, Kind::Ack(handles));
        self.oracle.violation().is_none()
    }
}
