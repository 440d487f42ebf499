//! Schedules: messages that a queue gets again and again. When each is due, and how one is written down;
//! never a clock.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::id::QueueUid;
use super::varint;

/// Most schedules of one queue.
pub const SCHEDULES_MAX: usize = 1000;
/// Largest message of a schedule, bytes with its key, headers and the like: it is in memory and in every
/// checkpoint.
pub const SCHEDULE_BYTES_MAX: usize = 64 << 10;
/// Shortest time between two messages of a schedule, microseconds.
pub const EVERY_US_MIN: u64 = 10_000;
/// Memory of a schedule beside its message and name, bytes.
const ENTRY_BYTES: usize = 256;
/// Version of a definition's encoding.
const VERSION: u64 = 1;

/// What is published, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Octets of its `once=`, its name in its queue.
    pub name: Box<[u8]>,
    /// Between two messages, microseconds.
    pub every_us: u64,
    /// Time to live of each message, microseconds.
    pub ttl_us: Option<u64>,
    /// Priority of each; the queue's when absent.
    pub pri: Option<u8>,
    /// Key, headers and the like, as the log keeps them.
    pub sections: Box<[u8]>,
    /// The body of each.
    pub body: Bytes,
}

impl Schedule {
    /// Appends the octets that the log and checkpoints keep.
    pub fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, VERSION);
        varint::put(out, self.every_us);
        varint::put(out, self.ttl_us.map_or(0, |ttl_us| ttl_us + 1));
        varint::put(out, self.pri.map_or(0, |pri| u64::from(pri) + 1));
        for octets in [&self.name, &self.sections] {
            varint::put(out, octets.len() as u64);
            out.extend_from_slice(octets);
        }
        out.extend_from_slice(&self.body);
    }

    /// Reads what [`Schedule::encode`] has written; `None` if it makes no sense.
    pub fn decode(octets: &[u8]) -> Option<Schedule> {
        let mut rest = octets;
        if number(&mut rest)? != VERSION {
            return None;
        }
        let every_us = number(&mut rest)?;
        let ttl_us = number(&mut rest)?.checked_sub(1);
        let pri = match number(&mut rest)?.checked_sub(1) {
            None => None,
            Some(pri) => Some(u8::try_from(pri).ok()?),
        };
        let mut part = || {
            let length = usize::try_from(number(&mut rest)?).ok()?;
            let (part, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(part.into())
        };
        let (name, sections) = (part()?, part()?);
        Some(Schedule {
            name,
            every_us: Some(every_us).filter(|every_us| *every_us > 0)?,
            ttl_us,
            pri,
            sections,
            body: Bytes::copy_from_slice(rest),
        })
    }

    fn memory(&self) -> usize {
        ENTRY_BYTES + 2 * self.name.len() + self.sections.len() + self.body.len()
    }
}

/// A number of seven bits an octet, low ones first.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (octet, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(octet & 0x7f) << shift;
        if *octet < 0x80 {
            return Some(number);
        }
    }
    None
}

/// A schedule and when it is due.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What.
    pub schedule: Schedule,
    /// When its next message is due, unix microseconds.
    pub next_us: u64,
    /// When that is tried: then, or later if it was refused.
    attempt_us: u64,
}

/// The schedules of all queues, each known by a number that is never used again.
#[derive(Debug)]
pub struct Schedules {
    planned: BTreeMap<(QueueUid, u64), Planned>,
    names: BTreeMap<(QueueUid, Box<[u8]>), u64>,
    due: BTreeSet<(u64, QueueUid, u64)>,
    /// The number of the next one.
    pub next_number: u64,
    /// Memory held, bytes.
    bytes: usize,
    /// Nothing is due any more.
    is_stopped: bool,
}

impl Default for Schedules {
    fn default() -> Schedules {
        Schedules {
            planned: BTreeMap::new(),
            names: BTreeMap::new(),
            due: BTreeSet::new(),
            next_number: 1,
            bytes: 0,
            is_stopped: false,
        }
    }
}

