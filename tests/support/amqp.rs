//! A small client of AMQP 0-9-1 for tests: blocking, one frame after another. What it sends is written with
//! the library's own frame writer, what it reads with its reader; both have tests of their own against the
//! specification's octets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringmq::protocol::amqp::PREAMBLE;
use ringmq::protocol::amqp::content::{Header, Properties};
use ringmq::protocol::amqp::encode::Frame;
use ringmq::protocol::amqp::frame::{self, Kind, Step};
use ringmq::protocol::amqp::method::{Id, id};
use ringmq::protocol::amqp::table;
use ringmq::protocol::amqp::wire::Reader;

/// Nothing in these tests takes longer, whatever else the machine does.
const ANSWER_MAX: Duration = Duration::from_secs(20);
const FRAME_BYTES_MAX: u32 = 128 << 10;

/// Options of a queue, an exchange or a consumer, as the bits of the methods.
pub const PASSIVE: u8 = 1;
pub const DURABLE: u8 = 2;
pub const EXCLUSIVE: u8 = 4;
pub const AUTO_DELETE: u8 = 8;
pub const NO_ACK: u8 = 2;

/// What the broker said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub channel: u16,
    pub id: Id,
    pub arguments: Vec<u8>,
    /// The content behind it, of methods that have one.
    pub content: Option<Content>,
}

/// A message's properties and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub properties: Vec<u8>,
    pub body: Vec<u8>,
}

impl Content {
    /// The headers table; empty if there is none.
    pub fn headers(&self) -> Vec<u8> {
        let found = Properties::decode(&self.properties).expect("properties are whole");
        found.headers.unwrap_or_default().to_vec()
    }
}

/// A delivery or the answer to a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub consumer: String,
    pub tag: u64,
    pub redelivered: bool,
    pub exchange: String,
    pub key: String,
    pub content: Content,
}

impl Delivered {
    pub fn body(&self) -> &str {
        std::str::from_utf8(&self.content.body).expect("the tests send text")
    }
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

fn text(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).expect("the tests use text")
}

/// A table of texts.
pub fn texts(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in pairs {
        table::put_text(&mut out, name.as_bytes(), value.as_bytes());
    }
    out
}

