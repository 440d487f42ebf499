//! Runs of plain publishes: what a producer that pipelines sends, one `PUB` after another to the same
//! queue, without tags and options.
//!
//! Decides nothing of its own: what a plain publish asks of its connection and its queue is asked once for
//! the run, and whatever is not plain is left to the general path, which gives the same answers.

use super::{Now, Shard};
use crate::log::disk::Storage;
use crate::protocol::text::encode::Receipts;
use crate::protocol::text::fast;
use crate::protocol::text::repeated::Bodies;

/// Most messages of one run: between two of them limits that the run does not look at are.
const RUN_MAX: usize = 512;

impl<S: Storage> Shard<S> {
    /// Runs the plain publishes at the front of `input` that go to the queue which the connection named
    /// last; returns how many bytes they are. The connection's commands may be run.
    #[inline]
    pub(super) fn run_publishes(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        let draining = self.is_draining();
        let conn = &mut self.conns[slot];
        let Some((key, uid)) = conn.last_queue.key else {
            return 0;
        };
        let typed = &conn.last_queue.typed[..];
        if draining || conn.transaction.is_some() || !fast::is_to(input, fast::PUBLISH, typed) {
            return 0;
        }
        let name = &input[fast::PUBLISH.len()..][..typed.len()];
        let serial = self.engine.leases.next_serial();
        let Some(mut run) = self.engine.begin_run(key, uid, now) else {
            return 0;
        };
        let (level, need) = (run.level(), run.need());
        let mut receipts = Receipts::new(run.next_id(), level);
        let room = self.limits.send_bytes_max.saturating_sub(conn.out.len());
        let longest = (room / Receipts::BYTES_MAX).min(RUN_MAX);
        let mut bodies = Bodies::new(input, fast::PUBLISH, name, &self.limits);
        let (mut used, mut count) = (0, 0);
        // One alone has nothing to share with others.
        let is_run = bodies
            .peek()
            .is_some_and(|(_, consumed)| consumed < input.len());
        while is_run
            && count < longest
            && let Some((body, _)) = bodies.peek()
            && run.has_room(body.len())
        {
            if count == 0
                && let Some(need) = need
            {
                conn.gate(need, serial);
            }
            let out = conn.out.writer(&mut self.pool);
            run.push_all(|below| {
                if count == longest {
                    return None;
                }
                let (body, consumed) = bodies.peek()?;
                if body.len() >= below {
                    return None;
                }
                receipts.write(out);
                bodies.advance(consumed);
                used += consumed;
                count += 1;
                Some(body)
            });
        }
        while count < longest
            && let Some((body, consumed)) = bodies.peek()
            && run.push(body)
        {
            if count == 0
                && let Some(need) = need
            {
                conn.gate(need, serial);
            }
            receipts.write(conn.out.writer(&mut self.pool));
            bodies.advance(consumed);
            used += consumed;
            count += 1;
        }
        if count > 0 {
            self.totals.commands += count as u64;
            self.engine.end_run(key, level);
            if need.is_some() {
                let visible = self.engine.visible_need(key);
                self.conns[slot].published.add(visible);
            }
        }
        used
    }
}
