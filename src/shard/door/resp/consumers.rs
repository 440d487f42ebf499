//! Groups of streams and their consumers.
//!
//! What a consumer has pending are leases of a holder of its own, which lives as long as its group and not as
//! long as a connection: another connection of that consumer finds them, and `XAUTOCLAIM` takes them over.

use std::collections::{BTreeMap, BTreeSet};

use super::super::super::engine::Return;
use super::super::super::groups::Reader;
use super::super::super::session::Flow;
use super::super::super::{Now, Shard};
use super::lists::integer;
use super::reading::LEASE_US;
use super::streams::{BAD_ID, PIECE, parse_id, parse_ids, write_entry, write_id};
use super::{What, encode, text};
use crate::broker::command::{Command, From, Source, TimeSpec, Typed};
use crate::broker::id::{Handle, Level, MessageId, QueueUid};
use crate::broker::lease::{HolderKey, NewLease};
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, ErrorCode};
use crate::log::disk::Storage;
use crate::protocol::text::value;

/// Every consumer of every group: who holds its leases.
#[derive(Debug, Default)]
pub struct Consumers {
    holders: BTreeMap<(QueueUid, Box<[u8]>), HolderKey>,
}

/// There is no such group.
pub(super) fn no_group(key: &[u8], group: &[u8]) -> Error {
    let text = format!(
        "No such key '{}' or consumer group '{}'",
        String::from_utf8_lossy(key),
        String::from_utf8_lossy(group)
    );
    Error::new(ErrorCode::NoGroup, text)
}

fn typed_name(name: &[u8]) -> Vec<u8> {
    let mut typed = Vec::new();
    text::typed(&mut typed, name);
    typed
}

impl<S: Storage> Shard<S> {
    /// The group of a stream.
    pub(super) fn stream_group(&self, key: &[u8], group: &[u8]) -> Option<QueueKey> {
        self.engine.find_group(self.list(key)?, group)
    }

    pub(super) fn say_no_group(&mut self, slot: usize, key: &[u8], group: &[u8]) -> Flow {
        self.say_error(slot, &no_group(key, group))
    }

    /// Who holds a consumer's leases; made if there is nobody.
    pub(in super::super::super) fn stream_consumer(
        &mut self,
        group: QueueKey,
        name: &[u8],
    ) -> HolderKey {
        let uid = self.engine.queue(group).uid;
        if let Some(holder) = self.consumers.holders.get(&(uid, name.into())) {
            return *holder;
        }
        // Those of groups that are gone have no leases any more.
        let engine = &mut self.engine;
        self.consumers.holders.retain(|(uid, _), holder| {
            let stays = engine.find_uid(*uid).is_some() || engine.leases.held(*holder) > 0;
            if !stays {
                engine.leases.remove_holder(*holder);
            }
            stays
        });
        let holder = self.engine.leases.add_holder();
        self.consumers.holders.insert((uid, name.into()), holder);
        holder
    }

    /// The consumers of a group.
    fn stream_consumers(&self, group: QueueKey) -> Vec<(Box<[u8]>, HolderKey)> {
        let uid = self.engine.queue(group).uid;
        let range = (uid, Box::default())..(QueueUid(uid.0 + 1), Box::default());
        let holders = self.consumers.holders.range(range);
        holders
            .map(|((_, name), holder)| (name.clone(), *holder))
            .collect()
    }

    /// What a holder has: message ids with the serials of their leases, in order.
    pub(super) fn pending_of(&self, holder: HolderKey) -> Vec<(MessageId, u64)> {
        let leases = &self.engine.leases;
        let mut pending: Vec<_> = leases
            .of_holder(holder)
            .filter_map(|serial| leases.get(serial))
            .map(|lease| (lease.id, lease.serial))
            .collect();
        pending.sort_unstable();
        pending
    }

