//! Looking into a list without taking from it: `LRANGE`, `LINDEX`.

use bytes::Bytes;

use super::super::super::session::Flow;
use super::super::super::{Now, Shard};
use super::lists::integer;
use super::{bulk, encode};
use crate::broker::id::MessageId;
use crate::broker::queue::State;
use crate::broker::reply::{Error, ErrorCode, Payload};
use crate::log::disk::Storage;

/// Messages that are being read, some of them from the disk.
#[derive(Debug, Default)]
pub(super) struct Range {
    ids: Vec<MessageId>,
    next: usize,
    bodies: Vec<Bytes>,
    bytes: usize,
}

impl Range {
    /// Memory held, bytes.
    pub(super) fn memory(&self) -> usize {
        self.ids.capacity() * size_of::<MessageId>() + self.bytes
    }
}

/// What `start` and `stop`, which count from the end when they are negative, mean in a list of so many.
fn bounds(start: i64, stop: i64, length: usize) -> std::ops::Range<usize> {
    let length = length as i64;
    let from = |index: i64| match index < 0 {
        true => index.saturating_add(length),
        false => index,
    };
    let start = from(start).clamp(0, length);
    let end = from(stop).saturating_add(1).clamp(start, length);
    start as usize..end as usize
}

impl<S: Storage> Shard<S> {
    /// `LRANGE`, and `LINDEX` if there is no second index.
    pub(super) fn range(&mut self, slot: usize, words: &[&[u8]], _now: Now) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let start = integer(words[2]);
        let stop = words.get(3).map_or(start, |word| integer(word));
        let (Some(start), Some(stop)) = (start, stop) else {
            return self.say_err(slot, "value is not an integer or out of range");
        };
        let is_index = words.len() == 3;
        let key = self.list(words[1]);
        if key.is_some_and(|key| self.is_stream(key)) {
            return self.say_wrong_type(slot);
        }
        let mut range = self.conns[slot].resp().range.take().unwrap_or_default();
        if let Some(key) = key {
            if range.ids.is_empty() {
                let ids = self.engine.queue(key).list();
                range.ids = ids[bounds(start, stop, ids.len())].to_vec();
            }
            while let Some(id) = range.ids.get(range.next).copied() {
                // It may have gone while others were read from the disk.
                if self.engine.queue(key).state(id) == State::Ready {
                    let Some((place, _)) = self.engine.locate(key, id) else {
                        return self.range_later(slot, range);
                    };
                    match self.engine.stored(key, place) {
                        None => {
                            self.engine.fetch(place);
                            return self.range_later(slot, range);
                        }
                        Some(Ok(message)) => {
                            let body = Bytes::copy_from_slice(message.body.as_slice());
                            range.bytes += body.len();
                            range.bodies.push(body);
                        }
                        Some(Err(_)) => {}
                    }
                }
                range.next += 1;
                if range.bytes > self.limits.batch_bytes_max {
                    let text = "the range is larger than --max-batch-bytes; ask for a part of it";
                    return self.say_error(slot, &Error::new(ErrorCode::TooBig, text));
                }
            }
        }
        if is_index {
            return match range.bodies.first() {
                Some(body) => self.say_bodies(slot, std::slice::from_ref(body)),
                None => self.say_in(slot, encode::nil),
            };
        }
        self.say(slot, |out| encode::array(out, range.bodies.len()));
        self.say_bodies(slot, &range.bodies)
    }

    fn range_later(&mut self, slot: usize, range: Box<Range>) -> Flow {
        self.conns[slot].resp().range = Some(range);
        self.block_cold(slot);
        Flow::Again
    }

    fn say_bodies(&mut self, slot: usize, bodies: &[Bytes]) -> Flow {
        for body in bodies {
            let out = &mut self.conns[slot].out;
            bulk(out, &mut self.pool, &Payload::Shared(body.clone()));
        }
        Flow::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_count_from_both_ends() {
        assert_eq!(bounds(0, -1, 5), 0..5);
        assert_eq!(bounds(1, 2, 5), 1..3);
        assert_eq!(bounds(-2, -1, 5), 3..5);
        assert_eq!(bounds(3, 1, 5), 3..3);
        assert_eq!(bounds(9, 12, 5), 5..5);
        assert_eq!(bounds(-9, 0, 5), 0..1);
        assert_eq!(bounds(i64::MIN, i64::MAX, 5), 0..5);
        assert_eq!(bounds(0, -1, 0), 0..0);
    }
}
