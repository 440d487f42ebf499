//! Casting: one message for every queue that is bound to a pattern that means the topic. Each takes or
//! refuses it for itself; the body is stored once for all logged queues, and large ones once for all
//! `none` queues.

use bytes::Bytes;

use super::super::Now;
use super::super::conn::Need;
use super::publish::{Dropped, once_hash, when_published};
use super::{Engine, Receipt, Refused};
use crate::broker::command::{Body, PublishOptions};
use crate::broker::dedup::{OnceHash, Original};
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::keys::KeyHash;
use crate::broker::queue::{Published, QueueKey};
use crate::log::disk::Storage;
use crate::log::{Message, Room, publish_many_bytes};

/// Bodies from this size are stored once for several `none` queues. To refer to one costs about as much
/// memory as a tenth of that.
const SHARE_BYTES_MIN: usize = 512;

/// What became of a message that was cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CastReceipt {
    /// Queues that took it, or had it before.
    pub taken: u64,
    /// Queues that refused it.
    pub refused: u64,
    /// The weakest level among those that took it; meaningless if none did.
    pub level: Level,
    /// When all have reached theirs.
    pub need: Need,
    /// When all can see it.
    pub visible: Need,
}

/// What one queue does with it.
#[derive(Debug)]
enum Verdict {
    Refused,
    /// It was published before.
    Duplicate,
    Taken {
        message: Published,
        dropped: Vec<Dropped>,
    },
}

/// Logged queues that store the very same octets.
#[derive(Debug)]
struct Copies {
    message: Published,
    queues: Vec<QueueKey>,
}

impl<S: Storage> Engine<S> {
    /// Casts a message to queues that are bound to its topic, each named once.
    ///
    /// # Errors
    /// Only [`Refused::Cold`]: nothing was stored, ask again.
    pub fn cast(
        &mut self,
        queues: &[QueueKey],
        options: &PublishOptions<'_>,
        body: &Body<'_>,
        now: Now,
    ) -> Result<CastReceipt, Refused> {
        let once = options
            .once
            .map(|id| once_hash(self.once_key, id.decoded(&mut self.decoded)));
        let mut verdicts = Vec::with_capacity(queues.len());
        for key in queues {
            verdicts.push((*key, self.judge(*key, options, once, body, now)?));
        }
        let copies = self.same_octets(&verdicts);
        let mut has_room = self.begin_copies(&copies, options, body)?;
        if !has_room {
            self.refuse_logged(&mut verdicts);
        }
        let mut dropped_any = false;
        for (key, verdict) in &mut verdicts {
            if let Verdict::Taken { dropped, .. } = verdict
                && !dropped.is_empty()
            {
                let dropped = std::mem::take(dropped);
                self.drop_oldest(*key, dropped, now);
                dropped_any = true;
            }
        }
        if dropped_any && has_room {
            // What was dropped stands in the record too.
            has_room = self.begin_copies(&copies, options, body)?;
            if !has_room {
                self.refuse_logged(&mut verdicts);
            }
        }
        let copies = if has_room { copies } else { Vec::new() };
        let order = self.order_of(options);
        self.store_logged(&copies, options, order, body, now);
        self.store_in_memory(&verdicts, options, order, body, now);
        Ok(self.finish_cast(&verdicts, options, once, now))
    }

    /// Does the queue take it? Changes nothing.
    fn judge(
        &mut self,
        key: QueueKey,
        options: &PublishOptions<'_>,
        once: Option<OnceHash>,
        body: &Body<'_>,
        now: Now,
    ) -> Result<Verdict, Refused> {
        let queue = &mut self.queues[key.0 as usize];
        let level = queue.settings.durable;
        if options.sync.is_some_and(|sync| sync > level) {
            return Ok(Verdict::Refused);
        }
        if let Some(hash) = once
            && queue
                .dedup
                .find(hash, queue.settings.dedup_us, now.us)
                .is_some()
        {
            return Ok(Verdict::Duplicate);
        }
        let mut message = when_published(queue, options, now);
        if queue.settings.pause.input || self.over_budget {
            return Ok(Verdict::Refused);
        }
        if level != Level::None {
            let room = self.log.as_ref().map(|log| log.room());
            match room.expect("a logged level needs a log") {
                Room::Plenty | Room::Waiting => {}
                Room::NoSegment => return Err(Refused::Cold),
                Room::DiskFull => return Ok(Verdict::Refused),
            }
        }
        message.size = body.as_slice().len() as u32;
        match self.plan_room(key, 1, u64::from(message.size)) {
            Ok(dropped) => Ok(Verdict::Taken { message, dropped }),
            Err(Refused::Error(_)) => Ok(Verdict::Refused),
            Err(Refused::Cold) => Err(Refused::Cold),
        }
    }

    /// The logged queues that take it, by what stands in the message's sections.
    fn same_octets(&self, verdicts: &[(QueueKey, Verdict)]) -> Vec<Copies> {
        let mut copies: Vec<Copies> = Vec::new();
        for (key, verdict) in verdicts {
            let Verdict::Taken { message, .. } = verdict else {
                continue;
            };
            if self.queue(*key).settings.durable == Level::None {
                continue;
            }
            let same = copies.iter_mut().find(|copy| {
                let known = &copy.message;
                (known.pri, known.expires_us) == (message.pri, message.expires_us)
            });
            match same {
                Some(same) => same.queues.push(*key),
                None => copies.push(Copies {
                    message: *message,
                    queues: vec![*key],
                }),
            }
        }
        copies
    }

