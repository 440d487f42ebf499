//! Frames and methods, one after another.

use super::{
    Amqp, Channel, Content, Fault, Mode, Outcome, Phase, channel_fault, connection_fault, part,
};
use crate::buffer::bodies;
use crate::fault::{Fault as Planted, planted};
use crate::log::disk::Storage;
use crate::protocol::amqp::code;
use crate::protocol::amqp::content::{BASIC, Header};
use crate::protocol::amqp::frame::{self, Frame, Kind, Step};
use crate::protocol::amqp::method::{Id, Method, MethodError, Publish, id};
use crate::shard::conn::Life;
use crate::shard::{Ending, Now, Shard};

/// A message that lies whole in the input.
struct Whole<'a> {
    properties: &'a [u8],
    body: &'a [u8],
    /// Bytes of its header and body frames.
    used: usize,
}

/// The header and the body that follow a publish, if they lie in the input and the body in one frame.
#[inline]
fn whole_content(input: &[u8], channel: u16, frame_bytes_max: u32) -> Option<Whole<'_>> {
    let Step::Frame(header, header_bytes) = frame::decode(input, frame_bytes_max) else {
        return None;
    };
    if header.kind != Kind::Header || header.channel != channel {
        return None;
    }
    let content = Header::decode(header.payload).ok()?;
    if content.class != BASIC {
        return None;
    }
    if content.body_bytes == 0 {
        return Some(Whole {
            properties: content.properties,
            body: &[],
            used: header_bytes,
        });
    }
    let rest = &input[header_bytes..];
    let Step::Frame(body, body_bytes) = frame::decode(rest, frame_bytes_max) else {
        return None;
    };
    let is_whole = body.kind == Kind::Body
        && body.channel == channel
        && body.payload.len() as u64 == content.body_bytes;
    is_whole.then_some(Whole {
        properties: content.properties,
        body: body.payload,
        used: header_bytes + body_bytes,
    })
}

impl<S: Storage> Shard<S> {
    /// Runs the frames at the front of `input`; returns how many bytes were used up.
    pub(in crate::shard) fn run_amqp(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        let used = self.run_frames(slot, input, now);
        let is_inside = used < input.len();
        if let Some(amqp) = self.conns[slot].amqp() {
            amqp.is_inside = is_inside;
        }
        self.flush_confirms(slot);
        used
    }

    fn run_frames(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        let mut used = 0;
        if self.ending != Ending::No && self.amqp(slot).awaits_end() {
            // Of a client nothing new is taken; it is closed once it is known what became of its publishes.
            return input.len();
        }
        loop {
            let amqp = self.amqp(slot);
            if amqp.phase == Phase::Closed {
                return self.run_closed(slot, input, used);
            }
            if amqp.phase == Phase::Preamble {
                match self.run_preamble(slot, &input[used..]) {
                    Some(bytes) => used += bytes,
                    None => return used,
                }
                continue;
            }
            if !self.may_run(slot, &input[used..]) {
                return used;
            }
            if let Some(channel) = self.amqp(slot).stuck
                && !self.publish_stuck(slot, channel, now)
            {
                return used;
            }
            let frame_bytes_max = self.amqp(slot).received_bytes_max();
            match frame::decode(&input[used..], frame_bytes_max) {
                Step::Incomplete => return used,
                Step::Bad(_) if self.awaits_parts(slot) => return used,
                Step::Bad(why) => {
                    self.close_connection(slot, code::FRAME_ERROR, why, (0, 0), now);
                    return input.len();
                }
                Step::Frame(frame, bytes) => {
                    let rest = &input[used + bytes..];
                    match self.run_frame(slot, &frame, rest, now) {
                        Some(more) => used += bytes + more,
                        None => return used,
                    }
                }
            }
        }
    }

    /// The broker has closed the connection: only the client's word that it has seen it counts.
    fn run_closed(&mut self, slot: usize, input: &[u8], used: usize) -> usize {
        self.conns[slot].life = Life::Closing;
        let _ = used;
        input.len()
    }

