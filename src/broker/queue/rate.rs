//! How fast messages may come: `rate=`.

use super::Queue;

/// What may come at once of a queue with a rate: what comes in so long, microseconds.
const RATE_BURST_US: u64 = 1_000_000;

impl Queue {
    /// For how long the queue's rate doesn't let so many more messages in, microseconds; 0 = they
    /// may come. A second's worth may come at once, and a larger batch when nothing came for as
    /// long as it takes up (the generic cell rate algorithm, ITU-T I.371, in its virtual scheduling
    /// form).
    pub fn wait_for_rate_us(&self, now_us: u64, count: u32) -> u64 {
        let ahead_us = self.paced_until_us.saturating_sub(now_us);
        let limit_us = RATE_BURST_US.saturating_sub(self.rate_share_us(count));
        ahead_us.saturating_sub(limit_us)
    }

    /// So many messages came.
    pub fn count_for_rate(&mut self, now_us: u64, count: u32) {
        let share_us = self.rate_share_us(count);
        self.paced_until_us = self.paced_until_us.max(now_us).saturating_add(share_us);
    }

    /// The time that so many messages take up at the queue's rate, microseconds.
    fn rate_share_us(&self, count: u32) -> u64 {
        let rate = self.settings.rate.map_or(u64::MAX, u64::from);
        u64::from(count) * 1_000_000 / rate
    }
}
