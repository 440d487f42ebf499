//! Transactions: whether all of one can be done is found out first, without changing anything; then all
//! of it is done, in one record of the log, and nothing of it can fail any more.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use foldhash::fast::FixedState;

use super::super::Now;
use super::super::deaths::{self, DEATH_BYTES_MAX};
use super::publish::{
    Dropped, begin_many, full, once_hash, out_of_memory, paused, stronger_than_stored, too_fast,
};
use super::{Damaged, Engine, Receipt, Refused};
use crate::broker::arena::is_request;
use crate::broker::command::{Body, PublishOptions};
use crate::broker::dedup::OnceHash;
use crate::broker::id::{Handle, Level, MessageId, QueueUid};
use crate::broker::queue::{Published, Queue, QueueKey};
use crate::broker::reply::{Error, ErrorCode};
use crate::broker::settings::{Settings, WhenFull};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{
    DEFINE_HEAD_BYTES_MAX, LogIndex, PUBLISH_HEAD_BYTES_MAX, RELEASE_BYTES_MAX, SETTLE_BYTES_MAX,
    Sections, TRANSFER_HEAD_BYTES_MAX, TransferReason,
};

/// Bytes of a record beyond what its entries are known to take at most, and rows of its table.
pub(super) const SPARE_BYTES: usize = 256;
pub(super) const SPARE_ROWS: usize = 2;
/// What the trace of a move to the dead-letter queue adds to a message at most, beside the names and the
/// reason in it, bytes.
pub(super) const TRACE_BYTES_MAX: usize = 1 << 10;

/// Messages that a transaction moves to other queues, read ahead: sections and body.
pub type Bodies = BTreeMap<(QueueUid, MessageId), (Vec<u8>, Bytes)>;

/// What a transaction does to one queue.
#[derive(Debug, Default)]
struct Share {
    /// `None`: it is to be made.
    key: Option<QueueKey>,
    /// Messages published to it, and the bytes of their bodies.
    count: u32,
    body_bytes: u64,
    /// Messages of it that are acked, and their bytes: they make room first.
    acked: u64,
    acked_bytes: u64,
    /// Messages that come to it as dead letters, and their bytes.
    incoming: u64,
    incoming_bytes: u64,
    /// What makes room.
    dropped: Vec<Dropped>,
}

/// A message that goes, or may go, to the dead-letter queue.
#[derive(Clone, Copy, Debug)]
struct Moved {
    queue: QueueKey,
    id: MessageId,
    place: u64,
    size: u32,
    why_bytes: usize,
}

/// What a transaction comes to, found out command by command.
#[derive(Debug, Default)]
pub struct Plan {
    shares: Vec<Share>,
    by_key: HashMap<QueueKey, usize, FixedState>,
    /// Queues to be made, by their names (octets).
    made: BTreeMap<Box<[u8]>, usize>,
    /// Leases that end.
    serials: HashSet<u64, FixedState>,
    /// Clients' ids, each with its queue's share.
    once: HashSet<(usize, OnceHash), FixedState>,
    moved: Vec<Moved>,
    moved_bytes: u64,
    /// Dead-letter queues to be made (octets).
    targets: BTreeSet<Box<[u8]>>,
    /// Most bytes that it takes in the log; 0 = nothing of it is logged.
    log_bytes: usize,
    /// Queues beyond those known that dead letters are published to.
    routed: usize,
}

impl Plan {
    /// What comes to queues with limits, and counts from now on: which queue, messages, bytes. What is acked makes
    /// room.
    pub fn expected(&self) -> Vec<(QueueKey, u64, u64)> {
        let shares = self.shares.iter();
        let coming = shares.filter_map(|share| {
            let messages = u64::from(share.count) + share.incoming;
            let bytes = share.body_bytes + share.incoming_bytes;
            let messages = messages.saturating_sub(share.acked);
            Some((
                share.key?,
                messages,
                bytes.saturating_sub(share.acked_bytes),
            ))
        });
        coming.collect()
    }

