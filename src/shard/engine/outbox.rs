//! What goes to queues of other shards: messages that are on their way, and what has come.
//!
//! The entry `out` is the commit point: from there on nobody is handed the message here. It stays in its queue, taken,
//! until the other shard says that it has it on stable storage, and is settled then. It is sent only when its
//! entry is on stable storage, so no shard ever has a message whose leaving was forgotten. The other shard logs
//! which it has taken in (`in`) beside the message, so that what is sent again after a restart is not taken twice.

mod arrive;
mod by_route;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::super::conn::Need;
use super::super::trace;
use super::moves::{Ended, Pieces};
use super::parts::Orders;
use super::{Damaged, Death, Engine};
use crate::broker::arena::is_request;
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::queue::{QueueKey, State};
use crate::broker::reply::Error;
use crate::broker::settings::Settings;
use crate::log::disk::Storage;
use crate::log::{Entry, Sections, SettleReason, TransferReason};

/// So many messages are under way between two shards before the next wait.
const UNDER_WAY_MAX: usize = 1024;
/// So many bytes of them before the next wait.
const UNDER_WAY_BYTES_MAX: usize = 16 << 20;
/// Most bytes of an `in` entry.
pub(super) const IN_BYTES_MAX: usize = 40;

/// The target of a dead letter that goes where its queue's route leads: to one shard after another.
pub(super) const BY_ROUTE: &[u8] = b"";

/// How far a message is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for its entry to be on stable storage, or for others.
    Waiting(Need),
    /// Its body, or its place, is being read from the disk.
    Reading,
    /// It is on its way.
    Sent,
    /// The other shard has it.
    Taken,
    /// It is settled, and that waits to be on stable storage: until then it could be sent again.
    Settled(Need),
}

/// A message on its way to another shard.
#[derive(Debug)]
pub struct Out {
    /// The shard.
    pub to: u32,
    /// The reader that it leaves.
    pub uid: QueueUid,
    /// Name of the queue it goes to, octets.
    pub target: Box<[u8]>,
    /// Which message, and why it goes.
    pub id: MessageId,
    /// Its priority.
    pub pri: u8,
    /// Why.
    pub reason: TransferReason,
    /// How often it was tried.
    pub tries: u16,
    /// What the consumer said.
    pub why: Vec<u8>,
    pub(super) stage: Stage,
    /// It counted so many bytes for its queue's limits, which it does not any more.
    pub(super) counted: Option<u64>,
    /// Its leaving is in the log.
    pub(super) is_logged: bool,
    /// The piece of a `MOVE` that it belongs to; 0 = none.
    pub(super) piece: u64,
    /// Bytes of it that are under way.
    sent_bytes: usize,
}

/// A message as it comes to another shard.
#[derive(Clone, Debug)]
pub struct Carried {
    /// Its number at the shard it comes from.
    pub seq: u64,
    /// What has lower numbers is done for good.
    pub below: u64,
    /// It would be sent again after a restart.
    pub is_logged: bool,
    /// Name of the queue, octets; empty if it goes where exchange and key in its sections lead.
    pub target: Box<[u8]>,
    /// Why it left.
    pub reason: TransferReason,
    /// Its settings if it is to be made.
    pub settings: Settings,
    /// Encoded sections.
    pub sections: Vec<u8>,
    /// The body.
    pub body: Bytes,
    /// Uid of the reader that it died in; 0 if it did not.
    pub origin: u64,
    /// It comes by a `MOVE`, which the queue's limits may refuse; the piece of it, 0 = none.
    pub moved: Option<u64>,
    /// It is a request, removed at that time, microseconds.
    pub request_until_us: Option<u64>,
}

/// What has come from one shard.
#[derive(Debug, Default)]
struct Seen {
    below: u64,
    numbers: BTreeSet<u64>,
}

impl Seen {
    fn add(&mut self, seq: u64, below: u64) {
        self.below = self.below.max(below);
        self.numbers.insert(seq);
        self.numbers = self.numbers.split_off(&self.below);
    }

    fn has(&self, seq: u64) -> bool {
        seq < self.below || self.numbers.contains(&seq)
    }
}

