//! What the log says of single messages, in recovery.

use super::{Queue, State};
use crate::broker::id::MessageId;

impl Queue {
    /// Settles a message of which only the log speaks, in recovery: there are no leases then.
    pub fn settle_replayed(&mut self, id: MessageId, size: Option<u32>) {
        if self.state(id) == State::Leased {
            self.leased = self.leased.saturating_sub(1);
            self.forget(id, size);
        } else {
            self.settle_waiting(id, size);
        }
    }

    /// Lets a waiting message wait differently, in recovery: ready when `due_us` is 0, else delayed.
    pub fn wait_replayed(&mut self, id: MessageId, due_us: u64) {
        let pri = match self.state(id) {
            State::Ready | State::Locked => self.remove_ready(id),
            State::Delayed => self.delayed.remove(id).map(|(_, pri)| pri),
            State::Hidden | State::Leased | State::Gone => None,
        };
        if let Some(pri) = pri {
            self.become_waiting(id, pri, due_us);
        }
    }
}
