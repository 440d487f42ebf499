//! Publishing: what a queue takes, refuses, or makes room for.

use super::super::Now;
use super::super::conn::Need;
use super::Engine;
use crate::broker::arena::ChunkPool;
use crate::broker::command::{Body, PublishOptions};
use crate::broker::dedup::{OnceHash, Original};
use crate::broker::headers;
use crate::broker::id::{Level, MessageId};
use crate::broker::keys::KeyHash;
use crate::broker::queue::{Published, Queue, QueueKey};
use crate::broker::reply::{Error, ErrorCode};
use crate::broker::settings::WhenFull;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{
    Log, LogIndex, Message, PUBLISH_HEAD_BYTES_MAX, Room, SectionsBuilder, SettleReason,
    TransferReason,
};

/// What became of a publish.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// The first message's id.
    pub first: MessageId,
    /// How many.
    pub count: u32,
    /// What the receipt may say once `need` is met.
    pub level: Level,
    /// When it may be sent.
    pub need: Need,
    /// It had been published before.
    pub duplicate: bool,
    /// Consumers may not see it yet.
    pub hidden: bool,
}

/// Why a publish did not happen.
#[derive(Debug)]
pub enum Refused {
    /// Answer this.
    Error(Error),
    /// Something must be read from the disk or made ready there first; ask again.
    Cold,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Error(error)
    }
}

/// A message that goes to make room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    pub id: MessageId,
    pub place: u64,
    pub size: Option<u32>,
}

/// What is said with `ERR DISK`, milliseconds.
const DISK_RETRY_MS: u32 = 500;
/// What is said with `ERR MEM` and `ERR FULL`, milliseconds.
const SPACE_RETRY_MS: u32 = 100;