    /// `XGROUP`
    pub(super) fn xgroup(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        let what = words[1].to_ascii_uppercase();
        match (what.as_slice(), &words[2..]) {
            (b"CREATE", [key, group, id, more @ ..]) => {
                self.create_group(slot, (key, group, id), more, now)
            }
            (b"DESTROY", [key, group]) => {
                if self.wait_for_publishes(slot) {
                    return Flow::Again;
                }
                let found = self.stream_group(key, group);
                if found.is_some() {
                    let (queue, group) = (typed_name(key), typed_name(group));
                    let source = Source {
                        queue: Typed(&queue),
                        group: Some(Typed(&group)),
                    };
                    if self.is_leaving(slot, source) {
                        return Flow::Again;
                    }
                    self.conns[slot].resp().what = What::Silent;
                    if let Err(error) = self.queue_delete(Self::asker(slot), source) {
                        return self.say_error(slot, &error);
                    }
                }
                let count = u64::from(found.is_some());
                self.say(slot, |out| encode::integer(out, count))
            }
            (b"SETID", [key, group, id, ..]) => {
                let Some(to) = start_of(id) else {
                    return self.say_err(slot, BAD_ID);
                };
                if self.stream_group(key, group).is_none() {
                    return self.say_no_group(slot, key, group);
                }
                let (queue, group) = (typed_name(key), typed_name(group));
                let source = Source {
                    queue: Typed(&queue),
                    group: Some(Typed(&group)),
                };
                self.ask_resp(slot, What::Plain, Command::Seek { source, to }, now)
            }
            (b"CREATECONSUMER", [key, group, name]) => {
                let Some(found) = self.stream_group(key, group) else {
                    return self.say_no_group(slot, key, group);
                };
                let before = self.stream_consumers(found).len();
                self.stream_consumer(found, name);
                let count = (self.stream_consumers(found).len() - before) as u64;
                self.say(slot, |out| encode::integer(out, count))
            }
            (b"DELCONSUMER", [key, group, name]) => {
                let Some(found) = self.stream_group(key, group) else {
                    return self.say_no_group(slot, key, group);
                };
                self.delete_consumer(slot, found, name, now)
            }
            _ => {
                let text = "XGROUP takes CREATE, DESTROY, SETID, CREATECONSUMER, DELCONSUMER";
                self.say_err(slot, text)
            }
        }
    }

    fn create_group(
        &mut self,
        slot: usize,
        (key, group, id): (&[u8], &[u8], &[u8]),
        more: &[&[u8]],
        now: Now,
    ) -> Flow {
        let makes = more
            .first()
            .is_some_and(|word| word.eq_ignore_ascii_case(b"MKSTREAM"));
        let Some(from) = start_of(id) else {
            return self.say_err(slot, BAD_ID);
        };
        if !makes && self.list(key).is_none_or(|key| !self.is_stream(key)) {
            let text = "The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM option to create an empty stream automatically.";
            return self.say_err(slot, text);
        }
        // `$` means behind what this connection has added too.
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        if let Err(flow) = self.open_stream(slot, key, false, now) {
            return flow;
        }
        let is_known = self.stream_group(key, group).is_some();
        let is_own = self.conns[slot].resp().has_begun_group;
        if is_known && !is_own {
            let text = "Consumer Group name already exists";
            return self.say(slot, |out| encode::error(out, "BUSYGROUP", text));
        }
        let (queue, name) = (typed_name(key), typed_name(group));
        if let Err(error) = value::name(&name) {
            return self.say_error(slot, &error);
        }
        let source = Source {
            queue: Typed(&queue),
            group: Some(Typed(&name)),
        };
        match self.open_reader(slot, source, Some(from), now) {
            Ok(Reader::Open(_)) => {
                self.conns[slot].resp().has_begun_group = false;
                self.say_ok(slot)
            }
            Ok(Reader::Blocked) => {
                let has_begun = self.stream_group(key, group).is_some();
                self.conns[slot].resp().has_begun_group = has_begun;
                Flow::Again
            }
            Err(error) => self.say_error(slot, &error),
        }
    }

    /// What a deleted consumer has pending goes back to its group.
    fn delete_consumer(&mut self, slot: usize, group: QueueKey, name: &[u8], now: Now) -> Flow {
        let uid = self.engine.queue(group).uid;
        let holder = self.consumers.holders.remove(&(uid, name.into()));
        let mut count = 0;
        if let Some(holder) = holder {
            while let Some(serial) = self.engine.leases.any_of(holder) {
                let lease = self.engine.leases.end(serial).expect("the holder has it");
                let how = Return::Lost;
                self.engine.give_back(&lease, how, b"", now);
                count += 1;
            }
            self.engine.leases.remove_holder(holder);
        }
        self.say(slot, |out| encode::integer(out, count))
    }

    /// `XACK`
    pub(super) fn xack(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        let Some(ids) = parse_ids(&words[3..]) else {
            return self.say_err(slot, BAD_ID);
        };
        let mut count = 0;
        if let Some(group) = self.stream_group(words[1], words[2]) {
            let wanted: BTreeSet<MessageId> = ids.iter().map(|(_, id)| *id).collect();
            let consumers = self.stream_consumers(group).into_iter();
            let found: Vec<(MessageId, u64)> = consumers
                .flat_map(|(_, holder)| self.pending_of(holder))
                .filter(|(id, _)| wanted.contains(id))
                .collect();
            for (id, serial) in found {
                let handle = Handle {
                    incarnation: self.engine.incarnation,
                    id,
                    serial,
                };
                if let Some((lease, _)) = self.engine.ack(handle) {
                    self.credit_returned(lease.holder);
                    count += 1;
                }
            }
            let level = self.engine.queue(group).settings.durable;
            self.gate_resp(slot, if count > 0 { level } else { Level::None });
        }
        self.say(slot, |out| encode::integer(out, count))
    }

