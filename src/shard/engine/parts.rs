//! Transactions of several shards: a shard's part in one, and what the log keeps of the parts of others.
//!
//! The shard that decides writes the parts of the others beside its own in one record (`part`): the commit point.
//! Each of them does its part when that record is on stable storage, in one record that notes which it was (`in`).
//! A part that another shard has not done is sent again after a restart, before any client is served.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::Now;
use super::super::conn::Need;
use super::super::transaction::Commands;
use super::outbox::IN_BYTES_MAX;
use super::part::{How, Part, Settle};
use super::publish::begin_many;
use super::settle::Return;
use super::transaction::{SPARE_BYTES, SPARE_ROWS, TRACE_BYTES_MAX};
use super::{Bodies, Damaged, Engine, Refused};
use crate::broker::arena::is_request;
use crate::broker::command::{Body, Command, PublishOptions};
use crate::broker::id::{Level, QueueUid};
use crate::broker::lease::{Lease, NewLease};
use crate::broker::queue::{QueueKey, State};
use crate::broker::settings::WhenFull;
use crate::config::Limits;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{
    Entry, RELEASE_BYTES_MAX, SETTLE_BYTES_MAX, SettleReason, TRANSFER_HEAD_BYTES_MAX,
    TransferReason,
};
use crate::protocol::text::batch;

/// Most bytes of a `part` entry beside what is in it.
const PART_BYTES_MAX: usize = 60;

/// How far the part of another shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its entry is to be on stable storage first.
    Waiting(Need),
    /// It was sent.
    Sent,
    /// It is done there, and that is to be on stable storage here: until then it could be sent again.
    Done(Need),
}

/// What another shard has to do.
#[derive(Debug)]
struct Order {
    to: u32,
    transaction: (u32, u64),
    is_logged: bool,
    part: Bytes,
    stage: Stage,
}

/// A part as it comes to the shard that does it.
#[derive(Clone, Debug)]
pub struct Ordered {
    /// Its number at the shard it comes from.
    pub seq: u64,
    /// What has lower numbers is done for good.
    pub below: u64,
    /// It would be sent again after a restart.
    pub is_logged: bool,
    /// The shard of the connection whose transaction it is, and the number there.
    pub transaction: (u32, u64),
    /// The encoded part.
    pub part: Bytes,
}

/// A transaction that this shard has decided, and that others have not done yet.
#[derive(Debug)]
struct Decided {
    transaction: (u32, u64),
    /// When this shard's part is safe.
    need: Need,
    left: usize,
}

/// A part of another shard's transaction for which the log has no room yet, or that waits to be read.
#[derive(Debug)]
struct Pending {
    from: u32,
    ordered: Ordered,
    bodies: Bodies,
    /// There was no space for it, and its home was told.
    is_stuck: bool,
}

/// What comes to a queue: messages and bytes.
type Expected = (QueueKey, QueueUid, u64, u64);

/// Parts of transactions, those of other shards and for them.
#[derive(Debug, Default)]
pub struct Orders {
    /// What comes to queues with limits by parts that are prepared.
    expected: BTreeMap<(u32, u64), Vec<Expected>>,
    own: BTreeMap<u64, Order>,
    decided: Vec<Decided>,
    pending: Vec<Pending>,
    /// Parts of others' transactions that are done here, and not safe yet.
    doing: Vec<(Need, (u32, u64))>,
    /// Transactions whose end is not in sight: the log finds no space.
    stuck: Vec<(u32, u64)>,
}

