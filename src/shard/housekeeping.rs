//! The end of a turn, and what is done now and then: deadlines, the log's events, memory, checkpoints.

use super::conn::{Blocked, Life, Unseen};
use super::engine::Return;
use super::failure::{DISK_FAILED, NO_SPACE, answer_failed, answer_stalled};
use super::peers::{CLOSED, CLOSING};
use super::{ConnKey, Ending, Now, Shard, Stop};
use crate::broker::index::Slot;
use crate::broker::reply::ErrorCode;
use crate::buffer::bodies;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{BlockSlot, Event, Position};

/// Leases ended by their deadline in one turn at most.
const TURN_EXPIRIES: usize = 4096;
/// How often memory is counted and index blocks are looked at, microseconds.
const MEMORY_INTERVAL_US: u64 = 100_000;
/// Queues whose memory is counted anew each time.
const COUNTED_QUEUES: usize = 4096;
/// How often stalled connections are looked for, microseconds.
const STALL_INTERVAL_US: u64 = 1_000_000;
/// A log without space for what it has taken on is waited for so long, microseconds.
const STALLED_US_MAX: u64 = 1_000_000;
/// A shutdown waits so long until what was sent to several shards is done, microseconds.
const CLOSING_US_MAX: u64 = 1_000_000;
/// Index blocks unused for so many memory checks are spilled first.
const COLD_TURNS: u64 = 8;
/// Those used within so many stay however short memory is: who waits for a message may need its block and its body, which
/// are read one after the other, and neither may go while the other comes.
const HOT_TURNS: u64 = 4;

/// When the shard last did what it does now and then.
#[derive(Debug)]
pub(super) struct Housekeeping {
    /// When memory is counted next, microseconds; only while there is traffic.
    memory_due_us: u64,
    /// Memory beside the messages, as last counted, bytes.
    other_bytes: usize,
    /// When stalled connections are looked for, microseconds; `u64::MAX` = none is in a frame.
    stalls_due_us: u64,
    /// Something happened since memory was counted.
    busy: bool,
    /// A long task goes on in the next turn.
    again: bool,
    /// A shutdown has let every connection run what it had sent.
    closing: bool,
    /// When that was, microseconds.
    closing_us: u64,
    /// Until when the rest of it waits for other shards, microseconds; `u64::MAX` = it does not.
    closing_until_us: u64,
    /// A shutdown has begun to close the log.
    closed_log: bool,
}

impl Housekeeping {
    pub(super) fn new(now: Now) -> Housekeeping {
        Housekeeping {
            memory_due_us: now.us + MEMORY_INTERVAL_US,
            other_bytes: 0,
            stalls_due_us: u64::MAX,
            busy: false,
            again: false,
            closing: false,
            closing_us: 0,
            closing_until_us: u64::MAX,
            closed_log: false,
        }
    }

    /// The next turn begins at once.
    pub(super) fn look_again(&mut self) {
        self.again = true;
    }

    pub(super) fn watch_stalls(&mut self, now: Now, stall_us: u64) {
        if self.stalls_due_us == u64::MAX {
            self.stalls_due_us = now.us + STALL_INTERVAL_US.min(stall_us);
        }
    }
}

impl<S: Storage> Shard<S> {
    /// The storage has finished something, a deadline passed, or input was handled: commit,
    /// apply, expire, deliver.
    pub fn handle_turn_end(&mut self, now: Now) {
        self.housekeeping.again = false;
        self.engine.times.now_us = now.us;
        self.resume_conns(now);
        if self.peers.is_some() {
            self.decide_pulls(now);
        }
        self.take_log_events(now);
        if self.peers.is_some() {
            self.go_on_committing(now);
        }
        self.expire_leases(now);
        if !self.is_starting() {
            self.engine.handle_timers(now);
        }
        self.keep_up_amqp(now);
        self.end_waits(now);
        self.end_requests(now);
        self.ask_due(now);
        self.housekeeping.again |= self.engine.drain_doomed();
        self.housekeeping.again |= self.engine.free_unwanted(now);
        // Two rounds: what is visible is handed out before the commit, so that what that settles is in
        // this turn's record; what the commit makes visible is handed out after it.
        self.dispatch_all(now);
        self.commit(now);
        self.apply(now);
        self.dispatch_all(now);
        self.commit(now);
        self.now_and_then(now);
        self.go_on_draining(now);
        self.go_on_ending(now);
        if self.peers.is_some() {
            self.exchange(now);
        }
    }

