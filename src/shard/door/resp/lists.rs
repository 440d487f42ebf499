//! Lists: pushes and pops at both ends, at once or waiting.

use super::super::super::drain::draining;
use super::super::super::session::Flow;
use super::super::super::waiters::Taking;
use super::super::super::{Now, Shard};
use super::{What, encode, text};
use crate::broker::command::{Body, PublishOptions, PullOptions};
use crate::broker::queue::QueueKey;
use crate::broker::ready::HEAD;
use crate::broker::reply::{Error, ErrorCode};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;

/// Which end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Where `LPUSH` and `LPOP` are.
    Left,
    /// Where `RPUSH` and `RPOP` are.
    Right,
}

impl End {
    fn parse(word: &[u8]) -> Option<End> {
        match word.to_ascii_uppercase().as_slice() {
            b"LEFT" => Some(End::Left),
            b"RIGHT" => Some(End::Right),
            _ => None,
        }
    }
}

/// A whole number, as Redis reads one.
pub(super) fn integer(word: &[u8]) -> Option<i64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// Seconds with a fraction, as microseconds; 0 = for ever.
fn timeout_us(word: &[u8]) -> Result<u64, &'static str> {
    let text = std::str::from_utf8(word).unwrap_or_default();
    let seconds: f64 = match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() => seconds,
        _ => return Err("timeout is not a float or out of range"),
    };
    if seconds < 0.0 {
        return Err("timeout is negative");
    }
    Ok(match (seconds * 1e6).ceil() as u64 {
        0 => u64::MAX,
        us => us,
    })
}

pub(super) const NOT_A_LIST: &str = "Operation against a key holding the wrong kind of value";

impl<S: Storage> Shard<S> {
    /// Streams are queues that retain; they are no lists.
    pub(super) fn is_stream(&self, key: QueueKey) -> bool {
        self.engine.queue(key).settings.retain.is_set()
    }

    /// Messages that can be taken now or are on their way to that.
    pub(super) fn length(&self, key: QueueKey) -> u64 {
        let queue = self.engine.queue(key);
        queue.ready() + queue.locked() + queue.hidden()
    }

    pub(super) fn say_wrong_type(&mut self, slot: usize) -> Flow {
        self.totals.count_error(ErrorCode::Conflict);
        self.say(slot, |out| encode::error(out, "WRONGTYPE", NOT_A_LIST))
    }

    /// `RPUSH`, `LPUSH`, `RPUSHX`, `LPUSHX`
    pub(super) fn push(
        &mut self,
        slot: usize,
        words: &[&[u8]],
        end: End,
        must_exist: bool,
        now: Now,
    ) -> Flow {
        if self.is_draining() {
            return self.say_error(slot, &draining());
        }
        let name = words[1];
        if must_exist && self.list(name).is_none_or(|key| self.length(key) == 0) {
            return self.say(slot, |out| encode::integer(out, 0));
        }
        let key = match self.list_or_new(slot, name) {
            Ok(key) => key,
            Err(error) => return self.say_error(slot, &error),
        };
        if self.is_stream(key) {
            return self.say_wrong_type(slot);
        }
        let bodies = &words[2..];
        let count_max = self.limits.batch_count_max;
        if bodies.len() > count_max {
            let text = format!("a push has at most {count_max} values");
            return self.say_error(slot, &Error::new(ErrorCode::TooBig, text));
        }
        let size = bodies.iter().map(|body| body.len() as u64).sum();
        let options = match end {
            End::Right => PublishOptions::plain(),
            End::Left => PublishOptions {
                pri: Some(HEAD),
                ..PublishOptions::default()
            },
        };
        let is_set = self.engine.queue(key).settings.head || planted(Fault::HeadNotSet);
        if end == End::Left && !is_set {
            let queue = self.engine.queue_mut(key);
            let before = queue.settings.clone();
            queue.settings.head = true;
            self.engine.settings_changed(key, &before, now.us);
            self.engine.log_definition(key);
        }
        let messages = bodies.iter().map(|body| Body::Borrowed(body));
        let outcome = self
            .engine
            .publish(key, &options, messages, bodies.len() as u32, size, now);
        match outcome {
            Ok(receipt) => {
                self.note_published(slot, key, &receipt);
                let length = self.length(key);
                self.say(slot, |out| encode::integer(out, length))
            }
            Err(refused) => self.not_published(slot, refused),
        }
    }

    /// Takes up to `count` messages of the lists, waiting for the first one.
    fn pull_lists(
        &mut self,
        slot: usize,
        names: &[&[u8]],
        what: What,
        (end, count, wait_us): (End, u32, u64),
        now: Now,
    ) -> Flow {
        let mut sources = Vec::new();
        for (at, name) in names.iter().enumerate() {
            if at > 0 {
                sources.push(b',');
            }
            text::typed(&mut sources, name);
        }
        let options = PullOptions {
            count: count.min(u32::try_from(self.limits.batch_count_max).unwrap_or(u32::MAX)),
            wait_us,
            // Until the connection ends, or the client shows that it has the reply.
            lease_us: Some(u64::MAX),
            from: None,
            ack_auto: self.limits.pop_is_classic,
            hold: false,
            bytes_max: Some(self.limits.batch_bytes_max as u64),
            timestamps: false,
        };
        let taking = Taking {
            consumer: None,
            from_tail: end == End::Right,
        };
        self.pull_resp(slot, what, &sources, &options, taking, now)
    }

