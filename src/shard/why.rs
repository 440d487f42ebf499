//! WHY: why nothing moves in a queue, counted and said in sentences. Looks, changes nothing; walks
//! over every lease and waiting consumer of the shard, so it is for people, not for every second.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::session::Asker;
use super::waiters::Waiter;
use super::{Now, Shard};
use crate::broker::command::Source;
use crate::broker::id::Level;
use crate::broker::lease::HolderKey;
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, Reply};
use crate::log::disk::Storage;
use crate::protocol::text::encode;

/// Holders that are named at most; the others are counted.
const HOLDERS_SHOWN: usize = 10;

/// Who holds messages of the queue.
#[derive(Debug, Default)]
struct Held {
    messages: u64,
    /// The earliest deadline, microseconds.
    first_us: u64,
}

/// The consumers of the queue.
#[derive(Debug, Default)]
struct Consumers {
    subscriptions: u64,
    without_credit: u64,
    /// Their connection's output is full: the peer does not read.
    not_reading: u64,
    pulls: u64,
}

impl<S: Storage> Shard<S> {
    /// `WHY src`.
    pub(super) fn why(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
        now: Now,
    ) -> Result<(), Error> {
        let key = self.existing_reader(source)?;
        let held = self.held_by(key);
        let consumers = self.consumers_of(key);
        let queue = self.engine.queue(key);
        let mut text = String::new();
        let paused = match (queue.settings.pause.input, queue.settings.pause.output) {
            (false, false) => "none",
            (true, false) => "in",
            (false, true) => "out",
            (true, true) => "in,out",
        };
        let lines = [
            ("ready", queue.ready()),
            ("leased", queue.leased()),
            ("delayed", queue.delayed()),
            ("key_locked", queue.locked()),
            ("hidden", queue.hidden()),
            ("dead", queue.dead_letters()),
            ("kept_back", queue.counters.damaged),
            ("subscriptions", consumers.subscriptions),
            ("without_credit", consumers.without_credit),
            ("not_reading", consumers.not_reading),
            ("waiting_pulls", consumers.pulls),
        ];
        for (name, value) in lines {
            let _ = writeln!(text, "{name}={value}");
        }
        let _ = writeln!(text, "paused={paused}");
        let mut text = text.into_bytes();
        self.write_holders(&mut text, &held, now);
        for reason in self.reasons(key, &consumers, &held, now) {
            text.extend_from_slice(b"why=");
            text.extend_from_slice(reason.as_bytes());
            text.push(b'\n');
        }
        self.answer(asker, &Reply::Data(&text));
        Ok(())
    }

    fn held_by(&self, key: QueueKey) -> BTreeMap<HolderKey, Held> {
        let mut held: BTreeMap<HolderKey, Held> = BTreeMap::new();
        for lease in self.engine.leases.iter().filter(|lease| lease.queue == key) {
            let entry = held.entry(lease.holder).or_insert(Held {
                messages: 0,
                first_us: u64::MAX,
            });
            entry.messages += 1;
            entry.first_us = entry.first_us.min(lease.deadline_us);
        }
        held
    }

    fn consumers_of(&self, key: QueueKey) -> Consumers {
        let mut found = Consumers::default();
        for (_, waiter) in &self.waiters.slab {
            match waiter {
                Waiter::Pull(pull) if pull.sources().any(|source| source == key) => {
                    found.pulls += 1;
                }
                Waiter::Subscription(subscription) if subscription.queue == key => {
                    found.subscriptions += 1;
                    let held = self.engine.leases.held(subscription.terms.holder);
                    found.without_credit += u64::from(held >= subscription.credit);
                    let full = self.slot(subscription.conn).is_some_and(|slot| {
                        self.conns[slot].out.len() >= self.limits.send_bytes_max
                    });
                    found.not_reading += u64::from(full);
                }
                Waiter::Watch(watch) if watch.sources.contains(&key) => found.pulls += 1,
                Waiter::Pull(_) | Waiter::Subscription(_) => {}
                Waiter::Across(_) | Waiter::Watch(_) => {}
            }
        }
        found
    }

    fn write_holders(&self, text: &mut Vec<u8>, held: &BTreeMap<HolderKey, Held>, now: Now) {
        for (holder, held) in held.iter().take(HOLDERS_SHOWN) {
            match self.conn_of_holder(*holder) {
                Some(slot) => {
                    let conn = &self.conns[slot];
                    let who = format!("holder={slot}.{} peer={} name=", conn.generation, conn.peer);
                    text.extend_from_slice(who.as_bytes());
                    encode::typed(text, &conn.rare.name);
                }
                None => text.extend_from_slice(b"holder=- peer=- name="),
            }
            let ends = match held.first_us {
                u64::MAX => "never".to_string(),
                first_us => (first_us.saturating_sub(now.us) / 1000).to_string(),
            };
            let rest = format!(" leased={} first_ends_ms={ends}\n", held.messages);
            text.extend_from_slice(rest.as_bytes());
        }
        let others = held.len().saturating_sub(HOLDERS_SHOWN);
        if others > 0 {
            text.extend_from_slice(format!("holders_not_shown={others}\n").as_bytes());
        }
    }

