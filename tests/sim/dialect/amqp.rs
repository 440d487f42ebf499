//! AMQP 0-9-1 as its clients write and read it, on one channel.

use std::collections::{BTreeMap, VecDeque};

use ringmq::protocol::amqp::PREAMBLE;
use ringmq::protocol::amqp::content::{Header, Properties};
use ringmq::protocol::amqp::encode::Frame;
use ringmq::protocol::amqp::frame::{self, Kind as FrameKind, Step};
use ringmq::protocol::amqp::method::{Id, id};
use ringmq::protocol::amqp::table;
use ringmq::protocol::amqp::wire::Reader as Octets;

use super::{Dialect, UNTOLD, line, message, plain};
use crate::command::{Command, Kind};
use crate::rng::Rng;
use crate::wire::Line;

const CHANNEL: u16 = 1;
/// The least that may be agreed on, so that bodies take several frames.
const FRAME_BYTES_MAX: u32 = 4096;

/// What is to come, in this order.
#[derive(Clone, Debug)]
enum Expected {
    /// A method that ends the answer to a command.
    End(Id),
    /// One that is part of a longer answer.
    Part(Id),
    /// The end of an answer with that tag.
    Tagged(Id, String),
    /// A message of that queue, or none.
    Got(String),
}

/// A method whose content is still to come.
#[derive(Debug)]
struct Begun {
    id: Id,
    arguments: Vec<u8>,
    header: Option<(Vec<u8>, u64)>,
    body: Vec<u8>,
}

/// Cuts a connection's octets into frames, and these into lines.
#[derive(Debug)]
pub struct Reader {
    link: usize,
    buffer: Vec<u8>,
    begun: Option<Begun>,
    expected: VecDeque<Expected>,
    /// Tags of publishes that are not confirmed, by their numbers.
    unconfirmed: BTreeMap<u64, String>,
    published: u64,
    /// Queues of consumers, by their tags.
    consumers: BTreeMap<String, String>,
    delivered: u64,
    is_closed: bool,
}

fn method<'a>(out: &'a mut Vec<u8>, id: Id) -> Frame<'a> {
    Frame::method(out, CHANNEL, id)
}

fn raw_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&CHANNEL.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out.push(0xce);
}

/// What every client sends first, as far as to an open channel.
fn handshake(confirmed: bool) -> Vec<u8> {
    let mut able = Vec::new();
    for name in ["consumer_cancel_notify", "connection.blocked", "basic.nack"] {
        table::put_bool(&mut able, name.as_bytes(), true);
    }
    let mut properties = Vec::new();
    table::put_inner(&mut properties, b"capabilities", b'F', &able);
    let mut out = PREAMBLE.to_vec();
    Frame::method(&mut out, 0, id::CONNECTION_START_OK)
        .longstr(&properties)
        .shortstr(b"PLAIN")
        .longstr(b"\0guest\0guest")
        .shortstr(b"en_US")
        .end();
    Frame::method(&mut out, 0, id::CONNECTION_TUNE_OK)
        .short(10)
        .long(FRAME_BYTES_MAX)
        .short(0)
        .end();
    Frame::method(&mut out, 0, id::CONNECTION_OPEN)
        .shortstr(b"/")
        .shortstr(b"")
        .octet(0)
        .end();
    method(&mut out, id::CHANNEL_OPEN).shortstr(b"").end();
    if confirmed {
        method(&mut out, id::CONFIRM_SELECT).octet(0).end();
    }
    out
}

