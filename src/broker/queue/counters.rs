//! What a queue has counted.

/// What a queue has counted since the broker's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counters {
    pub published: u64,
    pub delivered: u64,
    pub redelivered: u64,
    pub acked: u64,
    pub nacked: u64,
    pub expired: u64,
    pub dead: u64,
    pub deduplicated: u64,
    pub rejected: u64,
    pub dropped: u64,
    pub damaged: u64,
    /// Published by schedules; among `published` too.
    pub scheduled: u64,
}

impl Counters {
    /// Adds what another queue has counted.
    pub fn add(&mut self, other: &Counters) {
        let Counters {
            published,
            delivered,
            redelivered,
            acked,
            nacked,
            expired,
            dead,
            deduplicated,
            rejected,
            dropped,
            damaged,
            scheduled,
        } = other;
        self.published += published;
        self.delivered += delivered;
        self.redelivered += redelivered;
        self.acked += acked;
        self.nacked += nacked;
        self.expired += expired;
        self.dead += dead;
        self.deduplicated += deduplicated;
        self.rejected += rejected;
        self.dropped += dropped;
        self.damaged += damaged;
        self.scheduled += scheduled;
    }
}
