//! Live subscriptions: copies of what is cast, for connections that are there to read them.
//!
//! Nothing is stored. A copy goes straight into a connection's output, one for each connection however
//! many of its patterns match. A connection whose output is full misses copies; they are counted by
//! pattern, and told by `LAG` when half of its output has been read, or when the subscription ends. So
//! what was received and what was told to be missing are together what was cast.

use bytes::Bytes;
use slab::Slab;

use super::cast::no_memory;
use super::conn::{Life, Need};
use super::door::Told;
use super::engine::Receiver;
use super::interest::tag_in_use;
use super::session::Asker;
use super::{ConnKey, Now, Shard};
use crate::broker::command::{Body, PublishOptions};
use crate::broker::pattern::Pattern;
use crate::broker::reply::{Delivery, Error, ErrorCode, Payload, Reply};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{SectionKind, Sections};
use crate::protocol::text::encode::{self, Gone};
use crate::protocol::text::{IN_PLACE_BYTES_MAX, value};

/// Memory of one subscription beside its pattern in the trie, estimated, bytes.
const LIVE_BYTES: usize = 400;

/// What a copy takes beside topic and body, roughly, bytes.
const LINE_BYTES: usize = 64;

/// One live subscription.
#[derive(Debug)]
struct LiveSubscription {
    conn: ConnKey,
    /// Without the `@`; untagged when empty.
    tag: Box<[u8]>,
    pattern: Pattern,
    /// Tell when it was cast.
    timestamps: bool,
    /// Copies missed since the last `LAG`.
    dropped: u64,
    /// Tells which of a connection's is the oldest.
    serial: u64,
}

/// Every live subscription.
#[derive(Debug, Default)]
pub(super) struct Live {
    subscriptions: Slab<LiveSubscription>,
    next_serial: u64,
    /// Scratch: (connection's slot, serial, place) of those that a topic goes to.
    found: Vec<(u32, u64, u32)>,
    /// Scratch: a line with its body.
    line: Vec<u8>,
    /// Connections that missed copies because memory was short.
    starved: Vec<ConnKey>,
    /// Copies given and missed since the start.
    pub given_total: u64,
    pub dropped_total: u64,
}

impl Live {
    /// Subscriptions now.
    pub(super) fn len(&self) -> usize {
        self.subscriptions.len()
    }

    /// Memory held, estimated, bytes.
    pub(super) fn memory(&self) -> usize {
        self.subscriptions.len() * LIVE_BYTES
    }
}

impl<S: Storage> Shard<S> {
    /// `SUB pattern mode=live`: copies of what is cast from now on.
    pub(super) fn subscribe_live(
        &mut self,
        asker: Asker<'_>,
        pattern: &[u8],
        timestamps: bool,
    ) -> Result<(), Error> {
        let pattern = Pattern::new(pattern)?;
        let slot = asker.slot;
        let known = self.conns[slot].rare.live.get(&pattern).copied();
        if let Some(tag) = asker.tag
            && self.conns[slot].uses(tag)
        {
            // Its own tag is what an update of a subscription is expected to have.
            let own = known.is_some_and(|key| *self.live.subscriptions[key as usize].tag == *tag);
            if !own {
                return Err(tag_in_use(tag));
            }
        }
        if self.conns[slot].life != Life::Open {
            return Err(Error::new(
                ErrorCode::Conflict,
                "the connection is closing; a subscription would end at once",
            ));
        }
        if let Some(key) = known {
            self.live.subscriptions[key as usize].timestamps = timestamps;
        } else {
            if self.engine.over_budget {
                return Err(no_memory());
            }
            self.add_live(slot, asker.tag.unwrap_or_default(), pattern, timestamps);
        }
        self.answer(
            Asker {
                quiet: false,
                ..asker
            },
            &Reply::Ok,
        );
        Ok(())
    }

    fn add_live(&mut self, slot: usize, tag: &[u8], pattern: Pattern, timestamps: bool) {
        self.live.next_serial += 1;
        let subscription = LiveSubscription {
            conn: self.key(slot),
            tag: tag.into(),
            pattern: pattern.clone(),
            timestamps,
            dropped: 0,
            serial: self.live.next_serial,
        };
        let key = self.live.subscriptions.insert(subscription) as u32;
        self.engine.topics.insert(&pattern, Receiver::Live(key));
        let conn = &mut self.conns[slot];
        conn.rare.make().live.insert(pattern, key);
        if !tag.is_empty() {
            conn.rare.make().live_tags.insert(tag.into());
        }
    }

    /// `UNSUB pattern`.
    pub(super) fn run_unsubscribe_live(
        &mut self,
        asker: Asker<'_>,
        pattern: &[u8],
    ) -> Result<(), Error> {
        let pattern = Pattern::new(pattern)?;
        if !self.unsubscribe_live(asker.slot, &pattern) {
            let text = format!(
                "this connection has no SUB on {0}; SUB {0} mode=live begins one",
                value::shown(&pattern.printed())
            );
            return Err(Error::new(ErrorCode::Conflict, text));
        }
        self.answer_when(asker, Need::NOW, &Reply::Ok);
        Ok(())
    }

