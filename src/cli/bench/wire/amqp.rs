//! AMQP 0-9-1, as much as a benchmark needs: a queue (for a fan-out, an exchange with a queue for
//! each consumer), publishes with confirms, deliveries with acks. Acks and confirms are for all up
//! to a number; acks get no answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::broker::id::Level;
use crate::cli::bench::connection::{Handles, Role};
use crate::cli::bench::plan::{Mode, Plan};
use crate::cli::error::CliError;

use super::{Dialect, Said, Settling, connect, unexpected};

/// Largest frame, its 8 bytes of framing included.
const FRAME_BYTES: usize = 128 << 10;
/// Type, channel and size before a frame's content.
const HEAD_BYTES: usize = 7;
/// What ends a frame.
const FRAME_END: u8 = 0xce;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// Class and method of what is said or understood.
type Method = (u16, u16);
const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CONNECTION_CLOSE: Method = (10, 50);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const EXCHANGE_DECLARE: Method = (40, 10);
const EXCHANGE_DECLARE_OK: Method = (40, 11);
const EXCHANGE_DELETE: Method = (40, 20);
const EXCHANGE_DELETE_OK: Method = (40, 21);
const QUEUE_DECLARE: Method = (50, 10);
const QUEUE_DECLARE_OK: Method = (50, 11);
const QUEUE_BIND: Method = (50, 20);
const QUEUE_BIND_OK: Method = (50, 21);
const QUEUE_DELETE: Method = (50, 40);
const QUEUE_DELETE_OK: Method = (50, 41);
const QOS: Method = (60, 10);
const QOS_OK: Method = (60, 11);
const CONSUME: Method = (60, 20);
const CONSUME_OK: Method = (60, 21);
const PUBLISH: Method = (60, 40);
const DELIVER: Method = (60, 60);
const ACK: Method = (60, 80);
const NACK: Method = (60, 120);
const CONFIRM_SELECT: Method = (85, 10);
const CONFIRM_SELECT_OK: Method = (85, 11);

/// A queue, or an exchange for a fan-out.
#[derive(Debug)]
pub struct Amqp {
    addr: SocketAddr,
    name: String,
    fan_out: bool,
    /// The queue survives a restart, and its messages are written before they are confirmed.
    durable: bool,
}

/// The arguments of a method.
#[derive(Default)]
struct Arguments(Vec<u8>);

