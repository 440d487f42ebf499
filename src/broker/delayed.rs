//! Messages that are not ready before their time, by time and by id.
//!
//! Knows ids, times and priorities; never a message. An entry takes 64 bytes at most: 16 in a tree whose nodes
//! are half full when times come in order, and 16 in a table that is 7/16 full after it has grown.

use std::collections::{BTreeSet, HashMap};

use super::id::MessageId;

/// Latest time that is kept, microseconds since the unix epoch: in the year 4253. What is due later is due then.
const DUE_US_MAX: u64 = (1 << 56) - 1;

/// Memory of one entry, estimated, bytes.
const ENTRY_BYTES: usize = 64;

/// When a message is due, and its priority in the low octet.
#[derive(Clone, Copy, Debug)]
struct Due(u64);

impl Due {
    fn new(due_us: u64, pri: u8) -> Due {
        Due(due_us.min(DUE_US_MAX) << 8 | u64::from(pri))
    }

    fn us(self) -> u64 {
        self.0 >> 8
    }

    fn pri(self) -> u8 {
        self.0 as u8
    }
}

/// The delayed messages of one queue.
#[derive(Debug, Default)]
pub struct Delayed {
    by_time: BTreeSet<(u64, MessageId)>,
    by_id: HashMap<MessageId, Due, foldhash::fast::FixedState>,
}

impl Delayed {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.by_time.is_empty()
    }

    /// Memory held, estimated, bytes.
    pub fn memory(&self) -> usize {
        self.len() * ENTRY_BYTES
    }

    /// A message is due then, microseconds; it has no time yet.
    pub fn insert(&mut self, id: MessageId, due_us: u64, pri: u8) {
        let due = Due::new(due_us, pri);
        self.by_time.insert((due.us(), id));
        self.by_id.insert(id, due);
    }

    /// Takes a message away; when it was due, microseconds, and its priority.
    pub fn remove(&mut self, id: MessageId) -> Option<(u64, u8)> {
        let due = self.by_id.remove(&id)?;
        self.by_time.remove(&(due.us(), id));
        Some((due.us(), due.pri()))
    }

    /// When a message is due, microseconds, and its priority.
    pub fn get(&self, id: MessageId) -> Option<(u64, u8)> {
        self.by_id.get(&id).map(|due| (due.us(), due.pri()))
    }

    /// Is it delayed?
    pub fn contains(&self, id: MessageId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// When the first is due, microseconds.
    pub fn first_us(&self) -> Option<u64> {
        self.by_time.first().map(|(due_us, _)| *due_us)
    }

    /// Takes the first one that is due; with its priority.
    pub fn pop_due(&mut self, now_us: u64) -> Option<(MessageId, u8)> {
        let (due_us, id) = *self.by_time.first()?;
        if due_us > now_us {
            return None;
        }
        let (_, pri) = self.remove(id).expect("it is in both");
        Some((id, pri))
    }

    /// Messages by time: when each is due, microseconds, its id, its priority.
    pub fn iter(&self) -> impl Iterator<Item = (u64, MessageId, u8)> {
        self.by_time.iter().map(|(due_us, id)| {
            let due = self.by_id.get(id).expect("it is in both");
            (*due_us, *id, due.pri())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_priorities_are_kept() {
        let mut delayed = Delayed::default();
        for (id, due_us, pri) in [(1, 50, 3), (2, 40, 255), (3, u64::MAX, 0), (4, 40, 1)] {
            delayed.insert(id, due_us, pri);
        }
        assert_eq!(delayed.get(3), Some((DUE_US_MAX, 0)));
        assert_eq!(delayed.pop_due(39), None);
        assert_eq!(delayed.pop_due(45), Some((2, 255)));
        assert_eq!(delayed.remove(4), Some((40, 1)));
        assert_eq!((delayed.remove(4), delayed.contains(4)), (None, false));
        assert_eq!(delayed.first_us(), Some(50));
        assert_eq!(delayed.pop_due(50), Some((1, 3)));
        assert!(delayed.iter().eq([(DUE_US_MAX, 3, 0)]));
        assert_eq!(delayed.remove(3), Some((DUE_US_MAX, 0)));
        assert!(delayed.is_empty() && delayed.by_id.is_empty());
    }
}
