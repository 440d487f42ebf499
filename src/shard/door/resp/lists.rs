//! Lists: pushes and pops at both ends, at once or waiting.

use super::super::super::consume::Cold;
use super::super::super::drain::draining;
use super::super::super::peers::Asks;
use super::super::super::placement::shard_of;
use super::super::super::session::Flow;
use super::super::super::waiters::{Taking, Terms};
use super::super::super::{Now, Shard};
use super::{What, encode, text};
use crate::broker::command::{Body, PublishOptions, PullOptions, Sources};
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

/// A pop of one of several lists.
#[derive(Debug)]
struct Asked<'a> {
    names: &'a [&'a [u8]],
    end: End,
    /// Most messages.
    count: u32,
    /// 0 = what there is.
    wait_us: u64,
}

/// Reads `LMPOP` and, if it `waits`, `BLMPOP`.
///
/// # Errors
/// Redis' own words for what is wrong with it.
fn parse_many<'a>(words: &'a [&'a [u8]], waits: bool) -> Result<Asked<'a>, &'static str> {
    let mut words = &words[1..];
    let mut wait_us = 0;
    if waits {
        wait_us = timeout_us(words[0])?;
        words = &words[1..];
    }
    let Some(number @ 1..) = integer(words[0]) else {
        return Err("numkeys should be greater than 0");
    };
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let Some(rest) = words.get(1 + number.min(words.len())..) else {
        return Err("syntax error");
    };
    let (end, count) = match rest {
        [end] => (End::parse(end), Some(1)),
        [end, word, count] if word.eq_ignore_ascii_case(b"COUNT") => {
            (End::parse(end), integer(count).filter(|count| *count > 0))
        }
        _ => return Err("syntax error"),
    };
    let (Some(end), Some(count)) = (end, count) else {
        return Err("syntax error");
    };
    Ok(Asked {
        names: &words[1..=number],
        end,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        wait_us,
    })
}

/// Reads `BLPOP` and `BRPOP`.
///
/// # Errors
/// Redis' own words for what is wrong with it.
fn parse_waiting<'a>(words: &'a [&'a [u8]], end: End) -> Result<Asked<'a>, &'static str> {
    let (timeout, names) = words[1..].split_last().expect("the count was looked at");
    Ok(Asked {
        names,
        end,
        count: 1,
        wait_us: timeout_us(timeout)?,
    })
}

/// A pop of lists on several shards, as each of them is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pop {
    end: End,
    /// The reply is a key and several messages.
    is_many: bool,
    /// Lists that are not there are made, so that there is something to wait at.
    makes: bool,
}

pub(super) const NOT_A_LIST: &str = "Operation against a key holding the wrong kind of value";

