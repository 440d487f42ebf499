//! Exchanges as the engine has them: their changes are logged, and dead letters go where they lead.

use bytes::Bytes;

use super::super::conn::Need;
use super::super::{Now, deaths};
use super::outbox::{BY_ROUTE, far};
use super::publish::begin_many;
use super::settle::Death;
use super::{Engine, Receiver, Refused};
use crate::broker::command::Body;
use crate::broker::exchanges::{Change, DeadRoute, Declared, ExchangeKey, Found, Target};
use crate::broker::id::Level;
use crate::broker::queue::{Published, QueueKey};
use crate::log::disk::Storage;
use crate::log::{
    Entry, Message, PRIORITY_BYTES, Sections, SettleReason, TransferReason, publish_many_bytes,
    with_priority,
};

/// What a publish to an exchange reaches.
#[derive(Debug, Default)]
pub struct Reached {
    /// Queues, each once.
    pub queues: Vec<QueueKey>,
    /// Other shards that may have more of them, each once.
    pub shards: Vec<u32>,
    /// Live subscriptions to topics and the queues among them, where the exchange of topics was reached.
    pub receivers: Vec<Receiver>,
    found: Found,
}

/// A message that a full queue refuses, on its way to where its dead letters go.
#[derive(Debug)]
pub struct Burial {
    queue: QueueKey,
    sections: Vec<u8>,
    targets: Vec<QueueKey>,
    /// Other shards with more of them.
    shards: Vec<u32>,
}

impl<S: Storage> Engine<S> {
    /// Does what the change says and logs it; false if there was nothing to do.
    pub fn change(&mut self, change: &Change<'_>) -> bool {
        let is_changed = match change {
            Change::Queue { uid, declared } => self.install_declared(*uid, declared.clone()),
            change => self.exchanges.apply(change),
        };
        if is_changed && let Some(log) = &mut self.log {
            let mut octets = Vec::new();
            change.encode(&mut octets);
            log.append(&Entry::Route { change: &octets });
            self.sync_wanted = true;
        }
        is_changed
    }

    fn install_declared(&mut self, uid: crate::broker::id::QueueUid, declared: Declared) -> bool {
        let Some(key) = self.find_uid(uid) else {
            return false;
        };
        self.queue_mut(key).declared = Some(Box::new(declared));
        true
    }

    /// Does what the log says.
    ///
    /// # Errors
    /// One sentence, if it makes no sense.
    pub fn replay_change(&mut self, octets: &[u8]) -> Result<(), String> {
        let change = Change::decode(octets)
            .ok_or_else(|| format!("the route {} makes no sense", octets.escape_ascii()))?;
        let queue = match &change {
            Change::Queue { uid, .. } => Some(*uid),
            Change::Bind {
                target: Target::Queue(uid),
                ..
            } => Some(*uid),
            _ => None,
        };
        if let Some(uid) = queue
            && self.find_uid(uid).is_none()
            && far(uid).is_none()
        {
            return Err(format!(
                "a route leads to queue {}, which was never defined",
                uid.0
            ));
        }
        self.change(&change);
        Ok(())
    }

