//! What a queue's settings can have been at a time, as far as clients can know.
//!
//! A change is at work at some moment between the arrival of its command and its answer. So at any
//! time several values may be possible; the oracle judges by the one that is kindest to the
//! broker, and never guesses.

use std::collections::BTreeMap;

use crate::command::{Level, Setting};

/// One change of one key.
#[derive(Clone, Debug)]
struct Change {
    value: Setting,
    /// The earliest moment it may have taken effect.
    from: u64,
    /// Since when nothing more can happen to it: answered, or the broker died.
    done: Option<u64>,
    /// It is known to have taken effect by `done`.
    sure: bool,
    /// The command that asked for it.
    cause: usize,
}

/// The settings of one queue over time.
#[derive(Clone, Debug)]
pub struct Track {
    keys: BTreeMap<usize, Vec<Change>>,
    /// The queue may be made by a dead-letter move, with settings of its own.
    pub dead_target: bool,
}

/// The cause of values that no command asked for.
const NOBODY: usize = usize::MAX;

fn key(setting: &Setting) -> usize {
    match setting {
        Setting::Durable(_) => 0,
        Setting::Lease(_) => 1,
        Setting::MaxDeliver(_) => 2,
        Setting::Dead(_) => 3,
        Setting::DeadOn(..) => 4,
        Setting::Backoff(..) => 5,
        Setting::Dedup(_) => 6,
        Setting::DropOld(_) => 7,
        Setting::MaxLen(_) => 8,
        Setting::MaxBytes(_) => 9,
        Setting::Ttl(_) => 10,
        Setting::Pri(_) => 11,
        Setting::Pause(..) => 12,
        Setting::Fair(_) => 13,
        Setting::Single(_) => 14,
    }
}

/// The settings of a queue that nobody defined, with the level that the broker was started with.
pub fn defaults(queue: &str, level: Level) -> Vec<Setting> {
    vec![
        Setting::Durable(level),
        Setting::Lease(30_000_000),
        Setting::MaxDeliver(5),
        Setting::Dead(format!("{queue}.dead")),
        Setting::DeadOn(true, false, false),
        Setting::Backoff(1_000_000, 300_000_000),
        Setting::Dedup(120_000_000),
        Setting::DropOld(false),
        Setting::MaxLen(u64::MAX),
        Setting::MaxBytes(u64::MAX),
        Setting::Ttl(u64::MAX),
        Setting::Pri(0),
        Setting::Pause(false, false),
        Setting::Fair(false),
        Setting::Single(false),
    ]
}

impl Track {
    /// A queue of this name that has the defaults when it comes to be.
    pub fn new(queue: &str, level: Level) -> Track {
        let mut track = Track {
            keys: BTreeMap::new(),
            dead_target: queue.ends_with(".dead"),
        };
        for value in defaults(queue, level) {
            track.add(value, 0, Some(0), true, NOBODY);
        }
        track
    }

    fn add(&mut self, value: Setting, from: u64, done: Option<u64>, sure: bool, cause: usize) {
        let changes = self.keys.entry(key(&value)).or_default();
        changes.push(Change {
            value,
            from,
            done,
            sure,
            cause,
        });
    }

    /// The command `cause` that asks for these values has arrived.
    pub fn begin(&mut self, values: &[Setting], now: u64, cause: usize) {
        for value in values {
            self.add(value.clone(), now, None, false, cause);
        }
    }

    /// The command is answered: it was done, or refused.
    pub fn end(&mut self, cause: usize, now: u64, done: bool) {
        for changes in self.keys.values_mut() {
            match done {
                true => changes
                    .iter_mut()
                    .filter(|c| c.cause == cause)
                    .for_each(|change| {
                        change.done = Some(now);
                        change.sure = true;
                    }),
                false => changes.retain(|change| change.cause != cause),
            }
        }
    }

    /// The command will never be answered.
    pub fn lose(&mut self, cause: usize, now: u64) {
        for changes in self.keys.values_mut() {
            for change in changes
                .iter_mut()
                .filter(|c| c.cause == cause && c.done.is_none())
            {
                change.done = Some(now);
            }
        }
    }

