//! Where a method of a client is run whose broker has several shards.
//!
//! What is about one queue is run by the client's part at the queue's shard, as the client said it, with the names that the
//! client has left out. What is behind a method that is answered waits for its answer. What is about a channel or
//! an exchange is run here. See [`front`](super::front) for what the parts say.

use bytes::Bytes;

use super::front::{News, Relay, Returnable, Said};
use super::part::Word;
use super::{Fault, Mode, Outcome, Phase, connection_fault, reply_to, shown};
use crate::broker::command::Body;
use crate::broker::exchanges::ExchangeKey;
use crate::log::disk::Storage;
use crate::protocol::amqp::content::Properties;
use crate::protocol::amqp::method::{Binding, Method, Publish, id};
use crate::protocol::amqp::{code, forward};
use crate::shard::conn::Life;
use crate::shard::engine::Reached;
use crate::shard::{Now, Shard, shard_of};

/// What a method says of itself when the broker closes a channel in its client's stead.
const CLOSED_BY_HOME: Method<'static> = Method::ChannelClose {
    code: code::SUCCESS,
    text: b"",
};

impl<S: Storage> Shard<S> {
    /// The client has parts at several shards.
    #[inline]
    pub(in crate::shard) fn has_front(&self, slot: usize) -> bool {
        self.peers.is_some()
            && matches!(&self.conns[slot].session, super::super::Session::Amqp(amqp) if amqp.front.is_some())
    }

    pub(super) fn front(&mut self, slot: usize) -> &mut super::Front {
        let front = self.amqp(slot).front.as_mut();
        front.expect("only clients with parts come here")
    }

    fn relay(&mut self, slot: usize, number: u16) -> &mut Relay {
        let relay = self.front(slot).relay(number);
        relay.expect("a channel that is open has one")
    }

    /// What the first frame has asked of a part is answered: it is not asked again.
    pub(super) fn take_answered(&mut self, slot: usize) -> bool {
        self.has_front(slot) && std::mem::take(&mut self.front(slot).is_answered)
    }

    /// What the client has published at other shards, or rejected, may not be safe yet: it waits, and asks again.
    pub(super) fn settle_parts(&mut self, slot: usize) -> bool {
        let (_, me) = self.shards();
        let unsettled = &mut self.front(slot).unsettled;
        let had_own = unsettled.remove(&me);
        let others = std::mem::take(unsettled);
        for to in others {
            self.post_barrier(slot, to);
        }
        if had_own {
            self.front(slot).unsettled.insert(me);
        }
        if self.wait_for_own(slot) {
            return true;
        }
        self.flush_confirms(slot);
        if had_own {
            self.front(slot).unsettled.remove(&me);
            self.mark_run(slot);
        }
        self.awaits_answers(slot)
    }

    // --- What parts are told ---

    /// What a part is told of a channel before anything else; nothing if it knows it.
    fn opening(&mut self, slot: usize, number: u16, to: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let relay = self.relay(slot, number);
        if !relay.open_at.insert(to) {
            return out;
        }
        let (is_limited, has_confirms) = (relay.is_limited(), relay.has_confirms());
        forward::method(&mut out, number, &Method::ChannelOpen);
        if has_confirms {
            forward::method(&mut out, number, &Method::ConfirmSelect { nowait: true });
        }
        if is_limited {
            Word::Limit(true).put(&mut out, number);
        }
        if self.is_tx(slot, number) {
            forward::method(&mut out, number, &Method::TxSelect);
        }
        out
    }

    fn is_tx(&mut self, slot: usize, number: u16) -> bool {
        let channel = self.amqp(slot).channel(number);
        channel.is_some_and(|channel| matches!(channel.mode, Mode::Tx(_)))
    }

    /// Says something to a part that it does not answer.
    fn tell_part(&mut self, slot: usize, number: u16, to: u32, said: &[u8]) {
        let opening = self.opening(slot, number, to);
        self.post_unanswered(slot, to, &[&opening, said]);
    }

    /// Says something to every part that knows the channel.
    fn tell_parts(&mut self, slot: usize, number: u16, method: &Method<'_>) {
        let parts = self.relay(slot, number).open_at.clone();
        for to in parts {
            let mut said = Vec::new();
            forward::method(&mut said, number, method);
            self.post_unanswered(slot, to, &[&said]);
        }
    }

    /// Has a method run by a part; what comes next waits until it was.
    fn ask_part(&mut self, slot: usize, number: u16, to: u32, said: &[u8]) -> Outcome {
        if !self.has_room_to(slot, &[to]) {
            return Err(Fault::Again);
        }
        let asked = [&self.opening(slot, number, to)[..], said].concat();
        self.post_answered(slot, to, asked);
        self.front(slot).is_answered = true;
        Err(Fault::Again)
    }