    /// Everything that is pending in a group: the id, its consumer, and the serial of the lease.
    fn pending(&self, group: QueueKey) -> BTreeMap<MessageId, (Box<[u8]>, u64)> {
        let mut all = BTreeMap::new();
        for (name, holder) in self.stream_consumers(group) {
            for (id, serial) in self.pending_of(holder) {
                all.insert(id, (name.clone(), serial));
            }
        }
        all
    }

    /// How long ago a lease of a consumer began, milliseconds, and which try it is.
    fn idle_ms(&self, serial: u64, now: Now) -> (u64, u64) {
        self.engine.leases.get(serial).map_or((0, 0), |lease| {
            let since_us = lease.deadline_us.saturating_sub(LEASE_US);
            (
                now.us.saturating_sub(since_us) / 1000,
                u64::from(lease.tries),
            )
        })
    }

    /// `XPENDING`
    pub(super) fn xpending(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        let Some(group) = self.stream_group(words[1], words[2]) else {
            return self.say_no_group(slot, words[1], words[2]);
        };
        let store = self.engine.store_of(group);
        let pending = self.pending(group);
        let Some(rest) = words.get(3..).filter(|rest| !rest.is_empty()) else {
            let ends = [pending.keys().next(), pending.keys().next_back()];
            let ends = ends.into_iter().flatten().copied();
            let Some(ends) = self.read_entries(slot, store, ends) else {
                return Flow::Again;
            };
            let mut by_consumer: BTreeMap<&[u8], u64> = BTreeMap::new();
            for (name, _) in pending.values() {
                *by_consumer.entry(name).or_default() += 1;
            }
            return self.say_in(slot, |out, version| {
                encode::array(out, 4);
                encode::integer(out, pending.len() as u64);
                match &ends[..] {
                    [first, last] => {
                        write_id(out, first.id);
                        write_id(out, last.id);
                        encode::array(out, by_consumer.len());
                        for (name, count) in by_consumer {
                            encode::array(out, 2);
                            encode::bulk(out, name);
                            encode::bulk(out, count.to_string().as_bytes());
                        }
                    }
                    _ => {
                        encode::nil(out, version);
                        encode::nil(out, version);
                        encode::nil_array(out, version);
                    }
                }
            });
        };
        let (least_idle_ms, rest) = match rest {
            [word, ms, rest @ ..] if word.eq_ignore_ascii_case(b"IDLE") => (integer(ms), rest),
            rest => (Some(0), rest),
        };
        let (start, end, count, name) = match rest {
            [start, end, count] => (start, end, integer(count), None),
            [start, end, count, name] => (start, end, integer(count), Some(*name)),
            _ => return self.say_err(slot, "syntax error"),
        };
        let start = match *start {
            b"-" => Some((0, 0)),
            [b'(', word @ ..] => parse_id(word, 0).map(|(ms, id)| (ms, id + 1)),
            word => parse_id(word, 0),
        };
        let end = match *end {
            b"+" => Some((u64::MAX, u64::MAX)),
            word => parse_id(word, u64::MAX),
        };
        let (Some(least_idle_ms), Some(start), Some(end), Some(count)) =
            (least_idle_ms, start, end, count)
        else {
            return self.say_err(slot, BAD_ID);
        };
        let ids: Vec<MessageId> = pending
            .iter()
            .filter(|(_, (consumer, serial))| {
                let (idle_ms, _) = self.idle_ms(*serial, now);
                name.is_none_or(|name| **consumer == *name)
                    && idle_ms >= u64::try_from(least_idle_ms).unwrap_or(0)
            })
            .map(|(id, _)| *id)
            .take(PIECE)
            .collect();
        let Some(mut entries) = self.read_entries(slot, store, ids.into_iter()) else {
            return Flow::Again;
        };
        entries.retain(|entry| entry.id >= start && entry.id <= end);
        entries.truncate(usize::try_from(count).unwrap_or(0));
        let lines: Vec<_> = entries
            .iter()
            .map(|entry| {
                let (name, serial) = &pending[&entry.id.1];
                (entry.id, name, self.idle_ms(*serial, now))
            })
            .collect();
        self.say(slot, |out| {
            encode::array(out, lines.len());
            for (id, name, (idle_ms, tries)) in lines {
                encode::array(out, 4);
                write_id(out, id);
                encode::bulk(out, name);
                encode::integer(out, idle_ms);
                encode::integer(out, tries);
            }
        })
    }