/// What a shard has for others, and has from them.
#[derive(Debug, Default)]
pub struct Outbox {
    /// The next message's number; 1 is the first.
    next_seq: u64,
    pub(super) outs: BTreeMap<u64, Out>,
    /// While a log is replayed: the numbers of messages on their way.
    replayed: BTreeMap<(QueueUid, MessageId), u64>,
    seen: BTreeMap<u32, Seen>,
    /// Which are to be told that theirs is on stable storage: when, whom, which.
    arrived: Vec<(Need, u32, u64)>,
    /// Came while the log had no room.
    waiting: Vec<(u32, Carried)>,
    /// Messages that no queue has kept, which went to other shards and have not arrived.
    loose: BTreeSet<u64>,
    /// Those that are to be posted.
    loose_news: Vec<(u32, Carried)>,
    /// Pieces of `MOVE`s that go to other shards, and what came of them.
    pub(super) pieces: Pieces,
    /// Parts of transactions, for other shards and of them.
    pub orders: Orders,
    /// Commands that wait for something to have left may go on.
    pub(super) has_moved_on: bool,
    /// By how much the dead letters here of other shards' readers have become more or less.
    dead: BTreeMap<QueueUid, i64>,
}

/// In an origin: it is of another shard.
const FAR: u64 = 1 << 63;
/// Bits of a uid in such an origin.
const UID_BITS: u32 = 48;

/// The reader of another shard that a dead letter is from, among a queue's origins.
pub fn far_origin(shard: u32, uid: u64) -> QueueUid {
    QueueUid(FAR | (u64::from(shard) << UID_BITS) | uid)
}

/// The shard of an origin and its uid there; `None` if it is of this one.
pub fn far(origin: QueueUid) -> Option<(u32, QueueUid)> {
    let uid = origin.0 & ((1 << UID_BITS) - 1);
    let shard = (origin.0 & !FAR) >> UID_BITS;
    (origin.0 & FAR != 0).then_some((shard as u32, QueueUid(uid)))
}

impl Outbox {
    /// Is anything under way that needs a turn?
    pub fn is_idle(&self) -> bool {
        self.outs.is_empty()
            && self.loose_news.is_empty()
            && self.arrived.is_empty()
            && self.waiting.is_empty()
            && !self.has_moved_on
            && !self.pieces.has_news()
            && self.orders.is_idle()
            && self.dead.is_empty()
    }

    /// A dead letter of another shard's reader has come, or is settled.
    pub(super) fn count_dead(&mut self, origin: QueueUid, more: i64) {
        *self.dead.entry(origin).or_default() += more;
    }

    /// What is to be told of dead letters: the shard, the reader, how many more.
    pub fn take_dead(&mut self) -> Vec<(u32, QueueUid, i64)> {
        let dead = std::mem::take(&mut self.dead).into_iter();
        dead.filter_map(|(origin, more)| far(origin).map(|(shard, uid)| (shard, uid, more)))
            .collect()
    }

