//! Where a queue's dead letters go.

use super::{NAME_BYTES_MAX, Queue};
use crate::broker::exchanges::DeadRoute;

/// Behind a queue's name: its dead-letter queue's.
const DEAD_SUFFIX: &[u8] = b".dead";

impl Queue {
    /// Messages that are dead go somewhere.
    pub fn buries(&self) -> bool {
        self.dead_route().is_some() || self.dead_name().is_some()
    }

    /// Where its dead letters are published to, if it was declared so.
    pub fn dead_route(&self) -> Option<&DeadRoute> {
        self.declared.as_ref()?.dead.as_ref()
    }

    /// A message whose tries are spent is dropped where there is no place for the dead.
    pub fn drops_spent(&self) -> bool {
        self.declared.is_some() && self.settings.maxdeliver > 0
    }

    /// Its dead-letter queue, if it has one.
    pub fn dead_name(&self) -> Option<Box<[u8]>> {
        match &self.settings.dead {
            Some(name) if name.is_empty() => None,
            Some(name) => Some(name.clone()),
            None => {
                let stem = &self.name[..self.name.len().min(NAME_BYTES_MAX - DEAD_SUFFIX.len())];
                Some([stem, DEAD_SUFFIX].concat().into())
            }
        }
    }
}
