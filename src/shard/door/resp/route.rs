//! Commands of a connection to a broker of several shards: which of them a command is about.
//!
//! What is about keys of one shard is posted there as it came, to a guest that speaks RESP too. What is about keys of
//! several, or about all there are, is asked of each, and their replies are merged.

use std::collections::BTreeMap;

use super::super::super::conn::Blocked;
use super::super::super::peers::{Question, Wait};
use super::super::super::placement::shard_of;
use super::super::super::session::Flow;
use super::super::super::{Now, Shard};
use super::encode;
use super::lists::integer;
use super::merge::Merge;
use crate::log::disk::Storage;

/// What a command is about.
#[derive(Debug, PartialEq, Eq)]
enum About<'a> {
    /// This connection, or what every shard knows.
    Nothing,
    /// These keys.
    Keys(&'a [&'a [u8]]),
    /// What every shard has; how their replies become one.
    All(Merge),
    /// The connection of that id.
    Connection(u64),
}

/// The keys behind their number.
fn counted<'a>(words: &'a [&'a [u8]]) -> About<'a> {
    let keys = words.split_first().and_then(|(number, rest)| {
        let number = usize::try_from(integer(number)?).ok()?;
        rest.get(..number)
    });
    About::Keys(keys.unwrap_or_default())
}

/// The keys behind `STREAMS`, each of which has an id.
fn streams<'a>(words: &'a [&'a [u8]]) -> About<'a> {
    let is_it = |word: &&[u8]| word.eq_ignore_ascii_case(b"STREAMS");
    // A group or a consumer may be named so.
    let found = words.get(4..).and_then(|rest| {
        let at = rest.iter().position(is_it)?;
        Some(&rest[at + 1..])
    });
    let rest = found.unwrap_or_default();
    About::Keys(&rest[..rest.len() / 2])
}

/// What a command is about. What is not whole is about nothing, and refused where it came.
fn about<'a>(name: &str, words: &'a [&'a [u8]]) -> About<'a> {
    match name {
        "RPUSH" | "LPUSH" | "RPUSHX" | "LPUSHX" | "LPOP" | "RPOP" | "LLEN" | "LRANGE"
        | "LINDEX" | "TYPE" | "XADD" | "XLEN" | "XRANGE" | "XDEL" | "XACK" | "XPENDING"
        | "XAUTOCLAIM" => About::Keys(&words[1..2]),
        "XGROUP" => About::Keys(words.get(2..3).unwrap_or_default()),
        "DEL" | "UNLINK" | "EXISTS" => About::Keys(&words[1..]),
        "BLPOP" | "BRPOP" => About::Keys(&words[1..words.len() - 1]),
        "LMPOP" => counted(&words[1..]),
        "BLMPOP" => counted(&words[2..]),
        "XREADGROUP" => streams(words),
        "KEYS" => About::All(Merge::Names),
        "SCAN" => About::All(Merge::Scan),
        "DBSIZE" => About::All(Merge::Sum),
        "PUBLISH" => About::All(Merge::Receivers),
        "INFO" => About::All(Merge::Info),
        "CLIENT" if words[1].eq_ignore_ascii_case(b"LIST") => About::All(Merge::Texts),
        "CLIENT" if words[1].eq_ignore_ascii_case(b"UNBLOCK") => {
            let id = words.get(2).and_then(|word| integer(word));
            id.and_then(|id| u64::try_from(id).ok())
                .map_or(About::Nothing, About::Connection)
        }
        _ => About::Nothing,
    }
}

/// A command that would wait, such that it does not: it waits for the least that can be said.
fn hurried<'a>(name: &str, words: &[&'a [u8]]) -> Option<Vec<&'a [u8]>> {
    let mut words = words.to_vec();
    match name {
        "BLPOP" | "BRPOP" => *words.last_mut()? = b"0.000001",
        "BLMPOP" => words[1] = b"0.000001",
        "XREADGROUP" => {
            let is_block = |word: &&[u8]| word.eq_ignore_ascii_case(b"BLOCK");
            let is_streams = |word: &&[u8]| word.eq_ignore_ascii_case(b"STREAMS");
            let end = words.iter().skip(4).position(is_streams)? + 4;
            let at = words[4..end].iter().position(is_block)? + 4;
            *words.get_mut(at + 1)? = b"1";
        }
        _ => return None,
    }
    Some(words)
}

/// A command as bytes.
pub(super) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::array(&mut out, words.len());
    words.iter().for_each(|word| encode::bulk(&mut out, word));
    out
}

impl<S: Storage> Shard<S> {
    /// Runs a command where it belongs; `frame` is what stands of it in the input.
    pub(super) fn run_known(
        &mut self,
        slot: usize,
        name: &'static str,
        words: &[&[u8]],
        frame: &[u8],
        now: Now,
    ) -> Flow {
        if self.peers.is_none() || self.conns[slot].guest.is_some() {
            return self.run_here(slot, name, words, now);
        }
        self.run_somewhere(slot, name, words, frame, now)
    }