    /// Exchanges, bindings and declarations as encoded changes, for a checkpoint.
    pub fn changes(&self) -> Vec<Vec<u8>> {
        let encoded = |change: &Change<'_>| {
            let mut octets = Vec::new();
            change.encode(&mut octets);
            octets
        };
        let declared = self.queues.iter().filter_map(|(_, queue)| {
            let declared = queue.declared.as_deref()?;
            Some(encoded(&Change::Queue {
                uid: queue.uid,
                declared: declared.clone(),
            }))
        });
        // Those of all shards are kept by the first.
        let is_kept = self.shards.1 == 0;
        let routes = is_kept.then(|| self.exchanges.changes());
        let routes = routes.into_iter().flatten();
        let routes = routes.map(|change| encoded(&change));
        declared.chain(routes).collect()
    }

    /// After a start: what was declared not to survive one goes.
    pub fn drop_transient(&mut self) {
        let is_transient = |declared: &Declared| declared.is_transient();
        let queues: Vec<QueueKey> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.declared.as_deref().is_some_and(is_transient))
            .map(|(key, _)| QueueKey(key as u32))
            .collect();
        for key in queues {
            self.delete_queue(key, false);
        }
        for name in self.exchanges.transient() {
            self.change(&Change::ExchangeGone { name: &name });
        }
    }

    /// Finds what a message reaches that is published to an exchange, or with none to the default one.
    pub fn reach(
        &mut self,
        exchange: Option<ExchangeKey>,
        key: &[u8],
        headers: &[u8],
        reached: &mut Reached,
    ) {
        reached.queues.clear();
        reached.receivers.clear();
        reached.shards.clear();
        let Some(exchange) = exchange else {
            self.reach_named(key, reached);
            return;
        };
        let mut found = std::mem::take(&mut reached.found);
        (found.by_name, found.by_topic) = (false, false);
        found.queues.clear();
        self.exchanges.route(exchange, key, headers, &mut found);
        for uid in &found.queues {
            match self.find_uid(*uid) {
                Some(queue) => reached.queues.push(queue),
                None => reached.shards.extend(far(*uid).map(|(shard, _)| shard)),
            }
        }
        let mut is_mixed = false;
        if found.by_name {
            self.reach_named(key, reached);
            is_mixed = true;
        }
        if found.by_topic {
            let (shards, me) = self.shards;
            reached.shards.extend((0..shards).filter(|it| *it != me));
        }
        if !reached.shards.is_empty() {
            reached.shards.sort_unstable();
            reached.shards.dedup();
        }
        if found.by_topic && !self.topics.is_empty() {
            self.topics.matches(key, &mut reached.receivers);
            for receiver in &reached.receivers {
                if let Receiver::Queue(bound) = receiver {
                    reached.queues.push(*bound);
                    is_mixed = true;
                }
            }
        }
        if is_mixed {
            reached.queues.sort_unstable();
            reached.queues.dedup();
        }
        reached.found = found;
    }

    /// The queue of that name is reached, or its shard.
    fn reach_named(&mut self, name: &[u8], reached: &mut Reached) {
        if self.shards.0 > 1
            && let Some(owner) = self.elsewhere(name)
        {
            return reached.shards.push(owner);
        }
        reached.queues.extend(self.find(name));
    }

    /// Something is bound to the exchange of topics.
    #[inline]
    pub fn has_bound_to_topics(&self) -> bool {
        let topics = self.exchanges.topics();
        !self.exchanges.get(topics).is_unused()
    }

    /// Adds to the queues that a topic is cast to those that the exchange of topics leads to.
    pub fn add_bound_to_topics(&mut self, topic: &[u8], queues: &mut Vec<QueueKey>) {
        if !self.has_bound_to_topics() {
            return;
        }
        let exchange = self.exchanges.topics();
        let mut found = Found::default();
        self.exchanges.route(exchange, topic, b"", &mut found);
        queues.extend(found.queues.iter().filter_map(|uid| self.find_uid(*uid)));
        queues.sort_unstable();
        queues.dedup();
    }

    /// The queues that a message which died goes to, with the sections and the key it has then; and other shards that
    /// have more of them.
    pub(super) fn dead_targets(
        &mut self,
        route: &DeadRoute,
        sections: &[u8],
        key: &[u8],
        reason: TransferReason,
    ) -> (Vec<QueueKey>, Vec<u32>) {
        let mut reached = Reached::default();
        let headers = Sections(sections).get(crate::log::SectionKind::Headers);
        let exchange = match &*route.exchange {
            b"" => None,
            name => match self.exchanges.find(name) {
                Some(exchange) => Some(exchange),
                None => return (Vec::new(), Vec::new()),
            },
        };
        self.reach(exchange, key, headers.unwrap_or_default(), &mut reached);
        let mut targets = reached.queues;
        if reason != TransferReason::Rejected {
            targets
                .retain(|target| !deaths::is_circle(Sections(sections), &self.queue(*target).name));
        }
        (targets, reached.shards)
    }

    /// A message that died goes to the queues that its queue's route leads to, or is dropped if there is none.
    pub(super) fn bury_by_route(
        &mut self,
        key: QueueKey,
        death: &Death,
        route: &DeadRoute,
        sections: &[u8],
        body: Bytes,
        now: Now,
    ) {
        let name = self.queue(key).name.clone();
        let note = deaths::Note {
            queue: &name,
            reason: death.reason,
            time_s: now.us / 1_000_000,
        };
        let (sections, routing_key) = deaths::add(Sections(sections), &note, route);
        let (targets, shards) = self.dead_targets(route, &sections, routing_key, death.reason);
        self.queue_mut(key).counters.dead += 1;
        if let Some(first) = shards.first() {
            // It leaves its queue when all shards have it.
            for target in &targets {
                self.copy_to(*target, &sections, &body, now);
            }
            let death = Death {
                why: death.why.clone(),
                ..*death
            };
            return self.send_away(key, death, BY_ROUTE.into(), *first, 0);
        }
        let Some((last, others)) = targets.split_last() else {
            let reason = match death.reason {
                TransferReason::Expired => SettleReason::Expired,
                TransferReason::DroppedOld => SettleReason::DroppedOld,
                _ => SettleReason::Dead,
            };
            self.settle_taken(key, death.id, death.place, death.size, reason);
            return;
        };
        // It leaves its queue with the last copy, so that none is missing whatever happens between.
        for target in others {
            self.copy_to(*target, &sections, &body, now);
        }
        self.transfer(
            key,
            death.id,
            death.place,
            death.size,
            death.reason,
            *last,
            &sections,
            body,
            now,
        );
    }

    /// Has the queue no room for one more body of so many bytes? Changes nothing.
    pub fn is_full_for(&mut self, key: QueueKey, body_bytes: u64) -> bool {
        !self.over_budget && matches!(self.plan_room(key, 1, body_bytes), Err(Refused::Error(_)))
    }

    /// What becomes of a message that a full queue refuses and that goes where its dead letters go. Changes
    /// nothing.
    pub fn plan_burial(&mut self, key: QueueKey, sections: &[u8], now: Now) -> Burial {
        let queue = self.queue(key);
        let route = queue.dead_route().cloned();
        let route = route.expect("its dead letters go somewhere");
        let name = queue.name.clone();
        let reason = TransferReason::DroppedOld;
        let note = deaths::Note {
            queue: &name,
            reason,
            time_s: now.us / 1_000_000,
        };
        let (sections, routing_key) = deaths::add(Sections(sections), &note, &route);
        let (targets, shards) = self.dead_targets(&route, &sections, routing_key, reason);
        Burial {
            queue: key,
            sections,
            targets,
            shards,
        }
    }

    /// Room in the log for these burials and a publish of the same body to so many queues besides.
    ///
    /// # Errors
    /// If there is none, or none yet.
    pub fn begin_burials(
        &mut self,
        burials: &[Burial],
        others: usize,
        sections: &[u8],
        body: &Body<'_>,
    ) -> Result<(), Refused> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let body = body.as_slice();
        let (mut bytes, mut rows) = (publish_many_bytes(others, sections, body), others);
        for burial in burials {
            let copies = burial.targets.len();
            bytes += copies * (PRIORITY_BYTES + publish_many_bytes(1, &burial.sections, body));
            rows += copies;
        }
        begin_many(log, bytes, rows)
    }

    /// Buries a message. Returns what must be reached until it is safe.
    pub fn bury_refused(&mut self, burial: &Burial, body: &Body<'_>, now: Now) -> Need {
        let body = Bytes::copy_from_slice(body.as_slice());
        let mut need = Need::NOW;
        for target in &burial.targets {
            self.copy_to(*target, &burial.sections, &body, now);
            let other = self.visible_need(*target);
            if other.level > need.level {
                need = other;
            }
        }
        for to in &burial.shards {
            self.send_loose(*to, burial.sections.clone(), body.clone());
        }
        self.queue_mut(burial.queue).counters.dead += 1;
        need
    }

    /// Publishes a message anew that is moved to several queues; no limit refuses it.
    pub(super) fn copy_to(&mut self, target: QueueKey, sections: &[u8], body: &Bytes, now: Now) {
        let queue = &mut self.queues[target.0 as usize];
        let (level, uid, id) = (queue.settings.durable, queue.uid, queue.next_id());
        let pri = queue.settings.pri;
        let sections = &with_priority(sections, pri)[..];
        let message = Message {
            time_ms: now.us / 1000,
            sections,
            body: Body::Owned(body.clone()),
        };
        let place = match level {
            Level::None => {
                queue
                    .arena
                    .push(message.time_ms, sections, &message.body, &mut self.pool)
            }
            _ => {
                let log = self.log.as_mut().expect("a logged level needs a log");
                log.publish(uid, id, &message).0
            }
        };
        let published = Published {
            place,
            size: body.len() as u32,
            pri,
            due_us: 0,
            expires_us: None,
            now_us: now.us,
        };
        self.enter(target, &published, None);
        self.published(target, level, level);
        let need = self.visible_need(target);
        self.moved.add(need);
        self.arm(target);
    }
}