fn publish(queue: &str, body: &[u8], rng: &mut Rng) -> Vec<u8> {
    const MANDATORY: u8 = 1;
    const DELIVERY_MODE: u16 = 1 << 12;
    let mut out = Vec::new();
    if rng.chance(50) {
        // Behind the message it would be one more octet to wait for.
        ringmq::protocol::amqp::encode::heartbeat(&mut out);
    }
    method(&mut out, id::BASIC_PUBLISH)
        .short(0)
        .shortstr(b"")
        .shortstr(plain(queue).as_bytes())
        .octet(MANDATORY)
        .end();
    let mut header = vec![0, 60, 0, 0];
    header.extend_from_slice(&(body.len() as u64).to_be_bytes());
    match rng.chance(500) {
        true => {
            header.extend_from_slice(&DELIVERY_MODE.to_be_bytes());
            header.push(2);
        }
        false => header.extend_from_slice(&[0, 0]),
    }
    raw_frame(&mut out, 2, &header);
    let mut left = body;
    let most = u64::from(FRAME_BYTES_MAX) - 8;
    while !left.is_empty() {
        let size = match rng.chance(800) {
            true => most,
            false => rng.spread(1, most),
        };
        let (piece, rest) = left.split_at(left.len().min(size as usize));
        raw_frame(&mut out, 3, piece);
        left = rest;
    }
    out
}

/// The delivery tag that a handle stands for.
fn delivery_tag(handle: &str) -> u64 {
    let tag = handle.rsplit('-').next().expect("a split has a first part");
    tag.parse().expect("it was made by the reader")
}

/// The tag that settles these deliveries, and whether it means those before it too: several are all there are up
/// to the last one, in the order of their tags.
fn through(handles: &[String]) -> (u64, u8) {
    let last = handles.last().expect("somebody is meant");
    (delivery_tag(last), u8::from(handles.len() > 1))
}

/// `tx.select`, `tx.commit`, `tx.rollback`.
pub fn typed_tx(which: Id) -> Vec<u8> {
    let mut out = Vec::new();
    method(&mut out, which).end();
    out
}

/// The octets of a command.
pub fn typed(dialect: Dialect, command: &Command, rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    match &command.kind {
        Kind::Hello { .. } => return handshake(dialect == Dialect::AmqpConfirmed),
        Kind::Publish(asked) => return publish(&asked.queue, &asked.bodies[0].1, rng),
        Kind::Barrier => method(&mut out, id::CHANNEL_FLOW).octet(1).end(),
        Kind::Pull(pull) => method(&mut out, id::BASIC_GET)
            .short(0)
            .shortstr(plain(&pull.sources[0]).as_bytes())
            .octet(0)
            .end(),
        Kind::Sub { source, credit, .. } => {
            let credit = credit.expect("a consumer has a limit");
            let tag = command.tag.as_ref().expect("a consumer has a tag");
            method(&mut out, id::BASIC_QOS)
                .long(0)
                .short(credit as u16)
                .octet(0)
                .end();
            method(&mut out, id::BASIC_CONSUME)
                .short(0)
                .shortstr(plain(source).as_bytes())
                .shortstr(tag.as_bytes())
                .octet(0)
                .longstr(b"")
                .end();
        }
        Kind::UnsubTag { tag, .. } => method(&mut out, id::BASIC_CANCEL)
            .shortstr(tag.as_bytes())
            .octet(0)
            .end(),
        Kind::Ack(handles) => {
            let (tag, multiple) = through(handles);
            method(&mut out, id::BASIC_ACK)
                .longlong(tag)
                .octet(multiple)
                .end();
        }
        Kind::Nack { handles, dead, .. } => {
            let requeue = u8::from(!dead);
            let (tag, multiple) = through(handles);
            match multiple == 1 || rng.chance(500) {
                true => method(&mut out, id::BASIC_NACK)
                    .longlong(tag)
                    .octet(multiple | requeue << 1)
                    .end(),
                false => method(&mut out, id::BASIC_REJECT)
                    .longlong(tag)
                    .octet(requeue)
                    .end(),
            }
        }
        Kind::Quit => Frame::method(&mut out, 0, id::CONNECTION_CLOSE)
            .short(200)
            .shortstr(b"bye")
            .short(0)
            .short(0)
            .end(),
        other => unreachable!("{other:?} is not said in AMQP"),
    }
    out
}

