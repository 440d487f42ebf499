//! What a `PULL` of queues on several shards has at one of them: it looks, waits in the lines of the queues, keeps a
//! message when its turn comes, and takes. See `pull`.

use super::Letter;
use crate::broker::command::{PullOptions, Sources};
use crate::broker::lease::NewLease;
use crate::broker::queue::{QueueKey, WaiterKey};
use crate::broker::reply::Error;
use crate::log::disk::Storage;
use crate::shard::consume::Cold;
use crate::shard::door::Pop;
use crate::shard::drain::draining;
use crate::shard::engine::{Next, Return};
use crate::shard::hand_out::Stopped;
use crate::shard::waiters::{FOREVER_US, Offer, Taking, Terms, Waiter, Watch};
use crate::shard::{ConnKey, Now, Shard};

/// So long a message is kept for a pull that has been offered it, microseconds.
const OFFER_US: u64 = 100_000;

/// What is asked for at one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which of the connection's pulls.
    pub pull: u64,
    /// Which part of it.
    pub part: u32,
    /// Its sources as typed.
    pub sources: Box<[u8]>,
    /// Without the `@`; untagged when empty.
    pub tag: Box<[u8]>,
    /// How; `count` and `bytes_max` are what is left.
    pub options: PullOptions,
    /// What it gives.
    pub wanted: Wanted,
}

/// What a part of a pull gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Messages, as `PULL`.
    Messages,
    /// What a pop of lists is answered.
    Pop(Pop),
    /// Entries of streams, which are read as a command of their own.
    Streams,
}

/// What a shard that was asked to look has found.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing is ready.
    Nothing,
    /// Something may be.
    Ready,
    /// It may not.
    Refused(Error),
    /// The same, because of something that was there when it looked.
    Gone(Error),
}

/// What was given at one shard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    /// Messages.
    pub count: u32,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Nothing, but the next one is being read from the disk.
    pub cold: bool,
}

impl<S: Storage> Shard<S> {
    /// Puts a watch into the lines of these queues. True if something is ready for it, behind who came before.
    pub(super) fn watch(
        &mut self,
        slot: usize,
        pull: u64,
        part: u32,
        sources: Vec<QueueKey>,
        is_stream: bool,
        now: Now,
    ) -> bool {
        let watch = Watch {
            conn: self.key(slot),
            pull,
            part,
            sources: sources.clone(),
            is_stream,
            offer: Offer::None,
            deadline_us: FOREVER_US,
            serial: self.waiters.next_serial(),
        };
        let key = self.waiters.add_across(Waiter::Watch(watch));
        if let Some(watches) = self.conns[slot].watches_mut() {
            watches.push(key);
        }
        for source in &sources {
            self.engine.queue_mut(*source).waiters.push_back(key);
        }
        for source in &sources {
            self.dispatch(*source, now);
        }
        let at = self.key(slot);
        sources.iter().any(|source| {
            let queue = self.engine.queue(*source);
            queue.ready() > 0 && !queue.settings.pause.output && self.may_consume(*source, at)
        }) || self
            .waiters
            .watch(key)
            .is_some_and(|it| it.offer != Offer::None)
    }