impl Orders {
    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.own.is_empty() && self.decided.is_empty() && self.pending.is_empty()
    }

    /// Something can be sent at once: it is so after a restart.
    pub fn is_due(&self) -> bool {
        let mut own = self.own.values();
        own.any(|order| order.stage == Stage::Waiting(Need::NOW))
    }

    /// How many other shards have not done.
    pub fn len(&self) -> usize {
        let is_open = |order: &&Order| !matches!(order.stage, Stage::Done(_));
        self.own.values().filter(is_open).count()
    }

    /// Parts of other shards' transactions wait to be done here.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What other shards have to do, for a checkpoint: number, shard, the part.
    pub fn open(&self) -> impl Iterator<Item = (u64, u32, &[u8])> {
        let own = self.own.iter();
        let open =
            own.filter(|(_, order)| order.is_logged && !matches!(order.stage, Stage::Done(_)));
        open.map(|(seq, order)| (*seq, order.to, &order.part[..]))
    }

    /// The lowest number that may be sent again.
    pub fn first(&self) -> Option<u64> {
        self.own.keys().next().copied()
    }

    /// Replays what another shard has to do; an empty part: it has done it.
    pub fn replay(&mut self, seq: u64, to: u32, part: &[u8]) {
        if part.is_empty() {
            self.own.remove(&seq);
            return;
        }
        let order = Order {
            to,
            transaction: (to, 0),
            is_logged: true,
            part: Bytes::copy_from_slice(part),
            stage: Stage::Waiting(Need::NOW),
        };
        self.own.insert(seq, order);
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let own = self.own.values().map(|order| order.part.len());
        let pending = self
            .pending
            .iter()
            .map(|pending| pending.ordered.part.len());
        own.chain(pending).sum()
    }

    /// A part of another shard's transaction has come.
    pub fn add(&mut self, from: u32, ordered: Ordered) {
        let bodies = Bodies::new();
        self.pending.push(Pending {
            from,
            ordered,
            bodies,
            is_stuck: false,
        });
    }

    /// The log finds no space for what it has taken on: nobody waits for that any longer.
    pub fn stall(&mut self) {
        let decided = self.decided.iter().map(|decided| decided.transaction);
        self.stuck.extend(decided);
        let doing = std::mem::take(&mut self.doing);
        self.stuck.extend(doing.into_iter().map(|(_, name)| name));
    }

    /// Transactions whose end is not in sight, once each.
    pub fn take_stuck(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.stuck)
    }
}

impl<S: Storage> Engine<S> {
    /// A part was prepared: what it publishes counts for limits from now on. `coming` are queues, messages, bytes.
    pub fn expect_part(&mut self, transaction: (u32, u64), coming: Vec<(QueueKey, u64, u64)>) {
        let mut expected = Vec::new();
        for (key, messages, bytes) in coming {
            let queue = self.queue_mut(key);
            queue.expects(messages, bytes);
            expected.push((key, queue.uid, messages, bytes));
        }
        self.outbox.orders.expected.insert(transaction, expected);
    }

    /// A prepared part is done now, or never.
    pub fn expect_no_more(&mut self, transaction: (u32, u64)) {
        let expected = self.outbox.orders.expected.remove(&transaction);
        for (key, uid, messages, bytes) in expected.unwrap_or_default() {
            if self.is_same(key, uid) {
                self.queue_mut(key).expects_no_more(messages, bytes);
            }
        }
    }