    /// Room for all of it in one record; false if no segment has that.
    fn begin_copies(
        &mut self,
        copies: &[Copies],
        options: &PublishOptions<'_>,
        body: &Body<'_>,
    ) -> Result<bool, Refused> {
        let (mut bytes, mut rows) = (0, 0);
        for copy in copies {
            self.build_sections(Level::Disk, options, &copy.message);
            bytes += publish_many_bytes(copy.queues.len(), &self.sections, body.as_slice());
            rows += copy.queues.len();
        }
        if rows == 0 {
            return Ok(true);
        }
        let log = self.log.as_mut().expect("a logged level needs a log");
        match log.begin_many(bytes, rows) {
            Room::Plenty | Room::Waiting => Ok(true),
            Room::NoSegment => Err(Refused::Cold),
            Room::DiskFull => Ok(false),
        }
    }

    fn refuse_logged(&self, verdicts: &mut [(QueueKey, Verdict)]) {
        for (key, verdict) in verdicts {
            if self.queue(*key).settings.durable != Level::None
                && matches!(verdict, Verdict::Taken { .. })
            {
                *verdict = Verdict::Refused;
            }
        }
    }

    /// One entry of the log for the queues of each copy.
    fn store_logged(
        &mut self,
        copies: &[Copies],
        options: &PublishOptions<'_>,
        order: Option<KeyHash>,
        body: &Body<'_>,
        now: Now,
    ) {
        for Copies { message, queues } in copies {
            self.build_sections(Level::Disk, options, message);
            let target = |key: &QueueKey| {
                let queue = &self.queues[key.0 as usize];
                (queue.uid, queue.next_id())
            };
            let targets: Vec<(QueueUid, MessageId)> = queues.iter().map(target).collect();
            let log = self.log.as_mut().expect("a logged level needs a log");
            let position = log.publish_many(
                &targets,
                &Message {
                    time_ms: now.us / 1000,
                    sections: &self.sections,
                    body: same_body(body),
                },
            );
            for key in queues {
                let message = Published {
                    place: position.0,
                    ..*message
                };
                self.enter(*key, &message, order);
            }
        }
    }

    /// A copy for each `none` queue, or one that they share.
    fn store_in_memory(
        &mut self,
        verdicts: &[(QueueKey, Verdict)],
        options: &PublishOptions<'_>,
        order: Option<KeyHash>,
        body: &Body<'_>,
        now: Now,
    ) {
        let taken = verdicts
            .iter()
            .filter_map(|(key, verdict)| match verdict {
                Verdict::Taken { message, .. } => Some((*key, *message)),
                Verdict::Refused | Verdict::Duplicate => None,
            })
            .filter(|(key, _)| self.queue(*key).settings.durable == Level::None);
        let taken: Vec<(QueueKey, Published)> = taken.collect();
        let Some((_, message)) = taken.first() else {
            return;
        };
        self.build_sections(Level::None, options, message);
        let octets = body.as_slice();
        let shared = (taken.len() > 1 && octets.len() >= SHARE_BYTES_MIN).then(|| {
            let bytes = match body {
                Body::Owned(bytes) => bytes.clone(),
                Body::Borrowed(octets) => Bytes::copy_from_slice(octets),
            };
            let share = self.pool.share(bytes.len(), taken.len() as u32);
            (bytes, share)
        });
        let time_ms = now.us / 1000;
        for (key, mut message) in taken {
            let queue = &mut self.queues[key.0 as usize];
            let (sections, pool) = (&self.sections, &mut self.pool);
            message.place = match &shared {
                Some((bytes, share)) => queue
                    .arena
                    .push_shared(time_ms, sections, bytes, *share, pool),
                None => queue.arena.push(time_ms, sections, body, pool),
            };
            self.enter(key, &message, order);
        }
    }

    /// Everything is stored: it becomes visible when it may, and what that comes to is summed up.
    fn finish_cast(
        &mut self,
        verdicts: &[(QueueKey, Verdict)],
        options: &PublishOptions<'_>,
        once: Option<OnceHash>,
        now: Now,
    ) -> CastReceipt {
        let mut sum = CastReceipt {
            taken: 0,
            refused: 0,
            level: Level::Quorum,
            need: Need::NOW,
            visible: Need::NOW,
        };
        for (key, verdict) in verdicts {
            let key = *key;
            let level = self.queue(key).settings.durable;
            let told = options.sync.unwrap_or(level);
            match verdict {
                Verdict::Refused => {
                    sum.refused += 1;
                    self.queue_mut(key).counters.rejected += 1;
                }
                Verdict::Duplicate => {
                    let hash = once.expect("only a client's id makes a duplicate");
                    let receipt = self.find_original(key, hash, told, now);
                    let Receipt { level, need, .. } = receipt.expect("it was just found");
                    sum.add(level, need);
                }
                Verdict::Taken { message, .. } => {
                    let queue = self.queue_mut(key);
                    if let Some(hash) = once {
                        let original = Original {
                            first: queue.next_id() - 1,
                            count: 1,
                        };
                        let window_us = queue.settings.dedup_us;
                        queue.dedup.insert(hash, original, window_us, now.us);
                    }
                    let need = self.published(key, level, told);
                    if message.due_us != 0 || !self.queue(key).expiry.is_empty() {
                        self.arm(key);
                    }
                    sum.add(told, need);
                    sum.visible = sum.visible.and(self.visible_need(key));
                }
            }
        }
        sum
    }
}

impl CastReceipt {
    fn add(&mut self, level: Level, need: Need) {
        self.taken += 1;
        self.level = self.level.min(level);
        self.need = self.need.and(need);
    }
}

/// The same octets once more.
fn same_body<'a>(body: &'a Body<'_>) -> Body<'a> {
    match body {
        Body::Borrowed(octets) => Body::Borrowed(octets),
        Body::Owned(bytes) => Body::Owned(bytes.clone()),
    }
}