    /// A watch's turn has come: a message is kept for its pull.
    pub(in crate::shard) fn serve_watch(
        &mut self,
        key: WaiterKey,
        queue: QueueKey,
        now: Now,
    ) -> Stopped {
        let Some(watch) = self.waiters.watch(key) else {
            return Stopped::Enough;
        };
        let (at, pull, part) = (watch.conn, watch.pull, watch.part);
        let has_offered = watch.offer != Offer::None;
        let line = &mut self.engine.queue_mut(queue).waiters;
        if has_offered {
            if line.front() == Some(&key) {
                line.rotate_left(1);
            }
            return Stopped::Passed;
        }
        let taken = match self.engine.take_next(queue, now) {
            Next::Taken(taken) => taken,
            Next::Empty => return Stopped::Empty,
            Next::Cold => return Stopped::Cold,
        };
        let slot = at.slot as usize;
        let stored = self.engine.stored_beside_queue(queue, taken.place);
        let (_, message) = stored
            .expect("a taken message is in memory")
            .expect("a taken message was checked");
        let size = message.body.as_slice().len() as u32;
        let new = NewLease {
            id: taken.id,
            place: taken.place,
            queue,
            holder: self.conns[slot].holder,
            size,
            tries: taken.tries,
            pri: taken.pri,
        };
        let serial = self.engine.leases.begin(new, now.us, None);
        if let Some(watch) = self.waiters.watch(key) {
            watch.offer = Offer::Kept(serial);
            watch.deadline_us = now.us.saturating_add(OFFER_US);
        }
        self.waiters.deadline_changed(key);
        let line = &mut self.engine.queue_mut(queue).waiters;
        if line.front() == Some(&key) {
            line.rotate_left(1);
        }
        self.tell_offer(slot, pull, part);
        Stopped::Enough
    }

    /// Tells the home of a pull that a part has something.
    fn tell_offer(&mut self, slot: usize, pull: u64, part: u32) {
        match &self.conns[slot].guest {
            Some(guest) => {
                let (to, conn) = guest.home;
                self.mail().post(to, Letter::Offered { conn, pull, part });
            }
            None => self.offered(slot, pull, part),
        }
    }

    /// A message was kept too long: it goes back. The pull is told nothing, and may still take what there is then.
    pub(in crate::shard) fn offer_due(&mut self, key: WaiterKey, now: Now) {
        self.return_offer(key, now);
    }

    /// What is kept for a pull goes back, and counts as no try. The watch is passed by until the pull has asked.
    pub(super) fn return_offer(&mut self, key: WaiterKey, now: Now) {
        let Some(watch) = self.waiters.watch(key) else {
            return;
        };
        watch.deadline_us = FOREVER_US;
        let Offer::Kept(serial) = watch.offer else {
            return;
        };
        watch.offer = Offer::Late;
        if let Some(lease) = self.engine.leases.end(serial) {
            let counters = &mut self.engine.queue_mut(lease.queue).counters;
            counters.delivered -= 1;
            counters.redelivered -= u64::from(lease.tries > 1);
            self.engine.give_back(&lease, Return::Unsent, b"", now);
        }
    }

    /// The group that a reader of streams waits for goes: its home is told.
    pub(in crate::shard) fn refuse_watch(&mut self, key: WaiterKey, error: &Error) {
        let Some(watch) = self.waiters.watch(key) else {
            return;
        };
        if !watch.is_stream {
            return;
        }
        let (slot, pull, part) = (watch.conn.slot as usize, watch.pull, watch.part);
        let found = Found::Gone(error.clone());
        match &self.conns[slot].guest {
            Some(guest) => {
                let (to, conn) = guest.home;
                let letter = Letter::Looked {
                    conn,
                    pull,
                    part,
                    found,
                };
                self.mail().post(to, letter);
            }
            None => self.looked(slot, pull, part, found),
        }
    }

    /// A connection's watches go: those of one pull, or all.
    pub(in crate::shard) fn drop_watches(&mut self, slot: usize, pull: Option<u64>, now: Now) {
        for key in self.conns[slot].watches().to_vec() {
            let watch = self.waiters.watch(key);
            if watch.is_some_and(|watch| pull.is_none_or(|pull| watch.pull == pull)) {
                self.drop_watch(slot, key, now);
            }
        }
    }

    pub(super) fn drop_watch(&mut self, slot: usize, key: WaiterKey, now: Now) {
        self.return_offer(key, now);
        if let Some(watches) = self.conns[slot].watches_mut() {
            watches.retain(|other| *other != key);
        }
        if let Some(Waiter::Watch(watch)) = self.waiters.slab.try_remove(key.0 as usize) {
            self.waiters.pull_gone();
            for source in watch.sources {
                self.leave_line(source, key);
            }
        }
    }

