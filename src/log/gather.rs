//! When the next sync begins: at once, or when those who were answered by the last one are back.
//!
//! Who publishes and waits for the receipt before publishing again, or has filled a window, comes back
//! soon after a sync has ended. If the next sync begins at that moment, it takes along only those who
//! wrote while the last one ran, and those who were just answered wait for the rest of it and then for one of
//! their own: publishers fall into two halves, each sync is for half of them, and each message waits for
//! two. When they are *gathered*, the next sync waits until as many entries are there as were not
//! durable when the last one ended, which is when everybody is back, and at most 1.5 times as long
//! as that sync took.
//!
//! That gains rate and latency where publishers wait for receipts and come back faster than a sync. It only
//! makes them wait where they publish by a clock of their own, or come back late, or where what they send
//! takes as long to be read as a sync. So it is tried, and what is seen decides. It has failed when they were not back in
//! time, when more came while the sync ran although everybody was thought to wait for it, or when
//! fewer entries became durable in a time than without it; then the next 16, 32 ... 2,048 syncs follow each other at once,
//! as [`super::syncs`] tells, before it is tried again.
//!
//! Only the decision is made here, from counts and times that it is told. What never waits, whatever is decided
//! here, [`super::write`] knows.

use crate::fault::{Fault, planted};

/// The longest wait, microseconds: publishers that are further away are not waited for.
const WAIT_US_MAX: u64 = 2_000;
/// Syncs that follow each other at once after a failure; twice as many after the next one, and so on.
const APART: u32 = 16;
/// After so many failures more than successes it is not tried more rarely.
const FAILURES_MAX: u32 = 7;
/// After so many successes in a row one failure does not count.
const ROW_MIN: u32 = 8;
/// What may come while a gathered sync runs, as a part of what it covers.
const LATE_PART: u64 = 8;
/// So many syncs after a change from one way to the other say nothing of the pace.
const SETTLING: u32 = 4;
/// Syncs that a pace is remembered for, and those that make it known.
const PACE_SYNCS: u32 = 32;
const PACE_SYNCS_MIN: u32 = 8;
/// Gathered syncs must be so much faster: 21 entries in the time of 20.
const GAIN: (u128, u128) = (21, 20);
/// After so many gathered syncs in a row some follow each other at once, that their pace stays known.
const ROW_MAX: u32 = 1024;

/// How many entries became durable in how long.
#[derive(Debug, Default)]
struct Pace {
    entries: u64,
    us: u64,
    syncs: u32,
}

impl Pace {
    fn add(&mut self, entries: u64, us: u64) {
        if self.syncs == PACE_SYNCS {
            self.entries -= self.entries / u64::from(PACE_SYNCS);
            self.us -= self.us / u64::from(PACE_SYNCS);
        } else {
            self.syncs += 1;
        }
        self.entries += entries;
        self.us += us;
    }

    /// Is this faster than the other, by enough? `None` = that is not known yet.
    fn is_gain(&self, other: &Pace) -> Option<bool> {
        let is_known = self.syncs.min(other.syncs) >= PACE_SYNCS_MIN;
        let own = u128::from(self.entries) * u128::from(other.us);
        let others = u128::from(other.entries) * u128::from(self.us);
        is_known.then_some(own * GAIN.1 >= others * GAIN.0)
    }
}

/// Entries are counted from when the log was opened.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    /// Publishers are never gathered.
    is_off: bool,
    /// So many syncs follow each other at once before publishers are gathered again; 0 = they are.
    apart: u32,
    /// Failures, less successes.
    failures: u32,
    /// Successes since the last failure.
    row: u32,
    /// Syncs that follow each other at once, and others since the last failure.
    pace_apart: Pace,
    pace_gathered: Pace,
    /// When the last sync ended, whether it was one that follows others at once, and how many were of
    /// its kind before it.
    ended_us: u64,
    ended_apart: bool,
    same: u32,
    /// Entries that are durable, and those that were before the last sync.
    durable: u64,
    durable_before: u64,
    /// The next sync waits for this many entries ...
    goal: u64,
    /// ... until this time, microseconds; 0 = it has passed.
    until_us: u64,
    /// Something has waited for the goal since the last sync ended.
    waited: bool,
    /// The sync under way began when everybody was back.
    is_gathered: bool,
}