    fn share(&mut self, key: QueueKey) -> usize {
        let (shares, next) = (&mut self.shares, self.by_key.entry(key));
        *next.or_insert_with(|| {
            shares.push(Share {
                key: Some(key),
                ..Share::default()
            });
            shares.len() - 1
        })
    }

    fn share_of_new(&mut self, name: &[u8]) -> usize {
        if let Some(share) = self.made.get(name) {
            return *share;
        }
        self.shares.push(Share::default());
        let share = self.shares.len() - 1;
        self.made.insert(name.into(), share);
        share
    }
}

impl<S: Storage> Engine<S> {
    /// Adds the end of a lease: an ack, or a nack with its `dead=1` and the length of its `why=`, bytes.
    /// False if the handle is stale, also because the transaction has ended the lease already.
    pub fn plan_settle(
        &mut self,
        plan: &mut Plan,
        handle: Handle,
        nack: Option<(bool, usize)>,
    ) -> bool {
        let Some(lease) = self.lease(handle) else {
            return false;
        };
        if !plan.serials.insert(handle.serial) {
            return false;
        }
        let (key, id, place, size, tries) =
            (lease.queue, lease.id, lease.place, lease.size, lease.tries);
        let queue = self.queue(key);
        let is_logged = queue.settings.durable != Level::None && !is_request(place);
        if is_logged {
            // In a shared queue it may be named once more when it is freed.
            plan.log_bytes += (2 * SETTLE_BYTES_MAX).max(RELEASE_BYTES_MAX);
        }
        let Some((dead, why_bytes)) = nack else {
            let store = self.store_of(key);
            let mut others = self
                .readers(store)
                .into_iter()
                .filter(|reader| *reader != key);
            if !others.any(|reader| self.queue(reader).is_unsettled(id)) {
                let share = plan.share(store);
                plan.shares[share].acked += 1;
                plan.shares[share].acked_bytes += u64::from(size);
            }
            return true;
        };
        let settings = &queue.settings;
        let overdue = settings.deadon.ttl && queue.is_overdue(id);
        let spent = settings.deadon.tries
            && settings.maxdeliver > 0
            && u32::from(tries) >= settings.maxdeliver;
        if (dead || overdue || spent) && !is_request(place) {
            self.plan_move(
                plan,
                Moved {
                    queue: key,
                    id,
                    place,
                    size,
                    why_bytes,
                },
            );
        }
        true
    }

    /// A message goes to its queue's dead-letter queue, if there is one.
    fn plan_move(&mut self, plan: &mut Plan, moved: Moved) {
        if self.queue(moved.queue).dead_route().is_some() {
            // Where it goes is known when it has been read.
            plan.moved_bytes += u64::from(moved.size);
            plan.moved.push(moved);
            return;
        }
        let Some(name) = self.queue(moved.queue).dead_name() else {
            return;
        };
        match self.find(&name) {
            Some(target) => {
                let share = plan.share(target);
                plan.shares[share].incoming += 1;
                plan.shares[share].incoming_bytes += u64::from(moved.size);
            }
            None if plan.targets.contains(&name) => {}
            None => {
                let settings = self
                    .queue(moved.queue)
                    .settings
                    .for_dead_letters(&self.defaults);
                if self.log.is_some() {
                    plan.log_bytes += self.definition_bytes(&name, &settings);
                }
                plan.targets.insert(name);
            }
        }
        plan.moved_bytes += u64::from(moved.size);
        plan.moved.push(moved);
    }

