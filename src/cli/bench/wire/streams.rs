//! Redis Streams: `XADD`, `XREADGROUP` of one group, `XACK`. What was acked stays in the stream.

use std::io;
use std::net::{SocketAddr, TcpStream};

use crate::cli::args::count;
use crate::cli::bench::connection::{Handles, Role};
use crate::cli::bench::plan::{Mode, Plan};
use crate::cli::error::CliError;
use crate::protocol::text::value::decimal;

use super::redis::{ask, greet, length, push_bulk, server_version};
use super::{Dialect, Said, Settling, push_decimal};

/// A stream with one group.
#[derive(Debug)]
pub struct Streams {
    addr: SocketAddr,
    key: String,
    mode: Mode,
}

impl Streams {
    /// The stream of that name as a plan uses it.
    pub fn new(plan: &Plan, key: &str, addr: SocketAddr) -> Streams {
        Streams {
            addr,
            key: key.to_owned(),
            mode: plan.mode,
        }
    }

    /// Appends a read of at most `messages`; with `wait`, until there is one.
    fn read_group(&self, out: &mut Vec<u8>, messages: u64, wait: bool) {
        let group: &[u8] = if wait {
            b"*11\r\n$10\r\nXREADGROUP\r\n$5\r\nGROUP\r\n$1\r\ng\r\n$1\r\nc\r\n\
              $5\r\nBLOCK\r\n$1\r\n0\r\n"
        } else {
            b"*9\r\n$10\r\nXREADGROUP\r\n$5\r\nGROUP\r\n$1\r\ng\r\n$1\r\nc\r\n"
        };
        out.extend_from_slice(group);
        push_bulk(out, b"COUNT");
        push_bulk(out, itoa::Buffer::new().format(messages).as_bytes());
        push_bulk(out, b"STREAMS");
        push_bulk(out, self.key.as_bytes());
        push_bulk(out, b">");
    }
}

/// The number behind a name in the answer of `XINFO GROUPS`.
fn field(answer: &str, name: &str) -> Option<u64> {
    let mut lines = answer.lines().skip_while(|line| *line != name).skip(1);
    lines.next()?.strip_prefix(':').and_then(count)
}

impl Dialect for Streams {
    fn record(&self, body: &[u8]) -> (Vec<u8>, usize) {
        let mut out = b"*5\r\n$4\r\nXADD\r\n".to_vec();
        push_bulk(&mut out, self.key.as_bytes());
        out.extend_from_slice(b"$1\r\n*\r\n$1\r\nb\r\n");
        push_bulk(&mut out, body);
        let body_at = out.len() - body.len() - 2;
        (out, body_at)
    }

    fn pull(&self, out: &mut Vec<u8>, messages: u64) {
        self.read_group(out, messages, false);
    }

    fn wait(&self, out: &mut Vec<u8>, messages: u64) -> u64 {
        self.read_group(out, messages, true);
        messages
    }

    fn settle(&self, out: &mut Vec<u8>, handles: &Handles, most: usize) -> Settling {
        let mut left = handles.len();
        let mut ids = handles.iter();
        let mut settling = Settling::default();
        while left > 0 {
            let some = left.min(most);
            out.push(b'*');
            push_decimal(out, some as u64 + 3);
            out.extend_from_slice(b"\r\n$4\r\nXACK\r\n");
            push_bulk(out, self.key.as_bytes());
            push_bulk(out, b"g");
            for id in ids.by_ref().take(some) {
                push_bulk(out, id);
            }
            settling.answers += 1;
            left -= some;
        }
        settling
    }

    fn greet(&self, stream: &mut TcpStream, _role: Role) -> io::Result<()> {
        greet(stream)
    }

    fn prepare(&mut self, own: bool) -> Result<String, CliError> {
        let version = server_version(self.addr)?;
        if own {
            ask(self.addr, &format!("DEL {}", self.key))?;
            ask(
                self.addr,
                &format!("XGROUP CREATE {} g 0 MKSTREAM", self.key),
            )?;
        }
        Ok(version)
    }

    /// Entries that the group has not read or not acked; without consumers, the stream's.
    fn held(&self) -> Result<Option<u64>, CliError> {
        if self.mode == Mode::Publish {
            return length(self.addr, &format!("XLEN {}", self.key));
        }
        let answer = ask(self.addr, &format!("XINFO GROUPS {}", self.key))?;
        let pending = field(&answer, "pending");
        Ok(pending.and_then(|pending| Some(pending + field(&answer, "lag")?)))
    }

    fn clean_up(&self) -> Result<(), CliError> {
        ask(self.addr, &format!("DEL {}", self.key)).map(|_| ())
    }
}

/// Reads replies.
#[derive(Debug)]
pub struct Replies {
    /// A producer's strings are ids of what was added.
    pub role: Role,
    /// Lines that still come before the entries: the array of streams, the one with a name and its
    /// entries, the name.
    before: u8,
    /// Entries still to come.
    entries: u64,
    /// Parts of the entry that were read: its array, id, fields' array, field, value.
    part: u8,
    /// Of the entry that is read.
    id: Vec<u8>,
}

impl Replies {
    /// At the beginning of a connection.
    pub fn new(role: Role) -> Replies {
        Replies {
            role,
            before: 0,
            entries: 0,
            part: 0,
            id: Vec::new(),
        }
    }

