//! Requests: messages that lie in memory whatever their queue's level is, until they are settled or
//! their time is up.
//!
//! A request has an id of its queue like any other message, so that order, priority, leases and tries
//! are as always. Its place says that the log does not know it: nothing of it is logged, a checkpoint
//! leaves it out, and after a restart its id is one that was never used.

use super::super::Now;
use super::publish::when_published;
use super::{Engine, Refused};
use crate::broker::arena::REQUEST;
use crate::broker::command::{Body, PublishOptions};
use crate::broker::id::{Level, MessageId};
use crate::broker::queue::QueueKey;
use crate::log::disk::Storage;

impl<S: Storage> Engine<S> {
    /// Takes a request for a queue; it is gone at `expires_us` if nobody has it then.
    ///
    /// # Errors
    /// The queue takes nothing now: `PAUSED`, `FULL`, `MEM`. Nothing has happened then.
    pub fn publish_request(
        &mut self,
        key: QueueKey,
        options: &PublishOptions<'_>,
        body: &Body<'_>,
        expires_us: u64,
        now: Now,
    ) -> Result<(), Refused> {
        let queue = &self.queues[key.0 as usize];
        let mut message = when_published(queue, options, now);
        message.expires_us = Some(expires_us);
        message.size = body.as_slice().len() as u32;
        self.build_sections(Level::None, options, &message);
        self.admit(key, 1, u64::from(message.size), Level::None, false, now)?;
        let order = self.order_of(options);
        let queue = &mut self.queues[key.0 as usize];
        let place = queue
            .arena
            .push(now.us / 1000, &self.sections, body, &mut self.pool);
        message.place = place | REQUEST;
        let id = self.enter(key, &message, order);
        self.reveal_request(key, id);
        self.arm(key);
        Ok(())
    }

    /// A request was given the id: it can be seen at once, or with those before it that wait for the
    /// log, since the order within a queue is kept.
    pub(super) fn reveal_request(&mut self, key: QueueKey, id: MessageId) {
        let queue = &mut self.queues[key.0 as usize];
        if queue.visible() == id {
            queue.reveal(id + 1);
            let is_shared = queue.sharing.is_some();
            self.schedule(key);
            if is_shared {
                self.reveal_groups(key, id + 1);
            }
        } else {
            assert!(
                queue.settings.durable != Level::None,
                "a none queue hides nothing"
            );
            self.touched.push(key);
        }
    }
}
