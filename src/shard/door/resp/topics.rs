//! Publish and subscribe: a channel is a topic. What is cast to a topic through any door comes to who has
//! subscribed here; what is published here goes to bound queues and live subscriptions too.
//!
//! A connection has live subscriptions that cover its channels and patterns; which of these a copy is for is
//! found out here, as Redis sends one for each.

use std::collections::BTreeSet;

use super::super::super::conn::Conn;
use super::super::super::session::{Asker, Flow};
use super::super::super::{Now, Shard};
use super::{What, encode, text};
use crate::broker::command::{Body, Command, PublishOptions, Typed};
use crate::broker::pattern::Pattern;
use crate::broker::reply::Delivery;
use crate::buffer::send::Pool;
use crate::log::disk::Storage;
use crate::protocol::resp::encode::Version;
use crate::protocol::resp::glob;

/// Most channels and patterns of a connection.
const SUBSCRIPTIONS_MAX: usize = 10_000;

/// The topics that a pattern of Redis can mean, as a pattern of words: those that begin with the whole words
/// that it begins with.
fn cover(glob: &[u8]) -> Vec<u8> {
    let special = |octet: &u8| matches!(octet, b'*' | b'?' | b'[' | b'\\');
    let plain = glob.iter().position(special).unwrap_or(glob.len());
    let words = glob[..plain].iter().rposition(|octet| *octet == b'.');
    let mut pattern = Vec::new();
    if let Some(end) = words {
        text::typed(&mut pattern, &glob[..end]);
        pattern.push(b'.');
    }
    pattern.push(b'#');
    pattern
}

impl Conn {
    /// Does a copy of what is cast to this topic, as it is printed, come to the client? What covers a pattern of Redis
    /// means more topics than the pattern.
    pub(in super::super::super) fn wants_copy(&self, source: &[u8]) -> bool {
        let super::Door::Resp(session) = &self.session else {
            return true;
        };
        let mut scratch = Vec::new();
        let topic = Typed(source).decoded(&mut scratch);
        let mut globs = session.globs.iter();
        session.channels.contains(topic) || globs.any(|glob| glob::matches(glob, topic))
    }

    /// A copy of what was cast: one push for the channel, one for each pattern.
    pub(super) fn push_cast(&mut self, pool: &mut Pool, delivery: &Delivery<'_>) {
        let mut scratch = Vec::new();
        let topic = Typed(delivery.source).decoded(&mut scratch);
        let super::Door::Resp(session) = &mut self.session else {
            return;
        };
        let version = session.version;
        let body = delivery.body.as_slice();
        let out = match &mut session.exec {
            None => self.out.writer(pool),
            Some(exec) => match exec.pushes() {
                Some(pushes) => pushes,
                None => return,
            },
        };
        if session.channels.contains(topic) {
            encode::push(out, version, 3);
            for part in [b"message".as_slice(), topic, body] {
                encode::bulk(out, part);
            }
        }
        for pattern in session
            .globs
            .iter()
            .filter(|glob| glob::matches(glob, topic))
        {
            encode::push(out, version, 4);
            for part in [b"pmessage".as_slice(), pattern, topic, body] {
                encode::bulk(out, part);
            }
        }
    }
}

impl<S: Storage> Shard<S> {
    /// `PUBLISH`
    pub(super) fn publish_to(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        let mut typed = Vec::new();
        text::typed(&mut typed, words[1]);
        if let Err(error) = crate::protocol::text::value::name(&typed) {
            return self.say_error(slot, &error);
        }
        let command = Command::Cast {
            topic: Typed(&typed),
            options: PublishOptions::plain(),
            body: Body::Borrowed(words[2]),
        };
        self.ask_resp(slot, What::Plain, command, now)
    }

    /// `SUBSCRIBE`, `PSUBSCRIBE`: each name is answered.
    pub(super) fn subscribe_channels(
        &mut self,
        slot: usize,
        words: &[&[u8]],
        is_glob: bool,
    ) -> Flow {
        if self.is_draining() {
            return self.say_error(slot, &super::super::super::drain::draining());
        }
        for name in &words[1..] {
            let session = self.conns[slot].resp();
            let own = if is_glob {
                &session.globs
            } else {
                &session.channels
            };
            let is_new = !own.contains(*name);
            if is_new && session.channels.len() + session.globs.len() >= SUBSCRIPTIONS_MAX {
                return self.say_err(slot, "a connection has at most 10000 subscriptions");
            }
            if is_new {
                if let Err(flow) = self.cover_channel(slot, name, is_glob) {
                    return flow;
                }
                let session = self.conns[slot].resp();
                let own = if is_glob {
                    &mut session.globs
                } else {
                    &mut session.channels
                };
                own.insert((*name).into());
            }
            let word = if is_glob { "psubscribe" } else { "subscribe" };
            self.say_subscribed(slot, word, Some(name));
        }
        Flow::Done
    }