/// A table of numbers.
pub fn numbers(pairs: &[(&str, u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in pairs {
        table::put_number(&mut out, name.as_bytes(), *value);
    }
    out
}

impl Client {
    /// A bare connection.
    pub fn bare(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_nodelay(true).expect("a socket takes it");
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .expect("it is longer than 0");
        Client {
            stream,
            input: Vec::new(),
        }
    }

    /// A connection with channel 1 open.
    pub fn open(address: SocketAddr) -> Client {
        Client::open_with(address, 0, &capabilities())
    }

    /// The same with heartbeats and the client's properties.
    pub fn open_with(address: SocketAddr, heartbeat_s: u16, properties: &[u8]) -> Client {
        let mut client = Client::bare(address);
        client.send_bytes(PREAMBLE);
        client.expect(0, id::CONNECTION_START);
        client.send(0, id::CONNECTION_START_OK, |frame| {
            frame
                .longstr(properties)
                .shortstr(b"PLAIN")
                .longstr(b"\0guest\0guest")
                .shortstr(b"en_US")
        });
        client.expect(0, id::CONNECTION_TUNE);
        client.send(0, id::CONNECTION_TUNE_OK, |frame| {
            frame.short(2047).long(FRAME_BYTES_MAX).short(heartbeat_s)
        });
        client.send(0, id::CONNECTION_OPEN, |frame| {
            frame.shortstr(b"/").shortstr(b"").octet(0)
        });
        client.expect(0, id::CONNECTION_OPEN_OK);
        client.open_channel(1);
        client
    }

    pub fn open_channel(&mut self, channel: u16) {
        self.send(channel, id::CHANNEL_OPEN, |frame| frame.shortstr(b""));
        self.expect(channel, id::CHANNEL_OPEN_OK);
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    /// Nothing more will be sent.
    pub fn half_close(&self) {
        let how = std::net::Shutdown::Write;
        self.stream.shutdown(how).expect("it is open");
    }

    /// Sends a method.
    pub fn send(&mut self, channel: u16, id: Id, fill: impl FnOnce(Frame<'_>) -> Frame<'_>) {
        let mut out = Vec::new();
        fill(Frame::method(&mut out, channel, id)).end();
        self.send_bytes(&out);
    }

    /// Sends a method and reads its answer.
    pub fn call(
        &mut self,
        channel: u16,
        id: Id,
        fill: impl FnOnce(Frame<'_>) -> Frame<'_>,
        answer: Id,
    ) -> Vec<u8> {
        self.send(channel, id, fill);
        self.expect(channel, answer).arguments
    }

    /// The next frame that is no heartbeat: kind, channel, payload. `None`: the broker has closed.
    fn frame(&mut self) -> Option<(Kind, u16, Vec<u8>)> {
        loop {
            match self.any_frame()? {
                (Kind::Heartbeat, ..) => {}
                frame => return Some(frame),
            }
        }
    }

    /// The next frame, heartbeats too.
    pub fn any_frame(&mut self) -> Option<(Kind, u16, Vec<u8>)> {
        loop {
            match frame::decode(&self.input, FRAME_BYTES_MAX) {
                Step::Frame(frame, used) => {
                    let found = (frame.kind, frame.channel, frame.payload.to_vec());
                    self.input.drain(..used);
                    return Some(found);
                }
                Step::Bad(why) => panic!("{why}: {:?}", self.input),
                Step::Incomplete => {}
            }
            let mut piece = [0; 64 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing comes: {error}"),
            }
        }
    }

    /// What the broker says next; `None`: it has closed.
    pub fn next(&mut self) -> Option<Said> {
        let (kind, channel, payload) = self.frame()?;
        assert_eq!(kind, Kind::Method, "a method begins everything");
        let mut reader = Reader::new(&payload);
        let id = (
            reader.short().expect("a class"),
            reader.short().expect("a method"),
        );
        let has_content = matches!(id, id::BASIC_DELIVER | id::BASIC_GET_OK | id::BASIC_RETURN);
        let content = has_content.then(|| self.content(channel));
        Some(Said {
            channel,
            id,
            arguments: reader.rest().to_vec(),
            content,
        })
    }

    fn content(&mut self, channel: u16) -> Content {
        let (kind, on, payload) = self.frame().expect("a header follows");
        assert_eq!((kind, on), (Kind::Header, channel));
        let header = Header::decode(&payload).expect("it is whole");
        let mut body = Vec::new();
        while (body.len() as u64) < header.body_bytes {
            let (kind, on, payload) = self.frame().expect("a body follows");
            assert_eq!((kind, on), (Kind::Body, channel));
            body.extend_from_slice(&payload);
        }
        Content {
            properties: header.properties.to_vec(),
            body,
        }
    }

    /// The broker says exactly that next.
    pub fn expect(&mut self, channel: u16, id: Id) -> Said {
        let said = self.next().expect("the broker closed the connection");
        assert_eq!(
            (said.channel, said.id),
            (channel, id),
            "{}",
            said.arguments.escape_ascii()
        );
        said
    }

    /// The broker closes the channel, or with 0 the connection; the code and the text.
    pub fn expect_close(&mut self, channel: u16) -> (u16, String) {
        let id = match channel {
            0 => id::CONNECTION_CLOSE,
            _ => id::CHANNEL_CLOSE,
        };
        let arguments = self.expect(channel, id).arguments;
        let mut reader = Reader::new(&arguments);
        let code = reader.short().expect("a code");
        let why = text(reader.shortstr().expect("a text"));
        if channel != 0 {
            self.send(channel, id::CHANNEL_CLOSE_OK, |frame| frame);
            self.open_channel(channel);
        }
        (code, why)
    }

    /// Nothing more comes, and what was asked meanwhile is answered.
    pub fn assert_silent(&mut self) {
        self.send(1, id::BASIC_QOS, |frame| frame.long(0).short(0).octet(0));
        self.expect(1, id::BASIC_QOS_OK);
    }

    // --- Definitions ---

    /// Declares a queue: its name, messages and consumers.
    pub fn declare(&mut self, queue: &str, bits: u8, arguments: &[u8]) -> (String, u32, u32) {
        self.send_declare(queue, bits, arguments);
        let arguments = self.expect(1, id::QUEUE_DECLARE_OK).arguments;
        let mut reader = Reader::new(&arguments);
        (
            text(reader.shortstr().expect("a name")),
            reader.long().expect("messages"),
            reader.long().expect("consumers"),
        )
    }

    pub fn send_declare(&mut self, queue: &str, bits: u8, arguments: &[u8]) {
        self.send(1, id::QUEUE_DECLARE, |frame| {
            frame
                .short(0)
                .shortstr(queue.as_bytes())
                .octet(bits)
                .longstr(arguments)
        });
    }

    /// Messages ready in a queue.
    pub fn ready(&mut self, queue: &str) -> u32 {
        self.declare(queue, PASSIVE, b"").1
    }

    pub fn exchange(&mut self, name: &str, kind: &str, bits: u8, arguments: &[u8]) {
        self.send_exchange(name, kind, bits, arguments);
        self.expect(1, id::EXCHANGE_DECLARE_OK);
    }

    pub fn send_exchange(&mut self, name: &str, kind: &str, bits: u8, arguments: &[u8]) {
        self.send(1, id::EXCHANGE_DECLARE, |frame| {
            frame
                .short(0)
                .shortstr(name.as_bytes())
                .shortstr(kind.as_bytes())
                .octet(bits)
                .longstr(arguments)
        });
    }

    pub fn bind(&mut self, queue: &str, exchange: &str, key: &str) {
        self.binding(id::QUEUE_BIND, queue, exchange, key, b"");
        self.expect(1, id::QUEUE_BIND_OK);
    }

    /// A bind of a queue or an exchange with arguments.
    pub fn binding(&mut self, id: Id, to: &str, exchange: &str, key: &str, arguments: &[u8]) {
        self.send(1, id, |frame| {
            let frame = frame
                .short(0)
                .shortstr(to.as_bytes())
                .shortstr(exchange.as_bytes())
                .shortstr(key.as_bytes());
            let frame = match id {
                id::QUEUE_UNBIND => frame,
                _ => frame.octet(0),
            };
            frame.longstr(arguments)
        });
    }

    /// Deletes a queue; how many messages it had.
    pub fn delete(&mut self, queue: &str, bits: u8) -> u32 {
        self.send_delete(queue, bits);
        let arguments = self.expect(1, id::QUEUE_DELETE_OK).arguments;
        Reader::new(&arguments).long().expect("a count")
    }

    pub fn send_delete(&mut self, queue: &str, bits: u8) {
        self.send(1, id::QUEUE_DELETE, |frame| {
            frame.short(0).shortstr(queue.as_bytes()).octet(bits)
        });
    }

    // --- Messages ---

    pub fn publish(&mut self, exchange: &str, key: &str, body: &str) {
        self.publish_with(exchange, key, 0, &[0, 0], body.as_bytes());
    }

    /// A message with its bits (1 = mandatory) and its properties, flags first.
    pub fn publish_with(
        &mut self,
        exchange: &str,
        key: &str,
        bits: u8,
        properties: &[u8],
        body: &[u8],
    ) {
        let bytes = published(exchange, key, bits, properties, body);
        self.send_bytes(&bytes);
    }

    pub fn select_confirms(&mut self) {
        self.call(
            1,
            id::CONFIRM_SELECT,
            |frame| frame.octet(0),
            id::CONFIRM_SELECT_OK,
        );
    }

    /// The next confirm: its tag, and whether it is for all before it too.
    pub fn confirm(&mut self) -> (u64, bool) {
        let arguments = self.expect(1, id::BASIC_ACK).arguments;
        let mut reader = Reader::new(&arguments);
        let tag = reader.longlong().expect("a tag");
        (tag, reader.octet().expect("a bit") != 0)
    }

    /// Publishes and waits until that is safe.
    pub fn publish_safely(&mut self, exchange: &str, key: &str, body: &str) {
        self.publish(exchange, key, body);
        self.confirm();
    }

    pub fn prefetch(&mut self, count: u16, global: u8) {
        self.call(
            1,
            id::BASIC_QOS,
            |frame| frame.long(0).short(count).octet(global),
            id::BASIC_QOS_OK,
        );
    }

    pub fn consume(&mut self, queue: &str, tag: &str, bits: u8) -> String {
        self.send_consume(queue, tag, bits, b"");
        let arguments = self.expect(1, id::BASIC_CONSUME_OK).arguments;
        text(Reader::new(&arguments).shortstr().expect("a tag"))
    }

    pub fn send_consume(&mut self, queue: &str, tag: &str, bits: u8, arguments: &[u8]) {
        self.send(1, id::BASIC_CONSUME, |frame| {
            frame
                .short(0)
                .shortstr(queue.as_bytes())
                .shortstr(tag.as_bytes())
                .octet(bits)
                .longstr(arguments)
        });
    }

    pub fn delivered(&mut self) -> Delivered {
        let said = self.expect(1, id::BASIC_DELIVER);
        let mut reader = Reader::new(&said.arguments);
        let consumer = text(reader.shortstr().expect("a consumer"));
        delivered(consumer, reader, said.content)
    }

    /// Takes one message, if there is one; with how many are left.
    pub fn get(&mut self, queue: &str, bits: u8) -> Option<(Delivered, u32)> {
        self.send(1, id::BASIC_GET, |frame| {
            frame.short(0).shortstr(queue.as_bytes()).octet(bits)
        });
        let said = self.next().expect("the broker closed the connection");
        if said.id == id::BASIC_GET_EMPTY {
            return None;
        }
        assert_eq!(said.id, id::BASIC_GET_OK, "{:?}", said.arguments);
        let left = said.arguments.last_chunk().expect("a count");
        let left = u32::from_be_bytes(*left);
        let reader = Reader::new(&said.arguments);
        Some((delivered(String::new(), reader, said.content), left))
    }

    pub fn ack(&mut self, tag: u64, multiple: bool) {
        self.send(1, id::BASIC_ACK, |frame| {
            frame.longlong(tag).octet(u8::from(multiple))
        });
    }

    pub fn reject(&mut self, tag: u64, requeue: bool) {
        self.send(1, id::BASIC_REJECT, |frame| {
            frame.longlong(tag).octet(u8::from(requeue))
        });
    }
}

fn delivered(consumer: String, mut reader: Reader<'_>, content: Option<Content>) -> Delivered {
    Delivered {
        consumer,
        tag: reader.longlong().expect("a tag"),
        redelivered: reader.octet().expect("a bit") != 0,
        exchange: text(reader.shortstr().expect("an exchange")),
        key: text(reader.shortstr().expect("a key")),
        content: content.expect("a message follows"),
    }
}

/// The frames of a publish on channel 1.
pub fn published(exchange: &str, key: &str, bits: u8, properties: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Frame::method(&mut out, 1, id::BASIC_PUBLISH)
        .short(0)
        .shortstr(exchange.as_bytes())
        .shortstr(key.as_bytes())
        .octet(bits)
        .end();
    let mut header = vec![0, 60, 0, 0];
    header.extend_from_slice(&(body.len() as u64).to_be_bytes());
    header.extend_from_slice(properties);
    raw_frame(&mut out, 2, &header);
    for piece in body.chunks(FRAME_BYTES_MAX as usize - 8) {
        raw_frame(&mut out, 3, piece);
    }
    out
}

fn raw_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.extend_from_slice(&[kind, 0, 1]);
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out.push(0xce);
}

/// What a client says that understands all of the extensions.
pub fn capabilities() -> Vec<u8> {
    let mut inner = Vec::new();
    for name in [
        "consumer_cancel_notify",
        "connection.blocked",
        "basic.nack",
        "authentication_failure_close",
    ] {
        table::put_bool(&mut inner, name.as_bytes(), true);
    }
    let mut properties = Vec::new();
    table::put_inner(&mut properties, b"capabilities", b'F', &inner);
    properties
}
