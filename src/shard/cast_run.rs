//! Runs of plain casts: what a producer that pipelines sends, one `CAST` after another to the same topic, without
//! tags and options, where only live subscriptions take it.
//!
//! Decides nothing of its own, as the runs of publishes. Who takes the topic is looked up once, each message is encoded
//! once, and each connection gets all of them in one piece.

use super::engine::Receiver;
use super::{Now, Shard};
use crate::broker::id::Level;
use crate::broker::reply::{Delivery, Payload, Reply};
use crate::log::disk::Storage;
use crate::protocol::text::repeated::Bodies;
use crate::protocol::text::{IN_PLACE_BYTES_MAX, encode, fast};

/// Most messages of one run, and the octets of their copies but for the last: between two runs limits that the
/// run does not look at are.
const RUN_MAX: usize = 512;
const RUN_BYTES_MAX: usize = 64 << 10;

/// No answer is longer, octets.
const ANSWER_BYTES_MAX: usize = 64;

/// What one run needs, kept for the next.
#[derive(Debug, Default)]
pub(super) struct CastRun {
    /// The messages as they are sent.
    copies: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
    /// How many got each of them.
    given: Vec<u64>,
}

impl<S: Storage> Shard<S> {
    /// Runs the plain casts at the front of `input`; returns how many bytes they are. The connection's
    /// commands may be run.
    #[inline]
    pub(super) fn run_casts(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        let Some(topic) = fast::name_behind(input, fast::CAST) else {
            return 0;
        };
        // What is bound by an exchange is found by the general path, as is what other shards have.
        if self.engine.has_bound_to_topics() || self.peers.is_some() {
            return 0;
        }
        if self.live.len() == 0 || self.is_draining() || self.conns[slot].transaction.is_some() {
            return 0;
        }
        let mut found = std::mem::take(&mut self.receivers);
        self.engine.topics.matches(topic, &mut found);
        let live = |receiver: &Receiver| matches!(receiver, Receiver::Live(_));
        let mut used = 0;
        if !found.is_empty() && found.iter().all(live) {
            let mut run = std::mem::take(&mut self.cast_run);
            used = self.collect_casts(slot, topic, input, &mut run);
            let CastRun {
                copies,
                ends,
                given,
            } = &mut run;
            if used > 0 && !self.give_live_run(slot, &found, copies, ends, given, now) {
                used = 0;
            }
            if used > 0 {
                self.totals.commands += ends.len() as u64;
                for receivers in &*given {
                    let reply = Reply::Cast {
                        receivers: *receivers,
                        level: Level::None,
                        refused: 0,
                    };
                    let out = self.conns[slot].out.writer(&mut self.pool);
                    encode::reply(out, None, &reply);
                }
            }
            self.cast_run = run;
        }
        self.receivers = found;
        used
    }

    /// Encodes the casts to that topic; returns how many bytes of input they are.
    fn collect_casts(&self, slot: usize, topic: &[u8], input: &[u8], run: &mut CastRun) -> usize {
        run.copies.clear();
        run.ends.clear();
        run.given.clear();
        let conn = &self.conns[slot];
        let room = self.limits.send_bytes_max.saturating_sub(conn.out.len());
        let longest = (room / ANSWER_BYTES_MAX).min(RUN_MAX);
        let mut bodies = Bodies::new(input, fast::CAST, topic, &self.limits);
        let mut used = 0;
        while run.ends.len() < longest
            && run.copies.len() < RUN_BYTES_MAX
            && let Some((body, consumed)) = bodies.peek()
            && body.len() < IN_PLACE_BYTES_MAX
        {
            let delivery = Delivery {
                source: topic,
                handle: None,
                id: 0,
                tries: 1,
                timestamp_ms: None,
                key: None,
                reply: None,
                headers: &[],
                body: Payload::Slice(body),
            };
            encode::copied_message(&mut run.copies, None, &delivery);
            run.ends.push(run.copies.len());
            run.given.push(0);
            bodies.advance(consumed);
            used += consumed;
        }
        used
    }
}