    /// Runs one frame; `rest` is what follows it. Returns how many bytes of that were used up too; `None`:
    /// it was not run and comes again.
    #[inline]
    fn run_frame(
        &mut self,
        slot: usize,
        frame: &Frame<'_>,
        rest: &[u8],
        now: Now,
    ) -> Option<usize> {
        let outcome = match frame.kind {
            Kind::Method => return self.run_method_frame(slot, frame, rest, now),
            Kind::Heartbeat if frame.channel == 0 => Ok(()),
            Kind::Heartbeat => Err(connection_fault(
                code::FRAME_ERROR,
                "a heartbeat belongs to no channel",
            )),
            Kind::Header => self.take_header(slot, frame),
            Kind::Body => self.take_body(slot, frame),
        };
        let cause = id::BASIC_PUBLISH;
        match outcome {
            Ok(()) => {
                let is_whole = self
                    .amqp(slot)
                    .channel(frame.channel)
                    .is_some_and(|channel| channel.content.as_ref().is_some_and(Content::is_whole));
                if is_whole && frame.kind != Kind::Heartbeat {
                    self.amqp(slot).stuck = Some(frame.channel);
                    self.publish_stuck(slot, frame.channel, now);
                }
            }
            Err(_) if self.awaits_parts(slot) => return None,
            Err(fault) => {
                let cause = match fault {
                    Fault::Channel(..) => cause,
                    _ => (0, 0),
                };
                self.answer_fault(slot, frame.channel, cause, fault, now);
            }
        }
        Some(0)
    }

    #[inline]
    fn run_method_frame(
        &mut self,
        slot: usize,
        frame: &Frame<'_>,
        rest: &[u8],
        now: Now,
    ) -> Option<usize> {
        let number = frame.channel;
        let is_guest = self.amqp(slot).is_guest;
        if is_guest && part::is_internal(frame.payload) {
            if let Err(fault) = self.heed_word(slot, number, frame.payload) {
                self.answer_fault(slot, number, (0, 0), fault, now);
            }
            return Some(0);
        }
        if self.take_answered(slot) {
            return Some(0);
        }
        let counted = u64::from(!is_guest);
        let (cause, outcome) = match Method::decode(frame.payload) {
            Ok((cause, Method::Publish(publish))) => {
                self.totals.commands += counted;
                match self.run_publish(slot, number, &publish, rest, now) {
                    Ok(more) => return Some(more),
                    Err(fault) => (cause, Err(fault)),
                }
            }
            Ok((cause, method)) => {
                self.totals.commands += counted;
                (cause, self.run_method(slot, number, &method, now))
            }
            Err(MethodError::Unknown(cause)) => {
                let text = format!("method {} of class {} is not offered", cause.1, cause.0);
                (cause, Err(connection_fault(code::NOT_IMPLEMENTED, text)))
            }
            Err(MethodError::Malformed(cause)) => {
                let text = "the method's arguments make no sense";
                let fault = connection_fault(code::SYNTAX_ERROR, text);
                (cause.unwrap_or((0, 0)), Err(fault))
            }
        };
        match outcome {
            Ok(()) => Some(0),
            Err(Fault::Again) => None,
            Err(_) if self.awaits_parts(slot) => None,
            Err(fault) => {
                self.answer_fault(slot, number, cause, fault, now);
                Some(0)
            }
        }
    }

