//! RESP: the commands of Redis that have a meaning for queues, topics and streams.
//!
//! A list is a queue. What a client pops is leased to its connection until the client shows that it has the
//! reply (*safe pop*): by a command that was read after the reply had been written out, or by ending its side
//! after TCP has acknowledged the reply. A connection that breaks gives it back.

mod consumers;
mod lists;
mod merge;
mod pops;
mod ranges;
mod reading;
mod route;
mod server;
mod streams;
mod topics;
mod transaction;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::super::conn::{Conn, Life, Need, Output};
use super::super::engine::{Receipt, Refused};
use super::super::session::{Asker, Flow};
use super::super::waiters::Taking;
use super::super::{Now, Shard};
use super::{Session as Door, Told};
use crate::broker::command::{Command, PullOptions, Request, Sources, Typed};
use crate::broker::id::{Handle, Level};
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Delivery, Error, ErrorCode, Payload, Reply};
use crate::buffer::send::{Pool, SendRing};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::protocol::resp::decode::{Broken, Decoder, Step};
use crate::protocol::resp::encode::{self, Version};
use crate::protocol::text::IN_PLACE_BYTES_MAX;
use crate::protocol::text::encode as text;
pub(in super::super) use consumers::Consumers;
pub(in super::super) use lists::Pop;
pub(in super::super) use merge::{Merge, is_nothing, merge, merge_streams};
use pops::Arrivals;
use ranges::Range;
use reading::Asked;
use streams::Entry;
use transaction::{Exec, Multi};

/// One connection.
#[derive(Debug, Default)]
pub struct Session {
    decoder: Decoder,
    version: Version,
    /// What the command that is being answered expects.
    what: What,
    /// Bodies of a reply whose head says how many they are.
    bodies: Vec<Bytes>,
    /// Entries of streams, likewise.
    entries: Vec<Entry>,
    /// The streams that they are of.
    asked: Vec<Asked>,
    /// A part of what several shards answer is being run: those who came before have been served.
    has_turn: bool,
    /// A group has begun with the command that comes again.
    has_begun_group: bool,
    /// Popped in the reply that is not complete yet, by the serials of their leases.
    popping: Vec<u64>,
    /// Popped and not settled: where the reply ends in the output, and the lease's serial.
    pops: VecDeque<(u64, u64)>,
    arrivals: Arrivals,
    range: Option<Box<Range>>,
    multi: Option<Box<Multi>>,
    exec: Option<Box<Exec>>,
    channels: BTreeSet<Box<[u8]>>,
    globs: BTreeSet<Box<[u8]>>,
    /// Live subscriptions by their patterns: for how many channels and globs each is, and its tag.
    covers: BTreeMap<Box<[u8]>, u32>,
    next_tag: u64,
    /// The last command that was passed on to wait elsewhere, by its run.
    blocking: Option<u64>,
    /// With which error what waits is ended: its word and its text.
    unblocked: Option<(&'static str, &'static str)>,
    /// Until when the peer, which has ended its side, can show that it took everything; 0 = not asked.
    asked_until_us: u64,
    lib: Box<[u8]>,
}

/// What the answer of a command is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum What {
    /// What is told is what is answered.
    #[default]
    Plain,
    /// Only refusals are.
    Silent,
    /// `LPOP`: a body.
    One { is_found: bool },
    /// `BLPOP`: the key and a body.
    KeyAndOne { is_found: bool },
    /// `LPOP n`: bodies.
    Many,
    /// `LMPOP`: the key and bodies.
    KeyAndMany { key: Box<[u8]> },
    /// `XREADGROUP`: streams and their entries.
    Streams,
}

impl Session {
    /// A new connection; on a listener that takes nothing else commands may be typed by hand.
    pub fn new(takes_lines: bool) -> Session {
        Session {
            decoder: Decoder::new(takes_lines),
            ..Session::default()
        }
    }

    /// A command has begun and is not complete.
    pub fn in_frame(&self) -> bool {
        self.decoder.in_frame()
    }

    /// What to answer when the input ends here.
    pub fn unfinished(&self) -> Option<Error> {
        self.decoder.in_frame().then(|| {
            let text = "the input ended inside a command, which was not run";
            Error::new(ErrorCode::Proto, text)
        })
    }

    /// The peer has popped what it may not have taken.
    pub fn has_pops(&self) -> bool {
        !self.pops.is_empty() || !self.popping.is_empty()
    }

