//! Messages out: consumers, gets, and how a delivery is written.

use super::{
    Channel, Consumer, Fault, Outcome, cancel, channel_fault, connection_fault, consumer_tag,
    reply_to, shown, split_tag,
};
use crate::broker::command::Typed;
use crate::broker::exchanges::FLAG_EXCLUSIVE;
use crate::broker::headers::{self, Value};
use crate::broker::queue::{QueueKey, WaiterKey};
use crate::broker::reply::Payload;
use crate::buffer::send::Pool;
use crate::log::disk::Storage;
use crate::log::{SectionKind, Sections};
use crate::protocol::amqp::content::Kept;
use crate::protocol::amqp::encode::{self, Deliver};
use crate::protocol::amqp::method::{Method, id};
use crate::protocol::amqp::{code, table};
use crate::shard::conn::Conn;
use crate::shard::deaths;
use crate::shard::door::Session;
use crate::shard::drain::draining;
use crate::shard::hand_out::{Shown, Stopped, hand_out};
use crate::shard::waiters::{FOREVER_US, Terms};
use crate::shard::{Now, Shard};

impl<S: Storage> Shard<S> {
    /// How a message goes to a consumer, or to who gets one: leased by the connection without a deadline, or settled.
    fn amqp_terms(&self, slot: usize, no_ack: bool) -> Terms {
        Terms {
            holder: self.conns[slot].holder,
            lease_us: Some(FOREVER_US),
            ack_auto: no_ack,
            timestamps: false,
            hold: false,
            from_tail: false,
        }
    }

    /// The name that a method means: where it names none, the queue that the channel declared last.
    pub(super) fn queue_name(
        &mut self,
        slot: usize,
        number: u16,
        name: &[u8],
    ) -> Result<Box<[u8]>, Fault> {
        if !name.is_empty() {
            return Ok(name.into());
        }
        let channel = self.amqp(slot).channel(number).expect("it is open");
        match channel.last_queue.is_empty() {
            true => Err(channel_fault(
                code::NOT_FOUND,
                "no queue is named, and none was declared on this channel",
            )),
            false => Ok(channel.last_queue.clone()),
        }
    }

    /// The queue of that name, if this connection may use it.
    pub(super) fn usable_queue(&mut self, slot: usize, name: &[u8]) -> Result<QueueKey, Fault> {
        let Some(key) = self.engine.find(name) else {
            return Err(no_queue(name));
        };
        self.check_lock(slot, key)?;
        Ok(key)
    }

    /// Refuses a queue that belongs to another connection.
    pub(super) fn check_lock(&mut self, slot: usize, key: QueueKey) -> Outcome {
        let queue = self.engine.queue(key);
        let is_exclusive = queue
            .declared
            .as_ref()
            .is_some_and(|declared| declared.is(FLAG_EXCLUSIVE));
        if is_exclusive {
            let uid = queue.uid;
            let name = queue.name.clone();
            if !self.amqp(slot).exclusive.contains(&uid) {
                let text = format!(
                    "queue '{}' in vhost '/' belongs to another connection",
                    shown(&name)
                );
                return Err(channel_fault(code::RESOURCE_LOCKED, text));
            }
        }
        Ok(())
    }

    /// The queue is read by its bare name from now on.
    fn begin_to_read(&mut self, key: QueueKey) -> Outcome {
        if self.is_draining() {
            return Err(connection_fault(code::CONNECTION_FORCED, draining().text));
        }
        let queue = self.engine.queue(key);
        if !queue.begun {
            if queue.is_absent() {
                let text = format!("queue '{}' is read by groups only", shown(&queue.name));
                return Err(channel_fault(code::PRECONDITION_FAILED, text));
            }
            self.engine.begin_bare(key);
        }
        Ok(())
    }