    /// The method itself, of the connection or of a channel.
    #[inline]
    fn run_method(&mut self, slot: usize, number: u16, method: &Method<'_>, now: Now) -> Outcome {
        if number == 0 {
            return self.run_connection(slot, method, now);
        }
        self.check_running(slot)?;
        if let Method::ChannelOpen = method {
            return self.open_channel(slot, number);
        }
        let Some(channel) = self.amqp(slot).channel(number) else {
            // What was sent before the client saw that the channel is closed.
            if matches!(method, Method::ChannelCloseOk) {
                return Ok(());
            }
            return Err(not_open(number));
        };
        if channel.is_closed {
            match method {
                Method::ChannelCloseOk => self.forget_channel(slot, number),
                Method::ChannelClose { .. } => {
                    self.forget_channel(slot, number);
                    self.say_on(slot, number, id::CHANNEL_CLOSE_OK).end();
                }
                _ => {}
            }
            return Ok(());
        }
        if channel.content.is_some() {
            return Err(connection_fault(
                code::UNEXPECTED_FRAME,
                "the rest of a message was expected, not a method",
            ));
        }
        if self.has_front(slot) {
            return self.route_method(slot, number, method, now);
        }
        match method {
            Method::Ack { tag, multiple } => return self.ack_tags(slot, number, *tag, *multiple),
            Method::Reject { tag, requeue } => {
                return self.nack_tags(slot, number, *tag, false, *requeue, now);
            }
            Method::Nack {
                tag,
                multiple,
                requeue,
            } => return self.nack_tags(slot, number, *tag, *multiple, *requeue, now),
            Method::RecoverAsync { requeue } => return self.recover(slot, number, *requeue, now),
            _ => {}
        }
        if method.is_synchronous()
            && !planted(Planted::AnswerBeforePublishes)
            && self.wait_for_own(slot)
        {
            return Err(Fault::Again);
        }
        // Confirms stand before the answer to what came behind the messages.
        self.flush_confirms(slot);
        self.run_synchronous(slot, number, method, now)
    }

    pub(super) fn run_synchronous(
        &mut self,
        slot: usize,
        number: u16,
        method: &Method<'_>,
        now: Now,
    ) -> Outcome {
        match method {
            Method::ExchangeDeclare { .. }
            | Method::ExchangeDelete { .. }
            | Method::ExchangeBind { .. }
            | Method::ExchangeUnbind { .. }
            | Method::QueueDeclare { .. }
            | Method::QueueBind { .. }
            | Method::QueueUnbind { .. }
            | Method::QueuePurge { .. }
            | Method::QueueDelete { .. } => self.run_definition(slot, number, method, now),
            Method::Qos {
                bytes,
                count,
                global,
            } => self.set_prefetch(slot, number, *bytes, *count, *global),
            Method::Consume { .. } => self.begin_consumer(slot, number, method, now),
            Method::Cancel { tag, nowait } => self.cancel_consumer(slot, number, tag, *nowait, now),
            Method::Get { queue, no_ack } => self.get(slot, number, queue, *no_ack, now),
            Method::Recover { requeue } => {
                self.recover(slot, number, *requeue, now)?;
                self.say_on(slot, number, id::BASIC_RECOVER_OK).end();
                Ok(())
            }
            Method::ConfirmSelect { nowait } => self.select_confirms(slot, number, *nowait),
            Method::TxSelect => self.select_tx(slot, number),
            Method::TxCommit => self.commit_tx(slot, number, now),
            Method::TxRollback => self.roll_back_tx(slot, number),
            Method::ChannelFlow { active: true } => {
                self.say_on(slot, number, id::CHANNEL_FLOW_OK)
                    .octet(1)
                    .end();
                Ok(())
            }
            Method::ChannelFlow { active: false } => Err(connection_fault(
                code::NOT_IMPLEMENTED,
                "channel.flow with active=false is not offered; basic.qos limits what is sent",
            )),
            Method::ChannelClose { .. } => {
                self.end_channel(slot, number, now);
                self.amqp(slot).channels[usize::from(number)] = None;
                self.say_on(slot, number, id::CHANNEL_CLOSE_OK).end();
                Ok(())
            }
            Method::AccessRequest => {
                const TICKET: u16 = 1;
                self.say_on(slot, number, id::ACCESS_REQUEST_OK)
                    .short(TICKET)
                    .end();
                Ok(())
            }
            Method::ChannelFlowOk | Method::ChannelCloseOk | Method::CancelOk => Ok(()),
            _ => Err(connection_fault(
                code::COMMAND_INVALID,
                "this method does not belong to a channel",
            )),
        }
    }

    fn check_running(&mut self, slot: usize) -> Outcome {
        match self.amqp(slot).phase {
            Phase::Running => Ok(()),
            _ => Err(connection_fault(
                code::COMMAND_INVALID,
                "the connection is not open yet",
            )),
        }
    }

