//! The bytes of a benchmark: commands out, replies in. No sockets, no clock.
//!
//! A body is the message's number and the time it was due to be sent (nanoseconds since the run
//! began), 8 bytes each, little-endian, then filler that is the same in every message.

use crate::protocol::text::value::decimal;

use super::plan::Protocol;

/// Writes commands for one queue and one body size.
pub struct Wire {
    protocol: Protocol,
    /// The queue's name as typed.
    queue: Vec<u8>,
    body_bytes: usize,
    /// One message as it stands in a command, its number and time still 0.
    record: Vec<u8>,
    /// Where the body begins in `record`.
    body_at: usize,
    /// Scratch for decimals.
    number: itoa::Buffer,
}

/// The byte of the filler at `index` of the body.
fn filler(index: usize) -> u8 {
    b'a' + (index % 26) as u8
}

impl Wire {
    /// Commands for messages of `body_bytes` bytes; `single` when each publish has one message.
    pub fn new(protocol: Protocol, queue: &str, body_bytes: usize, single: bool) -> Wire {
        let head = match (protocol, single) {
            (Protocol::Text, true) => format!("PUB {queue} ${body_bytes}\n"),
            (Protocol::Text, false) => format!("{body_bytes}\n"),
            (Protocol::Redis, true) => format!(
                "*3\r\n$5\r\nRPUSH\r\n${}\r\n{queue}\r\n${body_bytes}\r\n",
                queue.len()
            ),
            (Protocol::Redis, false) => format!("${body_bytes}\r\n"),
        };
        let mut record = head.into_bytes();
        let body_at = record.len();
        record.resize(body_at + 16, 0);
        record.extend((16..body_bytes).map(filler));
        record.extend_from_slice(match protocol {
            Protocol::Text => b"\n",
            Protocol::Redis => b"\r\n",
        });
        Wire {
            protocol,
            queue: queue.as_bytes().to_vec(),
            body_bytes,
            record,
            body_at,
            number: itoa::Buffer::new(),
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

    /// Appends what stands before the records of a batch.
    pub fn batch_head(&mut self, out: &mut Vec<u8>, messages: u64) {
        match self.protocol {
            Protocol::Text => {
                out.extend_from_slice(b"MPUB ");
                out.extend_from_slice(&self.queue);
                out.extend_from_slice(b" $");
                let bytes = self.record.len() as u64 * messages;
                out.extend_from_slice(self.number.format(bytes).as_bytes());
                out.push(b'\n');
            }
            Protocol::Redis => {
                out.push(b'*');
                out.extend_from_slice(self.number.format(messages + 2).as_bytes());
                out.extend_from_slice(b"\r\n$5\r\nRPUSH\r\n");
                self.key(out);
            }
        }
    }

    /// Appends what stands behind the records of a batch.
    pub fn batch_tail(&self, out: &mut Vec<u8>) {
        if self.protocol == Protocol::Text {
            out.push(b'\n');
        }
    }

    /// Appends a command that takes at most `messages`.
    pub fn pull(&mut self, out: &mut Vec<u8>, messages: u64) {
        match self.protocol {
            Protocol::Text => {
                out.extend_from_slice(b"PULL ");
                out.extend_from_slice(&self.queue);
                out.push(b' ');
                out.extend_from_slice(self.number.format(messages).as_bytes());
                out.push(b'\n');
            }
            Protocol::Redis if messages == 1 => {
                out.extend_from_slice(b"*2\r\n$4\r\nLPOP\r\n");
                self.key(out);
            }
            Protocol::Redis => {
                out.extend_from_slice(b"*3\r\n$4\r\nLPOP\r\n");
                self.key(out);
                let digits = self.number.format(messages).len();
                out.push(b'$');
                out.extend_from_slice(itoa::Buffer::new().format(digits).as_bytes());
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(self.number.format(messages).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Appends a subscription.
    pub fn subscribe(&mut self, out: &mut Vec<u8>, credit: u64) {
        out.extend_from_slice(b"SUB ");
        out.extend_from_slice(&self.queue);
        out.extend_from_slice(b" credit=");
        out.extend_from_slice(self.number.format(credit).as_bytes());
        out.push(b'\n');
    }

    /// The queue's name as an argument of a Redis command.
    fn key(&mut self, out: &mut Vec<u8>) {
        out.push(b'$');
        out.extend_from_slice(self.number.format(self.queue.len()).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.queue);
        out.extend_from_slice(b"\r\n");
    }

    /// The number and due time of a body, `None` when it is not one of this run.
    #[inline]
    pub fn open(&self, body: &[u8]) -> Option<(u64, u64)> {
        let record = &self.record[self.body_at..self.body_at + self.body_bytes];
        if body.len() != self.body_bytes || body[16..] != record[16..] {
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
    /// A command was done: what follows `OK`, or Redis' number.
    Done(&'a [u8]),
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
    /// A refusal, the whole line.
    Refused(&'a [u8]),
}

/// Reads the replies of one connection.
#[derive(Debug)]
pub struct Replies {
    protocol: Protocol,
    /// Messages still to come of a Redis array.
    array_left: u64,
}

impl Replies {
    /// At the beginning of a connection.
    pub fn new(protocol: Protocol) -> Replies {
        Replies {
            protocol,
            array_left: 0,
        }
    }

    /// Tells every whole reply in `input`; returns how many bytes they took.
    #[inline]
    pub fn read(&mut self, input: &[u8], tell: impl FnMut(Said<'_>)) -> usize {
        match self.protocol {
            Protocol::Text => read_text(input, tell),
            Protocol::Redis => self.read_redis(input, tell),
        }
    }

    fn read_redis(&mut self, input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
        let mut at = 0;
        while let Some(length) = memchr::memchr(b'\n', &input[at..]) {
            let line = &input[at..at + length.saturating_sub(1)];
            let next = at + length + 1;
            match line.first() {
                Some(b':' | b'+') => tell(Said::Done(&line[1..])),
                Some(b'*') => match decimal(&line[1..]) {
                    Some(count) if count > 0 => self.array_left = count,
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
                    tell(Said::Message {
                        handle: &[],
                        again: false,
                        body: &body[..size],
                    });
                    self.array_left = self.array_left.saturating_sub(1);
                    if self.array_left == 0 {
                        tell(Said::End);
                    }
                    at = next + size + 2;
                    continue;
                }
                _ => tell(Said::Refused(line)),
            }
            at = next;
        }
        at
    }
}

/// The line protocol's replies.
#[inline]
fn read_text(input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
    let mut at = 0;
    while let Some(length) = memchr::memchr(b'\n', &input[at..]) {
        let line = &input[at..at + length];
        let next = at + length + 1;
        match line {
            [b'O', b'K', b' ', rest @ ..] => tell(Said::Done(rest)),
            [b'O', b'K'] => tell(Said::Done(&[])),
            [b'M', b'S', b'G', b' ', rest @ ..] => {
                let Some((handle, again, size)) = message_line(rest) else {
                    tell(Said::Refused(line));
                    at = next;
                    continue;
                };
                let Some(body) = input.get(next..next + size + 1) else {
                    return at;
                };
                tell(Said::Message {
                    handle,
                    again,
                    body: &body[..size],
                });
                at = next + size + 1;
                continue;
            }
            [b'E', b'N', b'D', ..] => tell(Said::End),
            _ => tell(Said::Refused(line)),
        }
        at = next;
    }
    at
}

/// Handle, whether it was delivered before, and body size of what follows `MSG `.
#[inline]
fn message_line(rest: &[u8]) -> Option<(&[u8], bool, usize)> {
    let source_end = memchr::memchr(b' ', rest)?;
    let rest = &rest[source_end + 1..];
    let handle_end = memchr::memchr(b' ', rest)?;
    let options = &rest[handle_end + 1..];
    let dollar = memchr::memrchr(b'$', options)?;
    let size = decimal(&options[dollar + 1..])?;
    let handle = match &rest[..handle_end] {
        b"-" => &[],
        handle => handle,
    };
    let again = options
        .split(|octet| *octet == b' ')
        .any(|word| word.starts_with(b"try="));
    Some((handle, again, usize::try_from(size).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(protocol: Protocol, input: &[u8]) -> Vec<String> {
        let show = |said: Said<'_>| match said {
            Said::Message {
                handle,
                again,
                body,
            } => format!(
                "{}{} {}",
                String::from_utf8_lossy(handle),
                if again { " again" } else { "" },
                String::from_utf8_lossy(body)
            ),
            Said::Done(rest) => format!("done {}", String::from_utf8_lossy(rest)),
            Said::End => "end".to_owned(),
            Said::Refused(line) => format!("refused {}", String::from_utf8_lossy(line)),
        };
        let mut whole = Vec::new();
        let mut replies = Replies::new(protocol);
        assert_eq!(
            replies.read(input, |said| whole.push(show(said))),
            input.len()
        );
        // The same, however it is cut.
        for step in 1..input.len() {
            let (mut told, mut held) = (Vec::new(), Vec::new());
            let mut replies = Replies::new(protocol);
            for piece in input.chunks(step) {
                held.extend_from_slice(piece);
                let taken = replies.read(&held, |said| told.push(show(said)));
                held.drain(..taken);
            }
            assert_eq!(told, whole, "in steps of {step}");
        }
        whole
    }

    #[test]
    fn text_replies() {
        let input = b"OK 7 mem\nMSG q 1.2.3 $3\na\nb\nMSG q 1.2.4 key=a try=2 $0\n\nEND 2\nOK 1\n\
            MSG q - id=4 $1\nx\nERR FULL retry=5 :it is full\n";
        assert_eq!(
            said(Protocol::Text, input),
            [
                "done 7 mem",
                "1.2.3 a\nb",
                "1.2.4 again ",
                "end",
                "done 1",
                " x",
                "refused ERR FULL retry=5 :it is full"
            ]
        );
    }

    #[test]
    fn redis_replies() {
        let input =
            b":12\r\n$3\r\na\nb\r\n$-1\r\n*2\r\n$1\r\nx\r\n$0\r\n\r\n*-1\r\n-ERR no\r\n+OK\r\n";
        assert_eq!(
            said(Protocol::Redis, input),
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
    }

    #[test]
    fn commands() {
        let written = |protocol, single, write: &dyn Fn(&mut Wire, &mut Vec<u8>)| {
            let mut wire = Wire::new(protocol, "q", 18, single);
            let mut out = Vec::new();
            write(&mut wire, &mut out);
            String::from_utf8(out)
                .expect("small numbers are ASCII")
                .replace('\0', "0")
        };
        let one: &dyn Fn(&mut Wire, &mut Vec<u8>) = &|wire, out| wire.record(out, 0, 0);
        let two: &dyn Fn(&mut Wire, &mut Vec<u8>) = &|wire, out| {
            wire.batch_head(out, 2);
            wire.record(out, 0, 0);
            wire.record(out, 0, 0);
            wire.batch_tail(out);
        };
        let body = "0000000000000000qr";
        assert_eq!(
            written(Protocol::Text, true, one),
            format!("PUB q $18\n{body}\n")
        );
        assert_eq!(
            written(Protocol::Text, false, two),
            format!("MPUB q $44\n18\n{body}\n18\n{body}\n\n")
        );
        assert_eq!(
            written(Protocol::Redis, true, one),
            format!("*3\r\n$5\r\nRPUSH\r\n$1\r\nq\r\n$18\r\n{body}\r\n")
        );
        assert_eq!(
            written(Protocol::Redis, false, two),
            format!("*4\r\n$5\r\nRPUSH\r\n$1\r\nq\r\n$18\r\n{body}\r\n$18\r\n{body}\r\n")
        );
        assert_eq!(
            written(Protocol::Text, true, &|w, o| w.pull(o, 12)),
            "PULL q 12\n"
        );
        assert_eq!(
            written(Protocol::Redis, true, &|w, o| w.pull(o, 12)),
            "*3\r\n$4\r\nLPOP\r\n$1\r\nq\r\n$2\r\n12\r\n"
        );
    }

    #[test]
    fn a_body_is_known_again() {
        let wire = Wire::new(Protocol::Text, "q", 40, true);
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
