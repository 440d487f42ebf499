//! `XREADGROUP`: what is new in streams, or what a consumer has pending there.

use std::collections::BTreeMap;

use super::super::super::peers::{Asks, Read};
use super::super::super::placement::shard_of;
use super::super::super::session::Flow;
use super::super::super::waiters::{Taking, Waiter};
use super::super::super::{Now, Shard};
use super::consumers::no_group;
use super::lists::integer;
use super::route::command as words_as_bytes;
use super::streams::{BAD_ID, COUNT_DEFAULT, Entry, parse_id, write_streams};
use super::{What, text};
use crate::broker::command::{PullOptions, Sources};
use crate::broker::id::MessageId;
use crate::broker::queue::{QueueKey, WaiterKey};
use crate::broker::reply::{Error, ErrorCode};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;

/// A lease of a consumer ends when it acks; this is as good as never, and tells when it began. Microseconds.
pub(super) const LEASE_US: u64 = 100 * 365 * 86_400 * 1_000_000;

/// One stream of a read.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its name.
    pub(super) key: Box<[u8]>,
    /// What its consumer has pending; absent where what is new is asked for.
    pub(super) pending: Option<Vec<Entry>>,
}

/// What stands before the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Options {
    /// Most entries of each stream.
    count: u32,
    /// How long to wait where there is nothing, microseconds.
    wait_us: u64,
    /// What is read is settled.
    ack_auto: bool,
}