    /// What keeps messages from moving, the most likely first.
    fn reasons(
        &self,
        key: QueueKey,
        consumers: &Consumers,
        held: &BTreeMap<HolderKey, Held>,
        now: Now,
    ) -> Vec<String> {
        let queue = self.engine.queue(key);
        let mut reasons = Vec::new();
        if queue.settings.pause.output {
            reasons.push(
                "the queue is paused for consumers; QSET with pause=none lets it go on".to_string(),
            );
        }
        if queue.ready() > 0 && !queue.settings.pause.output {
            self.why_ready_stays(
                queue.ready(),
                queue.settings.single,
                consumers,
                &mut reasons,
            );
        }
        if queue.hidden() > 0 {
            let what = match queue.settings.durable {
                Level::Os => "written to the disk",
                _ => "synced to the disk",
            };
            reasons.push(format!(
                "{} published are not {what} yet: they become visible then",
                messages(queue.hidden())
            ));
        }
        if queue.ready() == 0 && queue.leased() > 0 {
            let first_us = held.values().map(|held| held.first_us).min();
            let ends = match first_us {
                Some(u64::MAX) | None => String::new(),
                Some(at_us) => format!(
                    "; the first lease ends by itself in {} ms",
                    at_us.saturating_sub(now.us) / 1000
                ),
            };
            reasons.push(format!(
                "{} leased, see the holders{ends}",
                are(queue.leased())
            ));
        }
        if queue.locked() > 0 {
            reasons.push(format!(
                "{} behind another of the same key that is leased or waits for its retry",
                are(queue.locked())
            ));
        }
        if let Some((due_us, _)) = queue.iter_delayed().next() {
            reasons.push(format!(
                "{} delayed, by delay= or at=, or by a backoff after a NACK; the first is ready in \
                 {} ms",
                are(queue.delayed()),
                due_us.saturating_sub(now.us) / 1000
            ));
        }
        if queue.dead_letters() > 0 {
            let name = queue.dead_name().unwrap_or_default();
            let mut shown = Vec::new();
            encode::typed(&mut shown, &name);
            reasons.push(format!(
                "{} given up and in {}; MOVE puts them back",
                are(queue.dead_letters()),
                String::from_utf8_lossy(&shown)
            ));
        }
        if queue.counters.damaged > 0 {
            reasons.push(format!(
                "{} damaged on the disk and kept back; ringmq check tells where",
                are(queue.counters.damaged)
            ));
        }
        if queue.settings.pause.input {
            reasons.push(
                "publishes are refused: the queue has pause=in; QSET with pause=none takes them \
                 again"
                    .to_string(),
            );
        }
        if reasons.is_empty() {
            reasons.push(match queue.next_id() {
                _ if queue.group.is_some() => {
                    "the group is through: it has settled every message that was published since it \
                     began"
                        .to_string()
                }
                1 => "the queue is empty: nothing was ever published to it".to_string(),
                next => format!(
                    "the queue is empty: all {} published so far are settled",
                    messages(next - 1)
                ),
            });
        }
        reasons
    }

    fn why_ready_stays(
        &self,
        ready: u64,
        is_single: bool,
        consumers: &Consumers,
        reasons: &mut Vec<String>,
    ) {
        let Consumers {
            subscriptions,
            without_credit,
            not_reading,
            pulls,
        } = *consumers;
        if subscriptions == 0 && pulls == 0 {
            reasons.push(format!(
                "{} ready and nobody asks: no SUB, no waiting PULL",
                are(ready)
            ));
        } else if pulls == 0 && without_credit == subscriptions {
            reasons.push(format!(
                "{} ready and every SUB has used up its credit: it holds as many unacked messages \
                 as it asked for; ACK some, or CREDIT for more",
                are(ready)
            ));
        } else if pulls == 0 && not_reading > 0 && without_credit + not_reading >= subscriptions {
            reasons.push(format!(
                "{} ready and the subscribers do not read what was sent to them",
                are(ready)
            ));
        } else if is_single {
            reasons.push(format!(
                "{} ready and the queue has single=1: only the active consumer gets them, the \
                 others stand by",
                are(ready)
            ));
        } else {
            reasons.push(format!("{} ready and on the way", are(ready)));
        }
    }
}

/// `1 message`, `2 messages`.
fn messages(count: u64) -> String {
    match count {
        1 => "1 message".to_string(),
        count => format!("{count} messages"),
    }
}

/// `1 message is`, `2 messages are`.
fn are(count: u64) -> String {
    match count {
        1 => "1 message is".to_string(),
        count => format!("{count} messages are"),
    }
}
