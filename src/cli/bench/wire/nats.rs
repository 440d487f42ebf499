//! NATS core: `PUB`, and `SUB` with one queue group, or without one for a fan-out. Nothing is
//! stored and nothing is settled. A publish alone is answered by nothing; where only publishes
//! are measured, a `PING` behind those that left together shows that they were read.

use std::io;
use std::net::{SocketAddr, TcpStream};

use crate::cli::bench::connection::Role;
use crate::cli::bench::plan::{Mode, Plan};
use crate::cli::error::CliError;
use crate::protocol::text::value::decimal;

use super::{Dialect, Receipts, Said, ask_line, connect, read_line, unexpected};

/// A subject.
#[derive(Debug)]
pub struct Nats {
    addr: SocketAddr,
    subject: String,
    mode: Mode,
}

impl Nats {
    /// The subject of that name as a plan uses it.
    pub fn new(plan: &Plan, subject: &str, addr: SocketAddr) -> Nats {
        Nats {
            addr,
            subject: subject.to_owned(),
            mode: plan.mode,
        }
    }
}

/// What begins every connection; `INFO` has been read before.
const CONNECT: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\
    \"version\":\"1\",\"protocol\":1}\r\nPING\r\n";

/// Begins a connection; what the server says of itself.
fn begin(stream: &mut TcpStream) -> io::Result<String> {
    let info = read_line(stream)?;
    let answer = ask_line(stream, CONNECT)?;
    match info.strip_prefix("INFO ") {
        Some(info) if answer == "PONG" => Ok(info.to_owned()),
        Some(_) => Err(unexpected(answer)),
        None => Err(unexpected(info)),
    }
}

impl Dialect for Nats {
    fn record(&self, body: &[u8]) -> (Vec<u8>, usize) {
        let head = format!("PUB {} {}\r\n", self.subject, body.len());
        ([head.as_bytes(), body, b"\r\n"].concat(), head.len())
    }

    fn receipts(&self) -> Receipts {
        if self.mode == Mode::Publish {
            Receipts::Run
        } else {
            Receipts::Never
        }
    }

    fn flush(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"PING\r\n");
    }

    fn subscribe(&self, out: &mut Vec<u8>, _credit: u64) -> u64 {
        let group = if self.mode == Mode::FanOut {
            ""
        } else {
            " group"
        };
        let command = format!("SUB {}{group} 1\r\nPING\r\n", self.subject);
        out.extend_from_slice(command.as_bytes());
        1
    }

    fn pong(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"PONG\r\n");
    }

    fn greet(&self, stream: &mut TcpStream, _role: Role) -> io::Result<()> {
        begin(stream).map(|_| ())
    }

    fn prepare(&mut self, _own: bool) -> Result<String, CliError> {
        let info = connect(self.addr)
            .and_then(|mut stream| begin(&mut stream))
            .map_err(|error| super::unreachable("NATS server", self.addr, &error))?;
        let version = info
            .split_once("\"version\":\"")
            .and_then(|(_, rest)| rest.split('"').next());
        Ok(format!("nats/{}", version.unwrap_or("unknown")))
    }

    fn held(&self) -> Result<Option<u64>, CliError> {
        Ok(None)
    }

    fn clean_up(&self) -> Result<(), CliError> {
        Ok(())
    }
}

/// Reads replies.
#[derive(Debug)]
pub struct Replies {
    /// What a `PONG` answers.
    pub role: Role,
}

impl Replies {
    /// Tells the whole replies.
    #[inline]
    pub fn read(&self, input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
        let mut at = 0;
        while let Some(length) = memchr::memchr(b'\n', &input[at..]) {
            let line = &input[at..at + length.saturating_sub(1)];
            let next = at + length + 1;
            match line {
                [b'M', b'S', b'G', b' ', rest @ ..] => {
                    let word = memchr::memrchr(b' ', rest).map_or(rest, |space| &rest[space + 1..]);
                    let Some(size) = decimal(word) else {
                        tell(Said::Refused(line));
                        at = next;
                        continue;
                    };
                    let size = size as usize;
                    let Some(body) = input.get(next..next + size + 2) else {
                        return at;
                    };
                    tell(Said::Message {
                        handle: &[],
                        again: false,
                        body: &body[..size],
                    });
                    at = next + size + 2;
                    continue;
                }
                b"PONG" if self.role == Role::Producer => tell(Said::RunRead),
                b"PONG" => tell(Said::Subscribed),
                b"PING" => tell(Said::Ping),
                b"+OK" => {}
                line if line.starts_with(b"INFO ") => {}
                _ => tell(Said::Refused(line)),
            }
            at = next;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{nowhere, plan, published, said, written};
    use super::*;

    #[test]
    fn replies() {
        let input = b"PONG\r\nMSG q 1 3\r\na\nb\r\nPING\r\nMSG q 1 reply 0\r\n\r\n+OK\r\n\
            INFO {}\r\n-ERR 'no'\r\n";
        let read = |role| said(|| super::super::Replies::Nats(Replies { role }), input);
        let rest = [" a\nb", "Ping", " ", "refused -ERR 'no'"];
        assert_eq!(read(Role::Consumer), [&["Subscribed"], &rest[..]].concat());
        assert_eq!(read(Role::Producer), [&["RunRead"], &rest[..]].concat());
    }

    #[test]
    fn commands() {
        let nats = |line: &str| Nats::new(&plan(line), "q", nowhere());
        let one = nats("e2e --nats x:1");
        assert_eq!(published(&one, 18, 1), "PUB q 18\r\n0000000000000000qr\r\n");
        assert_eq!(one.receipts(), Receipts::Never);
        assert_eq!(nats("publish --nats x:1").receipts(), Receipts::Run);
        let subscribe = |nats: &Nats| written(|out| assert_eq!(nats.subscribe(out, 5), 1));
        assert_eq!(subscribe(&one), "SUB q group 1\r\nPING\r\n");
        assert_eq!(subscribe(&nats("fanout --nats x:1")), "SUB q 1\r\nPING\r\n");
    }
}