    fn open_channel(&mut self, slot: usize, number: u16) -> Outcome {
        let amqp = self.amqp(slot);
        if number > amqp.channels_max {
            return Err(connection_fault(
                code::CHANNEL_ERROR,
                "the number of the channel is above what was agreed on",
            ));
        }
        if amqp.channel(number).is_some() {
            return Err(connection_fault(
                code::CHANNEL_ERROR,
                "the channel is open already",
            ));
        }
        let place = usize::from(number);
        if amqp.channels.len() <= place {
            amqp.channels.resize_with(place + 1, || None);
        }
        amqp.channels[place] = Some(Box::new(Channel::new()));
        if let Some(front) = &mut amqp.front {
            front.open(number);
        }
        self.say_on(slot, number, id::CHANNEL_OPEN_OK)
            .longstr(b"")
            .end();
        Ok(())
    }

    /// A channel that is closed on both sides.
    fn forget_channel(&mut self, slot: usize, number: u16) {
        let amqp = self.amqp(slot);
        amqp.channels[usize::from(number)] = None;
        if let Some(front) = &mut amqp.front {
            front.forget(number);
        }
    }

    /// Before it is said why something is refused, it is told what became of what the client has published before.
    fn awaits_parts(&mut self, slot: usize) -> bool {
        self.has_front(slot) && self.settle_parts(slot)
    }

    /// A publish, with its content if that lies in the input.
    #[inline]
    fn run_publish(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        rest: &[u8],
        now: Now,
    ) -> Result<usize, Fault> {
        self.check_running(slot)?;
        let amqp = self.amqp(slot);
        let frame_bytes_max = amqp.received_bytes_max();
        let Some(channel) = amqp.channel(number) else {
            return Err(not_open(number));
        };
        if channel.is_closed {
            return Ok(0);
        }
        if channel.content.is_some() {
            return Err(connection_fault(
                code::UNEXPECTED_FRAME,
                "the rest of a message was expected, not a method",
            ));
        }
        let is_tx = matches!(channel.mode, Mode::Tx(_));
        if !is_tx && let Some(whole) = whole_content(rest, number, frame_bytes_max) {
            self.check_body(whole.body.len() as u64)?;
            self.publish_message(slot, number, publish, whole.properties, whole.body, now)?;
            return Ok(whole.used);
        }
        let channel = self.amqp(slot).channel(number).expect("it was just found");
        channel.content = Some(Content {
            exchange: publish.exchange.into(),
            key: publish.key.into(),
            mandatory: publish.mandatory,
            properties: Vec::new(),
            body_bytes: None,
            body: Vec::new(),
        });
        match publish.immediate {
            true => Err(not_immediate()),
            false => Ok(0),
        }
    }

    fn check_body(&self, body_bytes: u64) -> Outcome {
        if body_bytes > self.limits.body_bytes_max as u64 {
            let most = self.limits.body_bytes_max;
            return Err(channel_fault(
                code::PRECONDITION_FAILED,
                format!("a body of {body_bytes} bytes is larger than the {most} that are taken"),
            ));
        }
        Ok(())
    }

    /// The header of a message.
    fn take_header(&mut self, slot: usize, frame: &Frame<'_>) -> Outcome {
        let Some(channel) = self.amqp(slot).channel(frame.channel) else {
            return Err(not_open(frame.channel));
        };
        if channel.is_closed {
            return Ok(());
        }
        let is_expected = matches!(&channel.content, Some(content) if content.body_bytes.is_none());
        if !is_expected {
            return Err(unexpected("no header was expected"));
        }
        let header = Header::decode(frame.payload);
        let Ok(header) = header else {
            return Err(connection_fault(
                code::SYNTAX_ERROR,
                "the content header is too short",
            ));
        };
        if header.class != BASIC {
            return Err(unexpected("the header is of another class than its method"));
        }
        self.check_body(header.body_bytes)?;
        let channel = self.amqp(slot).channel(frame.channel);
        if let Some(content) = channel.and_then(|channel| channel.content.as_mut()) {
            content.properties = header.properties.to_vec();
            content.body_bytes = Some(header.body_bytes);
            let reserved = (header.body_bytes as usize).min(super::BODY_BYTES_RESERVED);
            match bodies::take(header.body_bytes as usize) {
                Some(mut kept) => {
                    kept.clear();
                    content.body = kept;
                }
                None => content.body.reserve(reserved),
            }
        }
        Ok(())
    }