impl Arguments {
    fn short(mut self, value: u16) -> Arguments {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn long(mut self, value: u32) -> Arguments {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn long_long(mut self, value: u64) -> Arguments {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn octet(mut self, value: u8) -> Arguments {
        self.0.push(value);
        self
    }

    fn short_text(mut self, text: &str) -> Arguments {
        self.0.push(text.len() as u8);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn long_text(mut self, text: &str) -> Arguments {
        self.0.extend_from_slice(&(text.len() as u32).to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self
    }
}

/// Appends a frame.
fn push_frame(out: &mut Vec<u8>, kind: u8, channel: u16, content: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&(content.len() as u32).to_be_bytes());
    out.extend_from_slice(content);
    out.push(FRAME_END);
}

/// Appends a method; those of the connection go over channel 0, all others over 1.
fn push_method(out: &mut Vec<u8>, method: Method, arguments: Arguments) {
    let mut content = Vec::with_capacity(4 + arguments.0.len());
    content.extend_from_slice(&method.0.to_be_bytes());
    content.extend_from_slice(&method.1.to_be_bytes());
    content.extend_from_slice(&arguments.0);
    push_frame(out, METHOD, u16::from(method.0 != 10), &content);
}

/// The first frame of `input`, if it is whole: its kind and content, and what it took.
fn frame(input: &[u8]) -> Option<(u8, &[u8], usize)> {
    let size = input.get(3..HEAD_BYTES)?;
    let size = u32::from_be_bytes(size.try_into().expect("4 bytes")) as usize;
    let content = input.get(HEAD_BYTES..HEAD_BYTES + size + 1)?;
    Some((input[0], &content[..size], HEAD_BYTES + size + 1))
}

/// Class and method of a method frame's content, and its arguments.
fn method(content: &[u8]) -> Option<(Method, &[u8])> {
    let (class, rest) = content.split_first_chunk()?;
    let (method, rest) = rest.split_first_chunk()?;
    let method = (u16::from_be_bytes(*class), u16::from_be_bytes(*method));
    Some((method, rest))
}

/// A number at `at` of a method's arguments.
fn number(arguments: &[u8], at: usize) -> Option<u64> {
    let octets = arguments.get(at..)?.first_chunk()?;
    Some(u64::from_be_bytes(*octets))
}

/// Sends a method and awaits another; its arguments.
fn call(
    stream: &mut TcpStream,
    said: Method,
    arguments: Arguments,
    awaited: Method,
) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    push_method(&mut out, said, arguments);
    stream.write_all(&out)?;
    expect(stream, awaited)
}

/// Awaits a method; its arguments.
fn expect(stream: &mut TcpStream, awaited: Method) -> io::Result<Vec<u8>> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head)?;
    let size = u32::from_be_bytes(*head.last_chunk().expect("7 bytes")) as usize;
    if size > FRAME_BYTES {
        return Err(unexpected(head));
    }
    let mut content = vec![0; size + 1];
    stream.read_exact(&mut content)?;
    match method(&content[..size]) {
        Some((method, arguments)) if method == awaited => Ok(arguments.to_vec()),
        _ => Err(unexpected(&content)),
    }
}

/// Opens a connection with one channel; what the server says of itself.
fn begin(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    let properties = expect(stream, START)?;
    let start_ok = Arguments::default()
        .long(0)
        .short_text("PLAIN")
        .long_text("\0guest\0guest")
        .short_text("en_US");
    call(stream, START_OK, start_ok, TUNE)?;
    // One channel, no heartbeats.
    let tune_ok = Arguments::default()
        .short(1)
        .long(FRAME_BYTES as u32)
        .short(0);
    let mut out = Vec::new();
    push_method(&mut out, TUNE_OK, tune_ok);
    stream.write_all(&out)?;
    let open = Arguments::default().short_text("/").short_text("").octet(0);
    call(stream, OPEN, open, OPEN_OK)?;
    let channel = Arguments::default().short_text("");
    call(stream, CHANNEL_OPEN, channel, CHANNEL_OPEN_OK)?;
    Ok(properties)
}

impl Amqp {
    /// The queue of that name as a plan uses it.
    pub fn new(plan: &Plan, name: &str, addr: SocketAddr) -> Amqp {
        Amqp {
            addr,
            name: name.to_owned(),
            fan_out: plan.mode == Mode::FanOut,
            durable: plan.durable == Some(Level::Disk),
        }
    }

    /// Exchange and routing key of a publish.
    fn target(&self) -> (&str, &str) {
        if self.fan_out {
            (&self.name, "")
        } else {
            ("", &self.name)
        }
    }

    /// Runs `act` over a connection of its own.
    fn aside<T>(
        &self,
        act: impl FnOnce(&mut TcpStream, &[u8]) -> io::Result<T>,
    ) -> Result<T, CliError> {
        let run = || {
            let mut stream = connect(self.addr)?;
            let properties = begin(&mut stream)?;
            act(&mut stream, &properties)
        };
        run().map_err(|error| super::unreachable("AMQP server", self.addr, &error))
    }

    /// Makes the queue, or with `passive` asks about it; its messages.
    fn declare(&self, stream: &mut TcpStream, passive: bool) -> io::Result<u64> {
        let arguments = Arguments::default()
            .short(0)
            .short_text(&self.name)
            .octet(u8::from(passive) | u8::from(self.durable) << 1)
            .long(0);
        let told = call(stream, QUEUE_DECLARE, arguments, QUEUE_DECLARE_OK)?;
        let messages = told
            .get(1 + self.name.len()..)
            .and_then(<[u8]>::first_chunk);
        let messages = messages.map(|octets| u32::from_be_bytes(*octets));
        messages.map(u64::from).ok_or_else(|| unexpected(&told))
    }