    /// Ends a live subscription and tells what it has missed; false if there is none.
    pub(super) fn unsubscribe_live(&mut self, slot: usize, pattern: &Pattern) -> bool {
        let Some(key) = self.conns[slot].rare.live.get(pattern).copied() else {
            return false;
        };
        self.tell_lag(slot, key);
        self.drop_live(slot, key);
        true
    }

    /// Ends all of a connection, whose peer sends nothing more.
    pub(super) fn end_live(&mut self, slot: usize) {
        while let Some(key) = self.conns[slot].rare.live.values().next().copied() {
            self.tell_lag(slot, key);
            self.drop_live(slot, key);
        }
    }

    /// The broker goes down: it is told, behind what the subscriptions have missed.
    pub(super) fn tell_live_drain(&mut self, slot: usize) {
        let keys: Vec<u32> = self.conns[slot].rare.live.values().copied().collect();
        for key in keys {
            self.tell_lag(slot, key);
            let subscription = &self.live.subscriptions[key as usize];
            let tag = (!subscription.tag.is_empty()).then_some(&*subscription.tag);
            let source = &subscription.pattern.printed();
            let why = Gone::Drain;
            self.conns[slot].tell(&mut self.pool, tag, Told::Gone { source, why });
        }
    }

    /// The connection is gone: nobody is told anything.
    pub(super) fn forget_live(&mut self, slot: usize) {
        while let Some(key) = self.conns[slot].rare.live.values().next().copied() {
            self.drop_live(slot, key);
        }
    }

    fn drop_live(&mut self, slot: usize, key: u32) {
        let subscription = self.live.subscriptions.remove(key as usize);
        let pattern = &subscription.pattern;
        self.engine.topics.remove(pattern, Receiver::Live(key));
        let rare = self.conns[slot].rare.make();
        rare.live.remove(pattern);
        rare.live_tags.remove(&subscription.tag);
    }

    /// The live subscriptions among the receivers, one for each connection: the oldest. The list is scratch, to be
    /// given back.
    fn live_receivers(&mut self, receivers: &[Receiver]) -> Vec<(u32, u64, u32)> {
        let mut found = std::mem::take(&mut self.live.found);
        found.clear();
        for receiver in receivers {
            if let Receiver::Live(key) = receiver {
                let subscription = &self.live.subscriptions[*key as usize];
                found.push((subscription.conn.slot, subscription.serial, *key));
            }
        }
        found.sort_unstable();
        if !planted(Fault::LiveCopyTwice) {
            found.dedup_by_key(|(slot, ..)| *slot);
        }
        found
    }

    /// Gives each connection among the receivers a copy, if it has room; how many got one.
    pub(super) fn give_live(
        &mut self,
        receivers: &[Receiver],
        topic: &[u8],
        options: &PublishOptions<'_>,
        body: &Body<'_>,
        now: Now,
    ) -> u64 {
        let found = self.live_receivers(receivers);
        let given = match found.is_empty() {
            true => 0,
            false => {
                self.engine.build_told(options);
                self.copy_live(&found, topic, body, now)
            }
        };
        self.live.found = found;
        given
    }

    fn copy_live(
        &mut self,
        found: &[(u32, u64, u32)],
        topic: &[u8],
        body: &Body<'_>,
        now: Now,
    ) -> u64 {
        let mut source = Vec::new();
        encode::typed(&mut source, topic);
        let large = match body {
            Body::Owned(bytes) if bytes.len() >= IN_PLACE_BYTES_MAX => Some(bytes),
            _ => None,
        };
        let copied = large.map_or(body.as_slice().len(), |_| 0);
        let copy_bytes = LINE_BYTES + source.len() + copied;
        let has_memory = self.has_memory(copy_bytes.saturating_mul(found.len()), now);
        let mut line = std::mem::take(&mut self.live.line);
        // The terms that `line` was written for: most connections have the same.
        let mut written: Option<(Box<[u8]>, bool)> = None;
        let mut given = 0;
        for (slot, _, key) in found {
            let slot = *slot as usize;
            if !self.conns[slot].wants_copy(&source) {
                continue;
            }
            if has_memory && self.conns[slot].out.len() < self.limits.send_bytes_max / 2 {
                self.catch_up(slot);
            }
            let subscription = &mut self.live.subscriptions[*key as usize];
            let conn = &mut self.conns[slot];
            if !has_memory || conn.rare.is_lagging || conn.out.len() >= self.limits.send_bytes_max {
                if !has_memory && !conn.rare.is_lagging {
                    self.live.starved.push(subscription.conn);
                }
                conn.rare.make().is_lagging = true;
                subscription.dropped += u64::from(!planted(Fault::LagNotCounted));
                self.live.dropped_total += 1;
                continue;
            }
            let tag = (!subscription.tag.is_empty()).then_some(&*subscription.tag);
            let sections = Sections(self.engine.sections());
            let delivery = Delivery {
                source: &source,
                handle: None,
                id: 0,
                tries: 1,
                timestamp_ms: subscription.timestamps.then_some(now.us / 1000),
                key: sections.get(SectionKind::Key),
                reply: sections.get(SectionKind::Reply),
                headers: sections.get(SectionKind::Headers).unwrap_or_default(),
                body: match large {
                    Some(bytes) => Payload::Shared(Bytes::clone(bytes)),
                    None => Payload::Slice(body.as_slice()),
                },
            };
            if !conn.session.is_text() {
                conn.tell(&mut self.pool, tag, Told::Message(&delivery));
            } else if large.is_some() {
                encode::message(&mut conn.out, &mut self.pool, tag, &delivery);
            } else {
                let same = written.as_ref().is_some_and(|(tag, timestamps)| {
                    (tag, *timestamps) == (&subscription.tag, subscription.timestamps)
                });
                if !same {
                    line.clear();
                    encode::copied_message(&mut line, tag, &delivery);
                    written = Some((subscription.tag.clone(), subscription.timestamps));
                }
                conn.out.writer(&mut self.pool).extend_from_slice(&line);
            }
            given += 1;
            self.mark_dirty(slot);
        }
        line.clear();
        self.live.line = line;
        self.live.given_total += given;
        given
    }