    /// `basic.qos`
    pub(super) fn set_prefetch(
        &mut self,
        slot: usize,
        number: u16,
        bytes: u32,
        count: u16,
        global: bool,
    ) -> Outcome {
        if bytes != 0 {
            let text = "basic.qos with prefetch_size is not offered";
            return Err(connection_fault(code::NOT_IMPLEMENTED, text));
        }
        let channel = self.amqp(slot).channel(number).expect("it is open");
        match global {
            true => {
                channel.prefetch_all = count;
                self.line_up_channel(slot, number);
            }
            false => channel.prefetch = count,
        }
        self.say_on(slot, number, id::BASIC_QOS_OK).end();
        Ok(())
    }

    /// `basic.consume`
    pub(super) fn begin_consumer(
        &mut self,
        slot: usize,
        number: u16,
        method: &Method<'_>,
        now: Now,
    ) -> Outcome {
        let Method::Consume {
            queue,
            tag,
            no_ack,
            exclusive,
            nowait,
            arguments,
            ..
        } = *method
        else {
            unreachable!("it is a basic.consume");
        };
        if headers::find(arguments, b"x-stream-offset").is_some() {
            let text = "x-stream-offset of a consumer is not offered";
            return Err(connection_fault(code::NOT_IMPLEMENTED, text));
        }
        let priority = consumer_priority(arguments)?;
        let name = self.queue_name(slot, number, queue)?;
        let tag: Box<[u8]> = match tag {
            b"" => self.amqp.next_name("amq.ctag-").into(),
            tag => tag.into(),
        };
        let channel = self.amqp(slot).channel(number).expect("it is open");
        if channel.consumers.contains_key(&tag) {
            let text = format!("there is a consumer '{}' on this channel", shown(&tag));
            return Err(connection_fault(code::NOT_ALLOWED, text));
        }
        if *name == *reply_to::QUEUE {
            return self.take_answers(slot, number, &tag, no_ack, nowait);
        }
        let key = self.usable_queue(slot, &name)?;
        self.check_exclusive(key, exclusive, &name)?;
        self.begin_to_read(key)?;
        let prefetch = self.amqp(slot).channel(number).map_or(0, |it| it.prefetch);
        let credit = match prefetch {
            0 => u32::MAX,
            prefetch => u32::from(prefetch),
        };
        let terms = self.amqp_terms(slot, no_ack);
        if !nowait {
            self.say_on(slot, number, id::BASIC_CONSUME_OK)
                .shortstr(&tag)
                .end();
        }
        let at = self.key(slot);
        let name = consumer_tag(number, &tag);
        let waiter = self.begin_subscription(at, &name, key, credit, priority, terms);
        let uid = self.engine.queue(key).uid;
        self.amqp.used(uid, now);
        let channel = self.amqp(slot).channel(number).expect("it is open");
        channel.consumers.insert(tag, Consumer { waiter });
        if exclusive {
            self.amqp.exclusive_consumers.insert(uid, waiter);
        }
        Ok(())
    }

    fn check_exclusive(&mut self, key: QueueKey, exclusive: bool, name: &[u8]) -> Outcome {
        let queue = self.engine.queue(key);
        let has_exclusive = self.amqp.exclusive_consumers.contains_key(&queue.uid);
        if has_exclusive || (exclusive && queue.consumers > 0) {
            let text = format!(
                "queue '{}' in vhost '/' has a consumer, and one of both wants it for itself",
                shown(name)
            );
            return Err(channel_fault(code::ACCESS_REFUSED, text));
        }
        Ok(())
    }

    /// `basic.cancel`
    pub(super) fn cancel_consumer(
        &mut self,
        slot: usize,
        number: u16,
        tag: &[u8],
        nowait: bool,
        now: Now,
    ) -> Outcome {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        if channel
            .answers
            .as_ref()
            .is_some_and(|(name, _)| **name == *tag)
        {
            channel.answers = None;
            channel.consumers.remove(tag);
        } else if let Some(consumer) = channel.consumers.get(tag) {
            let waiter = consumer.waiter;
            self.end_consumer(waiter, now);
            self.drop_unused(now);
        }
        if !nowait {
            self.say_on(slot, number, id::BASIC_CANCEL_OK)
                .shortstr(tag)
                .end();
        }
        Ok(())
    }