    /// The channel ends at all other shards. With a wait for that, or what they say of it is dropped.
    pub(super) fn close_at_parts(&mut self, slot: usize, number: u16, waits: bool) -> bool {
        let Some(relay) = self.front(slot).relay(number) else {
            return false;
        };
        let parts = std::mem::take(&mut relay.open_at);
        for to in &parts {
            let mut said = Vec::new();
            forward::method(&mut said, number, &CLOSED_BY_HOME);
            match waits {
                true => self.post_answered(slot, *to, said),
                false => self.post_unanswered(slot, *to, &[&said]),
            }
            self.front(slot).closes(*to, number);
        }
        !parts.is_empty()
    }

    /// The connection ends at all other shards; true if that is waited for.
    pub(super) fn close_parts(&mut self, slot: usize) -> bool {
        if std::mem::replace(&mut self.front(slot).is_parting, true) {
            return false;
        }
        let mut said = Vec::new();
        let close = Method::Close {
            code: code::SUCCESS,
            text: b"",
        };
        forward::method(&mut said, 0, &close);
        let parts = self.parts_elsewhere(slot);
        for to in &parts {
            self.post_answered(slot, *to, said.clone());
        }
        !parts.is_empty()
    }

    // --- Methods ---

    /// A method of an open channel.
    pub(super) fn route_method(
        &mut self,
        slot: usize,
        number: u16,
        method: &Method<'_>,
        now: Now,
    ) -> Outcome {
        let (tag, multiple, requeue) = match *method {
            Method::Ack { tag, multiple } => (tag, multiple, None),
            Method::Reject { tag, requeue } => (tag, false, Some(requeue)),
            Method::Nack {
                tag,
                multiple,
                requeue,
            } => (tag, multiple, Some(requeue)),
            Method::RecoverAsync { requeue } => {
                return self.recover_at_parts(slot, number, requeue, now);
            }
            _ => return self.route_synchronous(slot, number, method, now),
        };
        let said = Said {
            tag,
            multiple,
            requeue,
        };
        if self.is_tx(slot, number) {
            self.relay(slot, number).said.push(said);
            return Ok(());
        }
        self.settle_at_parts(slot, number, said, now)
    }

    /// Settles deliveries, or gives them back, where they come from.
    pub(super) fn settle_at_parts(
        &mut self,
        slot: usize,
        number: u16,
        said: Said,
        now: Now,
    ) -> Outcome {
        let (_, me) = self.shards();
        let is_tx = self.is_tx(slot, number);
        let relay = self.relay(slot, number);
        let found = relay.find(said.tag, said.multiple)?;
        let others: Vec<u32> = found.iter().map(|settled| settled.shard).collect();
        let others: Vec<u32> = others.into_iter().filter(|shard| *shard != me).collect();
        if !others.is_empty() && !self.has_room_to(slot, &others) {
            return Err(Fault::Again);
        }
        self.relay(slot, number).settle(said.tag, said.multiple);
        for settled in found {
            let (tag, multiple) = (settled.tag, settled.multiple);
            if settled.shard != me || said.requeue == Some(false) {
                self.front(slot).unsettled.insert(settled.shard);
            }
            if settled.shard == me {
                match said.requeue {
                    None => self.ack_tags(slot, number, tag, multiple)?,
                    Some(requeue) => self.nack_tags(slot, number, tag, multiple, requeue, now)?,
                }
                continue;
            }
            let method = match said.requeue {
                None => Method::Ack { tag, multiple },
                Some(requeue) => Method::Nack {
                    tag,
                    multiple,
                    requeue,
                },
            };
            let mut octets = Vec::new();
            forward::method(&mut octets, number, &method);
            self.tell_part(slot, number, settled.shard, &octets);
            if is_tx {
                self.relay(slot, number).tx_at.insert(settled.shard);
            }
        }
        self.front(slot).grant(number);
        self.heed_parts(slot, now);
        Ok(())
    }