    /// A piece of a message's body.
    fn take_body(&mut self, slot: usize, frame: &Frame<'_>) -> Outcome {
        let Some(channel) = self.amqp(slot).channel(frame.channel) else {
            return Err(not_open(frame.channel));
        };
        if channel.is_closed {
            return Ok(());
        }
        let Some(Content {
            body,
            body_bytes: Some(body_bytes),
            ..
        }) = &mut channel.content
        else {
            return Err(unexpected("no body was expected"));
        };
        if (body.len() + frame.payload.len()) as u64 > *body_bytes {
            return Err(unexpected("the body is longer than its header says"));
        }
        body.extend_from_slice(frame.payload);
        let most = self.limits.batch_bytes_max;
        let amqp = self.amqp(slot);
        amqp.unfinished_bytes += frame.payload.len();
        if amqp.unfinished_bytes > most {
            return Err(connection_fault(
                code::RESOURCE_ERROR,
                "the channels have begun more messages than are kept; finish some",
            ));
        }
        Ok(())
    }

    /// Publishes the message that came whole on a channel; false if the connection waits.
    fn publish_stuck(&mut self, slot: usize, number: u16, now: Now) -> bool {
        let Some(mut content) = self.amqp(slot).take_content(number) else {
            self.amqp(slot).stuck = None;
            return true;
        };
        match self.publish_content(slot, number, &mut content, now) {
            Err(fault) if matches!(fault, Fault::Again) || self.awaits_parts(slot) => {
                self.amqp(slot).keep_content(number, content);
                false
            }
            outcome => {
                self.amqp(slot).stuck = None;
                if let Err(fault) = outcome {
                    let cause: Id = id::BASIC_PUBLISH;
                    self.answer_fault(slot, number, cause, fault, now);
                }
                true
            }
        }
    }

    /// Every channel ends, as the connection does.
    pub(in crate::shard) fn end_channels(&mut self, slot: usize, now: Now) {
        for number in 0..self.amqp(slot).channels.len() {
            self.end_channel(slot, number as u16, now);
        }
    }

    /// A channel ends: its consumers go, its unacked messages go back, what it has begun is forgotten.
    pub(super) fn end_channel(&mut self, slot: usize, number: u16, now: Now) {
        drop(self.amqp(slot).take_content(number));
        let Some(channel) = self.amqp(slot).channel(number) else {
            return;
        };
        channel.answers = None;
        channel.mode = Mode::Plain;
        let waiters: Vec<_> = channel.consumers.values().map(|it| it.waiter).collect();
        for waiter in waiters {
            self.end_consumer(waiter, now);
        }
        self.return_unacked(slot, number, now);
        if self.amqp(slot).stuck == Some(number) {
            self.amqp(slot).stuck = None;
        }
    }
}

impl Content {
    /// Header and body have come.
    fn is_whole(&self) -> bool {
        self.body_bytes == Some(self.body.len() as u64)
    }
}

impl Amqp {
    /// The size of a frame that is taken: what was agreed on, and anything from a shard.
    fn received_bytes_max(&self) -> u32 {
        match self.is_guest {
            true => u32::MAX,
            false => self.frame_bytes_max,
        }
    }

    /// The channel's publishes are confirmed.
    #[inline]
    pub(super) fn confirms_on(&mut self, number: u16) -> bool {
        let channel = self.channel(number);
        channel.is_some_and(|channel| matches!(channel.mode, Mode::Confirm(_)))
    }
}

fn not_open(channel: u16) -> Fault {
    connection_fault(
        code::CHANNEL_ERROR,
        format!("channel {channel} is not open"),
    )
}

fn unexpected(text: &str) -> Fault {
    connection_fault(code::UNEXPECTED_FRAME, text)
}

pub(super) fn not_immediate() -> Fault {
    connection_fault(
        code::NOT_IMPLEMENTED,
        "basic.publish with immediate=true is not offered",
    )
}
