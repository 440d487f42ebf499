//! Which messages this client has settled, so that one that comes again is not shown again.

use std::collections::{HashMap, HashSet, VecDeque};

use super::message::Message;

/// One stored message. The time of its publish tells it from one with the same id in a queue that was
/// deleted and made anew, or came back empty from a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: u32,
    id: u64,
    published_ms: u64,
}

/// The messages settled last.
#[derive(Debug)]
pub struct Memory {
    most: usize,
    sources: HashMap<String, u32>,
    keys: HashSet<Key>,
    /// The same, oldest first.
    order: VecDeque<Key>,
}

impl Memory {
    /// Of at most so many messages.
    pub fn new(most: usize) -> Memory {
        Memory {
            most,
            sources: HashMap::new(),
            keys: HashSet::new(),
            order: VecDeque::new(),
        }
    }

    /// This message is settled.
    pub fn insert(&mut self, message: &Message) {
        if !self.sources.contains_key(&message.source) {
            let number = u32::try_from(self.sources.len()).unwrap_or(u32::MAX);
            self.sources.insert(message.source.clone(), number);
        }
        let Some(key) = self.key(message) else {
            return;
        };
        if self.keys.insert(key) {
            self.order.push_back(key);
        }
        if self.order.len() > self.most {
            let oldest = self.order.pop_front();
            oldest.map(|key| self.keys.remove(&key));
        }
    }

    /// Nothing is settled.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.order.clear();
    }

    /// It was settled, and comes again.
    pub fn contains(&self, message: &Message) -> bool {
        self.key(message)
            .is_some_and(|key| self.keys.contains(&key))
    }

    fn key(&self, message: &Message) -> Option<Key> {
        Some(Key {
            source: *self.sources.get(&message.source)?,
            id: message.id()?,
            published_ms: message.published_ms()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(source: &str, handle: &str, published_ms: u64) -> Message {
        Message {
            source: source.to_owned(),
            handle: Some(handle.to_owned()),
            fields: vec![("ts".to_owned(), published_ms.to_string().into_bytes())],
            body: Vec::new(),
        }
    }

    #[test]
    fn a_message_is_known_by_queue_id_and_time() {
        let mut memory = Memory::new(10);
        memory.insert(&message("a", "1.5.1", 100));
        assert!(memory.contains(&message("a", "2.5.9", 100)), "redelivered");
        assert!(!memory.contains(&message("b", "1.5.1", 100)));
        assert!(!memory.contains(&message("a", "1.6.1", 100)));
        assert!(!memory.contains(&message("a", "2.5.1", 101)), "a new queue");
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut memory = Memory::new(2);
        for id in 1..=3 {
            memory.insert(&message("a", &format!("1.{id}.1"), 0));
            memory.insert(&message("a", &format!("1.{id}.2"), 0));
        }
        assert!(!memory.contains(&message("a", "1.1.1", 0)));
        assert!(memory.contains(&message("a", "1.2.1", 0)));
        assert!(memory.contains(&message("a", "1.3.1", 0)));
    }
}