impl<S: Storage> Engine<S> {
    /// Takes messages for a queue: all of them or none.
    #[inline]
    pub fn publish<'b>(
        &mut self,
        key: QueueKey,
        options: &PublishOptions<'_>,
        bodies: impl Iterator<Item = Body<'b>>,
        count: u32,
        body_bytes: u64,
        now: Now,
    ) -> Result<Receipt, Refused> {
        self.publish_if::<true>(key, options, bodies, count, body_bytes, now)
    }

    /// The same; limits and room are looked at only if that is still to be done.
    #[inline]
    pub(super) fn publish_if<'b, const ASKED: bool>(
        &mut self,
        key: QueueKey,
        options: &PublishOptions<'_>,
        bodies: impl Iterator<Item = Body<'b>>,
        count: u32,
        body_bytes: u64,
        now: Now,
    ) -> Result<Receipt, Refused> {
        let queue = &self.queues[key.0 as usize];
        let level = queue.settings.durable;
        let receipt_level = options.sync.unwrap_or(level);
        if receipt_level > level {
            return Err(stronger_than_stored(level, receipt_level).into());
        }
        let mut once = None;
        let message = if options.is_plain && queue.settings.pri == 0 {
            // What most publishes are, in one look.
            self.sections.clear();
            Published {
                place: 0,
                size: 0,
                pri: 0,
                due_us: 0,
                expires_us: None,
                now_us: now.us,
            }
        } else {
            if let Some(client_id) = &options.once {
                let hash = once_hash(self.once_key, client_id.decoded(&mut self.decoded));
                if let Some(receipt) = self.find_original(key, hash, receipt_level, now) {
                    return Ok(receipt);
                }
                once = Some(hash);
            }
            let message = when_published(&self.queues[key.0 as usize], options, now);
            self.build_sections(level, options, &message);
            message
        };
        if ASKED {
            self.admit(key, count, body_bytes, level, once.is_some(), now)?;
        }
        let order = match options.is_plain {
            true => None,
            false => self.order_of(options),
        };
        let queue = &mut self.queues[key.0 as usize];
        let is_shared = queue.sharing.is_some();
        let first = queue.next_id();
        if is_shared || order.is_some() {
            self.append_each(key, message, order, bodies, now);
        } else {
            self.append(key, message, bodies, now);
        }
        let queue = &mut self.queues[key.0 as usize];
        if queue.settings.rate.is_some() {
            queue.count_for_rate(now.us, count);
        }
        if let Some(hash) = once {
            queue.dedup.insert(
                hash,
                Original { first, count },
                queue.settings.dedup_us,
                now.us,
            );
        }
        let need = self.published(key, level, receipt_level);
        if message.due_us != 0 || !self.queues[key.0 as usize].expiry.is_empty() {
            self.arm(key);
        }
        Ok(Receipt {
            first,
            count,
            level: receipt_level,
            need,
            duplicate: false,
            hidden: level != Level::None,
        })
    }

    /// Stores messages that have no key in a queue without groups.
    #[inline]
    fn append<'b>(
        &mut self,
        key: QueueKey,
        mut message: Published,
        bodies: impl Iterator<Item = Body<'b>>,
        now: Now,
    ) {
        let queue = &mut self.queues[key.0 as usize];
        for body in bodies {
            message.size = body.as_slice().len() as u32;
            message.place = store(
                queue,
                &mut self.log,
                &mut self.pool,
                &self.sections,
                body,
                now,
            );
            queue.publish(message);
        }
    }

    /// Stores messages and whatever is to be noted of each.
    #[cold]
    fn append_each<'b>(
        &mut self,
        key: QueueKey,
        mut message: Published,
        order: Option<KeyHash>,
        bodies: impl Iterator<Item = Body<'b>>,
        now: Now,
    ) {
        for body in bodies {
            message.size = body.as_slice().len() as u32;
            message.place = store(
                &mut self.queues[key.0 as usize],
                &mut self.log,
                &mut self.pool,
                &self.sections,
                body,
                now,
            );
            self.enter(key, &message, order);
        }
    }

    /// The ordering key of a publish, as a queue keeps it.
    #[inline]
    pub(super) fn order_of(&mut self, options: &PublishOptions<'_>) -> Option<KeyHash> {
        let order = options.key.as_ref()?;
        Some(key_hash(self.once_key, order.decoded(&mut self.decoded)))
    }

    /// Messages were appended: now visible, or when the log has got to the level. Returns what a
    /// receipt at `receipt_level` waits for.
    #[inline]
    pub(super) fn published(&mut self, key: QueueKey, level: Level, receipt_level: Level) -> Need {
        let queue = &mut self.queues[key.0 as usize];
        if level == Level::None {
            queue.reveal(queue.next_id());
            if queue.sharing.is_some() {
                self.reveal_groups(key);
            }
            self.schedule(key);
            return Need::NOW;
        }
        self.sync_wanted |= level >= Level::Disk;
        let log = self.log.as_ref().expect("a logged level needs a log");
        let index = log.index();
        if queue.last_index != index.0 {
            queue.last_index = index.0;
            self.touched.push(key);
        }
        Need {
            level: receipt_level,
            index,
        }
    }

    pub(super) fn find_original(
        &mut self,
        key: QueueKey,
        hash: OnceHash,
        level: Level,
        now: Now,
    ) -> Option<Receipt> {
        let queue = &mut self.queues[key.0 as usize];
        let original = queue.dedup.find(hash, queue.settings.dedup_us, now.us)?;
        queue.counters.deduplicated += 1;
        let hidden = original.first >= queue.visible();
        // What became visible while the queue was at `os` may not be on the disk yet.
        let index = match hidden {
            true => queue.last_index,
            false if level >= Level::Disk => queue.os_index,
            false => 0,
        };
        let need = Need {
            level: if index == 0 { Level::None } else { level },
            index: LogIndex(index),
        };
        self.sync_wanted |= level >= Level::Disk && !self.reached(need);
        Some(Receipt {
            first: original.first,
            count: original.count,
            level,
            need,
            duplicate: true,
            hidden,
        })
    }

    /// May the queue take so much now? Makes room if that is its way.
    #[inline]
    pub(super) fn admit(
        &mut self,
        key: QueueKey,
        count: u32,
        body_bytes: u64,
        level: Level,
        once: bool,
        now: Now,
    ) -> Result<(), Refused> {
        let queue = &mut self.queues[key.0 as usize];
        let settings = &queue.settings;
        if settings.pause.input {
            queue.counters.rejected += 1;
            return Err(paused().into());
        }
        if self.over_budget {
            queue.counters.rejected += 1;
            return Err(out_of_memory(once).into());
        }
        if settings.rate.is_some() {
            let wait_us = queue.wait_for_rate_us(now.us, count);
            if wait_us > 0 {
                queue.counters.rejected += 1;
                return Err(too_fast(queue, wait_us).into());
            }
        }
        if level != Level::None
            && let Some(log) = &mut self.log
        {
            let heads = u64::from(count) * (PUBLISH_HEAD_BYTES_MAX + self.sections.len()) as u64;
            let record_bytes = (body_bytes + heads) as usize;
            begin(log, record_bytes).inspect_err(|refused| {
                queue.counters.rejected += u64::from(matches!(refused, Refused::Error(_)));
            })?;
            if settings.maxlen.is_some() || settings.maxbytes.is_some() {
                self.make_room(key, u64::from(count), body_bytes, now)?;
                // What was dropped to make room stands in the record too: the messages get one that holds
                // all of them.
                let log = self.log.as_mut().expect("it was just asked");
                begin(log, record_bytes)?;
            }
        } else if settings.maxlen.is_some() || settings.maxbytes.is_some() {
            self.make_room(key, u64::from(count), body_bytes, now)?;
        }
        Ok(())
    }

    /// Checks `maxlen` and `maxbytes`; drops the oldest where that is wanted.
    fn make_room(
        &mut self,
        key: QueueKey,
        count: u64,
        body_bytes: u64,
        now: Now,
    ) -> Result<(), Refused> {
        let dropped = self
            .plan_room(key, count, body_bytes)
            .inspect_err(|refused| {
                let rejected = u64::from(matches!(refused, Refused::Error(_)));
                self.queues[key.0 as usize].counters.rejected += rejected;
            })?;
        self.drop_oldest(key, dropped, now);
        Ok(())
    }

    /// What must be dropped so that the queue has room by `maxlen` and `maxbytes`. Changes nothing.
    pub(super) fn plan_room(
        &mut self,
        key: QueueKey,
        count: u64,
        body_bytes: u64,
    ) -> Result<Vec<Dropped>, Refused> {
        let queue = &self.queues[key.0 as usize];
        let bytes = queue.counted_bytes();
        let length = match queue.declared {
            // What is with consumers is not in the queue for those who declare its length.
            Some(_) => queue.counted() - queue.leased(),
            None => queue.counted(),
        };
        self.plan_room_from(key, length, bytes, count, body_bytes)
    }

    /// The same for a queue that will have so many messages and bytes by then.
    pub(super) fn plan_room_from(
        &mut self,
        key: QueueKey,
        length: u64,
        bytes: u64,
        count: u64,
        body_bytes: u64,
    ) -> Result<Vec<Dropped>, Refused> {
        let queue = &self.queues[key.0 as usize];
        let length_max = queue.settings.maxlen.unwrap_or(u64::MAX);
        let length_max = length_max.saturating_add(u64::from(planted(Fault::LimitOffByOne)));
        let bytes_max = queue.settings.maxbytes.unwrap_or(u64::MAX);
        let is_shared = queue.is_shared();
        let mut length = length.saturating_add(count);
        let mut bytes = bytes.saturating_add(body_bytes);
        if length <= length_max && bytes <= bytes_max {
            return Ok(Vec::new());
        }
        let possible = count <= length_max && body_bytes <= bytes_max;
        if queue.settings.full == WhenFull::Reject || !possible {
            return Err(full(queue, possible).into());
        }
        let mut dropped = Vec::new();
        let mut from = 0;
        while length > length_max || bytes > bytes_max {
            let found = match is_shared {
                true => self.next_droppable(key, from),
                false => self.queue(key).next_unleased(from),
            };
            let Some(id) = found else {
                return Err(full(self.queue(key), true).into());
            };
            let (place, size) = self.locate(key, id).ok_or(Refused::Cold)?;
            dropped.push(Dropped { id, place, size });
            from = id + 1;
            length -= 1;
            bytes = bytes.saturating_sub(u64::from(size.unwrap_or(0)));
        }
        Ok(dropped)
    }

    /// Drops what [`Engine::plan_room`] has found.
    pub(super) fn drop_oldest(&mut self, key: QueueKey, dropped: Vec<Dropped>, now: Now) {
        let dead = self.queue(key).settings.deadon.full;
        for Dropped { id, place, size } in dropped {
            self.queue_mut(key).counters.dropped += 1;
            if self.queue(key).is_shared() {
                let dead = dead && self.queue(key).buries();
                self.settle_for_all(key, id, place, size, SettleReason::DroppedOld, dead, now);
            } else if !(dead
                && self.bury_waiting(key, id, place, size, TransferReason::DroppedOld, now))
            {
                self.settle_waiting(key, id, place, size, SettleReason::DroppedOld);
            }
        }
    }

    /// Encodes what a consumer is told of a message beside its body, for [`Engine::sections`].
    pub fn build_told(&mut self, options: &PublishOptions<'_>) {
        let nothing = Published {
            place: 0,
            size: 0,
            pri: 0,
            due_us: 0,
            expires_us: None,
            now_us: 0,
        };
        self.build_sections(Level::None, options, &nothing);
    }

    /// What was encoded last.
    pub fn sections(&self) -> &[u8] {
        &self.sections
    }

    /// The optional parts of a message, encoded as the log keeps them. A `none` queue needs only
    /// what a consumer is told.
    pub(super) fn build_sections(
        &mut self,
        level: Level,
        options: &PublishOptions<'_>,
        message: &Published,
    ) {
        self.sections.clear();
        let mut builder = SectionsBuilder::new(&mut self.sections);
        if let Some(key) = &options.key {
            builder.key(key.decoded(&mut self.decoded));
        }
        if let Some(reply) = &options.reply {
            builder.reply(reply.decoded(&mut self.decoded));
        }
        if !options.args.is_empty() {
            self.headers.clear();
            for (name, value) in options.headers() {
                headers::push_text(&mut self.headers, name, value.decoded(&mut self.decoded));
            }
            builder.headers(&self.headers);
        }
        if !options.sections.is_empty() {
            self.sections.extend_from_slice(options.sections);
        }
        if level == Level::None {
            return;
        }
        let mut builder = SectionsBuilder::new(&mut self.sections);
        if let Some(once) = &options.once {
            builder.once(once.decoded(&mut self.decoded));
        }
        if let Some(expires_us) = message.expires_us {
            builder.expires_at(expires_us);
        }
        if message.due_us != 0 {
            builder.due(message.due_us);
        }
        if message.pri != 0 {
            builder.priority(message.pri);
        }
    }
}

