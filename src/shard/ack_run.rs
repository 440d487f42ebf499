//! Runs of plain acks: what a consumer that pipelines sends, one `ACK` after another, each of one delivery,
//! without tags.
//!
//! Decides nothing of its own, as the runs of publishes: what is not plain, and every handle that is stale,
//! is left to the general path, which gives the same answers.

use super::Shard;
use crate::broker::id::Level;
use crate::log::disk::Storage;
use crate::protocol::text::{encode, fast};

/// Most acks of one run: between two of them limits that the run does not look at are.
const RUN_MAX: usize = 512;

impl<S: Storage> Shard<S> {
    /// Runs the plain acks of live deliveries at the front of `input`; returns how many bytes they are. The
    /// connection's commands may be run.
    #[inline]
    pub(super) fn run_acks(&mut self, slot: usize, input: &[u8]) -> usize {
        let conn = &self.conns[slot];
        if conn.transaction.is_some() {
            return 0;
        }
        let room = self.limits.send_bytes_max.saturating_sub(conn.out.len());
        let longest = (room / encode::ACKED.len()).min(RUN_MAX);
        let (mut used, mut count) = (0, 0);
        while count < longest
            && let Some((handle, consumed)) = fast::ack_of_one(&input[used..])
            && self.engine.lease(handle).is_some()
            && let Some((lease, level)) = self.engine.ack(handle)
        {
            self.credit_returned(lease.holder);
            if level != Level::None {
                let need = self.engine.need(level);
                if !self.engine.reached(need) {
                    let serial = self.engine.leases.next_serial();
                    self.conns[slot].gate(need, serial);
                }
            }
            let out = self.conns[slot].out.writer(&mut self.pool);
            out.extend_from_slice(encode::ACKED);
            used += consumed;
            count += 1;
        }
        self.totals.commands += count as u64;
        used
    }
}
