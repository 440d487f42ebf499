//! REQ and REP: who waits for an answer, and until when.
//!
//! A request's token is what its answer is known by: 128 bits that nobody foresees, different in every
//! run. The request itself is a message of its queue (`engine/request`) and lives by the queue's rules;
//! what is kept here is only the requester. It goes with the answer, the timeout, the last consumer, a
//! `CANCEL`, or the requester's connection.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hasher;

use bytes::Bytes;
use foldhash::fast::FixedState;
use siphasher::sip128::{Hasher128, SipHasher24};

use super::conn::{Blocked, Need};
use super::door::Told;
use super::drain::draining;
use super::engine::Refused;
use super::session::{Asker, Flow};
use super::{ConnKey, Ending, Now, Shard};
use crate::broker::command::{Body, PublishOptions, Typed};
use crate::broker::id::QueueUid;
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Delivery, Error, ErrorCode, Payload, Reply};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::protocol::text::value;

/// Characters of a token: 128 bits in hexadecimal.
const TOKEN_CHARS: usize = 32;
/// Answers may fill a requester's output up to so many times its limit: it takes no more requests when it
/// is at the limit, but those it has sent are to be answered.
const ANSWERS_FACTOR: usize = 8;
/// What is said with `ERR FULL`, milliseconds.
const RETRY_MS: u32 = 100;
/// Why nobody will hear the answer of a request when the log has failed.
const REQUEST_LOST: &str =
    "the disk failed while the request waited; it may have been worked on, and is gone";
/// Memory of one request beside its message, estimated, bytes.
const PENDING_BYTES: usize = 320;

/// One who waits for an answer.
#[derive(Debug)]
struct Pending {
    conn: ConnKey,
    /// Without the `@`; untagged when empty.
    tag: Box<[u8]>,
    token: u128,
    queue: QueueUid,
    /// The queue's printed name.
    source: Box<[u8]>,
    deadline_us: u64,
}

/// Everybody who waits for an answer, by a number of their own.
#[derive(Debug)]
pub(super) struct Requests {
    keys: [u64; 2],
    /// How many shards there are, and which this is.
    place: (u32, u32),
    next_serial: u64,
    pending: HashMap<u64, Pending, FixedState>,
    by_token: HashMap<u128, u64, FixedState>,
    by_queue: BTreeSet<(QueueUid, u64)>,
    deadlines: BTreeSet<(u64, u64)>,
}

impl Requests {
    /// Nobody yet; `random` makes the tokens what nobody foresees.
    pub(super) fn new(random: u64, place: (u32, u32)) -> Requests {
        Requests {
            keys: [random, !random],
            place,
            next_serial: 1,
            pending: HashMap::default(),
            by_token: HashMap::default(),
            by_queue: BTreeSet::new(),
            deadlines: BTreeSet::new(),
        }
    }

    /// Requests that wait for an answer.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Memory held, estimated, bytes.
    pub(super) fn memory(&self) -> usize {
        self.pending.len() * PENDING_BYTES
    }

    /// The earliest timeout, microseconds.
    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline_us, _)| *deadline_us)
    }

    /// The token of the next request. No two are the same: the incarnation is another in every run.
    fn token(&self, incarnation: u64) -> u128 {
        let mut hasher = SipHasher24::new_with_keys(self.keys[0], self.keys[1]);
        hasher.write_u64(incarnation);
        hasher.write_u64(self.next_serial);
        let token = hasher.finish128().as_u128();
        match self.place {
            (1, _) => token,
            // An answer must find this shard.
            (_, me) => token & !SHARD_BITS | u128::from(me),
        }
    }

    fn add(&mut self, pending: Pending) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.by_token.insert(pending.token, serial);
        self.by_queue.insert((pending.queue, serial));
        self.deadlines.insert((pending.deadline_us, serial));
        self.pending.insert(serial, pending);
        serial
    }

    fn remove(&mut self, serial: u64) -> Option<Pending> {
        let pending = self.pending.remove(&serial)?;
        self.by_token.remove(&pending.token);
        self.by_queue.remove(&(pending.queue, serial));
        self.deadlines.remove(&(pending.deadline_us, serial));
        Some(pending)
    }

    /// A request to that queue, the oldest one.
    fn first_of(&self, queue: QueueUid) -> Option<u64> {
        let mut of_queue = self.by_queue.range((queue, 0)..=(queue, u64::MAX));
        of_queue.next().map(|(_, serial)| *serial)
    }
}