    /// Nothing that was popped will be settled.
    pub fn forget_pops(&mut self) {
        self.pops.clear();
        self.popping.clear();
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let names = self.channels.iter().chain(&self.globs);
        let bodies: usize = self.bodies.iter().map(Bytes::len).sum();
        let asked = self.asked.iter().map(|asked| asked.key.len());
        size_of::<Session>()
            + self.decoder.memory()
            + bodies
            + self.range.as_ref().map_or(0, |range| range.memory())
            + self.multi.as_ref().map_or(0, |multi| multi.memory())
            + self.exec.as_ref().map_or(0, |exec| exec.memory())
            + asked.map(|name| name + size_of::<Asked>()).sum::<usize>()
            + self.pops.capacity() * 16
            + self.arrivals.memory()
            + names.map(|name| 2 * name.len() + 64).sum::<usize>()
    }

    /// The reply of a command is complete: what is popped in it is settled behind this place.
    fn end_reply(&mut self, end: u64) {
        if self.exec.is_none() {
            let popping = self.popping.drain(..);
            self.pops.extend(popping.map(|serial| (end, serial)));
        }
    }

    fn is_subscribed(&self) -> bool {
        !self.channels.is_empty() || !self.globs.is_empty()
    }
}

/// Appends a body of any size; a large one is referenced.
fn bulk(out: &mut SendRing, pool: &mut Pool, body: &Payload<'_>) {
    match body {
        Payload::Shared(bytes) if bytes.len() >= IN_PLACE_BYTES_MAX => {
            encode::bulk_head(out.writer(pool), bytes.len());
            out.share(bytes.clone());
            out.writer(pool).extend_from_slice(b"\r\n");
        }
        body => encode::bulk(out.writer(pool), body.as_slice()),
    }
}

/// The word of an error: Redis' own where clients look for it.
fn word(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Syntax | ErrorCode::Unknown | ErrorCode::Name | ErrorCode::Proto => "ERR",
        ErrorCode::Mem => "OOM",
        ErrorCode::Auth => "NOAUTH",
        ErrorCode::Denied => "NOPERM",
        other => other.word(),
    }
}

/// What a client is told once of everything whose result nobody knows.
pub(in super::super) fn unknown_result(why: &'static str) -> Vec<u8> {
    let mut out = Vec::new();
    write_error(&mut out, &Error::new(ErrorCode::UnknownResult, why));
    out
}

fn write_error(out: &mut Vec<u8>, error: &Error) {
    let word = match error.text == lists::NOT_A_LIST {
        true => "WRONGTYPE",
        false => word(error.code),
    };
    encode::error(out, word, &error.text);
}

impl Conn {
    /// The peer has popped what it may not have taken.
    pub fn has_pops(&self) -> bool {
        matches!(&self.session, Door::Resp(session) if session.has_pops())
    }

    /// The version of RESP that it speaks, if it does.
    pub fn resp_version(&self) -> Option<Version> {
        match &self.session {
            Door::Resp(session) => Some(session.version),
            _ => None,
        }
    }

    /// It speaks that version of RESP from now on.
    pub fn speaks_resp(&mut self, version: Version) {
        self.resp().version = version;
    }

    fn resp(&mut self) -> &mut Session {
        match &mut self.session {
            Door::Resp(session) => session,
            other => unreachable!("{other:?} is no session of RESP"),
        }
    }

    /// What the shard tells becomes the reply, or a part of it, or a push.
    #[cold]
    pub(super) fn tell_resp(&mut self, pool: &mut Pool, tag: Option<&[u8]>, told: Told<'_>) {
        let reply = match told {
            Told::Message(delivery) if tag.is_some() => return self.push_cast(pool, delivery),
            Told::Message(delivery) => return self.pop(pool, delivery),
            // A subscription that misses copies is not told so by Redis either; leases have no deadline here.
            Told::Gone { .. } | Told::Lag { .. } | Told::Expired(_) => return,
            Told::Reply(reply) => reply,
        };
        let Door::Resp(session) = &mut self.session else {
            return;
        };
        let version = session.version;
        let out = &mut self.out;
        match reply {
            Reply::Error(error) => {
                session.bodies.clear();
                write_error(out.writer(pool), error);
            }
            _ if session.what == What::Silent => return,
            Reply::Cast { receivers, .. } => encode::integer(out.writer(pool), *receivers),
            Reply::Count { count, .. } => encode::integer(out.writer(pool), *count),
            Reply::End { .. } if let Some((word, text)) = session.unblocked.take() => {
                encode::error(out.writer(pool), word, text);
            }
            Reply::End { .. } => match std::mem::take(&mut session.what) {
                What::One { is_found: true } | What::KeyAndOne { is_found: true } => {}
                What::Streams => {
                    let entries = std::mem::take(&mut session.entries);
                    let asked = std::mem::take(&mut session.asked);
                    streams::write_streams(out.writer(pool), version, &asked, &entries);
                }
                What::One { .. } => encode::nil(out.writer(pool), version),
                What::KeyAndOne { .. } => encode::nil_array(out.writer(pool), version),
                _ if session.bodies.is_empty() => encode::nil_array(out.writer(pool), version),
                what => {
                    if let What::KeyAndMany { key } = &what {
                        encode::array(out.writer(pool), 2);
                        encode::bulk(out.writer(pool), key);
                    }
                    let bodies = std::mem::take(&mut session.bodies);
                    encode::array(out.writer(pool), bodies.len());
                    for body in bodies {
                        bulk(out, pool, &Payload::Shared(body));
                    }
                }
            },
            _ => out.writer(pool).extend_from_slice(encode::OK),
        }
        let end = out.end();
        session.end_reply(end);
    }

