//! What consumers say of their deliveries: acks, rejects, recover.

use super::{Fault, Mode, Outcome, Unacked, channel_fault, connection_fault, tx};
use crate::broker::id::Handle;
use crate::broker::lease::Lease;
use crate::fault::{Fault as Planted, planted};
use crate::log::disk::Storage;
use crate::log::{SettleReason, TransferReason};
use crate::protocol::amqp::code;
use crate::shard::engine::Return;
use crate::shard::{Now, Shard};

/// No delivery of that tag is unacked.
pub(super) fn unknown_tag(tag: u64) -> Fault {
    let text = format!("unknown delivery tag {tag}");
    channel_fault(code::PRECONDITION_FAILED, text)
}

impl<S: Storage> Shard<S> {
    /// `basic.ack`
    #[inline]
    pub(super) fn ack_tags(
        &mut self,
        slot: usize,
        number: u16,
        tag: u64,
        multiple: bool,
    ) -> Outcome {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        if let Mode::Tx(tx) = &mut channel.mode {
            return tx.queue(tx::Op::Ack { tag, multiple });
        }
        self.ack_now(slot, number, tag, multiple)
    }

    #[inline]
    pub(super) fn ack_now(
        &mut self,
        slot: usize,
        number: u16,
        tag: u64,
        multiple: bool,
    ) -> Outcome {
        if multiple {
            let taken = self.take_through(slot, number, tag)?;
            let skipped = match planted(Planted::MultipleAckOfOne) {
                true => taken.len().saturating_sub(1),
                false => 0,
            };
            for unacked in taken.into_iter().skip(skipped) {
                self.ack_one(unacked);
            }
        } else {
            let unacked = self.take_one(slot, number, tag)?;
            self.ack_one(unacked);
        }
        self.settled_on(slot, number);
        Ok(())
    }

    /// `basic.reject` and `basic.nack`
    pub(super) fn nack_tags(
        &mut self,
        slot: usize,
        number: u16,
        tag: u64,
        multiple: bool,
        requeue: bool,
        now: Now,
    ) -> Outcome {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        if let Mode::Tx(tx) = &mut channel.mode {
            return tx.queue(tx::Op::Nack {
                tag,
                multiple,
                requeue,
            });
        }
        self.nack_now(slot, number, tag, multiple, requeue, now)
    }

    pub(super) fn nack_now(
        &mut self,
        slot: usize,
        number: u16,
        tag: u64,
        multiple: bool,
        requeue: bool,
        now: Now,
    ) -> Outcome {
        let taken = match multiple {
            true => self.take_through(slot, number, tag)?,
            false => vec![self.take_one(slot, number, tag)?],
        };
        for unacked in taken {
            if let Some(lease) = self.end_lease(unacked) {
                self.credit_returned(lease.holder);
                match requeue {
                    true => self.requeue(&lease, now),
                    false => self.drop_rejected(&lease, now),
                }
            }
        }
        if !requeue {
            // An answer to what comes next tells that the dead letters are where they belong.
            let moved = self.engine.moved;
            self.conns[slot].published.merge(moved);
            self.amqp(slot).dead_below = self.engine.outbox.next_seq();
        }
        self.settled_on(slot, number);
        Ok(())
    }

    /// What the connection has published is not seen by consumers yet, or dead letters of its rejects are not where
    /// they belong: it waits.
    pub(in crate::shard) fn wait_for_own(&mut self, slot: usize) -> bool {
        if self.wait_for_publishes(slot) {
            return true;
        }
        let below = self.amqp(slot).dead_below;
        if below == 0 {
            return false;
        }
        if self.engine.outbox.is_routing_below(below) {
            self.block_cold(slot);
            return true;
        }
        self.amqp(slot).dead_below = 0;
        false
    }

    /// `basic.recover`: everything unacked goes back.
    pub(super) fn recover(&mut self, slot: usize, number: u16, requeue: bool, now: Now) -> Outcome {
        if !requeue {
            let text = "basic.recover with requeue=false is not offered";
            return Err(connection_fault(code::NOT_IMPLEMENTED, text));
        }
        self.return_unacked(slot, number, now);
        self.settled_on(slot, number);
        Ok(())
    }