    /// The number of what goes to another shard next.
    pub(super) fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq.max(1);
        self.next_seq = seq + 1;
        seq
    }

    /// What has lower numbers is never sent again.
    pub(super) fn below(&self) -> u64 {
        let outs = self.outs.keys().next().copied();
        let loose = self.loose.first().copied();
        let first = outs
            .into_iter()
            .chain(self.orders.first())
            .chain(loose)
            .min();
        first.unwrap_or(self.next_seq)
    }

    /// Has that come from the shard before?
    pub(super) fn has_seen(&self, from: u32, seq: u64) -> bool {
        self.seen.get(&from).is_some_and(|seen| seen.has(seq))
    }

    /// The shard is told that what it has sent is here, when it is safe.
    pub(super) fn note_arrived(&mut self, need: Need, from: u32, seq: u64) {
        self.arrived.push((need, from, seq));
    }

    /// Replays what another shard has to do in a transaction; an empty part: it has done it.
    pub fn replay_part(&mut self, seq: u64, to: u32, part: &[u8]) {
        self.next_seq = self.next_seq.max(seq + 1);
        self.orders.replay(seq, to, part);
    }

    /// A piece of a `MOVE` that waits for an answer.
    pub fn begin_piece(&mut self, to: u32, left: usize) -> u64 {
        self.pieces.begin(to, left)
    }

    /// The other shard has looked at the target of a `MOVE`.
    pub fn target_found(&mut self, piece: u64, refused: Option<Error>) {
        self.has_moved_on = true;
        self.pieces.answered(piece, refused);
    }

    /// What came of a piece, when it has ended.
    pub fn take_piece(&mut self, piece: u64) -> Option<Ended> {
        self.pieces.take(piece)
    }

    /// Nobody waits for a piece any more.
    pub fn forget_piece(&mut self, piece: u64) {
        self.pieces.forget(piece);
    }

    /// A piece of another shard of which something was refused has ended.
    pub fn forget_refused(&mut self, from: u32, piece: u64) {
        self.pieces.forget_refused(from, piece);
    }

    /// What is to be told to other shards: what was refused, and which pieces are over.
    #[allow(clippy::type_complexity)]
    pub fn take_news(&mut self) -> (Vec<(u32, u64, Error)>, Vec<(u32, u64)>) {
        self.pieces.take_news()
    }

    /// Commands that wait for something to have left look again.
    pub fn move_on(&mut self) {
        self.has_moved_on = true;
    }

    /// Something has left, or is back, since that was asked.
    pub fn take_moved_on(&mut self) -> bool {
        std::mem::take(&mut self.has_moved_on)
    }

    /// Something can be sent at once: it is so after a restart.
    pub fn is_due(&self) -> bool {
        let mut outs = self.outs.values();
        outs.any(|out| out.stage == Stage::Waiting(Need::NOW)) || self.orders.is_due()
    }

    /// Messages of these readers are on their way.
    pub fn holds(&self, readers: &[QueueUid]) -> bool {
        let mut outs = self.outs.values();
        outs.any(|out| readers.contains(&out.uid) && !matches!(out.stage, Stage::Settled(_)))
    }

    /// The next number.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// What is on its way, for a checkpoint.
    pub fn outs(&self) -> impl Iterator<Item = (u64, &Out)> {
        let outs = self.outs.iter().map(|(seq, out)| (*seq, out));
        outs.filter(|(_, out)| !matches!(out.stage, Stage::Settled(_)))
    }

    /// What has come, for a checkpoint: the shard, what is done, the numbers from there on.
    pub fn seen(&self) -> impl Iterator<Item = (u32, u64, impl ExactSizeIterator<Item = u64>)> {
        let seen = self.seen.iter();
        seen.map(|(from, seen)| (*from, seen.below, seen.numbers.iter().copied()))
    }

    /// Replays that a message has left.
    pub fn replay_out(&mut self, seq: u64, mut out: Out) {
        out.stage = Stage::Waiting(Need::NOW);
        self.next_seq = self.next_seq.max(seq + 1);
        self.replayed.insert((out.uid, out.id), seq);
        self.outs.insert(seq, out);
    }

    /// Replays that a message of a reader is back, or settled: it does not leave any more.
    pub fn replay_end(&mut self, uid: QueueUid, id: MessageId) {
        if !self.replayed.is_empty()
            && let Some(seq) = self.replayed.remove(&(uid, id))
        {
            self.outs.remove(&seq);
        }
    }

    /// Replays that a message has come.
    pub fn replay_in(&mut self, from: u32, seq: u64, below: u64) {
        self.seen.entry(from).or_default().add(seq, below);
    }

    /// Restores what a checkpoint says.
    pub fn restore(&mut self, next_seq: u64) {
        self.next_seq = next_seq;
    }

    /// Restores what has come from a shard.
    pub fn restore_seen(&mut self, from: u32, below: u64, numbers: Vec<u64>) {
        let numbers = numbers.into_iter().collect();
        self.seen.insert(from, Seen { below, numbers });
    }
}

