//! Messages in: where they go, what is stored beside the body, and what the publisher is told.

use bytes::Bytes;

use super::part::{self, Verdict};
use super::{Confirm, Content, Fault, Mode, Outcome, channel_fault, connection_fault, shown};
use super::{arguments, reply_to, run::not_immediate};
use crate::broker::command::{Body, PublishOptions};
use crate::broker::exchanges::{ExchangeKey, FLAG_INTERNAL};
use crate::broker::id::Level;
use crate::broker::queue::QueueKey;
use crate::broker::reply::{ErrorCode, Payload};
use crate::broker::settings::WhenFull;
use crate::buffer::bodies;
use crate::buffer::send::{Pool, SendRing};
use crate::fault::{Fault as Planted, planted};
use crate::log::disk::Storage;
use crate::log::{SectionKind, SectionsBuilder};
use crate::protocol::amqp::content::Properties;
use crate::protocol::amqp::method::{Publish, id};
use crate::protocol::amqp::{code, encode, table};
use crate::shard::conn::Need;
use crate::shard::deaths;
use crate::shard::engine::{Burial, Reached, Refused};
use crate::shard::{Now, Shard};

/// Bodies from this size have memory of their own, bytes.
const OWN_BYTES_MIN: usize = 16 << 10;

/// What became of a message.
enum Fate {
    /// It is stored, or nobody wanted it; safe when that is met.
    Taken(Need),
    /// A queue refused it.
    Refused,
}

impl<S: Storage> Shard<S> {
    /// Publishes a message that lies in the input.
    #[inline]
    pub(super) fn publish_message(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        properties: &[u8],
        body: &[u8],
        now: Now,
    ) -> Outcome {
        let body = match body.len() {
            0..OWN_BYTES_MIN => Body::Borrowed(body),
            _ => Body::Owned(Bytes::copy_from_slice(body)),
        };
        self.publish_any(slot, number, publish, properties, &body, now)
    }

    /// Publishes a message that came in pieces, or queues it until the channel's commit.
    pub(super) fn publish_content(
        &mut self,
        slot: usize,
        number: u16,
        content: &mut Content,
        now: Now,
    ) -> Outcome {
        let is_tx = |mode: &Mode| matches!(mode, Mode::Tx(_));
        let channel = self.amqp(slot).channel(number);
        let is_tx = channel.is_some_and(|channel| is_tx(&channel.mode));
        let publish = Publish {
            exchange: &content.exchange,
            key: &content.key,
            mandatory: content.mandatory,
            immediate: false,
        };
        if is_tx && !self.has_front(slot) {
            let body = bodies::share(std::mem::take(&mut content.body));
            return self.queue_publish(slot, number, &publish, &content.properties, body);
        }
        if content.body.len() < OWN_BYTES_MIN {
            let body = Body::Borrowed(&content.body);
            return self.publish_any(slot, number, &publish, &content.properties, &body, now);
        }
        let bytes = bodies::share(std::mem::take(&mut content.body));
        let body = Body::Owned(bytes.clone());
        let outcome = self.publish_any(slot, number, &publish, &content.properties, &body, now);
        drop(body);
        if let Err(Fault::Again) = outcome {
            content.body = bytes.into();
        }
        outcome
    }

    /// The exchange that a publish names; `None` is the default one.
    pub(super) fn exchange_to_publish(&self, name: &[u8]) -> Result<Option<ExchangeKey>, Fault> {
        if name.is_empty() {
            return Ok(None);
        }
        let Some(exchange) = self.engine.exchanges.find(name) else {
            let text = format!("there is no exchange '{}' in vhost '/'", shown(name));
            return Err(channel_fault(code::NOT_FOUND, text));
        };
        if self.engine.exchanges.get(exchange).flags & FLAG_INTERNAL != 0 {
            let text = format!("exchange '{}' in vhost '/' is internal", shown(name));
            return Err(channel_fault(code::ACCESS_REFUSED, text));
        }
        Ok(Some(exchange))
    }