    /// The loop's last turn took so long, microseconds, from the end of its sleep.
    #[inline]
    pub fn handle_turn_measured(&mut self, took_us: u64) {
        self.engine.times.turn_us.add(took_us);
    }

    fn dispatch_all(&mut self, now: Now) {
        for _ in 0..self.engine.runnable.len() {
            let Some(key) = self.engine.runnable.pop_front() else {
                break;
            };
            if !self.engine.queues.contains(key.0 as usize) {
                continue;
            }
            self.engine.queue_mut(key).scheduled = false;
            self.dispatch(key, now);
            self.engine.drop_ghost(key);
        }
    }

    fn commit(&mut self, now: Now) {
        self.engine.before_commit();
        let sync = std::mem::take(&mut self.engine.sync_wanted);
        let Some(log) = &mut self.engine.log else {
            return;
        };
        if sync || !log.is_empty_turn() {
            self.housekeeping.busy = true;
            log.commit(now.us, sync);
        }
        if self.failed.is_none() {
            self.check_failure();
        }
    }

    /// Makes visible what has reached its level, and lets out what waited for it.
    fn apply(&mut self, now: Now) {
        if self.failed.is_some() {
            return;
        }
        self.engine.apply_reached();
        if self.gated.is_empty() {
            return;
        }
        let mut gated = std::mem::take(&mut self.gated);
        gated.retain(|key| {
            let Some(slot) = self.slot(*key) else {
                return false;
            };
            let engine = &self.engine;
            let conn = &mut self.conns[slot];
            let late_from = conn.open_gates(|need| engine.reached(need));
            if let Blocked::Log(need) = conn.blocked
                && engine.reached(need)
            {
                conn.blocked = Blocked::No;
                self.resume(slot);
            }
            if let Some(serial) = late_from {
                self.begin_late_leases(slot, serial, now);
            }
            if self.conns[slot].has_confirms() {
                self.flush_confirms(slot);
            }
            let conn = &mut self.conns[slot];
            let waits = matches!(conn.blocked, Blocked::Log(_)) || conn.has_confirms();
            let stays = conn.is_gated() || waits;
            conn.gate_listed = stays;
            self.mark_dirty(slot);
            if !stays && self.conns[slot].life == Life::HalfClosed {
                self.resume(slot);
            }
            stays
        });
        gated.append(&mut self.gated);
        self.gated = gated;
    }

    /// Runs the kept commands of connections that are no longer held up.
    fn resume_conns(&mut self, now: Now) {
        self.turn += 1;
        if std::mem::take(&mut self.goes_on) {
            for key in std::mem::take(&mut self.cold) {
                self.unblock_cold(key);
            }
        }
        for _ in 0..self.resuming.len() {
            let Some(key) = self.resuming.pop_front() else {
                break;
            };
            let Some(slot) = self.slot(key) else { continue };
            self.conns[slot].resuming = false;
            if self.conns[slot].blocked == Blocked::No {
                if !self.conns[slot].tail.is_empty() {
                    // It may not have been read while it was held up: its time to go on counts from here.
                    self.conns[slot].heard_us = now.us;
                }
                self.run_input(slot, now);
            }
            self.after_run(slot, now);
            if let Some(slot) = self.slot(key)
                && self.conns[slot].blocked == Blocked::No
            {
                self.read_again(slot);
            }
        }
    }

