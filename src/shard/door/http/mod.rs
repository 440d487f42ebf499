//! HTTP/1.1: routes to commands, and what the shard tells to responses.
//!
//! A request is a line of the line protocol that its route and parameters spell (`text::decode::compose`), so
//! limits, names, options and errors are the same. One request of a connection is under way at a time; those
//! behind it stay in the input.

mod answers;
mod bodies;
mod exposition;
mod metrics;
mod pages;
mod passed;
mod routes;

pub use pages::Page;
pub use passed::PassedOn;

use super::{Session as Door, Told};
use crate::broker::command::Body;
use crate::broker::reply::{Error, ErrorCode};
use crate::log::disk::Storage;
use crate::protocol::http::decode::{Decoder, Head, Method, Refusal, Step};
use crate::protocol::http::encode::CONTINUE;
use crate::shard::conn::Conn;
use crate::shard::session::Flow;
use crate::shard::{Now, Shard};
use answers::{Response, TEXT};

/// One connection, or its guest at another shard, which writes the responses to what is passed on to it.
#[derive(Debug, Default)]
pub struct Session {
    /// What comes in.
    pub decoder: Decoder,
    /// The request that is being answered.
    current: Option<Current>,
}

impl Session {
    /// What to answer when the input ends here.
    pub fn unfinished(&self) -> Option<Error> {
        self.decoder.in_frame().then(|| {
            Error::new(
                ErrorCode::Proto,
                "the input ended inside a request, which was not run",
            )
        })
    }

    /// The request under way is not answered any more, nor any other.
    pub fn forget_request(&mut self) {
        self.current = None;
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let json = match &self.current {
            Some(Current {
                what: What::Messages { json, .. },
                ..
            }) => json.capacity(),
            _ => 0,
        };
        size_of::<Session>() + self.decoder.memory() + json
    }
}

/// A request whose answer is to come.
#[derive(Debug)]
struct Current {
    what: What,
    is_head: bool,
    keep_alive: bool,
}

/// What the answer is to look like.
#[derive(Debug)]
enum What {
    /// Written where it is decided.
    Plain,
    /// A receipt, as text for `/queue`, as JSON for others.
    Receipt { is_text: bool },
    /// A message is the body.
    Message { is_given: bool },
    /// Messages in JSON, as far as there are any.
    Messages { json: Vec<u8>, count: u64 },
    /// How many handles were live.
    Count,
    /// The lines of `QLS`.
    Queues,
    /// The lines of `QGET`.
    Queue,
    /// A page that every shard has a part in.
    Page(Page),
}

impl Conn {
    fn http(&mut self) -> &mut Session {
        match &mut self.session {
            Door::Http(session) => session,
            other => unreachable!("{other:?} is no session of HTTP"),
        }
    }
}

impl<S: Storage> Shard<S> {
    /// Runs the requests at the front of `input`; returns how many bytes were used up.
    pub(in crate::shard::door) fn run_http(
        &mut self,
        slot: usize,
        input: &[u8],
        now: Now,
    ) -> usize {
        self.end_passed_on(slot);
        let mut decoder = std::mem::take(&mut self.conns[slot].http().decoder);
        let used = self.run_requests(slot, &mut decoder, input, now);
        self.conns[slot].http().decoder = decoder;
        self.ran_here(slot);
        used
    }

    fn run_requests(
        &mut self,
        slot: usize,
        decoder: &mut Decoder,
        input: &[u8],
        now: Now,
    ) -> usize {
        let mut used = 0;
        loop {
            if !self.may_run(slot, &input[used..]) {
                return used;
            }
            let (consumed, step) = decoder.decode(&input[used..], &self.limits);
            match step {
                Step::Incomplete => return used + consumed,
                Step::Continue => {
                    let out = self.conns[slot].out.writer(&mut self.pool);
                    out.extend_from_slice(CONTINUE);
                }
                Step::Request(head, body) => {
                    self.totals.commands += 1;
                    let is_collected = matches!(body, Body::Owned(_));
                    if self.run_request(slot, head, body, now) == Flow::Again {
                        return if is_collected { used + consumed } else { used };
                    }
                    decoder.done();
                }
                Step::Refused(Refusal { status, text }) => {
                    let conn = &mut self.conns[slot];
                    let body = format!("{text}\n");
                    conn.respond(
                        &mut self.pool,
                        &Response::new(status, TEXT),
                        body.as_bytes(),
                    );
                    self.totals.count_error(ErrorCode::Proto);
                    return input.len();
                }
            }
            used += consumed;
        }
    }

    /// Runs one request.
    fn run_request(&mut self, slot: usize, head: &Head, body: Body<'_>, now: Now) -> Flow {
        self.conns[slot].http().current = Some(Current {
            what: What::Plain,
            is_head: head.method == Method::Head,
            keep_alive: head.keep_alive,
        });
        let flow = self.run_route(slot, head, body, now);
        if flow == Flow::Again {
            // It is decoded again, or still there with its body.
            self.conns[slot].rare.take_kept_body();
            self.conns[slot].http().current = None;
        }
        flow
    }
}