    /// A guest is asked to look; `false` if it cannot be now.
    pub(super) fn look(&mut self, slot: usize, look: &Part, now: Now) -> bool {
        if self.wait_for_publishes(slot) {
            return false;
        }
        let opened = match self.is_draining() {
            true => Err(draining()),
            false => {
                let sources = Sources(&look.sources);
                self.open_part(slot, sources, &look.options, look.wanted, now)
            }
        };
        let found = match opened {
            Ok(Some(keys)) => {
                let is_stream = look.wanted == Wanted::Streams;
                match self.watch(slot, look.pull, look.part, keys, is_stream, now) {
                    true => Found::Ready,
                    false => Found::Nothing,
                }
            }
            Ok(None) => return false,
            Err(error) => {
                self.totals.count_error(error.code);
                Found::Refused(error)
            }
        };
        let (to, conn) = self.guest_home(slot);
        let letter = Letter::Looked {
            conn,
            pull: look.pull,
            part: look.part,
            found,
        };
        self.mail().post(to, letter);
        true
    }

    /// A guest gives what is there; its home is told how much that was.
    pub(super) fn take_for_home(&mut self, slot: usize, take: &Part, now: Now) {
        let given = self.take_part(slot, take, now);
        let (to, conn) = self.guest_home(slot);
        let letter = Letter::Taken {
            conn,
            pull: take.pull,
            given,
        };
        self.mail().post(to, letter);
    }

    fn guest_home(&self, slot: usize) -> (u32, ConnKey) {
        let guest = self.conns[slot].guest.as_ref();
        guest.expect("only guests are asked by mail").home
    }

    /// Gives what is there for a part of a pull.
    pub(super) fn take_part(&mut self, slot: usize, take: &Part, now: Now) -> Given {
        let keys = self.conns[slot].watches().to_vec();
        let is_it = |watch: &Watch| watch.pull == take.pull && watch.part == take.part;
        let mut keys = keys.into_iter();
        let key = keys.find(|key| self.waiters.watch(*key).is_some_and(|it| is_it(it)));
        // It went with a drain, or as the peer ended its side.
        let Some(key) = key.filter(|_| !self.is_draining()) else {
            return Given::default();
        };
        let watch = self.waiters.watch(key).expect("it was just found");
        let (sources, offer) = (watch.sources.clone(), watch.offer);
        self.return_offer(key, now);
        if !matches!(offer, Offer::Kept(_)) {
            // Those who came before are served first.
            if let Some(watch) = self.waiters.watch(key) {
                watch.offer = Offer::Late;
            }
            for source in &sources {
                self.dispatch(*source, now);
            }
        }
        let options = &take.options;
        let given = match take.wanted {
            Wanted::Pop(pop) => self.give_pop(slot, &sources, options, pop, now),
            Wanted::Messages | Wanted::Streams => {
                let terms = Terms::of_pull(options, Taking::default(), self.conns[slot].holder);
                let bytes_max = options.bytes_max.unwrap_or(u64::MAX).max(1);
                let (from, most) = (sources.iter().copied(), options.count);
                self.give(slot, &take.tag, from, &terms, None, most, bytes_max, now)
            }
        };
        let given = match given {
            Ok((count, bytes)) => Given {
                count,
                bytes,
                cold: false,
            },
            Err(Cold) => Given {
                cold: true,
                ..Given::default()
            },
        };
        if given.count > 0 {
            self.end_holding(slot);
            self.mark_dirty(slot);
            self.drop_watch(slot, key, now);
        } else {
            if let Some(watch) = self.waiters.watch(key) {
                watch.offer = Offer::None;
            }
            for source in sources {
                self.engine.schedule(source);
            }
        }
        given
    }
}
