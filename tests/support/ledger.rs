//! What clients were told, and what that allows the broker to do from then on.
//!
//! Every message has a key; its body says the key and can be made again from it, so a delivery is
//! recognised and checked octet by octet. A rule that is broken is noted, never explained away.

use std::collections::HashMap;

use super::Random;

/// Names one message of one test run.
pub type Key = u64;

/// What the publisher knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// No answer, or one that says that the broker does not know.
    Unknown,
    /// Stored under this id.
    Confirmed(u64),
    /// It must never appear.
    Refused,
}

/// What the consumers know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    None,
    /// Sent, not answered.
    Sent,
    /// It must never appear again.
    Confirmed,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    queue: usize,
    publish: Publish,
    ack: Ack,
    /// The id it was delivered under.
    delivered: Option<u64>,
    /// The first key of its batch, which is all or nothing.
    batch: Option<Key>,
}

/// Everything that was sent since the last [`Ledger::settle`].
pub struct Ledger {
    next: Key,
    /// Keys below were all settled: a delivery of one is a fault.
    settled_below: Key,
    entries: HashMap<Key, Entry>,
    faults: Vec<String>,
    pub confirmed: u64,
    pub acked: u64,
    pub unknown: u64,
}

/// The body of a message: its key in front, the rest made from the key.
pub fn body(key: Key) -> Vec<u8> {
    let mut random = Random::new(key);
    let size = match random.below(100) {
        0 => 20_000 + random.below(60_000),
        1..10 => random.below(4_000),
        _ => random.below(200),
    };
    let mut body = key.to_be_bytes().to_vec();
    body.extend_from_slice(&random.bytes(size as usize));
    body
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            next: 1,
            settled_below: 1,
            entries: HashMap::new(),
            faults: Vec::new(),
            confirmed: 0,
            acked: 0,
            unknown: 0,
        }
    }
}

impl Ledger {
    /// Before a publish of `count` messages is sent: the first of their keys, which follow each
    /// other.
    pub fn publishing(&mut self, queue: usize, count: u64) -> Key {
        let first = self.next;
        self.next += count;
        for key in first..self.next {
            let entry = Entry {
                queue,
                publish: Publish::Unknown,
                ack: Ack::None,
                delivered: None,
                batch: (count > 1).then_some(first),
            };
            self.entries.insert(key, entry);
        }
        self.unknown += count;
        first
    }