    /// `LPOP`, `RPOP`
    pub(super) fn pop_now(&mut self, slot: usize, words: &[&[u8]], end: End, now: Now) -> Flow {
        let (what, count) = match words.get(2) {
            None => (What::One { is_found: false }, 1),
            Some(word) => match integer(word) {
                Some(count @ 0..) => (What::Many, u32::try_from(count).unwrap_or(u32::MAX)),
                _ => return self.say_err(slot, "value is out of range, must be positive"),
            },
        };
        let Some(key) = self.list(words[1]) else {
            return self.say_in(slot, |out, version| match what {
                What::Many => encode::nil_array(out, version),
                _ => encode::nil(out, version),
            });
        };
        if self.is_stream(key) {
            return self.say_wrong_type(slot);
        }
        if count == 0 {
            return self.say(slot, |out| encode::array(out, 0));
        }
        self.pull_lists(slot, &words[1..2], what, (end, count, 0), now)
    }

    /// Lists that are waited for are made, so that there is something to wait at.
    fn open_lists(&mut self, slot: usize, names: &[&[u8]]) -> Result<(), Flow> {
        for name in names {
            match self.list_or_new(slot, name) {
                Ok(key) if self.is_stream(key) => return Err(self.say_wrong_type(slot)),
                Ok(_) => {}
                Err(error) => return Err(self.say_error(slot, &error)),
            }
        }
        Ok(())
    }

    /// Inside a transaction nothing waits.
    fn wait_us(&mut self, slot: usize, wait_us: u64) -> u64 {
        match self.conns[slot].resp().exec {
            Some(_) => 0,
            None => wait_us,
        }
    }

    /// `BLPOP`, `BRPOP`
    pub(super) fn pop_waiting(&mut self, slot: usize, words: &[&[u8]], end: End, now: Now) -> Flow {
        let (timeout, names) = words[1..].split_last().expect("the count was looked at");
        let wait_us = match timeout_us(timeout) {
            Ok(wait_us) => self.wait_us(slot, wait_us),
            Err(text) => return self.say_err(slot, text),
        };
        if let Err(flow) = self.open_lists(slot, names) {
            return flow;
        }
        let what = What::KeyAndOne { is_found: false };
        self.pull_lists(slot, names, what, (end, 1, wait_us), now)
    }

    /// A pop by this connection would be given something of the queue.
    fn gives_any(&mut self, slot: usize, key: QueueKey, now: Now) -> bool {
        // Those who wait came before.
        if !self.engine.queue(key).waiters.is_empty() {
            self.dispatch(key, now);
        }
        let queue = self.engine.queue(key);
        let is_ready = queue.ready() > 0 && !queue.settings.pause.output;
        is_ready && (!queue.settings.single || self.may_consume(key, self.key(slot)))
    }

    /// `LMPOP`, `BLMPOP`: of the first list that has any.
    pub(super) fn pop_many(&mut self, slot: usize, words: &[&[u8]], waits: bool, now: Now) -> Flow {
        let mut words = &words[1..];
        let mut wait_us = 0;
        if waits {
            match timeout_us(words[0]) {
                Ok(us) => wait_us = self.wait_us(slot, us),
                Err(text) => return self.say_err(slot, text),
            }
            words = &words[1..];
        }
        let Some(number @ 1..) = integer(words[0]) else {
            return self.say_err(slot, "numkeys should be greater than 0");
        };
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(rest) = words.get(1 + number.min(words.len())..) else {
            return self.say_err(slot, "syntax error");
        };
        let names = &words[1..=number];
        let (end, count) = match rest {
            [end] => (End::parse(end), Some(1)),
            [end, word, count] if word.eq_ignore_ascii_case(b"COUNT") => {
                (End::parse(end), integer(count).filter(|count| *count > 0))
            }
            _ => return self.say_err(slot, "syntax error"),
        };
        let (Some(end), Some(count)) = (end, count) else {
            return self.say_err(slot, "syntax error");
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let what = What::KeyAndMany {
            key: Box::default(),
        };
        for name in names {
            let Some(key) = self.list(name) else {
                continue;
            };
            if !self.gives_any(slot, key, now) {
                continue;
            }
            if self.is_stream(key) {
                return self.say_wrong_type(slot);
            }
            return self.pull_lists(slot, &[name], what, (end, count, wait_us), now);
        }
        if wait_us == 0 {
            return self.say_in(slot, encode::nil_array);
        }
        if let Err(flow) = self.open_lists(slot, names) {
            return flow;
        }
        // Several lists could give one message each.
        let count = if names.len() > 1 { 1 } else { count };
        self.pull_lists(slot, names, what, (end, count, wait_us), now)
    }

    /// `LLEN`
    pub(super) fn llen(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let length = match self.list(words[1]) {
            Some(key) if self.is_stream(key) => return self.say_wrong_type(slot),
            Some(key) => {
                let queue = self.engine.queue(key);
                queue.ready() + queue.locked()
            }
            None => 0,
        };
        self.say(slot, |out| encode::integer(out, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_seconds_with_a_fraction() {
        assert_eq!(timeout_us(b"0"), Ok(u64::MAX));
        assert_eq!(timeout_us(b"0.0"), Ok(u64::MAX));
        assert_eq!(timeout_us(b"1.5"), Ok(1_500_000));
        assert_eq!(timeout_us(b"0.0000001"), Ok(1));
        assert!(timeout_us(b"-1").is_err());
        for bad in [b"x".as_slice(), b"", b"inf", b"nan", b"\xff"] {
            assert!(timeout_us(bad).is_err());
        }
    }
}