    /// Adds a publish of `count` messages with `body_bytes` together to the queue of that name (octets).
    ///
    /// # Errors
    /// The queue doesn't take it, whatever the rest of the transaction is.
    pub fn plan_publish(
        &mut self,
        plan: &mut Plan,
        name: &[u8],
        options: &PublishOptions<'_>,
        count: u32,
        body_bytes: u64,
        now: Now,
    ) -> Result<(), Error> {
        let key = self.find(name);
        let settings = match key {
            Some(key) => &self.queue(key).settings,
            None => &self.defaults,
        };
        let level = settings.durable;
        let pause = settings.pause.input;
        if let Some(sync) = options.sync
            && sync > level
        {
            return Err(stronger_than_stored(level, sync));
        }
        let share = match key {
            Some(key) => plan.share(key),
            None => {
                if !plan.made.contains_key(name) && self.log.is_some() {
                    plan.log_bytes += self.definition_bytes(name, &self.defaults);
                }
                plan.share_of_new(name)
            }
        };
        if let Some(client_id) = &options.once {
            let hash = once_hash(self.once_key, client_id.decoded(&mut self.decoded));
            let known = key.is_some_and(|key| {
                let queue = &mut self.queues[key.0 as usize];
                let found = queue.dedup.find(hash, queue.settings.dedup_us, now.us);
                found.is_some()
            });
            if known || !plan.once.insert((share, hash)) {
                return Ok(());
            }
        }
        let refused = match (pause, self.over_budget) {
            (true, _) => Some(paused()),
            (false, true) => Some(out_of_memory(options.once.is_some())),
            (false, false) => None,
        };
        if let Some(error) = refused {
            self.count_rejected(key);
            return Err(error);
        }
        if level != Level::None {
            plan.log_bytes += self.publish_log_bytes(level, options, count, body_bytes, now);
        }
        let share = &mut plan.shares[share];
        share.count += count;
        share.body_bytes += body_bytes;
        Ok(())
    }

    /// Most bytes that a publish takes in the log, whatever the queue's settings add.
    pub(super) fn publish_log_bytes(
        &mut self,
        level: Level,
        options: &PublishOptions<'_>,
        count: u32,
        body_bytes: u64,
        now: Now,
    ) -> usize {
        if level == Level::None {
            return 0;
        }
        let longest = Published {
            place: 0,
            size: 0,
            pri: u8::MAX,
            due_us: u64::MAX,
            expires_us: Some(u64::MAX),
            now_us: now.us,
        };
        self.build_sections(level, options, &longest);
        let head = PUBLISH_HEAD_BYTES_MAX + self.sections.len();
        count as usize * head + body_bytes as usize
    }

    fn count_rejected(&mut self, key: Option<QueueKey>) {
        if let Some(key) = key {
            self.queue_mut(key).counters.rejected += 1;
        }
    }

    /// Most bytes that the definition of a new queue takes in the log, and those of the groups that come with it.
    pub(super) fn definition_bytes(&self, name: &[u8], settings: &Settings) -> usize {
        let mut encoded = Vec::new();
        settings.encode(&mut encoded);
        let awaited = self
            .find_with_ghosts(name)
            .and_then(|key| self.queue(key).sharing.as_ref());
        let groups = awaited
            .iter()
            .flat_map(|sharing| sharing.ghosts.keys())
            .map(|group| 2 * DEFINE_HEAD_BYTES_MAX + group.len());
        DEFINE_HEAD_BYTES_MAX + name.len() + encoded.len() + groups.sum::<usize>()
    }

    /// The whole transaction is known: is there room in its queues and in one record of the log? Reads
    /// ahead what it moves, at most `bytes_max` bytes of bodies. Makes ready that the rest cannot fail.
    ///
    /// # Errors
    /// A queue or the log doesn't take so much; or [`Refused::Cold`]: ask again, with a new plan and the
    /// same bodies.
    pub fn admit_transaction(
        &mut self,
        plan: &mut Plan,
        bodies: &mut Bodies,
        bytes_max: usize,
        now: Now,
    ) -> Result<(), Refused> {
        for at in 0..plan.shares.len() {
            if plan.shares[at].count > 0 {
                self.admit_share(plan, at, now)?;
            }
        }
        self.read_ahead(plan, bodies, bytes_max)?;
        if plan.log_bytes == 0 {
            return Ok(());
        }
        let log = self.log.as_mut().expect("only what a log takes is counted");
        let settles_only =
            plan.moved.is_empty() && plan.shares.iter().all(|share| share.count == 0);
        if settles_only && log.begin_settles(plan.log_bytes + SPARE_BYTES) {
            return Ok(());
        }
        let rows = plan.shares.len() + plan.targets.len() + plan.routed + SPARE_ROWS;
        begin_many(log, plan.log_bytes + SPARE_BYTES, rows)
    }