    /// A popped message.
    fn pop(&mut self, pool: &mut Pool, delivery: &Delivery<'_>) {
        let Door::Resp(session) = &mut self.session else {
            return;
        };
        if session.what == What::Streams {
            // They belong to their consumer, whatever becomes of the connection.
            return session.entries.push(Entry::of(delivery));
        }
        if let Some(Handle { serial, .. }) = delivery.handle {
            session.popping.push(serial);
        }
        match &mut session.what {
            What::One { is_found } => {
                *is_found = true;
                bulk(&mut self.out, pool, &delivery.body);
            }
            What::KeyAndOne { is_found } => {
                *is_found = true;
                let mut scratch = Vec::new();
                let key = Typed(delivery.source).decoded(&mut scratch);
                let out = self.out.writer(pool);
                encode::array(out, 2);
                encode::bulk(out, key);
                bulk(&mut self.out, pool, &delivery.body);
            }
            what => {
                if let What::KeyAndMany { key } = what
                    && key.is_empty()
                {
                    let mut scratch = Vec::new();
                    *key = Typed(delivery.source).decoded(&mut scratch).into();
                }
                session.bodies.push(match &delivery.body {
                    Payload::Shared(bytes) => bytes.clone(),
                    Payload::Slice(slice) => Bytes::copy_from_slice(slice),
                });
            }
        }
    }
}

impl<S: Storage> Shard<S> {
    /// Runs the commands at the front of `input`; returns how many bytes were used up.
    pub(super) fn run_resp(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        let conn = &mut self.conns[slot];
        let is_guest = conn.guest.is_some();
        let sent = match &conn.away {
            None => conn.out.sent(),
            Some(away) => away.sent(),
        };
        let session = conn.resp();
        if !is_guest {
            session.arrivals.note(input.len(), sent);
        }
        let mut decoder = std::mem::take(&mut session.decoder);
        let mut used = 0;
        while self.may_run(slot, &input[used..]) {
            let (consumed, step) = decoder.decode(&input[used..], &self.limits);
            match step {
                Step::Incomplete => break,
                Step::Command => {
                    if !is_guest {
                        // Its home counts it, and tells what was read.
                        self.totals.commands += 1;
                        self.settle_read(slot, sent);
                    }
                    let words = decoder.words(&input[used..]);
                    let frame = &input[used..used + consumed];
                    if !words.is_empty() && self.run_words(slot, &words, frame, now) == Flow::Again
                    {
                        break;
                    }
                    decoder.trim();
                }
                Step::Broken(Broken(why)) => {
                    self.totals.count_error(ErrorCode::Proto);
                    let text = format!("Protocol error: {why}");
                    self.say(slot, |out| encode::error(out, "ERR", &text));
                    self.conns[slot].life = Life::Closing;
                    self.conns[slot].resp().arrivals = Arrivals::default();
                    used = input.len();
                    break;
                }
            }
            if !is_guest {
                self.conns[slot].resp().arrivals.consume(consumed);
            }
            used += consumed;
        }
        self.conns[slot].resp().decoder = decoder;
        self.ran_here(slot);
        used
    }

    /// Runs one command and takes its reply out of the connection's output, with what that waits for; `None` if it
    /// comes again. What is pushed to the connection itself meanwhile stays there.
    pub(in super::super) fn run_resp_captured(
        &mut self,
        slot: usize,
        frame: &[u8],
        now: Now,
    ) -> Option<(Vec<u8>, Need)> {
        let mut decoder = Decoder::new(true);
        let (_, step) = decoder.decode(frame, &self.limits);
        assert_eq!(step, Step::Command, "it was decoded before");
        let words = decoder.words(frame);
        let name = String::from_utf8_lossy(words[0]).to_ascii_uppercase();
        let (name, ..) = server::known(&name).expect("it was looked at before");
        let held = self.conns[slot].swap_output(Output::default());
        self.conns[slot].resp().has_turn = true;
        let flow = self.run_here(slot, name, &words, now);
        self.conns[slot].resp().has_turn = false;
        let captured = self.conns[slot].swap_output(held);
        if flow == Flow::Again {
            return None;
        }
        let (mut text, need) = self.take_captured(captured);
        if **name == *"PUBLISH" {
            self.push_captured(slot, &mut text);
        }
        Some((text, need))
    }