    /// Decides a transaction: what others have to do, this shard's own part, all in one record. `others` are
    /// (shard, whether any of it is logged, part).
    ///
    /// # Errors
    /// The log does not take so much; or [`Refused::Cold`]: ask again, with the same bodies.
    pub fn decide(
        &mut self,
        transaction: (u32, u64),
        own: Option<&Part>,
        others: &[(u32, bool, Bytes)],
        bodies: &mut Bodies,
        limits: &Limits,
        now: Now,
    ) -> Result<(), Refused> {
        let nothing = Part::default();
        let own = own.unwrap_or(&nothing);
        if !self.is_part_ready(own, bodies) {
            return Err(Refused::Cold);
        }
        let logged = others.iter().filter(|(_, is_logged, _)| *is_logged);
        let parts: usize = logged.map(|(.., part)| PART_BYTES_MAX + part.len()).sum();
        self.begin_part(own, bodies, parts, limits, now)?;
        let begun = self.log.as_ref().map(|log| log.index());
        let mut waiting = Vec::new();
        for (to, is_logged, part) in others {
            let seq = self.outbox.take_seq();
            if *is_logged && let Some(log) = &mut self.log {
                log.append(&Entry::Part {
                    seq,
                    shard: *to,
                    part,
                });
            }
            waiting.push((seq, *to, *is_logged, part.clone()));
        }
        if planted(Fault::PartsInRecordsOfTheirOwn) {
            self.before_commit();
            if let Some(log) = &mut self.log {
                log.commit(now.us, false);
            }
        }
        self.expect_no_more(transaction);
        self.apply_part(own, std::mem::take(bodies), false, limits, now);
        let ended = self.log.as_ref().map(|log| log.index());
        assert!(
            begun == ended || planted(Fault::PartsInRecordsOfTheirOwn),
            "a transaction is decided in one record"
        );
        self.drop_beyond_limits(own, limits, now);
        let need = self.need(Level::Disk);
        self.outbox.orders.decided.push(Decided {
            transaction,
            need,
            left: others.len(),
        });
        for (seq, to, is_logged, part) in waiting {
            let order = Order {
                to,
                transaction,
                is_logged,
                part,
                stage: Stage::Waiting(need),
            };
            self.outbox.orders.own.insert(seq, order);
        }
        Ok(())
    }

    /// Parts that can be sent to other shards now.
    pub fn poll_orders(&mut self) -> Vec<(u32, Ordered)> {
        if self.outbox.orders.own.is_empty() {
            return Vec::new();
        }
        let mut own = std::mem::take(&mut self.outbox.orders.own);
        own.retain(|_, order| !matches!(order.stage, Stage::Done(need) if self.reached(need)));
        self.outbox.orders.own = own;
        let below = self.outbox.below();
        let mut own = std::mem::take(&mut self.outbox.orders.own);
        let mut found = Vec::new();
        for (seq, order) in &mut own {
            if let Stage::Waiting(need) = order.stage
                && self.reached(need)
            {
                order.stage = Stage::Sent;
                let ordered = Ordered {
                    seq: *seq,
                    below,
                    is_logged: order.is_logged,
                    transaction: order.transaction,
                    part: order.part.clone(),
                };
                found.push((order.to, ordered));
            }
        }
        self.outbox.orders.own = own;
        found
    }

    /// Another shard has done its part, on stable storage. False if that was no part.
    pub fn order_done(&mut self, seq: u64) -> bool {
        let Some(order) = self.outbox.orders.own.get(&seq) else {
            return false;
        };
        if order.stage != Stage::Sent {
            return true;
        }
        let (to, transaction, is_logged) = (order.to, order.transaction, order.is_logged);
        let mut need = Need::NOW;
        if is_logged && let Some(log) = &mut self.log {
            log.append(&Entry::Part {
                seq,
                shard: to,
                part: b"",
            });
            need = self.need(Level::Disk);
        }
        if let Some(order) = self.outbox.orders.own.get_mut(&seq) {
            order.stage = Stage::Done(need);
            order.part = Bytes::new();
        }
        let decided = self.outbox.orders.decided.iter_mut();
        for decided in decided.filter(|decided| decided.transaction == transaction) {
            decided.left -= 1;
        }
        true
    }

    /// Transactions decided here of which all is done and safe.
    pub fn poll_decided(&mut self) -> Vec<(u32, u64)> {
        let all = std::mem::take(&mut self.outbox.orders.decided);
        let is_done = |one: &Decided| one.left == 0 && self.reached(one.need);
        let (done, left): (Vec<_>, Vec<_>) = all.into_iter().partition(is_done);
        self.outbox.orders.decided = left;
        done.into_iter().map(|one| one.transaction).collect()
    }

