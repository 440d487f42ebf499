//! Plain publishes to one queue, one after another: what is the same for all of them is looked at once.

use super::super::Now;
use super::super::conn::Need;
use super::Engine;
use crate::broker::arena::{ChunkPool, OWN_BYTES_MIN, PushRun};
use crate::broker::command::Body;
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::queue::{Queue, QueueKey};
use crate::log::disk::Storage;
use crate::log::{Log, LogIndex, Message, PUBLISH_HEAD_BYTES_MAX, Room};

/// Messages without options for a queue that asks nothing of them. They are in one record of the log;
/// a run ends where a record does.
pub struct Run<'e, S: Storage> {
    queue: &'e mut Queue,
    store: Store<'e, S>,
    time_ms: u64,
}

enum Store<'e, S: Storage> {
    Memory(&'e mut ChunkPool, &'e mut PushRun),
    Log(&'e mut Log<S>, LogIndex, &'e mut PushRun),
}

impl<S: Storage> Engine<S> {
    /// Begins a run, if the queue is still that one and publishes to it are plain: none is refused but for
    /// want of space in the log.
    #[inline]
    pub fn begin_run(&mut self, key: QueueKey, uid: QueueUid, now: Now) -> Option<Run<'_, S>> {
        if self.over_budget || !self.is_same(key, uid) {
            return None;
        }
        let queue = &mut self.queues[key.0 as usize];
        if !queue.takes_plainly() {
            return None;
        }
        let store = match (queue.settings.durable, &mut self.log) {
            (Level::None, _) => Store::Memory(&mut self.pool, &mut self.places),
            (_, Some(log)) => {
                let index = log.index();
                Store::Log(log, index, &mut self.places)
            }
            (_, None) => return None,
        };
        Some(Run {
            queue,
            store,
            time_ms: now.us / 1000,
        })
    }

    /// Ends a run that has taken messages at this level: they are visible, or will be when the log has
    /// got there.
    #[inline]
    pub fn end_run(&mut self, key: QueueKey, level: Level) {
        self.published(key, level, level);
    }
}

impl<S: Storage> Run<'_, S> {
    /// The level of all receipts.
    pub fn level(&self) -> Level {
        self.queue.settings.durable
    }

    /// What the receipts wait for, if for anything.
    pub fn need(&self) -> Option<Need> {
        match &self.store {
            Store::Memory(..) => None,
            Store::Log(_, index, _) => Some(Need {
                level: self.level(),
                index: *index,
            }),
        }
    }

    /// The id of the next message.
    pub fn next_id(&self) -> MessageId {
        self.queue.next_id()
    }

    /// Is there room for a message of so many bytes, so that [`Run::push_all`] takes it?
    #[inline]
    pub fn has_room(&mut self, bytes: usize) -> bool {
        match &mut self.store {
            Store::Memory(..) => bytes < OWN_BYTES_MIN,
            Store::Log(log, index, _) => {
                log.begin_run(self.time_ms, bytes) && log.index() == *index
            }
        }
    }

    /// Takes the messages that `next` gives, as many as there is room for: it is told which length a body has to stay
    /// below. There must be [room](Run::has_room) for the first.
    #[inline(always)]
    pub fn push_all<'b>(&mut self, mut next: impl FnMut(usize) -> Option<&'b [u8]>) {
        let (pool, places) = match &mut self.store {
            Store::Memory(pool, places) => (pool, places),
            Store::Log(log, _, places) => {
                let (uid, first, most) =
                    (self.queue.uid, self.queue.next_id(), self.queue.run_max());
                let offsets = &mut places.offsets;
                let (base, bytes) = log.publish_run(uid, first, self.time_ms, most, next, offsets);
                (places.base, places.bytes) = (base.0, bytes);
                return self.queue.publish_run(places);
            }
        };
        let mut next = || next(OWN_BYTES_MIN);
        let mut first = next();
        while let Some(body) = first {
            let mut more = self.queue.run_max() - 1;
            let bounded = || match more {
                0 => None,
                _ => {
                    more -= 1;
                    next()
                }
            };
            let arena = &mut self.queue.arena;
            first = arena.push_run(self.time_ms, body, bounded, pool, places);
            self.queue.publish_run(places);
            if more == 0 && first.is_none() {
                first = next();
            }
        }
    }

    /// Takes a message; false if the run has to end before it.
    #[inline]
    pub fn push(&mut self, body: &[u8]) -> bool {
        if body.len() >= OWN_BYTES_MIN {
            return false;
        }
        let place = match &mut self.store {
            Store::Memory(pool, _) => self.queue.arena.push_small(self.time_ms, body, pool),
            Store::Log(log, index, _) => {
                let room = log.begin(body.len() + PUBLISH_HEAD_BYTES_MAX);
                if !matches!(room, Room::Plenty | Room::Waiting) || log.index() != *index {
                    return false;
                }
                let message = Message {
                    time_ms: self.time_ms,
                    sections: &[],
                    body: Body::Borrowed(body),
                };
                log.publish(self.queue.uid, self.queue.next_id(), &message)
                    .0
            }
        };
        self.queue.publish_plain(place, body.len() as u32);
        true
    }
}