    /// What was written out before the command came that is next was there to be read by its sender; `sent` is what
    /// has been written out by now.
    fn settle_read(&mut self, slot: usize, sent: u64) {
        let known = match planted(Fault::PopSettledEarly) {
            true => u64::MAX,
            false => self.conns[slot].resp().arrivals.first().unwrap_or(sent),
        };
        self.peer_has_read(slot, known);
    }

    /// Writes a reply that is complete.
    fn say(&mut self, slot: usize, write: impl FnOnce(&mut Vec<u8>)) -> Flow {
        let conn = &mut self.conns[slot];
        write(conn.out.writer(&mut self.pool));
        let end = conn.out.end();
        conn.resp().end_reply(end);
        Flow::Done
    }

    /// The same, in the version that the connection speaks.
    fn say_in(&mut self, slot: usize, write: impl FnOnce(&mut Vec<u8>, Version)) -> Flow {
        let version = self.conns[slot].resp().version;
        self.say(slot, |out| write(out, version))
    }

    fn say_error(&mut self, slot: usize, error: &Error) -> Flow {
        self.totals.count_error(error.code);
        self.say(slot, |out| write_error(out, error))
    }

    /// A refusal in Redis' own words.
    fn say_err(&mut self, slot: usize, text: &str) -> Flow {
        self.totals.count_error(ErrorCode::Syntax);
        self.say(slot, |out| encode::error(out, "ERR", text))
    }

    fn say_ok(&mut self, slot: usize) -> Flow {
        self.say(slot, |out| out.extend_from_slice(encode::OK))
    }

    /// Runs a command of the line protocol; what it is told becomes the reply.
    fn ask_resp(&mut self, slot: usize, what: What, command: Command<'_>, now: Now) -> Flow {
        let session = self.conns[slot].resp();
        session.what = what;
        session.bodies.clear();
        session.entries.clear();
        let request = Request {
            tag: None,
            quiet: false,
            command,
        };
        let flow = self.execute(slot, request, now);
        self.conns[slot].rare.take_kept_body();
        flow
    }

    /// Pulls; what is given becomes the reply.
    fn pull_resp(
        &mut self,
        slot: usize,
        what: What,
        sources: &[u8],
        options: &PullOptions,
        taking: Taking<'_>,
        now: Now,
    ) -> Flow {
        let session = self.conns[slot].resp();
        session.what = what;
        session.bodies.clear();
        session.entries.clear();
        self.run_pull(Self::asker(slot), Sources(sources), options, taking, now)
    }

    /// Who asks a function that answers what it is told.
    fn asker(slot: usize) -> Asker<'static> {
        Asker {
            slot,
            tag: None,
            quiet: false,
        }
    }

    /// The queue of that name, if it is there.
    fn list(&self, name: &[u8]) -> Option<QueueKey> {
        self.engine.find(name)
    }

    /// The same, made if it is not: without a limit of deliveries, since Redis has none.
    fn list_or_new(&mut self, slot: usize, name: &[u8]) -> Result<QueueKey, Error> {
        let mut typed = Vec::new();
        text::typed(&mut typed, name);
        if let Some(key) = self.last_target(slot, Typed(&typed)) {
            return Ok(key);
        }
        crate::protocol::text::value::name(&typed)?;
        if self.engine.find(name).is_none() {
            let mut settings = self.engine.defaults.clone();
            settings.maxdeliver = 0;
            self.engine.create(name, settings);
        }
        Ok(self.target(slot, Typed(&typed)))
    }

    /// Notes a publish of the connection; what is written next waits until it has reached its level.
    fn note_published(&mut self, slot: usize, key: QueueKey, receipt: &Receipt) {
        let conn = &mut self.conns[slot];
        if receipt.hidden {
            conn.published.add(self.engine.visible_need(key));
        }
        if receipt.need.level != Level::None && !self.engine.reached(receipt.need) {
            conn.gate(receipt.need, self.engine.leases.next_serial());
        }
    }

    /// A refused or postponed publish.
    fn not_published(&mut self, slot: usize, refused: Refused) -> Flow {
        match refused {
            Refused::Error(error) => self.say_error(slot, &error),
            Refused::Cold => {
                self.block_cold(slot);
                Flow::Again
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_begin_with_the_words_that_clients_of_redis_know() {
        for (code, want) in [
            (ErrorCode::Syntax, "ERR"),
            (ErrorCode::Mem, "OOM"),
            (ErrorCode::Auth, "NOAUTH"),
            (ErrorCode::Denied, "NOPERM"),
            (ErrorCode::Full, "FULL"),
        ] {
            assert_eq!(word(code), want);
        }
    }
}