impl Reader {
    /// The reader of connection number `link`.
    pub fn new(link: usize) -> Reader {
        Reader {
            link,
            buffer: Vec::new(),
            begun: None,
            expected: VecDeque::new(),
            unconfirmed: BTreeMap::new(),
            published: 0,
            consumers: BTreeMap::new(),
            delivered: 0,
            is_closed: false,
        }
    }

    /// A command is on its way.
    pub fn expect(&mut self, command: &Command) {
        let end = |id| Expected::End(id);
        match &command.kind {
            Kind::Hello { expired: confirmed } => {
                for id in [
                    id::CONNECTION_START,
                    id::CONNECTION_TUNE,
                    id::CONNECTION_OPEN_OK,
                ] {
                    self.expected.push_back(Expected::Part(id));
                }
                if *confirmed {
                    self.expected.push_back(Expected::Part(id::CHANNEL_OPEN_OK));
                    self.expected.push_back(end(id::CONFIRM_SELECT_OK));
                } else {
                    self.expected.push_back(end(id::CHANNEL_OPEN_OK));
                }
            }
            Kind::Publish(_) => {
                if let Some(tag) = &command.tag {
                    self.published += 1;
                    self.unconfirmed.insert(self.published, tag.clone());
                }
            }
            Kind::Barrier => self.expected.push_back(end(id::CHANNEL_FLOW_OK)),
            Kind::Pull(pull) => self
                .expected
                .push_back(Expected::Got(pull.sources[0].clone())),
            Kind::Sub { source, .. } => {
                let tag = command.tag.clone().expect("a consumer has a tag");
                self.consumers.insert(tag.clone(), source.clone());
                self.expected.push_back(Expected::Part(id::BASIC_QOS_OK));
                self.expected
                    .push_back(Expected::Tagged(id::BASIC_CONSUME_OK, tag));
            }
            Kind::UnsubTag { .. } => self.expected.push_back(end(id::BASIC_CANCEL_OK)),
            Kind::Quit => self.expected.push_back(end(id::CONNECTION_CLOSE_OK)),
            Kind::Ack(_) | Kind::Nack { .. } => {}
            other => unreachable!("{other:?} is not said in AMQP"),
        }
    }

    /// A method of transactions is on its way.
    pub fn expect_tx(&mut self, which: Id) {
        let (class, method) = which;
        self.expected.push_back(Expected::End((class, method + 1)));
    }

    /// Whether a frame or a message has begun and not ended.
    pub fn inside(&self) -> bool {
        !self.buffer.is_empty() || self.begun.is_some()
    }

    /// See [`super::Reader::feed`].
    pub fn feed(&mut self, octets: &[u8]) -> Result<Vec<Line>, String> {
        self.buffer.extend_from_slice(octets);
        let mut lines = Vec::new();
        let buffer = std::mem::take(&mut self.buffer);
        let mut start = 0;
        loop {
            match frame::decode(&buffer[start..], 128 << 10) {
                Step::Incomplete => break,
                Step::Bad(why) => return Err(why.to_string()),
                Step::Frame(frame, used) => {
                    start += used;
                    if frame.payload.len() > FRAME_BYTES_MAX as usize - 8 {
                        return Err("a frame larger than what was agreed on".to_string());
                    }
                    self.frame(&frame, &mut lines)?;
                }
            }
        }
        self.buffer = buffer[start..].to_vec();
        Ok(lines)
    }

