//! Answers that are never stored: a client consumes from a queue that is none, publishes its requests with
//! that name as `reply_to`, and what is published to the address that stands there instead goes straight to
//! the channel. Nobody else can guess an address.

use super::{Channel, Consumer, Fault, Outcome, channel_fault, shown};
use crate::broker::command::Body;
use crate::broker::queue::WaiterKey;
use crate::log::disk::Storage;
use crate::protocol::amqp::code;
use crate::protocol::amqp::content::Properties;
use crate::protocol::amqp::encode::{self, Deliver};
use crate::protocol::amqp::method::{Publish, id};
use crate::shard::{ConnKey, Shard};

/// The queue that is none.
pub const QUEUE: &[u8] = b"amq.rabbitmq.reply-to";

/// A consumer that has no place in the shard's slab.
pub(super) const NO_WAITER: WaiterKey = WaiterKey(u32::MAX);

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    shard: u32,
    conn: ConnKey,
    channel: u16,
    secret: u64,
}

/// The address that a routing key is, if it is one.
pub fn address(key: &[u8]) -> Option<Address> {
    let rest = key.strip_prefix(QUEUE)?.strip_prefix(b".")?;
    let text = std::str::from_utf8(rest).ok()?;
    let mut parts = text.split('.');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (shard, slot, generation) = (number()?, number()?, number()?);
    let (channel, secret) = (number()?, number()?);
    let address = Address {
        shard: u32::try_from(shard).ok()?,
        conn: ConnKey {
            slot: u32::try_from(slot).ok()?,
            generation: u32::try_from(generation).ok()?,
        },
        channel: u16::try_from(channel).ok()?,
        secret,
    };
    parts.next().is_none().then_some(address)
}

impl Address {
    fn print(&self) -> Vec<u8> {
        let Address {
            shard,
            conn,
            channel,
            secret,
        } = self;
        format!(
            "{}.{shard:x}.{:x}.{:x}.{channel:x}.{secret:x}",
            shown(QUEUE),
            conn.slot,
            conn.generation
        )
        .into_bytes()
    }
}

impl<S: Storage> Shard<S> {
    /// The shard that an address is of; this one if there is no such shard.
    pub(super) fn shard_of_address(&self, address: Address) -> u32 {
        let (shards, me) = self.shards();
        match address.shard < shards {
            true => address.shard,
            false => me,
        }
    }

    /// A consumer of answers begins on a channel.
    pub(super) fn take_answers(
        &mut self,
        slot: usize,
        number: u16,
        name: &[u8],
        no_ack: bool,
        nowait: bool,
    ) -> Outcome {
        if !no_ack {
            let text = "answers are consumed with no_ack=true, since they are not stored";
            return Err(channel_fault(code::PRECONDITION_FAILED, text));
        }
        let secret = self.amqp.next_secret();
        if let Some(relay) = self
            .amqp(slot)
            .front
            .as_mut()
            .and_then(|it| it.relay(number))
        {
            relay.answers_at.clear();
        }
        let channel = self.amqp(slot).channel(number).expect("it is open");
        if channel.answers.is_some() {
            let text = "the channel has a consumer of answers already";
            return Err(channel_fault(code::PRECONDITION_FAILED, text));
        }
        channel.answers = Some((name.into(), secret));
        channel
            .consumers
            .insert(name.into(), Consumer { waiter: NO_WAITER });
        if !nowait {
            self.say_on(slot, number, id::BASIC_CONSUME_OK)
                .shortstr(name)
                .end();
        }
        Ok(())
    }

    /// The address that requests of a channel get.
    pub(super) fn answer_address(&mut self, slot: usize, number: u16) -> Result<Vec<u8>, Fault> {
        // Where the client is, whose part this may be.
        let (shard, conn) = match &self.conns[slot].guest {
            Some(guest) => guest.home,
            None => (self.shards().1, self.key(slot)),
        };
        let channel = self.amqp(slot).channel(number).expect("it is open");
        let Some((_, secret)) = &channel.answers else {
            let text = format!("nothing on this channel consumes from {}", shown(QUEUE));
            return Err(channel_fault(code::PRECONDITION_FAILED, text));
        };
        let address = Address {
            shard,
            conn,
            channel: number,
            secret: *secret,
        };
        Ok(address.print())
    }

    /// Does somebody take answers there?
    pub(super) fn is_answered_at(&mut self, address: Address) -> bool {
        if address.shard != self.shards().1 {
            return false;
        }
        let slot = self.slot(address.conn);
        let amqp = slot.and_then(|slot| self.conns[slot].amqp());
        let channel = amqp.and_then(|amqp| amqp.channel(address.channel));
        let answers = channel.and_then(|channel| channel.answers.as_ref());
        answers.is_some_and(|(_, secret)| *secret == address.secret)
    }

    /// Gives an answer to the channel that awaits it; false if there is none, or it does not read.
    pub(super) fn give_directly(
        &mut self,
        address: Address,
        publish: &Publish<'_>,
        found: &Properties<'_>,
        body: &Body<'_>,
    ) -> bool {
        if !self.is_answered_at(address) {
            return false;
        }
        let slot = self.slot(address.conn).expect("it was just found");
        if self.conns[slot].out.len() >= self.limits.send_bytes_max {
            return false;
        }
        let amqp = self.amqp(slot);
        let (frame_bytes_max, is_part) = (amqp.frame_bytes_max, amqp.is_part);
        let channel = amqp.channel(address.channel).expect("it was just found");
        let (name, _) = channel.answers.clone().expect("it was just found");
        let mut tag = channel.delivered(0, 0);
        if is_part {
            tag = Channel::part_tag(tag, 0);
        }
        let mut scratch = Vec::new();
        let kept = found.kept(&mut scratch);
        let deliver = Deliver {
            consumer: &name,
            tag,
            redelivered: false,
            exchange: b"",
            key: publish.key,
        };
        let conn = &mut self.conns[slot];
        deliver.put(conn.out.writer(&mut self.pool), address.channel);
        let body = super::publish::payload(body);
        encode::content(
            &mut conn.out,
            &mut self.pool,
            address.channel,
            &kept,
            &body,
            frame_bytes_max,
        );
        self.mark_dirty(slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_printed_and_nothing_else_is() {
        let some = Address {
            shard: 3,
            conn: ConnKey {
                slot: 12,
                generation: 77,
            },
            channel: 513,
            secret: u64::MAX,
        };
        assert_eq!(address(&some.print()), Some(some));
        for other in [
            "amq.rabbitmq.reply-to",
            "amq.rabbitmq.reply-to.",
            "amq.rabbitmq.reply-to.1.2.3.4",
            "amq.rabbitmq.reply-to.1.2.3.4.5.6",
            "amq.rabbitmq.reply-to.0.1.2.x.4",
            "amq.rabbitmq.reply-to.0.1.2.fffff.4",
            "q",
        ] {
            assert_eq!(address(other.as_bytes()), None, "{other}");
        }
    }
}
