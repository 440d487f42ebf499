//! Which messages have arrived: one bit each.

/// A set of message numbers, dense from 0.
#[derive(Debug, Default)]
pub struct Seen {
    words: Vec<u64>,
    count: u64,
    duplicates: u64,
    /// Messages whose number is not above the one before; meaningful with one consumer only.
    out_of_order: u64,
    last: Option<u64>,
}

impl Seen {
    /// Notes an arrival.
    #[inline]
    pub fn insert(&mut self, number: u64) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.words.len() {
            self.words.resize((word + 1).next_power_of_two(), 0);
        }
        let known = self.words[word] & bit != 0;
        self.words[word] |= bit;
        self.count += u64::from(!known);
        self.duplicates += u64::from(known);
        self.out_of_order += u64::from(self.last.is_some_and(|last| last >= number));
        self.last = Some(number);
    }

    /// Different messages.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Arrivals of messages that had arrived before.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Arrivals behind a message that was published later.
    pub fn out_of_order(&self) -> u64 {
        self.out_of_order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_once() {
        let mut seen = Seen::default();
        for number in [0, 1, 63, 64, 1_000_000, 64, 5] {
            seen.insert(number);
        }
        assert_eq!(
            (seen.count(), seen.duplicates(), seen.out_of_order()),
            (6, 1, 2)
        );
    }
}
