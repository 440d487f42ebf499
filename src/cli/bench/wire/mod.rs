//! The bytes of a benchmark: commands out, replies in. One file for each protocol.
//!
//! A body is the message's number and the time it was due to be sent (nanoseconds since the run
//! began), 8 bytes each, little-endian, then filler that is the same in every message. So one
//! message is a template with two numbers to fill in, whatever the protocol around it is.

mod amqp;
mod beanstalkd;
pub mod frames;
mod nats;
mod redis;
mod streams;
mod text;

use std::fmt::Debug;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::cli::error::CliError;

use super::connection::{Handles, Role};
use super::plan::{Plan, Protocol};

/// How long an answer is awaited before and after a run.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What answers a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipts {
    /// Every publish command is answered.
    Each,
    /// The commands that left together are answered once: the server has read them.
    Run,
    /// Nothing is.
    Never,
}

/// What became of handles that were to be settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settling {
    /// Answers that will come.
    pub answers: u64,
    /// Messages settled by commands that get no answer.
    pub unanswered: u64,
}

/// A protocol, for one queue: everything but reading its replies, which [`Replies`] does.
pub trait Dialect: Debug {
    /// One message with this body as it stands in a publish, and where the body begins in it.
    fn record(&self, body: &[u8]) -> (Vec<u8>, usize);

    /// Appends what stands before `messages` records, of `bytes` bytes together.
    fn batch_head(&self, _out: &mut Vec<u8>, _messages: u64, _bytes: u64) {}

    /// Appends what stands behind the records of a batch.
    fn batch_tail(&self, _out: &mut Vec<u8>) {}

    /// What answers a publish.
    fn receipts(&self) -> Receipts {
        Receipts::Each
    }

    /// Appends what asks for the answer of [`Receipts::Run`].
    fn flush(&self, _out: &mut Vec<u8>) {}

    /// Appends a subscription; how many answers begin it.
    fn subscribe(&self, _out: &mut Vec<u8>, _credit: u64) -> u64 {
        0
    }

    /// Appends a command that takes at most `messages`.
    fn pull(&self, _out: &mut Vec<u8>, _messages: u64) {}

    /// Appends a command that takes at most `messages` and waits until there is one; how many it may
    /// take, or 0 where the protocol has none.
    fn wait(&self, _out: &mut Vec<u8>, _messages: u64) -> u64 {
        0
    }

    /// Appends what settles messages, at most `most` with one command.
    fn settle(&self, _out: &mut Vec<u8>, _handles: &Handles, _most: usize) -> Settling {
        Settling::default()
    }

    /// Appends what a consumer says at the end, where a server may otherwise forget the last
    /// settlements with the connection; how many answers that has.
    fn finish(&self, _out: &mut Vec<u8>) -> u64 {
        0
    }

    /// Appends the answer of a server's question whether somebody is there.
    fn pong(&self, _out: &mut Vec<u8>) {}

    /// Begins a connection, with at least one exchange; the stream blocks.
    ///
    /// # Errors
    /// What the socket said; `Other` with the server's words when it refuses.
    fn greet(&self, stream: &mut TcpStream, role: Role) -> io::Result<()>;

    /// Makes the queue, or empties it, unless it was there before (`own` is false); the server's
    /// name and version.
    ///
    /// # Errors
    /// `CliError::Failed` when there is no server, or it refuses.
    fn prepare(&mut self, own: bool) -> Result<String, CliError>;

    /// Messages in the queue, waiting or handed out and not settled; `None` when the server cannot
    /// tell.
    ///
    /// # Errors
    /// `CliError::Failed` when the server has gone or refuses.
    fn held(&self) -> Result<Option<u64>, CliError>;

    /// Deletes the queue.
    ///
    /// # Errors
    /// `CliError::Failed` when the server has gone or refuses.
    fn clean_up(&self) -> Result<(), CliError>;
}

/// The protocol that a plan names.
pub fn dialect(plan: &Plan, queue: &str, addr: SocketAddr) -> Box<dyn Dialect> {
    match plan.protocol {
        Protocol::Text => Box::new(text::Text::new(plan, queue)),
        Protocol::Redis => Box::new(redis::Redis::new(plan, queue, addr)),
        Protocol::Streams => Box::new(streams::Streams::new(plan, queue, addr)),
        Protocol::Nats => Box::new(nats::Nats::new(plan, queue, addr)),
        Protocol::Beanstalkd => Box::new(beanstalkd::Beanstalkd::new(queue, addr)),
        Protocol::Amqp => Box::new(amqp::Amqp::new(plan, queue, addr)),
        Protocol::Frames => Box::new(frames::Frames::new(plan, addr)),
    }
}

