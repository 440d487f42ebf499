//! What the queues take in memory beside their messages, counted some queues at a time: a walk over a hundred
//! thousand of them would hold everybody else up for milliseconds.

use slab::Slab;

use crate::broker::queue::Queue;

/// Memory of all queues by the last look at each.
#[derive(Debug, Default)]
pub struct Census {
    /// By place in the slab, bytes.
    counted: Vec<usize>,
    total: usize,
    /// The place to go on at.
    next: usize,
}

impl Census {
    /// The sum by the last look at each, bytes.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Looks at `most` places, round after round. Each look is a turn of the queue's index.
    pub fn count(&mut self, queues: &mut Slab<Queue>, most: usize) {
        let places = queues.capacity().max(self.counted.len());
        self.counted.resize(places, 0);
        for _ in 0..most.min(places) {
            if self.next >= places {
                self.next = 0;
            }
            let bytes = match queues.get_mut(self.next) {
                Some(queue) => {
                    queue.index.turn += 1;
                    size_of::<Queue>() + queue.memory()
                }
                None => 0,
            };
            let before = std::mem::replace(&mut self.counted[self.next], bytes);
            self.total = self.total - before + bytes;
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::id::QueueUid;
    use crate::broker::settings::Settings;

    #[test]
    fn what_comes_and_goes_is_counted_round_after_round() {
        let mut queues = Slab::new();
        let mut census = Census::default();
        let queue = || Queue::new(QueueUid(1), b"q", b"q".to_vec(), Settings::default());
        census.count(&mut queues, 10);
        assert_eq!(census.total(), 0);
        let keys: Vec<usize> = (0..100).map(|_| queues.insert(queue())).collect();
        let mut seen = 0;
        for _ in 0..queues.capacity().div_ceil(7) {
            census.count(&mut queues, 7);
            let now = census.total();
            assert!(now >= seen && now - seen <= 7 * 2 * size_of::<Queue>());
            seen = now;
        }
        let one = size_of::<Queue>() + queues[keys[0]].memory();
        assert_eq!(seen, 100 * one);
        for key in &keys[..60] {
            queues.remove(*key);
        }
        census.count(&mut queues, usize::MAX);
        assert_eq!(census.total(), 40 * one);
    }
}
