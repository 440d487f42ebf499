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
use crate::protocol::text::handles::{Acks, Typed};

/// Most handles of one run, but for those of its last command: between two runs limits that the run does not
/// look at are.
const RUN_MAX: usize = 512;

/// Where a delivery is no part of a run, so many that follow are not asked whether they are.
const ALONE: u32 = 16;

/// One command of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    /// Where its handles end among those of the run.
    handles: u32,
    quiet: bool,
}

impl<S: Storage> Shard<S> {
    /// Runs the plain acks at the front of `input`; returns how many bytes they are. The connection's commands
    /// may be run.
    #[inline]
    pub(super) fn run_acks(&mut self, slot: usize, input: &[u8]) -> usize {
        let conn = &self.conns[slot];
        if conn.transaction.is_some() || conn.out.len() >= self.limits.send_bytes_max {
            return 0;
        }
        let mut handles = std::mem::take(&mut self.handles);
        let mut commands = std::mem::take(&mut self.ack_commands);
        let used = self.read_acks(input, &mut handles, &mut commands);
        self.totals.commands += commands.len() as u64;
        // Those before it are settled: a run of deliveries may go on over several commands. At which level the
        // last of them are safe.
        let (mut settled, mut last_safe_at) = (0, Level::None);
        let mut alone = 0u32;
        let mut from = 0;
        let mut holder = None;
        for Command { handles: to, quiet } in commands.drain(..) {
            let to = to as usize;
            let mut count = (settled.clamp(from, to) - from) as u64;
            let mut level = match count {
                0 => Level::None,
                _ => last_safe_at,
            };
            let mut at = settled.max(from);
            self.text.clear();
            while at < to {
                let run = match alone {
                    0 => {
                        let rest = handles[at..].iter().map(|typed| typed.handle);
                        self.engine.ack_run(rest)
                    }
                    _ => None,
                };
                let (many, had, safe_at) = match run {
                    Some((many, had, safe_at)) => (many, Some(had), safe_at),
                    None => {
                        alone = alone.checked_sub(1).unwrap_or(ALONE);
                        match self.engine.ack(handles[at].handle) {
                            Some((lease, safe_at)) => (1, Some(lease.holder), safe_at),
                            None => (1, None, Level::None),
                        }
                    }
                };
                match had {
                    Some(had) => {
                        count += many.min(to - at) as u64;
                        level = level.max(safe_at);
                        if holder != Some(had) {
                            // Once is enough: nothing is handed out within the run.
                            holder = Some(had);
                            self.credit_returned(had);
                        }
                    }
                    None => {
                        let (from, to) = handles[at].span;
                        push_stale(&mut self.text, &input[from as usize..to as usize]);
                    }
                }
                at += many;
                last_safe_at = safe_at;
            }
            settled = at;
            if count == 1 && to - from == 1 && !quiet {
                if level != Level::None {
                    let need = self.engine.need(level);
                    self.wait_for(slot, need);
                }
                let out = self.conns[slot].out.writer(&mut self.pool);
                out.extend_from_slice(encode::ACKED);
            } else {
                let tag = None;
                self.settled(Asker { slot, tag, quiet }, count, level);
            }
            from = to;
        }
        handles.clear();
        self.handles = handles;
        self.ack_commands = commands;
        used
    }

    /// Reads the plain acks at the front of `input`; returns how many bytes they are.
    #[inline]
    fn read_acks(
        &self,
        input: &[u8],
        handles: &mut Vec<Typed>,
        commands: &mut Vec<Command>,
    ) -> usize {
        let mut acks = Acks::new();
        let (mut used, mut read) = (0, 0);
        while read < RUN_MAX
            && let Some((quiet, end)) = acks.read(input, used, &self.limits, handles)
        {
            let here = |typed: &Typed| typed.handle.incarnation == self.engine.incarnation;
            if self.peers.is_some() && !handles[read..].iter().all(here) {
                handles.truncate(read);
                break;
            }
            (used, read) = (end, handles.len());
            commands.push(Command {
                handles: read as u32,
                quiet,
            });
        }
        used
    }
}
