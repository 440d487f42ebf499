//! CAST, BIND and UNBIND: a message for everybody who wants its topic.

use super::conn::Need;
use super::engine::{Receiver, Refused};
use super::session::{Asker, Flow};
use super::{Now, Shard};
use crate::broker::command::{Body, PublishOptions, Typed};
use crate::broker::id::Level;
use crate::broker::pattern::Pattern;
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::protocol::text::value;

/// What is said with `ERR MEM`, milliseconds.
const MEMORY_RETRY_MS: u32 = 100;

impl<S: Storage> Shard<S> {
    /// `CAST`: a copy for each queue that is bound, which takes or refuses it for itself, and for each live
    /// connection.
    pub(super) fn cast(
        &mut self,
        asker: Asker<'_>,
        topic: Typed<'_>,
        options: &PublishOptions<'_>,
        body: Body<'_>,
        now: Now,
    ) -> Flow {
        let mut scratch = Vec::new();
        let topic = topic.decoded(&mut scratch);
        let mut found = std::mem::take(&mut self.receivers);
        self.engine.topics.matches(topic, &mut found);
        let queues = self.queues_among(&found, topic);
        let outcome = self.engine.cast(&queues, options, &body, now);
        let receipt = match outcome {
            Ok(receipt) => receipt,
            Err(Refused::Error(error)) => {
                self.receivers = found;
                return self.conclude(asker, Err(error));
            }
            Err(Refused::Cold) => {
                if let Body::Owned(bytes) = body {
                    self.conns[asker.slot].rare.make().kept_body = Some(bytes);
                }
                self.receivers = found;
                self.block_cold(asker.slot);
                return Flow::Again;
            }
        };
        // Nothing can make the command come again now.
        let live = self.give_live(&found, topic, options, &body, now);
        self.receivers = found;
        self.note_taken(receipt.taken);
        let conn = &mut self.conns[asker.slot];
        if receipt.visible.level != Level::None {
            conn.published.add(receipt.visible);
        }
        if asker.quiet {
            let quiet = &mut conn.rare.make().quiet;
            quiet.need = quiet.need.and(receipt.need);
            if receipt.refused > 0 {
                quiet.rejected += 1;
            } else {
                quiet.accepted += 1;
                quiet.level = match receipt.taken {
                    0 => Level::None,
                    _ => quiet.level.min(receipt.level),
                };
            }
            return Flow::Done;
        }
        let reply = Reply::Cast {
            receivers: receipt.taken + live,
            level: match receipt.taken {
                0 => Level::None,
                _ => receipt.level,
            },
            refused: receipt.refused,
        };
        let need = match planted(Fault::CastConfirmedEarly) {
            true => Need::NOW,
            false => receipt.need,
        };
        self.answer_when(asker, need, &reply);
        Flow::Done
    }

    /// The queues that a cast of the topic reaches.
    pub(super) fn queues_bound(&mut self, topic: &[u8]) -> Vec<QueueKey> {
        let mut found = std::mem::take(&mut self.receivers);
        self.engine.topics.matches(topic, &mut found);
        let queues = self.queues_among(&found, topic);
        self.receivers = found;
        queues
    }

    /// Those of its receivers that are queues, and those that exchanges bind.
    fn queues_among(&mut self, found: &[Receiver], topic: &[u8]) -> Vec<QueueKey> {
        let queues = found.iter().filter_map(|receiver| match receiver {
            Receiver::Queue(key) => Some(*key),
            Receiver::Live(_) => None,
        });
        let mut queues: Vec<QueueKey> = queues.collect();
        self.engine.add_bound_to_topics(topic, &mut queues);
        queues
    }

    /// `BIND`: the queue takes what is cast to such topics from now on.
    pub(super) fn bind(
        &mut self,
        asker: Asker<'_>,
        pattern: &[u8],
        queue: Typed<'_>,
    ) -> Result<(), Error> {
        let pattern = Pattern::new(pattern)?;
        if self.engine.over_budget {
            return Err(no_memory());
        }
        let key = self.find_or_create(queue);
        self.engine.bind(key, pattern);
        let mut need = self.engine.need(Level::Disk);
        if planted(Fault::DefinitionNotSynced) {
            need = Need::NOW;
            self.engine.sync_wanted = false;
        }
        self.answer_when(asker, need, &Reply::Ok);
        Ok(())
    }

    /// `UNBIND`: it does not any more.
    pub(super) fn unbind(
        &mut self,
        asker: Asker<'_>,
        pattern: &[u8],
        queue: Typed<'_>,
    ) -> Result<(), Error> {
        let pattern = Pattern::new(pattern)?;
        let key = self.existing(queue)?;
        if !self.engine.unbind(key, &pattern) {
            let text = format!(
                "{0} is not bound to {1}; QGET {0} tells what it is bound to",
                value::shown(queue.0),
                value::shown(&pattern.printed())
            );
            return Err(Error::new(ErrorCode::Conflict, text));
        }
        let need = self.engine.need(Level::Disk);
        self.answer_when(asker, need, &Reply::Ok);
        Ok(())
    }
}

/// There is no memory to remember another pattern.
#[cold]
pub(super) fn no_memory() -> Error {
    Error::new(
        ErrorCode::Mem,
        "the memory budget is used up; consume, or start with a larger --memory-budget",
    )
    .retry(MEMORY_RETRY_MS)
}