    fn take_log_events(&mut self, now: Now) {
        let mut fetched = false;
        while let Some(log) = &mut self.engine.log
            && let Some(event) = log.poll(now.us)
        {
            match event {
                Event::Durable(_) | Event::CheckpointDone => {}
                Event::Fetched(_) | Event::Room => fetched = true,
                Event::BlockLoaded { slot, result } => match result {
                    Ok(column) => {
                        self.engine.handle_block(slot, &column);
                        fetched = true;
                    }
                    Err(what) => {
                        self.fail(format!("an index block cannot be read back: {what}"));
                        return;
                    }
                },
                Event::Compacted { moves, damaged } => {
                    for (uid, id, _) in damaged {
                        ::log::error!(
                            "message {id} of queue {} is damaged on the disk and is kept back",
                            uid.0
                        );
                    }
                    self.relocate(moves);
                }
                Event::Failed => self.check_failure(),
            }
        }
        self.apply(now);
        if fetched {
            self.engine.handle_fetched(now);
            for key in std::mem::take(&mut self.cold) {
                self.unblock_cold(key);
            }
        }
        if let Some(log) = &mut self.engine.log
            && log.deadline_us().is_some_and(|due_us| due_us <= now.us)
        {
            log.handle_deadline(now.us);
            let is_stalled = log.stalled_us(now.us) >= STALLED_US_MAX;
            self.check_failure();
            if is_stalled && self.failed.is_none() {
                self.answer_stalled(now);
            }
        }
    }

    /// The next command of that connection goes on.
    pub(super) fn unblock_cold(&mut self, key: ConnKey) {
        if let Some(slot) = self.slot(key)
            && self.conns[slot].blocked == Blocked::Cold
        {
            self.conns[slot].blocked = Blocked::No;
            self.resume(slot);
        } else if self.peers.is_some() {
            self.read_own_again(key);
        }
    }

    fn relocate(&mut self, moves: Vec<(crate::broker::id::QueueUid, u64, Position, Position)>) {
        self.engine.relocate_moving(&moves);
        for (uid, id, old, new) in moves {
            let live = self
                .engine
                .find_uid(uid)
                .filter(|key| self.engine.queue(*key).index.is_live(id));
            if let Some(key) = live {
                self.engine.queue_mut(key).index.relocate(id, new.0);
                for reader in self.engine.readers(key) {
                    if self.engine.queue(reader).leased() > 0 {
                        self.engine.leases.relocate(reader, id, new.0);
                        self.relocate_prepared(reader, id, new.0);
                    }
                }
            }
            let log = self
                .engine
                .log
                .as_mut()
                .expect("a compaction comes from the log");
            // Settled meanwhile, it was freed at its old place: only the copy is left to free.
            log.freed(if live.is_some() { old } else { new });
        }
    }

    fn expire_leases(&mut self, now: Now) {
        for _ in 0..TURN_EXPIRIES {
            let Some((deadline_us, serial)) = self.engine.leases.first_deadline() else {
                return;
            };
            if deadline_us > now.us {
                return;
            }
            if self.postpone_unsent(serial, now) {
                continue;
            }
            let lease = self.engine.leases.end(serial).expect("it is in the lists");
            self.tell_expired(&lease);
            self.credit_returned(lease.holder);
            if planted(Fault::ExpiryLost) && lease.serial.is_multiple_of(4) {
                continue;
            }
            self.engine.give_back(&lease, Return::Lost, b"", now);
        }
        self.housekeeping.again = true;
    }

    /// A lease whose delivery the broker itself holds back, behind an answer that waits for the log,
    /// does not run. True if this is one.
    fn postpone_unsent(&mut self, serial: u64, now: Now) -> bool {
        let leases = &mut self.engine.leases;
        let holder = leases.get(serial).expect("it is in the lists").holder;
        let Some(slot) = self.conn_of_holder(holder) else {
            return false;
        };
        if !self.conns[slot].is_held_back(serial) {
            return false;
        }
        self.conns[slot].is_late = true;
        let leases = &mut self.engine.leases;
        let lease_us = leases.duration_us(serial).expect("it has a deadline");
        leases.touch(serial, now.us, lease_us)
    }

    /// The gate before deliveries whose deadline had passed has opened: their leases begin now.
    fn begin_late_leases(&mut self, slot: usize, from: u64, now: Now) {
        self.conns[slot].is_late = self.conns[slot].is_gated();
        let conn = &self.conns[slot];
        let waiters = conn
            .rare
            .waits
            .iter()
            .filter_map(|wait| self.waiters.holder_of(wait.waiter));
        let holders: Vec<_> = waiters.chain([conn.holder]).collect();
        let leases = &mut self.engine.leases;
        for holder in holders {
            let serials: Vec<u64> = leases
                .of_holder(holder)
                .filter(|serial| *serial >= from)
                .collect();
            for serial in serials {
                if let Some(lease_us) = leases.duration_us(serial) {
                    leases.touch(serial, now.us, lease_us);
                }
            }
        }
    }