    /// The answer to a publish of `count` messages from `key` on; `line` as the broker sent it,
    /// `level` as the queue promises. Returns the first id if it was confirmed.
    pub fn published(&mut self, key: Key, count: u64, level: &str, line: &str) -> Option<u64> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words.get(index).and_then(|w: &&str| w.parse::<u64>().ok());
        let receipt = match words[..] {
            ["OK", _, got] if count == 1 => number(1).map(|id| (id, got)),
            ["OK", _, _, got] if count > 1 && number(2) == Some(count) => {
                number(1).map(|id| (id, got))
            }
            ["ERR", "UNKNOWNRESULT", ..] => return None,
            ["ERR", ..] => {
                for key in key..key + count {
                    self.entry(key).publish = Publish::Refused;
                }
                self.unknown -= count;
                return None;
            }
            _ => None,
        };
        match receipt {
            Some((id, got)) if got == level => {
                for n in 0..count {
                    self.confirm(key + n, id + n);
                }
                self.unknown -= count;
                Some(id)
            }
            _ => {
                self.fault(format!(
                    "message {key} got {line:?}, not a receipt at {level}"
                ));
                None
            }
        }
    }

    fn confirm(&mut self, key: Key, id: u64) {
        self.confirmed += 1;
        let entry = self.entry(key);
        entry.publish = Publish::Confirmed(id);
        if let Some(delivered) = entry.delivered
            && delivered != id
        {
            self.fault(format!(
                "message {key} was confirmed as {id}, delivered as {delivered}"
            ));
        }
    }

    /// A delivery: its key, if it is one that may be delivered.
    pub fn delivered(&mut self, queue: usize, id: u64, got: &[u8]) -> Option<Key> {
        let Some(head) = got.first_chunk::<8>() else {
            self.fault(format!("a body of {} octets that nobody sent", got.len()));
            return None;
        };
        let key = Key::from_be_bytes(*head);
        if key < self.settled_below {
            self.fault(format!(
                "message {key} came again long after its confirmed ack"
            ));
            return None;
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            self.fault(format!("message {key} was never sent"));
            return None;
        };
        let was = *entry;
        entry.delivered = Some(id);
        if was.ack == Ack::Sent {
            // It came again, so that ack was not taken.
            entry.ack = Ack::None;
        }
        if was.queue != queue {
            self.fault(format!(
                "message {key} was sent to queue {}, not {queue}",
                was.queue
            ));
        }
        if got != body(key) {
            self.fault(format!("message {key} was delivered with other octets"));
        }
        match was.publish {
            Publish::Refused => self.fault(format!("message {key} was refused, and delivered")),
            Publish::Confirmed(confirmed) if confirmed != id => {
                self.fault(format!(
                    "message {key} confirmed as {confirmed}, delivered as {id}"
                ));
            }
            _ => {}
        }
        if was.delivered.is_some_and(|before| before != id) {
            self.fault(format!(
                "message {key} is stored twice: {:?} and {id}",
                was.delivered
            ));
        }
        if was.ack == Ack::Confirmed {
            self.fault(format!(
                "message {key} was delivered after its confirmed ack"
            ));
            return None;
        }
        Some(key)
    }

    /// Before an ack is sent.
    pub fn acking(&mut self, key: Key) {
        self.entry(key).ack = Ack::Sent;
    }

    /// The ack was confirmed.
    pub fn acked(&mut self, key: Key) {
        self.acked += 1;
        self.entry(key).ack = Ack::Confirmed;
    }

    /// Something that no rule allows.
    pub fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    /// After everything left was delivered and acked: what is missing, what came by halves. From
    /// here on none of these messages may appear.
    pub fn settle(&mut self) {
        let mut batches: HashMap<Key, (u64, u64)> = HashMap::new();
        let mut lost = Vec::new();
        for (key, entry) in &self.entries {
            let confirmed = matches!(entry.publish, Publish::Confirmed(_));
            if confirmed && entry.ack == Ack::None && entry.delivered.is_none() {
                lost.push(format!(
                    "message {key}, confirmed, was never delivered: {entry:?}"
                ));
            } else if confirmed && entry.ack == Ack::None {
                lost.push(format!(
                    "message {key}, confirmed and never acked, is gone: {entry:?}"
                ));
            } else if entry.delivered.is_some() && entry.ack == Ack::None {
                lost.push(format!(
                    "message {key} was delivered and never acked: {entry:?}"
                ));
            }
            if let Some(batch) = entry.batch {
                let (seen, all) = batches.entry(batch).or_default();
                *all += 1;
                *seen += u64::from(entry.delivered.is_some());
            }
        }
        for (batch, (seen, all)) in batches {
            if seen != 0 && seen != all {
                lost.push(format!("batch {batch}: {seen} of {all} messages appeared"));
            }
        }
        lost.sort();
        self.faults.extend(lost);
        self.entries.clear();
        self.settled_below = self.next;
    }

    /// Every fault so far.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// There is no fault so far; otherwise a few of them in words.
    pub fn assert_faultless(&self, when: &str) {
        let few: Vec<&String> = self.faults.iter().take(20).collect();
        assert!(
            few.is_empty(),
            "{} faults {when}, the first: {few:#?}",
            self.faults.len()
        );
    }

    fn entry(&mut self, key: Key) -> &mut Entry {
        self.entries
            .get_mut(&key)
            .expect("asked only for keys it gave out")
    }
}
