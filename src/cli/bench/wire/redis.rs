//! Redis: lists by `RPUSH` and `LPOP` (`BLPOP` where a consumer waits), fan-out by `PUBLISH`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::cli::args::count;
use crate::cli::bench::connection::Role;
use crate::cli::bench::plan::{Mode, Plan};
use crate::cli::error::CliError;
use crate::protocol::text::value::decimal;

use super::{Dialect, Said, ask_line, connect, push_decimal, unexpected};

/// A list, or a channel for a fan-out.
#[derive(Debug)]
pub struct Redis {
    addr: SocketAddr,
    key: String,
    fan_out: bool,
    single: bool,
    pops: Pops,
}

/// How a consumer takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pops {
    /// One at a time: `LPOP`, and `BLPOP` to wait.
    One,
    /// Several, where nothing is waited for: `LPOP n`.
    Many,
    /// Several, also waiting: `LMPOP` and `BLMPOP`, whose answers have the same form.
    Waiting,
}

impl Pops {
    fn new(plan: &Plan) -> Pops {
        match (plan.mode, plan.pull_batch) {
            (_, 1) => Pops::One,
            (Mode::Pull, _) => Pops::Many,
            _ => Pops::Waiting,
        }
    }
}

impl Redis {
    /// The list of that name as a plan uses it.
    pub fn new(plan: &Plan, key: &str, addr: SocketAddr) -> Redis {
        Redis {
            addr,
            key: key.to_owned(),
            fan_out: plan.mode == Mode::FanOut,
            single: plan.batch == 1,
            pops: Pops::new(plan),
        }
    }

    /// The list's name as an argument.
    fn push_key(&self, out: &mut Vec<u8>) {
        push_bulk(out, self.key.as_bytes());
    }

    /// What ends `LMPOP` and `BLMPOP`.
    fn push_pop_many(&self, out: &mut Vec<u8>, messages: u64) {
        out.extend_from_slice(b"$1\r\n1\r\n");
        self.push_key(out);
        out.extend_from_slice(b"$4\r\nLEFT\r\n$5\r\nCOUNT\r\n");
        push_bulk(out, itoa::Buffer::new().format(messages).as_bytes());
    }
}

