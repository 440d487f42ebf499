//! A small blocking client of the line protocol, for the subcommands that talk to a broker.
//!
//! Commands are collected and leave with [`Client::flush`]; replies are read one at a time, in
//! the order of the commands. Nothing is retried: what went wrong is said in one sentence.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::broker::command::Typed;
use crate::protocol::text::encode;

use super::args::count;
use super::error::CliError;

/// Longest wait for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much is read at once, bytes.
const READ_BYTES: usize = 64 << 10;

/// One thing that the broker said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `OK …`: what follows the word.
    Ok(String),
    /// `ERR …`: the code, and the sentence for people.
    Error {
        /// The word that programs look at.
        code: String,
        /// What went wrong and what to do instead.
        text: String,
    },
    /// `MSG …` with its body.
    Message(Message),
    /// `END n`
    End(u64),
    /// `END src gone=…`: a subscription ended by itself.
    Gone(String),
    /// `DATA $n` with its bytes.
    Data(Vec<u8>),
    /// A line that needs no answer: `PONG`, `LAG`, `EXPIRED`.
    Other(String),
}

/// One delivered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Queue, or queue and group, as the broker prints it.
    pub source: String,
    /// What settles it; absent when there is nothing to settle.
    pub handle: Option<String>,
    /// The options of the line in order: `try`, `ts`, `key`, `h.<name>` …, values decoded.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The body's octets.
    pub body: Vec<u8>,
}

/// A connection to a broker.
pub struct Client {
    stream: TcpStream,
    addr: String,
    output: Vec<u8>,
    /// Bytes received and not yet taken: `input[start..]`.
    input: Vec<u8>,
    start: usize,
}