    fn delete(&self, stream: &mut TcpStream) -> io::Result<()> {
        let name = Arguments::default()
            .short(0)
            .short_text(&self.name)
            .octet(0);
        match self.fan_out {
            true => call(stream, EXCHANGE_DELETE, name, EXCHANGE_DELETE_OK)?,
            false => call(stream, QUEUE_DELETE, name, QUEUE_DELETE_OK)?,
        };
        Ok(())
    }

    /// Appends how many messages may be without an ack.
    fn limit(&self, out: &mut Vec<u8>, messages: u16) {
        let qos = Arguments::default().long(0).short(messages).octet(0);
        push_method(out, QOS, qos);
    }

    /// A queue of the connection's own that gets everything of the exchange.
    fn bind(&self, stream: &mut TcpStream) -> io::Result<()> {
        const EXCLUSIVE: u8 = 4;
        let queue = Arguments::default()
            .short(0)
            .short_text("")
            .octet(EXCLUSIVE)
            .long(0);
        call(stream, QUEUE_DECLARE, queue, QUEUE_DECLARE_OK)?;
        // Without a name, the queue that was declared last is meant.
        let bind = Arguments::default()
            .short(0)
            .short_text("")
            .short_text(&self.name)
            .short_text("")
            .octet(0)
            .long(0);
        call(stream, QUEUE_BIND, bind, QUEUE_BIND_OK).map(|_| ())
    }
}

impl Dialect for Amqp {
    fn record(&self, body: &[u8]) -> (Vec<u8>, usize) {
        let (exchange, key) = self.target();
        let mut out = Vec::new();
        let publish = Arguments::default()
            .short(0)
            .short_text(exchange)
            .short_text(key)
            .octet(0);
        push_method(&mut out, PUBLISH, publish);
        // The only property is the delivery mode: 1 in memory, 2 on the disk.
        let header = Arguments::default()
            .short(PUBLISH.0)
            .short(0)
            .long_long(body.len() as u64)
            .short(1 << 12)
            .octet(1 + u8::from(self.durable));
        push_frame(&mut out, HEADER, 1, &header.0);
        let body_at = out.len() + HEAD_BYTES;
        for piece in body.chunks(FRAME_BYTES - HEAD_BYTES - 1) {
            push_frame(&mut out, BODY, 1, piece);
        }
        (out, body_at)
    }

    fn subscribe(&self, out: &mut Vec<u8>, credit: u64) -> u64 {
        const NO_ACK: u8 = 2;
        self.limit(out, u16::try_from(credit).unwrap_or(u16::MAX));
        let queue = if self.fan_out { "" } else { &self.name };
        let consume = Arguments::default()
            .short(0)
            .short_text(queue)
            .short_text("c")
            .octet(if self.fan_out { NO_ACK } else { 0 })
            .long(0);
        push_method(out, CONSUME, consume);
        2
    }

    /// The server forgets the acks of a connection that closes before it has come to them; what
    /// is answered behind them shows that it has.
    fn finish(&self, out: &mut Vec<u8>) -> u64 {
        self.limit(out, 1);
        1
    }

    /// One ack for everything up to the last one; a fan-out's consumers ack nothing.
    fn settle(&self, out: &mut Vec<u8>, handles: &Handles, _most: usize) -> Settling {
        if self.fan_out {
            return Settling::default();
        }
        if let Some(tag) = handles.iter().last().and_then(|tag| number(tag, 0)) {
            let multiple = 1;
            push_method(
                out,
                ACK,
                Arguments::default().long_long(tag).octet(multiple),
            );
        }
        Settling {
            answers: 0,
            unanswered: handles.len() as u64,
        }
    }