    /// `XAUTOCLAIM`
    pub(super) fn xautoclaim(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        let Some(group) = self.stream_group(words[1], words[2]) else {
            return self.say_no_group(slot, words[1], words[2]);
        };
        let (mut count, mut just_ids) = (100, false);
        let mut rest = &words[6..];
        loop {
            rest = match rest {
                [] => break,
                [word, number, more @ ..] if word.eq_ignore_ascii_case(b"COUNT") => {
                    let Some(number @ 1..) = integer(number) else {
                        return self.say_err(slot, "COUNT must be > 0");
                    };
                    count = usize::try_from(number).unwrap_or(PIECE);
                    more
                }
                [word, more @ ..] if word.eq_ignore_ascii_case(b"JUSTID") => {
                    just_ids = true;
                    more
                }
                _ => return self.say_err(slot, "syntax error"),
            };
        }
        let start = match words[5] {
            b"-" => Some((0, 0)),
            word => parse_id(word, 0),
        };
        let (Some(least_idle_ms), Some((_, start))) = (integer(words[4]), start) else {
            return self.say_err(slot, BAD_ID);
        };
        let store = self.engine.store_of(group);
        let least_idle_ms = u64::try_from(least_idle_ms).unwrap_or(0);
        let pending = self.pending(group);
        let mut idle = pending
            .range(start..)
            .filter(|(_, (_, serial))| self.idle_ms(*serial, now).0 >= least_idle_ms);
        let claimed: Vec<MessageId> = idle
            .by_ref()
            .map(|(id, _)| *id)
            .take(count.min(PIECE))
            .collect();
        let next = idle.next().map(|(id, _)| *id);
        // All is read before the first is claimed, as the command may come again.
        let ids = claimed.iter().copied().chain(next);
        let Some(mut entries) = self.read_entries(slot, store, ids) else {
            return Flow::Again;
        };
        let next = next
            .and_then(|_| entries.pop())
            .map_or((0, 0), |entry| entry.id);
        let holder = self.stream_consumer(group, words[3]);
        for id in &claimed {
            let (_, serial) = pending[id];
            self.claim(group, serial, holder, !just_ids, now);
        }
        self.say(slot, |out| {
            encode::array(out, 3);
            write_id(out, next);
            encode::array(out, entries.len());
            for entry in &entries {
                match just_ids {
                    true => write_id(out, entry.id),
                    false => write_entry(out, entry),
                }
            }
            encode::array(out, 0);
        })
    }

    /// A lease ends, and its message is leased to another consumer at once; that counts as another try if
    /// `is_try`.
    fn claim(&mut self, group: QueueKey, serial: u64, holder: HolderKey, is_try: bool, now: Now) {
        let Some(lease) = self.engine.leases.end(serial) else {
            return;
        };
        let how = match is_try {
            true => Return::Lost,
            false => Return::Unsent,
        };
        self.engine.give_back(&lease, how, b"", now);
        let queue = self.engine.queue_mut(group);
        // It may have gone to the dead-letter queue, or have outlived its time.
        let Some(pri) = queue.take_waiting(lease.id) else {
            return;
        };
        let new = NewLease {
            id: lease.id,
            place: lease.place,
            queue: group,
            holder,
            size: lease.size,
            tries: queue.next_try(lease.id),
            pri,
        };
        self.engine.leases.begin(new, now.us, Some(LEASE_US));
    }
}

/// Where a group begins: behind an id, at the first entry, or behind the last.
fn start_of(word: &[u8]) -> Option<From> {
    match word {
        b"$" => Some(From::New),
        b"0" | b"0-0" | b"-" => Some(From::First),
        word => match parse_id(word, 0)? {
            (ms, 0) => Some(From::At(TimeSpec::UnixUs(ms.checked_mul(1000)?))),
            (_, id) => Some(From::At(TimeSpec::Id(id + 1))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_begins_behind_an_id() {
        assert_eq!(start_of(b"$"), Some(From::New));
        assert_eq!(start_of(b"0-0"), Some(From::First));
        assert_eq!(start_of(b"5-7"), Some(From::At(TimeSpec::Id(8))));
        assert_eq!(start_of(b"5"), Some(From::At(TimeSpec::UnixUs(5000))));
        assert_eq!(start_of(b">"), None);
    }
}