/// The messages of a run: the template and what is known again in it.
pub struct Wire<'a> {
    /// How to say it.
    pub dialect: &'a dyn Dialect,
    /// A body, its number and time still 0.
    body: Vec<u8>,
    /// The same as it stands in a command.
    record: Vec<u8>,
    /// Where the body begins in `record`.
    body_at: usize,
}

/// The byte of the filler at `index` of the body.
fn filler(index: usize) -> u8 {
    b'a' + (index % 26) as u8
}

impl<'a> Wire<'a> {
    /// Messages of `body_bytes` bytes.
    pub fn new(dialect: &'a dyn Dialect, body_bytes: usize) -> Wire<'a> {
        let mut body = vec![0; 16];
        body.extend((16..body_bytes).map(filler));
        let (record, body_at) = dialect.record(&body);
        Wire {
            dialect,
            body,
            record,
            body_at,
        }
    }

    /// Appends one message of a publish command.
    #[inline]
    pub fn record(&self, out: &mut Vec<u8>, number: u64, due_ns: u64) {
        let at = out.len() + self.body_at;
        out.extend_from_slice(&self.record);
        out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        out[at + 8..at + 16].copy_from_slice(&due_ns.to_le_bytes());
    }

    /// Appends what stands before `messages` records of a batch.
    pub fn batch_head(&self, out: &mut Vec<u8>, messages: u64) {
        let bytes = self.record.len() as u64 * messages;
        self.dialect.batch_head(out, messages, bytes);
    }

    /// The number and due time of a body, `None` when it is not one of this run.
    #[inline]
    pub fn open(&self, body: &[u8]) -> Option<(u64, u64)> {
        if body.len() != self.body.len() || body[16..] != self.body[16..] {
            return None;
        }
        let (number, due) = body[..16].split_at(8);
        let number = u64::from_le_bytes(number.try_into().expect("split at 8"));
        let due = u64::from_le_bytes(due.try_into().expect("8 of 16"));
        Some((number, due))
    }
}

/// One thing that the server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// A line protocol's `OK`, or Redis' number: what follows it.
    Done(&'a [u8]),
    /// So many publish commands were done, the oldest first.
    Receipts(u64),
    /// All publish commands that left together were read.
    RunRead,
    /// A subscription has begun, or a connection may end.
    Subscribed,
    /// One command has settled so many messages.
    Settled(u64),
    /// A message; the handle is empty when there is nothing to settle.
    Message {
        /// What settles it.
        handle: &'a [u8],
        /// It was delivered before.
        again: bool,
        /// Its octets.
        body: &'a [u8],
    },
    /// A pull has been answered.
    End,
    /// The server asks whether somebody is there.
    Ping,
    /// A refusal, the whole line.
    Refused(&'a [u8]),
}

/// Reads the replies of one connection.
#[derive(Debug)]
pub enum Replies {
    /// The line protocol's have no state.
    Text,
    /// Redis'.
    Redis(redis::Replies),
    /// Redis Streams'.
    Streams(streams::Replies),
    /// NATS'.
    Nats(nats::Replies),
    /// beanstalkd's have no state.
    Beanstalkd,
    /// AMQP's.
    Amqp(amqp::Replies),
    /// The forwarder's.
    Frames(frames::Replies),
}

impl Replies {
    /// At the beginning of a connection, after it was greeted.
    pub fn new(plan: &Plan, role: Role) -> Replies {
        match plan.protocol {
            Protocol::Text => Replies::Text,
            Protocol::Redis => Replies::Redis(redis::Replies::new(plan)),
            Protocol::Streams => Replies::Streams(streams::Replies::new(role)),
            Protocol::Nats => Replies::Nats(nats::Replies { role }),
            Protocol::Beanstalkd => Replies::Beanstalkd,
            Protocol::Amqp => Replies::Amqp(amqp::Replies::new(role)),
            Protocol::Frames => Replies::Frames(frames::Replies {
                role,
                body_bytes: plan.body_bytes,
            }),
        }
    }

    /// Tells every whole reply in `input`; returns how many bytes they took.
    #[inline]
    pub fn read(&mut self, input: &[u8], tell: impl FnMut(Said<'_>)) -> usize {
        match self {
            Replies::Text => text::read(input, tell),
            Replies::Redis(replies) => replies.read(input, tell),
            Replies::Streams(replies) => replies.read(input, tell),
            Replies::Nats(replies) => replies.read(input, tell),
            Replies::Beanstalkd => beanstalkd::read(input, tell),
            Replies::Amqp(replies) => replies.read(input, tell),
            Replies::Frames(replies) => replies.read(input, tell),
        }
    }
}

/// A blocking connection for what comes before and after a run, with a limit for every wait.
fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, ANSWER_WITHIN)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    Ok(stream)
}

/// Sends `command` and reads one line, without its end. Nothing behind that line may be on its
/// way.
fn ask_line(stream: &mut TcpStream, command: &[u8]) -> io::Result<String> {
    stream.write_all(command)?;
    read_line(stream)
}

/// Reads one line, byte by byte so that nothing behind it is taken.
fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    BufReader::with_capacity(1, stream)
        .take(1 << 20)
        .read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// The error for an answer that is not the one awaited.
fn unexpected(answer: impl AsRef<[u8]>) -> io::Error {
    let answer = String::from_utf8_lossy(answer.as_ref()).into_owned();
    io::Error::other(format!("the server answered {answer:?}"))
}

/// The sentence for a server that cannot be talked to.
fn unreachable(name: &str, addr: SocketAddr, error: &io::Error) -> CliError {
    CliError::failed(format!("no {name} answers at {addr}: {error}"))
}

/// Appends a decimal.
fn push_decimal(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod testing {
    //! What the protocols' tests share.

    use super::*;
    use crate::cli::bench::plan;

    /// A plan as the command line makes it.
    pub fn plan(line: &str) -> Plan {
        let args = lexopt::Parser::from_args(line.split_whitespace());
        plan::parse(args).expect("the arguments are good")
    }

    /// An address where nobody is asked.
    pub fn nowhere() -> SocketAddr {
        "127.0.0.1:1".parse().expect("an address")
    }

    /// What is told of `input`, which must be the same however it is cut.
    pub fn said(start: impl Fn() -> Replies, input: &[u8]) -> Vec<String> {
        let show = |said: Said<'_>| match said {
            Said::Message {
                handle,
                again,
                body,
            } => format!(
                "{}{} {}",
                handle.escape_ascii(),
                if again { " again" } else { "" },
                String::from_utf8_lossy(body)
            ),
            Said::Done(rest) => format!("done {}", String::from_utf8_lossy(rest)),
            Said::Refused(line) => format!("refused {}", String::from_utf8_lossy(line)),
            Said::End => "end".to_owned(),
            other => format!("{other:?}"),
        };
        let mut whole = Vec::new();
        let mut replies = start();
        let taken = replies.read(input, |said| whole.push(show(said)));
        assert_eq!(taken, input.len());
        for step in 1..input.len() {
            let (mut told, mut held) = (Vec::new(), Vec::new());
            let mut replies = start();
            for piece in input.chunks(step) {
                held.extend_from_slice(piece);
                let taken = replies.read(&held, |said| told.push(show(said)));
                held.drain(..taken);
            }
            assert_eq!(told, whole, "in steps of {step}");
        }
        whole
    }

    /// Two messages of one batch, or one alone, with the zeroes of number and time as `0`.
    pub fn published(dialect: &dyn Dialect, body_bytes: usize, batch: u64) -> String {
        let wire = Wire::new(dialect, body_bytes);
        let mut out = Vec::new();
        if batch > 1 {
            wire.batch_head(&mut out, batch);
        }
        for _ in 0..batch {
            wire.record(&mut out, 0, 0);
        }
        if batch > 1 {
            dialect.batch_tail(&mut out);
        }
        let text = String::from_utf8(out).expect("small numbers are ASCII");
        text.replace('\0', "0")
    }

    /// What a function appends, as text.
    pub fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    /// Handles as they are noted.
    pub fn handles(list: &[&[u8]]) -> Handles {
        let mut handles = Handles::default();
        for handle in list {
            handles.push(handle);
        }
        handles
    }

    #[test]
    fn a_body_is_known_again() {
        let dialect = text::Text::new(&plan("e2e --size 40"), "q");
        let wire = Wire::new(&dialect, 40);
        let mut out = Vec::new();
        wire.record(&mut out, 7, u64::MAX);
        let body = out[wire.body_at..wire.body_at + 40].to_vec();
        assert_eq!(wire.open(&body), Some((7, u64::MAX)));
        assert_eq!(wire.open(&body[..39]), None);
        for at in 16..40 {
            let mut bad = body.clone();
            bad[at] ^= 1;
            assert_eq!(wire.open(&bad), None, "bit flipped at {at}");
        }
    }
}
