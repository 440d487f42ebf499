//! Commands that several shards answer: each runs its part, the connection's home makes one answer of them.

use super::Letter;
use super::merge;
use crate::broker::command::Command;
use crate::broker::reply::Reply;
use crate::log::disk::Storage;
use crate::protocol::text::decode::{Decoder, Step};
use crate::protocol::text::encode;
use crate::shard::conn::{Need, Output, QuietCount};
use crate::shard::door::{self, Merge};
use crate::shard::failure::{NO_SPACE, answer_stalled};
use crate::shard::session::Flow;
use crate::shard::{ConnKey, Now, Shard};

/// What is asked of several shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Question {
    /// `CAST`
    Cast,
    /// `QLS`
    List,
    /// `STATS`
    Stats,
    /// `STATS conns`
    Connections,
    /// `COMMIT`: one shard tells what became of it, and the weakest level that a publish is told.
    Commit,
    /// `SYNC`
    Sync,
    /// `DRAIN`
    Drain,
    /// `ACK`, `NACK` or `TOUCH` of handles of several shards: the tokens as typed, and whose each is.
    Settle(Vec<u8>, Vec<u32>),
    /// A command of RESP, and how its replies become one.
    Resp(Merge),
}

/// An answer that several shards give.
#[derive(Debug)]
pub(super) struct Gather {
    question: Question,
    tag: Box<[u8]>,
    quiet: bool,
    /// By shard; those that are not asked have none.
    parts: Vec<Option<Vec<u8>>>,
    missing: usize,
}

impl Gather {
    /// An answer of so many shards.
    pub(super) fn new(
        question: Question,
        tag: Option<&[u8]>,
        quiet: bool,
        shards: u32,
        asked: usize,
    ) -> Gather {
        Gather {
            question,
            tag: tag.unwrap_or_default().into(),
            quiet,
            parts: (0..shards).map(|_| None).collect(),
            missing: asked,
        }
    }

    /// Does a later `SYNC` have to wait until this is counted?
    pub(super) fn is_quiet_cast(&self) -> bool {
        self.quiet && matches!(self.question, Question::Cast | Question::Commit)
    }

    pub(super) fn add(&mut self, from: u32, text: Vec<u8>) {
        let part = &mut self.parts[from as usize];
        assert!(part.is_none(), "a shard gives its part once");
        *part = Some(text);
        self.missing -= 1;
    }

    /// The answer when all parts are there.
    pub(super) fn finish(&mut self, counted: &mut QuietCount) -> Option<Vec<u8>> {
        if self.missing > 0 {
            return None;
        }
        let mut out = Vec::new();
        let tag = (!self.tag.is_empty()).then_some(&*self.tag);
        let parts: Vec<&[u8]> = self.parts.iter().flatten().map(Vec::as_slice).collect();
        match &self.question {
            Question::Cast => self.finish_cast(&mut out, tag, &parts, counted),
            Question::Commit => match merge::committed(&parts) {
                Ok((count, level)) if self.quiet => {
                    counted.accepted += 1;
                    counted.level = counted.level.min(level);
                    _ = count;
                }
                Ok((count, _)) => {
                    let stale = b"";
                    encode::reply(&mut out, tag, &Reply::Count { count, stale });
                }
                Err(line) => {
                    merge::tagged(&mut out, tag, line);
                    counted.rejected += u64::from(self.quiet);
                }
            },
            Question::List => encode::reply(&mut out, tag, &Reply::Data(&merge::lists(&parts))),
            Question::Stats => {
                let text = merge::stats(&parts, self.parts.len());
                encode::reply(&mut out, tag, &Reply::Data(&text));
            }
            Question::Connections => {
                let text = merge::connections(&parts);
                encode::reply(&mut out, tag, &Reply::Data(&text));
            }
            Question::Sync | Question::Settle(..) if merge::unknown(&parts).is_some() => {
                merge::tagged(&mut out, tag, merge::unknown(&parts).unwrap_or_default());
            }
            Question::Sync => encode::reply(&mut out, tag, &merge::synced(&parts)),
            Question::Resp(how) => out = door::merge(*how, &parts),
            Question::Drain if !self.quiet => encode::reply(&mut out, tag, &Reply::Ok),
            Question::Drain => {}
            Question::Settle(tokens, owners) => {
                let parts: Vec<&[u8]> = self
                    .parts
                    .iter()
                    .map(|part| part.as_deref().unwrap_or_default())
                    .collect();
                let (count, stale) = merge::settled(tokens, owners, &parts);
                let stale = &stale[..];
                match (self.quiet, stale.is_empty()) {
                    (false, _) => {
                        encode::reply(&mut out, tag, &Reply::Count { count, stale });
                    }
                    (true, true) => {}
                    (true, false) => {
                        encode::reply(&mut out, tag, &Reply::QuietStale { count, stale });
                    }
                }
            }
        }
        Some(out)
    }

    fn finish_cast(
        &self,
        out: &mut Vec<u8>,
        tag: Option<&[u8]>,
        parts: &[&[u8]],
        counted: &mut QuietCount,
    ) {
        let cast = match merge::cast(parts) {
            Ok(cast) => cast,
            // None has taken it.
            Err(line) => {
                merge::tagged(out, tag, &line);
                counted.rejected += u64::from(self.quiet);
                return;
            }
        };
        if !self.quiet {
            let reply = Reply::Cast {
                receivers: cast.receivers,
                level: cast.level,
                refused: cast.refused,
            };
            return encode::reply(out, tag, &reply);
        }
        if cast.refused > 0 {
            counted.rejected += 1;
        } else {
            counted.accepted += 1;
            counted.level = counted.level.min(cast.level);
        }
    }
}