    fn frame(&mut self, frame: &frame::Frame<'_>, lines: &mut Vec<Line>) -> Result<(), String> {
        if self.is_closed {
            // The connection may be closed too, behind its channel.
            let is_about_it = frame.kind == FrameKind::Method && frame.channel == 0;
            if is_about_it && matches!(frame.payload, [0, 10, 0, 50 | 51, ..]) {
                return Ok(());
            }
            return Err(format!("{frame:?} behind the end of the channel"));
        }
        match (frame.kind, &mut self.begun) {
            (FrameKind::Heartbeat, _) => return Ok(()),
            (FrameKind::Method, None) => {
                let mut octets = Octets::new(frame.payload);
                let (Ok(class), Ok(method)) = (octets.short(), octets.short()) else {
                    return Err("a method without a number".to_string());
                };
                let id = (class, method);
                if matches!(id, id::BASIC_DELIVER | id::BASIC_GET_OK | id::BASIC_RETURN) {
                    self.begun = Some(Begun {
                        id,
                        arguments: octets.rest().to_vec(),
                        header: None,
                        body: Vec::new(),
                    });
                    return Ok(());
                }
                return self.method(id, octets.rest(), lines);
            }
            (FrameKind::Header, Some(begun)) if begun.header.is_none() => {
                let header = Header::decode(frame.payload).map_err(|_| "a bad header")?;
                begun.header = Some((header.properties.to_vec(), header.body_bytes));
            }
            (FrameKind::Body, Some(begun)) if begun.header.is_some() => {
                begun.body.extend_from_slice(frame.payload);
            }
            (kind, begun) => return Err(format!("{kind:?} after {begun:?}")),
        }
        let size = |begun: &Begun| begun.header.as_ref().map(|header| header.1);
        match &self.begun {
            Some(begun) if size(begun) == Some(begun.body.len() as u64) => {}
            Some(begun) if size(begun).is_some_and(|size| size < begun.body.len() as u64) => {
                return Err("a body longer than its header says".to_string());
            }
            _ => return Ok(()),
        }
        let begun = self.begun.take().expect("it was just looked at");
        self.content(begun, lines)
    }

    /// A method with its message.
    fn content(&mut self, begun: Begun, lines: &mut Vec<Line>) -> Result<(), String> {
        let bad = |_| format!("{:?} is cut short", begun.id);
        let mut octets = Octets::new(&begun.arguments);
        if begun.id == id::BASIC_RETURN {
            let mut said = line("RETURN", None, &[]);
            said.body = Some(begun.body);
            lines.push(said);
            return Ok(());
        }
        let tag = match begun.id {
            id::BASIC_DELIVER => {
                let tag = octets.shortstr().map_err(bad)?;
                Some(String::from_utf8_lossy(tag).into_owned())
            }
            _ => None,
        };
        let number = octets.longlong().map_err(bad)?;
        let redelivered = octets.octet().map_err(bad)? != 0;
        if number != self.delivered + 1 {
            return Err(format!("delivery {number} after {}", self.delivered));
        }
        self.delivered = number;
        let (properties, _) = begun.header.as_ref().expect("a message has one");
        let found = Properties::decode(properties).map_err(|_| "bad properties")?;
        let count = table::find(found.headers.unwrap_or_default(), b"x-delivery-count");
        let tries = 1 + count.map_or(0, |value| {
            value[1..]
                .iter()
                .fold(0, |sum, octet| sum << 8 | u64::from(*octet))
        });
        if redelivered != (tries > 1) {
            return Err(format!("redelivered {redelivered} at try {tries}"));
        }
        let source = match &tag {
            Some(tag) => self.consumers.get(tag).cloned(),
            None => match self.expected.pop_front() {
                Some(Expected::Got(source)) => Some(source),
                _ => None,
            },
        };
        let Some(source) = source else {
            return Err(format!("nobody asked for a message for {tag:?}"));
        };
        let handle = format!("{UNTOLD}{}-{number}", self.link);
        let tries = format!("try={tries}");
        lines.push(message(
            tag.as_deref(),
            &[&source, &handle, &tries],
            begun.body,
        ));
        if tag.is_none() {
            lines.push(line("END", None, &["1"]));
        }
        Ok(())
    }

