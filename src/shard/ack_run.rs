//! Runs of plain acks: what a consumer that pipelines sends, one `ACK` after another, of one delivery or of
//! many, without tags.
//!
//! Decides nothing of its own, as the runs of publishes: what is not plain is left to the general path, which
//! gives the same answers.

use super::Shard;
use super::session::Asker;
use super::settling::push_stale;
use crate::broker::id::Level;
use crate::log::disk::Storage;
use crate::protocol::text::encode;
use crate::protocol::text::handles::Acks;

/// Most handles of one run, but for those of its last command: between two runs limits that the run does not
/// look at are.
const RUN_MAX: usize = 512;

impl<S: Storage> Shard<S> {
    /// Runs the plain acks at the front of `input`; returns how many bytes they are. The connection's commands
    /// may be run.
    #[inline]
    pub(super) fn run_acks(&mut self, slot: usize, input: &[u8]) -> usize {
        if self.conns[slot].transaction.is_some() {
            return 0;
        }
        let mut acks = Acks::new();
        let mut handles = std::mem::take(&mut self.handles);
        let (mut used, mut commands, mut total) = (0, 0, 0);
        let mut holder = None;
        while total < RUN_MAX && self.conns[slot].out.len() < self.limits.send_bytes_max {
            let line = &input[used..];
            let Some((quiet, consumed)) = acks.read(line, &self.limits, &mut handles) else {
                break;
            };
            let (mut count, mut level) = (0, Level::None);
            self.text.clear();
            for typed in &handles {
                let Some((lease, safe_at)) = self.engine.ack(typed.handle) else {
                    let (from, to) = typed.span;
                    push_stale(&mut self.text, &line[from as usize..to as usize]);
                    continue;
                };
                count += 1;
                level = level.max(safe_at);
                if holder != Some(lease.holder) {
                    // Once is enough: nothing is handed out within the run.
                    holder = Some(lease.holder);
                    self.credit_returned(lease.holder);
                }
            }
            if count == 1 && handles.len() == 1 && !quiet && level == Level::None {
                let out = self.conns[slot].out.writer(&mut self.pool);
                out.extend_from_slice(encode::ACKED);
            } else {
                let tag = None;
                self.settled(Asker { slot, tag, quiet }, count, level);
            }
            used += consumed;
            commands += 1;
            total += handles.len();
        }
        self.handles = handles;
        self.totals.commands += commands;
        used
    }
}