    /// Does the queue take all that the transaction publishes to it?
    fn admit_share(&mut self, plan: &mut Plan, at: usize, now: Now) -> Result<(), Refused> {
        let share = &mut plan.shares[at];
        let (count, body_bytes) = (share.count, share.body_bytes);
        let Some(key) = share.key else {
            let empty = Queue::new(QueueUid(0), b"", Vec::new(), self.defaults.clone());
            return Ok(fits_empty(&empty, count, body_bytes, now)?);
        };
        let queue = &mut self.queues[key.0 as usize];
        if queue.settings.rate.is_some() {
            let wait_us = queue.wait_for_rate_us(now.us, count);
            if wait_us > 0 {
                queue.counters.rejected += 1;
                return Err(too_fast(queue, wait_us).into());
            }
        }
        if queue.settings.maxlen.is_none() && queue.settings.maxbytes.is_none() {
            return Ok(());
        }
        let length = (queue.counted() + share.incoming).saturating_sub(share.acked);
        let bytes =
            (queue.counted_bytes() + share.incoming_bytes).saturating_sub(share.acked_bytes);
        let dropped = self
            .plan_room_from(key, length, bytes, u64::from(count), body_bytes)
            .inspect_err(|refused| {
                let rejected = u64::from(matches!(refused, Refused::Error(_)));
                self.queues[key.0 as usize].counters.rejected += rejected;
            })?;
        let queue = self.queue(key);
        let dead = queue.settings.deadon.full && queue.settings.full == WhenFull::DropOld;
        if queue.settings.durable != Level::None {
            let readers = self.readers(key).len();
            plan.log_bytes += dropped.len() * (readers + 1) * SETTLE_BYTES_MAX;
        }
        for message in dropped.iter().filter(|_| dead) {
            self.plan_move(
                plan,
                Moved {
                    queue: key,
                    id: message.id,
                    place: message.place,
                    size: message.size.unwrap_or(0),
                    why_bytes: 0,
                },
            );
        }
        plan.shares[at].dropped = dropped;
        Ok(())
    }

    /// How many queues a dead letter of a queue goes to that has a route for them, at most.
    fn dead_copies(&mut self, key: QueueKey, sections: &[u8]) -> Option<usize> {
        let queue = self.queue(key);
        let route = queue.dead_route()?.clone();
        let name = queue.name.clone();
        let (_, own) = deaths::source(Sections(sections), &name);
        let routing_key = route.key.as_deref().unwrap_or(own);
        let reason = TransferReason::Rejected;
        let (targets, shards) = self.dead_targets(&route, sections, routing_key, reason);
        Some(targets.len() + usize::from(!shards.is_empty()))
    }

