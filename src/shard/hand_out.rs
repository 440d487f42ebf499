//! Handing messages to one connection: leases them and writes them out, or settles them first.

use super::Now;
use super::conn::Conn;
use super::door::Told;
use super::engine::{Engine, Next, Taken};
use super::waiters::{FOREVER_US, Terms};
use crate::broker::arena::is_request;
use crate::broker::id::{Handle, Level};
use crate::broker::lease::NewLease;
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Delivery, Payload};
use crate::buffer::send::Pool;
use crate::log::disk::Storage;
use crate::log::{SectionKind, Sections, SettleReason};
use crate::protocol::text::encode;

/// What came of trying to hand out messages of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// As many as wanted were given, or the output is full.
    Enough,
    /// Nothing more is ready.
    Empty,
    /// The next one is being read from the disk.
    Cold,
    /// Who is first in line has an offer already: it is the next one's turn.
    Passed,
}

/// Counts of one hand-out.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// Messages.
    pub count: u32,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Why no more.
    pub stopped: Stopped,
}

/// Hands out ready messages of a queue to a connection: leases them and writes them out.
#[allow(clippy::too_many_arguments)]
#[inline]
pub(super) fn hand_out<S: Storage>(
    engine: &mut Engine<S>,
    conn: &mut Conn,
    pool: &mut Pool,
    key: QueueKey,
    terms: &Terms,
    tag: &[u8],
    most: u32,
    bytes_max: u64,
    send_bytes_max: usize,
    now: Now,
) -> Given {
    let mut given = Given {
        count: 0,
        bytes: 0,
        stopped: Stopped::Enough,
    };
    let mut plain = None;
    while given.count < most && given.bytes < bytes_max {
        if given.count > 0 && conn.out.len() >= send_bytes_max {
            break;
        }
        let queue = engine.queue(key);
        if queue.ready() == 0 {
            given.stopped = Stopped::Empty;
            break;
        }
        // A single message is written as fast without this.
        let wanted = most - given.count;
        if wanted > 1
            && queue.ready() > 1
            && queue.gives_plainly()
            && terms.are_plain()
            && conn.session.is_text()
            && let Some(plain) = plain
                .get_or_insert_with(|| encode::Plain::new(tag, &queue.printed, engine.incarnation))
        {
            let lease_us = terms.lease_us.unwrap_or(queue.settings.lease_us);
            let before = conn.out.len();
            let out = conn.out.writer(pool);
            let start = out.len();
            let write = |id, serial, body: &[u8]| {
                plain.write(out, id, serial, body);
                given.bytes += body.len() as u64;
                given.bytes < bytes_max && before + (out.len() - start) < send_bytes_max
            };
            let (holder, is_first) = (terms.holder, given.count == 0);
            let count = engine.hand_out_run(key, holder, lease_us, wanted, is_first, now, write);
            if count > 0 {
                given.count += count;
                continue;
            }
        }
        let next = match terms.from_tail {
            false => engine.take_next(key, now),
            true => engine.take_last(key, now),
        };
        let taken = match next {
            Next::Taken(taken) => taken,
            Next::Empty => {
                given.stopped = Stopped::Empty;
                break;
            }
            Next::Cold => {
                given.stopped = Stopped::Cold;
                break;
            }
        };
        let is_first = given.count == 0;
        given.count += 1;
        given.bytes += send(engine, conn, pool, key, terms, tag, taken, is_first, now);
    }
    given
}

