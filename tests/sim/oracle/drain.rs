//! DRAIN: nothing new is begun, and those who hold messages settle them as ever.

use super::Oracle;
use crate::command::Kind;

/// The broker was asked to drain.
#[derive(Clone, Debug)]
pub(super) struct Drain {
    /// It goes down by itself not before this, unless nothing is leased, microseconds.
    until: u64,
    /// Its `OK` was read.
    told: Option<u64>,
}

impl Oracle {
    /// A `DRAIN` has arrived.
    pub(super) fn drain_arrived(&mut self, us: u64) {
        let now = self.now;
        self.drain = Some(Drain {
            until: now + us,
            told: None,
        });
        for link in 0..self.links.len() {
            let record = &mut self.links[link];
            record.shut = true;
            if !record.open || record.may_close.is_some() {
                continue;
            }
            // What is leased stays so until its time is up: nothing else may end it.
            record.may_close = Some(now);
            for sub in &mut record.live {
                sub.until.0 = sub.until.0.min(now);
            }
        }
    }

    pub(super) fn drain_told(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.told = Some(self.now);
        }
    }

    /// Once its time is up, the broker closes connections whoever holds what.
    pub(super) fn drain_goes_on(&mut self) {
        let is_over = self
            .drain
            .as_ref()
            .is_some_and(|drain| drain.until <= self.now);
        for link in (0..self.links.len()).filter(|_| is_over) {
            if self.links[link].open {
                self.leases_leave(link);
            }
        }
    }

    /// F: what was typed after the `OK` of a `DRAIN` is refused if it begins something.
    pub(super) fn check_not_drained(&mut self, command: usize) {
        let Some(told) = self.drain.as_ref().and_then(|drain| drain.told) else {
            return;
        };
        let sent = self.commands[command].clone();
        let is_later = sent.arrived.is_some_and(|arrived| arrived > told);
        if !is_later || !self.begins_something(command) {
            return;
        }
        let text = format!("{sent:?} was not refused, and the broker drains since {told}");
        self.fail("F", text);
    }

    /// L: a broker that drains does not close connections while somebody surely holds a message.
    pub(super) fn check_drained(&mut self, link: usize) {
        let Some(drain) = &self.drain else {
            return;
        };
        if self.links[link].leaving || drain.until <= self.now {
            return;
        }
        self.checked("drain");
        let holds = |delivery: &usize| {
            let holder = &self.links[self.deliveries[*delivery].link];
            holder.open && !holder.leaving && self.surely_leased(*delivery)
        };
        if let Some(delivery) = (0..self.deliveries.len()).find(holds) {
            let text = format!(
                "it went down at {} without waiting for {:?}",
                self.now, self.deliveries[delivery]
            );
            self.fail("L", text);
        }
    }

    /// Whether `ERR DRAINING` may answer a command: it is for what begins something.
    pub(super) fn may_be_drained(&mut self, command: usize) -> bool {
        let link = self.commands[command].link;
        if !self.links[link].shut {
            return false;
        }
        self.checked("drain");
        let Some(drain) = &self.drain else {
            return true;
        };
        self.begins_something(command) || drain.until <= self.now
    }

    /// What a broker refuses while it drains. A `COMMIT` of settles alone is not among these.
    fn begins_something(&self, command: usize) -> bool {
        let sent = &self.commands[command];
        match sent.command.kind {
            Kind::Publish(_)
            | Kind::Pull(_)
            | Kind::Sub { .. }
            | Kind::SubLive(_)
            | Kind::Cast { .. }
            | Kind::Request { .. } => true,
            Kind::Commit => sent
                .transaction
                .is_some_and(|number| self.publishes(number)),
            _ => false,
        }
    }
}
