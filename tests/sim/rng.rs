//! The simulator's only source of chance: splitmix64. Never a clock, never an address.

/// A small deterministic generator.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The same seed gives the same numbers for ever.
    pub fn new(seed: u64) -> Rng {
        Rng {
            state: seed ^ 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// An independent generator: what is drawn from one doesn't change what the other gives.
    pub fn fork(&mut self, label: u64) -> Rng {
        Rng::new(self.next() ^ label.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// 64 even bits.
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// A number from `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `per_mille` times out of a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// One of the indexes, as often as its weight says.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut at = self.below(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            if at < *weight {
                return index;
            }
            at -= weight;
        }
        weights.len() - 1
    }

    /// Microseconds, mostly near `low`, now and then near `high`: each power of two is as likely.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(1));
        let bits = u64::from(high.ilog2() - low.ilog2());
        let most = (low << self.below(bits + 1)).min(high);
        self.range(low.min(most), most)
    }
}

#[test]
fn splitmix_is_the_published_sequence() {
    // First output of splitmix64 for state 0, as published with it.
    let mut rng = Rng { state: 0 };
    assert_eq!(rng.next(), 0xe220_a839_7b1d_cdaf);
}