impl Gather {
    /// So many first syncs follow each other at once; `None` = all of them do.
    pub fn after(apart: Option<u32>) -> Gather {
        Gather {
            is_off: apart.is_none(),
            apart: apart.unwrap_or(0),
            ..Gather::default()
        }
    }

    /// Publishers are gathered now: a sync may have to wait.
    #[inline]
    pub fn is_on(&self) -> bool {
        !self.is_off && self.apart == 0
    }

    /// A sync that is wanted now waits: `entries` there are, a sync is `under_way` or not.
    pub fn waits(&mut self, entries: u64, under_way: bool, now_us: u64) -> bool {
        if !self.is_on() {
            return false;
        }
        let in_time = now_us < self.until_us || planted(Fault::GoneWaitedFor);
        let waits = entries < self.goal && in_time;
        self.waited |= waits && !under_way;
        waits || under_way
    }

    /// When what waits is to be synced, whoever is missing.
    pub fn deadline_us(&self) -> Option<u64> {
        (self.waited && self.until_us > 0).then_some(self.until_us)
    }

    /// That time has come.
    pub fn expire(&mut self) {
        self.until_us = 0;
    }

    /// A sync begins with so many entries there. `hurried` = it would have whoever is missing. True if it has waited in
    /// vain.
    pub fn begin(&mut self, entries: u64, hurried: bool) -> bool {
        if !std::mem::take(&mut self.waited) {
            return false;
        }
        self.is_gathered = entries >= self.goal;
        // What was cut short says nothing.
        let in_vain = !self.is_gathered && !hurried;
        if in_vain {
            self.fail();
        }
        in_vain
    }

    /// A sync that took so long has made `durable` entries durable, of `entries` that are there. True if
    /// it had waited for them all.
    pub fn end(&mut self, durable: u64, entries: u64, took_us: u64, now_us: u64) -> bool {
        self.durable_before = std::mem::replace(&mut self.durable, durable);
        let count = durable - self.durable_before;
        self.measure(count, took_us, now_us);
        let gathered = std::mem::take(&mut self.is_gathered);
        if self.is_on() {
            let is_late = (entries - durable) * LATE_PART > count;
            match self.pace_gathered.is_gain(&self.pace_apart) {
                Some(false) => self.fail(),
                _ if gathered && is_late => self.fail(),
                is_gain if gathered => self.succeed(is_gain.is_some()),
                _ => {}
            }
        } else {
            self.apart = self.apart.saturating_sub(1);
        }
        self.goal = durable + (entries - self.durable_before);
        self.until_us = now_us + (took_us + took_us / 2).min(WAIT_US_MAX);
        gathered
    }

    /// What a sync did, in the time since the one before, unless nobody wanted one for a while or it was of
    /// the other kind.
    fn measure(&mut self, count: u64, took_us: u64, now_us: u64) {
        let us = now_us - std::mem::replace(&mut self.ended_us, now_us);
        let is_apart = !self.is_on();
        match std::mem::replace(&mut self.ended_apart, is_apart) == is_apart {
            true => self.same = self.same.saturating_add(1),
            false => self.same = 0,
        }
        if self.same >= SETTLING && us <= 3 * took_us {
            match is_apart {
                true => self.pace_apart.add(count, us),
                false => self.pace_gathered.add(count, us),
            }
        }
    }

    fn fail(&mut self) {
        if std::mem::take(&mut self.row) < ROW_MIN {
            self.apart = APART << self.failures;
            self.failures = (self.failures + 1).min(FAILURES_MAX);
            // The next try is judged by what is seen then.
            self.pace_gathered = Pace::default();
        }
    }