/// Writes one taken message out; returns the size of its body.
#[allow(clippy::too_many_arguments)]
#[inline]
fn send<S: Storage>(
    engine: &mut Engine<S>,
    conn: &mut Conn,
    pool: &mut Pool,
    key: QueueKey,
    terms: &Terms,
    tag: &[u8],
    taken: Taken,
    is_first: bool,
    now: Now,
) -> u64 {
    let incarnation = engine.incarnation;
    let queue = engine.queue(key);
    let level = queue.settings.durable;
    let lease_us = terms.lease_us.unwrap_or(queue.settings.lease_us);
    let waits = terms.ack_auto && level != Level::None && conn.waits_for_settles();
    if waits && !is_request(taken.place) {
        let need = engine.next_need(level);
        conn.gate(need, engine.leases.next_serial());
    }
    // The lease is begun before the message is read, so that its handle can be written; the size follows.
    let serial = if terms.ack_auto {
        0
    } else {
        let new = NewLease {
            id: taken.id,
            place: taken.place,
            queue: key,
            holder: terms.holder,
            size: 0,
            tries: taken.tries,
            pri: taken.pri,
        };
        let lease_us = Some(lease_us).filter(|lease_us| *lease_us != FOREVER_US);
        engine.leases.begin(new, now.us, lease_us)
    };
    let handle = (serial != 0).then_some(Handle {
        incarnation,
        id: taken.id,
        serial,
    });
    let stored = engine.stored_beside_queue(key, taken.place);
    let (printed, message) = stored
        .expect("a taken message is in memory")
        .expect("a taken message was checked");
    let size = message.body.as_slice().len() as u32;
    let time_ms = message.time_ms;
    let shown = Shown {
        source: printed,
        handle,
        id: taken.id,
        tries: u32::from(taken.tries),
        timestamp_ms: terms.timestamps.then_some(message.time_ms),
    };
    write_message(
        conn,
        pool,
        tag,
        shown,
        Sections(message.sections),
        message.body,
    );
    if is_first {
        engine.measure(time_ms, taken.tries, serial, now);
    }
    if serial == 0 {
        engine.queue_mut(key).counters.acked += 1;
        engine.settle_taken(key, taken.id, taken.place, Some(size), SettleReason::Acked);
        if waits && !is_request(taken.place) {
            // A segment may have ended before the settle, which is in a later record then.
            conn.raise_last_gate(engine.next_need(level));
        }
    } else {
        engine.leases.set_size(serial, size);
        if terms.hold {
            conn.rare.make().holding.push_back((u64::MAX, serial));
        }
    }
    u64::from(size)
}

/// What of a message is not stored with it.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The queue's printed name.
    pub source: &'a [u8],
    /// The lease's handle, if there is one.
    pub handle: Option<Handle>,
    /// The message's id.
    pub id: u64,
    /// Which try.
    pub tries: u32,
    /// Publish time, unix milliseconds, if wanted.
    pub timestamp_ms: Option<u64>,
}

/// Encodes one message into a connection's output.
#[inline]
pub fn write_message(
    conn: &mut Conn,
    pool: &mut Pool,
    tag: &[u8],
    shown: Shown<'_>,
    sections: Sections<'_>,
    body: Payload<'_>,
) {
    if conn.is_amqp() {
        return conn.deliver_amqp(pool, tag, &shown, sections, &body);
    }
    let tag = (!tag.is_empty()).then_some(tag);
    let mut joined = Vec::new();
    let (mut key, mut reply, mut headers): (_, _, &[u8]) = (None, None, &[]);
    if !sections.is_empty() {
        key = sections.get(SectionKind::Key);
        reply = sections.get(SectionKind::Reply);
        headers = sections.get(SectionKind::Headers).unwrap_or_default();
        if let Some(trace) = sections.get(SectionKind::Trace) {
            joined.extend_from_slice(headers);
            joined.extend_from_slice(trace);
            headers = &joined;
        }
    }
    let Shown {
        source,
        handle,
        id,
        tries,
        timestamp_ms,
    } = shown;
    let delivery = Delivery {
        source,
        handle,
        id,
        tries,
        timestamp_ms,
        key,
        reply,
        headers,
        body,
    };
    if !conn.session.is_text() {
        return conn.tell(pool, tag, Told::Message(&delivery));
    }
    encode::message(&mut conn.out, pool, tag, &delivery);
}