/// A stream is no list, nor the other way round.
fn wrong_type() -> Error {
    Error::new(ErrorCode::Conflict, NOT_A_LIST)
}

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
        self.say_error(slot, &wrong_type())
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
        let options = self.pop_options(count, wait_us);
        let taking = Taking {
            consumer: None,
            from_tail: end == End::Right,
            has_turn: false,
        };
        self.pull_resp(slot, what, &sources, &options, taking, now)
    }

    fn pop_options(&self, count: u32, wait_us: u64) -> PullOptions {
        PullOptions {
            count: count.min(u32::try_from(self.limits.batch_count_max).unwrap_or(u32::MAX)),
            wait_us,
            // Until the connection ends, or the client shows that it has the reply.
            lease_us: Some(u64::MAX),
            from: None,
            ack_auto: self.limits.pop_is_classic,
            hold: false,
            bytes_max: Some(self.limits.batch_bytes_max as u64),
            timestamps: false,
        }
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

    /// Lists that are waited for are made, so that there is something to wait at: those before the first that is none.
    fn open_lists<'a>(
        &mut self,
        slot: usize,
        names: &'a [&'a [u8]],
        now: Now,
    ) -> Result<&'a [&'a [u8]], Flow> {
        let mut gives = false;
        for (at, name) in names.iter().enumerate() {
            match self.list_or_new(slot, name) {
                Ok(key) if self.is_stream(key) && gives => return Ok(&names[..at]),
                Ok(key) if self.is_stream(key) => return Err(self.say_wrong_type(slot)),
                Ok(key) => gives |= self.gives_any(slot, key, now),
                Err(error) => return Err(self.say_error(slot, &error)),
            }
        }
        Ok(names)
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
        let Asked { names, wait_us, .. } = match parse_waiting(words, end) {
            Ok(asked) => asked,
            Err(text) => return self.say_err(slot, text),
        };
        let wait_us = self.wait_us(slot, wait_us);
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let names = match self.open_lists(slot, names, now) {
            Ok(names) => names,
            Err(flow) => return flow,
        };
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
        let asked = match parse_many(words, waits) {
            Ok(asked) => asked,
            Err(text) => return self.say_err(slot, text),
        };
        let Asked {
            names, end, count, ..
        } = asked;
        let wait_us = self.wait_us(slot, asked.wait_us);
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
            if self.is_stream(key) {
                return self.say_wrong_type(slot);
            }
            if !self.gives_any(slot, key, now) {
                continue;
            }
            return self.pull_lists(slot, &[name], what, (end, count, wait_us), now);
        }
        if wait_us == 0 {
            return self.say_in(slot, encode::nil_array);
        }
        let names = match self.open_lists(slot, names, now) {
            Ok(names) => names,
            Err(flow) => return flow,
        };
        // Several lists could give one message each.
        let count = if names.len() > 1 { 1 } else { count };
        self.pull_lists(slot, names, what, (end, count, wait_us), now)
    }

    /// A pop of lists on several shards: `BLPOP`, `BRPOP`, `LMPOP`, `BLMPOP`.
    pub(super) fn pop_across(
        &mut self,
        slot: usize,
        name: &str,
        words: &[&[u8]],
        now: Now,
    ) -> Flow {
        let asked = match name {
            "BLPOP" => parse_waiting(words, End::Left),
            "BRPOP" => parse_waiting(words, End::Right),
            _ => parse_many(words, name == "BLMPOP"),
        };
        let asked = match asked {
            Ok(asked) => asked,
            Err(text) => return self.say_err(slot, text),
        };
        let wait_us = self.wait_us(slot, asked.wait_us);
        let pop = Pop {
            end: asked.end,
            is_many: matches!(name, "LMPOP" | "BLMPOP"),
            makes: wait_us > 0,
        };
        let (shards, _) = self.shards();
        let mut parts: Vec<(u32, Vec<u8>)> = Vec::new();
        for (at, key) in asked.names.iter().enumerate() {
            if asked.names[..at].contains(key) {
                continue;
            }
            let shard = shard_of(key, shards);
            match parts.last_mut() {
                Some((last, sources)) if *last == shard => sources.push(b','),
                _ => parts.push((shard, Vec::new())),
            }
            let (_, sources) = parts.last_mut().expect("there is one now");
            text::typed(sources, key);
        }
        let options = self.pop_options(asked.count, wait_us);
        self.begin_across(slot, b"", parts, options, Asks::Pop(pop), now)
    }

    /// The lists of a part of such a pop: those before the first that is none, if one of them has something.
    ///
    /// # Errors
    /// One of them is none, or has no name.
    pub(in super::super::super) fn open_pop(
        &mut self,
        slot: usize,
        sources: Sources<'_>,
        pop: Pop,
        now: Now,
    ) -> Result<Vec<QueueKey>, Error> {
        let (mut keys, mut gives) = (Vec::new(), false);
        for source in sources.iter() {
            let mut scratch = Vec::new();
            let name = source.queue.decoded(&mut scratch);
            let key = match pop.makes {
                true => self.list_or_new(slot, name)?,
                false => match self.list(name) {
                    Some(key) => key,
                    None => continue,
                },
            };
            if self.is_stream(key) {
                match gives {
                    true => break,
                    false => return Err(wrong_type()),
                }
            }
            gives |= self.gives_any(slot, key, now);
            self.note_puller(slot, key);
            keys.push(key);
        }
        Ok(keys)
    }

    /// Gives what the first of these lists has that has any, and writes the reply: how many messages, and bytes of their
    /// bodies. `Err` if nothing was given and a next message is on the disk.
    pub(in super::super::super) fn give_pop(
        &mut self,
        slot: usize,
        sources: &[QueueKey],
        options: &PullOptions,
        pop: Pop,
        now: Now,
    ) -> Result<(u32, u64), Cold> {
        let taking = Taking {
            consumer: None,
            from_tail: pop.end == End::Right,
            has_turn: true,
        };
        let terms = Terms::of_pull(options, taking, self.conns[slot].holder);
        let bytes_max = options.bytes_max.unwrap_or(u64::MAX).max(1);
        let mut is_cold = false;
        for source in sources {
            self.expect_pop(slot, pop);
            let (one, most) = (std::iter::once(*source), options.count);
            match self.give(slot, b"", one, &terms, None, most, bytes_max, now) {
                Ok((0, _)) => {}
                Ok((count, bytes)) => {
                    self.end_pull(slot, b"", count);
                    return Ok((count, bytes));
                }
                Err(Cold) => is_cold = true,
            }
        }
        match is_cold {
            true => Err(Cold),
            false => Ok((0, 0)),
        }
    }

    /// What is given next, or nothing, is the reply of such a pop.
    pub(in super::super::super) fn expect_pop(&mut self, slot: usize, pop: Pop) {
        let session = self.conns[slot].resp();
        session.bodies.clear();
        session.what = match pop.is_many {
            false => What::KeyAndOne { is_found: false },
            true => What::KeyAndMany {
                key: Box::default(),
            },
        };
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