    /// A consumer ends; what it has not settled stays with its channel.
    pub(super) fn end_consumer(&mut self, waiter: WaiterKey, now: Now) {
        if waiter == reply_to::NO_WAITER {
            return;
        }
        if let Some(subscription) = self.waiters.subscription(waiter) {
            let uid = self.engine.queue(subscription.queue).uid;
            self.amqp.used(uid, now);
        }
        self.unsubscribe(waiter);
    }

    /// A queue goes: consumers of this protocol end with it, and are told.
    pub(in crate::shard) fn cancel_consumers_of(&mut self, key: QueueKey) {
        let consumers: Vec<_> = self
            .waiters
            .slab
            .iter()
            .filter_map(|(place, waiter)| {
                let subscription = waiter.subscription()?;
                let waiter = WaiterKey(place as u32);
                (subscription.queue == key)
                    .then(|| (waiter, subscription.conn, subscription.tag.clone()))
            })
            .collect();
        for (waiter, conn, tag) in consumers {
            let Some(slot) = self.slot(conn) else {
                continue;
            };
            let Some(amqp) = self.conns[slot].amqp() else {
                continue;
            };
            let understands = amqp.understands.cancel;
            self.unsubscribe(waiter);
            if let Some((channel, name)) = split_tag(&tag)
                && understands
            {
                cancel(self.conns[slot].out.writer(&mut self.pool), channel, name);
                self.mark_dirty(slot);
            }
        }
    }

    /// Consumers of a channel may have more again.
    pub(super) fn line_up_channel(&mut self, slot: usize, number: u16) {
        let Some(channel) = self.amqp(slot).channel(number) else {
            return;
        };
        let waiters: Vec<_> = channel.consumers.values().map(|it| it.waiter).collect();
        for waiter in waiters {
            self.line_up(waiter);
        }
    }

    /// `basic.get`
    pub(super) fn get(
        &mut self,
        slot: usize,
        number: u16,
        queue: &[u8],
        no_ack: bool,
        now: Now,
    ) -> Outcome {
        let name = self.queue_name(slot, number, queue)?;
        let key = self.usable_queue(slot, &name)?;
        if self
            .amqp
            .exclusive_consumers
            .contains_key(&self.engine.queue(key).uid)
        {
            let text = format!("queue '{}' in vhost '/' has one consumer", shown(&name));
            return Err(channel_fault(code::ACCESS_REFUSED, text));
        }
        self.begin_to_read(key)?;
        let uid = self.engine.queue(key).uid;
        self.amqp.used(uid, now);
        // Those who wait came before.
        if !self.engine.queue(key).waiters.is_empty() {
            self.dispatch(key, now);
        }
        if self.engine.queue(key).settings.single && !self.may_consume(key, self.key(slot)) {
            // Another connection is the one that consumes.
            return self.say_empty(slot, number);
        }
        let terms = self.amqp_terms(slot, no_ack);
        self.amqp(slot).is_getting = true;
        let given = hand_out(
            &mut self.engine,
            &mut self.conns[slot],
            &mut self.pool,
            key,
            &terms,
            &consumer_tag(number, b""),
            1,
            u64::MAX,
            usize::MAX,
            now,
        );
        self.amqp(slot).is_getting = false;
        match (given.count, given.stopped) {
            (1, _) => {
                let left = self.engine.queue(key).ready();
                let left = u32::try_from(left).unwrap_or(u32::MAX);
                self.conns[slot].write_got(&mut self.pool, left);
                Ok(())
            }
            (_, Stopped::Cold) => {
                self.block_cold(slot);
                Err(Fault::Again)
            }
            _ => self.say_empty(slot, number),
        }
    }