    fn pattern_of(name: &[u8], is_glob: bool) -> Vec<u8> {
        match is_glob {
            true => cover(name),
            false => {
                let mut typed = Vec::new();
                text::typed(&mut typed, name);
                typed
            }
        }
    }

    /// Sees to it that what is cast to a channel comes to the connection.
    fn cover_channel(&mut self, slot: usize, name: &[u8], is_glob: bool) -> Result<(), Flow> {
        let pattern = Self::pattern_of(name, is_glob);
        let session = self.conns[slot].resp();
        if let Some(count) = session.covers.get_mut(&*pattern) {
            *count += 1;
            return Ok(());
        }
        session.next_tag += 1;
        session.what = What::Silent;
        let tag = session.next_tag.to_string();
        let asker = Asker {
            slot,
            tag: Some(tag.as_bytes()),
            quiet: false,
        };
        if let Err(error) = self.subscribe_live(asker, &pattern, false) {
            return Err(self.say_error(slot, &error));
        }
        self.conns[slot].resp().covers.insert(pattern.into(), 1);
        Ok(())
    }

    fn uncover_channel(&mut self, slot: usize, name: &[u8], is_glob: bool) {
        let pattern = Self::pattern_of(name, is_glob);
        let session = self.conns[slot].resp();
        let Some(count) = session.covers.get_mut(&*pattern) else {
            return;
        };
        *count -= 1;
        if *count > 0 {
            return;
        }
        session.covers.remove(&*pattern);
        let pattern = Pattern::new(&pattern).expect("it was subscribed to");
        self.unsubscribe_live(slot, &pattern);
    }

    /// `UNSUBSCRIBE`, `PUNSUBSCRIBE`: the names, or all.
    pub(super) fn unsubscribe_channels(
        &mut self,
        slot: usize,
        words: &[&[u8]],
        is_glob: bool,
    ) -> Flow {
        let word = if is_glob {
            "punsubscribe"
        } else {
            "unsubscribe"
        };
        let session = self.conns[slot].resp();
        let own = if is_glob {
            &session.globs
        } else {
            &session.channels
        };
        let names: Vec<Box<[u8]>> = match &words[1..] {
            [] => own.iter().cloned().collect(),
            names => names.iter().map(|name| (*name).into()).collect(),
        };
        if names.is_empty() {
            self.say_subscribed(slot, word, None);
        }
        for name in names {
            let session = self.conns[slot].resp();
            let own = if is_glob {
                &mut session.globs
            } else {
                &mut session.channels
            };
            if own.remove(&name) {
                self.uncover_channel(slot, &name, is_glob);
            }
            self.say_subscribed(slot, word, Some(&name));
        }
        Flow::Done
    }

    /// Every subscription of the connection ends, without a word.
    pub(super) fn forget_channels(&mut self, slot: usize) {
        let session = self.conns[slot].resp();
        (session.channels, session.globs) = (BTreeSet::new(), BTreeSet::new());
        let patterns: Vec<Box<[u8]>> = std::mem::take(&mut session.covers).into_keys().collect();
        for pattern in patterns {
            let pattern = Pattern::new(&pattern).expect("it was subscribed to");
            self.unsubscribe_live(slot, &pattern);
        }
    }

    fn say_subscribed(&mut self, slot: usize, word: &str, name: Option<&[u8]>) {
        let session = self.conns[slot].resp();
        let count = session.channels.len() + session.globs.len();
        self.say_in(slot, |out, version: Version| {
            encode::push(out, version, 3);
            encode::bulk(out, word.as_bytes());
            match name {
                Some(name) => encode::bulk(out, name),
                None => encode::nil(out, version),
            }
            encode::integer(out, count as u64);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_is_covered_by_the_words_it_begins_with() {
        let check = |glob: &str, want: &str| {
            assert_eq!(String::from_utf8_lossy(&cover(glob.as_bytes())), want);
        };
        check("*", "#");
        check("news.*", "news.#");
        check("news.e*", "news.#");
        check("a.b.c?", "a.b.#");
        check("n*.x", "#");
        check("plain.text", "plain.#");
        check("a b.*", "a%20b.#");
    }
}