    /// Does what has come from other shards, as far as the log has room and it can be read. Returns which
    /// transactions' parts were done.
    pub fn do_orders(&mut self, limits: &Limits, now: Now) -> Vec<(u32, u64)> {
        let mut done = Vec::new();
        for mut pending in std::mem::take(&mut self.outbox.orders.pending) {
            let (from, seq) = (pending.from, pending.ordered.seq);
            if pending.ordered.is_logged && self.outbox.has_seen(from, seq) {
                self.outbox.note_arrived(Need::NOW, from, seq);
                continue;
            }
            let part = Part::decode(&pending.ordered.part);
            let part = part.expect("a shard writes what another can read");
            let ready = self.is_part_ready(&part, &mut pending.bodies);
            let bodies = &mut pending.bodies;
            let begun = match ready {
                true => self.begin_part(&part, bodies, IN_BYTES_MAX, limits, now),
                false => Err(Refused::Cold),
            };
            if let Err(refused) = begun {
                let is_full = matches!(refused, Refused::Error(_));
                if is_full && !std::mem::replace(&mut pending.is_stuck, true) {
                    let name = pending.ordered.transaction;
                    self.outbox.orders.stuck.push(name);
                }
                self.outbox.orders.pending.push(pending);
                continue;
            }
            let Ordered {
                below, is_logged, ..
            } = pending.ordered;
            if is_logged {
                if let Some(log) = &mut self.log {
                    log.append(&Entry::In {
                        shard: from,
                        seq,
                        below,
                        origin: 0,
                    });
                }
                self.outbox.replay_in(from, seq, below);
            }
            if planted(Fault::PartsInRecordsOfTheirOwn) {
                self.before_commit();
                if let Some(log) = &mut self.log {
                    log.commit(now.us, false);
                }
            }
            self.expect_no_more(pending.ordered.transaction);
            // It was sent before the last start if it has no number: what is not stored is gone since then.
            let is_left = pending.ordered.transaction.1 == 0;
            self.apply_part(&part, pending.bodies, is_left, limits, now);
            self.drop_beyond_limits(&part, limits, now);
            let need = match is_logged {
                true => self.need(Level::Disk),
                false => Need::NOW,
            };
            self.outbox.note_arrived(need, from, seq);
            let name = pending.ordered.transaction;
            let mut doing = std::mem::take(&mut self.outbox.orders.doing);
            doing.retain(|(need, _)| !self.reached(*need));
            doing.push((need, name));
            self.outbox.orders.doing = doing;
            done.push(pending.ordered.transaction);
        }
        done
    }

    /// Is everything in memory that a part needs? Asks for what is not.
    fn is_part_ready(&mut self, part: &Part, bodies: &mut Bodies) -> bool {
        let mut ready = true;
        for settle in &part.settles {
            let Some(key) = self.reader_of(settle) else {
                continue;
            };
            let Some((place, _)) = self.locate(key, settle.id) else {
                ready = false;
                continue;
            };
            if !self.may_bury(key, settle) || is_request(place) {
                continue;
            }
            let uid = self.queue(self.store_of(key)).uid;
            if bodies.contains_key(&(uid, settle.id)) {
                continue;
            }
            match self.stored(key, place) {
                Some(Ok(message)) => {
                    let body = Bytes::copy_from_slice(message.body.as_slice());
                    let sections = message.sections.to_vec();
                    bodies.insert((uid, settle.id), (sections, body));
                }
                // It stays where it is, as outside a transaction.
                Some(Err(Damaged)) => {}
                None => {
                    self.fetch(place);
                    ready = false;
                }
            }
        }
        ready
    }

    /// The reader whose message is settled, if that is still to be done.
    fn reader_of(&self, settle: &Settle) -> Option<QueueKey> {
        let key = self.find_uid(settle.uid)?;
        let is_there = self.is_same(key, settle.uid) && self.queue(key).is_unsettled(settle.id);
        (is_there && self.queue(key).state(settle.id) != State::Hidden).then_some(key)
    }

    fn may_bury(&self, key: QueueKey, settle: &Settle) -> bool {
        let How::Nack { dead, .. } = settle.how else {
            return false;
        };
        let queue = self.queue(key);
        let most = queue.settings.maxdeliver;
        let is_spent = most > 0 && u32::from(settle.tries) >= most;
        queue.buries() && (dead || is_spent || queue.is_overdue(settle.id))
    }