/// Stores a body where its queue's messages are; its place.
#[inline(always)]
pub(super) fn store<S: Storage>(
    queue: &mut Queue,
    log: &mut Option<Log<S>>,
    pool: &mut ChunkPool,
    sections: &[u8],
    body: Body<'_>,
    now: Now,
) -> u64 {
    let time_ms = now.us / 1000;
    if queue.settings.durable == Level::None {
        return queue.arena.push(time_ms, sections, &body, pool);
    }
    let log = log.as_mut().expect("a logged level needs a log");
    let message = Message {
        time_ms,
        sections,
        body,
    };
    log.publish(queue.uid, queue.next_id(), &message).0
}

/// When a message becomes ready and when it expires.
#[inline]
pub(super) fn when_published(queue: &Queue, options: &PublishOptions<'_>, now: Now) -> Published {
    let settings = &queue.settings;
    let delay_us = match options.at_us {
        Some(at_us) => at_us.saturating_sub(now.wall_us),
        None => options.delay_us.unwrap_or(0),
    };
    let due_us = if delay_us == 0 {
        0
    } else {
        now.us.saturating_add(delay_us)
    };
    let ttl_us = match (options.ttl_us, settings.ttl_us) {
        (Some(own), Some(of_queue)) if options.within => Some(own.min(of_queue)),
        (Some(own), _) => Some(own),
        (None, of_queue) => of_queue.filter(|_| due_us != 0),
    };
    Published {
        place: 0,
        size: 0,
        pri: match &queue.declared {
            Some(declared) if options.within => options.pri.unwrap_or(0).min(declared.pri_max),
            None if options.within => settings.pri,
            _ => options.pri.unwrap_or(settings.pri),
        },
        due_us,
        expires_us: ttl_us.map(|ttl_us| now.us.max(due_us).saturating_add(ttl_us)),
        now_us: now.us,
    }
}

