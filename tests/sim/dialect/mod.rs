//! What a client speaks: how a command becomes octets, and how what the broker says becomes the lines that
//! the oracle judges. Whatever a connection speaks, the oracle is told the same things.

pub mod amqp;
pub mod resp;

use crate::command::Command;
use crate::rng::Rng;
use crate::wire::{Line, LineReader};

/// A lease that only the end of its connection ends, microseconds.
pub const FOREVER_US: u64 = 1 << 60;

/// What handles begin with that a client of another protocol would not know: the oracle's own names.
pub const UNTOLD: &str = "untold-";

/// What a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// The line protocol.
    #[default]
    Text,
    /// RESP: lists, with the safe pop.
    Resp,
    /// AMQP 0-9-1, publishing without confirms.
    Amqp,
    /// The same with confirms.
    AmqpConfirmed,
}

impl Dialect {
    /// AMQP, with confirms or without.
    pub fn is_amqp(self) -> bool {
        matches!(self, Dialect::Amqp | Dialect::AmqpConfirmed)
    }

    /// The octets of a command.
    pub fn typed(self, command: &Command, rng: &mut Rng) -> Vec<u8> {
        match self {
            Dialect::Text => command.typed(rng),
            Dialect::Resp => resp::typed(&command.kind, rng),
            Dialect::Amqp | Dialect::AmqpConfirmed => amqp::typed(self, command, rng),
        }
    }
}

/// Cuts what one connection is sent into lines.
#[derive(Debug)]
pub enum Reader {
    /// See [`LineReader`].
    Text(LineReader),
    /// See [`resp::Reader`].
    Resp(resp::Reader),
    /// See [`amqp::Reader`].
    Amqp(amqp::Reader),
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::Text(LineReader::default())
    }
}

impl Reader {
    /// The reader of connection number `link`.
    pub fn new(dialect: Dialect, link: usize) -> Reader {
        match dialect {
            Dialect::Text => Reader::Text(LineReader::default()),
            Dialect::Resp => Reader::Resp(resp::Reader::new(link)),
            Dialect::Amqp | Dialect::AmqpConfirmed => Reader::Amqp(amqp::Reader::new(link)),
        }
    }

    /// A command is on its way: its answer will come.
    pub fn expect(&mut self, command: &Command) {
        match self {
            Reader::Text(_) => {}
            Reader::Resp(reader) => reader.expect(&command.kind),
            Reader::Amqp(reader) => reader.expect(command),
        }
    }

    /// Takes octets in; gives every line that is complete now.
    ///
    /// # Errors
    ///
    /// What is wrong with the form of the octets.
    pub fn feed(&mut self, octets: &[u8]) -> Result<Vec<Line>, String> {
        match self {
            Reader::Text(reader) => reader.feed(octets),
            Reader::Resp(reader) => reader.feed(octets),
            Reader::Amqp(reader) => reader.feed(octets),
        }
    }

    /// Whether something has begun and not ended.
    pub fn inside_line(&self) -> bool {
        match self {
            Reader::Text(reader) => reader.inside_line(),
            Reader::Resp(reader) => reader.inside(),
            Reader::Amqp(reader) => reader.inside(),
        }
    }

    /// Whether what has not ended breaks off where the disk has failed: what an `EXEC` had not run then it never will.
    pub fn is_cut_by_failure(&self) -> bool {
        match self {
            Reader::Resp(reader) => reader.is_cut_by_failure(),
            Reader::Text(_) | Reader::Amqp(_) => false,
        }
    }
}

/// A line without a body.
fn line(kind: &str, tag: Option<&str>, words: &[&str]) -> Line {
    Line {
        kind: kind.to_string(),
        tag: tag.map(str::to_string),
        words: words.iter().map(|word| word.to_string()).collect(),
        text: None,
        body: None,
    }
}

/// A message.
fn message(tag: Option<&str>, words: &[&str], body: Vec<u8>) -> Line {
    Line {
        body: Some(body),
        ..line("MSG", tag, words)
    }
}

/// A queue's name as the doors say it: octets, where the line protocol has `%20`.
pub fn plain(name: &str) -> String {
    name.replace("%20", " ")
}