    /// Everything that moves must be in memory before anything is done.
    fn read_ahead(
        &mut self,
        plan: &mut Plan,
        bodies: &mut Bodies,
        bytes_max: usize,
    ) -> Result<(), Refused> {
        if plan.moved_bytes > bytes_max as u64 {
            return Err(moves_too_much(bytes_max).into());
        }
        let mut cold = false;
        let mut held: usize = bodies.values().map(|(_, body)| body.len()).sum();
        for moved in &plan.moved {
            let uid = self.queue(self.store_of(moved.queue)).uid;
            if let Entry::Vacant(vacant) = bodies.entry((uid, moved.id)) {
                match self.stored(moved.queue, moved.place) {
                    Some(Ok(message)) => {
                        let sections = message.sections.to_vec();
                        let body = Bytes::copy_from_slice(message.body.as_slice());
                        held += body.len();
                        if held > bytes_max {
                            return Err(moves_too_much(bytes_max).into());
                        }
                        vacant.insert((sections, body));
                    }
                    // It stays where it is, as outside a transaction.
                    Some(Err(Damaged)) => {}
                    None => {
                        self.fetch(moved.place);
                        cold = true;
                    }
                }
            }
            if let (Some((sections, body)), true) =
                (bodies.get(&(uid, moved.id)), self.log.is_some())
            {
                let name = self.queue(moved.queue).name.len();
                let one = 2 * SETTLE_BYTES_MAX
                    + TRANSFER_HEAD_BYTES_MAX
                    + TRACE_BYTES_MAX
                    + sections.len()
                    + body.len()
                    + name
                    + moved.why_bytes;
                let sections = sections.clone();
                let copies = self.dead_copies(moved.queue, &sections);
                plan.log_bytes += match copies {
                    None => one,
                    Some(copies) => (one + DEATH_BYTES_MAX) * copies.max(1),
                };
                plan.routed += copies.unwrap_or(0);
            }
        }
        match cold {
            true => Err(Refused::Cold),
            false => Ok(()),
        }
    }

    /// Makes the queues that are missing. From here to [`Engine::end_transaction`] all is done that was
    /// planned, and nothing else.
    pub fn begin_transaction(&mut self, plan: &Plan, bodies: Bodies) -> Begun {
        self.at_hand = bodies;
        let begun = Begun {
            index: self.log.as_ref().map(|log| log.index()),
            moving: self.moving.len(),
        };
        for name in plan.made.keys() {
            self.create(name, self.defaults.clone());
        }
        begun
    }

    /// Drops what makes room for what the transaction publishes.
    pub fn drop_planned(&mut self, plan: &mut Plan, now: Now) {
        for share in &mut plan.shares {
            if let Some(key) = share.key {
                self.drop_oldest(key, std::mem::take(&mut share.dropped), now);
            }
        }
    }

    /// A publish that was planned.
    pub fn publish_planned<'b>(
        &mut self,
        key: QueueKey,
        options: &PublishOptions<'_>,
        bodies: impl Iterator<Item = Body<'b>>,
        count: u32,
        body_bytes: u64,
        now: Now,
    ) -> Receipt {
        match self.publish_if::<false>(key, options, bodies, count, body_bytes, now) {
            Ok(receipt) => receipt,
            Err(refused) => panic!("what was planned is refused: {refused:?}"),
        }
    }

    /// All is done.
    ///
    /// # Panics
    /// If it is not in one record: nothing of that was written yet, and nothing may be.
    pub fn end_transaction(&mut self, begun: &Begun) {
        self.at_hand.clear();
        assert_eq!(
            self.moving.len(),
            begun.moving,
            "a transaction waits for nothing"
        );
        let index = self.log.as_ref().map(|log| log.index());
        assert!(
            index == begun.index || planted(Fault::TransactionInTwoRecords),
            "a transaction is one record"
        );
    }
}

/// A transaction that is being done.
#[derive(Debug)]
pub struct Begun {
    index: Option<LogIndex>,
    moving: usize,
}

/// Does a new queue take so much?
fn fits_empty(queue: &Queue, count: u32, body_bytes: u64, now: Now) -> Result<(), Error> {
    let settings = &queue.settings;
    if settings.rate.is_some() {
        let wait_us = queue.wait_for_rate_us(now.us, count);
        if wait_us > 0 {
            return Err(too_fast(queue, wait_us));
        }
    }
    let fits = settings.maxlen.is_none_or(|most| u64::from(count) <= most)
        && settings.maxbytes.is_none_or(|most| body_bytes <= most);
    match fits {
        true => Ok(()),
        false => Err(full(queue, false)),
    }
}

#[cold]
fn moves_too_much(bytes_max: usize) -> Error {
    let text = format!(
        "one transaction moves at most {bytes_max} bytes to dead-letter queues: NACK dead=1 in several"
    );
    Error::new(ErrorCode::TooBig, text)
}