    fn greet(&self, stream: &mut TcpStream, role: Role) -> io::Result<()> {
        begin(stream)?;
        match role {
            Role::Producer => {
                let select = Arguments::default().octet(0);
                call(stream, CONFIRM_SELECT, select, CONFIRM_SELECT_OK).map(|_| ())
            }
            Role::Consumer if self.fan_out => self.bind(stream),
            Role::Consumer => Ok(()),
        }
    }

    fn prepare(&mut self, own: bool) -> Result<String, CliError> {
        self.aside(|stream, properties| {
            if own {
                self.delete(stream)?;
            }
            if self.fan_out {
                let exchange = Arguments::default()
                    .short(0)
                    .short_text(&self.name)
                    .short_text("fanout")
                    .octet(0)
                    .long(0);
                call(stream, EXCHANGE_DECLARE, exchange, EXCHANGE_DECLARE_OK)?;
            } else {
                self.declare(stream, false)?;
            }
            Ok(version(properties))
        })
    }

    /// Only what waits is counted by the server: what is handed out waits again as soon as its
    /// connection has closed.
    fn held(&self) -> Result<Option<u64>, CliError> {
        if self.fan_out {
            return Ok(None);
        }
        self.aside(|stream, _| self.declare(stream, true)).map(Some)
    }