    /// Tells the whole replies.
    #[inline]
    pub fn read(&mut self, input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
        let mut at = 0;
        while let Some(length) = memchr::memchr(b'\n', &input[at..]) {
            let line = &input[at..at + length.saturating_sub(1)];
            let next = at + length + 1;
            let number = line.get(1..).and_then(decimal);
            match (line.first(), number) {
                (Some(b'$'), Some(size)) => {
                    let size = size as usize;
                    let Some(octets) = input.get(next..next + size + 2) else {
                        return at;
                    };
                    self.bulk(&octets[..size], &mut tell);
                    at = next + size + 2;
                    continue;
                }
                (Some(b':'), Some(settled)) => tell(Said::Settled(settled)),
                (Some(b'*'), Some(count)) => self.array(count),
                (Some(b'*'), None) => tell(Said::End),
                _ => tell(Said::Refused(line)),
            }
            at = next;
        }
        at
    }

    fn array(&mut self, count: u64) {
        match (self.entries, self.before) {
            (0, 0) => self.before = 3,
            (0, 1) => (self.before, self.entries, self.part) = (0, count, 0),
            (0, _) => self.before -= 1,
            _ => self.part += 1,
        }
    }

    fn bulk(&mut self, octets: &[u8], tell: &mut impl FnMut(Said<'_>)) {
        if self.role == Role::Producer {
            return tell(Said::Receipts(1));
        }
        if self.entries == 0 {
            self.before = self.before.saturating_sub(1);
            return;
        }
        self.part += 1;
        match self.part {
            2 => {
                self.id.clear();
                self.id.extend_from_slice(octets);
            }
            5 => {
                tell(Said::Message {
                    handle: &self.id,
                    again: false,
                    body: octets,
                });
                (self.part, self.entries) = (0, self.entries - 1);
                if self.entries == 0 {
                    tell(Said::End);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{handles, nowhere, plan, published, said, written};
    use super::*;

    fn read(role: Role, input: &[u8]) -> Vec<String> {
        said(|| super::super::Replies::Streams(Replies::new(role)), input)
    }

    #[test]
    fn replies() {
        let input = b"*1\r\n*2\r\n$1\r\nq\r\n*2\r\n\
            *2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nb\r\n$3\r\na\nb\r\n\
            *2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nb\r\n$0\r\n\r\n\
            :2\r\n*-1\r\n*1\r\n*2\r\n$1\r\nq\r\n*1\r\n*2\r\n$3\r\n2-0\r\n*2\r\n$1\r\nb\r\n$1\r\nx\r\n-ERR no\r\n";
        assert_eq!(
            read(Role::Consumer, input),
            [
                "1-0 a\nb",
                "1-1 ",
                "end",
                "Settled(2)",
                "end",
                "2-0 x",
                "end",
                "refused -ERR no"
            ]
        );
        assert_eq!(
            read(Role::Producer, b"$3\r\n1-0\r\n$3\r\n1-1\r\n"),
            ["Receipts(1)", "Receipts(1)"]
        );
    }

    #[test]
    fn commands() {
        let streams = Streams::new(&plan("e2e --redis-streams x:1"), "q", nowhere());
        assert_eq!(
            published(&streams, 18, 1),
            "*5\r\n$4\r\nXADD\r\n$1\r\nq\r\n$1\r\n*\r\n$1\r\nb\r\n$18\r\n0000000000000000qr\r\n"
        );
        let group = "$10\r\nXREADGROUP\r\n$5\r\nGROUP\r\n$1\r\ng\r\n$1\r\nc\r\n";
        let rest =
            |count: &str| format!("$5\r\nCOUNT\r\n{count}$7\r\nSTREAMS\r\n$1\r\nq\r\n$1\r\n>\r\n");
        assert_eq!(
            written(|out| streams.pull(out, 12)),
            format!("*9\r\n{group}{}", rest("$2\r\n12\r\n"))
        );
        assert_eq!(
            written(|out| assert_eq!(streams.wait(out, 12), 12)),
            format!(
                "*11\r\n{group}$5\r\nBLOCK\r\n$1\r\n0\r\n{}",
                rest("$2\r\n12\r\n")
            )
        );
        let settled = written(|out| {
            let three = handles(&[b"1-0", b"1-1", b"2-0"]);
            assert_eq!(streams.settle(out, &three, 2).answers, 2);
        });
        assert_eq!(
            settled,
            "*5\r\n$4\r\nXACK\r\n$1\r\nq\r\n$1\r\ng\r\n$3\r\n1-0\r\n$3\r\n1-1\r\n\
             *4\r\n$4\r\nXACK\r\n$1\r\nq\r\n$1\r\ng\r\n$3\r\n2-0\r\n"
        );
    }

    #[test]
    fn groups_tell_what_is_left() {
        let answer = "*1\r\n*12\r\n$7\r\npending\r\n:12\r\n$3\r\nlag\r\n:3\r\n";
        assert_eq!(field(answer, "pending"), Some(12));
        assert_eq!(field(answer, "lag"), Some(3));
        assert_eq!(field("$3\r\nlag\r\n$-1\r\n", "lag"), None);
    }
}