    /// There is nothing to get.
    fn say_empty(&mut self, slot: usize, number: u16) -> Outcome {
        self.say_on(slot, number, id::BASIC_GET_EMPTY)
            .shortstr(b"")
            .end();
        Ok(())
    }
}

/// What a consumer's arguments say of its priority; 0 if they say nothing.
fn consumer_priority(arguments: &[u8]) -> Result<i32, Fault> {
    const NAME: &[u8] = b"x-priority";
    // A time is a number too, and none that means a priority.
    let is_time = table::find(arguments, NAME).is_some_and(|value| value.first() == Some(&b'T'));
    match headers::find(arguments, NAME) {
        None => Ok(0),
        Some(Value::Signed(number)) => Ok(number.clamp(i32::MIN.into(), i32::MAX.into()) as i32),
        Some(Value::Unsigned(number)) if !is_time => Ok(number.min(i32::MAX as u64) as i32),
        Some(_) => Err(channel_fault(
            code::PRECONDITION_FAILED,
            "x-priority of a consumer is no number",
        )),
    }
}

/// There is no queue of that name.
pub(super) fn no_queue(name: &[u8]) -> Fault {
    let text = format!("there is no queue '{}' in vhost '/'", shown(name));
    channel_fault(code::NOT_FOUND, text)
}

impl Conn {
    /// Writes one message for a consumer of this protocol.
    #[inline(never)]
    pub fn deliver_amqp(
        &mut self,
        pool: &mut Pool,
        tag: &[u8],
        shown: &Shown<'_>,
        sections: Sections<'_>,
        body: &Payload<'_>,
    ) {
        let Session::Amqp(amqp) = &mut self.session else {
            return;
        };
        let Some((number, name)) = split_tag(tag) else {
            return;
        };
        let (frame_bytes_max, is_getting) = (amqp.frame_bytes_max, amqp.is_getting);
        let is_part = amqp.is_part;
        let Some(channel) = amqp.channel(number) else {
            return;
        };
        let (serial, id) = shown.handle.map_or((0, shown.id), |it| (it.serial, it.id));
        let mut tag = channel.delivered(serial, id);
        if is_part {
            channel.made(serial, is_getting);
            tag = Channel::part_tag(tag, serial);
        }
        let mut queue_name = Vec::new();
        let queue = Typed(shown.source).decoded(&mut queue_name);
        let (mut kept, mut source) = (Kept::default(), (&b""[..], queue));
        let mut told = Vec::new();
        if !sections.is_empty() {
            source = deaths::source(sections, queue);
            kept.properties = sections.get(SectionKind::Props).unwrap_or_default();
            kept.headers[0] = sections.get(SectionKind::Headers).unwrap_or_default();
            kept.reply_to = sections.get(SectionKind::Reply);
            if let Some(trace) = sections.get(SectionKind::Trace) {
                told.extend_from_slice(trace);
            }
        }
        if shown.tries > 1 {
            table::put_number(&mut told, b"x-delivery-count", u64::from(shown.tries) - 1);
        }
        kept.headers[1] = &told;
        let deliver = Deliver {
            consumer: name,
            tag,
            redelivered: shown.tries > 1,
            exchange: source.0,
            key: source.1,
        };
        let out = self.out.writer(pool);
        if is_getting {
            // How many are left is known when it has been taken.
            deliver.put_got(out, number, 0);
            amqp.got_end = out.len();
        } else {
            deliver.put(out, number);
        }
        encode::content(&mut self.out, pool, number, &kept, body, frame_bytes_max);
    }

    /// Writes into the answer to a get how many messages are left.
    fn write_got(&mut self, pool: &mut Pool, left: u32) {
        let Session::Amqp(amqp) = &self.session else {
            return;
        };
        // The number stands at the end of the method, before the frame's.
        let end = amqp.got_end - 1;
        let out = self.out.writer(pool);
        out[end - 4..end].copy_from_slice(&left.to_be_bytes());
    }
}