    /// Everything unacked of a channel goes back to its queues.
    pub(super) fn return_unacked(&mut self, slot: usize, number: u16, now: Now) {
        let Some(channel) = self.amqp(slot).channel(number) else {
            return;
        };
        channel.unacked_count = 0;
        let unacked = std::mem::take(&mut channel.unacked);
        for unacked in unacked.into_iter().filter(|unacked| unacked.serial != 0) {
            let is_unsent = self.conns[slot].is_held_back(unacked.serial);
            if let Some(lease) = self.end_lease(unacked) {
                self.credit_returned(lease.holder);
                let how = match is_unsent {
                    true => Return::Unsent,
                    false => Return::Lost,
                };
                self.engine.give_back(&lease, how, b"", now);
            }
        }
    }

    /// The delivery of that tag, which is settled with that.
    #[inline]
    fn take_one(&mut self, slot: usize, number: u16, tag: u64) -> Result<Unacked, Fault> {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        let place = tag.checked_sub(channel.first_tag());
        let found = place
            .and_then(|place| channel.unacked.get_mut(usize::try_from(place).ok()?))
            .filter(|unacked| unacked.serial != 0);
        let Some(found) = found else {
            return Err(unknown_tag(tag));
        };
        let taken = *found;
        found.serial = 0;
        channel.unacked_count -= 1;
        channel.forget_settled();
        Ok(taken)
    }

    /// Every delivery up to that tag, 0 meaning all.
    fn take_through(&mut self, slot: usize, number: u16, tag: u64) -> Result<Vec<Unacked>, Fault> {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        let first = channel.first_tag();
        let count = match tag {
            0 => channel.unacked.len() as u64,
            tag if tag >= channel.next_tag || tag < first => return Err(unknown_tag(tag)),
            tag => tag - first + 1,
        };
        let taken: Vec<Unacked> = channel
            .unacked
            .drain(..count as usize)
            .filter(|unacked| unacked.serial != 0)
            .collect();
        channel.unacked_count -= taken.len() as u32;
        channel.forget_settled();
        Ok(taken)
    }

    fn handle(&self, unacked: Unacked) -> Handle {
        Handle {
            incarnation: self.engine.incarnation,
            id: unacked.id,
            serial: unacked.serial,
        }
    }

    /// A lease that somebody else may have ended meanwhile.
    fn end_lease(&mut self, unacked: Unacked) -> Option<Lease> {
        self.engine.lease(self.handle(unacked))?;
        self.engine.leases.end(unacked.serial)
    }

    #[inline]
    fn ack_one(&mut self, unacked: Unacked) {
        let handle = self.handle(unacked);
        if let Some((lease, _)) = self.engine.ack(handle) {
            self.credit_returned(lease.holder);
        }
    }

    fn requeue(&mut self, lease: &Lease, now: Now) {
        let how = Return::Nacked { delay_us: Some(0) };
        self.engine.give_back(lease, how, b"", now);
    }

    /// A message that its consumer does not want and that does not go back: it is dead.
    fn drop_rejected(&mut self, lease: &Lease, now: Now) {
        if self.engine.queue(lease.queue).buries() {
            self.engine
                .reject(lease, TransferReason::Rejected, b"", now);
            return;
        }
        self.engine.queue_mut(lease.queue).counters.nacked += 1;
        self.engine.settle_taken(
            lease.queue,
            lease.id,
            lease.place,
            Some(lease.size),
            SettleReason::Dead,
        );
    }

    /// Deliveries of a channel were settled: where they are limited together, there may be more.
    #[inline]
    fn settled_on(&mut self, slot: usize, number: u16) {
        let channel = self.amqp(slot).channel(number);
        if channel.is_some_and(|channel| channel.prefetch_all > 0) {
            self.line_up_channel(slot, number);
        }
    }
}
