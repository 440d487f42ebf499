//! Requests for queues of other shards.
//!
//! A request is passed on as it was decoded, and run by the connection's guest at the queue's shard, which writes the
//! response; nothing of it is spelled and parsed a second time. What several shards answer together is asked of each
//! as a command of the line protocol. What is behind the request waits for its response.

use bytes::Bytes;

use crate::broker::command::{Body, Request};
use crate::broker::reply::{Error, ErrorCode};
use crate::log::disk::Storage;
use crate::protocol::http::decode::Head;
use crate::protocol::text::IN_PLACE_BYTES_MAX;
use crate::shard::conn::{Blocked, Life};
use crate::shard::peers::{Errand, Plan};
use crate::shard::session::Flow;
use crate::shard::{Now, Shard};

/// A request on its way to the shard of its queue.
#[derive(Debug, PartialEq, Eq)]
pub struct PassedOn {
    head: Head,
    body: Bytes,
}

impl PassedOn {
    fn new(head: &Head, body: &Body<'_>) -> PassedOn {
        PassedOn {
            head: Head {
                // Who may ask was decided where it came in.
                host: Box::default(),
                origin: None,
                ..head.clone()
            },
            body: match body {
                Body::Borrowed(body) => Bytes::copy_from_slice(body),
                Body::Owned(body) => body.clone(),
            },
        }
    }

    /// What it takes, bytes.
    pub fn bytes(&self) -> usize {
        self.head.target.len() + self.body.len()
    }
}

impl<S: Storage> Shard<S> {
    /// Has a request run by those whom it is for.
    pub(super) fn pass_on(
        &mut self,
        slot: usize,
        plan: Plan,
        asked: (&Head, &Body<'_>),
        line: &[u8],
        request: &Request<'_>,
        now: Now,
    ) -> Flow {
        let flow = match plan {
            Plan::Post { to, .. } => self.post_http(slot, to, || PassedOn::new(asked.0, asked.1)),
            Plan::Pull(..) => {
                let text = "one request takes from the queues of one shard: ask for one queue";
                self.refuse_http(slot, &Error::new(ErrorCode::Syntax, text))
            }
            plan => {
                let frame = [line, b"\n"].concat();
                self.carry_out_plan(slot, Errand::new(plan, request), &frame, line, now)
            }
        };
        if flow == Flow::Done && self.conns[slot].http().current.is_some() {
            self.wait_for_last_run(slot);
        }
        flow
    }

    /// Runs, as a guest, what was passed on.
    pub(in crate::shard) fn run_passed_on(
        &mut self,
        slot: usize,
        request: &PassedOn,
        now: Now,
    ) -> Flow {
        if !self.may_run(slot, b"") {
            return Flow::Again;
        }
        let body = match request.body.len() {
            // It is stored as it is.
            IN_PLACE_BYTES_MAX.. => Body::Owned(request.body.clone()),
            _ => Body::Borrowed(&request.body),
        };
        self.run_request(slot, &request.head, body, now)
    }

    /// The response to the request that was passed on has come, if nothing is waited for any more.
    pub(super) fn end_passed_on(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        if conn.blocked == Blocked::No
            && let Some(current) = conn.http().current.take()
            && !current.keep_alive
        {
            conn.life = Life::Closing;
        }
    }
}
