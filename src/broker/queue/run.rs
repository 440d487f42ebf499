//! Messages settled in runs.

use super::Queue;
use crate::broker::id::MessageId;

impl Queue {
    /// How many leased messages of consecutive ids from `first` on may be settled at once by
    /// [`Queue::settle_run`]: none unless all that is known of a message is that it is leased.
    #[inline]
    pub fn settles_in_run(&self, first: MessageId) -> u64 {
        let plain = !self.is_shared()
            && !self.wakes_when_settled()
            && self.tries.is_empty()
            && self.expiry.is_empty()
            && self.overdue.is_empty()
            && self.origins.is_empty()
            && !self.arena.has_own();
        match plain {
            true => self.index.runs(first),
            false => 0,
        }
    }

    /// Leased messages of consecutive ids are acked, whose bodies are `bytes` together; their memory is given back by the
    /// caller.
    #[inline]
    pub fn settle_run(&mut self, first: MessageId, count: usize, bytes: u64) {
        self.leased -= count as u64;
        self.counters.acked += count as u64;
        self.index.settle_run(first, count, bytes);
    }
}