    /// Room for a part in one record, and for so many bytes beside it.
    fn begin_part(
        &mut self,
        part: &Part,
        bodies: &Bodies,
        beside: usize,
        limits: &Limits,
        now: Now,
    ) -> Result<(), Refused> {
        if self.log.is_none() {
            return Ok(());
        }
        let (mut bytes, mut rows) = (beside, SPARE_ROWS);
        for settle in &part.settles {
            bytes += (2 * SETTLE_BYTES_MAX).max(RELEASE_BYTES_MAX);
            let Some(key) = self
                .reader_of(settle)
                .filter(|key| self.may_bury(*key, settle))
            else {
                continue;
            };
            let queue = self.queue(key);
            let uid = self.queue(self.store_of(key)).uid;
            let held = bodies.get(&(uid, settle.id));
            let held = held.map_or(0, |(sections, body)| sections.len() + body.len());
            let settings = queue.settings.for_dead_letters(&self.defaults);
            let name = queue.dead_name().unwrap_or_default();
            bytes += TRANSFER_HEAD_BYTES_MAX + TRACE_BYTES_MAX + held + 2 * name.len();
            bytes += queue.name.len() + self.definition_bytes(&name, &settings);
            if let How::Nack { why, .. } = &settle.how {
                bytes += 2 * why.len();
            }
            rows += 1;
        }
        let mut commands = Commands::new(&part.frames);
        let mut scratch = Vec::new();
        while let Some(command) = commands.next(limits) {
            let Some((name, options, count, body_bytes)) = publish_of(&command) else {
                continue;
            };
            let name = name.decoded(&mut scratch);
            let level = match self.find(name) {
                Some(key) => self.queue(key).settings.durable,
                None => {
                    bytes += self.definition_bytes(name, &self.defaults);
                    self.defaults.durable
                }
            };
            bytes += self.publish_log_bytes(level, options, count, body_bytes, now);
            rows += 1;
        }
        if bytes == 0 {
            return Ok(());
        }
        let log = self.log.as_mut().expect("it was just looked at");
        if rows == SPARE_ROWS && log.begin_settles(bytes + SPARE_BYTES) {
            return Ok(());
        }
        begin_many(log, bytes + SPARE_BYTES, rows)
    }

    /// Does a part, whatever limits say: that was found out before. If it is left from before a restart, nothing is
    /// published that would not have outlived that.
    fn apply_part(
        &mut self,
        part: &Part,
        bodies: Bodies,
        is_left: bool,
        limits: &Limits,
        now: Now,
    ) {
        self.at_hand = bodies;
        let elapsed_us = now.us.saturating_sub(part.at_us);
        for settle in &part.settles {
            self.apply_settle(settle, elapsed_us, now);
        }
        let mut commands = Commands::new(&part.frames);
        let mut scratch = Vec::new();
        while let Some(command) = commands.next(limits) {
            let (name, options, messages) = match command {
                Command::Publish {
                    queue,
                    options,
                    body,
                } => {
                    let size = body.as_slice().len() as u64;
                    let Some(key) = self.part_target(queue.decoded(&mut scratch), is_left) else {
                        continue;
                    };
                    let options = later(options, elapsed_us, now);
                    let one = std::iter::once(body);
                    self.publish_planned(key, &options, one, 1, size, now);
                    self.show_when_stored(key);
                    continue;
                }
                Command::PublishBatch {
                    queue,
                    options,
                    framing,
                    count,
                    body_bytes,
                    data,
                } => (queue, options, (framing, count, body_bytes, data)),
                _ => continue,
            };
            let (framing, count, body_bytes, data) = messages;
            let Some(key) = self.part_target(name.decoded(&mut scratch), is_left) else {
                continue;
            };
            let options = later(options, elapsed_us, now);
            let bodies = batch::messages(framing, data.as_slice()).map(Body::Borrowed);
            self.publish_planned(key, &options, bodies, count, body_bytes, now);
            self.show_when_stored(key);
        }
        self.at_hand.clear();
    }