impl Out {
    /// As the log tells it.
    #[allow(clippy::too_many_arguments)]
    pub fn replayed(
        to: u32,
        uid: QueueUid,
        id: MessageId,
        reason: TransferReason,
        tries: u16,
        target: &[u8],
        why: &[u8],
    ) -> Out {
        Out {
            to,
            uid,
            target: target.into(),
            id,
            pri: 0,
            reason,
            tries,
            why: why.to_vec(),
            stage: Stage::Waiting(Need::NOW),
            counted: None,
            is_logged: true,
            piece: 0,
            sent_bytes: 0,
        }
    }
}

impl<S: Storage> Engine<S> {
    /// The other shard of a queue of that name (octets); `None` if it is this one.
    pub fn elsewhere(&self, name: &[u8]) -> Option<u32> {
        let (shards, me) = self.shards;
        let owner = super::super::placement::shard_of(name, shards);
        (owner != me).then_some(owner)
    }

    /// A taken message leaves for a queue of another shard, by itself (0) or in that piece of a `MOVE`.
    pub(super) fn send_away(
        &mut self,
        key: QueueKey,
        death: Death,
        target: Box<[u8]>,
        to: u32,
        piece: u64,
    ) {
        let store = self.store_of(key);
        let queue = self.queue(key);
        let uid = queue.uid;
        let is_logged = queue.settings.durable != Level::None && !is_request(death.place);
        let seq = self.outbox.take_seq();
        let mut need = Need::NOW;
        if is_logged {
            let log = self.log.as_mut().expect("a logged queue has a log");
            log.append(&Entry::Out {
                seq,
                shard: to,
                queue: uid,
                id: death.id,
                reason: death.reason,
                tries: u32::from(death.tries),
                target: &target,
                why: &death.why,
            });
            need = self.need(Level::Disk);
        }
        let counted = (!self.queue(store).is_shared()).then(|| u64::from(death.size.unwrap_or(0)));
        if let Some(bytes) = counted {
            self.queue_mut(store).leaves(bytes);
        }
        let out = Out {
            to,
            uid,
            target,
            id: death.id,
            pri: death.pri,
            reason: death.reason,
            tries: death.tries,
            why: death.why,
            stage: Stage::Waiting(need),
            counted,
            is_logged,
            piece,
            sent_bytes: 0,
        };
        self.outbox.outs.insert(seq, out);
    }

    /// What was read from the disk has come.
    pub(super) fn outbox_fetched(&mut self) {
        for out in self.outbox.outs.values_mut() {
            if out.stage == Stage::Reading {
                out.stage = Stage::Waiting(Need::NOW);
            }
        }
    }

    /// How many messages, and parts of transactions, a replayed log has on their way to other shards.
    pub fn leaving(&self) -> usize {
        let is_there = |out: &Out| {
            let key = self.find_uid(out.uid);
            key.is_some_and(|key| self.queue(key).is_unsettled(out.id))
        };
        self.outbox
            .outs
            .values()
            .filter(|out| is_there(out))
            .count()
            + self.outbox.orders.len()
    }

    /// After a replay: what was on its way still is, and nobody is handed it here.
    pub fn take_outs_back(&mut self) {
        self.outbox.replayed.clear();
        let mut outs = std::mem::take(&mut self.outbox.outs);
        outs.retain(|_, out| {
            let Some(key) = self.find_uid(out.uid) else {
                return false;
            };
            let store = self.store_of(key);
            let Some(pri) = self.queue_mut(key).take_waiting(out.id) else {
                return false;
            };
            out.pri = pri;
            if !self.queue(store).is_shared() {
                out.counted = Some(0);
                self.queue_mut(store).leaves(0);
            }
            true
        });
        self.outbox.outs = outs;
    }

    /// After the start: counts all dead letters here of other shards' readers.
    pub fn count_far_dead(&mut self) {
        self.outbox.dead.clear();
        let queues = self.queues.iter().filter(|(_, queue)| queue.exists);
        let origins = queues.flat_map(|(_, queue)| queue.origins.values());
        for origin in origins.filter(|origin| far(**origin).is_some()) {
            *self.outbox.dead.entry(*origin).or_default() += 1;
        }
    }

    /// Dead letters of a reader have come to another shard, or are settled there.
    pub fn dead_counted(&mut self, uid: QueueUid, more: i64) {
        if let Some(key) = self.find_uid(uid) {
            self.queue_mut(key).dead_far += more;
        }
    }

