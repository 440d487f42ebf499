//! Acks of a run of deliveries: of consecutive messages of a queue about which nothing else is known,
//! under leases that were begun together. What is not so is left to [`Engine::ack`].

use super::{Engine, free_slots};
use crate::broker::id::{Handle, Level, MessageId};
use crate::broker::lease::HolderKey;
use crate::broker::queue::QueueKey;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{Position, SettleReason};

impl<S: Storage> Engine<S> {
    /// Settles the first of these messages, as many as are a run; how many, who had them, and the level at which that
    /// is safe.
    #[inline]
    pub fn ack_run(
        &mut self,
        mut handles: impl Iterator<Item = Handle>,
    ) -> Option<(usize, HolderKey, Level)> {
        let first = handles.next()?;
        let lease = self.lease(first)?;
        let (key, holder) = (lease.queue, lease.holder);
        let queue = &mut self.queues[key.0 as usize];
        let most = queue.settles_in_run(first.id);
        let plants = [Fault::StaleAckWins, Fault::AckNotLogged];
        if most == 0 || plants.into_iter().any(planted) {
            return None;
        }
        let level = queue.settings.durable;
        let wanted = |nth: u64| {
            let is_next = |handle: Handle| {
                handle.serial == first.serial + nth
                    && handle.id == first.id + nth
                    && handle.incarnation == first.incarnation
            };
            nth == 0 || (nth < most && handles.next().is_some_and(is_next))
        };
        let mut bytes = 0;
        let count = match (level, &mut self.log) {
            (Level::None, _) => {
                let mut freed = queue.arena.free_run(&mut self.pool);
                self.leases
                    .end_run(first.serial, first.id, wanted, |place, size| {
                        bytes += u64::from(size);
                        freed.free(place);
                    })
            }
            (_, Some(log)) => {
                let mut freed = log.free_run();
                self.leases
                    .end_run(first.serial, first.id, wanted, |place, size| {
                        bytes += u64::from(size);
                        freed.free(Position(place));
                    })
            }
            (_, None) => return None,
        };
        queue.settle_run(first.id, count, bytes);
        if level != Level::None && count > 0 {
            self.log_run(key, first.id, count as u64);
        }
        self.times.acked_run(first.serial, count as u64);
        (count > 0).then_some((count, holder, level))
    }

    /// Logs that messages of a logged queue are acked.
    fn log_run(&mut self, key: QueueKey, first: MessageId, count: u64) {
        let queue = &mut self.queues[key.0 as usize];
        let log = self.log.as_mut().expect("a logged queue has a log");
        log.settle_run(queue.uid, SettleReason::Acked, first, count);
        self.sync_wanted |= queue.settings.durable >= Level::Disk;
        free_slots(log, &mut queue.index);
    }
}