    fn method(&mut self, id: Id, arguments: &[u8], lines: &mut Vec<Line>) -> Result<(), String> {
        let mut octets = Octets::new(arguments);
        let bad = |_| format!("{id:?} is cut short");
        match id {
            id::BASIC_ACK | id::BASIC_NACK => {
                let tag = octets.longlong().map_err(bad)?;
                let multiple = octets.octet().map_err(bad)? & 1 != 0;
                return self.confirmed(id, tag, multiple, lines);
            }
            id::CONNECTION_BLOCKED => lines.push(line("BLOCKED", None, &[])),
            id::CONNECTION_UNBLOCKED => lines.push(line("UNBLOCKED", None, &[])),
            id::CHANNEL_CLOSE | id::CONNECTION_CLOSE => {
                let code = octets.short().map_err(bad)?.to_string();
                let text = octets.shortstr().map_err(bad)?;
                let mut said = line("CLOSED", None, &[&code]);
                said.text = Some(String::from_utf8_lossy(text).into_owned());
                lines.push(said);
                self.is_closed = true;
            }
            id::BASIC_CANCEL => {
                let tag = octets.shortstr().map_err(bad)?;
                let tag = String::from_utf8_lossy(tag).into_owned();
                let Some(source) = self.consumers.get(&tag) else {
                    return Err(format!("there is no consumer {tag:?}"));
                };
                lines.push(line("END", Some(&tag), &[source, "gone=deleted"]));
            }
            id::BASIC_GET_EMPTY => match self.expected.pop_front() {
                Some(Expected::Got(_)) => lines.push(line("END", None, &["0"])),
                other => return Err(format!("get-empty where {other:?} was expected")),
            },
            _ => match self.expected.pop_front() {
                Some(Expected::Part(expected)) if expected == id => {}
                Some(Expected::End(expected)) if expected == id => {
                    lines.push(line("OK", None, &[]));
                }
                Some(Expected::Tagged(expected, tag)) if expected == id => {
                    lines.push(line("OK", Some(&tag), &[]));
                }
                other => return Err(format!("{id:?} where {other:?} was expected")),
            },
        }
        Ok(())
    }

    /// A confirm, of one publish or of all up to it.
    fn confirmed(
        &mut self,
        id: Id,
        number: u64,
        multiple: bool,
        lines: &mut Vec<Line>,
    ) -> Result<(), String> {
        let which: Vec<u64> = match multiple {
            true => self.unconfirmed.range(..=number).map(|it| *it.0).collect(),
            false => vec![number],
        };
        if !self.unconfirmed.contains_key(&number) {
            return Err(format!("{number} was confirmed before, or never published"));
        }
        for number in which {
            let tag = self.unconfirmed.remove(&number).expect("it is in it");
            lines.push(match id {
                id::BASIC_ACK => line("OK", Some(&tag), &[]),
                _ => line("ERR", Some(&tag), &["NACKED"]),
            });
        }
        Ok(())
    }
}

#[test]
fn frames_are_cut_at_any_point() {
    let mut octets = Vec::new();
    Frame::method(&mut octets, 1, id::BASIC_ACK)
        .longlong(2)
        .octet(1)
        .end();
    method(&mut octets, id::BASIC_DELIVER)
        .shortstr(b"c1")
        .longlong(1)
        .octet(0)
        .shortstr(b"")
        .shortstr(b"q")
        .end();
    raw_frame(&mut octets, 2, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0]);
    raw_frame(&mut octets, 3, b"ab");
    raw_frame(&mut octets, 3, b"c");
    for cut in 0..octets.len() {
        let mut reader = Reader::new(3);
        reader.unconfirmed = [(1, "p1".to_string()), (2, "p2".to_string())].into();
        reader.consumers = [("c1".to_string(), "q".to_string())].into();
        let mut lines = reader.feed(&octets[..cut]).expect("well formed");
        lines.extend(reader.feed(&octets[cut..]).expect("well formed"));
        assert_eq!(lines[0], line("OK", Some("p1"), &[]));
        assert_eq!(lines[1], line("OK", Some("p2"), &[]));
        let given = message(Some("c1"), &["q", "untold-3-1", "try=1"], b"abc".to_vec());
        assert_eq!(lines[2], given);
        assert!(!reader.inside());
    }
    let mut twice = octets[..21].to_vec();
    twice.extend_from_within(..);
    let mut reader = Reader::new(0);
    reader.unconfirmed = [(2, "p2".to_string())].into();
    assert!(reader.feed(&twice).is_err(), "confirmed twice");
}
