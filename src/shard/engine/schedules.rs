//! Schedules: a message that is due is published in the record that says when the next one is, so that
//! no restart publishes it twice.

use super::super::Now;
use super::publish::{begin_many, store};
use super::{Engine, Refused, key_hash};
use crate::broker::command::Body;
use crate::broker::id::{Level, QueueUid};
use crate::broker::queue::{Published, QueueKey};
use crate::broker::reply::{Error, ErrorCode};
use crate::broker::schedule::{SCHEDULES_MAX, Schedule};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{
    Entry, PUBLISH_HEAD_BYTES_MAX, SCHEDULE_HEAD_BYTES_MAX, SectionKind, Sections, SectionsBuilder,
};

/// A message that its queue refuses is tried again after so long, microseconds.
const REFUSED_US: u64 = 1_000_000;
/// One that waits for the disk, microseconds.
const COLD_US: u64 = 10_000;
/// Messages published in one turn at most.
const TURN_MAX: usize = 1024;

impl<S: Storage> Engine<S> {
    /// Makes a schedule of a queue, or changes the one of that name; returns its number. One whose
    /// interval stays is due when it was, unless `first_us` says otherwise.
    ///
    /// # Errors
    /// The queue has too many, or there is no room for another one.
    pub fn set_schedule(
        &mut self,
        key: QueueKey,
        schedule: Schedule,
        first_us: Option<u64>,
        now: Now,
    ) -> Result<u64, Refused> {
        let uid = self.queue(key).uid;
        let known = self.schedules.find(uid, &schedule.name);
        if known.is_none() && self.schedules.of(uid).count() >= SCHEDULES_MAX {
            let text = format!("a queue has at most {SCHEDULES_MAX} schedules; every=0 ends one");
            return Err(Error::new(ErrorCode::Limit, text).into());
        }
        let number = known.unwrap_or(self.schedules.next_number);
        let kept_us = known
            .and_then(|number| self.schedules.get(uid, number))
            .filter(|planned| planned.schedule.every_us == schedule.every_us)
            .map(|planned| planned.next_us);
        let next_us = first_us
            .or(kept_us)
            .unwrap_or(now.us.saturating_add(schedule.every_us));
        let mut definition = Vec::new();
        schedule.encode(&mut definition);
        if let Some(log) = &mut self.log {
            begin_many(log, SCHEDULE_HEAD_BYTES_MAX + definition.len(), 1)?;
        }
        self.log_schedule(uid, number, next_us, &definition);
        self.sync_wanted = true;
        self.schedules.insert(uid, number, schedule, next_us);
        Ok(number)
    }

    /// Ends a schedule by its name (octets); its number, or `None` if there is none.
    pub fn end_schedule(&mut self, key: QueueKey, name: &[u8]) -> Option<u64> {
        let uid = self.queue(key).uid;
        let number = self.schedules.find(uid, name)?;
        self.schedules.remove(uid, number);
        self.log_schedule(uid, number, 0, b"");
        self.sync_wanted = true;
        Some(number)
    }

    fn log_schedule(&mut self, queue: QueueUid, number: u64, next_us: u64, definition: &[u8]) {
        if let Some(log) = &mut self.log {
            log.append(&Entry::Schedule {
                queue,
                number,
                next_us,
                definition,
            });
        }
    }

    /// Publishes what is due, one message for each schedule.
    pub(super) fn fire_due(&mut self, now: Now) {
        for _ in 0..TURN_MAX {
            let Some((uid, number)) = self.schedules.first_due(now.us) else {
                return;
            };
            match self.fire(uid, number, now) {
                Ok(()) => {}
                Err(Refused::Cold) => self.schedules.postpone(uid, number, now.us + COLD_US),
                Err(Refused::Error(_)) => {
                    self.schedules.postpone(uid, number, now.us + REFUSED_US);
                }
            }
        }
    }

    /// One message of a schedule.
    fn fire(&mut self, uid: QueueUid, number: u64, now: Now) -> Result<(), Refused> {
        let planned = self.schedules.get(uid, number).expect("it is due");
        let key = self.find_uid(uid).expect("a schedule goes with its queue");
        let queue = self.queue(key);
        let level = queue.settings.durable;
        let Schedule {
            ttl_us,
            pri,
            sections,
            body,
            ..
        } = &planned.schedule;
        let mut message = Published {
            place: 0,
            size: body.len() as u32,
            pri: pri.unwrap_or(queue.settings.pri),
            due_us: 0,
            expires_us: ttl_us.map(|ttl_us| now.us.saturating_add(ttl_us)),
            now_us: now.us,
        };
        let (body, next_us) = (body.clone(), planned.following_us(now.us));
        let order = Sections(sections).get(SectionKind::Key);
        let order = order.map(|order| key_hash(self.once_key, order));
        self.sections.clear();
        self.sections.extend_from_slice(sections);
        if level != Level::None {
            let mut builder = SectionsBuilder::new(&mut self.sections);
            if let Some(expires_us) = message.expires_us {
                builder.expires_at(expires_us);
            }
            if message.pri != 0 {
                builder.priority(message.pri);
            }
        }
        let size = u64::from(message.size);
        self.admit(key, 1, size, level, false, now)?;
        if level != Level::None
            && let Some(log) = &mut self.log
        {
            let bytes = PUBLISH_HEAD_BYTES_MAX + self.sections.len() + body.len();
            begin_many(log, bytes + SCHEDULE_HEAD_BYTES_MAX, 2)?;
        }
        let queue = &mut self.queues[key.0 as usize];
        if queue.settings.rate.is_some() {
            queue.count_for_rate(now.us, 1);
        }
        let (log, pool) = (&mut self.log, &mut self.pool);
        let body = Body::Owned(body);
        message.place = store(queue, log, pool, &self.sections, body, now);
        self.enter(key, &message, order);
        self.published(key, level, level);
        self.queue_mut(key).counters.scheduled += 1;
        if !self.queue(key).expiry.is_empty() {
            self.arm(key);
        }
        self.schedules.advance(uid, number, next_us);
        if !planted(Fault::FiringNotLogged) {
            self.log_schedule(uid, number, next_us, b"");
        }
        Ok(())
    }
}
