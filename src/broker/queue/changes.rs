//! Settings that change while messages wait: what becomes of those.

use std::collections::VecDeque;

use super::{Queue, Special};
use crate::broker::id::MessageId;

impl Queue {
    /// The new default priority is for later publishes: hidden messages keep theirs.
    pub fn pri_changed(&mut self, before: u8) {
        if before == self.settings.pri {
            return;
        }
        let mut specials = VecDeque::new();
        for id in self.visible..self.next_id {
            match self.specials.front() {
                Some(special) if special.id == id => specials.extend(self.specials.pop_front()),
                _ => specials.push_back(Special {
                    id,
                    pri: before,
                    due_us: 0,
                }),
            }
        }
        self.specials = specials;
    }

    /// The queue follows a new time to live: messages without a deadline count from now, those whose first
    /// delay has not ended from its end.
    pub fn ttl_changed(&mut self, before: Option<u64>, now_us: u64) {
        let Some(ttl_us) = self.settings.ttl_us.filter(|_| before.is_none()) else {
            return;
        };
        if self.next_id > 1 {
            self.expiry.follow_all(self.next_id - 1, now_us);
        }
        let delayed: Vec<(u64, MessageId)> = self.iter_delayed().collect();
        for (due_us, id) in delayed {
            if self.next_try(id) == 1 && !self.expiry.has_own(id) {
                self.expiry.own(id, due_us.saturating_add(ttl_us));
            }
        }
    }
}
