//! The doors: what a connection speaks, and what it is told.
//!
//! A door turns what comes in into the commands that the line protocol has ([`Shard::execute`]) or into
//! calls of the engine, and writes what it is told into the same output, behind the same gates. The line
//! protocol is not here: it needs no state beside its decoder and is written to where it is told something,
//! which every `is_text` marks.

mod amqp;
mod http;
mod resp;

pub use amqp::{Introduction, Upkeep};
pub(super) use resp::{Consumers, Merge, Pop, is_nothing, merge, merge_streams, unknown_result};

pub(super) use http::{Page, PassedOn};

use super::conn::{Conn, Life};
use super::{Now, Shard};
use crate::broker::id::Handle;
use crate::broker::reply::{Delivery, Error, ErrorCode, Reply};
use crate::buffer::send::Pool;
use crate::config::Door;
use crate::log::disk::Storage;
use crate::protocol::detect::detect;
use crate::protocol::text::encode::{self, Gone};

/// What a connection speaks. The state of a door is boxed, so that a connection without it pays a word.
#[derive(Debug)]
pub enum Session {
    /// Nothing has come yet that tells.
    Undecided,
    /// The line protocol.
    Text,
    /// AMQP 0-9-1.
    Amqp(Box<amqp::Amqp>),
    /// HTTP/1.1.
    Http(Box<http::Session>),
    /// RESP.
    Resp(Box<resp::Session>),
}

/// What the shard tells a connection: the answer to a command, or something that comes by itself.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// The answer to a command, or the end of a wait.
    Reply(&'a Reply<'a>),
    /// A message: of a pull, a subscription, a `PEEK`, or the answer of a request.
    Message(&'a Delivery<'a>),
    /// A subscription has ended by itself.
    Gone {
        /// What it read, printed.
        source: &'a [u8],
        /// Why.
        why: Gone,
    },
    /// A live subscription has missed copies.
    Lag {
        /// Its pattern, printed.
        pattern: &'a [u8],
        /// How many.
        dropped: u64,
    },
    /// A lease has run out.
    Expired(Handle),
}

impl Session {
    /// It speaks the line protocol.
    #[inline(always)]
    pub fn is_text(&self) -> bool {
        matches!(self, Session::Text)
    }

    /// Which door it came through; `None` if that is not known yet.
    pub fn door(&self) -> Option<Door> {
        match self {
            Session::Undecided => None,
            Session::Text => Some(Door::Text),
            Session::Http(_) => Some(Door::Http),
            Session::Resp(_) => Some(Door::Resp),
            Session::Amqp(_) => Some(Door::Amqp),
        }
    }

    /// That of a guest, whose connection has come through that door at another shard.
    pub fn of_guest(door: Door) -> Session {
        match door {
            Door::Text => Session::Text,
            Door::Http => Session::Http(Box::default()),
            // What a person types is passed on as it is.
            Door::Resp => Session::Resp(Box::new(resp::Session::new(true))),
            Door::Amqp => Session::Amqp(Box::new(amqp::Amqp::guest())),
            Door::Tls => unreachable!("what comes by {door:?} is not passed on"),
        }
    }

    /// What it is called.
    pub fn word(&self) -> &'static str {
        self.door().map_or("-", Door::word)
    }

    /// See [`Conn::body_space`].
    pub fn body_space(&mut self) -> Option<&mut [u8]> {
        match self {
            Session::Undecided | Session::Text | Session::Resp(_) | Session::Amqp(_) => None,
            Session::Http(session) => session.decoder.body_space(),
        }
    }

    /// See [`Conn::body_filled`].
    pub fn body_filled(&mut self, count: usize) {
        match self {
            Session::Undecided | Session::Text | Session::Resp(_) | Session::Amqp(_) => {
                panic!("{count} bytes were received into no body")
            }
            Session::Http(session) => session.decoder.body_filled(count),
        }
    }

    /// See [`Conn::in_frame`].
    pub fn in_frame(&self) -> bool {
        match self {
            Session::Undecided | Session::Text => false,
            Session::Amqp(amqp) => amqp.in_frame(),
            Session::Http(session) => session.decoder.in_frame(),
            Session::Resp(session) => session.in_frame(),
        }
    }

    /// See [`Conn::unfinished`].
    pub fn unfinished(&self) -> Option<Error> {
        match self {
            Session::Undecided | Session::Text | Session::Amqp(_) => None,
            Session::Http(session) => session.unfinished(),
            Session::Resp(session) => session.unfinished(),
        }
    }

    /// Memory held, bytes, beyond the enum itself.
    pub fn memory(&self) -> usize {
        match self {
            Session::Undecided | Session::Text => 0,
            Session::Amqp(amqp) => amqp.memory(),
            Session::Http(session) => session.memory(),
            Session::Resp(session) => session.memory(),
        }
    }
}