/// The bits of a token that tell its shard, where there are several.
const SHARD_BITS: u128 = 0xffff;

/// The shard that has given a token, if the text can be one of these shards'.
pub(super) fn shard_of_token(text: &[u8], shards: u32) -> Option<u32> {
    let shard = (parse_token(text)? & SHARD_BITS) as u32;
    (shard < shards).then_some(shard)
}

/// The token that text names, if it can be one.
fn parse_token(text: &[u8]) -> Option<u128> {
    let digits = text
        .iter()
        .all(|octet| matches!(octet, b'0'..=b'9' | b'a'..=b'f'));
    let text = std::str::from_utf8(text).ok()?;
    let token = (text.len() == TOKEN_CHARS && digits).then(|| u128::from_str_radix(text, 16).ok());
    token.flatten()
}

impl<S: Storage> Shard<S> {
    /// `REQ`: puts a request into a queue and waits for its answer.
    pub(super) fn request(
        &mut self,
        asker: Asker<'_>,
        queue: Typed<'_>,
        timeout_us: u64,
        options: &PublishOptions<'_>,
        body: Body<'_>,
        now: Now,
    ) -> Flow {
        match self.try_request(asker, queue, timeout_us, options, &body, now) {
            Ok(()) => Flow::Done,
            Err(Refused::Cold) => {
                if let Body::Owned(bytes) = body {
                    self.conns[asker.slot].rare.make().kept_body = Some(bytes);
                }
                self.block_cold(asker.slot);
                Flow::Again
            }
            Err(Refused::Error(error)) => self.conclude(asker, Err(error)),
        }
    }

    fn try_request(
        &mut self,
        asker: Asker<'_>,
        queue: Typed<'_>,
        timeout_us: u64,
        options: &PublishOptions<'_>,
        body: &Body<'_>,
        now: Now,
    ) -> Result<(), Refused> {
        self.may_wait(asker)?;
        if self.is_draining() || self.ending != Ending::No {
            return Err(draining().into());
        }
        let key = self.existing(queue)?;
        if !self.engine.has_consumers(key) {
            return Err(no_consumer(queue.0).into());
        }
        let token = self.requests.token(self.engine.incarnation);
        let text = format!("{token:032x}");
        let options = PublishOptions {
            reply: Some(Typed(text.as_bytes())),
            ..*options
        };
        let deadline_us = now.us.saturating_add(timeout_us);
        self.engine
            .publish_request(key, &options, body, deadline_us, now)?;
        let queue = self.engine.queue(key);
        let pending = Pending {
            conn: self.key(asker.slot),
            tag: asker.tag.unwrap_or_default().into(),
            token,
            queue: queue.uid,
            source: queue.printed.clone(),
            deadline_us,
        };
        let serial = self.requests.add(pending);
        let conn = &mut self.conns[asker.slot];
        match asker.tag {
            Some(tag) => {
                conn.rare.make().requests.insert(tag.into(), serial);
            }
            None => conn.blocked = Blocked::Request(serial),
        }
        Ok(())
    }

