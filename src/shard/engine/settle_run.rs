//! Acks of a run of deliveries: of consecutive messages of a `none` queue about which nothing else is known,
//! under leases that were begun together. What is not so is left to [`Engine::ack`].

use super::Engine;
use crate::broker::id::Handle;
use crate::broker::lease::HolderKey;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;

impl<S: Storage> Engine<S> {
    /// Settles the first of these messages, as many as are a run; how many, and who had them. Their end is safe
    /// at once.
    #[inline]
    pub fn ack_run(
        &mut self,
        mut handles: impl Iterator<Item = Handle>,
    ) -> Option<(usize, HolderKey)> {
        let first = handles.next()?;
        let lease = self.lease(first)?;
        let (key, holder) = (lease.queue, lease.holder);
        let queue = &mut self.queues[key.0 as usize];
        let most = queue.settles_in_run(first.id);
        if most == 0 || planted(Fault::StaleAckWins) {
            return None;
        }
        let wanted = |nth: u64| {
            let is_next = |handle: Handle| {
                handle.serial == first.serial + nth
                    && handle.id == first.id + nth
                    && handle.incarnation == first.incarnation
            };
            nth == 0 || (nth < most && handles.next().is_some_and(is_next))
        };
        let mut freed = queue.arena.free_run(&mut self.pool);
        let mut bytes = 0;
        let count = self
            .leases
            .end_run(first.serial, first.id, wanted, |place, size| {
                bytes += u64::from(size);
                freed.free(place);
            });
        drop(freed);
        queue.settle_run(first.id, count, bytes);
        self.times.acked_run(first.serial, count as u64);
        (count > 0).then_some((count, holder))
    }
}