    /// A method that is answered.
    fn route_synchronous(
        &mut self,
        slot: usize,
        number: u16,
        method: &Method<'_>,
        now: Now,
    ) -> Outcome {
        if method.is_synchronous() && self.settle_parts(slot) {
            return Err(Fault::Again);
        }
        match *method {
            Method::QueueDeclare { queue, passive, .. } => {
                let is_given = queue.is_empty() && !passive;
                let name: Box<[u8]> = match is_given {
                    true => self.amqp.next_name("amq.gen-").into(),
                    false => self.queue_name(slot, number, queue)?,
                };
                self.amqp(slot).is_given = is_given;
                self.route_named(slot, number, method, &name, now)
            }
            Method::QueueBind { binding, .. } | Method::QueueUnbind { binding } => {
                let name = self.queue_name(slot, number, binding.destination)?;
                self.route_named(slot, number, method, &name, now)
            }
            Method::QueuePurge { queue, .. }
            | Method::QueueDelete { queue, .. }
            | Method::Get { queue, .. } => {
                let name = self.queue_name(slot, number, queue)?;
                self.route_named(slot, number, method, &name, now)
            }
            Method::Consume { queue, tag, .. } => {
                let name = self.queue_name(slot, number, queue)?;
                if self.relay(slot, number).consumers.contains_key(tag) {
                    let text = format!("there is a consumer '{}' on this channel", shown(tag));
                    return Err(connection_fault(code::NOT_ALLOWED, text));
                }
                self.route_named(slot, number, method, &name, now)
            }
            Method::Cancel { tag, .. } => match self.relay(slot, number).consumers.get(tag) {
                Some(to) => {
                    let to = *to;
                    let mut said = Vec::new();
                    forward::method(&mut said, number, method);
                    let outcome = self.ask_part(slot, number, to, &said);
                    if self.front(slot).is_answered {
                        self.relay(slot, number).consumers.remove(tag);
                    }
                    outcome
                }
                None => self.run_synchronous(slot, number, method, now),
            },
            Method::Recover { requeue } => {
                self.recover_at_parts(slot, number, requeue, now)?;
                self.say_on(slot, number, id::BASIC_RECOVER_OK).end();
                Ok(())
            }
            Method::ConfirmSelect { .. } => {
                self.run_synchronous(slot, number, method, now)?;
                self.relay(slot, number).confirm();
                self.tell_parts(slot, number, &Method::ConfirmSelect { nowait: true });
                Ok(())
            }
            Method::Qos {
                global: true,
                bytes: 0,
                count,
            } => self.limit_channel(slot, number, count),
            Method::TxSelect => {
                let was_tx = self.is_tx(slot, number);
                self.run_synchronous(slot, number, method, now)?;
                if !was_tx {
                    self.tell_parts(slot, number, method);
                }
                Ok(())
            }
            Method::TxCommit => self.commit_at_parts(slot, number, now),
            Method::TxRollback => {
                if self.is_tx(slot, number) {
                    self.relay(slot, number).roll_back();
                    self.tell_parts(slot, number, method);
                }
                self.run_synchronous(slot, number, method, now)
            }
            Method::ChannelClose { .. } => {
                if self.close_at_parts(slot, number, true) {
                    self.awaits_answers(slot);
                    return Err(Fault::Again);
                }
                self.front(slot).forget(number);
                self.run_synchronous(slot, number, method, now)
            }
            _ => self.run_synchronous(slot, number, method, now),
        }
    }