/// What stands behind the consumer's name: the options, the streams' names, and as many ids.
type Parsed<'a> = (Options, &'a [&'a [u8]], &'a [&'a [u8]]);

/// Reads what stands behind the consumer's name.
///
/// # Errors
/// Redis' own words for what is wrong with it.
fn parse<'a>(mut rest: &'a [&'a [u8]]) -> Result<Parsed<'a>, &'static str> {
    let mut options = Options {
        count: COUNT_DEFAULT,
        wait_us: 0,
        ack_auto: false,
    };
    let streams = loop {
        rest = match rest {
            [word, number, more @ ..] if word.eq_ignore_ascii_case(b"COUNT") => {
                match integer(number) {
                    Some(number @ 1..) => {
                        let most = i64::from(COUNT_DEFAULT);
                        options.count = number.min(most) as u32;
                    }
                    Some(_) => {}
                    None => return Err("value is not an integer or out of range"),
                }
                more
            }
            [word, ms, more @ ..] if word.eq_ignore_ascii_case(b"BLOCK") => {
                options.wait_us = match integer(ms) {
                    Some(0) => u64::MAX,
                    Some(ms @ 1..) => (ms as u64).saturating_mul(1000),
                    _ => return Err("timeout is not an integer or out of range"),
                };
                more
            }
            [word, more @ ..] if word.eq_ignore_ascii_case(b"NOACK") => {
                options.ack_auto = true;
                more
            }
            [word, more @ ..] if word.eq_ignore_ascii_case(b"STREAMS") => break more,
            _ => return Err("syntax error"),
        };
    };
    if streams.is_empty() || streams.len() % 2 != 0 {
        return Err(
            "Unbalanced 'xreadgroup' list of streams: for each stream key an ID, '+', '$', or '>' must be specified.",
        );
    }
    let (keys, ids) = streams.split_at(streams.len() / 2);
    Ok((options, keys, ids))
}

/// Reads a whole `XREADGROUP GROUP group consumer …`: group and consumer, and what stands behind them.
///
/// # Errors
/// As [`parse`]'s.
fn parse_read<'a>(words: &'a [&'a [u8]]) -> Result<(Who<'a>, Parsed<'a>), &'static str> {
    if !words[1].eq_ignore_ascii_case(b"GROUP") {
        return Err("syntax error");
    }
    Ok(((words[2], words[3]), parse(&words[4..])?))
}

/// A group and a consumer of it.
type Who<'a> = (&'a [u8], &'a [u8]);

/// A stream's name, and the id asked for.
type Stream<'a> = (&'a [u8], &'a [u8]);

/// The readers of each shard as sources of a pull, and the commands for these parts.
type Parts = (Vec<(u32, Vec<u8>)>, Vec<Vec<u8>>);

/// A read of streams by shard; its parts do not wait.
fn split(
    (group, consumer): Who<'_>,
    options: Options,
    keys: &[&[u8]],
    ids: &[&[u8]],
    shards: u32,
) -> Parts {
    let mut parts: BTreeMap<u32, Vec<Stream<'_>>> = BTreeMap::new();
    for (key, id) in keys.iter().zip(ids) {
        let part = parts.entry(shard_of(key, shards)).or_default();
        part.push((key, id));
    }
    let count = options.count.to_string();
    let split = parts.into_iter().map(|(shard, streams)| {
        let mut command = vec![&b"XREADGROUP"[..], b"GROUP", group, consumer];
        command.extend([&b"COUNT"[..], count.as_bytes()]);
        command.extend(options.ack_auto.then_some(&b"NOACK"[..]));
        command.push(b"STREAMS");
        command.extend(streams.iter().map(|(key, _)| key));
        command.extend(streams.iter().map(|(_, id)| id));
        let mut sources = Vec::new();
        for (key, _) in streams {
            if !sources.is_empty() {
                sources.push(b',');
            }
            text::typed(&mut sources, key);
            sources.push(b'/');
            text::typed(&mut sources, group);
        }
        ((shard, sources), words_as_bytes(&command))
    });
    split.unzip()
}

impl<S: Storage> Shard<S> {
    /// `XREADGROUP`
    ///
    /// Everything that may have to wait comes first: once the first entry is taken the command is not run again.
    pub(super) fn xreadgroup(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        let ((group, consumer), (options, keys, ids)) = match parse_read(words) {
            Ok(parsed) => parsed,
            Err(text) => return self.say_err(slot, text),
        };
        let mut found = Vec::new();
        for (key, id) in keys.iter().zip(ids) {
            let Some(reader) = self.stream_group(key, group) else {
                return self.say_no_group(slot, key, group);
            };
            let after = match *id {
                b">" => None,
                id => match parse_id(id, 0) {
                    Some((_, after)) => Some(after),
                    None => return self.say_err(slot, BAD_ID),
                },
            };
            found.push((reader, after));
        }
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let mut asked = Vec::new();
        let (mut sources, mut new) = (Vec::new(), Vec::new());
        for (key, (reader, after)) in keys.iter().zip(found) {
            let pending = match after {
                Some(after) => {
                    let read = self.read_pending(slot, reader, consumer, after, options.count);
                    let Some(entries) = read else {
                        return Flow::Again;
                    };
                    Some(entries)
                }
                None => {
                    if !sources.is_empty() {
                        sources.push(b',');
                    }
                    text::typed(&mut sources, key);
                    sources.push(b'/');
                    text::typed(&mut sources, group);
                    new.push(reader);
                    None
                }
            };
            let key = (*key).into();
            asked.push(Asked { key, pending });
        }
        if new.is_empty() {
            return self.say_in(slot, |out, version| {
                write_streams(out, version, &asked, &[]);
            });
        }
        let has_turn = self.conns[slot].resp().has_turn;
        if (new.len() > 1 || has_turn) && self.is_any_cold(slot, &new, now) {
            return Flow::Again;
        }
        for reader in &new {
            self.stream_consumer(*reader, consumer);
        }
        let session = self.conns[slot].resp();
        let has_answer = new.len() < asked.len();
        session.asked = asked;
        let pull = PullOptions {
            count: options.count,
            // Nothing waits inside a transaction, or where what is pending is asked for too.
            wait_us: match session.exec.is_some() || has_answer {
                true => 0,
                false => options.wait_us,
            },
            lease_us: Some(LEASE_US),
            from: None,
            ack_auto: options.ack_auto,
            hold: false,
            bytes_max: Some(self.limits.batch_bytes_max as u64),
            timestamps: true,
        };
        let taking = Taking {
            consumer: Some(consumer),
            from_tail: false,
            has_turn,
        };
        self.pull_resp(slot, What::Streams, &sources, &pull, taking, now)
    }

    /// `XREADGROUP` of streams on several shards: each reads its own when all of them have been found.
    pub(super) fn xreadgroup_across(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        let ((group, consumer), (options, keys, ids)) = match parse_read(words) {
            Ok(parsed) => parsed,
            Err(text) => return self.say_err(slot, text),
        };
        let is_new = |id: &&[u8]| **id == *b">";
        if ids
            .iter()
            .any(|id| !is_new(id) && parse_id(id, 0).is_none())
        {
            return self.say_err(slot, BAD_ID);
        }
        let (shards, _) = self.shards();
        let who = (group, consumer);
        let (sources, commands) = split(who, options, keys, ids, shards);
        // Nothing waits inside a transaction, or where what is pending is asked for too.
        let waits = self.conns[slot].resp().exec.is_none() && ids.iter().all(is_new);
        let pull = PullOptions {
            count: options.count,
            wait_us: if waits { options.wait_us } else { 0 },
            lease_us: Some(LEASE_US),
            from: None,
            ack_auto: options.ack_auto,
            hold: false,
            bytes_max: None,
            timestamps: true,
        };
        let keys = keys.iter().map(|key| (*key).into()).collect();
        let read = Read::new(keys, commands);
        self.begin_across(slot, b"", sources, pull, Asks::Streams(Box::new(read)), now)
    }

    /// The groups of streams of a part of such a read.
    ///
    /// # Errors
    /// One of them is not there.
    pub(in super::super::super) fn open_streams(
        &mut self,
        slot: usize,
        sources: Sources<'_>,
    ) -> Result<Vec<QueueKey>, Error> {
        let mut readers = Vec::new();
        for source in sources.iter() {
            let (mut key, mut name) = (Vec::new(), Vec::new());
            let key = source.queue.decoded(&mut key);
            let group = source.group.map(|group| group.decoded(&mut name));
            let group = group.expect("a stream is read by a group");
            let reader = self.stream_group(key, group);
            let reader = reader.ok_or_else(|| no_group(key, group))?;
            self.note_puller(slot, reader);
            readers.push(reader);
        }
        Ok(readers)
    }

    /// What a read of streams is told next is that there is nothing.
    pub(in super::super::super) fn expect_no_streams(&mut self, slot: usize) {
        let session = self.conns[slot].resp();
        session.what = What::Streams;
        session.asked.clear();
        session.entries.clear();
    }

    /// Is the next entry of one of them on the disk? Then the command comes again when it is read, as the answer is to
    /// hold every stream that has something.
    fn is_any_cold(&mut self, slot: usize, readers: &[QueueKey], now: Now) -> bool {
        let mut is_any = false;
        for reader in readers {
            // Those who wait came before.
            let has_turn = self.conns[slot].resp().has_turn;
            if !has_turn && !self.engine.queue(*reader).waiters.is_empty() {
                self.dispatch(*reader, now);
            }
            let is_single = self.engine.queue(*reader).settings.single;
            if !is_single || self.may_consume(*reader, self.key(slot)) {
                is_any |= self.engine.is_next_cold(*reader, now);
            }
        }
        is_any &= !planted(Fault::ColdStreamLeftOut);
        if is_any {
            self.block_cold(slot);
        }
        is_any
    }

    /// What a consumer has pending, behind an id; `None` if the command comes again.
    fn read_pending(
        &mut self,
        slot: usize,
        group: QueueKey,
        consumer: &[u8],
        after: MessageId,
        count: u32,
    ) -> Option<Vec<Entry>> {
        let holder = self.stream_consumer(group, consumer);
        let store = self.engine.store_of(group);
        let pending = self.pending_of(holder).into_iter();
        let ids: Vec<MessageId> = pending
            .map(|(id, _)| id)
            .filter(|id| *id > after)
            .take(count as usize)
            .collect();
        self.read_entries(slot, store, ids.into_iter())
    }

    /// These groups go: whoever waits to read them as a consumer of streams is told so.
    pub(in super::super::super) fn refuse_stream_readers(&mut self, readers: &[QueueKey]) {
        for reader in readers {
            let waiting = self.engine.queue(*reader).waiters.iter();
            let waiting: Vec<WaiterKey> = waiting
                .copied()
                .filter(|key| {
                    let waiter = self.waiters.slab.get(key.0 as usize);
                    matches!(waiter, Some(Waiter::Pull(pull)) if pull.consumer.is_some())
                })
                .collect();
            let text = "the consumer group this client was blocked on no longer exists";
            for key in waiting {
                let Some(Waiter::Pull(pull)) = self.waiters.slab.get(key.0 as usize) else {
                    continue;
                };
                let slot = pull.conn.slot as usize;
                self.conns[slot].resp().unblocked = Some(("NOGROUP", text));
                self.finish_pull(key, 0);
            }
            let watching = self.engine.queue(*reader).waiters.iter().copied();
            for key in watching.collect::<Vec<_>>() {
                self.refuse_watch(key, &Error::new(ErrorCode::NoGroup, text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_is_asked_for_its_own_streams() {
        let line: Vec<&[u8]> = vec![
            b"NOACK", b"BLOCK", b"0", b"STREAMS", b"mail", b"a", b"c", b">", b"0", b">",
        ];
        let (options, keys, ids) = parse(&line).expect("it is whole");
        let (sources, commands) = split((b"g 1", b"me"), options, keys, ids, 8);
        let split = sources.iter().zip(&commands);
        let shown: Vec<String> = split
            .map(|((shard, sources), command)| {
                let command = String::from_utf8_lossy(command).replace("\r\n", " ");
                let words = command
                    .split(' ')
                    .filter(|word| !word.starts_with(['$', '*']));
                let words: Vec<&str> = words.collect();
                format!(
                    "{shard} {} {}",
                    String::from_utf8_lossy(sources),
                    words.join(" ")
                )
            })
            .collect();
        let head = "XREADGROUP GROUP g 1 me COUNT 1000 NOACK STREAMS";
        assert_eq!(
            shown,
            [
                format!("0 c/g%201 {head} c > "),
                format!("3 mail/g%201 {head} mail > "),
                format!("4 a/g%201 {head} a 0 "),
            ]
        );
    }

    #[test]
    fn a_read_names_as_many_ids_as_streams() {
        let words = |line: &'static str| -> Vec<&'static [u8]> {
            line.split(' ').map(str::as_bytes).collect()
        };
        let line = words("count 5 NoAck BLOCK 20 streams a b > 0");
        let (options, keys, ids) = parse(&line).expect("it is whole");
        let want = Options {
            count: 5,
            wait_us: 20_000,
            ack_auto: true,
        };
        assert_eq!(options, want);
        assert_eq!((keys, ids), (&line[6..8], &line[8..]));
        let line = words("BLOCK 0 COUNT 99999999999 STREAMS COUNT >");
        let (options, ..) = parse(&line).expect("a stream may have any name");
        assert_eq!((options.count, options.wait_us), (COUNT_DEFAULT, u64::MAX));
        for bad in [
            "STREAMS",
            "STREAMS a",
            "STREAMS a b >",
            "COUNT x STREAMS a >",
            "BLOCK -1 STREAMS a >",
            "BLOCK",
            "FAST STREAMS a >",
            "COUNT 1",
        ] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
    }
}