    fn succeed(&mut self, is_sure: bool) {
        self.failures = self.failures.saturating_sub(u32::from(is_sure));
        self.row += 1;
        if self.row == ROW_MAX {
            self.row = 0;
            self.apart = APART;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So long takes a sync here, microseconds.
    const SYNC_US: u64 = 100;

    /// Publishers that have so many messages on the way together, and a sync that another may follow.
    struct Publishers {
        gather: Gather,
        now_us: u64,
        there: u64,
        durable: u64,
        way_back: u64,
        read_at: u64,
        /// When the sync under way ends, and what it covers.
        running: Option<(u64, u64)>,
    }

    /// What a second brought.
    #[derive(Debug)]
    struct Second {
        /// Messages that became durable.
        durable: u64,
        /// The mean time that one took, microseconds.
        took_us: u64,
        gathered: u64,
        in_vain: u64,
    }

    impl Publishers {
        fn new(window: u64, after: Option<u32>) -> Publishers {
            Publishers {
                gather: Gather::after(after),
                now_us: 0,
                there: 0,
                durable: 0,
                way_back: window,
                read_at: 0,
                running: None,
            }
        }

        /// Lets them publish for a second, each message of which takes so long to come back and to be read,
        /// microseconds.
        fn publish(&mut self, read_us: u64) -> Second {
            let before = self.durable;
            let (mut waited_us, mut gathered, mut in_vain) = (0, 0, 0);
            for now_us in self.now_us..self.now_us + 1_000_000 {
                waited_us += self.there - self.durable;
                if let Some((ends_us, covers)) = self.running
                    && ends_us == now_us
                {
                    self.running = None;
                    gathered += u64::from(self.gather.end(covers, self.there, SYNC_US, now_us));
                    if self.way_back == 0 {
                        self.read_at = now_us + read_us;
                    }
                    self.way_back += covers - std::mem::replace(&mut self.durable, covers);
                }
                if self.way_back > 0 && self.read_at <= now_us {
                    self.there += 1;
                    self.way_back -= 1;
                    self.read_at += read_us;
                }
                if self.gather.deadline_us() == Some(now_us) {
                    self.gather.expire();
                }
                let (there, is_running) = (self.there, self.running.is_some());
                let is_wanted = there > self.durable;
                if is_wanted && !self.gather.waits(there, is_running, now_us) && !is_running {
                    in_vain += u64::from(self.gather.begin(there, false));
                    self.running = Some((now_us + SYNC_US, there));
                }
            }
            self.now_us += 1_000_000;
            let durable = self.durable - before;
            Second {
                durable,
                took_us: waited_us / durable.max(1),
                gathered,
                in_vain,
            }
        }
    }

    fn publish(window: u64, read_us: u64) -> Second {
        Publishers::new(window, Some(APART)).publish(read_us)
    }

    fn publish_at_once(window: u64, read_us: u64) -> Second {
        Publishers::new(window, None).publish(read_us)
    }

    #[test]
    fn who_is_alone_is_never_waited_for() {
        let (second, at_once) = (publish(1, 30), publish_at_once(1, 30));
        assert_eq!((second.durable, second.gathered), (at_once.durable, 0));
        assert_eq!(second.took_us, at_once.took_us);
    }

    #[test]
    fn two_halves_become_one_whole_where_they_come_back_soon() {
        for window in [2, 4, 16, 50] {
            let (second, at_once) = (publish(window, 1), publish_at_once(window, 1));
            assert!(
                second.durable * 10 > at_once.durable * 12,
                "{second:?} {at_once:?}"
            );
            assert!(second.took_us < at_once.took_us, "{second:?} {at_once:?}");
            assert!(second.gathered > 6000, "{second:?}");
            assert_eq!((at_once.gathered, at_once.in_vain), (0, 0));
        }
    }

    #[test]
    fn it_is_not_kept_up_where_nothing_is_gained() {
        for (window, read_us) in [(16, 5), (16, 8), (16, 10), (4, 30), (100, 1), (2, 200)] {
            let (second, at_once) = (publish(window, read_us), publish_at_once(window, read_us));
            assert!(
                second.durable * 100 >= at_once.durable * 97,
                "{window} on the way, {read_us} us: {second:?} {at_once:?}"
            );
        }
    }

    #[test]
    fn what_was_no_gain_is_tried_again_and_kept_up_once_it_is_one() {
        let mut publishers = Publishers::new(16, Some(APART));
        for _ in 0..2 {
            let late = publishers.publish(10);
            let tried = late.gathered + late.in_vain;
            assert!((1..1000).contains(&tried), "{late:?}");
        }
        // They come back at once from now on: found out at the next try.
        let _ = publishers.publish(1);
        let soon = publishers.publish(1);
        assert!(soon.gathered > 6000, "{soon:?}");
        let _ = publishers.publish(10);
        let late = publishers.publish(10);
        assert!(late.gathered + late.in_vain < 1000, "{late:?}");
    }

    /// A sync of 8 entries has ended at 100 us, in 100 us; everybody will be back with the 16th.
    fn answered_eight() -> Gather {
        let mut gather = Gather::after(Some(0));
        assert!(!gather.begin(8, false));
        assert!(!gather.end(8, 8, 100, 100));
        gather
    }

    #[test]
    fn the_sync_begins_with_the_last_one_who_is_back() {
        let mut gather = answered_eight();
        assert!(gather.waits(15, false, 200) && gather.deadline_us() == Some(250));
        assert!(!gather.waits(16, false, 210));
        assert!(!gather.begin(16, false) && gather.deadline_us().is_none());
        assert!(gather.waits(17, true, 220), "not while one runs");
        assert!(gather.end(16, 16, 100, 310));
        assert!(gather.waits(20, false, 320), "and the next one waits again");
    }

    #[test]
    fn who_does_not_come_back_is_not_waited_for() {
        let mut gather = answered_eight();
        assert!(gather.waits(12, false, 200));
        assert_eq!(gather.deadline_us(), Some(250));
        assert!(!gather.waits(12, false, 250), "one and a half syncs");
        assert!(gather.begin(12, false));
        assert!(!gather.waits(13, true, 260) && !gather.waits(13, false, 260));
        // Nor tried often: after 16 syncs, and then 32, 64 ... 2,048.
        let mut tries = Vec::new();
        for n in 0..6_200 {
            let now_us = 1000 * (n + 1);
            gather.end(12 + n, 16 + n, 100, now_us);
            if gather.waits(16 + n, false, now_us) {
                tries.push(n);
            }
            assert!(!gather.waits(16 + n, false, now_us + 150));
            gather.begin(16 + n, false);
        }
        let between: Vec<u64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(tries[0], 15);
        assert_eq!(between, [32, 64, 128, 256, 512, 1024, 2048, 2048]);
    }

    #[test]
    fn a_wait_that_was_cut_short_is_no_failure() {
        let mut gather = answered_eight();
        assert!(gather.waits(12, false, 200));
        assert!(!gather.begin(12, true), "somebody asked for it");
        assert!(gather.deadline_us().is_none());
        assert!(!gather.end(12, 12, 100, 300), "not everybody was there");
        assert!(gather.waits(13, false, 310));
    }

    #[test]
    fn who_publishes_by_the_clock_is_not_gathered() {
        // One every 20 us.
        let mut gather = Gather::after(Some(APART));
        let (mut now_us, mut gathered) = (0, 0);
        let there = |now_us: u64| now_us / 20;
        for _ in 0..10_000 {
            while gather.waits(there(now_us), false, now_us) {
                now_us += 1;
            }
            let begun = there(now_us);
            gather.begin(begun, false);
            now_us += SYNC_US;
            gathered += u64::from(gather.end(begun, there(now_us), SYNC_US, now_us));
        }
        assert!((5..100).contains(&gathered), "{gathered}");
    }

    #[test]
    fn nobody_waits_long_for_what_a_slow_sync_answered() {
        let mut gather = Gather::after(Some(0));
        gather.begin(8, false);
        gather.end(8, 8, 1_000_000, 0);
        assert!(gather.waits(9, false, WAIT_US_MAX - 1));
        assert!(!gather.waits(9, false, WAIT_US_MAX));
    }

    #[test]
    fn what_expired_is_not_due_again() {
        let mut gather = answered_eight();
        assert!(gather.waits(9, false, 110) && gather.deadline_us() == Some(250));
        gather.expire();
        assert!(!gather.waits(9, false, 120) && gather.deadline_us().is_none());
    }
}