impl Client {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// `CliError::Failed` with a sentence that says how to start a broker.
    pub fn connect(addr: &str) -> Result<Client, CliError> {
        let failed = |error: io::Error| {
            CliError::failed(match error.kind() {
                io::ErrorKind::ConnectionRefused => format!(
                    "no broker answers at {addr}: start one with 'ringmq serve', or name its \
                     address with --addr or RINGMQ_ADDR"
                ),
                _ => format!("cannot connect to {addr}: {error}"),
            })
        };
        let resolved = addr.to_socket_addrs().map_err(failed)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in resolved {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    return Ok(Client {
                        stream,
                        addr: addr.to_owned(),
                        output: Vec::new(),
                        input: Vec::new(),
                        start: 0,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// Where to append commands; they leave with [`Client::flush`].
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Sends what was collected.
    ///
    /// # Errors
    /// `CliError::Failed` when the connection is lost.
    pub fn flush(&mut self) -> Result<(), CliError> {
        let sent = self.stream.write_all(&self.output);
        self.output.clear();
        sent.map_err(|error| self.lost(&error))
    }

    /// Sends what was collected and waits for the next reply.
    ///
    /// # Errors
    /// `CliError::Failed` when the connection is lost or the broker is not one.
    pub fn receive(&mut self) -> Result<Reply, CliError> {
        self.flush()?;
        loop {
            if let Some(reply) = self.buffered()? {
                return Ok(reply);
            }
            self.fill()?;
        }
    }

    /// A reply that has already arrived, if it is whole.
    ///
    /// # Errors
    /// `CliError::Failed` when the bytes are not the line protocol.
    pub fn buffered(&mut self) -> Result<Option<Reply>, CliError> {
        match parse(&self.input[self.start..]) {
            Ok(Some((reply, taken))) => {
                self.start += taken;
                Ok(Some(reply))
            }
            Ok(None) => Ok(None),
            Err(line) => Err(CliError::failed(format!(
                "{} is not a RingMQ broker: it said '{line}'",
                self.addr
            ))),
        }
    }

    /// Reads what there is. With a limit set by [`Client::wait_at_most`] it returns false when
    /// nothing came in time.
    ///
    /// # Errors
    /// `CliError::Failed` when the connection is lost.
    pub fn fill(&mut self) -> Result<bool, CliError> {
        self.input.drain(..self.start);
        self.start = 0;
        let held = self.input.len();
        self.input.resize(held + READ_BYTES, 0);
        let read = self.stream.read(&mut self.input[held..]);
        self.input.truncate(held + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(CliError::failed(format!(
                "the broker at {} has gone",
                self.addr
            ))),
            Ok(_) => Ok(true),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(false),
                io::ErrorKind::Interrupted => Ok(true),
                _ => Err(self.lost(&error)),
            },
        }
    }

    /// Limits each [`Client::fill`].
    ///
    /// # Errors
    /// `CliError::Failed` when the socket does not take it.
    pub fn wait_at_most(&mut self, limit: Duration) -> Result<(), CliError> {
        let set = self.stream.set_read_timeout(Some(limit));
        set.map_err(|error| self.lost(&error))
    }

    /// The next reply, which must be `OK`; what follows the word.
    ///
    /// # Errors
    /// `CliError::Failed` with the broker's sentence when it is `ERR`.
    pub fn expect_ok(&mut self) -> Result<String, CliError> {
        match self.receive()? {
            Reply::Ok(rest) => Ok(rest),
            other => Err(unexpected(other)),
        }
    }

    /// The next reply, which must be `DATA`.
    ///
    /// # Errors
    /// `CliError::Failed` with the broker's sentence when it is `ERR`.
    pub fn expect_data(&mut self) -> Result<Vec<u8>, CliError> {
        match self.receive()? {
            Reply::Data(data) => Ok(data),
            other => Err(unexpected(other)),
        }
    }

    fn lost(&self, error: &io::Error) -> CliError {
        CliError::failed(format!("lost the broker at {}: {error}", self.addr))
    }
}

/// The error for a reply that does not belong to what was asked.
pub fn unexpected(reply: Reply) -> CliError {
    CliError::failed(match reply {
        Reply::Error { code, text } if text.is_empty() => format!("the broker said {code}"),
        Reply::Error { code, text } => format!("{text} ({code})"),
        other => format!("the broker said something that does not belong here: {other:?}"),
    })
}

/// The first reply in `input` and its length, `None` while it is not whole; the error is the
/// line that is no reply.
fn parse(input: &[u8]) -> Result<Option<(Reply, usize)>, String> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        return Ok(None);
    };
    let line = String::from_utf8_lossy(&input[..end]).into_owned();
    let bad = || line.chars().take(80).collect::<String>();
    let (kind, rest) = line.split_once(' ').unwrap_or((line.as_str(), ""));
    let taken = end + 1;
    let reply = match kind {
        "OK" => Reply::Ok(rest.to_owned()),
        "ERR" => error(rest),
        "END" => match count(rest) {
            Some(count) => Reply::End(count),
            None => Reply::Gone(rest.to_owned()),
        },
        "PONG" | "LAG" | "EXPIRED" => Reply::Other(line),
        "MSG" | "DATA" => {
            let last = rest.rsplit(' ').next().unwrap_or_default();
            let size = last.strip_prefix('$').and_then(count).ok_or_else(bad)?;
            let size = usize::try_from(size).map_err(|_| bad())?;
            let Some(body) = input
                .get(taken..)
                .and_then(|input| input.get(..size.checked_add(1)?))
            else {
                return Ok(None);
            };
            let body = body[..size].to_vec();
            let taken = taken + size + 1;
            let reply = match kind {
                "DATA" => Reply::Data(body),
                _ => Reply::Message(message(rest, body).ok_or_else(bad)?),
            };
            return Ok(Some((reply, taken)));
        }
        _ => return Err(bad()),
    };
    Ok(Some((reply, taken)))
}

/// What follows `ERR`.
fn error(rest: &str) -> Reply {
    let (words, text) = match rest.split_once(" :") {
        Some((words, text)) => (words, text),
        None => (rest, ""),
    };
    let code = words.split(' ').next().unwrap_or_default();
    Reply::Error {
        code: code.to_owned(),
        text: text.to_owned(),
    }
}

/// What follows `MSG`, the length included.
fn message(rest: &str, body: Vec<u8>) -> Option<Message> {
    let mut words = rest.split(' ');
    let source = words.next()?.to_owned();
    let handle = words
        .next()
        .filter(|handle| *handle != "-")
        .map(str::to_owned);
    let fields = words
        .filter_map(|word| word.split_once('='))
        .map(|(key, value)| {
            (
                key.to_owned(),
                Typed(value.as_bytes()).decoded(&mut Vec::new()).to_vec(),
            )
        })
        .collect();
    Some(Message {
        source,
        handle,
        fields,
        body,
    })
}

/// A name as the protocol types it: odd octets become `%XX`.
pub fn typed_name(name: &str) -> String {
    let mut typed = Vec::with_capacity(name.len());
    encode::typed(&mut typed, name.as_bytes());
    String::from_utf8(typed).expect("a typed name is ASCII")
}

/// A queue or `queue/group`, several joined by commas, as the protocol types them.
pub fn typed_sources(text: &str) -> String {
    let source = |source: &str| match source.split_once('/') {
        Some((queue, group)) => format!("{}/{}", typed_name(queue), typed_name(group)),
        None => typed_name(source),
    };
    text.split(',').map(source).collect::<Vec<_>>().join(",")
}

/// An option's value as the protocol types it: spaces, controls and `%` become `%XX`.
pub fn typed_value(value: &str) -> String {
    let mut typed = String::with_capacity(value.len());
    for letter in value.chars() {
        match u8::try_from(letter) {
            Ok(octet) if letter.is_ascii() && encode::is_escaped(octet) => {
                typed += &format!("%{octet:02X}");
            }
            _ => typed.push(letter),
        }
    }
    typed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reply is found with any bytes behind it, and not before its last byte.
    fn check(input: &str, want: Reply) {
        let behind = format!("{input}OK more\n");
        let (reply, taken) = parse(behind.as_bytes())
            .expect("a reply")
            .expect("a whole one");
        assert_eq!(reply, want);
        assert_eq!(taken, input.len(), "{input:?}");
        for cut in 0..input.len() {
            assert_eq!(
                parse(&input.as_bytes()[..cut]),
                Ok(None),
                "{input:?} cut at {cut}"
            );
        }
    }

    fn sent(source: &str, handle: Option<&str>, fields: &[(&str, &str)], body: &str) -> Reply {
        let field = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
        Reply::Message(Message {
            source: source.to_owned(),
            handle: handle.map(str::to_owned),
            fields: fields.iter().map(field).collect(),
            body: body.as_bytes().to_vec(),
        })
    }

    #[test]
    fn replies() {
        check("OK 1 disk\n", Reply::Ok("1 disk".into()));
        check("OK\n", Reply::Ok(String::new()));
        check("END 12\n", Reply::End(12));
        check(
            "END jobs gone=deleted\n",
            Reply::Gone("jobs gone=deleted".into()),
        );
        check("DATA $3\na\nb\n", Reply::Data(b"a\nb".to_vec()));
        check("PONG :x\n", Reply::Other("PONG :x".into()));
        check(
            "MSG jobs 1.2.3 $0\n\n",
            sent("jobs", Some("1.2.3"), &[], ""),
        );
        check(
            "MSG a/b - id=7 try=2 h.x=a%20b $4\na\nb\n\n",
            sent(
                "a/b",
                None,
                &[("id", "7"), ("try", "2"), ("h.x", "a b")],
                "a\nb\n",
            ),
        );
        let error = |code: &str, text: &str| Reply::Error {
            code: code.to_owned(),
            text: text.to_owned(),
        };
        check(
            "ERR NOQUEUE :no such queue\n",
            error("NOQUEUE", "no such queue"),
        );
        check(
            "ERR FULL retry=100 :it is full\n",
            error("FULL", "it is full"),
        );
        check("ERR STALE done=1 stale=h\n", error("STALE", ""));
    }

    #[test]
    fn what_is_no_reply() {
        for line in [
            "HTTP/1.1 400\n",
            "-ERR\n",
            "MSG jobs 1.1.1 12\n",
            "DATA $-1\n",
            "\n",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line:?}");
        }
        let huge = format!("DATA ${}\n", u64::MAX - 1);
        assert_eq!(
            parse(huge.as_bytes()),
            Ok(None),
            "announced lengths allocate nothing"
        );
    }

    #[test]
    fn what_is_typed() {
        assert_eq!(typed_name("jobs.eu-1"), "jobs.eu-1");
        assert_eq!(typed_name("a b/c%"), "a%20b%2Fc%25");
        assert_eq!(typed_name(":a:b"), "%3Aa:b");
        assert_eq!(typed_name("é"), "%C3%A9");
        assert_eq!(typed_sources("a/b,c d"), "a/b,c%20d");
        assert_eq!(typed_value("x=1 %\n"), "x=1%20%25%0A");
        assert_eq!(typed_value("é"), "é");
    }
}