impl Conn {
    /// Writes what the connection is told into its output, in its own protocol.
    pub fn tell(&mut self, pool: &mut Pool, tag: Option<&[u8]>, told: Told<'_>) {
        match &mut self.session {
            Session::Undecided | Session::Text => match told {
                Told::Reply(reply) => encode::reply(self.out.writer(pool), tag, reply),
                Told::Message(delivery) => encode::message(&mut self.out, pool, tag, delivery),
                Told::Gone { source, why } => {
                    encode::gone(self.out.writer(pool), tag, source, why);
                }
                Told::Lag { pattern, dropped } => {
                    encode::lag(self.out.writer(pool), tag, pattern, dropped);
                }
                Told::Expired(handle) => encode::expired(self.out.writer(pool), handle),
            },
            Session::Amqp(amqp) => amqp.tell(&mut self.out, pool, tag, told),
            Session::Http(_) => self.tell_http(pool, told),
            Session::Resp(_) => self.tell_resp(pool, tag, told),
        }
    }
}

impl<S: Storage> Shard<S> {
    /// Runs the input of a connection that does not speak the line protocol, or of which that is not known
    /// yet; returns how many bytes were used up.
    #[cold]
    pub(super) fn run_at_door(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        if let Session::Undecided = self.conns[slot].session {
            let Some(door) = detect(input) else { return 0 };
            let Some(session) = self.open_door(slot, door) else {
                // Nothing inside it is run as commands.
                self.conns[slot].life = Life::Closing;
                return input.len();
            };
            self.conns[slot].session = session;
        }
        match self.conns[slot].session {
            Session::Undecided | Session::Text => self.run_text(slot, input, now),
            Session::Amqp(_) => self.run_amqp(slot, input, now),
            Session::Http(_) => self.run_http(slot, input, now),
            Session::Resp(_) => self.run_resp(slot, input, now),
        }
    }

    /// The session for a client that speaks so; `None` if its listener takes only another, or none is there.
    fn open_door(&mut self, slot: usize, door: Door) -> Option<Session> {
        let pinned = self.conns[slot].entrance.pinned;
        if (pinned, door) == (Some(Door::Resp), Door::Text) {
            // Where nothing else can be meant, a person may type.
            return Some(Session::Resp(Box::new(resp::Session::new(true))));
        }
        if pinned.is_some_and(|pinned| pinned != door) {
            return None;
        }
        match door {
            Door::Text => Some(Session::Text),
            Door::Http => Some(Session::Http(Box::default())),
            Door::Resp => Some(Session::Resp(Box::new(resp::Session::new(
                pinned.is_some(),
            )))),
            Door::Amqp => {
                self.amqp.joined(slot);
                let amqp = match self.peers {
                    Some(_) => {
                        self.begin_parts(slot);
                        amqp::Amqp::with_parts(self.shards().1)
                    }
                    None => amqp::Amqp::new(),
                };
                Some(Session::Amqp(Box::new(amqp)))
            }
            Door::Tls => None,
        }
    }

    /// What a door's output waited for will not be known: that output was taken out, the client is told so
    /// once and the connection ends. False for the line protocol, which answers each command.
    pub(super) fn answer_unknown(&mut self, slot: usize, why: &'static str) -> bool {
        let conn = &mut self.conns[slot];
        if matches!(conn.session, Session::Undecided | Session::Text) {
            return false;
        }
        match &mut conn.session {
            // The places where replies end mean nothing any more: what was popped goes back.
            Session::Resp(session) => session.forget_pops(),
            // Nor does what is asked behind them.
            Session::Http(session) => session.forget_request(),
            _ => {}
        }
        let (start, error) = (conn.out.end(), Error::new(ErrorCode::UnknownResult, why));
        conn.tell(&mut self.pool, None, Told::Reply(&Reply::Error(&error)));
        conn.end_marks(start);
        conn.life = Life::Closing;
        true
    }
}