    /// What can be sent to other shards now.
    pub fn poll_out(&mut self) -> Vec<(u32, Carried)> {
        let mut found = std::mem::take(&mut self.outbox.loose_news);
        if self.outbox.outs.is_empty() {
            return found;
        }
        self.forget_settled();
        self.settle_taken_outs();
        let mut under_way: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        for out in self.outbox.outs.values() {
            if out.stage == Stage::Sent {
                let (count, bytes) = under_way.entry(out.to).or_default();
                *count += 1;
                *bytes += out.sent_bytes;
            }
        }
        let below = self.outbox.below();
        // What goes together goes in its order.
        let mut held_up = BTreeSet::new();
        let mut ready = Vec::new();
        for (seq, out) in &self.outbox.outs {
            match out.stage {
                // Where a route leads is not known at the very start.
                Stage::Waiting(_) if *out.target == *BY_ROUTE && !self.has_routes => {}
                Stage::Waiting(need) if self.reached(need) => ready.push(*seq),
                Stage::Waiting(_) | Stage::Reading => _ = held_up.insert((out.piece, *seq)),
                Stage::Sent | Stage::Taken | Stage::Settled(_) => {}
            }
        }
        for seq in ready {
            let (to, piece) = (self.outbox.outs[&seq].to, self.outbox.outs[&seq].piece);
            let before = held_up.range((piece, 0)..(piece, seq)).next();
            if piece != 0 && before.is_some() {
                continue;
            }
            let (count, bytes) = under_way.entry(to).or_default();
            if *count >= UNDER_WAY_MAX || *bytes >= UNDER_WAY_BYTES_MAX {
                held_up.insert((piece, seq));
                continue;
            }
            match self.pack(seq, below) {
                Some(carried) => {
                    let to = self.outbox.outs[&seq].to;
                    let (count, bytes) = under_way.entry(to).or_default();
                    *count += 1;
                    *bytes += carried.body.len() + carried.sections.len();
                    found.push((to, carried));
                }
                None => _ = held_up.insert((piece, seq)),
            }
        }
        // Those whose route leads nowhere else any more.
        self.settle_taken_outs();
        found
    }

    /// A message as it is sent; `None` if something must be read first, or there is nothing to send any more.
    fn pack(&mut self, seq: u64, below: u64) -> Option<Carried> {
        let out = &self.outbox.outs[&seq];
        let (uid, id) = (out.uid, out.id);
        let Some(key) = self.find_uid(uid).filter(|key| self.is_same(*key, uid)) else {
            self.forget_out(seq);
            return None;
        };
        if self.queue(key).state(id) != State::Leased {
            self.end_out(seq, key);
            return None;
        }
        let read = |engine: &mut Engine<S>| {
            if let Some(out) = engine.outbox.outs.get_mut(&seq) {
                out.stage = Stage::Reading;
            }
        };
        let Some((place, _)) = self.locate(key, id) else {
            read(self);
            return None;
        };
        let (sections, body) = match self.stored(key, place) {
            Some(Ok(message)) => {
                let body = Bytes::copy_from_slice(message.body.as_slice());
                (message.sections.to_vec(), body)
            }
            Some(Err(Damaged)) => {
                let queue = self.queue_mut(key);
                queue.counters.damaged += 1;
                queue.keep_back(id);
                self.end_out(seq, key);
                return None;
            }
            None => {
                self.fetch(place);
                read(self);
                return None;
            }
        };
        let request_until_us = match is_request(place) {
            true => Some(self.queue(key).expiry.own_us(id).unwrap_or(u64::MAX)),
            false => None,
        };
        let queue = self.queue(key);
        let (of_dead, name) = (
            queue.settings.for_dead_letters(&self.defaults),
            queue.name.clone(),
        );
        let routed = match *self.outbox.outs[&seq].target == *BY_ROUTE {
            true => Some(self.next_of_route(seq, key, &sections)?),
            false => None,
        };
        let out = self.outbox.outs.get_mut(&seq)?;
        let is_moved = out.reason == TransferReason::Moved;
        let (settings, sections) = match is_moved {
            _ if routed.is_some() => (of_dead, routed.unwrap_or_default()),
            true => (self.defaults.clone(), trace::keep(Sections(&sections))),
            false => {
                let note = trace::Note {
                    queue: &name,
                    id,
                    reason: out.reason,
                    tries: out.tries,
                    why: &out.why,
                };
                (of_dead, trace::add(Sections(&sections), &note))
            }
        };
        out.stage = Stage::Sent;
        out.sent_bytes = sections.len() + body.len();
        Some(Carried {
            seq,
            below,
            is_logged: out.is_logged,
            target: out.target.clone(),
            reason: out.reason,
            settings,
            sections,
            body,
            origin: match is_moved || *out.target == *BY_ROUTE {
                true => 0,
                false => uid.0,
            },
            moved: is_moved.then_some(out.piece),
            request_until_us,
        })
    }