    /// Gives each connection among the receivers what `copies` holds, if all of them take it as it is: plain
    /// messages that end at `ends`, encoded without a tag. Adds to `given` for each message how many got it;
    /// `false`: nothing was done. For none of them is `asker` meant, whose answers stand between.
    pub(super) fn give_live_run(
        &mut self,
        asker: usize,
        receivers: &[Receiver],
        copies: &[u8],
        ends: &[usize],
        given: &mut [u64],
        now: Now,
    ) -> bool {
        let found = self.live_receivers(receivers);
        let plain = !found.is_empty()
            && found.iter().all(|(slot, _, key)| {
                let subscription = &self.live.subscriptions[*key as usize];
                self.conns[*slot as usize].session.is_text()
                    && subscription.tag.is_empty()
                    && !subscription.timestamps
                    && *slot as usize != asker
            });
        let done = plain && self.has_memory(copies.len().saturating_mul(found.len()), now);
        if done {
            for (slot, _, key) in &found {
                self.append_live(*slot as usize, *key, copies, ends, given);
            }
        }
        self.live.found = found;
        done
    }

    fn append_live(
        &mut self,
        slot: usize,
        key: u32,
        copies: &[u8],
        ends: &[usize],
        given: &mut [u64],
    ) {
        let limit = self.limits.send_bytes_max;
        if self.conns[slot].out.len() < limit / 2 {
            self.catch_up(slot);
        }
        let conn = &mut self.conns[slot];
        let room = limit.saturating_sub(conn.out.len());
        // A copy is given if there is room for its first octet.
        let taken = match ends {
            _ if conn.rare.is_lagging => 0,
            [.., before, _] if room > *before => ends.len(),
            _ => {
                let begins = std::iter::once(0).chain(ends.iter().copied());
                begins
                    .take(ends.len())
                    .take_while(|begin| *begin < room)
                    .count()
            }
        };
        let until = taken.checked_sub(1).map_or(0, |last| ends[last]);
        if taken > 0 {
            conn.out
                .writer(&mut self.pool)
                .extend_from_slice(&copies[..until]);
            self.mark_dirty(slot);
        }
        for count in &mut given[..taken] {
            *count += 1;
        }
        self.live.given_total += taken as u64;
        let missed = (ends.len() - taken) as u64;
        if missed > 0 {
            self.conns[slot].rare.make().is_lagging = true;
            self.live.dropped_total += missed;
            let told = u64::from(!planted(Fault::LagNotCounted));
            self.live.subscriptions[key as usize].dropped += missed * told;
        }
    }

    /// Connections that missed copies because memory was short are told, as there is some again.
    pub(super) fn feed_starved(&mut self) {
        for key in std::mem::take(&mut self.live.starved) {
            if let Some(slot) = self.slot(key)
                && self.conns[slot].out.len() < self.limits.send_bytes_max / 2
            {
                self.catch_up(slot);
            }
        }
    }

    fn tell_lag(&mut self, slot: usize, key: u32) {
        let subscription = &mut self.live.subscriptions[key as usize];
        let dropped = std::mem::take(&mut subscription.dropped);
        if dropped > 0 {
            let tag = (!subscription.tag.is_empty()).then_some(&*subscription.tag);
            let pattern = &subscription.pattern.printed();
            self.conns[slot].tell(&mut self.pool, tag, Told::Lag { pattern, dropped });
            self.mark_dirty(slot);
        }
    }

    /// The output has room again: the connection is told what it has missed, and misses no more.
    pub(super) fn catch_up(&mut self, slot: usize) {
        if !self.conns[slot].rare.is_lagging {
            return;
        }
        let keys: Vec<u32> = self.conns[slot].rare.live.values().copied().collect();
        for key in keys {
            if self.conns[slot].out.len() >= self.limits.send_bytes_max {
                return;
            }
            self.tell_lag(slot, key);
        }
        self.conns[slot].rare.make().is_lagging = false;
    }
}
