//! Which client ids (`once=`) a queue has seen within its window.
//!
//! Ids are kept as keyed 128-bit hashes in generations by publish time, so that forgetting is
//! dropping a whole generation: an id is remembered at least as long as the window says and at most an
//! eighth longer. Knows hashes and times; never a message.

use std::collections::{HashMap, VecDeque};

use super::id::MessageId;

/// A client's id, hashed.
pub type OnceHash = u128;

/// What was published under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The (first) message's id.
    pub first: MessageId,
    /// How many messages it was.
    pub count: u32,
}

#[derive(Debug)]
struct Generation {
    /// Publish times in it lie in `begins_us..=ends_us`.
    begins_us: u64,
    ends_us: u64,
    /// It came from a checkpoint, which does not tell when it begins: it takes no later ids, or it would
    /// never end where restarts come often.
    is_closed: bool,
    seen: HashMap<OnceHash, Original, foldhash::fast::FixedState>,
}

/// Generations in one window.
const GENERATIONS: u64 = 8;
/// Memory of one remembered id, bytes, spare places of the table included.
const ENTRY_BYTES: usize = 64;

/// The ids one queue remembers.
#[derive(Debug, Default)]
pub struct Dedup {
    generations: VecDeque<Generation>,
    count: usize,
}

impl Dedup {
    /// How many ids are remembered.
    pub fn len(&self) -> usize {
        self.count
    }

    /// None is remembered.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.count * ENTRY_BYTES
    }

    /// What was published under this id within the window before now.
    pub fn find(&mut self, hash: OnceHash, window_us: u64, now_us: u64) -> Option<Original> {
        self.forget(window_us, now_us);
        self.generations
            .iter()
            .rev()
            .find_map(|generation| generation.seen.get(&hash).copied())
    }

    /// Remembers an id.
    pub fn insert(&mut self, hash: OnceHash, original: Original, window_us: u64, now_us: u64) {
        let span_us = (window_us / GENERATIONS).max(1);
        let current = match self.generations.back_mut() {
            Some(last) if !last.is_closed && now_us < last.begins_us.saturating_add(span_us) => {
                last
            }
            _ => self.begin(now_us, false),
        };
        current.ends_us = current.ends_us.max(now_us);
        if current.seen.insert(hash, original).is_none() {
            self.count += 1;
        }
    }

    /// Remembers an id that [`Dedup::iter`] has told; they come in the order of their times.
    pub fn restore(&mut self, hash: OnceHash, original: Original, at_us: u64) {
        let current = match self.generations.back_mut() {
            Some(last) if last.ends_us == at_us => last,
            _ => self.begin(at_us, true),
        };
        if current.seen.insert(hash, original).is_none() {
            self.count += 1;
        }
    }

    fn begin(&mut self, at_us: u64, is_closed: bool) -> &mut Generation {
        self.generations.push_back(Generation {
            begins_us: at_us,
            ends_us: at_us,
            is_closed,
            seen: HashMap::default(),
        });
        self.generations.back_mut().expect("one was just added")
    }

    /// Drops the generations that lie wholly before the window.
    pub fn forget(&mut self, window_us: u64, now_us: u64) {
        while let Some(oldest) = self.generations.front()
            && oldest.ends_us.saturating_add(window_us) < now_us
        {
            self.count -= oldest.seen.len();
            self.generations.pop_front();
        }
    }

    /// Moves every time by the while the broker was down, which does not count.
    pub fn shift(&mut self, down_us: u64) {
        for generation in &mut self.generations {
            generation.begins_us += down_us;
            generation.ends_us += down_us;
        }
    }

    /// Everything remembered as (publish time, hash, original), for a checkpoint. The time is that of
    /// the end of its generation.
    pub fn iter(&self) -> impl Iterator<Item = (u64, OnceHash, Original)> {
        self.generations.iter().flat_map(|generation| {
            generation
                .seen
                .iter()
                .map(|(hash, original)| (generation.ends_us, *hash, *original))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_make_no_id_last_longer() {
        let mut dedup = Dedup::default();
        let original = |n: u64| Original { first: n, count: 1 };
        for n in 0..10_000u64 {
            dedup.insert(u128::from(n), original(n), 800, n);
            if n % 30 == 0 {
                let mut told: Vec<_> = dedup.iter().collect();
                told.sort_unstable_by_key(|(at_us, hash, _)| (*at_us, *hash));
                dedup = Dedup::default();
                for (at_us, hash, original) in told {
                    dedup.restore(hash, original, at_us);
                }
            }
            let oldest = n.saturating_sub(800);
            assert_eq!(
                dedup.find(u128::from(oldest), 800, n),
                Some(original(oldest))
            );
            assert!(dedup.len() <= 1000, "{} at {n}", dedup.len());
        }
    }

    #[test]
    fn remembers_at_least_the_window_and_little_longer() {
        let mut dedup = Dedup::default();
        let original = |n: u64| Original { first: n, count: 1 };
        for n in 0..10_000u64 {
            dedup.insert(u128::from(n), original(n), 800, n);
            assert_eq!(
                dedup.find(u128::from(n.saturating_sub(800)), 800, n),
                Some(original(n.saturating_sub(800)))
            );
            if n > 901 {
                assert_eq!(dedup.find(u128::from(n - 901), 800, n), None);
            }
            assert!(dedup.len() <= 1000);
        }
        dedup.shift(1_000_000);
        assert!(dedup.find(9_999, 800, 1_010_000).is_some());
        assert!(dedup.find(9_999, 800, 1_020_000).is_none());
        assert!(dedup.is_empty());
    }
}