    /// `REP`: gives the answer to the one who waits for it.
    pub(super) fn give_answer(
        &mut self,
        asker: Asker<'_>,
        token: Typed<'_>,
        body: Body<'_>,
    ) -> Result<(), Error> {
        let mut scratch = Vec::new();
        let token = parse_token(token.decoded(&mut scratch));
        let mut found = token.and_then(|token| self.requests.by_token.get(&token).copied());
        if planted(Fault::AnswerMisdirected) && found.is_some() {
            found = self.requests.pending.keys().min().copied();
        }
        let Some(serial) = found else {
            return Err(Error::new(
                ErrorCode::Stale,
                "nobody waits for this answer (any more): it was answered, its time is up, or the requester has gone",
            ));
        };
        let slot = self.requester(serial);
        let room = self.limits.send_bytes_max.saturating_mul(ANSWERS_FACTOR);
        if self.conns[slot].out.len() >= room {
            return Err(Error::new(
                ErrorCode::Full,
                "the requester does not read its answers; try again while it waits",
            )
            .retry(RETRY_MS));
        }
        let pending = self.end_request(serial);
        let delivery = Delivery {
            source: &pending.source,
            handle: None,
            id: 0,
            tries: 1,
            timestamp_ms: None,
            key: None,
            reply: None,
            headers: &[],
            body: match &body {
                Body::Borrowed(octets) => Payload::Slice(octets),
                Body::Owned(bytes) => Payload::Shared(Bytes::clone(bytes)),
            },
        };
        let tag = (!pending.tag.is_empty()).then_some(&*pending.tag);
        let conn = &mut self.conns[slot];
        conn.tell(&mut self.pool, tag, Told::Message(&delivery));
        conn.tell(&mut self.pool, tag, Told::Reply(&Reply::End { count: 1 }));
        self.mark_dirty(slot);
        self.answer_when(asker, Need::NOW, &Reply::Ok);
        Ok(())
    }

    /// The connection of one who waits.
    fn requester(&self, serial: u64) -> usize {
        let pending = &self.requests.pending[&serial];
        self.slot(pending.conn)
            .expect("requests go with their connection")
    }

    /// Nobody waits any more; the connection's later commands go on.
    fn end_request(&mut self, serial: u64) -> Pending {
        let slot = self.requester(serial);
        let pending = self.requests.remove(serial).expect("it was just found");
        let conn = &mut self.conns[slot];
        if conn.blocked == Blocked::Request(serial) {
            conn.blocked = Blocked::No;
            self.resume(slot);
        } else {
            conn.rare.make().requests.remove(&pending.tag);
        }
        pending
    }

    /// Nobody waits any more, and is told so.
    pub(super) fn fail_request(&mut self, serial: u64, error: &Error) {
        let slot = self.requester(serial);
        let pending = self.end_request(serial);
        let tag = (!pending.tag.is_empty()).then_some(&*pending.tag);
        self.totals.count_error(error.code);
        self.answer_error(slot, tag, error);
        self.mark_dirty(slot);
    }

    /// Ends the requests whose time is up.
    pub(super) fn end_requests(&mut self, now: Now) {
        while let Some((deadline_us, serial)) = self.requests.deadlines.first().copied()
            && deadline_us <= now.us
        {
            if planted(Fault::RequestTimeoutLost) && serial.is_multiple_of(3) {
                self.requests.deadlines.pop_first();
                continue;
            }
            self.fail_request(serial, &timed_out());
        }
    }

    /// A consumer of the queue has gone: if it was the last one, nobody answers what was asked there.
    pub(super) fn consumer_gone(&mut self, key: QueueKey) {
        let store = self.engine.store_of(key);
        // While the broker drains, those whose subscriptions it has ended may still answer.
        if !self.engine.has_consumers(store) && !self.is_draining() {
            let uid = self.engine.queue(store).uid;
            self.fail_requests_of(uid);
        }
    }

    /// Nobody answers what was asked in that queue.
    pub(super) fn fail_requests_of(&mut self, uid: QueueUid) {
        while let Some(serial) = self.requests.first_of(uid) {
            let error = no_consumer(&self.requests.pending[&serial].source);
            self.fail_request(serial, &error);
        }
    }

    /// The connection goes: nobody waits for its answers.
    pub(super) fn forget_requests(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        if let Blocked::Request(serial) = conn.blocked {
            self.requests.remove(serial);
        }
        for serial in conn.rare.take_requests().into_values() {
            self.requests.remove(serial);
        }
    }