    /// A message has gone, or is no longer there to go.
    pub(super) fn end_out(&mut self, seq: u64, key: QueueKey) {
        let store = self.store_of(key);
        if let Some(out) = self.outbox.outs.remove(&seq) {
            self.outbox.has_moved_on = true;
            self.outbox.pieces.lost(out.piece);
            if let Some(bytes) = out.counted {
                self.queue_mut(store).has_left(bytes);
            }
        }
    }

    /// The queue that a message was to leave is gone.
    fn forget_out(&mut self, seq: u64) {
        if let Some(out) = self.outbox.outs.remove(&seq) {
            self.outbox.has_moved_on = true;
            self.outbox.pieces.lost(out.piece);
        }
    }

    /// The other shard has a message on stable storage.
    pub fn out_taken(&mut self, seq: u64) {
        if self.outbox.loose.remove(&seq) {
            self.outbox.has_moved_on = true;
        }
        if let Some(out) = self.outbox.outs.get_mut(&seq)
            && out.stage == Stage::Sent
        {
            out.stage = match *out.target == *BY_ROUTE {
                // The next shard's turn, if its route leads to one.
                true => Stage::Waiting(Need::NOW),
                false => Stage::Taken,
            };
            out.to += u32::from(*out.target == *BY_ROUTE);
        }
    }

    /// Settles what others have; true if anything was.
    fn settle_taken_outs(&mut self) {
        let outs = self.outbox.outs.iter();
        let taken = outs.filter(|(_, out)| out.stage == Stage::Taken);
        let taken: Vec<u64> = taken.map(|(seq, _)| *seq).collect();
        for seq in taken {
            let out = &self.outbox.outs[&seq];
            let (uid, id, reason, is_logged) = (out.uid, out.id, out.reason, out.is_logged);
            let Some(key) = self.find_uid(uid).filter(|key| self.is_same(*key, uid)) else {
                self.forget_out(seq);
                continue;
            };
            if self.queue(key).state(id) != State::Leased {
                self.end_out(seq, key);
                continue;
            }
            // Where it lies may have to be read first; it is asked for again in each turn till then.
            let Some((place, size)) = self.locate(key, id) else {
                continue;
            };
            let reason = match reason {
                TransferReason::Expired => SettleReason::Expired,
                TransferReason::DroppedOld => SettleReason::DroppedOld,
                TransferReason::Tries | TransferReason::Rejected | TransferReason::Moved => {
                    SettleReason::Dead
                }
            };
            self.settle_taken(key, id, place, size, reason);
            let need = match is_logged {
                true => self.need(Level::Disk),
                false => Need::NOW,
            };
            let store = self.store_of(key);
            self.outbox.has_moved_on = true;
            if let Some(out) = self.outbox.outs.get_mut(&seq) {
                out.stage = Stage::Settled(need);
                self.outbox.pieces.gone(out.piece);
                let counted = out.counted.take();
                if let Some(bytes) = counted {
                    self.queue_mut(store).has_left(bytes);
                }
            }
        }
    }

    fn forget_settled(&mut self) {
        let mut outs = std::mem::take(&mut self.outbox.outs);
        outs.retain(|_, out| !matches!(out.stage, Stage::Settled(need) if self.reached(need)));
        self.outbox.outs = outs;
    }
}
