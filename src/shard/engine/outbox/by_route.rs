//! Dead letters whose queue's route leads to queues of other shards.
//!
//! Such a message goes to one shard after another, as what has no target of its own; each finds which of its queues
//! the message is for. It is settled when the last one has it.

use bytes::Bytes;

use super::super::super::conn::Need;
use super::super::super::{Now, deaths};
use super::super::Engine;
use super::{BY_ROUTE, Carried, Outbox, Stage};
use crate::broker::exchanges::DeadRoute;
use crate::broker::id::Level;
use crate::broker::queue::QueueKey;
use crate::log::disk::Storage;
use crate::log::{PRIORITY_BYTES, PUBLISH_HEAD_BYTES_MAX, Sections, TransferReason};

impl Outbox {
    /// Is a dead letter on its way by a route whose number is lower?
    pub fn is_routing_below(&self, seq: u64) -> bool {
        let mut outs = self.outs.range(..seq);
        self.loose.range(..seq).next().is_some()
            || outs.any(|(_, out)| {
                let is_over = matches!(out.stage, Stage::Taken | Stage::Settled(_));
                *out.target == *BY_ROUTE && !is_over
            })
    }
}

impl<S: Storage> Engine<S> {
    /// The next shard that a dead letter goes to by its queue's route, and the sections that it has there; `None` if all
    /// have it.
    pub(super) fn next_of_route(
        &mut self,
        seq: u64,
        key: QueueKey,
        sections: &[u8],
    ) -> Option<Vec<u8>> {
        let reason = self.outbox.outs[&seq].reason;
        let queue = self.queue(key);
        let (name, route) = (queue.name.clone(), queue.dead_route().cloned());
        let mut found = None;
        if let Some(route) = route {
            let note = deaths::Note {
                queue: &name,
                reason,
                time_s: self.times.now_us / 1_000_000,
            };
            let (sections, routing_key) = deaths::add(Sections(sections), &note, &route);
            let (_, shards) = self.dead_targets(&route, &sections, routing_key, reason);
            let from = self.outbox.outs[&seq].to;
            let next = shards.into_iter().find(|shard| *shard >= from);
            found = next.map(|next| (next, sections));
        }
        let out = self.outbox.outs.get_mut(&seq)?;
        let Some((next, sections)) = found else {
            out.stage = Stage::Taken;
            return None;
        };
        out.to = next;
        Some(sections)
    }

    /// A message that no queue keeps goes to where exchange and key in its sections lead at another shard.
    pub(in crate::shard::engine) fn send_loose(&mut self, to: u32, sections: Vec<u8>, body: Bytes) {
        let seq = self.outbox.take_seq();
        self.outbox.loose.insert(seq);
        let carried = Carried {
            seq,
            below: self.outbox.below(),
            is_logged: false,
            target: BY_ROUTE.into(),
            reason: TransferReason::DroppedOld,
            settings: self.defaults.clone(),
            sections,
            body,
            origin: 0,
            moved: None,
            request_until_us: None,
        };
        self.outbox.loose_news.push((to, carried));
    }

    /// A dead letter of another shard has come, for the queues here that its exchange and key lead to: each gets it, once.
    pub(super) fn take_in_routed(&mut self, from: u32, carried: Carried, now: Now) {
        let (exchange, key) = deaths::source(Sections(&carried.sections), b"");
        let route = DeadRoute {
            exchange: exchange.into(),
            key: None,
        };
        let (targets, _) = self.dead_targets(&route, &carried.sections, key, carried.reason);
        let levels = targets.iter().map(|it| self.queue(*it).settings.durable);
        let logged = levels.filter(|level| *level != Level::None).count();
        let sections = carried.sections.len() + PRIORITY_BYTES;
        let one = PUBLISH_HEAD_BYTES_MAX + sections + carried.body.len();
        let Some(carried) = self.log_arrival(from, carried, one * logged, logged) else {
            return;
        };
        for target in &targets {
            self.copy_to(*target, &carried.sections, &carried.body, now);
            self.show_when_stored(*target);
        }
        let need = match logged {
            0 => Need::NOW,
            _ => self.need(Level::Disk),
        };
        self.outbox.arrived.push((need, from, carried.seq));
    }
}