    fn run_somewhere(
        &mut self,
        slot: usize,
        name: &'static str,
        words: &[&[u8]],
        frame: &[u8],
        now: Now,
    ) -> Flow {
        if matches!(name, "QUIT" | "EXEC") && self.awaits_answers(slot) {
            // Nothing else is to be answered behind it, or in its middle.
            return Flow::Again;
        }
        let (shards, me) = self.shards();
        let owner = |key: &&[u8]| shard_of(key, shards);
        let to = match about(name, words) {
            About::Nothing => me,
            About::Connection(id) => (id % u64::from(shards)) as u32,
            About::All(merge) => {
                let asked = (0..shards).map(|shard| (shard, None)).collect();
                return self.ask_shards(slot, merge, asked, frame, now);
            }
            About::Keys(keys) => {
                let first = keys.first().map_or(me, owner);
                if keys.iter().any(|key| owner(key) != first) {
                    return self.run_across(slot, name, words, keys, now);
                }
                first
            }
        };
        if to == me {
            return self.run_here(slot, name, words, now);
        }
        // Inside a transaction nothing waits.
        let is_inside = self.conns[slot].resp().exec.is_some();
        if let Some(words) = hurried(name, words).filter(|_| is_inside) {
            return self.post(slot, to, false, None, &[&command(&words)]);
        }
        let waits = matches!(name, "BLPOP" | "BRPOP" | "BLMPOP" | "XREADGROUP");
        let flow = self.post(slot, to, waits, None, &[frame]);
        if let Blocked::Away(Wait::Run(run)) = self.conns[slot].blocked
            && hurried(name, words).is_some()
        {
            self.conns[slot].resp().blocking = Some(run);
        }
        flow
    }

    /// Runs a command about keys of several shards.
    fn run_across(
        &mut self,
        slot: usize,
        name: &'static str,
        words: &[&[u8]],
        keys: &[&[u8]],
        now: Now,
    ) -> Flow {
        let (shards, _) = self.shards();
        match name {
            "DEL" | "UNLINK" | "EXISTS" => {
                let mut parts: BTreeMap<u32, Vec<&[u8]>> = BTreeMap::new();
                for key in keys {
                    let part = parts.entry(shard_of(key, shards));
                    part.or_insert_with(|| vec![words[0]]).push(key);
                }
                let parts = parts.into_iter();
                let asked = parts.map(|(shard, words)| (shard, Some(command(&words))));
                self.ask_shards(slot, Merge::Sum, asked.collect(), &[], now)
            }
            "BLPOP" | "BRPOP" | "LMPOP" | "BLMPOP" => self.pop_across(slot, name, words, now),
            "XREADGROUP" => self.xreadgroup_across(slot, words, now),
            other => unreachable!("{other} has one key"),
        }
    }

    /// Asks each of these shards that, or else what stands in `frame`, and merges what they say.
    fn ask_shards(
        &mut self,
        slot: usize,
        merge: Merge,
        asked: Vec<(u32, Option<Vec<u8>>)>,
        frame: &[u8],
        now: Now,
    ) -> Flow {
        let question = Question::Resp(merge);
        self.gather(slot, question, asked, None, false, frame, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &'static str) -> Vec<&'static [u8]> {
        line.split(' ').map(str::as_bytes).collect()
    }

    #[test]
    fn every_command_with_keys_names_them() {
        let check = |line: &'static str, want: &str| {
            let words = words(line);
            let name = String::from_utf8_lossy(words[0]).to_ascii_uppercase();
            let About::Keys(keys) = about(&name, &words) else {
                panic!("{line} has keys");
            };
            let keys: Vec<_> = keys.iter().map(|it| String::from_utf8_lossy(it)).collect();
            assert_eq!(keys.join(" "), want, "{line}");
        };
        check("RPUSH a b c", "a");
        check("LRANGE a 0 -1", "a");
        check("DEL a b", "a b");
        check("BLPOP a b 0", "a b");
        check("LMPOP 2 a b LEFT COUNT 2", "a b");
        check("LMPOP 3 a b", "");
        check("LMPOP -1 a LEFT", "");
        check("BLMPOP 0 1 a LEFT", "a");
        check("XGROUP CREATE a g 0", "a");
        check("XGROUP CREATE", "");
        check("XADD a * f v", "a");
        check("xreadgroup GROUP streams c COUNT 1 streams a b > 0", "a b");
        check("XREADGROUP GROUP g streams STREAMS a >", "a");
    }

    #[test]
    fn what_is_hurried_waits_for_no_time() {
        let check = |line: &'static str, want: Option<&str>| {
            let words = words(line);
            let name = String::from_utf8_lossy(words[0]).into_owned();
            let found = hurried(&name, &words);
            let found = found.map(|words| String::from_utf8_lossy(&words.join(&b' ')).into_owned());
            assert_eq!(found.as_deref(), want, "{line}");
        };
        check("BLPOP a b 0", Some("BLPOP a b 0.000001"));
        check("BLMPOP 9 1 a LEFT", Some("BLMPOP 0.000001 1 a LEFT"));
        check(
            "XREADGROUP GROUP block c block 0 STREAMS s >",
            Some("XREADGROUP GROUP block c block 1 STREAMS s >"),
        );
        check("XREADGROUP GROUP g c STREAMS block >", None);
        check("LPOP a", None);
    }
}