    /// The broker goes: its requests are not answered any more.
    pub(super) fn drain_requests(&mut self, slot: usize) {
        self.fail_requests(slot, &draining());
    }

    /// The connection says that it goes.
    pub(super) fn abandon_requests(&mut self, slot: usize) {
        self.fail_requests(slot, &timed_out());
    }

    /// The log has failed: what became of its requests the connection will not hear any more.
    pub(super) fn doubt_requests(&mut self, slot: usize) {
        let error = Error::new(ErrorCode::UnknownResult, REQUEST_LOST);
        self.fail_requests(slot, &error);
    }

    fn fail_requests(&mut self, slot: usize, error: &Error) {
        let conn = &self.conns[slot];
        let mut serials: Vec<u64> = conn.rare.requests.values().copied().collect();
        if let Blocked::Request(serial) = conn.blocked {
            serials.push(serial);
        }
        serials.sort_unstable();
        for serial in serials {
            self.fail_request(serial, error);
        }
    }

    /// `CANCEL` of a request; false if none has that tag.
    pub(super) fn cancel_request(&mut self, slot: usize, tag: &[u8]) -> bool {
        let found = self.conns[slot].rare.requests.get(tag).copied();
        if let Some(serial) = found {
            self.fail_request(serial, &timed_out());
        }
        found.is_some()
    }

    /// A connection that has pulled from a queue can answer its requests until it is closed.
    #[cold]
    pub(super) fn note_puller(&mut self, slot: usize, key: QueueKey) {
        let queue = self.engine.queue(key);
        let uid = queue.uid;
        let pulled = &mut self.conns[slot].rare.make().pulled;
        let engine = &self.engine;
        if pulled.add(uid, |uid| engine.find_uid(uid).is_some()) {
            self.engine.queue_mut(key).pullers += 1;
        }
    }

    /// The connection is gone, and with it one who pulled from these.
    pub(super) fn pullers_gone(&mut self, pulled: impl Iterator<Item = QueueUid>) {
        for uid in pulled {
            if let Some(key) = self.engine.find_uid(uid) {
                self.engine.queue_mut(key).pullers -= 1;
                self.consumer_gone(key);
            }
        }
    }

    /// Does the connection wait for an answer?
    pub(super) fn has_requests(&self, slot: usize) -> bool {
        !self.conns[slot].rare.requests.is_empty()
    }
}

#[cold]
fn timed_out() -> Error {
    Error::new(
        ErrorCode::Timeout,
        "no answer came in time; the request may have been worked on",
    )
}

#[cold]
fn no_consumer(name: &[u8]) -> Error {
    let text = format!(
        "nobody could answer: no connection has a SUB on {0} or has pulled from it",
        value::shown(name)
    );
    Error::new(ErrorCode::NoConsumer, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_between_requests_runs_and_seeds() {
        let mut seen = BTreeSet::new();
        for random in [1, 2, u64::MAX] {
            let mut requests = Requests::new(random, (1, 0));
            for incarnation in 1..4 {
                for serial in 1..100 {
                    requests.next_serial = serial;
                    assert!(seen.insert(requests.token(incarnation)));
                }
            }
        }
    }

    #[test]
    fn only_what_was_given_out_is_a_token() {
        let token = Requests::new(7, (1, 0)).token(1);
        assert_eq!(parse_token(format!("{token:032x}").as_bytes()), Some(token));
        for bad in [
            "",
            "-",
            "1.1.1",
            "0123456789abcdef0123456789abcde",
            "0123456789abcdef0123456789abcdef0",
            "+123456789abcdef0123456789abcdef",
            "0123456789ABCDEF0123456789ABCDEF",
            "0123456789abcdef0123456789abcdeg",
        ] {
            assert_eq!(parse_token(bad.as_bytes()), None, "{bad}");
        }
    }
}