    /// What the key may have been at some moment between `low` and `high`.
    fn possible(&self, key: usize, low: u64, high: u64) -> impl Iterator<Item = &Setting> {
        let changes = &self.keys[&key];
        changes
            .iter()
            .filter(move |change| {
                let over = |by: &Change| {
                    by.sure
                        && by.done.is_some_and(|done| done <= low)
                        && change.done.is_some_and(|done| done <= by.from)
                        && !std::ptr::eq(by, *change)
                        // Two changes that may have been at once: the later in the list wins
                        // only if it surely came later.
                        && (change.from, change.done) < (by.from, by.done)
                };
                change.from <= high && !changes.iter().any(over)
            })
            .map(|change| &change.value)
    }

    fn numbers(&self, key: usize, low: u64, high: u64) -> Vec<u64> {
        self.possible(key, low, high)
            .map(|value| match value {
                Setting::Lease(n)
                | Setting::MaxDeliver(n)
                | Setting::Dedup(n)
                | Setting::MaxLen(n)
                | Setting::MaxBytes(n)
                | Setting::Ttl(n)
                | Setting::Pri(n) => *n,
                other => unreachable!("{other:?} is no number"),
            })
            .collect()
    }

    fn span(&self, key: usize, low: u64, high: u64) -> (u64, u64) {
        let numbers = self.numbers(key, low, high);
        let least = numbers
            .iter()
            .min()
            .expect("a key has a value from the start");
        (*least, *numbers.iter().max().expect("as above"))
    }

    /// Weakest and strongest possible level.
    pub fn durable(&self, low: u64, high: u64) -> (Level, Level) {
        let levels = || {
            self.possible(0, low, high).map(|value| match value {
                Setting::Durable(level) => *level,
                other => unreachable!("{other:?} is no level"),
            })
        };
        let most = levels().max().expect("a key has a value from the start");
        let least = levels().min().expect("as above");
        (least, if self.dead_target { Level::Disk } else { most })
    }

    /// Shortest and longest possible lease, microseconds.
    pub fn lease(&self, low: u64, high: u64) -> (u64, u64) {
        self.span(1, low, high)
    }

    /// Possible `maxdeliver`s; 0 = no limit.
    pub fn maxdeliver(&self, low: u64, high: u64) -> Vec<u64> {
        let mut numbers = self.numbers(2, low, high);
        if self.dead_target {
            numbers.push(0);
        }
        numbers
    }

    /// Possible dead-letter queues.
    pub fn dead(&self, low: u64, high: u64) -> Vec<String> {
        self.possible(3, low, high)
            .map(|value| match value {
                Setting::Dead(name) => name.clone(),
                other => unreachable!("{other:?} is no name"),
            })
            .collect()
    }

    /// Possible values of `deadon`: (tries, ttl, full).
    pub fn deadon(&self, low: u64, high: u64) -> Vec<(bool, bool, bool)> {
        self.possible(4, low, high)
            .map(|value| match value {
                Setting::DeadOn(tries, ttl, full) => (*tries, *ttl, *full),
                other => unreachable!("{other:?} is not deadon"),
            })
            .collect()
    }

    /// Shortest and longest possible wait after the given failed try, microseconds.
    pub fn backoff(&self, tries: u64, low: u64, high: u64) -> (u64, u64) {
        let waits = || {
            self.possible(5, low, high).map(|value| match value {
                Setting::Backoff(first, most) => {
                    let doubled = u128::from(*first) << (tries.saturating_sub(1)).min(60);
                    doubled.min(u128::from(*most)) as u64
                }
                other => unreachable!("{other:?} is no backoff"),
            })
        };
        let least = waits().min().expect("a key has a value from the start");
        (least, waits().max().expect("as above"))
    }

    /// Shortest and longest possible dedup window, microseconds.
    pub fn dedup(&self, low: u64, high: u64) -> (u64, u64) {
        self.span(6, low, high)
    }

