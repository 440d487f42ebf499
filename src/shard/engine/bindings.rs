//! Bindings: which topics a queue takes. Part of its definition, logged at `disk`, gone with it.

use super::Engine;
use crate::broker::pattern::Pattern;
use crate::broker::queue::QueueKey;
use crate::fault::{Fault, planted};
use crate::log::Entry;
use crate::log::disk::Storage;

/// Who takes what is cast to a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Receiver {
    /// A queue that is bound.
    Queue(QueueKey),
    /// A live subscription, by its place in the shard's slab.
    Live(u32),
}

impl<S: Storage> Engine<S> {
    /// Binds a queue; one that is bound stays so.
    pub fn bind(&mut self, key: QueueKey, pattern: Pattern) {
        let printed = pattern.printed();
        if self.install_binding(key, pattern)
            && !planted(Fault::BindingNotLogged)
            && let Some(log) = &mut self.log
        {
            log.append(&Entry::Bind {
                queue: self.queues[key.0 as usize].uid,
                pattern: &printed,
            });
            self.sync_wanted = true;
        }
    }

    /// Ends a binding; false if there is none.
    pub fn unbind(&mut self, key: QueueKey, pattern: &Pattern) -> bool {
        let found = self.remove_binding(key, pattern);
        if found && let Some(log) = &mut self.log {
            log.append(&Entry::Unbind {
                queue: self.queues[key.0 as usize].uid,
                pattern: &pattern.printed(),
            });
            self.sync_wanted = true;
        }
        found
    }

    /// Binds a queue without logging it; false if it was bound.
    pub fn install_binding(&mut self, key: QueueKey, pattern: Pattern) -> bool {
        self.topics.insert(&pattern, Receiver::Queue(key))
            && self.queue_mut(key).bindings.insert(pattern)
    }

    /// Ends a binding without logging it; false if there is none.
    pub fn remove_binding(&mut self, key: QueueKey, pattern: &Pattern) -> bool {
        self.topics.remove(pattern, Receiver::Queue(key))
            && self.queue_mut(key).bindings.remove(pattern)
    }

    /// The queue is deleted, its bindings with it.
    pub(super) fn drop_bindings(&mut self, key: QueueKey) {
        for pattern in std::mem::take(&mut self.queue_mut(key).bindings) {
            self.topics.remove(&pattern, Receiver::Queue(key));
        }
    }
}
