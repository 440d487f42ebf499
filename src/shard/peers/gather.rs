//! Commands that several shards answer: each runs its part, the connection's home makes one answer of them.

use super::Letter;
use super::guest::Kind;
use super::merge;
use crate::broker::command::Command;
use crate::broker::reply::Reply;
use crate::buffer::send::Pool;
use crate::log::disk::Storage;
use crate::protocol::text::decode::{Decoder, Step};
use crate::shard::conn::{Conn, Need, Output, QuietCount};
use crate::shard::door::{self, Merge, Page, Session, Told};
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
    /// A page of HTTP.
    Page(Page),
    /// `ACK`, `NACK` or `TOUCH` of handles of several shards: the tokens as typed, and whose each is; what is no
    /// handle is nobody's.
    Settle(Vec<u8>, Vec<Option<u32>>),
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

    /// Every part is there.
    pub(super) fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// Tells the connection the answer of all parts.
    pub(super) fn finish(&self, conn: &mut Conn, pool: &mut Pool) {
        if let Question::Resp(how) = &self.question {
            let parts: Vec<&[u8]> = self.parts.iter().flatten().map(Vec::as_slice).collect();
            return conn
                .out
                .writer(pool)
                .extend_from_slice(&door::merge(*how, &parts));
        }
        let tag = (!self.tag.is_empty()).then_some(&*self.tag);
        let mut counted = QuietCount::default();
        if self.quiet {
            counted = std::mem::take(&mut conn.rare.make().quiet);
        }
        let say = |reply: &Reply<'_>| conn.tell(pool, tag, Told::Reply(reply));
        self.answer(&mut counted, say);
        if self.quiet {
            conn.rare.make().quiet = counted;
        }
    }

    fn answer(&self, counted: &mut QuietCount, mut say: impl FnMut(&Reply<'_>)) {
        let parts: Vec<&[u8]> = self.parts.iter().flatten().map(Vec::as_slice).collect();
        match &self.question {
            Question::Cast => self.answer_cast(&parts, counted, say),
            Question::Commit => match merge::committed(&parts) {
                Ok((_, level)) if self.quiet => {
                    counted.accepted += 1;
                    counted.level = counted.level.min(level);
                }
                Ok((count, _)) => say(&Reply::Count { count, stale: b"" }),
                Err(line) => {
                    say(&Reply::Error(&merge::error(line)));
                    counted.rejected += u64::from(self.quiet);
                }
            },
            Question::List => say(&Reply::Data(&merge::lists(&parts))),
            Question::Stats => say(&Reply::Data(&merge::stats(&parts, self.parts.len()))),
            Question::Connections => say(&Reply::Data(&merge::connections(&parts))),
            Question::Page(page) => say(&Reply::Data(&page.merge(&parts))),
            Question::Sync | Question::Settle(..) if merge::unknown(&parts).is_some() => {
                let line = merge::unknown(&parts).unwrap_or_default();
                say(&Reply::Error(&merge::error(line)));
            }
            Question::Resp(_) => unreachable!("its replies are not the line protocol's"),
            Question::Sync => say(&merge::synced(&parts)),
            Question::Drain if !self.quiet => say(&Reply::Ok),
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
                    (false, _) => say(&Reply::Count { count, stale }),
                    (true, true) => {}
                    (true, false) => say(&Reply::QuietStale { count, stale }),
                }
            }
        }
    }

    fn answer_cast(
        &self,
        parts: &[&[u8]],
        counted: &mut QuietCount,
        mut say: impl FnMut(&Reply<'_>),
    ) {
        let cast = match merge::cast(parts) {
            Ok(cast) => cast,
            // None has taken it.
            Err(line) => {
                say(&Reply::Error(&merge::error(&line)));
                counted.rejected += u64::from(self.quiet);
                return;
            }
        };
        if !self.quiet {
            return say(&Reply::Cast {
                receivers: cast.receivers,
                level: cast.level,
                refused: cast.refused,
            });
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

impl Part {
    /// One that waits for nothing.
    pub fn now(text: Vec<u8>) -> Part {
        Part {
            text,
            need: Need::NOW,
            is_text: true,
        }
    }
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

    /// Runs one command and takes its answer out of the connection's output: as the line protocol writes it, or RESP if
    /// the connection speaks that; `None` if it comes again. What is pushed to the connection itself meanwhile stays
    /// there.
    pub(super) fn run_captured(&mut self, slot: usize, frame: &[u8], now: Now) -> Option<Part> {
        if let Session::Resp(_) = self.conns[slot].session {
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
        let session = std::mem::replace(&mut self.conns[slot].session, Session::Text);
        let flow = self.execute(slot, request, now);
        self.conns[slot].session = session;
        let captured = self.conns[slot].swap_output(held);
        if flow == Flow::Again {
            self.conns[slot].rare.take_kept_body();
            return None;
        }
        let (mut text, need) = self.take_captured(captured);
        if !text.starts_with(b"DATA") {
            self.push_captured(slot, &mut text);
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

    /// All that was written to an output that stood in for a connection's, and what it waits for.
    pub(in crate::shard) fn take_captured(&mut self, mut captured: Output) -> (Vec<u8>, Need) {
        let need = captured.need();
        let count = captured.ring.len();
        captured.ring.set_gate(None);
        (captured.ring.take(count, &mut self.pool), need)
    }

    /// In front of an answer that is the last line stands what its command pushes to the connection itself: that goes to
    /// the connection.
    pub(in crate::shard) fn push_captured(&mut self, slot: usize, text: &mut Vec<u8>) {
        let end = text.len() - 1;
        let at = memchr::memrchr(b'\n', &text[..end]).map_or(0, |at| at + 1);
        let out = self.conns[slot].out.writer(&mut self.pool);
        out.extend_from_slice(&text[..at]);
        text.drain(..at);
        self.mark_dirty(slot);
    }

    /// Asks all shards for their parts of a page.
    pub(in crate::shard) fn gather_page(&mut self, slot: usize, page: Page, now: Now) -> Flow {
        let (shards, me) = self.shards();
        let others: Vec<u32> = (0..shards).filter(|shard| *shard != me).collect();
        if !self.has_room_to(slot, &others) {
            return Flow::Again;
        }
        let gather = Gather::new(Question::Page(page), None, false, shards, shards as usize);
        let run = self.add_gather(slot, gather);
        for to in others {
            self.post_input(slot, to, run, Kind::Page(page), Vec::new());
        }
        let text = self.part_of_page(page, now);
        let home = (me, self.key(slot));
        self.keep_captured(home, run, Part::now(text));
        Flow::Done
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