    /// Whether the oldest may be dropped at a limit.
    pub fn may_drop(&self, low: u64, high: u64) -> bool {
        self.possible(7, low, high)
            .any(|value| *value == Setting::DropOld(true))
    }

    /// Smallest and largest possible `maxlen`.
    pub fn maxlen(&self, low: u64, high: u64) -> (u64, u64) {
        self.span(8, low, high)
    }

    /// Smallest and largest possible `maxbytes`.
    pub fn maxbytes(&self, low: u64, high: u64) -> (u64, u64) {
        self.span(9, low, high)
    }

    /// Smallest and largest possible `ttl` of the queue, microseconds.
    pub fn ttl(&self, low: u64, high: u64) -> (u64, u64) {
        self.span(10, low, high)
    }

    /// Lowest and highest possible default priority.
    pub fn pri(&self, low: u64, high: u64) -> (u64, u64) {
        self.span(11, low, high)
    }

    /// Whether publishes may be shut out.
    pub fn may_pause_in(&self, low: u64, high: u64) -> bool {
        let shut = |value: &Setting| matches!(value, Setting::Pause(true, _));
        self.possible(12, low, high).any(shut)
    }

    /// Whether nothing may be handed out.
    pub fn may_pause_out(&self, low: u64, high: u64) -> bool {
        let shut = |value: &Setting| matches!(value, Setting::Pause(_, true));
        self.possible(12, low, high).any(shut)
    }

    /// Whether surely nothing is handed out.
    pub fn surely_paused_out(&self, low: u64, high: u64) -> bool {
        let shut = |value: &Setting| matches!(value, Setting::Pause(_, true));
        self.possible(12, low, high).all(shut)
    }

    /// Whether keys may have turns.
    pub fn may_be_fair(&self, low: u64, high: u64) -> bool {
        let fair = |value: &Setting| *value == Setting::Fair(true);
        self.possible(13, low, high).any(fair)
    }

    /// Whether there is surely one consumer at a time.
    pub fn surely_single(&self, low: u64, high: u64) -> bool {
        let single = |value: &Setting| *value == Setting::Single(true);
        self.possible(14, low, high).all(single)
    }

    /// Since when it is sure that any consumer may be served, if it is now.
    pub fn shared_since(&self, now: u64) -> Option<u64> {
        let single = |value: &Setting| *value == Setting::Single(true);
        if self.possible(14, now, now).any(single) {
            return None;
        }
        let last = self.keys[&14].iter().filter(|change| change.from <= now);
        last.filter_map(|change| change.done).max()
    }

    /// Since when it is sure that messages are handed out, if it is now.
    pub fn open_since(&self, now: u64) -> Option<u64> {
        if self.may_pause_out(now, now) {
            return None;
        }
        let last = self.keys[&12].iter().filter(|change| change.from <= now);
        last.filter_map(|change| change.done).max()
    }
}

#[test]
fn a_change_is_possible_from_its_arrival_and_sure_from_its_answer() {
    let mut track = Track::new("q", Level::Disk);
    track.begin(&[Setting::Lease(5)], 100, 1);
    assert_eq!(track.lease(50, 99), (30_000_000, 30_000_000));
    assert_eq!(track.lease(50, 100), (5, 30_000_000));
    track.end(1, 200, true);
    assert_eq!(track.lease(150, 300), (5, 30_000_000));
    assert_eq!(track.lease(200, 300), (5, 5));
    track.begin(&[Setting::Lease(7)], 300, 2);
    track.lose(2, 400);
    assert_eq!(
        track.lease(500, 600),
        (5, 7),
        "nobody knows whether it was done"
    );
    track.begin(&[Setting::Lease(9)], 700, 3);
    track.end(3, 700, true);
    assert_eq!(track.lease(700, 700), (9, 9));
    track.begin(&[Setting::Lease(1)], 800, 4);
    track.end(4, 900, false);
    assert_eq!(track.lease(1000, 1000), (9, 9), "it was refused");
}