/// A client's id as the dedup window keeps it: SipHash-2-4 with 128 bits.
pub fn once_hash(key: u64, client_id: &[u8]) -> OnceHash {
    use siphasher::sip128::{Hasher128, SipHasher24};
    use std::hash::Hasher;
    let mut hasher = SipHasher24::new_with_keys(key, !key);
    hasher.write(client_id);
    hasher.finish128().as_u128()
}

/// An ordering key as a queue keeps it: the same hash.
pub fn key_hash(key: u64, octets: &[u8]) -> KeyHash {
    once_hash(key, octets)
}

#[cold]
pub(super) fn stronger_than_stored(level: Level, asked: Level) -> Error {
    Error::new(
        ErrorCode::Conflict,
        format!(
            "the queue stores at {}, so sync={} cannot be promised; QSET durable={} first",
            level.setting(),
            asked.setting(),
            asked.setting()
        ),
    )
}

#[cold]
pub(super) fn paused() -> Error {
    Error::new(
        ErrorCode::Paused,
        "the queue takes nothing at the moment; QSET q pause= opens it",
    )
    .retry(1000)
}

#[cold]
pub(super) fn out_of_memory(once: bool) -> Error {
    if once {
        let text = "there is no memory to remember another once=; try again when some have left their window";
        return Error::new(ErrorCode::Limit, text).retry(SPACE_RETRY_MS);
    }
    Error::new(
        ErrorCode::Mem,
        "the memory budget is used up; consume, or start with a larger --memory-budget",
    )
    .retry(SPACE_RETRY_MS)
}