    /// The queue that a part publishes to, made if there is none.
    fn part_target(&mut self, name: &[u8], is_left: bool) -> Option<QueueKey> {
        let found = self.find(name);
        let settings = found.map_or(&self.defaults, |key| &self.queue(key).settings);
        let is_gone = is_left && settings.durable == Level::None;
        (!is_gone).then(|| self.find_or_create(name))
    }

    /// What came to a queue last from another shard is seen when it is on stable storage, also in an `os` queue:
    /// until then it could be sent again.
    pub(super) fn show_when_stored(&mut self, key: QueueKey) {
        let queue = self.queue_mut(key);
        if queue.settings.durable == Level::Os {
            queue.synced_index = queue.last_index;
        }
    }

    fn apply_settle(&mut self, settle: &Settle, elapsed_us: u64, now: Now) {
        let Some(key) = self.reader_of(settle) else {
            return;
        };
        if self.queue(key).state(settle.id) != State::Leased {
            // It is so after a restart.
            let taken = self.queue_mut(key).take_waiting(settle.id);
            taken.expect("it waits, or somebody has it");
        }
        let (place, size) = self.locate(key, settle.id).expect("it was looked up");
        let How::Nack {
            delay_us,
            dead,
            why,
        } = &settle.how
        else {
            self.queue_mut(key).counters.acked += 1;
            return self.settle_taken(key, settle.id, place, size, SettleReason::Acked);
        };
        let lease = Lease::detached(NewLease {
            id: settle.id,
            place,
            queue: key,
            holder: crate::broker::lease::Leases::NOBODY,
            size: size.unwrap_or(0),
            tries: settle.tries,
            pri: settle.pri,
        });
        if *dead && self.queue(key).buries() {
            self.reject(&lease, TransferReason::Rejected, why, now);
        } else {
            let delay_us = delay_us.map(|delay_us| delay_us.saturating_sub(elapsed_us));
            self.give_back(&lease, Return::Nacked { delay_us }, why, now);
        }
    }

    /// Behind a part: queues that drop their oldest have room again.
    fn drop_beyond_limits(&mut self, part: &Part, limits: &Limits, now: Now) {
        let mut commands = Commands::new(&part.frames);
        let mut scratch = Vec::new();
        while let Some(command) = commands.next(limits) {
            let Some((name, ..)) = publish_of(&command) else {
                continue;
            };
            let Some(key) = self.find(name.decoded(&mut scratch)) else {
                continue;
            };
            if self.queue(key).settings.full == WhenFull::DropOld
                && let Ok(dropped) = self.plan_room(key, 0, 0)
            {
                self.drop_oldest(key, dropped, now);
            }
        }
    }
}

/// The options of a publish that was decided so long ago, microseconds: its delay and its time to live began then.
fn later<'o>(options: PublishOptions<'o>, elapsed_us: u64, now: Now) -> PublishOptions<'o> {
    let delay_us = match options.at_us {
        Some(at_us) => at_us.saturating_sub(now.wall_us.saturating_sub(elapsed_us)),
        None => options.delay_us.unwrap_or(0),
    };
    let alive_us = elapsed_us.saturating_sub(delay_us);
    PublishOptions {
        delay_us: options
            .delay_us
            .map(|delay_us| delay_us.saturating_sub(elapsed_us)),
        ttl_us: options
            .ttl_us
            .map(|ttl_us| ttl_us.saturating_sub(alive_us).max(1)),
        sync: None,
        ..options
    }
}

/// What a command publishes: where, how, how many messages, bytes of their bodies.
fn publish_of<'c>(
    command: &'c Command<'_>,
) -> Option<(
    crate::broker::command::Typed<'c>,
    &'c PublishOptions<'c>,
    u32,
    u64,
)> {
    match command {
        Command::Publish {
            queue,
            options,
            body,
        } => Some((*queue, options, 1, body.as_slice().len() as u64)),
        Command::PublishBatch {
            queue,
            options,
            count,
            body_bytes,
            ..
        } => Some((*queue, options, *count, *body_bytes)),
        _ => None,
    }
}
