//! `MULTI` … `EXEC`: commands are kept as they came and run one after another, in one reply.
//!
//! A command that must wait for the log or the disk lets other connections run meanwhile; nothing is undone
//! if one of them is refused.

use super::super::super::conn::Blocked;
use super::super::super::session::Flow;
use super::super::super::{Now, Shard};
use super::encode;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::protocol::resp::decode::{Decoder, Step};

/// So much is pushed to a connection while its transaction is being run, bytes; what is more is missed.
const PUSHES_BYTES_MAX: usize = 1 << 20;

/// What was kept since `MULTI`.
#[derive(Debug, Default)]
pub(super) struct Multi {
    frames: Vec<u8>,
    count: usize,
    /// Something was refused: nothing of it will be done.
    is_void: bool,
}

impl Multi {
    /// Memory held, bytes.
    pub(super) fn memory(&self) -> usize {
        self.frames.capacity()
    }
}

/// Kept commands that are being run.
#[derive(Debug)]
pub(super) struct Exec {
    frames: Vec<u8>,
    /// Where the next one begins.
    at: usize,
    /// Where the reply begins on the way to the socket, for a connection with guests.
    began: u64,
    /// What is pushed to the connection meanwhile, which is not to stand inside the reply.
    pushes: Vec<u8>,
}

impl Exec {
    /// Memory held, bytes.
    pub(super) fn memory(&self) -> usize {
        self.frames.capacity() + self.pushes.capacity()
    }

    /// Where what is pushed goes; `None` if there is too much of it.
    pub(super) fn pushes(&mut self) -> Option<&mut Vec<u8>> {
        (self.pushes.len() < PUSHES_BYTES_MAX).then_some(&mut self.pushes)
    }
}

impl<S: Storage> Shard<S> {
    pub(super) fn multi(&mut self, slot: usize) -> Flow {
        let session = self.conns[slot].resp();
        if session.multi.is_some() {
            return self.say_err(slot, "MULTI calls can not be nested");
        }
        session.multi = Some(Box::default());
        self.say_ok(slot)
    }

    pub(super) fn discard(&mut self, slot: usize) -> Flow {
        match self.conns[slot].resp().multi.take() {
            Some(_) => self.say_ok(slot),
            None => self.say_err(slot, "DISCARD without MULTI"),
        }
    }

    /// A command was refused before it could be kept.
    pub(super) fn fail_multi(&mut self, slot: usize) {
        if let Some(multi) = &mut self.conns[slot].resp().multi {
            multi.is_void = true;
            multi.frames = Vec::new();
        }
    }

    /// Keeps a command until `EXEC`.
    pub(super) fn queue_words(&mut self, slot: usize, name: &str, frame: &[u8]) -> Flow {
        if name.ends_with("SUBSCRIBE") {
            self.fail_multi(slot);
            return self.say_err(slot, "subscriptions are not allowed in transactions");
        }
        let (count_max, bytes_max) = (self.limits.batch_count_max, self.limits.batch_bytes_max);
        let over_budget = self.engine.over_budget;
        let multi = self.conns[slot].resp().multi.as_mut();
        let multi = multi.expect("it was just looked at");
        if !multi.is_void {
            if multi.count >= count_max || multi.frames.len() + frame.len() > bytes_max {
                self.fail_multi(slot);
                return self.say_err(
                    slot,
                    "the transaction is larger than --max-batch or --max-batch-bytes",
                );
            }
            if over_budget {
                self.fail_multi(slot);
                let text = "the memory budget is used up";
                return self.say(slot, |out| encode::error(out, "OOM", text));
            }
            multi.frames.extend_from_slice(frame);
            multi.count += 1;
        }
        self.say(slot, |out| encode::simple(out, b"QUEUED"))
    }

    pub(super) fn exec(&mut self, slot: usize, now: Now) -> Flow {
        if self.conns[slot].resp().exec.is_none() {
            let Some(multi) = self.conns[slot].resp().multi.take() else {
                return self.say_err(slot, "EXEC without MULTI");
            };
            if multi.is_void {
                let text = "Transaction discarded because of previous errors.";
                return self.say(slot, |out| encode::error(out, "EXECABORT", text));
            }
            let conn = &self.conns[slot];
            // No answer is awaited: what was told here before goes to the wire next.
            let told = conn.out.end();
            let wire = conn
                .away
                .as_ref()
                .map(|away| away.end() + conn.out.len() as u64);
            let exec = Exec {
                frames: multi.frames,
                at: 0,
                began: wire.unwrap_or(told),
                pushes: Vec::new(),
            };
            self.conns[slot].resp().exec = Some(Box::new(exec));
            encode::array(self.conns[slot].out.writer(&mut self.pool), multi.count);
        }
        let exec = self.conns[slot].resp().exec.as_mut();
        let exec = exec.expect("it was just set");
        let (frames, mut at) = (std::mem::take(&mut exec.frames), exec.at);
        let mut decoder = Decoder::new(true);
        let mut is_done = true;
        while at < frames.len() {
            let (used, step) = decoder.decode(&frames[at..], &self.limits);
            assert_eq!(step, Step::Command, "it was decoded before");
            let words = decoder.words(&frames[at..]);
            let name = String::from_utf8_lossy(words[0]).to_ascii_uppercase();
            let (name, ..) = super::server::known(&name).expect("it was looked at before");
            let frame = &frames[at..at + used];
            if self.run_known(slot, name, &words, frame, now) == Flow::Again {
                is_done = false;
                break;
            }
            at += used;
            if self.conns[slot].blocked != Blocked::No {
                // Its message is being read from the disk; what comes then is its part of the reply.
                is_done = false;
                break;
            }
        }
        // What was asked of other shards is a part of the reply.
        if is_done && self.awaits_answers(slot) {
            is_done = false;
        }
        let conn = &mut self.conns[slot];
        let end = conn.out.end();
        let session = conn.resp();
        if is_done {
            let exec = session.exec.take().expect("it has just been run");
            session.end_reply(end);
            let out = conn.out.writer(&mut self.pool);
            out.extend_from_slice(&exec.pushes);
            self.read_together(slot, exec.began);
            return Flow::Done;
        }
        if let Some(exec) = &mut session.exec {
            let at = if planted(Fault::ExecBeginsAgain) {
                0
            } else {
                at
            };
            (exec.frames, exec.at) = (frames, at);
        }
        Flow::Again
    }
}