impl Schedules {
    /// There is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.planned.is_empty()
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.bytes
    }

    /// The number of a queue's schedule of that name (octets).
    pub fn find(&self, queue: QueueUid, name: &[u8]) -> Option<u64> {
        self.names.get(&(queue, Box::from(name))).copied()
    }

    /// A schedule by its number.
    pub fn get(&self, queue: QueueUid, number: u64) -> Option<&Planned> {
        self.planned.get(&(queue, number))
    }

    /// Those of one queue, by number.
    pub fn of(&self, queue: QueueUid) -> impl Iterator<Item = (u64, &Planned)> {
        let range = (queue, 0)..=(queue, u64::MAX);
        let planned = self.planned.range(range);
        planned.map(|((_, number), planned)| (*number, planned))
    }

    /// All of them, by queue and number.
    pub fn iter(&self) -> impl Iterator<Item = (QueueUid, u64, &Planned)> {
        let planned = self.planned.iter();
        planned.map(|((queue, number), planned)| (*queue, *number, planned))
    }

    /// Puts a schedule in its place, or another one in the place of that number.
    pub fn insert(&mut self, queue: QueueUid, number: u64, schedule: Schedule, next_us: u64) {
        self.remove(queue, number);
        self.next_number = self.next_number.max(number + 1);
        self.bytes += schedule.memory();
        self.names.insert((queue, schedule.name.clone()), number);
        if !self.is_stopped {
            self.due.insert((next_us, queue, number));
        }
        let planned = Planned {
            schedule,
            next_us,
            attempt_us: next_us,
        };
        self.planned.insert((queue, number), planned);
    }

    /// A schedule ends; false if there is none.
    pub fn remove(&mut self, queue: QueueUid, number: u64) -> bool {
        let Some(planned) = self.planned.remove(&(queue, number)) else {
            return false;
        };
        self.bytes -= planned.schedule.memory();
        self.due.remove(&(planned.attempt_us, queue, number));
        self.names.remove(&(queue, planned.schedule.name));
        true
    }

    /// A queue is deleted, its schedules with it.
    pub fn remove_all(&mut self, queue: QueueUid) {
        let numbers: Vec<u64> = self.of(queue).map(|(number, _)| number).collect();
        for number in numbers {
            self.remove(queue, number);
        }
    }

    /// The broker is going down: nothing is due any more.
    pub fn stop(&mut self) {
        self.is_stopped = true;
        self.due.clear();
    }

    /// When the next message is to be tried, unix microseconds.
    #[inline]
    pub fn next_us(&self) -> Option<u64> {
        self.due.first().map(|(at_us, ..)| *at_us)
    }

    /// The schedule that is due first, if one is.
    pub fn first_due(&self, now_us: u64) -> Option<(QueueUid, u64)> {
        let (at_us, queue, number) = self.due.first()?;
        (*at_us <= now_us).then_some((*queue, *number))
    }

    /// Its message could not be published: to be tried again then.
    pub fn postpone(&mut self, queue: QueueUid, number: u64, until_us: u64) {
        let next_us = self.get(queue, number).map(|planned| planned.next_us);
        if let Some(next_us) = next_us {
            self.plan(queue, number, next_us, until_us);
        }
    }

    /// Its message was published: the next is due then.
    pub fn advance(&mut self, queue: QueueUid, number: u64, next_us: u64) {
        self.plan(queue, number, next_us, next_us);
    }

    fn plan(&mut self, queue: QueueUid, number: u64, next_us: u64, attempt_us: u64) {
        if let Some(planned) = self.planned.get_mut(&(queue, number)) {
            self.due.remove(&(planned.attempt_us, queue, number));
            if !self.is_stopped {
                self.due.insert((attempt_us, queue, number));
            }
            planned.next_us = next_us;
            planned.attempt_us = attempt_us;
        }
    }
}

impl Planned {
    /// When the message after one that is published now is due: the next of the times that are whole
    /// intervals from when this one was. However many have passed, it is one message.
    pub fn following_us(&self, now_us: u64) -> u64 {
        let every_us = self.schedule.every_us;
        let passed = now_us.saturating_sub(self.next_us) / every_us;
        self.next_us
            .saturating_add(every_us.saturating_mul(passed + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(name: &[u8], every_us: u64) -> Schedule {
        Schedule {
            name: name.into(),
            every_us,
            ttl_us: Some(0),
            pri: Some(255),
            sections: b"abc"[..].into(),
            body: Bytes::from_static(b"\0body"),
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut octets = Vec::new();
        schedule(b"a name", 5).encode(&mut octets);
        assert_eq!(Schedule::decode(&octets), Some(schedule(b"a name", 5)));
        let body = schedule(b"a name", 5).body.len();
        for end in 0..octets.len() - body {
            assert_eq!(Schedule::decode(&octets[..end]), None, "{end}");
        }
        octets[0] = 2;
        assert_eq!(Schedule::decode(&octets), None);
        let mut never = Vec::new();
        schedule(b"", 0).encode(&mut never);
        assert_eq!(Schedule::decode(&never), None);
    }

    #[test]
    fn missed_times_are_one() {
        let planned = Planned {
            schedule: schedule(b"x", 100),
            next_us: 1000,
            attempt_us: 1000,
        };
        for (now_us, next_us) in [
            (1000, 1100),
            (1099, 1100),
            (1100, 1200),
            (5050, 5100),
            (10, 1100),
        ] {
            assert_eq!(planned.following_us(now_us), next_us, "at {now_us}");
        }
    }

    #[test]
    fn the_first_that_is_due_comes_first() {
        let (one, two) = (QueueUid(1), QueueUid(2));
        let mut schedules = Schedules::default();
        schedules.insert(one, 1, schedule(b"a", 10), 100);
        schedules.insert(two, 2, schedule(b"a", 10), 50);
        assert_eq!(
            (schedules.find(two, b"a"), schedules.find(one, b"b")),
            (Some(2), None)
        );
        assert_eq!(
            (schedules.next_us(), schedules.first_due(49)),
            (Some(50), None)
        );
        assert_eq!(schedules.first_due(50), Some((two, 2)));
        schedules.postpone(two, 2, 200);
        assert_eq!(schedules.first_due(150), Some((one, 1)));
        assert_eq!(
            schedules.get(two, 2).map(|planned| planned.next_us),
            Some(50)
        );
        schedules.advance(one, 1, 300);
        assert_eq!(schedules.first_due(250), Some((two, 2)));
        schedules.insert(two, 2, schedule(b"b", 10), 400);
        assert_eq!(
            (schedules.find(two, b"a"), schedules.find(two, b"b")),
            (None, Some(2))
        );
        schedules.remove_all(one);
        assert_eq!(schedules.next_us(), Some(400));
        assert!(schedules.remove(two, 2) && !schedules.remove(two, 2));
        assert!(schedules.is_empty() && schedules.memory() == 0 && schedules.next_us().is_none());
        assert_eq!(schedules.next_number, 3);
        schedules.insert(one, 3, schedule(b"a", 10), 100);
        schedules.stop();
        schedules.insert(one, 4, schedule(b"b", 10), 100);
        assert_eq!(
            (schedules.first_due(1000), schedules.of(one).count()),
            (None, 2)
        );
    }
}