    /// Has a method run where the queue of that name is; the name stands for one that was left out.
    fn route_named(
        &mut self,
        slot: usize,
        number: u16,
        method: &Method<'_>,
        name: &[u8],
        now: Now,
    ) -> Outcome {
        let (shards, me) = self.shards();
        let is_given = self.amqp(slot).is_given;
        let named = |binding: &Binding<'_>| match binding.destination.is_empty() {
            true if binding.key.is_empty() => (name.to_vec(), name.to_vec()),
            _ => (name.to_vec(), binding.key.to_vec()),
        };
        let ((destination, key), tag);
        let mut method = *method;
        match &mut method {
            Method::QueueDeclare { queue, .. }
            | Method::QueuePurge { queue, .. }
            | Method::QueueDelete { queue, .. }
            | Method::Get { queue, .. } => *queue = name,
            Method::Consume {
                queue, tag: its, ..
            } => {
                *queue = name;
                if its.is_empty() {
                    tag = self.amqp.next_name("amq.ctag-");
                    *its = &tag;
                }
            }
            Method::QueueBind { binding, .. } | Method::QueueUnbind { binding } => {
                (destination, key) = named(binding);
                binding.destination = &destination;
                binding.key = &key;
            }
            other => unreachable!("{other:?} names no queue"),
        }
        let to = match reply_to::address(name) {
            Some(address) => self.shard_of_address(address),
            None if name == reply_to::QUEUE => me,
            None => shard_of(name, shards),
        };
        if to == me {
            return self.run_synchronous(slot, number, &method, now);
        }
        let mut said = Vec::new();
        match method {
            Method::QueueDeclare { .. } => {
                if is_given {
                    Word::Given.put(&mut said, number);
                }
                self.amqp(slot).is_given = false;
            }
            Method::Consume { .. } => {
                let count = self.amqp(slot).channel(number).map_or(0, |it| it.prefetch);
                let prefetch = Method::Qos {
                    bytes: 0,
                    count,
                    global: false,
                };
                forward::method(&mut said, number, &prefetch);
            }
            _ => {}
        }
        forward::method(&mut said, number, &method);
        let outcome = self.ask_part(slot, number, to, &said);
        if self.front(slot).is_answered {
            match method {
                Method::QueueDeclare { .. } => {
                    if let Some(channel) = self.amqp(slot).channel(number) {
                        channel.last_queue = name.into();
                    }
                }
                Method::Consume { tag, .. } => {
                    _ = self.relay(slot, number).consumers.insert(tag.into(), to);
                }
                _ => {}
            }
        }
        outcome
    }

    /// `basic.recover`
    fn recover_at_parts(&mut self, slot: usize, number: u16, requeue: bool, now: Now) -> Outcome {
        if !requeue {
            let text = "basic.recover with requeue=false is not offered";
            return Err(connection_fault(code::NOT_IMPLEMENTED, text));
        }
        let said = Said {
            tag: 0,
            multiple: true,
            requeue: Some(true),
        };
        self.settle_at_parts(slot, number, said, now)
    }

    /// `basic.qos` with global: the parts ask before they make a delivery.
    fn limit_channel(&mut self, slot: usize, number: u16, count: u16) -> Outcome {
        let relay = self.relay(slot, number);
        let was_limited = relay.is_limited();
        relay.set_limit(count);
        if was_limited != (count > 0) || count > 0 {
            let mut said = Vec::new();
            Word::Limit(count > 0).put(&mut said, number);
            let parts = self.relay(slot, number).open_at.clone();
            for to in parts {
                self.post_unanswered(slot, to, &[&said]);
            }
            self.limit_part(slot, number, count > 0);
        }
        self.say_on(slot, number, id::BASIC_QOS_OK).end();
        Ok(())
    }

    // --- Transactions ---

    /// `tx.commit`: each shard does its part as one record of its log.
    fn commit_at_parts(&mut self, slot: usize, number: u16, now: Now) -> Outcome {
        if !self.is_tx(slot, number) {
            return self.run_synchronous(slot, number, &Method::TxCommit, now);
        }
        while let Some(said) = self.relay(slot, number).said.first().copied() {
            self.settle_at_parts(slot, number, said, now)?;
            self.relay(slot, number).said.remove(0);
        }
        let parts: Vec<u32> = self.relay(slot, number).tx_at.iter().copied().collect();
        if !parts.is_empty() {
            if !self.has_room_to(slot, &parts) {
                return Err(Fault::Again);
            }
            self.relay(slot, number).tx_at.clear();
            // What is stored elsewhere is reported, and what this shard stores is reported then.
            self.relay(slot, number).commit();
            for to in parts {
                let mut said = Vec::new();
                forward::method(&mut said, number, &Method::TxCommit);
                self.post_answered(slot, to, said);
            }
            self.awaits_answers(slot);
            return Err(Fault::Again);
        }
        self.relay(slot, number).commit();
        if !self.relay(slot, number).is_committed {
            self.commit_ops(slot, number, now)?;
            self.relay(slot, number).is_committed = true;
            // What is returned to the publisher stands before the answer.
            let mut parts = self.relay(slot, number).open_at.clone();
            parts.insert(self.shards().1);
            self.front(slot).unsettled.append(&mut parts);
            if self.settle_parts(slot) {
                return Err(Fault::Again);
            }
        }
        self.relay(slot, number).is_committed = false;
        self.say_committed(slot, number);
        Ok(())
    }

    // --- Publishes ---

    /// The other shards that a publish goes to, and whether this one has a part in it.
    fn shards_of_publish(
        &mut self,
        exchange: Option<ExchangeKey>,
        key: &[u8],
        found: &Properties<'_>,
    ) -> (Vec<u32>, bool) {
        let (shards, me) = self.shards();
        let owner = match reply_to::address(key) {
            _ if exchange.is_some() => None,
            Some(address) => Some(self.shard_of_address(address)),
            None if found.headers.is_none() => Some(shard_of(key, shards)),
            None => None,
        };
        if let Some(owner) = owner {
            return match owner == me {
                true => (Vec::new(), true),
                false => (vec![owner], false),
            };
        }
        let headers = found.headers.unwrap_or_default();
        let mut reached = Reached::default();
        self.engine.reach(exchange, key, headers, &mut reached);
        if found.headers.is_some() {
            self.reach_copies(exchange, headers, &mut reached);
        }
        let is_here = !reached.queues.is_empty() || !reached.receivers.is_empty();
        (reached.shards, is_here)
    }

    /// Publishes a message at all shards that have a queue for it.
    pub(super) fn publish_at_parts(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        properties: &[u8],
        body: &Body<'_>,
        now: Now,
    ) -> Outcome {
        let (_, me) = self.shards();
        if self.is_draining() {
            return Err(connection_fault(
                code::CONNECTION_FORCED,
                "the broker is going down",
            ));
        }
        let found = self.check_properties(slot, publish, properties)?;
        let exchange = self.exchange_to_publish(publish.exchange)?;
        let (others, is_here) = self.shards_of_publish(exchange, publish.key, &found);
        if !others.is_empty() && !self.has_room_to(slot, &others) {
            return Err(Fault::Again);
        }
        let is_request = found.reply_to == Some(reply_to::QUEUE);
        if is_request && !others.is_empty() {
            self.answer_address(slot, number)?;
        }
        let is_tx = self.is_tx(slot, number);
        let mut asked = others.clone();
        if is_here || others.is_empty() {
            match is_tx {
                true => self.queue_publish(slot, number, publish, properties, owned(body))?,
                false => self.publish_here(slot, number, publish, properties, body, now)?,
            }
            asked.push(me);
            self.front(slot).unsettled.insert(me);
        }
        if !others.is_empty() {
            let mut said = Vec::with_capacity(body.as_slice().len() + properties.len() + 128);
            forward::publish(&mut said, number, publish, properties, body.as_slice());
            for to in others {
                if is_request {
                    self.tell_answers(slot, number, to);
                }
                self.tell_part(slot, number, to, &said);
                self.front(slot).unsettled.insert(to);
                if is_tx {
                    self.relay(slot, number).tx_at.insert(to);
                }
            }
        }
        let returnable = publish.mandatory.then(|| {
            Box::new(Returnable {
                exchange: publish.exchange.into(),
                key: publish.key.into(),
                properties: properties.into(),
                body: owned(body),
            })
        });
        let relay = self.relay(slot, number);
        match is_tx {
            true => relay.sent_uncommitted(asked, returnable),
            false => relay.sent(&asked, returnable),
        }
        Ok(())
    }

    /// A part is told where the answers to what it stores go, if it does not know.
    fn tell_answers(&mut self, slot: usize, number: u16, to: u32) {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        let Some((_, secret)) = channel.answers else {
            return;
        };
        let relay = self.relay(slot, number);
        if !relay.answers_at.insert(to) && relay.open_at.contains(&to) {
            return;
        }
        let mut said = Vec::new();
        Word::Answers(secret).put(&mut said, number);
        self.tell_part(slot, number, to, &said);
    }

    // --- What parts have said ---

    /// Does what is to be done about what parts have said.
    pub(in crate::shard) fn heed_parts(&mut self, slot: usize, now: Now) {
        if !self.has_front(slot) {
            return;
        }
        let (_, me) = self.shards();
        for news in std::mem::take(&mut self.front(slot).news) {
            match news {
                News::ChannelClosed { channel, by } => {
                    self.end_channel(slot, channel, now);
                    if let Some(relay) = self.front(slot).relay(channel) {
                        relay.open_at.remove(&by);
                    }
                    let mut said = Vec::new();
                    forward::method(&mut said, channel, &Method::ChannelCloseOk);
                    self.post_unanswered(slot, by, &[&said]);
                    self.close_at_parts(slot, channel, false);
                }
                News::Allow {
                    channel,
                    shard,
                    count,
                } if shard == me => self.allow_part(slot, channel, count),
                News::Allow {
                    channel,
                    shard,
                    count,
                } => {
                    let mut said = Vec::new();
                    Word::Allow(count).put(&mut said, channel);
                    self.post_unanswered(slot, shard, &[&said]);
                }
            }
        }
        let amqp = self.amqp(slot);
        if amqp.is_over() && amqp.phase == Phase::Closed {
            self.conns[slot].life = Life::Closing;
        }
    }
}

/// The body in memory of its own.
fn owned(body: &Body<'_>) -> Bytes {
    match body {
        Body::Borrowed(octets) => Bytes::copy_from_slice(octets),
        Body::Owned(bytes) => bytes.clone(),
    }
}