/// Room for all of a publish in one record.
#[inline]
fn begin<S: Storage>(log: &mut Log<S>, bytes: usize) -> Result<(), Refused> {
    begin_many(log, bytes, 1)
}

/// Room for all that goes to so many queues in one record.
#[inline]
pub(super) fn begin_many<S: Storage>(
    log: &mut Log<S>,
    bytes: usize,
    queues: usize,
) -> Result<(), Refused> {
    match log.begin_many(bytes, queues) {
        Room::Plenty | Room::Waiting => Ok(()),
        Room::NoSegment => Err(Refused::Cold),
        Room::DiskFull if log.room() == Room::DiskFull => Err(disk_full().into()),
        Room::DiskFull => Err(no_segment().into()),
    }
}

#[cold]
fn no_segment() -> Error {
    Error::new(
        ErrorCode::Disk,
        "no segment of the log can hold this yet; try again in a moment, or with a smaller batch",
    )
    .retry(SPACE_RETRY_MS)
}

#[cold]
fn disk_full() -> Error {
    Error::new(
        ErrorCode::Disk,
        "the disk is full; acks and pulls go on, publishing resumes when there is space",
    )
    .retry(DISK_RETRY_MS)
}

#[cold]
pub(super) fn too_fast(queue: &Queue, wait_us: u64) -> Error {
    let rate = queue.settings.rate.unwrap_or(0);
    let text = format!("the queue takes {rate} messages a second (rate={rate}/s)");
    let retry_ms = wait_us.div_ceil(1000).min(u64::from(u32::MAX)) as u32;
    Error::new(ErrorCode::Limit, text).retry(retry_ms)
}

#[cold]
pub(super) fn full(queue: &Queue, possible: bool) -> Error {
    let text = if possible {
        "the queue is at its maxlen or maxbytes; consume, raise it, or QSET full=dropold"
    } else {
        "this is more than the queue's maxlen or maxbytes allows at all; raise it with QSET"
    };
    let mut error = Error::new(ErrorCode::Full, text).retry(SPACE_RETRY_MS);
    error.fields = format!(
        "messages={} bytes={}",
        queue.counted(),
        queue.counted_bytes()
    );
    error
}