    fn clean_up(&self) -> Result<(), CliError> {
        self.aside(|stream, _| self.delete(stream))
    }
}

/// `rabbitmq/3.10.8` out of the properties that begin a connection.
fn version(properties: &[u8]) -> String {
    let value = |name: &[u8]| {
        let key = [&[name.len() as u8], name, b"S"].concat();
        let at = properties.windows(key.len()).position(|it| it == key)? + key.len();
        let size = u32::from_be_bytes(*properties.get(at..)?.first_chunk()?) as usize;
        let text = properties.get(at + 4..at + 4 + size)?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let product = value(b"product").unwrap_or_else(|| "AMQP".to_owned());
    let version = value(b"version").unwrap_or_else(|| "unknown".to_owned());
    format!("{}/{version}", product.to_lowercase())
}

/// Reads what the server sends on one connection.
#[derive(Debug)]
pub struct Replies {
    role: Role,
    /// Publishes up to this number are confirmed.
    confirmed: u64,
    /// Confirms above it, out of order.
    ahead: std::collections::BTreeSet<u64>,
    /// The message whose body is coming: its number, whether it was delivered before, its size.
    delivery: Option<([u8; 8], bool, Option<usize>)>,
    /// A body that comes in several frames.
    body: Vec<u8>,
}

impl Replies {
    /// At the beginning of a connection, after it was greeted.
    pub fn new(role: Role) -> Replies {
        Replies {
            role,
            confirmed: 0,
            ahead: std::collections::BTreeSet::new(),
            delivery: None,
            body: Vec::new(),
        }
    }

    /// Tells what is whole.
    #[inline]
    pub fn read(&mut self, input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
        let mut at = 0;
        while let Some((kind, content, taken)) = frame(&input[at..]) {
            if input[at + taken - 1] != FRAME_END {
                tell(Said::Refused(b"a frame does not end where it should"));
            }
            match kind {
                METHOD => self.method(content, &mut tell),
                HEADER => self.header(content, &mut tell),
                BODY => self.piece(content, &mut tell),
                // A heartbeat, which was not asked for.
                _ => {}
            }
            at += taken;
        }
        at
    }

    fn method(&mut self, content: &[u8], tell: &mut impl FnMut(Said<'_>)) {
        let Some((method, arguments)) = method(content) else {
            return tell(Said::Refused(b"a method frame without a method"));
        };
        match method {
            ACK if self.role == Role::Producer => {
                let tag = number(arguments, 0).unwrap_or(0);
                let multiple = arguments.get(8).is_some_and(|bits| bits & 1 != 0);
                tell(Said::Receipts(self.confirm(tag, multiple)));
            }
            DELIVER => {
                let tag_at = 1 + usize::from(arguments.first().copied().unwrap_or(0));
                let tag = number(arguments, tag_at).unwrap_or(0);
                let again = arguments.get(tag_at + 8).is_some_and(|bits| bits & 1 != 0);
                self.delivery = Some((tag.to_be_bytes(), again, None));
            }
            QOS_OK | CONSUME_OK => tell(Said::Subscribed),
            NACK => tell(Said::Refused(
                b"basic.nack: the server could not take a message",
            )),
            CHANNEL_CLOSE | CONNECTION_CLOSE => {
                let length = usize::from(arguments.get(2).copied().unwrap_or(0));
                tell(Said::Refused(
                    arguments.get(3..3 + length).unwrap_or(b"closed"),
                ));
            }
            _ => tell(Said::Refused(b"a method that was not awaited")),
        }
    }

    /// How many publishes are confirmed that were not before.
    fn confirm(&mut self, tag: u64, multiple: bool) -> u64 {
        let before = self.confirmed + self.ahead.len() as u64;
        if multiple {
            self.confirmed = self.confirmed.max(tag);
            self.ahead = self.ahead.split_off(&(self.confirmed + 1));
        } else if tag > self.confirmed {
            self.ahead.insert(tag);
        }
        while self.ahead.remove(&(self.confirmed + 1)) {
            self.confirmed += 1;
        }
        self.confirmed + self.ahead.len() as u64 - before
    }

    fn header(&mut self, content: &[u8], tell: &mut impl FnMut(Said<'_>)) {
        let Some((_, _, size)) = &mut self.delivery else {
            return tell(Said::Refused(b"a header without a delivery"));
        };
        let told = number(content, 4).unwrap_or(0) as usize;
        *size = Some(told);
        if told == 0 {
            self.piece(&[], tell);
        }
    }

    fn piece(&mut self, content: &[u8], tell: &mut impl FnMut(Said<'_>)) {
        let Some((handle, again, Some(size))) = self.delivery else {
            return tell(Said::Refused(b"a body without a header"));
        };
        if self.body.is_empty() && content.len() == size {
            tell(Said::Message {
                handle: &handle,
                again,
                body: content,
            });
            self.delivery = None;
            return;
        }
        self.body.extend_from_slice(content);
        if self.body.len() >= size {
            tell(Said::Message {
                handle: &handle,
                again,
                body: &self.body,
            });
            self.body.clear();
            self.delivery = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{handles, nowhere, plan, said};
    use super::super::{Dialect, Wire};
    use super::*;

    fn delivery(tag: u64, again: u8, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let deliver = Arguments::default()
            .short_text("c")
            .long_long(tag)
            .octet(again)
            .short_text("")
            .short_text("q");
        push_method(&mut out, DELIVER, deliver);
        let size: usize = pieces.iter().map(|piece| piece.len()).sum();
        let header = Arguments::default()
            .short(60)
            .short(0)
            .long_long(size as u64)
            .short(0);
        push_frame(&mut out, HEADER, 1, &header.0);
        for piece in pieces {
            push_frame(&mut out, BODY, 1, piece);
        }
        out
    }

    fn read(role: Role, input: &[u8]) -> Vec<String> {
        said(|| super::super::Replies::Amqp(Replies::new(role)), input)
    }

    #[test]
    fn deliveries() {
        let mut input = Vec::new();
        let tag = Arguments::default().short_text("c");
        push_method(&mut input, QOS_OK, Arguments::default());
        push_method(&mut input, CONSUME_OK, tag);
        input.extend(delivery(1, 0, &[b"abc"]));
        input.extend(delivery(2, 1, &[b"ab", b"cd"]));
        input.extend(delivery(3, 0, &[]));
        let close = Arguments::default().short(404).short_text("no queue");
        push_method(&mut input, CHANNEL_CLOSE, close);
        let tag = |tag: u8| format!("{}\\x{tag:02x}", "\\x00".repeat(7));
        assert_eq!(
            read(Role::Consumer, &input),
            [
                "Subscribed".to_owned(),
                "Subscribed".to_owned(),
                format!("{} abc", tag(1)),
                format!("{} again abcd", tag(2)),
                format!("{} ", tag(3)),
                "refused no queue".to_owned(),
            ]
        );
    }

    #[test]
    fn confirms_come_alone_together_and_out_of_order() {
        let mut input = Vec::new();
        for (tag, multiple) in [(1, 0), (3, 0), (2, 0), (6, 0), (5, 1), (9, 1), (8, 0)] {
            let confirm = Arguments::default().long_long(tag).octet(multiple);
            push_method(&mut input, ACK, confirm);
        }
        push_method(&mut input, NACK, Arguments::default());
        let told = [1, 1, 1, 1, 2, 3, 0].map(|count| format!("Receipts({count})"));
        let said = read(Role::Producer, &input);
        assert_eq!(said[..7], told);
        assert!(said[7].starts_with("refused basic.nack"));
    }

    #[test]
    fn a_publish_is_three_frames_or_more() {
        let amqp = Amqp::new(&plan("e2e --amqp x:1"), "q", nowhere());
        let body: Vec<u8> = (0..300_000).map(|index| index as u8).collect();
        let (record, body_at) = amqp.record(&body);
        assert_eq!(record[body_at..body_at + 16], body[..16]);
        let (mut at, mut kinds, mut pieces) = (0, Vec::new(), Vec::new());
        while let Some((kind, content, taken)) = frame(&record[at..]) {
            assert!(taken <= FRAME_BYTES && record[at + taken - 1] == FRAME_END);
            kinds.push(kind);
            match kind {
                METHOD => {
                    let publish = b"\0\x3c\0\x28\0\0\0\x01q\0";
                    assert_eq!(content, publish);
                }
                HEADER => assert_eq!(number(content, 4), Some(300_000)),
                _ => pieces.extend_from_slice(content),
            }
            at += taken;
        }
        assert_eq!(
            (at, kinds),
            (record.len(), vec![METHOD, HEADER, BODY, BODY, BODY])
        );
        assert_eq!(pieces, body);
    }

    #[test]
    fn an_ack_is_for_all_before_it() {
        let amqp = Amqp::new(&plan("e2e --amqp x:1"), "q", nowhere());
        let two = handles(&[&7_u64.to_be_bytes(), &8_u64.to_be_bytes()]);
        let mut out = Vec::new();
        let settling = amqp.settle(&mut out, &two, 1);
        assert_eq!((settling.answers, settling.unanswered), (0, 2));
        assert_eq!(
            out,
            b"\x01\0\x01\0\0\0\x0d\0\x3c\0\x50\0\0\0\0\0\0\0\x08\x01\xce"
        );
        out.clear();
        amqp.settle(&mut out, &handles(&[]), 1);
        Amqp::new(&plan("fanout --amqp x:1"), "q", nowhere()).settle(&mut out, &two, 1);
        assert!(out.is_empty());
    }

    #[test]
    fn the_first_bytes_of_a_body_are_in_one_frame() {
        let amqp = Amqp::new(&plan("e2e --amqp x:1"), "q", nowhere());
        let wire = Wire::new(&amqp, 16);
        let mut out = Vec::new();
        wire.record(&mut out, 258, 3);
        let body_at = out.len() - 17;
        assert_eq!(wire.open(&out[body_at..body_at + 16]), Some((258, 3)));
    }

    #[test]
    fn the_server_tells_its_version() {
        let properties = b"..\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8..";
        assert_eq!(version(properties), "rabbitmq/3.10.8");
        assert_eq!(version(b""), "amqp/unknown");
    }
}