/// A part of an answer, taken out of the output of the connection that was told it.
#[derive(Debug)]
pub(super) struct Part {
    pub text: Vec<u8>,
    /// It leaves when the log has got so far.
    need: Need,
    /// It is of the line protocol.
    is_text: bool,
}

/// A part of an answer, on its way to the connection's home.
#[derive(Debug)]
pub(super) struct Captured {
    /// The connection's home and its key there. Its guest here may be gone meanwhile.
    home: (u32, ConnKey),
    run: u64,
    part: Part,
}

impl<S: Storage> Shard<S> {
    /// So many queues took what was cast: a part of the answer tells it, as it tells their level.
    pub(in crate::shard) fn note_taken(&mut self, taken: u64) {
        if let Some(peers) = &mut self.peers {
            peers.taken = taken;
        }
    }

    /// Runs one command and takes its answer out of the connection's output; `None` if it comes again. What is
    /// pushed to the connection itself meanwhile stays there.
    pub(super) fn run_captured(&mut self, slot: usize, frame: &[u8], now: Now) -> Option<Part> {
        if !self.conns[slot].session.is_text() {
            let (text, need) = self.run_resp_captured(slot, frame, now)?;
            return Some(Part {
                text,
                need,
                is_text: false,
            });
        }
        let mut decoder = Decoder::default();
        let (_, step) = decoder.decode(frame, &self.limits.clone());
        let Step::Request(mut request) = step else {
            panic!("a command that was decoded before is now {step:?}");
        };
        request.tag = None;
        request.quiet = false;
        let cast = match &request.command {
            Command::Cast { topic, .. } => Some(topic.decoded(&mut Vec::new()).to_vec()),
            _ => None,
        };
        let held = self.conns[slot].swap_output(Output::default());
        let flow = self.execute(slot, request, now);
        let mut captured = self.conns[slot].swap_output(held);
        if flow == Flow::Again {
            self.conns[slot].rare.take_kept_body();
            return None;
        }
        let need = captured.need();
        let count = captured.ring.len();
        captured.ring.set_gate(None);
        let mut text = captured.ring.take(count, &mut self.pool);
        if !text.starts_with(b"DATA") {
            // In front of the answer, which is the last line, stands what this pushes to the connection itself.
            let end = text.len() - 1;
            let at = memchr::memrchr(b'\n', &text[..end]).map_or(0, |at| at + 1);
            let out = self.conns[slot].out.writer(&mut self.pool);
            out.extend_from_slice(&text[..at]);
            text.drain(..at);
            self.mark_dirty(slot);
        }
        if let Some(topic) = cast {
            let told = match text.starts_with(b"OK") {
                true => format!(" taken={}\n", self.mail().taken),
                // Others may have taken it before they heard that nothing is begun any more.
                false => format!(" refused={}\n", self.queues_bound(&topic).len()),
            };
            text.pop();
            text.extend_from_slice(told.as_bytes());
        }
        Some(Part {
            text,
            need,
            is_text: true,
        })
    }

    /// A part of an answer: it leaves when the log has got so far.
    pub(super) fn keep_captured(&mut self, home: (u32, ConnKey), run: u64, part: Part) {
        let captured = Captured { home, run, part };
        match self.engine.reached(captured.part.need) {
            true => self.give_part(captured),
            false => self.mail().captured.push(captured),
        }
    }

    pub(super) fn release_captured(&mut self) {
        if self.mail().captured.is_empty() {
            return;
        }
        for captured in std::mem::take(&mut self.mail().captured) {
            let Captured { home, run, part } = captured;
            self.keep_captured(home, run, part);
        }
    }

    /// The log finds no space: parts of answers that wait for it say so.
    pub(in crate::shard) fn stall_captured(&mut self) {
        self.engine.outbox.orders.stall();
        let Some(peers) = &mut self.peers else { return };
        for mut captured in std::mem::take(&mut peers.captured) {
            let text = std::mem::take(&mut captured.part.text);
            match captured.part.is_text {
                true => answer_stalled(&mut captured.part.text, &text),
                false => captured.part.text = door::unknown_result(NO_SPACE),
            }
            self.give_part(captured);
        }
    }

    fn give_part(&mut self, captured: Captured) {
        let Captured {
            home: (to, conn),
            run,
            part: Part { text, .. },
        } = captured;
        let (_, me) = self.shards();
        if to != me {
            self.mail().post(to, Letter::Part { conn, run, text });
        } else if let Some(slot) = self.slot(conn) {
            self.part_came(slot, run, me, text);
        }
    }

    pub(super) fn part_came(&mut self, slot: usize, run: u64, from: u32, text: Vec<u8>) {
        let away = self.away(slot);
        let found = away.runs.binary_search_by_key(&run, |run| run.id);
        if let Ok(at) = found
            && let super::away::Dest::Gather(gather) = &mut away.runs[at].dest
        {
            gather.add(from, text);
            self.list_away(slot);
        } else {
            self.read_came(slot, run, text);
        }
    }
}
