//! Values counted by their size.

/// Buckets of a histogram.
const BUCKETS: usize = 32;

/// Counts of values by the powers of two that they are not above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Entry n counts what is at most 2^n and in no entry before; the last one the rest.
    pub within: [u64; BUCKETS],
    /// Of all values.
    pub sum: u64,
}

impl Histogram {
    /// One more value.
    #[inline]
    pub fn add(&mut self, value: u64) {
        let bucket = (u64::BITS - value.saturating_sub(1).leading_zeros()) as usize;
        self.within[bucket.min(BUCKETS - 1)] += 1;
        self.sum = self.sum.saturating_add(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_up_to_the_next_power_of_two() {
        let mut histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 5, 1 << 40, u64::MAX] {
            histogram.add(value);
        }
        assert_eq!(histogram.within[..4], [2, 1, 2, 1]);
        assert_eq!(histogram.within[BUCKETS - 1], 2);
        assert_eq!(histogram.within.iter().sum::<u64>(), 8);
        assert_eq!(histogram.sum, u64::MAX);
    }
}