/// One inline command to the server; its answer.
pub fn ask(addr: SocketAddr, command: &str) -> Result<String, CliError> {
    let exchange = || -> io::Result<Vec<u8>> {
        let mut stream = connect(addr)?;
        stream.write_all(command.as_bytes())?;
        stream.write_all(b"\r\nQUIT\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| super::unreachable("Redis server", addr, &error))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.starts_with('-') {
        true => Err(CliError::failed(format!(
            "Redis refused {command}: {answer}"
        ))),
        false => Ok(answer),
    }
}

/// `redis/7.0.15`.
pub fn server_version(addr: SocketAddr) -> Result<String, CliError> {
    let info = ask(addr, "INFO server")?;
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"));
    Ok(format!("redis/{}", version.unwrap_or("unknown")))
}

/// What a command answers with a number; `None` if it answers something else.
pub fn length(addr: SocketAddr, command: &str) -> Result<Option<u64>, CliError> {
    let answer = ask(addr, command)?;
    let line = answer.lines().next();
    let number = line.and_then(|line| line.strip_prefix(':'));
    Ok(number.and_then(count))
}

/// The first exchange of a connection.
pub fn greet(stream: &mut TcpStream) -> io::Result<()> {
    let answer = ask_line(stream, b"PING\r\n")?;
    if answer == "+PONG" {
        Ok(())
    } else {
        Err(unexpected(answer))
    }
}

/// Appends an argument.
pub fn push_bulk(out: &mut Vec<u8>, octets: &[u8]) {
    out.push(b'$');
    push_decimal(out, octets.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(octets);
    out.extend_from_slice(b"\r\n");
}

impl Dialect for Redis {
    fn record(&self, body: &[u8]) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        if self.single {
            out.extend_from_slice(b"*3\r\n");
            let verb: &[u8] = if self.fan_out { b"PUBLISH" } else { b"RPUSH" };
            push_bulk(&mut out, verb);
            self.push_key(&mut out);
        }
        push_bulk(&mut out, body);
        let body_at = out.len() - body.len() - 2;
        (out, body_at)
    }

    fn batch_head(&self, out: &mut Vec<u8>, messages: u64, _bytes: u64) {
        out.push(b'*');
        push_decimal(out, messages + 2);
        out.extend_from_slice(b"\r\n$5\r\nRPUSH\r\n");
        self.push_key(out);
    }

    fn subscribe(&self, out: &mut Vec<u8>, _credit: u64) -> u64 {
        out.extend_from_slice(b"*2\r\n$9\r\nSUBSCRIBE\r\n");
        self.push_key(out);
        1
    }

    fn pull(&self, out: &mut Vec<u8>, messages: u64) {
        match self.pops {
            Pops::One => {
                out.extend_from_slice(b"*2\r\n$4\r\nLPOP\r\n");
                self.push_key(out);
            }
            Pops::Many => {
                out.extend_from_slice(b"*3\r\n$4\r\nLPOP\r\n");
                self.push_key(out);
                push_bulk(out, itoa::Buffer::new().format(messages).as_bytes());
            }
            Pops::Waiting => {
                out.extend_from_slice(b"*6\r\n$5\r\nLMPOP\r\n");
                self.push_pop_many(out, messages);
            }
        }
    }

    fn wait(&self, out: &mut Vec<u8>, messages: u64) -> u64 {
        match self.pops {
            Pops::One => {
                out.extend_from_slice(b"*3\r\n$5\r\nBLPOP\r\n");
                self.push_key(out);
                out.extend_from_slice(b"$1\r\n0\r\n");
                1
            }
            Pops::Many => 0,
            Pops::Waiting => {
                out.extend_from_slice(b"*7\r\n$6\r\nBLMPOP\r\n$1\r\n0\r\n");
                self.push_pop_many(out, messages);
                messages
            }
        }
    }

    fn greet(&self, stream: &mut TcpStream, _role: Role) -> io::Result<()> {
        greet(stream)
    }

    fn prepare(&mut self, own: bool) -> Result<String, CliError> {
        let version = server_version(self.addr)?;
        if own {
            ask(self.addr, &format!("DEL {}", self.key))?;
        }
        Ok(version)
    }

    fn held(&self) -> Result<Option<u64>, CliError> {
        if self.fan_out {
            return Ok(None);
        }
        length(self.addr, &format!("LLEN {}", self.key))
    }

    fn clean_up(&self) -> Result<(), CliError> {
        ask(self.addr, &format!("DEL {}", self.key)).map(|_| ())
    }
}

/// Reads replies.
#[derive(Debug)]
pub struct Replies {
    /// Strings in front of the body in an array: the list's name behind `BLPOP`, and behind `LMPOP`, where an
    /// array of bodies follows; two words for a subscription; none behind an `LPOP` of many.
    names: u64,
    /// Strings still to come of an array.
    array_left: u64,
    /// How many of these are no bodies.
    names_left: u64,
}

impl Replies {
    /// At the beginning of a connection.
    pub fn new(plan: &Plan) -> Replies {
        Replies {
            names: match (plan.mode, Pops::new(plan)) {
                (Mode::FanOut, _) => 2,
                (_, Pops::One | Pops::Waiting) => 1,
                (_, Pops::Many) => 0,
            },
            array_left: 0,
            names_left: 0,
        }
    }

    /// Tells the whole replies.
    #[inline]
    pub fn read(&mut self, input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
        let mut at = 0;
        while let Some(length) = memchr::memchr(b'\n', &input[at..]) {
            let line = &input[at..at + length.saturating_sub(1)];
            let next = at + length + 1;
            match line.first() {
                Some(b':') if self.array_left > 0 => {
                    self.array_left = 0;
                    tell(Said::Subscribed);
                }
                Some(b':' | b'+') => tell(Said::Done(&line[1..])),
                Some(b'*') => match decimal(&line[1..]) {
                    Some(count) if count > 0 => {
                        // An array inside another one is of bodies.
                        self.names_left = if self.array_left > 0 { 0 } else { self.names };
                        self.array_left = count;
                    }
                    _ => tell(Said::End),
                },
                Some(b'$') => {
                    let Some(size) = decimal(&line[1..]) else {
                        tell(Said::End);
                        at = next;
                        continue;
                    };
                    let size = size as usize;
                    let Some(body) = input.get(next..next + size + 2) else {
                        return at;
                    };
                    self.bulk(&body[..size], &mut tell);
                    at = next + size + 2;
                    continue;
                }
                _ => tell(Said::Refused(line)),
            }
            at = next;
        }
        at
    }

    fn bulk(&mut self, octets: &[u8], tell: &mut impl FnMut(Said<'_>)) {
        self.array_left = self.array_left.saturating_sub(1);
        if self.names_left > 0 {
            self.names_left -= 1;
            return;
        }
        tell(Said::Message {
            handle: &[],
            again: false,
            body: octets,
        });
        if self.array_left == 0 && self.names < 2 {
            tell(Said::End);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{nowhere, plan, published, said, written};
    use super::*;

    fn replies(line: &str, input: &[u8]) -> Vec<String> {
        said(
            || super::super::Replies::Redis(Replies::new(&plan(line))),
            input,
        )
    }

    #[test]
    fn replies_of_lists() {
        let input =
            b":12\r\n$3\r\na\nb\r\n$-1\r\n*2\r\n$1\r\nx\r\n$0\r\n\r\n*-1\r\n-ERR no\r\n+OK\r\n";
        assert_eq!(
            replies("pull --redis x:1 --batch 2", input),
            [
                "done 12",
                " a\nb",
                "end",
                "end",
                " x",
                " ",
                "end",
                "end",
                "refused -ERR no",
                "done OK"
            ]
        );
        let waited = b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n$1\r\ny\r\n:3\r\n";
        assert_eq!(
            replies("e2e --redis x:1", waited),
            [" x", "end", " y", "end", "done 3"]
        );
        let many = b"*2\r\n$1\r\nq\r\n*2\r\n$1\r\nx\r\n$1\r\ny\r\n*-1\r\n\
            *2\r\n$1\r\nq\r\n*1\r\n$1\r\nz\r\n:3\r\n";
        assert_eq!(
            replies("e2e --redis x:1 --batch 2", many),
            [" x", " y", "end", "end", " z", "end", "done 3"]
        );
    }

    #[test]
    fn replies_of_channels() {
        let input = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nq\r\n:1\r\n\
            *3\r\n$7\r\nmessage\r\n$1\r\nq\r\n$2\r\nhi\r\n:10\r\n";
        assert_eq!(
            replies("fanout --redis x:1", input),
            ["Subscribed", " hi", "done 10"]
        );
    }

    #[test]
    fn commands() {
        let body = "0000000000000000qr";
        let redis = |line: &str| Redis::new(&plan(line), "q", nowhere());
        let one = redis("e2e --redis x:1");
        assert_eq!(
            published(&one, 18, 1),
            format!("*3\r\n$5\r\nRPUSH\r\n$1\r\nq\r\n$18\r\n{body}\r\n")
        );
        let many = redis("e2e --redis x:1 --batch 2");
        assert_eq!(
            published(&many, 18, 2),
            format!("*4\r\n$5\r\nRPUSH\r\n$1\r\nq\r\n$18\r\n{body}\r\n$18\r\n{body}\r\n")
        );
        let channel = redis("fanout --redis x:1");
        assert_eq!(
            published(&channel, 18, 1),
            format!("*3\r\n$7\r\nPUBLISH\r\n$1\r\nq\r\n$18\r\n{body}\r\n")
        );
        assert_eq!(
            written(|out| one.pull(out, 1)),
            "*2\r\n$4\r\nLPOP\r\n$1\r\nq\r\n"
        );
        let drained = redis("pull --redis x:1 --batch 2");
        assert_eq!(
            written(|out| drained.pull(out, 12)),
            "*3\r\n$4\r\nLPOP\r\n$1\r\nq\r\n$2\r\n12\r\n"
        );
        assert_eq!(written(|out| assert_eq!(drained.wait(out, 12), 0)), "");
        assert_eq!(
            written(|out| assert_eq!(one.wait(out, 12), 1)),
            "*3\r\n$5\r\nBLPOP\r\n$1\r\nq\r\n$1\r\n0\r\n"
        );
        let first = "$1\r\n1\r\n$1\r\nq\r\n$4\r\nLEFT\r\n$5\r\nCOUNT\r\n$2\r\n12\r\n";
        assert_eq!(
            written(|out| many.pull(out, 12)),
            format!("*6\r\n$5\r\nLMPOP\r\n{first}")
        );
        assert_eq!(
            written(|out| assert_eq!(many.wait(out, 12), 12)),
            format!("*7\r\n$6\r\nBLMPOP\r\n$1\r\n0\r\n{first}")
        );
    }
}
