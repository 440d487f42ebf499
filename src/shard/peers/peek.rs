//! `PEEK state=dead` where the dead-letter queue is another shard's.
//!
//! The shard of the queue asks that of its dead-letter queue for copies, and shows them as its own. Nothing is
//! taken, so nothing is to be given back when whoever has asked is gone.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Letter;
use crate::broker::id::{MessageId, QueueUid};
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Payload, Reply};
use crate::log::Sections;
use crate::log::disk::Storage;
use crate::shard::Shard;
use crate::shard::engine::far_origin;
use crate::shard::hand_out::{Shown, write_message};
use crate::shard::jobs::PEEK_MAX;
use crate::shard::session::{Asker, Flow};

/// What is asked of the shard of a dead-letter queue.
#[derive(Debug)]
pub(super) struct Wanted {
    number: u64,
    /// The dead-letter queue (octets).
    queue: Box<[u8]>,
    /// Whose dead letters.
    reader: QueueUid,
    from: MessageId,
    count: usize,
}

/// A copy of a dead letter.
#[derive(Debug)]
struct Copy {
    id: MessageId,
    tries: u32,
    sections: Box<[u8]>,
    body: Bytes,
}

/// What was found of it.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// The dead-letter queue's printed name.
    printed: Box<[u8]>,
    messages: Vec<Copy>,
    bytes: usize,
}

/// What another shard has asked for and is being read.
#[derive(Debug)]
struct Reading {
    asker: u32,
    wanted: Wanted,
    copies: Copies,
}

/// What was asked of others, and by them.
#[derive(Debug, Default)]
pub(super) struct Peeks {
    last: u64,
    /// By number; nothing until the answer has come.
    own: BTreeMap<u64, Option<Copies>>,
    readings: Vec<Reading>,
}

impl<S: Storage> Shard<S> {
    /// The shard and the name (octets) of a reader's dead-letter queue, if that is elsewhere.
    pub(in crate::shard) fn dead_elsewhere(&self, key: QueueKey) -> Option<(u32, Box<[u8]>)> {
        let name = self.engine.queue(key).dead_name()?;
        self.engine.elsewhere(&name).map(|to| (to, name))
    }

    /// `PEEK state=dead` of a reader whose dead-letter queue is another shard's.
    pub(in crate::shard) fn peek_elsewhere(
        &mut self,
        asker: Asker<'_>,
        key: QueueKey,
        (to, queue): (u32, Box<[u8]>),
        count: u32,
        from: MessageId,
    ) -> Flow {
        let mut progress = self.take_progress(asker);
        let reader = self.engine.queue(key).uid;
        let peeks = &mut self.mail().peeks;
        let Some(answer) = peeks.own.get_mut(&progress.peek) else {
            peeks.last += 1;
            let number = peeks.last;
            peeks.own.insert(number, None);
            progress.peek = number;
            let wanted = Wanted {
                number,
                queue,
                reader,
                from,
                count: (count as usize).min(PEEK_MAX),
            };
            self.mail().post(to, Letter::Peek(Box::new(wanted)));
            return self.pause_job(asker, progress, true);
        };
        let Some(copies) = answer.take() else {
            return self.pause_job(asker, progress, true);
        };
        peeks.own.remove(&progress.peek);
        let tag = asker.tag.unwrap_or_default();
        for message in &copies.messages {
            let what = Shown {
                source: &copies.printed,
                handle: None,
                id: message.id,
                tries: message.tries,
                timestamp_ms: None,
            };
            let conn = &mut self.conns[asker.slot];
            let sections = Sections(&message.sections);
            let body = Payload::Shared(message.body.clone());
            write_message(conn, &mut self.pool, tag, what, sections, body);
        }
        let count = copies.messages.len() as u64;
        self.answer(asker, &Reply::End { count });
        Flow::Done
    }

    /// Whoever has asked is gone.
    pub(in crate::shard) fn forget_peek(&mut self, number: u64) {
        if let Some(peers) = &mut self.peers {
            peers.peeks.own.remove(&number);
        }
    }

    /// Another shard asks for dead letters that are here.
    pub(super) fn peek_for(&mut self, asker: u32, wanted: Wanted) {
        let copies = Copies::default();
        self.mail().peeks.readings.push(Reading {
            asker,
            wanted,
            copies,
        });
    }

    /// The answer.
    pub(super) fn peeked_elsewhere(&mut self, number: u64, copies: Copies) {
        if let Some(answer) = self.mail().peeks.own.get_mut(&number) {
            *answer = Some(copies);
            // The command looks again.
            self.engine.outbox.move_on();
            self.housekeeping.look_again();
        }
    }

    /// Goes on with what others have asked for; what is on the disk comes in a later turn.
    pub(super) fn answer_peeks(&mut self) {
        if self.mail().peeks.readings.is_empty() {
            return;
        }
        for mut reading in std::mem::take(&mut self.mail().peeks.readings) {
            let is_over = self.is_log_closed() || self.failed.is_some();
            if !is_over && !self.read_dead(&mut reading) {
                self.mail().peeks.readings.push(reading);
                continue;
            }
            let Reading {
                asker,
                wanted,
                copies,
            } = reading;
            let (number, copies) = (wanted.number, Box::new(copies));
            self.mail().post(asker, Letter::Peeked { number, copies });
        }
    }

    /// Copies what it can of what was asked for; false if some of it must be read from the disk first.
    fn read_dead(&mut self, reading: &mut Reading) -> bool {
        let Reading {
            asker,
            wanted,
            copies,
        } = reading;
        let Some(key) = self.engine.find(&wanted.queue) else {
            return true;
        };
        copies.printed = self.engine.queue(key).printed.clone();
        let origin = far_origin(*asker, wanted.reader.0);
        for id in self.dead_of_reader(key, origin, wanted.from, wanted.count) {
            if copies.bytes >= self.limits.send_bytes_max {
                break;
            }
            let Some((place, _)) = self.engine.locate(key, id) else {
                return false;
            };
            let tries = u32::from(self.engine.queue(key).next_try(id));
            match self.engine.stored_beside_queue(key, place) {
                None => {
                    self.engine.fetch(place);
                    return false;
                }
                // It is damaged.
                Some(Err(_)) => {}
                Some(Ok((_, message))) => {
                    let body = message.body.as_slice();
                    copies.bytes += body.len() + message.sections.len();
                    copies.messages.push(Copy {
                        id,
                        tries,
                        sections: message.sections.into(),
                        body: Bytes::copy_from_slice(body),
                    });
                }
            }
            wanted.from = id + 1;
            wanted.count -= 1;
        }
        true
    }
}