    /// Reads the properties of a publish and refuses what cannot be.
    pub(super) fn check_properties<'a>(
        &mut self,
        slot: usize,
        publish: &Publish<'_>,
        properties: &'a [u8],
    ) -> Result<Properties<'a>, Fault> {
        if publish.immediate {
            return Err(not_immediate());
        }
        let Ok(found) = Properties::decode(properties) else {
            let text = "the message's properties make no sense";
            return Err(connection_fault(code::SYNTAX_ERROR, text));
        };
        if found.ttl_ms().is_err() {
            let text = "expiration is no number of milliseconds";
            return Err(channel_fault(code::PRECONDITION_FAILED, text));
        }
        if let Some(user) = found.user_id
            && *user != *self.amqp(slot).user
        {
            let text = format!("user_id is '{}', not the connection's user", shown(user));
            return Err(channel_fault(code::PRECONDITION_FAILED, text));
        }
        Ok(found)
    }

    #[inline]
    pub(super) fn publish_any(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        properties: &[u8],
        body: &Body<'_>,
        now: Now,
    ) -> Outcome {
        if self.has_front(slot) {
            return self.publish_at_parts(slot, number, publish, properties, body, now);
        }
        self.publish_here(slot, number, publish, properties, body, now)
    }

    /// The same at this shard.
    #[inline]
    pub(super) fn publish_here(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        properties: &[u8],
        body: &Body<'_>,
        now: Now,
    ) -> Outcome {
        if self.is_draining() {
            let text = "the broker is going down";
            return Err(connection_fault(code::CONNECTION_FORCED, text));
        }
        let found = self.check_properties(slot, publish, properties)?;
        let exchange = self.exchange_to_publish(publish.exchange)?;
        if exchange.is_none()
            && let Some(address) = reply_to::address(publish.key)
        {
            let is_given = self.give_directly(address, publish, &found, body);
            return self.conclude_publish(slot, number, publish, &found, body, is_given);
        }
        let amqp = self.amqp(slot);
        let mut reached = std::mem::take(&mut amqp.reached);
        let mut sections = std::mem::take(&mut amqp.sections);
        let outcome = match self.build_message(slot, number, publish, &found, &mut sections) {
            Ok(()) => self.store(
                slot,
                number,
                exchange,
                publish.key,
                &found,
                &sections,
                body,
                &mut reached,
                now,
            ),
            Err(fault) => Err(fault),
        };
        let is_routed = !reached.queues.is_empty() || !reached.receivers.is_empty();
        let amqp = self.amqp(slot);
        amqp.reached = reached;
        amqp.sections = sections;
        match outcome? {
            Fate::Taken(_) if !is_routed && self.amqp(slot).is_part => {
                let amqp = self.amqp(slot);
                amqp.report_later(number, Verdict::Unrouted, Need::NOW);
            }
            Fate::Taken(need) => {
                if !is_routed && publish.mandatory {
                    self.give_back_unrouted(slot, number, publish, &found, body);
                }
                self.confirm(slot, number, need);
            }
            Fate::Refused => self.refuse_message(slot, number),
        }
        Ok(())
    }

    /// Encodes what is stored beside the body.
    #[inline]
    fn build_message(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        found: &Properties<'_>,
        sections: &mut Vec<u8>,
    ) -> Outcome {
        sections.clear();
        let mut builder = SectionsBuilder::new(sections);
        let has_copies = found.headers.is_some_and(|headers| {
            [&b"CC"[..], b"BCC"]
                .iter()
                .any(|name| table::find(headers, name).is_some())
        });
        // By the default exchange a message goes to the queue of its key, which need not be kept.
        if !publish.exchange.is_empty() || has_copies {
            deaths::put_source(&mut builder, publish.exchange, publish.key);
        }
        let amqp = self.amqp(slot);
        let mut octets = std::mem::take(&mut amqp.octets);
        octets.clear();
        let mut reply_to = found.reply_to;
        let own;
        if reply_to == Some(reply_to::QUEUE) {
            own = self.answer_address(slot, number)?;
            found.put_with_reply_to(&mut octets, &own);
            reply_to = Some(&own);
        } else {
            found.put_without_headers(&mut octets);
        }
        // No flags at all are as good as no properties.
        if octets != [0, 0] {
            builder.add(SectionKind::Props, &octets);
        }
        if let Some(headers) = found.headers.filter(|headers| !headers.is_empty()) {
            match table::find(headers, b"BCC") {
                // Nobody sees who else got it.
                Some(_) => {
                    let mut seen = Vec::new();
                    for (name, value) in table::entries(headers).filter(|it| it.0 != b"BCC") {
                        table::put_value(&mut seen, name, value);
                    }
                    builder.headers(&seen);
                }
                None => _ = builder.headers(headers),
            }
        }
        if let Some(reply_to) = reply_to {
            builder.reply(reply_to);
        }
        self.amqp(slot).octets = octets;
        Ok(())
    }

    /// Gives the message to the queues that it reaches.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn store(
        &mut self,
        slot: usize,
        number: u16,
        exchange: Option<ExchangeKey>,
        key: &[u8],
        found: &Properties<'_>,
        sections: &[u8],
        body: &Body<'_>,
        reached: &mut Reached,
        now: Now,
    ) -> Result<Fate, Fault> {
        let headers = found.headers.unwrap_or_default();
        self.engine.reach(exchange, key, headers, reached);
        if found.headers.is_some() {
            self.reach_copies(exchange, headers, reached);
        }
        let ttl_ms = found.ttl_ms().unwrap_or_default();
        let options = PublishOptions {
            pri: found.priority,
            ttl_us: ttl_ms.map(|ms| ms.saturating_mul(1000)),
            sections,
            within: true,
            is_plain: sections.is_empty() && found.priority.is_none() && ttl_ms.is_none(),
            ..PublishOptions::default()
        };
        let burying = match reached.queues.len() {
            0 | 1 => Vec::new(),
            _ => self.full_that_bury(&reached.queues, body.as_slice().len() as u64),
        };
        if burying.is_empty() {
            return self.store_reached(slot, number, key, &options, body, reached, now);
        }
        let others = reached.queues.iter().copied();
        let others: Vec<_> = others.filter(|queue| !burying.contains(queue)).collect();
        let burials =
            match self.plan_burials(slot, number, &burying, others.len(), &options, body, now)? {
                Ok(burials) => burials,
                Err(fate) => return Ok(fate),
            };
        let all = std::mem::replace(&mut reached.queues, others);
        let fate = self.store_reached(slot, number, key, &options, body, reached, now);
        reached.queues = all;
        let fate = fate?;
        let buried = self.bury_refused(slot, number, &burials, body, now);
        Ok(match (fate, buried) {
            (Fate::Taken(one), Fate::Taken(other)) => {
                Fate::Taken(if one.level > other.level { one } else { other })
            }
            _ => Fate::Refused,
        })
    }

    /// Those of several queues that are full and whose dead letters take what they refuse.
    fn full_that_bury(&mut self, queues: &[QueueKey], body_bytes: u64) -> Vec<QueueKey> {
        let mut found = Vec::new();
        for queue in queues {
            let settings = &self.engine.queue(*queue).settings;
            let is_bounded = settings.maxlen.is_some() || settings.maxbytes.is_some();
            if is_bounded
                && self.buries_refused(*queue)
                && self.engine.is_full_for(*queue, body_bytes)
            {
                found.push(*queue);
            }
        }
        found
    }

    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn store_reached(
        &mut self,
        slot: usize,
        number: u16,
        key: &[u8],
        options: &PublishOptions<'_>,
        body: &Body<'_>,
        reached: &mut Reached,
        now: Now,
    ) -> Result<Fate, Fault> {
        let body_bytes = body.as_slice().len() as u64;
        let stored = match reached.queues[..] {
            [] => Ok(Fate::Taken(Need::NOW)),
            [queue] => {
                let one = std::iter::once(same_body(body));
                let published = self.engine.publish(queue, options, one, 1, body_bytes, now);
                published.map(|receipt| {
                    if receipt.hidden {
                        let need = self.engine.visible_need(queue);
                        self.conns[slot].published.add(need);
                    }
                    Fate::Taken(receipt.need)
                })
            }
            _ => {
                let cast = self.engine.cast(&reached.queues, options, body, now);
                cast.map(|receipt| {
                    if receipt.visible.level != Level::None {
                        self.conns[slot].published.add(receipt.visible);
                    }
                    match receipt.refused {
                        0 => Fate::Taken(receipt.need),
                        _ => Fate::Refused,
                    }
                })
            }
        };
        let fate = match stored {
            Ok(fate) => fate,
            Err(Refused::Cold) => {
                self.block_cold(slot);
                return Err(Fault::Again);
            }
            Err(Refused::Error(error)) => {
                if error.code == ErrorCode::Full
                    && let [queue] = reached.queues[..]
                    && self.buries_refused(queue)
                {
                    let planned =
                        self.plan_burials(slot, number, &[queue], 0, options, body, now)?;
                    let fate = match planned {
                        Ok(burials) => self.bury_refused(slot, number, &burials, body, now),
                        Err(fate) => fate,
                    };
                    return Ok(fate);
                }
                let queues = &reached.queues;
                return self.refused(slot, number, queues, body_bytes, error.code, now);
            }
        };
        if !reached.receivers.is_empty() {
            self.give_live(&reached.receivers, key, options, body, now);
        }
        if self.amqp(slot).is_blocked {
            self.unblock_publisher(slot);
        }
        Ok(fate)
    }

    /// Adds what the keys in the headers `CC` and `BCC` reach.
    pub(super) fn reach_copies(
        &mut self,
        exchange: Option<ExchangeKey>,
        headers: &[u8],
        reached: &mut Reached,
    ) {
        let keys: Vec<&[u8]> = [&b"CC"[..], b"BCC"]
            .into_iter()
            .filter_map(|name| table::inner(table::find(headers, name)?, b'A'))
            .flat_map(table::array_values)
            .filter_map(|value| table::inner(value, b'S'))
            .collect();
        let mut more = Reached::default();
        for key in keys {
            self.engine.reach(exchange, key, headers, &mut more);
            reached.queues.append(&mut more.queues);
            reached.queues.sort_unstable();
            reached.queues.dedup();
            reached.shards.append(&mut more.shards);
            reached.shards.sort_unstable();
            reached.shards.dedup();
        }
    }

    fn buries_refused(&self, queue: QueueKey) -> bool {
        let declared = self.engine.queue(queue).declared.as_ref();
        declared.is_some_and(|declared| arguments::buries_refused(declared))
    }

    /// Makes ready what full queues refuse to go to their dead-letter exchanges, beside a publish to `others` more
    /// queues. Without room for that its fate is told.
    #[allow(clippy::too_many_arguments)]
    fn plan_burials(
        &mut self,
        slot: usize,
        number: u16,
        queues: &[QueueKey],
        others: usize,
        options: &PublishOptions<'_>,
        body: &Body<'_>,
        now: Now,
    ) -> Result<Result<Vec<Burial>, Fate>, Fault> {
        // What is not visible yet cannot make room; then it can.
        if self.wait_for_publishes(slot) {
            return Err(Fault::Again);
        }
        let sections = options.sections;
        let burials: Vec<_> = queues
            .iter()
            .map(|queue| self.engine.plan_burial(*queue, sections, now))
            .collect();
        match self.engine.begin_burials(&burials, others, sections, body) {
            Ok(()) => Ok(Ok(burials)),
            Err(Refused::Cold) => {
                self.block_cold(slot);
                Err(Fault::Again)
            }
            Err(Refused::Error(error)) => {
                let body_bytes = body.as_slice().len() as u64;
                let fate = self.refused(slot, number, queues, body_bytes, error.code, now)?;
                Ok(Err(fate))
            }
        }
    }

    /// Full queues refuse a message, which goes to their dead-letter exchanges. A publisher that awaits confirms
    /// is told; for another it is taken.
    fn bury_refused(
        &mut self,
        slot: usize,
        number: u16,
        burials: &[Burial],
        body: &Body<'_>,
        now: Now,
    ) -> Fate {
        let mut need = Need::NOW;
        for burial in burials {
            let other = self.engine.bury_refused(burial, body, now);
            if other.level > need.level {
                need = other;
            }
        }
        let moved = self.engine.moved;
        self.conns[slot].published.merge(moved);
        self.amqp(slot).dead_below = self.engine.outbox.next_seq();
        match self.amqp(slot).confirms_on(number) {
            true => Fate::Refused,
            false => Fate::Taken(need),
        }
    }

    /// A queue takes no more. A publisher that awaits confirms is told; another waits.
    fn refused(
        &mut self,
        slot: usize,
        number: u16,
        queues: &[QueueKey],
        body_bytes: u64,
        code: ErrorCode,
        now: Now,
    ) -> Result<Fate, Fault> {
        // What is not visible yet cannot make room; then it can.
        if code == ErrorCode::Full && self.wait_for_publishes(slot) {
            return Err(Fault::Again);
        }
        let drops = |key: &QueueKey| {
            let settings = &self.engine.queue(*key).settings;
            settings.full == WhenFull::DropOld && !settings.can_hold(1, body_bytes)
        };
        if code == ErrorCode::Full && queues.iter().all(drops) {
            // It is larger than all that the queue may hold: what makes room is the message itself.
            return Ok(Fate::Taken(Need::NOW));
        }
        if self.amqp(slot).confirms_on(number) {
            return Ok(Fate::Refused);
        }
        if self.gives_up(slot, now) {
            let text = "there was no room for a message until long after the client's end";
            return Err(connection_fault(code::RESOURCE_ERROR, text));
        }
        self.block_publisher(slot, code, now);
        Err(Fault::Again)
    }

    /// A message is safe when that is met: its publisher is told then, if it wants to know.
    #[inline]
    fn confirm(&mut self, slot: usize, number: u16, need: Need) {
        let conn = &mut self.conns[slot];
        let amqp = match &mut conn.session {
            super::super::Session::Amqp(amqp) => amqp,
            _ => return,
        };
        if amqp.is_part {
            amqp.report_later(number, Verdict::Taken, need);
            return self.watch_confirm(slot, need);
        }
        let Some(channel) = amqp.channel(number) else {
            return;
        };
        let Mode::Confirm(next) = &mut channel.mode else {
            return;
        };
        let tag = *next;
        *next += 1;
        match amqp.confirms.back_mut() {
            Some(Confirm::Taken {
                channel,
                last,
                need: other,
                ..
            }) if *channel == number && *other == need => *last = tag,
            _ => amqp.confirms.push_back(Confirm::Taken {
                channel: number,
                first: tag,
                last: tag,
                need,
            }),
        }
        self.watch_confirm(slot, need);
    }

    /// A publisher is to be told something when that is met.
    #[inline]
    fn watch_confirm(&mut self, slot: usize, need: Need) {
        let key = self.key(slot);
        let conn = &mut self.conns[slot];
        if need != Need::NOW && !conn.gate_listed {
            conn.gate_listed = true;
            self.gated.push(key);
        }
    }

    /// A queue refused a message.
    fn refuse_message(&mut self, slot: usize, number: u16) {
        let amqp = self.amqp(slot);
        if amqp.is_part {
            return amqp.report_later(number, Verdict::Refused, Need::NOW);
        }
        let understands = amqp.understands.nack;
        let Some(channel) = amqp.channel(number) else {
            return;
        };
        let Mode::Confirm(next) = &mut channel.mode else {
            return;
        };
        let tag = *next;
        *next += 1;
        if understands {
            amqp.confirms.push_back(Confirm::Refused {
                channel: number,
                tag,
            });
        }
    }

    /// Writes the confirms of messages that have reached their level.
    #[inline]
    pub(in crate::shard) fn flush_confirms(&mut self, slot: usize) {
        let has_any = self.conns[slot].amqp().is_some_and(|it| it.has_confirms());
        if !has_any {
            return;
        }
        while let Some(next) = self.amqp(slot).confirms.front().copied() {
            if let Confirm::Taken { need, .. } = next
                && !self.engine.reached(need)
                && !planted(Planted::ConfirmSentEarly)
            {
                break;
            }
            self.amqp(slot).confirms.pop_front();
            self.give_confirm(slot, next);
        }
        self.mark_dirty(slot);
    }

    /// Writes the first confirms, as long as they are wanted.
    pub(super) fn give_confirms(&mut self, slot: usize, wanted: impl Fn(&Confirm) -> bool) {
        while let Some(next) = self.amqp(slot).confirms.front().copied()
            && wanted(&next)
        {
            self.amqp(slot).confirms.pop_front();
            self.give_confirm(slot, next);
        }
    }

    fn give_confirm(&mut self, slot: usize, confirm: Confirm) {
        let is_part = self.amqp(slot).is_part;
        let out = self.conns[slot].out.writer(&mut self.pool);
        match confirm {
            confirm if is_part => part::report(out, confirm),
            Confirm::Taken {
                channel,
                first,
                last,
                ..
            } => encode::ack(out, channel, last, first != last),
            Confirm::Refused { channel, tag } => encode::nack(out, channel, tag),
            Confirm::Unrouted { .. } => unreachable!("only parts report that"),
        }
    }

    /// `confirm.select`
    pub(super) fn select_confirms(&mut self, slot: usize, number: u16, nowait: bool) -> Outcome {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        match &channel.mode {
            Mode::Tx(_) => {
                let text = "the channel has transactions; it cannot have confirms too";
                return Err(channel_fault(code::PRECONDITION_FAILED, text));
            }
            Mode::Confirm(_) => {}
            Mode::Plain => channel.mode = Mode::Confirm(1),
        }
        if !nowait {
            self.say_on(slot, number, id::CONFIRM_SELECT_OK).end();
        }
        Ok(())
    }

    /// What is left to do for a message that is not stored.
    fn conclude_publish(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        found: &Properties<'_>,
        body: &Body<'_>,
        is_given: bool,
    ) -> Outcome {
        if !is_given && self.amqp(slot).is_part {
            let amqp = self.amqp(slot);
            amqp.report_later(number, Verdict::Unrouted, Need::NOW);
            return Ok(());
        }
        if !is_given && publish.mandatory {
            self.give_back_unrouted(slot, number, publish, found, body);
        }
        self.confirm(slot, number, Need::NOW);
        Ok(())
    }

    /// `basic.return`: no queue takes a mandatory message.
    pub(super) fn give_back_unrouted(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        found: &Properties<'_>,
        body: &Body<'_>,
    ) {
        let frame_bytes_max = self.amqp(slot).frame_bytes_max;
        let out = &mut self.conns[slot].out;
        let to = (publish.exchange, publish.key);
        put_returned(
            out,
            &mut self.pool,
            number,
            to,
            found,
            &payload(body),
            frame_bytes_max,
        );
        self.mark_dirty(slot);
    }
}

/// Writes a `basic.return` of what was published to that exchange with that key.
pub(super) fn put_returned(
    ring: &mut SendRing,
    pool: &mut Pool,
    channel: u16,
    (exchange, key): (&[u8], &[u8]),
    found: &Properties<'_>,
    body: &Payload<'_>,
    frame_bytes_max: u32,
) {
    let mut scratch = Vec::new();
    let kept = found.kept(&mut scratch);
    let text = code::name(code::NO_ROUTE);
    encode::returned(
        ring.writer(pool),
        channel,
        code::NO_ROUTE,
        text,
        exchange,
        key,
    );
    encode::content(ring, pool, channel, &kept, body, frame_bytes_max);
}

/// The body once more, not copied.
pub(super) fn same_body<'a>(body: &'a Body<'_>) -> Body<'a> {
    match body {
        Body::Borrowed(octets) => Body::Borrowed(octets),
        Body::Owned(bytes) => Body::Owned(bytes.clone()),
    }
}

/// The body as it is sent.
pub(super) fn payload<'a>(body: &'a Body<'_>) -> Payload<'a> {
    match body {
        Body::Borrowed(octets) => Payload::Slice(octets),
        Body::Owned(bytes) => Payload::Shared(bytes.clone()),
    }
}