    fn check_failure(&mut self) {
        if let Some(log) = &self.engine.log
            && let Some(failure) = log.failure()
        {
            let text = failure.to_string();
            self.fail(text);
        }
    }

    /// The disk cannot be trusted any more: who waits is told that the result is unknown, and the process stops.
    pub(super) fn fail(&mut self, text: String) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(text);
        let slots: Vec<usize> = self.conns.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let conn = &self.conns[slot];
            if !conn.session.is_text() && (conn.is_gated()) {
                self.conns[slot].take_gated();
                self.answer_unknown(slot, DISK_FAILED);
                // Such a connection is told once, whatever it waits for.
                self.forget_requests(slot);
            } else {
                self.rewrite_gated(slot, answer_failed);
                self.end_pulls(slot);
                // Consumers are about to go because the broker does, not of themselves.
                self.doubt_requests(slot);
            }
            self.conns[slot].life = Life::Closing;
            self.mark_dirty(slot);
        }
    }

    /// Output that waits for the log waits no longer and says something else. What other shards know of places
    /// in it stays true.
    fn rewrite_gated(&mut self, slot: usize, rewrite: fn(&mut Vec<u8>, &[u8])) {
        let conn = &mut self.conns[slot];
        let gated = conn.take_gated();
        if gated.is_empty() {
            return;
        }
        let start = conn.out.end();
        let (mut at, mut moved) = (0, Vec::new());
        for mark in conn.marks_behind(start) {
            let until = (mark - start) as usize;
            rewrite(conn.out.writer(&mut self.pool), &gated[at..until]);
            at = until;
            moved.push(conn.out.end());
        }
        rewrite(conn.out.writer(&mut self.pool), &gated[at..]);
        conn.move_marks(start, &moved);
    }

    /// The log finds no space for what it has taken on: nobody waits for that any longer.
    fn answer_stalled(&mut self, now: Now) {
        self.stall_captured();
        for key in std::mem::take(&mut self.gated) {
            let Some(slot) = self.slot(key) else { continue };
            let conn = &mut self.conns[slot];
            conn.gate_listed = false;
            conn.published = Unseen::default();
            let late_from = conn.late_from();
            let conn = &self.conns[slot];
            if !conn.session.is_text() && (conn.is_gated() || conn.has_confirms()) {
                self.conns[slot].take_gated();
                self.answer_unknown(slot, NO_SPACE);
            } else {
                self.rewrite_gated(slot, answer_stalled);
            }
            let conn = &mut self.conns[slot];
            if let Blocked::Log(_) = conn.blocked {
                conn.blocked = Blocked::No;
            }
            if let Some(serial) = late_from {
                self.begin_late_leases(slot, serial, now);
            }
            self.mark_dirty(slot);
            self.resume(slot);
        }
    }

    fn now_and_then(&mut self, now: Now) {
        if now.us >= self.housekeeping.stalls_due_us {
            self.close_stalled(now);
        }
        let messages = self.engine.message_memory();
        if messages + self.housekeeping.other_bytes > self.memory_budget_bytes
            || now.us >= self.housekeeping.memory_due_us
        {
            self.count_memory(now);
        }
        self.checkpoint_if_due();
        self.compact_if_due();
    }

    /// Counts memory; makes room where something can be read again from the disk.
    fn count_memory(&mut self, now: Now) {
        self.housekeeping.memory_due_us = now.us + MEMORY_INTERVAL_US;
        self.housekeeping.busy = false;
        self.ahead.clear();
        bodies::trim_if_idle();
        let budget = self.memory_budget_bytes;
        let conns: usize = self.conns.iter().map(|(_, conn)| conn.memory()).sum();
        let mut buffers = conns + self.pool.bytes() + self.requests.memory() + self.live.memory();
        let mut used = self.engine.count_memory(COUNTED_QUEUES) + buffers;
        if used > budget - budget / 8 {
            // What nobody uses goes first, and perhaps nothing else has to.
            buffers -= self.pool.bytes();
            used -= self.pool.bytes();
            self.pool.trim();
        }
        if used > budget - budget / 8 {
            self.engine.pool.trim();
            self.spill_blocks(COLD_TURNS);
            let others = self.engine.count_memory(usize::MAX) + buffers
                - self.engine.log.as_ref().map_or(0, |log| log.memory());
            if let Some(log) = &mut self.engine.log {
                log.trim((budget - budget / 4).saturating_sub(others));
            }
            used = self.engine.memory() + buffers;
            if used > budget {
                self.spill_blocks(HOT_TURNS);
                used = self.engine.count_memory(usize::MAX) + buffers;
            }
        }
        self.housekeeping.other_bytes = used - self.engine.message_memory();
        self.engine.over_budget = used > budget;
        if !self.engine.over_budget {
            self.feed_starved();
        }
    }

    /// Is there memory for so many bytes of output? Then they are counted as used.
    pub(super) fn has_memory(&mut self, bytes: usize, now: Now) -> bool {
        let is_over = |shard: &Shard<S>| {
            let other = shard.housekeeping.other_bytes.saturating_add(bytes);
            shard.engine.over_budget
                || shard.engine.message_memory().saturating_add(other) > shard.memory_budget_bytes
        };
        if !self.engine.over_budget && is_over(self) {
            self.count_memory(now);
        }
        self.housekeeping.busy = true;
        if is_over(self) {
            return false;
        }
        self.housekeeping.other_bytes += bytes;
        true
    }

    /// Stores full index blocks away and drops their columns when they were not used for a while.
    fn spill_blocks(&mut self, idle: u64) {
        self.save_blocks();
        for (_, queue) in &mut self.engine.queues {
            queue.index.evict(idle);
        }
    }

    /// Hands every full index block that has no slot to the log.
    pub(super) fn save_blocks(&mut self) {
        let Some(log) = &mut self.engine.log else {
            return;
        };
        for (_, queue) in &mut self.engine.queues {
            if queue.settings.durable == crate::broker::id::Level::None {
                continue;
            }
            let unsaved: Vec<_> = queue.index.unsaved().collect();
            for (number, column) in unsaved {
                let slot: BlockSlot = log.spill(queue.uid, number, column);
                queue.index.saved(number, Slot(u64::from(slot.0)));
            }
        }
    }

    fn compact_if_due(&mut self) {
        let Some(log) = &mut self.engine.log else {
            return;
        };
        let Some(range) = log.compaction_due() else {
            return;
        };
        let mut live = Vec::new();
        for (_, queue) in &self.engine.queues {
            if !queue.exists || queue.settings.durable == crate::broker::id::Level::None {
                continue;
            }
            match queue.index.live_between(range.start.0, range.end.0) {
                Ok(found) => {
                    live.extend(
                        found
                            .into_iter()
                            .map(|(id, place)| (queue.uid, id, Position(place))),
                    );
                }
                Err(slot) => {
                    // Ask again when the column is in memory.
                    log.load(BlockSlot(slot.0 as u32));
                    return;
                }
            }
        }
        log.compact(range, live);
    }

    fn close_stalled(&mut self, now: Now) {
        self.housekeeping.stalls_due_us = u64::MAX;
        let mut watched = false;
        let mut stalled = Vec::new();
        for (slot, conn) in &self.conns {
            // Who was held up, and is run next, may be in the middle of nothing.
            let is_held_up = conn.blocked != Blocked::No || conn.resuming;
            if conn.life != Life::Open || is_held_up || !conn.in_frame() {
                continue;
            }
            watched = true;
            if conn.heard_us.saturating_add(self.limits.stall_us) <= now.us
                && conn.out.len() < self.limits.send_bytes_max
            {
                stalled.push(slot);
            }
        }
        if watched {
            self.housekeeping.watch_stalls(now, self.limits.stall_us);
        }
        for slot in stalled {
            let error = crate::broker::reply::Error::new(
                ErrorCode::Proto,
                "the rest of the command did not come in time; the connection is closed",
            );
            self.answer_error(slot, None, &error);
            self.conns[slot].life = Life::Closing;
            self.after_close(slot, now);
        }
    }

    pub(super) fn after_close(&mut self, slot: usize, now: Now) {
        self.mark_dirty(slot);
        self.settle_life(slot, now);
    }

    /// The earliest deadline, on the clock of `Now::us`; `None` = no need to wake.
    pub fn poll_timeout(&self) -> Option<u64> {
        let busy = self.housekeeping.again
            || self.goes_on
            || !self.resuming.is_empty()
            || !self.engine.runnable.is_empty()
            || !self.readable.is_empty()
            || !self.asking.is_empty()
            || self.has_unwritten()
            || self.peers.as_ref().is_some_and(|peers| peers.is_busy())
            || (!self.housekeeping.closed_log && self.engine.outbox.is_due());
        if busy {
            return Some(0);
        }
        let lease = self.engine.leases.first_deadline().map(|(at_us, _)| at_us);
        let log = self.engine.log.as_ref().and_then(|log| log.deadline_us());
        let stalls = Some(self.housekeeping.stalls_due_us).filter(|at_us| *at_us != u64::MAX);
        let memory = (self.housekeeping.busy || self.engine.over_budget)
            .then_some(self.housekeeping.memory_due_us);
        [
            lease,
            log,
            stalls,
            memory,
            self.engine.next_timer_us().filter(|_| !self.is_starting()),
            self.waiters.next_deadline_us(),
            self.requests.next_deadline_us(),
            self.amqp.next_us(),
            self.drained_at_us(),
            Some(self.housekeeping.closing_until_us).filter(|at_us| *at_us != u64::MAX),
            self.ask_again.front().map(|(at_us, _)| *at_us),
        ]
        .into_iter()
        .flatten()
        .min()
        // Some wait for ever, and some leases have no end.
        .filter(|at_us| *at_us != u64::MAX)
    }

    /// Something happened after the turn's end (a connection went, and its leases with it) that must
    /// still be written.
    fn has_unwritten(&self) -> bool {
        self.engine.sync_wanted
            || self
                .engine
                .log
                .as_ref()
                .is_some_and(|log| !log.is_empty_turn())
    }

    /// SIGTERM: take nothing new, flush, sync, answer the waiters, then `poll_stopped` says so.
    pub fn handle_shutdown(&mut self, now: Now) {
        if self.ending != Ending::No {
            return;
        }
        self.ending = Ending::Closing;
        self.announce_ending();
        self.engine.schedules.stop();
        let slots: Vec<usize> = self.conns.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            if self.conns[slot].life == Life::Open {
                self.conns[slot].life = Life::HalfClosed;
            }
            self.drain_requests(slot);
        }
        self.end_all_interests(now);
        self.close_all_amqp(false, now);
    }

    /// Nothing more is logged.
    pub(super) fn is_log_closed(&self) -> bool {
        self.housekeeping.closed_log || self.ending == Ending::Done
    }

    /// Moves a shutdown on: first everybody gets what is due, then leases go back and the log is closed.
    fn go_on_ending(&mut self, now: Now) {
        if let Some(text) = &self.failed {
            if self.ending != Ending::Done {
                self.ending = Ending::Done;
                self.stop = Some(Stop::Failed(text.clone()));
            }
            return;
        }
        if self.ending != Ending::Closing {
            return;
        }
        if self.peers.is_none() && self.engine.log.is_none() {
            self.ending = Ending::Done;
            self.stop = Some(Stop::Finished);
            return;
        }
        if !self.housekeeping.closing {
            self.housekeeping.closing = true;
            self.housekeeping.closing_us = now.us;
            let slots: Vec<usize> = self.conns.iter().map(|(slot, _)| slot).collect();
            for slot in slots {
                self.resume(slot);
            }
            self.housekeeping.again = true;
            return;
        }
        // What was sent is passed on, and what was taken for good brought to its end, if that is soon.
        let until_us = self.housekeeping.closing_us + CLOSING_US_MAX;
        if self.close_all_amqp(now.us >= until_us, now) {
            // What that gives back is logged first.
            self.housekeeping.again = true;
            return;
        }
        if now.us < until_us && self.has_to_pass_on() {
            self.housekeeping.closing_until_us = until_us;
            return;
        }
        self.housekeeping.closing_until_us = u64::MAX;
        if !self.all_ending(CLOSING) {
            return;
        }
        if let Some(log) = &mut self.engine.log {
            if !self.housekeeping.closed_log {
                self.housekeeping.closed_log = true;
                log.close(now.us);
            }
            if !log.is_closed() {
                return;
            }
        }
        if self.all_ending(CLOSED) {
            self.ending = Ending::Done;
            self.stop = Some(Stop::Finished);
        }
    }
}
